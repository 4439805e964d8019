"""processes.py: one training by several processes at once, as large models are trained on many GPUs.

    torchrun --standalone --nproc_per_node=2 tests/processes.py [options of gpt.py]

Each process holds the whole model and works on its share of every batch. Once backward() has made the last gradient,
all processes exchange theirs and go on with the mean, which is the gradient of the whole batch. So each of them clips
it alike and makes the same step, and no parameters have to be sent. This is called data parallelism.

It shows that gpt.py needs no trace of this: `run` is given another LongRun, and stays as it is. And it makes sure that
the processes never drift apart: at the end, they compare their parameters. Only the first one prints, saves and lets
the models write. With CUDA, each has a GPU of its own. They run on one computer, because they read the same files.
"""

import io
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import gpt  # before torch: it silences torch's warning that NumPy is missing
import torch
import torch.distributed as dist
import torch.nn as nn


def all_equal(x):
    """Whether all processes hold the same tensor."""
    lowest, highest = x.clone(), x.clone()
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return torch.equal(lowest, highest)


def mean(x):
    """The mean of a tensor over all processes."""
    x = x / dist.get_world_size()
    dist.all_reduce(x)                                          # the sum over all processes
    return x


def average_gradients(model):
    """From now on, backward() leaves the mean of the gradients of all processes."""
    trained, ready = [p for p in model.parameters() if p.requires_grad], []

    def hook(p):                                                # called as soon as p.grad is there
        ready.append(p)
        if len(ready) == len(trained):                          # the last one: all of them in one message
            ready.clear()
            gradients = [p.grad for p in trained]
            nn.utils.vector_to_parameters(mean(nn.utils.parameters_to_vector(gradients)), gradients)

    for p in trained:
        p.register_post_accumulate_grad_hook(hook)


class ParallelRun(gpt.LongRun):
    """A LongRun that shares its work with those of the other processes."""

    def __enter__(self):
        if self.device == "cuda":
            self.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(self.device)
        dist.init_process_group("nccl" if self.device.startswith("cuda") else "gloo")
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        sha256 = torch.tensor(list(bytes.fromhex(self.text_sha256)), device=self.device)
        gpt.check(all_equal(sha256), "the processes have different texts; name one file with --text")
        return super().__enter__() if self.rank == 0 else self

    def __exit__(self, *error):
        if self.rank == 0:
            super().__exit__(*error)

    def __call__(self, model, train_data, val_data, config):
        gpt.check(config.batch_size % self.world_size == 0,
                  f"batch_size={config.batch_size} must be a multiple of the {self.world_size} processes")
        yield from super().__call__(model, train_data, val_data, config)
        parameters = nn.utils.parameters_to_vector(model.parameters()).detach().to(self.device)
        if not all_equal(parameters):
            raise RuntimeError("the processes hold different parameters")
        dist.destroy_process_group()
        if self.rank > 0:
            sys.exit()                                          # the first process does the rest
        gpt.say(f"all {self.world_size} processes hold equal parameters")

    def prepare(self, trained, options):
        super().prepare(trained, options)
        average_gradients(trained)

    def training_step(self, trained, optimizer, train_data, options):
        share = replace(options, batch_size=options.batch_size // self.world_size,
                        seed=options.seed + 10**9 * self.rank)
        loss = super().training_step(trained, optimizer, train_data, share)
        return mean(torch.tensor(loss, dtype=torch.float64, device=self.device)).item()

    def save(self, trained, optimizer):
        if self.rank == 0:
            super().save(trained, optimizer)


def command(arguments):
    gpt.check(dist.is_torchelastic_launched(), "start this with torchrun; its first lines say how")
    if os.environ["RANK"] == "0":
        return gpt.run_command(arguments, ParallelRun)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            gpt.run_command(arguments, ParallelRun)
    except (Exception, KeyboardInterrupt) as error:
        time.sleep(1)               # torchrun ends all when one has ended; the first needs time to say why
        if isinstance(error, (gpt.UserError, OSError, KeyboardInterrupt)):          # the first says the same
            sys.exit(2)
        raise


if __name__ == "__main__":
    code = gpt.run_cleanly("processes.py", command, sys.argv[1:])
    sys.stdout.flush()
    os._exit(code or 0)             # in an orderly end, threads of torch.distributed may abort when others have gone
