"""What trains in each step and phase, to the name; the schemes; the losses of a batch."""

import pytest
import torch
from small_run import small_presets, write_config, write_frames

from endomust_core.learning import steps as steps_file
from endomust_core.learning.config import load_config
from endomust_core.learning.distributed import World
from endomust_core.learning.networks.depth import DepthNetwork
from endomust_core.learning.run import RunFolder
from endomust_core.learning.steps import SCHEMES, Forward, LossOptions, networks_of, optimised_parameters, steps
from endomust_core.learning.train import TrainConfig, Trainer

ONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def frames(tmp_path):
    torch.set_num_threads(1)
    return write_frames(tmp_path / "frames")


def trainer(tmp_path, monkeypatch, frames, **changes) -> Trainer:
    small_presets(monkeypatch)
    config = load_config(TrainConfig, write_config(tmp_path / "c.yaml", frames, **changes))
    run = RunFolder(tmp_path / "run", {}, False, ONE)
    made = Trainer(config, run, ONE)
    made.batches_seen = made.triplets.batch(0, 2, 1)
    return made


def snapshot(networks):
    return {f"{name}.{key}": value.clone() for name, net in networks.items() for key, value in net.state_dict().items()}


def moved(before, networks):
    after = snapshot(networks)
    return {name for name in after if not torch.equal(before[name], after[name])}


def expected(networks, step, phase):
    """Trained parameters by our rule, and the buffers of batch norms in trained networks."""
    adapters = {"warm_up": ("lora_A", "lora_B"), "vectors": ("lora_U", "lora_V")}[phase]
    names = set()
    for network in step.trains:
        for key in networks[network].state_dict():
            if network == "depth":
                trains = key.endswith(adapters) or ".residual_." in key or ".conv_depth_" in key
            else:
                trains = True
            if trains:
                names.add(f"{network}.{key}")
    return names


@pytest.mark.parametrize("phase", ["warm_up", "vectors"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_step_moves_exactly_its_own_parameters_and_buffers(tmp_path, monkeypatch, frames, index, phase):
    t = trainer(tmp_path, monkeypatch, frames, train__vectors_after=0.0 if phase == "vectors" else 1.0)
    t.plan = lambda update: (update, (index,))
    for _ in range(2):  # B starts at zero, so A (and U, V) only feel the second update
        with torch.no_grad():
            for name, p in t.networks["depth"].named_parameters():
                if name.endswith("lora_B"):
                    p.normal_(std=0.02)
    before = snapshot(t.networks)
    for _ in range(3):
        t.step_through(t.batches_seen)
        t.update += 1
    assert moved(before, t.networks) == expected(t.networks, t.steps[index], phase)


def test_all_steps_together_move_every_network(tmp_path, monkeypatch, frames):
    t = trainer(tmp_path, monkeypatch, frames)
    before = snapshot(t.networks)
    for _ in range(3):
        t.step_through(t.batches_seen)
        t.update += 1
    assert {name.split(".")[0] for name in moved(before, t.networks)} == set(steps_file.NETWORKS)


def test_the_optimiser_holds_the_vectors_from_the_first_update(tmp_path, monkeypatch, frames):
    t = trainer(tmp_path, monkeypatch, frames)
    names = {name for name, _ in optimised_parameters(t.networks, t.steps[2])}
    assert any(name.endswith("lora_U") for name in names) and any(name.endswith("lora_A") for name in names)
    assert not any(name.endswith("qkv.weight") for name in names)


def test_vectors_move_after_the_warm_up_and_matrices_stop(tmp_path, monkeypatch, frames):
    t = trainer(tmp_path, monkeypatch, frames, train__steps=6, train__vectors_after=0.5)
    marks = []
    for _ in range(6):
        t.step_through(t.batches_seen)
        t.update += 1
        state = t.networks["depth"].state_dict()
        marks.append({k: state[f"encoder.blocks.0.mlp.fc1.lora_{k}"].clone() for k in "ABUV"})
    for early in "AB":
        assert not torch.equal(marks[0][early], marks[2][early])
        assert torch.equal(marks[2][early], marks[5][early])
    for late in "UV":
        assert torch.equal(marks[0][late], marks[2][late])
        assert not torch.equal(marks[2][late], marks[5][late])


def test_published_vectors_never_move(tmp_path, monkeypatch, frames):
    t = trainer(
        tmp_path,
        monkeypatch,
        frames,
        depth__lora={"vectors": "random", "train_vectors": False},
        train__vectors_after=0.0,
    )
    before = snapshot(t.networks)
    for _ in range(3):
        t.step_through(t.batches_seen)
        t.update += 1
    assert not any("lora_" in name for name in moved(before, t.networks))


def test_schemes_say_what_shares_an_update():
    names = {scheme: [step.name for step in steps(LossOptions(scheme=scheme))] for scheme in SCHEMES}
    assert names["I-II-III"] == ["registration+appearance", "decomposition", "alignment"]
    assert names["I-II+III"] == ["registration+appearance", "decomposition+alignment"]
    assert names["I+II+III"] == ["registration+appearance+decomposition+alignment"]
    assert names["I-III"] == ["registration+appearance", "alignment"]
    third = steps(LossOptions(appearance_step="III"))
    assert "appearance_flow" in third[2].trains and "appearance_flow" not in third[0].trains
    assert "decomposition" in steps(LossOptions(decomposition_in_alignment=True))[2].trains


def test_without_decomposition_its_networks_are_not_built():
    assert networks_of(LossOptions(scheme="I-III")) == ("optical_flow", "appearance_flow", "depth", "pose")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_trains(tmp_path, monkeypatch, frames, scheme):
    t = trainer(tmp_path, monkeypatch, frames, losses__scheme=scheme)
    values, _ = t.step_through(t.batches_seen)
    assert all(torch.isfinite(value) for value in values.values())


@pytest.mark.parametrize(
    "switch",
    [
        {"losses__cycle": 0.5},
        {"losses__geometry": 0.1},
        {"losses__visibility": "count"},
        {"losses__mask_specular": False, "losses__mask_border": False, "losses__mask_instrument": False},
        {"losses__shading_smoothness": 0.1, "losses__reflectance_sparsity": 0.1, "losses__reflectance_registered": 0.1},
        {"losses__appearance_step": "III"},
        {"losses__intrinsics": "last"},
        {"losses__decomposition_scales": [1.0]},
        {"losses__decomposition_scales": [0.83, 0.61]},
        {"losses__reuse": False},
        {"losses__jittered_decomposition": True},
        {"train__interleave": "epoch"},
        {"train__precision": "bf16"},
        {"train__channels_last": False},
        {"depth__checkpointing": True},
        {"depth__lora": {"kind": "lora", "layers": "part"}},
        {"depth__lora": {"kind": "dora", "rank": 2}},
        {"depth__lora": {"kind": "none"}},
    ],
    ids=lambda switch: "-".join(switch),
)
def test_every_switch_trains(tmp_path, monkeypatch, frames, switch):
    t = trainer(tmp_path, monkeypatch, frames, **switch)
    before = snapshot(t.networks)
    for _ in range(2):
        values, _ = t.step_through(t.batches_seen)
        t.update += 1
    assert all(torch.isfinite(value) for value in values.values())
    assert moved(before, t.networks)


def test_a_switched_on_loss_is_there_and_off_it_is_not(tmp_path, monkeypatch, frames):
    t = trainer(tmp_path, monkeypatch, frames)
    names = {
        "cycle": "alignment/cycle",
        "geometry": "alignment/geometry",
        "shading_smoothness": "decomposition/shading_smoothness",
        "reflectance_sparsity": "decomposition/reflectance_sparsity",
        "reflectance_registered": "decomposition/registered",
    }
    for option, name in names.items():
        for weight in (0.0, 0.5, 1.0):
            options = LossOptions(**{key: 0.0 for key in names} | {option: weight})
            forward = Forward(t.networks, t.batches_seen, options, (56, 70))
            found = {key: value for step in steps(options) for key, value in forward.losses(step).items()}
            assert (name in found) == (weight > 0)
            assert all(value.shape == (2,) for value in found.values())
            if weight == 0.5:
                half = found[name]
        assert torch.allclose(found[name], 2 * half)


def test_later_steps_send_nothing_back_into_earlier_ones(tmp_path, monkeypatch, frames):
    t = trainer(tmp_path, monkeypatch, frames)
    forward = Forward(t.networks, t.batches_seen, LossOptions(), (56, 70))
    first, second, third = t.steps
    forward.losses(first)
    forward.losses(second)
    forward.detach()
    sum(value.mean() for value in forward.losses(third).values()).backward()
    touched = {name for name, net in t.networks.items() if any(p.grad is not None for p in net.parameters())}
    assert touched == {"depth", "pose", "light_adjust"}


def test_nothing_is_computed_twice(tmp_path, monkeypatch, frames):
    t = trainer(tmp_path, monkeypatch, frames)
    calls = {}
    for name, network in t.networks.items():
        network.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
    t.step_through(t.batches_seen)
    scales = len(t.config.losses.decomposition_scales)
    assert calls == {
        "optical_flow": 2,  # forward with gradient, backward without; both sources in one call
        "appearance_flow": 1,
        "decomposition": scales,
        "depth": 2,  # the target, and both sources for the geometry term
        "pose": 1,
        "light_adjust": 1,
    }


def test_frozen_networks_evaluate_and_trained_ones_train(tmp_path, monkeypatch, frames):
    t = trainer(tmp_path, monkeypatch, frames)
    steps_file.set_trainable(t.networks, t.steps[1], "warm_up")
    assert {name for name, net in t.networks.items() if net.training} == {"decomposition"}
    steps_file.set_trainable(t.networks, None, "warm_up")
    assert not any(p.requires_grad for net in t.networks.values() for p in net.parameters())


def test_parameter_counts_of_the_base_preset():
    """The figures of the published network at rank 4 (measured on it): warm-up and vectors."""
    from endomust_core.learning.lora import LoraConfig, adapt

    with torch.device("meta"):
        network = DepthNetwork("base")
    network.requires_grad_(True)
    adapt(network, LoraConfig(rank=4))
    for phase, count in (("warm_up", 1_814_532), ("vectors", 1_372_308)):
        steps_file.set_trainable({"depth": network}, steps_file.ALIGNMENT, phase)
        assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheme": "I-II"}, "I-II-III"),
        ({"visibility": "both"}, "consistency"),
        ({"decomposition_scales": ()}, "at least one"),
        ({"decomposition_scales": (1.5,)}, "(0, 1]"),
        ({"intrinsics": "first"}, "mean, last, given"),
    ],
)
def test_wrong_options_are_refused_with_the_choices(values, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace("]", r"\]")):
        LossOptions(**values)
