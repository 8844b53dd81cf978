"""The one SAE class: encoder, activation, decoder and input normalisation as small parts, semantics as data."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sparselens.errors import FitError, InputError, NotFiniteError
from sparselens.sae.activations import make_activation
from sparselens.sae.latents import Latents, to_dense
from sparselens.sae.norms import InputNorm, TokenScale

if TYPE_CHECKING:
    from sparselens.sae.verify import Verification

# Pre-activations held at once, in numbers (128 MB in float32).
_BUFFER = 2**25
# Gathering decoder rows beats the dense product from about this d_sae / k on (1.0x at 12, 1.4x at 18, 10x at 144).
_GATHER_FROM = 16


class SAE(nn.Module):
    """A sparse autoencoder.

    `z = activation((norm(x) - b_dec) @ W_enc + b_enc)`, `x_hat = undo_norm(z @ W_dec + b_dec)`.
    A fresh one has unit-norm decoder rows and the encoder equal to the decoder's transpose.

    Args:
        architecture: "topk", "batchtopk", "jumprelu" or "relu" ("standard" is another name of relu).
        d_in: width of the activations.
        d_sae: number of latents.
        k: latents kept per token (topk: whole; batchtopk: on average); not for the others.
        subtract_b_dec: whether the encoder sees `x - b_dec` or `x`.
        rank_by_decoder_norm: topk and batchtopk choose by pre-activation times the norm of the decoder row; the
            codes carry that factor and `decode` divides it out (SAELens: `rescale_acts_by_decoder_norm`).
        input_norm: "none", "scale", "unit_norm", "layer_norm", or an `InputNorm`.
        metadata: free facts that travel with the file; `site` (`hook_name`), `model_name` and `max_norm` live here.
        seed: of the initial weights; None leaves them unset, for a reader that fills them.

    Attributes:
        W_enc, b_enc, W_dec, b_dec: parameters `[d_in, d_sae]`, `[d_sae]`, `[d_sae, d_in]`, `[d_in]`.
        provenance: where a loaded SAE comes from: source format, original configuration, sha256 of the weights.

    Raises:
        InputError: an unknown architecture or normalisation, an impossible size, or a k that does not fit.
    """

    def __init__(
        self,
        architecture: str = "topk",
        *,
        d_in: int,
        d_sae: int,
        k: int | float | None = None,
        subtract_b_dec: bool = True,
        rank_by_decoder_norm: bool = False,
        input_norm: str | InputNorm = "none",
        site: str | None = None,
        model_name: str | None = None,
        max_norm: float | None = None,
        metadata: dict[str, Any] | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        for name, size in (("d_in", d_in), ("d_sae", d_sae)):
            if size < 1:
                raise InputError(f"{name} must be at least 1, not {size}.")
        self.activation = make_activation(architecture, d_sae, k)
        if rank_by_decoder_norm and self.activation.name not in ("topk", "batchtopk"):
            raise InputError(f"rank_by_decoder_norm has no meaning for {self.activation.name}.")
        rows = torch.empty(d_sae, d_in)
        if seed is not None:
            rows.normal_(generator=torch.Generator().manual_seed(seed))
            rows /= rows.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.subtract_b_dec = subtract_b_dec
        self.rank_by_decoder_norm = rank_by_decoder_norm
        self.input_norm = input_norm if isinstance(input_norm, InputNorm) else InputNorm(input_norm)
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.provenance: dict[str, Any] = {}
        for key, value in (("hook_name", site), ("model_name", model_name), ("max_norm", max_norm)):
            if value is not None:
                self.metadata[key] = value

    @property
    def d_in(self) -> int:
        """Width of the activations it reads and writes."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @property
    def architecture(self) -> str:
        """Name of the activation part."""
        return self.activation.name

    @property
    def k(self) -> int | float | None:
        """Latents kept per token; None unless topk or batchtopk."""
        return self.activation.k

    @property
    def site(self) -> str | None:
        """Name of the place in the model it was trained on."""
        return self.metadata.get("hook_name")

    @property
    def model_name(self) -> str | None:
        """Name of the model it was trained on."""
        return self.metadata.get("model_name")

    @property
    def max_norm(self) -> float | None:
        """Largest norm of a row it was trained on; rows beyond are outside its domain."""
        return self.metadata.get("max_norm")

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Latents | Float[Tensor, "*batch d_sae"]:
        """Codes of `x [*batch, d_in]`: `Latents` of k entries for topk, else dense `[*batch, d_sae]`.

        Raises:
            FitError: the last dimension is not d_in.
            NotFiniteError: x has NaN or infinite rows.
        """
        flat = self._rows(x)
        batch = x.shape[:-1]
        if not self.activation.sparse:
            return self.activation(self.pre_activations(flat)).reshape(*batch, self.d_sae)
        parts = [self.activation(self.pre_activations(rows)) for rows in self._chunks(flat)]
        k = parts[0].values.shape[1]
        values = torch.cat([part.values for part in parts]).reshape(*batch, k)
        indices = torch.cat([part.indices for part in parts]).reshape(*batch, k)
        return Latents(values, indices, self.d_sae)

    def decode(
        self, z: Latents | Float[Tensor, "*batch d_sae"], tokens: TokenScale | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction `[*batch, d_in]` of codes.

        Args:
            z: codes from `encode`, edited or not.
            tokens: `measure(x)` of the x that was encoded; needed only with a per-token input norm.
        """
        if isinstance(z, Latents):
            out = self._decode_sparse(z)
        else:
            if z.shape[-1] != self.d_sae:
                raise FitError(f"codes have {z.shape[-1]} latents, this SAE has d_sae={self.d_sae}.")
            z = z.to(self.W_dec.dtype)
            out = (z / self.W_dec.norm(dim=1) if self.rank_by_decoder_norm else z) @ self.W_dec
        return self.input_norm.undo(out + self.b_dec, tokens)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction of `x [*batch, d_in]`, in x's dtype, in chunks of bounded memory."""
        parts = []
        for rows in self._chunks(self._rows(x)):
            z = self.activation(self.pre_activations(rows))
            parts.append(self.decode(z, self.measure(rows)))
        return torch.cat(parts).reshape(x.shape).to(x.dtype)

    def measure(self, x: Float[Tensor, "*batch d_in"]) -> TokenScale | None:
        """What `decode` needs to know about the tokens of x; None unless the input norm is per token."""
        return self.input_norm.measure(x.to(self.W_dec.dtype)) if self.input_norm.per_token else None

    def pre_activations(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """What the activation sees, `[n, d_sae]`, for rows in the SAE's dtype."""
        x = self.input_norm.apply(x, self.measure(x))
        if self.subtract_b_dec:
            x = x - self.b_dec
        pre = torch.addmm(self.b_enc, x, self.W_enc)
        return pre * self.W_dec.norm(dim=1) if self.rank_by_decoder_norm else pre

    def applies(self, x: Float[Tensor, "*batch d_in"]) -> Bool[Tensor, "*batch"]:
        """Which rows of x lie in the domain it was trained on: norm at most `max_norm` (all, if that is None)."""
        if self.max_norm is None:
            return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        return x.float().norm(dim=-1) <= self.max_norm

    def edits(self, model: Any, at: Any = None) -> list[Any]:
        """As an attachment an SAE is `replace(self)`: its reconstruction goes on in place of the activation."""
        from sparselens.attach import replace  # attach is needed only here; the SAE itself works without a model

        return replace(self).edits(model, at)

    def verify(self, m: Any, texts: Any, **stream: Any) -> "Verification":
        """Measure l0 and fvu on `texts` and hold them against the recorded ones; see `sparselens.sae.verify`."""
        from sparselens.sae.verify import verify

        return verify(self, m, texts, **stream)

    @classmethod
    def load(cls, path_or_name: str | os.PathLike, dtype: torch.dtype | None = torch.float32) -> "SAE":
        """Load an SAE from a folder, by the name of a shipped one, or from the hub. Its parameters are frozen.

        Args:
            path_or_name: a folder; a shipped model ("smollm2-135m-instruct": its default SAE) or
                "model/site[/recipe]"; "hf://org/name/folder" or "org/name[/folder]" on the Hugging Face hub.
            dtype: of the weights in memory; None keeps the file's.

        Raises:
            InputError: no such folder or shipped name (the closest is named).
            FileFormatError: the files are damaged, incomplete, or hold what cannot be read exactly.
            FetchError: the hub could not be reached, or has no such files.
        """
        from sparselens.sae.formats import load

        return load(path_or_name, dtype)

    def save(self, path: str | os.PathLike, format: str = "sparselens") -> Path:
        """Write the SAE as a folder; it appears whole or not at all. Returns the folder.

        Args:
            path: the folder; one that exists is replaced.
            format: "saelens" (v6 layout), or "sparselens" (the same, plus `card.json`).
        """
        from sparselens.sae.formats import save

        return save(self, path, format)

    def extra_repr(self) -> str:
        """The line shown for the module."""
        at = f", site={self.site!r}" if self.site else ""
        k = f", k={self.k}" if self.k is not None else ""
        return f"{self.architecture}, d_in={self.d_in}, d_sae={self.d_sae}{k}{at}"

    def _rows(self, x: Tensor) -> Tensor:
        """Check x and flatten it to `[n, d_in]` in the SAE's dtype."""
        if x.shape[-1] != self.d_in:
            raise FitError(f"x has width {x.shape[-1]}, this SAE reads width d_in={self.d_in}.")
        flat = x.reshape(-1, self.d_in).to(self.W_enc.dtype)
        if not torch.isfinite(flat.detach().sum()):  # one cheap pass; the rows are looked at only in trouble
            bad = int((~torch.isfinite(flat)).any(dim=1).sum())
            if bad:
                raise NotFiniteError(f"{bad} of {flat.shape[0]} rows of x hold NaN or infinite numbers.")
        return flat

    def _chunks(self, flat: Tensor) -> Iterator[Tensor]:
        """Rows in pieces whose pre-activations fit the buffer."""
        yield from flat.split(max(1, _BUFFER // self.d_sae))

    def _decode_sparse(self, z: Latents) -> Tensor:
        if z.d_sae != self.d_sae:
            raise FitError(f"codes have {z.d_sae} latents, this SAE has d_sae={self.d_sae}.")
        k = z.values.shape[-1]
        values, indices = z.values.reshape(-1, k).to(self.W_dec.dtype), z.indices.reshape(-1, k)
        if self.rank_by_decoder_norm:
            values = values / self.W_dec.norm(dim=1)[indices]
        if self.d_sae >= _GATHER_FROM * k:
            out = functional.embedding_bag(indices, self.W_dec, mode="sum", per_sample_weights=values)
        else:
            pieces = zip(self._chunks(values), self._chunks(indices), strict=True)
            out = torch.cat([to_dense(Latents(v, i, self.d_sae)) @ self.W_dec for v, i in pieces])
        return out.reshape(*z.values.shape[:-1], self.d_in)
