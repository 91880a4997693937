"""How large the experiments are: the paper's protocol, and one that two CPU cores finish within the hour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deepshadows.settings import RECIPES, Recipe

A_THIRD = 1 / 3
"""The paper's largest share of wrong labels, 10,000 of 30,000, which it calls 33 %."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Numbers of objects and epochs of every experiment.

    Attributes
    ----------
    label : str
        What the report says of itself.
    cutouts, second_cutouts : int
        Largest number of objects of each class, of the survey and of the second one.
    recipe, transfer : Recipe
        Of the network, and of its fine-tuning on the second survey.
    targeted_epochs : int
        Of the trainings with targeted label noise; the paper gave them fewer.
    seeds : tuple of int
        Of the split study.
    uniform, targeted : tuple of float
        Shares of the training labels that are flipped.
    transfer_sizes : tuple of int
        Examples of the second survey; the last is the paper's.
    transfer_test : float
        Share of the second survey that is never trained on.
    """

    name: str
    label: str
    cutouts: int
    second_cutouts: int
    recipe: Recipe
    transfer: Recipe
    targeted_epochs: int
    seeds: tuple[int, ...] = (1, 3, 18, 33, 42, 96)
    uniform: tuple[float, ...] = (0.01, 0.05, 0.10, A_THIRD)
    targeted: tuple[float, ...] = (0.01, 0.05, 0.10)
    transfer_sizes: tuple[int, ...] = (40, 80, 160, 320)
    transfer_test: float = 0.72


SCALES: Mapping[str, Scale] = MappingProxyType(
    {
        "cpu": Scale(
            name="cpu",
            label="CPU scale: smaller samples, fewer epochs; not the paper's protocol",
            cutouts=2_000,
            second_cutouts=640,
            recipe=RECIPES["short"].model_copy(update={"name": "short, last epoch", "keep": "last"}),
            transfer=RECIPES["short"].model_copy(
                update={
                    "name": "short transfer",
                    "learning_rate": 1e-4,
                    "epochs": 30,
                    "batch_size": 16,
                    "keep": "last",
                }
            ),
            targeted_epochs=6,
        ),
        "paper": Scale(
            name="paper",
            label="Full scale: the paper's protocol",
            cutouts=20_000,
            second_cutouts=640,
            recipe=RECIPES["2020"],  # the paper's; it says nothing of the precision, and bfloat16 takes half the time
            transfer=RECIPES["finetune_paper"],
            targeted_epochs=20,
        ),
    }
)
