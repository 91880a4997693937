"""Steps of a benchmark in processes of their own, so that memory and caches of one do not count for the next."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Step = Callable[[Path], Mapping[str, Any]]
Found = Mapping[str, Mapping[str, Any]]


def run_step(module: str, name: str, folder: Path) -> None:
    """Keep what a step returns, with `seconds` (unless it says so itself), CPU time and peak memory of its process, and
    the load of the machine when it began."""
    command = [sys.executable, "-m", module, "--step", name, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    _kept(folder, name).write_text(done.stdout.splitlines()[-1])
    print(f"{name}: {_kept(folder, name).read_text()}", flush=True)


def _kept(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def step_or_whole(
    module: str, preparation: Mapping[str, Step], measured: Mapping[str, Step], report: Callable[[Found], None]
) -> None:
    """The command line of a benchmark: all of it, a part of it, or one step for `run_step`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", choices=[*preparation, *measured])
    parser.add_argument("--prepare", action="store_true", help="make the files that it works on, and no more")
    parser.add_argument("--report", action="store_true", help="write down what was measured before, and no more")
    parser.add_argument(
        "--folder", type=Path, required=True, help="scratch folder; what is prepared there is used again"
    )
    wanted = parser.parse_args()
    folder: Path = wanted.folder
    folder.mkdir(parents=True, exist_ok=True)
    if wanted.step is not None:
        _one(wanted.step, {**preparation, **measured}[wanted.step], folder)
        return
    if not (folder / "prepared").exists():
        for name in preparation:
            run_step(module, name, folder)
        (folder / "prepared").touch()
    for name in () if wanted.prepare or wanted.report else measured:
        run_step(module, name, folder)
    if not wanted.prepare:
        report({name: json.loads(path.read_text()) for name in measured if (path := _kept(folder, name)).exists()})


def _one(name: str, step: Step, folder: Path) -> None:
    load, began = os.getloadavg()[0], time.perf_counter()
    found = dict(step(folder))
    found.setdefault("seconds", round(time.perf_counter() - began, 2))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found["cpu_s"] = round(sum(one.ru_utime + one.ru_stime for one in used), 1)
    found["peak_gib"] = round(used[0].ru_maxrss / 2**20, 2)
    found["load"] = round(load, 1)
    print(json.dumps(found))
