"""What Prometheus finds on a node of a real Ray while a run goes on, and that the dashboard draws what is there."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from deepshadows import storage
from deepshadows.outcomes import ExitCode
from deepshadows.run.manifest import read_manifest
from deepshadows.settings import Classify
from deepshadows.sky.shards import write_shard
from deepshadows.verbs import classify
from tests.sky.test_shards import cutouts_of

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"
LIMIT_S = 60.0
ROWS = 60


def scraped() -> dict[str, list[Sample]]:
    """Samples of all nodes, by name."""
    import ray

    found = defaultdict(list)
    for node in ray.nodes():
        text = requests.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}", timeout=10).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name].append(sample)
    return found


def counted(found: dict[str, list[Sample]], run: str) -> dict[str, float]:
    """The counters of a run: by name, those of units by outcome."""
    counts: dict[str, float] = defaultdict(float)
    for name in ("images", "input_bytes", "retries", "units"):
        for sample in found.get(f"ray_deepshadows_{name}_total", ()):
            if sample.labels["run"] == run:
                counts[sample.labels.get("outcome", name)] += sample.value
    return counts


@pytest.mark.usefixtures("ray_local")
def test_prometheus_finds_what_the_dashboard_draws(checkpoint: str, tmp_path: Path) -> None:
    """Two units, one of which cannot be read; each metric of each query is there once they are done."""
    write_shard(str(tmp_path / "in" / "0.parquet"), cutouts_of(ROWS, labelled=False))
    storage.write(str(tmp_path / "in" / "bad.parquet"), b"not Parquet")
    told = classify.run(
        Classify(
            input=str(tmp_path / "in"),
            checkpoint=checkpoint,
            output=str(tmp_path / "run"),
            precision="exact",
            retries=1,
        )
    )
    assert told.exit_code == ExitCode.EXCEPTIONS
    run = read_manifest(str(tmp_path / "run")).run
    wanted = {"images": ROWS, "input_bytes": ROWS * 12_288, "retries": 1, "done": 1, "quarantined": 1}
    deadline = time.monotonic() + LIMIT_S
    names = re.findall(r"ray_\w+", DASHBOARD.read_text())
    assert len(names) > 10
    drawn = set(names)
    while (counted(found := scraped(), run) != wanted or not drawn <= set(found)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert counted(found, run) == wanted
    states = {sample.labels["state"] for sample in found["ray_deepshadows_scorer_seconds_total"]}
    assert states == {"busy", "idle"}
    assert drawn <= set(found)
