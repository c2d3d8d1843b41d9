"""Optical and appearance flow networks: sizes, sign and unit of the flow, published parameter counts, learning."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from endomust_core.learning.networks.flow import PRESETS, SCALES, AppearanceFlow, FlowConfig, OpticalFlow

SMALL = FlowConfig(encoder_width=8, norm="group", widths=(4, 8, 8, 8, 16))


def count(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def build(kind, **changes):
    torch.manual_seed(0)
    return kind(dataclasses.replace(SMALL, **changes))


def blobs(height: int, width: int) -> torch.Tensor:
    """A smooth coloured pattern, 1×3×H×W in [0,1]."""
    noise = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True).clamp(0, 1)


@pytest.mark.parametrize(
    ("kind", "encoder", "channels"),
    [(OpticalFlow, "resnet18", 2), (OpticalFlow, "correlation", 2), (AppearanceFlow, "resnet18", 3)],
)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (63, 75), (32, 32)])
def test_four_scales_of_any_image(kind, encoder, channels, height, width):
    flow = build(kind, encoder=encoder)(torch.rand(2, 3, height, width), torch.rand(2, 3, height, width))
    assert {scale: tuple(map_.shape) for scale, map_ in flow.items()} == {
        scale: (2, channels, -(-height // 2**scale), -(-width // 2**scale)) for scale in SCALES
    }


@pytest.mark.parametrize(
    ("kind", "encoder"), [(OpticalFlow, "resnet18"), (OpticalFlow, "correlation"), (AppearanceFlow, "resnet18")]
)
def test_an_untrained_network_says_nothing_yet_every_parameter_learns(kind, encoder):
    network = build(kind, encoder=encoder)
    outputs = network(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    assert all(map_.abs().max() < 1e-2 for map_ in outputs.values())
    sum(map_.square().mean() for map_ in outputs.values()).backward()
    silent = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize(
    ("kind", "decoder", "head"),
    [(OpticalFlow, 3_154_888, "heads.3.weight"), (AppearanceFlow, 3_157_052, "heads.3.conv.weight")],
)
def test_paper_has_the_published_parameters(kind, decoder, head):
    with torch.device("meta"):
        network = kind("paper")
    classifier = 512 * 1000 + 1000
    assert count(network.encoder) == 11_698_920 - classifier
    assert count(network) - count(network.encoder) == decoder
    names = network.state_dict()
    assert {"encoder.conv1.weight", "decoder.decoder.9.conv.conv.bias", head} <= names.keys()
    assert network.config.normalization == "none" and names["encoder.conv1.weight"].shape == (64, 6, 7, 7)


def test_appearance_stays_between_minus_one_and_one():
    network = build(AppearanceFlow)
    for head in network.heads:
        torch.nn.init.constant_(head.conv.bias, 50.0)
    outputs = network(torch.rand(1, 3, 32, 48), torch.rand(1, 3, 32, 48))
    assert all(map_.abs().max() <= 1.0 and map_.min() > 0.99 for map_ in outputs.values())


def test_the_order_of_the_images_matters():
    network = build(OpticalFlow)
    one, other = torch.rand(2, 1, 3, 64, 64)
    maps = []
    network.encoder.register_forward_pre_hook(lambda _, arguments: maps.append(arguments[0]))
    network(one, other)
    assert torch.equal(maps[0], torch.cat([network.normalize(one), network.normalize(other)], dim=1))


@pytest.mark.parametrize("encoder", ["resnet18", "correlation"])
def test_a_shift_is_learned_without_its_truth_in_the_right_channel_sign_and_unit(encoder):
    """target(x) = source(x + flow): what lies at x in the target lies 2 px further right and 1 px up in the source."""
    height, width = 48, 64
    scene = blobs(height + 8, width + 8)
    target, source = scene[..., 4:-4, 4:-4], scene[..., 5:-3, 2:-6]
    network = build(OpticalFlow, widths=(8, 8, 8, 16, 16), encoder=encoder)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(60):
        flow = network(source, target)[0]
        grid = torch.stack([2 * (x + flow[:, 0]) / (width - 1) - 1, 2 * (y + flow[:, 1]) / (height - 1) - 1], dim=-1)
        warped = F.grid_sample(source, grid, padding_mode="border", align_corners=True)
        loss = (warped - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inner = flow.detach()[0, :, 6:-6, 6:-6].flatten(1).median(dim=1).values
    assert inner.tolist() == pytest.approx([2.0, -1.0], abs=0.3)


def test_the_match_of_a_shifted_image_is_best_where_it_went():
    torch.manual_seed(0)
    encoder = build(OpticalFlow, encoder="correlation").encoder
    features = torch.rand(1, 16, 12, 16)
    source = torch.roll(features, (-1, 2), (2, 3))  # up by one, right by two
    match = encoder.match(torch.cat([source, features]))
    assert match.shape == (1, 49 + 16, 12, 16)
    best = match[:, :49, 3:-3, 3:-3].argmax(dim=1)
    assert (best == (-1 + 3) * 7 + (2 + 3)).float().mean() > 0.95


@pytest.mark.parametrize("encoder", ["resnet18", "correlation"])
def test_bfloat16_and_channels_last_agree_with_full_precision(encoder):
    network = build(OpticalFlow, encoder=encoder)
    for head in network.heads:
        torch.nn.init.normal_(head.weight, std=0.1)
    pair = [blobs(64, 64), blobs(64, 64).flip(3)]
    with torch.no_grad():
        exact = network(*pair)[0]
        network.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(*(image.to(memory_format=torch.channels_last) for image in pair))[0].float()
    assert (half - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_config_keeps_tuples_and_presets_build():
    assert FlowConfig(widths=[4, 4, 4, 4, 4]) == FlowConfig(**dataclasses.asdict(FlowConfig(widths=(4, 4, 4, 4, 4))))
    for name in PRESETS:
        with torch.device("meta"):
            assert OpticalFlow(name).config is PRESETS[name] and AppearanceFlow(name).config is PRESETS[name]


def test_impossible_configs_are_refused_in_words():
    with pytest.raises(ValueError, match="no flow preset 'huge'; choose one of tiny"):
        OpticalFlow("huge")
    with pytest.raises(ValueError, match="no flow encoder 'vit'; choose one of resnet18, correlation"):
        FlowConfig(encoder="vit")
    with pytest.raises(ValueError, match="norm is 'layer'; choose one of batch, group"):
        AppearanceFlow(FlowConfig(norm="layer"))
