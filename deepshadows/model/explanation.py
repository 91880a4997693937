"""What a network looked at: heat maps by Grad-CAM and HiResCAM. torch; no Ray, no files.

Both weigh the activation of the last convolution (16x16, after its ReLU) with the gradient of a class's score, sum over
the channels and cut off at zero, so that what speaks against the class is not shown. Grad-CAM (Selvaraju et al. 2017,
arXiv:1610.02391; the paper's choice) takes one weight a channel, the mean gradient. This network judges by place, with
a dense layer on the flattened activation, and the mean forgets the place: of 100 simulated LSBGs, two trained networks
gave 21 and 46 empty maps, and 3 to 4 % of the heat in the central 14 % of the image. HiResCAM (Draelos & Carin 2020,
arXiv:2011.08891) multiplies place by place: none was empty, and 63 and 66 % of the heat was central.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deepshadows.model.network import SIZE_PIX, DeepShadowsNet, decided, to_input
from deepshadows.settings import HeatMap

BATCH = 128


Classes = NDArray[np.integer]


def heat_maps(
    net: DeepShadowsNet, images: NDArray[np.uint8], method: HeatMap, classes: Classes | None = None
) -> NDArray[np.float32]:
    """Where in each image the last convolution found what speaks for a class.

    Parameters
    ----------
    net : DeepShadowsNet
        In any mode and on any device; left as it was, without gradients.
    images : uint8 (N, 64, 64, 3)
    method : str
        grad-cam or hires-cam.
    classes : int (N,), optional
        Class to explain: 0 artifact or 1 LSBG (the score is the logit, or minus it); with three outputs 0, 1 or 2.
        Without it, the one that the network decides on.

    Returns
    -------
    float32 (N, 64, 64)
        Enlarged bilinearly and divided by its maximum, from 0 to 1; all zero where nothing speaks for the class.
    """
    device = net.output.weight.device
    maps = [np.empty((0, SIZE_PIX, SIZE_PIX), np.float32)]
    mode = net.training
    net.eval()
    try:
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            x_NCHW = to_input(torch.from_numpy(images[part]).to(device))
            wanted = None if classes is None else torch.from_numpy(np.asarray(classes[part], np.int64)).to(device)
            maps.append(_maps(net, x_NCHW, method, wanted).cpu().numpy())
    finally:
        net.train(mode)
    return np.concatenate(maps)


def _maps(net: DeepShadowsNet, x_NCHW: Tensor, method: HeatMap, classes: Tensor | None) -> Tensor:
    with torch.no_grad():
        a_NCHW = net.last_activation(x_NCHW)
    a_NCHW.requires_grad_()
    with torch.enable_grad():
        logits = net.from_last_activation(a_NCHW)
        total = _scores(logits, decided(logits) if classes is None else classes).sum()
    (gradient,) = torch.autograd.grad(total, a_NCHW)
    with torch.no_grad():
        weights = gradient.mean((2, 3), keepdim=True) if method == "grad-cam" else gradient
        heat = (weights * a_NCHW).sum(1, keepdim=True)
        if method == "hires-cam":  # max pooling gives a gradient to one place in four: join the speckles
            heat = F.avg_pool2d(F.pad(heat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        heat = torch.relu(heat)
        heat = F.interpolate(heat, size=(SIZE_PIX, SIZE_PIX), mode="bilinear", align_corners=False).squeeze(1)
        highest = heat.amax((1, 2), keepdim=True)
        return torch.where(highest > 0, heat / highest, 0.0).float()


def _scores(logits: Tensor, classes: Tensor) -> Tensor:
    """The score of one class of each row, shape (N,)."""
    if logits.ndim == 1:
        return torch.where(classes == 1, logits, -logits)
    return logits.gather(1, classes[:, None]).squeeze(1)
