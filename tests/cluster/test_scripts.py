"""The Slurm script as it is, on a Ray of two nodes; in place of Slurm's commands, ones that start their arguments."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from deepshadows.sky.shards import split, write_shard
from tests.seaweed import is_free
from tests.sky.test_shards import cutouts_of

SLURM = Path(__file__).parents[2] / "cluster" / "slurm.sh"
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
[ "$1" = hostname ] && { echo 127.0.0.1; exit; }
exec "$@"
"""
SCONTROL = "#!/bin/sh\necho here\n"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_under_slurm_ends_what_it_started_and_nothing_else(tmp_path: Path) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for number, part in enumerate(split(cutouts_of(600, labelled=False), 200)):
        write_shard(str(tmp_path / "in" / f"{number}.parquet"), part)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DEEPSHADOWS_SCRATCH": str(tmp_path),
        "SLURM_JOB_ID": str(next(job for job in random.sample(range(10_000), 100) if is_free(20_000 + job))),
        "SLURM_JOB_NODELIST": "here,there",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "2",
    }
    words = ["classify", "--input", f"{tmp_path}/in", "--output", f"{tmp_path}/run", "--precision", "exact", "--json"]
    done = subprocess.run(
        ["bash", SLURM, *words], env=environment, capture_output=True, text=True, timeout=350, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["rows_scored"] == 600
    assert not list(tmp_path.glob("deepshadows-job-*")), "the token goes with the job"
