"""Defaults, checks and sentences of the parameters, without a node."""

import dataclasses
import re

import pytest
import yaml

from endomust_core.confinement import ConfinementError
from endomust_core.resources import share
from endomust_ros.opening import REFUSALS, estimator_of
from endomust_ros.parameters import (
    ABOUT,
    DEFAULTS,
    STATIC,
    ParameterError,
    Parameters,
    changed,
    parameters_from,
    resolution,
    unknown,
)


def test_defaults_pass_their_own_checks():
    assert parameters_from({}) == DEFAULTS
    assert parameters_from({name: getattr(DEFAULTS, entry.name) for name, entry in ABOUT.items()}) == DEFAULTS


def test_field_and_parameter_have_one_name_and_every_parameter_is_described():
    for name, entry in ABOUT.items():
        assert entry.name == name.replace(".", "_") and re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", name)
        assert entry.metadata["description"].endswith(".")
        ratios = ("scale.factor", "scale.lock_sigma", "model.self_test_tolerance", "depth.temporal_filter")
        ratios += ("depth.confidence_threshold", "points.min_confidence", "odom.covariance_scale")
        if isinstance(getattr(DEFAULTS, entry.name), float) and name not in ratios:
            assert entry.metadata["unit"], f"{name} has a number but no unit"


def test_every_default_lies_in_its_range():
    for entry in ABOUT.values():
        if entry.metadata["limits"]:
            low, high = entry.metadata["limits"]
            assert low <= getattr(DEFAULTS, entry.name) <= high


def test_parameters_cannot_be_changed_behind_the_nodes_back():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULTS.scale_factor = 2.0


@pytest.mark.parametrize(
    "values, words",
    [
        ({"model.providers": ["cpu", "tpu"]}, "model.providers is 'tpu'; it must be one of cpu, cuda"),
        ({"model.providers": []}, "model.providers is empty"),
        ({"input.transport": "theora"}, "must be one of auto, raw, compressed"),
        ({"depth.min_range": 0.5, "depth.max_range": 0.5}, "must be smaller than depth.max_range"),
        ({"color.min": 0.2}, "color.min (0.2 m) must be smaller than color.max (0.15 m)"),
        ({"depth.resolution": "640 x 512"}, "write input, network, or WIDTHxHEIGHT"),
        ({"depth.resolution": "0x512"}, "write input, network, or WIDTHxHEIGHT"),
        ({"frames.odom": "/odom"}, "starts with a slash"),
        ({"frames.odom": ""}, "frames.odom is empty"),
        ({"frames.camera_optical": "/camera"}, "starts with a slash"),
        ({"frames.base": "/base"}, "starts with a slash"),
        ({"input.roi": [0, 0, 100]}, "input.roi is [0, 0, 100]; write [x, y, width, height]"),
        ({"input.roi": [0, 0, 100, 0]}, "write [x, y, width, height]"),
        ({"input.roi": [-1, 0, 100, 10]}, "write [x, y, width, height]"),
        ({"tf.publish": "yes"}, "tf.publish is 'yes'; it must be one of auto, on, off"),
        ({"scale.mode": "stereo"}, "must be one of none, fixed, file, kinematic"),
        ({"odom.on_lost": "stop"}, "must be one of hold, null, reset"),
    ],
)
def test_what_cannot_be_is_refused_in_words(values, words):
    with pytest.raises(ParameterError, match=re.escape(words)):
        parameters_from(values)


def test_static_ones_are_refused_while_configured_unless_nothing_changes():
    with pytest.raises(ParameterError, match=f"model.path is static: it {STATIC}"):
        changed(DEFAULTS, {"model.path": "/other"}, configured=True)
    assert changed(DEFAULTS, {"model.path": ""}, configured=True) == DEFAULTS
    assert changed(DEFAULTS, {"model.path": "/other"}, configured=False).model_path == "/other"


def test_dynamic_ones_take_effect_and_are_checked_together():
    new = changed(DEFAULTS, {"depth.min_range": 0.6, "depth.max_range": 0.9}, configured=True)
    assert (new.depth_min_range, new.depth_max_range, DEFAULTS.depth_min_range) == (0.6, 0.9, 0.003)
    with pytest.raises(ParameterError):
        changed(DEFAULTS, {"depth.min_range": 0.6}, configured=True)


def test_resolution_in_words_or_numbers():
    assert [resolution(text) for text in ("input", "network", "640x512")] == ["input", "network", (640, 512)]


def test_unknown_names_are_matched_with_the_nearest():
    sentences = unknown(
        ["points.strid", "use_sim_time", "qos_overrides./a.publisher.depth", "color.max"], [*ABOUT, "use_sim_time"]
    )
    assert sentences == ["unknown parameter 'points.strid' has no effect; did you mean 'points.stride'?"]


def test_file_of_the_package_says_only_what_differs_and_gives_each_a_reason():
    text = share("config", "endomust.yaml").read_text()
    values = yaml.safe_load(text)["/**"]["ros__parameters"]
    new = parameters_from(values)
    for name in values:
        assert getattr(new, ABOUT[name].name) != getattr(DEFAULTS, ABOUT[name].name), f"{name} is the default"
        assert re.search(rf"# .+\n    {re.escape(name)}:", text), f"{name} has no reason above it"


def test_yaml_takes_on_and_off_for_true_and_false_and_so_do_we():
    assert parameters_from({"tf.publish": True}).tf_publish == "on"
    assert parameters_from({"tf.publish": False}).tf_publish == "off"


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "кадр", "."])
def test_a_path_that_is_no_bundle_is_refused_in_words(path):
    with pytest.raises(REFUSALS, match="no bundle|does not exist|no path"):
        estimator_of(Parameters(model_path=path), None)


def test_a_bundle_that_ships_opens_by_its_name_wherever_paths_may_point(monkeypatch, tmp_path):
    class Opened(Exception):
        pass

    def opener(bundle, options):
        raise Opened(bundle.manifest["name"])

    monkeypatch.setenv("ENDOMUST_PATHS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path, name in (("", "endomust-tiny"), ("endomust-small", "endomust-small")):
        with pytest.raises(Opened, match=name):
            estimator_of(Parameters(model_path=path), opener)
    with pytest.raises(ConfinementError, match="ENDOMUST_PATHS"):
        estimator_of(Parameters(model_path=str(share("models", "endomust-small"))), opener)
