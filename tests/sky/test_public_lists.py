"""The table of public lists: git's identifiers, and the same facts in `Datasets/`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deepshadows.outcomes import InputError
from deepshadows.sky.labelled_features import ARTIFACTS, LSBGS, labelled_features
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
    assert json.loads((ROOT / "Datasets" / "manifest.json").read_text()) == json.loads(json.dumps(manifest()))


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


@pytest.mark.parametrize(
    ("lsbgs", "artifacts", "message"),
    [
        (b"1 2 3\n", b"", r"hsc_LSBGs\.dat: row 1 has 3 values, not 18"),
        (b"", b"ra,dec\n1,2\n", r"hsc_artifacts\.csv: its columns are ra, dec, not ra, dec, mu_0"),
        (b"", b"ra,dec,mu_0,m_tot,r_e,n,ell,g-i,g-r,A_g,A_r,A_i\n1\n", r"hsc_artifacts\.csv: row 1 has 1 values"),
    ],
)
def test_other_lists_do_not_become_a_table_of_features(lsbgs: bytes, artifacts: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labelled_features(lsbgs, artifacts)


@pytest.mark.skipif(not REALDATA.is_dir(), reason=f"no real sky data at {REALDATA}")
def test_the_table_of_features_is_the_one_that_others_joined() -> None:
    folder = REALDATA / "catalogs"
    made = labelled_features((folder / LSBGS).read_bytes(), (folder / ARTIFACTS).read_bytes())
    wanted = (folder / "hsc_features_labelled.csv").read_bytes()
    assert made.splitlines() == wanted.splitlines()
    assert len(made.splitlines()) == 1 + 781 + 641


@pytest.mark.skipif(not REALDATA.is_dir(), reason=f"no real sky data at {REALDATA}")
def test_the_lists_at_hand_are_those_of_the_table() -> None:
    found = [entry for entry in PUBLIC_LISTS if (REALDATA / "catalogs" / entry.name).is_file()]
    assert len(found) == 5
    for entry in found:
        data = (REALDATA / "catalogs" / entry.name).read_bytes()
        assert (blob_id(data), len(data)) == (entry.blob_id, entry.size_bytes)
        assert count_table(data, entry) == (entry.rows, entry.columns)
