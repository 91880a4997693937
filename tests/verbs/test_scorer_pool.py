"""Units in the hands of actors: each comes back once, whoever dies; what kills its scorers is given up in the end."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deepshadows.outcomes import Failure
from deepshadows.verbs import scorer_pool
from deepshadows.verbs.scorer_pool import Placement, ScorerPool

pytestmark = pytest.mark.usefixtures("ray_local")

TWO = Placement(scorers=2, cpus=1, gpus=0, threads=1, device="cpu")


class Mortal:
    """Gives a unit back; ends its process at a unit `poison`, or the first time that it sees a unit `once`."""

    def __init__(self, folder: str, broken: bool) -> None:
        if broken:
            raise ValueError("the weights cannot be read")
        self._folder = Path(folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        mark = self._folder / row["unit"]
        first = not mark.exists()
        mark.touch()
        if row["unit"].startswith("poison") or (row["unit"].startswith("once") and first):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"done": row["unit"]}


def names(prefix: str, count: int) -> list[dict[str, Any]]:
    return [{"unit": f"{prefix}-{number}"} for number in range(count)]


def test_each_unit_comes_back_once_although_scorers_die(tmp_path: Path) -> None:
    units = [*names("good", 20), *names("once", 2), *names("fine", 20)]
    found = list(ScorerPool(Mortal, (str(tmp_path), False), TWO).results(units))
    assert Counter(unit["unit"] for unit, _ in found) == Counter(unit["unit"] for unit in units)
    assert all(row == {"done": unit["unit"]} for unit, row in found)


def test_a_unit_of_which_scorers_die_is_given_up_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_pool, "DEATHS_TO_SUSPECT", 1)
    monkeypatch.setattr(scorer_pool, "DEATHS_TO_GIVE_UP", 3)
    units = [*names("good", 5), *names("poison", 1), *names("fine", 5)]
    found = {unit["unit"]: row for unit, row in ScorerPool(Mortal, (str(tmp_path), False), TWO).results(units)}
    assert len(found) == len(units)
    assert [name for name, row in found.items() if row is None] == ["poison-0"]


def test_a_scorer_that_cannot_be_constructed_stops_the_run_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="the weights cannot be read"):
        list(ScorerPool(Mortal, (str(tmp_path), True), TWO).results(names("good", 3)))


def test_nothing_to_do_ends_at_once(tmp_path: Path) -> None:
    assert list(ScorerPool(Mortal, (str(tmp_path), False), TWO).results([])) == []
