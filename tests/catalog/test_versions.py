"""Versions: listed, rolled back, expired; races are decided by the pointer, and what it names is never removed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from deepshadows import storage
from deepshadows.catalog import collection, versions
from deepshadows.catalog.version_folder import VersionFolder
from deepshadows.outcomes import HeldError, InputError, NotFoundError, UsageError
from tests.catalog.finished_runs import current_version

PROPERTIES = b"obs_collection=x\ndataproduct_type=object\nhats_col_ra=ra\nhats_col_dec=dec\nhats_nrows=7\n"


def published(place: str, count: int) -> list[VersionFolder]:
    """So many versions, each with a table of properties alone."""
    made = []
    for _ in range(count):
        version = collection.claim_version(place)
        storage.write(f"{version.table_url}/hats.properties", PROPERTIES)
        collection.swap(version)
        made.append(version)
    return [VersionFolder(place, version.name) for version in made]


def names(place: str) -> list[str]:
    return [entry.folder.name for entry in versions.list_versions(place) if isinstance(entry, versions.Version)]


def is_whole(folder: VersionFolder) -> bool:
    return storage.exists(f"{folder.table_url}/hats.properties")


def test_versions_are_listed_with_the_current_one(place: str) -> None:
    published(place, 3)
    found = versions.list_versions(place)
    assert [(v.folder.name, v.is_current, v.rows) for v in found if isinstance(v, versions.Version)] == [
        ("v0001", False, 7),
        ("v0002", False, 7),
        ("v0003", True, 7),
    ]


def test_rollback_makes_an_earlier_version_current_and_a_publish_goes_on_from_the_newest_number(place: str) -> None:
    published(place, 3)
    assert versions.rollback(place, "v0001") == "v0003"
    assert current_version(place) == "v0001"
    assert names(place) == ["v0001", "v0002", "v0003"]
    assert published(place, 1)[0].name == "v0004"
    assert versions.rollback(place, "v0004") == "v0004"


def test_rollback_to_what_was_never_published_is_refused(place: str) -> None:
    published(place, 1)
    begun = collection.claim_version(place)
    storage.write(f"{begun.table_url}/hats.properties", PROPERTIES)
    for name in ("v0002", "v0009"):
        with pytest.raises(UsageError, match=f"no version {name} is published; there are v0001"):
            versions.rollback(place, name)
    assert current_version(place) == "v0001"


def test_rollback_to_a_version_that_is_gone_is_refused(place: str) -> None:
    first, _ = published(place, 2)
    storage.delete_folder(first.table_url)
    with pytest.raises(InputError, match="v0001: the pointer lists this version, but its table is not there"):
        versions.rollback(place, "v0001")
    assert current_version(place) == "v0002"


def test_a_pointer_to_a_version_that_is_gone_says_so_and_can_be_rolled_back(place: str) -> None:
    _, second = published(place, 2)
    storage.delete_folder(second.table_url)
    with pytest.raises(InputError, match=r"v0002: the pointer lists .* --rollback vNNNN"):
        versions.find(place, None)
    assert names(place) == ["v0001"]
    versions.rollback(place, "v0001")
    assert versions.find(place, None).name == "v0001"


def test_expiry_keeps_the_current_and_the_newest(place: str) -> None:
    made = published(place, 5)
    versions.rollback(place, "v0002")
    plan = versions.plan_expiry(place, 2)
    assert [folder.name for folder in plan.expired] == ["v0001", "v0003"]
    assert all(size > 0 for size in plan.size_bytes().values())
    assert all(is_whole(folder) for folder in made)  # a plan changes nothing
    versions.expire(plan)
    assert [is_whole(folder) for folder in made] == [False, True, False, True, True]
    assert names(place) == ["v0002", "v0004", "v0005"]
    assert published(place, 1)[0].name == "v0006"  # numbers are not given out again


def test_what_a_stopped_publish_left_is_removed_once_it_cannot_finish(place: str) -> None:
    stopped = collection.claim_version(place)
    storage.write(f"{stopped.table_url}/hats.properties", PROPERTIES)
    published(place, 1)
    running = collection.claim_version(place)
    storage.write(f"{running.table_url}/hats.properties", PROPERTIES)
    assert [folder.name for folder in versions.unfinished(place)] == ["v0001", "v0003"]
    versions.expire(versions.plan_expiry(place, 1))
    assert [is_whole(folder) for folder in (stopped, running)] == [False, True]
    collection.swap(running)
    assert current_version(place) == "v0003"
    with pytest.raises(HeldError, match="another publish finished first"):
        collection.swap(stopped)


def test_a_publish_that_a_rollback_brought_back_its_base_cannot_take_a_number_that_was_passed(place: str) -> None:
    """Begun from v0001, passed by v0003, which is then rolled back: expiry may have removed its files already."""
    published(place, 1)
    slow, fast = collection.claim_version(place), collection.claim_version(place)
    collection.swap(fast)
    storage.write(f"{fast.table_url}/hats.properties", PROPERTIES)
    versions.rollback(place, "v0001")
    with pytest.raises(HeldError):
        collection.swap(slow)
    assert current_version(place) == "v0001"


def test_a_publish_goes_through_though_old_versions_expired_meanwhile(place: str) -> None:
    published(place, 3)
    version = collection.claim_version(place)
    storage.write(f"{version.table_url}/hats.properties", PROPERTIES)
    versions.expire(versions.plan_expiry(place, 1))
    collection.swap(version)
    assert names(place) == ["v0003", "v0004"]


def test_a_publish_whose_answer_was_lost_is_not_removed_though_another_followed_it(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(place, 1)
    version, replace = collection.claim_version(place), storage.replace
    storage.write(f"{version.table_url}/hats.properties", PROPERTIES)

    def answered_late(url: str, data: bytes, etag: str) -> bool:
        monkeypatch.setattr(storage, "replace", replace)
        assert replace(url, data, etag)
        published(place, 1)
        return False

    monkeypatch.setattr(storage, "replace", answered_late)
    collection.swap(version)
    assert is_whole(VersionFolder(place, version.name))
    assert names(place) == ["v0001", "v0002", "v0003"]


def test_an_expiry_planned_before_the_pointer_moved_removes_nothing(place: str) -> None:
    made = published(place, 3)
    plan = versions.plan_expiry(place, 1)
    versions.rollback(place, "v0001")
    with pytest.raises(HeldError, match="nothing was removed"):
        versions.expire(plan)
    assert all(is_whole(folder) for folder in made)


def test_of_a_rollback_and_an_expiry_at_once_the_current_version_stays_whole(place: str) -> None:
    for _ in range(5):
        oldest = published(place, 3)[0]
        plan = versions.plan_expiry(place, 1)

        def attempt(what: str, plan: versions.Expiry = plan, name: str = oldest.name) -> bool:
            try:
                versions.expire(plan) if what == "expire" else versions.rollback(place, name)
            except (HeldError, UsageError, InputError):
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(attempt, ("expire", "rollback")))
        assert any(done)
        assert is_whole(VersionFolder(place, current_version(place)))


def test_nothing_published_is_told_with_what_was_begun(place: str) -> None:
    with pytest.raises(NotFoundError, match="no catalogue there") as info:
        versions.list_versions(place)
    assert "begun" not in str(info.value)
    collection.claim_version(place)
    with pytest.raises(NotFoundError, match=r"a publish was begun \(v0001\) but is not finished"):
        versions.find(place, None)


def test_an_older_format_is_refused_with_the_command_to_run(place: str) -> None:
    storage.write(
        f"{place}/collection.properties",
        b"obs_collection=x\nhats_primary_table_url=v0001/x\ndeepshadows_format=1\n",
    )
    told = PROPERTIES + b'deepshadows_runs=[{"run": "r", "url": "s3://b/r1"}, {"run": "q", "url": "s3://b/r2"}]\n'
    storage.write(f"{place}/v0001/x/hats.properties", told)
    with pytest.raises(InputError, match=r"deepshadows publish --run s3://b/r1 --run s3://b/r2 --catalog .*place-2"):
        versions.list_versions(place)


@pytest.mark.parametrize("listed", [b"", b"v0002", b"v0001 rubbish"])
def test_a_pointer_that_contradicts_itself_is_refused(place: str, listed: bytes) -> None:
    text = b"obs_collection=x\nhats_primary_table_url=v0001/x\ndeepshadows_format=2\ndeepshadows_published=" + listed
    storage.write(f"{place}/collection.properties", text + b"\n")
    with pytest.raises(InputError, match="damaged"):
        collection.read_pointer(place)
