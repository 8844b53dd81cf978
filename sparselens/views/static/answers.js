// A prompt, a button to answer and one to stop, and two answers side by side, as they come.

// A long text, its unseen characters named; `visible` alone would cut it.
function whole(text) {
  return (text.match(/[^]{1,400}/g) ?? []).map((part) => visible(part)).join("");
}

// For the words of two texts, whether each lacks in the other (by a longest common subsequence).
function differing(a, b) {
  const [n, m] = [a.length, b.length];
  const best = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      best[i][j] = a[i].trim() === b[j].trim() ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    }
  }
  const marks = [Array(n).fill(true), Array(m).fill(true)];
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (a[i].trim() === b[j].trim()) marks[0][i++] = marks[1][j++] = false;
    else if (best[i + 1][j] >= best[i][j + 1]) i++;
    else j++;
  }
  return marks;
}

const MOST_WORDS = 600; // longer answers are shown without marks

// Text nodes of both answers, with a mark on the words that only one of them has.
function compared(texts) {
  const words = texts.map((text) => text.match(/\s*\S+|\s+$/g) ?? []);
  if (words.some((own) => own.length > MOST_WORDS) || words.some((own) => !own.length)) {
    return texts.map((text) => [whole(text)]);
  }
  const marks = differing(...words);
  return words.map((own, k) =>
    own.flatMap((word, i) => {
      if (!marks[k][i]) return [whole(word)];
      const bare = word.trimStart();
      return [word.slice(0, word.length - bare.length), make("span", "sl-new", whole(bare))];
    }),
  );
}

// `sides` name the traits `<side>_answer` and `<side>_note`; with `compare` the words that differ are marked.
function buildAnswers(model, change, { sides, go, compare = false }) {
  const node = make("div", "sl-ask");
  const field = make("label");
  const prompt = make("textarea");
  prompt.rows = 2;
  prompt.addEventListener("input", () => change({ prompt: prompt.value }));
  field.append(make("span", "sl-muted", "prompt"), prompt);
  const bar = make("div", "sl-field");
  const start = button(go, () => change({ running: true }));
  const stop = button("stop", () => change({ running: false }));
  const status = make("span", "sl-muted");
  status.setAttribute("role", "status");
  bar.append(start, stop, status); // a view may put its own beside them
  const panes = sides.map((side) => {
    const part = make("div");
    const note = make("div", "sl-muted");
    const text = make("div", "sl-code");
    text.tabIndex = 0; // a long answer scrolls, and keys must reach it
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", `${side} answer`);
    part.append(make("div", "sl-name", side), note, text);
    return { side, part, note, text };
  });
  const pair = make("div", "sl-answers");
  pair.append(...panes.map(({ part }) => part));
  node.append(field, bar, pair);
  function update() {
    const running = model.get("running");
    const can = model.get("can_answer");
    const texts = sides.map((side) => model.get(`${side}_answer`));
    node.style.display = can || texts.some(Boolean) ? "" : "none";
    for (const part of [start, stop, status]) part.style.display = can ? "" : "none";
    prompt.readOnly = !can;
    if (prompt.value !== model.get("prompt")) prompt.value = model.get("prompt");
    const held = node.getRootNode().activeElement;
    start.disabled = running;
    stop.disabled = !running;
    if (held === start && running) stop.focus(); // a disabled button loses the focus
    if (held === stop && !running) start.focus();
    status.textContent = visible(model.get("status"));
    const shown = compare ? compared(texts) : texts.map((text) => [whole(text)]);
    panes.forEach(({ side, note, text }, k) => {
      note.textContent = visible(model.get(`${side}_note`));
      text.replaceChildren(...shown[k]);
    });
  }
  const own = sides.flatMap((side) => [`${side}_answer`, `${side}_note`]);
  return { node, bar, update, traits: ["can_answer", "prompt", "running", "status", ...own] };
}
