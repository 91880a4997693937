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
from deepshadows.sky.cutouts import bring_to_field
from deepshadows.sky.shards import write_shard
from deepshadows.verbs import evaluate, publish
from deepshadows.verbs.classify_plan import card_geometry
from tests.catalog.finished_runs import rows, write_run
from tests.model.blobs import blob_cutouts, blobs, seasoned_net


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that was never trained, calibrated so that about half of the blobs are selected."""
    folder = str(tmp_path_factory.mktemp("network"))
    card = checkpoint.save(folder, seasoned_net(), Card(name="network"))
    images, _ = blobs(100)
    middle = float(np.median(load_scorer(folder, precision="exact").score(images).logits))
    checkpoint.save(folder, seasoned_net(), card.model_copy(update={"calibration": Calibration(intercept=-middle)}))
    return folder


def counts(selected: np.ndarray, true: np.ndarray) -> list[int]:
    """True and false positives, false and true negatives."""
    of = ((selected, true), (selected, ~true), (~selected, true), (~selected, ~true))
    return [int(np.count_nonzero(chosen & of_class)) for chosen, of_class in of]


def test_counts_are_those_of_the_scorer(network: str, place: str) -> None:
    cutouts = blob_cutouts(100)
    write_shard(storage.join(place, "a.parquet"), cutouts)
    summary = evaluate.run(Evaluate(checkpoint=network, cutouts=place))
    scorer = load_scorer(network, precision="exact")
    assert cutouts.label is not None
    selected, true = scorer.score(cutouts.images).p_lsbg >= 0.5, cutouts.label == 1
    figures = summary.figures
    assert [figures[name] for name in ("tp", "fp", "fn", "tn")] == counts(selected, true)
    assert (figures["n"], figures["threshold"], figures["rows_unscored"]) == (100, 0.5, 0)
    assert figures["accuracy_lo"] <= figures["accuracy"] <= figures["accuracy_hi"]
    assert "fp32 eager" in figures["engine"]


def test_npz_of_another_field_is_brought_to_the_networks(network: str, tmp_path: Path) -> None:
    images, labels = blobs(100)
    np.savez(tmp_path / "sample.npz", image=images, label=labels, fov_arcsec=np.full(100, 40.2))
    figures = evaluate.run(Evaluate(checkpoint=network, cutouts=str(tmp_path / "sample.npz"), precision="fast")).figures
    scorer = load_scorer(network, precision="fast")
    brought, _ = bring_to_field(images, np.full(100, 40.2), card_geometry(scorer.card))
    selected, as_given = (scorer.score(taken).p_lsbg >= scorer.card.threshold for taken in (brought, images))
    assert [figures[name] for name in ("tp", "fp", "fn", "tn")] == counts(selected, labels == 1)
    assert counts(selected, labels == 1) != counts(as_given, labels == 1), "it matters"


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


@pytest.mark.parametrize("prevalence", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("wanted", np.linspace(0.05, 0.95, 5))
def test_as_many_rows_pass_the_told_threshold_as_were_counted(
    network: str, tmp_path: Path, prevalence: float, wanted: float
) -> None:
    """Without any allowance for rounding."""
    cutouts = blob_cutouts(100)
    write_shard(str(tmp_path / "a.parquet"), cutouts)
    survey = Evaluate(checkpoint=network, cutouts=str(tmp_path), prevalence=prevalence, completeness=wanted)
    figures = evaluate.run(survey).figures
    p_lsbg = load_scorer(network, precision="exact").score(cutouts.images).p_lsbg.astype(np.float64)
    assert np.count_nonzero(p_lsbg >= figures["threshold"]) == figures["tp"] + figures["fp"]
    assert figures["threshold"] in p_lsbg


@pytest.mark.parametrize("goal", [{"completeness": 0.5}, {"purity": 0.051}])
def test_a_threshold_found_for_a_prevalence_can_be_given_back_with_it(
    network: str, tmp_path: Path, goal: dict[str, float]
) -> None:
    write_shard(str(tmp_path / "a.parquet"), blob_cutouts(200))
    where = {"checkpoint": network, "cutouts": str(tmp_path), "prevalence": 0.05}
    found = evaluate.run(Evaluate(**where, **goal)).figures
    given = evaluate.run(Evaluate(**where, threshold=found["threshold"])).figures
    same = [name for name in given if name != "images_per_s"]
    assert {name: given[name] for name in same} == {name: found[name] for name in same}
    assert given["threshold_at_prevalence"] < given["threshold"]
    between = evaluate.run(Evaluate(**where, threshold=0.123)).figures
    plain = evaluate.run(Evaluate(**{**where, "prevalence": None}, threshold=0.123)).figures
    assert between["threshold"] == plain["threshold"] == 0.123
    assert [between[name] for name in ("tn", "fp", "fn", "tp")] == [plain[name] for name in ("tn", "fp", "fn", "tp")]


@pytest.mark.parametrize(
    "names",
    [
        *((), ("checkpoint",), ("checkpoint", "truth"), ("checkpoint", "cutouts", "catalog")),
        *(("checkpoint", "catalog", "truth"), ("checkpoint", "cutouts", "catalog", "truth")),
    ],
)
def test_one_subject_is_judged(names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="give --checkpoint with --cutouts, or --catalog with --truth"):
        Evaluate.resolve(dict.fromkeys(names, "x"), "test")


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
    scores = load_scorer(folder, precision="exact").score(images)
    wrong = (scores.p_lsbg >= 0.5) != (cutouts.label == 1)
    pairs = np.sign(scores.p_lsbg_err[wrong, None].astype(float) - scores.p_lsbg_err[~wrong])
    assert figures["err_auc"] == pytest.approx((1 + pairs.mean()) / 2), "ties count half"
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
            "ra": [50.0, 50.1, 50.2, 50.25, 50.3],
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
