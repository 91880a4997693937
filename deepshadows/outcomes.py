"""How work can end: the exit codes, and the errors that lead to them. Imports nothing of ours."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class ExitCode(enum.IntEnum):
    """What a command tells the shell."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    EXCEPTIONS = 3
    """Complete, with some units quarantined."""
    HELD = 4
    """Another driver holds the lease or has committed."""
    DRIFT = 5


class Failure(Exception):
    """Base of every error we raise on purpose; the message says what, where, and what to do."""

    exit_code = ExitCode.FAILED


class UsageError(Failure):
    """The command, a setting or a path given by the user is wrong."""

    exit_code = ExitCode.USAGE


class InputError(Failure):
    """An input object (tile, shard, table, checkpoint) cannot be used as it is."""


class AbsentError(InputError):
    """What the user named is not there."""

    exit_code = ExitCode.USAGE


class StorageError(Failure):
    """The store did not do what was asked: unreachable, full, read-only."""


class NotFoundError(StorageError):
    """No object is at that address."""

    exit_code = ExitCode.USAGE


class ForbiddenError(StorageError):
    """The store refuses these credentials."""


class HeldError(Failure):
    """Another driver holds the lease of this run or catalogue, or has committed it."""

    exit_code = ExitCode.HELD


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a verb tells its user: `figures` are the JSON keys of CONTRACT.md, `text` the lines to read."""

    verb: str
    output: str
    exit_code: ExitCode = ExitCode.DONE
    figures: Mapping[str, Any] = field(default_factory=dict)
    text: tuple[str, ...] = ()
