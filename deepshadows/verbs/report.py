"""`report`: one page about a run or a catalogue, for people: counts, sky, scores, images, provenance. No Ray.

One pass over the rows keeps totals and the few objects that are shown; then the images of these are read again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deepshadows import storage
from deepshadows.outcomes import Summary, UsageError
from deepshadows.settings import Evaluate, Report
from deepshadows.verbs import page
from deepshadows.verbs.against_truth import Comparison, read_truth, subject_of
from deepshadows.verbs.judgement import judgement
from deepshadows.verbs.page import Html
from deepshadows.verbs.progress import track
from deepshadows.verbs.review import charts, sections
from deepshadows.verbs.review.galleries import ABOUT_IMAGES, gallery, wanted
from deepshadows.verbs.review.images import Image, Wanted, read_images
from deepshadows.verbs.review.sources import Source, check_complete, open_source
from deepshadows.verbs.review.tables import in_batches
from deepshadows.verbs.review.tally import GALLERIES, Tally

Row = Mapping[str, Any]
BATCH_ROWS = 250_000
"""Rows that are counted at once: some 50 MB."""


def run(settings: Report) -> Summary:
    """Read everything, then write the page in one PUT.

    Raises
    ------
    UsageError
        The source is neither a run nor a catalogue, or the page would be written into it.
    InputError
        It is damaged, or the truth does not overlap with it; nothing was written.
    """
    started = time.monotonic()
    source = open_source(settings.source)
    target = storage.normalise(settings.output)
    if any(target.startswith(f"{place}/") for place in (source.url, storage.normalise(settings.source))):
        raise UsageError(f"{target}: lies within {settings.source}, whose files are its own; give another --output")
    tally = Tally(
        threshold=settings.threshold, prevalence=settings.prevalence, shown=settings.gallery, seed=settings.seed
    )
    comparison = Comparison(read_truth(settings.truth), settings.radius_arcsec) if settings.truth else None
    for table in in_batches(track(source.tables(), "reading scores", source.parts), BATCH_ROWS):
        tally.add(table)
        if comparison is not None:
            comparison.add(table)
    check_complete(source, tally.rows)
    judged = _against_truth(comparison, settings) if comparison is not None else None
    shown = {name: _rows(tally, name) for name in GALLERIES}
    objects = {wanted(row) for rows in shown.values() for row in rows}
    found = read_images(objects, source.preprocessing, source.find)
    told = _sections(source, tally, shown, found, settings)
    if source.diff is not None or source.drift is not None:
        told.insert(3, ("changes", "What changed", _changes(source)))
    if judged is not None:
        told.insert(3, ("truth", "Purity and completeness", judged[1]))
    data = page.page(source.title, _intro(source, tally), told).encode()
    storage.write(target, data)
    figures = judged[0].figures if judged is not None else {}
    return _summary(settings, source, tally, found, figures, target, len(data), time.monotonic() - started)


def _rows(tally: Tally, name: str) -> list[Row]:
    chosen = tally.galleries[name].rows
    return [] if chosen is None else list(chosen.to_pylist())


def _intro(source: Source, tally: Tally) -> Sequence[Html]:
    told = page.NOTHING
    if source.unfinished is not None:
        rows = source.unfinished.rows
        told = page.label(
            f"Unfinished: {rows['left']:,} of {rows['planned']:,} rows are not scored yet. This page shows what is "
            "there; the same classify command goes on with the rest."
        )
    networks = sorted({str(run.checkpoint.get("name", "")) for run in source.runs})
    about = " · ".join([source.url, *networks, f"report of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"])
    return [page.paragraph(about, "about"), told, sections.headline(source, tally)]


def _sections(
    source: Source,
    tally: Tally,
    shown: Mapping[str, Sequence[Row]],
    found: Mapping[Wanted, Image | str],
    settings: Report,
) -> list[tuple[str, str, Html]]:
    stretch = str(source.preprocessing.get("stretch", ""))
    histogram = charts.scores(tally.histogram, settings.threshold)
    galleries = [gallery(name, rows, found, stretch) for name, rows in shown.items()]
    return [
        ("counts", "Counts", sections.counts(source, tally)),
        ("sky", "Sky", sections.sky(charts.sky_maps(tally.sky), charts.sky_facts(tally.sky))),
        ("scores", "Scores", sections.scores(tally, histogram, settings.prevalence)),
        ("objects", "Objects", page.join([page.notes(ABOUT_IMAGES), *galleries])),
        ("flags", "Flags", sections.flags(tally)),
        ("quarantine", "Quarantine", sections.quarantine(source)),
        ("throughput", "Throughput and cost", sections.throughput(source, settings.usd_per_hour)),
        ("provenance", "Provenance", sections.provenance(source)),
    ]


def _changes(source: Source) -> Html:
    diff = (source.diff or {}).get("objects", {})
    edges, counts = diff.get("shift_edges", []), diff.get("shifts", [])
    drawn = charts.shifts(edges, counts) if counts and len(edges) == len(counts) + 1 else None
    return sections.changes(source.diff, source.drift, drawn)


def _against_truth(comparison: Comparison, settings: Report) -> tuple[Summary, Html]:
    compared = comparison.compare()
    wanted = Evaluate(
        catalog=settings.source, truth=settings.truth, threshold=settings.threshold, prevalence=settings.prevalence
    )
    subject = subject_of(compared, settings.radius_arcsec)
    judged = judgement(wanted, subject)
    tables = compared.tables(settings.threshold)
    drawn = [charts.purity_completeness(compared.rows, settings.prevalence, settings.threshold)]
    drawn += [charts.completeness({by: bins}, settings.threshold) for by, bins in tables.items()]
    return judged, sections.truth(judged, subject.text, [picture for picture in drawn if picture], tables)


def _summary(
    settings: Report,
    source: Source,
    tally: Tally,
    found: Mapping[Wanted, Image | str],
    judged: Mapping[str, Any],
    target: str,
    page_bytes: int,
    seconds: float,
) -> Summary:
    gone = sum(isinstance(image, str) for image in found.values())
    figures = {
        **judged,
        **{f"rows_{name}": count for name, count in source.rows.items() if name.isalpha()},
        "rows_selected": tally.selected,
        "finished": source.unfinished is None,
        "images_shown": len(found) - gone,
        "images_gone": gone,
        "page_bytes": page_bytes,
        "rows_per_s": round(tally.rows / max(seconds, 1e-9), 1),
    }
    text = [
        f"{source.title}: {tally.rows:,} rows, {tally.selected:,} with p_lsbg >= {settings.threshold:g}",
        *([] if source.unfinished is None else ["unfinished: the page shows what is there"]),
        *([f"{gone} of {len(found)} objects are shown without an image; the page says why"] if gone else []),
        f"{target}: {page_bytes / 1e6:.2f} MB ({seconds:.1f} s)",
    ]
    return Summary(verb="report", output=target, figures=figures, text=tuple(text))
