"""Ways to run the network: the fp32 reference, and faster ones that are checked against it. No Ray, no files.

An engine computes the hidden layer its own way; `LastLayer` makes of it what all of them return.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deepshadows.model.domain import SUMMARIES, summaries
from deepshadows.model.folding import FoldedBlock, fold
from deepshadows.model.network import DeepShadowsNet, to_input
from deepshadows.model.uncertainty import Uncertainty
from deepshadows.outcomes import Failure

EXACT_BATCH = 256
"""The reference always runs this shape, whatever the caller's batch, so a row never meets other arithmetic."""
CHUNK = 32
"""Images whose activations stay in cache: 5.9k images/s at 32 against 4.3k at 256 (2 Zen 4 cores, bf16)."""

Forward = Callable[[Tensor], Tensor]
"""uint8 (N, 64, 64, 3) -> hidden layer, float (N, 1024)."""
Lane = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Images of one batch, uint8 (N, 64, 64, 3) -> columns of `Outputs`. It may have buffers: one call at a time."""


@dataclass(frozen=True)
class Outputs:
    """What an engine says of N images.

    Attributes
    ----------
    logits : float32 (N,)
    variances : float32 (N,)
        Of the calibrated logit; NaN where the checkpoint states no uncertainty.
    summaries : float32 (N, F)
        See `domain.SUMMARIES`; F is 0 where the checkpoint states no uncertainty.
    """

    logits: NDArray[np.float32]
    variances: NDArray[np.float32]
    summaries: NDArray[np.float32]

    @classmethod
    def of(cls, columns: NDArray[np.float32]) -> Outputs:
        """From what `LastLayer` returns."""
        return cls(columns[:, 0], columns[:, 1], columns[:, 2:])


class LastLayer:
    """From the hidden layer to the columns of `Outputs`: logit, variance, summaries of the image.

    The projections for the variance are 0.4 % of the network's arithmetic.
    """

    def __init__(
        self, net: DeepShadowsNet, uncertainty: Uncertainty | None, device: torch.device | None = None
    ) -> None:
        device = device or torch.device("cpu")
        self._output = (net.output.weight.detach().float().to(device), net.output.bias.detach().float().to(device))
        self.uncertain = uncertainty is not None
        if uncertainty is not None:
            self._factor = torch.from_numpy(uncertainty.factor).to(device)
            self._offset = torch.from_numpy(uncertainty.offset).to(device)
            self._floor = uncertainty.floor
        self.columns = 2 + (len(SUMMARIES) if self.uncertain else 0)

    def __call__(self, hidden: Tensor, summed: Tensor | None) -> Tensor:
        """float32 (N, columns); `summed` is used where the checkpoint states an uncertainty."""
        hidden = hidden.float()
        logits_N1 = F.linear(hidden, *self._output)
        if not self.uncertain or summed is None:
            return torch.cat([logits_N1, torch.full_like(logits_N1, torch.nan)], 1)
        projected = F.linear(hidden, self._factor, -self._offset)
        variances_N1 = projected.square_().sum(1, keepdim=True).add_(self._floor)
        return torch.cat([logits_N1, variances_N1, summed], 1)

    def of_images(self, hidden: Tensor, images_NHWC: Tensor) -> Tensor:
        """The same, with the summaries taken here."""
        return self(hidden, summaries(images_NHWC) if self.uncertain else None)


class EngineUnavailableError(Failure):
    """This machine or this torch lacks what the engine needs."""


class Engine(Protocol):
    """One way to run the network, from any thread; `name` is recorded with the scores."""

    name: str

    def measure(self, images: NDArray[np.uint8]) -> Outputs:
        """Of images uint8 (N, 64, 64, 3), any N."""
        ...


class CpuEngine:
    """Shares batches out to lanes of one thread each; may be called from several threads at once.

    Lanes that do not wait for each other are 8 % faster than one call on all threads, and lose less where a server or
    another process takes a core now and then; with several callers none waits for the last batch of another.
    """

    def __init__(
        self, name: str, make_lane: Callable[[], Lane], *, columns: int, batch_size: int, threads: int
    ) -> None:
        self.name = name
        self._make_lane, self._columns, self._batch_size = make_lane, columns, batch_size
        self._own = threading.local()
        self._lanes = ThreadPoolExecutor(threads, thread_name_prefix="lane", initializer=self._enter)

    def _enter(self) -> None:
        torch.set_num_threads(1)
        self._own.lane = self._make_lane()

    def measure(self, images: NDArray[np.uint8]) -> Outputs:
        """Of images uint8 (N, 64, 64, 3), any N."""
        starts = range(0, len(images), self._batch_size)
        parts = [self._lanes.submit(self._run, images[start : start + self._batch_size]) for start in starts]
        wait(parts)
        empty = np.empty((0, self._columns), np.float32)
        return Outputs.of(np.concatenate([empty, *(part.result() for part in parts)]))

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            columns: NDArray[np.float32] = self._own.lane(images)
        return columns


class TorchLane:
    """Runs `forward` on a staging buffer; `padded` keeps the buffer's full shape."""

    def __init__(self, forward: Forward, last: LastLayer, *, batch_size: int, padded: bool) -> None:
        self._forward, self._last, self._padded = forward, last, padded
        self._staging = torch.zeros((batch_size, 64, 64, 3), dtype=torch.uint8)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        buffer = self._staging.numpy()
        buffer[: len(images)] = images
        buffer[len(images) :] = 0
        batch = self._staging if self._padded else self._staging[: len(images)]
        columns: NDArray[np.float32] = self._last.of_images(self._forward(batch), batch)[: len(images)].numpy()
        return columns


def torch_cpu(
    name: str, forward: Forward, last: LastLayer, *, batch_size: int, threads: int, padded: bool = False
) -> Engine:
    """An engine of `TorchLane`s."""
    return CpuEngine(
        f"torch-{torch.__version__} cpu {name}",
        lambda: TorchLane(forward, last, batch_size=batch_size, padded=padded),
        columns=last.columns,
        batch_size=batch_size,
        threads=threads,
    )


def exact_cpu(net: DeepShadowsNet, uncertainty: Uncertainty | None = None, *, threads: int) -> Engine:
    """The reference: eager fp32, one fixed batch shape.

    Equal bit for bit under any order and any split of the rows; a lane has one thread, so nothing else varies.
    """
    net = net.eval().requires_grad_(False)
    return torch_cpu(
        "fp32 eager",
        lambda images: net.hidden_layer(to_input(images)),
        LastLayer(net, uncertainty),
        batch_size=EXACT_BATCH,
        threads=threads,
        padded=True,
    )


def folded_cpu(
    net: DeepShadowsNet,
    dtype: torch.dtype,
    uncertainty: Uncertainty | None = None,
    *,
    batch_size: int,
    threads: int,
) -> Engine:
    """oneDNN's fused convolution + ReLU with prepacked weights, batch norms folded in; nothing to compile.

    Raises
    ------
    EngineUnavailableError
        This torch has no oneDNN, or the CPU has no arithmetic for `dtype`.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn, "_convolution_pointwise"
    ):
        raise EngineUnavailableError("this torch has no oneDNN")
    if dtype is torch.bfloat16 and not torch.cpu.get_capabilities().get("avx512_bf16", False):
        raise EngineUnavailableError("this CPU has no bf16 arithmetic")
    bits = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    return torch_cpu(
        f"{bits} folded",
        _FoldedNet(net.eval(), dtype),
        LastLayer(net, uncertainty),
        batch_size=batch_size,
        threads=threads,
    )


class _FoldedNet:
    """The network of `folding`, one oneDNN call a layer.

    The first convolution is fp32 whatever the dtype, for 9 % of the rate: its 27 weights a channel meet the level of
    the sky, so what bf16 rounds off of them adds up (|dp| to 0.046 and 5 flipped of 2,000 cut-outs; 0.005 and none so).
    """

    def __init__(self, net: DeepShadowsNet, dtype: torch.dtype) -> None:
        self._dtype = dtype
        folded = fold(net)
        *inner, _ = folded.blocks
        with torch.inference_mode():
            self._convs = [self._packed(depth, block) for depth, block in enumerate(folded.blocks)]
            self._signs = [
                None if bool((block.sign > 0).all()) else block.sign.to(bias.dtype).view(1, -1, 1, 1)
                for block, (_, bias) in zip(folded.blocks, self._convs, strict=True)
            ]
            # one image row of (column, channel): a broadcast over channels alone is 5 times slower in bf16
            self._shifts = [
                block.shift.to(self._convs[depth][1].dtype).repeat(32 >> depth) for depth, block in enumerate(inner)
            ]
            self._hidden = folded.hidden.to(dtype).contiguous()
            self._hidden_bias = folded.hidden_bias.to(dtype)

    def _packed(self, depth: int, block: FoldedBlock) -> tuple[Tensor, Tensor]:
        dtype = self._dtype if depth else torch.float32
        shape = [CHUNK, block.kernel.shape[1], 64 >> depth, 64 >> depth]
        kernel = torch.ops.mkldnn._reorder_convolution_weight(block.kernel.to(dtype), [1, 1], [1, 1], [1, 1], 1, shape)
        return kernel, block.bias.to(dtype)

    def __call__(self, images: Tensor) -> Tensor:
        chunks = torch.split(images, CHUNK)
        features = torch.cat([self._features(chunk) for chunk in chunks])
        return F.linear(features, self._hidden, self._hidden_bias).relu_()

    def _features(self, images_NHWC: Tensor) -> Tensor:
        x_NCHW = images_NHWC.permute(0, 3, 1, 2).float()
        for depth, (kernel, bias) in enumerate(self._convs):
            x_NCHW = torch.ops.mkldnn._convolution_pointwise(
                x_NCHW, kernel, bias, [1, 1], [1, 1], [1, 1], 1, "relu", [], ""
            )
            sign = self._signs[depth]
            x_NCHW = F.max_pool2d(x_NCHW if sign is None else x_NCHW * sign, 2)
            if depth < len(self._shifts):
                x_NHWC = x_NCHW.permute(0, 2, 3, 1)
                x_NHWC = x_NHWC.flatten(2).add_(self._shifts[depth]).view(x_NHWC.shape)
                x_NCHW = x_NHWC.permute(0, 3, 1, 2).to(self._dtype)
        return x_NCHW.permute(0, 2, 3, 1).flatten(1)
