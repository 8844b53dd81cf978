"""One definition per metric, fidelity reports of attachments, and comparisons across them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "frontiers": ["Frontier", "compare"],
        "interventions": ["compare_answers", "intervention_panel"],
        "metrics": [
            "ActiveSum",
            "FvuSum",
            "ce_loss",
            "ce_recovered",
            "cosine",
            "dead_share",
            "dense_share",
            "explained_variance",
            "fvu",
            "kl",
            "l0",
            "top1_agreement",
        ],
        "records": ["runs"],
        "reports": ["Report", "fidelity"],
        "sweeps": ["Sweep", "sweep"],
    },
)
