"""Losses of the self-supervised training, on images B×3×H×W in [0,1] and maps B×1×H×W. Each is (B,) unless it says map.

Masks are B×1×H×W, bool or 0 and 1. Everything is computed in float32 (or float64 if the inputs are), also under
autocast.
"""

import torch
import torch.nn.functional as F

from endomust_core.learning.geometry import single

SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
DARK = 0.02  # intensity below which logarithms and colours level off: noise in the dark is no texture
COLOUR_STEP = 0.2  # change of a channel over the mean of the three that counts as another colour
LEVELS = 4  # of the gradient priors' pyramid: also slow changes have to belong to light or to tissue


def masked_mean(values, mask):
    """Mean over the mask of every sample, (B,); 0, without gradient, where the mask is empty.

    values B×C×H×W, mask B×1×H×W or of the same shape.
    """
    values = single(values)
    mask = mask.to(values.dtype)
    channels = values[0].numel() / max(1, mask[0].numel())
    return (values * mask).flatten(1).sum(1) / (channels * mask.flatten(1).sum(1)).clamp(min=1)


def ssim_distance(a, b):
    """Map of (1 - SSIM)/2 in [0, 1], mean over channels: 3×3 mean window, edges reflected (Wang et al. 2004)."""
    return _Distance.apply(single(a), single(b), 1.0)


def photometric(a, b):
    """Map of the photometric distance of two images: 0.85 (1 - SSIM)/2 + 0.15 |a - b|, mean over channels."""
    return _Distance.apply(single(a), single(b), 0.85)


class _Distance(torch.autograd.Function):
    """Map of w (1 - SSIM)/2 + (1 - w) |a - b| with its derivative by hand: half the time and a third of the memory.

    With sums over the window A = Σa, B = Σb, X = Σab, Q = Σ(a² + b²), and N = 9 samples in it,
    SSIM = (2AB + c₁)(2(NX - AB) + c₂) / ((A² + B² + c₁)(NQ - A² - B² + c₂)), where c = N² C.
    """

    @staticmethod
    def forward(ctx, a, b, weight):
        padded_a, padded_b = (F.pad(image, (1, 1, 1, 1), mode="reflect") for image in (a, b))
        sum_a, sum_b, cross = _window_sum(padded_a), _window_sum(padded_b), _window_sum(padded_a * padded_b)
        squares = _window_sum(padded_a.square_().addcmul_(padded_b, padded_b))
        product = sum_a * sum_b
        length = (sum_a * sum_a).addcmul_(sum_b, sum_b)
        covariance = cross.mul_(18).sub_(product, alpha=2).add_(81 * SSIM_C2)
        variance = squares.mul_(9).sub_(length).add_(81 * SSIM_C2)
        luminance = product.mul_(2).add_(81 * SSIM_C1)
        length.add_(81 * SSIM_C1)
        inverse = (length * variance).reciprocal_()
        ssim = (luminance * covariance).mul_(inverse)
        distance = (1 - ssim.mean(1, keepdim=True)).mul_(weight / 2).clamp_(min=0)  # below 0 by rounding only
        if weight < 1:
            distance.add_((a - b).abs_().mean(1, keepdim=True), alpha=1 - weight)
        ctx.weight = weight
        if any(ctx.needs_input_grad):
            by_covariance = luminance.mul_(inverse)
            by_product = covariance.mul_(inverse).sub_(by_covariance).mul_(2)
            by_cross = by_covariance.mul_(18)
            inverse.mul_(ssim)
            by_squares = (inverse * length).mul_(-18)  # twice: d(a²) = 2a da
            by_length = length.sub_(variance).mul_(inverse).mul_(2)
            by_sum_a = (by_product * sum_b).addcmul_(by_length, sum_a) if ctx.needs_input_grad[0] else None
            by_sum_b = by_product.mul_(sum_a).addcmul_(by_length, sum_b) if ctx.needs_input_grad[1] else None
            ctx.save_for_backward(a, b, by_cross, by_squares, by_sum_a, by_sum_b)
        return distance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        a, b, by_cross, by_squares, by_sum_a, by_sum_b = ctx.saved_tensors
        gradient = gradient / a.shape[1]
        outer = gradient * (-ctx.weight / 2)
        cross, squares = _window_sum_adjoint(by_cross * outer), _window_sum_adjoint(by_squares * outer)
        sign = (a - b).sign_().mul_(gradient * (1 - ctx.weight))
        to_a = to_b = None
        if by_sum_a is not None:
            to_a = _window_sum_adjoint(by_sum_a * outer).addcmul_(squares, a).addcmul_(cross, b).add_(sign)
        if by_sum_b is not None:
            to_b = _window_sum_adjoint(by_sum_b * outer).addcmul_(squares, b).addcmul_(cross, a).sub_(sign)
        return to_a, to_b, None


def _window_sum(x):
    """Sums over 3×3 windows, …×H×W → …×(H-2)×(W-2); faster than pooling by an order of magnitude on a CPU."""
    rows = (x[..., :-2, :] + x[..., 1:-1, :]).add_(x[..., 2:, :])
    return (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])


def _window_sum_adjoint(gradient):
    """The adjoint of reflecting the edges by one pixel and `_window_sum`, for the gradient; same shape in and out."""
    wide = _window_sum(F.pad(gradient, (2, 2, 2, 2)))
    wide[..., 2, :] += wide[..., 0, :]
    wide[..., -3, :] += wide[..., -1, :]
    wide[..., 2] += wide[..., 0]
    wide[..., -3] += wide[..., -1]
    return wide[..., 1:-1, 1:-1]


def edge_smoothness(values, image):
    """Mean of |∂ values| e^{-mean_c |∂ image|}, along x plus along y; values B×C×H×W of the image's size."""
    values, image = single(values), single(image)
    total = 0.0
    for axis in (2, 3):
        edge = image.diff(dim=axis).abs().mean(1, keepdim=True)
        total = total + (values.diff(dim=axis).abs() * torch.exp(-edge)).flatten(1).mean(1)
    return total


def normalised_disparity(disparity):
    """Each disparity map divided by its mean, so that smoothness does not reward a small scale; B×1×H×W."""
    disparity = single(disparity)
    return disparity / (disparity.mean((1, 2, 3), keepdim=True) + 1e-7)


def residual_smoothness(appearance, residual, mask):
    """Mean over the mask of |∂ appearance| e^{-mean_c |∂ residual|}, along x plus along y.

    residual B×3×H×W is target - registered: appearance flow may change where the brightness difference does.
    """
    appearance, residual = single(appearance), single(residual)
    total = 0.0
    for axis in (2, 3):
        edge = residual.diff(dim=axis).abs().mean(1, keepdim=True)
        total = total + masked_mean(
            appearance.diff(dim=axis).abs() * torch.exp(-edge), _pairs(mask.to(appearance.dtype), axis)
        )
    return total


def reconstruction(reflectance, shading, image, mask=None):
    """Photometric distance of the image and reflectance ⊙ shading, clamped to [0, 1] as the sensor clips."""
    distance = photometric((single(reflectance) * single(shading)).clamp(0, 1), image)
    return distance.flatten(1).mean(1) if mask is None else masked_mean(distance, mask)


def geometry_consistency(z_projected, z_sampled, mask):
    """Relative difference |a - b|/(a + b) of two depths of the same points: its map, and its mean over the mask (B,).

    z_projected B×1×H×W: of the target's points in the source; z_sampled: the source's depth where they project
    (SC-Depth, Bian et al. 2019). Depths positive. 1 - map weighs photometric errors down where geometry disagrees.
    """
    a, b = single(z_projected), single(z_sampled)
    difference = (a - b).abs() / (a + b)
    return difference, masked_mean(difference, mask)


def specular_mask(image, whiter=0.1, paler=0.08, grow=2):
    """Highlights: B×1×H×W bool, True within `grow` px of pixels that are whiter than what surrounds them, or all white.

    A reflection of the lamp adds the same to all channels. So its least channel is by `whiter` above the mean of that
    within about 1/30 of the image's width, and its saturation (max - min)/max by `paler` below; bright tissue fails the
    second test, pale tissue in the shade the first. Saturated areas, least channel above 0.9, count at any size.
    """
    image = single(image.detach())
    high, low = image.amax(1, keepdim=True), image.amin(1, keepdim=True)
    local = torch.cat((low, (high - low) / high.clamp(min=DARK)), 1)
    cell = max(2, image.shape[-1] // 40)
    around = F.avg_pool2d(local, cell, ceil_mode=True, count_include_pad=False)
    around = F.avg_pool2d(around, 3, 1, 1, count_include_pad=False)
    excess = local - F.interpolate(around, size=image.shape[-2:], mode="bilinear", align_corners=False)
    shiny = (excess[:, :1] > whiter) & (excess[:, 1:] < -paler) | (low > 0.9)
    return _grown(shiny, grow)


def border_mask(image, dark=0.09, shrink=3):
    """The lit field of view: B×1×H×W bool, False in dark borders and corners and within `shrink` px of them.

    Dark pixels are border where everything up to the image's edge is dark along their row or their column; dark tissue
    inside stays. Single bright pixels in the border (noise) do not count as lit.
    """
    bright = single(image.detach()).amax(1, keepdim=True) > dark
    lit = _window_sum(F.pad(bright.float(), (1, 1, 1, 1), mode="replicate")) > 4.5
    inside = torch.ones_like(lit)
    for axis in (2, 3):
        length = lit.shape[axis]
        place = torch.arange(length, device=lit.device).view((-1, 1) if axis == 2 else (1, -1))
        first = torch.where(lit, place, length).amin(axis, keepdim=True)
        last = torch.where(lit, place, -1).amax(axis, keepdim=True)
        inside = inside & (place >= first) & (place <= last)
    return ~_grown(~inside, shrink)


def shading_smoothness(shading, image, highlights, mask=None):
    """Mean of |∂ log shading| where the chromaticity of the image changes; highlights may have any shading.

    Light does not change the chromaticity, so a change of it is texture and must not go into shading. shading, mask
    (True where it counts; default everywhere) and highlights (of `specular_mask`) B×1×H×W, image B×3×H×W.
    Weight: 0.3, and 0.1 for `reflectance_sparsity`, for each unit of `reconstruction`; three times as much of the
    latter wipes texture out of reflectance.
    """
    return _gradient_prior(single(shading), image, highlights, mask, lambda same, shiny: (1 - same) * (1 - shiny))


def reflectance_sparsity(reflectance, image, highlights, mask=None):
    """Mean of |∂ log reflectance| where the chromaticity of the image stays, and everywhere on highlights.

    Where only the brightness changes it is light, and goes into shading; a highlight is light whatever its colour, so
    reflectance runs on below it (Retinex, Land and McCann 1971). Arguments as in `shading_smoothness`.
    """
    return _gradient_prior(single(reflectance), image, highlights, mask, torch.maximum)


def _gradient_prior(values, image, highlights, mask, weigh):
    """Weighted mean of |∂ log values| over x and y and a pyramid of `LEVELS` halvings, (B,).

    weigh(same colour in 0..1, highlight bool) gives the weight of a pair of neighbours.
    """
    values = (values + DARK).log()
    with torch.no_grad():
        image = single(image)
        colour = image / image.mean(1, keepdim=True).clamp(min=DARK)
        shiny = highlights.to(colour.dtype)
        valid = torch.ones_like(shiny) if mask is None else mask.to(colour.dtype)
    total = 0.0
    for level in range(LEVELS):
        if level:
            values, colour = F.avg_pool2d(values, 2), F.avg_pool2d(colour, 2)
            shiny, valid = F.max_pool2d(shiny, 2), -F.max_pool2d(-valid, 2)
        for axis in (2, 3):
            same = torch.exp(-colour.diff(dim=axis).abs().amax(1, keepdim=True) / COLOUR_STEP)
            either = 1 - _pairs(1 - shiny, axis)
            weight = _pairs(valid, axis) * weigh(same, either)
            total = total + masked_mean(values.diff(dim=axis).abs() * weight, _pairs(valid, axis))
    return total / LEVELS


def _pairs(mask, axis):
    """1 where two neighbours along an axis are both in the mask."""
    length = mask.shape[axis] - 1
    return mask.narrow(axis, 0, length) * mask.narrow(axis, 1, length)


def _grown(mask, pixels):
    """A bool mask B×1×H×W, grown by a square of so many pixels each way."""
    for axis, margin in ((2, (0, 0, pixels, pixels)), (3, (pixels, pixels, 0, 0))):
        padded, length = F.pad(mask, margin), mask.shape[axis]
        for shift in range(2 * pixels + 1):
            mask = mask | padded.narrow(axis, shift, length)
    return mask
