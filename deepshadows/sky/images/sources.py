"""What finished images a folder holds, and how they are shared out: no pixels are read. No Ray, no torch.

The forms: `npz`; `npy`, an array (N, S, S, 3); `pictures`, a JPEG or PNG an object; `fits`, a FITS image an object;
`webdataset` tars; `hdf5`; `parquet` with the user's own columns. A `Source` is what one task converts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deepshadows import storage
from deepshadows.outcomes import AbsentError, InputError, UsageError
from deepshadows.settings import Cutouts as Settings
from deepshadows.sky.images.arrays import companions, count_npy
from deepshadows.sky.images.hdf5 import count_hdf5
from deepshadows.sky.images.parquet import count_parquet
from deepshadows.sky.images.record import Item, Source
from deepshadows.sky.presets import preset_named
from deepshadows.sky.shards import shard_name
from deepshadows.sky.tile_headers import FITS_SUFFIXES, named_tile

SUFFIXES = {
    "npz": (".npz",),
    "npy": (".npy",),
    "pictures": (".jpg", ".jpeg", ".png"),
    "webdataset": (".tar",),
    "hdf5": (".h5", ".hdf5"),
    "parquet": (".parquet",),
    "fits": FITS_SUFFIXES,
}
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")


@dataclass(frozen=True)
class Listing:
    """Sources of an input, and what of it cannot be used: address, reason, and the identifier where one is known."""

    form: str
    sources: tuple[Source, ...]
    rejects: tuple[tuple[str, str, str], ...] = ()


def form_of(settings: Settings, root: str) -> str:
    """The form of the images below `root`.

    Raises
    ------
    AbsentError
        There are none.
    UsageError
        There are several kinds, or FITS files that may be tiles.
    """
    if settings.form != "auto":
        if not storage.list_objects(root, SUFFIXES[settings.form]):
            raise AbsentError(f"{root}: no {', '.join(SUFFIXES[settings.form])} files there; check --input and --form")
        return settings.form
    entries = storage.list_objects(root)
    found = {
        form: example.url
        for form, suffixes in SUFFIXES.items()
        if (example := next((entry for entry in entries if entry.url.lower().endswith(suffixes)), None))
    }
    if not found:
        kinds = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes[:2])
        raise UsageError(f"{root}: no images there ({kinds}); to cut from FITS tiles give --detections")
    if len(found) > 1:
        raise UsageError(f"{root}: holds {' and '.join(found.values())}; say with --form which of them are meant")
    (form,) = found
    if form == "fits":
        raise UsageError(
            f"{root}: FITS files: give --detections to cut from tiles, or --form fits where each is one object's image"
        )
    return form


def list_sources(settings: Settings, root: str) -> Listing:
    """Share the images below `root` out in sources of about `shard_rows` rows.

    Raises
    ------
    AbsentError, UsageError
        As `form_of`.
    """
    form = form_of(settings, root)
    entries = storage.list_objects(root, SUFFIXES[form])
    if form in ("pictures", "fits"):
        return _folder(settings, root, form, entries)
    beside = companions({entry.url for entry in entries}) if form == "npy" else set()
    rejects: list[tuple[str, str, str]] = []
    sources: list[Source] = []
    for entry in entries:
        if entry.url in beside:
            continue
        stem = _below(entry.url, root)
        try:
            rows = _count(form, entry.url, settings)
        except InputError as error:
            rejects.append(("", entry.url, str(error)))
            continue
        for start in range(0, 1 if rows is None else rows, settings.shard_rows):
            sources.append(
                Source(
                    form=form,
                    url=entry.url,
                    name=shard_name(len(sources), stem),
                    stem=stem,
                    first_row=start,
                    rows=None if rows is None else min(settings.shard_rows, rows - start),
                )
            )
    return Listing(form, tuple(sources), tuple(rejects))


def _count(form: str, url: str, settings: Settings) -> int | None:
    """Images of one file, where its header tells."""
    match form:
        case "npy":
            return count_npy(url)
        case "hdf5":
            return count_hdf5(url, settings)
        case "parquet":
            return count_parquet(url, settings)
        case _:
            return None


def _below(url: str, root: str) -> str:
    """Path below `root` without suffix; of `root` itself, its name."""
    path = storage.name_of(url) if url == root else storage.relative(url, root)
    return re.sub(r"(\.fits)?\.[A-Za-z0-9]+$", "", path)


def _folder(settings: Settings, root: str, form: str, entries: Sequence[storage.StoredObject]) -> Listing:
    """Items of a folder: identifiers are names without suffix, integers where all are; class folders give labels."""
    rejects: list[tuple[str, str, str]] = []
    first: dict[str, str] = {}
    kept: list[tuple[str, tuple[storage.StoredObject, ...]]] = []
    for folder, name, files in _objects(settings, form, entries):
        where = files[0].url
        if name in first:
            rejects.append((name, where, f"duplicate identifier: {first[name]} has it too"))
            continue
        first[name] = where
        kept.append((storage.name_of(folder) if folder != root else "", files))
    names = list(first)
    whole = all(_INTEGER.fullmatch(name) for name in names)
    classes = {name.lower() for name in (*settings.lsbg_class, *settings.artifact_class)}
    labelled = any(folder.lower() in classes for folder, _ in kept)
    made = [
        Item(object_id=int(name) if whole else name, files=files, label=folder if labelled else None)
        for name, (folder, files) in zip(names, kept, strict=True)
    ]
    sources = tuple(
        Source(
            form=form,
            url=root,
            name=shard_name(number, storage.name_of(root)),
            rows=len(part),
            items=tuple(part),
        )
        for number, part in enumerate(_parts(made, settings.shard_rows))
    )
    return Listing(form, sources, tuple(rejects))


def _objects(
    settings: Settings, form: str, entries: Sequence[storage.StoredObject]
) -> Iterator[tuple[str, str, tuple[storage.StoredObject, ...]]]:
    """Folder, identifier and files of each object: one picture, or the FITS files of its bands."""
    if form == "pictures":
        for entry in entries:
            folder, _, file = entry.url.rpartition("/")
            yield folder, file.rpartition(".")[0], (entry,)
        return
    preset = preset_named(settings.survey)
    bands: dict[tuple[str, str], list[storage.StoredObject]] = defaultdict(list)
    for entry in entries:
        bands[entry.url.rpartition("/")[0], named_tile(entry.url, preset)].append(entry)
    for (folder, name), files in bands.items():
        yield folder, name, tuple(files)


def _parts(items: Sequence[Item], rows: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), rows):
        yield items[start : start + rows]
