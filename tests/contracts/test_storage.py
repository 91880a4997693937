"""What every place must do alike: one suite, run on local disk and on a real S3 server."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepshadows import storage
from deepshadows.outcomes import Failure, ForbiddenError, NotFoundError, StorageError, UsageError
from tests.seaweed import SeaweedFS

ODD_NAMES = [
    *("a b", "100%", "a%20b", "x#y", "q?z", "a+b", "a&b=c", "a:b", "..x", "p(1)[2]'\"", "é∑"),
    "tile ñ/Dir=0/日本",
]
LETTERS = st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/\\", exclude_categories=["C"])


def test_what_is_written_is_read(place: str) -> None:
    storage.write(f"{place}/a", b"one")
    storage.write(f"{place}/a", b"two")
    assert storage.read(f"{place}/a") == b"two"


def test_an_empty_object_is_an_object(place: str) -> None:
    storage.write(f"{place}/empty", b"")
    assert storage.read(f"{place}/empty") == b""
    assert storage.stat(f"{place}/empty").size_bytes == 0


def test_ranges_are_end_exclusive_and_in_order(place: str) -> None:
    storage.write(f"{place}/digits", b"0123456789")
    assert storage.read_ranges(f"{place}/digits", [7, 0, 3], [9, 1, 3 + 3]) == [b"78", b"0", b"345"]


def test_stat_tells_size_and_an_etag_that_follows_the_content(place: str) -> None:
    storage.write(f"{place}/a", b"one")
    before = storage.stat(f"{place}/a")
    storage.write(f"{place}/a", b"three")
    after = storage.stat(f"{place}/a")
    assert (before.size_bytes, after.size_bytes) == (3, 5)
    assert before.etag
    assert before.etag != after.etag


def test_listing_is_sorted_recursive_and_without_hidden_objects(place: str) -> None:
    for name in ("b.parquet", "a/c.parquet", "a/b.txt", "_metadata", ".lock", "ab.parquet"):
        storage.write(f"{place}/{name}", b"x")
    listed = [storage.relative(entry.url, place) for entry in storage.list_objects(place)]
    assert listed == ["a/b.txt", "a/c.parquet", "ab.parquet", "b.parquet"]
    below = storage.list_objects(f"{place}/a", (".parquet",))
    assert [entry.url for entry in below] == [f"{place}/a/c.parquet"]
    assert below[0] == storage.stat(f"{place}/a/c.parquet")


def test_listing_one_object_gives_that_object(place: str) -> None:
    storage.write(f"{place}/a.parquet", b"x")
    assert [entry.url for entry in storage.list_objects(f"{place}/a.parquet")] == [f"{place}/a.parquet"]


def test_listing_nothing_is_empty(place: str) -> None:
    storage.write(f"{place}/folder-2/a", b"x")
    assert storage.list_objects(f"{place}/folder") == []


def test_a_folder_is_not_an_object(place: str) -> None:
    storage.write(f"{place}/folder/a", b"x")
    assert not storage.exists(f"{place}/folder")
    with pytest.raises(NotFoundError):
        storage.read(f"{place}/folder")


def test_of_eight_creators_exactly_one_wins(place: str) -> None:
    for trial in range(3):
        url = f"{place}/race-{trial}"
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n, url=url: storage.create(url, b"%d" % n), range(8)))  # type: ignore[misc]
        assert sum(won) == 1
        assert storage.read(url) == b"%d" % won.index(True)


def test_of_eight_replacers_exactly_one_wins(place: str) -> None:
    for trial in range(3):
        url = f"{place}/race-{trial}"
        storage.write(url, b"before")
        etag = storage.stat(url).etag
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n, url=url, etag=etag: storage.replace(url, b"%d" % n, etag), range(8)))  # type: ignore[misc]
        assert sum(won) == 1
        assert storage.read(url) == b"%d" % won.index(True)


def test_replace_with_a_stale_etag_changes_nothing(place: str) -> None:
    url = f"{place}/pointer"
    storage.write(url, b"one")
    stale = storage.stat(url).etag
    storage.write(url, b"three")
    assert not storage.replace(url, b"two", stale)
    assert storage.read(url) == b"three"


def test_replace_of_an_object_that_is_gone_changes_nothing(place: str) -> None:
    storage.write(f"{place}/pointer", b"one")
    etag = storage.stat(f"{place}/pointer").etag
    storage.delete(f"{place}/pointer")
    assert not storage.replace(f"{place}/pointer", b"two", etag)
    assert not storage.exists(f"{place}/pointer")


def test_delete_is_idempotent(place: str) -> None:
    storage.write(f"{place}/a", b"x")
    storage.delete(f"{place}/a")
    storage.delete(f"{place}/a")
    assert not storage.exists(f"{place}/a")


def test_delete_folder_takes_hidden_objects_and_leaves_neighbours(place: str) -> None:
    for name in ("gone/a", "gone/_metadata", "gone/deep/b", "gone-not/a"):
        storage.write(f"{place}/{name}", b"x")
    storage.delete_folder(f"{place}/gone")
    storage.delete_folder(f"{place}/gone")
    assert [storage.relative(entry.url, place) for entry in storage.list_objects(place)] == ["gone-not/a"]
    assert not storage.exists(f"{place}/gone/_metadata")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_round_trip(place: str, name: str) -> None:
    url = f"{place}/{name}.bin"
    assert storage.create(url, name.encode())
    assert storage.read(url) == name.encode()
    assert storage.open_arrow(url).read() == name.encode()
    assert storage.stat(url).url == url
    assert [entry.url for entry in storage.list_objects(place)] in ([url], [])  # hidden where it starts with a dot
    storage.delete(url)
    assert not storage.exists(url)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(name=st.text(LETTERS, min_size=1, max_size=12).filter(lambda text: text.strip(".")))
def test_any_name_round_trips(place: str, name: str) -> None:
    url = f"{place}/x{name}"
    storage.write(url, b"x")
    assert storage.stat(url).url == url
    assert url in [entry.url for entry in storage.list_objects(place)]
    storage.delete(url)


def test_what_is_not_there_is_not_found(place: str) -> None:
    for look in (storage.read, storage.stat, storage.open_arrow):
        with pytest.raises(NotFoundError, match="not found"):
            look(f"{place}/nothing")
    assert not storage.exists(f"{place}/nothing")


def test_a_missing_bucket_is_said_to_be_missing(object_store: SeaweedFS) -> None:
    with pytest.raises(NotFoundError, match="bucket does not exist"):
        storage.write("s3://no-such-bucket/a", b"x")
    with pytest.raises(NotFoundError, match="bucket does not exist"):
        storage.list_objects("s3://no-such-bucket/a")


def test_output_below_a_file_is_a_storage_error(tmp_path: Path) -> None:
    """Root may write anywhere, so a read-only folder proves nothing here; no one can write below a file."""
    (tmp_path / "file").write_bytes(b"x")
    for put in (storage.write, storage.create):
        with pytest.raises(StorageError, match="writing failed"):
            put(f"{tmp_path}/file/a", b"x")


def test_a_read_only_filesystem_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="/proc/deepshadows"):
        storage.write("/proc/deepshadows/a", b"x")


FULL = """
import resource, sys
from deepshadows import storage
from deepshadows.outcomes import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for put in (storage.write, storage.create):
    try:
        put(sys.argv[1], bytes(5000))
    except StorageError as error:
        print(error)
"""


def test_a_disk_that_takes_no_more_is_a_storage_error_and_leaves_no_part(tmp_path: Path) -> None:
    """The kernel's limit on file size fails a write half way, as a full disk does."""
    url = f"{tmp_path}/a"
    done = subprocess.run([sys.executable, "-c", FULL, url], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("writing failed") == 2
    assert not storage.exists(url)


@pytest.mark.parametrize("url", ["http://host/a", "gs://bucket/a"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="local paths or s3://"):
        storage.normalise(url)


@pytest.mark.parametrize("name", ["a\x1bb", "a/../b", "a//\x07", "."])
def test_a_name_that_no_object_can_have_is_refused_or_found_missing(place: str, name: str) -> None:
    url = f"{place}/{name}"
    for look in (storage.read, storage.stat, storage.open_arrow):
        with pytest.raises(Failure):
            look(url)  # type: ignore[operator]
    with contextlib.suppress(Failure):
        assert storage.list_objects(url) == []
    with contextlib.suppress(Failure):  # a file system has names that a store has not
        storage.write(url, b"here")
        assert storage.read(url) == b"here"


def test_an_address_without_a_bucket_is_refused() -> None:
    with pytest.raises(UsageError, match="s3://bucket/key"):
        storage.read("s3:///a")


WRONG = """
import sys
from deepshadows import storage
from deepshadows.outcomes import ForbiddenError
doing = {
    "read": lambda url: storage.read(url),
    "write": lambda url: storage.write(url, b"x"),
    "create": lambda url: storage.create(url, b"x"),
    "replace": lambda url: storage.replace(url, b"x", '"e"'),
    "list": lambda url: storage.list_objects(url),
    "stat": lambda url: storage.stat(url),
    "open": lambda url: storage.open_arrow(url),
    "delete": lambda url: storage.delete(url),
}
for name, do in doing.items():
    try:
        do(sys.argv[1])
        print(name, "was let in")
    except ForbiddenError as error:
        print(name, str(error).replace("\\n", " "))
"""


@pytest.mark.parametrize("wrong", [{"AWS_SECRET_ACCESS_KEY": "planted-s3cret"}, {"AWS_ACCESS_KEY_ID": "STRANGER"}])
def test_wrong_credentials_are_forbidden_and_not_repeated(bucket: str, wrong: dict[str, str]) -> None:
    """In a process of its own: clients keep the credentials they began with."""
    storage.write(f"{bucket}/a", b"x")
    done = subprocess.run(
        [sys.executable, "-c", WRONG, f"{bucket}/a"],
        env={**os.environ, **wrong},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert set(lines) == {"read", "write", "create", "replace", "list", "stat", "open", "delete"}
    for message in lines.values():
        assert "AWS_ACCESS_KEY_ID" in message
        assert f"{bucket}/a" in message
    assert "planted-s3cret" not in done.stdout + done.stderr
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr
    assert storage.read(f"{bucket}/a") == b"x"


class Refusing(BaseHTTPRequestHandler):
    """A store that answers every request as S3 answers temporary keys that have run out: 400, and why, but to HEAD."""

    protocol_version = "HTTP/1.1"
    code = ""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"<Error><Code>{self.code}</Code><Message>Get another.</Message></Error>".encode()
        self.send_response(400)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 -- names that the server calls

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("ExpiredToken", True),
        ("ExpiredTokenException", True),
        ("InvalidToken", True),
        ("TokenRefreshRequired", True),
        ("InvalidRequest", False),
    ],
)
def test_temporary_credentials_that_have_run_out_are_forbidden(code: str, forbidden: bool) -> None:
    """As both clients tell it, obstore's and Arrow's; what is wrong with the request itself is no such thing."""
    handler = type("Handler", (Refusing,), {"code": code})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = {
            "AWS_ACCESS_KEY_ID": "A",
            "AWS_SECRET_ACCESS_KEY": "planted-s3cret",
            "AWS_SESSION_TOKEN": "planted-t0ken",
        }
        place = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_REGION": "us-east-1"}
        done = subprocess.run(
            [sys.executable, "-c", WRONG, "s3://bucket/a"],
            env={**os.environ, **own, **place, "AWS_ALLOW_HTTP": "true"},
            capture_output=True,
            text=True,
            timeout=120,
            check=forbidden,
        )
        server.shutdown()
    if not forbidden:
        assert "StorageError: s3://bucket/a: reading failed" in done.stderr
        return
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert set(lines) == {"read", "write", "create", "replace", "list", "stat", "open", "delete"}
    for message in lines.values():
        assert "permission denied" in message
        assert "AWS_SESSION_TOKEN" in message
        assert ("run out" in message) == (code != "InvalidToken")
    assert "planted" not in done.stdout + done.stderr


def test_forbidden_is_a_storage_error() -> None:
    assert issubclass(ForbiddenError, StorageError)


def test_a_folder_that_was_emptied_has_no_children(place: str) -> None:
    """SeaweedFS keeps an object of the folder's own name."""
    storage.write(storage.join(place, "folder", "a.txt"), b"1")
    assert storage.children(storage.join(place, "folder")) == ["a.txt"]
    storage.delete(storage.join(place, "folder", "a.txt"))
    assert storage.children(storage.join(place, "folder")) == []
