"""One unit from pixels to its table, without Ray: uncertainty and domain reach their columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepshadows import storage
from deepshadows.model import checkpoint, uncertainty
from deepshadows.model.card import Card
from deepshadows.model.scorer import load_scorer
from deepshadows.run.units import shard_units
from deepshadows.schema import Flag
from deepshadows.settings import Classify
from deepshadows.sky.shards import write_shard
from deepshadows.verbs.unit_scoring import score_unit
from tests.model.blobs import blob_cutouts, blobs, seasoned_net

ROWS = 40


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint with an uncertainty."""
    folder, net, card = str(tmp_path_factory.mktemp("sure")), seasoned_net(), Card(name="sure")
    checkpoint.save(folder, net, uncertainty.write(folder, uncertainty.fit(net, card, blobs(200)[0]), card))
    return folder


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_errors_and_the_flag_are_written(sure: str, tmp_path: Path, precision: str) -> None:
    """A blank image is flagged and scored; one that is missing has a null score and no such flag."""
    cutouts = blob_cutouts(ROWS, seed=3)
    images, flags = cutouts.images.copy(), cutouts.flags.copy()
    images[[4, 9]] = 32
    flags[9] = Flag.NO_IMAGE.bit
    url = str(tmp_path / "a.parquet")
    write_shard(url, replace(cutouts, images=images, flags=flags))
    (unit,) = shard_units(storage.stat(url), ROWS, 1000, [ROWS])
    scorer = load_scorer(sure, precision=precision)  # type: ignore[arg-type]
    settings = Classify(input=str(tmp_path), checkpoint=sure, output="unused")
    table = score_unit(unit, scorer, settings, "run")
    written = table["flags"].to_numpy()
    assert written[4] == Flag.OUT_OF_DOMAIN.bit
    assert written[9] == Flag.NO_IMAGE.bit
    assert np.count_nonzero(written) <= 4
    errors = table["p_lsbg_err"]
    assert (errors.null_count, table["p_lsbg"].null_count) == (1, 1)
    assert errors[9].as_py() is None
    expected = scorer.score(np.delete(images, 9, axis=0))
    np.testing.assert_array_equal(errors.drop_null().to_numpy(), expected.p_lsbg_err)
    np.testing.assert_array_equal(table["p_lsbg"].drop_null().to_numpy(), expected.p_lsbg)


def test_without_an_uncertainty_the_column_is_null(tmp_path: Path) -> None:
    checkpoint.save(str(tmp_path / "plain"), seasoned_net(), Card(name="plain"))
    url = str(tmp_path / "shards" / "a.parquet")
    write_shard(url, blob_cutouts(ROWS))
    (unit,) = shard_units(storage.stat(url), ROWS, 1000, [ROWS])
    scorer = load_scorer(str(tmp_path / "plain"), precision="exact")
    settings = Classify(input=str(tmp_path), checkpoint="unused", output="unused")
    table = score_unit(unit, scorer, settings, "run")
    assert table["p_lsbg_err"].null_count == ROWS
    assert table["p_lsbg"].null_count == 0
    assert not table["flags"].to_numpy().any()
