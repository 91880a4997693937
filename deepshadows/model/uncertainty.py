"""How sure a score is: a posterior of the last layer, and the file that keeps it and the domain. No Ray.

Last-layer Laplace approximation (MacKay 1992; Daxberger et al. 2021, arXiv:2106.14806): near its optimum the
posterior of the last layer's weights is a Gaussian, so the variance of a logit is a quadratic form of what enters
that layer. It costs one small product of matrices an image.

Chosen by measurement: 5 networks trained anew on bootstrap samples of 800 simulated cut-outs, 700 others to judge. How
well the error ranks wrong decisions (AUROC), the share of two further networks' p_lsbg within p +- err (0.68 wanted),
and the cost in passes of the network:

    this, 64 directions          0.826  0.68  1.1
    this, 16 directions          0.826  0.71
    p (1 - p)                    0.825  no scale of its own
    3 networks                   0.828  0.38  3
    8 turns and flips            0.816  0.34  8       (only where 0.02 < p < 0.98: 0.819, 0.28, 6.8)
    16 dropouts of the features  0.804  0.37  about 5

`RANK`, 32, lies between the two that were measured.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepshadows import storage
from deepshadows.model import domain
from deepshadows.model.card import UNCERTAINTY_NAME, Card
from deepshadows.model.checkpoint import read_tensors
from deepshadows.model.domain import SUMMARIES, Domain
from deepshadows.model.network import HIDDEN, DeepShadowsNet, in_batches
from deepshadows.outcomes import InputError

RANK = 32
"""Directions that are kept; what the others add on average goes into the floor."""
FIT_ROWS = 4000
_EVIDENCE_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """What makes p_lsbg_err and the flag OUT_OF_DOMAIN.

    Attributes
    ----------
    factor : float32 (RANK, 1024)
        The variance of the calibrated logit is |factor @ hidden - offset|^2 + floor.
    offset : float32 (RANK,)
    floor : float
    domain : Domain
    """

    factor: NDArray[np.float32]
    offset: NDArray[np.float32]
    floor: float
    domain: Domain


def fit(net: DeepShadowsNet, card: Card, images: NDArray[np.uint8]) -> Uncertainty:
    """Fit uncertainty and domain to a trained network.

    Parameters
    ----------
    net : DeepShadowsNet
        As trained, of one output; it is put into evaluation mode.
    card : Card
        Its calibration is used.
    images : uint8 (N, 64, 64, 3)
        The training images, at least 2.
    """
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), FIT_ROWS)).astype(np.intp)]
    hidden = in_batches(net, chosen, net.hidden_layer).astype(np.float64)
    weight = net.output.weight.detach().double().cpu().numpy()[0]
    bias = float(net.output.bias.detach())
    p = card.probabilities((hidden @ weight + bias).astype(np.float32)).astype(np.float64)
    share = p * (1 - p) * (len(images) / len(chosen))
    total = max(float(share.sum()), 1e-12)
    mean = share @ hidden / total
    centred = hidden - mean
    values, vectors = np.linalg.eigh(centred.T @ (centred * share[:, None]))
    values = np.clip(values, 0, None)
    prior = _prior_precision(values, card.calibration.slope * weight)
    variances = 1 / (values + prior)
    projected = centred @ vectors
    parts = variances * (projected**2).mean(axis=0)  # what each direction adds to the mean variance
    kept = np.sort(np.argsort(parts)[::-1][:RANK])
    factor = (vectors[:, kept] * np.sqrt(variances[kept])).T
    floor = 1 / (total + prior) + float(np.delete(parts, kept).sum())
    half = factor.astype(np.float16).astype(np.float32)  # as it is stored
    return Uncertainty(
        factor=half,
        offset=(half @ mean).astype(np.float32),
        floor=floor,
        domain=domain.fit(images),
    )


def _prior_precision(values: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Of the weights, from the evidence (MacKay 1992): well-determined directions over |weight|^2."""
    precision = 1.0
    for _ in range(_EVIDENCE_STEPS):
        determined = float((values / (values + precision)).sum())
        precision = max(determined, 1e-3) / max(float(weight @ weight), 1e-12)
    return precision


def write(url: str, fitted: Uncertainty, card: Card) -> Card:
    """Write `uncertainty.safetensors` into the folder `url`; returns the card with its sha256, to be written last."""
    tensors = {
        "factor": torch.from_numpy(fitted.factor).half(),
        "offset": torch.from_numpy(fitted.offset),
        "floor": torch.tensor([fitted.floor], dtype=torch.float64),
        **{f"domain.{name}": torch.from_numpy(values) for name, values in vars(fitted.domain).items()},
    }
    data = safetensors.torch.save(tensors)
    storage.write(storage.join(url, UNCERTAINTY_NAME), data)
    return card.model_copy(update={"uncertainty_sha256": hashlib.sha256(data).hexdigest()})


def read(url: str, card: Card) -> Uncertainty | None:
    """What `write` wrote; None where the card states none.

    Raises
    ------
    InputError
        The file is missing, is not the one that the card describes, or does not fit this version.
    """
    if not card.uncertainty_sha256:
        return None
    return _from_tensors(*read_tensors(url, UNCERTAINTY_NAME, card.uncertainty_sha256))


def _from_tensors(tensors: dict[str, Tensor], source: str) -> Uncertainty:
    width = len(SUMMARIES)
    rank = len(tensors["offset"]) if "offset" in tensors else 0
    shapes = {
        "factor": (rank, HIDDEN),
        "offset": (rank,),
        "floor": (1,),
        "domain.mean": (width,),
        "domain.whitening": (width, width),
        "domain.forms": (2, width + 1, width + 1),
        "domain.typical": (3,),
        "domain.limits": (3,),
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        raise InputError(f"{source}: tensors {found} do not fit; this version takes {shapes}")
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise InputError(f"{source}: holds values that are not finite; train again")
    return Uncertainty(
        factor=tensors["factor"].float().numpy(),
        offset=tensors["offset"].float().numpy(),
        floor=float(tensors["floor"]),
        domain=Domain(
            **{
                name.removeprefix("domain."): tensor.double().numpy()
                for name, tensor in tensors.items()
                if name.startswith("domain.")
            }
        ),
    )
