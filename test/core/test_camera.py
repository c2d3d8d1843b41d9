"""Cameras: known pixels, rays and points; distortion both ways; calibration files; refusals in words."""

import math

import numpy as np
import pytest

from endomust_core.camera import MAX_PIXELS, Camera, CameraError, load_camera, save_camera

PINHOLE = Camera(64, 48, 50.0, 60.0, 31.5, 23.5)
K = [[500.0, 0, 319.5], [0, 510.0, 239.5], [0, 0, 1]]
DISTORTED = {
    "plumb_bob": (-0.35, 0.12, 0.001, -0.002, 0.01),
    "rational_polynomial": (0.1, -0.1, 0.001, 0.0005, 0.02, 0.35, -0.05, 0.01),
    "equidistant": (-0.02, 0.005, -0.001, 0.0002),
}


def test_rays_of_a_pinhole_by_hand():
    rays = PINHOLE.rays()
    assert rays.shape == (48, 64, 2) and rays.dtype == np.float32
    np.testing.assert_allclose(rays[0, 0], [-31.5 / 50, -23.5 / 60], rtol=1e-6)
    np.testing.assert_allclose(rays[47, 63], [31.5 / 50, 23.5 / 60], rtol=1e-6)


def test_equal_cameras_share_cached_rays_that_nobody_can_change():
    rays = PINHOLE.rays()
    assert Camera(64, 48, 50.0, 60.0, 31.5, 23.5).rays() is rays
    with pytest.raises(ValueError):
        rays[0, 0] = 0


@pytest.mark.parametrize("model", DISTORTED)
def test_every_pixel_comes_back_from_its_undistorted_ray(model):
    camera = Camera.from_K(K, 640, 480, model, DISTORTED[model])
    assert camera.is_distorted
    points = np.dstack([camera.rays(), np.ones((480, 640))]) * 0.07
    u, v = np.meshgrid(np.arange(640), np.arange(480))
    np.testing.assert_allclose(camera.project(points), np.dstack([u, v]), atol=0.02)
    assert np.abs(camera.rays() - camera.pinhole().rays()).max() > 0.01  # distortion did something


def test_plumb_bob_follows_its_formula():
    k1, k2, p1, p2, k3 = D = DISTORTED["plumb_bob"]
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = 500 * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + 319.5
    v = 510 * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) + 239.5
    pixel = Camera.from_K(K, 640, 480, "plumb_bob", D).project(np.array([x, y, 1.0]) * 0.05)
    np.testing.assert_allclose(pixel, [u, v], rtol=1e-9)


def test_equidistant_without_coefficients_is_still_a_fisheye():
    camera = Camera(801, 11, 400.0, 400.0, 400.0, 5.0, "equidistant", (0.0,) * 4)
    assert camera.is_distorted
    np.testing.assert_allclose(camera.rays()[5, 600], [math.tan(0.5), 0], atol=1e-6)  # 200 px from the centre: 0.5 rad
    np.testing.assert_allclose(camera.project([math.tan(0.5), 0, 1]), [600, 5], atol=1e-6)


def test_pixels_that_the_model_cannot_undo_have_no_ray():
    camera = Camera.from_K([[200.0, 0, 320], [0, 200.0, 240], [0, 0, 1]], 641, 481, "plumb_bob", (-0.4, 0, 0, 0))
    rays = camera.rays()
    assert np.isnan(rays[0, 0]).all()  # r = 2 > 0.608, the largest radius this k1 can produce
    assert np.isfinite(rays[240, 320]).all()
    points = camera.back_project(np.full((481, 641), 0.05, np.float32))
    assert np.isnan(points[0, 0]).all() and np.isfinite(points[240, 320]).all()


def test_plumb_bob_of_zeros_is_not_distorted():
    camera = Camera.from_K(K, 640, 480, "plumb_bob", [0, 0, 0, 0, 0])
    assert not camera.is_distorted
    np.testing.assert_array_equal(camera.rays(), camera.pinhole().rays())


def test_back_project_and_project_are_inverse():
    depth = np.linspace(0.02, 0.2, 48 * 64, dtype=np.float32).reshape(48, 64)
    points = PINHOLE.back_project(depth)
    assert points.shape == (48, 64, 3) and points.dtype == np.float32
    np.testing.assert_array_equal(points[..., 2], depth)
    np.testing.assert_allclose(points[10, 20], np.array([-11.5 / 50, -13.5 / 60, 1]) * depth[10, 20], rtol=1e-6)
    u, v = np.meshgrid(np.arange(64), np.arange(48))
    np.testing.assert_allclose(PINHOLE.project(points), np.dstack([u, v]), atol=1e-4)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_back_project_leaves_holes_as_nan(hole):
    depth = np.full((48, 64), 0.05, np.float32)
    depth[3, 4] = hole
    points = PINHOLE.back_project(depth)
    assert np.isnan(points[3, 4]).all()
    assert np.isfinite(np.delete(points.reshape(-1, 3), 3 * 64 + 4, axis=0)).all()


@pytest.mark.parametrize("model", ["pinhole", *DISTORTED])
def test_points_behind_the_camera_have_no_pixel(model):
    camera = Camera.from_K(K, 640, 480, model, DISTORTED.get(model, ()))
    pixels = camera.project(np.array([[0.0, 0.0, 0.1], [0.0, 0.0, -0.1], [0.0, 0.0, 0.0], [0.1, 0.1, np.nan]]))
    np.testing.assert_allclose(pixels[0], [319.5, 239.5])
    assert np.isnan(pixels[1:]).all()
    assert camera.project(np.empty((0, 3))).shape == (0, 2)


def test_resized_keeps_the_corners_of_the_image():
    half = PINHOLE.resized(32, 24)
    assert (half.width, half.height, half.fx, half.fy) == (32, 24, 25.0, 30.0)
    assert (half.cx, half.cy) == (15.5, 11.5)  # (31.5+0.5)/2-0.5: the centre of the image stays its centre
    assert Camera(64, 48, 50.0, 60.0, 30.0, 20.0).resized(128, 96).cx == 60.5


def test_resized_agrees_with_what_opencv_does_to_the_image():
    import cv2

    column = np.tile(np.arange(64, dtype=np.float32), (48, 1))  # the image holds its own u
    small = cv2.resize(column, (16, 12), interpolation=cv2.INTER_AREA)
    camera = PINHOLE.resized(16, 12)
    np.testing.assert_allclose((small[0] - PINHOLE.cx) / PINHOLE.fx, camera.rays()[0, :, 0], atol=1e-6)


def test_cropped_moves_the_principal_point():
    cropped = PINHOLE.cropped(10, 5, 40, 30)
    assert (cropped.width, cropped.height, cropped.cx, cropped.cy) == (40, 30, 21.5, 18.5)
    np.testing.assert_array_equal(cropped.rays(), PINHOLE.rays()[5:35, 10:50])
    with pytest.raises(CameraError, match="leaves the image"):
        PINHOLE.cropped(30, 0, 40, 30)


def test_from_K_reads_nine_numbers_and_gives_K_back():
    camera = Camera.from_K(np.ravel(K), np.uint32(640), np.uint32(480), "", np.zeros(5))
    assert camera.model == "pinhole" and camera.D == () and type(camera.width) is int
    np.testing.assert_array_equal(camera.K, K)
    assert Camera.from_K(K, 640, 480, "fisheye", [0.1, 0, 0, 0]).model == "equidistant"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"K": np.zeros(9)}, "uncalibrated"),
        ({"K": [[math.nan, 0, 1], [0, 1, 1], [0, 0, 1]]}, "NaN"),
        ({"K": [[500, 0, math.inf], [0, 500, 1], [0, 0, 1]]}, "NaN or infinity"),
        ({"K": [[-500, 0, 1], [0, 500, 1], [0, 0, 1]]}, "must be positive"),
        ({"K": [[500, 319.5, 0], [0, 500, 1], [0, 0, 1]]}, "order"),
        ({"K": np.eye(4)}, "3x3"),
        ({"width": 0}, "0x480 is not positive"),
        ({"height": -1}, "640x-1 is not positive"),
        ({"D": (0.1, 0.2, 0.3)}, "plumb_bob takes 0 or 4 or 5 .* got 3"),
        ({"D": (0.1, math.nan, 0, 0)}, "NaN"),
        ({"model": "equidistant", "D": ()}, "equidistant takes 4"),
        ({"model": "pinhole", "D": (0.1, 0, 0, 0)}, "pinhole takes 0"),
        ({"model": "kannala"}, "'kannala' is unknown; use one of pinhole"),
    ],
)
def test_a_bad_calibration_is_refused_in_words(change, words):
    good = {"K": K, "width": 640, "height": 480, "model": "plumb_bob", "D": (0.1, 0, 0, 0)}
    with pytest.raises(CameraError, match=words):
        Camera.from_K(**(good | change))


def test_depth_of_another_size_is_refused():
    with pytest.raises(CameraError, match="depth is 32x24, the camera is 64x48"):
        PINHOLE.back_project(np.ones((24, 32), np.float32))


@pytest.mark.parametrize("model", DISTORTED)
def test_calibration_file_round_trip(tmp_path, model):
    camera = Camera.from_K(K, 640, 480, model, DISTORTED[model])
    save_camera(tmp_path / "left.yaml", camera, name="left")
    assert "camera_name: left" in (tmp_path / "left.yaml").read_text()
    assert load_camera(tmp_path / "left.yaml") == camera


def test_a_saved_pinhole_is_a_plumb_bob_of_zeros_that_ros_can_read(tmp_path):
    save_camera(tmp_path / "pinhole.yaml", PINHOLE)
    camera = load_camera(tmp_path / "pinhole.yaml")
    assert camera.model == "plumb_bob" and not camera.is_distorted
    np.testing.assert_array_equal(camera.K, PINHOLE.K)


def test_calibration_file_as_ros_writes_it(tmp_path):
    (tmp_path / "ecm.yaml").write_text(
        """image_width: 1280
image_height: 1024
camera_name: ecm_left
camera_matrix:
  rows: 3
  cols: 3
  data: [1035.3, 0.0, 596.9, 0.0, 1035.1, 520.4, 0.0, 0.0, 1.0]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.0039, 0.0, 0.0013, -0.0007, 0.0]
rectification_matrix: {rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}
"""
    )
    camera = load_camera(tmp_path / "ecm.yaml")
    assert (camera.width, camera.height, camera.fx, camera.cy) == (1280, 1024, 1035.3, 520.4)
    assert camera.D == (-0.0039, 0.0, 0.0013, -0.0007, 0.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_width: 640", "'camera_matrix' is missing"),
        ("[1, 2]", "not a camera_info file"),
        ("a: [", "not YAML"),
        ("", "not a camera_info file"),
    ],
)
def test_a_bad_calibration_file_is_refused_in_words(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(CameraError, match=words):
        load_camera(tmp_path / "bad.yaml")


def test_a_missing_or_uncalibrated_file_is_named(tmp_path):
    with pytest.raises(CameraError, match="no calibration file .*gone.yaml"):
        load_camera(tmp_path / "gone.yaml")
    save_camera(tmp_path / "zero.yaml", PINHOLE)
    text = (tmp_path / "zero.yaml").read_text().replace("[50.0,", "[0.0,")
    (tmp_path / "zero.yaml").write_text(text)
    with pytest.raises(CameraError, match="zero.yaml: the camera is uncalibrated"):
        load_camera(tmp_path / "zero.yaml")


def test_strided_camera_has_the_rays_of_every_nth_pixel():
    camera = Camera(63, 50, 70.0, 71.0, 30.0, 26.0, "plumb_bob", (-0.1, 0.01, 0.0, 0.0, 0.0))
    strided = camera.strided(4)
    assert (strided.width, strided.height) == (16, 13)
    np.testing.assert_allclose(strided.rays(), camera.rays()[::4, ::4], atol=1e-5)


TILTED = (0.1, -0.1, 0.001, 0.0005, 0.02, 0.35, -0.05, 0.01, 0.002, -0.001, 0.003, 0.001, 0.02, -0.03)


@pytest.mark.parametrize("flip", ["h", "v", "180"])
@pytest.mark.parametrize(("model", "D"), [*DISTORTED.items(), ("rational_polynomial", TILTED), ("pinhole", ())])
def test_a_flipped_camera_sees_the_mirrored_world_in_the_mirrored_pixels(model, D, flip):
    camera = Camera(640, 480, 500.0, 510.0, 300.0, 250.0, model, D)
    mirror = np.array({"h": (-1, 1, 1), "v": (1, -1, 1), "180": (-1, -1, 1)}[flip])
    points = np.random.default_rng(0).uniform((-0.03, -0.02, 0.06), (0.03, 0.02, 0.1), (40, 3))
    u, v = camera.project(points).T
    expected = (639 - u if flip != "v" else u), (479 - v if flip != "h" else v)
    np.testing.assert_allclose(camera.flipped(flip).project(points * mirror), np.column_stack(expected), atol=1e-9)
    back = camera.flipped(flip).flipped(flip)
    np.testing.assert_allclose([back.cx, back.cy, *back.D], [camera.cx, camera.cy, *camera.D])
    assert camera.flipped("none") == camera
    with pytest.raises(CameraError, match="use one of none, h, v, 180"):
        camera.flipped("left")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fx": 1e-9}, "fx=1e-09, .* fit no lens .*is K in pixels and for this size"),
        ({"fy": 1e300}, "fit no lens"),
        ({"fx": 30.0}, r"32 to 32000 is believed"),
        ({"cx": -641.0}, "principal point .* far outside"),
        ({"cy": 1e12}, "principal point .* far outside"),
        ({"D": (1e300, 0, 0, 0)}, "fits no lens"),
    ],
)
def test_numbers_that_no_lens_has_are_not_plausible(change, words):
    good = {"width": 640, "height": 480, "fx": 500.0, "fy": 500.0, "cx": 320.0, "cy": 240.0, "model": "plumb_bob"}
    assert Camera(**good).plausible() == Camera(**good)
    with pytest.raises(CameraError, match=words):
        Camera(**good | change).plausible()


def test_an_image_too_large_for_rays_is_no_camera():
    side = int(MAX_PIXELS**0.5)
    assert Camera(side, side, 1e3, 1e3, 0.0, 0.0).width == side
    for width, height in ((side, side + 1), (2**32 - 1, 2**32 - 1), (MAX_PIXELS + 1, 1)):
        with pytest.raises(CameraError, match="beyond 16 megapixels; reduce the images"):
            Camera(width, height, 1e3, 1e3, 0.0, 0.0)


def test_one_row_of_a_million_pixels_has_rays_without_filling_the_memory():
    camera = Camera(1_000_000, 1, 5e5, 5e5, 5e5, 0.0, "plumb_bob", (-0.1, 0.01, 0.0, 0.0))
    rays = camera.rays()
    assert rays.shape == (1, 1_000_000, 2)
    np.testing.assert_allclose(camera.project([*rays[0, 123_456], 1.0]), [123_456, 0], atol=0.1)


def test_a_crop_given_in_unsigned_numbers_does_not_wrap():
    with pytest.raises(CameraError, match="leaves the image"):
        PINHOLE.cropped(np.uint32(2**32 - 1), np.uint32(0), np.uint32(2), np.uint32(2))
