"""The public SAEs: a table that is searched offline, and what `SAE.load("release/id")` finds in it."""

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparselens.errors import FileFormatError, InputError, closest
from sparselens.files import read_json
from sparselens.sae.registry import shipped

if TYPE_CHECKING:
    import pandas

_PACKAGE = Path(__file__).resolve().parent.parent
_FILE = "public_saes.csv.gz"
# Kinds of files that no reader here takes, and why.
UNREADABLE = {
    "temporal": "temporal SAEs attend over positions, which is no dictionary of single tokens",
    "mntss_clt_layer_transcoder": "its layers are parts of a cross-layer transcoder: fetch the repository and load all "
    "of them with sl.load_transcoders",
}
_ALSO = {"gpt2": "gpt2-small"}  # names that mean the same model


class PublicSAE(NamedTuple):
    """One SAE of the table.

    Attributes:
        release, id: its name is `release/id`.
        repo, path: where it lies on the hub; empty for one that comes with this package.
        format: kind of its files. model: what it was trained on.
        site: what it reads. site_out: what a transcoder writes, else empty.
        width, l0: number of latents, and active ones per token; None where nobody says.
        norm: scale of the inputs, or kind of normalisation, that the files lack.
        centred: whether the model's writing weights had been centred.
    """

    release: str
    id: str
    repo: str
    path: str
    format: str
    model: str
    site: str
    site_out: str
    width: int | None
    l0: float | None
    norm: str
    centred: bool

    @property
    def name(self) -> str:
        """What `SAE.load` takes."""
        return f"{self.release}/{self.id}"


@dataclass(frozen=True)
class FoundSAEs:
    """What `find_saes` found; iterates over `PublicSAE`, the narrowest of each model and site first."""

    saes: tuple[PublicSAE, ...]

    def __len__(self) -> int:
        return len(self.saes)

    def __iter__(self) -> Iterator[PublicSAE]:
        return iter(self.saes)

    def __getitem__(self, index: int) -> PublicSAE:
        return self.saes[index]

    def __repr__(self) -> str:
        facts = [(s, "?" if s.l0 is None else f"{s.l0:g}") for s in self.saes[:10]]
        lines = [f"{s.name}: {s.model}, {_place(s)}, width {s.width or '?'}, l0 {l0}" for s, l0 in facts]
        more = [f"... and {len(self) - 10:,} more"] if len(self) > 10 else []
        return "\n".join([f"{len(self):,} SAEs", *lines, *more])

    def to_frame(self) -> "pandas.DataFrame":
        """A row an SAE: `name, model, site, site_out, width, l0, format, repo`."""
        import pandas as pd

        rows = [(s.name, s.model, s.site, s.site_out, s.width, s.l0, s.format, s.repo) for s in self.saes]
        names = ["name", "model", "site", "site_out", "width", "l0", "format", "repo"]
        return pd.DataFrame(rows, columns=names).astype({"width": "Int64", "l0": float})

    def _repr_html_(self) -> str:
        shown = self.to_frame().head(20).to_html(index=False, na_rep="", float_format="{:g}".format)
        return f"<p>{len(self):,} SAEs{', the first 20' if len(self) > 20 else ''}</p>{shown}"


def _places(sae: PublicSAE) -> list[str]:
    return [sae.site, sae.site_out] if sae.site_out else [sae.site]


def _place(sae: PublicSAE) -> str:
    return " -> ".join(_places(sae))


def find_saes(
    model: Any = None,
    site: str | None = None,
    width: int | None = None,
    l0: tuple[int | float, int | float] | None = None,
) -> FoundSAEs:
    """Search the public SAEs, and those that come with this package. Needs no network.

    Args:
        model: name of a model, with or without its organisation, or a live model; None: all.
        site: what they read (or write): a name or a glob such as "blocks.12.*"; None: all.
        width: number of latents.
        l0: lowest and highest number of active latents per token. One that does not say is left out.

    Raises:
        InputError: a model or a site for which there is none; the closest names are given.

    Example:
        >>> sl.find_saes("gemma-2-2b", site="blocks.12.hook_resid_post", width=16384)
    """
    found: list[PublicSAE] = [*_shipped(), *table()]
    if model is not None:
        name = str(getattr(model, "name", model))
        found = _chosen(found, "model", name, lambda s: [_bare(s.model)], lambda value: value == _bare(name))
    if site is not None:
        found = _chosen(found, "site", site, _places, lambda value: fnmatchcase(value, site))
    if width is not None:
        found = [s for s in found if s.width == width]
    if l0 is not None:
        found = [s for s in found if s.l0 is not None and l0[0] <= s.l0 <= l0[1]]
    return FoundSAEs(tuple(sorted(found, key=lambda s: (s.model, _by_layer(s.site), s.width or 0, s.l0 or 0))))


def _chosen(found: list[PublicSAE], what: str, given: str, values: Any, fits: Any) -> list[PublicSAE]:
    """Those of which a value fits.

    Raises:
        InputError: there is none.
    """
    kept = [s for s in found if any(fits(value) for value in values(s))]
    if not kept:
        known = sorted({value for s in found for value in values(s)})
        some = "" if len(known) > 30 else f" There are: {', '.join(known)}."
        raise InputError(f"no SAE is known for the {what} {given!r}.{closest(_bare(given), known)}{some}")
    return kept


def _bare(model: str) -> str:
    """A model's name without its organisation, in lower case."""
    name = model.rsplit("/", 1)[-1].lower()
    return _ALSO.get(name, name)


def _by_layer(site: str) -> tuple[int, str]:
    parts = site.split(".")
    return (int(parts[1]), parts[-1]) if len(parts) > 1 and parts[1].isdigit() else (-1, site)


@cache
def table() -> tuple[PublicSAE, ...]:
    """Every public SAE.

    Raises:
        FileFormatError: the table is missing from this installation.
    """
    places = [_PACKAGE / "_data" / "registry" / _FILE, _PACKAGE.parent / "data" / "registry" / _FILE]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise FileFormatError(f"{_FILE} is not in this installation; install sparselens again.")
    with gzip.open(file, "rt", encoding="utf-8", newline="") as handle:
        return tuple(_rows(csv.DictReader(io.StringIO(handle.read()))))


def _rows(lines: Iterable[dict[str, str]]) -> Iterator[PublicSAE]:
    for line in lines:
        numbers: dict[str, Any] = {"width": int(line["width"]) if line["width"] else None}
        numbers |= {"l0": float(line["l0"]) if line["l0"] else None, "centred": line["centred"] == "yes"}
        yield PublicSAE(**{**line, **numbers, "path": line["path"] or line["id"]})  # type: ignore[arg-type]


def _shipped() -> list[PublicSAE]:
    found = []
    for one in shipped():
        card = read_json(one.folder / "card.json") if (one.folder / "card.json").is_file() else {}
        name = f"{one.site}/{one.recipe}"
        sizes = (card.get("d_sae"), card.get("l0"))
        found.append(PublicSAE(one.model, name, "", "", "sparselens", one.model, one.site, "", *sizes, "", False))
    return found


def find(name: str) -> PublicSAE | None:
    """The SAE called `release/id`; None if there is no such release.

    Raises:
        InputError: the release is known but the id is not, or its files cannot be read here.
    """
    release, _, inner = name.partition("/")
    of_release = {s.id: s for s in table() if s.release == release}
    if not of_release:
        return None
    if inner not in of_release:
        raise InputError(
            f"the release {release} has no SAE {inner!r}; it has {len(of_release):,}, such as "
            f"{', '.join(list(of_release)[:3])}.{closest(inner, of_release)}"
        )
    sae = of_release[inner]
    if sae.format in UNREADABLE:
        raise InputError(f"{name} cannot be loaded: {UNREADABLE[sae.format]}.")
    return sae


def releases() -> list[str]:
    """Names of the releases, for errors."""
    return list(dict.fromkeys(s.release for s in table()))
