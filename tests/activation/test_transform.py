"""The orthogonalising transform: the same function, orthogonal columns, exact undo."""

import pytest
import torch

import sparselens as sl
from sparselens.activation import Orthogonal
from sparselens.activation.linears import linears
from sparselens.errors import FitError
from tests import tiny
from tests.activation.test_sparsifier import TEXTS
from tests.models.test_engine import same, state


def live(family="llama", backend="torch"):
    """A model whose norms have gains, and whose biases are not zero."""
    native = tiny.model(family)
    generator = torch.Generator().manual_seed(1)
    for parameter in native.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return sl.wrap(native, tiny.tokenizer(), backend=backend)


@pytest.fixture(scope="module", params=["torch", "nnsight", "transformer_lens"])
def backend(request):
    return request.param


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])  # Gemma ties its embeddings, and its gain is 1 + weight
def test_logits_stay_and_every_weight_comes_back_bit_for_bit(family, backend):
    m = live(family, backend)
    tied = m.module.get_input_embeddings().weight is m.module.get_output_embeddings().weight
    before, clean = state(m), m.run(TEXTS).logits
    for thing in (Orthogonal(), sl.WINA(0.0, transform="orthogonal")):
        with m.attach(thing):
            assert not same(before, state(m))
            assert (m.run(TEXTS).logits - clean).abs().max() < 1e-4
            for side in ("left", "right"):
                out = m.run(TEXTS, padding_side=side)
                flat = m.run(TEXTS, padding_side="right")
                assert torch.allclose(out.logits[out.mask], flat.logits[flat.mask], atol=1e-4)
    assert same(before, state(m))
    assert torch.equal(m.run(TEXTS).logits, clean)
    again = m.module.get_input_embeddings().weight is m.module.get_output_embeddings().weight
    assert tied == again and (backend != "torch" or family != "gemma" or tied)


def test_generating_is_as_before(backend):
    m = live("llama", backend)
    before = m.generate(TEXTS, 8)
    with m.attach(Orthogonal()):
        assert m.generate(TEXTS, 8) == before


def test_biases_turn_with_the_stream():
    import transformers as t

    config = t.LlamaConfig(**tiny._LLAMA, attention_bias=True, mlp_bias=True)
    torch.manual_seed(0)
    native = t.LlamaForCausalLM(config).eval()
    for parameter in native.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    m = sl.wrap(native, tiny.tokenizer())
    clean = m.run(TEXTS).logits
    with m.attach(Orthogonal()):
        assert (m.run(TEXTS).logits - clean).abs().max() < 1e-3


def test_columns_of_k_and_gate_are_orthogonal_and_their_norms_singular_values():
    m = live()
    spectra = {one.site: torch.linalg.svdvals(one.weight.double() * gain(m, one)) for one in linears(m)
               if one.proj in ("k", "gate")}
    with m.attach(Orthogonal()):
        for one in linears(m):
            if one.proj in ("k", "gate"):
                weight = one.weight.double()
                gram = weight.T @ weight
                off = gram - gram.diag().diag()
                assert off.abs().max() < 1e-6 * gram.abs().max()
                norms = weight.norm(dim=0)
                wanted = spectra[one.site]
                assert torch.allclose(norms[: len(wanted)], wanted, rtol=1e-4)
                assert norms[len(wanted) :].max() < 1e-6 * wanted[0] if len(norms) > len(wanted) else True


def gain(m, linear):
    block = m.module.model.layers[linear.layer]
    norm = block.post_attention_layernorm if linear.proj == "gate" else block.input_layernorm
    return norm.weight.detach().double()


def test_k_loses_nothing_up_to_its_rank():
    """k reads 32 channels and has rank 16: half of them are of no use to it."""
    m = live()
    for sparsity, lossless in ((0.5, True), (0.6, False)):
        counted = sl.WINA({"k": sparsity}, transform="orthogonal", dense_prefix=0).counted(m)
        with m.attach(counted):
            m.run(TEXTS)
        errors = [row["error"] for row in counted.parts() if row["proj"] == "k"]
        assert (max(errors) < 1e-5) if lossless else (min(errors) > 1e-3)


def test_weighted_scores_win_in_every_gated_layer_of_the_transformed_model():
    m = live()
    errors = []
    for thing in (sl.WINA, sl.TEAL):
        counted = thing({"gate": 0.5, "k": 0.6}, transform="orthogonal", dense_prefix=0).counted(m)
        with m.attach(counted):
            m.run(TEXTS)
        errors.append({row["site"]: row["error"] for row in counted.parts() if row["error"]})
    assert len(errors[0]) == 6
    # in the first layer the inputs are the same for both, and the weighted choice is optimal
    first = {site for site in errors[0] if site.startswith("blocks.0.attn")}
    assert all(errors[0][site] < errors[1][site] for site in first)


def test_extra_weights_are_reported():
    m = live()
    plain, turned = (sl.WINA(0.5, transform=t, dense_prefix=0).counted(m) for t in (None, "orthogonal"))
    for counted in (plain, turned):
        with m.attach(counted):
            m.run(TEXTS)
    added = turned.numbers()["weight_bytes"] - plain.numbers()["weight_bytes"]
    assert added == 4 * 2 * 3 * 32 * 32
    assert turned.numbers()["sparsity"] == plain.numbers()["sparsity"]


def test_it_is_made_once_and_again_when_a_weight_changes():
    from sparselens.activation.transform import rotation

    m = live()
    first = rotation(m)
    assert rotation(m) is first
    with torch.no_grad():
        m.linear("blocks.0.mlp.gate.hook_in").weight.mul_(2)
    clean = m.run(TEXTS).logits
    assert rotation(m) is not first
    with m.attach(Orthogonal()):
        assert (m.run(TEXTS).logits - clean).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "mixtral"])
def test_other_families_are_refused(family):
    with pytest.raises(FitError, match="does not fit .*needs RMSNorm"):
        Orthogonal().edits(tiny.live(family))


def test_a_model_that_does_something_of_its_own_to_its_stream_is_found_out():
    m = live()
    before = state(m)
    norm = m.module.model.layers[1].post_attention_layernorm
    handle = norm.register_forward_pre_hook(lambda _module, args: (args[0] + torch.linspace(0, 5, 32),))
    with pytest.raises(FitError, match="its logits moved by"):
        Orthogonal().edits(m)
    handle.remove()
    assert same(before, state(m))
    Orthogonal().edits(m)
