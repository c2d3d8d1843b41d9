"""What goes wrong in front of and inside an endoscope, in five severities: rgb (H,W,3) uint8 → rgb of the same shape.

Light is added, absorbed and blurred in linear light (display value to the power 2.2), lengths are shares of the image
width, and the black surround of a round image stays black: it is a stop inside the instrument, not tissue. With one
seed a higher severity holds everything the lower one did, only more of it, so that curves over severity are smooth.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

SEVERITIES = (1, 2, 3, 4, 5)
GAMMA = 2.2
DARKEST_CORNER = 32  # a corner no brighter than this display value is black surround, and so is what hangs together
ABOVE_CORNER = 8  # with it and is at most this much brighter
STEPS = 8191  # of the table from the root of light to display values: finer than a tenth of one of 255
MOST_HIGHLIGHTS = 90
CLOUD_SIZE = 192  # pixels of the longer side at which smooth random fields are made


@dataclass(frozen=True)
class Corruption:
    """One fault: its physics in a sentence, what `level` counts, the level per severity, and the function.

    `apply` maps linear light (H,W,3) float32 0..1, the field of view (H,W) float32 0..1, a level and a random
    generator to linear light; None where the fault acts on the sequence and leaves the images as they are.
    """

    physics: str
    unit: str
    levels: tuple[float, float, float, float, float]
    apply: Callable[[np.ndarray, np.ndarray, float, np.random.Generator], np.ndarray] | None


def corrupt(rgb: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """The image as it would look with the fault; the same arguments give the same bits on the same machine.

    `dropped_frames` acts on the sequence (`keeps`) and returns the image as it is. ValueError for an unknown name, a
    severity that is not 1 to 5, or an image that is not (H,W,3) uint8.
    """
    fault, level = corruption(name), level_of(name, severity)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"the image is {rgb.shape} {rgb.dtype}; corrupt takes (H,W,3) uint8")
    if fault.apply is None:
        return rgb.copy()
    inside = field_of_view(rgb)
    light = fault.apply(linear(rgb), inside, level, np.random.default_rng([seed, zlib.crc32(name.encode())]))
    return np.where(inside[..., None] > 0, display(light), rgb)


def keeps(index: int, severity: int, seed: int = 0) -> bool:
    """Whether frame `index` of a sequence still arrives under `dropped_frames`; each frame is drawn by itself."""
    share = level_of("dropped_frames", severity)
    return bool(np.random.default_rng([seed, int(index)]).random() >= share)


def seed_of(text: str) -> int:
    """A seed that a name fixes, the same in every run; one per sequence keeps smoke and blood where they are."""
    return zlib.crc32(text.encode())


def corruption(name: str) -> Corruption:
    """The entry of CORRUPTIONS; ValueError names the nearest one."""
    if name not in CORRUPTIONS:
        near = difflib.get_close_matches(name, CORRUPTIONS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(CORRUPTIONS)}."
        raise ValueError(f"there is no corruption '{name}'; {hint}")
    return CORRUPTIONS[name]


def level_of(name: str, severity: int) -> float:
    """What severity 1 to 5 means for this corruption, in its own unit."""
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity!r}; use 1 (slight) to 5 (severe)")
    return corruption(name).levels[severity - 1]


def linear(rgb: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 display values → float32 light 0..1."""
    table = ((np.arange(256) / 255) ** GAMMA).astype(np.float32)
    return table[rgb]


def display(light: np.ndarray) -> np.ndarray:
    """Float light → (H,W,3) uint8 display values; what exceeds 1 saturates."""
    table = np.rint(255 * (np.arange(STEPS + 1) / STEPS) ** (2 / GAMMA)).astype(np.uint8)
    return table[np.rint(STEPS * np.sqrt(np.clip(light, 0, 1))).astype(np.int32)]


def field_of_view(rgb: np.ndarray) -> np.ndarray:
    """(H,W) float32, 0 in the black surround: what hangs together with a dark corner and is as dark; 1 elsewhere."""
    brightest = cv2.blur(rgb.max(axis=2), (5, 5))  # coding noise must not tear the surround apart
    inside = np.ones(brightest.shape, np.float32)
    height, width = (max(1, side // 24) for side in brightest.shape)
    for rows in (slice(None, height), slice(-height, None)):
        for columns in (slice(None, width), slice(-width, None)):
            level = np.median(brightest[rows, columns])  # of a patch: video often has a line of its own at the edge
            if level <= DARKEST_CORNER:
                _, labels = cv2.connectedComponents((brightest <= level + ABOVE_CORNER).astype(np.uint8))
                inside[labels == np.bincount(labels[rows, columns].ravel()).argmax()] = 0
    return inside


def _defocus(light, inside, level, random):
    return _blurred(light, inside, _disc(level * light.shape[1]))


def _motion_blur(light, inside, level, random):
    return _blurred(light, inside, _streak(level * light.shape[1], random.uniform(0, np.pi)))


def _smoke(light, inside, level, random):
    density = 0.2 + 1.6 * _clouds(light.shape[:2], random, coarsest=2, octaves=5)
    through = np.exp(-level * density)[..., None]
    lamp = _lamp(light.shape[:2])[..., None] * np.array((0.97, 1.0, 1.0), np.float32)
    return light * through + 0.75 * _white(light, inside) * lamp * (1 - through)


def _specular(light, inside, level, random):
    height, width = light.shape[:2]
    film = np.zeros((height, width), np.float32)
    for centre, axes, angle, shine in _highlights(light, inside, random)[: int(level)]:
        spot = np.zeros((height, width), np.float32)
        cv2.ellipse(spot, _fixed(centre), _fixed(axes), angle, 0, 360, 1.0, -1, cv2.LINE_AA, 4)
        film = np.maximum(film, shine * spot)
    halo = cv2.GaussianBlur(film, (0, 0), 0.012 * width)
    return light + (cv2.GaussianBlur(film, (0, 0), 0.0015 * width) + 0.5 * halo)[..., None]


def _exposure(light, inside, level, random):
    return light * np.float32(2.0**level)


def _blood(light, inside, level, random):
    clouds = _clouds(light.shape[:2], random, coarsest=3, octaves=4)
    thickness = np.clip((clouds - (1 - level)) / 0.22, 0, 1) * (0.6 + 0.9 * level)
    absorbs = np.array((0.75, 2.5, 2.3), np.float32)  # haemoglobin takes green and blue, and lets red through
    return light * np.exp(-thickness[..., None] * absorbs)


def _jpeg(light, inside, level, random):
    rgb = display(light)
    parameters = [cv2.IMWRITE_JPEG_QUALITY, int(level)]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), parameters)
    return linear(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def _noise(light, inside, level, random):
    shot = random.standard_normal(light.shape, np.float32)
    return light + shot * np.sqrt(light / np.float32(level) + np.float32((2.5 / level) ** 2))


def _disc(radius: float) -> np.ndarray:
    """A filled circle with soft edge as kernel: what a defocused lens makes of a point; radius in pixels."""
    half = int(np.ceil(radius + 0.5))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return _normalised(np.clip(radius + 0.5 - np.hypot(x, y), 0, 1))


def _streak(length: float, angle: float) -> np.ndarray:
    """A line of `length` pixels as kernel: the way of a point while the shutter is open."""
    half = int(np.ceil(length / 2 + 1))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return _normalised(np.clip(length / 2 + 0.5 - abs(along), 0, 1) * np.clip(1 - abs(across), 0, 1))


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)


def _blurred(light: np.ndarray, inside: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolution within the field of view: the surround is a stop close to the sensor and lends no black."""
    if inside.all():
        return cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    mixed = cv2.filter2D(light * inside[..., None], -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    share = cv2.filter2D(inside, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return mixed / np.maximum(share, 1e-3)[..., None]


def _clouds(shape: tuple[int, int], random: np.random.Generator, coarsest: int, octaves: int) -> np.ndarray:
    """(H,W) float32 0..1: smooth random fields of halving size, added; `coarsest` cells over the longer side."""
    rows, columns = (max(2, round(CLOUD_SIZE * side / max(shape))) for side in shape)
    total = np.zeros((rows, columns), np.float32)
    for octave in range(octaves):
        cells = coarsest * 2**octave
        field = random.random([int(np.ceil(cells * side / CLOUD_SIZE)) + 3 for side in (rows, columns)], np.float32)
        total += cv2.resize(field, (columns, rows), interpolation=cv2.INTER_CUBIC) / 2**octave
    low, high = np.percentile(total, (1, 99))
    total = np.clip((total - low) / max(high - low, 1e-6), 0, 1)
    return cv2.resize(total, shape[::-1], interpolation=cv2.INTER_LINEAR)


def _lamp(shape: tuple[int, int]) -> np.ndarray:
    """(H,W) float32: smoke near the instrument is lit most in the middle of the view."""
    y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    return (1 / (1 + 0.6 * (x**2 + y**2))).astype(np.float32)


def _white(light: np.ndarray, inside: np.ndarray) -> float:
    """The light that a white surface would send back: exposure adapts to it, and smoke is lit by the same lamp."""
    return float(np.percentile(light[::4, ::4][inside[::4, ::4] > 0], 95)) if inside[::4, ::4].any() else 1.0


def _highlights(light: np.ndarray, inside: np.ndarray, random: np.random.Generator) -> list[tuple]:
    """All highlights of this seed, to be used from the front: (centre, half axes [px], angle [deg], light).

    They lie where the tissue is bright, because there it faces the lamp.
    """
    height, width = light.shape[:2]
    small = (max(2, height // 8), max(2, width // 8))
    bright = cv2.resize(light.mean(axis=2) * inside, small[::-1], interpolation=cv2.INTER_AREA) ** 1.5 + 1e-9
    bright *= cv2.resize(inside, small[::-1], interpolation=cv2.INTER_AREA) + 1e-9
    cells = random.choice(bright.size, MOST_HIGHLIGHTS, p=(bright / bright.sum()).ravel())
    found = []
    for cell in cells:
        y, x = (divmod(int(cell), small[1]) + random.random(2)) * np.array((height, width)) / small
        size = width * 0.0032 * np.exp(0.6 * random.standard_normal())
        stretch = random.uniform(1, 4.5)
        found.append(((x, y), (size * stretch, size), random.uniform(0, 180), random.uniform(0.8, 2.0)))
    return found


def _fixed(pair: tuple[float, float]) -> tuple[int, int]:
    """Pixels → sixteenths of pixels, as OpenCV draws them."""
    return round(pair[0] * 16), round(pair[1] * 16)


CORRUPTIONS: dict[str, Corruption] = {
    "defocus": Corruption(
        "The tissue is out of the depth of field: every point of light becomes a disc.",
        "radius of the disc, share of the width",
        (0.003, 0.006, 0.010, 0.016, 0.024),
        _defocus,
    ),
    "motion_blur": Corruption(
        "The camera moves while the shutter is open: every point of light becomes a straight streak.",
        "length of the streak, share of the width",
        (0.010, 0.020, 0.035, 0.055, 0.085),
        _motion_blur,
    ),
    "smoke": Corruption(
        "Electrocautery smoke between lens and tissue takes light away exponentially and sends the lamp's light back.",
        "optical thickness",
        (0.08, 0.2, 0.4, 0.75, 1.4),
        _smoke,
    ),
    "specular": Corruption(
        "A wet film mirrors the lamp into the lens: saturated, stretched spots with a halo where tissue faces it.",
        "number of highlights",
        (8, 18, 34, 58, MOST_HIGHLIGHTS),
        _specular,
    ),
    "overexposure": Corruption(
        "Automatic exposure lags behind an approach: more light than the sensor holds, and it clips.",
        "aperture stops",
        (0.5, 1.0, 1.6, 2.3, 3.0),
        _exposure,
    ),
    "underexposure": Corruption(
        "The lamp is too weak or exposure lags behind a retreat: less light, in the same 8 bits.",
        "aperture stops",
        (-0.75, -1.5, -2.4, -3.4, -4.5),
        _exposure,
    ),
    "blood": Corruption(
        "A film of blood on tissue and lens absorbs green and blue far more than red (Beer-Lambert).",
        "share of the picture that is covered, about",
        (0.25, 0.42, 0.60, 0.80, 1.05),
        _blood,
    ),
    "jpeg": Corruption(
        "A video link without enough bits: 8x8 cosine blocks are coarsely rounded and colour is halved.",
        "JPEG quality",
        (50, 30, 18, 12, 8),
        _jpeg,
    ),
    "noise": Corruption(
        "Few photons, much gain: shot noise grows with the root of the light, read noise is there in the dark too.",
        "photo-electrons at white",
        (2500, 900, 350, 140, 60),
        _noise,
    ),
    "dropped_frames": Corruption(
        "The grabber or the network loses images: each frame is lost by chance, and motion has to bridge the gap.",
        "share of frames lost",
        (0.05, 0.10, 0.20, 0.35, 0.50),
        None,
    ),
}
