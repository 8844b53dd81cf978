"""Dictionaries for chat models: every dialogue is run alone, its template tokens are kept, and activations are mixed.

FAST (Li et al., 2025, arXiv 2506.07691) is an order of data, not an architecture. Its counterpart is block training,
where dialogues are strung together and cut every so many tokens: template tokens then stand where the model never
meets them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.errors import FitError, InputError, closest
from sparselens.sae.latents import to_dense
from sparselens.sae.store import Activations, harvest

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

    from sparselens.sae.sae import SAE

ROLES = ("system", "user", "assistant")
GROUPS = {
    "all": "every token",
    "special": "markers and names of roles that the template writes",
    "special, not first": "without the first token of a dialogue, an attention sink",
    "special, not shared": "without what begins every dialogue, whose activations are always the same",
    "ordinary": "tokens of the messages",
}


class Mixed(Activations):
    """Activations in the order of a mixing buffer: fill it, shuffle, give away a part, fill it up again.

    Nothing is moved: it is an order of the rows, drawn from seed and epoch, so a run resumes anywhere. Neighbours in a
    batch come from up to `buffer_tokens` rows of each other; all rows come once an epoch.

    Args:
        rows: where they are taken from, in order.
        buffer_tokens: rows that the buffer holds; it should be a hundred dialogues at least.
        mix: share of the buffer that is given away before it is filled up.
    """

    def __init__(self, rows: Activations, buffer_tokens: int = 500_000, mix: float = 0.5) -> None:
        if buffer_tokens < 2 or not 0 < mix <= 1:
            raise InputError(f"buffer_tokens={buffer_tokens} must be 2 or more, and mix={mix} above 0 and at most 1.")
        self.source, self.buffer_tokens, self.mix = rows, buffer_tokens, mix
        self.sites, self.n_tokens = rows.sites, rows.n_tokens
        buffered = {"buffer_tokens": buffer_tokens, "mix": mix}
        self.meta = rows.meta | {"texts": {"texts": rows.meta.get("texts"), **buffered}}

    def d(self, site: str) -> int:
        return self.source.d(site)

    def max_norm(self, site: str) -> float | None:
        return self.source.max_norm(site)

    def rows(self, site: str, index: np.ndarray) -> Float[Tensor, "n d"]:
        return self.source.rows(site, index)

    def held_out(self, at_most: int) -> int:
        return self.source.held_out(at_most)

    def order(self, n_rows: int, seed: int, epoch: int) -> np.ndarray:
        random = np.random.Generator(np.random.PCG64([seed, epoch]))
        buffer, end = np.arange(min(self.buffer_tokens, n_rows)), min(self.buffer_tokens, n_rows)
        parts: list[np.ndarray] = []
        while True:
            random.shuffle(buffer)
            if end >= n_rows:
                return np.concatenate([*parts, buffer])
            given = max(1, int(len(buffer) * self.mix))
            parts.append(buffer[:given])
            fresh = np.arange(end, min(end + given, n_rows))
            buffer, end = np.concatenate([buffer[given:], fresh]), end + len(fresh)


def dialogue_activations(
    m: Any,
    dialogues: Sequence[Any],
    site: str | Sequence[str],
    out: str | os.PathLike,
    n_tokens: int,
    *,
    block: int | None = None,
    drop_first: bool = True,
    buffer_tokens: int = 500_000,
    mix: float = 0.5,
    progress: bool = True,
) -> Mixed:
    """Harvest the activations of dialogues with their template tokens, and mix them; a source for `train_sae`.

    Args:
        m: a live model whose tokenizer has a chat template.
        dialogues: chats, as `m.stream` takes them; one longer than the model can read is read in pieces.
        site: where, or several.
        out: folder of the harvest, which resumes.
        n_tokens: stop once so many rows are there.
        block: None runs each dialogue alone, as the model meets it. A number strings dialogues together and cuts them
            every so many tokens: the baseline that the paper argues against.
        drop_first: leave out the first token of each row, an attention sink that would own the loss.
        buffer_tokens, mix: of `Mixed`.

    Raises:
        InputError: something that is no chat, or as `harvest` does.
    """
    for i, chat in enumerate(dialogues):
        if not (isinstance(chat, list) and chat and isinstance(chat[0], Mapping)):
            raise InputError(
                f"dialogue {i} is a {type(chat).__name__}, not a list of messages: "
                'give [{"role": "user", "content": ...}, ...].'
            )
    texts: Sequence[Any] = dialogues if block is None else blocks(m, dialogues, block)
    limit = m.max_length if block is None else block
    settings: dict[str, Any] = {"context": limit, "drop_first": drop_first, "template": True, "progress": progress}
    return Mixed(harvest(m, texts, site, out, n_tokens, **settings), buffer_tokens, mix)


def blocks(m: Any, dialogues: Sequence[Any], size: int) -> list[list[int]]:
    """Token ids of dialogues through the chat template, strung together and cut every `size` tokens; a last, shorter
    piece is left out."""
    if not 2 <= size <= m.max_length:
        raise InputError(f"blocks of {size} tokens: this model reads 2 to {m.max_length:,}.")
    rows = m.reader.rows(list(dialogues), 0, role=None, max_length=None, long="chunk", empty="skip")
    ids = [i for row in rows for i in row.ids]
    return [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]


def drop_repeats(dialogues: Sequence[Any], n: int = 20) -> list[Any]:
    """The dialogues (or texts) that share no run of n words with one kept before; of shorter ones, the whole counts."""
    if n < 1:
        raise InputError(f"n={n}: give a run of one word at least.")
    seen: set[int] = set()
    kept = []
    for dialogue in dialogues:
        words = _words(dialogue)
        runs = {hash(tuple(words[i : i + n])) for i in range(max(1, len(words) - n + 1))}
        if not seen & runs:
            kept.append(dialogue)
            seen |= runs
    return kept


def _words(dialogue: Any) -> list[str]:
    texts = [dialogue] if isinstance(dialogue, str) else [message["content"] for message in dialogue]
    return " ".join(texts).split()


@dataclass(frozen=True)
class SpecialTokenReport:
    """Squared error of dictionaries by kind of token of a chat.

    Attributes:
        tokens: a row a token: `dialogue, position, token, text, kind` ("special", "template" for other text that the
            template writes, or "ordinary"), `first`, `shared`, and for each dictionary its squared error divided by
            the width.
        codes: mean codes `[d_sae]` at each special token, by dictionary and text of the token.
    """

    tokens: "pandas.DataFrame"
    codes: dict[str, dict[str, Tensor]]

    def to_frame(self) -> "pandas.DataFrame":
        """A row a group of tokens: its size, and the log2 of the error of each dictionary.

        Errors are averaged over the tokens of a dialogue, then over dialogues, so that a long one does not count more.
        """
        import pandas as pd

        rows = {}
        for group, chosen in self._groups().items():
            part = self.tokens[chosen]
            mean = part.groupby("dialogue")[list(self.codes)].mean().mean()
            rows[group] = {"tokens": len(part), **{name: float(np.log2(mean[name])) for name in self.codes}}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("log2 error")

    def _groups(self) -> "dict[str, pandas.Series]":
        t = self.tokens
        special = t["kind"] == "special"
        chosen = [t["kind"] == t["kind"], special, special & ~t["first"], special & ~t["shared"]]
        return dict(zip(GROUPS, [*chosen, t["kind"] == "ordinary"], strict=True))

    def top_latents(self, token: str, dictionary: str | None = None, n: int = 5) -> "pandas.DataFrame":
        """The latents that are most active at a special token: `latent`, its mean code there, and over all special
        tokens of that dictionary.

        Raises:
            InputError: a token that is none of the special ones.
        """
        import pandas as pd

        name = next(iter(self.codes)) if dictionary is None else dictionary
        if name not in self.codes:
            raise InputError(f"no dictionary {name!r} here; there are: {', '.join(self.codes)}.")
        known = self.codes[name]
        if token not in known:
            raise InputError(f"{token!r} is no special token; these are: {', '.join(known)}.{closest(token, known)}")
        best = known[token].topk(min(n, len(known[token])))
        everywhere = torch.stack(list(known.values())).mean(0)[best.indices]
        columns = {"latent": best.indices.tolist(), "here": best.values.tolist(), "all": everywhere.tolist()}
        return pd.DataFrame(columns)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw bars of the error by group, side by side for several dictionaries, and return the axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(6.4, 3.4))[1]
        self.to_frame()[list(self.codes)].plot.bar(ax=ax, rot=20)
        ax.set(xlabel="", ylabel="log2 of the squared error / d")
        return ax

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(float_format="{:.2f}".format)


@torch.no_grad()
def special_token_report(m: Any, saes: "SAE | Mapping[str, SAE]", dialogues: Sequence[Any]) -> SpecialTokenReport:
    """Measure how well dictionaries reconstruct the special tokens of dialogues, each run alone.

    Special tokens are told by their ids, and only where the template wrote them. Every token counts, also those beyond
    `max_norm`.

    Args:
        m: a live model with a chat template.
        saes: an SAE, or several by name, that read one site.
        dialogues: chats.

    Raises:
        FitError: the dictionaries belong to different sites, or write another one than they read.
    """
    import pandas as pd

    given: dict[str, Any] = {"sae": saes} if not isinstance(saes, Mapping) else dict(saes)
    sites = {sae.site for sae in given.values()}
    if len(sites) != 1 or None in sites or any(sae.is_transcoder for sae in given.values()):
        places = ", ".join(sorted(map(str, sites)))
        raise FitError(f"give dictionaries that read and write the same one site of the model; these are at {places}.")
    special = _special_ids(m.tokenizer)
    parts, sums, counts = [], {name: {} for name in given}, {}  # type: ignore[var-annotated]
    for batch in m.stream(list(dialogues), sites.pop(), long="cut"):
        x = batch.values.float()
        marks = torch.isin(batch.token.cpu(), special) & ~batch.content.cpu()
        kind = np.where(batch.content.cpu(), "ordinary", np.where(marks, "special", "template"))
        columns: dict[str, Any] = {"dialogue": batch.doc, "position": batch.position, "token": batch.token}
        columns = {key: value.tolist() for key, value in columns.items()} | {"kind": kind}
        for name, sae in given.items():
            z: Any = sae.encode(x)
            error = (sae.decode(z, sae.measure(x)) - x).square().mean(1)
            columns[name] = error.cpu().double().numpy()
            for token in batch.token.cpu()[marks].unique().tolist():
                here = to_dense(z).float().cpu()[marks & (batch.token.cpu() == token)]
                sums[name][token] = sums[name].get(token, 0) + here.sum(0)
        for token, count in zip(*np.unique(batch.token.cpu()[marks], return_counts=True), strict=True):
            counts[int(token)] = counts.get(int(token), 0) + int(count)
        parts.append(pd.DataFrame(columns))
    frame = pd.concat(parts).sort_values(["dialogue", "position"], ignore_index=True)
    frame["first"] = frame["position"] == 0
    frame["shared"] = frame["position"] < _shared_length(frame)
    frame.insert(3, "text", [m.tokenizer.decode([i]) for i in frame["token"]])
    codes = {name: {m.tokenizer.decode([t]): total / counts[t] for t, total in by.items()} for name, by in sums.items()}
    return SpecialTokenReport(frame, codes)


def _special_ids(tokenizer: Any) -> Tensor:
    """Ids of special tokens, and of the names of roles."""
    roles = [i for role in ROLES for i in tokenizer(role, add_special_tokens=False)["input_ids"]]
    return torch.tensor(sorted({*tokenizer.all_special_ids, *roles}))


def _shared_length(frame: "pandas.DataFrame") -> int:
    """How many tokens all dialogues begin with."""
    by_position = frame.groupby("position")["token"]
    everywhere = (by_position.nunique() == 1) & (by_position.size() == frame["dialogue"].nunique())
    different = np.flatnonzero(~everywhere.to_numpy())
    return int(different[0]) if len(different) else len(everywhere)


@dataclass(frozen=True)
class AlphaSweep:
    """What a model writes while a latent's direction is added to every token.

    Attributes:
        texts: columns `alpha, prompt, text, repeated` (share of 3-word runs that came before in the text) and
            `perplexity` (of the text under the untouched model; NaN below two tokens).
    """

    texts: "pandas.DataFrame"

    def to_frame(self) -> "pandas.DataFrame":
        """A row an alpha and prompt."""
        return self.texts

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw repetition and perplexity, averaged over prompts, against alpha, and return the left axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(5.6, 3.2))[1]
        means = self.texts.groupby("alpha")[["repeated", "perplexity"]].mean()
        ax.plot(means.index, means["repeated"], marker="o", color="#0072B2")
        ax.set(xlabel="alpha", ylabel="repeated", ylim=(-0.02, 1.02))
        right = ax.twinx()
        right.plot(means.index, means["perplexity"], marker="s", color="#D55E00")
        right.set(ylabel="perplexity, untouched model", yscale="log")
        return ax

    def _repr_html_(self) -> str:
        return self.texts.to_html(index=False, float_format="{:.3g}".format)


def alpha_sweep(
    m: Any,
    sae: "SAE",
    latent: int,
    prompts: Sequence[Any],
    alphas: Sequence[int | float] = (0, 15, 25, 50, 100, 150, 200),
    max_new_tokens: int = 64,
) -> AlphaSweep:
    """Add alpha times a latent's unit direction to every token at its site, and let the model answer.

    The published range of alpha is for models whose residual norms are some tens; look at those of yours.

    Raises:
        InputError: no such latent. FitError: an SAE that writes no one site of this model.
    """
    import pandas as pd

    from sparselens.attach import edit, fitting_sites

    if not 0 <= latent < sae.d_sae:
        raise InputError(f"latent {latent} does not exist: this SAE has 0 to {sae.d_sae - 1}.")
    (site,) = fitting_sites(sae, m, None)
    direction = torch.nn.functional.normalize(sae.W_dec[latent].detach(), dim=0)
    rows = []
    for alpha in alphas:
        push = alpha * direction
        with m.attach(edit(site, lambda x, push=push: x + push.to(x))):
            texts = m.generate(list(prompts), max_new_tokens=max_new_tokens)
        for prompt, text in zip(prompts, texts, strict=True):
            rows.append((float(alpha), _shown(prompt), text, _repeated(text), _perplexity(m, text)))
    return AlphaSweep(pd.DataFrame(rows, columns=["alpha", "prompt", "text", "repeated", "perplexity"]))


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _repeated(text: str) -> float:
    """Share of three-word runs that came before."""
    words = text.split()
    runs = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _perplexity(m: Any, text: str) -> float:
    try:
        return float(np.exp(m.loss(text)))
    except InputError:  # nothing to predict
        return float("nan")
