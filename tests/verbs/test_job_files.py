"""What a submitted verb takes along."""

from __future__ import annotations

import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest

from deepshadows.cli import VERBS
from deepshadows.outcomes import UsageError
from deepshadows.settings import Settings
from deepshadows.verbs.job_files import prepare


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to be uploaded; the test runs in its neighbour `here`."""
    (tmp_path / "here").mkdir()
    (tmp_path / "upload").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "upload"


def sent(verb: str, folder: Path, **values: Any) -> dict[str, Any]:
    """The settings that the job will read."""
    prepare(verb, resolved(verb, **values), folder)
    return tomllib.loads((folder / "settings.toml").read_text())


def resolved(verb: str, **values: Any) -> Settings:
    return VERBS[verb].resolve(values, "test")


def test_relative_paths_become_absolute_and_s3_stays(folder: Path) -> None:
    here = str(folder.parent / "here")
    values = {"input": "shards", "output": "run", "checkpoint": "s3://bucket/ckpt", "unit_rows": 7}
    assert sent("classify", folder, **values) == {**values, "input": f"{here}/shards", "output": f"{here}/run"}


def test_what_was_not_set_and_the_address_of_the_cluster_stay_here(folder: Path) -> None:
    sent("publish", folder, run=("s3://b/run",), catalog="s3://b/cat", address="auto")
    lines = (folder / "settings.toml").read_text().splitlines()
    assert sorted(lines) == ['catalog = "s3://b/cat"', 'run = ["s3://b/run"]']


def test_text_travels_as_it_is(folder: Path) -> None:
    odd = 'é "x" \\ \u0001 \U0001f30c'
    values = {"cutouts": f"s3://b/{odd}", "output": "s3://b/c", "workers": 2, "gpus": True}
    assert sent("train", folder, **values) == values


def test_every_text_that_is_not_marked_as_a_path_is_none() -> None:
    """What a verb takes as text is a path or stands here."""
    columns = {"id_column", "ra_column", "dec_column", "image_column", "label_column", "columns"}
    classes = {"lsbg_class", "artifact_class"}
    of_catalogues = {"where", "cone", "version", "rollback"}
    no_paths = {"address", "layer", "url", "bands", "stretch", "ids"} | columns | classes | of_catalogues
    for verb, model in VERBS.items():
        text = {name for name, info in model.model_fields.items() if _takes_text(info.annotation)}
        marked = {name for name, info in model.model_fields.items() if "path" in (info.json_schema_extra or {})}
        assert text - marked <= no_paths, verb
        assert marked <= text - no_paths, verb


def _takes_text(annotation: object) -> bool:
    parts = typing.get_args(annotation)
    return annotation is str or (typing.get_origin(annotation) is not typing.Literal and any(map(_takes_text, parts)))


def test_names_of_shipped_weights_stay_but_folders_do_not(folder: Path) -> None:
    values = {"cutouts": "s3://b/c", "output": "s3://b/o"}
    assert sent("finetune", folder, from_checkpoint="deepshadows-v2", **values)["from_checkpoint"] == "deepshadows-v2"
    Path("mine").mkdir()
    found = sent("finetune", folder, from_checkpoint="mine", **values)["from_checkpoint"]
    assert found == str(folder.parent / "here" / "mine")


def test_a_recipe_is_uploaded(folder: Path) -> None:
    Path("short.toml").write_text("epochs = 3\n")
    assert sent("train", folder, cutouts="s3://b/c", output="s3://b/o", recipe="short.toml")["recipe"] == "recipe.toml"
    assert (folder / "recipe.toml").read_text() == "epochs = 3\n"
    assert sorted(path.name for path in folder.iterdir()) == ["recipe.toml", "settings.toml"]


def test_recipes_that_go_by_name_stay(folder: Path) -> None:
    values = {"cutouts": "s3://b/c", "output": "s3://b/o", "recipe": "finetune_paper"}
    assert sent("finetune", folder, **values) == values
    assert [path.name for path in folder.iterdir()] == ["settings.toml"]


def test_the_same_settings_have_the_same_fingerprint_and_others_another(folder: Path) -> None:
    values = {"cutouts": "in", "output": "s3://b/o", "recipe": "r.toml"}
    Path("r.toml").write_text("epochs = 3\n")
    prints = [prepare("train", resolved("train", **values), folder)]
    same = {**values, "cutouts": f"{folder.parent}/here/in", "workers": 1, "address": "auto"}  # one is the default
    assert prepare("train", resolved("train", **same), folder) == prints[0]
    others: list[dict[str, Any]] = [{"output": "s3://b/p"}, {"workers": 2}, {"gpus": True}]
    prints += [prepare("train", resolved("train", **{**values, **other}), folder) for other in others]
    Path("r.toml").write_text("epochs = 4\n")
    prints.append(prepare("train", resolved("train", **values), folder))
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(("text", "message"), [(None, "cannot be read"), ("= nothing", "not valid TOML")])
def test_a_recipe_that_cannot_be_sent_is_refused(folder: Path, text: str | None, message: str) -> None:
    if text is not None:
        Path("x.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        sent("train", folder, cutouts="s3://b/c", output="s3://b/o", recipe="x.toml")
