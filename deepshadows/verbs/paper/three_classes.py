"""Three classes: artifacts that an SVM on features rejects, those that only the eye rejects, and LSBGs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp
from sklearn.metrics import confusion_matrix

from deepshadows.model.metrics import RESAMPLES, interval
from deepshadows.sky.matching import ARTIFACT, LSBG
from deepshadows.verbs.paper import figures
from deepshadows.verbs.paper.findings import MEASURES, Row, Section, Table, judged, numbers
from deepshadows.verbs.paper.folds import out_of_fold
from deepshadows.verbs.paper.published import THREE_CLASS_CONFUSION
from deepshadows.verbs.paper.samples import check_both, without
from deepshadows.verbs.paper.study import Study
from deepshadows.verbs.paper.trainings import NetworkJob

CLASSES = ("artifact 1", "artifact 2", "LSBG")
LSBGS_KEPT = 0.95
"""Share of the LSBGs that pass the SVM at the threshold which divides the artifacts."""
FOLDS = 5
LEFT_OUT = -1

Counts = NDArray[np.float64]


def types_by_score(scores: NDArray[np.floating], labels: NDArray[np.int8], kept: float) -> NDArray[np.int8]:
    """The three classes from the scores of a two-class classifier.

    Parameters
    ----------
    scores : float (N,)
        Larger is more like an LSBG.
    labels : int8 (N,)
        1 LSBG, 0 artifact.
    kept : float
        Share of the LSBGs that lie at or above the threshold.

    Returns
    -------
    int8 (N,)
        0 artifact below the threshold, 1 artifact at or above it, 2 LSBG at or above it, -1 LSBG below it: in the
        paper, too, an LSBG is one that the SVM has let pass.
    """
    of_lsbgs = np.sort(scores[labels == LSBG])
    threshold = of_lsbgs[int((1 - kept) * len(of_lsbgs))]
    passed = scores >= threshold
    types = np.where(labels == LSBG, np.where(passed, 2, LEFT_OUT), np.where(passed, 1, 0))
    return types.astype(np.int8)


def confusion(truth: NDArray[np.int8], predicted: NDArray[np.integer], classes: int = 3) -> Counts:
    """Counts (classes, classes): rows are true, columns predicted."""
    counts: Counts = confusion_matrix(truth, predicted, labels=range(classes)).astype(np.float64)
    return counts


def measures(counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Accuracy of three classes, and what is left of them with the artifacts as one, all at equal class shares.

    Parameters
    ----------
    counts : float64 (..., 3, 3)
        As `confusion` gives them.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = counts / counts.sum(axis=-1, keepdims=True) / 3
        lsbg = shares[..., 2, 2]
        selected = shares[..., :, 2].sum(axis=-1)
        return {
            "accuracy": np.trace(shares, axis1=-2, axis2=-1),
            "completeness": 3 * lsbg,
            "purity": lsbg / selected,
            "two_class_accuracy": lsbg + 2 / 3 - (selected - lsbg),
        }


def resampled(counts: Counts, resamples: int, seed: int) -> Counts:
    """Confusions (R, 3, 3) of rows drawn anew: a bootstrap of rows is a multinomial draw of their cells."""
    cells = counts.ravel()
    drawn = np.random.default_rng(seed).multinomial(int(cells.sum()), cells / cells.sum(), size=resamples)
    return drawn.reshape(resamples, *counts.shape).astype(np.float64)


def three_classes(study: Study) -> Section:
    """Divide the artifacts by an SVM, train on three classes, judge three and two of them."""
    sample = study.first
    if sample.features is None:
        return Section(
            name="three_classes",
            title="Three classes",
            skipped="no _features.parquet lies beside the cut-outs, and the SVM that divides the artifacts needs it",
        )
    scores, _, svm_seconds = out_of_fold(
        study.trainer, "svm", sample.features.values, sample.labels, folds=FOLDS, seed=study.seed, searched=False
    )
    types = types_by_score(scores, sample.labels, LSBGS_KEPT)
    parts = without(study.parts, types == LEFT_OUT)
    check_both(types[sample.labels == ARTIFACT], f"{sample.origin}: artifacts divided by the SVM")
    job = NetworkJob(
        name="three classes",
        labels=types,
        train=parts.train,
        validation=parts.validation,
        test=parts.test,
        recipe=study.scale.recipe.model_copy(update={"seed": study.seed}),
        classes=3,
    )
    (outcome,) = study.trainer.run(sample, [job], "three classes")
    truth = types[parts.test]
    counts = confusion(truth, outcome.scores.argmax(axis=1))
    rows = _rows(job, counts, outcome.scores, truth, study.seed)
    sizes = {name: int(np.count_nonzero(types == number)) for number, name in enumerate(CLASSES)}
    lost = int(np.count_nonzero(types == LEFT_OUT))
    return Section(
        name="three_classes",
        title="Three classes, and their reduction to two",
        tables=(Table(title="At equal shares of the three classes, as in the paper", rows=rows),),
        pictures=(figures.three_confusions(counts, np.array(THREE_CLASS_CONFUSION, dtype=np.float64), CLASSES),),
        notes=(
            f"Artifacts are divided by an SVM on {len(sample.features.names)} features (the paper's C and gamma, "
            f"scores out of {FOLDS} folds) at the threshold that {LSBGS_KEPT:.0%} of the LSBGs pass: those rejected "
            "are type 1, those let pass type 2. The paper's types come from an SVM on its whole parent sample.",
            "Rows: " + ", ".join(f"{count} {name}" for name, count in sizes.items()) + f"; {lost} LSBGs that the SVM "
            "rejects are left out. Numbers are weighted to equal shares, since the classes are not of equal size here.",
        ),
        details={
            "rows": sizes,
            "lsbg_left_out": lost,
            "confusion": counts.astype(int).tolist(),
            "paper_confusion": THREE_CLASS_CONFUSION,
        },
        training_seconds=svm_seconds + outcome.seconds,
    )


def _rows(
    job: NetworkJob, counts: Counts, scores: NDArray[np.float32], truth: NDArray[np.int8], seed: int
) -> tuple[Row, Row]:
    """Three classes, and two; only the area under the curve is not weighted."""
    found, drawn = measures(counts), measures(resampled(counts, RESAMPLES, seed))
    weighted: dict[str, float | None] = {}
    for measure, value in found.items():
        low, high = interval(drawn[measure])
        weighted |= {measure: float(value) if np.isfinite(value) else None, f"{measure}_lo": low, f"{measure}_hi": high}
    odds = scores[:, 2].astype(np.float64) - logsumexp(scores[:, :2].astype(np.float64), axis=1)
    ranked = judged(expit(odds), (truth == 2).astype(np.int8))
    ends = ("", "_lo", "_hi")
    three = {f"accuracy{end}": weighted[f"accuracy{end}"] for end in ends}
    two = weighted | {f"accuracy{end}": weighted[f"two_class_accuracy{end}"] for end in ends}
    two |= {f"auc{end}": ranked[f"auc{end}"] for end in ends}
    return (
        job.row(numbers("three_classes", "three classes", three, MEASURES)),
        job.row(numbers("three_classes", "reduced to two", two, MEASURES), "reduced to two"),
    )
