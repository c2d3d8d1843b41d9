"""Masks on drawn images (168x224): what is a highlight, the surround, an instrument, and what only looks like one."""

import cv2
import numpy as np
import pytest

from endomust_core.validity import Border, border_mask, instrument_mask, specular_mask

TISSUE = (170, 80, 60)


def tissue(height=168, width=224):
    """Reddish with a soft texture and a little noise."""
    rng = np.random.default_rng(0)
    cloud = cv2.GaussianBlur(rng.normal(0, 60, (height, width)).astype(np.float32), (0, 0), 6)[..., None]
    noise = rng.normal(0, 2, (height, width, 3))
    return np.clip(np.array(TISSUE) * (1 + 0.01 * cloud) + noise, 0, 255).astype(np.uint8)


def round_picture(radius=80, surround=3):
    """Tissue in a circle, nearly black around; and the mask of the surround."""
    image = tissue()
    v, u = np.mgrid[:168, :224]
    outside = np.hypot(u - 112, v - 84) > radius
    image[outside] = surround
    return image, outside


def overlap(found, true):
    return (found & true).sum() / (found | true).sum()


def test_a_small_white_spot_is_a_highlight():
    image = tissue()
    cv2.circle(image, (100, 60), 3, (250, 245, 240), -1)
    mask = specular_mask(image)
    assert mask[60, 100] and mask.mean() < 0.003


def test_plain_tissue_has_no_highlight():
    assert not specular_mask(tissue()).any()


def test_a_large_pale_area_is_no_highlight():
    image = tissue()
    image[50:110, 60:150] = (210, 205, 195)
    assert specular_mask(image)[60:100, 70:140].mean() < 0.02


def test_the_bright_rim_of_a_round_picture_is_no_highlight_where_the_surround_is_known():
    image, outside = round_picture()
    image[~outside] = (200, 190, 185)
    assert not specular_mask(image, border_mask(image)).any()


def test_the_surround_of_a_round_picture_is_found_with_a_margin_and_nothing_more():
    image, outside = round_picture()
    mask = border_mask(image)
    assert (mask | ~outside).all()
    assert overlap(mask, outside) > 0.9


def test_noise_of_compression_and_writing_on_the_surround_stay_surround():
    image, outside = round_picture()
    noise = np.random.default_rng(1).integers(0, 18, image.shape)
    image[outside] = noise[outside]
    cv2.putText(image, "12:03", (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 255), 1)
    mask = border_mask(image)
    assert (mask | ~outside).all()


def test_a_picture_that_fills_the_image_has_no_surround():
    assert not border_mask(tissue()).any()


@pytest.mark.parametrize("centre", [(112, 84), (112, 160), (0, 84)])
def test_a_dark_lumen_is_no_surround_even_where_it_reaches_the_edge(centre):
    image = tissue()
    cv2.circle(image, centre, 34, (4, 3, 3), -1)
    assert not border_mask(image).any()


def test_over_a_video_a_lumen_in_the_corner_is_told_from_the_surround():
    border = Border()
    for i in range(40):
        image, outside = round_picture()
        cv2.circle(image, (60 + 3 * i, 40), 50, (4, 3, 3), -1)
        image[outside] = 3
        mask = border.update(image)
    assert overlap(mask, outside) > 0.9


def test_a_blackout_does_not_change_what_is_known_of_the_surround():
    border = Border()
    image, _ = round_picture()
    before = border.update(image)
    for _ in range(30):
        after = border.update(np.zeros_like(image))
    assert (before == after).all()


def test_another_image_size_starts_the_surround_again():
    border = Border()
    border.update(round_picture()[0])
    assert not border.update(tissue(120, 160)).any()


def test_a_grey_shaft_from_the_edge_is_an_instrument():
    image, true = tissue(), np.zeros((168, 224), np.uint8)
    cv2.line(true, (0, 150), (110, 80), 1, 17)
    image[true > 0] = (120, 122, 125)
    assert overlap(instrument_mask(image), true > 0) > 0.8


def test_a_black_shaft_is_an_instrument_too():
    image, true = tissue(), np.zeros((168, 224), np.uint8)
    cv2.line(true, (223, 20), (120, 90), 1, 17)
    image[true > 0] = (30, 31, 32)
    assert overlap(instrument_mask(image), true > 0) > 0.8


def test_a_grey_blob_that_touches_no_edge_is_no_instrument():
    image = tissue()
    cv2.circle(image, (112, 84), 25, (150, 150, 150), -1)
    assert not instrument_mask(image).any()


def test_a_round_pale_organ_at_the_edge_is_no_instrument():
    image = tissue()
    cv2.circle(image, (112, 168), 45, (180, 178, 175), -1)
    assert not instrument_mask(image).any()


def test_an_image_without_colour_says_nothing_about_instruments():
    grey = np.repeat(tissue()[..., :1], 3, axis=2)
    assert not instrument_mask(grey).any()


@pytest.mark.parametrize("value", [0, 255])
def test_images_of_one_value_give_masks_of_the_right_kind(value):
    image = np.full((168, 224, 3), value, np.uint8)
    for mask in (specular_mask(image), border_mask(image), instrument_mask(image), Border().update(image)):
        assert mask.shape == (168, 224) and mask.dtype == bool
