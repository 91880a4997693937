"""The card of a checkpoint: what its network takes, how its logits become probabilities. No torch, no Ray."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.special import expit

from deepshadows import storage
from deepshadows.model import shipped
from deepshadows.outcomes import AbsentError, InputError, NotFoundError

FORMAT_VERSION = 1
CARD_NAME = "card.json"
WEIGHTS_NAME = "model.safetensors"
UNCERTAINTY_NAME = "uncertainty.safetensors"
ARCHITECTURE = "deepshadows-cnn-1"
"""The network of `model.network`; another set of layers gets another name."""
PARAMETERS = {ARCHITECTURE: 4_220_385}
"""Known architectures and their parameters, counted as Keras does (with running statistics)."""
NORMALISATION = "uint8 / 255"
RESAMPLING = "bin2-mean or area/linear, north up, east left, version 1"
"""How pixels come to the field of an image: what `sky.cutouts.METHOD` says, which a test compares."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Calibration(_Frozen):
    """Platt scaling: p = 1 / (1 + exp(-(slope * logit + intercept)))."""

    slope: float = Field(1.0, gt=0, description="Factor on the logit.")
    intercept: float = Field(0.0, description="Added to the scaled logit.")


class Training(_Frozen):
    """What the weights were made from."""

    fingerprint: str = Field(description="sha256 of the training images, labels and split.")
    rows: int = Field(description="Labelled cut-outs used, training and validation together.")
    validation_rows: int = Field(description="Of these, held out to validate.")
    classes: dict[str, int] = Field(description="Rows of each class.")
    left_out: dict[str, int] = Field(default_factory=dict, description="Rows not used, and why.")
    seed: int = Field(description="Seed of weights, order and split.")
    split: str = Field(description="How validation rows were chosen.")
    epochs: int = Field(description="Epochs trained.")
    kept_epoch: int = Field(description="Epoch whose weights these are, from 1.")
    from_weights_sha256: str | None = Field(None, description="Weights that training started from.")
    arithmetic: str = Field("", description="What computed the steps: C; or torch, and on a CPU why not C.")


class Evaluation(_Frozen):
    """One look at a sample that must not steer the training: each is counted."""

    sample: str = Field(description="What was scored.")
    commit: str = Field(description="Of the code that scored it.")
    figures: dict[str, float] = Field(description="What was found.")


class Card(_Frozen):
    """Everything that is known about a set of weights; stored beside them as `card.json`."""

    format_version: int = Field(FORMAT_VERSION, description="Version of this layout.")
    name: str = Field(description="Name of the network.")
    architecture: str = Field(ARCHITECTURE, description="Layers; code and weights must agree on it.")
    parameters: int = Field(PARAMETERS[ARCHITECTURE], description="Count, as Keras counts.")
    classes: tuple[str, ...] = Field(("artifact", "lsbg"), description="Meaning of label 0, 1.")
    size_pix: int = Field(64, description="Side of an image.")
    fov_arcsec: float = Field(33.5, gt=0, description="Field of view of an image.")
    bands: tuple[str, ...] = Field(("z", "r", "g"), description="Bands of channels R, G, B.")
    resampling: str = Field(RESAMPLING, description="Method and version by which pixels come to that field.")
    stretch: str = Field("des-1", description="Version of the stretch from flux to uint8.")
    survey: str = Field("des", description="Survey that the training images imitate or come from.")
    normalisation: str = Field(NORMALISATION, description="From uint8 to the network's input.")
    prevalence: float = Field(0.5, gt=0, lt=1, description="Share of LSBGs at which p_lsbg is calibrated.")
    calibration: Calibration = Field(default_factory=Calibration, description="From logit to p_lsbg.")
    threshold: float = Field(0.5, gt=0, lt=1, description="p_lsbg from which an object counts as an LSBG.")
    recipe: dict[str, Any] = Field(default_factory=dict, description="Settings of the training.")
    training: Training | None = Field(None, description="What the weights were made from.")
    metrics: dict[str, float | int | None] = Field(default_factory=dict, description="On the validation rows.")
    evaluations: tuple[Evaluation, ...] = Field((), description="Every evaluation on labelled real sky, in order.")
    weights_sha256: str = Field("", description="sha256 of model.safetensors.")
    uncertainty_sha256: str = Field("", description="sha256 of uncertainty.safetensors; empty: there is none.")
    software: dict[str, str] = Field(default_factory=dict, description="Versions that made the weights.")

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Calibrated probability of an LSBG at a prevalence of `self.prevalence`.

        Parameters
        ----------
        logits : float32 (N,)
            Output of the network; NaN stays NaN.

        Returns
        -------
        float32 (N,)
            Each value depends on its own logit alone, bit for bit.
        """
        return np.asarray(expit(self._scaled(logits)), dtype=np.float32)

    def errors(self, logits: NDArray[np.float32], variances: NDArray[np.float32]) -> NDArray[np.float32]:
        """1-sigma uncertainty of p_lsbg: half of what lies between p one deviation below and one above.

        Parameters
        ----------
        logits : float32 (N,)
        variances : float32 (N,)
            Of the calibrated logit; NaN, where there is none, gives NaN.

        Returns
        -------
        float32 (N,)
            Below 0.5.
        """
        scaled, deviation = self._scaled(logits), np.sqrt(variances.astype(np.float64))
        return np.asarray((expit(scaled + deviation) - expit(scaled - deviation)) / 2, dtype=np.float32)

    def _scaled(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(self.calibration.slope * logits.astype(np.float64) + self.calibration.intercept)


def read_card(url: str) -> Card:
    """The card of the checkpoint in folder `url`, local or s3://, or of the shipped network of that name.

    Raises
    ------
    InputError
        There is none, it is no valid card, or it is of a version or architecture that this code does not know.
    """
    address = storage.join(shipped.folder(url), CARD_NAME)
    try:
        text = storage.read(address)
    except NotFoundError as error:
        raise AbsentError(
            f"{url}: no checkpoint here: {CARD_NAME} is missing; a checkpoint is a folder with {WEIGHTS_NAME} and "
            f"{CARD_NAME}, as `deepshadows train` writes it, or one of {', '.join(shipped.names())}"
        ) from error
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{address}: not valid JSON: {error}") from error
    return parse_card(values, address)


def parse_card(values: Any, source: str) -> Card:
    """Validate the fields of a card; an `InputError` names `source` and what is wrong."""
    if not isinstance(values, dict):
        raise InputError(f"{source}: a card is a JSON object, this is {type(values).__name__}")
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{source}: card format {version!r}; this version of deepshadows reads {FORMAT_VERSION}; upgrade it"
        )
    architecture = values.get("architecture")
    if not isinstance(architecture, str) or architecture not in PARAMETERS:
        raise InputError(f"{source}: unknown architecture {architecture!r}; this version knows {', '.join(PARAMETERS)}")
    try:
        card = Card.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
        raise InputError(f"{source}: not a valid card: " + "; ".join(lines)) from error
    stated = (card.parameters, card.size_pix, len(card.bands), card.normalisation, len(card.classes))
    if stated != (PARAMETERS[architecture], 64, 3, NORMALISATION, 2):
        raise InputError(
            f"{source}: parameters, size_pix, bands, normalisation and classes {stated} do not fit {architecture}"
        )
    if card.resampling != RESAMPLING:
        raise InputError(
            f"{source}: its network takes images resampled by {card.resampling!r}; this version of deepshadows gives "
            f"{RESAMPLING!r}; use the version that trained it, or train it again"
        )
    return card
