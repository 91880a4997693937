"""The pointer and the versions: claimed once, swapped once, refused where they are someone else's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from deepshadows import storage
from deepshadows.catalog import collection
from deepshadows.catalog.provenance import RunFacts, check_runs
from deepshadows.outcomes import HeldError, InputError, NotFoundError, UsageError
from tests.catalog.finished_runs import current_version


def test_eight_publishers_claim_eight_versions(place: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: collection.claim_version(place).name, range(8)))
    assert sorted(versions) == [f"v{number:04d}" for number in range(1, 9)]


def test_of_versions_begun_together_one_is_published(place: str) -> None:
    first = collection.claim_version(place)
    second = collection.claim_version(place)
    collection.swap(second)
    with pytest.raises(HeldError, match=r"another publish finished first \(v0002 is current\)"):
        collection.swap(first)
    assert current_version(place) == "v0002"


def test_of_eight_racing_swaps_one_wins(place: str) -> None:
    collection.swap(collection.claim_version(place))
    versions = [collection.claim_version(place) for _ in range(8)]

    def swapped(version: collection.NewVersion) -> bool:
        try:
            collection.swap(version)
        except HeldError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(swapped, versions))
    assert sum(won) == 1
    assert current_version(place) == versions[won.index(True)].name


def test_versions_follow_each_other(place: str) -> None:
    for expected in ("v0001", "v0002", "v0003"):
        collection.swap(collection.claim_version(place))
        assert current_version(place) == expected


def test_an_abandoned_version_leaves_its_number_taken(place: str) -> None:
    version = collection.claim_version(place)
    storage.write(f"{version.table_url}/dataset/Norder=0/Dir=0/Npix=1.parquet", b"x")
    storage.write(f"{version.staging_url}/000000.arrows", b"x")
    storage.write(version.unplaced_url, b"x")
    collection.abandon(version)
    assert [storage.relative(entry.url, place) for entry in storage.list_objects(place)] == ["v0001/claim.json"]
    assert collection.claim_version(place).name == "v0002"


def test_a_repeated_swap_of_our_own_is_no_conflict(place: str) -> None:
    """As when the client repeats a write whose answer was lost."""
    version = collection.claim_version(place)
    collection.swap(version)
    collection.swap(version)
    assert current_version(place) == "v0001"


def test_nothing_published_is_not_found(place: str) -> None:
    for look in (collection.read_current, collection.read_unplaced):
        with pytest.raises(NotFoundError, match="no catalogue there"):
            look(place)


def test_a_store_that_fences_passes_and_keeps_nothing(place: str) -> None:
    collection.check_store(place)
    assert storage.list_objects(place) == []
    collection.claim_version(place)
    collection.check_store(place)


def test_a_folder_with_something_else_is_refused(place: str) -> None:
    storage.write(f"{place}/thesis.tex", b"x")
    with pytest.raises(UsageError, match=r"holds thesis.tex"):
        collection.check_store(place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"obs_collection=gaia\nhats_primary_table_url=gaia\n", "DeepShadows did not write"),
        (b"obs_collection=x\nhats_primary_table_url=v0001/x\ndeepshadows_format=99\n", "written in format 99"),
        (b"obs_collection=x\n", "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"", "damaged"),
    ],
)
def test_a_pointer_of_someone_else_or_damaged_is_refused(place: str, text: bytes, message: str) -> None:
    storage.write(f"{place}/collection.properties", text)
    with pytest.raises(InputError, match=message):
        collection.read_pointer(place)


@pytest.mark.parametrize(("name", "shown"), [("des y6 (test)", "des_y6__test_"), ("survey", "survey")])
def test_the_table_is_named_after_the_folder(name: str, shown: str) -> None:
    assert collection.table_name(f"/data/{name}/") == shown


def facts(url: str, **changes: object) -> RunFacts:
    values: dict[str, object] = {
        "run": url,
        "fingerprint": url,
        "id_type": "int64",
        "checkpoint": {"name": "a", "weights_sha256": "1" * 64},
        "preprocessing": {"fov_arcsec": 33.5},
        "settings": {},
        "engine": "e",
        "versions": {},
        "rows": {},
        "inventory": "",
    }
    return RunFacts(url=url, **{**values, **changes})  # type: ignore[arg-type]


def test_runs_that_belong_together_pass() -> None:
    check_runs([facts("a"), facts("b", engine="another")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id_type": "string"}, "different identifiers: a: int64; b: string"),
        ({"checkpoint": {"name": "b", "weights_sha256": "2" * 64}}, "different networks"),
        ({"preprocessing": {"fov_arcsec": 21.5}}, "different preparation of pixels"),
        ({"fingerprint": "a"}, "b and a are the same run"),
    ],
)
def test_runs_that_do_not_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_runs([facts("a"), facts("b", **changes)])


def test_a_run_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="a is given twice"):
        check_runs([facts("a"), facts("a")])
