"""The labelled samples of the experiments: read or simulated, freed of duplicates, split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from deepshadows import schema, storage
from deepshadows.model.baselines import Features, features_of
from deepshadows.model.split import groups, hold_out, same_position, sky_blocks
from deepshadows.outcomes import InputError
from deepshadows.sky.detections import read_table
from deepshadows.sky.matching import ARTIFACT, LSBG
from deepshadows.sky.shards import Cutouts, read_shards
from deepshadows.verbs.simulate_cutouts import FEATURES
from deepshadows.verbs.training_set import FEWEST_ROWS, labels_of

Rows = NDArray[np.intp]
Split = Literal["sky", "random"]

TEST_SHARE = VALIDATION_SHARE = 0.125
"""The paper's 30,000 / 5,000 / 5,000."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Labelled cut-outs of one survey.

    Attributes
    ----------
    images : uint8 (N, 64, 64, 3)
    labels : int8 (N,)
        1 low-surface-brightness galaxy, 0 artifact.
    blocks : int64 (N,)
        Rows of one block of sky share a number; those without a position, of one object.
    features : Features, optional
        Row by row.
    notes : tuple of str
        What was left out, and why.
    """

    name: str
    origin: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int8]
    blocks: NDArray[np.int64]
    features: Features | None
    fov_arcsec: float
    stretch: str
    bands: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the pixels; labels and rows belong to each training."""
        return hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()

    def rows_of(self, label: int) -> Rows:
        return np.flatnonzero(self.labels == label)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Row numbers of a split; no row is in two."""

    train: Rows
    validation: Rows
    test: Rows


def read_sample(url: str, name: str, *, most: int, split: Split, seed: int, origin: str) -> Sample:
    """Labelled shards below `url`, with the features that lie beside them, at most `most` rows of a class.

    With the split by sky, rows of one position are reduced to the first; the paper's split keeps them.

    Raises
    ------
    InputError
        There are no labels, too few rows, one class only, or features that lack some of the objects.
    """
    cutouts = read_shards(url)
    labels = labels_of(cutouts, url)
    fatal = schema.is_fatal(cutouts.flags)
    notes = []
    usable = np.flatnonzero(~fatal & (labels >= 0))
    if lost := len(labels) - len(usable):
        notes.append(f"{lost} rows have no label or a fatal flag and are left out")
    if split == "sky":
        first = _first_of_position(cutouts, usable)
        if twice := len(usable) - len(first):
            notes.append(f"{twice} rows repeat a position (within 1 arcsec) and are left out")
        usable = first
    rows = _at_most(labels, usable, most, seed)
    if len(rows) < len(usable):
        notes.append(f"{len(rows)} of {len(usable)} rows drawn at random (seed {seed}), at most {most} of a class")
    for label, what in ((ARTIFACT, "artifacts"), (LSBG, "LSBGs")):
        if (count := int(np.count_nonzero(labels[rows] == label))) < FEWEST_ROWS:
            raise InputError(f"{url}: {count} {what}; the experiments need at least {FEWEST_ROWS} of each class")
    chosen = cutouts.take(rows)
    features = read_features(url, chosen)
    if features is not None and features.note:
        notes.append(features.note)
    return Sample(
        name=name,
        origin=origin,
        images=chosen.images,
        labels=labels[rows],
        blocks=groups(chosen.ra, chosen.dec, chosen.object_id, sky_blocks),
        features=features,
        fov_arcsec=chosen.fov_arcsec,
        stretch=chosen.stretch,
        bands=chosen.bands,
        notes=tuple(notes),
    )


def _first_of_position(cutouts: Cutouts, rows: Rows) -> Rows:
    """The first of the rows of one arcsecond; rows without a position are one each by their id."""
    of_them = cutouts.take(rows)
    places = groups(of_them.ra, of_them.dec, of_them.object_id, same_position)
    _, first = np.unique(places, return_index=True)
    return rows[np.sort(first)]


def _at_most(labels: NDArray[np.int8], rows: Rows, most: int, seed: int) -> Rows:
    """A random choice of the rows with at most `most` of each class, in their order."""
    rng = np.random.default_rng(seed)
    parts = [rows[labels[rows] == label] for label in (ARTIFACT, LSBG)]
    return np.sort(
        np.concatenate([part if len(part) <= most else rng.choice(part, most, replace=False) for part in parts])
    )


def read_features(url: str, cutouts: Cutouts) -> Features | None:
    """Features of these cut-outs from `_features.parquet` beside the shards; None where there is no such file."""
    address = storage.join(url, FEATURES)
    if not storage.exists(address):
        return None
    table = read_table(address)
    if "object_id" not in table.column_names:
        raise InputError(f"{address}: no column object_id; it has {', '.join(table.column_names)}")
    place = pc.index_in(cutouts.object_id, value_set=table["object_id"].combine_chunks().cast(cutouts.object_id.type))
    if place.null_count:
        raise InputError(
            f"{address}: {place.null_count} of {len(cutouts)} cut-outs have no row here; the file belongs to other "
            "shards: make both again with `deepshadows simulate --cutouts`, or remove it to go without features"
        )
    return features_of(table.take(place))


def split_sample(sample: Sample, split: Split, seed: int) -> Parts:
    """Training, validation and test rows, 6 : 1 : 1.

    By whole blocks of sky; or `random`, the paper's own: scikit-learn's train_test_split of 0.25, then 0.5 with the
    same seed, the first half of which we take as the validation rows.

    Raises
    ------
    InputError
        A part lacks a class.
    """
    every = np.arange(len(sample))
    if split == "random":
        train, held = train_test_split(every, test_size=0.25, random_state=seed)
        validation, test = train_test_split(held, test_size=0.5, random_state=seed)
    else:
        in_test = hold_out(sample.blocks, TEST_SHARE, seed)
        rest = every[~in_test]
        in_validation = hold_out(sample.blocks[rest], VALIDATION_SHARE / (1 - TEST_SHARE), seed)
        train, validation, test = rest[~in_validation], rest[in_validation], every[in_test]
    parts = Parts(train=np.sort(train), validation=np.sort(validation), test=np.sort(test))
    for what, rows in (("training", parts.train), ("validation", parts.validation), ("test", parts.test)):
        check_both(sample.labels[rows], f"{sample.origin}: the {what} part of the split ({split}, seed {seed})")
    return parts


def check_both(labels: NDArray[np.int8], where: str) -> None:
    """An `InputError` where a class is missing."""
    if len(np.unique(labels)) < 2:
        raise InputError(f"{where}, {len(labels)} rows, lacks a class; give more cut-outs, or --split random")


def without(parts: Parts, left_out: NDArray[np.bool_]) -> Parts:
    """The parts less the rows marked in `left_out` (N,)."""
    return Parts(**{name: rows[~left_out[rows]] for name, rows in vars(parts).items()})
