"""Tiny seeded models of many families, and a tokenizer for them, built here: no test needs a hub."""

import functools
import tempfile

import torch
from torch import nn

VOCAB = 300
CHAT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def tokenizer():
    """A byte-level tokenizer (256 bytes and three special tokens) with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(special + alphabet)}
    for merged in ("Ġt", "he", "Ġa", "in"):
        vocab[merged] = len(vocab)
    merges = [("Ġ", "t"), ("h", "e"), ("Ġ", "a"), ("i", "n")]
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT,
    )
    folder = tempfile.mkdtemp(prefix="tiny-tokenizer-")
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


_LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    head_dim=8,
    eos_token_id=2,
    bos_token_id=1,
    pad_token_id=2,
)


def _build(name: str) -> nn.Module:
    import transformers as t

    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**_LLAMA))
    if name == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**_LLAMA))
    if name == "gemma":
        return t.GemmaForCausalLM(t.GemmaConfig(**_LLAMA))
    if name == "gemma2":
        config = t.Gemma2Config(**_LLAMA, sliding_window=16, query_pre_attn_scalar=8)
        return t.Gemma2ForCausalLM(config)
    if name == "mixtral":
        return t.MixtralForCausalLM(t.MixtralConfig(**_LLAMA, num_local_experts=4, num_experts_per_tok=2))
    if name == "gpt2":
        config = t.GPT2Config(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=256,
            eos_token_id=2,
            bos_token_id=1,
            pad_token_id=2,
        )
        return t.GPT2LMHeadModel(config)
    if name == "gpt_neox":
        config = t.GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=256,
            eos_token_id=2,
            bos_token_id=1,
            pad_token_id=2,
        )
        return t.GPTNeoXForCausalLM(config)
    raise KeyError(name)


FAMILIES = ("llama", "gpt2", "qwen3", "gpt_neox", "gemma", "gemma2", "mixtral")


def model(name: str = "llama", seed: int = 0) -> nn.Module:
    """A fresh 3-layer model of the family `name` with seeded random weights, in eval mode, float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = _build(name)
        for p in built.parameters():  # larger than the usual initialisation, so that attention is far from uniform
            p.data += 0.1 * torch.randn_like(p)
    built.config.architectures = [type(built).__name__]
    return built.eval()


def llama() -> nn.Module:
    return model("llama")


def gpt2() -> nn.Module:
    return model("gpt2")


def live(name: str = "llama", backend: str = "torch", seed: int = 0):
    """A tiny `LiveModel`."""
    import sparselens as sl

    return sl.wrap(model(name, seed), tokenizer(), backend=backend)
