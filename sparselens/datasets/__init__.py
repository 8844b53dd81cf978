"""Texts from files, the answers and chains that come with the project, and generated data whose truth is known."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dictionaries": ["KINDS", "Planted", "concept_tree", "planted", "sparse_mixture"],
        "families": ["instruction_families"],
        "files": ["STYLES", "load_answers", "load_chains", "read_texts"],
        "recall": ["RECALL_KEYS", "RECALL_MASK", "RECALL_VALUES", "RECALL_VOCAB", "recall_rows"],
    },
)
