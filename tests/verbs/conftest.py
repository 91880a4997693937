"""A small network and small inputs for the verbs."""

from __future__ import annotations

import numpy as np
import pytest

from deepshadows.model.card import Calibration, Card
from deepshadows.model.checkpoint import save
from deepshadows.model.network import DeepShadowsNet


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network with initial weights: its scores mean nothing, but are the same everywhere."""
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    save(folder, DeepShadowsNet(seed=3), Card(name="untrained", calibration=Calibration(slope=0.7, intercept=0.1)))
    return folder


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with other weights."""
    folder = str(tmp_path_factory.mktemp("other"))
    save(folder, DeepShadowsNet(seed=4), Card(name="other", calibration=Calibration(slope=0.9, intercept=-0.2)))
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
