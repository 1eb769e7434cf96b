"""Signals become wishes, and a second one is obeyed at once."""

import os
import signal
import threading

import pytest

from pipeline.errors import Terminated
from pipeline.runtime.stopping import hearing_stop_wishes


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_waits_until_it_is_obeyed(number, error):
    with hearing_stop_wishes() as wish:
        wish.obey()
        os.kill(os.getpid(), number)
        assert wish.is_there
        with pytest.raises(error):
            wish.obey()


def test_a_second_signal_stops_at_once():
    with hearing_stop_wishes() as wish:
        os.kill(os.getpid(), signal.SIGTERM)
        assert wish.is_there
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_heard_signals_before_hears_them_after():
    before = signal.getsignal(signal.SIGTERM)
    with hearing_stop_wishes():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_of_the_main_thread_nothing_is_heard():
    found = []

    def hear():
        with hearing_stop_wishes() as wish:
            found.append(wish.is_there)

    thread = threading.Thread(target=hear)
    thread.start()
    thread.join()
    assert found == [False]
