"""Images a second of the training step on CPUs: torch alone, and with our C (`model/block.c`, `model/adadelta.c`).

    python -m tests.benchmarks.bench_training [--rows 2560] [--rounds 5] [--threads 2] [--write]

Both do the same epochs of the same recipe in turn, from the same weights, without validation. The
gradients of a batch, without dropout, are compared with those in float64: with C they must be as close as torch's own.
With `--write`, its section of RESULTS.md is replaced.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch

from deepshadows.model import adadelta, block, training
from deepshadows.model.network import to_input
from deepshadows.model.training import Batch, Examples, Learner, Place
from deepshadows.settings import RECIPES, Recipe
from tests.benchmarks.bench_classify import machine
from tests.benchmarks.results import write_section

NAMES = ("paper", "2020", "v2")
WAYS = ("torch alone", "with C")


def examples(rows: int) -> Examples:
    """Noise: what a step costs does not depend on what is seen."""
    images = np.random.default_rng(0).integers(0, 256, (rows + 64, 64, 64, 3), dtype=np.uint8)
    number = np.arange(rows + 64)
    return Examples(images=images, labels=(number % 2).astype(np.int8), validation=number >= rows)


@contextmanager
def done(way: str) -> Iterator[None]:
    if way == "with C":
        assert block._library(torch.float32) is not None, "no C compiler: nothing to compare"
        yield
        return
    with mock.patch.object(block, "takes", return_value=False), mock.patch.object(adadelta, "available", lambda: False):
        yield


def learner(recipe: Recipe, rows: Examples, way: str) -> Learner:
    with done(way):
        return Learner(rows, recipe, Place(device="cpu"))


def images_per_s(trained: Learner, way: str, batches: int) -> float:
    size = trained.recipe.batch_size
    trained.net.train()
    with done(way):
        started = time.perf_counter()
        for number in range(batches):
            of = np.arange(number * size, (number + 1) * size)
            trained._update(Batch(number=number, rows=of, turns=np.zeros(size, np.int64)))
        return batches * size / (time.perf_counter() - started)


def errors(recipe: Recipe, rows: Examples) -> dict[str, float]:
    """How far the gradients of one batch lie from those in float64, without dropout and penalty: relative norms."""
    plain = recipe.model_copy(update={"l2_conv": 0.0, "l2_dense": 0.0})
    found = {way: gradients_of(learner(plain, rows, way), way) for way in WAYS}
    exact = learner(plain, rows, WAYS[0])
    exact.net.double()
    exact.recipe = plain.model_copy(update={"precision": "float32"})
    with mock.patch.object(training, "to_input", lambda images: to_input(images).double()):
        wanted = gradients_of(exact, WAYS[0])
    return {way: float((found[way] - wanted).norm() / wanted.norm()) for way in WAYS}


def gradients_of(one: Learner, way: str) -> torch.Tensor:
    one.net.dropout.p = 0.0
    one._optimizer = torch.optim.SGD(one.net.parameters(), lr=0.0)
    images_per_s(one, way, 1)
    gradients = [parameter.grad for parameter in one.net.parameters() if parameter.grad is not None]
    return torch.cat([gradient.double().flatten() for gradient in gradients])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    rows = examples(wanted.rows)
    lines = [
        f"{machine()}; {wanted.threads} threads; medians of {wanted.rounds} rounds of {wanted.rows} images.",
        "",
        "| recipe | torch alone, images/s | with C, images/s | ratio | torch's gradients off by | C's off by |",
        "|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        recipe = RECIPES[name]
        trained = {way: learner(recipe, rows, way) for way in WAYS}
        batches = wanted.rows // recipe.batch_size
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(wanted.rounds + 1):  # the first warms up
            for way in WAYS:
                rate = images_per_s(trained[way], way, batches)
                if number:
                    rates[way].append(rate)
        torch_alone, with_c = (statistics.median(rates[way]) for way in WAYS)
        ratio = statistics.median(c / t for t, c in zip(*rates.values(), strict=True))
        of_torch, of_c = errors(recipe, rows).values()
        assert of_c < 1.1 * of_torch, f"{name}: gradients with C are {of_c} off, torch's {of_torch}"
        lines.append(f"| {name} | {torch_alone:,.0f} | {with_c:,.0f} | {ratio:.2f} | {of_torch:.1e} | {of_c:.1e} |")
        print(lines[-1], flush=True)
    print("\n".join(lines))
    if wanted.write:
        write_section("Training on CPUs", lines)


if __name__ == "__main__":
    main()
