"""What the benchmarks found: each replaces its own section of RESULTS.md and figures.json and leaves others alone.

RESULTS.md is for people, figures.json for the scripts that compute with measured rates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
FIGURES = Path(__file__).with_name("figures.json")


def write_section(title: str, lines: Sequence[str], path: Path = RESULTS) -> None:
    """Replace the section `## title`, up to the next heading of its kind, or append it."""
    section = "\n".join([f"## {title}", "", *lines]).rstrip()
    text = path.read_text() if path.exists() else "# Benchmark results\n"
    begin, *end = re.split(rf"(?ms)^## {re.escape(title)}\n.*?(?=^## |\Z)", text, maxsplit=1)
    path.write_text("\n\n".join(part.strip() for part in (begin, section, *end) if part.strip()) + "\n")


def write_figures(name: str, figures: Mapping[str, Any], path: Path = FIGURES) -> None:
    """Replace what benchmark `name` measured; a figure's name ends in its unit, and `machine` says where."""
    every = read_figures(path)
    every[name] = dict(figures)
    path.write_text(json.dumps(every, indent=1, sort_keys=True) + "\n")


def read_figures(path: Path = FIGURES) -> dict[str, dict[str, Any]]:
    """What all benchmarks measured, by their names."""
    every: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return every
