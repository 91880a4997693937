"""What two sizes of a catalogue say of a billion rows."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.bench_publish import at_a_billion, growth


def of(rows: int, seconds: float, gib: float) -> dict[str, Any]:
    """Ten bytes a row, eight of them the table's."""
    sizes = {"bytes_per_row": 8.0, "margin_bytes_per_row": 1.5, "index_bytes_per_row": 0.5}
    return {"rows": rows, "rows_per_s": rows / seconds, "peak_gib": {"all": gib, "driver": gib / 2}, **sizes}


def test_a_billion_rows_lie_on_the_lines_through_both() -> None:
    """One second and 1 GiB to begin with, then a second and 0.1 GiB a million rows."""
    small, large = of(10**6, 2.0, 1.1), of(10**7, 11.0, 2.0)
    assert at_a_billion(small, large) == {"seconds": 1001, "peak_gib": 101.0, "driver_gib": 50.5, "bytes": 10**10}
    assert growth(small, large, 3)[-1].endswith("1,001 s, 101.0 GiB, 50.5 of them in the driver, 10.0 GB.")
