"""Damaged and malicious files: what comes out of every reader is data or one of our own errors, never anything else."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepshadows.cli import VERBS
from deepshadows.model.card import read_card
from deepshadows.outcomes import Failure, UsageError
from deepshadows.run.lease import Lease
from deepshadows.run.manifest import read_manifest
from deepshadows.run.record import read_record
from deepshadows.settings import parse_toml
from deepshadows.sky.tile_index import scan_tiles
from tests.hostile.damage import Change, card_changes, changes, damaged
from tests.hostile.readers import READERS

EXAMPLES = int(os.environ.get("DEEPSHADOWS_FUZZ_EXAMPLES", "40"))
"""Of each test; more for a longer search: DEEPSHADOWS_FUZZ_EXAMPLES=5000 pytest -n 0 tests/hostile"""
WEIGHTS = ("model", "uncertainty")
"""Megabytes to read and hash: fewer examples."""
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def outcome(read: Callable[[], Any]) -> Any:
    """What a reader returns, or its error where that is one of ours; any other fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except Failure as error:
        assert str(error)
        return error


def looked_at(name: str, good: bytes, folder: Path, wanted: list[Change]) -> None:
    """A damaged file gives data of its kind or our own error, a whole one the data."""
    reader = READERS[name]
    reader.lay(folder, damaged(good, wanted))
    found = outcome(lambda: reader.read(folder))
    if wanted:
        assert isinstance(found, (*(reader.kind if isinstance(reader.kind, tuple) else [reader.kind]), Failure))
    else:
        assert isinstance(found, reader.kind)
        assert found != ()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """The content of a good file of each kind."""
    made: dict[str, bytes] = {}

    def original(name: str) -> bytes:
        if name not in made:
            made[name] = READERS[name].good(tmp_path_factory.mktemp(name))
        return made[name]

    return original


@pytest.mark.parametrize("name", sorted({*READERS} - {"fits", "fpack", *WEIGHTS}))
@fuzz
@given(wanted=changes())
@example(wanted=[])
def test_files(originals: Callable[[str], bytes], tmp_path: Path, name: str, wanted: list[Change]) -> None:
    looked_at(name, originals(name), tmp_path, wanted)


@pytest.mark.parametrize("name", ["fits", "fpack"])
@fuzz
@given(wanted=changes(card_changes, card_changes, card_changes))
@example(wanted=[])
def test_tiles(originals: Callable[[str], bytes], tmp_path: Path, name: str, wanted: list[Change]) -> None:
    looked_at(name, originals(name), tmp_path, wanted)


@pytest.mark.parametrize("name", ["fpack", "detections-fits"])
def test_a_header_that_leads_back_to_an_earlier_one_is_damage(
    originals: Callable[[str], bytes], tmp_path: Path, name: str
) -> None:
    """A negative PCOUNT takes the table and its header back: the next HDU would be the same one, for ever."""
    good = originals(name)
    with fits.open(io.BytesIO(good), disable_image_compression=True) as hdus:
        place, header = hdus[1].fileinfo(), hdus[1].header
    back = place["hdrLoc"] - place["datLoc"] - header["NAXIS1"] * header["NAXIS2"]
    card = good.index(b"PCOUNT  =", place["hdrLoc"])
    READERS[name].lay(tmp_path, good[: card + 10] + f"{back:20d}".encode() + good[card + 30 :])
    if name == "fpack":
        ((_, told),) = scan_tiles(str(tmp_path), 30.0).problems
    else:
        told = str(outcome(lambda: READERS[name].read(tmp_path)))
    assert "begins within an earlier one" in told


@pytest.mark.parametrize("name", WEIGHTS)
@settings(fuzz, max_examples=max(4, EXAMPLES // 10))
@given(wanted=changes())
@example(wanted=[])
def test_weights(originals: Callable[[str], bytes], tmp_path: Path, name: str, wanted: list[Change]) -> None:
    looked_at(name, originals(name), tmp_path, wanted)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@fuzz
@given(value=JSON)
def test_records_and_leases_of_any_shape(tmp_path: Path, value: object) -> None:
    for name in ("run.json", "manifest.json", "lease.json", "card.json"):
        (tmp_path / name).write_text(json.dumps(value))
    readers: list[Callable[[str], Any]] = [read_record, read_manifest, read_card]
    assert all(isinstance(outcome(partial(read, str(tmp_path))), Failure) for read in readers), value
    lease = Lease(str(tmp_path), ttl_s=0.01)
    found = outcome(lambda: lease.__enter__().__exit__(None, None, None))
    assert isinstance(found, Failure) or json.loads((tmp_path / "lease.json").read_text())["token"] == lease.token


@pytest.mark.parametrize("text", ["[" * 100_000, '{"run":' * 100_000, "1" * 100_000])
def test_records_and_leases_that_are_too_deep_or_long(tmp_path: Path, text: str) -> None:
    for name in ("run.json", "manifest.json", "lease.json", "card.json"):
        (tmp_path / name).write_text(text)
    for read in (read_record, read_manifest, read_card, lambda run: Lease(run, ttl_s=0.01).__enter__()):
        assert isinstance(outcome(partial(read, str(tmp_path))), Failure)


@fuzz
@given(
    verb=st.sampled_from(sorted(VERBS)),
    values=st.dictionaries(st.sampled_from(["input", "output", "run", "seed", "precision", "x", "unit_rows"]), JSON),
)
def test_settings_of_any_shape(verb: str, values: dict[str, object]) -> None:
    try:
        VERBS[verb].resolve(values, "test")
    except UsageError as error:
        assert "test" in str(error)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "{a=" * 5000, "a = " + "1" * 100_000])
def test_settings_files_that_are_too_deep_or_long(text: str) -> None:
    with pytest.raises(UsageError, match="not valid TOML"):
        parse_toml(text, "test")


@fuzz
@given(text=st.text() | st.from_regex(r'[a-z]+ = ("[^"]*"|\[*\]*|\{*\}*|[0-9e.+-]*)\n?'))
def test_settings_files_of_any_text(text: str) -> None:
    assert isinstance(outcome(lambda: parse_toml(text, "test")), (dict, Failure))
