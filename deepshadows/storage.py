"""Objects on local disk and on S3, alike: whole reads, ranges, listings, conditional writes.

An address is a local path or `s3://bucket/key`. One environment serves S3 everywhere: `AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ALLOW_HTTP`. Imports only `outcomes`.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import obstore
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, S3Store

from deepshadows.outcomes import ForbiddenError, InputError, NotFoundError, StorageError, UsageError

_FORBIDDEN = re.compile(
    r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|403 Forbidden|CredentialsNotLoaded"  # obstore
    r"|ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|HTTP response code 403"  # pyarrow
    r"|http://169\.254\.169\.254"  # obstore: no key in the environment, and no role to ask for one
    r"|ExpiredToken|InvalidToken|TokenRefreshRequired"  # both, of temporary keys
)
_RUN_OUT = re.compile("ExpiredToken|TokenRefreshRequired")
_UNTOLD = re.compile(r"Error performing HEAD .*400 Bad Request|HTTP status 400\) during HeadObject")
"""obstore and pyarrow: S3 answers 400 to temporary keys that have run out, and says so in a body, which HEAD lacks."""
_NO_NAME = re.compile("Could not parse path|path component")
"""What the clients say of names that no object can have, with control characters for example."""

STREAM_CHUNK_BYTES = 1 << 20
"""Larger ones are put together by the client from what arrives, at the cost of one more copy."""
REPEAT_WAITS_S = (0.1, 1.0)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a listing. `etag` changes when the content does; `modified_s` is Unix time by the store's clock."""

    url: str
    size_bytes: int
    etag: str
    modified_s: float = field(default=0.0, compare=False)


def is_s3(url: str) -> bool:
    return url.startswith("s3://")


def normalise(url: str) -> str:
    """An absolute local path, or the S3 URL without a trailing slash."""
    if is_s3(url):
        return url.rstrip("/")
    if "://" in url:
        raise UsageError(f"{url}: addresses are local paths or s3:// URLs")
    return os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111 -- text in, text out


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *parts])


def name_of(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


def relative(url: str, root: str) -> str:
    """`url` below `root`, for messages and manifests."""
    return url.removeprefix(root.rstrip("/") + "/")


@cache
def _s3(bucket: str) -> S3Store:
    return S3Store(bucket, retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=60)})


@cache
def _disk() -> LocalStore:
    return LocalStore("/")


@cache
def _arrow(bucket: str) -> pa.fs.FileSystem:
    """Arrow's own S3 client. Only `from_uri` finds a bucket's region, only the standard strategy repeats any 429."""
    return pa.fs.S3FileSystem(
        region=pa.fs.FileSystem.from_uri(f"s3://{bucket}")[0].region,
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        retry_strategy=pa.fs.AwsStandardS3RetryStrategy(max_attempts=6),
    )


def _bucket_and_key(url: str) -> tuple[str, str]:
    """Keys are taken as they are: `%`, `#`, `?` and spaces mean nothing in them."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise UsageError(f"{url}: an S3 address is s3://bucket/key")
    return bucket, key.strip("/")


def _locate(url: str) -> tuple[Any, str]:
    if is_s3(url):
        bucket, key = _bucket_and_key(url)
        return _s3(bucket), key
    return _disk(), os.path.abspath(url).lstrip("/")  # noqa: PTH100


@contextlib.contextmanager
def _translated(url: str, doing: str) -> Iterator[None]:
    """Turn the client's errors into ours, once, without the query strings and keys they may carry."""
    try:
        yield
    except FileNotFoundError as error:
        what = "the bucket does not exist" if "NoSuchBucket" in str(error) else "not found"
        raise NotFoundError(f"{url}: {what}, while {doing}; check the path") from error
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
        raise ForbiddenError(_forbidden(url, doing, str(error))) from error
    except ValueError as error:
        if not _NO_NAME.search(str(error)):
            raise
        raise UsageError(f"{url}: no name that an object can have, while {doing}: {error}") from error
    except (BaseError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "NoSuchBucket" in str(error):
            raise NotFoundError(f"{url}: the bucket does not exist, while {doing}; check the path") from error
        answer = _answer(url, error)
        if _FORBIDDEN.search(answer):
            raise ForbiddenError(_forbidden(url, doing, answer)) from error
        raise StorageError(f"{url}: {doing} failed: {first_line}") from error


def _answer(url: str, error: Exception) -> str:
    """What the store said; where that was 400 to a HEAD, what it says to a GET."""
    if _UNTOLD.search(str(error)):
        store, key = _locate(url)
        try:
            obstore.get_range(store, key, start=0, length=1)
        except (BaseError, OSError) as told:
            return str(told)
    return str(error)


def _asked(url: str, doing: str, ask: Callable[[], T]) -> T:
    """What `ask()` gives, its errors as ours; asked again where a store did not answer.

    The client does that by itself but for conditional writes on a connection that broke, and for listings cut short.
    """
    for wait_s in REPEAT_WAITS_S if is_s3(url) else ():
        try:
            with _translated(url, doing):
                return ask()
        except (NotFoundError, ForbiddenError):
            raise
        except StorageError:
            time.sleep(wait_s)
    with _translated(url, doing):
        return ask()


def _forbidden(url: str, doing: str, answer: str) -> str:
    if not is_s3(url):
        return f"{url}: permission denied while {doing}; check the permissions of the path"
    if "RequestTimeTooSkewed" in answer:
        return (
            f"{url}: refused while {doing}: the clock of {socket.gethostname()} and that of the store differ by "
            "too much; set the clock, then run the same command again"
        )
    if _RUN_OUT.search(answer):
        keys = "temporary key that has run out"
    else:
        keys = "key in the environment" if "AWS_ACCESS_KEY_ID" in os.environ else "no key in the environment"
    return (
        f"{url}: permission denied while {doing} on {socket.gethostname()} ({keys}); check AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_ENDPOINT_URL there, or its role: each node needs its own, "
        "none are forwarded"
    )


def read(url: str) -> bytes:
    """The whole object."""
    store, key = _locate(url)
    return _asked(url, "reading", lambda: obstore.get(store, key).bytes().to_bytes())


def read_ranges(url: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    """Byte ranges [start, end) in as few requests as the gaps allow."""
    store, key = _locate(url)
    parts = _asked(url, "reading", lambda: obstore.get_ranges(store, key, starts=starts, ends=ends))
    return [part.to_bytes() for part in parts]


def read_range(url: str, start: int, end: int) -> memoryview:
    """Bytes [start, end); fewer are an `InputError`. Not copied: the store's own buffer."""
    store, key = _locate(url)
    if end <= start:
        return memoryview(b"")
    data = memoryview(_asked(url, "reading", lambda: obstore.get_range(store, key, start=start, end=end)))
    if len(data) != end - start:
        raise InputError(f"{url}: ends {end - start - len(data)} bytes early: truncated or damaged")
    return data


class ByteStream:
    """Bytes [start, end) of an object as they come, in one request; taken in order, each copied once.

    An object whose etag is another is a `StorageError`; one that is not known is empty.
    """

    def __init__(self, url: str, start: int, end: int, etag: str) -> None:
        self._url, self._position, self._left = url, start, memoryview(b"")
        store, key = _locate(url)
        with _translated(url, "reading"):
            wanted: obstore.GetOptions = {"range": (start, end)}
            if etag:
                wanted["if_match"] = etag
            answer = obstore.get(store, key, options=wanted)
            self._chunks = iter(answer.stream(min_chunk_size=STREAM_CHUNK_BYTES))

    def take(self, start: int, end: int) -> memoryview:
        """Bytes [start, end) of the object, not before those taken last; what lies between is passed over."""
        if start < self._position:
            raise ValueError(f"{self._url}: byte {start} has gone by; the stream is at {self._position}")
        for _ in self._pieces(start - self._position):
            pass
        taken = memoryview(pa.allocate_buffer(end - start)).cast("B")
        filled = 0
        for piece in self._pieces(end - start):
            taken[filled : filled + len(piece)] = piece
            filled += len(piece)
        return taken

    def _pieces(self, wanted: int) -> Iterator[memoryview]:
        """The next bytes, as they came."""
        while wanted:
            if not self._left:
                with _translated(self._url, "reading"):
                    chunk = next(self._chunks, None)
                if chunk is None:
                    raise StorageError(f"{self._url}: the store broke off {wanted} bytes early")
                self._left = memoryview(chunk).cast("B")
            piece, self._left = self._left[:wanted], self._left[wanted:]
            self._position += len(piece)
            wanted -= len(piece)
            yield piece


def open_arrow(url: str) -> pa.NativeFile:
    """A seekable file for Parquet, read by ranges."""
    with _translated(url, "opening"):
        filesystem, path = arrow_location(url)
        return filesystem.open_input_file(path)


def arrow_location(url: str) -> tuple[pa.fs.FileSystem, str]:
    """The file system and path by which Arrow's own readers find an object."""
    if is_s3(url):
        bucket, key = _bucket_and_key(url)
        return _arrow(bucket), f"{bucket}/{key}"
    return pa.fs.LocalFileSystem(), normalise(url)


def stat(url: str) -> StoredObject:
    """Size and etag; raises `NotFoundError`."""
    store, key = _locate(url)
    return _described(url, _asked(url, "looking it up", lambda: obstore.head(store, key)))


def _described(url: str, meta: obstore.ObjectMeta) -> StoredObject:
    return StoredObject(url, meta["size"], meta["e_tag"] or "", meta["last_modified"].timestamp())


def exists(url: str) -> bool:
    try:
        stat(url)
    except NotFoundError:
        return False
    return True


def is_file(url: str) -> bool:
    return exists(url) if is_s3(url) else Path(url).is_file()


def iter_objects(url: str, suffixes: tuple[str, ...] = (), *, hidden: bool = False) -> Iterator[StoredObject]:
    """Objects below a folder in the store's order, a page of them in memory; hidden ones left out unless wanted."""
    store, key = _locate(url)
    prefix = f"s3://{_bucket_and_key(url)[0]}/" if is_s3(url) else "/"
    page, pages = _asked(url, "listing", lambda: _first_page(store, key))
    while page:
        for meta in page:
            path = prefix + meta["path"]
            if path.lower().endswith(suffixes or "") and (hidden or not name_of(path).startswith((".", "_"))):
                yield _described(path, meta)
        with _translated(url, "listing"):
            page = next(pages, ())


def _first_page(store: Any, key: str) -> tuple[Sequence[obstore.ObjectMeta], Iterator[Sequence[obstore.ObjectMeta]]]:
    pages = iter(obstore.list(store, key, chunk_size=1000))
    return next(pages, ()), pages


def list_objects(url: str, suffixes: tuple[str, ...] = (), *, hidden: bool = False) -> list[StoredObject]:
    """Objects below a folder (or the one object at `url`), sorted by address; hidden ones left out unless wanted."""
    found = sorted(iter_objects(url, suffixes, hidden=hidden), key=lambda entry: entry.url)
    if not found and is_file(url):
        return [stat(url)]
    return found


def write(url: str, data: bytes) -> None:
    """Put the whole object, replacing what was there; readers see the old or the new, never a part."""
    store, key = _locate(url)
    _asked(url, "writing", lambda: obstore.put(store, key, data, use_multipart=False))


def write_table(url: str, table: pa.Table) -> None:
    """One Parquet file in one PUT."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    write(url, sink.getvalue())


def create(url: str, data: bytes) -> bool:
    """Put the object only where none is; False where one was there already."""
    return create_etag(url, data) is not None


def create_etag(url: str, data: bytes) -> str | None:
    """Put the object only where none is: its etag, or None where one is, maybe this very one, its answer being lost."""
    store, key = _locate(url)

    def ask() -> str | None:
        try:
            return obstore.put(store, key, data, mode="create")["e_tag"] or ""
        except (AlreadyExistsError, PreconditionError):
            return None

    return _asked(url, "writing", ask)


def replace(url: str, data: bytes, etag: str) -> bool:
    """Put the object only where the one there still has `etag`; False where it has changed, maybe by this very one."""
    store, key = _locate(url)

    def ask() -> bool:
        try:
            obstore.put(store, key, data, mode={"e_tag": etag})
        except PreconditionError:
            return False
        return True

    if is_s3(url):
        return _asked(url, "replacing", ask)
    with _translated(url, "replacing"):
        if not exists(url):
            return False
        with _locked(url):
            if not exists(url) or stat(url).etag != etag:
                return False
            obstore.put(store, key, data)
    return True


@contextlib.contextmanager
def _locked(url: str) -> Iterator[None]:
    """Local files know no If-Match: a lock beside the file, held while it is compared and renamed."""
    lock = Path(url).with_name(f".{Path(url).name}.lock")
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def copy(source: str, target: str) -> None:
    """Let the store copy an object, without its bytes passing through here; on one disk, a hard link."""
    store, key = _locate(source)
    other, target_key = _locate(target)
    if store is not other:
        raise UsageError(f"{source}: cannot be copied to {target} by the store: they lie in different places")
    with _translated(source, "copying"):
        obstore.copy(store, key, target_key)


def upload(path: Path, url: str) -> None:
    """Move a finished local file to `url`, however large; readers see the old object or the new, never a part."""
    if is_s3(url):
        store, key = _locate(url)
        with _translated(url, "writing"):
            obstore.put(store, key, path)
        path.unlink()
        return
    with _translated(url, "writing"):
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        beside = Path(url).with_name(f".{Path(url).name}.{uuid.uuid4().hex}")
        shutil.move(path, beside)
        beside.replace(url)


def children(url: str) -> list[str]:
    """Names directly below a folder, sorted; those of folders end with a slash.

    Some stores keep an empty object for a folder whose last object was deleted: that is none of its children.
    """
    store, key = _locate(url)
    with _translated(url, "listing"):
        found = obstore.list_with_delimiter(store, key)
    folders = [name_of(prefix) + "/" for prefix in found["common_prefixes"]]
    return sorted([*folders, *(name_of(meta["path"]) for meta in found["objects"] if meta["path"] != key)])


def delete(url: str) -> None:
    """Remove the object; one that is gone already is no error, on disk as on S3."""
    store, key = _locate(url)
    with contextlib.suppress(NotFoundError):
        _asked(url, "deleting", lambda: obstore.delete(store, key))


def delete_folder(url: str) -> None:
    """Remove every object below a folder, hidden ones too."""
    store, key = _locate(url)
    if not key:
        raise UsageError(f"{url}: refusing to empty a whole bucket or disk")
    with _translated(url, "deleting"):
        if not is_s3(url):
            shutil.rmtree(url, ignore_errors=not Path(url).exists())
            return
        for batch in obstore.list(store, key, chunk_size=1000):
            obstore.delete(store, [meta["path"] for meta in batch])


class _RangeFile(io.RawIOBase):
    """An object as a seekable raw file; each read is one range request."""

    def __init__(self, url: str, size_bytes: int) -> None:
        self.name = url
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size_bytes)
        if end <= self._position:
            return 0
        (data,) = read_ranges(self.name, [self._position], [end])
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_reader(url: str, buffer_bytes: int = 32 * 1024, size_bytes: int | None = None) -> io.BufferedReader:
    """A seekable file that fetches ranges as they are read: for headers. A size that is known saves a request."""
    return io.BufferedReader(_RangeFile(url, stat(url).size_bytes if size_bytes is None else size_bytes), buffer_bytes)


ARROW_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What Arrow raises of a file or a store; pyarrow decodes the names of damaged columns by itself."""


def arrow_failure(url: str, error: Exception) -> InputError | StorageError:
    """What an error of Arrow means: the store did not answer, or the file is damaged.

    Arrow raises OSError for both; only those of the operating system have an errno, and those of S3 name AWS.
    """
    if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
        if is_s3(url) and _FORBIDDEN.search(answer := _answer(url, error)):
            return ForbiddenError(_forbidden(url, "reading", answer))
        return StorageError(f"{url}: reading failed: {error}")
    return InputError(f"{url}: not a readable Parquet file: {error}")
