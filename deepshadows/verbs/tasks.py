"""Runs one Ray task an item, few at a time, and gives the results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from typing import Any

import ray
from ray.exceptions import RayTaskError

from deepshadows.outcomes import Failure


def in_flight() -> int:
    """Tasks to keep under way: twice the CPUs of the cluster, so that none waits for the driver."""
    return max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))


def in_order(task: Any, items: Iterable[tuple[Any, ...]], limit: int | None = None) -> Generator[Any]:
    """Results of `task.remote(*item)`, at most `limit` (else `in_flight()`) tasks ahead of what was taken.

    `task` is Ray's, or whatever starts one by that name.

    A `Failure` raised in a task is raised here as itself; tasks still waiting are cancelled.
    """
    limit = limit or in_flight()
    pending: deque[Any] = deque()
    source = iter(items)
    try:
        while True:
            while len(pending) < limit and (item := next(source, None)) is not None:
                pending.append(task.remote(*item))
            if not pending:
                return
            yield _result(pending.popleft())
    finally:
        if ray.is_initialized():  # else ray.cancel would start a Ray of its own
            for reference in pending:
                ray.cancel(reference, force=False)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, Failure):
            raise error.cause from error
        raise
