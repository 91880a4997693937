"""Adadelta in C beside torch's."""

from __future__ import annotations

import pytest
import torch

from deepshadows.model import adadelta
from tests.model.blobs import NEEDS_COMPILER

pytestmark = NEEDS_COMPILER
SETTINGS = {"lr": 0.1, "rho": 0.95, "eps": 1e-7}


def parameters() -> list[torch.Tensor]:
    """A kernel in channels-last order, a bias and one that never has a gradient."""
    generator = torch.Generator().manual_seed(1)
    kernel = torch.randn(64, 32, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    return [kernel.requires_grad_(), torch.randn(1001, generator=generator).requires_grad_(), torch.ones(3)]


@pytest.mark.parametrize("threads", [1, 3])
def test_its_steps_are_torch_s_and_each_goes_on_where_the_other_stopped(threads: int) -> None:
    ours, theirs = parameters(), parameters()
    mine, reference = adadelta.Adadelta(ours, **SETTINGS), torch.optim.Adadelta(theirs, **SETTINGS)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for step in range(6):
            if step == 3:  # each takes up the other's state
                states = mine.state_dict()["state"], reference.state_dict()["state"]
                mine.load_state_dict({**mine.state_dict(), "state": states[1]})
                reference.load_state_dict({**reference.state_dict(), "state": states[0]})
            for one, other in list(zip(ours, theirs, strict=True))[:2]:
                slope = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
                one.grad, other.grad = slope.clone(), slope.contiguous()  # not in the kernel's order
            mine.step()
            reference.step()
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    finally:
        torch.set_num_threads(before)
