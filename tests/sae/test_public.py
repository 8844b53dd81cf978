"""The table of public SAEs, and fetching by name, from a hub on this machine."""

import csv
import gzip
import io
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch

import sparselens as sl
from sparselens.errors import FetchError, InputError
from sparselens.sae import SAE, public
from sparselens.sae.public import PublicSAE
from tests.sae.fake_hub import serving
from tests.sae.test_sae import random_sae

FILE = Path(__file__).parents[2] / "data" / "registry" / "public_saes.csv.gz"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub, with the real client turned towards it and a cache of its own."""
    from huggingface_hub import constants

    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        url = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.HfApi, "endpoint", hub.address, raising=False)
        yield hub


def test_the_table_is_small_and_whole():
    assert FILE.stat().st_size < 300_000
    lines = list(csv.DictReader(io.StringIO(gzip.decompress(FILE.read_bytes()).decode())))
    assert len(lines) == len(public.table()) == 13_857
    assert len({(line["release"], line["id"]) for line in lines}) == 13_857
    assert len({line["release"] for line in lines}) == 170
    assert all(s.l0 is None or s.l0 > 0 for s in public.table())
    assert sum(s.width is None for s in public.table()) < 400


def test_sites_are_this_packages_own():
    from sparselens.models.sites import BY_NAME, split

    places = {split(place)[0] for s in public.table() for place in (s.site, s.site_out) if place}
    assert places <= set(BY_NAME) and len(places) >= 6


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", ("blocks.20.hook_resid_post", "", 16384, 71)),
        ("gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_386", ("blocks.3.attn.hook_z", "", 16384, 386)),
        ("gemma-scope-2-4b-pt-mlp/layer_29_width_262k_l0_medium", ("blocks.29.hook_mlp_out", "", 262144, 60)),
        (
            "gemma-scope-2-4b-pt-transcoders/transcoder/layer_17_width_16k_l0_small_affine",
            ("blocks.17.mlp.hook_in", "blocks.17.hook_mlp_out", 16384, 20),
        ),
        ("gpt2-small-res-jb/blocks.10.hook_resid_pre", ("blocks.10.hook_resid_pre", "", None, 52)),
        ("gpt2-small-hook-z-kk/blocks.5.hook_z", ("blocks.5.attn.hook_z", "", 49152, 17)),
        ("llama_scope_lxm_8x/l8m_8x", ("blocks.8.hook_mlp_out", "", 32768, 50)),
        ("qwen-scope-3.5-27b-w80k-l50/layer5", ("blocks.5.hook_resid_post", "", 81920, 50)),
        ("llama_scope_r1_distill/l11r_800m_openr1_math", ("blocks.11.hook_resid_post", "", 32768, None)),
        (
            "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109/blocks.19.hook_resid_post__trainer_2_step_0",
            ("blocks.19.hook_resid_post", "", 4096, None),
        ),
    ],
)
def test_facts_of_some(name, facts):
    sae = public.find(name)
    assert (sae.site, sae.site_out, sae.width, sae.l0) == facts and sae.name == name


def test_a_search_narrows_down():
    found = sl.find_saes("gemma-2-2b", site="blocks.12.hook_resid_post", width=16384)
    assert 5 < len(found) < 200 and all(s.model == "gemma-2-2b" and s.width == 16384 for s in found)
    assert len(sl.find_saes("google/Gemma-2-2B")) == len(sl.find_saes("gemma-2-2b")) > 1000
    assert all(50 <= s.l0 <= 80 for s in sl.find_saes("gemma-2-2b", l0=(50, 80)))
    assert {s.site for s in sl.find_saes("gpt2", site="blocks.3.*")} > {"blocks.3.hook_resid_pre"}
    assert len(sl.find_saes()) >= 13_857
    written = sl.find_saes("gemma-2-2b", site="blocks.5.hook_mlp_out")
    assert any(s.site_out == "blocks.5.hook_mlp_out" for s in written)


def test_shipped_ones_are_found_too_and_load_by_their_name():
    found = sl.find_saes("smollm2-135m-instruct", site="blocks.14.hook_resid_post")
    assert {entry.id.split("/")[1] for entry in found} >= {"topk-4608-k32", "mp-4608-k32", "itda-k32"}
    for entry in found:
        assert SAE.load(entry.name).d_sae == entry.width and 25 < entry.l0 < 40


def test_the_result_shows_itself():
    found = sl.find_saes("gemma-2-2b")
    frame = found.to_frame()
    assert list(frame)[:2] == ["name", "model"] and len(frame) == len(found) and found[0] in list(found)
    assert repr(found).startswith(f"{len(found):,} SAEs\n") and "more" in repr(found)
    assert "the first 20" in found._repr_html_()


def test_unknown_names_name_the_closest():
    with pytest.raises(InputError, match="model 'gema-2-2b'.*Closest: gemma-2-2b"):
        sl.find_saes("gema-2-2b")
    with pytest.raises(InputError, match="site 'blocks.12.hook_resid_pots'.*Closest: blocks.12.hook_resid_post"):
        sl.find_saes("gemma-2-2b", site="blocks.12.hook_resid_pots")
    with pytest.raises(InputError, match="has no SAE 'layer_20/width_16k/average_l0_7'.*Closest: layer_20"):
        SAE.load("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_7")
    with pytest.raises(InputError, match="attend over positions"):
        SAE.load("temporal-sae-gemma-2-2b/blocks.12.hook_resid_post")


def test_a_public_sae_is_fetched_read_and_completed(hub, monkeypatch, tmp_path):
    sae = random_sae()
    folder = sae.save(tmp_path / "made", format="saelens")
    cfg = json.loads((folder / "cfg.json").read_text()) | {"normalize_activations": "expected_average_only_in"}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    hub.repos["org/repo"] = {"main": {f"v1/{p.name}": p.read_bytes() for p in folder.iterdir()}}
    listed = PublicSAE("toy-release", "blocks.1.x", "org/repo", "v1", "saelens", "toy", "blocks.1.hook_resid_post", "",
                       sae.d_sae, 4.0, "0.5", True)  # fmt: skip
    monkeypatch.setattr(public, "table", lambda: (listed,))
    got = SAE.load("toy-release/blocks.1.x")
    assert (got.site, got.model_name, got.metadata["l0"]) == ("blocks.1.hook_resid_post", "toy", 4.0)
    assert got.metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    assert got.provenance["public"] == "toy-release/blocks.1.x"
    x = torch.randn(5, sae.d_in)
    torch.testing.assert_close(got(x), sae(x / 2) * 2)


def test_what_was_pushed_is_fetched_by_branch_commit_and_from_the_cache(hub, tmp_path):
    first, second = random_sae(), random_sae()
    address = first.push_to_hub("org/mine/blocks.1/a", token="t")
    assert address.endswith(hub.commit("org/mine", "main"))
    second.push_to_hub("org/mine/blocks.1/a", revision="v2", token="t")
    x = torch.randn(4, first.d_in)
    cache = tmp_path / "elsewhere"
    main = SAE.from_pretrained("org/mine/blocks.1/a", cache_dir=cache)
    torch.testing.assert_close(main(x), first(x), rtol=0, atol=0)
    for revision in ("v2", hub.commit("org/mine", "v2")):
        got = SAE.from_pretrained("hf://org/mine/blocks.1/a", revision=revision, cache_dir=cache)
        torch.testing.assert_close(got(x), second(x), rtol=0, atol=0)
    asked = len(hub.asked)
    offline = SAE.from_pretrained("org/mine/blocks.1/a", cache_dir=cache, local_files_only=True)
    assert torch.equal(offline(x), main(x)) and len(hub.asked) == asked
    with pytest.raises(FetchError, match="org/mine"):
        SAE.from_pretrained("org/mine/blocks.1/a", cache_dir=tmp_path / "empty", local_files_only=True)
    with pytest.raises(FetchError):
        SAE.from_pretrained("org/mine/blocks.1/a", revision="v3", cache_dir=cache)
    with pytest.raises(FetchError, match="no public release"):
        SAE.load("org/nothing")
