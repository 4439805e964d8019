"""The story, all that stands above the appendix in gpt.py: a whole program, whose examples tell the truth."""

import ast
import builtins
import doctest
import functools
import io
import math
import os
import re
import string
import subprocess
import symtable
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, TEXT, TINY_RUN, assert_same_tensors, chdir, files

import gpt

WHOLE = (ROOT / "gpt.py").read_text(encoding="utf-8")
STORY = WHOLE[:WHOLE.index("# %% Appendix")]

# The examples

BLOCKS = {STORY.count("\n", 0, block.start()): re.sub("^# ?", "", block[0], flags=re.MULTILINE)
          for block in re.finditer(r"^# >>> .*\n(?:# .*\n)*", STORY, re.MULTILINE)}        # {line, from 0: text}
CHAPTER_10 = STORY.count("\n", 0, STORY.index("# %% 10."))


def form(value):
    """The types in a Python value."""
    return [form(part) for part in value] if isinstance(value, (list, tuple)) else type(value)


class FormChecker(doctest.OutputChecker):
    """Compares the form of an output, not its letters and digits; where nothing is shown, all is well."""

    def check_output(self, want, got, optionflags):
        try:
            return not want or form(ast.literal_eval(want)) == form(ast.literal_eval(got))
        except (SyntaxError, ValueError):                   # it is no Python value, but a text
            return bool(got.strip())


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """All examples have run, in order, as one session: what doctest reports about each block, {line: str}."""
    names, reports = {}, {}
    with chdir(tmp_path_factory.mktemp("session")), torch.random.fork_rng():
        for line, block in BLOCKS.items():
            test = doctest.DocTestParser().get_doctest(block, {}, "gpt.py", str(ROOT / "gpt.py"), line)
            test.globs, checker, out = names, None, io.StringIO()
            if line > CHAPTER_10:                           # its text and its model would take minutes
                test.examples = [example for example in test.examples if "import *" not in example.source]
                names.update(load_shakespeare=lambda: f"{string.ascii_letters}{string.punctuation}\n{TEXT}",
                             Config=functools.partial(gpt.Config, **TINY_RUN))
                checker = FormChecker()
            doctest.DocTestRunner(checker, verbose=False).run(test, out=out.write, clear_globs=False)
            reports[line] = out.getvalue()
    return reports


@pytest.mark.parametrize("line", BLOCKS, ids=lambda line: f"line {line + 1}")
def test_an_example_shows_what_python_answers(reports, line):
    assert reports[line] == ""


def test_the_numbers_in_the_prose_are_true():
    logits = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0])
    q, k = torch.randn(2000, 1, 32, generator=torch.Generator().manual_seed(0)), torch.randn(
        2000, 64, 32, generator=torch.Generator().manual_seed(1))
    scores = (q @ k.transpose(1, 2)).squeeze(1)
    config, probs = gpt.Config(), logits.softmax(0)
    said = {
        "12.475": logits.exp().sum(), "0.2179": probs[1], "4.17": math.log(65), "17 times": math.exp(4 / math.sqrt(2)),
        "about 0.7": scores.softmax(1).amax(1).mean(), "about 0.1.": (scores / 32**0.5).softmax(1).amax(1).mean(),
        "2/6 ln(2) = 0.23": 2 / 6 * math.log(2), "ln(2) / 8 / 3 = 0.03": math.log(2) / 8 / 3,
        "589,824": config.n_layer * 12 * config.n_embd**2, "perplexity 12.1": math.exp(2.492),
        "perplexity 5.1": math.exp(1.631), "0, 0.59, 0.81, 0.89, 0.97": (probs.cumsum(0) - probs)[-1],
        "2.3 million": config.max_steps * config.batch_size * config.block_size / 1e6,
        "1.1 million": 1_115_394 / 1e6, "(0.2 - 1) / 3 = -0.2667": (0.2 - 1) / 3}
    for words, value in said.items():
        assert words in re.sub(r"\n# ?", " ", STORY), words
        number = re.findall(r"-?\d[\d,]*(?:\.\d+)?", words)[-1].replace(",", "")
        digits = len(number.partition(".")[2])
        assert round(float(value), digits) == float(number), (words, float(value))


# The program


def test_the_story_takes_no_name_from_below():
    def globals_of(table):
        for symbol in table.get_symbols():
            if table.get_type() == "module" or symbol.is_global():
                yield symbol.get_name()
        for child in table.get_children():
            yield from globals_of(child)

    table = symtable.symtable(STORY, "story", "exec")
    defined = {name for name in table.get_identifiers()
               if table.lookup(name).is_assigned() or table.lookup(name).is_imported()}
    assert {"Config", "GPT", "train", "generate", "run"} <= defined
    assert set(globals_of(table)) - defined <= set(dir(builtins))


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """The folder in which the story alone has trained what `trained` has, and what it printed."""
    folder = tmp_path_factory.mktemp("story")
    call = f"bigram, gpt, tokenizer = run('cats', {TEXT!r}, Config(**{TINY_RUN}))"
    (folder / "story.py").write_text(f"{STORY}\n{call}\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "story.py"], cwd=folder, capture_output=True, text=True, encoding="utf-8",
                          timeout=80)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


def test_what_you_read_is_what_runs(story, trained):
    """`python gpt.py` prints and writes the same, to the letter, and adds a checkpoint and a log."""
    assert story[1] == trained[1]
    assert files(story[0]) == ["cats-bigram.txt", "cats-gpt.txt"]
    for name in files(story[0]):
        assert (story[0] / "data" / name).read_bytes() == (trained[0] / "data" / name).read_bytes()


def test_the_pairs_that_are_printed_are_the_two_files_to_be_compared(story):
    folder, printed = story
    columns = [(folder / "data" / f"cats-{kind}.txt").read_text().split("\n") for kind in ("bigram", "gpt")]
    assert columns[0].pop() == columns[1].pop() == ""               # each file ends with a new line
    assert [row for row in printed.splitlines() if " | " in row] == [
        f"{left:<37} | {right}" for left, right in zip(*columns, strict=True)]
    lines = gpt.train_val_split(TEXT)[1].split("\n")[:-1]
    if len(lines[0]) <= 24:                                         # the split has cut it
        del lines[0]
    for line, left, right in zip(lines, *columns, strict=True):
        assert line[:12] == left[:12] == right[:12] and max(len(left), len(right)) <= 37
    assert printed.splitlines()[-1].endswith(' diff -y -W 79 "data/cats-bigram.txt" "data/cats-gpt.txt"')


def test_run_takes_other_parts_and_its_seed_decides_the_first_parameters(in_tmp):
    config = gpt.Config(block_size=8, n_layer=1, n_head=2, n_embd=8, max_steps=1, seed=3)
    tokenizer = gpt.BPETokenizer(gpt.train_bpe(TEXT, 270))
    bigram, model, same = gpt.run("cats", TEXT, config, tokenizer, gpt.RotaryGPT, lambda *_: [])
    assert same is tokenizer and not bigram.training and not model.training
    torch.manual_seed(3)
    assert_same_tensors(model.state_dict(), gpt.RotaryGPT(replace(config, vocab_size=270)).state_dict())
    for name in files(in_tmp):
        assert max(map(len, (gpt.DATA / name).read_text().split("\n"))) == 37      # cut: tokens are long


def shape(line):
    """What a line of a run looks like, whatever its numbers are, and the words of a pair."""
    return "a pair" if line[37:40] == " | " else re.sub(r" *\d[\d.,]*\b", " 0", line)


def test_the_listing_of_chapter_10_has_the_form_of_what_a_run_prints(story):
    listing = re.search(r"^(?:#.*\n)*#     bigram  step.*\n(?:#.*\n)*", STORY, re.MULTILINE)[0]
    lines = re.findall(r"^#     ((?:bigram|gpt|Both|\d).*|.* \| .*)$", listing, re.MULTILINE)
    shapes = [shape(line) for line in lines]
    assert set(shapes) <= set(map(shape, story[1].splitlines()))
    assert len(set(shapes)) == 7 and shapes.count("a pair") >= 6


IMPORT = """
import os, random, signal, sys, warnings, requests     # whose urllib3 has a filter of its own

def state():
    return {"filters": list(warnings.filters), "showwarning": warnings.showwarning, "arguments": sys.argv,
            "errors": sys.stdout.errors,
            "hooks": (sys.excepthook, sys.unraisablehook), "recursion": sys.getrecursionlimit(),
            "random": random.getstate(), "environment": dict(os.environ), "folder": (os.getcwd(), os.listdir()),
            "signals": {number: signal.getsignal(number) for number in signal.valid_signals()}}

before, after = state(), __import__("gpt") and state()
for name in before:
    assert before[name] == after[name], (name, before[name], after[name])

import torch                                            # its state must be that of a new process
assert torch.initial_seed() > 2**32                     # not one that somebody chose; and nothing was drawn
assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(torch.initial_seed()).get_state())
assert torch.get_default_dtype() == torch.float32 and torch.get_default_device().type == "cpu"
assert torch.is_grad_enabled() and not torch.are_deterministic_algorithms_enabled()
assert torch.tensor(1e-39) / 2 > 0                      # denormal numbers are kept
"""


def test_importing_gpt_changes_nothing_and_prints_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)
    assert (done.stderr, done.stdout, done.returncode) == ("", "", 0)
