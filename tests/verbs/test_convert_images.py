"""`cutouts` of finished images in every form: the same rows in the shards, each other row in the rejects."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepshadows import settings, storage
from deepshadows.outcomes import AbsentError, ExitCode, InputError, Summary, UsageError
from deepshadows.schema import Flag
from deepshadows.sky.shards import Cutouts, read_shards
from deepshadows.verbs import cutouts
from tests.sky.image_files import (
    png,
    samples,
    write_hdf5,
    write_npy,
    write_npz,
    write_parquet,
    write_pictures,
    write_tar,
)
from tests.sky.test_shards import cutouts_of, same
from tests.sky.tile_files import noise, tan_wcs, write_band, write_tile

pytestmark = pytest.mark.usefixtures("ray_local")

OWN = {"object_id": "SourceID", "ra": "RAJ2000", "dec": "DEJ2000", "label": "class", "image": "stamp"}
OWN_FLAGS = {"id_column": "SourceID", "ra_column": "RAJ2000", "dec_column": "DEJ2000"}
OWN_FLAGS |= {"label_column": "class", "image_column": "stamp"}


def run(source: Any, output: Any, **flags: Any) -> Summary:
    summary = cutouts.run(settings.Cutouts(input=str(source), output=str(output), **{"fov_arcsec": 33.5, **flags}))
    ends = ("written", "rejected", "ambiguous", "quarantined")
    assert summary.figures["rows_planned"] == sum(summary.figures[f"rows_{end}"] for end in ends)
    return summary


def by_id(output: Any) -> Cutouts:
    found = read_shards(str(output))
    return found.take(np.argsort(found.object_id.to_numpy(zero_copy_only=False)))


def rejects(output: Any) -> dict[str, str]:
    table = pq.read_table(storage.open_arrow(storage.join(str(output), cutouts.REJECTS)))
    return dict(zip(table["object_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def write(form: str, folder: Path, given: Cutouts) -> dict[str, Any]:
    """Write `given` in two parts; the flags that read them."""
    for number, part in enumerate((given.take(np.arange(12)), given.take(np.arange(12, len(given))))):
        if form == "npy":
            write_npy(folder / f"{number}.npy", part)
        elif form == "npz":
            write_npz(folder / f"{number}" / "same.npz", part)
        elif form == "webdataset":
            write_tar(folder / f"{number}.tar", samples(part))
        elif form == "hdf5":
            write_hdf5(folder / f"{number}.h5", part, OWN)
        elif form == "parquet":
            write_parquet(folder / f"{number}.parquet", part, OWN)
        else:
            write_pictures(folder, part)
    return OWN_FLAGS if form in ("hdf5", "parquet") else {}


@pytest.mark.parametrize("form", ["npy", "npz", "pictures", "webdataset", "hdf5", "parquet"])
def test_every_form_gives_the_same_rows(tmp_path: Path, bucket: str, form: str) -> None:
    given = cutouts_of(20)
    flags = write(form, tmp_path / "in", given)
    for path in (tmp_path / "in").rglob("*.*"):
        storage.write(storage.join(bucket, "in", str(path.relative_to(tmp_path / "in"))), path.read_bytes())
    for source, output in ((tmp_path / "in", f"{tmp_path}/out"), (f"{bucket}/in", f"{bucket}/out")):
        summary = run(source, output, shard_rows=9, **flags)
        assert summary.exit_code == ExitCode.DONE
        assert summary.figures["rows_written"] == 20
        assert summary.figures["rows_rejected"] == 0
        found = by_id(output)
        if form == "pictures":  # which have no positions
            assert (found.flags == Flag.NO_POSITION.bit).all()
            found = Cutouts(**{**vars(found), "ra": given.ra, "dec": given.dec, "flags": given.flags})
        assert same(found, given)
        assert not storage.exists(storage.join(str(output), cutouts.REJECTS))


def test_each_image_that_cannot_be_used_is_listed_with_its_reason(tmp_path: Path) -> None:
    good = cutouts_of(3, seed=5)
    image = good.images[0].tobytes()
    cells: list[bytes | None] = [
        image,
        None,
        b"\xff\xd8\xff not a picture",
        image[:100],
        png(np.zeros((64, 64), np.uint8)),
    ]
    cells += [png(good.images[1], "JPEG"), image, image, image, png(np.zeros((64, 32, 3), np.uint8))]
    names = ["good", "none", "damaged", "short", "grey", "jpeg", "good", None, "label", "oblong"]
    table = {
        "object_id": names,
        "image": pa.array(cells, pa.binary()),
        "label": pa.array([1, 1, 1, 1, 1, 0, 1, 1, 7, 1]),
    }
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(table), tmp_path / "in" / "a.parquet")
    summary = run(tmp_path / "in", tmp_path / "out")
    assert by_id(tmp_path / "out").object_id.to_pylist() == ["good", "jpeg"]
    reasons = rejects(tmp_path / "out")
    assert summary.figures["rows_rejected"] == len(names) - 2 == 8
    expected = {
        "none": "no image",
        "damaged": "no readable JPEG or PNG",
        "short": "100 bytes",
        "grey": "mode L",
        "good": "duplicate identifier",
        "None": "identifier None",
        "label": "label '7' is not known",
        "oblong": r"(64, 32, 3)",
    }
    assert reasons.keys() == expected.keys()
    for name, part in expected.items():
        assert part in reasons[name], reasons[name]
        assert "a.parquet row" in reasons[name]


def test_an_image_may_be_a_list_or_a_struct_with_a_picture(tmp_path: Path) -> None:
    given = cutouts_of(4)
    names = {name: name for name in OWN}
    flat = pa.array([image.reshape(-1).tolist() for image in given.images], pa.list_(pa.uint8()))
    nested = pa.array([image.tolist() for image in given.images])
    hugging = pa.array([{"bytes": png(image), "path": None} for image in given.images])
    for number, images in enumerate((flat, nested, hugging)):
        write_parquet(tmp_path / f"in{number}" / "a.parquet", given, names, images)
        run(tmp_path / f"in{number}", tmp_path / f"out{number}")
        assert same(by_id(tmp_path / f"out{number}"), given)


def test_keys_that_begin_anew_in_each_tar_do_not_collide(tmp_path: Path) -> None:
    images = cutouts_of(4).images
    for number in range(2):
        members = [(f"{row:03d}.png", png(images[2 * number + row])) for row in range(2)]
        write_tar(tmp_path / "in" / f"part-{number}.tar", members)
    run(tmp_path / "in", tmp_path / "out")
    found = by_id(tmp_path / "out")
    assert found.object_id.to_pylist() == ["part-0/000", "part-0/001", "part-1/000", "part-1/001"]
    assert (found.images == images).all()


def test_a_sample_without_an_image_is_a_reject(tmp_path: Path) -> None:
    image = png(cutouts_of(1).images[0])
    write_tar(tmp_path / "in" / "a.tar", [("1.txt", b"a caption"), ("2.png", image), ("2.txt", b"another")])
    run(tmp_path / "in", tmp_path / "out")
    assert by_id(tmp_path / "out").object_id.to_pylist() == ["a/2"]
    assert "0 images" in rejects(tmp_path / "out")["a/1"]


def test_damaged_members_are_rejects_and_a_damaged_tar_keeps_what_came_before(tmp_path: Path) -> None:
    given = cutouts_of(30)
    members = samples(given)
    members[3] = (members[3][0], b"\x89PNG\r\n\x1a\n and no more")
    write_tar(tmp_path / "in" / "a.tar", members)
    data = bytearray((tmp_path / "in" / "a.tar").read_bytes())
    at = data.index(b"000020.png")
    data[at : at + 512] = b"\xff" * 512  # a header that is none: tarfile stops there as at the end
    (tmp_path / "in" / "b.tar").write_bytes(data)
    summary = run(tmp_path / "in" / "b.tar", tmp_path / "out")
    assert summary.exit_code == ExitCode.EXCEPTIONS
    assert "damaged or cut off" in "\n".join(summary.text)
    assert len(read_shards(f"{tmp_path}/out")) == 19
    reasons = rejects(tmp_path / "out")
    assert "no readable JPEG or PNG" in reasons["1"]
    assert "lost" in reasons[""]


def test_fits_images_are_cut_at_their_centre_and_classes_are_folders(tmp_path: Path) -> None:
    wcs = write_tile(tmp_path / "in" / "lsbg", "cand 7", shape=(160, 160), bands="gri")
    write_tile(tmp_path / "in" / "artifact", "cand-8", shape=(160, 160), bands="gri", suffix=".fits.fz")
    write_band(tmp_path / "in" / "artifact" / "cand-9_g.fits", noise((40, 40), 1), wcs=tan_wcs((40, 40)))
    summary = run(tmp_path / "in", tmp_path / "out", form="fits", bands="gri", fov_arcsec=None)
    found = by_id(tmp_path / "out")
    assert found.object_id.to_pylist() == ["cand 7", "cand-8"]
    assert found.bands == ("i", "r", "g")
    assert found.label is not None
    assert found.label.tolist() == [1, 0]
    centre = wcs.all_pix2world([79.5], [79.5], 0)
    assert (found.ra[0], found.dec[0]) == pytest.approx((centre[0][0], centre[1][0]))
    assert summary.figures["rows_rejected"] == 1
    assert "band i" in rejects(tmp_path / "out")["cand-9"]


def test_bands_by_setting_are_cut_from_tiles(tmp_path: Path) -> None:
    wcs = write_tile(tmp_path / "tiles", bands="griz")
    ra, dec = wcs.all_pix2world([160], [150], 0)
    pq.write_table(pa.table({"object_id": [1], "ra": ra, "dec": dec}), tmp_path / "d.parquet")
    made = {}
    for bands in ("grz", "gri", "irg"):
        run(tmp_path / "tiles", tmp_path / bands, detections=str(tmp_path / "d.parquet"), bands=bands)
        made[bands] = read_shards(str(tmp_path / bands))
    assert made["grz"].bands == ("z", "r", "g")
    assert made["gri"].bands == made["irg"].bands == ("i", "r", "g")
    assert (made["gri"].images == made["irg"].images).all()
    assert (made["gri"].images[..., 1:] != made["grz"].images[..., 1:]).any(), "the intensity is that of other bands"


def test_one_name_twice_and_a_folder_that_is_no_class(tmp_path: Path) -> None:
    given = cutouts_of(6)
    write_pictures(tmp_path / "in", given)
    first = next((tmp_path / "in").rglob("*.png"))
    other = tmp_path / "in" / "zoo"
    other.mkdir()
    shutil.copy(first, other / first.name)
    shutil.copy(first, other / "77.png")
    summary = run(tmp_path / "in", tmp_path / "out")
    reasons = rejects(tmp_path / "out")
    assert "duplicate identifier" in reasons[first.stem]
    assert "label 'zoo' is not known" in reasons["77"]
    assert by_id(tmp_path / "out").object_id.to_pylist() == list(range(6))
    assert (summary.figures["rows_written"], summary.figures["rows_rejected"]) == (6, 2)


def test_other_words_for_the_classes(tmp_path: Path) -> None:
    given = cutouts_of(8)
    write_pictures(tmp_path / "in", given)
    (tmp_path / "in" / "lsbg").rename(tmp_path / "in" / "Real")
    (tmp_path / "in" / "artifact").rename(tmp_path / "in" / "junk")
    run(tmp_path / "in", tmp_path / "out", lsbg_class=("real",), artifact_class=("junk",))
    found = by_id(tmp_path / "out")
    assert found.label is not None
    assert given.label is not None
    assert found.label.tolist() == given.label.tolist()


@pytest.mark.parametrize(
    ("make", "flags", "error", "message"),
    [
        (lambda at: None, {}, UsageError, "no images there"),
        (lambda at: np.save(at / "a.npy", np.zeros((3, 64, 64), np.uint8)), {}, InputError, r"\(3, 64, 64\)"),
        (lambda at: np.save(at / "a.npy", np.zeros((3, 64, 64, 3), np.float32)), {}, InputError, "float32"),
        (lambda at: write_npy(at / "a.npy", cutouts_of(3)), {"fov_arcsec": None}, InputError, "--fov-arcsec"),
        (lambda at: write_npy(at / "a.npy", cutouts_of(3)), {"form": "hdf5"}, AbsentError, "--form"),
        (lambda at: write_npy(at / "a.npy", cutouts_of(3)), {"bands": "ggr"}, UsageError, "three different bands"),
        (lambda at: write_npy(at / "a.npy", cutouts_of(3)), {"stretch": "log"}, UsageError, "--stretch log"),
        (lambda at: write_parquet(at / "a.parquet", cutouts_of(3), OWN), {}, InputError, "no column image"),
        (lambda at: write_hdf5(at / "a.h5", cutouts_of(3), OWN), {}, InputError, "no dataset image; it has .*stamp"),
        (lambda at: write_tile(at), {}, UsageError, "--form fits"),
        (lambda at: (np.save(at / "a.npy", [1]), (at / "b.tar").touch()), {}, UsageError, "say with --form"),
        (lambda at: write_tar(at / "a.tar", []), {}, InputError, "no images in it"),
        (lambda at: (at / "a.tar").write_bytes(b"no tar at all"), {}, InputError, "damaged tar"),
        (lambda at: (at / "a.jpg").write_bytes(b"GIF89a"), {}, InputError, "no readable JPEG or PNG"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_told(
    tmp_path: Path, make: Any, flags: dict[str, Any], error: type[Exception], message: str
) -> None:
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    with pytest.raises(error, match=message):
        run(tmp_path / "in", tmp_path / "out", **flags)


def test_tars_with_and_without_labels_are_not_mixed(tmp_path: Path) -> None:
    given = cutouts_of(3)
    write_tar(tmp_path / "in" / "a.tar", samples(given))
    write_tar(
        tmp_path / "in" / "b.tar", [member for member in samples(cutouts_of(3, seed=1)) if ".cls" not in member[0]]
    )
    with pytest.raises(InputError, match="no labels"):
        run(tmp_path / "in", tmp_path / "out")
