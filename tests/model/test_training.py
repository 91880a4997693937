"""The training loop: what a worker is given, what an update does, and that it can be taken up again."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from deepshadows.model.augmentation import turned
from deepshadows.model.checkpoint import weights_of
from deepshadows.model.compiled import in_threads
from deepshadows.model.network import DeepShadowsNet, l2_penalty
from deepshadows.model.training import Examples, Learner, Place, batches_of, refresh_norms
from deepshadows.model.training_state import Epoch, epochs_without_gain, read_state
from deepshadows.outcomes import InputError
from deepshadows.settings import Recipe, Trainable
from tests.model.blobs import blobs, seasoned_net

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


def three_classes(count: int = 192) -> Examples:
    """Artifacts whose star is at the top are class 0, the others class 1; smudges are class 2."""
    images, labels = blobs(count)
    top = images[:, :20].mean((1, 2, 3)) > images[:, 44:].mean((1, 2, 3))
    kinds = np.where(labels == 1, 2, np.where(top, 0, 1)).astype(np.int8)
    return Examples(images=images, labels=kinds, validation=np.arange(count) % 8 < 2, classes=3)


def test_three_classes_are_learned_with_three_logits(tmp_path: Path) -> None:
    data = three_classes()
    learner = Learner(data, SHORT.model_copy(update={"epochs": 5, "augment": False}))
    while not learner.finished:
        learner.run_epoch()
    assert set(np.unique(data.labels)) == {0, 1, 2}
    held = np.flatnonzero(data.validation)
    logits = learner.logits(held)
    assert logits.shape == (48, 3)
    found = F.softmax(torch.from_numpy(logits), dim=1).argmax(1).numpy()
    last = learner.log[-1]
    assert last.validation_accuracy == np.mean(found == data.labels[held]) > 0.85
    assert last.validation_auc is None
    targets = torch.from_numpy(data.labels[held]).long()
    assert last.validation_loss == pytest.approx(float(F.cross_entropy(torch.from_numpy(logits), targets)), rel=1e-6)
    learner.save(tmp_path)
    again = Learner(data, SHORT)
    again.restore(tmp_path)
    assert equal_weights(learner, again)
    assert read_state(tmp_path).kept_network().output.out_features == 3


def test_logits_of_no_rows_are_none() -> None:
    nothing = np.arange(0)
    assert Learner(examples(), SHORT).logits(nothing).shape == (0,)
    assert Learner(three_classes(), SHORT).logits(nothing).shape == (0, 3)


@pytest.mark.parametrize(("classes", "label"), [(2, 2), (2, -1), (3, 3)])
def test_labels_beyond_the_classes_are_refused(classes: int, label: int) -> None:
    images, labels = blobs(4)
    labels[0] = label
    with pytest.raises(InputError, match=rf"labels of {classes} classes are 0 to {classes - 1}; found \[{label}\]"):
        Examples(images=images, labels=labels, validation=np.zeros(4, bool), classes=classes)


@pytest.mark.parametrize(
    ("trainable", "moved"),
    [
        ("head", {"hidden", "output"}),
        ("last_block", {"convs.2", "norms.2", "hidden", "output"}),
        ("output", {"output"}),
    ],
)
@pytest.mark.parametrize("optimizer", ["adamw", "adadelta"])
def test_only_the_layers_of_the_recipe_move(trainable: Trainable, moved: set[str], optimizer: str) -> None:
    recipe = SHORT.model_copy(update={"epochs": 1, "trainable": trainable, "optimizer": optimizer})
    learner = Learner(examples(64), recipe, start=seasoned_net())
    learner.run_epoch()
    before, after = weights_of(seasoned_net()), weights_of(learner.net)
    changed = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == moved


def falling_then_not(losses: list[float]) -> tuple[Epoch, ...]:
    return tuple(
        Epoch(epoch=number, loss=1.0, accuracy=0.5, validation_loss=loss, validation_accuracy=0.5, validation_auc=0.5,
              learning_rate=0.1, images_per_s=1.0)
        for number, loss in enumerate(losses, 1)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "epochs"),
    [([], 0), ([1.0], 0), ([3, 2, 1], 0), ([3, 1, 2, 2], 2), ([1, 1, 1], 2), ([2, np.nan, 1], 0), ([np.nan] * 2, 2)],
)
def test_epochs_without_gain_are_counted_from_the_lowest_loss(losses: list[float], epochs: int) -> None:
    assert epochs_without_gain(falling_then_not(losses)) == epochs


def test_patience_ends_a_training_that_gains_nothing_more_also_when_taken_up_again(tmp_path: Path) -> None:
    """Labels of the validation rows are wrong, so that the better it learns, the higher their loss."""
    images, labels = blobs(96)
    validation = np.arange(96) % 4 < 2
    data = Examples(
        images=images, labels=np.where(validation, 1 - labels, labels).astype(np.int8), validation=validation
    )
    recipe = SHORT.model_copy(update={"epochs": 12, "patience": 2})
    straight = Learner(data, recipe)
    while not straight.finished:
        straight.run_epoch()
    assert straight.epochs_done < 12
    assert straight.epochs_done == straight.kept_epoch + 2
    first = Learner(data, recipe)
    for _ in range(straight.epochs_done - 1):
        first.run_epoch()
        assert not first.finished
    first.save(tmp_path)
    second = Learner(data, recipe)
    second.restore(tmp_path)
    second.run_epoch()
    assert second.finished
    second.save(tmp_path)
    ended = Learner(data, recipe)
    ended.restore(tmp_path)
    assert ended.finished
    assert equal_weights(straight, ended)


HEAD = SHORT.model_copy(update={"trainable": "head"})


@pytest.mark.parametrize("recipe", [SHORT, HEAD, Recipe(epochs=3, batch_size=32)], ids=["short", "head", "paper"])
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


@pytest.mark.parametrize(("without_loss", "kept"), [(2, 1), (1, 2)])
def test_an_epoch_without_a_loss_is_not_the_best(without_loss: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it comes after one that has a loss or before it."""
    learner = Learner(examples(), SHORT)
    measured = learner.logits

    def logits(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.full_like(measured(rows), np.nan if learner.epochs_done == without_loss else 1.0)

    monkeypatch.setattr(learner, "logits", logits)
    epochs = [learner.run_epoch() for _ in range(2)]
    assert [epoch is not None and np.isnan(epoch.validation_loss) for epoch in epochs] == [kept == 2, kept == 1]
    assert learner.kept_epoch == kept
    assert np.isfinite(learner.kept_loss)
    assert learner.without_gain == 2 - kept


def test_the_last_epoch_is_kept_where_the_recipe_says_so(tmp_path: Path) -> None:
    learner = Learner(examples(), Recipe(epochs=2, batch_size=32))
    while not learner.finished:
        learner.run_epoch()
    learner.save(tmp_path)
    state = read_state(tmp_path)
    assert state.kept_epoch == 2
    assert not state.tensors("kept")
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


def test_norms_that_do_not_learn_are_not_refreshed() -> None:
    net = seasoned_net()
    net.freeze_but("last_block")
    refresh_norms(net, blobs(64)[0])
    before, after = weights_of(seasoned_net()), weights_of(net)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"norms.2.running_mean", "norms.2.running_var"}


def test_training_starts_from_given_weights() -> None:
    start = DeepShadowsNet(seed=9)
    before = start.output.weight.detach().clone()
    assert torch.equal(Learner(examples(), SHORT, start=start).net.output.weight, before)


def test_a_training_leaves_no_denormal_numbers() -> None:
    """Weights and what an optimizer remembers: CPUs take many times as long for numbers below 1.2e-38."""
    start = seasoned_net()
    with torch.no_grad():
        start.hidden.weight.fill_(1e-39)
    in_threads(start.hidden.weight.numel(), lambda start, stop: None)  # threads from before have a mode of their own
    learner = Learner(examples(), Recipe(precision="bfloat16"), start=start)
    learner.run_epoch()
    remembered = [value for state in learner._optimizer.state.values() for value in state.values()]
    tensors = [*learner.net.parameters(), *(value for value in remembered if torch.is_tensor(value))]
    assert len(tensors) > 30
    for tensor in tensors:
        size = tensor.detach().abs().numpy()
        assert not np.count_nonzero((size > 0) & (size < np.finfo(np.float32).tiny))
    assert (torch.tensor([1e-39]) * 0.5).item() > 0, "other work is left as it was"
