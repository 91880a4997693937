"""The DeepShadows network (arXiv:2011.12437, figure 4) in torch. No Ray, no files."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.utils import skip_init

from deepshadows.settings import Trainable

SIZE_PIX = 64
CHANNELS = (16, 32, 64)
HIDDEN = 1024
DROPOUT = 0.4
BN_MOMENTUM = 0.01
"""Keras' momentum of 0.99 is the weight of the old value, torch's that of the new one."""
BN_EPS = 1e-3


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
        self.dropout = nn.Dropout(DROPOUT)
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
        return self.from_last_activation(self.last_activation(x_NCHW))

    def last_activation(self, x_NCHW: Tensor) -> Tensor:
        """What the last convolution sees, after its ReLU: shape (N, 64, 16, 16)."""
        *earlier, (last, _) = self.blocks()
        for conv, norm in earlier:
            x_NCHW = self._end_of_block(torch.relu(conv(x_NCHW)), norm)
        return torch.relu(last(x_NCHW))

    def from_last_activation(self, a_NCHW: Tensor) -> Tensor:
        """Logits that follow from the result of `last_activation`."""
        *_, (_, norm) = self.blocks()
        h_NF = torch.relu(self.hidden(self._end_of_block(a_NCHW, norm).flatten(1)))
        logits_NO: Tensor = self.output(h_NF)
        return logits_NO.squeeze(1) if self.output.out_features == 1 else logits_NO

    def _end_of_block(self, a_NCHW: Tensor, norm: BatchNorm) -> Tensor:
        x_NCHW: Tensor = self.dropout(self.pool(norm(a_NCHW)))
        return x_NCHW

    def freeze_but(self, trainable: Trainable) -> None:
        """Let only these layers learn. Batch norms of the others are to stay in evaluation mode: see `train`."""
        self.requires_grad_(trainable == "all")
        last = list(self.blocks())[-1] if trainable == "last_block" else ()
        for layer in (self.hidden, self.output, *last):
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


def l2_terms(net: DeepShadowsNet, l2_conv: float, l2_dense: float) -> list[tuple[Tensor, float]]:
    """Kernels that are kept small, the convolutions and the first dense layer, each with its factor."""
    return [*((conv.weight, l2_conv) for conv, _ in net.blocks()), (net.hidden.weight, l2_dense)]


def l2_penalty(net: DeepShadowsNet, l2_conv: float, l2_dense: float) -> Tensor:
    """Keras' kernel regularisation: the sum of factor * sum(w^2) over `l2_terms`, a scalar."""
    return torch.stack([factor * kernel.square().sum() for kernel, factor in l2_terms(net, l2_conv, l2_dense)]).sum()


def parameter_count(net: DeepShadowsNet) -> int:
    """Parameters as Keras counts them: with the running means and variances of the batch norms."""
    learned = sum(parameter.numel() for parameter in net.parameters())
    return learned + sum(buffer.numel() for buffer in net.buffers() if buffer.is_floating_point())
