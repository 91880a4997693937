"""The figures of the report, as PNG with the sentence that stands for them. Imports no Ray and no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from deepshadows.model.metrics import Judged, auc
from deepshadows.verbs.page import Picture
from deepshadows.verbs.paper.findings import DECISION, Figures, Number, Row
from deepshadows.verbs.paper.published import published
from deepshadows.verbs.pictures import png

BLUE, ORANGE, GREEN, GREY, RED = "#2a5fa5", "#d1781f", "#2f8a5b", "#7a7a7a", "#b3261e"
COLOURS = {"CNN": BLUE, "SVM": ORANGE, "random forest": GREEN}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Cut-outs of one kind of decision: images uint8 (N, 64, 64, 3), p_lsbg (N,), and by method heat (N, 64, 64)."""

    title: str
    images: NDArray[np.uint8]
    heat: Mapping[str, NDArray[np.float32]]
    p_lsbg: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Trainings on one kind of wrong labels: the shares of the training labels that are wrong, and their rows."""

    kind: str
    shares: Sequence[float]
    rows: Sequence[Row]


def roc(
    scores: Mapping[str, NDArray[np.floating]], labels: NDArray[np.int8], name: str = "roc", what: str = "test rows"
) -> Picture:
    """Completeness against the share of artifacts taken along; a dot marks the decision at 0.5."""
    figure = _figure(5.2, 4.6)
    axis = figure.subplots()
    told = []
    for model, score in scores.items():
        area = auc(Judged(probabilities=score.astype(np.float64), labels=labels))
        told.append(f"{model} {area:.3f}")
        false, true, _ = roc_curve(labels, score)
        axis.plot(false, true, color=COLOURS[model], label=f"{model}: AUC {area:.3f}")
        chosen = score >= DECISION
        axis.plot(chosen[labels == 0].mean(), chosen[labels == 1].mean(), "o", color=COLOURS[model], markersize=6)
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    axis.set(xlabel="share of artifacts selected", ylabel="completeness", xlim=(-0.01, 1), ylim=(0, 1.01))
    axis.legend(loc="lower right", frameon=False)
    return Picture(
        name=name,
        alt=f"ROC curves on {len(labels)} {what}; areas under the curve: {', '.join(told)}.",
        caption=f"ROC curves on {len(labels)} {what}; dots mark the decision at 0.5.",
        png=_png(figure),
    )


def confusions(found: Mapping[str, Figures]) -> Picture:
    """A two by two confusion of each model."""
    figure = _figure(3.1 * len(found), 3.7)
    axes = np.atleast_1d(figure.subplots(1, len(found)))
    told = []
    for axis, (model, result) in zip(axes, found.items(), strict=True):
        tn, fp, fn, tp = (float(result[name] or 0) for name in ("tn", "fp", "fn", "tp"))
        _matrix(axis, np.array([[tn, fp], [fn, tp]]), ("artifact", "LSBG"), model)
        told.append(f"{model} TN {tn:.0f}, FP {fp:.0f}, FN {fn:.0f}, TP {tp:.0f}")
    return Picture(
        name="confusion",
        alt=f"Confusion matrices: {'; '.join(told)}.",
        caption="Confusion on the test rows; percentages are of each true class.",
        png=_png(figure),
    )


def three_confusions(ours: NDArray[np.float64], paper: NDArray[np.float64], classes: Sequence[str]) -> Picture:
    """The three-class confusion beside the paper's."""
    figure = _figure(8.6, 4.0)
    for axis, counts, title in zip(figure.subplots(1, 2), (ours, paper), ("here", "paper"), strict=True):
        _matrix(axis, counts, classes, title)
    rows = "; ".join(
        f"true {name}: {', '.join(f'{count:.0f}' for count in row)}" for name, row in zip(classes, ours, strict=True)
    )
    return Picture(
        name="three_classes",
        alt=f"Confusion of three classes here and in the paper. Here, predicted {', '.join(classes)}: {rows}.",
        caption="Confusion of three classes; percentages are of each true class.",
        png=_png(figure),
    )


def _matrix(axis: Axes, counts: NDArray[np.float64], classes: Sequence[str], title: str) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        dark = shares[row, column] > 0.55
        text = f"{count:,.0f}\n{shares[row, column]:.1%}"
        axis.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    axis.set_xticks(range(len(classes)), classes)
    axis.set_yticks(range(len(classes)), classes, rotation=90, va="center")
    axis.set(xlabel="predicted", ylabel="true", title=title)
    axis.spines[:].set_visible(False)


def seeds(rows: Sequence[Row]) -> Picture:
    """Accuracy and AUC of each seed with intervals, and the paper's range."""

    def draw(axis: Axes, measure: str) -> None:
        paper = published("splits", "all seeds", measure)
        if paper.low is not None and paper.high is not None:
            axis.axhspan(paper.low, paper.high, color=GREY, alpha=0.3, label="paper, all seeds")
        _points(axis, list(range(len(rows))), [row[measure] for row in rows], BLUE, "here")
        axis.set_xticks(range(len(rows)), [str(row.seed) for row in rows])
        axis.set_xlabel("seed of the split")
        axis.legend(frameon=False)

    return Picture(
        name="splits",
        alt=f"Accuracy and AUC of each seed of the split: {_accuracies(rows)}.",
        caption="Each seed with its 95 % bootstrap interval; the grey band is the range of the paper's six seeds.",
        png=_accuracy_and_auc(_figure(8.2, 3.4), draw),
    )


def noise(curves: Sequence[Curve], *, right: Row, fewer_epochs: Row) -> Picture:
    """Accuracy and AUC against the share of wrong labels, here and in the paper, and of right labels."""

    def draw(axis: Axes, measure: str) -> None:
        for number, (curve, colour) in enumerate(zip(curves, (BLUE, ORANGE, GREEN), strict=True)):
            percent = [100 * share + 0.5 * (number - 1) for share in curve.shares]
            _points(axis, percent, [row[measure] for row in curve.rows], colour, curve.kind, line=True)
            theirs = [
                (100 * share, row[measure].paper)
                for share, row in zip(curve.shares, curve.rows, strict=True)
                if row[measure].paper is not None
            ]
            if theirs:
                axis.plot(
                    *zip(*theirs, strict=True), "o--", color=colour, markerfacecolor="none", linewidth=0.8, alpha=0.7
                )
        for row, colour in ((right, BLUE), (fewer_epochs, GREY)):
            _points(axis, [0], [row[measure]], colour, row.name)
        axis.set_xlabel("wrong labels, % of the training rows")

    told = _accuracies([right, fewer_epochs, *(row for curve in curves for row in curve.rows)])
    return Picture(
        name="label_noise",
        alt=f"Accuracy and AUC against the share of wrong training labels. {told}.",
        caption="Filled: here, with 95 % bootstrap intervals; open and dashed: the paper.",
        png=_accuracy_and_auc(_figure(8.6, 4.2), draw, legend_below=True),
    )


def transfer(before: Row, after: Sequence[Row]) -> Picture:
    """Accuracy and AUC on the second survey against the number of its examples."""
    sizes = [row.n_train for row in after]

    def draw(axis: Axes, measure: str) -> None:
        _points(axis, sizes, [row[measure] for row in after], BLUE, "after, here", line=True)
        if (value := before[measure].ours) is not None:
            axis.axhline(value, color=BLUE, linestyle=":", label="before, here")
        if (paper := before[measure].paper) is not None:
            axis.axhline(paper, color=GREY, linestyle=":", linewidth=1, label="before, paper")
        if (paper := after[-1][measure].paper) is not None:
            axis.plot(sizes[-1], paper, "o", color=GREY, markerfacecolor="none", label="after, paper")
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel("examples of the second survey")

    return Picture(
        name="transfer",
        alt=f"Accuracy and AUC on the second survey against the number of examples. {_accuracies([before, *after])}.",
        caption="Fine-tuning on growing samples of the second survey, with 95 % bootstrap intervals.",
        png=_accuracy_and_auc(_figure(8.2, 4.0), draw, legend_below=True),
    )


def _accuracy_and_auc(figure: Figure, draw: Callable[[Axes, str], None], *, legend_below: bool = False) -> bytes:
    """Both measures side by side, each drawn on its axes; with one legend, where their contents are the same."""
    for axis, measure in zip(figure.subplots(1, 2), ("accuracy", "auc"), strict=True):
        draw(axis, measure)
        axis.set_ylabel(_label(measure))
    if legend_below:
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _png(figure)


def _accuracies(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row.name}: {_told(row['accuracy'])}, {_told(row['auc'])}" for row in rows)


def heat_maps(panels: Sequence[Panel]) -> Picture:
    """Each cut-out above its heat maps, a line a method; the kinds of decision two by two."""
    columns = max(len(panel.images) for panel in panels)
    methods = list(panels[0].heat)
    lines = -(-len(panels) // 2)
    figure = _figure(2 * (1.4 * columns + 0.2), (0.5 + 1.4 * (1 + len(methods))) * lines)
    parts = figure.subfigures(lines, 2, squeeze=False)
    for part, panel in zip(parts.ravel(), panels, strict=False):
        part.suptitle(panel.title, fontsize=11, fontweight="bold")
        axes = part.subplots(1 + len(methods), columns, squeeze=False)
        for axis in axes.ravel():
            axis.set_axis_off()
        for column, (image, p) in enumerate(zip(panel.images, panel.p_lsbg, strict=True)):
            axes[0, column].imshow(image, interpolation="nearest")
            axes[0, column].set_title(f"p = {p:.3f}", fontsize=8)
            for axis, (method, heat) in zip(axes[1:, column], panel.heat.items(), strict=True):
                axis.imshow(image.mean(axis=2), cmap="gray", interpolation="nearest")
                axis.imshow(heat[column], cmap="inferno", alpha=0.55, vmin=0, vmax=1)
                axis.set_title(method, fontsize=7)
    counts = ", ".join(f"{len(panel.images)} {panel.title}" for panel in panels)
    return Picture(
        name="grad_cam",
        alt=f"Cut-outs with their {' and '.join(methods)} heat maps: {counts}, the most confident of each kind.",
        caption="Above the cut-out, below it in grey under its heat maps; p is the network's probability of an LSBG.",
        png=_png(figure),
    )


def _points(
    axis: Axes, places: Sequence[float], found: Sequence[Number], colour: str, label: str, *, line: bool = False
) -> None:
    """Values with their intervals; those that are not defined are left out."""
    known = [(place, number) for place, number in zip(places, found, strict=True) if number.ours is not None]
    values = [float(number.ours or 0) for _, number in known]
    low = [
        value - (value if number.low is None else number.low) for value, (_, number) in zip(values, known, strict=True)
    ]
    high = [
        (value if number.high is None else number.high) - value
        for value, (_, number) in zip(values, known, strict=True)
    ]
    errors = np.maximum([low, high], 0)
    style = "o-" if line else "o"
    axis.errorbar([place for place, _ in known], values, yerr=errors, fmt=style, color=colour, capsize=2, label=label)


def _label(measure: str) -> str:
    return "AUC" if measure == "auc" else measure


def _told(number: Number) -> str:
    value = "not defined" if number.ours is None else f"{number.ours:.3f}"
    return f"{_label(number.measure)} {value}"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return png(figure)
