"""The timeline of a simulation, as a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from ngi_gevent.testing.simulation.timeline import MOST_SHOWN, render_timeline
from ngi_gevent.testing.simulation.trace import Event

#: Elements without an end tag.
VOID = {"meta", "br", "line", "path", "circle"}


class Page(HTMLParser):
    """A parsed page: each element, and the text of each cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "each element ends"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag, **attributes):
        """Return the attributes of all elements *tag* that have these *attributes*.  None stands for a missing one."""
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]


def dots(page):
    return [(float(one["cx"]), float(one["cy"])) for one in page.all("circle")]


def arrows(page):
    """Return the start and the end of each arrow."""
    ways = [re.findall(r"-?[\d.]+", one["d"]) for one in page.all("path") if "marker-end" in one]
    return [((float(way[0]), float(way[1])), (float(way[-2]), float(way[-1]))) for way in ways]


EVENTS = [
    Event(0.0, "start", "server", ""),
    Event(0.001, "connect", "client", "client:40001 -> server:8000"),
    Event(0.002, "send", "client", "client:40001 -> server:8000 12 bytes", 1),
    Event(0.002, "send", "client", "client:40001 -> server:8000 7 bytes", 2),
    Event(0.003, "receive", "server", "client:40001 -> server:8000 7 bytes", 2),
    Event(0.004, "receive", "server", "client:40001 -> server:8000 12 bytes", 1),
    Event(0.005, "send", "server", "server:1 -> server:2 3 bytes", 3),
    Event(0.006, "receive", "server", "server:1 -> server:2 3 bytes", 3),
    Event(3600.0, "crash", "server", "its process was killed"),
    Event(3601.5, "start", "server", ""),
    Event(3602.0, "note", "", "the test itself"),
]


def test_every_event_is_a_dot_in_the_lane_of_its_host_and_a_row_of_the_table():
    page = Page(render_timeline(EVENTS, 7, "a test"))
    assert len(dots(page)) == len(page.all("tr")) - 1 == len(EVENTS)
    places: dict[str, set[float]] = {}
    for event, (x, _) in zip(EVENTS, dots(page), strict=True):
        places.setdefault(event.host, set()).add(x)
    assert list(map(len, places.values())) == [1, 1, 1]
    assert max(places[""]) < max(places["server"]) < max(places["client"])
    heights = [y for _, y in dots(page)]
    assert heights == sorted(set(heights))
    for event in EVENTS:
        assert {event.text, event.kind, f"{event.time:.6f}"} - {""} <= set(page.texts)
    assert {"Seed 7, 11 events until 3,602.000000 virtual seconds.", "(test)", "server", "client"} <= set(page.texts)


def test_each_arrow_leads_from_a_send_to_its_arrival():
    page = Page(render_timeline(EVENTS, 7, "a test"))
    at = dots(page)
    assert arrows(page) == [(at[3], at[4]), (at[2], at[5]), (at[6], at[7])]
    assert page.all("path", **{"class": "cross"}) == []


def test_data_that_arrives_twice_has_two_arrows():
    text = "client:1 -> server:2 5 bytes"
    events = [Event(0.0, "datagram", "client", text, 1), *[Event(0.1, "receive", "server", text, 1)] * 2]
    page = Page(render_timeline(events, 7, "a test"))
    at = dots(page)
    assert arrows(page) == [(at[0], at[1]), (at[0], at[2])]


@pytest.mark.parametrize("kind", ["lost", "hold"])
def test_data_that_does_not_arrive_ends_in_a_cross_on_its_way(kind):
    text = "client:1 -> server:2 5 bytes"
    events = [
        Event(0.0, "start", "client", ""),
        Event(0.0, "start", "server", ""),
        Event(0.0, "datagram", "client", text, 1),
        Event(0.1, kind, "server", text, 1),
    ]
    page = Page(render_timeline(events, 7, "a test"))
    assert arrows(page) == []
    [stub] = page.all("path", **{"class": "lost"})
    assert len(page.all("path", **{"class": "cross"})) == 1
    x1, y1, x2, y2 = map(float, re.findall(r"[\d.]+", stub["d"]))
    assert (x1, y1) == dots(page)[2]
    assert dots(page)[0][0] < x2 < dots(page)[1][0]
    assert y2 > y1


def test_silences_are_shortened_and_labelled():
    page = Page(render_timeline(EVENTS, 7, "a test"))
    assert [text for text in page.texts if "of silence" in text] == ["3,599.99 s of silence", "1.5 s of silence"]
    assert max(y for _, y in dots(page)) < 600
    assert len(page.all("line", **{"class": "break"})) == 2
    assert len(page.all("line", **{"class": "down"})) == 1  # the line while the host is down


def test_all_text_is_escaped():
    evil = "<script>alert(1)</script>&\"'\0\x1b\u202e\udcff\n"
    page = render_timeline([Event(0.0, evil, evil, evil), Event(0.0, "log", "a -> <b>:1 c", evil)], evil, evil)
    assert page.count("<script>") == 1
    assert "<b>:1" not in page
    assert not [char for char in page if not char.isprintable() and char != "\n"]
    page.encode()
    text = r"<script>alert(1)</script>&" + "\"'" + r"\x00\x1b\u202e\udcff\n"
    assert Page(page).texts.count(text) == 7  # the title, the heading, the lane, and four cells of the table


def test_the_page_is_one_file_for_both_colour_schemes_and_for_phones():
    page = render_timeline(EVENTS, "7:s12", "a test")
    assert "@media (prefers-color-scheme: dark)" in page
    assert "color-scheme: light dark" in page
    assert "width=device-width" in page
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    assert (
        set(re.findall(r"(--\w+):", light))
        == set(re.findall(r"(--\w+):", dark))
        == set(re.findall(r"var\((--\w+)\)", page))
    )
    assert not re.search(r"src=|href=|url\((?!#)|@import|https?:", page)
    assert len(page) < 15_000


def test_only_the_last_of_very_many_events_are_shown():
    events = [Event(n * 1e-3, "timer", "host", f"number {n}") for n in range(MOST_SHOWN + 1234)]
    page = Page(render_timeline(events, 7, "a test"))
    assert "The first 1,234 of 3,234 events are left out." in page.texts
    assert len(dots(page)) == MOST_SHOWN
    assert "number 1233" not in page.texts
    assert "number 1234" in page.texts


@pytest.mark.parametrize(
    ("seed", "text"),
    [(7, "Seed 7, "), ("7:", "Seed 7 without draws, "), ("7:s1,n20", "Seed 7 with only the draws s1, n20, ")],
)
def test_the_draws_are_named(seed, text):
    assert f"<p>{text}" in render_timeline(EVENTS, seed, "a test")


def test_a_reset_has_an_arrow_unless_its_beginning_is_left_out():
    text = "server:1 -> client:2"
    events = [
        Event(0.0, "receive", "client", text, 1),
        Event(0.1, "reset", "server", text, 2),
        Event(0.2, "reset", "client", f"{text} arrives", 2),
    ]
    page = Page(render_timeline(events, 7, "a test"))
    at = dots(page)
    assert arrows(page) == [(at[1], at[2])]


def test_a_timeline_without_events_is_still_a_page():
    assert "Seed 0, no events." in Page(render_timeline([], 0, "a test")).texts
