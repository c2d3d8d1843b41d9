"""A slanted wall (168x224) before a moving camera: wrong depth, flicker, masks and gaps must lower confidence."""

import cv2
import numpy as np
import pytest

from endomust_core import confidence as module
from endomust_core.camera import Camera
from endomust_core.confidence import ALONE, MOTION, SINGLE, TOGETHER, Confidence
from endomust_core.parallax import contrast

CAMERA = Camera(224, 168, 190.0, 190.0, 111.5, 83.5)
STEP = 0.0007  # m to the right, per image
TEXTURE = cv2.GaussianBlur(np.random.default_rng(5).normal(0, 1, (900, 900)).astype(np.float32), (0, 0), 2.0)


def view(number):
    """rgb and true depth [m] of the wall z = 0.05 + 0.3 x from a camera that went `number` steps to the right."""
    rays, x0 = CAMERA.rays(), number * STEP
    depth = (0.05 + 0.3 * x0) / (1 - 0.3 * rays[..., 0])
    u, v = (rays[..., 0] * depth + x0) * 6000 + 450, rays[..., 1] * depth * 6000 + 450
    pattern = cv2.remap(TEXTURE, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    rgb = np.clip((1 + 1.6 * pattern[..., None]) * (150, 80, 60), 20, 200)
    return rgb.astype(np.uint8), depth.astype(np.float32)


def motion():
    T = np.eye(4)
    T[0, 3] = STEP
    return T


def judged(change=lambda depth, number: depth, images=18, T=motion, **options):
    """The last judgement of a video in which `change` made the depth wrong."""
    judge = Confidence()
    for number in range(images):
        rgb, depth = view(number)
        judgement = judge.judge(rgb, change(depth.copy(), number), CAMERA, None if number == 0 else T(), **options)
    return judgement


def bulged(depth, number):
    """A bulge in the middle that is not there."""
    v, u = np.mgrid[:168, :224]
    return depth * (1 - 0.35 * np.exp(-((u - 112) ** 2 + (v - 84) ** 2) / 900)).astype(np.float32)


def test_each_weight_has_its_term_and_no_term_raises_confidence():
    assert len(ALONE) == 1 + len(SINGLE) and len(TOGETHER) == 1 + len(SINGLE) + len(MOTION)
    assert max(ALONE[1:]) <= 0 and max(TOGETHER[1:]) <= 0


def test_depth_that_parallax_contradicts_is_not_believed():
    right, wrong = judged(), judged(bulged)
    middle = np.s_[70:98, 98:126]
    assert wrong.value[middle].mean() < 0.6 * right.value[middle].mean()
    assert wrong.value[middle].mean() < 0.7 * wrong.value[20:50, 20:200].mean()


def test_right_depth_in_full_motion_is_believed():
    assert judged().value[30:140, 30:190].mean() > 0.75


def test_without_motion_the_same_wrong_depth_is_hardly_noticed():
    right, wrong = judged(T=lambda: None), judged(bulged, T=lambda: None)
    middle = np.s_[70:98, 98:126]
    assert wrong.value[middle].mean() > 0.65 * right.value[middle].mean()


def test_depth_whose_shape_flickers_is_not_believed():
    rng = np.random.default_rng(0)

    def flickers(depth, number):
        depth[:, :112] *= np.exp(0.15 * cv2.resize(rng.standard_normal((6, 4)), (112, 168))).astype(np.float32)
        return depth

    value = judged(flickers).value
    assert value[30:140, 20:95].mean() < 0.8 * value[30:140, 130:205].mean()


def test_the_ratio_of_scales_is_reported_and_costs_no_confidence():
    ratio = judged(lambda depth, number: depth * (1.2 if number == 17 else 1)).scale_ratio
    assert ratio == pytest.approx(1.2, rel=0.01)
    doubled = judged(
        lambda depth, number: 2 * depth, T=lambda: np.block([[np.eye(3), 2 * motion()[:3, 3:]], [0, 0, 0, 1]])
    )
    np.testing.assert_allclose(doubled.value, judged().value, atol=0.02)


def test_a_motion_of_half_the_true_length_is_stretched_to_fit():
    def short():
        T = motion()
        T[0, 3] *= 0.5
        return T

    assert judged(T=short, images=30).value[30:140, 30:190].mean() > 0.7


def test_ignored_pixels_holes_and_the_surround_have_no_confidence():
    mask = np.zeros((168, 224), bool)
    mask[:30, :40] = True
    judge = Confidence()
    rgb, depth = view(0)
    depth[100:120, 100:120], depth[130, 130], depth[131, 131] = np.nan, np.inf, -1
    rgb[:, :20] = 0
    judgement = judge.judge(rgb, depth, CAMERA, None, mask)
    value = judgement.value
    assert (value[mask] == 0).all() and (value[100:120, 100:120] == 0).all() and (value[:, :18] == 0).all()
    assert value[130, 130] == value[131, 131] == 0
    assert judgement.masked[:30, :40].all() and judgement.border[:, :18].all()
    assert judgement.shares["border"] == pytest.approx(0.09, abs=0.04)
    assert judgement.shares["valid"] < 1 and np.isfinite(list(judgement.shares.values())).all()


def test_a_highlight_has_no_confidence():
    rgb, depth = view(0)
    cv2.circle(rgb, (60, 60), 3, (255, 255, 255), -1)
    judgement = Confidence().judge(rgb, depth, CAMERA, None)
    assert judgement.specular[60, 60] and judgement.value[60, 60] == 0


def test_the_dark_shows_nothing_and_has_no_confidence():
    rgb, depth = view(0)
    cv2.circle(rgb, (112, 84), 20, (8, 5, 5), -1)
    judgement = Confidence().judge(rgb, depth, CAMERA, None)
    assert judgement.value[84, 112] == 0 and not judgement.border.any()
    assert judgement.shares["dark"] == pytest.approx(np.pi * 20**2 / depth.size, rel=0.1)


def test_an_instrument_is_believed_less_and_a_given_mask_takes_the_detectors_place():
    rgb, depth = view(0)
    cv2.line(rgb, (0, 150), (110, 80), (120, 122, 125), 17)
    found = Confidence().judge(rgb, depth, CAMERA, None)
    assert found.masked[120:140, 20:50].any()
    assert found.value[found.masked].mean() < 0.6 * found.value[~found.masked & ~found.specular].mean()
    assert not Confidence(instruments=False).judge(rgb, depth, CAMERA, None).masked.any()
    assert not Confidence().judge(rgb, depth, CAMERA, None, np.zeros((168, 224), bool)).masked.any()


@pytest.mark.parametrize(
    ("camera", "T"), [(None, np.eye(4)), (CAMERA, None), (CAMERA, np.full((4, 4), np.nan)), (None, None)]
)
def test_without_camera_or_motion_each_image_is_judged_alone(camera, T):
    judge = Confidence()
    judge.judge(*view(0), CAMERA, None)
    rgb, depth = view(5)
    again = judge.judge(rgb, depth, camera, T)
    np.testing.assert_array_equal(again.value, Confidence().judge(rgb, depth, CAMERA, None).value)
    assert again.scale_ratio is None


def test_a_reset_forgets_everything():
    judge = Confidence()
    for number in range(5):
        judge.judge(*view(number), CAMERA, motion())
    judge.reset()
    np.testing.assert_array_equal(
        judge.judge(*view(9), CAMERA, motion()).value, Confidence().judge(*view(9), CAMERA, None).value
    )


def test_a_cut_to_another_scene_gives_finite_values_and_starts_again():
    judge = Confidence()
    rgb, depth = view(0)
    judge.judge(rgb, depth, CAMERA, None)
    cut = judge.judge(rgb[::-1].copy(), 30 * depth, CAMERA, motion())
    assert cut.scale_ratio is None and np.isfinite(cut.value).all()


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("depth", [0.05, np.nan, 1e-6, 1e6])
def test_nothing_but_finite_numbers_comes_out(fill, depth):
    judge = Confidence()
    for number in range(4):
        image = np.full((168, 224, 3), fill, np.uint8) if number % 2 else view(number)[0]
        value = judge.judge(image, np.full((168, 224), depth, np.float32), CAMERA, motion()).value
        assert value.dtype == np.float32 and (value >= 0).all() and (value <= 1).all()


def test_the_same_video_gives_the_same_bits():
    np.testing.assert_array_equal(judged(bulged).value, judged(bulged).value)


def test_another_grid_starts_again_and_odd_sizes_work():
    judge = Confidence()
    judge.judge(*view(0), CAMERA, None)
    rgb, depth = view(1)
    small = CAMERA.cropped(0, 0, 221, 165)
    for _ in range(3):
        judgement = judge.judge(rgb[:165, :221].copy(), depth[:165, :221].copy(), small, motion())
    assert judgement.value.shape == (165, 221) and np.isfinite(judgement.value).all()


def test_sizes_that_do_not_fit_are_refused_with_a_remedy():
    rgb, depth = view(0)
    with pytest.raises(ValueError, match="resize"):
        Confidence().judge(rgb[::2], depth, CAMERA, None)
    with pytest.raises(ValueError, match="resize the mask|resize it"):
        Confidence().judge(rgb, depth, CAMERA, None, np.zeros((10, 10), bool))


def test_contrast_is_the_same_in_the_dark_as_in_the_light():
    rgb, _ = view(0)
    bright, dark = contrast(rgb).astype(float), contrast(rgb // 3).astype(float)
    assert np.abs(bright - dark).mean() < 8 and bright.std() > 25


def test_the_model_falls_from_its_intercept():
    terms = {name: np.zeros((3, 4), np.float32) for name in SINGLE}
    best = module.probability(terms)
    assert best == pytest.approx(1 / (1 + np.exp(-ALONE[0])), rel=1e-5)
    assert (module.probability(terms | {"slope": np.ones((3, 4), np.float32)}) < best).all()


# ---------------------------------------------------------------------------------- the check that fits and measures


@pytest.fixture(scope="module")
def check():
    pytest.importorskip("torch")  # the renderer beside it needs it
    from endomust_core.simulation import confidence_check

    return confidence_check


def walls(check, images=24):
    """A sequence of `view`s, named as a colon, in which a bulge is wrong and the scale wanders."""
    rgb, truth = (np.stack(arrays) for arrays in zip(*(view(number) for number in range(images)), strict=True))
    scale = np.exp(0.03 * np.random.default_rng(0).standard_normal(images))
    depth = np.stack([bulged(image, 0) * np.float32(s) for image, s in zip(truth, scale, strict=True)])
    none = np.zeros(truth.shape, bool)
    T = np.stack([np.eye(4), *[motion()] * (images - 1)])
    return check.Sequence("colon-0", CAMERA, rgb, truth, depth, none, ~none, none.astype(np.float32), T, T)


def test_a_judge_that_knows_the_error_scores_best_and_a_constant_scores_nothing(check):
    error = np.random.default_rng(0).exponential(0.1, 5000)
    spearman, ause, _ = check.scores(1 / (1 + error), error)
    assert spearman == pytest.approx(1) and ause == pytest.approx(0, abs=1e-9)
    assert check.scores(-error, error)[0] == pytest.approx(1)
    assert check.scores(1 - 1 / (1 + error), error)[0] == pytest.approx(-1)
    assert check.scores(np.full(5000, 0.5), error)[:2] == (0, 1)


def test_a_random_judge_has_an_ause_of_one(check):
    rng = np.random.default_rng(0)
    assert check.scores(rng.random(50000), rng.exponential(0.1, 50000))[1] == pytest.approx(1, abs=0.06)


def test_calibration_is_the_distance_between_said_and_true(check):
    error = np.where(np.arange(1000) < 700, 0.05, 0.5)
    assert check.calibration(np.full(1000, 0.7), error) == pytest.approx(0, abs=1e-9)
    assert check.calibration(np.full(1000, 0.9), error) == pytest.approx(0.2)


def test_the_fit_finds_a_known_model_and_drops_a_term_that_would_raise_confidence(check):
    rng = np.random.default_rng(0)
    terms = rng.random((40000, 2))
    right = rng.random(40000) < 1 / (1 + np.exp(-(1.5 - 3 * terms[:, 0] + 0.8 * terms[:, 1])))
    w = check.fitted(terms, right, np.ones(40000), ridge=1e-6)
    assert w[1] == pytest.approx(-3, rel=0.1) and w[2] == 0


def test_the_whole_report_runs_on_a_sequence_with_a_known_fault(check, tmp_path, capsys):
    sequence = walls(check)
    terms, error = check.judged(sequence, "refined")
    assert check.scores(module.probability(terms), error)[1] < 0.4
    calm, raw = (check.flicker(sequence, strength)["scale ratio std [%]"] for strength in (0.8, 0.0))
    assert calm < 0.6 * raw
    check.report([sequence], tmp_path)
    assert "| colon | refined | confidence |" in capsys.readouterr().out
    for name in ("sparsification", "reliability", "examples"):
        assert (tmp_path / f"confidence_{name}.png").stat().st_size > 1000
