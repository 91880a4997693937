"""The C that ends a convolution's block in training, against torch's own modules."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepshadows import native
from deepshadows.model import adadelta, block, compiled
from deepshadows.model.network import BN_EPS, BN_MOMENTUM, to_input
from deepshadows.model.training import Examples, Learner
from deepshadows.settings import RECIPES
from tests.benchmarks import bench_training
from tests.model.blobs import NEEDS_COMPILER, blobs

SHAPES = ((5, 16, 12, 8), (3, 32, 6, 10), (4, 64, 4, 4))
pytestmark = NEEDS_COMPILER


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
    twin, exact = copy.deepcopy(norm), given.detach().requires_grad_()
    masked = nn.MaxPool2d(2)(twin(torch.relu(exact))) * stays / 0.6
    found = gradients(ended, given, norm.weight, norm.bias)
    for one, other in zip(found, gradients(masked, exact, twin.weight, twin.bias), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


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
    assert not block.takes(torch.zeros(1, 16, 5, 4), norm_of(16))
    assert not block.takes(torch.zeros(0, 16, 4, 4), norm_of(16))


@pytest.mark.parametrize("name", bench_training.NAMES)
def test_the_whole_network_s_gradients_are_no_farther_from_float64_than_torch_s(name: str) -> None:
    of_torch, of_c = bench_training.errors(RECIPES[name], bench_training.examples(RECIPES[name].batch_size)).values()
    assert of_c < 1.1 * of_torch
    assert of_c < 1e-4 or RECIPES[name].precision == "bfloat16"  # of noise: bfloat16 is 0.4 off, torch's too


@pytest.mark.parametrize("compiler", ["", "false", "no-such-compiler"])
def test_a_training_goes_with_a_compiler_and_without_and_tells_which(
    compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = blobs(64)
    rows = Examples(images=images, labels=labels, validation=np.arange(64) % 4 == 0)
    recipe = RECIPES["paper"].model_copy(update={"batch_size": 24})
    with forgotten():
        if compiler:
            monkeypatch.setenv("CC", compiler)
        learner = Learner(rows, recipe)
        losses = [epoch.loss for _ in range(2) if (epoch := learner.run_epoch())]
        assert losses[1] < losses[0]
        assert type(learner._optimizer) is (torch.optim.Adadelta if compiler else adadelta.Adadelta)
        learner.net.train()
        ended = learner.net._block(to_input(torch.from_numpy(images[:2])), *next(learner.net.blocks()))
        assert ended.grad_fn is not None
        assert ("_EndOfBlock" in ended.grad_fn.name()) == (not compiler)
        reason = {
            "": "C",
            "false": "torch, .*false failed",
            "no-such-compiler": "torch, no C compiler: no-such-compiler",
        }
        assert re.match(reason[compiler], learner.log[-1].arithmetic)
        monkeypatch.undo()


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """What has been compiled, or could not be, is not known before nor remembered after."""
    for known in (compiled._compiled, native.load):
        known.cache_clear()
    yield
    for known in (compiled._compiled, native.load):
        known.cache_clear()
