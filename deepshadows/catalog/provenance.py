"""Where a catalogue comes from: runs that belong together, and the record of them. No Ray, no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hats.catalog.dataset.hats_properties import HatsProperties

from deepshadows import __version__
from deepshadows.outcomes import UsageError


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a finished run says of itself, from its manifest."""

    url: str
    run: str
    fingerprint: str
    id_type: str
    checkpoint: dict[str, Any]
    preprocessing: dict[str, Any]
    settings: dict[str, Any]
    engine: str
    versions: dict[str, str]
    rows: dict[str, int]
    """planned, scored, unscored, quarantined"""
    inventory: str
    """Hash of what went in, see `inventory_of`."""


def inventory_of(units: Iterable[str]) -> str:
    """Hash of the input of a run: of its units' ids, which are hashes of address, etag and rows each."""
    digest = hashlib.sha256()
    for unit in sorted(units):
        digest.update(unit.encode())
    return digest.hexdigest()


def check_runs(runs: Sequence[RunFacts]) -> None:
    """Refuse runs that make no sense in one catalogue.

    Raises
    ------
    UsageError
        One is given twice, identifiers are of two types, or the scores of two networks or ways of preparing pixels
        would stand side by side as if they meant the same.
    """
    _refuse_same(runs)
    _refuse_different(runs, "identifiers", [run.id_type for run in runs], "give each type a catalogue of its own")
    again = "p_lsbg of one is not that of the other; classify all with one checkpoint, or publish two catalogues"
    weights = [f"{run.checkpoint['name']} ({str(run.checkpoint['weights_sha256'])[:12]})" for run in runs]
    _refuse_different(runs, "networks", weights, again)
    _refuse_different(
        runs, "preparation of pixels", [json.dumps(run.preprocessing, sort_keys=True) for run in runs], again
    )


def _refuse_same(runs: Sequence[RunFacts]) -> None:
    seen: dict[str, RunFacts] = {}
    for run in runs:
        other = seen.setdefault(run.fingerprint, run)
        if other is not run:
            where = run.url if run.url == other.url else f"{run.url} and {other.url} are the same run, which"
            raise UsageError(f"--run: {where} is given twice; give it once")


def _refuse_different(runs: Sequence[RunFacts], what: str, values: Sequence[str], advice: str) -> None:
    for run, value in zip(runs, values, strict=True):
        if value != values[0]:
            raise UsageError(f"--run: different {what}: {runs[0].url}: {values[0]}; {run.url}: {value}; {advice}")


_OF_EACH_RUN = ("run", "url", "fingerprint", "inventory", "id_type", "engine", "rows")


def properties(
    name: str, version: str, runs: Sequence[RunFacts], publish_settings: dict[str, Any], rows: dict[str, Any]
) -> dict[str, Any]:
    """Extra properties of the table: JSON on one line each where a value has parts."""
    first = runs[0]
    described = [{name: getattr(run, name) for name in _OF_EACH_RUN} for run in runs]
    parts: dict[str, Any] = {
        "deepshadows_runs": described,
        "deepshadows_preprocessing": first.preprocessing,
        "deepshadows_classify_settings": {run.run: run.settings for run in runs},
        "deepshadows_publish_settings": publish_settings,
        "deepshadows_rows": rows,
        "deepshadows_software": {run.run: run.versions for run in runs} | {"publish": software_versions()},
    }
    standard = HatsProperties.new_provenance_dict(builder=f"DeepShadows {__version__}")
    for name_of_other in ("hats_release_date", "hats_estsize"):  # the date of the HATS document; a size it cannot know
        standard.pop(name_of_other)
    return {
        **standard,
        "catalog_name": name,
        "obs_title": f"{name} {version}: probabilities of low-surface-brightness galaxies by DeepShadows",
        "prov_progenitor": " ".join(run.url.replace("\\", "\\\\") for run in runs),
        "deepshadows_version": version,
        "deepshadows_model": str(first.checkpoint["name"]),
        "deepshadows_model_sha256": str(first.checkpoint["weights_sha256"]),
        "deepshadows_input_fingerprints": " ".join(run.fingerprint for run in runs),
        **{key: _one_line(value) for key, value in parts.items()},
    }


def facts_of(found: Mapping[str, Any]) -> list[RunFacts]:
    """The runs of a version, from the extra fields of its table's properties, as `properties` wrote them."""
    settings, software = (json.loads(found[f"deepshadows_{key}"]) for key in ("classify_settings", "software"))
    checkpoint = {"name": found["deepshadows_model"], "weights_sha256": found["deepshadows_model_sha256"]}
    return [
        RunFacts(
            **run,
            checkpoint=checkpoint,
            preprocessing=json.loads(found["deepshadows_preprocessing"]),
            settings=settings[run["run"]],
            versions=software[run["run"]],
        )
        for run in json.loads(found["deepshadows_runs"])
    ]


def _one_line(value: Any) -> str:
    """JSON whose backslashes survive the properties format, whose readers take one of two away."""
    return json.dumps(value, sort_keys=True).replace("\\", "\\\\")


def software_versions() -> dict[str, str]:
    """Versions of what decides the layout of the catalogue."""
    names = ("hats", "pyarrow", "cdshealpix", "numpy")
    return {"deepshadows": __version__, **{name: importlib.metadata.version(name) for name in names}}
