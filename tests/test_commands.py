"""Chapter 9 and the appendix: the commands as a user types them, and the files that they leave."""

import csv
import math
import os
import pty
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TEXT, noisy_gpt, tiny_config

import gpt

TINY = ["--block_size", 16, "--n_layer", 1, "--n_head", 2, "--n_embd", 16, "--max_steps", 40, "--eval_interval", 15]


def files(folder):
    return sorted(path.name for path in (folder / "data").glob("*"))


def table(output):
    """The last table of an output, as {model: [columns]}."""
    lines = output[output.rindex("model   "):].splitlines()[1:4]
    return {line[:16].strip(): line[16:].split() for line in lines}


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """One run of `python gpt.py` on a small text: its folder and its output."""
    folder = tmp_path_factory.mktemp("story")
    (folder / "cats.txt").write_text(TEXT, encoding="utf-8")
    done = subprocess.run([sys.executable, ROOT / "gpt.py", "--text", "cats.txt", *map(str, TINY)], cwd=folder,
                          capture_output=True, text=True, timeout=80)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


def test_the_story_tells_its_chapters_in_80_columns(story):
    output = story[1]
    titles = ["1. Text", "2. Tokens", "3. Batches", "4. Bigram", "5. Attention", "6. GPT", "7. Training",
              "8. Writing", "9. The run"]
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


def test_the_story_leaves_its_files(story):
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
    assert f"val {float(rows[-1]['val_loss']):.4f}" in output


def test_bigram_prints_the_same_form_and_leaves_the_same_sample(story, command):
    done = command("bigram.py", "--text", "cats.txt")
    assert (done.returncode, done.stderr) == (0, "")
    ours, theirs = table(done.stdout), table(story[1])
    assert ours["uniform"] == theirs["uniform"] and ours["bigram"][:4] == theirs["bigram"][:4]
    assert "'q'" not in done.stdout and "'T'      'h'" in done.stdout      # after T comes h, in TEXT always
    assert max(map(len, done.stdout.splitlines()[:-30])) < 80
    sample = (command.folder / "data" / "cats-bigram.txt").read_text()
    assert sample == (story[0] / "data" / "cats-bigram.txt").read_text()


def test_sample_writes_from_the_saved_run(story, monkeypatch, capsys):
    arguments = ["--prompt", r"The cat\nThe", "--tokens", "30", "--seed", "1", "--top_k", "5", "--top_p", "0.9"]
    monkeypatch.chdir(story[0])
    assert gpt.main(["sample", *arguments]) == 0
    written = capsys.readouterr().out
    assert written.startswith("The cat\nThe") and len(written) == 11 + 30 + 1
    assert gpt.main(["sample", "cats", *arguments]) == 0                # the same seed, the same text
    assert capsys.readouterr().out == written


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999999"])
def test_a_seed_out_of_range_is_named(story, monkeypatch, capsys, seed):
    monkeypatch.chdir(story[0])
    assert gpt.main(["sample", "--seed", seed]) == 2
    assert f"seed must be at least 0 and below 4294967296, not {seed}" in capsys.readouterr().err


def test_a_reader_that_leaves_ends_the_sample_quietly(story):
    script = f"{sys.executable} {ROOT / 'gpt.py'} sample --tokens 3000 | head -c 5"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], cwd=story[0], capture_output=True, timeout=60)
    assert done.stderr == b"" and len(done.stdout) == 5


def test_with_no_network_the_manual_is_learned_under_its_own_name(command):
    done = command("gpt.py", *TINY[:-4], "--max_steps", 3)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ProxyError" in done.stdout and "data/tinyshakespeare.txt" in done.stdout
    assert files(command.folder) == ["manual-bigram.txt", "manual-gpt.txt", "manual.csv", "manual.pt"]


@pytest.mark.parametrize("arguments, words", [
    (["--text", "missing.txt"], "missing.txt"), (["--text", "."], "'.'"), (["--text", "latin.txt"], "not UTF-8"),
    (["--text", "short.txt"], "the text has 10 tokens"), (["--text", "empty.txt"], "the text has 0 tokens"),
    (["--text", "cats.txt", "--block_size", "9000"], "block_size=9000"),
    (["--n_layers", "3"], "--n_layers"), (["--n_layer", "many"], "many"), (["--n_layer", "0"], "n_layer"),
    (["--device", "abacus"], "abacus"), (["--position", "nowhere"], "nowhere"), (["poem"], "poem"),
    (["--text", "cats.txt", "--resume"], "there is no checkpoint data/cats.pt"),
    (["sample"], "`python gpt.py` makes one"), (["sample", "--top_p", "2"], "`python gpt.py` makes one"),
    (["sample", "nobody"], "data/nobody.pt"), (["sample", "--tokens", "few"], "few"),
])
def test_a_mistake_gets_one_line_and_exit_code_2(in_tmp, capsys, arguments, words):
    (in_tmp / "cats.txt").write_text(TEXT)
    (in_tmp / "latin.txt").write_bytes(b"na\xefve" * 100)
    (in_tmp / "short.txt").write_text("Hello there!")
    (in_tmp / "empty.txt").write_text("")
    before = sorted(in_tmp.rglob("*"))
    try:
        code = gpt.main([*([] if arguments[0] == "sample" else ["--max_steps", "5"]), *arguments])
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and error.startswith("gpt.py") and words in error
    assert sorted(in_tmp.rglob("*")) == before


def test_importing_does_no_work_and_prints_nothing(tmp_path):
    code = "import gpt, bigram; print(gpt.Config().block_size)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{gpt.Config().block_size}\n", "")
    assert list(tmp_path.iterdir()) == []


def run_in_terminal(folder, *arguments, interrupt_after=None):
    """The output and exit code of gpt.py in a pseudo-terminal; Ctrl-C once a text has appeared."""
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, ROOT / "gpt.py", *map(str, arguments)], cwd=folder, stdin=slave,
                               stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    output = b""
    while True:
        try:
            output += os.read(master, 4096)
        except OSError:                                         # how Linux tells that the other end is closed
            break
        if interrupt_after and interrupt_after in output:
            interrupt_after = None
            process.send_signal(signal.SIGINT)
    os.close(master)
    return output.decode(), process.wait()


def test_ctrl_c_saves_and_samples_and_resume_goes_on_to_the_same_end(tmp_path, short_baseline, monkeypatch, capsys):
    (tmp_path / "cats.txt").write_text(TEXT)
    settings = ["--text", "cats.txt", *TINY[:-4], "--max_steps", 450, "--eval_interval", 200, "--dropout", 0.1]
    output, code = run_in_terminal(tmp_path, *settings, interrupt_after=b"/450  train")
    assert code == 0 and "stopped after step" in output and "GPT  " in output
    assert "\rstep" in output                                   # redrawn in place
    assert files(tmp_path) == ["cats-bigram.txt", "cats-gpt.txt", "cats.csv", "cats.pt"]
    stopped = gpt.read_checkpoint(tmp_path / "data" / "cats.pt")
    assert 0 < stopped["step"] < 450

    monkeypatch.chdir(tmp_path)
    assert gpt.main([*map(str, settings), "--resume"]) == 0
    assert f"going on after step {stopped['step']}, with the learning rate of 450 steps\n" in capsys.readouterr().out
    at_once = tmp_path / "at once"
    at_once.mkdir()
    monkeypatch.chdir(at_once)
    assert gpt.main([*map(str, settings[2:]), "--text", "../cats.txt"]) == 0
    for name in ("cats.csv", "cats-gpt.txt"):
        assert (tmp_path / "data" / name).read_text() == (at_once / "data" / name).read_text()
    ours, theirs = (gpt.read_checkpoint(folder / "data" / "cats.pt") for folder in (tmp_path, at_once))
    for name, weight in theirs["model"].items():
        assert torch.equal(weight, ours["model"][name])


def test_resume_refuses_other_settings_and_another_text(in_tmp, short_baseline, capsys):
    (in_tmp / "cats.txt").write_text(TEXT)
    assert gpt.main(["--text", "cats.txt", *map(str, TINY)]) == 0
    before = (in_tmp / "data" / "cats.pt").read_bytes()
    for change, words in ((["--n_embd", "32"], "n_embd=16, not 32"), (["--seed", "5"], "seed=1337, not 5")):
        assert gpt.main(["--text", "cats.txt", *map(str, TINY), "--resume", *change]) == 2
        assert words in capsys.readouterr().err
    (in_tmp / "cats.txt").write_text(TEXT.replace("cat", "act"))
    assert gpt.main(["--text", "cats.txt", *map(str, TINY), "--resume"]) == 2
    assert "another text" in capsys.readouterr().err
    assert (in_tmp / "data" / "cats.pt").read_bytes() == before


def test_a_checkpoint_gives_back_the_same_model(tmp_path):
    config = tiny_config(dropout=0.1)
    model = noisy_gpt(config)
    state = {"model": model.state_dict(), "write_with": "model"}
    gpt.save_checkpoint(tmp_path / "a.pt", config, gpt.CharTokenizer("abcdefghijk"), state)
    loaded, tokenizer = gpt.load_checkpoint(tmp_path / "a.pt")
    idx = torch.randint(11, (2, 8))
    assert torch.equal(loaded(idx)[0], model(idx)[0])
    assert loaded.config == config and not loaded.training and tokenizer.characters == "abcdefghijk"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError):
        with gpt.replacing(path) as file:
            file.write(b"half of what")
            raise RuntimeError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    with gpt.replacing(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]
