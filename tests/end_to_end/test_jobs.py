"""Verbs as Ray jobs on a real head: raw `ray job submit`, and `deepshadows submit` with its log and exit codes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from deepshadows import storage
from deepshadows.catalog import collection
from deepshadows.outcomes import ExitCode, Failure, UsageError
from deepshadows.run.manifest import read_manifest, score_objects
from deepshadows.sky.shards import split, write_shard
from deepshadows.verbs import submit
from tests.catalog.finished_runs import current_version, mixed_tables, write_run
from tests.end_to_end.ray_head import RayHead, listeners
from tests.model.blobs import blob_cutouts
from tests.seaweed import SECRET, SeaweedFS

pytestmark = pytest.mark.timeout(600)
JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(scope="module")
def head(object_store: SeaweedFS) -> Iterator[RayHead]:
    """The cluster has its own credentials, as on real nodes."""
    found = RayHead(object_store.environment())
    yield found
    found.stop()


@pytest.fixture
def head_without_keys(object_store: SeaweedFS) -> Iterator[RayHead]:
    """A cluster that nobody gave credentials."""
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    with pytest.MonkeyPatch.context() as patch:
        for key in keys:
            patch.delenv(key)
        found = RayHead({name: value for name, value in object_store.environment().items() if name not in keys})
    yield found
    found.stop()


def submitted(
    head: RayHead, *words: str, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """`deepshadows submit ...` on that head: the record in its last line, and what it showed on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "deepshadows", "submit", *words, "--address", head.address, "--json"],
        env={**os.environ, **(head.access if environment is None else environment)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
    )
    record = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == record["exit_code"], done.stderr
    return record, done.stderr


def raw_job(head: RayHead, *words: str) -> None:
    """`ray job submit -- python VERB.py ...` with the folder jobs/ as working directory."""
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", head.address]
    done = subprocess.run(
        [*command, "--working-dir", str(JOBS), "--", "python", *words],
        env={**os.environ, **head.access},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout


def scores(run: str) -> pa.Table:
    urls = [storage.join(run, score.url) for block in score_objects(run, read_manifest(run)) for score in block]
    table = pa.concat_tables(pq.read_table(storage.open_arrow(url)) for url in urls)
    return table.drop_columns(["unit", "run"]).sort_by("object_id")


def test_a_chain_of_raw_jobs_and_the_same_classify_as_a_submitted_one(head: RayHead, bucket: str) -> None:
    for number, part in enumerate(split(blob_cutouts(200), 100)):
        write_shard(f"{bucket}/shards/{number}.parquet", part)
    recipe = f"{bucket}/recipe.toml"
    storage.write(recipe, b'optimizer = "adamw"\nlearning_rate = 1e-3\nepochs = 1\nl2_conv = 0.0\nl2_dense = 0.0\n')
    raw_job(head, "train.py", "--cutouts", f"{bucket}/shards", "--output", f"{bucket}/net", "--recipe", recipe)
    flags = ["--input", f"{bucket}/shards", "--checkpoint", f"{bucket}/net", "--precision", "exact"]
    raw_job(head, "classify.py", *flags, "--output", f"{bucket}/raw")
    record, log = submitted(head, "classify", *flags, "--output", f"{bucket}/submitted")
    assert re.search(r"^scoring units: 2/2 in \d+\.\d s, \d+ images/s, \d+ flags, 0 quarantined$", log, re.MULTILINE)
    assert "\x1b" not in log
    assert (record["status"], record["rows_scored"], record["job_output"]) == ("SUCCEEDED", 200, f"{bucket}/submitted")
    assert scores(f"{bucket}/raw").num_rows == 200
    assert scores(f"{bucket}/raw").equals(scores(f"{bucket}/submitted"))
    raw_job(head, "publish.py", "--run", f"{bucket}/raw", "--catalog", f"{bucket}/cat")
    assert current_version(f"{bucket}/cat") == "v0001"


def test_every_server_of_a_head_listens_on_the_loopback_alone(head: RayHead) -> None:
    assert listeners(head.family()) == {"127.0.0.1"}


def test_submit_follows_the_log_and_brings_the_figures(head: RayHead, place: str) -> None:
    run = write_run(f"{place}/run", mixed_tables())
    record, log = submitted(head, "publish", "--run", run, "--catalog", f"{place}/cat")
    assert (record["verb"], record["status"], record["exit_code"]) == ("submit", "SUCCEEDED", ExitCode.DONE)
    assert (record["rows_published"], record["job_output"]) == (2979, f"{place}/cat")
    assert log.count("version v0001, 2979 rows") == 1
    assert '{"verb"' not in log
    assert current_version(f"{place}/cat") == "v0001"


def test_settings_travel_with_their_relative_paths_made_absolute(head: RayHead, tmp_path: Path) -> None:
    write_run(str(tmp_path / "run é"), mixed_tables())
    (tmp_path / "publish.toml").write_text('run = ["run é"]\ncatalog = "cat"\npartition-rows = 500\naddress = "auto"\n')
    record, _ = submitted(head, "publish", "--config", "publish.toml", cwd=tmp_path)
    assert record["exit_code"] == ExitCode.DONE
    assert collection.read_current(str(tmp_path / "cat")).num_rows == 2979


def test_the_exit_code_is_that_of_the_job(head: RayHead, bucket: str) -> None:
    record, log = submitted(head, "publish", "--run", f"{bucket}/nothing", "--catalog", f"{bucket}/cat")
    assert (record["exit_code"], record["status"]) == (ExitCode.USAGE, "FAILED")
    assert "no finished run there" in record["error"]
    assert "no finished run there" in log


def test_status_and_stop_of_a_job_that_was_not_waited_for(head: RayHead, bucket: str) -> None:
    run = write_run(f"{bucket}/run", mixed_tables())
    begun, _ = submitted(head, "publish", "--run", run, "--catalog", f"{bucket}/cat", "--no-wait")
    job = begun["job"]
    assert begun["status"] in ("PENDING", "RUNNING")
    stopped, _ = submitted(head, "--stop", job)
    assert (stopped["exit_code"], stopped["status"]) == (ExitCode.DONE, "STOPPED")
    assert submitted(head, "--status", job)[0]["exit_code"] == ExitCode.FAILED


def test_the_same_job_is_followed_while_it_runs_and_goes_on_once_it_has_ended(head: RayHead, bucket: str) -> None:
    """Classify waits for a lease whose holder is elsewhere: the job is sure to be running still."""
    write_shard(f"{bucket}/in/0.parquet", blob_cutouts(60))
    storage.write(f"{bucket}/run/lease.json", json.dumps({"token": "x", "generation": 0, "beat": 1}).encode())
    words = ["classify", "--input", f"{bucket}/in", "--output", f"{bucket}/run", "--precision", "exact"]
    first, _ = submitted(head, *words, "--no-wait")
    (config := Path(head.folder, "same.toml")).write_text(
        f'input = "{bucket}/in"\noutput = "{bucket}/run"\nprecision = "exact"\nretries = 2\n'
    )
    second, log = submitted(head, "classify", "--config", str(config), "--no-wait")
    assert first["job"] == second["job"]
    assert "was running already" in log
    assert submitted(head, "--stop", first["job"])[0]["status"] == "STOPPED"
    storage.delete(f"{bucket}/run/lease.json")
    again, _ = submitted(head, *words)
    assert (again["exit_code"], again["rows_scored"]) == (ExitCode.DONE, 60)
    assert (first["job"][:-1], first["job"][-1], again["job"]) == (again["job"][:-1], "1", f"{again['job'][:-1]}2")


def test_nodes_without_credentials_are_told_of(head_without_keys: RayHead, bucket: str) -> None:
    """This side has them; they must not have travelled."""
    assert os.environ["AWS_ACCESS_KEY_ID"]
    words = ["publish", "--run", f"{bucket}/run", "--catalog", f"{bucket}/cat"]
    record, log = submitted(head_without_keys, *words)
    assert record["exit_code"] == ExitCode.FAILED
    assert "no key in the environment" in log
    assert "none are forwarded" in record["error"]


def test_no_credentials_travel(head: RayHead, bucket: str) -> None:
    planted = {"AWS_SESSION_TOKEN": "planted-s3cret", "DEEPSHADOWS_PLANTED": "planted-s3cret"}
    words = ["publish", "--run", f"{bucket}/nothing", "--catalog", f"{bucket}/cat"]
    record, log = submitted(head, *words, environment={**head.access, **planted})
    headers = {"Authorization": f"Bearer {head.token}"}
    told = requests.get(f"{head.address}/api/jobs/{record['job']}", headers=headers, timeout=10).text
    assert json.loads(told)["metadata"] == {"verb": "publish"}
    assert list(json.loads(told)["runtime_env"]) == ["working_dir"]
    assert "planted-s3cret" not in told + log + json.dumps(record)
    package = json.loads(told)["runtime_env"]["working_dir"].removeprefix("gcs://").removesuffix(".zip")
    (unpacked,) = head.folder.rglob(package)
    assert [path.name for path in unpacked.iterdir()] == ["settings.toml"], "what was uploaded"
    looked_at = 0
    for path in head.folder.rglob("*"):
        if path.is_file() and path != head.folder / "token":
            text = path.read_bytes()
            looked_at += 1
            assert not [secret for secret in ("planted-s3cret", SECRET, head.token) if secret.encode() in text], path
    assert looked_at > 20, "logs of Ray, of the jobs, and what they were sent"


def test_a_head_with_a_token_lets_no_one_else_in(head: RayHead) -> None:
    for headers, code in (({}, 401), ({"Authorization": "Bearer 0123456789abcdef"}, 403)):
        assert requests.get(f"{head.address}/api/jobs/", headers=headers, timeout=10).status_code == code
    record, log = submitted(head, "--status", "x", environment={"RAY_AUTH_MODE": "disabled"})
    assert record["exit_code"] == ExitCode.FAILED
    assert "RAY_AUTH_TOKEN_PATH" in log


def test_an_unknown_job_is_not_found(head: RayHead) -> None:
    for flag in ("--status", "--stop"):
        record, log = submitted(head, flag, "nobody")
        assert record["exit_code"] == ExitCode.USAGE
        assert "no such job" in log


def test_no_dashboard_is_a_clear_failure() -> None:
    with socket.socket() as taken:  # bound, so that nobody else comes there, and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(Failure, match="no Ray dashboard answers"):
            submit.run(None, None, address, True, "job", None)
        assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ([], {}, "give a VERB"),
        (["publish"], {"status": "x"}, "give a VERB"),
        ([], {"status": "x", "stop": "y"}, "give a VERB"),
        (["publish"], {"address": "127.0.0.1:6379"}, "give the dashboard"),
    ],
)
def test_wrong_usage(words: list[str], changes: dict[str, object], message: str) -> None:
    values = {"address": "http://127.0.0.1:1", "wait": True, "status": None, "stop": None, **changes}
    with pytest.raises(UsageError, match=message):
        submit.run(verb=words[0] if words else None, settings=None, **values)  # type: ignore[arg-type]
