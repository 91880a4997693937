"""Images seen anew keep what matters: where, how bright, what is blank."""

from __future__ import annotations

import numpy as np
import torch

from deepshadows.model.augmentation import SHIFT_PIX, observed_anew
from tests.model.blobs import blobs


def test_the_same_seed_gives_the_same_images_and_another_others() -> None:
    images = torch.from_numpy(blobs(24)[0])
    first, again, other = (observed_anew(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape


def test_the_input_is_left_alone() -> None:
    images = torch.from_numpy(blobs(8)[0])
    before = images.clone()
    observed_anew(images, np.random.default_rng(3))
    assert torch.equal(images, before)


def test_blank_sky_stays_blank_sky() -> None:
    images = torch.full((200, 64, 64, 3), 32, dtype=torch.uint8)
    seen = observed_anew(images, np.random.default_rng(4)).float()
    assert abs(float(seen.mean()) - 32) < 0.5
    assert float((seen.mean((1, 2, 3)) - 32).abs().max()) < 4


def test_a_source_stays_near_its_place_and_keeps_most_of_its_light() -> None:
    rows, columns = np.mgrid[:64, :64] - 31.5
    image = 32 + 120 * np.exp(-(rows**2 + columns**2) / 60)
    images = torch.from_numpy(np.repeat(np.rint(image).astype(np.uint8)[None, :, :, None], 100, 0).repeat(3, 3))
    seen = observed_anew(images, np.random.default_rng(5)).float().mean(3).numpy() - 32
    light = np.clip(seen - 8, 0, None)
    total = light.sum(axis=(1, 2))
    x, y = (light * columns).sum(axis=(1, 2)) / total, (light * rows).sum(axis=(1, 2)) / total
    assert max(abs(x).max(), abs(y).max()) < SHIFT_PIX + 1
    expected = np.clip(image - 40, 0, None).sum()
    assert 0.7 < np.median(total) / expected < 1.3
