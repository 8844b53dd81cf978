import errno
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparselens.errors import FileFormatError, InputError, NotFiniteError, SiteError, StorageError
from sparselens.sae import ActivationStore, harvest
from sparselens.sae import store as store_module
from sparselens.sae.store import TensorActivations
from tests import tiny

SITES = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


class Flat(SimpleNamespace):
    def __getitem__(self, site):
        return self.sites[site]


class FakeModel:
    """Four tokens a text: the first a sink, the last a special one. Rows of text t are filled with t + site."""

    name = "fake"

    def __init__(self, spoil=None):
        self.spoil, self.streamed = spoil, []

    def resolve(self, site):
        return site

    def width(self, site):
        return 3

    def stream(self, texts, sites, **_settings):
        self.streamed.append(list(texts))
        for doc, text in enumerate(texts):
            number = float(text)
            values = {site: torch.full((4, 3), number + offset) for offset, site in enumerate(sites)}
            for rows in values.values():
                rows[0] = 1e4
                if self.spoil is not None:
                    self.spoil(number, rows)
            content = torch.tensor([True, True, True, False])
            first = torch.tensor([True, False, False, False])
            yield Flat(sites=values, content=content, first=first, doc=torch.full((4,), doc))


TEXTS = [str(n + 1) for n in range(10)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(store_module, "DOCUMENTS", 3)


def test_the_layout(tmp_path):
    store = harvest(FakeModel(), TEXTS, SITES, tmp_path, 14, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000", "00001", "00002", "median.json", "meta.json"]
    done = json.loads((tmp_path / "00001" / "done.json").read_text())
    assert done == {"rows": 6, "docs": [3, 6], "dropped_norm": 0}
    rows = np.load(tmp_path / "00001" / f"{SITES[1]}.npy")
    assert rows.dtype == np.float16 and rows.shape == (6, 3) and rows[:, 0].tolist() == [5, 5, 6, 6, 7, 7]
    assert json.loads((tmp_path / "median.json").read_text())[SITES[0]] == pytest.approx(2 * 3**0.5)
    assert (store.n_tokens, store.sites, store.d(SITES[0])) == (18, SITES, 3)
    assert store.max_norm(SITES[0]) == pytest.approx(20 * 3**0.5)


def test_first_tokens_stay_when_asked_for(tmp_path):
    settings = {"drop_first": False, "max_norm_ratio": 1e6}
    store = harvest(FakeModel(), TEXTS, SITES[0], tmp_path, 1000, progress=False, **settings)
    assert store.n_tokens == 30


def test_rows_far_beyond_the_median_are_dropped_at_every_site(tmp_path):
    def spoil(number, rows):
        if number == 2:
            rows[1] *= 1000

    harvest(FakeModel(spoil), TEXTS, SITES, tmp_path, 1, progress=False)
    assert json.loads((tmp_path / "00000" / "done.json").read_text())["dropped_norm"] == 1
    assert all(len(np.load(tmp_path / "00000" / f"{site}.npy")) == 5 for site in SITES)


def test_an_interrupted_harvest_goes_on_where_it_stopped(tmp_path):
    def stop(number, _rows):
        if number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(FakeModel(stop), TEXTS, SITES, tmp_path / "a", 1000, progress=False)
    assert not (tmp_path / "a" / "00001").exists()
    (tmp_path / "a" / ".00001.leftover.tmp").mkdir()
    model = FakeModel()
    store = harvest(model, TEXTS, SITES, tmp_path / "a", 1000, progress=False)
    assert model.streamed[0] == TEXTS[3:6] and len(model.streamed) == 3
    assert not list((tmp_path / "a").glob(".*"))
    whole = harvest(FakeModel(), TEXTS, SITES, tmp_path / "b", 1000, progress=False)
    index = np.arange(store.n_tokens)
    assert store.n_tokens == whole.n_tokens == 20
    assert torch.equal(store.rows(SITES[1], index), whole.rows(SITES[1], index))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"texts": ["7", *TEXTS[1:]]}, "texts"),
        ({"texts": TEXTS[:-1]}, "texts"),
        ({"sites": SITES[:1]}, "sites"),
        ({"context": 64}, "context"),
    ],
)
def test_another_harvest_in_the_same_folder_is_refused(tmp_path, change, says):
    arguments = {"texts": TEXTS, "sites": SITES, "out": tmp_path, "n_tokens": 5, "progress": False}
    harvest(FakeModel(), **arguments)
    with pytest.raises(InputError, match=f"another harvest.*{says}"):
        harvest(FakeModel(), **arguments | change)
    other = FakeModel()
    other.name = "fake-2"
    with pytest.raises(InputError, match="'fake', now 'fake-2'"):
        harvest(other, **arguments)


def test_nan_activations_name_site_and_document(tmp_path):
    def spoil(number, rows):
        if number == 5:
            rows[2, 1] = torch.nan

    with pytest.raises(NotFiniteError, match=f"{SITES[0]}.*document 4"):
        harvest(FakeModel(spoil), TEXTS, SITES, tmp_path, 1000, progress=False)
    assert not (tmp_path / "00001").exists()


def test_float16_overflow_names_the_way_out(tmp_path):
    def grow(_number, rows):
        rows *= 1e5

    with pytest.raises(InputError, match='dtype="float32"'):
        harvest(FakeModel(grow), TEXTS, SITES, tmp_path / "half", 5, progress=False)
    store = harvest(FakeModel(grow), TEXTS, SITES, tmp_path / "full", 5, dtype="float32", progress=False)
    assert float(store.rows(SITES[0], np.array([0])).max()) == 1e5


def test_a_full_disk_is_a_storage_error_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    calls = itertools.count()
    write = store_module._write_array

    def full(path, values):
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, values)

    monkeypatch.setattr(store_module, "_write_array", full)
    with pytest.raises(StorageError, match="No space left"):
        harvest(FakeModel(), TEXTS, SITES, tmp_path, 1000, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000", "median.json", "meta.json"]
    monkeypatch.undo()


def test_shards_without_rows_are_passed_over(tmp_path):
    class Silent(FakeModel):
        def stream(self, texts, sites, **settings):
            for batch in super().stream(texts, sites, **settings):
                if float(texts[0]) < 4:
                    batch.content[:] = False
                yield batch

    assert harvest(Silent(), TEXTS, SITES, tmp_path, 10, progress=False).n_tokens == 12


def test_batches_are_a_permutation_of_the_rows_each_epoch(tmp_path):
    store = harvest(FakeModel(), TEXTS, SITES, tmp_path, 1000, progress=False)
    source = store.rows(SITES[0], np.arange(20))[:, 0]
    batches = list(itertools.islice(store.batches(SITES, 5, seed=1), 8))
    epochs = [torch.cat([batch[SITES[0]][:, 0] for batch in part]) for part in (batches[:4], batches[4:])]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, source.sort().values)
    assert not torch.equal(*epochs)
    for batch in batches:
        assert torch.equal(batch[SITES[1]], batch[SITES[0]] + 1)


@pytest.mark.parametrize("start", [1, 4, 9])
def test_batches_restart_anywhere_with_the_same_order(tmp_path, start):
    store = harvest(FakeModel(), TEXTS, SITES, tmp_path, 1000, progress=False)
    whole = list(itertools.islice(store.batches(SITES[0], 6, seed=2), 12))
    again = list(itertools.islice(store.batches(SITES[0], 6, seed=2, start_step=start), 12 - start))
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], again, strict=True))
    other = next(store.batches(SITES[0], 6, seed=3))
    assert not torch.equal(other, whole[0])


def test_a_tensor_serves_the_same_batches_as_a_store(tmp_path):
    store = harvest(FakeModel(), TEXTS, SITES, tmp_path, 1000, progress=False)
    memory = TensorActivations({site: store.rows(site, np.arange(20)) for site in SITES})
    for a, b in itertools.islice(zip(store.batches(SITES, 6), memory.batches(SITES, 6), strict=False), 7):
        assert all(torch.equal(a[site], b[site]) for site in SITES)
    assert (memory.n_tokens, memory.d(SITES[0]), memory.max_norm(SITES[0])) == (20, 3, None)


def test_mistakes_in_reading(tmp_path):
    store = harvest(FakeModel(), TEXTS, SITES, tmp_path, 1000, progress=False)
    with pytest.raises(SiteError, match="Closest: blocks.0.hook_resid_post"):
        store.batches("blocks.0.hook_resid_pst", 4)
    with pytest.raises(InputError, match="20 rows do not fill"):
        store.batches(SITES[0], 21)
    with pytest.raises(FileFormatError, match="no activation store"):
        ActivationStore(tmp_path / "nowhere")
    with pytest.raises(InputError, match="same rows"):
        TensorActivations({"a": torch.ones(3, 2), "b": torch.ones(4, 2)})
    file = tmp_path / "00000" / f"{SITES[0]}.npy"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FileFormatError, match="damaged"):
        ActivationStore(tmp_path).rows(SITES[0], np.array([0]))


def test_held_out_rows_are_whole_shards_where_there_are_several(tmp_path):
    store = harvest(FakeModel(), [str(n + 1) for n in range(15)], SITES, tmp_path, 1000, progress=False)
    assert store.held_out(1000) == 6
    assert TensorActivations(torch.ones(1000, 2)).held_out(10_000) == 50


def test_a_real_model_is_harvested_as_it_streams(tmp_path):
    m = tiny.live("llama")
    texts = ["the cat sat on the mat and ate a hat", "in the inn", "a " * 40] * 2
    store = harvest(m, texts, SITES, tmp_path, 10_000, context=16, progress=False, max_norm_ratio=1e9)
    kept = {site: [] for site in SITES}
    for low in range(0, 6, 3):
        for batch in m.stream(texts[low : low + 3], SITES, max_length=16, long="chunk"):
            for site in SITES:
                kept[site].append(batch[site][batch.content & ~batch.first])
    for site in SITES:
        truth = torch.cat(kept[site])
        mine = store.rows(site, np.arange(store.n_tokens))
        torch.testing.assert_close(mine, truth, rtol=1e-3, atol=1e-3)
    assert store.meta["model"] == m.name and store.meta["d"] == {site: 32 for site in SITES}
