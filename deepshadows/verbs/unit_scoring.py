"""One work unit from pixels to its committed score object, inside a scorer actor; of Ray it imports the metrics alone.

A reader thread keeps a few parts ahead while the network works: pixels never cross the object store.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.catalog.statistics import unit_statistics
from deepshadows.model.card import Card
from deepshadows.model.scorer import Scorer, Scores, load_scorer
from deepshadows.outcomes import InputError, NotFoundError, StorageError
from deepshadows.run.patience import RETRY_WAIT_S, patiently
from deepshadows.run.scores import STATISTICS_KEY, Receipt, commit, first_occurrences, quarantine, score_table
from deepshadows.run.units import Unit, UnitKind
from deepshadows.schema import IMAGE_SHAPE, Flag, is_fatal
from deepshadows.settings import Classify
from deepshadows.sky.cutouts import Geometry, bring_to_field, cut_parts
from deepshadows.sky.row_groups import row_groups, streamed_row_groups
from deepshadows.sky.shards import Cutouts, check_row_groups, cutouts_from_table, open_shard
from deepshadows.sky.tiles import BandSource, TileFiles, open_tile
from deepshadows.verbs import metrics
from deepshadows.verbs.classify_plan import card_geometry
from deepshadows.verbs.plan_detections import detections_of

QUEUED_PARTS = 3
"""Parts of about 1000 images (12 MB) that wait between reader and network: what bounds an actor's memory."""
CUT_ROWS = 1024
UNFORESEEN = (ValueError, TypeError, KeyError, IndexError, ArithmeticError, AttributeError)


class UnitScorer:
    """Scores and commits units; one an actor, constructed where it runs, called from two threads."""

    def __init__(
        self, settings: Classify, run: str, run_id: str, fingerprint: str, threads: int, device: Literal["cpu", "cuda"]
    ) -> None:
        self._settings = settings
        self._run, self._run_id, self._fingerprint = run, run_id, fingerprint
        metrics.count_for(run_id)
        self._scorer = load_scorer(
            settings.checkpoint,
            precision=settings.precision,
            batch_size=settings.batch_size,
            threads=threads,
            device=device,
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Score one unit of the plan; one that cannot be read after retries is quarantined with its reason.

        A store that does not answer, or refuses to take the scores, comes back as `failure` and stops the run: Ray
        would lose the type of an exception.
        """
        unit = Unit(**row)
        for attempt in range(self._settings.retries + 1):
            if attempt:
                metrics.RETRIES.inc()
                time.sleep(RETRY_WAIT_S * 2**attempt)
            try:
                table = patiently(unit.url, partial(score_unit, unit, self._scorer, self._settings, self._run_id))
            except (InputError, NotFoundError) as error:
                reason = str(error)
            except StorageError as error:  # the store, not the unit: no reason to give the unit up
                return self._report(unit, None, str(error))
            except UNFORESEEN as error:  # what damaged headers and tables make libraries raise
                reason = f"{unit.name}: {type(error).__name__}: {error}"
            else:
                return self._report(
                    unit, partial(commit, self._run, unit, table, self._fingerprint, self._scorer.engine)
                )
        return self._report(unit, partial(quarantine, self._run, unit, reason))

    def _report(self, unit: Unit, write: Callable[[], Receipt] | None, failure: str = "") -> dict[str, Any]:
        receipt = Receipt(unit=unit.unit, rows=0, scored=0)
        if write is not None:
            try:
                receipt = patiently(self._run, write)
            except StorageError as error:
                failure = str(error)
        metrics.unit_ended(unit, "failed" if failure else "quarantined" if receipt.quarantined else "done")
        return {**asdict(receipt), "failure": failure}


def score_unit(unit: Unit, scorer: Scorer, settings: Classify, run_id: str) -> pa.Table:
    """The score table of one unit.

    Raises
    ------
    InputError, StorageError
        The unit cannot be read.
    """
    parts: list[Cutouts] = []
    scored: list[Scores] = []
    for part in metrics.waited(_ahead(_parts_of(unit, scorer.card, settings))):
        usable = ~is_fatal(part.flags)
        images = part.images if usable.all() else part.images[usable]
        with metrics.scoring(images):
            scored.append(scorer.score(images).placed(usable, fill=0.0))
        parts.append(replace(part, images=np.empty((0, *IMAGE_SHAPE), np.uint8)))  # an empty view would keep all pixels
    object_id = pa.concat_arrays([part.object_id for part in parts])
    flags: NDArray[np.int32] = np.concatenate([part.flags for part in parts])
    scores = Scores.concatenate(scored)
    flags[scores.out_of_domain] |= Flag.OUT_OF_DOMAIN.bit
    flags[~first_occurrences(object_id)] |= Flag.DUPLICATE_ID.bit
    flags[~np.isfinite(scores.logits)] |= Flag.BAD_SCORE.bit
    table = score_table(
        object_id,
        np.concatenate([part.ra for part in parts]),
        np.concatenate([part.dec for part in parts]),
        scores.logits,
        scores.p_lsbg,
        flags,
        unit=unit.unit,
        run=run_id,
        p_lsbg_err=scores.p_lsbg_err,
    )
    statistics = unit_statistics(table, scores.summaries[~is_fatal(flags)])
    return table.replace_schema_metadata({STATISTICS_KEY: json.dumps(asdict(statistics))})


def _parts_of(unit: Unit, card: Card, settings: Classify) -> Iterator[Cutouts]:
    """Cut-outs of a unit, about a thousand at a time."""
    geometry = card_geometry(card)
    if unit.kind == UnitKind.UNREADABLE:
        raise InputError(unit.source)
    if unit.kind == UnitKind.SHARD:
        return _shard_parts(unit, geometry, settings)
    if unit.kind == UnitKind.TILE:
        return _tile_parts(unit, geometry, settings.cut_threads)
    return _unplaced_parts(unit, geometry)


def _shard_parts(unit: Unit, geometry: Geometry, settings: Classify) -> Iterator[Cutouts]:
    if storage.stat(unit.url).etag != unit.etag:
        raise InputError(f"{unit.url}: changed since the run was planned; give another --output")
    file = open_shard(unit.url)
    check_row_groups(file, unit.url, unit.first_row, unit.rows)
    try:
        far = storage.is_s3(unit.url)
        rows = file, unit.first_row, unit.rows
        for table in streamed_row_groups(unit.url, *rows, etag=unit.etag) if far else row_groups(*rows):
            part = cutouts_from_table(table, unit.url)
            if settings.fov_arcsec is None and part.fov_arcsec != geometry.fov_arcsec:
                images, flags = bring_to_field(part.images, np.full(len(part), part.fov_arcsec), geometry)
                part = replace(part, images=images, flags=part.flags | flags)
            yield part
    except storage.ARROW_ERRORS as error:
        raise storage.arrow_failure(unit.url, error) from error


def _tile_parts(unit: Unit, geometry: Geometry, threads: int = 1) -> Iterator[Cutouts]:
    source = json.loads(unit.source)
    bands = {band: BandSource(**{**at, "shape": tuple(at["shape"])}) for band, at in source["bands"].items()}
    if any(band not in bands for band in geometry.bands):
        if source["problems"]:
            raise InputError("; ".join(source["problems"]))
        yield from _unplaced_parts(unit, geometry, Flag.MISSING_BAND.bit)
        return
    detections = detections_of(unit)
    tile = open_tile(TileFiles(unit.tile, bands), geometry.bands)
    start = 0
    for stack in cut_parts(tile, detections.ra, detections.dec, geometry, rows=CUT_ROWS, threads=threads):
        rows = slice(start, start + len(stack.images))
        start = rows.stop
        yield Cutouts(
            object_id=detections.object_id[rows],
            ra=detections.ra[rows],
            dec=detections.dec[rows],
            images=stack.images,
            flags=stack.flags | detections.flags[rows],
            fov_arcsec=geometry.fov_arcsec,
            stretch=geometry.stretch.name,
        )


def _unplaced_parts(unit: Unit, geometry: Geometry, flag: int = 0) -> Iterator[Cutouts]:
    """Rows without pixels: they keep their place, with a fatal flag."""
    detections = detections_of(unit)
    yield Cutouts(
        object_id=detections.object_id,
        ra=detections.ra,
        dec=detections.dec,
        images=np.zeros((len(detections), geometry.size_pix, geometry.size_pix, len(geometry.bands)), np.uint8),
        flags=detections.flags | np.int32(flag),
        fov_arcsec=geometry.fov_arcsec,
        stretch=geometry.stretch.name,
    )


def _ahead(parts: Iterator[Cutouts]) -> Iterator[Cutouts]:
    """Run an iterator in a thread, at most `QUEUED_PARTS` ahead; its exception is raised here."""
    reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
    try:
        waiting = deque(reader.submit(next, parts, None) for _ in range(QUEUED_PARTS))
        while (part := waiting.popleft().result()) is not None:
            waiting.append(reader.submit(next, parts, None))
            yield part
    finally:  # who stops early waits for the read that is under way, and for no other
        reader.shutdown(cancel_futures=True)
