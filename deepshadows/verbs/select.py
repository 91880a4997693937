"""`deepshadows select`: the objects of a catalogue that a condition and a cone select, as one file. No Ray."""

from __future__ import annotations

from datetime import UTC, datetime

from deepshadows import __version__, settings, storage
from deepshadows.catalog import selection, versions
from deepshadows.catalog.cones import parse_cone
from deepshadows.catalog.export import export, writer_of
from deepshadows.outcomes import Summary, UsageError


def run(settings: settings.Select) -> Summary:
    """Select from the current version, or from another; a selection that matches nothing is an empty file."""
    catalog, output = storage.normalise(settings.catalog), storage.normalise(settings.output)
    writer_of(output)
    if output.startswith(catalog + "/"):
        raise UsageError(f"-o {output}: lies within the catalogue, which is not written to; give another place")
    cone = parse_cone(settings.cone) if settings.cone is not None else None
    folder = versions.find(catalog, settings.version)
    wanted = selection.select(folder, where=settings.where, cone=cone, columns=settings.columns)
    facts = {
        "catalogue": catalog,
        "version": folder.name,
        "model_sha256": versions.describe(folder).model_sha256,
        "where": settings.where or "",
        "cone": str(cone) if cone else "",
        "written": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} by DeepShadows {__version__}",
    }
    rows = export(wanted.tables(), output, {key: text for key, text in facts.items() if text})
    read = wanted.read
    text = [
        f"{settings.output}: {rows} rows of {catalog} {folder.name}",
        f"read {read.size_bytes / 1e6:.1f} MB from {read.files} of {read.files_of} files",
    ]
    if not rows:
        covered = "no partition reaches into the cone" if cone and not read.files else "no row matches"
        text.insert(1, f"{covered}; the file has the columns and no rows")
    figures = {
        "rows": rows,
        "version": folder.name,
        "files": read.files_of,
        "files_read": read.files,
        "row_groups_read": read.row_groups,
        "bytes_read": read.size_bytes,
    }
    return Summary(verb="select", output=output, figures=figures, text=tuple(text))
