"""Pictures of what a network looked at: one panel an object, and a sheet of all; as PNG bytes. Imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deepshadows.verbs.pictures import HIT, MISS, png

HEAT = "inferno"
PLAIN, FAINT = "#333333", "#8a8a8a"
BAR_ARCSEC = 10.0
CELL_COLUMNS = 4
LONGEST_ID = 40


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One object and its heat map.

    Attributes
    ----------
    image : uint8 (S, S, 3)
    heat : float32 (S, S)
        From 0 to 1: what speaks for the decision.
    is_lsbg : bool
        The decision.
    label : int or None
        1 LSBG, 0 artifact, where it is known.
    """

    object_id: str
    image: NDArray[np.uint8]
    heat: NDArray[np.float32]
    p_lsbg: float
    is_lsbg: bool
    label: int | None

    @property
    def decision(self) -> str:
        return _class_name(self.is_lsbg)

    @property
    def shown_id(self) -> str:
        """The identifier as it can be drawn on one line."""
        text = "".join(letter if letter.isprintable() else "?" for letter in self.object_id)
        return text if len(text) <= LONGEST_ID else f"{text[: LONGEST_ID - 1]}…"

    @property
    def verdict(self) -> str:
        """What the label says of the decision, empty without one."""
        if self.label is None:
            return ""
        return f"label: {_class_name(self.label == 1)}, " + ("right" if self._right else "wrong")

    @property
    def colour(self) -> str:
        return PLAIN if self.label is None else HIT if self._right else MISS

    @property
    def _right(self) -> bool:
        return self.is_lsbg == (self.label == 1)


def _class_name(is_lsbg: bool) -> str:
    return "LSBG" if is_lsbg else "artifact"


def panel(seen: Explained, fov_arcsec: float) -> bytes:
    """Image, heat map and both together, with what is known of the object; a PNG file."""
    width, height = 9.2, 3.72
    side = 0.302 * width / height
    figure = Figure(figsize=(width, height))
    figure.text(0.02, 0.93, seen.shown_id, fontsize=13, fontweight="bold", color=PLAIN, parse_math=False)
    figure.text(0.02, 0.86, f"p_lsbg {seen.p_lsbg:.3f}, decided: {seen.decision}", fontsize=10.5, color=PLAIN)
    figure.text(0.957, 0.86, seen.verdict, fontsize=10.5, color=seen.colour, ha="right", fontweight="bold")
    boxes = [(0.02 + 0.312 * place, 0.03, 0.302, side) for place in range(3)]
    image, heat, both = (figure.add_axes(box) for box in boxes)
    image.imshow(seen.image, interpolation="nearest")
    _draw_scale(image, seen.image.shape[0], fov_arcsec)
    shown = heat.imshow(seen.heat, cmap=HEAT, vmin=0, vmax=1, interpolation="bilinear")
    draw_overlay(both, seen.image, seen.heat)
    titles = ("cut-out", f"what speaks for: {seen.decision}", "both")
    for axis, title in zip((image, heat, both), titles, strict=True):
        _frame(axis, PLAIN, 0.8)
        axis.set_title(title, fontsize=9, color=PLAIN, pad=4)
    bar = figure.colorbar(shown, cax=figure.add_axes((0.957, 0.03, 0.011, side)), ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize=7.5, length=2, color=FAINT, labelcolor=PLAIN, pad=2)
    bar.outline.set_linewidth(0.5)
    return png(figure)


def sheet(seen: Sequence[Explained], title: str) -> bytes:
    """All objects, each as cut-out beside overlay, framed by whether the decision is right; a PNG file."""
    columns = min(CELL_COLUMNS, len(seen))
    rows = -(-len(seen) // columns)
    width, height, top = 2.9 * columns + 0.2, 1.86 * rows + 0.62, 0.55
    figure = Figure(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.32 / height, title, fontsize=12, fontweight="bold", color=PLAIN)
    for number, one in enumerate(seen):
        row, column = divmod(number, columns)
        left, bottom = 0.1 + 2.9 * column, height - top - 1.86 * (row + 1) + 0.06
        cutout, overlay = (
            figure.add_axes(((left + 1.38 * place) / width, bottom / height, 1.36 / width, 1.36 / height))
            for place in range(2)
        )
        cutout.imshow(one.image, interpolation="nearest")
        draw_overlay(overlay, one.image, one.heat)
        for axis in (cutout, overlay):
            _frame(axis, one.colour, 1.8)
        at = (bottom + 1.56) / height
        figure.text(left / width, at, one.shown_id, fontsize=8.5, fontweight="bold", color=PLAIN, parse_math=False)
        told = f"p {one.p_lsbg:.3f}, {one.decision}" + (f"; {one.verdict}" if one.verdict else "")
        figure.text(left / width, (bottom + 1.42) / height, told, fontsize=7.5, color=one.colour)
    return png(figure)


def draw_overlay(axis: Axes, image: NDArray[np.uint8], heat: NDArray[np.float32]) -> None:
    """The cut-out with the heat laid over it, more opaque where it is hotter, and its half-height line."""
    axis.imshow(image, interpolation="nearest")
    axis.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.62 * np.sqrt(heat), interpolation="bilinear")
    if heat.max() > 0.5:
        axis.contour(heat, levels=[0.5], colors="white", linewidths=0.9)


def _draw_scale(axis: Axes, size_pix: int, fov_arcsec: float) -> None:
    """A bar of 10 arcsec."""
    length = BAR_ARCSEC / fov_arcsec * size_pix
    at = size_pix * 0.94
    axis.plot([size_pix * 0.05, size_pix * 0.05 + length], [at, at], color="white", linewidth=2, solid_capstyle="butt")
    axis.text(size_pix * 0.05, at - size_pix * 0.025, f"{BAR_ARCSEC:g}″", color="white", fontsize=8, va="bottom")


def _frame(axis: Axes, colour: str, width: float) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(edgecolor=colour, linewidth=width)
