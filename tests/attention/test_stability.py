"""Likeness of patterns over steps and heads, and masks made anew at every step."""

import pytest
import torch

import sparselens as sl
from sparselens.attention.stability import EveryStep, pattern_stability
from sparselens.errors import InputError
from sparselens.models.diffusion import DiffusionLM
from sparselens.models.tiny import tiny_lm


def host(seed: int = 0) -> DiffusionLM:
    return DiffusionLM(sl.wrap(tiny_lm(40, d_model=32, n_layers=2, n_heads=4, length=64, causal=False, seed=seed)), 39)


PROMPT = torch.arange(60).reshape(3, 20) % 30


def test_likeness_by_hand_and_writing_stays_dense():
    lm = host()
    found = pattern_stability(lm, PROMPT, 12, steps=4, block=4, select=0.4)
    assert found.keep.shape == (2, 4, 3, 4, 8, 8)
    assert (found.keep[..., :5].sum(-1) == 2).all() and (found.keep[..., 5:].sum(-1) == 2).all()
    likeness = []
    for row in range(3):
        for h in range(4):
            a, b = (set(map(tuple, found.keep[1, t, row, h].nonzero().tolist())) for t in (0, 3))
            likeness.append(len(a & b) / len(a | b))
    assert found.over_steps[1, 0, 3] == pytest.approx(sum(likeness) / 12, abs=1e-6)
    heads = []
    for row in range(3):
        for g in range(4):
            for h in range(g):
                a, b = (set(map(tuple, found.keep[0, 2, row, k].nonzero().tolist())) for k in (g, h))
                heads.append(len(a & b) / len(a | b))
    assert found.over_heads[0, 2] == pytest.approx(sum(heads) / 18, abs=1e-6)
    assert torch.allclose(found.over_steps.diagonal(dim1=1, dim2=2), torch.ones(2, 4))
    assert 0.1 < found.by_lot < 0.5
    frame = found.to_frame()
    assert frame["first_last"][1] == pytest.approx(float(found.over_steps[1, 0, 3]))
    with lm.live.attach(sl.SparseD(0.4, skip=1.0, block=4)):
        assert torch.equal(lm.generate(PROMPT, 12, steps=4).ids, lm.generate(PROMPT, 12, steps=4).ids)


def test_figures():
    found = pattern_stability(host(), PROMPT, 8, steps=2, block=4)
    assert found.plot(1).get_xlabel() == "step"
    assert len(found.plot_heads(0, 1, 2).axes) == 4
    assert "heads" in found._repr_html_()
    assert repr(found) == f"PatternStability({len(found.keep)} layers, 2 steps, 4 heads, tiles of 4)"


def test_masks_of_every_step_follow_the_attention():
    lm = host()
    dense = lm.generate(PROMPT, 8, steps=4)
    with lm.live.attach(EveryStep(1.0, skip=0.0, block=4)):
        assert torch.equal(lm.generate(PROMPT, 8, steps=4).ids, dense.ids)
    recorded = EveryStep(0.3, skip=0.0, block=4).recorded()
    kept = []
    with lm.live.attach(recorded):
        lm.generate(PROMPT, 8, steps=6, on_step=lambda now, _ids: kept.append(
            recorded.segments[1][0].pattern if recorded.segments else None))
    assert kept[:2] == [None, None] and all(p is not None for p in kept[2:])
    assert any(kept[2] != p for p in kept[3:])


def test_one_step_is_refused():
    with pytest.raises(InputError, match="at least two"):
        pattern_stability(host(), PROMPT, 8, steps=1)
