"""The closed table: names, aliases, globs, errors."""

import pytest

from sparselens.errors import SiteError
from sparselens.models.sites import KINDS, SiteTable, expand, order, split
from tests import tiny


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


def test_every_kind_and_alias_is_unique():
    names = [n for k in KINDS for n in (k.name, *k.aliases)]
    assert len(names) == len(set(names))


def test_every_alias_resolves_to_its_kind(m):
    for kind in KINDS:
        for alias in kind.aliases:
            assert m.resolve(alias.replace("{i}", "1")) == kind.name.replace("{i}", "1")


@pytest.mark.parametrize(
    ("alias", "site"),
    [
        ("model.layers.1", "blocks.1.hook_resid_post"),
        ("model.layers[1].output", "blocks.1.hook_resid_post"),
        ("model.layers[1].input", "blocks.1.hook_resid_pre"),
        ("layers.1", "blocks.1.hook_resid_post"),
        ("layers.2.mlp", "blocks.2.hook_mlp_out"),
        ("model.layers.1.mlp.down_proj.input", "blocks.1.mlp.hook_post"),
        ("model.layers.0.self_attn.o_proj.input", "blocks.0.attn.hook_z"),
        ("embed_tokens", "hook_embed"),
        ("lm_head", "unembed.hook_out"),
    ],
)
def test_module_paths_are_aliases(m, alias, site):
    assert m.resolve(alias) == site


def test_gpt2_paths():
    m = tiny.live("gpt2")
    assert m.resolve("h.1.mlp") == "blocks.1.hook_mlp_out"
    assert m.resolve("transformer.h.0") == "blocks.0.hook_resid_post"


def test_globs_and_execution_order(m):
    assert m.sites("blocks.*.hook_resid_post") == [f"blocks.{i}.hook_resid_post" for i in range(3)]
    assert m.sites("blocks.[01].hook_out") == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    every = m.sites()
    assert every == sorted(every, key=order)
    assert every[0] == "hook_embed" and every[-1] == "unembed.hook_out"


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pst", "blocks.1.resid_post", "nonsense"])
def test_unknown_site_names_the_closest(m, name):
    with pytest.raises(SiteError, match="unknown site"):
        m.resolve(name)


def test_typo_suggests_the_right_name(m):
    with pytest.raises(SiteError, match="Closest: blocks.1.hook_resid_post"):
        m.resolve("blocks.1.hook_resid_pst")


def test_layer_out_of_range(m):
    with pytest.raises(SiteError, match="layers 0 to 2"):
        m.resolve("blocks.3.hook_resid_post")


def test_glob_without_hits(m):
    with pytest.raises(SiteError, match="no site matches"):
        m.sites("blocks.*.hook_resid_pst")


def test_not_a_string(m):
    with pytest.raises(SiteError, match="named by a string"):
        m.resolve(3)


def test_a_site_the_model_lacks_says_so():
    m = tiny.live("gpt_neox")  # parallel residual: there is no middle
    with pytest.raises(SiteError, match="has no site"):
        m.resolve("blocks.0.hook_resid_mid")


def test_disabled_site_gives_the_reason():
    table = SiteTable([k.name for k in KINDS], 2, {})
    table.disable("blocks.{i}.hook_resid_mid", "because.")
    with pytest.raises(SiteError, match="switched off for this model: because"):
        table.resolve("blocks.1.hook_resid_mid")
    assert "blocks.1.hook_resid_mid" not in table.names()


def test_split_and_expand():
    assert split("blocks.12.attn.hook_q") == ("blocks.{i}.attn.hook_q", 12)
    assert split("hook_embed") == ("hook_embed", None)
    assert expand("blocks.{i}.attn.hook_q", 2) == ["blocks.0.attn.hook_q", "blocks.1.attn.hook_q"]
