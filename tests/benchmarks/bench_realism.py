"""Can a classifier tell simulated cut-outs from real ones? AUC 0.5: no; 1: at once. Target: at most 0.85.

    python -m tests.benchmarks.bench_realism --real DIR [--tiles 24] [--seed 404]

DIR holds the npz files of real cut-outs. Simulated tiles are cut at the fields that the real ones have (30, 33.5 and
40.2 arcsec over 64 pixels), stored as JPEG of quality 90 as the viewer does, and brought to the network's field by the
same code. A random forest on 61 numbers of each image (radial profiles, percentiles, noise on several scales) is
cross-validated in 10 folds, each class on its own, with as many simulated images as real ones of each field.
"""

from __future__ import annotations

import argparse
import io
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from deepshadows.model.domain import summaries
from deepshadows.sky.cutouts import Geometry, bring_to_field
from deepshadows.sky.stretch import DES
from deepshadows.verbs.simulate_cutouts import labelled_cutouts
from tests.benchmarks.bench_classify import machine

FILES = ("des_labelled_dev", "fornax_lsb", "greco_lsbg_legacy_dr5", "des_unlabelled")
JPEG_QUALITY, VIEWER_PIX = 90, 256
UNKNOWN = -1


def real(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int8]]:
    """Images as they are stored, their fields, their labels (-1: none)."""
    images, fields, labels = [], [], []
    for name in FILES:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
            good = np.ones(len(archive["image"]), dtype=bool)
            if "note" in archive.files:
                good = archive["note"] == ""
            images.append(archive["image"][good])
            fields.append(archive["fov_arcsec"][good].astype(np.float32))
            known = "label" in archive.files
            labels.append(archive["label"][good].astype(np.int8) if known else np.full(good.sum(), UNKNOWN, np.int8))
    return np.concatenate(images), np.concatenate(fields), np.concatenate(labels)


def one_tile(number: int, seed: int, field: float) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    sample = labelled_cutouts("des", number, seed, 2048, field).cutouts
    assert sample.label is not None
    return np.stack([through_viewer(image) for image in sample.images]), sample.label


def through_viewer(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As a 256-pixel JPEG and back."""
    buffer = io.BytesIO()
    large = Image.fromarray(image).resize((VIEWER_PIX, VIEWER_PIX), Image.Resampling.BICUBIC)
    large.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return np.array(Image.open(buffer).resize(image.shape[:2], Image.Resampling.BOX))


def simulated(fields: NDArray[np.float32], tiles: int, seed: int) -> dict[float, tuple[NDArray, NDArray]]:
    """Images and labels of `tiles` tiles for each field."""
    found = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for turn, field in enumerate(np.unique(fields)):
            work = partial(one_tile, seed=seed + turn, field=float(field))
            parts = list(pool.map(work, range(tiles)))
            found[float(field)] = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return found


def features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """float (N, 61): 22 sums of `domain.summaries`, 8 rings and 5 percentiles of each channel."""
    rows, columns = np.mgrid[:64, :64] - 31.5
    ring = np.minimum(np.hypot(rows, columns) // 4, 7).astype(int)
    x = images.astype(np.float64)
    rings = [x[:, ring == number].mean(axis=1) for number in range(8)]
    percentiles = np.percentile(x.reshape(len(x), -1, 3), [5, 25, 50, 75, 95], axis=1)
    sums = np.log1p(summaries(torch.from_numpy(images)).numpy())
    return np.concatenate([sums, *rings, *percentiles], axis=1)


def separability(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    x = features(np.concatenate([first, second]))
    y = np.r_[np.zeros(len(first)), np.ones(len(second))]
    forest = RandomForestClassifier(300, min_samples_leaf=2, random_state=1, n_jobs=-1)
    p = cross_val_predict(forest, x, y, cv=StratifiedKFold(10, shuffle=True, random_state=1), method="predict_proba")
    return float(roc_auc_score(y, p[:, 1]))


def matched(
    fields: NDArray[np.float32],
    labels: NDArray[np.int8],
    wanted: NDArray[np.bool_],
    made: dict[float, tuple[NDArray, NDArray]],
    share: float,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """For each wanted real image a simulated one of its field and class; unlabelled ones are LSBGs with `share`."""
    rng = np.random.default_rng(1)
    images, chosen_fields = [], []
    for field, (pictures, kinds) in made.items():
        rows = np.flatnonzero(wanted & (fields == np.float32(field)))
        classes = np.where(labels[rows] == UNKNOWN, rng.random(len(rows)) < share, labels[rows])
        for kind in (0, 1):
            pool = np.flatnonzero(kinds == kind)
            images.append(pictures[rng.choice(pool, int((classes == kind).sum()), replace=False)])
        chosen_fields.append(np.full(len(rows), field, np.float32))
    return np.concatenate(images), np.concatenate(chosen_fields)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--tiles", type=int, default=24)
    parser.add_argument("--seed", type=int, default=404)
    wanted = parser.parse_args()
    print(machine())
    images, fields, labels = real(wanted.real)
    made = simulated(fields, wanted.tiles, wanted.seed)
    geometry = Geometry(stretch=DES)
    groups = {
        "LSBGs": labels == 1,
        "artifacts": labels == 0,
        "unlabelled (half of each)": labels == UNKNOWN,
        "all": np.ones(len(labels), dtype=bool),
    }
    print("| real cut-outs | n | AUC, simulated against real |")
    print("|---|---|---|")
    for name, rows in groups.items():
        other, other_fields = matched(fields, labels, rows, made, share=0.5)
        ours, _ = bring_to_field(other, other_fields, geometry)
        theirs, _ = bring_to_field(images[rows], fields[rows], geometry)
        print(f"| {name} | {rows.sum()} | {separability(theirs, ours):.3f} |", flush=True)


if __name__ == "__main__":
    main()
