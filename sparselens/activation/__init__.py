"""Activation sparsity: input channels of linear layers that are left out, token by token."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "allocation": ["Allocation", "allocate"],
        "baselines": ["RandomChannels"],
        "calibration": ["Calibration", "calibrate"],
        "cats": ["CATS"],
        "channels": ["Channels"],
        "kernels": ["Columns"],
        "landscape": ["Landscape"],
        "linears": ["Linear", "linears"],
        "r_sparse": ["Budgets", "RSparse"],
        "search": ["Search", "search_rho"],
        "sparse_linear": ["SparseLinear"],
        "sparsifier": ["Sparsifier"],
        "transform": ["Orthogonal"],
        "teal": ["TEAL"],
        "wina": ["WINA"],
    },
)
