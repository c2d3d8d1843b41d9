"""One image and everything the node says of it → a folder: PNG, depth [m] and confidence as .npy, camera, facts."""

import datetime
import errno
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np

from endomust_core.camera import save_camera
from endomust_core.pipeline import Answer

ROOM = 4  # times the size of what is written must be free, so that a full disk is noticed before it is full


def default_folder() -> Path:
    """Where snapshots go when nobody says otherwise."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "endomust" / "snapshots"


def save_snapshot(folder: Path, answer: Answer, facts: dict) -> Path:
    """Write one answer into a new folder below `folder`; all of it or nothing. Raises OSError in words."""
    name = f"{datetime.datetime.now():%Y%m%d_%H%M%S_%f}_{answer.stamp_ns}"
    part, final = folder / f".{name}.{os.getpid()}.unfinished", folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, answer)
        part.mkdir()
        _write_all(part, answer, facts)
        part.rename(final)
    except OSError as error:
        raise OSError(error.errno, f"no snapshot in {folder}: {error.strerror or error}; set snapshot.dir") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return final


def _check_room(folder: Path, answer: Answer) -> None:
    needed = ROOM * (answer.depth.nbytes + answer.picture.nbytes)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"only {free / 1e6:.1f} MB are free, {needed / 1e6:.1f} MB are wanted")


def _write_all(part: Path, answer: Answer, facts: dict) -> None:
    _write(part / "rgb.png", _png(cv2.cvtColor(np.ascontiguousarray(answer.picture), cv2.COLOR_RGB2BGR)))
    np.save(part / "depth_m.npy", answer.depth, allow_pickle=False)
    if answer.judgement is not None:
        np.save(part / "confidence.npy", answer.confidence, allow_pickle=False)
    if answer.camera is not None:
        save_camera(part / "camera.yaml", answer.camera)
    about = {
        "stamp_ns": answer.stamp_ns,
        "frame_id": answer.frame_id,
        "calibration": answer.calibration,
        "scale": {"mode": answer.scale.mode, "factor": answer.scale.factor, "metric": answer.scale.metric},
        "T_odom_camera": None if answer.state is None else answer.state.T_odom_camera.tolist(),
        "odometry": None if answer.state is None else answer.state.state,
        **facts,
    }
    _write(part / "facts.json", json.dumps(about, indent=2, default=str, allow_nan=False).encode())


def _write(path: Path, data: bytes) -> None:
    """To the disk itself, so that a full one is noticed here."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _png(bgr: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", bgr)
    if not done:
        raise OSError(errno.EIO, "OpenCV could not encode the image")
    return data.tobytes()
