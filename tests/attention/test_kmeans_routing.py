"""Clusters of a model's keys as a mask: what is kept is the cluster, the first and the last keys, and nothing else."""

import pytest
import torch

import sparselens as sl
from sparselens.attention.clusters import normalised
from sparselens.errors import InputError
from tests import tiny
from tests.attention.things import TEXTS


@pytest.fixture(scope="module")
def routing(plain):
    return sl.KMeansRouting(4, sink=1, local=2, steps=5).fit(plain, TEXTS)


def logits(m, thing=None, texts=TEXTS, **settings):
    with m.attach([] if thing is None else thing):
        out = m.run(texts, **settings)
    return out.logits[out.mask]


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_each_query_keeps_its_cluster_the_first_and_the_last(plain, routing):
    recorder = routing.recorded()
    with plain.attach(recorder):
        plain.run(TEXTS[:1])
    for index, layer in recorder.layers.items():
        means = routing.centroids_[index]
        assert means.shape == (layer.n_kv, 4, layer.key.shape[-1])
        keep = recorder.segments[index][0].pattern.rows(layer.allowed)[0]
        for h in range(layer.query.shape[1]):
            kv = h * layer.n_kv // layer.query.shape[1]
            query, key = (normalised(x) @ means[kv].T for x in (layer.query[0, h], layer.key[0, kv]))
            for i in range(keep.shape[1]):
                same = {j for j in range(i + 1) if query[i].argmax() == key[j].argmax()}
                assert set(keep[h, i].nonzero()[:, 0].tolist()) == same | {0, i, max(i - 1, 0)}


def test_one_cluster_is_dense_on_every_backend(m, plain):
    one = sl.KMeansRouting(1, steps=1).fit(m, TEXTS)
    close(logits(m, one), logits(m))


def test_backends_agree(m, plain, routing):
    close(logits(m, routing), logits(plain, routing))
    assert not torch.allclose(logits(plain, routing), logits(plain), atol=1e-3)


def test_padding_and_decoding_change_nothing(plain, routing):
    close(logits(plain, routing, padding_side="left"), logits(plain, routing))
    ids = plain.run(TEXTS[:1]).tokens
    whole = logits(plain, routing, ids)
    with plain.attach(routing):
        first = plain.native(ids[:, :6], use_cache=True)
        steps, cache = [first.logits[0]], first.past_key_values
        for i in range(6, ids.shape[1]):
            out = plain.native(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            steps.append(out.logits[0])
    close(torch.cat(steps), whole)


def test_clusters_are_found_where_they_are(plain):
    """Keys of three clouds: every cloud is one cluster."""
    from sparselens.attention.method import Layer
    from sparselens.attention.pattern import Allowed

    cloud = torch.arange(90) % 3
    key = (torch.eye(8)[cloud] * 4 + torch.randn(90, 8, generator=torch.Generator().manual_seed(0)) * 0.1)[None, None]
    routing = sl.KMeansRouting(3)
    means = sl.attention.Centroids(1, 3, 8, decay=0.0)
    means.start(normalised(key[0][None]))
    for _ in range(10):
        means.update(normalised(key[0][None]))
    routing.centroids_ = {0: means.means}
    mine, theirs = routing.labels(Layer(key, key, Allowed(90, 90), 0, 1.0))
    assert len({(int(a), int(b)) for a, b in zip(cloud, theirs[0, 0], strict=True)}) == 3
    assert torch.equal(mine, theirs)


def test_bad_input(plain):
    with pytest.raises(InputError, match="no clusters for layer 0"):
        logits(plain, sl.KMeansRouting(4))
    with pytest.raises(InputError, match="too few for 500"):
        sl.KMeansRouting(500).fit(plain, TEXTS)
    with pytest.raises(InputError, match="clusters=0"):
        sl.KMeansRouting(0)
    with pytest.raises(InputError, match="no clusters for layer 0"):
        routing = sl.KMeansRouting(2).fit(plain, TEXTS)
        logits(tiny.live("gpt2"), routing)
