"""Engines built for this machine → files that are found again by what they were built from, never by a name alone.

An engine is right only for one graph, precision, provider with its version, GPU and driver. All of these are written in
front of the engine, and the file is used only if every one agrees and the bytes are whole; otherwise it is built again,
and the log says what differs. Two processes that want the same engine: one builds, the other waits for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # Windows: no lock between processes; files are still replaced whole
    fcntl = None

MAGIC = b"ENDOMUST-ENGINE-1\n"
SLOT = ("network", "provider", "precision")  # with these and the bundle equal, another engine is of the same use
LOOK = 0.2  # s between two looks at a lock
SAY = 10.0  # s between two sentences of one who waits
Engine = TypeVar("Engine")
log = logging.getLogger(__name__)


class EngineCache:
    """A folder of engines. Nothing in it is needed: remove it at any time, and engines are built again."""

    def __init__(self, folder: str | Path | None = None):
        """`folder` None: $XDG_CACHE_HOME/endomust/engines, or ~/.cache/endomust/engines."""
        self.folder = default_folder() if folder is None else Path(folder).expanduser()

    def open(
        self,
        facts: Mapping[str, object],
        build: Callable[[], bytes],
        load: Callable[[bytes], Engine],
        rebuild: bool = False,
    ) -> tuple[Engine, str]:
        """The engine for `facts`, built if need be → (what `load` made of its bytes, "cached" or "built").

        facts: everything that the engine depends on, plain values. `load` may raise to refuse bytes that are whole but
        do not open; then the engine is built once more, and what `load` raises after that goes on. What `build` raises
        goes on. A folder that cannot be written is a warning: the engine works, and is built again the next time.
        """
        path = self.path(facts)
        with self._alone(path):
            if not rebuild:
                kept = self._kept(path, facts)
                if kept is not None:
                    try:
                        return load(kept), "cached"
                    except Exception as error:
                        log.warning("the engine %s does not open (%s) and is built again", path, _first_line(error))
            start = time.perf_counter()
            engine = build()
            log.info("%s is built after %.1f s", _what(facts), time.perf_counter() - start)
            loaded = load(engine)
            self._store(path, facts, engine)
        return loaded, "built"

    def path(self, facts: Mapping[str, object]) -> Path:
        """Where the engine for `facts` lies, or would."""
        return self.folder / f"{_slot(facts)}-{key(facts)[:20]}.engine"

    def read(self, name: str) -> bytes:
        """A helper file such as a timing cache; empty where there is none."""
        with contextlib.suppress(OSError):
            return (self.folder / name).read_bytes()
        return b""

    def write(self, name: str, content: bytes) -> None:
        """Keep a helper file, whole or not at all; a folder that takes nothing is only said in the debug log."""
        try:
            self._replace(self.folder / name, [content])
        except OSError as error:
            log.debug("%s is not kept: %s", name, error)

    def size(self) -> int:
        """Bytes of all files in it."""
        return sum(f.stat().st_size for f in self.folder.glob("*") if f.is_file()) if self.folder.is_dir() else 0

    def _kept(self, path: Path, facts: Mapping[str, object]) -> bytes | None:
        """The engine's bytes if the file is whole and for exactly these facts; says why not."""
        if not path.exists():
            self._say_stale(facts)
            return None
        try:
            header, engine = _unpacked(path.read_bytes())
        except (OSError, ValueError) as error:
            log.warning("the engine %s is damaged (%s) and is built again", path, error)
            return None
        if header["facts"] != _plain(facts):
            log.warning("the engine %s is for another use (%s) and is built again", path, _changes(header, facts))
            return None
        return engine

    def _say_stale(self, facts: Mapping[str, object]) -> None:
        """An engine of the same use that was built from something else: say what has changed."""
        for old in sorted(self.folder.glob(f"{_slot(facts)}-*.engine")):
            with contextlib.suppress(OSError, ValueError):
                with old.open("rb") as file:
                    header = _header(file.read(1 << 16))[0]
                if header["facts"].get("bundle") == facts.get("bundle"):
                    changes = _changes(header, facts)
                    log.info("%s is not what %s was built for: %s", _what(facts), old.name, changes)

    def _store(self, path: Path, facts: Mapping[str, object], engine: bytes) -> None:
        try:
            self._replace(path, _packed(facts, engine))
            for old in self.folder.glob(f"{_slot(facts)}-*.engine"):
                if old != path and self._replaced_by(old, facts):
                    old.unlink()
        except OSError as error:
            log.warning(
                "the engine cannot be kept in %s (%s), so it is built again at every start; free some space or set "
                "model.engine_cache_dir to a folder that can be written",
                self.folder, error.strerror or error,
            )  # fmt: skip

    def _replaced_by(self, old: Path, facts: Mapping[str, object]) -> bool:
        """True for an engine of the same bundle and device: a driver or a library has moved on, it is of no use."""
        with contextlib.suppress(OSError, ValueError), old.open("rb") as file:
            found = _header(file.read(1 << 16))[0]["facts"]
            return all(found.get(name) == facts.get(name) for name in ("bundle", "device"))
        return True

    def _replace(self, path: Path, parts: list[bytes]) -> None:
        """Write beside, flush, then move: a reader sees the old file or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            with part.open("wb") as file:
                for piece in parts:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Hold the lock of this engine; the system releases it when a process dies."""
        file = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.with_suffix(".lock").open("w")
        except OSError as error:
            log.debug("no lock in %s: %s", self.folder, error)
        try:
            if file is not None and fcntl is not None:
                _wait_for(file, path)
            yield
        finally:
            if file is not None:
                file.close()


def default_folder() -> Path:
    """$XDG_CACHE_HOME/endomust/engines, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "endomust" / "engines"


def key(facts: Mapping[str, object]) -> str:
    """One sha256 for everything that an engine depends on."""
    return hashlib.sha256(json.dumps(_plain(facts), sort_keys=True).encode()).hexdigest()


def _plain(facts: Mapping[str, object]) -> dict:
    """As JSON gives it back."""
    return json.loads(json.dumps(dict(facts)))


def _slot(facts: Mapping[str, object]) -> str:
    use = "-".join(str(facts[name]) for name in SLOT)
    return f"{use}-{hashlib.sha256(str(facts.get('bundle')).encode()).hexdigest()[:8]}"


def _packed(facts: Mapping[str, object], engine: bytes) -> list[bytes]:
    header = {"facts": _plain(facts), "bytes": len(engine), "sha256": hashlib.sha256(engine).hexdigest()}
    return [MAGIC, json.dumps(header, sort_keys=True).encode() + b"\n", engine]


def _header(data: bytes) -> tuple[dict, int]:
    """What stands in front of an engine, and where the engine begins."""
    if not data.startswith(MAGIC):
        raise ValueError("it does not begin as an engine of ours")
    end = data.find(b"\n", len(MAGIC))
    if end < 0:
        raise ValueError("it is cut short")
    return json.loads(data[len(MAGIC) : end]), end + 1


def _unpacked(data: bytes) -> tuple[dict, bytes]:
    header, start = _header(data)
    engine = data[start:]
    if len(engine) != header["bytes"]:
        raise ValueError(f"it is cut short: {len(engine)} of {header['bytes']} bytes")
    if hashlib.sha256(engine).hexdigest() != header["sha256"]:
        raise ValueError("its bytes have changed")
    return header, engine


def _changes(header: Mapping, facts: Mapping[str, object]) -> str:
    old, new = header["facts"], _plain(facts)
    return ", ".join(
        f"{name} {_short(old.get(name))} → {_short(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text


def _what(facts: Mapping[str, object]) -> str:
    return f"the {facts['network']} engine of {facts.get('bundle')} for {facts['provider']} ({facts['precision']})"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _wait_for(file, path: Path) -> None:
    said = None
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            now = time.monotonic()
            if said is None or now - said > SAY:
                log.info("another process is building %s; waiting for it", path.name)
                said = now
            time.sleep(LOOK)
