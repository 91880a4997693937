"""How fast `classify` is beside its own scorer, from disk and from S3, and what bounds it; its memory; a resume.

    python -m tests.benchmarks.bench_classify [rates] [memory] [resume] [--rows 300000] [--rounds 3]
        [--precisions fast exact] [--memory-rows 100000 1000000]

Prints the machine, the versions and medians, asserts that the outputs agree, and rewrites its sections of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.model.scorer import load_scorer
from deepshadows.run.manifest import read_manifest, score_objects
from deepshadows.run.record import software_versions
from deepshadows.settings import DEFAULT_NETWORK
from deepshadows.sky.shards import Cutouts, write_shard
from tests.benchmarks import process_tree
from tests.benchmarks.process_tree import Cost
from tests.benchmarks.results import write_figures, write_section
from tests.seaweed import SeaweedFS

SHARD_ROWS = 10_000
IMAGE_GB = 12_288e-9
ALONE_S = 3.0
"""The scorer alone is timed for so long."""
SERVER_MEMORY = "2GiB"
"""With the 256 MiB of the tests, SeaweedFS spends three quarters of its CPU on collecting garbage."""


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


def classify(source: str, target: str, precision: str, *, memory: bool = False) -> tuple[dict[str, object], Cost]:
    """Run the command; its JSON line and what it cost."""
    arguments = ["classify", "--input", source, "--output", target, "--json", "--precision", precision]
    cost = process_tree.run([sys.executable, "-m", "deepshadows", *arguments], memory=memory)
    return json.loads(cost.output.strip().splitlines()[-1]), cost


def all_logits(target: str) -> np.ndarray:
    scored = [score for block in score_objects(target, read_manifest(target)) for score in block]
    parts = [pq.read_table(storage.open_arrow(storage.join(target, score.url))) for score in scored]
    return pa.concat_tables(parts).sort_by("object_id")["logit"].to_numpy()


def scorer_rate(precision: str, images: np.ndarray) -> tuple[float, float, str]:
    """Images/s of the scorer alone, its CPU seconds an image, and the engine."""
    scorer = load_scorer(DEFAULT_NETWORK, precision=precision, threads=os.cpu_count() or 1)
    scorer.score(images[:1024])
    count, started, cpu_s = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < ALONE_S:
        scorer.score(images[:2048])
        count += len(images[:2048])
    return count / (time.perf_counter() - started), (time.process_time() - cpu_s) / count, scorer.engine


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Processors, memory and versions; the name alone is the same for several generations."""
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    said: dict[str, str] = {}
    for name, _, value in lines:
        said.setdefault(name.strip(), value.strip())
    model = said.get("model name", platform.processor())
    if {"cpu family", "model"} <= said.keys():
        model += f" (family {said['cpu family']}, model {said['model']})"
    memory_gib = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    return f"{os.cpu_count()} x {model}, {memory_gib:.0f} GiB, {platform.system()}; {versions}"


@dataclass(frozen=True)
class Run:
    """One run of classify without its start: what many rows took more than few, and the scorer beside it."""

    images_per_s: float
    cpu_us: float
    server_us: float
    alone_per_s: float
    alone_us: float


def compare(place: str, name: str, precision: str, rows: int, images: np.ndarray, server: SeaweedFS) -> Run:
    """The machine's own speed drifts, so a run is compared with the scorer alone just before and just after it."""
    alone = [scorer_rate(precision, images)]
    seconds, cpu_s, server_s = [], [], []
    for folder in ("few", precision):
        before = server_cpu_s(server)
        target = storage.join(place, f"run-{name}-{folder}")
        record, cost = classify(storage.join(place, folder), target, precision)
        assert record["rows_scored"] == (rows if folder == precision else SHARD_ROWS)
        seconds.append(read_manifest(target).seconds)  # from the start of scoring to the last commit
        cpu_s.append(cost.cpu_s)
        server_s.append(server_cpu_s(server) - before)
    alone.append(scorer_rate(precision, images))
    more = rows - SHARD_ROWS
    return Run(
        images_per_s=more / (seconds[1] - seconds[0]),
        cpu_us=1e6 * (cpu_s[1] - cpu_s[0]) / more,
        server_us=1e6 * (server_s[1] - server_s[0]) / more,
        alone_per_s=statistics.mean(rate for rate, _, _ in alone),
        alone_us=1e6 * statistics.mean(cpu for _, cpu, _ in alone),
    )


def server_cpu_s(server: SeaweedFS) -> float:
    assert server.process is not None
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


def rates(root: Path, bucket: str, server: SeaweedFS, wanted: argparse.Namespace) -> None:
    images = images_like_sky(SHARD_ROWS)
    sizes = {"few": SHARD_ROWS, **{name: wanted.rows // (10 if name == "exact" else 1) for name in wanted.precisions}}
    for folder, count in sizes.items():
        for number in range(count // SHARD_ROWS):
            for place in (str(root), bucket):
                write_shard(storage.join(place, folder, f"{number:03d}.parquet"), shard(number, images))
    lines = [
        f"`python -m tests.benchmarks.bench_classify rates`, {machine()}. {wanted.rows} cut-outs (exact: a tenth), "
        f"median of {wanted.rounds} rounds, start-up left out; the S3 server (SeaweedFS, {SERVER_MEMORY}) shares the "
        "cores. Ratio: median of classify to the scorer alone just before and after it. CPU: of the scorer alone, of "
        "all processes of classify, and of the server.",
        "",
        "| precision, place | classify, images/s | scorer alone | ratio | CPU-µs per image: scorer, classify, server |",
        "|---|---|---|---|---|",
    ]
    figures: dict[str, object] = {"machine": machine(), "rows": wanted.rows}
    for precision in wanted.precisions:
        for kind, place in (("disk", str(root)), ("S3", bucket)):
            runs = [
                compare(place, f"{precision}-{turn}", precision, sizes[precision], images, server)
                for turn in range(wanted.rounds)
            ]
            middle = {name: statistics.median(vars(run)[name] for run in runs) for name in vars(runs[0])}
            ratio = statistics.median(run.images_per_s / run.alone_per_s for run in runs)
            lines.append(
                f"| {precision}, {kind} | {middle['images_per_s']:.0f} | {middle['alone_per_s']:.0f} | {ratio:.2f} | "
                f"{middle['alone_us']:.0f}, {middle['cpu_us']:.0f}, {middle['server_us']:.0f} |"
            )
            figures |= {f"{precision} {kind} {name}": round(value, 1) for name, value in middle.items()}
            figures[f"{precision} {kind} ratio"] = round(ratio, 3)
            print(lines[-1], runs, flush=True)
        on_disk, on_s3 = (all_logits(storage.join(p, f"run-{precision}-0-{precision}")) for p in (str(root), bucket))
        assert (on_disk == on_s3).all(), "disk and S3 give other scores"
        lines += ["", f"Engine of {precision}: {scorer_rate(precision, images[:256])[2]}.", ""]
    write_section("Classify cut-out shards", lines)
    write_figures("classify", figures)


def memory(root: Path, sizes: list[int]) -> None:
    first = root / "one.parquet"
    write_shard(str(first), shard(0, images_like_sky(SHARD_ROWS)))
    lines = [
        f"`python -m tests.benchmarks.bench_classify memory`, {machine()}. Proportional set sizes; one shard, linked.",
        "",
        "| cut-outs | peak of all processes, GiB | of the scorer actor, GiB |",
        "|---|---|---|",
    ]
    for rows in sizes:
        folder = root / f"memory-{rows}"
        folder.mkdir()
        for number in range(rows // SHARD_ROWS):
            os.link(first, folder / f"{number:05d}.parquet")
        record, cost = classify(str(folder), str(root / f"memory-run-{rows}"), "fast", memory=True)
        assert record["rows_scored"] == rows
        lines.append(f"| {rows} | {cost.peak_bytes / 2**30:.2f} | {cost.largest_bytes / 2**30:.2f} |")
        print(lines[-1], flush=True)
    write_section("Memory of classify", lines)


def resume(root: Path, rows: int) -> None:
    """Take half of a finished run's units away, as a killed driver leaves them; a rerun does the other half."""
    images = images_like_sky(SHARD_ROWS)
    for number in range(rows // SHARD_ROWS):
        write_shard(str(root / "resume" / f"{number:03d}.parquet"), shard(number, images))
    target = root / "run-resume"
    classify(str(root / "resume"), str(target), "fast")
    before = all_logits(str(target))
    (target / "manifest.json").unlink()
    units = sorted((target / "scores").rglob("*.parquet"))
    for path in units[::2]:
        path.unlink()
    record, _ = classify(str(root / "resume"), str(target), "fast")
    assert record["rows_scored"] == rows
    assert (all_logits(str(target)) == before).all()
    here = record["rows_scored_here"]
    assert here == SHARD_ROWS * len(units[::2])
    line = f"{len(units[::2])} of {len(units)} units missing: {here} of {rows} rows scored again, same scores."
    print(line)
    write_section("Resume of classify", [line])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["rates", "memory", "resume"])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--precisions", nargs="*", default=["fast", "exact"])
    wanted = parser.parse_args()
    print(machine(), flush=True)
    server = SeaweedFS(memory=SERVER_MEMORY)
    server.start()
    os.environ.update(server.environment())
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            if "rates" in wanted.parts:
                rates(root, server.create_bucket("bench"), server, wanted)
            if "resume" in wanted.parts:
                resume(root, min(wanted.rows, 100_000))
            if "memory" in wanted.parts:
                memory(root, wanted.memory_rows)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
