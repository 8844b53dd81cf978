"""Runs are found again, with their recipes."""

import json

import pytest

import sparselens as sl
from sparselens.errors import InputError
from sparselens.views import run_table
from sparselens.views.run_tables import recipe_hash
from tests import tiny
from tests.sae.synthetic import QUIET, planted
from tests.views.allowed import check
from tests.views.samples import HOSTILE


def test_runs_are_found_with_their_recipes(tmp_path):
    x, _ = planted(rows=600)
    for name, k in (("a", 3), ("b", 3), ("c", 4)):
        sl.train_sae(x, d_sae=96, k=k, n_tokens=512, batch_size=256, out=tmp_path / "train" / name, **QUIET)
    sae = sl.SAE("topk", d_in=32, d_sae=64, k=2, site="blocks.0.hook_resid_post")
    sl.embed(["a cat", "the mat"], tiny.live("llama"), sae, tmp_path / "texts", progress=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    table = sl.runs(tmp_path)
    frame = table.to_frame().set_index("name")
    assert sorted(frame.index) == ["broken", "texts", "train/a", "train/b", "train/c"]
    assert frame["recipe"]["train/a"] == frame["recipe"]["train/b"] != frame["recipe"]["train/c"]
    assert frame["version"]["train/a"] == sl.__version__
    assert frame["texts"]["texts"] == 2
    assert frame["seconds"]["texts"] > 0
    assert (frame["bytes"] > 0).all()
    assert "FileFormatError" in frame["problem"]["broken"]
    assert "train/c" in check(table.to_html()).text
    with pytest.raises(InputError, match="there is no folder"):
        sl.runs(tmp_path / "nowhere")


def test_a_table_of_ones_own_runs(tmp_path):
    runs = [{"name": HOSTILE[0], "settings": {"b": HOSTILE[1], "a": 1}, "seconds": 2.0, "bytes": 3e6, "loss": 0.25},
            {"name": "other", "loss": float("nan")}]
    table = run_table(runs, title=HOSTILE[2])
    read = check(table.to_html())
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[2], "3.0 MB", "2.0 s", "0.25", "–"):
        assert text in read.text
    assert recipe_hash({"a": 1, "b": 2}) == recipe_hash({"b": 2, "a": 1}) != recipe_hash({"a": 1, "b": 3})
    html = table.save(tmp_path / "x.html").read_text("utf-8")
    assert "default-src 'none'" in html
    assert json.dumps(HOSTILE[0]) not in html
    assert "no run yet" in check(run_table([]).to_html()).text
    many = run_table([{"name": f"run {i}", "settings": {"i": i}} for i in range(3000)])
    assert len(many.to_html(20_000)) <= 20_000
    assert "more: see .to_frame()" in check(many.to_html()).text
    with pytest.raises(InputError, match="run 1 has no name"):
        run_table([runs[0], {"loss": 1}])
