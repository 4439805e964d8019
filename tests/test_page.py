"""page.py: what Python writes into the page of a run, and what its JavaScript computes."""

import base64
import html
import json
import random
import re
import shutil
import struct
import subprocess
from unicodedata import category

import page
import pytest
import story
import torch
from conftest import ROOT, TEXT, main, read_csv, save_model

import gpt

TEMPLATE = page.TEMPLATE.read_text(encoding="utf-8")
NODE = shutil.which("node")
EVIL = '</script><script>alert(1)</script><!--<script>\u2028\u2029&amp;"\'`${1}\\ \r<img src=x onerror=alert(1)>\n'


@pytest.fixture(autouse=True)
def cats(in_tmp):
    """The current folder, with a small text in it."""
    (in_tmp / "cats.txt").write_text(TEXT, encoding="utf-8")


def make_page(*arguments):
    """(exit code, standard output, standard error) of page.py."""
    return main(*arguments, program=lambda words: gpt.run_cleanly("page.py", page.command, words))


def refused(*arguments):
    """What page.py says when it cannot do this."""
    before = set(gpt.DATA.glob("*.html*"))
    code, out, error = make_page(*arguments)
    assert (code, out, error.count("\n")) == (2, "", 1) and set(gpt.DATA.glob("*.html*")) == before
    return error


def load(name):
    """The model of a run, with the numbers of 16 bits that a page has."""
    model, _ = gpt.load_checkpoint(gpt.DATA / f"{name}.pt")
    model.load_state_dict({name: p.half().float() for name, p in model.state_dict().items()})
    return model


def page_of(name, **options):
    """Keep a model, and write its page -> model, tokenizer, path."""
    model, tokenizer = save_model(name, **options)
    code, out, error = make_page(name, "--text", "cats.txt")
    assert (code, error) == (0, "") and out.count("\n") == 1
    return model, tokenizer, gpt.DATA / f"{name}.html"


def data_in(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search('<script type="application/json" id="run">(.*?)</script>', text, re.DOTALL)[1])


def numbers_in(packed, kind, *shape):
    """The tensor that was packed as base64. kind: e for 16 bits, f for 32."""
    content = base64.b64decode(packed)
    return torch.tensor(struct.unpack(f"<{len(content) // struct.calcsize(kind)}{kind}", content)).view(shape)


# The file


def test_the_page_holds_the_model():
    model, tokenizer, path = page_of("page")                            # which is no worse a name than others
    data = data_in(path)
    assert data.keys() == {"name", "config", "vocabulary", "merges", "parameter_count", "bigram", "parameters", "step",
                           "history", "text", "passages", "texts"}
    assert data["name"] == "page" and data["vocabulary"] == list(tokenizer.vocabulary) and data["merges"] is None
    assert gpt.Options(**data["config"]) == model.config and data["history"][0]["val_loss"] == 2.25
    assert data["parameters"].keys() == model.state_dict().keys()
    for name, p in model.state_dict().items():
        assert torch.equal(numbers_in(data["parameters"][name], "e", *p.shape), p.half().float())
    assert data["text"] == {"name": "cats", "length": len(TEXT), "begins": TEXT[:60]}
    val_text = gpt.train_val_split(TEXT)[1]
    assert 1 < len(data["passages"]) <= 12 and all(passage in val_text for passage in data["passages"])
    assert len(data["texts"]) == 3
    for ids, logits in data["texts"]:
        assert tokenizer.decode(ids) in val_text and len(ids) == 8      # the context
        torch.testing.assert_close(numbers_in(logits, "f", 1, 8, -1), model(torch.tensor([ids]))[0])


def test_it_takes_the_latest_run_finds_its_text_and_has_the_bigram_that_the_run_trained(in_tmp):
    save_model("older")
    code, told, _ = main("--text", "cats.txt", "--block_size", 8, "--n_layer", 1, "--n_embd", 16, "--max_steps", 20)
    assert code == 0
    for _ in range(2):                                                  # it writes over its own page
        code, out, error = make_page()
        assert (code, error) == (0, "") and re.fullmatch(r"data/cats\.html, 0\.\d MB: open it in a browser\n", out)
    assert sorted(path.name for path in gpt.DATA.glob("*.html*")) == ["cats.html", "story.html"]
    data = data_in(gpt.DATA / "cats.html")
    V = len(data["vocabulary"])
    assert data["step"] == 20 and data["history"] == [
        {name: float(value) for name, value in row.items()} for row in read_csv(gpt.DATA / "cats.csv")]
    assert f"bigram: loss {data['bigram']['loss']:.3f}, " in told
    bigram = gpt.BigramLanguageModel(V)
    bigram.table.weight.data = numbers_in(data["bigram"]["table"], "e", V, V)
    val_data = gpt.encode_text(gpt.train_val_split(TEXT)[1], gpt.CharTokenizer(TEXT))
    assert gpt.evaluate(bigram, val_data) == pytest.approx(data["bigram"]["loss"], abs=1e-3)
    (in_tmp / "cats.txt").rename("moved.txt")
    assert make_page("cats", "--text", "moved.txt")[0] == 0
    for _ in range(2):                              # without its text, it reads what the model writes
        code, _, error = make_page("cats")
        data = data_in(gpt.DATA / "cats.html")
        assert code == 0 and error.count("\n") == 1 and "The page is made without it" in error
        assert data["bigram"] is data["text"] is None and len(data["texts"]) == 3
        assert sum(map(len, data["passages"])) > 200
        (in_tmp / "cats.txt").write_text("Another text. " * 400)        # nor does another one do
    assert "cats.txt" in refused("cats", "--text", "cats.txt")


def test_a_table_of_more_than_12_million_numbers_is_left_out(in_tmp):
    text = TEXT + "".join(map(chr, range(0x4e00, 0x4e00 + 3465)))
    save_model("many", text, block_size=2)
    (in_tmp / "many.txt").write_text(text, encoding="utf-8")
    assert make_page("many", "--text", "many.txt")[0] == 0
    assert data_in(gpt.DATA / "many.html")["bigram"] is None


def test_the_template_fetches_nothing_and_takes_text_for_text():
    assert not re.search(r"https?:|www\.|//\w+\.|url\(|@import|\bsrc\b|\bimport\(|fetch\(|XMLHttp|WebSocket|Beacon",
                         TEMPLATE)
    icon, *links = re.findall(r'href="([^"]*)"', TEMPLATE)
    story_ids = re.findall(r'<h2 id="([^"]*)"', story.story_html((ROOT / "gpt.py").read_text(encoding="utf-8")))
    assert icon == "data:," and len(links) > 5
    assert {link.partition("#")[::2] for link in links} <= {("story.html", id) for id in ["", *story_ids]}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|\bon\w+=", TEMPLATE)


def test_each_element_that_the_page_looks_up_is_there_once():
    markup, *scripts = re.split("<script", TEMPLATE)
    ids = re.findall(r'\bid="([^"]+)"', markup)
    assert len(set(ids)) == len(ids)
    looked_up = set(re.findall(r'\$\("([\w-]+)"\)', "".join(scripts))) - {"run"}          # that is a script
    assert len(looked_up) > 30 and looked_up <= set(ids)


def test_a_hostile_text_and_name_are_inert(in_tmp):
    name = "<script>alert(1)&\"'"
    (in_tmp / "evil.txt").write_text(EVIL * 20, encoding="utf-8", newline="")
    text = gpt.load_text(in_tmp / "evil.txt")[1]
    save_model(name, text)
    code, out, error = make_page(name, "--text", "evil.txt")
    assert (code, error) == (0, "")
    content = (gpt.DATA / f"{name}.html").read_bytes().decode()
    data = re.search('<script type="application/json" id="run">(.*?)</script>', content, re.DOTALL)[1]
    assert data.isascii() and "<" not in data
    assert content.replace(data, '"RUN"') == TEMPLATE                   # and nothing else has changed
    assert json.loads(data)["name"] == name and set(json.loads(data)["vocabulary"]) == set(text)


# What is refused, in one line


@pytest.mark.parametrize("changes, says", [
    (dict(evaluated=False), "not evaluated yet"), (dict(text=TEXT + "more"), "changed")],
    ids=["not evaluated", "another text"])
def test_what_a_page_cannot_show_is_refused(changes, says):
    save_model("small", **changes)
    assert says in refused("small", "--text", "cats.txt")


def test_a_model_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(page, "LARGEST", 1000)
    save_model("small")
    assert "has more than" in refused("small", "--text", "cats.txt")


def test_a_model_alone_and_a_parameter_that_is_too_large_are_refused():
    model, tokenizer = save_model("small")
    path = gpt.DATA / "small.pt"
    progress = vars(gpt.read_checkpoint(path).progress)
    gpt.save_checkpoint(path, model, tokenizer)
    assert "model alone" in refused("small", "--text", "cats.txt")
    model.ln_f.weight.data[0] = 1e5
    gpt.save_checkpoint(path, model, tokenizer, {**progress, "best": model.state_dict()})
    assert "16 bits" in refused("small", "--text", "cats.txt")


@pytest.mark.parametrize("run, says", [
    ("nowhere", "there is no run 'nowhere'"), (ROOT / "tests" / "gpt2", "GPT-2"), ("cats.txt", "cats.txt")])
def test_what_is_no_run_is_refused(run, says):
    save_model("small")
    assert says in refused(run)


def test_a_run_called_story_does_not_replace_the_page_of_the_story():
    save_model("story")
    code, out, _ = make_page("story", "--text", "cats.txt")
    assert code == 0 and out.startswith("data/story-run.html")
    assert "<title>gpt.py" in (gpt.DATA / "story.html").read_text(encoding="utf-8")


def test_no_other_file_is_written_over():
    save_model("my")
    (gpt.DATA / "my.html").write_text(TEXT, encoding="utf-8")           # the text that it was trained on
    assert "another file" in refused("my", "--text", "data/my.html")
    assert (gpt.DATA / "my.html").read_text(encoding="utf-8") == TEXT


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


with_browser = pytest.mark.skipif(not BROWSER, reason="no browser: no page has run in one")
SEEN = """<script>requestAnimationFrame = done => setTimeout(done, 1);     // no frames are drawn
addEventListener("load", async () => {
  const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));
  const $ = id => document.getElementById(id), told = [];          // what a screen reader has said
  new MutationObserver(() => $("told").textContent && told.push($("told").textContent))
    .observe($("told"), {childList: true});
  await pause(3000);
  const seen = await (async () => { %s })();
  document.body.append(Object.assign(document.createElement("pre"), {id: "seen", textContent: JSON.stringify(seen)}));
});</script></body>"""


@pytest.fixture
def in_browser(trained):
    """A function: the page of a run, opened in a browser, and what a script that runs in it returns."""
    shutil.copytree(trained[0] / "data", "data")
    assert make_page("cats")[0] == 0

    def run(script="", path=gpt.DATA / "cats.html"):
        page = path.read_text(encoding="utf-8").replace("</body>", SEEN % script)
        path.with_name("seen.html").write_text(page, encoding="utf-8")
        done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
                               "--dump-dom", "--virtual-time-budget=15000",
                               path.with_name("seen.html").resolve().as_uri()],
                              capture_output=True, encoding="utf-8", timeout=60)
        assert "CONSOLE" not in done.stderr, done.stderr                # neither an error nor a warning
        seen = re.search('<pre id="seen">(.*?)</pre>', done.stdout)[1]
        return done.stdout, json.loads(html.unescape(seen)) if seen else None

    return run


@with_browser
def test_subwords_without_their_text(in_browser):
    """A page of subwords opens, checks itself, and speaks of tokens. Tab takes what the model would write; after Esc, it
    moves on. (One visit.)"""
    model, tokenizer = save_model("pieces", tokenizer=gpt.BPETokenizer(gpt.train_bpe(TEXT, 280)))
    assert make_page("pieces")[0] == 0
    path = gpt.DATA / "pieces.html"
    path.write_text(path.read_text(encoding="utf-8").replace('"step": 0', '"step": 20'), encoding="utf-8")
    shown, (passing, typed, ghost, told, taken, moved_on, passed, first) = in_browser("""
        const box = $("prompt"), press = key => !box.dispatchEvent(new KeyboardEvent("keydown", {key, cancelable: true}));
        box.focus();
        const passing = [press("Tab"), ...told];
        box.value = "The cat";
        box.dispatchEvent(new Event("input"));
        await pause(2000);
        const ghost = $("ghost").textContent.replaceAll("\u200b", ""), said = told.pop();
        const taken = [press("Tab"), box.value];
        document.execCommand("undo");
        taken.push(box.value);
        document.execCommand("redo");
        await pause(2000);
        press("Escape");
        return [passing, "The cat", ghost, said, taken, [press("Tab"), box.value],
                $("ghost").textContent.replaceAll("\u200b", "") === box.value,
                [...$("reading").children].slice(0, 9).map(span => span.textContent)];""", path)
    assert re.search('id="check" data-difference="0.0[01][^"]*" class="good"', shown)
    assert "it has written itself" in re.search('<p id="trained">(.*?)</p>', shown)[1]
    words = re.sub(r"<(script|style).*?</\1>|<!--.*?-->|<[^>]*>", "", shown, flags=re.DOTALL)
    assert "Each row is one token" in words and "haracter" not in words
    assert "aria-label=\"The text. Arrow keys move from token to token" in shown
    assert taken == [True, ghost, typed] and ghost.startswith(typed) and len(taken[1]) > len(typed)
    assert passing == [False] and told.split() == ["Tab", "for:", *taken[1].removeprefix("The ").split()]
    written = gpt.generate_cached(load("pieces"), torch.tensor([tokenizer.encode("\n" + typed)]), 24,
                                   temperature=0)[0]
    assert tokenizer.decode(written.tolist()).startswith("\n" + taken[1])
    assert moved_on == [False, taken[1]] and passed
    assert len(first) == 9 and "".join(first).count(" ") == 0


@with_browser
def test_what_stands_there_describes_what_is_shown(in_browser):
    """Also when the text is emptied, or has one character; arrow keys follow the direction of the text. One live region
    tells a screen reader what was asked for, and the vocabulary is one Tab stop. (One visit: browsers take their time.)"""
    shown, ((way, rows), moves, empty, one, unasked, live, heard, stopped, written, plain, vocabulary) = in_browser("""
        const unasked = told.splice(0), kinds = "[aria-live], [role=status], [role=alert], output";
        const live = [...document.querySelectorAll(kinds)].map(part => part.id);
        const box = $("reading"), at = () => [...box.children].findIndex(span => span.classList.contains("chosen"));
        box.focus();
        await pause(400);
        const focused = told.splice(0), chosen = at();
        const ids = ["given", "after", "head-here", "covers", "losses", "way"], found = [], moves = [];
        const way = $("way").textContent + $("way-score").textContent, rows = $("shares").children.length;
        for (const [direction, key] of [["ltr", "ArrowRight"], ["rtl", "ArrowLeft"], ["rtl", "ArrowRight"]]) {
          box.style.direction = direction;
          const before = at();
          box.dispatchEvent(new KeyboardEvent("keydown", {key}));
          moves.push(at() - before);
        }
        await pause(400);
        const moved = told.splice(0);
        for (const text of ["", "T"]) {
          $("typed").value = text;
          $("typed").dispatchEvent(new Event("input"));
          await pause(1000);
          found.push([ids.map(id => $(id).textContent), document.querySelector("canvas").width]);
        }
        const write = async length => {
          $("length").value = length;
          $("start").click();
          await pause(20);
          if (length > 99) $("stop").click();
          for (let i = 0; i < 40 && told.at(-1) === "Writing"; i++) await pause(200);
          await pause(400);
          return told.splice(0);
        };
        const stopped = await write(999), written = [await write(5), await write(5)];
        const keys = [...$("vocabulary").children];
        const stops = () => keys.map((key, i) => [key.tabIndex, i]).filter(([stop]) => stop === 0).map(([, i]) => i);
        const go = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
        keys[stops()[0]].focus();
        const vocabulary = ["Home", "ArrowRight", "End"].map(key => { go(key); return stops(); });
        return [[way, rows], moves, ...found, unasked, live, [chosen, focused, moved], stopped, written,
                $("plain-gpt").textContent, [keys.map(key => key.ariaLabel), ...vocabulary]];""")
    assert re.match(r"embedding: .*after block 1: .*The logit of .* is −?[\d.]+\. It is the sum of:", way)
    assert rows == 1 + 1 + (2 + 1) + 1              # the embedding, a block's total and parts (two heads, MLP), a bias
    assert "Checked: computes what PyTorch computes" in shown
    assert moves == [1, 1, -1]
    assert empty == [["", "", "", "", "", ""], 1]
    assert one[0][0].startswith("“T” is the first character: it has no prediction.") and one[1] > 1
    assert "“capital T” is the first character" in one[0][0]
    assert unasked == [] and live == ["told"]
    chosen, [focused], [moved] = heard              # one sentence for the focus, one for three moves
    assert re.fullmatch(rf"character {chosen + 1} of \d+: [\w ]+", focused)
    assert re.fullmatch(r"[\w ]+, .*%, bigram .*%; likeliest (and real )?next: [\w ]+(; .*)?", moved)
    assert stopped[0] == "Writing" and re.match(r"Stopped after \d+ characters: \n?T", stopped[-1])
    assert written == 2 * [["Writing", f"Done after 5 characters: {plain}"]] and len(plain) >= 6
    names, *stops = vocabulary
    assert stops == [[0], [1], [len(names) - 1]] and {"space", "line end", "capital T", "period"} <= set(names)


# What the page computes: its script "model" runs in node, without a browser

with_node = pytest.mark.skipif(not NODE, reason="node is not installed: what pages compute was not compared")
HARNESS = """
const page = require("fs").readFileSync(process.argv[1], "utf8");
const script = id => page.split(new RegExp(`<script[^>]*id="${id}">`))[1].split("</script>")[0];
const run = JSON.parse(script("run"));
const code = script("unpack") + script("model") + script("way") + "\\nconst gpt = loadModel(run.config, run.parameters);"
    + "\\nreturn " + process.argv[2];
const numbers = (key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value;
console.log(JSON.stringify(new Function("run", "require", code)(run, require), numbers));
"""


SUBWORDS = gpt.BPETokenizer([(b"a", b"t"), (b" ", b"c"), (b" c", b"at")])


def in_page(path, expression):
    """The value of a JavaScript expression, which can use the functions of the page, `run` and `gpt`."""
    done = subprocess.run([NODE, "-e", HARNESS, path, expression], capture_output=True, text=True, encoding="utf-8",
                          timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def weights_of_all_heads(model, idx):
    """What a GPT that reads idx (B, T) looks at: for each block, (B, nh, T, T)."""
    weights, T = [], idx.shape[1]
    for block in model.blocks:
        def attend(q, k, v, attend=block.attn.attend):
            weights.append(attend(q, k, torch.eye(T).expand(*q.shape[:2], T, T)))     # the identity shows the weights
            return attend(q, k, v)
        block.attn.attend = attend
    model(idx)
    return weights


@with_node
@pytest.mark.parametrize("changes", [
    dict(), dict(position="sinusoidal"), dict(position="rotary"), dict(position="rotary", n_head=8),
    dict(block_size=1, n_layer=1), dict(tokenizer=SUBWORDS), dict(tokenizer=SUBWORDS, position="sinusoidal"),
    dict(tokenizer=SUBWORDS, position="rotary")], ids=lambda changes: str({**changes, "tokenizer": "tokenizer" in changes}))
def test_the_page_computes_what_pytorch_computes(changes):
    model, tokenizer, path = page_of("small", **changes)
    logits, checked, cached, parts, weights, greedy = in_page(path, """(() => {
        const ids = run.texts[0][0], cache = newCache(gpt.config), some = newCache(gpt.config), writer = stream(
            gpt, ids.slice(0, 1), {temperature: 0}, randomNumbers(1));
        return [forward(gpt, ids),
                run.texts.map(([ids, logits]) => forward(gpt, ids).map((logit, i) => logit - floatsOf(logits)[i])),
                ids.flatMap(token => [...forward(gpt, [token], cache)]),
                [ids.slice(0, 3), ids.slice(3)].filter(part => part.length)
                    .flatMap(part => [...forward(gpt, part, some)]),
                cache.layers.map(layer => layer.weights),
                Array.from({length: 30}, () => writer.next().value.token)];
    })()""")
    ids = data_in(path)["texts"][0][0]
    expected = model(torch.tensor([ids]))[0].flatten()
    assert expected.std() > 0.5
    torch.testing.assert_close(torch.tensor(logits), expected, atol=2e-2, rtol=0)
    assert len(checked) == 3 and max(abs(difference) for row in checked for difference in row) < 2e-2
    assert cached == logits and parts == logits
    T = len(ids)
    for layer, theirs in zip(weights_of_all_heads(model, torch.tensor([ids])), weights, strict=True):
        assert len(theirs) == T * model.config.n_head
        for t in range(T):
            rows = torch.tensor(theirs[t * model.config.n_head:(t + 1) * model.config.n_head], dtype=torch.float32)
            torch.testing.assert_close(rows, layer[0, :, t, :t + 1], atol=1e-2, rtol=0)
    written = gpt.generate_cached(load("small"), torch.tensor([ids[:1]]), 30, temperature=0)[0, 1:]
    assert greedy == written.tolist()                                   # past the context, thrice


@with_node
def test_the_page_cuts_texts_into_subwords_as_python_does():
    text = TEXT + "It's 42 ￥, we'll   see:\n\n\tdef f(x):\n        return 'naïve' 😀😀\n" * 20
    tokenizer = gpt.BPETokenizer(gpt.train_bpe(text, 320))
    save_model("pieces", tokenizer=tokenizer)
    assert make_page("pieces", "--text", "cats.txt")[0] == 0
    choose = random.Random(0)
    signs = [chr(i) for i in (*range(0x3000), 0xfeff, *range(0x1f600, 0x1f640)) if category(chr(i)) != "Cn"]
    signs += 200 * list("  \n\t'tsrevlmd aeiou09.,") + 5 * ["\x1c", "\x85", "\u2028", "\ud800", "\udc00"]
    texts = ["".join(choose.choices(signs, k=choose.randrange(30))) for _ in range(3000)]
    ids = [choose.choices(range(tokenizer.vocab_size), k=choose.randrange(12)) for _ in range(3000)]
    with open("asked.json", "w") as file:
        json.dump([texts, ids], file)
    encoded, decoded, pieces = in_page(gpt.DATA / "pieces.html", """(() => {
        const [texts, ids] = JSON.parse(require("fs").readFileSync("asked.json", "utf8")), tokenizer = makeTokenizer(run);
        return [texts.map(tokenizer.encode), ids.map(tokenizer.decode), tokenizer.pieces];
    })()""")
    whole = [text for text in texts if not re.search("\ud800\udc00", text)]     # to JavaScript, those are one character
    assert len(whole) > 2900 and sum(map(len, encoded)) > 10_000
    for text, tokens in zip(texts, encoded, strict=True):
        assert text not in whole or tokens == tokenizer.encode(text), ascii(text)
    assert decoded == [tokenizer.decode(row) for row in ids]
    assert pieces[ord("a")] == "a" and pieces[0xe2] == r"\xe2" and " sat" in pieces


@with_node
def test_numbers_of_16_bits_and_gelu_are_exact():
    *_, path = page_of("small")
    bits = [i for i in range(0, 2**16, 5) if i >> 10 & 31 != 31]                        # all but inf and nan
    packed = struct.pack(f"<{len(bits)}H", *bits)
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    numbers, gelu = in_page(path, f'[halvesOf("{base64.b64encode(packed).decode()}"), {x.tolist()}.map(gelu)]')
    assert numbers == list(struct.unpack(f"<{len(bits)}e", packed))
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(torch.tensor(gelu, dtype=torch.float64), expected, atol=1e-9, rtol=0)


@with_node
def test_sampling_parameters_do_what_they_do_in_gpt():
    *_, path = page_of("small")
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 11)
    options = [dict(zip(("temperature", "top_k", "top_p"), row)) for row in (
        (1.0, None, None), (0.5, None, None), (1.7, 3, None), (1.0, 1, None), (1.0, 50, None), (0.8, None, 0.9),
        (1.0, None, 0.3), (1.0, None, 1e-9), (1.3, 4, 0.7), (0, None, None), (0, 5, 0.5), (1e-30, None, None))]
    names = {"temperature": "temperature", "top_k": "topK", "top_p": "topP"}
    theirs = [{names[name]: value for name, value in row.items()} for row in options]
    result = in_page(path, f"{json.dumps(theirs)}.map(options => {json.dumps(logits.tolist())}"
                           f".map(row => nextTokenProbabilities(Float32Array.from(row), options)))")
    for row, probs in zip(options, result, strict=True):
        probs = torch.tensor(probs, dtype=torch.float32)
        torch.testing.assert_close(probs, gpt.next_token_probabilities(logits, **row), atol=1e-6, rtol=1e-4)


@with_node
def test_it_draws_with_these_probabilities_and_the_same_for_the_same_seed():
    *_, tokenizer, path = page_of("small")
    draws, same, other, rows, table = in_page(path, """(() => {
        const random = randomNumbers(1), probs = [0.5, 0, 0.3, 0.2, 0], counts = [0, 0, 0, 0, 0];
        for (let i = 0; i < 20000; i++) counts[draw(probs, random)]++;
        const bigramModel = {table: halvesOf(run.bigram.table), config: {...gpt.config, block_size: 1, n_layer: 0}};
        const write = (model, seed) => {
            const writer = stream(model, [1, 2], {temperature: 1, topK: 5}, randomNumbers(seed));
            return Array.from({length: 40}, () => writer.next().value.token);
        };
        return [counts, [write(gpt, 7), write(gpt, 7)], write(gpt, 8),
                [bigram(bigramModel, [0, 3]), write(bigramModel, 7)], bigramModel.table];
    })()""")
    assert draws[1] == draws[4] == 0
    assert [count / 20000 for count in draws] == pytest.approx([0.5, 0, 0.3, 0.2, 0], abs=0.02)
    assert same[0] == same[1] != other and len(set(other)) > 3
    V = tokenizer.vocab_size
    assert rows[0] == table[3 * V:4 * V] and all(0 <= token < V for token in rows[1])


@with_node
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_one_tokens_way_is_that_of_pytorch(position):
    """What the model would predict after each block, and what each part adds to a logit."""
    model, tokenizer, path = page_of("small", position=position)
    ids, after, shares, names = in_page(path, """(() => {
        const ids = run.texts[0][0], cache = newCache(gpt.config);
        forward(gpt, ids, cache);
        const way = wayOf(gpt, ids[5], 5, cache), after = [0, 1, 2].map(block => logitsAfter(gpt, way, block));
        return [ids, after, sharesOf(gpt, way, 3), way.map(part => part.name)];
    })()""")
    idx, heads = torch.tensor([ids[:6]]), []
    with torch.no_grad():
        x = model.embed(idx)
        for block, found in zip([None, *model.blocks], after, strict=True):
            if block is not None:
                x = block(x)
            expected = model.lm_head(model.ln_f(x))[0, 5]
            torch.testing.assert_close(torch.tensor(found), expected, atol=2e-2, rtol=0)
        attention = model.blocks[0].attn
        attend = attention.attend
        attention.attend = lambda q, k, v: heads.append(attend(q, k, v)) or heads[0]
        attention(model.blocks[0].ln_1(model.embed(idx)))
    assert names == ["embedding", *["head 1", "head 2", "MLP"] * 2]
    assert sum(shares) == pytest.approx(expected[3].item(), abs=2e-2)
    proj, hs = model.blocks[0].attn.proj, 8
    x = x[0, 5]
    row = model.lm_head.weight[3] * model.ln_f.weight / (x.var(correction=0) + 1e-5).sqrt()
    for h in range(2):
        added = proj.weight[:, h * hs:(h + 1) * hs] @ heads[0][0, h, 5] + proj.bias / 2
        assert shares[1 + h] == pytest.approx(((added - added.mean()) @ row).item(), abs=1e-2)
