"""Images as users hold them, in every form that `cutouts` takes, made from the same cut-outs."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from deepshadows.sky.shards import Cutouts


def png(pixels: NDArray[np.uint8], mode: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, mode)
    return sink.getvalue()


def write_npy(path: Path, cutouts: Cutouts) -> None:
    """`x.npy` with ids, labels and positions beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, cutouts.images)
    beside: Mapping[str, Any] = {
        "ids": np.array(cutouts.object_id.to_pylist()),
        "labels": cutouts.label,
        "ra": cutouts.ra,
        "dec": cutouts.dec,
    }
    for name, array in beside.items():
        np.save(path.with_name(f"{path.stem}_{name}.npy"), array)


def write_npz(path: Path, cutouts: Cutouts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        image=cutouts.images,
        fov_arcsec=33.5,
        object_id=np.array(cutouts.object_id.to_pylist()),
        ra=cutouts.ra,
        dec=cutouts.dec,
        **({} if cutouts.label is None else {"label": cutouts.label}),
    )


def write_pictures(folder: Path, cutouts: Cutouts) -> None:
    """A PNG an object, in a folder a class."""
    assert cutouts.label is not None
    for object_id, label, image in zip(cutouts.object_id.to_pylist(), cutouts.label, cutouts.images, strict=True):
        path = folder / ("lsbg" if label else "artifact") / f"{object_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def samples(cutouts: Cutouts) -> list[tuple[str, bytes]]:
    """Members of a WebDataset tar, keys 000000 on as its writers make them."""
    assert cutouts.label is not None
    members = []
    for row, object_id in enumerate(cutouts.object_id.to_pylist()):
        given = {"object_id": object_id, "ra": cutouts.ra[row], "dec": cutouts.dec[row]}
        members += [
            (f"{row:06d}.png", png(cutouts.images[row])),
            (f"{row:06d}.cls", str(cutouts.label[row]).encode()),
            (f"{row:06d}.json", json.dumps(given).encode()),
        ]
    return members


def write_hdf5(path: Path, cutouts: Cutouts, names: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(names["image"], data=cutouts.images, chunks=(1, 64, 64, 3), compression="gzip")
        file[names["object_id"]] = cutouts.object_id.to_numpy(zero_copy_only=False)
        file[names["label"]] = cutouts.label
        file[names["ra"]], file[names["dec"]] = cutouts.ra, cutouts.dec


def write_parquet(path: Path, cutouts: Cutouts, names: Mapping[str, str], images: pa.Array | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        names["object_id"]: cutouts.object_id,
        names["ra"]: cutouts.ra,
        names["dec"]: cutouts.dec,
        names["label"]: cutouts.label,
        names["image"]: pa.array([image.tobytes() for image in cutouts.images]) if images is None else images,
    }
    pq.write_table(pa.table(columns), path, row_group_size=7)
