"""The last layer fitted to few labels: what is minimised, what moves, and that turned images count alike."""

from __future__ import annotations

import numpy as np
import torch

from deepshadows.model.augmentation import turned
from deepshadows.model.checkpoint import weights_of
from deepshadows.model.last_layer import INVERSE_PENALTY, TURNS, fit_output
from deepshadows.model.network import in_batches
from tests.model.blobs import blobs, seasoned_net


def test_the_last_layer_minimises_the_penalised_loss_over_all_turns() -> None:
    images, labels = blobs(40)
    net = seasoned_net()
    fit_output(net, images, labels)
    before, after = weights_of(seasoned_net()), weights_of(net)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"output.weight", "output.bias"}

    views = [turned(torch.from_numpy(images), np.full(40, turn)).numpy() for turn in range(TURNS)]
    hidden = np.concatenate([in_batches(net, np.ascontiguousarray(view), net.hidden_layer) for view in views])
    hidden, target = hidden.astype(np.float64), np.tile(labels, TURNS)
    weight = after["output.weight"].numpy().astype(np.float64)[0]
    logits = hidden @ weight + float(after["output.bias"])
    scale = hidden.std(axis=0)
    standard = (hidden - hidden.mean(axis=0)) / np.where(scale > 0, scale, 1)
    slope = (1 / (1 + np.exp(-logits)) - target) * INVERSE_PENALTY / TURNS
    gradient = standard.T @ slope + weight * scale
    assert abs(slope.sum()) < 1e-3 * abs(slope).sum()
    assert np.linalg.norm(gradient) < 0.01 * np.linalg.norm(weight * scale)


def test_few_labels_separate_what_the_network_sees() -> None:
    images, labels = blobs(120)
    net = seasoned_net()
    fit_output(net, images[:60], labels[:60])
    assert ((in_batches(net, images[60:]) > 0) == (labels[60:] == 1)).mean() > 0.9
