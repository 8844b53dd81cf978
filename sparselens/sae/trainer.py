"""One SAE in training: parameters, optimiser, dead-latent bookkeeping. All state that only training needs is here."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.errors import InputError, NotFiniteError, closest
from sparselens.sae import parallel
from sparselens.sae.architectures import RULES
from sparselens.sae.dense_step import dense_gradients
from sparselens.sae.lean_step import AUX, StepResult, Task, Weights, lean_gradients
from sparselens.sae.rules import Rule, Step, overrides
from sparselens.sae.sae import SAE
from sparselens.sae.selection import flat_indices, largest_of_token
from sparselens.sae.units import Units, measured_units, to_training, to_user

PRECISIONS = ("float32", "bfloat16", "auto")


class SAETrainer:
    """Trains one SAE on batches of activations.

    It trains `model`, a float32 copy in training units: inputs have norm sqrt(d_in) on average, so that learning rates
    carry over between models. Decoder rows keep norm 1. `export` brings the weights back.

    Args:
        sae: the SAE to train, fresh or trained; it is filled by `export`. Fresh means `b_dec` is zero: then `b_dec`
            starts at the mean of the sample.
        sample: some activations `[n, d_in]`, to take scale and mean from.
        k: active latents per token (where the architecture has no k of its own: aimed at).
        lr: peak learning rate of Adam.
        dead_after: a latent that has not fired for this many tokens is dead.
        target: what is to be written for the sample `[n, d_out]`; None: the sample itself.
        rules: what is added to the architecture's own rule; one of the same type takes its place.
        aux: whether dead latents are trained on what is left over, where the architecture selects its latents.
        precision: of the products: "float32", "bfloat16" (weights stay float32), or "auto": bfloat16 where the
            hardware multiplies it faster.
        n_steps: length of the run, for rules that follow its course.

    Attributes:
        model: the SAE in training units.
        lean: whether the step works on surviving codes alone, else through autograd on dense ones.
        unit_rows: whether decoder rows are kept at norm 1.
        clip: largest norm of the gradient of all parameters; None: any.
        prefixes: widths of nested dictionaries. second: k and weight of a second reconstruction.
        extra: named tensors of the rules.

    Raises:
        InputError: no k, an input norm that cannot be trained, or rules that do not fit.
        NotFiniteError: the sample holds NaN or infinite numbers.
    """

    def __init__(
        self,
        sae: SAE,
        sample: Float[Tensor, "n d_in"],
        *,
        k: int | float | None,
        lr: float,
        dead_after: int,
        target: Float[Tensor, "n d_out"] | None = None,
        rules: Sequence[Rule] = (),
        aux: bool = True,
        precision: str = "float32",
        n_steps: int = 1,
    ) -> None:
        if k is None:
            raise InputError(f"a {sae.architecture} SAE is trained towards k active latents per token: give k.")
        if not torch.isfinite(sample).all() or (target is not None and not torch.isfinite(target).all()):
            raise NotFiniteError("the activations hold NaN or infinite numbers.")
        self.sae, self.k, self.lr, self.dead_after, self.n_steps = sae, k, lr, dead_after, n_steps
        self.half = in_half(precision, sample.device)
        own = RULES[sae.architecture]
        replaced = any(rule.alone or type(rule) is type(own) for rule in rules)
        self.rules: list[Rule] = [*rules] if replaced else [own, *rules]
        self.aux, self.aux_weight = aux, AUX
        self.extra: dict[str, Tensor] = {}
        self.learned: dict[str, nn.Parameter] = {}
        self.prefixes: tuple[int, ...] = ()
        self.second: tuple[int, float] | None = None
        self.clip: float | None = None
        self.number = 0
        scale = sae.input_norm.measure(sample)
        x = sae.input_norm.apply(sample, scale)
        y = x if target is None else sae.input_norm.apply(target, scale)
        self.units = measured_units(sae, x, y)
        self.model = to_training(sae, self.units)
        x, y, _ = self.prepare(sample, target)
        if not sae.b_dec.any():
            self.model.b_dec.data = y.mean(0)
        self.since = torch.zeros(sae.d_sae, dtype=torch.int64, device=sample.device)
        linear = sae.decoder is None and sae.bypass is None and self.model.b_enc is not None
        self.lean = linear and not any(overrides(r, "codes") or overrides(r, "loss") for r in self.rules)
        norms = self.model.W_dec.detach().norm(dim=1)
        self.unit_rows = sae.decoder is None and bool(((norms - 1).abs() < 1e-3).all())
        for rule in self.rules:
            rule.start(self, x, y)
        self._make_optimiser()

    def _make_optimiser(self) -> None:
        own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        # the same memory, by rows: see `to_training`
        self.leaves = {name: nn.Parameter(p.detach().T if name == "W_enc" else p.detach()) for name, p in own.items()}
        self._trained = own | self.learned
        self.leaves |= self.learned
        self.optimiser = torch.optim.Adam(self.leaves.values(), self.lr, fused=True)

    def remember(self, name: str, value: Tensor) -> None:
        """Keep a tensor of a rule in `extra` and in checkpoints."""
        self.extra[name] = value

    def learn(self, name: str, value: Tensor) -> nn.Parameter:
        """Add a parameter that only training needs; only from `Rule.start`."""
        self.learned[name] = nn.Parameter(value)
        return self.learned[name]

    def prepare(
        self, x: Float[Tensor, "n d_in"], y: Tensor | None = None, grads: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Activations, targets and gradients in training units."""
        norm, units = self.sae.input_norm, self.units
        scale = norm.measure(x)
        read = (norm.apply(x, scale) - units.shift) * units.read
        written = read if y is None else norm.apply(y, scale) * units.written
        if grads is not None:
            grads = (grads if scale is None or scale.factor is None else grads * scale.factor) / units.read
        return read, written, grads

    def step(
        self,
        x: Float[Tensor, "n d_in"],
        lr_factor: float,
        y: Float[Tensor, "n d_out"] | None = None,
        grads: Float[Tensor, "n d_in"] | None = None,
    ) -> StepResult:
        """One optimiser step on a batch of activations, at `lr_factor` times the peak learning rate.

        Args:
            x: what is read; y: what is to be written (None: x); grads: gradient of the model's loss at x, for rules
                that need it.

        Raises:
            NotFiniteError: the loss is NaN or infinite; the weights are left as they were.
        """
        inner, target, grads = self.prepare(x, y, grads)
        dead = (self.since >= self.dead_after).nonzero().flatten()
        share = self.number / max(1, self.n_steps)
        s = Step(self.model, inner, target, self.number, share, dead, grads)
        seen = self._lean(s) if self.lean else dense_gradients(self, s, self.half)
        seen = StepResult(parallel.sum_(seen.fires), self.mean(seen.l0), self.mean(seen.error))
        if not torch.isfinite(seen.error):
            raise NotFiniteError(
                "the training loss is NaN or infinite: the activations hold such numbers, or the learning rate "
                f"({self.lr * lr_factor:.1e}) is too high."
            )
        self._descend(lr_factor)
        with torch.no_grad():
            self._after_step(s, seen, len(x))
        return seen

    def _lean(self, s: Step) -> StepResult:
        """Gradients of the lean step, handed to the optimiser's parameters."""

        def choose(pre: Tensor) -> Tensor:
            s.pre = pre  # type: ignore[misc]  # a cached property: here the product exists already
            where = next(w for r in reversed(self.rules) if (w := r.choose(self, s)) is not None)
            del s.pre  # the step itself lets go of it next
            return where

        model = self.model
        dec = model.W_dec.detach()
        enc = dec if model.tied else self.leaves["W_enc"].detach()
        skip = None if model.W_skip is None else model.W_skip.detach()
        w = Weights(enc, model.b_enc.detach(), dec, model.b_dec.detach(), skip)  # type: ignore[union-attr]
        signed = model.activation.signed
        task = Task(choose, signed, model.subtract_b_dec, self.prefixes, self.half, self.aux_weight)
        grads, seen = lean_gradients(w, s.x, s.y, task, self.to_revive(s))
        if self.second is not None:
            self._add_second(grads, w, s, task)
        names = {"W_enc": grads.enc, "b_enc": grads.b_enc, "W_dec": grads.dec, "b_dec": grads.b_dec}
        for name, grad in (names | {"W_skip": grads.skip}).items():
            if name in self.leaves:
                self.leaves[name].grad = grad
        return seen

    def _add_second(self, grads: Weights, w: Weights, s: Step, task: Task) -> None:
        """Add the gradients of a reconstruction from more latents."""
        k, weight = self.second  # type: ignore[misc]

        def choose(pre: Tensor) -> Tensor:
            return flat_indices(largest_of_token(pre, k, task.signed), pre.shape[1]).flatten()

        more, _ = lean_gradients(w, s.x, s.y, task._replace(choose=choose))
        for mine, added in zip(grads, more, strict=True):
            if mine is not None and added is not None:
                mine.add_(added, alpha=weight)

    def to_revive(self, s: Step) -> Tensor | None:
        """Latents to train on what is left over: those a rule names, else the dead ones."""
        for rule in reversed(self.rules):
            found = rule.revive(self, s)
            if found is not None:
                return found
        selects = overrides(self.rules[0], "choose")
        return s.dead if self.aux and selects else None

    def _descend(self, lr_factor: float) -> None:
        """The optimiser's step, after what keeps decoder rows on the unit sphere."""
        for name, parameter in self._trained.items():
            if not self.lean and parameter.grad is not None:
                self.leaves[name].grad = parameter.grad.T if name == "W_enc" else parameter.grad
        given = [leaf.grad for leaf in self.leaves.values() if leaf.grad is not None]
        for grad in given:
            parallel.mean_(grad)
        if self.unit_rows and self.leaves["W_dec"].grad is not None:
            grad, rows = self.leaves["W_dec"].grad, self.model.W_dec.detach()
            grad.addcmul_(torch.linalg.vecdot(grad, rows).unsqueeze(1), rows, value=-1)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.leaves.values(), self.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * lr_factor
        self.optimiser.step()
        self.zero_grad()

    def _after_step(self, s: Step, seen: StepResult, tokens: int) -> None:
        if self.unit_rows:
            self.model.W_dec.div_(self.model.W_dec.norm(dim=1, keepdim=True))
        if self.model.decoder is not None:
            self.model.decoder.settle()
        self.since += tokens * parallel.size()
        self.since[seen.fires > 0] = 0
        for rule in self.rules:
            rule.after(self, s, seen)
        self.number += 1

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        for parameter in [*self.leaves.values(), *self._trained.values()]:
            parameter.grad = None

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a number over the processes that train together."""
        return parallel.mean_(value.detach().float().clone())

    def generator(self, s: Step) -> torch.Generator:
        """Random numbers of this step: the same again when the run is resumed."""
        return torch.Generator(s.x.device).manual_seed(1_000_003 * s.number + 17)

    def forget(self, latents: Tensor) -> None:
        """Clear the optimiser's state of some latents, after they were set anew."""
        for name, leaf in self.leaves.items():
            if name in ("W_enc", "W_dec", "b_enc"):
                for slot in ("exp_avg", "exp_avg_sq"):
                    self.optimiser.state[leaf][slot][latents] = 0

    @property
    def dead_share(self) -> float:
        """Share of latents that have not fired for `dead_after` tokens."""
        return float((self.since >= self.dead_after).double().mean())

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly from here, as named tensors."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"learned.{name}": value.detach() for name, value in self.learned.items()}
        tensors |= {f"extra.{name}": value.detach() for name, value in self.extra.items()}
        tensors |= {f"units.{name}": value.clone() for name, value in self.units._asdict().items()}
        for index, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in slots.items()}
        return tensors | {"since": self.since, "number": torch.tensor(self.number)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        own = self.state()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, slot = name.split(".")
                slots.setdefault(int(index), {})[slot] = value
            elif name != "number":
                own[name].copy_(value)
        self.number = int(tensors["number"])
        self.units = Units(*(tensors[f"units.{name}"].to(self.since.device) for name in Units._fields))
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": slots, "param_groups": groups})

    def export(self) -> SAE:
        """Bring the weights back to the activations' own scale and put them into the SAE, which is returned."""
        to_user(self.model, self.units, self.sae)
        return self.sae.requires_grad_(False)


def in_half(precision: str, device: torch.device) -> bool:
    """Whether products are to run in bfloat16."""
    if precision not in PRECISIONS:
        valid = ", ".join(PRECISIONS)
        raise InputError(f"unknown precision {precision!r}; valid: {valid}.{closest(precision, PRECISIONS)}")
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # bfloat16 without them is slower
    return device.type == "cpu" and bool(has_tiles())
