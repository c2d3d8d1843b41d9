"""Percentiles, the keys of ros2_benchmark and their definitions, medians of runs, and the file that holds them."""

import json
import os

import pytest

from endomust_core import benchmarking
from endomust_core.benchmarking import PEER_KEYS, busy_metrics, median_of, peer_metrics, slope, summary


def test_times_become_milliseconds():
    found = summary([0.001 * n for n in range(1, 102)])
    assert (
        found["p50"] == pytest.approx(51) and found["p95"] == pytest.approx(96) and found["p99"] == pytest.approx(100)
    )
    assert found["max"] == pytest.approx(101) and found["mean"] == pytest.approx(51) and found["n"] == 101
    assert summary([]) == {"n": 0}


def test_keys_of_the_peer_for_a_camera_of_ten_hertz_with_one_frame_lost():
    sent = {n: 100 + 0.1 * n for n in range(5)}
    received = {n: 100.02 + 0.1 * n for n in (0, 1, 3, 4)}
    found = peer_metrics(sent, received)
    assert tuple(found) == PEER_KEYS
    short = {key.partition(".")[2]: value for key, value in found.items()}
    assert short["NUM_FRAMES_SENT"] == 5 and short["NUM_MISSED_FRAMES"] == 1
    assert short["RECEIVED_DURATION"] == pytest.approx(400)
    assert short["MEAN_PLAYBACK_FRAME_RATE"] == pytest.approx(5 / 0.4)  # frames over first to last, as the peer counts
    assert short["MEAN_FRAME_RATE"] == pytest.approx(4 / 0.4)
    for name in ("FIRST_SENT_RECEIVED_LATENCY", "LAST_INPUT_LATENCY", "MAX_LATENCY", "MIN_LATENCY", "MEAN_LATENCY"):
        assert short[name] == pytest.approx(20)
    assert short["MAX_JITTER"] == pytest.approx(100) and short["MEAN_JITTER"] == pytest.approx(100)


def test_too_few_frames_give_no_keys():
    assert peer_metrics({}, {}) == {} and peer_metrics({1: 0.0, 2: 0.1}, {1: 0.0, 2: 0.1}) == {}
    assert busy_metrics([]) == {}


def test_busy_cores_under_the_keys_of_the_peer():
    found = busy_metrics([10.0, 30.0])
    assert found["ResourceMetrics.MEAN_OVERALL_CPU_UTILIZATION"] == 20.0
    assert found["ResourceMetrics.MAX_OVERALL_CPU_UTILIZATION"] == 30.0


def test_medians_of_runs_go_into_nested_numbers_and_leave_words_out():
    runs = [{"fps": n, "age": {"p50": 10 * n, "n": 3}, "name": "a", "flag": True} for n in (1, 5, 2)]
    assert median_of(runs) == {"fps": 2, "age": {"p50": 20, "n": 3}}


def test_slope_is_change_per_unit():
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx(2)
    assert slope([1], [1]) == slope([2, 2], [1, 5]) == 0


def test_the_document_names_machine_command_and_hashes_and_refuses_what_json_has_not(tmp_path):
    content = benchmarking.document("node", {"fps": 30.0}, command="endomust bench node", hashes={"model": "ab"})
    path = benchmarking.write(tmp_path / "folder" / "out.json", content)
    again = json.loads(path.read_text())
    assert again == content and again["machine"]["cores"] >= 1 and again["hashes"] == {"model": "ab"}
    with pytest.raises(ValueError):
        benchmarking.write(tmp_path / "bad.json", {"fps": float("nan")})


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_this_process_uses_memory_and_the_machine_has_time():
    assert benchmarking.resident_mb() > 5 and benchmarking.cpu_seconds() > 0
    busy, total = benchmarking.core_seconds()
    assert 0 < busy < total
