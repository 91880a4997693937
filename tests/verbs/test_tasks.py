"""Tasks in the order of their items, and what is left of them when their Ray has ended."""

from __future__ import annotations

import subprocess
import sys

import pytest

AFTER_ITS_RAY = """
import ray
from deepshadows.verbs.ray_session import ray_session
from deepshadows.verbs.tasks import in_order

with ray_session(None):
    results = in_order(ray.remote(lambda number: -number), [(number,) for number in range(-9, 0)], limit=3)
    assert next(results) == 9
results.close()
assert not ray.is_initialized()
"""


@pytest.mark.timeout(120)
def test_results_left_over_start_no_ray_to_cancel_what_is_gone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AFTER_ITS_RAY], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
