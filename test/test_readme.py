"""The pages keep their promises: links lead somewhere, commands exist and parse, the interface page equals the code."""

import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from endomust_core import cli
from endomust_ros.launching import ARGUMENTS as LAUNCH_ARGUMENTS
from endomust_ros.launching import CAMERA_ARGUMENTS, GSCAM_ARGUMENTS, USB_ARGUMENTS
from endomust_ros.stereo_launching import STEREO_ARGUMENTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page):
    """The fenced blocks of a page."""
    return re.findall(r"^```\w*\n(.*?)^```", text_of(page), re.S | re.M)


def commands(page):
    """Command lines of the fenced blocks, comments off, `&&` apart; drawings and logs do not start like a command."""
    first = r"(make|\.venv\S*/bin/\S+|python3|pip|ros2|rosdep|colcon|export|endomust|source)\s"
    lines = [line for block in blocks(page) for line in block.splitlines() if re.match(first, line)]
    return [part.strip() for line in lines for part in re.split(r"\s#", line)[0].split("&&")]


ALL = [pytest.param(page, line, id=f"{page.stem}: {line}") for page in PAGES for line in dict.fromkeys(commands(page))]


def parse_endomust(words):
    """Let the command's own parser read the words; it ends the test where it does not know them."""
    name, *rest = words
    if name not in cli.FORWARDED:
        return cli.parser().parse_args(words)
    if name == "bench":
        if rest[0] in ("node", "transport", "faults"):
            pytest.importorskip("rclpy")
        return importlib.import_module(cli.BENCHMARKS[rest[0]])._parse(rest[1:])
    pytest.importorskip("rclpy")
    if name == "play":
        from endomust_ros.player import _parse
    else:
        from endomust_ros.demo import _parse
    return _parse(rest)


def check_pip(words):
    extras = {e for word in words for found in re.findall(r"\[([\w,]+)\]", word) for e in found.split(",")}
    known = set(re.findall(r'"(\w+)": [A-Z]+', (ROOT / "setup.py").read_text()))
    assert extras <= known, f"setup.py has no extra {extras - known}"
    for number, word in enumerate(words):
        if word == "-c":
            assert (ROOT / words[number + 1]).is_file()


def check_ros2(words):
    if words[:2] == ["launch", "endomust_ros"]:
        assert (ROOT / "launch" / words[2]).is_file()
        given = {word.split(":=")[0] for word in words[3:]}
        known = {
            "camera.launch.py": CAMERA_ARGUMENTS,
            "camera_usb.launch.py": USB_ARGUMENTS,
            "camera_gscam.launch.py": GSCAM_ARGUMENTS,
            "stereo.launch.py": STEREO_ARGUMENTS,
        }.get(words[2], LAUNCH_ARGUMENTS)
        assert given <= known.keys(), f"{words[2]} knows {', '.join(known)}"
    elif words[:2] == ["run", "endomust_ros"]:
        assert f'"{words[2]} = ' in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize(("page", "line"), ALL)
def test_every_command_is_one_that_works(page, line):
    words = shlex.split(line)
    program = Path(words[0]).name
    if program == "make":
        if shutil.which("make") is None:
            pytest.skip("make is not installed")
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program == "endomust":
        parse_endomust(words[1:])
    elif program == "depth_node":
        assert '"depth_node = ' in (ROOT / "setup.py").read_text()
    elif program == "pip":
        check_pip(words[1:])
    elif program == "ros2":
        check_ros2(words[1:])
    elif program == "python" and words[1] == "-m":
        pytest.importorskip("rclpy")
        assert callable(importlib.import_module(words[2]).main)
    elif program == "colcon":
        assert words[-1] == "endomust_ros"
    elif program == "export":
        installed = re.search(r"share/endomust_ros/(\S+)", line)
        assert not installed or (ROOT / installed.group(1)).is_file()
    else:
        assert program in ("python3", "rosdep", "source"), f"no test knows how to check: {line}"


def test_files_that_commands_take_from_the_checkout_exist():
    lines = [line for page in PAGES for line in commands(page)]
    named = {word for line in lines for word in shlex.split(line) if word.startswith("config/")}
    assert named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_the_readme_starts_with_the_two_commands():
    head = "\n".join(text_of(ROOT / "README.md").splitlines()[:25])
    assert "make demo" in head and "make test" in head and "ros2 launch" in head


def anchors(page):
    """The anchors a reader can jump to: headings in lower case, blanks as hyphens."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file) if file else page
        assert place.exists(), f"{page.name} points at {file}, which does not exist"
        assert not anchor or anchor in anchors(place), f"{place.name} has no heading for #{anchor}"


def rows(page, heading):
    """Cells of the first table below a heading, without its head."""
    below = text_of(page).split(f"\n## {heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", below, re.M).group().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_parameter_table_is_the_one_in_the_code():
    pytest.importorskip("rclpy")
    from endomust_ros.parameters import ABOUT, default

    def shown(value):
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return f"[{', '.join(value)}]"
        return str(value) if value != "" else '""'

    table = rows(ROOT / "docs" / "ros.md", "Parameters")
    written = {name.strip("`"): (given, kind) for name, given, _, kind, _ in table}
    real = {n: (shown(default(n)), "dynamic" if ABOUT[n].metadata["dynamic"] else "static") for n in ABOUT}
    assert written == real


def test_the_parameter_table_gives_units_and_ranges_as_in_the_code():
    pytest.importorskip("rclpy")
    from endomust_ros.parameters import ABOUT

    for name, _, cell, _, _ in rows(ROOT / "docs" / "ros.md", "Parameters"):
        about = ABOUT[name.strip("`")].metadata
        expected = [about["unit"]] if about["unit"] else []
        expected += ["{:g} to {:g}".format(*about["limits"])] if about["limits"] else []
        expected += [", ".join(about["choices"])] if about["choices"] else []
        assert cell == "; ".join(expected), name


def test_the_launch_table_is_the_one_in_the_code():
    written = {name.strip("`"): (default, what) for name, default, what in rows(ROOT / "docs" / "ros.md", "Launch")}
    assert written == {name: (default or "empty", what) for name, (default, what) in LAUNCH_ARGUMENTS.items()}


def test_the_page_names_every_argument_of_the_camera_launch_file():
    text = text_of(ROOT / "docs" / "ros.md").split("\n## Large images\n", 1)[1]
    assert not [name for name in CAMERA_ARGUMENTS if f"`{name}`" not in text]


def test_the_loss_that_is_warned_about_is_the_one_in_the_code():
    from endomust_ros.stamp_gaps import ENOUGH, TOO_MANY, WINDOW

    text = text_of(ROOT / "docs" / "ros.md")
    assert (
        f"warn above **{TOO_MANY:g} %**" in text and f"{WINDOW} images" in text and f"lasts for {ENOUGH} images" in text
    )


def test_the_output_table_names_every_publisher():
    pytest.importorskip("rclpy")
    from endomust_ros.outputs import OUTPUTS

    written = {row[0].strip("`"): row[1] for row in rows(ROOT / "docs" / "ros.md", "Outputs")}
    for output in OUTPUTS.values():
        assert output.message_type.__name__ in written[output.topic]


def test_the_input_table_names_every_encoding():
    pytest.importorskip("rclpy")
    from endomust_ros.messages import ENCODINGS

    cell = rows(ROOT / "docs" / "ros.md", "Inputs")[0][2]
    eight_bit = {name for name in ENCODINGS if name.endswith("8") and not name.startswith("bayer")}
    special = {name for name in ENCODINGS if name.startswith(("yuv422", "nv"))}
    assert not [name for name in eight_bit | special if name not in cell]


def test_no_page_speaks_of_a_place_on_one_machine():
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(work|home|root|tmp|farm)/", text_of(page)), page.name
