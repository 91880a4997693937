"""Real things for the tests: an S3 server, its environment, a local Ray, places to write to."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

import pytest

from tests.seaweed import SeaweedFS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folders with the longest files first: no worker is left with one of them when the others are done."""
    first = ("end_to_end", "verbs", "catalog", "hostile")
    items.sort(key=lambda item: first.index(item.path.parent.name) if item.path.parent.name in first else len(first))


@pytest.fixture(scope="session")
def object_store() -> Iterator[SeaweedFS]:
    """A SeaweedFS with the environment of this process pointing to it."""
    server = SeaweedFS()
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture(scope="session")
def ray_local(object_store: SeaweedFS) -> Iterator[None]:
    """A local Ray of 4 CPUs; its workers inherit the environment of the object store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # drivers in processes of their own: the loopback too
        import ray

        from deepshadows.verbs.ray_session import on_the_loopback

        with on_the_loopback():
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def session_bucket(object_store: SeaweedFS) -> str:
    """The one bucket of all tests: SeaweedFS gives each bucket volumes of its own, and has none left after some 80."""
    return object_store.create_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def bucket(session_bucket: str) -> str:
    """A fresh prefix in the bucket of the session, as `s3://name/prefix`."""
    return f"{session_bucket}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> str:
    """A folder that is not there yet: below a temporary directory, then below a fresh prefix of a bucket."""
    if request.param == "local":
        return str(request.getfixturevalue("tmp_path") / "place")
    return f"{request.getfixturevalue('bucket')}/place"
