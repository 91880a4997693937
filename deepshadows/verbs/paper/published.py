"""What the paper published: every number that ours stand beside (DOMAIN: arXiv:2011.12437). Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Published:
    """A published value and its range: a 95 % bootstrap interval, or smallest and largest over the seeds."""

    value: float | int | None
    low: float | None = None
    high: float | None = None


NOTHING = Published(None)

Measures = Mapping[str, Published]


def _values(
    accuracy: float | None = None,
    completeness: float | None = None,
    purity: float | None = None,
    auc: float | None = None,
    counts: tuple[int, int, int, int] | None = None,
) -> dict[str, Published]:
    """`counts` are tn, fp, fn, tp."""
    given = {"accuracy": accuracy, "completeness": completeness, "purity": purity, "auc": auc}
    found = {name: Published(value) for name, value in given.items() if value is not None}
    return found | {name: Published(count) for name, count in zip(("tn", "fp", "fn", "tp"), counts or (), strict=False)}


PUBLISHED: Mapping[tuple[str, str], Measures] = MappingProxyType(
    {
        ("baselines", "SVM"): _values(0.819, 0.867, 0.796, 0.894),
        ("baselines", "random forest"): _values(0.797, 0.804, 0.797, 0.872),
        ("baselines", "CNN"): _values(counts=(2196, 258, 142, 2404))
        | {
            "accuracy": Published(0.920, 0.912, 0.928),
            "completeness": Published(0.944, 0.935, 0.953),
            "purity": Published(0.903, 0.891, 0.914),
            "auc": Published(0.974, 0.970, 0.974),
        },
        ("splits", "all seeds"): {
            "accuracy": Published(0.9154, 0.912, 0.920),
            "auc": Published(None, 0.967, 0.972),
        },
        ("label_noise", "right labels"): _values(0.920, auc=0.974),
        ("label_noise", "uniform 1 %"): _values(0.918, auc=0.975),
        ("label_noise", "uniform 5 %"): _values(0.914, auc=0.970),
        ("label_noise", "uniform 10 %"): _values(0.909, auc=0.970),
        ("label_noise", "uniform 33 %"): _values(0.883, auc=0.950),
        ("label_noise", "LSBG to artifact 1 %"): _values(0.910),
        ("label_noise", "LSBG to artifact 5 %"): _values(0.915),
        ("label_noise", "LSBG to artifact 10 %"): _values(0.915),
        ("label_noise", "artifact to LSBG 1 %"): _values(0.916),
        ("label_noise", "artifact to LSBG 5 %"): _values(0.909),
        ("label_noise", "artifact to LSBG 10 %"): _values(0.892),
        ("transfer", "before"): _values(0.821, 0.786, 0.849, 0.902, counts=(405, 68, 104, 383)),
        ("transfer", "after, 320 examples"): _values(0.876, 0.932, 0.841, 0.936, counts=(387, 86, 33, 454))
        | {"accuracy": Published(0.876, 0.856, 0.896), "auc": Published(0.936, 0.921, 0.951)},
        ("three_classes", "three classes"): _values(0.882),
        ("three_classes", "reduced to two"): _values(completeness=0.968, purity=0.871),
    }
)
"""By experiment and row, then by measure."""

THREE_CLASS_CONFUSION = ((2107, 284, 11), (165, 2101, 345), (1, 77, 2409))
"""Rows: true artifact-1, artifact-2, LSBG; columns: what was predicted."""


def published(experiment: str, row: str, measure: str) -> Published:
    """`NOTHING` where the paper gives no such number."""
    return PUBLISHED.get((experiment, row), {}).get(measure, NOTHING)
