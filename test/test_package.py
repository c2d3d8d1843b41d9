"""What is shipped: one version everywhere, a valid package.xml, every shared file in the wheel, commands that exist."""

import ast
import configparser
import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

import endomust_core

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("endomust_core", "endomust_ros")
SHARED = ("launch", "config", "models", "sros2")


def setup_arguments():
    """The keyword arguments of setup() in setup.py, as syntax."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"]
    return {keyword.arg: keyword.value for keyword in calls[0].keywords}


def shared_files():
    """Files that an installation must carry, relative to the checkout."""
    files = (file for folder in SHARED for file in (ROOT / folder).rglob("*") if file.is_file())
    return sorted(f.relative_to(ROOT).as_posix() for f in files if "__pycache__" not in f.parts and f.name[0] != ".")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names inside a wheel that is built from a clean copy of the sources, and its entry points."""
    pytest.importorskip("setuptools", minversion="70.1", reason="pip install 'setuptools>=70.1' to build wheels here")
    copy = tmp_path_factory.mktemp("source") / "endomust_ros"
    copy.mkdir()
    for name in (*PACKAGES, *SHARED, "resource"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "package.xml", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "-w", "out", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (copy / "out").glob("endomust_ros-*.whl")
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    return names, entry_points


def test_package_xml_is_what_ament_python_expects():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.get("format") == "3"
    assert package.findtext("name") == "endomust_ros"
    assert package.findtext("export/build_type") == "ament_python"
    assert package.findtext("license") == "Apache-2.0"
    assert (ROOT / package.find("license").get("file")).is_file()
    assert "@" in package.find("maintainer").get("email")
    assert (ROOT / "resource" / "endomust_ros").is_file()


def test_package_xml_names_every_ros_package_that_is_imported():
    known = {
        "ament_index_python", "cv_bridge", "diagnostic_msgs", "geometry_msgs", "launch", "launch_ros", "lifecycle_msgs",
        "nav_msgs", "rcl_interfaces", "rclpy", "sensor_msgs", "sensor_msgs_py", "std_msgs", "std_srvs", "tf2_msgs",
        "tf2_ros", "rosgraph_msgs", "builtin_interfaces",
    }  # fmt: skip
    declared = {entry.text for entry in ElementTree.parse(ROOT / "package.xml").getroot().iter("exec_depend")}
    imported = set()
    for file in [*(ROOT / "endomust_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    assert imported & known, "no ROS import was found: the test looks in the wrong place"
    assert not (imported & known) - declared


def test_one_version():
    version = endomust_core.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert ElementTree.parse(ROOT / "package.xml").getroot().findtext("version") == version
    assert setup_arguments()["version"].value == version
    newest = re.search(r"^(\d+\.\d+\.\d+) \(.+\)\n-+$", (ROOT / "CHANGELOG.rst").read_text(), re.M)
    assert newest.group(1) == version


def test_metadata_stands_in_setup_py_alone():
    # setuptools 59 on ROS 2 Humble ignores [project] and newer ones prefer it: with both, the two machines would differ
    assert not re.search(r"^\[project[.\]]", (ROOT / "pyproject.toml").read_text(), re.M)


def test_colcon_finds_the_executables():
    setup_cfg = configparser.ConfigParser()
    setup_cfg.read(ROOT / "setup.cfg")
    assert setup_cfg["install"]["install_scripts"] == "$base/lib/endomust_ros"
    assert setup_cfg["develop"]["script_dir"] == "$base/lib/endomust_ros"


def test_every_folder_with_python_is_a_package():
    for name in PACKAGES:
        for file in (ROOT / name).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py, so it is not installed"


def test_wheel_holds_every_module_and_shared_file(wheel):
    names, _ = wheel
    modules = {f.relative_to(ROOT).as_posix() for package in PACKAGES for f in (ROOT / package).rglob("*.py")}
    assert modules <= set(names)
    installed = {name.split(".data/data/")[1] for name in names if ".data/data/" in name}
    expected = {f"share/endomust_ros/{file}" for file in shared_files()}
    expected |= {"share/endomust_ros/package.xml", "share/ament_index/resource_index/packages/endomust_ros"}
    assert expected == installed


def test_console_commands_exist(wheel):
    _, text = wheel
    entry_points = configparser.ConfigParser()
    entry_points.optionxform = str
    entry_points.read_string(text)
    commands = dict(entry_points["console_scripts"])
    assert commands.keys() == {"endomust", "depth_node", "stereo_node"}
    for name, target in commands.items():
        if name == "depth_node":
            pytest.importorskip("rclpy")
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_runtime_needs_no_torch():
    values = {
        node.targets[0].id: node.value
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    runtime = [re.match(r"[A-Za-z0-9_-]+", item).group() for item in ast.literal_eval(values["RUNTIME"])]
    assert sorted(runtime) == ["PyYAML", "numpy", "onnxruntime", "opencv-python-headless", "rosbags"]
    assert not [item for item in ast.literal_eval(values["ROS"]) if "torch" in item]


def test_constraints_pin_every_requirement():
    tree = ast.parse((ROOT / "setup.py").read_text())
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    wanted = {re.match(r"[\w-]+", s).group().lower() for s in strings if re.fullmatch(r"[A-Za-z][\w-]*>=[\d.]+", s)}
    pins = (ROOT / "constraints.txt").read_text()
    pinned = {line.split("==")[0].lower() for line in pins.splitlines() if "==" in line and not line.startswith("#")}
    assert wanted >= {"numpy", "torch", "onnx"}
    follow_the_machine = {"onnxruntime-gpu", "tensorrt", "cuda-python"}  # their version is that of the installed CUDA
    assert wanted - pinned <= {"setuptools"} | follow_the_machine


def test_every_launch_file_is_python_with_a_description():
    files = sorted((ROOT / "launch").glob("*.launch.py"))
    assert [file.name for file in files if file.name == "depth.launch.py"]
    for file in files:
        functions = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert "generate_launch_description" in functions, f"{file.name} has no generate_launch_description()"
