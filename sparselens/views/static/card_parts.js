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
  const line = make("div", "sl-needle");
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

function neighbours(card, go) {
  return card.neighbours.map(([feature, description, cosine]) => {
    const row = go ? button("", () => go(feature), { className: "sl-row" }) : make("div", "sl-row");
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

// What is known of a feature, and its texts. `go(feature)` opens another card, where there is a way to it; `pick` and
// `leave` hear of the chosen text.
function buildCard(card, { go, pick, leave }) {
  const bars = buildBars(card);
  const known = make("div", "sl-pair sl-open");
  const range = `values on its tokens, ${number(card.edges[0])} to ${number(card.edges.at(-1))}`;
  known.append(column("", facts(card)), column(range, bars.node));
  if (card.neighbours.length) known.append(column("nearest by decoder, cosine", ...neighbours(card, go)));
  const words = card.promotes.map((word) => JSON.stringify(visible(word))).join(", ");
  if (words) known.append(column("promotes", make("div", "sl-code", words)));
  const read = readTexts(card.texts);
  const texts = buildTexts({
    name: "strongest texts",
    none: "no text fires",
    pick: (place) => pick(read.texts[place].number),
    leave,
  });
  const legend = makeLegend();
  legend.update(card.texts);
  texts.node.firstChild.append(legend.node);
  texts.node.classList.add("sl-open");
  const node = make("div");
  node.append(known, texts.node);
  const valueOf = (target) => target.closest?.(".sl-mark")?.dataset.value;
  node.addEventListener("pointerover", (event) => {
    const value = valueOf(event.target);
    bars.point(value === undefined ? undefined : Number(value));
  });
  node.addEventListener("pointerleave", () => bars.point());
  function update(number) {
    texts.update(read, number < 0 ? -1 : read.texts.findIndex((text) => text.number === number));
  }
  return { node, update };
}

// A sentence of the reader's own, read by the model: where does the feature fire in it?
function buildTest(ask) {
  const node = make("div", "sl-test sl-open");
  const bar = make("div", "sl-field");
  const input = make("input");
  input.type = "text";
  input.placeholder = "a sentence of your own";
  input.setAttribute("aria-label", "a text to test");
  const send = () => ask(input.value);
  onKeys(input, () => ({ Enter: send }));
  const status = make("span", "sl-muted");
  status.setAttribute("role", "status");
  bar.append(make("span", "sl-name", "test"), input, button("read it", send, { name: "let the model read it" }), status);
  const found = make("div", "sl-code sl-tested");
  node.append(bar, found);
  // `result` is a packed text, or empty; its colours are on the scale of the card
  function update({ text, state, result, card }) {
    if (input.getRootNode().activeElement !== input) input.value = text;
    status.textContent = visible(state);
    found.replaceChildren();
    if (!result?.texts) return;
    const read = readTexts(result);
    const column = { peak: Math.max(card.texts.peak, result.peak), signed: card.texts.signed || result.signed };
    found.append(...markedText(read.texts[0], column));
    if (!state) status.textContent = result.peak ? `at most ${number(result.peak)}` : "it does not fire";
  }
  return { node, update };
}
