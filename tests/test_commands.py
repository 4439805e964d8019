"""The command line: what it takes, what it prints, and the files that it leaves."""

import contextlib
import io
import math
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import (TEXT, TINY, TINY_MODEL, as_options, assert_same_run, contents, files, main, one_line, read_csv,
                      save_model, tiny_config)

import gpt


class Terminal(io.StringIO):
    def isatty(self):
        return True


# What a run prints and leaves


def test_a_run_leaves_its_files_and_a_log_of_its_losses(trained):
    folder, output, error = trained
    assert error == "See inside:  python tests/page.py cats\n"      # no progress: it is no terminal
    assert files(folder) == ["cats-bigram.txt", "cats-gpt.txt", "cats.csv", "cats.pt"]
    rows = read_csv(folder / "data" / "cats.csv")
    assert [row["step"] for row in rows] == ["15", "30", "40"]
    history = gpt.read_checkpoint(folder / "data" / "cats.pt").progress.history
    assert [{name: float(value) for name, value in row.items()} for row in rows] == history
    for row in history:
        assert row["learning_rate"] == gpt.learning_rate_at(row["step"] - 1, gpt.Config(max_steps=40))
        assert f"gpt     step   {row['step']}  train {row['train_loss']:.3f}  val {row['val_loss']:.3f}\n" in output


def test_with_no_network_the_manual_is_learned_under_its_own_name(command):
    ran = command("gpt.py", *as_options(**TINY_MODEL), "--max_steps", 1)
    assert ran.returncode == 0, ran.stderr
    told, inside = ran.stderr.splitlines()
    assert "No Tiny Shakespeare (" in told and "Error), so" in told and inside.endswith(" manual")
    assert files(command.folder) == ["manual-bigram.txt", "manual-gpt.txt", "manual.csv", "manual.pt"]
    saved = gpt.read_checkpoint(command.folder / "data" / "manual.pt")
    assert gpt.load_text_of(saved)[0] == "manual"                   # and --resume asks no network


@pytest.mark.skipif(sys.getfilesystemencoding() == "ascii", reason="files have plain names here")
def test_any_text_is_learned_and_printed_where_the_output_knows_only_ascii(cats):
    text = "Größe 東京 🙂 naïve\n" * 60
    (cats / "straße.txt").write_text(text, encoding="utf-8")
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    options = ["--tokenizer", "bpe", "--vocab_size", 260, "--position", "rotary", "--head_start", "--max_steps", 5]
    with contextlib.redirect_stdout(output):
        assert gpt.main(["--text", "straße.txt", *map(str, [*as_options(**TINY_MODEL), *options])]) == 0
    assert "Größe 東京" in output.buffer.getvalue().decode("utf-8")
    model, tokenizer = gpt.load_checkpoint("data/straße.pt")
    assert isinstance(model, gpt.RotaryGPT) and tokenizer.vocabulary == gpt.train_bpe(text[:len(text) * 9 // 10], 260)


def test_control_characters_reach_the_files_but_not_a_terminal(cats):
    (cats / "odd.txt").write_text("\x1b[2J\u200cbell\a and clear, 東京 and 🙂\n" * 100, encoding="utf-8")
    with contextlib.redirect_stdout(Terminal()) as output, contextlib.redirect_stderr(Terminal()) as error:
        assert gpt.main(["--text", "odd.txt", *map(str, TINY)]) == 0
    assert r"\x1b[2J" in output.getvalue() and not set(output.getvalue()) & {"\x1b", "\a", "\r"}
    assert "\rstep 7, " in error.getvalue() and " minutes left" in error.getvalue()      # redrawn in place
    assert "\x1b[2J" in Path("data/odd-gpt.txt").read_text(encoding="utf-8")
    assert main("sample", "--prompt", "\x1b[2J", "--tokens", 0)[1] == "\x1b[2J\n"        # nor is a pipe one


def test_only_what_could_do_something_to_a_terminal_is_escaped():
    harmless = "naïve e\u0301 \u3000\u00a0 東京🙂 \n\t a\u200cb\u200dc"
    assert gpt.escape_control(harmless) == harmless
    assert gpt.escape_control("\0\r\x1b\x7f\x9b\u2028\u202e") == r"\x00\r\x1b\x7f\x9b\u2028\u202e"


def test_a_text_without_lines_is_learned(cats):
    (cats / "odd.txt").write_text("\n" * 400)
    code, output, _ = main("--text", "odd.txt", *as_options(**TINY_MODEL), "--max_steps", 1)
    assert code == 0 and "gpt: loss 0.000" in output and Path("data/odd-gpt.txt").read_text() == ""


def test_names_with_spaces_are_quoted_and_the_home_folder_is_found(cats, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(cats))
    code, output, error = main("--text=~/cats.txt", "--name", "my cats", *as_options(**TINY_MODEL), "--max_steps", 1)
    assert code == 0 and shlex.split(error)[-1] == "my cats"
    assert shlex.split(output.splitlines()[-1])[-2:] == ["data/my cats-bigram.txt", "data/my cats-gpt.txt"]
    assert gpt.load_text_of(gpt.read_checkpoint("data/my cats.pt")) == ("cats", TEXT)


# Writing with a model that was trained


def test_sample_writes_from_the_run_that_it_names(copy):
    arguments = ["--prompt", r"The cat\nThe", "--tokens", 30, "--top_k", 5, "--top_p", 0.9]
    code, written, said = main("sample", *arguments)
    assert code == 0 and said.startswith("data/cats.pt writes, with --seed ") and said.count("\n") == 1
    assert written.startswith("The cat\nThe") and len(written) == 11 + 30 + 1
    seed = said.split()[-1].rstrip(":")
    for run in ("cats", "cats.pt", "data/cats.pt", copy / "data" / "cats.pt"):
        assert main("sample", run, *arguments, "--seed", seed)[1] == written        # the same seed, the same text
    assert len({main("sample", "--tokens", 30)[1] for _ in range(3)}) > 1           # else, another one each time
    save_model("later")
    assert main("sample", "--tokens", 0)[2].startswith("data/later.pt writes")      # the latest


@pytest.mark.parametrize("prompt", ["", "The cat number 7 sat on mat 3.\\n" * 3])
def test_an_empty_and_a_long_prompt_are_fine(copy, prompt):
    code, output, _ = main("sample", "cats", "--prompt", prompt, "--tokens", 20)
    assert code == 0 and len(output) == len(prompt.replace("\\n", "\n") or "\n") + 20 + 1


def test_in_a_prompt_a_doubled_backslash_is_one(in_tmp):
    save_model("tex", "\\nabla f\\theta\n\tand so on\n")
    for typed, prompt in ((r"\\nabla f", r"\nabla f"), (r"\n\tand", "\n\tand"), (r"f\theta", "f\theta"), ("\\", "\\")):
        assert main("sample", "--prompt", typed, "--tokens", 0)[:2] == (0, prompt + "\n")


def test_characters_of_several_tokens_are_printed_whole(in_tmp):
    line, tokenizer = "東京🙂é\n", gpt.BPETokenizer([])             # no merges: a token is a byte
    data = gpt.encode_text(line * 60, tokenizer)
    config = tiny_config(vocab_size=256, n_layer=1, max_steps=60, eval_interval=60, learning_rate=0.02)
    torch.manual_seed(0)
    model = gpt.GPT(config)
    assert [val_loss < 0.1 for *_, val_loss in gpt.train(model, data, data, config)] == [True]
    gpt.save_checkpoint("data/bytes.pt", model, tokenizer)
    tokens = len((3 * line).encode()) - len("東".encode())
    assert main("sample", "--prompt", "東", "--temperature", 0, "--tokens", tokens)[1] == 3 * line + "\n"


def test_a_reader_that_leaves_ends_a_command_quietly_and_the_output_may_be_closed(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    reader, writer = os.pipe()
    os.close(reader)
    error = io.StringIO()
    with open(writer, "w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        assert gpt.main(["sample", "--tokens", "30"]) == 141            # not 0: it has not done all of its work
    assert error.getvalue().count("\n") == 1 and "writes, with --seed" in error.getvalue()
    with contextlib.redirect_stdout(None):
        assert gpt.main(["sample", "--tokens", "30"]) == 0


def test_runs_shows_what_is_kept_and_what_is_damaged(in_tmp):
    assert main("runs")[:2] == (0, "There are no runs yet; `python gpt.py` makes one.\n")
    save_model("cats")
    (in_tmp / "data" / "gone.pt").symlink_to("nowhere.pt")
    (in_tmp / "data" / "bad.pt").write_text("To be, or not to be")
    code, output, _ = main("runs")
    kept, bad = output.splitlines()
    assert code == 0 and kept.split()[:5] == ["cats", "step", "0/6", "val", "2.2500"]
    assert bad.startswith("data/bad.pt is not a whole checkpoint: ")


# Mistakes


RUN = ["--text", "cats.txt"]


@pytest.mark.parametrize("arguments, words", [
    (["--text", "missing.txt"], "missing.txt"), (["--text", "."], "'.'"),
    (["--text", "latin.txt"], "latin.txt is not UTF-8"), (["--text", "short.txt"], "the text is too short"),
    ([*RUN, "--block_size", "9000"], "the text is too short"), (["--n_layers", "3"], "--n_layers"),
    ([*RUN, "--seed", "1", "--seed=2"], "given more than once: --seed"), (["--seed", "1", "sample"], "sample"),
    ([*RUN, "--name", "a/b"], "'a/b'"), ([*RUN, "--name", ".."], "'..'"), ([*RUN, "--name", "x" * 201], "xxx"),
    ([*RUN, "--size", "8M"], "'7M', '11M'"), ([*RUN, "--device", "abacus"], "no device 'abacus' here"),
    ([*RUN, "--n_head", "3"], "multiple of n_head=3"), ([*RUN, "--batch_size", "1.5"], "1.5"),
    ([*RUN, "--dropout", "1"], "dropout must be at least 0 and below 1"), ([*RUN, "--position", "rope"], "not 'rope'"),
    ([*RUN, "--learning_rate", "nan"], "not nan"), ([*RUN, "--seed", "-1"], "seed must be at least 0"),
    ([*RUN, "--n_embd", "4000000000", "--n_head", "1"], "memory"), ([*RUN, "--vocab_size", "99"], "--tokenizer bpe"),
    (["--text", "wide.txt"], "more than 4096; try --tokenizer bpe"),
    ([*RUN, "--position", "rotary", "--n_embd", "12"], "need pairs"), ([*RUN, "--dtype", "int8"], "not 'int8'"),
    ([*RUN, "--tokenizer", "bpe", "--vocab_size", "256"], "at least 257"),
    ([*RUN, "--tokenizer", "bpe", "--vocab_size", "4000"], "too short for vocab_size=4000"),
    (["--resume", "--name", "birds"], "data/birds.pt"), (["--resume", "--name", "elsewhere/cats"], "elsewhere/cats"),
    (["--resume", "--name", "../elsewhere/cats"], "elsewhere/cats"), (["--resume", "--tokenizer", "bpe"], "char"),
    ([*RUN, "--epochs", "0"], "above 0"), ([*RUN, "--epochs", "nan"], "not nan"),
    (["--text", "cats.txt", "--epochs", "1", "--max_steps", "9"], "give --epochs or --max_steps"),
    (["--resume", "--epochs", "1"], "has made 40 steps, more than max_steps=16"),
    (["--resume", "--n_embd", "32"], "n_embd=16, not 32"), (["--resume", "--max_steps", "30"], "has made 40 steps"),
    (["--resume", "--name", "cats", "--text", "short.txt"], "short.txt is not what data/cats.pt was trained on"),
    (["--resume", "--name", "cats", "--text", "gone.txt"], "gone.txt, the text of data/cats.pt, is gone"),
    (["sample", "birds"], "those that are kept: cats"), (["sample", "gpt2"], "data/gpt2"), (["runs", "all"], "all"),
    (["sample", "cats.csv"], "data/cats.csv is not a whole checkpoint"), (["sample", "--tokens", "-1"], "at least 0"),
    (["sample", "--prompt", "The cät 🙂"], "'ä'"), (["sample", "--prompt", "-hello"], "as in --prompt=-hello"),
    (["sample", "--seed", "-3"], "seed"), (["sample", "--temperature", "nan"], "temperature"),
    (["sample", "--top_k", "0"], "top_k"), (["sample", "--top_p", "1.1"], "top_p"),
    (["sample", "--top_k", "1", "--top_k", "2"], "--top_k"), (["sample", "--device", "abacus"], "no device 'abacus'"),
])
def test_a_bad_command_line_gets_one_line_and_touches_nothing(copy, arguments, words):
    (copy / "latin.txt").write_bytes(b"na\xefve" * 100)
    (copy / "short.txt").write_text("Hello there, you two! " * 3)
    (copy / "wide.txt").write_text("".join(map(chr, range(0x4E00, 0x6000))), encoding="utf-8")
    for folder in ("elsewhere", "data/elsewhere"):              # runs are taken from data/ alone
        (copy / folder).mkdir()
        shutil.copy("data/cats.pt", folder)
    before = contents(copy)
    assert len(one_line(*arguments, words=words)) < 500
    assert contents(copy) == before


def test_help_explains_every_hyperparameter():
    code, output, _ = main("--help")
    assert code == 0
    for name, field in gpt.Options.__dataclass_fields__.items():
        about = " ".join(output.split(f"\n  --{name}")[1].split("\n  --")[0].split())
        assert f" ({field.default})" in about and len(about) > 30
    for words in ("learned, sinusoidal, rotary", "--no-head_start", "gpt.py sample", "gpt.py runs", "tests/"):
        assert words in " ".join(output.split())
    assert main("sample", "--help")[0] == main("runs", "--help")[0] == 0


def test_in_a_notebook_only_the_arguments_of_its_kernel_are_left_out(in_tmp, monkeypatch, capsys):
    """With no network and no folder data/, a run without options ends before it has begun."""
    monkeypatch.setitem(sys.modules, "ipykernel", gpt)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (in_tmp / "data").write_text("a file")
    for arguments, words in ((["-f", "kernel.json"], "'data'"), (["--f=kernel.json"], "'data'"),
                             (["--text", "missing.txt", "--max_steps", "20"], "'missing.txt'")):
        monkeypatch.setattr(sys, "argv", ["gpt.py", *arguments])
        assert gpt.main() == 2 and words in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "ipykernel")
    monkeypatch.setattr(sys, "argv", ["gpt.py", "-f", "kernel.json"])
    assert gpt.main() == 2 and "-f kernel.json" in capsys.readouterr().err


# Going on


def test_resume_goes_on_with_the_settings_and_the_text_of_the_checkpoint(copy):
    code, _, error = main("--resume", "--text", "cats.txt", "--max_steps", 60, "--eval_interval", 20, "--n_embd", 16)
    told = error.splitlines()[0]
    assert code == 0 and told.startswith("cats: going on from step 40")
    assert f"{gpt.learning_rate_at(40, gpt.Config(max_steps=60)):.1e}" in told      # it rises again: 60 steps, not 40
    saved = gpt.read_checkpoint("data/cats.pt")
    assert (saved.options.dropout, saved.options.max_steps, saved.options.eval_interval) == (0.1, 60, 20)
    assert [row["step"] for row in saved.progress.history] == [15, 30, 40, 60]
    before = contents(copy / "data")
    (copy / "cats.txt").write_text(TEXT.replace("cat", "act"))      # it needs no --text: the path is known
    one_line("--resume", words="cats.txt is not what data/cats.pt was trained on, or has changed since")
    (copy / "cats.txt").unlink()
    one_line("--resume", words="cats.txt, the text of data/cats.pt, is gone; name it with --text")
    assert contents(copy / "data") == before


def test_epochs_are_passes_over_the_training_split(copy):
    """A step reads batch_size * block_size tokens: 12 * 16 of the 2,900 characters."""
    tokens = len(gpt.train_val_split(TEXT)[0])
    code, _, error = main("--resume", "--epochs", 3)
    saved = gpt.read_checkpoint("data/cats.pt")
    assert code == 0 and f"going on from step 40 of {saved.options.max_steps}," in error
    assert (saved.options.max_steps - 1) * 12 * 16 < 3 * tokens <= saved.options.max_steps * 12 * 16
    assert main(*as_options(**TINY_MODEL), "--text", "cats.txt", "--epochs", 0.5, "--name", "half")[0] == 0
    assert gpt.read_checkpoint("data/half.pt").progress.step == math.ceil(0.5 * tokens / (12 * 16))


def test_resume_of_a_finished_run_says_its_last_row_once_and_writes_the_same(copy, trained):
    for name in ("cats.csv", "cats-bigram.txt", "cats-gpt.txt"):
        (copy / "data" / name).unlink()
    code, output, _ = main("--resume")
    rows, all_rows = ([line for line in text.splitlines() if line.startswith("gpt  ")] for text in (output, trained[1]))
    assert code == 0 and rows == all_rows[-1:]
    assert output.split("\ngpt: ")[1] == trained[1].split("\ngpt: ")[1]
    assert_same_run(copy, trained[0])
