"""Differentiable camera geometry: back-project, project, sample, warp, visibility. Shapes B×…; K is 3×3 in pixels.

Positions are B×2×H×W pixels, x before y; the centre of the first pixel is (0, 0). T_b_a maps points from a to b.
Everything is computed in float32 (or float64 if the inputs are), also under autocast: positions need the digits.
"""

import math

import torch
import torch.nn.functional as F

NEAREST = 1e-4  # what is nearer, or behind the camera, is projected as if it were here: finite, and out of view


def single(tensor):
    """The tensor itself, as float32 if it is in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def matmul(a, b):
    """Product of small matrices …×n×k and …×k×m, which autocast leaves in full precision."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def rotation_matrix(axis_angle):
    """Axis times angle (B, 3) [rad] → (B, 3, 3), by Rodrigues' formula; its gradient is exact at zero, too."""
    v = single(axis_angle)
    angle = torch.linalg.vector_norm(v, dim=-1)[:, None, None]
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).view(-1, 3, 3)
    sine, cosine = torch.sinc(angle / math.pi), 0.5 * torch.sinc(angle / (2 * math.pi)).square()
    return torch.eye(3, dtype=v.dtype, device=v.device) + sine * cross + cosine * matmul(cross, cross)


def pose_matrix(rotation, translation):
    """Axis times angle (B, 3) [rad] and translation (B, 3) → T, B×4×4."""
    upper = torch.cat((rotation_matrix(rotation), single(translation)[:, :, None]), 2)
    last = upper.new_tensor((0.0, 0.0, 0.0, 1.0)).expand(len(upper), 1, 4)
    return torch.cat((upper, last), 1)


def inverse_pose(T):
    """T_b_a, B×4×4 → T_a_b."""
    T = single(T)
    back = T[:, :3, :3].transpose(1, 2)
    return torch.cat((torch.cat((back, -matmul(back, T[:, :3, 3:])), 2), T[:, 3:]), 1)


def intrinsics_matrix(intrinsics, size):
    """fx/W, fy/H, (cx + 0.5)/W, (cy + 0.5)/H, (B, 4), and size (H, W) → K, B×3×3 in pixels."""
    height, width = size
    fx, fy, cx, cy = (
        single(intrinsics) * intrinsics.new_tensor((width, height, width, height), dtype=torch.float32)
    ).unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack((fx, zero, cx - 0.5, zero, fy, cy - 0.5, zero, zero, one), -1).view(-1, 3, 3)


def back_project(depth, K):
    """Depth along the optical axis, B×1×H×W → points in the camera, B×3×H×W, in the unit of depth."""
    depth, K = single(depth), single(K)
    x, y = _axes(depth)
    fx, fy, cx, cy = _entries(K)
    return torch.cat((depth * ((x - cx) / fx), depth * ((y - cy) / fy), depth), 1)


def project(points, K):
    """Points in the camera, B×3×H×W → positions B×2×H×W [px] and z B×1×H×W, no nearer than `NEAREST`."""
    points, K = single(points), single(K)
    fx, fy, cx, cy = _entries(K)
    z = points[:, 2:].clamp(min=NEAREST)
    return torch.cat((points[:, :1] / z * fx + cx, points[:, 1:2] / z * fy + cy), 1), z


def rigid_positions(depth, K, T):
    """Where the pixels of the target lie in the source: positions B×2×H×W [px], their z there B×1×H×W.

    depth B×1×H×W of the target, T = T_source_target with its translation in the unit of depth. The same as
    project(T · back_project): K (R K⁻¹ p d + t) = d H p + K t, where H p is a sum of one row and one column.
    """
    depth, K, T = single(depth), single(K), single(T)
    x, y = _axes(depth)
    fx, fy, cx, cy = (entry.view(-1, 1) for entry in _entries(K))
    left, middle, right = T[:, :3, :3].unbind(2)  # columns of R; those of R K⁻¹ follow
    left, middle = left / fx, middle / fy
    homography = matmul(K, torch.stack((left, middle, right - left * cx - middle * cy, T[:, :3, 3]), 2))
    a, b, c, d = (column[:, :, None, None] for column in homography.unbind(2))
    points = torch.addcmul(d, a * x + (b * y + c), depth)
    z = points[:, 2:].clamp(min=NEAREST)
    return points[:, :2] / z, z


def sample(image, positions, padding="border"):
    """Image B×C×H×W at positions B×2×h×w [px], bilinear → B×C×h×w. padding: "border" or "zeros" outside."""
    image, positions = single(image), single(positions)
    height, width = image.shape[-2:]
    half = positions.new_tensor(((width - 1) / 2, (height - 1) / 2)).clamp(min=0.5)
    grid = positions.permute(0, 2, 3, 1) / half - 1
    return F.grid_sample(image, grid.to(image.dtype), mode="bilinear", padding_mode=padding, align_corners=True)


def in_view(positions, size):
    """Which positions B×2×h×w [px] lie in an image of size (H, W), to a hundredth of a pixel: B×1×h×w bool."""
    height, width = size
    x, y = positions.detach()[:, :1], positions.detach()[:, 1:]
    return (x >= -0.01) & (x <= width - 0.99) & (y >= -0.01) & (y <= height - 0.99)


def flow_positions(flow):
    """Optical flow B×2×H×W [px] → positions it leads to, B×2×H×W [px]."""
    flow = single(flow)
    x, y = _axes(flow)
    return flow + torch.cat((x.expand(1, 1, *flow.shape[2:]), y.expand(1, 1, *flow.shape[2:])), 1)


def warp_by_flow(image, flow):
    """The source seen from the target: image B×C×H×W at x + flow(x), flow B×2×H×W [px]."""
    return sample(image, flow_positions(flow))


def rigid_warp(source, depth, K, T):
    """The source seen from the target → (warped B×C×H×W, in view B×1×H×W bool, z in the source B×1×H×W).

    depth B×1×H×W of the target, T = T_source_target; both in one unit.
    """
    positions, z = rigid_positions(depth, K, T)
    seen = in_view(positions, source.shape[-2:]) & (z.detach() > NEAREST)
    return sample(source, positions), seen, z


@torch.no_grad()
def count_visibility(backward_flow, least=0.95):
    """Pixels of the target that the source reaches: B×1×H×W, 1 where their count is above `least`, else 0.

    backward_flow B×2×H×W [px] lives on the grid of the *source* and leads to the target. Every source pixel drops one
    count at the end of its flow, shared bilinearly among the four pixels there; what is occluded or out of the source's
    view gets little (Wang et al. 2018, as in AF-SfMLearner).
    """
    positions = flow_positions(backward_flow)
    batch, _, height, width = positions.shape
    wide, high = width + 4, height + 4  # a margin of two pixels takes what falls outside
    positions = torch.nan_to_num(positions, nan=-2.0)
    x = positions[:, 0].clamp(-2, width + 0.5)
    y = positions[:, 1].clamp(-2, height + 0.5)
    left, top = x.floor(), y.floor()
    right_share, low_share = x - left, y - top
    offset = torch.arange(batch, device=x.device)[:, None, None] * (wide * high)
    first = (offset + (top.long() + 2) * wide + left.long() + 2).flatten()
    both = right_share * low_share
    count = x.new_zeros(batch * high * wide)
    count.index_add_(0, first, (1 - right_share - low_share + both).flatten())
    count.index_add_(0, first + 1, (right_share - both).flatten())
    count.index_add_(0, first + wide, (low_share - both).flatten())
    count.index_add_(0, first + wide + 1, both.flatten())
    inside = count.view(batch, 1, high, wide)[:, :, 2:-2, 2:-2]
    return (inside > least).to(positions.dtype)


@torch.no_grad()
def consistency_visibility(forward, backward, absolute=1.0, relative=0.05):
    """Pixels of the target from which forward and backward flow lead there and back: B×1×H×W, 1 or 0.

    forward B×2×H×W [px] on the grid of the target leads to the source, backward the other way. A pixel is visible
    where |F(x) + B(x + F(x))| < absolute [px] + relative (|F| + |B|), and x + F(x) is in view.
    """
    forward = single(forward)
    positions = flow_positions(forward)
    back = sample(backward, positions)
    length = lambda flow: (flow[:, :1].square() + flow[:, 1:].square()).sqrt()  # noqa: E731
    closes = length(forward + back) < absolute + relative * (length(forward) + length(back))
    return (closes & in_view(positions, forward.shape[-2:])).to(forward.dtype)


def _axes(like):
    """Pixel coordinates x 1×1×1×W and y 1×1×H×1 of a map …×H×W."""
    height, width = like.shape[-2:]
    x = torch.arange(width, dtype=like.dtype, device=like.device)
    y = torch.arange(height, dtype=like.dtype, device=like.device)
    return x.view(1, 1, 1, -1), y.view(1, 1, -1, 1)


def _entries(K):
    """fx, fy, cx, cy of K, each B×1×1×1."""
    return (K[:, row, column].view(-1, 1, 1, 1) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
