"""The sections of a report's page, in HTML. No I/O, no Ray, no torch."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image as Pillow

from deepshadows import __version__
from deepshadows.model.completeness import INTERVAL_TEXT, Bin, Property
from deepshadows.outcomes import Summary
from deepshadows.schema import Flag
from deepshadows.sky.viewer import page_url
from deepshadows.verbs import page
from deepshadows.verbs.page import Html, Picture, text
from deepshadows.verbs.review.images import Image, Wanted
from deepshadows.verbs.review.run_parts import RunPart
from deepshadows.verbs.review.sources import Source
from deepshadows.verbs.review.tally import Tally

MOST_REASONS = 30
"""Quarantined units that are told one by one; the others are counted by reason."""
LONGEST_REASON = 300
GALLERY_TITLES = {
    "top": ("Highest scores", "the objects of highest p_lsbg"),
    "borderline": ("Borderline", "the objects whose p_lsbg is closest to the threshold"),
    "random": ("Random", "scored objects drawn at random: what the survey looks like to the network"),
    "out_of_domain": ("Out of domain", "drawn at random from the scored objects that are unlike the training images"),
}
ABOUT_IMAGES = (
    "Images are those that the network saw, north up, east left; below each: p_lsbg, its 1-sigma error where the "
    "network states one, the identifier, ra and dec in degrees, and the flags.",
    "Each image is a link to the same place in the Legacy Surveys viewer, which needs a network.",
)
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


def gallery(name: str, rows: Sequence[Mapping[str, Any]], found: Mapping[Wanted, Image | str], stretch: str) -> Html:
    """Images of objects with what is known of them, each a link to the same place in the Legacy Surveys viewer."""
    title, what = GALLERY_TITLES[name]
    head = [Html(f"<h3>{text(title)}</h3>"), page.paragraph(f"{len(rows)}: {what}.", "notes")]
    if not rows:
        return page.join([head[0], page.paragraph("None.")])
    images = [found.get(wanted(row), "it was not looked for") for row in rows]
    items = (_item(row, image, stretch) for row, image in zip(rows, images, strict=True))
    return page.join([*head, Html(f'<ul class="gallery">{page.join(items)}</ul>'), page.notes(_missing(images))])


def wanted(row: Mapping[str, Any]) -> Wanted:
    return Wanted(row["object_id"], row["ra"], row["dec"], row["unit"], row["run"])


def _missing(images: Sequence[Image | str]) -> list[str]:
    reasons = Counter(shortened(image) for image in images if isinstance(image, str))
    return [f"{count} without an image: {reason}" for reason, count in reasons.most_common(MOST_REASONS)]


def shortened(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"


def _item(row: Mapping[str, Any], image: Image | str, stretch: str) -> Html:
    score = f"{row['p_lsbg']:.3f}" + ("" if row["p_lsbg_err"] is None else f" ± {row['p_lsbg_err']:.3f}")
    placed = row["ra"] is not None and row["dec"] is not None
    at = f"ra {row['ra']:.5f}, dec {row['dec']:+.5f}" if placed else "no position"
    name = f"object {row['object_id']}"
    if isinstance(image, str):
        shown = Html(f'<span class="gone">no image{"; open the place" if placed else ""}</span>')
    else:
        alt = text(f"Cut-out of {name}, p_lsbg {score}, {at}")
        shown = Html(f'<img src="{page.data_url(_png(image))}" alt="{alt}">')
    if placed:
        label = text(f"{name}, p_lsbg {score}: open {at} in the Legacy Surveys viewer")
        shown = Html(f'<a href="{text(page_url(row["ra"], row["dec"], stretch))}" aria-label="{label}">{shown}</a>')
    flags = " ".join(Flag.names(row["flags"]))
    lines = [text(str(row["object_id"])), text(at.replace("ra ", "").replace("dec ", "")), text(flags)]
    return Html(f"<li>{shown}<p><b>{text(score)}</b><br>{_broken(lines)}</p></li>")


def _broken(lines: Sequence[Html]) -> Html:
    return Html("<br>".join(line for line in lines if line))


def _png(image: Image) -> bytes:
    sink = io.BytesIO()
    Pillow.fromarray(image).save(sink, "PNG", optimize=True)
    return sink.getvalue()


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
    units = [(run, unit) for run in source.runs for unit in run.quarantined]
    lost = source.rows["quarantined"]
    if not units and lost:
        return page.paragraph(f"{whole(lost)} rows were quarantined; their runs are gone, and the reasons with them.")
    if not units:
        return page.paragraph("No unit was quarantined.")
    rows = [(unit.object, whole(unit.rows), shortened(unit.reason)) for _, unit in units[:MOST_REASONS]]
    more = Counter(shortened(unit.reason.split(": ")[-1]) for _, unit in units[MOST_REASONS:])
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
        named = [(what, diff[name]) for name, what in CHANGES.items() if isinstance(diff.get(name), int)]
        rows = [(what, whole(count)) for what, count in named]
        counts = page.table("Objects, against the version before", ("", "objects"), rows)
        parts.append(page.pair([counts, *([page.picture(picture)] if picture else [])]))
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
