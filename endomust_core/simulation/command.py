"""Writes rendered sequences: a folder of images with their truth, or a recording that ROS can play. Depth in metres.

Folder: rgb/%06d.png; depth/%06d.png (uint16, 0 = none, `depth_unit_m` in meta.yaml per step);
truth/%06d.npz (albedo, shading,
specular, normal, flow, depth_next, instrument, fov); poses.txt (TUM: stamp x y z qx qy qz qw, camera to world, metres);
camera.yaml (ROS calibration); meta.yaml; preview.png.
"""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from endomust_core.camera import save_camera
from endomust_core.odometry import quaternion_from_matrix
from endomust_core.recording import CAMERA_INFO_TOPIC, COMPRESSED_TOPIC, DEPTH_PNG_TOPIC, DEPTH_UNIT_M, POSE_TOPIC
from endomust_core.recording_writer import RecordingWriter, depth_to_units
from endomust_core.simulation import renderer

FRAME_ID = "endoscope_optical_frame"
EPOCH_NS = 1_700_000_000_000_000_000  # rendered recordings start at this stamp: fixed, so that they repeat to the bit


def render_command(
    domain, frames, out, size=(512, 640), seed=0, fps=25.0, detail=1024, depth_every=1, progress=None, variety="plain"
):
    """Render `frames` frames to `out` (.mcap: recording, else a folder that must not exist yet); returns the path.

    size: (height, width); depth_every: in a recording, keep the true depth of every so many frames;
    variety: plain or wide; progress(done, total).
    Raises ValueError for a bad request, before anything is written; FileExistsError if the folder is not empty.
    """
    out = Path(out)
    if frames < 1:
        raise ValueError(f"--frames {frames}: ask for at least one frame")
    if fps <= 0:
        raise ValueError(f"--rate {fps}: frames per second must be positive")
    torch.set_num_threads(1)  # results repeat to the bit, and more threads would be slower
    drawn = renderer(domain, size, seed, fps, detail, variety=variety)

    def sequence():
        for number in range(frames):
            yield number, drawn.frame(number)
            if progress:
                progress(number + 1, frames)

    if out.suffix == ".mcap":
        _to_recording(sequence(), out, depth_every)
    else:
        meta = {"domain": domain, "seed": seed, "fps": fps, "detail": detail, "frames": frames}
        _to_folder(sequence(), out, meta if variety == "plain" else {**meta, "variety": variety})
    return out


def _to_recording(sequence, out, depth_every):
    out.parent.mkdir(parents=True, exist_ok=True)
    with RecordingWriter(out) as recording:
        for number, frame in sequence:
            stamp = EPOCH_NS + round(frame.stamp * 1e9)
            _, jpeg = cv2.imencode(".jpg", frame.rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
            recording.write_camera_info(CAMERA_INFO_TOPIC, frame.camera, stamp, FRAME_ID)
            recording.write_compressed(COMPRESSED_TOPIC, jpeg.tobytes(), stamp, FRAME_ID)
            recording.write_pose(POSE_TOPIC, frame.T_world_camera, stamp)
            if number % depth_every == 0:
                recording.write_depth(
                    DEPTH_PNG_TOPIC, np.where(frame.fov, frame.depth, np.nan), stamp, FRAME_ID, compact=True
                )


def _to_folder(sequence, out, meta):
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder or remove it")
    part = out.parent / f".{out.name}.{os.getpid()}.unfinished"
    shutil.rmtree(part, ignore_errors=True)
    for name in ("rgb", "depth", "truth"):
        (part / name).mkdir(parents=True)
    try:
        poses, shown = [], []
        every = max(1, meta["frames"] // 4)
        for number, frame in sequence:
            name = f"{number:06d}"
            cv2.imwrite(str(part / "rgb" / f"{name}.png"), frame.rgb[..., ::-1])
            cv2.imwrite(str(part / "depth" / f"{name}.png"), depth_to_units(np.where(frame.fov, frame.depth, np.nan)))
            truth = {
                key: getattr(frame, key).astype(np.float16)
                for key in ("albedo", "shading", "specular", "normal", "flow", "depth_next")
            }
            np.savez_compressed(part / "truth" / f"{name}.npz", **truth, instrument=frame.instrument, fov=frame.fov)
            q = quaternion_from_matrix(frame.T_world_camera[:3, :3])
            poses.append(" ".join(f"{value:.9g}" for value in (frame.stamp, *frame.T_world_camera[:3, 3], *q)))
            if number % every == 0 and len(shown) < 4:
                shown.append(frame)
        (part / "poses.txt").write_text("# stamp[s] x y z [m] qx qy qz qw, camera to world\n" + "\n".join(poses) + "\n")
        save_camera(part / "camera.yaml", shown[0].camera)
        (part / "meta.yaml").write_text(
            yaml.safe_dump({**meta, "depth_unit_m": DEPTH_UNIT_M, "licence": "Apache-2.0"}, sort_keys=False)
        )
        cv2.imwrite(str(part / "preview.png"), contact_sheet(shown)[..., ::-1])
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def contact_sheet(frames):
    """A picture (H, W, 3) RGB uint8 of frames in rows: colour, inverse depth, albedo, shading, flow."""
    return np.vstack(
        [
            np.hstack([_display(frame, kind) for frame in frames])
            for kind in ("rgb", "depth", "albedo", "shading", "flow")
        ]
    )


def _display(frame, kind):
    if kind == "rgb":
        return frame.rgb
    if kind == "depth":
        inverse = 1 / frame.depth
        low, high = np.percentile(inverse[frame.fov], (1, 99))
        grey = (255 * np.clip((inverse - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)
        return cv2.applyColorMap(grey, cv2.COLORMAP_TURBO)[..., ::-1] * frame.fov[..., None]
    if kind == "flow":
        length, angle = cv2.cartToPolar(frame.flow[..., 0], frame.flow[..., 1])
        value = np.clip(length / max(np.percentile(length, 99), 1e-6) * 255, 0, 255)
        hsv = np.stack((angle * 90 / np.pi, np.full_like(value, 255), value), -1).astype(np.uint8)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    linear = getattr(frame, kind)
    bright = np.percentile(linear[frame.fov], 99) if kind == "shading" else 1.0
    return (255 * np.clip(linear / bright, 0, 1) ** (1 / 2.2)).astype(np.uint8) * frame.fov[..., None]
