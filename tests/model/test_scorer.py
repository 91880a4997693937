"""Scoring: exact does not depend on neighbours, fast agrees with exact or is not used."""

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deepshadows.model import checkpoint, engines, fused
from deepshadows.model.card import Card
from deepshadows.model.cuda import MixedNet
from deepshadows.model.engines import EngineUnavailableError, LastLayer
from deepshadows.model.network import to_input
from deepshadows.model.scorer import choose, load_scorer, probe_images
from deepshadows.outcomes import InputError
from deepshadows.settings import DEFAULT_NETWORK
from tests.model.blobs import blobs, seasoned_net

CARD = Card(name="test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    checkpoint.save(folder, seasoned_net(), CARD)
    return folder


def eager(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The network's logits on one thread, as a lane has it: on some CPUs oneDNN sums otherwise with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            logits: NDArray[np.float32] = seasoned_net()(to_input(torch.from_numpy(images))).numpy()
    finally:
        torch.set_num_threads(threads)
    return logits


def test_exact_is_the_eager_network(trained: str) -> None:
    images, _ = blobs(20)
    scorer = load_scorer(trained, precision="exact")
    logits = scorer.score(images).logits
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, eager(images), atol=1e-5)
    full, _ = blobs(engines.EXACT_BATCH)
    np.testing.assert_array_equal(scorer.score(full).logits, eager(full))
    assert "fp32 eager" in scorer.engine


def test_exact_is_equal_bit_for_bit_in_any_order_and_any_split(trained: str) -> None:
    images, _ = blobs(600)
    scorer = load_scorer(trained, precision="exact")
    logits = scorer.score(images).logits
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(600)
        np.testing.assert_array_equal(scorer.score(images[order]).logits, logits[order])
    for size in (1, 97, 256, 300):
        parts = [scorer.score(images[start : start + size]).logits for start in range(0, 600, max(size, 60))]
        expected = [logits[start : start + size] for start in range(0, 600, max(size, 60))]
        np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(expected))


def test_exact_does_not_depend_on_batch_size(trained: str) -> None:
    images, _ = blobs(64)
    first = load_scorer(trained, precision="exact", batch_size=256)
    second = load_scorer(trained, precision="exact", batch_size=16)
    np.testing.assert_array_equal(first.score(images).logits, second.score(images).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lowest_scale", [0.5, -0.5])
def test_folding_keeps_the_network(dtype: torch.dtype, lowest_scale: float) -> None:
    """With negative batch-norm scales, too, where the norm and the max pool do not commute."""
    net = seasoned_net(lowest_scale=lowest_scale)
    images, _ = blobs(70)
    try:
        folded = engines.folded_cpu(net, dtype, batch_size=32, threads=2)
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    exact = engines.exact_cpu(net, threads=2)
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    np.testing.assert_allclose(folded.measure(images).logits, exact.measure(images).logits, atol=tolerance)


def test_fast_agrees_with_exact_and_says_what_it_is(trained: str) -> None:
    images, _ = blobs(100)
    fast, exact = load_scorer(trained, precision="fast"), load_scorer(trained, precision="exact")
    difference = np.abs(fast.score(images).p_lsbg - exact.score(images).p_lsbg)
    assert difference.max() <= 0.02
    assert "bf16" in fast.engine or "folded" in fast.engine
    assert "instead of fast" not in fast.engine


def test_the_engine_is_the_one_that_was_fastest_on_such_a_cpu(trained: str) -> None:
    has = torch.cpu.get_capabilities()
    in_c = all(has.get(name, False) for name in fused.NEEDED) and shutil.which("cc") is not None
    wanted = "bf16 folded" if has.get("amx_bf16") else "bf16 fused" if in_c else "folded"
    assert load_scorer(trained, precision="fast").engine.endswith(wanted)


def test_an_engine_that_differs_is_refused_and_the_reason_recorded() -> None:
    net = seasoned_net()
    reference = engines.exact_cpu(net, threads=2)

    def wrong(images: torch.Tensor) -> torch.Tensor:
        return net.hidden_layer(to_input(images)) * 1.2

    bad = engines.torch_cpu("bad", wrong, LastLayer(net, None), batch_size=64, threads=2)
    with pytest.warns(UserWarning, match="bad differs from the reference"):
        scorer = choose(CARD, [lambda: bad], reference, reference)
    assert scorer.engine.startswith(reference.name)
    assert "cpu bad differs" in scorer.engine
    images, _ = blobs(4)
    np.testing.assert_array_equal(scorer.score(images).logits, reference.measure(images).logits)


def test_an_engine_that_is_not_there_is_passed_over() -> None:
    net = seasoned_net()
    reference = engines.exact_cpu(net, threads=2)

    def missing() -> engines.Engine:
        raise EngineUnavailableError("this CPU has no bf16 arithmetic")

    scorer = choose(
        CARD, [missing, lambda: engines.folded_cpu(net, torch.float32, batch_size=64, threads=2)], reference, reference
    )
    assert scorer.engine.endswith("fp32 folded")


def test_probe_images_are_always_the_same() -> None:
    images = probe_images()
    assert images.shape == (64, 64, 64, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, probe_images())
    assert images[1:-4].max() == 255


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_edges_of_the_input(trained: str, precision: str) -> None:
    scorer = load_scorer(trained, precision=precision)  # type: ignore[arg-type]
    assert scorer.score(np.empty((0, 64, 64, 3), np.uint8)).logits.shape == (0,)
    images, _ = blobs(3)
    expected = scorer.score(images).logits
    images.setflags(write=False)  # as they come from Arrow buffers
    np.testing.assert_array_equal(scorer.score(images).logits, expected)


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (2, 64, 64), (2, 3, 64, 64)])
def test_images_of_another_shape_are_refused(trained: str, shape: tuple[int, ...]) -> None:
    scorer = load_scorer(trained, precision="exact")
    with pytest.raises(InputError, match="uint8"):
        scorer.score(np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="float32"):
        scorer.score(np.zeros((2, 64, 64, 3), np.float32))  # type: ignore[arg-type]


def test_the_arithmetic_for_gpus_keeps_the_shipped_network() -> None:
    """On the CPU: the same operations in the same precisions, without the device."""
    net, card = checkpoint.load(DEFAULT_NETWORK)
    images = np.concatenate([blobs(70)[0], probe_images()])
    mixed, last = MixedNet(net, torch.device("cpu")), LastLayer(net, None)
    with torch.inference_mode():
        found = last.of_images(mixed(torch.from_numpy(images)), torch.from_numpy(images)).numpy()[:, 0]
    exact = engines.exact_cpu(net, threads=2).measure(images).logits
    assert np.abs(card.probabilities(found) - card.probabilities(exact)).max() < 0.006


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_a_clear_error(trained: str) -> None:
    with pytest.raises(EngineUnavailableError, match="no CUDA device"):
        load_scorer(trained, precision="fast", device="cuda")


def _score_in_another_process(folder: str, threads: int, images_file: str) -> list[float]:
    scorer = load_scorer(folder, precision="exact", threads=threads)
    return scorer.score(np.load(images_file)).logits.tolist()  # type: ignore[no-any-return]


def test_exact_is_equal_in_another_process(trained: str, tmp_path: Path) -> None:
    images, _ = blobs(40)
    np.save(tmp_path / "images.npy", images)
    here = load_scorer(trained, precision="exact").score(images).logits
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_score_in_another_process, (trained, 2, str(tmp_path / "images.npy")))
    np.testing.assert_array_equal(here, np.array(there, np.float32))
