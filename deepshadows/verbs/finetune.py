"""`finetune`: a network trained further on a user's own labels, judged before and after on the same held-out rows."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from deepshadows.model import shipped
from deepshadows.model.card import Card, read_card
from deepshadows.model.metrics import MEASURES, Judged, judge
from deepshadows.model.scorer import load_scorer
from deepshadows.outcomes import Summary, UsageError
from deepshadows.settings import Finetune, Recipe
from deepshadows.verbs.training_plan import order_of, read_recipe
from deepshadows.verbs.training_run import Trained, carry_out, figures_of, lines_of
from deepshadows.verbs.training_set import TrainingSet, read_training_set

Figures = dict[str, float | int | None]
FEW_ROWS = 100
"""Held-out rows below which an interval of the accuracy is some 0.1 wide or wider."""


def run(settings: Finetune) -> Summary:
    """Train a network further, write the new checkpoint, and compare the two.

    The network is taken as its card states it: calibration and threshold. The new one is calibrated anew.

    Raises
    ------
    UsageError
        The recipe is wrong, the network takes another field, stretch or bands than the cut-outs have, or the output
        folder holds another training.
    InputError
        The cut-outs or the network to start from cannot be used.
    HeldError
        Another driver works on this training.
    Failure
        The workers failed time and again.
    """
    started = time.monotonic()
    source = shipped.normalise(settings.from_checkpoint)
    card = read_card(source)
    order = order_of(settings, recipe_for(settings, card))
    remedy = (
        f"transfer the network, which takes {card.fov_arcsec:g} arcsec and {card.stretch}, to them on purpose with "
        "--fov-arcsec and --stretch"
    )
    data = read_training_set(order.cutouts, order.recipe, remedy)
    if card.bands != data.bands:
        raise UsageError(
            f"{order.cutouts}: cut-outs of bands {','.join(data.bands)}; the network {source} takes "
            f"{','.join(card.bands)}; make them again with these"
        )
    before = _judged(source, data)
    trained = carry_out(order, data)
    after = trained.card.metrics
    figures: dict[str, Any] = figures_of(trained)
    for name in MEASURES:
        for end in ("", "_lo", "_hi"):
            figures[f"before_{name}{end}"], figures[f"after_{name}{end}"] = before[name + end], after[name + end]
    text = [*lines_of(trained), *_transfer(card, data), *_table(trained, before), *_warnings(before, after)]
    text.append(f"checkpoint in {order.output} ({time.monotonic() - started:.0f} s)")
    return Summary(verb="finetune", output=order.output, figures=figures, text=tuple(text))


def recipe_for(settings: Finetune, card: Card) -> Recipe:
    """The recipe with the layers of the flags, and with field and stretch of the flags or else of the card.

    A recipe that says otherwise is a `UsageError`: only a flag can transfer a network to another field.
    """
    recipe = read_recipe(settings.recipe)
    values: dict[str, Any] = {} if settings.layers is None else {"trainable": settings.layers}
    if settings.layers == "output":
        values["epochs"] = 1
    for name in ("fov_arcsec", "stretch"):
        wanted = getattr(settings, name)
        values[name] = getattr(card, name) if wanted is None else wanted
        stated = getattr(recipe, name)
        if name in recipe.model_fields_set and stated != values[name]:
            raise UsageError(
                f"recipe {settings.recipe}: {name} is {stated}, but that of the network is {values[name]}; leave it "
                f"out of the recipe, or transfer the network on purpose with --{name.replace('_', '-')} {stated}"
            )
    return recipe.model_copy(update=values)


def _judged(source: str, data: TrainingSet) -> Figures:
    """Measures of the network as it is, on the rows held out."""
    scorer = load_scorer(source, precision="exact", threads=len(os.sched_getaffinity(0)))
    held = data.examples.validation
    probabilities = scorer.score(data.examples.images[held]).p_lsbg.astype(np.float64)
    rows = Judged(probabilities=probabilities, labels=data.examples.labels[held])
    return judge(rows, scorer.card.threshold, calibrated_at=scorer.card.prevalence)


def _transfer(card: Card, data: TrainingSet) -> list[str]:
    if (card.fov_arcsec, card.stretch) == (data.fov_arcsec, data.stretch):
        return []
    return [
        f"transferred on purpose from {card.fov_arcsec:g} arcsec, {card.stretch} to {data.fov_arcsec:g} arcsec, "
        f"{data.stretch}: the new card states these"
    ]


def _table(trained: Trained, before: Figures) -> list[str]:
    """Before beside after, with 95 % intervals."""
    after = trained.card.metrics
    lines = [f"on the {before['n']} rows held out:", f"{'':>12}  {'before':<26}after"]
    lines += [f"{name:>12}  {_cell(name, before):<26}{_cell(name, after)}" for name in MEASURES]
    return [*lines, "(these rows also chose the epoch and the calibration: `evaluate` on others judges more strictly)"]


def _cell(name: str, figures: Figures) -> str:
    value, low, high = figures[name], figures[f"{name}_lo"], figures[f"{name}_hi"]
    if value is None:
        return "not defined"
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None else "")


def _warnings(before: Figures, after: Figures) -> list[str]:
    warnings = []
    was, now = before["auc"], after["auc"]
    assert was is not None and now is not None  # both classes are held out
    if now <= was:
        warnings.append(
            f"warning: not better than before (AUC {was:.3f}, now {now:.3f}): stay with the old network, or give more "
            "cut-outs, or let fewer layers learn with --layers head or output"
        )
    if (rows := before["n"]) is not None and rows < FEW_ROWS:
        warnings.append(f"warning: {rows} rows judge roughly: look at the intervals, or hold out more labels")
    return warnings
