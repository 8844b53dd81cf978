"""SAELens folders: `cfg.json` + `sae_weights.safetensors`. Reads v6 and the flat files before it; writes v6.

Layout: https://github.com/decoderesearch/SAELens (`SAE.save_model`), checked against sae-lens 6.54.12.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparselens.errors import FileFormatError, StorageError, closest
from sparselens.files import read_json
from sparselens.sae.activations import BatchTopK
from sparselens.sae.norms import InputNorm
from sparselens.sae.sae import SAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LAYOUT_VERSION = "6.54.12"  # without a version from 6 on SAELens takes the file for one of the flat kind

_REQUIRED = {"architecture", "d_in", "d_sae", "dtype"}
_COMMON = _REQUIRED | {
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "metadata",
}
# Keys of training checkpoints: they say how it was trained, not what it computes.
_TRAINING = {
    "decoder_init_norm",
    "l1_coefficient",
    "lp_norm",
    "l1_warm_up_steps",
    "jumprelu_init_threshold",
    "jumprelu_bandwidth",
    "jumprelu_sparsity_loss_mode",
    "jumprelu_tanh_scale",
    "jumprelu_ste_to_input",
    "l0_coefficient",
    "l0_warm_up_steps",
    "pre_act_loss_coefficient",
    "target_l0",
    "use_sparse_activations",
    "aux_loss_coefficient",
    "topk_threshold_lr",
}
_TOPK_KEYS = {"k", "rescale_acts_by_decoder_norm"}
_GATES = {"b_gate", "b_mag", "r_mag"}


class _Layout(NamedTuple):
    """How an architecture of theirs is written: our name for it, its own keys and tensors."""

    ours: str
    keys: set[str] = set()
    tensors: set[str] = set()
    skip: bool = False


_ARCHITECTURES = {
    "standard": _Layout("relu"),
    "jumprelu": _Layout("jumprelu", tensors={"threshold"}),
    "gated": _Layout("gated", tensors=_GATES),
    "topk": _Layout("topk", _TOPK_KEYS),
    "abstopk": _Layout("abstopk", _TOPK_KEYS),
    "batchtopk": _Layout("batchtopk", _TOPK_KEYS, {"topk_threshold"}),
    "transcoder": _Layout("relu", {"d_out"}),
    "skip_transcoder": _Layout("relu", {"d_out"}, {"W_skip"}, skip=True),
    "jumprelu_transcoder": _Layout("jumprelu", {"d_out"}, {"threshold"}),
    "jumprelu_skip_transcoder": _Layout("jumprelu", {"d_out"}, {"threshold", "W_skip"}, skip=True),
}
NORMS = {"none": "none", "constant_norm_rescale": "unit_norm", "layer_norm": "layer_norm"}
# Facts of a file before v6 that belong into `metadata`.
_FLAT_METADATA = (
    "model_name",
    "hook_name",
    "hook_head_index",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "exclude_special_tokens",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "neuronpedia_id",
    "sae_lens_version",
    "sae_lens_training_version",
)


def detect(folder: Path) -> bool:
    """Whether `folder` looks like a SAELens SAE."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, dtype: torch.dtype | None = torch.float32, norm: InputNorm | None = None) -> SAE:
    """Read a SAELens folder; `norm` takes the place of the input normalisation that it names.

    Raises:
        FileFormatError: damaged or incomplete files, keys or tensors that are unknown or missing, or semantics
            that cannot be reproduced exactly.
    """
    original = read_json(folder / CONFIG)
    cfg = original if _is_v6(original) else _upgrade(original)
    _check_keys(cfg, folder)
    tensors = read_tensors(folder / WEIGHTS)
    _legacy_tensors(tensors, folder)
    layout = _ARCHITECTURES[cfg["architecture"]]
    sae = SAE(
        layout.ours,
        d_in=cfg["d_in"],
        d_sae=cfg["d_sae"],
        d_out=cfg.get("d_out"),
        k=cfg.get("k"),
        skip=layout.skip,
        subtract_b_dec=cfg.get("apply_b_dec_to_input", True),
        rank_by_decoder_norm=cfg.get("rescale_acts_by_decoder_norm", False),
        input_norm=norm or _read_norm(cfg, folder),
        metadata=copy.deepcopy(cfg.get("metadata", {})),
        seed=None,
    )
    _fill(sae, tensors, layout.tensors, folder)
    sae.requires_grad_(False)
    if dtype is not None:
        sae.to(dtype)
    sae.provenance = {"format": "saelens", "config": original, "sha256": {WEIGHTS: sha256(folder / WEIGHTS)}}
    return sae


def name_of(sae: SAE) -> str | None:
    """What SAELens calls the architecture of `sae`; None if its format cannot hold it."""
    plain = sae.decoder is None and sae.bypass is None and not sae.tied and len(sae.reads) <= 1
    ours = "jumprelu" if sae.architecture == "batchtopk" else sae.architecture
    if not plain or len(sae.writes) > 1 or (sae.is_transcoder and sae.input_norm.kind != "none"):
        return None
    for name, layout in _ARCHITECTURES.items():
        if (layout.ours, layout.skip, "d_out" in layout.keys) == (ours, sae.W_skip is not None, sae.is_transcoder):
            return name
    return None


def write(sae: SAE, folder: Path) -> None:
    """Write `sae` into the empty folder `folder` in the v6 layout.

    A batchtopk SAE becomes a jumprelu one (which is what it computes in use), a constant input scale is folded
    into the weights; both give the same codes and reconstructions.
    """
    parts = {name.removeprefix("activation."): value for name, value in sae.named_parameters()}
    tensors = {name: value.detach() for name, value in parts.items()}
    metadata = copy.deepcopy(sae.metadata)
    if not _is_v6({"metadata": metadata}):
        metadata["sae_lens_version"] = LAYOUT_VERSION
    cfg: dict[str, Any] = {
        "architecture": name_of(sae),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtract_b_dec,
        "normalize_activations": {v: k for k, v in NORMS.items()}.get(sae.input_norm.kind, "none"),
        "reshape_activations": "hook_z" if (sae.site or "").endswith("hook_z") else "none",
    }
    if sae.is_transcoder:
        cfg["d_out"] = sae.d_out
    ranks = sae.rank_by_decoder_norm
    if ranks and (sae.architecture == "batchtopk" or sae.input_norm.kind == "scale"):
        # the codes carry the decoder norms: with these in the encoder, what follows cannot change the choice
        norms, ranks = tensors["W_dec"].norm(dim=1), False
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    if sae.input_norm.kind == "scale":
        scale = sae.input_norm.scale
        tensors["W_enc"] = tensors["W_enc"] * scale
        tensors["W_dec"], tensors["b_dec"] = tensors["W_dec"] / scale, tensors["b_dec"] / scale
    if sae.activation.sparse:
        cfg |= {"k": sae.k, "rescale_acts_by_decoder_norm": ranks}
    elif isinstance(sae.activation, BatchTopK):
        details = metadata.get("training_architecture_details", {}) | {"k": sae.k}
        metadata |= {"training_architecture": "batchtopk", "training_architecture_details": details}
        tensors["threshold"] = sae.activation.threshold.expand(sae.d_sae)
    cfg["metadata"] = metadata
    write_tensors(folder / WEIGHTS, tensors)
    (folder / CONFIG).write_text(json.dumps(cfg, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        FileFormatError: the file is missing, cut off or not safetensors.
    """
    if not path.is_file():
        raise FileFormatError(f"{path} is missing.")
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{path} cannot be read as safetensors ({error}). It is probably cut off or a pointer file: "
            "delete it and fetch or save it again."
        ) from error


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors.

    Raises:
        StorageError: the disk is full or not writable.
    """
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise StorageError(f"could not write {path.name}: {error}. Free some space and do it again.") from error
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _is_v6(cfg: dict[str, Any]) -> bool:
    if not isinstance(cfg, dict):
        raise FileFormatError(f"{CONFIG} must hold an object, not {type(cfg).__name__}.")
    version = cfg.get("sae_lens_version") or cfg.get("metadata", {}).get("sae_lens_version")
    return bool(version) and int(str(version).split(".")[0]) >= 6


def _upgrade(flat: dict[str, Any]) -> dict[str, Any]:
    """A configuration before v6 (everything at top level) in the form of v6."""
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
    old = {renamed.get(key, key): value for key, value in flat.items()}
    activation = old.get("activation_fn", old.get("activation_fn_str", "relu"))
    kwargs = old.get("activation_fn_kwargs") or {}
    architecture = old.get("architecture", "standard")
    if activation == "topk":
        architecture = "topk"
    elif activation != "relu":
        raise FileFormatError(f"activation function {activation!r} of a file before v6 is not known.")
    norm = old.get("normalize_activations") or "none"
    cfg = {
        "architecture": architecture,
        "dtype": old.get("dtype", "float32"),
        "apply_b_dec_to_input": old.get("apply_b_dec_to_input", True),
        "normalize_activations": "expected_average_only_in" if norm is True else norm,
        "metadata": {key: old[key] for key in _FLAT_METADATA if key in old},
    }
    cfg["metadata"].setdefault("prepend_bos", True)
    cfg |= {key: old[key] for key in ("d_in", "d_sae") if key in old}
    if architecture == "topk":
        cfg["k"] = kwargs.get("k", old.get("k"))
    return cfg


def _check_keys(cfg: dict[str, Any], folder: Path) -> None:
    missing = _REQUIRED - cfg.keys()
    if missing:
        raise FileFormatError(f"{folder / CONFIG} lacks {', '.join(sorted(missing))}.")
    architecture = cfg["architecture"]
    if architecture not in _ARCHITECTURES:
        raise FileFormatError(
            f"{folder / CONFIG}: architecture {architecture!r} cannot be read; these can: "
            f"{', '.join(_ARCHITECTURES)}.{closest(architecture, _ARCHITECTURES)}"
        )
    known = _COMMON | _TRAINING | _ARCHITECTURES[architecture].keys
    unknown = sorted(cfg.keys() - known)
    if unknown:
        raise FileFormatError(
            f"{folder / CONFIG} has keys that a {architecture} SAE does not have: {', '.join(unknown)}."
            f"{closest(unknown[0], known)} They might change what it computes, so it is not loaded."
        )
    if "k" in _ARCHITECTURES[architecture].keys and cfg.get("k") is None:
        raise FileFormatError(f"{folder / CONFIG} lacks k, which a {architecture} SAE needs.")


def _read_norm(cfg: dict[str, Any], folder: Path) -> InputNorm:
    name = cfg.get("normalize_activations") or "none"
    if name in NORMS:
        return InputNorm(NORMS[name])
    scaler = folder / "activation_scaler.json"
    if name == "expected_average_only_in" and scaler.is_file():
        return InputNorm("scale", float(read_json(scaler)["scaling_factor"]))
    hint = ""
    if name == "expected_average_only_in":
        hint = f" Its scaling factor is in neither the weights nor {scaler.name}."
    raise FileFormatError(f"{folder / CONFIG}: normalize_activations {name!r} cannot be reproduced.{hint}")


def _legacy_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    """Bring tensors of older files to today's names, in place."""
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not torch.equal(scaling, torch.ones_like(scaling)):
        raise FileFormatError(
            f"{folder / WEIGHTS} has a finetuning scaling_factor that is not 1, which is not supported."
        )


def _fill(sae: SAE, tensors: dict[str, Tensor], own: set[str], folder: Path) -> None:
    """Put the tensors of the file into `sae`; every one must be expected, and of the right shape."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (sae.d_in, sae.d_sae),
        "W_dec": (sae.d_sae, sae.d_out),
        "b_dec": (sae.d_out,),
    }
    shapes |= {name: (sae.d_sae,) for name in ("b_enc",) if name in sae.activation.encoder}
    shapes |= {name: () if name == "topk_threshold" else (sae.d_sae,) for name in own - {"W_skip"}}
    shapes |= {"W_skip": (sae.d_out, sae.d_in)} if "W_skip" in own else {}
    if tensors.keys() != shapes.keys():
        missing, unknown = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
        raise FileFormatError(
            f"{folder / WEIGHTS} does not hold a {sae.architecture} SAE: missing tensors {missing}, "
            f"unknown tensors {unknown}."
        )
    for name, shape in shapes.items():
        value = tensors[name]
        if tuple(value.shape) != shape:
            raise FileFormatError(f"{folder / WEIGHTS}: {name} has shape {list(value.shape)}, {list(shape)} is needed.")
        if name == "topk_threshold":
            sae.activation.threshold = value.to(tensors["W_dec"].dtype)
        else:
            setattr(sae.activation if name in own - {"W_skip"} else sae, name, nn.Parameter(value))
