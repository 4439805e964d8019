"""story.py: the page of the story has all of it, and its links lead somewhere."""

import re
from html.parser import HTMLParser

import page
import pytest
import story
from conftest import ROOT, main

import gpt

SOURCE = (ROOT / "gpt.py").read_text(encoding="utf-8")
PAGE = story.story_html(SOURCE)


class Reader(HTMLParser):
    """What a page shows, in its order; its elements, and where links lead."""

    def __init__(self):
        super().__init__()
        self.text, self.ids, self.links, self.open, self.hidden = [], [], [], [], 0

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [value for name, value in attributes.items() if name == "id"]
        self.links += [value for name, value in attributes.items() if name == "href"]
        self.open += [tag] * (tag != "meta")
        self.hidden += tag in ("style", "script", "button", "nav", "title")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.hidden -= tag in ("style", "script", "button", "nav", "title")

    def handle_data(self, data):
        self.text += [data] * (not self.hidden)


@pytest.fixture(scope="module")
def read():
    reader = Reader()
    reader.feed(PAGE)
    assert reader.open == []
    return reader


def test_every_line_of_the_story_is_there_once_in_its_order(read):
    """Up to white space, # signs and the quotes of the docstring."""
    shown = "".join(read.text).split()
    told = SOURCE.partition("# %% Appendix")[0].replace('"""', "", 2)
    told = re.sub(r"(?m)^# %% |^# ?", "", told).split()
    assert shown == told


def test_links_lead_somewhere_and_nothing_is_there_twice(read):
    assert len(set(read.ids)) == len(read.ids) and {link[1:] for link in read.links} <= set(read.ids)
    assert [id for id in read.ids if id.startswith("chapter-")] == [f"chapter-{i}" for i in range(11)]
    assert {"GPT", "attention", "get_batch", "run"} <= set(read.ids) and "#split_heads" in read.links


def test_sessions_drawings_and_shapes_are_set_apart():
    assert '<b>&gt;&gt;&gt; k @ query</b>\ntensor([4., 0., 0.])</pre>' in PAGE
    assert PAGE.count('<div class="session">') > 25
    assert re.search(r"<pre>    a query     what am I looking for\?\n", PAGE)
    assert '<span class="shape"># (..., T, T) @ (..., T, hs) -&gt; (..., T, hs)</span>' in PAGE
    assert '<a href="#split_heads">split_heads</a>' in PAGE and '<span class="k">return</span>' in PAGE


def test_the_command_writes_it(in_tmp):
    program = lambda words: gpt.run_cleanly("page.py", page.command, words)
    assert main("--story", program=program) == (0, "data/story.html: open it in a browser\n", "")
    assert (in_tmp / "data/story.html").read_text(encoding="utf-8") == PAGE
    assert main("cats", "--story", program=program)[0] == 2
