"""A training with Ray Train, as `train` and `finetune` share it. A rerun goes on from the last whole epoch."""

from __future__ import annotations

import math
import os
import signal
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.config import LoggingConfig

from deepshadows import storage
from deepshadows.model import checkpoint, uncertainty
from deepshadows.model.calibration import fit_platt
from deepshadows.model.card import Card, Training
from deepshadows.model.metrics import MEASURES, Judged, judge
from deepshadows.model.network import in_batches
from deepshadows.model.training import Learner, Place
from deepshadows.model.training_state import State, read_state
from deepshadows.outcomes import Failure, InputError, UsageError
from deepshadows.run.lease import Lease, check_holder
from deepshadows.run.record import software_versions
from deepshadows.settings import Recipe
from deepshadows.sky.cutouts import METHOD
from deepshadows.verbs.epoch_lines import spoken
from deepshadows.verbs.progress import say
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.training_plan import STATE_FOLDER, Order, Plan, claim, finished
from deepshadows.verbs.training_set import TrainingSet, read_training_set

RUN_NAME = "run"
MAX_FAILURES = 3
START_TIMEOUT_S = 20
"""By then Ray Train knows of a lost node; where there is no room for the workers, it tries again."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a training ended; `images_per_s` is None where all was done already."""

    card: Card
    data: TrainingSet
    images_per_s: float | None
    notes: tuple[str, ...]


def carry_out(order: Order, data: TrainingSet) -> Trained:
    """Train, or go on with a training, up to the checkpoint.

    Raises
    ------
    UsageError
        There are more workers than images for them, or the output folder holds another training.
    InputError
        The checkpoint to start from cannot be used.
    HeldError
        Another driver works on this training.
    Failure
        The workers failed more often than `MAX_FAILURES`.
    """
    _check_workers(order, data)
    start = checkpoint.load(order.start)[1].weights_sha256 if order.start else None
    plan = Plan(recipe=order.recipe.model_dump(), fingerprint=data.fingerprint, from_weights_sha256=start)
    for note in data.notes:
        say(note)
    if (card := finished(order.output, plan)) is not None:
        return _done_already(card, data)
    folder = storage.join(order.output, STATE_FOLDER)
    with Lease(folder) as lease:
        card = finished(order.output, plan)  # committed while this driver waited for the lease?
        trained = _trained(order, plan, data, lease) if card is None else _done_already(card, data)
    storage.delete_folder(folder)  # now that no heartbeat writes there
    return trained


def _trained(order: Order, plan: Plan, data: TrainingSet, lease: Lease) -> Trained:
    """Train to the end, or go on where a training stopped, and write the checkpoint."""
    resumed = claim(order.output, plan)
    with ray_session(order.address):
        state = _fit(order, data.fingerprint, lease.token)
    lease.check()
    card = _commit(order, state, plan, data, lease)
    images_per_s = float(np.median([epoch.images_per_s for epoch in state.log]))
    counts = [epoch.workers for epoch in state.log]
    resized = f"workers by epoch: {' '.join(map(str, counts))}" if len(set(counts)) > 1 else None
    notes = tuple(note for note in (resumed, resized) if note)
    return Trained(card=card, data=data, images_per_s=images_per_s, notes=notes)


def _done_already(card: Card, data: TrainingSet) -> Trained:
    return Trained(card=card, data=data, images_per_s=None, notes=("already trained; nothing to do",))


def _check_workers(order: Order, data: TrainingSet) -> None:
    rows = int(np.count_nonzero(~data.examples.validation))
    if order.workers > min(order.recipe.batch_size, rows) // 2:
        raise UsageError(
            f"--workers {order.workers}: a batch of {order.recipe.batch_size} of {rows} training rows gives a worker "
            "less than two images; use fewer workers or a larger batch_size"
        )


def _fit(order: Order, fingerprint: str, token: str) -> State:
    """Run the workers to the last epoch and read what the first one saved there."""
    filesystem, path = storage.arrow_location(storage.join(order.output, STATE_FOLDER))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # its 2 s would be the shortest epoch
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_TIMEOUT_S)
    starts = math.ceil(order.no_progress_s / START_TIMEOUT_S)
    with spoken(order.recipe.epochs, order.min_workers) as callbacks:
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={
                "cutouts": order.cutouts,
                "fingerprint": fingerprint,
                "recipe": order.recipe.model_dump(),
                "start": order.start,
                "folder": storage.join(order.output, STATE_FOLDER),
                "token": token,
            },
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if order.gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=_count(order), use_gpu=order.gpus),
            run_config=RunConfig(
                name=RUN_NAME,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=starts - 1),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=callbacks,
                worker_runtime_env={"env_vars": {"GOMP_SPINCOUNT": "1000"}},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        result = _fitted(trainer, order)
    with result.checkpoint.as_directory() as folder:
        return read_state(Path(folder))


def _count(order: Order) -> int | tuple[int, int]:
    """Workers as Ray Train takes them: a range where fewer will do."""
    return order.workers if order.min_workers == order.workers else (order.min_workers, order.workers)


def _fitted(trainer: Any, order: Order) -> Any:
    """`trainer.fit()` with its errors as ours, and without the signal handler that it leaves behind."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        return trainer.fit()
    except ray.train.v2.api.exceptions.WorkerGroupError as error:
        causes = [cause for cause in error.worker_failures.values() if isinstance(cause, Failure)]
        if causes:
            raise causes[0] from error
        last = str(error).strip().splitlines()[-1]
        raise Failure(f"training failed {MAX_FAILURES + 1} times, the last time with: {last}") from error
    except ray.train.TrainingFailedError as error:
        if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            raise Failure(
                f"training stopped: there was no room for {order.min_workers} workers in {order.no_progress_s} s "
                "(--no-progress-s); look at the nodes of the cluster, then run the same command again to go on"
            ) from error
        raise Failure(f"training failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def train_worker(config: Mapping[str, Any]) -> None:
    """What each worker runs: take up the last epoch if there is one, then report each further one.

    Nothing is reported once another driver holds the lease: a driver that is paused leaves its workers at work.
    """
    recipe = Recipe.model_validate(config["recipe"])
    context = ray.train.get_context()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(recipe.threads or max(1, cores // context.get_local_world_size()))
    device = str(ray.train.torch.get_device())
    place = Place(rank=context.get_world_rank(), workers=context.get_world_size(), device=device)
    check_holder(config["folder"], config["token"])
    start = checkpoint.load(config["start"])[0] if config["start"] else None
    data = read_training_set(config["cutouts"], recipe)
    if data.fingerprint != config["fingerprint"]:
        raise InputError(f"{config['cutouts']}: changed since the training began; give another --output")
    learner = Learner(data.examples, recipe, place, start)
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as folder:
            learner.restore(Path(folder))
    while not learner.finished:
        epoch = learner.run_epoch()
        if epoch is None:
            ray.train.report({})
            continue
        check_holder(config["folder"], config["token"])
        with tempfile.TemporaryDirectory() as folder:
            learner.save(Path(folder))
            ray.train.report(asdict(epoch), checkpoint=ray.train.Checkpoint.from_directory(folder))


def _commit(order: Order, state: State, plan: Plan, data: TrainingSet, lease: Lease) -> Card:
    """Calibrate on the validation rows, fit the uncertainty, and write the checkpoint if the lease is still ours.

    All is measured on the weights as they are stored.
    """
    output, held = order.output, data.examples.validation
    dtype = torch.float16 if order.recipe.weights == "float16" else torch.float32
    net = state.kept_network().to(dtype).float()
    logits, labels = in_batches(net, data.examples.images[held]), data.examples.labels[held]
    name = storage.name_of(output)
    card = Card(
        name=name,
        fov_arcsec=data.fov_arcsec,
        resampling=METHOD,
        stretch=data.stretch,
        bands=data.bands,
        survey=data.stretch.partition("-")[0],
        calibration=fit_platt(logits, labels),
        recipe=plan.recipe,
        training=Training(
            fingerprint=plan.fingerprint,
            rows=len(held),
            validation_rows=len(labels),
            classes=data.classes,
            left_out=data.left_out,
            seed=plan.recipe["seed"],
            split=plan.recipe["split"],
            epochs=len(state.log),
            kept_epoch=state.kept_epoch,
            from_weights_sha256=plan.from_weights_sha256,
            arithmetic=state.log[-1].arithmetic,
        ),
        software=software_versions(),
    )
    probabilities = card.probabilities(logits).astype(np.float64)
    card = card.model_copy(
        update={
            "metrics": judge(
                Judged(probabilities=probabilities, labels=labels), card.threshold, calibrated_at=card.prevalence
            )
        }
    )
    fitted = uncertainty.fit(net, card, data.examples.images[~held])
    lease.confirm()
    card = uncertainty.write(output, fitted, card)
    lease.confirm()
    return checkpoint.save(output, net, card, dtype)


def figures_of(trained: Trained) -> dict[str, Any]:
    """Figures of a summary."""
    card, made = trained.card, trained.card.training
    assert made is not None
    figures: dict[str, Any] = {name: card.metrics.get(name) for name in MEASURES}
    figures |= {"rows": made.rows, "validation_rows": made.validation_rows, "epochs": made.epochs}
    figures |= {"kept_epoch": made.kept_epoch, "left_out": made.left_out, "weights_sha256": card.weights_sha256}
    if trained.images_per_s is not None:
        figures["images_per_s"] = trained.images_per_s
    return figures


def lines_of(trained: Trained) -> list[str]:
    """Lines of a summary: what was trained on, and, last, for how long."""
    data, made = trained.data, trained.card.training
    assert made is not None
    counts = ", ".join(f"{count} {name}" for name, count in data.classes.items())
    left_out = ", ".join(f"{count} {name}" for name, count in data.left_out.items())
    wanted = trained.card.recipe.get("epochs", made.epochs)
    stopped = f" (stopped early: {wanted} were allowed)" if made.epochs < wanted else ""
    return [
        *trained.notes,
        *data.notes,
        f"trained on {made.rows - made.validation_rows} cut-outs, validated on {made.validation_rows} ({counts})",
        *([f"left out: {left_out}"] if left_out else []),
        *([f"steps by {made.arithmetic}: C is faster"] if made.arithmetic.startswith("torch,") else []),
        f"epoch {made.kept_epoch} of {made.epochs} kept{stopped}",
    ]
