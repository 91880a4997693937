"""A table of measurements as `detect` writes it, small enough to make in a test: LSBGs are fainter and rounder."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def measured(count: int, seed: int = 1) -> tuple[pa.Table, NDArray[np.int8]]:
    """Columns of `count` objects and their labels; every second one is an LSBG, as in `blobs`."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int8)
    axis = rng.uniform(6, 12, count)
    mag = rng.normal(20, 0.5, count)
    columns = {
        "object_id": np.arange(count),
        "label": labels,
        "kind": np.where(labels == 1, "lsbg", "star"),
        "a_image": axis,
        "b_image": axis * np.clip(rng.normal(0.6 + 0.2 * labels, 0.08, count), 0.2, 1),
    }
    for number, band in enumerate("gri"):
        columns[f"mag_auto_{band}"] = mag - 0.25 * number + rng.normal(0, 0.1, count)
        columns[f"flux_radius_{band}"] = rng.normal(14, 2, count)
        for what in ("mean", "max", "eff"):
            columns[f"mu_{what}_model_{band}"] = rng.normal(24.5 + 0.5 * labels, 0.4, count)
    arrays = {
        name: pa.array(value.astype(np.float32) if value.dtype == np.float64 else value)
        for name, value in columns.items()
    }
    return pa.table(arrays), labels
