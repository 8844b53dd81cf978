// Runs notebook widgets without a notebook: models in memory instead of a kernel, with one choice for all of them.

const { views, shared } = JSON.parse(document.getElementById("sparselens-data").textContent);
const running = []; // { model, accepts } of each view

function makeModel({ state, buffers }) {
  for (const [path, text] of buffers) {
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
      if (!shared.includes(key)) return;
      for (const other of running) {
        if (other.model !== model && other.model.has(key) && other.accepts(key, value)) other.model.set(key, value);
      }
    },
    has: (key) => key in state,
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
  return model;
}

async function load(source) {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const widget = (await import(url)).default;
  URL.revokeObjectURL(url);
  return typeof widget === "function" ? await widget() : widget;
}

const root = document.getElementById("sparselens-view");
const styles = new Set(views.map((view) => view.css));
for (const css of styles) {
  const style = document.createElement("style");
  style.textContent = css;
  document.head.append(style);
}
try {
  for (const view of views) {
    const model = makeModel(view);
    const widget = await load(view.esm);
    const el = root.appendChild(document.createElement("div"));
    running.push({ model, accepts: (key, value) => widget.accepts?.({ model, key, value }) ?? true });
    await widget.initialize?.({ model });
    await widget.render?.({ model, el });
  }
  document.documentElement.dataset.ready = "1";
} catch (error) {
  root.textContent = "This view could not start: " + error;
  throw error;
}
