"""Training jobs and the one place that runs them: Ray tasks, each result kept on disk so that a rerun goes on."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import ray
import safetensors.torch
import sklearn
import torch
from numpy.typing import NDArray

from deepshadows import __version__, storage
from deepshadows.model import baselines
from deepshadows.model.checkpoint import fill, weights_of
from deepshadows.model.network import DeepShadowsNet, in_batches
from deepshadows.model.training import Examples, Learner, Place
from deepshadows.outcomes import InputError, NotFoundError, UsageError
from deepshadows.settings import Recipe
from deepshadows.verbs.paper.findings import Number, Row
from deepshadows.verbs.paper.samples import Rows, Sample
from deepshadows.verbs.progress import say, track
from deepshadows.verbs.reports import heard
from deepshadows.verbs.tasks import in_order

_GPU_SHARE = 0.25
"""Of one GPU, for one training: the network is small and leaves most of it idle."""
TOLD_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job gave.

    Attributes
    ----------
    scores : float (len(test),) or (len(test), 3)
        Logits, float32; of a classifier on features probabilities, float64.
    epochs : list of dict
        The training log, of a network.
    weights : bytes, optional
        Safetensors.
    """

    scores: NDArray[np.floating]
    seconds: float
    epochs: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    weights: bytes | None = field(default=None, repr=False)

    def to_bytes(self) -> bytes:
        record = json.dumps({"seconds": self.seconds, "epochs": self.epochs, "details": self.details})
        sink = io.BytesIO()
        np.savez(sink, scores=self.scores, record=record, weights=np.frombuffer(self.weights or b"", np.uint8))
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Outcome:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            record = json.loads(str(archive["record"]))
            return cls(scores=archive["scores"], weights=archive["weights"].tobytes() or None, **record)


Tell = Callable[[str], None]
"""Takes a few words on how far a training is."""


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What one job computes on."""

    threads: int
    gpu: bool

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"


class Job(Protocol):
    """A training that can be done anywhere: it holds all it needs but the pixels."""

    @property
    def name(self) -> str: ...

    def identity(self) -> Sequence[Any]:
        """Arrays, bytes and JSON values that decide the result."""
        ...

    def resources(self, place: Workplace) -> Mapping[str, float]:
        """What Ray keeps free for it."""
        ...

    def work(self, images: NDArray[np.uint8], place: Workplace, tell: Tell) -> Outcome: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkJob:
    """Train the network on rows of a sample, then score others.

    Attributes
    ----------
    labels : int8 (N,)
        What the training is told of each row of the sample.
    validation : int (V,)
        Rows watched while training; nothing is chosen by them, the weights are those of the last epoch.
    start : bytes, optional
        Weights to start from; without them, initial weights by the recipe's seed.
    """

    name: str
    labels: NDArray[np.int8]
    train: Rows
    validation: Rows
    test: Rows
    recipe: Recipe
    classes: int = 2
    start: bytes | None = field(default=None, repr=False)
    keep_weights: bool = False

    def row(self, numbers: tuple[Number, ...], name: str | None = None) -> Row:
        """A row of a table about this training."""
        return Row(
            name=name or self.name,
            n_train=len(self.train),
            n_test=len(self.test),
            epochs=self.recipe.epochs,
            seed=self.recipe.seed,
            numbers=numbers,
        )

    def identity(self) -> Sequence[Any]:
        rows = (self.train, self.validation, self.test)
        told = (self.labels[self.train], self.labels[self.validation])
        recipe = self.recipe.model_dump(exclude={"name", "threads", "weights"})
        return ("network", *rows, *told, self.start or b"", recipe, self.classes, self.keep_weights, torch.__version__)

    def resources(self, place: Workplace) -> Mapping[str, float]:
        return {"num_cpus": place.threads, "num_gpus": _GPU_SHARE if place.gpu else 0}

    def work(self, images: NDArray[np.uint8], place: Workplace, tell: Tell) -> Outcome:
        torch.set_num_threads(place.threads)
        rows = np.concatenate([self.train, self.validation])
        examples = Examples(
            images=images[rows],
            labels=self.labels[rows],
            validation=np.arange(len(rows)) >= len(self.train),
            classes=self.classes,
        )
        started = time.perf_counter()
        start = network(self.start) if self.start else None
        learner = Learner(examples, self.recipe, Place(device=place.device), start)
        while not learner.finished:
            learner.run_epoch()
            epoch = learner.log[-1]
            tell(f"epoch {epoch.epoch}/{self.recipe.epochs}, loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.3f}")
        seconds = time.perf_counter() - started
        return Outcome(
            scores=in_batches(learner.net, images, rows=self.test),
            seconds=seconds,
            epochs=[asdict(epoch) for epoch in learner.log],
            weights=safetensors.torch.save(weights_of(learner.net)) if self.keep_weights else None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureJob:
    """Fit a classifier on the training rows and score the test rows.

    Attributes
    ----------
    search_on : int (V,), optional
        Rows on which its parameters are searched; without them, they are the paper's.
    """

    name: str
    kind: baselines.Kind
    values: NDArray[np.float64]
    labels: NDArray[np.int8]
    train: Rows
    test: Rows
    seed: int
    search_on: Rows | None

    def identity(self) -> Sequence[Any]:
        rows = (self.train, self.search_on, self.test)
        grid = [dict(part) for part in baselines.GRIDS[self.kind]]
        papers = dict(baselines.PAPER_PARAMETERS[self.kind])
        return ("features", self.kind, self.values, self.labels, *rows, self.seed, grid, papers, sklearn.__version__)

    def resources(self, place: Workplace) -> Mapping[str, float]:
        return {"num_cpus": 1}  # neither classifier is fitted on more

    def work(self, images: NDArray[np.uint8], place: Workplace, tell: Tell) -> Outcome:
        started = time.perf_counter()
        parameters, held = dict(baselines.PAPER_PARAMETERS[self.kind]), self.search_on
        if held is not None:
            parameters = baselines.search(self.kind, self.values[held], self.labels[held], seed=self.seed).best_params_
        model = baselines.trained(self.kind, self.values[self.train], self.labels[self.train], parameters, self.seed)
        scores = baselines.probabilities(model, self.values[self.test])
        details = {"parameters": parameters}
        return Outcome(scores=scores, seconds=time.perf_counter() - started, details=details)


def network(weights: bytes) -> DeepShadowsNet:
    """The network of one logit with these weights."""
    net = DeepShadowsNet()
    fill(net, safetensors.torch.load(weights), "weights of an experiment")
    return net.eval()


@ray.remote
def _work(job: Job, images: NDArray[np.uint8], place: Workplace, reports: Any) -> Outcome:
    def tell(words: str) -> None:
        ray.get(reports.add.remote({"name": job.name, "words": words}))  # before the outcome is there

    return job.work(images, place, tell)


class _Task:
    """The task of a job, with the resources of that job."""

    @staticmethod
    def remote(job: Job, images: Any, place: Workplace, reports: Any) -> Any:
        return _work.options(**job.resources(place)).remote(job, images, place, reports)


class _Standing:
    """Tells now and then how far those trainings are that told something new."""

    def __init__(self) -> None:
        self._words: dict[str, str] = {}
        self._said = time.monotonic()

    def __call__(self, reported: list[dict[str, Any]], running: bool) -> None:
        self._words |= {report["name"]: report["words"] for report in reported}
        if self._words and time.monotonic() - self._said >= TOLD_EVERY_S:
            say("; ".join(f"{name}: {words}" for name, words in self._words.items()))
            self._words, self._said = {}, time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Runs jobs as Ray tasks and keeps what they give below `folder`; one that is there already is read."""

    folder: str
    place: Workplace
    _images: dict[str, Any] = field(default_factory=dict)
    """Pixels of each sample in Ray's object store, by fingerprint."""

    def run(self, sample: Sample | None, jobs: Sequence[Job], what: str) -> list[Outcome]:
        """Outcomes in the order of the jobs, which are of this sample's pixels, or of none."""
        pixels = sample.fingerprint if sample else ""
        addresses = [self._address(pixels, job) for job in jobs]
        found = {address: outcome for address in addresses if (outcome := _read(address)) is not None}
        missing = {address: job for address, job in zip(addresses, jobs, strict=True) if address not in found}
        if missing:
            images = sample.images if sample else np.empty((0, 64, 64, 3), np.uint8)
            found |= self._done(images, pixels, missing, what)
        return [found[address] for address in addresses]

    def _done(self, images: NDArray[np.uint8], pixels: str, jobs: Mapping[str, Job], what: str) -> dict[str, Outcome]:
        if pixels not in self._images:
            self._images[pixels] = ray.put(images)
        self._check_room()
        done = {}
        with heard(_Standing()) as reports:
            items = [(job, self._images[pixels], self.place, reports) for job in jobs.values()]
            results = zip(jobs, in_order(_Task, items), strict=True)
            for address, outcome in track(results, what, len(jobs)):
                storage.write(address, outcome.to_bytes())
                done[address] = outcome
        return done

    def _check_room(self) -> None:
        """A task that asks for more than any one node has would wait for ever."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = _GPU_SHARE if self.place.gpu else 0
        if not any(node.get("CPU", 0) >= self.place.threads and node.get("GPU", 0) >= share for node in nodes):
            flags = f"--threads {self.place.threads}" + (" --gpus" if self.place.gpu else "")
            lacks = (
                "so many CPUs and a GPU; use fewer threads, or no GPUs" if self.place.gpu else "so many CPUs; use fewer"
            )
            raise UsageError(f"{flags}: no node has {lacks}")

    def _address(self, pixels: str, job: Job) -> str:
        return storage.join(self.folder, f"{_digest((pixels, __version__, *job.identity()))}.npz")


def _read(address: str) -> Outcome | None:
    try:
        return Outcome.from_bytes(storage.read(address))
    except NotFoundError:
        return None
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{address}: cannot be read; delete the file, and the training is done again") from error


def _digest(parts: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            data = f"{part.dtype} {part.shape}".encode() + np.ascontiguousarray(part).tobytes()
        else:
            data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return digest.hexdigest()[:32]
