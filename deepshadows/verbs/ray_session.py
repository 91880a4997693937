"""Joins the user's Ray cluster, or starts a local one for the length of a verb."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from deepshadows.outcomes import Failure

OBJECT_STORE_BYTES = 1 << 30
"""Of a Ray that we start ourselves: only plans, receipts and a tile's detections pass through it."""


@contextlib.contextmanager
def on_the_loopback() -> Iterator[None]:
    """Ray's servers that are started within listen on 127.0.0.1 alone.

    On Linux Ray takes 127.0.0.1 for a name of the machine's own address and listens on every one; what keeps it from
    that is its switch for desktops, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, which it reads once, when it is imported.
    """
    from ray._private import ray_constants

    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """A connected Ray; one that we started ends with the block, one that we joined goes on."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side writes past log_to_driver
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            with on_the_loopback():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=True,
                )
    except Exception as error:  # Ray raises a bare one where its processes do not start in time
        raise Failure(f"cannot reach Ray at {address or 'a local start'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
