"""The check for the phrases that the style page bans."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

CHECK = Path(__file__).parent.parent / ".ci" / "vocabulary"


@pytest.fixture(scope="module")
def vocabulary():
    loader = importlib.machinery.SourceFileLoader("vocabulary", str(CHECK))
    spec = importlib.util.spec_from_loader("vocabulary", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


BAD = {
    "name the noun": [
        "It serves whoever connects.",
        "Nobody waits for it.",
        "Everybody can connect.",
        "Somebody must read it.",
        "Strangers connect.",
        "There are limits. Who exceeds them is reset.",
        "This is for who sends too much.",
    ],
    "a what clause is not a noun": [
        "It closes. What a handler raises is logged.",
        "It is called for what arrives.",
    ],
    "programs are not people": [
        "The log tells more.",
        "The log is telling.",
        "It does not tell the peer.",
        "The peer knows the port.",
        "The peer knew the port.",
        "A signal is heard.",
        "The peer wants data.",
        "It is patient.",
        "The peer is told.",
        "Tests that know nothing of it pass.",
        "A thread looks at the list.",
        "It has patience.",
        "The server hears of it.",
    ],
    "negate the verb": [
        "The answer is no bytes.",
        "The peer takes no more.",
        "A generator function is none.",
        "They were no errors.",
    ],
    "name the owner": [
        "It has a greenlet of its own.",
        "The address is that of the proxy.",
        "It is a class of ours.",
        "The data is theirs.",
        "It is a lock of mine.",
        "Use one's own socket.",
        "The greenlet is one of the listener's.",
    ],
    "the verb is enough": [
        "The option has nc wait.",
        "The peer has it closed.",
        "The answer is to be sent.",
    ],
    "if, otherwise": [
        "It uses IPv6 where there is a route.",
        "It must return, or it would block.",
        "Read it, or else the peer waits.",
    ],
    "a sentence has a verb": [
        "Close it; whether it is open does not matter.",
        "Meanwhile, it is paused.",
        "# so that it ends",
        "# which is closed",
    ],
    "the field's term": [
        "It waits for ever.",
        "It is a whole number.",
        "It can not wait.",
        "It shall wait.",
        "There is a limit of time.",
        "The connection is broken off.",
        "It is let go of.",
        "A handshake is under way.",
        "There is a line in the log.",
        "A connect is refused.",
        "It is a listener for datagrams.",
        "The server stops in order.",
        "It has the name of a Unix socket.",
    ],
}
GOOD = [
    "Who closed it? Who calls, and for what?",
    "This page says what is wrong and who calls it.",
    "There is no timeout by default. It is no longer open, and no more than 3 are waiting.",
    "The default is no limit.",
    "To make the client wait, tell nc to wait.",
    "It looks up a host name.",
    "You know the address, and have to wait. You have it open.",
    "Each connection has its own greenlet. Calls take effect in order, in order to be safe.",
    "The port is where the proxy listens.",
    "Close it, or wait. It would block otherwise.",
    "A connection attempt fails; call `connect` again.",
    "    connection = implementation.connect(a, connector)",
]


@pytest.mark.parametrize(("rule", "sentence"), [(rule, sentence) for rule in BAD for sentence in BAD[rule]])
def test_each_banned_phrase_is_found(vocabulary, rule, sentence):
    (found,) = vocabulary.findings("page.md", f"# A page\n\n{sentence}\n")
    assert found.startswith("page.md:3: ")
    assert found.endswith(f": {rule}")


def test_each_rule_has_sentences(vocabulary):
    assert list(BAD) == list(vocabulary.BANNED)


@pytest.mark.parametrize("sentence", GOOD)
def test_good_sentences_pass(vocabulary, sentence):
    assert vocabulary.findings("page.md", f"# A page\n\n{sentence}\n") == []


def test_a_phrase_is_found_across_lines(vocabulary):
    code = "#: It has a lock of its\n    #: own.\n\n\ndef f():\n    '''It is called for\n    what arrives.'''\n"
    assert [found.split(": ")[0] for found in vocabulary.findings("a.py", code)] == ["a.py:1", "a.py:6"]
    assert len(vocabulary.findings("page.md", "> It waits for\n> ever.\n")) == 1


def test_only_the_prose_of_a_module_is_checked(vocabulary):
    words = ["# told", "'is told'", "'''a\ntold'''", "f'{x} told'", "def test_it_is_told(): pass"]
    for word in words:
        assert len(vocabulary.findings("a.py", f"told = {word}\n" if "def" not in word else word + "\n")) == 1, word
    assert vocabulary.findings("a.py", "def told(whoever): return whoever['told']\n") == []


def test_the_style_page_can_quote_bad_style(vocabulary):
    assert vocabulary.findings("docs/style.md", "Not *told*.\n") == []
    assert len(vocabulary.findings("docs/style.md", "Not told.\n")) == 1


def test_the_exit_status_is_1_if_a_phrase_is_found(vocabulary, capsys):
    assert vocabulary.main(["docs/style.md"]) == 0
    page = vocabulary.ROOT / "tests" / "words.toml"
    try:
        page.write_text("It is told.\n")
        assert vocabulary.main([str(page)]) == 1
    finally:
        page.unlink()
    assert "tests/words.toml:1: 'told': programs are not people" in capsys.readouterr().out
