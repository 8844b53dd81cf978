"""Reading texts through a model and a dictionary: one sparse vector per document, and the codes of its tokens."""

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparselens.attach import fitting_sites
from sparselens.embeddings.documents import Documents, as_documents
from sparselens.embeddings.embedding import SAEEmbedding
from sparselens.embeddings.pieces import Pieces
from sparselens.embeddings.pool import Entries, check_pooling, pool
from sparselens.embeddings.store import FORMAT, Blocks, Folder, block_table, index_type, write_table
from sparselens.errors import FitError, NotFiniteError
from sparselens.sae.latents import to_csr

if TYPE_CHECKING:
    import pyarrow

    from sparselens.models.captured import FlatBatch
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE

_WINDOW = 1024


def embed(
    texts: Any,
    m: "LiveModel",
    sae: "SAE",
    out: str | os.PathLike | None = None,
    *,
    pooling: str = "max",
    role: str | None = None,
    text_column: str = "text",
    max_length: int | None = None,
    long: str = "error",
    skip_first: bool = True,
    batch_tokens: int = 2048,
    force: bool = False,
    progress: bool = True,
) -> SAEEmbedding:
    """Turn texts into features of a dictionary: one sparse vector `[d_sae]` per document (Jiang, Sun et al., 2025).

    Pooled are content tokens only: special tokens and the chat template count for nothing, nor do tokens outside the
    dictionary's domain (`sae.applies`). The first token of a row is left out too: where no template precedes it, it is
    an attention sink whose activations say nothing about the text. A text without any token left, such as an empty
    string or a single token, becomes a row of zeros; the embedding says how many there are.

    The codes of all tokens are kept as well (float16, about 4 bytes for each active feature of a token), so that
    tokens and snippets can be looked at later without the model.

    With `out` the documents are embedded in blocks of at most 256, each written as one Arrow file. The same call again
    goes on after an interruption and skips what is there; the result is the same bit for bit. The embedding then reads
    the folder memory-mapped, so memory does not grow with the number of documents. Without `out` it stays in memory.

    Args:
        texts: a list of strings or of chats, a Series of strings, or a frame, whose other columns are carried along.
        m: the live model that reads them; it need not have written them.
        sae: a dictionary for one of its sites.
        out: a folder.
        pooling: over the tokens of a document: "max" (by magnitude), "mean", "sum", "binarize" (fires or not) or
            "count" (tokens on which it fires).
        role: None reads texts as they are; "user" or "assistant" wraps each as one turn of a chat.
        text_column: the column of a frame that holds the texts.
        max_length: longest row in tokens; the model's own limit when None.
        long: what to do with longer texts: "error", "cut" them, or read them in "chunk"s, pooled together.
        skip_first: leave out the first token of each row.
        batch_tokens: most tokens in a forward pass, padding included.
        force: use the SAE although it was recorded for another model.
        progress: show a bar.

    Returns:
        The embedding, documents in the order given.

    Raises:
        InputError: no texts, a row that is no text, nothing but empty strings, a text too long with long="error",
            or a folder that holds something else. Found before the first forward pass.
        FitError: the SAE names no site, or does not fit the model.
        NotFiniteError: a text gives NaN or infinite activations.
        StorageError: the disk is full; the blocks written so far are kept.
    """
    check_pooling(pooling)
    documents = as_documents(texts, text_column)
    reader = _Reader(m, sae, pooling, role, max_length, long, skip_first, batch_tokens, force)
    reader.check(documents)
    blocks = documents.blocks()
    info = reader.info(documents, blocks)
    folder = None if out is None else Folder(Path(out))
    if folder is not None:
        folder.open(info)
        folder.write_columns(documents.columns)
    tables = _run(reader, documents, blocks, folder, progress)
    if folder is not None:
        return SAEEmbedding.load(folder.path)
    return SAEEmbedding(Blocks(tables, [0, *(b.stop for b in blocks)]), info, documents.columns)


def _run(
    reader: "_Reader", documents: Documents, blocks: list[range], folder: Folder | None, progress: bool
) -> list["pyarrow.Table"]:
    """Embed the blocks that are not there yet; without a folder return them."""
    from tqdm.auto import tqdm

    tables = []
    with tqdm(total=len(documents.texts), desc="embed", unit="text", leave=False, disable=not progress) as bar:
        for i, block in enumerate(blocks):
            if folder is None:
                tables.append(reader.block(documents, block))
            elif not folder.block(i).exists():
                write_table(reader.block(documents, block), folder.block(i))
            bar.update(len(block))
    return tables


class _Reader:
    """The model, the dictionary and the settings of one embedding."""

    def __init__(self, m: "LiveModel", sae: "SAE", pooling: str, role: str | None, max_length: int | None, long: str,
                 skip_first: bool, batch_tokens: int, force: bool):
        if not sae.site:
            raise FitError("this SAE does not say which site it belongs to: set it, such as "
                           f"sae.metadata['hook_name'] = {m.sites('*hook_resid_post')[m.n_layers // 2]!r}.")
        self.m, self.sae, self.pooling, self.skip_first = m, sae, pooling, skip_first
        self.site = fitting_sites(sae, m, None, force)[0]
        self.rows: dict[str, Any] = {"role": role, "max_length": max_length, "long": long, "empty": "skip"}
        self.batch_tokens = batch_tokens

    @cached_property
    def pieces(self) -> Pieces:
        return Pieces(self.m.tokenizer)

    def check(self, documents: Documents) -> None:
        """Let the reader find what it cannot read before an hour of work is done."""
        for start in range(0, len(documents.texts), _WINDOW):
            self.m.reader.rows(documents.texts[start : start + _WINDOW], start, **self.rows)

    def info(self, documents: Documents, blocks: list[range]) -> dict[str, Any]:
        """What is embedded and how: two embeddings with equal entries are equal."""
        return {
            "format": FORMAT,
            "model": self.m.name,
            "model_mark": _model_mark(self.m),
            "backend": self.m.backend,
            "sae_sha256": _sae_hash(self.sae),
            "site": self.site,
            "d_sae": self.sae.d_sae,
            "pooling": self.pooling,
            "role": self.rows["role"],
            "max_length": self.rows["max_length"],
            "long": self.rows["long"],
            "skip_first": self.skip_first,
            "texts_sha256": documents.fingerprint(),
            "blocks": [len(block) for block in blocks],
        }

    @torch.no_grad()
    def block(self, documents: Documents, block: range) -> "pyarrow.Table":
        """Embed one block of documents."""
        texts = documents.texts[block.start : block.stop]
        shown = [documents.shown(i) for i in block]
        keys: list[np.ndarray] = []  # of each content token: document, position, id, whether it is pooled
        codes = []
        for batch in self.m.stream(texts, self.site, batch_tokens=self.batch_tokens, **self.rows):
            pooled, z = self._encode(batch, block.start)
            content = batch.content
            columns = (batch.doc[content], batch.position[content], batch.token[content], pooled[content].long())
            keys.append(torch.stack(columns).numpy())
            codes.append(to_csr(z))
        tokens = np.concatenate(keys, axis=1) if keys else np.zeros((4, 0), dtype=np.int64)
        order = np.lexsort((tokens[1], tokens[0]))
        document, position, ids, used = tokens[:, order]
        document = document.astype(index_type(len(texts)))
        pieces = self._pieces(texts, document, position, ids)
        n_tokens = np.bincount(document[used == 1], minlength=len(texts))
        entries = _entries(codes, tokens[3], order, document, index_type(self.sae.d_sae))
        return block_table(shown, pieces, n_tokens, entries, pool(entries, self.pooling, n_tokens), self.sae.d_sae)

    def _encode(self, batch: "FlatBatch", first: int) -> tuple[torch.Tensor, Any]:
        """Which tokens of a batch are pooled, bool `[tokens]`, and their codes."""
        pooled = batch.content & ~batch.first if self.skip_first else batch.content.clone()
        where = pooled.nonzero()[:, 0]
        x = batch.values[where.to(batch.values.device)].to(self.sae.W_enc.device).float()
        broken = ~torch.isfinite(x).all(dim=1).cpu()
        if bool(broken.any()):
            index = first + int(batch.doc[where[broken][0]])
            raise NotFiniteError(f"text {index} gives NaN or infinite activations at {self.site}. Is the model "
                                 "damaged, or loaded in float16? Try dtype=torch.float32.")
        applies = self.sae.applies(x)
        pooled[where] = applies.cpu()
        return pooled, self.sae.encode(x[applies])

    def _pieces(self, texts: list[Any], document: np.ndarray, position: np.ndarray, ids: np.ndarray) -> list[list[str]]:
        """The text of each content token, document by document."""
        out: list[list[str]] = []
        bounds = np.searchsorted(document, np.arange(len(texts) + 1))
        for i, text in enumerate(texts):
            span = slice(bounds[i], bounds[i + 1])
            # the messages of a chat have template tokens between them
            runs = np.split(ids[span], np.flatnonzero(np.diff(position[span]) > 1) + 1)
            row: list[str] = []
            for run in runs:
                cut = self.pieces(run.tolist())
                if row and cut and not isinstance(text, str):
                    cut[0] = "\n\n" + cut[0]
                row += cut
            out.append(row)
        return out


def _entries(
    codes: list[Any], used: np.ndarray, order: np.ndarray, document: np.ndarray, index: type[np.integer]
) -> Entries:
    """Active codes by token in reading order.

    Args:
        codes: CSR matrices of the pooled tokens, in the order of reading batches.
        used: which of the content tokens, in that order too, are pooled.
        order: that order -> documents and positions in order.
        document: of each token, in the final order.
        index: type of the feature numbers.
    """
    from scipy.sparse import vstack

    if not codes:
        nothing = np.zeros(0, dtype=np.int64)
        return Entries(nothing, nothing, nothing, nothing.astype(np.float32))
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order))
    matrix = vstack(codes, format="csr")[np.argsort(rank[used == 1])]  # rows in reading order
    token = np.repeat(np.sort(rank[used == 1]), np.diff(matrix.indptr))
    return Entries(document[token], token, matrix.indices.astype(index), matrix.data)


def _sae_hash(sae: "SAE") -> str:
    """A sha256 over everything that decides the codes."""
    said = (sae.architecture, sae.k, sae.d_in, sae.d_sae, sae.max_norm, sae.subtract_b_dec, sae.rank_by_decoder_norm,
            sae.input_norm)
    digest = hashlib.sha256(repr(said).encode())
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _model_mark(m: "LiveModel") -> str:
    """A short hash over a few numbers of every weight: tells a fine-tuned model from its base, at any size."""
    digest = hashlib.sha256()
    for parameter in m.module.parameters():
        few = parameter.detach().reshape(-1)[:: max(1, parameter.numel() // 16)][:16]
        digest.update(few.double().cpu().numpy())
    return digest.hexdigest()[:16]
