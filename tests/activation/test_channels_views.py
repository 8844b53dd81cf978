"""What `channels` found, looked at: the map is what was kept, and both lines keep as many channels."""

import numpy as np
import pytest

import sparselens as sl
from tests import tiny

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def found():
    return sl.WINA(0.5, dense_prefix=2).channels(tiny.live(), [TEXT], 1, "gate")


def test_the_map_holds_what_was_kept(found):
    view = found.view()
    np.testing.assert_array_equal(view.keep, found.keep.numpy())
    np.testing.assert_allclose(view.scores, (found.x.abs() * found.norms).numpy(), rtol=1e-5)
    assert "".join(view.tokens) == TEXT
    assert found.explore().tokens == view.tokens
    assert "block 1, gate" in found._repr_html_()


def test_the_norms_are_those_of_the_weight(found):
    weight = tiny.live().native.model.layers[1].mlp.gate_proj.weight
    np.testing.assert_allclose(found.norms.numpy(), weight.detach().norm(dim=0).numpy(), rtol=1e-6)
    teal = sl.TEAL(0.5).channels(tiny.live(), [TEXT], 1, "gate")
    np.testing.assert_array_equal(teal.norms.numpy(), found.norms.numpy())
    assert (teal.scale == 1).all()


def test_both_scores_keep_as_many_channels_of_the_token(found):
    axes = found.plot(token=-1)
    counts = {c.get_label().rsplit(" ", 1)[0]: len(c.get_offsets()) for c in axes.collections}
    assert sum(counts.values()) == 32
    assert counts["kept by both"] + counts["TEAL only"] == counts["kept by both"] + counts["WINA only"] == 16
    at = {tuple(np.float32(point)) for c in axes.collections if "WINA" in c.get_label() or "both" in c.get_label()
          for point in np.asarray(c.get_offsets())}  # fmt: skip
    kept = found.keep[-1]
    truth = {tuple(p) for p in zip(found.x[-1].abs()[kept].numpy(), found.norms[kept].numpy(), strict=True)}
    assert at == truth
    assert len(found.plot(token=0).collections) == 4, "a dense token keeps all"
