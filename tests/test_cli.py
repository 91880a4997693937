"""The command line as a user meets it: help at once, settings from file and flags, exit codes, the JSON line."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deepshadows import cli, settings
from deepshadows.outcomes import ExitCode, Summary

HELP_LIMIT_S = 1.0
Resolved = Callable[..., dict[str, Any]]


Done = subprocess.CompletedProcess[str]


def process(*words: str | Path, python: tuple[str, ...] = ()) -> Done:
    """A command in a process of its own."""
    command = [sys.executable, *python, "-m", "deepshadows", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def deepshadows(*words: str | Path) -> Done:
    """A command in this process, as the entry point runs it: the seconds of imports are spent once."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    return Done(words, int(end.value.code or 0), out.getvalue(), err.getvalue())


def last_line(done: Done) -> dict[str, Any]:
    assert done.stdout, "no line on stdout"
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Resolved:
    """Calls a command whose verb does nothing but tell the settings that reached it."""

    def call(verb: str, *words: str | Path) -> dict[str, Any]:
        def run(wanted: Any) -> Summary:
            return Summary(verb=verb, output="", figures={"settings": wanted.model_dump(mode="json")})

        monkeypatch.setitem(sys.modules, f"deepshadows.verbs.{verb}", types.SimpleNamespace(run=run))
        done = CliRunner().invoke(cli.app, [verb, *map(str, words), "--json"])
        assert done.exit_code == ExitCode.DONE, done.output
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["settings"]
        return found

    return call


@pytest.mark.parametrize("words", [["--help"], ["classify", "--help"]])
def test_help_needs_neither_torch_nor_ray(words: list[str]) -> None:
    done = process(*words, python=("-X", "importtime"))
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "ray"}


@pytest.mark.parametrize("words", [["--help"], ["classify", "--help"]])
def test_help_is_there_within_a_second(words: list[str]) -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert process(*words).returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < HELP_LIMIT_S


def test_help_lists_every_verb() -> None:
    listed = {line.split()[0] for line in process("--help").stdout.splitlines() if line.startswith("  ")}
    assert {*cli.VERBS, "submit"} <= listed


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_settings_field_is_a_flag_with_its_sentence(verb: str) -> None:
    done = CliRunner().invoke(cli.app, [verb, "--help"], terminal_width=200)
    assert done.exit_code == 0
    shown = " ".join(done.stdout.split())
    for name, field in cli.VERBS[verb].model_fields.items():
        flag = "--from" if name == "from_checkpoint" else "--" + name.replace("_", "-")
        if settings.is_argument(field):
            flag = f"{name.upper()}:"
        assert f" {flag} " in shown or f" {flag} / --no" in shown
        assert field.description is not None
        assert field.description in shown
    for flag in ("--config FILE", "--json", "--precision [exact|fast]", "--address TEXT", "-v "):
        assert flag in shown


def test_the_version_is_shown() -> None:
    assert process("--version").stdout.startswith("deepshadows, version ")


def test_a_settings_file_alone_is_enough(resolved: Resolved, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('input = "in"\ncheckpoint = "net"\noutput = "out"\nunit-rows = 7\n')
    found = resolved("classify", "--config", tmp_path / "a.toml")
    assert (found["input"], found["output"], found["unit_rows"], found["batch_size"]) == ("in", "out", 7, 256)


def test_flags_win_over_the_settings_file(resolved: Resolved, tmp_path: Path) -> None:
    text = 'cutouts = "file"\noutput = "out"\nworkers = 3\ngpus = true\nfrom_checkpoint = "old"\n'
    (tmp_path / "a.toml").write_text(text)
    found = resolved("train", "--config", tmp_path / "a.toml", "--cutouts", "flag", "--no-gpus", "--from", "new")
    assert (found["cutouts"], found["gpus"], found["from_checkpoint"]) == ("flag", False, "new")
    assert (found["output"], found["workers"]) == ("out", 3)


def test_a_settings_file_may_name_the_flag_or_the_field(resolved: Resolved, tmp_path: Path) -> None:
    for key in ("from", "from_checkpoint", "from-checkpoint"):
        (tmp_path / "a.toml").write_text(f'cutouts = "c"\noutput = "o"\n{key} = "net"\n')
        assert resolved("finetune", "--config", tmp_path / "a.toml")["from_checkpoint"] == "net"


@pytest.mark.parametrize("verb", ["select", "versions", "status", "report", "simulate"])
def test_shared_flags_are_taken_by_verbs_that_have_no_use_for_them(
    resolved: Resolved, tmp_path: Path, verb: str
) -> None:
    words = ["--output", "o"] if verb == "simulate" else ["it"] if verb in ("versions", "status") else ["it", "-o", "o"]
    plain = resolved(verb, *words)
    (tmp_path / "a.toml").write_text('precision = "exact"\naddress = "auto"\n')
    for given in (["--precision", "exact", "--address", "auto"], ["--config", tmp_path / "a.toml"]):
        found = resolved(verb, *words, *given)
        assert found == (plain | {"address": "auto"} if "address" in plain else plain)


def test_a_wrong_shared_flag_is_refused_by_every_verb(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('precision = "rough"\n')
    done = deepshadows("status", tmp_path / "run", "--config", tmp_path / "a.toml")
    assert done.returncode == ExitCode.USAGE
    assert "precision" in done.stderr


def test_a_flag_of_zero_wins_over_the_settings_file(resolved: Resolved, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('output = "out"\ntiles = 9\ncutouts = 5\n')
    found = resolved("simulate", "--config", tmp_path / "a.toml", "--cutouts", "0")
    assert (found["tiles"], found["cutouts"]) == (9, 0)


def test_a_flag_may_be_repeated(resolved: Resolved) -> None:
    assert resolved("publish", "--run", "a", "--run", "b", "--catalog", "c")["run"] == ["a", "b"]


def test_file_and_flags_merge_in_a_real_command(tmp_path: Path) -> None:
    config = tmp_path / "publish.toml"
    config.write_text(f'run = ["{tmp_path}/from-file"]\ncatalog = "{tmp_path}/catalog"\n')
    for flags, named in (((), "from-file"), (("--run", tmp_path / "from-flag"), "from-flag")):
        done = process("publish", "--config", config, *flags)
        assert done.returncode == ExitCode.USAGE
        assert f"{tmp_path}/{named}: no finished run there" in done.stderr
    assert not (tmp_path / "catalog").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense-key = 1", "nonsense_key"),
        ('unit_rows = "many"', "unit_rows"),
        ("unit_rows = 0", "unit_rows"),
        ("unit_rows = true", "unit_rows"),
        ('precision = "rough"', "precision"),
        ("detections = 7", "detections"),
        ("[classify]\nunit_rows = 7", "classify"),
        ("fov_arcsec = nan", "fov_arcsec"),
        ("unit_rows = ", "not valid TOML"),
        ("unit_rows = 1\nunit_rows = 2", "not valid TOML"),
    ],
)
def test_a_wrong_settings_file_is_refused_and_the_key_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    words = ["--config", tmp_path / "a.toml", "--input", "i", "--checkpoint", "c", "--output", tmp_path / "out"]
    done = deepshadows("classify", *words)
    assert done.returncode == ExitCode.USAGE
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_settings_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[[")
    done = deepshadows("simulate", "--config", tmp_path / "mine.toml", "--output", tmp_path / "out")
    assert str(tmp_path / "mine.toml") in done.stderr


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.toml").write_bytes(content)
    done = deepshadows("simulate", "--config", tmp_path / "a.toml", "--output", tmp_path / "out", "--json")
    assert done.returncode == last_line(done)["exit_code"] == ExitCode.USAGE
    assert str(tmp_path / "a.toml") in done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["classify", "--input", "i", "--checkpoint", "c"], "output"),
        (["publish", "--catalog", "c"], "run"),
        (["detect", "--output", "o.parquet"], "tiles"),
        (["evaluate", "--checkpoint", "c"], "--cutouts"),
        (["evaluate", "--catalog", "c"], "--truth"),
    ],
)
def test_a_missing_flag_is_named(words: list[str], named: str) -> None:
    done = deepshadows(*words)
    assert done.returncode == ExitCode.USAGE
    assert named in done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--unit-rows", "many"], "--unit-rows"),
        (["--unit-rows", "0"], "unit_rows"),
        (["--precision", "rough"], "--precision"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_a_wrong_flag_is_named(words: list[str], named: str) -> None:
    done = deepshadows("classify", "--input", "i", "--checkpoint", "c", "--output", "o", *words)
    assert done.returncode == ExitCode.USAGE
    assert named in done.stderr


@pytest.mark.parametrize("words", [["--nonsense", "1"], ["--unit-rows", "many"], ["--unit-rows"]])
def test_a_wrong_flag_has_its_json_line_too(words: list[str]) -> None:
    done = deepshadows("classify", "--json", "--input", "i", "--checkpoint", "c", "--output", "o", *words)
    record = last_line(done)
    assert (record["verb"], record["exit_code"]) == ("classify", ExitCode.USAGE)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["clasify"], "clasify"),
        (["classify", "--input", "i"], "output"),
        (["classify", "--input", "i", "--output", "o", "--unit-rows", "0"], "unit_rows"),
        (["classify", "--nonsense", "1"], "--nonsense"),
        (["train", "--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_what_would_be_refused_there_is_not_submitted(words: list[str], named: str) -> None:
    """Nothing listens at that address: a job that went out would fail otherwise."""
    done = deepshadows("submit", *words, "--address", "http://127.0.0.1:1", "--json")
    assert done.returncode == last_line(done)["exit_code"] == ExitCode.USAGE
    assert named in done.stderr


def test_an_unknown_verb_is_named() -> None:
    done = deepshadows("clasify")
    assert done.returncode == ExitCode.USAGE
    assert "clasify" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "detect --tiles IN/nowhere --output OUT/a.parquet",
        "cutouts --input IN/nowhere --output OUT",
        "cutouts --input IN/nowhere --detections IN/nowhere.parquet --output OUT",
        "fetch cutouts --positions IN/nowhere.parquet --output OUT",
        "train --cutouts IN/nowhere --output OUT",
        "finetune --cutouts IN/shards --from IN/nowhere --output OUT",
        "explain --checkpoint IN/nowhere --cutouts IN/shards --output OUT",
        "evaluate --checkpoint IN/nowhere --cutouts IN/shards",
        "evaluate --catalog IN/nowhere --truth IN/truth.parquet",
        "classify --input IN/shards --checkpoint IN/nowhere --output OUT",
        "publish --run IN/nowhere --catalog OUT",
        "status IN/nowhere",
        "experiments baselines --cutouts IN/nowhere --output OUT",
        "quickstart --checkpoint IN/nowhere --output OUT",
    ],
)
def test_a_missing_path_is_wrong_usage_and_named(tmp_path: Path, line: str) -> None:
    words = line.replace("IN", str(tmp_path / "in")).replace("OUT", str(tmp_path / "out")).split()
    done = deepshadows(*words, "--json")
    assert f"{tmp_path}/in/nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == last_line(done)["exit_code"] == ExitCode.USAGE
    assert not (tmp_path / "out").exists()


def test_the_json_line_of_a_failure_says_what_failed(tmp_path: Path) -> None:
    started = time.monotonic()
    done = deepshadows("publish", "--run", tmp_path / "nowhere", "--catalog", tmp_path / "catalog", "--json")
    record = last_line(done)
    assert (record["verb"], record["exit_code"], record["output"]) == ("publish", ExitCode.USAGE, None)
    assert str(tmp_path / "nowhere") in record["error"]
    assert 0 <= record["seconds"] <= time.monotonic() - started


def test_the_json_line_of_an_unforeseen_error_says_for_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(wanted: Any) -> Summary:
        raise ZeroDivisionError("nobody thought of it")

    monkeypatch.setitem(sys.modules, "deepshadows.verbs.status", types.SimpleNamespace(run=run))
    with pytest.raises(ZeroDivisionError):
        cli.main(["status", "run", "--json"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["verb"], record["exit_code"], record["output"]) == ("status", ExitCode.FAILED, None)
    assert record["error"] == "ZeroDivisionError: nobody thought of it"
    assert record["seconds"] >= 0


def test_without_json_a_failure_prints_nothing_on_stdout(tmp_path: Path) -> None:
    done = deepshadows("publish", "--run", tmp_path / "nowhere", "--catalog", tmp_path / "catalog")
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")


def test_the_json_line_of_a_success_comes_last_and_alone(tmp_path: Path) -> None:
    words = ["simulate", "--tiles", "1", "--tile-size-pix", "512", "--output", tmp_path / "sky"]
    done = process(*words, "-v", "--json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    record = last_line(done)
    assert (record["verb"], record["exit_code"], record["output"]) == ("simulate", ExitCode.DONE, f"{tmp_path}/sky")
    assert record["seconds"] > 0
    assert sum(line.startswith("{") for line in lines) == 1
    assert len(lines) > 1


def test_v_changes_neither_result_nor_stdout(tmp_path: Path) -> None:
    words = ["status", tmp_path / "nowhere"]
    quiet, verbose = process(*words), process(*words, "-v")
    assert quiet.returncode == verbose.returncode == ExitCode.USAGE
    assert quiet.stdout == verbose.stdout
    assert quiet.stderr in verbose.stderr


def test_names_that_steer_a_terminal_are_shown_as_text(tmp_path: Path) -> None:
    done = deepshadows("status", f"{tmp_path}/\x1b[2J\u202e\x07é run", "--json")
    assert done.returncode == ExitCode.USAGE
    assert "/\\x1b[2J\\u202e\\x07é run" in done.stderr
    assert not {"\x1b", "\u202e", "\x07"} & {*done.stderr, *done.stdout}
