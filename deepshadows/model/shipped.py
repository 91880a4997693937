"""Networks that come with the package, known by name. No torch, no Ray."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from deepshadows import storage

WEIGHTS = Path(str(resources.files("deepshadows"))) / "weights"


def names() -> list[str]:
    """Of the networks that this version brings."""
    return sorted(folder.name for folder in WEIGHTS.glob("deepshadows-*"))


def normalise(checkpoint: str) -> str:
    """A shipped name as it is, so that settings mean the same on every machine; else as `storage.normalise`."""
    return checkpoint if checkpoint in names() else storage.normalise(checkpoint)


def folder(checkpoint: str) -> str:
    """Where the files are: the package's folder of a shipped name; any other address as it is."""
    return str(WEIGHTS / checkpoint) if checkpoint in names() else checkpoint
