"""processes.py: several processes train one model, and end with equal parameters."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, TEXT, contents, files, main, read_csv

import gpt

OPTIONS = ["--text", "cats.txt", "--block_size", "16", "--n_layer", "1", "--n_head", "2", "--n_embd", "16",
           "--position", "rotary", "--eval_interval", "10", "--grad_clip", "0.5", "--max_steps", "30"]

# processes.py, but each process works in a folder of its own, so that we see which one has written what.
SCATTERED = f"""
import os, runpy
os.chdir(os.environ["RANK"])
runpy.run_path({str(ROOT / "tests" / "processes.py")!r}, run_name="__main__")
"""

# Starts pairs of processes as torchrun does, but in forks of one that has imported what takes long.
PAIRS = f"""
import os, sys, time, traceback
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
import gpt, processes, torch._dynamo

def start(case, rank, port):
    if pid := os.fork():
        return pid
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=port, TORCHELASTIC_RUN_ID="test")
    os.chdir(f"{{case}}{{rank}}")
    os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    if case == "apart":
        processes.ParallelRun.prepare = gpt.LongRun.prepare         # gradients are no longer averaged
    try:
        options = {OPTIONS} + ["--batch_size", "5" if case == "odd" else "4"]
        code = gpt.run_cleanly("processes.py", processes.command, options)
    except RuntimeError:
        code = traceback.print_exc() or 1
    if rank == 0:
        time.sleep(1)           # it holds what they meet by; under torchrun, that outlives them all
    os._exit(code)

pids = [start(case, rank, port) for case, port in zip(("texts", "odd", "apart"), sys.argv[1:]) for rank in (0, 1)]
print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
"""


def free_ports(n):
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [str(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports


def start(folder, places, *program):
    """Start Python with these arguments in `folder`, which has a text in each of the `places`."""
    for place in places:
        (folder / place).mkdir()
        (folder / place / "cats.txt").write_text(TEXT.replace("cat", "dog") if place == "texts1" else TEXT)
    return subprocess.Popen([sys.executable, *program], cwd=folder, text=True, encoding="utf-8",
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class BothShares(gpt.LongRun):
    """What two processes should do together, in one: a step with the batches of both."""

    def training_step(self, trained, optimizer, train_data, options):
        shares = [gpt.get_batch(train_data, self.step, replace(options, batch_size=2, seed=options.seed + 10**9 * rank))
                  for rank in (0, 1)]
        _, loss = trained(*map(torch.cat, zip(*shares)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), options.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = gpt.learning_rate_at(self.step, options)
        optimizer.step()
        return loss.item()


def test_without_torchrun_it_says_how_to_start_it(in_tmp):
    import processes
    code, _, error = main(program=lambda arguments: gpt.run_cleanly("processes.py", processes.command, OPTIONS))
    assert code == 2 and error.count("\n") == 1 and "torchrun" in error


def test_two_processes_train_as_one_does_on_both_shares(tmp_path_factory, in_tmp):
    folder, options = tmp_path_factory.mktemp("torchrun"), [*OPTIONS, "--batch_size", "4"]
    (folder / "scattered.py").write_text(SCATTERED)
    process = start(folder, ("0", "1"), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                    "scattered.py", *options)
    (in_tmp / "cats.txt").write_text(TEXT)
    main(*options, program=lambda arguments: gpt.run_command(arguments, BothShares))
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert out.count("\nTo compare: ") == error.count("all 2 processes hold equal parameters\n") == 1
    assert files(folder / "0") == files(in_tmp) and list(contents(folder / "1")) == [folder / "1" / "cats.txt"]
    rows, expected = ([{name: float(value) for name, value in row.items()}
                       for row in read_csv(place / "data" / "cats.csv")] for place in (folder / "0", in_tmp))
    assert [row["step"] for row in rows] == [10, 20, 30]
    for row, wanted in zip(rows, expected, strict=True):        # rounding apart
        assert row == pytest.approx(wanted, rel=1e-4)
    saved = gpt.read_checkpoint(folder / "0" / "data" / "cats.pt")
    assert (saved.options.batch_size, saved.options.seed) == (4, 1337)      # of all, not of the first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_what_cannot_be_shared_is_found_out(tmp_path):
    places = [f"{case}{rank}" for case in ("texts", "odd", "apart") for rank in (0, 1)]
    process = start(tmp_path, places, "-c", PAIRS, *free_ports(3))
    out, error = process.communicate(timeout=100)
    assert (out.split(), error) == (["2", "2", "2", "2", "1", "1"], "")
    said = {place: (tmp_path / place / "output.txt").read_text() for place in places}
    assert said["texts0"] == "processes.py: the processes have different texts; name one file with --text\n"
    assert said["odd0"].endswith("\nprocesses.py: batch_size=5 must be a multiple of the 2 processes\n")
    assert said["texts1"] == said["odd1"] == ""
    for place in ("apart0", "apart1"):                          # a mistake in the program: with its traceback
        assert said[place].endswith("\nRuntimeError: the processes hold different parameters\n")
    assert {place for place in places if files(tmp_path / place)} == {"apart0"}
