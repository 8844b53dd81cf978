"""Opening models: by name, folder or file, and wrapping ones that are open already."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from sparselens.errors import FetchError, FileFormatError, InputError, closest
from sparselens.models.backends import BACKENDS, boot_bridge, detect, open_native
from sparselens.models.live import LiveModel
from sparselens.models.packaged import PACKAGED, gguf_folder, packaged_folder, quiet


def load_model(
    name: str | Path = "smollm2-135m-instruct",
    *,
    backend: str = "torch",
    device: Any = None,
    dtype: torch.dtype | None = None,
) -> LiveModel:
    """Open a language model.

    Args:
        name: a packaged model (`smollm2-135m-instruct`, there without any hub), a hub id, a folder, or a GGUF file.
        backend: "torch" (plain transformers), "transformer_lens" or "nnsight".
        device: CUDA when there is one, else the CPU, by default.
        dtype: float32 on a CPU by default (bfloat16 is three times slower there); the file's own elsewhere.

    Raises:
        FetchError: not in the cache and not to be downloaded. FileFormatError: damaged weights.
        InputError: an unknown name or backend.
    """
    if backend not in BACKENDS:
        raise InputError(
            f"backend={backend!r} is unknown; valid are {', '.join(BACKENDS)}.{closest(backend, BACKENDS)}"
        )
    source, label = _source(name)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, tokenizer = _from_transformers(source, device, dtype)
    native = boot_bridge(model, tokenizer, own=True) if backend == "transformer_lens" else model
    return wrap(native, tokenizer, backend=backend, name=label)


def _source(name: str | Path) -> tuple[str, str]:
    """What to give to transformers, and the name to remember the model by."""
    if str(name) in PACKAGED:
        return str(packaged_folder(str(name))), str(name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return str(gguf_folder(path)), path.stem.lower()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"{path} has no config.json, so it holds no transformers model.")
        return str(path), path.name
    if isinstance(name, Path) or str(name).startswith((".", "/", "~")):
        raise InputError(f"{path} does not exist.")
    if "/" not in str(name) and get_close_matches(str(name).lower(), PACKAGED, cutoff=0.8):
        raise InputError(f"there is no model {name!r}.{closest(str(name).lower(), PACKAGED)}")
    return str(name), str(name)


def _from_transformers(source: str, device: torch.device, dtype: torch.dtype | None) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any
    chosen: Any = dtype or (torch.float32 if device.type == "cpu" else "auto")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=chosen)
    except SafetensorError as error:
        raise FileFormatError(
            f"the weights in {source} are damaged ({error}). Delete that folder and load again."
        ) from error
    except OSError as error:
        if Path(source).is_dir():
            raise FileFormatError(f"{source} could not be read ({str(error).splitlines()[0]}).") from error
        raise FetchError(
            f"could not fetch {source!r} from the model hub and it is not in the cache. Check the name and "
            f"the network, or use a packaged model: {', '.join(PACKAGED)}.{closest(source, PACKAGED)}"
        ) from error
    return model.to(device).eval(), tokenizer


def _plain_tokenizer(tokenizer: Any) -> Any:
    """A wrapper's tokenizer as its files have it: a bridge's own copy prepends BOS, which moves every number."""
    if tokenizer is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    except (OSError, ValueError) as error:
        raise InputError(
            "the tokenizer of this model cannot be loaded again from where it came from "
            f"({tokenizer.name_or_path!r}): pass it, as sl.wrap(model, tokenizer)."
        ) from error


def wrap(native: Any, tokenizer: Any = None, *, backend: str | None = None, name: str | None = None) -> LiveModel:
    """Make a model that is open already a `LiveModel`. The model is not changed.

    Args:
        native: a transformers model, a TransformerLens bridge, or an nnsight model.
        tokenizer: its fast tokenizer; a bridge's or nnsight model's own by default. Without one, give token ids.
        backend: for a plain transformers model, which of the three to use. "transformer_lens" boots its bridge on a
            copy, since a bridge rewrites the module it boots on.
        name: what SAEs know the model by; the model's own name by default.

    Raises:
        InputError: not a model that can be wrapped, or a compiled one.
    """
    if isinstance(native, LiveModel):
        raise InputError("this is a LiveModel already; wrap its .native to open it in another way.")
    if tokenizer is None and detect(native) != "torch":
        tokenizer = _plain_tokenizer(getattr(native, "tokenizer", None))
    opened = open_native(native, tokenizer, backend)
    config_name = str(getattr(opened.module.config, "name_or_path", "") or "")
    label = name or Path(config_name).name or type(opened.module).__name__
    return LiveModel(opened, tokenizer, label)
