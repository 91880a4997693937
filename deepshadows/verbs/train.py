"""`train`: labelled cut-outs to a checkpoint. A rerun goes on from the last whole epoch."""

from __future__ import annotations

import time

from deepshadows.model.card import read_card
from deepshadows.model.metrics import MEASURES
from deepshadows.outcomes import Summary, UsageError
from deepshadows.settings import Train
from deepshadows.verbs.training_plan import Order, order_of, read_recipe
from deepshadows.verbs.training_run import carry_out, figures_of, lines_of
from deepshadows.verbs.training_set import TrainingSet, read_training_set


def run(settings: Train) -> Summary:
    """Train a network and write its checkpoint.

    Raises
    ------
    UsageError
        The recipe is wrong, does not fit the cut-outs or the checkpoint to start from, or the output folder holds
        another training.
    InputError
        The cut-outs or the checkpoint to start from cannot be used.
    HeldError
        Another driver works on this training.
    Failure
        The workers failed time and again.
    """
    started = time.monotonic()
    order = order_of(settings, read_recipe(settings.recipe))
    data = read_training_set(order.cutouts, order.recipe)
    _check_start(order, data)
    trained = carry_out(order, data)
    figures = figures_of(trained)
    shown = ", ".join(f"{name} {value:.3f}" for name in MEASURES if (value := figures[name]) is not None)
    *lines, epochs = lines_of(trained)
    text = [
        *lines,
        f"{epochs}; on the validation rows: {shown}",
        f"checkpoint in {order.output} ({time.monotonic() - started:.0f} s)",
    ]
    if figures["auc"] is not None and figures["auc"] < 0.6:
        text.append("the network is hardly better than chance: give more cut-outs or epochs")
    return Summary(verb="train", output=order.output, figures=figures, text=tuple(text))


def _check_start(order: Order, data: TrainingSet) -> None:
    """The network to start from must take what the cut-outs are."""
    if order.start is None:
        return
    card = read_card(order.start)
    if (card.fov_arcsec, card.stretch, card.bands) != (data.fov_arcsec, data.stretch, data.bands):
        raise UsageError(
            f"--from {order.start}: its network takes {card.fov_arcsec} arcsec, {card.stretch}, "
            f"{','.join(card.bands)}; the cut-outs are {data.fov_arcsec} arcsec, {data.stretch}, "
            f"{','.join(data.bands)}; make them again to fit, or use `deepshadows finetune`"
        )
