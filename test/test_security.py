"""What docs/security.md promises: the SROS2 policy is what the node does, and the runtime runs no foreign code."""

import ast
import importlib.util
import os
import random
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
POLICY = ROOT / "sros2" / "policy.xml"
IMAGE, INFO = "/endoscope/image_raw", "/endoscope/camera_info"
NODE = "/endomust"
# What runs beside a robot. Training, rendering and data preparation are no part of it.
OFFLINE = ("endomust_core/learning", "endomust_core/simulation", "endomust_core/preparing", "endomust_core/data")
RUNTIME = sorted(
    file
    for folder in ("endomust_core", "endomust_ros", "launch")
    for file in (ROOT / folder).rglob("*.py")
    if not file.relative_to(ROOT).as_posix().startswith(OFFLINE)
)

# ---- the policy ----


def full(name, namespace, node):
    """Full name of a topic or service, as sros2 makes it of a policy."""
    prefix = namespace if namespace.endswith("/") else f"{namespace}/"
    if name.startswith("/"):
        return name
    return f"{prefix}{node}{name[1:]}" if name.startswith("~") else f"{prefix}{name}"


def granted(enclave):
    """(kind of right, full name) pairs that the policy gives an enclave; kinds: publish, subscribe, reply, request."""
    found = set()
    (entry,) = (e for e in ElementTree.parse(POLICY).getroot().iter("enclave") if e.get("path") == enclave)
    for profile in entry.iter("profile"):
        for group in profile:
            rights = [right for right, word in group.attrib.items() if word == "ALLOW"]
            assert rights and set(group.attrib.values()) == {"ALLOW"}, "the policy only grants; the rest is denied"
            names = [full(item.text, profile.get("ns"), profile.get("node")) for item in group]
            assert len(names) == len(set(names))
            found |= {(right, name) for right in rights for name in names}
    return found


def test_nothing_is_granted_by_a_pattern():
    text = POLICY.read_text(encoding="utf-8").split("<policy")[1]
    names = [entry.text for kind in ("topic", "service") for entry in ElementTree.parse(POLICY).getroot().iter(kind)]
    assert names and not [name for name in names if set(name) & set("*?[]")] and "DENY" not in text


def rights_in_use(node):
    """(kind of right, full name) pairs of a node, from the graph."""
    looks = {
        "publish": node.get_publisher_names_and_types_by_node,
        "subscribe": node.get_subscriber_names_and_types_by_node,
        "reply": node.get_service_names_and_types_by_node,
    }
    return {(right, name) for right, look in looks.items() for name, _ in look("endomust", "/")}


def settled(look, patience=5.0, calm=0.5, pause=0.05):
    """What `look` says once it has said the same for `calm` seconds and is not poor; a node learns of itself late."""
    deadline, last, since = time.monotonic() + patience, None, time.monotonic()
    while time.monotonic() < deadline:
        seen = look()
        if seen != last:
            last, since = seen, time.monotonic()
        if {right for right, _ in seen} == {"publish", "subscribe", "reply"} and time.monotonic() - since > calm:
            break
        time.sleep(pause)
    return last


@pytest.fixture(scope="module")
def graph():
    """(kind of right, full name) pairs that the running node makes use of, active, with its inputs remapped."""
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")
    import rclpy

    from endomust_ros.transport import fast_dds_environment

    before = dict(os.environ)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.update(fast_dds_environment(os.environ))
    from endomust_ros.node import EndomustNode

    context = rclpy.Context()
    arguments = ["--ros-args", "-r", f"image:={IMAGE}"]
    rclpy.init(args=arguments, context=context, domain_id=random.SystemRandom().randrange(1, 100))
    node = EndomustNode(context=context)
    try:
        node.trigger_configure()
        node.trigger_activate()
        assert node.state == "active"
        yield settled(lambda: rights_in_use(node))
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)
        os.environ.clear()
        os.environ.update(before)


def test_the_policy_grants_the_node_everything_it_does(graph):
    assert len(graph) > 20
    assert not sorted(graph - granted(NODE))


def test_the_policy_grants_the_node_nothing_that_it_does_not_do(graph):
    later = {("subscribe", "/clock")}  # with use_sim_time
    later |= {("subscribe", "/camera_pose")}  # with scale.mode kinematic, or while the scale is calibrated
    later |= {("subscribe", IMAGE), ("subscribe", f"{IMAGE}/compressed")}  # auto: until one of them is published
    if importlib.util.find_spec("tf2_msgs") is None:
        later |= {("publish", "/tf"), ("subscribe", "/tf"), ("subscribe", "/tf_static")}
    if not any(name.endswith("get_type_description") for _, name in graph):  # Humble has none
        later |= {("reply", f"{NODE}/get_type_description")}
    assert not sorted(granted(NODE) - graph - later)


def test_the_policy_grants_every_output_of_the_table():
    pytest.importorskip("rclpy")
    from endomust_ros.outputs import OUTPUTS

    topics = {output.topic.replace("~", NODE) for output in OUTPUTS.values()}
    assert {("publish", topic) for topic in topics} <= granted(NODE)
    assert {("subscribe", topic) for topic in topics} <= granted("/viewer")


def test_a_camera_may_publish_what_the_node_listens_to_and_nothing_that_it_says():
    camera, node = granted("/camera"), granted(NODE)
    for topic in (IMAGE, f"{IMAGE}/compressed", INFO):
        assert ("publish", topic) in camera and ("subscribe", topic) in node
    assert not [name for _, name in camera if name.startswith(NODE)]


def test_a_viewer_only_looks():
    rights = granted("/viewer")
    assert {name for right, name in rights if right == "publish"} == {"/rosout", "/parameter_events"}
    assert not [name for right, name in rights if right in ("request", "reply")]


# ---- no foreign code at run time ----

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "code", "codeop"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "execfile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("os", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput"),
    ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("yaml", "load_all"), ("np", "loads"),
    ("torch", "load"),
}  # fmt: skip


def dangers(source):
    """(line, what) of everything in a source that could run what data or parameters say."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [(node.lineno, name) for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in _call(node)]
    return found


def _call(node):
    function, keywords = node.func, {word.arg: word.value for word in node.keywords}
    if isinstance(function, ast.Name) and function.id in FORBIDDEN_CALLS:
        yield function.id
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        if (function.value.id, function.attr) in FORBIDDEN_ATTRIBUTES:
            yield f"{function.value.id}.{function.attr}"
        if function.attr.startswith(("exec", "spawn")) and function.value.id == "os":
            yield f"os.{function.attr}"
    for name in ("shell", "allow_pickle"):
        given = keywords.get(name)
        if given is not None and not (isinstance(given, ast.Constant) and given.value is False):
            yield f"{name}={ast.unparse(given)}"


@pytest.mark.parametrize("file", RUNTIME, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_the_runtime_runs_nothing_that_data_say(file):
    assert not dangers(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval(text)",
        "exec(text)",
        "os.system('ls')",
        "os.execv(a, b)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=flag)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "torch.load(path)",
    ],
)
def test_the_look_for_dangers_finds_each_of_them(source):
    assert dangers(source)


def test_the_look_for_dangers_lets_the_harmless_pass():
    assert not dangers("np.load(p, allow_pickle=False); yaml.safe_load(t); subprocess.run([a, b]); re.compile(x)")


# ---- what is shipped ----


def test_the_page_says_what_it_must():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for words in ("research software", "not a medical device", "no control output", "ENDOMUST_PATHS", "vulnerability"):
        assert words in page, words
    for enclave in ("/endomust", "/camera", "/viewer"):
        assert f"create_enclave keystore {enclave}" in page


def test_the_policy_is_installed_with_the_package():
    assert '*files_below("sros2")' in (ROOT / "setup.py").read_text()
    assert "recursive-include sros2" in (ROOT / "MANIFEST.in").read_text()
