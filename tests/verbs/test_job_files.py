"""What a submitted verb takes along."""

from __future__ import annotations

import tomllib
import typing
from pathlib import Path

import pytest

from deepshadows.cli import VERBS
from deepshadows.outcomes import UsageError
from deepshadows.verbs.job_files import prepare


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to be uploaded; the test runs in its neighbour `here`."""
    (tmp_path / "here").mkdir()
    (tmp_path / "upload").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "upload"


def test_relative_paths_become_absolute_and_s3_stays(folder: Path) -> None:
    here = str(folder.parent / "here")
    words = ["--input", "shards", "--output=run", "--checkpoint", "s3://bucket/ckpt", "--unit-rows", "7", "--json"]
    assert prepare("classify", words, folder) == [
        *("--input", f"{here}/shards", "--output", f"{here}/run"),
        *("--checkpoint", "s3://bucket/ckpt", "--unit-rows", "7", "--json"),
    ]


def test_the_short_flag_of_the_output_is_a_path_too(folder: Path) -> None:
    assert prepare("classify", ["-o", "run"], folder) == ["--output", f"{folder.parent}/here/run"]


@pytest.mark.parametrize(
    ("words", "before"),
    [(["-orun"], []), (["-vorun"], ["-v"]), (["-vo", "run"], ["-v"]), (["-v", "-o", "run"], ["-v"])],
)
def test_the_short_flag_may_hold_its_value(folder: Path, words: list[str], before: list[str]) -> None:
    assert prepare("classify", words, folder) == [*before, "--output", f"{folder.parent}/here/run"]


def test_a_short_flag_takes_no_equals_sign(folder: Path) -> None:
    assert prepare("classify", ["-o=run"], folder) == ["--output", f"{folder.parent}/here/=run"]


def test_every_text_that_is_not_marked_as_a_path_is_none() -> None:
    """What a verb takes as text is a path or stands here."""
    no_paths = {"address", "id_column", "ra_column", "dec_column", "layer", "url", "bands", "stretch", "ids"}
    for verb, model in VERBS.items():
        text = {name for name, info in model.model_fields.items() if _takes_text(info.annotation)}
        marked = {name for name, info in model.model_fields.items() if "path" in (info.json_schema_extra or {})}
        assert text - marked <= no_paths, verb
        assert marked <= text - no_paths, verb


def _takes_text(annotation: object) -> bool:
    parts = typing.get_args(annotation)
    return annotation is str or (typing.get_origin(annotation) is not typing.Literal and any(map(_takes_text, parts)))


def test_names_of_shipped_weights_stay_but_folders_do_not(folder: Path) -> None:
    assert prepare("classify", ["--checkpoint", "deepshadows-v2"], folder) == ["--checkpoint", "deepshadows-v2"]
    Path("mine").mkdir()
    here = str(folder.parent / "here")
    assert prepare("classify", ["--checkpoint", "mine"], folder) == ["--checkpoint", f"{here}/mine"]
    assert prepare("train", ["--from", "mine"], folder) == ["--from", f"{here}/mine"]


def test_positional_words_stay_and_positions_are_a_path(folder: Path) -> None:
    here = str(folder.parent / "here")
    words = ["cutouts", "--positions", "p.csv", "--url", "http://host/viewer"]
    assert prepare("fetch", words, folder) == [
        *("cutouts", "--positions", f"{here}/p.csv", "--url", "http://host/viewer")
    ]


def test_numbers_are_not_taken_for_paths(folder: Path) -> None:
    words = ["--tiles", "4", "--cutouts", "10"]
    assert prepare("simulate", words, folder) == words


def test_a_recipe_is_uploaded(folder: Path) -> None:
    Path("short.toml").write_text("epochs = 3\n")
    assert prepare("train", ["--recipe", "short.toml"], folder) == ["--recipe", "recipe.toml"]
    assert [path.name for path in folder.iterdir()] == ["recipe.toml"]
    assert (folder / "recipe.toml").read_text() == "epochs = 3\n"


def test_recipes_that_go_by_name_stay(folder: Path) -> None:
    words = ["--recipe", "finetune_paper", "--from", "s3://bucket/ckpt"]
    assert prepare("finetune", words, folder) == words
    assert not list(folder.iterdir())


def test_settings_are_uploaded_with_reachable_paths_and_their_recipe(folder: Path) -> None:
    Path("short.toml").write_text("epochs = 3\n")
    text = (
        'cutouts = "é \\"x\\""\noutput = "s3://b/c"\nrecipe = "short.toml"\nworkers = 2\ngpus = true\naddress = "a"\n'
    )
    Path("train.toml").write_text(text)
    assert prepare("train", ["--config", "train.toml"], folder) == ["--config", "settings.toml"]
    assert tomllib.loads((folder / "settings.toml").read_text()) == {
        "cutouts": str(folder.parent / "here" / 'é "x"'),
        "output": "s3://b/c",
        "recipe": "recipe.toml",
        "workers": 2,
        "gpus": True,
    }
    assert sorted(path.name for path in folder.iterdir()) == ["recipe.toml", "settings.toml"]


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot be read"), ("= nothing", "not valid TOML"), ("\0", "not valid TOML")]
)
def test_a_file_that_cannot_be_sent_is_refused(folder: Path, text: str | None, message: str) -> None:
    if text is not None:
        Path("x.toml").write_text(text)
    for flag in ("--config", "--recipe"):
        with pytest.raises(UsageError, match=message):
            prepare("train", [flag, "x.toml"], folder)
