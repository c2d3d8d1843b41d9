"""MCAP files without an end or with a damaged middle: what is still in them comes out, and what is missing is named."""

import numpy as np
import pytest
from small_recording import START_NS, write_small_recording

from endomust_core.mcap_scan import McapScan
from endomust_core.recording import COMPRESSED_TOPIC, RecordingError, RecordingReader
from endomust_core.recording_writer import RecordingWriter


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small_recording(tmp_path_factory.mktemp("scan") / "small.mcap", frames=10)


@pytest.fixture(scope="module")
def many_chunks(tmp_path_factory):
    """300 kB per message, so four messages a chunk."""
    path = tmp_path_factory.mktemp("scan") / "chunks.mcap"
    with RecordingWriter(path) as writer:
        for index in range(20):
            writer.write_string("/talk", f"{index:03d}" * 100_000, START_NS + index)
    return path


def rows(path, recover=False):
    with RecordingReader(path, recover=recover) as reader:
        return list(reader.messages()), reader.faults


@pytest.mark.parametrize("compress", [False, True])
def test_a_whole_file_is_read_like_with_its_index(small, tmp_path, compress):
    with RecordingReader(small) as reader, RecordingWriter(tmp_path / "copy.mcap", compress=compress) as writer:
        for topic, kind, log_ns, cdr in reader.messages():
            writer.write_raw(topic, kind, cdr, log_ns)
    scan = McapScan(tmp_path / "copy.mcap")
    assert sorted(scan.messages()) == sorted(rows(tmp_path / "copy.mcap")[0])
    assert scan.faults == [] and scan.counts[COMPRESSED_TOPIC] == 10
    assert list(scan.messages([COMPRESSED_TOPIC]))[0][0] == COMPRESSED_TOPIC and scan.start_ns == START_NS


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_everything_before_the_cut_is_read(tmp_path, compress, share):
    noise = np.random.default_rng(0)
    with RecordingWriter(tmp_path / "copy.mcap", compress=compress) as writer:
        for index in range(30):  # 60 kB each: one chunk and a half
            writer.write_string("/talk", noise.bytes(30_000).hex(), START_NS + index)
    whole, _ = rows(tmp_path / "copy.mcap")
    content = (tmp_path / "copy.mcap").read_bytes()
    (tmp_path / "cut.mcap").write_bytes(content[: int(share * len(content))])
    with pytest.raises(RecordingError, match="cut short or was never finished"):
        RecordingReader(tmp_path / "cut.mcap")
    found, faults = rows(tmp_path / "cut.mcap", recover=True)
    assert found == whole[: len(found)] and len(found) >= (share - 0.2) * len(whole)
    assert len(faults) == 1 and f"{len(found)} messages were read" in faults[0]


def test_messages_of_a_cut_file_can_be_read(small, tmp_path):
    (tmp_path / "cut.mcap").write_bytes(small.read_bytes()[:-800])
    with RecordingReader(tmp_path / "cut.mcap", recover=True) as reader:
        assert reader.camera_topic() == COMPRESSED_TOPIC and reader.count(COMPRESSED_TOPIC) == 10
        message = reader.first(COMPRESSED_TOPIC)
        assert "jpeg" in message.format and reader.has_header("sensor_msgs/msg/CompressedImage")
        assert reader.duration_s == pytest.approx(9 / 15, abs=1e-6)
        with pytest.raises(RecordingError, match="no topic /other"):
            list(reader.messages(["/other"]))


def test_a_damaged_chunk_in_the_middle_is_left_out_and_the_rest_is_read(many_chunks, tmp_path):
    content = bytearray(many_chunks.read_bytes())
    middle = content.index(b"012012")
    content[middle - 40 : middle] = b"\xff" * 40  # head of that message: the rest of its chunk cannot be found
    (tmp_path / "damaged.mcap").write_bytes(content)
    with pytest.raises(RecordingError, match="is damaged"):
        rows(tmp_path / "damaged.mcap")
    found, faults = rows(tmp_path / "damaged.mcap", recover=True)
    numbers = [int(cdr[8:11]) for _, _, _, cdr in found]
    assert numbers == sorted(set(numbers)) and {0, 5, 18, 19} <= set(numbers) and 12 not in numbers
    assert len(numbers) >= 15 and "damaged.mcap is damaged" in faults[0] and "the rest of it was read" in faults[0]


def test_a_file_with_nothing_in_it_is_refused_in_words(small, tmp_path):
    (tmp_path / "start.mcap").write_bytes(small.read_bytes()[:60])
    with pytest.raises(RecordingError, match="no message can be read from it"):
        RecordingReader(tmp_path / "start.mcap", recover=True)
    (tmp_path / "other.mcap").write_bytes(b"\x00" * 100)
    with pytest.raises(RecordingError, match="is not an MCAP file"):
        RecordingReader(tmp_path / "other.mcap", recover=True)
