"""Classifiers on measured features: the SVM and the random forest of the paper. scikit-learn; no torch, no Ray.

The 16 features of arXiv:2011.12437 are made from detection columns as `sky.extraction` names them. A value that could
not be measured is refused, or counted and replaced by the training median; it is never replaced silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from deepshadows.outcomes import InputError

F64 = NDArray[np.float64]
Kind = Literal["svm", "random_forest"]

GRID_FOLDS = 5
BANDS = ("g", "r", "i")
_COLOURS = (("g", "i"), ("g", "r"), ("r", "i"))
FEATURES = (
    "ellipticity",
    *(f"mag_auto_{band}" for band in BANDS),
    *(f"{blue}-{red}" for blue, red in _COLOURS),
    *(f"mu_{what}_model_{band}" for what in ("mean", "max", "eff") for band in BANDS),
)
"""The paper's 16: ellipticity, magnitudes, colours, and mean, central and effective surface brightness in g, r, i."""
_MADE_FROM: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"ellipticity": ("a_image", "b_image")}
    | {f"{blue}-{red}": (f"mag_auto_{blue}", f"mag_auto_{red}") for blue, red in _COLOURS}
)

PAPER_PARAMETERS: Mapping[Kind, Mapping[str, Any]] = MappingProxyType(
    {
        "svm": {"svc__C": 1e4, "svc__gamma": 1e-3},
        "random_forest": {
            "randomforestclassifier__n_estimators": 100,
            "randomforestclassifier__min_samples_split": 10,
        },
    }
)
GRIDS: Mapping[Kind, tuple[Mapping[str, list[Any]], ...]] = MappingProxyType(
    {
        "svm": (
            {"svc__C": [1.0, 10.0, 100.0], "svc__gamma": [0.03, 0.1, 0.3]},
            {"svc__C": [1e3], "svc__gamma": [1e-3, 1e-2]},
            {"svc__C": [1e4], "svc__gamma": [1e-3]},
        ),
        "random_forest": (
            {
                "randomforestclassifier__n_estimators": [100],
                "randomforestclassifier__min_samples_split": [2, 10, 30],
            },
        ),
    }
)
"""The values that the paper's own search chose (`PAPER_PARAMETERS`), and others. The SVM's lie along the ridge where C
times gamma is about 10; off it, a large C with a large gamma costs minutes and gains nothing on real features."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """A feature matrix.

    Attributes
    ----------
    values : float64 (N, F)
        NaN where a value was not measured.
    names : tuple of str
        Of the F columns.
    missing : dict
        Values not measured, by feature; only those that lack any.
    """

    values: F64
    names: tuple[str, ...]
    missing: dict[str, int]

    @property
    def note(self) -> str | None:
        """What was missing, for people."""
        if not self.missing:
            return None
        counts = ", ".join(f"{count} {name}" for name, count in self.missing.items())
        return f"not measured, replaced by the median of the training rows: {counts} (of {len(self.values)} rows)"


def features_of(table: pa.Table, names: tuple[str, ...] = FEATURES) -> Features:
    """Features from a table of measurements.

    Parameters
    ----------
    table : pa.Table
        Columns by name in any case; ellipticity is made from a_image and b_image, colours from magnitudes, where the
        table has no column of that name. NaN, infinite and null values become NaN and are counted in
        `Features.missing`; the classifiers replace them by the median of their training rows.

    Raises
    ------
    InputError
        A column is missing or not numeric, or a feature has no value at all.
    """
    columns = {name.lower(): name for name in table.column_names}
    needed = [source for name in names for source in ((name,) if name in columns else _MADE_FROM.get(name, (name,)))]
    if absent := sorted({source for source in needed if source not in columns}):
        raise InputError(
            f"the features need the columns {', '.join(absent)}; the table has {', '.join(table.column_names)}"
        )
    values = np.stack([_feature(table, columns, name) for name in names], axis=1)
    values[~np.isfinite(values)] = np.nan
    counts = np.count_nonzero(np.isnan(values), axis=0)
    lost = {name: int(count) for name, count in zip(names, counts, strict=True) if count}
    if empty := [name for name, count in lost.items() if count == len(values)]:
        raise InputError(f"no row has a value of {', '.join(empty)}; leave the feature out or measure it")
    return Features(values=values, names=names, missing=lost)


def _feature(table: pa.Table, columns: Mapping[str, str], name: str) -> F64:
    if name in columns:
        return _numbers(table, columns[name])
    first, second = (_numbers(table, columns[source]) for source in _MADE_FROM[name])
    if name != "ellipticity":
        return first - second
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 - second / first)


def _numbers(table: pa.Table, name: str) -> F64:
    try:
        return np.array(table[name].cast(pa.float64()).fill_null(np.nan).to_numpy(), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"column {name} is {table[name].type}; features are numbers") from error


def classifier(kind: Kind, seed: int = 1) -> Pipeline:
    """Untrained, with the paper's parameters: medians for what is missing, standardised, then the model."""
    models = {"svm": SVC(kernel="rbf", cache_size=1_000), "random_forest": RandomForestClassifier(random_state=seed)}
    impute = SimpleImputer(strategy="median", keep_empty_features=True)
    return make_pipeline(impute, StandardScaler(), models[kind]).set_params(**PAPER_PARAMETERS[kind])


def stratified(labels: NDArray[np.int8], folds: int, seed: int) -> StratifiedKFold:
    """Folds with the classes in their shares; an `InputError` where a class has fewer rows than there are folds."""
    fewest = min(np.count_nonzero(labels == 0), np.count_nonzero(labels == 1))
    if fewest < folds:
        raise InputError(f"a class has {fewest} rows; {folds} folds need at least {folds} of each")
    return StratifiedKFold(folds, shuffle=True, random_state=seed)


def search(kind: Kind, values: F64, labels: NDArray[np.int8], *, seed: int = 1) -> GridSearchCV:
    """The best parameters of `GRIDS` by the area under the ROC curve, refitted on all rows given.

    Raises
    ------
    InputError
        A class has fewer rows than there are folds.
    """
    splits = stratified(labels, GRID_FOLDS, seed)
    grid = [dict(part) for part in GRIDS[kind]]
    return GridSearchCV(classifier(kind, seed), grid, cv=splits, scoring="roc_auc").fit(values, labels)


def probabilities(model: Any, values: F64) -> F64:
    """Scores in [0, 1], shape (N,), 0.5 at the decision; of an SVM the logistic function of its decision value."""
    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(values)[:, 1], dtype=np.float64)
    return np.asarray(expit(model.decision_function(values)), dtype=np.float64)


def trained(kind: Kind, values: F64, labels: NDArray[np.int8], parameters: Mapping[str, Any], seed: int = 1) -> Any:
    """The classifier with these parameters, fitted."""
    return classifier(kind, seed).set_params(**parameters).fit(values, labels)
