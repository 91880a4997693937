"""What a submitted verb takes along: its flags made independent of this folder, and the TOML files they name.

On the cluster a job runs in a folder of its own. The settings and the recipe are uploaded; every other path is one that
the cluster can reach itself (s3:// or a shared disk), so a relative one is made absolute here.
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

from deepshadows import settings, storage
from deepshadows.outcomes import UsageError

CONFIG, RECIPE = "settings.toml", "recipe.toml"
_PATHS = frozenset(
    (
        *("input", "output", "detections", "positions", "truth", "tiles", "cutouts", "catalog", "run"),
        *("checkpoint", "from", "recipe", "second", "features"),
    )
)
_NOT_TAKEN = frozenset(("address",))
"""Settings that speak of this machine's view of the cluster; the job is in it already."""


def prepare(verb: str, arguments: list[str], folder: Path) -> list[str]:
    """Flags for the cluster; the files they need are put into `folder`.

    Raises
    ------
    UsageError
        A settings file or a recipe is not there or not TOML.
    """
    paths = _path_flags(verb)
    prepared: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, separator, value = word.partition("=")
        flag = "--output" if flag == "-o" else flag
        name = flag.removeprefix("--").replace("_", "-")
        if not flag.startswith("--") or (name != "config" and name not in paths):
            prepared.append(word)
            continue
        if not separator:
            value = next(words, "")
        prepared += [flag, _taken(name, value, paths, folder)]
    return prepared


def _path_flags(verb: str) -> frozenset[str]:
    """Flags of the verb that name a path; `--tiles` of simulate is a number."""
    model: type[settings.Settings] = getattr(settings, verb.capitalize())
    text = {name for name, info in model.model_fields.items() if _takes_text(info.annotation)}
    return _PATHS & {"from" if name == "from_checkpoint" else name for name in text}


def _takes_text(annotation: Any) -> bool:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple):
        return any(_takes_text(part) for part in typing.get_args(annotation))
    return annotation is str


def _taken(name: str, value: str, paths: frozenset[str], folder: Path) -> str:
    if name == "config":
        _write_settings(value, paths, folder)
        return CONFIG
    return _reachable(name, value, folder)


def _reachable(name: str, value: str, folder: Path) -> str:
    """The path as the job will know it."""
    if storage.is_s3(value):
        return value
    if name == "recipe" and value in settings.RECIPES:
        return value
    if name == "recipe":
        (folder / RECIPE).write_text(_read_toml(value), encoding="utf-8")
        return RECIPE
    if name in ("checkpoint", "from", "from_checkpoint") and "/" not in value and not Path(value).exists():
        return value  # the name of shipped weights
    return storage.normalise(value)


def _write_settings(url: str, paths: frozenset[str], folder: Path) -> None:
    """The settings file, with its paths made reachable. Settings are flat, so JSON values are TOML values."""
    values = settings.parse_toml(_read_toml(url), url)
    lines = []
    for name, value in values.items():
        if name in _NOT_TAKEN:
            continue
        if ("from" if name == "from_checkpoint" else name) in paths:
            many = isinstance(value, list)
            found = [_reachable(name, str(entry), folder) for entry in (value if many else [value])]
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
