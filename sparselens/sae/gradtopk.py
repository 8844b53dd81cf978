"""Gradient-aware TopK: latents ranked by activation and by how strongly they move the model's loss (Olmo et al., 2024).

arXiv 2411.10397; no official code. The gradient at a token knows the tokens after it: never use a choice made with it
to predict, or to say what a feature means at that time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.errors import FitError, InputError, NotFiniteError, closest
from sparselens.models.engine import Context, Edit
from sparselens.sae.gradients import GRADIENT, stream_gradients
from sparselens.sae.latents import Latents, to_dense
from sparselens.sae.rules import Rule, Step
from sparselens.sae.sae import SAE
from sparselens.sae.selection import flat_indices, largest_of_token

if TYPE_CHECKING:
    import pandas

    from sparselens.sae.trainer import SAETrainer

NORMS = ("token", "global", "none")
_ROWS = 256  # tokens whose influences are held at once


@dataclass(frozen=True)
class GradTopK(Rule):
    """Of each token, keep the k latents with the largest `u (1 + beta a)`; their values stay `u`.

    `u` is the activation after ReLU, `a = |g @ W_dec.T|` its influence: how fast the loss changes along its decoder
    row. Both are constants for the gradient. `beta=0` is TopK.

    Args:
        beta: weight of the influence.
        influence_norm: what influences are divided by: "token", their mean over the latents of the token; "global",
            their mean over the batch; "none".
    """

    beta: float = 1.0
    influence_norm: str = "token"

    needs_gradients = True

    def __post_init__(self) -> None:
        if self.influence_norm not in NORMS:
            raise InputError(
                f"influence_norm={self.influence_norm!r} is unknown; valid: {', '.join(NORMS)}."
                f"{closest(self.influence_norm, NORMS)}"
            )
        if self.beta < 0:
            raise InputError(f"beta must not be negative, not {self.beta}.")

    def start(self, t: "SAETrainer", x: Tensor, y: Tensor) -> None:
        if t.model.architecture != "topk" or t.model.is_transcoder or t.model.decoder is not None:
            raise InputError("GradTopK chooses for topk SAEs that write what they read.")

    def choose(self, t: "SAETrainer", s: Step) -> Tensor:
        if s.grads is None:
            raise InputError("GradTopK needs the gradient of the loss: harvest(..., gradients=True).")
        kept = self.kept(s.pre.detach(), s.grads, s.model.W_dec.detach(), int(t.k))
        return flat_indices(kept, s.pre.shape[1]).flatten()

    def kept(
        self,
        pre: Float[Tensor, "n d_sae"],
        grads: Float[Tensor, "n d"],
        W_dec: Float[Tensor, "d_sae d"],
        k: int,
    ) -> Int[Tensor, "n k"]:
        """Indices of the latents with the largest scores."""
        mean = None
        if self.influence_norm == "global":
            mean = torch.stack([(g @ W_dec.T).abs().mean(1) for g in grads.split(_ROWS)]).mean().clamp_min(1e-30)
        pieces = zip(pre.split(_ROWS), grads.split(_ROWS), strict=True)
        return torch.cat([largest_of_token(self.scores(u, g, W_dec, mean), k) for u, g in pieces])

    def scores(
        self,
        pre: Float[Tensor, "n d_sae"],
        grads: Float[Tensor, "n d"],
        W_dec: Float[Tensor, "d_sae d"],
        mean: Tensor | None = None,
    ) -> Float[Tensor, "n d_sae"]:
        """`u (1 + beta a)`, in float32."""
        influence = (grads.float() @ W_dec.float().T).abs_()
        if self.influence_norm == "token":
            mean = influence.mean(1, keepdim=True).clamp_min(1e-30)
        if mean is not None:
            influence /= mean
        return pre.float().relu() * influence.mul_(self.beta).add_(1)


@torch.no_grad()
def encode_with_gradients(
    sae: SAE,
    x: Float[Tensor, "*batch d_in"],
    grads: Float[Tensor, "*batch d_in"],
    beta: float = 1.0,
    influence_norm: str = "token",
) -> Latents:
    """Codes of `x` chosen by activation and influence; `sae.encode(x)` is the choice without gradients.

    Decoder rows are taken at norm 1 for the influence, so that its size does not depend on how an SAE was saved.

    Raises:
        FitError: gradients of another shape. InputError: no topk SAE. NotFiniteError: NaN or infinite gradients.
    """
    if sae.architecture != "topk":
        raise InputError(f"only topk SAEs choose by gradient; this is a {sae.architecture} one.")
    if grads.shape != x.shape:
        raise FitError(f"gradients have shape {list(grads.shape)}, the activations {list(x.shape)}.")
    if not torch.isfinite(grads).all():
        raise NotFiniteError("the gradients hold NaN or infinite numbers.")
    rule = GradTopK(beta, influence_norm)
    pre = sae.pre_activations(x.reshape(-1, sae.d_in).to(sae.b_dec.dtype))
    unit = torch.nn.functional.normalize(sae.W_dec, dim=1)
    indices = rule.kept(pre, grads.reshape(-1, sae.d_in).to(pre.dtype), unit, int(sae.activation.k or 0))
    values = pre.gather(1, indices).relu()
    shape = (*x.shape[:-1], indices.shape[1])
    return Latents(values.reshape(shape), indices.reshape(shape), sae.d_sae)


@dataclass(frozen=True)
class Influence:
    """First-order effect of every active latent on the loss, token by token: positive means the loss would rise by
    about so much if the latent were dropped. It is a linear estimate, good for small changes.

    Attributes:
        effect: `Latents`: effects at the latents that are active, `[tokens, ..]`.
        activation: the codes themselves, `[tokens, ..]`, at the same latents.
        tokens: the text of each token.
    """

    effect: Latents
    activation: Latents
    tokens: list[str]

    def top(self, n: int = 10) -> "pandas.DataFrame":
        """The n largest effects in size: `position, token, feature, activation, effect`."""
        frame = self.to_frame()
        return frame.loc[frame["effect"].abs().sort_values(ascending=False).index[:n]].reset_index(drop=True)

    def to_frame(self) -> "pandas.DataFrame":
        """A row an active latent of a token."""
        import pandas as pd

        rows, slots = (self.activation.values != 0).nonzero(as_tuple=True)
        columns = {
            "position": rows.numpy(),
            "token": [self.tokens[i] for i in rows.tolist()],
            "feature": self.effect.indices[rows, slots].numpy(),
            "activation": self.activation.values[rows, slots].numpy(),
            "effect": self.effect.values[rows, slots].numpy(),
        }
        return pd.DataFrame(columns)

    def _repr_html_(self) -> str:
        return self.top(20).to_html(index=False, float_format="{:.4g}".format)


def influence(m: Any, sae: SAE, text: Any, target: str | Callable[[Tensor], Tensor] = "loss") -> Influence:
    """Which latents matter for what the model does on one text: `-u_j d_j . g` for each token and active latent.

    Args:
        m: a live model.
        sae: a dictionary that writes what it reads; its `site` must be a site of `m`.
        text: one text.
        target: "loss", the next-token cross-entropy summed over the text; or a function of the logits
            `[tokens, vocabulary]` that gives a number, such as `lambda logits: logits[-1, 5]`.

    Raises:
        FitError: the SAE names no site. InputError: more than one text, or a target that is no number.
    """
    if sae.site is None or sae.is_transcoder:
        raise FitError("influences are those of an SAE on its own site: set sae.metadata['hook_name'].")
    site = m.resolve(sae.site)
    if target == "loss":
        (batch,) = list(stream_gradients(m, text, site))
        x, grads, ids = batch[site], batch[site + GRADIENT], batch.token
    elif callable(target):
        x, grads, ids = _target_gradient(m, text, site, target)
    else:
        raise InputError(f"target={target!r}: give 'loss' or a function of the logits.")
    with torch.no_grad():
        x, grads = x.float(), grads.float()
        z = sae.encode(x)
        if isinstance(z, Tensor):
            k = max(1, int((z != 0).sum(1).max()))
            indices = z.abs().topk(k, dim=1).indices
            z = Latents(z.gather(1, indices), indices, sae.d_sae)
        along = torch.einsum("td,tkd->tk", grads, sae.W_dec[z.indices].float())
        effect = Latents(-(z.values * along).cpu(), z.indices.cpu(), sae.d_sae)
    codes = Latents(z.values.detach().cpu(), z.indices.cpu(), sae.d_sae)
    return Influence(effect, codes, [m.tokenizer.decode([i]) for i in ids.tolist()])


def _target_gradient(m: Any, text: Any, site: str, target: Callable) -> tuple[Tensor, Tensor, Tensor]:
    """Values at a site and the gradient of a function of the logits there, `[tokens, d]` each; and the token ids."""
    found: list[Tensor] = []

    def take(x: Tensor, _context: Context) -> Tensor:
        found.append(x.detach().clone().requires_grad_())
        return found[0]

    with m._engine.attach([Edit(site, take)]):
        out = m.run(text, grad=True)
    if out.logits.shape[0] != 1:
        raise InputError(f"one text is looked at; these are {out.logits.shape[0]}.")
    value = target(out.logits[0])
    if not torch.is_tensor(value) or value.numel() != 1:
        raise InputError("the target must give one number, a tensor made from the logits.")
    (grad,) = torch.autograd.grad(value.reshape(()), found)
    return found[0].detach()[0], grad[0], out.tokens[0]


@dataclass(frozen=True)
class SelectionOverlap:
    """How choices with gradients differ from those without, `beta` by `beta`.

    Attributes:
        beta: weights of the influence.
        jaccard: mean overlap of the kept latents with those of plain TopK.
        fvu: of the reconstruction.
    """

    beta: tuple[float, ...]
    jaccard: tuple[float, ...]
    fvu: tuple[float, ...]

    def to_frame(self) -> "pandas.DataFrame":
        """A row a beta."""
        import pandas as pd

        return pd.DataFrame({"beta": self.beta, "jaccard": self.jaccard, "fvu": self.fvu})

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.4g}".format)


@torch.no_grad()
def selection_overlap(
    sae: SAE,
    x: Float[Tensor, "n d_in"],
    grads: Float[Tensor, "n d_in"],
    betas: Sequence[float] = (0.0, 0.3, 1.0, 3.0),
) -> SelectionOverlap:
    """Compare the latents kept with gradients, for several weights, with those of plain TopK."""
    plain = to_dense(sae.encode(x)) != 0
    variance = (x - x.mean(0)).square().sum()
    jaccard, fvu = [], []
    for beta in betas:
        z = encode_with_gradients(sae, x, grads, beta)
        chosen = z.dense() != 0
        jaccard.append(float(((plain & chosen).sum(1) / (plain | chosen).sum(1).clamp_min(1)).mean()))
        fvu.append(float((sae.decode(z, sae.measure(x)) - x).square().sum() / variance))
    return SelectionOverlap(tuple(map(float, betas)), tuple(jaccard), tuple(fvu))
