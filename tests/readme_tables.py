"""The README's tables that scripts write, each between two comments; the first names the command that writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def with_table(readme: str, command: str, lines: Sequence[str]) -> str:
    """The README with these lines between the comments of that command.

    Raises
    ------
    ValueError
        It has no such comments, or several.
    """
    begin, end = f"<!-- {command} -->\n", f"<!-- end of {command} -->\n"
    before, rest = readme.split(begin)
    _, after = rest.split(end)
    return "".join([before, begin, *(f"{line}\n" for line in lines), end, after])
