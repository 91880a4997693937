"""The training loop: what a worker is given, what an update does, and that it can be taken up again."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deepshadows.model.checkpoint import weights_of
from deepshadows.model.network import DeepShadowsNet, l2_penalty
from deepshadows.model.training import (
    LOGITS,
    Examples,
    Learner,
    Place,
    batches_of,
    read_state,
    refresh_norms,
    turned,
)
from deepshadows.settings import Recipe
from tests.model.blobs import blobs

SHORT = Recipe(name="test", optimizer="adamw", learning_rate=1e-3, schedule="cosine", epochs=3, batch_size=32,
               l2_conv=1e-4, l2_dense=1e-4, augment=True, keep="best", refresh_norms=True)  # fmt: skip


def examples(count: int = 160) -> Examples:
    images, labels = blobs(count)
    return Examples(images=images, labels=labels, validation=np.arange(count) % 8 < 2)


def equal_weights(first: Learner, second: Learner) -> bool:
    theirs = weights_of(second.net)
    return all(torch.equal(tensor, theirs[name]) for name, tensor in weights_of(first.net).items())


def test_workers_share_the_batches_that_one_worker_would_have() -> None:
    rows = np.arange(1000, 1150)
    whole = batches_of(2, rows, SHORT)
    assert sorted(np.concatenate([batch.rows for batch in whole])) == sorted(rows)
    assert {len(batch.rows) for batch in whole} == {30}
    for batch in whole:
        parts = [batch.part(Place(rank=rank, workers=2)) for rank in range(2)]
        turn_of = dict(zip(batch.rows, batch.turns, strict=True))
        assert sorted(np.concatenate([part.rows for part in parts])) == sorted(batch.rows)
        assert all(turn_of[row] == turn for part in parts for row, turn in zip(part.rows, part.turns, strict=True))


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    rows = np.arange(100)
    first, again = batches_of(1, rows, SHORT), batches_of(1, rows, SHORT)
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].rows, batches_of(2, rows, SHORT)[0].rows)
    other = SHORT.model_copy(update={"seed": 2})
    assert not np.array_equal(first[0].rows, batches_of(1, rows, other)[0].rows)


def test_turns_are_the_eight_of_the_square() -> None:
    image = torch.arange(64 * 64 * 3).reshape(1, 64, 64, 3)
    seen = {tuple(turned(image, np.array([turn])).flatten().tolist()) for turn in range(8)}
    assert len(seen) == 8
    assert torch.equal(turned(image, np.array([0])), image)
    assert torch.equal(turned(image, np.array([4])), image.flip(2))


def test_the_penalty_by_hand_has_autograds_gradient() -> None:
    recipe = Recipe(l2_conv=0.13, l2_dense=0.12)
    learner = Learner(examples(), recipe)
    for parameter in learner.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    value = learner._penalise()
    other = DeepShadowsNet(recipe.seed)
    penalty = l2_penalty(other, 0.13, 0.12)
    penalty.backward()
    torch.testing.assert_close(value, penalty.detach())
    for mine, theirs in zip(learner.net.parameters(), other.parameters(), strict=True):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(mine.grad, expected)


def test_two_parts_of_a_batch_give_the_gradient_of_the_whole() -> None:
    """What DistributedDataParallel averages, with batch norms at rest: parts of 17 and 16 rows of one batch of 33."""
    images, labels = blobs(33)
    net = DeepShadowsNet().eval()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0
    targets = torch.from_numpy(labels).float()

    def gradient(mine: slice, factor: float) -> torch.Tensor:
        net.zero_grad()
        (F.binary_cross_entropy_with_logits(net(pixels[mine]), targets[mine], reduction="sum") * factor).backward()
        assert net.output.weight.grad is not None
        return net.output.weight.grad.clone()

    whole = gradient(slice(None), 1 / 33)
    parts = [gradient(slice(rank, None, 2), 2 / 33) for rank in range(2)]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole, rtol=1e-4, atol=1e-6)


def test_a_short_training_learns() -> None:
    learner = Learner(examples(240), SHORT.model_copy(update={"epochs": 4}))
    while not learner.finished:
        learner.run_epoch()
    assert [epoch.epoch for epoch in learner.log] == [1, 2, 3, 4]
    assert learner.log[-1].validation_auc is not None
    assert learner.log[-1].validation_auc > 0.95
    assert learner.log[0].learning_rate > learner.log[-1].learning_rate


@pytest.mark.parametrize("recipe", [SHORT, Recipe(epochs=3, batch_size=32)], ids=["short", "paper"])
def test_taken_up_again_it_ends_with_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    straight = Learner(examples(), recipe)
    for _ in range(3):
        straight.run_epoch()
    first = Learner(examples(), recipe)
    first.run_epoch()
    first.save(tmp_path)
    second = Learner(examples(), recipe)
    second.restore(tmp_path)
    second.run_epoch()
    second.run_epoch()
    assert second.finished
    assert equal_weights(straight, second)
    assert [epoch.loss for epoch in second.log] == [epoch.loss for epoch in straight.log]


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    learner = Learner(examples(), SHORT)
    weights = []
    while not learner.finished:
        learner.run_epoch()
        weights.append({name: tensor.clone() for name, tensor in weights_of(learner.net).items()})
    learner.save(tmp_path)
    state = read_state(tmp_path)
    losses = [epoch.validation_loss for epoch in state.log]
    assert state.kept_epoch == int(np.argmin(losses)) + 1
    kept = weights_of(state.kept_network())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights[state.kept_epoch - 1].items())
    assert state.kept_logits().shape == (40,)


def test_the_last_epoch_is_kept_where_the_recipe_says_so(tmp_path: Path) -> None:
    learner = Learner(examples(), Recipe(epochs=2, batch_size=32))
    while not learner.finished:
        learner.run_epoch()
    learner.save(tmp_path)
    state = read_state(tmp_path)
    assert state.kept_epoch == 2
    assert list(state.tensors("kept")) == [LOGITS]
    assert torch.equal(state.kept_network().hidden.weight, learner.net.hidden.weight)


def test_refreshed_norms_have_the_statistics_of_the_images() -> None:
    images, _ = blobs(64)
    net = DeepShadowsNet()
    refresh_norms(net, images)
    conv, norm = next(net.blocks())
    with torch.no_grad():
        first = torch.relu(conv(torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0))
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert norm.momentum == 0.01


def test_training_starts_from_given_weights() -> None:
    start = DeepShadowsNet(seed=9)
    before = start.output.weight.detach().clone()
    assert torch.equal(Learner(examples(), SHORT, start=start).net.output.weight, before)
