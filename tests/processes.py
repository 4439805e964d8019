"""processes.py: one training by several processes at once, as large models are trained on many GPUs.

    torchrun --standalone --nproc_per_node=2 tests/processes.py [options of gpt.py]

Each process holds the whole model and works on its share of every batch. Once backward() has made the last gradient,
all processes exchange theirs and go on with the mean, which is the gradient of the whole batch. So each of them clips
it alike and makes the same step, and no parameters have to be sent. This is called data parallelism.

It proves that the story of gpt.py needs no trace of this: `run` is given another LongRun, and stays as it is. And it
proves that the processes never drift apart: at the end, all compare their parameters. The first one prints and saves;
with CUDA, each has a GPU of its own. (It needs no more than one computer: all read the same text and the same data/.)
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import gpt  # before torch: it silences torch's warning that NumPy is missing
import torch
import torch.distributed as dist
import torch.nn as nn

train = gpt.train


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

    def __init__(self, name, text, tokenizer, saved=None, device="cpu", *others):
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        super().__init__(name, text, tokenizer, saved, device, *others)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        sha256 = torch.tensor(list(bytes.fromhex(gpt.hash_of(text))), device=device)
        gpt.check(all_equal(sha256), "the processes have different texts; name one file with --text")

    def __call__(self, model, train_data, val_data, config):
        gpt.check(config.batch_size % self.world_size == 0,
                  f"batch_size={config.batch_size} must be a multiple of the {self.world_size} processes")
        gpt.train = self.train                                  # LongRun calls it, and set_aside
        if self.rank > 0:
            gpt.set_aside = lambda name: None
        yield from super().__call__(model, train_data, val_data, config)
        parameters = nn.utils.parameters_to_vector(model.parameters()).detach().to(self.device)
        gpt.check(all_equal(parameters), "the processes hold different parameters")
        print(f"all {self.world_size} processes hold equal parameters")
        if self.rank > 0:
            sys.exit()                                          # the first process does the rest

    def train(self, model, train_data, val_data, config, state):
        average_gradients(model)
        config = replace(config, batch_size=config.batch_size // self.world_size, seed=config.seed + 10**9 * self.rank)
        for state in train(model, train_data, val_data, config, state):     # its losses: the mean of all processes
            if state.val_loss is None:
                state.loss_sum = mean(state.loss_sum)
            else:
                loss = mean(torch.tensor(state.train_loss, dtype=torch.float64, device=self.device)).item()
                state.train_loss = state.history[-1]["train_loss"] = loss
            yield state

    def save(self, model, state):
        if self.rank == 0:
            super().save(model, state)


def command(arguments):
    gpt.check(dist.is_torchelastic_launched(), "start this with torchrun; its first lines say how")
    first = os.environ["RANK"] == "0"
    if not first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    gpt.LongRun = ParallelRun
    try:
        return gpt.run_command(arguments)
    except (ValueError, OSError, KeyboardInterrupt):            # all processes find the same
        if first:
            raise
        time.sleep(1)               # torchrun ends all when one has ended; the first needs time to say why
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    code = gpt.run_cleanly("processes.py", command, sys.argv[1:])
    sys.stdout.flush()
    os._exit(code or 0)             # in an orderly end, threads of torch.distributed may abort when others have gone
