"""Cores, priority and collector: applied to every thread, refusals in words, all undone."""

import gc
import os
import subprocess
import sys
import threading
import weakref

import pytest

from endomust_ros.scheduling import Scheduling

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux schedules single threads")


def test_nothing_asked_for_changes_nothing():
    plain = Scheduling()
    assert plain.apply() == [] and plain.describe() == "as started"
    plain.release()


@linux
def test_every_thread_moves_to_the_cores_and_back():
    one, hold, before = min(os.sched_getaffinity(0)), threading.Event(), os.sched_getaffinity(0)
    other = threading.Thread(target=hold.wait)
    other.start()
    pinned = Scheduling([one])
    try:
        assert pinned.apply() == [] and pinned.describe() == f"cores {one}"
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other.native_id) == {one}
        later = []
        made = threading.Thread(target=lambda: later.append(os.sched_getaffinity(0)))
        made.start()
        made.join()
        assert later == [{one}]
    finally:
        pinned.release()
        hold.set()
        other.join()
    assert os.sched_getaffinity(0) == before


@linux
def test_cores_that_are_not_there_are_named_once():
    wish = Scheduling([9999])
    (sentence,) = wish.apply()
    assert sentence.startswith("realtime.cpu_affinity [9999] was refused; this process may use cores ")
    assert wish.describe() == sentence
    wish.release()
    assert Scheduling([-1]).apply() and Scheduling([2**70]).apply()


@linux
def test_a_priority_without_permission_is_a_sentence(monkeypatch):
    def refuse(*unused):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setpriority", refuse)
    (sentence,) = Scheduling(nice=-5).apply()
    assert sentence.startswith("realtime.nice -5 was refused; allow it with a 'nice' line")


@linux
def test_niceness_reaches_threads_that_run_and_those_that_come():
    script = """
import os, threading
from endomust_ros.scheduling import Scheduling
hold = threading.Event()
thread = threading.Thread(target=hold.wait)
thread.start()
before = os.getpriority(os.PRIO_PROCESS, 0)
assert Scheduling(nice=min(19, before + 2)).apply() == []
print(os.getpriority(os.PRIO_PROCESS, thread.native_id) - before, os.getpriority(os.PRIO_PROCESS, 0) - before)
hold.set()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2", "2"], done.stderr


class Knot:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self):
        self.me = self


def test_settling_freezes_what_lives_and_still_frees_what_images_leave():
    settled = Scheduling()
    settled.settle()
    try:
        assert gc.get_freeze_count() > 1000 and gc.isenabled()
        left = weakref.ref(Knot())
        gc.collect()
        assert left() is None
    finally:
        settled.release()
    assert gc.get_freeze_count() == 0
