"""Pose network: the correlation layer, the decoders, gains and conventions, and that a shift can be learned."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from endomust_core.learning.networks.pose import (
    PRESETS,
    ConvPoseDecoder,
    IntrinsicsHead,
    MomentPoseDecoder,
    PoseConfig,
    PoseNetwork,
    correlate,
    position_maps,
    whiten,
)


def build(config="tiny") -> PoseNetwork:
    torch.manual_seed(0)
    return PoseNetwork(config).eval()


@pytest.mark.parametrize(("height", "width", "radius"), [(6, 9, 2), (5, 4, 1), (4, 5, 3)])
def test_correlation_is_the_product_with_every_shift(height, width, radius):
    torch.manual_seed(1)
    current, previous = torch.randn(2, 2, 5, height, width)
    padded = F.pad(previous, (radius,) * 4)
    shifts = range(2 * radius + 1)
    direct = [(current * padded[:, :, dy : dy + height, dx : dx + width]).sum(1) for dy in shifts for dx in shifts]
    assert torch.allclose(correlate(current, previous, radius), torch.stack(direct, dim=1) / 5**0.5, atol=1e-6)


def test_correlation_peaks_where_the_picture_came_from():
    torch.manual_seed(2)
    previous = whiten(5 + torch.randn(1, 16, 12, 14))  # a common offset must not matter
    current = torch.roll(previous, shifts=(1, -2), dims=(2, 3))  # what is at (y, x) now was at (y - 1, x + 2)
    best = correlate(current, previous, radius=3).argmax(dim=1)[0, 3:-3, 3:-3]
    assert (best == (-1 + 3) * 7 + (2 + 3)).all()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_a_pose_and_every_parameter_learns(name):
    network = build(name).train()
    pose = network(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    assert [tuple(value.shape) for value in pose] == [(2, 3), (2, 3), (2, 4)]
    sum(value.sum() for value in pose).backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", PRESETS)
def test_pairs_of_a_batch_do_not_mix_and_their_order_matters(name):
    network = build(name)
    previous, current = torch.rand(2, 2, 3, 64, 64)
    with torch.no_grad():
        both = network(previous, current)
        second = network(previous[1:], current[1:])
        swapped = network(current, previous)
    assert all(torch.allclose(one[1:], other, rtol=1e-3, atol=1e-7) for one, other in zip(both, second, strict=True))
    assert not torch.allclose(both.rotation, swapped.rotation, rtol=1e-2, atol=0)


def test_gains_scale_rotation_and_translation_apart():
    images = torch.rand(2, 1, 3, 64, 64)
    small = build(PoseConfig(rotation_gain=0.01, translation_gain=0.001))
    large = build(PoseConfig(rotation_gain=0.03, translation_gain=0.005))
    with torch.no_grad():
        one, other = small(*images), large(*images)
    assert torch.allclose(3 * one.rotation, other.rotation) and torch.allclose(5 * one.translation, other.translation)


def test_the_papers_decoder_averages_its_last_convolution():
    decoder = ConvPoseDecoder(8)
    torch.nn.init.zeros_(decoder.net[3].weight)
    decoder.net[3].bias.data = torch.arange(12.0)
    pose, feature = decoder(torch.rand(1, 8, 2, 3))
    assert torch.equal(pose, torch.arange(12.0)[None]) and feature.shape == (1, 256)
    network = build(dataclasses.replace(PRESETS["paper"], rotation_gain=1.0, translation_gain=1.0))
    torch.nn.init.zeros_(network.decoder.net[3].weight)
    network.decoder.net[3].bias.data = torch.arange(12.0)
    out = network(*torch.rand(2, 1, 3, 64, 64))
    assert out.rotation.tolist() == [[0.0, 1.0, 2.0]] and out.translation.tolist() == [[3.0, 4.0, 5.0]]


def test_moments_know_where_a_feature_lies():
    decoder = MomentPoseDecoder(1)
    decoder.hidden.weight.data = torch.eye(decoder.feature_channels, 6)
    torch.nn.init.zeros_(decoder.hidden.bias)
    spot = torch.zeros(1, 1, 3, 5)
    spot[0, 0, 2, 3] = 15.0  # at x = 0.5, y = 1; the mean of the map is 1
    _, feature = decoder(spot)
    assert torch.allclose(feature[0, :6], torch.tensor([1.0, 0.5, 1.0, 0.25, 0.5, 1.0]))


def test_positions_run_from_minus_one_to_one():
    x, y = position_maps(torch.zeros(1, 1, 3, 5))[0]
    assert x[0].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0] and y[:, 0].tolist() == [-1.0, 0.0, 1.0]


def test_intrinsics_start_near_a_centred_camera():
    head = IntrinsicsHead(16)
    focal, centre = head(torch.zeros(1, 16)).split(2, dim=1)
    assert torch.allclose(focal, torch.full((1, 2), 0.5 + 0.693147)) and torch.equal(centre, torch.full((1, 2), 0.5))
    far = head(torch.full((1, 16), -1e4))
    assert (far[:, :2] >= 0.5).all()


def test_tiny_stays_within_its_budget():
    for name in ("tiny", "compact"):
        assert sum(parameter.numel() for parameter in PoseNetwork(name).parameters()) <= 600_000


def test_unknown_names_are_refused_in_words():
    with pytest.raises(ValueError, match="no pose preset 'large'; choose one of tiny"):
        PoseNetwork("large")
    with pytest.raises(ValueError, match="no pose encoder 'vgg'; choose one of correlation"):
        PoseNetwork(PoseConfig(encoder="vgg"))


def test_a_shift_below_the_stride_of_the_features_can_be_learned():
    torch.manual_seed(0)
    network = PoseNetwork("tiny").train()
    optimizer = torch.optim.AdamW(network.parameters(), 5e-4)

    def batch(count=8):
        texture = F.interpolate(torch.rand(count, 3, 26, 26), size=(104, 104), mode="bicubic")
        shift = torch.randint(-3, 4, (count, 2))  # pixels; features lie 4 pixels apart
        crops = zip(texture, shift.tolist(), strict=True)
        current = torch.stack([image[:, 12 + dy : 92 + dy, 12 + dx : 92 + dx] for image, (dx, dy) in crops])
        return texture[:, :, 12:92, 12:92], current, shift.float()

    errors = []
    for _ in range(120):
        previous, current, shift = batch()
        millimetres = 1000 * network(previous, current).translation[:, :2]
        error = (millimetres - shift).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert sum(errors[-10:]) < 0.6 * sum(errors[:10])
