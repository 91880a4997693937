"""What a submitted verb takes along: its settings made independent of this folder, and the recipe they name.

On the cluster a job runs in a folder of its own. Settings and recipe are uploaded; every other path is one that the
cluster can reach itself (s3:// or a shared disk), so a relative one is made absolute here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from deepshadows import storage
from deepshadows.outcomes import UsageError
from deepshadows.settings import RECIPES, Settings, parse_toml

CONFIG, RECIPE = "settings.toml", "recipe.toml"
NOT_TAKEN = {"address"}
"""Settings that speak of this machine's view of the cluster; the job is in it already."""


def prepare(verb: str, settings: Settings, folder: Path) -> str:
    """Put into `folder` what the job needs; the fingerprint of verb, settings and recipe.

    Settings are flat, so JSON values are TOML values. What the user did not set is left to the cluster's defaults,
    but counts in the fingerprint: the same run is the same job, whether by flags or by file.

    Raises
    ------
    UsageError
        A recipe is not there or not TOML.
    """
    values = settings.model_dump(mode="json", exclude_none=True, exclude=NOT_TAKEN)
    for name, info in type(settings).model_fields.items():
        extra = info.json_schema_extra
        if name in values and isinstance(extra, dict) and (kind := extra.get("path")):
            values[name] = _each(values[name], str(kind), folder)
    given = [name for name in values if name in settings.model_fields_set]
    lines = [f"{name} = {json.dumps(values[name], ensure_ascii=False)}\n" for name in given]
    (folder / CONFIG).write_text("".join(lines), encoding="utf-8")
    recipe = folder / RECIPE
    content = [verb, values, recipe.read_text(encoding="utf-8") if recipe.exists() else ""]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _each(value: Any, kind: str, folder: Path) -> Any:
    if isinstance(value, list):
        return [_reachable(kind, entry, folder) for entry in value]
    return _reachable(kind, value, folder)


def _reachable(kind: str, value: str, folder: Path) -> str:
    """The path as the job will know it."""
    if storage.is_s3(value) or (kind == "recipe" and value in RECIPES):
        return value
    if kind == "recipe":
        (folder / RECIPE).write_text(_read_toml(value), encoding="utf-8")
        return RECIPE
    if kind == "weights" and "/" not in value and not Path(value).exists():
        return value  # the name of shipped weights
    return storage.normalise(value)


def _read_toml(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read to be sent along: {error}") from error
    parse_toml(text, path)
    return text
