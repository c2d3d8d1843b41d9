"""Vision transformer: position embedding, necks, taps and stems on networks of a few thousand parameters."""

import pytest
import torch

from endomust_core.learning.networks.vit import VisionTransformer, resize_position


def small(**changes) -> VisionTransformer:
    torch.manual_seed(0)
    settings = dict(dim=24, blocks=3, heads=2, taps=(0, 2), pos_grid=4, layer_scale=1.0) | changes
    return VisionTransformer(**settings).eval()


def cubic(signal: torch.Tensor, where: float) -> float:
    """One value of a row between its samples, by the cubic kernel with a = -0.75."""
    a, total = -0.75, 0.0
    for index in range(len(signal)):
        x = abs(where - index)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        total += (near if x <= 1 else far if x < 2 else 0.0) * signal[index].item()
    return total


def test_position_embedding_is_read_at_dinov2s_sampling_points():
    old, new = 12, 8
    row = torch.rand(old, generator=torch.Generator().manual_seed(3))
    patches = row.expand(old, old).reshape(1, old * old, 1)
    resized = resize_position(torch.cat([torch.full((1, 1, 1), 7.0), patches], dim=1), (old, old), (new, new))
    assert resized[0, 0] == 7.0  # the class token has no place
    inner = range(2, new - 2)  # kernels reach over the border outside
    found = resized[0, 1:, 0].view(new, new)[3]
    shifted = [cubic(row, (column + 0.5) * old / (new + 0.1) - 0.5) for column in inner]
    assert found[2 : new - 2].tolist() == pytest.approx(shifted, abs=1e-4)
    plain = [cubic(row, (column + 0.5) * old / new - 0.5) for column in inner]
    assert found[2 : new - 2].tolist() != pytest.approx(plain, abs=1e-3)


def test_position_embedding_of_its_own_grid_is_untouched():
    network = small()
    assert network.position((4, 4)) is network.pos_embed


def test_a_baked_position_gives_the_same_tokens():
    network = small()
    image = torch.rand(1, 3, 42, 70)
    with torch.no_grad():
        before, _ = network(image)
        network.bake_position((3, 5))
        after, _ = network(image)
    assert network.pos_embed.shape == (1, 1 + 15, 24)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_new_neck_changes_nothing_and_a_trained_one_leaves_the_class_token_alone():
    plain, necked = small(), small(necks=(1,), neck_dim=4)
    necked.load_state_dict(plain.state_dict(), strict=False)
    image = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        assert torch.allclose(plain(image)[0][1], necked(image)[0][1], atol=1e-6)
        tokens = torch.rand(1, 17, 24)
        torch.nn.init.normal_(necked.blocks[1].residual_.norm3.weight)
        before, after = plain.blocks[1](tokens, (4, 4)), necked.blocks[1](tokens, (4, 4))
    assert torch.allclose(before[:, 0], after[:, 0], atol=1e-6)
    assert (before[:, 1:] - after[:, 1:]).abs().max() > 0.01


def test_a_neck_looks_at_neighbours_in_the_image_not_in_the_token_list():
    neck = small(necks=(0,), neck_dim=4).blocks[0].residual_
    torch.nn.init.ones_(neck.norm3.weight)
    grid = torch.zeros(1, 24, 5, 5)
    changed = grid.clone()
    changed[0, :, 2, 4] += torch.rand(24)
    with torch.no_grad():
        difference = (neck(changed) - neck(grid)).abs().sum(1)[0] > 1e-6
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:4, 3:5] = True  # the right border: no wrap to the next row
    assert torch.equal(difference, expected)


def test_taps_come_in_the_order_asked_for():
    one, other = small(taps=(0, 2)), small(taps=(2, 0))
    image = torch.rand(1, 3, 28, 42)
    with torch.no_grad():
        first, last = one(image)[0]
        swapped = other(image)[0]
    assert first.shape == (1, 24, 2, 3)
    assert torch.equal(swapped[0], last) and torch.equal(swapped[1], first)


def test_the_conv_stem_hands_out_half_resolution_features():
    tokens, fine = small(stem_channels=8)(torch.rand(2, 3, 42, 56))
    assert tokens[0].shape == (2, 24, 3, 4)
    assert fine.shape == (2, 8, 21, 28)
    assert small()(torch.rand(2, 3, 42, 56))[1] is None


def test_wrong_sizes_are_refused_in_words():
    with pytest.raises(ValueError, match="60x56; both sides must be multiples of 14"):
        small()(torch.rand(1, 3, 60, 56))
    with pytest.raises(ValueError, match=r"\[3\] lie outside the 3 blocks"):
        small(taps=(1, 3))
    with pytest.raises(ValueError, match="does not divide into 5 heads"):
        small(heads=5)


def test_checkpointing_keeps_output_and_gradients_and_computes_blocks_twice():
    image = torch.rand(2, 3, 42, 56)
    gradients, outputs, calls = [], [], []
    for checkpointing in (False, True):
        network = small(necks=(1,), neck_dim=4).train()
        network.checkpointing = checkpointing
        counted = []
        network.blocks[0].attn.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        tokens = network(image)[0]
        sum(map_.square().sum() for map_ in tokens).backward()
        outputs.append(tokens[1].detach())
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
        with torch.no_grad():
            network(image)
        calls.append(len(counted))
    assert calls == [2, 3]  # forward, (again in backward,) and once without gradients
    assert torch.equal(*outputs)
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
