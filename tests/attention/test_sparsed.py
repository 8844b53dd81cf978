"""SparseD: the schedule, the tiles, and what stays the same over the steps."""

from math import ceil

import pytest
import torch

import sparselens as sl
from sparselens.attention.method import Layer
from sparselens.attention.pattern import Allowed
from sparselens.attention.sparsed import first_answer_tile, official_tiles, stability, switch_step, tile_importance
from sparselens.errors import InputError
from sparselens.models.diffusion import DiffusionLM
from sparselens.models.engine import Denoising
from sparselens.models.tiny import tiny_lm


def layer(n: int = 40, state: dict | None = None, seed: int = 0, now: Denoising | None = None) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, h, n, 8, generator=generator) for h in (4, 2))
    return Layer(query, key, Allowed(n, n, causal=False), 0, 8**-0.5, {} if state is None else state, now)


@pytest.mark.parametrize(
    ("steps", "skip", "dense"), [(128, 0.2, 27), (10, 0.2, 4), (4, 1.0, 4), (1, 0.0, 1), (10, 0, 2)]
)
def test_the_schedule(steps, skip, dense):
    thing, state = sl.SparseD(0.3, skip=skip, block=8), {}
    asked = [layer(state=state, seed=now, now=Denoising(now, steps, 24)) for now in range(steps)]
    patterns = [thing.prefill(ask) for ask in asked]
    assert [p is None for p in patterns] == [now < dense for now in range(steps)]
    assert len({id(p) for p in patterns if p is not None}) <= 1
    assert min(steps, switch_step(steps, skip) + 1) == dense
    if dense < steps:  # made in the last dense step
        assert patterns[-1] == thing.chosen(asked[dense - 1])


def test_a_new_generation_makes_new_masks():
    thing, state = sl.SparseD(0.3, skip=0, block=8), {}
    made = [thing.prefill(layer(state=state, seed=s, now=Denoising(t, 3, 24))) for s in (0, 1) for t in range(3)]
    assert made[2] != made[5]
    with pytest.raises(InputError, match="40 tokens"):
        thing.prefill(layer(48, state, now=Denoising(2, 3, 24)))
    assert thing.prefill(layer()) is not None
    with pytest.raises(InputError, match="put on after"):
        thing.prefill(layer(now=Denoising(3, 4, 0)))


def test_a_diffusion_model_says_where_it_is():
    native = tiny_lm(40, d_model=32, n_layers=2, length=64, causal=False)
    host = DiffusionLM(sl.wrap(native), 39)
    prompt = torch.arange(20).expand(2, -1)
    dense = host.generate(prompt, 8, steps=4)
    with host.live.attach(sl.SparseD(1.0, skip=0, block=4)):
        assert torch.equal(host.generate(prompt, 8, steps=4).ids, dense.ids)
    watched = sl.SparseD(0.3, skip=0, block=4).counted(host.live)
    with host.live.attach(watched):
        host.generate(prompt, 8, steps=4)
    assert [row["executor"] for row in watched.parts()] == ["masked"] * 2
    assert watched.sums[(0, "prefill")]["executors"] == {"masked": 2}  # steps 2 and 3 of 0 to 3


def test_wrong_settings_are_refused():
    for wrong in (dict(mode="both"), dict(scale="d"), dict(skip=2)):
        with pytest.raises(InputError):
            sl.SparseD(**wrong)


@pytest.mark.parametrize("n", [39, 40, 41])
@pytest.mark.parametrize("prompt", [0, 1, 17, 24, 36])
def test_every_row_keeps_its_share_of_prompt_and_answer(n, prompt):
    thing = sl.SparseD(0.3, block=8)
    keep = thing.chosen(layer(n, now=Denoising(0, 1, prompt))).keep
    tiles = ceil(n / 8)
    border = first_answer_tile(prompt, n, 8)
    for part, size in ((keep[..., :border], border), (keep[..., border:], tiles - border)):
        assert (part.sum(-1) == (max(1, ceil(0.3 * size)) if size else 0)).all()
    assert sl.SparseD(1.0, block=8).chosen(layer(n)).keep.all()
    assert sl.SparseD(1.0, block=8, mode="official").chosen(layer(n)).keep.all()


def test_a_tile_that_straddles_the_border_is_prompt():
    assert [first_answer_tile(p, 40, 8) for p in (0, 1, 8, 9, 32, 33, 40)] == [0, 1, 1, 2, 4, 4, 4]


def test_importance_is_mean_attention_of_a_tile():
    ask = layer(20)
    weights = torch.softmax(ask.query @ ask.keys().transpose(2, 3) * ask.scale, -1)
    got = tile_importance(ask, 8)
    torch.testing.assert_close(got[0, 1, 1, 0], weights[0, 1, 8:16, :8].mean())
    torch.testing.assert_close(got[0, 1, 2, 2], weights[0, 1, 16:, 16:].sum() / 64)  # cut tiles count as whole ones
    own = torch.softmax((ask.query @ ask.keys().transpose(2, 3) * ask.scale)[..., 8:], -1)
    torch.testing.assert_close(tile_importance(ask, 8, first_key=8)[0, 0, 0, 1], own[0, 0, :8, :8].mean())


def test_heads_permuted_permute_the_masks():
    ask, thing = layer(), sl.SparseD(0.3, block=8)
    order = torch.tensor([2, 3, 0, 1])  # whole groups
    other = Layer(ask.query[:, order], ask.key[:, [1, 0]], ask.allowed, 0, ask.scale)
    assert torch.equal(thing.chosen(other).keep, thing.chosen(ask).keep[:, order])
    shared = sl.SparseD(0.3, block=8, share_group=True).chosen(ask).keep
    assert torch.equal(shared[:, 0], shared[:, 1])
    assert not torch.equal(sl.SparseD(0.3, block=8, scale="num_heads").chosen(ask).keep, thing.chosen(ask).keep)


def test_official_tiles_by_hand():
    importance = torch.tensor([[[[5.0, 1.0, 4.0, 3.0]]]])
    answer = torch.tensor([[[[0.0, 0.0, 1.0, 2.0]]]])
    keep = official_tiles(importance, answer, 2, 0.5, torch.ones(1, 1, 1, 4, dtype=torch.bool))
    assert keep.flatten().tolist() == [True, False, True, True]  # top 3 of all: 0, 2, 3; of the answer's own: both
    keep = official_tiles(importance, answer, 2, 0.25, torch.ones(1, 1, 1, 4, dtype=torch.bool))
    assert keep.flatten().tolist() == [True, False, False, True]


def test_stability_of_equal_and_of_disjoint_tiles():
    a = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    a[0, 0, :, 0], a[0, 1, :, 1] = True, True
    steps, heads = stability([a, a, ~a])
    assert steps.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]] and heads.tolist() == [0, 0, 0]
