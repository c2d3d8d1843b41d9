"""Low-rank adapters of the depth network's encoder: DV-LoRA, LoRA, DoRA. Weights are o×i, tokens …×i → …×o.

An adapted layer keeps the names `weight` and `bias` of its frozen base beside its own `lora_…`, so that adapted and
plain state dicts differ by these names only. `adapt` puts adapters in, `trainable_parameters` names what trains and
`merge` makes a plain network of the sum.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from endomust_core.learning.networks.depth import DepthNetwork

KINDS = ("dvlora", "lora", "dora", "none")
LAYERS = {"full": ("attn.qkv", "mlp.fc1", "mlp.fc2"), "part": ("mlp.fc1", "mlp.fc2")}  # of every transformer block
VECTORS = ("ones", "random")
PHASES = ("warm_up", "vectors")  # of DV-LoRA: first its matrices train, then its vectors


@dataclass(frozen=True)
class LoraConfig:
    """Which adapters: kind, rank, place, and what DV-LoRA's vectors start as. "none" trains necks and heads alone."""

    kind: str = "dvlora"  # dvlora | lora | dora | none
    rank: int = 4
    alpha: float | None = None  # the update is scaled by alpha / rank; None: alpha = rank
    layers: str = "full"  # full: attn.qkv, mlp.fc1, mlp.fc2; part: mlp.fc1, mlp.fc2
    vectors: str = "ones"  # ones | random: U(-1, 1), as published
    train_vectors: bool = True  # False as published: no optimiser ever held them

    def __post_init__(self):
        for name, choices in (("kind", KINDS), ("layers", tuple(LAYERS)), ("vectors", VECTORS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"lora {name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.rank < 1:
            raise ValueError(f'lora rank is {self.rank}; it must be at least 1 (kind "none" does without adapters)')

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class AdaptedLinear(nn.Module):
    """A frozen linear layer and a low-rank update of it: tokens …×i → …×o.

    dvlora: y = W x + b + (α/r) (B ⊙ V)(A ⊙ U) x with A r×i, B o×r, U r×1, V o×1 (EndoDAC, Cui et al. 2024).
    lora: the same without U and V (Hu et al. 2021).
    dora: y = m ⊙ (W + (α/r) B A) x / ‖W + (α/r) B A‖ + b with m (o,) and the norm of every output's row, taken as a
    constant in the gradient (Liu et al. 2024, §4.3).
    B starts at zero and m at ‖W‖, so a fresh layer gives its base's output to the bit.
    """

    def __init__(self, base: nn.Linear, config: LoraConfig):
        super().__init__()
        if config.kind == "none":
            raise ValueError('lora kind "none" has no adapted layer; leave the linear layer as it is')
        self.config = config
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        outputs, inputs = base.weight.shape
        new = dict(device=base.weight.device, dtype=base.weight.dtype)
        self.lora_A = nn.Parameter(torch.empty(config.rank, inputs, **new))
        self.lora_B = nn.Parameter(torch.zeros(outputs, config.rank, **new))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        if config.kind == "dvlora":
            self.lora_U = nn.Parameter(torch.ones(config.rank, 1, **new))
            self.lora_V = nn.Parameter(torch.ones(outputs, 1, **new))
            if config.vectors == "random":
                nn.init.uniform_(self.lora_U, -1.0, 1.0)
                nn.init.uniform_(self.lora_V, -1.0, 1.0)
        if config.kind == "dora":
            self.lora_m = nn.Parameter(row_norm(self.weight))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        base = F.linear(tokens, self.weight, self.bias)
        down, up = self.lora_A, self.lora_B
        if self.config.kind == "dvlora":
            down, up = down * self.lora_U, up * self.lora_V
        update = self.config.scale * F.linear(F.linear(tokens, down), up)
        if self.config.kind != "dora":
            return base + update
        with torch.no_grad():
            norm = row_norm(self.weight + self.config.scale * (up @ down))
        gain = self.lora_m / norm
        product = base if self.bias is None else base - self.bias
        return base + (gain - 1.0) * product + gain * update  # not gain * product + bias, which rounds differently

    def merged(self) -> nn.Linear:
        """The plain layer that does the same."""
        outputs, inputs = self.weight.shape
        new = dict(device=self.weight.device, dtype=self.weight.dtype)
        plain = nn.Linear(inputs, outputs, bias=self.bias is not None, **new)
        plain.load_state_dict(merged_state(self.state_dict(), self.config.alpha))
        return plain.train(self.training)


def adapt(network: DepthNetwork, config: LoraConfig) -> None:
    """Put fresh adapters around the linear layers of every encoder block, in place; `network.lora` is the config."""
    if getattr(network, "lora", None) is not None:
        raise ValueError("the network has adapters already; merge them first")
    network.lora = config
    if config.kind == "none":
        return
    for block in network.encoder.blocks:
        for name in LAYERS[config.layers]:
            parent, _, child = name.rpartition(".")
            owner = block.get_submodule(parent)
            setattr(owner, child, AdaptedLinear(getattr(owner, child), config))


def trainable_parameters(network: DepthNetwork, phase: str) -> list[str]:
    """Names of the parameters that train in a phase, "warm_up" or "vectors", of a network that `adapt` has been given.

    Conv necks and disparity heads train in both. DV-LoRA trains A and B in the warm-up, then U and V (then nothing
    without `train_vectors`); LoRA and DoRA train theirs in both.
    """
    if phase not in PHASES:
        raise ValueError(f"phase is {phase!r}; choose one of {', '.join(PHASES)}")
    config = getattr(network, "lora", None)
    if config is None:
        raise ValueError('the network has no adapters; call adapt first (kind "none" trains necks and heads alone)')
    parts = ("lora_A", "lora_B", "lora_m")
    if config.kind == "dvlora" and phase == "vectors":
        parts = ("lora_U", "lora_V") if config.train_vectors else ()
    elif config.kind == "dvlora":
        parts = ("lora_A", "lora_B")
    names = (name for name, _ in network.named_parameters())
    return [
        name for name in names if name.endswith(parts) or ".residual_." in name or name.startswith("depth_head.conv_")
    ]


def merge(network: DepthNetwork) -> DepthNetwork:
    """A plain network with the same config and output (to rounding), all parameters trainable; the given one stays."""
    plain = copy.deepcopy(network)
    plain.lora = None
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AdaptedLinear):
                setattr(module, name, child.merged())
    return plain.requires_grad_(True)


def merged_state(state: dict[str, torch.Tensor], alpha: float | None = None) -> dict[str, torch.Tensor]:
    """State dict of an adapted network or layer → that of a plain one; the kind of adapter shows in the names.

    `alpha` is that of the LoraConfig (None: the rank). Raises ValueError where a part of an adapter is missing.
    """
    merged = {name: tensor for name, tensor in state.items() if not _is_adapter(name)}
    for layer in {name.rpartition("lora_")[0] for name in state if _is_adapter(name)}:
        missing = [layer + part for part in ("weight", "lora_A", "lora_B") if layer + part not in state]
        if (layer + "lora_U" in state) != (layer + "lora_V" in state):
            missing.append(f"{layer}lora_U or {layer}lora_V")
        if missing:
            raise ValueError(f"the state dict lacks {', '.join(missing)}; it is incomplete, save it again")
        down, up = state[layer + "lora_A"], state[layer + "lora_B"]
        scale = 1.0 if alpha is None else alpha / len(down)
        if layer + "lora_U" in state:
            down, up = down * state[layer + "lora_U"], up * state[layer + "lora_V"]
        weight = state[layer + "weight"] + scale * (up @ down)
        if layer + "lora_m" in state:
            weight = weight * (state[layer + "lora_m"] / row_norm(weight))[:, None]
        merged[layer + "weight"] = weight
    return merged


def row_norm(weight: torch.Tensor) -> torch.Tensor:
    """Length of every row of an o×i weight: (o,)."""
    return torch.linalg.vector_norm(weight.detach(), dim=1)


def _is_adapter(name: str) -> bool:
    return name.rpartition(".")[2].startswith("lora_")
