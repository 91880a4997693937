"""The DeepShadows network (arXiv:2011.12437, figure 4) in torch. No Ray, no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.utils import skip_init

from deepshadows.model import block
from deepshadows.settings import Trainable

SIZE_PIX = 64
CHANNELS = (16, 32, 64)
HIDDEN = 1024
DROPOUT = 0.4
BN_MOMENTUM = 0.01
"""Keras' momentum of 0.99 is the weight of the old value, torch's that of the new one."""
BN_EPS = 1e-3
BATCH = 256
"""Images that are evaluated at a time."""


class Dropout(nn.Dropout):
    """torch's dropout, except that on CPUs a chance is 16 random bits: a fifth of the time, the share exact to 1e-5.

    torch draws on one thread, there, and slowly: a fifth of a training step of this network.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))
        bits = words.view(torch.int16)[: x.numel()].as_strided(x.size(), x.stride())
        return x * (bits >= round(self.p * 2**16) - 2**15) / (1 - self.p)


class DeepShadowsNet(nn.Module):
    """3 x [Conv 3x3, ReLU, BatchNorm, MaxPool 2, Dropout 0.4], Flatten, Dense 1024 ReLU, Dense 1 (or one a class).

    4,220,161 trainable parameters; with the running statistics, as Keras counts, 4,220,385. The flattened features
    are in torch's order (channel, row, column); Keras has (row, column, channel), so a Keras dense kernel must
    be permuted before it fits here. The sigmoid is left to the card's calibration.

    Parameters
    ----------
    seed : int, optional
        Seed of the initial weights (Glorot uniform, biases zero); torch's own state is not touched.
    outputs : int, optional
        1 is the paper's network, whose logit is that of an LSBG. Its variant of three classes (artifact-1, artifact-2,
        LSBG) has 3, which a softmax turns into probabilities.
    """

    def __init__(self, seed: int = 1, outputs: int = 1) -> None:
        super().__init__()
        inputs = (3, *CHANNELS[:-1])
        self.convs = nn.ModuleList(
            skip_init(nn.Conv2d, n_in, n_out, kernel_size=3, padding=1)  # type: ignore[no-untyped-call]
            for n_in, n_out in zip(inputs, CHANNELS, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM) for channels in CHANNELS)
        self.pool = nn.MaxPool2d(2)
        self.dropout = Dropout(DROPOUT)
        features = CHANNELS[-1] * (SIZE_PIX // 8) ** 2
        self.hidden: nn.Linear = skip_init(nn.Linear, features, HIDDEN)  # type: ignore[no-untyped-call]
        self.output: nn.Linear = skip_init(nn.Linear, HIDDEN, outputs)  # type: ignore[no-untyped-call]
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Conv2d | nn.Linear] = [conv for conv, _ in self.blocks()]
        for layer in [*layers, self.hidden, self.output]:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # each of our layers has one

    def blocks(self) -> Iterator[tuple[nn.Conv2d, BatchNorm]]:
        """The three convolutions, each with the batch norm that follows it."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, BatchNorm)
            yield conv, norm

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits of a batch.

        Parameters
        ----------
        x_NCHW : Tensor
            Float, shape (N, 3, 64, 64), values in [0, 1], channels z, r, g.

        Returns
        -------
        Tensor
            Shape (N,); larger is more like a low-surface-brightness galaxy. With several outputs (N, outputs).
        """
        for conv, norm in self.blocks():
            x_NCHW = self._block(x_NCHW, conv, norm)
        return self._logits(x_NCHW)

    def last_activation(self, x_NCHW: Tensor) -> Tensor:
        """What the last convolution sees, after its ReLU: shape (N, 64, 16, 16)."""
        *earlier, (last, _) = self.blocks()
        for conv, norm in earlier:
            x_NCHW = self._end_of_block(torch.relu(conv(x_NCHW)), norm)
        return torch.relu(last(x_NCHW))

    def hidden_layer(self, x_NCHW: Tensor) -> Tensor:
        """What the last layer takes: shape (N, 1024)."""
        *_, (_, norm) = self.blocks()
        return self._hidden(self._end_of_block(self.last_activation(x_NCHW), norm))

    def from_last_activation(self, a_NCHW: Tensor) -> Tensor:
        """Logits that follow from the result of `last_activation`."""
        *_, (_, norm) = self.blocks()
        return self._logits(self._end_of_block(a_NCHW, norm))

    def _logits(self, x_NCHW: Tensor) -> Tensor:
        logits_NO: Tensor = self.output(self._hidden(x_NCHW))
        return logits_NO.squeeze(1) if self.output.out_features == 1 else logits_NO

    def _hidden(self, x_NCHW: Tensor) -> Tensor:
        return torch.relu(self.hidden(x_NCHW.flatten(1)))

    def _block(self, x_NCHW: Tensor, conv: nn.Conv2d, norm: BatchNorm) -> Tensor:
        a_NCHW = conv(x_NCHW)
        if self.dropout.training and norm.training and block.takes(a_NCHW, norm):
            return block.end_of_block(a_NCHW, norm, self.dropout.p)
        return self._end_of_block(torch.relu(a_NCHW), norm)

    def _end_of_block(self, a_NCHW: Tensor, norm: BatchNorm) -> Tensor:
        x_NCHW: Tensor = self.dropout(self.pool(norm(a_NCHW)))
        return x_NCHW

    def freeze_but(self, trainable: Trainable) -> None:
        """Let only these layers learn. Batch norms of the others are to stay in evaluation mode: see `train`."""
        self.requires_grad_(trainable == "all")
        last = list(self.blocks())[-1] if trainable == "last_block" else ()
        for layer in (self.output,) if trainable == "output" else (self.hidden, self.output, *last):
            layer.requires_grad_(True)

    def train(self, mode: bool = True) -> DeepShadowsNet:
        """As in torch, but batch norms that do not learn stay in evaluation mode: their statistics do not move."""
        super().train(mode)
        for _, norm in self.blocks():
            norm.train(mode and norm.weight.requires_grad)
        return self


def to_input(images_NHWC: Tensor) -> Tensor:
    """uint8 images (N, 64, 64, 3) as the network takes them: float32 (N, 3, 64, 64) in [0, 1], channels-last."""
    return images_NHWC.permute(0, 3, 1, 2).float().div_(255.0)


def in_batches(
    net: DeepShadowsNet,
    images: NDArray[np.uint8],
    part: Callable[[Tensor], Tensor] | None = None,
    rows: NDArray[np.intp] | None = None,
) -> NDArray[np.float32]:
    """What the network, put into evaluation mode and where it is, says of many images.

    Parameters
    ----------
    images : uint8 (N, 64, 64, 3)
    part : callable, optional
        Of the network, such as `net.hidden_layer`; without it, the whole.
    rows : int (M,), optional
        Only these images; without them, all.

    Returns
    -------
    float32 (M, ...)
        Logits: (M,), or (M, outputs).
    """
    net.eval()
    rows = np.arange(len(images)) if rows is None else rows
    device = net.output.weight.device
    parts = []
    with torch.inference_mode():
        for start in range(0, max(len(rows), 1), BATCH):
            batch = torch.from_numpy(images[rows[start : start + BATCH]])
            parts.append((part or net)(to_input(batch.to(device))).float().cpu())
    said: NDArray[np.float32] = torch.cat(parts).numpy()
    return said


def crossentropy(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Of one logit a row against 0 and 1, or of one a class."""
    if logits.ndim == 1:
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction=reduction)
    return F.cross_entropy(logits, labels.long(), reduction=reduction)


def decided(logits: Tensor) -> Tensor:
    """The likeliest class of each row, int64 (N,)."""
    return (logits > 0).long() if logits.ndim == 1 else logits.argmax(dim=1)


def l2_terms(net: DeepShadowsNet, l2_conv: float, l2_dense: float) -> list[tuple[Tensor, float]]:
    """Kernels that are kept small, the convolutions and the first dense layer, each with its factor."""
    return [*((conv.weight, l2_conv) for conv, _ in net.blocks()), (net.hidden.weight, l2_dense)]


def l2_penalty(net: DeepShadowsNet, l2_conv: float, l2_dense: float) -> Tensor:
    """Keras' kernel regularisation: the sum of factor * sum(w^2) over `l2_terms`, a scalar."""
    return torch.stack(
        [factor * kernel.flatten().dot(kernel.flatten()) for kernel, factor in l2_terms(net, l2_conv, l2_dense)]
    ).sum()
