"""SVM and random forest on a real table of measured features (Greco et al. 2018), in ten folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.model import baselines
from deepshadows.outcomes import InputError
from deepshadows.sky.detections import read_table
from deepshadows.verbs.paper import figures
from deepshadows.verbs.paper.binary import CLASSIFIERS, spoken
from deepshadows.verbs.paper.findings import MEASURES, Row, Section, Table, judged, numbers
from deepshadows.verbs.paper.folds import out_of_fold
from deepshadows.verbs.paper.study import Study

FEATURES = ("mu_0", "m_tot", "r_e", "n", "ell", "g-i", "g-r")
"""Sersic features that both parts of the table have; positions and extinctions say nothing of the object."""
FOLDS = 10
TARGETS = {"accuracy": 0.87, "auc": 0.945}


def labels_of(table: pa.Table, where: str) -> NDArray[np.int8]:
    """Labels 0 and 1; an `InputError` where there are none or others."""
    if "label" not in table.column_names:
        raise InputError(f"{where}: no column label; it has {', '.join(table.column_names)}")
    try:
        labels = np.array(table["label"].cast(pa.float64()).fill_null(np.nan).to_numpy())
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: labels are {table['label'].type}; 1 is an LSBG, 0 an artifact") from error
    if wrong := int(np.count_nonzero(~np.isin(labels, (0, 1)))):
        raise InputError(f"{where}: {wrong} labels are neither 1 (LSBG) nor 0 (artifact)")
    return labels.astype(np.int8)


def real_features(study: Study) -> Section:
    """Judge both classifiers on rows that neither they nor the choice of their parameters have seen."""
    title = "SVM and random forest on real features"
    if study.features is None:
        return Section(name="real_features", title=title, skipped="no table was given; give one with --features")
    url = storage.normalise(study.features)
    table = read_table(url)
    labels = labels_of(table, url)
    features = baselines.features_of(table, FEATURES)
    found, chosen, rows, total = {}, {}, [], 0.0
    for name, kind in CLASSIFIERS.items():
        scores, parameters, seconds = out_of_fold(
            study.trainer, kind, features.values, labels, folds=FOLDS, seed=study.seed, searched=True
        )
        found[name], chosen[name], total = scores, parameters, total + seconds
        rows.append(
            Row(
                name=name,
                n_train=len(labels) * (FOLDS - 1) // FOLDS,
                n_test=len(labels),
                epochs=None,
                seed=study.seed,
                numbers=numbers("real_features", name, judged(scores, labels), MEASURES, TARGETS),
            )
        )
    return Section(
        name="real_features",
        title=title,
        tables=(Table(title=f"{len(labels)} real objects in {FOLDS} folds", rows=tuple(rows)),),
        pictures=(figures.roc(found, labels, name="real_features_roc", what="real objects"),),
        notes=(
            f"Features {', '.join(FEATURES)} of {storage.name_of(url)}; parameters are searched anew within the "
            "training rows of each fold, so no row has a part in choosing those that it is judged by.",
            *(f"{name}, most often chosen: {_most_often(values)}." for name, values in chosen.items()),
            *([features.note] if features.note else []),
        ),
        details={"targets": TARGETS, "parameters": chosen},
        training_seconds=total,
    )


def _most_often(chosen: list[Mapping[str, Any]]) -> str:
    (words, count), *_ = Counter(map(spoken, chosen)).most_common()
    return f"{words} ({count} of {len(chosen)} folds)"
