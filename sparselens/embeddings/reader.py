"""Blocks of texts read through a model and one or more dictionaries, on one forward pass."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from sparselens.attach import fitting_sites
from sparselens.embeddings.documents import Documents, shown
from sparselens.embeddings.pieces import Pieces
from sparselens.embeddings.pool import Entries, pool
from sparselens.embeddings.store import block_table, index_type
from sparselens.errors import FitError, NotFiniteError
from sparselens.sae.latents import to_csr

if TYPE_CHECKING:
    import pyarrow

    from sparselens.models.captured import FlatBatch
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE

LONG = ("error", "cut", "chunk", "split")
_WINDOW = 1024


class Settings(NamedTuple):
    """How texts are read; what each means is said by `embed`."""

    pooling: str
    threshold: float
    min_tokens: int
    role: str | None
    span: str
    max_length: int | None
    long: str
    skip_first: bool
    special: bool


class Read(NamedTuple):
    """The tokens of a block, in reading order: documents one after the other, positions rising.

    Attributes:
        order: the order of the batches -> this order.
        document, position, token: int `[tokens]` of each token that is kept.
        source, chunk: int `[documents]` which text a document is, and which piece of it.
        n_read: int `[documents]` tokens that went through the model.
    """

    order: np.ndarray
    document: np.ndarray
    position: np.ndarray
    token: np.ndarray
    source: np.ndarray
    chunk: np.ndarray
    n_read: np.ndarray


class TextReader:
    """The model, the dictionaries and the settings of an embedding.

    Args:
        m: the live model.
        saes: dictionaries by name.
        settings: how texts are read.
        batch_tokens: most tokens in a forward pass, padding included.
        force: use a dictionary although it was recorded for another model.

    Raises:
        FitError: a dictionary that names no site, or does not fit the model.
    """

    def __init__(self, m: "LiveModel", saes: Mapping[str, "SAE"], settings: Settings, batch_tokens: int, force: bool):
        self.m, self.saes, self.settings, self.batch_tokens = m, dict(saes), settings, batch_tokens
        for sae in self.saes.values():
            if not sae.site:
                raise FitError("this SAE does not say which site it belongs to: set it, such as "
                               f"sae.metadata['hook_name'] = {m.sites('*hook_resid_post')[m.n_layers // 2]!r}.")
        self.sites = {name: fitting_sites(sae, m, None, force)[0] for name, sae in self.saes.items()}
        self.split = settings.long == "split"
        self.rows: dict[str, Any] = {
            "role": settings.role, "span": settings.span, "max_length": settings.max_length, "empty": "skip",
            "long": "chunk" if self.split else settings.long,
        }

    @cached_property
    def pieces(self) -> Pieces:
        return Pieces(self.m.tokenizer)

    def check(self, documents: Documents) -> None:
        """Let the model's reader find what it cannot read before an hour of work is done."""
        for start in range(0, len(documents), _WINDOW):
            self.m.reader.rows(documents.texts[start : start + _WINDOW], start, **self.rows)

    def info(self) -> dict[str, dict[str, Any]]:
        """What each dictionary makes of texts: two embeddings of the same texts with equal facts are equal."""
        mark = _model_mark(self.m)
        return {
            name: {
                "model": self.m.name,
                "model_mark": mark,
                "backend": self.m.backend,
                "sae_sha256": sae_hash(sae),
                "site": self.sites[name],
                "d_sae": sae.d_sae,
                **self.settings._asdict(),
            }
            for name, sae in self.saes.items()
        }

    @torch.no_grad()
    def block(self, documents: Documents, first: int) -> dict[str, "pyarrow.Table"]:
        """Embed one block of texts with every dictionary.

        Args:
            documents: the texts.
            first: number of the first of them.
        """
        texts = documents.texts
        keys: list[np.ndarray] = []  # of each kept token: text, position, id
        codes: dict[str, list[tuple[np.ndarray, Any]]] = {name: [] for name in self.saes}
        seen: list[np.ndarray] = []  # of every token: text, position
        sites = list(dict.fromkeys(self.sites.values()))
        for batch in self.m.stream(texts, sites, batch_tokens=self.batch_tokens, **self.rows):
            kept = torch.ones_like(batch.content) if self.settings.special else batch.content
            keys.append(torch.stack((batch.doc[kept], batch.position[kept], batch.token[kept])).numpy())
            seen.append(torch.stack((batch.doc, batch.position)).numpy())
            candidates = kept & ~batch.first if self.settings.skip_first else kept
            for name in self.saes:
                pooled, z = self._encode(name, batch, candidates, first)
                codes[name].append((pooled[kept].numpy(), to_csr(z)))
        read = self._order(keys, seen, len(texts), first)
        pieces = self._pieces(texts, read, first)
        said = self._shown(texts, read, pieces, first)
        return {name: self._table(name, read, said, pieces, codes[name]) for name in self.saes}

    def _encode(
        self, name: str, batch: "FlatBatch", candidates: torch.Tensor, first: int
    ) -> tuple[torch.Tensor, Any]:
        """Which of the candidate tokens of a batch are pooled, bool `[tokens]`, and their codes."""
        sae, site = self.saes[name], self.sites[name]
        where = candidates.nonzero()[:, 0]
        values = batch[site]
        x = values[where.to(values.device)].to(sae.W_enc.device).float()
        broken = ~torch.isfinite(x).all(dim=1).cpu()
        if bool(broken.any()):
            index = first + int(batch.doc[where[broken][0]])
            raise NotFiniteError(f"text {index} gives NaN or infinite activations at {site}. Is the model damaged, or "
                                 "loaded in float16? Try dtype=torch.float32.")
        applies = sae.applies(x)
        pooled = torch.zeros_like(candidates)
        pooled[where] = applies.cpu()
        return pooled, sae.encode(x[applies])

    def _order(self, keys: list[np.ndarray], seen: list[np.ndarray], n_texts: int, first: int) -> Read:
        """Put the tokens of all batches in order, and say which document each belongs to."""
        limit = min(self.settings.max_length or self.m.max_length, self.m.max_length)
        text, position, token = np.concatenate(keys or [np.zeros((3, 0), dtype=np.int64)], axis=1)
        every = np.concatenate(seen or [np.zeros((2, 0), dtype=np.int64)], axis=1)
        chunks = np.ones(n_texts, dtype=np.int64)
        if self.split:
            np.maximum.at(chunks, every[0], every[1] // limit + 1)
        starts = np.cumsum(chunks) - chunks  # the first document of each text
        source = np.repeat(np.arange(n_texts), chunks)

        def document(of: np.ndarray, at: np.ndarray) -> np.ndarray:
            return starts[of] + at // limit if self.split else of

        order = np.lexsort((position, text))
        return Read(
            order,
            document(text, position)[order].astype(index_type(len(source))),
            position[order],
            token[order],
            source + first,
            np.arange(len(source)) - starts[source],
            np.bincount(document(*every), minlength=len(source)),
        )

    def _pieces(self, texts: list[Any], read: Read, first: int) -> list[list[str]]:
        """The text of each kept token, document by document."""
        out: list[list[str]] = []
        bounds = np.searchsorted(read.document, np.arange(len(read.source) + 1))
        for i, source in enumerate(read.source - first):
            span = slice(bounds[i], bounds[i + 1])
            # the messages of a chat have template tokens between them
            runs = np.split(read.token[span], np.flatnonzero(np.diff(read.position[span]) > 1) + 1)
            row: list[str] = []
            for run in runs:
                cut = self.pieces(run.tolist())
                if row and cut and not isinstance(texts[source], str):
                    cut[0] = "\n\n" + cut[0]
                row += cut
            out.append(row)
        return out

    def _shown(self, texts: list[Any], read: Read, pieces: list[list[str]], first: int) -> list[str]:
        """What is shown of each document: its text, or its piece of a text that has several."""
        whole = np.bincount(read.source - first)[read.source - first] == 1
        return [shown(texts[source], self.settings.span) if alone else "".join(row)
                for source, alone, row in zip(read.source - first, whole, pieces, strict=True)]

    def _table(
        self, name: str, read: Read, said: list[str], pieces: list[list[str]], codes: list[tuple[np.ndarray, Any]]
    ) -> "pyarrow.Table":
        settings, d_sae = self.settings, self.saes[name].d_sae
        used = np.concatenate([pooled for pooled, _ in codes]) if codes else np.zeros(0, dtype=bool)
        n_tokens = np.bincount(read.document[used[read.order]], minlength=len(said))
        entries = _entries([z for _, z in codes], used, read, index_type(d_sae))
        pooled = pool(entries, settings.pooling, n_tokens, settings.threshold, settings.min_tokens)
        origin = (read.source, read.chunk) if self.split else None
        return block_table(said, pieces, n_tokens, entries, pooled, d_sae, read.n_read, origin)


def _entries(codes: list[Any], used: np.ndarray, read: Read, index: type[np.integer]) -> Entries:
    """Active codes by token in reading order.

    Args:
        codes: CSR matrices of the pooled tokens, in the order of the batches.
        used: which of the kept tokens, in that order too, are pooled.
        read: the kept tokens in reading order.
        index: type of the feature numbers.
    """
    from scipy.sparse import vstack

    if not codes:
        nothing = np.zeros(0, dtype=np.int64)
        return Entries(nothing, nothing, nothing, nothing.astype(np.float32))
    rank = np.empty(len(read.order), dtype=np.int32)
    rank[read.order] = np.arange(len(read.order))
    matrix = vstack(codes, format="csr")[np.argsort(rank[used])]  # rows in reading order
    token = np.repeat(np.sort(rank[used]), np.diff(matrix.indptr))
    return Entries(read.document[token], token, matrix.indices.astype(index), matrix.data)


def sae_hash(sae: "SAE") -> str:
    """A sha256 over everything that decides the codes."""
    said = (sae.architecture, sae.k, sae.d_in, sae.d_sae, sae.max_norm, sae.subtract_b_dec, sae.rank_by_decoder_norm,
            sae.input_norm, sae.tied, sorted(sae.activation.options.items()))
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
