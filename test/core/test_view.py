"""Views of an image: distorted grids come out straight, one step equals the steps, and the camera fits the pixels."""

import time

import cv2
import numpy as np
import pytest

from endomust_core.bundle import resize_rgb
from endomust_core.camera import Camera, CameraError
from endomust_core.view import View

WIDTH, HEIGHT = SIZE = (320, 256)
LENSES = {
    "plumb_bob": (-0.35, 0.12, 0.001, -0.002, 0.01),
    "rational_polynomial": (0.1, -0.1, 0.001, 0.0005, 0.02, 0.35, -0.05, 0.01),
    "equidistant": (-0.02, 0.005, -0.001, 0.0002),
}
CAMERAS = {model: Camera(*SIZE, 260.0, 265.0, 163.0, 120.5, model, D) for model, D in LENSES.items()}
BARREL, PINHOLE = CAMERAS["plumb_bob"], Camera(*SIZE, 260.0, 265.0, 163.0, 120.5)
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def dots(camera, rays):
    """(H,W,3) uint8: a soft dot of sigma 2 px where the camera sees each of the (N,2) rays."""
    v, u = np.mgrid[: camera.height, : camera.width]
    picture = np.zeros((camera.height, camera.width))
    for x, y in camera.project(np.column_stack([rays, np.ones(len(rays))])):
        picture += np.exp(-((u - x) ** 2 + (v - y) ** 2) / 8)
    return np.dstack([(220 * picture.clip(0, 1)).astype(np.uint8)] * 3)


def centroid(picture, pixel):
    """Where the dot near a pixel stands (x, y)."""
    x, y = np.round(pixel).astype(int)
    patch = picture[y - 7 : y + 8, x - 7 : x + 8, 0].astype(float)
    v, u = np.mgrid[y - 7 : y + 8, x - 7 : x + 8]
    return np.array([(u * patch).sum(), (v * patch).sum()]) / patch.sum()


def smooth(width, height, detail=10.0):
    """A picture without detail finer than so many pixels."""
    v, u = np.mgrid[:height, :width] / detail
    waves = [127 + 100 * np.sin(u / a) * np.cos(v / b) for a, b in ((0.9, 1.3), (1.7, 0.8), (1.1, 1.1))]
    return np.dstack(waves).astype(np.uint8)


GRID = np.stack(np.meshgrid(np.linspace(-0.4, 0.4, 5), np.linspace(-0.3, 0.3, 4)), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize("size", [None, (192, 240)])
@pytest.mark.parametrize("flip", ["none", "h", "180"])
@pytest.mark.parametrize("model", CAMERAS)
def test_a_grid_seen_through_the_lens_comes_out_where_a_pinhole_sees_it(model, flip, size):
    view = View.of(CAMERAS[model], SIZE, flip=flip, undistort=True)
    shown = view.image(dots(CAMERAS[model], GRID), size)
    signs = {"none": (1, 1), "h": (-1, 1), "180": (-1, -1)}[flip]
    camera = view.camera if size is None else view.camera.resized(size[1], size[0])
    assert not camera.is_distorted and (camera.height, camera.width) == shown.shape[:2]
    pixels = camera.project(np.column_stack([GRID * signs, np.ones(len(GRID))]))
    rim = np.minimum(pixels, np.array([camera.width, camera.height]) - 1 - pixels).min(axis=1)
    whole = rim > 8
    assert whole.sum() >= 15
    found = np.array([centroid(shown, pixel) for pixel in pixels[whole]])
    assert np.abs(found - pixels[whole]).max() < 0.3
    bent = CAMERAS[model].project(np.column_stack([GRID, np.ones(len(GRID))]))
    assert np.abs(bent - PINHOLE.project(np.column_stack([GRID, np.ones(len(GRID))]))).max() > 3  # a lens to speak of


@pytest.mark.parametrize("flip", ["none", "h", "v", "180"])
@pytest.mark.parametrize("undistort", [False, True])
@pytest.mark.parametrize("size", [None, (90, 110)])
def test_one_step_is_crop_then_undistort_then_flip_then_resize(flip, undistort, size):
    rgb, (x, y, width, height) = smooth(*SIZE), (30, 20, 240, 200)
    step = rgb[y : y + height, x : x + width]
    if undistort:
        camera = BARREL.cropped(x, y, width, height)
        maps = cv2.initUndistortRectifyMap(
            camera.K, np.array(camera.D), np.eye(3), camera.K, (width, height), cv2.CV_32FC1
        )
        step = cv2.remap(step, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    step = {"none": step, "h": step[:, ::-1], "v": step[::-1], "180": step[::-1, ::-1]}[flip]
    step = np.ascontiguousarray(step) if size is None else resize_rgb(np.ascontiguousarray(step), size)
    shown = View.of(BARREL, SIZE, (x, y, width, height), flip, undistort).image(rgb, size)
    assert shown.shape == step.shape and shown.flags.c_contiguous
    difference = np.abs(shown.astype(int) - step)
    if undistort:
        assert difference.max() <= 12 and difference.mean() < 1.2
    else:
        assert difference.max() <= (size is not None)  # a rounding: the small picture is flipped, not the large one


@pytest.mark.parametrize("model", [*CAMERAS, "pinhole"])
@pytest.mark.parametrize("flip", ["none", "h", "v", "180"])
def test_the_distorted_camera_of_a_view_sees_points_where_the_picture_has_them(model, flip):
    raw = CAMERAS.get(model, PINHOLE)
    camera = View.of(raw, SIZE, (16, 8, 288, 240), flip).camera
    points = np.column_stack([GRID, np.ones(len(GRID))]) * 0.07
    mirror = np.array([-1 if flip in ("h", "180") else 1, -1 if flip in ("v", "180") else 1, 1])
    pixels = raw.project(points) - (16, 8)
    x = 287 - pixels[:, 0] if flip in ("h", "180") else pixels[:, 0]
    y = 239 - pixels[:, 1] if flip in ("v", "180") else pixels[:, 1]
    np.testing.assert_allclose(camera.project(points * mirror), np.column_stack([x, y]), atol=1e-9)
    assert (camera.width, camera.height) == (288, 240)


def test_a_flip_mirrors_the_principal_point():
    assert View.of(PINHOLE, SIZE, flip="h").camera == Camera(*SIZE, 260.0, 265.0, 319 - 163.0, 120.5)
    assert View.of(PINHOLE, SIZE, flip="180").camera == Camera(*SIZE, 260.0, 265.0, 319 - 163.0, 255 - 120.5)


@pytest.mark.parametrize("size", [(168, 224), (256, 320), (300, 400)])
def test_a_view_with_nothing_to_do_is_the_plain_resize_bit_for_bit(size):
    for camera, undistort in ((None, True), (BARREL, False), (PINHOLE, True)):
        view = View.of(camera, SIZE, (0, 0, *SIZE), undistort=undistort)
        assert view.identity and view.size == SIZE and view.valid(size) is None
        assert view.image(RGB) is RGB
        for rgb in (RGB, RGB[..., ::-1]):
            np.testing.assert_array_equal(view.image(rgb, size), resize_rgb(rgb, size))
    assert not View.of(BARREL, SIZE, undistort=True).identity


@pytest.mark.parametrize("undistort", [False, True])
@pytest.mark.parametrize("size", [None, (60, 70)])
def test_a_bgr_image_seen_from_the_other_end_gives_the_same_contiguous_picture(undistort, size):
    bgr = np.ascontiguousarray(RGB[..., ::-1])
    bgr.setflags(write=False)  # as bytes of a message are
    view = View.of(BARREL, SIZE, (10, 10, 300, 240), "v", undistort)
    shown = view.image(bgr[..., ::-1], size)
    np.testing.assert_array_equal(shown, view.image(RGB, size))
    assert shown.flags.c_contiguous


def test_corners_that_a_pincushion_leaves_empty_are_black_and_invalid():
    view = View.of(Camera(*SIZE, 260.0, 260.0, 159.5, 127.5, "plumb_bob", (0.4, 0.0, 0.0, 0.0)), SIZE, undistort=True)
    shown, valid = view.image(np.full((HEIGHT, WIDTH, 3), 200, np.uint8)), view.valid()
    assert valid.shape == (HEIGHT, WIDTH) and not valid[0, 0] and not valid[-1, -1] and valid[128, 160]
    np.testing.assert_array_equal(shown[..., 0] == 200, valid)  # nothing between black and the picture either
    assert View.of(CAMERAS["plumb_bob"], SIZE, undistort=True).valid() is None
    with pytest.raises(ValueError):
        valid[0, 0] = True


def test_what_lies_outside_the_region_of_interest_does_not_come_back_by_undistortion():
    rgb = RGB.copy()
    rgb[:40] = 255  # an overlay
    rgb[40:] = 100
    lens = Camera(*SIZE, 260.0, 260.0, 159.5, 127.5, "plumb_bob", (0.4, 0.0, 0.0, 0.0))
    view = View.of(lens, SIZE, (0, 40, 320, 216), undistort=True)
    assert view.image(rgb).max() == 100 and not view.valid()[0, 0]


def test_a_lens_that_folds_shows_nothing_twice():
    lens = Camera(641, 481, 200.0, 200.0, 320.0, 240.0, "plumb_bob", (-0.4, 0.0, 0.0, 0.0))  # folds at r = 0.913
    valid = View.of(lens, (641, 481), undistort=True).valid()
    assert valid[240, 320 + 180] and not valid[240, 320 + 186] and not valid[0, 0]


def test_a_fisheye_of_180_degrees_stays_as_large_as_it_is():
    lens = Camera(*SIZE, 320 / np.pi, 320 / np.pi, 159.5, 127.5, "equidistant", (0.0,) * 4)
    view = View.of(lens, SIZE, undistort=True)
    assert view.size == SIZE and view.camera == lens.pinhole() and view.valid() is None
    picture = view.image(dots(lens, np.array([[1.0, 0.0]])))  # 45 degrees
    np.testing.assert_allclose(centroid(picture, [159.5 + 320 / np.pi, 127.5]), [159.5 + 320 / np.pi, 127.5], atol=0.3)


@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_a_mask_goes_the_way_of_the_image(kind):
    x = np.zeros((HEIGHT, WIDTH), bool)
    x[60:200, 90:260] = True
    scale = 1 if kind is bool else 255
    view = View.of(BARREL, SIZE, (30, 20, 240, 200), "h", undistort=True)
    for size in ((100, 120), (200, 240)):
        picture = view.image(np.dstack([x.astype(np.uint8) * 255] * 3), size)[..., 0]
        mask = view.mask(x.astype(kind) * kind(scale), size)
        assert mask.dtype == kind and mask.shape == size and 0.2 < np.mean(mask > 0) < 0.9
        sure = (picture < 60) | (picture > 195)  # beside the edge, nearest and bilinear agree
        np.testing.assert_array_equal(mask[sure] > 0, picture[sure] > 127)
        assert sure.mean() > 0.95
    plain = View.of(None, SIZE, (30, 20, 240, 200), "180")
    np.testing.assert_array_equal(plain.mask(x), x[20:220, 30:270][::-1, ::-1])
    np.testing.assert_array_equal(plain.mask(x[::2, ::2]), x[20:220, 30:270][::-1, ::-1])
    with pytest.raises(ValueError, match="send a mask of the whole image"):
        plain.mask(x[:, :100])


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_an_image_that_was_decoded_smaller_gives_the_same_picture(reduction):
    rgb = smooth(1280, 1024, detail=60.0)  # 2 grey levels a pixel at the steepest: half a small pixel would show
    small = resize_rgb(rgb, (1024 // reduction, 1280 // reduction))
    camera = BARREL.resized(1280, 1024)
    for view in (
        View.of(camera, (1280, 1024), undistort=True),
        View.of(None, (1280, 1024), (101, 83, 1003, 901), "h"),
        View.of(None, (1280, 1024), (160, 80, 800, 640)),
    ):
        near = np.abs(view.image(rgb, (90, 110)).astype(int) - view.image(small, (90, 110)))[3:-3, 3:-3]
        assert near.max() <= 3
    assert View.of(None, (1280, 1024), (0, 0, 640, 1024)).needed((100, 200)) == (400, 100)


def test_fine_detail_does_not_turn_into_coarse_patterns():
    v, u = np.mgrid[:1024, :1280]
    board = np.dstack([((u // 3 + v // 3) % 2 * 255).astype(np.uint8)] * 3)  # finer than a pixel of the answer
    camera = Camera(1280, 1024, 1040.0, 1060.0, 652.0, 482.0, "plumb_bob", (-0.2, 0.05, 0.0, 0.0))
    ripple = {
        antialias: View.of(camera, (1280, 1024), undistort=True, antialias=antialias).image(board, (168, 224)).std()
        for antialias in (True, False)
    }
    assert ripple[False] > 60 and ripple[True] < 20  # grey everywhere would be 0


def test_equal_asks_get_one_view_and_maps_are_made_once():
    view = View.of(BARREL, SIZE, [0, 0, 320, 200], "h", True)
    assert View.of(Camera(*SIZE, 260.0, 265.0, 163.0, 120.5, "plumb_bob", LENSES["plumb_bob"]), SIZE,
                   np.array([0, 0, 320, 200]), "h", True) is view  # fmt: skip
    assert View.of(BARREL, SIZE, (), "h", True) is not view
    camera = BARREL.resized(1280, 1024)
    large, rgb = View.of(camera, (1280, 1024), undistort=True), np.zeros((1024, 1280, 3), np.uint8)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        large.image(rgb)
        times.append(time.perf_counter() - start)
    assert times[0] < 1.5 and times[1] < times[0]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"roi": (0, 0, 321, 10)}, r"321x10 at \(0, 0\) leaves the image of 320x256; make it smaller"),
        ({"roi": (-1, 0, 10, 10)}, "give x, y, width, height"),
        ({"roi": (0, 0, 0, 10)}, "give x, y, width, height"),
        ({"roi": (1, 2, 3)}, "give x, y, width, height"),
        ({"roi": (0.5, 0, 10, 10)}, "whole numbers"),
        ({"flip": "left"}, "flip is 'left'; use one of none, h, v, 180"),
        ({"size": (640, 512)}, "the image is 640x512, the camera is 320x256"),
        ({"size": (0, 0)}, "give .width, height."),
    ],
)
def test_a_view_that_cannot_be_is_refused_in_words(ask, words):
    with pytest.raises(CameraError, match=words):
        View.of(**{"camera": BARREL, "size": SIZE, **ask})


def test_an_image_of_another_size_or_kind_is_refused_in_words():
    view = View.of(BARREL, SIZE, undistort=True)
    with pytest.raises(ValueError, match="the image is 300x256, the view is of 320x256; make another view"):
        view.image(RGB[:, :300])
    for wrong in (RGB[..., 0], RGB.astype(np.float32), RGB[..., :2]):
        with pytest.raises(ValueError, match="give .H,W,3. uint8 RGB"):
            view.image(wrong)
