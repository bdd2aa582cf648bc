"""Real signals, sent to this process."""

import signal

import pytest

from bigtrain.training.signals import STOP_SIGNALS, StopRequest


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in STOP_SIGNALS]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_becomes_a_request(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received == number.name


def test_the_first_signal_counts() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.received == "SIGUSR1"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_request_interrupts_at_once(first: signal.Signals) -> None:
    with StopRequest():
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_given_back() -> None:
    before = handlers()
    with StopRequest():
        assert handlers() != before
    assert handlers() == before


def test_handlers_are_given_back_after_an_error() -> None:
    before = handlers()
    with pytest.raises(ValueError, match="in between"), StopRequest():
        raise ValueError("in between")
    assert handlers() == before
