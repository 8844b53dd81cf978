// How two sets of texts differ: a table of features, and the texts behind the open one.
// Every text goes in through textContent, and nothing is fetched.

const PAGE = 15;
const HEADS = ["", "feature", "description", "", "", "difference, with interval", "q"];
const KEYS = [null, "feature", null, "a", "b", "difference", "q"]; // what a column is sorted by

// The packed table: doubles, column after column.
function readRows(model) {
  const descriptions = model.get("descriptions");
  const packed = model.get("columns");
  const n = descriptions.length;
  const at = (k, i) => packed.getFloat64(8 * (k * n + i), true);
  return descriptions.map((description, i) => ({
    description,
    feature: at(0, i),
    a: at(1, i),
    b: at(2, i),
    difference: at(3, i),
    low: at(4, i),
    high: at(5, i),
    q: at(6, i),
  }));
}

function small(value) {
  if (!Number.isFinite(value)) return "–";
  return value >= 0.001 || value === 0 ? value.toFixed(3) : value.toExponential(0).replace("-", "−");
}

// A difference of shares, its sign printed, as many digits in every row.
function signed(value) {
  if (!Number.isFinite(value)) return "–";
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
}

function share(value, colour) {
  const cell = make("td", "", percent(value));
  const box = make("div", "sl-box");
  const bar = make("div", "sl-fill");
  bar.style.width = `${100 * (value || 0)}%`; // NaN is no width
  bar.style.background = `rgb(${colour})`;
  box.append(bar);
  cell.append(box);
  return cell;
}

function interval(row, reach) {
  const cell = make("td", "sl-number", `${signed(row.difference)} `);
  if (!Number.isFinite(row.low) || !Number.isFinite(row.high)) return cell;
  cell.append(make("span", "sl-muted", `[${signed(row.low)}, ${signed(row.high)}]`));
  const box = make("div", "sl-box sl-axis");
  const bar = make("div", "sl-fill");
  bar.style.marginLeft = `${50 + (50 * row.low) / reach}%`;
  bar.style.width = `${Math.max((50 * (row.high - row.low)) / reach, 1.5)}%`;
  bar.style.background = `rgb(${row.a > row.b ? BLUE : VERMILLION})`;
  box.append(bar);
  cell.append(box);
  return cell;
}

class Table {
  constructor(model, change) {
    Object.assign(this, { model, change, rows: readRows(model), page: 0, sort: null, down: true, filter: "" });
    const bounds = this.rows.flatMap((row) => [row.low, row.high, row.difference]).filter(Number.isFinite);
    this.reach = Math.max(...bounds.map(Math.abs), 1e-9);
    this.bar = make("div", "sl-bar");
    this.search = make("input");
    this.search.type = "search";
    this.search.addEventListener("input", () => this.find(this.search.value));
    const field = make("label", "sl-field");
    field.append(make("span", "sl-muted", "find"), this.search);
    this.count = make("span", "sl-muted");
    this.pager = makePager((step) => this.turn(step));
    this.bar.append(field, this.count, this.pager.node);
    this.node = make("div", "sl-grid");
    const table = make("table");
    table.setAttribute("role", "grid");
    table.setAttribute("aria-label", "features");
    this.head = make("tr");
    this.body = make("tbody");
    const top = make("thead");
    top.append(this.head);
    table.append(top, this.body);
    this.node.append(table);
    this.rover = new Rover(this.body, "tr", (item) => ({
      Enter: () => change({ feature: Number(item.dataset.feature) }),
      " ": () => this.toggle(Number(item.dataset.feature)),
      PageDown: () => this.turn(1),
      PageUp: () => this.turn(-1),
      Escape: () => change({ picked: packIds([]) }),
    }));
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (!row || event.target.closest("input")) return;
      this.rover.go(this.rover.items.indexOf(row));
      change({ feature: Number(row.dataset.feature) });
    });
    this.fillHead();
  }

  get shown() {
    const words = this.filter.toLowerCase();
    const rows = this.rows.filter((r) => `${r.feature} ${r.description}`.toLowerCase().includes(words));
    const key = this.sort;
    if (key) rows.sort((x, y) => (this.down ? y[key] - x[key] : x[key] - y[key]) || 0);
    return rows;
  }

  find(text) {
    this.filter = text;
    this.page = 0;
    this.draw();
  }

  turn(step) {
    const pages = Math.ceil(this.shown.length / PAGE);
    this.page = Math.max(0, Math.min(this.page + step, pages - 1));
    this.rover.at = 0;
    this.draw();
  }

  order(key) {
    this.down = this.sort === key ? !this.down : key !== "q" && key !== "feature";
    this.sort = key;
    this.page = 0;
    this.fillHead();
    this.draw();
  }

  toggle(feature) {
    const picked = readIds(this.model.get("picked"));
    const without = picked.filter((other) => other !== feature);
    this.change({ picked: packIds(without.length < picked.length ? without : [...picked, feature]) });
  }

  fillHead() {
    const names = this.model.get("names");
    const heads = HEADS.map((text, i) => (i === 3 || i === 4 ? `in ${visible(names[i - 3])}` : text));
    const held = this.head.contains(this.head.getRootNode().activeElement);
    this.head.replaceChildren(
      ...heads.map((text, i) => {
        const key = KEYS[i];
        const cell = make("th");
        cell.scope = "col";
        if (i === 0) cell.setAttribute("aria-label", "marked");
        if (!key) return cell.append(text), cell;
        const sorted = this.sort === key;
        cell.setAttribute("aria-sort", sorted ? (this.down ? "descending" : "ascending") : "none");
        const arrow = sorted ? (this.down ? " ▾" : " ▴") : "";
        cell.append(button(text + arrow, () => this.order(key), { name: `sort by ${text}`, className: "sl-plain" }));
        return cell;
      }),
    );
    if (held) this.head.querySelector('[aria-sort$="cending"] button')?.focus();
  }

  draw() {
    const rows = this.shown;
    const total = this.model.get("total");
    const of = total > this.rows.length ? ` of the first ${commas(this.rows.length)}, from ${commas(total)} in all` : ` of ${commas(total)}`;
    this.count.textContent = `${commas(rows.length)}${of}`;
    this.pager.update(this.page, Math.ceil(rows.length / PAGE));
    const part = rows.slice(this.page * PAGE, (this.page + 1) * PAGE);
    this.rover.fill(this.body, part.map((row) => this.row(row)));
    this.reselect();
  }

  row(row) {
    const node = make("tr");
    node.dataset.feature = String(row.feature);
    const box = make("input");
    box.type = "checkbox";
    box.tabIndex = -1; // the space key on the row does the same
    box.setAttribute("aria-label", `mark feature ${row.feature}`);
    box.addEventListener("change", () => this.toggle(row.feature));
    const cells = [make("td"), make("td", "sl-name", String(row.feature)), make("td", "", visible(row.description))];
    cells[0].append(box);
    cells.push(share(row.a, BLUE), share(row.b, VERMILLION), interval(row, this.reach));
    cells.push(make("td", "sl-number", small(row.q)));
    node.append(...cells);
    return node;
  }

  reselect() {
    const picked = new Set(readIds(this.model.get("picked")));
    for (const row of this.rover.items) {
      const feature = Number(row.dataset.feature);
      row.setAttribute("aria-selected", String(feature === this.model.get("feature")));
      row.querySelector("input").checked = picked.has(feature);
    }
  }
}

// The texts of both sets in which the open feature fires, side by side.
function buildSides(model, table, change) {
  const node = make("div", "sl-open");
  const head = make("div", "sl-head");
  const store = new Map(model.get("store").map((entry) => [entry.feature, entry]));
  const pair = buildPair({
    names: model.get("names"),
    pick: (side, number) => change({ text: [side, number] }),
    leave: () => change({ text: [] }),
  });
  node.append(head, pair.node);

  function update() {
    const feature = model.get("feature");
    const extra = model.get("extra")?.feature === feature ? model.get("extra") : undefined;
    const entry = store.get(feature) ?? extra;
    const row = table.rows.find((other) => other.feature === feature);
    head.replaceChildren(make("span", "sl-name", feature < 0 ? "no feature is open" : `feature ${feature}`));
    head.append(make("span", "", visible(row?.description ?? extra?.description ?? "")), pair.legend);
    if (feature >= 0 && !entry) head.append(make("span", "sl-muted", "its texts come with a running kernel"));
    pair.update(entry, model.get("text"));
  }
  return { node, update };
}

function render({ model, el }) {
  const change = setter(model);
  const { root, body } = makeRoot(model, "↑ ↓ feature · Enter open its texts · Space mark · Esc unmark all");
  const table = new Table(model, change);
  const texts = buildSides(model, table, change);
  for (const note of model.get("notes")) body.append(make("div", "sl-note sl-muted", visible(note)));
  body.append(table.bar, table.node, texts.node);
  const updates = {
    feature() {
      table.reselect();
      texts.update();
    },
    picked: () => table.reselect(),
    text: texts.update,
    extra: texts.update,
  };
  const clean = mount({ model, el, root, updates });
  table.draw();
  texts.update();
  return clean;
}

export default { render };
