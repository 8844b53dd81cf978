"""The drivers of `make bench` and `make claims`."""

import json
import sys
from pathlib import Path

import pytest

import tests
from tests import bench, collect
from tests.claims import run as claims


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `tests` folder of its own, with `benchmarks` and `claims` in it."""
    for name in ("benchmarks", "claims"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.setattr(collect, "TESTS", tmp_path)
    monkeypatch.setattr(tests, "__path__", [str(tmp_path)])
    for name in list(sys.modules):
        if name.startswith(("tests.benchmarks", "tests.claims")):
            monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize(
    ("ours", "baseline", "target", "ratio", "ok"),
    [(95.0, 100.0, ">= 0.95", 0.95, True), (94.0, 100.0, ">= 0.95", 0.94, False), (3.0, 2.0, "< 1.5", 1.5, False),
     (59.0, None, "< 60", None, True), (1e-6, None, "<= 1e-5", None, True)],
)
def test_a_target_is_about_the_ratio_or_the_figure(ours, baseline, target, ratio, ok):
    row = bench.judge({"name": "x", "ours": ours, "baseline": baseline, "target": target})
    assert row["ratio"] == ratio
    assert row["ok"] is ok


@pytest.mark.parametrize(
    "change", [{"target": "fast"}, {"target": "0.95"}, {"tarket": "< 1"}, {"target": None, "unit": "s"}]
)
def test_a_row_that_cannot_be_judged_is_refused(change):
    with pytest.raises((ValueError, TypeError)):
        bench.judge({"name": "x", "ours": 1.0, "baseline": 1.0, "target": "< 2", **change})


def test_bench_prints_one_table_and_goes_on_after_a_failure(folder, capsys):
    (folder / "benchmarks" / "bench_a.py").write_text("def run():\n    raise RuntimeError('no luck')\n")
    row = {"name": "stream", "ours": 4.0, "baseline": 2.0, "unit": "tokens/s", "target": "> 1"}
    (folder / "benchmarks" / "bench_c.py").write_text("def run():\n    return [{'name': 'no figures'}]\n")
    (folder / "benchmarks" / "bench_b.py").write_text(f"def run():\n    return {row!r}\n")
    assert bench.main(["--out", str(folder / "bench.json")]) == 1
    out = capsys.readouterr().out
    assert "stream  4     2         tokens/s  2      > 1     yes" in out
    assert "bench_a: RuntimeError: no luck" in out
    assert "bench_c: ValueError: row {'name': 'no figures'}: missing" in out
    saved = json.loads((folder / "bench.json").read_text())
    assert saved["rows"][0]["ratio"] == 2.0
    assert bench.main(["--only", "b"]) == 0


def test_claims_print_the_row_and_a_claim_that_fails_is_a_finding(folder, capsys, monkeypatch):
    row = {"paper": "p", "claim": "c", "data": "d", "seeds": 3, "baseline": 0.5, "result": 0.4, "spread": 0.1,
           "holds": False}
    (folder / "claims" / "claim_p.py").write_text(f"def run():\n    return {row!r}\n")
    claims.main([])
    assert not list(folder.rglob("*.json"))
    monkeypatch.setattr(claims, "RESULTS", folder / "results")
    assert claims.main(["--record"]) == 0
    assert json.loads((folder / "results" / "claim_p.json").read_text())["rows"] == [row]
    assert "p      c      d     3      0.5       0.4     0.1     NO" in capsys.readouterr().out


def test_no_claims_yet(folder, capsys):
    assert claims.main(["--out", str(folder / "claims.json")]) == 0
    assert "No claim checks are there yet." in capsys.readouterr().out
    assert not (folder / "claims.json").exists()
