"""sparselens: see, change and measure everything that is sparse in a live neural network."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["activation", "attach", "datasets", "embeddings", "errors", "measure", "models", "sae", "views"],
    submod_attrs={
        "activation": ["CATS", "RSparse", "RandomChannels", "TEAL", "WINA", "calibrate"],
        "attach": ["ablate", "edit", "replace", "steer"],
        "embeddings": [
            "ChatAPI", "KeywordJudge", "LocalJudge", "LocalLabeler", "SAEEmbedder", "SAEEmbedding", "cluster",
            "concept_map", "correlate", "diff", "embed", "feature_card", "hypothesize", "label_features", "relabel_features",
            "retrieve", "select", "trend", "verify_hypotheses",
        ],
        "measure": ["compare", "fidelity", "sweep"],
        "models": ["LiveModel", "load_model", "wrap"],
        "sae": ["SAE", "Latents", "load_transcoders", "save_transcoders", "train_sae"],
        "views": ["token_view"],
    },
)
