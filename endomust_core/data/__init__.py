"""Data sets on disk → samples: colour and true depth as numpy, one file per data set."""

from dataclasses import dataclass

import numpy as np


class DataError(ValueError):
    """A folder does not hold the data set it is said to hold; the message shows the expected layout."""


@dataclass(frozen=True)
class Sample:
    """One image with its truth: rgb (H, W, 3) uint8; depth (H, W) float32 [m], NaN where unknown."""

    name: str  # where it came from
    group: str  # sequence, scene or domain: what scores are averaged over
    rgb: np.ndarray
    depth: np.ndarray


def open_dataset(spec):
    """`NAME:/path` → an iterable of Samples.

    Names: simcol3d, scenes (from pretraining), rendered (from `endomust render`).
    """
    name, _, path = spec.partition(":")
    if name == "simcol3d":
        from endomust_core.data.simcol3d import SimCol3D as dataset
    elif name == "scenes":
        from endomust_core.data.rendered import Scenes as dataset
    elif name == "rendered":
        from endomust_core.data.rendered import RenderedFolder as dataset
    else:
        raise DataError(f"unknown data set {name!r}; write one of simcol3d:/path, scenes:/path, rendered:/path")
    if not path:
        raise DataError(f"{spec}: say where it lies, as in {name}:/path")
    return dataset(path)
