"""Shipped files are found in a checkout, in the Python prefix and in ROS workspaces, in this order."""

import sys
import sysconfig
from pathlib import Path

import pytest

from endomust_core import resources


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Three empty places: a checkout without package.xml, a Python prefix, a ROS prefix."""
    checkout, prefix, ament = (tmp_path / name for name in ("checkout", "prefix", "ament"))
    package = checkout / "endomust_core"
    package.mkdir(parents=True)
    monkeypatch.setattr(resources, "__file__", str(package / "resources.py"))
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(prefix))
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path / 'other'}:{ament}")
    return checkout, prefix / "share/endomust_ros", ament / "share/endomust_ros"


def put(root):
    (root / "config").mkdir(parents=True)
    (root / "config/depth.yaml").write_text("here")
    return root / "config/depth.yaml"


def test_the_checkout_wins_over_the_prefix_and_the_prefix_over_the_workspace(places):
    checkout, prefix, ament = places
    in_ament = put(ament)
    assert resources.share("config", "depth.yaml") == in_ament
    in_prefix = put(prefix)
    assert resources.share("config", "depth.yaml") == in_prefix
    in_checkout = put(checkout)
    assert resources.share("config", "depth.yaml") == in_prefix  # without package.xml it is no checkout
    (checkout / "package.xml").write_text("<package/>")
    assert resources.share("config", "depth.yaml") == in_checkout


def test_folders_are_found_too(places):
    folder = put(places[1]).parent
    assert resources.share("config") == folder


def test_a_missing_file_lists_where_it_was_looked_for(places):
    with pytest.raises(FileNotFoundError) as failure:
        resources.share("models", "none")
    message = str(failure.value)
    assert "models/none is not installed" in message
    for root in places[1:]:
        assert str(root / "models/none") in message


def test_no_ros_environment_is_fine(places, monkeypatch):
    monkeypatch.delenv("AMENT_PREFIX_PATH")
    folder = put(places[1]).parent
    assert resources.share("config") == folder


def test_versions_are_of_what_is_installed():
    assert list(resources.versions(("no-such-package", "numpy"))) == ["numpy"]


def test_the_name_of_a_bundle_that_ships_is_a_path_to_it_unless_something_lies_there(places, monkeypatch, tmp_path):
    _, prefix, _ = places
    (prefix / "models/some-bundle").mkdir(parents=True)
    (prefix / "models/some-bundle/manifest.yaml").write_text("")
    (prefix / "models/demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resources.bundle_path("some-bundle") == prefix / "models/some-bundle"
    for text in ("absent", "demo", ".", "..", "models/some-bundle", "some-bundle/manifest.yaml"):
        assert resources.bundle_path(text) == Path(text)
    (tmp_path / "some-bundle").mkdir()
    assert resources.bundle_path("some-bundle") == Path("some-bundle")


def test_both_bundles_ship():
    assert all(resources.shipped_bundle(name) for name in ("endomust-tiny", "endomust-small"))
