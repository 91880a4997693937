"""How fast `classify` is beside its own scorer, from disk and from S3; its memory; what a resume scores.

    python -m tests.benchmarks.bench_classify [--rows 150000] [--rounds 3] [--memory-rows 50000 500000]

Prints the machine, the versions and medians, asserts that the outputs agree, and rewrites RESULTS.md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.model.card import Card
from deepshadows.model.checkpoint import save
from deepshadows.model.network import DeepShadowsNet
from deepshadows.model.scorer import load_scorer
from deepshadows.run.manifest import read_manifest, score_objects
from deepshadows.run.record import software_versions
from deepshadows.sky.shards import Cutouts, write_shard
from tests.seaweed import SeaweedFS

SHARD_ROWS = 10_000
RESULTS = Path(__file__).with_name("RESULTS.md")


def shard(number: int, images: np.ndarray) -> Cutouts:
    count = len(images)
    return Cutouts(
        object_id=pa.array(np.arange(count) + number * count),
        ra=np.full(count, 30.0),
        dec=np.linspace(-40, -30, count),
        images=images,
        flags=np.zeros(count, np.int32),
        fov_arcsec=33.5,
        stretch="des-1",
    )


def images_like_sky(rows: int) -> np.ndarray:
    """Noise around blank sky with a blob: the network's time does not depend on what it sees."""
    rng = np.random.default_rng(1)
    y, x = np.indices((64, 64)) - 31.5
    blob = 80 * np.exp(-(x**2 + y**2) / 60)[..., None]
    return np.clip(rng.normal(32, 6, (rows, 64, 64, 3)) + blob, 0, 255).astype(np.uint8)


def classify(
    source: str, checkpoint: str, target: str, precision: str, *, watch_memory: bool = False
) -> tuple[dict[str, Any], int]:
    """Run the command; its JSON line and, where watched, the peak memory of all its processes in bytes (PSS)."""
    arguments = ["classify", "--input", source, "--checkpoint", checkpoint, "--output", target, "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "deepshadows", *arguments, "--precision", precision, "--unit-rows", str(SHARD_ROWS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    peak = 0
    root = psutil.Process(process.pid)
    while watch_memory and process.poll() is None:
        peak = max(peak, sum(_pss_bytes(child) for child in [root, *_children(root)]))
        time.sleep(1)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return json.loads(output.strip().splitlines()[-1]), peak


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def all_logits(target: str) -> np.ndarray:
    scored = [score for block in score_objects(target, read_manifest(target)) for score in block]
    parts = [pq.read_table(storage.open_arrow(storage.join(target, score.url))) for score in scored]
    return pa.concat_tables(parts).sort_by("object_id")["logit"].to_numpy()


def scorer_rate(checkpoint: str, precision: str, images: np.ndarray) -> tuple[float, str]:
    scorer = load_scorer(checkpoint, precision=precision, batch_size=256, threads=os.cpu_count() or 1)
    scorer.score(images[:1024])
    repeats = 1 if precision == "exact" else 3
    started = time.perf_counter()
    for _ in range(repeats):
        scorer.score(images)
    return repeats * len(images) / (time.perf_counter() - started), scorer.engine


def machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory_gib = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    return f"{os.cpu_count()} x {model}, {memory_gib:.0f} GiB, {platform.system()}; {versions}"


def scoring_seconds(source: str, checkpoint: str, target: str, precision: str, rows: int) -> float:
    """Seconds from the start of scoring to the last commit, that of the actors included."""
    record, _ = classify(source, checkpoint, target, precision)
    assert record["rows_scored"] == rows
    return read_manifest(target).seconds


def rates(root: Path, bucket: str, checkpoint: str, wanted: argparse.Namespace) -> list[str]:
    """Rates without start-up: rows of a long run less those of a short one, over the difference of their seconds.

    The machine's own speed drifts, so each run is compared with the scorer alone just before and just after it.
    """
    images, rows, rounds = images_like_sky(SHARD_ROWS), wanted.rows, wanted.rounds
    sizes = {"short": SHARD_ROWS, "exact": rows // 3, "fast": rows}
    for folder, count in sizes.items():
        for number in range(count // SHARD_ROWS):
            for place in (str(root), bucket):
                write_shard(storage.join(place, folder, f"{number:03d}.parquet"), shard(number, images))
    lines = [
        "| precision | classify, disk | scorer alone | ratio | classify, S3 | scorer alone | ratio | engine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for precision in wanted.precisions:
        cells, every = [], []
        for place in (str(root), bucket):
            pairs = []
            for number in range(rounds):
                before, engine = scorer_rate(checkpoint, precision, images)
                seconds = [
                    scoring_seconds(
                        storage.join(place, folder),
                        checkpoint,
                        storage.join(place, f"run-{precision}-{folder}-{number}"),
                        precision,
                        sizes[folder],
                    )
                    for folder in ("short", precision)
                ]
                after, _ = scorer_rate(checkpoint, precision, images)
                whole = (sizes[precision] - SHARD_ROWS) / (seconds[1] - seconds[0])
                pairs.append((whole, (before + after) / 2))
            every.append([(round(whole), round(alone)) for whole, alone in pairs])
            ratio = statistics.median(whole / alone for whole, alone in pairs)
            cells += [f"{statistics.median(column):.0f}" for column in zip(*pairs, strict=True)] + [f"{ratio:.2f}"]
        on_disk, on_s3 = (all_logits(storage.join(p, f"run-{precision}-{precision}-0")) for p in (str(root), bucket))
        assert (on_disk == on_s3).all(), "disk and S3 give other scores"
        lines.append(f"| {precision} | {' | '.join(cells)} | {engine} |")
        print(lines[-1], every, flush=True)
    return lines


def memory(root: Path, checkpoint: str, sizes: list[int]) -> list[str]:
    images = images_like_sky(SHARD_ROWS)
    first = root / "one.parquet"
    write_shard(str(first), shard(0, images))
    lines = ["| cut-outs | peak memory of all processes, GiB | images/s, start included |", "|---|---|---|"]
    for rows in sizes:
        folder = root / f"memory-{rows}"
        folder.mkdir()
        for number in range(rows // SHARD_ROWS):
            os.link(first, folder / f"{number:05d}.parquet")
        record, peak = classify(str(folder), checkpoint, str(root / f"memory-run-{rows}"), "fast", watch_memory=True)
        assert record["rows_scored"] == rows
        lines.append(f"| {rows} | {peak / 2**30:.2f} | {rows / record['seconds']:.0f} |")
        print(lines[-1], flush=True)
    return lines


def resume(root: Path, checkpoint: str, rows: int) -> str:
    """Take half of a finished run's units away, as a killed driver leaves them; a rerun does the other half."""
    target = root / "run-fast-fast-0"
    before = all_logits(str(target))
    (target / "manifest.json").unlink()
    units = sorted((target / "scores").rglob("*.parquet"))
    for path in units[::2]:
        path.unlink()
    record, _ = classify(str(root / "fast"), checkpoint, str(target), "fast")
    assert record["rows_scored"] == rows
    assert (all_logits(str(target)) == before).all()
    here = record["rows_scored_here"]
    assert here == SHARD_ROWS * len(units[::2])
    return f"{len(units[::2])} of {len(units)} units missing: {here} of {rows} rows scored again, same scores."


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-rows", type=int, nargs="*", default=[50_000, 500_000])
    parser.add_argument("--precisions", nargs="*", default=["exact", "fast"])
    wanted = parser.parse_args()
    print(machine(), flush=True)
    server = SeaweedFS()
    server.start()
    os.environ.update(server.environment())
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            checkpoint = str(root / "checkpoint")
            save(checkpoint, DeepShadowsNet(seed=3), Card(name="untrained"))
            bucket = server.create_bucket("bench")
            rate_lines = rates(root, bucket, checkpoint, wanted)
            resume_line = resume(root, checkpoint, wanted.rows)
            memory_lines = memory(root, checkpoint, wanted.memory_rows)
    finally:
        server.stop()
    RESULTS.write_text(
        "\n".join(
            [
                "# Benchmark results",
                "",
                "Written by `python -m tests.benchmarks.bench_classify`. " + machine() + ".",
                "",
                f"## Classify cut-out shards: images/s, median of {wanted.rounds} rounds",
                "",
                f"{wanted.rows} cut-outs (exact: a third), start-up left out; the S3 server shares the cores. Ratio: "
                "median over the rounds of classify to the scorer alone just before and after it.",
                "",
                *rate_lines,
                "",
                "## Memory",
                "",
                *memory_lines,
                "",
                "## Resume",
                "",
                resume_line,
                "",
            ]
        )
    )


if __name__ == "__main__":
    main()
