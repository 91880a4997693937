"""`train` on a local Ray: a checkpoint that scores, trainings that survive their worker and driver, clear errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import tomllib
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch

from deepshadows import storage
from deepshadows.model import checkpoint
from deepshadows.model.card import Card, Training, read_card
from deepshadows.model.checkpoint import weights_of
from deepshadows.model.metrics import Judged, judge
from deepshadows.model.network import in_batches
from deepshadows.model.scorer import load_scorer
from deepshadows.model.training import Learner
from deepshadows.outcomes import Failure, HeldError, InputError, UsageError
from deepshadows.run.lease import Lease
from deepshadows.settings import RECIPES, Finetune, Recipe, Train
from deepshadows.sky.shards import Cutouts, write_shard
from deepshadows.verbs import finetune, train
from deepshadows.verbs.training_set import prepare, read_training_set
from tests.model.blobs import blob_cutouts, blobs, seasoned_net

JOBS = Path(__file__).parents[2] / "jobs"
RECIPE = """
name = "test"
optimizer = "adamw"
learning_rate = 0.001
epochs = {epochs}
batch_size = 32
l2_conv = 1e-4
l2_dense = 1e-4
refresh_norms = true
threads = 1
"""


def write_inputs(folder: str, cutouts: Cutouts, epochs: int = 2) -> dict[str, str]:
    """Two shards and a recipe below `folder`, as settings of `train`."""
    half = len(cutouts) // 2
    write_shard(storage.join(folder, "shards", "a.parquet"), cutouts.take(np.arange(half)))
    write_shard(storage.join(folder, "shards", "b.parquet"), cutouts.take(np.arange(half, len(cutouts))))
    recipe = storage.join(folder, "recipe.toml")
    storage.write(recipe, RECIPE.format(epochs=epochs).encode())
    return {"cutouts": storage.join(folder, "shards"), "recipe": recipe, "output": storage.join(folder, "checkpoint")}


def straight(inputs: dict[str, str]) -> dict[str, torch.Tensor]:
    """Weights of the same training without Ray, in this process."""
    recipe = train.read_recipe(inputs["recipe"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    learner = Learner(read_training_set(inputs["cutouts"], recipe).examples, recipe)
    while not learner.finished:
        learner.run_epoch()
    torch.set_num_threads(threads)
    return weights_of(learner.net)


def assert_same_weights(url: str, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in weights_of(checkpoint.load(url)[0]).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_the_paper_recipe_is_the_default() -> None:
    assert train.read_recipe("paper") == Recipe()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_by_name_is_its_file_and_the_file_lists_every_field(name: str) -> None:
    path = JOBS / f"recipe_{name}.toml"
    assert train.read_recipe(str(path)) == train.read_recipe(name)
    assert list(tomllib.loads(path.read_text())) == list(Recipe.model_fields)
    assert RECIPES[name].name == name


@pytest.mark.parametrize("place", ["s3"], indirect=True)  # the others are local
def test_a_checkpoint_that_scores(ray_local: None, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = write_inputs(place, blob_cutouts(240))
    summary = train.run(Train(**inputs))
    scorer = load_scorer(inputs["output"], precision="exact")
    images, labels = blobs(60, seed=7)
    probabilities = scorer.score(images).p_lsbg
    assert np.mean((probabilities >= scorer.card.threshold) == labels) > 0.9
    made = scorer.card.training
    assert made is not None
    assert (made.rows, made.classes, made.epochs) == (240, {"artifact": 120, "lsbg": 120}, 2)
    assert scorer.card.metrics["n"] == made.validation_rows == summary.figures["validation_rows"]
    assert summary.figures["images_per_s"] > 0
    left = [entry for entry in storage.list_objects(inputs["output"]) if entry.size_bytes]  # not S3's folder markers
    assert [storage.name_of(entry.url) for entry in left] == [
        "card.json",
        "model.safetensors",
        "uncertainty.safetensors",
    ]
    scores = scorer.score(images)
    assert np.isfinite(scores.p_lsbg_err).all()
    assert scores.out_of_domain.mean() < 0.2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("epoch 1/2: loss ")]
    assert [line for line in lines if line.startswith("epoch 2/2: loss ")]
    again = train.run(Train(**inputs))
    assert again.text[0] == "already trained; nothing to do"
    assert again.figures["weights_sha256"] == summary.figures["weights_sha256"]


def test_float16_weights_are_judged_as_they_are_stored(ray_local: None, tmp_path: Path) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(160))
    with Path(inputs["recipe"]).open("a") as recipe:
        recipe.write('weights = "float16"\n')
    train.run(Train(**inputs))
    stored = safetensors.torch.load(storage.read(storage.join(inputs["output"], "model.safetensors")))
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    net, card = checkpoint.load(inputs["output"])
    data = read_training_set(inputs["cutouts"], train.read_recipe(inputs["recipe"]))
    held = data.examples.validation
    judged = Judged(
        probabilities=card.probabilities(in_batches(net, data.examples.images[held])).astype(np.float64),
        labels=data.examples.labels[held],
    )
    assert card.metrics == judge(judged, card.threshold, calibrated_at=card.prevalence)


def test_two_workers_make_one_network_and_lose_patience_together(ray_local: None, tmp_path: Path) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(240), epochs=2)
    summary = train.run(Train(**inputs, workers=2))
    assert summary.figures["auc"] > 0.9
    assert summary.figures["epochs"] == 2
    impatient = RECIPE.format(epochs=40).replace("0.001", "1e-12") + 'keep = "best"\npatience = 1\n'
    (tmp_path / "impatient.toml").write_text(impatient)
    inputs |= {"recipe": str(tmp_path / "impatient.toml"), "output": str(tmp_path / "stopped")}
    stopped = train.run(Train(**inputs, workers=2))
    assert stopped.figures["epochs"] == stopped.figures["kept_epoch"] + 1 < 40
    assert "kept (stopped early: 40 were allowed); on the validation rows: " in "".join(stopped.text)


def test_a_killed_worker_costs_at_most_an_epoch(ray_local: None, tmp_path: Path) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(160), epochs=6)
    killed: list[int] = []

    def kill_a_worker() -> None:
        state = tmp_path / "checkpoint" / "training" / "run"
        deadline = time.monotonic() + 120
        while not list(state.glob("checkpoint_*")):
            assert time.monotonic() < deadline, "no epoch was saved"
            time.sleep(0.05)
        workers = [
            child
            for child in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in " ".join(child.cmdline())
        ]
        for worker in workers:
            worker.kill()
            killed.append(worker.pid)

    killer = threading.Thread(target=kill_a_worker, daemon=True)
    killer.start()
    summary = train.run(Train(**inputs))
    killer.join(timeout=5)
    assert killed
    assert summary.figures["epochs"] == 6
    assert_same_weights(inputs["output"], straight(inputs))


@pytest.mark.parametrize("verb", [train, finetune])
def test_a_second_training_beside_a_live_one_changes_nothing(tmp_path: Path, verb: types.ModuleType) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(120))
    checkpoint.save(str(tmp_path / "start"), seasoned_net(), Card(name="start"))
    wanted = (Train if verb is train else Finetune)(**inputs, from_checkpoint=str(tmp_path / "start"))
    state = storage.join(inputs["output"], "training")
    with Lease(state, ttl_s=3), pytest.raises(HeldError, match="another driver"):
        verb.run(wanted)
    assert [storage.relative(entry.url, state) for entry in storage.list_objects(inputs["output"])] == ["lease.json"]


@pytest.mark.slow
def test_a_training_that_was_taken_over_commits_nothing(ray_local: None, tmp_path: Path) -> None:
    """Its workers stop too: what they would save is another's by now."""
    inputs = write_inputs(str(tmp_path), blob_cutouts(120), epochs=500)
    lease = tmp_path / "checkpoint" / "training" / "lease.json"
    usurper = json.dumps({"token": "usurper", "generation": 9, "beat": 0})

    def take_over() -> None:
        deadline = time.monotonic() + 120
        while not list(lease.parent.glob("run/checkpoint_*")):
            assert time.monotonic() < deadline, "no epoch was saved"
            time.sleep(0.05)
        storage.write(str(lease), usurper.encode())

    taker = threading.Thread(target=take_over, daemon=True)
    taker.start()
    with pytest.raises(HeldError, match="took this run over"):
        train.run(Train(**inputs))
    taker.join(timeout=5)
    assert lease.read_text() == usurper
    assert not (tmp_path / "checkpoint" / "card.json").exists()


@pytest.mark.slow
def test_a_killed_driver_is_taken_up_again(ray_local: None, tmp_path: Path) -> None:
    """And left alone while it lives."""
    inputs = write_inputs(str(tmp_path), blob_cutouts(160), epochs=8)
    script = (
        "import json, sys; from deepshadows.settings import Train; from deepshadows.verbs import train; "
        "train.run(Train(**json.loads(sys.argv[1])))"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(inputs)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_ADDRESS": "local"},
    )
    state = tmp_path / "checkpoint" / "training" / "run"
    deadline = time.monotonic() + 90
    try:
        while not (state.parent / "lease.json").exists():
            assert time.monotonic() < deadline, "the driver does not begin"
            time.sleep(0.05)
        with pytest.raises(HeldError, match=f"pid {driver.pid}"):
            train.run(Train(**inputs))
        while not (state / "checkpoint_manager_snapshot.json").exists():
            assert time.monotonic() < deadline, "no epoch was saved"
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        driver.kill()
    driver.wait()
    assert not (tmp_path / "checkpoint" / "card.json").exists()
    summary = train.run(Train(**inputs))
    assert summary.text[0] == "an interrupted training was taken up again"
    assert summary.figures["epochs"] == 8
    assert_same_weights(inputs["output"], straight(inputs))
    assert not state.parent.exists()


def test_training_can_start_from_a_checkpoint(ray_local: None, tmp_path: Path) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(120), epochs=1)
    start = str(tmp_path / "start")
    written = checkpoint.save(start, seasoned_net(), Card(name="start"))
    train.run(Train(**inputs, from_checkpoint=start))
    made = read_card(inputs["output"]).training
    assert made is not None
    assert made.from_weights_sha256 == written.weights_sha256


def test_a_start_of_another_field_is_refused(tmp_path: Path) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(120))
    checkpoint.save(str(tmp_path / "start"), seasoned_net(), Card(name="start", fov_arcsec=21.5))
    with pytest.raises(UsageError, match=r"its network takes 21.5 arcsec"):
        train.run(Train(**inputs, from_checkpoint=str(tmp_path / "start")))


def test_a_start_of_another_architecture_is_refused(tmp_path: Path) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(120))
    checkpoint.save(str(tmp_path / "start"), seasoned_net(), Card(name="start"))
    card = tmp_path / "start" / "card.json"
    card.write_text(card.read_text().replace("deepshadows-cnn-1", "vit-b"))
    with pytest.raises(InputError, match="unknown architecture 'vit-b'"):
        train.run(Train(**inputs, from_checkpoint=str(tmp_path / "start")))


def test_an_output_of_another_training_is_refused(tmp_path: Path) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(120))
    checkpoint.save(inputs["output"], seasoned_net(), Card(name="other"))
    with pytest.raises(UsageError, match="holds checkpoint 'other' of another training"):
        train.run(Train(**inputs))


def test_an_unfinished_training_of_other_data_is_refused(tmp_path: Path) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(120))
    storage.write(storage.join(inputs["output"], "training", "plan.json"), b"{}")
    with pytest.raises(UsageError, match="an unfinished training with other cut-outs"):
        train.run(Train(**inputs))


def test_more_workers_than_images_is_refused(tmp_path: Path) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(120))
    with pytest.raises(UsageError, match="--workers 17"):
        train.run(Train(**inputs, workers=17))


def test_an_output_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    inputs = write_inputs(str(tmp_path), blob_cutouts(120))
    (tmp_path / "checkpoint").write_text("a file where the folder should be")
    with pytest.raises(Failure, match="checkpoint"):
        train.run(Train(**inputs))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"label": None}, InputError, "no labels"),
        ({"label": np.full(120, -1, np.int8)}, InputError, "no labels"),
        ({"label": np.ones(120, np.int8)}, InputError, "no cut-out is an artifact"),
        ({"label": np.zeros(120, np.int8)}, InputError, "no cut-out is an LSBG"),
        ({"label": (np.arange(120) % 3).astype(np.int8)}, InputError, r"unknown labels \[2\]"),
        ({"fov_arcsec": 21.5}, UsageError, "21.5 arcsec"),
        ({"stretch": "hsc-1"}, UsageError, "stretch hsc-1"),
        ({"flags": np.where(np.arange(120) < 110, 1, 0).astype(np.int32)}, InputError, "10 usable"),
        ({"ra": np.full(120, 50.0), "dec": np.full(120, -30.0)}, InputError, "lacks a class"),
    ],
)
def test_cutouts_that_cannot_be_trained_on(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare(replace(blob_cutouts(120), **change), Recipe(), "shards")  # type: ignore[arg-type]


def test_a_finished_training_of_an_older_recipe_is_known_again(tmp_path: Path) -> None:
    """Its card names no field that came later."""
    inputs = write_inputs(str(tmp_path), blob_cutouts(120))
    recipe = train.read_recipe(inputs["recipe"])
    data = read_training_set(inputs["cutouts"], recipe)
    older = {name: value for name, value in recipe.model_dump().items() if name not in ("patience", "trainable")}
    made = Training(fingerprint=data.fingerprint, rows=120, validation_rows=20, classes=data.classes, seed=1,
                    split="sky", epochs=2, kept_epoch=2)  # fmt: skip
    checkpoint.save(inputs["output"], seasoned_net(), Card(name="older", recipe=older, training=made))
    assert train.run(Train(**inputs)).text[0] == "already trained; nothing to do"


@pytest.mark.parametrize("seed", range(1, 9))
def test_twenty_rows_are_split_with_both_classes_on_both_sides(seed: int) -> None:
    data = prepare(blob_cutouts(20), Recipe(seed=seed), "shards")
    held = data.examples.validation
    assert 1 <= np.count_nonzero(held) <= 8
    assert {*data.examples.labels[held]} == {*data.examples.labels[~held]} == {0, 1}
    again = prepare(blob_cutouts(20), Recipe(seed=seed), "shards")
    np.testing.assert_array_equal(held, again.examples.validation)


def test_nineteen_rows_are_too_few() -> None:
    with pytest.raises(InputError, match="19 usable labelled cut-outs; at least 20 are needed"):
        prepare(blob_cutouts(19), Recipe(), "shards")


def test_rows_that_are_not_used_are_counted() -> None:
    flags = np.zeros(120, np.int32)
    flags[:4] = 1  # NO_IMAGE
    flags[4:7] = 1 << 16  # PARTIAL_FIELD does not forbid a row
    label = blobs(120)[1]
    label[10:12] = -1
    data = prepare(replace(blob_cutouts(120), flags=flags, label=label), Recipe(), "shards")
    assert data.left_out == {"NO_IMAGE": 4, "UNLABELLED": 2}
    assert len(data.examples.labels) == 114


@pytest.mark.parametrize(
    ("split", "means"),
    [("sky", "split by object_id, not by sky"), ("random", "kept together by object_id, not by position")],
)
def test_rows_without_a_position_are_told_as_the_split_takes_them(split: Any, means: str) -> None:
    cutouts = blob_cutouts(120)
    ra = np.where(np.arange(120) < 7, np.nan, cutouts.ra)
    data = prepare(replace(cutouts, ra=ra), Recipe(split=split), "shards")
    assert data.notes == (f"7 cut-outs have no position: {means}",)


def test_one_position_is_on_one_side_of_the_split() -> None:
    cutouts = blob_cutouts(200)
    twice = replace(cutouts, ra=np.tile(cutouts.ra[:100], 2), dec=np.tile(cutouts.dec[:100], 2))
    for split in ("sky", "random"):
        held = prepare(twice, Recipe(split=split), "shards").examples.validation  # type: ignore[arg-type]
        np.testing.assert_array_equal(held[:100], held[100:])


def test_cutouts_without_positions_are_split_by_id_and_the_user_is_told() -> None:
    nowhere = replace(blob_cutouts(200), ra=np.full(200, np.nan), dec=np.full(200, np.nan))
    data = prepare(nowhere, Recipe(), "shards")
    assert data.notes == ("200 cut-outs have no position: split by object_id, not by sky",)
    assert 20 <= np.count_nonzero(data.examples.validation) <= 40
