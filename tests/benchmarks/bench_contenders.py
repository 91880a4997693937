"""`classify` beside other ways from the same shards to the same scores, with the same engine on the same machine.

    python -m tests.benchmarks.bench_contenders [--rows 200000] [--rounds 3] [--ways NAME ...]

Each way is a process of its own, run on few rows and on many: rates and CPU are those of the difference, so starting up
(imports, Ray, loading the network) is left out. What is not installed is said. Asserts that all logits are the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepshadows.settings import DEFAULT_NETWORK
from tests.benchmarks import process_tree
from tests.benchmarks.bench_classify import SHARD_ROWS, all_logits, images_like_sky, machine, shard, write_shard
from tests.benchmarks.contenders import WAYS
from tests.benchmarks.process_tree import Cost
from tests.benchmarks.results import write_figures, write_section

OURS = "deepshadows classify"


def command(way: str, shards: Path, target: Path) -> list[str]:
    if way != OURS:
        names = [way, str(shards), str(target), DEFAULT_NETWORK]
        return [sys.executable, "-m", "tests.benchmarks.contenders", *names]
    return [sys.executable, "-m", "deepshadows", "classify", "--input", str(shards), "--output", str(target)]


def logits_of(way: str, target: Path) -> np.ndarray:
    if way == OURS:
        return all_logits(str(target))
    table = pa.concat_tables(pq.read_table(path) for path in sorted(target.rglob("*.parquet")))
    return table.sort_by("object_id")["logit"].to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=[OURS, *WAYS])
    wanted = parser.parse_args()
    print(machine(), flush=True)
    costs: dict[str, list[tuple[Cost, Cost]]] = {}
    missing: dict[str, str] = {}
    expected: np.ndarray | None = None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sizes = {"few": SHARD_ROWS, "many": wanted.rows}
        images = images_like_sky(SHARD_ROWS)
        for name, rows in sizes.items():
            for number in range(rows // SHARD_ROWS):
                write_shard(str(root / name / f"{number:03d}.parquet"), shard(number, images))
        for turn in range(wanted.rounds):
            for way in wanted.ways:
                if way in missing:
                    continue
                target = root / f"{way} {turn}"
                try:
                    few, many = (
                        process_tree.run(command(way, root / name, target / name), memory=name == "many")
                        for name in sizes
                    )
                except process_tree.FailedError as error:
                    missing[way] = str(error)
                    print(way, "does not run:", error, flush=True)
                    continue
                costs.setdefault(way, []).append((few, many))
                found = logits_of(way, target / "many")
                expected = found if expected is None else expected
                assert np.array_equal(found, expected), f"{way} gives other scores"
                print(way, turn, few, many, flush=True)
    report(costs, missing, wanted.rows - SHARD_ROWS, wanted.rounds)


def report(costs: dict[str, list[tuple[Cost, Cost]]], missing: dict[str, str], rows: int, rounds: int) -> None:
    lines = [
        f"`python -m tests.benchmarks.bench_contenders`, {machine()}. {rows + SHARD_ROWS} cut-outs on disk, the engine "
        f"of `--precision fast` for all, median of {rounds} rounds, start-up left out; all logits are the same bits. "
        f"Runnable processes on this machine meanwhile: {os.getloadavg()[2]:.0f}.",
        "",
        "| way | images/s | of classify | CPU-µs per image | peak memory, GiB |",
        "|---|---|---|---|---|",
    ]
    figures: dict[str, object] = {"machine": machine()}
    ours = 0.0
    for way, pairs in costs.items():
        rate = statistics.median(rows / (many.seconds - few.seconds) for few, many in pairs)
        cpu_us = statistics.median(1e6 * (many.cpu_s - few.cpu_s) / rows for few, many in pairs)
        peak_gib = statistics.median(many.peak_bytes for _, many in pairs) / 2**30
        ours = ours or rate
        lines.append(f"| {way} | {rate:.0f} | {rate / ours:.2f} | {cpu_us:.0f} | {peak_gib:.2f} |")
        figures |= {f"{way} images_per_s": round(rate), f"{way} cpu_us_per_image": round(cpu_us, 1)}
    lines += ["", *(f"Not run: {way}: {why}." for way, why in missing.items())]
    print("\n".join(lines))
    write_section("Classify beside other ways from shards to scores", lines)
    write_figures("contenders", figures)


if __name__ == "__main__":
    main()
