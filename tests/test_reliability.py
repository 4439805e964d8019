"""What is saved is never lost, and what is loaded is never trusted.

KILLS=200 in the environment makes the loop of kill -9 longer than it is by default.
"""

import contextlib
import csv
import io
import os
import random
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TEXT
from test_commands import contents, files, main, one_line, same_weights

import gpt

pytestmark = pytest.mark.usefixtures("short_baseline")
needs_forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
KILLS = int(os.environ.get("KILLS", 20))
SMALL = ["--text", "cats.txt", "--block_size", "16", "--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--dropout",
         "0.1", "--max_steps", "40", "--eval_interval", "10"]
RESUME = ["--text", "cats.txt", "--resume"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run on TEXT."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "cats.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.chdir(folder):
        monkeypatch.setitem(gpt.BIGRAM_TRAINING, "max_steps", 5)
        assert main(*SMALL)[0] == 0
    return folder


@pytest.fixture
def copy(trained, in_tmp):
    """The current folder, with the finished run in it."""
    (in_tmp / "cats.txt").write_text(TEXT)
    (in_tmp / "data").mkdir()
    for path in (trained / "data").iterdir():
        (in_tmp / "data" / path.name).write_bytes(path.read_bytes())
    return in_tmp


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def assert_same_runs(one, other):
    """Both folders hold the same weights to the last bit, the same log, the same samples."""
    for name in ("cats.csv", "cats-gpt.txt", "cats-bigram.txt"):
        assert (one / "data" / name).read_bytes() == (other / "data" / name).read_bytes()
    assert same_weights(one, other)
    ours, theirs = (gpt.load_run(folder / "data" / "cats.pt").report for folder in (one, other))
    for ours_kept, theirs_kept in zip(ours.optimizer.state.values(), theirs.optimizer.state.values(), strict=True):
        assert all(torch.equal(ours_kept[name], theirs_kept[name]) for name in ours_kept)
    assert ours.history == theirs.history and ours.step == theirs.step


def test_what_a_killed_run_left_half_written_is_cleared_away(copy):
    old, new = (copy / "data" / f"cats.pt.{i}.tmp" for i in (1, 2))
    for path in (old, new):
        path.write_text("half of a checkp")
    os.utime(old, (0, 0))                                       # the new one may be of a run that is writing it
    assert main(*SMALL)[0] == 0
    assert new.exists() and not old.exists()


# The disk


@pytest.mark.parametrize("limit", [0, 8192, 30000])
def test_a_disk_that_is_full_keeps_the_checkpoint_before(copy, limit):
    resource = pytest.importorskip("resource")
    before = contents(copy)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))    # the system refuses more bytes in a file
    try:
        error = one_line(*RESUME, "--max_steps", "60")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large: " in error and "data/cats.pt" in error
    assert contents(copy) == before
    code, output, _ = main(*RESUME, "--max_steps", "60")        # and it can be gone on from
    assert code == 0 and "step 50/60" in output and "step 40/60" not in output


@pytest.mark.parametrize("make", [lambda path: path.write_text("a file"),
                                  lambda path: path.symlink_to("nowhere/at/all")])
def test_a_folder_that_is_none_gets_one_line_before_the_first_step(in_tmp, monkeypatch, make):
    (in_tmp / "cats.txt").write_text(TEXT)
    make(in_tmp / "data")
    before = contents(in_tmp)
    monkeypatch.setattr(gpt, "train", lambda *_, report=None: iter(()))     # nothing is trained here
    one_line(*SMALL, words="data")
    assert contents(in_tmp) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_gets_one_line(copy):
    before = contents(copy)
    (copy / "data").chmod(0o500)
    try:
        one_line(*RESUME, "--max_steps", "60", words="Permission denied")
        assert contents(copy) == before
    finally:
        (copy / "data").chmod(0o700)


# A loss that is no number


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(in_tmp, monkeypatch, trained):
    (in_tmp / "cats.txt").write_text(TEXT)
    step_as_it_is = gpt.training_step

    def broken(model, optimizer, data, step, config):
        loss = step_as_it_is(model, optimizer, data, step, config)
        return loss * float("nan") if step == 26 and config.block_size > 1 else loss

    monkeypatch.setattr(gpt, "training_step", broken)
    one_line(*SMALL, words="training loss: not a finite number by step 30. Try a learning_rate below 0.004 or a weight_decay below 0.1")
    assert gpt.load_run(in_tmp / "data" / "cats.pt").report.step == 20
    assert [row["step"] for row in rows(in_tmp / "data" / "cats.csv")] == ["10", "20"]
    monkeypatch.setattr(gpt, "training_step", step_as_it_is)
    assert main(*RESUME)[0] == 0
    assert_same_runs(in_tmp, trained)


@pytest.mark.parametrize("setting", ["learning_rate", "weight_decay"])
def test_a_setting_without_measure_is_found_out(in_tmp, setting):
    (in_tmp / "cats.txt").write_text(TEXT)
    one_line(*SMALL, f"--{setting}", "4e9", words=f"{setting} below 4000000000.0")
    assert gpt.load_run(in_tmp / "data" / "cats.pt").report.step == 0


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


def change_weights(alter):
    def write(path, saved):
        alter(saved["model"])
        alter(saved["report"]["best"])
        torch.save(saved, path)
    return write


def spoil_moments(path, saved):
    saved["report"]["optimizer"][0]["exp_avg"] = torch.zeros(3)
    torch.save(saved, path)


def lose_moments(path, saved):
    del saved["report"]["optimizer"][1]
    torch.save(saved, path)


BROKEN = {                                                      # how to write it, and what is said
    "empty": (lambda path, _: path.write_bytes(b""), "no whole checkpoint"),
    "a text": (lambda path, _: path.write_text("To be, or not to be"), "no whole checkpoint"),
    "truncated": (lambda path, _: path.write_bytes(path.read_bytes()[:-1000]), "no whole checkpoint"),
    "half": (lambda path, _: path.write_bytes(path.read_bytes()[:20000]), "no whole checkpoint"),
    "code": (lambda path, _: torch.save(Dangerous(), path), "no whole checkpoint"),
    "code inside": (change(text_sha256=Dangerous()), "no whole checkpoint"),
    "a list": (lambda path, _: torch.save([1, 2], path), "no whole checkpoint"),
    "another program": (lambda path, _: torch.save({"model": {}, "iter_num": 3}, path), "no whole checkpoint"),
    "another version": (change(format="gpt.py checkpoint 2"), "its format is 'gpt.py checkpoint 2', not"),
    **{f"no {name}": (change(**{name: None}), f"'{name}'") for name in ("model", "vocabulary", "report", "config")},
    "a weight too few": (change_weights(lambda weights: weights.pop("lm_head.weight")), "state_dict"),
    "a weight too many": (change_weights(lambda weights: weights.update(more=torch.zeros(2))), "state_dict"),
    "a weight of another shape": (change_weights(lambda weights: weights.update({"norm.bias": torch.zeros(3)})), "state_dict"),
    "a weight of another type": (change_weights(lambda weights: weights.update({"norm.bias": torch.zeros(16).half()})),
                                 "norm.bias is not finite"),
    "NaN": (change_weights(lambda weights: weights["norm.bias"].fill_(float("nan"))), "norm.bias is not finite"),
    "NaN in the best": (lambda path, saved: (saved["report"]["best"]["norm.bias"].fill_(float("nan")), torch.save(saved, path)),
                        "norm.bias is not finite"),
    "no tensors": (change(model={"norm.bias": 3}), "no whole checkpoint"),
    "an impossible setting": (inside("config", n_head=3), "n_embd must be a multiple of n_head=3"),
    "an unknown setting": (inside("config", n_experts=3), "n_experts"),
    "a missing setting": (inside("config", seed=None), "settings are not complete"),
    "a giant": (inside("config", n_layer=10**9), "n_layer=1000000000"),
    "a wide giant": (inside("config", n_embd=10**8), "state_dict"),
    "a long giant": (inside("config", block_size=4 * 10**9), "state_dict"),
    "another vocabulary": (change(vocabulary="abc"), "vocabulary does not fit vocab_size=26"),
    "a vocabulary of numbers": (change(vocabulary=list(range(26))), "vocabulary does not fit"),
    "a character twice": (change(vocabulary="a" * 26), "vocabulary does not fit"),
    "steps in words": (inside("report", step="many"), "no number"),
    "a history in words": (inside("report", history=[{"step": 3, "train_loss": "low"}]), "no whole checkpoint"),
    "a loss that is infinite": (inside("report", loss_sum=float("inf")), "no number"),
    "no history": (inside("report", history=None, best=None, optimizer=None), "optimizer"),
    "other moments": (spoil_moments, "optimizer does not fit"),
    "too few moments": (lose_moments, "no whole checkpoint"),
}


@pytest.mark.parametrize("arguments", [["sample", "cats"], RESUME])
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_whole_checkpoint_gets_one_line(copy, arguments, kind):
    write, words = BROKEN[kind]
    path = copy / "data" / "cats.pt"
    write(path, torch.load(path, weights_only=True))
    before = contents(copy)
    error = one_line(*arguments, words=words)
    assert "data/cats.pt" in error and len(error) < 300
    assert contents(copy) == before                             # nothing overwritten, nothing executed


def test_a_damaged_run_is_listed_as_such(copy):
    (copy / "data" / "bad.pt").write_text("To be, or not to be")
    code, output, _ = main("runs")
    assert code == 0 and "data/bad.pt is no whole checkpoint" in output and "40/40" in output


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
            gpt.load_run(tmp_path / "a.pt")
        except gpt.UserError:
            refused += 1
    assert refused > 20


def test_loading_draws_nothing_and_tied_weights_stay_tied(copy):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    gpt.load_checkpoint("data/cats.pt")
    assert torch.equal(torch.rand(3), expected)
    assert main(*SMALL, "--tie_weights", "--name", "tied")[0] == 0
    model, _ = gpt.load_checkpoint("data/tied.pt")
    assert model.lm_head.weight is model.token_embedding.weight and not model.training
    code, output, _ = main(*RESUME, "--name", "tied", "--max_steps", "50")
    assert code == 0 and gpt.load_run("data/tied.pt").report.step == 50


def test_weights_that_are_lost_are_never_saved(copy, monkeypatch):
    """The loss of a batch is from before the step: it may be finite when the weights no longer are."""
    before = contents(copy)
    step_as_it_is = gpt.training_step

    def broken(model, optimizer, data, step, config):
        loss = step_as_it_is(model, optimizer, data, step, config)
        if step == 42 and config.block_size > 1:
            model.norm.weight.data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(gpt, "training_step", broken)
    monkeypatch.setattr(gpt, "SAVE_SECONDS", -1)
    one_line(*RESUME, "--max_steps", "60", words="norm.weight: not a finite number by step 43")
    assert gpt.load_run("data/cats.pt").report.step == 42 and contents(copy) != before


# The command lines


@pytest.mark.parametrize("arguments, words", [
    ([*SMALL, "--n_head", "3"], "multiple of n_head=3"), ([*SMALL, "--n_layer", "-1"], "n_layer must be at least 1"),
    ([*SMALL, "--n_embd", "0"], "n_embd must be at least 1"), ([*SMALL, "--batch_size", "1.5"], "1.5"),
    ([*SMALL, "--block_size", "-8"], "block_size"), ([*SMALL, "--dropout", "1"], "dropout must be at least 0 and below 1"),
    ([*SMALL, "--learning_rate", "0"], "learning_rate must be at least"), ([*SMALL, "--learning_rate", "nan"], "not nan"),
    ([*SMALL, "--weight_decay", "-0.1"], "weight_decay"), ([*SMALL, "--grad_clip", "inf"], "grad_clip"),
    ([*SMALL, "--seed", "-1"], "seed must be at least 0 and below 4294967296"), ([*SMALL, "--seed", "4294967296"], "seed"),
    ([*SMALL, "--max_steps", "0"], "max_steps"), ([*SMALL, "--eval_interval", "0"], "eval_interval"),
    ([*SMALL, "--bias", "yes"], "yes"), (["--text", "data/cats.csv", "--name", "cats"], "would write over data/cats.csv"),
    (["sample", "--prompt", "The cät 🙂"], "'ä'"), (["sample", "--tokens", "-1"], "at least 0"),
    (["sample", "--temperature", "-1"], "temperature"), (["sample", "--temperature", "nan"], "temperature"),
    (["sample", "--temperature", "1e-45"], "1e-30"), (["sample", "--top_k", "0"], "top_k must be at least 1"),
    (["sample", "--top_p", "0"], "top_p"), (["sample", "--top_p", "1.1"], "top_p"), (["sample", "--seed", "-3"], "seed"),
    (["sample", "--seed", "99999999999999999999"], "seed must be at least 0 and below 4294967296"),
    (["sample", "dogs"], "no run dogs"), (["sample", "--top_k", "many"], "many"), (["sample", "--heat", "1"], "--heat"),
    ([*SMALL, "--n_embd", "4000000000", "--n_head", "1"], "not enough memory"),
])
def test_a_bad_command_line_gets_one_line_and_touches_nothing(copy, arguments, words):
    before = contents(copy)
    one_line(*arguments, words=words)
    assert contents(copy) == before


def test_the_smallest_top_p_keeps_the_likeliest_token(copy):
    greedy = main("sample", "--temperature", "0", "--tokens", "20")[1]
    assert main("sample", "--top_p", "1e-46", "--tokens", "20")[1] == greedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is there")
def test_cuda_where_there_is_none(copy):
    one_line(*SMALL, "--device", "cuda", words="no device 'cuda' here, only")


@pytest.mark.parametrize("prompt", ["", "The cat number 7 sat on mat 3.\\n" * 3])
def test_an_empty_and_a_long_prompt_are_fine(copy, prompt):
    code, output, _ = main("sample", "cats", "--prompt", prompt, "--tokens", "20", "--seed", "1")
    assert code == 0 and len(output) == len(prompt.replace("\\n", "\n") or "\n") + 20 + 1


def test_any_text_is_learned_and_printed_where_the_terminal_knows_only_ascii(in_tmp):
    text = "Größe 東京 🙂 naïve\r\n" * 60
    (in_tmp / "straße.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(output):
        assert gpt.main([*SMALL, "--text", "straße.txt"]) == 0
    assert "東京" in output.buffer.getvalue().decode("utf-8")
    model, tokenizer = gpt.load_checkpoint("data/straße.pt")
    assert set(tokenizer.characters) == set(text) and "\r" in tokenizer.characters


def test_a_run_may_be_started_from_another_thread(copy):
    import threading
    codes = []
    thread = threading.Thread(target=lambda: codes.append(gpt.main([*RESUME, "--max_steps", "45"])))
    thread.start()
    thread.join()
    assert codes == [0]


# Several processes


def test_each_process_has_its_own_rows_and_its_own_dropout(monkeypatch):
    config, data = gpt.Config(batch_size=9, block_size=5), torch.arange(1000)
    whole, _ = gpt.get_batch(data, 3, config)
    alone = gpt.own_seed(3, config)
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(gpt.dist, name, lambda value=value: value)
    assert torch.equal(gpt.get_batch(data, 3, config)[0], whole[[1, 4, 7]])
    assert gpt.own_seed(3, config) != alone


def test_more_processes_than_gpus_get_one_line(monkeypatch):
    monkeypatch.setattr(gpt.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(gpt.UserError, match="2 processes need as many GPUs; there are 1"):
        gpt.join_processes("cuda")


def test_compile_trains_the_same_and_writes_uncompiled(copy, trained, monkeypatch):
    compiled = []
    monkeypatch.setattr(gpt.nn.Module, "compile", lambda self: compiled.append(self))
    assert main(*SMALL, "--name", "fast", "--compile")[0] == 0
    assert len(compiled) == 1
    assert (copy / "data" / "fast-gpt.txt").read_bytes() == (trained / "data" / "cats-gpt.txt").read_bytes()


# Whole runs, in processes of their own. They take long, so they run beside the tests above.


# Starts runs in forks of one process that has imported torch already, and prints how each ended.
FORKS = f"""
import os, random, signal, socket, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import gpt
gpt.BIGRAM_TRAINING["max_steps"] = 5

def start(arguments, folder=".", output="output.txt", name="cats", linger=0):
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        code = gpt.main(arguments + (["--resume"] if Path(f"data/{{name}}.pt").exists() else []))
        sys.stdout.flush()
        time.sleep(linger)
        os._exit(code)
    return pid

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

KILL_LOOP = f"""
gpt.SAVE_SECONDS = 0.05                                         # some saves in between, too
settings, draw = {[*SMALL[:-4], "--max_steps", "200", "--eval_interval", "20"]!r}, random.Random({random.randrange(10**6)})
print(wait(start(settings, "whole")))
for _ in range({KILLS}):
    pid = start(settings)
    time.sleep(draw.uniform(0.02, 0.2))
    os.kill(pid, signal.SIGKILL)
    print(wait(pid))
print(wait(start(settings)))
"""

TWO_RUNS = f"""
settings = {[*SMALL, "--eval_interval", "1", "--max_steps", "30"]!r}
pids = [start(settings + ["--seed", seed], output=f"output{{seed}}.txt", name="none") for seed in "12"]
print(*[wait(pid) for pid in pids])
"""

TWO_PROCESSES = f"""
step_as_it_is = gpt.training_step

def die(model, optimizer, data, step, config):
    if step == 12 and config.block_size > 1 and os.environ["RANK"] == "1":
        os._exit(7)
    return step_as_it_is(model, optimizer, data, step, config)

def start_as(rank, folder, *more):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_RUN_ID="test")
    # The first holds what they meet by, which under torchrun outlives them all.
    return start(settings + list(more), folder, f"output{{rank}}.txt", linger=1 - rank)

settings = {[*SMALL, "--dropout", "0", "--max_steps", "30"]!r}
os.environ["RANK"] = "0"                                        # left over from elsewhere: it changes nothing
print(wait(start(settings, "one")))
with socket.create_server(("127.0.0.1", 0)) as server:
    port = str(server.getsockname()[1])
print(*[wait(pid) for pid in [start_as(rank, "two") for rank in (0, 1)]])
print(*[wait(pid) for pid in [start_as(rank, "odd", "--batch_size", "5") for rank in (0, 1)]])
gpt.training_step = die
print(*[wait(pid) for pid in [start_as(rank, "dies", "--max_steps", "100000") for rank in (0, 1)]])
"""


@pytest.fixture(scope="module", autouse=True)
def in_forks(tmp_path_factory):
    """Starts all programs at once; a function that waits for one: its folder, and how its runs ended."""
    started = {}
    for code in (KILL_LOOP, TWO_RUNS, TWO_PROCESSES) if hasattr(os, "fork") else ():
        folder = tmp_path_factory.mktemp("forks")
        for place in (folder, *(folder / name for name in ("whole", "one", "two", "odd", "dies"))):
            place.mkdir(exist_ok=True)
            (place / "cats.txt").write_text(TEXT)
        started[code] = folder, subprocess.Popen([sys.executable, "-c", FORKS + code], cwd=folder, text=True,
                                                 env={**os.environ, "OMP_NUM_THREADS": "1"},
                                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ended(code):
        folder, process = started[code]
        out, error = process.communicate(timeout=100 + 2 * KILLS)
        assert error == "" and process.returncode == 0, error
        return folder, [int(word) for word in out.split()]

    yield ended
    for _, process in started.values():
        process.kill()


@needs_forks
def test_kill_9_at_random_moments_loses_nothing(in_forks):
    folder, codes = in_forks(KILL_LOOP)
    first, *killed, last = codes
    assert (first, last) == (0, 0) and len(killed) == KILLS
    assert set(killed) <= {-signal.SIGKILL, 0} and killed.count(-signal.SIGKILL) > KILLS // 2
    assert_same_runs(folder, folder / "whole")
    assert [int(row["step"]) for row in rows(folder / "data" / "cats.csv")] == list(range(20, 201, 20))


@needs_forks
def test_two_runs_of_one_name_lose_nothing(in_forks):
    folder, _ = in_forks(TWO_RUNS)
    runs = [gpt.load_run(path) for path in (folder / "data").glob("*.pt")]
    finished = {run.config.seed: run for run in runs if run.report.step == 30}
    assert set(finished) == {1, 2}                          # both are there, whole, under different names
    for run in finished.values():
        log = rows(run.path.with_suffix(".csv"))
        assert [float(row["val_loss"]) for row in log] == [row["val_loss"] for row in run.report.history]
        assert (folder / "data" / f"{run.path.stem}-gpt.txt").exists()
    assert not list((folder / "data").glob("*.tmp"))


@needs_forks
def test_two_processes_train_as_one_does_and_one_that_dies_ends_all(in_forks):
    folder, codes = in_forks(TWO_PROCESSES)
    assert codes == [0, 0, 0, 2, 2, 2, 7]
    one, two = ([{name: float(value) for name, value in row.items()} for row in rows(folder / name / "data" / "cats.csv")]
                for name in ("one", "two"))
    assert [row["step"] for row in two] == [10, 20, 30]
    for ours, theirs in zip(one, two):
        assert theirs == pytest.approx(ours, rel=1e-4)
    first, second = ((folder / "two" / f"output{rank}.txt").read_text() for rank in (0, 1))
    assert first.count("7. Training") == 1 and second == ""     # one process prints, and saves
    gpt.load_checkpoint(folder / "two" / "data" / "cats.pt")
    assert files(folder / "two") == files(folder / "one")
    odd = [(folder / "odd" / f"output{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert odd[0][-1] == "gpt.py: batch_size=5 must be a multiple of the 2 processes" and odd[1] == []
    assert not (folder / "odd" / "data").exists()
    last_line = (folder / "dies" / "output0.txt").read_text().splitlines()[-1]
    assert last_line == "gpt.py: another process of this run has ended, so this one ends as well"
    assert gpt.load_run(folder / "dies" / "data" / "cats.pt").report.step == 10
