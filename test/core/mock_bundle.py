"""Writes a tiny real bundle (two ONNX graphs, a few kB) whose answers are known, and images that ask for them.

Depth: disparity = a + b * red / 255 [1/m], so red 0 is the farthest and red 255 the nearest depth. Pose: constants,
plus `brightness_gain` times the change of mean brightness (0..1) from the previous to the current image. Network input
is uint8 RGB. A tilted plane through the whole chain::

    root = write_mock_bundle(tmp_path / "mock", size=(48, 64), near=0.02, far=0.2)
    depth = tilted_plane(640, 512, left=0.03, right=0.15)          # (512,640) [m]
    rgb = image_of_depth(depth, near=0.02, far=0.2)                # show this to the node
    1 / answer - 1 / depth                                         # within disparity_step(0.02, 0.2)
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from endomust_core.bundle import write_manifest

INTRINSICS = (0.8, 1.0, 0.5, 0.5)


def write_mock_bundle(
    root,
    *,
    name="mock",
    size=(48, 64),
    near=0.02,
    far=0.2,
    disparity=None,
    pose=True,
    pose_size=None,
    rotation=(0.0, 0.0, 0.0),
    translation=(0.0, 0.0, 0.0),
    brightness_gain=(0.0, 0.0, 0.0),
    intrinsics=INTRINSICS,
    metric=False,
    golden=False,
) -> Path:
    """Write the bundle into the folder `root` and return it.

    size, pose_size: (H, W); near, far [m]; disparity: (a, b) [1/m] instead of near and far; rotation [rad] axis-angle,
    translation and brightness_gain [m]; intrinsics fx/W, fy/H, cx/W, cy/H, or None for a graph without them; golden:
    with images for the self-test.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    a, b = disparity or (1 / far, 1 / near - 1 / far)
    onnx.save(depth_graph(size, a, b), root / "depth.onnx")
    manifest = {
        "format": 1,
        "name": name,
        "version": "0.1.0",
        "description": "disparity is the red channel, motion is constant",
        "licence": "Apache-2.0",
        "depth": {
            "file": "depth.onnx",
            "input": {"name": "image", "size": list(size)},
            "output": {"name": "disparity"},
            "range_m": [near, far],
        },
        "scale": {"unit": "metre", "source": "mock", "metric": metric},
    }
    if pose:
        pose_size = pose_size or size
        onnx.save(pose_graph(pose_size, rotation, translation, brightness_gain, intrinsics), root / "pose.onnx")
        outputs = ["rotation", "translation"] + (["intrinsics"] if intrinsics is not None else [])
        manifest["pose"] = {
            "file": "pose.onnx",
            "input": {"name": "images", "size": list(pose_size)},
            "output": {output: output for output in outputs},
            "convention": "T_prev_curr",
        }
    write_manifest(root, manifest)
    if golden:
        add_golden(root, manifest)
    return root


def add_golden(root, manifest) -> None:
    """Golden images of a mock bundle, with the answers that ONNX Runtime gives to them."""
    from endomust_core.backends import open_network
    from endomust_core.bundle import load_bundle
    from endomust_core.golden import named_outputs, write_golden

    bundle = load_bundle(root)
    frames = [np.random.default_rng(seed).integers(0, 256, (*bundle.depth.size, 3), np.uint8) for seed in range(3)]

    def run(spec, array):
        return named_outputs(spec, open_network(spec, threads=1).run({spec.input_name: array}))

    write_manifest(root, manifest | {"golden": write_golden(root, bundle.depth, bundle.pose, frames, run)})


def tilted_plane(width, height, left, right) -> np.ndarray:
    """(height,width) float64 depth [m] of a plane seen at depth `left` in the first column and `right` in the last.

    Inverse depth of a plane is linear in the image; this one is constant down each column.
    """
    return np.tile(1 / np.linspace(1 / left, 1 / right, width), (height, 1))


def image_of_depth(depth, near=0.02, far=0.2) -> np.ndarray:
    """(H,W) depth [m] -> (H,W,3) uint8 RGB that the mock network reads as this depth, to within disparity_step()."""
    red = 255 * (1 / depth - 1 / far) / (1 / near - 1 / far)
    if red.min() < -1e-6 or red.max() > 255 + 1e-6:
        raise ValueError(f"depth must lie in [{near}, {far}]")
    rgb = np.full((*depth.shape, 3), 40, dtype=np.uint8)  # green and blue must not matter
    rgb[..., 0] = np.round(red)
    return rgb


def disparity_step(near=0.02, far=0.2) -> float:
    """One step of the 8-bit red channel [1/m]: half is lost in the image, half in the resize to network size."""
    return (1 / near - 1 / far) / 255


def depth_graph(size, a, b, *, dtype=TensorProto.UINT8, image="image", disparity="disparity", open_size=False):
    """Graph uint8 (1,H,W,3) -> float32 (1,H,W): a + b * red / 255."""
    shape = (1, "height", "width") if open_size else (1, *size)
    constants = {"red": np.int64(0), "a": np.float32(a), "b": np.float32(b / 255)}
    nodes = [
        helper.make_node("Cast", [image], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["pixels", "red"], ["channel"], axis=3),
        helper.make_node("Mul", ["channel", "b"], ["scaled"]),
        helper.make_node("Add", ["scaled", "a"], [disparity]),
    ]
    inputs = [helper.make_tensor_value_info(image, dtype, (*shape, 3))]
    outputs = [helper.make_tensor_value_info(disparity, TensorProto.FLOAT, shape)]
    return _model("mock_depth", nodes, inputs, outputs, constants)


def pose_graph(size, rotation, translation, brightness_gain=(0.0, 0.0, 0.0), intrinsics=INTRINSICS):
    """Graph uint8 (1,2,H,W,3) -> rotation (1,3), translation (1,3), intrinsics (1,4)."""
    constants = {
        "contrast": np.array([[-1 / 255], [1 / 255]], dtype=np.float32),  # current minus previous
        "constant_rotation": np.array([rotation], dtype=np.float32),
        "constant_translation": np.array([translation], dtype=np.float32),
        "gain": np.array([brightness_gain], dtype=np.float32),
        "zero3": np.zeros((1, 3), dtype=np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[2, 3, 4], keepdims=0),  # (1,2)
        helper.make_node("MatMul", ["means", "contrast"], ["change"]),  # (1,1)
        helper.make_node("Mul", ["change", "gain"], ["moved"]),
        helper.make_node("Mul", ["change", "zero3"], ["nothing"]),
        helper.make_node("Add", ["constant_translation", "moved"], ["translation"]),
        helper.make_node("Add", ["constant_rotation", "nothing"], ["rotation"]),
    ]
    lengths = {"rotation": 3, "translation": 3}
    if intrinsics is not None:
        constants |= {"constant_intrinsics": np.array([intrinsics], dtype=np.float32), "zero1": np.zeros((1, 1), "f4")}
        nodes.append(helper.make_node("Mul", ["change", "zero1"], ["nothing1"]))
        nodes.append(helper.make_node("Add", ["constant_intrinsics", "nothing1"], ["intrinsics"]))
        lengths["intrinsics"] = 4
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, (1, 2, *size, 3))]
    outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, (1, length)) for out, length in lengths.items()]
    return _model("mock_pose", nodes, inputs, outputs, constants)


def _model(name, nodes, inputs, outputs, constants):
    initialisers = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8  # read by every ONNX Runtime since 1.10
    onnx.checker.check_model(model)
    return model
