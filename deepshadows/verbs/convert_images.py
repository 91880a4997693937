"""The part of `cutouts` that converts finished images: a Ray task a source, which writes its own shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import InputError
from deepshadows.schema import count_flags
from deepshadows.settings import Cutouts as CutoutsSettings
from deepshadows.sky.detections import read_table
from deepshadows.sky.images.conversion import Conversion, geometry_of, read_images
from deepshadows.sky.images.record import Source
from deepshadows.sky.images.sources import Listing
from deepshadows.sky.matching import AMBIGUOUS, UNMATCHED, checked_truth, label_by_truth, label_by_vetting
from deepshadows.sky.shards import Cutouts, write_shard
from deepshadows.verbs.progress import track


@dataclass
class Converted:
    """What came of tiles or images: counts of rows, shards, what failed as a whole, and each reject with its reason."""

    counts: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    problems: list[str] = field(default_factory=list)
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    """Type of identifiers and whether there are labels, with a source that has it so."""

    def add(self, other: Converted) -> None:
        self.counts.update(other.counts)
        self.shards += other.shards
        self.problems += other.problems
        self.rejects += other.rejects
        self.kinds = {**other.kinds, **self.kinds}


def convert_images(settings: CutoutsSettings, listing: Listing, output: str) -> Converted:
    """Convert every source of a listing; identifiers and labels must be alike in all.

    Raises
    ------
    InputError
        Sources differ in the type of their identifiers, or some have labels and others none; or no image is usable.
    """
    truth = None if settings.truth is None else ray.put(read_truth(settings.truth))
    task = ray.remote(num_cpus=1)(_convert)
    pending = [task.remote(source, settings, truth, output) for source in listing.sources]
    done = Converted(
        counts=Counter(planned=len(lost := [reject for reject in listing.rejects if reject[0]]), rejected=len(lost)),
        problems=[reason for object_id, _, reason in listing.rejects if not object_id],
        rejects=list(listing.rejects),
    )
    for reference in track(pending, "converting images", total=len(pending)):
        done.add(ray.get(reference))
    if len(done.kinds) > 1:
        found = "; ".join(f"{kind}: {url}" for kind, url in sorted(done.kinds.items()))
        raise InputError(f"{output}: its shards cannot be used together: {found}; convert them to separate outputs")
    if not done.shards:
        reasons = [*done.problems, *(reason for _, _, reason in done.rejects)]
        found = "that the truth gives a label" if done.counts["planned"] and settings.truth else "in it"
        raise InputError("; ".join(reasons[:3]) or f"{settings.input}: no images {found}")
    return done


def _convert(source: Source, settings: CutoutsSettings, truth: pa.Table | None, output: str) -> Converted:
    """Write the shards of one source; one that breaks off is a problem, and what came before it is kept."""
    geometry = geometry_of(settings)
    conversion = Conversion(settings, geometry)
    done = Converted(rejects=conversion.rejects)
    try:
        parts = conversion.cutouts(read_images(source, settings, geometry), settings.shard_rows)
        for part in _labelled(parts, truth, settings, done.counts):
            write_shard(storage.join(output, f"{source.name}-{done.shards:05d}.parquet"), part)
            done.shards += 1
            done.counts.update(count_rows(part))
            kind = f"{part.object_id.type} identifiers, {'labels' if part.label is not None else 'no labels'}"
            done.kinds.setdefault(kind, source.url)
    except InputError as error:
        done.problems.append(str(error))
        left = 0 if source.rows is None else source.rows - conversion.seen
        done.rejects.append(("", source.url, str(error)))
        done.counts["quarantined"] += left
        done.counts["planned"] += left
    done.counts["planned"] += conversion.seen
    elsewhere = sum(done.counts[end] for end in ("written", "ambiguous", "unmatched"))
    done.counts["rejected"] += conversion.seen - elsewhere
    return done


def _labelled(
    parts: Iterator[Cutouts], truth: pa.Table | None, settings: CutoutsSettings, counts: Counter[str]
) -> Iterator[Cutouts]:
    """Parts with the labels of a truth table, where there is one; rows without a sure one are counted and left out."""
    for part in parts:
        if truth is None:
            yield part
            continue
        labels = labels_by_position(truth, settings, part.ra, part.dec)
        counts.update(count_without_label(labels))
        kept = replace(part, label=labels).take(labels >= 0)
        if len(kept):
            yield kept


def read_truth(url: str) -> pa.Table:
    """A truth table, checked; see `matching.checked_truth`."""
    return checked_truth(read_table(storage.normalise(url)), url)


def labels_by_position(
    truth: pa.Table, settings: CutoutsSettings, ra: NDArray[np.float64], dec: NDArray[np.float64]
) -> NDArray[np.int8]:
    """Labels by position: 1 or 0, -1 where it is not sure, -2 where the truth does not say.

    A row without a usable position is not sure.
    """
    labels = np.full(len(ra), AMBIGUOUS, np.int8)
    placed = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    label = label_by_vetting if settings.unmatched == "skip" else label_by_truth
    labels[placed] = label(ra[placed], dec[placed], truth, settings.radius_arcsec)
    return labels


def count_without_label(labels: NDArray[np.int8]) -> Counter[str]:
    """Rows that are left out because the truth gives them no label, or no sure one."""
    return Counter(
        ambiguous=int(np.count_nonzero(labels == AMBIGUOUS)), unmatched=int(np.count_nonzero(labels == UNMATCHED))
    )


def count_rows(part: Cutouts) -> Counter[str]:
    """Rows written, by label and flag."""
    counts = Counter({f"flag {name}": count for name, count in count_flags(part.flags).items()})
    counts["written"] = len(part)
    if part.label is not None:
        counts["label 1"] = int(np.count_nonzero(part.label == 1))
        counts["label 0"] = int(np.count_nonzero(part.label == 0))
    return counts
