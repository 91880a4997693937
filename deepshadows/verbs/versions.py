"""`deepshadows versions`: list the versions of a catalogue, go back to one, remove old ones. No Ray."""

from __future__ import annotations

from typing import Any

from deepshadows import settings, storage
from deepshadows.catalog import versions
from deepshadows.catalog.versions import Version
from deepshadows.outcomes import InputError, Summary


def run(settings: settings.Versions) -> Summary:
    """List, roll back or expire; without a flag, list."""
    catalog = storage.normalise(settings.catalog)
    if settings.rollback is not None:
        return _roll_back(catalog, settings.rollback)
    if settings.expire is not None:
        return _expire(catalog, settings.expire, settings.dry_run)
    return _list(catalog)


def _list(catalog: str) -> Summary:
    found = versions.list_versions(catalog)
    left = versions.unfinished(catalog)
    text = [f"{catalog}: {len(found)} published version{'s' * (len(found) != 1)}"]
    text += [_line(entry) for entry in found]
    text += [f"  {folder.name}  not published: under way, or left of a publish that was stopped" for folder in left]
    figures = {
        "versions": [_figures(entry) for entry in found if isinstance(entry, Version)],
        "current": next(
            (entry.folder.name for entry in found if isinstance(entry, Version) and entry.is_current), None
        ),
        "damaged": [str(entry) for entry in found if isinstance(entry, InputError)],
        "unfinished": [folder.name for folder in left],
    }
    return Summary(verb="versions", output=catalog, figures=figures, text=tuple(text))


def _line(entry: Version | InputError) -> str:
    if isinstance(entry, InputError):
        return f"! {entry}"
    mark = "*" if entry.is_current else " "
    runs = entry.runs[0] + (f" and {len(entry.runs) - 1} more" if len(entry.runs) > 1 else "") if entry.runs else "-"
    model = f"{entry.model} ({entry.model_sha256[:12]})"
    return f"{mark} {entry.folder.name}  {entry.created}  {entry.rows:>12,} rows  {model}  run {runs}"


def _figures(entry: Version) -> dict[str, Any]:
    return {
        "version": entry.folder.name,
        "current": entry.is_current,
        "created": entry.created,
        "rows": entry.rows,
        "model": entry.model,
        "model_sha256": entry.model_sha256,
        "runs": list(entry.runs),
    }


def _roll_back(catalog: str, name: str) -> Summary:
    before = versions.rollback(catalog, name)
    told = f"{name} is current already" if before == name else f"{name} is current now, {before} was before"
    return Summary(
        verb="versions", output=catalog, figures={"current": name, "before": before}, text=(f"{catalog}: {told}",)
    )


def _expire(catalog: str, keep: int, dry_run: bool) -> Summary:
    plan = versions.plan_expiry(catalog, keep)
    sizes = plan.size_bytes()
    if not dry_run:
        versions.expire(plan)
    verb = "would be removed" if dry_run else "removed"
    text = [f"{catalog}: keeps {', '.join(plan.kept)}; {plan.pointer.version} is current"]
    for folder in plan.folders:
        what = "" if folder in plan.expired else ", left of a publish that was stopped"
        text.append(f"{folder.name} {verb}: {sizes[folder.name] / 1e6:,.1f} MB{what}")
    if not plan.folders:
        text.append("nothing to remove")
    figures = {
        "current": plan.pointer.version,
        "kept": list(plan.kept),
        "removed": [folder.name for folder in plan.folders],
        "removed_bytes": sum(sizes.values()),
        "dry_run": dry_run,
    }
    return Summary(verb="versions", output=catalog, figures=figures, text=tuple(text))
