"""`python -m sparselens`: what it prints and writes, against the library, on a tiny model in a folder."""

import os
import signal
import subprocess
import sys
import time
from io import StringIO

import pandas as pd
import pytest

import sparselens as sl
from sparselens.__main__ import main
from sparselens.embeddings import SAEEmbedding
from tests import tiny
from tests.embeddings.test_reading import SITE, TEXTS, embed, files, make_sae

WORDS = ["the cat sat on a mat", "in the beginning", "he ate the thing", "a mat in the garden"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, an SAE and two files of texts."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.model("llama").save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    make_sae().save(folder / "sae")
    for name, mark in (("left", " sir"), ("right", " mate")):
        frame = pd.DataFrame({"body": [f"{text}{mark} {i}" for i in range(8) for text in WORDS], "n": range(32)})
        frame.to_json(folder / f"{name}.jsonl", orient="records", lines=True)
    return folder


@pytest.fixture
def run(place, capsys):
    """Runs a command line whose {names} are files of `place`; returns exit code, stdout and stderr."""

    def call(line):
        code = main([part.format(place=place) for part in line.split()])
        got = capsys.readouterr()
        return code, got.out, got.err

    return call


EMBED = "embed {place}/left.jsonl --field body --model {place}/model --sae {place}/sae --quiet"


def test_embed_writes_what_the_library_writes(run, place, tmp_path):
    code, out, err = run(f"{EMBED} --out {tmp_path}/out --pooling mean --role user --min-tokens 2 --threshold 0.5")
    assert (code, out) == (0, f"{tmp_path}/out\n")
    assert "32 documents" in err
    assert "tokens read" in err
    frame = pd.read_json(place / "left.jsonl", lines=True)
    embed(frame, sl.load_model(place / "model"), make_sae(), tmp_path / "mine", text_column="body", pooling="mean",
          role="user", min_tokens=2, threshold=0.5)
    assert files(tmp_path / "out") == files(tmp_path / "mine")
    assert run(f"{EMBED} --out {tmp_path}/out --pooling mean --role user --min-tokens 2 --threshold 0.5")[0] == 0
    assert run(EMBED.replace("left", "right") + f" --out {tmp_path}/more")[0] == 0
    assert run(EMBED + f" --out {tmp_path}/more --append --max-length 30 --long cut")[0] == 2
    assert run(EMBED + f" --out {tmp_path}/more --append")[0] == 0
    assert len(SAEEmbedding.load(tmp_path / "more")) == 64


@pytest.fixture(scope="module")
def pair(place):
    """The two files, embedded."""
    m = sl.load_model(place / "model")
    for name in ("left", "right"):
        frame = pd.read_json(place / f"{name}.jsonl", lines=True)
        embed(frame, m, make_sae(), place / f"emb-{name}", text_column="body")
    return [SAEEmbedding.load(place / f"emb-{name}") for name in ("left", "right")]


DIFF = "diff {place}/emb-left {place}/emb-right"


def test_diff_prints_the_table_of_the_library(run, pair):
    expected = sl.diff(*pair).to_frame()
    code, out, err = run(f"{DIFF} --top 7")
    got = pd.read_csv(StringIO(out), sep="\t")
    assert code == 0
    assert got.columns.tolist() == expected.columns.tolist()
    assert got.feature.tolist() == expected.feature[:7].tolist()
    assert got.q_value.tolist() == pytest.approx(expected.q_value[:7].tolist(), rel=1e-3)
    assert "emb-left" in err
    strict = pd.read_csv(StringIO(run(f"{DIFF} --min-tokens 3 --alpha 0.01 --match-length --top 1000")[1]), sep="\t")
    again = sl.diff(*pair, min_tokens=3, alpha=0.01, match_length=True).to_frame()
    assert strict.feature.tolist() == again.feature.tolist()
    named = run(f"{DIFF} --names one another --top 1")[2]
    assert "in one;" in named
    assert "in another." in named


@pytest.mark.parametrize("kind", ["csv", "parquet", "html"])
def test_diff_writes_files(run, pair, tmp_path, kind):
    path = tmp_path / f"found.{kind}"
    assert run(f"{DIFF} --out {path}")[:2] == (0, f"{path}\n")
    if kind == "html":
        assert "<script src" not in path.read_text()
        assert "emb-left" in path.read_text()
    else:
        got = pd.read_csv(path) if kind == "csv" else pd.read_parquet(path)
        pd.testing.assert_frame_equal(got, sl.diff(*pair).to_frame(), check_dtype=False)


def test_train_sae_and_use_it(run, place, tmp_path):
    line = (f"train-sae {{place}}/left.jsonl --field body --model {{place}}/model --site {SITE} --n-tokens 2000 "
            f"--d-sae 48 --k 3 --out {tmp_path}/run --quiet")
    code, out, err = run(line)
    assert (code, out) == (0, f"{tmp_path}/run/sae\n")
    sae = sl.SAE.load(tmp_path / "run" / "sae")
    assert (sae.d_sae, sae.k, sae.site) == (48, 3, SITE)
    assert "fvu" in err
    assert run(line)[:2] == (0, out)  # it is there already
    assert run(f"{EMBED} --sae {tmp_path}/run/sae --out {tmp_path}/out")[0] == 0
    assert SAEEmbedding.load(tmp_path / "out").d_sae == 48


def test_fetch_says_where_the_model_lies(run, place):
    code, out, err = run("fetch {place}/model --sae {place}/sae")
    assert (code, out) == (0, f"{place}/model\n")
    assert "d_sae=64" in err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (EMBED + " --out {place}/x --pooling avg", "pooling='avg' is unknown"),
        (EMBED.replace("body", "bodi") + " --out {place}/x", "Closest: body"),
        (EMBED.replace("left", "lefd") + " --out {place}/x", "Closest: left.jsonl"),
        (EMBED + " --out {place}/model", "holds other files"),
        (EMBED + " --out {place}/x --sae {place}/nothing", "nothing"),
        (EMBED.replace("{place}/model", "{place}/models") + " --out {place}/x", "does not exist"),
        (DIFF + " --out x.xlsx", "valid endings are .html, .csv, .parquet"),
        ("diff {place}/emb-left {place}/nothing", "holds no embedding"),
        (DIFF + " --alpha 3", "alpha=3.0"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(run, pair, place, line, says):
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert err.startswith("sparselens: ")
    assert len(err.splitlines()) == 1
    assert says in err
    assert not (place / "x").exists()


@pytest.mark.parametrize("line", ["", "embed", "embd x", "diff a", "train-sae x --out y"])
def test_wrong_usage_exits_with_2(line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    assert "usage: sparselens" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in ("embed", "diff", "train-sae", "fetch"))
    for name in ("embed", "diff", "train-sae", "fetch"):
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0


@pytest.mark.slow
def test_as_a_module_interrupted_and_gone_on_with(place, tmp_path, capsys):
    frame = pd.DataFrame({"text": [f"{text} {i}" for i in range(500) for text in TEXTS if text.strip()]})
    frame.to_parquet(tmp_path / "many.parquet")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    line = [sys.executable, "-m", "sparselens", "embed", str(tmp_path / "many.parquet"), "--model",
            str(place / "model"), "--sae", str(place / "sae"), "--out", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # where the tests run in the background the signal is ignored, and a child inherits that
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(line, env=env, preexec_fn=heed, **pipes) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("out/block-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (out, err.splitlines()[-1]) == ("", "sparselens: interrupted. The same command goes on where it stopped.")
    assert main(line[3:]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path}/out\n"
    assert "embed" in shown.err  # the bar
    assert SAEEmbedding.load(tmp_path / "out").documents.text.tolist() == frame.text.tolist()
