"""What `reprocess` tells: diff.json, the provenance of a version, and the lines for people. No Ray."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from deepshadows.catalog import provenance
from deepshadows.catalog.changes import Changes
from deepshadows.catalog.collection import NewVersion
from deepshadows.catalog.drift import Drift
from deepshadows.catalog.inventory import Inventory
from deepshadows.catalog.version_folder import VersionFolder, table_name
from deepshadows.outcomes import ExitCode, Summary
from deepshadows.run.record import RunRecord
from deepshadows.settings import Reprocess
from deepshadows.verbs.reprocess_input import drift_told, figures_of, go_back, last_url, where_told
from deepshadows.verbs.version_plan import VersionPlan
from deepshadows.verbs.version_writing import Tally

SHOWN_REASONS = 20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A version that was made.

    Attributes
    ----------
    record : RunRecord
        Of the run that scored what was missing.
    now, before : Inventory
        Of this version, and of the one before where that has one.
    gone : list of str
        RUN/UNIT of each unit whose rows went.
    continued : bool
        Whether rows of the version before stayed.
    """

    version: NewVersion
    record: RunRecord
    now: Inventory
    before: Inventory | None
    gone: list[str]
    continued: bool
    plan: VersionPlan
    tally: Tally
    changes: Changes
    drift: Drift
    threshold: float

    @property
    def units_scored_here(self) -> int:
        return int(pc.sum(pc.equal(self.now.scored["run"], self.record.run)).as_py() or 0)

    @property
    def rows_scored_here(self) -> int:
        mine = self.now.scored.filter(pc.equal(self.now.scored["run"], self.record.run))
        return int((pc.sum(mine["rows"]).as_py() or 0) - (pc.sum(mine["unscored"]).as_py() or 0))


def diff_record(outcome: Outcome) -> dict[str, Any]:
    """What diff.json holds; the objects that changed side lie in changes/ as Parquet."""
    version, tally = outcome.version, outcome.tally
    return {
        "version": version.name,
        "version_before": version.before.version if version.before else None,
        "checkpoint": outcome.now.summary.checkpoint,
        "checkpoint_before": outcome.before.summary.checkpoint if outcome.before else None,
        "threshold": outcome.threshold,
        "objects": outcome.changes.to_json(),
        "units": {
            "present": outcome.now.units.num_rows,
            "scored_here": outcome.units_scored_here,
            "gone": len(outcome.gone) if outcome.continued else _count(outcome.before),
            "quarantined": outcome.now.quarantined.num_rows,
        },
        "partitions": {
            "rewritten": [f"Norder={part.order}/Npix={part.pixel}" for part in tally.rewritten],
            "carried": len(outcome.plan.carried),
        },
    }


def _count(inventory: Inventory | None) -> int:
    return inventory.scored.num_rows if inventory else 0


def provenance_of(outcome: Outcome, settings: Reprocess) -> dict[str, Any]:
    """Properties of the table: the whole input as one run, under the fingerprint that a run of all of it has."""
    record, version = outcome.record, outcome.version
    rows = outcome.now.row_figures()
    content = provenance.inventory_of(outcome.now.units["unit"].to_pylist())
    facts = provenance.RunFacts(
        url=settings.input,
        run=record.run,
        fingerprint=hashlib.sha256(f"{record.recipe} {content}".encode()).hexdigest(),
        id_type=record.id_type,
        checkpoint=record.checkpoint,
        preprocessing=record.preprocessing,
        settings=record.settings,
        engine=", ".join(sorted({facts["engine"] for facts in outcome.now.summary.runs.values()})),
        versions=record.versions,
        rows=rows,
        inventory=content,
    )
    told = {**{f"rows_{name}": count for name, count in rows.items()}, "duplicates": settings.duplicates}
    asked = settings.model_dump(exclude={"address"})
    return provenance.properties(table_name(version.catalog), version.name, [facts], asked, told)


def _quarantined_lines(now: Inventory, folder: str) -> list[str]:
    """Why units could not be read, and where all of it and the ids of their rows lie."""
    bad = now.quarantined.slice(0, SHOWN_REASONS).to_pylist()
    lines = [f"quarantined, tried again next time: {row['tile'] or row['url']}: {row['reason']}" for row in bad]
    more = now.quarantined.num_rows - len(bad)
    lines += [f"... and {more} more"] if more else []
    return [*lines, where_told(folder)] if lines else []


def unchanged(settings: Reprocess, version: str, now: Inventory, seconds: float) -> Summary:
    """Nothing could be scored that the version does not hold already."""
    catalog = settings.catalog
    figures = {**figures_of(now), "version": version, "changed": False, "units_scored_here": 0, "rows_scored_here": 0}
    alarm = drift_told(VersionFolder(catalog, version)) if settings.fail_on_drift else ()
    text = [f"{catalog}: {version} is up to date ({seconds:.1f} s)", *alarm]
    text += _quarantined_lines(now, last_url(catalog))
    code = ExitCode.DRIFT if alarm else ExitCode.EXCEPTIONS if now.quarantined.num_rows else ExitCode.DONE
    return Summary(verb="reprocess", output=catalog, exit_code=code, figures=figures, text=tuple(text))


def summarise(outcome: Outcome, settings: Reprocess, seconds: float) -> Summary:
    """The lines for people and the figures; the exit code says drift before it says quarantine."""
    version, now, tally, changes = outcome.version, outcome.now, outcome.tally, outcome.changes
    gone = diff_record(outcome)["units"]["gone"]
    before = version.before.version if version.before else None
    text = [
        f"{version.catalog}: version {version.name}, {tally.placed + tally.unplaced} rows ({seconds:.1f} s)",
        f"units: {outcome.units_scored_here} of {now.units.num_rows} scored here ({outcome.rows_scored_here} rows), "
        f"{gone} gone, {now.quarantined.num_rows} quarantined",
        f"partitions: {len(tally.rewritten)} written, {len(outcome.plan.carried)} copied",
    ]
    if before:
        text.append(
            f"objects against {before}: {changes.new} new ({changes.new_above} above p_lsbg {outcome.threshold:g}), "
            f"{changes.gone} gone ({changes.gone_above}), {changes.up} crossed up, {changes.down} down"
        )
    text.append(outcome.drift.line)
    code = ExitCode.EXCEPTIONS if now.quarantined.num_rows else ExitCode.DONE
    if outcome.drift.alarms and settings.fail_on_drift:
        code = ExitCode.DRIFT
        text += go_back(version.catalog, before)
    text += _quarantined_lines(now, version.url)
    figures = {
        **figures_of(now),
        "version": version.name,
        "version_before": before,
        "changed": True,
        "units_scored_here": outcome.units_scored_here,
        "rows_scored_here": outcome.rows_scored_here,
        "units_gone": gone,
        "rows_published": tally.placed,
        "rows_unplaced": tally.unplaced,
        "partitions": len(tally.partitions),
        "partitions_written": len(tally.rewritten),
        "partitions_copied": len(outcome.plan.carried),
        **{f"objects_{name}": value for name, value in vars(changes).items() if name != "shifts"},
        "drift": outcome.drift.verdict,
    }
    return Summary(verb="reprocess", output=version.catalog, exit_code=code, figures=figures, text=tuple(text))
