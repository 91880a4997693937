"""What came of the fault tests, as a table: `python -m tests.faults.table FAULTS.xml [MORE.xml] [--readme]`.

Reads JUnit files of `pytest -n 0 -m faults --junitxml FAULTS.xml`. With `--readme`, puts the table into the
README.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.readme_tables import README, with_table

COMMAND = "python -m tests.faults.table FAULTS.xml --readme"


@dataclass
class Row:
    """Trials of one fault."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    skipped: str = ""
    longest_s: float = 0.0


def rows_of(files: list[Path]) -> dict[str, Row]:
    """By fault, in the order of the tests; one that is in several files counts as it ended in the last."""
    rows: dict[str, Row] = {}
    found = (case for file in files for case in ElementTree.parse(file).iter("testcase"))
    for case in {(case.get("classname"), case.get("name")): case for case in found}.values():
        properties = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
        if "fault" not in properties:
            continue
        row = rows.setdefault(properties.pop("fault"), Row())
        row.failed += case.find("failure") is not None or case.find("error") is not None
        if (skipped := case.find("skipped")) is not None:
            row.skipped = skipped.get("message", "")
        row.longest_s = max(row.longest_s, float(case.get("time", "0")))
        for name, times in properties.items():
            row.outcomes[name.removeprefix("outcome: ")] += int(times)
    return rows


def table_of(rows: dict[str, Row]) -> list[str]:
    """Markdown: fault, trials, outcome, seconds of the longest test."""
    lines = ["| fault | trials | what came of it | longest test, s |", "|---|---|---|---|"]
    for fault, row in rows.items():
        several = len(row.outcomes) > 1
        told = [f"{times} × {outcome}" if several else outcome for outcome, times in row.outcomes.items()]
        told += [f"**{row.failed} failed**"] if row.failed else []
        told += [f"skipped: {row.skipped}"] if row.skipped else []
        lines.append(f"| {fault} | {row.outcomes.total()} | {'; '.join(told)} | {row.longest_s:.0f} |")
    trials = sum(row.outcomes.total() for row in rows.values())
    failed = sum(row.failed for row in rows.values())
    return [*lines, "", f"{trials} trials of {len(rows)} faults; {failed} tests failed."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--readme", action="store_true")
    wanted = parser.parse_args()
    lines = table_of(rows_of(wanted.files))
    print("\n".join(lines))
    if wanted.readme:
        README.write_text(with_table(README.read_text(), COMMAND, lines))


if __name__ == "__main__":
    main()
