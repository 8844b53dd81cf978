// Features as nodes, pairs that come together as lines; a list of the pairs, and the texts of the open one.
// Every text goes in through textContent, and nothing is fetched.

const WIDTH = 720;
const HEIGHT = 460;
const SPACE = "http://www.w3.org/2000/svg"; // the name of the element family, no address

function shape(tag, attributes, text) {
  const node = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  if (text !== undefined) node.textContent = text;
  return node;
}

function readGraph(model) {
  const packed = model.get("xy");
  const nodes = model.get("nodes").map(([side, feature], i) => ({
    i,
    side,
    feature,
    label: model.get("labels")[i],
    colour: model.get("colours")[i],
    x: packed.getFloat32(8 * i, true),
    y: packed.getFloat32(8 * i + 4, true),
  }));
  const edges = model.get("edges").map(([i, j, npmi, both]) => ({ a: nodes[i], b: nodes[j], npmi, both }));
  const xs = nodes.map((node) => node.x);
  const ys = nodes.map((node) => node.y);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const unit = Math.min((WIDTH - 80) / (right - left || 1), (HEIGHT - 80) / (high - low || 1));
  for (const node of nodes) {
    node.x = WIDTH / 2 + (node.x - (left + right) / 2) * unit;
    node.y = HEIGHT / 2 - (node.y - (low + high) / 2) * unit;
  }
  return { nodes, edges };
}

const nameOf = (node) => (node.label ? `${node.feature} · ${visible(node.label)}` : String(node.feature));
const isPair = (edge, pair) => edge.a.feature === pair[0] && edge.b.feature === pair[1];

function buildPicture(model, graph, change) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "sl-net", role: "group", tabindex: -1 });
  svg.setAttribute("aria-label", "network of features");
  svg.dataset.lmSuppressShortcuts = "true";
  const lines = graph.edges.map((edge) => {
    const { a, b, npmi } = edge;
    const line = shape("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, "stroke-width": 1 + 3 * Math.max(npmi, 0) });
    line.append(shape("title", {}, `${nameOf(a)} with ${nameOf(b)}: NPMI ${number(npmi)}, ${edge.both} documents`));
    line.addEventListener("click", () => change({ pair: [a.feature, b.feature] }));
    return line;
  });
  const named = new Set(model.get("named"));
  const size = graph.nodes.length > 80 ? 4 : 6;
  // those with a name come last, so that no other lies on it
  const ordered = [...graph.nodes].sort((a, b) => named.has(a.i) - named.has(b.i) || a.i - b.i);
  const dots = [];
  for (const node of ordered) {
    const group = shape("g", { class: "sl-node", role: "button", "data-i": node.i, "aria-label": nameOf(node) });
    group.dataset.lmSuppressShortcuts = "true";
    const { x, y } = node;
    const mark = node.side
      ? shape("rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size, fill: node.colour })
      : shape("circle", { cx: x, cy: y, r: size, fill: node.colour });
    const name = shape("text", { x, y: y - size - 4 }, visible(model.get("captions")[node.i]));
    if (!named.has(node.i)) name.setAttribute("class", "sl-rare");
    group.append(shape("title", {}, nameOf(node)), mark, name);
    dots[node.i] = group;
  }
  svg.append(...lines, ...ordered.map((node) => dots[node.i]));
  const open = (item) => {
    const { feature } = graph.nodes[Number(item.dataset.i)];
    change({ feature: feature === model.get("feature") ? -1 : feature });
  };
  const rover = new Rover(svg, ".sl-node", (item) => ({
    Enter: () => open(item),
    " ": () => open(item),
    Escape: () => change({ feature: -1 }),
  }));
  rover.mark(Math.max(ordered.findIndex((node) => named.has(node.i)), 0)); // the best connected
  svg.addEventListener("click", (event) => {
    const item = event.target.closest(".sl-node");
    if (item) open(item);
  });

  function update() {
    const feature = model.get("feature");
    const pair = model.get("pair");
    const near = new Set();
    graph.edges.forEach((edge, i) => {
      const hidden = edge.npmi < model.get("threshold");
      const touches = edge.a.feature === feature || edge.b.feature === feature;
      if (touches && !hidden) near.add(edge.a.i).add(edge.b.i);
      lines[i].style.display = hidden ? "none" : "";
      lines[i].classList.toggle("sl-on", isPair(edge, pair));
      lines[i].classList.toggle("sl-off", feature >= 0 && !touches);
    });
    graph.nodes.forEach((node, i) => {
      dots[i].classList.toggle("sl-on", pair.includes(node.feature) || node.feature === feature);
      dots[i].classList.toggle("sl-off", feature >= 0 && !near.has(i) && node.feature !== feature);
      dots[i].setAttribute("aria-pressed", String(node.feature === feature));
    });
  }
  return { node: svg, update };
}

// The pairs as a list: all of them, or those of the chosen feature.
function buildPairs(model, graph, change) {
  const side = make("div", "sl-side");
  const head = make("div", "sl-head");
  const list = make("div");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "pairs");
  side.append(head, list);
  const edgeOf = (item) => graph.edges[Number(item.dataset.e)];
  const open = (item) => change({ pair: [edgeOf(item).a.feature, edgeOf(item).b.feature] });
  const rover = new Rover(list, ".sl-item", (item) => ({
    Enter: () => open(item),
    " ": () => open(item),
    Escape: () => change({ feature: -1, pair: [] }),
  }));
  list.addEventListener("click", (event) => {
    const item = event.target.closest(".sl-item");
    if (item) open(item);
  });

  function fill() {
    const feature = model.get("feature");
    const chosen = graph.edges.filter(
      ({ a, b, npmi }) =>
        npmi >= model.get("threshold") && (feature < 0 || a.feature === feature || b.feature === feature),
    );
    const node = graph.nodes.find((other) => other.feature === feature);
    head.replaceChildren(make("span", "sl-name", node ? nameOf(node) : "all pairs"));
    head.append(make("span", "sl-muted", `${commas(chosen.length)} pair${chosen.length === 1 ? "" : "s"}`));
    if (node) head.append(mark(feature), button("show all", () => change({ feature: -1 })));
    const items = chosen.map((edge) => {
      const item = make("div", "sl-item");
      item.setAttribute("role", "option");
      item.dataset.e = String(graph.edges.indexOf(edge));
      const numbers = make("div", "sl-muted", `NPMI ${number(edge.npmi)} · ${edge.both} documents`);
      item.append(make("div", "", nameOf(edge.a)), make("div", "", nameOf(edge.b)), numbers);
      return item;
    });
    rover.fill(list, items);
    reselect();
  }

  function mark(feature) {
    const label = make("label", "sl-field");
    const box = make("input");
    box.type = "checkbox";
    box.checked = readIds(model.get("picked")).includes(feature);
    box.addEventListener("change", () => {
      const others = readIds(model.get("picked")).filter((other) => other !== feature);
      change({ picked: packIds(box.checked ? [...others, feature] : others) });
    });
    label.append(box, make("span", "sl-muted", "mark"));
    return label;
  }

  function reselect() {
    const pair = model.get("pair");
    for (const item of rover.items) item.setAttribute("aria-selected", String(isPair(edgeOf(item), pair)));
  }
  return { side, fill, reselect };
}

function buildOpen(model, graph) {
  const node = make("div", "sl-open");
  const head = make("div", "sl-head");
  const store = new Map(model.get("store").map((entry) => [String(entry.pair), entry]));
  const pair = buildPair({ names: model.get("names"), pick: () => {}, leave: () => {} });
  node.append(head, pair.node);

  function update() {
    const chosen = model.get("pair");
    const extra = model.get("extra");
    const entry = store.get(String(chosen)) ?? (String(extra?.pair) === String(chosen) ? extra : undefined);
    const edge = graph.edges.find((other) => isPair(other, chosen));
    head.replaceChildren(make("span", "sl-name", edge ? `${nameOf(edge.a)} with ${nameOf(edge.b)}` : "no pair is open"));
    head.append(pair.legend);
    if (edge && !entry) head.append(make("span", "sl-muted", "its texts come with a running kernel"));
    pair.update(entry, []);
  }
  return { node, update };
}

function buildBar(model, graph, change) {
  const bar = make("div", "sl-bar");
  const field = make("label", "sl-field");
  const slider = make("input");
  const shown = make("output", "sl-number");
  const values = graph.edges.map((edge) => edge.npmi);
  slider.type = "range";
  slider.step = "0.01";
  slider.min = String(Math.floor(100 * Math.min(...values, 1)) / 100);
  slider.max = String(Math.max(...values, -1).toFixed(2));
  slider.addEventListener("input", () => change({ threshold: Number(slider.value) }));
  field.append(make("span", "sl-muted", "least NPMI"), slider, shown);
  bar.append(field);
  function update() {
    slider.value = String(model.get("threshold"));
    shown.textContent = number(Number(slider.value));
  }
  return { bar, update };
}

function render({ model, el }) {
  const change = setter(model);
  const graph = readGraph(model);
  const { root, body } = makeRoot(model, "click a node or a line · ↑ ↓ move · Enter open · Esc show all");
  for (const note of model.get("notes")) body.append(make("div", "sl-note sl-muted", visible(note)));
  const bar = buildBar(model, graph, change);
  const picture = buildPicture(model, graph, change);
  const pairs = buildPairs(model, graph, change);
  const open = buildOpen(model, graph);
  const parts = make("div", "sl-body");
  parts.append(picture.node, pairs.side);
  body.append(bar.bar, parts, open.node);
  const updates = {
    feature: () => (picture.update(), pairs.fill()),
    threshold: () => (bar.update(), picture.update(), pairs.fill()),
    pair: () => (picture.update(), pairs.reselect(), open.update()),
    picked: pairs.fill,
    extra: open.update,
  };
  const clean = mount({ model, el, root, updates });
  bar.update();
  picture.update();
  pairs.fill();
  open.update();
  return clean;
}

function accepts({ model, key, value }) {
  return key !== "feature" || value < 0 || model.get("nodes").some(([, feature]) => feature === value);
}

export default { render, accepts };
