"""Bundles: a good one loads; every way of being bad is named with its remedy, and mending it is enough."""

import hashlib

import numpy as np
import onnx
import pytest
import yaml
from mock_bundle import depth_graph, write_mock_bundle

from endomust_core import bundle as bundles
from endomust_core.backends import open_network
from endomust_core.bundle import BundleError, load_bundle, resize_rgb, write_manifest


@pytest.fixture
def root(tmp_path):
    return write_mock_bundle(tmp_path / "mock")


def edit(root, **changes):
    """Change the manifest as a careless editor would: dotted keys with __, None deletes; hashes stay as they are."""
    path = root / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        section = manifest
        for parent in parents:
            section = section[parent]
        if value is None:
            del section[last]
        else:
            section[last] = value
    path.write_text(yaml.safe_dump(manifest))


def test_a_good_bundle_tells_what_its_manifest_says(root):
    bundle = load_bundle(root)
    assert (bundle.name, bundle.version, bundle.root) == ("mock", "0.1.0", root)
    assert bundle.range_m == (0.02, 0.2) and bundle.metric is False
    assert bundle.depth.path == root / "depth.onnx"
    assert bundle.depth.size == (48, 64) and bundle.depth.input_name == "image"
    assert bundle.depth.outputs == {"disparity": "disparity"}
    assert bundle.depth.input_shape == (1, 48, 64, 3)
    assert bundle.pose.input_shape == (1, 2, 48, 64, 3)
    assert bundle.pose.output_shapes == {"rotation": (1, 3), "translation": (1, 3), "intrinsics": (1, 4)}
    assert bundle.depth.sha256 == hashlib.sha256((root / "depth.onnx").read_bytes()).hexdigest()
    assert bundle.manifest["licence"] == "Apache-2.0"


def test_the_manifest_itself_may_be_named(root):
    assert load_bundle(root / "manifest.yaml") == load_bundle(str(root))


def test_pose_and_its_intrinsics_are_optional(tmp_path):
    assert load_bundle(write_mock_bundle(tmp_path / "depth_only", pose=False)).pose is None
    bundle = load_bundle(write_mock_bundle(tmp_path / "no_intrinsics", intrinsics=None))
    assert set(bundle.pose.outputs) == {"rotation", "translation"}


def test_the_digest_follows_the_networks_and_nothing_else(tmp_path, root):
    digest = load_bundle(root).digest
    edit(root, description="another text", name="renamed")
    assert load_bundle(root).digest == digest
    other = write_mock_bundle(tmp_path / "other", translation=(0, 0, 0.001))
    assert load_bundle(other).digest != digest


def test_a_workspace_built_with_symlinks_loads(tmp_path, root):
    linked = tmp_path / "install"
    linked.mkdir()
    for file in root.iterdir():
        (linked / file.name).symlink_to(file)
    assert load_bundle(linked).digest == load_bundle(root).digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2, this release reads format 1; update"),
        ({"format": None}, "'format' is missing"),
        ({"name": None}, "'name' is missing"),
        ({"version": None}, "'version' is missing"),
        ({"depth": None}, "'depth.output.name' is missing"),
        ({"depth__file": None}, "'depth.file' is missing"),
        ({"depth__sha256": None}, "'depth.sha256' is missing"),
        ({"depth__input__name": None}, "'depth.input.name' is missing"),
        ({"depth__input__size": None}, "'depth.input.size' is missing"),
        ({"depth__output": None}, "'depth.output.name' is missing"),
        ({"depth__range_m": None}, "'depth.range_m' is missing"),
        ({"pose__convention": None}, "'pose.convention' is missing"),
        ({"pose__output__rotation": None}, "'pose.output.rotation' is missing"),
        ({"pose__output__translation": None}, "'pose.output.translation' is missing"),
        ({"pose__sha256": None}, "'pose.sha256' is missing"),
        ({"scale": None}, "'scale.unit' is missing"),
        ({"scale__metric": None}, "'scale.metric' is missing"),
        ({"scale__metric": "yes please"}, "'scale.metric' is 'yes please', which is of the wrong kind"),
        ({"scale__unit": "millimetre"}, "'millimetre', only 'metre'"),
        ({"name": 5}, "'name' is 5"),
        ({"pose__convention": "T_curr_prev"}, "'T_curr_prev', only 'T_prev_curr'"),
        ({"depth__input__size": [168]}, r"\[168\], it must be \[height, width\]"),
        ({"depth__input__size": [0, 64]}, "must be .height, width"),
        ({"depth__input__size": [48.5, 64]}, "must be .height, width"),
        ({"depth__range_m": [0.2, 0.02]}, "must be .nearest, farthest"),
        ({"depth__range_m": [0.0, 0.2]}, "must be .nearest, farthest"),
        ({"depth__range_m": [0.02, float("inf")]}, "must be .nearest, farthest"),
        ({"depth__file": "../x.onnx"}, "'../x.onnx' outside its own folder"),
        ({"depth__file": "/etc/hostname"}, "outside its own folder"),
        ({"depth__file": ".."}, "outside its own folder"),
        ({"pose__file": "sub\\x.onnx"}, "outside its own folder"),
        ({"depth__file": "gone.onnx"}, "gone.onnx is missing, manifest.yaml names it; re-export or fetch"),
    ],
)
def test_a_bad_manifest_is_named_and_mending_it_is_enough(root, change, words):
    good = (root / "manifest.yaml").read_text()
    edit(root, **change)
    with pytest.raises(BundleError, match=words) as failure:
        load_bundle(root)
    assert str(root) in str(failure.value)
    (root / "manifest.yaml").write_text(good)
    assert load_bundle(root).name == "mock"


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "not YAML"), ("", "no keys"), ("- 1", "no keys"), ("a\x00", "YAML")]
)
def test_a_manifest_that_is_no_mapping_is_refused(root, text, words):
    (root / "manifest.yaml").write_text(text)
    with pytest.raises(BundleError, match=words):
        load_bundle(root)


def test_a_binary_manifest_is_refused(root):
    (root / "manifest.yaml").write_bytes(b"\xff\xfe\x00\x9c")
    with pytest.raises(BundleError, match="not YAML"):
        load_bundle(root)


def test_missing_folder_missing_manifest_and_a_file_instead_of_a_folder(root):
    with pytest.raises(BundleError, match="nowhere does not exist; give the folder"):
        load_bundle(root / "nowhere")
    with pytest.raises(BundleError, match="depth.onnx is a file; give the folder"):
        load_bundle(root / "depth.onnx")
    (root / "manifest.yaml").rename(root / "kept")
    with pytest.raises(BundleError, match="no manifest.yaml"):
        load_bundle(root)
    (root / "kept").rename(root / "manifest.yaml")
    assert load_bundle(root).name == "mock"


@pytest.mark.parametrize("name", ["depth.onnx", "pose.onnx"])
def test_a_missing_graph_is_named_and_putting_it_back_is_enough(root, name):
    (root / name).rename(root / "kept")
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(root)
    (root / "kept").rename(root / name)
    assert load_bundle(root).pose is not None


@pytest.mark.parametrize("name", ["depth.onnx", "pose.onnx"])
def test_a_truncated_graph_fails_its_sha256_and_putting_it_back_is_enough(root, name):
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match=f"{name} sha256 differs: manifest.yaml says .*re-export or fetch"):
        load_bundle(root)
    (root / name).write_bytes(whole)
    assert load_bundle(root).pose is not None


def test_a_wrong_sha256_says_both(root):
    found = load_bundle(root).depth.sha256
    edit(root, depth__sha256="ab12" * 16)
    with pytest.raises(BundleError, match=f"says ab12ab12ab12…, the file has {found[:12]}…"):
        load_bundle(root)
    edit(root, depth__sha256=found.upper())
    assert load_bundle(root).depth.sha256 == found


@pytest.mark.parametrize("keep", [0, 100, -20])
def test_a_truncated_graph_with_a_matching_sha256_fails_to_open(root, keep):
    whole = (root / "depth.onnx").read_bytes()
    (root / "depth.onnx").write_bytes(whole[:keep])
    edit(root, depth__sha256=bundles.sha256_of(root / "depth.onnx"))
    with pytest.raises(BundleError, match="depth.onnx does not open .*re-export or fetch it again"):
        open_network(load_bundle(root).depth)
    (root / "depth.onnx").write_bytes(whole)
    write_manifest(root, load_bundle_text(root))
    assert open_network(load_bundle(root).depth).provider == "cpu"


def load_bundle_text(root):
    return yaml.safe_load((root / "manifest.yaml").read_text())


def replace_graph(root, graph):
    """Put another depth graph into the bundle, with the sha256 that fits it."""
    onnx.save(graph, root / "depth.onnx")
    write_manifest(root, load_bundle_text(root))


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (
            depth_graph((24, 32), 5, 45),
            "depth.onnx expects 24x32, the manifest says 48x64; re-export or fix .*manifest",
        ),
        (depth_graph((48, 64), 5, 45, image="picture"), "depth.onnx takes 'picture', the manifest says 'image'"),
        (depth_graph((48, 64), 5, 45, disparity="depth"), "depth.onnx gives 'depth', the manifest says 'disparity'"),
        (depth_graph((48, 64), 5, 45, dtype=onnx.TensorProto.FLOAT), "expects float32, a bundle needs uint8"),
    ],
)
def test_a_graph_that_disagrees_with_the_manifest_is_refused_when_opened(root, graph, words):
    replace_graph(root, graph)
    bundle = load_bundle(root)
    with pytest.raises(BundleError, match=words):
        open_network(bundle.depth)
    replace_graph(root, depth_graph((48, 64), 5, 45))
    assert open_network(load_bundle(root).depth).provider == "cpu"


def test_a_depth_graph_in_the_place_of_the_pose_graph_is_refused(root):
    (root / "pose.onnx").write_bytes((root / "depth.onnx").read_bytes())
    write_manifest(root, load_bundle_text(root))
    with pytest.raises(BundleError, match="pose.onnx takes 'image', the manifest says 'images'"):
        open_network(load_bundle(root).pose)


def test_a_graph_with_open_sizes_fits_every_manifest(root):
    replace_graph(root, depth_graph(None, 5, 45, open_size=True))
    backend = open_network(load_bundle(root).depth)
    assert backend.inputs["image"].shape == (1, None, None, 3)


def test_write_manifest_hashes_the_files_and_leaves_its_argument_alone(root):
    manifest = load_bundle_text(root)
    right = manifest["depth"].pop("sha256")
    before = str(manifest)
    assert write_manifest(root, manifest) == root / "manifest.yaml"
    assert str(manifest) == before
    assert load_bundle(root).depth.sha256 == right
    assert sorted(path.name for path in root.iterdir()) == ["depth.onnx", "manifest.yaml", "pose.onnx"]


def test_write_manifest_refuses_what_would_not_load_and_keeps_the_old_one(root):
    good = (root / "manifest.yaml").read_text()
    manifest = load_bundle_text(root)
    with pytest.raises(BundleError, match="gone.onnx is missing"):
        write_manifest(root, manifest | {"depth": manifest["depth"] | {"file": "gone.onnx"}})
    with pytest.raises(BundleError, match="outside its own folder"):
        write_manifest(root, manifest | {"depth": manifest["depth"] | {"file": "../mock/depth.onnx"}})
    with pytest.raises(BundleError, match="scale.unit"):
        write_manifest(root, manifest | {"scale": {}})
    assert (root / "manifest.yaml").read_text() == good


def test_resize_averages_when_shrinking_and_interpolates_when_growing():
    rgb = np.zeros((4, 8, 3), np.uint8)
    rgb[:, ::2] = (200, 100, 50)  # stripes one pixel wide: only averaging sees all of them
    np.testing.assert_array_equal(resize_rgb(rgb, (2, 4)), np.full((2, 4, 3), (100, 50, 25), np.uint8))
    ramp = np.tile(np.array([0, 100], np.uint8)[None, :, None], (2, 1, 3))
    np.testing.assert_array_equal(resize_rgb(ramp, (2, 4))[0, :, 0], [0, 25, 75, 100])


def test_resize_always_gives_a_new_contiguous_array():
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    same = resize_rgb(rgb, (48, 64))
    np.testing.assert_array_equal(same, rgb)
    assert not np.shares_memory(same, rgb) and same.flags.c_contiguous


@pytest.mark.parametrize("size", [(24, 32), (48, 64), (60, 90), (24, 90)])
def test_resize_of_a_view_equals_resize_of_a_copy(size):
    rng = np.random.default_rng(1)
    bgra = rng.integers(0, 256, (48, 64, 4), dtype=np.uint8)
    padded = rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)
    for view in (bgra[..., 2::-1], bgra[..., :3], padded[:, :64], padded[::-1, 63::-1], padded[:, :64, ::-1]):
        small = resize_rgb(view, size)
        np.testing.assert_array_equal(small, resize_rgb(np.ascontiguousarray(view), size))
        assert small.shape == (*size, 3) and small.flags.c_contiguous


def test_the_default_bundle_is_looked_up_among_the_shipped_files(monkeypatch, tmp_path):
    monkeypatch.setattr(bundles, "share", lambda *parts: tmp_path.joinpath(*parts))
    assert bundles.default_bundle() == tmp_path / "models" / bundles.DEFAULT_BUNDLE
