"""What reading a shard from S3 costs client and server, by the way of asking and by the server's memory.

    python -m tests.benchmarks.bench_s3_reads [--shards 3] [--rounds 3]

CPU-seconds a GB, least of the rounds; the server (SeaweedFS) is on the same machine. Rates by the clock are left out:
they depend on who else works there.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import obstore

from deepshadows import storage
from deepshadows.sky.row_groups import row_groups, streamed_row_groups
from deepshadows.sky.shards import cutouts_from_table, open_shard
from tests.benchmarks.bench_classify import (
    IMAGE_GB,
    SHARD_ROWS,
    images_like_sky,
    machine,
    server_cpu_s,
    shard,
    write_shard,
)
from tests.benchmarks.results import write_figures, write_section
from tests.seaweed import SeaweedFS

MEMORY = ("256MiB", "2GiB")
Way = Callable[[str], None]


def stream(url: str) -> None:
    for table in streamed_row_groups(url, open_shard(url), 0, SHARD_ROWS, storage.stat(url).etag):
        cutouts_from_table(table, url)


def by_row_group(url: str) -> None:
    for table in row_groups(open_shard(url), 0, SHARD_ROWS):
        cutouts_from_table(table, url)


def arrow_ranges(url: str, size_bytes: int = 12 << 20) -> None:
    with storage.open_arrow(url) as file:
        while file.read_buffer(size_bytes).size:
            pass


def obstore_ranges(url: str, size_bytes: int = 12 << 20) -> None:
    end = storage.stat(url).size_bytes
    for start in range(0, end, size_bytes):
        storage.read_ranges(url, [start], [min(start + size_bytes, end)])


def obstore_stream(url: str) -> None:
    store, key = storage._locate(url)
    for chunk in obstore.get(store, key).stream(min_chunk_size=storage.STREAM_CHUNK_BYTES):
        len(chunk)


WAYS: dict[str, Way] = {
    "one stream a unit, as `classify` does, to arrays": stream,
    "a request a row group (pyarrow), to arrays": by_row_group,
    "ranges of 12 MB, pyarrow, bytes only": arrow_ranges,
    "ranges of 12 MB, obstore, bytes only": obstore_ranges,
    "one stream, obstore, bytes only": obstore_stream,
    "from disk, to arrays": by_row_group,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    lines = [
        f"`python -m tests.benchmarks.bench_s3_reads`, {machine()}. CPU-seconds a GB of client + server, least of "
        f"{wanted.rounds} rounds over {wanted.shards} shards, by the memory limit of the server (GOMEMLIMIT).",
        "",
        f"| way | {' | '.join(MEMORY)} |",
        "|---|---|---|",
    ]
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for memory in MEMORY:
        server = SeaweedFS(memory=memory)
        server.start()
        os.environ.update(server.environment())
        storage._s3.cache_clear()
        storage._arrow.cache_clear()
        try:
            with tempfile.TemporaryDirectory() as folder:
                measure(server, Path(folder), wanted, costs)
        finally:
            server.stop()
    figures: dict[str, object] = {"machine": machine()}
    for name, pairs in costs.items():
        lines.append(f"| {name} | {' | '.join(f'{client:.2f} + {serving:.2f}' for client, serving in pairs)} |")
        figures |= {
            f"{name} {memory} cpu_s_per_gb": [round(value, 3) for value in pair]
            for memory, pair in zip(MEMORY, pairs, strict=True)
        }
    print("\n".join(lines))
    write_section("Reading shards from S3", lines)
    write_figures("s3_reads", figures)


def measure(
    server: SeaweedFS, folder: Path, wanted: argparse.Namespace, costs: dict[str, list[tuple[float, float]]]
) -> None:
    bucket = server.create_bucket(f"reads-{server.memory.lower()}")
    images = images_like_sky(SHARD_ROWS)
    for number in range(wanted.shards):
        for place in (str(folder), bucket):
            write_shard(storage.join(place, f"{number}.parquet"), shard(number, images))
    size_gb = wanted.shards * SHARD_ROWS * IMAGE_GB
    for name, way in WAYS.items():
        place = str(folder) if name.startswith("from disk") else bucket
        rounds = []
        for _ in range(wanted.rounds):
            client_s, serving_s = time.process_time(), server_cpu_s(server)
            for number in range(wanted.shards):
                way(storage.join(place, f"{number}.parquet"))
            rounds.append(((time.process_time() - client_s) / size_gb, (server_cpu_s(server) - serving_s) / size_gb))
        costs[name].append(min(rounds, key=sum))


if __name__ == "__main__":
    main()
