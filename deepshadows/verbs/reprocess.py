"""`reprocess`: bring a catalogue up to date with its input and its network, at the cost of what has changed.

The input is listed and compared with what was seen last: nothing new, nothing done, and Ray is not even imported. Else
`reprocess_update` scores what the current version lacks, and writes the next one.
"""

from __future__ import annotations

import time

from deepshadows import storage
from deepshadows.catalog import collection, inventory
from deepshadows.catalog.version_folder import VersionFolder
from deepshadows.model import shipped
from deepshadows.model.card import read_card
from deepshadows.outcomes import ExitCode, Summary
from deepshadows.run.lease import Lease
from deepshadows.settings import Reprocess
from deepshadows.verbs.classify_plan import scoring_recipe
from deepshadows.verbs.reprocess_input import (
    LAST,
    Seen,
    classify_settings,
    drift_told,
    figures_of,
    look_at,
    read_seen,
    remove_runs,
    workplace,
)


def run(settings: Reprocess) -> Summary:
    """Look; where anything has changed, score it, write a version, compare it with the one before, publish it.

    Raises
    ------
    UsageError
        Input, checkpoint or catalogue are wrong; nothing was written.
    HeldError
        Another `reprocess` works on this catalogue, or another version became current meanwhile.
    """
    started = time.monotonic()
    paths = {
        name: storage.normalise(value)
        for name in ("input", "detections", "catalog")
        if (value := getattr(settings, name)) is not None
    }
    settings = settings.model_copy(update={**paths, "checkpoint": shipped.normalise(settings.checkpoint)})
    card = read_card(settings.checkpoint)
    recipe = scoring_recipe(classify_settings(settings, ""), card)
    look = look_at(settings, recipe)
    seen, pointer = read_seen(settings.catalog), collection.read_pointer(settings.catalog)
    if seen is not None and pointer is not None and seen.look == look:
        if pointer.version == seen.version and not seen.quarantined and seen.figures:
            return _unchanged(settings, seen, time.monotonic() - started)
        if seen.version in pointer.published and VersionFolder(settings.catalog, pointer.version).is_before(
            seen.version
        ):
            return _rolled_back(settings.catalog, pointer.version, seen)
    collection.check_store(settings.catalog)
    from deepshadows.verbs.reprocess_update import update  # Ray and torch take seconds to import

    with Lease(workplace(settings.catalog)) as lease:
        summary = update(settings, recipe, look, lease, started)
        remove_runs(settings.catalog, keep=LAST)
    return summary


def _unchanged(settings: Reprocess, seen: Seen, seconds: float) -> Summary:
    """Done; but a drift that nobody has looked into fails each time, or a job that is repeated would hide it."""
    catalog, version = settings.catalog, seen.version
    text = f"{catalog}: {version} is up to date: input, network and settings are those it was made of ({seconds:.1f} s)"
    alarm = drift_told(VersionFolder(catalog, version)) if settings.fail_on_drift else ()
    return _nothing_done(catalog, version, ExitCode.DRIFT if alarm else ExitCode.DONE, (text, *alarm), seen.figures)


def _rolled_back(catalog: str, current: str, seen: Seen) -> Summary:
    """What this input gives has been published and taken back by hand: that stands until something changes."""
    found = inventory.read(VersionFolder(catalog, current).url)
    text = (
        f"{catalog}: {current} is current by a rollback, and nothing has changed since {seen.version} was made; "
        "it stays so",
        f"to have {seen.version} again: deepshadows versions {catalog} --rollback {seen.version}",
    )
    return _nothing_done(catalog, current, ExitCode.DONE, text, figures_of(found) if found else seen.figures)


def _nothing_done(catalog: str, version: str, code: ExitCode, text: tuple[str, ...], counts: dict[str, int]) -> Summary:
    """`counts` are those of `figures_of`."""
    figures = {**counts, "version": version, "changed": False, "units_scored_here": 0, "rows_scored_here": 0}
    return Summary(verb="reprocess", output=catalog, exit_code=code, figures=figures, text=text)
