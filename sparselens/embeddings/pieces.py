"""Token ids as the pieces of text they stand for, so that a stored text can be marked without its tokenizer."""

from typing import Any

BROKEN = "\ufffd"


class Pieces:
    """Cuts token ids into pieces of text.

    The pieces of consecutive tokens put together give the text. Where several tokens make up one character, the
    first of them gets it and the others get an empty piece.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        # a token is decoded behind another, since many tokenizers drop a space at the beginning
        self.anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self.head = len(self._decode(self.anchor))
        self._known: dict[int, str] = {}

    def __call__(self, ids: list[int]) -> list[str]:
        """The piece of each token."""
        out = [self._piece(i) for i in ids]
        start = 0
        while start < len(ids):
            if BROKEN not in out[start]:
                start += 1
                continue
            end = start + 1
            while BROKEN in (text := self._text(ids[start:end])) and end < len(ids) and BROKEN in out[end]:
                end += 1
            out[start:end] = [text] + [""] * (end - start - 1)
            start = end
        return out

    def _piece(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._text([token])
        return self._known[token]

    def _text(self, ids: list[int]) -> str:
        return self._decode([*self.anchor, *ids])[self.head :]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
