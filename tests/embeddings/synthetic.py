"""Embeddings made from a given matrix, without a model."""

import numpy as np
import pyarrow as pa

from sparselens.embeddings.embedding import SAEEmbedding
from sparselens.embeddings.pool import Entries, pool
from sparselens.embeddings.store import Blocks, block_table, with_columns

INFO = {"format": 2, "model": "synthetic", "sae_sha256": "0", "site": "here", "pooling": "max", "role": None,
        "skip_first": True, "threshold": 0.0, "min_tokens": 1}


def embedding_of(values, n_tokens=None, words=None, block=100, columns=None, at=None, **info):
    """Each document is one word, or `n_tokens` of them, and all its features fire on the first, or where `at` says.

    Args:
        values: `[documents, d_sae]` of pooled values.
        n_tokens: tokens of each document.
        words: the first word of each document.
        block: documents in a block.
        columns: a frame of columns carried along.
        at: `[documents, d_sae]` the token of its document on which each feature fires, within `n_tokens`.
    """
    values = np.asarray(values, dtype=np.float32)
    n, d_sae = values.shape
    n_tokens = np.ones(n, dtype=int) if n_tokens is None else np.asarray(n_tokens)
    words = ["w"] * n if words is None else words
    tables = []
    for start in range(0, n, block):
        span = slice(start, min(start + block, n))
        pieces = [[word] + [" more"] * (length - 1) for word, length in zip(words[span], n_tokens[span], strict=True)]
        document, feature = np.nonzero(values[span])
        first = np.r_[0, np.cumsum(n_tokens[span])][document]
        token = first if at is None else first + np.asarray(at)[span][document, feature]
        order = np.argsort(token, kind="stable")
        document, token, feature = document[order], token[order], feature[order]
        entries = Entries(document, token, feature, values[span][document, feature])
        pooled = pool(entries, "max", n_tokens[span])
        table = block_table(["".join(p) for p in pieces], pieces, n_tokens[span], entries, pooled, d_sae)
        tables.append(with_columns(table, None if columns is None else pa.Table.from_pandas(columns[span]), ""))
    starts = [*range(0, n, block), n]
    return SAEEmbedding(Blocks(tables, starts), INFO | {"d_sae": d_sae} | info)
