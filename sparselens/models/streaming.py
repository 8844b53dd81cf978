"""Text as it is being written."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


class TextStream:
    """Hands on the text of one row while it is generated; what transformers calls a streamer.

    Args:
        tokenizer: turns ids into text.
        say: called with each new piece. What it raises ends the generation.
    """

    def __init__(self, tokenizer: Any, say: Callable[[str], None]):
        self.tokenizer, self.say = tokenizer, say
        self.ids: list[int] | None = None  # None until the prompt has been handed over
        self.said = 0

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then new tokens."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a character: the next token brings the rest
            self._say(text)

    def end(self) -> None:
        """Hand over what is left."""
        self._say(self.tokenizer.decode(self.ids or [], skip_special_tokens=True))

    def _say(self, text: str) -> None:
        piece, self.said = text[self.said :], len(text)
        if piece:
            self.say(piece)
