"""Finished runs with their shards and plan, as `classify` leaves them, without the time that Ray takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from deepshadows import storage
from deepshadows.run.manifest import (
    Manifest,
    QuarantinedUnit,
    ScoreObject,
    manifest_url,
    write_quarantine_parts,
    write_score_parts,
)
from deepshadows.run.plan import Draft
from deepshadows.run.record import RunRecord
from deepshadows.run.scores import commit, committed, quarantine, score_table, score_url
from deepshadows.run.units import Unit, shard_units
from deepshadows.schema import Flag, is_fatal
from deepshadows.sky.shards import Cutouts, split, write_shard
from tests.model.blobs import blob_cutouts

UNIT_ROWS = 50
FINGERPRINT = "f" * 64
ENGINE = "test engine"


def survey(count: int, *, strings: bool = False) -> Cutouts:
    """Cut-outs of every kind: smudges and stars, some unlike the training images, some without pixels."""
    cutouts = blob_cutouts(count)
    flags = cutouts.flags.copy()
    flags[::20] |= Flag.OUT_OF_DOMAIN.bit
    flags[5::50] |= Flag.NO_IMAGE.bit
    ids = [f"id-{row}" for row in range(count)] if strings else list(range(1000, 1000 + count))
    return replace(cutouts, flags=flags, object_id=pa.array(ids))


def probabilities(cutouts: Cutouts) -> np.ndarray:
    """High for most smudges, low for most stars, float32 (N,)."""
    rng = np.random.default_rng(3)
    assert cutouts.label is not None
    return rng.beta(np.where(cutouts.label == 1, 6, 1.2), np.where(cutouts.label == 1, 1.2, 6)).astype(np.float32)


def write_classified(
    root: str, cutouts: Cutouts, *, run: str = "run", lost: Sequence[int] = (), left: int = 0, finished: bool = True
) -> str:
    """Shards in ROOT/shards, the run in ROOT/RUN.

    Parameters
    ----------
    lost : sequence of int
        Units that could not be read.
    left : int
        Units at the end that no driver has come to.
    finished : bool
        Whether there is a manifest.

    Returns
    -------
    str
        Address of the run.
    """
    url = storage.join(root, run)
    p = probabilities(cutouts)
    units: list[Unit] = []
    parts: list[tuple[Unit, Cutouts, np.ndarray]] = []
    for number, part in enumerate(split(cutouts, UNIT_ROWS)):
        shard = storage.join(root, "shards", f"{number:03d}.parquet")
        write_shard(shard, part)
        (unit,) = shard_units(storage.stat(shard), len(part), UNIT_ROWS, [len(part)])
        units.append(unit)
        parts.append((unit, part, p[number * UNIT_ROWS :][: len(part)]))
    plan = Draft(units)
    plan.write(url, run)
    bad: list[QuarantinedUnit] = []
    scored = unscored = 0
    for number, (unit, part, own) in enumerate(parts[: len(parts) - left]):
        if number in lost:
            reason = f"{unit.url}: not a readable Parquet file: <truncated> & torn"
            quarantine(url, unit, reason)
            bad.append(QuarantinedUnit(unit=unit.unit, object=unit.name, rows=unit.rows, reason=reason))
            continue
        table = _scores(part, own, unit.unit, run)
        commit(url, unit, table, FINGERPRINT, ENGINE)
        unscored += (missing := table["p_lsbg"].null_count)
        scored += table.num_rows - missing
    told: dict[str, Any] = {
        "run": run,
        "fingerprint": FINGERPRINT,
        "settings": {"input": storage.join(root, "shards"), "precision": "exact"},
        "checkpoint": {"name": "tiny", "weights_sha256": "ab" * 32},
        "preprocessing": {"method": "1", "stretch": "des-1", "fov_arcsec": 33.5, "bands": ["z", "r", "g"]},
        "id_type": "string" if cutouts.object_id.type == pa.string() else "int64",
        "units_planned": len(units),
        "rows_planned": len(cutouts),
        "versions": {"deepshadows": "0", "torch": "2"},
    }
    record = RunRecord(**told, inventory="0" * 64, plan_parts=plan.parts)
    storage.write(storage.join(url, "run.json"), record.model_dump_json().encode())
    if finished:
        stored = {row["unit"]: row for row in committed(url).to_pylist()}
        scores = [
            ScoreObject(
                url=storage.relative(score_url(url, unit.unit), url),
                size_bytes=stored[unit.unit]["size_bytes"],
                etag=stored[unit.unit]["etag"],
                rows=unit.rows,
            )
            for unit in sorted(units, key=lambda unit: unit.unit)
            if unit.unit in stored
        ]
        manifest = Manifest(
            **told,
            driver="test",
            engine=ENGINE,
            units_done=len(stored),
            units_quarantined=len(bad),
            rows_scored=scored,
            rows_unscored=unscored,
            rows_quarantined=sum(one.rows for one in bad),
            flag_counts={},
            seconds=12.5,
            score_parts=write_score_parts(url, "test", scores),
            quarantine_parts=write_quarantine_parts(url, "test", bad),
        )
        storage.write(manifest_url(url), manifest.model_dump_json().encode())
    return url


def _scores(part: Cutouts, p: np.ndarray, unit: str, run: str) -> pa.Table:
    logit = np.log(p / (1 - p)).astype(np.float32)
    errors = np.where(is_fatal(part.flags), np.nan, 0.3 * p * (1 - p)).astype(np.float32)
    return score_table(part.object_id, part.ra, part.dec, logit, p, part.flags, unit=unit, run=run, p_lsbg_err=errors)


def truth_of(cutouts: Cutouts) -> pa.Table:
    """What `simulate` would say of them: every smudge an LSBG, and one more that nobody detected."""
    assert cutouts.label is not None
    rng = np.random.default_rng(5)
    mu = np.where(cutouts.label == 1, rng.uniform(24.3, 27, len(cutouts)), np.nan)
    size = np.where(cutouts.label == 1, rng.uniform(2.5, 12, len(cutouts)), np.nan)
    mag = mu - 2.5 * np.log10(2 * np.pi * size**2)
    return pa.table(
        {
            "ra": np.append(cutouts.ra, 51.0),
            "dec": np.append(cutouts.dec, -30.0),
            "label": pa.array(np.append(cutouts.label, 1).astype(np.int8)),
            "mu_eff_g": pa.array(np.append(mu, 26.8).astype(np.float32), from_pandas=True),
            "r_eff_arcsec": pa.array(np.append(size, 4.0).astype(np.float32), from_pandas=True),
            "mag_g": pa.array(np.append(mag, 21.8).astype(np.float32), from_pandas=True),
        }
    )
