"""The paper's numbers beside ours, for the README, from what `deepshadows experiments --scale paper` left.

    python -m tests.benchmarks.paper_table [--keep OUTPUT/experiments.json] [--readme]

`--keep` puts those numbers into paper.json, without the addresses that they were read from; `--readme` puts the table
into the README.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepshadows.verbs.paper.findings import MEASURES
from tests.readme_tables import README, with_table

COMMAND = "python -m tests.benchmarks.paper_table --readme"
PAPER = Path(__file__).with_name("paper.json")
Record = Mapping[str, Any]


def kept(record: Record) -> Record:
    """All numbers, none of the places; the full protocol alone."""
    if record["scale"] != "paper":
        raise ValueError(f"these numbers are of --scale {record['scale']}, not of the full protocol")
    return {name: value for name, value in record.items() if name != "settings"}


def table(record: Record) -> list[str]:
    """Markdown: a row of each model or setting; ours with its interval, then the paper's in brackets."""
    lines = ["| experiment | trained on | " + " | ".join(MEASURES) + " |", "|---" * (2 + len(MEASURES)) + "|"]
    for name, section in record["experiments"].items():
        for row in (row for told in section["tables"] for row in told["rows"]):
            numbers = {number["measure"]: number for number in row["numbers"]}
            cells = [_cell(numbers[measure]) for measure in MEASURES]
            what = f"{name.replace('_', ' ')}: {row['name']}"
            lines.append(f"| {what} | {row['n_train']:,} | " + " | ".join(cells) + " |")
    return lines


def _cell(number: Record) -> str:
    if number["ours"] is None:
        return "–"
    interval = "" if number["low"] is None else f" ({number['low']:.3f}–{number['high']:.3f})"
    paper = "" if number["paper"] is None else f" [{number['paper']:.3f}]"
    return f"{number['ours']:.3f}{interval}{paper}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--readme", action="store_true")
    wanted = parser.parse_args()
    if wanted.keep:
        PAPER.write_text(json.dumps(kept(json.loads(wanted.keep.read_text())), indent=1) + "\n")
    lines = table(json.loads(PAPER.read_text()))
    print("\n".join(lines))
    if wanted.readme:
        README.write_text(with_table(README.read_text(), COMMAND, lines))


if __name__ == "__main__":
    main()
