"""A network that was really trained, once a session, on a small simulated sky."""

from __future__ import annotations

import pytest

from deepshadows import settings
from deepshadows.verbs import simulate, train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> str:
    """Checkpoint of the short recipe on 250 simulated cut-outs of each class."""
    folder = tmp_path_factory.mktemp("trained")
    simulate.run(settings.Simulate(cutouts=250, seed=11, output=str(folder / "cutouts")))
    recipe = folder / "recipe.toml"
    recipe.write_text(
        'name = "test"\noptimizer = "adamw"\nlearning_rate = 3e-4\nschedule = "cosine"\nepochs = 6\nbatch_size = 32\n'
        'l2_conv = 0.0\nl2_dense = 0.0\naugment = true\nrefresh_norms = true\nkeep = "best"\n'
    )
    train.run(settings.Train(cutouts=str(folder / "cutouts"), output=str(folder / "checkpoint"), recipe=str(recipe)))
    return str(folder / "checkpoint")
