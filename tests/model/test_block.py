"""The C that ends a convolution's block in training, against torch's own modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deepshadows.model import block
from deepshadows.model.network import BN_EPS, BN_MOMENTUM

SHAPES = ((5, 16, 12, 8), (3, 32, 6, 10), (4, 64, 4, 4))
pytestmark = pytest.mark.skipif(block._library(torch.float32) is None, reason="no C compiler")


def norm_of(channels: int) -> nn.BatchNorm2d:
    """A batch norm with scales of both signs."""
    norm = nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels))
        norm.bias.copy_(torch.randn(channels))
    return norm


def values(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """What a convolution might give, as a leaf that takes gradients."""
    given = (torch.randn(shape) + 0.3).to(dtype).contiguous(memory_format=torch.channels_last)
    return given.requires_grad_()


def gradients(ended: Tensor, *of: Tensor) -> list[Tensor]:
    back = torch.randn(ended.shape, generator=torch.Generator().manual_seed(7)).to(ended.dtype)
    return list(torch.autograd.grad(ended, of, back))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_without_dropout_it_is_relu_norm_and_pool_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, close: float
) -> None:
    torch.manual_seed(3)
    given, norm = values(shape, dtype), norm_of(shape[1])
    twin = copy.deepcopy(norm)
    assert block.takes(given, norm)
    ours = block.end_of_block(given, norm, 0.0)
    exact = given.detach().float().requires_grad_()
    theirs = nn.MaxPool2d(2)(twin(torch.relu(exact)))
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours.float(), theirs, rtol=close, atol=close)
    torch.testing.assert_close(norm.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-6)
    found = gradients(ours, given, norm.weight, norm.bias)
    wanted = gradients(theirs.to(dtype).float(), exact, twin.weight, twin.bias)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=close, atol=close * float(other.abs().max()))


def test_dropout_drops_the_share_it_is_told_and_its_gradients_with_it() -> None:
    torch.manual_seed(3)
    norm = norm_of(32)
    norm.bias.data.fill_(50.0)  # no value is zero by itself
    given = values((8, 32, 32, 32))
    ended = block.end_of_block(given, norm, 0.4)
    stays = ended != 0
    assert abs(float(stays.double().mean()) - 0.6) < 4 * (0.24 / stays.numel()) ** 0.5
    for axis in range(4):  # no image, channel, row or column is favoured
        shares = stays.double().mean([other for other in range(4) if other != axis])
        spread = (0.24 / (stays.numel() / len(shares))) ** 0.5
        assert float((shares - 0.6).abs().max()) < 5 * spread
    whole = block.end_of_block(given, copy.deepcopy(norm), 0.0)
    torch.testing.assert_close(ended[stays], whole[stays] / 0.6, rtol=1e-6, atol=0)
    back = torch.randn(ended.shape)
    of_bias, of_weight = torch.autograd.grad(ended, (norm.bias, norm.weight), back, retain_graph=True)
    torch.testing.assert_close(of_bias, (back * stays / 0.6).sum((0, 2, 3)), rtol=1e-4, atol=1e-3)
    only_dropped = torch.autograd.grad(ended, (given, norm.weight), back * ~stays)
    assert not any(gradient.any() for gradient in only_dropped), "what was dropped gives nothing back"
    assert of_weight.any()


def test_torch_s_seed_decides_what_is_dropped_and_threads_change_no_bit() -> None:
    norm = norm_of(16)
    given = values((7, 16, 16, 16))
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            torch.manual_seed(11)
            ended = block.end_of_block(given, copy.deepcopy(norm), 0.4)
            found.append([ended, *gradients(ended, given)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))
    again = block.end_of_block(given, copy.deepcopy(norm), 0.4)
    assert not torch.equal(again != 0, found[0][0] != 0)


def test_what_it_has_no_loop_for_is_left_to_torch() -> None:
    assert not block.takes(torch.zeros(1, 24, 4, 4), norm_of(24))
    assert not block.takes(torch.zeros(1, 16, 4, 4, dtype=torch.float64), norm_of(16))
    assert not block.takes(torch.zeros(1, 16, 4, 4), nn.SyncBatchNorm(16))
