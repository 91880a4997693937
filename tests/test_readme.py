"""What the README says of flags is what the code does."""

from __future__ import annotations

from pathlib import Path

from deepshadows.schema import Flag

README = Path(__file__).parents[1] / "README.md"


def test_the_flag_table_is_that_of_the_code() -> None:
    text = README.read_text()
    for flag in Flag:
        assert f"| {flag.bit.bit_length() - 1} | `{flag.name}` | {flag.kind.value} | {flag.text} |" in text


def test_its_commands_are_those_of_ci() -> None:
    command = "python -m pip install -c cluster/constraints.txt -e '.[test]' && pytest"
    assert command in README.read_text()
    assert command in (README.parent / ".ci" / "run").read_text()
