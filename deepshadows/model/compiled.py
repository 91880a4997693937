"""C that training runs where there is a compiler, for this CPU's instructions and shared by torch's threads. No Ray."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from ctypes import CDLL
from functools import cache
from pathlib import Path

import torch

from deepshadows import native

INSTRUCTIONS = {
    ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"): (
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mprefer-vector-width=512",
    ),
    ("avx2", "fma3"): ("-mavx2", "-mfma"),
    (): (),
}
"""Names of torch, and what the compiler is told where the CPU has them all; the first that fits counts."""


def library(source: Path, *flags: str) -> CDLL | None:
    """The functions of a file; None where it cannot be compiled."""
    found = _compiled(source, *flags)
    return found if isinstance(found, CDLL) else None


def refusal(source: Path, *flags: str) -> str:
    """Why it cannot be compiled; empty where it can."""
    found = _compiled(source, *flags)
    return "" if isinstance(found, CDLL) else found


@cache
def _compiled(source: Path, *flags: str) -> CDLL | str:
    has = torch.cpu.get_capabilities()
    fits = next(told for names, told in INSTRUCTIONS.items() if all(has.get(name, False) for name in names))
    try:
        return native.load((source,), ("-fno-trapping-math", "-fno-math-errno", *fits, *flags))
    except native.CannotCompileError as error:
        return str(error)


def in_threads(count: int, work: Callable[[int, int], None]) -> None:
    """`work(start, stop)` on parts of `range(count)`, one for each of torch's threads; the first in this thread."""
    threads = max(1, min(torch.get_num_threads(), count))
    bounds = [count * number // threads for number in range(threads + 1)]
    first, *others = itertools.pairwise(bounds)
    waiting = [_executor(threads).submit(work, *part) for part in others]
    work(*first)
    for other in waiting:
        other.result()


@cache
def _executor(threads: int) -> Executor:
    return ThreadPoolExecutor(threads, thread_name_prefix="training")
