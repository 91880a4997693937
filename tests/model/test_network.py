"""The network is the paper's: layers, counts, initial weights, penalty."""

import numpy as np
import pytest
import torch
from torch import nn

from deepshadows.model.card import ARCHITECTURE, PARAMETERS
from deepshadows.model.checkpoint import weights_of
from deepshadows.model.network import DeepShadowsNet, in_batches, l2_penalty, to_input
from deepshadows.settings import Trainable
from tests.model.blobs import blobs, seasoned_net


def keras_count(net: DeepShadowsNet) -> int:
    """With the running means and variances of the batch norms."""
    return sum(tensor.numel() for tensor in weights_of(net).values())


@pytest.fixture(scope="module")
def net() -> DeepShadowsNet:
    return DeepShadowsNet(seed=3)


def test_parameters_are_those_that_keras_counts(net: DeepShadowsNet) -> None:
    assert keras_count(net) == PARAMETERS[ARCHITECTURE] == 4_220_385
    assert sum(parameter.numel() for parameter in net.parameters()) == 4_220_161


def test_initial_l2_penalty_is_the_papers(net: DeepShadowsNet) -> None:
    assert float(l2_penalty(net, 0.13, 0.12).detach()) == pytest.approx(205.5, abs=0.5)


def test_penalty_is_the_sum_of_squares_of_the_kernels_only() -> None:
    net = DeepShadowsNet()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(2.0)
    conv, dense = 4 * (3 * 9 * 16 + 16 * 9 * 32 + 32 * 9 * 64), 4 * 4096 * 1024
    assert float(l2_penalty(net, 0.5, 0.0).detach()) == 0.5 * conv
    assert float(l2_penalty(net, 0.0, 0.25).detach()) == 0.25 * dense


def test_initial_weights_are_glorot_uniform_with_zero_biases(net: DeepShadowsNet) -> None:
    conv = next(net.blocks())[0]
    for layer, fans in ((conv, 9 * (3 + 16)), (net.hidden, 4096 + 1024), (net.output, 1024 + 1)):
        limit = (6 / fans) ** 0.5
        weight = layer.weight.detach()
        assert 0.95 * limit < float(weight.abs().max()) <= limit * (1 + 1e-6)
        assert float(weight.std()) == pytest.approx(limit / 3**0.5, rel=0.1)
        assert layer.bias is not None and not layer.bias.detach().any()


def test_batch_norms_have_keras_defaults(net: DeepShadowsNet) -> None:
    assert [(norm.momentum, norm.eps) for _, norm in net.blocks()] == [(0.01, 1e-3)] * 3
    assert net.dropout.p == 0.4


def test_the_seed_decides_the_weights_and_torch_is_left_alone() -> None:
    torch.manual_seed(5)
    first = DeepShadowsNet(seed=1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first.hidden.weight, DeepShadowsNet(seed=1).hidden.weight)
    assert not torch.equal(first.hidden.weight, DeepShadowsNet(seed=2).hidden.weight)


def test_three_outputs_are_the_logits_of_three_classes() -> None:
    net = DeepShadowsNet(seed=3, outputs=3).eval()
    images = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = net(to_input(images))
        features = torch.relu(
            net.hidden(net.dropout(net.pool(net.norms[2](net.last_activation(to_input(images))))).flatten(1))
        )
    assert logits.shape == (5, 3)
    torch.testing.assert_close(logits, features @ net.output.weight.T)
    assert keras_count(net) == PARAMETERS[ARCHITECTURE] + 2 * (1024 + 1)


@pytest.mark.parametrize(
    ("trainable", "learning"),
    [
        ("all", {"convs.0", "convs.1", "convs.2", "norms.0", "norms.1", "norms.2", "hidden", "output"}),
        ("last_block", {"convs.2", "norms.2", "hidden", "output"}),
        ("head", {"hidden", "output"}),
    ],
)
def test_layers_that_do_not_learn_are_frozen_and_their_norms_at_rest(trainable: Trainable, learning: set[str]) -> None:
    net = DeepShadowsNet()
    net.freeze_but("head")
    net.freeze_but(trainable)
    found = {name.rpartition(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert found == learning
    net.train()
    in_training = {f"norms.{number}" for number, (_, norm) in enumerate(net.blocks()) if norm.training}
    assert in_training == {name for name in learning if name.startswith("norms")}
    assert net.dropout.training
    assert not any(module.training for module in net.eval().modules())


def test_forward_is_the_papers_chain_of_layers(net: DeepShadowsNet) -> None:
    layers: list[nn.Module] = []
    for conv, norm in net.blocks():
        layers += [conv, nn.ReLU(), norm, nn.MaxPool2d(2), nn.Dropout(0.4)]
    chain = nn.Sequential(*layers, nn.Flatten(), net.hidden, nn.ReLU(), net.output).eval()
    images = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = net.eval()(to_input(images))
        expected = chain(images.permute(0, 3, 1, 2) / 255.0)
    assert logits.shape == (5,)
    torch.testing.assert_close(logits, expected.squeeze(1))


def test_the_hidden_layer_is_what_the_output_takes() -> None:
    """In evaluation mode, and of the chosen rows of many images as of those alone."""
    net, images = seasoned_net().train(), blobs(300)[0]
    rows = np.arange(299, -1, -2)
    hidden, logits = in_batches(net, images, net.hidden_layer, rows), in_batches(net, images, rows=rows)
    assert not net.training
    assert hidden.shape == (150, 1024)
    with torch.inference_mode():
        np.testing.assert_array_equal(logits, net(to_input(torch.from_numpy(images[rows]))).numpy())
        np.testing.assert_array_equal(hidden, net.hidden_layer(to_input(torch.from_numpy(images[rows]))).numpy())
        outputs = net.output(torch.from_numpy(hidden)).squeeze(1)
    np.testing.assert_allclose(outputs.numpy(), logits, atol=1e-5)
