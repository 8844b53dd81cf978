"""Options of training: nested dictionaries, transcoders, crosscoders, revival of latents, input norms, gradients."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.errors import FitError, InputError
from sparselens.sae import (
    SAE,
    ActivationStore,
    CSVLogger,
    Matryoshka,
    MultiTopK,
    Resample,
    TensorBoardLogger,
    WandbLogger,
    estimate_training,
    harvest,
    lean_step,
    stream_gradients,
    train_sae,
)
from sparselens.sae.trainer import SAETrainer
from tests import tiny
from tests.sae.synthetic import QUIET, planted

SHORT = {"n_tokens": 60_000, "batch_size": 512, **QUIET}


def fvu(sae: SAE, x: torch.Tensor, y: torch.Tensor | None = None) -> float:
    y = x if y is None else y
    return float((sae(x) - y).square().sum() / (y - y.mean(0)).square().sum())


def prefix_fvu(sae: SAE, x: torch.Tensor, width: int) -> float:
    z = sae.encode(x)
    z = z.dense() if not isinstance(z, torch.Tensor) else z.clone()
    z[:, width:] = 0
    return float((sae.decode(z) - x).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_nested_dictionaries_explain_more_with_their_first_latents(architecture):
    x, _ = planted(rows=4000)
    plain, _ = train_sae(x, architecture=architecture, d_sae=128, k=6, **SHORT)
    nested, _ = train_sae(x, architecture=architecture, d_sae=128, k=6, rules=[Matryoshka((16, 48))], **SHORT)
    gain = 0.98 if architecture == "jumprelu" else 0.92  # whose thresholds take longer than this run
    assert prefix_fvu(nested, x, 16) < gain * prefix_fvu(plain, x, 16)
    assert prefix_fvu(nested, x, 48) < gain * prefix_fvu(plain, x, 48)


def test_nested_gradients_are_the_same_in_the_lean_and_in_the_dense_step():
    x, _ = planted(rows=300)
    states = []
    for lean in (True, False):
        sae = SAE("topk", d_in=64, d_sae=96, k=4)
        t = SAETrainer(sae, x, k=4, lr=1e-3, dead_after=100, rules=[Matryoshka((16, 48))])
        assert t.lean
        t.lean = lean
        for batch in x.split(100):
            t.step(batch, 1.0)
        states.append(t.export())
    for a, b in zip(states[0].parameters(), states[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_second_reconstruction_adds_its_gradient():
    x, _ = planted(rows=200)

    def gradients(rules, k):
        t = SAETrainer(SAE("topk", d_in=64, d_sae=96, k=k), x, k=k, lr=1e-3, dead_after=10**9, rules=rules)
        kept = []
        t._descend = lambda _factor: kept.extend(t.leaves[n].grad.clone() for n in ("W_enc", "W_dec", "b_dec"))
        t.step(x, 1.0)
        return kept

    both, one, more = gradients([MultiTopK(3, 0.5)], 4), gradients([], 4), gradients([], 12)
    for a, b, c in zip(both, one, more, strict=True):
        torch.testing.assert_close(a, b + 0.5 * c, rtol=1e-4, atol=1e-6)


def test_dead_latents_are_put_elsewhere(monkeypatch):
    x, _ = planted(rows=4000)
    shares = {}
    for rules in ((), (Resample(every=60),)):
        sae = SAE("topk", d_in=64, d_sae=256, k=3)
        with torch.no_grad():
            sae.W_enc[:, :128] *= 0.05  # too weak to be among the k largest, ever
        recipe = {"sae": sae, "rules": rules, "dead": "none", "lr": 1e-3}
        _, run = train_sae(x, saes={"a": recipe}, **SHORT | {"n_tokens": 200_000})
        shares[bool(rules)] = sae.metadata["dead_share"]
        assert run.settings["saes"]["a"]["rules"] == [r.facts() for r in rules]
    assert shares[False] >= 0.5 and shares[True] < 0.2


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_learns_a_map_from_one_site_to_another(skip):
    x, _ = planted(rows=6000)
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(64, 20, generator=generator)
    y = 30 * (x @ matrix).relu() + 7  # other width, other scale, other mean
    settings = {"site": "a", "site_out": "b", "d_sae": 256, "k": 16, "skip": skip}
    saes, _ = train_sae({"a": 5 * x, "b": y}, saes={"t": settings}, **SHORT | {"n_tokens": 400_000})
    sae = saes["t"]
    assert (sae.reads, sae.writes, sae.d_in, sae.d_out) == (("a",), ("b",), 64, 20)
    assert (sae.W_skip is not None) == skip
    linear = y - y.mean(0)
    best = torch.linalg.lstsq(x - x.mean(0), linear).solution
    limit = float(((x - x.mean(0)) @ best - linear).square().sum() / linear.square().sum())
    assert fvu(sae, 5 * x[-300:], y[-300:]) == pytest.approx(sae.metadata["fvu"], rel=1e-3)
    assert fvu(sae, 5 * x, y) < (0.7 if skip else 1.2) * limit  # with a skip, better than the best linear map


def test_a_crosscoder_reads_and_writes_its_sites_on_equal_terms():
    x, _ = planted(rows=6000)
    turned = x @ torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(2))).Q
    data = {"a": x, "b": 1000 * turned}  # the same features, a thousand times as large
    settings = SHORT | {"n_tokens": 200_000}
    sae, _ = train_sae(data, site=["a", "b"], d_sae=128, k=3, **settings)
    both = torch.cat([data["a"], data["b"]], 1)
    out = sae(both)
    for part, truth in zip(out.split(64, 1), data.values(), strict=True):
        assert float((part - truth).square().sum() / (truth - truth.mean(0)).square().sum()) < 0.15


@pytest.mark.parametrize("kind", ["unit_norm", "layer_norm"])
def test_an_input_norm_is_trained_through_and_stays_on_the_sae(kind):
    x, _ = planted(rows=4000)
    x = x * torch.logspace(-2, 2, 4000)[torch.randperm(4000)][:, None]  # tokens of very different sizes
    plain, _ = train_sae(x, d_sae=128, k=3, **SHORT)
    normed, _ = train_sae(x, d_sae=128, k=3, input_norm=kind, **SHORT)
    assert normed.input_norm.kind == kind

    def relative(sae):
        return float(((sae(x) - x).norm(dim=1) / x.norm(dim=1)).median())

    assert relative(normed) < 0.5 < relative(plain)


def test_norms_that_the_codes_carry_are_folded_before_training():
    x, _ = planted(rows=1000)
    sae = SAE("topk", d_in=64, d_sae=96, k=4, rank_by_decoder_norm=True)
    with torch.no_grad():
        sae.W_dec *= torch.rand(96, 1) + 0.5
        sae.b_dec += 0.1
    before = sae(x).detach()
    trainer = SAETrainer(sae, x, k=4, lr=1e-3, dead_after=100)
    assert trainer.unit_rows
    torch.testing.assert_close(trainer.export()(x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["topk", "relu", "gated", "jumprelu", "batch_abstopk"])
def test_training_units_change_nothing(architecture):
    x, _ = planted(rows=1000)
    k = 4 if "topk" in architecture else None
    for settings in ({}, {"d_out": 20, "skip": True}, {"tied": True}, {"site": ["a", "b"]}):
        if "tied" in settings and architecture == "gated":
            continue
        sae = SAE(architecture, d_in=64, d_sae=96, k=k, **settings)
        with torch.no_grad():
            for p in sae.parameters():
                p += 0.1 * torch.randn(p.shape)
        if architecture == "batch_abstopk":
            sae.activation.threshold.fill_(0.4)
        y = None if sae.d_out == 64 else 9 * torch.randn(1000, 20)
        before = sae(3 * x).detach()
        SAETrainer(sae, 3 * x, k=4, lr=1e-3, dead_after=100, target=y).export()
        torch.testing.assert_close(sae(3 * x), before, rtol=1e-3, atol=1e-3)


def test_half_products_train_about_as_well_and_dense_ones_too():
    x, _ = planted(rows=4000)
    for architecture in ("topk", "jumprelu"):
        full, half = (
            train_sae(x, architecture=architecture, d_sae=128, k=3, precision=precision, **SHORT)[0]
            for precision in ("float32", "bfloat16")
        )
        assert half.W_dec.dtype == torch.float32 and not torch.equal(half.W_dec, full.W_dec)
        assert half.metadata["fvu"] < 1.15 * full.metadata["fvu"] + 0.01


def test_the_learning_rate_course_is_an_option():
    x, _ = planted(rows=1500)
    _, run = train_sae(x, d_sae=96, k=3, warm_up=0.5, decay=0.0, **SHORT)
    factors = [entry["lr_factor"] for entry in run.history]
    assert factors[-1] == 1.0 and factors[len(factors) // 4] == pytest.approx(0.5, abs=0.05)


def test_loggers_get_every_entry(tmp_path):
    x, seen = planted(rows=1500)[0], []
    log = CSVLogger(tmp_path / "logs" / "run.csv")

    class Run:
        def log(self, values):
            seen.append(values)

    _, run = train_sae(x, d_sae=96, k=3, loggers=[log, WandbLogger(Run())], **SHORT)
    with (tmp_path / "logs" / "run.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["fvu"]) for row in rows] == [entry["fvu"] for entry in run.history]
    assert [entry["sae/fvu"] for entry in seen] == [entry["fvu"] for entry in run.history]
    assert "sae/step" not in seen[0]


def test_tensorboard_gets_scalars(tmp_path, monkeypatch):
    import types

    written = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, *arguments):
            written.append(arguments)

        def flush(self):
            pass

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    TensorBoardLogger(tmp_path)({"sae": "a", "step": 3, "tokens": 30, "fvu": 0.5})
    assert written == [("a/tokens", 30, 30), ("a/fvu", 0.5, 30)]


def test_an_estimate_scales_what_it_measured():
    found = estimate_training(32, 256, n_tokens=512_000, k=4, batch_size=512)
    assert found.n_steps == 1000 and found.seconds == pytest.approx(1000 * found.seconds_per_step)
    assert found.lean and 4 * 4 * 2 * 32 * 256 < found.memory < 4 * 4 * 3 * 32 * 256 + 4 * 512 * 256
    assert not estimate_training(32, 256, n_tokens=512, architecture="relu", batch_size=512).lean
    m = tiny.live("llama")
    texts = ["the cat sat on the mat and ate a hat"] * 5
    with_model = estimate_training(
        32, 64, n_tokens=10_000, k=4, batch_size=64, m=m, texts=texts, site="blocks.1.hook_resid_post"
    )
    assert with_model.harvest_tokens_per_second > 0 and with_model.store == 10_000 * 32 * 2
    assert "min" in with_model._repr_html_() and len(with_model.to_frame()) == 1
    with pytest.raises(InputError, match="texts and the site"):
        estimate_training(32, 64, n_tokens=100, k=4, m=m)


TEXTS = ["the cat sat on the mat and ate a hat", "in the inn he ran", "a thing that is not there at all"] * 3
SITES = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def test_gradients_are_finite_differences_of_the_summed_loss():
    m = tiny.live("gpt2")  # whose norms stay in double precision
    m.module.double()
    batch = next(iter(stream_gradients(m, TEXTS[:1], SITES)))
    assert all(p.grad is None for p in m.module.parameters())
    assert all(p.requires_grad for p in m.module.parameters())
    ids = m.tokenizer(TEXTS[0], return_tensors="pt").input_ids
    for site in SITES:
        for token, column in ((2, 5), (6, 0)):
            losses = []
            for eps in (1e-5, -1e-5):

                def nudge(x, token=token, column=column, eps=eps):
                    x = x.clone()
                    x[0, token, column] += eps
                    return x

                with m.attach(sl.edit(site, nudge)):
                    logits = m.run(ids).logits[0, :-1]
                losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")))
            assert float(batch[site + "#gradient"][token, column]) == pytest.approx(
                (losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-9
            )
    assert not batch[SITES[0] + "#gradient"][-1].any(), "the last token predicts nothing"


def test_gradients_of_a_padded_batch_are_those_of_single_rows():
    m = tiny.live("llama")
    together = next(iter(stream_gradients(m, TEXTS[:3], SITES[1])))
    for doc in range(3):
        alone = next(iter(stream_gradients(m, TEXTS[doc], SITES[1])))
        torch.testing.assert_close(
            together[SITES[1] + "#gradient"][together.doc == doc], alone[SITES[1] + "#gradient"], rtol=1e-4, atol=1e-6
        )


def test_gradients_are_harvested_beside_the_activations(tmp_path):
    m = tiny.live("llama")
    store = harvest(m, TEXTS, SITES, tmp_path / "s", 10**6, gradients=True, dtype="float32", progress=False)
    assert store.sites == [*SITES, *(site + "#gradient" for site in SITES)]
    plain = harvest(m, TEXTS, SITES, tmp_path / "p", 10**6, dtype="float32", progress=False)
    assert store.n_tokens == plain.n_tokens - len(TEXTS)  # the last token of each row has no gradient
    rows = store.rows(SITES[0] + "#gradient", np.arange(store.n_tokens))
    assert (rows != 0).any(1).all()
    assert ActivationStore(tmp_path / "s").max_norm(SITES[0]) == pytest.approx(plain.max_norm(SITES[0]), rel=0.05)


def train_two(out):
    x, _ = planted(rows=3000)
    saes = {"a": {"d_sae": 96, "k": 3}, "b": {"architecture": "jumprelu", "d_sae": 96, "k": 3}}
    train_sae(x, saes=saes, n_tokens=10_000, batch_size=256, out=out, **QUIET)


SCRIPT = """
import sys
from pathlib import Path
from tests.sae.test_rules import train_two
train_two(Path(sys.argv[1]))
"""


def test_two_processes_train_the_sae_of_one(tmp_path):
    root = Path(__file__).parents[2]
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    both = subprocess.Popen([*torchrun, str(tmp_path / "two")], env=environment, cwd=root)
    train_two(tmp_path / "one")
    assert both.wait(300) == 0
    for name in ("a", "b"):
        one, two = (SAE.load(tmp_path / run / name) for run in ("one", "two"))
        for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
        assert one.metadata["l0"] == pytest.approx(two.metadata["l0"], abs=1e-3)


def test_mistakes():
    x, _ = planted(rows=1000)
    settings = {"n_tokens": 2000, "batch_size": 256, **QUIET}
    with pytest.raises(InputError, match="prefixes must rise"):
        train_sae(x, d_sae=96, k=3, rules=[Matryoshka((48, 16))], **settings)
    with pytest.raises(InputError, match="at most d_sae=96"):
        train_sae(x, d_sae=96, k=3, rules=[Matryoshka((48, 200))], **settings)
    with pytest.raises(InputError, match="MultiTopK is for topk"):
        train_sae(x, architecture="relu", d_sae=96, k=3, rules=[MultiTopK()], **settings)
    with pytest.raises(FitError, match="b 64"):
        sae = SAE("topk", d_in=64, d_out=20, d_sae=96, k=3, site="a", site_out="b")
        train_sae({"a": x, "b": x}, saes={"t": sae}, **settings)
    assert lean_step.AUX == 1 / 32
