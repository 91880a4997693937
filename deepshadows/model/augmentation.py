"""Training images as other telescopes, layers and file formats would show them. torch and Pillow; no Ray, no files.

The real cut-outs of one sky differ in ways that no galaxy decides: turned, shifted by the detection's error, drawn from
a finer or coarser grid, stored as JPEG, deeper or shallower. A network that has seen these keeps its scores.
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

GROUPS = 8
"""Parts of a batch that share one resampling: each is one call."""
SHARE_RESAMPLED = 0.75
COARSEST_PIX = 46
"""Side of the coarsest grid that 64 pixels are brought through: 0.73 arcsec a pixel."""
SHIFT_PIX = 2.5
SCALE = (0.94, 1.06)
SHARE_JPEG = 0.6
JPEG_QUALITY = (70, 96)
SHARE_FRAMED = 0.3
FRAME_PIX = 4
"""Widest border that is reflected, as where a field was smaller than the network's."""
SKY_LEVEL = 32.0
"""Blank sky in the stretch (0.127 of 255)."""


def turned(images_NHWC: Tensor, turns: NDArray[np.int64]) -> Tensor:
    """Each image after `turn % 4` quarter turns and, from 4 on, a flip."""
    result = torch.empty_like(images_NHWC)
    for turn in np.unique(turns):
        rows = torch.from_numpy(np.flatnonzero(turns == turn))
        part = torch.rot90(images_NHWC[rows], int(turn) % 4, (1, 2))
        result[rows] = part.flip(2) if turn >= 4 else part
    return result


def observed_anew(images_NHWC: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift, rescale, resample, tint, add noise, store as JPEG: each with its own chance and amount.

    Parameters
    ----------
    images_NHWC : uint8 (N, 64, 64, 3)

    Returns
    -------
    uint8 (N, 64, 64, 3)
    """
    x_NCHW = images_NHWC.permute(0, 3, 1, 2).float()
    x_NCHW = torch.cat([_moved(part, rng) for part in x_NCHW.chunk(GROUPS)])
    count = len(x_NCHW)
    gain = torch.from_numpy(rng.lognormal(0, 0.06, (count, 3, 1, 1)) * rng.lognormal(0, 0.08, (count, 1, 1, 1)))
    offset = torch.from_numpy(rng.normal(0, 1.0, (count, 3, 1, 1)))
    noise = torch.from_numpy(rng.exponential(1.5, (count, 1, 1, 1)) * (rng.random((count, 1, 1, 1)) < 0.5))
    x_NCHW = SKY_LEVEL + (x_NCHW - SKY_LEVEL) * gain.float() + offset.float()
    grain = torch.from_numpy(rng.standard_normal(tuple(x_NCHW.shape), dtype=np.float32))
    x_NCHW = x_NCHW + grain * noise.float() * torch.tensor([1.5, 0.8, 1.0]).view(1, 3, 1, 1)
    images = x_NCHW.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous()
    for row in np.flatnonzero(rng.random(count) < SHARE_FRAMED):
        _frame(images[row], int(rng.integers(1, FRAME_PIX + 1)))
    for row in np.flatnonzero(rng.random(count) < SHARE_JPEG):
        images[row] = torch.from_numpy(_as_jpeg(images[row].numpy(), int(rng.integers(*JPEG_QUALITY))))
    return images


def _moved(x_NCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Shifted and rescaled a little, and most often brought through a coarser grid."""
    if not len(x_NCHW):
        return x_NCHW
    side = x_NCHW.shape[-1]
    scale = rng.uniform(*SCALE, len(x_NCHW))
    shift = rng.uniform(-SHIFT_PIX, SHIFT_PIX, (len(x_NCHW), 2)) * 2 / side
    theta = np.zeros((len(x_NCHW), 2, 3), np.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    coarse = side if rng.random() > SHARE_RESAMPLED else int(rng.integers(COARSEST_PIX, side))
    if coarse < side:
        x_NCHW = F.interpolate(x_NCHW, size=(coarse, coarse), mode="bilinear", antialias=True, align_corners=False)
    grid = F.affine_grid(torch.from_numpy(theta), [len(x_NCHW), 3, side, side], align_corners=False)
    return F.grid_sample(x_NCHW, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _frame(image_HWC: Tensor, width: int) -> None:
    """Replace a border by the reflection of what lies inside it, in place."""
    side = len(image_HWC)
    for axis in (0, 1):
        view = image_HWC.transpose(0, axis)
        view[:width] = view[width : 2 * width].flip(0)
        view[side - width :] = view[side - 2 * width : side - width].flip(0)


def _as_jpeg(image_HWC: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))
