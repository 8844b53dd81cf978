// Which tokens fire: running text, coloured by one feature at a time.
// Every text goes in through textContent, and nothing is fetched.

const LIST_ROWS = 10;

// The packed numbers: half floats, column after column, each column divided by its peak.
function readData(model) {
  const tokens = model.get("tokens");
  const features = model.get("features");
  const labels = model.get("labels");
  const peaks = model.get("peaks");
  const packed = model.get("values");
  const cache = new Map();
  function column(feature) {
    if (!cache.has(feature)) {
      const k = features.indexOf(feature);
      const values = new Float32Array(tokens.length);
      for (let i = 0; i < values.length; i++) {
        values[i] = halfToNumber(packed.getUint16(2 * (k * values.length + i), true)) * peaks[k];
      }
      cache.set(feature, { values, peak: peaks[k], signed: values.some((v) => v < 0) });
    }
    return cache.get(feature);
  }
  const name = (feature) => {
    const label = labels[features.indexOf(feature)];
    return label ? `${feature} · ${visible(label)}` : String(feature);
  };
  return { tokens, features, column, name };
}

function listRow({ text, title, value, column, pressed, key, pick }) {
  const row = button("", pick, { className: "sl-row" });
  row.title = title;
  row.dataset.key = key;
  if (pressed !== undefined) row.setAttribute("aria-pressed", String(pressed));
  const meter = make("span", "sl-meter");
  const fill = make("div", "sl-fill");
  fill.style.width = `${(100 * Math.abs(value)) / (column.peak || 1)}%`;
  fill.style.background = `rgb(${colour(value, column)})`;
  meter.append(fill);
  row.append(make("span", "sl-text sl-code", text), meter);
  row.append(make("span", "sl-number", number(value, column.signed)));
  return row;
}

function buildControls(data, model, change) {
  const bar = make("div", "sl-bar");
  const chooser = make("label", "sl-field");
  const select = make("select");
  for (const feature of data.features) {
    const option = make("option", "", data.name(feature));
    option.value = String(feature);
    select.append(option);
  }
  select.addEventListener("change", () => change({ feature: Number(select.value) }));
  chooser.append(make("span", "sl-muted", "feature"), select);

  const limiter = make("label", "sl-field");
  const slider = make("input");
  slider.type = "range";
  slider.min = "0";
  slider.addEventListener("input", () => change({ threshold: Number(slider.value) }));
  const readout = make("output", "sl-number");
  limiter.append(make("span", "sl-muted", "threshold"), slider, readout);

  const legend = makeLegend();
  const pager = makePager((step) => change({ page: model.get("page") + step }));
  bar.append(chooser, limiter, legend.node, pager.node);

  function update() {
    const column = data.column(model.get("feature"));
    const threshold = model.get("threshold");
    select.value = String(model.get("feature"));
    const most = Math.max(column.peak, threshold) || 1;
    slider.max = String(most);
    slider.step = String(most / 100);
    slider.value = String(threshold);
    readout.textContent = number(threshold);
    legend.update(column);
    pager.update(model.get("page"), Math.ceil(data.tokens.length / model.get("page_size")));
  }
  return { bar, update };
}

// The text itself. One token at a time can be reached with the tab key; arrows move on from there.
class Strip {
  constructor(data, model, change) {
    Object.assign(this, { data, model, change });
    this.spans = [];
    this.first = 0; // index of the page's first token
    this.focus = 0; // index of the token that the tab key reaches
    this.node = make("div", "sl-strip");
    this.node.setAttribute("role", "listbox");
    this.node.setAttribute("aria-label", "tokens");
    this.node.setAttribute("aria-orientation", "horizontal");
    onKeys(this.node, () => this.moves);
    this.node.addEventListener("click", (event) => this.onClick(event));
  }

  get last() {
    return this.first + this.spans.length - 1;
  }

  get hasFocus() {
    return this.node.contains(this.node.getRootNode().activeElement);
  }

  get column() {
    return this.data.column(this.model.get("feature"));
  }

  build() {
    const grab = this.hasFocus;
    const size = this.model.get("page_size");
    this.first = this.model.get("page") * size;
    this.spans = this.data.tokens.slice(this.first, this.first + size).map((token, i) => {
      const span = make("span", "sl-token");
      span.dataset.i = String(this.first + i);
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      // an empty token stays clickable, a line break keeps breaking the line
      span.textContent = token === "" ? "∅" : visible(token).replaceAll("\n", "↵\n");
      return span;
    });
    this.node.replaceChildren(...this.spans);
    this.node.scrollTop = 0;
    this.repaint();
    this.reselect();
    const inside = this.focus >= this.first && this.focus <= this.last;
    this.rove(inside ? this.focus : this.first, grab);
  }

  repaint() {
    const { first, column } = this;
    const threshold = this.model.get("threshold");
    this.spans.forEach((span, i) => paint(span, first + i, column.values[first + i], column, threshold));
  }

  reselect() {
    this.node.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    const span = this.spans[this.model.get("token") - this.first];
    if (!span) return;
    span.setAttribute("aria-selected", "true");
    this.rove(this.model.get("token"), this.hasFocus);
    const top = span.offsetTop - this.node.offsetTop;
    if (top < this.node.scrollTop || top > this.node.scrollTop + this.node.clientHeight - 30) {
      this.node.scrollTop = top - this.node.clientHeight / 2; // scrollIntoView would move the whole notebook
    }
  }

  rove(index, grab) {
    const old = this.spans[this.focus - this.first];
    const span = this.spans[index - this.first];
    this.focus = index;
    if (span) span.tabIndex = 0;
    if (span && grab) span.focus();
    if (old !== span) old?.removeAttribute("tabindex"); // last: a token without it loses the focus
  }

  // The next token of this page that fires, in steps of 1 or -1.
  firing(step) {
    const { values } = this.column;
    const threshold = this.model.get("threshold");
    for (let i = this.focus + step; i >= this.first && i <= this.last; i += step) {
      if (values[i] !== 0 && Math.abs(values[i]) >= threshold) return i;
    }
    return this.focus;
  }

  get moves() {
    const page = this.model.get("page");
    return {
      ArrowRight: () => this.rove(Math.min(this.focus + 1, this.last), true),
      ArrowLeft: () => this.rove(Math.max(this.focus - 1, this.first), true),
      ArrowDown: () => this.rove(this.firing(1), true),
      ArrowUp: () => this.rove(this.firing(-1), true),
      Home: () => this.rove(this.first, true),
      End: () => this.rove(this.last, true),
      PageDown: () => this.change({ page: page + 1 }),
      PageUp: () => this.change({ page: page - 1 }),
      Enter: () => this.change({ token: this.focus }),
      " ": () => this.change({ token: this.focus }),
      Escape: () => this.change({ token: -1 }),
    };
  }

  onClick(event) {
    const span = event.target.closest("[data-i]");
    if (!span) return;
    this.rove(Number(span.dataset.i), true);
    this.change({ token: this.focus });
  }
}

function buildSide(data, model, change) {
  const side = make("div", "sl-side");
  side.setAttribute("role", "group");
  side.setAttribute("aria-label", "details");

  function tokenRows(index) {
    const rows = data.features.map((feature) => ({ feature, column: data.column(feature) }));
    const active = rows.filter(({ column }) => column.values[index] !== 0);
    active.sort((a, b) => Math.abs(b.column.values[index]) - Math.abs(a.column.values[index]));
    return active.slice(0, LIST_ROWS).map(({ feature, column }) =>
      listRow({
        text: data.name(feature),
        title: `show feature ${data.name(feature)}`,
        value: column.values[index],
        column,
        pressed: feature === model.get("feature"),
        key: `feature ${feature}`,
        pick: () => change({ feature }),
      }),
    );
  }

  function featureRows(column) {
    const active = [...column.values.keys()].filter((i) => column.values[i] !== 0);
    active.sort((a, b) => Math.abs(column.values[b]) - Math.abs(column.values[a]));
    const rows = active.slice(0, LIST_ROWS).map((i) =>
      listRow({
        text: visible(data.tokens[i]).replaceAll("\n", "↵"),
        title: `go to token ${i}`,
        value: column.values[i],
        column,
        key: `token ${i}`,
        pick: () => change({ token: i }),
      }),
    );
    return { count: active.length, rows };
  }

  function update() {
    const held = side.getRootNode().activeElement;
    const key = side.contains(held) ? held.dataset.key : undefined;
    const token = model.get("token");
    const head = make("div", "sl-head");
    let rows;
    let note;
    if (token >= 0) {
      const close = button("clear", () => change({ token: -1 }));
      head.append(make("span", "sl-name", `token ${token}`));
      head.append(make("span", "sl-name sl-code", visible(data.tokens[token]).replaceAll("\n", "↵")), close);
      rows = tokenRows(token);
      note = rows.length ? "features that fire here" : "none of these features fires here";
    } else {
      const found = featureRows(data.column(model.get("feature")));
      head.append(make("span", "sl-name", `feature ${data.name(model.get("feature"))}`));
      rows = found.rows;
      const share = ((100 * found.count) / data.tokens.length).toFixed(1);
      note = `fires on ${commas(found.count)} of ${commas(data.tokens.length)} tokens (${share}%)`;
      if (found.count) note += "; the strongest:";
    }
    side.replaceChildren(head, make("div", "sl-muted", note), ...rows);
    if (key !== undefined) [...side.querySelectorAll("[data-key]")].find((row) => row.dataset.key === key)?.focus();
  }
  return { side, update };
}

function render({ model, el }) {
  const data = readData(model);
  const pageOf = (token) => Math.floor(token / model.get("page_size"));
  const lastPage = pageOf(data.tokens.length - 1);

  const set = setter(model);

  function change(state) {
    if (state.token >= 0) state = { page: pageOf(state.token), ...state };
    if (state.page !== undefined) state.page = Math.min(Math.max(state.page, 0), lastPage);
    set(state);
  }

  const { root, body } = makeRoot(model, "← → token · ↑ ↓ firing token · Enter select · Esc clear");
  const controls = buildControls(data, model, change);
  const text = new Strip(data, model, change);
  const details = buildSide(data, model, change);
  const parts = make("div", "sl-body");
  parts.append(text.node, details.side);
  body.append(controls.bar, parts);

  const updates = {
    token() {
      const token = model.get("token");
      if (token >= 0 && pageOf(token) !== model.get("page")) change({ page: pageOf(token) });
      text.reselect();
      details.update();
    },
    feature() {
      controls.update();
      text.repaint();
      details.update();
    },
    threshold() {
      controls.update();
      text.repaint();
    },
    page() {
      controls.update();
      text.build();
    },
  };
  const clean = mount({ model, el, root, updates });
  controls.update();
  text.build();
  details.update();
  return clean;
}

// Whether this view can show what was chosen in another.
function accepts({ model, key, value }) {
  if (key === "token") return value < model.get("tokens").length;
  return key !== "feature" || model.get("features").includes(value);
}

export default { render, accepts };
