"""The training loop: labelled images in, weights out. Knows torch's process group, but no Ray and no object storage."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deepshadows.model import adadelta, block
from deepshadows.model.augmentation import observed_anew, turned
from deepshadows.model.checkpoint import fill, weights_of
from deepshadows.model.last_layer import fit_output
from deepshadows.model.metrics import Judged, auc
from deepshadows.model.network import (
    DeepShadowsNet,
    crossentropy,
    decided,
    in_batches,
    l2_penalty,
    l2_terms,
    to_input,
)
from deepshadows.model.training_state import Epoch, State, epochs_without_gain, read_state, write_state
from deepshadows.outcomes import InputError
from deepshadows.settings import Recipe

NORM_ROWS = 1024
"""Training rows that `refresh_norms` measures on."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled images.

    Attributes
    ----------
    images : uint8 (N, 64, 64, 3)
    labels : int8 (N,)
        From 0 to `classes` - 1: artifact, LSBG; or artifact-1, artifact-2, LSBG.
    validation : bool (N,)
        Rows held out.
    classes : int
        2: one logit, binary cross-entropy. 3: three logits, categorical cross-entropy.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int8]
    validation: NDArray[np.bool_]
    classes: int = 2

    def __post_init__(self) -> None:
        wrong = np.unique(self.labels[~np.isin(self.labels, np.arange(self.classes))])
        if len(wrong):
            raise InputError(f"labels of {self.classes} classes are 0 to {self.classes - 1}; found {wrong.tolist()}")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of the training processes this is, and what it computes on."""

    rank: int = 0
    workers: int = 1
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one update over all workers, how each image is turned (0 to 7), and the update's number in its epoch."""

    number: int
    rows: NDArray[np.intp]
    turns: NDArray[np.int64]

    def part(self, place: Place) -> Batch:
        """What this worker takes."""
        mine = slice(place.rank, None, place.workers)
        return Batch(number=self.number, rows=self.rows[mine], turns=self.turns[mine])


def batches_of(epoch: int, train_rows: NDArray[np.intp], recipe: Recipe) -> list[Batch]:
    """The updates of one epoch: the same for any number of workers, a function of seed and epoch alone.

    Sizes differ by one at most, so that no small last batch upsets the batch norms.
    """
    rng = np.random.default_rng((recipe.seed, epoch))
    order = rng.permutation(train_rows)
    turns = rng.integers(0, 8, len(order)) if recipe.augment else np.zeros(len(order), np.int64)
    count = math.ceil(len(order) / recipe.batch_size)
    return [
        Batch(number=number, rows=rows, turns=turn)
        for number, (rows, turn) in enumerate(
            zip(np.array_split(order, count), np.array_split(turns, count), strict=True)
        )
    ]


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Numbers below 1.2e-38 are zero meanwhile, also in threads that start meanwhile.

    The paper's L2 penalty takes half of the weights, and what Adadelta remembers of them, down there within ten epochs;
    CPUs compute with such numbers so slowly that an epoch takes twice the time.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class Learner:
    """A network in training: `run_epoch` until `finished`; `save` and `restore` between epochs.

    Parameters
    ----------
    start : DeepShadowsNet, optional
        Weights to start from; without it, initial weights by the recipe's seed. It is changed.

    Notes
    -----
    With several workers torch's process group must be there: gradients are means over the whole batch. On CPUs each
    worker's batch norms see its own part of a batch (torch has no synchronised ones there); the first worker's
    running statistics are kept. On GPUs they are synchronised.
    """

    def __init__(
        self, examples: Examples, recipe: Recipe, place: Place | None = None, start: DeepShadowsNet | None = None
    ) -> None:
        self.examples, self.recipe, self.place = examples, recipe, place or Place()
        self.net = start or DeepShadowsNet(recipe.seed, outputs=1 if examples.classes == 2 else examples.classes)
        self.net.freeze_but(recipe.trainable)
        self.log: list[Epoch] = []
        self.epochs_done = 0
        self.without_gain = 0
        self.kept_epoch = 0
        self.kept_loss = math.inf
        self.kept: dict[str, Tensor] = {}
        self._train_rows = np.flatnonzero(~examples.validation)
        self._prepare()

    def _prepare(self) -> None:
        device = torch.device(self.place.device)
        self.net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model: nn.Module = self.net
        if self.place.workers > 1:
            module: nn.Module = self.net
            if device.type == "cuda":
                module = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)  # type: ignore[no-untyped-call]
            self._model = DistributedDataParallel(module)
        in_c = torch.tensor(int(device.type == "cpu" and adadelta.available()), device=device)
        if self.place.workers > 1:  # all in the same way: replicas that round differently drift apart
            torch.distributed.all_reduce(in_c, torch.distributed.ReduceOp.MIN)
        self._optimizer = _optimizer(self.net, self.recipe, in_c=bool(in_c))

    @property
    def finished(self) -> bool:
        """All epochs are done, or the recipe's patience is at an end; a regression takes one epoch."""
        epochs = 1 if self.recipe.trainable == "output" else self.recipe.epochs
        return self.epochs_done >= epochs or 0 < self.recipe.patience <= self.without_gain

    @denormals_as_zero()
    def run_epoch(self) -> Epoch | None:
        """One pass over the training rows and, on the first worker, the validation rows; None on the others."""
        if self.recipe.trainable == "output":
            return self._fit_output()
        epoch = self.epochs_done + 1
        started = time.perf_counter()
        torch.manual_seed((self.recipe.seed * 100_003 + epoch) * 4_099 + self.place.rank)
        batches = batches_of(epoch, self._train_rows, self.recipe)
        self._model.train()
        totals = torch.zeros(3, dtype=torch.float64, device=self.place.device)  # cross-entropy, correct, penalty
        for step, batch in enumerate(batches):
            self._set_rate((epoch - 1 + step / len(batches)) / self.recipe.epochs)
            totals += self._update(batch)
        if self.place.workers > 1:
            torch.distributed.all_reduce(totals)
        seconds = time.perf_counter() - started
        total, correct, penalty = totals.tolist()
        rows = len(self._train_rows)
        loss = total / rows + penalty / (len(batches) * self.place.workers)
        self.epochs_done = epoch
        if self.place.rank == 0:
            self.log.append(self._validated(epoch, loss, correct / rows, rows / seconds))
        self._count_without_gain()
        return self.log[-1] if self.place.rank == 0 else None

    def _fit_output(self) -> Epoch | None:
        """Every worker does the same, on all training rows."""
        started = time.perf_counter()
        images, labels = self.examples.images[self._train_rows], self.examples.labels[self._train_rows]
        fit_output(self.net, images, labels)
        images_per_s = len(images) / (time.perf_counter() - started)
        self.epochs_done = 1
        if self.place.rank != 0:
            return None
        logits, targets = torch.from_numpy(self.logits(self._train_rows)), torch.from_numpy(labels)
        accuracy = float((decided(logits) == targets).double().mean())
        self.log.append(self._validated(1, float(crossentropy(logits, targets, "mean")), accuracy, images_per_s))
        return self.log[-1]

    def _count_without_gain(self) -> None:
        """The first worker tells the others, so that all stop after the same epoch."""
        self.without_gain = epochs_without_gain(tuple(self.log)) if self.place.rank == 0 else 0
        if self.place.workers > 1 and self.recipe.patience:
            told = torch.tensor(self.without_gain, device=self.place.device)
            torch.distributed.broadcast(told, src=0)
            self.without_gain = int(told)

    def _set_rate(self, progress: float) -> None:
        rate = self.recipe.learning_rate
        if self.recipe.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * progress))
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _update(self, batch: Batch) -> Tensor:
        """One step; sums of cross-entropy and correct rows of this worker's part, and the penalty."""
        mine = batch.part(self.place)
        labels = torch.from_numpy(self.examples.labels[mine.rows]).to(self.place.device)
        mixed = self.recipe.precision == "bfloat16"
        with torch.autocast(torch.device(self.place.device).type, torch.bfloat16, enabled=mixed):
            logits = self._model(self._input(mine)).float()
        total = crossentropy(logits, labels, "sum")
        # gradients are averaged over the workers, whose parts may differ by one row
        loss = total * self.place.workers / len(batch.rows)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        penalty = self._penalise()
        self._optimizer.step()
        correct = (decided(logits) == labels).sum()
        return torch.stack([total.detach().double(), correct.double(), penalty.detach().double()])

    def _input(self, batch: Batch) -> Tensor:
        """Images of a batch as the network takes them; the one place where they are altered."""
        images = turned(torch.from_numpy(self.examples.images[batch.rows]), batch.turns)
        if self.recipe.observe_anew:
            seed = (self.recipe.seed, self.epochs_done, batch.number, self.place.rank)
            images = observed_anew(images, np.random.default_rng(seed))
        return to_input(images.to(self.place.device))

    def _penalise(self) -> Tensor:
        """The L2 penalty, its gradient added by hand: autograd's way through 4 M weights costs a sixth of a step."""
        with torch.no_grad():
            for weight, amount in l2_terms(self.net, self.recipe.l2_conv, self.recipe.l2_dense):
                if weight.grad is not None and amount:
                    weight.grad.add_(weight, alpha=2 * amount)
            return l2_penalty(self.net, self.recipe.l2_conv, self.recipe.l2_dense)

    def _validated(self, epoch: int, loss: float, accuracy: float, images_per_s: float) -> Epoch:
        rows = np.flatnonzero(self.examples.validation)
        if self.recipe.refresh_norms:
            refresh_norms(self.net, self.examples.images[self._train_rows[:: -(-len(self._train_rows) // NORM_ROWS)]])
        logits = self.logits(rows)
        labels = self.examples.labels[rows]
        scores, targets = torch.from_numpy(logits), torch.from_numpy(labels)
        validation_loss = float(crossentropy(scores, targets, "mean"))
        if self.recipe.keep == "last" or not self.kept or validation_loss < self.kept_loss:
            self.kept_epoch = epoch
            self.kept_loss = math.inf if math.isnan(validation_loss) else validation_loss  # any loss is less than none
            best = self.recipe.keep == "best"
            self.kept = {name: tensor.clone() for name, tensor in weights_of(self.net).items()} if best else {}
        two = self.examples.classes == 2
        return Epoch(
            epoch=epoch,
            loss=loss,
            accuracy=accuracy,
            validation_loss=validation_loss,
            validation_accuracy=float((decided(scores) == targets).double().mean()),
            validation_auc=auc(Judged(probabilities=logits.astype(np.float64), labels=labels)) if two else None,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            images_per_s=images_per_s,
            workers=self.place.workers,
            arithmetic=block.arithmetic(self.place.device, getattr(torch, self.recipe.precision)),
        )

    def logits(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Logits of rows of the examples in evaluation mode: shape (len(rows),), or (len(rows), 3) of three classes."""
        return in_batches(self.net, self.examples.images, rows=rows)

    def save(self, folder: Path) -> None:
        """Write everything that `restore` needs: safetensors and JSON."""
        tensors = {f"net.{name}": tensor for name, tensor in weights_of(self.net).items()}
        tensors |= {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        for number, state in self._optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
        write_state(folder, State(tensors, tuple(self.log), self.kept_epoch, self.kept_loss))

    def restore(self, folder: Path) -> None:
        """Go on from what `save` wrote in `folder`."""
        state = read_state(folder)
        fill(self.net, state.tensors("net"), str(folder))
        self.log, self.kept_epoch, self.kept_loss = list(state.log), state.kept_epoch, state.kept_loss
        self.epochs_done, self.without_gain = len(self.log), epochs_without_gain(state.log)
        self.kept = state.tensors("kept")
        numbered: dict[int, dict[str, Tensor]] = {}
        parameters = self._optimizer.param_groups[0]["params"]
        for name, tensor in state.tensors("optimizer").items():
            number, _, key = name.partition(".")
            parameter = parameters[int(number)]
            if tensor.shape == parameter.shape:  # fused AdamW walks memory: the strides must be the parameter's
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            numbered.setdefault(int(number), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def refresh_norms(net: DeepShadowsNet, images: NDArray[np.uint8]) -> None:
    """Measure the running statistics of the batch norms anew, without dropout; those that do not learn stay.

    In training they lag behind by about 100 updates, and dropout widens what the second and third norm see. On 2,035
    simulated cut-outs (short recipe, 8 epochs) measuring anew took the validation loss from 0.48 to 0.29 and the AUC
    from .91 to .95.
    """
    learning = [norm.weight.requires_grad for _, norm in net.blocks()]
    if not any(learning):
        return
    device = net.output.weight.device
    plain = DeepShadowsNet(outputs=net.output.out_features).to(device)  # its norms wait for no other worker
    plain.load_state_dict(net.state_dict())
    plain.eval()
    for (_, norm), learns in zip(plain.blocks(), learning, strict=True):
        if not learns:
            continue
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # plain mean over the batches
    with torch.no_grad():
        for batch in np.array_split(images, max(1, len(images) // 128)):
            plain(to_input(torch.from_numpy(batch).to(device)))
    net.load_state_dict(plain.state_dict())


def _optimizer(net: DeepShadowsNet, recipe: Recipe, *, in_c: bool) -> torch.optim.Optimizer:
    """The L2 penalty is part of the loss, so no optimizer decays weights by itself."""
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if recipe.optimizer == "adadelta":
        kind = adadelta.Adadelta if in_c else torch.optim.Adadelta
        return kind(learning, lr=recipe.learning_rate, rho=0.95, eps=1e-7)
    return torch.optim.AdamW(learning, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
