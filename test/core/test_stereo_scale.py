"""Scale from a stereo pair: reliefs whose disparity is known to the fraction of a pixel; metres per network unit."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from endomust_core.camera import Camera
from endomust_core.stereo_scale import baseline_from_projection, stereo_scale

BASELINE = 0.005  # m
CAMERA = Camera(width=320, height=256, fx=300.0, fy=300.0, cx=159.5, cy=127.5)
OPENCAS = Path(__file__).resolve().parents[3] / "shared" / "data" / "sksurgery" / "open_cas_tmi"


def relief(seed=0, middle=0.05):
    """(H,W) depth [m] of a wavy wall about `middle` away."""
    v, u = np.mgrid[: CAMERA.height, : CAMERA.width].astype(np.float64)
    waves = 0.12 * np.sin(u / 50 + seed) + 0.1 * np.cos(v / 40 - seed) + 0.1 * v / CAMERA.height
    return middle * (1 + waves)


def texture(seed=0):
    """(H,W) uint8 with detail of every size."""
    rng, image = np.random.default_rng(seed), np.zeros((CAMERA.height, CAMERA.width))
    for size in (1.5, 3.0, 8.0, 20.0):
        layer = cv2.GaussianBlur(rng.normal(size=image.shape), (0, 0), size)
        image += layer / layer.std()
    return np.uint8(np.clip(120 + 25 * image, 0, 255))


def pair(depth, seed=0, baseline=BASELINE, noise=1.0):
    """Left and right RGB: the left pixel (u, v) lies at (u - fx·baseline/depth, v) in the right image."""
    left, rng = texture(seed), np.random.default_rng(seed + 1)
    u = np.arange(CAMERA.width, dtype=np.float64)
    seen_from = np.stack([np.interp(u, u - CAMERA.fx * baseline / row, u) for row in depth]).astype(np.float32)
    rows = np.repeat(np.arange(CAMERA.height, dtype=np.float32)[:, None], CAMERA.width, axis=1)
    right = cv2.remap(left, seen_from, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    noisy = [np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8) for image in (left, right)]
    return tuple(np.repeat(image[..., None], 3, axis=2) for image in noisy)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.4, 1.0, 12.0])
def test_the_factor_of_a_relief_is_found_and_sigma_covers_the_error(seed, factor):
    depth = relief(seed)
    scale = stereo_scale(*pair(depth, seed), (depth / factor).astype(np.float32), CAMERA, BASELINE)
    assert scale.factor == pytest.approx(factor, rel=0.01)
    assert abs(scale.factor / factor - 1) < 2 * scale.sigma < 0.05
    assert scale.matches > 150 and abs(scale.rows) < 0.3
    assert scale.disparity == pytest.approx(30, abs=4)


def test_a_depth_with_errors_that_go_together_in_places_has_a_larger_sigma():
    depth = relief()
    rng = np.random.default_rng(3)
    wrong = cv2.resize(rng.normal(0, 0.15, (6, 6)), (CAMERA.width, CAMERA.height), interpolation=cv2.INTER_CUBIC)
    good = stereo_scale(*pair(depth), depth, CAMERA, BASELINE)
    poor = stereo_scale(*pair(depth), depth * np.exp(wrong), CAMERA, BASELINE)
    assert poor.sigma > 2 * good.sigma and abs(np.log(poor.factor)) < 2 * poor.sigma


def test_the_two_eyes_need_not_be_equally_bright():
    depth = relief()
    left, right = pair(depth)
    darker = (right * 0.6 + 12).astype(np.uint8)
    assert stereo_scale(left, darker, depth, CAMERA, BASELINE).factor == pytest.approx(1, rel=0.02)


def test_invalid_depth_is_left_out_and_none_at_all_is_said():
    depth = relief().astype(np.float32)
    holes = depth.copy()
    holes[:, ::3] = np.nan
    holes[100:140] = 0
    assert stereo_scale(*pair(depth), holes, CAMERA, BASELINE).factor == pytest.approx(1, rel=0.02)
    nothing = stereo_scale(*pair(depth), np.full_like(depth, np.nan), CAMERA, BASELINE)
    assert nothing.factor is None and "invalid" in nothing.reason


def test_rows_that_differ_are_called_not_rectified():
    depth = relief()
    left, right = pair(depth)
    scale = stereo_scale(left, np.roll(right, 9, axis=0), depth, CAMERA, BASELINE)
    assert scale.factor is None and scale.sigma is None
    assert "9 px" in scale.reason and "not rectified" in scale.reason


def test_rows_that_differ_a_little_are_forgiven_in_the_factor_and_not_in_sigma():
    depth = relief()
    left, right = pair(depth)
    scale = stereo_scale(left, np.roll(right, 2, axis=0), depth, CAMERA, BASELINE)
    assert scale.factor == pytest.approx(1, rel=0.02) and scale.rows == pytest.approx(2, abs=0.2)
    assert scale.sigma > 0.02


def test_swapped_images_are_called_swapped():
    depth = relief()
    left, right = pair(depth)
    scale = stereo_scale(right, left, depth, CAMERA, BASELINE)
    assert scale.factor is None and "swapped" in scale.reason


def test_different_scenes_have_no_scale():
    depth = relief()
    scale = stereo_scale(pair(depth, 0)[0], pair(depth, 7)[1], depth, CAMERA, BASELINE)
    assert scale.factor is None and "different scenes" in scale.reason


def test_a_flat_image_has_no_scale():
    flat = np.full((CAMERA.height, CAMERA.width, 3), 90, np.uint8)
    scale = stereo_scale(flat, flat, relief(), CAMERA, BASELINE)
    assert scale.factor is None and "texture" in scale.reason


def test_the_depth_of_another_image_is_refused():
    depth = relief()
    other = 0.05 * np.exp(np.random.default_rng(0).normal(0, 0.8, depth.shape))
    scale = stereo_scale(*pair(depth), other, CAMERA, BASELINE)
    assert scale.factor is None and "disagree" in scale.reason


def test_a_known_transform_takes_the_place_of_the_baseline():
    depth = relief()
    T = np.eye(4)
    T[0, 3] = -BASELINE
    assert stereo_scale(*pair(depth), depth, CAMERA, 0.0, T).factor == pytest.approx(1, rel=0.01)


def test_a_turned_right_camera_is_accounted_for():
    depth = relief()
    left, right = pair(depth)
    angle = np.radians(
        0.6
    )  # about the optical axis: rows differ by up to 1.7 px at the sides, 30 px of disparity do not
    R = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    H = CAMERA.K @ R @ np.linalg.inv(CAMERA.K)
    turned = cv2.warpPerspective(right, H, (CAMERA.width, CAMERA.height), flags=cv2.INTER_CUBIC)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, R @ (-BASELINE, 0, 0)
    scale = stereo_scale(left, turned, depth, CAMERA, 0.0, T)
    assert scale.factor == pytest.approx(1, rel=0.015) and abs(scale.rows) < 0.3


def test_the_baseline_comes_from_the_right_camera_info():
    P = [600.0, 0, 320, -3.24, 0, 600, 240, 0, 0, 0, 1, 0]
    assert baseline_from_projection(P) == pytest.approx(0.0054)
    with pytest.raises(ValueError, match="right camera"):
        baseline_from_projection([600.0, 0, 320, 0, 0, 600, 240, 0, 0, 0, 1, 0])
    with pytest.raises(ValueError, match="calibrate"):
        baseline_from_projection(np.zeros(12))


def test_inputs_that_do_not_fit_together_are_refused():
    depth = relief()
    left, right = pair(depth)
    with pytest.raises(ValueError, match="right_rgb"):
        stereo_scale(left, right[:-1], depth, CAMERA, BASELINE)
    with pytest.raises(ValueError, match="left_depth"):
        stereo_scale(left, right, depth[::2, ::2], CAMERA, BASELINE)
    with pytest.raises(ValueError, match="baseline_m"):
        stereo_scale(left, right, depth, CAMERA, 0.0)
    with pytest.raises(ValueError, match="rectify"):
        bent = Camera(320, 256, 300.0, 300.0, 159.5, 127.5, "plumb_bob", (-0.3, 0.1, 0.0, 0.0, 0.0))
        stereo_scale(left, right, depth, bent, BASELINE)


@pytest.mark.skipif(not OPENCAS.exists(), reason="needs the OpenCAS pair of scikit-surgerysurfacematch")
def test_real_tissue_agrees_with_its_ct_scan():
    pictures = [cv2.imread(str(OPENCAS / f"Stereo_SD_d_complete_22_IMG_{side}.bmp")) for side in ("left", "right")]
    K, D = (
        [np.loadtxt(OPENCAS / f"calib.{s}.{kind}.txt") for s in ("left", "right")]
        for kind in ("intrinsics", "distortion")
    )
    T, size = np.loadtxt(OPENCAS / "calib.l2r.txt"), pictures[0].shape[1::-1]
    turn, shift = T[:3, :3].copy(), T[:3, 3:].copy() / 1000
    R1, R2, P1, P2 = cv2.stereoRectify(
        K[0], D[0], K[1], D[1], size, turn, shift, flags=cv2.CALIB_ZERO_DISPARITY, alpha=0
    )[:4]
    images = [
        cv2.remap(picture[..., ::-1], *cv2.initUndistortRectifyMap(k, d, R, P, size, cv2.CV_32FC1), cv2.INTER_LINEAR)
        for picture, k, d, R, P in zip(pictures, K, D, (R1, R2), (P1, P2), strict=True)
    ]
    points = np.loadtxt(OPENCAS / "Stereo_SD_d_complete_22_CT_cut.xyz")[:, :3] / 1000 @ R1.T
    u, v = np.rint(points[:, :2] / points[:, 2:] * P1[0, 0] + P1[:2, 2]).astype(int).T
    patch = np.zeros((size[1], size[0]), np.float32)
    patch[v, u] = points[:, 2]
    patch = cv2.dilate(patch, np.ones((9, 9)))  # the points are 2 to 4 px apart
    camera = Camera.from_K(P1[:, :3], *size)
    scale = stereo_scale(*images, np.where(patch > 0, patch / 1.3, np.nan), camera, baseline_from_projection(P2))
    assert scale.factor == pytest.approx(1.3, rel=0.03)
    assert abs(scale.factor / 1.3 - 1) < 2 * scale.sigma < 0.08
