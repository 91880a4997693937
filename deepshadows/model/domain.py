"""Does an image look like those the network was trained on? A distance from a few summaries of it. No Ray, no files.

The summaries are sums of whole numbers below 2^24, so float32 holds them exactly: on every device, in every order of
addition and with every engine they are the same bits, and so is the flag.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from torch import Tensor

from deepshadows.model.augmentation import observed_anew

LAGS = (1, 2, 4, 8)
BRIGHT, DARK = 750, 3
"""A pixel whose channels sum to BRIGHT (of 765) is as good as saturated; one with a channel at DARK is cut off."""
EVERY_ROWS = 2
"""Rows between those that steps and pixels are measured on: what the summaries cost."""
SUMMARIES = (
    *(f"sum of {band}" for band in "zrg"),
    *(f"steps of {lag} pixels" for lag in LAGS),
    "curvature",
    *(f"colour steps of {lag} pixels" for lag in (1, 4)),
    "brightest pixel",
    "bright pixels",
    "dark pixels",
    *(text for side in (2, 4, 8) for text in (f"brightest block of {side}", f"steps of blocks of {side}")),
    "darkest block of 8",
)
"""What each column of `summaries` is; all but sums and blocks look at every second row."""
FIT_ROWS = 2000
FINER_NOISE, GRAIN_PIX = (0.5, 1.5), (0.5, 1.0)
QUANTILE = 0.997
SURE = (1, 1, 3)
"""Times the quantile that counts as 1: a layer's resampling makes grain like that of finer pixels."""
TYPICAL = (0.5, 0.98, 0.98)
"""The forms speak only where they are sure, or they drown the length: the AUROC was lower with medians of all."""
FARTHEST = 6.0
"""Coordinates are cut off here before products of them are taken."""
SEED = 1
_CHUNK = 64
"""Images whose pixels stay in cache."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The cloud that the training images form, and the sides of it where images of twice and of half the field lie.

    Attributes
    ----------
    mean : float64 (F,)
        Of the logarithms of the summaries.
    whitening : float64 (F, F)
        Lower triangle; u = whitening @ (x - mean) has unit covariance, so its length is the Mahalanobis distance.
    forms : float64 (2, F + 1, F + 1)
        Upper triangles; the quadratic forms of (1, u) that tell images of twice and of half the field from these.
    typical, limits : float64 (3,)
        Of the length and of each form: what counts as 0 of the distance, and as 1.
    """

    mean: NDArray[np.float64]
    whitening: NDArray[np.float64]
    forms: NDArray[np.float64]
    typical: NDArray[np.float64]
    limits: NDArray[np.float64]

    @property
    def spread(self) -> NDArray[np.float64]:
        """Standard deviations of the logarithms of the summaries over the training images, (F,)."""
        inverse = np.linalg.inv(self.whitening)
        return np.asarray(np.sqrt((inverse**2).sum(axis=1)))

    def distance(self, summed: NDArray[np.float32]) -> NDArray[np.float32]:
        """How unlike the training images: about 0 is typical of these, above 1 is out of the domain.

        Parameters
        ----------
        summed : float32 (N, F)
            From `summaries`.

        Returns
        -------
        float32 (N,)
            Each value depends on its own row alone, bit for bit: no matrix product, whose order of addition depends
            on the number of rows.
        """
        measured = self._measured(summed)
        parts = [
            (value - middle) / (limit - middle)
            for value, middle, limit in zip(measured, self.typical, self.limits, strict=True)
        ]
        return np.asarray(np.max(parts, axis=0), dtype=np.float32)

    def _measured(self, summed: NDArray[np.float32]) -> list[NDArray[np.float64]]:
        """Length and quadratic forms, (N,) each."""
        off = (np.log1p(summed.astype(np.float64)) - self.mean).T
        count = len(summed)
        squares = np.zeros(count)
        v = [np.ones(count)]
        for row, weights in enumerate(self.whitening):
            u = np.zeros(count)
            for column in range(row + 1):
                u += off[column] * weights[column]
            squares += u * u
            v.append(np.clip(u, -FARTHEST, FARTHEST))
        measured = [np.sqrt(squares)]
        for triangle in self.forms:
            form = np.zeros(count)
            for one, weights in enumerate(triangle):
                inner = np.zeros(count)
                for other in range(one, len(v)):
                    inner += v[other] * weights[other]
                form += v[one] * inner
            measured.append(form)
        return measured


def summaries(images_NHWC: Tensor) -> Tensor:
    """uint8 (N, 64, 64, 3) -> float32 (N, F), see `SUMMARIES`; on the device of the images."""
    if images_NHWC.device.type == "cpu" and len(images_NHWC) > _CHUNK:
        return torch.cat([summaries(chunk) for chunk in torch.split(images_NHWC, _CHUNK)])
    flat_NHL = images_NHWC.reshape(-1, 64, 192).float()  # a row is 64 pixels of 3 channels: long runs are fast
    pairs_NHL = flat_NHL[:, ::2] + flat_NHL[:, 1::2]
    z, r, g = (flat_NHL[:, ::EVERY_ROWS, channel::3].contiguous() for channel in range(3))
    colour, grey = z - g, (z + r).add_(g)
    bright = (grey - (BRIGHT - 1)).clamp_(0, 1).sum((1, 2))
    dark = torch.minimum(torch.minimum(z, r), g).neg_().add_(DARK + 1).clamp_(0, 1).sum((1, 2))
    columns = [*pairs_NHL.sum(1).view(-1, 64, 3).sum(1).unbind(1)]
    columns += [_steps(grey, lag) for lag in LAGS]
    columns.append(_steps(grey[:, :, 1:] - grey[:, :, :-1], 1))
    columns += [_steps(colour, lag) for lag in (1, 4)]
    columns += [grey.amax((1, 2)), bright, dark]
    block = pairs_NHL[:, :, ::3] + pairs_NHL[:, :, 1::3] + pairs_NHL[:, :, 2::3]
    block = block[:, :, ::2] + block[:, :, 1::2]
    for side in (2, 4, 8):
        if side > 2:
            block = block[:, ::2] + block[:, 1::2]
            block = block[:, :, ::2] + block[:, :, 1::2]
        columns += [block.amax((1, 2)), _steps(block, 1)]
    columns.append(block.amin((1, 2)))
    return torch.stack(columns, 1)


def _steps(plane_NHW: Tensor, lag: int) -> Tensor:
    """Sum of the differences between values `lag` columns apart, shape (N,)."""
    return (plane_NHW[:, :, lag:] - plane_NHW[:, :, :-lag]).abs_().sum((1, 2))


def fit(images: NDArray[np.uint8]) -> Domain:
    """The domain of a training set.

    To the images as they are come the same observed anew: another grid, depth or JPEG alone is no reason for a flag. A
    distance from the cloud misses images of another field (noise and stars are within what depth and seeing vary), so
    quadratic forms are fitted to tell training images from themselves shrunk, with others around, and from their
    middles enlarged.

    Parameters
    ----------
    images : uint8 (N, 64, 64, 3)
        Training images, at least 2; of more than 2000 an even choice is taken.
    """
    from sklearn.covariance import ledoit_wolf  # here: scorers need none of it, and it takes a second

    chosen = images[np.linspace(0, len(images) - 1, min(len(images), FIT_ROWS)).astype(np.intp)]
    anew = observed_anew(torch.from_numpy(chosen), np.random.default_rng(SEED)).numpy()
    inside = np.concatenate([chosen, anew])
    summed, *others = (summaries(torch.from_numpy(part)).numpy() for part in (inside, shrunk(chosen), enlarged(chosen)))
    x = np.log1p(summed.astype(np.float64))
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-3
    covariance, _ = ledoit_wolf((x - mean) / spread)
    whitening = np.tril(np.linalg.inv(np.linalg.cholesky(covariance)) / spread)
    u, *u_others = (
        np.clip((np.log1p(part.astype(np.float64)) - mean) @ whitening.T, -FARTHEST, FARTHEST)
        for part in (summed, *others)
    )
    forms = np.stack([_telling(u, u_other) for u_other in u_others])
    whole = Domain(mean=mean, whitening=whitening, forms=forms, typical=np.zeros(3), limits=np.ones(3))
    measured = np.stack(whole._measured(summed))
    typical = np.array([np.quantile(values, share) for values, share in zip(measured, TYPICAL, strict=True)])
    limits = typical + np.array(SURE) * (np.quantile(measured, QUANTILE, axis=1) - typical)
    return replace(whole, typical=typical, limits=np.maximum(limits, typical + 1e-6))


def _telling(u: NDArray[np.float64], u_other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quadratic form of (1, u) that tells the second from the first best, (F + 1, F + 1) upper triangle."""
    from sklearn.linear_model import LogisticRegression

    size = u.shape[1] + 1
    upper = np.triu_indices(size)
    v = np.concatenate([np.concatenate([u, u_other]), np.ones((len(u) + len(u_other), 1))], axis=1)
    v = np.roll(v, 1, axis=1)
    products = v[:, upper[0]] * v[:, upper[1]]
    model = LogisticRegression(max_iter=300, class_weight="balanced")
    model.fit(products[:, 1:], np.repeat([0, 1], [len(u), len(u_other)]))
    form = np.zeros((size, size))
    form[upper] = np.concatenate([model.intercept_, model.coef_[0]])
    return form


def shrunk(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each image on a quarter of the pixels, four others drawn from a fixed seed around it: twice the field."""
    rng = np.random.default_rng(SEED)
    small = np.rint(images.reshape(-1, 32, 2, 32, 2, 3).mean((2, 4))).astype(np.uint8)
    corners = [small[rng.permutation(len(small))] for _ in range(4)]
    result = np.concatenate([np.concatenate(corners[:2], axis=2), np.concatenate(corners[2:], axis=2)], axis=1)
    result[:, 16:48, 16:48] = small
    return result


def enlarged(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle quarter of each image on all pixels, with the noise that finer pixels have: half the field.

    Pixels of half the side have up to twice the noise; in coadds neighbours share it. How much there is, as a share of
    the image's own, and how wide its grain, is drawn anew for each image from a fixed seed.
    """
    rng = np.random.default_rng(SEED)
    result = np.empty_like(images)
    for number, image in enumerate(images.astype(np.float32)):
        smooth = zoom(image[16:48, 16:48], (2, 2, 1), order=1, grid_mode=True, mode="nearest")
        noise = np.median(np.abs(np.diff(image, axis=1)), axis=(0, 1)) / 0.954  # 0.954: the median for a sigma of 1
        width = rng.uniform(*GRAIN_PIX)
        grain = gaussian_filter(rng.normal(0, 1, image.shape), (width, width, 0))
        grain *= noise * rng.uniform(*FINER_NOISE) / grain.std()
        result[number] = np.clip(np.rint(smooth + grain), 0, 255)
    return result
