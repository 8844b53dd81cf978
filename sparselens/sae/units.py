"""Training units: inputs of norm sqrt(d) on average and mean zero, so that learning rates carry over between models."""

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.errors import InputError
from sparselens.sae.norms import InputNorm
from sparselens.sae.sae import SAE

_MATRICES = ("W_enc", "W_dec")


class Units(NamedTuple):
    """How activations look in training: `x' = (norm(x) - shift) * read`, `y' = norm(y) * written`, `z' = z * codes`.

    `read`, `shift` `[d_in]`, `written [d_out]`, `codes []`. Each site of a crosscoder has a factor of its own. The
    shift is zero where the encoder subtracts `b_dec` itself.
    """

    read: Tensor
    shift: Tensor
    written: Tensor
    codes: Tensor


def measured_units(sae: SAE, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> Units:
    """Units from a sample of normalised inputs and targets."""
    shift = torch.zeros_like(x[0])
    if not sae.subtract_b_dec and sae.b_enc is not None:
        shift = x.mean(0)
    read = _factors(x - shift, 1 if sae.tied else max(1, len(sae.reads)))
    written = read if not sae.is_transcoder else _factors(y, max(1, len(sae.writes)))
    one = bool((written == written[0]).all())  # then that factor itself: a mean of equal ones may be off by rounding
    return Units(read, shift, written, written[0].clone() if one else written.log().mean().exp())


def _factors(x: Tensor, n_sites: int) -> Tensor:
    """For each column what brings its site to a mean norm of sqrt(d)."""
    blocks = x.reshape(len(x), n_sites, -1)
    factors = blocks.shape[2] ** 0.5 / blocks.norm(dim=2).mean(0).clamp_min(1e-12)
    return factors.repeat_interleave(blocks.shape[2])


@torch.no_grad()
def to_training(sae: SAE, units: Units) -> SAE:
    """A float32 copy of `sae` that works in training units. Fresh matrices (while `b_dec` is zero) are taken as they
    are, whatever the units.

    Raises:
        InputError: it has a constant input scale, or parts that cannot follow several scales.
    """
    if sae.input_norm.kind == "scale":
        raise InputError("an SAE with a constant input scale cannot be trained: training finds its own; use 'none'.")
    # provenance and metadata stay with the SAE itself
    model = copy.deepcopy(sae).float().to(units.read.device).requires_grad_(True)
    model.input_norm = InputNorm()
    if sae.rank_by_decoder_norm and "W_dec" in model._parameters:
        _fold_norms(model)
    inverse = Units(1 / units.read, -units.shift * units.read, 1 / units.written, 1 / units.codes)
    fresh = {} if sae.b_dec.any() else {
        name: p.data.clone()
        for name, p in model.named_parameters()
        if name in _MATRICES or name.startswith("decoder.")
    }
    _rescale(model, inverse)
    for name, value in fresh.items():
        model.get_parameter(name).data = value
    if "W_enc" in model._parameters:  # the encoder by rows, as the decoder: what a sparse step sums into
        model.W_enc = nn.Parameter(model.W_enc.detach().T.contiguous().T)
    return model


@torch.no_grad()
def to_user(model: SAE, units: Units, sae: SAE) -> None:
    """Put the weights of `model`, in training units, into `sae`, which works on activations as they are."""
    back = copy.deepcopy(model)
    _rescale(back, units)
    for name, parameter in sae.named_parameters():
        parameter.data = back.get_parameter(name).detach().to(parameter).contiguous().clone()
    for name, buffer in sae.named_buffers():
        *path, last = name.split(".")
        owner = sae.get_submodule(".".join(path))
        setattr(owner, last, back.get_buffer(name).detach().to(buffer).clone())


def _fold_norms(model: SAE) -> None:
    """Bring decoder rows to norm 1 where the codes carry their norms anyway; nothing that it computes changes."""
    norms = model.W_dec.norm(dim=1)
    model.W_dec.data /= norms[:, None]
    if not model.tied:
        model.W_enc.data *= norms
    if model.b_enc is not None:
        model.b_enc.data *= norms


def _rescale(model: SAE, units: Units) -> None:
    """Change `model` from these units to plain ones: it then takes x instead of x', and gives y and z."""
    read, shift, written, codes = units
    several = bool((written != written[0]).any() or (codes != written[0]).any())
    if several and (model.decoder is not None or model.bypass is not None):
        raise InputError("an SAE with a decoder or bypass part of its own can be trained on one site only.")
    if "W_dec" in model._parameters:
        model.W_dec.data = model.W_dec.data * (codes / written)
    if model.W_skip is not None:
        model.W_skip.data = model.W_skip.data * read / written[:, None]
    if "W_enc" in model._parameters:
        model.W_enc.data = model.W_enc.data * (read / codes)[:, None]
    if model.b_enc is not None:
        model.b_enc.data = model.b_enc.data / codes
    model.b_dec.data = model.b_dec.data / written
    if shift.any():
        if model.b_enc is not None:
            model.b_enc.data -= shift @ model.W_enc
        if model.W_skip is not None:
            model.b_dec.data -= model.W_skip @ shift
    model.activation.rescale(float(1 / codes))
    for part in (model.decoder, model.bypass):
        if part is not None:
            part.rescale(float(1 / codes), float(1 / written[0]))
