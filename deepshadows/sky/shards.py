"""Cut-out shards: labelled or unlabelled network images in Parquet, and npz files read as such. No Ray, no torch."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepshadows import storage
from deepshadows.outcomes import AbsentError, InputError
from deepshadows.schema import IMAGE_BYTES, IMAGE_SHAPE, SHAPE_TEXT, Flag, cutout_schema, image_field, image_metadata
from deepshadows.sky.cutouts import Geometry, bring_to_field
from deepshadows.sky.row_groups import open_parquet, wanted_groups

ROW_GROUP_ROWS = 1000
MAX_ROW_GROUP_BYTES = 8 << 30
MAX_NPZ_BYTES = 8 << 30
MAX_ID_BYTES = 1 << 30
"""What is read as one must fit into memory, however little of the file it is."""


@dataclass(frozen=True, kw_only=True)
class Cutouts:
    """Cut-outs in memory.

    Attributes
    ----------
    object_id : pa.Array (N,)
        int64 or string.
    ra, dec : float64 (N,)
        ICRS degrees, NaN where not known.
    images : uint8 (N, 64, 64, 3)
        R, G, B = z, r, g.
    flags : int32 (N,)
        See `schema.Flag`; rows with a fatal flag have a blank image.
    label : int8 (N,), optional
        1 low-surface-brightness galaxy, 0 artifact, -1 not known.
    """

    object_id: pa.Array
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    images: NDArray[np.uint8]
    flags: NDArray[np.int32]
    label: NDArray[np.int8] | None = None
    fov_arcsec: float
    stretch: str
    bands: tuple[str, ...] = ("z", "r", "g")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: NDArray[Any]) -> Cutouts:
        """The chosen rows, by index or mask."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            object_id=self.object_id.take(pa.array(rows)),
            ra=self.ra[rows],
            dec=self.dec[rows],
            images=self.images[rows],
            flags=self.flags[rows],
            label=None if self.label is None else self.label[rows],
        )

    def to_table(self) -> pa.Table:
        """As stored: schema of `schema.cutout_schema`, NaN positions as nulls."""
        image = image_field(self.fov_arcsec, self.stretch, self.bands)
        schema = cutout_schema(self.object_id.type, image, labelled=self.label is not None)
        pixels = pa.FixedSizeBinaryArray.from_buffers(
            image.type, len(self), [None, pa.py_buffer(np.ascontiguousarray(self.images))]
        )
        columns: list[Any] = [
            self.object_id,
            pa.array(self.ra, mask=np.isnan(self.ra)),
            pa.array(self.dec, mask=np.isnan(self.dec)),
            pixels,
            pa.array(self.flags),
        ]
        if self.label is not None:
            columns.append(pa.array(self.label))
        return pa.table(columns, schema=schema)


def concatenate(parts: Sequence[Cutouts]) -> Cutouts:
    """One after the other; fields and stretches must agree, labels stay only where all have them."""
    first = parts[0]
    for part in parts[1:]:
        if (part.fov_arcsec, part.stretch, part.bands) != (first.fov_arcsec, first.stretch, first.bands):
            raise InputError(
                f"cut-outs of different kinds cannot be joined: {first.fov_arcsec} arcsec {first.stretch} and "
                f"{part.fov_arcsec} arcsec {part.stretch}; convert them with `deepshadows cutouts`"
            )
        if part.object_id.type != first.object_id.type:
            raise InputError(f"object_id is {first.object_id.type} in one shard and {part.object_id.type} in another")
    labels = [part.label for part in parts]
    return replace(
        first,
        object_id=pa.concat_arrays([part.object_id for part in parts]),
        ra=np.concatenate([part.ra for part in parts]),
        dec=np.concatenate([part.dec for part in parts]),
        images=np.concatenate([part.images for part in parts]),
        flags=np.concatenate([part.flags for part in parts]),
        label=None if any(label is None for label in labels) else np.concatenate([x for x in labels if x is not None]),
    )


def shard_name(number: int, stem: str) -> str:
    """Begins with a number, so that no two are the same; of the stem only what is harmless in a file name stays."""
    return f"{number:05d}-{re.sub(r'[^A-Za-z0-9.+-]', '_', stem)[-60:]}"


def write_shard(url: str, cutouts: Cutouts) -> None:
    """Write one shard: PLAIN, no dictionary, no statistics on the images, row groups of about 1000, in one PUT."""
    sink = io.BytesIO()
    pq.write_table(
        cutouts.to_table(),
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        store_schema=True,
    )
    storage.write(url, sink.getvalue())


def open_shard(url: str) -> pq.ParquetFile:
    """A shard's Parquet file, read by ranges; a damaged or foreign one is an `InputError`."""
    try:
        file = open_parquet(url, "object_id", memory_map=False, pre_buffer=True)
    except storage.ARROW_ERRORS as error:
        raise storage.arrow_failure(url, error) from error
    names = file.schema_arrow.names
    if "image" not in names or "object_id" not in names:
        raise InputError(f"{url}: not a cut-out shard: columns image and object_id are needed, it has {names}")
    return file


def check_row_groups(file: pq.ParquetFile, url: str, first_row: int, rows: int) -> None:
    """Refuse rows whose row groups would not fit into memory, however little of the file they are."""
    for number, _, _ in wanted_groups(file.metadata, first_row, rows):
        group = file.metadata.row_group(number)
        if max(group.total_byte_size, group.num_rows * IMAGE_BYTES) > MAX_ROW_GROUP_BYTES:
            raise InputError(
                f"{url}: row group {number} unpacks to {group.num_rows} rows, {group.total_byte_size >> 30} GiB; "
                f"write it with groups of about {ROW_GROUP_ROWS} rows"
            )


def shard_geometry(schema: pa.Schema, url: str) -> tuple[float, str, tuple[str, ...]]:
    """Field of view, stretch and bands that a shard states."""
    try:
        metadata = image_metadata(schema)
        return float(metadata["fov_arcsec"]), metadata["stretch"], tuple(metadata["bands"].split(","))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{url}: the image column states no fov_arcsec, stretch and bands; convert it with `deepshadows cutouts`"
        ) from error


def cutouts_from_table(table: pa.Table, url: str) -> Cutouts:
    """Rows of a shard as arrays, each bad row with its fatal flag.

    Raises
    ------
    InputError
        object_id is neither an integer nor a string.
    """
    fov_arcsec, stretch, bands = shard_geometry(table.schema, url)
    count = table.num_rows
    flags = _flags(table["flags"], url) if "flags" in table.column_names else np.zeros(count, np.int32)
    ra, dec, position_flags = positions(table, url)
    images, image_flags = _images(table["image"].combine_chunks())
    stated = image_metadata(table.schema)
    if (stated.get("shape", SHAPE_TEXT), stated.get("dtype", "uint8")) != (SHAPE_TEXT, "uint8"):
        image_flags |= Flag.BAD_SHAPE.bit
    label = _labels(table["label"], url) if "label" in table.column_names else None
    return Cutouts(
        object_id=object_ids(table["object_id"], url),
        ra=ra,
        dec=dec,
        images=images,
        flags=flags | position_flags | image_flags,
        label=label,
        fov_arcsec=fov_arcsec,
        stretch=stretch,
        bands=bands,
    )


def _flags(column: pa.ChunkedArray, where: str) -> NDArray[np.int32]:
    try:
        return np.asarray(column.cast(pa.int32()).fill_null(0).to_numpy())
    except pa.ArrowException as error:
        raise InputError(f"{where}: column flags does not hold whole numbers of 32 bits: {error}") from error


def _labels(given: pa.ChunkedArray | NDArray[Any], where: str) -> NDArray[np.int8]:
    """Labels with -1 where there is none, which NaN of an array says too."""
    try:
        column = pa.array(given, from_pandas=True) if isinstance(given, np.ndarray) else given
        return np.asarray(column.cast(pa.int8()).fill_null(-1).to_numpy())
    except pa.ArrowException as error:
        raise InputError(
            f"{where}: label does not hold whole numbers: {error}; give 1 for an LSBG, 0 for an artifact, and null "
            "(Parquet) or NaN (.npz) where it is not known"
        ) from error


def object_ids(column: pa.ChunkedArray | pa.Array, where: str) -> pa.Array:
    """Identifiers as int64 or string; nulls, other types and too much text are an `InputError`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = _unpacked(array, where)
    if array.null_count:
        raise InputError(f"{where}: {array.null_count} object_id are null; every row needs one")
    try:
        if pa.types.is_integer(array.type):
            return array.cast(pa.int64())
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            return array.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: object_id does not fit int64: {error}") from error
    raise InputError(f"{where}: object_id is {array.type}; integers or strings are needed")


def _unpacked(array: pa.DictionaryArray, where: str) -> pa.Array:
    """Values of each row; refused where texts that lie in the file once would not fit into memory in every row."""
    if pa.types.is_string(array.type.value_type):
        lengths = pc.binary_length(array.dictionary).cast(pa.int64()).take(array.indices)
        if (size := pc.sum(lengths).as_py() or 0) > MAX_ID_BYTES:
            raise InputError(f"{where}: object_id unpacks to {size >> 20} MiB of text; give shorter identifiers")
    return array.dictionary_decode()


def positions(
    table: pa.Table, where: str, ra_name: str = "ra", dec_name: str = "dec"
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    """ra and dec in degrees with flags: NO_POSITION where none is given, BAD_POSITION where it is impossible.

    Raises
    ------
    InputError
        A column is not a floating-point number of 64 bits: less loses 0.1" and more.
    """
    count = table.num_rows
    if ra_name not in table.column_names or dec_name not in table.column_names:
        nothing = np.full(count, np.nan)
        return nothing, nothing.copy(), np.full(count, Flag.NO_POSITION.bit, np.int32)
    for name in (ra_name, dec_name):
        if not pa.types.is_float64(table[name].type):
            raise InputError(f"{where}: column {name} is {table[name].type}; float64 degrees are needed")
    none = table[ra_name].is_null().to_numpy() | table[dec_name].is_null().to_numpy()
    ra, dec = (np.array(table[name].fill_null(np.nan).to_numpy()) for name in (ra_name, dec_name))
    good = np.isfinite(ra) & np.isfinite(dec) & (ra >= 0) & (ra <= 360) & (np.abs(dec) <= 90)
    flags = np.where(good, 0, Flag.BAD_POSITION.bit)
    return ra, dec, np.where(none, Flag.NO_POSITION.bit, flags).astype(np.int32)


def _images(column: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Pixels and flags of an image column: null is NO_IMAGE, another size is BAD_SHAPE."""
    kind = column.type
    null = np.asarray(column.is_null())
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == IMAGE_BYTES:
        buffer = column.buffers()[1]
        start = column.offset * IMAGE_BYTES
        pixels = (
            np.frombuffer(buffer, np.uint8, len(column) * IMAGE_BYTES, start) if len(column) else np.empty(0, np.uint8)
        )
        images = pixels.reshape(-1, *IMAGE_SHAPE)
        flags = np.where(null, Flag.NO_IMAGE.bit, 0).astype(np.int32)
        return images, flags
    images = np.zeros((len(column), *IMAGE_SHAPE), np.uint8)
    flags = np.where(null, Flag.NO_IMAGE.bit, Flag.BAD_SHAPE.bit).astype(np.int32)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        for row, value in enumerate(column):
            if value.is_valid and len(data := value.as_py()) == IMAGE_BYTES:
                images[row] = np.frombuffer(data, np.uint8).reshape(IMAGE_SHAPE)
                flags[row] = 0
    return images, flags


def list_shards(url: str) -> list[storage.StoredObject]:
    """The Parquet files of a folder, or the one named."""
    return storage.list_objects(url, (".parquet",))


def read_shards(url: str) -> Cutouts:
    """All cut-outs of a folder of shards, or of one shard, in memory."""
    shards = list_shards(url)
    if not shards:
        raise AbsentError(f"{url}: no cut-out shards (*.parquet); make them with `deepshadows cutouts`")
    return concatenate([cutouts_from_table(_whole(shard.url), shard.url) for shard in shards])


def _whole(url: str) -> pa.Table:
    file = open_shard(url)
    check_row_groups(file, url, 0, file.metadata.num_rows)
    try:
        return file.read()
    except storage.ARROW_ERRORS as error:
        raise storage.arrow_failure(url, error) from error


def read_npz(url: str, geometry: Geometry, stem: str = "") -> Cutouts:
    """An npz file with `image`, `fov_arcsec` and, optionally, label, object_id, ra, dec.

    Every image is brought to the field of `geometry`. Object arrays (pickle) are refused. Without object_id they are
    made from `stem`, or the name of the file, and the row.
    """
    try:
        with np.load(io.BytesIO(storage.read(url)), allow_pickle=False) as archive:
            unpacked_bytes = sum(member.file_size for member in archive.zip.infolist())
            if unpacked_bytes > MAX_NPZ_BYTES:
                raise InputError(
                    f"{url}: unpacks to {unpacked_bytes >> 30} GiB; split it, {MAX_NPZ_BYTES >> 30} are read"
                )
            data = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError) as error:
        raise InputError(f"{url}: not a readable .npz file: {error}") from error
    except InputError:
        raise
    except Exception as error:  # zipfile.BadZipFile and zlib.error share no base
        raise InputError(f"{url}: damaged .npz file: {error}") from error
    if "image" not in data or "fov_arcsec" not in data:
        raise InputError(f"{url}: image and fov_arcsec are needed, it has {sorted(data)}")
    image = data["image"]
    if image.ndim != 4 or image.shape[3] != 3 or image.dtype != np.uint8 or image.shape[1] != image.shape[2]:
        raise InputError(f"{url}: image is {image.dtype} {image.shape}; uint8 (N, S, S, 3) is needed")
    count = len(image)
    wrong = [name for name in ("label", "object_id", "ra", "dec") if name in data and data[name].shape != (count,)]
    if wrong:
        raise InputError(f"{url}: {', '.join(wrong)} must have one value for each of the {count} images")
    fov = np.broadcast_to(np.asarray(data["fov_arcsec"], dtype=np.float64), (count,))
    if not (np.isfinite(fov) & (fov > 0)).all():
        raise InputError(f"{url}: fov_arcsec must be positive")
    images, flags = bring_to_field(image, fov, geometry)
    stem = stem or storage.name_of(url).removesuffix(".npz")
    ids = data.get("object_id", np.array([f"{stem}-{row:06d}" for row in range(count)]))
    table = pa.table({name: pa.array(data[name]) for name in ("ra", "dec") if name in data} or {"row": range(count)})
    ra, dec, position_flags = positions(table, url)
    return Cutouts(
        object_id=object_ids(pa.array(ids), url),
        ra=ra,
        dec=dec,
        images=images,
        flags=flags | position_flags,
        label=_labels(data["label"], url) if "label" in data else None,
        fov_arcsec=geometry.fov_arcsec,
        stretch=geometry.stretch.name,
        bands=geometry.bands,
    )


def read_cutouts(url: str, geometry: Geometry) -> Cutouts:
    """Shards or npz, brought to the field of `geometry`; another stretch or other bands are refused."""
    if url.endswith(".npz"):
        return read_npz(url, geometry)
    if not list_shards(url) and (archives := storage.list_objects(url, (".npz",))):
        return concatenate([read_npz(archive.url, geometry) for archive in archives])
    cutouts = read_shards(url)
    if (cutouts.stretch, cutouts.bands) != (geometry.stretch.name, geometry.bands):
        raise InputError(
            f"{url}: stretch {cutouts.stretch}, bands {','.join(cutouts.bands)}; the network takes "
            f"{geometry.stretch.name}, {','.join(geometry.bands)}"
        )
    images, flags = bring_to_field(cutouts.images, np.full(len(cutouts), cutouts.fov_arcsec), geometry)
    return replace(cutouts, images=images, flags=cutouts.flags | flags, fov_arcsec=geometry.fov_arcsec)


def split(cutouts: Cutouts, rows: int) -> Iterator[Cutouts]:
    """Consecutive parts of at most `rows` rows."""
    for start in range(0, len(cutouts), rows):
        yield cutouts.take(np.arange(start, min(start + rows, len(cutouts))))
