"""story.py: the story of gpt.py as a page for the browser. Called by `python tests/page.py --story`.

A part of the story is prose, and then the code that it introduces. In prose, comments are set as text: what is
indented stays as it is, and the lines to type in a session (>>>) can be copied. Code is coloured, a name leads to where
it is defined, and what a line does to a shape stands apart. Every line of the story is there once, in its order.
"""

import ast
import io
import keyword
import re
import tokenize
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHAPE = re.compile(r"#[^#]*(\([A-Z0-9(][^)]*\)|->)[^#]*$")        # a comment that tells a shape
GAP = r'<span class="gap">\1</span>'                               # between a line and its comment
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>gpt.py: how a GPT works</title>
<style>
:root { color-scheme: light dark; --text: #1c1d21; --back: #fff; --soft: #f4f4f1; --line: #d9d8d2; --quiet: #63646b;
  --link: #1f4fa3; --keyword: #8a2f8f; --string: #1d6b3a; --number: #92520c; }
@media (prefers-color-scheme: dark) { :root { --text: #e7e6e1; --back: #17181b; --soft: #212327; --line: #3b3d43;
  --quiet: #a3a4aa; --link: #92b8ff; --keyword: #dc9be2; --string: #8fd0a5; --number: #e6b173; } }
body { margin: 0 auto; padding: 1rem; max-width: 100rem; color: var(--text); background: var(--back);
  font: 1.05rem/1.6 Georgia, serif; }
pre, code { font: .8rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre { margin: .6rem 0; overflow-x: auto; } a { color: var(--link); } h2 { scroll-margin-top: 1rem; line-height: 1.25; }
nav ol { columns: 16rem; padding: 0; list-style: none; } section { border-top: 1px solid var(--line); }
.code { background: var(--soft); padding: .1rem .9rem; border-radius: 6px; align-self: start; min-width: 0; }
.prose { max-width: 40rem; min-width: 0; }
.code a { color: inherit; text-decoration-color: var(--line); }
.k { color: var(--keyword); } .s { color: var(--string); } .n { color: var(--number); } .c { color: var(--quiet); }
.shape { color: var(--link); font-style: italic; } .session { display: flow-root; border-left: 3px solid var(--line);
  padding-left: .7rem; } .session b { font-weight: 600; } .session pre { white-space: pre-wrap; }
h1 { font-size: 1.7rem; line-height: 1.25; }
.session button { float: right; margin-left: .5rem;
  font: .8rem sans-serif; padding: .25rem .6rem; color: inherit; background: var(--soft);
  border: 1px solid var(--line); }
.session .gap { font-size: 0; } .session .gap::after { content: "  "; font-size: .8rem; }
@media (max-width: 50rem) {                     /* comments at the ends of lines move up to them */
  .gap { font-size: 0; } .gap::after { content: "  "; font-size: .8rem; } }
@media (min-width: 75rem) {
  .part { display: grid; grid-template-columns: minmax(0, 28rem) minmax(0, 1fr); gap: 0 1.6rem; }
  .code pre { font-size: .75rem; }
  .part .code { position: sticky; top: .5rem; } .part .code:first-child { grid-column: 2; } }
@media print { .session button, nav { display: none; } .part .code { position: static; border: 1px solid; } }
</style></head><body>
"""
FOOT = """<script>
document.addEventListener("click", async event => {
  if (!event.target.matches(".session button")) return;
  const lines = [...event.target.parentNode.querySelectorAll("b")];
  await navigator.clipboard.writeText(lines.map(line => line.textContent.slice(4) + "\\n").join(""));
  event.target.textContent = "copied";
  setTimeout(() => event.target.textContent = "copy", 1500);
});
</script></body></html>
"""


def code_html(code, defined):
    """Python source as HTML, with names that lead to definitions. defined: the names that have a place to lead to."""
    lines, result, at = code.split("\n"), [], (1, 0)

    def copy_until(end):
        nonlocal at
        while at[0] < end[0]:
            result.append(escape(lines[at[0] - 1][at[1]:]) + "\n")
            at = at[0] + 1, 0
        result.append(escape(lines[at[0] - 1][at[1]:end[1]]))
        at = end

    previous = ""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            continue
        copy_until(token.start)
        text, kind = escape(token.string), token.type
        if kind == tokenize.NAME and previous in ("def", "class"):
            text = f'<b id="{token.string}">{text}</b>' if token.string in defined else f"<b>{text}</b>"
        elif kind == tokenize.NAME and token.string in defined and previous != ".":
            text = f'<a href="#{token.string}">{text}</a>'
        elif kind == tokenize.COMMENT:
            text = f'<span class="{"shape" if SHAPE.match(token.string) else "c"}">{text}</span>'
        elif keyword.iskeyword(token.string):
            text = f'<span class="k">{text}</span>'
        elif kind in (tokenize.STRING, tokenize.NUMBER):
            text = f'<span class="{"s" if kind == tokenize.STRING else "n"}">{text}</span>'
        result.append(text)
        at, previous = token.end, token.string
    return re.sub(r"(?<=\S)( {2,})(?=<span class=.(?:c|shape))", GAP, "".join(result).rstrip()) + "\n"


def prose_html(lines):
    """Comment lines without their "# " as HTML: paragraphs, blocks that are indented, sessions."""
    for block in re.split(r"\n{2,}", "\n".join(lines)):
        pieces = re.split(r"(?m)^(?=>>> )", block, maxsplit=1)          # a session may follow a line of prose
        for piece in filter(str.strip, pieces):
            if piece.startswith(">>> "):
                lines = (re.sub(r"(?<=\S)( {2,})(?=# )", GAP, escape(line)) for line in piece.rstrip().split("\n"))
                shown = "\n".join(f"<b>{line}</b>" if line.startswith(("&gt;&gt;&gt; ", "... ")) else line
                                  for line in lines)
                yield f'<div class="session"><button type="button">copy</button><pre>{shown}</pre></div>'
            elif piece.lstrip("\n").startswith("    "):
                yield f"<pre>{escape(piece.rstrip())}</pre>"
            else:
                yield "<p>" + re.sub(r"`([^`\n]+)`", r"<code>`\1`</code>", escape(piece.strip())) + "</p>"


def parts_of(text):
    """The story as a list of ("prose", lines) and ("code", lines), which take turns."""
    parts = []
    for line in text.rstrip().split("\n"):
        kind = "prose" if line.startswith("#") else "code"
        if not line.strip() and parts:                                  # an empty line belongs to what came before
            kind = parts[-1][0]
        if not parts or parts[-1][0] != kind:
            parts.append((kind, []))
        parts[-1][1].append(re.sub("^# ?", "", line) if kind == "prose" else line)
    return parts


def story_html(source):
    """The page of the story, given the text of gpt.py."""
    text = source.partition("# %% Appendix")[0]
    tree = ast.parse(text)
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    docstring = ast.get_docstring(tree, clean=False)
    head, *chapters = re.split(r"(?m)^# %% ", text)
    titles = [chapter.partition("\n")[0] for chapter in chapters]

    def code(text):
        return f'<div class="code"><pre>{code_html(text, defined)}</pre></div>'

    def link(title):
        return f"chapter-{title.partition('.')[0]}"

    title, _, told = docstring.partition("\n")
    result = [HEAD, f'<div class="prose"><h1>{escape(title)}</h1>', *prose_html(told.split("\n")), "</div>", "<nav><ol>",
              *(f'<li><a href="#{link(title)}">{escape(title)}</a></li>' for title in titles), "</ol></nav>",
              code(head.partition(docstring + '"""')[2].strip("\n"))]
    for title, chapter in zip(titles, chapters):
        result.append(f'<section><h2 id="{link(title)}">{escape(title)}</h2><div class="part">')
        for i, (kind, lines) in enumerate(parts_of(chapter.partition("\n")[2])):
            if kind == "prose":
                result += ['</div><div class="part">' * (i > 0), '<div class="prose">', *prose_html(lines), "</div>"]
            else:
                result.append(code("\n".join(lines).rstrip()))
        result.append("</div></section>")
    return "\n".join([*result, FOOT])


def write_story(path):
    path.parent.mkdir(exist_ok=True)
    path.write_text(story_html((ROOT / "gpt.py").read_text(encoding="utf-8")), encoding="utf-8")
