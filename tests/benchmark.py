"""How fast gpt.py is on this machine, and what a model costs: speed, memory and work, for each size.

    python tests/benchmark.py              takes some minutes
    python tests/benchmark.py --quick      the default size alone, and only for a moment: does it run?
    python tests/benchmark.py --json       the same numbers, for machines

Speeds are medians. Run nothing else meanwhile.
"""

import argparse
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import gpt  # before torch: it silences torch's warning that NumPy is missing
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

SIZES = {"default": gpt.Options(), **{name: gpt.Options(**size) for name, size in gpt.SIZES.items()}}
STEPS = gpt.Options().max_steps

# %% What a model costs


def flops_of_a_token(config):
    """Multiplications and additions to train on one token. (What is masked counts, as is usual.)"""
    with torch.device("meta"):                              # shapes alone, without memory for numbers
        model = gpt.build_gpt(config)
        x = torch.zeros(1, config.block_size, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, x)[1].backward()
    return counter.get_total_flops() / config.block_size


def bytes_of_a_sequence(model):
    """What a training step keeps of each sequence from the way forward for the way back: its activations."""
    parameters = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()                  # several tensors may share one
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(1, model.block_size, dtype=torch.long, device=model.lm_head.weight.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.train()(x, x)[1]                       # as long as it lives, so does what was kept
    return sum(kept.values())


# %% Measurements


def seconds(statement, at_least, **names):
    """How long a statement takes, the median of several times that together take so many seconds."""
    timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).median


def measure(config, device, at_least):
    """{what: a number}, for a model of this size."""
    model = gpt.build_gpt(config).to(device)
    n, T = sum(p.numel() for p in model.parameters()), config.block_size
    found = {"parameters": n, "MFLOP_per_token": flops_of_a_token(config) / 1e6,
             # Four numbers of 4 bytes for each parameter: itself, its slope, and AdamW's m and v.
             "MB_of_the_model": 16 * n / 1e6, "MB_of_a_batch": config.batch_size * bytes_of_a_sequence(model) / 1e6}
    few = replace(config, batch_size=min(config.batch_size, max(1, 3072 // T)))     # more take too long
    step = seconds("training_step(model, optimizer, data, 0, config)", at_least, training_step=gpt.training_step,
                   model=model, optimizer=gpt.build_optimizer(model, few), config=few,
                   data=torch.randint(config.vocab_size, (100_000,), device=device))
    found["training_tokens_per_second"] = few.batch_size * T / step
    found["hours_of_training"] = STEPS * config.batch_size / few.batch_size * step / 3600
    idx = torch.randint(config.vocab_size, (1, T), device=device)                   # a context that is full
    for kind, generate, tokens in (
            ("cached", gpt.generate_cached, T // 2),        # a whole round: then the cache begins anew
            ("plain", gpt.generate, 4)):                    # here, all tokens take equally long
        found[f"{kind}_tokens_per_second"] = tokens / seconds(
            "generate(model, idx, tokens)", at_least, generate=generate, model=model, idx=idx, tokens=tokens)
    return found


# %% The table


def number(x):
    return f"{x:,.3g}" if x < 100 else f"{x:,.0f}"


def megabytes(x):
    return f"{number(x)} MB" if x < 1000 else f"{number(x / 1000)} GB"


def duration(hours):
    for unit, hours_of_one in ("days", 24), ("hours", 1), ("min", 1 / 60):
        if hours >= 2 * hours_of_one:
            return f"{hours / hours_of_one:,.0f} {unit}"
    return f"{3600 * hours:.0f} s"


def show(machine, sizes):
    print("  ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{'':<21}{'memory to train':>20}{'MFLOP':>9}{'training,':>11}{f'{STEPS:,}':>9}{'writing, tokens/s':>20}\n"
          f"{'':<8}{'parameters':>13}{'model':>10}{'a batch':>10}{'a token':>9}{'tokens/s':>11}{'steps':>9}"
          f"{'cached':>11}{'plain':>9}")
    for name, row in sizes.items():
        print(f"{name:<8}{row['parameters']:>13,}{megabytes(row['MB_of_the_model']):>10}"
              f"{megabytes(row['MB_of_a_batch']):>10}{number(row['MFLOP_per_token']):>9}"
              f"{number(row['training_tokens_per_second']):>11}{duration(row['hours_of_training']):>9}"
              f"{number(row['cached_tokens_per_second']):>11}{number(row['plain_tokens_per_second']):>9}")
    print("\nMemory to train: parameters, slopes and AdamW's two means; and the activations of a batch of "
          f"{gpt.Options().batch_size}.\nMFLOP: millions of multiplications and additions to train on a token. "
          "Writing: with a full context.")


def command(arguments):
    parser = gpt.Parser("benchmark.py", allow_abbrev=False, description=__doc__,
                        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default size alone, for a moment")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    device, sizes = gpt.choose_device(), {}
    machine = {"device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
               "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__}
    for name in ["default"] if options.quick else SIZES:
        gpt.show_progress(f"measuring {name}")
        sizes[name] = measure(SIZES[name], device, 0.01 if options.quick else 5)
    gpt.show_progress()
    if options.json:
        print(json.dumps({"machine": machine, "sizes": sizes}, indent=1))
    else:
        show(machine, sizes)


def main(arguments=None):
    return gpt.run_cleanly("benchmark.py", command, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
