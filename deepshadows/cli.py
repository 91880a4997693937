"""The command line: one command, one verb each. Parses, calls, prints, returns the exit code.

Flags, TOML keys and stored settings are the fields of the classes in `settings`. Verbs are imported when called, so
that `--help` needs neither torch nor ray.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click
from pydantic.fields import FieldInfo

from deepshadows import __version__, settings
from deepshadows.outcomes import ExitCode, Failure, Summary, UsageError

VERBS: dict[str, type[settings.Settings]] = {
    "quickstart": settings.Quickstart,
    "simulate": settings.Simulate,
    "detect": settings.Detect,
    "cutouts": settings.Cutouts,
    "fetch": settings.Fetch,
    "train": settings.Train,
    "finetune": settings.Finetune,
    "evaluate": settings.Evaluate,
    "explain": settings.Explain,
    "classify": settings.Classify,
    "publish": settings.Publish,
    "reprocess": settings.Reprocess,
    "select": settings.Select,
    "versions": settings.Versions,
    "report": settings.Report,
    "status": settings.Status,
    "experiments": settings.Experiments,
}


def _parameter(name: str, info: FieldInfo) -> click.Parameter:
    """One settings field as a flag, or as a positional argument where the field says `settings.ARGUMENT`."""
    kind, multiple = _flag_type(info.annotation)
    if settings.is_argument(info):
        return click.Argument([name], type=kind, nargs=-1 if multiple else 1, required=False)
    flag = settings.flag_of(name)
    default = info.default
    shown = "required" if info.is_required() else f"default: {default}" if default not in (None, "") else ""
    help_text = f"{info.description}" + (f"  [{shown}]" if shown else "")
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag.removeprefix('--')}", name], default=None, help=help_text)
    flags = [flag, "-o"] if name == "output" else [flag]
    return click.Option([*flags, name], type=kind, multiple=multiple, default=None, help=help_text)


def _flag_type(annotation: Any) -> tuple[Any, bool]:
    """The click type of an annotation, and whether the flag may be repeated."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _flag_type(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        (kind,) = [part for part in typing.get_args(annotation) if part is not type(None)]
        return _flag_type(kind)
    if origin is Literal:
        return click.Choice(typing.get_args(annotation)), False
    if origin is tuple:
        return _flag_type(typing.get_args(annotation)[0])[0], True
    return annotation, False


def _verb_command(verb: str, model: type[settings.Settings]) -> click.Command:
    fields = {**model.model_fields, **_unused(model)}
    options: list[click.Parameter] = [_parameter(name, info) for name, info in fields.items()]
    options += [
        click.Option(["--config"], type=click.Path(dir_okay=False), help="TOML file with any of these settings."),
        click.Option(["--json", "as_json"], is_flag=True, help="Last line of stdout: one JSON object."),
        click.Option(["-v", "verbose"], is_flag=True, help="Say more."),
    ]

    def call(config: str | None, as_json: bool, verbose: bool, **flags: Any) -> None:
        def work() -> Summary:
            resolved = _resolve(verb, config, flags)
            logging.getLogger(__name__).info("%s", resolved)
            module = importlib.import_module(f"deepshadows.verbs.{verb}")
            return typing.cast(Summary, module.run(resolved))

        _logging(verbose)
        sys.exit(_report(verb, work, as_json))

    return click.Command(verb, params=options, callback=call, help=_help(model))


def _help(model: type[settings.Settings]) -> str:
    """The sentence of a verb, and those of its positional arguments, which click gives no place of their own."""
    arguments = [
        f"{name.upper()}: {info.description}" for name, info in model.model_fields.items() if settings.is_argument(info)
    ]
    return "\n\n".join([model.__doc__ or "", *arguments])


def _unused(model: type[settings.Settings]) -> dict[str, FieldInfo]:
    """The shared flags that a verb takes without having a use for them."""
    return {name: info for name, info in settings.Shared.model_fields.items() if name not in model.model_fields}


def _resolve(verb: str, config: str | None, flags: dict[str, Any]) -> settings.Settings:
    source = f"deepshadows {verb}" + (f" --config {config}" if config else "")
    model, values = VERBS[verb], _merge(config, flags)
    settings.Shared.resolve({name: values.pop(name) for name in _unused(model) if name in values}, source)
    return model.resolve(values, source)


def _merge(config: str | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Settings file first, flags over it."""
    values: dict[str, Any] = {}
    if config is not None:
        try:
            text = Path(config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{config}: the settings file cannot be read: {error}") from error
        values = settings.parse_toml(text, config)
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    return {**values, **given}


def _report(verb: str, work: typing.Callable[[], Summary], as_json: bool) -> int:
    """Do the work, print its summary or its error, return the exit code."""
    started = time.monotonic()
    record: dict[str, Any] = {"verb": verb, "exit_code": int(ExitCode.DONE), "output": None}

    def tell() -> None:
        record["seconds"] = round(time.monotonic() - started, 3)
        if as_json:
            click.echo(json.dumps(record))

    try:
        summary = work()
        record.update(exit_code=int(summary.exit_code), output=summary.output, **summary.figures)
        for line in summary.text:
            click.echo(_printable(line))
    except Failure as error:
        record.update(exit_code=int(error.exit_code), error=str(error))
        click.echo(_printable(f"error: {error}"), err=True)
    except Exception as error:
        record.update(exit_code=int(ExitCode.FAILED), error=f"{type(error).__name__}: {error}")
        tell()
        raise
    tell()
    return int(record["exit_code"])


def _printable(text: str) -> str:
    """Names of files and objects may hold what steers a terminal: that is shown, not sent."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _logging(verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s")


def _parse(verb: str, words: Sequence[str]) -> settings.Settings:
    """The settings that a verb's own command would come to: wrong flags are refused before anything is submitted."""
    if verb not in VERBS:
        raise UsageError(f"submit: unknown verb {verb!r}; one of {', '.join(VERBS)}")
    context = _verb_command(verb, VERBS[verb]).make_context(f"deepshadows submit {verb}", list(words))
    flags = {name: value for name, value in context.params.items() if name not in ("config", "as_json", "verbose")}
    return _resolve(verb, context.params["config"], flags)


@click.command(
    "submit",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
    help="Run a verb as a Ray job on a cluster: submit VERB [its flags] --address http://host:8265.",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[VERB [FLAGS]...]")
@click.option("--address", default="http://127.0.0.1:8265", show_default=True, help="Ray dashboard of the cluster.")
@click.option("--no-wait", is_flag=True, help="Return once the job is accepted.")
@click.option("--status", metavar="ID", help="Tell how a job stands.")
@click.option("--stop", metavar="ID", help="Stop a job.")
@click.option("--json", "as_json", is_flag=True, help="Last line of stdout: one JSON object.")
def _submit(
    words: tuple[str, ...], address: str, no_wait: bool, status: str | None, stop: str | None, as_json: bool
) -> None:
    def work() -> Summary:
        verb = words[0] if words else None
        resolved = _parse(verb, words[1:]) if verb is not None else None
        module = importlib.import_module("deepshadows.verbs.submit")
        return typing.cast(
            Summary,
            module.run(verb=verb, settings=resolved, address=address, wait=not no_wait, status=status, stop=stop),
        )

    sys.exit(_report("submit", work, as_json))


@click.group(help="Which faint smudges of a sky survey are real low-surface-brightness galaxies?")
@click.version_option(__version__, prog_name="deepshadows")
def app() -> None:
    """All verbs."""


for _verb, _model in VERBS.items():
    app.add_command(_verb_command(_verb, _model))
app.add_command(_submit)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with the codes of `outcomes.ExitCode`."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(args=words, prog_name="deepshadows", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        sys.exit(ExitCode.USAGE)
    except click.ClickException as error:  # a flag that is wrong: the JSON line is promised all the same
        error.show()
        if "--json" in words:
            record = {"verb": words[0], "exit_code": int(ExitCode.USAGE), "output": None, "seconds": 0.0}
            click.echo(json.dumps({**record, "error": error.format_message()}))
        sys.exit(ExitCode.USAGE)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    main()
