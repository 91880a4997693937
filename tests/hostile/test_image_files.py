"""Images from outside: archives that name places outside, files that promise more than there is, links elsewhere."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings

from deepshadows import settings
from deepshadows.outcomes import Failure, InputError, UsageError
from deepshadows.sky.images import hdf5, parquet
from deepshadows.sky.images.conversion import Conversion, geometry_of, read_images
from deepshadows.sky.images.sources import list_sources
from deepshadows.sky.shards import Cutouts
from deepshadows.verbs import cutouts
from tests.hostile.damage import Change, changes, damaged
from tests.hostile.test_damaged_files import EXAMPLES
from tests.sky.image_files import png, samples, write_hdf5, write_npy, write_parquet, write_pictures, write_tar
from tests.sky.test_shards import cutouts_of
from tests.sky.tile_files import write_tile

NAMES = {"object_id": "object_id", "ra": "ra", "dec": "dec", "label": "label", "image": "image"}


def convert(source: Path, **flags: Any) -> tuple[list[Cutouts], list[str]]:
    """Cut-outs of every source of an input, and the reasons of what is not among them; no Ray."""
    wanted = settings.Cutouts(input=str(source), output="unused", **{"fov_arcsec": 33.5, **flags})
    listing = list_sources(wanted, str(source))
    geometry = geometry_of(wanted)
    parts, reasons = [], [reason for _, _, reason in listing.rejects]
    for part in listing.sources:
        conversion = Conversion(wanted, geometry)
        try:
            parts += list(conversion.cutouts(read_images(part, wanted, geometry), 10))
        except InputError as error:
            reasons.append(str(error))
        reasons += [reason for _, _, reason in conversion.rejects]
    return parts, reasons


@pytest.mark.usefixtures("ray_local")
def test_members_that_name_places_outside_leave_nothing_there(tmp_path: Path) -> None:
    image = png(cutouts_of(1).images[0])
    folder = tmp_path / "a" / "b" / "in"
    write_tar(folder / "a.tar", [("../../evil.png", image), (f"{tmp_path}/evil.png", image), ("fine.png", image)])
    with tarfile.open(folder / "a.tar", "a") as archive:
        for kind, name in ((tarfile.SYMTYPE, "link.png"), (tarfile.LNKTYPE, "hard.png"), (tarfile.CHRTYPE, "dev.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    before = set(tmp_path.rglob("*"))
    summary = cutouts.run(settings.Cutouts(input=str(folder), output=str(tmp_path / "a" / "out"), fov_arcsec=33.5))
    assert (summary.figures["rows_written"], summary.figures["rows_rejected"]) == (1, 5)
    assert all(path.is_relative_to(tmp_path / "a" / "out") for path in set(tmp_path.rglob("*")) - before)


@pytest.mark.usefixtures("ray_local")
def test_a_tile_s_name_leaves_no_shard_outside(tmp_path: Path) -> None:
    wcs = write_tile(tmp_path / "a" / "tiles", "A", bands="grz")
    for path in (tmp_path / "a" / "tiles").iterdir():
        data = path.read_bytes()
        at = data.rindex(b"BAND    = ")
        path.write_bytes(data[: at + 80] + b"TILENAME= '../../../evil'".ljust(80) + data[at + 160 :])
    ra, dec = wcs.all_pix2world([100], [100], 0)
    pq.write_table(pa.table({"object_id": [1], "ra": ra, "dec": dec}), tmp_path / "a" / "d.parquet")
    before = set(tmp_path.rglob("*"))
    cutouts.run(
        settings.Cutouts(
            input=str(tmp_path / "a" / "tiles"),
            detections=str(tmp_path / "a" / "d.parquet"),
            output=str(tmp_path / "a" / "out"),
            zero_point=30.0,
        )
    )
    (new,) = (path for path in set(tmp_path.rglob("*")) - before if path.is_file())
    assert new.parent == tmp_path / "a" / "out"


def big_png(side: int) -> bytes:
    """Many pixels declared in some hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("side", "message"), [(5000, "declares 5000 x 5000"), (60_000, "decompression bomb")])
def test_pictures_that_declare_more_than_any_cutout_has(tmp_path: Path, side: int, message: str) -> None:
    (tmp_path / "a.png").write_bytes(big_png(side))
    (tmp_path / "b.png").write_bytes(png(cutouts_of(1).images[0]))
    parts, reasons = convert(tmp_path)
    assert [part.object_id.to_pylist() for part in parts] == [["b"]]
    assert message in reasons[0]


def npy_of(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(100)


def test_arrays_that_declare_more_than_there_is(tmp_path: Path) -> None:
    (tmp_path / "npy").mkdir()
    (tmp_path / "npy" / "a.npy").write_bytes(npy_of("(1000000, 64, 64, 3)"))
    assert "truncated" in convert(tmp_path / "npy")[1][0]
    write_tar(tmp_path / "tar" / "a.tar", [("a.npy", npy_of("(1000000, 1000000, 3)")), ("b.npy", npy_of("(5, 5)"))])
    reasons = convert(tmp_path / "tar")[1]
    assert len(reasons) == 2
    assert all("truncated or damaged" in reason for reason in reasons)
    payload = np.empty(1, object)
    np.save(tmp_path / "npy" / "a.npy", payload, allow_pickle=True)
    assert "uint8" in convert(tmp_path / "npy")[1][0]


def test_hdf5_that_declares_more_than_it_holds_or_lies_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(64 * 64 * 3))
    with h5py.File(tmp_path / "other.hdf", "w") as file:
        file["image"] = np.zeros((1, 64, 64, 3), np.uint8)
    shape = (1, 64, 64, 3)

    def linked(file: h5py.File) -> None:
        file["image"] = h5py.ExternalLink(str(tmp_path / "other.hdf"), "image")

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(shape, np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf"), "image", shape)
        file.create_virtual_dataset("image", layout)

    makers: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
        "empty": (
            lambda file: file.create_dataset("image", (10**9, 64, 64, 3), np.uint8, chunks=(1, 64, 64, 3)),
            "holds next to nothing",
        ),
        "external": (
            lambda file: file.create_dataset("image", shape, np.uint8, external=[(str(secret), 0, h5py.h5f.UNLIMITED)]),
            "lies in other files",
        ),
        "virtual": (virtual, "lies in other files"),
        "link": (
            lambda file: file.__setitem__("image", h5py.ExternalLink(str(tmp_path / "other.hdf"), "image")),
            "link",
        ),
        "soft": (lambda file: file.__setitem__("image", h5py.SoftLink("/elsewhere")), "link"),
        "group": (lambda file: file.create_group("image"), "is a group"),
        "chunk": (
            lambda file: file.create_dataset("image", data=np.zeros((9, 64, 64, 3), np.uint8), chunks=(9, 64, 64, 3)),
            "chunks",
        ),
    }
    for name, (make, message) in makers.items():
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "a.h5", "w") as file:
            make(file)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hdf5, "MAX_CHUNK_BYTES", 100_000)
            parts, reasons = convert(tmp_path / name)
        assert parts == []
        assert message in reasons[0], (name, reasons)


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hdf5(tmp_path / "a.h5", cutouts_of(2), NAMES)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UsageError, match=r"pip install 'deepshadows\[hdf5\]'"):
        convert(tmp_path)


def test_a_row_group_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", cutouts_of(20), NAMES)
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 10_000)
    assert "a row group unpacks" in convert(tmp_path)[1][0]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, given = tmp_path_factory.mktemp("images"), cutouts_of(4)
    write_npy(folder / "npy" / "a.npy", given)
    write_tar(folder / "tar" / "a.tar", samples(given))
    write_hdf5(folder / "h5" / "a.h5", given, NAMES)
    write_parquet(folder / "parquet" / "a.parquet", given, NAMES)
    write_pictures(folder / "png", given.take(np.arange(1)))
    sink = io.BytesIO(png(given.images[0], "JPEG"))
    (folder / "jpg").mkdir()
    (folder / "jpg" / "a.jpg").write_bytes(sink.getvalue())
    return folder


def files_of(folder: Path, kind: str) -> Iterator[Path]:
    return folder.joinpath(kind).rglob("*.*")


@pytest.mark.parametrize("kind", ["npy", "tar", "h5", "parquet", "png", "jpg"])
@hypothesis_settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(wanted=changes())
@example(wanted=[])
def test_damaged_images(originals: Path, tmp_path: Path, kind: str, wanted: list[Change]) -> None:
    """A damaged file gives images of the network's kind, or reasons in our own words; a whole one the images."""
    for path in files_of(originals, kind):
        target = tmp_path / path.relative_to(originals)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(damaged(path.read_bytes(), wanted) if not path.stem.startswith("a_") else path.read_bytes())
    try:
        parts, reasons = convert(tmp_path / kind)
    except Failure as error:
        assert wanted, error
        return
    assert wanted or (parts and not reasons)
    assert all(part.images.shape[1:] == (64, 64, 3) for part in parts)
