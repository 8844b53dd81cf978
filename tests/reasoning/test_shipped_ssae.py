"""The step-level SAE that comes along: small, for its model only, and its codes say something of their steps."""

import json
from pathlib import Path

import numpy as np
import pytest

import sparselens as sl
from sparselens.errors import FitError
from tests import tiny

FOLDER = Path(sl.__file__).parent.parent / "data/ssaes/smollm2-135m-instruct/arithmetic-576-l1-5"


SOLVED = [
    ("A bakery sells 12 muffins an hour for 6 hours, at $2 each. How much does it earn?",
     ["It sells 12 * 6 = 72 muffins.", "The bakery earns 72 * 2 = $144.\n#### 144"]),
    ("Lena reads 15 pages a day. Her book has 240 pages, and she has read 90. How many days are left?",
     ["There are 240 - 90 = 150 pages left.", "So she needs 150 / 15 = 10 more days.\n#### 10"]),
    ("A quarter of the 28 students walk to school, the others take the bus. How many take the bus?",
     ["28 / 4 = 7 students walk.", "That leaves 28 - 7 = 21 on the bus.\n#### 21"]),
    ("A tank holds 90 litres and loses 4 litres a day. What is left after a week and two days?",
     ["A week and two days are 7 + 2 = 9 days.", "It loses 9 * 4 = 36 litres.", "It has 90 - 36 = 54 left.\n#### 54"]),
]


def test_steps_are_written_better_with_their_own_codes(smollm2):
    ssae = sl.StepSAE.load("smollm2-135m-instruct", smollm2)
    pairs = [("\n".join([question, *steps[:i], ""]), step)
             for question, steps in SOLVED for i, step in enumerate(steps)]
    codes = ssae.transform(pairs)
    assert 20 < codes.l0.float().mean() <= 120 and codes.off_share == 0
    own, other, none = (ssae.nll(pairs, z).numpy() for z in (codes.z, codes.z.roll(4, 0), "none"))
    assert np.mean(other - own) > 0.05 and np.mean(none - own) > 0


def test_it_is_small_and_its_card_says_what_was_measured():
    card = json.loads((FOLDER / "card.json").read_text())
    measured = card["gsm8k_test"]
    assert measured["gap_ci"][0] > 0 and measured["nll_own"] < measured["nll_none"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6


def test_it_belongs_to_one_model():
    with pytest.raises(FitError, match="belongs to"):
        sl.StepSAE.load(FOLDER, tiny.live())
