"""Cut-out shards and npz files: round trips, and a flag or a clear error for each bad one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.schema import Flag
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.shards import (
    Cutouts,
    concatenate,
    cutouts_from_table,
    open_shard,
    read_npz,
    read_shards,
    split,
    write_shard,
)
from deepshadows.sky.stretch import DES

GEOMETRY = Geometry(stretch=DES)


def cutouts_of(count: int, *, strings: bool = False, labelled: bool = True, seed: int = 0) -> Cutouts:
    rng = np.random.default_rng(seed)
    ids = [f"id-{seed}-{row}" for row in range(count)] if strings else [seed * 10_000 + row for row in range(count)]
    return Cutouts(
        object_id=pa.array(ids, pa.string() if strings else pa.int64()),
        ra=rng.uniform(0, 360, count),
        dec=rng.uniform(-90, 90, count),
        images=rng.integers(0, 256, (count, 64, 64, 3), np.uint8),
        flags=np.zeros(count, np.int32),
        label=rng.integers(0, 2, count).astype(np.int8) if labelled else None,
        fov_arcsec=33.5,
        stretch="des-1",
    )


def same(a: Cutouts, b: Cutouts) -> bool:
    return (
        a.object_id.equals(b.object_id)
        and (a.images == b.images).all()
        and np.array_equal(a.ra, b.ra, equal_nan=True)
        and np.array_equal(a.dec, b.dec, equal_nan=True)
        and (a.flags == b.flags).all()
        and ((a.label is None) == (b.label is None))
        and (a.label is None or b.label is None or (a.label == b.label).all())
    )


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 30), strings=st.booleans(), labelled=st.booleans(), rows=st.integers(1, 40))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, count: int, strings: bool, labelled: bool, rows: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    cutouts = cutouts_of(count, strings=strings, labelled=labelled)
    for number, part in enumerate(split(cutouts, rows)):
        write_shard(str(folder / f"{number:03d}.parquet"), part)
    assert same(read_shards(str(folder)), cutouts)


def test_images_are_fixed_size_binary_with_their_metadata(place: str) -> None:
    url = storage.join(place, "a.parquet")
    write_shard(url, cutouts_of(3))
    field = open_shard(url).schema_arrow.field("image")
    assert field.type == pa.binary(12288)
    assert {key.decode(): value.decode() for key, value in field.metadata.items()}.items() >= {
        "shape": "64,64,3",
        "dtype": "uint8",
        "fov_arcsec": "33.5",
        "stretch": "des-1",
        "bands": "z,r,g",
    }.items()


def test_a_bad_row_keeps_its_place_with_a_flag() -> None:
    table = cutouts_of(5, labelled=False).to_table().drop_columns(["flags"])
    images = table["image"].to_pylist()
    images[1] = None
    table = table.set_column(3, table.schema.field("image"), pa.array(images, pa.binary(12288)))
    table = table.set_column(1, "ra", pa.array([1.0, 2.0, float("nan"), 361.0, None]))
    flags = cutouts_from_table(table, "x").flags
    assert [Flag.names(int(bits)) for bits in flags] == [
        [],
        ["NO_IMAGE"],
        ["BAD_POSITION"],
        ["BAD_POSITION"],
        ["NO_POSITION"],
    ]


def test_images_of_another_size_are_flagged_row_by_row() -> None:
    table = cutouts_of(3, labelled=False).to_table()
    metadata = table.schema.field("image").metadata
    data = [bytes(12288), bytes(100), None]
    table = table.set_column(3, pa.field("image", pa.binary(), metadata=metadata), pa.array(data, pa.binary()))
    assert [Flag.names(int(bits)) for bits in cutouts_from_table(table, "x").flags] == [[], ["BAD_SHAPE"], ["NO_IMAGE"]]
    small = table.set_column(
        3, pa.field("image", pa.binary(27), metadata=metadata), pa.array([bytes(27)] * 3, pa.binary(27))
    )
    assert [Flag.names(int(bits)) for bits in cutouts_from_table(small, "x").flags] == [["BAD_SHAPE"]] * 3


@pytest.mark.parametrize("stated", [{"shape": "3,64,64"}, {"dtype": "int8"}])
def test_pixels_of_another_layout_are_flagged(stated: dict[str, str]) -> None:
    table = cutouts_of(2, labelled=False).to_table()
    field = table.schema.field("image")
    wrong = {key.encode(): value.encode() for key, value in stated.items()}
    changed = field.with_metadata({**(field.metadata or {}), **wrong})
    table = table.set_column(3, changed, table["image"])
    assert [Flag.names(int(bits)) for bits in cutouts_from_table(table, "x").flags] == [["BAD_SHAPE"]] * 2


def test_positions_that_are_not_float64_are_refused() -> None:
    table = cutouts_of(2).to_table()
    table = table.set_column(1, "ra", table["ra"].cast(pa.float32()))
    with pytest.raises(InputError, match="ra is float; float64"):
        cutouts_from_table(table, "x")


def test_null_and_foreign_identifiers_are_refused() -> None:
    table = cutouts_of(2).to_table()
    with pytest.raises(InputError, match="1 object_id are null"):
        cutouts_from_table(table.set_column(0, "object_id", pa.array([1, None])), "x")
    with pytest.raises(InputError, match="object_id is double"):
        cutouts_from_table(table.set_column(0, "object_id", pa.array([1.5, 2.5])), "x")


def test_a_corrupt_or_foreign_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        open_shard(str(tmp_path / "bad.parquet"))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="not a cut-out shard"):
        open_shard(str(tmp_path / "other.parquet"))


def test_cutouts_of_different_kinds_are_not_joined() -> None:
    with pytest.raises(InputError, match="another"):
        concatenate([cutouts_of(2), cutouts_of(2, strings=True)])


def test_npz_images_are_brought_to_the_field(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    image = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    np.savez(path, image=image, fov_arcsec=np.array([33.5, 40.2, 30.0], np.float32), label=np.array([1, 0, 1]))
    cutouts = read_npz(str(path), GEOMETRY)
    assert (cutouts.images[0] == image[0]).all()
    assert cutouts.label is not None
    assert cutouts.label.tolist() == [1, 0, 1]
    assert [Flag.names(int(bits)) for bits in cutouts.flags] == [
        ["NO_POSITION"],
        ["RESAMPLED", "NO_POSITION"],
        ["PARTIAL_FIELD", "RESAMPLED", "NO_POSITION"],
    ]
    assert cutouts.object_id.to_pylist() == ["a-000000", "a-000001", "a-000002"]


def test_an_npz_label_of_nan_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, image=np.zeros((3, 64, 64, 3), np.uint8), fov_arcsec=33.5, label=[1.0, np.nan, 0.0])
    label = read_npz(str(path), GEOMETRY).label
    assert label is not None
    assert (label.tolist(), label.dtype) == ([1, -1, 0], np.int8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((2, 64, 64, 3), np.uint8)}, "fov_arcsec are needed"),
        ({"image": np.zeros((2, 64, 64, 3), np.float32), "fov_arcsec": [33.5, 33.5]}, "float32"),
        ({"image": np.zeros((2, 64, 64), np.uint8), "fov_arcsec": [33.5, 33.5]}, r"\(2, 64, 64\)"),
        ({"image": np.zeros((2, 64, 64, 3), np.uint8), "fov_arcsec": [33.5, -1]}, "positive"),
        ({"image": np.zeros((2, 64, 64, 3), np.uint8), "fov_arcsec": 33.5, "label": [1]}, "label must have one value"),
        ({"image": np.zeros((1, 64, 64, 3), np.uint8), "fov_arcsec": 33.5, "label": [0.7]}, r"label does not .*0\.7"),
        ({"image": np.zeros((1, 64, 64, 3), np.uint8), "fov_arcsec": 33.5, "label": [257]}, "257 .* give 1 for"),
        ({"image": np.zeros((1, 64, 64, 3), np.uint8), "fov_arcsec": 33.5, "label": ["lsbg"]}, "label does not .*lsbg"),
        ({"image": np.array([{"a": 1}], dtype=object), "fov_arcsec": [33.5]}, "not a readable"),
    ],
)
def test_bad_npz_files_are_refused(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        read_npz(str(path), GEOMETRY)


def test_a_damaged_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(InputError, match="npz"):
        read_npz(str(tmp_path / "a.npz"), GEOMETRY)


def test_a_column_name_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    """pyarrow decodes it, outside its own errors (found by the fuzzer)."""
    path = tmp_path / "a.parquet"
    write_shard(str(path), cutouts_of(3, labelled=False))
    path.write_bytes(path.read_bytes().replace(b"object_id", b"\xc5bject_id"))
    with pytest.raises(InputError, match="not a readable Parquet file"):
        open_shard(str(path))
