"""The fast engine of CPUs with dot products of bf16 and int8: the network in C, an image at a time. No Ray.

oneDNN and OpenVINO run a layer over a whole batch, so what lies between two layers leaves the cache. Here an image goes
through all convolutions before the next begins, and 8 pixels by 32 channels stay in registers until they are pooled.
The first convolution multiplies the pixels as they come, uint8, with weights of 16 bits: what bf16 rounds off of them
flipped decisions. All other layers are bf16 with sums in fp32. A row's scores do not depend on the rows beside it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepshadows import native
from deepshadows.model.domain import SUMMARIES
from deepshadows.model.engines import CpuEngine, Engine, EngineUnavailableError, LastLayer
from deepshadows.model.folding import Folded, FoldedBlock, fold
from deepshadows.model.network import HIDDEN, DeepShadowsNet
from deepshadows.model.uncertainty import Uncertainty

NEEDED = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni", "avx512_bf16")
"""Names of torch for what the C is written for: Zen 4, Sapphire Rapids and later."""
SOURCES = tuple(Path(__file__).with_name(name) for name in ("fused.c", "summaries.c"))
PANEL = 32
"""Outputs whose weights lie together."""
TILE = 8
"""Images that the dense layer takes at once: buffers have room for so many more."""
INT16 = 32_512
"""The largest weight of the first convolution: 127 * 256, so that both of its bytes are signed ones."""


def fused_cpu(net: DeepShadowsNet, uncertainty: Uncertainty | None = None, *, batch_size: int, threads: int) -> Engine:
    """The engine.

    Raises
    ------
    EngineUnavailableError
        The CPU lacks the arithmetic, there is no C compiler, or a batch norm's scale is negative.
    """
    options = flags()
    folded = fold(net.eval())
    if not all(bool((block.sign > 0).all()) for block in folded.blocks):
        raise EngineUnavailableError("a batch norm of this network has a scale that is not positive")
    try:
        library = native.load(SOURCES, options)
    except native.CannotCompileError as error:
        raise EngineUnavailableError(str(error)) from error
    weights, last = _Weights(folded), LastLayer(net, uncertainty)
    return CpuEngine(
        "cpu bf16 fused",
        lambda: _FusedLane(library, weights, last, batch_size),
        columns=last.columns,
        batch_size=batch_size,
        threads=threads,
    )


def flags() -> tuple[str, ...]:
    """What the compiler is told of this CPU.

    Raises
    ------
    EngineUnavailableError
        It lacks an instruction that the C uses.
    """
    has = torch.cpu.get_capabilities()
    if missing := [name for name in NEEDED if not has.get(name, False)]:
        raise EngineUnavailableError(f"this CPU has no {', '.join(missing)}")
    return tuple(f"-m{name.replace('_', '')}" for name in NEEDED)


class _Layer(ctypes.Structure):
    """`layer` of fused.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("kernel", "scale", "bias", "shift")]


class _Weights:
    """Weights in the order in which the C reads them."""

    def __init__(self, folded: Folded) -> None:
        first, *others = folded.blocks
        nothing = torch.zeros(HIDDEN)
        parts = [
            (*_first_kernel(first), first.bias, first.shift),
            *((_panels(_by_row(block)), torch.ones_like(block.bias), block.bias, block.shift) for block in others),
            (_panels(folded.hidden.t().unsqueeze(0)), nothing + 1, folded.hidden_bias, nothing),
        ]
        self._kept = [[tensor.contiguous() for tensor in part] for part in parts]  # what the pointers point to
        self.layers = (_Layer * len(parts))(*(_Layer(*(one.data_ptr() for one in part)) for part in self._kept))


def _by_row(block: FoldedBlock) -> Tensor:
    """(3 rows, 3 columns x inputs, outputs): three neighbours of a row lie together in memory."""
    return block.kernel.permute(2, 3, 1, 0).flatten(1, 2)


def _panels(kernel_RIO: Tensor) -> Tensor:
    """bf16 (outputs / 32, R, inputs / 2, 32, 2) from (R, inputs, outputs)."""
    rows, inputs, outputs = kernel_RIO.shape
    return kernel_RIO.reshape(rows, inputs // 2, 2, outputs // PANEL, PANEL).permute(3, 0, 1, 4, 2).bfloat16()


def _first_kernel(block: FoldedBlock) -> tuple[Tensor, Tensor]:
    """int8 (3 rows, 3 fours of inputs, low and high byte, 16 outputs, 4), the last four filled up; scales (16,)."""
    kernel_RIO = torch.nn.functional.pad(_by_row(block), (0, 0, 0, 3))
    scale = kernel_RIO.abs().amax((0, 1)).clamp(min=1e-30) / INT16
    whole = torch.round(kernel_RIO / scale).int()
    high = (whole + 128) >> 8
    parts = torch.stack([whole - (high << 8), high]).to(torch.int8)
    return parts.view(2, 3, 3, 4, -1).permute(1, 2, 0, 4, 3), scale


class _FusedLane:
    """Runs the C on batches of at most `batch_size`, with buffers of its own."""

    def __init__(self, library: ctypes.CDLL, weights: _Weights, last: LastLayer, batch_size: int) -> None:
        self._library, self._weights, self._last = library, weights, last
        room = batch_size + TILE
        self._features = torch.zeros((room, 4096), dtype=torch.bfloat16)
        self._hidden = torch.zeros((room, HIDDEN))
        self._summaries = torch.zeros((room, len(SUMMARIES)))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = np.ascontiguousarray(images)
        pixels, count = ctypes.c_void_p(images.ctypes.data), ctypes.c_long(len(images))
        features, hidden, summed = (
            ctypes.c_void_p(buffer.data_ptr()) for buffer in (self._features, self._hidden, self._summaries)
        )
        self._library.hidden_layer(self._weights.layers, pixels, count, features, hidden)
        if self._last.uncertain:
            self._library.summaries(pixels, count, summed)
        columns = self._last(self._hidden, self._summaries)  # all of the buffer: torch's bits depend on how many rows
        found: NDArray[np.float32] = columns[: len(images)].numpy()
        return found
