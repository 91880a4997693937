"""Weights and card on disk or S3: safetensors and JSON, checked against each other. No pickle, no Ray."""

from __future__ import annotations

import hashlib

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from deepshadows import storage
from deepshadows.model import shipped
from deepshadows.model.card import CARD_NAME, WEIGHTS_NAME, Card, read_card
from deepshadows.model.network import DeepShadowsNet
from deepshadows.outcomes import InputError, NotFoundError

_READABLE = (torch.float32, torch.float16)
"""Shipped weights are float16, half the bytes; they are computed with as float32."""


def save(url: str, net: DeepShadowsNet, card: Card, dtype: torch.dtype = torch.float32) -> Card:
    """Write `model.safetensors`, then `card.json` with its sha256: a folder with a card is whole.

    Parameters
    ----------
    dtype : torch.dtype
        Of the weights in the file, float32 or float16.

    Returns
    -------
    Card
        As written.

    Raises
    ------
    InputError
        A weight is not finite, or too large for `dtype`; nothing was written.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in weights_of(net).items()}
    if unfit := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"{url}: {unfit[0]} has values that {dtype} cannot hold; nothing was written")
    data = safetensors.torch.save(tensors)
    card = card.model_copy(update={"weights_sha256": hashlib.sha256(data).hexdigest()})
    storage.write(storage.join(url, WEIGHTS_NAME), data)
    storage.write(storage.join(url, CARD_NAME), card.model_dump_json(indent=2).encode())
    return card


def load(url: str) -> tuple[DeepShadowsNet, Card]:
    """The network, in evaluation mode and float32, and its card.

    Raises
    ------
    InputError
        Weights or card are missing, the weights are not those that the card describes, or they do not fit
        the architecture that it names.
    """
    card = read_card(url)
    tensors, address = read_tensors(url, WEIGHTS_NAME, card.weights_sha256)
    net = DeepShadowsNet()
    fill(net, tensors, address)
    return net.eval(), card


def read_tensors(url: str, name: str, sha256: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of one file of the checkpoint `url`, and where it lies.

    Raises
    ------
    InputError
        The file is missing, has another sha256 than the card states, or is no safetensors file.
    """
    address = storage.join(shipped.folder(url), name)
    try:
        data = storage.read(address)
    except NotFoundError as error:
        raise InputError(f"{url}: the checkpoint has a card but no {name}; copy it whole") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise InputError(
            f"{address}: sha256 {digest[:12]} is not that of the card ({sha256[:12] or 'none'}); the "
            "file is damaged or belongs to another card; copy the checkpoint again"
        )
    try:
        return safetensors.torch.load(data), address
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{address}: not a safetensors file: {error}") from error


def weights_of(net: DeepShadowsNet) -> dict[str, Tensor]:
    """Parameters and running statistics as contiguous tensors on the CPU; counters of batches are left out."""
    state = net.state_dict().items()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state if tensor.is_floating_point()}


def fill(net: DeepShadowsNet, tensors: dict[str, Tensor], source: str) -> None:
    """Copy `tensors` into `net`.

    Raises
    ------
    InputError
        Names, shapes or types are not those of the architecture, or a value is not finite.
    """
    expected = weights_of(net)
    if tensors.keys() != expected.keys():
        missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
        raise InputError(f"{source}: the tensors are not those of the architecture: missing {missing}, unknown {extra}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype not in _READABLE:
            raise InputError(
                f"{source}: {name} is {tensor.dtype} {tuple(tensor.shape)}, the architecture has "
                f"{expected[name].dtype} {tuple(expected[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{source}: {name} holds values that are not finite; train again")
    net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
