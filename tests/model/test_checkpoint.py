"""Checkpoints: what is written is what is read, and whatever does not fit is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from deepshadows.model import checkpoint
from deepshadows.model.card import CARD_NAME, WEIGHTS_NAME, Calibration, Card, read_card
from deepshadows.model.network import DeepShadowsNet
from deepshadows.outcomes import InputError
from deepshadows.sky.cutouts import METHOD
from tests.model.blobs import seasoned_net

CARD = Card(name="test", calibration=Calibration(slope=1.25, intercept=-0.5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.save(str(tmp_path), seasoned_net(), CARD)
    return tmp_path


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other weights with a card that has their sha256."""
    data = safetensors.torch.save(tensors)
    (folder / WEIGHTS_NAME).write_bytes(data)
    edit_card(folder, weights_sha256=hashlib.sha256(data).hexdigest())


def edit_card(folder: Path, **values: object) -> None:
    card = json.loads((folder / CARD_NAME).read_text())
    (folder / CARD_NAME).write_text(json.dumps({**card, **values}))


def test_round_trip(place: str) -> None:
    net = seasoned_net()
    written = checkpoint.save(place, net, CARD)
    loaded, card = checkpoint.load(place)
    assert card == written
    assert card.calibration == CARD.calibration
    assert not loaded.training
    for name, tensor in checkpoint.weights_of(net).items():
        assert torch.equal(tensor, checkpoint.weights_of(loaded)[name]), name


def test_float16_weights_are_computed_with_as_float32(folder: Path) -> None:
    net = seasoned_net()
    rewrite(folder, {name: tensor.half() for name, tensor in checkpoint.weights_of(net).items()})
    loaded, _ = checkpoint.load(str(folder))
    assert loaded.hidden.weight.dtype == torch.float32
    assert torch.equal(loaded.hidden.weight, net.hidden.weight.half().float())


def test_there_is_no_pickle_in_a_checkpoint(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [CARD_NAME, WEIGHTS_NAME]
    json.loads((folder / CARD_NAME).read_text())
    safetensors.torch.load_file(folder / WEIGHTS_NAME)


def test_tampered_weights_are_refused(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS_NAME).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS_NAME).write_bytes(data)
    with pytest.raises(InputError, match="sha256"):
        checkpoint.load(str(folder))


def test_weights_that_are_no_safetensors_are_refused(folder: Path) -> None:
    (folder / WEIGHTS_NAME).write_bytes(b"PK\x03\x04 a pickle in a zip")
    edit_card(folder, weights_sha256=hashlib.sha256(b"PK\x03\x04 a pickle in a zip").hexdigest())
    with pytest.raises(InputError, match="not a safetensors file"):
        checkpoint.load(str(folder))


def test_renamed_tensors_are_refused(folder: Path) -> None:
    tensors = checkpoint.weights_of(DeepShadowsNet())
    tensors["dense.weight"] = tensors.pop("hidden.weight")
    rewrite(folder, tensors)
    with pytest.raises(InputError, match=r"missing \['hidden.weight'\], unknown \['dense.weight'\]"):
        checkpoint.load(str(folder))


def test_tensors_of_another_shape_are_refused(folder: Path) -> None:
    tensors = checkpoint.weights_of(DeepShadowsNet())
    tensors["output.weight"] = torch.zeros(3, 1024)
    rewrite(folder, tensors)
    with pytest.raises(InputError, match=r"output.weight is torch.float32 \(3, 1024\)"):
        checkpoint.load(str(folder))


def test_tensors_of_another_type_are_refused(folder: Path) -> None:
    rewrite(folder, {name: tensor.double() for name, tensor in checkpoint.weights_of(DeepShadowsNet()).items()})
    with pytest.raises(InputError, match="float64"):
        checkpoint.load(str(folder))


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    tensors = checkpoint.weights_of(DeepShadowsNet())
    tensors["output.bias"][0] = np.nan
    rewrite(folder, tensors)
    with pytest.raises(InputError, match="not finite"):
        checkpoint.load(str(folder))


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(InputError, match="has a card but no"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "resnet-50"}, "unknown architecture 'resnet-50'"),
        ({"format_version": 99}, "card format 99"),
        ({"parameters": 12}, "do not fit deepshadows-cnn-1"),
        ({"size_pix": 128}, "do not fit deepshadows-cnn-1"),
        ({"classes": ["artifact-1", "artifact-2", "lsbg"]}, "do not fit deepshadows-cnn-1"),
        ({"fov_arcsec": -1}, "fov_arcsec"),
        ({"calibration": {"slope": "steep"}}, "calibration.slope"),
        ({"resampling": "nearest pixel, version 7"}, "resampled by 'nearest pixel, version 7'"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_cards_that_do_not_fit_are_refused(folder: Path, values: dict[str, object], message: str) -> None:
    edit_card(folder, **values)
    with pytest.raises(InputError, match=message):
        read_card(str(folder))


def test_a_card_states_how_its_images_are_resampled_and_one_that_does_not_means_the_same(folder: Path) -> None:
    card = json.loads((folder / CARD_NAME).read_text())
    assert card.pop("resampling") == METHOD
    (folder / CARD_NAME).write_text(json.dumps(card))
    assert read_card(str(folder)).resampling == METHOD


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[1]", "a card is a JSON object"), ("\xff", "card|JSON")]
)
def test_files_that_are_no_card_are_refused(folder: Path, text: str, message: str) -> None:
    (folder / CARD_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        read_card(str(folder))


def test_a_folder_without_card_is_no_checkpoint(place: str) -> None:
    with pytest.raises(InputError, match=r"card.json is missing"):
        read_card(place)


def test_probabilities_are_platts() -> None:
    logits = np.array([-2.0, 0.0, 0.4, 3.0], np.float32)
    expected = 1 / (1 + np.exp(-(1.25 * logits.astype(np.float64) - 0.5)))
    probabilities = CARD.probabilities(logits)
    assert probabilities.dtype == np.float32
    np.testing.assert_array_equal(probabilities, expected.astype(np.float32))
    assert np.isnan(CARD.probabilities(np.array([np.nan], np.float32))).all()


def test_weights_that_float16_cannot_hold_are_not_written(tmp_path: Path) -> None:
    net = DeepShadowsNet()
    with torch.no_grad():
        net.norms[0].running_var[0] = 1e6
    with pytest.raises(InputError, match="running_var has values that torch"):
        checkpoint.save(str(tmp_path / "net"), net, Card(name="net"), torch.float16)
    assert not (tmp_path / "net").exists()
