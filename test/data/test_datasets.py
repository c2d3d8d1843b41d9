"""Every public data set opens an imitation of its tree, lengths in metres, and says what is wrong with another."""

import json

import dataset_imitations as fake
import numpy as np
import pytest
from dataset_imitations import HEIGHT, WIDTH, depth_mm, number_of, number_of_grey, pose_at

from endomust_core.camera import save_camera
from endomust_core.data import DATASETS, DataError, Dataset, dataset_class, open_dataset
from endomust_core.data.c3vd import CENTRE, CROP, POLYNOMIAL, fisheye
from endomust_core.data.reading import VideoFrames, read_depth, read_numbers
from endomust_core.data.scared import VALIDATION, read_split
from endomust_core.data.sequences import Frame, open_sequences, straightened


def checked(dataset):
    """The properties that every data set has, on every sample."""
    names = [sample.name for sample in dataset]
    assert len(names) == len(dataset) == len(set(names))
    covered = []
    for group, numbers in dataset.groups().items():
        covered += numbers
        indices = [dataset[number].index for number in numbers]
        assert indices == sorted(set(indices)) and all(dataset[number].group == group for number in numbers)
    assert covered == list(range(len(dataset)))
    assert 0 < dataset.protocol.min_depth < dataset.protocol.max_depth and dataset.protocol.note
    for sample in dataset:
        assert sample.rgb.dtype == np.uint8 and sample.rgb.flags.c_contiguous
        if "depth" in dataset.tasks:
            assert sample.depth.dtype == np.float32 and sample.depth.shape == sample.rgb.shape[:2]
            assert np.nanmin(sample.depth) > 0
        if "intrinsics" in dataset.tasks:
            assert (sample.camera.width, sample.camera.height) == sample.rgb.shape[1::-1]
    bare = dataset.read(0, depth=False)
    assert bare.depth is None and np.array_equal(bare.rgb, dataset[0].rgb)
    return dataset


def test_every_name_has_a_class_with_a_layout_and_a_range():
    for name in DATASETS:
        kind = dataset_class(name)
        assert issubclass(kind, Dataset) and kind.name == name and "expected" in kind.LAYOUT
        assert kind.protocol.scaling == "median"


# --- SCARED


@pytest.mark.parametrize("write", [fake.write_scared_af, fake.write_scared_endodac])
def test_both_published_trees_of_scared_give_the_same_samples(tmp_path, write):
    write(tmp_path, frames=3)
    write(tmp_path, "dataset8/keyframe1", 2)
    dataset = checked(open_dataset(f"scared:{tmp_path}"))
    assert dataset.tasks == ("depth", "pose", "intrinsics") and len(dataset) == 5
    assert list(dataset.groups()) == ["dataset1/keyframe3", "dataset8/keyframe1"]
    sample = dataset[2]
    assert (sample.name, sample.index, number_of(sample.rgb)) == ("dataset1/keyframe3/000003", 3, 2)
    assert sample.depth[10] == pytest.approx(depth_mm(2)[10] * 1e-3) and np.isnan(sample.depth[:4, :4]).all()
    assert sample.T_world_camera == pytest.approx(pose_at(2), abs=1e-9)
    assert sample.camera.fx / sample.camera.width == pytest.approx(0.82)
    assert dataset.protocol.max_depth == 0.15 and "256 mm" in dataset.protocol.note


def test_relative_motion_of_scared_is_that_of_the_published_evaluation(tmp_path):
    fake.write_scared_af(tmp_path, frames=3)
    first, second = (open_dataset(f"scared:{tmp_path}")[i].T_world_camera for i in (0, 1))
    P = [np.array(json.loads(fake.frame_data(i))["camera-pose"]) for i in (0, 1)]
    published = P[1] @ np.linalg.pinv(P[0])  # maps points of the first camera into the second, mm
    ours = np.linalg.inv(second) @ first
    assert ours[:3, :3] == pytest.approx(published[:3, :3], abs=1e-9)
    assert ours[:3, 3] == pytest.approx(published[:3, 3] * 1e-3, abs=1e-9)


def test_a_split_list_takes_any_white_space_and_keeps_names(tmp_path):
    fake.write_scared_af(tmp_path / "data", frames=5)
    lists = tmp_path / "data/splits/endovis"
    lists.mkdir(parents=True)
    (lists / "test_files.txt").write_text("dataset1/keyframe3\t4\tl\ndataset1/keyframe3       2       l")
    dataset = open_dataset(f"scared:{tmp_path / 'data'}", "test")
    assert [sample.index for sample in dataset] == [2, 4]  # in the order of time
    assert len(open_dataset(f"scared:{tmp_path / 'data'}#test")) == 2
    own = tmp_path / "mine.txt"
    own.write_text("dataset1/keyframe3 5 l\n")
    assert open_dataset(f"scared:{tmp_path / 'data'}", str(own))[0].name == "dataset1/keyframe3/000005"
    for text, words in (("dataset1 x l", "line 1"), ("", "lists no frame"), ("a/b 1 l\na/b 1 l\n", "twice")):
        own.write_text(text)
        with pytest.raises(DataError, match=words):
            read_split(own)


def test_lists_that_follow_no_rule_are_not_made_up(tmp_path):
    fake.write_scared_af(tmp_path)
    for split in ("test", "train"):
        with pytest.raises(DataError, match=f"{split} list .* follows no rule.*splits/endovis/{split}_files.txt"):
            open_dataset(f"scared:{tmp_path}", split)
    with pytest.raises(DataError, match="there is no list .*away.txt"):
        open_dataset(f"scared:{tmp_path}", "/away.txt")
    with pytest.raises(DataError, match="(?s)no split 'dataset1/keyframe9'; did you mean dataset1/keyframe3"):
        open_dataset(f"scared:{tmp_path}", "dataset1/keyframe9")
    assert len(open_dataset(f"scared:{tmp_path}", "dataset1/keyframe3")) == 5
    with pytest.raises(DataError, match="lacks dataset2/keyframe4"):
        open_dataset(f"scared:{tmp_path}", "pose")


def test_the_validation_list_is_a_rule(tmp_path):
    assert sum(last - 1 for last in VALIDATION.values()) == 1705
    fake.write_scared_af(tmp_path, "dataset2/keyframe3", 3)
    dataset = open_dataset(f"scared:{tmp_path}", "val")
    assert len(dataset) == 1705 and dataset[0].index == 2 and dataset[1].index == 3
    with pytest.raises(DataError, match="dataset2/keyframe3/000004: .*0000000004.png is missing"):
        dataset[2]
    with pytest.raises(DataError, match="dataset3/keyframe3 is not below"):
        dataset[300]


def test_broken_frames_of_scared_are_named_and_the_rest_is_read(tmp_path):
    truth = fake.write_scared_af(tmp_path, frames=6) / "image_02/data/groundtruth"
    (truth / "scene_points000001.tiff").unlink()
    fake.save(truth / "scene_points000002.tiff", fake.scene_points(2)[:HEIGHT])
    fake.save(truth / "scene_points000003.tiff", np.zeros((64, 40), np.uint8))
    nan = fake.scene_points(4)
    nan[:HEIGHT] = np.nan
    fake.save(truth / "scene_points000004.tiff", nan)
    whole = (truth / "scene_points000005.tiff").read_bytes()
    (truth / "scene_points000005.tiff").write_bytes(whole[: len(whole) // 2])
    dataset = open_dataset(f"scared:{tmp_path}")
    for number, words in ((1, "000001.tiff is missing"), (2, "one size"), (3, "expected float32"), (5, "cut short")):
        with pytest.raises(DataError, match=f"dataset1/keyframe3/00000{number + 1}: .*{words}"):
            dataset[number]
        assert dataset.read(number, depth=False).T_world_camera is not None  # the image and its pose are still good
    assert np.isnan(dataset[4].depth).all() and not np.isnan(dataset[0].depth).all()


def test_the_download_itself_is_sent_to_prepare_and_its_stills_open(tmp_path):
    fake.write_scared_raw(tmp_path, frames=2)
    with pytest.raises(DataError, match="endomust prepare scared --raw"):
        open_dataset(f"scared:{tmp_path}")
    fake.write_scared_still(tmp_path)
    (still,) = checked(open_dataset(f"scared:{tmp_path}", "keyframes"))
    assert still.name == "dataset8/keyframe1"  # counted from 0 on disk, from 1 in the lists
    assert still.depth[10] == pytest.approx(depth_mm(4)[10] * 1e-3) and np.isnan(still.depth[:4, :4]).all()
    assert still.camera.fx == pytest.approx(900) and still.camera.is_distorted


# --- the others


def test_hamlyn_is_in_millimetres_and_cut_after_sequence_13(tmp_path):
    fake.write_hamlyn(tmp_path, 1)
    fake.write_hamlyn(tmp_path, 14, 1, (288, 720))
    dataset = checked(open_dataset(f"hamlyn:{tmp_path}"))
    assert list(dataset.groups()) == ["rectified01", "rectified14"] and dataset.tasks == ("depth", "intrinsics")
    assert dataset[1].depth[10] == pytest.approx(np.rint(depth_mm(1)[10]) * 1e-3)
    assert np.isnan(dataset[1].depth[:4, :4]).all() and dataset[0].camera.cx == pytest.approx(200)
    cut = dataset[3]
    assert cut.rgb.shape == (288, 410, 3) and cut.camera.cx == pytest.approx(20)
    assert cut.depth[10] == pytest.approx(np.rint(depth_mm(0, (288, 720))[10, 180:590]) * 1e-3)


def test_hamlyn_counts_the_frames_that_the_published_lists_count(tmp_path):
    folder = fake.write_hamlyn(tmp_path, 4, 4)
    (folder / "depth02/0000000002.png").unlink()
    assert [sample.index for sample in open_dataset(f"hamlyn:{tmp_path}")] == [0, 1, 3]
    (folder / "depth01/0000000001.png").unlink()
    with pytest.raises(DataError, match="rectified04/0000000001: depth01/0000000001.png is missing"):
        open_dataset(f"hamlyn:{tmp_path}")[1]
    fake.write_hamlyn(tmp_path / "left", 20, 1, right=False)
    with pytest.raises(DataError, match="another version of the set"):
        open_dataset(f"hamlyn:{tmp_path / 'left'}")


@pytest.mark.parametrize("transposed", [True, False])
def test_c3vd_is_cut_and_knows_how_its_fisheye_bends(tmp_path, transposed):
    fake.write_c3vd(tmp_path, transposed=transposed, padded=not transposed)
    dataset = open_dataset(f"c3vd:{tmp_path}")
    sample = dataset[1]
    assert sample.rgb.shape == (720, 950, 3) and number_of_grey(sample.rgb) == 1 and sample.index == 1
    assert sample.depth[100, 100] == pytest.approx(32769 / 65535 * 0.1)
    assert np.isnan(sample.depth[:4, :4]).all() and np.isnan(sample.depth[:4, 10:14]).all()
    assert sample.T_world_camera == pytest.approx(pose_at(2), abs=1e-6)
    assert (sample.camera.width, sample.camera.height) == (950, 720) and sample.camera.model == "equidistant"


def test_the_fisheye_of_c3vd_is_the_published_calibration_to_a_fraction_of_a_pixel():
    camera = fisheye()
    x0, y0, x1, y1 = CROP
    x, y = np.meshgrid(np.linspace(x0, x1 - 1, 40), np.linspace(y0, y1 - 1, 30))
    dx, dy = x - CENTRE[0], y - CENTRE[1]
    radius = np.hypot(dx, dy)
    ray = np.dstack([dx, dy, sum(a * radius**i for i, a in enumerate(POLYNOMIAL))])
    off = camera.project(ray) - np.dstack([x - x0, y - y0])
    assert np.abs(off).max() < 0.15
    assert np.isfinite(camera.rays()).all()  # every pixel of the crop can be straightened


def test_c3vd_of_another_size_is_refused_in_words(tmp_path):
    fake.save(tmp_path / "v/0_color.png", fake.rgb_of(0, (540, 675)))
    fake.save(tmp_path / "v/0000_depth.tiff", np.ones((540, 675), np.uint16))
    dataset = open_dataset(f"c3vd:{tmp_path}")
    assert "pose" not in dataset.tasks
    with pytest.raises(DataError, match="675x540, C3VD is 1350x1080.*rendered:/path"):
        dataset[0]


def test_simcol3d_has_right_handed_poses_and_the_split_of_the_challenge(tmp_path):
    fake.write_simcol3d(tmp_path, trajectory="S1")
    fake.write_simcol3d(tmp_path, trajectory="S5", frames=2)
    dataset = checked(open_dataset(f"simcol3d:{tmp_path}"))
    assert dataset.tasks == ("depth", "pose", "intrinsics") and len(dataset) == 5
    assert dataset[2].T_world_camera == pytest.approx(pose_at(2), abs=1e-6)
    assert list(open_dataset(f"simcol3d:{tmp_path}", "test").groups()) == ["Frames_S5"]
    assert list(open_dataset(f"simcol3d:{tmp_path}", "train").groups()) == ["Frames_S1"]
    with pytest.raises(DataError, match="no split 'tests'; did you mean test"):
        open_dataset(f"simcol3d:{tmp_path}", "tests")
    (tmp_path / "SyntheticColon_I/cam.txt").write_text("500 0 300 0 500 300 0 0 1")
    with pytest.raises(DataError, match="another data set"):
        open_dataset(f"simcol3d:{tmp_path}")


def test_servct_knows_where_ct_does_not_reach(tmp_path):
    folder = fake.write_servct(tmp_path)
    dataset = checked(open_dataset(f"servct:{tmp_path}"))
    sample = dataset[0]
    assert np.isnan(sample.depth[:4, :4]).all() and np.isfinite(sample.depth[8:12, :4]).all()
    assert sample.depth[20] == pytest.approx(np.floor(depth_mm(1)[20] * 256) / 256e3, rel=1e-5)
    assert sample.camera.fx == 900 and dataset.protocol.max_depth == 0.18
    (folder / "Ground_truth_CT/OcclusionL/002.png").unlink()
    with pytest.raises(DataError, match="OcclusionL/002.png is missing"):
        dataset[1]
    (folder / "Rectified_calibration/001.json").write_text("{}")
    with pytest.raises(DataError, match="no matrix P1"):
        dataset[0]


def test_endoslam_reads_centimetres_and_matches_poses_in_order(tmp_path, caplog):
    fake.write_endoslam(tmp_path, poses=3)
    fake.write_endoslam(tmp_path, "Small Intestine", 1)
    dataset = checked(open_dataset(f"endoslam:{tmp_path}"))
    assert list(dataset.groups()) == ["Colon", "Small Intestine"]
    assert dataset[1].depth[10, 10] == pytest.approx(0.08) and np.isnan(dataset[1].depth[:4]).all()
    assert dataset[2].T_world_camera == pytest.approx(pose_at(2), abs=1e-6)
    assert dataset[3].T_world_camera is None and "3 poses for 4 frames" in caplog.text
    assert not dataset.has_poses("Colon") and dataset.has_poses("Small Intestine")
    (tmp_path / "real/HighCam").mkdir(parents=True)
    with pytest.raises(DataError, match="no dense depth"):
        open_dataset(f"endoslam:{tmp_path / 'real'}")


def test_stereomis_takes_the_left_half_its_masks_and_its_ranges(tmp_path):
    fake.write_stereomis(tmp_path)
    fake.write_stereomis(tmp_path, "P2_0")
    dataset = open_dataset(f"stereomis:{tmp_path}")
    assert dataset.tasks == ("pose", "intrinsics") and len(dataset) == 12
    samples = list(dataset)
    assert [number_of_grey(sample.rgb) for sample in samples[:6]] == list(range(6))
    assert samples[0].rgb.shape == (64, 80, 3) and samples[0].depth is None
    assert samples[3].T_world_camera == pytest.approx(pose_at(3), abs=1e-6)
    assert samples[1].mask.shape == (64, 80) and not samples[1].mask[:, :20].any() and samples[1].mask[:, 20:].all()
    assert samples[5].mask is None
    assert samples[0].camera.fx == pytest.approx(100) and samples[0].camera.model == "plumb_bob"
    assert number_of_grey(dataset[2].rgb) == 2  # back in time
    train = open_dataset(f"stereomis:{tmp_path}", "train")
    assert [sample.name for sample in train] == ["P1/000001", "P1/000002", "P1/000004"]
    assert list(open_dataset(f"stereomis:{tmp_path}", "test").groups()) == ["P2_0"]
    assert list(open_dataset(f"stereomis:{tmp_path}", "P2_0").groups()) == ["P2_0"]


def test_opencas_puts_ct_points_into_pixels(tmp_path):
    fake.write_opencas(tmp_path)
    (sample,) = checked(open_dataset(f"opencas:{tmp_path}"))
    known = np.argwhere(np.isfinite(sample.depth)).tolist()
    assert known == [[16, 16], [16, 20], [16, 30]] and sample.depth[16, 20] == pytest.approx(0.045)


def test_a_plain_folder_has_images_and_nothing_else(tmp_path):
    for number in (2, 10, 9):
        fake.save(tmp_path / f"case/img{number}.png", fake.rgb_of(number))
    save_camera(tmp_path / "case/camera.yaml", fisheye().pinhole().resized(WIDTH, HEIGHT))
    dataset = open_dataset(f"folder:{tmp_path}")
    assert [sample.index for sample in dataset] == [2, 9, 10] and dataset.tasks == ()
    assert dataset[0].depth is None and dataset[0].camera.width == WIDTH


# --- what does not open


FIRST_WORDS = {
    "scared": "dataset1/keyframe1/image_02/data/0000000001.png",
    "hamlyn": "rectified01/image01",
    "c3vd": "0_color.png",
    "simcol3d": "FrameBuffer_0000.png",
    "servct": "Experiment_1/Left_rectified/001.png",
    "endoslam": "Pixelwise Depths",
    "stereomis": "StereoCalibration.ini",
    "opencas": "_IMG_left.bmp",
    "rendered": "meta.yaml",
    "scenes": "<domain>-<seed>.npz",
    "folder": "case1/0001.png",
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_wrong_tree_shows_the_right_one(tmp_path, name):
    (tmp_path / "something").mkdir()
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(DataError) as error:
            open_dataset(f"{name}:{place}")
        assert "expected" in str(error.value) and FIRST_WORDS[name] in str(error.value)
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(f"{name}:{tmp_path / 'nothing'}")


def test_a_misspelt_name_is_told_the_near_one(tmp_path):
    with pytest.raises(DataError, match="unknown data set 'scard'; did you mean scared:/path"):
        open_dataset(f"scard:{tmp_path}")
    with pytest.raises(DataError, match="names the split 'a', and 'b'"):
        open_dataset(f"folder:{tmp_path}/x#a", "b")


def test_depth_of_a_wrong_type_is_refused(tmp_path):
    path = fake.save(tmp_path / "depth.png", np.ones((4, 4), np.uint8))
    with pytest.raises(DataError, match="not a 16-bit PNG or TIFF but uint8"):
        read_depth(path, 1e-3)
    with pytest.raises(DataError, match="holds 0 lines of 3 numbers"):
        (tmp_path / "a.txt").write_text("nan?\n1 2\n")
        read_numbers(tmp_path / "a.txt", 3, 1)


def test_a_video_gives_exactly_the_frame_that_is_asked_for(tmp_path):
    path = fake.write_video(tmp_path / "v.mp4", [fake.grey_of(n, (64, 80)) for n in range(20)])
    video = VideoFrames(path)
    assert [number_of_grey(video.read(n)) for n in (3, 4, 11, 2, 19, 0)] == [3, 4, 11, 2, 19, 0]
    with pytest.raises(DataError, match="v.mp4 ends at frame 20, frame 25 is wanted"):
        video.read(25)


# --- as training data


def test_every_public_set_trains(tmp_path):
    fake.write_scared_af(tmp_path / "scared", frames=4)
    fake.write_hamlyn(tmp_path / "hamlyn")
    fake.write_endoslam(tmp_path / "endoslam", poses=2)
    fake.write_stereomis(tmp_path / "stereomis")
    (scared,) = open_sequences(f"scared:{tmp_path / 'scared'}")
    frames = list(scared)
    assert (
        [frame.index for frame in frames] == [0, 1, 2, 3] and scared.has_truth and scared.name == "dataset1/keyframe3"
    )
    assert frames[3].T_world_camera == pytest.approx(pose_at(3), abs=1e-9) and scared.lens is None
    assert scared.intrinsics == pytest.approx((0.82, 1.02, 0.5, 0.5), abs=1e-3)
    (hamlyn,) = open_sequences(f"hamlyn:{tmp_path / 'hamlyn'}")
    assert len(list(hamlyn)) == 3 and next(iter(hamlyn)).depth is not None
    (endoslam,) = open_sequences(f"endoslam:{tmp_path / 'endoslam'}")
    assert all(frame.T_world_camera is None for frame in endoslam)  # not every frame has one
    (stereomis,) = open_sequences(f"stereomis:{tmp_path / 'stereomis'}")
    frames = list(stereomis)
    assert not stereomis.has_truth and stereomis.lens.is_distorted and len(stereomis.files) == 3
    assert frames[1].instrument[:, :10].all() and not frames[5].instrument.any()
    (part,) = open_sequences(f"stereomis:{tmp_path / 'stereomis'}#train")
    assert [frame.index for frame in part] == [0, 1, 3]


def test_a_fisheye_is_straightened_for_training(tmp_path):
    fake.write_c3vd(tmp_path, frames=1)
    (sequence,) = open_sequences(f"c3vd:{tmp_path}")
    assert sequence.lens == fisheye()
    small = Frame(0, fake.grey_of(9, (72, 95)), np.ones((72, 95), np.float32))  # a tenth: the whole takes seconds
    frame = straightened(small, sequence.lens)
    assert np.isfinite(frame.depth).mean() > 0.8 and number_of_grey(frame.rgb[30:40, 40:50]) == 9


def test_a_missing_depth_stops_training_or_is_left_out(tmp_path):
    (fake.write_scared_af(tmp_path) / "image_02/data/groundtruth/scene_points000002.tiff").unlink()
    with pytest.raises(DataError, match="scene_points000002.tiff is missing.*on_error: skip"):
        list(open_sequences(f"scared:{tmp_path}")[0])
    (sequence,) = open_sequences(f"scared:{tmp_path}", "skip")
    assert [frame.index for frame in sequence] == [0, 1, 3, 4] and sequence.skipped == 1


def test_a_cut_jpeg_is_no_grey_image(tmp_path):
    path = fake.write_hamlyn(tmp_path) / "image01/0000000001.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cut short"):
        open_dataset(f"hamlyn:{tmp_path}")[1]
