"""Work that a store which does not answer for a while, being started anew, does not end. No Ray, no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from deepshadows import storage
from deepshadows.outcomes import ForbiddenError, NotFoundError, StorageError

RETRY_WAIT_S = 0.5
STORE_PATIENCE_S = 30.0
"""For as long a store may be away; a lease that cannot be renewed is lost after the same time."""
T = TypeVar("T")


def patiently(url: str, work: Callable[[], T]) -> T:
    """Do it; again and again for a while where a server does not answer. Disks do not start anew."""
    deadline = time.monotonic() + (STORE_PATIENCE_S if storage.is_s3(url) else 0)
    while True:
        try:
            return work()
        except (ForbiddenError, NotFoundError):
            raise
        except StorageError:
            if time.monotonic() > deadline:
                raise
        time.sleep(RETRY_WAIT_S)
