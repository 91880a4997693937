"""Small finished runs for the tests: score objects and manifest as `classify` writes them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepshadows import storage
from deepshadows.catalog.collection import read_pointer
from deepshadows.run.manifest import Manifest, ScoreObject, manifest_url, write_score_parts
from deepshadows.run.scores import score_table, score_url
from deepshadows.schema import Flag, is_fatal

CHECKPOINT = {"name": "tiny", "weights_sha256": "ab" * 32}


def rows(
    ids: Sequence[int] | Sequence[str],
    ra: Sequence[float] | np.ndarray,
    dec: Sequence[float] | np.ndarray,
    flags: Sequence[int] | np.ndarray | None = None,
    *,
    unit: str = "0" * 16,
    run: str = "run",
) -> pa.Table:
    """Scores that follow from the identifiers, so that a test can tell rows apart."""
    count = len(ids)
    number = np.array([hash(str(value)) % 1000 for value in ids], dtype=np.float32)
    logit = (number / 100 - 5).astype(np.float32)
    p_lsbg = (1 / (1 + np.exp(-logit))).astype(np.float32)
    flag_bits = np.zeros(count, np.int32) if flags is None else np.asarray(flags, dtype=np.int32)
    id_type = pa.string() if count and isinstance(ids[0], str) else pa.int64()
    positions = (np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64))
    unknown = np.full(count, np.nan, np.float32)
    return score_table(
        pa.array(ids, id_type), *positions, logit, p_lsbg, flag_bits, unit=unit, run=run, p_lsbg_err=unknown
    )


def write_run(
    url: str, tables: Sequence[pa.Table], *, name: str = "run", units: Sequence[str] = (), **changes: Any
) -> str:
    """Write a finished run of one unit a table; `changes` replace fields of its manifest. Returns `url`."""
    fingerprint = f"{name:f<64}"
    scores = []
    for number, table in enumerate(tables):
        unit = units[number] if units else f"{number:016x}"
        table = table.set_column(7, table.schema.field("unit"), pa.array([unit] * table.num_rows, pa.string()))
        table = table.set_column(8, table.schema.field("run"), pa.array([name] * table.num_rows, pa.string()))
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({b"deepshadows.fingerprint": fingerprint.encode()}), sink)
        address = score_url(url, unit)
        storage.write(address, sink.getvalue())
        stored = storage.stat(address)
        scores.append(
            ScoreObject(
                url=storage.relative(address, url),
                size_bytes=stored.size_bytes,
                etag=stored.etag,
                rows=table.num_rows,
            )
        )
    count = sum(table.num_rows for table in tables)
    unscored = sum(int(is_fatal(table["flags"].to_numpy()).sum()) for table in tables)
    manifest = {
        "run": name,
        "fingerprint": fingerprint,
        "driver": "test",
        "settings": {"input": 'a "quoted" \\ path = é: #1', "unit_rows": 20_000},
        "checkpoint": CHECKPOINT,
        "preprocessing": {"stretch": "1", "fov_arcsec": 33.5},
        "engine": "test engine",
        "versions": {"deepshadows": "0"},
        "id_type": "int64" if not tables else str(tables[0].schema.field("object_id").type),
        "units_planned": len(tables),
        "units_done": len(tables),
        "units_quarantined": 0,
        "rows_planned": count,
        "rows_scored": count - unscored,
        "rows_unscored": unscored,
        "rows_quarantined": 0,
        "flag_counts": {},
        "seconds": 1.0,
        "score_parts": write_score_parts(url, "test", scores),
        **changes,
    }
    storage.write(manifest_url(url), Manifest.model_validate(manifest).model_dump_json().encode())
    return url


def current_version(catalog: str) -> str:
    """Name of the version that readers see, such as `v0003`."""
    pointer = read_pointer(catalog)
    assert pointer is not None
    return pointer.version


def sky(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Positions spread evenly over the sphere, degrees."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))


def mixed_tables(seed: int = 1) -> list[pa.Table]:
    """Three units, 3000 rows: some unscored, some without a place on the sky."""
    tables = []
    for unit in range(3):
        ra, dec = sky(1000, seed * 10 + unit)
        flags = np.zeros(1000, np.int32)
        flags[10:20] = Flag.NO_IMAGE.bit
        flags[20:23] = Flag.BAD_POSITION.bit
        dec[20:22] = 99.0
        ra[22] = np.nan
        flags[30:34] = Flag.NO_POSITION.bit
        ra[30:34] = dec[30:34] = np.nan
        tables.append(
            rows(list(range(seed * 100_000 + unit * 1000, seed * 100_000 + unit * 1000 + 1000)), ra, dec, flags)
        )
    return tables
