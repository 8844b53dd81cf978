"""All that is known of one feature, from embedded texts, the dictionary and the model."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparselens.embeddings.codes import made_by, named
from sparselens.embeddings.descriptions import promotes
from sparselens.embeddings.duplicates import decoder_rows
from sparselens.embeddings.store import flat_numbers
from sparselens.errors import InputError

if TYPE_CHECKING:
    from sparselens.embeddings.embedding import SAEEmbedding
    from sparselens.models.live import LiveModel
    from sparselens.sae.sae import SAE
    from sparselens.views.browser import FeatureBrowser
    from sparselens.views.cards import FeatureCard

_NEAR, _WORDS = 8, 8
_SILENT = "fires nowhere in these texts"


def feature_card(
    emb: "SAEEmbedding",
    feature: int,
    sae: "SAE | None" = None,
    m: "LiveModel | None" = None,
    *,
    k: int = 10,
    labels: Mapping[int, str] | None = None,
) -> "FeatureCard":
    """Show one feature: what it is about, its strongest texts, how often and how strongly it fires, what is near it.

    Args:
        emb: the texts.
        feature: its number.
        sae: the dictionary, to find the features with the nearest decoder rows.
        m: the model, to name the words whose logits the feature raises and lowers most (the logit lens). Needs `sae`;
            left out for a dictionary that is not of the residual stream, where it says nothing. The live card then
            also has a box in which the model reads a sentence of your own.
        k: texts to show.
        labels: descriptions of features, by number; others are described by the tokens they fire on.

    Returns:
        A card to look at; `.explore()` goes on to other features.

    Raises:
        InputError: no such feature, or m without sae.
        FitError: the dictionary is not the one the texts were embedded with.
    """
    from sparselens.views import card_view

    feature = emb._feature(feature)
    if m is not None and sae is None:
        raise InputError("the logit lens needs the dictionary too: give sae.")
    top = emb.top_documents(feature, k)
    rows = [{"tokens": emb.tokens(d), "values": emb.activations(d, feature), "document": d,
             "title": f"text {d}, {emb.info['pooling']} {v:.3g}"}
            for d, v in zip(top["document"].tolist(), top["value"].tolist(), strict=True)]
    near = [] if sae is None else _nearest(emb, sae, feature)
    known = [feature, *(other for other, _ in near)]
    texts, by = named(emb, known, labels)
    words: Sequence[str] = ()
    if m is not None and sae is not None and sae.d_in == m.d_model:
        words = promotes([feature], m, sae, _WORDS)[0]
    return card_view(
        feature, rows, token_values(emb, feature), n_documents=len(emb), n_firing=int(emb.fires()[:, [feature]].nnz),
        description=texts[0] or _SILENT, method=by[0],
        neighbours=[(other, text or _SILENT, cosine) for (other, cosine), text in zip(near, texts[1:], strict=True)],
        promotes=words,
        load=lambda other: feature_card(emb, other, sae, m, k=k, labels=labels),
        read=None if m is None or sae is None else lambda text: _read(text, emb, feature, sae, m),
    )


def _read(text: str, emb: "SAEEmbedding", feature: int, sae: "SAE", m: "LiveModel") -> tuple[list[str], np.ndarray]:
    """The tokens of a new text, read as those of the embedding were, and the feature's value on each."""
    from sparselens.embeddings.reading import embed

    one = embed([text], m, sae, role=emb.info["role"], skip_first=emb.info["skip_first"], progress=False)
    return one.tokens(0), one.activations(0, feature)


def feature_browser(
    emb: "SAEEmbedding",
    sae: "SAE | None" = None,
    m: "LiveModel | None" = None,
    *,
    k: int = 6,
    labels: Mapping[int, str] | None = None,
) -> "FeatureBrowser":
    """Look through all features that fire: search by number or word, open cards, keep them beside each other.

    Args:
        emb: the texts.
        sae, m, k, labels: as for `feature_card`. With both dictionary and model a sentence of your own can be tested.

    Returns:
        A view; the most frequent features come first.

    Raises:
        InputError: m without sae.
    """
    from sparselens.views import browser_view

    if m is not None and sae is None:
        raise InputError("the logit lens needs the dictionary too: give sae.")
    frame = emb.features.sort_values("density", ascending=False, kind="stable")
    texts, by = named(emb, frame["feature"].tolist(), labels)
    rows = frame[["feature", "density"]].assign(description=texts, peak=frame["max_value"])
    notes = [f"{len(rows):,} of {emb.d_sae:,} features fire in {len(emb):,} texts. Descriptions: {made_by(by)}."]
    return browser_view(rows, lambda f: feature_card(emb, f, sae, m, k=k, labels=labels), title="Features", notes=notes)


def token_values(emb: "SAEEmbedding", feature: int) -> np.ndarray:
    """The values of a feature on all tokens on which it fires, float32, in reading order."""
    found = [np.zeros(0, dtype=np.float32)]
    for _, table in emb._tables():
        here = flat_numbers(table, "token_feature")[0] == feature
        found.append(flat_numbers(table, "token_value")[0][here].astype(np.float32))
    return np.concatenate(found)


def _nearest(emb: "SAEEmbedding", sae: "SAE", feature: int) -> list[tuple[int, float]]:
    """The other features with the largest cosine of decoder rows."""
    row = decoder_rows(emb, sae, np.array([feature]))[0]
    weights = sae.W_dec.detach().float().cpu()
    norm = weights.norm(dim=1).clamp_min(1e-12).numpy()
    cosine = weights.numpy() @ row / norm
    cosine[feature] = -np.inf
    best = np.argsort(-cosine, kind="stable")[:_NEAR]
    return [(int(other), float(cosine[other])) for other in best]
