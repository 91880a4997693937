"""`deepshadows submit`: the same verb as a job on a Ray cluster, through its Jobs API; no credentials travel.

The cluster has DeepShadows installed and its own credentials (role, Secret or environment); the job is the command
`python -m deepshadows VERB --config settings.toml`. The same settings are the same job: while it runs, submitting it
again follows it; once it has ended, the next attempt goes on with what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from deepshadows.outcomes import ExitCode, Failure, ForbiddenError, NotFoundError, Summary, UsageError
from deepshadows.settings import NO_PASSWORD, Settings, holds_password
from deepshadows.verbs.job_files import CONFIG, prepare
from deepshadows.verbs.progress import relay

POLL_S = 0.5
FINGERPRINT_DIGITS = 12
ALREADY_THERE = "already exists"
"""What Ray's job manager says of a submission id that is taken."""
RECONNECTIONS = 20
"""Times the log is asked for again after a lost connection, POLL_S apart, before the job is left to itself."""


def run(
    verb: str | None, settings: Settings | None, address: str, wait: bool, status: str | None, stop: str | None
) -> Summary:
    """Submit a verb and follow it, or tell about a job, or stop it; exactly one of the three.

    Parameters
    ----------
    verb, settings
        The verb with its own settings.
    address : str
        `http://host:8265` of the Ray dashboard.
    wait : bool
        Follow the log to the end; the exit code is then that of the job.
    status, stop
        Identifier of a job submitted before.
    """
    if sum(choice is not None for choice in (verb, status, stop)) != 1:
        raise UsageError("submit: give a VERB with its flags, or --status ID, or --stop ID")
    client = _connect(address)
    if stop is not None:
        return _stop(client, stop, address)
    if status is not None:
        return _describe(client, status, address)
    assert verb is not None
    assert settings is not None
    job, is_new = _submit(client, verb, settings)
    what = "" if is_new else ", which was running already"
    relay(f"job {job} at {address}{what}; Ctrl-C leaves it running: `deepshadows submit --status {job}`, `--stop`\n")
    if not wait:
        return _describe(client, job, address)
    return _ended(client, job, address, _follow(client, job))


def _connect(address: str) -> JobSubmissionClient:
    if holds_password(address):
        raise UsageError(f"--address: {NO_PASSWORD}")
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"--address {address}: give the dashboard of the cluster, such as http://host:8265")
    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)
    with _translated(f"{address}: no Ray dashboard answers there"):
        return JobSubmissionClient(address)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn what the client raises into ours, once."""
    try:
        yield
    except AuthenticationError as error:
        raise ForbiddenError(
            "the cluster asks for its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds it"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, requests.RequestException) as error:
        if "status code 404" in str(error) or "does not exist" in str(error):
            raise NotFoundError(f"{what}: no such job on this cluster; check the identifier and --address") from error
        raise Failure(f"{what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _submit(client: JobSubmissionClient, verb: str, settings: Settings) -> tuple[str, bool]:
    """Submit the next attempt of this job, or find the one that runs; its identifier, and whether it is new."""
    with (
        tempfile.TemporaryDirectory(prefix="deepshadows-") as folder,
        _translated("submit: the cluster did not accept the job"),
    ):
        name = f"deepshadows-{verb}-{prepare(verb, settings, Path(folder))[:FINGERPRINT_DIGITS]}"
        attempts = {}
        for known in client.list_jobs():
            if found := re.fullmatch(rf"{name}-(\d+)", known.submission_id or ""):
                attempts[int(found[1])] = known.status
        latest = max(attempts, default=0)
        if latest and not attempts[latest].is_terminal():
            return f"{name}-{latest}", False
        job = f"{name}-{latest + 1}"
        try:
            client.submit_job(
                entrypoint=f"python -m deepshadows {verb} --config {CONFIG} --json",
                submission_id=job,
                runtime_env={"working_dir": folder},
                metadata={"verb": verb},
            )
        except RuntimeError as error:
            if ALREADY_THERE not in str(error):
                raise
            return job, False  # somebody submitted it at the same moment
        return job, True


def _follow(client: JobSubmissionClient, job: str) -> dict[str, Any]:
    """Show the log until the job has ended; the record in its last line of JSON, empty where there is none."""
    log = _Log()
    for _ in range(RECONNECTIONS):
        log.begin_again()
        try:
            asyncio.run(_tail(client, job, log))
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            relay(f"(the log of {job} is interrupted: {_first_line(error)})\n")
        try:
            ended = _info(client, job).status.is_terminal()
        except (NotFoundError, ForbiddenError):
            raise
        except Failure:
            ended = False  # a dashboard that is away for a while ends nothing
        if ended:
            log.finish()
            return log.record
        time.sleep(POLL_S)
    raise Failure(f"{job}: its log cannot be followed; the job goes on: `deepshadows submit --status {job}`")


async def _tail(client: JobSubmissionClient, job: str, log: _Log) -> None:
    async for text in client.tail_job_logs(job):
        log.take(text)


class _Log:
    """Shows each line once, although every connection starts from the first; keeps the record, not the log."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self._shown = 0
        self._seen = 0
        self._rest = ""

    def begin_again(self) -> None:
        self._seen, self._rest = 0, ""

    def take(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)

    def finish(self) -> None:
        if self._rest:
            self._line(self._rest)

    def _line(self, line: str) -> None:
        self._seen += 1
        if self._seen <= self._shown:
            return
        self._shown = self._seen
        record = _record(line)
        if record is None:
            relay(line + "\n")
        else:
            self.record = record


def _record(line: str) -> dict[str, Any] | None:
    """What the verb printed for `--json`; None for any other line."""
    if not line.startswith('{"verb": '):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "exit_code" in record else None


def _info(client: JobSubmissionClient, job: str) -> Any:
    with _translated(f"{job}: the cluster does not tell how it stands"):
        return client.get_job_info(job)


def _exit_code(info: Any) -> ExitCode:
    """That of the verb; FAILED for a job that never came to one, such as a stopped one."""
    if not info.status.is_terminal() or info.status == JobStatus.SUCCEEDED:
        return ExitCode.DONE
    code = info.driver_exit_code
    return ExitCode(code) if code in set(ExitCode) - {ExitCode.DONE} else ExitCode.FAILED


def _describe(client: JobSubmissionClient, job: str, address: str) -> Summary:
    info = _info(client, job)
    return _summary(job, address, info, {})


def _ended(client: JobSubmissionClient, job: str, address: str, record: dict[str, Any]) -> Summary:
    """The end of a job that was followed: the figures are those of the verb."""
    inner = {key: value for key, value in record.items() if key not in ("verb", "exit_code", "seconds", "output")}
    if "output" in record:
        inner["job_output"] = record["output"]
    return _summary(job, address, _info(client, job), inner)


def _summary(job: str, address: str, info: Any, figures: dict[str, Any]) -> Summary:
    code = _exit_code(info)
    text = f"{job}: {info.status.value.lower()}"
    if info.status.is_terminal() and info.status != JobStatus.SUCCEEDED:
        text += f" (exit code {info.driver_exit_code if info.driver_exit_code is not None else 'unknown'})"
        text += "" if figures or not info.message else f": {info.message.strip()}"
    return Summary(
        verb="submit",
        output=address,
        exit_code=code,
        figures={"job": job, "status": info.status.value, **figures},
        text=(text,),
    )


def _stop(client: JobSubmissionClient, job: str, address: str) -> Summary:
    """Ask for the end of a job; ending one that has ended changes nothing."""
    _info(client, job)
    with _translated(f"{job}: cannot be stopped"):
        client.stop_job(job)
    deadline = time.monotonic() + 30
    while not (info := _info(client, job)).status.is_terminal() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    summary = _summary(job, address, info, {})
    return Summary(verb="submit", output=address, figures=summary.figures, text=summary.text)
