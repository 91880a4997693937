"""A `reprocess` that is killed, wherever it stands, is taken up by the next; readers see whole versions only."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from deepshadows import storage
from deepshadows.catalog import collection
from tests.verbs.test_reprocess import ROWS, content, put, scored_one_by_one, updated

pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning", "ignore:PosixUPath on python"),
]
VICTIM = """
import importlib, sys
from deepshadows.settings import Reprocess
from deepshadows.verbs import reprocess, reprocess_update

def stand(*given, **named):
    print("here", flush=True)
    sys.stdin.read()

owner, _, name = sys.argv[5].rpartition(".")
setattr(importlib.import_module(owner), name, stand)
reprocess.run(Reprocess(input=sys.argv[1], catalog=sys.argv[2], checkpoint=sys.argv[3], address=sys.argv[4],
                        precision="exact", partition_rows=int(sys.argv[6])))
"""
PLACES = {
    "planned, nothing scored": "deepshadows.verbs.classify.carry_out",
    "scored": "deepshadows.verbs.reprocess_update.take_stock",
    "partitions written": "deepshadows.verbs.reprocess_update.compare_versions",
}


@pytest.mark.parametrize("stands", PLACES)
def test_a_killed_call_is_taken_up_by_the_next(tmp_path: Path, checkpoint: str, stands: str) -> None:
    place = str(tmp_path)
    put(place, 0)
    updated(place, checkpoint)
    put(place, 1)
    put(place, 0, look=1)
    cluster = ray.get_runtime_context().gcs_address
    arguments = [f"{place}/in", f"{place}/cat", checkpoint, cluster, PLACES[stands], str(ROWS)]
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == "here\n"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert content(f"{place}/cat").num_rows == ROWS
    assert updated(place, checkpoint).figures["units_scored_here"] == 2
    assert content(f"{place}/cat").equals(scored_one_by_one(place, checkpoint))
    left = {storage.relative(entry.url, f"{place}/cat") for entry in storage.list_objects(f"{place}/cat/reprocess")}
    assert left == {"reprocess/lease.json", "reprocess/seen.json"}
    assert collection.current(f"{place}/cat").name == ("v0003" if "written" in stands else "v0002")
