// Marked texts: a list of snippets on one colour scale, to read and to choose from.

// The packed texts, each as spans of { start, tokens, values }.
function readTexts(packed) {
  const column = { peak: packed.peak, signed: packed.signed };
  let at = 0;
  const texts = packed.texts.map(({ title, document: number, length, spans }) => ({
    title,
    number,
    length,
    spans: spans.map(([start, tokens]) => {
      const values = tokens.map(() => halfToNumber(packed.values.getUint16(2 * at++, true)) * packed.peak);
      return { start, tokens, values };
    }),
  }));
  return { column, texts };
}

function gap(n) {
  return make("span", "sl-muted", ` … ${commas(n)} token${n > 1 ? "s" : ""} … `);
}

// One text as nodes: plain text, with a span around each token that fires.
function markedText(text, column) {
  const nodes = [];
  let end = 0;
  for (const { start, tokens, values } of text.spans) {
    if (start > end) nodes.push(gap(start - end));
    tokens.forEach((token, i) => {
      const shown = visible(token).replaceAll("\n", "↵");
      if (values[i] === 0) return nodes.push(shown);
      const span = make("span", "sl-mark", shown || "∅");
      span.dataset.value = String(values[i]);
      paint(span, start + i, values[i], column, 0);
      return nodes.push(span);
    });
    end = start + tokens.length;
  }
  if (end < text.length) nodes.push(gap(text.length - end));
  return nodes;
}

// A list of texts with a heading. `pick` gets the place of the chosen text in the list.
function buildTexts({ name, none, pick, leave = () => {} }) {
  const node = make("div", "sl-texts");
  const head = make("div", "sl-name", name);
  const list = make("div");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", `texts: ${name}`);
  node.append(head, list);
  const place = (item) => Number(item.dataset.place);
  const rover = new Rover(list, ".sl-item", (item) => ({
    Enter: () => pick(place(item)),
    " ": () => pick(place(item)),
    Escape: leave,
  }));
  list.addEventListener("click", (event) => {
    const item = event.target.closest(".sl-item");
    if (item) pick(place(item));
  });
  let drawn;

  function update({ column, texts }, chosen) {
    if (texts !== drawn) {
      drawn = texts;
      rover.at = 0;
      rover.fill(list, items(column, texts));
    }
    rover.items.forEach((item) => item.setAttribute("aria-selected", String(place(item) === chosen)));
  }

  function items(column, texts) {
    if (!texts.length) return [make("div", "sl-muted", none)];
    return texts.map((text, i) => {
      const item = make("div", "sl-item");
      item.setAttribute("role", "option");
      item.dataset.place = String(i);
      const body = make("div", "sl-code");
      body.append(...markedText(text, column));
      item.append(make("div", "sl-muted", visible(text.title)), body);
      return item;
    });
  }
  return { node, update };
}

// Two lists of texts side by side on one scale. Of the texts of an entry, the first `sides[0]` stand on the left.
function buildPair({ names, pick, leave }) {
  const node = make("div", "sl-pair");
  const legend = makeLegend();
  const cache = new Map();
  let shown;
  const lists = names.map((name, i) =>
    buildTexts({ name, none: "no text fires", pick: (place) => pick("ab"[i], parts(shown)[i].texts[place].number), leave }),
  );
  node.append(...lists.map((list) => list.node));

  function parts(entry) {
    if (!cache.has(entry)) {
      const { column, texts } = readTexts(entry);
      const cut = entry.sides[0];
      cache.set(entry, [texts.slice(0, cut), texts.slice(cut)].map((part) => ({ column, texts: part })));
    }
    return cache.get(entry);
  }

  function update(entry, [side, number]) {
    shown = entry;
    node.style.display = legend.node.style.display = entry ? "" : "none";
    if (!entry) return;
    legend.update(entry);
    parts(entry).forEach((part, i) => {
      const place = "ab"[i] === side ? part.texts.findIndex((text) => text.number === number) : -1;
      lists[i].update(part, place);
    });
  }
  return { node, legend: legend.node, update };
}
