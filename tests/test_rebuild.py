"""rebuild.py: the real files are right, usual mistakes are named, learners may write Python as they like."""

import ast
import copy
import itertools
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, main

import rebuild

BY_NAME = {e.name: e for e in rebuild.EXERCISES}
NUMBERED = [pytest.param(e, id=f"{e.number} {e.name}") for e in rebuild.EXERCISES]

OTHER_ANSWERS = {       # right, too
    "SHAPE_OF_A_SUM": "SHAPE_OF_A_SUM = list((torch.ones(4, 1) + torch.ones(3)).shape)",
    "weighted_sum": "def weighted_sum(weights, x): return weights @ x",
    "FIRST_ROW": "FIRST_ROW = [1, 2]",
    "pick": "def pick(table, ids): return table.gather(1, ids[:, None])[:, 0]",
    "get_batch": """
def get_batch(data, step, config):
    T = config.block_size
    if len(data) < T + 1:
        raise ValueError("too short")
    torch.manual_seed(1_000_003 * config.seed + step)
    starts = torch.randint(0, len(data) - T, (config.batch_size, 1))
    rows = [data[i:i + T + 1].long() for i in starts[:, 0].tolist()]
    return torch.stack([row[:T] for row in rows]), torch.stack([row[1:] for row in rows])""",
    "softmax_by_hand": "def softmax_by_hand(x): return (x - x.logsumexp(-1)[..., None]).exp()",
    "FIRST_LOSS": "FIRST_LOSS = 4.17",
    "count_pairs": """
def count_pairs(tokens, vocab_size):
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.int64)
    for a, b in zip(tokens.tolist(), tokens.tolist()[1:]):
        counts[a, b] += 1
    return counts""",
    "gradient_by_hand": """
def gradient_by_hand(table, idx, targets):
    V, idx = len(table), idx.reshape(-1)
    errors = table.softmax(1)[idx] - F.one_hot(targets.reshape(-1), V)
    return F.one_hot(idx, V).float().T @ errors / idx.numel()""",
    "mean_by_loop": "def mean_by_loop(x): return torch.stack([x[:, :t].mean(1) for t in range(1, x.shape[1] + 1)], 1)",
    "attention": """
def attention(q, k, v):
    scores = torch.einsum("...ic,...jc->...ij", q, k) * q.shape[-1] ** -0.5
    scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
    return scores.softmax(-1) @ v""",
    "split_heads": "def split_heads(x, n_head): return x.unflatten(2, (n_head, -1)).permute(0, 2, 1, 3)",
    "layer_norm_by_hand": """
def layer_norm_by_hand(x, weight, bias):
    return (x - x.mean(-1)[..., None]) * (x.var(-1, correction=0)[..., None] + 1e-5) ** -0.5 * weight + bias""",
    "generate": """
def generate(model, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None):
    assert_something = idx.shape[1] or int("x")
    was_training = model.training
    model.eval()
    for i in range(max_new_tokens):
        with torch.no_grad():
            p = next_token_probabilities(model(idx[:, -model.block_size:])[0][:, -1], temperature, top_k, top_p)
        idx = torch.hstack((idx, p.multinomial(1, generator=generator)))
    model.train(was_training)
    return idx""",
    "attention_backward": """
def attention_backward(dy, q, k, v):
    weights = attention(q, k, torch.eye(len(q)))
    d = dy @ v.T
    d = weights * d - weights * (weights * d).sum(1)[:, None]
    return d @ k / q.shape[1] ** 0.5, d.T @ q / q.shape[1] ** 0.5, weights.T @ dy""",
}


def answer(file, name, source, beside=""):
    """The text of a real file, with this in place of a definition, and something beside it."""
    tree = rebuild.with_node(rebuild.real(file), name, ast.parse(f"{beside}\n{source}"))
    return ast.unparse(tree)          # (a module within a module is written as its lines)


def judged(name, source, **more):
    e = BY_NAME[name]
    return rebuild.judge(e, answer(e.file, name, source, **more), str(e.path))


@pytest.mark.parametrize("e", NUMBERED)
def test_the_real_one_is_right_and_each_mistake_is_another(e):
    wanted = rebuild.outcomes(e, rebuild.real(e.file))
    assert [isinstance(value, rebuild.Raised) for value in wanted] == [e.raises(line) for line in e.lines]
    assert not e.is_prediction or e.name.isupper()
    assert rebuild.judge(e, rebuild.source_of(e.file), str(e.path))[0] == f"done: {e.why}"
    assert 2 <= len(e.mistakes) <= 3
    found = {sentence: rebuild.outcomes(e, rebuild.by_mistake(e, (sentence, *change)))
             for sentence, *change in e.mistakes}
    assert not any(str(value).startswith("NameError") for values in found.values() for value in values)
    for (one, a), (other, b) in itertools.combinations({"": wanted, **found}.items(), 2):
        assert not rebuild.all_same(a, b), f"not told apart: {one!r} and {other!r}"


@pytest.mark.parametrize("name", ["FIRST_LOSS", "attention", "BigramLanguageModel.forward", "gpt_by_hand"])
def test_a_usual_mistake_gets_its_sentence_and_the_trial_that_shows_it(name):
    e = BY_NAME[name]
    for mistake in e.mistakes:
        state, more = rebuild.judge(e, ast.unparse(rebuild.by_mistake(e, mistake)), "my.py")
        assert state == f"wrong: {mistake[0]}"
        assert more == "" if e.is_prediction else "\n>>> from my_gpt import *\n" in more


@pytest.mark.parametrize("name", OTHER_ANSWERS)
def test_other_right_answers_are_right(name):
    assert judged(name, OTHER_ANSWERS[name])[0].startswith("done")


def test_what_was_to_be_written_is_named():
    state, _ = judged("softmax_by_hand", "def softmax_by_hand(logits): return F.softmax(logits, -1)")
    assert state == "done: right, but softmax does what you were to write"


@pytest.mark.parametrize("source, words", [
    ("def pick(table, ids):\n    return table[0 ^ 1.5]", "my_gpt.py, line "),
    ("def pick(table, ids):\n    return table[0 ^ 1.5]", "a power is **"),
    ("def pick(table, ids): print(table)", "is there a return?"),
    ("def pick(table, ids): return table.double()[range(len(ids)), ids]", "gives something else")])
def test_a_mistake_that_nobody_thought_of_is_described(source, words):
    state, more = judged("pick", source)
    assert state.startswith("wrong: ") and words in state
    assert ">>> pick(torch" in more and "\nyours\n" in more and "\nwanted\n" in more


def test_of_several_results_those_that_differ_are_shown():
    source = "def linear_backward(dy, x, weight): return dy @ weight, dy.T @ x, dy.sum(dim=1)"
    assert re.findall("(?m)^(yours|wanted)(.*)", judged("linear_backward", source)[1]) == [
        ("yours", ", part 3 of 3"), ("wanted", ", part 3 of 3")]
    assert "a return, or a yield?" in judged("gpt_by_hand", "def gpt_by_hand(config): GPT(config)")[0]


def test_local_variables_may_have_any_name():
    assert judged("linear_backward", """
def linear_backward(dy, x, weight):
    grad = dy @ weight
    return grad, dy.T @ x, dy.sum(0)""") == ("done: ", "")


def test_an_error_is_where_python_finds_it(in_tmp):
    text = answer("gpt", "pick", "def pick(table, ids):\n    return helper(table)",
                  "def helper(x):\n    return x[9, 9, 9]")
    line = next(i for i, line in enumerate(text.split("\n"), 1) if "x[9, 9, 9]" in line)
    assert f"wrong: my_gpt.py, line {line}: IndexError" in rebuild.judge(BY_NAME["pick"], text, "my_gpt.py")[0]


LEARNERS = {        # name: (what they wrote, what stands beside it)
    "an annotated value": ("FIRST_ROW", "FIRST_ROW: tuple = (1, 2)", ""),
    "several targets": ("FIRST_ROW", "MINE = FIRST_ROW = 1, 2", ""),
    "another name for an import": ("softmax_by_hand", "def softmax_by_hand(x): return t.softmax(x, -1)",
                                   "import torch as t"),
    "try around an import": ("pick", "def pick(table, ids): return table[range(len(ids)), ids]",
                             "try:\n    import numpy as np\nexcept ImportError:\n    np = None"),
    "a helper beside a function": ("pick", "def pick(table, ids): return rows(table)[range(len(ids)), ids]",
                                   "def rows(x):\n    return x"),
    "a helper beside a method": ("GPT.forward", """
def forward(self, idx, targets=None):
    if idx.shape[1] > self.block_size:
        raise ValueError
    logits = self.through(idx)
    return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())""", """
def through(self, idx):
    x = self.dropout(self.embed(idx))
    for block in self.blocks:
        x = block(x)
    return self.lm_head(self.ln_f(x))"""),
    "a decorator": ("pick", "@forwards\ndef pick(table, ids): return table[range(len(ids)), ids]",
                    "def forwards(f):\n    return lambda *given: f(*given)"),
    "a dataclass": ("pick", "def pick(table, ids): return Both(table, ids).picked()", """
@dataclass
class Both:
    table: torch.Tensor
    ids: torch.Tensor
    def picked(self):
        return self.table[range(len(self.ids)), self.ids]"""),
    "a lambda": ("pick", "pick = lambda table, ids: table[range(len(ids)), ids]", ""),
    "a function in an if": ("pick", "if True:\n    def pick(table, ids): return table[range(len(ids)), ids]", "")}


@pytest.mark.parametrize("how", LEARNERS)
def test_a_learners_file_is_a_python_file(how, in_tmp):
    name, source, beside = LEARNERS[how]
    e = BY_NAME[name]
    text = answer(e.file, name, source, beside)
    e.path.write_text(text)
    rebuild.learners.cache_clear()
    assert rebuild.check_one(e)[0].startswith("done")
    other = BY_NAME["attention"]                        # and the others are judged as before
    assert rebuild.judge(other, text, "my_gpt.py")[0] == "done: "


@pytest.mark.parametrize("name, change", [
    ("learning_rate_at", ("max_steps: int = 3000", "max_steps: int = 500")),
    ("beam_search", ("    block_size = 1", "    pass")),
    ("CausalSelfAttention.forward", ("# %% 6.", "def split_heads(x, n): return x\n\n# %% 6.")),
    ("gpt_by_hand", ("class LinearByHand(nn.Module)", "class LinearByHand(nn.Linear)")),
    ("pick", ("# %% 6.", "import helpers\nhere = __file__\n# %% 6."))])
def test_what_else_a_learner_changes_has_no_part_in_it(in_tmp, monkeypatch, name, change):
    monkeypatch.syspath_prepend(in_tmp)
    (in_tmp / "helpers.py").write_text("x = 1")
    text = rebuild.source_of("gpt")
    assert change[0] in text
    state, more = rebuild.judge(BY_NAME[name], text.replace(*change), "my_gpt.py")
    assert state == "done: ", more


def test_an_error_of_the_same_kind_is_not_a_usual_mistake():
    e = BY_NAME["LinearByHand"]
    text = rebuild.source_of("gpt").replace("y = x @ self.weight.T ", "y = self.weight @ x ")
    assert "transposed" not in rebuild.judge(e, text, "my_gpt.py")[0]
    assert "done" in judged("CharTokenizer.encode", """
def encode(self, text):
    try:
        return [self.ids[c] for c in text]
    except KeyError:
        raise UnicodeError("a subclass of ValueError")""")[0]


def test_where_long_results_differ_is_said():
    more = judged("attention", """
def attention(q, k, v):
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    y[..., -1, -1] += 0.0002
    return y""")[1]
    assert re.search(r"at \[2, 2\]: \S+, not \S+$", more)


def test_all_other_functions_are_the_real_ones():
    text = answer("gpt", "attention", "def attention(q, k, v): return v")
    text = re.sub(r"def split_heads\(x, n_head\):(?s:.*?)\n\n", "def split_heads(x, n_head): return None\n\n", text)
    for name, state in {"CausalSelfAttention.forward": "done: ", "attention": "wrong", "split_heads": "wrong"}.items():
        assert rebuild.judge(BY_NAME[name], text, "my_gpt.py")[0].startswith(state)


def test_no_name_of_a_local_variable_is_needed(monkeypatch):
    """Each local variable of gpt.py gets another name, and all mistakes still fit."""
    tree = copy.deepcopy(rebuild.real("gpt"))
    story = ast.parse((ROOT / "gpt.py").read_text(encoding="utf-8"))
    count = 0
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
        owner = next((node.name for node in classes if function in node.body), "")
        if rebuild.find(story, f"{owner}.{function.name}".lstrip(".")) is None:
            continue                                    # a part by hand
        parameters = {argument.arg for argument in ast.walk(function) if isinstance(argument, ast.arg)}
        names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
        stored = {node.id for node in names if isinstance(node.ctx, ast.Store)} - parameters
        count += len(stored)
        for node in names:
            node.id += "_renamed" * (node.id in stored)
    assert count > 80
    monkeypatch.setattr(rebuild, "real", lambda file: tree)
    for e in (e for e in rebuild.EXERCISES if e.file == "gpt"):
        for mistake in e.mistakes:
            rebuild.by_mistake(e, mistake)


def test_a_mistake_that_no_longer_fits_says_so():
    with pytest.raises(ValueError, match="in attention of gpt.py there is no `_a.no_such` any more, which the mistake"):
        rebuild.by_mistake(BY_NAME["attention"], ("a sentence", "_a.no_such", "_a"))


# The files and the command


def rebuild_command(*arguments):
    return main(*arguments, program=rebuild.main)


@pytest.fixture
def holes(in_tmp):
    """The current folder, with the files with holes in it."""
    for file in ("gpt", "bigram", "attention_toy"):
        (in_tmp / f"my_{file}.py").write_text(rebuild.with_holes(file), encoding="utf-8")
    return in_tmp


def solve(folder, *names):
    """Fill these holes with the real ones."""
    for name in names:
        e = BY_NAME[name]
        tree = ast.parse((folder / e.path).read_text(encoding="utf-8"))
        tree = rebuild.with_node(tree, name, rebuild.find(rebuild.real(e.file), name))
        (folder / e.path).write_text(ast.unparse(tree), encoding="utf-8")


def test_files_are_written_once_and_every_hole_is_one(in_tmp):
    code, output, error = rebuild_command()
    assert (code, error) == (1, "") and output.count("is written") == 3
    assert "\n0 of 45 are done. Next is exercise 1, " in output
    assert max(map(len, output.splitlines())) < 80
    holes = [(e.path, e.path.read_text(encoding="utf-8").index(f"Exercise {e.number}:")) for e in rebuild.EXERCISES]
    for path in {path for path, _ in holes}:            # numbered as they stand in the file
        places = [at for other, at in holes if other == path]
        assert places == sorted(places)
    for e in rebuild.EXERCISES:
        text = e.path.read_text(encoding="utf-8")
        assert rebuild.is_hole(e, ast.parse(text)) and max(map(len, text.split("\n")[1:])) <= 100
    (in_tmp / "my_gpt.py").write_text("mine = 1\n")
    code, output, _ = rebuild_command(2)
    assert code == 1 and "there is no weighted_sum in my_gpt.py any more" in output
    assert (in_tmp / "my_gpt.py").read_text() == "mine = 1\n"


def test_between_the_holes_stands_the_story_line_by_line():
    """What has been taken out are functions, and what has been put in are parts by hand."""
    story = (ROOT / "gpt.py").read_text(encoding="utf-8").partition("# %% Appendix")[0].split("\n")
    spans = [rebuild.find(ast.parse("\n".join(story)), e.name) for e in rebuild.EXERCISES if e.file == "gpt"]
    lost = {i for node in spans if node for i in range(node.lineno - 1, node.end_lineno)}
    text = iter(rebuild.with_holes("gpt").split("\n"))
    for i, line in enumerate(story):
        assert i in lost or line in text, line                          # `in` goes on from where it found the last one


def test_what_one_exercise_leaves_behind_does_not_reach_the_next(holes):
    solve(holes, "linear_backward", "pick")
    path = holes / "my_gpt.py"
    path.write_text(path.read_text().replace("return table[", """
    torch.set_grad_enabled(False)
    F.linear = nn.Linear = None
    math.sqrt = len
    return table["""))
    code, output, error = rebuild_command("pick", "linear_backward", "weighted_sum")
    states = re.findall(r"line \d+ +(.*)", output)
    assert (code, error) == (1, "") and states == ["done", "done", "not yet"], output


def test_a_real_function_that_raises_is_never_right(monkeypatch):
    e = BY_NAME["pick"]
    monkeypatch.setattr(e, "lines", [*e.lines, "pick(None, None)"])
    with pytest.raises(RuntimeError, match="the real pick answers pick"):
        rebuild.judge(e, rebuild.source_of("gpt"), "my_gpt.py")


@pytest.mark.parametrize("line, words", [
    ("while True: pass", "no end after 1 seconds; is there an endless loop?"),
    ("import os; os._exit(0)", "ends the whole"),
    ("raise SystemExit", "ends the whole program"), ("input()", "EOFError"), ("breakpoint()", "wrong")])
def test_whatever_it_does_there_is_an_answer(holes, monkeypatch, line, words):
    monkeypatch.setattr(rebuild, "SECONDS", 1)
    path = holes / "my_gpt.py"
    path.write_text(path.read_text().replace('raise NotImplementedError("exercise 4, pick")', line))
    code, output, error = rebuild_command(4)
    assert (code, error) == (1, "") and words in output


@pytest.mark.parametrize("name, written", [
    ("pick", "def pick(\n    table, ids\n):\n    return 1\n"), ("pick", "@print\ndef pick(a, b): return 1 +\n"),
    ("FIRST_ROW", "FIRST_ROW: tuple = (\n    1,\n    2\n)\n"),
    ("LinearByHand", "class LinearByHand(nn.Module):\n    x = (\n"),
    ("CharTokenizer.encode", "    def encode(self, text):\n        return [\n            1]\n")])
def test_start_over_puts_one_hole_back_and_saves_the_file(holes, name, written):
    path, e = holes / "my_gpt.py", BY_NAME[name]
    empty = path.read_text(encoding="utf-8")
    first, end = rebuild.span(empty, e)
    lines = empty.split("\n")
    solved = "\n".join([*lines[:first], *written.rstrip().split("\n"), *lines[end:]])
    path.write_text(solved, encoding="utf-8")
    assert rebuild_command("--start-over", name)[0] == 0
    assert (holes / "my_gpt-1.py").read_text(encoding="utf-8") == solved
    assert path.read_text(encoding="utf-8").replace("@print\n", "") == empty


@pytest.mark.parametrize("content, words", [
    ("x = (\n", "my_gpt.py, line 1: "), ("x = 1\0\n", "my_gpt.py, line 1: "),
    (b"# coding: utf-8\n\xff\n", "not in UTF-8")])
def test_a_file_that_python_cannot_read_is_one_line(holes, content, words):
    (holes / "my_gpt.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, output, error = rebuild_command(1)
    assert (code, output, error.count("\n")) == (2, "", 1) and words in error


def test_bytes_before_the_text_and_other_encodings_count(holes):
    text = rebuild.with_holes("gpt").replace("FIRST_ROW = ...", "FIRST_ROW = (1, 2)  # \xe9")
    for content in (b"\xef\xbb\xbf" + text.encode(), ("# coding: latin-1\n" + text).encode("latin-1", "replace")):
        (holes / "my_gpt.py").write_bytes(content)
        assert rebuild_command("first_row")[0] == 0


def test_the_command_as_a_learner_types_it(command):
    """In a console that knows only ASCII, and with a mistake."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    def typed(*arguments):
        return subprocess.run([sys.executable, ROOT / "tests/rebuild.py", *arguments], cwd=command.folder,
                              env=environment, capture_output=True, text=True, timeout=80)
    assert "is written" in typed().stdout
    solve(command.folder, "pick", "linear_backward")
    path = command.folder / "my_gpt.py"
    path.write_text(path.read_text(encoding="utf-8").replace("return table[", "print('\xe9\u3042')\n    return table["),
                    encoding="utf-8")
    done = typed("4", "linear_backward", "FIRST_LOSS")
    assert (done.returncode, done.stderr) == (1, "") and done.stdout.count(" done\n") == 2 and "\\u3042" in done.stdout
    assert typed("--solution", "pick").stdout.startswith("def pick(table, ids):\n")
    wrong = typed("99")
    assert wrong.returncode == 2 and "there is no exercise 99; they go from 1 to 45" in wrong.stderr


def test_a_gpt_of_own_parts_trains_as_the_real_one(holes, capsys):
    (holes / "my_gpt.py").write_text(rebuild.source_of("gpt"))
    rebuild.learners.cache_clear()
    assert rebuild.train(steps=10) == 0
    output = capsys.readouterr().out
    assert "They are the same to four digits." in output and "You have written every part of a GPT" in output
    rows = re.findall(r"^ +\d+ +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", output, re.MULTILINE)
    assert len(rows) == 1 and rows[0][:2] == rows[0][2:]
    (holes / "my_gpt.py").write_text(rebuild.with_holes("gpt"))
    rebuild.learners.cache_clear()
    with pytest.raises(ValueError, match="has no part of a GPT yet; one is exercise 5, CharTokenizer.encode"):
        rebuild.train(steps=10)
    (holes / "my_gpt.py").write_text(rebuild.with_holes("gpt").replace(
        f'raise NotImplementedError("{rebuild.name_in_hole(BY_NAME["gelu_by_hand"])}")', "return x"))
    rebuild.learners.cache_clear()
    assert rebuild.train(steps=10) == 1
    output = capsys.readouterr().out
    assert "They differ" in output and "Still from gpt.py: CharTokenizer.encode" in output and "gelu_by" not in output


def test_parts_by_hand_agree_with_pytorch():
    import by_hand
    x, weight, bias = torch.randn(3, 4, 6, dtype=torch.float64), torch.randn(6).double(), torch.randn(6).double()
    close = torch.testing.assert_close
    close(by_hand.layer_norm_by_hand(x, weight, bias), torch.layer_norm(x, (6,), weight, bias))
    close(by_hand.gelu_by_hand(x), torch.nn.functional.gelu(x, approximate="tanh"))
    close(by_hand.softmax_by_hand(x), x.softmax(-1))
    table = by_hand.published_sinusoids(50, 8)
    close(table[7, 4:6], torch.tensor([math.sin(7 / 100), math.cos(7 / 100)]))
    x, weight, bias, dy = x[0], torch.randn(5, 6).double(), torch.randn(5).double(), torch.randn(4, 5).double()
    for leaf in x, weight, bias:
        leaf.requires_grad_()
    grads = torch.autograd.grad(torch.nn.functional.linear(x, weight, bias), (x, weight, bias), dy)
    close(by_hand.linear_backward(dy, x, weight), grads)
    gain, dy = torch.randn(6).double(), torch.randn(4, 6).double()
    close(by_hand.layer_norm_backward(dy, x, gain), *torch.autograd.grad(torch.layer_norm(x, (6,), gain), x, dy))
    targets = torch.tensor([0, 5, 5, 1])
    close(by_hand.cross_entropy_backward(x, targets),
          *torch.autograd.grad(torch.nn.functional.cross_entropy(x, targets), x))
    q, k, v = torch.randn(3, 4, 6).double().requires_grad_()
    y = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    close(by_hand.attention_backward(dy, q, k, v), torch.autograd.grad(y, (q, k, v), dy))
    w = torch.nn.Parameter(torch.randn(5))
    adam, mine, m, v = torch.optim.AdamW([w], lr=0.1, betas=(0.9, 0.99), weight_decay=0.3), w.detach().clone(), 0.0, 0.0
    for t in range(1, 5):
        w.grad = torch.randn(5)
        adam.step()
        mine, m, v = by_hand.adamw_by_hand(mine, w.grad, m, v, t, 0.1, 0.3)
        close(mine, w.detach())
