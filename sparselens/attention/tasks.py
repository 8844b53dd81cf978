"""Long texts with a question whose answer is known, and where in the text it stands: in six controllable tasks.

After The Sparse Frontier (arXiv 2504.17768) and RULER (arXiv 2404.06654), smaller, so that small models can be scored
by the probability they give the answer.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparselens.errors import InputError, closest

_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack", "Kate", "Leo", "Mary",
          "Noah", "Olga", "Paul", "Rose", "Sam", "Tina", "Victor")
_PLACES = ("harbour", "library", "market", "museum", "station", "garden", "castle", "bakery", "theatre", "school",
           "bridge", "church", "forest", "island", "hotel", "farm")
_ITEMS = ("lamp", "mirror", "carpet", "violin", "clock", "basket", "ladder", "kettle", "blanket", "hammer", "candle",
          "helmet", "saddle", "teapot", "compass", "telescope")
_SAID = (
    "the weather would be fine for the rest of the week", "nobody had seen such a crowd before",
    "the road to the north was closed again", "her brother had written a long letter",
    "dinner would be ready before the sun went down", "the old house needed a new roof",
    "there was no hurry at all", "the music could be heard from far away",
    "he had slept badly and wanted some tea", "the children were playing near the water",
    "the prices were higher than last year", "they should come back when it was quiet",
)


class Draft(NamedTuple):
    """A text in pieces: those at `needles` hold what the answer needs."""

    question: str
    pieces: list[str]
    needles: list[int]
    cue: str
    answer: str


@dataclass(frozen=True)
class LongText:
    """One question about a long text.

    Attributes:
        task: one of `TASKS`.
        prompt: question, text, question, and the cue that the answer follows.
        answer: what follows; begins with a space.
        needles: `(start, stop)` characters of the prompt without which there is no answer.
    """

    task: str
    prompt: str
    answer: str
    needles: tuple[tuple[int, int], ...]

    def without_needles(self) -> "LongText":
        """The same with what the answer needs taken out: what a model can guess."""
        prompt = self.prompt
        for start, stop in reversed(self.needles):
            prompt = prompt[:start] + prompt[stop:]
        return LongText(self.task, prompt, self.answer, ())

    def needle_tokens(self, tokenizer: Any) -> list[tuple[int, int]]:
        """`(start, stop)` positions of the needles' tokens in the prompt, tokenised with its special tokens.

        Args:
            tokenizer: a fast one, which knows where its tokens come from.
        """
        places = tokenizer(self.prompt, return_offsets_mapping=True)["offset_mapping"]
        spans = []
        for start, stop in self.needles:
            at = [i for i, (a, b) in enumerate(places) if a < stop and b > start]
            spans.append((at[0], at[-1] + 1))
        return spans


def _sentence(rng: random.Random) -> str:
    return f"{rng.choice(_NAMES)} said that {rng.choice(_SAID)}."


def _niah(rng: random.Random, size: int) -> Draft:
    """A number that is told once for a place, among numbers of other places and filler."""
    places = rng.sample(_PLACES, 4)
    pieces = [_sentence(rng) for _ in range(size)]
    facts = [f"The secret number of the {p} is {rng.randrange(10_000, 100_000)}." for p in places]
    spots = sorted(rng.sample(range(size + 1), len(facts)), reverse=True)
    for spot, fact in zip(spots, rng.sample(facts, len(facts)), strict=True):
        pieces.insert(spot, fact)
    asked = facts[0]
    return Draft(f"What is the secret number of the {places[0]}?", pieces, [pieces.index(asked)],
                 f"The secret number of the {places[0]} is", " " + asked.rsplit(" ", 1)[1].rstrip("."))


def _vt(rng: random.Random, size: int) -> Draft:
    """Variables that are set from each other: which have one number?"""
    names = rng.sample([a + b for a in "ABCDEFGH" for b in "KLMNPQRS"], 8)
    values = rng.sample(range(10_000, 100_000), 2)
    chains = [names[:4], names[4:]]
    lines = [(c, f"VAR {chain[i]} = " + (f"VAR {chain[i - 1]}." if i else f"{values[c]}."))
             for i in range(4) for c, chain in enumerate(chains)]
    spots = sorted(rng.choices(range(size + 1), k=len(lines)))
    pieces: list[str] = [_sentence(rng) for _ in range(size)]
    needles = []
    for added, ((chain, line), spot) in enumerate(zip(lines, spots, strict=True)):
        pieces.insert(spot + added, line)
        if chain == 0:
            needles.append(spot + added)
    return Draft(f"Which variables are {values[0]}?", pieces, needles, f"The variables that are {values[0]} are",
                 " " + ", ".join(chains[0]))


def _cwe(rng: random.Random, size: int) -> Draft:
    """The words that come most often in a list of words."""
    words = rng.sample([*_ITEMS, *_PLACES], 24)
    common, rare = words[:3], words[3:]
    pieces = [rng.choice(common) if rng.random() < 0.6 else rng.choice(rare) for _ in range(max(size, 6))]
    pieces[:3] = common
    ranked = sorted(common, key=lambda w: (-pieces.count(w), w))
    needles = [i for i, word in enumerate(pieces) if word in common]
    return Draft("Which three words come most often in the list?", pieces, needles,
                 "The three words that come most often are", " " + ", ".join(ranked))


def _story(rng: random.Random, size: int) -> tuple[list[list[str]], list[dict[str, str]]]:
    """Chapters of three sentences and what happens in each: who, where, what was bought, or nothing."""
    items = rng.sample(_ITEMS, len(_ITEMS))
    chapters, facts = [], []
    for n in range(max(size, 4)):
        fact = {"name": rng.choice(_NAMES), "place": rng.choice(_PLACES), "item": items[n] if n < len(items) else ""}
        chapters.append([f"Chapter {n + 1}.", f"{fact['name']} went to the {fact['place']}.",
                         f"{fact['name']} bought a {fact['item']}." if fact["item"] else "", _sentence(rng),
                         _sentence(rng), _sentence(rng)])
        facts.append(fact)
    return chapters, facts


def _flat(chapters: list[list[str]]) -> list[str]:
    return [s for chapter in chapters for s in chapter]


def _story_retrieval(rng: random.Random, size: int) -> Draft:
    """Where somebody went in one chapter."""
    chapters, facts = _story(rng, size)
    n = rng.randrange(len(chapters))
    return Draft(f"Where did {facts[n]['name']} go in chapter {n + 1}?", _flat(chapters), [6 * n, 6 * n + 1],
                 f"In chapter {n + 1}, {facts[n]['name']} went to the", f" {facts[n]['place']}")


def _story_filtering(rng: random.Random, size: int) -> Draft:
    """The chapters in which nothing was bought."""
    chapters, _ = _story(rng, min(size, len(_ITEMS)))
    empty = sorted(rng.sample(range(len(chapters)), 2))
    for n in empty:
        chapters[n][2] = ""
    for i in range(size - len(chapters)):  # longer by what people say, not by more chapters
        chapters[i % len(chapters)] += [_sentence(rng)]
    needles, at = [], 0
    for n, chapter in enumerate(chapters):
        needles += [at] if n in empty else [at, at + 2]
        at += len(chapter)
    return Draft("In which two chapters was nothing bought?", _flat(chapters), needles,
                 "Nothing was bought in chapters", f" {empty[0] + 1} and {empty[1] + 1}")


def _story_multihop(rng: random.Random, size: int) -> Draft:
    """What was bought just before something else."""
    chapters, facts = _story(rng, size)
    n = rng.randrange(1, min(len(chapters), len(_ITEMS)))
    return Draft(f"What was bought just before the {facts[n]['item']}?", _flat(chapters), [6 * n - 4, 6 * n + 2],
                 f"Just before the {facts[n]['item']}, somebody bought a", f" {facts[n - 1]['item']}")


class Task(NamedTuple):
    """How a task is made, and what it asks: the `scope` of the text that matters, and how hard it is to find."""

    make: Callable[[random.Random, int], Draft]
    scope: str
    dispersion: str


TASKS = {
    "niah": Task(_niah, "low", "low"),
    "vt": Task(_vt, "low", "high"),
    "cwe": Task(_cwe, "high", "low"),
    "story_retrieval": Task(_story_retrieval, "low", "low"),
    "story_filtering": Task(_story_filtering, "high", "high"),
    "story_multihop": Task(_story_multihop, "low", "high"),
}


def long_context(
    tokenizer: Any, tasks: str | Iterable[str] = tuple(TASKS), *, tokens: int = 2048, n: int = 4, seed: int = 0
) -> list[LongText]:
    """Questions about long texts, `n` of each task, with prompts as long as fits into a number of tokens.

    Args:
        tokenizer: what counts the tokens.
        tasks: one or several of `TASKS`: "niah" (a number told once), "vt" (variables set from each other), "cwe"
            (the commonest words), "story_retrieval", "story_filtering", "story_multihop".
        tokens: most tokens in a prompt.
        n: texts of each task.
        seed: of the texts.

    Raises:
        InputError: an unknown task, or no text of it fits.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    unknown = next((name for name in names if name not in TASKS), None)
    if unknown is not None or not names:
        raise InputError(f"no task {unknown!r}; there are {', '.join(TASKS)}.{closest(str(unknown), TASKS)}")
    return [_fitted(tokenizer, name, tokens, seed * 1000 + i) for name in names for i in range(n)]


def _fitted(tokenizer: Any, task: str, tokens: int, seed: int) -> LongText:
    """The longest text of a task and a seed that fits."""
    def made(size: int) -> LongText:
        return _written(task, TASKS[task].make(random.Random(f"{task} {seed}"), size))

    def length(size: int) -> int:
        return len(tokenizer(made(size).prompt)["input_ids"])

    low, high = 4, 8
    if length(low) > tokens:
        raise InputError(f"no text of {task!r} is as short as {tokens} tokens: the shortest has {length(low)}.")
    while length(high) <= tokens:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if length(middle) <= tokens else (low, middle)
    return made(low)


def _written(task: str, draft: Draft) -> LongText:
    """A draft as text, with the places of its needles."""
    text, needles, wanted = draft.question + "\n\n", [], set(draft.needles)
    for i, piece in enumerate(draft.pieces):
        if i in wanted and piece:
            needles.append((len(text), len(text) + len(piece) + 1))
        text += piece + " " if piece else ""
    return LongText(task, f"{text}\n\n{draft.question}\n{draft.cue}", draft.answer, tuple(needles))
