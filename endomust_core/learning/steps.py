"""The three training steps as data, what trains in each, and their losses on one batch.

I registration: optical and appearance flow. II decomposition: reflectance and shading. III alignment: depth, motion,
intrinsics and light adjustment. A loss is a (B,) tensor under its name; everything a step needs from a network is
computed once per batch in `Forward`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from endomust_core.learning import losses as L
from endomust_core.learning.geometry import (
    consistency_visibility,
    count_visibility,
    flow_positions,
    in_view,
    intrinsics_matrix,
    pose_matrix,
    rigid_positions,
    sample,
    warp_by_flow,
)
from endomust_core.learning.lora import PHASES, trainable_parameters
from endomust_core.learning.networks.depth import SCALES, depth_from_disparity
from endomust_core.learning.triplets import Batch

NETWORKS = ("optical_flow", "appearance_flow", "decomposition", "light_adjust", "depth", "pose")


@dataclass(frozen=True)
class Step:
    """One update on a batch: its name, the networks it trains, and its groups of losses (methods of `Forward`)."""

    name: str
    trains: tuple[str, ...]
    losses: tuple[str, ...]


REGISTRATION = Step("registration", ("optical_flow",), ("registration",))
APPEARANCE = Step("appearance", ("appearance_flow",), ("appearance",))
DECOMPOSITION = Step("decomposition", ("decomposition",), ("decomposition",))
ALIGNMENT = Step("alignment", ("depth", "pose", "light_adjust"), ("alignment",))

SCHEMES = {  # which steps share an update; I-II-III is the method, the joint ones are its ablation
    "I-II-III": (("I",), ("II",), ("III",)),
    "I-II+III": (("I",), ("II", "III")),
    "I+II+III": (("I", "II", "III"),),
    "I-III": (("I",), ("III",)),  # no decomposition, as in EndoDAC
}


@dataclass(frozen=True)
class LossOptions:
    """Weights and switches of the losses. The published ones first; then what we add, each off in the paper preset."""

    scheme: str = "I-II-III"
    appearance_step: str = "I"  # I | III: where the appearance flow trains (the paper's text: I; its ancestor: III)
    decomposition_in_alignment: bool = False  # also train it in III; its reflectance loss alone prefers R = constant
    disparity_smoothness: float = 1e-3
    flow_smoothness: float = 1e-3
    appearance_anchor: float = 0.01
    appearance_smoothness: float = 0.01
    reconstruction: float = 0.02
    reflectance: float = 0.02
    reprojection: float = 0.1
    decomposition_scales: tuple[float, ...] = (1.0, 0.75, 0.5)
    intrinsics: str = "mean"  # mean of both pairs | last (published: that of the later frame) | given with the data
    reuse: bool = True  # keep what an earlier step has computed on this batch; off: compute again after each update
    jittered_decomposition: bool = False  # published: it sees the colour-jittered images; ours the plain ones
    # improvements
    visibility: str = "consistency"  # of both flows | count (published: splat the backward flow and count)
    mask_specular: bool = True
    mask_border: bool = True
    mask_instrument: bool = True
    cycle: float = 0.5  # weight of photometric cycle consistency
    geometry: float = 0.1  # weight of depth consistency between the frames
    shading_smoothness: float = 0.018
    reflectance_sparsity: float = 0.006  # three times as much, and reflectance loses its texture
    reflectance_registered: float = 0.004  # reflectance of a registered source equals that of the target

    def __post_init__(self):
        choices = {
            "scheme": tuple(SCHEMES),
            "appearance_step": ("I", "III"),
            "intrinsics": ("mean", "last", "given"),
            "visibility": ("consistency", "count"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if not self.decomposition_scales or any(not 0 < scale <= 1 for scale in self.decomposition_scales):
            raise ValueError(f"decomposition_scales {self.decomposition_scales} must lie in (0, 1], at least one")


def steps(options: LossOptions) -> tuple[Step, ...]:
    """The updates of one batch, in order."""
    third = ALIGNMENT
    if options.decomposition_in_alignment:
        third = Step(third.name, (*third.trains, "decomposition"), third.losses)
    parts = {
        "I": (REGISTRATION, APPEARANCE) if options.appearance_step == "I" else (REGISTRATION,),
        "II": (DECOMPOSITION,),
        "III": (third, APPEARANCE) if options.appearance_step == "III" else (third,),
    }
    return tuple(_joined([part for name in names for part in parts[name]]) for names in SCHEMES[options.scheme])


def _joined(parts: list[Step]) -> Step:
    trains = tuple(dict.fromkeys(name for part in parts for name in part.trains))
    return Step("+".join(part.name for part in parts), trains, tuple(name for part in parts for name in part.losses))


def networks_of(options: LossOptions) -> tuple[str, ...]:
    """The networks that some step trains, in the order of `NETWORKS`."""
    used = {name for step in steps(options) for name in step.trains}
    if "decomposition" not in used:
        used -= {"light_adjust"}
    return tuple(name for name in NETWORKS if name in used)


def trained_names(name: str, network: nn.Module, phase: str) -> set[str]:
    """Names of the parameters of a network that train when its step has its turn; decided here and nowhere else."""
    if name == "depth":
        return set(trainable_parameters(network, phase))
    return {parameter for parameter, _ in network.named_parameters()}


def optimised_parameters(networks: dict[str, nn.Module], step: Step) -> list[tuple[str, nn.Parameter]]:
    """Every parameter that the step trains in any phase, as (network.parameter, tensor).

    Those frozen in the current phase are included, so a later phase finds them in the optimiser; the published trainer
    built its list in the first phase, and its vectors never moved.
    """
    rows = []
    for name in step.trains:
        if name in networks:
            wanted = set().union(*(trained_names(name, networks[name], phase) for phase in PHASES))
            rows += [(f"{name}.{key}", value) for key, value in networks[name].named_parameters() if key in wanted]
    return rows


def set_trainable(networks: dict[str, nn.Module], step: Step | None, phase: str) -> None:
    """Set requires_grad and train/eval of every network for this step; None freezes all of them."""
    for name, network in networks.items():
        trains = step is not None and name in step.trains
        wanted = trained_names(name, network, phase) if trains else set()
        network.train(trains)
        for key, parameter in network.named_parameters():
            parameter.requires_grad_(key in wanted)


def total_of(values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean over the batch of the sum of all losses; their weights are already in them."""
    return sum(value.mean() for value in values.values())


class Forward:
    """What the networks say about one batch, each computed when first asked for and kept.

    With B samples and two sources, tensors of both sources are stacked (2B, previous first). `detach` cuts the graph
    after an update, so that a later step uses the numbers and trains nothing of an earlier one.
    """

    def __init__(self, networks: dict[str, nn.Module], batch: Batch, options: LossOptions, depth_size: tuple[int, int]):
        self.networks, self.batch, self.options, self.depth_size = networks, batch, options, tuple(depth_size)
        self.kept: dict[str, object] = {}
        self.size = tuple(batch.target.shape[-2:])
        self.sources = torch.cat([batch.previous, batch.next])
        self.targets = torch.cat([batch.target, batch.target])
        self.sources_seen = torch.cat([batch.previous_jittered, batch.next_jittered])
        self.targets_seen = torch.cat([batch.target_jittered, batch.target_jittered])

    def losses(self, step: Step) -> dict[str, torch.Tensor]:
        """All losses of a step, weighted: name → (B,)."""
        values: dict[str, torch.Tensor] = {}
        for group in step.losses:
            values |= getattr(self, f"{group}_losses")()
        return values

    def detach(self) -> None:
        """Forget the graph, or with `reuse` off everything but the masks."""
        if not self.options.reuse:
            self.kept = {name: value for name, value in self.kept.items() if name in ("usable", "pyramid")}
        self.kept = {name: _detached(value) for name, value in self.kept.items()}

    def keep(self, name: str, compute):
        if name not in self.kept:
            self.kept[name] = compute()
        return self.kept[name]

    # --- frames -------------------------------------------------------------------------------------------------

    def pyramid(self) -> list[torch.Tensor]:
        """The target at scales 0 to 3, for edge-aware smoothness."""
        return self.keep("pyramid", lambda: [self.at_scale(self.batch.target, scale) for scale in SCALES])

    def at_scale(self, image, scale):
        """Mean-pooled image whose sides are those of the network's output at the scale."""
        size = tuple(-(-side // 2**scale) for side in self.size)
        return image if scale == 0 else F.interpolate(image, size=size, mode="area")

    def usable(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels that may be compared, (target B×1×H×W, sources 2B×1×H×W) as floats: lit, no highlight, no tool."""

        def mask(image, instrument):
            good = torch.ones_like(image[:, :1], dtype=torch.bool)
            if self.options.mask_specular:
                good &= ~self.highlights(image)
            if self.options.mask_border:
                good &= self.lit(image)
            if self.options.mask_instrument:
                good &= ~instrument
            return good.float()

        def compute():
            batch = self.batch
            sources = torch.cat([batch.instrument_previous, batch.instrument_next])
            return mask(batch.target, batch.instrument_target), mask(self.sources, sources)

        return self.keep("usable", compute)

    def highlights(self, image: torch.Tensor) -> torch.Tensor:
        """Highlights with a margin of 2 px at the published image height of 256, less in smaller images."""
        return L.specular_mask(image, grow=round(2 * self.size[0] / 256))

    def lit(self, image: torch.Tensor) -> torch.Tensor:
        """The field of view without its border, 3 px at a height of 256."""
        return L.border_mask(image, shrink=round(3 * self.size[0] / 256))

    def comparable(self, positions: torch.Tensor) -> torch.Tensor:
        """Where target and sampled source are both usable: 2B×1×H×W, no gradient."""
        target, sources = self.usable()
        with torch.no_grad():
            return twice(target) * (sample(sources, positions.detach()) > 0.99)

    # --- step I -------------------------------------------------------------------------------------------------

    def flow(self) -> dict[int, torch.Tensor]:
        """Optical flow target → source at four scales, 2B×2×h×w in full pixels."""
        return self.keep("flow", lambda: _float(self.networks["optical_flow"](self.sources_seen, self.targets_seen)))

    def backward_flow(self) -> torch.Tensor:
        """Optical flow source → target at scale 0, no gradient."""

        def compute():
            with torch.no_grad():
                return self.networks["optical_flow"](self.targets_seen, self.sources_seen)[0].float()

        return self.keep("backward_flow", compute)

    def visibility(self) -> torch.Tensor:
        """Target pixels that the source sees too, times what is usable in both: 2B×1×H×W float."""

        def compute():
            flow = self.flow()[0].detach()
            if self.options.visibility == "count":
                seen = count_visibility(self.backward_flow())
            else:
                seen = consistency_visibility(flow, self.backward_flow())
            return seen.float() * self.comparable(flow_positions(flow))

        return self.keep("visibility", compute)

    def registered(self) -> torch.Tensor:
        """Sources brought onto the target by the flow of scale 0: 2B×3×H×W."""
        return self.keep("registered", lambda: warp_by_flow(self.sources, self.flow()[0]))

    def appearance(self) -> dict[int, torch.Tensor]:
        """Change of brightness from target to registered source at four scales, enlarged to 2B×3×H×W."""

        def compute():
            maps = _float(self.networks["appearance_flow"](self.registered().detach(), self.targets))
            return {scale: self.enlarged(values) for scale, values in maps.items()}

        return self.keep("appearance", compute)

    def refined(self, scale: int) -> torch.Tensor:
        """The target as bright as the source: 2B×3×H×W."""
        return (self.targets + self.appearance()[scale] * self.visibility()).clamp(0, 1)

    def enlarged(self, values: torch.Tensor) -> torch.Tensor:
        if tuple(values.shape[-2:]) == self.size:
            return values
        return F.interpolate(values, size=self.size, mode="bilinear", align_corners=False)

    def registration_losses(self) -> dict[str, torch.Tensor]:
        """L1: sources warped by the flow of each scale against the refined target; smooth flow."""
        photometric = smooth = 0.0
        for scale in SCALES:
            flow = self.flow()[scale]
            warped = self.registered() if scale == 0 else warp_by_flow(self.sources, self.enlarged(flow))
            photometric = photometric + self.compared(warped, self.refined(scale), self.visibility())
            image = twice(self.pyramid()[scale])
            smooth = smooth + halves(L.edge_smoothness(flow, image)) / 2**scale
        return {
            "registration/photometric": photometric / len(SCALES),
            "registration/smoothness": self.options.flow_smoothness * smooth / len(SCALES),
        }

    def appearance_losses(self) -> dict[str, torch.Tensor]:
        """The brightness-calibrated target stays near the registered source, and its change is smooth."""
        anchor = smooth = 0.0
        registered = self.registered().detach()
        residual = self.targets - registered
        for scale in SCALES:
            distance = (self.refined(scale) - registered).abs().mean(1, keepdim=True)
            anchor = anchor + halves(L.masked_mean(distance, self.visibility()))
            smooth = smooth + halves(L.residual_smoothness(self.appearance()[scale], residual, self.visibility()))
        return {
            "appearance/anchor": self.options.appearance_anchor * anchor / len(SCALES),
            "appearance/smoothness": self.options.appearance_smoothness * smooth / len(SCALES),
        }

    def compared(self, a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Photometric distance of two 2B×3×H×W images over a mask, averaged over the sources: (B,)."""
        return halves(L.masked_mean(L.photometric(a, b), mask))

    # --- step II ------------------------------------------------------------------------------------------------

    def decomposed_frames(self) -> torch.Tensor:
        """What is decomposed: previous, next, target, 3B×3×H×W."""
        if self.options.jittered_decomposition:
            return torch.cat([self.sources_seen, self.batch.target_jittered])
        return torch.cat([self.sources, self.batch.target])

    def decomposition(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Reflectance 3B×3×H×W and shading 3B×1×H×W of previous, next, target."""
        return self.keep("decomposition", lambda: _float(self.networks["decomposition"](self.decomposed_frames())))

    def decomposition_losses(self) -> dict[str, torch.Tensor]:
        """L2: each frame is reflectance times shading, at several sizes; and the priors that keep R from being I."""
        options, frames = self.options, self.decomposed_frames()
        lit = self.lit(frames).float() if options.mask_border else None
        total, values = 0.0, {}
        for scale in options.decomposition_scales:
            if scale == 1.0:
                image, (reflectance, shading), good = frames, self.decomposition(), lit
            else:
                size = tuple(max(32, round(side * scale)) for side in self.size)
                image = F.interpolate(frames, size=size, mode="area")
                reflectance, shading = _float(self.networks["decomposition"](image))
                good = None if lit is None else F.interpolate(lit, size=size, mode="nearest")
            total = total + thirds(L.reconstruction(reflectance, shading, image, good))
        values["decomposition/reconstruction"] = options.reconstruction * total
        reflectance, shading = self.decomposition()
        highlights = self.highlights(frames)
        if options.shading_smoothness:
            smooth = thirds(L.shading_smoothness(shading, frames, highlights, lit))
            values["decomposition/shading_smoothness"] = options.shading_smoothness * smooth
        if options.reflectance_sparsity:
            sparse = thirds(L.reflectance_sparsity(reflectance, frames, highlights, lit))
            values["decomposition/reflectance_sparsity"] = options.reflectance_sparsity * sparse
        if options.reflectance_registered:
            sources, target = self.reflectances()
            brought = warp_by_flow(sources, self.flow()[0].detach())
            distance = (brought - twice(target)).abs().mean(1, keepdim=True)
            same = halves(L.masked_mean(distance, self.visibility().detach()))
            values["decomposition/registered"] = options.reflectance_registered * same
        return values

    def reflectances(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Reflectance of the sources (2B) and of the target (B)."""
        reflectance, _ = self.decomposition()
        both = len(self.sources)
        return reflectance[:both], reflectance[both:]

    # --- step III -----------------------------------------------------------------------------------------------

    def disparity(self) -> dict[int, torch.Tensor]:
        """Disparity of the target at four scales, B×1×h×w; scale 0 has the size of the batch's images."""

        def compute():
            image = self.for_depth(self.batch.target_jittered)
            return _float(self.networks["depth"](image, scales=SCALES, size=self.size))

        return self.keep("disparity", compute)

    def source_depth(self) -> torch.Tensor:
        """Depth of the sources, 2B×1×H×W."""

        def compute():
            image = self.for_depth(self.sources_seen)
            return self.depth_of(self.networks["depth"](image, scales=(0,), size=self.size)[0].float())

        return self.keep("source_depth", compute)

    def for_depth(self, image: torch.Tensor) -> torch.Tensor:
        if tuple(image.shape[-2:]) == self.depth_size:
            return image
        return F.interpolate(image, size=self.depth_size, mode="bilinear", align_corners=True)

    def depth_of(self, disparity: torch.Tensor) -> torch.Tensor:
        config = self.networks["depth"].config
        return depth_from_disparity(disparity, config.min_depth, config.max_depth)

    def motion(self) -> tuple[torch.Tensor, torch.Tensor]:
        """T_source_target 2B×4×4 and K B×3×3 [px]."""

        def compute():
            pose = self.networks["pose"](self.sources_seen, self.targets_seen)
            first, second = pose.intrinsics.float().chunk(2)
            intrinsics = second if self.options.intrinsics == "last" else 0.5 * (first + second)
            if self.options.intrinsics == "given":
                intrinsics = self.batch.intrinsics
            matrix = pose_matrix(pose.rotation.float(), pose.translation.float())
            return matrix, intrinsics_matrix(intrinsics, self.size)

        return self.keep("motion", compute)

    def rigid(self, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where depth of a scale and motion carry the target's pixels in the sources: 2B×2×H×W [px], z 2B×1×H×W."""

        def compute():
            transform, K = self.motion()
            disparity = self.disparity()[scale]
            if tuple(disparity.shape[-2:]) != self.size:
                disparity = self.enlarged(disparity)
            return rigid_positions(twice(self.depth_of(disparity)), twice(K), transform)

        return self.keep(f"rigid/{scale}", compute)

    def alignment_losses(self) -> dict[str, torch.Tensor]:
        """L3: sources warped by depth and motion against the refined target; the light-free and our own terms."""
        options = self.options
        photometric = smooth = 0.0
        for scale in SCALES:
            warped = sample(self.sources, self.rigid(scale)[0])
            refined = self.refined(scale)
            refined = refined if options.appearance_step == "III" else refined.detach()
            photometric = photometric + self.compared(warped, refined, self.visibility())
            disparity = L.normalised_disparity(self.disparity()[scale])
            smooth = smooth + L.edge_smoothness(disparity, self.pyramid()[scale]) / 2**scale
        values = {
            "alignment/photometric": photometric / len(SCALES),
            "alignment/smoothness": options.disparity_smoothness * smooth / len(SCALES),
        }
        positions, z = self.rigid(0)
        if "decomposition" in self.networks:
            values |= self.light_free_losses(positions)
        if options.cycle:
            values["alignment/cycle"] = options.cycle * self.cycle_loss(positions)
        if options.geometry:
            seen = self.visibility() * in_view(positions, self.size)
            _, loss = L.geometry_consistency(z, sample(self.source_depth(), positions), seen)
            values["alignment/geometry"] = options.geometry * halves(loss)
        return values

    def light_free_losses(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Reflectance of the warped source against the target's, and the target rendered anew from them."""
        options = self.options
        reflectance, shading = self.decomposition()
        both = len(self.sources)
        carried = sample(torch.cat([reflectance[:both], shading[:both], self.sources], 1), positions)
        warped_reflectance, warped_shading, warped = carried.split((3, 1, 3), 1)
        valid = in_view(positions, self.size).float() * self.comparable(positions)
        frames = self.decomposed_frames()
        distance = (twice(reflectance[both:]) - warped_reflectance).abs().mean(1, keepdim=True)
        difference = (self.targets - warped).abs() * valid
        adjusted = warped_shading + self.networks["light_adjust"](difference).float()
        brightest = getattr(self.networks["decomposition"].config, "shading_max", 1.0)
        rendered = (warped_reflectance * adjusted.clamp(0, brightest)).clamp(0, 1)
        return {
            "alignment/reflectance": options.reflectance * halves(L.masked_mean(distance, valid)),
            "alignment/reprojection": options.reprojection * self.compared(rendered, twice(frames[both:]), valid),
        }

    def cycle_loss(self, positions: torch.Tensor) -> torch.Tensor:
        """The target carried to the source by the optical flow, fetched back by depth and motion, against itself: (B,).

        Both sides show the target's own light, so moving lamps cannot mislead it (photometric cycle consistency after
        MonoPCC, Wang et al. 2024, with the optical flow in the place of its first warp).
        """
        carried = warp_by_flow(self.targets, self.backward_flow())
        return self.compared(sample(carried, positions), self.targets, self.visibility())


def twice(values: torch.Tensor) -> torch.Tensor:
    """B×… → 2B×…, once for each source."""
    return torch.cat([values, values])


def halves(values: torch.Tensor) -> torch.Tensor:
    """(2B,) over both sources → their mean (B,)."""
    return 0.5 * (values[: len(values) // 2] + values[len(values) // 2 :])


def thirds(values: torch.Tensor) -> torch.Tensor:
    """(3B,) over the frames of a triplet → their mean (B,)."""
    return values.view(3, -1).mean(0)


def _float(values):
    """Network outputs out of autocast, tensor by tensor."""
    if isinstance(values, dict):
        return {key: value.float() for key, value in values.items()}
    if isinstance(values, torch.Tensor):
        return values.float()
    return tuple(value.float() for value in values)


def _detached(value):
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return type(value)(_detached(item) for item in value)
    return value
