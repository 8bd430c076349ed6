"""Settings shared by all tests."""

import signal

import pytest
import torch

torch.set_num_threads(1)  # two cores: thread pools of several processes fight
# Who starts the tests in the background has SIGINT ignored, who starts them by nohup SIGHUP, and so would have every
# process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever the test before left: an example trains with as many as the machine has."""
    torch.set_num_threads(1)
