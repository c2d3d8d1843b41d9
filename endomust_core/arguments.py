"""What each command of `endomust` takes: names, options, defaults and help; imports nothing heavy, runs nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from endomust_core import __version__
from endomust_core.resources import bundle_path

BACKENDS = ("cpu", "cuda", "tensorrt", "openvino")
PRECISIONS = ("auto", "fp32", "tf32", "fp16", "bf16", "int8")
FORWARDED = {  # commands that read their own arguments → summary
    "play": "send a recording to ROS at its own pace",
    "demo": "play a recording through the node and report what it answers",
    "bench": "measure: engine, preset, node, transport, faults, train",
}


def parser() -> argparse.ArgumentParser:
    """All commands with their options; importing nothing heavy."""
    top = argparse.ArgumentParser(
        prog="endomust",
        description="Depth, point cloud and camera odometry from endoscope video.",
        epilog="endomust COMMAND --help tells more. Research software, not a medical device.",
    )
    top.add_argument("--version", action="version", version=f"endomust {__version__}")
    top.add_argument("--debug", action="store_true", help="show where an error came from")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    add = commands.add_parser("render", help="a rendered sequence with its truth → a recording, or a folder of images")
    add.add_argument("domain", help="colon, sinus, laparo or stomach")
    add.add_argument("--out", type=Path, required=True, help="a recording such as colon.mcap, or a new folder")
    add.add_argument("--frames", type=int, default=100, help="how many (default 100)")
    add.add_argument("--seed", type=int, default=0, help="another scene for every number (default 0)")
    add.add_argument("--size", type=image_size, default="640x512", metavar="WxH", help="default 640x512")
    add.add_argument("--rate", type=float, default=25.0, metavar="HZ", help="frames per second (default 25)")
    add.add_argument("--detail", type=int, default=1024, help="rows of the texture maps (default 1024)")
    add.add_argument("--variety", choices=("plain", "wide"), default="plain", help="wide: scenes that differ more")
    add.add_argument("--depth-every", type=int, default=1, metavar="N", help="true depth of every N-th (default 1)")

    add = commands.add_parser("import", help="a video file or a folder of images → a recording (.mcap)")
    add.add_argument("source", type=Path, help="video file, or folder of images in the order of their names")
    add.add_argument("out", type=Path, help="the recording to write, such as case.mcap")
    add.add_argument("--camera", type=Path, metavar="YAML", help="ROS camera calibration of this endoscope")
    add.add_argument("--rate", type=float, metavar="HZ", help="frames per second (default: the video's own)")
    add.add_argument("--encoding", choices=("jpeg", "raw"), default="jpeg", help="how images are stored (default jpeg)")
    add.add_argument("--overwrite", action="store_true", help="replace an existing recording")

    add = commands.add_parser("pretrain", help="train a depth and a pose network on rendered scenes")
    add.add_argument("config", type=Path, help="such as config/pretrain-tiny.yaml")
    add.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="in place of the file's, as in depth.steps=500")
    add.add_argument("--out", type=Path, help="folder of the run; one that was stopped goes on (default runs/NAME)")
    add.add_argument("--workers", type=int, help="processes that render (default: one per core)")
    add.add_argument(
        "--only",
        choices=("scenes", "depth", "pose", "optical_flow"),
        default="",
        help="make this alone, so that several processes share a run; a last call without it scores the networks",
    )

    add = commands.add_parser("train", help="train on your own videos, without ground truth: the three steps")
    add.add_argument("config", type=Path, help="such as config/train.yaml")
    add.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="in place of the file's, as in train.batch=4")
    add.add_argument("--out", type=Path, help="folder of the run (default runs/NAME)")
    add.add_argument("--resume", action="store_true", help="go on with the run in that folder, to the bit")
    add.add_argument("--overfit", type=int, default=0, metavar="N", help="train on N triplets only, as a check")

    add = commands.add_parser("distil", help="a small depth network learns from a large one, on frames without truth")
    add.add_argument("config", type=Path, help="such as config/distil.yaml")
    add.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="in place of the file's, as in teacher=runs/me")
    add.add_argument("--out", type=Path, help="folder of the run; one that was stopped goes on (default runs/NAME)")

    add = commands.add_parser("ablate", help="the same training with one thing changed at a time, and a table")
    add.add_argument("study", type=Path, help="such as config/ablation-tiny.yaml")
    add.add_argument("--out", type=Path, required=True, help="folder of the runs; finished ones are not repeated")
    add.add_argument("--only", nargs="*", default=[], metavar="VARIANT", help="these variants only")
    add.add_argument("--seeds", nargs="*", type=int, default=[], metavar="SEED", help="these of the study's seeds only")

    add = commands.add_parser("calibrate", help="focal length and centre of a camera from its video and a finished run")
    add.add_argument("run", type=Path, help="folder that train wrote, trained on this camera's videos")
    add.add_argument("--data", required=True, metavar="KIND:PATH", help="one sequence in which the camera turns")
    add.add_argument("--size", type=image_size, required=True, metavar="WxH", help="of the camera's images")
    add.add_argument("--out", type=Path, required=True, help="the ROS calibration file to write, such as camera.yaml")

    add = commands.add_parser("export", help="a finished run, or a bundle → a model bundle in other precisions")
    add.add_argument(
        "run", type=bundle_path, help="folder that train or pretrain wrote, a checkpoint in it, or a bundle"
    )
    add.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    add_precision(add)
    add.add_argument("--size", type=image_size, metavar="WxH", help="of the graphs' images (default: the run's)")
    add.add_argument("--batch", type=int, choices=(1, 2), default=1, help="2: depth of both images of a stereo rig")
    add.add_argument("--frames", type=Path, nargs="*", default=[], help="images or videos to verify on (rendered)")
    add.add_argument("--note", default="", help="what else a user must know of the run; goes into the manifest")
    add.add_argument("--version", default=__version__, help=f"of the bundle (default {__version__})")
    add.add_argument("--weights", choices=("float16", "float32"), default="float16", help="how they are stored")

    add = commands.add_parser("convert", help="published weights (EndoMUST, Depth Anything, …) → a bundle")
    add.add_argument("source", type=Path, help="the folder of the downloaded weights, or the one file")
    add.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    add.add_argument("--frames", type=Path, nargs="*", default=[], help="images or videos to verify on (rendered)")
    add_precision(add)
    add.add_argument("--size", type=image_size, metavar="WxH", help="of the bundle's images (default: the published)")
    add.add_argument("--family", help="where the files do not tell, as they will say")
    add.add_argument("--weights", choices=("float16", "float32"), default="float32", help="how they are stored")

    add = commands.add_parser("fetch", help="download published foundation weights, licence and checksum shown")
    add.add_argument("name", nargs="?", help="without one: the list")
    add.add_argument("--to", type=Path, default=Path("weights"), help="folder (default weights)")
    add.add_argument("--list", action="store_true", help="what there is")
    add.add_argument("--accept-licence", action="store_true", help="for weights without commercial use")

    add = commands.add_parser("evaluate", help="score a bundle, checkpoint or run on a data set with ground truth")
    add.add_argument(
        "model", type=bundle_path, nargs="?", help="bundle, run folder or depth.pt (default: endomust-tiny)"
    )
    add.add_argument("--data", required=True, metavar="NAME:PATH", help="such as scared:/data/SCARED")
    add.add_argument("--split", help="of the data set: its name, a sequence, or a file with a published list")
    add.add_argument(
        "--task", nargs="*", choices=("depth", "pose", "intrinsics"), help="default: all there is truth for"
    )
    add.add_argument("--scaling", choices=("median", "none"), help="per image (default: as the field scores this set)")
    add.add_argument("--backend", choices=BACKENDS, default="cpu", help="what runs it (default cpu)")
    add.add_argument("--precision", choices=PRECISIONS, default="auto", help="of a bundle (default auto)")
    add.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N images of every sequence")
    add.add_argument("--corrupt", metavar="FAULT", help="smoke: five severities; smoke:3: that one; a,b; or all")
    add.add_argument("--cache", type=Path, help="keep predictions here for the next time (default: none kept)")
    add.add_argument("--out", type=Path, help="folder for report.html, report.json, images.jsonl (default: table only)")

    add = commands.add_parser("compare", help="evaluations side by side, paired per image, with confidence intervals")
    add.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="what evaluate wrote; the first is compared to"
    )
    add.add_argument("--out", type=Path, help="folder for compare.html, .json, .md (default: table only)")

    add = commands.add_parser("card", help="a bundle and data sets → its model card: README.md, card.json, pictures")
    add.add_argument(
        "bundle", type=bundle_path, nargs="?", help="folder of the bundle, or endomust-small (default: endomust-tiny)"
    )
    add.add_argument("--protocol", type=Path, help="what it is scored on (default: config/card.yaml)")
    add.add_argument("--out", type=Path, required=True, help="folder of the card, such as the bundle itself")
    add.add_argument("--seeds-of", type=Path, nargs="*", default=[], metavar="RUN", help="same recipe, other seeds")
    add.add_argument("--cache", type=Path, help="keep predictions here for the next time (default: none kept)")
    add.add_argument("--backend", choices=BACKENDS, default="cpu", help="what runs it (default cpu)")
    add.add_argument("--precision", choices=PRECISIONS, default="auto", help="of a bundle (default auto)")

    add = commands.add_parser("prepare", help="a data set as downloaded → our layout, checked and resumable")
    add.add_argument("name", help="scared, hamlyn, c3vd, simcol3d, servct, endoslam or stereomis")
    add.add_argument("--raw", type=Path, required=True, help="folder of the download")
    add.add_argument("--out", type=Path, required=True, help="folder for the sequences")

    add = commands.add_parser("replay", help="a recording or video through the node's pipeline, offline, without ROS")
    add.add_argument("source", type=Path, help="ROS 1 bag, rosbag2 (SQLite, MCAP), video file or folder of images")
    add.add_argument(
        "--bundle", type=bundle_path, help="folder of the bundle, or endomust-small (default: endomust-tiny)"
    )
    add.add_argument("--out", type=Path, required=True, help="folder for recording, trajectory, video, cloud, report")
    add.add_argument("--topic", help="which images, where a recording has several")
    add.add_argument("--camera", type=Path, metavar="YAML", help="ROS calibration in the place of camera_info")
    add.add_argument("--rate", type=float, metavar="HZ", help="frames per second of a folder of images")
    add.add_argument("--scale", type=float, default=1.0, help="multiplies depth and motion (default 1)")
    add.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="a parameter of the node; may be repeated"
    )
    add.add_argument("--points", action="store_true", help="record point clouds too")
    add.add_argument("--no-color", action="store_true", help="leave out images and video")
    add.add_argument("--no-fused", action="store_true", help="leave out the joint cloud")
    add.add_argument(
        "--rerun", metavar="FILE", nargs="?", const="spawn", help="show it in rerun's viewer, or write FILE.rrd"
    )
    add.add_argument("--backend", choices=BACKENDS, default="cpu", help="what runs the networks (default cpu)")
    add.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the networks (default auto)")
    add.add_argument("--overwrite", action="store_true", help="replace earlier results")

    add = commands.add_parser(
        "sheet", help="a recording of the node's answers → one picture of depth, confidence, cloud"
    )
    add.add_argument("recording", type=Path, help="made by python -m endomust_ros.record --rgb")
    add.add_argument("--out", type=Path, required=True, help="picture to write (.jpg or .png)")
    add.add_argument("--rows", type=int, default=5, help="images to show (default 5)")
    add.add_argument("--node", default="/endomust", help="full name of the node (default /endomust)")

    add = commands.add_parser("engine", help="build and keep the engines of a bundle for this machine, and test them")
    add.add_argument(
        "bundle", type=bundle_path, nargs="?", help="folder of the bundle, or endomust-small (default: endomust-tiny)"
    )
    add.add_argument("--provider", choices=BACKENDS, default="cpu", help="what runs it (default cpu)")
    add.add_argument("--precision", choices=PRECISIONS, default="auto", help="default auto, see docs/deploy.md")
    add.add_argument("--threads", type=int, default=0, help="of the processor (default: every core)")
    add.add_argument("--device", type=int, default=0, help="number of the GPU")
    add.add_argument("--cache", type=Path, help="folder of the engines (default: endomust/engines in the user's cache)")
    add.add_argument("--rebuild", action="store_true", help="build even what is there")
    add.add_argument("--tolerance", type=float, help="of the self-test, median relative error (default 0.02)")

    add = commands.add_parser("info", help="check a model bundle and say what it holds")
    add.add_argument(
        "bundle", type=bundle_path, nargs="?", help="folder of the bundle, or endomust-small (default: endomust-tiny)"
    )

    add = commands.add_parser("doctor", help="will this machine work, and what to do where not")
    add.add_argument("--image-size", type=image_size, metavar="WxH", help="of the camera (default: as it sends)")
    add.add_argument("--providers", metavar="A,B", help="such as tensorrt,cuda (default: model.providers of the node)")
    add.add_argument(
        "--model", type=bundle_path, help="folder of the bundle, or endomust-small (default: endomust-tiny)"
    )
    add.add_argument("--camera", type=Path, metavar="YAML", help="ROS camera calibration to check")
    add.add_argument("--no-ros", action="store_true", help="leave out everything about ROS")
    add.add_argument("--topic", help="look at this image topic only")
    add.add_argument("--seconds", type=float, default=3.0, help="how long to listen to ROS (default 3)")
    add.add_argument("--json", type=Path, metavar="OUT", help="write the same as JSON")

    for name, summary in FORWARDED.items():
        commands.add_parser(name, help=summary, add_help=False)
    return top


def add_precision(command: argparse.ArgumentParser) -> None:
    """The option that export and convert share."""
    command.add_argument(
        "--precision",
        nargs="+",
        choices=("fp32", "fp16", "int8"),
        default=["fp32"],
        help="graphs beside fp32, each with what it costs in accuracy (default fp32 alone)",
    )


def image_size(text: str) -> tuple[int, int]:
    """'640x512', width by height → (512, 640), height and width as arrays have them."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write WIDTHxHEIGHT, such as 640x512")
    return int(height), int(width)
