"""Following pages: what a page shows and the command does not say is found."""

from __future__ import annotations

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


@pytest.fixture
def follow(tmp_path):
    def follow(text):
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
    ],
)
def test_what_is_so_is_followed(follow, text):
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
    ],
)
def test_what_is_not_so_is_found(follow, text, monkeypatch):
    monkeypatch.setattr(pages, "PATIENCE", 3)
    with pytest.raises(AssertionError):
        follow(text)


def test_the_parts_of_a_pages_module_are_put_together(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na = 1\n```\n\n```{code-block} python\n:caption: b.py\n\nb\n```\n\n```python\nc = a\n```\n"
    )
    assert pages.module(page) == "a = 1\n\nc = a\n"
