"""`experiments`: the parts that can be checked by hand, and the whole on a tiny sample with a local Ray."""

from __future__ import annotations

import html
import io
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepshadows.outcomes import AbsentError, InputError, NotFoundError, UsageError
from deepshadows.settings import Experiments, Recipe
from deepshadows.sky.shards import write_shard
from deepshadows.verbs import experiments
from deepshadows.verbs.page import Picture
from deepshadows.verbs.paper import label_noise, report, trainings
from deepshadows.verbs.paper.explanations import most_confident
from deepshadows.verbs.paper.findings import Number, Row, Section, Table, judged_logits, numbers
from deepshadows.verbs.paper.folds import out_of_fold
from deepshadows.verbs.paper.label_noise import flipped
from deepshadows.verbs.paper.published import THREE_CLASS_CONFUSION
from deepshadows.verbs.paper.real_features import TARGETS, real_features
from deepshadows.verbs.paper.samples import Sample, read_sample, split_sample
from deepshadows.verbs.paper.scale import A_THIRD, SCALES, Scale
from deepshadows.verbs.paper.study import Study
from deepshadows.verbs.paper.three_classes import confusion, measures, resampled, types_by_score
from deepshadows.verbs.paper.trainings import FeatureJob, NetworkJob, Outcome, Tell, Trainer, Workplace
from deepshadows.verbs.paper.transfer import examples, pool_and_test
from tests.model.blobs import blob_cutouts
from tests.model.measurements import measured

REALDATA = Path(os.environ.get("DEEPSHADOWS_REALDATA", Path(__file__).parents[3] / "shared" / "realdata"))
TINY_RECIPE = Recipe(
    name="tiny",
    optimizer="adamw",
    learning_rate=1e-3,
    epochs=2,
    batch_size=32,
    l2_conv=1e-4,
    l2_dense=1e-4,
    refresh_norms=True,
)
TINY = Scale(
    name="tiny",
    label="Tiny: for tests",
    cutouts=150,
    second_cutouts=60,
    recipe=TINY_RECIPE,
    transfer=TINY_RECIPE.model_copy(update={"epochs": 1, "batch_size": 8}),
    targeted_epochs=1,
    seeds=(1, 3),
    uniform=(0.05, A_THIRD),
    targeted=(0.10,),
    transfer_sizes=(10, 20),
)


def write_sample(folder: Path, count: int, seed: int = 1, stretch: str = "des-1", fov_arcsec: float = 33.5) -> Path:
    """Shards with the features of their objects beside them."""
    folder.mkdir()
    cutouts = replace(blob_cutouts(count, seed), stretch=stretch, fov_arcsec=fov_arcsec)
    write_shard(str(folder / "cutouts-00000.parquet"), cutouts)
    pq.write_table(measured(count, seed)[0], folder / "_features.parquet")
    return folder


def read(folder: Path, **changes: Any) -> Sample:
    wanted: dict[str, Any] = {"most": 1000, "split": "sky", "seed": 1, "origin": "test"} | changes
    return read_sample(str(folder), "des", **wanted)


labels_of_rows = st.lists(st.integers(0, 1), min_size=2, max_size=60).map(lambda given: np.array(given, np.int8))


@given(labels_of_rows, st.data())
def test_as_many_labels_are_wrong_as_were_asked_for(labels: np.ndarray, data: st.DataObject) -> None:
    rows = np.flatnonzero(np.array(data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))))
    only = data.draw(st.sampled_from((None, 0, 1)))
    choice = rows if only is None else rows[labels[rows] == only]
    count = data.draw(st.integers(0, len(choice)))
    wrong = flipped(labels, rows, count, 7, only)
    changed = np.flatnonzero(wrong != labels)
    assert len(changed) == count
    assert np.isin(changed, choice).all()
    assert set(wrong.tolist()) <= {0, 1}
    with pytest.raises(InputError, match=f"{len(choice) + 1} labels are to be flipped"):
        flipped(labels, rows, len(choice) + 1, 7, only)


def test_artifacts_are_divided_at_the_threshold_that_lsbgs_pass() -> None:
    scores = np.array([0.1, 0.5, 0.6, 0.2, 0.4, 0.9, 0.8, 0.3])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0], np.int8)
    assert types_by_score(scores, labels, kept=0.75).tolist() == [0, 1, 1, -1, 2, 2, 2, 0]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80), st.floats(0.5, 1))
def test_the_wanted_share_of_lsbgs_passes(rows: list[tuple[float, bool]], kept: float) -> None:
    scores = np.array([score for score, _ in rows] + [0.5])
    labels = np.array([lsbg for _, lsbg in rows] + [True]).astype(np.int8)
    types = types_by_score(scores, labels, kept)
    assert np.count_nonzero(types == 2) >= kept * np.count_nonzero(labels)
    assert ((types == 2) | (types == -1)).tolist() == (labels == 1).tolist()
    passed = scores[types > 0]
    assert scores[(types == 0) | (types == -1)].max(initial=-1) < passed.min()


def test_three_classes_and_two_by_hand() -> None:
    truth = np.array([0, 0, 1, 1, 1, 1, 2, 2], np.int8)
    counts = confusion(truth, np.array([0, 1, 1, 1, 1, 2, 2, 0]))
    assert counts.tolist() == [[1, 1, 0], [0, 3, 1], [1, 0, 1]]
    found = {name: float(value) for name, value in measures(counts).items()}
    assert found["accuracy"] == pytest.approx((1 / 2 + 3 / 4 + 1 / 2) / 3)
    assert found["completeness"] == pytest.approx(1 / 2)
    assert found["purity"] == pytest.approx((1 / 2) / (1 / 2 + 1 / 4))
    assert found["two_class_accuracy"] == pytest.approx((1 + 3 / 4 + 1 / 2) / 3)


def test_three_class_measures_of_the_papers_confusion_are_the_papers() -> None:
    found = measures(np.array(THREE_CLASS_CONFUSION, float))
    assert found["accuracy"] == pytest.approx(0.882, abs=0.003)
    assert found["completeness"] == pytest.approx(0.968, abs=0.001)
    assert found["purity"] == pytest.approx(0.871, abs=0.006)


def test_resampled_confusions_keep_the_number_of_rows_and_scatter_about_the_counts() -> None:
    counts = np.array(THREE_CLASS_CONFUSION, float)
    drawn = resampled(counts, 400, seed=1)
    assert drawn.shape == (400, 3, 3)
    assert set(drawn.sum(axis=(1, 2))) == {counts.sum()}
    np.testing.assert_allclose(drawn.mean(axis=0), counts, rtol=0.01, atol=1.5)


@given(labels_of_rows, st.data())
def test_fewer_examples_are_among_more_and_classes_take_turns(labels: np.ndarray, data: st.DataObject) -> None:
    pool = np.flatnonzero(np.arange(len(labels)) % 3 != 0)
    fewer, more = sorted(data.draw(st.tuples(st.integers(0, len(pool)), st.integers(0, len(pool)))))
    small, large = examples(labels, pool, fewer, 3), examples(labels, pool, more, 3)
    assert len(set(large.tolist())) == len(large) == more
    assert small.tolist() == large[:fewer].tolist()
    assert np.isin(large, pool).all()
    in_class = np.bincount(labels[pool], minlength=2)
    assert min(np.bincount(labels[large], minlength=2)) == min(more // 2, min(in_class))
    with pytest.raises(InputError, match=f"its pool has {len(pool)}"):
        examples(labels, pool, len(pool) + 1, 3)


def test_the_surest_decisions_come_first() -> None:
    logits = np.array([3, -1, 5, -4, 0.5, -2, 1, -3], np.float32)
    labels = np.array([1, 1, 0, 0, 1, 0, 0, 1], np.int8)
    chosen = most_confident(logits, labels, 1)
    assert {name: rows.tolist() for name, rows in chosen.items()} == {
        "true positives": [0],
        "true negatives": [3],
        "false positives": [2],
        "false negatives": [7],
    }
    assert most_confident(logits, labels, 9)["true positives"].tolist() == [0, 4]


@pytest.mark.parametrize("split", ["sky", "random"])
def test_a_split_uses_each_row_once(tmp_path: Path, split: Any) -> None:
    sample = read(write_sample(tmp_path / "des", 400), split=split)
    parts = split_sample(sample, split, seed=3)
    together = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(together.tolist()) == list(range(400))
    assert 45 <= len(parts.test) <= 70
    assert 45 <= len(parts.validation) <= 70
    if split == "sky":
        blocks = [set(sample.blocks[rows].tolist()) for rows in (parts.train, parts.validation, parts.test)]
        assert not (blocks[0] & blocks[1] or blocks[0] & blocks[2] or blocks[1] & blocks[2])
    pool, test = pool_and_test(sample, 0.72, split, seed=3)
    assert sorted([*pool, *test]) == list(range(400))


def test_duplicates_are_left_out_unless_the_split_is_the_papers(tmp_path: Path) -> None:
    folder = tmp_path / "des"
    write_sample(folder, 100)
    cutouts = blob_cutouts(100)
    twice = replace(cutouts, ra=np.r_[cutouts.ra[:90], cutouts.ra[:10]], dec=np.r_[cutouts.dec[:90], cutouts.dec[:10]])
    write_shard(str(folder / "cutouts-00000.parquet"), twice)
    sample = read(folder)
    assert len(sample) == 90
    assert sample.notes == ("10 rows repeat a position (within 1 arcsec) and are left out",)
    assert len(read(folder, split="random")) == 100


def test_a_larger_sample_is_drawn_from_and_says_so(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "des", 100)
    sample = read(folder, most=30)
    assert (len(sample.rows_of(0)), len(sample.rows_of(1))) == (30, 30)
    assert sample.notes == ("60 of 100 rows drawn at random (seed 1), at most 30 of a class",)
    np.testing.assert_array_equal(sample.images, read(folder, most=30).images)
    assert sample.fingerprint != read(folder, most=30, seed=2).fingerprint


def test_features_are_those_of_their_objects(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "des", 100)
    ordered = read(folder).features
    table = measured(100)[0]
    pq.write_table(table.take(np.random.default_rng(1).permutation(100)), folder / "_features.parquet")
    shuffled = read(folder).features
    assert ordered is not None and shuffled is not None
    np.testing.assert_array_equal(ordered.values, shuffled.values)
    pq.write_table(table.slice(7), folder / "_features.parquet")
    with pytest.raises(InputError, match="7 of 100 cut-outs have no row here"):
        read(folder)


def test_a_sample_without_labels_or_rows_is_refused(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "des", 100)
    write_shard(str(folder / "cutouts-00000.parquet"), blob_cutouts(30))
    with pytest.raises(InputError, match="15 artifacts; the experiments need at least 20"):
        read(folder)
    write_shard(str(folder / "cutouts-00000.parquet"), replace(blob_cutouts(100), label=None))
    with pytest.raises(InputError, match="no labels"):
        read(folder)
    with pytest.raises(AbsentError, match="nowhere: no cut-out shards"):
        read(tmp_path / "nowhere")


def test_an_outcome_is_read_as_it_was_written() -> None:
    outcome = Outcome(
        scores=np.array([[0.5, -1, 2]], np.float32),
        seconds=1.5,
        epochs=[{"epoch": 1, "loss": 0.25}],
        details={"parameters": {"svc__C": 100.0}},
        weights=b"\x00weights",
    )
    again = Outcome.from_bytes(outcome.to_bytes())
    np.testing.assert_array_equal(again.scores, outcome.scores)
    assert replace(again, scores=outcome.scores) == outcome


def test_our_numbers_stand_beside_the_papers() -> None:
    logits = np.array([2, 1, -1, -2], np.float32)
    found = {
        number.measure: number
        for number in numbers("baselines", "CNN", judged_logits(logits, np.array([1, 0, 1, 0], np.int8)))
    }
    assert (found["accuracy"].ours, found["accuracy"].paper, found["accuracy"].paper_low) == (0.5, 0.920, 0.912)
    assert (found["tp"].ours, found["tp"].paper, found["tp"].low) == (1, 2404, None)
    assert numbers("baselines", "another", {"accuracy": 0.5})[0].paper is None


def test_the_page_escapes_what_it_shows_and_marks_targets() -> None:
    row = Row(
        name="<svm>",
        n_train=12_345,
        n_test=10,
        epochs=None,
        seed=1,
        numbers=(
            Number(measure="accuracy", ours=0.9, low=0.85, high=0.95, paper=0.8, target=0.87),
            Number(measure="auc", ours=0.9, target=0.945),
        ),
    )
    section = Section(
        name="x",
        title="A & B",
        tables=(Table(title="T", rows=(row,)),),
        pictures=(Picture(name="p", alt='say "cheese"', caption="c", png=b"png"),),
    )
    page = report.page([section, Section(name="y", title="Y", skipped="not <given>")], "CPU", {"a": "<b>"})
    for text in ("&lt;svm&gt;", "A &amp; B", "0.900<small>0.850–0.950</small>", "12,345", "0.870 met", "0.945 missed",
                 "say &quot;cheese&quot;", "Skipped: not &lt;given&gt;.", "<dd>&lt;b&gt;</dd>"):  # fmt: skip
        assert text in page
    assert "<script" not in page


def test_the_scales_hold_every_experiment() -> None:
    for scale in SCALES.values():
        assert scale.seeds == (1, 3, 18, 33, 42, 96)
        assert (scale.uniform, scale.targeted) == ((0.01, 0.05, 0.10, A_THIRD), (0.01, 0.05, 0.10))
        assert [round(share * 30_000) for share in scale.uniform] == [300, 1_500, 3_000, 10_000], "the paper's numbers"
        assert scale.transfer_sizes[-1] == 320
        assert scale.recipe.keep == scale.transfer.keep == "last"
    papers = Recipe(name="2020", precision="bfloat16", weights="float16")
    assert (SCALES["paper"].recipe, SCALES["paper"].cutouts) == (papers, 20_000)
    transfer = SCALES["paper"].transfer
    assert (transfer.optimizer, transfer.learning_rate, transfer.epochs, transfer.batch_size) == (
        "adadelta",
        0.005,
        30,
        16,
    )
    assert "not the paper's protocol" in SCALES["cpu"].label


def test_real_features_by_name_need_their_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the table with --features"):
        experiments.run(Experiments(names=("real_features",), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["cutouts", "second", "features"])
def test_an_input_that_is_not_there_is_told_before_anything_is_done(tmp_path: Path, flag: str) -> None:
    given: dict[str, Any] = {flag: str(tmp_path / "nowhere.csv")}
    with pytest.raises((AbsentError, NotFoundError), match="nowhere"):
        experiments.run(Experiments(output=str(tmp_path / "out"), **given))
    assert not (tmp_path / "out").exists()


def real_study(features: str, output: Path) -> Study:
    def no_sample(survey: str) -> Sample:
        raise AssertionError(f"real_features needs no sample of {survey}")

    trainer = Trainer(folder=str(output), place=Workplace(threads=1, gpu=False))
    return Study(scale=TINY, split="sky", seed=1, trainer=trainer, read=no_sample, features=features)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mu_0,label\n1,1\n", "need the columns ell, m_tot"),
        ("mu_0\n1\n", "no column label"),
        ("mu_0,m_tot,r_e,n,ell,g-i,g-r,label\n1,1,1,1,1,1,1,3\n", "1 labels are neither 1"),
        ("mu_0,label\n1,lsbg\n", "labels are string; 1 is an LSBG"),
        ("mu_0,m_tot,r_e,n,ell,g-i,g-r,label\n1,1,1,1,1,1,1,1\n", "a class has 0 rows; 10 folds"),
    ],
)
def test_a_feature_table_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        real_features(real_study(str(tmp_path / "f.csv"), tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not REALDATA.is_dir(), reason=f"no real sky data at {REALDATA}")
def test_real_features_reach_their_targets(ray_local: None, tmp_path: Path) -> None:
    table = REALDATA / "catalogs" / "hsc_features_labelled.csv"
    section = real_features(real_study(str(table), tmp_path))
    for row in section.tables[0].rows:
        print(row)
        assert row.n_test == 1422
        for measure, target in TARGETS.items():
            value = row[measure].ours
            assert value is not None and value >= target, (row.name, measure, value)


def wanted(tmp_path: Path, *names: Any) -> Experiments:
    return Experiments(
        names=names, cutouts=str(tmp_path / "des"), second=str(tmp_path / "hsc"), output=str(tmp_path / "out")
    )


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Two small surveys below this folder."""
    write_sample(tmp_path / "des", 300)
    write_sample(tmp_path / "hsc", 120, seed=2, stretch="hsc-1", fov_arcsec=21.5)
    return tmp_path


def trained_at(folder: Path) -> dict[str, int]:
    """Time of writing of each kept training."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out" / "trainings").iterdir()}


def test_every_experiment_is_told_and_a_rerun_trains_nothing_again(ray_local: None, samples: Path) -> None:
    summary = experiments.repeat(wanted(samples), TINY)
    out = samples / "out"
    record = json.loads((out / "experiments.json").read_text())
    assert list(record["experiments"]) == list(experiments.EXPERIMENTS)
    assert summary.figures["skipped"] == ["real_features"]
    assert (record["scale"], record["label"], record["split"]) == ("tiny", "Tiny: for tests", "sky")
    assert record["samples"]["second"]["fov_arcsec"] == 21.5
    page = (out / "report.html").read_text()
    assert "Grad-CAM and HiResCAM heat maps" in page
    figures = sorted(path.name for path in (out / "figures").iterdir())
    named = [figure for told in record["experiments"].values() for figure in told["figures"]]
    assert figures == sorted(Path(figure).name for figure in named)
    assert len(figures) == 7
    shown = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)">', page)
    assert len(shown) == len(figures)
    assert all(len(html.unescape(alt)) > 60 for alt in shown)
    for name in figures:
        assert Image.open(io.BytesIO((out / "figures" / name).read_bytes())).size[0] > 300
    assert "Tiny: for tests" in page
    assert "skipped" in page.lower()
    check_rows(record)
    before = trained_at(samples)
    again = experiments.repeat(wanted(samples, "baselines"), TINY)  # one alone keeps the others in the report
    assert trained_at(samples) == before
    assert again.figures == summary.figures
    with pytest.raises(UsageError, match="report of seed 1, not 2"):
        experiments.repeat(wanted(samples).model_copy(update={"seed": 2}), TINY)


def test_a_report_of_another_sample_is_not_continued(
    ray_local: None, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = wanted(samples, "splits")
    experiments.repeat(made, TINY)
    before = trained_at(samples), (samples / "out" / "experiments.json").read_bytes()
    for name, other in (("cutouts", "hsc"), ("second", "des")):
        with pytest.raises(UsageError, match=rf"out: holds a report of {name} .*, not .*/{other}; choose another"):
            experiments.repeat(made.model_copy(update={name: str(samples / other)}), TINY)
        with pytest.raises(UsageError, match=f"holds a report of {name} .*, not simulated; choose another"):
            experiments.repeat(made.model_copy(update={name: None}), TINY)
    assert (trained_at(samples), (samples / "out" / "experiments.json").read_bytes()) == before
    monkeypatch.chdir(samples)
    experiments.repeat(made.model_copy(update={"cutouts": "des/"}), TINY)  # the same folder by another name
    assert trained_at(samples) == before[0]


def test_a_table_of_features_that_was_given_once_stays_that_of_the_report(ray_local: None, samples: Path) -> None:
    table, other = samples / "features.csv", samples / "other.csv"
    rng = np.random.default_rng(1)
    lines = [",".join(f"{value:.3f}" for value in rng.normal(label, 1, 7)) + f",{label}" for label in (0, 1) * 30]
    table.write_text("\n".join(["mu_0,m_tot,r_e,n,ell,g-i,g-r,label", *lines]) + "\n")
    other.write_text(table.read_text())
    made = wanted(samples, "splits")
    first = experiments.repeat(made, TINY)
    assert first.figures["skipped"] == []
    named = made.model_copy(update={"names": ("real_features",), "features": str(table)})
    told = experiments.repeat(named, TINY)  # a report without a table takes one
    again = experiments.repeat(made, TINY)  # and keeps it where the flag is left out
    assert again.figures == told.figures
    assert "real_features/SVM" in again.figures["rows"]
    assert json.loads((samples / "out" / "experiments.json").read_text())["settings"]["features"] == str(table)
    assert experiments.repeat(named.model_copy(update={"features": None}), TINY).figures == told.figures
    with pytest.raises(UsageError, match=r"holds a report of features .*features\.csv, not .*other\.csv"):
        experiments.repeat(named.model_copy(update={"features": str(other)}), TINY)


def test_no_room_for_a_training_is_told_at_once(ray_local: None, tmp_path: Path) -> None:
    table = samples_of_two_classes()
    for place, message in (
        (Workplace(threads=100_000, gpu=False), "--threads 100000: no node has so many CPUs"),
        (Workplace(threads=1, gpu=True), "--threads 1 --gpus: no node has so many CPUs and a GPU"),
    ):
        trainer = Trainer(folder=str(tmp_path), place=place)
        with pytest.raises(UsageError, match=message):
            out_of_fold(trainer, "svm", *table, folds=2, seed=1, searched=False)


def test_classifiers_on_features_take_one_cpu_each(ray_local: None, tmp_path: Path) -> None:
    """Whatever a network takes: each of these jobs waits until the others are at work."""
    table, labels = samples_of_two_classes()
    rows = np.arange(len(labels))

    class Meeting(FeatureJob):
        def work(self, images: np.ndarray, place: Workplace, tell: Tell) -> Outcome:
            (tmp_path / self.name).touch()
            deadline = time.monotonic() + 60
            while len(list(tmp_path.glob("job *"))) < 3:
                assert time.monotonic() < deadline, "the others do not come"
                time.sleep(0.01)
            return super().work(images, place, tell)

    same = {"kind": "svm", "values": table, "labels": labels, "train": rows, "test": rows, "search_on": None}
    jobs = [Meeting(name=f"job {seed}", seed=seed, **same) for seed in range(3)]  # type: ignore[arg-type]
    trainer = Trainer(folder=str(tmp_path / "out"), place=Workplace(threads=2, gpu=False))
    assert len(trainer.run(None, jobs, "meeting")) == 3


def test_how_far_a_training_is_is_told(
    ray_local: None, samples: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "TOLD_EVERY_S", 0.0)
    sample = read(samples / "des")
    train, held = np.arange(40), np.arange(40, 60)
    job = NetworkJob(name="forty", labels=sample.labels, train=train, validation=held, test=held, recipe=TINY_RECIPE)
    Trainer(folder=str(samples / "told"), place=Workplace(threads=1, gpu=False)).run(sample, [job], "one")
    assert re.search(r"forty: epoch 2/2, loss \d+\.\d+, accuracy \d\.\d+", capsys.readouterr().err)


def samples_of_two_classes() -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(40, dtype=np.int8) % 2
    return np.random.default_rng(1).normal(labels[:, None], 0.1, (40, 3)), labels


def test_shares_that_round_alike_are_trainings_of_their_own(samples: Path) -> None:
    scale = replace(TINY, uniform=(0.05, 0.052, A_THIRD), targeted=(0.104, 0.1))
    trainer = Trainer(folder=str(samples / "out"), place=Workplace(threads=1, gpu=False))
    study = Study(
        scale=scale, split="sky", seed=1, trainer=trainer, read=lambda _: read(samples / "des"), features=None
    )
    made = [*label_noise.uniform(study), *label_noise.targeted(study)]
    assert [training.job.name for training in made] == [
        *("right labels", "uniform 5 %", "uniform 5.2 %", "uniform 33 %", "right labels, fewer epochs"),
        *("LSBG to artifact 10.4 %", "LSBG to artifact 10 %", "artifact to LSBG 10.4 %", "artifact to LSBG 10 %"),
    ]
    rows = len(made[0].job.train)
    wrong = [np.count_nonzero(training.job.labels != study.first.labels) for training in made]
    assert wrong == [round(share * rows) for share in (0, 0.05, 0.052, 1 / 3, 0, 0.104, 0.1, 0.104, 0.1)]
    assert [training.job.recipe.epochs for training in made] == [2] * 4 + [1] * 5


def check_rows(record: dict[str, Any]) -> None:
    """Each table has its rows, each row what it was trained and judged on; the easy task is learnt."""
    rows = {
        name: {row["name"]: row for table in told["tables"] for row in table["rows"]}
        for name, told in record["experiments"].items()
    }
    assert list(rows["baselines"]) == ["SVM", "random forest", "CNN"]
    assert list(rows["splits"]) == ["seed 1", "seed 3", "all seeds"]
    assert list(rows["label_noise"]) == [
        *("right labels", "uniform 5 %", "uniform 33 %"),
        *("right labels, fewer epochs", "LSBG to artifact 10 %", "artifact to LSBG 10 %"),
    ]
    assert list(rows["transfer"]) == [
        *("before", "after, 10 examples", "after, 20 examples", "20 examples, from initial weights"),
    ]
    assert list(rows["three_classes"]) == ["three classes", "reduced to two"]
    for told in rows.values():
        for row in told.values():
            assert row["n_test"] > 0
            assert row["seed"] is not None or row["name"] == "all seeds"
    for name in ("CNN", "SVM", "random forest"):
        row = rows["baselines"][name]
        accuracy = next(number for number in row["numbers"] if number["measure"] == "accuracy")
        assert accuracy["ours"] > 0.8
        assert accuracy["low"] <= accuracy["ours"] <= accuracy["high"]
    flips = record["experiments"]["label_noise"]["details"]["flipped"]
    n_train = rows["label_noise"]["right labels"]["n_train"]
    assert flips["uniform 33 %"] == round(n_train / 3)
    assert flips["right labels"] == 0
    details = record["experiments"]["three_classes"]["details"]
    assert np.sum(details["confusion"]) == rows["three_classes"]["three classes"]["n_test"]
    assert np.array_equal(details["paper_confusion"], THREE_CLASS_CONFUSION)


def test_an_interrupted_run_goes_on_with_what_is_kept(ray_local: None, samples: Path) -> None:
    first = experiments.repeat(wanted(samples, "splits"), TINY)
    before = trained_at(samples)
    assert len(before) == 2
    lost = sorted(before)[0]
    (samples / "out" / "trainings" / lost).unlink()
    again = experiments.repeat(wanted(samples, "splits"), TINY)
    after = trained_at(samples)
    assert set(after) == set(before)
    assert [name for name in after if after[name] != before[name]] == [lost]
    assert again.figures == first.figures


def test_without_features_the_network_stands_alone_and_three_classes_are_skipped(
    ray_local: None, samples: Path
) -> None:
    (samples / "des" / "_features.parquet").unlink()
    summary = experiments.repeat(wanted(samples, "baselines", "three_classes"), TINY)
    assert list(summary.figures["rows"]) == ["baselines/CNN"]
    assert summary.figures["skipped"] == ["three_classes"]
    page = (samples / "out" / "report.html").read_text()
    assert "SVM and random forest are skipped: no _features.parquet" in page
