"""Tests signals that stop a run, and the lock that admits one run per directory."""

import os
import signal
import subprocess
import sys

import pytest

from lowcost.train.interruption import Interruption
from lowcost.train.lock import locked

# A filter of the kernel (seccomp) that answers flock with ENOLCK, as file systems without locks do.
WITHOUT_FLOCK = """
import ctypes, errno, platform, struct, sys
from pathlib import Path
from lowcost.train.lock import locked
number = {"x86_64": 73, "aarch64": 32}[platform.machine()]
steps = (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | errno.ENOLCK), (0x06, 0, 0, 0x7FFF0000)
instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
argument = struct.pack("HxxxxxxP", 4, ctypes.addressof(instructions))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 == libc.prctl(22, 2, argument, 0, 0)
with locked(Path(sys.argv[1])):
    print("inside")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_each_signal_is_a_stop_request(name):
    number = signal.Signals[name]
    before = signal.getsignal(number)

    def handler(*_):
        """Does nothing, so that a failure does not end the tests."""

    signal.signal(number, handler)
    try:
        with Interruption() as interruption:
            assert not interruption.stop_requested()
            os.kill(os.getpid(), number)
            assert interruption.stop_requested()
            assert interruption.signal == number
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_an_ignored_signal_of_the_terminal_stays_ignored(name):
    """`nohup`, and scripts with programs in the background, rely on this."""
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), number)
            assert not interruption.stop_requested()
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_repeated_hangup_still_saves():
    """The kernel and the shell both send one when a terminal closes; only Ctrl-C and SIGTERM leave without saving."""
    code = "import os, signal; from lowcost.train.interruption import Interruption\n"
    code += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # the tests may run under nohup
    code += "with Interruption() as stop:\n [os.kill(os.getpid(), signal.SIGHUP) for _ in range(2)]\n"
    code += " print(stop.stop_requested(), stop.signal, flush=True)\n"
    code += " os.kill(os.getpid(), signal.SIGTERM)\n print('not here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (143, ["True", "1"])


@pytest.mark.parametrize("kind", ["link", "hard link", "file", "pipe"])
def test_a_lock_destroys_nothing(tmp_path, kind):
    precious, lock = tmp_path / "precious", tmp_path / "lock"
    precious.write_text("precious\n")
    if kind == "link":
        lock.symlink_to(precious)
    elif kind == "hard link":
        lock.hardlink_to(precious)
    elif kind == "file":
        lock.write_text("precious\n")
    else:
        os.mkfifo(lock)
    with pytest.raises(OSError, match=r"lock must be a lock file of this program, .* choose another"), locked(tmp_path):
        pass
    assert precious.read_text() == "precious\n"
    assert kind == "pipe" or lock.read_text() == "precious\n"


def test_the_lock_of_a_run_that_is_gone_is_taken_over(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp belongs to Linux")
def test_a_file_system_without_locks_is_warned_of(tmp_path):
    run = [sys.executable, "-c", WITHOUT_FLOCK, str(tmp_path / "run")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "inside\n"), done.stderr
    assert done.stderr.startswith(f"warning: {tmp_path / 'run'} cannot be locked")
    assert done.stderr.count("\n") == 1
