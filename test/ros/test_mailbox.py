"""The mailbox keeps the newest item of each slot only; the worker survives errors and is gone when `stop` returns."""

import os
import sys
import threading

import pytest

from endomust_ros.mailbox import Follower, Mailbox, Worker


def test_a_new_item_takes_the_place_of_one_that_waits():
    box = Mailbox()
    assert [box.put("a"), box.put("b"), box.put("c")] == [False, True, True]
    assert box.take() == "c" and not box.put("d") and box.take() == "d"


def test_each_slot_has_its_own_item_and_none_waits_behind_one_that_is_refilled():
    box = Mailbox()
    assert [box.put("cloud 1", "cloud"), box.put("preview 1", "preview"), box.put("cloud 2", "cloud")] == [0, 0, 1]
    assert box.take() == "cloud 2"
    assert not box.put("cloud 3", "cloud")
    assert [box.take(), box.take()] == ["preview 1", "cloud 3"]


def test_a_closed_mailbox_is_empty_for_ever():
    box = Mailbox()
    box.put("a")
    box.close()
    assert box.take() is None and not box.put("b") and box.take() is None


def test_take_waits_for_the_item():
    box, got = Mailbox(), []
    reader = threading.Thread(target=lambda: got.append(box.take()))
    reader.start()
    box.put("late")
    reader.join(5)
    assert got == ["late"]


class Slow:
    """Work that stops in the middle until it is let go."""

    def __init__(self):
        self.started, self.go_on, self.done = threading.Semaphore(0), threading.Semaphore(0), []

    def __call__(self, item):
        self.started.release()
        assert self.go_on.acquire(timeout=5)
        self.done.append(item)


def test_while_one_image_is_in_work_only_the_newest_of_the_others_waits():
    work = Slow()
    worker = Worker(work, pytest.fail)
    worker.start()
    worker.put(1)
    assert work.started.acquire(timeout=5)
    assert [worker.put(2), worker.put(3), worker.put(4)] == [False, True, True]
    work.go_on.release()
    assert work.started.acquire(timeout=5)
    work.go_on.release()
    worker.stop()
    assert work.done == [1, 4]


def test_stop_waits_for_the_item_in_work_and_forgets_the_one_that_waits():
    work = Slow()
    worker = Worker(work, pytest.fail)
    worker.start()
    worker.put("in work")
    assert work.started.acquire(timeout=5)
    worker.put("waits")
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    assert stopper.is_alive() and not work.done
    work.go_on.release()
    stopper.join(5)
    assert not stopper.is_alive() and work.done == ["in work"]
    assert not any(thread.name == "endomust-worker" for thread in threading.enumerate())


def test_an_error_is_reported_and_the_next_item_is_handled():
    errors, handled, both = [], [], threading.Event()

    def handle(item):
        if item == "bad":
            raise ValueError("bad item")
        handled.append(item)
        both.set()

    reported = threading.Event()
    worker = Worker(handle, lambda error: (errors.append(error), reported.set()))
    worker.start()
    worker.put("bad")
    assert reported.wait(5)
    worker.put("good")
    assert both.wait(5)
    worker.stop()
    assert handled == ["good"] and str(errors[0]) == "bad item"


def test_work_that_hangs_is_named_instead_of_waited_for_for_ever():
    work = Slow()
    worker = Worker(work, pytest.fail, patience=0.05)
    worker.start()
    worker.put(1)
    assert work.started.acquire(timeout=5)
    with pytest.raises(TimeoutError, match="the inference hangs"):
        worker.stop()
    work.go_on.release()


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of single threads are known on Linux only")
def test_a_worker_can_step_back_behind_the_other_threads():
    found, done = [], threading.Event()

    def note(item):
        found.append((threading.current_thread().name, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        done.set()

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    worker = Worker(note, pytest.fail, name="quiet", nice=3)
    worker.start()
    worker.put("any")
    assert done.wait(5)
    worker.stop()
    assert found == [("quiet", min(19, before + 3))]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_worker_that_never_started_can_be_stopped():
    Worker(pytest.fail, pytest.fail).stop()


# ---- an item that waits for its turn ----


def test_a_follower_takes_every_item_in_order_and_lets_nobody_overtake():
    taken, gate = [], threading.Event()

    def handle(item):
        gate.wait(5)
        taken.append(item)

    follower = Follower(handle, pytest.fail)
    follower.start()
    follower.put(1)
    second = threading.Thread(target=lambda: follower.put(2))
    second.start()
    second.join(0.05)
    assert second.is_alive() and not taken, "the second waits until the first is done"
    gate.set()
    second.join(5)
    follower.settle()
    assert taken == [1, 2]
    follower.stop()


def test_a_follower_reports_what_fails_and_goes_on():
    errors, taken = [], []

    def handle(item):
        if item == "bad":
            raise RuntimeError("bad item")
        taken.append(item)

    follower = Follower(handle, errors.append)
    follower.start()
    for item in ("bad", "good"):
        follower.put(item)
    follower.settle()
    assert taken == ["good"] and str(errors[0]) == "bad item"
    follower.stop()


def test_a_follower_that_hangs_is_not_waited_for_for_ever():
    gate = threading.Event()
    follower = Follower(lambda item: gate.wait(5), pytest.fail, patience=0.05)
    follower.start()
    follower.put(1)
    for wait in (follower.settle, follower.stop, lambda: follower.put(2)):
        with pytest.raises(TimeoutError, match="the inference hangs"):
            wait()
    gate.set()
