"""Losses for learning from true depth and true motion. Depth B×1×H×W [m], masks B×1×H×W bool; each loss is (B,)."""

import torch
import torch.nn.functional as F

from endomust_core.learning.geometry import rotation_matrix
from endomust_core.learning.losses import masked_mean


def log_depth_losses(log_depth, true_depth, mask):
    """{shape, scale, gradient} of the error e = log(depth) - log(true depth).

    shape: mean |e - mean e|, blind to a common factor; scale: |mean e|; gradient: |∂e| at strides 1, 2, 4, 8
    (MegaDepth, Li and Snavely 2018), which sharpens edges and flattens surfaces.
    """
    error, offset = _log_error(log_depth, true_depth, mask)
    gradient = 0.0
    for stride in (1, 2, 4, 8):
        e, m = error[..., ::stride, ::stride], mask[..., ::stride, ::stride]
        gradient = gradient + masked_mean((e[..., 1:] - e[..., :-1]).abs().clamp(max=1), m[..., 1:] & m[..., :-1])
        gradient = gradient + masked_mean(
            (e[..., 1:, :] - e[..., :-1, :]).abs().clamp(max=1), m[..., 1:, :] & m[..., :-1, :]
        )
    return {
        "shape": masked_mean((error - offset[:, None, None, None]).abs(), mask),
        "scale": offset.abs(),
        "gradient": gradient,
    }


def scale_agreement(log_depth, true_depth, mask):
    """|mean e of a sample - mean e of its partner|, (B,); sample i of the first half is the partner of i of the second.

    A network may misjudge the size of a scene, but it should do so alike in every image of it: this is what flickers.
    """
    _, offset = _log_error(log_depth, true_depth, mask)
    return (offset - offset.roll(len(offset) // 2)).abs()


def _log_error(log_depth, true_depth, mask):
    """e = log(depth) - log(true depth), 0 outside the mask, and its mean (B,)."""
    error = torch.where(mask, log_depth - torch.log(true_depth.clamp(min=1e-4)), 0.0)
    return error, masked_mean(error, mask)


def motion_field(depth, intrinsics, rotation, translation):
    """Where a rigid motion carries the pixels: B×2×h×w in image widths and heights.

    depth B×1×h×w [m]; intrinsics (B, 4) normalised; rotation (B, 3, 3), translation (B, 3) [m].
    """
    _, _, height, width = depth.shape
    rows, columns = (torch.arange(side, device=depth.device) + 0.5 for side in (height, width))
    v, u = torch.meshgrid(rows / height, columns / width, indexing="ij")
    fx, fy, cx, cy = (intrinsics[:, i, None, None] for i in range(4))
    rays = torch.stack(((u - cx) / fx, (v - cy) / fy, torch.ones_like(fx).expand(-1, height, width)), 1)
    points = rotation @ (rays * depth).flatten(2) + translation[:, :, None]
    z = points[:, 2].clamp(min=1e-3)
    moved = torch.stack(
        (points[:, 0] / z * fx.view(-1, 1) + cx.view(-1, 1), points[:, 1] / z * fy.view(-1, 1) + cy.view(-1, 1)), 1
    )
    return moved.view(-1, 2, height, width) - torch.stack((u, v))


def motion_losses(pose, true_rotation, true_translation, intrinsics, depth, mask):
    """{field, rotation, translation, intrinsics} of a predicted Pose against the truth.

    field: mean length of the difference of the two motion fields, in 1/1000 of the image, saturating for wild
    errors; it weighs
    rotation and translation as the image does. rotation [10 mrad], translation [mm]: mean absolute differences.
    true_rotation (B, 3) axis times angle, true_translation (B, 3) [m], intrinsics (B, 4), depth of the current view.
    """
    truth = motion_field(depth, intrinsics, rotation_matrix(true_rotation), true_translation)
    guess = motion_field(depth, intrinsics, rotation_matrix(pose.rotation), pose.translation)
    error = 1e3 * (guess - truth).norm(dim=1, keepdim=True)
    return {
        "field": masked_mean(F.softsign(error / 50) * 50, mask),
        "rotation": 100 * (pose.rotation - true_rotation).abs().mean(1),
        "translation": 1e3 * (pose.translation - true_translation).abs().mean(1),
        "intrinsics": (pose.intrinsics - intrinsics).abs().mean(1),
    }
