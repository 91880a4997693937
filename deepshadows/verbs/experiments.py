"""`experiments`: the paper, repeated. Each gives a section; report, figures and numbers are written at the end.

Trainings are Ray tasks whose results are kept: the same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deepshadows import settings, storage
from deepshadows.outcomes import AbsentError, InputError, Summary, UsageError
from deepshadows.run.record import software_versions
from deepshadows.sky.shards import list_shards
from deepshadows.verbs import simulate
from deepshadows.verbs.paper import binary, explanations, label_noise, real_features, report, three_classes, transfer
from deepshadows.verbs.paper.findings import Section
from deepshadows.verbs.paper.samples import Sample, read_sample
from deepshadows.verbs.paper.scale import SCALES, Scale
from deepshadows.verbs.paper.study import Study
from deepshadows.verbs.paper.trainings import Trainer, Workplace
from deepshadows.verbs.progress import say
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.simulate_cutouts import FEATURES

EXPERIMENTS: Mapping[str, Callable[[Study], Section]] = {
    "baselines": binary.baselines,
    "splits": binary.splits,
    "label_noise": label_noise.label_noise,
    "transfer": transfer.transfer,
    "three_classes": three_classes.three_classes,
    "grad_cam": explanations.explanations,
    "real_features": real_features.real_features,
}
SECOND_FOV_ARCSEC = 21.5
"""Field of the paper's HSC cut-outs (DOMAIN, section 2)."""
REPORT, NUMBERS = "report.html", "experiments.json"


def run(wanted: settings.Experiments) -> Summary:
    """Run the named experiments, or all, at the scale that the settings name.

    Raises
    ------
    UsageError
        real_features is asked for by name, and there is no table of features; or the folder holds the report of
        another sample, scale, split or seed.
    InputError
        A sample cannot be used.
    """
    return repeat(wanted, SCALES[wanted.scale])


def repeat(wanted: settings.Experiments, scale: Scale) -> Summary:
    """The same at any scale."""
    started = time.monotonic()
    output = storage.normalise(wanted.output)
    there = _report_in(output)
    if there is not None:
        wanted = _continued(wanted, scale, there)
    if "real_features" in wanted.names and wanted.features is None:
        raise UsageError("experiments real_features: give the table with --features CSV")
    _check_inputs(wanted)
    study = Study(
        scale=scale,
        split=wanted.split,
        seed=wanted.seed,
        trainer=Trainer(
            folder=storage.join(output, "trainings"), place=Workplace(threads=wanted.threads, gpu=wanted.gpus)
        ),
        read=lambda survey: _sample(wanted, scale, output, survey),
        features=wanted.features,
    )
    names = _names(wanted, there)
    sections, seconds = [], {}
    with ray_session(wanted.address):
        for name in names:
            say(f"experiment {name}")
            begun = time.monotonic()
            sections.append(EXPERIMENTS[name](study))
            seconds[name] = round(time.monotonic() - begun, 1)
    record = _record(study, wanted, sections, seconds)
    _write(output, sections, record, scale)
    return _summary(output, sections, time.monotonic() - started)


def _report_in(output: str) -> dict[str, Any] | None:
    """The numbers of the report that the folder holds, None where it holds none."""
    url = storage.join(output, NUMBERS)
    if not storage.exists(url):
        return None
    try:
        record: dict[str, Any] = json.loads(storage.read(url))
        if {"scale", "split", "seed", "settings", "experiments"} <= record.keys():
            _sources(record["settings"])
            return record
        raise ValueError("not a report of experiments")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{url}: damaged; delete it, the trainings beside it are kept: {error}") from error


def _continued(wanted: settings.Experiments, scale: Scale, there: Mapping[str, Any]) -> settings.Experiments:
    """The settings for a report that is there already; its table of features is taken over where none is given.

    Raises
    ------
    UsageError
        It is a report of another scale, split, seed, sample or table of features.
    """
    features = wanted.features or there["settings"]["features"]
    wanted = wanted.model_copy(update={"features": features})
    found = {name: there[name] for name in ("scale", "split", "seed")} | _sources(there["settings"])
    output = storage.normalise(wanted.output)
    now = {"scale": scale.name, "split": wanted.split, "seed": wanted.seed} | _sources(wanted.model_dump())
    if there["settings"]["features"] is None:
        found["features"] = now["features"]
    for name, value in now.items():
        if found[name] != value:
            raise UsageError(f"{output}: holds a report of {name} {found[name]}, not {value}; choose another --output")
    return wanted


def _sources(given: Mapping[str, Any]) -> dict[str, str]:
    """Absolute addresses of what is read, whatever folder the command was given in."""
    without = {"cutouts": "simulated", "second": "simulated", "features": "none"}
    return {name: storage.normalise(given[name]) if given[name] else told for name, told in without.items()}


def _names(wanted: settings.Experiments, there: Mapping[str, Any] | None) -> list[str]:
    """What is wanted and what the report holds already: its trainings are kept, so it is soon written whole again."""
    chosen = {*(wanted.names or EXPERIMENTS), *(there["experiments"] if there else ())}
    return [name for name in EXPERIMENTS if name in chosen]


def _check_inputs(wanted: settings.Experiments) -> None:
    """What the user names must be there before hours are spent."""
    for given in (wanted.cutouts, wanted.second):
        if given is not None and not list_shards(storage.normalise(given)):
            raise AbsentError(f"{given}: no cut-out shards (*.parquet); make them with `deepshadows cutouts`")
    if wanted.features is not None:
        storage.stat(storage.normalise(wanted.features))


def _sample(wanted: settings.Experiments, scale: Scale, output: str, survey: str) -> Sample:
    """The user's cut-outs, or simulated ones, which are made where they are not there yet."""
    most, given = (scale.cutouts, wanted.cutouts) if survey == "des" else (scale.second_cutouts, wanted.second)
    made = storage.join(output, "samples", f"{survey}-{most}-seed{wanted.seed}")
    url = storage.normalise(given) if given else made
    if given is None and not storage.exists(storage.join(url, FEATURES)):  # written last
        field = SECOND_FOV_ARCSEC if survey == "hsc" else None
        simulate.run(
            settings.Simulate(
                survey=survey,
                cutouts=most,
                fov_arcsec=field,
                seed=wanted.seed,
                address=wanted.address,
                output=url,
            )
        )
    origin = given or f"simulated {survey.upper()}-like sky"
    return read_sample(url, survey, most=most, split=wanted.split, seed=wanted.seed, origin=origin)


def _record(
    study: Study, wanted: settings.Experiments, sections: Sequence[Section], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Everything that is known, for the JSON file."""
    used = {name: sample for name in ("first", "second") if (sample := vars(study).get(name)) is not None}
    given = {name: url for name, url in _sources(wanted.model_dump()).items() if getattr(wanted, name) is not None}
    return {
        "scale": study.scale.name,
        "label": study.scale.label,
        "split": study.split,
        "seed": study.seed,
        "settings": wanted.model_dump(exclude={"address"}) | given,
        "recipe": study.scale.recipe.model_dump(),
        "transfer_recipe": study.scale.transfer.model_dump(),
        "machine": _machine(),
        "versions": software_versions() | {"scikit-learn": version("scikit-learn")},
        "samples": {name: _sample_record(sample) for name, sample in used.items()},
        "experiments": {section.name: section.record() | {"seconds": seconds[section.name]} for section in sections},
    }


def _sample_record(sample: Sample) -> dict[str, Any]:
    return {
        "origin": sample.origin,
        "lsbgs": len(sample.rows_of(1)),
        "artifacts": len(sample.rows_of(0)),
        "fov_arcsec": sample.fov_arcsec,
        "stretch": sample.stretch,
        "pixels_sha256": sample.fingerprint,
        "notes": list(sample.notes),
    }


def _machine() -> dict[str, Any]:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": platform.system(),
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }


def _write(output: str, sections: Sequence[Section], record: Mapping[str, Any], scale: Scale) -> None:
    for section in sections:
        for picture in section.pictures:
            storage.write(storage.join(output, "figures", f"{picture.name}.png"), picture.png)
    storage.write(storage.join(output, NUMBERS), json.dumps(record, indent=1).encode())
    storage.write(storage.join(output, REPORT), report.page(sections, scale.label, _facts(record)).encode())


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """What stands at the head of the report."""
    facts = {}
    for sample in record["samples"].values():
        text = f"{sample['lsbgs']} LSBGs, {sample['artifacts']} artifacts"
        text += f" ({sample['fov_arcsec']:g} arcsec, {sample['stretch']})"
        facts[sample["origin"]] = "; ".join([text, *sample["notes"]])
    recipe, machine = record["recipe"], record["machine"]
    by = "blocks of sky, without duplicates" if record["split"] == "sky" else "rows at random, as in the paper"
    return facts | {
        "split": f"by {by}; seed {record['seed']}",
        "recipe": f"{recipe['name']}: {recipe['optimizer']} at {recipe['learning_rate']:g}, batches of "
        f"{recipe['batch_size']}, {recipe['epochs']} epochs, products in {recipe['precision']}",
        "machine": f"{machine['processor']}, {machine['cores']} cores",
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
    }


def _summary(output: str, sections: Sequence[Section], seconds: float) -> Summary:
    lines, figures = [], {}
    for section in sections:
        if section.skipped is not None:
            lines.append(f"{section.name}: skipped: {section.skipped}")
        for table in section.tables:
            for row in table.rows:
                shown = [
                    f"{number.measure} {number.ours:.3f}"
                    + ("" if number.paper is None else f" (paper {number.paper:.3f})")
                    for number in row.numbers
                    if number.measure in ("accuracy", "auc") and number.ours is not None
                ]
                lines.append(f"{section.name}, {row.name}: {', '.join(shown)}")
                figures[f"{section.name}/{row.name}"] = {number.measure: number.ours for number in row.numbers}
    return Summary(
        verb="experiments",
        output=output,
        figures={"rows": figures, "skipped": [section.name for section in sections if section.skipped is not None]},
        text=(*lines, f"report in {storage.join(output, REPORT)} ({seconds:.0f} s)"),
    )
