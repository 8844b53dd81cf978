"""Sparse attention on a live model: which key blocks each head keeps, who chooses them, how they are computed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "baselines": ["RandomBlocks", "SinkWindow", "TopKOracle"],
        "blade": ["ASA", "attend_with_pools", "gilbert_order"],
        "block_sparse": ["BlockSparse"],
        "clusters": ["Centroids"],
        "combiner": ["Combiner", "CombinerCache", "Decomposition", "combine"],
        "executors": ["execute"],
        "frontier": ["Score", "TaskFrontier", "frontier", "score"],
        "kmeans_routing": ["KMeansRouting"],
        "look": ["Masks"],
        "method": ["Layer", "Pair", "SparseAttention"],
        "mfa": ["KVCache", "MFA", "SelfAttention"],
        "pattern": ["Allowed", "Pattern"],
        "quest": ["Quest"],
        "regions": ["Division", "divide", "partition"],
        "routing": ["RoutingAttention"],
        "snapkv": ["AdaSnapKV", "SnapKV"],
        "sparsed": ["SparseD"],
        "stability": ["EveryStep", "PatternStability", "pattern_stability"],
        "tasks": ["LongText", "TASKS", "long_context"],
        "vertical_slash": ["FlexPrefill", "VerticalSlash"],
    },
)
