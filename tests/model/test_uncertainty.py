"""p_lsbg_err: the posterior of the last layer, its file, and that every engine gives the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit

from deepshadows.model import checkpoint, uncertainty
from deepshadows.model.card import CARD_NAME, UNCERTAINTY_NAME, Calibration, Card
from deepshadows.model.network import to_input
from deepshadows.model.scorer import load_scorer
from deepshadows.outcomes import InputError
from tests.model.blobs import blobs, seasoned_net

CARD = Card(name="test", calibration=Calibration(slope=2.0, intercept=-0.3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an uncertainty."""
    path = tmp_path_factory.mktemp("sure")
    net = seasoned_net()
    card = uncertainty.write(str(path), uncertainty.fit(net, CARD, blobs(200, seed=4)[0]), CARD)
    checkpoint.save(str(path), net, card)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def rewrite(folder: Path, data: bytes) -> None:
    """Another file with a card that has its sha256."""
    (folder / UNCERTAINTY_NAME).write_bytes(data)
    card = json.loads((folder / CARD_NAME).read_text())
    card["uncertainty_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / CARD_NAME).write_text(json.dumps(card))


def test_the_mean_variance_is_that_of_the_whole_posterior() -> None:
    """Against the inverse of the full matrix, with the prior that reproduces itself in the evidence."""
    net, images = seasoned_net(), blobs(200, seed=4)[0]
    fitted = uncertainty.fit(net, CARD, images)
    with torch.no_grad():
        hidden = net.hidden_layer(to_input(torch.from_numpy(images))).double().numpy()
        logits = net(to_input(torch.from_numpy(images))).numpy()
    p = CARD.probabilities(logits).astype(np.float64)
    weight = p * (1 - p)
    centred = hidden - weight @ hidden / weight.sum()
    matrix = centred.T @ (centred * weight[:, None])
    values = np.clip(np.linalg.eigvalsh(matrix), 0, None)
    length2 = float((2.0 * net.output.weight.detach().double()).square().sum())
    prior = brentq(lambda x: (values / (values + x)).sum() / x - length2, 1e-9, 1e9, xtol=1e-12)
    full = np.linalg.inv(matrix + prior * np.eye(1024))
    expected = np.einsum("ij,jk,ik->i", centred, full, centred) + 1 / (weight.sum() + prior)
    found = np.square(hidden @ fitted.factor.T - fitted.offset).sum(axis=1) + fitted.floor
    assert found.mean() == pytest.approx(expected.mean(), rel=0.01)
    assert np.corrcoef(found, expected)[0, 1] > 0.99


def test_more_training_images_make_surer() -> None:
    net = seasoned_net()
    images = blobs(400, seed=4)[0]
    few, many = (uncertainty.fit(net, CARD, part) for part in (images[:40], images))
    hidden = net.hidden_layer(to_input(torch.from_numpy(blobs(50, seed=5)[0]))).detach().double().numpy()
    spread = [np.square(hidden @ one.factor.T - one.offset).sum(axis=1) + one.floor for one in (few, many)]
    assert np.median(spread[1]) < np.median(spread[0]) / 2


@given(st.floats(-30, 30), st.floats(0, 100), st.floats(0, 5))
def test_errors_are_half_of_what_lies_within_one_deviation(logit: float, variance: float, more: float) -> None:
    """Between 0 and 0.5, and larger with a larger variance."""
    logits, variances = np.array([logit, logit], np.float32), np.array([variance, variance + more], np.float32)
    errors = CARD.errors(logits, variances)
    z, deviation = 2.0 * float(logits[0]) - 0.3, np.sqrt(float(variances[0]))
    assert errors[0] == pytest.approx((expit(z + deviation) - expit(z - deviation)) / 2, abs=1e-6)
    assert 0 <= errors[0] <= errors[1] <= 0.5


def test_exact_errors_are_equal_bit_for_bit_in_any_split(folder: Path) -> None:
    images, _ = blobs(120)
    scorer = load_scorer(str(folder), precision="exact")
    whole = scorer.score(images).p_lsbg_err
    assert (whole > 0).all()
    order = np.random.default_rng(1).permutation(120)
    np.testing.assert_array_equal(scorer.score(images[order]).p_lsbg_err, whole[order])
    parts = [scorer.score(images[rows]).p_lsbg_err for rows in (slice(0, 1), slice(1, 98), slice(98, None))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_fast_agrees_with_exact(folder: Path) -> None:
    """Errors within what DESIGN.md section 5 allows probabilities; distances, and so the flag, are the same bits."""
    images, _ = blobs(200)
    fast, exact = (load_scorer(str(folder), precision=name).score(images) for name in ("fast", "exact"))  # type: ignore[arg-type]
    difference = np.abs(fast.p_lsbg_err - exact.p_lsbg_err)
    assert difference.max() <= 0.02
    assert np.median(difference) <= 0.002
    np.testing.assert_array_equal(fast.domain_distance, exact.domain_distance)


def test_the_logits_are_those_of_a_checkpoint_without_uncertainty(folder: Path, tmp_path: Path) -> None:
    checkpoint.save(str(tmp_path), seasoned_net(), CARD)
    images, _ = blobs(50)
    for precision in ("exact", "fast"):
        with_it, without = (load_scorer(str(path), precision=precision).score(images) for path in (folder, tmp_path))
        np.testing.assert_array_equal(with_it.p_lsbg, without.p_lsbg)
        assert np.isnan(without.p_lsbg_err).all()
        assert np.isnan(without.domain_distance).all()
        assert not without.out_of_domain.any()


def test_a_card_from_before_there_was_an_uncertainty_loads(copy: Path) -> None:
    card = json.loads((copy / CARD_NAME).read_text())
    del card["uncertainty_sha256"]
    (copy / CARD_NAME).write_text(json.dumps(card))
    scores = load_scorer(str(copy), precision="exact").score(blobs(4)[0])
    assert np.isfinite(scores.p_lsbg).all()
    assert np.isnan(scores.p_lsbg_err).all()


def test_round_trip(place: str) -> None:
    fitted = uncertainty.fit(seasoned_net(), CARD, blobs(60)[0])
    card = uncertainty.write(place, fitted, CARD)
    loaded = uncertainty.read(place, card)
    assert loaded is not None
    np.testing.assert_array_equal(loaded.factor, fitted.factor)
    np.testing.assert_array_equal(loaded.offset, fitted.offset)
    assert loaded.floor == fitted.floor
    for name, values in vars(fitted.domain).items():
        np.testing.assert_array_equal(vars(loaded.domain)[name], values, err_msg=name)


def test_the_file_is_small(folder: Path) -> None:
    assert (folder / UNCERTAINTY_NAME).stat().st_size <= 300_000


def test_a_tampered_file_is_refused(copy: Path) -> None:
    data = bytearray((copy / UNCERTAINTY_NAME).read_bytes())
    data[-1] ^= 1
    (copy / UNCERTAINTY_NAME).write_bytes(data)
    with pytest.raises(InputError, match=r"uncertainty\.safetensors: sha256 .* is not that of the card"):
        load_scorer(str(copy), precision="exact")


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / UNCERTAINTY_NAME).unlink()
    with pytest.raises(InputError, match=r"has a card but no uncertainty\.safetensors; copy it whole"):
        load_scorer(str(copy), precision="exact")


def test_what_is_no_safetensors_is_refused(copy: Path) -> None:
    rewrite(copy, b"PK\x03\x04 a pickle in a zip")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_scorer(str(copy), precision="exact")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("factor", torch.zeros(32, 512), "do not fit"),
        ("extra", torch.zeros(1), "do not fit"),
        ("domain.mean", torch.zeros(3), "do not fit"),
        ("floor", torch.tensor([torch.nan], dtype=torch.float64), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(copy: Path, name: str, value: torch.Tensor, message: str) -> None:
    tensors = safetensors.torch.load_file(copy / UNCERTAINTY_NAME)
    rewrite(copy, safetensors.torch.save({**tensors, name: value}))
    with pytest.raises(InputError, match=message):
        load_scorer(str(copy), precision="exact")
