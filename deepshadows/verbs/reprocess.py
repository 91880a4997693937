"""`reprocess`: bring a catalogue up to date with its input and its network, at the cost of what has changed.

The input is listed and compared with what was seen last: nothing new, nothing done, and Ray is not even imported. Else
`reprocess_update` scores what the current version lacks, and writes the next one.
"""

from __future__ import annotations

import time

from deepshadows import storage
from deepshadows.catalog import collection
from deepshadows.model import shipped
from deepshadows.model.card import read_card
from deepshadows.outcomes import ExitCode, Summary
from deepshadows.run.lease import Lease
from deepshadows.settings import Reprocess
from deepshadows.verbs.classify_plan import scoring_recipe
from deepshadows.verbs.reprocess_input import (
    Seen,
    classify_settings,
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
    seen = _seen_again(settings.catalog, look)
    if seen is not None and not seen.quarantined:
        return _unchanged(settings.catalog, seen.version, time.monotonic() - started)
    collection.check_store(settings.catalog)
    from deepshadows.verbs.reprocess_update import update  # Ray and torch take seconds to import

    with Lease(workplace(settings.catalog)) as lease:
        summary = update(settings, recipe, look, lease, started)
        remove_runs(settings.catalog)
    return summary


def _seen_again(catalog: str, look: str) -> Seen | None:
    """What was seen last, where that is what is there now and its version is still current."""
    seen, pointer = read_seen(catalog), collection.read_pointer(catalog)
    return seen if seen and pointer and (seen.look, seen.version) == (look, pointer.version) else None


def _unchanged(catalog: str, version: str, seconds: float) -> Summary:
    text = f"{catalog}: {version} is up to date: input, network and settings are those it was made of ({seconds:.1f} s)"
    figures = {"version": version, "changed": False, "units_scored_here": 0, "rows_scored_here": 0}
    return Summary(verb="reprocess", output=catalog, exit_code=ExitCode.DONE, figures=figures, text=(text,))
