"""Live models and their sites: load, wrap, capture, stream, run, generate."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batches": ["Batch"],
        "captured": ["Captured", "FlatBatch", "Output"],
        "engine": ["Context", "Edit", "Swap", "Weight"],
        "live": ["LiveModel"],
        "load": ["load_model", "wrap"],
    },
)
