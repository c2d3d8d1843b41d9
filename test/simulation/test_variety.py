"""Wide scenes: plain ones stay what they were, the truth stays true, instruments turn up, folders do not mix kinds."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from endomust_core.simulation import VARIETIES, render, renderer  # noqa: E402
from endomust_core.simulation.check import compare  # noqa: E402
from endomust_core.simulation.dataset import generate  # noqa: E402
from endomust_core.simulation.domains import DOMAINS, TRAINED  # noqa: E402
from endomust_core.simulation.instruments import (  # noqa: E402
    ENDS,
    SINGLE,
    Capsule,
    Instrument,
    candidates,
    capsules,
    carry,
    hit_capsule,
)
from endomust_core.simulation.optics import Lens, Processor, compress, develop, enhance, field_of_view  # noqa: E402
from endomust_core.simulation.textures import Texture  # noqa: E402

SIZE = (96, 128)
# Mean colour and the 5th, 50th and 95th percentile of depth [mm] of a plain frame, from before there were wide ones.
PLAIN = {
    "colon": (151.597, 108.144, 70.250, 27.654, 50.802, 131.079),
    "sinus": (176.915, 99.229, 96.072, 9.766, 15.393, 33.274),
    "laparo": (130.371, 86.316, 78.849, 58.585, 71.210, 82.912),
}


@pytest.fixture(scope="module")
def wide():
    return {domain: list(render(domain, 2, SIZE, seed=3, detail=256, variety="wide")) for domain in TRAINED}


@pytest.mark.parametrize("domain", TRAINED)
def test_plain_scenes_are_what_they_were(domain):
    frame = next(render(domain, 1, (64, 80), seed=11, detail=128))
    seen = (*frame.rgb.reshape(-1, 3).mean(0), *(1e3 * np.percentile(frame.depth, (5, 50, 95))))
    np.testing.assert_allclose(seen, PLAIN[domain], rtol=2e-3)


@pytest.mark.parametrize("domain", TRAINED)
def test_wide_scenes_repeat_to_the_bit_and_differ_from_plain(wide, domain):
    again = list(render(domain, 2, SIZE, seed=3, detail=256, variety="wide"))
    for one, other in zip(wide[domain], again, strict=True):
        assert np.array_equal(one.rgb, other.rgb) and np.array_equal(one.depth, other.depth)
    plain = next(render(domain, 1, SIZE, seed=3, detail=256))
    assert not np.array_equal(plain.rgb, again[0].rgb) and not np.array_equal(plain.depth, again[0].depth)


@pytest.mark.parametrize("domain", TRAINED)
def test_truth_of_a_wide_scene_agrees_with_itself(wide, domain):
    unexplained, median, p95, *_ = compare(*wide[domain])
    assert unexplained < 4 and median < 0.02 and p95 < 0.3  # [%], [mm], [mm]: coarse images, so edges weigh more


@pytest.mark.parametrize("domain", TRAINED)
def test_arrays_of_a_wide_frame_are_in_range(wide, domain):
    frame = wide[domain][0]
    assert frame.rgb.dtype == np.uint8 and frame.rgb.shape == (*SIZE, 3) and 15 < frame.rgb[frame.fov].mean() < 235
    assert frame.depth.min() > 1e-3 and frame.depth.max() < 0.45 and frame.fov.mean() > 0.4
    for name in ("depth", "albedo", "shading", "specular", "normal", "flow", "depth_next"):
        assert np.isfinite(getattr(frame, name)).all(), name
    assert 0 < frame.albedo.min() and frame.albedo.max() < 1 and frame.shading.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(frame.normal, axis=-1), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("domain", "scenes", "low", "high"), [("colon", 10, 1, 6), ("sinus", 10, 1, 6), ("laparo", 3, 2, 3)]
)
def test_a_share_of_wide_scenes_has_instruments(domain, scenes, low, high):
    """About 30 % of the tubes and 5 of 6 abdomens; drawn only, not rendered."""
    drawn = [DOMAINS[domain](seed, 64, variety="wide") for seed in range(scenes)]
    assert low <= sum(bool(scene.tools) for scene in drawn) <= high
    assert len({scene.lens.border for scene in drawn}) >= 2
    assert len({tool.kind for scene in drawn for tool in scene.tools}) >= 2


def still(kind, **more):
    return Instrument((60.0, 10.0, 20.0), (2.0, 1.0, 40.0), (4.0, 3.0, 2.0), (2.0, 3.0, 4.0), 0.4, 3.0, kind=kind,
                      framed=True, **more)  # fmt: skip


@pytest.mark.parametrize("kind", [*ENDS, *SINGLE])
def test_framed_instruments_are_carried_rigidly(kind):
    """Points on a part stay on it and keep their distances, though the instrument has moved, turned and opened."""
    for now, later in zip(capsules(still(kind), 0.1), capsules(still(kind), 0.7), strict=True):
        directions = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        off = directions - (directions @ now.frame[:, :1]) * now.frame[:, 0]
        points = now.b + now.radius * torch.nn.functional.normalize(off, dim=-1) - 0.2 * now.frame[:, 0]
        moved = carry(points, now, later)
        apart, before = ((p[:, None] - p).norm(dim=-1) for p in (moved, points))
        torch.testing.assert_close(apart, before, atol=1e-3, rtol=0)
        beside = moved - later.b
        axis = torch.nn.functional.normalize(later.b - later.a, dim=0)
        away = (beside - (beside @ axis)[:, None] * axis).norm(dim=-1)
        torch.testing.assert_close(away, torch.full_like(away, later.radius), atol=1e-3, rtol=0)


def test_an_instrument_that_rides_with_the_camera_stays_where_it_was_in_view():
    def pose(t):
        out = torch.eye(4)
        out[:3, 3] = torch.tensor((3.0 * t, -2.0 * t, 5.0 * t))
        return out

    tool = replace(still("tube", carrier=pose), amplitude=(0.0, 0.0, 0.0))
    torch.testing.assert_close(capsules(tool, 1.5)[0].b - pose(1.5)[:3, 3], torch.tensor(tool.tip))


def test_culling_leaves_no_ray_out_that_meets_the_capsule():
    v, u = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    grid = torch.stack(((u - 39.5) / 48, (v - 31.5) / 48, torch.ones_like(u)), -1)
    origin, directions = torch.zeros(3), grid.reshape(-1, 3)
    for a, b, radius in (
        ((40, 5, 20), (1, 2, 30), 1.0),
        ((3, 3, -5), (0, 0, 12), 0.7),
        ((-60, 9, 90), (9, 0, 99), 4.0),
    ):
        capsule = Capsule(torch.tensor(a).float(), torch.tensor(b).float(), radius, 0, None)
        met = torch.isfinite(hit_capsule(origin, directions, capsule)).nonzero(as_tuple=True)[0]
        tried = candidates(origin, grid, capsule, 1 / 48)
        assert met.numel() and set(met.tolist()) <= set(tried.tolist()) and tried.numel() < 0.6 * directions.shape[0]


def test_processor_sharpens_edges_and_compression_keeps_flat_colour():
    step = torch.cat((torch.full((3, 32, 32), 0.3), torch.full((3, 32, 32), 0.6)), 2)
    sharp = enhance(Processor(sharpen=1.0, sharpen_radius=8.0), step)
    assert sharp.max() > 0.62 and sharp.min() < 0.28  # halos on both sides
    torch.testing.assert_close(sharp[:, :, 2:20], step[:, :, 2:20], atol=1e-3, rtol=0)
    dark = enhance(Processor(black=0.05), torch.zeros(3, 16, 16))
    assert dark.max() == 0
    image = np.full((32, 48, 3), (150, 90, 70), np.uint8)
    assert np.abs(compress(image, 40).astype(int) - image).max() <= 6


def test_defocus_blurs_what_is_far_from_the_sharp_distance_only():
    drawn = renderer("colon", SIZE, 4, detail=64, variety="wide")
    look = replace(drawn.scene.look, psf=0.0, shot_noise=0.0, read_noise=0.0, processor=Processor(focus=20, defocus=8))
    checks = ((torch.arange(64)[:, None] // 4 + torch.arange(64)[None] // 4) % 2).float().expand(3, 64, 64) * 0.5 + 0.1
    develop_at = lambda d: develop(  # noqa: E731
        look, checks, None, torch.ones(64, 64), torch.Generator().manual_seed(0), torch.full((64, 64), float(d))
    )
    contrast = {d: develop_at(d).float().std().item() for d in (5, 20, 80)}
    assert contrast[20] > 1.1 * contrast[5] and contrast[20] > 1.1 * contrast[80]


def test_rounded_window_is_open_in_the_middle_and_closed_in_its_corners():
    window = field_of_view(Lens(border="rounded", border_size=0.9), 96, 128)
    assert window[48, 64] > 0.99 and window[48, 12] > 0.9 and window[1, 64] < 0.01
    assert window[7, 9] < 0.1 and window[7, 64] > 0.9


def test_unknown_variety_is_refused_in_words_that_help():
    with pytest.raises(ValueError, match=", ".join(VARIETIES)):
        renderer("colon", SIZE, variety="wild")


def test_fine_texture_and_appearance_repeat_without_seams():
    texture = DOMAINS["sinus"](1, 64, variety="wide").fine
    assert isinstance(texture, Texture)
    at = torch.tensor([0.0, 1.0, 3.0])
    values = texture.sample(at, at)
    torch.testing.assert_close(values, values[:, :1].expand(3, 3), atol=1e-5, rtol=0)


def test_folder_of_one_variety_takes_no_other(tmp_path):
    files = generate(tmp_path, {"sinus": 1}, 3, 1, (64, 80), detail=64, workers=1, variety="wide")
    assert np.load(files[0])["rgb"].shape == (2, 64, 80, 3)
    with pytest.raises(ValueError, match="made with .*wide.* remove it"):
        generate(tmp_path, {"sinus": 1}, 3, 1, (64, 80), detail=64, workers=1)
