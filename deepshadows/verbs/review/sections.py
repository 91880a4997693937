"""The sections of a report's page, in HTML. No I/O, no Ray, no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from deepshadows import __version__
from deepshadows.model.completeness import INTERVAL_TEXT, Bin, Property
from deepshadows.outcomes import Summary
from deepshadows.schema import Flag
from deepshadows.verbs import page
from deepshadows.verbs.page import Html, Picture, text
from deepshadows.verbs.review.galleries import MOST_REASONS, shortened
from deepshadows.verbs.review.run_parts import RunPart
from deepshadows.verbs.review.sources import Source
from deepshadows.verbs.review.tally import Tally

MEASURES = {
    "completeness": "completeness",
    "purity": "purity, as matched",
    "purity_at_prevalence": "purity at the survey's prevalence",
    "accuracy": "accuracy",
    "auc": "area under the ROC curve",
    "ece": "calibration error",
}
CHANGES = {
    "new": "new",
    "new_above": "of these candidates",
    "gone": "gone",
    "gone_above": "of these candidates before",
    "up": "crossed the threshold upwards",
    "down": "crossed the threshold downwards",
    "rescored": "another score",
    "unchanged": "unchanged",
}
COUNTS = {"tp": "LSBGs selected", "fn": "lost", "fp": "artifacts selected", "tn": "artifacts left out"}


def headline(source: Source, tally: Tally) -> Html:
    """The numbers that matter most."""
    known = {
        "detections planned": whole(source.rows["planned"]),
        "scored": whole(tally.scored),
        f"candidates, p_lsbg ≥ {tally.threshold:g}": whole(tally.selected),
        "unscored": whole(tally.rows - tally.scored),
        "quarantined": whole(source.rows["quarantined"]),
        "out of domain": whole(tally.flags[Flag.OUT_OF_DOMAIN.name]),
    }
    return page.cards(known)


def whole(number: int) -> str:
    return f"{number:,}"


def share(part: int, of: int) -> str:
    """Percent, as many digits as it takes to see that it is not zero."""
    if not of:
        return "–"
    percent = 100 * part / of
    return f"{percent:.1f} %" if percent >= 0.1 or not part else f"{percent:.2g} %"


def counts(source: Source, tally: Tally) -> Html:
    """What became of every planned row and unit."""
    planned = source.rows["planned"]
    parts = [name for name in source.rows if name != "planned"]
    balance = " + ".join(f"{whole(source.rows[name])} {name}" for name in parts)
    rows = [(name, whole(source.rows[name]), share(source.rows[name], planned)) for name in source.rows]
    states = ("planned", "done", "quarantined", "left")
    units = [(run.run, *(whole(run.units.get(name, 0)) for name in states)) for run in source.runs]
    tables = [page.table("Rows", ("", "rows", "share of planned"), rows)]
    if units:
        tables.append(page.table("Units of work", ("run", *states), units))
    content = [page.paragraph(f"{whole(planned)} rows planned = {balance}."), page.pair(tables)]
    told = [f"{whole(tally.unplaced)} rows have no place on the sky."] if tally.unplaced else []
    if source.left_out:
        told.append(f"{whole(source.left_out)} rows repeat an object of another unit and are not in the catalogue.")
    return page.join([*content, page.notes(told)])


def sky(maps: Sequence[Picture], known: Mapping[str, str]) -> Html:
    """Where the rows lie: two maps of the whole sky, or one of it and two of the survey."""
    if not maps:
        return page.paragraph("No row has a place on the sky.")
    *first, one, other = map(page.picture, maps)
    told = page.pair([*first, page.facts(known)]) if first else page.facts(known)
    return page.join([told, page.pair([one, other])])


def scores(tally: Tally, picture: Picture, prevalence: float | None) -> Html:
    """Histogram, and how many objects a threshold keeps."""
    head = ["p_lsbg at least", "objects", "share of scored"]
    if prevalence is not None:
        head += [f"LSBGs expected at prevalence {prevalence:g}", "purity expected"]
    rows = []
    for level in tally.above():
        cells = [f"{level.threshold:g}", whole(level.rows), share(level.rows, tally.scored)]
        if level.expected is not None:
            cells += [f"{level.expected:,.1f}", f"{level.expected / level.rows:.3f}" if level.rows else "–"]
        rows.append(cells)
    told = (
        "Expected numbers are sums of the probabilities, corrected to that prevalence: they hold as far as the "
        "calibration of the network does on this survey."
    )
    parts = [page.picture(picture), page.table("Objects above a threshold", head, rows)]
    return page.join([*parts, page.NOTHING if prevalence is None else page.notes([told])])


def truth(
    judged: Summary, told: Sequence[str], pictures: Sequence[Picture], tables: Mapping[Property, Sequence[Bin]]
) -> Html:
    """How pure and complete, with intervals."""
    figures = judged.figures
    wanted = ("completeness", "purity", "purity_at_prevalence", "accuracy", "auc", "ece")
    names = [name for name in wanted if name in figures]
    rows = [(MEASURES[name], number(figures[name]), interval(figures, name)) for name in names]
    counts = ", ".join(f"{whole(figures[name])} {what}" for name, what in COUNTS.items())
    measures = page.table(f"At p_lsbg ≥ {figures['threshold']:g}", ("", "value", "95 % interval"), rows)
    parts = [page.notes([*told, f"At the threshold: {counts}."]), page.pair([measures, *map(page.picture, pictures)])]
    parts.append(
        page.notes([f"Intervals of completeness, purity, accuracy: {INTERVAL_TEXT}; of the others: bootstrap."])
    )
    parts += [
        page.folded(f"Completeness by {by.name}, in numbers", completeness_table(by, bins))
        for by, bins in tables.items()
    ]
    return page.join(parts)


def completeness_table(by: Property, bins: Sequence[Bin]) -> Html:
    records = [one.record() for one in bins]
    rows = [
        (
            f"{record['low']:.3g} to {record['high']:.3g}",
            whole(record["n"]),
            whole(record["detected"]),
            whole(record["selected"]),
            number(record["completeness"]),
            interval(record, "completeness"),
        )
        for record in records
    ]
    head = (by.unit, "true LSBGs", "detected", "selected", "completeness", "95 % interval")
    return page.table(f"Completeness by {by.name}", head, rows)


def number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def interval(figures: Mapping[str, Any], name: str) -> str:
    low, high = figures[f"{name}_lo"], figures[f"{name}_hi"]
    return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def flags(tally: Tally) -> Html:
    """Every flag that occurs, with its meaning."""
    found = [(flag, tally.flags[flag.name]) for flag in Flag if tally.flags[flag.name]]
    rows = [(flag.name, flag.kind.value, whole(n), share(n, tally.rows), flag.text) for flag, n in found]
    if not rows:
        return page.paragraph("No row carries a flag.")
    head = ("flag", "kind", "rows", "share", "meaning")
    told = "Rows with a fatal flag keep their place without a score; a row may carry several flags."
    return page.join([page.table("Flags", head, rows, prose=("kind", "meaning")), page.notes([told])])


def quarantine(source: Source) -> Html:
    """Units that could not be read, and why."""
    units = source.quarantined
    lost = source.rows["quarantined"]
    if not units and lost:
        return page.paragraph(f"{whole(lost)} rows were quarantined; their runs are gone, and the reasons with them.")
    if not units:
        return page.paragraph("No unit was quarantined.")
    rows = [(unit.object, whole(unit.rows), shortened(unit.reason)) for unit in units[:MOST_REASONS]]
    more = Counter(shortened(unit.reason.split(": ")[-1]) for unit in units[MOST_REASONS:])
    told = [f"{count} more units: {reason}" for reason, count in more.most_common(MOST_REASONS)]
    unseen = sum(run.units["quarantined"] - len(run.quarantined) for run in source.runs)
    told += [f"{unseen} more units were not looked at."] if unseen else []
    told += [f"Their records: {run.url}/quarantine/" for run in source.runs if run.quarantined]
    head = ("object", "rows", "reason")
    return page.join([page.table("Quarantined units", head, rows, prose=("object", "reason")), page.notes(told)])


def changes(diff: Mapping[str, Any] | None, drift: Mapping[str, Any] | None, picture: Picture | None) -> Html:
    """How a version differs from the one before, as `reprocess` found it."""
    parts = []
    if drift is not None:
        parts.append(page.label(str(drift.get("line", drift.get("verdict", "drift: not judged")))))
    if diff is not None:
        objects = diff.get("objects", {})
        named = [(what, objects[name]) for name, what in CHANGES.items() if isinstance(objects.get(name), int)]
        rows = [(what, whole(count)) for what, count in named]
        counts = page.table("Objects, against the version before", ("", "objects"), rows)
        parts.append(page.pair([counts, *([page.picture(picture)] if picture else [])]))
        parts.append(page.facts(_about(diff)))
    alarms = [found for found in (drift or {}).get("findings", ()) if found.get("alarm")]
    if alarms:
        head = ("check", "against", "where", "rows", "value", "limit")
        told = [
            [str(found[name]) for name in ("what", "against", "where", "rows")]
            + [f"{found[name]:.3f}" for name in ("value", "limit")]
            for found in sorted(alarms, key=lambda found: float(found["limit"] - found["value"]))[:MOST_REASONS]
        ]
        parts.append(page.table("Checks that found drift, the largest first", head, told, prose=("against", "where")))
    return page.join(parts)


def _about(diff: Mapping[str, Any]) -> dict[str, str]:
    """What a change was between, and what it reached."""
    units, partitions = diff.get("units", {}), diff.get("partitions", {})
    return {
        "version before": str(diff.get("version_before") or "none"),
        "threshold": str(diff.get("threshold", "")),
        "units of work": ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in units.items()),
        "partitions": f"{len(partitions.get('rewritten', ()))} rewritten, {partitions.get('carried', 0)} carried over",
    }


def throughput(source: Source, usd_per_hour: float | None) -> Html:
    """How fast each run was, and what it cost."""
    head = ["run", "rows", "seconds", "rows/s", "engine"] + (["USD", "USD per million rows"] if usd_per_hour else [])
    rows = []
    for run in source.runs:
        done = run.rows["scored"] + run.rows["unscored"]
        known = run.seconds is not None and run.seconds > 0
        cells = [
            run.run,
            whole(done),
            f"{run.seconds:,.1f}" if known else "–",
            f"{done / run.seconds:,.0f}" if known and run.seconds else "–",
            run.engine,
        ]
        if usd_per_hour:
            cost = usd_per_hour * (run.seconds or 0) / 3600
            cells += [f"{cost:,.4f}", f"{cost / done * 1e6:,.2f}" if done else "–"] if known else ["–", "–"]
        rows.append(cells)
    told = [
        "Seconds are those that the driver which finished the run spent scoring; units that an earlier driver had "
        "scored count as rows of it all the same.",
        f"The score files hold {source.size_bytes / 1e6:,.1f} MB, "
        f"{source.size_bytes / max(1, source.rows_there):.0f} bytes a row.",
    ]
    if usd_per_hour:
        told.append(f"Cost at {usd_per_hour:g} USD an hour for all machines of the run together.")
    else:
        told.append("What it cost: make the report again with --usd-per-hour, the price of all machines of the run.")
    table = page.table("Throughput", head, rows, prose=("engine",)) if rows else page.NOTHING
    return page.join([table, page.notes(told)])


def provenance(source: Source) -> Html:
    """Where every number comes from."""
    parts = [page.facts({"address": source.url, "report by": f"DeepShadows {__version__}", **source.provenance})]
    parts += [page.join([Html(f"<h3>{text(f'Run {run.run}')}</h3>"), page.facts(_of_run(run))]) for run in source.runs]
    parts.append(page.notes([f"{url}: not read: {reason}" for url, reason in source.missing_runs.items()]))
    return page.join(parts)


def _of_run(run: RunPart) -> dict[str, str]:
    return {
        "address": run.url,
        "fingerprint": run.fingerprint,
        "network": str(run.checkpoint.get("name", "")),
        "weights sha256": str(run.checkpoint.get("weights_sha256", "")),
        "engine": run.engine,
        "preparation of pixels": json.dumps(dict(run.preprocessing), sort_keys=True),
        "settings": json.dumps(
            {name: value for name, value in run.settings.items() if value is not None}, sort_keys=True
        ),
        "versions": ", ".join(f"{name} {value}" for name, value in run.versions.items()),
    }
