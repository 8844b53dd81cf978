// The frontier: measured points, a line and a marker shape for each method, with the chosen one in a ring.

const SVG = "http://www.w3.org/2000/svg"; // a name, not an address: nothing is fetched
const PLOT = { width: 620, height: 330, left: 58, right: 14, top: 12, bottom: 40 };
// Okabe-Ito without black, which a dark page swallows; shapes tell methods apart without colour
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999"];
const SHAPES = [
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
  "M-3.6,-3.6H3.6V3.6H-3.6Z",
  "M0,-5L4.6,3.4H-4.6Z",
  "M0,-5.2L4.2,0L0,5.2L-4.2,0Z",
  "M0,5L4.6,-3.4H-4.6Z",
  "M-4.4,-4.4L4.4,4.4M-4.4,4.4L4.4,-4.4",
  "M-5,0H5M0,-5V5",
];

function draw(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

function look(method) {
  const colour = COLOURS[method % COLOURS.length];
  const shape = SHAPES[(method + Math.floor(method / COLOURS.length)) % SHAPES.length];
  return { colour, shape };
}

function marker(method, attributes = {}) {
  const { colour, shape } = look(method);
  return draw("path", { d: shape, fill: colour, stroke: colour, "stroke-width": 1.6, ...attributes });
}

// Round places for marks on an axis from low to high.
function ticks(low, high, logarithmic) {
  if (logarithmic) {
    const all = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const digit of [1, 2, 5]) all.push(digit * 10 ** power);
    }
    const inside = all.filter((tick) => tick >= low && tick <= high);
    return inside.length > 8 ? inside.filter((tick) => Number.isInteger(Math.log10(tick))) : inside;
  }
  const rough = (high - low) / 5;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * size).find((candidate) => candidate >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

// Where a value stands between two ends of the picture.
function scale(values, from, to) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const logarithmic = low > 0 && high > 20 * low;
  const bend = logarithmic ? Math.log10 : (value) => value;
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const room = 0.05 * (bend(high) - bend(low));
  const start = bend(low) - room;
  const span = bend(high) - bend(low) + 2 * room;
  const at = (value) => from + ((to - from) * (bend(value) - start)) / span;
  return { at, ticks: ticks(low, high, logarithmic) };
}

class Plot {
  constructor(data, model, choose) {
    Object.assign(this, { data, model, choose });
    this.node = make("div", "sl-plot");
    this.svg = draw("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img" });
    this.keys = make("div", "sl-keys");
    data.methods.forEach((name, method) => {
      const key = make("span");
      key.append(draw("svg", { viewBox: "-13 -7 26 14", "aria-hidden": "true" }, this.rule(method), marker(method)));
      key.append(visible(name));
      this.keys.append(key);
    });
    this.node.append(this.svg, this.keys);
  }

  rule(method) {
    return draw("line", { x1: -13, x2: 13, y1: 0, y2: 0, stroke: look(method).colour, "stroke-width": 1.5 });
  }

  draw() {
    const { data, model } = this;
    const [x, y] = [data.axis(model.get("x")), data.axis(model.get("y"))];
    const rows = data.rows.filter((row) => Number.isFinite(x.of(row)) && Number.isFinite(y.of(row)));
    const sentence = `${y.title} against ${x.title}; the slider and the table beside it give the numbers`;
    this.svg.setAttribute("aria-label", sentence);
    if (!rows.length) return this.svg.replaceChildren();
    const dense = y.dense;
    const { width, height, left, right, top, bottom } = PLOT;
    const across = scale(rows.map(x.of), left, width - right);
    const up = scale([...rows.map(y.of), ...(dense === null ? [] : [dense])], height - bottom, top);
    const parts = this.frame(across, up, x, y);
    if (dense !== null) parts.push(...this.level(up.at(dense)));
    // the chosen method goes last, on top of the others
    const chosen = data.methods.indexOf(model.get("method"));
    const order = [...data.methods.keys()].sort((a, b) => (a === chosen) - (b === chosen));
    order.forEach((method) => {
      const own = rows.filter((row) => row.method === method).sort((a, b) => x.of(a) - x.of(b));
      const line = own.map((row) => `${across.at(x.of(row)).toFixed(1)},${up.at(y.of(row)).toFixed(1)}`).join(" ");
      parts.push(draw("polyline", { points: line, fill: "none", stroke: look(method).colour, "stroke-width": 1.5 }));
      for (const row of own) parts.push(this.point(row, across.at(x.of(row)), up.at(y.of(row)), x, y));
    });
    const here = data.find(model.get("method"), model.get("sparsity"));
    if (rows.includes(here)) {
      const place = { cx: across.at(x.of(here)), cy: up.at(y.of(here)) };
      const ring = { r: 9, fill: "none", stroke: "currentColor", "stroke-width": 1.8, "pointer-events": "none" };
      parts.push(draw("circle", { ...place, ...ring, class: "sl-here" }));
    }
    this.svg.replaceChildren(...parts);
  }

  frame(across, up, x, y) {
    const { width, height, left, right, top, bottom } = PLOT;
    const parts = [];
    for (const tick of across.ticks) {
      const at = across.at(tick);
      parts.push(draw("line", { x1: at, x2: at, y1: top, y2: height - bottom, class: "sl-grid-line" }));
      parts.push(draw("text", { x: at, y: height - bottom + 15, "text-anchor": "middle" }, number(tick)));
    }
    for (const tick of up.ticks) {
      const at = up.at(tick);
      parts.push(draw("line", { x1: left, x2: width - right, y1: at, y2: at, class: "sl-grid-line" }));
      parts.push(draw("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, number(tick)));
    }
    const middle = { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" };
    parts.push(draw("text", middle, x.title));
    const turn = `translate(12 ${(top + height - bottom) / 2}) rotate(-90)`;
    parts.push(draw("text", { transform: turn, "text-anchor": "middle" }, y.title));
    return parts;
  }

  level(at) {
    const ends = { x1: PLOT.left, x2: PLOT.width - PLOT.right, y1: at, y2: at };
    const line = draw("line", { ...ends, stroke: "currentColor", "stroke-dasharray": "5 4", opacity: 0.6 });
    return [line, draw("text", { x: ends.x2, y: at - 4, "text-anchor": "end", opacity: 0.8 }, "dense")];
  }

  point(row, left, top, x, y) {
    const name = this.data.methods[row.method];
    const said = `${visible(name)} at ${percent(row.sparsity, 0)}: ${x.say(row)}, ${y.say(row)}`;
    const node = draw("g", { transform: `translate(${left} ${top})`, class: "sl-point" });
    node.append(draw("title", {}, said), draw("circle", { r: 9, fill: "transparent" }), marker(row.method));
    node.addEventListener("click", () => this.choose(name, row.sparsity));
    return node;
  }
}
