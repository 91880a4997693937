"""`evaluate`: counts and measures of a checkpoint on cut-outs, and of a catalogue against the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepshadows import storage
from deepshadows.model import checkpoint, uncertainty
from deepshadows.model.card import Calibration, Card
from deepshadows.model.scorer import load_scorer
from deepshadows.outcomes import InputError, NotFoundError, UsageError
from deepshadows.schema import Flag
from deepshadows.settings import Evaluate, Publish
from deepshadows.sky.shards import write_shard
from deepshadows.verbs import evaluate, publish
from tests.catalog.finished_runs import rows, write_run
from tests.model.blobs import blob_cutouts, blobs, seasoned_net


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that was never trained, calibrated so that about half of the blobs are selected."""
    folder = str(tmp_path_factory.mktemp("network"))
    card = checkpoint.save(folder, seasoned_net(), Card(name="network"))
    images, _ = blobs(100)
    middle = float(np.median(load_scorer(folder, precision="exact").logits(images)))
    checkpoint.save(folder, seasoned_net(), card.model_copy(update={"calibration": Calibration(intercept=-middle)}))
    return folder


def test_counts_are_those_of_the_scorer(network: str, place: str) -> None:
    cutouts = blob_cutouts(100)
    write_shard(storage.join(place, "a.parquet"), cutouts)
    summary = evaluate.run(Evaluate(checkpoint=network, cutouts=place))
    scorer = load_scorer(network, precision="exact")
    assert cutouts.label is not None
    selected, true = scorer.card.probabilities(scorer.logits(cutouts.images)) >= 0.5, cutouts.label == 1
    figures = summary.figures
    assert [figures[name] for name in ("tp", "fp", "fn", "tn")] == [
        np.count_nonzero(chosen & of_class)
        for chosen, of_class in ((selected, true), (selected, ~true), (~selected, true), (~selected, ~true))
    ]
    assert (figures["n"], figures["threshold"], figures["rows_unscored"]) == (100, 0.5, 0)
    assert figures["accuracy_lo"] <= figures["accuracy"] <= figures["accuracy_hi"]
    assert "fp32 eager" in figures["engine"]


def test_npz_of_another_field_is_brought_to_the_networks(network: str, tmp_path: Path) -> None:
    images, labels = blobs(30)
    np.savez(tmp_path / "sample.npz", image=images, label=labels, fov_arcsec=np.full(30, 40.2))
    summary = evaluate.run(Evaluate(checkpoint=network, cutouts=str(tmp_path / "sample.npz"), precision="fast"))
    assert summary.figures["n"] == 30


def test_rows_that_cannot_be_scored_count_as_not_selected(network: str, tmp_path: Path) -> None:
    cutouts = blob_cutouts(60)
    assert cutouts.label is not None
    flags, label = cutouts.flags.copy(), cutouts.label.copy()
    flags[1], label[0] = Flag.NO_IMAGE.bit, -1  # an LSBG without image, an artifact without label
    write_shard(str(tmp_path / "a.parquet"), replace(cutouts, flags=flags, label=label))
    summary = evaluate.run(Evaluate(checkpoint=network, cutouts=str(tmp_path), threshold=1e-9))
    assert (summary.figures["n"], summary.figures["rows_unscored"]) == (59, 1)
    assert (summary.figures["fn"], summary.figures["tp"]) == (1, 29)
    assert any("1 NO_IMAGE" in line for line in summary.text)


def test_a_wanted_purity_chooses_the_threshold(network: str, tmp_path: Path) -> None:
    write_shard(str(tmp_path / "a.parquet"), blob_cutouts(100))
    plain = evaluate.run(Evaluate(checkpoint=network, cutouts=str(tmp_path)))
    pure = evaluate.run(Evaluate(checkpoint=network, cutouts=str(tmp_path), purity=0.52))
    assert pure.figures["purity"] >= 0.52
    assert pure.figures["threshold"] != plain.figures["threshold"]
    rare = evaluate.run(Evaluate(checkpoint=network, cutouts=str(tmp_path), prevalence=0.05))
    assert rare.figures["tp"] + rare.figures["fp"] <= plain.figures["tp"] + plain.figures["fp"]
    assert rare.figures["auc"] == pytest.approx(plain.figures["auc"])


def test_a_wanted_completeness_chooses_the_threshold(network: str, tmp_path: Path) -> None:
    write_shard(str(tmp_path / "a.parquet"), blob_cutouts(200))
    summary = evaluate.run(Evaluate(checkpoint=network, cutouts=str(tmp_path), completeness=0.8))
    figures = summary.figures
    assert figures["completeness"] == pytest.approx(0.8, abs=0.011), "the highest threshold that reaches it"
    assert figures["completeness"] >= 0.8
    assert figures["threshold_lo"] <= figures["threshold"] <= figures["threshold_hi"]
    assert figures["unseen_completeness_lo"] < 0.8 < figures["unseen_completeness_hi"]
    assert any("completeness of 0.8" in line for line in summary.text)


def test_purity_at_the_surveys_own_rate(network: str, tmp_path: Path) -> None:
    """By hand from the counts, whatever the share of LSBGs among the labelled rows."""
    write_shard(str(tmp_path / "a.parquet"), blob_cutouts(200))
    plain = evaluate.run(Evaluate(checkpoint=network, cutouts=str(tmp_path))).figures
    survey = evaluate.run(
        Evaluate(checkpoint=network, cutouts=str(tmp_path), prevalence=0.05, completeness=0.5)
    ).figures
    found, false = survey["tp"] / (survey["tp"] + survey["fn"]), survey["fp"] / (survey["fp"] + survey["tn"])
    assert survey["purity_at_prevalence"] == pytest.approx(0.05 * found / (0.05 * found + 0.95 * false))
    assert survey["purity_at_prevalence_lo"] <= survey["purity_at_prevalence"] <= survey["purity_at_prevalence_hi"]
    assert survey["purity_at_prevalence"] < survey["purity"]
    assert (survey["prevalence"], plain["prevalence"]) == (0.05, None)
    assert "purity_at_prevalence" not in plain


def test_a_threshold_for_the_surveys_own_rate_is_told_for_p_lsbg_as_catalogues_hold_it(
    network: str, tmp_path: Path
) -> None:
    write_shard(str(tmp_path / "a.parquet"), blob_cutouts(200))
    where = {"checkpoint": network, "cutouts": str(tmp_path)}
    survey = evaluate.run(Evaluate(**where, prevalence=0.05, completeness=0.5)).figures
    odds = survey["threshold_at_prevalence"] / (1 - survey["threshold_at_prevalence"]) * 0.95 / 0.05
    assert survey["threshold"] == pytest.approx(odds / (1 + odds))
    stored = evaluate.run(Evaluate(**where, threshold=survey["threshold"] * (1 - 1e-9))).figures
    assert [stored[name] for name in ("tn", "fp", "fn", "tp")] == [survey[name] for name in ("tn", "fp", "fn", "tp")]


def test_only_one_way_to_a_threshold() -> None:
    with pytest.raises(UsageError, match="give one of --purity, --completeness and --threshold"):
        Evaluate.resolve({"checkpoint": "c", "cutouts": "d", "purity": 0.9, "threshold": 0.5}, "test")


def test_errors_and_foreign_images_are_told(network: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "sure")
    net, card = checkpoint.load(network)
    checkpoint.save(folder, net, uncertainty.write(folder, uncertainty.fit(net, card, blobs(200)[0]), card))
    cutouts = blob_cutouts(100, seed=3)
    images = cutouts.images.copy()
    images[:7] = 32
    write_shard(str(tmp_path / "cutouts" / "a.parquet"), replace(cutouts, images=images))
    figures = evaluate.run(Evaluate(checkpoint=folder, cutouts=str(tmp_path / "cutouts"))).figures
    assert 7 <= figures["rows_out_of_domain"] <= 9
    assert 0 < figures["err_median"] < 0.5
    assert 0 <= figures["err_auc"] <= 1
    unsure = evaluate.run(Evaluate(checkpoint=network, cutouts=str(tmp_path / "cutouts"))).figures
    assert (unsure["rows_out_of_domain"], unsure["err_median"]) == (0, None)
    assert unsure["tp"] == figures["tp"]


def test_cutouts_without_labels_are_a_clear_error(network: str, tmp_path: Path) -> None:
    write_shard(str(tmp_path / "a.parquet"), replace(blob_cutouts(20), label=None))
    with pytest.raises(InputError, match="no labels"):
        evaluate.run(Evaluate(checkpoint=network, cutouts=str(tmp_path)))


def test_a_catalogue_by_hand(ray_local: None, place: str) -> None:
    """Four LSBGs: one selected, one below the threshold, one detected without a score, one never detected."""
    dec = np.full(6, -30.0)
    ra = 50 + np.arange(6) * 0.1
    near = dec + np.array([0.5, 0.0, 0.3, 0.0, 0.0, 0.9]) / 3600  # arcseconds off
    table = rows(range(6), ra, near, [0, 0, Flag.NO_IMAGE.bit, 0, 0, 0])
    probabilities = pa.array([0.9, 0.2, None, 0.8, 0.1, 0.7], pa.float32())
    table = table.set_column(4, table.schema.field("p_lsbg"), probabilities)
    run = write_run(f"{place}/run", [table])
    publish.run(Publish(run=(run,), catalog=f"{place}/cat"))
    truth = pa.table(
        {
            "ra": [50.0, 50.1, 50.2, 60.0, 50.3],
            "dec": np.full(5, -30.0),
            "label": pa.array([1, 1, 1, 1, 0], pa.int8()),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(truth, sink)
    storage.write(f"{place}/truth.parquet", sink.getvalue().to_pybytes())
    summary = evaluate.run(Evaluate(catalog=f"{place}/cat", truth=f"{place}/truth.parquet", radius_arcsec=1.0))
    figures = summary.figures
    assert [figures[name] for name in ("tp", "fp", "fn", "tn")] == [1, 2, 3, 1]
    assert (figures["completeness"], figures["purity"]) == (0.25, pytest.approx(1 / 3))
    assert (figures["truth_lsbg"], figures["truth_lsbg_detected"], figures["rows"]) == (4, 3, 6)
    assert figures["rows_unscored"] == 1
    assert figures["auc"] == pytest.approx(4 / 6)  # 0.9 beats 0.8, 0.1 and 0.7; 0.2 beats 0.1


def test_a_catalogue_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        evaluate.run(Evaluate(catalog=str(tmp_path / "none"), truth=str(tmp_path / "truth.parquet")))
