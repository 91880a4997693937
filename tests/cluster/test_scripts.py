"""The Slurm script under a real Slurm of two nodes on this machine.

apt-get install slurmctld slurmd slurm-client munge && pytest -n 0 -m slow tests/cluster
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepshadows import storage
from deepshadows.sky.shards import split, write_shard
from tests.cluster.slurm_daemons import Slurm, missing
from tests.sky.test_shards import cutouts_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(700),
    pytest.mark.skipif(bool(missing()), reason=f"a Slurm of its own needs {', '.join(missing())}"),
]
SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"
ROWS = 6000
LIMIT_S = 600
"""Slurm lets a requeued job wait for two minutes before it starts it again."""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    found = Slurm(nodes=2, cpus=4)
    yield found
    found.stop()


def batch(slurm: Slurm, folder: Path, *words: str) -> str:
    """`sbatch cluster/slurm.sh ...` on both nodes; the id of the job."""
    slurm.environment.update(
        DEEPSHADOWS_SCRATCH=str(folder), PATH=f"{Path(sys.executable).parent}:{slurm.environment['PATH']}"
    )
    options = ["--parsable", "--nodes=2", "--cpus-per-task=2", f"--output={folder}/log", "--export=ALL"]
    return slurm.run("sbatch", *options, str(SCRIPT), *words).stdout.strip()


def state(slurm: Slurm, job: str) -> str:
    told = slurm.run("scontrol", "show", "job", job).stdout
    return next(word.split("=")[1] for word in told.split() if word.startswith("JobState="))


def test_a_preempted_run_goes_on_when_it_is_queued_again(slurm: Slurm, tmp_path: Path) -> None:
    """Requeued once some units are done: the second start does the others, on two Ray nodes, and leaves no token."""
    for number, part in enumerate(split(cutouts_of(ROWS, labelled=False), 1000)):
        write_shard(str(tmp_path / "in" / f"{number}.parquet"), part)
    run = tmp_path / "run"
    words = ["classify", "--input", f"{tmp_path}/in", "--output", str(run), "--precision", "exact", "--json"]
    job = batch(slurm, tmp_path, *words, "--unit-rows", "1000")
    deadline = time.monotonic() + LIMIT_S
    while not storage.list_objects(str(run / "scores")) and time.monotonic() < deadline:
        assert state(slurm, job) in ("PENDING", "CONFIGURING", "RUNNING"), (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.02)
    assert storage.list_objects(str(run / "scores")), slurm.run("scontrol", "show", "job", job).stdout
    slurm.run("scontrol", "requeue", job)
    while state(slurm, job) not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT") and time.monotonic() < deadline:
        time.sleep(0.5)
    log = (tmp_path / "log").read_text()
    assert state(slurm, job) == "COMPLETED", log[-3000:]
    record = json.loads([line for line in log.splitlines() if line.startswith('{"verb": ')][-1])
    assert (record["exit_code"], record["rows_scored"], record["units_done"]) == (0, ROWS, ROWS // 1000)
    assert 0 < record["rows_scored_here"] < ROWS, "the second start had both something done and something to do"
    assert not list(tmp_path.glob("deepshadows-job-*")), "the token goes with the job"
