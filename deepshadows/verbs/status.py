"""`deepshadows status`: how far a run has come, wherever it was started. Needs the store alone, no Ray."""

from __future__ import annotations

from datetime import timedelta

from deepshadows import settings, storage
from deepshadows.outcomes import Summary
from deepshadows.run.standing import Standing, standing

_MEANING = {
    "finished": "finished",
    "running": "running",
    "stopped": "stopped, no driver works on it; the same classify command goes on with what is left",
}


def run(settings: settings.Status) -> Summary:
    """Tell where a run stands: state, done, left, quarantined, rate."""
    target = storage.normalise(settings.run)
    now = standing(target)
    rate = now.images_per_s
    counts = [f"{kind}_{name}" for kind in ("rows", "units") for name in ("planned", "done", "quarantined", "left")]
    planned, done, bad, left = (getattr(now, name) for name in counts[:4])
    return Summary(
        verb="status",
        output=target,
        figures={
            "state": now.state,
            **{name: getattr(now, name) for name in counts},
            "images_per_s": None if rate is None else round(rate, 1),
        },
        text=(
            f"{target}: {_MEANING[now.state]}",
            f"{planned} rows = {done} done + {bad} quarantined + {left} left",
            f"{now.units_planned} units = {now.units_done} done + {now.units_quarantined} quarantined "
            f"+ {now.units_left} left" + _speed(now),
        ),
    )


def _speed(now: Standing) -> str:
    if now.images_per_s is None:
        return ""
    if now.state != "running":
        return f"; {now.images_per_s:.0f} rows/s while it ran"
    left = timedelta(seconds=round(now.rows_left / now.images_per_s))
    return f"; {now.images_per_s:.0f} rows/s, {left} to go"
