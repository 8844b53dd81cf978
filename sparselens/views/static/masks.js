// Masks of attention heads: all heads of a layer small, one of them large. Texts are drawn as text, nothing is fetched.

const THUMB = 64; // pixels along the side of a head's small mask
const LARGE = 420;
const STRIP = 14; // width of the strip of lost attention
const PART = 40; // letters of a tile's text that are told
const CELL = 12; // side of a head in the map of layers and heads
const MARK = "0,158,115"; // green frames

function readMasks(model) {
  const [heads, side] = [model.get("n_heads"), model.get("side")];
  const cells = side * side;
  const at = (view, layer, head, q, k) => view.getUint8(((layer * heads + head) * side + q) * side + k) / 255;
  const [kept, other, lost] = ["kept", "other", "lost"].map((name) => model.get(name));
  const [markKept, markLost] = ["mark_kept", "mark_lost"].map((name) => model.get(name));
  const layers = model.get("names").length;
  const marked = (view, mark, layer, head, q) => view.getUint8(((mark * layers + layer) * heads + head) * side + q) / 255;
  let most = 0; // lost anywhere
  for (let i = 0; i < (lost?.byteLength ?? 0); i++) most = Math.max(most, lost.getUint8(i) / 255);
  return {
    heads,
    side,
    cells,
    tile: model.get("tile"),
    tokens: model.get("tokens"),
    names: model.get("names"),
    compared: Boolean(other?.byteLength),
    loses: Boolean(lost?.byteLength),
    most,
    possible: (q, k) => model.get("possible").getUint8(q * side + k) > 0,
    kept: (layer, head, q, k) => at(kept, layer, head, q, k),
    other: (layer, head, q, k) => at(other, layer, head, q, k),
    lost: (layer, head, q) => lost.getUint8((layer * heads + head) * side + q) / 255,
    marks: model.get("marks") ?? [],
    marksLose: Boolean(markLost?.byteLength),
    markKept: (mark, layer, head, q) => marked(markKept, mark, layer, head, q),
    markLost: (mark, layer, head, q) => marked(markLost, mark, layer, head, q),
  };
}

// The colour of one tile: grey for nothing, blue for kept; against a second method orange for what only the first keeps.
function shade(data, layer, head, q, k) {
  if (!data.possible(q, k)) return [0, 0, 0, 0];
  const mine = data.kept(layer, head, q, k);
  const [value, rgb] = data.compared
    ? [mine - data.other(layer, head, q, k), mine >= data.other(layer, head, q, k) ? VERMILLION : BLUE]
    : [mine, BLUE];
  const size = Math.abs(value);
  if (size === 0) return [128, 128, 128, 30];
  return [...rgb.split(",").map(Number), Math.round(60 + 195 * size)];
}

function drawMask(canvas, data, layer, head) {
  canvas.width = canvas.height = data.side;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(data.side, data.side);
  for (let q = 0; q < data.side; q++) {
    for (let k = 0; k < data.side; k++) image.data.set(shade(data, layer, head, q, k), 4 * (q * data.side + k));
  }
  pen.putImageData(image, 0, 0);
}

// Frames around the columns of marked tokens, on a canvas of so many pixels a side.
function frameMarks(pen, data, pixels, line) {
  const size = pixels / data.side / data.tile;
  pen.strokeStyle = `rgb(${MARK})`;
  pen.lineWidth = line;
  for (const [start, stop] of data.marks.flatMap((mark) => mark.spans)) {
    pen.strokeRect(start * size, line / 2, Math.max((stop - start) * size, 1), pixels - line);
  }
}

// A mask and its marks, twice as fine as it is shown.
function drawThumb(canvas, data, layer, head) {
  const small = make("canvas");
  drawMask(small, data, layer, head);
  canvas.width = canvas.height = 2 * THUMB;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, 2 * THUMB, 2 * THUMB);
  frameMarks(pen, data, 2 * THUMB, 2);
}

// Every layer (across) and head (down): how much of a mark the queries of a tile keep.
function drawMap(canvas, data, mark, query, chosen) {
  canvas.width = data.names.length * CELL;
  canvas.height = data.heads * CELL;
  const pen = canvas.getContext("2d");
  for (let layer = 0; layer < data.names.length; layer++) {
    for (let head = 0; head < data.heads; head++) {
      const share = data.markKept(mark, layer, head, query);
      pen.fillStyle = share > 0 ? `rgba(${BLUE},${0.25 + 0.75 * share})` : "rgba(128,128,128,0.15)";
      pen.fillRect(layer * CELL, head * CELL, CELL - 1, CELL - 1);
    }
  }
  pen.strokeStyle = getComputedStyle(canvas).color;
  pen.strokeRect(chosen[0] * CELL + 0.5, chosen[1] * CELL + 0.5, CELL - 2, CELL - 2);
}

function tellMarks(data, layer, head, query) {
  const row = query >= 0 ? query : data.side - 1;
  return data.marks.map(({ name }, mark) => {
    const lost = data.marksLose ? ` and lose ${percent(data.markLost(mark, layer, head, row))} of their attention there` : "";
    return `${span(data, row)} keep ${percent(data.markKept(mark, layer, head, row), 0)} of “${name}”${lost}`;
  });
}

// The first and last words of a tile.
function words(data, index) {
  const start = index * data.tile;
  const text = visible(data.tokens.slice(start, start + data.tile).join("")).replaceAll("\n", "↵");
  const letters = [...text];
  return letters.length > PART ? letters.slice(0, PART / 2).join("") + "…" + letters.slice(-PART / 2).join("") : text;
}

function span(data, index) {
  const start = index * data.tile;
  const stop = Math.min(start + data.tile, data.tokens.length) - 1;
  return start === stop ? `token ${start}` : `tokens ${start} to ${stop}`;
}

function tellTile(data, layer, head, q, k) {
  const lost = data.loses ? ` · these queries lose ${percent(data.lost(layer, head, q))} of their attention` : "";
  const where = `${span(data, q)} “${words(data, q)}” looking at ${span(data, k)} “${words(data, k)}”`;
  if (!data.possible(q, k)) return `${where}: not allowed${lost}`;
  const mine = `${percent(data.kept(layer, head, q, k), 0)} kept`;
  const second = data.compared ? `, ${percent(data.other(layer, head, q, k), 0)} by the other method` : "";
  return `${where}: ${mine}${second}${lost}`;
}

function tellHead(data, layer, head) {
  let [kept, possible, lost] = [0, 0, 0];
  for (let q = 0; q < data.side; q++) {
    if (data.loses) lost += data.lost(layer, head, q) / data.side;
    for (let k = 0; k < data.side; k++) {
      if (!data.possible(q, k)) continue;
      possible += 1;
      kept += data.kept(layer, head, q, k);
    }
  }
  const loses = data.loses ? `, loses ${percent(lost)} of its attention` : "";
  return `layer ${data.names[layer]}, head ${head}: keeps ${percent(kept / possible)} of its tiles${loses}`;
}

// What the colours mean.
function buildKey(data) {
  const node = make("div", "sl-key sl-muted");
  const rows = data.compared
    ? [[`rgb(${VERMILLION})`, "kept by the first method only"], [`rgb(${BLUE})`, "kept by the second only"],
       ["rgba(128,128,128,.3)", "the same in both"]]
    : [[`rgb(${BLUE})`, "kept; paler where only in part"], ["rgba(128,128,128,.3)", "left out"]];
  if (data.marks.length) rows.push([`rgb(${MARK})`, `frames: ${data.marks.map(({ name }) => `“${visible(name)}”`).join(", ")}`]);
  if (data.loses) rows.push([`rgb(${ORANGE})`, "attention that a row of queries loses, at the right edge"]);
  for (const [colour, text] of rows) {
    const row = make("div", "sl-field");
    const swatch = make("span", "sl-swatch");
    swatch.style.background = colour;
    row.append(swatch, make("span", "", text));
    node.append(row);
  }
  return node;
}

function render({ model, el }) {
  const data = readMasks(model);
  const change = setter(model);
  const { root, body } = makeRoot(model, "in the large mask: ← → keys · ↑ ↓ queries · Esc clear");
  const clamp = (n, most) => Math.max(0, Math.min(n, most));

  const bar = make("div", "sl-bar");
  const layers = chooser("layer", data.names.map((name, i) => [i, name]), (value) => change({ layer: Number(value) }));
  bar.append(layers.node, make("span", "sl-muted", `${commas(data.tokens.length)} tokens in tiles of ${data.tile}`));

  const grid = make("div", "sl-heads");
  grid.setAttribute("role", "group");
  grid.setAttribute("aria-label", "heads");
  const thumbs = Array.from({ length: data.heads }, (_, head) => {
    const node = button("", () => change({ head }), { name: `head ${head}`, className: "sl-thumb" });
    const canvas = make("canvas");
    canvas.style.width = canvas.style.height = `${THUMB}px`;
    node.append(canvas, make("span", "sl-muted", `${head}`));
    grid.append(node);
    return { node, canvas };
  });

  const stage = make("div", "sl-mask");
  const large = make("canvas");
  large.tabIndex = 0;
  large.setAttribute("role", "application");
  large.setAttribute("aria-label", "mask of one head: arrow keys move from tile to tile");
  const keys = make("div", "sl-axes sl-muted");
  keys.append(make("span", "", "keys →"), make("span", "", data.loses ? `lost, to ${percent(data.most, 0)}` : ""));
  stage.append(keys, make("div", "sl-down sl-muted", "queries →"), large);
  const map = make("canvas");
  const marks = chooser("mark", data.marks.map(({ name }, i) => [i, name]), (value) => change({ mark: Number(value) }));
  const sight = make("div", "sl-sight");
  if (data.marks.length) {
    map.setAttribute("role", "img");
    if (data.marks.length > 1) sight.append(marks.node);
    sight.append(make("div", "sl-muted", "which head of which layer keeps it: layers across, heads down"), map);
  }
  const status = make("div");
  status.setAttribute("role", "status");
  const under = make("div", "sl-muted");
  const told = make("div", "sl-told sl-side");
  told.append(status, under, buildKey(data), sight);
  const parts = make("div", "sl-body");
  parts.append(stage, told);
  body.append(bar, grid, parts);

  const chosen = () => ["layer", "head", "query", "key"].map((name) => model.get(name));
  const wide = () => (data.loses ? STRIP + 4 : 0);

  function tileAt(event) {
    const box = large.getBoundingClientRect();
    const scale = (LARGE + wide()) / box.width;
    const k = Math.floor((((event.clientX - box.left) * scale) / LARGE) * data.side);
    const q = Math.floor((((event.clientY - box.top) * scale) / LARGE) * data.side);
    return q >= 0 && q < data.side && k >= 0 && k < data.side ? { q, k } : undefined;
  }

  large.addEventListener("click", (event) => {
    const tile = tileAt(event);
    large.focus();
    if (tile) change({ query: tile.q, key: tile.k });
  });
  map.addEventListener("click", (event) => {
    const box = map.getBoundingClientRect();
    const at = (from, length, count) => clamp(Math.floor((from / length) * count), count - 1);
    const layer = at(event.clientX - box.left, box.width, data.names.length);
    change({ layer, head: at(event.clientY - box.top, box.height, data.heads) });
  });
  large.addEventListener("pointermove", (event) => {
    const tile = tileAt(event);
    const [layer, head] = chosen();
    under.textContent = tile ? tellTile(data, layer, head, tile.q, tile.k) : "";
  });
  large.addEventListener("pointerleave", () => under.replaceChildren());
  onKeys(large, () => {
    const [, , query, key] = chosen();
    const go = (q, k) => change({ query: clamp(q, data.side - 1), key: clamp(k, data.side - 1) });
    return {
      ArrowRight: () => go(query, key + 1),
      ArrowLeft: () => go(query, key - 1),
      ArrowDown: () => go(query + 1, key),
      ArrowUp: () => go(query - 1, key),
      Escape: () => change({ query: -1, key: -1 }),
    };
  });

  function drawLarge() {
    const [layer, head, query, key] = chosen();
    const small = make("canvas");
    drawMask(small, data, layer, head);
    large.width = LARGE + wide();
    large.height = LARGE;
    const pen = large.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, LARGE, LARGE);
    const size = LARGE / data.side;
    for (let q = 0; data.loses && q < data.side; q++) {
      pen.fillStyle = `rgba(${ORANGE},${data.lost(layer, head, q) / (data.most || 1)})`;
      pen.fillRect(LARGE + 4, q * size, STRIP, size);
    }
    frameMarks(pen, data, LARGE, 2);
    pen.lineWidth = 1;
    pen.strokeStyle = getComputedStyle(large).color;
    if (query >= 0 && key >= 0) pen.strokeRect(key * size, query * size, size, size);
  }

  function reselect() {
    const [layer, head, query, key] = chosen();
    const tile = query >= 0 && key >= 0 ? [tellTile(data, layer, head, query, key)] : [];
    status.textContent = [tellHead(data, layer, head), ...tile, ...tellMarks(data, layer, head, query)].join("\n");
    thumbs.forEach(({ node }, i) => node.setAttribute("aria-pressed", String(i === head)));
    drawLarge();
    if (data.marks.length) drawSight(layer, head, query);
  }

  function drawSight(layer, head, query) {
    const mark = model.get("mark");
    marks.select.value = String(mark);
    drawMap(map, data, mark, query >= 0 ? query : data.side - 1, [layer, head]);
    map.setAttribute("aria-label", `how much of “${data.marks[mark].name}” each head keeps; the status line tells it in words`);
  }

  function redraw() {
    const [layer] = chosen();
    layers.select.value = String(layer);
    thumbs.forEach(({ canvas }, head) => drawThumb(canvas, data, layer, head));
    reselect();
  }

  const updates = { layer: redraw, head: reselect, query: reselect, key: reselect, mark: reselect };
  const clean = mount({ model, el, root, updates });
  redraw();
  return clean;
}

export default { render };
