"""The last layer fitted to a user's own labels, for samples too small to train a layer by its gradient. No files.

On 100 real cut-outs, five folds five times over, accuracy .890 before and .944 after, AUC .951 and .978
(tests/benchmarks/bench_real_finetune.py).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from deepshadows.model.augmentation import turned
from deepshadows.model.network import DeepShadowsNet, in_batches

TURNS = 8
INVERSE_PENALTY = 0.02
"""Of an image, its turned copies together, beside half the squared length of the weights of standardised features."""


def fit_output(net: DeepShadowsNet, images: NDArray[np.uint8], labels: NDArray[np.int8]) -> None:
    """Replace the last layer, in place, by a logistic regression on what the hidden layer says of each image.

    Each image counts in its 8 flips and quarter turns.

    Parameters
    ----------
    images : uint8 (N, 64, 64, 3)
    labels : int8 (N,)
        Each class at least once.
    """
    views = [turned(torch.from_numpy(images), np.full(len(images), turn)).numpy() for turn in range(TURNS)]
    hidden = np.concatenate([in_batches(net, np.ascontiguousarray(view), net.hidden_layer) for view in views])
    scaler = StandardScaler().fit(hidden)
    regression = LogisticRegression(C=INVERSE_PENALTY / TURNS, max_iter=5000)
    regression.fit(scaler.transform(hidden), np.tile(labels, TURNS))
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    with torch.no_grad():
        net.output.weight.copy_(torch.from_numpy(weight))
        net.output.bias.copy_(torch.from_numpy(bias))
