"""Downloads become sequences in our layout: whole or not there, checked, resumable, with what is wrong in words."""

import errno
import subprocess
from pathlib import Path

import cv2
import dataset_imitations as fake
import numpy as np
import pytest
import yaml
from dataset_imitations import depth_mm, number_of, number_of_grey, pose_at

from endomust_core.data import DataError, open_dataset
from endomust_core.data.sequences import open_sequences
from endomust_core.prepare import prepare
from endomust_core.preparing import writer as writer_file
from endomust_core.preparing.alignment import check_alignment
from endomust_core.preparing.motion_check import check_motion
from endomust_core.preparing.writer import verify

SIZE = (64, 96)


def boxes(number, size=SIZE):
    """(H,W) bool: a pattern of boxes that moves 3 px a frame."""
    rng = np.random.default_rng(5)
    wide = np.zeros((size[0], size[1] * 3), np.uint8)
    for _ in range(26):
        x, y = int(rng.integers(0, wide.shape[1] - 20)), int(rng.integers(0, size[0] - 12))
        wide[y : y + 12, x : x + 16] = 1
    start = 20 + 3 * number
    return wide[:, start : start + size[1]] > 0


def scene(frames, late=0):
    """Images and stacked truth of a wall with boxes; images `late` frames behind their truth."""
    images = [np.repeat(np.where(boxes(n - late), 210, 60)[..., None], 3, 2).astype(np.uint8) for n in range(frames)]
    truths = []
    for n in range(frames):
        z = np.where(boxes(n), 50, 70).astype(np.float32)
        left = np.dstack([z, z, z])
        truths.append(np.vstack([left, left]).astype(np.float32))
    return images, truths


def still(n):
    """frame_data of a camera that does not move."""
    return fake.frame_data(0)


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


# --- SCARED


def test_the_download_of_scared_becomes_the_samples_that_it_holds(tmp_path):
    fake.write_scared_raw(tmp_path / "raw", frames=4)
    fake.write_scared_raw(tmp_path / "raw", "dataset_8/keyframe_0", 2)
    told = []
    report = prepare("scared", tmp_path / "raw", tmp_path / "out", progress=lambda *counts: told.append(counts))
    assert report.complete and told[-1] == (6, 6), report.text()
    assert [one.name for one in report.sequences] == ["dataset1/keyframe1", "dataset8/keyframe1"]  # counted from 1
    first = report.sequences[0]
    assert (first.frames, first.depth_frames, first.poses, first.reused) == (4, 4, 4, False)
    assert first.depth_range_m == pytest.approx((0.04, (43 + 0.25 * 39) * 1e-3), abs=1e-6)
    dataset = open_dataset(f"scared:{tmp_path / 'out'}", "dataset1/keyframe1")
    assert dataset.tasks == ("depth", "pose", "intrinsics")
    for number, sample in enumerate(dataset):
        assert sample.index == number + 1 and number_of_grey(sample.rgb) == number  # the upper half, in order
        assert sample.depth[10] == pytest.approx(depth_mm(number)[10] * 1e-3, abs=6e-6)
        assert np.isnan(sample.depth[:4, :4]).all()
        assert sample.T_world_camera == pytest.approx(pose_at(number), abs=1e-8)
        assert sample.camera.fx == pytest.approx(900) and sample.camera.D[0] == pytest.approx(-0.01)
    (sequence, _) = open_sequences(f"rendered:{tmp_path / 'out'}")
    assert [frame.index for frame in sequence] == [0, 1, 2, 3] and sequence.lens is not None
    assert len(open_sequences(f"scared:{tmp_path / 'out'}#dataset8/keyframe1")) == 1


def test_a_published_tree_of_scared_can_be_prepared_too_and_keeps_its_names(tmp_path):
    fake.write_scared_af(tmp_path / "raw", frames=3)
    assert prepare("scared", tmp_path / "raw", tmp_path / "out").complete
    before, after = open_dataset(f"scared:{tmp_path / 'raw'}"), open_dataset(f"scared:{tmp_path / 'out'}")
    assert [sample.name for sample in before] == [sample.name for sample in after]
    for ours, theirs in zip(after, before, strict=True):
        assert np.array_equal(ours.rgb, theirs.rgb)
        assert ours.depth == pytest.approx(theirs.depth, abs=6e-6, nan_ok=True)
        assert ours.T_world_camera == pytest.approx(theirs.T_world_camera, abs=1e-8)


def test_checksums_hold_and_tell_what_has_changed(tmp_path):
    fake.write_scared_raw(tmp_path / "raw", frames=2)
    out = tmp_path / "out"
    prepare("scared", tmp_path / "raw", out)
    assert verify(out) == []
    told = subprocess.run(["sha256sum", "-c", "--quiet", "checksums.txt"], cwd=out, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
    (out / "dataset1/keyframe1/depth/000001.png").write_bytes(b"x")
    (out / "dataset1/keyframe1/camera.yaml").unlink()
    assert verify(out) == ["dataset1/keyframe1/camera.yaml", "dataset1/keyframe1/depth/000001.png"]
    with pytest.raises(DataError, match="no checksums.txt"):
        verify(tmp_path / "raw")


def test_a_finished_sequence_is_left_alone_until_its_download_changes(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    fake.write_scared_raw(raw, frames=2)
    prepare("scared", raw, out)
    mark = (out / "dataset1/keyframe1/rgb/000000.png").stat().st_mtime_ns
    fake.write_scared_raw(raw, "dataset_2/keyframe_1", 2)
    again = prepare("scared", raw, out)
    assert [one.reused for one in again.sequences] == [True, False] and again.complete
    assert (out / "dataset1/keyframe1/rgb/000000.png").stat().st_mtime_ns == mark
    (out / "dataset1/keyframe1/rgb/000001.png").unlink()  # somebody tidied up
    assert [one.reused for one in prepare("scared", raw, out).sequences] == [False, True]
    fake.write_scared_raw(raw, frames=3)
    third = prepare("scared", raw, out)
    assert [(one.frames, one.reused) for one in third.sequences] == [(3, False), (2, True)]


def test_an_interrupted_sequence_leaves_nothing_and_is_done_again(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    fake.write_scared_raw(raw, frames=3)
    fake.write_scared_raw(raw, "dataset_2/keyframe_1", 3)

    def stop(done, announced):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("scared", raw, out, progress=stop)
    assert (out / "dataset1/keyframe1/meta.yaml").exists() and not list(out.glob("dataset2/*"))
    assert not (out / "prepared.yaml").exists()
    left = out / "dataset2/keyframe1.part/rgb"  # what a killed process leaves
    left.mkdir(parents=True)
    (left / "000009.png").write_bytes(b"half")
    report = prepare("scared", raw, out)
    assert [one.reused for one in report.sequences] == [True, False] and report.complete
    assert not [name for name in files_below(out) if ".part" in name or "000009" in name]


def test_a_truncated_archive_is_counted_and_the_rest_is_kept(tmp_path):
    raw = tmp_path / "raw"
    rng = np.random.default_rng(0)
    noisy = [fake.scene_points(n) + rng.random((64, 40, 3), np.float32) for n in range(6)]  # does not compress away
    archive = fake.write_scared_raw(raw, frames=6, depths=noisy) / "data/scene_points.tar.gz"
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    report = prepare("scared", raw, tmp_path / "out")
    (one,) = report.sequences
    assert not report.complete and 0 < one.depth_frames < 6 and one.frames == 6 and one.poses == 6
    assert "scene_points.tar.gz is cut short or broken after" in report.text() and "INCOMPLETE" in report.text()
    assert any(sentence.startswith("depth of frame") for sentence in one.problems)
    dataset = open_dataset(f"scared:{tmp_path / 'out'}")
    good = 0
    for number in range(6):
        try:
            good += dataset[number].depth is not None
        except DataError as error:
            assert "depth/" in str(error) and "is missing" in str(error)
    assert good == one.depth_frames
    again = prepare("scared", raw, tmp_path / "out")
    assert again.sequences[0].reused and not again.complete  # still says so


def test_what_is_missing_or_broken_in_a_download_is_named(tmp_path):
    raw = tmp_path / "raw"
    depths = [fake.scene_points(n) for n in range(4)]
    depths[1][:] = np.nan
    depths[2] = np.zeros((8, 8), np.uint8)
    folder = fake.write_scared_raw(raw, frames=4, depths=depths, poses=lambda n: fake.frame_data(n) if n else "{}")
    report = prepare("scared", raw, tmp_path / "out")
    text = report.text()
    assert "depth of frame 2 cannot be read" in text and "pose of frame 0 cannot be read" in text
    assert report.sequences[0].depth_frames == 3 and report.sequences[0].poses == 3
    (folder / "data/frame_data.tar.gz").unlink()
    (folder / "data/scene_points.tar.gz").write_bytes(b"no archive")
    text = prepare("scared", raw, tmp_path / "out").text()
    assert "frame_data.tar.gz is missing" in text and "scene_points.tar.gz does not open" in text
    (folder / "endoscope_calibration.yaml").unlink()
    fake.write_scared_raw(raw, "dataset_2/keyframe_1", 2)
    report = prepare("scared", raw, tmp_path / "out")
    assert "dataset1/keyframe1 could not be prepared: " in report.text() and len(report.sequences) == 1
    assert not (tmp_path / "out/dataset1/keyframe1.part").exists()


# --- is the truth where the image is?


@pytest.mark.parametrize("late", [0, 2])
def test_alignment_finds_images_that_come_late(tmp_path, late):
    images, truths = scene(24, late)
    fake.write_scared_raw(tmp_path / "raw", frames=24, images=images, depths=truths, poses=still)
    report = prepare("scared", tmp_path / "raw", tmp_path / "out")
    (one,) = report.sequences
    shifted = [sentence for sentence in one.problems if "shifted" in sentence]
    if late:
        assert "the image 2 frames after fits each depth better" in shifted[0]
    else:
        assert not shifted and not any("could not be decided" in remark for remark in one.remarks)
    found = check_alignment(open_dataset(f"rendered:{tmp_path / 'out'}"))
    assert (found.offset, found.decided) == (late, True) and len(found.correlations) == 11


def test_alignment_says_nothing_of_a_camera_that_stands_still(tmp_path):
    images, truths = scene(1)
    fake.write_scared_raw(tmp_path / "raw", frames=14, images=images * 14, depths=truths * 14, poses=still)
    report = prepare("scared", tmp_path / "raw", tmp_path / "out")
    assert report.complete and any("could not be decided" in remark for remark in report.sequences[0].remarks)


def write_plane(root, change=lambda T: T):
    """Frames of a plane across the axis, seen by a camera that goes straight towards it, 2 mm a frame."""
    folder = root / "SyntheticColon_I/Frames_S1"
    positions = []
    for number in range(24):
        fake.save(folder / f"FrameBuffer_{number:04d}.png", fake.rgb_of(number, (95, 95)))
        level = (100 - 2 * number) / 200 * 255 * 256
        fake.save(folder / f"Depth_{number:04d}.png", np.full((95, 95), round(level), np.uint16))
        positions.append(change(np.array([0, 0, 0.2 * number])))
    np.savetxt(folder.parent / "SavedPosition_S1.txt", positions)
    np.savetxt(folder.parent / "SavedRotationQuaternion_S1.txt", [(0, 0, 0, 1)] * 24)
    return root


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda t: t, None), (lambda t: -t, "look inverted"), (lambda t: 1e-3 * t, "a thousand times too small")],
)
def test_poses_that_depth_contradicts_are_named(tmp_path, change, words):
    dataset = open_dataset(f"simcol3d:{write_plane(tmp_path, change)}")
    sentence = check_motion(dataset)
    assert sentence is None if words is None else words in sentence


# --- the others


def test_stereomis_is_split_and_keeps_its_masks(tmp_path):
    fake.write_stereomis(tmp_path / "raw")
    report = prepare("stereomis", tmp_path / "raw", tmp_path / "out")
    assert report.complete and (report.sequences[0].frames, report.sequences[0].poses) == (6, 6)
    for name in ("stereomis", "rendered"):
        dataset = open_dataset(f"{name}:{tmp_path / 'out'}")
        assert dataset.name == "stereomis" and dataset.tasks == ("pose", "intrinsics")
        assert [number_of_grey(sample.rgb) for sample in dataset] == list(range(6))
        assert not dataset[1].mask[:, :20].any() and dataset[1].mask[:, 20:].all() and dataset[5].mask is None
        assert dataset[4].T_world_camera == pytest.approx(pose_at(4), abs=1e-6) and dataset[0].depth is None
    with pytest.raises(DataError, match="prepared from stereomis"):
        open_dataset(f"hamlyn:{tmp_path / 'out'}")


def test_a_prepared_set_scores_as_the_set_itself(tmp_path):
    folder = fake.write_hamlyn(tmp_path / "raw", 14, 3, (288, 720))
    (folder / "depth01/0000000001.png").unlink()
    report = prepare("hamlyn", tmp_path / "raw", tmp_path / "out")
    assert not report.complete and "depth of frame 1 missing or broken, of 3 frames" in report.text()
    ours, theirs = open_dataset(f"hamlyn:{tmp_path / 'out'}"), open_dataset(f"hamlyn:{tmp_path / 'raw'}")
    assert ours.protocol == theirs.protocol and ours.tasks == theirs.tasks
    assert ours[2].rgb.shape == (288, 410, 3) and np.array_equal(ours[2].rgb, theirs[2].rgb)
    assert ours[2].depth == pytest.approx(theirs[2].depth, abs=6e-6, nan_ok=True)
    with pytest.raises(DataError, match="000001: depth/000001.png is missing"):
        ours[1]


def test_stills_keep_their_own_cameras(tmp_path):
    fake.write_servct(tmp_path / "raw")
    report = prepare("servct", tmp_path / "raw", tmp_path / "out")
    assert [one.name for one in report.sequences] == ["Experiment_1/001", "Experiment_1/002"] and report.complete
    dataset = open_dataset(f"servct:{tmp_path / 'out'}")
    assert number_of(dataset[1].rgb) == 2 and dataset[1].camera.fx == 900


def test_depth_beyond_sixteen_bits_becomes_unknown_and_is_said(tmp_path):
    folder = fake.write_hamlyn(tmp_path / "raw", frames=1)
    units = np.full((fake.HEIGHT, fake.WIDTH), 60, np.uint16)
    units[0] = 5000
    fake.save(folder / "depth01/0000000000.png", units)
    report = prepare("hamlyn", tmp_path / "raw", tmp_path / "out")
    assert report.complete and "40 depth values beyond 0.66 m are stored as unknown" in report.text()
    sample = open_dataset(f"hamlyn:{tmp_path / 'out'}")[0]
    assert np.isnan(sample.depth[0]).all() and sample.depth[5] == pytest.approx(0.06)
    meta = yaml.safe_load((tmp_path / "out/rectified01/meta.yaml").read_text())
    assert meta["data_set"] == "hamlyn" and meta["frames"] == 1


# --- what stops it


def test_wrong_places_are_refused(tmp_path):
    fake.write_scared_raw(tmp_path / "raw", frames=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("mine")
    for raw, out, words in (
        ("away", "out", "does not exist; give the unpacked download"),
        ("raw", "raw/out", "lies in the download"),
        ("raw", "full", "holds something else"),
        ("full", "out", "expected"),
    ):
        with pytest.raises(DataError, match=words):
            prepare("scared", tmp_path / raw, tmp_path / out)
    with pytest.raises(DataError, match="needs no preparing; open it as folder:"):
        prepare("folder", tmp_path, tmp_path / "out")
    assert files_below(tmp_path / "full") == ["thesis.tex"]


def test_a_full_disk_is_said_in_words_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    fake.write_scared_raw(tmp_path / "raw", frames=3)
    fake.write_scared_raw(tmp_path / "raw", "dataset_2/keyframe_1", 3)
    encode, count = cv2.imencode, [0]

    def full(*arguments):
        count[0] += 1
        if count[0] > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(*arguments)

    monkeypatch.setattr(writer_file.cv2, "imencode", full)
    with pytest.raises(DataError, match="disk of .* is full .* run the command again"):
        prepare("scared", tmp_path / "raw", tmp_path / "out")
    monkeypatch.undo()
    assert not [name for name in files_below(tmp_path / "out") if "dataset2" in name or ".part" in name]
    report = prepare("scared", tmp_path / "raw", tmp_path / "out")
    assert [one.reused for one in report.sequences] == [True, False]
