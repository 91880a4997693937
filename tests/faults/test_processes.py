"""Scorers, nodes, drivers and heads that die or stand still: the catalogue is that of an undisturbed run."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deepshadows import storage
from deepshadows.outcomes import ExitCode, UsageError
from deepshadows.run.lease import TTL_S
from deepshadows.run.manifest import read_manifest
from tests.end_to_end.ray_head import RayHead, kill
from tests.faults.place import LIMIT_S, UNITS, Driver, Place, catalogue, count_scores

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]
Trial = Callable[[str], None]


def test_scorers_are_killed_again_and_again(place: Place, target: str, trial: Trial) -> None:
    """A scorer is killed (SIGKILL), four times in a run."""
    killed: list[int] = []

    def kill() -> None:
        scorer = place.nodes.workers("UnitScorer")[0]
        scorer.kill()
        killed.append(scorer.pid)

    driver = place.classify(target)
    gates = [place.road.at(nth, "PUT", "/scores/", kill) for nth in (2, 6, 10, 14)]
    place.check(target, driver.end(), driver.log)
    for gate in gates:
        gate.result(0)
    assert len(set(killed)) == 4
    for _ in killed:
        trial("the run went on")


@pytest.mark.parametrize("unit", [1, UNITS // 2])
def test_a_node_goes_without_grace(place: Place, target: str, unit: int, trial: Trial) -> None:
    """A worker node is lost in mid-run."""
    driver = place.classify(target)
    gate = place.road.at(unit, "PUT", "/scores/", lambda: place.nodes.ask("kill"))
    place.check(target, driver.end(), driver.log)
    gate.result(0)
    trial("the run went on")


def test_the_driver_is_killed_at_ten_random_moments(place: Place, target: str, trial: Trial) -> None:
    """The driver is killed at a random one of the requests that go to the store, and started again."""
    moments, kills, runs = random.Random(7), 0, 1
    while kills < 10:
        run = f"{target}-{runs}"
        left = 1 - 0.7 * count_scores(run) / UNITS  # what is done is not asked for again
        driver = place.classify(run)
        place.road.at(moments.randint(1, int(left * place.requests)), "", "", driver.kill)
        if driver.process.wait(LIMIT_S) != -signal.SIGKILL:  # it finished before that request came
            place.finish(run)
            runs += 1
            continue
        place.road.be_good()
        kills += 1
        if not storage.exists(f"{run}/manifest.json"):
            with pytest.raises(UsageError, match="no finished run"):
                read_manifest(run)
        trial("the same command went on")
    place.finish(run)


def test_the_head_is_lost_and_the_job_submitted_again(place: Place, target: str, trial: Trial) -> None:
    """The head of the cluster is lost, and the same job submitted to a new one."""
    words = ["submit", *place.words(target), "--address"]
    environment = {name: value for name, value in place.nodes.environment.items() if name != "RAY_AUTH_TOKEN"}

    def kill_all(head: RayHead) -> None:
        kill([*head.family(), psutil.Process(head.process.pid)])

    head = RayHead(environment)
    try:
        gate = place.road.at(5, "PUT", "/scores/", lambda: kill_all(head))
        driver = Driver([*words, head.address], {**environment, **head.access})
        lost = driver.end()
        gate.result(0)
    finally:
        head.stop()
    assert lost["exit_code"] == ExitCode.FAILED
    assert 4 <= count_scores(target) < UNITS
    head = RayHead(environment)
    try:
        again = Driver([*words, head.address], {**environment, **head.access})
        place.check(target, again.end(), again.log)
    finally:
        head.stop()
    trial("the new job did what was missing")


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_of_two_drivers_one_works_and_the_other_is_told(place: Place, target: str, attempt: int, trial: Trial) -> None:
    """Two drivers are started on one run."""
    drivers = [place.classify(target), place.classify(target)]
    records = [driver.end() for driver in drivers]
    logs = [driver.log for driver in drivers]
    assert sorted(record["exit_code"] for record in records) == [ExitCode.DONE, ExitCode.HELD], logs
    assert catalogue(target).equals(place.undisturbed)
    trial("one finished, the other ended with code 4")


def test_a_driver_paused_past_its_lease_cannot_commit(place: Place, target: str, trial: Trial) -> None:
    """A driver is paused (SIGSTOP) past its lease, and goes on when another has finished."""
    first = place.classify(target)
    gate = place.road.at(5, "PUT", "/scores/", lambda: first.process.send_signal(signal.SIGSTOP))
    first.until(gate.done, "five units")
    second = place.classify(target)
    done = second.end()
    place.check(target, done, second.log)
    assert done["seconds"] > TTL_S
    committed = storage.stat(f"{target}/manifest.json").etag
    first.process.send_signal(signal.SIGCONT)
    fenced = first.end()
    assert fenced["exit_code"] == ExitCode.HELD, first.log
    assert storage.stat(f"{target}/manifest.json").etag == committed
    assert catalogue(target).equals(place.undisturbed)
    trial("it ended with code 4 and changed nothing")


def test_scorers_that_stand_still_end_the_run_with_a_message(place: Place, target: str, trial: Trial) -> None:
    """All scorers stand still (SIGSTOP): the no-progress timeout."""

    def stop() -> None:
        for scorer in place.nodes.workers("UnitScorer"):
            scorer.suspend()

    driver = place.classify(target, "--no-progress-s", "15")
    gate = place.road.at(5, "PUT", "/scores/", stop)
    record = driver.end()
    gate.result(0)
    assert record["exit_code"] == ExitCode.FAILED, driver.log
    assert "no unit was finished and no scorer started in 15 s" in record["error"]
    assert "run the same command again" in record["error"]
    place.finish(target)
    trial("the run ended with code 1 and a message; the same command went on")


CLOCK = r"""
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long ahead(void) { const char *s = getenv("CLOCK_AHEAD_S"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t clock, struct timespec *at) {
  int failed = syscall(SYS_clock_gettime, clock, at);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += ahead();
  return failed;
}
int gettimeofday(struct timeval *at, void *zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that, preloaded, sets the wall clock of a process ahead by CLOCK_AHEAD_S."""
    folder: Path = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK)
    compile_ = ["cc", "-shared", "-fPIC", "-O1", "-o", str(folder / "clock.so"), str(folder / "clock.c")]
    try:
        subprocess.run(compile_, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a C compiler makes the skewed clock: {error}")
    return str(folder / "clock.so")


def test_clocks_that_disagree_by_minutes_change_nothing(place: Place, target: str, clock: str, trial: Trial) -> None:
    """The clocks of the drivers on one run are ten minutes ahead and behind."""
    ahead = {"LD_PRELOAD": clock, "CLOCK_AHEAD_S": "600"}
    behind = {"LD_PRELOAD": clock, "CLOCK_AHEAD_S": "-600"}
    first = place.classify(target, **ahead)
    place.road.at(5, "PUT", "/scores/", first.kill)
    first.process.wait(LIMIT_S)
    drivers = [place.classify(target, **behind), place.classify(target, **ahead)]
    records = [driver.end() for driver in drivers]
    assert sorted(record["exit_code"] for record in records) == [ExitCode.DONE, ExitCode.HELD], [d.log for d in drivers]
    assert catalogue(target).equals(place.undisturbed)
    trial("one went on, the other ended with code 4")


def test_a_clock_that_is_an_hour_off_is_named(place: Place, target: str, clock: str, trial: Trial) -> None:
    """A driver's clock is an hour ahead, which S3 refuses."""
    driver = place.classify(target, LD_PRELOAD=clock, CLOCK_AHEAD_S="3600")
    record = driver.end()
    assert record["exit_code"] == ExitCode.FAILED, driver.log
    assert "clock" in record["error"]
    assert storage.list_objects(target) == []
    trial("it ended with code 1 and a message that names the clock")
