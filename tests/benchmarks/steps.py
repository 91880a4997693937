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


def run_step(module: str, name: str, folder: Path, *, again: bool = True) -> dict[str, Any]:
    """What a step returns, with `seconds` (unless it says so itself), CPU time and peak memory of its process, and the
    load of the machine when it began; kept in the folder, and without `again` taken from there."""
    kept = folder / f"{name}.json"
    if again or not kept.exists():
        command = [sys.executable, "-m", module, "--step", name, "--folder", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        kept.write_text(done.stdout.splitlines()[-1])
    found: dict[str, Any] = json.loads(kept.read_text())
    print(f"{name}: {found}", flush=True)
    return found


def step_or_whole(
    module: str, preparation: Mapping[str, Step], measured: Mapping[str, Step], whole: Callable[[Path, bool], None]
) -> None:
    """The command line of a benchmark: all of it, what prepares it alone, or one step of it for `run_step`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", choices=[*preparation, *measured])
    parser.add_argument("--prepare", action="store_true", help="make the files that it works on, and no more")
    parser.add_argument(
        "--folder", type=Path, required=True, help="scratch folder; what is prepared there is used again"
    )
    wanted = parser.parse_args()
    folder: Path = wanted.folder
    folder.mkdir(parents=True, exist_ok=True)
    if wanted.step is None:
        if not (folder / "prepared").exists():
            for name in preparation:
                run_step(module, name, folder)
            (folder / "prepared").touch()
        if not wanted.prepare:
            whole(folder, not wanted.keep)
        return
    load = os.getloadavg()[0]
    began = time.perf_counter()
    found = dict({**preparation, **measured}[wanted.step](folder))
    found.setdefault("seconds", round(time.perf_counter() - began, 2))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found["cpu_s"] = round(sum(one.ru_utime + one.ru_stime for one in used), 1)
    found["peak_gib"] = round(used[0].ru_maxrss / 2**20, 2)
    found["load"] = round(load, 1)
    print(json.dumps(found))
