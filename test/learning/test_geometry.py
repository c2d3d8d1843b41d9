"""Camera geometry on small worlds with known answers: a tilted plane, a 10° turn, a known shift, rendered frames."""

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from endomust_core.learning.geometry import (  # noqa: E402
    back_project,
    consistency_visibility,
    count_visibility,
    flow_positions,
    in_view,
    intrinsics_matrix,
    inverse_pose,
    pose_matrix,
    project,
    rigid_positions,
    rigid_warp,
    rotation_matrix,
    sample,
    warp_by_flow,
)
from endomust_core.simulation import renderer  # noqa: E402

TARTANAIR = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tartanair_pair"
SIZE = (6, 8)
K = torch.tensor([[[7.0, 0, 3.4], [0, 6.0, 2.7], [0, 0, 1]]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def moved(turn=(0.0, 0.0, 0.0), shift=(0.0, 0.0, 0.0)):
    return pose_matrix(torch.tensor([turn], dtype=torch.float64), torch.tensor([shift], dtype=torch.float64))


def still(size=SIZE):
    """Positions of the pixels themselves."""
    return flow_positions(torch.zeros(1, 2, *size, dtype=torch.float64))


# --- motion and cameras


def test_a_turn_of_10_degrees_about_y():
    c, s = math.cos(math.radians(10)), math.sin(math.radians(10))
    turn = rotation_matrix(torch.tensor([[0.0, math.radians(10), 0.0]], dtype=torch.float64))[0]
    torch.testing.assert_close(turn, torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64))


def test_rotation_is_the_matrix_exponential():
    v = torch.randn(20, 3, dtype=torch.float64) * torch.logspace(-9, 0.4, 20, dtype=torch.float64)[:, None]
    x, y, z = v.unbind(1)
    o = torch.zeros_like(x)
    cross = torch.stack((o, -z, y, z, o, -x, -y, x, o), 1).view(-1, 3, 3)
    torch.testing.assert_close(rotation_matrix(v), torch.matrix_exp(cross), atol=1e-12, rtol=1e-12)


def test_the_gradient_of_a_rotation_is_exact_at_zero_and_elsewhere():
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(rotation_matrix, zero)[0, :, :, 0]  # 3×3×3
    assert jacobian[2, 1, 0] == 1 and jacobian[1, 2, 0] == -1 and jacobian.abs().sum() == 6  # the three generators
    single = torch.zeros(1, 3, requires_grad=True)
    rotation_matrix(single).sum().backward()
    assert torch.isfinite(single.grad).all()
    assert torch.autograd.gradcheck(rotation_matrix, (torch.randn(2, 3, dtype=torch.float64, requires_grad=True),))


def test_a_pose_and_its_inverse():
    turn, shift = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    T = pose_matrix(turn, shift)
    torch.testing.assert_close(T[:, :3, 3], shift)
    assert T[:, 3].tolist() == [[0, 0, 0, 1]] * 4
    torch.testing.assert_close(inverse_pose(T), torch.linalg.inv(T))


def test_intrinsics_of_a_whole_image_have_integer_pixel_centres():
    matrix = intrinsics_matrix(torch.tensor([[0.5, 1.0, 0.5, 0.25]]), (6, 8))
    # The middle of 8 columns lies between the fourth and the fifth: 3.5. A quarter of 6 rows is 1.5 rows, or y = 1.
    assert matrix[0].tolist() == [[4, 0, 3.5], [0, 6, 1], [0, 0, 1]]


# --- points and positions


def test_points_of_a_tilted_plane_lie_on_it():
    normal, distance = torch.tensor([0.3, -0.2, 0.93], dtype=torch.float64), 0.05
    rays = back_project(torch.ones(1, 1, *SIZE, dtype=torch.float64), K)
    depth = distance / (rays * normal.view(1, 3, 1, 1)).sum(1, keepdim=True)
    points = back_project(depth, K)
    height = (points * normal.view(1, 3, 1, 1)).sum(1)
    torch.testing.assert_close(height, torch.full_like(height, distance))
    assert depth.max() / depth.min() > 1.2  # it is tilted
    positions, z = project(points, K)
    torch.testing.assert_close(positions, still())
    torch.testing.assert_close(z, depth)


def test_by_hand():
    depth = torch.full((1, 1, *SIZE), 2.0, dtype=torch.float64)
    point = back_project(depth, K)[0, :, 5, 7]
    assert point.tolist() == pytest.approx([(7 - 3.4) / 7 * 2, (5 - 2.7) / 6 * 2, 2])
    positions, z = rigid_positions(depth, K, moved(shift=(0.5, -1.0, 2.0)))  # twice as far: nearer to the centre
    x, y = ((7 - 3.4) / 7 * 2 + 0.5) / 4 * 7 + 3.4, ((5 - 2.7) / 6 * 2 - 1) / 4 * 6 + 2.7
    assert positions[0, :, 5, 7].tolist() == pytest.approx([x, y])
    assert z[0, 0, 5, 7].item() == pytest.approx(4)


def test_a_turn_moves_the_centre_by_its_tangent_at_every_depth():
    k = torch.tensor([[[7.0, 0, 3.0], [0, 7.0, 2.0], [0, 0, 1]]], dtype=torch.float64)
    for distance in (0.01, 1.0, 100.0):
        depth = torch.full((1, 1, *SIZE), distance, dtype=torch.float64)
        positions, z = rigid_positions(depth, k, moved(turn=(0.0, math.radians(10), 0.0)))
        assert positions[0, :, 2, 3].tolist() == pytest.approx([3 + 7 * math.tan(math.radians(10)), 2])
        assert z[0, 0, 2, 3].item() == pytest.approx(distance * math.cos(math.radians(10)))


def test_rigid_positions_are_the_long_way_round():
    depth = 0.5 + torch.rand(3, 1, *SIZE, dtype=torch.float64)
    matrix = K.repeat(3, 1, 1) * (1 + 0.1 * torch.rand(3, 1, 1, dtype=torch.float64))
    matrix[:, 2] = K[:, 2]
    T = pose_matrix(*(0.1 * torch.randn(2, 3, 3, dtype=torch.float64)))
    points = back_project(depth, matrix).flatten(2)
    there = (T[:, :3, :3] @ points + T[:, :3, 3:]).view(3, 3, *SIZE)
    for short, long in zip(rigid_positions(depth, matrix, T), project(there, matrix), strict=True):
        torch.testing.assert_close(short, long)


def test_no_motion_moves_nothing():
    depth = 0.02 + 0.1 * torch.rand(1, 1, *SIZE, dtype=torch.float64)
    source = torch.rand(1, 3, *SIZE, dtype=torch.float64)
    warped, seen, z = rigid_warp(source, depth, K, moved())
    torch.testing.assert_close(warped, source)
    torch.testing.assert_close(z, depth)
    assert seen.all()


def test_what_lies_behind_the_camera_is_out_of_view_and_finite():
    depth = torch.full((1, 1, *SIZE), 0.05, requires_grad=True)
    T = moved(shift=(0.0, 0.0, -0.2)).float().requires_grad_()
    warped, seen, z = rigid_warp(torch.rand(1, 3, *SIZE), depth, K.float(), T)
    (warped.sum() + z.sum()).backward()
    assert not seen.any() and (z > 0).all()
    assert all(torch.isfinite(values).all() for values in (warped, depth.grad, T.grad))


# --- sampling


def test_sampling_by_hand():
    image = torch.arange(12, dtype=torch.float64).view(1, 1, 3, 4)

    def at(x, y, **keywords):
        return sample(image, torch.tensor([x, y], dtype=torch.float64).view(1, 2, 1, 1), **keywords).item()

    assert at(2, 1) == pytest.approx(6)
    assert at(2.25, 1.5) == pytest.approx(6 + 0.25 + 2)
    assert at(9, -3) == pytest.approx(3)  # the nearest pixel of the border
    assert at(9, -3, padding="zeros") == 0
    assert at(3.5, 1, padding="zeros") == pytest.approx(3.5)  # half of the 7 there


def test_view_ends_with_the_outermost_pixel_centres():
    x = torch.tensor([-0.1, 0.0, 7.0, 7.1, 3.0, 3.0, 3.0, float("nan")])
    y = torch.tensor([2.0, 0.0, 5.0, 2.0, -0.1, 5.1, 5.0, 2.0])
    seen = in_view(torch.stack((x, y)).view(1, 2, 1, 8), (6, 8))
    assert seen.flatten().tolist() == [False, True, True, False, False, False, True, False]


def test_a_known_shift_is_undone_by_its_flow():
    source = torch.rand(2, 3, *SIZE)
    target = torch.roll(source, shifts=(1, -2), dims=(2, 3))  # target(x, y) = source(x + 2, y - 1)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(2, 2, *SIZE)
    torch.testing.assert_close(warp_by_flow(source, flow)[:, :, 1:, :-2], target[:, :, 1:, :-2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_and_autocast_keep_the_digits_of_positions(dtype):
    image, depth = torch.rand(1, 3, 48, 64), 0.03 + 0.02 * torch.rand(1, 1, 48, 64)
    matrix, T = intrinsics_matrix(torch.tensor([[0.8, 1.0, 0.5, 0.5]]), (48, 64)), moved((0.02, 0.01, 0.1)).float()
    expected, _, _ = rigid_warp(image, depth, matrix, T)
    with torch.autocast("cpu", dtype):
        warped, _, _ = rigid_warp(image, depth, matrix, T)
        turn = rotation_matrix(torch.tensor([[0.02, 0.01, 0.1]]))
    assert warped.dtype == torch.float32
    torch.testing.assert_close(warped, expected, atol=0, rtol=0)
    torch.testing.assert_close(turn, T[:, :3, :3], atol=1e-7, rtol=0)
    assert rigid_positions(depth.to(dtype), matrix, T)[0].dtype == torch.float32


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(3)
    smooth = torch.rand(1, 2, 4, 5, dtype=torch.float64, generator=generator)
    depth = 1 + 0.2 * torch.rand(1, 1, 4, 5, dtype=torch.float64, generator=generator).requires_grad_()
    turn, shift = (torch.tensor([[0.02, -0.03, 0.01]], dtype=torch.float64) for _ in range(2))
    intrinsics = torch.tensor([[1.1, 1.3, 0.52, 0.47]], dtype=torch.float64)
    inputs = [smooth, depth, intrinsics, turn, shift]

    def warp(image, depth, intrinsics, turn, shift):
        warped, _, z = rigid_warp(image, depth, intrinsics_matrix(intrinsics, (4, 5)), pose_matrix(turn, shift))
        return warped, z

    # Bilinear sampling has kinks at pixel centres; these positions stay away from them.
    positions, _ = rigid_positions(depth, intrinsics_matrix(intrinsics, (4, 5)), pose_matrix(turn, shift))
    assert (positions - positions.round()).abs().min() > 1e-4
    assert torch.autograd.gradcheck(warp, [values.requires_grad_() for values in inputs])


# --- visibility


def test_every_pixel_is_visible_without_motion():
    flow = torch.zeros(2, 2, *SIZE)
    assert count_visibility(flow).all() and consistency_visibility(flow, flow).all()


def test_a_shift_uncovers_what_the_source_has_not_seen():
    backward = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, *SIZE)  # source(x) lies at target(x + 2, y - 1)
    expected = torch.zeros(1, 1, *SIZE)
    expected[..., :-1, 2:] = 1
    assert torch.equal(count_visibility(backward), expected)
    assert torch.equal(consistency_visibility(-backward, backward), expected)


def test_counts_are_shared_bilinearly():
    backward = torch.zeros(1, 2, 3, 4)
    backward[0, 0, 1, 1] = 0.25  # this pixel gives 3/4 to its own place and 1/4 to its neighbour on the right
    seen = count_visibility(backward, least=0.7)
    assert seen.all()
    seen = count_visibility(backward)
    assert seen[0, 0, 1, 1] == 0 and seen.sum() == 11
    assert count_visibility(backward, least=1.2)[0, 0, 1, 2] == 1  # 1 + 1/4


def test_occlusion_is_where_two_surfaces_land_on_one_place_and_none_on_another():
    forward, backward = torch.zeros(2, 1, 2, 6, 12)
    backward[:, 0, :, 4:6] = 4  # columns 4 and 5 move by 4 pixels, in front of 8 and 9; behind them nothing is known
    forward[:, 0, :, 8:10] = -4
    counted, closed = count_visibility(backward)[0, 0, 0], consistency_visibility(forward, backward)[0, 0, 0]
    assert (counted == 0).nonzero().flatten().tolist() == [4, 5]
    assert (closed == 0).nonzero().flatten().tolist() == [4, 5]  # they lead to the moved surface, which leads elsewhere


def test_the_tolerance_of_consistency_is_absolute_plus_relative():
    forward = torch.tensor([10.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 8, 40)
    for error, seen in ((1.9, True), (2.1, False)):  # 1 px + 5 % of about 20 px
        backward = torch.tensor([-10.0, error]).view(1, 2, 1, 1).expand(1, 2, 8, 40)
        assert consistency_visibility(forward, backward)[0, 0, 4, 5].item() == seen


def test_a_flow_that_is_not_finite_does_not_crash():
    flow = torch.zeros(1, 2, *SIZE)
    flow[0, 0, 2, 3], flow[0, 1, 3, 3], flow[0, 0, 4, 3] = float("nan"), float("inf"), -1e30
    seen = count_visibility(flow)
    assert (seen == 0).sum() == 3 and not torch.isnan(seen).any()
    assert not consistency_visibility(flow, flow)[0, 0, 2, 3]


# --- true scenes


def test_true_depth_and_motion_of_a_rendered_pair_give_its_true_flow():
    """A sinus is rigid, and its first seeds have no distortion: the flow of the renderer is that of the geometry."""
    drawn = renderer("sinus", (64, 80), seed=0, detail=128)
    first, second = drawn.at(0.0, 0.08), drawn.at(0.08, 0.16)
    camera = first.camera
    normalised = (camera.fx / 80, camera.fy / 64, (camera.cx + 0.5) / 80, (camera.cy + 0.5) / 64)
    matrix = intrinsics_matrix(torch.tensor([normalised]), (64, 80))
    T = torch.from_numpy(np.linalg.inv(second.T_world_camera) @ first.T_world_camera).float()[None]
    positions, z = rigid_positions(torch.from_numpy(first.depth)[None, None], matrix, T)
    flow = torch.from_numpy(first.flow).permute(2, 0, 1)[None]
    assert flow.norm(dim=1).median() > 1
    torch.testing.assert_close(positions, flow_positions(flow), atol=2e-4, rtol=0)
    torch.testing.assert_close(z[0, 0], torch.from_numpy(first.depth_next), atol=1e-6, rtol=1e-4)
    images = [torch.from_numpy(frame.rgb).permute(2, 0, 1)[None] / 255 for frame in (first, second)]
    warped, seen, _ = rigid_warp(images[1], torch.from_numpy(first.depth)[None, None], matrix, T)
    before, after = ((image - images[0]).abs().mean(1, keepdim=True)[seen].mean() for image in (images[1], warped))
    assert after < 0.6 * before  # what is left is light, noise and occlusion


@pytest.mark.skipif(not TARTANAIR.is_dir(), reason="needs the TartanAir pair")
def test_depth_and_motion_of_a_tartanair_pair_give_its_true_flow():
    load = lambda name: torch.from_numpy(np.load(TARTANAIR / name)).float()  # noqa: E731
    depth, flow = load("000000_left_depth.npy")[None, None], load("000000_000001_flow.npy").permute(2, 0, 1)[None]
    matrix = torch.tensor([[[320.0, 0, 320], [0, 320, 240], [0, 0, 1]]])
    poses = np.loadtxt(TARTANAIR / "pose_left.txt", max_rows=2)
    axes = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])  # forward, right, down → right, down, forward

    def world_from_camera(row):
        x, y, z, w = row[3:]
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        T = np.eye(4)
        T[:3, :3] = axes @ (np.eye(3) + 2 * w * cross + 2 * cross @ cross) @ axes.T
        T[:3, 3] = axes @ row[:3]
        return T

    T = torch.from_numpy(np.linalg.inv(world_from_camera(poses[1])) @ world_from_camera(poses[0])).float()[None]
    positions, _ = rigid_positions(depth, matrix, T)
    error = (positions - flow_positions(flow)).norm(dim=1)
    assert flow.norm(dim=1).median() > 2
    assert error.median() < 0.05 and error.quantile(0.9) < 0.5
