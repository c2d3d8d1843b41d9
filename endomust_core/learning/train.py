"""The training command: configuration → data, networks, the three steps on every batch, checkpoints, curves, pictures.

`train` reads like the method: for every batch, for every step, set what trains, losses, backward, update. A batch and
its random draws depend on the seed and its number alone, so a run that was stopped goes on to the bit.
"""

import logging
import math
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from endomust_core.data.cache import cache
from endomust_core.data.sequences import open_sequences
from endomust_core.learning import distributed
from endomust_core.learning.build import DepthPart, Part, PosePart, build_networks
from endomust_core.learning.config import ConfigError, load_config
from endomust_core.learning.journal import Journal
from endomust_core.learning.lora import merge
from endomust_core.learning.run import RunFolder, StopRequest
from endomust_core.learning.score import score_decomposition, score_depth, score_motion, validation_loss
from endomust_core.learning.steps import (
    Forward,
    LossOptions,
    Step,
    networks_of,
    optimised_parameters,
    set_trainable,
    steps,
    total_of,
)
from endomust_core.learning.triplets import NO_AUGMENTATION, Augmentation, Triplets

log = logging.getLogger(__name__)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Data:
    """What to train on. Sources are a kind and a path, `video:/data/case1.mp4`; docs/training.md has the kinds."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()  # chooses the checkpoint; depth truth is used where there is some
    test: tuple[str, ...] = ()  # scored before and after, never looked at in between
    size: tuple[int, ...] = (256, 320)  # of the images in all losses and convolutional networks, height and width
    cache: str = ""  # where frames are kept at this size; default: the folder `cache` of the run
    on_error: str = "stop"  # stop | skip: what a frame that cannot be read does
    gap: int = 0  # frames between target and source; 0: adaptive, so that the flow is worth looking at
    least_px: float = 2.0  # median flow that an adaptive gap looks for, in pixels of `size`; less shows no parallax
    max_gap: int = 8
    flip: float = 0.5
    jitter: float = 0.5  # share of triplets whose colours are changed for the networks (never in the losses)
    shared_jitter: bool = True  # one draw per triplet; published: one per image
    time_reversal: bool = False  # exchange previous and next in half of the triplets
    workers: int = 2

    def __post_init__(self):
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}; choose stop or skip")
        if len(self.size) != 2 or min(self.size) < 64:
            raise ValueError(f"size {self.size} must be height and width, each at least 64")


@dataclass(frozen=True)
class Optimisation:
    """How long, how fast, in what precision."""

    epochs: float = 20
    steps: int = 0  # batches; 0: from epochs
    batch: int = 8  # of all processes together
    learning_rate: float = 1e-4
    schedule: str = "cosine"  # cosine | step (published: a tenth at half time) | constant
    warm_up: int = 100  # batches over which the rate rises
    weight_decay: float = 0.0
    clip: float = 1.0  # norm of the gradient per step; 0: none
    vectors_after: float = 0.5  # share of the run after which the adapters' vectors train instead of their matrices
    interleave: str = "batch"  # batch: all steps on each batch | epoch: one sweep of the data per step
    precision: str = "fp32"  # fp32 | bf16 | fp16 (GPU only)
    channels_last: bool = True
    compile: bool = False
    device: str = "auto"
    validate_every: int = 0  # batches; 0: every epoch
    save_every: int = 200
    picture_every: int = 0  # 0: with every validation

    def __post_init__(self):
        choices = {
            "schedule": ("cosine", "step", "constant"),
            "interleave": ("batch", "epoch"),
            "precision": tuple(PRECISIONS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if self.batch < 1 or self.save_every < 1:
            raise ValueError("batch and save_every must be at least 1")
        if not 0 <= self.vectors_after <= 1:
            raise ValueError(f"vectors_after {self.vectors_after} is a share of the run, 0 to 1")


@dataclass(frozen=True)
class TrainConfig:
    name: str = "endomust"
    description: str = ""
    seed: int = 1
    data: Data = field(default_factory=Data)
    depth: DepthPart = field(default_factory=DepthPart)
    pose: PosePart = field(default_factory=PosePart)
    optical_flow: Part = field(default_factory=Part)
    appearance_flow: Part = field(default_factory=Part)
    decomposition: Part = field(default_factory=Part)
    losses: LossOptions = field(default_factory=LossOptions)
    train: Optimisation = field(default_factory=Optimisation)


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite; the batch was saved."""


class OutOfMemory(RuntimeError):
    """The batch does not fit; the message says what makes it smaller."""


def train(config_path, overrides=(), out=None, resume=False, overfit=0) -> Path:
    """Run a configuration file; returns the run's folder.

    resume: go on where the run in `out` stopped; overfit: train on so many triplets alone, without
    augmentation, to see that everything can learn. Raises ConfigError, DataError, RunError, CheckpointError,
    NonFiniteError, OutOfMemory, each with what to do; KeyboardInterrupt after a stop that was saved.
    """
    config = load_config(TrainConfig, config_path, overrides)
    if overfit:
        config = replace(config, data=replace(config.data, flip=0.0, jitter=0.0, time_reversal=False))
    with distributed.processes(config.train.device) as world:
        if config.train.batch % world.size:
            raise ConfigError(f"train.batch {config.train.batch} must divide among {world.size} processes")
        run = RunFolder(Path(out or Path("runs") / config.name), asdict(config) | {"overfit": overfit}, resume, world)
        with run, out_of_memory_in_words(config.train.batch):
            return Trainer(config, run, world, overfit).run()


class Trainer:
    """A run in progress: its data, networks, optimisers, and the number of the next update."""

    def __init__(self, config: TrainConfig, run: RunFolder, world: distributed.World, overfit: int = 0):
        self.config, self.run_folder, self.world = config, run, world
        if config.train.precision == "fp16" and world.device.type == "cpu":
            raise ConfigError("train.precision=fp16 is for GPUs; write bf16 or fp32 on a CPU")
        self.sets = {name: self.cached(name) for name in ("train", "validation", "test")}
        self.triplets = self.triplets_of(self.sets["train"], overfit, augment=True)
        # Data without true depth is scored by the photometric loss; what gives no triplet is refused here and now.
        self.scored_triplets = {
            name: self.triplets_of(self.sets[name])
            for name in ("validation", "test")
            if self.sets[name] and all(sequence.depth is None for sequence in self.sets[name])
        }
        torch.manual_seed(config.seed)
        self.networks = build_networks(config, networks_of(config.losses))
        for network in self.networks.values():
            network.to(world.device)
            if config.train.channels_last:
                network.to(memory_format=torch.channels_last)
        if world.size > 1:
            distributed.synchronise_batch_norm(self.networks)
        self.steps = steps(config.losses)
        self.optimisers = [self.optimiser_for(step) for step in self.steps]
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "fp16")
        self.modules = [StepLosses(self.networks, step) for step in self.steps]
        self.phase = None
        self.update, self.best = 0, None
        if config.losses.intrinsics == "given" and any(c.intrinsics is None for c in self.sets["train"]):
            raise ConfigError("losses.intrinsics is 'given', but some training data has none; choose mean")

    # --- set up -------------------------------------------------------------------------------------------------

    def cached(self, name: str):
        data = self.config.data
        sources = getattr(data, name)
        if isinstance(sources, str):
            sources = (sources,)
        if name == "train" and not sources:
            raise ConfigError("data.train names no source; as in data.train='[video:/data/case1.mp4]'")
        if not sources:
            return []
        folder = Path(data.cache) if data.cache else self.run_folder.path / "cache"
        with self.world.first():  # one process fills the cache, the others find it full
            opened = [s for source in sources for s in open_sequences(source, data.on_error)]
            found = cache(opened, folder, tuple(data.size), data.on_error)
        skipped = sum(sequence.skipped for sequence in found)
        frames = sum(len(sequence.rgb) for sequence in found)
        note = f", {skipped} frames skipped" if skipped else ""
        log.info("%s: %d sequences, %d frames%s", name, len(found), frames, note)
        return found

    def triplets_of(self, sequences, limit=0, augment=False):
        data = self.config.data
        changes = Augmentation(
            data.flip, data.jitter, shared_jitter=data.shared_jitter, time_reversal=data.time_reversal
        )
        return Triplets(
            sequences,
            "adaptive" if data.gap == 0 else data.gap,
            changes if augment else NO_AUGMENTATION,
            least_px=data.least_px,
            most_px=max(12.0, 3 * data.least_px),
            max_gap=data.max_gap,
            limit=limit,
        )

    def optimiser_for(self, step: Step) -> torch.optim.Optimizer:
        options, groups = self.config.train, {}
        for name, parameter in optimised_parameters(self.networks, step):
            rate = getattr(getattr(self.config, name.split(".")[0], None), "rate", 1.0)
            groups.setdefault(rate, []).append(parameter)
        rows = [{"params": found, "rate": rate} for rate, found in groups.items()]
        return torch.optim.AdamW(rows, options.learning_rate, weight_decay=options.weight_decay, fused=True)

    @property
    def per_epoch(self) -> int:
        """Batches of one epoch."""
        return self.triplets.steps_per_epoch(self.config.train.batch)

    @property
    def batches(self) -> int:
        """Batches of the whole run."""
        options = self.config.train
        return options.steps or max(1, round(options.epochs * self.per_epoch))

    def plan(self, update: int) -> tuple[int, tuple[int, ...]]:
        """Number of the batch and which steps it gets at an update."""
        if self.config.train.interleave == "batch":
            return update, tuple(range(len(self.steps)))
        sweep, place = divmod(update, self.per_epoch)
        epoch, step = divmod(sweep, len(self.steps))
        return epoch * self.per_epoch + place, (step,)

    @property
    def updates(self) -> int:
        """Updates of the whole run: batches, or with interleave 'epoch' whole epochs times steps."""
        if self.config.train.interleave == "batch":
            return self.batches
        return math.ceil(self.batches / self.per_epoch) * self.per_epoch * len(self.steps)

    # --- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the end, or to a stop; returns the run's folder with its best networks."""
        options, run = self.config.train, self.run_folder
        state = run.load_state(self.world.device)
        if state:
            self.restore(state)
            log.info("going on at update %d of %d", self.update, self.updates)
        elif self.sets["test"]:
            run.write_scores("before", self.scores("test"))
        journal = Journal(run.path, self.update, self.updates, active=self.world.rank == 0)
        every = options.validate_every or self.per_epoch
        picture_every = options.picture_every or every
        with StopRequest() as stop, journal, closing(self.batches_from(self.update)) as batches:
            while self.update < self.updates:
                batch = next(batches).to(self.world.device, options.channels_last)
                values, forward = self.step_through(batch)
                self.update += 1
                journal.losses(self.update, values, self.optimisers[0].param_groups[0]["lr"])
                last = self.update == self.updates
                if journal.active and (self.update % picture_every == 0 or last):
                    journal.picture(self.update, self.picture(forward))
                if self.update % every == 0 or last:
                    self.validate(journal)
                stopped = self.world.any(stop.asked)
                if self.update % options.save_every == 0 or last or stopped:
                    run.save_state(self.state())
                if stopped and not last:
                    log.info("stopped after update %d and saved; --resume goes on", self.update)
                    raise KeyboardInterrupt
        self.finish()
        return run.path

    def step_through(self, batch):
        """All steps of one update; returns the losses by name and the forward pass, for pictures."""
        options = self.config.train
        self.enter_phase()
        number, chosen = self.plan(self.update)
        forward = Forward(self.networks, batch, self.config.losses, tuple(self.config.depth.size))
        dtype, values = PRECISIONS[options.precision], {}
        self.set_rate(number)
        for index in chosen:
            step, optimiser = self.steps[index], self.optimisers[index]
            set_trainable(self.networks, step, self.phase)
            with torch.autocast(self.world.device.type, dtype) if dtype else nullcontext():
                losses = self.modules[index](forward)
            total = total_of(losses)
            self.check_finite(batch, step, losses, total)
            self.scaler.scale(total).backward()
            self.scaler.unscale_(optimiser)
            trained = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(trained, options.clip or float("inf"))
            if not self.scaler.is_enabled() and not torch.isfinite(norm):
                self.stop_non_finite(batch, step, {"gradient": norm})
            self.scaler.step(optimiser)
            optimiser.zero_grad(set_to_none=True)
            forward.detach()
            values |= {name: value.detach().mean() for name, value in losses.items()}
            values |= {f"total/{step.name}": total.detach(), f"gradient/{step.name}": norm}
        self.scaler.update()
        return self.world.mean(values), forward

    def batches_from(self, update: int):
        """Batches in the order of the plan, made ahead of need."""
        options = self.config.train
        share = options.batch // self.world.size
        pin = self.world.device.type == "cuda"
        rows = slice(self.world.rank * share, (self.world.rank + 1) * share)
        while True:
            number, _ = self.plan(update)
            workers = self.config.data.workers
            ahead = self.triplets.prefetch(number, options.batch, self.config.seed, workers, rows, pin=pin)
            count = self.updates if options.interleave == "batch" else self.per_epoch - number % self.per_epoch
            with closing(ahead):  # its threads end with it, also when the run breaks
                for _ in range(count):
                    yield next(ahead)
                    update += 1

    def enter_phase(self) -> None:
        """Begin the warm-up of the adapters or the training of their vectors, where the plan says so."""
        phase = "vectors" if self.update >= self.config.train.vectors_after * self.updates else "warm_up"
        if phase != self.phase:
            self.phase = phase
            for module, step in zip(self.modules, self.steps, strict=True):
                set_trainable(self.networks, step, phase)
                if self.world.size > 1:  # what is reduced is fixed when the reducer is built
                    module.distribute(self.world)
            trained = sum(p.numel() for p in self.networks["depth"].parameters() if p.requires_grad)
            log.info("phase %s: %s parameters of the depth network train", phase, f"{trained:,}")

    def set_rate(self, batch_number: int) -> None:
        """Learning rate of every group: warm-up, then the schedule; `rate` of a network multiplies it."""
        options = self.config.train
        progress = min(1.0, batch_number / max(1, self.batches))
        factor = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "step": 1.0 if progress < 0.5 else 0.1}
        factor = factor.get(options.schedule, 1.0) * min(1.0, (batch_number + 1) / max(1, options.warm_up))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * factor * group["rate"]

    def check_finite(self, batch, step, losses, total) -> None:
        if not self.world.all(bool(torch.isfinite(total))):
            self.stop_non_finite(batch, step, losses)

    def stop_non_finite(self, batch, step, losses) -> None:
        bad = [name for name, value in losses.items() if not torch.isfinite(value).all()]
        path = self.run_folder.save_batch(self.update, batch, losses)
        raise NonFiniteError(
            f"{', '.join(bad) or 'a loss of another process'} is not finite in step {step.name} at update "
            f"{self.update}; the batch is in {path} ({', '.join(batch.names[:3])}, …). Look at it, lower "
            "train.learning_rate or set train.precision=fp32, and go on with --resume"
        )

    # --- scores and files ---------------------------------------------------------------------------------------

    def validate(self, journal: Journal) -> None:
        """Score the networks on the validation data and keep the best."""
        if self.world.rank == 0 and self.sets["validation"]:
            found = self.scores("validation")
            journal.scores(self.update, found)
            key = found["depth"]["all"]["abs_rel"] if "depth" in found else found["photometric"]
            if self.best is None or key < self.best:
                self.best = key
                self.run_folder.save_networks(self.plain_networks(), {"update": self.update, "validation": key})
        self.world.wait()

    def scores(self, name: str) -> dict:
        """Depth and motion scores of a set where there is truth, else the photometric loss of step III."""
        set_trainable(self.networks, None, self.phase or "warm_up")
        sequences = self.sets[name]
        found, size = {}, tuple(self.config.depth.size)
        with torch.no_grad():
            if any(sequence.depth is not None for sequence in sequences):
                found["depth"] = score_depth(self.networks["depth"], sequences, size)
            if any(sequence.T_world_camera is not None for sequence in sequences):
                found["motion"] = score_motion(self.networks["pose"], sequences)
            network = self.networks.get("decomposition")
            if network is not None and (table := score_decomposition(network, sequences)):
                found["decomposition"] = table
            if triplets := self.scored_triplets.get(name):
                found["photometric"] = validation_loss(self.networks, triplets, self.config.losses, size, self.world)
        return found

    def picture(self, forward):
        from endomust_core.learning.pictures import panel

        set_trainable(self.networks, None, self.phase)
        with torch.no_grad():
            return panel(forward)

    def plain_networks(self) -> dict[str, nn.Module]:
        """The networks as they are deployed: adapters merged."""
        return {**self.networks, "depth": merge(self.networks["depth"])}

    def finish(self) -> None:
        """Scores of the kept networks on the test data."""
        if self.world.rank != 0:
            return
        if not self.sets["validation"]:
            self.run_folder.save_networks(self.plain_networks(), {"update": self.update})
        if self.sets["test"]:
            best = self.run_folder.load_networks()
            for name, network in best.items():
                self.networks[name] = network.to(self.world.device)
            self.run_folder.write_scores("after", self.scores("test"))

    def state(self) -> dict:
        return {
            "update": self.update,
            "best": self.best,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict) -> None:
        self.update, self.best = state["update"], state["best"]
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])


class StepLosses(nn.Module):
    """The losses of one step as a module, so that DistributedDataParallel can average their gradients."""

    def __init__(self, networks: dict[str, nn.Module], step: Step):
        super().__init__()
        self.step = step
        self.networks = nn.ModuleDict({name: networks[name] for name in step.trains if name in networks})
        self.reducer = None

    def forward(self, forward: Forward) -> dict[str, torch.Tensor]:
        return forward.losses(self.step) if self.reducer is None else self.reducer(forward)

    def distribute(self, world: distributed.World) -> None:
        """Build the reducer anew, for the parameters that require a gradient now."""
        self.reducer = None
        inner = StepLosses(dict(self.networks), self.step)
        object.__setattr__(self, "reducer", world.reduce(inner))


@contextmanager
def out_of_memory_in_words(batch: int):
    """PyTorch's many out-of-memory errors → OutOfMemory with what to do."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error)
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
        if not known:
            raise
        raise OutOfMemory(
            f"a batch of {batch} does not fit into memory ({text.splitlines()[0] if text else 'MemoryError'}); lower "
            "train.batch, set depth.checkpointing=true, or train.precision=bf16, and go on with --resume"
        ) from error
