"""The README's numbers beside the paper's are those that are committed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.benchmarks.paper_table import COMMAND, PAPER, kept, table
from tests.readme_tables import README, with_table


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(PAPER.read_text())  # type: ignore[no-any-return]


def test_the_readme_shows_the_numbers_that_are_committed(record: dict[str, Any]) -> None:
    text = README.read_text()
    assert with_table(text, COMMAND, table(record)) == text, COMMAND


def test_the_numbers_are_of_the_full_protocol(record: dict[str, Any]) -> None:
    assert record["scale"] == "paper"
    assert {name: record["samples"]["first"][name] for name in ("lsbgs", "artifacts")} == dict.fromkeys(
        ("lsbgs", "artifacts"), 20_000
    )
    assert {"baselines", "transfer", "three_classes"} <= record["experiments"].keys()
    with pytest.raises(ValueError, match="--scale cpu"):
        kept({**record, "scale": "cpu"})


def test_a_number_stands_beside_the_paper_s_and_one_that_is_not_there_is_a_dash(record: dict[str, Any]) -> None:
    number = {"ours": 0.9, "low": 0.85, "high": 0.95, "paper": 0.92}
    numbers = [
        {**number, "measure": "accuracy"},
        {**number, "measure": "completeness", "paper": None},
        {**number, "measure": "purity", "low": None, "high": None},
        {**number, "measure": "auc", "ours": None},
    ]
    row = {"name": "CNN", "n_train": 30_000, "numbers": numbers}
    lines = table({"experiments": {"label_noise": {"tables": [{"rows": [row]}]}}})
    assert lines[2:] == [
        "| label noise: CNN | 30,000 | 0.900 (0.850–0.950) [0.920] | 0.900 (0.850–0.950) | 0.900 [0.920] | – |"
    ]
