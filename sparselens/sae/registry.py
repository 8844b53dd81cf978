"""The SAEs that come with sparselens: `<model>/<site>/<recipe>/` folders, each with a card."""

from dataclasses import dataclass
from pathlib import Path

from sparselens.errors import InputError, closest
from sparselens.files import read_json

_CONFIGS = ("cfg.json", "sae.json")  # in the SAELens layout, and in our own for what that does not know
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shipped:
    """One shipped SAE: `model`, `site`, `recipe`, the `folder` it lies in, whether it is the model's default."""

    model: str
    site: str
    recipe: str
    folder: Path
    default: bool

    @property
    def name(self) -> str:
        """The full name, `model/site/recipe`."""
        return f"{self.model}/{self.site}/{self.recipe}"


def roots() -> list[Path]:
    """Where shipped SAEs lie: in the installed package, or in the `data` folder of a checkout."""
    return [_PACKAGE / "_data" / "saes", _PACKAGE.parent / "data" / "saes"]


def shipped() -> list[Shipped]:
    """Every shipped SAE, sorted by name; those of the installed package come before a checkout's."""
    found: dict[str, Shipped] = {}
    for root in roots():
        for folder in sorted({cfg.parent for name in _CONFIGS for cfg in root.glob(f"*/*/*/{name}")}):
            model, site, recipe = folder.parts[-3:]
            card = folder / "card.json"
            default = card.is_file() and bool(read_json(card).get("default"))
            entry = Shipped(model, site, recipe, folder, default)
            found.setdefault(entry.name, entry)
    return [found[name] for name in sorted(found)]


def names() -> list[str]:
    """The names of the models with shipped SAEs, then the full names of the SAEs."""
    entries = shipped()
    return sorted({entry.model for entry in entries}) + [entry.name for entry in entries]


def find(name: str) -> Path | None:
    """The folder of the shipped SAE called `model`, `model/site` or `model/site/recipe`; None if the model is
    not among the shipped ones.

    Raises:
        InputError: the model is known but the rest is not, or the name fits several and none is the default.
    """
    model, *rest = name.strip("/").split("/")
    of_model = [entry for entry in shipped() if entry.model == model]
    if not of_model:
        return None
    fitting = [entry for entry in of_model if [entry.site, entry.recipe][: len(rest)] == rest]
    chosen = [entry for entry in fitting if entry.default] or fitting
    if len(chosen) == 1:
        return chosen[0].folder
    valid = [entry.name for entry in of_model]
    problem = "fits several" if fitting else "is unknown"
    raise InputError(f"the SAE name {name!r} {problem}; valid: {', '.join(valid)}.{closest(name, valid)}")
