"""The node benchmark on synthetic notes with known answers, its camera, and one short run of everything."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from endomust_core.benchmarking import PEER_KEYS
from endomust_core.decoding import camera_from_info, rgb_from
from endomust_ros import node_benchmark
from endomust_ros.benchmark_monitor import Heard, stages_of, tasks_of
from endomust_ros.benchmark_source import make_loop, size_of, ticks
from endomust_ros.diagnostics import OK, status
from endomust_ros.node_benchmark import AGE_PARTS, BenchmarkError, Window, ages_of, growth_of, run_of, table

SECOND = 10**9
PERIOD = SECOND // 10


def notes(lost=(), late_ns=20_000_000):
    """A camera of 10 Hz from second 0 to 20, answered after 20 ms, but for those whose number is in `lost`."""
    stamps = [n * PERIOD for n in range(200)]
    heard = Heard()
    for number, stamp in enumerate(stamps):
        if number not in lost:
            heard.arrivals["depth"][stamp] = heard.arrivals["odom"][stamp] = stamp + late_ns
    for second in range(22):
        tasks = {
            "input": {"dropped busy": str(second), "age [s] p50": "0.015", "age [s] max": "0.018"},
            "inference": {"depth [ms] p50": "12.5", "depth [ms] max": str(30 - second), "skipped points": "7"},
        }
        heard.diagnostics.append((second * SECOND, tasks))
    return stamps, heard


def window(heard, begin=5, end=15):
    sampler = SimpleNamespace(resident=[100.0, 101.0], busy=[50.0, 70.0], times=[0.0, 1.0])
    return Window(begin * SECOND, end * SECOND, 1.5, 2.0, 0.5, heard, sampler)


def test_a_run_counts_what_was_sent_within_it():
    stamps, heard = notes(lost={60, 61, 199})
    run = run_of(window(heard), stamps)
    assert (run["sent"], run["delivered"]["depth"], run["delivered"]["points"]) == (100, 98, 0)
    assert run["fps"] == pytest.approx(9.8) and run["age_ms"]["depth"]["p99"] == pytest.approx(20)
    assert run["age_ms"]["points"] == {"n": 0}
    assert run["cpu_ms_per_image"] == pytest.approx(2000 / 98) and run["cpu_cores"] == pytest.approx(0.2)
    assert run["resident_mb"] == {"start": 100.0, "end": 101.0, "max": 101.0}
    assert set(PEER_KEYS) <= set(run) and run["BasicPerformanceMetrics.NUM_MISSED_FRAMES"] == 2
    assert run["ResourceMetrics.MEAN_OVERALL_CPU_UTILIZATION"] == 60


def test_stages_are_the_last_that_were_said_and_their_highest_maximum():
    stamps, heard = notes()
    run = run_of(window(heard), stamps)
    assert run["stages_ms"]["depth"] == {"p50": 12.5, "max": 25.0}
    assert run["stages_ms"]["age"]["p50"] == pytest.approx(15)
    assert run["dropped"]["busy"] == 12 and run["dropped"]["skipped points"] == 0  # second 4 to 16


def test_a_camera_that_sent_nothing_is_an_error_in_words():
    with pytest.raises(BenchmarkError, match="ask for more --seconds"):
        run_of(window(Heard()), [])


def test_ages_of_a_long_run_are_compared_part_by_part():
    begin, second = 1_700_000_000_000_000_000, 10**9
    arrivals = {begin + n * second: begin + n * second + (30 if n < 30 else 50) * 10**6 for n in range(60)}
    found = ages_of(arrivals, begin, begin + 60 * second)
    assert found["depth_images"] == 60 and len(found["age_ms"]["p99"]) == AGE_PARTS
    assert found["age_ms"]["p50"] == [30.0, 30.0, 30.0, 50.0, 50.0, 50.0]
    assert ages_of({}, begin, begin + second)["age_ms"]["p50"] == [None] * AGE_PARTS


def test_growth_leaves_the_warm_up_out():
    times = [float(t) for t in range(601)]
    resident = [300.0 - 100 * max(0, 1 - t / 60) + 0.01 * t for t in times]
    found = growth_of(times, resident)
    assert found["slope_mb_per_10min"] == pytest.approx(6.0) and found["minutes"] == 10
    assert found["resident_mb"]["start"] == 200 and found["resident_mb"]["after_warm_up"] == pytest.approx(300.6)
    assert found["settled_mb_per_10min"] is None  # too short for it


def test_growth_after_ten_minutes_leaves_out_what_fills_the_path():
    times = [float(t) for t in range(1801)]
    found = growth_of(times, [300.0 + min(t, 600.0) / 60 + 0.001 * t for t in times])
    assert found["settled_mb_per_10min"] == pytest.approx(0.6) and found["slope_mb_per_10min"] > 1


def test_diagnostics_become_stages():
    message = DiagnosticArray()
    values = {"depth [ms] p95": 12.5, "age [s] p95": 0.02, "silence [s]": 3.0, "rate [Hz]": 30.0}
    message.status = [status("endomust: inference", OK, "fine", values)]
    tasks = tasks_of(message)
    assert tasks["inference"]["rate [Hz]"] == "30" and stages_of(tasks) == {
        "depth": {"p95": 12.5},
        "age": {"p95": 20.0},
    }


@pytest.mark.parametrize("transport, kind", [("raw", Image), ("compressed", CompressedImage)])
def test_the_camera_shows_the_recording_at_the_size_that_was_asked_for(transport, kind):
    loop = make_loop((96, 64), transport, frames=4)
    assert len(loop.images) == 6 and loop.images[1] == loop.images[5] and loop.images[2] == loop.images[4]
    rgb = rgb_from(deserialize_message(loop.images[0], kind))
    camera = camera_from_info(deserialize_message(loop.info, CameraInfo), rectified=False)
    assert rgb.shape == (64, 96, 3) and (camera.width, camera.height) == (96, 64) and np.ptp(rgb) > 50
    assert loop.digest == make_loop((96, 64), transport, frames=4).digest


def test_a_late_camera_leaves_images_out_instead_of_sending_a_burst(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    stop: list = []
    numbers = []
    for number in ticks(10.0, stop):
        numbers.append(number)
        now[0] += 0.35 if number == 1 else 0.0
        if number >= 6:
            stop.append(1)
    assert numbers == [0, 1, 4, 5, 6]


def test_sizes_in_words():
    assert size_of("640x480") == (640, 480)
    with pytest.raises(Exception, match="WIDTHxHEIGHT"):
        size_of("640")


def test_a_parameter_without_a_value_is_refused_in_words(capsys):
    assert node_benchmark.main(["--parameter", "realtime.nice"]) == 2
    assert "write NAME=VALUE" in capsys.readouterr().err


@pytest.mark.ros
def test_one_short_run_of_everything(bundle, tmp_path, capsys):
    out = tmp_path / "node.json"
    arguments = ["--model", str(bundle), "--size", "160x128", "--rate", "20", "--seconds", "1.5", "--runs", "2"]
    arguments += [
        "--threads",
        "1",
        "--growth-minutes",
        "0.05",
        "--json",
        str(out),
        "--parameter",
        "points.max_rate=0.0",
    ]
    assert node_benchmark.main(arguments) == 0
    shown, content = capsys.readouterr().out, json.loads(out.read_text())
    results, median = content["results"], content["results"]["median"]
    assert content["kind"] == "node" and {"model", "config", "images"} <= set(content["hashes"])
    assert len(results["runs"]) == 2 and 20 <= median["sent"] <= 31 and median["delivered"]["depth"] >= 10
    assert 0 < median["age_ms"]["depth"]["p50"] <= median["age_ms"]["depth"]["max"]
    assert median["stages_ms"]["depth"]["p99"] > 0 and median["delivered"]["points"] > 0
    assert results["cold_start_s"] > 0 and results["warm_start_s"] > 0
    assert results["growth"]["resident_mb"]["end"] > 20 and results["growth"]["descriptors"]["max"] > 3
    assert table(results) in shown and "| age of depth, p50 / p95 / p99 / max [ms] |" in shown
    assert content["command"].startswith("endomust bench node --size 160x128 --rate 20")


@pytest.mark.ros
def test_a_node_that_cannot_start_is_said_with_its_last_words(tmp_path, capsys):
    assert node_benchmark.main(["--model", str(tmp_path), "--seconds", "1", "--runs", "1"]) == 2
    assert "configure failed" in capsys.readouterr().err
