"""The two public lists of features in HSC as one labelled table. Bytes in, bytes out: no I/O, no Ray, no torch."""

from __future__ import annotations

import csv
import io

from deepshadows.outcomes import InputError
from deepshadows.sky.public_lists import PUBLIC_LISTS

LSBGS, ARTIFACTS = "hsc_LSBGs.dat", "hsc_artifacts.csv"
_NAMES = {entry.name: entry.column_names or () for entry in PUBLIC_LISTS}
_NUMBER = "number"
"""Of an LSBG in its list; artifacts have none."""


def labelled_features(lsbgs: bytes, artifacts: bytes) -> bytes:
    """A CSV file of the columns that both lists have, then `label` and `greco_id`; values stay as they are written.

    Parameters
    ----------
    lsbgs : bytes
        `hsc_LSBGs.dat`: no header line, columns between blanks; label 1.
    artifacts : bytes
        `hsc_artifacts.csv`; label 0.

    Raises
    ------
    InputError
        A list has other columns than the published one.
    """
    shared = _NAMES[ARTIFACTS]
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([*shared, "label", "greco_id"])
    for values in _rows(LSBGS, [line.split() for line in lsbgs.decode().splitlines()]):
        writer.writerow([*(values[name] for name in shared), "1", values[_NUMBER]])
    header, *lines = csv.reader(artifacts.decode().splitlines())
    if tuple(header) != shared:
        raise InputError(f"{ARTIFACTS}: its columns are {', '.join(header)}, not {', '.join(shared)}")
    for values in _rows(ARTIFACTS, lines):
        writer.writerow([*values.values(), "0", ""])
    return sink.getvalue().encode()


def _rows(name: str, lines: list[list[str]]) -> list[dict[str, str]]:
    """Values by column; empty lines are passed over."""
    columns = _NAMES[name]
    if wrong := [number for number, line in enumerate(lines, 1) if line and len(line) != len(columns)]:
        raise InputError(f"{name}: row {wrong[0]} has {len(lines[wrong[0] - 1])} values, not {len(columns)}")
    return [dict(zip(columns, line, strict=True)) for line in lines if line]
