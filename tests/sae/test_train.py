import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sparselens.errors import FitError, InputError, NotFiniteError
from sparselens.sae import SAE, InputNorm, lean_step, train_sae
from sparselens.sae.activations import FeatureChoice
from sparselens.sae.train import lr_factor
from sparselens.sae.trainer import SAETrainer
from tests import tiny
from tests.sae.killed import SAES
from tests.sae.synthetic import QUIET, planted


def recovery(directions: torch.Tensor, sae: SAE) -> float:
    """Mean over planted directions of the largest cosine with a decoder row."""
    rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    return float((directions @ rows.T).max(1).values.mean())


ALL = ["topk", "abstopk", "batchtopk", "batch_abstopk", "featurechoice", "jumprelu", "relu", "gated"]


@pytest.mark.parametrize("architecture", ALL)
def test_a_planted_dictionary_is_recovered(architecture):
    x, directions = planted()
    began = time.process_time()
    settings = {"architecture": architecture, "d_sae": 128, "k": 3, "lr": 3e-3, "batch_size": 1024}
    if architecture == "featurechoice":  # the directions are equally frequent
        settings["architecture"] = FeatureChoice(3, 128, budget="uniform")
    sae, run = train_sae(x * 50, n_tokens=300_000, **settings, **QUIET)
    assert time.process_time() - began < 15
    assert recovery(directions, sae) > 0.95
    assert sae.metadata["l0"] == pytest.approx(3, rel=0.1)
    assert sae.metadata["fvu"] < {"relu": 0.9, "gated": 0.5}.get(architecture, 0.05)  # the first two shrink codes
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(128), atol=1e-5)
    assert run.n_tokens == 300_000 // 1024 * 1024 and len(run.to_frame()) >= 100


def test_dead_latents_are_put_to_use(monkeypatch):
    x, _ = planted(rows=8000)
    fvu = {}
    for auxiliary in (True, False):
        sae = SAE("topk", d_in=64, d_sae=256, k=3)
        with torch.no_grad():
            sae.W_enc[:, :128] *= 0.05  # too weak to be among the k largest, ever
        if not auxiliary:
            monkeypatch.setattr(lean_step, "_add_auxiliary", lambda *_args: None)
        _, run = train_sae(x, saes={"a": sae}, n_tokens=300_000, batch_size=1024, **QUIET)
        shares = run.to_frame()["dead_share"]
        assert shares.max() >= 0.5 and sae.metadata["dead_share"] == shares.iloc[-1]
        fvu[auxiliary] = sae.metadata["fvu"]
    assert fvu[True] < 0.6 * fvu[False]


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.sae.killed", str(tmp_path), "3", "200", "0"]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    steps = [int(line) for line in done.stdout.split()]
    assert len(steps) == 3 and steps == sorted(steps) and 0 < steps[-1] < 200, "no run went on from a checkpoint"
    for name in SAES:
        mine, theirs = (SAE.load(tmp_path / run / name) for run in ("whole", "killed"))
        assert all(torch.equal(mine.state_dict()[key], value) for key, value in theirs.state_dict().items()), name
        assert mine.metadata == theirs.metadata
    assert not (tmp_path / "killed" / "checkpoints").exists()


@pytest.mark.parametrize("architecture", [*ALL, "topafa"])
def test_a_trainers_state_is_all_there_is(architecture):
    x, _ = planted(rows=1200)
    trainers = []
    for seed in (0, 1):
        k = 3 if "topk" in architecture or architecture == "featurechoice" else None
        sae = SAE(architecture, d_in=64, d_sae=400, k=k, seed=seed)
        trainers.append(SAETrainer(sae, x[seed::2], k=3, lr=1e-3, dead_after=400))
    for batch in x.split(200):
        trainers[0].step(batch, 1.0)
    trainers[1].step(x[:200], 0.5)
    trainers[1].restore({key: value.clone() for key, value in trainers[0].state().items()})
    for trainer in trainers:
        for batch in x.split(300):
            trainer.step(batch, 1.0)
    mine, theirs = (trainer.state() for trainer in trainers)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert torch.equal(trainers[0].since, trainers[1].since)


def test_a_finished_run_is_loaded_and_another_is_refused(tmp_path):
    x, _ = planted(rows=3000)
    settings = {"d_sae": 96, "k": 3, "n_tokens": 20_000, "batch_size": 256, "out": tmp_path, **QUIET}
    sae, run = train_sae(x, **settings)
    again, same = train_sae(x, **settings)
    assert torch.equal(sae.W_enc, again.W_enc) and same.history == run.history and same.n_tokens == run.n_tokens
    with pytest.raises(InputError, match="other settings.*n_tokens: there 20000, now 30000"):
        train_sae(x, **settings | {"n_tokens": 30_000})


def test_several_saes_on_one_pass_equal_each_alone():
    x, _ = planted(rows=4000)
    settings = {"n_tokens": 30_000, "batch_size": 512, **QUIET}
    saes = {"a": {"d_sae": 96, "k": 3}, "b": {"d_sae": 80, "k": 5, "architecture": "batchtopk"}}
    together, run = train_sae(x, saes=saes, **settings)
    for name, recipe in saes.items():
        alone, _ = train_sae(x, **recipe, **settings)
        assert torch.equal(alone.W_dec, together[name].W_dec)
    assert set(run.to_frame()["sae"]) == {"a", "b"}


def test_a_trained_sae_goes_on_training():
    x, _ = planted(rows=4000)
    settings = {"n_tokens": 30_000, "batch_size": 512, **QUIET}
    sae, _ = train_sae(x, d_sae=96, k=3, **settings)
    before = sae.metadata["fvu"]
    more, run = train_sae(x, saes={"sae": sae}, **settings)
    assert run.history[0]["fvu"] < 2 * before
    assert more["sae"] is sae and sae.metadata["fvu"] < before


def test_a_trained_jumprelu_keeps_its_thresholds():
    x, _ = planted(rows=4000)
    settings = {"n_tokens": 30_000, "batch_size": 512, "lr": 3e-3, **QUIET}
    sae, _ = train_sae(x, architecture="jumprelu", d_sae=96, k=3, **settings)
    before = sae.activation.threshold.clone()
    settings["n_tokens"] = 512
    train_sae(x, saes={"sae": sae}, **{key: value for key, value in settings.items() if key != "lr"})
    assert (sae.activation.threshold - before).abs().max() < 0.01


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_touched():
    x, _ = planted(rows=500)
    trainer = SAETrainer(SAE("topk", d_in=64, d_sae=96, k=3), x, k=3, lr=1e-3, dead_after=10**9)
    before = [tensor.clone() for tensor in trainer.model.parameters()]
    x[3, 4] = torch.inf
    with pytest.raises(NotFiniteError, match="learning rate"):
        trainer.step(x, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_site_given_with_a_tensor_is_recorded():
    x, _ = planted(rows=1000)
    settings = {"d_sae": 96, "k": 3, "n_tokens": 1024, "batch_size": 512, **QUIET}
    assert train_sae(x, site="blocks.3.hook_resid_post", **settings)[0].site == "blocks.3.hook_resid_post"
    assert train_sae(x, **settings)[0].site is None


def test_scale_does_not_matter():
    x, _ = planted(rows=4000)
    settings = {"d_sae": 96, "k": 3, "n_tokens": 30_000, "batch_size": 512, **QUIET}
    small, large = (train_sae(x * factor, **settings)[0] for factor in (1.0, 1024.0))
    torch.testing.assert_close(large.W_dec, small.W_dec)
    torch.testing.assert_close(large.encode(x * 1024.0).dense(), small.encode(x).dense() * 1024.0, rtol=1e-3, atol=0.1)


def test_a_live_model_is_harvested_and_the_facts_are_written_down(tmp_path):
    m = tiny.live("llama")
    texts = ["the cat sat on the mat and ate a hat", "in the inn he ran"] * 40
    site = "blocks.1.hook_resid_post"
    out = tmp_path / "run"
    sae, run = train_sae(m, texts, site=site, d_sae=64, k=4, n_tokens=3000, batch_size=128, out=out, **QUIET)
    assert (out / "activations" / "00000" / f"{site}.npy").is_file()
    facts = sae.metadata
    assert (sae.site, sae.model_name, facts["context_size"]) == (site, m.name, 256)
    assert {"n_tokens", "l0", "fvu", "dead_share", "max_norm", "sparselens_version"} <= facts.keys()
    assert SAE.load(out / "sae").metadata["fvu"] == facts["fvu"]
    with m.attach(sae):
        assert torch.isfinite(m.run(texts[:2]).logits).all()
    temporary, _ = train_sae(m, texts, site=site, d_sae=64, k=4, n_tokens=3000, batch_size=128, **QUIET)
    assert torch.equal(temporary.W_dec, sae.W_dec)


def test_the_run_shows_itself():
    import matplotlib

    matplotlib.use("agg")
    _, run = train_sae(planted(rows=2000)[0], d_sae=96, k=3, n_tokens=20_000, batch_size=512, **QUIET)
    assert len(run.plot().lines) >= 1
    assert "tokens/s" in run._repr_html_()
    assert run.tokens_per_second > 0


def test_the_learning_rate_rises_stays_and_falls():
    factors = [lr_factor(step, 1000) for step in range(1000)]
    assert factors[0] < 0.05 and max(factors) == 1.0 and 0 < factors[-1] < 0.01
    top = [i for i, f in enumerate(factors) if f == 1.0]
    assert top == list(range(top[0], top[-1] + 1))
    assert all(a >= b for a, b in itertools.pairwise(factors[top[-1] :]))


def test_mistakes():
    x, _ = planted(rows=2000)
    settings = {"n_tokens": 5000, "batch_size": 256, **QUIET}
    with pytest.raises(InputError, match="1 row of activations has no variance"):
        train_sae(torch.randn(1, 8), n_tokens=256, batch_size=256, d_sae=16, k=2, **QUIET)
    with pytest.raises(InputError, match="unknown setting 'd_seo'.*Closest: d_sae"):
        train_sae(x, saes={"a": {"d_seo": 96}}, **settings)
    with pytest.raises(InputError, match="which site"):
        train_sae({"p": x, "q": x}, d_sae=96, k=3, **settings)
    with pytest.raises(InputError, match="texts go with a live model"):
        train_sae(x, ["text"], d_sae=96, k=3, **settings)
    with pytest.raises(InputError, match="needs texts"):
        train_sae(tiny.live("llama"), site="blocks.0.hook_resid_post", **settings)
    with pytest.raises(InputError, match="which site of the model"):
        train_sae(tiny.live("llama"), ["text"], **settings)
    with pytest.raises(FitError, match="reads width 8"):
        train_sae(x, saes={"a": SAE("topk", d_in=8, d_sae=16, k=2)}, **settings)
    with pytest.raises(InputError, match="constant input scale"):
        sae = SAE("topk", d_in=64, d_sae=96, k=2, input_norm=InputNorm("scale", 2.0))
        train_sae(x, saes={"a": sae}, **settings)
    with pytest.raises(InputError, match="dead='axu'"):
        train_sae(x, dead="axu", d_sae=96, k=3, **settings)
    with pytest.raises(InputError, match="Closest: bfloat16"):
        train_sae(x, precision="bf16", d_sae=96, k=3, **settings)
    x[5, 3] = torch.nan
    with pytest.raises(NotFiniteError):
        train_sae(x, d_sae=96, k=3, **settings)
