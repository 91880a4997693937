"""CPU of a work unit beside that of its scorer alone, from disk and from S3, without Ray: what bounds `classify`.

    python -m tests.benchmarks.bench_unit [--units 4] [--rounds 5]

Microseconds of CPU an image, least of the rounds, of this process and of the server. By CPU, not by the clock, so that
other work on the machine hardly counts; the ratio is that of a machine whose cores are all busy with this alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable

import numpy as np

from deepshadows import storage
from deepshadows.model.scorer import load_scorer
from deepshadows.run.scores import commit
from deepshadows.run.units import Unit, shard_units
from deepshadows.settings import DEFAULT_NETWORK, Classify
from deepshadows.sky.shards import ROW_GROUP_ROWS
from deepshadows.verbs.unit_scoring import score_unit
from tests.benchmarks.bench_classify import (
    SERVER_MEMORY,
    SHARD_ROWS,
    images_like_sky,
    machine,
    server_cpu_s,
    shard,
    write_shard,
)
from tests.benchmarks.results import write_figures, write_section
from tests.seaweed import SeaweedFS


def units_of(place: str, images: np.ndarray, count: int) -> list[Unit]:
    units: list[Unit] = []
    for number in range(count):
        url = storage.join(place, f"{number}.parquet")
        write_shard(url, shard(number, images))
        groups = [ROW_GROUP_ROWS] * (SHARD_ROWS // ROW_GROUP_ROWS)
        units += shard_units(storage.stat(url), SHARD_ROWS, SHARD_ROWS, groups)
    return units


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    scorer = load_scorer(DEFAULT_NETWORK, precision="fast", threads=os.cpu_count() or 1)
    images = images_like_sky(SHARD_ROWS)
    server = SeaweedFS(memory=SERVER_MEMORY)
    server.start()
    os.environ.update(server.environment())
    try:
        with tempfile.TemporaryDirectory() as folder:
            places = {"disk": f"{folder}/shards", "S3": storage.join(server.create_bucket("units"), "shards")}
            units = {name: units_of(place, images, wanted.units) for name, place in places.items()}

            def run(name: str, turn: int) -> None:
                settings = Classify(input=places[name], output=places[name])
                for unit in units[name]:
                    table = score_unit(unit, scorer, settings, "run")
                    commit(f"{places[name]}-run-{turn}", unit, table, "fingerprint", scorer.engine)

            ways: dict[str, Callable[[int], None]] = {
                "scorer alone": lambda turn: [scorer.score(images) for _ in range(wanted.units)] and None,
                "units from disk": lambda turn: run("disk", turn),
                "units from S3": lambda turn: run("S3", turn),
            }
            rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for turn in range(wanted.rounds):
                for name, way in ways.items():
                    client_s, serving_s = time.process_time(), server_cpu_s(server)
                    way(turn)
                    spent = time.process_time() - client_s, server_cpu_s(server) - serving_s
                    client_us, serving_us = (1e6 * one / (wanted.units * SHARD_ROWS) for one in spent)
                    rounds[name].append((client_us, serving_us))
    finally:
        server.stop()
    report({name: min(found, key=sum) for name, found in rounds.items()}, scorer.engine, wanted.rounds)


def report(costs: dict[str, tuple[float, float]], engine: str, rounds: int) -> None:
    alone_us = costs["scorer alone"][0]
    lines = [
        f"`python -m tests.benchmarks.bench_unit`, {machine()}; {engine}. CPU-µs per image, least of {rounds} rounds: "
        "read, score, commit. Images/s: of two cores that do nothing else.",
        "",
        "| | this process | server | of the scorer alone | images/s |",
        "|---|---|---|---|---|",
    ]
    figures: dict[str, object] = {"machine": machine()}
    for name, (client_us, serving_us) in costs.items():
        both_us = client_us + (serving_us if name.endswith("S3") else 0.0)
        lines.append(
            f"| {name} | {client_us:.1f} | {serving_us:.1f} | {alone_us / both_us:.2f} | {2e6 / both_us:.0f} |"
        )
        figures |= {f"{name} cpu_us_per_image": round(both_us, 1), f"{name} share": round(alone_us / both_us, 3)}
    print("\n".join(lines))
    write_section("CPU of a work unit", lines)
    write_figures("unit", figures)


if __name__ == "__main__":
    main()
