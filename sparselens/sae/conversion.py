"""Rewriting an SAE so that a narrower format can hold it, with the same codes and reconstructions."""

from typing import NamedTuple

from torch import Tensor

from sparselens.errors import InputError
from sparselens.sae.sae import SAE


class Plain(NamedTuple):
    """An SAE without an input norm and without ranking by decoder norms.

    `tensors` are under the names of its state dict; `context` is the recorded context size.
    """

    tensors: dict[str, Tensor]
    subtract_b_dec: bool
    context: int | None


def plain(sae: SAE, format: str, architectures: set[str], subtract: bool | None = None) -> Plain:
    """Fold what a format has no word for into the weights. Sums are taken in float64.

    A constant input scale goes into the encoder and the decoder; the norms by which an SAE ranks go into both (the
    codes carry them already); `b_dec` goes into `b_enc`, or out of it.

    Args:
        sae: any SAE.
        format: name of the format, for the error.
        architectures: those it can hold.
        subtract: whether the format subtracts `b_dec` before the encoder; None: it can do either.

    Raises:
        InputError: the format cannot hold this SAE.
    """
    reason = None
    if sae.architecture not in architectures:
        reason = f"it holds {', '.join(sorted(architectures))} SAEs, not {sae.architecture}"
    elif sae.decoder is not None or sae.bypass is not None:
        reason = "it has linear decoders only"
    elif sae.input_norm.per_token:
        reason = f"it has no input norm like {sae.input_norm.kind}"
    elif len(sae.reads) > 1 or len(sae.writes) > 1:
        reason = "it has one site an SAE"
    if reason:
        raise InputError(f"the format {format!r} cannot hold this SAE: {reason}. Save it with format='sparselens'.")
    dtype = sae.b_dec.dtype
    w = {name: value.detach().double() for name, value in sae.state_dict().items()}
    if sae.tied:
        w["W_enc"] = w["W_dec"].T
    if sae.rank_by_decoder_norm:
        norms = w["W_dec"].norm(dim=1)
        w["W_enc"], w["b_enc"], w["W_dec"] = w["W_enc"] * norms, w["b_enc"] * norms, w["W_dec"] / norms[:, None]
    if sae.input_norm.kind == "scale":
        scale = sae.input_norm.scale
        w["W_enc"], w["W_dec"], w["b_dec"] = w["W_enc"] * scale, w["W_dec"] / scale, w["b_dec"] / scale
    subtracts = sae.subtract_b_dec
    if subtract is not None and subtract != subtracts:
        shift = w["b_dec"] @ w["W_enc"] * (1 if subtract else -1)
        for bias in ("activation.b_gate", "activation.b_mag") if sae.architecture == "gated" else ("b_enc",):
            # a gate sees the product itself, a size the product times exp(r_mag)
            w[bias] = w[bias] + (shift * w["activation.r_mag"].exp() if bias.endswith("b_mag") else shift)
        subtracts = subtract
    context = sae.metadata.get("context_size")
    return Plain({name: value.to(dtype) for name, value in w.items()}, subtracts, context)


def as_jumprelu(w: Plain, sae: SAE) -> dict[str, Tensor]:
    """The tensors of a relu, jumprelu, gated or batchtopk SAE as those of a ReLU or JumpReLU, with the same codes.

    A gated latent, `[u + b_gate > 0] * relu(u * e + b_mag)` with `e = exp(r_mag)`, is a JumpReLU of
    `u * e + b_mag` with the threshold `b_mag - e * b_gate`.
    """
    out = dict(w.tensors)
    if sae.architecture == "gated":
        gate, mag, r = (out.pop(f"activation.{name}").double() for name in ("b_gate", "b_mag", "r_mag"))
        dtype, e = out["W_enc"].dtype, r.exp()
        out["W_enc"], out["b_enc"] = (out["W_enc"].double() * e).to(dtype), mag.to(dtype)
        out["activation.threshold"] = (mag - e * gate).to(dtype)
    elif sae.architecture == "batchtopk":
        out["activation.threshold"] = out["activation.threshold"].expand(sae.d_sae).contiguous()
    return out
