"""Fixtures of the attention tests."""

import pytest

from tests import tiny
from tests.attention.things import BACKENDS


@pytest.fixture(scope="module", params=BACKENDS)
def m(request):
    return tiny.live("llama", request.param)


@pytest.fixture(scope="module")
def plain():
    return tiny.live("llama")
