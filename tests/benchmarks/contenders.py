"""Other ways from cut-out shards to scores, each as its own documentation does it, all with the scorer's engine.

    python -m tests.benchmarks.contenders NAME SHARDS OUTPUT CHECKPOINT

Each writes Parquet files of object_id and logit into OUTPUT.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows.model.scorer import Scorer, load_scorer
from deepshadows.schema import IMAGE_BYTES, IMAGE_SHAPE

BATCH = 1024
CORES = os.cpu_count() or 1


@cache
def scorer(checkpoint: str) -> Scorer:
    return load_scorer(checkpoint, precision="fast", threads=CORES)


def logits(checkpoint: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return scorer(checkpoint).score(images).logits


def pixels(column: pa.Array) -> NDArray[np.uint8]:
    """Of a column of images, of fixed size or not, without a copy."""
    if pa.types.is_fixed_size_binary(column.type):
        buffer, start = column.buffers()[1], column.offset * IMAGE_BYTES
    else:
        kind = np.int64 if pa.types.is_large_binary(column.type) else np.int32
        _, offsets, buffer = column.buffers()
        start = int(np.frombuffer(offsets, kind)[column.offset])
    return np.frombuffer(buffer, np.uint8, len(column) * IMAGE_BYTES, start).reshape(-1, *IMAGE_SHAPE)


def write(target: Path, number: int, object_id: Any, found: NDArray[np.float32]) -> None:
    pq.write_table(pa.table({"object_id": object_id, "logit": found}), target / f"{number:05d}.parquet")


def plain_loop(shards: Path, target: Path, checkpoint: str) -> None:
    """pyarrow, one process, one shard after the other."""
    for number, path in enumerate(sorted(shards.glob("*.parquet"))):
        parts = [
            (batch["object_id"], logits(checkpoint, pixels(batch["image"])))
            for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH, columns=["object_id", "image"])
        ]
        write(target, number, pa.concat_arrays([one for one, _ in parts]), np.concatenate([two for _, two in parts]))


def data_loader(shards: Path, target: Path, checkpoint: str) -> None:
    """torch's DataLoader: workers read shards, the main process scores."""
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Shards(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
            info = get_worker_info()
            assert info is not None
            for path in sorted(shards.glob("*.parquet"))[info.id :: info.num_workers]:
                for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH, columns=["object_id", "image"]):
                    yield batch["object_id"].to_numpy(), torch.from_numpy(pixels(batch["image"]))

    loader = DataLoader(Shards(), batch_size=None, num_workers=1, prefetch_factor=4)
    for number, (ids, images) in enumerate(loader):
        write(target, number, np.asarray(ids), logits(checkpoint, images.numpy()))


def ray_data(shards: Path, target: Path, checkpoint: str) -> None:
    """Ray Data: read_parquet, map_batches with an actor, write_parquet."""
    import ray

    class Score:
        def __init__(self) -> None:
            from tests.benchmarks import contenders  # what a worker can import; here the module is __main__

            self._here = contenders

        def __call__(self, table: pa.Table) -> pa.Table:
            images = self._here.pixels(table["image"].combine_chunks())
            return pa.table({"object_id": table["object_id"], "logit": self._here.logits(checkpoint, images)})

    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=CORES)
    read = ray.data.read_parquet(str(shards), columns=["object_id", "image"])
    scored = read.map_batches(
        Score, batch_size=BATCH, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
    )
    scored.write_parquet(str(target))


def huggingface(shards: Path, target: Path, checkpoint: str) -> None:
    """HuggingFace datasets, streamed through torch's DataLoader."""
    from datasets import load_dataset  # type: ignore[import-not-found]
    from torch.utils.data import DataLoader

    files = sorted(map(str, shards.glob("*.parquet")))
    stream = load_dataset("parquet", data_files=files, split="train", streaming=True, columns=["object_id", "image"])
    loader = DataLoader(stream.with_format("arrow").batch(BATCH), batch_size=None, num_workers=1, prefetch_factor=4)
    for number, rows in enumerate(loader):
        ids, images = (column.combine_chunks().flatten() for column in (rows["object_id"], rows["image"]))
        write(target, number, ids, logits(checkpoint, pixels(images)))


def daft(shards: Path, target: Path, checkpoint: str) -> None:
    """Daft: read_parquet, a UDF on the column of images, write_parquet."""
    import daft as library  # type: ignore[import-not-found]

    @library.udf(return_dtype=library.DataType.float32(), batch_size=BATCH)  # type: ignore[untyped-decorator]
    def score(images: Any) -> pa.Array:
        return pa.array(logits(checkpoint, pixels(images.to_arrow())))

    frame = library.read_parquet(str(shards / "*.parquet")).select("object_id", "image")
    frame.with_column("logit", score(frame["image"])).select("object_id", "logit").write_parquet(str(target))


WAYS: dict[str, Callable[[Path, Path, str], None]] = {
    "plain Arrow loop": plain_loop,
    "torch DataLoader": data_loader,
    "Ray Data": ray_data,
    "HuggingFace datasets": huggingface,
    "Daft": daft,
}


if __name__ == "__main__":
    name, source, output, network = sys.argv[1:]
    Path(output).mkdir(parents=True)
    WAYS[name](Path(source), Path(output), network)
