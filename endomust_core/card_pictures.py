"""What a model card shows: its worst images beside their truth; real images with depth, confidence and masks; as JPEG.

Pictures are (H,W,3) uint8 RGB; with each come its facts as plain numbers (metres, shares of 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from endomust_core import report
from endomust_core.baselines import LUMINANCE
from endomust_core.bundle import Bundle
from endomust_core.camera import Camera, load_camera
from endomust_core.card_protocol import Clip
from endomust_core.engines import EngineOptions
from endomust_core.estimator import Estimator
from endomust_core.evaluation_run import Shown
from endomust_core.footage import Info, Shot, open_footage
from endomust_core.importing import fitted_camera
from endomust_core.pipeline import Answer, Calibration, Pipeline, Settings
from endomust_core.recording import RecordingError

WIDTH, STRIP = 240, 18  # px of one picture; of the text above it
PAPER, INK = (24, 27, 30), (235, 235, 235)
ERROR_LIMIT = 0.3  # relative error at the ends of the colours
WRONG = 0.1  # relative error from which a pixel counts as too near or too far
BYTES = 1_400_000  # of all pictures of a card together
QUALITIES = (90, 84, 76, 66, 54, 42)
INSTRUMENT, HIGHLIGHT, SURROUND = (255, 140, 0), (60, 255, 120), (70, 90, 200)
INSTRUMENT_SHARE = 0.01  # of the image, below which nothing is said of an instrument's depth
AROUND = 0.12  # of the image height: the tissue around an instrument that it is compared with
SPARSE = 0.05  # share of known pixels below which a truth is drawn as larger dots


def failure_sheet(shown: Sequence[Shown]) -> tuple[np.ndarray, list[dict]]:
    """The worst frames and a usual one of a data set → rows of image, prediction, truth, signed error; and their facts.

    Depth as it was scored. facts: {kind, name, abs_rel, too_far, too_near: shares of the known pixels that are wrong by
    more than 10 %, brightness: median 0..255 of those pixels}.
    """
    worst = [frame for frame in shown if frame.kind == "worst"]
    worst = worst or sorted(shown, key=lambda frame: -frame.abs_rel)[:2]  # a handful of images has no such kind
    usual = [frame for frame in shown if frame.kind == "median" and all(frame is not other for other in worst)][:1]
    head = _strip(("image", "predicted depth", "true depth", f"error: blue {100 * ERROR_LIMIT:.0f} % near, red far"))
    rows, facts = [], []
    for kind, frame in [("worst", frame) for frame in worst] + [("median", frame) for frame in usual]:
        low, high = report.common_range([frame.truth])
        words = f"{kind}: {frame.caption}, AbsRel {frame.abs_rel:.3f}"
        scale = f"red {1e3 * low:.0f} mm, blue {1e3 * high:.0f} mm, grey unknown"
        rows += [_strip((words, "", scale, "")), np.hstack(_panels(frame, low, high))]
        facts.append(_failure_facts(kind, frame))
    return np.vstack([head, *rows]), facts


def clip_sheet(
    bundle: Bundle, clip: Clip, engines: EngineOptions, progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, dict]:
    """Real images through the node's pipeline → rows of image, depth, confidence, masks; and what was seen.

    facts: {images, unreadable, valid, confident, instrument, highlight, surround: mean shares of the image,
    scale_wander: std of the log of the scale from image to image, instrument_images, instrument_nearer: share of those
    in which the instrument is nearer than what lies around it, instrument_ratio: median of their depths' ratio}.
    Raises RecordingError where the source does not open, CameraError for a calibration that does not fit.
    """
    footage = open_footage(clip.source, rate=clip.rate or None)
    total = min(clip.frames or math.inf, footage.announced or math.inf)
    total = 0 if math.isinf(total) else int(total)
    watch = _Watch(set(np.linspace(0, max(total - 1, 0), clip.rows).round().astype(int).tolist()))
    calibration = Calibration()
    if footage.first_info is not None:
        calibration.update(footage.first_info)
    pipeline = Pipeline(Estimator(bundle, options=engines), Settings(), calibration, lambda reason, sentence: None)
    first_stamp = None
    for item in footage.items:
        if isinstance(item, Info):
            calibration.update(item.message)
            continue
        if clip.frames and watch.number >= clip.frames:
            break
        if item.rgb is not None and first_stamp is None:
            first_stamp = item.stamp_ns
            camera = _camera_of(clip, item)
            if camera is not None:
                calibration.hold(camera)
        watch.take(item, None if item.rgb is None else _answered(pipeline, item), first_stamp)
        if progress is not None:
            progress(watch.number, max(total, watch.number))
    if not watch.images:
        raise RecordingError(f"no image of {clip.source} can be read; convert it to H.264 or PNG images")
    return _clip_picture(watch.shown()), watch.facts()


def encoded(pictures: Mapping[str, np.ndarray], limit: int = BYTES) -> dict[str, bytes]:
    """Name → JPEG file, all at the best quality with which they stay below `limit` bytes together."""
    files: dict[str, bytes] = {}
    for quality in QUALITIES:
        for name, rgb in pictures.items():
            files[name] = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if sum(map(len, files.values())) <= limit:
            break
    return files


@dataclass
class _Row:
    """One image as it is shown, all at the size of the network."""

    seconds: float
    rgb: np.ndarray
    depth: np.ndarray  # (h,w) [m of the model], NaN where invalid or surround
    confidence: np.ndarray
    instrument: np.ndarray
    highlight: np.ndarray
    surround: np.ndarray


class _Watch:
    """Keeps the rows that are wanted, the one with most of an instrument, and numbers of all images."""

    def __init__(self, wanted: set[int]):
        self.wanted = wanted
        self.number = self.images = self.unreadable = 0
        self.rows: dict[int, _Row] = {}
        self.last: tuple[int, _Row] | None = None
        self.most: tuple[float, int, _Row] | None = None  # share of the instrument, number
        self.shares: list[tuple[float, ...]] = []
        self.scales: list[float] = []  # log of the scale against the image before
        self.ratios: list[float] = []  # depth of an instrument / of what lies around
        self._median: float | None = None

    def take(self, shot: Shot, answer: Answer | None, first_stamp: int | None) -> None:
        """The next image; `answer` is None where it cannot be read."""
        number, self.number = self.number, self.number + 1
        if answer is None:
            self.unreadable += 1
            self._median = None
            return
        self.images += 1
        row = _row(answer, (shot.stamp_ns - first_stamp) / 1e9)
        self.last = number, row
        if number in self.wanted:
            self.rows[number] = row
        shares = answer.judgement.shares
        names = ("confident", "masked", "specular", "border")
        self.shares.append((float(np.isfinite(row.depth).mean()), *(shares[name] for name in names)))
        if shares["masked"] > max(INSTRUMENT_SHARE, self.most[0] if self.most else 0.0):
            self.most = shares["masked"], number, row
        self._take_scale(answer, row)
        ratio = nearer_than_around(row.depth, row.instrument, row.surround)
        if ratio is not None:
            self.ratios.append(ratio)

    def _take_scale(self, answer: Answer, row: _Row) -> None:
        """By the same points where the motion is known, else by the medians of both images."""
        known = row.depth[np.isfinite(row.depth)]
        before, self._median = self._median, float(np.median(known)) if known.size else None
        ratio = answer.judgement.scale_ratio
        if ratio is None and before and self._median:
            ratio = self._median / before
        if ratio is not None and ratio > 0:
            self.scales.append(math.log(ratio))

    def shown(self) -> list[_Row]:
        """Rows in order of time; a clip that ends early shows its last image."""
        rows = dict(self.rows)
        if self.last is not None and len(rows) < len(self.wanted):
            rows[self.last[0]] = self.last[1]
        if self.most is not None:
            rows[self.most[1]] = self.most[2]
        return [rows[number] for number in sorted(rows)]

    def facts(self) -> dict:
        valid, confident, instrument, highlight, surround = np.mean(self.shares, axis=0).tolist()
        return {
            "images": self.images,
            "unreadable": self.unreadable,
            "valid": valid,
            "confident": confident,
            "instrument": instrument,
            "highlight": highlight,
            "surround": surround,
            "scale_wander": float(np.std(self.scales)) if len(self.scales) > 1 else None,
            "instrument_images": len(self.ratios),
            "instrument_nearer": float(np.mean(np.array(self.ratios) < 1)) if self.ratios else None,
            "instrument_ratio": float(np.median(self.ratios)) if self.ratios else None,
        }


def nearer_than_around(depth: np.ndarray, instrument: np.ndarray, surround: np.ndarray) -> float | None:
    """Median depth of an instrument / that of the tissue around it, all (h,w); below 1 it is nearer.

    None where either takes up less than a hundredth of the image.
    """
    reach = 2 * max(1, round(AROUND * depth.shape[0])) + 1
    around = cv2.dilate(instrument.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    inside = depth[instrument & np.isfinite(depth)]
    outside = depth[around & ~instrument & ~surround & np.isfinite(depth)]
    if min(inside.size, outside.size) < INSTRUMENT_SHARE * depth.size:
        return None
    return float(np.median(inside) / np.median(outside))


def _answered(pipeline: Pipeline, shot: Shot) -> Answer:
    answer = pipeline.estimate(shot.rgb, shot.stamp_ns, shot.frame_id)
    pipeline.move(answer)
    pipeline.judge(answer)
    return answer


def _camera_of(clip: Clip, shot: Shot) -> Camera | None:
    """The calibration of the clip, or the pinhole of its guessed field of view; None without either."""
    height, width = shot.rgb.shape[:2]
    if clip.camera:
        return fitted_camera(load_camera(clip.camera), (width, height))
    if not clip.fov_deg:
        return None
    focal = 0.5 * width / math.tan(math.radians(0.5 * clip.fov_deg))
    return Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


def _row(answer: Answer, seconds: float) -> _Row:
    judgement = answer.judgement
    depth = np.where(judgement.border, np.float32(np.nan), answer.network_depth)
    return _Row(
        seconds, answer.look.image, depth, judgement.value, judgement.masked, judgement.specular, judgement.border
    )


def _clip_picture(rows: Sequence[_Row]) -> np.ndarray:
    known = np.concatenate([row.depth[np.isfinite(row.depth)][::7] for row in rows])
    low, high = np.percentile(1 / known, (2, 98)) if known.size else (1.0, 2.0)
    depth_words = f"depth: red {1e3 / high:.0f}, blue {1e3 / low:.0f} mm (model)"
    lines = [_strip(("image", depth_words, "confidence: dark 0, yellow 1", "orange tool, green highlight, blue rim"))]
    for row in rows:
        pictures = (
            row.rgb,
            _coloured(1 / row.depth, low, max(high, low * 1.01), cv2.COLORMAP_TURBO),
            _coloured(np.where(np.isfinite(row.depth), row.confidence, np.nan), 0, 1, cv2.COLORMAP_VIRIDIS),
            _masked(row),
        )
        cells = [_sized(picture, cv2.INTER_AREA) for picture in pictures]
        cv2.putText(cells[0], f"{row.seconds:.1f} s", (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
        lines.append(np.hstack(cells))
    return np.vstack(lines)


def _masked(row: _Row) -> np.ndarray:
    picture = (0.55 * row.rgb).astype(np.uint8)
    for mask, colour in ((row.surround, SURROUND), (row.instrument, INSTRUMENT), (row.highlight, HIGHLIGHT)):
        picture[mask] = (0.35 * picture[mask] + 0.65 * np.array(colour)).astype(np.uint8)
    return picture


def _coloured(values: np.ndarray, low: float, high: float, colours: int) -> np.ndarray:
    """(h,w) → (h,w,3) RGB; grey where unknown."""
    known = np.isfinite(values)
    levels = np.rint(255 * np.clip((np.where(known, values, low) - low) / (high - low), 0, 1)).astype(np.uint8)
    picture = np.ascontiguousarray(cv2.applyColorMap(levels, colours)[..., ::-1])
    picture[~known] = report.UNKNOWN
    return picture


def _panels(frame: Shown, low: float, high: float) -> list[np.ndarray]:
    depth, truth = (_sized(values, cv2.INTER_NEAREST) for values in (frame.depth, _seen(frame.truth)))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = (depth - truth) / truth
    return [
        _sized(np.ascontiguousarray(frame.rgb), cv2.INTER_AREA),
        report.turbo(depth, low, high),
        report.turbo(truth, low, high),
        report.signed(error, ERROR_LIMIT),
    ]


def _seen(truth: np.ndarray) -> np.ndarray:
    """The truth as it is, but points that lie far apart are made large enough to be seen."""
    known = np.isfinite(truth)
    if known.mean() > SPARSE:
        return truth
    size = 2 * round(truth.shape[1] / WIDTH) + 1
    grown = cv2.dilate(np.where(known, truth, 0).astype(np.float32), np.ones((size, size), np.uint8))
    return np.where(grown > 0, grown, np.float32(np.nan))


def _failure_facts(kind: str, frame: Shown) -> dict:
    with np.errstate(invalid="ignore", divide="ignore"):
        error = (frame.depth - frame.truth) / frame.truth
    known = np.isfinite(error)
    return {
        "kind": kind,
        "name": frame.caption,
        "abs_rel": float(frame.abs_rel),
        "too_far": float(np.mean(error[known] > WRONG)) if known.any() else None,
        "too_near": float(np.mean(error[known] < -WRONG)) if known.any() else None,
        "brightness": float(np.median(frame.rgb[known] @ LUMINANCE)) if known.any() else None,
    }


def _sized(picture: np.ndarray, interpolation: int) -> np.ndarray:
    """The picture at the width of a cell."""
    height = max(1, round(WIDTH * picture.shape[0] / picture.shape[1]))
    if interpolation == cv2.INTER_AREA and picture.shape[1] < WIDTH:
        interpolation = cv2.INTER_LINEAR
    return cv2.resize(picture, (WIDTH, height), interpolation=interpolation)


def _strip(words: Sequence[str]) -> np.ndarray:
    """A line of text over cells; an empty word leaves its cell to the one before."""
    strip = np.full((STRIP, WIDTH * len(words), 3), PAPER, np.uint8)
    for place, word in enumerate(words):
        cv2.putText(strip, word, (5 + place * WIDTH, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.36, INK, 1, cv2.LINE_AA)
    return strip
