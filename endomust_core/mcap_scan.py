"""An MCAP file without its end, or with a damaged middle → the messages that are still in it; no index is needed.

MCAP (mcap.dev/spec) is a row of records: one byte of kind, eight of length, content; all numbers little-endian.
Messages sit in chunks that may be compressed. A recorder that was killed leaves a file without index and footer, whose
last record is cut: everything before the cut is read here, also what a cut chunk still gives.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"\x89MCAP0\r\n"
FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, DATA_END = 0x02, 0x03, 0x04, 0x05, 0x06, 0x0F
LONGEST = 1 << 32  # bytes; a longer record is not a record but damage


@dataclass(frozen=True)
class Channel:
    """One topic of the file; `definition` is the text of its message type, `encoding` ros2msg or ros2idl."""

    topic: str
    msgtype: str
    definition: str
    encoding: str


class McapScan:
    """Reads a file once to learn what is in it (`channels`, `counts`, `faults`), then as often as `messages` asks.

    `faults` are sentences about what could not be read. Messages come in the order of the file, which is the order of
    arrival for every recorder of ROS; nothing but one chunk is held in memory.
    """

    def __init__(self, path: Path):
        self.path = path
        self.channels: dict[int, Channel] = {}
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.start_ns = self.end_ns = 0
        self._schemas: dict[int, tuple[str, str, str]] = {}
        for channel, log_ns, _ in self._records(self.faults):
            self.counts[channel.topic] += 1
            self.start_ns = log_ns if not self.start_ns else min(self.start_ns, log_ns)
            self.end_ns = max(self.end_ns, log_ns)

    def messages(self, topics: list[str] | None = None) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, message type, log time [ns], CDR bytes) of everything that can still be read."""
        for channel, log_ns, cdr in self._records([]):
            if topics is None or channel.topic in topics:
                yield channel.topic, channel.msgtype, log_ns, bytes(cdr)

    def _records(self, faults: list[str]) -> Iterator[tuple[Channel, int, memoryview]]:
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            file.seek(len(MAGIC))
            while True:
                at = file.tell()
                head = file.read(9)
                if not head or head[0] in (FOOTER, DATA_END):
                    return
                length = struct.unpack_from("<Q", head, 1)[0] if len(head) == 9 else 0
                if len(head) < 9 or (length > LONGEST and at + length > size):
                    faults.append(f"the file ends or is damaged at byte {at} of {size}")
                    return
                content = file.read(length)
                if len(content) < length:
                    faults.append(f"the last record is cut: {len(content)} of {length} bytes are there")
                if head[0] == CHUNK:
                    yield from self._chunk(content, at, faults)
                elif len(content) == length:
                    yield from self._record(head[0], memoryview(content))

    def _chunk(self, content: bytes, at: int, faults: list[str]) -> Iterator[tuple[Channel, int, memoryview]]:
        try:
            size, crc, compression, packed = _chunk_parts(content)
            data = _unpacked(compression, packed)
        except (struct.error, ValueError) as error:
            faults.append(f"the chunk at byte {at} is damaged and left out ({error})")
            return
        if len(data) == size and crc and zlib.crc32(data) != crc:
            faults.append(f"the chunk at byte {at} is damaged and left out (its checksum differs)")
            return
        view, place = memoryview(data), 0
        while place + 9 <= len(view):
            kind, length = struct.unpack_from("<BQ", view, place)
            body = view[place + 9 : place + 9 + length]
            if len(body) < length:
                if len(data) == size:  # a whole chunk whose records do not fit into it
                    faults.append(f"the chunk at byte {at} is damaged; what follows in it is left out")
                return
            yield from self._record(kind, body)
            place += 9 + length

    def _record(self, kind: int, body: memoryview) -> Iterator[tuple[Channel, int, memoryview]]:
        if kind == SCHEMA:
            (key,) = struct.unpack_from("<H", body)
            name, place = _text(body, 2)
            encoding, place = _text(body, place)
            self._schemas[key] = name, encoding, _text(body, place)[0]
        elif kind == CHANNEL:
            key, schema = struct.unpack_from("<HH", body)
            name, encoding, definition = self._schemas.get(schema, ("", "", ""))
            self.channels[key] = Channel(_text(body, 4)[0], name, definition, encoding)
        elif kind == MESSAGE and len(body) >= 22:
            key, _, log_ns = struct.unpack_from("<HIQ", body)
            if key in self.channels:
                yield self.channels[key], log_ns, body[22:]


def _chunk_parts(content: bytes) -> tuple[int, int, str, bytes]:
    """Uncompressed size, checksum, compression and the bytes of a chunk, as many as are there."""
    size, crc = struct.unpack_from("<QI", content, 16)
    compression, place = _text(memoryview(content), 28)
    return size, crc, compression, content[place + 8 :]


def _unpacked(compression: str, packed: bytes) -> bytes:
    """The records of a chunk; of one that is cut, those that its bytes still give."""
    if compression == "":
        return packed
    try:
        return _decompressor(compression).decompress(packed)
    except ValueError:
        raise
    except Exception as error:  # every library has its own class for broken bytes
        raise ValueError(str(error)) from error


def _decompressor(compression: str):
    if compression == "lz4":
        from lz4.frame import LZ4FrameDecompressor

        return LZ4FrameDecompressor()
    if compression != "zstd":
        raise ValueError(f"its compression '{compression}' is unknown")
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdDecompressor()


def _text(body: memoryview, place: int) -> tuple[str, int]:
    """A string with its length before it, and the place after it."""
    (length,) = struct.unpack_from("<I", body, place)
    return bytes(body[place + 4 : place + 4 + length]).decode(), place + 4 + length
