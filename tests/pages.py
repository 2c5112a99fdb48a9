"""The pages of the documentation, followed as a reader would: their files are written, and their commands are typed.

A page has code in three kinds of blocks.  Blocks of other kinds are not run.

``python``
    A part of the page's module.  All these blocks together, in order, are one file, whose tests pytest runs.
``{code-block}`` with a ``:caption:``
    A file of that name, in the directory in which the page's commands are typed.  A later file with the same name
    replaces it.
``console``
    Commands, each on a line after ``$``, and their output.  A backslash at the end of a line continues the command.  A
    line of ``...`` stands for any lines, and ``...`` in a line for any text.  The duration that pytest prints is not
    compared.  A command must succeed.  After a ``cd``, files and commands are in that directory.

``{code-block} console`` has these options, which can be combined:

* ``:class: running``: the command continues to run after it has printed the output, as in a separate terminal.
* ``:class: failing``: the commands must end with an exit status other than 0.
* ``:class: first``: the block refers to the running command that was started first, instead of last.  This can be
  the server of a client that still runs.

A line of ``^C`` interrupts the running command that was started last.  The lines after it are its output until it
ends.  A block that begins with output shows the next output of that command.  If the block has nothing else, the
command must then end.  The other running commands must still run at the end of the page, and must not have printed
anything that the page does not show.

On pages, ports from 8000 to 8099 stand for the reader's ports.  They are replaced with free ports here.  Pages must not
use other ports.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"

#: Seconds in which a command must print the output on the page.
PATIENCE = 40

_BLOCK = re.compile(r"^(?P<fence>```+)(?P<info>[^\n`]+)\n(?P<body>.*?)^(?P=fence)[ ]*$", re.DOTALL | re.MULTILINE)
_DIRECTIVE = re.compile(r"\{code-block\}\s*(\w+)")
_OPTION = re.compile(r":([\w-]+):[ ]*(.*)\n")
_TYPED = re.compile(r"^(\$ (?:.*\\\n)*.*|\^C)\n", re.MULTILINE)
_PORT = re.compile(r"\b80\d\d\b")

#: Text that must be a port: it comes after an option, or after an address of this machine.
_SURELY_PORT = re.compile(r"(?:--port[ =]|(?:\b127\.0\.0\.1|\b0\.0\.0\.0|\blocalhost|::1?\]?)(?:['\"], |[: ]))(\d+)\b")


@dataclass
class Block:
    """A block of code: its language, its text, and its options, such as ``caption``."""

    language: str
    text: str
    options: dict[str, str] = field(default_factory=dict)


def blocks(page: Path) -> list[Block]:
    """Return the blocks of *page*, in order."""
    return [_block(match["info"].strip(), match["body"]) for match in _BLOCK.finditer(page.read_text())]


def _block(info: str, body: str) -> Block:
    directive = _DIRECTIVE.fullmatch(info)
    if not directive:
        return Block(info, body)
    options = {}
    while option := _OPTION.match(body):
        options[option[1]] = option[2].strip()
        body = body[option.end() :]
    return Block(directive[1], body.removeprefix("\n"), options)


def module(page: Path) -> str:
    """Return the source of the page's module."""
    return "\n".join(block.text for block in blocks(page) if block.language == "python" and not block.options)


def strange_ports(text: str) -> list[str]:
    """Return the ports in *text* that are not replaced, and so would be used on this machine.  Port 0 is allowed."""
    return [port for port in _SURELY_PORT.findall(text) if port != "0" and not _PORT.fullmatch(port)]


class Reader:
    """Follows a page in a directory.  Leaving the context ends the commands that still run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[Command] = []
        self.ports: dict[str, str] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for command in self.running:
            command.kill()

    def follow(self, page: Path) -> None:
        """Write the page's files, type its commands, and check that running commands have no other output."""
        for block in blocks(page):
            if block.language == "console":
                self.type(block.text, block.options.get("class", "").split())
            elif "caption" in block.options:
                self.write(block.options["caption"], block.text)
        for command in self.running:
            command.runs_in_silence()

    def write(self, name: str, text: str) -> None:
        target = self.directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.with_free_ports(text))

    def type(self, text: str, kinds: list[str]) -> None:
        said, *typed = _TYPED.split(self.with_free_ports(text))
        which = 0 if "first" in kinds else -1
        if said and (typed or "running" in kinds):
            self.running[which].says(said)
        elif said:
            self.end(which, said, kinds)
        for entered, expected in zip(typed[::2], typed[1::2], strict=True):
            if entered == "^C":
                self.running[which].interrupt()
            elif entered.startswith("$ cd "):
                self.directory /= entered.removeprefix("$ cd ")
                continue
            else:
                self.running.append(Command(entered.removeprefix("$ "), self.directory))
            if "running" in kinds:
                self.running[which].says(expected)
            else:
                self.end(which, expected, kinds)

    def end(self, which: int, expected: str, kinds: list[str]) -> None:
        self.running[which].ends(expected, failing="failing" in kinds)
        del self.running[which]

    def with_free_ports(self, text: str) -> str:
        return _PORT.sub(lambda match: self.ports.setdefault(match[0], free_port()), text)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


class Command:
    """A typed command, and its output since the last check."""

    def __init__(self, line: str, directory: Path) -> None:
        self.line = line
        self.said = ""
        self.over = False
        self.changed = threading.Condition()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=directory,
            env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process.stdout
        with self.process.stdout:
            for line in self.process.stdout:
                with self.changed:
                    self.said += line.decode()
                    self.changed.notify_all()
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def says(self, expected: str) -> None:
        """Wait until the command has printed *expected*, and forget that output."""
        pattern = re.compile(as_pattern(expected))
        with self.changed:
            self.changed.wait_for(lambda: self.over or pattern.match(self.said), PATIENCE)
            found = pattern.match(self.said)
            assert found, self._difference(expected)
            self.said = self.said[found.end() :]

    def ends(self, expected: str, *, failing: bool = False) -> None:
        """Wait until the command has ended.  Its remaining output must be *expected*."""
        with self.changed:
            ended = self.changed.wait_for(lambda: self.over, PATIENCE)
        assert ended, f"still running: {self.line}\n{self.said}"
        assert re.fullmatch(as_pattern(expected), self.said), self._difference(expected)
        code = self.process.wait(PATIENCE)
        assert (code != 0) == failing, f"ended with {code}: {self.line}"

    def runs_in_silence(self) -> None:
        """Kill the command, which must still run, and must not have printed anything else."""
        code = self.process.poll()
        self.kill()  # after this, all of its output is known
        assert code is None, f"ended with {code}, which the page does not show: {self.line}\n{self.said}"
        assert not self.said, self._difference("")

    def _difference(self, expected: str) -> str:
        return f"{self.line}\n--- the page shows\n{expected}--- it said\n{self.said}"

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        if not self.over:
            with contextlib.suppress(ProcessLookupError):  # the process may just have ended
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.listener.join()


def as_pattern(expected: str) -> str:
    """Return a pattern for output that the page shows as *expected*."""
    pattern = ""
    for line in expected.splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            text = re.sub(r"\bin \d+\.\d+s\b", "in ...s", line)
            pattern += ".*".join(re.escape(part) for part in text.split("...")) + r"\s*\n"
    return pattern
