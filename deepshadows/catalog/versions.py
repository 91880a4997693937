"""The versions of a catalogue: which there are, going back to one, removing old ones. No Ray, no torch.

A reader that has a version open goes on reading it while it is kept, whatever is published or rolled back. Who still
reads one that has been expired is told that its files are not there; it never sees rows of another version, since
numbers are not given out twice.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from deepshadows import storage
from deepshadows.catalog.collection import (
    Pointer,
    abandon,
    move_pointer,
    read_properties,
    require_pointer,
    runs_of,
)
from deepshadows.catalog.version_folder import CLAIM, VERSION_NAME, VersionFolder
from deepshadows.outcomes import HeldError, InputError, NotFoundError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A published version as its own properties describe it.

    Attributes
    ----------
    created : str
        UTC, to the minute.
    rows : int
        With a place on the sky.
    runs : tuple of str
        Names of the runs that it was made from.
    """

    folder: VersionFolder
    is_current: bool
    created: str
    rows: int
    model: str
    model_sha256: str
    runs: tuple[str, ...]


def describe(folder: VersionFolder, *, is_current: bool = False) -> Version:
    """What a version says of itself.

    Raises
    ------
    InputError
        Its table is not there or damaged.
    """
    try:
        properties = read_properties(folder.table_url)
    except NotFoundError as error:
        raise InputError(_missing(folder, is_current)) from error
    extra = properties.model_extra or {}
    return Version(
        folder=folder,
        is_current=is_current,
        created=str(extra.get("hats_creation_date", "")),
        rows=properties.total_rows or 0,
        model=str(extra.get("deepshadows_model", "")),
        model_sha256=str(extra.get("deepshadows_model_sha256", "")),
        runs=tuple(run["run"] for run in runs_of(properties)),
    )


def _missing(folder: VersionFolder, is_current: bool) -> str:
    told = f"{folder.url}: the pointer lists this version, but its table is not there"
    if is_current:
        told += f"; go back to another: deepshadows versions {folder.catalog} --rollback vNNNN"
    return told


def find(catalog: str, name: str | None) -> VersionFolder:
    """The version of that name, or the current one; it is there.

    Raises
    ------
    NotFoundError
        No catalogue is there.
    UsageError
        No such version is published.
    InputError
        The pointer names a version that is not there.
    """
    pointer = require_pointer(catalog)
    folder = VersionFolder(catalog, name or pointer.version)
    _check_published(pointer, folder)
    if not storage.exists(storage.join(folder.table_url, "hats.properties")):
        raise InputError(_missing(folder, folder.name == pointer.version))
    return folder


def _check_published(pointer: Pointer, folder: VersionFolder) -> None:
    if folder.name not in pointer.published:
        raise UsageError(
            f"{folder.catalog}: no version {folder.name} is published; there are {', '.join(pointer.published)}"
        )


def list_versions(catalog: str) -> list[Version | InputError]:
    """Published versions by number; in place of one that is not there or damaged, what is wrong with it."""
    pointer = require_pointer(catalog)
    found: list[Version | InputError] = []
    for name in pointer.published:
        try:
            found.append(describe(VersionFolder(catalog, name), is_current=name == pointer.version))
        except InputError as error:
            found.append(error)
    return found


def unfinished(catalog: str) -> list[VersionFolder]:
    """Versions that were begun and are not published, where more than the claim is left of them."""
    published = require_pointer(catalog).published
    names = [name.rstrip("/") for name in storage.children(catalog) if VERSION_NAME.fullmatch(name.rstrip("/"))]
    folders = [VersionFolder(catalog, name) for name in names if name not in published]
    return [folder for folder in folders if storage.children(folder.url) not in ([], [CLAIM])]


def rollback(catalog: str, name: str) -> str:
    """Make an earlier (or later) published version current; the version that was so before.

    Raises
    ------
    UsageError
        No such version is published.
    InputError
        It is not there any more; the pointer stays.
    HeldError
        Someone else moved the pointer at the same time.
    """
    pointer = require_pointer(catalog)
    folder = find(catalog, name)
    if name != pointer.version and not move_pointer(folder, pointer, pointer.published, uuid.uuid4().hex):
        raise HeldError(f"{catalog}: a publish, a rollback or an expiry came first; nothing changed here; look again")
    return pointer.version


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """What an expiry removes: published versions, and what is left of publishes that can no longer finish."""

    pointer: Pointer
    kept: tuple[str, ...]
    expired: tuple[VersionFolder, ...]
    leftovers: tuple[VersionFolder, ...]

    @property
    def folders(self) -> tuple[VersionFolder, ...]:
        return self.expired + self.leftovers

    def size_bytes(self) -> dict[str, int]:
        """Bytes that lie in each of the folders, by name of the version."""
        return {
            folder.name: sum(entry.size_bytes for entry in storage.list_objects(folder.url, hidden=True))
            for folder in self.folders
        }


def plan_expiry(catalog: str, keep: int) -> Expiry:
    """Keep the current version and the newest `keep` (1 or more); nothing is changed yet.

    A publish can no longer finish once a higher number than its own is published: `collection.swap` refuses it.
    """
    pointer = require_pointer(catalog)
    wanted = {pointer.version, *pointer.published[-keep:]}
    kept = tuple(name for name in pointer.published if name in wanted)
    expired = tuple(VersionFolder(catalog, name) for name in pointer.published if name not in wanted)
    leftovers = tuple(folder for folder in unfinished(catalog) if folder.number < pointer.newest)
    return Expiry(pointer=pointer, kept=kept, expired=expired, leftovers=leftovers)


def expire(plan: Expiry) -> None:
    """Take versions off the pointer's list, where it is still as planned for; then remove them.

    Whoever rolls back to one of them at the same time moves the pointer, or finds it moved: one of the two is refused.

    Raises
    ------
    HeldError
        The pointer has moved since the plan; nothing was removed.
    """
    if plan.expired:
        current = VersionFolder(plan.expired[0].catalog, plan.pointer.version)
        if not move_pointer(current, plan.pointer, plan.kept, uuid.uuid4().hex):
            raise HeldError(
                f"{current.catalog}: a publish, a rollback or another expiry came first; nothing was removed"
            )
    for folder in plan.folders:
        abandon(folder)
