"""A bundle and a protocol → its model card in a folder: README.md, card.json with every number, pictures.

What is not at hand gets a row that says so and a sentence in `problems`. No path of the machine stands in a card.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

import numpy as np

from endomust_core.bundle import Bundle, NetworkSpec, load_bundle
from endomust_core.camera import CameraError
from endomust_core.card_facts import measured
from endomust_core.card_page import MARK, page
from endomust_core.card_pictures import clip_sheet, encoded, failure_sheet
from endomust_core.card_protocol import CardError, Clip, Group, file_name, read_protocol
from endomust_core.card_scores import Progress, Scored, Scorer, has_motion
from endomust_core.engines import EngineOptions
from endomust_core.evaluate import environment
from endomust_core.predictions import Predictor
from endomust_core.recording import RecordingError

FORMAT = 1
README, NUMBERS, PICTURES = "README.md", "card.json", "card"
TIMED, WARM_UPS = 30, 3  # runs of each network
# An absolute path inside a text; the slashes of an address (https://…), of a fraction and of "/N" are none.
ABSOLUTE = re.compile(r"(?<![\w/.~…])~?/(?!/)(?:[^\s/'\",;:|)\]<>]+/)+([^\s/'\",;:|)\]<>]*)")


def make_card(
    bundle: str | Path,
    protocol: str | Path,
    out: str | Path,
    *,
    open_model: Callable[[Path], Predictor],
    engines: EngineOptions | None = None,
    cache: str | Path | None = None,
    replicates: Iterable[str | Path] = (),
    progress: Callable[[], Progress] | None = None,
) -> dict:
    """Score the bundle on everything that the protocol names and write the card into `out`; → content of card.json.

    open_model: path of a bundle, or of a run of the same recipe → Predictor. engines: how the bundle runs on real
    clips. cache: folder of predictions, so that a card can be made again in little time. replicates: more bundles or
    runs than the protocol names. progress(): a new callback (done, announced) for each walk over images.

    `complete` is False, and `problems` say why, where a data set, clip or model is not at hand or images are missing.
    Raises CardError, and BundleError for a bundle that cannot be used.
    """
    plan, out, opened = read_protocol(protocol), Path(out), load_bundle(bundle)
    _check_ours(out / README)
    scorer, predictor, pictures = Scorer(cache, progress), open_model(opened.root), {}
    groups = [_group_entry(group, scorer.score(predictor, group), pictures) for group in plan.groups]
    for entry, group in zip(groups, plan.groups, strict=True):
        faults = () if group.indicative else plan.faults
        entry["faults"] = scorer.under_faults(predictor, group, faults, plan.fault_images)
    real = [_clip_entry(clip, opened, engines or EngineOptions(), pictures, progress) for clip in plan.real]
    others = [*plan.replicates, *map(str, replicates)]
    seeds = scorer.over_seeds([opened.root, *others], open_model, plan.groups) if others else None
    stages = {name: scorer.over_seeds(paths, open_model, plan.groups) for name, paths in plan.stages.items()}
    problems = [f"{entry['name']}: {sentence}" for entry in (*groups, *real) for sentence in entry["problems"]]
    for name, table in [("seeds", seeds or {"missing": []}), *stages.items()]:
        problems += [f"{name}: {path} is not at hand" for path in table["missing"]]
    files = encoded(pictures)
    card = portable({
        "format": FORMAT,
        "model": _model(opened, predictor),
        "speed": _speed(predictor, opened.depth.size),
        "environment": {key: value for key, value in environment().items() if key != "platform"},
        "provenance": opened.manifest.get("provenance") or {},
        "words": {key: getattr(plan, key) for key in ("summary", "uses", "speed", "limits", "reproduce", "cite")},
        "groups": groups,
        "real": real,
        "seeds": seeds,
        "stages": stages,
        "pictures": {name: len(data) for name, data in files.items()},
        "command": _command(opened.root, Path(protocol), out),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "problems": problems,
        "complete": not problems,
    })  # fmt: skip
    card["facts"] = measured(card)
    _write(out, card, files)
    return card


def portable(value):
    """The same value as JSON can hold it, with every absolute path in a text cut to `…/` and its last part."""
    if isinstance(value, Mapping):
        return {str(key): portable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [portable(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return ABSOLUTE.sub(r"…/\1", str(value).replace(f"{Path.cwd()}/", ""))


def _group_entry(group: Group, scored: Scored, pictures: dict[str, np.ndarray]) -> dict:
    """The row of card.json; a picture of the worst frames goes to `pictures`."""
    words = {
        key: getattr(group, key)
        for key in ("name", "what", "licence", "zero_shot", "indicative", "note", "split", "limit")
    }
    kind, _, path = group.data.partition(":")
    entry = words | {"data": f"{kind}:{shown_path(path)}"} | scored.numbers | {"failures": [], "picture": None}
    if scored.shown:
        entry["picture"] = f"failures_{file_name(group.name)}.jpg"
        pictures[entry["picture"]], entry["failures"] = failure_sheet(scored.shown)
    return entry


def _clip_entry(clip: Clip, bundle: Bundle, engines: EngineOptions, pictures, progress) -> dict:
    words = {key: getattr(clip, key) for key in ("name", "what", "licence", "fov_deg")}
    source = {"source": shown_path(clip.source), "calibrated": bool(clip.camera)}
    entry = words | source | {"facts": None, "picture": None, "problems": []}
    if not Path(clip.source).exists():
        return entry | {"problems": [f"not at hand ({entry['source']} does not exist)"]}
    try:
        picture, facts = clip_sheet(bundle, clip, engines, progress() if progress else None)
    except (RecordingError, CameraError) as error:
        return entry | {"problems": [str(error)]}
    name, broken = f"real_{file_name(clip.name)}.jpg", facts["unreadable"]
    pictures[name] = picture
    problems = [f"{broken} of {broken + facts['images']} images cannot be read"] if broken else []
    return entry | {"facts": facts, "picture": name, "problems": problems}


def _model(bundle: Bundle, predictor: Predictor) -> dict:
    manifest, specs = bundle.manifest, [spec for spec in (bundle.depth, bundle.pose) if spec]
    paths = [spec.at(precision).path for spec in specs for precision in ("fp32", *spec.variants)]
    paths += [bundle.golden] if bundle.golden else []
    return {
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "description": " ".join(str(manifest.get("description", "")).split()),
        "licence": str(manifest.get("licence", "not stated")),
        "metric": bundle.metric,
        "range_m": list(bundle.range_m),
        "backend": predictor.backend,
        "files": {path.name: path.stat().st_size for path in paths},
        "networks": {spec.kind: _network(spec, manifest) for spec in specs},
    }


def _network(spec: NetworkSpec, manifest: Mapping) -> dict:
    verified = manifest.get("verification", {}).get(spec.kind, {})
    return {
        "input": list(spec.size),
        "parameters": verified.get("parameters"),
        "bytes": spec.path.stat().st_size,
        "precisions": ["fp32", *spec.variants],
    }


def _speed(predictor: Predictor, size: tuple[int, int]) -> dict:
    """Seconds of each network on an image of its size: {depth, motion: None without a pose network, load}."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    moves = has_motion(predictor)
    return {
        "load": os.getloadavg()[0],  # programs that ran during the last minute, this one too
        "depth": _timed(lambda: predictor.disparity(image)),
        "motion": _timed(lambda: predictor.motion(image, image)) if moves else None,
    }


def _timed(call: Callable[[], object]) -> dict[str, float]:
    """{fastest, median} of some runs; the fastest is what other programs on the machine disturb least."""
    taken = []
    for _ in range(WARM_UPS + TIMED):
        start = perf_counter()
        call()
        taken.append(perf_counter() - start)
    return {"fastest": min(taken[WARM_UPS:]), "median": float(np.median(taken[WARM_UPS:]))}


def shown_path(path: str | Path) -> str:
    """A path as a reader of the card can use it: relative to the working directory, or `…/` and its last part."""
    path = Path(path).expanduser()
    if not path.is_absolute():
        return path.as_posix()
    inside = path.is_relative_to(Path.cwd())
    return path.relative_to(Path.cwd()).as_posix() if inside else f"…/{path.name}"


def _command(bundle: Path, protocol: Path, out: Path) -> str:
    words = [shown_path(bundle), "--protocol", shown_path(protocol), "--out", shown_path(out)]
    return "endomust card " + shlex.join(words)


def _check_ours(readme: Path) -> None:
    """Never replace a README that somebody wrote."""
    if readme.is_file() and MARK not in readme.read_text(encoding="utf-8", errors="replace"):
        raise CardError(f"{readme} was not written by endomust card; move it, or give another --out")


def _write(out: Path, card: dict, files: Mapping[str, bytes]) -> None:
    """Pictures, numbers, and the page at last; pictures of an earlier card that are no more are removed."""
    folder = out / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for name in _earlier_pictures(out) - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        _write_atomically(folder / name, data)
    text = json.dumps(card, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    _write_atomically(out / NUMBERS, text.encode("utf-8"))
    _write_atomically(out / README, page(card).encode("utf-8"))


def _earlier_pictures(out: Path) -> set[str]:
    try:
        names = json.loads((out / NUMBERS).read_text(encoding="utf-8"))["pictures"]
        return {name for name in names if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _write_atomically(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
