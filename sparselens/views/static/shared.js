// What the widgets share: safe text, numbers, elements and the colours of a mark. Put in front of each module.

const ORANGE = "230,159,0";
const BLUE = "0,114,178";
const VERMILLION = "213,94,0";
const TOKEN_CHARS = 400;
// Characters that show nothing, or turn the reading direction of what follows.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

function visible(text) {
  const letters = text.length > TOKEN_CHARS ? [...text] : [];
  if (letters.length > TOKEN_CHARS) {
    text = letters.slice(0, TOKEN_CHARS).join("") + `… (${letters.length} characters)`;
  }
  return text.replace(HIDDEN, (c) => {
    const code = c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    return `⟨U+${code}⟩`;
  });
}

function number(value, signed = false) {
  const size = Math.abs(value);
  const text = size >= 1000 && size < 1e9 ? size.toFixed(0) : String(Number(size.toPrecision(3)));
  if (value < 0) return "−" + text;
  return signed && value > 0 ? "+" + text : text;
}

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  node.dataset.lmSuppressShortcuts = "true"; // JupyterLab asks the focused element whether a key is a command
  node.className = className;
  if (text !== "") node.textContent = text;
  return node;
}

function opacity(value, column) {
  const share = column.peak ? Math.min(Math.abs(value) / column.peak, 1) : 0;
  return 0.15 + (column.signed ? 0.7 : 0.85) * share;
}

function colour(value, column) {
  if (!column.signed) return ORANGE;
  return value > 0 ? VERMILLION : BLUE;
}

function paint(span, index, value, column, threshold) {
  const style = span.style;
  if (value === 0 || Math.abs(value) < threshold) {
    style.background = style.color = style.borderBottom = "";
    span.removeAttribute("title");
    return;
  }
  const strength = opacity(value, column);
  const rgb = colour(value, column);
  style.background = `rgba(${rgb},${strength.toFixed(3)})`;
  style.color = !column.signed && strength >= 0.65 ? "#000" : "inherit"; // readable in dark themes too
  style.borderBottom = column.signed ? `2px ${value > 0 ? "solid" : "dashed"} rgb(${rgb})` : "";
  span.title = `${index}: ${number(value, column.signed)}`;
}
