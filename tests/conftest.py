"""Fixtures and helpers that several test files share."""

import contextlib
import csv
import io
import os
import shutil
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")       # models this small are faster on one thread
import gpt  # before torch: it silences torch's warning that NumPy is missing
import torch

ROOT = Path(__file__).parent.parent
TEXT = "".join(f"The cat number {i} sat on mat {i * 7 % 13}.\n" for i in range(100))


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Change to a temporary folder, so that data/ is made there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(tmp_path):
    """Run a script of the project as a user would, in a temporary folder and with no network."""
    (tmp_path / "cats.txt").write_text(TEXT, encoding="utf-8")
    unreachable = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy")}

    def run(script, *arguments, **options):
        return subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], cwd=tmp_path,
                              env={**os.environ, **unreachable}, capture_output=True, text=True,
                              encoding="utf-8", timeout=80, **options)

    run.folder = tmp_path
    return run


@pytest.fixture
def run_toy(in_tmp, capsys):
    """Call attention_toy.py with arguments, in a temporary folder -> (exit code, stdout, stderr)."""
    import attention_toy
    (in_tmp / "cats.txt").write_text(TEXT, encoding="utf-8")

    def run(*arguments):
        code = gpt.run_cleanly("attention_toy.py", attention_toy.command, list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run


def main(*arguments, program=gpt.main):
    """(exit code, standard output, standard error) of a command, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def one_line(*arguments, words=""):
    """Run a command that must fail with one line and exit code 2; returns the line."""
    code, _, error = main(*arguments)
    assert code == 2 and error.count("\n") == 1 and error.startswith("gpt.py") and words in error, error
    return error


@contextlib.contextmanager
def chdir(folder):
    """Within it, `folder` is the current one. (contextlib.chdir needs Python 3.11.)"""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@contextlib.contextmanager
def serving(handler):
    """A real HTTP server on loopback. It has a .url, the paths .asked for, and the event .over, set at its end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.url, server.asked = f"http://127.0.0.1:{server.server_port}", []
    server.over = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def tiny_config(**changes):
    """The options of a model that is small enough to try everything with."""
    defaults = dict(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16, batch_size=4,
                    max_steps=6, warmup_steps=2, eval_interval=3, learning_rate=1e-2)
    return gpt.Options(**{**defaults, **changes})


def noisy_gpt(config, seed=0):
    """A GPT all of whose parameters are random: LayerNorms begin with ones and zeros, which would hide mistakes."""
    torch.manual_seed(seed)
    model = gpt.build_gpt(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def save_model(name, text=TEXT, tokenizer=None, evaluated=True, **changes):
    """Keep a small GPT with random parameters, as gpt.py keeps a run of `text` -> (model, tokenizer)."""
    tokenizer = tokenizer or gpt.CharTokenizer(text)
    model = noisy_gpt(tiny_config(vocab_size=tokenizer.vocab_size, **changes))
    history = [{"step": 0, "train_loss": 2.5, "val_loss": 2.25, "learning_rate": 0.1}] if evaluated else []
    gpt.save_checkpoint(gpt.DATA / f"{name}.pt", model, tokenizer, {
        "step": 0, "losses": [], "history": history, "best": model.state_dict() if evaluated else None,
        "optimizer": {}, "text_path": None, "text_sha256": gpt.hash_of(text)})
    return model, tokenizer


def files(folder):
    """The names of the files in its data/, sorted; locks, which are empty, left out."""
    return sorted(path.name for path in (folder / "data").glob("[!.]*"))


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
    for ending in ("-bigram.txt", "-gpt.txt", ".csv"):
        assert (one / "data" / (name + ending)).read_bytes() == (other / "data" / (name + ending)).read_bytes()
    ours, theirs = (torch.load(folder / "data" / f"{name}.pt", weights_only=True) for folder in (one, other))
    for saved in (ours, theirs):
        saved["progress"].pop("text_path")                  # the folders differ
    assert_same_tensors(ours.pop("parameters"), theirs.pop("parameters"))
    assert_same_tensors(ours["progress"].pop("best"), theirs["progress"].pop("best"))
    ours_kept, theirs_kept = ours["progress"].pop("optimizer"), theirs["progress"].pop("optimizer")
    assert ours_kept.keys() == theirs_kept.keys() and len(ours_kept) > 0
    for i in ours_kept:
        assert_same_tensors(ours_kept[i], theirs_kept[i])
    assert ours == theirs                                   # steps, history, options, vocabulary, text


def counted_bigram(tokens, vocab_size):
    """A bigram model made by counting which token follows which in tokens (N,)."""
    counts = torch.zeros(vocab_size, vocab_size)
    counts.index_put_((tokens[:-1], tokens[1:]), torch.ones(len(tokens) - 1), accumulate=True)
    model = gpt.BigramLanguageModel(vocab_size)
    model.table.weight.data = counts.log()              # never seen: -inf, probability 0
    return model


def as_options(**settings):
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


TINY_MODEL = dict(block_size=16, n_layer=1, n_head=2, n_embd=16, dropout=0.1)
TINY_RUN = dict(**TINY_MODEL, max_steps=40, eval_interval=15)
TINY = as_options(**TINY_RUN)
CATS = ["--text", "cats.txt", *TINY]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """One run of `python gpt.py` on a small text: its folder, and what it printed and said."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "cats.txt").write_text(TEXT)
    with chdir(folder):
        code, output, error = main(*CATS)
    assert code == 0, error
    return folder, output, error


@pytest.fixture
def cats(in_tmp):
    """The current folder, with that text in it."""
    (in_tmp / "cats.txt").write_text(TEXT)
    return in_tmp


@pytest.fixture
def copy(trained, cats):
    """The current folder, with a copy of that run in it."""
    shutil.copytree(trained[0] / "data", cats / "data")
    return cats
