"""The environment for large images: what is set, what the user's own choices keep, how large the profile is."""

import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from endomust_core.resources import share
from endomust_ros import transport
from endomust_ros.dds_profile import (
    CEILING,
    FLOOR,
    MEGABYTE,
    SIZE,
    ProfileError,
    cache_folder,
    camera_messages,
    image_size,
    node_messages,
    profile_xml,
    segment_bytes,
    write_profile,
)
from endomust_ros.transport import SWITCH, VARIABLES, dds_profile, fast_dds_environment

FIXED = share("config", "fastdds_large_images.xml")
SPACE = {"f": "http://www.eprosima.com"}


@pytest.fixture(autouse=True)
def roomy(monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "_free_shared_memory", lambda: 1 << 30)
    monkeypatch.setenv("HOME", str(tmp_path))


def segment_of(path) -> int:
    return int(ElementTree.parse(path).getroot().findtext(".//f:segment_size", namespaces=SPACE))


# ---- environment ----------------------------------------------------------------------------------------------------


def test_both_generations_of_fast_dds_get_the_profile(tmp_path):
    env = fast_dds_environment({"HOME": str(tmp_path / "else")})
    first, second = (Path(env[name]) for name in VARIABLES)
    assert first == second and first.parent == tmp_path / "else" / ".cache" / "endomust"
    assert segment_of(first) == segment_bytes(node_messages(1920, 1080).values())
    assert (env["RMW_IMPLEMENTATION"], env["HOME"]) == ("rmw_fastrtps_cpp", str(tmp_path / "else"))


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
def test_what_the_user_chose_is_kept(given, tmp_path):
    env = fast_dds_environment(given)
    assert given.items() <= env.items() and not (tmp_path / ".cache").exists()
    assert {name: env[name] for name in VARIABLES if name in env} == {n: v for n, v in given.items() if n in VARIABLES}


def test_a_profile_of_ones_own_can_be_named(tmp_path):
    own = tmp_path / "own.xml"
    own.write_text("<dds/>")
    assert fast_dds_environment({SWITCH: str(own)})[VARIABLES[0]] == str(own)
    with pytest.raises(FileNotFoundError, match="give auto, none, or the path"):
        fast_dds_environment({SWITCH: str(tmp_path / "none.xml")})


def test_the_image_size_decides_and_is_said():
    path, sentence = dds_profile({SIZE: "1280x1024"})
    assert segment_of(path) == 20 * MEGABYTE  # 4 * 1280 * 1024 * 4
    assert "20 MB of shared memory for images up to 1280x1024" in sentence and SIZE in sentence
    camera, _ = dds_profile({SIZE: "1280x1024"}, camera_messages)
    assert segment_of(camera) == FLOOR and camera != path  # 4 * 3.75 MB


def test_a_container_with_little_shared_memory_is_told_so_and_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "_free_shared_memory", lambda: 60 << 20)  # Docker's 64
    assert not {*VARIABLES} & fast_dds_environment({}).keys() and not (tmp_path / ".cache").exists()
    sentence = dds_profile({})[1]
    assert "60 MB free" in sentence and "--ipc=host" in sentence and "--shm-size=128m" in sentence  # 2 * 32 and air
    assert f"{SIZE}=640x512" in sentence
    assert dds_profile({SIZE: "640x512"})[0] and dds_profile({SIZE: "1280x1024"})[0]  # the remedy is one


def test_a_home_that_cannot_be_written_leaves_the_fixed_profile(tmp_path):
    (tmp_path / ".cache").write_text("a file where a folder should be")
    path, sentence = dds_profile({})
    assert path == FIXED and "cannot be written" in sentence


def test_the_environment_given_is_not_changed():
    given = {}
    fast_dds_environment(given)
    assert given == {}


# ---- size -----------------------------------------------------------------------------------------------------------


def test_messages_of_a_small_image_are_counted_by_hand():
    assert camera_messages(10, 7) == {"rgb8": 210}
    assert node_messages(10, 7, stride=2) == {"32FC1": 280, "cloud": 16 * 5 * 4, "rgb8": 210, "colour": 210}


@pytest.mark.parametrize(
    "messages, megabytes",
    [
        ([1000], 16),  # the floor
        ([5 * MEGABYTE], 20),  # four of the largest
        ([5 * MEGABYTE + 1], 21),  # in whole megabytes
        ([4 * MEGABYTE, 5 * MEGABYTE, 1], 20),  # wherever it stands
        ([500 * MEGABYTE], 512),  # the ceiling
    ],
)
def test_room_for_four_of_the_largest(messages, megabytes):
    assert segment_bytes(messages) == megabytes * MEGABYTE
    assert FLOOR <= segment_bytes(messages) <= CEILING


def test_size_in_words():
    assert [image_size(text) for text in ("", "1280x1024", "1x1")] == [(1920, 1080), (1280, 1024), (1, 1)]
    for wrong in ("1280", "1280 x 1024", "0x5", "5x-5", "1e3x5", "99999x5"):
        with pytest.raises(ProfileError, match="write WIDTHxHEIGHT such as 1280x1024"):
            image_size(wrong)


# ---- file -----------------------------------------------------------------------------------------------------------


def test_the_profile_has_shared_memory_and_udp_by_default(tmp_path):
    root = ElementTree.parse(write_profile(tmp_path, 20 * MEGABYTE)).getroot()
    kinds = {
        entry.findtext("f:transport_id", namespaces=SPACE): entry.findtext("f:type", namespaces=SPACE)
        for entry in root.iterfind(".//f:transport_descriptor", SPACE)
    }
    used = [entry.text for entry in root.iterfind(".//f:userTransports/f:transport_id", SPACE)]
    assert sorted(kinds[name] for name in used) == ["SHM", "UDPv4"]
    assert int(root.findtext(".//f:segment_size", namespaces=SPACE)) == 20 * MEGABYTE
    assert root.find(".//f:participant", SPACE).get("is_default_profile") == "true"
    assert root.findtext(".//f:useBuiltinTransports", namespaces=SPACE) == "false"


def test_the_fixed_file_is_the_profile_of_64_mb():
    written, shipped = (ElementTree.canonicalize(text) for text in (profile_xml(64 * MEGABYTE), FIXED.read_text()))
    assert written == shipped  # comments do not count


def test_processes_that_start_together_all_find_a_whole_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: write_profile(tmp_path / "new", 16 * MEGABYTE), range(40)))
    assert len(set(paths)) == 1 and paths[0].read_text() == profile_xml(16 * MEGABYTE)
    assert list((tmp_path / "new").iterdir()) == [paths[0]]  # nothing half-written stays


def test_a_file_of_another_version_is_replaced(tmp_path):
    path = write_profile(tmp_path, FLOOR)
    path.write_text("<dds/>")
    assert write_profile(tmp_path, FLOOR).read_text() == profile_xml(FLOOR)


@pytest.mark.parametrize(
    "env, folder",
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/endomust"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/endomust"),  # to be ignored, says the XDG standard
        ({"HOME": "/h"}, "/h/.cache/endomust"),
    ],
)
def test_the_cache_is_where_users_keep_theirs(env, folder):
    assert cache_folder(env) == Path(folder)
