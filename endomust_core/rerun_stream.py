"""Answers of a replay → the Rerun viewer (rerun.io), where rerun-sdk is installed: image, depth [m], pose, path."""

from __future__ import annotations

import numpy as np

from endomust_core.recording import RecordingError
from endomust_core.trajectory import Thinned

APPLICATION = "endomust"
WORLD = "odom"
ADVICE = "rerun-sdk is not installed; pip install rerun-sdk, or leave --rerun out"


class RerunStream:
    """`target`: "spawn" opens the viewer, NAME.rrd writes a file, rerun+http://… goes to a viewer that runs."""

    def __init__(self, target: str):
        try:
            import rerun
        except ImportError:
            raise RecordingError(ADVICE) from None
        self._rerun = rerun
        self._path: Thinned[np.ndarray] = Thinned(1000)
        self._stretch = 0
        rerun.init(APPLICATION)
        if target == "spawn":
            rerun.spawn()
        elif target.endswith(".rrd"):
            rerun.save(target)
        elif "://" in target:
            rerun.connect_grpc(target)
        else:
            raise RecordingError(f"--rerun {target} is no target; use spawn, NAME.rrd, or the address of a viewer")
        rerun.log(WORLD, rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)

    def show(self, result) -> None:
        """Log one Result of a replay at the time of its stamp."""
        rerun, answer = self._rerun, result.answer
        self._set_time(answer.stamp_ns)
        camera = f"{WORLD}/camera"
        if answer.camera is not None:
            size = [answer.camera.width, answer.camera.height]
            rerun.log(f"{camera}/image", rerun.Pinhole(image_from_camera=answer.camera.K, resolution=size))
        if result.answer.picture.shape[:2] == answer.depth.shape:
            rerun.log(f"{camera}/image/rgb", rerun.Image(np.ascontiguousarray(result.answer.picture)).compress())
        depth = np.nan_to_num(answer.depth, nan=0.0)  # what Rerun reads as "no depth"
        rerun.log(f"{camera}/image/depth", rerun.DepthImage(depth, meter=1.0))
        if result.state is not None:
            self._pose(camera, result)

    def close(self) -> None:
        """Send what waits."""
        self._rerun.disconnect()

    def _pose(self, camera: str, result) -> None:
        rerun, T = self._rerun, result.state.T_odom_camera
        rerun.log(camera, rerun.Transform3D(translation=T[:3, 3], mat3x3=T[:3, :3]))
        if result.stretch != self._stretch:
            self._stretch, self._path = result.stretch, Thinned(1000)
        self._path.add(T[:3, 3].copy())
        rerun.log(f"{WORLD}/path", rerun.LineStrips3D([np.array(self._path.values)]))

    def _set_time(self, stamp_ns: int) -> None:
        if hasattr(self._rerun, "set_time"):  # since 0.23
            self._rerun.set_time("stamp", timestamp=stamp_ns * 1e-9)
        else:
            self._rerun.set_time_nanos("stamp", stamp_ns)
