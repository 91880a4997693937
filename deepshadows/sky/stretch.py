"""From flux to the 8-bit colours the network sees. numpy only: no Ray, no torch.

One implementation serves training, classification and simulation; its name goes into every card and shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from deepshadows.outcomes import InputError


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The asinh stretch of the Legacy Survey viewer (Lupton et al. 2004).

    With flux f in nanomaggies per pixel of `pixel_scale_arcsec`: v_b = s_b f_b + m, I = mean_b max(0, v_b),
    out_b = v_b asinh(Q I) / (sqrt(Q) I), clipped to [0, 1], then times 255 and truncated, as the viewer does.
    """

    name: str
    scales: Mapping[str, float]
    q: float = 20.0
    m: float = 0.03
    pixel_scale_arcsec: float

    def of_pixels(self, pixel_scale_arcsec: float) -> Stretch:
        """The same colours from flux per pixel of another scale."""
        factor = (self.pixel_scale_arcsec / pixel_scale_arcsec) ** 2
        scales = {band: scale * factor for band, scale in self.scales.items()}
        return replace(self, scales=scales, pixel_scale_arcsec=pixel_scale_arcsec)

    def apply(self, flux: NDArray[np.float32], bands: tuple[str, ...]) -> NDArray[np.uint8]:
        """Stretch.

        Parameters
        ----------
        flux : float32 (..., B)
            Nanomaggies per pixel of `pixel_scale_arcsec`, finite; the last axis follows `bands`.
        bands : tuple of str
            Band of each channel, e.g. ``("z", "r", "g")`` for R, G, B.

        Returns
        -------
        uint8 (..., B)
            Blank sky is 32 in every channel. Elementwise: a pixel's value does not depend on its neighbours.
        """
        planes = [flux[..., channel].reshape(-1) for channel in range(len(bands))]  # each at one stretch: twice as fast
        values = [
            plane * np.float32(self.scales[band]) + np.float32(self.m)
            for plane, band in zip(planes, bands, strict=True)
        ]
        intensity = np.maximum(values[0], 0)
        for value in values[1:]:
            intensity += np.maximum(value, 0)
        intensity /= np.float32(len(bands))
        intensity[intensity == 0] = np.float32(1e-6)
        gain = np.arcsinh(np.float32(self.q) * intensity)
        gain /= np.float32(np.sqrt(self.q)) * intensity
        out = np.empty((intensity.size, len(bands)), np.uint8)
        for channel, value in enumerate(values):
            value *= gain
            np.clip(value, 0, 1, out=value)
            value *= np.float32(255)
            out[:, channel] = value.astype(np.uint8)
        return out.reshape(flux.shape)


DES = Stretch(name="des-1", scales=MappingProxyType({"g": 6.0, "r": 3.4, "i": 2.8, "z": 2.2}), pixel_scale_arcsec=0.262)
HSC = Stretch(
    name="hsc-1",
    scales=MappingProxyType({"g": 30.0, "r": 17.0, "i": 14.0, "z": 11.0}),
    pixel_scale_arcsec=0.168,
)
STRETCHES = MappingProxyType({stretch.name: stretch for stretch in (DES, HSC)})


def stretch_named(name: str) -> Stretch:
    """The stretch a card or shard names; an unknown name is an `InputError`."""
    if name not in STRETCHES:
        raise InputError(f"unknown stretch {name!r}; this version knows {', '.join(sorted(STRETCHES))}")
    return STRETCHES[name]
