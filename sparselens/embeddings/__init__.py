"""Texts as features of a dictionary: embed them, compare sets of them, describe what fires."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "accounting": ["Cost", "Usage"],
        "cards": ["feature_browser", "feature_card"],
        "chat_api": ["ChatAPI"],
        "clusters": ["Clusters", "cluster"],
        "correlations": ["Correlations", "correlate"],
        "descriptions": ["describe"],
        "differences": ["DatasetDiff", "diff"],
        "embedding": ["SAEEmbedding"],
        "estimator": ["SAEEmbedder"],
        "keyword_judge": ["KeywordJudge"],
        "labels": ["FeatureLabels", "label_features", "relabel_features"],
        "levels": ["LevelDiffs"],
        "local_chat": ["LocalJudge", "LocalLabeler"],
        "maps": ["concept_map"],
        "mona": ["DataSelection", "generalized_jaccard", "select"],
        "proposals": ["Proposals", "hypotheses"],
        "ranking": ["average_precision", "precision_at", "rank_biased_overlap"],
        "reading": ["embed"],
        "reading_cost": ["ReadingCost"],
        "retrieval": ["Retrieval", "retrieve"],
        "supervised": ["Hypotheses", "hypothesize"],
        "trends": ["Trend", "trend"],
        "verification": ["VerifiedHypotheses", "verify_hypotheses"],
    },
)
