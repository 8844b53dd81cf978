"""`embed`: texts become sparse vectors, block by block, here or on a cluster."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparselens.embeddings.documents import Documents, as_documents, is_stream, stream_documents
from sparselens.embeddings.embedding import SAEEmbedding
from sparselens.embeddings.engines import Engine, Job, check_engine, choose_engine
from sparselens.embeddings.folder import Folder, Memory
from sparselens.embeddings.pool import check_pooling
from sparselens.embeddings.reader import LONG, Settings, TextReader
from sparselens.errors import InputError, closest

if TYPE_CHECKING:
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE


def embed(
    texts: Any,
    m: "LiveModel",
    sae: "SAE | Mapping[str, SAE]",
    out: str | os.PathLike | None = None,
    *,
    pooling: str = "max",
    threshold: float = 0.0,
    min_tokens: int = 1,
    role: str | None = None,
    span: str = "all",
    text_column: str = "text",
    max_length: int | None = None,
    long: str = "error",
    skip_first: bool = True,
    special: bool = False,
    append: bool = False,
    engine: str = "local",
    workers: int | None = None,
    batch_tokens: int = 2048,
    force: bool = False,
    progress: bool = True,
) -> Any:
    """Turn texts into features of a dictionary: one sparse vector `[d_sae]` per document (Jiang, Sun et al., 2025).

    Pooled are content tokens only: special tokens and the chat template count for nothing, nor do tokens outside the
    dictionary's domain (`sae.applies`). The first token of a row is left out too: where no template precedes it, it is
    an attention sink whose activations say nothing about the text. A text without any token left, such as an empty
    string or a single token, becomes a row of zeros; the embedding says how many there are.

    The codes of all tokens are kept as well (float16, about 4 bytes for each active feature of a token), so that
    tokens and snippets can be looked at later without the model, and pooled in another way.

    With `out` the documents are embedded in blocks of at most 256, each written as one Arrow file. The same call again
    goes on after an interruption and skips what is there; the result is the same bit for bit. The embedding then reads
    the folder memory-mapped, and a stream is not held either, so memory does not grow with the number of documents.
    Without `out` all stays in memory.

    Args:
        texts: strings or chats, as a list, a Series, a frame or list of records (other columns are carried along), the
            `Path` of a file (see `datasets.read_texts`), a Hugging Face dataset, a Ray dataset, or any iterable.
        m: the live model that reads them; it need not have written them.
        sae: a dictionary for one of its sites, or several by name, which share one forward pass.
        out: a folder; with several dictionaries it gets a folder for each.
        pooling: over the tokens of a document: "max" (by magnitude), "mean", "sum", "binarize" (fires or not) or
            "count" (tokens on which it fires).
        threshold: a token counts as firing when the magnitude of its code is above this.
        min_tokens: a feature fires in a document when it fires on this many of its tokens.
        role: None reads texts as they are; "user" or "assistant" wraps each as one turn of a chat.
        span: of a chat, pool "all" messages, the "answer" (what the assistant says) or the "prompt" (the others).
            Whole chats are read in any case.
        text_column: the column of a frame, or the key of a record, that holds the texts.
        max_length: longest row in tokens; the model's own limit when None.
        long: what to do with longer texts: "error", "cut" them, read them in "chunk"s, pooled together, or "split"
            them: a document for each chunk, with the columns `source` (number of the text) and `chunk`.
        skip_first: leave out the first token of each row.
        special: pool special tokens and the chat template too.
        append: add the texts to what is in `out`. Texts that were added before are not added again.
        engine: "local", or "ray": blocks go to a pool of Ray actors, and the result is the same.
        workers: number of Ray actors; as many as the cluster has room for when None.
        batch_tokens: most tokens in a forward pass, padding included.
        force: use a dictionary although it was recorded for another model.
        progress: show a bar.

    Returns:
        The `SAEEmbedding`, documents in the order given; a dict of them by name for several dictionaries.

    Raises:
        InputError: no texts, a row that is no text, nothing but empty strings, a text too long with long="error",
            or a folder that holds something else. Found before the first forward pass, in a stream when it is reached.
        FitError: the SAE names no site, or does not fit the model.
        NotFiniteError: a text gives NaN or infinite activations.
        StorageError: the disk is full; the blocks written so far are kept.
    """
    check_pooling(pooling, threshold, min_tokens)
    check_engine(engine, workers)
    if long not in LONG:
        raise InputError(f"long={long!r} is unknown; valid are {', '.join(LONG)}.{closest(long, LONG)}")
    if append and out is None:
        raise InputError("append=True adds to a folder: name it with out=.")
    saes = _dictionaries(sae)
    settings = Settings(pooling, threshold, min_tokens, role, span, max_length, long, skip_first, special)
    reader = TextReader(m, saes, settings, batch_tokens, force)
    fingerprint = total = None
    if out is not None and is_stream(texts) and not append:
        blocks = _begun(stream_documents(texts, text_column))
    else:
        documents = as_documents(texts, text_column)
        reader.check(documents)
        blocks, total, fingerprint = iter(documents.blocks()), len(documents), documents.fingerprint()
    sinks: dict[str, Folder | Memory] = {name: Memory() if out is None else Folder(Path(out) / name) for name in saes}
    for name, info in reader.info().items():
        sinks[name].open(info, fingerprint, append)
    _run(reader, blocks, sinks, choose_engine(engine, workers), total, progress)
    done = {name: SAEEmbedding.load(sink.path) if isinstance(sink, Folder) else SAEEmbedding(*sink.result())
            for name, sink in sinks.items()}
    return done if isinstance(sae, Mapping) else done[""]


def _dictionaries(sae: Any) -> dict[str, Any]:
    """Dictionaries by the name of their folder; a single one has none."""
    if not isinstance(sae, Mapping):
        return {"": sae}
    if not sae:
        raise InputError("got a dict without any dictionary.")
    for name in sae:
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise InputError(f"several dictionaries are given by name, such as {{'layer 14': sae}}, and {name!r} "
                             "cannot name a folder.")
    return dict(sae)


def _begun(blocks: Iterator[Documents]) -> Iterator[Documents]:
    """The blocks of a stream, of which the first is read now: what is wrong there shows before anything is written."""
    first = next(blocks, None)
    if first is None:
        raise InputError("got no texts (the stream is empty): give at least one.")
    return chain([first], blocks)


def _run(
    reader: TextReader,
    blocks: Iterable[Documents],
    sinks: Mapping[str, Folder | Memory],
    engine: Engine,
    total: int | None,
    progress: bool,
) -> None:
    """Embed the blocks that are not there yet, and close the sinks."""
    from tqdm.auto import tqdm

    whole = hashlib.sha256()
    n_texts = n_blocks = 0
    wanted: dict[int, tuple[str, list[str]]] = {}  # of a block under way: fingerprint, dictionaries that wait for it

    def jobs() -> Iterator[Job]:
        nonlocal n_texts, n_blocks
        for index, documents in enumerate(blocks):
            first, fingerprint = n_texts, documents.fingerprint(whole)
            n_texts, n_blocks = n_texts + len(documents), index + 1
            missing = [n for n, sink in sinks.items() if not sink.has(index, fingerprint, documents.columns)]
            if missing:
                wanted[index] = fingerprint, missing
                yield Job(index, first, documents)
            else:
                bar.update(len(documents))

    with tqdm(total=total, desc="embed", unit="text", leave=False, disable=not progress) as bar:
        for job, tables, seconds in engine(reader, jobs()):
            fingerprint, missing = wanted.pop(job.number)
            for name in missing:
                sinks[name].put(job.number, tables[name], job.documents.columns, fingerprint, seconds)
            bar.update(len(job.documents))
    for sink in sinks.values():
        sink.finish(whole.hexdigest(), n_texts, n_blocks)
