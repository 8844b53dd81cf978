"""A language model inside a step-level SAE: frozen and shared, with low-rank adapters, or a copy of its own."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.attach import edit
from sparselens.errors import FitError, InputError, SiteError, closest
from sparselens.models.engine import Stop, Swap
from sparselens.models.live import LiveModel
from sparselens.reasoning.step_data import StepBatch

TUNINGS = ("frozen", "lora", "full")
_TOLERANCE = 1e-3


class LowRank(nn.Module):
    """Adds `scale * x A B` to the output of a linear layer (Hu et al., 2021, equation 3).

    A `[in, rank]` starts random, B `[rank, out]` at zero, so that nothing changes before training. It computes in the
    precision of x, whatever that of A and B.
    """

    def __init__(self, n_in: int, n_out: int, rank: int, scale: float):
        super().__init__()
        self.A = nn.Parameter(torch.randn(n_in, rank) / n_in**0.5)
        self.B = nn.Parameter(torch.zeros(rank, n_out))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.A.to(x.dtype) @ self.B.to(x.dtype))


class StepLM(nn.Module):
    """One language model of a `StepSAE`, and the embedding of the separator it reads.

    No token is added to the vocabulary: the separator is a vector of this module, so the live model is not changed.
    "frozen" and "lora" run the weights of the live model itself, whatever else is attached to it taken off; "full"
    makes a copy.

    Args:
        model: the live model.
        tuning: "frozen", "lora" (adapters on every linear layer that has a site) or "full".
        rank: of the adapters.
        layer: the block after which states are read; None: after the final norm. Not for a copy.

    Raises:
        InputError: an unknown tuning, or a layer that cannot be read.
        FitError: a model that does not take embeddings, or an unusual output layer.
    """

    def __init__(self, model: LiveModel, tuning: str = "frozen", rank: int = 8, layer: int | None = None):
        super().__init__()
        if tuning not in TUNINGS:
            raise InputError(f"tuning {tuning!r} is unknown; valid are {', '.join(TUNINGS)}."
                             f"{closest(str(tuning), TUNINGS)}")
        if layer is not None and (tuning == "full" or not 0 <= layer < model.n_layers):
            raise InputError(f"layer={layer} with tuning {tuning!r}: valid are 0 to {model.n_layers - 1} for a shared "
                             "model (frozen or lora), else None.")
        self.model, self.tuning, self.rank, self.layer = model, tuning, rank, layer
        self.own: nn.Module | None = None
        self.adapters = nn.ModuleDict()
        if tuning == "full":
            with model.untouched():
                self.own = copy.deepcopy(model.module).requires_grad_(True)
        elif tuning == "lora":
            self._add_adapters()
        rows = self._embedding().weight.detach().float()
        self.sep = nn.Parameter(rows.mean(0), requires_grad=tuning != "frozen")
        self.check()

    @property
    def module(self) -> Any:
        """The transformers module that runs."""
        return self.model.module if self.own is None else self.own

    @property
    def trained(self) -> list[nn.Parameter]:
        """The language model's own parameters that are trained: adapters or a copy."""
        inner = self.adapters if self.own is None else self.own
        return [p for p in inner.parameters() if p.requires_grad]

    def _embedding(self) -> Any:
        return self.module.get_input_embeddings()

    def _add_adapters(self) -> None:
        for site in self.model.sites():
            try:
                weight: Any = self.model.linear(site).weight
            except SiteError:
                continue
            # transformers' Conv1D keeps its weight as [in, out]
            n_in, n_out = weight.shape if hasattr(self.model.linear(site), "nf") else weight.shape[::-1]
            self.adapters[site.replace(".", "/")] = LowRank(n_in, n_out, self.rank, 2.0).to(weight.device)
        if not self.adapters:
            raise FitError(f"{self.model.name} has no linear layers with a site; use tuning 'full'.")

    def edits(self, model: LiveModel, at: Any = None) -> list[Swap]:
        """The adapters as an attachment: `with m.attach(ssae.decoder): ...` runs the live model with them."""

        def swap(adapter: Any) -> Any:
            return lambda x, original, _context: original(x) + adapter(x)

        return [Swap(site.replace("/", "."), swap(adapter)) for site, adapter in self.adapters.items()]

    @contextmanager
    def ready(self) -> Iterator[Any]:
        """The module bare but for these adapters, its own weights without gradients; all as before afterwards."""
        if self.own is not None:
            yield self.own
            return
        with self.model.untouched(), self.model.attach(self), _frozen(self.model.module):
            yield self.model.module

    def embed(self, batch: StepBatch) -> Float[Tensor, "b pos d"]:
        """Embeddings of a batch, the separator's in its slot."""
        with self.ready():
            values = self._embedding()(batch.ids)
        here = torch.arange(values.shape[1], device=values.device) == batch.sep[:, None]
        return torch.where(here[..., None], self.sep.to(values.dtype), values)

    def states(self, embeds: Float[Tensor, "b pos d"], mask: Tensor | None = None) -> Float[Tensor, "b pos d"]:
        """States after the final norm, or after `layer`, where the pass then stops.

        Without a mask every position counts: right padding changes no real one.
        """
        found: list[Tensor] = []

        def take(value: Tensor, _context: Any) -> None:
            found.append(value.clone())  # some models change tensors in place later
            raise Stop

        extra = {} if mask is None else {"attention_mask": mask.long()}
        with self.ready() as module:
            if self.layer is None:
                return module.base_model(inputs_embeds=embeds, use_cache=False, **extra).last_hidden_state
            with self.model.attach(edit(f"blocks.{self.layer}.hook_resid_post", take)), suppress(Stop):
                module.base_model(inputs_embeds=embeds, use_cache=False, **extra)
            return found[0]

    def logits(self, states: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
        """Logits of states after the final norm, in float32."""
        with self.ready() as module:
            out = module.get_output_embeddings()(states).float()
        config = module.config.get_text_config()
        cap = getattr(config, "final_logit_softcapping", None)
        out = out if not cap else cap * torch.tanh(out / cap)
        scale = getattr(config, "logit_scale", None)
        return out if scale is None else out * scale

    @torch.no_grad()
    def check(self) -> None:
        """Compare with the model's own forward pass on three tokens.

        Raises:
            FitError: they differ, so this family of models is not served.
        """
        ids = torch.arange(3, 6, device=self.model.device)[None] % self.model.vocab_size
        try:
            with self.ready() as module:
                wanted = module(input_ids=ids, use_cache=False).logits[0].float()
                states = module.base_model(inputs_embeds=self._embedding()(ids), use_cache=False).last_hidden_state
            found = self.logits(states[0])
        except (TypeError, NotImplementedError, AttributeError) as error:
            raise FitError(f"{self.model.name} ({self.model.backend}) does not take embeddings as a step-level SAE "
                           f"gives them ({error}); load it with backend='torch'.") from error
        if not torch.allclose(found, wanted, atol=_TOLERANCE * float(wanted.abs().max()), rtol=0):
            raise FitError(f"{self.model.name}: logits are not made from the last states by the output layer alone; "
                           "this family of models is not served.")


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for the module's own weights; every flag comes back."""
    before: Sequence[nn.Parameter] = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(True)
