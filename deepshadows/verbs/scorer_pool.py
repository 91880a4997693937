"""Scorer actors and the units in their hands: plain Ray actors, one call a unit.

Ray Data holds a block, a task and metadata for each unit in the driver; here nothing is held but what is in hand.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ray

from deepshadows.outcomes import Failure

CALLS_AT_ONCE = 2
"""Units an actor works at: one is read or committed while the other is scored."""
UNITS_IN_HAND = 3
"""These, and one that waits for them."""
DEATHS_TO_SUSPECT = 2
DEATHS_TO_GIVE_UP = 5
"""A unit in whose hands scorers die is done alone, then given up: too large for the memory, or it breaks a library."""

LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
)
UnitRow = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How many scorers, and what each takes."""

    scorers: int
    cpus: float
    gpus: float
    threads: int
    device: Literal["cpu", "cuda"]


def place(scorers: int, threads: int) -> Placement:
    """One scorer a GPU; without GPUs one a node, which leaves a CPU to readers and to Ray where there is one.

    Parameters
    ----------
    scorers, threads : int
        As set by the user; 0 where he leaves it to us.
    """
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if gpus:
        scorers = scorers or gpus
        return Placement(scorers=scorers, cpus=1, gpus=min(1.0, gpus / scorers), threads=threads or 1, device="cuda")
    nodes = [cpus for node in ray.nodes() if node["Alive"] and (cpus := node["Resources"].get("CPU", 0))]
    if not nodes:
        raise Failure("no node of this cluster has a CPU or a GPU to work with: start workers, then run this again")
    node_cpus = int(max(1, min(nodes)))
    scorers = scorers or len(nodes)
    per_node = -(-scorers // len(nodes))
    return Placement(
        scorers=scorers,
        cpus=max(1, (node_cpus - 1) // per_node),
        gpus=0,
        threads=threads or max(1, node_cpus // per_node),
        device="cpu",
    )


@dataclass(eq=False)
class _Scorer:
    """An actor, whether it has been constructed, and how many units it has in hand."""

    actor: Any
    ready: bool = False
    in_hand: int = 0


@dataclass(frozen=True)
class _Call:
    """What an actor was asked: a unit, which fills `weight` of its hands, or else to say when it is constructed."""

    scorer: _Scorer
    unit: UnitRow | None = None
    weight: int = 0


class ScorerPool:
    """Actors of `scorer_class`, which take a unit's fields and return a row; one that dies is started again.

    Units that were in the hands of one that died go to the first that has room.
    """

    def __init__(
        self, scorer_class: type, arguments: tuple[Any, ...], placement: Placement, no_progress_s: float = 900
    ) -> None:
        remote = ray.remote(scorer_class).options(
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            max_concurrency=CALLS_AT_ONCE,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._no_progress_s = no_progress_s
        self._scorers = [_Scorer(remote.remote(*arguments)) for _ in range(placement.scorers)]
        self._calls: dict[Any, _Call] = {}
        self._again: deque[UnitRow] = deque()
        self._deaths: Counter[str] = Counter()

    def results(self, units: Iterable[UnitRow]) -> Generator[tuple[UnitRow, dict[str, Any] | None]]:
        """Each unit with what its scorer returned, as they come; None where scorers died of it again and again.

        The actors end with the iterator.

        Raises
        ------
        Failure
            No scorer starts, one raises, or nothing happens for `no_progress_s`.
        """
        remaining = iter(units)
        try:
            for scorer in self._scorers:
                self._await_start(scorer)
            while self._hand_out(remaining):
                for reference in self._finished():
                    call = self._calls.pop(reference)
                    call.scorer.in_hand -= call.weight
                    yield from self._result(reference, call)
        except ray.exceptions.RayError as error:
            last_line = str(error).strip().splitlines()[-1]
            raise Failure(f"scoring stopped: {last_line}; run the same command again to go on") from error
        finally:
            if ray.is_initialized():  # else ray.kill would start a Ray of its own
                with contextlib.suppress(ray.exceptions.RayError):  # the cluster is gone, and they with it
                    for scorer in self._scorers:
                        ray.kill(scorer.actor)

    def _await_start(self, scorer: _Scorer) -> None:
        scorer.ready = False
        self._calls[scorer.actor.__ray_ready__.options(max_task_retries=-1).remote()] = _Call(scorer)

    def _hand_out(self, remaining: Iterator[UnitRow]) -> bool:
        """Fill the hands of those that have room; False where nothing is left to do."""
        for scorer in self._scorers:
            while scorer.ready and scorer.in_hand < UNITS_IN_HAND:
                unit = self._next(remaining, alone=not scorer.in_hand)
                if unit is None:
                    break
                weight = UNITS_IN_HAND if self._is_suspect(unit) else 1
                scorer.in_hand += weight
                self._calls[scorer.actor.__call__.remote(unit)] = _Call(scorer, unit, weight)
        started = any(scorer.ready for scorer in self._scorers)
        return bool(self._again) or not started or any(call.unit for call in self._calls.values())

    def _next(self, remaining: Iterator[UnitRow], *, alone: bool) -> UnitRow | None:
        for _ in range(len(self._again)):
            if alone or not self._is_suspect(self._again[0]):
                return self._again.popleft()
            self._again.rotate(-1)
        return next(remaining, None)

    def _is_suspect(self, unit: UnitRow) -> bool:
        return self._deaths[unit["unit"]] >= DEATHS_TO_SUSPECT

    def _finished(self) -> list[Any]:
        """References that are ready, one at least."""
        waiting = list(self._calls)
        ready, _ = ray.wait(waiting, num_returns=1, timeout=self._no_progress_s)
        if not ready:
            raise Failure(
                f"scoring stopped: no unit was finished and no scorer started in {self._no_progress_s:.0f} s "
                "(--no-progress-s); look at the nodes of the cluster, then run the same command again to go on"
            )
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return list(ready)

    def _result(self, reference: Any, call: _Call) -> Iterator[tuple[UnitRow, dict[str, Any] | None]]:
        try:
            row = ray.get(reference)
        except LOST:
            if call.unit is None:  # it cannot be constructed, here or anywhere
                raise
            if call.scorer.ready:
                self._await_start(call.scorer)
            self._deaths[call.unit["unit"]] += 1
            if self._deaths[call.unit["unit"]] < DEATHS_TO_GIVE_UP:
                self._again.append(call.unit)
            else:
                yield call.unit, None
            return
        if call.unit is None:
            call.scorer.ready = True
        else:
            yield call.unit, row
