"""Text heard while it is written is the text that is returned, also when the listener has had enough."""

import pytest

import sparselens as sl
from sparselens.errors import InputError
from sparselens.models.streaming import TextStream
from tests import tiny


@pytest.fixture(scope="module", params=["torch", "transformer_lens", "nnsight"])
def m(request):
    return tiny.live(backend=request.param)


def test_the_pieces_make_the_text(m):
    pieces = []
    assert m.generate("the cat", 12, on_text=pieces.append) == "".join(pieces)
    assert len(pieces) > 3


def test_what_the_listener_raises_ends_it_and_leaves_the_model_clean(m):
    before = m.run("the cat").logits
    heard = []

    def enough(piece):
        heard.append(piece)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), m.attach(sl.TEAL(0.5)):
        m.generate("the cat", 12, on_text=enough)
    assert len(heard) == 1
    assert (m.run("the cat").logits == before).all()


def test_only_one_text_can_be_heard():
    with pytest.raises(InputError, match="give one prompt"):
        tiny.live().generate(["a", "b"], on_text=print)


def test_half_a_character_waits_for_the_other_half():
    import torch

    tokenizer, heard = tiny.tokenizer(), []
    stream = TextStream(tokenizer, heard.append)
    stream.put(torch.tensor([[1, 2]]))
    ids = tokenizer("aé東!", add_special_tokens=False)["input_ids"]
    for i in ids:
        stream.put(torch.tensor([i]))
    stream.end()
    assert heard == ["a", "é", "東", "!"]
    assert len(ids) == 7
