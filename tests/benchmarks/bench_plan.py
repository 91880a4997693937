"""Ten billion rows on one machine: plan, resume, manifest and driver for a million units.

    python -m tests.benchmarks.bench_plan --folder SCRATCH

The shards are links to two sparse files that have the size and the footer of 100,000 cut-outs and no pixels: planning
reads footers. The score objects that a driver finds again are empty files, its receipts of them in the journal. A
scorer that does nothing shows what driver and Ray cost, beside Ray Data with a block a unit. All is in the page cache.
Needs 5 GB of disk and 1.6 million inodes. `--prepare` makes the files, which takes minutes; they are used again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deepshadows import storage
from deepshadows.model.card import Card
from deepshadows.model.checkpoint import save
from deepshadows.model.network import DeepShadowsNet
from deepshadows.run.journal import Journal
from deepshadows.run.ledger import Ledger, open_ledger, open_units
from deepshadows.run.manifest import score_objects
from deepshadows.run.plan import Plan, plan_blocks
from deepshadows.run.record import RunRecord, read_record
from deepshadows.run.scores import Receipt, committed, score_url
from deepshadows.run.units import Unit, make_unit
from deepshadows.schema import IMAGE_SHAPE
from deepshadows.settings import Classify
from deepshadows.sky.shards import Cutouts, write_shard
from deepshadows.verbs.classify_commit import account
from deepshadows.verbs.classify_plan import plan
from deepshadows.verbs.unit_scoring import UnitScorer
from tests.benchmarks.bench_classify import machine
from tests.benchmarks.results import write_figures, write_section
from tests.benchmarks.steps import Found, step_or_whole

SHARDS, SHARD_ROWS, UNIT_ROWS = 100_000, 100_000, 10_000
UNITS = SHARDS * SHARD_ROWS // UNIT_ROWS
NOOP_UNITS, RAY_DATA_UNITS = 20_000, 2_000
ACTOR_ROWS = (1_000, 20_000, 60_000)


def settings_of(folder: Path) -> Classify:
    paths = {name: str(folder / name) for name in ("input", "checkpoint", "output")}
    return Classify(**paths, unit_rows=UNIT_ROWS)


def record_of(folder: Path) -> RunRecord:
    record = read_record(str(folder / "output"))
    assert record is not None
    return record


def make_shards(folder: Path) -> Mapping[str, Any]:
    """Sparse files with a real footer, and links to them: no more than 65,000 a file."""
    save(str(folder / "checkpoint"), DeepShadowsNet(seed=3), Card(name="untrained"))
    (folder / "input").mkdir()
    whole = folder / "whole.parquet"
    cutouts = Cutouts(
        object_id=pa.array(np.arange(SHARD_ROWS)),
        ra=np.linspace(0, 359, SHARD_ROWS),
        dec=np.zeros(SHARD_ROWS),
        images=np.zeros((SHARD_ROWS, *IMAGE_SHAPE), np.uint8),
        flags=np.zeros(SHARD_ROWS, np.int32),
        fov_arcsec=33.5,
        stretch="des-1",
    )
    write_shard(str(whole), cutouts)
    size = whole.stat().st_size
    with whole.open("rb") as file:
        file.seek(size - 8)
        tail_bytes = int.from_bytes(file.read(4), "little") + 8
        file.seek(size - tail_bytes)
        tail = file.read()
    whole.unlink()
    for number in range(SHARDS):
        sparse = folder / f"sparse-{number // 60_000}.parquet"
        if not sparse.exists():
            with sparse.open("wb") as file:
                file.write(b"PAR1")
                file.seek(size - tail_bytes)
                file.write(tail)
        os.link(sparse, folder / "input" / f"{number:06d}.parquet")
    return {"footer_bytes": tail_bytes, "shard_bytes": size}


def plan_all(folder: Path) -> Mapping[str, Any]:
    (folder / "output" / "run.json").unlink(missing_ok=True)
    planned = plan(settings_of(folder), str(folder / "output"))
    assert (planned.record.units_planned, planned.record.rows_planned) == (UNITS, SHARDS * SHARD_ROWS)
    parts = storage.list_objects(str(folder / "output" / "units"))
    sizes = [part.size_bytes for part in parts]
    return {"parts": len(parts), "plan_mb": round(sum(sizes) / 1e6, 1), "largest_mb": round(max(sizes) / 1e6, 2)}


def plan_again(folder: Path) -> Mapping[str, Any]:
    planned = plan(settings_of(folder), str(folder / "output"))
    assert planned.record == record_of(folder)
    return {}


def make_scores(folder: Path) -> Mapping[str, Any]:
    """Empty score objects of half the plan, as a driver left them with its journal, and in `all` those of the whole."""
    run, record, every = str(folder / "output"), record_of(folder), str(folder / "all")
    shutil.copytree(folder / "output", every)
    for target in (run, every):
        for prefix in range(256):
            Path(target, "scores", f"{prefix:02x}").mkdir(parents=True)
    with Journal(run, record.fingerprint, "earlier") as journal:
        for number, unit in enumerate(Plan(run, record)):
            Path(score_url(every, unit.unit)).touch()
            if number < UNITS // 2:
                path = score_url(run, unit.unit)
                Path(path).touch()
                journal.add(receipt_of(unit, storage.stat(path)))
    return {}


def receipt_of(unit: Unit, stored: storage.StoredObject) -> Receipt:
    counts = '{"SOME_MASKED": 3}'
    return Receipt(
        unit=unit.unit,
        rows=unit.rows,
        scored=unit.rows,
        flag_counts=counts,
        engine="none",
        size_bytes=stored.size_bytes,
        etag=stored.etag,
    )


def resume(folder: Path) -> Mapping[str, Any]:
    run, record = str(folder / "output"), record_of(folder)
    began = time.perf_counter()
    listing = committed(run)
    listed = time.perf_counter() - began
    del listing
    began = time.perf_counter()
    ledger = open_ledger(run, record)
    seconds = time.perf_counter() - began
    assert ledger.units_open == UNITS // 2
    assert ledger.rows_scored == ledger.rows_done == UNITS // 2 * UNIT_ROWS
    left = sum(1 for _ in open_units(run, record, ledger))
    assert left == UNITS // 2
    return {"seconds": round(seconds, 2), "listing_s": round(listed, 2), "units_left": left}


def manifest(folder: Path) -> Mapping[str, Any]:
    """The commit of the whole run: list a million score objects, hold them against the plan, write the parts."""
    run, record = str(folder / "all"), record_of(folder)
    ledger = open_done(run, record)
    began = time.perf_counter()
    made = account(run, record, ledger, "driver", 1.0)
    seconds = time.perf_counter() - began
    body = made.model_dump_json().encode()
    began = time.perf_counter()
    rows = sum(score.rows for block in score_objects(run, made) for score in block)
    read_s = time.perf_counter() - began
    assert rows == made.rows_planned == SHARDS * SHARD_ROWS
    return {
        "seconds": round(seconds, 2),
        "read_s": round(read_s, 2),
        "parts": len(made.score_parts),
        "largest_mb": round(max(part.size_bytes for part in made.score_parts) / 1e6, 2),
        "manifest_json_kb": round(len(body) / 1e3, 1),
    }


def open_done(run: str, record: RunRecord) -> Ledger:
    """The ledger after the last receipt."""
    blocks = list(plan_blocks(run, record, ("unit", "rows")))
    ids = np.concatenate([block["unit"].to_numpy() for block in blocks]).astype("S32")
    rows = np.concatenate([block["rows"].to_numpy() for block in blocks])
    order = np.argsort(ids)
    return Ledger(ids[order], rows[order], np.ones(len(ids), bool), rows_scored=int(rows.sum()), engines={"none"})


class NoScorer:
    """Takes a unit and gives its receipt, at once."""

    def __init__(self, word: str) -> None:
        self._word = word

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**asdict(Receipt(unit=row["unit"], rows=row["rows"], scored=row["rows"])), "failure": ""}


def some_units(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        url = f"s3://survey/shards/{number:06d}.parquet"
        yield asdict(make_unit(kind="shard", url=url, etag='"0123456789abcdef"', size_bytes=10**9, rows=UNIT_ROWS))


def noop(folder: Path) -> Mapping[str, Any]:
    """Units a second through the pool of `classify` and its books, with scorers that do nothing."""
    import ray

    from deepshadows.verbs.ray_session import ray_session
    from deepshadows.verbs.scorer_pool import Placement, ScorerPool

    units = list(some_units(NOOP_UNITS))
    names = sorted(unit["unit"] for unit in units)
    ledger = Ledger(np.array(names, "S32"), np.full(len(names), UNIT_ROWS), np.zeros(len(names), bool))
    with ray_session(None), Journal(str(folder / "noop"), "f", "d") as journal:
        placement = Placement(scorers=1, cpus=1, gpus=0, threads=1, device="cpu")
        pool = ScorerPool(NoScorer, ("word",), placement)
        began, cpu = 0.0, 0.0
        for _, row in pool.results(units):
            assert row is not None
            began, cpu = (began, cpu) if began else (time.perf_counter(), time.process_time())
            row.pop("failure")
            receipt = Receipt(**row)
            ledger.note(receipt)
            journal.add(receipt)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        ray.shutdown()
    assert ledger.units_open == 0
    return {"units_per_s": round(NOOP_UNITS / seconds), "driver_cpu_ms_per_unit": round(1e3 * cpu / NOOP_UNITS, 3)}


def noop_ray_data(folder: Path) -> Mapping[str, Any]:
    """The same through Ray Data: a block and an actor task a unit."""
    import ray.data

    from deepshadows.verbs.ray_session import ray_session

    units = list(some_units(RAY_DATA_UNITS))
    with ray_session(None):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        strategy = ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=3)
        dataset = ray.data.from_items(units, override_num_blocks=len(units)).map(
            NoScorer, fn_constructor_args=("word",), compute=strategy, num_cpus=1
        )
        began, done = 0.0, 0
        for _ in dataset.iter_rows():
            began = began or time.perf_counter()
            done += 1
        seconds = time.perf_counter() - began
    assert done == RAY_DATA_UNITS
    return {"units_per_s": round(RAY_DATA_UNITS / seconds)}


def actor(folder: Path, rows: int) -> Mapping[str, Any]:
    """Two units of so many rows at once in a scorer of the shipped network, as an actor has them; the peak memory."""
    url = folder / "units" / f"{rows}.parquet"
    url.parent.mkdir(exist_ok=True)
    run = str(folder / "units" / f"run-{rows}")
    shutil.rmtree(run, ignore_errors=True)
    if not url.exists():
        subprocess.run([sys.executable, "-c", SHARD_OF, str(url), str(rows)], check=True)
    wanted = Classify(input=str(url), output=run)
    entry = storage.stat(str(url))
    units = [make_unit(kind="shard", url=entry.url, etag=entry.etag, size_bytes=n, rows=rows) for n in range(2)]
    scorer = UnitScorer(wanted, run, "run", "fingerprint", os.cpu_count() or 1, "cpu")
    with ThreadPoolExecutor(2) as pool:
        receipts = list(pool.map(scorer, map(asdict, units)))
    assert [receipt["rows"] for receipt in receipts] == [rows, rows]
    return {}


SHARD_OF = """
import sys
import numpy as np
from tests.benchmarks.bench_classify import shard
from deepshadows.sky.shards import write_shard
images = np.random.default_rng(1).integers(0, 256, (int(sys.argv[2]), 64, 64, 3), np.uint8)
write_shard(sys.argv[1], shard(0, images))
"""


PREPARATION = {"make_shards": make_shards, "plan_all": plan_all, "make_scores": make_scores}
MEASURED = {
    "plan_all": plan_all,
    "plan_again": plan_again,
    "resume": resume,
    "manifest": manifest,
    "noop": noop,
    "noop_ray_data": noop_ray_data,
    **{f"actor_{rows}": lambda folder, rows=rows: actor(folder, rows) for rows in ACTOR_ROWS},
}


NOTES = {
    "plan_all": "{parts} objects, {plan_mb} MB, the largest {largest_mb} MB",
    "plan_again": "input unchanged",
    "resume": "500,000 units done; listing alone {listing_s} s",
    "manifest": "{parts} parts, the largest {largest_mb} MB; manifest.json {manifest_json_kb} kB; read in {read_s} s",
}


def report(found: Found) -> None:
    lines = [
        f"`python -m tests.benchmarks.bench_plan`; {machine()}.",
        f"{UNITS:,} units of {UNIT_ROWS:,} rows in {SHARDS:,} shards on disk, in the page cache; sparse shards with "
        "real footers, empty score objects. CPU time is that of the whole process, its start included.",
        "",
        "| step | seconds | CPU-seconds | load of the machine | peak memory, GiB | |",
        "|---|---|---|---|---|---|",
    ]
    for step, note in NOTES.items():
        if step in found:
            cells = [str(found[step].get(name, "not kept")) for name in ("seconds", "cpu_s", "load", "peak_gib")]
            lines.append(f"| {step} | {' | '.join(cells)} | {note.format(**found[step])} |")
    lines.append("")
    for step, through in (("noop", "the pool of `classify`"), ("noop_ray_data", "Ray Data, a block a unit")):
        if step in found:
            cpu = found[step].get("driver_cpu_ms_per_unit")
            lines.append(
                f"A scorer that does nothing: {found[step]['units_per_s']} units/s through {through}"
                + (f", {cpu} ms of the driver's CPU a unit" if cpu else "")
                + f" (load {found[step]['load']})."
            )
    actors = {rows: found[name] for rows in ACTOR_ROWS if (name := f"actor_{rows}") in found}
    if actors:
        peaks = ", ".join(f"{at['peak_gib']} of {rows:,} rows" for rows, at in actors.items())
        lines += ["", f"Memory of a scorer with two units in hand, GiB: {peaks}."]
    write_section("Plan, resume and manifest of a million units", lines)
    figures = {f"{step}_{name}": value for step, values in found.items() for name, value in values.items()}
    write_figures("plan", {**figures, "unit_rows": UNIT_ROWS, "machine": machine()})


if __name__ == "__main__":
    step_or_whole("tests.benchmarks.bench_plan", PREPARATION, MEASURED, report)
