"""The transport benchmark: figures computed by hand, and two real processes with a small image for one second."""

import json

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from endomust_ros import transport
from endomust_ros.transport import SWITCH, VARIABLES
from endomust_ros.transport_benchmark import BenchmarkError, environment_of, figures, main, table


def test_figures_of_four_images_of_which_three_arrive():
    sent = {"stamps": [0, 100_000_000, 200_000_000, 300_000_000], "publish": [0.001, 0.003, 0.002, 0.002]}
    arrived = {"stamps": [0, 100_000_000, 300_000_000], "arrivals": [10_000_000, 120_000_000, 330_000_000]}
    found = figures(sent, arrived)
    assert (found["sent"], found["delivered"], found["delivered_percent"]) == (4, 3, 75.0)
    assert [found["age_ms"][name] for name in ("p50", "max")] == pytest.approx([20.0, 30.0])
    assert found["publish_ms"]["p50"] == pytest.approx(2.0)
    assert found["BasicPerformanceMetrics.NUM_MISSED_FRAMES"] == 1


def test_nothing_delivered_is_said_and_not_divided_by():
    found = figures({"stamps": [0, 1], "publish": [0.1, 0.1]}, {"stamps": [], "arrivals": []})
    assert found["delivered_percent"] == 0.0 and found["age_ms"] == {"n": 0}
    case = {"profile": "none", "reliability": "reliable", "median": found, "runs": [found]}
    results = {"width": 4, "height": 2, "bytes": 24, "rate": 30.0, "seconds": 1.0, "cases": [case]}
    assert "| 0.0 % (0.0 to 0.0) | – / – / – / – | 100.0 / 100.0 |" in table(results)


def test_only_one_of_both_has_the_profile_whatever_the_shell_says(monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "_free_shared_memory", lambda: 1 << 30)
    shell = {"HOME": str(tmp_path), VARIABLES[0]: "/own.xml", "FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"}
    ours, none = (environment_of(profile, "640x512", shell) for profile in ("ours", "none"))
    assert {ours[name] for name in VARIABLES} == {str(tmp_path / ".cache" / "endomust" / "fastdds_16mb.xml")}
    assert not {*VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS"} & none.keys() and none[SWITCH] == "none"
    monkeypatch.setattr(transport, "_free_shared_memory", lambda: 1 << 20)
    with pytest.raises(BenchmarkError, match="no profile to measure.*--ipc=host"):
        environment_of("ours", "640x512", shell)


@pytest.mark.ros
def test_two_processes_and_both_profiles(tmp_path, capsys):
    out = tmp_path / "transport.json"
    size = ["--size", "160x128", "--rate", "20", "--seconds", "1", "--runs", "1", "--reliability", "reliable"]
    assert main([*size, "--json", str(out)]) == 0
    shown, content = capsys.readouterr().out, json.loads(out.read_text())
    assert "160x128 rgb8 (0.1 MB) at 20 Hz" in shown
    assert content["kind"] == "transport" and content["command"].startswith("endomust bench transport --size 160x128")
    cases = {case["profile"]: case["median"] for case in content["results"]["cases"]}
    assert cases.keys() == {"ours", "none"}
    for median in cases.values():  # an image this small arrives either way, where the machine has time for it
        assert median["sent"] == 20 and median["delivered"] >= 10
        assert 0 < median["age_ms"]["p50"] <= median["age_ms"]["max"] and median["publish_ms"]["n"] == 20


def test_a_size_that_is_none_is_named(capsys):
    assert main(["--size", "large"]) == 2
    assert "write WIDTHxHEIGHT" in capsys.readouterr().err
