"""Can a classifier tell simulated cut-outs from real ones? AUC 0.5: no; 1: at once. Target: at most 0.85.

    python -m tests.benchmarks.bench_realism --real DIR [--tiles 16] [--seed 404]

DIR holds the npz files of real cut-outs. Simulated tiles are cut at the fields that the real ones have (30, 33.5 and
40.2 arcsec), enlarged to 256 pixels and stored as JPEG of quality 90 as the viewer does, thinned out to 64 pixels as
the paper's sample was, and brought to the network's field by the code that brings the real ones there. A random forest
on 61 numbers of each image (radial profiles, percentiles, noise on several scales) is cross-validated in 10 folds, each
class on its own, with as many simulated images as real ones of each look.
"""

from __future__ import annotations

import argparse
import io
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
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
FULL_COLOUR = "VIT-LSBGs"
"""Images of this source have fine-grained colour noise, so they were never stored with thinned colours."""
UNKNOWN = -1


@dataclass(frozen=True)
class Look:
    """How a file shows a field: its width, and whether colours have all pixels (JPEG mostly keeps every second)."""

    fov_arcsec: float
    full_colour: bool


def real(folder: Path) -> tuple[NDArray[np.uint8], list[Look], NDArray[np.int8]]:
    """Images as they are stored, how they look, their labels (-1: none)."""
    images, looks, labels = [], [], []
    for name in FILES:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
            file = {key: archive[key] for key in archive.files}
        good = file["note"] == "" if "note" in file else np.ones(len(file["image"]), dtype=bool)
        images.append(file["image"][good])
        sources = file.get("source", np.full(len(good), ""))
        looks += [
            Look(round(float(fov), 1), str(source).endswith(FULL_COLOUR))
            for fov, source in zip(file["fov_arcsec"][good], sources[good], strict=True)
        ]
        unknown = np.full(len(good), UNKNOWN)
        labels.append(file.get("label", unknown)[good].astype(np.int8))
    return np.concatenate(images), looks, np.concatenate(labels)


def one_tile(number: int, seed: int, look: Look) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    geometry = Geometry(size_pix=VIEWER_PIX // 2, fov_arcsec=look.fov_arcsec, stretch=DES)
    sample = labelled_cutouts("des", number, seed, 2048, geometry).cutouts
    assert sample.label is not None
    return np.stack([through_viewer(image, look.full_colour) for image in sample.images]), sample.label


def through_viewer(image: NDArray[np.uint8], full_colour: bool) -> NDArray[np.uint8]:
    """A native cut-out as the viewer enlarges and stores it; every fourth pixel, as the paper's sample has them."""
    buffer = io.BytesIO()
    large = Image.fromarray(image).resize((VIEWER_PIX, VIEWER_PIX), Image.Resampling.LANCZOS)
    large.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0 if full_colour else 2)
    return np.array(Image.open(buffer).resize((64, 64), Image.Resampling.NEAREST))


def simulated(looks: list[Look], tiles: int, seed: int) -> dict[Look, tuple[NDArray, NDArray]]:
    """Images and labels of `tiles` tiles for each look."""
    found = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for turn, look in enumerate(sorted(set(looks), key=astuple)):
            parts = list(pool.map(partial(one_tile, seed=seed + turn, look=look), range(tiles)))
            images, labels = zip(*parts, strict=True)
            found[look] = np.concatenate(images), np.concatenate(labels)
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
    looks: list[Look], labels: NDArray[np.int8], made: dict[Look, tuple[NDArray, NDArray]]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """For each real image a simulated one of its look and class; unlabelled ones are of either class by turns."""
    rng = np.random.default_rng(1)
    images, fields = [], []
    for look, (pictures, kinds) in made.items():
        wanted = labels[[other == look for other in looks]]
        classes = np.where(wanted == UNKNOWN, np.arange(len(wanted)) % 2, wanted)
        for kind in (0, 1):
            pool = np.flatnonzero(kinds == kind)
            images.append(pictures[rng.choice(pool, int((classes == kind).sum()), replace=False)])
        fields.append(np.full(len(wanted), look.fov_arcsec, np.float32))
    return np.concatenate(images), np.concatenate(fields)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--tiles", type=int, default=16)
    parser.add_argument("--seed", type=int, default=404)
    wanted = parser.parse_args()
    print(machine())
    images, looks, labels = real(wanted.real)
    made = simulated(looks, wanted.tiles, wanted.seed)
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
        chosen = [look for look, row in zip(looks, rows, strict=True) if row]
        ours, _ = bring_to_field(*matched(chosen, labels[rows], made), geometry)
        theirs, _ = bring_to_field(images[rows], np.array([look.fov_arcsec for look in chosen], np.float32), geometry)
        print(f"| {name} | {rows.sum()} | {separability(theirs, ours):.3f} |", flush=True)


if __name__ == "__main__":
    main()
