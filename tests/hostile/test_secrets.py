"""Planted secrets: none is in a file, a message, a log or the metadata of a job, and none is taken as an address."""

from __future__ import annotations

import os
import uuid

import pytest

from deepshadows import cli, storage
from deepshadows.cli import VERBS
from deepshadows.outcomes import ExitCode, ForbiddenError, StorageError, UsageError
from deepshadows.settings import Classify, Publish
from deepshadows.sky.shards import split, write_shard
from deepshadows.verbs import classify, publish
from tests.end_to_end.ray_head import free_ports
from tests.seaweed import SECRET
from tests.sky.test_shards import cutouts_of
from tests.verbs.conftest import checkpoint as small_checkpoint  # noqa: F401 -- the fixture

PLANTED = "planted-s3cret"


@pytest.mark.usefixtures("ray_local")
def test_no_secret_is_written_anywhere(bucket: str, small_checkpoint: str) -> None:  # noqa: F811
    """The key that every client uses is in no object of a run, of a catalogue, nor in what a verb tells."""
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    for number, part in enumerate(split(cutouts_of(60, labelled=False), 30)):
        write_shard(f"{bucket}/in/{number}.parquet", part)
    storage.write(f"{bucket}/in/bad.parquet", b"not Parquet")
    told = classify.run(
        Classify(
            input=f"{bucket}/in", checkpoint=small_checkpoint, output=f"{bucket}/run", precision="exact", retries=0
        )
    )
    assert told.exit_code == ExitCode.EXCEPTIONS
    shown = publish.run(Publish(run=(f"{bucket}/run",), catalog=f"{bucket}/cat"))
    objects = [*storage.list_objects(f"{bucket}/run"), *storage.list_objects(f"{bucket}/cat")]
    assert len(objects) > 8
    for entry in objects:
        assert SECRET.encode() not in storage.read(entry.url), entry.url
    assert SECRET not in str(told) + str(shown)


@pytest.mark.usefixtures("object_store")
@pytest.mark.parametrize("read", [storage.read, storage.open_arrow, storage.list_objects])
def test_no_error_of_a_store_shows_a_key(read: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused credentials, and a server that is not there; each bucket has clients of its own."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)
    monkeypatch.setenv("AWS_SESSION_TOKEN", PLANTED)
    with pytest.raises(ForbiddenError) as refused:
        read(f"s3://{uuid.uuid4().hex}/a.parquet")  # type: ignore[operator]
    assert PLANTED not in str(refused.value)
    assert PLANTED not in repr(refused.value.__cause__)


@pytest.mark.usefixtures("object_store")
def test_no_error_of_a_server_that_is_away_shows_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(StorageError) as away:
        storage.read(f"s3://{uuid.uuid4().hex}/a.parquet")
    assert PLANTED not in str(away.value)
    assert PLANTED not in repr(away.value.__cause__)


@pytest.mark.parametrize(
    "words",
    [
        ["classify", "--input", f"s3://key:{PLANTED}@bucket/in", "--output", "run"],
        ["publish", "--run", "a", "--run", f"https://me:{PLANTED}@host/run", "--catalog", "cat"],
        ["fetch", "datasets", "--output", "x", "--url", f"https://me:{PLANTED}@host"],
        ["train", "--cutouts", "x", "--output", "y", "--address", f"ray://me:{PLANTED}@host:10001"],
        ["submit", "publish", "--run", "a", "--catalog", "c", "--address", f"http://me:{PLANTED}@host:8265"],
        ["submit", "classify", "--input", f"s3://key:{PLANTED}@bucket/in", "--output", "s3://bucket/run"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_an_address_with_a_password_is_refused_and_not_repeated(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--json"])
    assert end.value.code == ExitCode.USAGE
    shown = capsys.readouterr()
    assert "leave user and password out" in shown.err
    assert PLANTED not in shown.out + shown.err


def test_an_at_sign_in_a_key_is_no_password() -> None:
    values = {"run": ["s3://bucket/me@home/run"], "catalog": "s3://bucket/cat@2026"}
    assert VERBS["publish"].resolve(values, "test").model_dump()["catalog"] == "s3://bucket/cat@2026"
    with pytest.raises(UsageError, match="leave user and password out"):
        VERBS["publish"].resolve({**values, "catalog": "s3://bucket@elsewhere/cat"}, "test")
