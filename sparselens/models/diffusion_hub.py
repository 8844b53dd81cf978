"""Opening masked diffusion models: the small one that comes along, and LLaDA and Dream from a hub or a folder.

Both are known decoders without the causal mask, so transformers' own Llama and Qwen2 compute them: no code from a hub
is run.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparselens.errors import FetchError, FileFormatError, InputError, closest
from sparselens.files import read_json
from sparselens.models.diffusion import DiffusionLM
from sparselens.models.load import wrap
from sparselens.models.tiny import bidirectional

_HERE = Path(__file__).resolve().parent.parent
_DATA = (_HERE / "_data" / "diffusion", _HERE.parent / "data" / "diffusion")  # installed, and in a checkout
SHIPPED = ("recall-128",)

_LLADA = {  # LLaDA's names -> Llama's
    r"model\.transformer\.wte\.": "model.embed_tokens.",
    r"model\.transformer\.ln_f\.": "model.norm.",
    r"model\.transformer\.ff_out\.": "lm_head.",
    r"model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"model\.transformer\.blocks\.(\d+)\.([qkv])_proj\.": r"model.layers.\1.self_attn.\2_proj.",
    r"model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
_LLADA_SIZES = {  # Llama's settings -> LLaDA's
    "vocab_size": "embedding_size", "hidden_size": "d_model", "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads", "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length", "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "weight_tying",
}


def load_diffusion(
    name: str | Path = "recall-128", *, device: Any = None, dtype: torch.dtype | None = None
) -> DiffusionLM:
    """Open a masked diffusion language model.

    Args:
        name: `recall-128` (small, comes along: it looks values up, see `datasets.recall_rows`), a hub id or a folder of
            a LLaDA or Dream model, or a folder that `DiffusionLM.save` wrote.
        device: CUDA when there is one, else the CPU, by default.
        dtype: float32 on a CPU by default, bfloat16 elsewhere.

    Raises:
        InputError: no such folder, or not a model of a known kind.
        FetchError: not to be had from the hub. FileFormatError: weights that do not fit the model.
    """
    folder = _folder(str(name))
    config = read_json(folder / "config.json")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    kind = str(config.get("model_type", "")).lower()
    if kind not in ("llada", "dream", "llama"):
        raise InputError(f"{name}: model_type {config.get('model_type')!r} is no masked diffusion model that is known "
                         "here; LLaDA and Dream are. Wrap your own: sl.DiffusionLM(sl.wrap(model), mask_id).")
    mask = config.get("mask_token_id", 126336 if kind == "llada" else None)
    if mask is None:
        raise InputError(f"{name}: its config.json has no mask_token_id, so it is not a masked diffusion model.")
    model = bidirectional(_filled(kind, config, _tensors(folder), dtype)).to(device).eval()
    live = wrap(model, _tokenizer(folder), name=Path(str(name)).name)
    return DiffusionLM(live, int(mask), shifted=kind == "dream")


def _folder(name: str) -> Path:
    if name in SHIPPED:
        return next(place / name for place in _DATA if (place / name).is_dir())
    path = Path(name).expanduser()
    if (path / "config.json").exists():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or "/" not in name:
        raise InputError(f"{name!r} is no folder with a config.json, and no model that comes along "
                         f"({', '.join(SHIPPED)}).{closest(name, SHIPPED)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FetchError(f"could not fetch {name!r} from the model hub, and it is not in the cache: check the name and "
                         f"the network, or use {', '.join(SHIPPED)}, which comes along.") from error


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileFormatError(f"{folder} has no .safetensors file: other formats of weights can run code and are not "
                              "read.")
    try:
        return {name: value for file in files for name, value in load_file(file).items()}
    except SafetensorError as error:
        raise FileFormatError(f"the weights in {folder} are damaged ({error}). Fetch them again.") from error


def _filled(kind: str, config: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """The model of transformers that computes it, with its weights.

    Raises:
        FileFormatError: tensors are missing, left over, or of another shape.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    own = {k: v for k, v in config.items() if k not in ("model_type", "architectures", "auto_map", "is_causal")}
    if kind == "llada":
        own = {name: config.get(theirs) for name, theirs in _LLADA_SIZES.items()}
        own["num_key_value_heads"] = own["num_key_value_heads"] or own["num_attention_heads"]
        own["rope_parameters"] = {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
        own["attention_bias"] = bool(config.get("include_qkv_bias") or config.get("include_bias"))
        tensors = {_renamed(name): value for name, value in tensors.items()}
    settings: Any = Qwen2Config if kind == "dream" else LlamaConfig
    family: Any = Qwen2ForCausalLM if kind == "dream" else LlamaForCausalLM
    model = family(settings(**own)).to(dtype)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    wanted = set(model.state_dict()) - tied
    missing, left = sorted(wanted - set(tensors)), sorted(set(tensors) - set(model.state_dict()))
    if missing or left:
        raise FileFormatError(f"the weights do not fit a {kind} model: missing {missing[:3]}, left over {left[:3]}.")
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise FileFormatError(f"the weights do not fit a {kind} model: {reason}") from error
    return model


def _renamed(name: str) -> str:
    for theirs, ours in _LLADA.items():
        new, hits = re.subn(f"^{theirs}", ours, name)
        if hits:
            return new
    return name


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").exists():
        return None
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder))
