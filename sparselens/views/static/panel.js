// Features of a dictionary to set by hand, and the answers of the untouched and of the steered model.
// Every text goes in through textContent, and nothing is fetched.

function buildKnobs(model, change) {
  const node = make("div", "sl-knobs");
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", "features to set");
  let rows = [];

  // a new setting; with a model at hand it answers at once
  function set(index, value) {
    const values = [...model.get("values")];
    values[index] = value;
    change(model.get("can_answer") ? { values, running: true } : { values });
  }

  function row(feature, index) {
    const label = model.get("labels")[index];
    const name = label ? `${feature} · ${visible(label)}` : `feature ${feature}`;
    const line = make("div", "sl-knob");
    const field = make("label", "sl-field");
    const box = make("input");
    box.type = "checkbox";
    field.append(box, make("span", "sl-text", name));
    field.title = name;
    const slider = make("input");
    slider.type = "range";
    slider.setAttribute("aria-label", `value of ${name}`);
    const readout = make("output", "sl-number");
    box.addEventListener("change", () => set(index, box.checked ? Number(slider.value) : null));
    slider.addEventListener("input", () => (readout.textContent = number(Number(slider.value))));
    slider.addEventListener("change", () => set(index, Number(slider.value))); // when it is let go of
    line.append(field, slider, readout);
    line.addEventListener("focusin", () => change({ feature }));
    return { line, box, slider, readout };
  }

  function rebuild() {
    rows = model.get("features").map(row);
    node.replaceChildren(...rows.map(({ line }) => line));
    update();
  }

  function update() {
    const values = model.get("values");
    if (values.length !== rows.length) return; // the other half of a change is on its way
    rows.forEach(({ box, slider, readout }, i) => {
      const [low, high] = model.get("ranges")[i];
      const value = values[i];
      slider.min = String(Math.min(low, value ?? low));
      slider.max = String(Math.max(high, value ?? high));
      slider.step = String((slider.max - slider.min) / 200);
      slider.value = String(value ?? Math.max(0, low));
      box.checked = value !== null;
      box.disabled = slider.disabled = !model.get("can_answer");
      readout.textContent = value === null ? "free" : number(value);
      slider.setAttribute("aria-valuetext", value === null ? "left to the model" : number(value));
    });
  }
  return { node, rebuild, update };
}

function buildNumbers(model) {
  const table = make("table", "sl-outcome");
  function update() {
    const numbers = model.get("numbers");
    table.style.display = numbers.length ? "" : "none";
    const head = make("tr");
    for (const text of ["", "untouched", "steered"]) {
      const cell = make("th", "sl-muted", text);
      cell.scope = "col";
      if (!text) cell.setAttribute("aria-label", "number");
      head.append(cell);
    }
    const lines = numbers.map(([name, ...both]) => {
      const line = make("tr");
      const first = make("th", "", name);
      first.scope = "row";
      line.append(first, ...both.map((x) => make("td", "sl-number", x === null ? "–" : number(x))));
      return line;
    });
    table.replaceChildren(head, ...lines);
  }
  return { node: table, update };
}

function buildCode(model) {
  const node = make("details", "sl-source");
  const copied = make("span", "sl-muted");
  copied.setAttribute("role", "status");
  const text = make("div", "sl-code");
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "code");
  async function copy() {
    try {
      await navigator.clipboard.writeText(model.get("code"));
      copied.textContent = "copied";
    } catch {
      // no right to the clipboard: the text is selected, for the keys of the system
      node.open = true;
      node.ownerDocument.getSelection().selectAllChildren(text);
      copied.textContent = "selected: press Ctrl+C";
    }
  }
  node.append(make("summary", "", "code that does the same"), text);
  const copier = make("span", "sl-field");
  copier.append(button("copy as code", copy), copied);
  function update() {
    text.textContent = whole(model.get("code"));
    copier.style.display = node.style.display = model.get("code") ? "" : "none";
    copied.textContent = "";
  }
  return { node, copier, update };
}

function render({ model, el }) {
  const change = setter(model);
  const hint = model.get("can_answer")
    ? "tick a feature or move its slider: the model answers · ← → value"
    : "the last answers; others come with a running kernel";
  const { root, body } = makeRoot(model, hint);
  const knobs = buildKnobs(model, change);
  const sides = ["untouched", "steered"];
  const answers = buildAnswers(model, change, { sides, go: "answer", compare: true });
  const numbers = buildNumbers(model);
  const code = buildCode(model);
  answers.bar.append(code.copier);
  answers.node.append(numbers.node, code.node);
  body.append(knobs.node, answers.node);
  const updates = {
    features: knobs.rebuild,
    ranges: knobs.rebuild,
    values: knobs.update,
    numbers: numbers.update,
    code: code.update,
  };
  for (const name of answers.traits) updates[name] = answers.update;
  const clean = mount({ model, el, root, updates });
  knobs.rebuild();
  answers.update();
  numbers.update();
  code.update();
  return clean;
}

function accepts({ model, key, value }) {
  return key !== "feature" || model.get("features").includes(value);
}

export default { render, accepts };
