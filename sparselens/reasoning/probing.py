"""One table of step probes: every representation of the steps beside the baselines that it has to beat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparselens.errors import InputError, closest
from sparselens.reasoning.baselines import context_statistics, step_statistics, word_counts
from sparselens.reasoning.localisation import ErrorsFound, first_errors
from sparselens.reasoning.results import Shown
from sparselens.reasoning.scores import Score, brier, calibration_error, grouped_split, reliability
from sparselens.reasoning.states import StepStates, as_rows, step_states
from sparselens.reasoning.step_probe import TASKS, StepProbe
from sparselens.reasoning.traces import Traces, as_traces

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas

    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE
    from sparselens.views.reasoning import ReasoningTimeline

_SEEING = ("length", "first_token")  # tasks for which whoever has seen the step is favoured by construction
_CONTEXT = ("context", "prior", "context statistics")


class Rows(NamedTuple):
    """What a table is made of: rows of steps, or of chains for the task "verdict".

    Attributes:
        matrices: name -> `[rows, d]`.
        y: float64 `[rows]`, NaN where not known.
        chain: int64 `[rows]` the chain of each row.
        problems: object `[rows]`.
        texts: what each row has read.
    """

    matrices: dict[str, Any]
    y: np.ndarray
    chain: np.ndarray
    problems: np.ndarray
    texts: list[str]


@dataclass(frozen=True, eq=False)
class StepProbes(Shown):
    """Probes of one property on held-out problems, a representation each; made by `probe_steps`.

    Attributes:
        task: what was probed.
        traces: the chains.
        rows: what the probes read and should say.
        train, test: rows fitted on and held out (with a known label).
        probes: name -> fitted probe.
        scores: name -> figure -> value with interval, on the held-out rows.
        notes: what to know when reading the table.
    """

    task: str
    traces: Traces
    rows: Rows
    train: np.ndarray
    test: np.ndarray
    probes: dict[str, StepProbe]
    scores: dict[str, dict[str, Score]]
    notes: list[str]

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a representation, the best first: `sees` (what it has read), `read` (mean entries that are not
        zero), the figures with `_low` and `_high`; for two classes also `brier` and `calibration_error`."""
        import pandas as pd

        out = []
        for name, found in self.scores.items():
            sees = "nothing" if name == "prior" else "context" if name in _CONTEXT else "step"
            row: dict[str, Any] = {"representation": name, "sees": sees, "read": self._read(name)}
            for figure, score in found.items():
                row |= {figure: score.value, f"{figure}_low": score.low, f"{figure}_high": score.high}
            if TASKS[self.task] == "binary":
                y, p = self.rows.y[self.test], self.probabilities(name)
                row |= {"brier": brier(y, p), "calibration_error": calibration_error(y, p)}
            out.append({**row, "n_train": len(self.train), "n_test": len(self.test)})
        figure = next(iter(next(iter(self.scores.values()))))
        frame = pd.DataFrame(out).sort_values(figure, ascending=figure != "auroc", kind="stable", ignore_index=True)
        return frame

    def _read(self, name: str) -> float:
        if name == "prior":
            return 0.0
        x = self.rows.matrices[name][self.test][:, self.probes[name].columns_]
        return float((x != 0).sum() / len(self.test))

    def probabilities(self, name: str) -> np.ndarray:
        """Probability of 1 for each held-out row, `[test]`, in the order of `test` (two classes only)."""
        if name == "prior":
            return np.full(len(self.test), self.rows.y[self.train].mean())
        return self._probe(name).predict_proba(self.rows.matrices[name][self.test])[:, 1]

    def reliability(self, name: str) -> "pandas.DataFrame":
        """Return a row a bin of held-out rows by probability: `said`, `right` (share), `rows`."""
        import pandas as pd

        said, right, count = reliability(self.rows.y[self.test], self.probabilities(name))
        return pd.DataFrame({"said": said, "right": right, "rows": count})

    def by_chain(self, name: str) -> tuple[Traces, list[np.ndarray]]:
        """The chains of held-out problems, and the probability of 1 for each of their rows (steps, or the chain)."""
        held = set(self.rows.chain[self.test].tolist())
        own = [np.flatnonzero(self.rows.chain == chain) for chain in sorted(held)]
        p = self._probe(name).predict_proba(self.rows.matrices[name])[:, 1]
        return Traces([self.traces[chain] for chain in sorted(held)]), [p[rows] for rows in own]

    def first_errors(self, name: str, threshold: float = 0.5) -> ErrorsFound:
        """How well the probe finds the first error of held-out chains; see `reasoning.first_errors`."""
        if self.task == "verdict":
            raise InputError("verdicts are of whole chains; probe the steps (task='correct') to find an error.")
        return first_errors(*self.by_chain(name), threshold=threshold)

    def timeline(self, chain: int, names: Sequence[str] | None = None, **options: Any) -> "ReasoningTimeline":
        """Return the view of one chain with the scores of some probes at each step.

        Args:
            chain: its number among the traces; of a problem held out, if its scores are to mean anything.
            names: representations; the best three if None.
            **options: as for `views.reasoning.timeline_view`.
        """
        from sparselens.views.reasoning import timeline_view

        if self.task == "verdict" or TASKS[self.task] != "binary":
            raise InputError(f"the task {self.task!r} gives no probability for each step; probe task='correct'.")
        trace, own = self.traces[chain], np.flatnonzero(self.rows.chain == chain)
        chosen = [n for n in self.to_frame()["representation"] if n != "prior"][:3] if names is None else list(names)
        scores, ranges = {}, {}
        for name in chosen:
            probe, x = self._probe(name), self.rows.matrices[name][own]
            scores[name] = probe.predict_proba(x)[:, 1]
            if probe.kind == "linear":
                ranges[name] = probe.predict_range(x)
        return timeline_view(
            trace.steps.texts, scores, ranges=ranges, labels=trace.labels, verdict=trace.verdict,
            **{"question": trace.question, "title": f"{trace.model} on {trace.problem}"[:80], **options})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.figure.Figure":
        """Draw the main figure of each representation with its interval."""
        from sparselens.views.reasoning_figures import interval_dots

        frame = self.to_frame()
        figure = frame.columns[3]
        values = frame[[figure, f"{figure}_low", f"{figure}_high"]].to_numpy(dtype=float)
        faint = (frame["sees"] != "step").to_numpy()
        return interval_dots(frame["representation"].tolist(), values, figure, faint, ax)

    def _notes(self) -> list[str]:
        return self.notes

    def __repr__(self) -> str:
        best = self.to_frame().iloc[0]
        return (f"StepProbes({self.task!r}, {len(self.scores)} representations, {len(self.test):,} held-out rows; best "
                f"{best['representation']!r} {best.iloc[3]:.3f})")

    def _probe(self, name: str) -> StepProbe:
        if name not in self.probes:
            raise InputError(f"no probe is called {name!r}; there are {', '.join(self.probes)}."
                             f"{closest(name, self.probes)}")
        return self.probes[name]


def probe_steps(
    traces: Any,
    representations: Mapping[str, Any] | None = None,
    *,
    task: str = "correct",
    m: "LiveModel | None" = None,
    sae: "SAE | None" = None,
    y: Any = None,
    kind: str = "linear",
    n_features: int | None = None,
    train: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    held_out: float = 0.3,
    seed: int = 0,
) -> StepProbes:
    """Probe steps for a property, from each representation and from the baselines, on problems held out.

    Always in the table: the prior; figures of the text alone ("statistics"); its words; dense states at the last token,
    averaged, and before the step ("context"); the last state and the figures together ("last + statistics"). No problem
    is on both sides of the split. For "length" and "first_token" the text baselines read only what stands before the
    step: what has seen a step knows how long it is.

    Args:
        traces: what `read_traces` reads.
        representations: name -> `[n_steps, d]` (dense, CSR, or what `StepSAE.transform` gives), or a `StepStates`.
            Dense states must be among them if no model is given.
        task: "correct" or "logical" (the labels of the steps, or `y`), "verdict" (of whole chains), "length" (tokens)
            or "first_token".
        m, sae: read dense states, and pooled codes of this dictionary, here.
        y: labels in place of the traces' own, `[n_steps]`, NaN or None where not known.
        kind, n_features: as for `StepProbe`; n_features for representations wider than it only.
        train, test: models whose chains are fitted on and tested on; all if None. Problems stay apart all the same.
        held_out: share of the problems that are held out.
        seed: of the split and of the probes.

    Raises:
        InputError: no dense baselines, rows that do not fit, no labels, or one label only.
    """
    traces = as_traces(traces)
    if task not in TASKS:
        raise InputError(f"task={task!r} is unknown; valid are {', '.join(TASKS)}.{closest(task, TASKS)}")
    given = dict(representations or {})
    states = representations if isinstance(representations, StepStates) else None
    if m is not None:
        states = step_states(traces, m, sae)
        given = {**states, **given}
    if "last" not in given:
        raise InputError("dense states are in every table of step probes: pass m=..., or the result of "
                         "sl.step_states(traces, m) with yours added, as states.plus(mine=Z).")
    given = as_rows(given, traces.n_steps)
    rows = _rows(traces, given, task, y, states)
    split = _split(rows, traces, train, test, held_out, seed)
    return _fitted(traces, rows, task, split, StepProbe(task, kind=kind, n_features=n_features, seed=seed))


def _rows(traces: Traces, given: dict[str, Any], task: str, y: Any, states: StepStates | None) -> Rows:
    chain = np.array([number for number, trace in enumerate(traces) for _ in trace.spans], dtype=np.int64)
    texts = [text for trace in traces for text in trace.steps.texts]
    problems = traces.step_problems()
    if task == "verdict":
        return _chain_rows(traces, given, chain)
    if y is not None:
        values = np.array([np.nan if v is None else float(v) for v in np.asarray(y, dtype=object)], dtype=np.float64)
    elif task in _SEEING:
        if states is None:
            raise InputError(f"the task {task!r} needs the tokens of the steps: pass m=..., or what step_states gives "
                             "(add your own to it with states.plus(mine=Z)).")
        values = states.n_tokens if task == "length" else np.array([ids[0] for ids in states.tokens])
        values = values.astype(np.float64)
    else:
        values = traces.step_labels()
        soft = np.isfinite(values) & (values != 0) & (values != 1)
        values = np.where(soft, (values >= 0.5).astype(float), values)
    if len(values) != len(chain):
        raise InputError(f"y has {len(values)} values, and there are {len(chain)} steps.")
    return Rows(given, values, chain, problems, texts)


def _chain_rows(traces: Traces, given: dict[str, Any], chain: np.ndarray) -> Rows:
    """A row a chain: the last step's, but means over steps for "mean" and codes."""
    from scipy.sparse import csr_matrix

    counts = np.bincount(chain, minlength=len(traces))
    if (counts == 0).any():
        raise InputError(f"chain {int(counts.argmin())} has no steps: leave it out, as traces.where(len).")
    last = np.cumsum(counts) - 1
    share = csr_matrix(((1 / counts)[chain], (chain, np.arange(len(chain)))), shape=(len(traces), len(chain)))
    share = share.astype(np.float32)
    matrices = {name: x[last] if name in ("last", "context") else share @ x for name, x in given.items()}
    y = np.array([np.nan if v is None else float(v) for v in traces.verdicts], dtype=np.float64)
    problems = np.array(traces.problems, dtype=object)
    return Rows(matrices, y, np.arange(len(traces)), problems, [trace.text for trace in traces])


def _split(
    rows: Rows, traces: Traces, train: Any, test: Any, held_out: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows held out, with known labels, of the models asked for."""
    known = np.isfinite(rows.y)
    if not known.any():
        raise InputError("no label is known. Give traces with labels (traces.check_arithmetic() makes some) or "
                         "verdicts, or pass y=...")
    parts = grouped_split(rows.problems, held_out, seed)
    models = np.array([trace.model for trace in traces], dtype=object)[rows.chain]
    out = []
    for part, wanted in zip(parts, (train, test), strict=True):
        names = [wanted] if isinstance(wanted, str) else wanted
        if names is not None:
            traces.by(*names)  # names an unknown model
        own = np.isin(models[part], names) if names is not None else np.ones(len(part), dtype=bool)
        out.append(part[own & known[part]])
    return out[0], out[1]


def _fitted(
    traces: Traces, rows: Rows, task: str, split: tuple[np.ndarray, np.ndarray], like: StepProbe
) -> StepProbes:
    from sklearn.base import clone

    train, test = split
    if not len(train) or not len(test):
        raise InputError("no row with a known label is left to train on or to test on: give more problems, or another "
                         "held_out or seed.")
    matrices = {**rows.matrices, **_texts_alone(traces, rows, task, train)}
    rows = rows._replace(matrices=matrices)
    probes, scores = {}, {"prior": _prior(rows.y, train, test, rows.problems[test], like)}
    for name, x in matrices.items():
        probe = clone(like)
        probes[name] = probe.fit(x[train], rows.y[train], rows.problems[train])
        scores[name] = probe.evaluate(x[test], rows.y[test], rows.problems[test])
    return StepProbes(task, traces, rows, train, test, probes, scores, _notes(rows, task))


def _texts_alone(traces: Traces, rows: Rows, task: str, train: np.ndarray) -> dict[str, Any]:
    """The baselines that no model is needed for, and the last state beside them."""
    if task in _SEEING:
        return {"context statistics": context_statistics(traces)}
    words = word_counts(rows.texts, train)
    if task != "verdict":
        return _with_states({"statistics": step_statistics(traces, train), "words": words}, rows)
    counts = np.array([len(trace) for trace in traces])
    of_train = np.flatnonzero(np.repeat(np.isin(np.arange(len(traces)), train), counts))
    steps = step_statistics(traces, of_train)
    ends = np.cumsum(counts)
    chains = np.concatenate([np.add.reduceat(steps, ends - counts) / counts[:, None], steps[ends - 1]], axis=1)
    return _with_states({"statistics": chains.astype(np.float32), "words": words}, rows)


def _with_states(texts: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """These, and the last state and the figures of the text read together: what both know in one probe."""
    both = np.concatenate([rows.matrices["last"], texts["statistics"]], axis=1)
    return {**texts, "last + statistics": both}


def _prior(
    y: np.ndarray, train: np.ndarray, test: np.ndarray, problems: np.ndarray, like: StepProbe
) -> dict[str, Score]:
    """The same figures for whoever knows only the training labels."""
    from sklearn.base import clone

    probe = clone(like).set_params(kind="linear", n_features=None)
    probe.fit(np.zeros((len(train), 1), dtype=np.float32), y[train])
    return probe.evaluate(np.zeros((len(test), 1), dtype=np.float32), y[test], problems)


def _notes(rows: Rows, task: str) -> list[str]:
    known = np.isfinite(rows.y)
    notes = [f"{len(set(rows.problems)):,} problems, none on both sides. Intervals resample problems."]
    if not known.all():
        notes.append(f"{int((~known).sum()):,} of {len(known):,} rows have no label and are left out.")
    if task in _SEEING:
        notes.append("What sees the step is favoured by construction; compare it with what also sees it.")
    else:
        notes.append(f"{np.nanmean(rows.y):.0%} of the known labels are 1.")
    return notes
