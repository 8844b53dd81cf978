// What the widgets share: safe text, numbers, elements, keys and the colours of a mark. Put in front of each module.

const ORANGE = "230,159,0";
const BLUE = "0,114,178";
const VERMILLION = "213,94,0";
const TOKEN_CHARS = 400;
const LOST = "The kernel behind this view is gone. What is here can still be read; run the cell again for the rest.";
// Characters that show nothing, or turn the reading direction of what follows.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

function visible(text, limit = TOKEN_CHARS) {
  const letters = text.length > limit ? [...text] : [];
  if (letters.length > limit) {
    text = letters.slice(0, limit).join("") + `… (${commas(letters.length)} characters)`;
  }
  return text.replace(HIDDEN, (c) => {
    const code = c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    return `⟨U+${code}⟩`;
  });
}

// A whole number with commas.
const commas = (n) => n.toLocaleString("en-US");

function number(value, signed = false) {
  if (value === null || Number.isNaN(value)) return "–"; // not known
  const size = Math.abs(value);
  const text = size >= 1000 && size < 1e9 ? commas(Math.round(size)) : String(Number(size.toPrecision(3)));
  if (value < 0) return "−" + text;
  return signed && value > 0 ? "+" + text : text;
}

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  node.dataset.lmSuppressShortcuts = "true"; // JupyterLab asks the focused element whether a key is a command
  node.className = className;
  if (text !== "") node.textContent = text;
  return node;
}

function opacity(value, column) {
  const share = column.peak ? Math.min(Math.abs(value) / column.peak, 1) : 0;
  return 0.15 + (column.signed ? 0.7 : 0.85) * share;
}

function colour(value, column) {
  if (!column.signed) return ORANGE;
  return value > 0 ? VERMILLION : BLUE;
}

function paint(span, index, value, column, threshold) {
  const style = span.style;
  if (value === 0 || Math.abs(value) < threshold) {
    style.background = style.color = style.borderBottom = "";
    span.removeAttribute("title");
    return;
  }
  const strength = opacity(value, column);
  const rgb = colour(value, column);
  style.background = `rgba(${rgb},${strength.toFixed(3)})`;
  style.color = !column.signed && strength >= 0.65 ? "#000" : "inherit"; // readable in dark themes too
  style.borderBottom = column.signed ? `2px ${value > 0 ? "solid" : "dashed"} rgb(${rgb})` : "";
  span.title = `${index}: ${number(value, column.signed)}`;
}

function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

function percent(share, digits = 1) {
  if (!Number.isFinite(share)) return "–";
  return `${(100 * share).toFixed(digits)}%`;
}

function button(text, pick, { name, className = "" } = {}) {
  const node = make("button", className, text);
  node.type = "button";
  if (name) node.setAttribute("aria-label", name);
  node.addEventListener("click", pick);
  return node;
}

// A list to choose one of, `options` as [value, text] pairs.
function chooser(name, options, pick) {
  const node = make("label", "sl-field");
  const select = make("select");
  for (const [value, text] of options) {
    const option = make("option", "", text);
    option.value = value;
    select.append(option);
  }
  select.addEventListener("change", () => pick(select.value));
  node.append(make("span", "sl-muted", name), select);
  return { node, select };
}

// Calls what `moves(event)` holds under the pressed key; the notebook around does not see that key.
function onKeys(node, moves) {
  node.addEventListener("keydown", (event) => {
    const move = event.ctrlKey || event.metaKey || event.altKey ? undefined : moves(event)[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    move();
  });
}

// What the colours mean: a small gradient between the smallest and the largest value of a column.
function makeLegend() {
  const node = make("span", "sl-number");
  const low = make("span", "sl-muted");
  const ramp = make("span", "sl-ramp");
  const high = make("span", "sl-muted");
  node.append(low, ramp, high);
  function update(column) {
    low.textContent = column.signed ? number(-column.peak) : "0";
    high.textContent = number(column.peak, column.signed);
    const from = column.signed ? `rgba(${BLUE},.85),rgba(${BLUE},.15),rgba(${VERMILLION},.15)` : `rgba(${ORANGE},0)`;
    const to = column.signed ? `rgba(${VERMILLION},.85)` : `rgb(${ORANGE})`;
    ramp.style.background = `linear-gradient(90deg,${from},${to})`;
  }
  return { node, update };
}

function makePager(turn) {
  const node = make("span", "sl-field sl-pager");
  const back = button("‹", () => turn(-1), { name: "previous page" });
  const onward = button("›", () => turn(1), { name: "next page" });
  const where = make("span", "sl-number");
  node.append(back, where, onward);
  function update(page, pages) {
    node.style.display = pages > 1 ? "" : "none";
    where.textContent = `page ${page + 1} of ${pages}`;
    back.disabled = page <= 0;
    onward.disabled = page >= pages - 1;
  }
  return { node, update };
}

// Many items, of which the tab key reaches one; up and down move on from there.
class Rover {
  constructor(node, selector, keys = () => ({})) {
    Object.assign(this, { node, selector, at: 0 });
    onKeys(node, (event) => {
      const item = event.target.closest(selector);
      if (!item) return {};
      return {
        ArrowDown: () => this.go(this.at + 1),
        ArrowUp: () => this.go(this.at - 1),
        Home: () => this.go(0),
        End: () => this.go(this.items.length - 1),
        ...keys(item),
      };
    });
    node.addEventListener("focusin", (event) => {
      const found = this.items.indexOf(event.target.closest(selector));
      if (found >= 0) this.mark(found);
    });
  }

  get items() {
    return [...this.node.querySelectorAll(this.selector)];
  }

  mark(index) {
    const items = this.items;
    this.at = Math.max(0, Math.min(index, items.length - 1));
    items.forEach((item, i) => item.setAttribute("tabindex", i === this.at ? "0" : "-1"));
  }

  go(index) {
    this.mark(index);
    this.items[this.at]?.focus();
  }

  // New items in the place of the old; a focus among the old stays among the new.
  fill(parent, nodes) {
    const held = parent.contains(parent.getRootNode().activeElement);
    parent.replaceChildren(...nodes);
    this.mark(this.at);
    if (held) this.items[this.at]?.focus();
  }
}

// Puts a view on the page and calls `updates` by the name of the trait that changed. Returns the clean-up.
function mount({ model, el, root, updates }) {
  el.append(root);
  const names = Object.keys(updates);
  names.forEach((name) => model.on("change:" + name, updates[name]));
  // Jupyter tells when the kernel behind a view is gone; what was clicked would then go nowhere
  const note = make("div", "sl-lost", LOST);
  note.setAttribute("role", "status");
  const lost = () => root.append(note);
  model.on("comm_live_update", lost);
  return () => {
    model.off("comm_live_update", lost);
    names.forEach((name) => model.off("change:" + name, updates[name]));
    root.remove();
  };
}

function makeRoot(model, hint) {
  const root = make("div", "sl-view mathjax_ignore tex2jax_ignore"); // dollars are no formulas here
  if (model.get("title")) root.append(make("div", "sl-title", visible(model.get("title"))));
  const body = make("div");
  root.append(body, make("div", "sl-hint sl-muted", hint));
  return { root, body };
}

function setter(model) {
  return (state) => {
    for (const [name, value] of Object.entries(state)) model.set(name, value);
    model.save_changes();
  };
}

// A tuple of whole numbers, as 32 bits each on the wire.
function readIds(view) {
  if (!view) return [];
  return Array.from({ length: view.byteLength / 4 }, (_, i) => view.getUint32(4 * i, true));
}

function packIds(ids) {
  const view = new DataView(new ArrayBuffer(4 * ids.length));
  ids.forEach((id, i) => view.setUint32(4 * i, id, true));
  return view;
}
