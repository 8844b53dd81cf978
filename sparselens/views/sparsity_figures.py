"""Figures about sparse linear layers: which channels a score keeps, where sparsity is spent, channels against rank."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from sparselens.errors import InputError
from sparselens.views.curves import COLOURS, plain
from sparselens.views.html import as_array

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_ROW = 0.82  # height of a full bar, of the distance between rows
_WORST = 1e-12  # below it an error is drawn as this much; it has no logarithm otherwise


def score_scatter(
    magnitude: Any,
    norms: Any,
    magnitude_cut: SupportsFloat,
    weighted_cut: SupportsFloat,
    ax: "matplotlib.axes.Axes | None" = None,
    *,
    title: str = "",
) -> "matplotlib.axes.Axes":
    """Draw the channels of one token by size and weight norm, with the line on which each score decides.

    TEAL keeps what lies right of the vertical line, WINA what lies above the hyperbola. Both axes are logarithmic, so
    the hyperbola is a straight line; a channel whose input is 0 stands at the left edge.

    Args:
        magnitude: `[in]` sizes `|x_j|` of the inputs of one token.
        norms: `[in]` norms `c_j` of the weight columns.
        magnitude_cut: least `|x_j|` that TEAL keeps.
        weighted_cut: least `|x_j| c_j` that WINA keeps.
        ax: axes to draw into.
        title: a heading.

    Raises:
        InputError: the two differ in length, a number is negative, or a cut is not above 0.
        NotFiniteError: a value is NaN or infinite.
    """
    size, norm = as_array(magnitude), as_array(norms)
    if size.ndim != 1 or size.shape != norm.shape or not size.size:
        raise InputError(f"magnitude has shape {list(size.shape)} and norms {list(norm.shape)}: give one number a "
                         "channel in both, for one token.")
    if min(size.min(), norm.min()) < 0:
        raise InputError("magnitude or norms holds negative numbers; give |x_j| and the norms of the columns.")
    cut, weighted = float(magnitude_cut), float(weighted_cut)
    if not (cut > 0 and weighted > 0):
        raise InputError(f"magnitude_cut={cut:g} and weighted_cut={weighted:g} must be above 0.")
    teal, wina = size >= cut, size * norm >= weighted
    size, norm = (np.maximum(v, v[v > 0].min(initial=np.inf) if (v > 0).any() else 1.0) for v in (size, norm))
    ax = _axes(ax, 5.4, 4.4)
    for rows, name, colour, marker in (
        (~teal & ~wina, "kept by neither", "0.6", "."),
        (teal & wina, "kept by both", COLOURS[0], "o"),
        (teal & ~wina, "TEAL only", COLOURS[1], "s"),
        (wina & ~teal, "WINA only", COLOURS[2], "^"),
    ):
        label = f"{name} ({rows.sum():,})"
        ax.scatter(size[rows], norm[rows], s=14, color=colour, marker=marker, linewidths=0, label=label)
    ax.set(xscale="log", yscale="log")
    low, high = ax.get_ylim()
    at = np.geomspace(low, high, 64)
    ax.axvline(cut, color=COLOURS[1], linewidth=1.3, label="TEAL: |x| = cut")
    across = ax.get_xlim()
    ax.plot(weighted / at, at, color=COLOURS[2], linewidth=1.3, linestyle="--", label="WINA: |x|·c = cut")
    ax.set(xlim=across, ylim=(low, high), xlabel="|x|, size of the input", ylabel="c, norm of the weight column")
    ax.set_title(plain(title), loc="left", fontsize=10)
    ax.legend(frameon=False, fontsize=8)
    _bare(ax)
    return ax


def allocation_bars(
    values: Any,
    names: Sequence[str],
    ax: "matplotlib.axes.Axes | None" = None,
    *,
    label: str = "sparsity",
    target: SupportsFloat | None = None,
    top: SupportsFloat = 1.0,
    title: str = "",
) -> "matplotlib.axes.Axes":
    """Draw how much of something each linear layer gets: a row of bars for each projection, a bar for each block.

    Args:
        values: `[blocks, projections]` shares from 0 to 1.
        names: of the projections.
        ax: axes to draw into.
        label: what the bars are.
        target: the overall share, drawn as a dashed line in each row.
        top: the share that fills a row.
        title: a heading.

    Raises:
        InputError: the shape does not fit the names, or a value lies outside 0 to 1.
        NotFiniteError: a value is NaN or infinite.
    """
    shares = _shares(values, names)
    if not float(top) > 0:
        raise InputError(f"top={float(top):g} must be above 0: it is the share that fills a row.")
    unit = _ROW / float(top)
    ax = _axes(ax, 7.0, 0.6 + 0.55 * len(names))
    blocks = np.arange(len(shares))
    for row in range(len(names)):
        base = len(names) - 1 - row
        colour = COLOURS[0] if row % 2 == 0 else COLOURS[5]
        ax.bar(blocks, np.minimum(unit * shares[:, row], _ROW), bottom=base, width=0.8, color=colour)
        ax.axhline(base, color="0.6", linewidth=0.6)
        if target is not None:
            said = None if row else f"{float(target):.0%} overall"
            ax.axhline(base + unit * float(target), color="0.2", linewidth=0.8, linestyle="--", label=said)
        mean = f"{shares[:, row].mean():.0%}"
        ax.annotate(mean, (1.01, base + 0.4), xycoords=("axes fraction", "data"), fontsize=9, va="center")
    ax.set_yticks([len(names) - 1 - row + 0.4 for row in range(len(names))], names, parse_math=False)
    ax.annotate("mean", (1.01, len(names) + 0.05), xycoords=("axes fraction", "data"), fontsize=8, color="0.4")
    ax.set(xlim=(-0.7, len(shares) - 0.3), ylim=(0, len(names)), xlabel="block")
    ax.set_ylabel(f"{plain(label)}, 0 to {float(top):.0%} in each row", fontsize=9)
    _whole(ax)
    ax.set_title(plain(title), loc="left", fontsize=10)
    if target is not None:
        ax.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    ax.tick_params(axis="y", length=0)
    _bare(ax)
    return ax


def rho_grid(
    values: Any, names: Sequence[str], ax: "matplotlib.axes.Axes | None" = None, *, title: str = ""
) -> "matplotlib.axes.Axes":
    """Draw what share of its budget each linear layer spends on channels; the rest goes to the low-rank branch.

    Args:
        values: `[blocks, projections]` rho, from 0 (rank only) to 1 (channels only).
        names: of the projections.
        ax: axes to draw into.
        title: a heading.

    Raises:
        InputError: the shape does not fit the names, or a value lies outside 0 to 1.
        NotFiniteError: a value is NaN or infinite.
    """
    rho = _shares(values, names)
    ax = _axes(ax, 1.6 + 0.34 * len(rho), 1.3 + 0.32 * len(names))
    image = ax.imshow(rho.T, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    if rho.size <= 400:
        for (block, row), value in np.ndenumerate(rho):
            said = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"
            ax.text(block, row, said, ha="center", va="center", fontsize=7, color="k" if value > 0.5 else "w")
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_xlabel("block")
    _whole(ax)
    ax.set_title(plain(title), loc="left", fontsize=10)
    _colour_bar(ax, image, "ρ, share spent on channels")
    return ax


def landscape(
    channels: Any,
    ranks: Any,
    error: Any,
    shape: tuple[int, int],
    sparsity: SupportsFloat,
    chosen: tuple[SupportsFloat, SupportsFloat] | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
    *,
    title: str = "",
) -> "matplotlib.axes.Axes":
    """Draw the error of one linear layer over kept channels and rank, and the line of equal cost through it.

    On the line, `channels * out + rank * (in + out) = (1 - sparsity) * in * out` weights are read for a token.

    Args:
        channels: `[a]` numbers of kept channels, ascending.
        ranks: `[b]` ranks of the low-rank branch, ascending.
        error: `[a, b]` relative errors of the output, 0 or more.
        shape: `(out, in)` of the weight.
        sparsity: of the line, from 0 to 1.
        chosen: `(channels, rank)` of the point that is used.
        ax: axes to draw into.
        title: a heading.

    Raises:
        InputError: shapes that do not fit, fewer than two channels or ranks, or an error below 0.
        NotFiniteError: a value is NaN or infinite.
    """
    kept, rank, values = as_array(channels), as_array(ranks), as_array(error)
    if values.shape != (len(kept), len(rank)) or min(values.shape, default=0) < 2:
        raise InputError(f"error has shape {list(values.shape)}; {len(kept)} channels and {len(rank)} ranks need "
                         f"[{len(kept)}, {len(rank)}], at least two of each.")
    if values.min() < 0 or (np.diff(kept) <= 0).any() or (np.diff(rank) <= 0).any():
        raise InputError("error must be 0 or more, and channels and ranks must ascend.")
    ax = _axes(ax, 5.8, 4.2)
    largest = max(float(values.max()), _WORST)
    smallest = max(float(values[values > 0].min(initial=largest)), largest * 1e-4)
    from matplotlib.colors import LogNorm, Normalize

    norm = LogNorm(smallest, largest) if largest > 1.01 * smallest else Normalize(0, largest)
    image = ax.pcolormesh(kept, rank, np.maximum(values, smallest).T, norm=norm, cmap="cividis", shading="nearest")
    n_out, n_in = shape
    share = 1 - float(sparsity)
    ends = np.array([0, share * n_in])
    line = ends, ends[::-1] * n_out / (n_in + n_out)
    edges = ax.get_xlim(), ax.get_ylim()
    ax.plot(*line, color="w", linewidth=3)
    ax.plot(*line, color="k", linewidth=1.4, linestyle="--", label=f"{share:.0%} of the weights are read")
    if chosen is not None:
        style: dict[str, Any] = {"linestyle": "none", "marker": "*", "ms": 15, "markeredgecolor": "w"}
        ax.plot(float(chosen[0]), float(chosen[1]), color=COLOURS[1], label="chosen", **style)
    ax.set(xlim=edges[0], ylim=edges[1], xlabel="kept channels", ylabel="rank of the low-rank branch")
    ax.set_title(plain(title), loc="left", fontsize=10)
    ax.legend(fontsize=8, loc="upper right")
    _colour_bar(ax, image, "relative error of the output")
    return ax


def _shares(values: Any, names: Sequence[str]) -> np.ndarray:
    shares = as_array(values)
    if shares.ndim != 2 or shares.shape[1] != len(names) or not shares.size:
        raise InputError(f"values has shape {list(shares.shape)}, but {len(names)} names need "
                         f"[blocks, {len(names)}]: a row a block, a column a projection.")
    if shares.min() < 0 or shares.max() > 1:
        raise InputError(f"values go from {shares.min():.3g} to {shares.max():.3g}; shares lie between 0 and 1.")
    return shares


def _axes(ax: "matplotlib.axes.Axes | None", width: float, height: float) -> "matplotlib.axes.Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _whole(ax: "matplotlib.axes.Axes") -> None:
    """Blocks have whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bare(ax: "matplotlib.axes.Axes") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)


def _colour_bar(ax: "matplotlib.axes.Axes", image: Any, label: str) -> None:
    bar = ax.figure.colorbar(image, ax=ax)  # type: ignore[union-attr]
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
