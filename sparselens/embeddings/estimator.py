"""Texts as features for scikit-learn: a transformer for pipelines."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sparselens.embeddings.documents import Documents, stream_documents
from sparselens.embeddings.embedding import SAEEmbedding
from sparselens.embeddings.reader import Settings, TextReader
from sparselens.embeddings.reading import embed
from sparselens.errors import FileFormatError, InputError

if TYPE_CHECKING:
    import scipy.sparse

_DIGEST = "sparselens_text_sha256"


class SAEEmbedder(TransformerMixin, BaseEstimator):
    """Turns texts into features of a dictionary, CSR float32 `[texts, d_sae]`; see `embed`.

    Nothing is learned: `fit` opens the model and the dictionary. Clones share them, so that `cross_val_score` and
    grid searches do not load them again. To send the estimator to other processes (`n_jobs`), or to keep it in a file,
    name both instead of giving them open.

    Args:
        model: a live model, or what `load_model` takes.
        sae: a dictionary, or what `SAE.load` takes.
        pooling, threshold, min_tokens, role, span, max_length, long, skip_first, special, batch_tokens: as for `embed`;
            long="split" is refused, since a text is one row here.
        cache: a folder that keeps what was embedded, so that the same text is read once over all folds and calls.
        progress: show a bar.

    Attributes:
        model_, sae_: what `fit` opened.
        n_features_out_: number of latents.

    Example:
        >>> pipe = make_pipeline(sl.SAEEmbedder(m, sae, cache="runs/cache"), LogisticRegression())
        >>> cross_val_score(pipe, texts, y)
    """

    def __init__(
        self,
        model: Any = "smollm2-135m-instruct",
        sae: Any = "smollm2-135m-instruct",
        *,
        pooling: str = "max",
        threshold: float = 0.0,
        min_tokens: int = 1,
        role: str | None = None,
        span: str = "all",
        max_length: int | None = None,
        long: str = "error",
        skip_first: bool = True,
        special: bool = False,
        batch_tokens: int = 2048,
        cache: str | os.PathLike | None = None,
        progress: bool = False,
    ):
        self.model = model
        self.sae = sae
        self.pooling = pooling
        self.threshold = threshold
        self.min_tokens = min_tokens
        self.role = role
        self.span = span
        self.max_length = max_length
        self.long = long
        self.skip_first = skip_first
        self.special = special
        self.batch_tokens = batch_tokens
        self.cache = cache
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> "SAEEmbedder":
        """Open the model and the dictionary, and look at the texts.

        Args:
            X: a list, array or Series of strings, or of chats.
            y: ignored.

        Raises:
            InputError: a row that is no text. Others as `load_model` and `SAE.load`.
        """
        from sparselens.models.load import load_model
        from sparselens.sae.sae import SAE

        _texts(X)
        self.model_ = load_model(self.model) if isinstance(self.model, str | Path) else self.model
        self.sae_ = SAE.load(self.sae) if isinstance(self.sae, str | Path) else self.sae
        self.n_features_out_ = self._reader().saes[""].d_sae  # says at once if the two do not fit
        return self

    def transform(self, X: Any) -> "scipy.sparse.csr_matrix":
        """The features of texts, CSR float32 `[texts, d_sae]`."""
        check_is_fitted(self)
        texts = _texts(X)
        return self._read(texts) if self.cache is None else self._recall(texts, Path(self.cache))

    def fit_transform(self, X: Any, y: Any = None) -> "scipy.sparse.csr_matrix":
        """`fit`, then `transform`."""
        return self.fit(X, y).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, `feature_0` to `feature_{d_sae - 1}`.

        Args:
            input_features: ignored; texts have no names.
        """
        check_is_fitted(self)
        return np.array([f"feature_{i}" for i in range(self.n_features_out_)], dtype=object)

    def __sklearn_clone__(self) -> "SAEEmbedder":
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = False, True
        return tags

    def _settings(self) -> Settings:
        if self.long == "split":
            raise InputError('long="split" makes several rows of a text, and here each text is one: use "chunk".')
        return Settings(**{name: getattr(self, name) for name in Settings._fields})

    def _reader(self) -> TextReader:
        return TextReader(self.model_, {"": self.sae_}, self._settings(), self.batch_tokens, False)

    def _read(self, texts: list[Any], out: Path | None = None) -> "scipy.sparse.csr_matrix":
        """Embed texts."""
        import pandas as pd
        from scipy.sparse import csr_matrix

        if not any(texts):
            return csr_matrix((len(texts), self.n_features_out_), dtype=np.float32)
        frame = pd.DataFrame({"text": texts, _DIGEST: [_digest(text) for text in texts]})
        settings = self._settings()._asdict()
        return embed(frame, self.model_, self.sae_, out, batch_tokens=self.batch_tokens, progress=self.progress,
                     **settings).matrix

    def _recall(self, texts: list[Any], cache: Path) -> "scipy.sparse.csr_matrix":
        """Take from the cache what is there; embed the rest into a folder of its own there."""
        from scipy.sparse import vstack

        said = json.dumps(self._reader().info()[""], sort_keys=True)
        folder = cache / hashlib.sha256(said.encode()).hexdigest()[:16]
        digests = [_digest(text) for text in texts]
        rows: dict[str, int] = {}
        parts, total = [], 0
        for emb in _finished(folder):
            if not rows.keys() >= set(digests):
                rows |= {digest: total + i for i, digest in enumerate(emb.documents[_DIGEST])}
                parts.append(emb.matrix)
                total += len(emb)
        missing = {d: text for d, text in zip(digests, texts, strict=True) if d not in rows}
        if missing:
            name = hashlib.sha256("".join(missing).encode()).hexdigest()[:16]
            rows |= {digest: total + i for i, digest in enumerate(missing)}
            parts.append(self._read(list(missing.values()), folder / name))
        return vstack(parts, format="csr")[[rows[digest] for digest in digests]]


def _texts(X: Any) -> list[Any]:
    """Texts as a list, checked."""
    if isinstance(X, str) or hasattr(X, "iloc") and hasattr(X, "columns") or getattr(X, "ndim", 1) != 1:
        raise InputError(f"give texts as a flat list, array or Series; got {type(X).__name__}. Of a frame name the "
                         "column, such as frame['text'].")
    return [text for part in stream_documents(X) for text in part.texts]


def _digest(text: Any) -> str:
    return Documents([text]).fingerprint()


def _finished(folder: Path) -> Iterator[SAEEmbedding]:
    """The embeddings in a folder that are complete."""
    for path in sorted(folder.glob("*/")):
        try:
            yield SAEEmbedding.load(path)
        except (FileFormatError, InputError):  # another call is at it, or was killed; it goes on when asked for again
            continue
