"""What `configure` reads from disk, as the parameters say: model, calibration, saved scale; where may be written."""

import os
from collections.abc import Callable
from pathlib import Path

from endomust_core import confinement
from endomust_core.backends import BackendError
from endomust_core.bundle import BundleError, default_bundle, load_bundle
from endomust_core.camera import CameraError, load_camera
from endomust_core.confinement import ConfinementError
from endomust_core.decoding import looks_rectified
from endomust_core.estimator import Estimator
from endomust_core.pipeline import Calibration
from endomust_core.resources import bundle_path
from endomust_core.scale_file import SavedScale, ScaleFileError, load_scale
from endomust_ros.parameters import ParameterError, Parameters, engine_options, resolution
from endomust_ros.snapshot import default_folder

# What is said in words, without a traceback.
REFUSALS = (
    BundleError,
    BackendError,
    ParameterError,
    CameraError,
    ConfinementError,
    ScaleFileError,
    FileNotFoundError,
)


def estimator_of(p: Parameters, engine_opener: Callable) -> Estimator:
    """The bundle that the parameters name, opened, tested and warm. Raises one of REFUSALS."""
    path = bundle_path(p.model_path) if p.model_path else default_bundle()
    asked = p.model_path if path == Path(p.model_path) else ""  # what ships may lie outside of what paths may point to
    confinement.check_parameters({"model.path": asked, "model.engine_cache_dir": p.model_engine_cache_dir})
    bundle = load_bundle(path)
    engines = engine_opener(bundle, engine_options(p))
    estimator = Estimator(bundle, resolution=resolution(p.depth_resolution), engines=engines)
    estimator.warm_up(p.model_warmup_runs)
    return estimator


def calibration_of(p: Parameters, image_topic: str) -> Calibration:
    """From the calibration file, or waiting for camera_info. Raises CameraError or ConfinementError."""
    rectified = p.input_rectified or looks_rectified(image_topic)
    if not p.calibration_file:
        return Calibration(rectified)
    return Calibration(rectified, load_camera(confinement.readable(p.calibration_file, "calibration.file")).plausible())


def saved_scale(p: Parameters, digest: str) -> SavedScale | None:
    """What the scale file says for the bundle with this digest. Raises ScaleFileError in mode file; else None will do
    until scale.mode becomes file."""
    try:
        return load_scale(scale_path(p), digest)
    except (ScaleFileError, ConfinementError):
        if p.scale_mode == "file":
            raise
        return None


def scale_path(p: Parameters) -> Path:
    """The file of save_scale and scale.mode file. Raises ConfinementError."""
    given = p.scale_file or _config_home() / "endomust" / "scale.yaml"
    return confinement.writable_file(given, "scale.file", confinement.SCALE_SUFFIXES)


def snapshot_folder(p: Parameters) -> Path:
    """Where snapshots go. Raises ConfinementError."""
    return confinement.writable_folder(p.snapshot_dir or default_folder(), "snapshot.dir")


def _config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
