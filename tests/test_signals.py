"""Signals that stop a program, in processes that receive them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from stages import PATIENCE

from ngi_gevent import signals

#: The beginning of each program.
PROGRAM = """\
import hashlib, os, signal, time
import gevent.monkey
from ngi_gevent import signals

def say(text):
    os.write(1, text.encode() + b"\\n")

stop = signals.catch_stop({numbers})
"""

#: A native thread that reports when the flag is set, for programs whose greenlets no longer run.
IN_A_THREAD = """\
gevent.monkey.get_original("_thread", "start_new_thread")(lambda: say(f"caught: {stop.wait()}"), ())
"""


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts a program which calls ``catch_stop``."""
    processes = []

    def start(code: str, *numbers: str, before: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", before + PROGRAM.format(numbers=", ".join(numbers)) + code]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the signal also ends the children
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


BUSY = {
    "computes": "while True: pass",
    "sleeps": "time.sleep(1000)",
    "is in C": "hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)",  # this code never checks for signals
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("handler", BUSY)
def test_the_second_signal_ends_a_process_whose_handler_never_yields(started, handler, number):
    process = started(f"{IN_A_THREAD}say('busy')\n{BUSY[handler]}")
    assert said(process) == "busy"
    process.send_signal(number)
    assert said(process) == "caught: True"
    process.send_signal(number)
    assert process.wait(PATIENCE) == 128 + number


@pytest.mark.parametrize("patch", ["never", "before", "after"])
def test_the_first_signal_ends_a_wait_for_the_flag(started, patch):
    monkey = "import gevent.monkey\ngevent.monkey.patch_all()\n"
    process = started(
        (monkey if patch == "after" else "")
        + "say('waiting')\nassert stop.wait()\nassert stop.is_set()\nsay('over')\n",
        before=monkey if patch == "before" else "",
    )
    assert said(process) == "waiting"
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "over\n", "")


def test_a_signal_that_was_blocked_before_catch_stop_counts(started):
    """Process 1 needs this, since the kernel sends it no signals that still have their default effect."""
    before = "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\nos.kill(os.getpid(), 15)\n"
    process = started("say(f'caught: {stop.wait()}')", before=before)
    assert said(process) == "caught: True"
    assert process.wait(PATIENCE) == 0


def test_other_signals_do_not_count(started):
    process = started(
        "signal.signal(signal.SIGUSR2, lambda *_: say('handler'))\nsay('waiting')\nsay(f'caught: {stop.wait()}')",
        "signal.SIGUSR1",
    )
    assert said(process) == "waiting"
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGUSR1)  # this also wakes a wait that began after SIGUSR2
    assert {said(process), said(process)} == {"handler", "caught: True"}
    assert process.wait(PATIENCE) == 0


ASYNCIO = """\
import asyncio
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, say, "asyncio's")
    {}
asyncio.run(main())
"""


def test_signals_count_after_an_asyncio_loop(started):
    process = started(ASYNCIO.format("") + f"{IN_A_THREAD}say('busy')\n{BUSY['computes']}")
    assert said(process) == "busy"
    process.terminate()
    assert said(process) == "caught: True"
    process.terminate()
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_signals_count_during_an_asyncio_loop_that_handles_other_signals(started):
    process = started(
        ASYNCIO.format(
            "say('waiting')\n"
            "    while not stop.is_set(): await asyncio.sleep(0.01)\n"
            "    say('caught')\n"
            "    await asyncio.sleep(60)"
        )
    )
    assert said(process) == "waiting"
    process.terminate()
    assert said(process) == "caught"
    process.send_signal(signal.SIGUSR1)
    assert said(process) == "asyncio's"
    process.terminate()
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_a_forked_child_does_not_share_its_parents_signals(started):
    process = started(
        "child = os.fork()\n"
        "if not child:\n"
        "    say('child')\n"
        "    time.sleep(1000)\n"
        "say(str(child))\n"
        "status = os.waitpid(child, 0)[1]\n"
        "say(f'ended by {os.WTERMSIG(status)}, caught: {stop.wait(0.1)}')\n"
        "say(f'caught: {stop.wait()}')",
    )
    lines = {said(process), said(process)}
    (child,) = lines - {"child"}
    os.kill(int(child), signal.SIGTERM)
    assert said(process) == "ended by 15, caught: False"
    process.terminate()
    assert said(process) == "caught: True"
    assert process.wait(PATIENCE) == 0


def test_a_forked_child_can_call_catch_stop_again(started):
    process = started(
        "if not os.fork():\n"
        "    mine = signals.catch_stop()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    say(f'{mine.wait(10)}, {stop.is_set()}')\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    assert said(process) == "True, False"
    assert process.wait(PATIENCE) == 0


def state() -> tuple[object, ...]:
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
    return sorted(os.listdir("/proc/self/fd")), signal.set_wakeup_fd(-1), [signal.getsignal(n) for n in numbers]


@pytest.mark.parametrize(
    ("numbers", "kind", "text"),
    [
        ([signal.SIGUSR1, signal.SIGKILL], OSError, "Invalid argument"),
        ([signal.SIGUSR1, 1000], ValueError, "signal number out of range"),
        ([signal.SIGUSR1, "TERM"], TypeError, "'str' object"),
    ],
)
def test_a_signal_that_cannot_be_caught_is_refused_and_changes_nothing(numbers, kind, text):
    before = state()
    with pytest.raises(kind, match=text):
        signals.catch_stop(*numbers)
    assert state() == before


def test_only_one_part_of_a_program_can_use_set_wakeup_fd():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    try:
        with pytest.raises(RuntimeError, match="set_wakeup_fd is in use"):
            signals.catch_stop()
        assert signal.set_wakeup_fd(-1) == writer
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


def test_a_thread_that_is_not_the_main_one_is_refused():
    before = state()
    raised = []

    def call() -> None:
        with pytest.raises(ValueError, match="main thread") as caught:
            signals.catch_stop()
        raised.append(caught.value)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert len(raised) == 1
    assert state() == before


def test_signals_keep_their_effect_if_no_thread_can_start():
    before = state()
    size = threading.stack_size(1 << 46)  # more memory than there is
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            signals.catch_stop()
    finally:
        threading.stack_size(size)
    assert state() == before
