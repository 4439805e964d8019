"""story.py: the page of the story has all of it, its links lead somewhere, and what is copied from it runs."""

import ast
import re
from html.parser import HTMLParser

import page
import pytest
import story
from conftest import ROOT, main

import gpt

SOURCE = (ROOT / "gpt.py").read_text(encoding="utf-8")
STORY = SOURCE.partition("# %% Appendix")[0]
PAGE = story.story_html(SOURCE)


class Reader(HTMLParser):
    """What a page shows, in its order; its elements, and where links lead; code, and what is typed in sessions."""

    def __init__(self):
        super().__init__()
        self.text, self.ids, self.links, self.open, self.hidden = [], [], [], [], 0
        self.code, self.typed = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [value for name, value in attributes.items() if name == "id"]
        self.links += [value for name, value in attributes.items() if name == "href"]
        self.open += [(tag, attributes.get("class"))] * (tag not in ("meta", "wbr"))
        self.hidden += tag in ("style", "script", "button", "small", "title")
        self.code += [""] * (attributes.get("class") == "code")
        self.typed += [""] * (attributes.get("class") == "line typed")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag
        self.hidden -= tag in ("style", "script", "button", "small", "title")

    def handle_data(self, data):
        self.text += [data] * (not self.hidden)
        for lists, name in ((self.code, "code"), (self.typed, "line typed")):
            if name in [name for _, name in self.open]:
                lists[-1] += data


@pytest.fixture(scope="module")
def read():
    reader = Reader()
    reader.feed(PAGE)
    assert reader.open == []
    return reader


def test_every_line_of_the_story_is_there_once_in_its_order(read):
    """Up to white space, # signs, backticks and the quotes of the docstring."""
    shown = "".join(read.text).replace("`", "").split()
    told = STORY.replace('"""', "", 2).replace("`", "")
    told = re.sub(r"(?m)^# %% |^# ?", "", told).split()
    assert shown == told


def test_what_is_copied_is_the_source(read):
    """With its indentation and its lines. The button copies what follows the four characters of a prompt."""
    assert len(read.code) > 20 and all(code.strip("\n") in STORY for code in read.code)
    assert ast.dump(ast.parse("".join(read.code))) == ast.dump(ast.parse(STORY.split('"""', 2)[2]))
    assert "".join("# " + line for line in read.typed) == "".join(re.findall(r"(?m)^# >>> .*\n", STORY))
    ast.parse("".join(line[4:] for line in read.typed))


def test_links_lead_somewhere_and_nothing_is_there_twice(read):
    assert len(set(read.ids)) == len(read.ids) and {link[1:] for link in read.links} <= set(read.ids)
    assert [id for id in read.ids if id.startswith("chapter-")] == [f"chapter-{i}" for i in range(11)]
    assert {"GPT", "attention", "get_batch", "run", "DATA"} <= set(read.ids) and "#split_heads" in read.links


def test_the_docstrings_list_of_chapters_is_the_navigation():
    assert PAGE.count("<nav") == 1
    nav = re.search('<nav id="contents">(.*?)</nav>', PAGE, re.DOTALL)[1]
    assert {*re.findall('href="#([^"]*)"', nav)} == {f"chapter-{i}" for i in range(11)}
    assert '<dt>4</dt> <dd><a href="#chapter-4">Bigram, the first model</a></dd>' in nav
    assert ('<h2 id="chapter-4"><a href="#chapter-4">4. Bigram</a> <small><a href="#contents">contents</a></small></h2>'
            in PAGE)


def test_names_lead_to_their_definitions_in_code_prose_and_sessions():
    assert 'def</span> <b id="attention">attention</b>' in PAGE and '<b id="DATA">DATA</b> = ' in PAGE
    assert 'in front, <code><a href="#attention">attention</a></code> serves' in re.sub(r"\s+", " ", PAGE)
    assert '<code>with <a href="#eval_mode">eval_mode</a>(model):</code>' in PAGE
    assert '<span class="ask">&gt;&gt;&gt; </span><a href="#attention">attention</a>(<wbr>q, k, ' in PAGE
    assert '(<wbr><a href="#split_heads">split_heads</a>(' in PAGE


def test_sessions_lists_drawings_and_shapes_are_set_apart():
    assert '</span>k @ query\n</span><span class="answer">tensor([4., 0., 0.])\n</span></pre>' in PAGE
    assert '<span class="answer">tensor([[0, 1, 2],\n        [1, 2, 3],' in PAGE and PAGE.count('class="session"') > 25
    assert '<dt>a query</dt> <dd>what am I looking for?</dd>' in PAGE and '<dt>nh</dt> <dd>number of' in PAGE
    assert '<pre class="drawing">inputs      F i r s t         after F ' in PAGE
    assert '<span class="shape tail"># (B, T) <span class="minus">-&gt; (B</span>, T, C)</span>' in PAGE
    assert '<span class="k">return</span>' in PAGE


def test_code_stands_beside_the_paragraph_that_introduces_it_and_the_sessions_that_try_it():
    prose = r'<div class="prose">\n(.*?)</div>\n'
    code = r'<div class="code">(.*?)</pre></div>\n'
    rows = re.findall(f'(?s)<div class="row">(?:{prose})?{code}(?:{prose}</div>)?', PAGE)
    intro, _, tried = next(row for row in rows if '<b id="get_batch">' in row[1])
    assert intro.startswith("<p>A batch is a handful") and intro.count("<p>") == 1
    assert tried.startswith("<p>With the numbers 0 to 99") and tried.count("<p>") == 1 and "get_batch</a>(" in tried
    assert [row for row in rows if '<b id="Block">' in row[1]][0][0].startswith("<p>Trained for long enough")
    assert all(intro.count("<p>") == 1 for intro, code, _ in rows if "encode_text</b>" not in code)


def test_the_command_writes_it(in_tmp):
    program = lambda words: gpt.run_cleanly("page.py", page.command, words)
    assert main("--story", program=program) == (0, "data/story.html: open it in a browser\n", "")
    assert (in_tmp / "data/story.html").read_text(encoding="utf-8") == PAGE
    assert main("cats", "--story", program=program)[0] == 2
