"""The public lists of the DeepShadows paper: where each lies, what it holds, how to know it. No I/O, no Ray, no torch.

`Datasets/manifest.json` says the same to those who read without the package; a test holds them equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

REPOSITORY = "dtanoglidis/DeepShadows"
COMMIT = "01dea6c84dd403c1f244cc8b77a57685712f33ae"
URL = f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}/Datasets"
LICENCE = "none stated by the repository; not redistributed here"

_POSITIONS = ("", "ra", "dec")
_ARTIFACTS = ("ra", "dec", "mu_0", "m_tot", "r_e", "n", "ell", "g-i", "g-r", "A_g", "A_r", "A_i")
_GRECO = (
    *("number", "ra", "dec", "mu_0", "mu_0_err", "m_tot", "m_tot_err", "g-r", "g-i", "r_e", "r_e_err"),
    *("n", "n_err", "ell", "ell_err", "A_g", "A_r", "A_i"),
)


@dataclass(frozen=True, kw_only=True)
class PublicList:
    """One file.

    Attributes
    ----------
    rows, columns : int
        Of the table, without its header line.
    column_names : tuple of str, optional
        As in the file, or, where it has no header line, as its table is described in arXiv:1709.04474. None where this
        project has not read the file: rows and columns are then those that upstream states.
    size_bytes : int, optional
        None where this project has not read the file.
    blob_id : str
        Git's identifier of the content; see `blob_id`.
    """

    name: str
    what: str
    rows: int
    columns: int
    column_names: tuple[str, ...] | None = None
    header: bool = True
    size_bytes: int | None = None
    blob_id: str


PUBLIC_LISTS = (
    PublicList(
        name="Baseline_training.csv",
        what="DES positions, training, both classes, without labels",
        rows=30_000,
        columns=3,
        column_names=_POSITIONS,
        size_bytes=915_465,
        blob_id="c27071e2299d05484d3bcfc7a9be286ba934bc77",
    ),
    PublicList(
        name="Baseline_validation.csv",
        what="DES positions, validation",
        rows=5_000,
        columns=3,
        column_names=_POSITIONS,
        size_bytes=148_112,
        blob_id="3fbc07c2d5d69b2a754bfd915ccd5352a5030b72",
    ),
    PublicList(
        name="Baseline_test.csv",
        what="DES positions, test",
        rows=5_000,
        columns=3,
        column_names=_POSITIONS,
        size_bytes=148_343,
        blob_id="7ca3d1fe58c8ce20759fbe7a086f927cee03e6d5",
    ),
    PublicList(
        name="random_LSBGs_all.csv",
        what="DES LSBGs with SExtractor features",
        rows=20_000,
        columns=24,
        blob_id="9585426dc288fb72a32d303e67495ccb4fd9eb99",
    ),
    PublicList(
        name="random_negative_all_1.csv",
        what="DES artifacts of type 1 with SExtractor features",
        rows=20_000,
        columns=24,
        blob_id="76e7a257326004f77a6dc93ffcfe7e77707e5e6d",
    ),
    PublicList(
        name="random_negative_all_2.csv",
        what="DES artifacts of type 2 with SExtractor features",
        rows=20_000,
        columns=24,
        blob_id="6c33c21c6386bc613d9960a77914c93a82fd65f0",
    ),
    PublicList(
        name="hsc_LSBGs.dat",
        what="LSBGs in HSC with Sersic features (Greco et al. 2018)",
        rows=781,
        columns=18,
        column_names=_GRECO,
        header=False,
        size_bytes=82_005,
        blob_id="3a3048c7e5cfc3996678a38b72d9b1004f1927e2",
    ),
    PublicList(
        name="hsc_artifacts.csv",
        what="artifacts in HSC with Sersic features",
        rows=641,
        columns=12,
        column_names=_ARTIFACTS,
        size_bytes=102_357,
        blob_id="b7c8c8311e4b3467903f23904bfafbe30bc779d1",
    ),
)


def blob_id(data: bytes) -> str:
    """Git's identifier of a file's content: sha1 of ``b"blob <size>\\0"`` and the content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def manifest(lists: Sequence[PublicList] = PUBLIC_LISTS) -> dict[str, Any]:
    """All of it, as `Datasets/manifest.json` holds it."""
    files = [{**asdict(entry), "url": f"{URL}/{entry.name}", "licence": LICENCE} for entry in lists]
    return {"repository": f"https://github.com/{REPOSITORY}", "commit": COMMIT, "licence": LICENCE, "files": files}


def count_table(data: bytes, entry: PublicList) -> tuple[int, int]:
    """Rows and columns found in the text of a list."""
    lines = data.decode("utf-8", errors="replace").splitlines()
    lines = [line for line in lines if line.strip()]
    first = lines[0] if lines else ""
    return len(lines) - entry.header, len(first.split(",")) if entry.header else len(first.split())
