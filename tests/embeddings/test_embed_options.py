"""Spans, chunks, several dictionaries, limits, pooling again and cost, each against a plainer way to the same."""

import numpy as np
import pandas as pd
import pytest
import torch

import sparselens as sl
from sparselens.embeddings import SAEEmbedding
from sparselens.embeddings.pool import POOLINGS
from sparselens.errors import InputError
from tests import tiny
from tests.embeddings.test_reading import SITE, TEXTS, by_hand, embed, make_sae

CHAT = [
    {"role": "system", "content": "he is kind"}, {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "a mat, he said"}, {"role": "user", "content": ""},
    {"role": "assistant", "content": "in the end"},
]
LONG = "the cat and a mat in the long garden " * 12


@pytest.fixture(scope="module")
def m():
    return tiny.live("llama")


# --- which tokens count ------------------------------------------------------------------------------------------


def inside(m, chat, contents):
    """Codes of the tokens of some messages of a chat, found by their text in the rendered template."""
    text = m.tokenizer.apply_chat_template(chat, tokenize=False)
    encoded = m.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans, at = [], 0
    for content in contents:
        at = text.index(content, at)
        spans.append((at, at + len(content)))
        at += len(content)
    rows = [i for i, (s, e) in enumerate(encoded["offset_mapping"]) if any(a <= s and e <= b for a, b in spans)]
    x = m.capture(torch.tensor([encoded["input_ids"]]), SITE)[SITE][0, rows]
    return make_sae().encode(x).dense().detach().numpy()


@pytest.mark.parametrize(
    ("span", "contents"),
    [("all", [c["content"] for c in CHAT if c["content"]]), ("prompt", ["he is kind", "the cat?"]),
     ("answer", ["a mat, he said", "in the end"])],
)
def test_a_span_pools_its_messages_and_reads_the_whole_chat(m, span, contents):
    emb = embed([CHAT], m, make_sae(), span=span)
    codes = inside(m, CHAT, contents)
    np.testing.assert_allclose(emb.matrix.toarray()[0], codes.max(0), atol=1e-4)
    assert emb.documents.n_tokens[0] == len(codes) == len(emb.tokens(0))
    assert "".join(emb.tokens(0)) == "\n\n".join(contents)
    assert [t for t in emb.documents.text[0].split("\n\n") if t] == contents
    assert emb.cost().reader_tokens == embed([CHAT], m, make_sae()).cost().reader_tokens


def test_a_span_of_a_wrapped_text_is_its_role(m):
    spans = ("all", "prompt", "answer")
    wrapped = {span: embed(TEXTS[:3], m, make_sae(), role="assistant", span=span) for span in spans}
    assert (wrapped["all"].matrix != wrapped["answer"].matrix).nnz == 0
    assert wrapped["prompt"].matrix.nnz == 0
    with pytest.raises(InputError, match="text 0 is a plain text, so it has no answer"):
        embed(TEXTS, m, make_sae(), span="answer")
    with pytest.raises(InputError, match="Closest: answer"):
        embed([CHAT], m, make_sae(), span="answers")


def test_special_tokens_are_pooled_on_request(m):
    sae = make_sae()
    emb = embed([CHAT], m, sae, special=True, skip_first=False)
    text = m.tokenizer.apply_chat_template(CHAT, tokenize=False)
    ids = m.tokenizer(text, add_special_tokens=False)["input_ids"]
    codes = sae.encode(m.capture(torch.tensor([ids]), SITE)[SITE][0]).dense().detach().numpy()
    np.testing.assert_allclose(emb.matrix.toarray()[0], codes.max(0), atol=1e-4)
    assert "".join(emb.tokens(0)) == text
    special = embed(["<|im_end|>", "<|im_start|><|im_end|>"], m, sae)
    assert (special.matrix.nnz, special.documents.n_tokens.tolist()) == (0, [0, 0])
    assert embed(["<|im_start|><|im_end|>"], m, sae, special=True).documents.n_tokens.tolist() == [1]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_limits_against_the_codes_of_the_tokens(m, pooling):
    sae = make_sae()
    plain = embed(TEXTS, m, sae)
    values = np.concatenate([plain.activations(i, range(64)).ravel() for i in range(len(TEXTS))])
    threshold = float(np.median(values[values > 0]))
    emb = embed(TEXTS, m, sae, pooling=pooling, threshold=threshold, min_tokens=2)
    for i in range(len(TEXTS)):
        codes = plain.activations(i, range(64))
        codes = np.where(codes > threshold, codes, 0)
        codes[:, (codes > 0).sum(0) < 2] = 0
        n = max(1, plain.documents.n_tokens[i])
        expected = {"max": codes.max(0, initial=0), "mean": codes.sum(0) / n, "sum": codes.sum(0),
                    "binarize": (codes > 0).any(0), "count": (codes > 0).sum(0)}[pooling]
        np.testing.assert_allclose(emb.matrix[i].toarray()[0], expected, rtol=2e-3)
    assert 0 < emb.matrix.nnz < plain.matrix.nnz
    assert (emb.fires() != plain.fires()).nnz == 0  # every token is stored, whatever the limits
    assert (emb.fires(threshold, 2) != plain.fires(threshold, 2)).nnz == 0


# --- long texts --------------------------------------------------------------------------------------------------


def test_split_gives_a_document_for_each_chunk(m):
    sae = make_sae()
    frame = pd.DataFrame({"text": [TEXTS[0], "", LONG, "a mat"], "n": [1, 2, 3, 4]})
    emb = embed(frame, m, sae, long="split", max_length=50, batch_tokens=60)
    ids = m.tokenizer(LONG)["input_ids"]
    chunks = [m.tokenizer.decode(ids[at : at + 50]) for at in range(0, len(ids), 50)]
    assert emb.documents.source.tolist() == [0, 1, *[2] * len(chunks), 3]
    assert emb.documents.chunk.tolist() == [0, 0, *range(len(chunks)), 0]
    assert emb.documents.n.tolist() == [1, 2, *[3] * len(chunks), 4]
    for i in range(len(emb)):
        assert "".join(emb.tokens(i)) == emb.documents.text[i]
    assert "".join(emb.documents.text[2:-1]) == LONG
    for i, chunk in enumerate(chunks[:-1]):  # a chunk is read as a text of its own
        x = m.capture(torch.tensor([ids[50 * i : 50 * i + 50]]), SITE)[SITE][0, 1:]
        expected = sae.encode(x).dense().detach().numpy().max(0)
        np.testing.assert_allclose(emb.matrix[2 + i].toarray()[0], expected, atol=1e-4, err_msg=chunk)
    assert emb.cost().reader_tokens == embed(frame, m, sae, long="chunk", max_length=50).cost().reader_tokens
    assert (emb.documents.n_tokens <= 49).all()
    assert emb.top_documents(int(emb.matrix[2].indices[0])).columns[0] == "document"


def test_chunks_pooled_together_are_the_largest_of_the_chunks(m):
    sae = make_sae()
    together = embed([LONG], m, sae, long="chunk", max_length=50)
    apart = embed([LONG], m, sae, long="split", max_length=50)
    np.testing.assert_array_equal(together.matrix.toarray()[0], apart.matrix.toarray().max(0))
    assert "".join(together.tokens(0)) == LONG
    assert together.tokens(0) == [t for i in range(len(apart)) for t in apart.tokens(i)]


# --- several dictionaries ----------------------------------------------------------------------------------------


def dictionaries():
    early = sl.SAE("topk", d_in=32, d_sae=48, k=3, site="blocks.0.hook_resid_post")
    return {"early": early, "late": make_sae(), "wide": make_sae("relu", seed=1)}


def test_several_dictionaries_share_one_pass(m, tmp_path, monkeypatch):
    passes = []
    forward = type(m).forward

    def counted(self, batch):
        if batch.ids.numel() > 1:  # one token tells the width of a site
            passes.append(batch)
        return forward(self, batch)

    monkeypatch.setattr(type(m), "forward", counted)
    together = embed(TEXTS, m, dictionaries(), tmp_path / "out")
    n = len(passes)
    inside = embed(TEXTS, m, dictionaries())
    alone = {name: embed(TEXTS, m, sae) for name, sae in dictionaries().items()}
    assert len(passes) == n + n + 3 * n
    assert list(together) == ["early", "late", "wide"]
    for name, emb in alone.items():
        for other in (together[name], inside[name], SAEEmbedding.load(tmp_path / "out" / name)):
            np.testing.assert_array_equal(other.matrix.toarray(), emb.matrix.toarray())
            pd.testing.assert_frame_equal(other.documents, emb.documents)
            assert other.info == emb.info
    embed(TEXTS, m, dictionaries(), tmp_path / "out")
    embed(TEXTS, m, dictionaries()["late"], tmp_path / "out" / "late")  # each folder is an embedding like any other
    assert len(passes) == 5 * n


def test_a_missing_block_of_one_dictionary_is_made_again(m, tmp_path):
    embed(TEXTS, m, dictionaries(), tmp_path)
    block = tmp_path / "late" / "block-00000.arrow"
    before, kept = block.read_bytes(), (tmp_path / "early" / "block-00000.arrow").stat().st_mtime_ns
    block.unlink()
    embed(TEXTS, m, dictionaries(), tmp_path)
    assert block.read_bytes() == before
    assert (tmp_path / "early" / "block-00000.arrow").stat().st_mtime_ns == kept


@pytest.mark.parametrize("names", [{}, {"a/b": 1}, {"..": 1}, {3: 1}, {"": 1}])
def test_names_that_make_no_folder(m, names, tmp_path):
    with pytest.raises(InputError, match="by name|without any"):
        embed(TEXTS, m, {name: make_sae() for name in names}, tmp_path)


# --- afterwards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooled_again_is_what_embed_gives(m, pooling, tmp_path):
    sae = make_sae()
    stored = embed(TEXTS, m, sae, tmp_path / "out")
    again, fresh = stored.pooled(pooling), embed(TEXTS, m, sae, pooling=pooling)
    np.testing.assert_allclose(again.matrix.toarray(), fresh.matrix.toarray(), rtol=1e-3)
    assert (again.matrix.indices == fresh.matrix.indices).all()
    assert again.info["pooling"] == pooling
    assert (again.tokens(0), len(again)) == (fresh.tokens(0), len(fresh))
    part = stored.subset([8, 0, 4]).pooled(pooling)
    np.testing.assert_array_equal(part.matrix.toarray(), again.matrix[[8, 0, 4]].toarray())
    strict = stored.pooled(pooling, min_tokens=2)
    expected = embed(TEXTS, m, sae, pooling=pooling, min_tokens=2)
    np.testing.assert_allclose(strict.matrix.toarray(), expected.matrix.toarray(), rtol=1e-3)
    assert (strict.fires() != stored.fires()).nnz == 0


def test_frames_join_to_the_one_the_texts_came_in(m):
    frame = pd.DataFrame({"text": TEXTS, "n": range(len(TEXTS))})
    emb = embed(frame, m, make_sae())
    features = emb.features.feature.tolist()[:2]
    joined = frame.join(emb.to_frame(features))
    np.testing.assert_array_equal(joined[features].to_numpy(), emb.matrix[:, features].toarray())
    both = emb.to_frame(features, documents=True)
    assert both.columns.tolist() == ["text", "n_tokens", "n", *features]
    assert emb.to_frame(features[1]).columns.tolist() == features[1:]
    with pytest.raises(InputError, match="no feature 64"):
        emb.to_frame([64])


def test_cost_counts_every_token_read(m, tmp_path):
    emb = embed(TEXTS, m, make_sae(), tmp_path / "out", role="user", batch_tokens=300)
    rendered = [m.tokenizer.apply_chat_template([{"role": "user", "content": t}], tokenize=False) for t in TEXTS]
    lengths = [len(ids) for ids in m.tokenizer(rendered, add_special_tokens=False)["input_ids"]]
    cost = emb.cost()
    assert (cost.documents, cost.reader_tokens) == (len(TEXTS), sum(lengths))
    assert cost.seconds > 0
    assert cost.to_frame().reader_tokens[0] == sum(lengths)
    assert f"{sum(lengths):,}" in cost._repr_html_()
    assert SAEEmbedding.load(tmp_path / "out").cost() == cost
    again = embed(TEXTS, m, make_sae(), tmp_path / "out", role="user")
    assert again.cost() == cost  # nothing was read
    part = emb.subset([0, 3])
    assert part.cost().reader_tokens == lengths[0] + lengths[3]
    assert part.cost().seconds == pytest.approx(cost.seconds * (lengths[0] + lengths[3]) / sum(lengths))


# --- hostile texts -----------------------------------------------------------------------------------------------


HOSTILE = {
    "half a surrogate pair": "a\ud83d cat",
    "both halves apart": "a\ud83d\ude00 cat",
    "terminal codes": "\x1b[31mred\x1b[0m\x07\x00",
    "right to left": "שלום \u202eevil\u202c مرحبا",
    "markup": "</script><script>alert(1)</script><img src=x onerror=alert(2)> &amp;",
    "combining": "Z\u0351\u036b\u0343a\u0328\u0321" * 5,
    "blanks": " \t\r\n\u2028\u00a0\ufeff",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts(m, text, tmp_path):
    sae = make_sae()
    readable = text.encode("utf-8", "replace").decode()
    for given in (text, [{"role": "user", "content": text}]):
        emb = embed([given, "the cat"], m, sae, tmp_path / str(isinstance(given, str)))
        expected, n = by_hand(m, sae, readable, "max", role=None if isinstance(given, str) else "user")
        np.testing.assert_allclose(emb.matrix[0].toarray()[0], expected, atol=1e-4)
        assert emb.documents.n_tokens[0] == n
        shown = readable if isinstance(given, str) else readable.strip()
        assert "".join(emb.tokens(0)).strip() == shown.strip()
        html = emb.highlight(1, 0)._repr_html_() + (emb.highlight(0, 0)._repr_html_() if emb.tokens(0) else "")
        assert "<script>" not in html
        assert "<img" not in html


def test_a_very_long_text(m):
    text = ("the cat and a mat. " * 5300)[:100_000]
    emb = embed([text, "a mat"], m, make_sae(), long="chunk", batch_tokens=4000)
    assert len("".join(emb.tokens(0))) == 100_000
    assert emb.documents.n_tokens[0] == len(emb.tokens(0)) - -(-len(emb.tokens(0)) // 256)
    with pytest.raises(InputError, match='long="cut".*long="chunk"'):
        embed([text], m, make_sae())


def test_duplicates_are_documents_of_their_own(m):
    emb = embed(["the cat", "a mat", "the cat"], m, make_sae())
    assert len(emb) == 3
    assert (emb.matrix[0] != emb.matrix[2]).nnz == 0


@pytest.mark.parametrize("bad", [None, b"bytes", 3, float("nan"), ["a"], {"text": "a"}])
def test_what_is_no_text_is_named(m, bad):
    with pytest.raises(InputError, match="row 1"):
        embed(["a mat", bad], m, make_sae())
