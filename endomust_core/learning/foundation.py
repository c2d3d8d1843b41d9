"""Published foundation weights → files on this machine: licence shown, download resumed, sha256 checked or recorded.

No weights ship with this project. Files keep their published names; SHA256SUMS beside them (as `sha256sum -c` reads it)
holds what arrived, so that a file without a pinned checksum is at least the same one ever after.
"""

import difflib
import logging
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from endomust_core.bundle import sha256_of

SUMS = "SHA256SUMS"
TIMEOUT = 30.0  # s without a byte
CHUNK = 1 << 18  # bytes
REPORT_EVERY = 5.0  # s
CONNECTION_ERRORS = (urllib.error.URLError, HTTPException, OSError)

log = logging.getLogger(__name__)


class FetchError(RuntimeError):
    """Weights could not be fetched; the message says what to do instead."""


@dataclass(frozen=True)
class Weights:
    """One published file. sha256 and size [bytes] stand here only where they are known for certain."""

    url: str
    licence: str
    what: str
    sha256: str | None = None
    size: int | None = None
    commercial: bool = True

    @property
    def file(self) -> str:
        """The published file name."""
        return self.url.rpartition("/")[2]


_V1 = "https://huggingface.co/spaces/LiheYoung/Depth-Anything/resolve/main/checkpoints/"
_V2 = "https://huggingface.co/depth-anything/Depth-Anything-V2-"
_NON_COMMERCIAL = dict(licence="CC-BY-NC-4.0", commercial=False)

TABLE = {
    "depth-anything-small": Weights(
        _V1 + "depth_anything_vits14.pth", "Apache-2.0", "Depth Anything v1, ViT-S/14, 25 M parameters"
    ),
    "depth-anything-base": Weights(
        _V1 + "depth_anything_vitb14.pth", "Apache-2.0", "Depth Anything v1, ViT-B/14, 97 M; EndoMUST starts from it",
        "64ae214ae4e27424b644c49464c0aa243016f6f753d95097c8eb9ad0b9cb2d9b",
    ),
    "depth-anything-large": Weights(
        _V1 + "depth_anything_vitl14.pth", "Apache-2.0", "Depth Anything v1, ViT-L/14, 335 M",
        "6c6a383e33e51c5fdfbf31e7ebcda943973a9e6a1cbef1564afe58d7f2e8fe63", 1_341_401_882,
    ),
    "depth-anything-v2-small": Weights(
        _V2 + "Small/resolve/main/depth_anything_v2_vits.pth", "Apache-2.0", "Depth Anything v2, ViT-S/14, 25 M",
        "715fade13be8f229f8a70cc02066f656f2423a59effd0579197bbf57860e1378", 99_218_434,
    ),
    "depth-anything-v2-base": Weights(
        _V2 + "Base/resolve/main/depth_anything_v2_vitb.pth", what="Depth Anything v2, ViT-B/14, 97 M",
        sha256="0d2b7002e62d39d655571c371333340bd88f67ab95050c03591555aa05645328", size=389_961_218, **_NON_COMMERCIAL,
    ),
    "depth-anything-v2-large": Weights(
        _V2 + "Large/resolve/main/depth_anything_v2_vitl.pth", what="Depth Anything v2, ViT-L/14, 335 M",
        sha256="a7ea19fa0ed99244e67b624c72b8580b7e9553043245905be58796a608eb9345", size=1_341_395_338,
        **_NON_COMMERCIAL,
    ),
    "resnet18": Weights(
        "https://download.pytorch.org/models/resnet18-f37072fd.pth", "BSD-3-Clause",
        "torchvision's ResNet-18, ImageNet; starts every convolutional encoder",
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec", 46_830_571,
    ),
}  # fmt: skip


def listing() -> str:
    """All names with size, licence and what they are, one a line."""
    width = max(map(len, TABLE))
    rows = (f"{name:<{width}}  {megabytes(row.size):>8}  {row.licence:<12}  {row.what}" for name, row in TABLE.items())
    return "\n".join(rows)


def fetch(name: str, folder: str | Path = "weights", accept_licence: bool = False, timeout: float = TIMEOUT) -> Path:
    """Bring one entry of `TABLE` into a folder and check it; returns its path. A file that is there is checked only.

    An interrupted download goes on where it stopped. Raises FetchError in words: unknown name, licence not accepted, no
    connection, disk full, another checksum.
    """
    row, folder = _row(name), Path(folder)
    target = folder / row.file
    log.info("%s: %s; licence %s", row.file, row.what, row.licence)
    if not row.commercial and not accept_licence:
        raise FetchError(
            f"{name} is under {row.licence}, which allows no commercial use; if that suits you, add --accept-licence"
        )
    if not target.is_file():
        partial = target.with_name(target.name + ".part")
        _make_room(folder, row, partial)
        _download(row, target, partial, timeout)
        try:
            _check(row, partial, folder)
        except FetchError as error:
            partial.unlink()
            raise FetchError(f"{error}; what came was deleted, run again") from None
        partial.replace(target)
    else:
        log.info("%s is there already", target)
        try:
            _check(row, target, folder)
        except FetchError as error:
            raise FetchError(f"{error}; it is damaged or another file: delete it and run again") from None
    return target


def megabytes(size: int | None) -> str:
    """Bytes as people read them."""
    if size is None:
        return ""
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _row(name: str) -> Weights:
    if name not in TABLE:
        near = difflib.get_close_matches(name, TABLE, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(TABLE)}"
        raise FetchError(f"no published weights {name!r}; {advice}")
    return TABLE[name]


def _make_room(folder: Path, row: Weights, partial: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if row.size is None:
        return
    needed = row.size - (partial.stat().st_size if partial.is_file() else 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(
            f"{folder} has {megabytes(free)} free, {row.file} needs {megabytes(needed)} more; make room or choose "
            "another place with --to"
        )


def _download(row: Weights, target: Path, partial: Path, timeout: float) -> None:
    """Bytes of the URL into `partial`, after those it holds already."""
    have = partial.stat().st_size if partial.is_file() else 0
    if have and have == row.size:
        return
    request = urllib.request.Request(row.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            if answer.headers.get_content_type() == "text/html":
                raise FetchError(_by_hand(row, target, "a web page came back instead of the file"))
            goes_on = have and answer.status == 206
            have = have if goes_on else 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else row.size
            if goes_on:
                log.info("going on after %s", megabytes(have))
            with open(partial, "ab" if goes_on else "wb") as file:
                _copy(answer, file, have, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and row.sha256:  # nothing lies behind what we have: it is whole, or the checksum differs
            return
        if error.code == 416:
            partial.unlink()
            raise FetchError(f"{partial} does not fit the server's file and was deleted; run again") from error
        raise FetchError(_by_hand(row, target, f"the server answers {error.code} {error.reason}")) from error
    except CONNECTION_ERRORS as error:
        reason = getattr(error, "reason", None) or error
        stored = partial.stat().st_size if partial.is_file() else 0
        raise FetchError(_by_hand(row, target, str(reason), stored)) from error


def _copy(answer, file, have: int, total: int | None) -> None:
    started, last, first = time.monotonic(), time.monotonic(), have
    while chunk := answer.read(CHUNK):
        try:
            file.write(chunk)
        except OSError as error:
            raise FetchError(
                f"{file.name} cannot be written ({error.strerror}); make room and run again, or choose another "
                "place with --to"
            ) from error
        have += len(chunk)
        now = time.monotonic()
        if now - last >= REPORT_EVERY:
            last, rate = now, (have - first) / (now - started)
            left = f" of {megabytes(total)}, {(total - have) / rate:.0f} s to go" if total else ""
            log.info("%s%s", megabytes(have), left)
    if total is not None and have < total:
        raise HTTPException(f"the connection ended after {megabytes(have)} of {megabytes(total)}")


def _by_hand(row: Weights, target: Path, reason: str, stored: int = 0) -> str:
    again = f"run again to go on after {megabytes(stored)}, or " if stored else ""
    return (
        f"{row.file} could not be fetched ({reason}); {again}open {row.url} on a machine that is online, put the file "
        f"at {target}, and run the same command to check it"
    )


def _check(row: Weights, path: Path, folder: Path) -> None:
    """Compare with the pinned size and checksum, or with what SHA256SUMS recorded; record it on first use."""
    size = path.stat().st_size
    if row.size is not None and size != row.size:
        raise FetchError(f"{path} has {size} bytes, {row.file} has {row.size}")
    recorded = _sums(folder)
    expected = row.sha256 or recorded.get(row.file)
    found = sha256_of(path)
    if expected is not None and found != expected.lower():
        source = "it must be" if row.sha256 else f"{folder / SUMS} recorded"
        raise FetchError(f"{path}: sha256 is {found}, {source} {expected}")
    if expected is None:
        log.info("sha256 %s; none is pinned for this file, so it is recorded in %s", found, folder / SUMS)
    else:
        log.info("sha256 %s, as expected", found)
    if recorded.get(row.file) != found:
        rows = recorded | {row.file: found}
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(rows.items()))
        part = folder / f"{SUMS}.part"
        part.write_text(text)
        part.replace(folder / SUMS)


def _sums(folder: Path) -> dict[str, str]:
    """File name → hex digest, as recorded."""
    path = folder / SUMS
    rows = (line.split(maxsplit=1) for line in path.read_text().splitlines()) if path.is_file() else ()
    return {row[1].lstrip("*"): row[0].lower() for row in rows if len(row) == 2}
