"""What an architecture or a method adds to training, as small rules: data with a few functions, no own trainer."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sparselens.errors import InputError
from sparselens.sae import parallel
from sparselens.sae.latents import Latents
from sparselens.sae.selection import flat_indices

if TYPE_CHECKING:
    from sparselens.sae.sae import SAE
    from sparselens.sae.trainer import SAETrainer


@dataclass
class Step:
    """One training step, in training units (see `units.py`).

    Attributes:
        model: the SAE in training.
        x, y: what is read and what is to be written, `[n, d_in]` and `[n, d_out]`; y is x for an autoencoder.
        number, share: steps done before this one, and their share of the run (0 to 1).
        dead: indices of the latents that have not fired for long.
        grads: gradient of the model's loss at what is read `[n, d_in]`, if a rule asked for it.
        codes, error: set before `loss` is called: the codes, and `y_hat - y` `[n, d_out]`.
    """

    model: "SAE"
    x: Tensor
    y: Tensor
    number: int
    share: float
    dead: Tensor
    grads: Tensor | None = None
    codes: Any = field(default=None, init=False)
    error: Any = field(default=None, init=False)

    @cached_property
    def centred(self) -> Tensor:
        """What the encoder sees, `[n, d_in]`."""
        return self.model.centred(self.x)

    @cached_property
    def pre(self) -> Tensor:
        """Pre-activations `[n, d_sae]`."""
        return self.model.linear(self.centred)


@dataclass(frozen=True)
class Rule:
    """Base of the rules. Every method is a moment of training and does nothing here.

    The fields of a rule are facts (they go into the settings of the run); what it needs to remember it keeps in
    `t.extra`, which is saved in checkpoints.
    """

    needs_gradients: ClassVar[bool] = False  # whether `s.grads` must be there
    alone: ClassVar[bool] = False  # whether it takes the place of the architecture's own rule

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        """Once, before the first step, with a sample in training units. It may set weights of `t.model`, `t.unit_rows`,
        `t.clip`, `t.aux_weight`, `t.prefixes`, or add tensors with `t.remember` and `t.learn`."""

    def choose(self, t: "SAETrainer", s: Step) -> Tensor | None:
        """Flat indices of the entries of `s.pre` that survive as codes, in the order of tokens. None leaves it to the
        other rules."""
        return None

    def codes(self, t: "SAETrainer", s: Step) -> Latents | Tensor | None:
        """Codes with their graph, where they are no selection of pre-activations. None leaves it to the others."""
        return None

    def loss(self, t: "SAETrainer", s: Step) -> Tensor | None:
        """What is added to the mean over tokens of the squared error (whose size is about d_out at the start)."""
        return None

    def revive(self, t: "SAETrainer", s: Step) -> Tensor | None:
        """Indices of the latents that are trained on what is left over. None leaves it to the others."""
        return None

    def after(self, t: "SAETrainer", s: Step, seen: Any) -> None:
        """After the optimiser's step, without gradients; `seen` is the `StepResult`."""

    def facts(self) -> dict[str, Any]:
        """Name and fields, for the settings of a run."""
        return {"rule": type(self).__name__, **asdict(self)}


def overrides(rule: Rule, method: str) -> bool:
    """Whether a rule has its own `method`."""
    return getattr(type(rule), method) is not getattr(Rule, method)


@dataclass(frozen=True)
class PerToken(Rule):
    """What the activation keeps of every token: the same number for each (TopK, AbsTopK, GroupMax)."""

    def choose(self, t: "SAETrainer", s: Step) -> Tensor:
        kept = s.model.activation(s.pre.detach())
        return flat_indices(kept.indices, kept.d_sae).flatten()


@dataclass(frozen=True)
class Matryoshka(Rule):
    """Nested dictionaries: the first latents alone must reconstruct as well (Bussmann et al., 2025).

    The loss is the mean of the squared errors of all prefixes.

    Args:
        prefixes: widths of the nested dictionaries, rising; the whole one is added if it is missing.
    """

    prefixes: tuple[int, ...]

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        d_sae = t.model.d_sae
        whole = tuple(dict.fromkeys([*self.prefixes, d_sae]))
        if list(whole) != sorted(whole) or whole[0] < 1 or whole[-1] > d_sae:
            raise InputError(f"prefixes must rise from 1 or more to at most d_sae={d_sae}; got {self.prefixes}.")
        if t.model.decoder is not None:
            raise InputError("nested prefixes need the linear decoder.")
        t.prefixes = whole


@dataclass(frozen=True)
class MultiTopK(Rule):
    """A second reconstruction from `factor * k` latents, so that more of them stay useful (Gao et al., 2024).

    Args:
        factor: how many times k.
        weight: of its squared error.
    """

    factor: int = 4
    weight: float = 1 / 8

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        if not t.model.activation.sparse or not t.lean:
            raise InputError(f"MultiTopK is for topk and abstopk with the linear decoder, not {t.model.architecture}.")
        t.second = (min(self.factor * int(t.k), t.model.d_sae), self.weight)


@dataclass(frozen=True)
class Resample(Rule):
    """Dead latents start anew as directions that are reconstructed badly (Bricken et al., 2023).

    A dead latent gets the error of a token, drawn by squared error squared, as its decoder row, the same direction
    as its encoder row, and no bias; its optimiser state is cleared. The encoder row has a fifth of the usual length,
    or all of it where latents are selected by size, and a short one would never be.

    Args:
        every: steps between two rounds; the last quarter of a run has none.
    """

    every: int = 250

    @torch.no_grad()
    def after(self, t: "SAETrainer", s: Step, seen: Any) -> None:
        if (s.number + 1) % self.every or s.share > 0.75 or not len(s.dead):
            return
        model = t.model
        error = s.y - model(s.x)
        chance = error.square().sum(1).square()
        take = min(len(s.dead), int((chance > 0).sum()))
        if not take:
            return
        picked = torch.multinomial(chance, take, generator=t.generator(s))
        dead = s.dead[:take]
        rows = torch.nn.functional.normalize(error[picked], dim=1)
        alive = torch.ones(model.d_sae, dtype=torch.bool, device=rows.device)
        alive[s.dead] = False
        length = float(model.W_enc.norm(dim=0)[alive].mean()) if alive.any() else 1.0
        model.W_dec[dead] = rows
        if not model.tied and not model.is_transcoder:
            selects = overrides(t.rules[0], "choose")
            model.W_enc[:, dead] = (1.0 if selects else 0.2) * length * rows.T
        if model.b_enc is not None:
            model.b_enc[dead] = 0
        for tensor in (model.W_dec, model.W_enc, model.b_enc):
            if tensor is not None:
                parallel.agree_(tensor)
        t.forget(dead)
        t.since[dead] = 0
