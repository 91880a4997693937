"""The DES parent cuts on rows computed by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from deepshadows.outcomes import InputError
from deepshadows.sky.cuts import DES_CUTS, add_counts, des_cuts

GOOD = {
    "spread_model_i": 0.02,
    "spreaderr_model_i": 0.001,
    "flux_radius_g": 12.0,  # 3.16"
    "mu_mean_model_g": 25.0,
    "a_image": 10.0,
    "b_image": 6.0,
    "mag_auto_g": 20.5,
    "mag_auto_r": 20.15,
    "mag_auto_i": 20.0,
}


def table(*changes: dict[str, float]) -> pa.Table:
    rows = [GOOD | change for change in changes]
    return pa.table({name: pa.array([row[name] for row in rows], pa.float32()) for name in GOOD})


@pytest.mark.parametrize(
    ("change", "cut"),
    [
        ({"spread_model_i": 0.005, "spreaderr_model_i": 0.0011}, 0),  # 0.00683
        ({"flux_radius_g": 9.49}, 1),  # 2.496"
        ({"flux_radius_g": 76.1}, 1),  # 20.01"
        ({"mu_mean_model_g": 24.29}, 2),
        ({"mu_mean_model_g": 28.01}, 2),
        ({"b_image": 2.99}, 3),  # 0.701
        ({"mag_auto_i": 20.61, "mag_auto_r": 20.5}, 4),  # g-i = -0.11
        ({"mag_auto_i": 19.09, "mag_auto_r": 19.5}, 4),  # g-i = 1.41
        ({"mag_auto_r": 19.74}, 5),  # g-r = 0.76, 0.7 (g-i) = 0.35
        ({"mag_auto_r": 20.56}, 5),  # g-r = -0.06
    ],
)
def test_each_cut_rejects_alone(change: dict[str, float], cut: int) -> None:
    keep, counts = des_cuts(table({}, change))
    assert keep.tolist() == [True, False]
    assert [count.rejected for count in counts] == [int(number == cut) for number in range(len(DES_CUTS))]
    assert [count.alone for count in counts] == [count.rejected for count in counts]
    assert sum(count.not_measured for count in counts) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"spread_model_i": 0.005, "spreaderr_model_i": 0.0013},  # 0.00717
        {"flux_radius_g": 9.52},  # 2.504"
        {"mu_mean_model_g": 24.31},
        {"b_image": 3.01},
        {"mag_auto_i": 20.59, "mag_auto_r": 20.5},
        {"mag_auto_r": 19.76},
    ],
)
def test_just_inside_passes(change: dict[str, float]) -> None:
    assert des_cuts(table(change))[0].all()


def test_counts_in_sequence_sum_to_all_rejects_and_alone_overlap() -> None:
    bad_twice = {"flux_radius_g": 5.0, "mu_mean_model_g": 23.0}
    keep, counts = des_cuts(table({}, bad_twice, {"mu_mean_model_g": 23.0}))
    assert keep.tolist() == [True, False, False]
    assert [count.rejected for count in counts] == [0, 1, 1, 0, 0, 0]
    assert [count.alone for count in counts] == [0, 1, 2, 0, 0, 0]


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_value_not_measured_is_rejected_and_counted_as_such(name: str) -> None:
    keep, counts = des_cuts(table({}, {name: float("nan")}))
    assert keep.tolist() == [True, False]
    assert sum(count.rejected for count in counts) == 1
    not_measured = {count.name for count in counts if count.not_measured}
    assert not_measured == {cut.name for cut in DES_CUTS if name in cut.columns}


def test_nulls_are_not_measured_either() -> None:
    rows = table({}, {})
    rows = rows.set_column(0, "spread_model_i", pa.array([0.02, None], pa.float32()))
    keep, counts = des_cuts(rows)
    assert keep.tolist() == [True, False]
    assert counts[0].not_measured == 1


def test_counts_add_over_tiles() -> None:
    _, once = des_cuts(table({"flux_radius_g": 5.0}))
    total = add_counts([once, once])
    assert [count.rejected for count in total] == [2 * count.rejected for count in once]
    assert add_counts([]) == ()


def test_an_empty_table_and_a_missing_column() -> None:
    keep, _ = des_cuts(table())
    assert keep.shape == (0,)
    with pytest.raises(InputError, match="spread_model_i"):
        des_cuts(table({}).drop_columns(["spread_model_i"]))


def test_the_pixel_scale_counts() -> None:
    assert not des_cuts(table({}), pixel_scale_arcsec=0.168)[0].any()  # 12 px are 2.0"
    assert np.all(des_cuts(table({"flux_radius_g": 20.0}), pixel_scale_arcsec=0.168)[0])
