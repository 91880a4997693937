"""A checkpoint made ready to score images: the engine is chosen, and checked against the reference, at load. No Ray."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from deepshadows.model import checkpoint, engines, uncertainty
from deepshadows.model.card import Card
from deepshadows.model.cuda import CudaEngine
from deepshadows.model.domain import Domain
from deepshadows.model.engines import Engine, EngineUnavailableError
from deepshadows.model.fused import fused_cpu
from deepshadows.outcomes import InputError

PROBE_IMAGES = 64
MOST_DIFFERENCE = 0.02
"""Of p_lsbg between a fast engine and the reference, on each probe image (DESIGN.md section 5)."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What is said of N images.

    Attributes
    ----------
    logits, p_lsbg : float32 (N,)
    p_lsbg_err : float32 (N,)
        1-sigma; NaN where the checkpoint states no uncertainty.
    domain_distance : float32 (N,)
        How unlike the training images, in units of the limit; NaN where the checkpoint states no domain.
    summaries : float32 (N, F)
        Of the images, see `domain.SUMMARIES`; F is 0 where the checkpoint states no domain.
    """

    logits: NDArray[np.float32]
    p_lsbg: NDArray[np.float32]
    p_lsbg_err: NDArray[np.float32]
    domain_distance: NDArray[np.float32]
    summaries: NDArray[np.float32]

    @property
    def out_of_domain(self) -> NDArray[np.bool_]:
        """Unlike the training images, shape (N,)."""
        return np.asarray(self.domain_distance > 1)

    def placed(self, rows: NDArray[np.bool_], fill: float) -> Scores:
        """Scores of the True ones of `rows` at their places, `fill` at the others."""

        def at_place(values: NDArray[np.float32]) -> NDArray[np.float32]:
            column = np.full((len(rows), *values.shape[1:]), fill, np.float32)
            column[rows] = values
            return column

        return Scores(**{name: at_place(values) for name, values in vars(self).items()})

    @classmethod
    def concatenate(cls, parts: Sequence[Scores]) -> Scores:
        """One after the other; at least one."""
        return cls(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


@dataclass(frozen=True)
class Scorer:
    """A network with its card; `engine` is recorded with the scores."""

    card: Card
    engine: str
    _run: Engine
    _domain: Domain | None = None

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Everything about a batch of any size.

        Parameters
        ----------
        images : uint8 (N, 64, 64, 3)
            R, G, B = z, r, g, in the card's field and stretch.

        Returns
        -------
        Scores
            With exact precision each row depends on its own image alone, bit for bit; distances do so with any.

        Raises
        ------
        InputError
            The images have another shape or dtype.
        """
        if images.dtype != np.uint8 or images.shape[1:] != (64, 64, 3):
            raise InputError(f"images are {images.dtype} {images.shape}; the network takes uint8 (N, 64, 64, 3)")
        outputs = self._run.measure(images)
        unknown = np.full(len(images), np.nan, np.float32)
        return Scores(
            logits=outputs.logits,
            p_lsbg=self.card.probabilities(outputs.logits),
            p_lsbg_err=self.card.errors(outputs.logits, outputs.variances),
            domain_distance=self._domain.distance(outputs.summaries) if self._domain else unknown,
            summaries=outputs.summaries,
        )


def load_scorer(
    url: str,
    *,
    precision: Literal["exact", "fast"],
    batch_size: int = 256,
    threads: int = 2,
    device: Literal["cpu", "cuda"] | None = None,
) -> Scorer:
    """Read the checkpoint in folder `url` and choose how to run it.

    Parameters
    ----------
    precision : {"exact", "fast"}
        exact is the fp32 reference. fast takes the first engine that this machine has and that agrees with the
        reference on the probe; where none does, the reference, with the reason in `Scorer.engine`.
    batch_size : int
        Images in one call of a fast engine; the reference has a batch of its own.
    device : {"cpu", "cuda"}, optional
        Without it, CUDA where there is a device.

    Raises
    ------
    InputError
        The checkpoint cannot be used; see `checkpoint.load`.
    EngineUnavailableError
        CUDA was asked for and there is none.
    """
    net, card = checkpoint.load(url)
    fitted = uncertainty.read(url, card)
    on_cuda = (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cuda"
    halves: list[Callable[[], Engine]] = [
        lambda: fused_cpu(net, fitted, batch_size=batch_size, threads=threads),
        lambda: engines.folded_cpu(net, torch.bfloat16, fitted, batch_size=batch_size, threads=threads),
    ]
    builders: list[Callable[[], Engine]] = [
        *(reversed(halves) if has_tiles() else halves),
        lambda: engines.folded_cpu(net, torch.float32, fitted, batch_size=batch_size, threads=threads),
    ]
    reference = engines.exact_cpu(net, fitted, threads=threads)
    slow: Engine = CudaEngine(net, fitted, exact=True, batch_size=batch_size) if on_cuda else reference
    domain = fitted.domain if fitted else None
    if precision == "exact":
        return Scorer(card, slow.name, slow, domain)
    if on_cuda:
        builders = [lambda: CudaEngine(net, fitted, exact=False, batch_size=batch_size)]
    return choose(card, builders, reference, slow, domain)


def has_tiles() -> bool:
    """Whether the CPU multiplies tiles of bfloat16 (AMX): oneDNN uses them, at 1.5 times the rate of our C without."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def choose(
    card: Card,
    builders: Sequence[Callable[[], Engine]],
    reference: Engine,
    slow: Engine,
    domain: Domain | None = None,
) -> Scorer:
    """The first engine that can be built here and agrees with `reference`; where none does, `slow`.

    Parameters
    ----------
    builders : sequence of callables
        Each makes an engine, or raises `EngineUnavailableError`.
    """
    refused = []
    for build in builders:
        try:
            engine = build()
        except EngineUnavailableError as error:
            refused.append(str(error))
            continue
        difference = probe(card, engine, reference)
        if difference <= MOST_DIFFERENCE:
            return Scorer(card, engine.name, engine, domain)
        refused.append(f"{engine.name} differs from the reference by {difference:.3f} in p_lsbg or its error")
    reasons = "; ".join(refused)
    warnings.warn(f"no fast engine can be used here: {reasons}; scoring with {slow.name}", stacklevel=3)
    return Scorer(card, f"{slow.name} (instead of fast: {reasons})", slow, domain)


def probe(card: Card, engine: Engine, reference: Engine) -> float:
    """Largest difference in p_lsbg, or its error, between two engines on the probe images; infinite if not finite."""
    images = probe_images()
    one, other = engine.measure(images), reference.measure(images)
    difference = np.abs(card.probabilities(one.logits) - card.probabilities(other.logits))
    if not np.isnan(other.variances).all():
        errors = np.abs(card.errors(one.logits, one.variances) - card.errors(other.logits, other.variances))
        difference = np.maximum(difference, errors)
    return float(difference.max()) if np.isfinite(difference).all() else np.inf


def probe_images() -> NDArray[np.uint8]:
    """uint8 (64, 64, 64, 3): blank sky, smudges from faint to saturated, off-centre ones, noise; always the same."""
    rng = np.random.default_rng(20_210_101)
    rows, columns = np.mgrid[:64, :64]
    images = rng.normal(32.0, 6.0, (PROBE_IMAGES, 64, 64, 3))
    for number, image in enumerate(images):
        centre = rng.uniform(22, 42, 2) if number % 2 else (31.5, 31.5)
        width = rng.uniform(1.5, 12)
        brightness = np.geomspace(2, 400, PROBE_IMAGES)[number] * rng.uniform(0.6, 1.0, 3)
        radius2 = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
        image += np.exp(-0.5 * radius2 / width**2)[:, :, None] * brightness
    images[-4:] = rng.uniform(0, 255, images[-4:].shape)
    images[0] = 32.0
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)
