"""How long `report` takes, what it needs and how large its page is, by the rows of the run.

    python -m tests.benchmarks.bench_report [--rows 100000 1000000 10000000] [--truth]

Runs of score objects as `classify` leaves them are written first (they are not timed); each report is a process of its
own, so that its highest memory is that of the report alone. Asserted: every row is counted, pages of all sizes are
alike, and 100 times the rows do not take twice the memory. Rewrites its section of RESULTS.md and its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

import numpy as np
import pyarrow as pa

from deepshadows import storage
from deepshadows.run.manifest import Manifest, ScoreObject, manifest_url, write_score_parts
from deepshadows.run.scores import commit, committed, score_table, score_url
from deepshadows.run.units import make_unit
from deepshadows.schema import Flag
from tests.benchmarks.bench_classify import machine
from tests.benchmarks.results import write_figures, write_section

UNIT_ROWS = 20_000
FINGERPRINT = "f" * 64
LSBG_SHARE = 0.05
TRUTH_EVERY = 100
"""One LSBG in so many goes into the truth table."""


def write_run(url: str, count: int) -> pa.Table:
    """A run of `count` rows over 5,000 square degrees, one in twenty an LSBG; its truth."""
    rng = np.random.default_rng(1)
    truth: list[pa.Table] = []
    scored = 0
    for start in range(0, count, UNIT_ROWS):
        rows = min(UNIT_ROWS, count - start)
        unit = make_unit(kind="shard", url=f"s3://survey/{start}.parquet", etag="", size_bytes=1, rows=rows)
        ra, dec = rng.uniform(0, 100, rows), np.degrees(np.arcsin(rng.uniform(-0.87, 0.0, rows)))
        is_lsbg = rng.random(rows) < LSBG_SHARE
        p = rng.beta(np.where(is_lsbg, 5, 0.5), np.where(is_lsbg, 0.5, 5)).astype(np.float32).clip(1e-6, 1 - 1e-6)
        flags = np.where(rng.random(rows) < 0.03, Flag.OUT_OF_DOMAIN.bit, 0).astype(np.int32)
        flags[rng.random(rows) < 0.001] |= Flag.NO_IMAGE.bit
        ids = pa.array(np.arange(start, start + rows))
        logit = np.log(p / (1 - p)).astype(np.float32)
        table = score_table(ids, ra, dec, logit, p, flags, unit=unit.unit, run="bench", p_lsbg_err=p * (1 - p))
        scored += commit(url, unit, table, FINGERPRINT, "none").scored
        chosen = np.flatnonzero(is_lsbg)[::TRUTH_EVERY]
        sizes = rng.uniform(2.5, 12, len(chosen)).astype(np.float32)
        truth.append(
            pa.table(
                {"ra": ra[chosen], "dec": dec[chosen], "label": np.ones(len(chosen), np.int8), "r_eff_arcsec": sizes}
            )
        )
    stored = committed(url).to_pylist()
    scores = [
        ScoreObject(
            url=storage.relative(score_url(url, entry["unit"]), url),
            size_bytes=entry["size_bytes"],
            etag=entry["etag"],
            rows=min(UNIT_ROWS, count),
        )
        for entry in stored
    ]
    manifest = Manifest(
        run="bench",
        fingerprint=FINGERPRINT,
        driver="bench",
        settings={},
        checkpoint={"name": "none", "weights_sha256": "0" * 64},
        preprocessing={"stretch": "des-1", "fov_arcsec": 33.5, "bands": ["z", "r", "g"]},
        engine="none",
        versions={},
        id_type="int64",
        units_planned=len(stored),
        units_done=len(stored),
        units_quarantined=0,
        rows_planned=count,
        rows_scored=scored,
        rows_unscored=count - scored,
        rows_quarantined=0,
        flag_counts={},
        seconds=1.0,
        score_parts=write_score_parts(url, "bench", scores),
    )
    storage.write(manifest_url(url), manifest.model_dump_json().encode())
    return pa.concat_tables(truth)


def measure(words: list[str]) -> tuple[dict[str, float], float, float]:
    """What one report tells of itself, its seconds and its highest memory in MiB."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "deepshadows", "report", *words, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, lines
    return json.loads(lines[-1]), time.monotonic() - started, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--truth", action="store_true", help="also with a truth table")
    wanted = parser.parse_args()
    where = f"{machine()}, matplotlib {version('matplotlib')}"
    print(where, flush=True)
    lines = [
        f"`python -m tests.benchmarks.bench_report{' --truth' if wanted.truth else ''}`; {where}; load average "
        f"{os.getloadavg()[0]:.0f} when it began. Each report is a process of its own, its start included.",
        "",
        "| rows | truth table | seconds | rows/s | peak memory, MiB | page, MB |",
        "|---|---|---|---|---|---|",
    ]
    figures: dict[str, object] = {"machine": where}
    found = []
    for count in wanted.rows:
        with tempfile.TemporaryDirectory() as folder:
            storage.write_table(f"{folder}/truth.parquet", write_run(f"{folder}/run", count))
            for truth in (False, True) if wanted.truth else (False,):
                words = [f"{folder}/run", "-o", f"{folder}/page.html"]
                words += ["--truth", f"{folder}/truth.parquet"] if truth else []
                told, seconds, mib = measure(words)
                assert told["rows_planned"] == told["rows_scored"] + told["rows_unscored"] == count
                page_mb = told["page_bytes"] / 1e6
                cells = [f"{count:,}", "yes" if truth else "no", f"{seconds:.1f}", f"{count / seconds:,.0f}"]
                lines.append(f"| {' | '.join(cells)} | {mib:,.0f} | {page_mb:.2f} |")
                print(lines[-1], flush=True)
                figures[f"{count}{' truth' if truth else ''}"] = {
                    "seconds": round(seconds, 2),
                    "peak_mib": round(mib),
                    "page_mb": round(page_mb, 3),
                }
                if not truth:
                    found.append((mib, page_mb))
    assert max(mib for mib, _ in found) < 2 * min(mib for mib, _ in found), "memory grows with the rows"
    assert max(page for _, page in found) < 2 * min(page for _, page in found), "the page grows with the rows"
    write_section("Report of a run", lines)
    write_figures("report", figures)


if __name__ == "__main__":
    main()
