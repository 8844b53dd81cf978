"""What readers of foreign files share: tensors under our names become an SAE, all of them or none."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.errors import FileFormatError, closest
from sparselens.sae.activations import Activation
from sparselens.sae.norms import InputNorm
from sparselens.sae.sae import SAE


def assemble(
    architecture: str | Activation,
    tensors: dict[str, Tensor],
    where: Path,
    *,
    format: str,
    config: Any,
    dtype: torch.dtype | None,
    k: int | None = None,
    subtract_b_dec: bool = False,
    input_norm: str | InputNorm = "none",
    site: str | list[str] | None = None,
    site_out: str | list[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> SAE:
    """Build a frozen SAE from a file's tensors, brought to our names and layout.

    Args:
        architecture: as for `SAE`.
        tensors: exactly the SAE's own: `W_enc [d_in, d_sae]`, `b_enc`, `W_dec [d_sae, d_out]`, `b_dec`, perhaps
            `W_skip [d_out, d_in]`, and those of its activation as `activation.threshold` and the like.
        where: the file they come from.
        format: name of the format, for the provenance.
        config: the file's own configuration, kept verbatim in the provenance.
        dtype: of the weights in memory; None keeps the file's.

    Raises:
        FileFormatError: a tensor is missing, unknown, or of the wrong shape.
    """
    for name in ("W_enc", "W_dec"):
        if name not in tensors or tensors[name].dim() != 2:
            raise FileFormatError(f"{where} does not hold an SAE: it has no matrix that could be {name}.")
    (d_in, d_sae), d_out = tensors["W_enc"].shape, tensors["W_dec"].shape[1]
    sae = SAE(
        architecture,
        d_in=d_in,
        d_sae=d_sae,
        d_out=d_out,
        k=k,
        subtract_b_dec=subtract_b_dec,
        input_norm=input_norm,
        skip="W_skip" in tensors,
        site=site,
        site_out=site_out,
        metadata=dict(metadata or {}),
        seed=None,
    )
    fill(sae, tensors, where)
    sae.requires_grad_(False)
    if dtype is not None:
        sae.to(dtype)
    sae.provenance = {"format": format, "config": config, "sha256": {where.name: sha256(where)}}
    return sae


def fill(sae: SAE, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Put tensors into `sae` in their own dtype; every one must be expected, and of the right shape.

    Raises:
        FileFormatError: one is missing, unknown, or of the wrong shape.
    """
    own = sae.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise FileFormatError(
            f"{where} does not hold this {sae.architecture} SAE: missing tensors {missing}, unknown tensors {unknown}."
        )
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise FileFormatError(
                f"{where}: {name} has shape {list(value.shape)}, {list(own[name].shape)} is needed."
            )
        *path, last = name.split(".")
        owner: nn.Module = sae.get_submodule(".".join(path))
        kept = nn.Parameter(value.contiguous(), requires_grad=False) if last in owner._parameters else value.clone()
        setattr(owner, last, kept)


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str], where: Path) -> dict[str, Tensor]:
    """The file's tensors under our names. A name that ends in ".T" says that the matrix is to be transposed.

    Raises:
        FileFormatError: the file's tensors are not just those of `names`.
    """
    missing, unknown = sorted(names.keys() - tensors.keys()), sorted(tensors.keys() - names.keys())
    if missing or unknown:
        hint = closest(unknown[0], names) if unknown else ""
        raise FileFormatError(f"{where}: missing tensors {missing}, unknown tensors {unknown}.{hint}")
    return {
        ours.removesuffix(".T"): tensors[theirs].T if ours.endswith(".T") else tensors[theirs]
        for theirs, ours in names.items()
    }


def read_pt(path: Path) -> Any:
    """The content of a `.pt` file, tensors and plain values only: whatever could run code is refused.

    Raises:
        FileFormatError: the file is damaged, or holds other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            raise FileFormatError(
                f"{path} holds pickled objects, which could run any code when they are loaded. Load it with the "
                f"library that made it, save its state_dict, and load that. ({str(error).splitlines()[0]})"
            ) from error
        if not isinstance(error, RuntimeError | EOFError | OSError | ValueError):
            raise
        raise FileFormatError(f"{path} cannot be read ({error}). It is probably cut off: fetch it again.") from error


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
