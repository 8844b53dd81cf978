"""Pieces put together give the text, whatever is in it."""

import functools

import pytest

from sparselens.embeddings.pieces import Pieces
from tests import tiny

HOSTILE = [
    "plain words", " leading space", "two  spaces\n\nand\ttabs", "héé 😀👨‍👩‍👧 ¡olé! 漢字かな",
    "<script>alert(1)</script>", "\u202eright to left\u200b", "a\x00b", "İstanbul ﷽", "é" * 30, "😀😀😀",
    "   ", "«»<<>>",
]


@functools.cache
def metaspace():
    """A tokenizer in the manner of SentencePiece: a mark for spaces, and bytes for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "▁t"]
    vocab = {word: i for i, word in enumerate(words)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a"), ("▁", "t")], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


@pytest.mark.parametrize("text", HOSTILE)
def test_pieces_of_a_byte_level_tokenizer_give_the_text(text):
    tokenizer = tiny.tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = Pieces(tokenizer)(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


@pytest.mark.parametrize("text", ["a cat at a tea", "héé 😀", "tt  aa"])
def test_pieces_of_a_sentencepiece_tokenizer_keep_the_spaces(text):
    tokenizer = metaspace()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer)(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces).removeprefix(" ") == text


def test_the_first_token_of_a_character_gets_it():
    tokenizer = tiny.tokenizer()
    pieces = Pieces(tokenizer)(tokenizer("x😀y")["input_ids"])
    assert pieces == ["x", "😀", "", "", "", "y"]


def test_a_character_cut_in_two_shows_as_broken():
    tokenizer = tiny.tokenizer()
    pieces = Pieces(tokenizer)(tokenizer("x😀")["input_ids"][:3])
    assert pieces[0] == "x"
    assert "\ufffd" in "".join(pieces[1:])
