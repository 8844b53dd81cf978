// Runs one notebook widget without a notebook: a model in memory instead of a kernel.

const data = JSON.parse(document.getElementById("sparselens-data").textContent);
const state = data.state;
for (const [path, text] of data.buffers) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const owner = path.slice(0, -1).reduce((part, key) => part[key], state);
  owner[path.at(-1)] = new DataView(bytes.buffer);
}

const listeners = new Map();
const fire = (name) => [...(listeners.get(name) ?? [])].forEach((listener) => listener());
const model = {
  get: (key) => state[key],
  set(key, value) {
    if (state[key] === value) return;
    state[key] = value;
    fire("change:" + key);
    fire("change");
  },
  on(name, listener) {
    if (!listeners.has(name)) listeners.set(name, new Set());
    listeners.get(name).add(listener);
  },
  off(name, listener) {
    listeners.get(name)?.delete(listener);
  },
  save_changes() {},
  send() {},
};

const style = document.createElement("style");
style.textContent = data.css;
document.head.append(style);

const root = document.getElementById("sparselens-view");
try {
  const url = URL.createObjectURL(new Blob([data.esm], { type: "text/javascript" }));
  let widget = (await import(url)).default;
  URL.revokeObjectURL(url);
  if (typeof widget === "function") widget = await widget();
  await widget.initialize?.({ model });
  await widget.render?.({ model, el: root });
  document.documentElement.dataset.ready = "1";
} catch (error) {
  root.textContent = "This view could not start: " + error;
  throw error;
}
