"""`classify`: score every detection of a survey, commit each unit once, and commit the run by its manifest."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from deepshadows import storage
from deepshadows.model import checkpoint, shipped, uncertainty
from deepshadows.outcomes import ExitCode, HeldError, StorageError, Summary
from deepshadows.run.journal import Journal
from deepshadows.run.lease import Lease
from deepshadows.run.ledger import Ledger, open_ledger, open_units
from deepshadows.run.manifest import Manifest, manifest_url, quarantined_units, read_manifest
from deepshadows.run.record import RunRecord
from deepshadows.run.scores import Receipt, forget_quarantine, quarantine
from deepshadows.run.units import Unit
from deepshadows.settings import Classify
from deepshadows.verbs.classify_commit import account, write_rejects
from deepshadows.verbs.classify_plan import plan
from deepshadows.verbs.progress import ScoringNote, track
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.scorer_pool import ScorerPool, place
from deepshadows.verbs.unit_scoring import UnitScorer

SHOWN_REASONS = 20


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
    _, card = checkpoint.load(settings.checkpoint)  # what does not fit is refused before anything is written
    uncertainty.read(settings.checkpoint, card)
    return carry_out(settings, plan(settings, settings.output).record)


def carry_out(settings: Classify, record: RunRecord) -> Summary:
    """Score what is missing of a run that is planned, and commit it."""
    target = settings.output
    if storage.exists(manifest_url(target)):
        return _summary(target, read_manifest(target), scored_here=0)
    with Lease(target) as lease:
        if storage.exists(manifest_url(target)):  # committed while this driver waited for the lease
            return _summary(target, read_manifest(target), scored_here=0)
        ledger = open_ledger(target, record)
        earlier, started = ledger.rows_scored, time.monotonic()
        if ledger.units_open:
            with (
                ray_session(settings.address),
                Journal(target, record.fingerprint, lease.token) as journal,
                closing(_score(settings, target, record, ledger)) as receipts,
            ):
                for receipt in receipts:
                    lease.check()
                    ledger.note(receipt)
                    journal.add(receipt)
        seconds = time.monotonic() - started
        lease.confirm()
        manifest = account(target, record, ledger, lease.token, seconds)
        write_rejects(target, record, ledger)
        forget_quarantine(target, ledger.quarantined)
        lease.confirm()
        storage.create(manifest_url(target), manifest.model_dump_json().encode())
        if read_manifest(target).driver != lease.token:  # a create whose answer was lost is ours all the same
            raise HeldError(f"{target}: another driver has committed this run")
    return _summary(target, manifest, scored_here=ledger.rows_scored - earlier)


def _score(settings: Classify, target: str, record: RunRecord, ledger: Ledger) -> Generator[Receipt]:
    """Stream units through scorer actors; one receipt each, as they are committed."""
    placement = place(settings.scorers, settings.threads)
    placement = replace(placement, scorers=min(placement.scorers, ledger.units_open))
    arguments = settings, target, record.run, record.fingerprint, placement.threads, placement.device
    pool = ScorerPool(UnitScorer, arguments, placement, settings.no_progress_s)
    units = open_units(target, record, ledger)
    with closing(pool.results(units)) as results:
        rows = (row or _given_up(target, Unit(**unit)) for unit, row in results)
        for row in track(rows, "scoring units", ledger.units_open, ScoringNote()):
            if failure := row.pop("failure"):
                raise StorageError(f"{failure}; when the store answers, run the same command again to go on")
            yield Receipt(**row)


def _given_up(target: str, unit: Unit) -> dict[str, Any]:
    receipt = quarantine(target, unit, f"{unit.name}: scorers died of it, again and again; is their memory enough?")
    return {**asdict(receipt), "failure": ""}


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
    bad = islice(quarantined_units(target, manifest), SHOWN_REASONS)
    text.extend(f"quarantined: {unit.object}: {unit.reason}" for unit in bad)
    if manifest.units_quarantined > SHOWN_REASONS:
        text.append(f"... and {manifest.units_quarantined - SHOWN_REASONS} more in {target}/quarantine/")
    exit_code = ExitCode.EXCEPTIONS if manifest.units_quarantined else ExitCode.DONE
    return Summary(verb="classify", output=target, exit_code=exit_code, figures=figures, text=tuple(text))
