"""Damaged and malicious files: what comes out of every reader is data or one of our own errors, never anything else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.cli import VERBS
from deepshadows.model import checkpoint, shipped, uncertainty
from deepshadows.model.card import read_card
from deepshadows.model.uncertainty import Uncertainty
from deepshadows.outcomes import Failure, UsageError
from deepshadows.run.lease import Lease
from deepshadows.run.manifest import Manifest, read_manifest
from deepshadows.run.record import read_record
from deepshadows.run.scores import commit, read_receipts
from deepshadows.run.units import Unit, planned_rows
from deepshadows.settings import Columns, parse_toml
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.detections import Detections, read_detections
from deepshadows.sky.shards import Cutouts, open_shard, read_cutouts, write_shard
from deepshadows.sky.stretch import DES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import Tile, read_tile
from tests.catalog.finished_runs import mixed_tables, write_run
from tests.hostile.damage import Change, card_changes, changes, damaged
from tests.sky.test_shards import cutouts_of
from tests.sky.tile_files import write_tile

EXAMPLES = int(os.environ.get("DEEPSHADOWS_FUZZ_EXAMPLES", "40"))
"""Of each test; more for a longer search: DEEPSHADOWS_FUZZ_EXAMPLES=5000 pytest -n 0 tests/hostile"""
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def outcome(read: Callable[[], Any]) -> Any:
    """What a reader returns, or its error where that is one of ours; any other fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except Failure as error:
        assert str(error)
        return error


def check(read: Callable[[], Any], kind: type | tuple[type, ...], *, whole: bool) -> None:
    """A damaged file gives data of its kind or our own error, a whole one the data."""
    found = outcome(read)
    assert isinstance(found, kind) or (isinstance(found, Failure) and not whole), found


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    for suffix in (".fits", ".fits.fz"):
        mask = np.zeros((40, 50), np.int32)
        write_tile(folder / suffix, shape=(40, 50), bands="g", suffix=suffix, weight=mask + 1.0, mask=mask)
    cutouts = cutouts_of(20)
    write_shard(str(folder / "shard.parquet"), cutouts)
    np.savez(folder / "cutouts.npz", image=cutouts.images, fov_arcsec=33.5, object_id=np.arange(20))
    table = pa.table({"object_id": [1, 2, 3], "ra": [1.0, 2.0, 3.0], "dec": [1.0, 2.0, 3.0]})
    pq.write_table(table, folder / "detections.parquet")
    (folder / "detections.csv").write_text("object_id,ra,dec\n1,2.0,3.0\n2,3.0,4.0\n")
    tables = mixed_tables()
    write_run(str(folder / "run"), tables)
    unit = Unit(unit="u", kind="shard", url="a", etag="", size_bytes=0, rows=tables[0].num_rows)
    commit(str(folder / "committed"), unit, tables[0], "fingerprint", "engine")
    return folder


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz"])
@fuzz
@given(wanted=changes(card_changes, card_changes, card_changes))
@example(wanted=[])
def test_tiles(originals: Path, tmp_path: Path, suffix: str, wanted: list[Change]) -> None:
    (good,) = (originals / suffix).iterdir()
    (tmp_path / f"T1_g{suffix}").write_bytes(damaged(good.read_bytes(), wanted))
    tiles = scan_tiles(str(tmp_path), 30.0).tiles
    assert tiles or wanted
    for tile in tiles:
        check(lambda tile=tile: read_tile(tile, sorted(tile.bands)), Tile, whole=not wanted)  # type: ignore[misc]


@fuzz
@given(wanted=changes())
@example(wanted=[])
def test_shards(originals: Path, tmp_path: Path, wanted: list[Change]) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(damaged((originals / "shard.parquet").read_bytes(), wanted))
    check(lambda: open_shard(str(path)), pq.ParquetFile, whole=not wanted)
    check(lambda: read_cutouts(str(path), Geometry(stretch=DES)), Cutouts, whole=not wanted)


@fuzz
@given(wanted=changes())
@example(wanted=[])
def test_npz(originals: Path, tmp_path: Path, wanted: list[Change]) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(damaged((originals / "cutouts.npz").read_bytes(), wanted))
    check(lambda: read_cutouts(str(path), Geometry(stretch=DES)), Cutouts, whole=not wanted)


@pytest.mark.parametrize("name", ["detections.parquet", "detections.csv"])
@fuzz
@given(wanted=changes())
@example(wanted=[])
def test_detections(originals: Path, tmp_path: Path, name: str, wanted: list[Change]) -> None:
    (tmp_path / name).write_bytes(damaged((originals / name).read_bytes(), wanted))
    check(lambda: read_detections(str(tmp_path / name), Columns()), Detections, whole=not wanted)


@pytest.mark.parametrize("name", ["model.safetensors", "card.json", "uncertainty.safetensors"])
@settings(fuzz, max_examples=max(10, EXAMPLES // 4))
@given(wanted=changes())
@example(wanted=[])
def test_checkpoints(tmp_path: Path, name: str, wanted: list[Change]) -> None:
    source = Path(shipped.folder("deepshadows-v2"))
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = damaged((source / name).read_bytes(), wanted)
    (tmp_path / name).write_bytes(data)
    key = {"model.safetensors": "weights_sha256", "uncertainty.safetensors": "uncertainty_sha256"}.get(name)
    if key is not None:  # an attacker states the hash of what he wrote
        card = json.loads((tmp_path / "card.json").read_text())
        card[key] = hashlib.sha256(data).hexdigest()
        (tmp_path / "card.json").write_text(json.dumps(card))
    check(lambda: checkpoint.load(str(tmp_path)), tuple, whole=not wanted)
    read = partial(uncertainty.read, str(tmp_path))
    check(lambda: read(read_card(str(tmp_path))), (Uncertainty, type(None)), whole=not wanted)


@fuzz
@given(wanted=changes())
@example(wanted=[])
def test_manifests(originals: Path, tmp_path: Path, wanted: list[Change]) -> None:
    (tmp_path / "manifest.json").write_bytes(damaged((originals / "run" / "manifest.json").read_bytes(), wanted))
    check(lambda: read_manifest(str(tmp_path)), Manifest, whole=not wanted)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@fuzz
@given(value=JSON)
def test_records_and_leases_of_any_shape(tmp_path: Path, value: object) -> None:
    for name in ("run.json", "manifest.json", "lease.json", "card.json"):
        (tmp_path / name).write_text(json.dumps(value))
    readers: list[Callable[[str], Any]] = [read_record, read_manifest, read_card]
    assert all(isinstance(outcome(partial(read, str(tmp_path))), Failure) for read in readers), value
    lease = Lease(str(tmp_path), ttl_s=0.01)
    found = outcome(lambda: lease.__enter__().__exit__(None, None, None))
    assert isinstance(found, Failure) or json.loads((tmp_path / "lease.json").read_text())["token"] == lease.token


@fuzz
@given(wanted=changes())
@example(wanted=[])
def test_plans_and_score_objects(originals: Path, tmp_path: Path, wanted: list[Change]) -> None:
    (score,) = storage.list_objects(str(originals / "committed" / "scores"))
    sink = io.BytesIO()
    pq.write_table(pa.table({"unit": ["a", "b"], "rows": [1, 2]}), sink)
    (tmp_path / "units").mkdir(exist_ok=True)
    (tmp_path / "units" / "a-0.parquet").write_bytes(damaged(sink.getvalue(), wanted))
    check(lambda: planned_rows(str(tmp_path), "a"), dict, whole=not wanted)
    path = tmp_path / "s.parquet"
    path.write_bytes(damaged(storage.read(score.url), wanted))
    check(lambda: read_receipts({"u": storage.stat(str(path))}, "fingerprint"), list, whole=not wanted)


@fuzz
@given(
    verb=st.sampled_from(sorted(VERBS)),
    values=st.dictionaries(st.sampled_from(["input", "output", "run", "seed", "precision", "x", "unit_rows"]), JSON),
)
def test_settings_of_any_shape(verb: str, values: dict[str, object]) -> None:
    try:
        VERBS[verb].resolve(values, "test")
    except UsageError as error:
        assert "test" in str(error)


@fuzz
@given(text=st.text() | st.from_regex(r'[a-z]+ = ("[^"]*"|\[*\]*|\{*\}*|[0-9e.+-]*)\n?'))
def test_settings_files_of_any_text(text: str) -> None:
    check(lambda: parse_toml(text, "test"), dict, whole=False)
