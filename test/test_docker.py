"""The Dockerfiles, read without Docker: sources of COPY exist, versions are pinned, nobody is root, scripts parse."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "config" / "docker"
FILES = sorted(FOLDER.glob("*.Dockerfile"))
KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "SHELL", "USER",
    "VOLUME", "WORKDIR",
}  # fmt: skip
each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def instructions(file):
    """(instruction, argument) of a Dockerfile; comments out, continued lines joined."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple((*line.split(None, 1), "")[:2]) for line in joined.splitlines() if line.strip()]


def arguments_of(file, name):
    return [argument for instruction, argument in instructions(file) if instruction == name]


def defaults(file):
    """Values of the ARGs that have one."""
    pairs = (argument.partition("=") for argument in arguments_of(file, "ARG"))
    return {name: value.strip("\"'") for name, equals, value in pairs if equals}


def ignored():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_both_machines_have_a_file():
    assert [file.stem for file in FILES] == ["desktop", "jetson"]


@each
def test_every_instruction_is_one_that_docker_knows(file):
    names = [name for name, _ in instructions(file)]
    assert set(names) <= KNOWN
    assert names.index("FROM") > 0 and set(names[: names.index("FROM")]) == {"ARG"}
    assert all(argument for _, argument in instructions(file))


@each
def test_what_is_copied_exists_and_is_not_ignored(file):
    sources = [word for argument in arguments_of(file, "COPY") for word in argument.split()[:-1]]
    assert {"endomust_core", "endomust_ros", "models", "config", "launch", "resource", "setup.py"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] not in ignored(), source
    several = [argument.split() for argument in arguments_of(file, "COPY") if len(argument.split()) > 2]
    assert all(words[-1].endswith("/") for words in several)  # Docker demands it


@each
def test_setup_py_finds_everything_it_reads(file):
    """setup.py lists files below launch, config and models, and names three at the top."""
    copied = {word for argument in arguments_of(file, "COPY") for word in argument.split()[:-1]}
    tree = ast.parse((ROOT / "setup.py").read_text())
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    named = {s.split("/")[0] for s in strings if (ROOT / s).exists() and s and not s.startswith("/") and "\n" not in s}
    assert {"launch", "config", "models", "package.xml"} <= named
    assert named - {"endomust_ros", "endomust_core", "."} <= copied


@each
def test_the_base_is_pinned(file):
    (base,) = arguments_of(file, "FROM")
    for name, value in defaults(file).items():
        base = base.replace(f"${{{name}}}", value)
    assert "$" not in base and ":" in base and "latest" not in file.read_text()


@each
def test_every_variable_is_declared_before_it_is_used(file):
    declared = {"PATH", "HOME"}
    for name, argument in instructions(file):
        own = set(re.findall(r"\b([A-Z]+)=", argument)) if name == "RUN" else set()
        used = set(re.findall(r"\$\{([A-Z_]+)\}", argument))
        assert used <= declared | own, f"{name} uses {used - declared - own}"
        if name == "FROM":
            declared = {"PATH", "HOME"}  # an ARG before FROM is forgotten after it
        if name == "ARG":
            declared.add(argument.partition("=")[0])


@each
def test_the_requirements_are_those_of_setup_py(file):
    text = (ROOT / "setup.py").read_text()
    known = dict(re.findall(r'"([A-Za-z][\w-]*)>=([\d.]+)"', text))
    for package, oldest in re.findall(r'"([A-Za-z][\w-]*)>=([\d.]+)"', file.read_text()):
        assert known.get(package) == oldest, package
    extras = re.findall(r"/opt/source\[([\w,]+)\]", file.read_text())
    assert {extra for group in extras for extra in group.split(",")} <= set(re.findall(r'"(\w+)": [A-Z]+', text))


@each
def test_nobody_is_root_and_no_secret_is_inside(file):
    assert instructions(file).index(("USER", arguments_of(file, "USER")[-1])) > 0
    assert arguments_of(file, "USER")[-1].split(":")[0] not in ("root", "0")
    assert not re.search(r"(?i)password|passwd|token|secret|api[-_]?key|://[^\s/]*@", file.read_text())
    order = [name for name, _ in instructions(file)]
    last_user = len(order) - 1 - order[::-1].index("USER")
    assert "RUN" not in order[last_user:] and "COPY" not in order[last_user:]


@each
def test_entrypoint_command_and_health_check_are_lists_that_name_what_is_there(file):
    (entry,), (command,), (health,) = (arguments_of(file, name) for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    scripts = [*json.loads(entry), *json.loads(health.partition("CMD ")[2])]
    assert all((FOLDER / Path(script).name).is_file() for script in scripts)
    assert f'"{json.loads(command)[0]} = ' in (ROOT / "setup.py").read_text()


@each
def test_the_head_says_how_to_build_and_run(file):
    head = file.read_text().split("\nARG", 1)[0]
    assert f"docker build -f {file.relative_to(ROOT).as_posix()}" in head
    assert "--ipc=host" in head and "--network=host" in head
    assert "built" in head and "by us yet" in head
    assert "jetson" not in file.stem or "--runtime nvidia" in head


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda script: script.name)
def test_scripts_parse_and_can_be_started(script):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert script.stat().st_mode & 0o111 and script.read_text().startswith("#!/usr/bin/env bash\n")


def test_the_entrypoint_becomes_the_command():
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    command = [FOLDER / "entrypoint.sh", "printf", "%s", "two words"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "ROS_DISTRO": "none"})
    assert (done.returncode, done.stdout) == (0, "two words"), done.stderr
