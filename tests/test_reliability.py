"""What is saved is never lost, and what is loaded is never trusted.

KILLS=200 in the environment makes the loop of kill -9 longer than it is by default.
"""

import os
import random
import signal
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT, TEXT, chdir, main, one_line
from test_commands import assert_same_run, contents, files, interrupt_at, read_csv, shorten

import gpt

KILLS = int(os.environ.get("KILLS", 20))
SMALL = ["--text", "cats.txt", "--block_size", "16", "--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--dropout",
         "0.1", "--max_steps", "40", "--eval_interval", "10"]
RESUME = ["--text", "cats.txt", "--resume"]
MORE = [*RESUME, "--max_steps", "60"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run on TEXT."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "cats.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        shorten(patch)
        assert main(*SMALL)[0] == 0
    return folder


@pytest.fixture
def cats(in_tmp, monkeypatch):
    """The current folder, with the text in it."""
    shorten(monkeypatch)
    (in_tmp / "cats.txt").write_text(TEXT)
    return in_tmp


@pytest.fixture
def copy(trained, cats):
    """The current folder, with the finished run in it."""
    (cats / "data").mkdir()
    for path in (trained / "data").iterdir():
        (cats / "data" / path.name).write_bytes(path.read_bytes())
    return cats


def state_of(path="data/cats.pt"):
    return gpt.read_checkpoint(path).state


# The disk


@pytest.mark.parametrize("limit", [0, 8192, 30000])
def test_a_disk_that_is_full_keeps_the_checkpoint_before(copy, limit):
    resource = pytest.importorskip("resource")
    before = contents(copy)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))    # the system refuses more bytes in a file
    try:
        one_line(*MORE, words="File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(copy) == before
    code, output, _ = main(*MORE)                               # and it can be gone on from
    assert code == 0 and "step 50  train" in output and "step 40  train" not in output


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(cats, trained, monkeypatch):
    """Another program may hold it, as a spreadsheet does on Windows."""
    def held(name, lines, as_it_is=gpt.write_lines):
        if name == "cats.csv" and len(lines) in (3, 4):
            raise PermissionError(13, "Permission denied", "data/cats.csv")
        as_it_is(name, lines)
    monkeypatch.setattr(gpt, "write_lines", held)
    code, _, error = main(*SMALL)
    assert code == 0
    assert error == 2 * "warning: [Errno 13] Permission denied: 'data/cats.csv'; the checkpoint is saved\n"
    assert_same_run(cats, trained)


@pytest.mark.parametrize("make", [lambda path: path.write_text("a file"),
                                  lambda path: path.symlink_to("nowhere/at/all")])
def test_a_folder_that_is_none_gets_one_line_before_the_first_step(cats, monkeypatch, make):
    make(cats / "data")
    before = contents(cats)
    interrupt_at(monkeypatch, 0)
    one_line(*SMALL, words="data")
    assert contents(cats) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_gets_one_line(copy):
    before = contents(copy)
    (copy / "data").chmod(0o500)
    try:
        one_line(*MORE, words="Permission denied")
        assert contents(copy) == before
    finally:
        (copy / "data").chmod(0o700)


# A loss that is no number


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(cats, monkeypatch, trained):
    step_as_it_is = gpt.training_step

    def broken(model, optimizer, data, step, config):
        loss = step_as_it_is(model, optimizer, data, step, config)
        return loss * float("nan") if step == 26 and config.block_size > 1 else loss

    monkeypatch.setattr(gpt, "training_step", broken)
    one_line(*SMALL, words="loss: not a finite number by step 30. Try a lower learning_rate")
    assert state_of().step == 20
    assert [row["step"] for row in read_csv("data/cats.csv")] == ["10", "20"]
    monkeypatch.setattr(gpt, "training_step", step_as_it_is)
    assert main(*RESUME)[0] == 0
    assert_same_run(cats, trained)


def test_parameters_that_are_lost_are_never_saved(copy, monkeypatch):
    """The loss of a batch is from before the step: it may be finite when the parameters no longer are."""
    before = contents(copy)
    step_as_it_is = gpt.training_step

    def broken(model, optimizer, data, step, config):
        loss = step_as_it_is(model, optimizer, data, step, config)
        if step == 42 and config.block_size > 1:
            model.norm.weight.data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(gpt, "training_step", broken)
    monkeypatch.setattr(gpt, "SAVE_SECONDS", -1)
    one_line(*MORE, words="norm.weight: not a finite number by step 43")
    assert state_of().step == 42 and contents(copy) != before


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_a_hyperparameter_that_is_far_too_large_is_found_out(cats, name):
    one_line(*SMALL, f"--{name}", "4e9", words="not a finite number by step 10. Try a lower")
    assert state_of().step == 0


# What is loaded


class Dangerous:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def change(**changes):
    """A function that writes a checkpoint with other entries; None takes one out."""
    def write(path, saved):
        saved.update(changes)
        torch.save({name: value for name, value in saved.items() if value is not None}, path)
    return write


def inside(part, **changes):
    """The same for a dict in the checkpoint."""
    def write(path, saved):
        saved[part].update(changes)
        torch.save({**saved, part: {name: value for name, value in saved[part].items() if value is not None}}, path)
    return write


def change_parameters(alter, *parts):
    """The same for its last and its best parameters, or for one of them."""
    def write(path, saved):
        for part in parts or (saved["parameters"], saved["state"]["best"]):
            alter(part if isinstance(part, dict) else saved["state"][part])
        torch.save(saved, path)
    return write


BROKEN = {                                                      # how to write it, and what is said
    "empty": (lambda path, _: path.write_bytes(b""), ""),
    "a text": (lambda path, _: path.write_text("To be, or not to be"), ""),
    "truncated": (lambda path, _: path.write_bytes(path.read_bytes()[:-1000]), ""),
    "half": (lambda path, _: path.write_bytes(path.read_bytes()[:20000]), ""),
    "code": (lambda path, _: torch.save(Dangerous(), path), ""),
    "code inside": (change(text_sha256=Dangerous()), ""),
    "a list": (lambda path, _: torch.save([1, 2], path), ""),
    "another program": (lambda path, _: torch.save({"model": {}, "iter_num": 3}, path), ""),
    "another version": (change(format="gpt.py checkpoint 2"), "its format is 'gpt.py checkpoint 2', not"),
    **{f"no {name}": (change(**{name: None}), f"'{name}'")
       for name in ("format", "config", "vocabulary", "text_sha256", "parameters", "state")},
    "a parameter too few": (change_parameters(lambda saved: saved.pop("lm_head.weight")), "lm_head.weight"),
    "a parameter too many": (change_parameters(lambda saved: saved.update(more=torch.zeros(2))), "more"),
    "another shape": (change_parameters(lambda saved: saved.update({"norm.bias": torch.zeros(3)})), "norm.bias"),
    "another type": (change_parameters(lambda saved: saved.update({"norm.bias": torch.zeros(16).half()})),
                     "norm.bias is not finite"),
    "NaN": (change_parameters(lambda saved: saved["norm.bias"].fill_(float("nan"))), "norm.bias is not finite"),
    "NaN in the best": (change_parameters(lambda best: best["norm.bias"].fill_(float("nan")), "best"),
                        "norm.bias is not finite"),
    "no tensors": (change(parameters={"norm.bias": 3}), ""),
    "an impossible setting": (inside("config", n_head=3), "must be a multiple of n_head=3"),
    "a setting out of range": (inside("config", dropout=1.0), "dropout"),
    "an unknown setting": (inside("config", n_experts=3), "n_experts"),
    "a missing setting": (inside("config", n_embd=None), ""),
    "a giant": (inside("config", n_layer=10**9), "n_layer=1000000000"),
    "a wide giant": (inside("config", n_embd=10**8), "size mismatch"),
    "a long giant": (inside("config", block_size=4 * 10**9), "size mismatch"),
    "another vocabulary": (change(vocabulary="abc"), "vocabulary does not fit vocab_size=26"),
    "a vocabulary of numbers": (change(vocabulary=list(range(26))), ""),
    "a character twice": (change(vocabulary="a" * 26), "vocabulary does not fit"),
    "a setting in words": (inside("config", batch_size="many"), "batch_size must be int"),
    "steps in words": (inside("state", step="many"), ""),
    "a history in words": (inside("state", history=[{"step": 3, "train_loss": "low"}]), ""),
    "a history without losses": (inside("state", history=[{"step": 40}]), "train_loss"),
    "a history, but no best parameters": (inside("state", best=()), ""),
    "a hash of numbers": (change(text_sha256=[1]), "hash is wrong"),
    "half a sequence": (inside("config", batch_size=12.5), "batch_size must be int, not 12.5"),
    "half a step": (inside("state", step=19.5), "its step"), "no time": (inside("state", seconds=()), ""),
    "NaN in the moments": (change_parameters(lambda saved: saved[0]["exp_avg"].fill_(float("nan")), "optimizer"),
                           "its optimizer is wrong"),
    "moments of another shape": (change_parameters(lambda saved: saved[0].update(exp_avg=torch.zeros(3)), "optimizer"),
                                 "its optimizer is wrong"),
    "too few moments": (change_parameters(lambda saved: saved.pop(1), "optimizer"), ""),
    "a loss that is infinite": (inside("state", loss_sum=float("inf")), "a loss is not finite"),
    "no optimizer": (inside("state", optimizer=None), "optimizer"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_whole_checkpoint_gets_one_line(copy, kind):
    write, words = BROKEN[kind]
    path = copy / "data" / "cats.pt"
    write(path, torch.load(path, weights_only=True))
    before = contents(copy)
    for arguments in (["sample", "cats"], MORE):
        error = one_line(*arguments, words=words)
        assert "data/cats.pt is not a whole checkpoint: " in error and len(error) < 300
    assert main("runs")[0] == 0
    assert contents(copy) == before                             # nothing overwritten, nothing executed


def test_a_damaged_run_is_listed_as_such(copy):
    (copy / "data" / "bad.pt").write_text("To be, or not to be")
    code, output, _ = main("runs")
    assert code == 0 and "data/bad.pt is not a whole checkpoint" in output and "40/40" in output


def test_a_file_with_wrong_bytes_is_refused_or_read_but_never_breaks_the_program(trained, tmp_path):
    whole = (trained / "data" / "cats.pt").read_bytes()
    draw = random.Random(5)
    refused = 0
    for _ in range(25):
        spoiled = bytearray(whole)
        for _ in range(20):
            spoiled[draw.randrange(len(spoiled))] = draw.randrange(256)
        (tmp_path / "a.pt").write_bytes(spoiled)
        try:
            gpt.read_checkpoint(tmp_path / "a.pt")
        except ValueError:
            refused += 1
    assert refused > 12


def test_loading_draws_nothing(copy):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    model, _ = gpt.load_checkpoint("data/cats.pt")
    assert torch.equal(torch.rand(3), expected) and not model.training


# The command lines


@pytest.mark.parametrize("arguments, words", [
    ([*SMALL[:6], "--n_head", "3"], "multiple of n_head=3"),
    ([*SMALL[:4], "--n_layer", "-1"], "n_layer must be at least 1"),
    ([*SMALL[:8], "--n_embd", "0"], "n_embd must be at least 1"), ([*SMALL, "--batch_size", "1.5"], "1.5"),
    (["--text", "cats.txt", "--block_size", "-8"], "block_size"),
    ([*SMALL[:10], "--dropout", "1"], "dropout must be at least 0 and below 1"),
    ([*SMALL, "--learning_rate", "0"], "learning_rate must be at least"),
    ([*SMALL, "--learning_rate", "nan"], "not nan"), ([*SMALL, "--weight_decay", "-0.1"], "weight_decay"),
    ([*SMALL, "--grad_clip", "inf"], "grad_clip"),
    ([*SMALL, "--seed", "-1"], "seed must be at least 0 and below 4294967296"),
    ([*SMALL, "--seed", "4294967296"], "seed"), ([*SMALL[:12], "--max_steps", "0"], "max_steps"),
    ([*SMALL[:14], "--eval_interval", "0"], "eval_interval"), ([*SMALL, "--bias", "yes"], "yes"),
    ([*SMALL, "--position", "nowhere"], "not 'nowhere'"),
    (["--text", "cats.txt", "--position", "rotary", "--n_embd", "12"], "rotary positions need pairs"),
    (["--text", "cats.txt", "--position", "sinusoidal", "--n_embd", "9", "--n_head", "3"], "sinusoidal positions need"),
    (["--text", "cats.txt", "--name", "page"], "'page' cannot"), (["--text", "cats.txt", "--name", "PAGE"], "'PAGE'"),
    (["sample", "--prompt", "The cät 🙂"], "'ä'"), (["sample", "--tokens", "-1"], "at least 0"),
    (["sample", "--temperature", "-1"], "temperature"), (["sample", "--temperature", "nan"], "temperature"),
    (["sample", "--temperature", "1e-45"], "1e-30"), (["sample", "--top_k", "0"], "top_k must be at least 1"),
    (["sample", "--top_p", "0"], "top_p"), (["sample", "--top_p", "1.1"], "top_p"),
    (["sample", "--seed", "-3"], "seed"),
    (["sample", "--seed", "99999999999999999999"], "seed must be at least 0 and below 4294967296"),
    (["sample", "dogs"], "no run dogs"), (["sample", "--top_k", "many"], "many"), (["sample", "--heat", "1"], "--heat"),
    (["sample", "--device", "abacus"], "no device 'abacus'"), (["sample", "cats.csv"], "not a whole checkpoint"),
    (["--text", "cats.txt", "--n_embd", "4000000000", "--n_head", "1"], "memory"),
])
def test_a_bad_command_line_gets_one_line_and_touches_nothing(copy, arguments, words):
    before = contents(copy)
    one_line(*arguments, words=words)
    assert contents(copy) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is there")
def test_cuda_where_there_is_none(copy):
    one_line(*SMALL, "--device", "cuda", words="no device 'cuda' here, only cpu")


def test_a_run_may_be_started_from_another_thread(copy):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(gpt.main([*RESUME, "--max_steps", "45"])))
    thread.start()
    thread.join()
    assert codes == [0]


# Killed at any moment, in processes of its own. It takes long, so it runs beside the tests above.


# Starts runs in forks of one process that has imported torch already, and prints how each ended.
KILL_LOOP = f"""
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import gpt
gpt.BIGRAM_TRAINING["max_steps"] = 5
gpt.SAVE_SECONDS = 0.05                                         # some saves in between, too
settings = {[*SMALL[:-4], "--max_steps", "200", "--eval_interval", "20"]!r}
draw = random.Random({random.randrange(10**6)})

def start(folder="."):
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        os._exit(gpt.main(settings + (["--resume"] if Path("data/cats.pt").exists() else [])))
    return pid

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

print(wait(start("whole")))
for _ in range({KILLS}):
    pid = start()
    time.sleep(draw.uniform(0.02, 0.2))
    os.kill(pid, signal.SIGKILL)
    print(wait(pid))
print(wait(start()))
"""


@pytest.fixture(scope="module", autouse=True)
def kill_loop(tmp_path_factory):
    """Starts the loop; a function that waits for its end: the folder, and how its runs ended."""
    folder = tmp_path_factory.mktemp("killed")
    for place in (folder, folder / "whole"):
        place.mkdir(exist_ok=True)
        (place / "cats.txt").write_text(TEXT)
    process = subprocess.Popen([sys.executable, "-c", KILL_LOOP if hasattr(os, "fork") else ""], cwd=folder,
                               env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)

    def ended():
        out, error = process.communicate(timeout=100 + 2 * KILLS)
        assert error == "" and process.returncode == 0, error
        return folder, [int(word) for word in out.split()]

    yield ended
    process.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_kill_9_at_random_moments_loses_nothing(kill_loop):
    folder, codes = kill_loop()
    first, *killed, last = codes
    assert (first, last) == (0, 0) and len(killed) == KILLS
    assert set(killed) <= {-signal.SIGKILL, 0} and killed.count(-signal.SIGKILL) > KILLS // 2
    assert_same_run(folder, folder / "whole")
    assert [int(row["step"]) for row in read_csv(folder / "data" / "cats.csv")] == list(range(20, 201, 20))
    assert files(folder) == files(folder / "whole") and len(files(folder)) == 5     # no half file is left
