"""What is to be trained, and whether an output folder holds that training, finished or not. Imports no Ray."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from deepshadows import storage
from deepshadows.model import shipped
from deepshadows.model.card import CARD_NAME, Card, read_card
from deepshadows.outcomes import InputError, UsageError
from deepshadows.settings import RECIPES, Finetune, Recipe, Train, parse_toml

STATE_FOLDER = "training"
"""Below the output while the training is not finished: its plan, its lease, and Ray Train's storage."""
PLAN_NAME = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Order:
    """A training that is wanted. Addresses are absolute."""

    cutouts: str
    output: str
    recipe: Recipe
    start: str | None
    """Checkpoint to start from."""
    workers: int
    min_workers: int
    no_progress_s: int
    gpus: bool
    address: str | None


def order_of(settings: Train | Finetune, recipe: Recipe) -> Order:
    """What the flags ask for."""
    if (settings.min_workers or 1) > settings.workers:
        raise UsageError(f"--min-workers {settings.min_workers}: more than --workers {settings.workers}")
    return Order(
        cutouts=storage.normalise(settings.cutouts),
        output=storage.normalise(settings.output),
        recipe=recipe,
        start=settings.from_checkpoint and shipped.normalise(settings.from_checkpoint),
        workers=settings.workers,
        min_workers=settings.min_workers or settings.workers,
        no_progress_s=settings.no_progress_s,
        gpus=settings.gpus,
        address=settings.address,
    )


def read_recipe(name: str) -> Recipe:
    """A recipe by name, or from a TOML file."""
    if name in RECIPES:
        return RECIPES[name]
    return Recipe.resolve(parse_toml(storage.read(storage.normalise(name)).decode(errors="replace"), name), name)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What makes a training this one: an output folder belongs to one plan."""

    recipe: dict[str, Any]
    fingerprint: str
    from_weights_sha256: str | None

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()

    def is_of(self, card: Card) -> bool:
        """True where `card` is what this plan gives; settings that it does not know yet had their defaults."""
        made = card.training
        return (
            made is not None
            and (made.fingerprint, made.from_weights_sha256) == (self.fingerprint, self.from_weights_sha256)
            and {**Recipe().model_dump(), **card.recipe} == self.recipe
        )


def finished(output: str, plan: Plan) -> Card | None:
    """The card, where this very training is done; None where the folder holds no checkpoint."""
    if not storage.exists(storage.join(output, CARD_NAME)):
        return None
    card = read_card(output)
    if not plan.is_of(card):
        raise UsageError(
            f"{output}: holds checkpoint {card.name!r} of another training (other cut-outs, recipe or start); choose "
            "another --output"
        )
    return card


def claim(output: str, plan: Plan) -> str | None:
    """Write the plan, or find the same one there: then the training goes on."""
    address = storage.join(output, STATE_FOLDER, PLAN_NAME)
    if storage.create(address, plan.to_json()):
        return None
    try:
        found = json.loads(storage.read(address))
        found = {**found, "recipe": Recipe().model_dump() | found.get("recipe", {})}  # new fields: defaults
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{address}: damaged; remove {storage.join(output, STATE_FOLDER)} to train anew") from error
    if found != asdict(plan):
        raise UsageError(
            f"{output}: an unfinished training with other cut-outs, recipe or start is here; choose another --output "
            f"or remove {storage.join(output, STATE_FOLDER)}"
        )
    return "an interrupted training was taken up again"
