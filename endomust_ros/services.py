"""Services of the node, all std_srvs: each answers with what was done, in words and numbers.

Callbacks run on the main thread. What must not happen while an image is in work is done by the worker between two
images, and the answer waits for it.
"""

from __future__ import annotations

import functools
import json

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from endomust_core import golden
from endomust_core.scale_file import load_scale, save_scale
from endomust_ros import opening
from endomust_ros.snapshot import save_snapshot
from endomust_ros.waiting import Once, until

PATIENCE = 10.0  # s for the worker to come to it
EXTRA = 0.5  # s more than the window, so that the window is full


class Refused(Exception):
    """The service cannot do it now; the text says why and what to do."""


def answers(callback):
    """What `callback` returns is the message of success, what it refuses or meets is the message of failure."""

    @functools.wraps(callback)
    async def answered(self, request, response):
        try:
            response.message, response.success = await callback(self, request), True
        except (Refused, TimeoutError, OSError, *opening.REFUSALS) as error:
            response.message, response.success = str(error), False
        except Exception as error:  # a service must never end the node
            response.message, response.success = f"{type(error).__name__}: {error}", False
        sentence = f"{callback.__name__.lstrip('_')}: {response.message}"
        if response.success:  # two lines of code: rclpy refuses two severities from one
            self._node.get_logger().info(sentence)
        else:
            self._node.get_logger().warning(sentence)
        return response

    return answered


class Services:
    """Creates the services on a node and answers them. The node keeps the state; nothing is remembered here."""

    def __init__(self, node):
        self._node = node
        self._calibrating = False
        for name, kind, callback in (
            ("reset_odometry", Trigger, self._reset_odometry),
            ("pause", SetBool, self._pause),
            ("enable_odometry", SetBool, self._enable_odometry),
            ("calibrate_scale", Trigger, self._calibrate_scale),
            ("save_scale", Trigger, self._save_scale),
            ("self_test", Trigger, self._self_test),
            ("reload_model", Trigger, self._reload_model),
            ("snapshot", Trigger, self._snapshot),
        ):
            # A group of its own each: one that waits would hold up images and timers of the node's common group.
            node.create_service(kind, f"~/{name}", callback, callback_group=MutuallyExclusiveCallbackGroup())

    @answers
    async def _reset_odometry(self, request):
        return self._configured().reset_odometry("asked by service")

    @answers
    async def _pause(self, request):
        before, self._node.paused = self._node.paused, request.data
        if before == request.data:
            return f"nothing changes: the node {'rests' if before else 'works'} already"
        if request.data:
            return "the node rests: images are counted as paused and nothing is published until pause false"
        return f"the node works again; {self._node.tally['paused']} images were not used"

    @answers
    async def _enable_odometry(self, request):
        result = self._node.set_parameters([Parameter("odom.enable", Parameter.Type.BOOL, request.data)])[0]
        if not result.successful:
            raise Refused(result.reason)
        return f"odom.enable is {str(request.data).lower()}"

    @answers
    async def _calibrate_scale(self, request):
        """Collect poses and images for scale.window seconds; in mode kinematic the result is in use at once."""
        pipeline = self._active()
        if self._calibrating:
            raise Refused("a calibration runs already; wait for its answer")
        self._calibrating = True
        scale, window = pipeline.scale, self._node.parameters.scale_window
        try:
            scale.reset()
            scale.calibrating = True
            self._node.get_logger().info(f"calibrate_scale: move the camera for the next {window:g} s")
            await until(lambda: self._node.pipeline is not pipeline, window + EXTRA)
            found = scale.estimate
        finally:
            scale.calibrating = self._calibrating = False
        if self._node.pipeline is not pipeline:
            raise Refused("the node was configured anew meanwhile; call again")
        if found is None or found.factor is None or found.sigma is None:
            raise Refused(f"no scale: {'neither robot poses nor motion came' if found is None else found.reason}")
        numbers = f"scale {found.factor:.5g} ± {found.sigma:.1%} from {found.pairs} pairs, {found.outliers} outliers"
        if found.state != "locked":
            raise Refused(f"not sure enough: {numbers}; {found.reason}; move the camera more, in all directions")
        scale.calibrated = found
        used = "in use" if self._node.parameters.scale_mode == "kinematic" else (
            f"not in use: scale.mode is {self._node.parameters.scale_mode}; set scale.factor to {found.factor:.6g}, "
            "or call save_scale and set scale.mode to file"
        )  # fmt: skip
        return f"{numbers}; {used}"

    @answers
    async def _save_scale(self, request):
        scale = self._configured().scale
        state = scale.now()
        found = scale.calibrated if state.mode != "kinematic" else None
        factor, sigma = (state.factor, state.sigma) if found is None else (found.factor, found.sigma)
        if found is None and not state.metric:
            raise Refused(f"there is nothing worth saving, the scale is not known: {state.reason}")
        path = opening.scale_path(self._node.parameters)
        bundle = self._node.bundle
        facts = {"digest": bundle.digest, "source": state.mode}
        if (measured := found or scale.estimate) is not None and measured.factor is not None:
            facts |= {"pairs": measured.pairs, "baseline_m": measured.baseline, "delay_s": measured.delay}
        save_scale(path, factor, sigma or 0.0, facts)
        scale.saved = load_scale(path, bundle.digest)
        return f"scale {factor:.6g} is in {path}; scale.mode file reads it"

    @answers
    async def _self_test(self, request):
        """Golden images through the engines that run, and how long an inference takes; between two images."""
        self._configured()
        node, once = self._node, Once()
        engines, bundle = node.engines, node.bundle
        allowed = node.parameters.model_self_test_tolerance + bundle.precision_error(engines.depth.precision)
        work = lambda: golden.self_test(bundle, engines.depth, engines.pose, allowed)  # noqa: E731
        found = await self._between_images(once, work)
        if found is None:
            raise Refused("the bundle carries no golden images; export it again")
        facts = {
            "passed": bool(found.passed),
            "depth_error": found.depth_error,
            "motion_error": found.motion_error,
            "tolerance": found.tolerance,
            "depth_ms": found.depth_ms,
            "motion_ms": found.motion_ms,
            "provider": engines.provider,
        }
        if not found.passed:
            raise Refused(json.dumps(facts))
        return json.dumps(facts)

    @answers
    async def _reload_model(self, request):
        """Open the bundle again, test it, then change over; the old one goes on where the new one does not serve."""
        self._configured()
        return self._node.reload_model()

    @answers
    async def _snapshot(self, request):
        """The next image with everything that is said of it."""
        pipeline, once = self._active(), Once()
        folder, facts = opening.snapshot_folder(self._node.parameters), self._node.facts()
        if self._node.paused:
            raise Refused("the node is paused; call pause with false first")
        take = lambda answer: once.run(lambda: save_snapshot(folder, answer, facts))  # noqa: E731
        pipeline.snapshots.append(take)
        try:
            path = await once.wait(self._node.parameters.input_timeout + 1.0)
        except TimeoutError:
            if take in pipeline.snapshots:
                pipeline.snapshots.remove(take)
            raise Refused("no image came; see diagnostics") from None
        return f"written to {path}"

    async def _between_images(self, once: Once, work):
        """Let the worker do it, or do it here where there is none."""
        if not self._node.on_worker(lambda: once.run(work)):
            once.run(work)
        return await once.wait(PATIENCE)

    def _configured(self):
        if self._node.pipeline is None:
            raise Refused(f"the node is {self._node.state}; configure it first")
        return self._node.pipeline

    def _active(self):
        pipeline = self._configured()
        if self._node.state != "active":
            raise Refused(f"the node is {self._node.state}; activate it first")
        return pipeline
