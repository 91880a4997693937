"""What follows a convolution in training on CPUs, in C: ReLU, batch norm, max pool, dropout, their gradients. No Ray.

torch runs each of them over the whole batch, and most of a step's time goes into values that pass through memory time
and again. Here each way, forward and back, reads what the convolution gave twice and writes once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from deepshadows.model.compiled import in_threads, library, refusal

SOURCE = Path(__file__).with_name("block.c")
CHANNELS = (16, 32, 64)
"""Numbers that the C has a loop for."""
CHANCES = 1 << 16
FLAGS: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("-DBF16",)}


def takes(a_NCHW: Tensor, norm: BatchNorm) -> bool:
    """Whether `end_of_block` can do it, and a batch norm of this kind is all that is between this worker's images."""
    return (
        a_NCHW.device.type == "cpu"
        and a_NCHW.shape[1] in CHANNELS
        and a_NCHW.shape[2] % 2 == a_NCHW.shape[3] % 2 == 0
        and len(a_NCHW) > 0
        and type(norm) is torch.nn.BatchNorm2d
        and _library(a_NCHW.dtype) is not None
    )


def end_of_block(a_NCHW: Tensor, norm: BatchNorm, chance: float) -> Tensor:
    """ReLU, then `norm` in training mode, then max pool of 2, then dropout.

    The running statistics of the norm move as in torch; chances follow torch's seed.

    Parameters
    ----------
    a_NCHW : Tensor
        float32 or bfloat16, shape (N, C, H, W), as the convolution gave it; H and W are even.
    chance : float
        Of a value to be dropped; those that stay are divided by 1 - `chance`.

    Returns
    -------
    Tensor
        Shape (N, C, H / 2, W / 2), channels last, of the same type.
    """
    ended: Tensor = _EndOfBlock.apply(a_NCHW, norm.weight, norm.bias, norm, chance)  # type: ignore[no-untyped-call]
    return ended


class _Block(ctypes.Structure):
    """`block` of block.c."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("rows", "columns", "channels")),
        *((name, ctypes.c_void_p) for name in ("scale", "shift", "slope", "level", "tilt")),
        ("gain", ctypes.c_float),
        ("chance", ctypes.c_uint32),
    ]


class _EndOfBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_NCHW: Tensor, weight: Tensor, bias: Tensor, norm: BatchNorm, chance: float) -> Tensor:
        a_NCHW = a_NCHW.contiguous(memory_format=torch.channels_last)
        images, channels, rows, columns = a_NCHW.shape
        values = images * rows * columns
        total, squares = _summed(a_NCHW, "sums", [a_NCHW])
        mean = total / values
        variance = (squares / values - mean**2).clamp(min=0)
        _follow(norm, mean, variance * values / max(1, values - 1))
        inverse = 1 / torch.sqrt(variance + norm.eps)
        scale = weight.double() * inverse
        pooled = a_NCHW.new_empty((images, channels, rows // 2, columns // 2)).contiguous(
            memory_format=torch.channels_last
        )
        codes = torch.empty(pooled.numel(), dtype=torch.int16)
        seeds = torch.randint(-(2**31), 2**31, (images,)).int()
        of = {"scale": scale, "shift": bias.double() - mean * scale}
        _work(a_NCHW, "forward", of, [a_NCHW, seeds, pooled, codes], chance)
        ctx.save_for_backward(a_NCHW, codes, weight, mean, inverse)
        ctx.chance = chance
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        a_NCHW, codes, weight, mean, inverse = ctx.saved_tensors
        back = grad_outputs[0].to(a_NCHW.dtype).contiguous(memory_format=torch.channels_last)
        values = a_NCHW.numel() // a_NCHW.shape[1]
        total, products = _summed(a_NCHW, "returned", [a_NCHW, back, codes], ctx.chance)
        of_weight = (products - mean * total) * inverse
        slope = weight.double() * inverse
        tilt = slope * inverse * of_weight / values
        of = {"slope": slope, "level": slope * total / values - tilt * mean, "tilt": tilt}
        gradient = torch.empty_like(a_NCHW)
        _work(a_NCHW, "backward", of, [a_NCHW, back, codes, gradient], ctx.chance)
        return gradient, of_weight.to(weight.dtype), total.to(weight.dtype), None, None


def _follow(norm: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Let the running statistics follow those of a batch."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), norm.momentum)


def _summed(a_NCHW: Tensor, name: str, tensors: list[Tensor], chance: float = 0.0) -> Tensor:
    """float64 (2, C): what a function of block.c sums up of each image, over all."""
    found = torch.empty((len(a_NCHW), 2, a_NCHW.shape[1]), dtype=torch.float64)
    _work(a_NCHW, name, {}, [*tensors, found], chance)
    return found.sum(0)


def _work(a_NCHW: Tensor, name: str, of: dict[str, Tensor], tensors: Sequence[Tensor], chance: float = 0.0) -> None:
    """Call a function of block.c on all images, some in each of torch's threads."""
    images, channels, rows, columns = a_NCHW.shape
    kept = {key: tensor.float().contiguous() for key, tensor in of.items()}  # what the pointers point to
    block = _Block(
        rows=rows,
        columns=columns,
        channels=channels,
        gain=1 / (1 - chance),
        chance=round(chance * CHANCES),
        **{key: tensor.data_ptr() for key, tensor in kept.items()},
    )
    function = getattr(_library(a_NCHW.dtype), name)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]

    def some(start: int, stop: int) -> None:
        function(ctypes.byref(block), ctypes.c_long(start), ctypes.c_long(stop), *pointers)

    in_threads(images, some)


def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The C for values of this type; None where there is no compiler, or no such type."""
    return library(SOURCE, *FLAGS[dtype]) if dtype in FLAGS else None


def arithmetic(device: str, dtype: torch.dtype) -> str:
    """What does it on that device, for the record: C or torch, and why not C on a CPU."""
    if torch.device(device).type != "cpu":
        return "torch"
    reason = refusal(SOURCE, *FLAGS[dtype])
    return f"torch, {reason}" if reason else "C"
