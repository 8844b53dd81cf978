"""The step-level SAE: one sparse vector for what a step of a chain of thought adds to the steps before it.

Yang et al., "Step-Level Sparse Autoencoder for Reasoning Process Interpretation" (2026, arXiv 2603.03031).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from sparselens.errors import InputError, closest
from sparselens.models.live import LiveModel
from sparselens.reasoning.step_data import StepBatch, StepDataset
from sparselens.reasoning.step_latents import StepLatents
from sparselens.reasoning.step_lm import StepLM

if TYPE_CHECKING:
    from sparselens.reasoning.controller import SparsityController
    from sparselens.reasoning.ssae_estimate import StepEstimate
    from sparselens.reasoning.ssae_prior import StepPrior
    from sparselens.reasoning.ssae_run import StepRun

_BATCH = 16
_CODED = 4096  # summaries coded at once
POOLINGS, PLACES = ("last", "mean"), ("front", "step")


class StepLoss(NamedTuple):
    """What one batch gives: summed NLL `[b]` and counted tokens `[b]` of each step, codes `[b, n]`, norms `[b]`."""

    nll: Tensor
    tokens: Tensor
    z: Tensor
    norm: Tensor

    @property
    def ce(self) -> Tensor:
        """Mean over all counted tokens, nats."""
        return self.nll.sum() / self.tokens.sum()

    @property
    def l1(self) -> Tensor:
        """Mean L1 norm of the codes."""
        return self.z.sum(-1).mean()


class StepSAE(nn.Module):
    """Encodes a step, given its context, as one sparse vector, and writes it again from vector and context.

    The encoder, a language model, reads `[context, separator, step, end]`; its last state h becomes the code
    `z = a / ||a||_2` with `a = ReLU(h W + b)`. A small MLP turns z (with a little noise in training) into `expansion`
    prefix vectors, after which the decoder, a causal language model that reads the context too, has to predict the
    step.
    What the context tells already need not be in z.

    Both language models are the live model's: shared as they are ("frozen"), with low-rank adapters of their own
    ("lora"), or as trained copies ("full"). The live model itself is never changed: its vocabulary and weights stay.

    Args:
        model: the live model.
        expansion: latents per dimension of the model, and number of prefix vectors.
        tuning: "frozen", "lora" or "full"; or a pair of these for encoder and decoder.
        rank: of the adapters.
        noise: standard deviation of what is added to every coordinate of z in training.
        mask_share: share of the step's tokens that are hidden from attention in training.
        pooling: what the encoder's summary h is: its state at the end token ("last", the paper's), or the mean over the
            step's tokens and the end ("mean"). An encoder that is not trained tells little at its end token.
        layer: the block after which a shared encoder's states are read; None: after the final norm, as in the paper.
        max_context, max_step: last tokens of the context, and most tokens of a step, that are read.
        place: where the prefix stands for the decoder: before the context ("front", as in the published code), or
            behind the separator, next to the step ("step"), where a decoder learns far sooner to listen to it and the
            context is read without knowing the code.
        lead: put a trained vector before the prefix. The first position of many models is an attention sink that passes
            little on; a decoder that is not trained would lose the code there. None: if it is frozen, and the prefix in
            front.
        condition_on_context: False hides the context from the decoder: then z has to carry all of the step.
        official_masking: take the summary and the end of the decoder's input from the masked lengths, as the published
            code does. This reads the summary too early and lets the decoder see its last targets; only for replication.
        seed: of the initial weights.

    Attributes:
        encoder, decoder: the language models, `StepLM`. W_enc `[d, n]`, b_enc `[n]`, mlp: the trained parts.
        shift, scale: `[d]` what h is standardised by before W_enc, if the encoder is frozen; training sets them.
        prior: the distribution of z given the context, once `fit_prior` has run.
        metadata: facts about its training.

    Raises:
        InputError: unknown settings. FitError: a model that is not served.
    """

    def __init__(self, model: LiveModel, *, expansion: int = 1, tuning: str | Sequence[str] = "frozen", rank: int = 8,
                 noise: int | float = 0.01, mask_share: int | float = 0.1, pooling: str = "last",
                 layer: int | None = None, max_context: int = 256, max_step: int = 256, place: str = "front",
                 lead: bool | None = None, condition_on_context: bool = True, official_masking: bool = False,
                 seed: int = 0):
        super().__init__()
        if expansion < 1 or noise < 0 or not 0 <= mask_share < 1:
            raise InputError(f"expansion={expansion}, noise={noise}, mask_share={mask_share}: expansion is 1 or more, "
                             "noise 0 or more, and the share at least 0 and below 1.")
        for name, value, valid in (("pooling", pooling, POOLINGS), ("place", place, PLACES)):
            if value not in valid:
                raise InputError(f"{name}={value!r} is unknown; valid are {', '.join(valid)}."
                                 f"{closest(str(value), valid)}")
        if official_masking and place != "front":
            raise InputError(f"official_masking=True with place={place!r}: there the prefix is in front.")
        pair = [tuning] * 2 if isinstance(tuning, str) else list(tuning)
        if len(pair) != 2:
            raise InputError(f"tuning={tuning!r}: give one word, or one for the encoder and one for the decoder.")
        self.expansion, self.rank, self.noise, self.mask_share = expansion, rank, noise, mask_share
        self.pooling, self.layer, self.max_context, self.max_step = pooling, layer, max_context, max_step
        self.place, self.condition_on_context, self.official_masking = place, condition_on_context, official_masking
        d, n = model.d_model, expansion * model.d_model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder, self.decoder = StepLM(model, pair[0], rank, layer), StepLM(model, pair[1], rank)
            self.W_enc = nn.Parameter(nn.Linear(d, n, bias=False).weight.detach().T.clone())
            self.mlp = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, expansion * d))
        self.b_enc = nn.Parameter(torch.zeros(n))
        self.shift = nn.Parameter(torch.zeros(d), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(d), requires_grad=False)
        self.decoder.sep.requires_grad_(True)
        self.lead = (self.decoder.tuning == "frozen" and place == "front") if lead is None else lead
        self.first = nn.Parameter(self.decoder.sep.detach().clone(), requires_grad=self.lead)
        self.prior: StepPrior | None = None
        self.metadata: dict[str, Any] = {}
        self.to(model.device)

    def __repr__(self) -> str:
        kind = "/".join(self.tuning)
        return f"StepSAE({self.n_latents} latents on {self.model.name!r}, {kind}, {self.n_trained:,} trained weights)"

    @property
    def model(self) -> LiveModel:
        """The live model it works on."""
        return self.encoder.model

    @property
    def tuning(self) -> tuple[str, str]:
        """How encoder and decoder are tuned."""
        return self.encoder.tuning, self.decoder.tuning

    @property
    def n_latents(self) -> int:
        """Length n of a code."""
        return len(self.b_enc)

    @property
    def n_trained(self) -> int:
        """Number of trained weights."""
        return sum(p.numel() for group in self.groups().values() for p in group)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by group: "new" ones, and those of the language models ("lm")."""
        lm = self.encoder.trained + self.decoder.trained
        own = {id(p) for p in lm} | {id(p) for p in (self.prior.parameters() if self.prior else ())}
        new = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        return {"new": new, "lm": lm}

    # --- the computation -------------------------------------------------------------------------------------------

    def summary(self, batch: StepBatch, keep: Tensor | None = None) -> Float[Tensor, "b d"]:
        """What the encoder makes of each step, float32: its state at the end token, or the mean over the step.

        Args:
            batch: steps on the model's device.
            keep: which positions attention may see, bool `[b, pos]`; all by default.
        """
        states = self.encoder.states(self.encoder.embed(batch), keep)
        if self.pooling == "mean":
            weight = batch.targets.float()
            return (states.float() * weight[..., None]).sum(1) / weight.sum(-1, keepdim=True)
        length = batch.length if keep is None or not self.official_masking else (keep & batch.mask).sum(-1)
        return states[torch.arange(len(batch), device=states.device), length - 1].float()

    def code(self, h: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b"]]:
        """Codes z of L2 norm 1, or 0 where no feature is on; and the norms they had before."""
        a = torch.relu((h - self.shift) / self.scale @ self.W_enc + self.b_enc)
        norm = a.norm(dim=-1)
        return a / norm.clamp(min=torch.finfo(a.dtype).tiny)[:, None], norm

    def prefix(self, z: Float[Tensor, "b n"] | None, rows: int = 0) -> Float[Tensor, "b c d"]:
        """The vectors that the decoder reads of a code: the lead, if any, then those of the codes.

        Without codes, the lead alone for a number of rows.
        """
        rows = rows if z is None else len(z)
        lead = self.first.expand(rows, int(self.lead), -1)
        return lead if z is None else torch.cat([lead, self.mlp(z).view(rows, self.expansion, -1)], 1)

    def decode(self, z: Float[Tensor, "b n"] | None, batch: StepBatch,
               keep: Tensor | None = None) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Summed NLL in nats of each step and its end under given codes, and the number of tokens counted.

        Args:
            z: a code for each step; None for none.
            batch: steps on the model's device.
            keep: which positions of the batch attention may see; all by default.
        """
        if not self.condition_on_context:
            length = batch.length - batch.sep
            if keep is not None:
                at = torch.arange(int(length.max()), device=keep.device) + batch.sep[:, None]
                keep = keep.gather(1, at.clamp(max=keep.shape[1] - 1))
            batch = batch.without_context()
        embeds = self.decoder.embed(batch)
        mask = keep
        if self.official_masking and keep is not None:
            embeds = _without(embeds, (keep & batch.mask).sum(-1) - 1)
        else:
            embeds, mask = embeds[:, :-1], None if keep is None else keep[:, :-1]
        first = self.prefix(z, len(batch)).to(embeds.dtype)
        slots, at = first.shape[1], batch.sep + 1 if self.place == "step" else torch.zeros_like(batch.sep)
        if mask is not None:
            shown = mask.new_ones(len(mask), embeds.shape[1] + slots - mask.shape[1], 1)
            mask = _inserted(mask[..., None], shown, at)[..., 0]
        states = self.decoder.states(_inserted(embeds, first, at), mask)
        # what is read just before token j of the step is at j + slots - 1, wherever the prefix stands; without a prefix
        # nothing predicts token 0, which is no target
        states = states[:, slots - 1 :] if slots else torch.cat([states[:, :1], states], 1)
        targets = batch.targets
        each = nn.functional.cross_entropy(self.decoder.logits(states[targets]), batch.ids[targets], reduction="none")
        row = torch.arange(len(batch), device=each.device)[:, None].expand_as(targets)[targets]
        nll = each.new_zeros(len(batch)).index_add(0, row, each)
        return nll, targets.sum(-1).to(nll.dtype)

    def loss(self, batch: StepBatch, generator: torch.Generator | None = None, h: Tensor | None = None) -> StepLoss:
        """One batch as in training if a generator for noise and masks is given, else without either.

        Args:
            batch: steps.
            generator: on the CPU.
            h: summaries `[b, d]` computed before, for a frozen encoder.
        """
        batch, keep = batch.to(self.b_enc.device), None
        if generator is not None and self.mask_share:
            hidden = torch.rand(batch.ids.shape, generator=generator).to(batch.ids.device) < self.mask_share
            before_end = torch.arange(batch.ids.shape[1], device=hidden.device) < batch.length[:, None] - 1
            inside = batch.targets & before_end
            keep = batch.mask & ~(hidden & inside)
        z, norm = self.code(self.summary(batch, keep) if h is None else h)
        noisy = z
        if generator is not None and self.noise:
            noisy = z + self.noise * torch.randn(z.shape, generator=generator).to(z.device)
        nll, tokens = self.decode(noisy, batch, keep)
        return StepLoss(nll, tokens, z, norm)

    # --- use -------------------------------------------------------------------------------------------------------

    def dataset(self, data: Any, **settings: Any) -> StepDataset:
        """A `StepDataset` of what is given: one already, `Traces`, or (context, step) pairs; settings as there."""
        if isinstance(data, StepDataset):
            return data
        settings = {"max_context": self.max_context, "max_step": self.max_step} | settings
        if all(hasattr(item, "context") for item in data):
            return StepDataset.from_traces(data, self.model.tokenizer, **settings)
        return StepDataset.from_pairs(data, self.model.tokenizer, **settings)

    @torch.no_grad()
    def transform(self, data: Any, batch_size: int = _BATCH, **settings: Any) -> StepLatents:
        """Codes of steps, in their order; no noise. `data` and settings as for `dataset`."""
        steps = self.dataset(data, **settings)
        z, norm = torch.zeros(len(steps), self.n_latents), torch.zeros(len(steps))
        for rows, h in zip(torch.arange(len(steps)).split(_CODED), self.summaries(steps, batch_size).split(_CODED),
                           strict=True):
            found, before = self.code(h.to(self.b_enc.device))
            z[rows], norm[rows] = found.cpu(), before.cpu()
        return StepLatents(z, norm, steps.problems)

    @torch.no_grad()
    def summaries(self, data: Any, batch_size: int = _BATCH, **settings: Any) -> Float[Tensor, "steps d"]:
        """What the encoder makes of steps, in their order, before any code. `data` and settings as for `dataset`."""
        steps = self.dataset(data, **settings)
        h = torch.zeros(len(steps), self.model.d_model)
        for batch in steps.batches(batch_size):
            h[batch.rows] = self.summary(batch.to(self.b_enc.device)).cpu()
        return h

    @torch.no_grad()
    def nll(self, data: Any, codes: Any = "own", batch_size: int = _BATCH, **settings: Any) -> Float[Tensor, "steps"]:
        """Mean NLL per token of each step, nats.

        Args:
            data: as for `dataset`.
            codes: "own", "none", or codes `[steps, n]` to use instead, such as shuffled ones.
            batch_size, settings: as for `transform`.

        Raises:
            InputError: codes of another shape. NotFiniteError: codes that are NaN or infinite.
        """
        from sparselens.reasoning.ssae_write import check_codes

        steps = self.dataset(data, **settings)
        given = torch.as_tensor(codes) if not isinstance(codes, str) else None
        if given is not None:
            check_codes(self, given, len(steps))
        if given is None and codes not in ("own", "none"):
            raise InputError(f"codes={codes!r}: valid are 'own', 'none' or a tensor of codes.")
        out = torch.zeros(len(steps))
        for batch in steps.batches(batch_size):
            batch = batch.to(self.b_enc.device)
            z = None
            if given is not None:
                z = given[batch.rows.cpu()].to(self.b_enc)
            elif codes == "own":
                z = self.code(self.summary(batch))[0]
            nll, tokens = self.decode(z, batch)
            out[batch.rows.cpu()] = (nll / tokens).cpu()
        return out

    def generate(self, z: Float[Tensor, "b n"] | None, contexts: Sequence[str], max_new_tokens: int = 64) -> list[str]:
        """Write a step from each code in each context, the likeliest token each time. None: without a prefix."""
        from sparselens.reasoning.ssae_write import write

        return write(self, z, contexts, max_new_tokens)

    def reconstruct(self, data: Any, max_new_tokens: int = 64, **settings: Any) -> list[str]:
        """Write each step again from its own code and context; (context, step) pairs or `Traces`."""
        from sparselens.reasoning.ssae_write import pairs_of

        pairs = pairs_of(data)
        return self.generate(self.transform(pairs, **settings).z, [c for c, _ in pairs], max_new_tokens)

    def fit(self, data: Any, *, controller: "SparsityController | None" = None, **settings: Any) -> "StepRun":
        """Train; see `sparselens.reasoning.ssae_train.fit` for the settings."""
        from sparselens.reasoning.ssae_train import fit

        return fit(self, data, controller=controller, **settings)

    def start(self, data: Any, summaries: Tensor | None = None, **settings: Any) -> "StepRun":
        """Teach a code the words of its step before `fit`, for a frozen encoder; see `reasoning.start_from_words`."""
        from sparselens.reasoning.ssae_start import start_from_words

        return start_from_words(self, data, summaries, **settings)

    def fit_prior(self, data: Any, **settings: Any) -> "StepRun":
        """Learn the distribution of z given the context; see `sparselens.reasoning.ssae_prior.fit_prior`."""
        from sparselens.reasoning.ssae_prior import fit_prior

        return fit_prior(self, data, **settings)

    def sample(self, contexts: Sequence[str], n: int = 1, seed: int = 0) -> Float[Tensor, "contexts n latents"]:
        """Draw codes of next steps from the prior.

        Raises:
            InputError: `fit_prior` has not been run.
        """
        if self.prior is None:
            raise InputError("this StepSAE has no prior yet: run ssae.fit_prior(data) first.")
        return self.prior.sample(self, contexts, n, seed)

    def estimate(self, data: Any, **settings: Any) -> "StepEstimate":
        """What `fit` would take, measured on a few batches; see `sparselens.reasoning.ssae_estimate.estimate`."""
        from sparselens.reasoning.ssae_estimate import estimate

        return estimate(self, data, **settings)

    def save(self, path: str | os.PathLike) -> Path:
        """Write `ssae.json` and `ssae.safetensors` into a folder: all trained weights, not the live model's own."""
        from sparselens.reasoning.ssae_files import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike, model: LiveModel) -> "StepSAE":
        """Read a folder that `save` wrote, or a shipped one by its name, for a live model.

        Raises:
            FitError: it belongs to another model. FileFormatError: damaged files. InputError: no such folder or name.
        """
        from sparselens.reasoning.ssae_files import load

        return load(path, model)


def _inserted(values: Shaped[Tensor, "b pos d"], new: Shaped[Tensor, "b c d"], at: Tensor) -> Tensor:
    """Put the rows of `new` before position `at` of each row."""
    slots = new.shape[1]
    if not slots:
        return values
    order = torch.arange(values.shape[1] + slots, device=values.device) - at[:, None]  # 0: the first new one
    source = torch.where(order < 0, order, (order - slots).clamp(min=0)) + at[:, None]
    kept = values.gather(1, source.clamp(max=values.shape[1] - 1)[..., None].expand(-1, -1, values.shape[-1]))
    put = new.gather(1, order.clamp(0, slots - 1)[..., None].expand(-1, -1, new.shape[-1]))
    return torch.where(((order >= 0) & (order < slots))[..., None], put, kept)


def _without(values: Float[Tensor, "b pos d"], at: Tensor) -> Float[Tensor, "b less d"]:
    """Drop one position from each row."""
    source = torch.arange(values.shape[1] - 1, device=values.device).expand(len(values), -1)
    source = source + (source >= at[:, None])
    return values.gather(1, source[..., None].expand(-1, -1, values.shape[-1]))
