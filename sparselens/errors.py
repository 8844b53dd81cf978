"""Every error that sparselens raises on purpose. Each has a page in the documentation under `errors/`."""

from collections.abc import Iterable
from difflib import get_close_matches


class SparselensError(Exception):
    """Base of all errors raised on purpose by sparselens."""


class SiteError(SparselensError, LookupError):
    """A site name is unknown, ambiguous, or not served by this model."""


class InputError(SparselensError, ValueError):
    """Texts, tokens or arguments that cannot be used as given."""


class FitError(SparselensError, ValueError):
    """An attachment does not fit the model or the site it is put on."""


class FileFormatError(SparselensError, ValueError):
    """A file is damaged, incomplete, or not in a format that can be read safely."""


class FetchError(SparselensError, OSError):
    """A model, a file or an answer could not be fetched, and no copy is at hand."""


class NotFiniteError(SparselensError, ValueError):
    """NaN or infinite numbers where finite ones are needed."""


class StorageError(SparselensError, OSError):
    """A result could not be written; nothing half-written was left behind."""


def closest(name: str, valid: Iterable[str], n: int = 3) -> str:
    """Return `" Closest: a, b."` with the valid names nearest to `name`, or an empty string."""
    near = get_close_matches(str(name), list(valid), n=n, cutoff=0.4)
    return f" Closest: {', '.join(near)}." if near else ""
