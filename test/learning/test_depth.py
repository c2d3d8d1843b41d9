"""Depth network: sizes, scales, the affine form of inverse depth, parameter counts, and that it can learn."""

import dataclasses

import pytest
import torch
from small_run import learns_one_picture

from endomust_core.learning.networks.depth import (
    DA_V2_TAPS,
    PRESETS,
    DepthConfig,
    DepthNetwork,
    depth_from_disparity,
    disparity_from_depth,
    inverse_depth,
)

SMALL = DepthConfig(
    dim=24, blocks=4, heads=2, features=16, out_channels=(4, 6, 8, 8), taps=(0, 1, 2, 3), necks=(1, 3), pos_grid=4,
    stem_channels=4, head_channels=8,
)  # fmt: skip
OFFICIAL_PARAMETERS = 99_266_900  # EndoMUST's depth network with LoRA, measured on the published code


def build(**changes) -> DepthNetwork:
    torch.manual_seed(0)
    return DepthNetwork(dataclasses.replace(SMALL, **changes)).eval()


def count(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("stem", ["conv", "linear"])
def test_scale_0_has_the_size_of_the_image_and_the_others_halve_it(stem):
    disparity = build(patch_stem=stem)(torch.rand(2, 3, 42, 70))
    sizes = {scale: tuple(map_.shape) for scale, map_ in disparity.items()}
    assert sizes == {0: (2, 1, 42, 70), 1: (2, 1, 21, 35), 2: (2, 1, 11, 18), 3: (2, 1, 6, 9)}
    assert all(((map_ > 0) & (map_ < 1)).all() for map_ in disparity.values())


@pytest.mark.parametrize("stem", ["conv", "linear"])
def test_the_published_output_size_can_be_asked_for(stem):
    disparity = build(patch_stem=stem)(torch.rand(1, 3, 56, 70), size=(64, 80))
    assert [tuple(disparity[scale].shape[-2:]) for scale in range(4)] == [(64, 80), (32, 40), (16, 20), (8, 10)]


def test_heads_of_scales_nobody_asked_for_do_not_run():
    network = build()
    ran = []
    for number in (1, 2, 3, 4):
        head = getattr(network.depth_head, f"conv_depth_{number}")
        head.register_forward_hook(lambda *_, number=number: ran.append(number))
    image = torch.rand(1, 3, 42, 56)
    with torch.no_grad():
        alone = network(image, scales=(0,))
        assert ran == [1] and list(alone) == [0]
        assert torch.equal(alone[0], network(image)[0])


def test_depth_and_disparity_are_inverse_and_reach_both_ends():
    depth = torch.tensor([0.002, 0.005, 0.03, 0.2, 0.35], dtype=torch.float64)
    disparity = disparity_from_depth(depth, 0.002, 0.35)
    assert disparity[0] == pytest.approx(1.0) and disparity[-1] == pytest.approx(0.0, abs=1e-12)
    assert torch.allclose(depth_from_disparity(disparity, 0.002, 0.35), depth)
    assert inverse_depth(torch.tensor(0.5), 0.1, 150.0).item() == pytest.approx((1 / 150 + 10) / 2)


def test_an_untrained_network_says_the_configured_disparity():
    network = build(initial_disparity=0.06)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.zero_()
    for disparity in network(torch.rand(1, 3, 42, 42)).values():
        assert torch.allclose(disparity, torch.full_like(disparity, 0.06), atol=1e-5)


@pytest.mark.parametrize("stem", ["conv", "linear"])
def test_every_parameter_learns(stem):
    network = build(patch_stem=stem)
    sum(disparity.mean() for disparity in network(torch.rand(1, 3, 42, 42)).values()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_one_picture_can_be_learned():
    assert learns_one_picture(build())


def test_normalisation_belongs_to_the_config():
    image = torch.rand(1, 3, 42, 42)
    raw, imagenet = build(normalization="none"), build(normalization="imagenet")
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        assert torch.allclose(raw((image - mean) / std)[0], imagenet(image)[0], atol=1e-6)
    with pytest.raises(ValueError, match="choose one of imagenet, none"):
        build(normalization="half")


def test_tiny_stays_within_its_budget():
    assert count(DepthNetwork("tiny")) <= 3_600_000


def test_base_differs_from_the_published_network_by_lora_and_what_it_never_uses():
    def lora(inputs, outputs, rank=4):
        return rank * inputs + outputs * rank + rank + outputs

    with torch.device("meta"):
        ours = count(DepthNetwork("base"))
    all_lora = 12 * (lora(768, 2304) + lora(768, 3072) + lora(3072, 768))
    mask_token, dead_unit = 768, 2 * (128 * 128 * 9 + 128)
    assert ours + all_lora + mask_token + dead_unit == OFFICIAL_PARAMETERS


def test_presets_build():
    for name in PRESETS:
        with torch.device("meta"):
            assert DepthNetwork(name).config is PRESETS[name]
    assert dataclasses.replace(PRESETS["base"], taps=DA_V2_TAPS).taps == (2, 5, 8, 11)


def test_impossible_configs_are_refused_in_words():
    with pytest.raises(ValueError, match="no depth preset 'huge'; choose one of tiny"):
        DepthNetwork("huge")
    with pytest.raises(ValueError, match="four maps"):
        DepthConfig(taps=(1, 2, 3))
    with pytest.raises(ValueError, match="must be positive and increasing"):
        DepthConfig(min_depth=0.4, max_depth=0.3)
    with pytest.raises(ValueError, match="choose conv, linear or pyramid"):
        DepthConfig(patch_stem="dense")
