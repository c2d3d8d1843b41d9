"""Installs both packages, the console commands and share/endomust_ros, for colcon (ament_python) and for pip alike."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = "endomust_ros"
ROOT = Path(__file__).resolve().parent

# The ROS 2 Jazzy client library and messages as wheels; lifecycle_msgs comes with ros-rclpy. Pinned, because the shared
# libraries inside these wheels must have been built together. Where ROS 2 is installed, leave this extra out.
ROS = [
    "ros-rclpy[fastrtps]==7.1.6",
    "ros-rmw-fastrtps-cpp==8.4.3",
    "ros-sensor-msgs==5.3.6",
    "ros-nav-msgs==5.3.6",
    "ros-geometry-msgs==5.3.6",
    "ros-std-msgs==5.3.6",
    "ros-std-srvs==5.3.6",
    "ros-diagnostic-msgs==5.3.6",
]
RUNTIME = ["numpy>=1.21", "opencv-python-headless>=4.5", "onnxruntime>=1.16", "PyYAML>=5.4", "rosbags>=0.11"]
TRAIN = ["torch>=2.6", "tensorboard>=2.14"]
EXPORT = [*TRAIN, "onnx>=1.17"]  # the tracing exporter needs no onnxscript
EVALUATE = [
    "evo>=1.38"
]  # whole trajectories as the field scores them; without it metrics.py does, by the same formulas
OPENVINO = ["openvino>=2025.0"]  # faster than ONNX Runtime on Intel processors, most where they have AMX
# Instead of onnxruntime, never beside it: both install the same module. TensorRT comes with JetPack on a Jetson.
CUDA = ["onnxruntime-gpu>=1.20"]
TENSORRT = ["tensorrt>=10.14", "cuda-python>=12.6"]
DEV = [
    *EVALUATE,
    *OPENVINO,
    "pytest>=8",
    "pytest-timeout",
    "ruff",
    "setuptools>=70.1",
    "transformers",
    "safetensors",
    "mcap",
]


def files_below(folder: str) -> list[tuple[str, list[str]]]:
    """Every file below a folder as (place under the prefix, paths) pairs; caches and hidden files stay out."""
    pairs = []
    for directory in sorted([ROOT / folder, *(ROOT / folder).rglob("*/")]):
        if not directory.is_dir() or directory.name == "__pycache__":
            continue
        inside = directory.relative_to(ROOT).as_posix()
        names = sorted(f.name for f in directory.iterdir() if f.is_file() and not f.name.startswith("."))
        if names:
            pairs.append((f"share/{NAME}/{inside}", [f"{inside}/{name}" for name in names]))
    return pairs


setup(
    name=NAME,
    version="0.1.0",
    description="Depth, point cloud and camera odometry from monocular endoscope video, as a ROS 2 lifecycle node",
    license="Apache-2.0",
    maintainer="EndoMUST for ROS 2 developers",
    maintainer_email="maintainers@endomust.invalid",
    python_requires=">=3.10",
    packages=find_packages(include=["endomust_core", "endomust_core.*", "endomust_ros", "endomust_ros.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *files_below("launch"),
        *files_below("config"),
        *files_below("models"),
        *files_below("sros2"),
    ],
    install_requires=RUNTIME,
    extras_require={
        "ros": ROS,
        "train": TRAIN,
        "export": EXPORT,
        "evaluate": EVALUATE,
        "openvino": OPENVINO,
        "cuda": CUDA,
        "tensorrt": TENSORRT,
        "dev": DEV,
    },
    entry_points={
        "console_scripts": [
            "endomust = endomust_core.cli:main",
            "depth_node = endomust_ros.depth_node:main",
            "stereo_node = endomust_ros.stereo_node:main",
        ]
    },
    zip_safe=False,
)
