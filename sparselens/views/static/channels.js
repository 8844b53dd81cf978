// Which channels are kept, token by token: a map on a canvas. Texts are drawn as text, and nothing is fetched.

const TOP = 44; // height of the strip above the map, in pixels
const GAP = 6;
const NAMED = 48; // tokens whose names fit beside the map
const MARGIN = 104; // for the names
const LETTERS = 14;
const NARROWEST = 8; // channels in view at the closest zoom

// The packed map: a bit a cell, row after row, each row filled up to whole bytes.
function readMap(model) {
  const tokens = model.get("tokens");
  const n = model.get("n_channels");
  const bits = model.get("kept");
  const packed = model.get("scores");
  const width = Math.ceil(n / 8);
  const kept = new Uint8Array(tokens.length * n);
  const perChannel = new Float64Array(n);
  const perToken = new Float64Array(tokens.length);
  for (let t = 0; t < tokens.length; t++) {
    for (let c = 0; c < n; c++) {
      const bit = (bits.getUint8(t * width + (c >> 3)) >> (c & 7)) & 1;
      kept[t * n + c] = bit;
      perChannel[c] += bit;
      perToken[t] += bit;
    }
  }
  const score = (t, c) => halfToNumber(packed.getUint16(2 * (t * n + c), true)) * model.get("peak");
  const number = Uint32Array.from({ length: n }, (_, c) => c);
  const orders = { number, kept: number.slice().sort((a, b) => perChannel[b] - perChannel[a] || a - b) };
  return { tokens, n, kept, perChannel, perToken, orders, score: packed?.byteLength ? score : undefined };
}

function named(text) {
  const said = [...visible(text).replaceAll("\n", "↵")];
  return said.length > LETTERS ? said.slice(0, LETTERS - 1).join("") + "…" : said.join("");
}

class ChannelCanvas {
  constructor(data, model, change, point) {
    Object.assign(this, { data, model, change, low: 0, high: data.n });
    this.node = make("div", "sl-channels");
    this.canvas = make("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", "map of kept channels: arrow keys move from cell to cell");
    this.node.append(this.canvas);
    this.height = Math.max(data.tokens.length <= NAMED ? 13 : 2, Math.min(14, 420 / data.tokens.length));
    this.left = data.tokens.length <= NAMED ? MARGIN : 0;
    this.canvas.addEventListener("click", (event) => this.pick(event));
    this.canvas.addEventListener("pointermove", (event) => point(this.cell(event)));
    this.canvas.addEventListener("pointerleave", () => point(undefined));
    onKeys(this.canvas, () => this.keys());
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.node);
  }

  get order() {
    return this.data.orders[this.model.get("order")];
  }

  // Where a channel stands in the present order.
  place(channel) {
    return this.order.indexOf(channel);
  }

  keys() {
    const rows = this.data.tokens.length;
    const token = this.model.get("token");
    const at = this.place(this.model.get("channel"));
    const go = (t, place) => {
      const position = Math.max(0, Math.min(place, this.data.n - 1));
      this.change({ token: Math.max(0, Math.min(t, rows - 1)), channel: this.order[position] });
    };
    const start = at < 0 || token < 0 ? () => go(0, this.low) : undefined;
    const moves = {
      ArrowRight: () => go(token, at + 1),
      ArrowLeft: () => go(token, at - 1),
      ArrowDown: () => go(token + 1, at),
      ArrowUp: () => go(token - 1, at),
      Home: () => go(token, 0),
      End: () => go(token, this.data.n - 1),
      PageDown: () => go(token + 10, at),
      PageUp: () => go(token - 10, at),
    };
    if (start) for (const key of Object.keys(moves)) moves[key] = start;
    return {
      ...moves,
      "+": () => this.zoom(0.5),
      "-": () => this.zoom(2),
      Escape: () => this.change({ token: -1, channel: -1 }),
    };
  }

  zoom(factor) {
    const at = this.place(this.model.get("channel"));
    const middle = at >= 0 ? at + 0.5 : (this.low + this.high) / 2;
    const span = Math.min(this.data.n, Math.max(NARROWEST, Math.round((this.high - this.low) * factor)));
    this.show(Math.round(middle - span / 2), span);
  }

  show(low, span) {
    this.low = Math.max(0, Math.min(low, this.data.n - span));
    this.high = this.low + span;
    this.draw();
  }

  // Moves the window so that the chosen channel is in it.
  follow() {
    const at = this.place(this.model.get("channel"));
    const span = this.high - this.low;
    if (at >= 0 && (at < this.low || at >= this.high)) this.show(Math.round(at - span / 2), span);
    else this.draw();
  }

  get inner() {
    return Math.max(this.width - this.left, 1);
  }

  // The tokens and places under the pointer; a pixel may hold several channels.
  cell(event) {
    const box = this.canvas.getBoundingClientRect();
    const across = (event.clientX - box.left) * (this.width / box.width) - this.left;
    const down = event.clientY - box.top - TOP - GAP;
    const token = Math.floor(down / this.height);
    if (across < 0 || across >= this.inner || token < 0 || token >= this.data.tokens.length) return undefined;
    const columns = this.columns;
    const column = Math.floor((across / this.inner) * columns);
    const at = (c) => this.low + Math.floor((c * (this.high - this.low)) / columns);
    return { token, from: at(column), to: Math.max(at(column + 1), at(column) + 1) };
  }

  get columns() {
    return Math.max(1, Math.min(this.high - this.low, Math.floor(this.inner)));
  }

  pick(event) {
    const cell = this.cell(event);
    this.canvas.focus();
    if (cell) this.change({ token: cell.token, channel: this.order[cell.from] });
  }

  draw() {
    const { data, order, low, high } = this;
    this.width = Math.max(this.node.clientWidth - 24, 200);
    const rows = data.tokens.length;
    const tall = TOP + GAP + rows * this.height;
    const dots = globalThis.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * dots);
    this.canvas.height = Math.round(tall * dots);
    this.canvas.style.height = `${tall}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(dots, dots);
    const ink = getComputedStyle(this.canvas).color;
    const { columns, inner, left } = this;
    const shares = new Float32Array(rows * columns);
    const strip = new Float32Array(columns);
    for (let c = 0; c < columns; c++) {
      const from = low + Math.floor((c * (high - low)) / columns);
      const to = low + Math.floor(((c + 1) * (high - low)) / columns);
      for (let place = from; place < to; place++) {
        const channel = order[place];
        strip[c] += data.perChannel[channel] / rows / (to - from);
        for (let t = 0; t < rows; t++) shares[t * columns + c] += data.kept[t * data.n + channel] / (to - from);
      }
    }
    pen.fillStyle = `rgba(128,128,128,.12)`;
    pen.fillRect(left, 0, inner, TOP);
    pen.fillRect(left, TOP + GAP, inner, rows * this.height);
    pen.fillStyle = `rgb(${BLUE})`;
    strip.forEach((share, c) => {
      const x = Math.floor((c * inner) / columns);
      pen.fillRect(left + x, TOP * (1 - share), Math.floor(((c + 1) * inner) / columns) - x, TOP * share);
    });
    pen.imageSmoothingEnabled = false;
    pen.drawImage(this.image(shares, columns, rows), left, TOP + GAP, inner, rows * this.height);
    this.drawNames(pen, ink);
    this.drawCross(pen, ink);
  }

  image(shares, columns, rows) {
    const canvas = document.createElement("canvas");
    canvas.width = columns;
    canvas.height = rows;
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(columns, rows);
    const [red, green, blue] = BLUE.split(",").map(Number);
    shares.forEach((share, i) => image.data.set([red, green, blue, Math.round(255 * share)], 4 * i));
    pen.putImageData(image, 0, 0);
    return canvas;
  }

  drawNames(pen, ink) {
    pen.fillStyle = ink;
    pen.font = "11px ui-monospace, Menlo, Consolas, monospace";
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    if (this.left) {
      this.data.tokens.forEach((token, t) => {
        pen.fillText(named(token), this.left - 6, TOP + GAP + (t + 0.5) * this.height, this.left - 8);
      });
      pen.fillText("share kept", this.left - 6, TOP / 2, this.left - 8);
    }
  }

  drawCross(pen, ink) {
    const token = this.model.get("token");
    const at = this.place(this.model.get("channel"));
    pen.strokeStyle = ink;
    pen.lineWidth = 1;
    if (token >= 0) pen.strokeRect(this.left, TOP + GAP + token * this.height, this.inner, this.height);
    if (at < this.low || at >= this.high) return;
    const wide = this.inner / (this.high - this.low);
    pen.strokeRect(this.left + (at - this.low) * wide, 0, Math.max(wide, 1.5), TOP + GAP + this.data.tokens.length * this.height);
  }
}

// What a cell holds, in words.
function tell(data, token, channel) {
  const kept = data.kept[token * data.n + channel];
  const score = data.score ? `, score ${number(data.score(token, channel))}` : "";
  const share = percent(data.perChannel[channel] / data.tokens.length, 0);
  return (
    `token ${token} “${visible(data.tokens[token]).replaceAll("\n", "↵")}” · channel ${channel}: ` +
    `${kept ? "kept" : "left out"}${score} · this token keeps ${data.perToken[token]} of ${data.n} channels · ` +
    `this channel is kept for ${share} of the tokens`
  );
}

function render({ model, el }) {
  const data = readMap(model);
  const change = setter(model);
  const { root, body } = makeRoot(model, "← → channel · ↑ ↓ token · + − zoom · Esc clear");
  const under = make("div", "sl-muted"); // under the pointer
  const status = make("div");
  status.setAttribute("role", "status");
  const words = make("div", "sl-cell");
  words.append(status, under);
  const map = new ChannelCanvas(data, model, change, (cell) => {
    if (!cell) return under.replaceChildren();
    const { token, from, to } = cell;
    if (to - from === 1) return under.replaceChildren(tell(data, token, map.order[from]));
    const kept = map.order.slice(from, to).reduce((sum, c) => sum + data.kept[token * data.n + c], 0);
    const name = visible(data.tokens[token]).replaceAll("\n", "↵");
    return under.replaceChildren(`token ${token} “${name}” · ${kept} of ${to - from} channels kept here; zoom in for one`);
  });

  const bar = make("div", "sl-bar");
  const orders = [["kept", "kept for most tokens first"], ["number", "by number"]];
  const { node: field, select } = chooser("channels", orders, (order) => change({ order }));
  const zoom = make("span", "sl-field");
  zoom.append(button("−", () => map.zoom(2), { name: "zoom out" }), button("+", () => map.zoom(0.5), { name: "zoom in" }));
  const total = model.get("total");
  const cut = total > data.tokens.length ? `the first ${commas(data.tokens.length)} of ${commas(total)} tokens` : `${commas(total)} tokens`;
  bar.append(field, zoom, make("span", "sl-muted", `${cut} × ${commas(data.n)} channels; blue: kept`));
  body.append(bar, map.node, words);

  function reselect() {
    const [token, channel] = [model.get("token"), model.get("channel")];
    status.textContent = token >= 0 && channel >= 0 ? tell(data, token, channel) : "no cell is chosen";
    map.follow();
  }
  const updates = {
    token: reselect,
    channel: reselect,
    order() {
      select.value = model.get("order");
      map.follow();
    },
  };
  const clean = mount({ model, el, root, updates });
  updates.order();
  reselect();
  return () => {
    map.watch.disconnect();
    clean();
  };
}

export default { render };
