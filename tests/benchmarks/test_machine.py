"""The line that names the machine of a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.bench_classify import machine

EPYC = """processor\t: 0
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
stepping\t: 1

processor\t: 1
cpu family\t: 6
model\t\t: 1
"""


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [(EPYC, " x AMD EPYC (family 25, model 17), "), ("model name\t: Neoverse-N1\n", " x Neoverse-N1, ")],
)
def test_family_and_model_are_told_where_there_are_any(tmp_path: Path, cpuinfo: str, expected: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert expected in machine(path)
