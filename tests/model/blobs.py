"""Labelled 64x64 images small enough to make in a test: centred smudges against off-centre stars and blank sky."""

from __future__ import annotations

import os
import shlex
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from deepshadows.model.network import DeepShadowsNet
from deepshadows.sky.shards import Cutouts

NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which(shlex.split(os.environ.get("CC") or "cc")[0]) is None, reason="no C compiler"
)
"""Where there is one, C that it does not take is a failure, not a reason to skip."""


def blobs(count: int, seed: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """uint8 (count, 64, 64, 3) and labels int8 (count,), every second one a smudge."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int8)
    rows, columns = np.mgrid[:64, :64]
    images = rng.normal(32, 5, (count, 64, 64, 3))
    for image, label in zip(images, labels, strict=True):
        centre = (31.5, 31.5) if label else rng.choice([8, 55], 2)
        width, height = (rng.uniform(5, 9), rng.uniform(30, 60)) if label else (rng.uniform(1, 3), rng.uniform(60, 200))
        radius2 = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
        image += height * np.exp(-0.5 * radius2 / width**2)[:, :, None]
    return np.clip(images, 0, 255).astype(np.uint8), labels


def blob_cutouts(count: int, seed: int = 1) -> Cutouts:
    """The same with ids and positions on a square of 2 by 2 degrees."""
    images, labels = blobs(count, seed)
    rng = np.random.default_rng(seed)
    return Cutouts(
        object_id=pa.array(np.arange(count)),
        ra=rng.uniform(50, 52, count),
        dec=rng.uniform(-31, -29, count),
        images=images,
        flags=np.zeros(count, np.int32),
        label=labels,
        fov_arcsec=33.5,
        stretch="des-1",
    )


def seasoned_net(seed: int = 1, *, lowest_scale: float = 0.5) -> DeepShadowsNet:
    """A network whose batch norms look like those of a trained one."""
    net = DeepShadowsNet(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, norm in net.blocks():
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.uniform_(0.1, 0.5, generator=generator)
            norm.running_var.uniform_(0.2, 1.5, generator=generator)
            norm.weight.uniform_(lowest_scale, 1.5, generator=generator)
            norm.bias.uniform_(-0.3, 0.3, generator=generator)
    return net.eval()
