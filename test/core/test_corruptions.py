"""Corruptions: the same bits for the same seed, worse with every severity, and each does what its physics says."""

import cv2
import numpy as np
import pytest

from endomust_core.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    display,
    field_of_view,
    keeps,
    level_of,
    linear,
    seed_of,
)

IMAGES = [name for name in CORRUPTIONS if name != "dropped_frames"]


def tissue(height=100, width=320):
    """Reddish texture with detail at every size, brighter towards the upper left."""
    random = np.random.default_rng(0)
    sizes = (0.8, 2, 5, 12, 30)
    texture = sum(s * cv2.GaussianBlur(random.standard_normal((height, width)), (0, 0), s) for s in sizes) / 1.6
    y, x = np.mgrid[0:height, 0:width]
    light = (125 + 40 * np.clip(texture, -2, 2)) * (1.1 - 0.4 * (x / width + y / height) / 2)
    return np.clip(np.stack([light, 0.6 * light, 0.5 * light], axis=2), 12, 255).astype(np.uint8)


def round_view(height=100, width=320):
    rgb = tissue(height, width)
    y, x = np.mgrid[0:height, 0:width]
    outside = np.hypot(x - width / 2, y - height / 2) > height * 0.45
    rgb[outside] = 4
    return rgb, outside


def mse(a, b):
    return float(np.mean((a.astype(float) - b.astype(float)) ** 2))


@pytest.mark.parametrize("name", IMAGES)
def test_worse_with_every_severity(name):
    rgb = tissue()
    for seed in (0, 7):
        errors = [mse(corrupt(rgb, name, severity, seed), rgb) for severity in SEVERITIES]
        assert errors[0] > 0.3, "even the slightest is there"
        assert all(b > 1.1 * a for a, b in zip(errors, errors[1:], strict=False)), errors


@pytest.mark.parametrize("name", IMAGES)
def test_the_same_arguments_give_the_same_bits_and_leave_the_input_alone(name):
    rgb = tissue()
    before = rgb.copy()
    first = corrupt(rgb, name, 3, seed=5)
    np.testing.assert_array_equal(first, corrupt(rgb, name, 3, seed=5))
    np.testing.assert_array_equal(rgb, before)
    assert first.shape == rgb.shape and first.dtype == np.uint8


@pytest.mark.parametrize("name", ["motion_blur", "smoke", "specular", "blood", "noise"])
def test_another_seed_is_another_picture(name):
    assert mse(corrupt(tissue(), name, 3, seed=1), corrupt(tissue(), name, 3, seed=2)) > 0.5


@pytest.mark.parametrize("name", IMAGES)
def test_the_black_surround_stays_as_it_is(name):
    rgb, outside = round_view()
    inner = outside & np.all([np.roll(outside, step, axis) for step in (-4, 4) for axis in (0, 1)], axis=0)
    np.testing.assert_array_equal(corrupt(rgb, name, 5)[inner], rgb[inner])


def test_the_surround_is_found_behind_a_line_at_the_edge_and_dark_tissue_is_not_surround():
    rgb, outside = round_view()
    rgb[outside] = 20
    rgb[0], rgb[:, 0] = 0, 0
    rgb[45:55, 150:160] = 3  # a dark lumen in the middle
    inside = field_of_view(rgb)
    assert inside[50, 155] == 1 and inside[50, 180] == 1
    assert np.mean(inside[outside] == 0) > 0.85
    assert field_of_view(tissue()).all()


def test_light_and_display_values_are_inverse():
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    np.testing.assert_array_equal(display(linear(levels)), levels)


def test_defocus_keeps_the_light_and_loses_the_detail():
    rgb = tissue()
    blurred = corrupt(rgb, "defocus", 4)
    assert linear(blurred).mean() == pytest.approx(linear(rgb).mean(), rel=0.02)
    detail = [np.abs(np.diff(image.astype(float), axis=1)).mean() for image in (rgb, blurred)]
    assert detail[1] < 0.7 * detail[0]


def test_motion_blur_makes_a_streak_of_a_point():
    rgb = np.full((101, 201, 3), 40, np.uint8)
    rgb[50, 100] = 255
    change = corrupt(rgb, "motion_blur", 4, seed=3).astype(int).sum(axis=2) - rgb.astype(int).sum(axis=2)
    y, x = np.nonzero(change > 0)
    spread = np.sqrt(np.sort(np.linalg.eigvalsh(np.cov(np.stack([x, y])))))
    assert spread[1] > 3 * spread[0], "long and thin"
    assert 2 * np.hypot(x - 100, y - 50).max() == pytest.approx(level_of("motion_blur", 4) * 201, abs=3)


def test_smoke_lifts_shadows_and_takes_contrast_and_colour():
    rgb = tissue()
    smoked = corrupt(rgb, "smoke", 4)
    assert smoked.std() < 0.8 * rgb.std() and smoked.min() > rgb.min()

    def saturation(image):
        return np.mean(image.max(axis=2).astype(float) - image.min(axis=2))

    assert saturation(smoked) < 0.8 * saturation(rgb)


def test_highlights_only_add_light_and_the_same_ones_stay():
    rgb = tissue()
    few, many = (corrupt(rgb, "specular", severity, seed=2) for severity in (1, 4))
    assert (few >= rgb).all() and (many >= few).all()
    assert 0 < np.mean(few.min(axis=2) == 255) < np.mean(many.min(axis=2) == 255) < 0.2


def test_exposure_is_in_stops():
    rgb = np.full((8, 8, 3), 100, np.uint8)
    assert corrupt(rgb, "overexposure", 2)[0, 0, 0] == pytest.approx(100 * 2 ** (1 / 2.2), abs=1)
    assert corrupt(rgb, "underexposure", 2)[0, 0, 0] == pytest.approx(100 * 2 ** (-1.5 / 2.2), abs=1)
    assert (corrupt(tissue(), "overexposure", 5) >= tissue()).all()


def test_blood_takes_green_and_blue_and_spares_red():
    rgb = np.full((64, 64, 3), 150, np.uint8)
    red, green, blue = corrupt(rgb, "blood", 4).reshape(-1, 3).mean(axis=0)
    assert red > green + 20 and red > blue + 20
    covered = [np.mean(corrupt(rgb, "blood", s)[..., 1] < 149) for s in SEVERITIES]
    assert covered == sorted(covered) and covered[0] < 0.5 and covered[-1] > 0.9


def test_noise_has_the_variance_of_its_photons():
    rgb = np.full((200, 200, 3), 128, np.uint8)
    light, electrons = linear(rgb)[0, 0, 0], level_of("noise", 3)
    noisy = linear(corrupt(rgb, "noise", 3))
    assert noisy.var() == pytest.approx(light / electrons + (2.5 / electrons) ** 2, rel=0.1)
    assert noisy.mean() == pytest.approx(light, rel=0.01)


def test_dropped_frames_are_lost_at_their_rate_nested_and_leave_images_alone():
    kept = {s: np.array([keeps(index, s, seed=4) for index in range(1000)]) for s in SEVERITIES}
    for severity in SEVERITIES:
        assert 1 - kept[severity].mean() == pytest.approx(level_of("dropped_frames", severity), abs=0.04)
    assert (kept[5] <= kept[4]).all() and (kept[2] <= kept[1]).all(), "what is lost stays lost"
    assert (kept[3] != [keeps(index, 3, seed=5) for index in range(1000)]).any()
    np.testing.assert_array_equal(corrupt(tissue(), "dropped_frames", 5), tissue())


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        corrupt(tissue(), "smok", 1)
    with pytest.raises(ValueError, match="1 .slight. to 5"):
        corrupt(tissue(), "smoke", 0)
    with pytest.raises(ValueError, match="uint8"):
        corrupt(tissue().astype(np.float32), "smoke", 1)


def test_each_says_its_physics_and_names_fix_their_seed():
    assert all(fault.physics.endswith(".") and fault.unit for fault in CORRUPTIONS.values())
    assert seed_of("dataset1/keyframe3") == seed_of("dataset1/keyframe3") != seed_of("dataset1/keyframe4")
