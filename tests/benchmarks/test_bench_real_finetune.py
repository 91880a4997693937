"""A look at the real labels is counted in the card of the network, whatever was done to it before."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from deepshadows.model.card import CARD_NAME, Card, Evaluation
from deepshadows.model.checkpoint import save
from tests.benchmarks import bench_real_finetune
from tests.benchmarks.bench_real_sky import LABELLED
from tests.model.blobs import blobs, seasoned_net


def test_fine_tuning_on_real_labels_is_logged_beside_earlier_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = blobs(60)
    np.savez(tmp_path / f"{LABELLED}.npz", image=images, label=labels, fov_arcsec=33.5)
    earlier = Evaluation(sample="s", commit="c", figures={"auc": 0.5})
    save(str(tmp_path / "net"), seasoned_net(), Card(name="n", evaluations=(earlier,)))
    monkeypatch.setattr(sys, "argv", ["bench", "--real", str(tmp_path), "--repeats", "1", str(tmp_path / "net")])
    bench_real_finetune.main()
    first, second = Card.model_validate_json((tmp_path / "net" / CARD_NAME).read_bytes()).evaluations
    assert first == earlier
    assert second.sample == f"{LABELLED}, cross-validated fine-tuning: layers output, 5 folds, 1 repeats"
    assert second.commit
    assert second.figures["auc_lo"] <= second.figures["auc"] <= second.figures["auc_hi"]
