"""The table of linear layers: families, orientation, and what is refused."""

import pytest
import torch
from torch import nn

from sparselens.activation.linears import checked_sparsity, linears, spread
from sparselens.errors import FitError, InputError, SiteError
from tests import tiny

SERVED = {
    "llama": "q k v o gate up down",
    "qwen3": "q k v o gate up down",
    "gemma2": "q k v o gate up down",
    "gpt2": "o up down",
    "gpt_neox": "o up down",
    "mixtral": "q k v o",
}


@pytest.mark.parametrize("family", SERVED)
def test_families_serve_what_stands_alone(family):
    m = tiny.live(family)
    found = linears(m)
    assert [linear.proj for linear in found] == SERVED[family].split() * 3
    assert [linear.layer for linear in found] == sorted(linear.layer for linear in found)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("backend", ["torch", "transformer_lens", "nnsight"])
def test_the_weight_is_out_by_in_whatever_the_module_keeps(family, backend):
    m = tiny.live(family, backend)
    for linear in linears(m, "blocks.1.*.hook_post"):
        x = torch.randn(3, linear.d_in)
        bias = 0 if linear.bias is None else linear.bias
        assert torch.allclose(linear.module(x), x @ linear.weight.T + bias, atol=1e-5)
        assert linear.numel == linear.d_in * linear.d_out == linear.module.weight.numel()


def test_a_site_that_no_projection_reads_is_refused():
    with pytest.raises(SiteError, match="not the input of a projection.*blocks.0.attn.q.hook_in"):
        linears(tiny.live(), "blocks.0.hook_resid_pre")


@pytest.mark.parametrize("how", ["int8", "float8", "packed"])
def test_a_quantised_layer_is_refused(how):
    m = tiny.live()
    layer = m.module.model.layers[1].mlp.up_proj
    if how == "packed":  # as GPTQ and AWQ keep it: no tensor called weight
        del layer.weight
        layer.qweight = torch.zeros(4, 4, dtype=torch.int32)
    else:
        dtype = {"int8": torch.int8, "float8": torch.float8_e4m3fn}[how]
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(FitError, match="blocks.1.mlp.in.hook_in.*quantised"):
        linears(m)


@pytest.mark.parametrize("wrong", [-0.1, 1, 1.0, 50, float("nan"), "0.5", None, True])
def test_a_sparsity_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match="sparsity"):
        checked_sparsity(wrong)


def test_a_percentage_is_understood_as_a_slip():
    with pytest.raises(InputError, match=r"Did you mean 0\.5\?"):
        checked_sparsity(50)


def test_sparsity_by_name_the_last_counts_and_the_rest_is_dense():
    m = tiny.live()
    found = linears(m)
    got = spread({"gate": 0.5, "blocks.0.*": 0.25, "blocks.0.mlp.hook_post": 0.75}, m, found)
    for linear in found:
        wanted = 0.5 if linear.proj == "gate" else 0.0
        if linear.layer == 0:
            wanted = 0.75 if linear.proj == "down" else 0.25
        assert got[linear.site] == wanted
    with pytest.raises(InputError, match="'gat'.*Closest: gate"):
        spread({"gat": 0.5}, m, found)
    with pytest.raises(InputError, match="no projection and no input of one"):
        spread({"blocks.0.hook_resid_pre": 0.5}, m, found)
