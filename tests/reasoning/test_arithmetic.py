"""Calculator notes and final numbers."""

import random
from fractions import Fraction

import pytest

from sparselens.reasoning import check_arithmetic, final_number


@pytest.mark.parametrize(
    ("note", "right"),
    [("16-3=13", True), ("16-3=14", False), ("1/3=0.33", True), ("2/3=0.67", True), ("2/3=0.66", True),
     ("2/3=0.65", False), ("1,200*2=2,400", True), ("20%*50=10", True), ("5*.2=1", True), ("(3+4)*-2=-14", True),
     ("08+1=9", True), ("$5*3=$15", True), ("7/2=3", False), ("0.1+0.2=0.3", True), ("x+1=2", None), ("1/0=1", None),
     ("9**9**9=1", None), ("3*+6=18", None), ("=5", None), ("-" * 9000 + "1=1", None), ("True+1=2", None)],
)
def test_notes(note, right):
    assert check_arithmetic(f"so <<{note}>> it is") is right


def test_one_wrong_note_spoils_a_step():
    assert check_arithmetic("<<1+1=2>> <<2+2=5>>") is False
    assert check_arithmetic("<<1+1=2>> <<x=5>>") is True
    assert check_arithmetic("no notes 1+1=3") is None


def test_against_plain_fractions():
    draw = random.Random(0)
    for _ in range(300):
        a, b, op = draw.randint(1, 99), draw.randint(1, 99), draw.choice("+-*/")
        value = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[op]
        said = str(value) if value == int(value) else f"{float(value):.2f}"
        assert check_arithmetic(f"<<{a}{op}{b}={said}>>") is True
        assert check_arithmetic(f"<<{a}{op}{b}={int(value) + 3}>>") is False


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 1,234", "1234"), ("it is -5", "-5"), ("10-5", "5"), ("$12.50.", "12.5"), ("3.00", "3"), ("none", None),
     ("1,23", "23"), ("x = .5", ".5"), ("(3)-2", "2"), ("#### 100", "100")],
)
def test_final_numbers(text, number):
    assert final_number(text) == number
