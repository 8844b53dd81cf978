"""Sparse dictionaries: one SAE class, its activations and decoders, training, file formats."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "latents": ["Latents", "to_dense", "to_csr", "active_counts"],
        "norms": ["InputNorm", "TokenScale"],
        "registry": ["shipped"],
        "run": ["TrainingRun"],
        "sae": ["SAE"],
        "stats": ["ActiveSum", "FvuSum"],
        "store": ["ActivationStore", "harvest"],
        "train": ["train_sae"],
        "verify": ["Verification"],
    },
)
