"""TEAL (Liu et al., 2024, arXiv 2408.14690): input channels of small magnitude are left out."""

from sparselens.activation.sparsifier import Sparsifier


class TEAL(Sparsifier):
    """Keeps the input channels of largest `|x_j|` in every linear layer of the blocks. Arguments as for `Sparsifier`.

    The paper uses `gate="threshold"` with `allocation="greedy"`.

    Example:
        >>> with m.attach(sl.TEAL(sparsity=0.5)) as lens: lens.report(texts)
    """
