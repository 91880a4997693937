"""Heat maps: a case worked out by hand, and what must hold of any network."""

from __future__ import annotations

import typing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from deepshadows.model.explanation import heat_maps
from deepshadows.model.network import BN_EPS, DeepShadowsNet
from deepshadows.settings import HeatMap
from tests.model.blobs import blobs, seasoned_net

METHODS = typing.get_args(HeatMap)


def see_through_net(outputs: int = 1) -> DeepShadowsNet:
    """Its logit is the sum, less 1, of the largest red value in each 8x8 square.

    Each convolution passes the first channel on, the batch norms do nothing, one hidden unit sums what is left.
    With three outputs the classes see minus that sum, nothing, and that sum.
    """
    net = DeepShadowsNet(outputs=outputs)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        for conv, norm in net.blocks():
            conv.weight[0, 0, 1, 1] = 1
            norm.weight.fill_(1)
            assert norm.running_var is not None
            norm.running_var.fill_(1 - BN_EPS)
        net.hidden.weight[0, :64] = 1  # the 8 x 8 positions of the first channel
        net.output.weight[:, 0] = torch.tensor([1.0]) if outputs == 1 else torch.tensor([-1.0, 0.0, 1.0])
        net.output.bias[-1] = -1
    return net


def two_patches() -> NDArray[np.uint8]:
    """A bright patch of 4x4 pixels at row 40, column 8, one half as bright at row 16, column 48."""
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, 40:44, 8:12, 0] = 200
    image[0, 16:20, 48:52, 0] = 100
    return image


def by_hand(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Only one channel is not zero, so the map is that one: the red light pooled to 16x16, enlarged, over its top."""
    red = torch.from_numpy(image[:, :, :, 0])[:, None].float()
    heat = F.interpolate(F.max_pool2d(red, 4), size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    return (heat / heat.max()).numpy()


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_map_worked_out_by_hand(outputs: int) -> None:
    heat = heat_maps(see_through_net(outputs), two_patches(), "grad-cam")
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, by_hand(two_patches()), atol=1e-6)
    row, column = np.unravel_index(heat[0].argmax(), (64, 64))
    assert (40 <= row < 44) and (8 <= column < 12)
    assert heat[0, 18, 50] == pytest.approx(0.5 * heat[0, 42, 10], rel=0.01)


def test_place_by_place_the_map_is_the_same_smoothed_over_3_by_3() -> None:
    """The gradient is 1 at the largest of each 2x2, which is where the light is."""
    red = F.max_pool2d(torch.from_numpy(two_patches()[:, :, :, 0])[:, None].float(), 4)
    smooth = F.avg_pool2d(red, 3, stride=1, padding=1)  # no patch is at the edge
    expected = F.interpolate(smooth, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    heat = heat_maps(see_through_net(), two_patches(), "hires-cam")
    np.testing.assert_allclose(heat, (expected / expected.max()).numpy(), atol=1e-6)


def test_place_by_place_knows_where_light_counts_and_the_mean_does_not() -> None:
    """The upper half speaks for an LSBG, the lower half as much against it: the mean gradient is 0."""
    net = see_through_net()
    with torch.no_grad():
        net.hidden.weight[0, 32:64] = -1
        net.hidden.bias[0] = 5
    images = two_patches()
    for decision, patch in ((1, (17.5, 49.5)), (0, (41.5, 9.5))):
        heat = heat_maps(net, images, "hires-cam", np.array([decision]))[0]
        middle = (np.indices((64, 64)) * heat).sum((1, 2)) / heat.sum()
        np.testing.assert_allclose(middle, patch, atol=0.01)
    assert heat_maps(net, images, "grad-cam", np.array([1])).max() == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_nothing_in_it_speaks_for_the_other_class(outputs: int, method: HeatMap) -> None:
    assert not heat_maps(see_through_net(outputs), two_patches(), method, np.array([0])).any()


def test_without_classes_the_decision_is_explained() -> None:
    net = seasoned_net()
    images, _ = blobs(12)
    with torch.no_grad():
        decided = (net(torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0) > 0).numpy().astype(np.int64)
    np.testing.assert_array_equal(heat_maps(net, images, "grad-cam"), heat_maps(net, images, "grad-cam", decided))
    assert not np.array_equal(heat_maps(net, images, "grad-cam"), heat_maps(net, images, "grad-cam", 1 - decided))


@pytest.mark.parametrize("method", METHODS)
def test_each_map_is_from_0_to_1_or_empty(method: HeatMap) -> None:
    heat = heat_maps(seasoned_net(), blobs(12)[0], method)
    assert heat.shape == (12, 64, 64)
    assert heat.min() >= 0
    highest = heat.max((1, 2))
    assert ((highest == 0) | (np.abs(highest - 1) < 1e-6)).all()
    assert (highest > 0).any()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_the_same_as_one_by_one(method: HeatMap) -> None:
    images, _ = blobs(9)
    net = seasoned_net()
    single = np.concatenate([heat_maps(net, image[None], method) for image in images])
    np.testing.assert_allclose(heat_maps(net, images, method), single, atol=1e-4)


def test_no_image_gives_no_map() -> None:
    assert heat_maps(seasoned_net(), np.empty((0, 64, 64, 3), np.uint8), "grad-cam").shape == (0, 64, 64)


def test_the_network_is_left_as_it_was() -> None:
    net = seasoned_net()
    net.freeze_but("head")
    net.train()
    modes = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    heat_maps(net, blobs(6)[0], "grad-cam")
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [name for name, parameter in net.named_parameters() if parameter.requires_grad] == [
        *("hidden.weight", "hidden.bias", "output.weight", "output.bias")
    ]
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_an_error_leaves_the_mode_too() -> None:
    net = seasoned_net().train()
    with pytest.raises(RuntimeError):
        heat_maps(net, np.zeros((1, 64, 64, 4), np.uint8), "grad-cam")
    assert net.training
