"""The evaluator on small worlds with known answers: perfect, scaled, wrong and flickering models; broken data."""

import json

import numpy as np
import pytest

from endomust_core import evaluate as evaluate_file
from endomust_core.camera import Camera
from endomust_core.data import DataError, Dataset, Item, Protocol, Sample
from endomust_core.evaluate import EvaluationError, evaluate, markdown, parse_corruption
from endomust_core.evaluation_run import Problems, spread, usual_step
from endomust_core.odometry import inverse, se3, so3_exp

STEP = se3(so3_exp([0, 0.02, 0]), [0, 2e-4, 1e-3])
CAMERA = Camera(32, 24, 26.24, 24.48, 15.5, 11.5)


class World(Dataset):
    """Sequences whose depth in mm is the red channel; the camera moves by STEP from frame to frame."""

    name = "world"
    tasks = ("depth", "pose", "intrinsics")
    protocol = Protocol(1e-3, 0.3, note="made up")

    def __init__(self, root, groups=("a", "b"), frames=6, broken=(), blind=(), indices=None, **changes):
        self.frames, self.broken, self.blind, self.indices = frames, set(broken), set(blind), indices
        self.names = groups
        super().__init__(root)
        for key, value in changes.items():
            setattr(self, key, value)

    def scan(self):
        indices = self.indices or range(self.frames)
        return [Item(f"{group}/{i}", group, i, self.root) for group in self.names for i in indices]

    def load(self, item, depth=True):
        if item.name in self.broken:
            raise DataError("torn in two")
        rng = np.random.default_rng([ord(item.group[0]), item.index])
        red = rng.integers(20, 200, (24, 32), dtype=np.uint8)
        rgb = np.stack([red, np.full_like(red, 90), np.full_like(red, 70)], -1)
        truth = red * np.float32(1e-3)
        if item.name in self.blind:
            truth[:] = np.nan
        pose = np.linalg.matrix_power(STEP, item.index)
        return Sample(item.name, item.group, rgb, truth if depth else None, item.index, CAMERA, pose)


class Oracle:
    """Reads the depth off the red channel and answers with `factor` times it; moves by STEP, scaled too."""

    name, version, backend, path, metric = "oracle", "1", "test/cpu", "nowhere", True

    def __init__(self, factor=1.0, step=STEP, flicker=0.0, intrinsics=(0.8, 1.0, 0.5, 0.5)):
        self.factor, self.step, self.flicker, self.intrinsics, self.asked = factor, step, flicker, intrinsics, 0
        self.digest = f"{hash((factor, flicker)):064x}"[-64:]

    def disparity(self, rgb):
        self.asked += 1
        changing = self.flicker * (int(rgb[..., 0].sum()) % 2)
        return np.float32(1e3) / (np.maximum(rgb[..., 0], 1) * np.float32(self.factor * (1 + changing)))

    def motion(self, previous_rgb, rgb):
        T = self.step.copy()
        T[:3, 3] *= self.factor
        return T, None if self.intrinsics is None else np.array(self.intrinsics)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_perfect_model_has_no_error_and_stands_beside_the_baselines(world):
    report = evaluate(Oracle(), world).report
    assert list(report["depth"]) == ["model", "constant", "centre is far", "inverse-square brightness"]
    assert list(report["depth"]["model"]) == ["a", "b", "all"]
    best = report["depth"]["model"]["all"]
    assert best["abs_rel"] < 1e-6 and best["a1"] == 1.0 and best["ratio"] == pytest.approx(1.0)
    assert best["images"] == 12 and best["coverage"] == 1.0 and best["scale_std"] < 1e-6
    assert report["depth"]["constant"]["all"]["abs_rel"] > 0.1
    assert report["complete"] and not report["problems"] and report["data"]["groups"] == {"a": 6, "b": 6}
    assert report["tasks"] == ["depth", "pose", "intrinsics"] and report["scaling"] == "median"


def test_a_common_factor_is_forgiven_unless_the_score_is_metric(world):
    assert evaluate(Oracle(3.0), world, tasks=["depth"]).report["depth"]["model"]["all"]["abs_rel"] < 1e-6
    metric = evaluate(Oracle(1.5), world, tasks=["depth"], scaling="none").report
    row = metric["depth"]["model"]["all"]
    assert 0.4 < row["abs_rel"] <= 0.5 and row["ratio"] == 1.0  # less than 0.5 where the cap of 0.3 m clamps
    assert metric["scaling"] == "none"
    assert metric["depth"]["constant"]["all"]["ratio"] != 1.0  # baselines know no scale


def test_the_protocol_of_the_data_set_rules(tmp_path):
    world = World(tmp_path, protocol=Protocol(0.05, 0.1, scaling="none"))
    report = evaluate(Oracle(2.0), world, tasks=["depth"]).report
    assert report["scaling"] == "none" and report["data"]["protocol"]["max_depth"] == 0.1
    # Everything said lies beyond 0.1 m and is clamped to it: the error is 0.1 / g - 1 for g in 50…99 mm.
    mean = np.mean([0.1 / (mm / 1e3) - 1 for mm in range(51, 100)])
    assert report["depth"]["model"]["all"]["abs_rel"] == pytest.approx(mean, abs=0.03)


def test_motion_and_intrinsics_have_known_answers(world):
    report = evaluate(Oracle(0.5), world).report
    motion = report["motion"]["a"]
    for key in ("ate_5frame", "ate_5frame_rms", "rpe_translation", "rpe_rotation", "ate_full", "rotation_error"):
        assert motion[key] == pytest.approx(0, abs=1e-7), key  # the path is right, at half the scale
    assert motion["ate_full_se3"] > 1e-4 and motion["frames"] == 6
    assert motion["length"] == pytest.approx(5 * np.linalg.norm(STEP[:3, 3]))
    assert report["motion"]["all"]["length"] == pytest.approx(2 * motion["length"])
    row = report["intrinsics"]["a"]
    assert row["true"] == pytest.approx([0.82, 1.02, 0.5, 0.5]) and row["predicted"] == [0.8, 1.0, 0.5, 0.5]
    assert row["relative_error"] == pytest.approx([0.02 / 0.82, 0.02 / 1.02, 0, 0], abs=1e-12)
    points = report["trajectories"]["a"]
    np.testing.assert_allclose(points["estimate"], points["truth"], atol=1e-6)
    assert len(points["truth"]) == 6


def test_a_wrong_turn_is_found(world):
    straight = STEP.copy()
    straight[:3, :3] = np.eye(3)
    motion = evaluate(Oracle(step=straight), world, tasks=["pose"]).report["motion"]["all"]
    assert motion["rpe_rotation"] == pytest.approx(0.02)
    # Windows of 5, 5, 3+1 … positions; angles 0, .02, .04 … averaged over each.
    windows = [np.mean([0.02 * k for k in range(n)]) for n in (5, 5, 4, 3)]
    assert motion["rotation_error"] == pytest.approx(np.mean(windows))


def test_a_flickering_scale_shows_in_scale_std_and_change_but_not_in_shape(world):
    steady, flickering = (evaluate(Oracle(flicker=f), world).report for f in (0.0, 0.5))
    assert flickering["depth"]["model"]["all"]["abs_rel"] < 1e-6
    assert flickering["depth"]["model"]["all"]["scale_std"] > 0.1 > steady["depth"]["model"]["all"]["scale_std"]
    row, still = flickering["temporal"]["all"], steady["temporal"]["all"]
    assert row["aligned_change"] == pytest.approx(still["aligned_change"], rel=1e-3)
    assert row["change_error"] == pytest.approx(0, abs=1e-6)
    assert still["depth_change"] == pytest.approx(still["true_depth_change"], rel=1e-6)
    assert row["depth_change"] > still["depth_change"] and row["pairs"] == 10


def test_broken_images_are_counted_and_the_rest_is_scored(tmp_path):
    world = World(tmp_path, broken={"a/2", "b/0", "b/1", "b/2", "b/3"}, blind={"a/5"})
    report = evaluate(Oracle(), world).report
    assert not report["complete"]
    text = " | ".join(report["problems"])
    assert "5 images cannot be read" in text and "torn in two" in text and "and 2 more" in text
    assert "1 images have no true depth within the limits: a/5" in text
    assert report["depth"]["model"]["a"]["images"] == 4 and report["data"]["images"] == 7
    assert report["motion"]["a"]["frames"] == 3 and report["motion"]["a"]["pieces"] == 2  # the break cuts the path
    assert "cut these sequences" in " ".join(report["notes"])
    with pytest.raises(EvaluationError, match="none of 12 images can be read; the first.*torn"):
        evaluate(Oracle(), World(tmp_path, broken={f"{g}/{i}" for g in "ab" for i in range(6)}))


def test_frames_that_stand_apart_evenly_are_no_gap(tmp_path):
    report = evaluate(Oracle(), World(tmp_path, groups=("a",), indices=[0, 10, 20, 30, 70, 80])).report
    assert report["motion"]["a"]["pieces"] == 2 and report["motion"]["a"]["frames"] == 4
    assert "stand more than one apart in a (10)" in " ".join(report["notes"])
    assert usual_step([0, 10, 20, 30, 70]) == 10 and usual_step([3]) == 1


def test_predictions_that_hold_nothing_are_named(world):
    class Silent(Oracle):
        def disparity(self, rgb):
            return np.full(rgb.shape[:2], np.nan, np.float32)

        def motion(self, previous_rgb, rgb):
            return np.full((4, 4), np.nan), None

    report = evaluate(Silent(), world).report
    text = " | ".join(report["problems"])
    assert "12 predictions hold no valid depth" in text and "10 predicted motions are not finite" in text
    assert "model" not in report["depth"] and report["depth"]["constant"]["all"]["images"] == 12
    assert report["motion"] == {} and report["curves"] is None
    json.dumps(report, allow_nan=False)


def test_masked_pixels_are_not_scored(tmp_path):
    class Masked(World):
        def load(self, item, depth=True):
            sample = super().load(item, depth)
            mask = np.ones((24, 32), bool)
            mask[:, 16:] = False
            sample.depth[:, 16:] *= 7  # wrong where nobody looks
            return Sample(*(getattr(sample, f) for f in ("name", "group", "rgb", "depth", "index")), mask=mask)

    report = evaluate(Oracle(), Masked(tmp_path), tasks=["depth"]).report
    assert report["depth"]["model"]["all"]["abs_rel"] < 1e-6


def test_the_files_are_complete_or_absent(world, tmp_path):
    out = tmp_path / "out"
    result = evaluate(Oracle(), world, out=out, command="endomust evaluate")
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(result.report))
    rows = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 12
    first = rows[0]
    assert (first["name"], first["group"], first["index"], first["predictor"]) == ("a/0", "a", 0, "model")
    assert {"abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3", "ratio", "coverage"} <= first.keys()
    means = {}
    for row in rows:
        means.setdefault(row["predictor"], []).append(row["abs_rel"])
    assert np.mean(means["constant"]) == pytest.approx(result.report["depth"]["constant"]["all"]["abs_rel"])
    assert sorted(p.name for p in out.iterdir()) == ["images.jsonl", "report.json"]

    class Stops(Oracle):
        def disparity(self, rgb):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Stops(), world, out=tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_a_full_disk_is_said_in_words(world, tmp_path, monkeypatch):
    def full(*arguments, **changes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate_file.os, "replace", full)
    with pytest.raises(EvaluationError, match="disk of .* is full; make room"):
        evaluate(Oracle(), world, out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_kept_predictions_give_the_same_report_and_a_changed_model_another(world, tmp_path):
    def scores(model):
        return evaluate(model, world, cache=tmp_path / "cache").report

    first, again = Oracle(flicker=0.3), Oracle(flicker=0.3)
    before, after = scores(first), scores(again)
    assert first.asked == 12 + 0 and again.asked == 0  # the pictures come from the cache too
    assert before["depth"] == after["depth"] and before["motion"] == after["motion"]
    assert after["predictions"]["new"] == 0 and after["latency"]["depth"] is None
    assert before["latency"]["depth"]["calls"] == 11
    changed = Oracle(flicker=0.4)
    scores(changed)
    assert changed.asked == 12


def test_best_median_and_worst_frames_are_shown_as_they_were_scored(tmp_path):
    class OneBad(Oracle):
        def disparity(self, rgb):
            depth = super().disparity(rgb)
            first = int(rgb[0, 0, 0])
            depth[:12] *= 1 + first / 400  # every image is wrong by another amount
            return depth

    result = evaluate(OneBad(), World(tmp_path, groups=("a", "b", "c")))
    assert [shown.kind for shown in result.shown] == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert len({shown.caption for shown in result.shown}) == 6
    errors = {
        kind: np.mean([s.abs_rel for s in result.shown if s.kind == kind]) for kind in ("best", "median", "worst")
    }
    assert errors["best"] < errors["median"] < errors["worst"]
    for shown in result.shown:
        known = np.isfinite(shown.truth)
        error = np.mean(np.abs(shown.depth[known] - shown.truth[known]) / shown.truth[known])
        assert error == pytest.approx(shown.abs_rel, rel=1e-4)
        assert shown.rgb.shape == (24, 32, 3)


def test_shown_frames_come_from_different_sequences_or_stand_apart():
    entries = [(0.1, 0, "a/0", "a", 1.0), (0.2, 1, "a/1", "a", 1.0), (0.3, 9, "b/0", "b", 1.0)]
    assert [entry[2] for entry in spread(entries, 2, groups=2, apart=1, used=set())] == ["a/0", "b/0"]
    one = [(0.1 * n, n, f"a/{n}", "a", 1.0) for n in range(10)]
    assert [entry[1] for entry in spread(one, 3, groups=1, apart=4, used={0})] == [1, 5, 9]
    assert [entry[1] for entry in spread(one[:2], 3, groups=1, apart=4, used=set())] == [0, 1]  # too few to be apart


def test_curves_say_where_the_error_is(tmp_path):
    class FarIsWrong(Oracle):
        def disparity(self, rgb):
            depth = rgb[..., 0] * np.float32(1e-3)
            return 1 / np.where(depth > 0.15, 2 * depth, depth)

    curves = evaluate(FarIsWrong(), World(tmp_path), tasks=["depth"]).report["curves"]
    distance = curves["distance"]
    assert len(distance["edges"]) == len(distance["abs_rel"]) + 1 and sum(distance["pixels"]) == 12 * 24 * 32
    far = [e for edge, e in zip(distance["edges"], distance["abs_rel"], strict=False) if edge > 0.15 and e is not None]
    near = [
        e for edge, e in zip(distance["edges"][1:], distance["abs_rel"], strict=True) if edge < 0.15 and e is not None
    ]
    assert min(far) > 0.4 and max(near) < 1e-5
    assert None in distance["abs_rel"]  # nothing lies within the nearest bin
    brightness = curves["brightness"]
    assert brightness["edges"][0] == 0 and brightness["edges"][-1] == 255
    assert sum(brightness["pixels"]) == 12 * 24 * 32


def test_limit_takes_the_first_images_of_every_sequence_and_says_so(world):
    report = evaluate(Oracle(), world, limit=2).report
    assert report["data"]["groups"] == {"a": 2, "b": 2} and report["data"]["limit"] == 2
    assert "only the first 2 images" in report["notes"][0] and report["complete"]


def test_progress_counts_to_what_was_announced(world):
    seen = []
    evaluate(Oracle(), world, tasks=["depth"], corruption="jpeg", progress=lambda *row: seen.append(row))
    assert seen[0] == (1, 72) and seen[-1] == (72, 72) and [done for done, _ in seen] == list(range(1, 73))


def test_degradation_reports_every_severity(world):
    report = evaluate(Oracle(), world, tasks=["depth"], corruption="noise,jpeg").report
    table = report["degradation"]
    assert list(table) == ["clean", "noise", "jpeg"] and list(table["noise"]) == ["1", "2", "3", "4", "5"]
    assert table["clean"]["abs_rel"] == report["depth"]["model"]["all"]["abs_rel"]  # the table itself stays clean
    errors = [table["noise"][severity]["abs_rel"] for severity in "12345"]
    assert errors[0] > table["clean"]["abs_rel"] and errors[4] > 2 * errors[0]
    assert report["corruption"] is None


def test_one_corruption_scores_corrupted_images_only(world, tmp_path):
    result = evaluate(Oracle(), world, tasks=["depth"], corruption="noise:5")
    assert result.report["corruption"] == {"name": "noise", "severity": 5} and result.report["degradation"] is None
    assert result.report["depth"]["model"]["all"]["abs_rel"] > 0.01
    assert (result.shown[0].rgb[..., 1] != 90).any()  # the picture shows what the model saw


def test_dropped_frames_make_longer_steps_and_no_gap(tmp_path):
    class Follows(World):
        """Red says the frame's number too, so that the oracle knows how far the camera went."""

        def load(self, item, depth=True):
            sample = super().load(item, depth)
            sample.rgb[..., 2] = item.index
            return sample

    class Watching(Oracle):
        def motion(self, previous_rgb, rgb):
            steps = int(rgb[0, 0, 2]) - int(previous_rgb[0, 0, 2])
            return np.linalg.matrix_power(STEP, steps), None

    report = evaluate(Watching(), Follows(tmp_path, frames=40), corruption=("dropped_frames", 5)).report
    assert 20 < report["data"]["images"] < 70 and "dropped on purpose" in " ".join(report["notes"])
    assert report["motion"]["all"]["ate_full"] == pytest.approx(0, abs=1e-7)
    assert report["motion"]["a"]["pieces"] == 1 and report["complete"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": ["flow"]}, "'flow' is unknown; choose from depth, pose"),
        ({"scaling": "mean"}, "use 'median' or 'none'"),
        ({"corruption": "smog"}, "did you mean 'smoke'"),
        ({"corruption": "smoke:9"}, "write smoke:1"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(world, arguments, words):
    model = Oracle()
    with pytest.raises(EvaluationError, match=words):
        evaluate(model, world, **arguments)
    assert model.asked == 0


def test_tasks_without_truth_or_without_a_network_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="no truth for 'pose', only for depth"):
        evaluate(Oracle(), World(tmp_path, tasks=("depth",)), tasks=["pose"])

    class DepthOnly(Oracle):
        def motion(self, previous_rgb, rgb):
            return None

    with pytest.raises(EvaluationError, match="no network for the motion"):
        evaluate(DepthOnly(), World(tmp_path))
    report = evaluate(Oracle(), World(tmp_path, tasks=())).report  # no truth at all: steadiness and time are left
    assert report["depth"] == {} and report["temporal"]["all"]["pairs"] == 10 and report["latency"]["depth"]


def test_poses_alone_do_not_read_or_predict_depth(world):
    model = Oracle(intrinsics=None)
    report = evaluate(model, world, tasks=["pose", "intrinsics"]).report
    assert model.asked == 0 and report["depth"] == {} and report["motion"]["all"]["frames"] == 12
    assert report["intrinsics"] == {} and "says no intrinsics" in " ".join(report["notes"])


def test_single_frames_have_no_motion_which_is_said(tmp_path):
    report = evaluate(Oracle(), World(tmp_path, frames=1)).report
    assert report["motion"] == {} and report["intrinsics"] == {} and report["complete"]
    assert "no two frames follow each other" in " ".join(report["notes"])


def test_true_motion_is_that_of_the_data_set(world):
    """STEP is T_prev_curr of the poses: camera to world, the way the data sets give them."""
    first, second = world[0], world[1]
    np.testing.assert_allclose(inverse(first.T_world_camera) @ second.T_world_camera, STEP, atol=1e-12)


def test_parse_corruption_reads_every_form():
    assert parse_corruption(None) == (None, []) == parse_corruption("")
    assert parse_corruption("smoke:3") == (("smoke", 3), []) == parse_corruption(("smoke", 3))
    assert parse_corruption("smoke, blood,smoke") == (None, ["smoke", "blood"])
    assert "dropped_frames" in parse_corruption("all")[1]


def test_problems_do_not_grow_with_the_data():
    problems = Problems()
    for number in range(1000):
        problems.add("images cannot be read", f"image {number}")
    assert problems.sentences() == ["1000 images cannot be read: image 0; image 1; image 2 and 997 more"]


def test_the_table_in_markdown_is_in_millimetres_and_names_one_sequence_once(tmp_path):
    table = evaluate(Oracle(), World(tmp_path, groups=("a",)), tasks=["depth"]).report["depth"]
    lines = markdown(table).splitlines()
    assert len(lines) == 2 + 4 and "| model | a |" in lines[2] and "RMSE [mm]" in lines[0]
    cell = float(lines[3].split("|")[5])
    assert cell == pytest.approx(1e3 * table["constant"]["a"]["rmse"], abs=1e-3)
