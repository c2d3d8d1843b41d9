"""The arrows between the parts, read from the sources; one image in a fresh interpreter without torch and ROS."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(f for package in ("endomust_core", "endomust_ros") for f in (ROOT / package).rglob("*.py"))
TORCH = {"torch", "torchvision", "transformers", "safetensors", "timm"}
ROS = {"rclpy", "launch", "launch_ros", "cv_bridge", "tf2_ros", "sensor_msgs_py", "ament_index_python", "rosbag2_py"}
ONE_FILE_EACH = {  # heavy library → the only files that may import it
    "onnxruntime": {"endomust_core/backends/onnxruntime.py", "endomust_core/learning/precision.py"},
    "openvino": {"endomust_core/backends/openvino.py"},
    "tensorrt": {"endomust_core/backends/tensorrt.py"},
    "rosbags": {"endomust_core/recording.py", "endomust_core/recording_writer.py"},
    "evo": {"endomust_core/motion_scores.py"},
}
PRINTING = {  # the commands; the rest logs
    "endomust_core/cli.py",
    "endomust_core/simulation/check.py",
    "endomust_core/simulation/confidence_check.py",
    "endomust_core/simulation/odometry_check.py",
    "endomust_core/simulation/scale_check.py",
    "endomust_ros/demo.py",
    "endomust_ros/player.py",
}
BELOW_ROS = {"learning", "simulation", "cli"}  # parts of endomust_core that endomust_ros never imports


def place(file):
    """Path of a source relative to the checkout, with slashes."""
    return file.relative_to(ROOT).as_posix()


def imports(source):
    """Full dotted names that a source imports anywhere, inside functions too; relative imports are refused."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the full name, so that arrows can be read"
            names |= {f"{node.module}.{name.name}" for name in node.names}
    return names


def tops(names):
    """First parts of dotted names."""
    return {name.split(".")[0] for name in names}


def is_ros(name):
    """True for rclpy and its company, and for every message package."""
    return name in ROS or name.endswith(("_msgs", "_srvs", "_interfaces"))


def forbidden(path, names):
    """The imports of one file that point the wrong way, each with the arrow it breaks."""
    first, wrong = tops(names), []
    trains = path.startswith(("endomust_core/learning/", "endomust_core/simulation/"))
    if not trains:
        wrong += [f"{n}: torch is for learning/ and simulation/" for n in first & TORCH]
    if path.startswith("endomust_core/") and path != "endomust_core/cli.py":
        wrong += [f"{n}: the core knows no ROS" for n in first if is_ros(n) or n == "endomust_ros"]
        wrong += [f"{n}: nothing imports the command line" for n in names if n.startswith("endomust_core.cli")]
        upper = () if trains else ("endomust_core.learning", "endomust_core.simulation")
        wrong += [f"{n}: the numpy half knows no training" for n in names if n.startswith(upper)]
    if path.startswith("endomust_ros/"):
        parts = {n: n.split(".")[1] for n in names if n.startswith("endomust_core.")}
        wrong += [f"{n}: the node never needs it" for n, part in parts.items() if part in BELOW_ROS]
    if path == "endomust_ros/messages.py":
        fine = {"numpy", "cv2", "cv_bridge", "endomust_core"} | set(sys.stdlib_module_names)
        wrong += [f"{n}: messages.py is pure functions" for n in first if n not in fine and not is_ros(n)]
        wrong += [f"{n}: messages.py knows no ROS client" for n in first & {"rclpy", "endomust_ros"}]
    if path.startswith("endomust_core/learning/networks/"):
        upper = tuple(f"endomust_core.learning.{part}" for part in ("losses", "steps", "train", "pretrain", "export"))
        wrong += [f"{n}: a network is forward only" for n in names if n.startswith((*upper, "endomust_core.data"))]
    heavy = {n: ONE_FILE_EACH[n] for n in first & ONE_FILE_EACH.keys()}
    wrong += [f"{n}: only in {', '.join(files)}" for n, files in heavy.items() if path not in files]
    return wrong


@pytest.mark.parametrize("file", FILES, ids=place)
def test_arrows_point_one_way(file):
    assert not forbidden(place(file), imports(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("endomust_core/estimator.py", "def f():\n    import torch"),
        ("endomust_core/camera.py", "from sensor_msgs.msg import Image"),
        ("endomust_core/metrics.py", "from endomust_core.learning.losses import photometric"),
        ("endomust_core/data/scared.py", "import torch.utils.data"),
        ("endomust_core/learning/train.py", "import rclpy"),
        ("endomust_core/learning/networks/depth.py", "from endomust_core.learning import losses"),
        ("endomust_core/odometry.py", "import endomust_core.cli"),
        ("endomust_core/bundle.py", "import onnxruntime"),
        ("endomust_ros/node.py", "from endomust_core import learning"),
        ("endomust_ros/node.py", "from endomust_core.simulation import render"),
        ("endomust_ros/node.py", "import torch"),
        ("endomust_ros/messages.py", "import rclpy"),
        ("endomust_ros/messages.py", "from endomust_ros.node import DepthNode"),
        ("endomust_ros/recorder.py", "from rosbags.rosbag2 import Writer"),
    ],
)
def test_a_wrong_arrow_is_found(path, source):
    assert forbidden(path, imports(source))


@pytest.mark.parametrize("file", FILES, ids=place)
def test_every_file_says_in_its_first_line_what_happens_in_it(file):
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert docstring and len(docstring.splitlines()[0]) > 20


@pytest.mark.parametrize("file", FILES, ids=place)
def test_only_the_commands_print(file):
    calls = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    printing = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not printing or place(file) in PRINTING


def test_no_drawer_for_odds_and_ends():
    assert not [place(file) for file in FILES if file.stem in ("utils", "util", "helpers", "common", "misc")]


ONE_IMAGE = """
import sys
import numpy as np
from endomust_core.bundle import load_bundle
from endomust_core.camera import Camera
from endomust_core.estimator import Estimator
from endomust_core.odometry import Odometry

bundle = load_bundle(sys.argv[1])
estimator, odometry = Estimator(bundle, threads=1), Odometry()
camera = Camera(width=320, height=256, fx=300.0, fy=300.0, cx=159.5, cy=127.5)
for stamp in (0.0, 0.04):
    estimate = estimator.estimate(np.full((256, 320, 3), 90, np.uint8))
    state = odometry.step(estimate.T_prev_curr, stamp)
cloud = camera.back_project(estimate.depth)
assert cloud.shape == (256, 320, 3) and np.isfinite(cloud).all() and np.isfinite(state.T_odom_camera).all()
loaded = {name.split(".")[0] for name in sys.modules}
absent = {"torch", "rclpy", "rosbags", "onnx"} | {name for name in loaded if name.endswith("_msgs")}
print("LOADED", sorted(loaded & absent))
print("LEARNING", sorted(name for name in sys.modules if name.startswith(("endomust_core.learning", "endomust_ros"))))
"""


def test_one_image_runs_without_torch_and_without_ros(tmp_path):
    pytest.importorskip("onnx", reason="writes the mock bundle")
    from mock_bundle import write_mock_bundle

    bundle = write_mock_bundle(tmp_path / "mock", translation=(0.001, 0.0, 0.0))
    command = [sys.executable, "-c", ONE_IMAGE, str(bundle)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout and "LEARNING []" in done.stdout


def test_every_module_of_the_numpy_half_imports_alone():
    numpy_half = [f for f in FILES if place(f).startswith("endomust_core/")]
    names = [place(f)[: -len(".py")].replace("/", ".").removesuffix(".__init__") for f in numpy_half]
    names = [n for n in names if not n.startswith(("endomust_core.learning", "endomust_core.simulation"))]
    absent = [name for name in ("tensorrt", "openvino") if importlib.util.find_spec(name) is None]
    names = [n for n in names if n not in [f"endomust_core.backends.{name}" for name in absent]]
    script = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # importing says nothing


def test_the_architecture_page_points_at_files_that_exist():
    page = ROOT / "docs" / "architecture.md"
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert len(links) >= 10
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_architecture_page_names_every_part():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    parts = {place(f) for f in FILES if len(f.relative_to(ROOT).parts) == 2 and f.stem != "__init__"}
    assert not sorted(part for part in parts if Path(part).name not in text)


def test_the_architecture_page_names_only_functions_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"\[`(?:\w+\.)*(\w+)`\]\(\.\./([\w/]+\.py)\)", text)
    assert len(named) >= 5
    for name, file in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"{file} defines no {name}"
