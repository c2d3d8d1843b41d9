"""Low-rank adapters: fresh = base to the bit, formulas by hand, what trains in which phase, merging."""

import copy

import pytest
import torch
from torch import nn

from endomust_core.learning.lora import (
    AdaptedLinear,
    LoraConfig,
    adapt,
    merge,
    merged_state,
    trainable_parameters,
)
from endomust_core.learning.networks.depth import DepthConfig, DepthNetwork

SMALL = DepthConfig(
    dim=24, blocks=4, heads=2, features=16, out_channels=(4, 6, 8, 8), taps=(0, 1, 2, 3), necks=(1, 3), pos_grid=4,
    stem_channels=4, head_channels=8,
)  # fmt: skip
ADAPTERS = ("dvlora", "lora", "dora")
IMAGE = torch.rand(2, 3, 42, 56, generator=torch.Generator().manual_seed(5))


def build(**changes) -> DepthNetwork:
    """A small network whose encoder has biases and necks that do something, with adapters unless kind is None."""
    torch.manual_seed(0)
    network = DepthNetwork(SMALL)
    for block in network.encoder.blocks:
        for linear in (block.attn.qkv, block.mlp.fc1, block.mlp.fc2):
            nn.init.normal_(linear.bias, std=0.3)
    if changes.get("kind", "dvlora") is not None:
        adapt(network, LoraConfig(**changes))
    return network


def disturb(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def outputs(network: nn.Module) -> list[torch.Tensor]:
    """Tokens of the encoder, which answer strongly to adapters, and disparities."""
    with torch.no_grad():
        return [*network.encoder(network.normalize(IMAGE))[0], *network(IMAGE).values()]


def train(network: DepthNetwork, phase: str, steps: int = 4) -> None:
    """A few steps of Adam on all parameters of both phases, of which only those of `phase` require gradients."""
    wanted = trainable_parameters(network, phase)
    named = dict(network.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_(name in wanted)
    both = {name for each in ("warm_up", "vectors") for name in trainable_parameters(network, each)}
    optimizer = torch.optim.Adam([named[name] for name in sorted(both)], 1e-2)
    for _ in range(steps):
        loss = sum((map_ - 0.3).abs().mean() for map_ in network(IMAGE).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def moved(before: dict, network: nn.Module) -> set[str]:
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("vectors", ["ones", "random"])
@pytest.mark.parametrize("layers", ["full", "part"])
@pytest.mark.parametrize("kind", [*ADAPTERS, "none"])
def test_a_fresh_adapter_gives_the_output_of_the_base_to_the_bit(kind, layers, vectors):
    base = outputs(build(kind=None))
    adapted = outputs(build(kind=kind, layers=layers, vectors=vectors, rank=3, alpha=7.0))
    assert all(torch.equal(one, other) for one, other in zip(base, adapted, strict=True))


def by_hand(kind: str, alpha: float | None) -> AdaptedLinear:
    """W = [[1, 2, 0], [0, 1, 3]], b = (.5, -.5), rank 1, A = (1, 0, 2), B = (3, 1)."""
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]]))
        linear.bias.copy_(torch.tensor([0.5, -0.5]))
        layer = AdaptedLinear(linear, LoraConfig(kind, rank=1, alpha=alpha))
        layer.lora_A.copy_(torch.tensor([[1.0, 0.0, 2.0]]))
        layer.lora_B.copy_(torch.tensor([[3.0], [1.0]]))
    return layer


def test_dv_lora_by_hand():
    layer = by_hand("dvlora", alpha=2.0)
    with torch.no_grad():
        layer.lora_U.copy_(torch.tensor([[0.5]]))
        layer.lora_V.copy_(torch.tensor([[2.0], [-1.0]]))
        # W x + b = (3.5, 3.5); A x = 3; (A ⊙ U) x = 1.5; (B ⊙ V) = (6, -1); times alpha/r = 2: (18, -3)
        assert layer(torch.ones(1, 3)).tolist() == [[21.5, 0.5]]
    # 2 (6, -1)ᵀ (.5, 0, 1) = [[6, 0, 12], [-1, 0, -2]]
    assert layer.merged().weight.tolist() == [[7.0, 2.0, 12.0], [-1.0, 1.0, 1.0]]


def test_lora_by_hand():
    layer = by_hand("lora", alpha=None)
    with torch.no_grad():
        assert layer(torch.ones(1, 3)).tolist() == [[12.5, 6.5]]  # (3.5, 3.5) + (3, 1) · 3
    assert layer.merged().weight.tolist() == [[4.0, 2.0, 6.0], [1.0, 1.0, 5.0]]


def test_dora_by_hand_magnitude_and_direction():
    layer = by_hand("dora", alpha=None)
    assert layer.lora_m.tolist() == pytest.approx([5**0.5, 10**0.5])  # the lengths of the rows of W
    with torch.no_grad():
        layer.lora_m.copy_(torch.tensor([2.0, 3.0]))
        rows = torch.tensor([[4.0, 2.0, 6.0], [1.0, 1.0, 5.0]])  # W + B A, of lengths √56 and √27
        expected = torch.tensor([2 / 56**0.5 * 12 + 0.5, 3 / 27**0.5 * 7 - 0.5])
        assert torch.allclose(layer(torch.ones(1, 3))[0], expected, atol=1e-6)
    merged = layer.merged().weight
    assert torch.allclose(merged.norm(dim=1), torch.tensor([2.0, 3.0]))
    assert torch.allclose(merged, rows * (torch.tensor([2.0, 3.0]) / rows.norm(dim=1))[:, None])


def test_doras_norm_is_a_constant_in_the_gradient():
    layer = by_hand("dora", alpha=None).double()
    tokens = torch.rand(5, 3, dtype=torch.float64)
    layer(tokens).square().sum().backward()
    found = layer.lora_B.grad.clone()
    norm = (layer.weight + layer.lora_B @ layer.lora_A).detach().norm(dim=1, keepdim=True)
    layer.zero_grad()
    weight = layer.lora_m[:, None] * (layer.weight + layer.lora_B @ layer.lora_A) / norm
    (tokens @ weight.T + layer.bias).square().sum().backward()
    assert torch.allclose(found, layer.lora_B.grad)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_gradients_of_the_adapter_are_those_of_its_formula(kind):
    torch.manual_seed(0)
    layer = disturb(AdaptedLinear(nn.Linear(4, 3), LoraConfig(kind, rank=2, alpha=3.0)).double())
    parts = {name: parameter.detach().clone().requires_grad_() for name, parameter in layer.named_parameters()}
    if kind == "dora":  # its norm is held constant, which a numerical gradient cannot know: only m and b are checked
        for name in ("weight", "lora_A", "lora_B"):
            parts[name].requires_grad_(False)

    def call(tokens, *values):
        return torch.func.functional_call(layer, dict(zip(parts, values, strict=True)), (tokens,))

    tokens = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (tokens, *parts.values()))


@pytest.mark.parametrize(("layers", "published"), [("full", (1_814_532, 1_372_308)), ("part", (1_667_076, 1_344_612))])
@pytest.mark.parametrize("name", ["base", "paper"])
def test_what_trains_is_as_many_numbers_as_published(name, layers, published):
    with torch.device("meta"):
        network = DepthNetwork(name)
        adapt(network, LoraConfig(layers=layers))
    named = dict(network.named_parameters())
    for phase, count in zip(("warm_up", "vectors"), published, strict=True):
        assert sum(named[key].numel() for key in trainable_parameters(network, phase)) == count


@pytest.mark.parametrize(
    ("kind", "phase", "parts"),
    [
        ("dvlora", "warm_up", {"lora_A", "lora_B"}),
        ("dvlora", "vectors", {"lora_U", "lora_V"}),
        ("lora", "warm_up", {"lora_A", "lora_B"}),
        ("lora", "vectors", {"lora_A", "lora_B"}),
        ("dora", "warm_up", {"lora_A", "lora_B", "lora_m"}),
        ("dora", "vectors", {"lora_A", "lora_B", "lora_m"}),
        ("none", "warm_up", set()),
        ("none", "vectors", set()),
    ],
)
def test_what_trains_in_a_phase(kind, phase, parts):
    network = build(kind=kind, layers="part")
    names = trainable_parameters(network, phase)
    adapters = {name for name in names if "lora_" in name}
    assert adapters == {
        f"encoder.blocks.{block}.mlp.{layer}.{part}" for block in range(4) for layer in ("fc1", "fc2") for part in parts
    }
    own = {name for name, _ in network.named_parameters()}
    necks = {name for name in own if name.startswith(("encoder.blocks.1.residual_.", "encoder.blocks.3.residual_."))}
    heads = {name for name in own if name.startswith("depth_head.conv_depth_")}
    assert set(names) - adapters == necks | heads and len(names) == len(set(names))
    assert len(necks) == 2 * 9 and len(heads) == 6 + 3 * 6


def test_vectors_without_an_optimiser_as_published():
    network = build(train_vectors=False, vectors="random")
    assert not [name for name in trainable_parameters(network, "vectors") if "lora_" in name]
    assert [name for name in trainable_parameters(network, "warm_up") if "lora_B" in name]
    drawn = torch.cat([p.detach().flatten() for name, p in network.named_parameters() if name.endswith("lora_V")])
    assert drawn.abs().max() <= 1 and drawn.std().item() == pytest.approx(3**-0.5, abs=0.05)  # U(-1, 1)


def test_u_and_v_move_after_the_warm_up_and_nothing_else_but_necks_and_heads():
    network = build()
    start = copy.deepcopy(network.state_dict())
    train(network, "warm_up")
    warm = copy.deepcopy(network.state_dict())
    assert moved(start, network) == set(trainable_parameters(network, "warm_up"))
    train(network, "vectors")
    later = moved(warm, network)
    assert later == set(trainable_parameters(network, "vectors"))
    layers = [f"encoder.blocks.{block}.{name}" for block in range(4) for name in ("attn.qkv", "mlp.fc1", "mlp.fc2")]
    assert {f"{layer}.lora_{part}" for layer in layers for part in "UV"} <= later
    assert all((network.state_dict()[f"{layer}.lora_V"] != 1).float().mean() > 0.6 for layer in layers)


@pytest.mark.parametrize("layers", ["full", "part"])
@pytest.mark.parametrize("kind", [*ADAPTERS, "none"])
def test_merged_is_unmerged_and_plain(kind, layers):
    network = disturb(build(kind=kind, layers=layers, rank=3, alpha=5.0)).eval()
    before, state = outputs(network), copy.deepcopy(network.state_dict())
    plain = merge(network)
    assert max((one - other).abs().max() for one, other in zip(before, outputs(plain), strict=True)) <= 1e-5
    if kind != "none":
        changed = zip(before, outputs(build(kind=None)), strict=True)
        assert max((one - other).abs().max() for one, other in changed) > 0.1
    assert plain.state_dict().keys() == DepthNetwork(SMALL).state_dict().keys()
    assert type(plain) is DepthNetwork and plain.config == network.config and not plain.training
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert not moved(state, network)  # the adapted network is left alone
    for name, tensor in merged_state(network.state_dict(), alpha=5.0).items():
        assert torch.equal(tensor, plain.state_dict()[name])


def test_a_merged_network_can_be_adapted_again():
    network = merge(disturb(build()))
    before = outputs(network)
    adapt(network, LoraConfig("dora", rank=2))
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(network), strict=True))


def test_a_base_checkpoint_keeps_its_names():
    base, network = build(kind=None).state_dict(), build()
    missing, unexpected = network.load_state_dict(base, strict=False)
    assert not unexpected and all(".lora_" in name for name in missing)
    frozen = network.encoder.blocks[0].attn.qkv
    assert not frozen.weight.requires_grad and not frozen.bias.requires_grad and frozen.lora_A.requires_grad


def test_bfloat16_stays_near_full_precision():
    layer = disturb(AdaptedLinear(nn.Linear(32, 48), LoraConfig()))
    tokens = torch.rand(2, 7, 32)
    with torch.no_grad():
        exact = layer(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            half = layer(tokens)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_impossible_requests_are_refused_in_words():
    with pytest.raises(ValueError, match="lora kind is 'dv'; choose one of dvlora, lora, dora, none"):
        LoraConfig("dv")
    with pytest.raises(ValueError, match="lora layers is 'all'; choose one of full, part"):
        LoraConfig(layers="all")
    with pytest.raises(ValueError, match="lora rank is 0; it must be at least 1"):
        LoraConfig(rank=0)
    with pytest.raises(ValueError, match="leave the linear layer as it is"):
        AdaptedLinear(nn.Linear(2, 2), LoraConfig("none"))
    with pytest.raises(ValueError, match="merge them first"):
        adapt(build(), LoraConfig())
    with pytest.raises(ValueError, match="call adapt first"):
        trainable_parameters(build(kind=None), "warm_up")
    with pytest.raises(ValueError, match="phase is 'later'; choose one of warm_up, vectors"):
        trainable_parameters(build(), "later")
    state = build().state_dict()
    del state["encoder.blocks.0.attn.qkv.lora_V"]
    with pytest.raises(ValueError, match="lacks encoder.blocks.0.attn.qkv.lora_U or encoder.blocks.0.attn.qkv.lora_V"):
        merged_state(state)
