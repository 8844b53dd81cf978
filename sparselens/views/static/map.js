// Documents as points on a map, and a list of the chosen ones.
// Every text goes in through textContent, and nothing is fetched.

const HEIGHT = 460;
const LISTED = 200;
const CHARS = 200; // shown of each text that is not open
const NEAR = 12; // pixels within which a click means a point

function readPoints(model) {
  const packed = model.get("xy");
  const codes = model.get("codes");
  const n = packed.byteLength / 8;
  const x = new Float32Array(n);
  const y = new Float32Array(n);
  const code = new Uint8Array(n);
  for (let i = 0; i < n; i++) {
    x[i] = packed.getFloat32(8 * i, true);
    y[i] = packed.getFloat32(8 * i + 4, true);
    code[i] = codes.getUint8(i);
  }
  return { n, x, y, code };
}

// Whether a place lies inside a closed line: it does if a ray from it crosses the line an odd number of times.
function inside(line, x, y) {
  let odd = false;
  for (let i = 0, j = line.length - 1; i < line.length; j = i++) {
    const [ax, ay] = line[i];
    const [bx, by] = line[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}

class Canvas {
  constructor(model, points, change) {
    Object.assign(this, { model, points, change, zoom: 1, middle: [0, 0], line: [], width: 0 });
    this.node = make("div", "sl-map");
    this.canvas = make("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `map of ${points.n} texts; the list and the classes choose them by keyboard`);
    this.tip = make("div", "sl-tip");
    this.tip.style.display = "none";
    const zoomBar = make("div", "sl-zoom");
    zoomBar.append(button("+", () => this.scale(1.5), { name: "zoom in" }));
    zoomBar.append(button("−", () => this.scale(1 / 1.5), { name: "zoom out" }));
    zoomBar.append(button("⟲", () => this.reset(), { name: "show all" }));
    this.node.append(this.canvas, this.tip, zoomBar);
    this.bounds();
    this.listen();
    this.resizing = new ResizeObserver(() => this.resize());
    this.resizing.observe(this.node);
  }

  bounds() {
    const { n, x, y } = this.points;
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    for (let i = 0; i < n; i++) {
      if (Number.isNaN(x[i])) continue;
      box[0] = Math.min(box[0], x[i]);
      box[1] = Math.min(box[1], y[i]);
      box[2] = Math.max(box[2], x[i]);
      box[3] = Math.max(box[3], y[i]);
    }
    this.home = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
    this.span = [box[2] - box[0] || 1, box[3] - box[1] || 1];
    this.middle = [...this.home];
  }

  get unit() {
    return this.zoom * Math.min((this.width - 28) / this.span[0], (HEIGHT - 28) / this.span[1]);
  }

  place(i) {
    const { x, y } = this.points;
    return [
      this.width / 2 + (x[i] - this.middle[0]) * this.unit,
      HEIGHT / 2 - (y[i] - this.middle[1]) * this.unit,
    ];
  }

  scale(factor) {
    this.zoom = Math.max(1, Math.min(this.zoom * factor, 200));
    if (this.zoom === 1) this.middle = [...this.home];
    this.draw();
  }

  reset() {
    this.scale(0);
  }

  shift(dx, dy) {
    this.middle[0] += (dx * this.width) / this.unit;
    this.middle[1] += (dy * HEIGHT) / this.unit;
    this.draw();
  }

  resize() {
    const width = this.node.clientWidth;
    if (width === 0 || width === this.width) return;
    this.width = width;
    const dots = window.devicePixelRatio || 1;
    this.canvas.width = width * dots;
    this.canvas.height = HEIGHT * dots;
    this.canvas.getContext("2d").scale(dots, dots);
    this.draw();
  }

  listen() {
    const { canvas } = this;
    const at = (event) => [event.offsetX, event.offsetY];
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.line = [at(event)];
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.line.length) return this.hover(at(event));
      this.line.push(at(event));
      return this.draw();
    });
    canvas.addEventListener("pointerup", (event) => this.drop(event.shiftKey));
    canvas.addEventListener("pointerleave", () => this.hover(null));
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey) return; // the wheel alone scrolls the notebook
        event.preventDefault();
        this.scale(event.deltaY < 0 ? 1.2 : 1 / 1.2);
      },
      { passive: false },
    );
    onKeys(canvas, () => ({
      "+": () => this.scale(1.5),
      "-": () => this.scale(1 / 1.5),
      0: () => this.reset(),
      ArrowLeft: () => this.shift(-0.1, 0),
      ArrowRight: () => this.shift(0.1, 0),
      ArrowUp: () => this.shift(0, 0.1),
      ArrowDown: () => this.shift(0, -0.1),
      Escape: () => this.change({ documents: packIds([]), document: -1 }),
    }));
  }

  nearest([x, y]) {
    let best = -1;
    let least = NEAR ** 2;
    for (let i = 0; i < this.points.n; i++) {
      const [px, py] = this.place(i);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  hover(where) {
    const i = where ? this.nearest(where) : -1;
    this.tip.style.display = i < 0 ? "none" : "";
    if (i < 0) return;
    const [x, y] = this.place(i);
    this.tip.textContent = `${i}: ${visible(this.model.get("texts")[i])}`;
    this.tip.style.left = `${Math.min(x + 10, this.width - 260)}px`;
    this.tip.style.top = `${y + 10}px`;
  }

  // The end of a lasso chooses what it holds; a mere click opens the nearest text.
  drop(more) {
    const line = this.line;
    this.line = [];
    const xs = line.map(([x]) => x);
    const ys = line.map(([, y]) => y);
    if (Math.max(...xs) - Math.min(...xs) < 4 && Math.max(...ys) - Math.min(...ys) < 4) {
      this.change({ document: this.nearest(line[0]) });
      return;
    }
    const chosen = new Set(more ? readIds(this.model.get("documents")) : []);
    for (let i = 0; i < this.points.n; i++) {
      if (inside(line, ...this.place(i))) chosen.add(i);
    }
    this.change({ documents: packIds([...chosen].sort((a, b) => a - b)) });
  }

  draw() {
    const { n, code } = this.points;
    if (!this.width) return;
    const brush = this.canvas.getContext("2d");
    const colours = this.model.get("colours");
    const chosen = new Set(readIds(this.model.get("documents")));
    const radius = n < 500 ? 4 : n < 5000 ? 3 : 2;
    brush.clearRect(0, 0, this.width, HEIGHT);
    for (const front of [false, true]) {
      brush.globalAlpha = front || !chosen.size ? 0.85 : 0.15; // what is not chosen stays visible
      for (let i = 0; i < n; i++) {
        if ((chosen.size > 0 && chosen.has(i)) !== front) continue;
        const [x, y] = this.place(i);
        if (Number.isNaN(x) || x < 0 || y < 0 || x > this.width || y > HEIGHT) continue;
        brush.fillStyle = colours[code[i]];
        brush.beginPath();
        brush.arc(x, y, radius, 0, 2 * Math.PI);
        brush.fill();
      }
    }
    brush.globalAlpha = 1;
    brush.lineWidth = 2;
    brush.strokeStyle = getComputedStyle(this.node).color;
    const open = this.model.get("document");
    if (open >= 0) {
      brush.beginPath();
      brush.arc(...this.place(open), radius + 4, 0, 2 * Math.PI);
      brush.stroke();
    }
    if (this.line.length < 2) return;
    brush.setLineDash([4, 3]);
    brush.beginPath();
    this.line.forEach(([x, y], i) => (i ? brush.lineTo(x, y) : brush.moveTo(x, y)));
    brush.stroke();
    brush.setLineDash([]);
  }
}

// The classes as buttons, and a search: both choose texts without a mouse.
function buildBar(model, points, change) {
  const bar = make("div", "sl-bar");
  const search = make("input");
  search.type = "search";
  const find = () => {
    const words = search.value.toLowerCase();
    const hits = model.get("texts").flatMap((text, i) => (text.toLowerCase().includes(words) ? [i] : []));
    change({ documents: packIds(words ? hits : []) });
  };
  search.addEventListener("change", find);
  const field = make("label", "sl-field");
  field.append(make("span", "sl-muted", "find"), search);
  bar.append(field);
  const names = model.get("classes");
  if (names.length < 2) return bar;
  bar.append(make("span", "sl-muted", visible(model.get("name"))));
  names.forEach((name, i) => {
    const members = Array.from(points.code.keys()).filter((k) => points.code[k] === i);
    const pick = button("", () => change({ documents: packIds(members) }), { className: "sl-class" });
    const swatch = make("span", "sl-swatch");
    swatch.style.background = model.get("colours")[i];
    pick.append(swatch, `${visible(name)} (${commas(members.length)})`);
    bar.append(pick);
  });
  return bar;
}

function buildList(model, points, change) {
  const side = make("div", "sl-side");
  const head = make("div", "sl-head");
  const about = make("div");
  const list = make("div");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "texts");
  side.append(head, about, list);
  const open = (item) => change({ document: Number(item.dataset.i) });
  const rover = new Rover(list, ".sl-item", (item) => ({
    Enter: () => open(item),
    " ": () => open(item),
    Escape: () => change({ documents: packIds([]), document: -1 }),
  }));
  list.addEventListener("click", (event) => {
    const item = event.target.closest(".sl-item");
    if (item) open(item);
  });

  function item(i) {
    const node = make("div", "sl-item");
    node.setAttribute("role", "option");
    node.dataset.i = String(i);
    const title = make("div", "sl-muted");
    const swatch = make("span", "sl-swatch");
    swatch.style.background = model.get("colours")[points.code[i]];
    title.append(swatch, `text ${i} · ${visible(model.get("classes")[points.code[i]])}`);
    node.append(title, make("div", "sl-whole"));
    return node;
  }

  function fill() {
    const chosen = readIds(model.get("documents"));
    const shown = (chosen.length ? chosen : [...Array(Math.min(points.n, LISTED)).keys()]).slice(0, LISTED);
    const all = chosen.length || points.n;
    head.replaceChildren(make("span", "sl-name", chosen.length ? `${commas(chosen.length)} texts chosen` : `${commas(points.n)} texts`));
    if (all > shown.length) head.append(make("span", "sl-muted", `the first ${shown.length} are listed`));
    if (chosen.length) head.append(button("clear", () => change({ documents: packIds([]) })));
    rover.at = 0;
    rover.fill(list, shown.map(item));
    read();
  }

  // The open text stands in full where the kernel sent it.
  function read() {
    const document = model.get("document");
    const reading = model.get("reading");
    for (const node of rover.items) {
      const i = Number(node.dataset.i);
      const full = i === document && reading?.document === i ? reading.text : model.get("texts")[i];
      const said = visible(full, i === document ? Infinity : CHARS);
      node.setAttribute("aria-selected", String(i === document));
      if (node.lastChild.textContent !== said) node.lastChild.textContent = said;
    }
    const node = rover.items.find((other) => Number(other.dataset.i) === document);
    if (node) side.scrollTop = node.offsetTop - side.offsetTop - 40;
    else if (document >= 0) rover.fill(list, [item(document), ...rover.items].slice(0, LISTED)), read();
  }

  function describe() {
    const rows = model.get("about").map(([feature, description, share, other]) => {
      const row = button("", () => change({ feature }), { className: "sl-row" });
      row.setAttribute("aria-pressed", String(feature === model.get("feature")));
      row.title = "choose the texts in which this feature fires";
      row.append(make("span", "sl-text", `${feature} · ${visible(description)}`));
      row.append(make("span", "sl-number", `${percent(share, 0)} against ${percent(other, 0)}`));
      return row;
    });
    if (rows.length) rows.unshift(make("div", "sl-muted", "more often here than elsewhere"));
    about.replaceChildren(...rows);
  }
  return { side, fill, read, describe };
}

function render({ model, el }) {
  const change = setter(model);
  const points = readPoints(model);
  const live = model.get("canvas");
  const keys = "↑ ↓ text · Enter open · Esc clear";
  const { root, body } = makeRoot(model, live ? `drag a lasso (shift adds) · click a point · ${keys}` : keys);
  for (const note of model.get("notes")) body.append(make("div", "sl-note sl-muted", visible(note)));
  const map = live ? new Canvas(model, points, change) : undefined;
  const list = buildList(model, points, change);
  const parts = make("div", "sl-body");
  parts.append(...(map ? [map.node] : []), list.side);
  body.append(buildBar(model, points, change), parts);
  const draw = () => map?.draw();
  const updates = {
    documents: () => (list.fill(), draw()),
    document: () => (list.read(), draw()),
    about: list.describe,
    feature: list.describe,
    reading: list.read,
  };
  const clean = mount({ model, el, root, updates });
  list.fill();
  list.describe();
  return () => (map?.resizing.disconnect(), clean());
}

function accepts({ model, key, value }) {
  return key !== "document" || value < model.get("texts").length;
}

export default { render, accepts };
