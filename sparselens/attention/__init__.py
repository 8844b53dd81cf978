"""Sparse attention on a live model: which key blocks each head keeps, who chooses them, how they are computed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "clusters": ["Centroids"],
        "combiner": ["Combiner", "Decomposition", "combine"],
        "mfa": ["KVCache", "MFA", "SelfAttention"],
        "regions": ["Division", "divide"],
        "routing": ["RoutingAttention"],
    },
)
