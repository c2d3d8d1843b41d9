"""Decomposition and light adjustment networks: any size, ranges, starting values, published counts, that they learn."""

import dataclasses

import pytest
import torch

from endomust_core.learning.networks.decomposition import (
    PRESETS,
    Decomposition,
    DecompositionConfig,
    LightAdjust,
    LightAdjustConfig,
)

SMALL = DecompositionConfig(encoder_width=8, norm="group", widths=(8, 8, 8, 8, 16), shading_max=4.0)


def count(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def build(**changes) -> Decomposition:
    torch.manual_seed(0)
    return Decomposition(dataclasses.replace(SMALL, **changes))


@pytest.mark.parametrize(("height", "width"), [(256, 320), (192, 240), (128, 160), (84, 112), (63, 75), (32, 32)])
def test_any_size_decomposes_the_three_quarter_scale_too(height, width):
    with torch.no_grad():
        reflectance, shading = build()(torch.rand(1, 3, height, width))
    assert reflectance.shape == (1, 3, height, width) and shading.shape == (1, 1, height, width)
    assert 0 < reflectance.min() and reflectance.max() < 1
    assert 0 < shading.min() and shading.max() < 4


@pytest.mark.parametrize("name", ["tiny", "base", "paper"])
def test_an_untrained_network_says_half_reflectance_under_three_quarters_of_light(name):
    torch.manual_seed(0)
    with torch.no_grad():
        reflectance, shading = Decomposition(name)(torch.rand(2, 3, 64, 64))
    assert reflectance.mean().item() == pytest.approx(0.5, abs=0.08)
    assert shading.mean().item() == pytest.approx(0.75, abs=0.2)


@pytest.mark.parametrize("most", [1.0, 4.0])
def test_shading_reaches_its_configured_maximum(most):
    network = build(shading_max=most)
    torch.nn.init.constant_(network.shading_head.bias, 50.0)
    with torch.no_grad():
        assert network(torch.rand(1, 3, 32, 48))[1].max().item() == pytest.approx(most)


def test_shading_sees_the_stride_2_map_beside_the_reflectance_features():
    network = build(upsample="nearest")
    seen = []
    network.light[1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        network(image)
        maps = network.encoder(image)
        light = network.light[0](maps[0]).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        features = network.decoder(maps)[0]
    assert torch.allclose(seen[0], torch.cat([light, features], dim=1), atol=1e-6)


def test_paper_has_the_published_parameters():
    with torch.device("meta"):
        network = Decomposition("paper")
    classifier = 512 * 1000 + 1000
    assert count(network.encoder) == 11_689_512 - classifier
    assert count(network) - count(network.encoder) == 3_273_732
    state = network.state_dict()
    shapes = {
        "decoder.decoder.9.conv.conv.weight": (32, 32, 3, 3),
        "light.0.conv.conv.weight": (32, 64, 3, 3),
        "light.1.conv.conv.weight": (32, 64, 3, 3),
        "reflectance_head.conv.weight": (3, 32, 3, 3),
        "shading_head.weight": (1, 32, 1, 1),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert network.config.shading_max == 1.0 and network.config.normalization == "none"


def test_every_parameter_learns_and_a_shadow_can_be_explained():
    network = build(normalization="imagenet")
    light = torch.ones(1, 1, 48, 64)
    light[..., 20:40] = 0.3
    image = (torch.tensor([0.8, 0.4, 0.3]).view(1, 3, 1, 1) * light).clamp(0, 1)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    losses = []
    for _ in range(40):
        reflectance, shading = network(image)
        loss = (reflectance * shading - image).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0] == []
    assert losses[-1] < 0.3 * losses[0]


def test_light_adjustment_has_the_published_parameters_and_starts_at_zero():
    network = LightAdjust()
    assert count(network) == 19_425
    assert [tuple(tensor.shape) for name, tensor in network.state_dict().items() if name.endswith("weight")] == [
        (32, 3, 3, 3), (32, 32, 3, 3), (32, 32, 3, 3), (1, 32, 1, 1)
    ]  # fmt: skip
    assert {"decoder.0.conv.conv.weight", "decoder.3.weight"} <= network.state_dict().keys()
    difference = torch.rand(2, 3, 21, 30)
    assert torch.equal(network(difference), torch.zeros(2, 1, 21, 30))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(15):
        loss = (network(difference) - 0.2 * difference.mean(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert network(difference).abs().max() > 0.05
    torch.nn.init.constant_(network.decoder[3].bias, 50.0)
    assert network(difference).max() <= 1.0
    assert count(LightAdjust(LightAdjustConfig(width=8))) < 2_000


def test_the_config_keeps_tuples_and_presets_build():
    config = DecompositionConfig(widths=[4, 4, 4, 4, 4])
    assert config == DecompositionConfig(**dataclasses.asdict(config)) and isinstance(config.widths, tuple)
    for name in PRESETS:
        with torch.device("meta"):
            assert Decomposition(name).config is PRESETS[name]


def test_impossible_configs_are_refused_in_words():
    with pytest.raises(ValueError, match="no decomposition preset 'huge'; choose one of tiny"):
        Decomposition("huge")
    with pytest.raises(ValueError, match="a white image cannot be explained"):
        DecompositionConfig(shading_max=0.5)
