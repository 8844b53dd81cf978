"""Texts as features of a dictionary: embed them, compare sets of them, describe what fires."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "descriptions": ["describe"],
        "differences": ["DatasetDiff", "diff"],
        "embedding": ["SAEEmbedding"],
        "reading": ["embed"],
    },
)
