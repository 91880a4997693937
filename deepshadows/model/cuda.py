"""The engines of NVIDIA GPUs: the fp32 reference, and bf16 as a CUDA graph. No Ray, no files.

Pixels cross PCIe as uint8, from pinned memory, on a stream of their own: while a batch is computed, the next is copied.
No GPU was at hand: what can be tested without one is the arithmetic.
"""

from __future__ import annotations

import copy
import threading
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deepshadows.model.engines import EXACT_BATCH, EngineUnavailableError, Forward, LastLayer, Outputs
from deepshadows.model.folding import fold
from deepshadows.model.network import DeepShadowsNet, to_input
from deepshadows.model.uncertainty import Uncertainty

WARM_UPS = 3
"""Calls before a graph is captured: cuDNN chooses its algorithms in them."""


class MixedNet:
    """From pixels to the hidden layer in bf16, channels-last; the first convolution is fp32, see `engines`."""

    def __init__(self, net: DeepShadowsNet, device: torch.device) -> None:
        folded = fold(copy.deepcopy(net).eval())
        with torch.inference_mode():
            self._blocks = [
                (
                    block.kernel.to(device, torch.bfloat16 if depth else torch.float32).contiguous(
                        memory_format=torch.channels_last
                    ),
                    *(
                        values.to(device, torch.bfloat16 if depth else torch.float32).view(1, -1, 1, 1)
                        for values in (block.bias, block.sign, block.shift)
                    ),
                )
                for depth, block in enumerate(folded.blocks)
            ]
            self._hidden = folded.hidden.to(device, torch.bfloat16)
            self._hidden_bias = folded.hidden_bias.to(device, torch.bfloat16)

    def __call__(self, images_NHWC: Tensor) -> Tensor:
        """uint8 (N, 64, 64, 3) -> bf16 (N, 1024)."""
        x_NCHW = images_NHWC.permute(0, 3, 1, 2).float()
        for kernel, bias, sign, shift in self._blocks:
            x_NCHW = F.conv2d(x_NCHW.to(kernel.dtype), kernel, bias.flatten(), padding=1).relu_()
            x_NCHW = F.max_pool2d(x_NCHW.mul_(sign), 2).add_(shift)
        return F.linear(x_NCHW.permute(0, 2, 3, 1).flatten(1), self._hidden, self._hidden_bias).relu_()


class CudaEngine:
    """Batches alternate between two slots, each with pinned and device memory; outputs come back once a call.

    Raises
    ------
    EngineUnavailableError
        No CUDA device is visible, or it does not take the graph.
    """

    def __init__(
        self, net: DeepShadowsNet, uncertainty: Uncertainty | None = None, *, exact: bool, batch_size: int
    ) -> None:
        if not torch.cuda.is_available():
            raise EngineUnavailableError("no CUDA device is visible; use --precision exact|fast without GPUs")
        device = torch.device("cuda")
        self._exact = exact
        self._last = LastLayer(net, uncertainty, device)
        self._forward = _eager(net, device) if exact else MixedNet(net, device)
        self._copies = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._turn = threading.Lock()
        self.name = (
            f"torch-{torch.__version__} {torch.cuda.get_device_name(device)} {'fp32' if exact else 'bf16 graph'}"
        )
        with torch.inference_mode(), self._settings():
            try:
                self._slots = [_Slot(self, EXACT_BATCH if exact else batch_size, device) for _ in range(2)]
            except RuntimeError as error:
                raise EngineUnavailableError(f"{self.name}: {str(error).splitlines()[0]}") from error

    def measure(self, images: NDArray[np.uint8]) -> Outputs:
        """Of images uint8 (N, 64, 64, 3), any N."""
        size = len(self._slots[0].pinned)
        parts = []
        with self._turn, torch.inference_mode(), self._settings():
            for turn, start in enumerate(range(0, len(images), size)):
                parts.append(self._slots[turn % 2].run(images[start : start + size], self._copies))
            columns = torch.cat(parts).cpu().numpy() if parts else np.empty((0, self._last.columns), np.float32)
        return Outputs.of(columns)

    def compute(self, images_NHWC: Tensor) -> Tensor:
        """Columns of `Outputs`, on the device."""
        return self._last.of_images(self._forward(images_NHWC), images_NHWC)

    @property
    def graphed(self) -> bool:
        return not self._exact

    def _settings(self) -> AbstractContextManager[None]:
        return torch.backends.cudnn.flags(
            enabled=True, benchmark=not self._exact, deterministic=self._exact, allow_tf32=False
        )


class _Slot:
    """Memory for one batch, and the graph that computes it."""

    def __init__(self, engine: CudaEngine, size: int, device: torch.device) -> None:
        self._compute = engine.compute
        self.pinned = torch.zeros((size, 64, 64, 3), dtype=torch.uint8, pin_memory=True)
        self._images = torch.zeros_like(self.pinned, device=device)
        self._copied, self._computed = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._graph = self._captured() if engine.graphed else None
        self._computed.record()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """As torch documents it: warmed up on another stream, then captured with memory that stays in place."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._compute(self._images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._columns = self._compute(self._images)
        return graph

    def run(self, part: NDArray[np.uint8], copies: torch.cuda.Stream) -> Tensor:
        """Start with `part`, at most the slot's size; the result is there once the current stream has come so far."""
        self._copied.synchronize()  # what was in the pinned memory has left it
        self.pinned.numpy()[: len(part)] = part
        self.pinned.numpy()[len(part) :] = 0
        copies.wait_event(self._computed)
        with torch.cuda.stream(copies):
            self._images.copy_(self.pinned, non_blocking=True)
            self._copied.record()
        torch.cuda.current_stream().wait_event(self._copied)
        if self._graph is None:
            columns = self._compute(self._images)
        else:
            self._graph.replay()
            columns = self._columns.clone()
        self._computed.record()
        return columns[: len(part)]


def _eager(net: DeepShadowsNet, device: torch.device) -> Forward:
    net = copy.deepcopy(net).eval().requires_grad_(False)
    net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda images: net.hidden_layer(to_input(images))
