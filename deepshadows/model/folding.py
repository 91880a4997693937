"""The network with its batch norms folded into the layers beside them, for engines that score. No Ray, no files."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepshadows.model.network import DeepShadowsNet


@dataclass(frozen=True, kw_only=True)
class FoldedBlock:
    """What a block computes: shift + pool(sign * relu(convolution(x) + bias)), with a max pool.

    Attributes
    ----------
    kernel : float32 (outputs, inputs, 3, 3)
        That of the first block takes pixels of 0 to 255.
    bias, shift : float32 (outputs,)
        The last block's shift is 0: it is in the dense layer's bias.
    sign : float32 (outputs,)
        Of the norm's scale; 1 everywhere after any usual training.
    """

    kernel: Tensor
    bias: Tensor
    sign: Tensor
    shift: Tensor


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A network for scoring.

    Attributes
    ----------
    blocks : list of FoldedBlock
    hidden : float32 (1024, 4096)
        The dense layer; its inputs are ordered by row, column, channel.
    hidden_bias : float32 (1024,)
    """

    blocks: list[FoldedBlock]
    hidden: Tensor
    hidden_bias: Tensor


def fold(net: DeepShadowsNet) -> Folded:
    """BN(relu(y)) = sign * relu(|a| y) + b with a the norm's scale, b its shift.

    |a| goes into the convolution before it; b commutes with the max pool, so it is added to a quarter of the pixels.
    """
    blocks: list[FoldedBlock] = []
    with torch.inference_mode():
        for conv, norm in net.blocks():
            assert norm.running_var is not None and norm.running_mean is not None and conv.bias is not None
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            kernel = conv.weight * scale.abs().view(-1, 1, 1, 1) / (1.0 if blocks else 255.0)
            shift = norm.bias - scale * norm.running_mean
            blocks.append(FoldedBlock(kernel=kernel, bias=conv.bias * scale.abs(), sign=scale.sign(), shift=shift))
        last = blocks.pop()
        pixels = net.hidden.in_features // len(last.shift)
        hidden = net.hidden.weight.view(-1, len(last.shift), pixels).transpose(1, 2).flatten(1)
        hidden_bias = net.hidden.bias + hidden @ last.shift.repeat(pixels)
        blocks.append(
            FoldedBlock(kernel=last.kernel, bias=last.bias, sign=last.sign, shift=torch.zeros_like(last.shift))
        )
    return Folded(blocks=blocks, hidden=hidden, hidden_bias=hidden_bias)
