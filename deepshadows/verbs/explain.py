"""`explain`: pictures of what the network looked at on chosen objects. Runs in this process."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows import schema, storage
from deepshadows.model import checkpoint, shipped
from deepshadows.model.explanation import heat_maps
from deepshadows.model.scorer import Scorer, load_scorer
from deepshadows.outcomes import InputError, Summary
from deepshadows.settings import Explain
from deepshadows.sky.shards import Cutouts, read_cutouts
from deepshadows.verbs.classify_plan import card_geometry
from deepshadows.verbs.explanation_pictures import Explained, panel, sheet

TABLE_NAME = "explain.parquet"
SHEET_NAME = "overview.png"
SHEET_ROWS = 60
"""Most objects on the sheet; each has a panel of its own all the same."""
NAMED = 10
"""Most identifiers in an error."""


def run(settings: Explain) -> Summary:
    """Draw what speaks for the decision on each chosen object.

    Raises
    ------
    InputError
        An identifier is not in the input, or its object has no image to score.
    """
    started = time.monotonic()
    source, output = shipped.normalise(settings.checkpoint), storage.normalise(settings.output)
    scorer = load_scorer(source, precision=settings.precision, threads=len(os.sched_getaffinity(0)))
    cutouts = read_cutouts(storage.normalise(settings.cutouts), card_geometry(scorer.card))
    chosen = _named(settings, cutouts) if settings.ids else _highest(settings, cutouts, scorer)
    p_lsbg = scorer.score(chosen.images).p_lsbg
    is_lsbg = p_lsbg >= scorer.card.threshold
    heat = heat_maps(checkpoint.load(source)[0], chosen.images, settings.method, is_lsbg.astype(np.int64))
    seen = _explained(chosen, heat, p_lsbg, is_lsbg)
    files = [file_name(number, one.object_id) for number, one in enumerate(seen, 1)]
    for name, one in zip(files, seen, strict=True):
        storage.write(storage.join(output, name), panel(one, chosen.fov_arcsec))
    title = f"What {scorer.card.name} looked at ({settings.method})"
    storage.write(storage.join(output, SHEET_NAME), sheet(seen[:SHEET_ROWS], title))
    _write_table(storage.join(output, TABLE_NAME), chosen, seen, files)
    return Summary(
        verb="explain",
        output=output,
        figures={"rows": len(seen), "weights_sha256": scorer.card.weights_sha256},
        text=(
            f"{len(seen)} objects explained, {np.count_nonzero(is_lsbg)} of them decided to be LSBGs",
            f"{storage.join(output, SHEET_NAME)}: "
            + ("all of them" if len(seen) <= SHEET_ROWS else f"the first {SHEET_ROWS}"),
            f"{output}: one picture each, listed in {TABLE_NAME} ({time.monotonic() - started:.0f} s)",
        ),
    )


def _named(settings: Explain, cutouts: Cutouts) -> Cutouts:
    """The rows of `--ids`, in that order; of an identifier that comes twice, the first."""
    row_of: dict[str, int] = {}
    for row, name in enumerate(cutouts.object_id.to_pylist()):
        row_of.setdefault(str(name), row)
    wanted = [name for text in settings.ids for name in ([text] if text in row_of else text.split(","))]
    names = list(dict.fromkeys(name.strip() for name in wanted if name.strip()))
    if absent := [name for name in names if name not in row_of]:
        raise InputError(
            f"{settings.cutouts}: {len(absent)} of {len(names)} ids are not there: {_listed(absent)}; check --ids and "
            "--cutouts"
        )
    if not names:
        raise InputError("--ids names no object; leave it out to explain those of highest p_lsbg")
    rows = np.array([row_of[name] for name in names])
    if (flags := cutouts.flags[rows] & schema.FATAL_BITS).any():
        bad = [
            f"{name} ({', '.join(schema.Flag.names(flag))})" for name, flag in zip(names, flags, strict=True) if flag
        ]
        raise InputError(f"{settings.cutouts}: no image that could be scored: {_listed(bad)}; leave these ids out")
    return cutouts.take(rows)


def _highest(settings: Explain, cutouts: Cutouts, scorer: Scorer) -> Cutouts:
    """Those of highest p_lsbg, highest first."""
    rows = np.flatnonzero(~schema.is_fatal(cutouts.flags))
    if not len(rows):
        raise InputError(f"{settings.cutouts}: no row has an image that could be scored")
    p_lsbg = scorer.score(cutouts.images[rows]).p_lsbg
    return cutouts.take(rows[np.argsort(-p_lsbg, kind="stable")[: settings.top]])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _explained(
    chosen: Cutouts, heat: NDArray[np.float32], p_lsbg: NDArray[np.float32], is_lsbg: NDArray[np.bool_]
) -> list[Explained]:
    labels = [-1] * len(chosen) if chosen.label is None else chosen.label.tolist()
    return [
        Explained(
            object_id=str(name),
            image=chosen.images[row],
            heat=heat[row],
            p_lsbg=float(p_lsbg[row]),
            is_lsbg=bool(is_lsbg[row]),
            label=label if label in (0, 1) else None,
        )
        for row, (name, label) in enumerate(zip(chosen.object_id.to_pylist(), labels, strict=True))
    ]


def file_name(number: int, object_id: str) -> str:
    """A name that says which object it is and cannot leave its folder, whatever the identifier holds.

    Letters, digits, `-`, `_` and `.` stay, runs of all else become one `_`; the number keeps names apart.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", object_id)[:80]
    return f"{number:04d}_{safe}.png"


def _write_table(url: str, chosen: Cutouts, seen: Sequence[Explained], files: Sequence[str]) -> None:
    fields = [
        schema.id_field(chosen.object_id.type),
        pa.field("p_lsbg", pa.float32()),
        pa.field("decision", pa.string()),
        schema.LABEL,
        pa.field("file", pa.string()),
    ]
    columns = [
        chosen.object_id,
        pa.array([one.p_lsbg for one in seen], pa.float32()),
        pa.array([one.decision for one in seen]),
        pa.array([one.label for one in seen], pa.int8()),
        pa.array(files),
    ]
    storage.write_table(url, pa.table(columns, schema=pa.schema(fields)))
