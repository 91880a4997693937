"""The objects that `fetch cutouts` gets images of: identifiers, positions, labels, and which cannot be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError, UsageError
from deepshadows.settings import Fetch
from deepshadows.sky.detections import Positions, check_columns, read_table
from deepshadows.sky.shards import object_ids, positions


@dataclass(frozen=True, kw_only=True)
class Objects(Positions):
    """What images are wanted of.

    Attributes
    ----------
    label : int8 (N,), optional
        -1 where the input has none.
    reasons : dict
        Why a row cannot be asked for, by row.
    """

    label: NDArray[np.int8] | None
    reasons: dict[int, str]


def read_objects(settings: Fetch) -> Objects:
    """The positions; where the table has no identifiers, they are made of the positions.

    Raises
    ------
    InputError
        There are no rows, no positions, or labels that are not small whole numbers.
    UsageError
        There are labels in the table and one in the settings.
    """
    assert settings.positions is not None
    url = storage.normalise(settings.positions)
    table = read_table(url, settings.id_column)
    needed = [settings.ra_column, settings.dec_column]
    if "id_column" in settings.model_fields_set:
        needed.append(settings.id_column)
    check_columns(table, url, needed)
    if not table.num_rows:
        raise InputError(f"{url}: the table has no rows; nothing to fetch")
    ra, dec, flags = positions(table, url, settings.ra_column, settings.dec_column)
    if settings.id_column in table.column_names:
        ids = object_ids(table[settings.id_column], url)
    else:
        ids = pa.array([f"{a:.6f}{d:+.6f}" for a, d in zip(ra, dec, strict=True)])
    reasons = {int(row): f"no usable position: ra {ra[row]}, dec {dec[row]}" for row in np.flatnonzero(flags)}
    seen: set[Any] = set()
    for row, object_id in enumerate(ids.to_pylist()):
        if object_id in seen:
            reasons.setdefault(row, "an earlier row has this object_id")
        elif row not in reasons:
            seen.add(object_id)
    return Objects(object_id=ids, ra=ra, dec=dec, label=_labels(table, url, settings.label), reasons=reasons)


def _labels(table: pa.Table, url: str, of_all: int | None) -> NDArray[np.int8] | None:
    if "label" not in table.column_names:
        return None if of_all is None else np.full(table.num_rows, of_all, np.int8)
    if of_all is not None:
        raise UsageError(f"{url}: the table has labels of its own, in a column label; leave out --label {of_all}")
    try:
        labels = table["label"].cast(pa.int8()).fill_null(-1).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{url}: column label does not hold small whole numbers: {error}") from error
    return np.asarray(labels, dtype=np.int8)
