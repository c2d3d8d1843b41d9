"""The environment for large images: what is set, what the user's own choices keep, and that the profile is sound."""

import xml.etree.ElementTree as ElementTree

import pytest

from endomust_core.resources import share
from endomust_ros import transport
from endomust_ros.transport import SWITCH, VARIABLES, dds_profile, fast_dds_environment

PROFILE = str(share("config", "fastdds_large_images.xml"))


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    monkeypatch.setattr(transport, "_free_shared_memory", lambda: 1 << 30)


def test_both_generations_of_fast_dds_get_the_profile():
    env = fast_dds_environment({"HOME": "/somewhere"})
    assert [env[name] for name in VARIABLES] == [PROFILE, PROFILE]
    assert (env["RMW_IMPLEMENTATION"], env["HOME"]) == ("rmw_fastrtps_cpp", "/somewhere")


@pytest.mark.parametrize(
    "given",
    [
        {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"},
        {"FASTDDS_DEFAULT_PROFILES_FILE": "/own.xml"},
        {"FASTRTPS_DEFAULT_PROFILES_FILE": "/own.xml"},
        {"FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"},
        {SWITCH: "none"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_the_user_chose_is_kept(given):
    env = fast_dds_environment(given)
    assert PROFILE not in env.values() and given.items() <= env.items()


def test_a_profile_of_ones_own_can_be_named(tmp_path):
    own = tmp_path / "own.xml"
    own.write_text("<dds/>")
    assert fast_dds_environment({SWITCH: str(own)})[VARIABLES[0]] == str(own)
    with pytest.raises(FileNotFoundError, match="give auto, none, or the path"):
        fast_dds_environment({SWITCH: str(tmp_path / "none.xml")})


def test_a_container_with_little_shared_memory_is_told_so_and_left_alone(monkeypatch):
    monkeypatch.setattr(transport, "_free_shared_memory", lambda: 60 << 20)
    assert PROFILE not in fast_dds_environment({}).values()
    assert "60 MB free" in dds_profile({})[1] and "--ipc=host" in dds_profile({})[1]


def test_the_environment_given_is_not_changed():
    given = {}
    fast_dds_environment(given)
    assert given == {}


def test_the_profile_has_64_mb_of_shared_memory_and_udp_by_default():
    space = {"f": "http://www.eprosima.com"}
    root = ElementTree.parse(PROFILE).getroot()
    kinds = {
        entry.findtext("f:transport_id", namespaces=space): entry.findtext("f:type", namespaces=space)
        for entry in root.iterfind(".//f:transport_descriptor", space)
    }
    used = [entry.text for entry in root.iterfind(".//f:userTransports/f:transport_id", space)]
    assert sorted(kinds[name] for name in used) == ["SHM", "UDPv4"]
    assert int(root.findtext(".//f:segment_size", namespaces=space)) == transport.SEGMENT_BYTES == 64 << 20
    assert root.find(".//f:participant", space).get("is_default_profile") == "true"
    assert root.findtext(".//f:useBuiltinTransports", namespaces=space) == "false"
