"""The doctor's checks on machines that are made up: every fault gets its level, its words and a remedy."""

import ast
import json
import sys
from pathlib import Path

import pytest

from endomust_core import cli, doctor
from endomust_core.checks import FAIL, OK, WARN, Row, acceleration, calibration, examine, machine, software
from endomust_core.checks.calibration import Numbers
from endomust_core.checks.software import Imported

ROOT = Path(__file__).resolve().parents[2]
FINE = {
    "numpy": Imported("2.2.6"),
    "cv2": Imported("4.11.0"),
    "onnxruntime": Imported("1.23.2"),
    "yaml": Imported("6.0.3"),
}
BUILT_FOR_NUMPY_1 = Imported(
    error="ImportError: numpy.core.multiarray failed to import",
    stderr="A module that was compiled using NumPy 1.x cannot be run in NumPy 2.2.6",
)


def says(finding, level, *words):
    """The level and every word, in the sentence or the remedy; what is wrong always comes with a remedy."""
    assert finding.level == level, finding
    assert finding.level == OK or finding.remedy, finding
    for word in words:
        assert word in f"{finding.sentence} | {finding.remedy}", finding


# ---- Python and packages --------------------------------------------------------------------------------------------


def test_an_old_python_fails():
    says(software.python((3, 8, 10), "/usr/bin/python3"), FAIL, "3.8.10", "3.10")
    says(software.python((3, 12, 3), "/usr/bin/python3"), OK, "3.12.3")


def test_libraries_that_import_are_listed():
    says(software.libraries(FINE), OK, "numpy 2.2.6", "onnxruntime 1.23.2")


@pytest.mark.parametrize(
    ("module", "found", "words"),
    [
        ("cv2", BUILT_FOR_NUMPY_1, ("built for another NumPy than 2.2.6", "numpy<2")),
        ("onnxruntime", Imported(error="ended the process (SIGSEGV)"), ("SIGSEGV", "numpy<2")),
        ("cv2", Imported(error="ModuleNotFoundError: No module named 'cv2'"), ("pip install opencv-python-headless",)),
        ("cv2", Imported(error="ImportError: libGL.so.1: cannot open shared object file"), ("opencv-python-headless",)),
        ("onnxruntime", Imported("1.10.0"), ("1.10.0 is too old", "onnxruntime>=1.16")),
    ],
)
def test_a_broken_library_fails_with_the_way_out(module, found, words):
    says(software.libraries({**FINE, module: found}), FAIL, *words)


def test_a_cv_bridge_for_numpy_1_is_a_warning_because_the_node_works_without():
    says(software.cv_bridge(BUILT_FOR_NUMPY_1, "2.2.6"), WARN, "rare image encodings", "numpy<2")


@pytest.mark.parametrize(
    ("installed", "level", "words"),
    [
        ({"opencv-python-headless": "5.0", "onnxruntime": "1.32"}, OK, ()),
        (
            {"opencv-python": "4.9", "opencv-python-headless": "5.0"},
            WARN,
            ("folder cv2", "pip uninstall opencv-python "),
        ),
        (
            {"onnxruntime": "1.32", "onnxruntime-gpu": "1.31"},
            WARN,
            ("folder onnxruntime", "pip uninstall onnxruntime "),
        ),
    ],
)
def test_two_distributions_in_one_folder(installed, level, words):
    says(software.duplicates(installed), level, *words)


def test_imports_are_tried_in_other_processes(tmp_path, monkeypatch):
    (tmp_path / "crashes.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    (tmp_path / "raises.py").write_text("raise ImportError('numpy.core.multiarray failed to import')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = software.try_imports(["numpy", "crashes", "raises", "absent_module"])
    assert found["numpy"].version and not found["numpy"].error
    assert "SIGSEGV" in found["crashes"].error
    assert software.ABI_WORDS.search(found["raises"].error)
    assert "No module named" in found["absent_module"].error


def test_the_oldest_versions_are_those_of_setup_py():
    tree = ast.parse((ROOT / "setup.py").read_text())
    (runtime,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "RUNTIME")
    wanted = dict(item.split(">=") for item in ast.literal_eval(runtime))
    assert all(wanted[package] == oldest for package, oldest in software.REQUIRED.values())


# ---- GPU, Jetson, TensorRT, providers -------------------------------------------------------------------------------

H200 = "NVIDIA H200, 570.86.15, 143771 MiB"
R36 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"


@pytest.mark.parametrize(
    ("listing", "wanted", "level", "words"),
    [
        (None, ("cpu",), OK, ("none asked for",)),
        (None, ("cuda",), FAIL, ("cuda", "--gpus all")),
        (None, ("cuda", "cpu"), WARN, ("cuda",)),
        (H200, ("cuda",), OK, ("H200",)),
        ("Tesla V100, 470.57, 16160 MiB", ("cuda",), WARN, ("too old", "525")),
    ],
)
def test_gpu(listing, wanted, level, words):
    says(acceleration.gpu(listing, wanted, None), level, *words)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        (R36, "36.4.3"),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "38.2.0"),
        ("# R35 (release), REVISION: 4.1,", "35.4.1"),
    ],
)
def test_the_version_of_jetson_linux(release, version):
    assert acceleration.l4t_version(release) == version


def test_jetson():
    says(acceleration.jetson(R36, "NV Power Mode: MAXN_SUPER\n2"), OK, "JetPack 6.2", "MAXN_SUPER")
    says(acceleration.jetson(R36, "NV Power Mode: 15W\n0"), WARN, "15W", "nvpmodel")
    says(acceleration.jetson(R36.replace("R36", "R35"), None), FAIL, "JetPack 6")
    says(acceleration.jetson(R36.replace("4.3", "9.9"), None), OK, "does not know")
    says(acceleration.jetson(None, None), OK)


@pytest.mark.parametrize(
    ("version", "wanted", "on_jetson", "level", "words"),
    [
        (None, ("cpu",), False, OK, ()),
        (None, ("tensorrt",), False, FAIL, ("not installed",)),
        (None, ("tensorrt", "cpu"), False, WARN, ("not installed",)),
        ("10.3.0.30", ("tensorrt",), True, FAIL, ("wrong depth", "10.14")),
        ("10.3.0", ("cpu",), True, WARN, ("wrong depth",)),
        ("10.3.0.30", ("tensorrt",), False, OK, ()),
        ("10.7.0", ("tensorrt",), True, WARN, ("self-test",)),
        ("10.14.1", ("tensorrt",), True, OK, ()),
    ],
)
def test_tensorrt(version, wanted, on_jetson, level, words):
    says(acceleration.tensorrt(version, wanted, on_jetson), level, *words)


def test_the_version_of_tensorrt_comes_from_the_package_or_the_file():
    files = ["/usr/lib/aarch64-linux-gnu/libnvinfer.so.10", "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0"]
    assert acceleration.tensorrt_version({"tensorrt-cu12": "10.9.0.34"}, files) == "10.9.0.34"
    assert acceleration.tensorrt_version({}, files) == "10.3.0"
    assert acceleration.tensorrt_version({}, []) is None


@pytest.mark.parametrize(
    ("wanted", "measured", "level", "words"),
    [
        (("cpu",), {"cpu": {"ms": 14.2}}, OK, ("cpu: depth network 14.2 ms",)),
        (("cpu",), {"cpu": {"ms": 250.0}}, WARN, ("4 images a second",)),
        (
            ("cuda", "cpu"),
            {"cuda": {"error": "no CUDA"}, "cpu": {"ms": 14.2}},
            WARN,
            ("in the place of cuda", "no CUDA"),
        ),
        (("cuda",), {"cuda": {"error": "no CUDA"}}, FAIL, ("none of cuda runs",)),
        (("tensorrt",), {"tensorrt": {}}, OK, ("not started here",)),
    ],
)
def test_providers(wanted, measured, level, words):
    says(acceleration.providers(wanted, measured), level, *words)


def test_the_network_is_opened_and_timed_in_another_process(tmp_path):
    pytest.importorskip("onnx", reason="writes the mock bundle")
    from mock_bundle import write_mock_bundle

    bundle = write_mock_bundle(tmp_path / "mock")
    assert acceleration.measure_apart("cpu", bundle)["ms"] > 0
    assert "error" in acceleration.measure_apart("cpu", tmp_path / "absent")
    says(acceleration.bundle(bundle), OK, "hashes agree")
    (bundle / "depth.onnx").write_bytes(b"damaged")
    says(examine("bundle", acceleration.bundle, bundle), FAIL, "sha256 differs")


# ---- the machine ----------------------------------------------------------------------------------------------------

XEON = "processor : 0\nmodel name : Xeon\nflags : fpu avx2 avx512f avx512_vnni amx_tile hypervisor\n"


@pytest.mark.parametrize(
    ("cpuinfo", "cores", "architecture", "level", "words"),
    [
        (XEON, 8, "x86_64", OK, ("8 cores", "AVX2", "AVX-512", "VNNI", "AMX")),
        (XEON, 1, "x86_64", WARN, ("two cores",)),
        ("model name : QEMU\nflags : fpu sse4_2 hypervisor\n", 4, "x86_64", WARN, ("without AVX2", "-cpu host")),
        ("model name : Old\nflags : fpu sse4_2\n", 4, "x86_64", WARN, ("without AVX2",)),
        ("processor : 0\nFeatures : fp asimd asimddp i8mm\n", 6, "aarch64", OK, ("NEON", "int8")),
        ("", 2, "riscv64", OK, ("no vector extensions seen",)),
    ],
)
def test_cpu(cpuinfo, cores, architecture, level, words):
    says(machine.cpu(cpuinfo, cores, architecture), level, *words)


def test_governor(tmp_path):
    says(machine.governor([], None), OK, "no frequency control")
    says(machine.governor(["powersave"] * 4, "acpi-cpufreq"), WARN, "cpupower")
    says(machine.governor(["powersave"] * 4, "intel_pstate"), OK)
    says(machine.governor(["schedutil"] * 4, None), OK)
    folder = tmp_path / "cpu0" / "cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_governor").write_text("powersave\n")
    (folder / "scaling_driver").write_text("cppc_cpufreq\n")
    assert machine.read_governors(tmp_path) == (["powersave"], "cppc_cpufreq")


def test_the_tightest_control_group_counts(tmp_path):
    unit = tmp_path / "system.slice" / "endomust.service"
    unit.mkdir(parents=True)
    (unit / "cpu.max").write_text("150000 100000\n")
    (unit / "memory.max").write_text("max\n")
    (unit.parent / "cpu.max").write_text("max 100000\n")
    (unit.parent / "memory.max").write_text("2147483648\n")
    found = machine.read_limits(tmp_path, "0::/system.slice/endomust.service\n")
    assert found == machine.Limits(1.5, 2147483648)
    assert machine.read_limits(tmp_path / "absent", "") == machine.Limits(None, None)


def test_the_older_control_groups_count_too(tmp_path):
    for name, text in (("cpu/cpu.cfs_quota_us", "50000"), ("cpu/cpu.cfs_period_us", "100000")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert machine.read_limits(tmp_path, "") == machine.Limits(0.5, None)


@pytest.mark.parametrize(
    ("found", "memory", "level", "words"),
    [
        (machine.Limits(), 16 * 10**9, OK, ("8 of 8 cores", "16 GB")),
        (machine.Limits(2.5), None, WARN, ("2.5 of 8 cores", "model.threads to 2")),
        (machine.Limits(0.5), None, WARN, ("model.threads to 1",)),
        (machine.Limits(None, 700 * 10**6), None, WARN, ("tight",)),
        (machine.Limits(None, 200 * 10**6), 16 * 10**9, FAIL, ("too little memory",)),
    ],
)
def test_limits(found, memory, level, words):
    says(machine.limits(found, 8, memory), level, *words)


def test_memory_is_read_from_meminfo():
    assert machine.memory_total("MemTotal:       24689788 kB\nMemFree: 1 kB") == 24689788 * 1024
    assert machine.memory_total(None) is None


def test_disk():
    says(machine.disk("/data", 50 * 10**9), OK, "50 GB")
    says(machine.disk("/data", 10**9), WARN)
    says(machine.disk("/data", 10**7), FAIL, "make room")


def test_engine_cache(tmp_path):
    says(machine.engine_cache(tmp_path / "endomust" / "engines"), OK, "0 files")
    (tmp_path / "one.engine").write_bytes(b"x" * 2000)
    says(machine.engine_cache(tmp_path), OK, "1 files", "2 kB")
    says(machine.engine_cache(tmp_path / "one.engine" / "engines"), FAIL, "is a file")


# ---- calibration ----------------------------------------------------------------------------------------------------

K = [1000.0, 0.0, 639.5, 0.0, 1010.0, 511.5, 0.0, 0.0, 1.0]
GOOD = Numbers(1280, 1024, K, [0.1, -0.2, 0.0, 0.0, 0.0], "plumb_bob", "endoscope_optical_frame")


def with_K(**changes):
    places = {"fx": 0, "cx": 2, "fy": 4, "cy": 5}
    new = list(K)
    for name, value in changes.items():
        new[places[name]] = value
    return GOOD._replace(K=new)


@pytest.mark.parametrize(
    ("numbers", "level", "words"),
    [
        (GOOD, OK, ("1280x1024", "plumb_bob")),
        (with_K(fx=0.0), FAIL, ("uncalibrated", "no cloud")),
        (with_K(cx=1500.0), WARN, ("principal point (1500, 512)", "cropped or resized")),
        (with_K(fy=500.0), WARN, ("fx/fy is 2.00", "interlaced")),
        (with_K(fx=10.0, fy=10.0), WARN, ("field of view",)),
        (with_K(fx=float("nan")), FAIL, ("NaN",)),
        (GOOD._replace(model="fov"), FAIL, ("distortion model 'fov' is unknown",)),
        (GOOD._replace(D=[0.1]), FAIL, ("coefficients",)),
        (GOOD._replace(K=K[:6]), FAIL, ("3x3",)),
        (GOOD._replace(frame_id=""), WARN, ("frame_id is empty",)),
        (GOOD._replace(frame_id="/jhu/left_frame"), WARN, ("starts with a slash", "'jhu/left_frame'")),
        (GOOD._replace(frame_id=None), OK, ()),
    ],
)
def test_calibration(numbers, level, words):
    says(calibration.calibration(numbers, (1024, 1280)), level, *words)


def test_a_calibration_for_another_size_fails():
    says(calibration.calibration(GOOD, (512, 640)), FAIL, "for 1280x1024", "images are 640x512")


def test_calibration_files(tmp_path):
    from endomust_core.camera import Camera, save_camera

    save_camera(tmp_path / "good.yaml", Camera(640, 512, 500.0, 500.0, 319.5, 255.5))
    says(calibration.file_calibration(tmp_path / "good.yaml", (512, 640)), OK)
    (tmp_path / "bad.yaml").write_text("camera: none\n")
    says(calibration.file_calibration(tmp_path / "bad.yaml", None), FAIL, "no ROS calibration file")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    says(examine("calibration", calibration.file_calibration, tmp_path / "broken.yaml", None), FAIL)
    says(calibration.file_calibration(tmp_path / "absent.yaml", None), FAIL, "check the path")


# ---- the page -------------------------------------------------------------------------------------------------------

ROWS = [
    Row("Python", OK, "3.12"),
    Row("shared memory", FAIL, "64 MB free " * 20, "start the container with --ipc=host"),
    Row("CPU clock", WARN, "powersave", "cpupower"),
]


def test_a_check_that_raises_becomes_a_row():
    def broken(path):
        raise KeyError(path)

    row = examine("disk", broken, "/data")
    assert (row.name, row.level) == ("disk", FAIL)
    assert "KeyError" in row.sentence and row.remedy


def test_an_error_of_ours_keeps_its_words_and_its_advice(tmp_path):
    row = examine("bundle", acceleration.bundle, tmp_path)
    assert (row.level, row.remedy) == (FAIL, "give another folder or export it again")
    assert row.sentence == f"{tmp_path} holds no manifest.yaml, so it is no bundle"


def test_the_page_has_a_line_for_every_row_and_the_remedies_below_failures_first():
    text = doctor.page(ROWS, width=80)
    assert max(map(len, text.splitlines())) <= 80
    table, remedies = text.split("What to do")
    assert "OK   Python" in table and "FAIL shared memory" in table and "WARN CPU clock" in table
    assert remedies.index("--ipc=host") < remedies.index("cpupower")
    assert "1 of 3 checks failed, 1 warning" in remedies


def test_the_exit_code_allows_warnings():
    assert [doctor.exit_code(ROWS), doctor.exit_code(ROWS[::2]), doctor.exit_code(ROWS[:1])] == [3, 0, 0]


def test_json_holds_the_same():
    report = json.loads(doctor.to_json(ROWS))
    assert report["level"] == "FAIL" and report["format"] == doctor.FORMAT
    assert report["checks"][2] == {"name": "CPU clock", "level": "WARN", "sentence": "powersave", "remedy": "cpupower"}


def test_the_command_looks_at_this_machine_and_writes_json(tmp_path, capsys):
    code = cli.main(["doctor", "--no-ros", "--json", str(tmp_path / "doctor.json")])
    page, report = capsys.readouterr().out, json.loads((tmp_path / "doctor.json").read_text())
    assert code == doctor.EXIT_CODES[report["level"]]
    assert {"Python", "packages", "bundle", "providers", "GPU", "CPU", "disk"} <= {c["name"] for c in report["checks"]}
    assert "endomust-tiny" in page and not [c for c in report["checks"] if "did not work here" in c["sentence"]]


def test_the_command_fails_with_3_where_something_is_broken(tmp_path, capsys):
    assert cli.main(["doctor", "--no-ros", "--model", str(tmp_path), "--camera", str(tmp_path / "absent.yaml")]) == 3
    page = capsys.readouterr().out
    assert "FAIL bundle" in page and "FAIL calibration" in page


def test_a_provider_that_does_not_exist_is_named(capsys):
    assert cli.main(["doctor", "--no-ros", "--providers", "cpu,kuda"]) == 2
    assert "cpu,kuda" in capsys.readouterr().err


def test_the_page_comes_out_where_no_library_imports(tmp_path):
    """A machine on which everything is missing: NumPy, OpenCV, ONNX Runtime and YAML raise."""
    import os
    import subprocess

    for name in ("numpy", "cv2", "onnxruntime", "yaml", "rclpy"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('No module named {name}')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "endomust_core.cli", "doctor", "--seconds", "0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 3, done.stderr
    assert "FAIL packages" in done.stdout and "checks failed" in done.stdout and "Traceback" not in done.stderr
