"""Feature baselines: features made as the paper makes them, nothing missing in silence, classifiers that learn."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepshadows.model import baselines
from deepshadows.model.baselines import FEATURES, GRIDS, PAPER_PARAMETERS, Kind, features_of
from deepshadows.model.metrics import Judged, auc
from deepshadows.outcomes import InputError
from tests.model.measurements import measured

KINDS: tuple[Kind, ...] = ("svm", "random_forest")


def column(table: pa.Table, name: str, values: list[float | None]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.float32()))


def area(scores: np.ndarray, labels: np.ndarray) -> float:
    value = auc(Judged(probabilities=scores, labels=labels))
    assert value is not None
    return value


def test_sixteen_features_as_in_the_paper() -> None:
    table = pa.table(
        {
            "a_image": [8.0],
            "b_image": [6.0],
            **{f"mag_auto_{band}": [value] for band, value in zip("gri", (20.5, 20.25, 20.0), strict=True)},
            **{f"mu_{what}_model_{band}": [25.0] for what in ("mean", "max", "eff") for band in "gri"},
        }
    )
    features = features_of(table)
    found = dict(zip(features.names, features.values[0].tolist(), strict=True))
    assert len(found) == 16
    assert (found["ellipticity"], found["g-i"], found["g-r"], found["r-i"]) == (0.25, 0.5, 0.25, 0.25)
    assert (found["mag_auto_g"], found["mu_eff_model_i"]) == (20.5, 25.0)
    assert features.missing == {}
    assert features.note is None


def test_nineteen_with_the_radii() -> None:
    table, _ = measured(40)
    assert features_of(table, (*FEATURES, *(f"flux_radius_{band}" for band in "gri"))).values.shape == (40, 19)


def test_columns_are_found_in_any_case() -> None:
    table, _ = measured(20)
    shouted = table.rename_columns([name.upper() for name in table.column_names])
    np.testing.assert_array_equal(features_of(shouted).values, features_of(table).values)


def test_a_column_of_the_features_own_name_is_taken() -> None:
    table, _ = measured(20)
    given_colour = table.append_column("g-i", pa.array(np.full(20, 0.125)))
    assert features_of(given_colour, ("g-i",)).values.ravel().tolist() == [0.125] * 20


def test_absent_columns_are_named() -> None:
    table, _ = measured(20)
    with pytest.raises(InputError, match="need the columns b_image, mag_auto_r; the table has object_id"):
        features_of(table.drop_columns(["b_image", "mag_auto_r"]))


def test_a_column_of_text_is_named() -> None:
    table, _ = measured(20)
    place = table.column_names.index("mag_auto_g")
    text = table.set_column(place, "mag_auto_g", pa.array(["bright"] * 20))
    with pytest.raises(InputError, match="column mag_auto_g is string; features are numbers"):
        features_of(text)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_missing_value_is_counted(bad: float | None) -> None:
    table, _ = measured(20)
    holed = column(table, "mag_auto_g", [bad, *table["mag_auto_g"].to_pylist()[1:]])
    features = features_of(holed)
    assert features.missing == {"mag_auto_g": 1, "g-i": 1, "g-r": 1}
    assert np.count_nonzero(np.isnan(features.values)) == 3
    assert features.note is not None
    assert "1 mag_auto_g, 1 g-i, 1 g-r (of 20 rows)" in features.note


def test_a_feature_without_any_value_is_refused() -> None:
    table, _ = measured(20)
    with pytest.raises(InputError, match="no row has a value of mu_eff_model_r"):
        features_of(column(table, "mu_eff_model_r", [None] * 20))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_value_is_scored_as_the_training_median(kind: Kind) -> None:
    table, labels = measured(120)
    values = features_of(table).values
    model = baselines.trained(kind, values[:100], labels[:100], PAPER_PARAMETERS[kind])
    holed, filled = values[100:].copy(), values[100:].copy()
    holed[:, 1] = np.nan
    filled[:, 1] = np.median(values[:100, 1])
    np.testing.assert_allclose(baselines.probabilities(model, holed), baselines.probabilities(model, filled))


@pytest.mark.parametrize("kind", KINDS)
def test_a_searched_classifier_tells_the_classes_apart(kind: Kind) -> None:
    table, labels = measured(400)
    values = features_of(table).values
    found = baselines.search(kind, values[:100], labels[:100])
    chosen = found.best_params_
    assert any(all(chosen[name] in choices for name, choices in part.items()) for part in GRIDS[kind])
    model = baselines.trained(kind, values[:200], labels[:200], found.best_params_)
    scores = baselines.probabilities(model, values[200:])
    assert area(scores, labels[200:]) > 0.9
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_array_equal(scores > 0.5, model.predict(values[200:]) == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_without_a_meaning_are_not_learnt(kind: Kind) -> None:
    table, labels = measured(600)
    values = features_of(table).values
    shuffled = np.random.default_rng(5).permutation(labels)
    model = baselines.trained(kind, values[:300], shuffled[:300], PAPER_PARAMETERS[kind])
    assert abs(area(baselines.probabilities(model, values[300:]), shuffled[300:]) - 0.5) < 0.12


def test_the_same_seed_grows_the_same_forest() -> None:
    table, labels = measured(100)
    values = features_of(table).values
    scores = [
        baselines.probabilities(baselines.trained("random_forest", values, labels, {}, seed), values)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_too_few_rows_for_the_folds_are_told() -> None:
    table, labels = measured(60)
    rows = np.r_[np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:3]]
    with pytest.raises(InputError, match="a class has 3 rows; 5 folds need at least 5"):
        baselines.search("svm", features_of(table).values[rows], labels[rows])


@given(st.lists(st.one_of(st.none(), st.floats(width=32)), max_size=30).map(lambda values: [1.0, *values]))
def test_what_is_missing_is_what_is_not_finite(values: list[float | None]) -> None:
    table = pa.table({"x": pa.array(values, pa.float32())})
    features = features_of(table, ("x",))
    expected = sum(value is None or not np.isfinite(value) for value in values)
    assert features.missing.get("x", 0) == expected == np.count_nonzero(~np.isfinite(features.values))
