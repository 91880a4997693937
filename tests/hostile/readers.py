"""Every kind of file that is read from outside: a good one, how it comes to lie in a folder, what reads it there."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from astropy.table import Table

from deepshadows import storage
from deepshadows.catalog.collection import Pointer, claim_version, read_pointer, swap
from deepshadows.model import checkpoint, shipped, uncertainty
from deepshadows.model.card import Card, read_card
from deepshadows.model.training_state import Epoch, State, read_state, write_state
from deepshadows.model.uncertainty import Uncertainty
from deepshadows.run import plan as run_plan
from deepshadows.run.journal import Journal, known_receipts
from deepshadows.run.manifest import Manifest, read_manifest
from deepshadows.run.record import RunRecord, read_record
from deepshadows.run.scores import LISTING_SCHEMA, Receipt, commit, read_receipts
from deepshadows.run.units import Unit, make_unit
from deepshadows.settings import Columns, Recipe, parse_toml
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.detections import Detections, read_detections
from deepshadows.sky.shards import Cutouts, read_cutouts, write_shard
from deepshadows.sky.stretch import DES
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import Tile, read_tile
from deepshadows.verbs.training_plan import Plan, claim
from tests.catalog.finished_runs import mixed_tables, write_run
from tests.sky.test_shards import cutouts_of
from tests.sky.tile_files import write_tile

WEIGHTS = "deepshadows-v2"
PLAN = Plan(recipe=Recipe().model_dump(), fingerprint="f", from_weights_sha256=None)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """`good` makes the content of a good file in an empty folder; `read` gives something of `kind` for it."""

    file: str
    good: Callable[[Path], bytes]
    read: Callable[[Path], Any]
    kind: type | tuple[type, ...]
    put: Callable[[Path, bytes], None] | None = None

    def lay(self, folder: Path, data: bytes) -> None:
        """Put a file of this kind, good or not, where `read` looks for it."""
        if self.put is not None:
            self.put(folder, data)
            return
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _tile(suffix: str) -> Callable[[Path], bytes]:
    def good(folder: Path) -> bytes:
        mask = np.zeros((40, 50), np.int32)
        write_tile(folder, shape=(40, 50), bands="g", suffix=suffix, weight=mask + 1.0, mask=mask)
        (path,) = folder.iterdir()
        return path.read_bytes()

    return good


def _read_tiles(folder: Path) -> tuple[Tile, ...]:
    """All tiles that the index has; none where it names the file a problem."""
    return tuple(read_tile(tile, sorted(tile.bands)) for tile in scan_tiles(str(folder), 30.0).tiles)


def _shard(folder: Path) -> bytes:
    write_shard(str(folder / "a.parquet"), cutouts_of(20))
    return (folder / "a.parquet").read_bytes()


def _npz(folder: Path) -> bytes:
    np.savez(folder / "a.npz", image=cutouts_of(20).images, fov_arcsec=33.5, object_id=np.arange(20))
    return (folder / "a.npz").read_bytes()


def _parquet(**columns: list[Any]) -> Callable[[Path], bytes]:
    def good(folder: Path) -> bytes:
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink)
        return sink.getvalue()

    return good


def _fits_table(name: str) -> Callable[[Path], bytes]:
    def good(folder: Path) -> bytes:
        Table(POSITIONS).write(folder / name)
        return (folder / name).read_bytes()

    return good


UNIT = "0" * 32


def _score_object(folder: Path) -> bytes:
    table = mixed_tables()[0]
    unit = Unit(unit=UNIT, kind="shard", url="a", etag="", size_bytes=0, rows=table.num_rows)
    commit(str(folder), unit, table, "fingerprint", "engine")
    (score,) = storage.list_objects(str(folder / "scores"))
    return storage.read(score.url)


def _manifest(folder: Path) -> bytes:
    write_run(str(folder), mixed_tables())
    return (folder / "manifest.json").read_bytes()


LISTED = pa.table([[UNIT], [1], ["e"], [0.0]], schema=LISTING_SCHEMA)
PLANNED = RunRecord(
    run="r", fingerprint="f", inventory="i", plan_parts=1, settings={"a": 1}, checkpoint={}, preprocessing={},
    id_type="int64", units_planned=2, rows_planned=2, versions={"ray": "2"},
)  # fmt: skip


def _record(folder: Path) -> bytes:
    return PLANNED.model_dump_json().encode()


def _plan(folder: Path) -> bytes:
    units = (make_unit(kind="shard", url=url, etag="", size_bytes=1, rows=1) for url in "ab")
    run_plan.Draft(units).write(str(folder), "r")
    return (folder / "units" / "r-00000.parquet").read_bytes()


def _journal(folder: Path) -> bytes:
    with Journal(str(folder), "fingerprint", "driver") as journal:
        journal.add(Receipt(unit=UNIT, rows=1, scored=1, size_bytes=1, etag="e"))
    return (folder / "journal" / "driver-00000.parquet").read_bytes()


def _shipped(name: str) -> Callable[[Path], bytes]:
    return lambda folder: (Path(shipped.folder(WEIGHTS)) / name).read_bytes()


def _put_part_of_checkpoint(name: str, key: str | None) -> Callable[[Path, bytes], None]:
    """The shipped network with one file replaced; an attacker states the hash of what he wrote."""

    def put(folder: Path, data: bytes) -> None:
        for path in Path(shipped.folder(WEIGHTS)).iterdir():
            if path.name != name and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
        (folder / name).write_bytes(data)
        if key is not None:
            card = json.loads((Path(shipped.folder(WEIGHTS)) / "card.json").read_text())
            (folder / "card.json").unlink()
            (folder / "card.json").write_text(json.dumps({**card, key: hashlib.sha256(data).hexdigest()}))

    return put


def _read_uncertainty(folder: Path) -> Uncertainty | None:
    return uncertainty.read(str(folder), read_card(str(folder)))


def _pointer(folder: Path) -> bytes:
    version = claim_version(str(folder / "cat"))
    swap(version)
    return (folder / "cat" / "collection.properties").read_bytes()


def _state() -> State:
    log = (Epoch(epoch=1, loss=1.0, accuracy=0.5, validation_loss=1.0, validation_accuracy=0.5, validation_auc=None,
                 learning_rate=0.1, images_per_s=1.0),)  # fmt: skip
    return State(all_tensors={"a": torch.zeros(2)}, log=log, kept_epoch=1, kept_loss=1.0)


def _training_state(folder: Path) -> bytes:
    write_state(folder, _state())
    return (folder / "state.json").read_bytes()


def _put_training_state(folder: Path, data: bytes) -> None:
    write_state(folder, _state())
    (folder / "state.json").write_bytes(data)


def _settings(folder: Path) -> bytes:
    return b'name = "x"\nlearning-rate = 1e-3\nepochs = 3\naugment = true\nstretch = "des-1"\n'


def _read_settings(folder: Path) -> Recipe:
    return Recipe.resolve(parse_toml((folder / "a.toml").read_bytes().decode("utf-8", "replace"), "a.toml"), "a.toml")


def _read_detections(name: str) -> Callable[[Path], Detections]:
    return lambda folder: read_detections(str(folder / name), Columns())


POSITIONS = {"object_id": [1, 2, 3], "ra": [1.0, 2.0, 3.0], "dec": [1.0, 2.0, 3.0]}
CSV = b"object_id,ra,dec\n1,2.0,3.0\n2,3.0,4.0\n"


def _readers() -> Iterator[tuple[str, Reader]]:
    for name, suffix in (("fits", ".fits"), ("fpack", ".fits.fz")):
        yield name, Reader(file=f"T1_g{suffix}", good=_tile(suffix), read=_read_tiles, kind=tuple)
    for name, good in (("shard.parquet", _shard), ("cutouts.npz", _npz)):
        read = lambda folder, name=name: read_cutouts(str(folder / name), Geometry(stretch=DES))  # noqa: E731
        yield name.rpartition(".")[0], Reader(file=name, good=good, read=read, kind=Cutouts)
    for name, table in (
        ("d.parquet", _parquet(**POSITIONS)),
        ("d.csv", lambda folder: CSV),
        ("d.fits", _fits_table("d.fits")),
        ("d.fits.gz", _fits_table("d.fits.gz")),
    ):
        yield f"detections-{name[2:]}", Reader(file=name, good=table, read=_read_detections(name), kind=Detections)
    for name, key, look, kind in (
        ("model.safetensors", "weights_sha256", lambda folder: checkpoint.load(str(folder)), tuple),
        ("uncertainty.safetensors", "uncertainty_sha256", _read_uncertainty, Uncertainty),
        ("card.json", None, lambda folder: read_card(str(folder)), Card),
    ):
        put = _put_part_of_checkpoint(name, key)
        yield name.rpartition(".")[0], Reader(file=name, good=_shipped(name), read=look, kind=kind, put=put)
    yield "manifest", Reader(file="manifest.json", good=_manifest, read=lambda f: read_manifest(str(f)), kind=Manifest)
    yield "record", Reader(file="run.json", good=_record, read=lambda f: read_record(str(f)), kind=RunRecord)
    plan = lambda f: list(run_plan.Plan(str(f), PLANNED))  # noqa: E731
    yield "plan", Reader(file="units/r-00000.parquet", good=_plan, read=plan, kind=list)
    receipts = lambda f: list(read_receipts(str(f), [UNIT], "fingerprint"))  # noqa: E731
    yield "scores", Reader(file=f"scores/00/{UNIT}.parquet", good=_score_object, read=receipts, kind=list)
    journal = lambda f: known_receipts(str(f), "fingerprint", LISTED)  # noqa: E731
    yield "journal", Reader(file="journal/driver-00000.parquet", good=_journal, read=journal, kind=pa.Table)
    pointer = lambda f: read_pointer(str(f))  # noqa: E731
    yield "pointer", Reader(file="collection.properties", good=_pointer, read=pointer, kind=Pointer)
    yield (
        "training-state",
        Reader(file="state.json", good=_training_state, read=read_state, kind=State, put=_put_training_state),
    )
    yield (
        "training-plan",
        Reader(file="training/plan.json", good=lambda f: PLAN.to_json(), read=lambda f: claim(str(f), PLAN), kind=str),
    )
    yield "settings", Reader(file="a.toml", good=_settings, read=_read_settings, kind=Recipe)


READERS = dict(_readers())
