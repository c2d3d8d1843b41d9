"""Losses against numbers worked out by hand, their gradients against finite differences, masks on drawn images."""

import math

import pytest

torch = pytest.importorskip("torch")

from endomust_core.learning.losses import (  # noqa: E402
    border_mask,
    edge_smoothness,
    geometry_consistency,
    masked_mean,
    normalised_disparity,
    photometric,
    reconstruction,
    reflectance_sparsity,
    residual_smoothness,
    shading_smoothness,
    specular_mask,
    ssim_distance,
)
from endomust_core.simulation import renderer  # noqa: E402

TISSUE = torch.tensor([0.6, 0.3, 0.2]).view(1, 3, 1, 1)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def exact(*shape):
    return torch.rand(*shape, dtype=torch.float64)


def gradients_are_right(function, *inputs):
    return torch.autograd.gradcheck(function, [values.requires_grad_() for values in inputs], fast_mode=True)


# --- masked mean


def test_masked_mean_is_that_of_each_sample_and_zero_where_the_mask_is_empty():
    values = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]).view(2, 1, 2, 2).requires_grad_()
    mask = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool).view(2, 1, 2, 2)
    mean = masked_mean(values, mask)
    assert mean.tolist() == [2.5, 0]
    mean.sum().backward()
    assert values.grad.flatten().tolist() == [0.5, 0, 0, 0.5, 0, 0, 0, 0]


def test_one_mask_serves_all_channels():
    values = torch.stack((torch.full((2, 2), 1.0), torch.full((2, 2), 4.0)))[None]
    mask = torch.tensor([[1.0, 0], [0, 0]]).view(1, 1, 2, 2)
    assert masked_mean(values, mask).item() == masked_mean(values, mask.expand_as(values)).item() == 2.5


# --- photometric distance


def test_identical_images_have_no_distance_and_no_gradient():
    image = torch.rand(2, 3, 9, 11, requires_grad=True)
    distance = photometric(image, image.detach().clone())
    distance.sum().backward()
    assert distance.shape == (2, 1, 9, 11) and (distance == 0).all()
    assert image.grad.abs().max() < 1e-5


def test_photometric_distance_of_two_flat_images_by_hand():
    a, b = torch.full((1, 3, 4, 5), 0.4, dtype=torch.float64), torch.full((1, 3, 4, 5), 0.6, dtype=torch.float64)
    ssim = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)  # variances are zero: only the means differ
    expected = 0.85 * (1 - ssim) / 2 + 0.15 * 0.2
    torch.testing.assert_close(photometric(a, b), torch.full((1, 1, 4, 5), expected, dtype=torch.float64))


def test_ssim_by_the_definition():
    """Means and variances over 3×3 windows, edges reflected, pixel by pixel."""
    a, b = exact(1, 2, 4, 5), exact(1, 2, 4, 5)
    got = ssim_distance(a, b)[0, 0]
    reflect = lambda i, n: abs(i) if i < n else 2 * (n - 1) - i  # noqa: E731
    for y in range(4):
        for x in range(5):
            total = 0.0
            for channel in range(2):
                window = [(reflect(y + i, 4), reflect(x + j, 5)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
                p, q = (torch.stack([image[0, channel, r, c] for r, c in window]) for image in (a, b))
                covariance = ((p - p.mean()) * (q - q.mean())).mean()
                ssim = (2 * p.mean() * q.mean() + 1e-4) * (2 * covariance + 9e-4)
                ssim /= (p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (p.var(False) + q.var(False) + 9e-4)
                total += (1 - ssim) / 2 / 2
            assert got[y, x].item() == pytest.approx(total.item(), abs=1e-12)


def test_opposite_patterns_are_farther_apart_than_independent_ones():
    pattern = 0.3 * torch.tensor([1.0, -1.0]).repeat(4, 4)[None, None].expand(1, 3, 4, 8)
    same, opposite = ssim_distance(0.5 + pattern, 0.5 + pattern), ssim_distance(0.5 + pattern, 0.5 - pattern)
    assert same.max() < 1e-6 and 0.9 < opposite.min() and opposite.max() <= 1


@pytest.mark.parametrize("function", [ssim_distance, photometric])
def test_gradient_of_the_photometric_distance(function):
    assert gradients_are_right(function, exact(2, 3, 4, 5), exact(2, 3, 4, 5))
    fixed = exact(1, 3, 3, 4)
    assert gradients_are_right(lambda image: function(image, fixed), exact(1, 3, 3, 4))
    assert gradients_are_right(lambda image: function(fixed, image), exact(1, 3, 3, 4))


# --- smoothness


def test_edge_smoothness_by_hand():
    values = torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]]).view(1, 1, 2, 3)
    image = torch.zeros(1, 3, 2, 3)
    image[:, 0, :, 2] = 0.3  # an edge between the last two columns; its mean over channels is 0.1
    # Along x the differences are 1 and 2 e^{-0.1}, along y all zero.
    assert edge_smoothness(values, image).item() == pytest.approx((1 + 2 * math.exp(-0.1)) / 2)
    along_y = edge_smoothness(values.transpose(2, 3), image.transpose(2, 3)).item()
    assert along_y == pytest.approx((1 + 2 * math.exp(-0.1)) / 2)


def test_normalised_disparity_has_mean_one():
    disparity = torch.tensor([1.0, 3, 2, 6]).view(2, 1, 1, 2)
    assert normalised_disparity(disparity).flatten().tolist() == pytest.approx([0.5, 1.5, 0.5, 1.5])


def test_residual_smoothness_by_hand():
    appearance = torch.tensor([0.0, 0.2, 0.2, 0.8]).view(1, 1, 1, 4).expand(1, 3, 1, 4).expand(1, 3, 2, 4)
    residual = torch.zeros(1, 3, 2, 4)
    residual[..., 3] = 0.6
    mask = torch.ones(1, 1, 2, 4)
    expected = (0.2 + 0 + 0.6 * math.exp(-0.6)) / 3
    assert residual_smoothness(appearance, residual, mask).item() == pytest.approx(expected)
    mask[..., 3] = 0  # leaves two of three differences
    assert residual_smoothness(appearance, residual, mask.bool()).item() == pytest.approx(0.1)
    assert residual_smoothness(appearance, residual, 0 * mask).item() == 0


def test_gradients_of_smoothness():
    image, mask = exact(2, 3, 3, 4), torch.rand(2, 1, 3, 4) > 0.3
    assert gradients_are_right(lambda values: edge_smoothness(values, image), exact(2, 2, 3, 4))
    assert gradients_are_right(edge_smoothness, exact(1, 1, 3, 4), exact(1, 3, 3, 4))
    assert gradients_are_right(normalised_disparity, 0.1 + exact(2, 1, 3, 4))
    assert gradients_are_right(lambda a, r: residual_smoothness(a, r, mask), exact(2, 3, 3, 4), exact(2, 3, 3, 4))


# --- geometry and reconstruction


def test_geometry_consistency_by_hand():
    a, b = torch.tensor([0.03, 0.05]).view(1, 1, 1, 2), torch.tensor([0.01, 0.05]).view(1, 1, 1, 2)
    difference, mean = geometry_consistency(a, b, torch.ones(1, 1, 1, 2))
    assert difference.flatten().tolist() == pytest.approx([0.5, 0])
    assert mean.item() == pytest.approx(0.25)
    assert geometry_consistency(a, b, torch.tensor([True, False]).view(1, 1, 1, 2))[1].item() == pytest.approx(0.5)
    mask = torch.rand(2, 1, 3, 4) > 0.3
    inputs = (0.1 + exact(2, 1, 3, 4), 1.2 + exact(2, 1, 3, 4))
    assert gradients_are_right(lambda a, b: geometry_consistency(a, b, mask), *inputs)


def test_reconstruction_clips_as_the_sensor_does():
    reflectance, shading = torch.full((1, 3, 4, 4), 0.5), torch.full((1, 1, 4, 4), 3.0)
    assert reconstruction(reflectance, shading, torch.ones(1, 3, 4, 4)).item() == pytest.approx(0, abs=1e-6)
    assert reconstruction(reflectance, shading / 3, torch.full((1, 3, 4, 4), 0.5)).item() == pytest.approx(0, abs=1e-6)
    image = torch.ones(1, 3, 4, 4)
    image[..., :2] = 0.2  # wrong on the left
    everywhere = reconstruction(reflectance, shading, image).item()
    left = torch.zeros(1, 1, 4, 4)
    left[..., :1] = 1
    assert 0 < everywhere < reconstruction(reflectance, shading, image, left).item()
    assert reconstruction(reflectance, shading, image, 0 * left).item() == 0
    fixed = exact(1, 3, 3, 4)
    assert gradients_are_right(lambda r, s: reconstruction(r, s, fixed), 0.9 * exact(1, 3, 3, 4), exact(1, 1, 3, 4))


# --- masks


def tissue(size=(64, 80)):
    """Red tissue under light that falls off to the right."""
    return TISSUE * torch.linspace(1.5, 0.5, size[1]).expand(1, 1, *size)


def test_a_highlight_is_found_and_tissue_is_not():
    image = tissue()
    assert not specular_mask(image).any()
    image[:, :, 30:33, 40:44] = 0.95
    seen = specular_mask(image)
    assert seen[0, 0, 28:35, 38:46].all() and seen.sum() == 7 * 8  # grown by two pixels each way
    assert specular_mask(image, grow=0).sum() == 12
    assert specular_mask(torch.ones(1, 3, 64, 80)).all()  # all saturated: nothing to see


def test_highlights_of_a_rendered_frame():
    frame = renderer("laparo", (128, 160), seed=5, detail=256).at(1.0, 1.04)
    image = torch.from_numpy(frame.rgb).permute(2, 0, 1)[None] / 255
    diffuse = torch.from_numpy((frame.albedo * frame.shading).mean(-1))
    specular = torch.from_numpy(frame.specular)
    true = (specular > diffuse) & (specular > 0.15) & torch.from_numpy(~frame.instrument)
    found = specular_mask(image)[0, 0]
    assert true.float().mean() > 0.002
    assert found[true].float().mean() > 0.8
    dull = (specular < 0.05 * diffuse) & torch.from_numpy(~frame.instrument)
    assert found[dull].float().mean() < 0.15  # those next to a highlight are


def test_the_border_is_left_out_and_dark_tissue_is_not():
    image = tissue()
    image[:, :, 20:40, 30:50] = 0.01  # the dark lumen inside
    assert border_mask(image).all()
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(80) - 39.5, indexing="ij")
    radius = torch.sqrt(x * x + y * y)
    image = image * (radius < 30) + 0.02 * torch.rand(1, 3, 64, 80)
    image[:, :, 2, 3] = 1.0  # a speck in the border
    lit = border_mask(image)[0, 0]
    assert not lit[radius > 30].any() and lit[radius < 25].all()
    assert border_mask(image, shrink=0)[0, 0][radius < 28].all()
    assert not border_mask(torch.zeros(1, 3, 16, 20)).any()


# --- priors of the decomposition


def test_shading_pays_where_the_colour_changes_and_reflectance_where_it_does_not():
    """Two colours side by side under one light; and one colour, half of it in the shade."""
    none = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    step = torch.ones(1, 1, 16, 16)
    step[..., 8:] = 0.5
    colours = TISSUE.expand(1, 3, 16, 16).clone()
    colours[..., 8:] = torch.tensor([0.2, 0.5, 0.1]).view(1, 3, 1, 1)
    shade = TISSUE * step
    assert shading_smoothness(step, shade, none) < 0.02 * shading_smoothness(step, colours, none)
    assert reflectance_sparsity(colours, colours, none) < 0.05 * reflectance_sparsity(shade, shade, none)
    assert shading_smoothness(torch.ones_like(step), colours, none).item() == 0
    assert reflectance_sparsity(TISSUE.expand(1, 3, 16, 16), colours, none).item() == 0


def test_a_highlight_is_free_in_shading_and_paid_in_reflectance():
    image, marks = TISSUE.expand(1, 3, 16, 16).clone(), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    image[:, :, 6:10, 6:10] = 1.0
    marks[:, :, 5:11, 5:11] = True
    shading = torch.ones(1, 1, 16, 16)
    shading[:, :, 6:10, 6:10] = 3.0
    right = shading_smoothness(shading, image, marks) + reflectance_sparsity(TISSUE.expand_as(image), image, marks)
    wrong = shading_smoothness(torch.ones_like(shading), image, marks) + reflectance_sparsity(image, image, marks)
    assert right < 0.1 * wrong
    assert shading_smoothness(shading, image, ~marks & marks) > 10 * shading_smoothness(shading, image, marks)


def test_priors_count_only_inside_the_mask():
    none = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    image = torch.rand(2, 3, 16, 16)
    image[0, :, :, :8] = TISSUE[0]
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    mask[0, :, :, :8] = True
    assert reflectance_sparsity(image, image, none, mask).tolist() == [0, 0]  # flat on the left; empty
    assert shading_smoothness(image[:, :1], image, none, mask).tolist() == [0, 0]


def test_gradients_of_the_priors():
    image, mask = exact(2, 3, 8, 8), torch.rand(2, 1, 8, 8) > 0.1
    marks = torch.rand(2, 1, 8, 8) > 0.8
    assert gradients_are_right(lambda s: shading_smoothness(s, image, marks, mask), 0.2 + exact(2, 1, 8, 8))
    assert gradients_are_right(lambda r: reflectance_sparsity(r, image, marks, mask), 0.2 + exact(2, 3, 8, 8))


# --- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_full_precision_under_autocast(dtype):
    a, b, mask = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    marks = ~mask

    def all_losses(a, b):
        yield photometric(a, b)
        yield edge_smoothness(a, b)
        yield residual_smoothness(a, b, mask)
        yield reconstruction(a, b[:, :1], b, mask)
        yield geometry_consistency(a[:, :1], b[:, :1], mask)[1]
        yield shading_smoothness(a[:, :1], b, marks)
        yield reflectance_sparsity(a, b, marks)
        yield normalised_disparity(a[:, :1])

    expected = list(all_losses(a, b))
    with torch.autocast("cpu", dtype):
        for value, full in zip(all_losses(a, b), expected, strict=True):
            torch.testing.assert_close(value, full, atol=0, rtol=0)
    for value in all_losses(a.to(dtype), b.to(dtype)):
        assert value.dtype == torch.float32
