"""processes.py: several processes train one model, and end with equal parameters."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, TEXT, main
from test_commands import files, read_csv

import gpt

OPTIONS = ["--text", "cats.txt", "--block_size", "16", "--n_layer", "1", "--n_head", "2", "--n_embd", "16",
           "--tie_weights", "--position", "rotary", "--eval_interval", "10", "--grad_clip", "0.5"]
SHORT = ["--batch_size", "4", "--max_steps", "30"]

# processes.py, but with a bigram that is trained more shortly.
SHORTER = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
import gpt
gpt.BIGRAM_TRAINING["max_steps"] = 5
runpy.run_path({str(ROOT / 'tests' / 'processes.py')!r}, run_name="__main__")
"""

# Starts pairs of processes as torchrun does, but in forks of one that has imported torch already.
PAIRS = f"""
import os, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
import gpt, processes
gpt.BIGRAM_TRAINING["max_steps"] = 5

def start(rank, port, folder, arguments):
    pid = os.fork()
    if pid == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=port, TORCHELASTIC_RUN_ID="test")
        os.chdir(folder)
        os.dup2(os.open(f"output{{rank}}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        code = gpt.run_cleanly("processes.py", processes.command, arguments)
        sys.stdout.flush()
        if rank == 0:
            time.sleep(1)           # it holds what they meet by; under torchrun, that outlives them all
        os._exit(code or 0)
    return pid

def pair(port, folders, *arguments):
    pids = [start(rank, port, folders[rank], {OPTIONS} + [*arguments]) for rank in (0, 1)]
    print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])

one, two, three = sys.argv[1:]
pair(one, ("mine", "theirs"), "--batch_size=4", "--max_steps=11")
pair(two, ("odd", "odd"), "--batch_size=5", "--max_steps=11")
processes.average_gradients = lambda model: None
pair(three, ("apart", "apart"), "--batch_size=4", "--max_steps=11")
"""


def free_ports(n):
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [str(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports


@pytest.fixture(scope="module", autouse=True)
def started(tmp_path_factory):
    """All programs run at once: {name: (its folder, its process)}."""
    programs = {"torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                             "shorter.py", *OPTIONS, *SHORT],
                "pairs": ["-c", PAIRS, *free_ports(3)]}
    started = {}
    for name, program in programs.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "shorter.py").write_text(SHORTER)
        for place in ("", "mine", "theirs", "odd", "apart"):
            (folder / place).mkdir(exist_ok=True)
            (folder / place / "cats.txt").write_text(TEXT.replace("cat", "dog") if place == "theirs" else TEXT)
        started[name] = folder, subprocess.Popen([sys.executable, *program], cwd=folder, text=True, encoding="utf-8",
                                                 env={**os.environ, "OMP_NUM_THREADS": "1"},
                                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    yield started
    for _, process in started.values():
        process.kill()


def test_without_torchrun_it_says_how_to_start_it(in_tmp):
    import processes
    code, _, error = main(program=lambda arguments: gpt.run_cleanly("processes.py", processes.command, OPTIONS))
    assert code == 2 and error.count("\n") == 1 and "torchrun" in error


def test_two_processes_train_as_one_does_on_both_shares(started, in_tmp, short_baseline, monkeypatch):
    get_batch = gpt.get_batch

    def both_shares(data, step, config):
        if config.block_size == 1:                              # the bigram is not shared
            return get_batch(data, step, config)
        shares = [get_batch(data, step, replace(config, batch_size=2, seed=config.seed + 10**9 * rank))
                  for rank in (0, 1)]
        return tuple(map(gpt.torch.cat, zip(*shares)))

    monkeypatch.setattr(gpt, "get_batch", both_shares)
    (in_tmp / "cats.txt").write_text(TEXT)
    code, output, error = main(*OPTIONS, *SHORT)
    assert (code, error) == (0, "")
    folder, process = started["torchrun"]
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert out.count("all 2 processes hold equal parameters\n") == out.count("\n9. Sampling\n") == 1
    assert files(folder) == files(in_tmp)
    rows, expected = ([{name: float(value) for name, value in row.items()}
                       for row in read_csv(place / "data" / "cats.csv")] for place in (folder, in_tmp))
    assert [row["step"] for row in rows] == [10, 20, 30]
    for row, wanted in zip(rows, expected, strict=True):        # rounding apart
        assert row == pytest.approx(wanted, rel=1e-4)
        assert f"step {row['step']:.0f}  train {row['train_loss']:.4f}  val {row['val_loss']:.4f}\n" in out
    saved = gpt.read_checkpoint(folder / "data" / "cats.pt")
    assert (saved.config.batch_size, saved.config.seed) == (4, 1337)        # of all, not of the first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_what_cannot_be_shared_is_found_out(started):
    folder, process = started["pairs"]
    out, error = process.communicate(timeout=100)
    assert (out.split(), error) == (6 * ["2"], "")
    ends = {name: [(folder / (name if rank == 0 else other) / f"output{rank}.txt").read_text() for rank in (0, 1)]
            for name, other in (("mine", "theirs"), ("odd", "odd"), ("apart", "apart"))}
    assert ends["mine"][0] == "processes.py: the processes have different texts; name one file with --text\n"
    assert ends["odd"][0].endswith("\nprocesses.py: batch_size=5 must be a multiple of the 2 processes\n")
    assert ends["apart"][0].endswith("\nprocesses.py: the processes hold different parameters\n")
    assert all(second == "" for _, second in ends.values())
    assert not any((folder / name / "data").exists() for name in ("mine", "theirs", "odd"))
