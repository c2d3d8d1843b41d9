"""A checkpoint or the folder of a run → a predictor that runs in PyTorch, for scoring before anything is exported.

It says what the exported bundle would say (up to rounding): the same preprocessing, the same sizes, inverse depth
[1/m] at the size of the image, T_prev_curr [m].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from endomust_core.bundle import resize_rgb, sha256_of
from endomust_core.learning.checkpoint import CheckpointError, load_checkpoint
from endomust_core.learning.networks.depth import DepthNetwork, inverse_depth, resize
from endomust_core.odometry import se3, so3_exp
from endomust_core.predictions import Motion, digest_of

CONFIG = "config.yaml"


class EagerPredictor:
    """Depth and, where there is one, pose network; see `endomust_core.predictions.Predictor`.

    size: (H,W) of the images both networks are given. encoder_size: (H,W) that the depth network sees instead, where
    the run says so; its answer still has the size of the image.
    """

    metric = False  # trained on rendered scenes or without ground truth: its metre is that of its training

    def __init__(
        self,
        depth: nn.Module,
        pose: nn.Module | None,
        size: tuple[int, int],
        encoder_size: tuple[int, int] | None = None,
        *,
        name: str,
        digest: str,
        path: str = "",
        version: str = "unreleased",
        device: str | torch.device = "cpu",
    ):
        self.device = torch.device(device)
        self.depth = depth.to(self.device).eval()
        self.pose = None if pose is None else pose.to(self.device).eval()
        self.size, self.encoder_size = tuple(size), encoder_size
        self.name, self.version, self.digest, self.path = name, version, digest, path
        self.backend = f"pytorch/{self.device.type}"

    @torch.inference_mode()
    def disparity(self, rgb: np.ndarray) -> np.ndarray:
        """(h,w,3) uint8 RGB -> (H,W) float32 inverse depth [1/m] at `size`."""
        image = self._tensor(rgb)
        image = resize(image, self.encoder_size) if self.encoder_size else image
        sigma = self.depth(image, scales=(0,), size=self.size)[0].float()
        config = self.depth.config
        return inverse_depth(sigma, config.min_depth, config.max_depth)[0, 0].cpu().numpy()

    @torch.inference_mode()
    def motion(self, previous_rgb: np.ndarray, rgb: np.ndarray) -> Motion | None:
        """Two images -> T_prev_curr (4,4) float64 [m] and intrinsics (4,); None without a pose network."""
        if self.pose is None:
            return None
        said = self.pose(self._tensor(previous_rgb), self._tensor(rgb))
        rotation, translation = (part[0].double().cpu().numpy() for part in (said.rotation, said.translation))
        intrinsics = None if said.intrinsics is None else said.intrinsics[0].double().cpu().numpy()
        return se3(so3_exp(rotation), translation), intrinsics

    def _tensor(self, rgb: np.ndarray) -> torch.Tensor:
        """(h,w,3) uint8 → 1×3×H×W in [0,1] at `size`, resized as the node resizes."""
        image = torch.from_numpy(np.ascontiguousarray(resize_rgb(rgb, self.size))).to(self.device)
        return image.permute(2, 0, 1)[None].float() / 255.0


def open_eager(path: str | Path, device: str = "cpu") -> EagerPredictor:
    """A run folder, or a depth checkpoint inside one, → predictor; CheckpointError names what is missing.

    Of a run it takes depth.pt, pose.pt where it lies beside, and the sizes in config.yaml. A checkpoint that was taken
    out of its run lacks the sizes; put its config.yaml beside it.
    """
    path = Path(path)
    folder, weights = (path, path / "depth.pt") if path.is_dir() else (path.parent, path)
    if not weights.is_file():
        raise CheckpointError(
            f"{path} holds no depth.pt, so there is nothing to score; give the folder of a run that `endomust train` "
            "or `endomust pretrain` wrote, one of its checkpoints, or a bundle"
        )
    name, size, encoder_size = sizes_of(folder)
    depth, _ = load_checkpoint(weights, "depth")
    motion = folder / "pose.pt"
    pose = load_checkpoint(motion, "pose")[0] if motion.is_file() else None
    digests = [sha256_of(file) for file in (weights, motion) if file.is_file()]
    multiple = 14 if isinstance(depth, DepthNetwork) else 32
    if any(side % multiple for side in encoder_size or size):
        raise CheckpointError(f"{folder / CONFIG} says {encoder_size or size}; {weights} takes multiples of {multiple}")
    sizes = [size, encoder_size] if encoder_size else [size]
    digest = digest_of(digests, sizes)
    return EagerPredictor(
        depth, pose, size, encoder_size, name=name, digest=digest, path=str(path), device=_checked_device(device)
    )


def sizes_of(folder: Path) -> tuple[str, tuple[int, int], tuple[int, int] | None]:
    """Name of a run, (H,W) of its images, and the (H,W) its depth network resizes them to, where it does."""
    record = folder / CONFIG
    if not record.is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}, which says at what size to run the networks; put it there")
    try:
        config = yaml.safe_load(record.read_text(encoding="utf-8"))
        name, size = str(config["name"]), tuple(int(side) for side in config["depth"]["size"])
        # `train` gives both networks one image and the depth network resizes it; `pretrain` knows one size only.
        images = tuple(int(side) for side in config["data"]["size"]) if "data" in config else size
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{record} is not the configuration of a run ({error}); take it from the run") from error
    return name, images, None if images == size else size


def _checked_device(device: str) -> torch.device:
    """The device, or CheckpointError with what there is: never another one in silence."""
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise CheckpointError(f"PyTorch cannot use the device '{device}' ({cause}); use --backend cpu") from error
    return chosen
