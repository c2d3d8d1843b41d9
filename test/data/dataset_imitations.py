"""Writes tiny imitations of every public data set's tree, with truth that is known exactly."""

import io
import json
import tarfile

import cv2
import numpy as np

from endomust_core.odometry import inverse, quaternion_from_matrix, se3, so3_exp

HEIGHT, WIDTH = 32, 40


def rgb_of(number, size=(HEIGHT, WIDTH)):
    """A textured frame whose red says its number: red = 6 · number + 3."""
    rgb = np.random.default_rng(7).integers(60, 200, (*size, 3), dtype=np.uint8)
    rgb[..., 0] = 6 * number + 3
    return rgb


def number_of(rgb):
    """The number that `rgb_of` has hidden, also after JPEG or MPEG."""
    return int(rgb[..., 0].mean() / 6)


def depth_mm(number, size=(HEIGHT, WIDTH)):
    """A slanted plane from 40 mm, 1 mm further each frame."""
    x = np.arange(size[1], dtype=np.float32)
    return np.broadcast_to(40 + number + 0.25 * x, size).astype(np.float32)


def pose_at(number):
    """T_world_camera [m]: forward 2 mm and a turn of half a degree per frame."""
    return se3(so3_exp(np.array([0.003, 0.009, -0.002]) * number), np.array([5e-4, -2e-4, 2e-3]) * number)


def save(path, pixels):
    """An image file, colour given as RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels)
    return path


def grey_of(number, size=(HEIGHT, WIDTH)):
    """A flat frame, 11 levels brighter each: what a video codec leaves as it is."""
    return np.full((*size, 3), 11 * number + 20, np.uint8)


def number_of_grey(rgb):
    """The number of a `grey_of`."""
    return round((float(rgb.mean()) - 20) / 11)


# --- SCARED


def scene_points(number, size=(HEIGHT, WIDTH)):
    """float32 X Y Z in mm, left above right; the left corner is unknown (0), the right one is 999."""
    z = depth_mm(number, size)
    left = np.dstack([z * 0 + 1, z * 0 + 2, z])
    left[:4, :4] = 0
    return np.vstack([left, np.full_like(left, 999)]).astype(np.float32)


def frame_data(number):
    """The JSON of a frame: world to camera in mm."""
    P = inverse(pose_at(number))
    P[:3, 3] *= 1e3
    return json.dumps({"camera-pose": P.tolist(), "camera-calibration": {}})


def write_scared_published(folder, images, truth, motion, frames):
    """`frames` images from 1; truth and poses count from 0."""
    for number in range(frames):
        save(images / f"{number + 1:010d}.png", rgb_of(number))
        save(truth / f"scene_points{number:06d}.tiff", scene_points(number))
        motion.mkdir(parents=True, exist_ok=True)
        (motion / f"frame_data{number:06d}.json").write_text(frame_data(number))
    return folder


def write_scared_af(root, group="dataset1/keyframe3", frames=5):
    data = root / group / "image_02/data"
    return write_scared_published(root / group, data, data / "groundtruth", data / "frame_data", frames)


def write_scared_endodac(root, group="dataset1/keyframe3", frames=5):
    data = root / ("train" if int(group[7]) < 8 else "test") / group / "data"
    return write_scared_published(data, data / "left", data / "scene_points", data / "frame_data", frames)


def tar(path, members):
    """A .tar.gz of (name, bytes), in this order."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def tiff_bytes(pixels):
    """A TIFF file; three channels are given in the order X Y Z."""
    done, data = cv2.imencode(".tiff", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert done
    return data.tobytes()


def write_video(path, frames):
    """A video of RGB frames that keeps edges and greys (MJPG in .mp4 is read like any other)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (width, height))
    assert writer.isOpened()
    for rgb in frames:
        writer.write(np.ascontiguousarray(rgb[..., ::-1]))
    writer.release()
    return path


def write_calibration(path, fx=900.0, fy=910.0, cx=20.0, cy=16.0):
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.write("M1", np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
    storage.write("D1", np.array([[-0.01, 0.02, 0.0, 0.0, 0.0]]))
    storage.release()


def write_scared_raw(root, name="dataset_1/keyframe_1", frames=5, images=None, depths=None, poses=frame_data):
    """The download: stacked video and two archives, whose members stand in no order."""
    folder = root / name
    images = images or [grey_of(number) for number in range(frames)]
    depths = depths or [scene_points(number) for number in range(frames)]
    write_video(folder / "data/rgb.mp4", [np.vstack([rgb, np.zeros_like(rgb)]) for rgb in images])
    write_calibration(folder / "endoscope_calibration.yaml")
    order = np.random.default_rng(3).permutation(len(depths)) if len(depths) else []
    tar(
        folder / "data/scene_points.tar.gz",
        [(f"./scene_points{n:06d}.tiff", tiff_bytes(depths[n])) for n in order],
    )
    tar(
        folder / "data/frame_data.tar.gz",
        [(f"frame_data{n:06d}.json", poses(n).encode()) for n in range(len(images))],
    )
    return folder


def write_scared_still(root, name="dataset_8/keyframe_0"):
    folder = root / name
    save(folder / "Left_Image.png", rgb_of(4))
    points = scene_points(4)[:HEIGHT]
    points[points == 0] = np.nan
    save(folder / "left_depth_map.tiff", points)
    write_calibration(folder / "endoscope_calibration.yaml")
    return folder


# --- the others


def write_hamlyn(root, sequence=1, frames=3, size=(HEIGHT, WIDTH), right=True):
    folder = root / f"rectified{sequence:02d}"
    for number in range(frames):
        units = np.rint(depth_mm(number, size)).astype(np.uint16)
        units[:4, :4] = 0
        for side in ("01", "02") if right else ("01",):
            save(folder / f"image{side}/{number:010d}.jpg", rgb_of(number, size))
            save(folder / f"depth{side}/{number:010d}.png", units)
    calibration = root / f"calibration/{sequence:02d}/intrinsics.txt"
    calibration.parent.mkdir(parents=True)
    np.savetxt(calibration, [[380.0, 0, 200.0], [0, 381.0, 140.0], [0, 0, 1]])
    return folder


def write_c3vd(root, video="cecum_t1_a", frames=2, transposed=True, padded=False):
    folder, lines = root / video, []
    size = (1080, 1350)
    for number in range(frames):
        save(folder / (f"{number:04d}_color.png" if padded else f"{number}_color.png"), grey_of(number, size))
        units = np.full(size, 32768 + number, np.uint16)
        units[180:184, 200:204] = 0
        units[180:184, 210:214] = 65535
        save(folder / f"{number:04d}_depth.tiff", units)
        M = pose_at(number + 1)
        M[:3, 3] *= 1e3
        lines.append(",".join(f"{value:.9g}" for value in (M.T if transposed else M).ravel()))
    (folder / "pose.txt").write_text("\n".join(lines) + "\n")
    return folder


def unity_pose(number):
    """Left-handed position [m] and quaternion of `pose_at`."""
    mirror = np.diag([1.0, -1.0, 1.0, 1.0])
    T = mirror @ pose_at(number) @ mirror
    return T[:3, 3], quaternion_from_matrix(T[:3, :3])


def write_simcol3d(root, part="SyntheticColon_I", trajectory="S1", frames=3):
    folder = root / part / f"Frames_{trajectory}"
    positions, rotations = [], []
    for number in range(frames):
        save(folder / f"FrameBuffer_{number:04d}.png", rgb_of(number))
        save(folder / f"Depth_{number:04d}.png", np.full((HEIGHT, WIDTH), 128 * 256, np.uint16))
        t, q = unity_pose(number)
        positions.append(t * 1e2)
        rotations.append(q)
    np.savetxt(folder.parent / f"SavedPosition_{trajectory}.txt", positions)
    np.savetxt(folder.parent / f"SavedRotationQuaternion_{trajectory}.txt", rotations)
    (folder.parent / "cam.txt").write_text("227.60416 0 237.5 0 227.60416 237.5 0 0 1\n")
    return folder


def write_servct(root, stills=("001", "002")):
    folder = root / "Experiment_1"
    for still in stills:
        number = int(still)
        save(folder / f"Left_rectified/{still}.png", rgb_of(number))
        save(folder / f"Ground_truth_CT/DepthL/{still}.png", (depth_mm(number) * 256).astype(np.uint16))
        occlusion = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        occlusion[:4, :4] = (0, 0, 255)  # blue: CT does not reach here
        occlusion[8:12, :4] = (255, 255, 0)
        save(folder / f"Ground_truth_CT/OcclusionL/{still}.png", occlusion)
        P1 = [[900.0, 0, 20.0, 0], [0, 900.0, 16.0, 0], [0, 0, 1, 0]]
        (folder / "Rectified_calibration").mkdir(exist_ok=True)
        (folder / f"Rectified_calibration/{still}.json").write_text(json.dumps({"P1": {"data": P1}, "Q": []}))
    return folder


def write_endoslam(root, organ="Colon", frames=4, poses=None):
    folder = root / "UnityCam" / organ
    lines = ["tX,tY,tZ,rX,rY,rZ,rW,time(s)"]
    for number in range(frames):
        save(folder / f"Frames/image_{number:04d}.png", rgb_of(number, (320, 320)))
        aov = np.zeros((320, 320, 4), np.uint8)
        aov[4:, :, 2], aov[..., 3] = 7 + number, 255  # red in the order of OpenCV
        save(folder / f"Pixelwise Depths/aov_image_{number:04d}.png", aov)
        t, q = unity_pose(number)
        if number < (frames if poses is None else poses):
            lines.append(",".join(f"{value:.9g}" for value in (*t, *q, number / 30)))
    (folder / "Poses").mkdir()
    (folder / f"Poses/{organ.lower()}_position_rotation.csv").write_text("\n".join([*lines, "0.1,0.2"]))
    return folder


def write_stereomis(root, name="P1", frames=6):
    folder = root / name
    stacked = [np.vstack([grey_of(n, (64, 80)), np.zeros((64, 80, 3), np.uint8)]) for n in range(frames)]
    write_video(folder / "video.mp4", stacked)
    rows = ["[StereoLeft]", "res_x = 160", "res_y = 128", "fc_x = 200", "fc_y = 202", "cc_x = 80", "cc_y = 64"]
    rows += ["kc_0 = -0.1", "kc_1 = 0.02", "[StereoRight]", "res_x = 160"]
    (folder / "StereoCalibration.ini").write_text("\n".join(rows))
    lines = []
    for number in range(frames):
        T = pose_at(number)
        values = (*T[:3, 3], *quaternion_from_matrix(T[:3, :3]))
        lines.append(f"{number} " + " ".join(f"{value:.9g}" for value in values))
    (folder / "groundtruth.txt").write_text("\n".join(lines))
    for number in range(0, frames - 2, 2):  # every second frame, and none for the last ones; half the size
        mask = np.full((32, 40), 255, np.uint8)
        mask[:, :10] = 0
        save(folder / f"masks/{number:06d}l.png", mask)
    (folder / f"{'train' if name == 'P1' else 'test'}_split.csv").write_text("start,end\n1,3\n4,5\n")
    return folder


def write_opencas(root):
    folder = root / "open_cas"
    save(folder / "S_1_IMG_left.bmp", rgb_of(1))
    outside, markers = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    outside[:, :8], markers[16, 26] = 255, 255  # white is what does not count
    save(folder / "S_1_MASK_eval.png", outside)
    save(folder / "S_1_MASK_left.png", markers)
    np.savetxt(folder / "calib.left.intrinsics.txt", [[100.0, 0, 20], [0, 100, 16], [0, 0, 1]])
    (folder / "calib.left.distortion.txt").write_text("0 0 0 0 0\n")
    # on the axis, twice in one pixel (the nearer counts), outside the patch, outside the image, behind the camera, on a
    # marker, visible, hidden behind that
    points = [
        (0, 0, 50),
        (0, 0.1, 45),
        (-8, 0, 50),
        (90, 0, 50),
        (0, 0, -50),
        (5, 0, 50),
        (3, 0, 50),
        (-2.2, 0, 55),
        (-3, 0, 60),
    ]
    np.savetxt(folder / "S_1_CT_cut.xyz", points, fmt="%.6f")
    return folder
