"""`classify`: score every detection of a survey, commit each unit once, and commit the run by its manifest."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import ray
import ray.data

from deepshadows import storage
from deepshadows.model import checkpoint, shipped, uncertainty
from deepshadows.outcomes import ExitCode, Failure, HeldError, InputError, StorageError, Summary
from deepshadows.run.lease import Lease
from deepshadows.run.manifest import Manifest, QuarantinedUnit, ScoreObject, manifest_url, read_manifest
from deepshadows.run.scores import Receipt, committed, forget_quarantine, read_receipts
from deepshadows.run.units import Unit, UnitKind
from deepshadows.schema import Flag, id_field
from deepshadows.settings import Classify
from deepshadows.sky.row_groups import read_rows
from deepshadows.sky.shards import open_shard
from deepshadows.verbs.classify_plan import Planned, detections_of, plan
from deepshadows.verbs.progress import ScoringNote, track
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.unit_scoring import UnitScorer

NO_PROGRESS_TIMEOUT_S = 900.0
CALLS_AT_ONCE = 2
"""Units an actor has in hand: one is read or committed while the other is scored."""
TASKS_IN_FLIGHT = 3


def run(settings: Classify) -> Summary:
    """Plan, score what is missing, check that every planned row is accounted for, commit.

    Raises
    ------
    UsageError
        Input, checkpoint or output are wrong; nothing was written.
    HeldError
        Another driver works on this run or has committed it.
    """
    settings = settings.model_copy(
        update={
            name: storage.normalise(value)
            for name in ("input", "output", "detections")
            if (value := getattr(settings, name)) is not None
        }
        | {"checkpoint": shipped.normalise(settings.checkpoint)}
    )
    target = settings.output
    _, card = checkpoint.load(settings.checkpoint)  # what does not fit is refused before anything is written
    uncertainty.read(settings.checkpoint, card)
    planned = plan(settings, target)
    if storage.exists(manifest_url(target)):
        return _summary(target, read_manifest(target), scored_here=0)
    with Lease(target) as lease:
        if storage.exists(manifest_url(target)):  # committed while this driver waited for the lease
            return _summary(target, read_manifest(target), scored_here=0)
        receipts = _earlier_receipts(target, planned)
        missing = [unit for unit in planned.units if unit.unit not in receipts]
        started = time.monotonic()
        scored_here = 0
        if missing:
            with ray_session(settings.address):
                for receipt in _score(settings, target, planned, missing):
                    lease.check()
                    receipts[receipt.unit] = receipt
                    scored_here += receipt.scored
        seconds = time.monotonic() - started
        lease.confirm()
        manifest = _manifest(target, planned, receipts, lease.token, seconds)
        _write_rejects(target, planned, receipts)
        forget_quarantine(target, {key for key, receipt in receipts.items() if not receipt.quarantined})
        lease.confirm()
        storage.create(manifest_url(target), manifest.model_dump_json().encode())
        if read_manifest(target).driver != lease.token:  # a create whose answer was lost is ours all the same
            raise HeldError(f"{target}: another driver has committed this run")
    return _summary(target, manifest, scored_here=scored_here)


def _earlier_receipts(target: str, planned: Planned) -> dict[str, Receipt]:
    """What an earlier driver of this run committed, by unit; quarantined units are tried again."""
    done = committed(target)
    mine = {unit.unit: done[unit.unit] for unit in planned.units if unit.unit in done}
    return {receipt.unit: receipt for receipt in read_receipts(mine, planned.record.fingerprint)}


@dataclass(frozen=True)
class _Placement:
    """How many scorers, and what each takes."""

    scorers: int
    cpus: float
    gpus: float
    threads: int
    device: Literal["cpu", "cuda"]


def _place(settings: Classify) -> _Placement:
    """One scorer a GPU; without GPUs one a node, which leaves a CPU to readers and to Ray where there is one."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if gpus:
        scorers = settings.scorers or gpus
        return _Placement(scorers, 1, min(1.0, gpus / scorers), settings.threads or 1, "cuda")
    nodes = [cpus for node in ray.nodes() if node["Alive"] and (cpus := node["Resources"].get("CPU", 0))]
    if not nodes:
        raise Failure("no node of this cluster has a CPU or a GPU to work with: start workers, then run this again")
    node_cpus = int(max(1, min(nodes)))
    scorers = settings.scorers or len(nodes)
    per_node = -(-scorers // len(nodes))
    return _Placement(
        scorers, max(1, (node_cpus - 1) // per_node), 0, settings.threads or max(1, node_cpus // per_node), "cpu"
    )


def _score(settings: Classify, target: str, planned: Planned, missing: list[Unit]) -> Iterator[Receipt]:
    """Stream units through scorer actors; one receipt each, as they are committed."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    placement = _place(settings)
    scorers = min(placement.scorers, len(missing))
    dataset = ray.data.from_items([asdict(unit) for unit in missing], override_num_blocks=len(missing)).map(
        UnitScorer,
        fn_constructor_args=(
            settings,
            target,
            planned.record.run,
            planned.record.fingerprint,
            placement.threads,
            placement.device,
        ),
        compute=ray.data.ActorPoolStrategy(
            size=scorers,
            max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT,
            max_concurrent_calls_per_actor=CALLS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=placement.cpus,
        num_gpus=placement.gpus,
    )
    try:
        for row in track(dataset.iter_rows(), "scoring units", len(missing), ScoringNote()):
            if failure := row.pop("failure"):
                raise StorageError(f"{failure}; when the store answers, run the same command again to go on")
            yield Receipt(**row)
    except ray.exceptions.RayError as error:
        last_line = str(error).strip().splitlines()[-1]
        raise Failure(f"scoring stopped: {last_line}; run the same command again to go on") from error


def _rejected(unit: Unit, id_type: pa.DataType) -> pa.Array:
    """Identifiers of a quarantined unit, where they can still be read."""
    try:
        if unit.kind == UnitKind.TILE:
            return detections_of(unit).object_id
        if unit.kind == UnitKind.SHARD:
            return read_rows(open_shard(unit.url), unit.first_row, unit.rows, ["object_id"])[
                "object_id"
            ].combine_chunks()
    except (InputError, StorageError, OSError, pa.ArrowException):
        pass  # the unit is quarantined because it cannot be read: its record names object and rows
    return pa.array([], id_type)


def _write_rejects(target: str, planned: Planned, receipts: dict[str, Receipt]) -> None:
    """RUN/rejects.parquet: identifiers of detections off every tile and of quarantined units, with the reason."""
    id_type = pa.string() if planned.record.id_type == "string" else pa.int64()
    schema = pa.schema([id_field(id_type), ("unit", pa.string()), ("reason", pa.string())])
    parts = [schema.empty_table()]
    for unit in planned.units:
        receipt = receipts[unit.unit]
        if unit.kind == UnitKind.UNPLACED:
            detections = detections_of(unit)
            reasons = [" ".join(Flag.names(int(flags))) for flags in detections.flags]
            columns = [detections.object_id, pa.array([unit.unit] * len(reasons)), pa.array(reasons, pa.string())]
        elif receipt.quarantined:
            ids = _rejected(unit, id_type).cast(id_type)
            columns = [
                ids,
                pa.array([unit.unit] * len(ids), pa.string()),
                pa.array([receipt.reason] * len(ids), pa.string()),
            ]
        else:
            continue
        parts.append(pa.table(columns, schema=schema))
    storage.write_table(storage.join(target, "rejects.parquet"), pa.concat_tables(parts))


def _manifest(target: str, planned: Planned, receipts: dict[str, Receipt], driver: str, seconds: float) -> Manifest:
    """Account for every planned unit by what the store holds, not by what actors said."""
    stored = committed(target)
    by_unit = {unit.unit: unit for unit in planned.units}
    good = {key: receipt for key, receipt in receipts.items() if not receipt.quarantined}
    lost = [key for key in by_unit if key not in receipts or (key in good and key not in stored)]
    if lost:
        raise Failure(f"{target}: {len(lost)} units have no score object, e.g. {by_unit[lost[0]].name}; run it again")
    bad = [receipt for receipt in receipts.values() if receipt.quarantined]
    counts: Counter[str] = Counter()
    for receipt in good.values():
        counts.update(json.loads(receipt.flag_counts))
    scored = sum(receipt.scored for receipt in good.values())
    return Manifest(
        run=planned.record.run,
        fingerprint=planned.record.fingerprint,
        recipe=planned.record.recipe,
        driver=driver,
        settings=planned.record.settings,
        checkpoint=planned.record.checkpoint,
        preprocessing=planned.record.preprocessing,
        engine=", ".join(sorted({receipt.engine for receipt in good.values()})) or "none",
        versions=planned.record.versions,
        id_type=planned.record.id_type,
        units_planned=len(planned.units),
        units_done=len(good),
        units_quarantined=len(bad),
        rows_planned=planned.record.rows_planned,
        rows_scored=scored,
        rows_unscored=sum(receipt.rows for receipt in good.values()) - scored,
        rows_quarantined=sum(receipt.rows for receipt in bad),
        flag_counts=dict(counts),
        seconds=seconds,
        scores=tuple(
            ScoreObject(
                url=storage.relative(stored[key].url, target),
                size_bytes=stored[key].size_bytes,
                etag=stored[key].etag,
                rows=receipt.rows,
            )
            for key, receipt in sorted(good.items())
        ),
        quarantined=tuple(
            QuarantinedUnit(
                unit=receipt.unit,
                object=by_unit[receipt.unit].name,
                rows=receipt.rows,
                reason=receipt.reason,
            )
            for receipt in sorted(bad, key=lambda receipt: receipt.unit)
        ),
    )


def _summary(target: str, manifest: Manifest, *, scored_here: int) -> Summary:
    rate = scored_here / manifest.seconds if manifest.seconds else 0.0
    figures: dict[str, Any] = {
        "rows_planned": manifest.rows_planned,
        "rows_scored": manifest.rows_scored,
        "rows_unscored": manifest.rows_unscored,
        "rows_quarantined": manifest.rows_quarantined,
        "units_planned": manifest.units_planned,
        "units_done": manifest.units_done,
        "units_quarantined": manifest.units_quarantined,
        "rows_scored_here": scored_here,
        "images_per_s": round(rate, 1) if scored_here else None,
        "engine": manifest.engine,
    }
    text = [
        f"{manifest.rows_planned} rows = {manifest.rows_scored} scored + {manifest.rows_unscored} unscored "
        f"+ {manifest.rows_quarantined} quarantined, in {manifest.units_planned} units",
        f"scored here: {scored_here} at {rate:.0f}/s ({manifest.engine})"
        if scored_here
        else "nothing was left to score: the run is complete",
    ]
    flags = ", ".join(f"{name} {count}" for name, count in sorted(manifest.flag_counts.items()))
    if flags:
        text.append(f"flags: {flags}")
    text.extend(f"quarantined: {unit.object}: {unit.reason}" for unit in manifest.quarantined[:20])
    if len(manifest.quarantined) > 20:
        text.append(f"... and {len(manifest.quarantined) - 20} more in {target}/quarantine/")
    exit_code = ExitCode.EXCEPTIONS if manifest.quarantined else ExitCode.DONE
    return Summary(verb="classify", output=target, exit_code=exit_code, figures=figures, text=tuple(text))
