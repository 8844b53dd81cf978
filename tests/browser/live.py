"""A live widget in a page without Jupyter: the test plays the kernel, and carries state between Python and the page."""

import base64
import time
from collections.abc import Callable
from typing import Any

from sparselens.views.export import _own_state, _split

START = """async ([esm, css, state, buffers, copies]) => {
    const view = b64 => new DataView(Uint8Array.from(atob(b64), c => c.charCodeAt(0)).buffer);
    const fill = (state, buffers) => {
        for (const [path, b64] of buffers) path.slice(0, -1).reduce((o, k) => o[k], state)[path.at(-1)] = view(b64);
        return state;
    };
    fill(state, buffers);
    const on = {}, outbox = [];
    let changed = {};
    const put = (key, value) => {
        if (state[key] === value) return;
        state[key] = value;
        [...(on['change:' + key] ?? [])].forEach(hear => hear());
    };
    const pack = value => {
        if (!(value instanceof DataView)) return value;
        const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
        return { bytes: btoa(String.fromCharCode(...bytes)) };
    };
    const model = {
        get: key => state[key],
        set(key, value) { changed[key] = value; put(key, value); },
        save_changes() {
            outbox.push(Object.fromEntries(Object.entries(changed).map(([key, value]) => [key, pack(value)])));
            changed = {};
        },
        on(name, hear) { (on[name] ??= new Set()).add(hear); },
        off(name, hear) { on[name]?.delete(hear); },
        send() {},
    };
    const style = document.head.appendChild(document.createElement('style'));
    style.textContent = css;
    const url = URL.createObjectURL(new Blob([esm], { type: 'text/javascript' }));
    const { render } = (await import(url)).default;
    const homes = Array.from({ length: copies }, () => document.body.appendChild(document.createElement('section')));
    const clean = homes.map(el => render({ model, el }));
    const heard = () => Object.values(on).reduce((n, set) => n + set.size, 0);
    const hear = (news, buffers) => {
        const keys = Object.keys(fill(news, buffers)).filter(key => state[key] !== news[key]);
        Object.assign(state, news); // all of a message is there before anybody hears of it, as in Jupyter
        keys.forEach(key => [...(on['change:' + key] ?? [])].forEach(listener => listener()));
    };
    const tell = name => [...(on[name] ?? [])].forEach(listener => listener());
    Object.assign(window, { outbox, hear, heard, tell, clean });
}"""


class LivePage:
    """A widget that is shown in a tab; `until` lets both sides hear each other.

    Args:
        watched: an empty tab.
        widget: what `.explore()` gave.
        copies: how many views of the one model there are.
    """

    def __init__(self, watched: Any, widget: Any, copies: int = 1):
        self.watched, self.page, self.widget = watched, watched.page, widget
        self._news: set[str] = set()
        state, buffers = _split(_own_state(widget))
        self._names = list(state)
        widget.observe(lambda change: self._news.add(change["name"]), self._names)
        self.page.evaluate(START, [str(widget._esm), str(widget._css), state, buffers, copies])

    def pump(self) -> None:
        """Carry over what is new, both ways."""
        for state in self.page.evaluate("outbox.splice(0)"):
            given = {key: base64.b64decode(value["bytes"]) if isinstance(value, dict) and "bytes" in value else value
                     for key, value in state.items()}
            self.widget.set_state(given)
        news, self._news = self._news, set()
        if news:
            self.page.evaluate("([news, buffers]) => hear(news, buffers)", [*_split(self.widget.get_state(list(news)))])

    def until(self, done: Callable[[], Any], seconds: float = 20.0) -> None:
        """Wait for something to become true in Python or in the page."""
        end = time.monotonic() + seconds
        while True:
            self.pump()
            if done():
                return
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.01)
