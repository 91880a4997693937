"""Labelled cut-outs made ready to train on: checked, split, fingerprinted. Imports no Ray."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows import schema
from deepshadows.model.split import groups, hold_out, same_position, sky_blocks
from deepshadows.model.training import Examples
from deepshadows.outcomes import InputError, UsageError
from deepshadows.settings import Recipe
from deepshadows.sky.shards import Cutouts, read_shards

FEWEST_ROWS = 20
DRAWS = 100
"""Splits that are tried: of few rows or blocks, one part of the first may lack a class."""
REMEDY = "set fov_arcsec and stretch in the recipe"
_HASHED_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Examples, and what is to be remembered about them.

    Attributes
    ----------
    fingerprint : str
        sha256 of images, labels and split.
    left_out : dict
        Rows of the input that are not examples, by reason.
    notes : tuple of str
        What the user should know.
    """

    examples: Examples
    fingerprint: str
    fov_arcsec: float
    stretch: str
    bands: tuple[str, ...]
    left_out: dict[str, int]
    notes: tuple[str, ...]

    @property
    def classes(self) -> dict[str, int]:
        """Rows of each class."""
        lsbgs = int(np.count_nonzero(self.examples.labels))
        return {"artifact": len(self.examples.labels) - lsbgs, "lsbg": lsbgs}


def read_training_set(url: str, recipe: Recipe, remedy: str = REMEDY) -> TrainingSet:
    """Read all shards below `url`; see `prepare`."""
    return prepare(read_shards(url), recipe, url, remedy)


def prepare(cutouts: Cutouts, recipe: Recipe, source: str, remedy: str = REMEDY) -> TrainingSet:
    """Choose the usable rows, check them and hold out some to validate.

    Parameters
    ----------
    source : str
        Where the cut-outs are, for messages.
    remedy : str
        What else than making the cut-outs again helps where their field or stretch are not the recipe's.

    Raises
    ------
    InputError
        There are no labels, unknown ones, one class only, too few rows, or one part of the split lacks a class.
    UsageError
        Field or stretch are not the recipe's.
    """
    if (cutouts.fov_arcsec, cutouts.stretch) != (recipe.fov_arcsec, recipe.stretch):
        raise UsageError(
            f"{source}: cut-outs of {cutouts.fov_arcsec} arcsec with stretch {cutouts.stretch}; recipe {recipe.name} "
            f"is for {recipe.fov_arcsec} arcsec with {recipe.stretch}; make the cut-outs again with "
            f"`deepshadows cutouts`, or {remedy}"
        )
    labels = labels_of(cutouts, source)
    fatal, unlabelled = schema.is_fatal(cutouts.flags), labels < 0
    left_out = schema.count_flags(cutouts.flags[fatal] & schema.FATAL_BITS)
    if count := int(np.count_nonzero(unlabelled & ~fatal)):
        left_out["UNLABELLED"] = count
    rows = np.flatnonzero(~fatal & ~unlabelled)
    labels = labels[rows]
    _check_enough(labels, source)
    together, notes = _groups(cutouts, rows, recipe)
    validation = _held_out(together, labels, recipe, source)
    images = cutouts.images if len(rows) == len(cutouts.images) else cutouts.images[rows]
    examples = Examples(images=images, labels=labels, validation=validation)
    return TrainingSet(
        examples=examples,
        fingerprint=_fingerprint(examples),
        fov_arcsec=cutouts.fov_arcsec,
        stretch=cutouts.stretch,
        bands=cutouts.bands,
        left_out=left_out,
        notes=notes,
    )


def labels_of(cutouts: Cutouts, source: str) -> NDArray[np.int8]:
    """Labels 1, 0 and -1 (none), shape (N,); an `InputError` where there are no or unknown ones."""
    if cutouts.label is None or (cutouts.label < 0).all():
        raise InputError(f"{source}: the cut-outs have no labels; add them with `deepshadows cutouts --truth F`")
    unknown = np.unique(cutouts.label[~np.isin(cutouts.label, (-1, 0, 1))])
    if len(unknown):
        raise InputError(f"{source}: unknown labels {unknown.tolist()}; 1 is an LSBG, 0 an artifact")
    return cutouts.label


def _check_enough(labels: NDArray[np.int8], source: str) -> None:
    if len(labels) < FEWEST_ROWS:
        raise InputError(f"{source}: {len(labels)} usable labelled cut-outs; at least {FEWEST_ROWS} are needed")
    for value, name in ((0, "artifact (label 0)"), (1, "LSBG (label 1)")):
        if not (labels == value).any():
            raise InputError(f"{source}: no cut-out is an {name}; both classes are needed to train")


def _groups(cutouts: Cutouts, rows: NDArray[np.intp], recipe: Recipe) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Rows that must stay on one side of the split share a number."""
    ra, dec, by_sky = cutouts.ra[rows], cutouts.dec[rows], recipe.split == "sky"
    found = groups(ra, dec, cutouts.object_id.take(pa.array(rows)), sky_blocks if by_sky else same_position)
    if not (elsewhere := int(np.count_nonzero(~(np.isfinite(ra) & np.isfinite(dec))))):
        return found, ()
    means = "split by object_id, not by sky" if by_sky else "kept together by object_id, not by position"
    return found, (f"{elsewhere} cut-outs have no position: {means}",)


def _held_out(together: NDArray[np.int64], labels: NDArray[np.int8], recipe: Recipe, source: str) -> NDArray[np.bool_]:
    """Rows to validate on; both parts of the split have both classes."""
    for draw in range(DRAWS):
        validation = hold_out(together, recipe.validation_fraction, recipe.seed + draw)
        lacking = [part for part in (validation, ~validation) if len(np.unique(labels[part])) < 2]
        if not lacking:
            return validation
    name = "validation" if lacking[0] is validation else "training"
    raise InputError(
        f"{source}: the {name} part of the split ({recipe.split}, {np.count_nonzero(lacking[0])} rows) lacks a class, "
        f'however it is drawn; set split = "random" or another validation_fraction in the recipe, or give more cut-outs'
    )


def _fingerprint(examples: Examples) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(examples.images), _HASHED_AT_ONCE):
        digest.update(examples.images[start : start + _HASHED_AT_ONCE].tobytes())
    digest.update(examples.labels.tobytes())
    digest.update(examples.validation.tobytes())
    return digest.hexdigest()
