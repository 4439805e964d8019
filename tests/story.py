"""story.py: the story of gpt.py as a page for the browser. Called by `python tests/page.py --story`.

Every line of the story is there once, in its order. In prose, comments are set as text, and the lines to type in a
session (>>>) can be copied. Code is coloured, a name leads to where it is defined, and what a line does to a shape
stands apart. On wide screens, code stands beside the paragraph that introduces it and the sessions that try it out.
"""

import io
import keyword
import re
import textwrap
import tokenize
from html import escape
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHAPE = re.compile(r"#[^#]*(\([A-Z0-9(.][^)]*\)|->)[^#]*$")          # a comment that tells a shape
MINUS = re.compile(r"-(&gt;)? ?(<(\w+)[^>]*>[^<]*</\3>|[\w(.]+)")   # no line should break after - or ->
STYLES = {"COMMENT": "c", "STRING": "s", "FSTRING": "s", "NUMBER": "n"}
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>gpt.py: how a GPT works</title>
<style>
:root { color-scheme: light dark; --text: #1c1d21; --back: #fff; --soft: #f4f4f1; --line: #d9d8d2; --quiet: #63646b;
  --link: #1f4fa3; --keyword: #8a2f8f; --string: #1d6b3a; --number: #92520c; --shape: #a3314c; --target: #ffe08a;
  --size: .8rem; --code: calc(64 * var(--size)); }                  /* --code: 100 characters and the space around */
@media (prefers-color-scheme: dark) { :root { --text: #e7e6e1; --back: #17181b; --soft: #212327; --line: #3b3d43;
  --quiet: #a3a4aa; --link: #92b8ff; --keyword: #dc9be2; --string: #8fd0a5; --number: #e6b173; --shape: #f5a3b5;
  --target: #6b5510; } }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 105rem; color: var(--text); background: var(--back);
  font: 1.05rem/1.6 Georgia, serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; } a { color: var(--link); text-underline-offset: .15em; }
h2 { position: sticky; top: 0; z-index: 1; display: flex; justify-content: space-between; margin: 2rem -1rem 1rem;
  padding: .4rem 1rem; font-size: 1.25rem; line-height: 1.5; background: var(--back);
  border-bottom: 1px solid var(--line); }                          /* it tells all the time in which chapter one is */
h2 > a { color: inherit; text-decoration: none; } h2 small { font: .9rem/2 sans-serif; }
b[id] { scroll-margin-top: 6rem; }
b:target { background: var(--target); outline: .2em solid var(--target); }
pre, dl, code { font: var(--size)/1.5 ui-monospace, Menlo, Consolas, monospace; } p { max-width: 40rem; }
p code { font-size: .88em; padding: .1em .25em; border-radius: 3px; background: var(--soft);
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
pre { margin: .8rem 0; max-width: var(--code); } pre a { color: inherit; text-decoration-color: var(--quiet); }

/* A line that is too long goes on 4 columns further to the right, and a comment at its end moves as a whole. */
.line { display: block; white-space: pre-wrap; --step: 1ch; --hang: calc(var(--indent, 0) * var(--step) + 4ch);
  padding-left: var(--hang); text-indent: calc(-1 * var(--hang)); }
.line i { letter-spacing: calc(var(--step) - 1ch); } .minus { white-space: nowrap; }
.tail { display: inline-block; box-sizing: border-box; max-width: 100%; padding-left: 2ch; text-indent: -2ch;
  vertical-align: top; }
.drawing, .answer { overflow-x: auto; padding-bottom: .3rem; white-space: pre;
  background: linear-gradient(var(--back), var(--back)) right / 1rem 100% no-repeat local,
    linear-gradient(to left, var(--line), transparent 1rem); }      /* a shadow where it goes on */
.k { color: var(--keyword); } .s { color: var(--string); } .n { color: var(--number); } .c { color: var(--quiet); }
.shape { color: var(--shape); font-style: italic; } .code pre, .session pre { margin: 0; }
.code { margin: .8rem 0; padding: .6rem .9rem; border-radius: 6px; background: var(--soft); box-sizing: border-box;
  max-width: var(--code); align-self: start; }

.session { display: flex; flex-direction: row-reverse; justify-content: flex-end; align-items: flex-start; gap: 1.5rem;
  margin: .8rem 0; padding-left: .7rem; border-left: 3px solid var(--line); } .session pre { min-width: 0; }
.answer { display: block; } .typed { font-weight: 600; }
.typed .c, .typed .shape { font-weight: 400; font-style: normal; color: var(--quiet); }
.picked .ask, .picked .answer { user-select: none; -webkit-user-select: none; }
.session button { flex: none; width: 4.2rem; padding: .15rem 0; font: .75rem sans-serif; color: inherit;
  cursor: pointer; background: var(--soft); border: 1px solid var(--quiet); border-radius: 4px; }
dl { display: grid; grid: repeat(var(--rows), auto) / auto-flow minmax(0, max-content); gap: .3rem 2.5rem;
  margin: .8rem 0; reading-flow: grid-order; } dt { line-height: 1.68rem; } dt:only-child { grid-column: 1 / -1; }
dl div { display: grid; grid-template-columns: calc(var(--key) * 1ch + 2ch) minmax(0, 1fr); }
dd { margin: 0; font: 1.05rem/1.6 Georgia, serif; }

@media screen and (max-width: 54rem) { .line { --step: min(.5ch, 8ch / var(--indent, 1)); }
  .tail { width: 100%; margin: 0 0 .25em; } .tail::before { content: "↑ "; }       /* it is about the line above */
  .session { flex-direction: column-reverse; align-items: stretch; gap: .2rem; }
  .answer, .drawing { font-size: .72rem; }
  .session button { align-self: flex-end; padding: .5rem 0; width: 5rem; }
  .code { margin: .8rem -1rem; padding: .6rem 1rem; border-radius: 0; max-width: none; }
  dl { display: flex; flex-direction: column; } }
@media screen and (min-width: 75rem) { :root { --size: clamp(.75rem, .4rem + .5vw, .95rem); }
  .row { display: grid; grid: auto 1fr / minmax(0, 1fr) var(--code); column-gap: 1.6rem; }
  .row:empty { display: none; } .row .code { grid-area: 1 / 2 / span 2; position: sticky; top: 3.2rem; }
  .row p:first-child { margin-top: .6rem; } .row .code + .prose p:first-child { margin-top: 0; } }
@media print { :root { --size: .66rem; } .session button, h2 small { display: none; }
  h2 { position: static; break-after: avoid; }
  .line, .session, dl { break-inside: avoid; } .code { border: 1px solid; } }
</style></head><body>
"""
FOOT = """<script>
document.addEventListener("click", async ({target: button}) => {
  if (!button.matches(".session button")) return;
  const session = button.parentNode, lines = [...session.querySelectorAll(".typed")];
  try {
    await navigator.clipboard.writeText(lines.map(line => line.textContent.slice(4)).join(""));
    button.textContent = "copied";
  } catch {                             // over http, there is no clipboard: select the lines, for Ctrl+C
    session.classList.add("picked");
    getSelection().selectAllChildren(session.querySelector("pre"));
    button.textContent = "selected";
  }
  setTimeout(() => button.textContent = "copy", 2000);
});
</script></body></html>
"""


def code_lines(code, links):
    """Python source as lines of HTML. links: for each name that the story defines, a link to its definition."""
    lines = code.split("\n")
    shown, done, previous = [""] * len(lines), [0] * len(lines), ""

    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        name, kind, (first, column) = token.string, tokenize.tok_name[token.type], token.start
        start, end = "", "<wbr>" if name == "(" or name == "[" and previous.isidentifier() else ""
        if kind == "NAME" and (previous in ("def", "class") or lines[first - 1].startswith(f"{name} = ")):
            start, end = f'<b id="{name}">' if name in links else "<b>", "</b>"
        elif kind == "NAME" and name in links and previous != ".":
            start, end = f'<a href="#{name}">', "</a>"
        elif style := "k" if keyword.iskeyword(name) else STYLES.get(kind.partition("_")[0]):
            style = "shape" if SHAPE.match(name) else style
            tail = " tail" if kind == "COMMENT" and lines[first - 1][:column].strip() else ""
            start, end = f'<span class="{style}{tail}">', "</span>"
        for row, part in enumerate(name.split("\n"), first - 1):        # a string may have several lines
            if part := part.strip():
                begin = lines[row].index(part, done[row])
                shown[row] += escape(lines[row][done[row]:begin]) + start + escape(part) + end
                done[row] = begin + len(part)
        previous = name
    return [MINUS.sub(r'<span class="minus">\g<0></span>', line) for line in shown]


def line_html(line):
    """A line of HTML that wraps by itself. Its spaces are part of it, so that it can be copied."""
    indent = len(line) - len(line.lstrip(" "))
    start = f' style="--indent:{indent}"><i>{line[:indent]}</i>' if indent else ">"
    return f'<span class="line"{start}{line[indent:]}\n</span>'


def code_html(code, links):
    return f'<div class="code"><pre>{"".join(map(line_html, code_lines(code.strip(), links)))}</pre></div>\n'


def session_html(text, links):
    """What is typed (after >>> or ...), and Python's answers."""
    result = ""
    for typed, lines in groupby(text.split("\n"), lambda line: line.startswith((">>> ", "... "))):
        lines = list(lines)
        if typed:
            code = code_lines("\n".join(line[4:] for line in lines), links)
            for line, shown in zip(lines, code):
                result += f'<span class="line typed"><span class="ask">{escape(line[:4])}</span>{shown}\n</span>'
        else:
            result += '<span class="answer">' + escape("\n".join(lines)) + "\n</span>"
    return f'<div class="session"><button type="button">copy</button><pre>{result}</pre></div>'


def block_html(text, chapters):
    """An indented block: a list (a key, then its text, maybe several in a line), lines of text, or a drawing."""
    lines, entries = textwrap.dedent(text).split("\n"), []
    for cells in (re.split(" {2,}", line) for line in lines):
        if entries and cells[0] == "" and len(cells) == 2:              # goes on with the text above
            entries[-1][-1] += "\n" + cells[1]
        else:
            entries.append(cells)
    lengths = {len(cells) for cells in entries}
    if "|" in text or any("" in cells for cells in entries):
        return '<pre class="drawing">' + escape("\n".join(lines)) + "</pre>"
    if lengths == {1} or not lengths <= {1, 2, 4, 6, 8}:
        return "<pre>" + "".join(line_html(escape(line)) for line in lines) + "</pre>"

    result, keys = "", [key for cells in entries if len(cells) > 1 for key in cells[::2]]
    for row, cells in enumerate(entries):
        for column in range(0, len(cells), 2):
            key, *told = map(escape, cells[column:column + 2])
            told = [f'<dd><a href="#chapter-{key}">{text}</a></dd>' if key in chapters else f"<dd>{text}</dd>"
                    for text in told]
            result += f'<div style="order:{column * len(entries) + row}"><dt>{key}</dt> {"".join(told)}</div>\n'
    result = f'<dl style="--rows:{len(entries)};--key:{max(map(len, keys))}">\n{result}</dl>'
    return f'<nav id="contents">{result}</nav>' if set(keys) == set(chapters) else result


def prose_html(text, links, chapters):
    """Prose as pairs: "p" and a paragraph, "s" and a session, "b" and a block, as HTML."""
    def inline(code):
        return "<code>" + re.sub(r"(?<![\w.])\w+", lambda name: links.get(name[0], name[0]), code[1]) + "</code>"

    for block in re.split(r"\n{2,}", text.rstrip()):
        pieces = re.split(r"(?m)^(?=>>> )", block, maxsplit=1)          # a session may follow a line of prose
        for piece in filter(None, pieces):
            if piece.startswith(">>> "):
                yield "s", session_html(piece, links)
            elif piece.startswith("    "):
                yield "b", block_html(piece, chapters)
            else:
                yield "p", "<p>" + re.sub("`([^`]+)`", inline, escape(piece.strip())) + "</p>"


def chapter_html(text, links, chapters):
    """Rows, in which code stands beside its introduction and the sessions that try it out; between the rows, prose."""
    def prose(pieces):
        return '<div class="prose">\n' + "\n".join(html for _, html in pieces) + "\n</div>\n" if pieces else ""

    result = '<div class="row">'
    parts = re.findall(r"(?m)(?:^#.*\n+)+|(?:^(?!#).*\n+)+", text.strip("\n") + "\n")     # prose and code take turns
    for i, part in enumerate(parts):
        if not part.startswith("#"):
            result += code_html(part, links)
            continue
        pieces = list(prose_html(re.sub("(?m)^# ?", "", part), links, chapters))
        kinds = "".join(kind for kind, _ in pieces)
        tried = re.match("(p?s)*", kinds).end() if i > 0 else 0                 # sessions that try out the code above
        intro = max(tried, kinds.rfind("p")) if i < len(parts) - 1 else len(pieces)
        result += prose(pieces[:tried]) + "</div>" + prose(pieces[tried:intro])
        result += '<div class="row">' + prose(pieces[intro:])
    return result + "</div>"


def story_html(source):
    """The page of the story, given the text of gpt.py."""
    _, docstring, text = source.partition("# %% Appendix")[0].split('"""', 2)
    names = re.findall(r"(?m)^(?:def |class |(?=\w+ = ))(\w+)", text)
    links = {name: f'<a href="#{name}">{name}</a>' for name in names}
    title, _, summary = docstring.partition("\n")
    imports, *chapters = re.split(r"(?m)^# %% ", text)
    chapters = {chapter.partition(".")[0]: chapter for chapter in chapters}

    result = [HEAD, f"<h1>{escape(title)}</h1>"]
    result += [html for _, html in prose_html(summary, links, chapters)] + [code_html(imports, links)]
    for number, chapter in chapters.items():
        title, _, text = chapter.partition("\n")
        result += [f'<section><h2 id="chapter-{number}"><a href="#chapter-{number}">{escape(title)}</a>'
                   ' <small><a href="#contents">contents</a></small></h2>',
                   chapter_html(text, links, chapters), "</section>"]
    return "\n".join([*result, FOOT])


def write_story(path):
    path.parent.mkdir(exist_ok=True)
    path.write_text(story_html((ROOT / "gpt.py").read_text(encoding="utf-8")), encoding="utf-8")
