// What a sparsity costs and saves: a dial over measured settings, and answers of the model at the chosen one.
// Every text goes in through textContent, and nothing is fetched.

const ASKED = { key: "sparsity", title: "sparsity asked for", unit: "%", scale: 100, dense: null };

// The packed table: doubles, column after column: method, sparsity, and the metrics in their order.
function readSettings(model) {
  const methods = model.get("methods");
  const metrics = model.get("metrics");
  const packed = model.get("rows");
  const n = packed.byteLength / 8 / (metrics.length + 2);
  const at = (k, i) => packed.getFloat64(8 * (k * n + i), true);
  const rows = Array.from({ length: n }, (_, i) => ({
    method: at(0, i),
    sparsity: at(1, i),
    values: metrics.map((_, k) => at(k + 2, i)),
  }));
  const say = (value, metric) => {
    if (!Number.isFinite(value)) return "–";
    return number(value) + (metric.unit && metric.unit !== "%" ? ` ${metric.unit}` : metric.unit);
  };
  function axis(key) {
    const k = metrics.findIndex((metric) => metric.key === key);
    const metric = metrics[k] ?? ASKED;
    const of = (row) => metric.scale * (k < 0 ? row.sparsity : row.values[k]);
    const dense = metric.dense === null ? null : metric.dense * metric.scale;
    const title = metric.unit ? `${metric.title}, ${metric.unit}` : metric.title;
    return { of, dense, title, name: metric.title, say: (row) => say(of(row), metric), tell: (v) => say(v, metric) };
  }
  const of = (name) => rows.filter((row) => methods[row.method] === name);
  const near = (name, sparsity) =>
    of(name).reduce((best, row) =>
      Math.abs(row.sparsity - sparsity) < Math.abs(best.sparsity - sparsity) ? row : best,
    );
  return { methods, metrics, rows, axis, of, find: near };
}

function buildBar(data, model, change) {
  const bar = make("div", "sl-bar");
  const move = (name, sparsity) => change({ method: name, sparsity: data.find(name, sparsity).sparsity });
  const methods = chooser(
    "method",
    data.methods.map((name) => [name, visible(name)]),
    (name) => move(name, model.get("sparsity")),
  );
  const dial = make("label", "sl-field");
  const slider = make("input");
  slider.type = "range";
  slider.min = "0";
  slider.step = "1";
  slider.addEventListener("input", () => {
    change({ sparsity: data.of(model.get("method"))[Number(slider.value)].sparsity });
  });
  const readout = make("output", "sl-number");
  dial.append(make("span", "sl-muted", "sparsity"), slider, readout);
  const keys = data.metrics.map((metric) => [metric.key, metric.title]);
  const costs = model.get("costs");
  const across = keys.filter(([key]) => costs.includes(key));
  const up = keys.filter(([key]) => !costs.includes(key) || key === "tokens_per_second");
  const xs = chooser("across", [["sparsity", ASKED.title], ...across], (x) => change({ x }));
  const ys = chooser("up", up, (y) => change({ y }));
  bar.append(methods.node, dial, xs.node, ys.node);
  function update() {
    const own = data.of(model.get("method"));
    const here = data.find(model.get("method"), model.get("sparsity"));
    methods.select.value = model.get("method");
    slider.max = String(own.length - 1);
    slider.value = String(own.indexOf(here));
    readout.textContent = percent(here.sparsity, 0);
    slider.setAttribute("aria-valuetext", readout.textContent);
    xs.select.value = model.get("x");
    ys.select.value = model.get("y");
  }
  return { bar, move, update };
}

// The numbers of the chosen setting beside those of the dense model.
function buildNumbers(data, model) {
  const node = make("div", "sl-side sl-numbers");
  const status = make("div", "sl-name");
  status.setAttribute("role", "status");
  const table = make("table");
  const head = make("thead");
  const body = make("tbody");
  const row = make("tr");
  for (const text of ["", "here", "dense"]) {
    const cell = make("th", "", text);
    cell.scope = "col";
    if (!text) cell.setAttribute("aria-label", "number");
    row.append(cell);
  }
  head.append(row);
  table.append(head, body);
  node.append(status, table);
  function update() {
    const here = data.find(model.get("method"), model.get("sparsity"));
    status.textContent = `${visible(model.get("method"))} at ${percent(here.sparsity, 0)}`;
    body.replaceChildren(
      ...data.metrics.map((metric) => {
        const axis = data.axis(metric.key);
        const line = make("tr");
        const name = make("th", "", axis.name);
        name.scope = "row";
        const dense = axis.dense === null ? "" : axis.tell(axis.dense);
        line.append(name, make("td", "sl-number", axis.say(here)), make("td", "sl-number", dense));
        return line;
      }),
    );
  }
  return { node, update };
}

function render({ model, el }) {
  const data = readSettings(model);
  const change = setter(model);
  const { root, body } = makeRoot(model, "← → sparsity, while the slider has the focus · click a point to choose it");
  const controls = buildBar(data, model, change);
  const plot = new Plot(data, model, controls.move);
  const numbers = buildNumbers(data, model);
  const sides = ["dense", "sparse"];
  const answers = buildAnswers(model, change, { sides, go: "answer at this setting" });
  const parts = make("div", "sl-body");
  parts.append(plot.node, numbers.node);
  if (model.get("note")) numbers.node.append(make("p", "sl-muted", visible(model.get("note"))));
  body.append(controls.bar, parts, answers.node);
  function refresh() {
    controls.update();
    plot.draw();
    numbers.update();
  }
  const updates = { method: refresh, sparsity: refresh, x: refresh, y: refresh };
  for (const name of answers.traits) updates[name] = answers.update;
  const clean = mount({ model, el, root, updates });
  refresh();
  answers.update();
  return clean;
}

export default { render };
