"""Files that promise more than any memory holds, carry code, or name places outside: refused, and nothing happens."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import re
import resource
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import deepshadows
from deepshadows.model import checkpoint, shipped
from deepshadows.outcomes import InputError
from deepshadows.settings import Classify, Columns
from deepshadows.sky import detections, shards
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.detections import detection_blocks
from deepshadows.sky.row_groups import streamed_row_groups
from deepshadows.sky.shards import cutouts_from_table, open_shard, read_cutouts, write_shard
from deepshadows.sky.stretch import DES
from deepshadows.sky.viewer import safe_name
from deepshadows.verbs import classify
from deepshadows.verbs.classify_plan import plan
from deepshadows.verbs.explain import file_name
from deepshadows.verbs.unit_scoring import UnitScorer
from tests.sky.test_shards import cutouts_of
from tests.sky.tile_files import write_tile
from tests.verbs.conftest import checkpoint as small_checkpoint  # noqa: F401 -- the fixture

MEMORY_BYTES = 4 << 30
"""Address space of a reader: its libraries take a good part of it."""
READ_TILES = """
import sys
from deepshadows.outcomes import InputError
from deepshadows.sky.tile_index import scan_tiles
from deepshadows.sky.tiles import read_tile
index = scan_tiles(sys.argv[1], 30.0)
print(*(reason for _, reason in index.problems))
for tile in index.tiles:
    try:
        read_tile(tile, sorted(tile.bands))
        print("was read")
    except InputError as error:
        print(error)
"""


def with_card(data: bytes, keyword: str, value: int) -> bytes:
    """The card of the last HDU that has it, changed."""
    at = data.rindex(f"{keyword:8}= ".encode())
    return data[:at] + f"{keyword:8}= {value:>20}".encode().ljust(80) + data[at + 80 :]


@pytest.mark.parametrize(
    ("suffix", "cards"),
    [
        (".fits", {"NAXIS1": 10**6, "NAXIS2": 10**6}),
        (".fits.fz", {"ZNAXIS1": 10**6, "ZNAXIS2": 10**6}),
        (".fits.fz", {"ZNAXIS2": 10**12}),
    ],
)
def test_tiles_that_declare_more_than_there_is(tmp_path: Path, suffix: str, cards: dict[str, int]) -> None:
    write_tile(tmp_path, shape=(40, 50), bands="g", suffix=suffix)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    for keyword, value in cards.items():
        data = with_card(data, keyword, value)
    path.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", READ_TILES, str(tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search("more than any tile has|cannot be read|damaged|not a FITS", done.stdout), done.stdout
    assert "MemoryError" not in done.stdout


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_NPZ_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", image=np.zeros((500, 64, 64, 3), np.uint8), fov_arcsec=33.5)
    assert (tmp_path / "a.npz").stat().st_size < 50_000
    with pytest.raises(InputError, match="split it"):
        read_cutouts(str(tmp_path / "a.npz"), Geometry(stretch=DES))


def test_an_array_that_declares_more_than_there_is(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000, 1, 3), }"
    text = header.ljust(117) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(100)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("image.npy", npy)
    with pytest.raises(InputError):
        read_cutouts(str(tmp_path / "a.npz"), Geometry(stretch=DES))


def test_a_row_group_that_unpacks_to_too_much(tmp_path: Path, small_checkpoint: str) -> None:  # noqa: F811
    """A few kilobytes that are 700,000 equal images: refused, and its rows are counted all the same."""
    rows = 700_000
    write_shard(str(tmp_path / "in" / "good.parquet"), cutouts_of(20, labelled=False))
    schema = open_shard(str(tmp_path / "in" / "good.parquet")).schema_arrow
    image = schema.field("image")
    pixels = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([bytes(12288)]))
    fields = [schema.field("object_id"), pa.field("image", pixels.type, metadata=image.metadata)]
    table = pa.table([pa.array(range(1000, 1000 + rows)), pixels], schema=pa.schema(fields))
    bomb = tmp_path / "in" / "bomb.parquet"
    pq.write_table(
        table, bomb, row_group_size=rows, use_dictionary=["image"], column_encoding={"object_id": "DELTA_BINARY_PACKED"}
    )
    assert bomb.stat().st_size < 100_000
    with pytest.raises(InputError, match="row group 0 unpacks"):
        read_cutouts(str(bomb), Geometry(stretch=DES))
    wanted = Classify(
        input=str(tmp_path / "in"),
        checkpoint=small_checkpoint,
        output=str(tmp_path / "run"),
        precision="exact",
        retries=0,
    )
    planned = plan(wanted, wanted.output)
    assert planned.record.rows_planned == rows + 20
    scorer = UnitScorer(wanted, wanted.output, "run", "fingerprint", 1, "cpu")
    receipts = [scorer(asdict(unit)) for unit in planned.units]
    assert {receipt["rows"]: receipt["quarantined"] for receipt in receipts} == {20: False, rows: True}
    assert any("row group 0 unpacks" in receipt["reason"] for receipt in receipts)


def test_identifiers_stored_once_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kilobytes that are 20,000 identifiers of a megabyte."""
    rows = 20_000
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * (1 << 20)]))
    bomb = tmp_path / "detections.parquet"
    places = {name: pa.array(np.full(rows, 10.0)) for name in ("ra", "dec")}
    pq.write_table(pa.table({"object_id": ids, **places}), bomb, store_schema=False, compression="zstd")
    assert bomb.stat().st_size < 200_000
    assert pq.read_schema(bomb).field("object_id").type == pa.string()
    with pytest.raises(InputError, match="object_id unpacks to 20000 MiB"):
        list(detection_blocks(str(bomb), Columns()))
    shard = str(tmp_path / "shard.parquet")
    write_shard(shard, cutouts_of(rows := 20, labelled=False))
    table = pq.read_table(shard)
    pq.write_table(table.set_column(0, "object_id", pa.array(["x" * (1 << 20)] * rows)), shard)
    monkeypatch.setattr(shards, "MAX_ID_BYTES", rows * (1 << 20) - 1)
    file = open_shard(shard)
    (streamed,) = streamed_row_groups(shard, file, 0, rows, "")
    for read in (file.read(), streamed):
        assert pa.types.is_dictionary(read["object_id"].type)
        with pytest.raises(InputError, match="object_id unpacks to 20 MiB"):
            cutouts_from_table(read, shard)


def test_identifiers_of_any_storage_are_the_same(tmp_path: Path) -> None:
    """Of each its own text, few texts of many rows, and whole numbers."""
    names = pa.array([f"field {number % 100:05d}" for number in range(3_000)])
    for ids in (pa.array([f"{number} é" for number in range(3_000)]), names, pa.array(range(3_000))):
        for stored_once in (True, False):
            table = pa.table({"object_id": ids, "ra": np.full(3_000, 10.0), "dec": np.zeros(3_000)})
            pq.write_table(table, tmp_path / "t.parquet", row_group_size=700, use_dictionary=stored_once)
            found = pa.concat_arrays(
                [part.object_id for part in detection_blocks(str(tmp_path / "t.parquet"), Columns())]
            )
            assert found.equals(ids)


def test_a_gzipped_table_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes whose content is counted, and none of it kept."""
    bomb = tmp_path / "d.fits.gz"
    with gzip.open(bomb, "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    assert bomb.stat().st_size < 100_000
    monkeypatch.setattr(detections, "MAX_UNZIPPED_BYTES", 32 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"d\.fits\.gz: unpacks to more than .* split it"):
            list(detection_blocks(str(bomb), Columns()))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


class Marker:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "it was run"
    pickle.loads(pickle.dumps(Marker(marker)))  # noqa: S301 -- it does what it says
    assert marker.exists()
    marker.unlink()
    payload = np.empty(1, object)
    payload[0] = Marker(marker)
    np.savez(tmp_path / "a.npz", image=payload, fov_arcsec=33.5)
    with pytest.raises(InputError):
        read_cutouts(str(tmp_path / "a.npz"), Geometry(stretch=DES))
    folder = tmp_path / "net"
    folder.mkdir()
    for path in Path(shipped.folder("deepshadows-v2")).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    torch.save(Marker(marker), folder / "model.safetensors")
    card = json.loads((folder / "card.json").read_text())
    card["weights_sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="not a safetensors file"):
        checkpoint.load(str(folder))
    assert not marker.exists()


def test_nothing_of_ours_reads_pickle() -> None:
    for path in Path(deepshadows.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert not re.search(
            r"\b(pickle|joblib|dill|cloudpickle)\b\.|(?<!safetensors\.)\btorch\.load\(|allow_pickle=True", text
        ), path


NAMES = st.one_of(
    st.text(min_size=1, max_size=300),
    st.sampled_from(
        ["..", ".", "../../etc/passwd", "/etc/passwd", "a/../../b", "..\\..\\x", "\u202e", "\0", "NUL", "~root"]
    ),
)


@given(name=NAMES)
def test_names_of_objects_stay_in_their_folder(name: str) -> None:
    for made in (file_name(3, name), safe_name(name) + ".jpg"):
        assert Path(made).name == made
        assert "\0" not in made
        assert len(made.encode()) < 255


@pytest.mark.usefixtures("ray_local")
def test_names_in_tables_and_headers_leave_nothing_outside_the_run(tmp_path: Path) -> None:
    """Identifiers and tile names that are paths; the tree holds what we put there and the run."""
    wcs = write_tile(tmp_path / "a" / "tiles", "A", bands="grz")
    for path in (tmp_path / "a" / "tiles").iterdir():
        data = path.read_bytes()
        at = data.rindex(b"BAND    = ")
        tile = b"TILENAME= '../../../../evil'".ljust(80)
        path.write_bytes(data[:at] + data[at : at + 80] + tile + data[at + 160 :])
    ra, dec = wcs.all_pix2world([100, 150], [100, 150], 0)
    table = pa.table({"object_id": ["../../evil", "/evil\\\u202e"], "ra": ra, "dec": dec})
    pq.write_table(table, tmp_path / "a" / "d.parquet")
    before = set(tmp_path.rglob("*"))
    summary = classify.run(
        Classify(
            input=str(tmp_path / "a" / "tiles"),
            detections=str(tmp_path / "a" / "d.parquet"),
            output=str(tmp_path / "a" / "run"),
            precision="exact",
            zero_point=30.0,
        )
    )
    assert summary.figures["rows_scored"] == 2
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "a" / "run") for path in new)
    assert not any("evil" in path.name for path in new)


def test_tensors_of_other_types_and_shapes_are_refused(tmp_path: Path) -> None:
    for path in Path(shipped.folder("deepshadows-v2")).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    good = safetensors.torch.load_file(tmp_path / "model.safetensors")
    name = next(iter(good))
    for wrong in (good[name].int(), good[name].flatten()[:1], torch.full_like(good[name], float("nan"))):
        data = safetensors.torch.save({**good, name: wrong})
        (tmp_path / "model.safetensors").write_bytes(data)
        card = json.loads((tmp_path / "card.json").read_text())
        card["weights_sha256"] = hashlib.sha256(data).hexdigest()
        (tmp_path / "card.json").write_text(json.dumps(card))
        with pytest.raises(InputError, match=name):
            checkpoint.load(str(tmp_path))
