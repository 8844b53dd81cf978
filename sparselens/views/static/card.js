// One feature: what is known of it, how strongly it fires, what is near it, and the texts where it is strongest.
// Every text goes in through textContent, and nothing is fetched.

// Bars over the values, with a line where the pointed-at token lies.
function buildBars(card) {
  const node = make("div", "sl-hist");
  const most = Math.max(...card.counts, 1);
  const low = card.edges[0];
  const span = card.edges.at(-1) - low || 1;
  const bars = card.counts.map((count, i) => {
    const bar = make("div", "sl-stick");
    bar.style.height = `${(100 * count) / most}%`;
    bar.title = `${number(card.edges[i])} to ${number(card.edges[i + 1])}: ${count} tokens`;
    return bar;
  });
  const line = make("div", "sl-here");
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", `values from ${number(low)} to ${number(card.edges.at(-1))}`);
  node.append(...bars, line);
  function point(value) {
    line.style.display = value === undefined ? "none" : "";
    if (value !== undefined) line.style.left = `${(100 * (value - low)) / span}%`;
  }
  point();
  return { node, point };
}

function column(heading, ...nodes) {
  const part = make("div", "sl-part");
  if (heading) part.append(make("div", "sl-muted", heading));
  part.append(...nodes);
  return part;
}

function neighbours(card, loads, change) {
  return card.neighbours.map(([feature, description, cosine]) => {
    const row = loads ? button("", () => change({ feature }), { className: "sl-row" }) : make("div", "sl-row");
    row.append(make("span", "sl-text", `${feature} · ${visible(description)}`));
    row.append(make("span", "sl-number", number(cosine)));
    return row;
  });
}

function facts(card) {
  const table = make("table");
  for (const [name, text] of card.facts) {
    const row = make("tr");
    row.append(make("td", "sl-muted", name), make("td", "", visible(text)));
    table.append(row);
  }
  return table;
}

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

function build(model, body, change) {
  const card = model.get("card");
  const loads = model.get("loads");
  const head = make("div", "sl-bar");
  head.append(make("span", "sl-name", `feature ${card.feature}`), make("span", "", visible(card.description)));
  if (loads) head.append(goTo(model, change));
  const bars = buildBars(card);
  const known = make("div", "sl-pair sl-open");
  const range = `values on its tokens, ${number(card.edges[0])} to ${number(card.edges.at(-1))}`;
  known.append(column("", facts(card)), column(range, bars.node));
  if (card.neighbours.length) {
    known.append(column("nearest by decoder, cosine", ...neighbours(card, loads, change)));
  }
  const words = card.promotes.map((word) => JSON.stringify(visible(word))).join(", ");
  if (words) known.append(column("promotes", make("div", "sl-code", words)));
  const read = readTexts(card.texts);
  const texts = buildTexts({
    name: "strongest texts",
    none: "no text fires",
    pick: (place) => change({ document: read.texts[place].number }),
    leave: () => change({ document: -1 }),
  });
  const legend = makeLegend();
  legend.update(card.texts);
  texts.node.firstChild.append(legend.node);
  texts.node.classList.add("sl-open");
  const valueOf = (target) => target.closest?.(".sl-mark")?.dataset.value;
  texts.node.addEventListener("pointerover", (event) => {
    const value = valueOf(event.target);
    bars.point(value === undefined ? undefined : Number(value));
  });
  texts.node.addEventListener("pointerleave", () => bars.point());
  body.replaceChildren(head, known, texts.node);
  return () => {
    const document = model.get("document");
    texts.update(read, document < 0 ? -1 : read.texts.findIndex((text) => text.number === document));
  };
}

function render({ model, el }) {
  const change = setter(model);
  const { root, body } = makeRoot(model, "↑ ↓ text · Enter choose · Esc none · point at a token to see its value");
  let update = build(model, body, change);
  const updates = {
    card() {
      update = build(model, body, change);
      update();
    },
    document: () => update(),
  };
  const clean = mount({ model, el, root, updates });
  update();
  return clean;
}

function accepts({ model, key, value }) {
  return key !== "feature" || value === model.get("card").feature;
}

export default { render, accepts };
