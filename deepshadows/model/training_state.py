"""What a training has come to between two epochs: its log, weights and optimizer, as safetensors and JSON. No Ray."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from deepshadows.model.checkpoint import fill
from deepshadows.model.network import DeepShadowsNet
from deepshadows.outcomes import InputError

STATE_TENSORS = "state.safetensors"
STATE_RECORD = "state.json"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one pass over the training rows gave. `loss` is with the L2 penalty, as Keras logs it."""

    epoch: int
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_auc: float | None
    """None where it is not defined: one class only, or three."""
    learning_rate: float
    images_per_s: float
    workers: int = 1
    """Processes that shared the epoch."""
    arithmetic: str = ""
    """What computed the steps: C; or torch, and on a CPU why not C."""


@dataclass(frozen=True)
class State:
    """What `write_state` wrote. Tensors are named `net.*`, `kept.*` and `optimizer.*`."""

    all_tensors: dict[str, Tensor]
    log: tuple[Epoch, ...]
    kept_epoch: int
    kept_loss: float

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Those of one part (net, kept, optimizer), without the prefix."""
        return {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in self.all_tensors.items()
            if name.startswith(f"{prefix}.")
        }

    def kept_network(self) -> DeepShadowsNet:
        """The network with the weights that the recipe keeps."""
        weights = self.tensors("kept") or self.tensors("net")
        net = DeepShadowsNet(outputs=len(weights["output.bias"]))
        fill(net, weights, "training state")
        return net.eval()


def write_state(folder: Path, state: State) -> None:
    """Two files in `folder`."""
    safetensors.torch.save_file(state.all_tensors, folder / STATE_TENSORS)
    record = {
        "kept_epoch": state.kept_epoch,
        "kept_loss": state.kept_loss,
        "log": [asdict(epoch) for epoch in state.log],
    }
    (folder / STATE_RECORD).write_text(json.dumps(record))


def read_state(folder: Path) -> State:
    """The state of a training between two epochs.

    Raises
    ------
    InputError
        A file is missing or damaged.
    """
    try:
        record = json.loads((folder / STATE_RECORD).read_text())
        return State(
            all_tensors=safetensors.torch.load_file(folder / STATE_TENSORS),
            log=tuple(Epoch(**epoch) for epoch in record["log"]),
            kept_epoch=record["kept_epoch"],
            kept_loss=record["kept_loss"],
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise InputError(
            f"{folder}: the state of the training is damaged; remove the folder `training` to train anew: {error}"
        ) from error


def epochs_without_gain(log: tuple[Epoch, ...]) -> int:
    """Epochs since the validation loss was lowest, first of equals."""
    losses = [epoch.validation_loss for epoch in log]
    return len(losses) - 1 - int(np.nanargmin(losses)) if np.isfinite(losses).any() else len(losses)
