"""The tables of architectures: every name that `SAE` takes, the part it stands for, and how it is trained."""

from sparselens.errors import InputError, closest
from sparselens.sae.activations import (
    AbsTopK,
    Activation,
    BatchAbsTopK,
    BatchTopK,
    FeatureChoice,
    Gated,
    JumpReLU,
    ReLU,
    TopK,
)
from sparselens.sae.decoders import Bypass, Decoder
from sparselens.sae.groupmax import GroupMax
from sparselens.sae.itda import Atoms
from sparselens.sae.losses import GatedL1, PerBatch, SteeredL1, TargetL0
from sparselens.sae.mp import MatchingPursuit, Pursued
from sparselens.sae.mutual_choice import FeatureBudget
from sparselens.sae.polysae import PolyDecoder
from sparselens.sae.rules import PerToken, Rule
from sparselens.sae.structured import LowRank, SparseLowRank, Structured
from sparselens.sae.topafa import MatchNorm, TopAFA

ACTIVATIONS: dict[str, type[Activation]] = {
    part.name: part
    for part in (
        ReLU, JumpReLU, Gated, TopK, AbsTopK, BatchTopK, BatchAbsTopK, FeatureChoice, TopAFA, GroupMax,
        MatchingPursuit, Atoms, Structured,
    )
}
# Parts that take the place of the linear decoder, and parts that go around the codes, by the name files use.
DECODERS: dict[str, type[Decoder]] = {PolyDecoder.name: PolyDecoder}
BYPASSES: dict[str, type[Bypass]] = {LowRank.name: LowRank}
# How each is trained.
RULES: dict[str, Rule] = {
    "relu": SteeredL1(),
    "gated": GatedL1(),
    "jumprelu": TargetL0(),
    "topk": PerToken(),
    "abstopk": PerToken(),
    "groupmax": PerToken(),
    "batchtopk": PerBatch(),
    "batch_abstopk": PerBatch(),
    "featurechoice": FeatureBudget(),
    "topafa": MatchNorm(),
    "mp": Pursued(),
    "structured": SparseLowRank(),
}
ALIASES = {"standard": "relu", "mutualchoice": "batchtopk", "tokenchoice": "topk"}


def make_activation(architecture: str, d_sae: int, k: int | float | None) -> Activation:
    """Build the activation part called `architecture` for `d_sae` latents.

    Raises:
        InputError: the name is unknown (the closest is named), or `k` is missing, impossible, or out of place.
    """
    name = ALIASES.get(architecture, architecture)
    if name not in ACTIVATIONS:
        raise InputError(
            f"unknown architecture {architecture!r}; valid: {', '.join(sorted({*ACTIVATIONS, *ALIASES}))}."
            f"{closest(architecture, [*ACTIVATIONS, *ALIASES])}"
        )
    part = ACTIVATIONS[name]
    check_k(name, part.wants_k, k, d_sae)
    return part.make(d_sae, k)


def check_k(name: str, wants: str, k: int | float | None, d_sae: int) -> None:
    """Raise `InputError` unless k fits what an architecture wants ("whole", "number" or "" for none)."""
    if not wants:
        if k is not None:
            raise InputError(f"{name} takes no k (it was given k={k}); its sparsity is learned.")
        return
    if k is None:
        raise InputError(f"{name} needs k, the number of latents kept per token, e.g. k=32.")
    whole = wants == "whole"
    if isinstance(k, bool) or not isinstance(k, int | float) or (whole and int(k) != k) or not 0 < k <= d_sae:
        kind = "a whole number from 1" if whole else "a number above 0"
        raise InputError(f"k={k!r} does not fit {name}: it must be {kind} to d_sae={d_sae}.")
