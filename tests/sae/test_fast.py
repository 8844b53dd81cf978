"""FAST: rows equal a dialogue run alone, the buffer's order, repeats, errors by kind of token, pushes."""

import numpy as np
import pytest
import torch

from sparselens.errors import FitError, InputError
from sparselens.sae import SAE, alpha_sweep, dialogue_activations, drop_repeats, special_token_report, train_sae
from sparselens.sae.fast import Mixed, blocks
from sparselens.sae.store import TensorActivations
from tests import tiny
from tests.sae.synthetic import QUIET

SITE = "blocks.1.hook_resid_post"


def chats():
    pairs = [("Who is he?", "He is the cat."), ("In the inn?", "a hat"), ("Why", "then he ran in the thing and sat")]
    return [[{"role": "user", "content": f"{q} {i}"}, {"role": "assistant", "content": a}]
            for i in range(4) for q, a in pairs]  # fmt: skip


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


def test_rows_are_those_of_each_dialogue_run_alone(m, tmp_path):
    mixed = dialogue_activations(m, chats(), SITE, tmp_path, 10**6, progress=False, drop_first=False)
    alone = [m.capture([chat], SITE)[SITE][0] for chat in chats()]
    truth = torch.cat(alone)
    assert mixed.n_tokens == len(truth)  # no padding, no token left out, the template's are there
    rows = mixed.rows(SITE, np.arange(mixed.n_tokens))
    gaps = torch.cdist(truth, rows).min(1).values
    assert gaps.max() < 2e-3 * truth.norm(dim=1).mean()  # float16 on disk
    without = dialogue_activations(m, chats(), SITE, tmp_path / "b", 10**6, progress=False)
    assert without.n_tokens <= len(truth) - len(chats())


def test_blocks_are_the_dialogues_strung_together(m):
    strung = [i for chat in chats() for i in m.reader.rows([chat], 0, role=None, max_length=None, long="chunk",
                                                           empty="error")[0].ids]  # fmt: skip
    made = blocks(m, chats(), 50)
    assert [i for row in made for i in row] == strung[: len(strung) // 50 * 50]
    assert {len(row) for row in made} == {50}


def test_block_mode_meets_other_activations_at_template_tokens(m, tmp_path):
    alone = dialogue_activations(m, chats(), SITE, tmp_path / "a", 10**6, progress=False, drop_first=False)
    block = dialogue_activations(m, chats(), SITE, tmp_path / "b", 10**6, block=64, progress=False, drop_first=False)
    a, b = (s.rows(SITE, np.arange(s.n_tokens)) for s in (alone, block))
    assert torch.cdist(b, a).min(1).values.median() > 10 * torch.cdist(a, a + 1e-4).min(1).values.median()


@pytest.mark.parametrize(("rows", "buffer", "mix"), [(1000, 100, 0.5), (1003, 100, 0.3), (90, 100, 0.5), (50, 2, 1.0)])
def test_the_buffers_order_visits_every_row_once_and_mixes_nearby(rows, buffer, mix):
    data = Mixed(TensorActivations(torch.randn(rows, 3)), buffer, mix)
    order = data.order(rows, seed=0, epoch=2)
    assert sorted(order) == list(range(rows))
    assert (order == data.order(rows, 0, 2)).all() and (order != data.order(rows, 0, 3)).any()
    when = np.empty(rows, dtype=int)
    when[order] = np.arange(rows)
    assert (order - np.arange(rows) < buffer).all()  # a row cannot leave before it has come in
    if rows > 500:
        assert np.corrcoef(order, np.arange(rows))[0, 1] > 0.9  # local, where a permutation has 0
        assert not (order[:30] == np.arange(30)).all()


def test_training_on_a_mixed_source_resumes_and_is_another_run_than_unmixed(tmp_path):
    x = torch.randn(3000, 8) @ torch.randn(8, 16)
    settings = {"d_sae": 32, "k": 3, "n_tokens": 6000, "batch_size": 100, **QUIET}
    plain, _ = train_sae(TensorActivations(x), **settings)
    mixed, _ = train_sae(Mixed(TensorActivations(x), 400), **settings, out=tmp_path)
    assert not torch.equal(plain.W_enc, mixed.W_enc)
    again, _ = train_sae(Mixed(TensorActivations(x), 400), **settings, out=tmp_path)
    assert torch.equal(again.W_enc, mixed.W_enc)
    with pytest.raises(InputError, match="other settings"):
        train_sae(Mixed(TensorActivations(x), 500), **settings, out=tmp_path)


def test_repeats_are_dropped():
    words = [f"w{i}" for i in range(40)]
    first, again = " ".join(words[:30]), " ".join(words[:30])
    nineteen = " ".join([*words[:19], *(f"x{i}" for i in range(20))])
    twenty = " ".join([*words[:20], *(f"y{i}" for i in range(20))])
    assert drop_repeats([first, again, nineteen, twenty]) == [first, nineteen]
    short = [{"role": "user", "content": "hello there"}]
    assert drop_repeats([short, short, [{"role": "user", "content": "hello"}]]) == [short, [{"role": "user",
                                                                                          "content": "hello"}]]


def test_the_report_tells_kinds_of_tokens_and_weighs_dialogues_alike(m):
    torch.manual_seed(1)
    saes = {"a": SAE("topk", d_in=32, d_sae=64, k=4, site=SITE), "b": SAE("topk", d_in=32, d_sae=64, k=8, site=SITE)}
    report = special_token_report(m, saes, chats())
    tokens = report.tokens
    row = m.reader.rows([chats()[0]], 0, role=None, max_length=None, long="error", empty="error")[0]
    mine = tokens[tokens["dialogue"] == 0]
    assert mine["token"].tolist() == row.ids
    assert ((mine["kind"] == "ordinary") == row.content).all()
    im_start, im_end = (m.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    assert (mine.loc[mine["token"].isin([im_start, im_end]), "kind"] == "special").all()
    x = m.capture([chats()[0]], SITE)[SITE][0]
    error = (saes["a"](x) - x).square().mean(1).detach()
    np.testing.assert_allclose(mine["a"], error, rtol=1e-3)
    frame = report.to_frame()
    by_dialogue = tokens[tokens["kind"] == "special"].groupby("dialogue")["a"].mean().mean()
    assert frame.loc["special", "a"] == pytest.approx(np.log2(by_dialogue))
    assert frame.loc["special", "tokens"] > frame.loc["special, not first", "tokens"] == (
        frame.loc["special", "tokens"] - len(chats()))  # fmt: skip
    shared = tokens[tokens["shared"]].groupby("position")["token"].nunique()
    assert len(shared) >= 10 and (shared == 1).all()
    top = report.top_latents("<|im_start|>", "b")
    z = saes["b"].encode(torch.cat([m.capture([c], SITE)[SITE][0] for c in chats()])).dense()
    ids = torch.cat([m.capture([c], SITE).tokens[0] for c in chats()])
    assert top["here"][0] == pytest.approx(float(z[ids == im_start].mean(0).max()), rel=1e-3)
    assert "<table" in report._repr_html_() and report.plot().patches


def test_a_push_is_added_to_the_stream_and_zero_is_no_push(m):
    sae = SAE("topk", d_in=32, d_sae=64, k=4, site=SITE)
    sweep = alpha_sweep(m, sae, 3, [chats()[0][:1]], alphas=(0, 1e4), max_new_tokens=6)
    frame = sweep.to_frame()
    assert frame["text"][0] == m.generate(chats()[0][:1], max_new_tokens=6)
    assert frame["text"][1] != frame["text"][0] and (frame["repeated"] >= 0).all()
    assert "<table" in sweep._repr_html_() and sweep.plot().lines


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m, p: dialogue_activations(m, ["text"], SITE, p, 9), InputError, "dialogue 0 is a str"),
        (lambda m, p: dialogue_activations(m, chats(), SITE, p, 9, block=1), InputError, "blocks of 1"),
        (lambda m, p: Mixed(TensorActivations(torch.randn(9, 2)), 1), InputError, "buffer_tokens=1"),
        (lambda m, p: drop_repeats([], n=0), InputError, "n=0"),
        (lambda m, p: special_token_report(m, SAE("relu", d_in=32, d_sae=8), chats()), FitError, "None"),
        (lambda m, p: alpha_sweep(m, SAE("relu", d_in=32, d_sae=8, site=SITE), 8, ["a"]), InputError, "latent 8"),
        (
            lambda m, p: special_token_report(m, SAE("relu", d_in=32, d_sae=8, site=SITE), chats()).top_latents("user"),
            InputError,
            "Closest|no special token",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(m, tmp_path, call, error, says):
    with pytest.raises(error, match=says):
        call(m, tmp_path)
