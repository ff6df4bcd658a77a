"""Worker processes: how they end."""

import signal

import pytest

from nnunet_caml.workers import pool


@pytest.mark.parametrize("ignored", [True, False])
def test_ctrl_c_is_to_workers_what_it_is_to_their_parent(ignored: bool):
    """A command that a script has put into the background ignores it, and its workers must not leave it alone."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        with pool(1) as workers:
            assert workers.submit(ignores_ctrl_c).result() == ignored
    finally:
        signal.signal(signal.SIGINT, before)


def ignores_ctrl_c() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN
