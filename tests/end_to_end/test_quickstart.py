"""`quickstart` as its first user runs it: one command, no data, a catalogue and pictures, on a small machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsdb
import psutil
import pytest
from matplotlib.image import imread

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_S = 240.0
LIMIT_BYTES = 6e9
SAMPLE_S = 1.0
GIVE_UP_S = 500.0
CANDIDATE = re.compile(r"^ *\d+ +\d+\.\d{6} +-?\d+\.\d{6} +[01]\.\d{3}  (not an )?LSBG$")


@dataclass(frozen=True)
class Outcome:
    """What one run of the command left, and what it took."""

    folder: Path
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found


def memory_bytes(root: psutil.Process) -> int:
    """Memory of a process and all below it, shared pages counted once (PSS)."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
            total += process.memory_full_info().pss
    return total


def quickstart(folder: Path, logs: Path, *flags: str) -> Outcome:
    """Run the command, looking at its memory each second."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    command = [sys.executable, "-m", "deepshadows", "quickstart", "--output", str(folder), "--json", *flags]
    started, peak_bytes = time.monotonic(), 0
    with (logs / "stdout").open("wb") as stdout, (logs / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr, start_new_session=True)
        root = psutil.Process(process.pid)
        while process.poll() is None and time.monotonic() - started < GIVE_UP_S:
            try:
                peak_bytes = max(peak_bytes, memory_bytes(root))
                process.wait(SAMPLE_S)
            except (subprocess.TimeoutExpired, psutil.NoSuchProcess):
                continue
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with its Ray
    seconds = time.monotonic() - started
    texts = [(logs / name).read_text() for name in ("stdout", "stderr")]
    outcome = Outcome(folder, process.wait(), *texts, seconds, peak_bytes)
    print(outcome.stdout, outcome.stderr, f"{seconds:.0f} s, {peak_bytes / 1e9:.2f} GB", sep="\n")
    return outcome


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = quickstart(tmp_path_factory.mktemp("quick") / "start", tmp_path_factory.mktemp("first"))
    assert outcome.exit_code == 0, outcome.stderr[-3000:]
    return outcome


@pytest.fixture(scope="module")
def second(first: Outcome, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return quickstart(first.folder, tmp_path_factory.mktemp("second"))


def test_it_ends_with_its_record(first: Outcome) -> None:
    record = first.record
    assert (record["verb"], record["exit_code"], record["output"]) == ("quickstart", 0, str(first.folder))
    assert record["rows_planned"] == record["rows_scored"] + record["rows_unscored"] > 100
    assert record["rows_quarantined"] == 0


def test_it_prints_the_best_candidates(first: Outcome) -> None:
    lines = first.stdout.splitlines()
    start = lines.index("best candidates:")
    assert lines[start + 1].split() == ["object_id", "ra_deg", "dec_deg", "p_lsbg", "truth"]
    rows = lines[start + 2 : start + 12]
    assert all(CANDIDATE.match(row) for row in rows), rows
    probabilities = [float(row.split()[3]) for row in rows]
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize("measure", ["completeness", "purity"])
def test_it_prints_how_good_the_catalogue_is(first: Outcome, measure: str) -> None:
    (value,) = re.findall(rf"^ *{measure} +([01]\.\d{{4}})  \([\d.]+ to [\d.]+\)$", first.stdout, re.MULTILINE)
    assert float(value) == pytest.approx(first.record[measure], abs=1e-4)


def test_most_of_the_best_candidates_are_true(first: Outcome) -> None:
    rows = [line for line in first.stdout.splitlines() if CANDIDATE.match(line)]
    assert sum("not an LSBG" not in row for row in rows) >= 6


@pytest.mark.parametrize("name", ["gallery.png", "scores.png"])
def test_the_pictures_are_pictures(first: Outcome, name: str) -> None:
    height, width, channels = imread(first.folder / name).shape
    assert 300 <= height <= 4000
    assert 300 <= width <= 4000
    assert channels in (3, 4)
    assert imread(first.folder / name)[..., :3].std() > 0.02, "not blank"


def test_lsdb_opens_the_catalogue(first: Outcome) -> None:
    sky = lsdb.open_catalog(first.folder / "catalog").compute()
    assert len(sky) == first.record["rows_planned"]
    assert sky["p_lsbg"].notna().sum() == first.record["rows_scored"]


def test_it_takes_less_than_four_minutes(first: Outcome) -> None:
    assert first.seconds < LIMIT_S


def test_it_takes_less_than_six_gigabytes(first: Outcome) -> None:
    assert 0 < first.peak_bytes < LIMIT_BYTES


def test_a_second_run_in_the_same_folder_succeeds(second: Outcome) -> None:
    assert second.exit_code == 0, second.stderr[-3000:]
    assert second.record["verb"] == "quickstart"


def test_a_second_run_finds_the_same(first: Outcome, second: Outcome) -> None:
    names = ("rows_planned", "rows_scored", "tp", "fp", "fn", "completeness", "purity")
    assert {name: second.record[name] for name in names} == {name: first.record[name] for name in names}


def test_a_tile_that_cannot_be_read_is_told_by_the_exit_code(first: Outcome, tmp_path: Path) -> None:
    shutil.copytree(first.folder / "survey", tmp_path / "start" / "survey")
    band = min((tmp_path / "start" / "survey" / "tiles").glob("*_r.fits*"))
    band.write_bytes(band.read_bytes()[: band.stat().st_size // 2])
    third = quickstart(tmp_path / "start", tmp_path, "--precision", "exact")
    assert third.exit_code == third.record["exit_code"] == 3, third.stderr[-3000:]
    assert third.record["engine"] != first.record["engine"]


def test_a_second_run_is_faster(first: Outcome, second: Outcome) -> None:
    assert second.seconds < first.seconds
