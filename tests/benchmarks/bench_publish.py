"""How fast `publish` writes a catalogue, how large it becomes, how much memory that takes, and what a selection reads.

    python -m tests.benchmarks.bench_publish [--rows 10000000] [--rounds 3] [--where /some/disk]
        [--sizes 1000000 10000000]

A survey of overlapping tiles is simulated as finished units, published, and validated by `hats` (`publish` does that
itself). Asserts that no row is lost and that the standard columns take at most 65 B a row. Prints one JSON object and
rewrites its section of RESULTS.md. With `--sizes` a survey of each of the two sizes is published instead, by a process
of its own, and a section says how seconds, memory and bytes grow, and what a billion rows take on the lines through
both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from deepshadows.catalog.provenance import software_versions
from deepshadows.run.manifest import Manifest, ScoreObject, manifest_url, write_score_parts
from deepshadows.run.scores import score_table, score_url
from deepshadows.settings import Publish, Select
from deepshadows.verbs import publish
from deepshadows.verbs import select as select_verb
from tests.benchmarks.bench_classify import machine
from tests.benchmarks.results import write_figures, write_section

UNIT_ROWS = 20_000
MOST_BYTES_A_ROW = 65
BILLION = 10**9
KINDS = ("", "margin_", "index_")
MEASURED = ("rows_per_s", *(f"{kind}bytes_per_row" for kind in KINDS), "peak_gib")


def unit_table(number: int, units: int) -> pa.Table:
    """A tile's detections: 0.73 deg of sky, identifiers numbered through as DES does, scores without structure."""
    rng = np.random.default_rng(number)
    columns = max(1, int(np.sqrt(units)))
    ra0, dec0 = 20 + 0.73 * (number % columns), -40 + 0.73 * (number // columns)
    ra, dec = ra0 + rng.uniform(0, 0.75, UNIT_ROWS), dec0 + rng.uniform(0, 0.75, UNIT_ROWS)
    logit = rng.normal(-2, 3, UNIT_ROWS).astype(np.float32)
    p_lsbg = (1 / (1 + np.exp(-logit))).astype(np.float32)
    error = np.abs(rng.normal(0.03, 0.01, UNIT_ROWS)).astype(np.float32)
    flags = np.where(rng.uniform(size=UNIT_ROWS) < 0.03, 1 << 17, 0).astype(np.int32)
    ids = pa.array(1_000_000_000 + number * UNIT_ROWS + np.arange(UNIT_ROWS))
    unit = hashlib.sha256(str(number).encode()).hexdigest()[:32]
    return score_table(ids, ra, dec, logit, p_lsbg, flags, unit=unit, run="survey", p_lsbg_err=error)


def write_run(run: str, rows: int) -> None:
    """The score objects and the manifest of a finished run."""
    fingerprint, scores = "f" * 64, []
    units = rows // UNIT_ROWS
    for number in range(units):
        table = unit_table(number, units)
        path = Path(score_url(run, table["unit"][0].as_py()))
        path.parent.mkdir(parents=True, exist_ok=True)
        footer = table.replace_schema_metadata({b"deepshadows.fingerprint": fingerprint.encode()})
        pq.write_table(footer, path, compression="zstd", use_dictionary=["unit", "run"])
        name = str(path.relative_to(run))
        scores.append(ScoreObject(url=name, size_bytes=path.stat().st_size, etag="", rows=UNIT_ROWS))
    manifest = Manifest(
        run="survey",
        fingerprint=fingerprint,
        driver="bench",
        settings={},
        checkpoint={"name": "bench", "weights_sha256": "a" * 64},
        preprocessing={},
        engine="none",
        versions={},
        id_type="int64",
        units_planned=units,
        units_done=units,
        units_quarantined=0,
        rows_planned=units * UNIT_ROWS,
        rows_scored=units * UNIT_ROWS,
        rows_unscored=0,
        rows_quarantined=0,
        flag_counts={},
        seconds=1.0,
        score_parts=write_score_parts(run, "bench", scores),
    )
    Path(manifest_url(run)).write_text(manifest.model_dump_json())


@contextmanager
def watched_memory(peak: dict[str, float]) -> Iterator[None]:
    """The most that this process and its workers hold at a time (proportional set size), GiB."""
    done = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not done.wait(0.5):
            parts = {"driver": 0.0, "all": 0.0}
            for process in [me, *me.children(recursive=True)]:
                try:
                    held = process.memory_full_info().pss / 2**30
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                parts["all"] += held
                parts["driver"] += held if process.pid == me.pid else 0
            for name, value in parts.items():
                peak[name] = max(peak.get(name, 0.0), value)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def selections(catalog: str, folder: str) -> dict[str, Any]:
    """Seconds and bytes of selections that an astronomer asks for."""
    asked = {
        "one id": {"where": "object_id = 1000123456"},
        "cone of 1 arcmin": {"cone": "20.4,-39.6,60"},
        "cone of 1 deg, p > 0.9": {"cone": "20.9,-39.5,3600", "where": "p_lsbg > 0.9"},
        "p > 0.99, id and position": {"where": "p_lsbg > 0.99", "columns": "object_id,ra,dec,p_lsbg"},
    }
    found = {}
    for name, flags in asked.items():
        started = time.monotonic()
        summary = select_verb.run(Select(catalog=catalog, output=f"{folder}/o.parquet", **flags))
        seconds = round(time.monotonic() - started, 2)
        figures = summary.figures
        found[name] = {"seconds": seconds, "rows": figures["rows"], "MB": round(figures["bytes_read"] / 1e6, 1)}
        assert figures["rows"] > 0
    return found


def report(result: dict[str, Any]) -> list[str]:
    """The lines of RESULTS.md."""
    each = ", ".join(f"{rate:,.0f}" for rate in result["rows_per_s_of_rounds"])
    sizes = (result[f"{kind}bytes_per_row"] for kind in KINDS)
    peak = result["peak_gib"]
    lines = [
        f"`python -m tests.benchmarks.bench_publish --rows {result['rows']}`, {result['machine']}, "
        f"{', '.join(f'{name} {version}' for name, version in result['versions'].items())}.",
        "",
        f"{result['rows']:,} rows, {result['partitions']} partitions, validated by hats: "
        f"**{result['rows_per_s']:,.0f} rows/s** (median of {each}), Ray running already.",
        "Bytes a row: table {:.1f}, margin {:.1f}, id index {:.1f}.".format(*sizes),
        f"Memory (PSS) at most {peak['all']:.2f} GiB in all processes, {peak['driver']:.2f} GiB in the driver.",
        "",
        "| selection | rows | read, MB | seconds |",
        "|---|---|---|---|",
    ]
    for name, found in result["selections"].items():
        lines.append(f"| {name} | {found['rows']:,} | {found['MB']} | {found['seconds']} |")
    return lines


def at_a_billion(small: dict[str, Any], large: dict[str, Any]) -> dict[str, float]:
    """Seconds, GiB and bytes of 10^9 rows on the straight lines through what two sizes took; none falls."""

    def on_the_line(one: float, other: float) -> float:
        a_row = max(other - one, 0) / (large["rows"] - small["rows"])
        return other + a_row * (BILLION - large["rows"])

    seconds, written = (
        [result["rows"] / result["rows_per_s"] for result in (small, large)],
        [result["rows"] * sum(result[f"{kind}bytes_per_row"] for kind in KINDS) for result in (small, large)],
    )
    return {
        "seconds": round(on_the_line(*seconds)),
        "peak_gib": round(on_the_line(small["peak_gib"]["all"], large["peak_gib"]["all"]), 2),
        "driver_gib": round(on_the_line(small["peak_gib"]["driver"], large["peak_gib"]["driver"]), 2),
        "bytes": round(on_the_line(*written)),
    }


def growth(small: dict[str, Any], large: dict[str, Any], rounds: int) -> list[str]:
    """The lines of RESULTS.md on two sizes."""
    billion = at_a_billion(small, large)
    rows = [
        f"`python -m tests.benchmarks.bench_publish --sizes {small['rows']} {large['rows']}`; {machine()}; median of "
        f"{rounds} rounds, a process and a Ray for each size.",
        "",
        "| rows | rows/s | seconds | peak memory of all processes, GiB | of the driver | bytes written |",
        "|---|---|---|---|---|---|",
    ]
    for result in (small, large):
        written = result["rows"] * sum(result[f"{kind}bytes_per_row"] for kind in KINDS)
        rows.append(
            f"| {result['rows']:,} | {result['rows_per_s']:,.0f} | {result['rows'] / result['rows_per_s']:,.1f} | "
            f"{result['peak_gib']['all']:.2f} | {result['peak_gib']['driver']:.2f} | {written:,.0f} |"
        )
    return [
        *rows,
        "",
        f"A billion rows, on the lines through both (computed, not run): {billion['seconds']:,} s, "
        f"{billion['peak_gib']} GiB, {billion['driver_gib']} of them in the driver, {billion['bytes'] / 1e9:,.1f} GB.",
    ]


def measured(rows: int, rounds: int, where: str | None, selected: bool = True) -> dict[str, Any]:
    """Publish a survey of so many rows, some times over."""
    folder = tempfile.mkdtemp(dir=where)
    try:
        write_run(f"{folder}/run", rows)
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        found, peak = [], {}
        for number in range(rounds):
            with watched_memory(peak):
                summary = publish.run(Publish(run=(f"{folder}/run",), catalog=f"{folder}/cat{number}"))
            found.append(summary.figures)
            assert summary.figures["rows_published"] == rows // UNIT_ROWS * UNIT_ROWS
            assert summary.figures["bytes_per_row"] <= MOST_BYTES_A_ROW
        figures = found[0]
        return {
            "rows": figures["rows_published"],
            "partitions": figures["partitions"],
            "rows_per_s": statistics.median(entry["rows_per_s"] for entry in found),
            "rows_per_s_of_rounds": [entry["rows_per_s"] for entry in found],
            **{f"{kind}bytes_per_row": figures[f"{kind}bytes_per_row"] for kind in KINDS},
            "peak_gib": {name: round(value, 2) for name, value in peak.items()},
            "selections": selections(f"{folder}/cat0", folder) if selected else {},
            "machine": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
            "versions": software_versions() | {"ray": ray.__version__, "python": platform.python_version()},
        }
    finally:
        ray.shutdown()
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--where", default=None, help="folder to work below")
    parser.add_argument("--sizes", type=int, nargs=2, help="rows of a small and of a large survey, instead of --rows")
    asked = parser.parse_args()
    if asked.sizes is None:
        result = measured(asked.rows, asked.rounds, asked.where)
        print(json.dumps(result, indent=1))
        write_section("Publish and select", report(result))
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        small, large = (
            pool.submit(measured, rows, asked.rounds, asked.where, False).result() for rows in sorted(asked.sizes)
        )
    lines = growth(small, large, asked.rounds)
    print("\n".join(lines))
    write_section("Publish by the number of rows", lines)
    figures = {f"{result['rows']}_{name}": result[name] for result in (small, large) for name in MEASURED}
    write_figures("publish", {**figures, "billion": at_a_billion(small, large), "machine": machine()})


if __name__ == "__main__":
    main()
