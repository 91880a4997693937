"""How well OUT_OF_DOMAIN tells wrong images from right ones, on simulated tiles that no network has seen.

    python -m tests.benchmarks.bench_domain [CHECKPOINT] [--tiles 12] [--seed 3] [--real DIR]

Of the same detections are cut: the network's own field (right), half and twice of it, another survey's stretch and a
linear one; the rest is made from the right ones or from nothing. AUROC of the distance, and the share that is flagged.
With DIR, a folder of npz files, also the share of those real cut-outs that is flagged.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from deepshadows.model.scorer import load_scorer
from deepshadows.settings import DEFAULT_NETWORK
from deepshadows.sky import stretch
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.shards import read_npz
from deepshadows.sky.stretch import stretch_named
from deepshadows.verbs.simulate_cutouts import labelled_cutouts
from tests.benchmarks.bench_classify import machine

Images = NDArray[np.uint8]
SIZE_PIX = 1536


def cut(geometry: Geometry, tiles: int, seed: int) -> Images:
    parts = [labelled_cutouts("des", number, seed, SIZE_PIX, geometry).cutouts.images for number in range(tiles)]
    return np.concatenate(parts)


def wrong_images(own: Geometry, right: Images, tiles: int, seed: int) -> dict[str, Images]:
    """What a network of this geometry should flag, of the same detections as the right ones."""
    rng = np.random.default_rng(1)
    wide = right.astype(np.int64)
    sky = np.median(right, axis=(1, 2), keepdims=True)
    noise = rng.normal(sky, 6, right.shape)
    return {
        "half the field": cut(replace(own, fov_arcsec=own.fov_arcsec / 2), tiles, seed),
        "twice the field": cut(replace(own, fov_arcsec=own.fov_arcsec * 2), tiles, seed),
        "HSC stretch": cut(replace(own, stretch=stretch.HSC), tiles, seed),
        "blank": np.broadcast_to(sky, right.shape).astype(np.uint8),
        "noise only": np.clip(np.rint(noise), 0, 255).astype(np.uint8),
        "saturated": np.clip(wide * 8, 0, 255).astype(np.uint8),
        "five times steeper": np.clip((wide - 32) * 5 + 32, 0, 255).astype(np.uint8),
        "five times flatter": np.clip((wide - 32) // 5 + 32, 0, 255).astype(np.uint8),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", nargs="?", default=DEFAULT_NETWORK)
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--real", type=Path, help="folder of real cut-outs, *.npz")
    wanted = parser.parse_args()
    print(machine())
    scorer = load_scorer(wanted.checkpoint, precision="exact")
    card = scorer.card
    own = Geometry(fov_arcsec=card.fov_arcsec, bands=card.bands, stretch=stretch_named(card.stretch))
    right = cut(own, wanted.tiles, wanted.seed)
    expected = scorer.score(right).domain_distance
    print(f"{len(right)} right ones, {np.mean(expected > 1):.1%} of them flagged")
    print("| wrong | AUROC | flagged |\n|---|---|---|")
    for name, images in wrong_images(own, right, wanted.tiles, wanted.seed).items():
        found = scorer.score(images).domain_distance
        truth = np.repeat([0, 1], [len(expected), len(found)])
        auroc = roc_auc_score(truth, np.concatenate([expected, found]))
        print(f"| {name} | {auroc:.3f} | {np.mean(found > 1):.1%} |")
    for path in sorted(wanted.real.glob("*.npz")) if wanted.real else ():
        found = scorer.score(read_npz(str(path), own).images).domain_distance
        print(f"{path.stem}: {len(found)} real ones, {np.mean(found > 1):.1%} of them flagged")


if __name__ == "__main__":
    main()
