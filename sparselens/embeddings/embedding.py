"""Embedded documents: the matrix, the texts, and the tokens that fire."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparselens.embeddings.folder import Folder, rows_of
from sparselens.embeddings.pool import check_pooling, pool
from sparselens.embeddings.reading_cost import ReadingCost
from sparselens.embeddings.store import Blocks, carried, entries_of, flat_numbers
from sparselens.errors import FileFormatError, InputError

if TYPE_CHECKING:
    import pandas
    import pyarrow
    import scipy.sparse

    from sparselens.embeddings.descriptions import TokenMass
    from sparselens.views.tokens import TokenView


class SAEEmbedding:
    """Documents as features of a dictionary; made by `embed`, or `SAEEmbedding.load(folder)`.

    A document is known by its position, 0 to `len(emb) - 1`.

    Attributes:
        info: what was embedded and how (model, site, sae_sha256, pooling, role, ...).
    """

    def __init__(self, blocks: Blocks, info: dict[str, Any], rows: np.ndarray | None = None):
        self.info = info
        self._blocks = blocks
        self._rows = np.arange(len(blocks)) if rows is None else rows
        self._whole: SAEEmbedding | None = None  # of a subset: what it was taken from
        self._again = False  # pooled in another way than the blocks say

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SAEEmbedding":
        """Open a folder that `embed` wrote, memory-mapped.

        Raises:
            InputError: there is no embedding. FileFormatError: it is unfinished or damaged.
        """
        folder = Folder(Path(path))
        info = folder.manifest()
        rows = rows_of(info)
        starts = [0, *np.cumsum(rows).tolist()]
        return cls(Blocks([folder.block(i) for i in range(len(rows))], starts, folder.seconds), info)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def d_sae(self) -> int:
        """Number of features, firing or not."""
        return self.info["d_sae"]

    @cached_property
    def matrix(self) -> "scipy.sparse.csr_matrix":
        """The pooled features, CSR float32 `[documents, d_sae]`. A feature that fires has an entry."""
        from scipy.sparse import csr_matrix

        if self._whole is not None:
            return self._whole.matrix[self._rows]
        pooled = self._pooled_again if self._again else _pooled
        parts = [pooled(table) for _, table in self._tables()]
        pointers = np.r_[0, np.cumsum(np.concatenate([lengths for _, lengths, _ in parts]))]
        index = np.concatenate([feature for feature, _, _ in parts]).astype(np.int32)
        if len(index) and not 0 <= index.min() <= index.max() < self.d_sae:
            raise FileFormatError(f"a stored feature has the number {index.max()}, and there are {self.d_sae}: a block "
                                  "of this embedding is damaged. Embed again into a new folder.")
        values = np.concatenate([value for _, _, value in parts])
        return csr_matrix((values, index, pointers), shape=(len(self), self.d_sae))

    @cached_property
    def documents(self) -> "pandas.DataFrame":
        """A row a document: `text`, `n_tokens` (how many were pooled), and the columns carried along.

        Texts that were split have a row for each chunk; `source` and `chunk` tell which.
        """
        import pandas as pd

        parts = []
        for where, table in self._tables():
            own = [name for name in ("text", "n_tokens", "source", "chunk") if name in table.column_names]
            both = [table.select(own).to_pandas(), carried(table).to_pandas()]
            parts.append(pd.concat(both, axis=1).set_index(where))
        return pd.concat(parts).sort_index()

    @cached_property
    def features(self) -> "pandas.DataFrame":
        """A row for each feature that fires.

        Columns: `feature`; `density`, the share of documents in which it fires; `mean_value`, its mean pooled value
        in those; `max_value`; `top_tokens`, where it fires.
        """
        import pandas as pd

        from sparselens.embeddings.descriptions import fires_on

        matrix = self.matrix.tocsc()
        counts = np.diff(matrix.indptr)
        fired = np.flatnonzero(counts)
        total = np.asarray(matrix.sum(axis=0)).ravel()
        tops = fires_on(self.token_mass, fired.tolist())
        return pd.DataFrame({
            "feature": fired,
            "density": counts[fired] / len(self),
            "mean_value": total[fired] / counts[fired],
            "max_value": np.asarray(abs(matrix).max(axis=0).todense()).ravel()[fired],
            "top_tokens": [", ".join(map(repr, top)) for top in tops],
        })

    @cached_property
    def token_mass(self) -> "TokenMass":
        """How much of each feature's activation falls on each token; what descriptions are made from."""
        from sparselens.embeddings.descriptions import token_mass

        return token_mass(self)

    def _tables(self) -> Iterator[tuple[np.ndarray, "pyarrow.Table"]]:
        """Stored rows of these documents, block after block, and the position of each row among them."""
        return self._blocks.rows(self._rows)

    def subset(self, which: Any) -> "SAEEmbedding":
        """Some documents as an embedding of their own; nothing is copied.

        Args:
            which: a boolean mask (list, array or Series), or positions.

        Raises:
            InputError: a mask of another length, a position that does not exist, or no document left.
        """
        chosen = np.asarray(which)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise InputError(f"the mask has shape {list(chosen.shape)}, but there are {len(self)} documents.")
            chosen = np.flatnonzero(chosen)
        if chosen.ndim != 1 or not len(chosen):
            raise InputError("a subset needs at least one document.")
        if chosen.dtype.kind not in "iu":
            raise InputError(f"documents are chosen by a boolean mask or by whole numbers, not by {chosen.dtype}.")
        rows = self._rows[[self._position(int(i)) for i in chosen]]
        part = SAEEmbedding(self._blocks, self.info, rows)
        part._whole = self if self._whole is None else self._whole
        return part

    def pooled(self, pooling: str, *, threshold: float = 0.0, min_tokens: int = 1) -> "SAEEmbedding":
        """The same documents pooled in another way, without the model.

        The stored codes of the tokens are float16, so values agree with those of `embed` to about three digits.

        Args:
            pooling, threshold, min_tokens: as for `embed`.

        Raises:
            InputError: an unknown pooling.
        """
        check_pooling(pooling, threshold, min_tokens)
        info = self.info | {"pooling": pooling, "threshold": threshold, "min_tokens": min_tokens}
        other = SAEEmbedding(self._blocks, info)
        other._again = True
        return other if self._whole is None else other.subset(self._rows)

    def _pooled_again(self, table: "pyarrow.Table") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n_tokens = table["n_tokens"].to_numpy()
        settings = (self.info[name] for name in ("threshold", "min_tokens"))
        found = pool(entries_of(table), self.info["pooling"], n_tokens, *settings)
        return found.feature, np.bincount(found.document, minlength=len(table)), found.value

    def fires(self, threshold: float = 0.0, min_tokens: int = 1) -> "scipy.sparse.csr_matrix":
        """Which features fire in which documents, CSR bool `[documents, d_sae]`.

        Args:
            threshold: a token counts when the magnitude of its code is above this.
            min_tokens: tokens that must count.
        """
        from scipy.sparse import csr_matrix

        if threshold < 0 or min_tokens < 1:
            raise InputError(f"threshold={threshold} and min_tokens={min_tokens}: they must be at least 0 and 1.")
        if (threshold, min_tokens) == (self.info.get("threshold", 0.0), self.info.get("min_tokens", 1)):
            matrix = self.matrix
            return csr_matrix((np.ones(matrix.nnz, dtype=bool), matrix.indices, matrix.indptr), shape=matrix.shape)
        rows, columns = [], []
        for where, table in self._tables():
            feature, lengths = flat_numbers(table, "token_feature")
            counts = np.abs(flat_numbers(table, "token_value")[0]) > threshold
            pairs = np.repeat(where, lengths)[counts] * self.d_sae + feature[counts]
            pairs, times = np.unique(pairs, return_counts=True)
            row, column = np.divmod(pairs[times >= min_tokens], self.d_sae)
            rows.append(row)
            columns.append(column)
        at = (np.concatenate(rows), np.concatenate(columns))
        return csr_matrix((np.ones(len(at[0]), dtype=bool), at), shape=(len(self), self.d_sae))

    def tokens(self, document: int) -> list[str]:
        """The text of a document token by token; without special tokens and template."""
        return self._blocks.document(self._row(document)).pieces

    def activations(self, document: int, feature: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """Values of a feature at each token of a document, float32 `[tokens]`, or `[tokens, k]` for k features.

        0 where it does not fire. The stored values are float16.
        """
        asked = [self._feature(f) for f in np.atleast_1d(feature).tolist()]
        tokens = self._blocks.document(self._row(document))
        wanted, back = np.unique(np.asarray(asked, dtype=np.int64), return_inverse=True)
        column = np.full(self.d_sae, -1)
        column[wanted] = np.arange(len(wanted))
        column = column[tokens.feature]
        at = np.repeat(np.arange(len(tokens.active)), tokens.active)
        out = np.zeros((len(tokens.active), len(wanted)), dtype=np.float32)
        out[at[column >= 0], column[column >= 0]] = tokens.value[column >= 0]
        return out[:, back[0]] if np.ndim(feature) == 0 else out[:, back]

    def top_documents(self, feature: int, k: int = 10) -> "pandas.DataFrame":
        """The documents in which a feature is strongest, strongest first: `document`, `value`, and their columns."""
        values = self.matrix[:, [self._feature(feature)]].tocoo()
        order = np.argsort(-np.abs(values.data), kind="stable")[:k]
        chosen = values.row[order]
        frame = self.documents.iloc[chosen].reset_index(drop=True)
        frame.insert(0, "document", chosen)
        frame.insert(1, "value", values.data[order])
        return frame

    def highlight(self, document: int, feature: int | Sequence[int] | np.ndarray) -> "TokenView":
        """Show a document with the tokens marked on which a feature fires, or several.

        Raises:
            InputError: the document has no tokens, or there is no such document or feature.
        """
        from sparselens.views import token_view

        features = np.atleast_1d(feature).tolist()
        return token_view(self.tokens(document), self.activations(document, features), features,
                          title=f"document {document}")

    def to_frame(
        self, features: int | Sequence[int] | np.ndarray | None = None, *, documents: bool = False
    ) -> "pandas.DataFrame":
        """A row a document, with a sparse column for each feature, named by its number.

        The index counts the documents from 0, so that the frame joins to the one the texts came in.

        Args:
            features: which features; all that fire by default.
            documents: put the columns of `documents` in front.
        """
        import pandas as pd

        asked = np.unique(self.matrix.indices) if features is None else np.atleast_1d(features)
        chosen = [self._feature(f) for f in asked.tolist()]
        frame = pd.DataFrame.sparse.from_spmatrix(self.matrix[:, chosen], columns=chosen)
        return pd.concat([self.documents, frame], axis=1) if documents else frame

    def cost(self) -> ReadingCost:
        """What reading these texts cost. Of a subset: its share of the time, by tokens."""
        read = np.zeros(len(self), dtype=np.int64)
        for where, table in self._tables():
            read[where] = table["n_read"].to_numpy()
        tokens, seconds = int(read.sum()), self._blocks.seconds
        if self._whole is not None:
            seconds *= tokens / max(1, self._whole.cost().reader_tokens)
        return ReadingCost(len(self), tokens, seconds)

    def __repr__(self) -> str:
        return (f"SAEEmbedding({len(self):,} documents, {self.d_sae:,} features, pooling={self.info['pooling']!r}, "
                f"{self.info['model']} at {self.info['site']})")

    def _repr_html_(self) -> str:
        from sparselens.views import report_html

        fired = np.diff(self.matrix.indptr)
        n_tokens = self.documents["n_tokens"]
        rows = [
            ("documents", len(self)),
            ("tokens pooled", int(n_tokens.sum())),
            ("tokens per document", f"{n_tokens.mean():.1f} on average, {n_tokens.min()} to {n_tokens.max()}"),
            ("features that fire", f"{len(np.unique(self.matrix.indices)):,} of {self.d_sae:,}"),
            ("features per document", f"{fired.mean():.1f} on average"),
            ("pooling", self.info["pooling"]),
            ("model, site", f"{self.info['model']}, {self.info['site']}"),
        ]
        if blank := int((n_tokens == 0).sum()):
            rows.append(("without a pooled token", f"{blank:,} (empty or of one token: rows of zeros)"))
        return report_html("Texts as features", rows)

    def _row(self, document: int) -> int:
        return int(self._rows[self._position(document)])

    def _position(self, document: int) -> int:
        if not 0 <= document < len(self):
            raise InputError(f"there is no document {document}: there are {len(self)}, counted from 0.")
        return document

    def _feature(self, feature: int) -> int:
        if not 0 <= feature < self.d_sae:
            raise InputError(f"there is no feature {feature}: this dictionary has {self.d_sae}, counted from 0.")
        return int(feature)


def _pooled(table: "pyarrow.Table") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pooled codes of a block: features, how many each document has, values."""
    feature, lengths = flat_numbers(table, "feature")
    return feature, lengths, flat_numbers(table, "value")[0]
