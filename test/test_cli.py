"""The command line: errors are one sentence with exit code 2, help needs nothing heavy, a missing extra is named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from endomust_core import __version__, cli
from endomust_core.bundle import BundleError

ROOT = Path(__file__).resolve().parent.parent


def endomust(*arguments, **options):
    """Run the command in a fresh interpreter."""
    command = [sys.executable, "-m", "endomust_core.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def test_version():
    done = endomust("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"endomust {__version__}")


def test_help_names_every_command_and_imports_nothing_heavy():
    script = (
        "import sys\nfrom endomust_core.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'numpy', 'cv2', 'torch', 'onnxruntime', 'rosbags', 'rclpy', 'yaml'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    for name in cli.COMMANDS:
        assert re.search(rf"^    {name}\s", done.stdout, re.M), name


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name):
    if name in cli.FORWARDED:
        pytest.importorskip("rclpy")
    done = endomust(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: endomust {name}" in done.stdout


@pytest.mark.parametrize(("typed", "meant"), [("impotr", "import"), ("pley", "play"), ("inf", "info")])
def test_a_misspelt_command_gets_the_nearest_one(typed, meant, capsys):
    assert cli.main([typed]) == 2
    assert capsys.readouterr().err == f"endomust: no command '{typed}'; did you mean '{meant}'?\n"


def test_a_word_like_no_command_gets_the_list(capsys):
    assert cli.main(["zzzz"]) == 2
    assert "import" in capsys.readouterr().err


def test_a_broken_bundle_is_one_sentence_and_exit_code_2(tmp_path):
    done = endomust("info", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("endomust: ") and "manifest.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_where_it_came_from(tmp_path):
    done = endomust("info", tmp_path, "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr and "bundle.py" in done.stderr


def test_import_makes_a_recording_and_says_how_many_frames(tmp_path):
    import cv2
    import numpy as np

    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((48, 64, 3), 40 * number, np.uint8))
    done = endomust("import", tmp_path, tmp_path / "case.mcap", "--rate", "25")
    assert done.returncode == 0, done.stderr
    assert "3 frames" in done.stdout and (tmp_path / "case.mcap").stat().st_size > 0


def test_evaluate_prints_a_table(tmp_path):
    pytest.importorskip("onnx", reason="writes the mock bundle")
    import numpy as np
    from mock_bundle import write_mock_bundle

    scenes = tmp_path / "scenes"
    scenes.mkdir()
    depth = np.full((2, 48, 64), 0.05, np.float16)
    rgb = np.full((2, 48, 64, 3), 90, np.uint8)
    np.savez(scenes / "colon-1.npz", rgb=rgb, depth=depth, fov=np.ones((48, 64), bool))
    done = endomust("evaluate", write_mock_bundle(tmp_path / "mock"), "--data", f"scenes:{scenes}")
    assert done.returncode == 0, done.stderr
    assert "| model | colon | 0.000 |" in done.stdout and "| constant | colon |" in done.stdout


@pytest.mark.parametrize(("text", "size"), [("640x512", (512, 640)), ("64x48", (48, 64))])
def test_sizes_are_written_width_first(text, size):
    assert cli.parser().parse_args(["render", "colon", "--out", "x.mcap", "--size", text]).size == size


def test_import_of_nothing_says_what_to_do(tmp_path, capsys):
    assert cli.main(["import", str(tmp_path / "absent.mp4"), str(tmp_path / "case.mcap")]) == 2
    assert "does not exist" in capsys.readouterr().err


def raised_by(function, *arguments):
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


def test_our_errors_are_told_in_words_and_faults_are_not():
    assert cli.in_words(BundleError("depth.onnx is missing; fetch it")) == "depth.onnx is missing; fetch it"
    assert cli.in_words(raised_by(open, "/nowhere/at/all")) is not None
    assert cli.in_words(raised_by(int, "a word")) is None  # ValueError, but nobody chose its words
    assert cli.in_words(KeyError("x")) is None


def test_a_plain_value_error_of_our_own_code_is_told_in_words():
    np = pytest.importorskip("numpy")
    from endomust_core.camera import Camera

    error = raised_by(Camera.from_K, np.zeros((3, 3)), 0, 0)
    assert cli.in_words(error) == str(error)


@pytest.mark.parametrize(
    ("module", "advice"),
    [("torch", "endomust_ros[train]"), ("onnx", "endomust_ros[export]"), ("rclpy.node", "source a ROS 2 installation")],
)
def test_a_missing_extra_is_named(module, advice):
    assert advice in cli.in_words(ModuleNotFoundError(f"No module named {module!r}", name=module))


def test_a_missing_module_that_no_extra_brings_is_a_fault():
    assert cli.in_words(ModuleNotFoundError("No module named 'foo'", name="foo")) is None


def test_ctrl_c_stops_quietly(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "info", interrupted)
    assert cli.main(["info"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_keeps_its_traceback_and_exits_1(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "info", lambda _: {}["fault"])
    assert cli.main(["info"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("order", [("depth.steps=5", "--out", "run"), ("--out", "run", "depth.steps=5")])
def test_overrides_may_stand_before_and_after_the_options(order, monkeypatch):
    seen = []
    monkeypatch.setitem(cli.COMMANDS, "pretrain", seen.append)
    cli.main(["pretrain", "config.yaml", *order])
    assert seen[0].overrides == ["depth.steps=5"] and seen[0].out == Path("run")


def test_a_stray_word_is_still_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "config.yaml", "--out", "run", "--fast"])
    assert "unrecognized arguments: --fast" in capsys.readouterr().err
