"""What a submitted verb takes along: its flags made independent of this folder, and the TOML files they name.

On the cluster a job runs in a folder of its own. The settings and the recipe are uploaded; every other path is one that
the cluster can reach itself (s3:// or a shared disk), so a relative one is made absolute here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from deepshadows import settings, storage
from deepshadows.outcomes import UsageError

CONFIG, RECIPE = "settings.toml", "recipe.toml"
_NOT_TAKEN = frozenset(("address",))
"""Settings that speak of this machine's view of the cluster; the job is in it already."""


def prepare(verb: str, arguments: list[str], folder: Path) -> list[str]:
    """Flags for the cluster; the files they need are put into `folder`.

    Raises
    ------
    UsageError
        A settings file or a recipe is not there or not TOML.
    """
    kinds = _path_kinds(verb)
    kind_of = {settings.flag_of(name): kind for name, kind in kinds.items()}
    prepared: list[str] = []
    words = iter(arguments)
    for word in words:
        before, flag, value = _parted(word)
        if flag != "--config" and flag not in kind_of:
            prepared.append(word)
            continue
        value = next(words, "") if value is None else value
        prepared += before
        if flag == "--config":
            _write_settings(value, kinds, folder)
            prepared += [flag, CONFIG]
        else:
            prepared += [flag, _reachable(kind_of[flag], value, folder)]
    return prepared


def _parted(word: str) -> tuple[list[str], str, str | None]:
    """What stands before a flag, the flag in full, the value that the word holds; -v and -o as click takes them."""
    if found := re.fullmatch(r"-(v*)o(.*)", word, re.DOTALL):
        return (["-v"] if found[1] else []), "--output", found[2] or None
    flag, separator, value = word.partition("=")
    return [], flag, value if separator else None


def _path_kinds(verb: str) -> dict[str, str]:
    """Fields of the verb that name a path, and the kind of each: see `settings.PATH`."""
    model: type[settings.Settings] = getattr(settings, verb.capitalize())
    extras = {name: info.json_schema_extra for name, info in model.model_fields.items()}
    return {name: str(extra["path"]) for name, extra in extras.items() if isinstance(extra, dict) and "path" in extra}


def _reachable(kind: str, value: str, folder: Path) -> str:
    """The path as the job will know it."""
    if storage.is_s3(value):
        return value
    if kind == "recipe" and value in settings.RECIPES:
        return value
    if kind == "recipe":
        (folder / RECIPE).write_text(_read_toml(value), encoding="utf-8")
        return RECIPE
    if kind == "weights" and "/" not in value and not Path(value).exists():
        return value  # the name of shipped weights
    return storage.normalise(value)


def _write_settings(url: str, kinds: Mapping[str, str], folder: Path) -> None:
    """The settings file, with its paths made reachable. Settings are flat, so JSON values are TOML values."""
    values = settings.parse_toml(_read_toml(url), url)
    lines = []
    for name, value in values.items():
        if name in _NOT_TAKEN:
            continue
        if name in kinds:
            many = isinstance(value, list)
            found = [_reachable(kinds[name], str(entry), folder) for entry in (value if many else [value])]
            value = found if many else found[0]
        lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}\n")
    (folder / CONFIG).write_text("".join(lines), encoding="utf-8")


def _read_toml(url: str) -> str:
    try:
        text = Path(url).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{url}: cannot be read to be sent along: {error}") from error
    settings.parse_toml(text, url)
    return text
