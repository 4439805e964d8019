"""How fast gpt.py is on this machine, and what a model costs: speed, memory and work, for each size.

    python tests/benchmark.py              takes a quarter of an hour without a GPU
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
# What a size is for, and the steps of a sensible training: on Tiny Shakespeare until the validation loss no longer
# falls; else 20 tokens for each parameter, which spends the work well (Hoffmann et al. 2022, arXiv 2203.15556).
PURPOSES = {"default": ("to learn with, on any computer", 3000),
            "7M": ("Tiny Shakespeare at its best, on a CPU", 1500),
            "11M": ("the same on a GPU, with nanoGPT's settings", 5000),
            "25M": ("500 MB of text, on a GPU", 165_000),
            "86M": ("2 GB of text, on several GPUs; the smallest GPT-2", 140_000)}

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
    found["seconds_of_a_step"] = step * config.batch_size / few.batch_size
    found["sixteen_bits_take"] = sixteen_bits_take(model, device, at_least)
    idx = torch.randint(config.vocab_size, (1, T), device=device)                   # a context that is full
    for kind, generate, tokens in (
            ("cached", gpt.generate_cached, T // 2),        # a whole round: then the cache begins anew
            ("plain", gpt.generate, 4)):                    # here, all tokens take equally long
        found[f"{kind}_tokens_per_second"] = tokens / seconds(
            "generate(model, idx, tokens)", at_least, generate=generate, model=model, idx=idx, tokens=tokens)
    return found


def sixteen_bits_take(model, device, at_least):
    """How many times as long as with 32 bits the way forward and back takes in bfloat16, for 256 tokens."""
    T = min(model.block_size, 256)
    x = torch.randint(model.config.vocab_size, (256 // T, T), device=device)

    def there_and_back(enabled):
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            loss = model(x, x)[1]
        loss.backward()

    there_and_back(True)                                    # the first time prepares a lot
    of_32, of_16 = (seconds("step(enabled)", at_least, step=there_and_back, enabled=enabled)
                    for enabled in (False, True))
    return of_16 / of_32


# %% The table


def number(x):
    return f"{x:,.3g}" if x < 100 else f"{x:,.0f}"


def megabytes(x):
    return f"{number(x)} MB" if x < 1000 else f"{number(x / 1000)} GB"


def duration(seconds):
    for unit, of_one in ("days", 86400), ("h", 3600), ("min", 60), ("s", 1):
        if seconds >= 2 * of_one:
            return f"{number(seconds / of_one)} {unit}"
    return f"{1000 * seconds:.0f} ms"


def show(machine, sizes):
    print("  ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{'':<18}{'memory to train':>16}{'MFLOP':>7}{'a step, in':>17}{'sensible':>9}{'writing, a s':>13}\n"
          f"{'':<7}{'parameters':>11}{'model':>8}{'a batch':>8}{'a token':>8}{'32':>7}{'16 bits':>9}{'training':>9}"
          f"{'cached':>7}{'plain':>6}")
    for name, row in sizes.items():
        step, (_, steps) = row["seconds_of_a_step"], PURPOSES[name]
        print(f"{name:<7}{row['parameters']:>11,}{megabytes(row['MB_of_the_model']):>8}"
              f"{megabytes(row['MB_of_a_batch']):>8}{number(row['MFLOP_per_token']):>7}{duration(step):>8}"
              f"{duration(step * row['sixteen_bits_take']):>9}{duration(step * steps):>9}"
              f"{number(row['cached_tokens_per_second']):>7}{number(row['plain_tokens_per_second']):>6}")
    print("\nMemory to train: parameters, slopes and AdamW's two means; and the activations\nof a batch of "
          f"{gpt.Options().batch_size}. MFLOP: millions of multiplications and additions to train on\na token. "
          "16 bits: --dtype bfloat16. Writing: tokens in a second, with a KV cache\n"
          "and without; the context is full.\n")
    for name in sizes:
        purpose, steps = PURPOSES[name]
        print(f"{name:<8} {purpose}; {steps:,} steps")


def command(arguments):
    parser = gpt.Parser("benchmark.py", allow_abbrev=False, description=__doc__,
                        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default size alone, for a moment")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    device, sizes = gpt.choose_device(), {}
    gpt.choose_threads()
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
