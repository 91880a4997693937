"""What `reprocess` does where something has changed: score it, fold it into a new version, compare, publish."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import pyarrow.compute as pc

from deepshadows import storage
from deepshadows.catalog import collection, drift, hats_files, inventory
from deepshadows.catalog.collection import Pointer
from deepshadows.catalog.continuation import continue_from
from deepshadows.catalog.drift import Drift, Sample, Training
from deepshadows.catalog.inventory import Inventory
from deepshadows.catalog.score_objects import ScoreSource, arrow_id_type
from deepshadows.catalog.version_folder import VersionFolder
from deepshadows.model import checkpoint, uncertainty
from deepshadows.model.card import Card
from deepshadows.model.domain import SUMMARIES
from deepshadows.model.uncertainty import Uncertainty
from deepshadows.outcomes import Failure, HeldError, InputError, Summary
from deepshadows.run.lease import Lease
from deepshadows.run.manifest import read_manifest
from deepshadows.run.record import RunRecord
from deepshadows.run.scores import quarantined
from deepshadows.settings import Classify, Reprocess
from deepshadows.verbs import classify
from deepshadows.verbs.classify_plan import plan
from deepshadows.verbs.comparison import compare_versions
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.reprocess_input import (
    Seen,
    classify_settings,
    figures_of,
    last_url,
    remove_runs,
    run_url,
    scored_earlier,
    where_told,
    write_seen,
)
from deepshadows.verbs.reprocess_report import Outcome, diff_record, provenance_of, summarise, unchanged
from deepshadows.verbs.score_sources import sources_of
from deepshadows.verbs.stock import named, take_stock
from deepshadows.verbs.version_plan import plan_version
from deepshadows.verbs.version_writing import copy_files, new_version, write_files, write_version


@dataclass(frozen=True, kw_only=True)
class Current:
    """The version that readers see.

    Attributes
    ----------
    pointer : Pointer or None
        None where nothing is published yet.
    inventory : Inventory or None
        None where it has none.
    stays : Inventory or None
        The same where its units were scored by the recipe that is wanted now, so that their rows can stay.
    """

    pointer: Pointer | None
    inventory: Inventory | None
    stays: Inventory | None

    @property
    def name(self) -> str | None:
        return self.pointer.version if self.pointer else None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the run of this call left: the inventory of the version to be, and what is new in it.

    Attributes
    ----------
    run : str
        Its address.
    record : RunRecord
    now : Inventory
    sources : list of ScoreSource
        The new rows.
    gone : list of str
        RUN/UNIT of each unit whose rows go.
    """

    run: str
    record: RunRecord
    now: Inventory
    sources: list[ScoreSource]
    gone: list[str]


def update(settings: Reprocess, recipe: str, look: str, lease: Lease, started: float) -> Summary:
    """Bring the catalogue up to date, under its lease."""
    _, card = checkpoint.load(settings.checkpoint)  # what does not fit is refused before anything is written
    fitted = uncertainty.read(settings.checkpoint, card)
    current = _current(settings.catalog, recipe)
    target = run_url(settings.catalog, look, current.name or "")
    remove_runs(settings.catalog, keep=target)
    with ray_session(settings.address):
        scored = _score(classify_settings(settings, target), current.stays, settings.catalog)
        lease.check()
        outcome = None
        if current.stays and not scored.gone and not scored.sources:
            _keep_records(scored, last_url(settings.catalog))
        else:
            outcome = _make_version(settings, card, _training(card, fitted), current, scored)
    lease.confirm()
    if outcome is not None:
        collection.swap(outcome.version)  # out of reach of what removes an unfinished version
    version = outcome.version.name if outcome else str(current.name)
    figures = figures_of(scored.now)
    seen = Seen(look=look, version=version, quarantined=figures["units_quarantined"], figures=figures)
    write_seen(settings.catalog, seen)
    seconds = time.monotonic() - started
    return summarise(outcome, settings, seconds) if outcome else unchanged(settings, version, scored.now, seconds)


def _current(catalog: str, recipe: str) -> Current:
    pointer = collection.read_pointer(catalog)
    found = inventory.read(VersionFolder(catalog, pointer.version).url) if pointer else None
    return Current(pointer=pointer, inventory=found, stays=found if found and found.summary.recipe == recipe else None)


def _score(settings: Classify, stays: Inventory | None, catalog: str) -> Scored:
    """Score what the version before lacks, as a run of `classify`."""
    run = settings.output
    planned = plan(settings, run, scored_earlier(catalog, stays))
    manifest = None
    if len(planned.units):
        classify.carry_out(settings, planned.record)
        manifest = read_manifest(run)
    now = take_stock(planned, run, manifest, stays)
    sources = list(sources_of(run, manifest)) if manifest else []
    return Scored(run=run, record=planned.record, now=now, sources=sources, gone=_gone(stays, now))


def _gone(stays: Inventory | None, now: Inventory) -> list[str]:
    """RUN/UNIT of each unit whose rows are in the version before and whose input is there no longer."""
    if stays is None:
        return []
    still = pc.is_in(stays.scored["unit"], value_set=now.scored["unit"].combine_chunks())
    return named(stays.scored.filter(pc.invert(still)))


def _make_version(settings: Reprocess, card: Card, training: Training, current: Current, scored: Scored) -> Outcome:
    """Write the version and what is told of it; readers do not see it yet."""
    now = scored.now
    if not now.scored.num_rows:
        raise _nothing_scored(settings, scored)
    threshold = settings.threshold or card.threshold
    id_type = arrow_id_type(now.summary.id_type)
    with new_version(settings.catalog) as version:
        if (version.before.version if version.before else None) != current.name:
            raise HeldError(f"{settings.catalog}: another version became current meanwhile; run this again")
        base = continue_from(VersionFolder(settings.catalog, str(current.name)), scored.gone) if current.stays else None
        written = plan_version(scored.sources, id_type, settings.partition_rows, settings.margin_arcsec, base)
        tally = write_version(version, written, keep_first=settings.duplicates == "first")
        _check_rows(now, tally.placed + tally.unplaced + tally.left_out)
        outcome = Outcome(
            version=version,
            record=scored.record,
            now=now,
            before=current.inventory,
            gone=scored.gone,
            continued=current.stays is not None,
            plan=written,
            tally=tally,
            changes=compare_versions(version, written, tally, threshold),
            drift=_judge(now, scored.record.run, current.inventory, training),
            threshold=threshold,
        )
        storage.write(version.diff_url, json.dumps(diff_record(outcome), indent=1).encode())
        storage.write(version.drift_url, json.dumps(outcome.drift.to_json(), indent=1).encode())
        inventory.write(version.url, now)
        _keep_records(scored, version.url)
        write_files(version, written, tally, provenance_of(outcome, settings))
        hats_files.check_version(version)
    return outcome


def _nothing_scored(settings: Reprocess, scored: Scored) -> InputError:
    """What to tell then; the run goes, or the next call would find it done and try nothing again."""
    last, bad = last_url(settings.catalog), scored.now.quarantined.num_rows
    _keep_records(scored, last)
    remove_runs(settings.catalog, keep=last)
    told = f"; {bad} units are quarantined, {where_told(last)}" if bad else ""
    return InputError(f"{settings.input}: nothing in it can be scored; {settings.catalog} is unchanged{told}")


def _keep_records(scored: Scored, folder: str) -> None:
    """Copy what the run tells of units that it could not read, and the ids of their rows: the run itself goes."""
    if scored.now.quarantined.num_rows:
        told = [*quarantined(scored.run).values(), storage.join(scored.run, "rejects.parquet")]
        copy_files([(url, storage.join(folder, storage.relative(url, scored.run))) for url in told])


def _check_rows(now: Inventory, rows_out: int) -> None:
    figures = now.row_figures()
    if figures["scored"] + figures["unscored"] != rows_out:
        raise Failure(
            f"{now.scored.num_rows} units have {figures} rows, the version {rows_out}: a defect of DeepShadows"
        )


def _judge(now: Inventory, run: str, before: Inventory | None, training: Training) -> Drift:
    """What was scored here against all of the version before, and against the training set."""
    added = Sample.of(now.scored.filter(pc.equal(now.scored["run"], run)))
    known = before.scored.filter(pc.is_valid(before.scored["scores"])) if before else None
    return drift.judge(added, Sample.of(known) if known is not None else None, training)


def _training(card: Card, fitted: Uncertainty | None) -> Training:
    """What the checkpoint tells of its training set."""
    metrics = card.metrics
    kept, mistaken = (_share(metrics, part, rest) for part, rest in (("tp", "fn"), ("fp", "tn")))
    threshold = float(metrics.get("threshold") or card.threshold)
    if fitted is None:
        return Training(threshold=threshold, kept=kept, mistaken=mistaken)
    return Training(
        threshold=threshold,
        mean=fitted.domain.mean,
        spread=fitted.domain.spread,
        names=SUMMARIES,
        kept=kept,
        mistaken=mistaken,
    )


def _share(metrics: dict[str, float | int | None], part: str, rest: str) -> float | None:
    one, other = metrics.get(part), metrics.get(rest)
    return one / (one + other) if one is not None and other is not None and one + other else None
