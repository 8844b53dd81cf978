"""Live models and their sites: load, wrap, capture, stream, run, generate."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batches": ["Batch"],
        "captured": ["Captured", "FlatBatch", "Output"],
        "diffusion": ["DiffusionLM", "Generation", "masked"],
        "diffusion_hub": ["load_diffusion"],
        "engine": ["Context", "Denoising", "Edit", "Swap", "Weight"],
        "live": ["LiveModel"],
        "load": ["load_model", "wrap"],
        "tiny": [
            "Example", "Plugged", "Training", "bidirectional", "lm_loss", "lm_scores", "n_parameters", "next_token",
            "tiny_lm", "train_lm", "windows",
        ],
    },
)
