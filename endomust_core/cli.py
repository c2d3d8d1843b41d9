"""The command `endomust`: one short function per command, heavy imports inside it; it prints and gives exit codes.

What each command takes is in arguments.py.

0 done; 2 the user can mend it (one sentence on stderr); 3 done, but something is missing from the results; 130 stopped
with Ctrl-C; 1 a fault of the program, which keeps its traceback. --debug shows the traceback of the other errors too.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import shlex
import shutil
import sys
import traceback
from pathlib import Path

from endomust_core.arguments import BACKENDS, FORWARDED, parser

BENCHMARKS = {  # kind → the file that measures it
    "engine": "endomust_core.engine_benchmark",
    "preset": "endomust_core.learning.preset_benchmark",
    "node": "endomust_ros.node_benchmark",
    "transport": "endomust_ros.transport_benchmark",
    "faults": "endomust_ros.fault_campaign",
    "train": "endomust_core.learning.benchmark",
}
OURS = ("endomust_core", "endomust_ros")
EXTRAS = {  # module that is missing → the extra that brings it
    "torch": "train",
    "onnx": "export",
    "rclpy": "ros",
    "sensor_msgs": "ros",
    "nav_msgs": "ros",
    "geometry_msgs": "ros",
    "std_msgs": "ros",
    "std_srvs": "ros",
    "diagnostic_msgs": "ros",
    "lifecycle_msgs": "ros",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` defaults to the process's arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return run(arguments) or 0
    except KeyboardInterrupt:
        print("endomust: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = in_words(error)
        if debug or sentence is None:
            traceback.print_exc()
        print(f"endomust: {sentence or f'this is a fault of the program: {error!r}'}", file=sys.stderr)
        return 2 if sentence else 1


def run(arguments: list[str]) -> int | None:
    """Find the command and run it; the ROS commands read their own arguments, because only ROS knows them."""
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    if name is not None and name == arguments[0] and name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COMMANDS)}."
        print(f"endomust: no command '{name}'; {meant}", file=sys.stderr)
        return 2
    if name in FORWARDED and name == arguments[0]:
        return COMMANDS[name](arguments[1:])
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and "overrides" in options and all("=" in text and not text.startswith("-") for text in rest):
        options.overrides += rest  # argparse takes a list of words in one place only; KEY=VALUE may also follow --out
    elif rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return COMMANDS[options.command](options)


def in_words(error: Exception) -> str | None:
    """One sentence for an error the user can mend; None for a fault of the program."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRAS:
        extra = EXTRAS[error.name.split(".")[0]]
        ros = ", or source a ROS 2 installation" if extra == "ros" else ""
        return f"{error.name} is not installed; pip install 'endomust_ros[{extra}]'{ros}"
    deliberate = type(error).__module__.split(".")[0] in OURS
    if isinstance(error, ValueError | RuntimeError) and not deliberate:
        # Raised by hand in our own files it carries advice; raised inside a library it is a bug.
        modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        deliberate = bool(modules) and modules[-1].split(".")[0] in OURS
    return str(error) if deliberate or isinstance(error, OSError) else None


def render_command(options: argparse.Namespace) -> None:
    """A random scene → images, true depth, poses and calibration."""
    from endomust_core.importing import stderr_progress
    from endomust_core.simulation.command import render_command as render

    out = render(
        options.domain,
        options.frames,
        options.out,
        options.size,
        options.seed,
        options.rate,
        options.detail,
        depth_every=options.depth_every,
        progress=stderr_progress(),
        variety=options.variety,
    )
    print(f"{out}: {options.frames} frames of {options.domain}, seed {options.seed}")


def import_command(options: argparse.Namespace) -> None:
    """A video or image folder → recording."""
    from endomust_core.camera import load_camera
    from endomust_core.importing import import_frames, stderr_progress

    camera = load_camera(options.camera) if options.camera else None
    count = import_frames(
        options.source,
        options.out,
        camera,
        rate=options.rate,
        encoding=options.encoding,
        progress=stderr_progress(),
        overwrite=options.overwrite,
    )
    print(f"{options.out}: {count} frames; endomust play {options.out} sends them to ROS")


def pretrain_command(options: argparse.Namespace) -> None:
    """Configuration → run folder with both networks and their scores."""
    from endomust_core.learning.pretrain import pretrain

    run = pretrain(options.config, options.overrides, options.out, options.workers, options.only)
    if options.only:
        print(f"{run}: {options.only} made; the same command without --only makes the rest and scores")
        return
    print(f"{run}: depth.pt, pose.pt, scores.yaml; endomust export {run} --out BUNDLE makes a bundle of it")


def train_command(options: argparse.Namespace) -> None:
    """Configuration → run folder with the adapted networks."""
    from endomust_core.learning.train import train

    run = train(options.config, options.overrides, options.out, options.resume, options.overfit)
    print(f"{run}: depth.pt, pose.pt, pictures/; endomust export {run} --out BUNDLE makes a bundle of it")


def distil_command(options: argparse.Namespace) -> None:
    """Teacher and frames → run folder with a small network that says what the teacher says."""
    from endomust_core.learning.distil import distil

    run = distil(options.config, options.overrides, options.out)
    print(f"{run}: depth.pt, scores.yaml; endomust export {run} --out BUNDLE makes a bundle of it")


def ablate_command(options: argparse.Namespace) -> None:
    """Study → runs of every variant and seed, and their table."""
    from endomust_core.learning.ablation import ablate, table

    print(table(ablate(options.study, options.out, options.only, options.seeds)), end="")


def calibrate_command(options: argparse.Namespace) -> None:
    """Run and sequence → ROS calibration file of a pinhole camera."""
    from endomust_core.camera import save_camera
    from endomust_core.importing import stderr_progress
    from endomust_core.learning.self_calibration import calibrate

    found = calibrate(options.run, options.data, progress=stderr_progress())
    save_camera(options.out, found.camera(options.size[1], options.size[0]))
    names = ("fx/W", "fy/H", "cx/W", "cy/H")
    for name, guessed, fitted in zip(names, found.guessed, found.intrinsics, strict=True):
        print(f"{name}  network {guessed:.4f}  fitted {fitted:.4f}")
    print(
        f"{options.out}: from {found.pairs} pairs, turning {1e3 * found.turning:.1f} mrad each; photometric distance "
        f"{found.before:.4f} → {found.after:.4f}. Lens distortion is not estimated; compare with a real calibration"
    )


def export_command(options: argparse.Namespace) -> None:
    """Run folder → bundle, verified against PyTorch."""
    from endomust_core.bundle import MANIFEST
    from endomust_core.learning.release import derive_bundle, export_run

    if options.run.name == MANIFEST or (options.run / MANIFEST).is_file():
        if options.size or options.batch != 1:
            raise ValueError("a bundle's graphs have one size; export the run again to get another")
        bundle = derive_bundle(options.run, options.out, options.precision, options.frames)
        print(f"{bundle}: compared with the fp32 graphs of {options.run}; endomust info {bundle} says what it holds")
        return
    bundle = export_run(
        options.run.parent if options.run.suffix == ".pt" else options.run,
        options.out,
        options.version,
        options.weights,
        options.frames,
        options.note,
        options.precision,
        options.size,
        options.batch,
    )
    print(f"{bundle}: verified against PyTorch; endomust info {bundle} says what it holds")


def convert_command(options: argparse.Namespace) -> None:
    """Published weights → bundle, and a report of what became of every file."""
    from endomust_core.learning.convert import convert

    report = convert(
        options.source,
        options.out,
        options.frames,
        options.size,
        options.weights,
        options.family,
        options.precision,
    )
    print(report)
    print(f"{report.bundle}: verified against PyTorch; endomust info {report.bundle} says what it holds")


def fetch_command(options: argparse.Namespace) -> None:
    """A name → the file of weights, checked."""
    from endomust_core.learning.foundation import fetch, listing

    if options.list or options.name is None:
        print(listing())
        return
    print(fetch(options.name, options.to, options.accept_licence))


def evaluate_command(options: argparse.Namespace) -> int:
    """Model and data set → table beside trivial predictors, report.html; 3 where results are incomplete."""
    from endomust_core.data import open_dataset
    from endomust_core.evaluate import evaluate, markdown
    from endomust_core.evaluation_page import page
    from endomust_core.importing import stderr_progress
    from endomust_core.report import write_page

    dataset = open_dataset(options.data, options.split)
    found = evaluate(
        open_model(options.model, options.backend, options.precision),
        dataset,
        tasks=options.task,
        scaling=options.scaling,
        cache=options.cache,
        out=options.out,
        corruption=options.corrupt,
        limit=options.limit,
        command=shlex.join(["endomust", *sys.argv[1:]]),
        progress=stderr_progress(),
    )
    if found.report["depth"]:
        print(markdown(found.report["depth"]))
    if options.out:
        print(f"{write_page(options.out / 'report.html', page(found.report, found.shown))}: open it in a browser")
    return incomplete(found.report["problems"])


def open_model(path: Path | None, backend: str, precision: str = "auto"):
    """A bundle (default: the one that ships), or with PyTorch the checkpoint or run folder at `path` → Predictor."""
    from endomust_core.bundle import MANIFEST, default_bundle
    from endomust_core.predictions import BundlePredictor

    path = path or default_bundle()
    if path.name == MANIFEST or (path / MANIFEST).is_file() or not path.exists():
        return BundlePredictor(path, (backend,), precision=precision)
    from endomust_core.learning.eager import open_eager

    return open_eager(path, backend)


def incomplete(problems: list[str]) -> int:
    """0, or 3 after saying what is missing from the results."""
    for sentence in problems:
        print(f"endomust: {sentence}", file=sys.stderr)
    return 3 if problems else 0


def compare_command(options: argparse.Namespace) -> int:
    """Folders of evaluations → table and page; 3 where one of them is incomplete."""
    from endomust_core.compare import compare, markdown, write

    comparison = compare(options.folders)
    print(markdown(comparison))
    if options.out:
        print(f"{write(comparison, options.out)}: open it in a browser")
    return 0 if comparison["complete"] else 3


def card_command(options: argparse.Namespace) -> int:
    """Bundle and protocol → README.md, card.json and pictures; 3 where something is not at hand."""
    from endomust_core.bundle import default_bundle
    from endomust_core.card import make_card
    from endomust_core.engines import EngineOptions
    from endomust_core.importing import stderr_progress
    from endomust_core.resources import share

    card = make_card(
        options.bundle or default_bundle(),
        options.protocol or share("config", "card.yaml"),
        options.out,
        open_model=lambda path: open_model(path, options.backend, options.precision),
        engines=EngineOptions((options.backend,), options.precision),
        cache=options.cache,
        replicates=options.seeds_of,
        progress=stderr_progress,
    )
    print(f"{options.out / 'README.md'}: the card; card.json has every number, card/ the pictures")
    return incomplete(card["problems"])


def prepare_command(options: argparse.Namespace) -> int:
    """Download → our layout; 3 where anything is missing."""
    from endomust_core.importing import stderr_progress
    from endomust_core.prepare import prepare

    report = prepare(options.name, options.raw, options.out, progress=stderr_progress())
    print(report.text())
    return 0 if report.complete else 3


def replay_command(options: argparse.Namespace) -> int:
    """Source → what the node would have said, and a report; 3 where a part of the source could not be answered."""
    from endomust_core.importing import stderr_progress
    from endomust_core.replay import replay
    from endomust_core.settings import settings_from

    result = replay(
        options.source,
        options.bundle,
        options.out,
        topic=options.topic,
        camera=options.camera,
        rate=options.rate,
        scale=options.scale,
        settings=settings_from(options.set),
        points=options.points,
        color=not options.no_color,
        fused=not options.no_fused,
        overwrite=options.overwrite,
        rerun=options.rerun,
        providers=(options.backend,),
        precision=options.precision,
        progress=stderr_progress(),
    )
    for name, path in result.files.items():
        print(f"{name}: {path}")
    for sentence in result.notes:
        print(f"note: {sentence}")
    return incomplete(result.problems)


def sheet_command(options: argparse.Namespace) -> None:
    """Recording → contact sheet."""
    import cv2

    from endomust_core.contact_sheet import contact_sheet

    picture = contact_sheet(options.recording, options.rows, options.node)
    if not cv2.imwrite(str(options.out), picture[..., ::-1]):
        raise OSError(f"cannot write {options.out}; use .jpg or .png in a folder that exists")
    print(options.out)


def engine_command(options: argparse.Namespace) -> None:
    """Bundle → engines in the cache, tested against the reference, with their latency."""
    from endomust_core.bundle import default_bundle, load_bundle
    from endomust_core.engine_cache import default_folder
    from endomust_core.engine_report import report
    from endomust_core.engines import EngineOptions, open_engines

    bundle = load_bundle(options.bundle or default_bundle())
    wish = EngineOptions(
        providers=(options.provider,),
        precision=options.precision,
        threads=options.threads,
        device_id=options.device,
        cache_dir=options.cache,
        rebuild=options.rebuild,
        **({} if options.tolerance is None else {"self_test_tolerance": options.tolerance}),
    )
    engines = open_engines(bundle, wish)
    print(report(bundle, engines))
    if "engine" in engines.depth.facts:
        print(f"engines are kept in {options.cache or default_folder()}")


def bench_command(arguments: list[str]) -> int:
    """One of the benchmarks; each reads its own options."""
    if not arguments or arguments[0] not in BENCHMARKS:
        asked = arguments in (["--help"], ["-h"])
        usage = f"usage: endomust bench {{{','.join(BENCHMARKS)}}} [options] [--json OUT]; bench KIND --help tells more"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return importlib.import_module(BENCHMARKS[arguments[0]]).main(arguments[1:])


def info_command(options: argparse.Namespace) -> None:
    """Check a bundle's manifest, hashes and graphs, and say what it holds."""
    from endomust_core.backends import open_network
    from endomust_core.bundle import default_bundle, load_bundle

    bundle = load_bundle(options.bundle or default_bundle())
    for spec in filter(None, (bundle.depth, bundle.pose)):
        for precision in ("fp32", *spec.variants):
            open_network(spec.at(precision), threads=1)  # compares the graph with the manifest
    height, width = bundle.depth.size
    print(f"{bundle.name} {bundle.version}  ({bundle.root})")
    print(f"  {bundle.manifest.get('description', '').strip()}")
    print(f"  depth   {width}x{height}, {bundle.range_m[0]:g} to {bundle.range_m[1]:g} m")
    print(f"  pose    {'{1}x{0}'.format(*bundle.pose.size) if bundle.pose else 'none, so no odometry'}")
    print(f"  scale   {'metric' if bundle.metric else 'not metric on real tissue: set scale.factor'}")
    for network, facts in bundle.manifest.get("verification", {}).items():
        if isinstance(facts, dict) and "onnx_vs_pytorch_max_rel" in facts:
            print(f"  {network:<7} differs from PyTorch by at most {facts['onnx_vs_pytorch_max_rel']:.1e} (relative)")
    for precision, costs in bundle.manifest.get("verification", {}).get("precision", {}).items():
        said = ", ".join(f"{network} {facts['median_rel']:.1e}" for network, facts in costs.items())
        print(f"  {precision:<7} differs from the reference by a median of {said} (relative)")
    print(f"  golden  {'carries images for the self-test' if bundle.golden else 'none, so no self-test'}")
    print(f"  licence {bundle.manifest.get('licence', 'not stated')}")
    print(f"  sha256  {bundle.digest}")


def doctor_command(options: argparse.Namespace) -> int:
    """This machine → a page of checks and remedies; 3 where one of them fails."""
    from endomust_core import doctor

    ros, size = ([], options.image_size) if options.no_ros else ros_rows(options)
    rows = doctor.examine_machine(wanted_providers(options.providers), options.model, options.camera, size) + ros
    print(doctor.page(rows, width=min(shutil.get_terminal_size((110, 40)).columns, 140)))
    if options.json:
        options.json.write_text(doctor.to_json(rows), encoding="utf-8")
    return doctor.exit_code(rows)


def ros_rows(options: argparse.Namespace):
    """(rows of the ROS half, size (H, W) of the camera's images or None)."""
    from endomust_ros.doctor import examine_ros

    return examine_ros(options.seconds, options.topic, options.image_size)


def wanted_providers(text: str | None) -> tuple[str, ...]:
    """'tensorrt,cuda' → names; None is the node's default."""
    if text is None:
        try:
            from endomust_ros.parameters import default

            return default("model.providers")
        except ImportError:  # a library is broken or missing; the page will say which
            return BACKENDS[:1]
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in BACKENDS]
    if unknown or not names:
        raise ValueError(f"--providers is '{text}'; write one or several of {', '.join(BACKENDS)} with commas between")
    return names


def play_command(arguments: list[str]) -> int:
    """A recording → ROS, at its own pace."""
    from endomust_ros.player import main as play

    return play(arguments)


def demo_command(arguments: list[str]) -> int:
    """A recording through the node in a process of its own, and a report of its answers."""
    from endomust_ros.demo import main as demo

    return demo(arguments)


COMMANDS = {
    "render": render_command,
    "import": import_command,
    "play": play_command,
    "demo": demo_command,
    "pretrain": pretrain_command,
    "train": train_command,
    "distil": distil_command,
    "ablate": ablate_command,
    "calibrate": calibrate_command,
    "export": export_command,
    "convert": convert_command,
    "fetch": fetch_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "card": card_command,
    "prepare": prepare_command,
    "replay": replay_command,
    "sheet": sheet_command,
    "engine": engine_command,
    "bench": bench_command,
    "info": info_command,
    "doctor": doctor_command,
}

if __name__ == "__main__":
    sys.exit(main())
