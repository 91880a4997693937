"""`train`: labelled cut-outs to a checkpoint, with Ray Train. A rerun goes on from the last whole epoch."""

from __future__ import annotations

import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.config import LoggingConfig

from deepshadows import __version__, storage
from deepshadows.model import checkpoint
from deepshadows.model.calibration import fit_platt
from deepshadows.model.card import CARD_NAME, Card, Training, read_card
from deepshadows.model.metrics import Judged, judge
from deepshadows.model.training import Learner, Place, State, read_state
from deepshadows.outcomes import Failure, Summary, UsageError
from deepshadows.settings import RECIPES, Recipe, Train, parse_toml
from deepshadows.verbs.epoch_lines import say, spoken
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.training_set import TrainingSet, read_training_set

STATE_FOLDER = "training"
"""Below the output while the training is not finished: its plan, and Ray Train's storage."""
PLAN_NAME = "plan.json"
RUN_NAME = "run"
MAX_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What makes a training this one: an output folder belongs to one plan."""

    recipe: dict[str, Any]
    fingerprint: str
    from_weights_sha256: str | None

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()

    def is_of(self, card: Card) -> bool:
        """True where `card` is what this plan gives."""
        made = card.training
        return (
            made is not None
            and (made.fingerprint, made.from_weights_sha256) == (self.fingerprint, self.from_weights_sha256)
            and card.recipe == self.recipe
        )


def run(settings: Train) -> Summary:
    """Train a network and write its checkpoint.

    Raises
    ------
    UsageError
        The recipe is wrong, does not fit the cut-outs or the checkpoint to start from, or the output folder holds
        another training.
    InputError
        The cut-outs or the checkpoint to start from cannot be used.
    Failure
        The workers failed more often than `MAX_FAILURES`.
    """
    started = time.monotonic()
    recipe = read_recipe(settings.recipe)
    data = read_training_set(storage.normalise(settings.cutouts), recipe)
    _check_workers(settings, recipe, data)
    start = _check_start(settings.from_checkpoint, data)
    output = storage.normalise(settings.output)
    plan = Plan(recipe=recipe.model_dump(), fingerprint=data.fingerprint, from_weights_sha256=start)
    for note in data.notes:
        say(note)
    if (card := _finished(output, plan)) is not None:
        return _summary(output, card, data, started, ("already trained; nothing to do",))
    resumed = _claim(output, plan)
    with ray_session(settings.address):
        state = _fit(settings, recipe, output)
    card = _commit(output, state, plan, data)
    return _summary(output, card, data, started, (resumed,) if resumed else (), state)


def read_recipe(name: str) -> Recipe:
    """A recipe by name, or from a TOML file."""
    if name in RECIPES:
        return RECIPES[name]
    return Recipe.resolve(parse_toml(storage.read(storage.normalise(name)).decode(errors="replace"), name), name)


def _check_workers(settings: Train, recipe: Recipe, data: TrainingSet) -> None:
    rows = int(np.count_nonzero(~data.examples.validation))
    if settings.workers > min(recipe.batch_size, rows) // 2:
        raise UsageError(
            f"--workers {settings.workers}: a batch of {recipe.batch_size} of {rows} training rows gives a worker less "
            "than two images; use fewer workers or a larger batch_size"
        )


def _check_start(url: str | None, data: TrainingSet) -> str | None:
    """sha256 of the weights to start from, once they are known to load and to fit the cut-outs."""
    if url is None:
        return None
    _, card = checkpoint.load(storage.normalise(url))
    if (card.fov_arcsec, card.stretch, card.bands) != (data.fov_arcsec, data.stretch, data.bands):
        raise UsageError(
            f"--from {url}: its network takes {card.fov_arcsec} arcsec, {card.stretch}, {','.join(card.bands)}; the "
            f"cut-outs are {data.fov_arcsec} arcsec, {data.stretch}, {','.join(data.bands)}; make them again to fit"
        )
    return card.weights_sha256


def _finished(output: str, plan: Plan) -> Card | None:
    """The card, where this very training is done; None where the folder holds no checkpoint."""
    if not storage.exists(storage.join(output, CARD_NAME)):
        return None
    card = read_card(output)
    if not plan.is_of(card):
        raise UsageError(
            f"{output}: holds checkpoint {card.name!r} of another training (other cut-outs, recipe or start); choose "
            "another --output"
        )
    return card


def _claim(output: str, plan: Plan) -> str | None:
    """Write the plan, or find the same one there: then the training goes on."""
    address = storage.join(output, STATE_FOLDER, PLAN_NAME)
    if storage.create(address, plan.to_json()):
        return None
    if storage.read(address) != plan.to_json():
        raise UsageError(
            f"{output}: an unfinished training with other cut-outs, recipe or start is here; choose another --output "
            f"or remove {storage.join(output, STATE_FOLDER)}"
        )
    return "an interrupted training was taken up again"


def _fit(settings: Train, recipe: Recipe, output: str) -> State:
    """Run the workers to the last epoch and read what the first one saved there."""
    filesystem, path = _filesystem(storage.join(output, STATE_FOLDER))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # its 2 s would be the shortest epoch
    with spoken(recipe.epochs) as callback:
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={
                "cutouts": storage.normalise(settings.cutouts),
                "recipe": recipe.model_dump(),
                "start": settings.from_checkpoint and storage.normalise(settings.from_checkpoint),
            },
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if settings.gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=settings.workers, use_gpu=settings.gpus),
            run_config=RunConfig(
                name=RUN_NAME,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[callback],
                worker_runtime_env={"env_vars": {"GOMP_SPINCOUNT": "1000"}},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        result = _fitted(trainer)
    with result.checkpoint.as_directory() as folder:
        return read_state(Path(folder))


def _fitted(trainer: Any) -> Any:
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
        raise Failure(f"training failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def _filesystem(url: str) -> tuple[Any, str]:
    """pyarrow's view of `url`. `from_uri` honours AWS_ENDPOINT_URL, as `S3FileSystem()` does not."""
    if not storage.is_s3(url):
        return pyarrow.fs.LocalFileSystem(), url
    filesystem, path = pyarrow.fs.FileSystem.from_uri(url)
    return filesystem, path


def train_worker(config: Mapping[str, Any]) -> None:
    """What each worker runs: take up the last epoch if there is one, then report each further one."""
    recipe = Recipe.model_validate(config["recipe"])
    context = ray.train.get_context()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(recipe.threads or max(1, cores // context.get_local_world_size()))
    device = str(ray.train.torch.get_device())
    place = Place(rank=context.get_world_rank(), workers=context.get_world_size(), device=device)
    start = checkpoint.load(config["start"])[0] if config["start"] else None
    learner = Learner(read_training_set(config["cutouts"], recipe).examples, recipe, place, start)
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as folder:
            learner.restore(Path(folder))
    while not learner.finished:
        epoch = learner.run_epoch()
        if epoch is None:
            ray.train.report({})
            continue
        with tempfile.TemporaryDirectory() as folder:
            learner.save(Path(folder))
            ray.train.report(asdict(epoch), checkpoint=ray.train.Checkpoint.from_directory(folder))


def _commit(output: str, state: State, plan: Plan, data: TrainingSet) -> Card:
    """Calibrate on the validation rows, write the checkpoint, then remove the training state."""
    held = data.examples.validation
    logits, labels = state.kept_logits(), data.examples.labels[held]
    name = storage.name_of(output)
    card = Card(
        name=name,
        fov_arcsec=data.fov_arcsec,
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
        ),
        software={"deepshadows": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )
    probabilities = card.probabilities(logits).astype(np.float64)
    card = card.model_copy(
        update={"metrics": judge(Judged(probabilities=probabilities, labels=labels), card.threshold)}
    )
    card = checkpoint.save(output, state.kept_network(), card)
    storage.delete_folder(storage.join(output, STATE_FOLDER))
    return card


def _summary(
    output: str, card: Card, data: TrainingSet, started: float, notes: tuple[str, ...], state: State | None = None
) -> Summary:
    measures = ("accuracy", "completeness", "purity", "auc", "ece")
    figures: dict[str, Any] = {name: card.metrics.get(name) for name in measures}
    made = card.training
    assert made is not None
    figures |= {"rows": made.rows, "validation_rows": made.validation_rows, "epochs": made.epochs}
    figures |= {"kept_epoch": made.kept_epoch, "left_out": made.left_out, "weights_sha256": card.weights_sha256}
    if state is not None:
        figures["images_per_s"] = float(np.median([epoch.images_per_s for epoch in state.log]))
    shown = ", ".join(f"{name} {value:.3f}" for name in measures if (value := figures[name]) is not None)
    counts = ", ".join(f"{count} {name}" for name, count in data.classes.items())
    left_out = ", ".join(f"{count} {name}" for name, count in data.left_out.items())
    text = [
        f"trained on {made.rows - made.validation_rows} cut-outs, validated on {made.validation_rows} ({counts})",
        *([f"left out: {left_out}"] if left_out else []),
        f"epoch {made.kept_epoch} of {made.epochs} kept; on the validation rows: {shown}",
        f"checkpoint in {output} ({time.monotonic() - started:.0f} s)",
    ]
    auc = figures["auc"]
    if auc is not None and auc < 0.6:
        text.append("the network is hardly better than chance: give more cut-outs or epochs")
    return Summary(verb="train", output=output, figures=figures, text=(*notes, *data.notes, *text))
