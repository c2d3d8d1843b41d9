"""The lifecycle node `endomust`: endoscope images in, depth [m], coloured cloud [m] and odometry out.

Callbacks run on the main thread and only put the image into a one-slot mailbox; a worker makes depth, a second thread
motion and confidence while the worker begins with the next image, and a third one of low priority what is only looked
at. Every transition stops and joins them before it touches the model or a publisher, so inference and transitions never
overlap.
"""

import functools
import json
import time
import traceback

import cv2
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from endomust_core import __version__
from endomust_core.conveyor import NICE
from endomust_core.decoding import stamp_ns
from endomust_core.engines import open_engines
from endomust_core.pipeline import model_facts, model_info, seconds
from endomust_core.scale import Scale
from endomust_ros import opening
from endomust_ros import parameters as parameter_table
from endomust_ros.diagnostics import Statistics, Tally, array_of
from endomust_ros.inputs import Inputs, Other, resolve
from endomust_ros.library_log import LibraryLog
from endomust_ros.machine import Accelerator
from endomust_ros.mailbox import Follower, Worker
from endomust_ros.messages import PoseError, covariance_matrix, pose_matrix
from endomust_ros.opening import REFUSALS
from endomust_ros.outputs import Outputs
from endomust_ros.parameters import ParameterError
from endomust_ros.pictures import Painter, Picture
from endomust_ros.pipeline import Pipeline
from endomust_ros.reporter import Reporter
from endomust_ros.scheduling import Scheduling
from endomust_ros.services import Refused, Services
from endomust_ros.tf import Transforms
from endomust_ros.tf_watch import TfWatch

LOOK_PERIOD = 0.25  # s between two looks at who publishes images
POSES = 50  # of the robot that may wait; it sends more often than the camera
RATE_TOLERANCE = 0.1  # of a period; stamps jitter

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

    def __init__(self, engine_opener=open_engines, **options):
        """`engine_opener(bundle, options)` opens the networks; nodes of one process may share them."""
        super().__init__("endomust", **options)
        self.parameters = parameter_table.declare(self)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._engine_opener = engine_opener
        self._estimator = self.pipeline = self._outputs = self._transforms = None  # exist while configured
        self._painter = self._scheduling = self._accelerator = self._tf_watch = None  # too
        self._inputs = self._worker = self._follower = self._pictures = None  # exist while active
        self._calibration = None
        self.paused = False
        self.ended = False  # True when stamps or the clock went back and time.on_jump is shutdown
        self.gave_up = False  # True when not even error processing worked
        self._last_used: int | None = None  # stamp [ns] of the last image that was passed on
        self._said_scale = None  # what ~/model_info says of it
        self._jobs = 0
        self.observer = None  # called by the worker with every answer, where somebody set it
        self._library_log = LibraryLog(self.get_logger())
        self._renew_counters()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)  # timers must run while simulated time stands still
        self._look_timer = self.create_timer(LOOK_PERIOD, self._look, clock=self._steady)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._diagnostics_timer = None
        self._renew_diagnostics_timer()
        self._model_info = self.create_publisher(String, "~/model_info", _latched())
        self._service_desk = Services(self)
        back = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jumps = self.get_clock().create_jump_callback(back, post_callback=self._on_clock_jump)
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
        except REFUSALS as error:
            self.get_logger().error(f"configure failed: {error}")
            self._close()
            return FAILURE
        return super().on_configure(state)

    @transition
    def on_activate(self, state):
        result = super().on_activate(state)
        self._start()
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
        topic = resolve(self).raw
        self._calibration = opening.calibration_of(p, topic)
        if self._calibration.rectified and not p.input_rectified:
            self.get_logger().info(f"{topic} is rectified by its name, so P of camera_info is used")
        self._estimator = opening.estimator_of(p, self._engine_opener)
        self._renew_counters()
        self._outputs = Outputs(self)
        self._tf_watch = TfWatch(self, p.frames_odom)
        self._transforms = Transforms(self, self._tf_watch.parents, p)
        self._accelerator = Accelerator(self._estimator.provider in ("cuda", "tensorrt"), p.model_device_id)
        self._painter = Painter(self._outputs, self._statistics)
        self._build(opening.saved_scale(p, self.bundle.digest))
        self._scheduling.settle()
        took = time.perf_counter() - start
        where, bundle = self._estimator.provider, self.bundle
        self.get_logger().info(f"{bundle.name} {bundle.version} is ready on {where} after {took:.2f} s")

    def _build(self, saved) -> None:
        """Pipeline and scale around the model that is open."""
        scale = Scale(self.parameters, self.bundle.metric, saved)
        self.pipeline = Pipeline(
            self._estimator,
            self.parameters,
            self._calibration,
            self._outputs,
            self._transforms,
            self._tally,
            self._statistics,
            self._now,
            self._hand_over,
            scale,
        )
        self._said_scale = None
        self._tell_model()

    def reload_model(self) -> str:
        """Change over to what lies in the bundle's folder now. Raises Refused, and then the old model goes on."""
        old, active, start = self.bundle, self._worker is not None, time.perf_counter()
        try:
            estimator = opening.estimator_of(self.parameters, self._engine_opener)
            saved = opening.saved_scale(self.parameters, estimator.bundle.digest)
        except REFUSALS as error:
            raise Refused(f"the model stays as it is ({old.name} {old.digest[:12]}): {error}") from None
        self._halt()
        self._estimator = estimator
        self._build(saved)
        if active:
            self._run()
        new, took = self.bundle, time.perf_counter() - start
        change = "the same files" if new.digest == old.digest else f"{old.digest[:12]} gave way to {new.digest[:12]}"
        return f"{new.name} {new.version} on {estimator.provider} after {took:.2f} s: {change}; odometry starts again"

    def _start(self) -> None:
        """Work, then listen."""
        self._run()
        p = self.parameters
        others = {
            "mask": Other(Image, lambda message: self.pipeline.masks.update(message)),
            "camera_pose": Other(PoseStamped, self._on_camera_pose, POSES, lambda: self.pipeline.scale.listens),
            "~/set_pose": Other(PoseWithCovarianceStamped, self._on_set_pose),
        }
        self._inputs = Inputs(self, p.input_transport, p.input_qos, self._on_image, self._calibration.update, others)

    def _run(self) -> None:
        """All threads: depth, what follows it, and pictures."""
        self._pictures = Worker(self._painter.paint, self._on_failure, name="endomust-pictures", nice=NICE)
        self._follower = Follower(self.pipeline.finish, self._on_failure, name="endomust-motion")
        self._worker = Worker(self._work, self._on_failure)
        self.pipeline.follower = self._follower
        self._pictures.start()
        self._follower.start()
        self._worker.start()

    def _stop(self) -> None:
        """Hear nothing more and wait for the image in work. The model may be touched after this."""
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        self._halt()

    def _halt(self) -> None:
        """Wait for the image in work; what comes meanwhile is lost."""
        if self._worker is not None:
            if "" in self._worker.stop():  # the slot of images
                self.tally.count("stopped")
            self._worker = None
        if self._follower is not None:  # after the worker, which fills it
            self._follower.stop()
            self._follower = self.pipeline.follower = None
        if self._pictures is not None:  # after both
            self._pictures.stop()
            self._pictures = None

    def _close(self) -> None:
        for part in (self._outputs, self._transforms, self._tf_watch):
            if part is not None:
                part.close()
        self._estimator = self.pipeline = self._outputs = self._transforms = self._calibration = None
        self._painter = self._accelerator = self._tf_watch = None
        if self._scheduling is not None:
            self._scheduling.release()
            self._scheduling = None

    # ---- callbacks of the main thread ----

    def _on_image(self, frame) -> None:
        self.tally.count("received")
        if self.paused:
            self.tally.count("paused")
        elif not self._is_due(frame):
            self.tally.count("rate")
        elif self._worker is not None and self._worker.put(frame):
            self.tally.count("busy")

    def _is_due(self, frame) -> bool:
        """False for an image that comes sooner after the last one than input.max_rate allows; by their stamps."""
        rate, stamp = self.parameters.input_max_rate, stamp_ns(frame.message)
        if rate > 0 and self._last_used is not None:
            since = seconds(stamp - self._last_used)
            if 0 <= since < (1 - RATE_TOLERANCE) / rate:
                return False
        self._last_used = stamp
        return True

    def _work(self, item) -> None:
        """On the worker thread: an image, or a job that must not overlap with one."""
        if callable(item):
            self.pipeline.settle()
            item()
            return
        answer = self.pipeline.process(item)
        if answer is not None and self.observer is not None:
            self.observer(answer)
        self.ended = self.ended or self.pipeline.ended

    def on_worker(self, job) -> bool:
        """Have a function called between two images; False where no worker runs."""
        if self._worker is None:
            return False
        self._jobs += 1
        self._worker.put(job, slot=f"job {self._jobs}")
        return True

    def _on_camera_pose(self, message) -> None:
        try:
            self.pipeline.scale.add_pose(seconds(stamp_ns(message)), pose_matrix(message.pose))
            self.tally.count("poses")
        except PoseError as error:
            self.tally.note("pose", f"camera_pose not used: {error}")

    def _on_set_pose(self, message) -> None:
        frame, wanted = message.header.frame_id.lstrip("/"), self.parameters.frames_odom
        try:
            if frame not in ("", wanted):
                raise PoseError(f"it is about the frame {frame}, odometry is in {wanted}")
            T, covariance = pose_matrix(message.pose.pose), covariance_matrix(message.pose.covariance)
            self.get_logger().info(self.pipeline.set_pose(T, covariance))
        except (PoseError, ValueError) as error:
            self.tally.note("set_pose", f"set_pose not used: {error}")

    def _on_clock_jump(self, jump) -> None:
        """Simulated time went back, or began or ended: what was learned of time no longer holds."""
        if self.pipeline is None:
            return
        what, pipeline = self.parameters.time_on_jump, self.pipeline
        self.tally.note("clock_jump", f"the clock jumped; time.on_jump is {what}")
        self._last_used = None
        if what == "shutdown":
            self.ended = True
        elif what == "reset" and not self.on_worker(lambda: pipeline.reset("the clock jumped")):
            pipeline.reset("the clock jumped")

    def _hand_over(self, picture: Picture) -> None:
        """Called by the worker: leave a picture to the second thread."""
        if self._pictures.put(picture, slot=picture.output):
            self.tally.count(f"skipped {picture.output}")

    def _on_failure(self, error: Exception) -> None:
        where = "".join(traceback.format_exception(error)[-2:]).strip()
        self.tally.note("failure", f"an image failed: {error} ({where})")

    def _on_parameters(self, changes) -> SetParametersResult:
        values = {change.name: change.value for change in changes if change.name in parameter_table.ABOUT}
        try:
            self.parameters = parameter_table.changed(self.parameters, values, configured=self._estimator is not None)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if self.pipeline is not None:
            self.pipeline.parameters = self.pipeline.scale.settings = self.parameters
        if "diagnostics.window" in values:
            self._statistics.look_back(self.parameters.diagnostics_window)
        if "diagnostics.period" in values:
            self._renew_diagnostics_timer()
        return SetParametersResult(successful=True)

    def _look(self) -> None:
        if self._inputs is not None:
            self._inputs.look()
        if self._tf_watch is not None:
            self._tf_watch.look()
        if self.pipeline is not None:
            self._find_base()

    def _find_base(self) -> None:
        """T_camera_base, once somebody has sent the fixed transforms between the two."""
        base, camera = self.parameters.frames_base, self.pipeline.camera_frame
        if base and camera and self.pipeline.base is None:
            self.pipeline.base = self._tf_watch.parents.between(camera, base)

    def _report(self) -> None:
        if self._inputs is None:
            statuses = self._reporter.idle(self.state)
        else:
            self._tell_model()
            statuses = self._reporter.active(
                self._inputs,
                self.pipeline,
                model_facts(self._estimator),
                self._transforms,
                self._scheduling,
                self._accelerator,
                self.paused,
            )
        self._diagnostics.publish(array_of(self.get_clock().now().to_msg(), statuses))

    def _tell_model(self) -> None:
        """~/model_info: at the start, and whenever the scale becomes known or unknown."""
        scale = self.pipeline.scale.now()
        if (scale.mode, scale.metric) == self._said_scale:
            return
        self._said_scale = scale.mode, scale.metric
        facts = model_info(self._estimator, __version__)
        facts |= {"metric": scale.metric, "scale_mode": scale.mode, "scale_factor": scale.factor}
        self._model_info.publish(String(data=json.dumps(facts | {"scale": scale.reason}, sort_keys=True)))

    # ---- what services ask for ----

    @property
    def bundle(self):
        """The bundle that is open; None while unconfigured."""
        return None if self._estimator is None else self._estimator.bundle

    @property
    def engines(self):
        """The networks that run."""
        return self._estimator.engines

    @property
    def tally(self):
        """Counts by reason."""
        return self._tally

    @property
    def baseline(self) -> float | None:
        """What camera_info says of the distance to the other camera of a stereo pair [m]; None: nothing."""
        return None if self._calibration is None else self._calibration.baseline

    def facts(self) -> dict:
        """What a snapshot says of the model."""
        return {"node_version": __version__, **model_facts(self._estimator)}

    # ---- small things ----

    def _renew_counters(self) -> None:
        self._tally = Tally(self.get_logger().warning)
        self._statistics = Statistics(self.parameters.diagnostics_window)
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
