"""The renderer's truth must agree with itself: depth, flow and poses; known shapes; the same seed, the same bits."""

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from endomust_core.simulation import DOMAINS, render, renderer  # noqa: E402
from endomust_core.simulation.instruments import Capsule, hit_capsule  # noqa: E402
from endomust_core.simulation.optics import Lens, distort, undistort  # noqa: E402
from endomust_core.simulation.surfaces import Plane, Tube, march, normals  # noqa: E402
from endomust_core.simulation.textures import Texture, spectral_noise  # noqa: E402

SIZE = (128, 160)


@pytest.fixture(scope="module")
def sequences():
    return {domain: list(render(domain, 3, SIZE, seed=2, detail=256)) for domain in DOMAINS}


@pytest.mark.parametrize("domain", DOMAINS)
def test_flow_leads_to_the_same_point_in_the_next_frame(sequences, domain):
    """The depth found in frame t+1 where the flow points equals the depth the point was said to have there."""
    now, later = sequences[domain][:2]
    height, width = SIZE
    v, u = np.mgrid[:height, :width].astype(np.float32)
    x, y = u + now.flow[..., 0], v + now.flow[..., 1]
    found = cv2.remap(later.depth, x, y, cv2.INTER_LINEAR)
    inside = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2) & now.fov
    error = np.abs(found - now.depth_next)[inside]
    seen = error < 0.02 * now.depth[inside] + 3e-4
    assert seen.mean() > 0.93  # the rest is hidden behind folds and instruments
    assert np.percentile(error[seen], 95) < 3e-4


@pytest.mark.parametrize("domain", ["sinus"])
def test_depth_and_poses_explain_the_flow_of_a_rigid_scene(sequences, domain):
    """Back-project with depth and camera, move with the poses, project:
    that is the flow, without the renderer's own projection.
    """
    now, later = sequences[domain][:2]
    points = now.camera.back_project(now.depth).reshape(-1, 3)
    T = np.linalg.inv(later.T_world_camera) @ now.T_world_camera
    pixels = now.camera.project(points @ T[:3, :3].T + T[:3, 3]).reshape(*SIZE, 2)
    v, u = np.mgrid[: SIZE[0], : SIZE[1]]
    flow = pixels - np.stack((u, v), -1)
    assert np.percentile(np.abs(flow - now.flow)[now.fov], 99) < 0.02


@pytest.mark.parametrize("domain", DOMAINS)
def test_images_are_plausible(sequences, domain):
    frame = sequences[domain][1]
    lit = frame.rgb[frame.fov]
    assert frame.rgb.dtype == np.uint8 and frame.rgb.shape == (*SIZE, 3)
    assert 30 < lit.mean() < 200 and lit[:, 0].mean() > lit[:, 2].mean()  # tissue is red rather than blue
    assert np.isfinite(frame.depth).all() and frame.depth.min() > 1e-3 and frame.depth.max() <= 0.31
    near, far = frame.depth < np.median(frame.depth), frame.depth >= np.median(frame.depth)
    light = frame.shading.mean(-1)
    assert light[near & frame.fov].mean() > light[far & frame.fov].mean()  # inverse-square light


def test_albedo_shading_and_specular_make_up_the_image():
    drawn = renderer("colon", SIZE, 2, detail=256)
    look, frame = drawn.scene.look, drawn.frame(0)
    assert not look.smoke
    linear = (frame.albedo * frame.shading + frame.specular[..., None]) * np.array(look.white_balance)
    display = 255 * np.clip(linear, 0, 1) ** (1 / look.gamma)
    middle = frame.fov & (frame.rgb.max(-1) < 190)  # below the knee, where the sensor only blurs and adds noise
    assert np.median(np.abs(display - frame.rgb)[middle]) < 4


def test_same_seed_same_bits_other_seed_other_scene():
    first, again, other = (next(render("colon", 1, SIZE, seed=seed, detail=256)) for seed in (5, 5, 6))
    assert np.array_equal(first.rgb, again.rgb) and np.array_equal(first.depth, again.depth)
    assert not np.array_equal(first.rgb, other.rgb)


def test_exposure_recovers_after_a_jump():
    drawn = renderer("colon", SIZE, 1, detail=256)
    usual = drawn.frame(0).rgb.mean()
    drawn.gain = drawn.gain * 4
    bright = drawn.frame(1).rgb.mean()
    for number in range(2, 60):
        settled = drawn.frame(number) if number in (58, 59) else drawn.at(1 / 25, 2 / 25)
    assert bright > usual * 1.15
    assert abs(settled.rgb.mean() - usual) < abs(bright - usual)


def test_march_meets_a_flat_wall_and_a_round_tube():
    directions = torch.nn.functional.normalize(
        torch.tensor([[0.0, 0.3, -0.2], [0.0, 0.1, 0.4], [1.0, 1.0, 1.0]]), dim=0
    )
    directions = directions / directions[2]
    plane = Plane(torch.full((16, 16), 50.0), 200.0)
    hit = march(plane, (0.0, 0.0, 10.0), directions, torch.full((3,), 0.5), 0.0, 80, 0.01, 300.0)
    torch.testing.assert_close(hit, torch.full((3,), 40.0), atol=0.02, rtol=0)
    tube = Tube(torch.full((16, 16), 20.0), 320.0, 20.0)
    sideways = directions[:, 1:]
    hit = march(tube, (0.0, 0.0, 0.0), sideways, torch.full((2,), 0.5), 0.0, 80, 0.01, 300.0)
    torch.testing.assert_close(hit, 20.0 / sideways[:2].norm(dim=0), atol=0.03, rtol=0)
    normal = normals(tube, torch.tensor([[20.0, 0.0, 5.0]]), 0.0, 0.3)
    torch.testing.assert_close(normal, torch.tensor([[-1.0, 0.0, 0.0]]), atol=1e-3, rtol=0)


def test_ray_meets_a_capsule_on_its_side_and_on_its_cap():
    capsule = Capsule(torch.tensor([-5.0, 0.0, 30.0]), torch.tensor([5.0, 0.0, 30.0]), 2.0, 0, None)
    directions = torch.tensor([[0.0, 0.0, 1.0], [6.0 / 30, 0.0, 1.0], [0.0, 0.5, 1.0]])
    hit = hit_capsule(torch.zeros(3), directions, capsule)
    assert hit[0].item() == pytest.approx(28.0, abs=1e-4)
    on_cap = directions[1] * hit[1] - capsule.b
    assert on_cap.norm().item() == pytest.approx(2.0, abs=1e-3)
    assert torch.isinf(hit[2])


def test_textures_tile_and_noise_is_normalised():
    noise = spectral_noise((64, 32), (64.0, 32.0), (4.0, 30.0), torch.Generator().manual_seed(0))
    assert abs(noise.mean()) < 1e-4 and noise.std() == pytest.approx(1.0, abs=1e-4)
    texture = Texture(noise[None])
    u = torch.tensor([0.25, 1.25, -0.75])
    values = texture.sample(u, torch.tensor([0.5, -0.5, 2.5]))[0]
    torch.testing.assert_close(values, values[:1].expand(3), atol=1e-5, rtol=0)
    centre = texture.sample(torch.tensor([(7 + 0.5) / 32]), torch.tensor([(11 + 0.5) / 64]))[0, 0]
    assert centre.item() == pytest.approx(noise[11, 7].item(), abs=1e-5)


def test_undistort_inverts_distort():
    lens = Lens(k1=-0.12, k2=0.01)
    x, y = torch.tensor([0.0, 0.5, 0.8]), torch.tensor([0.1, -0.4, 0.6])
    xd, yd = distort(lens, x, y)
    back = undistort(lens, xd, yd, iterations=40)
    torch.testing.assert_close(torch.stack(back), torch.stack((x, y)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("domain", "size", "word"), [("bronchus", SIZE, "colon, sinus, laparo"), ("colon", (130, 160), "multiples of 8")]
)
def test_bad_requests_say_what_is_allowed(domain, size, word):
    with pytest.raises(ValueError, match=word):
        renderer(domain, size)
