"""Fetch: what arrives is what was published, an interrupted download goes on, and offline says what to do by hand."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from endomust_core.learning import foundation
from endomust_core.learning.foundation import SUMS, TABLE, FetchError, Weights, fetch, listing

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT as /weights.pth; the class attributes set how it misbehaves."""

    ranges = True
    cut_after = None
    content_type = "application/octet-stream"
    asked: list = []

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if self.path != "/weights.pth":
            self.send_error(404)
            return
        if first >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Type", self.content_type)
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        self.wfile.write(CONTENT[first:][: self.cut_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server of one file on this machine, its table row under the name `small`, and its misbehaviour to set."""
    handler = type("Handler", (Server,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}/weights.pth"
        monkeypatch.setattr(
            foundation,
            "TABLE",
            {
                "small": Weights(url, "Apache-2.0", "a test", DIGEST, len(CONTENT)),
                "unpinned": Weights(url, "Apache-2.0", "a test"),
                "closed": Weights(url, "CC-BY-NC-4.0", "a test", DIGEST, len(CONTENT), commercial=False),
                "missing": Weights(url.replace("weights", "absent"), "Apache-2.0", "a test"),
            },
        )
        yield handler
        running.shutdown()
        thread.join()


def test_a_file_arrives_whole_with_its_licence_shown(server, tmp_path, caplog):
    caplog.set_level("INFO")
    path = fetch("small", tmp_path / "weights")
    assert path == tmp_path / "weights" / "weights.pth" and path.read_bytes() == CONTENT
    assert "licence Apache-2.0" in caplog.text and f"sha256 {DIGEST}, as expected" in caplog.text
    assert (tmp_path / "weights" / SUMS).read_text() == f"{DIGEST}  weights.pth\n"
    assert sorted(entry.name for entry in path.parent.iterdir()) == [SUMS, "weights.pth"]
    assert fetch("small", tmp_path / "weights") == path and len(server.asked) == 1  # checked, not fetched again


def test_an_interrupted_download_goes_on(server, tmp_path):
    server.cut_after = 100_000
    with pytest.raises(
        FetchError, match=r"ended after 100 kB of 256 kB\); run again to go on after 100 kB, or open http"
    ):
        fetch("small", tmp_path)
    assert (tmp_path / "weights.pth.part").stat().st_size == 100_000 and not (tmp_path / "weights.pth").exists()
    server.cut_after = None
    assert fetch("small", tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1000)
    server.ranges = False
    assert fetch("small", tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_damaged_part_is_found_and_removed(server, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1000)
    with pytest.raises(FetchError, match=rf"it must be {DIGEST}; what came was deleted, run again"):
        fetch("small", tmp_path)
    assert fetch("small", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["small", "unpinned"])
def test_a_part_longer_than_the_file_is_removed(server, tmp_path, name):
    (tmp_path / "weights.pth.part").write_bytes(CONTENT + b"x")
    with pytest.raises(FetchError, match="deleted"):
        fetch(name, tmp_path)
    assert fetch(name, tmp_path).read_bytes() == CONTENT


def test_a_whole_part_needs_no_server(server, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(CONTENT)
    assert fetch("small", tmp_path).read_bytes() == CONTENT and server.asked == []


def test_a_file_put_there_by_hand_is_checked(server, tmp_path):
    (tmp_path / "weights.pth").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(FetchError, match="damaged or another file: delete it and run again"):
        fetch("small", tmp_path)
    (tmp_path / "weights.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(FetchError, match=f"has {len(CONTENT) - 1} bytes, weights.pth has {len(CONTENT)}"):
        fetch("small", tmp_path)
    assert server.asked == []


def test_without_a_pinned_checksum_the_first_one_is_kept(server, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / SUMS).write_text("0" * 64 + "  other.pth\n")
    path = fetch("unpinned", tmp_path)
    assert f"sha256 {DIGEST}; none is pinned for this file" in caplog.text
    assert (tmp_path / SUMS).read_text() == "0" * 64 + "  other.pth\n" + f"{DIGEST}  weights.pth\n"
    path.write_bytes(b"another")
    with pytest.raises(FetchError, match=rf"SHA256SUMS recorded {DIGEST}"):
        fetch("unpinned", tmp_path)


def test_a_licence_without_commerce_must_be_accepted(server, tmp_path):
    with pytest.raises(FetchError, match=r"CC-BY-NC-4\.0, which allows no commercial use; .* --accept-licence"):
        fetch("closed", tmp_path)
    assert server.asked == [] and not list(tmp_path.iterdir())
    assert fetch("closed", tmp_path, accept_licence=True).read_bytes() == CONTENT


def test_what_is_no_file_is_refused(server, tmp_path):
    with pytest.raises(FetchError, match=r"the server answers 404 .*; open http.*absent\.pth on a machine"):
        fetch("missing", tmp_path)
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(FetchError, match="a web page came back"):
        fetch("unpinned", tmp_path)
    assert not list(tmp_path.iterdir())


def test_offline_is_one_sentence_that_says_where_the_file_goes(tmp_path, monkeypatch):
    row = Weights("http://127.0.0.1:9/weights.pth", "Apache-2.0", "a test")  # nothing listens on the discard port
    monkeypatch.setattr(foundation, "TABLE", {"small": row})
    with pytest.raises(FetchError) as caught:
        fetch("small", tmp_path / "weights", timeout=5)
    sentence = str(caught.value)
    assert "\n" not in sentence and "Connection refused" in sentence
    assert (
        f"open {row.url} on a machine that is online, put the file at {tmp_path / 'weights' / 'weights.pth'}"
        in sentence
    )


def test_too_small_a_disk_is_said_before_the_download(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(foundation.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match="needs 256 kB more; make room or choose another place with --to"):
        fetch("small", tmp_path)
    assert server.asked == []


def test_names_are_suggested():
    with pytest.raises(FetchError, match="did you mean depth-anything-v2-small"):
        fetch("depth-anything-v2-smal")
    with pytest.raises(FetchError, match="there are depth-anything-small"):
        fetch("zzz")


def test_the_table_is_sound():
    assert len({row.file for row in TABLE.values()}) == len(TABLE)
    for name, row in TABLE.items():
        assert row.url.startswith("https://") and row.file.endswith(".pth")
        assert row.sha256 is None or (len(row.sha256) == 64 and int(row.sha256, 16) >= 0)
        assert row.commercial == ("NC" not in row.licence)
        assert f"{name} " in listing()
    assert TABLE["resnet18"].sha256.startswith("f37072fd")  # the file's name carries its first digits
