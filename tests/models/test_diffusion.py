"""Masked diffusion: training examples, the sampler, files, and the models of others."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sparselens as sl
from sparselens import datasets
from sparselens.errors import FileFormatError, FitError, InputError
from sparselens.models.diffusion import DiffusionLM, masked
from sparselens.models.tiny import IGNORE, bidirectional, lm_loss, n_parameters, tiny_lm

MASK = 10
SIZES = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 20, "max_position_embeddings": 32}
SMALL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "length": 32}


def host(seed: int = 0) -> DiffusionLM:
    return DiffusionLM(sl.wrap(tiny_lm(11, **SMALL, causal=False, seed=seed)), MASK)


def test_examples_hide_answers_only_and_weigh_them_by_their_share():
    ids = torch.randint(0, 10, (400, 24))
    example = masked(ids, 14, MASK, torch.Generator().manual_seed(0))
    hidden = example.ids == MASK
    assert not hidden[:, :14].any()
    assert torch.equal(example.ids[~hidden], ids[~hidden])
    assert torch.equal(example.targets[hidden], ids[hidden]) and (example.targets[~hidden] == IGNORE).all()
    share = 1 / (example.weights[:, 0] * 10)
    assert share.min() >= 0.05 and share.max() <= 1
    assert (hidden[:, 14:].float().mean(1) - share).abs().mean() < 0.13  # ten draws a row
    # a model that knows nothing pays log(vocabulary) for each token, whatever was hidden
    model = tiny_lm(11, **SMALL, causal=False)
    model.lm_head.weight.data.zero_()
    assert lm_loss(model, example).item() == pytest.approx(torch.log(torch.tensor(11.0)).item(), rel=0.05)


def by_hand(lm: DiffusionLM, prompt, new: int, steps: int, block: int):
    """The sampler with loops, one row at a time."""
    rows = []
    for row in prompt:
        ids = torch.cat([row, torch.full((new,), MASK)])
        each = steps // (new // block)
        for start in range(len(row), len(row) + new, block):
            for t in range(each):
                count = block // each + (t < block % each)
                chance = lm.live.module(input_ids=ids[None]).logits[0].detach()
                chance[:, MASK] = -torch.inf
                best = chance.softmax(-1).max(-1)
                open_ = [i for i in range(start, start + block) if ids[i] == MASK]
                for i in sorted(open_, key=lambda i: -best.values[i])[:count]:
                    ids[i] = best.indices[i]
        rows.append(ids)
    return torch.stack(rows)


@pytest.mark.parametrize(("steps", "block"), [(8, 8), (3, 8), (4, 4), (8, 2), (1, 8)])
def test_sampler_equals_loops(steps: int, block: int):
    lm, prompt = host(), torch.randint(0, 10, (3, 6))
    out = lm.generate(prompt, 8, steps=steps, block=block)
    assert torch.equal(out.ids, by_hand(lm, prompt, 8, steps, block))
    assert not (out.ids == MASK).any()
    assert int(out.step.max()) == steps - 1
    assert (out.confidence > 0).all() and (out.confidence <= 1).all()
    for begin in range(0, 8, block):  # block by block
        assert (out.step[:, begin : begin + block] // (steps * block // 8) == begin // block).all()


def test_temperature_draws_by_seed():
    lm, prompt = host(), torch.randint(0, 10, (2, 4))
    one, two, three = (lm.generate(prompt, 8, temperature=5.0, seed=s).ids for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, three)
    hot = torch.cat([lm.generate(prompt, 8, steps=1, temperature=1e4, seed=s).answers.flatten() for s in range(30)])
    assert torch.bincount(hot, minlength=10).min() > 480 / 10 * 0.5  # nearly even over the ten tokens


def test_attachments_see_where_the_writing_is():
    lm, seen = host(), []

    def look(x, context):
        seen.append(context.denoising)

    with lm.live.attach(sl.edit("blocks.0.hook_resid_pre", look)):
        lm.generate(torch.zeros(1, 5, dtype=torch.long), 4, steps=2)
        lm.live.run(torch.zeros(1, 5, dtype=torch.long))
    assert [(d.step, d.steps, d.prompt) for d in seen[:2]] == [(0, 2, 5), (1, 2, 5)]
    assert seen[2] is None
    before = host().generate(torch.zeros(1, 5, dtype=torch.long), 4).ids
    with lm.live.attach(sl.ablate("blocks.1.hook_mlp_out")):
        changed = lm.generate(torch.zeros(1, 5, dtype=torch.long), 4)
    after = lm.generate(torch.zeros(1, 5, dtype=torch.long), 4)
    assert torch.equal(after.ids, before) and not torch.equal(changed.confidence, after.confidence)


def test_saved_and_opened_again(tmp_path):
    lm = host()
    lm.save(tmp_path / "model")
    again = sl.load_diffusion(tmp_path / "model", device="cpu")
    ids = torch.randint(0, 10, (2, 9))
    assert torch.equal(again.logits(ids), lm.logits(ids)) and again.mask_id == MASK and not again.live.causal
    frame = again.generate(ids, 3).to_frame()
    assert frame["position"].tolist() == [9, 10, 11] * 2 and frame["token"].between(0, 9).all()


def foreign(folder, config: dict, tensors: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors")


def llada(model) -> tuple[dict, dict]:
    """A Llama under the names that LLaDA's own code uses."""
    c = model.config
    config = {"model_type": "llada", "d_model": c.hidden_size, "n_layers": c.num_hidden_layers, "n_heads": 2,
              "n_kv_heads": 2, "mlp_hidden_size": c.intermediate_size, "embedding_size": 11, "rms_norm_eps": 1e-6,
              "max_sequence_length": 32, "rope_theta": 500.0, "weight_tying": False, "mask_token_id": MASK}
    names = {"self_attn.q_proj": "q_proj", "self_attn.k_proj": "k_proj", "self_attn.v_proj": "v_proj",
             "self_attn.o_proj": "attn_out", "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj",
             "mlp.down_proj": "ff_out", "input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm"}
    tensors = {}
    for name, value in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        name = name.replace("model.layers.", "model.transformer.blocks.").replace("lm_head", "model.transformer.ff_out")
        name = name.replace("model.embed_tokens", "model.transformer.wte")
        name = name.replace("model.norm", "model.transformer.ln_f")
        tensors[name] = value
    return config, tensors


def test_llada_is_a_llama_that_sees_both_sides(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    model = bidirectional(LlamaForCausalLM(config).eval())
    foreign(tmp_path / "l", *llada(model))
    lm = sl.load_diffusion(tmp_path / "l", device="cpu")
    ids = torch.randint(0, 10, (2, 9))
    expected = model(input_ids=ids).logits
    assert torch.allclose(lm.logits(ids)[..., :MASK], expected[..., :MASK], atol=1e-6)
    assert not lm.shifted and lm.mask_id == MASK


def test_dream_says_each_token_one_position_early(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**SIZES, num_key_value_heads=1)
    model = bidirectional(Qwen2ForCausalLM(config).eval())
    settings = config.to_dict() | {"model_type": "Dream", "mask_token_id": MASK, "is_causal": True}
    foreign(tmp_path / "d", settings, model.state_dict())
    lm = sl.load_diffusion(tmp_path / "d", device="cpu")
    ids = torch.randint(0, 10, (2, 9))
    expected = model(input_ids=ids).logits[..., :MASK]
    got = lm.logits(ids)[..., :MASK]
    assert torch.allclose(got[:, 1:], expected[:, :-1], atol=1e-6)
    assert torch.allclose(got[:, 0], expected[:, 0], atol=1e-6)


def test_foreign_weights_fit_or_are_refused(tmp_path):
    config, tensors = llada(tiny_lm(11, **SMALL, causal=False))
    tensors = {k: v for k, v in tensors.items() if "ff_norm" not in k}
    foreign(tmp_path / "m", config | {"weight_tying": True, "mlp_hidden_size": 42}, tensors)
    with pytest.raises(FileFormatError, match="missing.*post_attention_layernorm"):
        sl.load_diffusion(tmp_path / "m")
    config, tensors = llada(tiny_lm(11, **SMALL, causal=False))
    foreign(tmp_path / "n", config | {"mlp_hidden_size": 41}, tensors)
    with pytest.raises(FileFormatError, match="size mismatch"):
        sl.load_diffusion(tmp_path / "n")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(FileFormatError, match="damaged"):
        sl.load_diffusion(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"no \.safetensors"):
        sl.load_diffusion(tmp_path / "m")


def test_the_model_that_comes_along_does_what_its_card_says():
    lm = sl.load_diffusion("recall-128", device="cpu")
    card = json.loads((Path(__file__).parents[2] / "data" / "diffusion" / "recall-128" / "card.json").read_text())
    ids, prompt = datasets.recall_rows(64, seed=3, **card["rows"])
    for steps in (1, 8):
        out = lm.generate(ids[:, :prompt], ids.shape[1] - prompt, steps=steps)
        assert float((out.ids == ids)[:, prompt:].float().mean()) > card["right_tokens_by_steps"][str(steps)] - 0.04
    assert lm.mask_id == datasets.RECALL_MASK and card["parameters"] == n_parameters(lm.live.module)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: DiffusionLM(sl.wrap(tiny_lm(11, **SMALL)), MASK), FitError, "is causal"),
        (lambda: DiffusionLM(sl.wrap(tiny_lm(11, **SMALL, causal=False)), 11), InputError, "0 to 10"),
        (lambda: host().generate(torch.zeros(1, 30, dtype=torch.long), 4), InputError, "at most 32"),
        (lambda: host().generate(torch.zeros(1, 3, dtype=torch.long), 8, block=3), InputError, "block=3"),
        (lambda: host().generate(torch.zeros(1, 3, dtype=torch.long), 8, block=4, steps=3), InputError, "of 2, at"),
        (lambda: host().generate(torch.zeros(1, 3, dtype=torch.long), 8, steps=9), InputError, "at most 8"),
        (lambda: sl.load_diffusion("recal"), InputError, "Closest: recall-128"),
        (lambda: sl.load_diffusion("./nowhere"), InputError, "no folder"),
    ],
)
def test_bad_input(call, error, says: str):
    with pytest.raises(error, match=says):
        call()
