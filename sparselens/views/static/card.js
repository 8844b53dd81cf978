// One card of a feature, with a way to others and a box to test a sentence, where a kernel gives them.

function goTo(model, change) {
  const field = make("label", "sl-field sl-pager");
  const input = make("input");
  input.type = "number";
  input.min = "0";
  input.value = String(model.get("feature"));
  input.addEventListener("change", () => change({ feature: Number(input.value) }));
  field.append(make("span", "sl-muted", "go to feature"), input);
  return field;
}

function build(model, change) {
  const card = model.get("card");
  const loads = model.get("loads");
  const head = make("div", "sl-bar");
  head.append(make("span", "sl-name", `feature ${card.feature}`), make("span", "", visible(card.description)));
  if (loads) head.append(goTo(model, change));
  const shown = buildCard(card, {
    go: loads && ((feature) => change({ feature })),
    pick: (document) => change({ document }),
    leave: () => change({ document: -1 }),
  });
  return { nodes: [head, shown.node], update: () => shown.update(model.get("document")) };
}

function render({ model, el }) {
  const change = setter(model);
  const { root, body } = makeRoot(model, "↑ ↓ text · Enter choose · Esc none · point at a token to see its value");
  const test = buildTest((text) => change({ test_text: text }));
  const place = make("div");
  body.append(place);
  if (model.get("can_test")) body.append(test.node);
  let shown;
  function rebuild() {
    shown = build(model, change);
    place.replaceChildren(...shown.nodes);
    shown.update();
  }
  function retest() {
    const [text, state, result, card] = ["test_text", "status", "result", "card"].map((name) => model.get(name));
    test.update({ text, state, result, card });
  }
  const updates = { card: rebuild, document: () => shown.update(), test_text: retest, status: retest, result: retest };
  const clean = mount({ model, el, root, updates });
  rebuild();
  retest();
  return clean;
}

function accepts({ model, key, value }) {
  return key !== "feature" || value === model.get("card").feature;
}

export default { render, accepts };
