"""The sparse frontier: which sparse attention survives at which budget, for which task, and at what cost.

Nawrot et al., 2025, arXiv 2504.17768.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sparselens.attention.method import SparseAttention
from sparselens.attention.tasks import LongText
from sparselens.errors import InputError, closest
from sparselens.models.live import LiveModel

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

Maker = Callable[[float], SparseAttention]
COSTS = ("density", "flops", "bytes")
SCORES = ("logprob", "top1")
_INDEX = {"VerticalSlash": "vertical_slash", "FlexPrefill": "vertical_slash", "BlockSparse": "block", "Quest": "quest"}


@dataclass(frozen=True)
class Score:
    """How well a model says the answer to a text, given all of it up to each token.

    Attributes:
        logprob: mean log-probability of the answer's tokens, in nats.
        top1: share of them that the model finds likeliest.
        density: share of the allowed pairs that were kept where the method acts; 1 without one.
        tokens: tokens of the prompt.
    """

    logprob: float
    top1: float
    density: float
    tokens: int


@torch.no_grad()
def score(m: LiveModel, text: LongText, method: SparseAttention | None = None, *, read: bool = False) -> Score:
    """Teacher-forced score of one answer, in one pass.

    The prompt is prefill, the answer is decoded from it: a method for prefill leaves the answer's own queries dense,
    one for decoding the prompt's. The query of the prompt's last token, which says the answer's first, is prefill.

    Args:
        m: a live model with a tokenizer.
        text: what to ask; see `long_context`.
        method: what to put on; None for dense attention.
        read: take the answer as part of the prompt. A method for prefill then acts on the answer's queries too, which
            otherwise look back at all of the prompt and may find there what the prompt's own queries missed.

    Raises:
        InputError: the model has no tokenizer, the text is too long for it, or `read` with a method for decoding.
    """
    if m.tokenizer is None:
        raise InputError("this model has no tokenizer: pass one to sl.wrap(model, tokenizer).")
    prompt = m.tokenizer(text.prompt)["input_ids"]
    answer = m.tokenizer(text.answer, add_special_tokens=False)["input_ids"]
    ids, counted = torch.tensor([prompt + answer]), None
    if method is not None:
        method = copy.copy(method)
        method.prompt = None if read else len(prompt)
        counted = method.counted(m)
    with m.attach([] if counted is None else counted):
        logits = m.run(ids).logits[0, len(prompt) - 1 : -1].float()
    said = logits.log_softmax(-1)
    gold = torch.tensor(answer, device=said.device)
    logprob = float(said.gather(-1, gold[:, None]).mean())
    density = 1.0 if counted is None else 1 - counted.numbers().get("sparsity", 0.0)
    return Score(logprob, float((said.argmax(-1) == gold).float().mean()), density, len(prompt))


@dataclass(frozen=True)
class TaskFrontier:
    """Scores of models, methods and budgets on tasks. Made by `frontier`.

    Attributes:
        rows: a dict for each text scored: model, method, budget, phase, task, tokens, density, logprob, top1, flops
            (operations to read the prompt), bytes (read to decode one token after it).
    """

    rows: tuple[dict[str, Any], ...]

    def to_frame(self) -> "pandas.DataFrame":
        """A row for each model, method, budget, task and length: means over its texts, `n` of them, and `sem`, the
        standard error of the mean log-probability.
        """
        import pandas as pd

        keys = ["model", "method", "budget", "phase", "task", "length"]
        groups = pd.DataFrame(self.rows).groupby(keys, sort=False, dropna=False)
        frame = groups.mean(numeric_only=True).reset_index()
        frame["n"] = groups.size().to_numpy()
        frame["sem"] = (groups["logprob"].std(ddof=1) / groups.size() ** 0.5).to_numpy()
        return frame

    def pareto(self, cost: str = "flops", score: str = "logprob") -> "pandas.DataFrame":
        """Configurations that none other beats: none is cheaper and at least as good. Means over tasks, for each
        length: comparing costs at equal work.

        Args:
            cost: "flops" of reading the prompt, "bytes" of decoding a token, or "density".
            score: "logprob" or "top1".

        Raises:
            InputError: an unknown cost or score.
        """
        _known("cost", cost, COSTS)
        _known("score", score, SCORES)
        keys = ["model", "method", "budget", "phase", "length"]
        frame = self.to_frame().groupby(keys, sort=False, dropna=False).mean(numeric_only=True).reset_index()
        kept = []
        for _, group in frame.groupby("length", sort=False):
            best = float("-inf")
            for _, row in group.sort_values([cost, score], ascending=[True, False]).iterrows():
                if row[score] > best:
                    best = row[score]
                    kept.append(row)
        import pandas as pd

        return pd.DataFrame(kept)[[*keys, cost, score]].reset_index(drop=True)

    def worst_task(self, score: str = "logprob") -> "pandas.DataFrame":
        """For each model, method and budget the task that loses most against dense attention, and how much."""
        _known("score", score, SCORES)
        frame = self.to_frame()
        dense = frame[frame["method"] == "dense"].set_index(["model", "task", "length"])[score]
        frame = frame[frame["method"] != "dense"].copy()
        frame["lost"] = [dense[row.model, row.task, row.length] - getattr(row, score) for row in frame.itertuples()]
        worst = frame.loc[frame.groupby(["model", "method", "budget", "length"], sort=False)["lost"].idxmax()]
        return worst[["model", "method", "budget", "length", "task", "lost"]].reset_index(drop=True)

    def equal_error(self, error: float = 0.2, score: str = "logprob") -> "pandas.DataFrame":
        """For each model, method, length and task the smallest density measured that loses at most a share of what
        dense attention scores; NaN where none does. Who needs less for the same is the better method.

        Args:
            error: the share, 0 to 1: of the probability of the answer (geometric mean over its tokens) for "logprob",
                of its tokens found for "top1".
            score: "logprob" or "top1".

        Raises:
            InputError: an unknown score, or a share out of range.
        """
        _known("score", score, SCORES)
        if not 0 <= error <= 1:
            raise InputError(f"error={error!r} is out of range: give a share from 0 to 1.")
        import numpy as np

        frame = self.to_frame()
        frame["right"] = np.exp(frame["logprob"]) if score == "logprob" else frame["top1"]
        dense = frame[frame["method"] == "dense"].set_index(["model", "task", "length"])["right"]
        frame = frame[frame["method"] != "dense"]
        least = [(1 - error) * dense[row.model, row.task, row.length] for row in frame.itertuples()]
        frame = frame.assign(density=frame["density"].where(frame["right"] >= least))
        return frame.groupby(["model", "method", "length", "task"], sort=False)["density"].min().reset_index()

    def plot(
        self, x: str = "density", y: str = "logprob", task: str | None = None, ax: "matplotlib.axes.Axes | None" = None
    ) -> "matplotlib.axes.Axes":
        """Draw score over cost, a line a method. Returns the axes.

        Args:
            x, y: a cost and a score, as for `pareto`.
            task: one task; the mean over all by default.
            ax: axes to draw into.

        Raises:
            InputError: an unknown cost, score or task.
        """
        from sparselens.views import frontier

        _known("x", x, COSTS)
        _known("y", y, SCORES)
        frame = self.to_frame()
        if task is not None:
            _known("task", task, frame["task"].unique())
            frame = frame[frame["task"] == task]
        frame = frame.groupby(["model", "method", "budget", "length"], sort=False, dropna=False)
        frame = frame.mean(numeric_only=True).reset_index()
        several = frame["model"].nunique() > 1 or frame["length"].nunique() > 1
        frame["name"] = [f"{row.method}, {row.model}, {row.length} tokens" if several else row.method
                         for row in frame.itertuples()]
        ax = frontier(frame, x, y, "name", ax)
        ax.set_title("all tasks" if task is None else task, loc="left", fontsize=10)
        return ax

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.3g}".format)


def frontier(
    models: LiveModel | Mapping[str, LiveModel],
    methods: Mapping[str, Maker],
    texts: Sequence[LongText] | Mapping[int, Sequence[LongText]],
    budgets: Iterable[float] = (0.5, 0.25, 0.125),
    *,
    batch: int = 8,
) -> TaskFrontier:
    """Score methods at several budgets, and dense attention, on long texts.

    Args:
        models: a live model, or name -> model for comparing large sparse with small dense ones.
        methods: name -> maker, which is given a budget, such as `{"Quest": sl.Quest}`.
        texts: what to ask; see `long_context`. Length -> texts compares lengths.
        budgets: densities asked for.
        batch: requests decoded together, for the bytes of a decoded token.

    Raises:
        InputError: nothing to score, or a budget out of range.

    Example:
        >>> texts = sl.attention.long_context(m.tokenizer, tokens=1024)
        >>> sl.attention.frontier(m, {"Quest": sl.Quest, "window": sl.SinkWindow}, texts).plot()
    """
    named = models if isinstance(models, Mapping) else {models.name: models}
    budgets = [float(b) for b in budgets]
    if not named or not methods or not texts or not budgets:
        raise InputError("nothing to score: give a model, methods as name -> maker, texts, and budgets.")
    by_length = texts if isinstance(texts, Mapping) else {0: texts}
    cases: list[tuple[str, float, SparseAttention | None]] = [("dense", 1.0, None)]
    cases += [(name, budget, make(budget)) for name, make in methods.items() for budget in budgets]
    rows: list[dict[str, Any]] = []
    for label, m in named.items():
        for length, given in by_length.items():
            for text in given:
                for name, budget, method in cases:
                    found = score(m, text, method)
                    rows.append({
                        "model": label, "method": name, "budget": budget, "task": text.task, "length": length,
                        "phase": "" if method is None else method.phase, "tokens": found.tokens,
                        "density": found.density, "logprob": found.logprob, "top1": found.top1,
                        **cost(m, method, found, batch),
                    })
    longest = max(row["tokens"] for row in rows)
    return TaskFrontier(tuple(row | {"length": row["length"] or longest} for row in rows))


def cost(m: LiveModel, method: SparseAttention | None, found: Score, batch: int = 8) -> dict[str, float]:
    """Operations to read a prompt and bytes to decode a token after it, by the formulas of `costs`.

    A method counts in the phase it acts in: one for prompts reads the whole cache when decoding.

    Args:
        m: the model.
        method: None for dense attention.
        found: the score, with prompt length and measured density.
        batch: requests decoded together.
    """
    from sparselens.costs import decode_bytes, prefill_flops

    phase = "" if method is None else method.phase
    index = _INDEX.get(type(method).__name__, "none")
    prefill = found.density if phase in ("prefill", "both") else 1.0
    decode = found.density if phase in ("decode", "both") else 1.0
    flops = prefill_flops(m, found.tokens, density=prefill, index=index if index != "quest" else "none")
    read = decode_bytes(m, found.tokens, density=decode, index=index if index == "quest" else "none", batch=batch,
                        weight_bytes=float(m.dtype.itemsize))
    return {"flops": flops, "bytes": read}


def _known(name: str, value: str, valid: Iterable[str]) -> None:
    valid = list(valid)
    if value not in valid:
        raise InputError(f"{name}={value!r} is unknown; valid are {', '.join(valid)}.{closest(value, valid)}")
