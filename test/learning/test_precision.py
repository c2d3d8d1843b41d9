"""Precisions of a bundle: fp16 and int8 graphs beside fp32, what they cost, golden images, derived bundles."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'endomust_ros[train]'")
onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'endomust_ros[export]'")

from endomust_core.backends import Choice, open_with  # noqa: E402
from endomust_core.bundle import BundleError, load_bundle  # noqa: E402
from endomust_core.engines import EngineOptions, open_engines  # noqa: E402
from endomust_core.estimator import Estimator  # noqa: E402
from endomust_core.golden import load_golden  # noqa: E402
from endomust_core.learning.export import export_bundle  # noqa: E402
from endomust_core.learning.networks.depth import DepthConfig, DepthNetwork  # noqa: E402
from endomust_core.learning.networks.pose import PoseNetwork  # noqa: E402
from endomust_core.learning.precision import derive  # noqa: E402

SIZE = (56, 70)
CONFIG = DepthConfig(
    dim=48, blocks=4, heads=3, features=16, out_channels=(8, 16, 24, 24), taps=(0, 1, 2, 3), necks=(1,)
)


@pytest.fixture(scope="module")
def frames():
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (8, 10, 3)).astype(np.float32)
    turned = [np.roll(coarse, step, axis=1) for step in range(6)]
    return [np.kron(image, np.ones((7, 7, 1))).astype(np.uint8) for image in turned]


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(1)
    depth, pose = DepthNetwork(CONFIG), PoseNetwork("tiny")
    with torch.no_grad():
        for parameter in (*depth.parameters(), *pose.parameters()):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return depth.eval(), pose.eval()


@pytest.fixture(scope="module")
def root(tmp_path_factory, frames, networks):
    out = tmp_path_factory.mktemp("models") / "test"
    return export_bundle(
        *networks, out, SIZE, name="test", provenance={}, scores={}, frames=frames,
        precisions=["fp32", "fp16", "int8"], golden_frames=frames,
    )  # fmt: skip


def test_the_manifest_says_what_each_precision_costs_against_pytorch(root):
    costs = load_bundle(root).manifest["verification"]["precision"]
    assert set(costs) == {"fp16", "int8"}
    assert 0 < costs["fp16"]["depth"]["median_rel"] < 2e-3 and 0 < costs["int8"]["depth"]["median_rel"] < 0.05
    for facts in (facts for networks in costs.values() for facts in networks.values()):
        assert facts["median_rel"] <= facts["p99_rel"] <= facts["max_rel"] and facts["inputs"] >= 2


def test_the_fp16_graph_computes_in_fp16_up_to_the_head_and_is_half_the_size(root):
    bundle = load_bundle(root)
    graph = onnx.load(bundle.depth.at("fp16").path).graph
    large = [t.data_type for t in graph.initializer if np.prod(t.dims) > 256]
    assert set(large) == {onnx.TensorProto.FLOAT16}
    (sigmoid,) = (node for node in graph.node if node.op_type == "Sigmoid")
    (into,) = (node for node in graph.node if sigmoid.input[0] in node.output)
    assert into.op_type == "Cast" and into.attribute[0].i == onnx.TensorProto.FLOAT


def test_int8_quantises_the_linear_layers_and_leaves_motion_alone(root):
    bundle = load_bundle(root)
    operators = [node.op_type for node in onnx.load(bundle.depth.at("int8").path).graph.node]
    assert operators.count("QuantizeLinear") > 8 and "DequantizeLinear" in operators
    assert bundle.pose.at("int8").path == bundle.pose.path


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_precision_that_was_exported_opens_and_passes_the_self_test(root, precision, tmp_path):
    engines = open_engines(load_bundle(root), EngineOptions(precision=precision, cache_dir=tmp_path))
    assert engines.depth.precision == precision and engines.self_test.passed


def test_the_first_thing_that_happens_to_the_image_is_a_cast(root):
    for spec in (load_bundle(root).depth, load_bundle(root).pose):
        for precision in ("fp32", "fp16", "int8"):
            graph = onnx.load(spec.at(precision).path).graph
            readers = [node.op_type for node in graph.node if spec.input_name in node.input]
            assert readers == ["Cast"], precision


def test_the_graphs_are_simplified_and_standard(root):
    model = onnx.load(load_bundle(root).depth.path)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"Constant", "Shape", "Identity", "If", "Loop"}
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    cubic = [n for n in model.graph.node if n.op_type == "Resize" and any(a.s == b"cubic" for a in n.attribute)]
    assert not cubic


def test_the_golden_answers_are_pytorchs(root, networks, frames):
    golden = load_golden(load_bundle(root))
    assert golden["depth_images"].shape == (3, *SIZE, 3) and golden["rotation"].shape == (2, 3)
    with torch.no_grad():
        a, b = (torch.from_numpy(f).permute(2, 0, 1)[None] / 255 for f in golden["pose_images"][:2])
        expected = networks[1](a, b).rotation.numpy()
    np.testing.assert_allclose(golden["rotation"][:1], expected, rtol=1e-4, atol=1e-6)
    assert load_bundle(root).manifest["golden"]["reference"] == "PyTorch, float32"


def test_a_bundle_gives_one_with_further_precisions_and_the_same_fp32_graphs(root, frames, tmp_path, networks):
    plain = export_bundle(*networks, tmp_path / "plain", SIZE, name="p", provenance={}, scores={}, frames=frames)
    assert load_bundle(plain).golden is None
    derived = load_bundle(derive(plain, tmp_path / "derived", ["fp16"], frames, frames))
    assert derived.digest == load_bundle(plain).digest and set(derived.depth.variants) == {"fp16"}
    assert load_golden(derived) is not None
    with pytest.raises(BundleError, match="is not empty; choose another folder"):
        derive(plain, tmp_path / "derived", ["fp16"], frames, frames)
    with pytest.raises(BundleError, match="no precision 'fp8' to export; choose from fp32, fp16, int8"):
        derive(plain, tmp_path / "more", ["fp8"], frames, frames)
    assert not (tmp_path / "more").exists()


def test_a_variant_that_was_changed_is_refused(root, tmp_path, frames):
    copy = derive(root, tmp_path / "copy", ["fp32"], frames, frames)
    path = copy / "depth.fp16.onnx"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BundleError, match="depth.fp16.onnx sha256 differs"):
        load_bundle(copy)


def test_fp16_is_not_for_the_processor_and_says_so(root):
    with pytest.raises(Exception, match="'cpu' does not run fp16 here; it runs fp32, int8"):
        open_with(load_bundle(root).depth, "cpu", Choice("fp16"))


def test_a_batch_of_two_gives_both_images_their_own_depth(networks, frames, tmp_path):
    request = dict(name="p", provenance={}, scores={}, frames=frames, weight_dtype="float32", golden_frames=frames)
    one = load_bundle(export_bundle(*networks, tmp_path / "one", SIZE, **request))
    two = load_bundle(export_bundle(*networks, tmp_path / "two", SIZE, **request, batch=2, precisions=["int8"]))
    engines = open_engines(two, EngineOptions(cache_dir=tmp_path))
    assert engines.self_test.passed
    both = engines.depth.run({"image": np.stack(frames[:2])})["disparity"]
    single = open_with(one.depth, "cpu", Choice())
    for image, found in zip(frames, both, strict=False):
        np.testing.assert_allclose(found, single.run({"image": image[None]})["disparity"][0], rtol=1e-5)
    with pytest.raises(BundleError, match="takes 2 images at once, for a stereo rig"):
        Estimator(two)
