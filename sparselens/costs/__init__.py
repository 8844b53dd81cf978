"""Cost models: what a measured sparsity would save at scale, from published formulas."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "hardware": ["HARDWARE", "Hardware"],
        "pipeline": ["Efficiency", "Pipeline", "afd", "fit_efficiency", "longer_context", "tokens_per_card"],
        "published": ["fit_layers", "validate", "validate_throughput"],
        "savings": ["Savings", "decode_bytes", "prefill_flops", "what_if"],
        "shapes": ["Attention", "FeedForward", "PRESETS", "Shape", "gqa", "lightning", "mfa", "mla", "shape"],
        "step3": ["DecodeCost", "context_per_card", "decode_cost", "moe_sparsity_floor"],
    },
)
