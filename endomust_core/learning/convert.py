"""A folder of published weights → a model bundle: family found by the names inside, strict loading, adapters merged.

Families: EndoMUST, EndoDAC, AF-SfMLearner, IID-SfMLearner, Depth Anything v1 and v2. None of them knows a real metre,
so no bundle made here is metric.
"""

import json
import logging
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import nn

from endomust_core import __version__
from endomust_core.bundle import resize_rgb, sha256_of
from endomust_core.learning.checkpoint import (
    ENDOMUST_DEPTH_RULES,
    RELATIVE_DEPTH_RULES,
    CheckpointError,
    LoadReport,
    depth_config_of,
    fuse_qkv,
    load_endomust_pose,
    load_state,
    load_unet_depth,
    merge_lora,
    read_weights,
    rename,
)
from endomust_core.learning.export import export_bundle
from endomust_core.learning.foundation import TABLE
from endomust_core.learning.lora import LoraConfig, adapt
from endomust_core.learning.networks.depth import (
    DA_V2_TAPS,
    PRESETS,
    DepthConfig,
    DepthNetwork,
    inverse_depth,
    resize,
)
from endomust_core.learning.networks.pose import Pose, PoseNetwork
from endomust_core.learning.networks.relative_depth import RelativeDepth
from endomust_core.learning.networks.unet_depth import UNetDepth
from endomust_core.learning.release import calibration_frames, commit, read_frames, unseen_frames

WEIGHTS = (".pth", ".pt", ".safetensors", ".bin")
PARTS = ("depth_model.pth", "encoder.pth", "depth.pth", "pose_encoder.pth", "pose.pth", "intrinsics_head.pth")
TRAINED_AT = (256, 320)  # H, W of the images that EndoMUST and its relatives learned from
DEPTH_ANYTHING_SIZE = (392, 518)  # H, W; learned at 518×518, and 4:3 is nearer to an endoscope's image
V2_TAPS = {12: DA_V2_TAPS, 24: (4, 11, 17, 23)}  # by number of blocks
RELATIVE_RANGE = (0.01, 100.0)  # of one over the answer; nominal, as there is no unit
MERGED = 1e-4  # merged against unmerged adapters, relative

UNITS = (
    "Depth and translation share one unknown scale: set scale.factor from something of known size. Self-supervised on "
    "SCARED (laparoscopy); other scenes are a guess."
)
RELATIVE = (
    "Relative inverse depth: neither its scale nor its offset is known, so distances between depths mean nothing and "
    "shapes are bent; the order of near and far is what it says. No motion. Learned on photographs, not on tissue."
)
NOT_STATED = "not stated by the authors"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """Where published weights come from and under what licence."""

    title: str
    origin: str
    licence: str = NOT_STATED


FAMILIES = {
    "endomust": Family("EndoMUST", "https://github.com/BaymaxShao/EndoMUST"),
    "endodac": Family("EndoDAC", "https://github.com/BeileiCui/EndoDAC", "MIT (code; not stated for the weights)"),
    "af-sfmlearner": Family(
        "AF-SfMLearner",
        "https://github.com/ShuweiShao/AF-SfMLearner",
        "MIT, in parts Monodepth2's non-commercial licence (code; not stated for the weights)",
    ),
    "iid-sfmlearner": Family("IID-SfMLearner", "https://github.com/bobo909/IID-SfmLearner"),
    "sfmlearner": Family("AF-SfMLearner or IID-SfMLearner", "their depth networks are alike, the files do not tell"),
    "depth-anything-v1": Family("Depth Anything v1", "https://github.com/LiheYoung/Depth-Anything", "Apache-2.0"),
    "depth-anything-v2": Family("Depth Anything v2", "https://github.com/DepthAnything/Depth-Anything-V2"),
}


@dataclass
class Conversion:
    """What was found, loaded and written; as text, the report for people."""

    family: Family
    source: Path
    files: dict[str, str] = field(default_factory=dict)  # name → sha256, of those used
    loaded: list[LoadReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bundle: Path | None = None

    def __str__(self) -> str:
        rows = [f"{self.family.title} in {self.source}"]
        rows += [f"  {name}  sha256 {digest}" for name, digest in self.files.items()]
        rows += [f"  {report}" for report in self.loaded]
        rows += [f"  {note}" for note in self.notes]
        return "\n".join(rows)


@dataclass(frozen=True)
class Found:
    """The networks of a published folder, ready for export."""

    depth: nn.Module
    pose: nn.Module | None
    size: tuple[int, int]
    encoder_size: tuple[int, int] | None
    meaning: str  # of its numbers, for the manifest
    licence: str
    scale_source: str


class PairPose(nn.Module):
    """A published motion network without an intrinsics head: previous, current B×3×H×W → Pose, its intrinsics None.

    backwards: the weights say T_curr_prev (as in Monodepth2), of which the answer is the inverse, T_prev_curr.
    """

    def __init__(self, network: PoseNetwork, backwards: bool):
        super().__init__()
        self.network, self.backwards = network, backwards

    def forward(self, previous: torch.Tensor, current: torch.Tensor) -> Pose:
        rotation, translation, _ = self.network(previous, current)
        if self.backwards:
            rotation = -rotation
            translation = -rotate(rotation, translation)
        return Pose(rotation, translation, None)


def rotate(axis_angle: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Vectors (B, 3) turned by axis times angle (B, 3) [rad], Rodrigues' formula in operations that ONNX has."""
    angle = axis_angle.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
    axis = axis_angle / angle
    along = axis * (axis * vector).sum(1, keepdim=True)
    return along + torch.cos(angle) * (vector - along) + torch.sin(angle) * torch.linalg.cross(axis, vector)


def convert(
    source: str | Path,
    out: str | Path,
    frames_from=(),
    size: tuple[int, int] | None = None,
    weight_dtype: str = "float32",
    family: str | None = None,
    precisions: Sequence[str] = ("fp32",),
) -> Conversion:
    """Published weights in a folder (or one file) → the bundle `out`, and a report.

    frames_from: images or videos on which ONNX Runtime is compared with PyTorch (rendered frames without any); size:
    (H, W) of the bundle's images, if not the published one; family: a key of FAMILIES, where the files do not tell;
    precisions: further graphs beside fp32, "fp16" and "int8". Raises CheckpointError, ExportError.
    """
    if family is not None and family not in FAMILIES:
        raise CheckpointError(f"no family {family!r}; choose one of {', '.join(FAMILIES)}")
    out, source = Path(out), Path(source)
    files = weight_files(source)
    states = {path.name: read_weights(path) for path in files}
    family = recognise(states, files, family)
    report = Conversion(FAMILIES[family], source)
    log.info("%s: %s", source, report.family.title)
    folder = files[0].parent
    frames = [frame for path in frames_from for frame in read_frames(path)] or unseen_frames(each=2)
    if family in ("endomust", "endodac"):
        found = _adapted(states, folder, size, frames, report)
    elif family.endswith("sfmlearner"):
        found = _convolutional(states, folder, size, report, backwards=family == "iid-sfmlearner")
    else:
        found = _relative(states, size, report, version=family[-2:])
    if rest := [path.name for path in files if path.name not in report.files]:
        report.notes.append(f"not needed for a bundle: {', '.join(rest)}")
    report.files = {path.name: sha256_of(path) for path in files if path.name in report.files}
    report.bundle = export_bundle(
        found.depth,
        found.pose,
        out,
        found.size,
        name=out.name,
        provenance=_provenance(report, frames_from),
        scores={},
        frames=frames,
        weight_dtype=weight_dtype,
        description=f"{report.family.title}, published weights. {found.meaning}",
        version=__version__,
        licence=found.licence,
        scale_source=found.scale_source,
        encoder_size=found.encoder_size,
        precisions=precisions,
        golden_frames=unseen_frames(domains=("colon",)),
        calibration=calibration_frames(precisions),
    )
    return report


# --- what is it? ----------------------------------------------------------------------------------------------------


def weight_files(source: Path) -> list[Path]:
    """The files of weights in a folder, or in its only folder that has any; or the one file, if it stands alone."""
    if source.is_file() and source.name in PARTS:
        return _weights_in(source.parent)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise CheckpointError(f"{source} does not exist; give the folder with the downloaded weights, or one file")
    found = {folder: _weights_in(folder) for folder in (source, *(p for p in sorted(source.iterdir()) if p.is_dir()))}
    found = {folder: files for folder, files in found.items() if files}
    if source in found:
        return found[source]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        names = ", ".join(folder.name for folder in found)
        raise CheckpointError(f"{source} holds several folders with weights ({names}); give one of them")
    held = ", ".join(sorted(path.name for path in source.iterdir())[:5]) or "nothing"
    raise CheckpointError(
        f"{source} holds no {', '.join(WEIGHTS)} file ({held}); unpack the download first and give its folder"
    )


def recognise(states: dict[str, dict], files: list[Path], wanted: str | None = None) -> str:
    """Key of FAMILIES, by the names and shapes of the tensors in the files of weights. Raises CheckpointError."""
    names = {name for state in states.values() for name in state}

    def any_of(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    if {"format", "kind", "state_dict"} <= names:
        raise CheckpointError("this is a checkpoint of this project; endomust export RUN makes a bundle of its run")
    if any_of(r"patch_embed_stages"):
        raise CheckpointError(
            "the encoder is an MPViT (MonoPCC, DVSMono), which this project does not have; convert EndoMUST's or "
            "EndoDAC's weights instead"
        )
    if any_of(r"^encoder\.blocks\.") and any_of(r"\.conv_depth_1\."):
        if any_of(r"\.mlp\.fc1\.lora_U$"):
            return _agreed("endomust" if any_of(r"\.attn\.qkv\.lora_U$") else "endodac", wanted)
        raise CheckpointError("the depth network has none of EndoMUST's and EndoDAC's adapters; it is another model")
    if any_of(r"^encoder\.blocks\."):
        raise CheckpointError(
            "this is Depth Anything as EndoDAC renamed it, to start training from, without a depth head; fetch the "
            "published file instead: endomust fetch depth-anything-base"
        )
    if any_of(r"^pretrained\.|^backbone\.embeddings\."):
        return _depth_anything_version(states, files, wanted)
    heads = [state["decoder.10.conv.weight"] for state in states.values() if "decoder.10.conv.weight" in state]
    if any(head.shape[0] == 1 and head.shape[1] == 16 for head in heads):
        return _convolutional_family({path.name for path in files}, wanted)
    known = ", ".join(row.title for row in FAMILIES.values())
    listed = ", ".join(sorted(names)[:3]) or "no tensors"
    raise CheckpointError(
        f"{files[0].parent} ({', '.join(path.name for path in files[:4])}) is of no known family: it has {listed}, …; "
        f"known are {known}, each with its depth network"
    )


def _depth_anything_version(states: dict, files: list[Path], wanted: str | None) -> str:
    """v1 or v2: their tensors have the same names and shapes, so file names, config.json and checksums must tell."""
    if len(states) > 1:
        raise CheckpointError(f"there are {len(states)} files ({', '.join(states)}); give the one to convert")
    path = files[0]
    told = f"{path.parent.name}/{path.name}".lower()
    config = path.with_name("config.json")
    settings = json.loads(config.read_text()) if path.suffix != ".pth" and config.is_file() else {}
    if "metric" in told or settings.get("depth_estimation_type") == "metric":
        raise CheckpointError(
            f"{path.name} was fine-tuned to metres of rooms or streets, which say nothing in a body; take the relative "
            "Depth Anything (endomust fetch --list)"
        )
    if wanted is not None:
        return wanted if wanted.startswith("depth-anything") else _agreed("Depth Anything", wanted)
    if indices := settings.get("backbone_config", {}).get("out_indices"):
        last = list(range(indices[-1] - 3, indices[-1] + 1))
        return "depth-anything-v1" if list(indices) == last else "depth-anything-v2"
    if match := re.search(r"depth[-_]?anything[-_](v2|vit)", told):
        return "depth-anything-v2" if match[1] == "v2" else "depth-anything-v1"
    digest = sha256_of(path)
    for name, row in TABLE.items():
        if row.sha256 == digest:
            return "depth-anything-v2" if "v2" in name else "depth-anything-v1"
    raise CheckpointError(
        f"{path.name} is Depth Anything v1 or v2, and its tensors do not tell which; say --family depth-anything-v1 or "
        "--family depth-anything-v2"
    )


def _convolutional_family(names: set[str], wanted: str | None) -> str:
    """AF-SfMLearner or IID-SfMLearner: depth networks are the same, motion is the other way round."""
    signs = {
        "af-sfmlearner": {"position.pth", "transform.pth", "position_encoder.pth", "transform_encoder.pth"},
        "iid-sfmlearner": {"decompose.pth", "decompose_encoder.pth", "adjust_net.pth"},
    }
    told = [family for family, files in signs.items() if files & names]
    if len(told) == 1:
        return _agreed(told[0], wanted)
    if wanted in signs:
        return wanted
    _agreed("sfmlearner", wanted)
    if "pose.pth" in names:
        raise CheckpointError(
            "these are weights of AF-SfMLearner or of IID-SfMLearner, whose motion networks say opposite directions; "
            "say --family af-sfmlearner or --family iid-sfmlearner"
        )
    return "sfmlearner"


def _agreed(found: str, wanted: str | None) -> str:
    if wanted is not None and wanted != found:
        raise CheckpointError(f"the files are of {found}, not of {wanted}; leave --family out")
    return found


# --- networks -------------------------------------------------------------------------------------------------------


def _adapted(states, folder, size, frames, report) -> Found:
    """EndoMUST and EndoDAC: adapters merged, the published resize to 7/8 inside the graph."""
    name = next(name for name, state in states.items() if any(".lora_U" in key for key in state))
    state = states[name]
    plain, dropped = rename(merge_lora(state, name), ENDOMUST_DEPTH_RULES, name)
    config = depth_config_of(plain, PRESETS["paper"], name)
    depth = DepthNetwork(config)
    report.loaded.append(load_state(depth, plain, None, dropped, name))
    report.files[name] = ""
    size = size or _training_size(state)
    if any(side % 16 for side in size):
        raise CheckpointError(
            f"size {size[1]}x{size[0]} does not fit: the transformer sees 7/8 of it, take multiples of 16"
        )
    encoder_size = (size[0] * 7 // 8, size[1] * 7 // 8)
    layers = "full" if any(".qkv.lora_" in key for key in state) else "part"
    difference = adapters_difference(state, config, layers, depth.eval(), frames[0], size, encoder_size)
    rank = next(len(tensor) for key, tensor in state.items() if key.endswith(".lora_A"))
    report.notes.append(
        f"adapters: DV-LoRA, rank {rank}, {layers}; merged differs from unmerged by {difference:.1e} (relative)"
    )
    report.notes.append(_vectors(state))
    pose = _pose(states, folder, report, backwards=False)
    return Found(depth, pose, size, encoder_size, UNITS, report.family.licence, "network units, arbitrary")


def adapters_difference(
    state: dict,
    config: DepthConfig,
    layers: str,
    merged: DepthNetwork,
    frame: np.ndarray,
    size: tuple[int, int],
    encoder_size: tuple[int, int],
) -> float:
    """Largest relative difference in inverse depth on one uint8 RGB frame between merged and unmerged adapters.

    The reference computes W x and (B ⊙ V)(A ⊙ U) x apart, as the authors do. Raises CheckpointError above 1e-4.
    """
    rank = next(len(tensor) for key, tensor in state.items() if key.endswith(".lora_A"))
    reference = DepthNetwork(config)
    adapt(reference, LoraConfig(kind="dvlora", rank=rank, layers=layers))
    renamed, dropped = rename(state, ENDOMUST_DEPTH_RULES)
    load_state(reference, renamed, None, dropped, "the unmerged network")
    image = torch.from_numpy(resize_rgb(frame, size)).permute(2, 0, 1)[None] / 255.0
    with torch.inference_mode():
        answers = [
            network.eval()(resize(image, encoder_size), scales=(0,), size=size)[0][:, 0]
            for network in (merged, reference)
        ]
    inverse = [inverse_depth(answer, config.min_depth, config.max_depth) for answer in answers]
    difference = ((inverse[0] - inverse[1]).abs() / inverse[1]).max().item()
    if not difference <= MERGED:
        raise CheckpointError(
            f"merging the adapters changes depth by {difference:.1e} (relative, limit {MERGED:.0e}); the weights hold "
            "NaN or huge values, fetch them again"
        )
    return difference


def _convolutional(states, folder, size, report, backwards: bool) -> Found:
    """AF-SfMLearner and IID-SfMLearner: convolutional depth, motion without intrinsics."""
    depth = UNetDepth()
    report.loaded.append(load_unet_depth(depth, folder))
    report.files |= {"encoder.pth": "", "depth.pth": ""}
    size = size or _training_size(states["encoder.pth"])
    pose = _pose(states, folder, report, backwards)
    report.notes.append("files of Monodepth2 itself look the same but want other input; for those this bundle is wrong")
    return Found(depth, pose, size, None, UNITS, report.family.licence, "network units, arbitrary")


def _relative(states, size, report, version: str) -> Found:
    """Depth Anything with its own head: relative inverse depth, no motion."""
    name, state = next(iter(states.items()))
    renamed, dropped = rename(state, RELATIVE_DEPTH_RULES, name)
    renamed = fuse_qkv(renamed, name)
    base = DepthConfig(
        normalization="imagenet", layer_scale=1e-5, min_depth=RELATIVE_RANGE[0], max_depth=RELATIVE_RANGE[1]
    )
    config = depth_config_of(renamed, base, name)
    licence = report.family.licence
    if version == "v2":
        if config.blocks not in V2_TAPS:
            raise CheckpointError(f"{name} has {config.blocks} blocks; of Depth Anything v2, S, B and L are known")
        config = replace(config, taps=V2_TAPS[config.blocks])
        licence = "Apache-2.0" if config.dim <= PRESETS["small"].dim else "CC-BY-NC-4.0"
    depth = RelativeDepth(config)
    report.loaded.append(load_state(depth, renamed, None, dropped, name))
    report.files[name] = ""
    report.notes.append("no motion network: no odometry; depth is relative, its scale and offset unknown")
    return Found(depth, None, size or DEPTH_ANYTHING_SIZE, None, RELATIVE, licence, "none: relative depth")


def _pose(states, folder, report, backwards: bool) -> nn.Module | None:
    """The motion network of a folder with pose_encoder.pth and pose.pth, or None."""
    names = {"pose_encoder.pth", "pose.pth"}
    have = names & states.keys()
    if not have:
        report.notes.append("no pose_encoder.pth and pose.pth: no odometry")
        return None
    if have != names:
        raise CheckpointError(f"{folder} has {min(have)} without {min(names - have)}; add it, or take both away")
    intrinsics = "intrinsics_head.pth" in states
    network = PoseNetwork("paper")
    report.loaded.append(load_endomust_pose(network, folder, intrinsics))
    report.files |= dict.fromkeys([*sorted(names), *(["intrinsics_head.pth"] if intrinsics else [])], "")
    if intrinsics:
        return network
    report.notes.append("no intrinsics_head.pth: the camera's intrinsics must be given")
    return PairPose(network, backwards)


# --- small facts ----------------------------------------------------------------------------------------------------


def _weights_in(folder: Path) -> list[Path]:
    paths = (path for path in folder.iterdir() if path.suffix in WEIGHTS and path.is_file())
    return sorted(path for path in paths if path.name != "adam.pth")  # the state of an optimiser


def _training_size(state: dict) -> tuple[int, int]:
    """Size of the training images that the published trainers store beside the weights."""
    height, width = state.get("height", TRAINED_AT[0]), state.get("width", TRAINED_AT[1])
    return int(height), int(width)


def _vectors(state: dict) -> str:
    """Whether DV-LoRA's vectors were ever trained: drawn uniformly from (-1, 1), they have a mean square of 1/3."""
    values = torch.cat([tensor.flatten() for key, tensor in state.items() if key.endswith(".lora_V")])
    square, largest = values.square().mean().item(), values.abs().max().item()
    untrained = largest <= 1.0 and abs(square - 1 / 3) < 0.01
    verdict = "as drawn, so never trained" if untrained else "trained"
    return f"DV-LoRA's vectors V: mean square {square:.3f}, largest {largest:.3f}: {verdict}"


def _provenance(report: Conversion, frames_from) -> dict:
    """Where the weights came from and what became of them."""
    return {
        "command": "endomust convert",
        "family": report.family.title,
        "origin": report.family.origin,
        "folder": report.source.resolve().name,
        "files": report.files,
        "notes": report.notes,
        "commit": commit(),
        "program": f"endomust_ros {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": date.today().isoformat(),
        "verified_on": [Path(path).name for path in frames_from] or "rendered frames",
    }
