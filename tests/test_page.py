"""`python attention_toy.py --page`: what Python writes into the page, and what its JavaScript computes."""

import base64
import json
import re
import shutil
import struct
import subprocess
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, TEXT, save_model

import attention_toy as toy
import gpt

TEMPLATE = (ROOT / "data" / "page.html").read_text(encoding="utf-8")
NODE = shutil.which("node")
EVIL = '</script><script>alert(1)</script><!--<script>\u2028\u2029&amp;"\'`${1}\\ \r<img src=x onerror=alert(1)>\n'

pytestmark = pytest.mark.usefixtures("short_baseline")


def data_in(page):
    return json.loads(re.search('<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)[1])


def page_of(run_toy, name, **options):
    """Keep a model, and write its page -> model, tokenizer, path."""
    model, tokenizer = save_model(name, **options)
    code, out, err = run_toy("--page", name, "--text", "cats.txt")
    assert (code, err) == (0, "") and out.count("\n") == 1
    return model, tokenizer, gpt.DATA / f"{name}.html"


# The file


def test_the_page_holds_the_run(run_toy):
    model, tokenizer, path = page_of(run_toy, "small")
    page = path.read_text(encoding="utf-8")
    data = data_in(page)
    assert data.keys() == {"name", "config", "vocabulary", "parameter_count", "bigram", "parameters", "step", "history",
                           "characters", "text_name", "text_begins", "held_out", "texts"}
    assert data["name"] == "small" and data["vocabulary"] == list(tokenizer.vocabulary)
    assert gpt.Config(**data["config"]) == model.config and data["history"][0]["val_loss"] == 2.25
    assert data["parameters"].keys() == model.state_dict().keys()
    for name, p in model.state_dict().items():
        numbers = struct.unpack(f"<{p.numel()}e", base64.b64decode(data["parameters"][name]))
        assert torch.equal(torch.tensor(numbers).view(p.shape), p.half().float())
    assert (data["characters"], data["text_begins"]) == (len(TEXT), TEXT[:60])
    assert "".join(data["held_out"]) == gpt.split(TEXT)[1]
    assert len(data["texts"]) == 3
    for ids, logits in data["texts"]:
        assert tokenizer.decode(ids) in gpt.split(TEXT)[1] and len(ids) == 8            # the context
        logits = torch.tensor(struct.unpack(f"<{8 * tokenizer.vocab_size}f", base64.b64decode(logits)))
        torch.testing.assert_close(logits.view(1, 8, -1), model(torch.tensor([ids]))[0])


def test_the_bigram_is_the_one_that_a_run_trains(run_toy):
    model, tokenizer, path = page_of(run_toy, "small")
    bigram = gpt.BigramLanguageModel(tokenizer.vocab_size)
    train_data, val_data = (gpt.encode_text(part, tokenizer) for part in gpt.split(TEXT))
    *_, state = gpt.train(bigram, train_data, val_data, replace(model.config, **gpt.BIGRAM_TRAINING))
    data = data_in(path.read_text(encoding="utf-8"))["bigram"]
    numbers = struct.unpack(f"<{tokenizer.vocab_size**2}e", base64.b64decode(data["table"]))
    assert numbers == tuple(bigram.table.weight.detach().half().flatten().tolist())
    assert data["loss"] == state.val_loss


def test_without_a_name_it_is_the_latest_run_and_again_it_writes_over_the_page(run_toy):
    save_model("old")
    save_model("new")
    for _ in range(2):
        code, out, err = run_toy("--page", "--text", "cats.txt")
        assert (code, err) == (0, "")
        assert re.fullmatch(r"data/new\.html, 0\.\d MB: open it in a browser\n", out)
    assert [path.name for path in gpt.DATA.glob("*.html*")] == ["new.html"]


def test_a_large_vocabulary_has_no_bigram(run_toy, monkeypatch):
    monkeypatch.setattr(toy, "LARGEST_BIGRAM", 3)
    *_, path = page_of(run_toy, "small")
    assert data_in(path.read_text(encoding="utf-8"))["bigram"] is None


def test_the_template_fetches_nothing_and_takes_text_for_text():
    assert not re.search(r"https?:|www\.|//\w+\.|url\(|@import|\bsrc\b|\bimport\(|fetch\(|XMLHttp|WebSocket|Beacon", TEMPLATE)
    assert re.findall(r'href="([^"]*)"', TEMPLATE) == ["data:,"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|\bon\w+=", TEMPLATE)


def test_each_element_that_the_page_looks_up_is_there_once():
    markup, *scripts = re.split("<script", TEMPLATE)
    ids = re.findall(r'\bid="([^"]+)"', markup)
    assert len(set(ids)) == len(ids)
    looked_up = set(re.findall(r'\$\("([\w-]+)"\)', "".join(scripts))) - {"run"}          # that is a script
    assert len(looked_up) > 30 and looked_up <= set(ids)
    assert TEMPLATE.count("\n") <= 1091


def test_a_hostile_text_and_name_are_inert(run_toy, in_tmp):
    name = "<script>alert(1)&\"'"
    (in_tmp / "evil.txt").write_text(EVIL * 20, encoding="utf-8", newline="")
    text = gpt.load_text(in_tmp / "evil.txt")[1]
    save_model(name, text)
    code, out, err = run_toy("--page", name, "--text", "evil.txt")
    assert (code, err) == (0, "")
    page = (gpt.DATA / f"{name}.html").read_bytes().decode()
    data = re.search('<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)[1]
    assert data.isascii() and "<" not in data
    assert page.replace(data, '"RUN"') == TEMPLATE                      # and nothing else has changed
    assert json.loads(data)["name"] == name and set(json.loads(data)["vocabulary"]) == set(text)


# What is refused, in one line


@pytest.mark.parametrize("changes, says", [
    (dict(evaluated=False), "not evaluated yet"),
    (dict(tokenizer=gpt.BPETokenizer([(b"a", b"t")])), "subwords"),
    (dict(n_embd=512, n_layer=4), "12 million"),
    (dict(text=TEXT + "more"), "add its --text")])
def test_what_a_page_cannot_show_is_refused(run_toy, changes, says):
    save_model("small", **changes)
    code, out, err = run_toy("--page", "small", "--text", "cats.txt")
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err
    assert not list(gpt.DATA.glob("*.html*"))


def test_a_parameter_that_is_too_large_is_refused(run_toy):
    model, tokenizer = save_model("small")
    model.norm.weight.data[0] = 1e5
    state = gpt.TrainState(gpt.build_optimizer(model, model.config), best=model.state_dict(), history=[
        {"step": 3, "train_loss": 2.5, "val_loss": 2.25, "learning_rate": 0.1}])
    gpt.save_checkpoint("small", TEXT, model, tokenizer, state)
    code, out, err = run_toy("--page", "small", "--text", "cats.txt")
    assert (code, out, err.count("\n")) == (2, "", 1) and "16 bits" in err
    assert not list(gpt.DATA.glob("*.html*"))


@pytest.mark.parametrize("arguments, says", [
    (["--page", "nowhere"], "there is no run nowhere"), (["--page", ROOT / "tests" / "gpt2"], "GPT-2"),
    (["--page", "--quick"], "--text alone"), (["--page", "--model", "small"], "--text alone"),
    (["--page", "--prompt", "a"], "--text alone"), (["--page", "cats.txt"], "cats.txt")])
def test_options_that_do_not_fit_are_refused(run_toy, arguments, says):
    save_model("small")
    code, out, err = run_toy(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err


def test_no_other_file_is_written_over(run_toy, in_tmp):
    save_model("my")
    (gpt.DATA / "my.html").write_text(TEXT, encoding="utf-8")           # the text that it was trained on
    code, out, err = run_toy("--page", "my", "--text", "data/my.html")
    assert (code, out, err.count("\n")) == (2, "", 1) and "another file" in err
    assert (gpt.DATA / "my.html").read_text(encoding="utf-8") == TEXT
    save_model("page")
    (gpt.DATA / "page.html").symlink_to(ROOT / "data" / "page.html")    # as in the project's own folder
    code, out, err = run_toy("--page", "page", "--text", "cats.txt")
    assert code == 2 and "another file" in err
    assert (ROOT / "data" / "page.html").read_text(encoding="utf-8") == TEMPLATE


# What the page computes: its script "model" runs in node, without a browser

with_node = pytest.mark.skipif(not NODE, reason="node is not installed")
HARNESS = """
const page = require("fs").readFileSync(process.argv[1], "utf8");
const script = id => page.split(new RegExp(`<script[^>]*id="${id}">`))[1].split("</script>")[0];
const run = JSON.parse(script("run"));
const code = script("model") + "\\nconst gpt = loadModel(run.config, run.parameters);\\nreturn " + process.argv[2];
const numbers = (key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value;
console.log(JSON.stringify(new Function("run", code)(run), numbers));
"""


def in_page(path, expression):
    """The value of a JavaScript expression, which can use the functions of the page, `run` and `gpt`."""
    done = subprocess.run([NODE, "-e", HARNESS, path, expression], capture_output=True, text=True, encoding="utf-8",
                          timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@with_node
@pytest.mark.parametrize("changes", [
    dict(), dict(bias=False), dict(tie_weights=True), dict(position="sinusoidal"), dict(position="sinusoidal", bias=False),
    dict(position="rotary"), dict(position="rotary", bias=False, tie_weights=True, n_head=8),
    dict(block_size=1, n_layer=1)], ids=str)
def test_the_page_computes_what_pytorch_computes(run_toy, changes):
    model, tokenizer, path = page_of(run_toy, "small", **changes)
    logits, checked, cached, parts, weights, greedy = in_page(path, """(() => {
        const ids = run.texts[0][0], cache = newCache(gpt.config), some = newCache(gpt.config), writer = stream(
            gpt, ids.slice(0, 1), {temperature: 0}, randomNumbers(1));
        return [forward(gpt, ids),
                run.texts.map(([ids, logits]) => forward(gpt, ids).map((logit, i) => logit - floatsOf(logits)[i])),
                ids.flatMap(token => [...forward(gpt, [token], cache)]),
                [ids.slice(0, 3), ids.slice(3)].filter(part => part.length).flatMap(part => [...forward(gpt, part, some)]),
                cache.layers.map(layer => layer.weights),
                Array.from({length: 30}, () => writer.next().value.token)];
    })()""")
    ids = data_in(path.read_text(encoding="utf-8"))["texts"][0][0]
    expected = model(torch.tensor([ids]))[0].flatten()
    assert expected.std() > 0.5
    torch.testing.assert_close(torch.tensor(logits), expected, atol=2e-2, rtol=0)
    assert len(checked) == 3 and max(abs(difference) for row in checked for difference in row) < 2e-2
    assert cached == logits and parts == logits
    T = len(ids)
    for layer, theirs in zip(toy.weights_of_all_heads(model, torch.tensor([ids])), weights):
        assert len(theirs) == T * model.config.n_head
        for t in range(T):
            rows = torch.tensor(theirs[t * model.config.n_head:(t + 1) * model.config.n_head], dtype=torch.float32)
            torch.testing.assert_close(rows, layer[0, :, t, :t + 1], atol=1e-2, rtol=0)
    model.load_state_dict({name: p.half().float() for name, p in model.state_dict().items()})
    written = gpt.generate(model, torch.tensor([ids[:1]]), 30, temperature=0)[0, 1:]
    assert greedy == written.tolist()                                   # past the context, thrice


@with_node
def test_numbers_of_16_bits_and_gelu_are_exact(run_toy):
    *_, path = page_of(run_toy, "small")
    bits = [i for i in range(0, 2**16, 5) if i >> 10 & 31 != 31]                        # all but inf and nan
    packed = struct.pack(f"<{len(bits)}H", *bits)
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    numbers, gelu = in_page(path, f'[halvesOf("{base64.b64encode(packed).decode()}"), {x.tolist()}.map(gelu)]')
    assert numbers == list(struct.unpack(f"<{len(bits)}e", packed))
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(torch.tensor(gelu, dtype=torch.float64), expected, atol=1e-9, rtol=0)


@with_node
def test_sampling_parameters_do_what_they_do_in_gpt(run_toy):
    *_, path = page_of(run_toy, "small")
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
def test_it_draws_with_these_probabilities_and_the_same_for_the_same_seed(run_toy):
    *_, tokenizer, path = page_of(run_toy, "small")
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
