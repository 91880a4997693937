"""Pictures for people: galleries of cut-outs and score histograms, as PNG bytes. Imports no Ray."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

HIT, MISS = "#1b7f3b", "#b3261e"


def gallery(
    images: NDArray[np.uint8], captions: Sequence[str], good: NDArray[np.bool_], title: str, columns: int = 6
) -> bytes:
    """Cut-outs in a grid.

    Parameters
    ----------
    images : uint8 (N, S, S, 3)
        North up: row 0 is drawn at the top.
    captions : sequence of str
        One for each image.
    good : bool (N,)
        Frame colour: green where true, red where not.

    Returns
    -------
    bytes
        A PNG file.
    """
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(columns * 1.6, rows * 1.85 + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, caption, is_good in zip(axes, images, captions, good, strict=False):
        axis.set_axis_on()
        axis.imshow(image, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(caption, fontsize=7)
        for spine in axis.spines.values():
            spine.set(edgecolor=HIT if is_good else MISS, linewidth=2)
    return png(figure)


def score_histogram(p_lsbg: NDArray[np.float32], is_lsbg: NDArray[np.bool_], threshold: float) -> bytes:
    """Histogram of p_lsbg, true LSBGs and the rest, with the threshold; a PNG file."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    bins = np.linspace(0, 1, 26).tolist()
    axis.hist(
        [p_lsbg[~is_lsbg], p_lsbg[is_lsbg]],
        bins=bins,
        stacked=True,
        color=[MISS, HIT],
        label=[f"others ({np.count_nonzero(~is_lsbg)})", f"true LSBGs ({np.count_nonzero(is_lsbg)})"],
    )
    axis.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.2f}")
    axis.set_xlabel("p_lsbg: calibrated probability of a low-surface-brightness galaxy")
    axis.set_ylabel("detections")
    axis.legend()
    return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as a PNG file, the same bytes for the same figure."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, metadata={"Software": None})
    return sink.getvalue()
