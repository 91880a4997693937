"""`finetune` on a local Ray: what it changes, what it tells, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deepshadows import storage
from deepshadows.model import checkpoint
from deepshadows.model.calibration import fit_platt
from deepshadows.model.card import Calibration, Card, read_card
from deepshadows.model.checkpoint import weights_of
from deepshadows.model.metrics import Judged, judge
from deepshadows.model.scorer import load_scorer
from deepshadows.model.training import Examples, Learner
from deepshadows.outcomes import InputError, UsageError
from deepshadows.settings import Finetune, Recipe
from deepshadows.sky.shards import Cutouts, write_shard
from deepshadows.verbs import finetune
from deepshadows.verbs.training_set import read_training_set
from tests.model.blobs import blob_cutouts, blobs, seasoned_net

RECIPE = """
name = "test"
optimizer = "adamw"
learning_rate = {rate}
epochs = {epochs}
batch_size = 16
l2_conv = 1e-4
l2_dense = 1e-4
refresh_norms = {refresh}
validation_fraction = 0.3
threads = 1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that knows bright smudges, as a checkpoint."""
    images, labels = blobs(240)
    recipe = Recipe(optimizer="adamw", learning_rate=1e-3, epochs=3, batch_size=32, l2_conv=1e-4, l2_dense=1e-4,
                    refresh_norms=True)  # fmt: skip
    held = np.arange(240) % 8 < 2
    learner = Learner(Examples(images=images, labels=labels, validation=held), recipe)
    while not learner.finished:
        learner.run_epoch()
    url = str(tmp_path_factory.mktemp("trained"))
    logits = learner.logits(np.flatnonzero(held))
    checkpoint.save(url, learner.net, Card(name="bright", calibration=fit_platt(logits, labels[held])))
    return url


def other_survey(count: int) -> Cutouts:
    """The same sky as another camera shows it: darker, and colours the other way round."""
    cutouts = blob_cutouts(count, seed=5)
    rng = np.random.default_rng(5)
    shown = cutouts.images[..., ::-1] * np.array([0.9, 0.6, 0.4]) + rng.normal(0, 4, cutouts.images.shape)
    return replace(cutouts, images=np.clip(shown, 0, 255).astype(np.uint8))


def settings(folder: Path, cutouts: Cutouts, start: str, *, rate: float = 3e-4, epochs: int = 4, refresh: bool = True,
             **changes: object) -> Finetune:  # fmt: skip
    write_shard(str(folder / "shards" / "a.parquet"), cutouts)
    (folder / "recipe.toml").write_text(RECIPE.format(rate=rate, epochs=epochs, refresh=str(refresh).lower()))
    values: dict[str, object] = {
        "cutouts": str(folder / "shards"),
        "output": str(folder / "tuned"),
        "recipe": str(folder / "recipe.toml"),
        "from_checkpoint": start,
    }
    return Finetune.model_validate({**values, **changes})


def test_before_and_after_are_those_of_the_two_networks_on_the_same_rows(
    ray_local: None, trained: str, tmp_path: Path
) -> None:
    wanted = settings(tmp_path, other_survey(160), trained)
    summary = finetune.run(wanted)
    data = read_training_set(wanted.cutouts, finetune.recipe_for(wanted, read_card(trained)))
    held, labels = data.examples.validation, data.examples.labels
    assert summary.figures["validation_rows"] == np.count_nonzero(held)
    for when, url in (("before", trained), ("after", wanted.output)):
        scorer = load_scorer(url, precision="exact")
        p = scorer.score(data.examples.images[held]).p_lsbg.astype(np.float64)
        expected = judge(Judged(probabilities=p, labels=labels[held]), scorer.card.threshold)
        for name in ("accuracy", "completeness", "purity", "auc", "auc_lo", "auc_hi"):
            assert summary.figures[f"{when}_{name}"] == pytest.approx(expected[name], abs=1e-6), (when, name)
    assert summary.figures["after_auc"] > 0.95
    rows = [line for line in summary.text if line.strip().startswith("accuracy")]
    assert [f"{summary.figures[f'{when}_accuracy']:.3f} (" in rows[0] for when in ("before", "after")] == [True, True]
    made = read_card(wanted.output).training
    assert made is not None
    assert made.from_weights_sha256 == read_card(trained).weights_sha256
    again = finetune.run(wanted)
    assert again.text[0] == "already trained; nothing to do"
    assert again.figures["before_auc"] == summary.figures["before_auc"]


def test_head_alone_leaves_the_convolutions_and_a_network_that_gained_nothing_is_warned_of(
    ray_local: None, trained: str, tmp_path: Path
) -> None:
    wanted = settings(tmp_path, blob_cutouts(80), trained, rate=1e-9, epochs=1, refresh=False, layers="head")
    summary = finetune.run(wanted)
    before, after = (weights_of(checkpoint.load(url)[0]) for url in (trained, wanted.output))
    frozen = [name for name in before if name.startswith(("convs", "norms"))]
    assert len(frozen) == 18
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert read_card(wanted.output).recipe["trainable"] == "head"
    assert summary.figures["after_auc"] <= summary.figures["before_auc"]
    assert any(line.startswith("warning: not better than before (AUC ") for line in summary.text)


def test_the_last_layer_alone_learns_from_few_rows_in_one_epoch(ray_local: None, trained: str, tmp_path: Path) -> None:
    wanted = settings(tmp_path, other_survey(60), trained, epochs=9, refresh=False, layers="output")
    summary = finetune.run(wanted)
    assert summary.figures["epochs"] == 1
    before, after = (weights_of(checkpoint.load(url)[0]) for url in (trained, wanted.output))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"output.weight", "output.bias"}
    assert summary.figures["after_auc"] > 0.9


def test_twenty_rows_of_another_field_and_stretch_are_a_transfer_when_the_flags_say_so(
    ray_local: None, trained: str, tmp_path: Path
) -> None:
    cutouts = replace(other_survey(20), fov_arcsec=21.5, stretch="hsc-1")
    wanted = settings(tmp_path, cutouts, trained, epochs=1, fov_arcsec=21.5, stretch="hsc-1")
    summary = finetune.run(wanted)
    card = read_card(wanted.output)
    assert (card.fov_arcsec, card.stretch, card.survey) == (21.5, "hsc-1", "hsc")
    assert card.recipe["fov_arcsec"] == 21.5
    assert (
        "transferred on purpose from 33.5 arcsec, des-1 to 21.5 arcsec, hsc-1: the new card states these"
        in summary.text
    )
    assert any(line.startswith("warning: ") and "rows judge roughly" in line for line in summary.text)


def test_a_card_of_21_5_arcsec_needs_no_flag() -> None:
    start = Card(name="hsc", fov_arcsec=21.5, stretch="hsc-1")
    recipe = finetune.recipe_for(Finetune(cutouts="c", output="o", from_checkpoint="f"), start)
    assert (recipe.name, recipe.fov_arcsec, recipe.stretch, recipe.trainable) == ("finetune", 21.5, "hsc-1", "all")


@pytest.mark.parametrize("change", [{"fov_arcsec": 21.5}, {"stretch": "hsc-1"}])
def test_cutouts_of_another_field_or_stretch_are_refused(
    trained: str, tmp_path: Path, change: dict[str, object]
) -> None:
    wanted = settings(tmp_path, replace(blob_cutouts(40), **change), trained)  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match=r"takes 33\.5 arcsec and des-1, to them on purpose with --fov-arcsec and --str"
    ):
        finetune.run(wanted)
    assert not storage.exists(storage.join(wanted.output, "training", "plan.json"))


def test_other_bands_are_refused(trained: str, tmp_path: Path) -> None:
    wanted = settings(tmp_path, replace(blob_cutouts(40), bands=("i", "r", "g")), trained)
    with pytest.raises(UsageError, match=r"cut-outs of bands i,r,g; the network .* takes z,r,g"):
        finetune.run(wanted)


def test_a_recipe_cannot_transfer_a_network_by_itself(trained: str, tmp_path: Path) -> None:
    wanted = settings(tmp_path, blob_cutouts(40), trained)
    recipe = Path(wanted.recipe)
    recipe.write_text(recipe.read_text() + "fov_arcsec = 21.5\n")
    with pytest.raises(UsageError, match=r"fov_arcsec is 21\.5, but that of the network is 33\.5; leave it out"):
        finetune.run(wanted)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "no labels"),
        (np.ones(40, np.int8), "no cut-out is an artifact"),
        (np.arange(40, dtype=np.int8) % 3, r"unknown labels \[2\]"),
        (np.where(np.arange(40) < 19, np.arange(40) % 2, -1).astype(np.int8), "19 usable"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    trained: str, tmp_path: Path, labels: np.ndarray | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        finetune.run(settings(tmp_path, replace(blob_cutouts(40), label=labels), trained))


def test_the_network_is_not_overwritten(tmp_path: Path) -> None:
    start = str(tmp_path / "start")
    checkpoint.save(start, seasoned_net(), Card(name="mine", calibration=Calibration(slope=2.0)))
    with pytest.raises(UsageError, match="holds checkpoint 'mine' of another training"):
        finetune.run(settings(tmp_path, blob_cutouts(40), start, output=start))
    assert read_card(start).calibration.slope == 2.0
