"""Threads before and behind: order is kept, waiting is bounded, exceptions arrive, nothing is left running."""

import threading
import time

import pytest

from endomust_core.conveyor import Sink, ahead


def test_items_arrive_in_order_and_only_a_few_ahead():
    made = []

    def items():
        for number in range(20):
            made.append(number)
            yield number

    with ahead(items(), most=3) as stream:
        first = next(stream)
        time.sleep(0.1)
        assert first == 0 and len(made) <= 6
        assert list(stream) == list(range(1, 20))


def test_an_exception_of_the_source_arrives_after_what_came_before_it():
    def items():
        yield 1
        raise ZeroDivisionError("at the source")

    seen = []
    with pytest.raises(ZeroDivisionError, match="at the source"), ahead(items()) as stream:
        seen.extend(stream)
    assert seen == [1]


def test_leaving_early_closes_the_source_and_ends_the_thread():
    closed, before = [], threading.active_count()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    with ahead(items()) as stream:
        next(stream)
    assert closed == ["ahead"] and threading.active_count() == before


def test_a_sink_handles_all_in_order_and_close_waits():
    seen = []
    sink = Sink(lambda item: (time.sleep(0.001), seen.append(item)), "test", most=2)
    for number in range(30):
        sink.put(number)
    sink.close()
    assert seen == list(range(30)) and sink.busy_s > 0.02
    sink.abandon()


def test_a_failing_sink_stops_the_one_that_fills_it():
    def fail(item):
        raise OSError("disk")

    sink = Sink(fail, "test", most=1)
    with pytest.raises(OSError, match="disk"):
        for _ in range(100):
            sink.put(0)
    with pytest.raises(OSError, match="disk"):
        sink.close()
    sink.abandon()


def test_an_abandoned_sink_forgets_what_waits():
    seen, gate = [], threading.Event()
    sink = Sink(lambda item: (gate.wait(5), seen.append(item)), "test", most=4)
    for number in range(4):
        sink.put(number)
    gate.set()
    sink.abandon()
    assert len(seen) <= 4 and not sink._thread.is_alive()
