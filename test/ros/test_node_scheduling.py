"""The running node on the cores and with the priority it was given, seen from outside; what it says when refused."""

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import NodeProcess
from rcl_interfaces.msg import ParameterType

pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux schedules single threads"),
]


def threads_of(process):
    return [int(task.name) for task in Path(f"/proc/{process.process.pid}/task").iterdir()]


def test_all_threads_run_where_they_should_and_the_second_one_steps_back(bundle, log_folder, probe):
    core, nice = min(os.sched_getaffinity(0)), min(9, os.getpriority(os.PRIO_PROCESS, 0) + 3)
    parameters = {"model.path": str(bundle), "realtime.cpu_affinity": [core], "realtime.nice": nice}
    with NodeProcess(log_folder, parameters) as process:
        probe.follow("depth", "depth_info", "odom", "points", "diagnostics")
        probe.wait_for_state("active")
        probe.calibrate()
        threads = threads_of(process)
        assert all(os.sched_getaffinity(thread) == {core} for thread in threads)
        priorities = {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
        assert priorities == {nice, nice + 10}  # that of the pictures
        status = probe.wait_for_status("inference", lambda s: "scheduling" in s, "how it is scheduled")
        assert status["scheduling"] == f"cores {core}, nice {nice}" and status["level"] == b"\x00"
        assert list(probe.get("realtime.cpu_affinity").integer_array_value) == [core]


def test_cores_that_are_not_there_are_a_warning_and_the_node_runs(bundle, log_folder, probe):
    with NodeProcess(log_folder, {"model.path": str(bundle), "realtime.cpu_affinity": [9999]}) as process:
        probe.follow("depth", "depth_info", "odom", "points", "diagnostics")
        probe.wait_for_state("active")
        probe.calibrate()
        assert "realtime.cpu_affinity [9999] was refused" in process.log
        status = probe.wait_for_status("inference", lambda s: s["level"] == b"\x01", "a warning")
        assert "9999" in status["message"]


def test_the_cores_are_a_list_of_integers_that_may_be_empty_and_are_static(node, probe):
    value = probe.get("realtime.cpu_affinity")
    assert value.type == ParameterType.PARAMETER_INTEGER_ARRAY and list(value.integer_array_value) == []
    assert probe.describe("realtime.cpu_affinity").type == ParameterType.PARAMETER_INTEGER_ARRAY
    assert "static" in probe.set("realtime.cpu_affinity", [0]).reason
