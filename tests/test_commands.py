"""The appendix: the commands as a user types them, what they print, and the files that they leave."""

import contextlib
import csv
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import unicodedata
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TEXT, chdir, main, one_line

import gpt

TINY = ["--block_size", 16, "--n_layer", 1, "--n_head", 2, "--n_embd", 16, "--max_steps", 40, "--eval_interval", 15]
CATS = ["--text", "cats.txt", *TINY]
RESUME = ["--text", "cats.txt", "--resume"]
UNREACHABLE = "http://127.0.0.1:9/"
UNICODE_NAMES = pytest.mark.skipif(sys.getfilesystemencoding() == "ascii", reason="files have plain names here")


def files(folder):
    """The names of the files in its data/, sorted."""
    return sorted(path.name for path in (folder / "data").glob("*"))


def contents(folder):
    """{path: bytes} of all files in it."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def assert_same_tensors(one, other):
    assert one.keys() == other.keys() and all(torch.equal(torch.as_tensor(x), torch.as_tensor(other[name]))
                                              for name, x in one.items())


def assert_same_run(one, other, name="cats"):
    """In both folders, all that a run keeps is equal to the last bit: parameters, optimizer, losses, lines."""
    for ending in ("-text.txt", "-bigram.txt", "-gpt.txt"):
        assert (one / "data" / (name + ending)).read_bytes() == (other / "data" / (name + ending)).read_bytes()
    logs = [path.read_bytes() for folder in (one, other) if (path := folder / "data" / f"{name}.csv").exists()]
    assert logs[:1] == logs[1:] or len(logs) < 2
    ours, theirs = (torch.load(folder / "data" / f"{name}.pt", weights_only=True) for folder in (one, other))
    for saved in (ours, theirs):
        for name in ("seconds", "train_loss", "val_loss"):      # time differs, and the history has the losses
            del saved["state"][name]
    assert_same_tensors(ours.pop("parameters"), theirs.pop("parameters"))
    assert_same_tensors(ours["state"].pop("best"), theirs["state"].pop("best"))
    ours_kept, theirs_kept = ours["state"].pop("optimizer"), theirs["state"].pop("optimizer")
    assert ours_kept.keys() == theirs_kept.keys() and len(ours_kept) > 0
    for i in ours_kept:
        assert_same_tensors(ours_kept[i], theirs_kept[i])
    assert ours == theirs                                       # steps, history, config, vocabulary, text


def shorten(patch):
    """For tests that run all chapters, but are not about the bigram, or about what is written."""
    held_out_lines, complete = gpt.held_out_lines, gpt.complete
    patch.setitem(gpt.BIGRAM_TRAINING, "max_steps", 5)
    patch.setattr(gpt, "held_out_lines", lambda text: held_out_lines(text)[:3])
    patch.setattr(gpt, "complete", lambda model, tokenizer, prompt, n, *seed, **sampling: complete(
        model, tokenizer, prompt, min(n, 25), *seed, **sampling))


@pytest.fixture
def cats(in_tmp, monkeypatch):
    """The current folder, with a small text in it; there is no network."""
    shorten(monkeypatch)
    monkeypatch.setattr(gpt, "SHAKESPEARE_URL", UNREACHABLE)
    (in_tmp / "cats.txt").write_text(TEXT, encoding="utf-8")
    return in_tmp


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run of `python gpt.py` on a small text: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "cats.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        shorten(patch)
        code, output, error = main(*CATS)
    assert (code, error) == (0, "")
    return folder, output


@pytest.fixture
def copy(trained, cats):
    """The current folder, with a copy of that run in it."""
    (cats / "data").mkdir()
    for path in (trained[0] / "data").iterdir():
        (cats / "data" / path.name).write_bytes(path.read_bytes())
    return cats


# What a run prints and leaves


def test_a_run_tells_its_chapters_in_80_columns(trained):
    lines = trained[1].splitlines()
    titles = [line for line, below in zip(lines, lines[1:]) if below and set(below) == {"-"}]
    assert titles == ["1. Text", "2. Tokens", "3. Batches", "4. Bigram", "5 to 8. GPT", "9. Sampling", "10. The run"]
    sampled = lines[lines.index("9. Sampling"):lines.index("10. The run")]      # the model decides on these
    assert [line for line in lines if len(line) > 79 and line not in sampled] == []
    assert "\r" not in trained[1] and "\x1b" not in trained[1]
    assert [line.split("  ")[0] for line in lines if line.startswith("step ")] == ["step 15", "step 30", "step 40"]


def test_a_run_ends_with_a_table_that_is_true(trained):
    folder, output = trained
    heads, *rows = [line.split() for line in output[output.index("\nmodel "):].splitlines()[1:4]]
    assert heads == ["model", "parameters", "val_loss", "bits/char", "perplexity", "seconds"]
    assert [row[0] for row in rows] == ["bigram", "GPT"]
    model, tokenizer = gpt.load_checkpoint(folder / "data" / "cats.pt")
    assert [row[1] for row in rows] == [f"{len(set(TEXT)) ** 2:,}", f"{gpt.count_parameters(model):,}"]
    val_data = gpt.encode_text(gpt.split(TEXT)[1], tokenizer)
    assert float(rows[1][2]) == pytest.approx(gpt.evaluate(model, val_data), abs=1e-4)
    assert f"val {math.log(len(set(TEXT))):.4f} at first, {rows[0][2]} at the end" in output
    for loss, bits, perplexity, seconds in (map(float, row[2:]) for row in rows):
        assert bits == pytest.approx(loss / math.log(2), abs=1e-3)      # a token is a character here
        assert perplexity == pytest.approx(math.exp(loss), abs=0.01) and seconds >= 0


def test_a_run_leaves_its_files_and_a_log_of_its_losses(trained):
    folder, output = trained
    assert files(folder) == ["cats-bigram.txt", "cats-gpt.txt", "cats-text.txt", "cats.csv", "cats.pt"]
    rows = read_csv(folder / "data" / "cats.csv")
    assert [row["step"] for row in rows] == ["15", "30", "40"]
    for row in rows:
        rate = gpt.learning_rate_at(int(row["step"]) - 1, gpt.Config(max_steps=40))
        assert float(row["learning_rate"]) == pytest.approx(rate)
        assert f"step {row['step']}  train {float(row['train_loss']):.4f}  val {float(row['val_loss']):.4f}\n" in output
    history = gpt.read_checkpoint(folder / "data" / "cats.pt").state.history
    assert [{name: float(value) for name, value in row.items()} for row in rows] == history


@pytest.mark.parametrize("options", [["--tokenizer", "bpe", "--vocab_size", 280], ["--position", "rotary", "--no-bias"],
                                     ["--position", "sinusoidal", "--tie_weights"]])
def test_other_models_run_are_resumed_and_write(cats, options):
    assert main(*CATS, *options, "--max_steps", 20)[0] == 2             # max_steps is given twice
    assert main(*CATS[:-4], *options, "--max_steps", 20, "--eval_interval", 10)[0] == 0
    code, output, _ = main(*RESUME, "--max_steps", 25)
    assert code == 0 and "going on from step 20\n" in output and "step 25  train" in output
    model, _ = gpt.load_checkpoint("data/cats.pt")
    assert (model.lm_head.weight is model.token_embedding.weight) == ("--tie_weights" in options)
    assert main("sample", "--prompt", "The cat", "--tokens", 9)[0] == 0
    for name in files(cats)[:3]:
        lines = (cats / "data" / name).read_text(encoding="utf-8").split("\n")
        assert lines.pop() == "" and all(len(line) <= 37 for line in lines)


def test_with_no_network_the_manual_is_learned_under_its_own_name(cats):
    code, output, error = main(*TINY[:-4], "--max_steps", 3)
    assert (code, error) == (0, "")
    told = [line for line in output.splitlines() if "Tiny Shakespeare" in line]
    assert len(told) == 1 and "ConnectionError" in told[0]
    assert UNREACHABLE in told[0] and "data/tinyshakespeare.txt" in told[0]
    assert files(cats) == ["manual-bigram.txt", "manual-gpt.txt", "manual-text.txt", "manual.csv", "manual.pt"]


def test_line_ends_of_other_systems_and_a_byte_order_mark_are_not_learned(cats):
    (cats / "bom.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert gpt.load_text(cats / "bom.txt") == ("bom", TEXT)


@UNICODE_NAMES
def test_any_text_is_learned_and_printed_where_the_terminal_knows_only_ascii(cats):
    (cats / "straße.txt").write_text("Größe 東京 🙂 naïve\n" * 60, encoding="utf-8")
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(output):
        assert gpt.main(["--text", "straße.txt", *map(str, TINY)]) == 0
    assert "東京" in output.buffer.getvalue().decode("utf-8")
    assert gpt.load_checkpoint("data/straße.pt")[1].vocabulary == "".join(sorted(set("Größe 東京 🙂 naïve\n")))


def test_control_characters_reach_the_files_but_not_the_terminal(cats):
    text = "bell\a and \x1b[2J clear, 東京 and 🙂\n" * 300
    (cats / "odd.txt").write_text(text, encoding="utf-8")
    code, output, _ = main("--text", "odd.txt", *TINY)
    assert code == 0 and not set(output) & {"\x1b", "\a", "\r"} and r"\x1b[2J" in output
    assert "\x1b" in (cats / "data" / "odd-text.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["a" * 2000, "\n" * 2000, "ab\n" * 700])
def test_odd_texts_are_learned(cats, text):
    (cats / "odd.txt").write_text(text)
    code, output, error = main("--text", "odd.txt", *TINY)
    assert (code, error) == (0, "") and "GPT " in output


def test_the_output_may_be_closed(cats):
    with contextlib.redirect_stdout(None):
        assert gpt.main([str(argument) for argument in CATS]) == 0


# Writing with a model that was trained


def test_sample_writes_from_the_run_that_it_names(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    arguments = ["--prompt", r"The cat\nThe", "--tokens", "30", "--top_k", "5", "--top_p", "0.9"]
    code, written, said = main("sample", *arguments)
    assert code == 0 and said.startswith("data/cats.pt writes, with --seed ") and said.count("\n") == 1
    assert written.startswith("The cat\nThe") and len(written) == 11 + 30 + 1
    seed = said.split()[-1].rstrip(":")
    for run in ("cats", "cats.pt", "data/cats.pt", trained[0] / "data" / "cats.pt"):
        assert main("sample", run, *arguments, "--seed", seed)[1] == written        # the same seed, the same text
    assert len({main("sample", "--tokens", "30")[1] for _ in range(3)}) > 1         # else, another one each time


@pytest.mark.parametrize("prompt", ["", "The cat number 7 sat on mat 3.\\n" * 3])
def test_an_empty_and_a_long_prompt_are_fine(trained, monkeypatch, prompt):
    monkeypatch.chdir(trained[0])
    code, output, _ = main("sample", "cats", "--prompt", prompt, "--tokens", "20", "--seed", "1")
    assert code == 0 and len(output) == len(prompt.replace("\\n", "\n") or "\n") + 20 + 1


def test_the_smallest_top_p_keeps_the_likeliest_token(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    greedy = main("sample", "--temperature", "0", "--tokens", "20")[1]
    assert main("sample", "--top_p", "1e-46", "--tokens", "20")[1] == greedy


def test_a_reader_that_leaves_ends_a_command_quietly(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    reader, writer = os.pipe()
    os.close(reader)
    error = io.StringIO()
    with open(writer, "w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        assert gpt.main(["sample", "--tokens", "30"]) == 141            # not 0: it has not done all of its work
    assert error.getvalue().count("\n") == 1 and "writes, with --seed" in error.getvalue()


def test_in_a_prompt_a_doubled_backslash_is_one(cats):
    (cats / "tex.txt").write_text("\\nabla f\\theta\n\tand so on\n" * 100)
    assert main("--text", "tex.txt", *TINY)[0] == 0
    for typed, prompt in ((r"\\nabla f", r"\nabla f"), (r"\n\tand", "\n\tand"), (r"f\theta", "f\theta"), ("\\", "\\")):
        code, output, _ = main("sample", "--prompt", typed, "--tokens", "3")
        assert code == 0 and output.startswith(prompt) and len(output) == len(prompt) + 4


# What is shown


@pytest.mark.parametrize("text, columns, shown", [
    ("to be", 8, "to be   "), ("to be or", 5, "to be"), ("", 3, "   "), ("天下大势", 9, "天下大势 "),
    ("天下大势", 5, "天下 "), ("\u3000天", 6, "\u3000天  "), ("e\u0301a\u0301", 4, "e\u0301a\u0301  "),
    ("e\u0301a\u0301", 1, "e\u0301"), ("한국", 3, "한 ")])
def test_a_text_fits_the_columns_of_a_terminal(text, columns, shown):
    assert gpt.fit(text, columns) == shown


def test_only_what_could_do_something_to_a_terminal_is_escaped():
    of_kind = lambda *kinds: "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in kinds)
    harmless, controls = of_kind("Zs", "Lo", "Ll", "Mn", "Po"), of_kind("Cc", "Cf", "Zl")
    assert gpt.escape_control(harmless + "\n\t") == harmless + "\n\t"
    assert set(gpt.escape_control(controls)) & set(controls) == {"\n", "\t"}
    assert gpt.escape_control("\x1b[2J\r\u202e") == r"\x1b[2J\r\u202e"


def test_lines_of_wide_characters_stand_in_two_columns(cats):
    text = "\u3000\u3000话说天下大势，分久必合，合久必分。周末七国分争。cafe\u0301\n" * 60
    (cats / "wide.txt").write_text(text, encoding="utf-8")
    code, output, _ = main("--text", "wide.txt", *TINY)
    rows = [line for line in output.split("\n") if " | " in line]
    assert code == 0 and rows and "\\u3000" not in "".join(rows)
    width = lambda text: sum(2 if unicodedata.east_asian_width(c) in "WF" else c != "\u0301" for c in text)
    assert {width(row.split(" | ")[0]) for row in rows} == {37} and max(map(width, rows)) <= 77


# Mistakes


@pytest.mark.parametrize("arguments, words", [
    (["--text", "missing.txt"], "missing.txt"), (["--text", "."], "'.'"),
    (["--text", "latin.txt"], "latin.txt is not UTF-8"), (["--text", "utf16.txt"], "not UTF-8"),
    (["--text", "utf16le.txt"], "not UTF-8; UTF-16?"), (["--text", "empty.txt"], "empty.txt is empty"),
    (["--text", "short.txt"], "tokens are too few"), (["--text", "a.txt"], "tokens are too few"),
    (["--text", "cats.txt", "--block_size", "9000"], "tokens are too few"),
    ([*CATS, "--seed", "1", "--seed=2"], "given more than once: --seed"),
    (["sample", "--top_k", "1", "--top_k", "2"], "--top_k"), (["--n_layers", "3"], "--n_layers"),
    (["--max-steps", "3"], "--max-steps"), (["--bogus"], "--bogus"),
    (["--text", "cats.txt", "--device", "abacus"], "no device 'abacus' here"), (["hello"], "hello"),
    (["cats.txt"], "cats.txt"), (["--seed", "1", "sample"], "sample"),
    (["sample", "--prompt", "-hello"], "--prompt: expected one argument, as in --prompt=-hello"),
    (["--name", "a/b", "--text", "cats.txt"], "'a/b'"), (["--name", "..", "--text", "cats.txt"], "'..'"),
    (["--name", ".", "--text", "cats.txt"], "'.'"), (["--name", "x" * 201, "--text", "cats.txt"], "xxx"),
    pytest.param(["--name", "ü" * 101, "--text", "cats.txt"], "--name", marks=UNICODE_NAMES), (RESUME, "data/cats.pt"),
    (["sample"], "`python gpt.py` makes one"), (["sample", "nobody"], "no run nobody"),
    (["sample", "gpt2"], "data/gpt2"), (["sample", "--tokens", "few"], "few"), (["runs", "all"], "all"),
    (["--size", "8M"], "'7M', '11M'"), (["--text", "cats.txt", "--vocab_size", "99"], "--tokenizer bpe"),
    (["--tokenizer", "word"], "'word'"),
    (["--tokenizer", "bpe", "--vocab_size", "256", "--text", "cats.txt"], "at least 257"),
    (["--tokenizer", "bpe", "--vocab_size", "9000", "--text", "cats.txt"], "too short for vocab_size=9000"),
])
def test_a_mistake_gets_one_line_and_exit_code_2_and_touches_nothing(cats, arguments, words):
    (cats / "latin.txt").write_bytes(b"na\xefve" * 100)
    (cats / "utf16.txt").write_bytes(TEXT.encode("utf-16"))
    (cats / "utf16le.txt").write_bytes(TEXT.encode("utf-16-le"))
    (cats / "short.txt").write_text("Hello there, you two! " * 3)
    (cats / "a.txt").write_text("a")
    (cats / "empty.txt").write_text("")
    before = sorted(cats.rglob("*"))
    assert len(one_line(*arguments, words=words)) < 500
    assert sorted(cats.rglob("*")) == before


def test_help_explains_every_hyperparameter_and_what_may_be_chosen():
    code, output, _ = main("--help")
    said = " ".join(output.split())
    assert code == 0
    for name, field in gpt.Config.__dataclass_fields__.items():
        assert f"--{name}" in said and f"{field.metadata['meaning']} ({field.default})" in said
    for words in ("learned, sinusoidal, rotary", "--no-head_start", "gpt.py sample", "gpt.py runs", "tests/"):
        assert words in said
    assert main("sample", "--help")[0] == main("runs", "--help")[0] == 0


def test_in_a_notebook_the_arguments_of_its_kernel_are_not_ours(monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "ipykernel", gpt)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(gpt, "run_command", asked.append)
    assert gpt.main() == 0 and asked == [[]]
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert gpt.main() == 0 and asked == [[], ["-f", "kernel.json"]]


@pytest.mark.parametrize("error, words", [
    (MemoryError(), "not enough memory; a smaller model"),
    (torch.OutOfMemoryError("CUDA out of memory.\nAnd more"), "CUDA out of memory.; "),
    (RuntimeError("no C++ compiler was found\nand a long story"), "no C++ compiler was found; a smaller model")])
def test_a_failure_of_a_device_or_a_compiler_gets_one_line(cats, monkeypatch, error, words):
    def fail(*arguments):
        raise error
    monkeypatch.setattr(gpt, "training_step", fail)
    one_line(*CATS, words=words)


def test_compile_trains_the_same_and_saves_what_is_not_compiled(copy, trained, monkeypatch):
    compiled = []
    monkeypatch.setattr(gpt.nn.Module, "compile", lambda model: compiled.append(model))
    assert main(*CATS, "--name", "fast", "--compile")[0] == 0
    assert len(compiled) == 1
    assert (copy / "data" / "fast-gpt.txt").read_bytes() == (trained[0] / "data" / "cats-gpt.txt").read_bytes()
    fast, plain = (gpt.load_checkpoint(f"data/{name}.pt")[0].state_dict() for name in ("fast", "cats"))
    assert_same_tensors(fast, plain)


# Stopping and going on


def interrupt_at(monkeypatch, step, error=KeyboardInterrupt):
    """Press Ctrl-C in that step of the GPT's training."""
    as_it_is = gpt.training_step

    def pressed(model, optimizer, data, at, config):
        if at == step and config.block_size > 1:
            raise error
        return as_it_is(model, optimizer, data, at, config)

    monkeypatch.setattr(gpt, "training_step", pressed)


def run_in_terminal(folder, *arguments, interrupt_after=None):
    """The output, exit code and seconds to stop of gpt.py in a pseudo-terminal; Ctrl-C once a text has appeared."""
    pty = pytest.importorskip("pty")
    terminal, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, ROOT / "gpt.py", *map(str, arguments)], cwd=folder, stdin=slave,
                               stdout=slave, stderr=slave, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))     # as in a shell
    os.close(slave)
    output, pressed = b"", time.monotonic()
    while True:
        try:
            output += os.read(terminal, 4096)
        except OSError:                                         # how Linux tells that the other end is closed
            break
        if interrupt_after and interrupt_after in output:
            interrupt_after, pressed = None, time.monotonic()
            process.send_signal(signal.SIGINT)
    os.close(terminal)
    return output.decode(), process.wait(), time.monotonic() - pressed


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(cats):
    settings = [*CATS[:-4], "--max_steps", 3000, "--eval_interval", 50, "--dropout", 0.1]
    output, code, seconds = run_in_terminal(cats, *settings, interrupt_after=b"step 50  train")
    last = output.splitlines()[-1]
    assert code == 130 and seconds < 5 and last.startswith("gpt.py: stopped; step ")
    assert "\rstep " in output and " minutes left" in output and "9. Sampling" not in output  # progress is redrawn in place
    saved = gpt.read_checkpoint(cats / "data" / "cats.pt")
    assert f"step {saved.state.step} is saved" in last and "the same command with --resume --name cats goes on" in last
    assert saved.state.step % 50 == 0 and saved.config.dropout == 0.1
    code, _, error = main(*RESUME, "--max_steps", saved.state.step + 70)    # the rest would take too long for a test
    assert (code, error) == (0, "")
    assert read_csv("data/cats.csv")[-1]["step"] == str(saved.state.step + 70)


@pytest.mark.parametrize("seconds, options", [                  # seconds between saves; -1: each step is saved
    (60, []), (-1, ["--tokenizer", "bpe", "--vocab_size", 270, "--tie_weights", "--position", "sinusoidal"])])
def test_an_interrupted_run_ends_as_one_that_never_stopped(cats, tmp_path_factory, monkeypatch, seconds, options):
    monkeypatch.setattr(gpt, "SAVE_SECONDS", seconds)
    settings = [*CATS[:-4], "--dropout", 0.1, "--max_steps", 45, "--eval_interval", 15, *options]
    whole = tmp_path_factory.mktemp("whole")
    with chdir(whole):
        (whole / "cats.txt").write_text(TEXT)
        assert main(*settings)[0] == 0
    for step, last in ((0, 0), (7, 0), (20, 15), (44, 30)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            code, _, error = main(*(settings if step == 0 else RESUME))
        last = last if seconds > 0 else step
        assert code == 130 and error == (f"gpt.py: stopped; step {last} is saved, and the same command with --resume "
                                         f"--name cats goes on from there\n")
        assert gpt.read_checkpoint("data/cats.pt").state.step == last
        assert main("sample", "--tokens", 5)[0] == 0            # even before the first step
    assert main(*RESUME)[0] == 0
    assert_same_run(cats, whole)
    assert files(cats) == files(whole)


def test_ctrl_c_before_the_first_save(cats, monkeypatch):
    def pressed(*arguments):
        raise KeyboardInterrupt
    monkeypatch.setattr(gpt, "prepare_data", pressed)
    assert main(*CATS)[::2] == (130, "gpt.py: stopped before anything was saved\n")
    monkeypatch.setattr(gpt, "load_text", pressed)
    assert main(*CATS)[::2] == (130, "gpt.py: stopped\n")
    assert not (cats / "data").exists()


def test_ctrl_c_before_a_resumed_run_has_begun_says_what_is_saved(copy, monkeypatch):
    def pressed(*arguments):
        raise KeyboardInterrupt
    monkeypatch.setattr(gpt, "prepare_data", pressed)
    code, _, error = main(*RESUME, "--max_steps", 60)
    assert code == 130 and error.startswith("gpt.py: stopped; step 40 is saved, ")


def test_a_run_saved_before_its_first_evaluation_may_end_there(cats, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gpt, "SAVE_SECONDS", -1)
        interrupt_at(patch, 7)
        assert "step 7 is saved" in main(*CATS)[2]
    saved = gpt.read_checkpoint("data/cats.pt")
    assert (saved.state.step, saved.state.history, saved.state.best) == (7, [], None) and saved.state.loss_sum > 0
    code, output, error = main(*RESUME, "--max_steps", 7)
    assert (code, error) == (0, "") and "step 7  train" in output
    saved = gpt.read_checkpoint("data/cats.pt")
    assert [row["step"] for row in saved.state.history] == [7] and files(cats)[1] == "cats-gpt.txt"
    assert f"{saved.state.history[0]['val_loss']:.4f}" in output[output.index("\nmodel "):]


def test_resume_takes_its_settings_from_the_checkpoint_and_refuses_others(copy):
    before = contents(copy)
    for change, words in ((["--n_embd", "32"], "n_embd=16, not 32"), (["--seed", "5"], "seed=1337, not 5"),
                          (["--block_size", "32"], "block_size=16, not 32"), (["--size", "11M"], "not"),
                          (["--vocab_size", "280"], "vocab_size=26, not 280"), (["--tokenizer", "bpe"], "tokenizer"),
                          (["--max_steps", "30"], "has made 40 steps"), (["--eval_interval", "0"], "eval_interval")):
        one_line(*RESUME, *change, words=words)
    (copy / "cats.txt").write_text(TEXT.replace("cat", "act"))
    one_line(*RESUME, words="another text; add --name cats --text FILE")
    (copy / "cats.txt").write_text(TEXT)
    assert contents(copy) == before
    code, output, _ = main(*RESUME, "--max_steps", "60", "--eval_interval", "20", "--n_embd", "16")
    assert code == 0 and "step 60  train" in output
    run = gpt.read_checkpoint("data/cats.pt")
    assert (run.config.n_embd, run.config.max_steps, run.config.eval_interval, run.state.step) == (16, 60, 20, 60)
    assert [row["step"] for row in run.state.history] == [15, 30, 40, 60]


def test_resume_takes_the_latest_run_and_the_text_that_it_was_trained_on(cats, monkeypatch):
    """One that began without a network is on Python's manual, and stays so when Shakespeare can be had again."""
    def offline():
        raise OSError
    monkeypatch.setattr(gpt, "load_shakespeare", offline)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", types.SimpleNamespace(topics={"a": TEXT, "b": TEXT[::-1]}))
    settings = CATS[2:]
    assert main(*settings)[0] == 0 and Path("data/manual.pt").exists()
    monkeypatch.setattr(gpt, "load_shakespeare", lambda: TEXT.upper())
    monkeypatch.setattr(gpt, "SHAKESPEARE_SHA256", gpt.hash_of(TEXT.upper()))
    for arguments in ([], ["--name", "manual"]):
        code, output, error = main("--resume", *arguments)
        assert (code, error) == (0, "") and "going on from step" in output and not Path("data/shakespeare.pt").exists()
    assert main(*settings)[0] == 0                              # now on Shakespeare, and this is the latest
    assert "going on from step" in main("--resume")[1] and gpt.find_run().stem == "shakespeare"
    assert main(*settings, "--text", "cats.txt")[0] == 0
    one_line("--resume", words="data/cats.pt was trained on another text; add --name cats --text FILE")
    assert main("--resume", "--text", "cats.txt")[0] == 0


def test_resume_of_a_finished_run_writes_what_is_missing(copy, trained):
    for name in ("cats.csv", "cats-text.txt", "cats-bigram.txt", "cats-gpt.txt"):
        (copy / "data" / name).unlink()
    code, output, error = main(*RESUME)
    assert (code, error) == (0, "") and "going on from step 40\n" in output
    assert_same_run(copy, trained[0])
    assert files(copy) == files(trained[0])


def test_resume_goes_on_with_the_run_that_was_stopped_and_with_runs_in_data_alone(copy):
    """The command that Ctrl-C names holds also when another run was made meanwhile."""
    (copy / "elsewhere").mkdir()
    shutil.copy("data/cats.pt", "elsewhere/cats.pt")
    (copy / "data" / "elsewhere").mkdir()
    shutil.copy("data/cats.pt", "data/elsewhere/cats.pt")       # as below data, so not in it
    before = contents(copy)
    one_line(*RESUME, "--name", "../elsewhere/cats", words="'../elsewhere/cats' cannot")
    one_line(*RESUME, "--name", "elsewhere/cats", words="'elsewhere/cats' cannot")
    one_line(*RESUME, "--name", "nowhere/cats", words="nowhere/cats.pt")
    assert contents(copy) == before
    assert main(*CATS, "--name", "later")[0] == 0
    assert "cats: going on from step 40\n" in main(*RESUME)[1]
    assert "later: going on from step 40\n" in main(*RESUME, "--name", "later")[1]


def test_a_device_that_is_not_there_is_named_before_anything_is_read(cats, monkeypatch):
    monkeypatch.setattr(gpt, "load_text", lambda *_: pytest.fail("the text is read"))
    one_line(*CATS, "--device", "abacus", words="no device 'abacus' here")


def test_a_run_says_how_to_look_inside(copy):
    assert main(*RESUME)[1].endswith("\nExplore:  python attention_toy.py --page cats --text cats.txt\n")


# Nothing is written over


def test_a_new_run_sets_the_one_before_aside(copy):
    first = {path.name: content for path, content in contents(copy / "data").items()}
    code, output, _ = main(*CATS, "--seed", 2)
    assert code == 0 and "the earlier run cats is now called cats-1\n" in output
    assert files(copy) == sorted([*first, *(name.replace("cats", "cats-1") for name in first)])
    assert all((copy / "data" / name.replace("cats", "cats-1")).read_bytes() == content
               for name, content in first.items())
    assert main("sample", "cats-1", "--tokens", 5)[0] == 0
    assert main(*CATS, "--name", "x" * 200)[0] == 0             # the longest name that fits
    code, output, _ = main("runs")
    assert code == 0 and [line.split()[0] for line in output.splitlines()] == ["cats-1", "cats", "x" * 200]
    val_loss = gpt.read_checkpoint("data/cats-1.pt").state.history[-1]["val_loss"]
    assert output.splitlines()[0].split()[1:5] == ["step", "40/40", "val", f"{val_loss:.4f}"]
    one_line("sample", "birds", words="cats-1, cats, xxx")


@pytest.mark.parametrize("renames", range(5))
def test_a_stop_while_a_run_is_set_aside_loses_nothing(copy, monkeypatch, renames):
    kept, rename, count = set(contents(copy / "data").values()), gpt.Path.rename, iter(range(9))

    def stopped(path, target):
        if next(count) == renames:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(gpt.Path, "rename", stopped)
        assert main(*CATS)[0] == 130
    assert set(contents(copy / "data").values()) == kept
    gpt.set_aside("cats")
    assert set(contents(copy / "data").values()) == kept and "cats.pt" not in files(copy)


@pytest.mark.parametrize("name", ["cats.csv", "cats-gpt.txt", "cats-text.txt", "cats-bigram.txt", "cats-1.pt"])
def test_a_file_of_the_user_is_not_written_over(cats, name):
    (cats / "data").mkdir()
    (cats / "data" / name).write_text("my own work")
    assert main(*CATS)[0] == 0
    assert b"my own work" in contents(cats / "data").values()
    (cats / "data" / "mine-gpt.txt").write_text(TEXT)
    assert main("--text", "data/mine-gpt.txt", "--name", "mine", *TINY)[0] == 0
    assert (cats / "data" / "mine-1-gpt.txt").read_text() == TEXT


def test_links_in_data_are_followed_or_set_aside(copy, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (copy / "data").rename(elsewhere / "data")
    (copy / "data").symlink_to(elsewhere / "data")              # the folder may be a link
    (copy / "data" / "gone.pt").symlink_to("nowhere.pt")        # what a link names may be gone
    assert main(*RESUME, "--max_steps", 45)[0] == 0
    code, output, _ = main("runs")
    assert code == 0 and len(output.splitlines()) == 1 and "45/45" in output
    assert main(*CATS, "--name", "gone")[0] == 0
    assert (elsewhere / "data" / "gone-1.pt").is_symlink() and not (elsewhere / "data" / "gone.pt").is_symlink()
    assert main("sample", "gone", "--tokens", 5)[0] == 0
