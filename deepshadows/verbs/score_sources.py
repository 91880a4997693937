"""The score objects of finished runs, as what reads their rows takes them. No Ray, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from deepshadows import storage
from deepshadows.catalog.score_objects import ScoreSource
from deepshadows.outcomes import InputError
from deepshadows.run.manifest import Manifest, score_objects


def sources_of(run: str, manifest: Manifest) -> Iterator[ScoreSource]:
    """The score objects of a finished run, sorted by unit."""
    for score in chain.from_iterable(score_objects(run, manifest)):
        if score.url.startswith("/") or "://" in score.url or ".." in score.url.split("/"):
            raise InputError(f"{run}: its manifest names a score object outside the run: {score.url}")
        url = storage.join(run, score.url)
        yield ScoreSource(url, score.size_bytes, score.rows, manifest.fingerprint, manifest.id_type)
