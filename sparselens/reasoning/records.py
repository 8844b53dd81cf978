"""The forms in which people keep chains of thought, as traces."""

import gzip
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sparselens.errors import FileFormatError, InputError, closest
from sparselens.reasoning.steps import Span, Steps
from sparselens.reasoning.traces import Label, Trace

CHAINS = ("text", "solution", "response", "completion", "output", "chain", "generated")
QUESTIONS = ("question", "prompt", "instruction")
VERDICTS = ("verdict", "is_correct", "correct", "final_answer_correct")
_STEP_COLUMNS = {"trace", "step", "text"}
Cut = Callable[[str], Steps]


def records_of(source: Any) -> list[Any]:
    """Strings or dictionaries, one a chain (or a problem), out of a list, a frame or a file.

    Raises:
        InputError: something that holds no records. FileFormatError: a damaged file.
    """
    if isinstance(source, str | Mapping):
        return [source]
    if isinstance(source, Path):
        return _lines(source)
    if hasattr(source, "to_dict") and hasattr(source, "columns"):
        rows = [{str(k): _plain(v) for k, v in row.items()} for row in source.to_dict("records")]
        return _grouped(rows) if set(map(str, source.columns)) >= _STEP_COLUMNS else rows
    if not isinstance(source, Iterable):
        raise InputError(f"chains of thought come as a list, a frame or a path, not as a {type(source).__name__}.")
    return list(source)


def traces_of(record: Any, number: int, cut: Cut, model: str) -> list[Trace]:
    """The chains of one record.

    Args:
        record: a string, a dictionary or a `Trace`.
        number: which record it is, for messages, and as its problem if nothing names that.
        cut: splits a chain into steps.
        model: who wrote it, if the record does not say.

    Raises:
        InputError: a record of an unknown form.
    """
    if isinstance(record, Trace):
        return [record]
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, Mapping):
        raise InputError(f"record {number} is a {type(record).__name__} ({record!r:.50}), no string or dictionary.")
    for fits, read in ((_is_examples, _examples), (_is_prm800k, _prm800k), (_is_shepherd, _shepherd)):
        if fits(record):
            return read(record, number, cut, model)
    if "spans" in record:
        return [_own(record, number, model)]
    if "steps" in record or isinstance(record.get("completions"), list | tuple):
        return [_stepwise(record, number, model)]
    return [_chain(record, number, cut, model)]


# --- forms -------------------------------------------------------------------------------------------------------


def _own(record: Mapping, number: int, model: str) -> Trace:
    """What `Traces.to_records` gives, or a frame of steps."""
    text = _text(record, "text", number)
    spans = [(int(start), int(end)) for start, end in record["spans"]]
    ends = [0, *(end for _, end in spans)]
    if any(start < before or end <= start for before, (start, end) in zip(ends, spans, strict=False)) \
            or ends[-1] > len(text):
        raise InputError(f"record {number}: its spans are not in order within its {len(text)} characters.")
    labels = _labels(record.get("labels"), len(spans), number)
    return Trace(**_about(record, number, model), text=text, spans=spans, labels=labels)


def _stepwise(record: Mapping, number: int, model: str) -> Trace:
    """TRL's stepwise form (`completions`, `labels`) and ProcessBench (`steps`, `label`)."""
    given = record.get("steps", record.get("completions"))
    if not isinstance(given, list | tuple) or not all(isinstance(step, str) for step in given):
        raise InputError(f"record {number}: its steps are not a list of strings.")
    text, spans = joined(given)
    labels = record.get("labels")
    if labels is None and record.get("label") is not None:
        labels = _until(int(record["label"]), len(spans), number)
    about = _about(record, number, model)
    if "steps" in record and isinstance(record.get("problem"), str) and "question" not in record:
        about["question"] = record["problem"]  # ProcessBench
    return Trace(**about, text=text, spans=spans, labels=_labels(labels, len(spans), number))


def _chain(record: Mapping, number: int, cut: Cut, model: str) -> Trace:
    """A whole chain in one string, GSM8K's reference solutions among them."""
    name = next((key for key in CHAINS if isinstance(record.get(key), str)), None)
    about = _about(record, number, model)
    if name is None and isinstance(record.get("answer"), str):
        name = "answer"
        if about["verdict"] is None and "####" in record["answer"]:
            about |= {"verdict": True, "model": about["model"] or "reference"}
    if name is None:
        names = [str(key) for key in record]
        near = next((hint for key in names if (hint := closest(key, [*CHAINS, "steps", "answer"], 1))), "")
        raise InputError(f"record {number} has the names {', '.join(names) or '(none)'}, and none holds a chain as a "
                         f"string; valid are {', '.join(CHAINS)}, answer or steps.{near}")
    steps = cut(record[name])
    labels = _labels(record.get("labels"), len(steps), number)
    return Trace(**about, text=steps.source, spans=steps.spans, labels=labels)


def _is_examples(record: Mapping) -> bool:
    return "ground_truth" in record and any(isinstance(v, Mapping) and "solution" in v for v in record.values())


def _examples(record: Mapping, number: int, cut: Cut, _model: str) -> list[Trace]:
    found = []
    for name, value in record.items():
        if isinstance(value, Mapping) and "solution" in value:
            steps = cut(_text(value, "solution", number))
            about = _about({**record, **value, "model": name}, number, "")
            found.append(Trace(**about, text=steps.source, spans=steps.spans, labels=[None] * len(steps)))
    return found


def _is_prm800k(record: Mapping) -> bool:
    return isinstance(record.get("question"), Mapping) and isinstance(record.get("label"), Mapping)


def _prm800k(record: Mapping, number: int, _cut: Cut, model: str) -> list[Trace]:
    """The completions that were chosen at each step; the last one if none was (the labelling ended there)."""
    texts: list[str] = []
    labels: list[Any] = []
    for step in record["label"]["steps"]:
        chosen, options = step.get("chosen_completion"), step.get("completions") or []
        if chosen is None and step.get("human_completion"):
            texts, labels = [*texts, _said(step["human_completion"])], [*labels, 1.0]
        elif options:
            option = options[chosen if chosen is not None else 0]
            rating = option.get("rating")
            texts, labels = [*texts, option["text"]], [*labels, None if rating is None else float(rating >= 0)]
    text, spans = joined(texts)
    question = str(record["question"].get("problem", ""))
    about = _about({**record, "question": question}, number, model)
    return [Trace(**about, text=text, spans=spans, labels=labels)]


def _said(completion: Any) -> str:
    return completion["text"] if isinstance(completion, Mapping) else str(completion)


def _is_shepherd(record: Mapping) -> bool:
    label = record.get("label")
    return isinstance(record.get("input"), str) and isinstance(label, str) and bool(re.search(r"[+-]\s*$", label))


def _shepherd(record: Mapping, number: int, _cut: Cut, model: str) -> list[Trace]:
    question, *texts = re.split(r"(?=\bStep \d+\s*:)", record["label"])
    marked = [text.rstrip() for text in texts]
    labels: list[Label] = [{"+": 1.0, "-": 0.0}.get(text[-1]) for text in marked]
    text, spans = joined(m if y is None else m[:-1].rstrip() for m, y in zip(marked, labels, strict=True))
    about = _about({**record, "question": question.strip()}, number, model)
    return [Trace(**about, text=text, spans=spans, labels=labels)]


# --- parts -------------------------------------------------------------------------------------------------------


def joined(texts: Iterable[str]) -> tuple[str, list[Span]]:
    """Steps as one text, a line end between them, and where each lies. Blank ones are an error: labels would shift."""
    parts, spans, at = [], [], 0
    for number, text in enumerate(texts):
        if not text.strip():
            raise InputError(f"step {number} is blank. Leave it out together with its label.")
        spans.append((at, at + len(text)))
        parts.append(text)
        at += len(text) + 1
    return "\n".join(parts), spans


def _about(record: Mapping, number: int, model: str) -> dict[str, Any]:
    """What a record says beside its chain."""
    question = next((str(record[key]) for key in QUESTIONS if isinstance(record.get(key), str)), "")
    named = next((record[key] for key in ("problem", "problem_id", "id") if record.get(key) is not None), None)
    verdict = next((record[key] for key in VERDICTS if record.get(key) is not None), None)
    if isinstance(verdict, float | int) and verdict in (0, 1):
        verdict = bool(verdict)
    if verdict is not None and not isinstance(verdict, bool):
        raise InputError(f"record {number}: the verdict is {verdict!r}; give True, False or None.")
    writer = next((record[key] for key in ("model", "generator") if isinstance(record.get(key), str)), "")
    problem = str(named) if named is not None else question or f"#{number}"
    return {"problem": problem, "question": question, "verdict": verdict, "model": writer or model,
            "kind": str(record.get("kind") or "")}


def _labels(given: Any, n: int, number: int) -> list[Label]:
    if given is None:
        return [None] * n
    labels = [_label(value, number) for value in given]
    if len(labels) != n:
        raise InputError(f"record {number}: {n} steps but {len(labels)} labels.")
    return labels


def _label(value: Any, number: int) -> Label:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if value in ("+", "-"):
        return float(value == "+")
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise InputError(f"record {number}: the label {value!r}; give 1 or True (right), 0 or False (wrong), a number "
                     "between, or None. Ratings of -1, 0 and 1: turn -1 into 0 and the others into 1.")


def _until(first: int, n: int, number: int) -> list[Label]:
    """Labels of ProcessBench: right before the first error; what follows it is not known."""
    if not -1 <= first < n:
        raise InputError(f"record {number}: label={first} should be the number of the first wrong step of {n}, or -1.")
    return [1.0] * n if first < 0 else [1.0] * first + [0.0] + [None] * (n - first - 1)


def _text(record: Mapping, key: str, number: int) -> str:
    if not isinstance(record.get(key), str):
        raise InputError(f"record {number}: {key!r} is {record.get(key)!r:.60}; a string is needed.")
    return record[key]


def _plain(value: Any) -> Any:
    """A cell of a frame as a plain value; what is missing is None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    missing = type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))
    return None if missing else value


def _grouped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of steps as one record a chain."""
    chains: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        chains.setdefault(row["trace"], []).append(row)
    out = []
    for own in chains.values():
        own.sort(key=lambda row: row["step"])
        text, spans = joined(str(row["text"]) for row in own)
        keys = ("problem", "question", "model", "verdict", "kind")
        labels = [row.get("label") for row in own]
        out.append({**{key: own[0].get(key) for key in keys}, "text": text, "spans": spans, "labels": labels})
    return out


def _lines(path: Path) -> list[Any]:
    path = path.expanduser()
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path} is not a file.{closest(path.name, beside)}")
    try:
        raw = path.read_bytes()
        content = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise FileFormatError(f"{path} could not be read as UTF-8 text ({error}). Was it copied whole?") from error
    out = []
    for number, line in enumerate(content.split("\n"), start=1):
        try:
            out += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise FileFormatError(f"{path}, line {number}: not valid JSON ({error}); give an object a line.") from error
    return out
