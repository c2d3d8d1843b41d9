"""The stomach: depth known in closed form, truth that agrees with itself, a domain that no training sees."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from endomust_core.learning import release  # noqa: E402
from endomust_core.learning.pretrain import PretrainConfig  # noqa: E402
from endomust_core.simulation import renderer  # noqa: E402
from endomust_core.simulation.check import compare  # noqa: E402
from endomust_core.simulation.domains import DOMAINS, TRAINED  # noqa: E402
from endomust_core.simulation.domains.stomach import SolidNoise, stomach  # noqa: E402
from endomust_core.simulation.surfaces import Cavity, globe, march, normals  # noqa: E402
from endomust_core.simulation.textures import TAU  # noqa: E402

SIZE = (128, 160)


@pytest.fixture(scope="module")
def scenes():
    return {seed: stomach(seed, 64) for seed in (1, 2, 3)}


def rays(count, seed=0):
    """Unit directions (3, N) all round, the chart's poles among them."""
    drawn = torch.randn(3, count, generator=torch.Generator().manual_seed(seed))
    drawn[:, :2] = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.0, 0.0]])
    return torch.nn.functional.normalize(drawn, dim=0)


def test_depth_in_an_ellipsoid_is_the_root_of_a_quadratic():
    semi, origin, directions = torch.tensor((30.0, 35.0, 50.0)), torch.tensor((6.0, -4.0, 12.0)), rays(400)
    cavity = Cavity(1 / (globe(128, 256) / semi.view(3, 1, 1)).norm(dim=0))
    o, d = origin / semi, directions / semi[:, None]
    a, b, c = (d * d).sum(0), (o[:, None] * d).sum(0), (o * o).sum() - 1
    expected = (torch.sqrt(b * b - a * c) - b) / a
    hit = march(cavity, origin.tolist(), directions, torch.full((400,), 0.5), 0.0, 100, 0.02, 200.0)
    torch.testing.assert_close(hit, expected, atol=0.03, rtol=0)


def test_normals_of_a_sphere_point_at_its_centre_and_the_chart_lies_in_the_wall():
    cavity, p = Cavity(torch.full((32, 64), 40.0)), 40 * rays(50).T
    torch.testing.assert_close(normals(cavity, p, 0.0, 0.05), -p / 40, atol=1e-3, rtol=0)
    u, v, along_u, along_v = cavity.chart(p, 0.0)
    assert (v >= 0).all() and (v <= 0.5).all()
    for direction, du, dv in ((along_u, 1e-3, 0.0), (along_v, 0.0, 1e-3)):
        later = torch.stack((torch.sin(TAU * (v + dv)) * torch.sin(TAU * (u + du)), torch.cos(TAU * (v + dv)),
                             torch.sin(TAU * (v + dv)) * torch.cos(TAU * (u + du))), -1)  # fmt: skip
        step = later - p / 40
        assert ((step * direction).sum(-1) >= 0.999 * step.norm(dim=-1) - 1e-5).all()


def test_maps_go_on_over_the_poles_without_a_seam():
    """A plane wave in space, put on the globe, is found again at any direction, next to the poles as elsewhere."""
    k = torch.tensor((2.0, -1.0, 3.0))
    cavity = Cavity(40 + torch.sin((globe(128, 256) * k.view(3, 1, 1)).sum(0)))
    turn = torch.linspace(0, TAU, 60)
    near_pole = torch.stack((0.01 * torch.cos(turn), torch.ones(60), 0.01 * torch.sin(turn)))
    for d in (rays(200), torch.nn.functional.normalize(near_pole, dim=0), -near_pole / near_pole.norm(dim=0)):
        u, v = cavity.chart(d.T, 0.0)[:2]
        found, expected = cavity.radius_map.sample(u, v)[0], 40 + torch.sin((d * k[:, None]).sum(0))
        torch.testing.assert_close(found, expected, atol=3e-3, rtol=0)


def test_tissue_swells_with_the_wall_and_keeps_its_place_on_the_chart():
    cavity = Cavity(torch.full((64, 128), 40.0), pulse=(0.08, 1.2, 0.1), breath=(0.02, 0.3))
    p = 40 * rays(100).T
    p = p * cavity.swelling(p[:, 2] / 40, 0.4)[:, None]
    moved = cavity.advect(p, 0.4, 1.9)
    assert (moved - p).norm(dim=-1).max() > 1.0
    torch.testing.assert_close(cavity.clearance(*moved.T, 1.9), torch.zeros(100), atol=1e-4, rtol=0)
    for before, after in zip(cavity.chart(p, 0.4)[:2], cavity.chart(moved, 1.9)[:2], strict=True):
        torch.testing.assert_close(after[2:], before[2:], atol=1e-5, rtol=0)  # without the poles, where u is no one's


def test_rays_stop_at_the_first_wall_they_meet(scenes):
    """Against a walk in steps of 0.05 mm: the march jumps over no fold."""
    for scene in scenes.values():
        origin, d = scene.pose(1.0)[:3, 3], rays(300, 4)
        hit = march(scene.surface, origin.tolist(), d, torch.full((300,), 0.5), 1.0, 100, 0.03, 200.0)
        s = torch.arange(0.5, 130, 0.05)
        p = (origin[:, None, None] + d[:, :, None] * s).reshape(3, -1)
        blocked = scene.surface.clearance(*p, 1.0).view(300, -1) <= 0
        first = torch.where(blocked.any(1), s[blocked.float().argmax(1)], torch.full((300,), math.inf))
        assert torch.isfinite(first).all()
        assert ((hit - first).abs() < 0.15).float().mean() > 0.985


def test_the_camera_stays_inside_and_sees_new_places(scenes):
    for scene in scenes.values():
        poses = torch.stack([scene.pose(0.5 * k) for k in range(120)])
        rotation, position = poses[:, :3, :3], poses[:, :3, 3]
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(120, 3, 3), atol=1e-5, rtol=0)
        clearance = torch.stack([scene.surface.clearance(*p[:, None], 0.5 * k) for k, p in enumerate(position)])
        assert clearance.min() > 5.0
        assert position.std(0).norm() > 2.0


@pytest.mark.parametrize("seed", [3, 8])  # seed 8: the angulus hides part of the antrum
def test_depth_and_flow_of_successive_frames_agree(seed):
    drawn = renderer("stomach", (192, 240), seed, detail=256)
    unexplained, _, p95 = compare(drawn.frame(0), drawn.frame(1))[:3]
    assert unexplained < 2 and p95 < 0.1


def test_same_seed_same_bits_other_seed_other_scene():
    first, again, other = (renderer("stomach", SIZE, seed, detail=128).frame(0) for seed in (5, 5, 6))
    assert np.array_equal(first.rgb, again.rgb) and np.array_equal(first.depth, again.depth)
    assert not np.array_equal(first.rgb, other.rgb)


def test_variety_changes_nothing(scenes):
    wide = stomach(1, 64, variety="wide")
    assert torch.equal(wide.surface.radius_map.levels[0], scenes[1].surface.radius_map.levels[0])
    assert torch.equal(wide.appearance.levels[0], scenes[1].appearance.levels[0]) and wide.look == scenes[1].look


def test_solid_noise_is_periodic_and_of_unit_variance():
    noise = SolidNoise(torch.Generator().manual_seed(0), narrow=False)
    assert noise.cube.std() == pytest.approx(1.0, abs=0.03)
    points = 500 * torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1))
    state = noise.generator.get_state()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=noise.generator))[0]
    noise.generator.set_state(state)
    period = (turn.T @ torch.tensor((3.0 * 16, 0.0, 0.0))).view(3, 1, 1)  # 16 wavelengths along the cube's own edge
    values = noise(points, 3.0)
    noise.generator.set_state(state)
    torch.testing.assert_close(noise(points + period, 3.0), values, atol=2e-3, rtol=0)


def test_no_training_sees_the_stomach(monkeypatch):
    assert set(DOMAINS) - set(TRAINED) == {"stomach"}
    config = PretrainConfig()
    for scenes in (config.train, config.validation, config.test):
        assert set(scenes.count) == set(TRAINED)
    asked = []
    monkeypatch.setattr(release, "render", lambda domain, *_, **__: asked.append(domain) or [])
    release.unseen_frames()
    release.calibration_frames(("int8",))
    assert asked == [*TRAINED] * (1 + len(release.CALIBRATION_SEEDS))
