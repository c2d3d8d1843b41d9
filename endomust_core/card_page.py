"""The numbers of a model card (card.json as a dict) → Markdown that code hosts and model hubs show.

Lengths come in metres and angles in radians and are shown in millimetres and degrees; what is unknown is a dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import yaml

from endomust_core.card_facts import abs_rel, conclusive, less_error, shown_name, span
from endomust_core.evaluation_page import DASH, number
from endomust_core.evaluation_run import MODEL

MARK = "<!-- made by endomust card; card.json has every number -->"
REAL_TIME = 0.040  # s per image at 25 images a second
BUSY = 1.5  # programs a core, from which times are those of a busy machine
FEW = 5  # sequences below which an interval is too narrow to be quoted
KNOWN_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-sa-4.0")
MOTION_COLUMNS = (  # key, heading, factor, digits
    ("ate_5frame", "ATE 5 frames, /N [mm]", 1e3, 4),
    ("ate_5frame_rms", "ATE 5 frames, RMS [mm]", 1e3, 4),
    ("ate_full", "ATE whole path [mm]", 1e3, 2),
    ("length", "path length [mm]", 1e3, 1),
    ("drift", "ATE / length [%]", 100, 1),
    ("rpe_rotation", "rotation per image [°]", 180 / math.pi, 3),
)
SEED_COLUMNS = (
    ("abs_rel", "AbsRel", 1, 4),
    ("a1", "δ1", 1, 4),
    ("scale_std", "scale std", 1, 4),
    ("ate_5frame", "ATE 5 frames, /N [mm]", 1e3, 4),
    ("ate_full", "ATE whole path [mm]", 1e3, 2),
)


def page(card: Mapping) -> str:
    """The whole README.md."""
    sections = (
        _head(card),
        _what(card),
        _data(card),
        _training(card),
        _depth(card),
        _guesses(card),
        _faults(card),
        _motion(card),
        _intrinsics(card),
        _seeds(card),
        _stages(card),
        _failures(card),
        _real(card),
        _limits(card),
        _again(card),
    )
    return "\n\n".join(part for part in sections if part) + "\n"


def cell(score: Mapping | None, digits: int = 3, factor: float = 1.0) -> str:
    """{value, interval} → `0.084 [0.070, 0.100]`."""
    if score is None:
        return DASH
    words = number(score["value"], digits, factor)
    if score["interval"] is None:
        return words
    return f"{words} [{', '.join(number(limit, digits, factor) for limit in score['interval'])}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the bars in its cells are kept from ending them."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        lines.append("| " + " | ".join(str(one).replace("|", "\\|").replace("\n", " ") for one in row) + " |")
    return "\n".join(lines)


def _head(card: Mapping) -> str:
    model, words = card["model"], card["words"]
    licence = model["licence"].lower()
    front = {
        "license": licence if licence in KNOWN_LICENCES else "other",
        "pipeline_tag": "depth-estimation",
        "library_name": "onnx",
        "tags": ["endoscopy", "depth-estimation", "visual-odometry", "onnx", "ros2"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        MARK,
        f"# {model['name']} {model['version']}",
        words["summary"].strip() or model["description"],
        "\n".join(f"- {line}" for line in _headlines(card)),
    ]
    if not card["complete"]:
        missing = "\n".join(f"> - {sentence}" for sentence in card["problems"])
        parts.append(f"> **Incomplete.** Missing from this card:\n>\n{missing}")
    return "\n\n".join(part for part in parts if part)


def _headlines(card: Mapping) -> list[str]:
    groups = [group for group in card["groups"] if group["at_hand"]]
    found = []
    for zero_shot, where in ((False, "domains it was trained on"), (True, "domains it never saw (zero-shot)")):
        rows = [group for group in groups if group["zero_shot"] is zero_shot]
        if rows:
            scores = ", ".join(f"{_marked(group)} {number(abs_rel(group))}" for group in rows)
            found.append(f"**AbsRel on {where}:** {scores}")
    gains = [gain for group in conclusive(card) if (gain := less_error(group)) is not None]
    if gains:
        found.append(f"**Less error than the best guess without any network:** {span(gains, 0)} %")
    found.append(f"**Speed:** {_speed_words(card)}")
    found.append("**Research software, not a medical device.**")
    return found


def _marked(group: Mapping) -> str:
    return group["name"] + (" (indicative)" if group["indicative"] else "")


def _speed_words(card: Mapping) -> str:
    speed, environment = card["speed"], card["environment"]
    if card["words"]["speed"]:
        return card["words"]["speed"]
    taken = {what: speed[what]["fastest"] for what in ("depth", "motion") if speed[what]}
    kind = "real time at 25 images a second" if sum(taken.values()) <= REAL_TIME else "slower than 25 images a second"
    if speed["load"] > BUSY * environment["cores"]:
        kind = "timed on a busy machine, so at most"
    times = " and ".join(f"{what} {number(seconds, 1, 1e3)} ms" for what, seconds in taken.items())
    return (
        f"{kind}: {times} an image, fastest of several runs, {card['model']['backend']}, "
        f"{environment['cores']} cores of {environment['processor']}; `endomust bench engine` measures it properly"
    )


def _what(card: Mapping) -> str:
    model = card["model"]
    rows = [("what it does", model["description"])]
    for kind, network in model["networks"].items():
        height, width = network["input"]
        parameters = network["parameters"]
        size = "" if parameters is None else f"{parameters / 1e6:.2f} M parameters, "
        images = "one image" if kind == "depth" else "two images that follow each other"
        precisions = "" if network["precisions"] == ["fp32"] else f", also as {', '.join(network['precisions'][1:])}"
        size += _megabytes(network["bytes"]) + precisions
        rows.append((f"{kind} network", f"{images}, {width}x{height} RGB; {size}"))
    low, high = (number(value, 0, 1e3) for value in model["range_m"])
    rows += [
        ("depth range", f"{low} to {high} mm, {'metric' if model['metric'] else 'of unknown scale on real tissue'}"),
        ("speed", _speed_words(card)),
        ("files", ", ".join(f"`{name}` {_megabytes(size)}" for name, size in model["files"].items())),
        ("sha256 of the networks", f"`{model['digest']}`"),
        ("licence", model["licence"]),
    ]
    uses = "\n".join(f"- {use}" for use in card["words"]["uses"])
    return f"## What it is\n\n{table(('', ''), rows)}" + (f"\n\n{uses}" if uses else "")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _data(card: Mapping) -> str:
    rows = []
    for group in card["groups"]:
        if group["at_hand"]:
            low, high = (number(value, 0, 1e3) for value in group["range_m"])
            size = f"{group['images']} / {group['sequences']}"
            rules = f"{low} to {high} mm, " + ("in its own metres" if group["scaling"] == "none" else "median-scaled")
        else:
            size, rules = group["problems"][0], DASH
        seen = "no (zero-shot)" if group["zero_shot"] else "this domain, other scenes"
        notes = " ".join(note for note in (group["what"], group["note"]) if note) or DASH
        rows.append((group["name"], notes, seen, f"`{group['data']}`", group["licence"] or DASH, size, rules))
    head = ("domain", "what", "seen in training", "data", "licence of the data", "images / sequences", "scored")
    return f"## Domains and data\n\n{table(head, rows)}"


def _training(card: Mapping) -> str:
    facts = dict(card["provenance"])
    config = facts.pop("config", None)
    if not facts and not config:
        return "## Training\n\nThe manifest of this bundle does not say how it was made."
    rows = [(key.replace("_", " "), _in_words(value)) for key, value in facts.items()]
    text = f"## Training\n\n{table(('', ''), rows)}"
    if config:
        block = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
        text += f"\n\n<details><summary>Configuration of the run</summary>\n\n```yaml\n{block}```\n\n</details>"
    return text


def _in_words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(one)}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(card: Mapping, columns: int, row) -> list[Sequence[str]]:
    """`row(group)` of each data set; one that is not at hand has its reason in place of numbers."""
    found = []
    for group in card["groups"]:
        reason = group["problems"][0] if group["problems"] else ""
        absent = (shown_name(group), reason.split(" (")[0], *[DASH] * (columns - 2))
        found.append(row(group) if group["at_hand"] else absent)
    return found


def _depth(card: Mapping) -> str:
    head = ("domain", "AbsRel", "δ1 (within 25 %)", "RMSE [mm]", "scale std in a sequence", "truth / prediction")

    def row(group):
        scores = group["depth"][MODEL]
        return (
            shown_name(group),
            cell(scores["abs_rel"]),
            cell(scores["a1"]),
            cell(scores["rmse"], 2, 1e3),
            cell(group["scale_std"]),
            number(group["ratio"], 2),
        )

    few = [group["name"] for group in card["groups"] if group["at_hand"] and group["sequences"] < FEW]
    caution = f" Too few sequences to trust the interval: {', '.join(few)}." if few else ""
    return (
        f"## Scores\n\n### Depth\n\n{table(head, _rows(card, len(head), row))}\n\n"
        "In brackets: 95 % interval, sequences drawn again with replacement (block bootstrap), because frames of one "
        "sequence show nearly the same; where there is one sequence only, blocks of its frames, which says nothing of "
        f"others.{caution} AbsRel and δ1 are means over images. Scale std: how far the scale that fits an image "
        "wanders within a sequence (0: one scale fits all). Truth / prediction: median of the factor that turns "
        "the model's metres into true ones. Indicative: too few images or too coarse a truth to conclude from."
    )


def _guesses(card: Mapping) -> str:
    known = [group for group in card["groups"] if group["at_hand"]]
    if not known:
        return ""
    names = [name for name in known[0]["depth"] if name != MODEL]
    head = ("domain", "this model", *names, "less error than the best of them")

    def row(group):
        cells = [cell(group["depth"][name]["abs_rel"]) for name in (MODEL, *names)]
        return (shown_name(group), *cells, f"{number(less_error(group), 0)} %")

    return (
        f"### Against guesses that learned nothing (AbsRel)\n\n{table(head, _rows(card, len(head), row))}\n\n"
        "A constant depth, depth that falls from the middle of the image, and the inverse square of brightness, by the "
        "same rules and always median-scaled. Where one of them is near, the data set is easy or the model weak."
    )


def _faults(card: Mapping) -> str:
    known = [group for group in card["groups"] if group["faults"]]
    if not known:
        return ""
    faults = list(known[0]["faults"])
    rows = [(shown_name(group), *(number(group["faults"][fault]) for fault in faults)) for group in known]
    return (
        f"### Under faults of the image (AbsRel)\n\n{table(('domain', *faults), rows)}\n\n"
        "Severity 1 is slight, 5 severe (docs/evaluation.md); the same images in each column, the first of a sequence."
    )


def _motion(card: Mapping) -> str:
    moved = {group["name"] for group in card["groups"] if group["at_hand"] and group["motion"]}
    if not moved:
        return ""
    head = ("domain", *(column[1] for column in MOTION_COLUMNS))

    def row(group):
        motion = dict(group["motion"])
        if "length" in motion:
            motion["length"] = motion["length"] | {"interval": None}  # a fact, not an estimate
        cells = (cell(motion.get(key), digits, factor) for key, _, factor, digits in MOTION_COLUMNS)
        return (shown_name(group), *cells)

    rows = _rows({"groups": [g for g in card["groups"] if g["name"] in moved]}, len(head), row)
    return (
        f"### Camera motion\n\n{table(head, rows)}\n\n"
        "Of the pose network alone, without the node's tracking; means over sequences. 5 frames: windows of five "
        "images with their own scale; /N divides by N as published tables do, RMS is the true root mean square. "
        "Whole path: after rotation, translation and scale of the whole path are taken out."
    )


def _intrinsics(card: Mapping) -> str:
    known = [group for group in card["groups"] if group["at_hand"] and group["intrinsics"]]
    if not known:
        return ""
    rows = [(shown_name(group), *(number(error, 1, 100) for error in group["intrinsics"])) for group in known]
    head = ("domain", "fx [%]", "fy [%]", "cx [%]", "cy [%]")
    return (
        f"### Camera intrinsics\n\n{table(head, rows)}\n\nRelative error of what the pose network says of the camera, "
        "averaged over the pairs of a sequence, then over sequences."
    )


def spread(score: Mapping | None, digits: int, factor: float) -> str:
    """{mean, sd} → `0.0843 ± 0.0012`."""
    if score is None:
        return DASH
    sd = "" if score["sd"] is None else f" ± {number(score['sd'], digits, factor)}"
    return number(score["mean"], digits, factor) + sd


def _seeds(card: Mapping) -> str:
    seeds = card["seeds"]
    if not seeds:
        return ""
    rows = [
        (name, *(spread(scores.get(key), digits, factor) for key, _, factor, digits in SEED_COLUMNS))
        for name, scores in seeds["groups"].items()
    ]
    head = ("domain", *(column[1] for column in SEED_COLUMNS))
    models = ", ".join(f"`{name}`" for name in seeds["models"])
    text = f"### Training seeds\n\n{table(head, rows)}\n\n{_seeds_words(seeds)}: {models}."
    return text + _missing_words(seeds)


def _seeds_words(seeds: Mapping) -> str:
    count = len(seeds["models"])
    return f"Mean ± standard deviation (n - 1) over {count} trainings with other seeds" if count > 1 else "One training"


def _missing_words(seeds: Mapping) -> str:
    return f" Not at hand: {', '.join(seeds['missing'])}." if seeds["missing"] else ""


def _stages(card: Mapping) -> str:
    stages = card["stages"]
    if not stages:
        return ""
    names = [group["name"] for group in card["groups"] if group["at_hand"]]
    rows = []
    for stage, seeds in stages.items():
        scores = seeds["groups"]
        cells = [spread(scores[name].get("abs_rel"), 4, 1) for name in names]
        cells += [spread(scores[name].get("ate_5frame"), 4, 1e3) for name in names if _moves(stages, name)]
        rows.append((stage, f"{len(seeds['models'])}", *cells))
    head = ["stage", "seeds", *(f"{name}: AbsRel" for name in names)]
    head += [f"{name}: ATE 5 [mm]" for name in names if _moves(stages, name)]
    missing = "".join(_missing_words(seeds) for seeds in stages.values())
    note = f"Mean ± standard deviation (n - 1) over seeds.{missing}"
    return f"### Stages of the training\n\n{table(head, rows)}\n\n{note}"


def _moves(stages: Mapping, name: str) -> bool:
    return any("ate_5frame" in seeds["groups"][name] for seeds in stages.values())


def _failures(card: Mapping) -> str:
    parts = []
    for group in card["groups"]:
        if not group["picture"]:
            continue
        lines = [f"### {shown_name(group)}", f"![The worst images of {group['name']}](card/{group['picture']})"]
        for frame in group["failures"]:
            parted = f"{number(frame['too_far'], 0, 100)} % of the pixels more than 10 % too far, "
            parted += f"{number(frame['too_near'], 0, 100)} % too near"
            lines.append(
                f"- {frame['kind']}: `{frame['name']}`, AbsRel {number(frame['abs_rel'])}; {parted}; "
                f"median brightness {number(frame['brightness'], 0)} of 255"
            )
        parts.append("\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]))
    if not parts:
        return ""
    return (
        "## Where it fails\n\nThe worst images of each data set by AbsRel, and one in the middle: image, predicted "
        "depth as it was scored, true depth, signed error.\n\n" + "\n\n".join(parts)
    )


def _real(card: Mapping) -> str:
    parts = []
    for clip in card["real"]:
        lines = [f"### {clip['name']}", " ".join(word for word in (clip["what"], _source_words(clip)) if word)]
        if clip["picture"]:
            lines.append(f"![Image, depth, confidence and masks of {clip['name']}](card/{clip['picture']})")
            lines.append("\n".join(f"- {sentence}" for sentence in _clip_facts(clip["facts"])))
        lines += [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in clip["problems"]]
        parts.append("\n\n".join(lines))
    if not parts:
        return ""
    return (
        "## On real images\n\nThere is no truth here, so this is to look at. Depth and confidence are those of "
        "the node; metres are the model's.\n\n" + "\n\n".join(parts)
    )


def _source_words(clip: Mapping) -> str:
    licence = f", licence: {clip['licence']}" if clip["licence"] else ""
    if clip["calibrated"]:
        camera = "calibrated"
    elif clip["fov_deg"]:
        camera = f"not calibrated; {clip['fov_deg']:g}° across were guessed"
    else:
        camera = "not calibrated, so every image is judged alone"
    return f"Source: `{clip['source']}`{licence}; {camera}."


def _clip_facts(facts: Mapping) -> list[str]:
    shares = ", ".join(
        f"{name} {number(facts[key], 1, 100)} %"
        for key, name in (("valid", "depth"), ("confident", "confidence above one half"), ("highlight", "highlights"),
                          ("surround", "dark surround"), ("instrument", "taken for instruments"))
    )  # fmt: skip
    found = [f"{facts['images']} images; share of the pixels: {shares}"]
    if facts["scale_wander"] is not None:
        wander = number(facts["scale_wander"], 1, 100)
        found.append(f"the scale of depth wanders by {wander} % from image to image (standard deviation)")
    if facts["instrument_images"]:
        nearer, ratio = number(facts["instrument_nearer"], 0, 100), number(facts["instrument_ratio"], 2)
        found.append(
            f"of {facts['instrument_images']} images with something taken for an instrument it lies nearer than what "
            f"is around it in {nearer} %, at {ratio} of its depth (median)"
        )
    return found


def _limits(card: Mapping) -> str:
    told = "\n".join(f"- {sentence}" for sentence in card["words"]["limits"])
    found = "\n".join(f"- {sentence}" for sentence in card["facts"])
    parts = ["## Limits", told, "Measured for this card:", found] if found else ["## Limits", told]
    return "\n\n".join(part for part in parts if part)


def _again(card: Mapping) -> str:
    words, environment = card["words"], card["environment"]
    commands = "\n".join([*words["reproduce"], card["command"]])
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    parts = [
        f"## Licence\n\n{card['model']['licence']}. Data sets have licences of their own, in the table above.",
        f"## How to get this card again\n\n```\n{commands}\n```",
        f"Made on {card['date']} with endomust {environment['endomust']}, Python {environment['python']}, {packages}; "
        f"trajectories by {environment['trajectories_by']}.",
    ]
    if words["cite"].strip():
        parts.append(f"## How to cite\n\n```bibtex\n{words['cite'].strip()}\n```")
    return "\n\n".join(parts)
