"""A judge that needs no model: regular expressions."""

import ast
import re
from collections.abc import Mapping, Sequence

from sparselens.embeddings.accounting import Usage
from sparselens.embeddings.prompts import Question
from sparselens.errors import InputError, closest

_QUOTED = re.compile(r"(?<!\w)('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")(?!\w)")
_MARKS = re.compile(r"<<(.*?)>>", re.DOTALL)


class KeywordJudge:
    """Says yes where a pattern occurs in the text; where a text has marks << so >>, only inside of them.

    Without a pattern for a statement, the quoted words in it are looked for, case ignored: "fires on: ' sir', ' ma'",
    as descriptions without labels are, holds for a text with either word.

    Args:
        patterns: statement -> regular expression, case ignored.

    Raises:
        InputError: a pattern that is no regular expression.
    """

    name = "keywords"

    def __init__(self, patterns: Mapping[str, str] | None = None):
        self.usage = Usage()
        self._patterns = {statement: _compiled(pattern) for statement, pattern in (patterns or {}).items()}

    def __call__(self, prompts: Sequence[str]) -> list[int]:
        """1 or 0 for each question.

        Raises:
            InputError: a plain string instead of a `Question`, or a statement without a pattern or quoted words.
        """
        self.usage.calls += len(prompts)
        return [int(self._holds(prompt)) for prompt in prompts]

    def _holds(self, prompt: str) -> bool:
        if not isinstance(prompt, Question):
            raise InputError("a KeywordJudge answers questions made by sparselens, whose parts it knows; this is a "
                             f"plain string: {prompt!r:.60}.")
        if prompt.statement not in self._patterns:
            self._patterns[prompt.statement] = self._from_quotes(prompt.statement)
        spans = _MARKS.findall(prompt.text)
        pattern = self._patterns[prompt.statement]
        return any(pattern.search(span) for span in spans) if spans else bool(pattern.search(prompt.text))

    def _from_quotes(self, statement: str) -> re.Pattern[str]:
        words = [ast.literal_eval(quoted).rstrip("…") for quoted in _QUOTED.findall(statement)]
        words = [word.strip() or word for word in words if word]
        if not words:
            raise InputError(f"no pattern is known for the statement {statement!r:.100}, and it quotes no words. Give "
                             f"KeywordJudge({{statement: pattern}}).{closest(statement, self._patterns)}")
        return re.compile("|".join(_whole_word(word) for word in words), re.IGNORECASE)


def _whole_word(word: str) -> str:
    before, after = (r"(?<!\w)" if word[0].isalnum() else ""), (r"(?!\w)" if word[-1].isalnum() else "")
    return f"{before}{re.escape(word)}{after}"


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression: {error}.") from error
