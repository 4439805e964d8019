"""What is saved is never lost, and what is loaded is never trusted.

KILLS=200 in the environment makes the loop of kill -9 longer than it is by default.
"""

import csv
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TEXT

import gpt

pytestmark = pytest.mark.usefixtures("short_baseline")
KILLS = int(os.environ.get("KILLS", 20))
SMALL = ["--text", "cats.txt", "--block_size", "16", "--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--dropout",
         "0.1", "--max_steps", "40", "--eval_interval", "10"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a finished run on TEXT, as a function that reads a fresh copy."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "cats.txt").write_text(TEXT)
    before = os.getcwd()
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setitem(gpt.BIGRAM_TRAINING, "max_steps", 5)
            assert gpt.main(SMALL) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def copy(trained, in_tmp):
    """The current folder, with the finished run in it."""
    (in_tmp / "cats.txt").write_text(TEXT)
    (in_tmp / "data").mkdir()
    for path in (trained / "data").iterdir():
        (in_tmp / "data" / path.name).write_bytes(path.read_bytes())
    return in_tmp


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def one_line(capsys, arguments, words=""):
    """Run a command that must fail in one line, exit code 2."""
    try:
        code = gpt.main(arguments)
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and error.startswith("gpt.py") and "Traceback" not in error
    assert words in error, error
    return error


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def assert_same_runs(one, other):
    """Both folders hold the same weights to the last bit, the same log, the same samples."""
    for name in ("cats.csv", "cats-gpt.txt", "cats-bigram.txt"):
        assert (one / "data" / name).read_bytes() == (other / "data" / name).read_bytes()
    ours, theirs = (gpt.read_checkpoint(folder / "data" / "cats.pt", gpt.TO_RESUME) for folder in (one, other))
    for kind in ("model", "best"):
        assert all(torch.equal(weight, theirs[kind][name]) for name, weight in ours[kind].items())
    for ours_kept, theirs_kept in zip(ours["optimizer"]["state"].values(), theirs["optimizer"]["state"].values()):
        assert all(torch.equal(ours_kept[name], theirs_kept[name]) for name in ours_kept)
    assert ours["history"] == theirs["history"] and ours["step"] == theirs["step"]


# Starts runs in forks of one process that has imported torch already, and prints how each ended.
FORKS = f"""
import os, random, signal, socket, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import gpt
gpt.BIGRAM_TRAINING["max_steps"] = 5

def start(arguments, folder=".", output="output.txt"):
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        code = gpt.main(arguments + (["--resume"] if Path("data/cats.pt").exists() else []))
        sys.stdout.flush()
        os._exit(code)
    return pid

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def in_forks(code, folder, timeout=300):
    done = subprocess.run([sys.executable, "-c", FORKS + code], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=timeout)
    assert done.stderr == "" and done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_kill_9_at_random_moments_loses_nothing(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    for folder in (tmp_path, whole):
        (folder / "cats.txt").write_text(TEXT)
    settings = [*SMALL[:-4], "--max_steps", "200", "--eval_interval", "20"]
    codes = in_forks(f"""
settings, draw = {settings!r}, random.Random({random.randrange(10**6)})
print(wait(start(settings, "whole")))
for _ in range({KILLS}):
    pid = start(settings)
    time.sleep(draw.uniform(0.02, 0.2))
    os.kill(pid, signal.SIGKILL)
    print(wait(pid))
print(wait(start(settings)))
""", tmp_path, timeout=60 + 2 * KILLS)
    first, *killed, last = codes
    assert (first, last) == (0, 0) and len(killed) == KILLS
    assert set(killed) <= {-signal.SIGKILL, 0} and killed.count(-signal.SIGKILL) > KILLS // 2
    assert_same_runs(tmp_path, whole)
    assert [int(row["step"]) for row in rows(tmp_path / "data" / "cats.csv")] == list(range(20, 201, 20))
    assert not list((tmp_path / "data").glob("cats.pt.*")) and not list((tmp_path / "data").glob("cats.csv.*"))


def test_two_runs_of_one_name_leave_what_is_whole_and_of_one(tmp_path):
    (tmp_path / "cats.txt").write_text(TEXT)
    code = f"""
pids = [start({[*SMALL, "--eval_interval", "1", "--max_steps", "25"]!r} + ["--seed", str(seed)]) for seed in (1, 2)]
print(*[wait(pid) for pid in pids])
"""
    process = subprocess.Popen([sys.executable, "-c", FORKS + code], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    looks, seeds, data = 0, set(), tmp_path / "data"
    while process.poll() is None:
        if (data / "cats.csv").exists():
            with gpt.alone_in(data):
                checkpoint, log = gpt.read_checkpoint(data / "cats.pt", gpt.TO_RESUME), rows(data / "cats.csv")
            assert [{name: str(value) for name, value in row.items()} for row in checkpoint["history"]] == log
            seeds.add(checkpoint["config"]["seed"])
            looks += 1
        time.sleep(0.005)
    assert process.stdout.read() == "0 0\n" and looks > 5 and seeds == {1, 2}
    assert sorted(path.name for path in data.iterdir()) == ["cats-bigram.txt", "cats-gpt.txt", "cats.csv", "cats.pt"]


# The disk


@pytest.mark.parametrize("limit", [0, 100, 8192, 30000])
def test_a_disk_that_is_full_keeps_the_checkpoint_before(copy, trained, capsys, limit):
    before = contents(copy)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))           # the system refuses more bytes in a file
    try:
        error = one_line(capsys, [*SMALL, "--max_steps", "60", "--resume"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large: 'data/cats.pt'" in error
    assert contents(copy) == before
    assert gpt.main([*SMALL, "--max_steps", "60", "--resume"]) == 0     # and it can be gone on from
    assert "going on after step 40, with the learning rate of 60 steps" in capsys.readouterr().out


@pytest.mark.parametrize("make", [lambda path: path.write_text("a file"),
                                  lambda path: path.symlink_to("nowhere/at/all")])
def test_a_folder_that_is_none_gets_one_line(in_tmp, capsys, make):
    (in_tmp / "cats.txt").write_text(TEXT)
    make(in_tmp / "data")
    before = contents(in_tmp)
    one_line(capsys, SMALL, "data")
    assert contents(in_tmp) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_gets_one_line(copy, capsys):
    before = contents(copy)
    (copy / "data").chmod(0o500)
    try:
        one_line(capsys, [*SMALL, "--max_steps", "60", "--resume"], "Permission denied")
        assert contents(copy) == before
    finally:
        (copy / "data").chmod(0o700)


# A loss that is no number


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(in_tmp, monkeypatch, capsys, trained):
    (in_tmp / "cats.txt").write_text(TEXT)
    step_as_it_is = gpt.training_step

    def broken(model, optimizer, data, step, config):
        loss = step_as_it_is(model, optimizer, data, step, config)
        return loss * float("nan") if step == 26 and model.block_size > 1 else loss

    monkeypatch.setattr(gpt, "training_step", broken)
    one_line(capsys, SMALL, "the loss became nan at step 27; most likely learning_rate=0.004 is too high")
    assert gpt.read_checkpoint(in_tmp / "data" / "cats.pt", gpt.TO_RESUME)["step"] == 20
    assert [row["step"] for row in rows(in_tmp / "data" / "cats.csv")] == ["10", "20"]
    monkeypatch.setattr(gpt, "training_step", step_as_it_is)
    assert gpt.main([*SMALL, "--resume"]) == 0
    assert_same_runs(in_tmp, trained)


def test_a_learning_rate_without_measure_is_found_out(in_tmp, capsys):
    (in_tmp / "cats.txt").write_text(TEXT)
    one_line(capsys, [*SMALL, "--learning_rate", "1e30"], "learning_rate=1e+30 is too high")
    assert not (in_tmp / "data" / "cats.pt").exists()


# What is loaded


class Dangerous:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def change(**changes):
    """A function that writes a checkpoint with other entries; None takes one out."""
    def write(path, checkpoint):
        checkpoint.update(changes)
        torch.save({name: value for name, value in checkpoint.items() if value is not None}, path)
    return write


def change_weights(alter):
    def write(path, checkpoint):
        for kind in ("model", "best"):
            alter(checkpoint[kind])
        torch.save(checkpoint, path)
    return write


def change_config(**changes):
    def write(path, checkpoint):
        checkpoint["config"].update(changes)
        torch.save(checkpoint, path)
    return write


def spoil_moments(path, checkpoint):
    checkpoint["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(checkpoint, path)


def spoil_groups(path, checkpoint):
    del checkpoint["optimizer"]["param_groups"][1]
    torch.save(checkpoint, path)


BROKEN = {                                                              # how to write it, and what is said
    "empty": (lambda path, _: path.write_bytes(b""), "is not a checkpoint of gpt.py"),
    "a text": (lambda path, _: path.write_text("To be, or not to be"), "is not a checkpoint of gpt.py"),
    "truncated": (lambda path, _: path.write_bytes(path.read_bytes()[:-1000]), "or not all of one"),
    "half": (lambda path, _: path.write_bytes(path.read_bytes()[:20000]), "or not all of one"),
    "code": (lambda path, _: torch.save(Dangerous(), path), "is not a checkpoint of gpt.py"),
    "code inside": (change(step=Dangerous()), "is not a checkpoint of gpt.py"),
    "a list": (lambda path, _: torch.save([1, 2], path), "is not a checkpoint of gpt.py"),
    "another program": (lambda path, _: torch.save({"model": {}, "iter_num": 3}, path), "is not a checkpoint of gpt.py"),
    "another version": (change(format="gpt.py checkpoint 1"), "'gpt.py checkpoint 1'; this gpt.py reads"),
    "no weights": (change(model=None), "it has no model"),
    "no vocabulary": (change(vocabulary=None), "it has no vocabulary"),
    "a weight too few": (change_weights(lambda weights: weights.pop("lm_head.weight")), "lm_head.weight"),
    "a weight too many": (change_weights(lambda weights: weights.update(more=torch.zeros(2))), "more"),
    "a weight of another shape": (change_weights(lambda weights: weights.update({"norm.bias": torch.zeros(3)})), "norm.bias"),
    "NaN": (change_weights(lambda weights: weights["norm.bias"].fill_(float("nan"))), "norm.bias are not all finite"),
    "no tensors": (change(model={"norm.bias": 3}, best={"norm.bias": 3}), "damaged"),
    "an impossible setting": (change_config(n_head=3), "n_embd must be a multiple of n_head=3"),
    "an unknown setting": (change_config(n_experts=3), "n_experts"),
    "a missing setting": (lambda path, checkpoint: (checkpoint["config"].pop("seed"), torch.save(checkpoint, path)),
                          "settings are not complete"),
    "a giant": (change_config(n_layer=10**9), "n_layer=1000000000"),
    "a wide giant": (change_config(n_embd=10**8), "do not fit its settings"),
    "another vocabulary": (change(vocabulary="abc"), "3 tokens do not fit vocab_size=26"),
    "an unknown choice": (change(write_with="worst"), "write_with is 'worst'"),
}
BROKEN_TO_RESUME = {
    **{f"no {name}": (change(**{name: None}), f"it has no {name}") for name in ("step", "history", "losses", "optimizer")},
    "steps in words": (change(step="many"), "its step is 'many'"),
    "another history": (change(history=[{"step": 3}]), "history"),
    "losses in words": (change(losses=["low"]), "not all numbers"),
    "no best weights": (change(best={}), "too few"),
    "other moments": (spoil_moments, "optimizer does not fit"),
    "other groups": (spoil_groups, "parameter group"),
    "no state": (change(optimizer={"state": {}, "param_groups": []}), "damaged"),
}


@pytest.mark.parametrize("arguments, kind", [
    *((["sample", "cats"], kind) for kind in BROKEN),
    *(([*SMALL, "--resume"], kind) for kind in {**BROKEN, **BROKEN_TO_RESUME})])
def test_what_is_no_whole_checkpoint_gets_one_line(copy, capsys, arguments, kind):
    write, words = {**BROKEN, **BROKEN_TO_RESUME}[kind]
    path = copy / "data" / "cats.pt"
    write(path, torch.load(path, weights_only=True))
    before = contents(copy)
    error = one_line(capsys, arguments, words)
    assert "data/cats.pt" in error
    assert contents(copy) == before                                     # nothing overwritten, nothing executed


def test_a_file_with_wrong_bytes_is_refused_or_read_but_never_breaks_the_program(trained, tmp_path):
    whole = (trained / "data" / "cats.pt").read_bytes()
    draw = random.Random(5)
    refused = 0
    for _ in range(40):
        spoiled = bytearray(whole)
        for _ in range(20):
            spoiled[draw.randrange(len(spoiled))] = draw.randrange(256)
        (tmp_path / "a.pt").write_bytes(spoiled)
        try:
            gpt.read_checkpoint(tmp_path / "a.pt", gpt.TO_RESUME)
        except ValueError:
            refused += 1
    assert refused > 20


# The command lines


@pytest.mark.parametrize("arguments, words", [
    ([*SMALL, "--n_head", "3"], "multiple of n_head=3"), ([*SMALL, "--n_layer", "-1"], "n_layer must be at least 1"),
    ([*SMALL, "--n_embd", "0"], "n_embd must be at least 1"), ([*SMALL, "--batch_size", "1.5"], "1.5"),
    ([*SMALL, "--block_size", "-8"], "block_size"), ([*SMALL, "--dropout", "1"], "dropout must be at least 0 and below 1"),
    ([*SMALL, "--learning_rate", "0"], "learning_rate must be above 0"), ([*SMALL, "--learning_rate", "nan"], "not nan"),
    ([*SMALL, "--weight_decay", "-0.1"], "weight_decay"), ([*SMALL, "--grad_clip", "inf"], "grad_clip"),
    ([*SMALL, "--seed", "-1"], "seed must be at least 0 and below 4294967296"), ([*SMALL, "--seed", "4294967296"], "seed"),
    ([*SMALL, "--max_steps", "0"], "max_steps"), ([*SMALL, "--eval_interval", "0"], "eval_interval"),
    ([*SMALL, "--device", "abacus"], "no device 'abacus' here"), ([*SMALL, "--bias", "yes"], "yes"),
    ([*SMALL, "--max_steps", "30", "--resume"], "has been trained for 40 steps; max_steps=30 is less"),
    ([*SMALL, "--tokenizer", "bpe", "--vocab_size", "280", "--resume"], "tokenizer=char, not bpe"),
    (["--text", "data/cats.csv"], "would write over data/cats.csv"),
    ([*SMALL, "--block_size", "32", "--resume"], "block_size=16, not 32"),
    (["sample", "--prompt", "The cät 🙂"], "'ä'"), (["sample", "--tokens", "-1"], "at least 0"),
    (["sample", "--temperature", "-1"], "temperature"), (["sample", "--temperature", "nan"], "temperature"),
    (["sample", "--temperature", "1e-45"], "1e-30"), (["sample", "--top_k", "0"], "top_k must be at least 1"),
    (["sample", "--top_p", "0"], "top_p"), (["sample", "--top_p", "1.1"], "top_p"), (["sample", "--seed", "-3"], "seed"),
    (["sample", "dogs"], "data/dogs.pt"), (["sample", "--top_k", "many"], "many"), (["sample", "--heat", "1"], "--heat"),
    ([*SMALL, "--n_embd", "4000000000", "--n_head", "1"], "not enough memory"),
])
def test_a_bad_command_line_gets_one_line_and_touches_nothing(copy, capsys, arguments, words):
    before = contents(copy)
    one_line(capsys, arguments, words)
    assert contents(copy) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is there")
def test_cuda_where_there_is_none(copy, capsys):
    one_line(capsys, [*SMALL, "--device", "cuda"], "no device 'cuda' here, only")


@pytest.mark.parametrize("prompt", ["", "The cat number 7 sat on mat 3.\\n" * 3])
def test_an_empty_and_a_long_prompt_are_fine(copy, capsys, prompt):
    assert gpt.main(["sample", "cats", "--prompt", prompt, "--tokens", "20", "--seed", "1"]) == 0
    output = capsys.readouterr().out
    assert len(output) == len(prompt.replace("\\n", "\n") or "\n") + 20 + 1


def test_any_text_is_learned_and_printed_where_the_terminal_knows_only_ascii(tmp_path):
    text = "Größe 東京 🙂 naïve\r\n" * 60
    (tmp_path / "straße.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    done = subprocess.run([sys.executable, ROOT / "gpt.py", *SMALL, "--text", "straße.txt"], cwd=tmp_path,
                          env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "東京" in done.stdout.decode("utf-8")
    model, tokenizer = gpt.load_checkpoint(tmp_path / "data" / "straße.pt")
    assert set(tokenizer.characters) == set(text) and "\r" in tokenizer.characters


def test_a_reader_that_leaves_ends_a_run_quietly(copy):
    script = f"{sys.executable} {ROOT / 'gpt.py'} {' '.join(SMALL)} | head -n 1"
    done = subprocess.run(["bash", "-c", script], cwd=copy, capture_output=True, timeout=60)
    assert done.stderr == b""


# Several processes


def test_two_processes_train_as_one_does_and_one_that_dies_ends_all(tmp_path):
    settings = [*SMALL, "--dropout", "0", "--max_steps", "30"]
    folders = [tmp_path / name for name in ("one", "two", "dies")]
    for folder in folders:
        folder.mkdir()
        (folder / "cats.txt").write_text(TEXT)
    codes = in_forks(f"""
after_step = gpt.Recorder.after_step

def die(self, loss):
    after_step(self, loss)
    if self.step == 12 and self.config.block_size > 1 and os.environ["RANK"] == "1":
        os._exit(7)

def start_as(rank, folder, port, *more):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    return start({settings!r} + list(more), folder, f"output{{rank}}.txt")

print(wait(start({settings!r}, "one")))
with socket.create_server(("127.0.0.1", 0)) as server:
    port = str(server.getsockname()[1])
print(*[wait(pid) for pid in [start_as(rank, "two", port) for rank in (0, 1)]])
gpt.Recorder.after_step = die
print(*[wait(pid) for pid in [start_as(rank, "dies", port, "--max_steps", "100000") for rank in (0, 1)]])
""", tmp_path)
    assert codes == [0, 0, 0, 2, 7]
    one, two = ([{name: float(value) for name, value in row.items()} for row in rows(folder / "data" / "cats.csv")]
                for folder in folders[:2])
    assert [row["step"] for row in two] == [10, 20, 30]
    for ours, theirs in zip(one, two):
        assert theirs == pytest.approx(ours, rel=1e-4)
    first, second = ((tmp_path / "two" / f"output{rank}.txt").read_text() for rank in (0, 1))
    assert first.count("7. Training") == 1 and second == ""             # one process prints, and saves
    gpt.load_checkpoint(tmp_path / "two" / "data" / "cats.pt")
    last_line = (tmp_path / "dies" / "output0.txt").read_text().splitlines()[-1]
    assert last_line == "gpt.py: another process of this run has ended, so this one ends as well"
    assert gpt.read_checkpoint(tmp_path / "dies" / "data" / "cats.pt", gpt.TO_RESUME)["step"] == 10


def test_the_batch_is_shared_evenly_and_the_loss_is_that_of_all(monkeypatch):
    monkeypatch.setattr(gpt.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(gpt.dist, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch_size=4 must be a multiple of the number of processes, 3"):
        gpt.make_trainee(gpt.GPT(gpt.Config()), gpt.Config(batch_size=4))


def test_each_process_works_on_its_own_rows(monkeypatch):
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3), ("all_reduce", None)):
        monkeypatch.setattr(gpt.dist, name, lambda *_, value=value: value)
    rows_seen = []
    model = gpt.GPT(gpt.Config(n_layer=1, n_embd=16))
    trainee = gpt.Trainee(model, lambda idx, targets: (rows_seen.append(idx), model(idx, targets))[1])
    idx = torch.randint(65, (9, 5))
    trainee(idx, idx)
    assert torch.equal(rows_seen[0], idx[[1, 4, 7]])


def test_a_compiled_model_trains_like_the_model_itself(monkeypatch):
    monkeypatch.setattr(gpt.torch, "compile", lambda model: lambda idx, targets: model(idx, targets))
    model = gpt.GPT(gpt.Config(n_layer=1, n_embd=16))
    trainee = gpt.make_trainee(model, model.config, compile=True)
    assert trainee is not model and gpt.make_trainee(model, model.config) is model
    assert list(trainee.parameters()) == list(model.parameters()) and trainee.state_dict().keys() == model.state_dict().keys()
    data = torch.randint(65, (500,))
    assert gpt.evaluate(trainee, data) == gpt.evaluate(model, data)
    gpt.train(trainee, data, data, gpt.Config(max_steps=3, n_layer=1, n_embd=16))
