"""The engine cache: found again by content, damaged or foreign files rebuilt with a sentence, one builder at a time."""

import logging
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time

import pytest

from endomust_core import engine_cache
from endomust_core.engine_cache import EngineCache, default_folder, key

FACTS = {
    "bundle": "mock",
    "network": "depth",
    "graph": "ab" * 32,
    "precision": "fp16",
    "shapes": [1, 6, 8, 3],
    "provider": "tensorrt",
    "version": "10.14.1",
    "device": "NVIDIA Orin",
    "driver": 12060,
}


class Builder:
    """Counts how often it builds."""

    def __init__(self, content=b"engine"):
        self.content, self.built = content, 0

    def __call__(self):
        self.built += 1
        return self.content


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


def test_the_second_time_it_is_there(cache):
    build = Builder(bytes(range(256)) * 10)
    assert cache.open(FACTS, build, bytes) == (build.content, "built")
    assert cache.open(FACTS, build, bytes) == (build.content, "cached")
    assert build.built == 1
    assert cache.open(FACTS, build, bytes, rebuild=True)[1] == "built" and build.built == 2
    assert cache.size() > len(build.content)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_everything_that_an_engine_depends_on_is_in_the_key(name):
    assert key(FACTS) == key(dict(reversed(FACTS.items())))
    assert key(FACTS | {name: "another"}) != key(FACTS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": "NVIDIA H200"}, "device NVIDIA Orin → NVIDIA H200"),
        ({"version": "10.16.0"}, "version 10.14.1 → 10.16.0"),
        ({"graph": "cd" * 32}, "graph abababababab… → cdcdcdcdcdcd…"),
    ],
)
def test_another_gpu_version_or_model_is_built_anew_and_the_log_says_what_changed(cache, caplog, change, said):
    cache.open(FACTS, Builder(), bytes)
    build = Builder(b"other")
    with caplog.at_level(logging.INFO):
        assert cache.open(FACTS | change, build, bytes) == (b"other", "built")
    assert said in caplog.text


def test_an_engine_of_an_older_version_makes_room_and_one_of_another_gpu_stays(cache):
    old, elsewhere = cache.path(FACTS), cache.path(FACTS | {"device": "NVIDIA H200"})
    cache.open(FACTS, Builder(), bytes)
    cache.open(FACTS | {"device": "NVIDIA H200"}, Builder(), bytes)
    assert old.exists() and elsewhere.exists()
    cache.open(FACTS | {"version": "10.16.0"}, Builder(), bytes)
    assert not old.exists() and elsewhere.exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[:-3], "cut short: 3 of 6 bytes"),
        (lambda data: data[:25], "cut short"),
        (lambda data: b"", "does not begin as an engine"),
        (lambda data: b"PK\x03\x04" + data, "does not begin as an engine"),
        (lambda data: data[:-1] + b"!", "its bytes have changed"),
    ],
)
def test_a_damaged_file_is_built_again_with_a_sentence(cache, caplog, spoil, said):
    cache.open(FACTS, Builder(), bytes)
    path = cache.path(FACTS)
    path.write_bytes(spoil(path.read_bytes()))
    build = Builder()
    with caplog.at_level(logging.WARNING):
        assert cache.open(FACTS, build, bytes) == (b"engine", "built")
    assert said in caplog.text and "built again" in caplog.text
    assert cache.open(FACTS, build, bytes)[1] == "cached"


def test_an_engine_for_another_use_under_this_name_is_not_taken(cache, caplog):
    other = FACTS | {"graph": "ef" * 32}
    cache.open(other, Builder(b"wrong"), bytes)
    os.replace(cache.path(other), cache.path(FACTS))
    with caplog.at_level(logging.WARNING):
        assert cache.open(FACTS, Builder(b"right"), bytes) == (b"right", "built")
    assert "is for another use (graph efefefefefef… → abababababab…)" in caplog.text


def test_whole_bytes_that_the_library_refuses_are_built_again_once(cache, caplog):
    cache.open(FACTS, Builder(b"old"), bytes)

    def load(engine):
        if engine == b"old":
            raise RuntimeError("serialization version mismatch\nmore")
        return engine

    assert cache.open(FACTS, Builder(b"new"), load) == (b"new", "built")
    assert "does not open (serialization version mismatch) and is built again" in caplog.text
    with pytest.raises(RuntimeError, match="mismatch"):
        cache.open(FACTS, Builder(b"old"), load, rebuild=True)


def test_what_cannot_be_built_leaves_nothing(cache):
    def build():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.open(FACTS, build, bytes)
    assert not list(cache.folder.glob("*.engine")) and not list(cache.folder.glob("*.unfinished"))


def test_a_folder_that_takes_nothing_is_a_warning_and_the_engine_works(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert EngineCache(blocked).open(FACTS, Builder(), bytes) == (b"engine", "built")
    assert "cannot be kept" in caplog.text and "model.engine_cache_dir" in caplog.text


def test_a_full_disk_leaves_no_half_engine(cache, caplog, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_cache.os, "fsync", full)
    assert cache.open(FACTS, Builder(), bytes)[1] == "built"
    assert "No space left on device" in caplog.text
    assert not list(cache.folder.glob("*engine*"))


def _open_slowly(folder, start, results):
    def build():
        time.sleep(0.8)
        return b"engine"

    start.wait()
    results.put(EngineCache(folder).open(FACTS, build, bytes)[1])


def test_of_two_that_want_one_engine_one_builds_and_the_other_waits(cache):
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_open_slowly, args=(cache.folder, start, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = sorted(results.get(timeout=20) for _ in workers)
    for worker in workers:
        worker.join(10)
    assert found == ["built", "cached"]


def test_a_builder_that_is_killed_blocks_nobody(cache):
    script = f"""
        import time
        from endomust_core.engine_cache import EngineCache
        def build():
            print("building", flush=True)
            time.sleep(60)
        EngineCache({str(cache.folder)!r}).open({FACTS!r}, build, bytes)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"building\n"
    process.kill()
    process.wait()
    assert cache.open(FACTS, Builder(), bytes) == (b"engine", "built")


def test_helper_files_are_whole_or_absent(cache):
    assert cache.read("timing.cache") == b""
    cache.write("timing.cache", b"tuned")
    assert cache.read("timing.cache") == b"tuned"


def test_it_lies_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "endomust" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "endomust" / "engines"
