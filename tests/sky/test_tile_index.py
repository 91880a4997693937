"""The scan of headers: by ranges, never the pixels, and going on where it was broken off."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from deepshadows import storage
from deepshadows.outcomes import InputError, StorageError
from deepshadows.sky import header_journal, tile_index
from deepshadows.sky.tile_index import scan_tiles
from tests.sky.tile_files import noise, tan_wcs, write_band, write_tile


class Reads:
    """Counts the range reads of each object."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: Counter[str] = Counter()
        self.size_bytes: Counter[str] = Counter()
        self.fail_after = 10**9
        real = storage.read_ranges

        def read_ranges(url: str, starts: list[int], ends: list[int]) -> list[bytes]:
            if len(self.requests) >= self.fail_after and url not in self.requests:
                raise StorageError(f"{url}: the store has gone")
            self.requests[url] += 1
            self.size_bytes[url] += sum(ends) - sum(starts)
            return real(url, starts, ends)

        monkeypatch.setattr(storage, "read_ranges", read_ranges)


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz"])
def test_headers_are_read_by_ranges_and_pixels_are_not(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """12 MB with three HDUs cost a request each: science with the primary's header, weight, mask."""
    shape = (1000, 1000)
    path = tmp_path / f"T_g{suffix}"
    planes = {"weight": noise(shape, 2) ** 2 + 1, "mask": np.random.default_rng(3).integers(0, 2**30, shape, np.int32)}
    write_band(path, noise(shape, 1), wcs=tan_wcs(shape), compressed="fz" in suffix, **planes)
    url = f"{bucket}/{path.name}"
    storage.write(url, path.read_bytes())
    reads = Reads(monkeypatch)
    index = scan_tiles(bucket)
    assert index.tiles[0].bands["g"].mask_hdu == 3
    assert path.stat().st_size > 8e6
    assert reads.requests[url] <= 4
    assert reads.size_bytes[url] <= 4 * 32 * 1024


def test_a_scan_that_was_broken_off_goes_on(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_index, "FILES_PER_PART", 3)
    monkeypatch.setattr(tile_index, "SCAN_THREADS", 1)
    for number in range(4):
        write_tile(tmp_path, f"T{number}", (20, 20), ra=30 + number)
    (tmp_path / "T9_g.fits").write_bytes(b"no FITS")
    for path in tmp_path.iterdir():
        storage.write(f"{place}/tiles/{path.name}", path.read_bytes())
    whole = scan_tiles(f"{place}/tiles")
    reads = Reads(monkeypatch)
    reads.fail_after = 7
    with pytest.raises(StorageError, match="has gone"):
        scan_tiles(f"{place}/tiles", journal=f"{place}/journal")
    assert len(storage.list_objects(f"{place}/journal")) == 2
    reads.fail_after = 10**9
    reads.requests.clear()
    assert scan_tiles(f"{place}/tiles", journal=f"{place}/journal") == whole
    assert len(reads.requests) == 13 - 6
    reads.requests.clear()
    assert scan_tiles(f"{place}/tiles", journal=f"{place}/journal") == whole
    assert len(reads.requests) == 1, "what is wrong with a file is looked at again"


@pytest.mark.parametrize(
    ("name", "stated"), [("DES0219-0541_r2590p01_{}.fits", "DES0219-0541"), ("T5/{}.fits", None), ("T5_{}.fits", None)]
)
def test_a_damaged_file_is_a_problem_of_the_tile_of_its_other_bands(
    tmp_path: Path, name: str, stated: str | None
) -> None:
    for band in "grz":
        path = tmp_path / name.format(band)
        write_band(path, noise((20, 20), 1), wcs=tan_wcs((20, 20)), band=band)
        if stated:
            fits.setval(path, "TILENAME", value=stated, ext=1)
    path.write_bytes(b"no FITS")
    write_tile(tmp_path, "Other", (20, 20), bands="gr")
    tile, other = sorted(scan_tiles(str(tmp_path)).tiles, key=lambda tile: tile.tile_id == "Other")
    assert (tile.tile_id, sorted(tile.bands)) == (stated or "T5", ["g", "r"])
    assert [str(path) in problem for problem in tile.problems] == [True]
    assert other.problems == ()


def test_a_file_that_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_index, "FILES_PER_PART", 3)
    write_tile(tmp_path / "tiles", shape=(20, 20))
    journal = str(tmp_path / "journal")
    scan_tiles(str(tmp_path / "tiles"), journal=journal)
    (tmp_path / "tiles" / "T1_r.fits").unlink()
    write_tile(tmp_path / "tiles", shape=(30, 30), bands="r")
    reads = Reads(monkeypatch)
    index = scan_tiles(str(tmp_path / "tiles"), journal=journal)
    assert list(reads.requests) == [str(tmp_path / "tiles" / "T1_r.fits")]
    assert index.tiles[0].bands["r"].shape == (30, 30)
    assert scan_tiles(str(tmp_path / "tiles"), zero_point=25.0, journal=journal).tiles == index.tiles


def test_what_is_out_of_date_is_cleared_away(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files come, change and go; the journal gives what a scan without it gives, and stays small."""
    monkeypatch.setattr(header_journal, "FILES_PER_PART", 2)
    monkeypatch.setattr(tile_index, "FILES_PER_PART", 2)
    folder, journal = f"{place}/tiles", f"{place}/journal"
    write_tile(tmp_path, shape=(20, 20))
    contents = [path.read_bytes() for path in tmp_path.iterdir()]
    rng = np.random.default_rng(4)
    for turn in range(30):
        name = f"{folder}/T{rng.integers(4)}_{'gr'[turn % 2]}.fits"
        if turn > 10 and rng.random() < 0.4 and storage.exists(name):
            storage.delete(name)
        else:
            storage.write(name, contents[rng.integers(len(contents))])
        assert scan_tiles(folder, journal=journal) == scan_tiles(folder)
    here = len(storage.list_objects(folder))
    kept = [pq.read_metadata(storage.open_arrow(part.url)).num_rows for part in storage.list_objects(journal)]
    assert sum(kept) <= 2 * here + 1


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles", shape=(20, 20))
    journal = str(tmp_path / "journal")
    scan_tiles(str(tmp_path / "tiles"), journal=journal)
    (part,) = storage.list_objects(journal)
    table = pq.read_table(part.url)
    for bad in (b"PAR1", None):
        if bad is None:
            storage.write_table(
                part.url, table.set_column(2, "found", pa.array(['[["T1", "g", {}]]'] * table.num_rows))
            )
        else:
            storage.write(part.url, bad)
        with pytest.raises(InputError, match=r"delete it|damaged"):
            scan_tiles(str(tmp_path / "tiles"), journal=journal)
