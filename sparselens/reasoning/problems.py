"""Word problems made here, with correct chains of thought and chains with one planted first error of a known kind."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from sparselens.errors import InputError, closest
from sparselens.reasoning.records import joined
from sparselens.reasoning.traces import Label, Trace, Traces

KINDS = {
    "result": "the sum is right, its result is not",
    "operation": "the wrong sum is made of what is told (added where something is lost)",
    "number": "a number of the problem is copied wrong",
    "reversed": "a rule is read backwards",
    "unstated": "a conclusion that no rule gives",
}
_ARITHMETIC, _LOGIC = ("result", "operation", "number"), ("reversed", "unstated")
_NAMES = ("Ana", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Leo")
_THINGS = ("apples", "books", "coins", "shells", "stamps", "marbles", "cards", "pens", "eggs", "tickets")
_NOUNS = ("rabbit", "singer", "tailor", "pilot", "baker", "farmer", "painter", "dancer", "writer", "miner", "sailor",
          "hunter", "teacher", "doctor", "poet", "guard")


@dataclass(frozen=True)
class _Event:
    """Something that happens to what a person has: how it is told, the operation, and the operation mistaken for it."""

    told: str
    operation: str
    mistaken: str
    most: int


_EVENTS = (
    _Event("{name} finds {n} more {things}.", "+", "-", 30),
    _Event("{name} buys {n} {things}.", "+", "-", 30),
    _Event("{name} gives away {n} {things}.", "-", "+", 9),
    _Event("{name} loses {n} {things}.", "-", "+", 9),
    _Event("A friend hands {name} {n} times as many {things} as that, and takes the old ones.", "*", "+", 4),
)


def planted_chains(n: int = 200, *, share_wrong: int | float = 0.5, kind: str | None = None,
                   moves: tuple[int, int] = (3, 5), seed: int = 0) -> Traces:
    """Make word problems, each with a chain of thought: correct, or wrong from one known step on.

    Half are arithmetic (what is had, then a step with a calculator note for each thing that happens), half logic (rules
    in a chain, a step for each that applies).
    After a planted error the chain goes on consistently from the wrong value, and what follows has no label.
    Right and wrong chains are about different problems, drawn alike.

    Args:
        n: number of chains.
        share_wrong: share of them with an error.
        kind: only errors, and problems, of this kind: a key of `KINDS`; None takes all in turn.
        moves: fewest and most things that happen, or rules that apply, in a problem: from 1 to 5.
        seed: seed of its own generator.

    Returns:
        `Traces` with step labels (1, 0 at the error, None after it), verdicts, `kind` and model "planted".

    Raises:
        InputError: an unknown kind, a number below 1, a share outside 0 to 1, or moves outside 1 to 5.
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind={kind!r} is unknown; valid are {', '.join(KINDS)}.{closest(kind, KINDS)}")
    if n < 1 or not 0 <= share_wrong <= 1:
        raise InputError(f"n={n} and share_wrong={share_wrong}: n must be at least 1, the share between 0 and 1.")
    if not 1 <= moves[0] <= moves[1] <= len(_EVENTS):
        raise InputError(f"moves={moves}: fewest and most must lie between 1 and {len(_EVENTS)}, in this order.")
    draw = random.Random(seed)
    kinds = [kind] if kind else [k for pair in zip(_ARITHMETIC, _LOGIC + _LOGIC[:1], strict=True) for k in pair]
    wrong = [i * share_wrong // 1 != (i + 1) * share_wrong // 1 for i in range(n)]
    draw.shuffle(wrong)
    return Traces([_trace(i, kinds[i % len(kinds)], wrong[i], moves, draw) for i in range(n)])


def _trace(number: int, kind: str, wrong: bool, moves: tuple[int, int], draw: random.Random) -> Trace:
    make: Callable = _arithmetic if kind in _ARITHMETIC else _logic
    question, steps, error = make(kind if wrong else "", moves, draw)
    text, spans = joined(steps)
    labels: list[Label] = [1.0] * len(steps)
    if wrong:
        labels = [1.0] * error + [0.0] + [None] * (len(steps) - error - 1)
    return Trace(f"planted {number}", text, spans, labels, question, not wrong, "planted", kind if wrong else "")


def _apply(operation: str, a: int, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[operation]


def _arithmetic(kind: str, moves: tuple[int, int], draw: random.Random) -> tuple[str, list[str], int]:
    """Question, steps, and the number of the wrong step. Values stay between 1 and a few thousand."""
    name, things = draw.choice(_NAMES), draw.choice(_THINGS)
    value = start = draw.randint(12, 60)
    events = draw.sample(_EVENTS, draw.randint(*moves))
    error = draw.randrange(1, len(events) + 1)
    told, steps = [f"{name} has {start} {things}."], [f"{name} starts with {start} {things}."]
    for number, event in enumerate(events, start=1):
        n = draw.randint(2, event.most)
        told.append(event.told.format(name=name, n=n, things=things))
        operation, used, shift = event.operation, n, 0
        if number == error and kind == "operation":
            operation = event.mistaken
        elif number == error and kind == "number":
            used = n + draw.choice([-1, 1, 2, 3, 10])
        elif number == error and kind == "result":
            shift = draw.choice([-20, -10, -3, -2, -1, 1, 2, 3, 10, 20])
        result = _apply(operation, value, used)
        if result + shift < 1 or (kind and number == error and result + shift == _apply(event.operation, value, n)):
            return _arithmetic(kind, moves, draw)  # an error that changes nothing, or fewer things than none
        result += shift
        note = f"<<{value}{operation}{used}={result}>>"
        steps.append(f"Then {name} has {value} {operation} {used} = {note}{result} {things}.")
        value = result
    steps[-1] += f"\n#### {value}"
    return f"{' '.join(told)} How many {things} does {name} have now?", steps, error


def _logic(kind: str, moves: tuple[int, int], draw: random.Random) -> tuple[str, list[str], int]:
    """A chain of rules "every A is a B", followed from the first to the last; beside it rules that do not help."""
    n = draw.randint(*moves)
    nouns = draw.sample(_NOUNS, n + 4)
    chain, others = nouns[: n + 1], nouns[n + 1 :]
    name = draw.choice(_NAMES)
    # a rule into the chain (to read backwards) and one beside it
    error = draw.randrange(0, n)
    rules = [f"Every {a} is a {b}." for a, b in zip(chain, chain[1:], strict=False)]
    rules += [f"Every {others[0]} is a {chain[error]}.", f"Every {others[1]} is a {others[2]}."]
    draw.shuffle(rules)
    known, steps = chain[0], []
    for number in range(n):
        concluded, because = chain[number + 1], f"every {known} is a {chain[number + 1]}"
        if number == error and kind == "reversed":
            concluded, because = others[0], f"every {known} is a {others[0]}"
        elif number == error and kind == "unstated":
            concluded, because = others[1], f"every {known} is a {others[1]}"
        elif kind and number > error:  # goes on from what was concluded, as if the rules led on from there
            because = f"every {known} is a {concluded}"
        steps.append(f"{name} is a {known}, and {because}, so {name} is a {concluded}.")
        known = concluded
    steps[-1] += f"\n#### {name} is a {known}"
    return f"{' '.join(rules)} {name} is a {chain[0]}. What else is {name}?", steps, error
