// The features of a dictionary: a list to search, and cards to read beside each other.
// Every text goes in through textContent, and nothing is fetched.

const PAGE = 12;
const SORTS = [["", "given order"], ["density", "most frequent"], ["peak", "strongest"], ["feature", "number"]];

// The packed rows: doubles, column after column. `null` while the two halves of a change do not fit.
function readRows(model) {
  const descriptions = model.get("descriptions");
  const packed = model.get("columns");
  const n = descriptions.length;
  if ((packed?.byteLength ?? 0) !== 24 * n) return null;
  const at = (k, i) => packed.getFloat64(8 * (k * n + i), true);
  return descriptions.map((description, i) => ({ description, feature: at(0, i), density: at(1, i), peak: at(2, i) }));
}

class List {
  constructor(model, change) {
    Object.assign(this, { model, change, page: 0 });
    this.bar = make("div", "sl-bar");
    this.search = make("input");
    this.search.type = "search";
    this.search.placeholder = "number or word";
    this.search.addEventListener("input", () => this.ask({ query: this.search.value }));
    const field = make("label", "sl-field");
    field.append(make("span", "sl-muted", "find"), this.search);
    this.sort = chooser("sort", SORTS, (sort) => this.ask({ sort }));
    this.count = make("span", "sl-muted");
    this.count.setAttribute("role", "status");
    this.pager = makePager((step) => this.turn(step));
    this.bar.append(field, this.sort.node, this.count, this.pager.node);
    this.node = make("div", "sl-found");
    this.node.setAttribute("role", "listbox");
    this.node.setAttribute("aria-label", "features");
    const at = (item) => Number(item.dataset.feature);
    this.rover = new Rover(this.node, ".sl-item", (item) => ({
      Enter: () => change({ feature: at(item) }),
      " ": () => change({ feature: at(item) }),
      p: () => pin(model, change, at(item)),
      PageDown: () => this.turn(1),
      PageUp: () => this.turn(-1),
    }));
    this.node.addEventListener("click", (event) => {
      const item = event.target.closest(".sl-item");
      if (item) change({ feature: at(item) });
    });
  }

  // with a kernel the rows that fit come from there; those that are here are narrowed down at once
  ask(state) {
    this.page = 0;
    this.change(state);
    this.draw();
  }

  get rows() {
    const words = this.model.get("query").trim().toLowerCase();
    const sort = this.model.get("sort");
    const rows = (readRows(this.model) ?? []).filter(
      ({ feature, description }) => String(feature).startsWith(words) || description.toLowerCase().includes(words),
    );
    if (sort) rows.sort((a, b) => (sort === "feature" ? a[sort] - b[sort] : b[sort] - a[sort]) || 0);
    return rows;
  }

  turn(step) {
    const pages = Math.ceil(this.rows.length / PAGE);
    this.page = Math.max(0, Math.min(this.page + step, pages - 1));
    this.rover.at = 0;
    this.draw();
  }

  draw() {
    if (readRows(this.model) === null) return;
    const rows = this.rows;
    const open = this.model.get("feature");
    if (this.search.getRootNode().activeElement !== this.search) this.search.value = this.model.get("query");
    this.sort.select.value = this.model.get("sort");
    const found = this.model.get("live") ? this.model.get("found") : rows.length;
    const held = found > rows.length ? `, the first ${commas(rows.length)} are here` : "";
    this.count.textContent = `${found} of ${this.model.get("total")}${held}`;
    this.pager.update(this.page, Math.ceil(rows.length / PAGE));
    const items = rows.slice(this.page * PAGE, (this.page + 1) * PAGE).map((row) => {
      const item = make("div", "sl-item sl-line");
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", String(row.feature === open));
      item.dataset.feature = String(row.feature);
      const name = make("span", "sl-text", `${row.feature} · ${visible(row.description)}`);
      item.title = name.textContent;
      item.append(name, make("span", "sl-number", Number.isNaN(row.density) ? "–" : percent(row.density)));
      return item;
    });
    this.rover.fill(this.node, items.length ? items : [make("div", "sl-muted", "no feature fits")]);
  }
}

// Keep a card beside the open one, or let it go.
function pin(model, change, feature) {
  const pinned = readIds(model.get("pinned"));
  const without = pinned.filter((other) => other !== feature);
  change({ pinned: packIds(without.length < pinned.length ? without : [...pinned, feature].slice(-4)) });
}

function buildCards(model, change) {
  const node = make("div", "sl-cards");
  let shown = [];

  function frame(card) {
    const pinned = readIds(model.get("pinned")).includes(card.feature);
    const part = make("div", "sl-card");
    part.setAttribute("role", "group");
    part.setAttribute("aria-label", `feature ${card.feature}`);
    const head = make("div", "sl-head");
    const keep = button(pinned ? "unpin" : "pin", () => pin(model, change, card.feature), {
      name: `${pinned ? "unpin" : "pin"} feature ${card.feature}`,
    });
    keep.setAttribute("aria-pressed", String(pinned));
    keep.dataset.key = `pin ${card.feature}`;
    head.append(make("span", "sl-name", `feature ${card.feature}`), make("span", "", visible(card.description)), keep);
    const inner = buildCard(card, {
      go: model.get("live") && ((feature) => change({ feature })),
      pick: (document) => change({ document }),
      leave: () => change({ document: -1 }),
    });
    part.append(head, inner.node);
    return { part, update: inner.update };
  }

  function rebuild() {
    const open = model.get("feature");
    const wanted = [...new Set([open, ...readIds(model.get("pinned"))])];
    const cards = wanted.map((feature) => model.get("cards").find((card) => card.feature === feature)).filter(Boolean);
    const key = node.getRootNode().activeElement?.dataset?.key;
    shown = cards.map(frame);
    const none = open >= 0 && !cards.some((card) => card.feature === open);
    const note = make("div", "sl-muted sl-open", `the card of feature ${open} comes with a running kernel`);
    node.replaceChildren(...(none ? [note] : []), ...shown.map(({ part }) => part));
    if (key) [...node.querySelectorAll("[data-key]")].find((other) => other.dataset.key === key)?.focus();
    mark();
  }

  function mark() {
    shown.forEach(({ update }) => update(model.get("document")));
  }
  return { node, rebuild, mark };
}

function render({ model, el }) {
  const change = setter(model);
  const { root, body } = makeRoot(model, "↑ ↓ feature · Enter open · P pin beside the others · PgUp PgDn page");
  for (const note of model.get("notes")) body.append(make("div", "sl-note sl-muted", visible(note)));
  const list = new List(model, change);
  const cards = buildCards(model, change);
  const test = buildTest((text) => change({ test_text: text }));
  const right = make("div", "sl-right");
  right.append(...(model.get("can_test") ? [test.node] : []), cards.node);
  const parts = make("div", "sl-body");
  parts.append(list.node, right);
  body.append(list.bar, parts);
  function retest() {
    const card = model.get("cards").find(({ feature }) => feature === model.get("feature"));
    if (!card) return;
    test.update({ text: model.get("test_text"), state: model.get("status"), result: model.get("result"), card });
  }
  const draw = () => list.draw();
  const updates = { query: draw, sort: draw, found: draw, columns: draw, descriptions: draw, document: cards.mark };
  updates.feature = () => {
    draw();
    cards.rebuild();
    retest();
  };
  updates.cards = updates.pinned = () => {
    cards.rebuild();
    retest();
  };
  updates.test_text = updates.status = updates.result = retest;
  const clean = mount({ model, el, root, updates });
  draw();
  cards.rebuild();
  retest();
  return clean;
}

function accepts({ model, key, value }) {
  if (key === "feature") return model.get("cards").some((card) => card.feature === value);
  return key !== "picked";
}

export default { render, accepts };
