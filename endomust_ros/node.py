"""The lifecycle node `endomust`: endoscope images in, depth [m], coloured cloud [m] and odometry out.

Callbacks run on the main thread and only put the image into a one-slot mailbox; one worker thread does the work, and a
second one of low priority makes what is only looked at. Every transition stops and joins both before it touches the
model or a publisher, so inference and transitions never overlap.
"""

import functools
import json
import os
import signal
import sys
import time
import traceback

import cv2
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String
from std_srvs.srv import Trigger

from endomust_core import __version__
from endomust_core.backends import BackendError
from endomust_core.bundle import BundleError, default_bundle, load_bundle
from endomust_core.conveyor import NICE
from endomust_core.estimator import Estimator
from endomust_core.pipeline import Calibration, model_facts, model_info
from endomust_ros import parameters as parameter_table
from endomust_ros import tf
from endomust_ros.dds_profile import ProfileError
from endomust_ros.diagnostics import Reporter, Statistics, Tally, array_of
from endomust_ros.inputs import Inputs
from endomust_ros.library_log import LibraryLog
from endomust_ros.mailbox import Worker
from endomust_ros.outputs import Outputs
from endomust_ros.parameters import ParameterError
from endomust_ros.pictures import Painter, Picture
from endomust_ros.pipeline import Pipeline
from endomust_ros.scheduling import Scheduling
from endomust_ros.transport import dds_profile, fast_dds_environment

LOOK_PERIOD = 0.25  # s between two looks at who publishes images
SPIN_PERIOD = 0.25  # s until a signal is noticed while nothing happens

SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)


def transition(step):
    """Log what a transition raises, which rclpy would swallow, and enter error processing."""

    @functools.wraps(step)
    def logged(self, state):
        try:
            return step(self, state)
        except Exception:
            self.get_logger().error(f"{step.__name__} failed: {traceback.format_exc()}")
            return ERROR

    return logged


class EndomustNode(LifecycleNode):
    """See the module. `configure` loads the model, `activate` listens; `deactivate` and `cleanup` undo them."""

    def __init__(self, **options):
        super().__init__("endomust", **options)
        self.parameters = parameter_table.declare(self)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._estimator = self._pipeline = self._outputs = self._broadcaster = None  # exist while configured
        self._painter = self._scheduling = None  # too
        self._inputs = self._worker = self._pictures = None  # exist while active
        self._calibration = None
        self.gave_up = False  # True when not even error processing worked
        self._library_log = LibraryLog(self.get_logger())
        self._renew_counters()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)  # timers must run while simulated time stands still
        self._look_timer = self.create_timer(LOOK_PERIOD, self._look, clock=self._steady)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._diagnostics_timer = None
        self._renew_diagnostics_timer()
        self._model_info = self.create_publisher(String, "~/model_info", _latched())
        self.create_service(Trigger, "~/reset_odometry", self._on_reset_odometry)
        _survive_wrong_transitions(self)

    @property
    def state(self) -> str:
        """unconfigured, inactive, active or finalized."""
        return self._state_machine.current_state[1]

    # ---- transitions ----

    @transition
    def on_configure(self, state):
        try:
            self._open()
        except (BundleError, BackendError, ParameterError, FileNotFoundError) as error:
            self.get_logger().error(f"configure failed: {error}")
            self._close()
            return FAILURE
        return super().on_configure(state)

    @transition
    def on_activate(self, state):
        result = super().on_activate(state)
        self._pictures = Worker(self._painter.paint, self._on_failure, name="endomust-pictures", nice=NICE)
        self._worker = Worker(self._pipeline.process, self._on_failure)
        self._pictures.start()
        self._worker.start()
        p = self.parameters
        self._inputs = Inputs(self, p.input_transport, p.input_qos, self._on_image, self._calibration.update)
        self.get_logger().info(f"listening to {self._inputs.topics.raw} and {self._inputs.topics.camera_info}")
        return result

    @transition
    def on_deactivate(self, state):
        self._stop()
        return super().on_deactivate(state)

    @transition
    def on_cleanup(self, state):
        self._stop()
        self._close()
        return super().on_cleanup(state)

    @transition
    def on_shutdown(self, state):
        self._stop()
        self._close()
        return super().on_shutdown(state)

    def on_error(self, state):
        """Give everything back, so that configure can be tried again; finalized where even that fails."""
        try:
            self._stop()
            self._close()
        except Exception:
            self.gave_up = True
            self.get_logger().fatal(f"the node cannot recover and ends: {traceback.format_exc()}")
            return FAILURE
        self.get_logger().error("everything was given back after the error; mend its cause and configure again")
        return SUCCESS

    def autostart(self) -> None:
        """Configure and activate, when the parameter says so; a failure leaves the node unconfigured and alive."""
        if self.parameters.autostart and self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    # ---- what the transitions do ----

    def _open(self) -> None:
        """Load the bundle, open the networks, warm up, create the publishers."""
        p, start = self.parameters, time.perf_counter()
        cv2.setNumThreads(p.realtime_cv_threads)
        self._scheduling = Scheduling(p.realtime_cpu_affinity, p.realtime_nice)
        for problem in self._scheduling.apply():  # before the networks, whose threads inherit it
            self.get_logger().warning(problem)
        bundle = load_bundle(p.model_path or default_bundle())
        self._estimator = Estimator(
            bundle,
            resolution=parameter_table.resolution(p.depth_resolution),
            options=parameter_table.engine_options(p),
        )
        self._estimator.warm_up(p.model_warmup_runs)
        self._renew_counters()
        self._calibration = Calibration(p.input_rectified)
        self._outputs = Outputs(self)
        self._broadcaster = tf.broadcaster(self, p.tf_publish)
        self._pipeline = Pipeline(
            self._estimator,
            p,
            self._calibration,
            self._outputs,
            self._broadcaster,
            self._tally,
            self._statistics,
            self._now,
            self._hand_over,
        )
        self._painter = Painter(self._outputs, self._statistics)
        self._scheduling.settle()
        self._model_info.publish(String(data=json.dumps(model_info(self._estimator, __version__), sort_keys=True)))
        took = time.perf_counter() - start
        where = self._estimator.provider
        self.get_logger().info(f"{bundle.name} {bundle.version} is ready on {where} after {took:.2f} s")

    def _stop(self) -> None:
        """Hear nothing more and wait for the image in work. The model may be touched after this."""
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        if self._pictures is not None:  # after the worker, which fills it
            self._pictures.stop()
            self._pictures = None

    def _close(self) -> None:
        if self._outputs is not None:
            self._outputs.close()
        if self._broadcaster is not None:
            self._broadcaster.close()
        self._estimator = self._pipeline = self._outputs = self._broadcaster = self._calibration = None
        self._painter = None
        if self._scheduling is not None:
            self._scheduling.release()
            self._scheduling = None

    # ---- callbacks of the main thread ----

    def _on_image(self, frame) -> None:
        self._tally.count("received")
        if self._worker.put(frame):
            self._tally.count("busy")

    def _hand_over(self, picture: Picture) -> None:
        """Called by the worker: leave a picture to the second thread."""
        if self._pictures.put(picture, slot=picture.output):
            self._tally.count(f"skipped {picture.output}")

    def _on_failure(self, error: Exception) -> None:
        where = "".join(traceback.format_exception(error)[-2:]).strip()
        self._tally.note("failure", f"an image failed: {error} ({where})")

    def _on_reset_odometry(self, request, response):
        response.success = self._pipeline is not None
        if response.success:
            response.message = self._pipeline.reset_odometry("asked by service")
            self.get_logger().info(response.message)
        else:
            response.message = f"there is no odometry to reset, the node is {self.state}; configure it first"
        return response

    def _on_parameters(self, changes) -> SetParametersResult:
        values = {change.name: change.value for change in changes if change.name in parameter_table.ABOUT}
        try:
            self.parameters = parameter_table.changed(self.parameters, values, configured=self._estimator is not None)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if self._pipeline is not None:
            self._pipeline.parameters = self.parameters
        if "diagnostics.period" in values:
            self._renew_diagnostics_timer()
        return SetParametersResult(successful=True)

    def _look(self) -> None:
        if self._inputs is not None:
            self._inputs.look()

    def _report(self) -> None:
        if self._inputs is None:
            statuses = self._reporter.idle(self.state)
        else:
            statuses = self._reporter.active(
                self._inputs, self._pipeline, model_facts(self._estimator), self._broadcaster, self._scheduling
            )
        self._diagnostics.publish(array_of(self.get_clock().now().to_msg(), statuses))

    # ---- small things ----

    def _renew_counters(self) -> None:
        self._tally, self._statistics = Tally(self.get_logger().warning), Statistics()
        self._reporter = Reporter(self.get_name(), self._tally, self._statistics)

    def _renew_diagnostics_timer(self) -> None:
        if self._diagnostics_timer is not None:
            self.destroy_timer(self._diagnostics_timer)
            self._diagnostics_timer = None
        if self.parameters.diagnostics_period > 0:
            period = self.parameters.diagnostics_period
            self._diagnostics_timer = self.create_timer(period, self._report, clock=self._steady)

    def destroy_node(self) -> None:
        self._library_log.close()
        super().destroy_node()

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9


def _latched() -> QoSProfile:
    return QoSProfile(
        depth=1,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def _survive_wrong_transitions(node: LifecycleNode) -> None:
    """A client that asks for a transition which the state does not have ends the process in rclpy; answer `false`."""
    service = getattr(node, "_service_change_state", None)
    if service is None:
        return
    change = service.callback

    def guarded(request, response):
        try:
            return change(request, response)
        except RuntimeError as error:  # RCLError is one
            wish = request.transition.label or request.transition.id
            node.get_logger().error(f"transition {wish} is not possible while the node is {node.state} ({error})")
            response.success = False
            return response

    service.callback = guarded


def main(args=None) -> int:
    """Run the node until SIGINT, SIGTERM or its shutdown transition; 0 after an orderly end, 1 after a fatal error."""
    stop = _stop_on_signals()
    try:
        _, transport = dds_profile(os.environ)
        os.environ.update(fast_dds_environment(os.environ))
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = EndomustNode()
    except (ParameterError, ProfileError, FileNotFoundError) as error:
        rclpy.logging.get_logger("endomust").fatal(str(error))
        rclpy.try_shutdown()
        return 1
    node.get_logger().info(transport)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    node.autostart()
    while not stop and node.state != "finalized":
        executor.spin_once(timeout_sec=SPIN_PERIOD)
    if node.state != "finalized":
        node.trigger_shutdown()
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return 1 if node.gave_up else 0


def _stop_on_signals() -> list[int]:
    """A list that stays empty until SIGINT or SIGTERM comes; the second one ends the process at once."""
    received: list[int] = []

    def remember(number, frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, remember)
    return received


if __name__ == "__main__":
    sys.exit(main())
