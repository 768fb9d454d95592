"""The bound on work: order, refusals, deadlines, giving up, draining; and that no place is ever lost."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import DeadlineExceeded, RequestError, ServingError, Unavailable
from serving.server.admission import Admission


def refused(call):
    with pytest.raises(RequestError) as caught:
        call()
    return caught.value.code


def test_one_works_one_waits_and_the_third_is_refused():
    admission = Admission(limit=1, queue=1)
    first, second = admission.enter(), admission.enter()
    assert refused(admission.enter) == "RESOURCE_EXHAUSTED"
    assert refused(admission.check) == "RESOURCE_EXHAUSTED"
    with first:
        pass
    admission.check()
    with second:
        pass
    assert admission.drain(0)


def test_turns_come_in_order():
    admission, order = Admission(limit=1, queue=8), []
    first = admission.enter()

    def work(place, number):
        with place:
            order.append(number)

    threads = [threading.Thread(target=work, args=(admission.enter(), number)) for number in range(8)]
    for thread in reversed(threads):
        thread.start()
    with first:
        pass
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_a_deadline_that_passes_while_waiting():
    admission = Admission(limit=1, queue=2)
    with admission.enter():
        with pytest.raises(DeadlineExceeded), admission.enter(time.monotonic() + 0.01):
            pass
        with pytest.raises(DeadlineExceeded), admission.enter(time.monotonic() - 1):
            pass
    # Its turn came at once, but after the deadline: the turn goes to the next.
    with pytest.raises(DeadlineExceeded), admission.enter(time.monotonic() - 1):
        pass
    assert admission.drain(0)


def test_giving_up_frees_the_place():
    admission = Admission(limit=1, queue=1)
    running, waiting = admission.enter(), admission.enter()
    waiting.leave()
    waiting.leave()
    assert refused(waiting.__enter__) == "CANCELLED"
    third = admission.enter()
    running.leave()  # it had its turn and never began: the turn goes on
    with third:
        third.leave()  # too late to give up
        assert refused(lambda: [admission.enter() for _ in range(2)]) == "RESOURCE_EXHAUSTED"


def test_an_error_of_the_work_frees_the_place():
    admission = Admission(limit=1, queue=0)
    with pytest.raises(ZeroDivisionError), admission.enter():
        raise ZeroDivisionError
    assert admission.drain(0)


def test_draining_ends_what_is_there_and_refuses_the_rest():
    admission = Admission(limit=1, queue=1)
    running, waiting = admission.enter(), admission.enter()
    assert not admission.drain(0.01)
    assert refused(admission.check) == "UNAVAILABLE"
    done = threading.Thread(
        target=lambda: [place.__enter__().__exit__(None, None, None) for place in (running, waiting)]
    )
    done.start()
    assert admission.drain(10)
    done.join()
    with admission.enter():  # had passed `check` before
        late = admission.enter()
        admission.close()
        admission.close()
        assert refused(late.__enter__) == "UNAVAILABLE"
        with pytest.raises(Unavailable):
            admission.enter()


@pytest.mark.parametrize("settings", [{"limit": 0}, {"limit": -1}, {"queue": -1}])
def test_rejected_settings(settings):
    with pytest.raises(ServingError, match="Received: (limit|queue)="):
        Admission(**settings)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 3), st.integers(0, 3), st.lists(st.tuples(st.sampled_from("elwd"), st.integers(0, 7)), max_size=40)
)
def test_places_are_never_lost(limit, queue, steps):
    """Against a model: the list of places in order, of which the first `limit` have their turn."""
    admission, places = Admission(limit, queue), []
    for step, which in steps:
        if step == "e":
            if len(places) < limit + queue:
                places.append(admission.enter())
            else:
                assert refused(admission.enter) == "RESOURCE_EXHAUSTED"
        elif places:
            position = which % (min(len(places), limit) if step in "wd" else len(places))
            place = places.pop(position)
            if step == "l":
                place.leave()
            else:
                with place:  # does not block: it has its turn
                    pass
    assert admission._running == min(len(places), limit)
    assert len(admission._waiting) == max(len(places) - limit, 0)
    for place in places:
        with place:
            pass
    assert admission.drain(0)
