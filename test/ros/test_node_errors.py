"""Errors that nobody foresaw, and error processing, in a node inside the test process."""

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

import rclpy
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from endomust_ros import depth_node
from endomust_ros import node as node_module
from endomust_ros.inputs import Frame
from endomust_ros.node import EndomustNode

pytestmark = pytest.mark.ros


@pytest.fixture
def inside(bundle):
    context = rclpy.Context()
    rclpy.init(context=context)
    overrides = [Parameter("model.path", value=str(bundle)), Parameter("model.threads", value=1)]
    # rclpy keeps lifecycle services of a destroyed node until garbage is collected: they must not answer for another
    node = EndomustNode(context=context, namespace="/inside", parameter_overrides=overrides)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_an_error_in_configure_gives_everything_back_and_can_be_repeated(inside, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(node_module, "Transforms", lambda *_: 1 / 0)  # late: the publishers exist already
        assert inside.trigger_configure() == TransitionCallbackReturn.ERROR
    assert inside.state == "unconfigured" and not inside.gave_up
    assert inside.count_publishers("/inside/endomust/points") == 0
    assert inside.trigger_configure() == TransitionCallbackReturn.SUCCESS


def test_an_error_in_deactivate_ends_in_unconfigured(inside, monkeypatch):
    inside.trigger_configure()
    inside.trigger_activate()
    with monkeypatch.context() as patch:
        stopped = iter([ZeroDivisionError("first time")])
        stop = inside._stop
        patch.setattr(
            inside, "_stop", lambda: (_ for _ in ()).throw(error) if (error := next(stopped, None)) else stop()
        )
        assert inside.trigger_deactivate() == TransitionCallbackReturn.ERROR
    assert inside.state == "unconfigured"
    assert inside.trigger_configure() == inside.trigger_activate() == TransitionCallbackReturn.SUCCESS
    assert inside.trigger_shutdown() == TransitionCallbackReturn.SUCCESS


def test_a_node_that_cannot_even_give_back_ends(inside, monkeypatch):
    inside.trigger_configure()
    inside.trigger_activate()
    with monkeypatch.context() as patch:
        patch.setattr(inside, "_stop", lambda: 1 / 0)
        inside.trigger_deactivate()
    assert inside.state == "finalized" and inside.gave_up
    inside._stop()


def test_a_failure_in_the_pipeline_is_counted_and_named(inside):
    inside.trigger_configure()
    inside._on_failure(RuntimeError("the device is gone"))
    assert inside._tally["failure"] == 1 and "the device is gone" in inside._tally.last


def test_images_after_deactivation_are_not_touched(inside):
    inside.trigger_configure()
    inside.trigger_activate()
    worker = inside._worker
    inside.trigger_deactivate()
    assert not worker.put(Frame(None, False)) and inside._worker is None
    assert inside.trigger_cleanup() == TransitionCallbackReturn.SUCCESS


def test_a_ros_without_security_says_so_and_does_not_start_unprotected(monkeypatch, caplog):
    said = []
    logger = type("Logger", (), {"fatal": staticmethod(said.append)})
    monkeypatch.setattr(depth_node.rclpy.logging, "get_logger", lambda name: logger)
    monkeypatch.setattr(depth_node, "stop_on_signals", list)

    def refuse(**options):
        raise depth_node.RCLError("This Fast DDS version doesn't have the security libraries")

    monkeypatch.setattr(depth_node.rclpy, "init", refuse)
    assert depth_node.main([]) == 1 and said == [depth_node.WITHOUT_SECURITY]
