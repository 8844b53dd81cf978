"""Is the arithmetic right? Calculator notes as GSM8K has them, and the last number of a text."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

_NOTE = re.compile(r"<<([^<>=]+)=([^<>=]*)>>")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")
_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}
_LONGEST = 300  # characters of an expression: real ones have a dozen


def check_arithmetic(step: str) -> bool | None:
    """Whether every calculator note `<<16-3=13>>` of a step is right; None if there is none that can be read.

    The sum is done in exact fractions, and a result may be rounded to the digits it is given with. "20%" is 20/100.
    """
    checked = [_right(left, right) for left, right in _NOTE.findall(step)]
    known = [right for right in checked if right is not None]
    return all(known) if known else None


def final_number(text: str) -> str | None:
    """The last number of a text, thousands commas and trailing zeros taken out ("1,234.50" -> "1234.5").

    None if there is none. A minus counts as a sign unless it follows a digit or a letter.
    """
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    said, at = found[-1].group().replace(",", ""), found[-1].start()
    if said.startswith("-") and at and (text[at - 1].isalnum() or text[at - 1] in ")."):
        said = said[1:]
    return said.rstrip("0").rstrip(".") if "." in said else said


def _right(expression: str, result: str) -> bool | None:
    value, said = _value(expression), _value(result)
    if value is None or said is None:
        return None
    digits = len(result.strip().rstrip("%").partition(".")[2])
    unit = Fraction(1, 10**digits) / (100 if "%" in result else 1)
    # a whole number is exact; with decimals the last one may be rounded or cut off
    return value == said if not digits else abs(value - said) < unit


def _value(expression: str) -> Fraction | None:
    cleaned = re.sub(r"(?<=\d),(?=\d{3})|\$", "", expression.strip().lstrip("+"))
    cleaned = re.sub(r"(?<![\d.])0+(?=\d)", "", cleaned)
    cleaned = re.sub(r"(\d+(?:\.\d*)?|\.\d+)\s*%(?!\s*[\d(])", r"(\1/100)", cleaned)
    if len(cleaned) > _LONGEST:
        return None
    try:
        return _evaluate(ast.parse(cleaned, mode="eval").body, cleaned)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.AST, source: str) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left, source), _evaluate(node.right, source))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, source)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return Fraction(ast.get_source_segment(source, node) or "")
    raise ValueError("no plain arithmetic")
