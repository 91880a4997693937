"""The writer of results: one section changes, the others do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.results import read_figures, write_figures, write_section


@pytest.mark.parametrize("title", ["Plan", "Scorer (fast)", "Last"])
def test_a_section_is_replaced_where_it_stands(tmp_path: Path, title: str) -> None:
    path = tmp_path / "RESULTS.md"
    for name in ("Plan", "Scorer (fast)", "Last"):
        write_section(name, [f"text of {name}", "", "### below", "more"], path)
    before = path.read_text()
    write_section(title, ["other"], path)
    assert path.read_text() == before.replace(f"text of {title}\n\n### below\nmore", "other")
    assert path.read_text().startswith("# Benchmark results\n\n## Plan\n\n")


def test_figures_of_one_benchmark_replace_its_own(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_figures("a", {"rate_per_s": 1.0, "old": 2}, path)
    write_figures("b", {"rate_per_s": 3.0}, path)
    write_figures("a", {"rate_per_s": 4.0}, path)
    assert read_figures(path) == {"a": {"rate_per_s": 4.0}, "b": {"rate_per_s": 3.0}}
