"""Instructions of known kinds."""

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

#: Family -> templates and the words of their two slots. The last template and the last four words of the second slot
#: are for the examples alone.
_FAMILIES: dict[str, tuple[list[str], list, list]] = {
    "arithmetic": (
        ["What is {a} plus {b}?", "Work out {a} times {b}.", "Subtract {b} from {a} and give the result.",
         "Divide {a} by {b}.", "If I have {a} coins and lose {b}, how many are left?"],
        list(range(12, 99, 3)), list(range(2, 12))),
    "translation": (
        ["Translate '{a}' into {b}.", "How do you say '{a}' in {b}?", "Give the {b} for the phrase '{a}'.",
         "I want to learn {b}. Tell me the words for '{a}'.", "Write '{a}' as a native speaker of {b} would."],
        ["good morning", "where is the station", "I am hungry", "see you soon", "thank you"],
        ["French", "German", "Spanish", "Italian", "Polish", "Dutch", "Greek", "Swedish", "Turkish", "Danish"]),
    "code": (
        ["Write a Python function that {a} a {b}.", "Show code that {a} a {b} in Java.",
         "Fix my script; it never {a} the {b}.", "Which library call {a} a {b}?",
         "Debug this loop, which {a} every {b}."],
        ["sorts", "reverses", "copies", "prints", "parses"],
        ["list", "string", "dictionary", "file", "matrix", "queue", "tuple", "array", "stack", "tree"]),
    "cooking": (
        ["How long should I {a} {b}?", "Suggest a recipe in which I {a} {b}.", "What spices go well when I {a} {b}?",
         "At what heat do I {a} {b}?", "My guests arrive at eight; must I {a} {b} before?"],
        ["roast", "boil", "fry", "bake", "steam"],
        ["potatoes", "carrots", "chicken", "salmon", "pumpkin", "rice", "beans", "lamb", "onions", "apples"]),
    "sport": (
        ["Who won the {b} in {a}?", "Explain the rules of {a} at the {b}.", "How many teams play {a} in the {b}?",
         "When does the {a} {b} begin?", "Name a famous {a} player from the {b}."],
        ["football", "tennis", "hockey", "rugby", "basketball"],
        ["world cup", "final", "olympics", "league", "championship", "open", "play-offs", "derby", "cup", "season"]),
    "poetry": (
        ["Write a {a} poem about {b}.", "Compose a haiku on {b} that feels {a}.", "Give me two {a} verses on {b}.",
         "I would like a {a} sonnet on {b}.", "Rhyme a {a} stanza with {b} in it."],
        ["sad", "joyful", "short", "tender", "dark"],
        ["the sea", "autumn", "my mother", "the moon", "a river", "silence", "a bird", "snow", "the wind", "home"]),
}


def instruction_families(seed: int = 0) -> "pandas.DataFrame":
    """Return 720 short instructions of six families: a pool to choose from, and a few examples of each to choose by.

    The examples have a template and words of their own, so that no word but those of the family's matter leads from
    them to the pool.

    Returns:
        Columns `text`, `family` and `part`: "pool" (100 a family, first) or "example" (20 a family).
    """
    import numpy as np
    import pandas as pd

    random, rows = np.random.default_rng(seed), []
    for family, (templates, a, b) in _FAMILIES.items():
        pool = [t.format(a=x, b=y) for t, x, y in itertools.product(templates[:-1], a, b[:-4])]
        examples = [templates[-1].format(a=x, b=y) for x, y in itertools.product(a, b[-4:])]
        rows += [(text, family, "pool") for text in random.permutation(pool)[:100].tolist()]
        rows += [(text, family, "example") for text in random.permutation(examples)[:20].tolist()]
    frame = pd.DataFrame(rows, columns=["text", "family", "part"])
    return frame.sort_values("part", ascending=False, kind="stable", ignore_index=True)
