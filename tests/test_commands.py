"""Chapter 9 and the appendix: the commands as a user types them, and the files that they leave."""

import contextlib
import csv
import io
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import ROOT, TEXT, counted_bigram, noisy_gpt, tiny_config

import bigram
import gpt

TINY = ["--block_size", 16, "--n_layer", 1, "--n_head", 2, "--n_embd", 16, "--max_steps", 40, "--eval_interval", 15]
CATS = ["--text", "cats.txt", *TINY]


def main(*arguments, program=gpt.main):
    """(exit code, standard output, standard error) of a command, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def one_line(*arguments, words=""):
    """Run a command that must fail in one line, exit code 2; the line."""
    code, _, error = main(*arguments)
    assert code == 2 and error.count("\n") == 1 and error.startswith("gpt.py") and words in error, error
    return error


def files(folder):
    return sorted(path.name for path in (folder / "data").glob("*"))


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def table(output):
    """The last table of results in an output, as {model: [columns]}."""
    lines = [line for line in output[output.rindex("\nmodel  "):].splitlines() if line.split("  ")[0]]
    return {line.split("  ")[0]: line.split()[line.split("  ")[0].count(" ") + 1:] for line in lines[1:4]}


@pytest.fixture
def cats(in_tmp, short_baseline):
    """The current folder, with a small text in it."""
    (in_tmp / "cats.txt").write_text(TEXT, encoding="utf-8")
    return in_tmp


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """One run of `python gpt.py` on a small text: its folder and its output."""
    folder = tmp_path_factory.mktemp("story")
    (folder / "cats.txt").write_text(TEXT, encoding="utf-8")
    with contextlib.chdir(folder):
        code, output, error = main(*CATS)
    assert (code, error) == (0, "")
    return folder, output


def test_the_story_tells_its_chapters_in_80_columns(story):
    output = story[1]
    titles = ["1. Text", "2. Tokens", "3. Batches", "4. Bigram", "5. Attention, and 6. GPT", "7. Training", "8. Writing",
              "9. The run"]
    assert [line for line in output.splitlines() if line[:3] in {f"{i}. " for i in range(1, 10)}] == titles
    assert max(map(len, output.splitlines())) < 80
    assert "\r" not in output and "\x1b" not in output
    steps = [line.split("  ")[0] for line in output.splitlines() if line.startswith("step") and "/40" in line]
    assert steps == ["step 15/40", "step 30/40", "step 40/40"]


def test_the_story_ends_with_a_table_that_is_true(story):
    folder, output = story
    rows = table(output)
    V = len(set(TEXT))
    assert list(rows) == ["uniform", "bigram", "GPT"]
    assert float(rows["uniform"][1]) == pytest.approx(math.log(V), abs=1e-4)
    assert rows["bigram"][0] == f"{V * V:,}"
    model, tokenizer = gpt.load_checkpoint(folder / "data" / "cats.pt")
    assert rows["GPT"][0] == f"{gpt.count_parameters(model):,}"
    val_data = gpt.split(torch.tensor(tokenizer.encode(TEXT)))[1]
    assert float(rows["GPT"][1]) == pytest.approx(gpt.evaluate(model, val_data), abs=1e-4)
    for loss, bits, perplexity in (map(float, row[1:4]) for row in rows.values()):
        assert bits == pytest.approx(loss / math.log(2), abs=1e-3)
        assert perplexity == pytest.approx(math.exp(loss), abs=0.01)


def test_the_story_leaves_its_files_and_says_what_is_next(story):
    folder, output = story
    assert files(folder) == ["cats-bigram.txt", "cats-gpt.txt", "cats.csv", "cats.pt"]
    samples = [(folder / "data" / name).read_text() for name in ("cats-bigram.txt", "cats-gpt.txt")]
    for sample in samples:
        assert len(sample) == 1 + gpt.SAMPLE_TOKENS and sample[0] == "\n"
        assert set(sample) <= set(TEXT)
    assert samples[0] != samples[1]
    with open(folder / "data" / "cats.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["15", "30", "40"]
    assert float(rows[1]["learning_rate"]) == pytest.approx(gpt.learning_rate_at(29, gpt.Config(max_steps=40)))
    assert f"val {float(rows[-1]['val_loss']):.4f}" in output
    commands = [line.split() for line in output.splitlines() if line.startswith("    ")][-2:]
    assert commands[1] == ["diff", "-y", "data/cats-bigram.txt", "data/cats-gpt.txt"]
    with contextlib.chdir(folder):
        assert main(*commands[0][2:])[0] == 0 and commands[0][:2] == ["python", "gpt.py"]


def test_bigram_prints_the_same_form_and_leaves_the_same_sample(story, in_tmp):
    (in_tmp / "cats.txt").write_text(TEXT)
    command = lambda arguments: gpt.run_cleanly("bigram.py", bigram.command, arguments)
    code, output, error = main("--text", "cats.txt", program=command)
    assert (code, error) == (0, "")
    ours, theirs = table(output), table(story[1])
    assert ours["uniform"] == theirs["uniform"] and ours["bigram"][:4] == theirs["bigram"][:4]
    assert "'q'" not in output and "'T'      'h'" in output             # after T comes h, in TEXT always
    sample = in_tmp / "data" / "cats-bigram.txt"
    assert sample.read_text() == (story[0] / "data" / "cats-bigram.txt").read_text()
    sample.write_text("something else")
    assert main("--text", "cats.txt", program=command)[0] == 0
    assert (in_tmp / "data" / "cats-1-bigram.txt").read_text() == "something else"      # never written over


def test_sample_writes_from_the_run_that_it_names(story, monkeypatch):
    arguments = ["--prompt", r"The cat\nThe", "--tokens", "30", "--seed", "1", "--top_k", "5", "--top_p", "0.9"]
    monkeypatch.chdir(story[0])
    code, written, said = main("sample", *arguments)
    assert code == 0 and said == "data/cats.pt writes:\n"
    assert written.startswith("The cat\nThe") and len(written) == 11 + 30 + 1
    for run in ("cats", "data/cats.pt", story[0] / "data" / "cats.pt"):
        assert main("sample", run, *arguments)[1] == written            # the same seed, the same text
    assert main("sample", *arguments[:-6], "--tokens", "30")[1] != main("sample", *arguments[:-6], "--tokens", "30")[1]


def test_a_reader_that_leaves_ends_a_command_quietly(story):
    gpt_py = f"{sys.executable} {ROOT / 'gpt.py'}"
    script = f"{gpt_py} sample --tokens 3000 2>&1 | head -c 25; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", script], cwd=story[0], capture_output=True, timeout=60)
    assert done.stderr == b"141\n" and len(done.stdout) == 25           # not 0: it has not done all of its work


def test_with_no_network_the_manual_is_learned_under_its_own_name(in_tmp, short_baseline, monkeypatch):
    monkeypatch.setattr(gpt, "SHAKESPEARE_URL", "http://127.0.0.1:9/")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)            # between the tries
    code, output, error = main(*TINY[:-4], "--max_steps", 3)
    assert (code, error) == (0, "")
    assert "ConnectionError" in output and "data/tinyshakespeare.txt" in output
    assert files(in_tmp) == ["manual-bigram.txt", "manual-gpt.txt", "manual.csv", "manual.pt"]


@pytest.mark.parametrize("arguments, words", [
    (["--text", "missing.txt"], "missing.txt"), (["--text", "."], "'.'"), (["--text", "latin.txt"], "not UTF-8"),
    (["--text", "short.txt"], "must be at least 65"), (["--text", "empty.txt"], "empty.txt is empty"),
    (["--text", "cats.txt", "--block_size", "9000"], "must be at least 9001"),
    (["--n_layers", "3"], "--n_layers"), (["--n_layer", "many"], "many"), (["--n_layer", "0"], "n_layer"),
    (["--device", "abacus"], "no device 'abacus' here"), (["--position", "nowhere"], "nowhere"),
    (["poem"], "no demo poem, only hello, count, random, coder"), (["my.txt"], "a text goes with --text"),
    (["smaple"], "sample, runs, sizes"), (["--seed", "1", "sample"], "come first"), (["help"], "no demo help"),
    (["--name", "a/b", "--text", "cats.txt"], "'a/b'"), (["--name", "..", "--text", "cats.txt"], "'..'"),
    (["--text", "cats.txt", "--resume"], "there is no data/cats.pt to resume; `python gpt.py runs` lists"),
    (["sample"], "`python gpt.py` makes one"), (["sample", "--top_p", "2"], "`python gpt.py` makes one"),
    (["sample", "nobody"], "no run nobody"), (["sample", "--tokens", "few"], "few"), (["--bogus"], "--bogus"),
    (["hello", "--text", "cats.txt"], "leave out"), (["--vocab_size", "99"], "--tokenizer bpe"),
    (["--size", "8M"], "'7M', '11M'"), (["--tokenizer", "word"], "char or bpe"),
    (["--tokenizer", "bpe", "--vocab_size", "256", "--text", "cats.txt"], "at least 257"),
    (["hello", "--n_embd", "33"], "n_embd must be a multiple of n_head=4"),
    (["hello", "--position", "rotary", "--n_embd", "12"], "rotary positions need pairs"),
    (["--tokenizer", "bpe", "--vocab_size", "9000", "--text", "cats.txt"], "too short for vocab_size=9000"),
])
def test_a_mistake_gets_one_line_and_exit_code_2(cats, arguments, words):
    (cats / "latin.txt").write_bytes(b"na\xefve" * 100)
    (cats / "short.txt").write_text("Hello there!")
    (cats / "empty.txt").write_text("")
    before = sorted(cats.rglob("*"))
    one_line(*arguments, words=words)
    assert sorted(cats.rglob("*")) == before


def test_help_explains_every_setting_and_what_may_be_chosen():
    code, output, _ = main("--help")
    assert code == 0
    said = " ".join(output.split())
    for name in vars(gpt.Config()):
        assert f"--{name}" in said
    for words in ("learned, sinusoidal or rotary", "char, a character, or bpe", "hello", "runs", "sizes", "(3000)"):
        assert words in said
    assert main("sample", "--help")[0] == main("runs", "--help")[0] == 0


def test_importing_does_no_work_and_prints_nothing(tmp_path):
    code = "import gpt, bigram; print(gpt.Config().block_size)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{gpt.Config().block_size}\n", "")
    assert list(tmp_path.iterdir()) == []


# Stopping and going on


def run_in_terminal(folder, *arguments, interrupt_after=None):
    """The output, exit code and seconds to stop of gpt.py in a pseudo-terminal; Ctrl-C once a text has appeared."""
    pty = pytest.importorskip("pty")
    terminal, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, ROOT / "gpt.py", *map(str, arguments)], cwd=folder, stdin=slave,
                               stdout=slave, stderr=slave, start_new_session=True)
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


def same_weights(one, other):
    ours, theirs = (gpt.load_run(folder / "data" / "cats.pt") for folder in (one, other))
    return all(torch.equal(weight, theirs.model.state_dict()[name]) and
               torch.equal(ours.report.best[name], theirs.report.best[name])
               for name, weight in ours.model.state_dict().items())


def test_ctrl_c_stops_at_once_and_resume_goes_on_to_the_same_end(cats, monkeypatch):
    settings = [*CATS[:-4], "--max_steps", 3000, "--eval_interval", 50, "--dropout", 0.1]
    output, code, seconds = run_in_terminal(cats, *settings, interrupt_after=b"/3000  train")
    last = output.splitlines()[-1]
    assert code == 130 and seconds < 3 and last.startswith("gpt.py: stopped; step ") and "--resume" in last
    assert "\rstep" in output and "9. The run" not in output    # redrawn in place, and nothing after the stop
    saved = gpt.load_run(cats / "data" / "cats.pt")
    assert f"step {saved.report.step} is saved" in last and saved.report.step % 50 == 0

    more = ["--max_steps", saved.report.step + 70]              # the rest would take too long for a test
    code, output, error = main("--text", "cats.txt", "--resume", *more)
    assert (code, error) == (0, "") and gpt.load_run("data/cats.pt").config.dropout == 0.1
    kept = {name: (cats / "data" / name).read_bytes() for name in ("cats.csv", "cats-gpt.txt")}
    assert kept["cats.csv"].splitlines()[-1].startswith(f"{saved.report.step + 70},".encode())


def interrupt_at(monkeypatch, step):
    """Press Ctrl-C in that step of the GPT's training."""
    as_it_is = gpt.training_step

    def pressed(model, optimizer, data, at, config):
        if at == step and config.block_size > 1:
            raise KeyboardInterrupt
        return as_it_is(model, optimizer, data, at, config)

    monkeypatch.setattr(gpt, "training_step", pressed)


def test_an_interrupted_run_ends_as_one_that_never_stopped(cats, tmp_path_factory, monkeypatch):
    settings = [*CATS, "--dropout", 0.1, "--max_steps", 45]
    whole = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(whole):
        (whole / "cats.txt").write_text(TEXT)
        assert main(*settings)[0] == 0
    for step, last in ((7, 0), (20, 15), (44, 30)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            code, output, error = main(*(settings if step == 7 else ["--text", "cats.txt", "--resume"]))
        assert code == 130
        assert error == (f"gpt.py: stopped; step {last} is saved, and the same command with --resume --name cats goes "
                         f"on from there\n")
    code, output, _ = main("--text", "cats.txt", "--resume")
    assert code == 0 and "step 250/500" not in output           # the bigram is in the checkpoint
    assert same_weights(cats, whole)
    for name in ("cats.csv", "cats-gpt.txt", "cats-bigram.txt"):
        assert (cats / "data" / name).read_bytes() == (whole / "data" / name).read_bytes()


def test_saves_by_time_are_as_good_as_those_at_evaluations(cats, monkeypatch):
    monkeypatch.setattr(gpt, "SAVE_SECONDS", 0)
    interrupt_at(monkeypatch, 22)
    assert "step 22 is saved" in main(*CATS)[2]
    report = gpt.load_run("data/cats.pt").report
    assert (report.step, len(report.history)) == (22, 1) and report.loss_sum > 0


def test_ctrl_c_before_the_first_save(cats, monkeypatch):
    def pressed(*arguments):
        raise KeyboardInterrupt
    monkeypatch.setattr(gpt, "train_bigram", pressed)
    assert main(*CATS)[::2] == (130, "gpt.py: stopped before anything was saved\n")
    monkeypatch.setattr(gpt, "load_text", pressed)
    assert main(*CATS)[::2] == (130, "gpt.py: stopped\n")


def test_ctrl_c_while_torch_is_loaded_ends_without_a_word(tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(30)\n")
    process = subprocess.Popen([sys.executable, ROOT / "gpt.py"], env={**os.environ, "PYTHONPATH": str(tmp_path)},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=5) == ("", "") and process.returncode == -signal.SIGINT      # 130 in a shell


def test_resume_takes_its_settings_from_the_checkpoint_and_refuses_others(cats):
    assert main(*CATS)[0] == 0
    before = contents(cats)
    for change, words in ((["--n_embd", "32"], "n_embd=16, not 32"), (["--seed", "5"], "seed=1337, not 5"),
                          (["--block_size", "32"], "block_size=16, not 32"), (["--size", "11M"], "not"),
                          (["--tokenizer", "bpe", "--vocab_size", "280"], "not"),
                          (["--max_steps", "30"], "trained for 40 steps; max_steps=30 is less")):
        one_line("--text", "cats.txt", "--resume", *change, words=words)
    (cats / "cats.txt").write_text(TEXT.replace("cat", "act"))
    one_line("--text", "cats.txt", "--resume", words="another text")
    (cats / "cats.txt").write_text(TEXT)
    assert contents(cats) == before
    code, output, _ = main("--text", "cats.txt", "--resume", "--max_steps", "60", "--eval-interval", "20", "--n_embd", "16")
    assert code == 0 and "step 60/60" in output
    run = gpt.load_run("data/cats.pt")
    assert (run.config.n_embd, run.config.max_steps, run.report.step) == (16, 60, 60)
    assert [row["step"] for row in run.report.history] == [15, 30, 40, 60]


def test_resume_of_a_finished_run_writes_what_is_missing(story, cats):
    (cats / "data").mkdir()
    (cats / "data" / "cats.pt").write_bytes((story[0] / "data" / "cats.pt").read_bytes())
    assert main("--text", "cats.txt", "--resume")[0] == 0
    for name in ("cats.csv", "cats-gpt.txt", "cats-bigram.txt"):
        assert (cats / "data" / name).read_bytes() == (story[0] / "data" / name).read_bytes()


# Nothing is written over


def test_a_new_run_sets_the_one_before_aside(cats):
    assert main(*CATS)[0] == 0
    first = {path.name: content for path, content in contents(cats / "data").items()}
    code, output, _ = main(*CATS, "--seed", 2)
    assert code == 0 and "what was kept as cats is now called cats-1\n" in output
    assert files(cats) == ["cats-1-bigram.txt", "cats-1-gpt.txt", "cats-1.csv", "cats-1.pt",
                           "cats-bigram.txt", "cats-gpt.txt", "cats.csv", "cats.pt"]
    assert all((cats / "data" / name.replace("cats", "cats-1")).read_bytes() == content
               for name, content in first.items())
    assert main("sample", "cats-1", "--tokens", 5)[0] == 0
    assert main(*CATS, "--name", "dogs")[0] == 0 and "dogs.pt" in files(cats)
    code, output, _ = main("runs")
    assert code == 0 and [line.split()[0] for line in output.splitlines()] == ["run", "cats-1", "cats", "dogs"]
    assert output.splitlines()[1].split()[2] == "40/40"
    one_line("sample", "birds", words="cats-1, cats, dogs")


def test_a_run_that_is_stopped_at_once_has_not_harmed_the_one_before(cats, monkeypatch):
    assert main(*CATS)[0] == 0
    good = contents(cats / "data")
    interrupt_at(monkeypatch, 3)
    assert main(*CATS)[0] == 130
    assert {content for content in contents(cats / "data").values()} >= set(good.values())


@pytest.mark.parametrize("name", ["cats.csv", "cats-gpt.txt"])
def test_files_that_are_no_runs_are_left_alone(cats, name):
    (cats / "data").mkdir()
    (cats / "data" / name).write_text("my own work")
    before = contents(cats)
    one_line(*CATS, words=f"data/{name} belongs to no run")
    assert contents(cats) == before
    (cats / "data" / "mine-gpt.txt").write_text(TEXT)
    one_line("--text", "data/mine-gpt.txt", "--name", "mine", words="mine-gpt.txt")


def test_a_text_in_data_is_not_written_over(cats):
    (cats / "data").mkdir()
    (cats / "data" / "poems-bigram.txt").write_text(TEXT)
    one_line("--text", "data/poems-bigram.txt", "--name", "poems", words="would write over data/poems-bigram.txt")


def test_a_run_whose_name_is_taken_meanwhile_goes_on_under_another(cats, monkeypatch):
    as_it_is = gpt.training_step

    def meanwhile(model, optimizer, data, step, config):
        if step == 20 and config.block_size > 1:
            (cats / "data" / "cats.pt").unlink()
            (cats / "data" / "cats.pt").write_bytes(b"of another run")
        return as_it_is(model, optimizer, data, step, config)

    monkeypatch.setattr(gpt, "training_step", meanwhile)
    code, output, _ = main(*CATS)
    assert code == 0 and "another run is kept as cats now; this one goes on as cats-1\n" in output
    assert (cats / "data" / "cats.pt").read_bytes() == b"of another run"
    assert gpt.load_run(cats / "data" / "cats-1.pt").report.step == 40
    assert {"cats-1.csv", "cats-1-gpt.txt"} <= set(files(cats)) and "data/cats-1-gpt.txt" in output


def test_a_link_stays_a_link(cats, tmp_path_factory):
    target = tmp_path_factory.mktemp("elsewhere")
    (cats / "data").symlink_to(target)
    assert main(*CATS)[0] == 0
    moved = target / "moved.pt"
    (cats / "data" / "cats.pt").rename(moved)
    (cats / "data" / "cats.pt").symlink_to(moved)
    assert main("--text", "cats.txt", "--resume", "--max_steps", 45)[0] == 0
    assert (cats / "data" / "cats.pt").is_symlink() and gpt.load_run(moved).report.step == 45


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    gpt.write_whole(path, b"before")
    with monkeypatch.context() as patch:
        patch.setattr(gpt.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left on device: .*file"):
            gpt.write_whole(path, b"half of what")
    assert path.read_bytes() == b"before" and list(path.parent.iterdir()) == [path]
    gpt.write_whole(path, b"after")
    assert path.read_bytes() == b"after" and list(path.parent.iterdir()) == [path]


# What is shown


def test_control_and_wide_characters_do_not_upset_a_terminal(in_tmp, short_baseline):
    (in_tmp / "odd.txt").write_text("東京 \x1b[2J bell\a and 🙂\n" * 300, encoding="utf-8")
    code, output, _ = main("--text", "odd.txt", *TINY)
    assert code == 0 and not set(output) & {"\x1b", "\a", "\r"} and r"\x1b[2J" in output
    sample = (in_tmp / "data" / "odd-gpt.txt").read_text(encoding="utf-8")
    assert set(sample) <= set((in_tmp / "odd.txt").read_text(encoding="utf-8"))     # as it is in the file
    rows = [line for line in output[output.index("8. Writing"):].splitlines() if " | " in line]
    width = lambda text: sum(2 if gpt.unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
    assert len(rows) > 5 and {width(row.split(" | ")[0]) for row in rows} == {38}


def test_the_curve_puts_each_loss_in_its_place(capsys):
    history = [{"step": 10 * i, "train_loss": train, "val_loss": val}
               for i, (train, val) in enumerate([(4.0, 2.0), (1.5, 1.5), (1.0, 1.25)], start=1)]
    gpt.show_curve(history[:2], 2.5)
    assert capsys.readouterr().out == ""                        # two evaluations are no curve
    gpt.show_curve(history, 2.5)
    lines = capsys.readouterr().out.splitlines()
    assert "1.0000" in lines[1] and "4.0000" in lines[1]
    for line, row in zip(lines[2:5], history):
        assert line.split()[0] == str(row["step"])
        for mark, loss in (("t", row["train_loss"]), ("V", row["val_loss"]), ("|", 2.5)):
            if mark == "V" or loss != row["val_loss"]:          # where two meet, V is shown
                assert line.index(mark) == 10 + round(57 * (loss - 1) / 3)
    gpt.show_curve(100 * history, None)
    out = capsys.readouterr().out
    assert out.count("V") <= 17 and "|" not in out and "bigram" not in out


def test_surprise_is_shown_as_probable_as_the_models_found_it(capsys):
    text = "the cat\nsat on the mat. " * 20
    tokenizer = gpt.build_char_tokenizer(text)
    data = torch.tensor(tokenizer.encode(text))
    torch.manual_seed(0)
    bigram, model = counted_bigram(data, tokenizer.vocab_size), noisy_gpt(
        gpt.Config(vocab_size=tokenizer.vocab_size, block_size=9, n_layer=1, n_head=2, n_embd=8))
    gpt.show_surprise({"bigram": bigram, "GPT": model}, tokenizer, data)
    lines, expected, hits = capsys.readouterr().out.splitlines(), {"bigram": "", "GPT": ""}, {"bigram": 0, "GPT": 0}
    places = range(5, 5 * ((len(data) - 10) // 5 + 1) + 5)      # windows of 10, of which the last 5 are judged
    for t in places:
        start = (t - 5) // 5 * 5
        for name, judge in (("bigram", bigram), ("GPT", model)):
            probs = judge(data[None, start:t])[0][0, -1].softmax(dim=0)
            expected[name] += gpt.shade(probs[data[t]].item())
            hits[name] += (probs.argmax() == data[t]).item()
    for k, start in enumerate((0, 60, 120)):
        shown = [line[12:].ljust(60) for line in lines[3 + 4 * k:6 + 4 * k]]
        assert shown == [text.replace("\n", "↵")[5:][start:start + 60],
                         *(row[start:start + 60] for row in expected.values())]
    shares = next(line for line in lines if line.startswith(f"any token ({len(places)})")).split()
    assert shares[-2:] == [f"{hit / len(places):.0%}" for hit in hits.values()]
    first, later = (int(re.search(rf"{words} of a word \((\d+)\)", "\n".join(lines))[1]) for words in ("first", "rest"))
    judged = text[places[0]:places[-1] + 1]
    assert later == sum(a.isalpha() and b.isalpha() for a, b in zip(judged, judged[1:]))
    assert first + later == sum(map(str.isalpha, judged))
    assert f"between words ({len(places) - first - later})" in "\n".join(lines)


def test_a_text_that_is_too_short_to_be_surprised(capsys):
    gpt.show_surprise({"GPT": noisy_gpt(tiny_config())}, None, torch.zeros(8, dtype=torch.uint8))
    assert capsys.readouterr().out == ""


def test_settings_may_be_spelled_with_hyphens(cats):
    assert main("--text=cats.txt", *TINY, "--max-steps=5", "--no-tie-weights", "--no_bias", "--eval-interval", "3")[0] == 0
    config = gpt.load_run("data/cats.pt").config
    assert (config.max_steps, config.eval_interval, config.bias, config.tie_weights) == (5, 3, False, False)
    (cats / "my-text.txt").write_text(TEXT)
    assert main("--text=my-text.txt", *TINY, "--max-steps=5")[0] == 0           # a value keeps its hyphens
    assert "my-text.pt" in files(cats)


def test_a_size_goes_before_the_settings_of_a_demo(in_tmp, short_baseline):
    main("hello", "--size", "5k", "--max_steps", "2")
    assert gpt.load_run("data/hello.pt").config.n_embd == 16


def test_odd_texts_and_losses_are_shown(in_tmp, short_baseline):
    (in_tmp / "a.txt").write_text("a" * 2000)
    code, output, _ = main("--text", "a.txt", *TINY)                            # one character, a loss of 0
    assert code == 0 and "GPT" in output
    gpt.print_results([("wild", 1, 1336.0, None)])


def test_a_large_vocabulary_goes_without_a_bigram(cats, monkeypatch):
    monkeypatch.setattr(gpt, "LARGEST_BIGRAM", 10)
    code, output, _ = main(*CATS)
    assert code == 0 and "left out: its table would have 676 numbers" in output
    assert files(cats) == ["cats-gpt.txt", "cats.csv", "cats.pt"] and "diff -y" not in output
    assert main("--text", "cats.txt", "--resume", "--max_steps", 45)[0] == 0


def test_a_text_that_keeps_us_waiting_is_named(cats, monkeypatch, capsys):
    os.mkfifo("pipe.txt")
    monkeypatch.setattr(gpt, "on_terminal", lambda: True)
    late = threading.Timer(0.3, lambda: (cats / "pipe.txt").write_text(TEXT, encoding="utf-8"))
    late.start()
    assert gpt.load_text(cats / "pipe.txt") == ("pipe", TEXT)
    assert "pipe.txt" in capsys.readouterr().out


def test_a_failure_of_the_compiler_gets_one_line(cats, monkeypatch):
    class NoCompiler(RuntimeError):
        __module__ = "torch._inductor.exc"

    def fail(*arguments):
        raise NoCompiler("no C++ compiler was found\nand a long story")
    monkeypatch.setattr(gpt.nn.Module, "compile", lambda self: None)
    monkeypatch.setattr(gpt, "show_model", fail)
    assert one_line(*CATS, "--compile") == "gpt.py: --compile does not work here: no C++ compiler was found\n"


def test_output_may_be_closed_or_narrow(cats):
    with contextlib.redirect_stdout(None):
        assert gpt.main([str(argument) for argument in CATS]) == 0
    line = gpt.progress(gpt.Report(None, step=3, loss_sum=6.0), gpt.Config(), 2.0)
    assert line == "step    3/3000  train 2.0000  val -  1,536 tokens/s  24:58 left"
