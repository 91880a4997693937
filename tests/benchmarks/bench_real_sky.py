"""How networks do on real sky that they were not trained on: the paper's kind of labels, and two lists of known LSBGs.

    python -m tests.benchmarks.bench_real_sky --real DIR [--simulated SHARDS] CHECKPOINT [OTHER]

DIR holds the npz files of real cut-outs. Each is brought to the network's field and scored exactly; an LSBG is what
reaches the card's threshold. With two networks the difference is judged on the same resamples. What was found is added
to the card of each, which so counts every look at these labels. SHARDS are labelled cut-outs of simulated tiles that no
network was trained on; they are judged in the same way, and nothing of them goes into a card.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.model import shipped
from deepshadows.model.card import CARD_NAME, Card, Evaluation
from deepshadows.model.metrics import Judged, auc, judge
from deepshadows.model.scorer import Scorer, load_scorer
from deepshadows.schema import is_fatal
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.shards import Cutouts, read_npz, read_shards
from deepshadows.sky.stretch import stretch_named
from tests.benchmarks.bench_classify import machine

LABELLED, FORNAX, GRECO = "des_labelled_dev", "fornax_lsb", "greco_lsbg_legacy_dr5"
REAL = f"{LABELLED}, {FORNAX}, {GRECO}"
SHOWN = ("accuracy", "auc", "completeness", "purity", "ece")
RESAMPLES = 1000


def probabilities(scorer: Scorer, file: Path) -> tuple[NDArray[np.float64], NDArray[np.int8] | None]:
    """Of the usable cut-outs of a file (those with an empty note), and their labels."""
    card = scorer.card
    geometry = Geometry(fov_arcsec=card.fov_arcsec, bands=card.bands, stretch=stretch_named(card.stretch))
    cutouts = read_npz(str(file), geometry)
    with np.load(file, allow_pickle=False) as archive:
        good = archive["note"] == "" if "note" in archive.files else np.ones(len(cutouts), dtype=bool)
    good &= ~is_fatal(cutouts.flags)
    label = None if cutouts.label is None else cutouts.label[good]
    return scorer.score(cutouts.images[good]).p_lsbg.astype(np.float64), label


def simulated(scorer: Scorer, cutouts: Cutouts) -> tuple[dict[str, float], Judged]:
    assert cutouts.label is not None
    p = scorer.score(cutouts.images).p_lsbg.astype(np.float64)
    judged = Judged(probabilities=p, labels=cutouts.label)
    return figures_of(judged, scorer.card.threshold, scorer.card.prevalence), judged


def figures_of(judged: Judged, threshold: float, prevalence: float) -> dict[str, float]:
    """What is shown and logged, with intervals."""
    found = judge(judged, threshold, calibrated_at=prevalence)
    names = [f"{name}{end}" for name in SHOWN for end in ("", "_lo", "_hi")]
    return {name: float(value) for name in names if (value := found[name]) is not None}


def real(scorer: Scorer, folder: Path) -> tuple[dict[str, float], Judged]:
    p, labels = probabilities(scorer, folder / f"{LABELLED}.npz")
    assert labels is not None
    judged = Judged(probabilities=p, labels=labels)
    figures = figures_of(judged, scorer.card.threshold, scorer.card.prevalence)
    for name in (FORNAX, GRECO):
        kept = probabilities(scorer, folder / f"{name}.npz")[0] >= scorer.card.threshold
        figures |= {f"{name}_kept": float(kept.mean()), f"{name}_n": len(kept)}
    return figures, judged


def difference(first: Judged, second: Judged, thresholds: tuple[float, float]) -> dict[str, NDArray[np.float64]]:
    """First less second on the same resamples: median and 95 % interval of accuracy and AUC."""
    rng = np.random.default_rng(1)
    drawn: dict[str, list[float]] = {"accuracy": [], "auc": []}
    while len(drawn["auc"]) < RESAMPLES:
        rows = rng.integers(0, len(first.labels), len(first.labels))
        parts = [Judged(probabilities=one.probabilities[rows], labels=one.labels[rows]) for one in (first, second)]
        areas = [auc(part) for part in parts]
        if None in areas:
            continue
        right = [((p.probabilities >= t) == (p.labels == 1)).mean() for p, t in zip(parts, thresholds, strict=True)]
        drawn["accuracy"].append(right[0] - right[1])
        drawn["auc"].append(areas[0] - areas[1])
    return {name: np.percentile(values, [50, 2.5, 97.5]) for name, values in drawn.items()}


def log(checkpoint: str, card: Card, figures: dict[str, float], sample: str = REAL) -> None:
    """Append to the card's evaluations."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    entry = Evaluation(sample=sample, commit=commit.stdout.strip(), figures=figures)
    card = card.model_copy(update={"evaluations": (*card.evaluations, entry)})
    storage.write(storage.join(shipped.folder(checkpoint), CARD_NAME), card.model_dump_json(indent=2).encode())


def told(sample: str, names: list[str], scorers: list[Scorer], found: list[tuple[dict[str, float], Judged]]) -> None:
    """Each network's figures on one sample and, of two, the difference."""
    print(f"\n{sample}")
    for name, (figures, _) in zip(names, found, strict=True):
        print(f"  {name}")
        for measure in SHOWN:
            low, high = figures[f"{measure}_lo"], figures[f"{measure}_hi"]
            print(f"    {measure:12s} {figures[measure]:.3f} ({low:.3f} to {high:.3f})")
        for known in (FORNAX, GRECO):
            if f"{known}_n" in figures:
                print(f"    {known}: {figures[f'{known}_kept']:.3f} of {figures[f'{known}_n']:.0f} kept")
    if len(found) == 2:
        thresholds = (scorers[0].card.threshold, scorers[1].card.threshold)
        for measure, (middle, low, high) in difference(found[0][1], found[1][1], thresholds).items():
            print(f"  {names[0]} less {names[1]}, {measure}: {middle:+.3f} ({low:+.3f} to {high:+.3f})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--simulated")
    parser.add_argument("checkpoint", nargs="+")
    wanted = parser.parse_args()
    print(machine())
    scorers = [load_scorer(name, precision="exact") for name in wanted.checkpoint]
    if wanted.simulated:
        cutouts = read_shards(wanted.simulated)
        found = [simulated(scorer, cutouts) for scorer in scorers]
        told(f"{len(cutouts)} simulated cut-outs", wanted.checkpoint, scorers, found)
    found = [real(scorer, wanted.real) for scorer in scorers]
    looks = [
        f"{name} {len(scorer.card.evaluations) + 1}" for name, scorer in zip(wanted.checkpoint, scorers, strict=True)
    ]
    told(f"{LABELLED}, looks at these labels with this one: {', '.join(looks)}", wanted.checkpoint, scorers, found)
    for name, scorer, (figures, _) in zip(wanted.checkpoint, scorers, found, strict=True):
        log(name, scorer.card, figures)


if __name__ == "__main__":
    main()
