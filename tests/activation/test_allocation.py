"""Greedy allocation: one block by brute force, the log, files, resuming."""

import json

import pytest
import torch

import sparselens as sl
from sparselens.activation import Allocation, Calibration, allocate
from sparselens.activation.gates import n_kept
from sparselens.activation.linears import linears
from sparselens.errors import InputError
from tests import tiny
from tests.activation.test_sparsifier import TEXTS, masked

LONG = ["hello there my friend of old, the quick brown fox is a friend in need, and so on and on"]
SHORT = dict(target=0.1, step=0.25, max_tokens=16, progress=False)
SEARCH = dict(target=0.4, step=0.25, max_tokens=48, max_length=16, progress=False)


@pytest.fixture(scope="module")
def m():
    return tiny.live()


def teal(calibration, **settings):
    return sl.TEAL(0.4, calibration=calibration, allocation="greedy", **settings)


@pytest.fixture(scope="module")
def searched(m):
    calibration = sl.calibrate(m, LONG, progress=False)
    return calibration, allocate(m, sl.TEAL(calibration=calibration), LONG, **SEARCH)


def brute_error(m, layer, shares, rows):
    """The error of one block as the specification has it, from full passes with edits at the inputs of the layers."""
    kept = {one.site: n_kept(shares[one.proj], one.d_in) for one in linears(m) if one.layer == layer}
    edits = [sl.edit(site, lambda x, k=k: masked(x, k)) for site, k in kept.items()]
    site = f"blocks.{layer}.hook_resid_post"
    clean = m.capture(rows, site)[site]
    with m.attach(edits):
        off = m.capture(rows, site)[site] - clean
    return float(off[:, -4:].norm(dim=1).mean())  # a quarter of 16 positions


def test_every_step_takes_the_cheapest_layer(m, searched):
    _, found = searched
    ids = m.tokenizer(LONG[0], return_tensors="pt")["input_ids"][0, :48].view(3, 16)
    sizes = {one.proj: one.numel / 1024 for one in linears(m)}
    rows = found.blocks[1]
    assert set(rows[0]["shares"].values()) == {0.0}
    for before, after in zip(rows, rows[1:], strict=False):
        tries = {}
        for proj, share in before["shares"].items():
            new = share + 0.25 / sizes[proj]
            if new <= 1:
                tries[proj] = brute_error(m, 1, before["shares"] | {proj: new}, ids)
        took = [proj for proj in sizes if after["shares"][proj] != before["shares"][proj]]
        assert len(took) == 1 and tries[took[0]] == pytest.approx(min(tries.values()), rel=1e-3)
        assert after["error"] == pytest.approx(tries[took[0]], rel=1e-3)
        assert after["effective"] == pytest.approx(
            sum(sizes[p] * s for p, s in after["shares"].items()) / sum(sizes.values()))
    assert rows[-2]["effective"] < 0.4 <= rows[-1]["effective"]


def test_shares_stop_at_one_and_the_search_when_all_are_full(m):
    calibration = sl.calibrate(m, LONG, progress=False)
    found = allocate(m, sl.TEAL(calibration=calibration), LONG, target=1.0, step=0.5, max_tokens=16, progress=False)
    for rows in found.blocks.values():
        assert max(share for row in rows for share in row["shares"].values()) <= 1
        assert 0.8 < rows[-1]["effective"] <= 1


@pytest.mark.parametrize("backend", ["nnsight", "transformer_lens"])
def test_backends_find_the_same(backend, searched):
    m = tiny.live("llama", backend)
    calibration = sl.calibrate(m, LONG, progress=False)
    found = allocate(m, sl.TEAL(calibration=calibration), LONG, **SEARCH | {"target": 0.15})
    for layer, rows in found.blocks.items():
        assert len(rows) > 3
        assert [row["shares"] for row in rows] == [row["shares"] for row in searched[1].blocks[layer][: len(rows)]]


def test_blocks_get_the_sparsity_of_the_nearest_row(m, searched):
    calibration, found = searched
    counted = teal(calibration, dense_prefix=0).counted(m)
    with m.attach(counted):
        m.run(TEXTS)
    for layer, rows in found.blocks.items():
        row = min(rows, key=lambda row: abs(row["effective"] - 0.4))
        parts = [part for part in counted.parts() if part["layer"] == layer]
        assert {part["proj"]: round(part["sparsity"], 1) for part in parts} == {
            proj: round(share, 1) for proj, share in row["shares"].items()}
    assert sl.TEAL(0.0, calibration=calibration, allocation="greedy").edits(m) == []


def test_greedy_is_no_worse_than_uniform_in_its_own_blocks(m, searched):
    calibration, found = searched
    uniform = dict.fromkeys(["q", "k", "v", "o", "gate", "up", "down"], 0.4)
    ids = m.tokenizer(LONG[0], return_tensors="pt")["input_ids"][0, :48].view(3, 16)
    for layer, rows in found.blocks.items():
        assert rows[-1]["error"] < brute_error(m, layer, uniform, ids)


def test_an_interrupted_search_goes_on(m, tmp_path, monkeypatch):
    calibration = sl.calibrate(m, LONG, progress=False)
    thing = sl.TEAL(calibration=calibration)
    from sparselens.activation import allocation

    search, done = allocation._search, []

    def stop_at_block_2(block, *rest):
        if block.layer == 2:
            raise KeyboardInterrupt
        done.append(block.layer)
        return search(block, *rest)

    monkeypatch.setattr(allocation, "_search", stop_at_block_2)
    with pytest.raises(KeyboardInterrupt):
        allocate(m, thing, LONG, **SHORT, out=tmp_path / "cal")
    loaded = Calibration.load(tmp_path / "cal")
    with pytest.raises(InputError, match="not reached block 2"):
        teal(loaded).edits(m)
    monkeypatch.setattr(allocation, "_search", lambda block, *rest: done.append(block.layer) or search(block, *rest))
    allocate(m, sl.TEAL(calibration=loaded), LONG, **SHORT, out=tmp_path / "cal")
    assert done == [0, 1, 2]
    allocate(m, sl.TEAL(calibration=loaded), LONG, **SHORT | {"step": 0.5})
    assert done == [0, 1, 2] * 2  # other settings: from the beginning


def test_files_keep_it(m, searched, tmp_path):
    calibration, found = searched
    loaded = Calibration.load(calibration.save(tmp_path / "cal"))
    assert loaded.allocations["TEAL-topk"] == found
    assert Allocation.of_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_what_cannot_be_searched_is_refused(m, searched):
    calibration, _ = searched
    with pytest.raises(InputError, match="no search for WINA-topk-official"):
        sl.WINA(0.4, calibration=calibration, allocation="greedy").edits(m)
    with pytest.raises(InputError, match="one number"):
        sl.TEAL({"q": 0.4}, calibration=calibration, allocation="greedy").edits(m)
    with pytest.raises(InputError, match="went up to"):
        sl.TEAL(0.9, calibration=calibration, allocation="greedy").edits(m)
    with pytest.raises(InputError, match="nothing to share out"):
        allocate(m, sl.CATS(calibration=calibration), LONG)
    with pytest.raises(InputError, match=r"sl\.calibrate"):
        allocate(m, sl.TEAL(), LONG)
    with pytest.raises(InputError, match="target"):
        allocate(m, sl.TEAL(calibration=calibration), LONG, target=1.5)
    with pytest.raises(InputError, match="too few"):
        allocate(m, sl.TEAL(calibration=calibration), ["a"])


def test_what_is_shown(searched):
    _, found = searched
    frame = found.to_frame()
    assert list(frame.columns) == ["layer", "effective", "error", "q", "k", "v", "o", "gate", "up", "down"]
    assert len(frame) == sum(len(rows) for rows in found.blocks.values())
    assert len(found.plot(0.4).patches) == 7 * len(found.blocks)
    assert "Greedy allocation of 3 blocks" in found._repr_html_()


def test_the_model_is_left_as_it_was(m):
    assert not any(module._forward_pre_hooks for module in m.module.modules())
    assert torch.isfinite(m.run(TEXTS).logits).all()
