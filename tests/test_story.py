"""The story, all that stands above the appendix in gpt.py, is a whole program; and it is what `python gpt.py` runs."""

import builtins
import contextlib
import io
import os
import re
import subprocess
import sys
import symtable

import pytest
import torch
from conftest import ROOT, TEXT, chdir, main
from test_commands import assert_same_run, files, shorten

import bigram
import gpt

WHOLE = (ROOT / "gpt.py").read_text(encoding="utf-8")
STORY = WHOLE[:WHOLE.index("\n# %% Appendix") + 1]
SMALL = dict(block_size=16, n_layer=1, n_head=2, n_embd=16, dropout=0.1, max_steps=40, eval_interval=15)
OPTIONS = [word for name, value in SMALL.items() for word in (f"--{name}", value)]


def without_times(output):
    """What a run prints, but not the seconds that it took: they end the rows of the table."""
    return re.sub(r"(?<=\d\.\d\d) +\d+\.\d$", "", output, flags=re.MULTILINE)


def test_the_story_and_the_file_keep_their_limits():
    assert STORY.count("\n") <= 890
    assert WHOLE.count("\n") <= 1520
    assert [line for line in WHOLE.split("\n") if len(line) > 100] == []


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
def ran(tmp_path_factory):
    """A folder in which `run` has trained a small model, and what it printed."""
    folder, output = tmp_path_factory.mktemp("ran"), io.StringIO()
    torch.set_flush_denormal(True)                      # as the command line does
    with pytest.MonkeyPatch.context() as patch, chdir(folder), contextlib.redirect_stdout(output):
        patch.setitem(gpt.BIGRAM_TRAINING, "max_steps", 5)
        gpt.run("cats", TEXT, gpt.Config(**SMALL))
    return folder, output.getvalue()


@pytest.fixture
def cats(in_tmp, short_baseline):
    """The current folder, with the same text in a file."""
    (in_tmp / "cats.txt").write_text(TEXT, encoding="utf-8")
    return in_tmp


def test_cut_off_above_the_appendix_it_trains_shows_and_keeps(ran, tmp_path):
    (tmp_path / "story.py").write_text(f"""{STORY}
torch.set_flush_denormal(True)
BIGRAM_TRAINING["max_steps"] = 5
run("cats", {TEXT!r}, Config(**{SMALL}))
""", encoding="utf-8")
    unreachable = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy")}
    done = subprocess.run([sys.executable, "story.py"], cwd=tmp_path, env={**os.environ, **unreachable}, timeout=80,
                          capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert files(tmp_path) == ["cats-bigram.txt", "cats-gpt.txt", "cats-text.txt", "cats.pt"]
    steps = [line.split("  ")[0] for line in done.stdout.splitlines() if line.startswith("step ")]
    assert steps == ["step 15", "step 30", "step 40"]
    rows = done.stdout[done.stdout.index("\nmodel "):].splitlines()[2:4]
    assert [row.split()[0] for row in rows] == ["bigram", "GPT"]
    assert without_times(done.stdout) == without_times(ran[1])
    assert_same_run(tmp_path, ran[0])                   # what stands below has changed nothing


def test_the_command_line_runs_the_same_and_only_adds_to_it(ran, cats):
    code, output, error = main("--text", "cats.txt", "--no-head_start", *OPTIONS)
    assert (code, error) == (0, "")
    output, last = output[:-1].rsplit("\n", 1)
    assert without_times(output + "\n") == without_times(ran[1]) and last.startswith("Explore:  ")
    assert_same_run(cats, ran[0])
    assert files(cats) == [*files(ran[0])[:3], "cats.csv", "cats.pt"]


def test_the_head_start_is_the_only_other_thing_that_the_command_line_adds(cats, monkeypatch):
    shorten(monkeypatch)
    init_parameters = gpt.GPT.init_parameters

    def with_head_start(model):
        init_parameters(model)
        gpt.head_start(model)

    assert main("--text", "cats.txt", *OPTIONS)[0] == 0
    (cats / "other").mkdir()
    monkeypatch.chdir(cats / "other")
    monkeypatch.setattr(gpt.GPT, "init_parameters", with_head_start)
    gpt.run("cats", TEXT, gpt.Config(**SMALL))
    assert_same_run(cats, cats / "other")


def test_run_returns_what_it_has_made(in_tmp, monkeypatch):
    shorten(monkeypatch)
    baseline, model, tokenizer, state = gpt.run("cats", TEXT, gpt.Config(**SMALL))
    assert isinstance(baseline, gpt.BigramLanguageModel) and tokenizer.decode(tokenizer.encode("cat")) == "cat"
    assert state.step == 40 and all(torch.equal(p, state.best[name]) for name, p in model.state_dict().items())
    loaded, again = gpt.load_checkpoint("data/cats.pt")
    assert all(torch.equal(p, loaded.state_dict()[name]) for name, p in model.state_dict().items())
    assert again.vocabulary == tokenizer.vocabulary


def test_the_lines_to_be_diffed_are_those_that_are_printed(ran):
    folder, printed = ran
    contents = [(folder / "data" / f"cats-{ending}.txt").read_text() for ending in ("text", "bigram", "gpt")]
    assert all(content.endswith("\n") and content.count("\n") == contents[0].count("\n") for content in contents)
    lines = [content.split("\n")[:-1] for content in contents]
    assert 15 <= len(lines[0]) <= 20 and all(0 < len(line) <= 37 for column in lines for line in column)
    assert [row for row in printed.splitlines() if " | " in row] == [
        f"{left:<37} | {right}".rstrip() for left, right in zip(*lines[1:])]
    held_out = TEXT[len(TEXT) * 9 // 10:].split("\n")
    for text, left, right in zip(*lines):
        assert any(line.startswith(text) for line in held_out)
        beginning = min(12, (len(text) + 1) // 2)
        assert text[:beginning] == left[:beginning] == right[:beginning]
    assert printed.splitlines()[-1] == "Compare:  diff -y -W 79 data/cats-bigram.txt data/cats-gpt.txt"


def test_bigram_py_writes_the_same_file_to_the_byte(ran, cats):
    code, output, error = main("--text", "cats.txt", program=lambda arguments: gpt.run_cleanly(
        "bigram.py", bigram.command, arguments))
    assert (code, error) == (0, "")
    assert "cats-bigram.txt" in files(cats)
    for name in files(cats):
        assert (cats / "data" / name).read_bytes() == (ran[0] / "data" / name).read_bytes()


def test_without_a_bigram_the_lines_are_compared_with_the_text(cats, monkeypatch):
    monkeypatch.setattr(gpt, "LARGEST_BIGRAM", 3)
    code, output, _ = main("--text", "cats.txt", *OPTIONS)
    assert code == 0 and "finished by GPT:" in output
    assert "\nCompare:  diff -y -W 79 data/cats-text.txt data/cats-gpt.txt\n" in output
    assert files(cats) == ["cats-gpt.txt", "cats-text.txt", "cats.csv", "cats.pt"]
