"""C of our own, compiled where it is first used and kept in the user's cache. No Ray, no torch."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC")
COMPILE_LIMIT_S = 120.0


class CannotCompileError(Exception):
    """There is no C compiler, or it does not take the source; the message says which."""


@cache
def load(sources: tuple[Path, ...], flags: tuple[str, ...]) -> ctypes.CDLL:
    """The shared library of some C files: from the cache, or compiled (0.6 s) and kept there for the next process.

    The cache is `$XDG_CACHE_HOME/deepshadows` or `~/.cache/deepshadows`, the user's alone; where it cannot be used,
    every process compiles for itself. The name of a library hashes sources, flags, the compiler's path and the CPU.

    Raises
    ------
    CannotCompileError
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    program = shutil.which(compiler[0])
    if program is None:
        raise CannotCompileError(f"no C compiler: {compiler[0]} is not on the PATH; install gcc or set CC")
    command = [program, *compiler[1:], *FLAGS, *flags]
    parts = [*map(str.encode, command), *(source.read_bytes() for source in sources), _cpu()]
    digest = hashlib.sha256(b"\0".join(parts))
    name = f"{sources[0].stem}-{digest.hexdigest()[:20]}.so"
    with contextlib.suppress(OSError, RuntimeError):  # no home, none there yet, or a disk that nothing is run from
        return ctypes.CDLL(str(_cache() / name))
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / name
        _compile([*command, "-o", str(made), *map(str, sources)])
        with contextlib.suppress(OSError, RuntimeError):
            _keep(made, _cache())
        try:
            return ctypes.CDLL(str(made))
        except OSError as error:
            raise CannotCompileError(f"what {program} made cannot be loaded: {error}") from error


def _cpu() -> bytes:
    """What may differ between machines that share a home, where the user's own flags make use of it."""
    lines = Path("/proc/cpuinfo")
    flags = (
        [line for line in lines.read_text().splitlines() if line.startswith(("flags", "Features"))]
        if lines.exists()
        else []
    )
    return "\n".join([platform.machine(), *flags[:1]]).encode()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepshadows"


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompileError(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
        raise CannotCompileError(f"{command[0]} failed: {reason}")


def _keep(made: Path, folder: Path) -> None:
    """Whole or not at all, with several processes at it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as handle:
        handle.write(made.read_bytes())
    Path(handle.name).replace(folder / made.name)
