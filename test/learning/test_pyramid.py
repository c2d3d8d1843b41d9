"""Pyramid stem: sizes, what starts as the identity, what reaches the output past the tokens, adapters, export."""

import dataclasses

import numpy as np
import pytest
import torch
from small_run import learns_one_picture

from endomust_core.backends import open_network
from endomust_core.bundle import load_bundle
from endomust_core.learning.checkpoint import load_checkpoint, save_checkpoint
from endomust_core.learning.export import export_bundle
from endomust_core.learning.lora import LoraConfig, adapt, merge, trainable_parameters
from endomust_core.learning.networks.depth import PRESETS, DepthConfig, DepthNetwork, depth_from_disparity
from endomust_core.learning.networks.vit import PyramidStem

SMALL = DepthConfig(
    dim=24, blocks=3, heads=2, features=16, out_channels=(6, 8, 8, 8), taps=(1, 2), necks=(1,), pos_grid=4,
    patch_stem="pyramid", stem_channels=4, head_channels=8,
)  # fmt: skip
MEGABYTES = 1e6


def build(**changes) -> DepthNetwork:
    torch.manual_seed(0)
    return DepthNetwork(dataclasses.replace(SMALL, **changes)).eval()


def disturb(network: DepthNetwork) -> DepthNetwork:
    """Weights far from their initial values, so that every branch contributes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


def test_the_decoder_gets_maps_at_strides_4_and_8_and_two_of_tokens():
    network = build()
    maps, fine = network.encoder(torch.rand(2, 3, 56, 112))
    assert [tuple(map_.shape) for map_ in maps] == [(2, 6, 14, 28), (2, 8, 7, 14), (2, 24, 4, 8), (2, 24, 4, 8)]
    assert fine.shape == (2, 4, 28, 56)
    paths = network.depth_head.fuse(maps, tuple(fine.shape[-2:]))
    assert [tuple(path.shape[-2:]) for path in paths] == [(28, 56), (14, 28), (7, 14), (4, 8)]


@pytest.mark.parametrize("sides", [(42, 70), (56, 112), (14, 14)])  # 42 and 70 do not divide by 4 or 8
def test_scale_0_has_the_size_of_the_image_and_the_others_halve_it(sides):
    disparity = build()(torch.rand(2, 3, *sides))
    wanted = {scale: (2, 1, *(-(-side // 2**scale) for side in sides)) for scale in range(4)}
    assert {scale: tuple(map_.shape) for scale, map_ in disparity.items()} == wanted
    assert all(((map_ > 0) & (map_ < 1)).all() for map_ in disparity.values())


def test_the_published_output_size_can_be_asked_for():
    disparity = build()(torch.rand(1, 3, 56, 70), size=(64, 80))
    assert [tuple(disparity[scale].shape[-2:]) for scale in range(4)] == [(64, 80), (32, 40), (16, 20), (8, 10)]


def test_fresh_residual_units_are_the_identity_and_more_of_them_change_nothing():
    image = torch.rand(1, 3, 56, 56)
    torch.manual_seed(0)
    few, many = PyramidStem(24, (4, 6, 8), (1, 1)), PyramidStem(24, (4, 6, 8), (3, 2))
    many.load_state_dict(few.state_dict(), strict=False)
    for one, other in zip(few(image)[2], many(image)[2], strict=True):
        assert torch.equal(one, other) and one.std() > 0.1
    torch.nn.init.normal_(many.units8[1].conv2.weight)
    assert torch.equal(few(image)[2][0], many(image)[2][0])
    assert not torch.allclose(few(image)[2][1], many(image)[2][1])


def test_signals_keep_their_strength_down_to_the_tokens():
    torch.manual_seed(0)
    tokens, half, (quarter, eighth) = PyramidStem(192, (16, 32, 64), (2, 4))(torch.randn(2, 3, 168, 224))
    for features in (half, quarter, eighth, tokens):
        assert 0.3 < features.std() < 3.0


def test_fine_detail_reaches_the_output_past_the_tokens_and_only_nearby():
    network = disturb(build())
    image = torch.rand(1, 3, 224, 224)
    changed = image.clone()
    changed[:, :, :8, :8] = 1.0 - changed[:, :, :8, :8]

    def difference() -> torch.Tensor:
        with torch.no_grad():
            return (network(changed, scales=(0,))[0] - network(image, scales=(0,))[0]).abs()[0, 0]

    assert difference()[160:, 160:].max() > 0  # by attention
    for project in network.depth_head.projects[2:]:
        torch.nn.init.zeros_(project.weight)
    local = difference()
    assert local[:8, :8].max() > 1e-4 and local[160:, 160:].max() == 0


def test_every_parameter_learns():
    network = disturb(build())
    sum(disparity.mean() for disparity in network(torch.rand(1, 3, 42, 56)).values()).backward()
    parameters = dict(network.named_parameters())
    assert [name for name, tensor in parameters.items() if tensor.grad is None] == []
    still = {name for name, tensor in parameters.items() if not tensor.grad.any()}
    assert not {name for name in still if ".patch_embed." in name}


def test_one_picture_can_be_learned():
    assert learns_one_picture(build())


def test_checkpointing_and_a_baked_position_change_nothing():
    network = disturb(build()).train()
    image = torch.rand(1, 3, 42, 70)
    plain = network(image)[0]
    network.encoder.checkpointing = True
    assert torch.equal(network(image)[0], plain)
    network.encoder.bake_position((3, 5))
    assert torch.equal(network(image)[0], plain)


def test_adapters_go_in_and_out_and_leave_the_stem_frozen():
    network = disturb(build())
    image = torch.rand(1, 3, 42, 56)
    with torch.no_grad():
        plain = network(image)[0]
        adapt(network, LoraConfig())
        assert torch.equal(network(image)[0], plain)
        for name, parameter in network.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(parameter, std=0.2)
        adapted = network(image)[0]
        assert (adapted - plain).abs().max() > 1e-4
        assert torch.allclose(merge(network)(image)[0], adapted, atol=1e-5)
    for phase in ("warm_up", "vectors"):
        assert not any(".patch_embed." in name or ".scratch." in name for name in trainable_parameters(network, phase))


def test_a_checkpoint_comes_back_with_its_pyramid(tmp_path):
    network = disturb(build(pyramid_units=(0, 3)))
    loaded, _ = load_checkpoint(save_checkpoint(tmp_path / "depth.pt", network), "depth")
    image = torch.rand(1, 3, 42, 56)
    with torch.no_grad():
        assert loaded.config == network.config and torch.equal(loaded(image)[0], network(image)[0])


@pytest.mark.parametrize("size", [(42, 70), (56, 56)])
def test_the_bundle_gives_the_depth_of_the_network(tmp_path, size):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
    network = disturb(build())
    root = export_bundle(network, None, tmp_path / "test", size, name="test", provenance={}, scores={}, frames=frames)
    answer = open_network(load_bundle(root).depth, threads=1).run({"image": frames[0][None]})["disparity"]
    with torch.no_grad():
        disparity = network(torch.from_numpy(frames[0]).permute(2, 0, 1)[None] / 255.0)[0]
    expected = depth_from_disparity(disparity, 0.002, 0.35)[0].numpy()
    assert np.ptp(expected) > 0.01 * expected.mean()  # a flat map would hide a swapped axis
    np.testing.assert_allclose(1.0 / answer, expected, rtol=5e-3)  # float16 weights


def test_presets_stay_within_their_budget():
    for name, budget in (("tiny-pyramid", 13 * MEGABYTES), ("small-pyramid", 60 * MEGABYTES)):
        with torch.device("meta"):
            network = DepthNetwork(PRESETS[name])
        assert 2 * sum(parameter.numel() for parameter in network.parameters()) < budget  # float16


def test_impossible_configs_are_refused_in_words():
    with pytest.raises(ValueError, match="2 of them from taps where patch_stem is pyramid"):
        build(taps=(0, 1, 2, 2))
    with pytest.raises(ValueError, match="two numbers, at strides 4 and 8"):
        build(pyramid_units=(1, 2, 3))
