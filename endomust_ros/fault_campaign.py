"""Live node + seeded hostile messages and faults around it → who crashed, what was not finite, not counted, too slow.

The node runs in its own process. Batches of hostile messages, with a good image after every few, go to everything that
it subscribes to; parameters, services and transitions come in between. After each batch it must be alive, answer a good
image within 2 s, and its counts on /diagnostics must explain every image that it received. Then come the scenarios.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import re
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from lifecycle_msgs.msg import Transition
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool, Trigger

from endomust_core import benchmarking
from endomust_core.resources import bundle_path
from endomust_ros import fault_messages as hostile
from endomust_ros.dds_profile import ProfileError
from endomust_ros.fault_bench import GIVE_UP, OUTPUTS, TOPICS, Bench, CampaignError, Probe, unexplained
from endomust_ros.fault_scenarios import NEVER, RECOVERY, SCENARIOS, Outcome
from endomust_ros.process import NodeProcessError
from endomust_ros.transport import fast_dds_environment

BATCH, GOOD_EVERY = 25, 5  # hostile messages of a batch; a good image after so many of them
PACE = 0.008  # s between hostile messages: the queue of the node holds one, and what is lost there tests nothing
CRASHES = 20  # after which the campaign ends
MEMORY_LIMIT_MB = 1000.0  # growth of the peak memory in one batch that counts as a fault
FAMILIES = {  # what is sent → weight; those that the node has no topic for are left out
    "image": 8,
    "compressed": 6,
    "camera_info": 4,
    "cdr image": 2,
    "cdr compressed": 1,
    "cdr camera_info": 1,
    "mask": 3,
    "cdr mask": 1,
    "camera_pose": 2,
    "cdr camera_pose": 1,
    "set_pose": 2,
    "cdr set_pose": 1,
    "parameters": 2,
    "services": 2,
}
FUZZED = {"scale.mode": "kinematic"}  # or the node does not listen to camera_pose
ENDING = (  # transitions that end a node as they should; a scenario starts and ends nodes instead
    Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    Transition.TRANSITION_INACTIVE_SHUTDOWN,
    Transition.TRANSITION_ACTIVE_SHUTDOWN,
    Transition.TRANSITION_DESTROY,
)


# ---- hostile messages -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Tally:
    """What the hostile messages did."""

    sent: Counter = dataclasses.field(default_factory=Counter)  # family → messages, parameter sets, calls
    outcomes: Counter = dataclasses.field(default_factory=Counter)  # as the node counts them
    lost: int = 0  # images that never reached the node, for which its queue had no room
    refused: int = 0  # damaged serialised images that the middleware did not hand on
    batches: int = 0
    crashes: list[dict] = dataclasses.field(default_factory=list)
    problems: list[dict] = dataclasses.field(default_factory=list)
    answer_s: list[float] = dataclasses.field(default_factory=list)  # of the good image after each batch
    peak_mb: float = 0.0

    def problem(self, family: str, what: str, **facts) -> None:
        self.problems.append({"family": family, "what": what, "batch": self.batches, **facts})


class Fuzz:
    """Batches of hostile messages at one node; `run(n)` sends n of them."""

    def __init__(self, bench: Bench, seed: int, say: Callable[[str], None], cdr: bool = True):
        self.bench, self.probe, self.say = bench, bench.probe, say
        self.rng = np.random.default_rng([seed, 1])
        self.tally = Tally()
        self._cdr = cdr
        self._streams: dict[str, object] = {}
        self._recent: list[str] = []

    def run(self, messages: int) -> Tally:
        self.topics = self._topics()
        families = [f for f in FAMILIES if self._has(f)]
        weights = np.array([FAMILIES[f] for f in families], float)
        step = max(1, messages // 10)
        told = 0
        while (done := self._messages()) < messages and len(self.tally.crashes) < CRASHES:
            self._batch(str(self.rng.choice(families, p=weights / weights.sum())))
            if done // step > told:
                told = done // step
                self.say(f"{done} of {messages} hostile messages, {len(self.tally.problems)} problems")
        return self.tally

    def absent(self) -> list[str]:
        """Inputs that this node does not have."""
        return [name for name in ("mask", *hostile.POSES) if name not in self.topics]

    def _messages(self) -> int:
        return sum(n for family, n in self.tally.sent.items() if family not in ("parameters", "services"))

    def _has(self, family: str) -> bool:
        if family.startswith("cdr ") and not self._cdr:
            return False
        return family in ("parameters", "services") or family.removeprefix("cdr ") in self.topics

    def _topics(self) -> dict[str, tuple[str, type]]:
        """Family → topic and type, for everything that the node listens to."""
        found = {name: (TOPICS[name], hostile.TYPES[name]) for name in TOPICS}
        kinds = {
            "geometry_msgs/msg/PoseStamped": "camera_pose",
            "geometry_msgs/msg/PoseWithCovarianceStamped": "set_pose",
        }
        for topic, kind in self.probe.subscriptions().items():
            if kind in kinds:
                found[kinds[kind]] = (topic, hostile.POSES[kinds[kind]])
            elif kind == "sensor_msgs/msg/Image" and not topic.endswith("/image_raw"):
                found["mask"] = (topic, Image)
        return found

    def _batch(self, family: str) -> None:
        bench, tally = self.bench, self.tally
        tally.batches += 1
        self._recent = []
        try:
            bench.use("compressed" if "compressed" in family else "image")
            before, sent, peak = bench.settle(), self.probe.images, bench.node.use().peak_mb
            configured = bench.configured
            act = {"parameters": self._parameters, "services": self._services}.get(family, self._messages_of)
            rejects = act(family)
            self._after(family, before if bench.configured == configured else None, sent, rejects, peak)
        except (NodeProcessError, CampaignError) as error:
            self._crashed(family, error)
        if not bench.node.alive():
            self._crashed(family, None)

    def _messages_of(self, family: str) -> list[tuple[int, str]]:
        """Send one batch; returns the stamps of the images that must stay unanswered, and what is wrong with them."""
        topic, kind = self.topics[family.removeprefix("cdr ")]
        if family not in self._streams:
            self._streams[family] = hostile.faults(family, self.rng, self.probe.header)
        publisher, rejects = self.probe.publisher(topic, kind), []
        self.probe.wait(publisher.get_subscription_count, RECOVERY)
        for number in range(BATCH):
            fault = next(self._streams[family])
            stamp = self.probe.send(topic, kind, fault.content)
            self.tally.sent[family] += 1
            self._recent.append(fault.kind)
            if fault.verdict == hostile.REJECT:
                rejects.append((stamp, fault.kind))
            self.probe.spin(PACE)
            self._alive()
            if number % GOOD_EVERY == GOOD_EVERY - 1:
                self._good_in_between(family)
        return rejects

    def _parameters(self, family: str) -> list:
        """Settings of any type and value, then everything as it was."""
        names = sorted(self.bench.baseline)
        for number in range(BATCH):
            parameters = hostile.hostile_parameters(self.rng, names)
            self._recent.append(", ".join(f"{p.name[:40]} of type {p.value.type}" for p in parameters))
            self.tally.sent[family] += 1
            request = SetParameters.Request(parameters=parameters)
            if self.probe.call(SetParameters, "set_parameters", request, GIVE_UP) is None:
                self._alive()
                self.tally.problem(family, "set_parameters was not answered", last=self._recent[-1])
            if number % GOOD_EVERY == GOOD_EVERY - 1:
                self.bench.send_good()
                self.probe.spin(PACE)
        self.bench.restore()
        return []

    def _services(self, family: str) -> list:
        """Services and transitions in any order, with images in between; ends in the state active."""
        stream = hostile.faults("image", self.rng, self.probe.header)
        services = [(name, Trigger) for name in self.probe.services()]
        services += [(name, SetBool) for name in self.probe.services("std_srvs/srv/SetBool")]
        transitions = [number for number in (*range(10), 60, 61, 62, 99, 255) if number not in ENDING]
        for _ in range(BATCH // 2):
            self.probe.send(TOPICS["image"], Image, next(stream).content)
            self.tally.sent["image"] += 1
            self.tally.sent[family] += 1
            if services and self.rng.random() < 0.5:
                self._ask(family, *services[int(self.rng.integers(len(services)))])
            else:
                number = transitions[int(self.rng.integers(len(transitions)))]
                self._recent.append(f"transition {number}")
                self.bench.change(number)
            self._alive()
        self.bench.restore()
        if "pause" in self.probe.services("std_srvs/srv/SetBool"):
            self.probe.call(SetBool, "pause", SetBool.Request(data=False))
        if not self.bench.activate():
            self._alive()
            raise CampaignError(f"the node cannot be activated again, it is '{self.bench.state()}'")
        return []

    def _ask(self, family: str, name: str, kind: type) -> None:
        """Call a service while images come."""
        self._recent.append(f"call {name}")
        request = kind.Request() if kind is Trigger else kind.Request(data=bool(self.rng.integers(2)))
        answer = self.probe.call(kind, name, request, GIVE_UP, self.bench.send_good)
        if answer is None or not answer.message:
            self._alive()
            self.tally.problem(family, f"{name} gave no answer in words")

    def _good_in_between(self, family: str) -> None:
        took = self.bench.good()
        self._alive()
        if took > RECOVERY:
            self.tally.problem(family, f"no good image was answered within {RECOVERY:g} s", last=self._recent[-5:])

    def _after(self, family: str, before: dict | None, sent: int, rejects: list, peak: float) -> None:
        """The checks behind every batch."""
        bench, tally, probe = self.bench, self.tally, self.probe
        took = bench.good()
        self._alive()
        tally.answer_s.append(took)
        if took > RECOVERY:
            tally.problem(family, f"no good image was answered within {RECOVERY:g} s of the batch", last=self._recent)
        if "camera_info" in family or family in ("parameters", "services"):
            if bench.calibrate() > RECOVERY:
                self._alive()
                tally.problem(family, f"no odometry within {RECOVERY:g} s of a good calibration", last=self._recent)
        after = bench.settle()
        self._count(family, before, after, probe.images - sent, len(rejects))
        for kind in [kind for stamp, kind in rejects if stamp in probe.answers["depth"]]:
            tally.problem(family, f"an image without a picture was answered: {kind}")
        tally.peak_mb = max(tally.peak_mb, bench.node.use().peak_mb)
        if bench.node.use().peak_mb - peak > MEMORY_LIMIT_MB:
            rise = bench.node.use().peak_mb - peak
            tally.problem(family, "memory rose by more than a gigabyte", megabytes=rise, last=self._recent)
        for name in OUTPUTS:
            probe.answers[name].clear()
        self._complaints(family)

    def _count(self, family: str, before: dict | None, after: dict, sent: int, rejects: int) -> None:
        """Every image that was received must be in one of the counts, and every refusal too."""
        tally = self.tally
        if not after:
            tally.problem(family, "no counts on /diagnostics after the batch")
            return
        change = {key: value - (before or {}).get(key, 0) for key, value in after.items()}
        tally.outcomes.update(change)
        left = unexplained(change)
        if left:
            what = "a received image is not in the counts" if left > 0 else "an image is counted twice"
            tally.problem(family, what, images=left, counts=change, last=self._recent)
        if before is None or family == "services":
            return
        missing = sent - change["received"]
        if family.startswith("cdr "):
            tally.refused += max(missing, 0)
        else:
            tally.lost += max(missing, 0)
        counted = sum(n for key, n in change.items() if key not in ("received", "answered"))
        if counted + missing < rejects:
            tally.problem(family, f"{rejects} images had to be refused, {counted} were counted", counts=change)

    def _complaints(self, family: str) -> None:
        for sentence, times in self.probe.complaints.items():
            if family == "parameters" and "length 0" in sentence:  # odom.publish_null_when_lost was switched on
                continue
            self.tally.problem(family, f"{sentence} ({times} times)", last=self._recent[-BATCH:])
        self.probe.complaints.clear()

    def _alive(self) -> None:
        self.bench.node.check()

    def _crashed(self, family: str, error: Exception | None) -> None:
        """Note it and start a new node."""
        bench = self.bench
        ended = not bench.node.alive()
        words = bench.log().splitlines()[-25:]
        self.tally.crashes.append(
            {
                "family": family,
                "ended": ended,
                "error": str(error).split("\n")[0],
                "last": self._recent[-4:],
                "log": words,
            }
        )
        self.say(f"the node {'ended' if ended else 'is of no use any more'} in {family}: {self._recent[-2:]}")
        bench.transport = "image"
        self.probe.retire(TOPICS["compressed"])
        bench.start(FUZZED)
        for name in OUTPUTS:
            self.probe.answers[name].clear()


# ---- the whole ------------------------------------------------------------------------------------------------------


def campaign(options: argparse.Namespace, say: Callable[[str], None]) -> dict:
    """Hostile messages, then scenarios: the results that --out holds."""
    namespace = f"/faults_{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="endomust-faults-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "home").mkdir()
        probe = Probe(namespace)
        stack.callback(probe.close)
        bench = Bench(probe, folder, options.model, np.random.default_rng([options.seed, 0]))
        stack.callback(bench.stop)
        say(f"first answer after {bench.start(FUZZED):.1f} s")
        begin = time.monotonic()
        fuzz = Fuzz(bench, options.seed, say, options.cdr)
        tally = fuzz.run(options.messages)
        fuzz_s = time.monotonic() - begin
        bench.stop()  # the scenarios are about a node as it ships
        outcomes = _scenarios(options, bench, say)
        logs = [path.read_text(encoding="utf-8", errors="replace") for path in bench.logs]
        if options.out:
            _keep_logs(options.out, bench.logs)
    return {
        "options": {"messages": options.messages, "seed": options.seed, "scenarios": list(outcomes)},
        "messages": {
            "sent": dict(tally.sent),
            "batches": tally.batches,
            "seconds": fuzz_s,
            "outcomes": dict(tally.outcomes),
            "lost_before_the_node": tally.lost,
            "refused_by_the_middleware": tally.refused,
            "outputs_checked": dict(probe.received),
            "crashes": tally.crashes,
            "problems": tally.problems,
            "answer_ms": benchmarking.summary([s for s in tally.answer_s if s != NEVER]),
            "peak_mb": tally.peak_mb,
            "caught_exceptions": caught(logs),
        },
        "absent": fuzz.absent(),
        "scenarios": {name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()},
        "passed": not tally.crashes and not tally.problems and not any(o.passed is False for o in outcomes.values()),
    }


def _scenarios(options: argparse.Namespace, bench: Bench, say: Callable[[str], None]) -> dict[str, Outcome]:
    found = {}
    for name, scenario in SCENARIOS.items():
        if options.scenarios != ["all"] and name not in options.scenarios:
            continue
        begin = time.monotonic()
        try:
            bench.transport = "image"
            for topic in TOPICS.values():
                bench.probe.retire(topic)
            if bench.node is None or not bench.node.alive():
                bench.start()
            bench.use("image")
            bench.calibrate()
            bench.probe.complaints.clear()
            outcome = scenario(bench)
            if bench.probe.complaints:
                outcome = dataclasses.replace(
                    outcome, passed=False, detail=f"{outcome.detail}; {dict(bench.probe.complaints)}"
                )
        except Exception as error:  # a scenario that falls over has failed, and the others still run
            outcome = Outcome(False, None, f"{type(error).__name__}: {error}")
            bench.stop()
        found[name] = dataclasses.replace(outcome, seconds=time.monotonic() - begin)
        say(f"{name}: {_verdict(found[name])}")
    return found


def caught(logs: list[str]) -> dict[str, int]:
    """Sentences of images that ended in an exception, numbers taken out → how often the logs hold them."""
    found: Counter[str] = Counter()
    for line in "\n".join(logs).splitlines():
        if "an image failed:" in line:
            found[re.sub(r"\d+", "#", line.split("an image failed:", 1)[1].strip())[:300]] += 1
    return dict(found)


def _keep_logs(out: Path, logs: list[Path]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for path in logs:
        (out / path.name).write_bytes(path.read_bytes())


# ---- words ----------------------------------------------------------------------------------------------------------


def table(results: Mapping) -> str:
    """Markdown: the hostile messages, then a row for each scenario, whichever of the two there is."""
    tables = [_message_rows(results)] if results["messages"]["sent"] else []
    return "\n\n".join("\n".join(rows) for rows in [*tables, _scenario_rows(results)] if rows)


def _message_rows(results: Mapping) -> list[str]:
    m, answer = results["messages"], results["messages"]["answer_ms"]
    hits = sum(n for family, n in m["sent"].items() if family not in ("parameters", "services"))
    counts = {f"sent: {family}": count for family, count in sorted(m["sent"].items())}
    counts |= {f"images, as the node counts them: {key}": count for key, count in m["outcomes"].items() if count}
    counts["images lost before the node (its queue holds one)"] = m["lost_before_the_node"]
    counts["damaged serialised images that the middleware held back"] = m["refused_by_the_middleware"]
    counts |= {f"messages of the node checked: {name}": n for name, n in sorted(m["outputs_checked"].items())}
    counts["crashes"], counts["other problems"] = len(m["crashes"]), len(m["problems"])
    counts["images that ended in an exception, caught"] = sum(m["caught_exceptions"].values())
    counts["most memory of the node [MB]"] = round(m["peak_mb"])
    if answer["n"]:
        times = "{p50:.0f} / {p99:.0f} / {max:.0f}".format(**answer)
        counts["good image after a batch, p50 / p99 / max [ms]"] = times
    counts |= {f"not there yet: {name}": "-" for name in results["absent"]}
    counts |= {f"CRASH in {crash['family']}": "; ".join(crash["last"]) for crash in m["crashes"]}
    counts |= Counter(f"PROBLEM in {problem['family']}: {problem['what']}" for problem in m["problems"])
    title = f"**{hits} hostile messages, seed {results['options']['seed']}, {m['seconds']:.0f} s**\n"
    return [title, "| what | count |", "|---|---|", *(f"| {what} | {count} |" for what, count in counts.items())]


def _scenario_rows(results: Mapping) -> list[str]:
    rows = ["| scenario | result | usable again after [s] | what was seen |", "|---|---|---|---|"]
    for name, found in results["scenarios"].items():
        outcome = Outcome(**found)
        again = "-" if outcome.recovery_s is None else f"{outcome.recovery_s:.2f}"
        rows.append(f"| {name} | {_verdict(outcome, short=True)} | {again} | {outcome.detail} |")
    return rows if results["scenarios"] else []


def _verdict(outcome: Outcome, short: bool = False) -> str:
    word = {True: "passed", False: "FAILED", None: "not there yet"}[outcome.passed]
    if short:
        return word
    again = "" if outcome.recovery_s is None else f", usable again after {outcome.recovery_s:.2f} s"
    return f"{word}{again} ({outcome.detail})"


def main(args: list[str] | None = None) -> int:
    """`endomust bench faults`: prints a table, writes --out; 1 where anything failed, 2 where it could not run."""
    options = _parse(args)
    os.environ.update(fast_dds_environment(os.environ))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randrange(1, 100)))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the node started here would go on
    try:
        results = campaign(options, lambda text: _tell(f"endomust bench faults: {text}\n"))
    except (CampaignError, NodeProcessError, ProfileError, FileNotFoundError) as error:
        _tell(f"endomust bench faults: {error}\n")
        return 2
    except KeyboardInterrupt:
        _tell("endomust bench faults: stopped; the node was stopped too\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    text = table(results)
    sys.stdout.write(text + "\n")
    if options.out:
        content = benchmarking.document("faults", results, command=_command(options))
        benchmarking.write(options.out / "faults.json", content)
        (options.out / "faults.md").write_text(text + "\n", encoding="utf-8")
    return 0 if results["passed"] else 1


def _tell(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _command(options: argparse.Namespace) -> str:
    words = ["endomust", "bench", "faults", "--messages", str(options.messages), "--seed", str(options.seed)]
    words += ["--scenarios", *options.scenarios] + ([] if options.cdr else ["--no-cdr"])
    words += ["--model", str(options.model)] if options.model else []
    return shlex.join(words)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


def _parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="endomust bench faults", description=__doc__.split("\n")[0])
    parser.add_argument("--messages", type=_count, default=10_000, help="hostile messages to send (default 10000)")
    parser.add_argument("--seed", type=_count, default=0, help="of the hostile messages (default 0)")
    parser.add_argument("--model", type=bundle_path, help="model bundle (default: endomust-tiny)")
    parser.add_argument("--no-cdr", dest="cdr", action="store_false", help="leave damaged serialised bytes out")
    parser.add_argument(
        "--scenarios", nargs="+", choices=("all", "none", *SCENARIOS), default=["all"], metavar="NAME", help="(all)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write faults.json, faults.md and the node's logs there"
    )
    return parser.parse_args(args)


if __name__ == "__main__":
    sys.exit(main())
