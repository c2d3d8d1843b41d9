"""A small world with known answers, as a recording: a camera glides past a tilted, textured plane; 96x80, metres."""

from pathlib import Path

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.odometry import se3, so3_exp
from endomust_core.recording import CAMERA_INFO_TOPIC, COMPRESSED_TOPIC, DEPTH_PNG_TOPIC, POSE_TOPIC
from endomust_core.recording_writer import RecordingWriter

CAMERA = Camera(width=96, height=80, fx=90.0, fy=90.0, cx=47.5, cy=39.5)
NORMAL, OFFSET = np.array([0.2, -0.1, 1.0]), 0.06  # the plane NORMAL · X = OFFSET [m] in the world
OPTICAL_FRAME = "endoscope_optical_frame"
START_NS = 1_700_000_000_000_000_000


def pose_at(index: int) -> np.ndarray:
    """(4,4) T_world_camera [m] of a frame: a slow glide with a little turn."""
    return se3(so3_exp(np.array([0.0, 0.004, 0.001]) * index), np.array([0.0006, 0.0002, 0.0001]) * index)


def depth_at(index: int, camera: Camera = CAMERA) -> np.ndarray:
    """(H,W) float32 [m] along the optical axis, exact."""
    T = pose_at(index)
    rays = np.concatenate([camera.rays(), np.ones((camera.height, camera.width, 1))], axis=-1)
    along = (rays @ T[:3, :3].T) @ NORMAL
    return ((OFFSET - T[:3, 3] @ NORMAL) / along).astype(np.float32)


def image_at(index: int, camera: Camera = CAMERA) -> np.ndarray:
    """(H,W,3) uint8 RGB: the plane's texture seen from the pose of a frame."""
    T = pose_at(index)
    points = camera.back_project(depth_at(index, camera)) @ T[:3, :3].T + T[:3, 3]
    rng = np.random.default_rng(7)
    texture = cv2.resize(rng.integers(60, 230, (24, 24, 3), dtype=np.uint8), (384, 384), interpolation=cv2.INTER_CUBIC)
    on_texture = (points[..., :2] / 0.16 + 0.5) * 384
    return cv2.remap(texture, on_texture.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def write_small_recording(
    path: Path, frames: int = 15, rate: float = 15.0, depth_every: int = 5, camera: Camera = CAMERA
) -> Path:
    """JPEG images, camera_info and pose at `rate` [Hz], PNG depth every so many frames."""
    with RecordingWriter(path) as writer:
        for index in range(frames):
            stamp = START_NS + round(index * 1e9 / rate)
            bgr = cv2.cvtColor(image_at(index, camera), cv2.COLOR_RGB2BGR)
            jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            writer.write_camera_info(CAMERA_INFO_TOPIC, camera, stamp, OPTICAL_FRAME)
            writer.write_compressed(COMPRESSED_TOPIC, jpeg, stamp, OPTICAL_FRAME)
            writer.write_pose(POSE_TOPIC, pose_at(index), stamp)
            if index % depth_every == 0:
                writer.write_depth(DEPTH_PNG_TOPIC, depth_at(index, camera), stamp, OPTICAL_FRAME, compact=True)
    return path
