"""Work of a live view in threads: one piece at a time, ended at the next word it says when the reader presses stop."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparselens.views.base import clean

_SEND_SECONDS = 0.05  # shortest time between two messages to the browser


class Stopped(BaseException):
    """The reader pressed stop. Not an `Exception`, so that handlers for faults let it through."""


class Turns:
    """The work of one widget. A newer piece waits until an older one has ended, and makes it end.

    Attributes:
        thread: of the last piece, None before the first.
    """

    def __init__(self) -> None:
        self.number = self._begun = 0
        self.thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def begin(self, work: Callable[["Turn"], None], tell: Callable[[str], None], done: Callable[[], None]) -> None:
        """Start a piece of work in a thread of its own.

        Args:
            work: does it.
            tell: takes what there is to say of how it went: "", "stopped", or an error.
            done: called at the end, unless a newer piece has begun.
        """
        self.number += 1
        self._begun = self.number
        turn = Turn(self, self.number)

        def say(status: str) -> None:
            if turn.number == self._begun:  # an older piece has nothing to say any more
                tell(status)

        def run() -> None:
            with self._lock:  # a piece that is being stopped has taken its hands off the model by then
                try:
                    turn.check()
                    work(turn)
                    say("")
                except Stopped:
                    say("stopped")
                except Exception as error:  # nobody else would see it
                    say(clean(f"{type(error).__name__}: {error}", 400))
                finally:
                    if turn.current:
                        done()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Make whatever runs stop at the next word it says."""
        self.number += 1


@dataclass(frozen=True)
class Turn:
    """One piece of work."""

    turns: Turns
    number: int

    @property
    def current(self) -> bool:
        """Whether neither stop was pressed nor newer work has begun."""
        return self.number == self.turns.number

    def check(self) -> None:
        """Raise `Stopped` when this work is no longer wanted."""
        if not self.current:
            raise Stopped

    def listen(self, ask: Callable[[Callable[[str], None]], Any], show: Callable[[str, str], None], name: str) -> None:
        """Let a model speak and show what it says as it comes.

        Args:
            ask: `ask(say)` lets it speak; it calls `say(piece)` for each piece of text, and lets through what that
                raises.
            show: takes the text so far and a note on how long it took.
            name: what the note begins with.
        """
        said: list[str] = []
        sent = began = time.monotonic()

        def send() -> None:
            show(clean("".join(said)), f"{name} · {len(said)} pieces in {time.monotonic() - began:.1f} s")

        def say(piece: str) -> None:
            nonlocal sent
            self.check()
            said.append(str(piece))
            if time.monotonic() - sent >= _SEND_SECONDS:
                send()
                sent = time.monotonic()

        try:
            ask(say)
            self.check()
        finally:
            send()
