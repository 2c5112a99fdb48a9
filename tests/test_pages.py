"""The reader of pages finds each difference between the output of a command and the output on the page."""

from __future__ import annotations

import os

import pages
import pytest

SERVER = """\
```{code-block} python
:caption: server.py

import time
try:
    print("ready")
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
```

```{code-block} console
:class: running

$ python server.py
ready
```

```console
^C
interrupted
```
"""

STUBBORN = """\
```{code-block} console
:class: running

$ trap 'echo no' INT; echo ready; while true; do sleep 0.1; done
ready
```

```{code-block} console
:class: first running

^C
no
```
"""

CLIENT = """
```{code-block} console
:class: running

$ echo connected; sleep 60
connected
```

```{code-block} console
:class: first

^C
interrupted
```
"""


#: A command that keeps running, with code that runs after its first line. The next command waits until that code has
#: written to ``reached``.
LEFT_RUNNING = """\
```{code-block} console
:class: running

$ echo ready; %s
ready
```

```console
$ cat reached > /dev/null
```
"""

#: Output of that command that a page shows later.
LATER = """
```{code-block} console
:class: %s

tired
```
"""


@pytest.fixture
def follow(tmp_path):
    def follow(text):
        os.mkfifo(tmp_path / "reached")
        page = tmp_path / "page.md"
        page.write_text(text)
        with pages.Reader(tmp_path) as reader:
            reader.follow(page)

    return follow


@pytest.mark.parametrize(
    "text",
    [
        SERVER,
        SERVER.partition("```console")[0] + CLIENT,
        "```console\n$ echo a; echo b; echo c d e\n...\nc ... e\n```",
        STUBBORN,
        "```console\n$ echo a \\\n  b\na b\n```",
        "```console\n$ echo 1 passed in 7.77s\n1 passed in 0.01s\n```",
        "```{code-block} console\n:class: failing\n\n$ false\n```",
        "```{code-block} ini\n:caption: some.ini\n\n[a]\n```\n\n```console\n$ cat some.ini\n[a]\n```",
        LEFT_RUNNING % "echo > reached; sleep 60",
        LEFT_RUNNING % "echo tired; echo > reached; sleep 60" + LATER % "running",
        LEFT_RUNNING % "echo tired; echo > reached" + LATER % "ended",
        LEFT_RUNNING % "echo tired; echo > reached; exit 3" + LATER % "failing",
        "```{code-block} python\n:caption: size.py\n\nprint(8192 == 8 * 1024)\n```\n\n"
        "```console\n$ python size.py\nTrue\n```",
        "```console\n$ mkdir a\n$ cd a\n$ touch b\n$ ls ../a\nb\n```",
    ],
)
def test_a_correct_page_passes(follow, text):
    follow(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        SERVER.replace('print("ready")', 'print("steady")'),
        SERVER.replace('print("interrupted")', 'print("ended")'),
        SERVER.partition("```console")[0] + CLIENT.replace("first", "last"),
        STUBBORN.replace("first running", "first"),
        "```console\n$ echo a\n```",
        "```console\n$ echo a; echo b\na\n```",
        "```console\n$ echo a\na\nb\n```",
        "```console\n$ false\n```",
        "```{code-block} console\n:class: failing\n\n$ true\n```",
        LEFT_RUNNING % "echo tired; echo > reached; sleep 60",
        LEFT_RUNNING % "echo tired; echo > reached; sleep 60" + LATER % "ended",
        LEFT_RUNNING % "echo tired; echo more; echo > reached; sleep 60" + LATER % "running",
        LEFT_RUNNING % "echo tired; echo > reached; exit 3" + LATER % "ended",
        LEFT_RUNNING % "echo tired; echo > reached" + LATER % "failing",
    ],
)
def test_an_incorrect_page_fails(follow, text, monkeypatch):
    monkeypatch.setattr(pages, "PATIENCE", 3)
    with pytest.raises(AssertionError):
        follow(text)


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_no_longer_runs_is_found(tmp_path, code):
    with pages.Reader(tmp_path) as reader:
        reader.type(f"$ echo ready; exit {code}\nready\n", ["running"])
        (command,) = reader.running
        assert command.process.wait(30) == code
        with pytest.raises(AssertionError, match=f"ended with {code}"):
            command.runs_in_silence()


@pytest.mark.parametrize(
    ("text", "strange"),
    [
        ("('127.0.0.1', 8000) 127.0.0.1:8099 --port 8001 localhost 0 [::1]:8000", []),
        ("('127.0.0.1', 8192)", ["8192"]),
        (
            "nc 127.0.0.1 9000; nc -N localhost 8443; 0.0.0.0:80; [::1]:8100; ('::1', 1)",
            ["9000", "8443", "80", "8100", "1"],
        ),
        ("--port 7777 --port=99", ["7777", "99"]),
        ("8192 bytes, 127.0.0.1 and 12345", []),
    ],
)
def test_ports_that_are_not_replaced_are_found(text, strange):
    assert pages.strange_ports(text) == strange


def test_the_parts_of_a_pages_module_are_joined(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na = 1\n```\n\n```{code-block} python\n:caption: b.py\n\nb\n```\n\n```python\nc = a\n```\n"
    )
    assert pages.module(page) == "a = 1\n\nc = a\n"
