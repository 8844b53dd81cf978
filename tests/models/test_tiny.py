"""The small model: it learns, repeats by its seed, takes any module, and is live like every other."""

import pytest
import torch
from torch import nn

import sparselens as sl
from sparselens import datasets
from sparselens.errors import FitError, InputError
from sparselens.models.batches import Row
from sparselens.models.tiny import (
    IGNORE,
    Example,
    bidirectional,
    lm_loss,
    lm_scores,
    n_parameters,
    next_token,
    tiny_lm,
    train_lm,
    windows,
)

SMALL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "length": 64}


class Averaging(nn.Module):
    """Each token gets the mean of itself and those before it, and a loss of 1 on the side."""

    def __init__(self, d: int):
        super().__init__()
        self.mix = nn.Linear(d, d)

    def forward(self, x):
        mean = self.mix(x).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return mean, self.mix.weight.square().sum()


def test_learns_a_cycle_and_repeats_by_its_seed():
    tokens = torch.arange(200) % 7
    losses = []
    for _ in range(2):
        model = tiny_lm(7, **SMALL, seed=3)
        run = train_lm(model, windows(tokens, 12, 8, seed=1), 120)
        losses.append(run.losses)
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.1 < 1.5 < losses[0][0]
    loss, right = lm_scores(model, [next_token(tokens[None, :20])])
    assert right == 1 and loss < 0.1
    assert run.to_frame()["loss"].tolist() == list(run.losses)
    assert run.plot().get_ylabel() == "nats" and "last loss" in run._repr_html_()


def test_seeds_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = tiny_lm(7, **SMALL, seed=1), tiny_lm(7, **SMALL, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert torch.equal(one.lm_head.weight, tiny_lm(7, **SMALL, seed=1).lm_head.weight)


def test_plugged_modules_are_used_trained_and_their_losses_added():
    model = tiny_lm(9, **SMALL, attention=lambda i: Averaging(16), mlp=lambda i: nn.Linear(16, 16))
    assert n_parameters(model) == 9 * 16 + 2 * (2 * (16 * 16 + 16) + 2 * 16) + 16
    before = [layer.self_attn.inner.mix.weight.norm().item() for layer in model.model.layers]
    train_lm(model, [next_token(torch.zeros(1, 4, dtype=torch.long))] * 30, 30, lr=0.01)
    after = [layer.self_attn.inner.mix.weight.norm().item() for layer in model.model.layers]
    assert all(a < 0.7 * b for a, b in zip(after, before, strict=True))  # the side loss pulls them to zero


def test_is_a_live_model_with_and_without_plugs():
    ids = torch.randint(0, 9, (2, 10))
    for model in (tiny_lm(9, **SMALL), tiny_lm(9, **SMALL, attention=lambda i: Averaging(16))):
        live = sl.wrap(model)
        assert live.causal
        assert torch.allclose(live.run(ids).logits, model(input_ids=ids).logits, atol=1e-6)
        before = model(input_ids=ids).logits
        with live.attach(sl.ablate("blocks.1.hook_attn_out")):
            assert not torch.allclose(model(input_ids=ids).logits, before, atol=1e-3)
        assert torch.equal(model(input_ids=ids).logits, before)


def test_causality_and_its_absence():
    ids = torch.randint(0, 9, (1, 12))
    changed = ids.clone()
    changed[0, 8] = (ids[0, 8] + 1) % 9
    for causal in (True, False):
        model = tiny_lm(9, **SMALL, causal=causal)
        live = sl.wrap(model)
        assert live.causal is causal
        first = live.run(ids).logits[:, :8] - live.run(changed).logits[:, :8]
        assert torch.equal(first, torch.zeros_like(first)) is causal


def test_padding_changes_nothing_where_both_sides_are_seen():
    live = sl.wrap(tiny_lm(9, **SMALL, causal=False))
    rows = [torch.randint(0, 9, (1, n)) for n in (5, 9)]
    padded = live.reader.pad([Row(r[0].tolist(), [True] * r.shape[1], i, 0) for i, r in enumerate(rows)], "right")
    logits = live.logits(padded)
    for i, row in enumerate(rows):
        assert torch.allclose(logits[i, : row.shape[1]], live.run(row).logits[0], atol=1e-5)


def test_weighted_loss_by_hand():
    model = tiny_lm(9, **SMALL)
    ids = torch.randint(0, 9, (2, 6))
    targets = torch.full_like(ids, IGNORE)
    targets[0, 1], targets[1, 3], targets[1, 4] = 4, 5, 6
    weights = torch.rand(2, 6)
    logs = model(input_ids=ids).logits.log_softmax(-1)
    mean = -(logs[0, 1, 4] + logs[1, 3, 5] + logs[1, 4, 6]) / 3
    assert torch.allclose(lm_loss(model, Example(ids, targets)), mean)
    rows = -(weights[0, 1] * logs[0, 1, 4] + weights[1, 3] * logs[1, 3, 5] + weights[1, 4] * logs[1, 4, 6]) / 2
    assert torch.allclose(lm_loss(model, Example(ids, targets, weights)), rows)


def test_next_token_asks_only_where_told():
    ids = torch.tensor([[3, 4, 5, 6]])
    assert next_token(ids).targets.tolist() == [[4, 5, 6, IGNORE]]
    ask = torch.tensor([[True, False, True, False]])
    assert next_token(ids, ask).targets.tolist() == [[IGNORE, 5, IGNORE, IGNORE]]


def test_rows_of_recall_hold_their_answers():
    keys, values = datasets.RECALL_KEYS, datasets.RECALL_VALUES
    for interleaved in (False, True):
        ids, start = datasets.recall_rows(50, facts=20, pairs=6, queries=4, gap=5, interleaved=interleaved, seed=2)
        assert ids.shape == (50, 20 + 5 + 8) and start == (25 if interleaved else 29)
        for row in ids.tolist():
            told = {token // values: token % values for token in row[:20] if token < keys * values}
            assert len(told) == 6
            asked, said = (row[25::2], row[26::2]) if interleaved else (row[25:29], row[29:])
            assert [told[q - keys * values] for q in asked] == [a - keys * values - keys for a in said]
        assert int(ids.max()) < datasets.RECALL_MASK == datasets.RECALL_VOCAB - 1
    assert not torch.equal(ids, datasets.recall_rows(50, facts=20, pairs=6, queries=4, gap=5, interleaved=True)[0])


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: tiny_lm(9, d_model=18, n_heads=4), InputError, "d_model 18"),
        (lambda: tiny_lm(9, d_model=12, n_heads=4), InputError, "even number"),
        (lambda: train_lm(tiny_lm(9, **SMALL), [], 0), InputError, "at least one step"),
        (lambda: train_lm(tiny_lm(9, **SMALL), [], 1), InputError, "0 batches"),
        (lambda: next(windows(torch.arange(3), 5, 1)), InputError, "3 tokens"),
        (lambda: bidirectional(nn.Linear(2, 2)), FitError, "where it is causal"),
        (lambda: datasets.recall_rows(1, pairs=7, queries=8), InputError, "queries=8"),
        (lambda: datasets.recall_rows(1, facts=5), InputError, "at most 5 pairs"),
    ],
)
def test_bad_input(call, error, says: str):
    with pytest.raises(error, match=says):
        call()


def test_plugged_attention_refuses_padding_and_caches():
    model = tiny_lm(9, **SMALL, attention=lambda i: Averaging(16))
    ids = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(FitError, match="padded"):
        model(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
    with pytest.raises(FitError, match="use_cache=False"):
        model(input_ids=ids, use_cache=True)
