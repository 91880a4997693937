"""RUN/manifest.json: the commit of a run. Readers of scores go only through it. Vocabulary only."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from deepshadows import storage
from deepshadows.outcomes import InputError, UsageError

FORMAT_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScoreObject(_Frozen):
    """One committed score object; `url` is relative to the run."""

    url: str
    size_bytes: int
    etag: str
    rows: int


class QuarantinedUnit(_Frozen):
    """One unit that could not be read."""

    unit: str
    object: str
    rows: int
    reason: str


class Manifest(_Frozen):
    """What a finished run holds; rows planned = scored + unscored + quarantined, or it cannot be built."""

    format_version: int = FORMAT_VERSION
    run: str
    fingerprint: str
    recipe: str = ""
    driver: str
    settings: dict[str, Any]
    checkpoint: dict[str, Any]
    preprocessing: dict[str, Any]
    engine: str
    versions: dict[str, str]
    id_type: str
    units_planned: int
    units_done: int
    units_quarantined: int
    rows_planned: int
    rows_scored: int
    rows_unscored: int
    rows_quarantined: int
    flag_counts: dict[str, int]
    seconds: float
    scores: tuple[ScoreObject, ...]
    quarantined: tuple[QuarantinedUnit, ...] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Manifest:
        if self.rows_planned != self.rows_scored + self.rows_unscored + self.rows_quarantined:
            raise ValueError(
                f"rows planned {self.rows_planned} != scored {self.rows_scored} + unscored {self.rows_unscored} "
                f"+ quarantined {self.rows_quarantined}"
            )
        if sum(score.rows for score in self.scores) != self.rows_scored + self.rows_unscored:
            raise ValueError("rows of the score objects do not add up to scored + unscored")
        if self.units_planned != self.units_done + self.units_quarantined:
            raise ValueError("units planned != done + quarantined")
        return self


def manifest_url(run: str) -> str:
    return storage.join(run, "manifest.json")


def read_manifest(run: str) -> Manifest:
    """The manifest of a finished run.

    Raises
    ------
    UsageError
        The run is not finished, or there is none.
    InputError
        The manifest is damaged or of another version.
    """
    url = manifest_url(run)
    if not storage.exists(url):
        raise UsageError(f"{run}: no finished run there (no manifest.json); run `deepshadows classify` to its end")
    try:
        return Manifest.model_validate_json(storage.read(url))
    except ValidationError as error:
        raise InputError(f"{url}: not a manifest of this version of DeepShadows: {error}") from error
