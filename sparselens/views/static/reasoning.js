// A chain of thought: a row a step with its score, and the open step with its tokens and features.
// Every text goes in through textContent, and nothing is fetched.

const MARKS = { "-1": ["–", "not known"], 0: ["✗", "wrong"], 1: ["✓", "right"] };

// Numbers of one chain as functions of probe and step.
function readChain(chain) {
  const n = chain.steps.length;
  const view = chain.scores;
  const count = view ? view.byteLength / 4 / 3 / Math.max(n, 1) : 0;
  const at = (probe, which, step) => view.getFloat32(4 * ((probe * 3 + which) * n + step), true);
  const tokens = chain.tokens ? readTexts(chain.tokens) : undefined;
  return {
    ...chain,
    tokens,
    labelled: chain.labels.some((label) => label >= 0),
    has: (probe, step) => probe < count && step < n,
    score: (probe, step) => [0, 1, 2].map((which) => at(probe, which, step)),
  };
}

// A track from 0 to 1 with the range and the score on it.
function buildTrack() {
  const node = make("div");
  const words = make("span", "sl-number");
  const track = make("div", "sl-track");
  const spread = make("span", "sl-spread");
  const line = make("span", "sl-limit");
  const dot = make("span", "sl-dot");
  track.append(spread, line, dot);
  node.append(words, track);
  function update(score, threshold) {
    node.style.visibility = score ? "" : "hidden";
    if (!score) return;
    const [value, low, high] = score;
    const place = (share) => `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(1)}%`;
    node.classList.toggle("sl-doubt", value < threshold);
    dot.style.left = place(value);
    spread.style.left = place(low);
    spread.style.width = `${(100 * Math.max(high - low, 0)).toFixed(1)}%`;
    line.style.left = place(threshold);
    words.textContent = value.toFixed(2) + (high > low ? ` (${low.toFixed(2)}–${high.toFixed(2)})` : "");
  }
  return { node, update };
}

function cell(chain, step) {
  const label = step < chain.steps.length ? String(chain.labels[step]) : "-1";
  const [sign, name] = step < chain.steps.length && chain.labelled ? MARKS[label] : ["", ""];
  const mark = make("span", label === "0" ? "sl-wrong" : "", sign);
  mark.title = name;
  const words = make("div", "sl-words", step < chain.steps.length ? visible(chain.steps[step], 4000) : "");
  const track = buildTrack();
  return { nodes: [mark, words, track.node], track };
}

// All rows, each with an update for another probe or threshold.
function buildRows(chains) {
  const n = Math.max(...chains.map((chain) => chain.steps.length));
  return Array.from({ length: n }, (_, step) => {
    const node = make("div", "sl-step");
    node.setAttribute("role", "option");
    node.dataset.step = String(step);
    const number = make("span", "sl-muted sl-number", String(step + 1));
    const cells = chains.map((chain) => cell(chain, step));
    node.append(number, ...cells.flatMap((c) => c.nodes));
    function update(probe, threshold, first) {
      number.textContent = step === first ? `${step + 1} ◀` : String(step + 1);
      number.classList.toggle("sl-first", step === first);
      number.title = step === first ? "the first below the line" : "";
      chains.forEach((chain, i) => {
        cells[i].track.update(chain.has(probe, step) ? chain.score(probe, step) : undefined, threshold);
      });
    }
    return { node, update };
  });
}

// What the columns are.
function buildTop(model, chains) {
  const node = make("div", "sl-top sl-muted");
  node.append(make("span", "", "step"));
  const names = chains.length > 1 ? ["this chain", "the other chain"] : ["text"];
  const scored = model.get("probes").length > 0;
  names.forEach((name) => node.append(make("span"), make("span", "", name), make("span", "", scored ? "score, 0 to 1" : "")));
  return node;
}

function firstBelow(chain, probe, threshold) {
  return chain.steps.findIndex((_, step) => chain.has(probe, step) && chain.score(probe, step)[0] < threshold);
}

// The open step: its tokens on a colour scale, and what fires in it.
function buildOpen(chain, change) {
  const node = make("div", "sl-side");
  const legend = makeLegend();
  let feature = -1;
  function update(step, chosen) {
    feature = chosen;
    if (step < 0 || step >= chain.steps.length) {
      node.replaceChildren(make("div", "sl-muted", "choose a step to open it"));
      return;
    }
    const head = make("div", "sl-head");
    head.append(make("span", "sl-name", `step ${step + 1}`));
    const parts = [head];
    const text = chain.tokens?.texts[step];
    if (text) {
      legend.update(chain.tokens.column);
      head.append(legend.node);
      const body = make("div", "sl-code");
      body.append(...markedText(text, chain.tokens.column));
      parts.push(body);
    }
    const rows = chain.features[step];
    if (rows.length) parts.push(make("div", "sl-muted", "what fires in it, strongest first"));
    const peak = Math.max(...rows.map((row) => Math.abs(row[2])), 1e-12);
    parts.push(...rows.map((row) => featureRow(row, peak)));
    if (!text && !rows.length) parts.push(make("div", "sl-muted", "no tokens or features were given"));
    node.replaceChildren(...parts);
  }
  function featureRow([id, description, value], peak) {
    const row = button("", () => change({ feature: id === feature ? -1 : id }), { className: "sl-row" });
    row.setAttribute("aria-pressed", String(id === feature));
    const meter = make("span", "sl-meter");
    const fill = make("div", "sl-fill");
    fill.style.width = `${(100 * Math.abs(value)) / peak}%`;
    fill.style.background = `rgb(${ORANGE})`;
    meter.append(fill);
    row.append(make("span", "sl-text", `${id} ${visible(description)}`), meter, make("span", "sl-number", number(value)));
    return row;
  }
  return { node, update };
}

function buildBar(model, chains, change) {
  const bar = make("div", "sl-bar");
  const probes = model.get("probes");
  const said = make("output", "sl-number");
  const range = make("input");
  const updates = [];
  if (probes.length) {
    const options = probes.map((name, i) => [String(i), visible(name)]);
    const { node, select } = chooser("probe", options, (value) => change({ probe: Number(value) }));
    const field = make("label", "sl-field");
    Object.assign(range, { type: "range", min: "0", max: "1", step: "0.01" });
    range.addEventListener("input", () => change({ threshold: Number(range.value) }));
    field.append(make("span", "sl-muted", "doubt below"), range, said);
    const jump = button("first below the line", () => {
      change({ step: firstBelow(chains[0], model.get("probe"), model.get("threshold")) });
    });
    bar.append(node, field, jump);
    updates.push(() => {
      select.value = String(model.get("probe"));
      range.value = String(model.get("threshold"));
      said.textContent = model.get("threshold").toFixed(2);
      jump.disabled = firstBelow(chains[0], model.get("probe"), model.get("threshold")) < 0;
    });
  }
  const { total, steps } = chains[0];
  const cut = total > steps.length ? ` · the first ${steps.length} are here` : "";
  bar.append(make("span", "sl-muted", model.get("notes") + cut));
  return { node: bar, update: () => updates.forEach((update) => update()) };
}

function render({ model, el }) {
  const change = setter(model);
  const chains = model.get("chains").map(readChain);
  const { root, body } = makeRoot(model, "↑ ↓ step · Enter choose · Esc none");
  const bar = buildBar(model, chains, change);
  const question = make("div", "sl-note", visible(model.get("question"), 4000));
  const list = make("div", "sl-steps");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "steps");
  const rows = buildRows(chains);
  const open = buildOpen(chains[0], change);
  const place = (item) => Number(item.dataset.step);
  const rover = new Rover(list, ".sl-step", (item) => ({
    Enter: () => change({ step: place(item) }),
    " ": () => change({ step: place(item) }),
    Escape: () => change({ step: -1 }),
  }));
  list.addEventListener("click", (event) => {
    const item = event.target.closest(".sl-step");
    if (item) change({ step: place(item) });
  });
  rover.fill(list, rows.map((row) => row.node));
  const main = make("div", chains.length > 1 ? "sl-body sl-two" : "sl-body");
  const column = make("div", "sl-column");
  column.append(buildTop(model, chains), list);
  main.append(column, open.node);
  body.append(bar.node, ...(model.get("question") ? [question] : []), main);

  function score() {
    const [probe, threshold] = [model.get("probe"), model.get("threshold")];
    const first = firstBelow(chains[0], probe, threshold);
    rows.forEach((row) => row.update(probe, threshold, first));
    bar.update();
  }
  function choose() {
    const step = model.get("step");
    rows.forEach((row, i) => row.node.setAttribute("aria-selected", String(i === step)));
    open.update(step, model.get("feature"));
    if (step < 0) return;
    rover.mark(step);
    const [box, row] = [list, rows[step].node];
    const top = row.offsetTop - box.offsetTop;
    if (top < box.scrollTop || top + row.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top;
  }
  const clean = mount({ model, el, root, updates: { step: choose, feature: choose, probe: score, threshold: score } });
  score();
  choose();
  return clean;
}

// Of what is chosen in other views: a step that is here.
function accepts({ model, key, value }) {
  return key !== "step" || value < Math.max(...model.get("chains").map((chain) => chain.steps.length));
}

export default { render, accepts };
