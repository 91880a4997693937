"""The flag OUT_OF_DOMAIN: what is like the training images passes, what is not is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deepshadows.model import domain
from deepshadows.model.augmentation import observed_anew
from deepshadows.model.domain import SUMMARIES, Domain, summaries
from deepshadows.model.metrics import Judged, auc
from tests.model.blobs import blobs

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def fitted() -> Domain:
    return domain.fit(blobs(300, seed=5)[0])


def distances(fitted: Domain, images: Images) -> NDArray[np.float32]:
    return fitted.distance(summaries(torch.from_numpy(images)).numpy())


def zoomed(images: Images) -> Images:
    """The middle quarter on all pixels: half the field."""
    return images[:, 16:48, 16:48].repeat(2, axis=1).repeat(2, axis=2)


def reflected(images: Images) -> Images:
    """Twice the field, where the outer half is the inner mirrored, as it is where a field is too small."""
    small = images.reshape(-1, 32, 2, 32, 2, 3).mean((2, 4)).astype(np.uint8)
    return np.pad(small, ((0, 0), (16, 16), (16, 16), (0, 0)), mode="symmetric")


def stretched(images: Images, factor: float) -> Images:
    return np.clip((images.astype(np.float64) - 32) * factor + 32, 0, 255).astype(np.uint8)


WRONG = {
    "blank": lambda images: np.full_like(images, 32),
    "black": np.zeros_like,
    "half the field": zoomed,
    "twice the field": reflected,
    "steeper stretch": lambda images: stretched(images, 5),
    "flatter stretch": lambda images: stretched(images, 0.2),
    "noise": lambda images: np.random.default_rng(1).normal(32, 5, images.shape).clip(0, 255).astype(np.uint8),
    "uniform noise": lambda images: np.random.default_rng(1).integers(0, 256, images.shape, dtype=np.uint8),
    "saturated": lambda images: np.clip(images.astype(np.int64) * 8, 0, 255).astype(np.uint8),
}


def test_images_of_the_same_sky_pass(fitted: Domain) -> None:
    assert np.mean(distances(fitted, blobs(500, seed=6)[0]) > 1) <= 0.01


def test_images_of_another_grid_depth_and_format_pass(fitted: Domain) -> None:
    images = observed_anew(torch.from_numpy(blobs(300, seed=7)[0]), np.random.default_rng(2)).numpy()
    assert np.mean(distances(fitted, images) > 1) <= 0.1


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_ranks_above_what_is_right(fitted: Domain, kind: str) -> None:
    right = blobs(200, seed=8)[0]
    wrong = WRONG[kind](right)
    values = np.concatenate([distances(fitted, right), distances(fitted, wrong)]).astype(np.float64)
    value = auc(Judged(probabilities=values, labels=np.repeat([0, 1], 200).astype(np.int8)))
    assert value is not None
    assert value >= 0.95


def test_a_distance_depends_on_its_own_image_alone(fitted: Domain) -> None:
    images = blobs(97, seed=9)[0]
    whole = distances(fitted, images)
    order = np.random.default_rng(1).permutation(97)
    np.testing.assert_array_equal(distances(fitted, images[order]), whole[order])
    for size in (1, 31, 32, 33):
        parts = [distances(fitted, images[start : start + size]) for start in range(0, 97, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_summaries_are_exact() -> None:
    """Whole numbers that float32 holds, for the brightest and the roughest images, too."""
    rng = np.random.default_rng(1)
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    images = np.concatenate(
        [
            rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8),
            np.full((1, 64, 64, 3), 255, np.uint8),
            np.repeat(checkers[None, :, :, None], 3, axis=3),
        ]
    )
    found = summaries(torch.from_numpy(images)).numpy()
    grey = images.astype(np.int64).sum(3)
    named = {name: found[:, column] for column, name in enumerate(SUMMARIES)}
    assert found.shape == (5, len(SUMMARIES)) == (5, len(named))
    assert (found == np.rint(found)).all()
    assert found.max() < 2**24
    np.testing.assert_array_equal(named["sum of r"], images[..., 1].astype(np.int64).sum((1, 2)))
    second = grey[:, ::2]
    np.testing.assert_array_equal(named["steps of 4 pixels"], np.abs(second[..., 4:] - second[..., :-4]).sum((1, 2)))
    np.testing.assert_array_equal(named["curvature"], np.abs(np.diff(second, n=2, axis=2)).sum((1, 2)))
    np.testing.assert_array_equal(named["brightest pixel"], second.max((1, 2)))
    small = grey.reshape(5, 32, 2, 32, 2).sum((2, 4))
    np.testing.assert_array_equal(named["steps of blocks of 2"], np.abs(np.diff(small, axis=2)).sum((1, 2)))
    blocks = grey.reshape(5, 8, 8, 8, 8).sum((2, 4))
    np.testing.assert_array_equal(named["brightest block of 8"], blocks.max((1, 2)))
    np.testing.assert_array_equal(named["darkest block of 8"], blocks.min((1, 2)))
    np.testing.assert_array_equal(named["bright pixels"], (second >= 750).sum((1, 2)))
    np.testing.assert_array_equal(named["dark pixels"], (images[:, ::2].min(3) <= 3).sum((1, 2)))


def by_hand(*forms: NDArray[np.float64]) -> Domain:
    """Two summaries whose logarithms scatter by 1 and 2 around 0."""
    return Domain(
        mean=np.zeros(2),
        whitening=np.diag([1.0, 0.5]),
        forms=np.stack(forms),
        typical=np.array([1.0, 0.0, 0.0]),
        limits=np.array([3.0, 10.0, 20.0]),
    )


def test_distance_by_hand() -> None:
    """e - 1 is one deviation of the first, e^4 - 1 two of the second; a length of 1 counts as 0, of 3 as 1."""
    summed = np.array([[0, 0], [np.e - 1, 0], [0, np.expm1(4)], [np.expm1(3), np.expm1(8)]], np.float32)
    nothing = np.zeros((3, 3))
    nothing[0, 0] = -100.0
    np.testing.assert_allclose(by_hand(nothing, nothing).distance(summed), [-0.5, 0, 0.5, 2.0], rtol=1e-6, atol=1e-6)


def test_the_forms_by_hand() -> None:
    """5 + 2 u2 + 3 u1 u2 of 10, or of 20, that are the limit: the larger of length and forms counts."""
    nothing = np.full((3, 3), -100.0)
    form = np.array([[5.0, 0.0, 2.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    summed = np.array([[0, 0], [np.e - 1, np.expm1(2)], [np.expm1(9), np.expm1(2)]], np.float32)
    # u = (0, 0), (1, 1), (9, 1): cut off at 6 in the forms, not in the length
    length = (np.sqrt(82) - 1) / 2
    first, second = by_hand(form, nothing), by_hand(nothing, form)
    np.testing.assert_allclose(first.distance(summed), [0.5, 1.0, max(length, 25 / 10)], rtol=1e-6)
    np.testing.assert_allclose(second.distance(summed), [0.25, 0.5, max(length, 25 / 20)], rtol=1e-6)


def test_few_images_are_enough() -> None:
    small = domain.fit(blobs(14, seed=3)[0])
    assert np.isfinite(small.whitening).all()
    assert distances(small, np.zeros((1, 64, 64, 3), np.uint8))[0] > 1
