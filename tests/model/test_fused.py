"""The engine in C: its numbers are those of torch, row by row; without a compiler another engine takes its place."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deepshadows import native
from deepshadows.model import checkpoint, engines, fused, uncertainty
from deepshadows.model.card import Card
from deepshadows.model.domain import SUMMARIES, summaries
from deepshadows.model.engines import Engine, EngineUnavailableError
from deepshadows.model.fused import fused_cpu
from deepshadows.model.network import DeepShadowsNet
from deepshadows.model.scorer import load_scorer
from deepshadows.model.uncertainty import Uncertainty
from deepshadows.settings import DEFAULT_NETWORK
from tests.model.blobs import blobs, seasoned_net

CARD = Card(name="test")


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """Smudges and stars, noise of all levels, and the extremes."""
    some = blobs(70)[0]
    some[60:66] = np.random.default_rng(2).integers(0, 256, some[60:66].shape)
    some[66], some[67] = 255, 0
    return some


@cache
def fitted() -> Uncertainty:
    return uncertainty.fit(seasoned_net(), CARD, blobs(50, seed=4)[0])


def engine_of(net: DeepShadowsNet, threads: int = 2) -> Engine:
    try:
        return fused_cpu(net, fitted(), batch_size=32, threads=threads)
    except EngineUnavailableError as error:
        pytest.skip(str(error))


def test_the_numbers_are_those_of_the_network(images: NDArray[np.uint8]) -> None:
    net = seasoned_net()
    engine = engine_of(net)
    exact = engines.exact_cpu(net, fitted(), threads=2).measure(images)
    found = engine.measure(images)
    np.testing.assert_allclose(found.logits, exact.logits, atol=0.03)
    np.testing.assert_allclose(found.variances, exact.variances, rtol=0.1)
    np.testing.assert_array_equal(found.summaries, exact.summaries)


def test_the_shipped_network_keeps_its_probabilities(images: NDArray[np.uint8]) -> None:
    """Six times closer than the guard asks for."""
    net, card = checkpoint.load(DEFAULT_NETWORK)
    found, exact = (engine.measure(images).logits for engine in (engine_of(net), engines.exact_cpu(net, threads=2)))
    assert np.abs(card.probabilities(found) - card.probabilities(exact)).max() < 0.003


def test_summaries_are_torchs_bit_for_bit(images: NDArray[np.uint8]) -> None:
    try:
        library = native.load(fused.SOURCES, fused.flags())
    except (EngineUnavailableError, native.CannotCompileError) as error:
        pytest.skip(str(error))
    found = np.empty((len(images), len(SUMMARIES)), np.float32)
    library.summaries(
        ctypes.c_void_p(images.ctypes.data), ctypes.c_long(len(images)), ctypes.c_void_p(found.ctypes.data)
    )
    np.testing.assert_array_equal(found, summaries(torch.from_numpy(images)).numpy())


def test_a_row_does_not_depend_on_its_neighbours_nor_on_who_else_asks(images: NDArray[np.uint8]) -> None:
    net = seasoned_net()
    engine = engine_of(net)
    whole = engine.measure(images)
    with ThreadPoolExecutor(4) as callers:
        for count, found in callers.map(lambda count: (count, engine.measure(images[-count:])), [1, 7, 33, 64] * 3):
            np.testing.assert_array_equal(found.logits, whole.logits[-count:])
            np.testing.assert_array_equal(found.variances, whole.variances[-count:])
    other = engine_of(net, threads=1).measure(images[::-1])
    np.testing.assert_array_equal(other.logits[::-1], whole.logits)


def test_no_image_is_no_score() -> None:
    found = engine_of(seasoned_net()).measure(np.empty((0, 64, 64, 3), np.uint8))
    assert (found.logits.shape, found.summaries.shape) == ((0,), (0, len(SUMMARIES)))


def test_a_negative_scale_is_refused() -> None:
    with pytest.raises(EngineUnavailableError, match=r"not positive|no avx512"):
        fused_cpu(seasoned_net(lowest_scale=-0.5), batch_size=32, threads=1)


def test_without_a_compiler_another_fast_engine_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(str(tmp_path / "net"), seasoned_net(), CARD)
    monkeypatch.setenv("CC", "no-such-compiler")
    native.load.cache_clear()
    with pytest.raises(EngineUnavailableError, match=r"no-such-compiler is not on the PATH|no avx512"):
        fused_cpu(seasoned_net(), batch_size=32, threads=1)
    assert load_scorer(str(tmp_path / "net"), precision="fast").engine.endswith("folded")
    native.load.cache_clear()


def source(folder: Path, text: str) -> tuple[Path, ...]:
    path = folder / "answer.c"
    path.write_text(text)
    return (path,)


def test_a_library_is_compiled_once_and_anew_when_its_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    assert native.load(source(tmp_path, "int answer(void) { return 41; }"), ()).answer() == 41
    (made,) = (tmp_path / "cache" / "deepshadows").iterdir()
    before = made.stat()
    native.load.cache_clear()
    assert native.load(source(tmp_path, "int answer(void) { return 41; }"), ()).answer() == 41
    assert made.stat().st_mtime_ns == before.st_mtime_ns
    native.load.cache_clear()
    assert native.load(source(tmp_path, "int answer(void) { return 42; }"), ()).answer() == 42
    assert len(list(made.parent.iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert native.load(source(tmp_path, "int answer(void) { return 43; }"), ()).answer() == 43


def test_what_the_compiler_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(native.CannotCompileError, match="error"):
        native.load(source(tmp_path, "int answer(void) { return forty; }"), ())
