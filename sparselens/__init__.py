"""sparselens: see, change and measure everything that is sparse in a live neural network."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["attach", "datasets", "embeddings", "errors", "measure", "models", "sae", "views"],
    submod_attrs={
        "attach": ["ablate", "edit", "replace", "steer"],
        "embeddings": ["SAEEmbedding", "diff", "embed"],
        "measure": ["compare", "fidelity"],
        "models": ["LiveModel", "load_model", "wrap"],
        "sae": ["SAE", "Latents", "train_sae"],
        "views": ["token_view"],
    },
)
