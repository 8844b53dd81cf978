"""Calibration: thresholds against sorted inputs, files, and models it was not made on."""

import json

import pytest
import torch

import sparselens as sl
from sparselens.activation import Calibration, Orthogonal
from sparselens.activation.calibration import FACTS, TENSORS
from sparselens.activation.linears import linears
from sparselens.activation.sketches import ERROR
from sparselens.errors import FileFormatError, FitError, InputError
from tests import tiny
from tests.activation.test_sparsifier import TEXTS


@pytest.fixture(scope="module")
def m():
    return tiny.live()


@pytest.fixture(scope="module")
def calibration(m):
    return sl.calibrate(m, TEXTS, progress=False)


def nearest_rank(values, q):
    ordered = values.flatten().sort().values
    return float(ordered[max(0, -(-int(q * len(ordered)) // 1) - 1)])


@pytest.mark.parametrize("backend", ["torch", "nnsight", "transformer_lens"])
def test_thresholds_are_quantiles_of_what_the_layers_read(backend):
    m = tiny.live("llama", backend)
    found = sl.calibrate(m, TEXTS, progress=False)
    for linear in linears(m):
        captured = m.capture(TEXTS, linear.site)
        x = captured[linear.site][captured.mask & ~captured.first].abs()  # no padding, no first tokens
        for q in (0.25, 0.5, 0.9):
            for weighted, values in ((False, x), (True, x * linear.weight.norm(dim=0))):
                tau = found.threshold(linear.site, q, weighted)
                share = (values <= tau).double().mean()
                assert tau == pytest.approx(nearest_rank(values, q), rel=2 * ERROR)
                assert abs(share - q) < 0.02
    assert found.tokens == int((captured.mask & ~captured.first).sum())


def test_first_tokens_can_be_counted(m):
    site = linears(m)[0].site
    with_first = sl.calibrate(m, TEXTS, first=True, progress=False)
    assert with_first.tokens == sl.calibrate(m, TEXTS, progress=False).tokens + len(TEXTS)
    assert with_first.magnitudes[site].count == with_first.tokens * 32


def test_it_stops_after_enough_tokens(m):
    many = ["hello there my friend of old"] * 400
    found = sl.calibrate(m, many, max_tokens=50, progress=False)
    assert 50 <= found.tokens < 3000


def test_what_reads_the_same_has_one_sketch(calibration):
    q, k, v, o, gate, up, down = (calibration.magnitudes[one.site] for one in linears(tiny.live())[:7])
    assert q is k is v and gate is up
    assert len({id(one) for one in (q, o, gate, down)}) == 4


def test_the_threshold_gate_reaches_its_sparsity_on_the_same_texts(m, calibration):
    for thing in (sl.TEAL, sl.WINA):
        counted = thing(0.5, gate="threshold", calibration=calibration, dense_prefix=1).counted(m)
        with m.attach(counted):
            m.run(TEXTS)
        n = calibration.tokens  # without the first tokens, which are dense here too
        assert counted.numbers()["sparsity"] * (n + 3) / n == pytest.approx(0.5, abs=0.03)


def test_files_come_back_as_they_were(m, calibration, tmp_path):
    calibration.save(tmp_path / "cal")
    loaded = Calibration.load(tmp_path / "cal")
    assert (loaded.model, loaded.tokens) == (calibration.model, calibration.tokens)
    for kind in ("magnitudes", "weighted"):
        there, here = getattr(loaded, kind), getattr(calibration, kind)
        assert set(there) == set(here)
        assert all(torch.equal(there[site].counts, here[site].counts) for site in here)
    sl.TEAL(0.5, gate="threshold", calibration=loaded).edits(m)
    assert sum(file.stat().st_size for file in (tmp_path / "cal").iterdir()) < 2_000_000


def test_damaged_files_are_refused(calibration, tmp_path):
    with pytest.raises(InputError, match="holds no calibration"):
        Calibration.load(tmp_path / "nowhere")
    folder = calibration.save(tmp_path / "cal")
    facts = json.loads((folder / FACTS).read_text())
    for wrong in ({"format": "x"}, {"lows": {"a": 1}}, {"tokens": None, "sketches": {"magnitudes/x": "y"}}):
        (folder / FACTS).write_text(json.dumps(facts | wrong))
        with pytest.raises(FileFormatError):
            Calibration.load(folder)
    (folder / FACTS).write_text(json.dumps(facts))
    whole = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match="damaged"):
        Calibration.load(folder)


def test_another_model_is_refused(calibration):
    for other in (tiny.live("llama", seed=1), tiny.live("qwen3"), tiny.live("gpt2")):
        with pytest.raises(FitError, match=r"sl\.calibrate"):
            sl.TEAL(0.5, calibration=calibration).edits(other)


def test_changed_weights_are_refused_and_other_precision_is_not(calibration):
    m = tiny.live()
    m.module.bfloat16()
    sl.TEAL(0.5, calibration=calibration).edits(m)
    m = tiny.live()
    with torch.no_grad():
        m.linear("blocks.0.attn.k.hook_in").weight.mul_(1.1)
    with pytest.raises(FitError, match="other weights"):
        sl.TEAL(0.5, calibration=calibration).edits(m)


def test_a_rotated_model_needs_its_own_calibration(m, calibration):
    thing = dict(sparsity=0.5, transform="orthogonal", gate="threshold", dense_prefix=0)
    with pytest.raises(FitError, match="other weights"):
        sl.WINA(**thing, calibration=calibration).edits(m)
    with m.attach(Orthogonal()):
        own = sl.calibrate(m, TEXTS, progress=False)
    counted = sl.WINA(**thing, calibration=own).counted(m)
    with m.attach(counted):
        m.run(TEXTS)
    assert counted.numbers()["sparsity"] == pytest.approx(0.5, abs=0.1)
    with pytest.raises(FitError, match="other weights"):
        sl.WINA(0.5, calibration=own).edits(m)


def test_texts_without_tokens_are_refused(m):
    with pytest.raises(InputError, match="no tokens to calibrate on"):
        sl.calibrate(m, ["a"], progress=False)


def test_what_is_shown(calibration):
    frame = calibration.to_frame()
    assert len(frame) == 21 and (frame["q0.25"] < frame["q0.9"]).all()
    assert set(frame["proj"]) == {"q", "k", "v", "o", "gate", "up", "down"}
    assert len(calibration.plot(0.5).lines) == 7
    assert "43" in calibration._repr_html_()
