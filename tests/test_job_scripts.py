"""`jobs/`: one thin script a verb, which is the verb, and the recipes by name."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from deepshadows.cli import VERBS

JOBS = Path(__file__).parents[1] / "jobs"
HERE_ONLY = {"quickstart", "status", "select", "versions"}
"""Verbs for one's own screen: nothing of them is a cluster's work."""


def test_every_verb_that_works_on_a_cluster_has_a_script() -> None:
    assert {path.stem for path in JOBS.glob("*.py")} == set(VERBS) - HERE_ONLY


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_is_its_verb(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    runpy.run_path(str(path), run_name="__main__")
    assert f"Usage: deepshadows {path.stem} " in capsys.readouterr().out
    assert len(path.read_text().splitlines()) < 10
