"""The table of public lists: git's identifiers, and the same facts in `Datasets/`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deepshadows.sky.public_lists import PUBLIC_LISTS, PublicList, blob_id, count_table, manifest

ROOT = Path(__file__).parents[2]
REALDATA = Path(os.environ.get("DEEPSHADOWS_REALDATA", ROOT.parent / "shared" / "realdata"))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ],
)
def test_blob_ids_are_those_of_git(data: bytes, wanted: str) -> None:
    assert blob_id(data) == wanted


def test_the_manifest_in_datasets_says_the_same() -> None:
    assert json.loads((ROOT / "Datasets" / "manifest.json").read_text()) == manifest()


def test_the_readme_in_datasets_says_the_same() -> None:
    text = (ROOT / "Datasets" / "README.md").read_text()
    for entry in PUBLIC_LISTS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{entry.name}` ")]
        assert entry.blob_id in line
        assert f"{entry.rows:,} x {entry.columns}" in line
    assert manifest()["commit"] in text


def test_rows_and_columns_are_counted() -> None:
    entry = PublicList(name="a.csv", what="", rows=2, columns=3, blob_id="")
    assert count_table(b",ra,dec\n0,1,2\n1,3,4\n\n", entry) == (2, 3)
    bare = PublicList(name="a.dat", what="", rows=2, columns=2, header=False, blob_id="")
    assert count_table(b"  1 2.0\n  2 3.0\n", bare) == (2, 2)


@pytest.mark.skipif(not REALDATA.is_dir(), reason=f"no real sky data at {REALDATA}")
def test_the_lists_at_hand_are_those_of_the_table() -> None:
    found = [entry for entry in PUBLIC_LISTS if (REALDATA / "catalogs" / entry.name).is_file()]
    assert len(found) == 5
    for entry in found:
        data = (REALDATA / "catalogs" / entry.name).read_bytes()
        assert (blob_id(data), len(data)) == (entry.blob_id, entry.size_bytes)
        assert count_table(data, entry) == (entry.rows, entry.columns)
