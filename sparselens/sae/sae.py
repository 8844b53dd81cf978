"""The one SAE class: encoder, activation, decoder and input normalisation as small parts, semantics as data."""

import os
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparselens.errors import FitError, InputError, NotFiniteError
from sparselens.sae.activations import Activation
from sparselens.sae.architectures import make_activation
from sparselens.sae.decoders import BUFFER, Bypass, Decoder, linear_decode
from sparselens.sae.latents import Latents
from sparselens.sae.norms import InputNorm, TokenScale, check_rows

if TYPE_CHECKING:
    from sparselens.sae.verify import Verification, Watch


class SAE(nn.Module):
    """A sparse autoencoder, a transcoder (it writes another site than it reads) or a crosscoder (several sites).

    `z = activation((norm(x) - b_dec) @ W_enc + b_enc)`, `x_hat = undo_norm(z @ W_dec + b_dec)`.
    A fresh one has unit-norm decoder rows and, where input and output are the same, the encoder equal to the decoder's
    transpose. A crosscoder reads and writes its sites side by side: `x [*batch, n_sites * d]`.

    Args:
        architecture: "topk", "abstopk", "batchtopk" ("mutualchoice"), "batch_abstopk", "featurechoice", "jumprelu",
            "relu" ("standard"), "gated", "topafa", "structured"; or an activation part with settings of its own.
        d_in: width of the activations it reads.
        d_sae: number of latents.
        k: latents kept per token (topk, abstopk: whole; batchtopk and the like: on average); not for the others.
        d_out: width of the activations it writes; d_in if None.
        subtract_b_dec: whether the encoder sees `x - b_dec` or `x`. None: yes, unless it is a transcoder.
        rank_by_decoder_norm: architectures that choose by size do so by pre-activation times the norm of the decoder
            row; the codes carry that factor and `decode` divides it out (SAELens: `rescale_acts_by_decoder_norm`).
        input_norm: "none", "scale", "unit_norm", "layer_norm", or an `InputNorm`.
        tied: the encoder is the decoder's transpose, and stays it.
        skip: a linear connection around the codes, `x_hat += norm(x) @ W_skip.T`.
        decoder: a part in place of the linear decoder.
        bypass: a part that adds to the output around the codes.
        site: the place in the model it reads; several for a crosscoder.
        site_out: the place it writes, if another one. That makes it a transcoder.
        metadata: free facts that travel with the file; site (`hook_name`, `hook_name_out`), `model_name` and
            `max_norm` live here.
        seed: of the initial weights; None leaves them unset, for a reader that fills them.

    Attributes:
        W_enc, b_enc, W_dec, b_dec: parameters `[d_in, d_sae]`, `[d_sae]`, `[d_sae, d_out]`, `[d_out]`. An SAE without
            an encoder of its own gives `W_dec.T` as W_enc; one with a decoder part gives that part's atoms as W_dec.
            `b_enc` is None where the architecture has none.
        W_skip: parameter `[d_out, d_in]`, or None.
        provenance: where a loaded SAE comes from: source format, original configuration, sha256 of the weights.

    Raises:
        InputError: an unknown architecture or normalisation, sizes or parts that do not go together, or a k that does
            not fit.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor | None
    b_dec: Tensor
    W_skip: Tensor | None
    activation: Activation
    decoder: Decoder | None
    bypass: Bypass | None

    def __init__(
        self,
        architecture: str | Activation = "topk",
        *,
        d_in: int,
        d_sae: int,
        k: int | float | None = None,
        d_out: int | None = None,
        subtract_b_dec: bool | None = None,
        rank_by_decoder_norm: bool = False,
        input_norm: str | InputNorm = "none",
        tied: bool = False,
        skip: bool = False,
        decoder: Decoder | None = None,
        bypass: Bypass | None = None,
        site: str | Sequence[str] | None = None,
        site_out: str | Sequence[str] | None = None,
        model_name: str | None = None,
        max_norm: float | None = None,
        metadata: dict[str, Any] | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        for name, size in (("d_in", d_in), ("d_sae", d_sae), ("d_out", d_out)):
            if not isinstance(size, Integral) or size < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {size!r}.")
        self.d_in, self.d_sae, self.d_out = d_in, d_sae, d_out
        made = make_activation(architecture, d_sae, k) if isinstance(architecture, str) else architecture
        self.activation, self.decoder = made, decoder
        self.bypass = made.around(d_in, d_sae) if bypass is None else bypass
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.provenance: dict[str, Any] = {}
        facts = {"hook_name": site, "hook_name_out": site_out, "model_name": model_name, "max_norm": max_norm}
        given = {key: value for key, value in facts.items() if value is not None}
        self.metadata |= {k: v if isinstance(v, str | float | int) else list(v) for k, v in given.items()}
        self.subtract_b_dec = not self.is_transcoder if subtract_b_dec is None else subtract_b_dec
        self.rank_by_decoder_norm = rank_by_decoder_norm
        self.input_norm = input_norm if isinstance(input_norm, InputNorm) else InputNorm(input_norm)
        self.tied = tied or "W_enc" not in made.encoder
        self._check()
        self._fill(seed, skip)

    def _check(self) -> None:
        """Parts that cannot go together."""
        if self.rank_by_decoder_norm and not self.activation.ranks:
            raise InputError(f"rank_by_decoder_norm has no meaning for {self.architecture}.")
        if self.is_transcoder and self.subtract_b_dec:
            raise InputError("a transcoder cannot subtract b_dec, which belongs to the site it writes.")
        if self.tied and self.d_in != self.d_out:
            raise InputError(f"an encoder tied to the decoder needs d_in = d_out, not {self.d_in} and {self.d_out}.")
        for role, sites, width in (("reads", self.reads, self.d_in), ("writes", self.writes, self.d_out)):
            if len(sites) > 1 and width % len(sites):
                raise InputError(f"it {role} {len(sites)} sites, which do not divide its width {width} evenly.")

    def _fill(self, seed: int | None, skip: bool) -> None:
        """Make the parameters."""
        rows = torch.empty(self.d_sae, self.d_out)
        columns = torch.empty(self.d_in, self.d_sae)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            rows.normal_(generator=generator)
            rows /= rows.norm(dim=1, keepdim=True)
            if self.is_transcoder:
                columns.normal_(generator=generator)
                columns /= columns.norm(dim=0)
            else:
                columns = rows.T.contiguous()
        if self.decoder is None:
            self.W_dec = nn.Parameter(rows)
        elif seed is not None:
            columns = self.W_dec.detach().T.contiguous()
        if not self.tied:
            self.W_enc = nn.Parameter(columns)
        has_bias = "b_enc" in self.activation.encoder
        self.register_parameter("b_enc", nn.Parameter(torch.zeros(self.d_sae)) if has_bias else None)
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.register_parameter("W_skip", nn.Parameter(torch.zeros(self.d_out, self.d_in)) if skip else None)

    def __getattr__(self, name: str) -> Any:
        """Weights that another part stands for; nn.Module comes here for whatever is no ordinary attribute."""
        own = self.__dict__.get("_parameters", {})
        if name == "W_enc" and name not in own and self.__dict__.get("tied"):
            return self.W_dec.T
        if name == "W_dec" and name not in own and (part := self.__dict__["_modules"].get("decoder")) is not None:
            return part.atoms
        return super().__getattr__(name)

    @property
    def architecture(self) -> str:
        """Name of the activation part."""
        return self.activation.name

    @property
    def k(self) -> int | float | None:
        """Latents kept per token; None for an architecture without."""
        return self.activation.k

    @property
    def site(self) -> str | None:
        """Name of the place in the model it reads; None if it reads several (see `reads`) or does not say."""
        name = self.metadata.get("hook_name")
        return name if isinstance(name, str) else None

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the places it reads, side by side."""
        return _names(self.metadata.get("hook_name"))

    @property
    def writes(self) -> tuple[str, ...]:
        """Names of the places it writes, side by side; those it reads, unless it is a transcoder."""
        return _names(self.metadata.get("hook_name_out")) or self.reads

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes something else than it reads."""
        return self.d_in != self.d_out or self.writes != self.reads

    @property
    def model_name(self) -> str | None:
        """Name of the model it was trained on."""
        return self.metadata.get("model_name")

    @property
    def max_norm(self) -> float | None:
        """Largest norm of a row it was trained on; rows beyond are outside its domain."""
        return self.metadata.get("max_norm")

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Latents | Float[Tensor, "*batch d_sae"]:
        """Codes of `x [*batch, d_in]`: `Latents` where k is fixed (topk, abstopk), else dense `[*batch, d_sae]`.

        Raises:
            FitError: the last dimension is not d_in.
            NotFiniteError: x has NaN or infinite rows.
        """
        flat = self._rows(x)
        batch = x.shape[:-1]
        encode: Any = self.activation.encode
        if not self.activation.sparse:
            return encode(self, self.centred(flat)).reshape(*batch, self.d_sae)
        parts = [encode(self, self.centred(rows)) for rows in self._chunks(flat)]
        k = parts[0].values.shape[1]
        values, indices = (torch.cat([part[i] for part in parts]).reshape(*batch, k) for i in (0, 1))
        return Latents(values, indices, self.d_sae)

    def decode(
        self, z: Latents | Float[Tensor, "*batch d_sae"], tokens: TokenScale | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction `[*batch, d_out]` of codes.

        Args:
            z: codes from `encode`, edited or not.
            tokens: `measure(x)` of the x that was encoded; needed with a per-token input norm, a skip connection or
                another bypass.

        Raises:
            FitError: codes of another dictionary. InputError: `tokens` are needed and were not given.
        """
        width = z.d_sae if isinstance(z, Latents) else z.shape[-1]
        if width != self.d_sae:
            raise FitError(f"codes have {width} latents, this SAE has d_sae={self.d_sae}.")
        batch = (z.values if isinstance(z, Latents) else z).shape[:-1]
        out = self.contributions(self._flat_codes(z)).reshape(*batch, self.d_out) + self.b_dec
        if self.bypass is not None or self.W_skip is not None:
            if tokens is None or tokens.bypass is None:
                raise InputError("part of this SAE's output goes around the codes: call decode(z, "
                                 "tokens=sae.measure(x)) with the x that was encoded, or call sae(x).")
            out = out + tokens.bypass
        return self.input_norm.undo(out, tokens)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction of `x [*batch, d_in]`, in x's dtype, in chunks of bounded memory."""
        parts = []
        for rows in self._chunks(self._rows(x)):
            z = self.activation.encode(self, self.centred(rows))
            parts.append(self.decode(z, self.measure(rows)))
        return torch.cat(parts).reshape(*x.shape[:-1], self.d_out).to(x.dtype)

    def measure(self, x: Float[Tensor, "*batch d_in"]) -> TokenScale | None:
        """What `decode` needs to know about the tokens of x; None if it needs nothing."""
        x = x.to(self.b_dec.dtype)
        scale = self.input_norm.measure(x) if self.input_norm.per_token else None
        if self.W_skip is None and self.bypass is None:
            return scale
        normed = self.input_norm.apply(x, scale)
        around = x.new_zeros(()) if self.W_skip is None else normed @ self.W_skip.T
        if self.bypass is not None:
            centred = (normed - self.b_dec if self.subtract_b_dec else normed).reshape(-1, self.d_in)
            around = around + self.bypass(self, centred).reshape(*x.shape[:-1], self.d_out)
        return (scale or TokenScale())._replace(bypass=around)

    def centred(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """What the encoder sees of rows in the SAE's dtype: normalised, and without `b_dec` if that is subtracted."""
        x = self.input_norm.apply(x, self.input_norm.measure(x))
        return x - self.b_dec if self.subtract_b_dec else x

    def linear(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """Pre-activations of rows that are `centred` already."""
        pre = x @ self.W_enc if self.b_enc is None else torch.addmm(self.b_enc, x, self.W_enc)
        return pre * self.W_dec.norm(dim=1) if self.rank_by_decoder_norm else pre

    def pre_activations(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """What the activation sees, `[n, d_sae]`, for rows in the SAE's dtype."""
        return self.linear(self.centred(x))

    def contributions(self, z: Latents | Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_out"]:
        """What flat codes write, before `b_dec` and the way back through the input norm."""
        if self.rank_by_decoder_norm:
            norms = self.W_dec.norm(dim=1)
            z = z / norms if isinstance(z, Tensor) else z._replace(values=z.values / norms[z.indices])
        return linear_decode(z, self.W_dec) if self.decoder is None else self.decoder(z)

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

    def watch(self, model: Any) -> "Watch | None":
        """What judges it on the first tokens of a splice; None if the file records nothing to judge by."""
        from sparselens.sae.verify import watch

        return watch(self, model)

    @classmethod
    def load(cls, path_or_name: str | os.PathLike, dtype: torch.dtype | None = torch.float32) -> "SAE":
        """Load an SAE from a folder, by the name of a shipped one, or from the hub. Its parameters are frozen.

        Args:
            path_or_name: a folder or file in one of the known formats; a shipped model ("smollm2-135m-instruct": its
                default SAE) or "model/site[/recipe]"; "release/id" of a public one (see `sl.find_saes`);
                "hf://org/name/folder" or "org/name[/folder]" on the Hugging Face hub.
            dtype: of the weights in memory; None keeps the file's.

        Raises:
            InputError: no such folder or shipped name (the closest is named).
            FileFormatError: the files are damaged, incomplete, or hold what cannot be read exactly.
            FetchError: the hub could not be reached, or has no such files.
        """
        from sparselens.sae.formats import load

        return load(path_or_name, dtype)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype | None = torch.float32,
    ) -> "SAE":
        """`load`, with what the hub can be told: branch or commit, where to keep the files, not to ask the network."""
        from sparselens.sae.formats import load

        return load(name, dtype, revision, cache_dir, local_files_only)

    def push_to_hub(
        self, name: str, private: bool = False, token: str | None = None, revision: str | None = None
    ) -> str:
        """Upload it to `org/name[/folder]` on the hub, with its card; see `sparselens.sae.hub.push`."""
        from sparselens.sae.hub import push

        return push(self, name, private, token, revision)

    def save(self, path: str | os.PathLike, format: str = "sparselens") -> Path:
        """Write the SAE as a folder; it appears whole or not at all. Returns the folder.

        Args:
            path: the folder; one that exists is replaced.
            format: "sparselens" (SAELens v6 where that knows the architecture, plus `card.json`), "saelens",
                "dictionary_learning", "sparsify" or "circuit_tracer".

        Raises:
            InputError: the format cannot hold this SAE.
        """
        from sparselens.sae.formats import save

        return save(self, path, format)

    def extra_repr(self) -> str:
        """The line shown for the module."""
        at = f", site={self.metadata['hook_name']!r}" if self.reads else ""
        at += f", site_out={self.metadata['hook_name_out']!r}" if self.is_transcoder and self.reads else ""
        k = f", k={self.k}" if self.k is not None else ""
        d_out = f", d_out={self.d_out}" if self.d_out != self.d_in else ""
        return f"{self.architecture}, d_in={self.d_in}, d_sae={self.d_sae}{d_out}{k}{at}"

    def _rows(self, x: Tensor) -> Tensor:
        """Check x and flatten it to `[n, d_in]` in the SAE's dtype."""
        check_rows(x, self.d_in)
        flat = x.reshape(-1, self.d_in).to(self.b_dec.dtype)
        if not torch.isfinite(flat.detach().sum()):  # one cheap pass; the rows are looked at only in trouble
            bad = int((~torch.isfinite(flat)).any(dim=1).sum())
            if bad:
                raise NotFiniteError(f"{bad} of {flat.shape[0]} rows of x hold NaN or infinite numbers.")
        return flat

    def _flat_codes(self, z: Latents | Tensor) -> Latents | Tensor:
        """Codes `[n, ..]` in the SAE's dtype."""
        if isinstance(z, Tensor):
            return z.reshape(-1, self.d_sae).to(self.b_dec.dtype)
        k = z.values.shape[-1]
        return Latents(z.values.reshape(-1, k).to(self.b_dec.dtype), z.indices.reshape(-1, k), self.d_sae)

    def _chunks(self, flat: Tensor) -> Iterator[Tensor]:
        """Rows in pieces whose pre-activations fit the buffer."""
        yield from flat.split(max(1, BUFFER // self.d_sae))


def _names(value: Any) -> tuple[str, ...]:
    """One name, several or none, as a tuple."""
    return () if not value else (value,) if isinstance(value, str) else tuple(value)
