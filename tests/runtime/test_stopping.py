"""Signals become requests, and a second one is obeyed at once."""

import os
import signal
import threading
from contextlib import suppress

import pytest

from pipeline.errors import Terminated
from pipeline.runtime.stopping import catching_stop_signals


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, Terminated),
        (signal.SIGHUP, Terminated),
    ],
)
def test_a_signal_waits_until_it_is_obeyed(number, error):
    with catching_stop_signals() as request:
        request.raise_if_stopped()
        os.kill(os.getpid(), number)
        assert request.is_there
        with pytest.raises(error):
            request.raise_if_stopped()


def test_a_second_signal_stops_at_once():
    with catching_stop_signals() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.is_there
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_heard_signals_before_hears_them_after():
    before = signal.getsignal(signal.SIGTERM)
    with catching_stop_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_the_process_ignores_stays_ignored(number):
    """`nohup` ignores SIGHUP, and a shell ignores SIGINT for what runs in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with catching_stop_signals() as request:
            os.kill(os.getpid(), number)
            assert not request.is_there
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_outside_of_the_main_thread_nothing_is_heard():
    found = []

    def hear():
        with catching_stop_signals() as request:
            found.append(request.is_there)

    thread = threading.Thread(target=hear)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_request_to_end_passes_handlers_of_errors():
    """A signal may come at any line, also within a call whose errors are handled."""

    def handled() -> None:
        with suppress(Exception):
            raise Terminated("terminated")

    with pytest.raises(Terminated):
        handled()
