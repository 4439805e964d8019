"""How fast gpt.py is on this machine, and what a model costs, in three tables: speed, sizes, context.

    python tests/benchmark.py              takes about seven minutes on two cores
    python tests/benchmark.py --quick      one repeat with less work: does it run?
    python tests/benchmark.py --json       the same numbers, for machines

Run nothing else meanwhile. Measurements are repeated, in turns with all others, so that a machine that becomes slower
for a while slows all of them alike. (Only the steps of the large sizes are measured once: they take long.)
"""

import argparse
import functools
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import gpt  # before torch: it silences torch's remark that NumPy is missing
import torch
import torch.nn.functional as F

MODELS = {"0.6M": gpt.Config(), "10.8M": gpt.Config(**gpt.SIZES["11M"])}
CACHED = (64, 128, 256, 512, 1024)                          # tokens in the cache
CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096)

# %% What a model costs
# It follows from its Config, before anything is built. Training needs, besides the parameters, a gradient for each, two
# running means that AdamW keeps of it, and the activations: what is computed on the way forward and needed on the way
# back. Work is counted in FLOPs, multiplications and additions.

SIZES = {
    "count": gpt.Config(vocab_size=11, n_layer=1, n_head=2, n_embd=16),
    "default": gpt.Config(),
    **{name: gpt.Config(**size) for name, size in gpt.SIZES.items()},
    "GPT-2": gpt.Config(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, tie_weights=True),
    "GPT-3": gpt.Config(vocab_size=50257, block_size=2048, n_layer=96, n_head=96, n_embd=12288, tie_weights=True)}
PURPOSES = {
    "count": "a pattern: tests/demos.py count", "default": "reading and trying: minutes",
    "7M": "a text of some MB, in hours", "11M": "Shakespeare, with a GPU or in hours",
    "86M": "GPT-2's shape, for characters", "GPT-2": "the smallest of the four",
    "GPT-3": "learns a task from its prompt"}


@functools.cache
def parameters(config):
    with torch.device("meta"):                              # shapes alone, without memory for numbers
        return gpt.count_parameters(gpt.GPT(config))


def activation_bytes(config):
    """What a step keeps of its batch for backward(), in float32, with learned positions and no dropout."""
    # In and out of the LayerNorms 4 C; queries, keys, values 3 C; what is found C; around GELU 8 C.
    block = 16 * config.n_embd + config.n_head + 4
    of_a_token = config.n_layer * block + 2 * config.n_embd + config.vocab_size + 6
    return 4 * config.batch_size * config.block_size * of_a_token


def score_bytes(config):
    """What the attention weights of a batch would take, if they were kept: a table of T x T for each head."""
    return 4 * config.batch_size * config.n_layer * config.n_head * config.block_size**2


def training_flops(config):
    """(multiplications and additions to train on one token, the part of them that attends)."""
    # For each parameter of a matrix 2 forward and 4 back. Scores and means: forward, 2 T C each, and twice that back.
    # (What is masked counts, as is usual.)
    matrices = config.n_layer * 12 * config.n_embd**2 + config.vocab_size * config.n_embd
    attending = config.n_layer * 12 * config.n_embd * config.block_size
    return 6 * matrices + attending, attending


# %% Measurements
# Each function prepares something, and returns a function that measures it once.


def seconds(work, device):
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None   # the clock must see all of the work
    finish()
    began = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - began


def matrix_peak(device, dtype, size):
    """GFLOP/s in a product of two matrices."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    a @ a
    return lambda: 2 * size**3 / seconds(lambda: a @ a, device) / 1e9


def training(config, device, steps):
    """Tokens per second in training."""
    model = gpt.GPT(config).to(device).train()
    optimizer = gpt.build_optimizer(model, config)
    data = torch.randint(config.vocab_size, (100_000,), device=device)
    gpt.training_step(model, optimizer, data, 0, config)

    def work():
        for step in range(steps):
            gpt.training_step(model, optimizer, data, step, config)

    return lambda: steps * config.batch_size * config.block_size / seconds(work, device)


def attention(config, device, steps):
    """Tokens per second, if attention alone were computed, forward and back."""
    shape = config.batch_size, config.n_head, config.block_size, config.n_embd // config.n_head
    q, k, v = (torch.randn(shape, device=device, requires_grad=True) for _ in range(3))

    def work():
        for _ in range(steps * config.n_layer):
            F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    work()
    return lambda: steps * config.batch_size * config.block_size / seconds(work, device)


def sampling(config, device, batch, use_cache, tokens):
    """Tokens per second in sampling, from a context that is full."""
    model = gpt.GPT(config).to(device).eval()
    idx = torch.randint(config.vocab_size, (batch, config.block_size), device=device)
    return lambda: batch * tokens / seconds(lambda: gpt.generate(model, idx, tokens, use_cache=use_cache), device)


def one_more_token(block_size, context, device, tokens):
    """Milliseconds for a token with `context` tokens in the cache."""
    model = gpt.GPT(gpt.Config(block_size=block_size)).to(device).eval()
    idx = torch.randint(65, (1, context - tokens), device=device)

    @torch.inference_mode()
    def measure():
        cache = gpt.KVCache(block_size)
        model(idx, cache=cache)

        def work():
            for _ in range(tokens):
                model(idx[:, :1], cache=cache)

        return 1000 * seconds(work, device) / tokens

    return measure


def loading(config, folder):
    """Milliseconds to load a checkpoint."""
    model, tokenizer = gpt.GPT(config), gpt.CharTokenizer("".join(map(chr, range(32, 32 + config.vocab_size))))
    data = torch.randint(config.vocab_size, (10_000,))
    state = next(gpt.train(model, data, data[:100], replace(config, batch_size=1)))     # with the means of AdamW
    data_folder, gpt.DATA = gpt.DATA, Path(folder)
    gpt.save_checkpoint(str(config.n_embd), "", model, tokenizer, state)
    gpt.DATA = data_folder
    return lambda: 1000 * seconds(lambda: gpt.load_checkpoint(Path(folder, f"{config.n_embd}.pt")), "cpu")


def peak_memory(device):
    """The most memory that this process has had, in MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    import resource
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def speed_measurements(device, quick, folder):
    """{what is measured: a function that measures it once}."""
    steps = {"0.6M": 2 if quick else 40, "10.8M": 1 if quick else 2}
    found = {"matrix product, float32, GFLOP/s": matrix_peak(device, torch.float32, 256 if quick else 2048)}
    if device == "cuda" or torch.cpu._is_avx512_bf16_supported():
        found["matrix product, bfloat16, GFLOP/s"] = matrix_peak(
            device, torch.bfloat16, 256 if quick else 8192 if device == "cuda" else 2048)
    for name, config in MODELS.items():
        config = replace(config, block_size=16, batch_size=1) if quick else config
        found[f"training {name}, tokens/s"] = training(config, device, steps[name])
        for batch in (1, 16):
            for use_cache in (True, False):
                n = 4 if quick else config.block_size // 2  # a full round: half a context is dropped in it
                found[f"sampling {name}, batch {batch}, {'with' if use_cache else 'without'} cache, tokens/s"] = (
                    sampling(config, device, batch, use_cache, n))
        found[f"loading {name}, ms"] = loading(config, folder)
    for context in CACHED:
        found[f"sampling, context {context}, ms per token"] = one_more_token(1024, context, device, 4 if quick else 50)
    return found


def context_measurements(device, quick):
    """The same, for the default model with other contexts, each with as many tokens in a step."""
    found = {}
    for T in CONTEXTS[:3] if quick else CONTEXTS:
        config = gpt.Config(block_size=T, batch_size=1 if quick else CONTEXTS[-1] // T)
        found["training", T] = training(config, device, 1 if quick else 3)
        found["attention", T] = attention(config, device, 1 if quick else 3)
    return found


def repeated(measurements, repeats):
    """{what: its measurements}, in turns."""
    runs = {what: [] for what in measurements}
    for _ in range(repeats):
        for what, measure in measurements.items():
            runs[what].append(measure())
    return runs


# %% The tables


def speed_table(device, quick, repeats):
    with tempfile.TemporaryDirectory() as folder:
        runs = repeated(speed_measurements(device, quick, folder), repeats)
    table = {what: {"median": statistics.median(values), "min": min(values), "max": max(values)}
             for what, values in runs.items()}
    peak = table[f"matrix product, {'bfloat16' if device == 'cuda' else 'float32'}, GFLOP/s"]["median"] * 1e9
    for name, config in MODELS.items():
        done = table[f"training {name}, tokens/s"]["median"] * training_flops(config)[0]
        table[f"training {name}, share of the peak"] = {"median": done / peak}
    return table


def sizes_table(device, quick):
    """For each size: what it costs, and how long it would train here."""
    table = {}
    for name, config in SIZES.items():
        n, (flops, attending) = parameters(config), training_flops(config)
        table[name] = row = {
            "parameters": n, "weights_16_bits_MB": 2 * n / 1e6, "training_MB": 16 * n / 1e6,
            "batch_MB": activation_bytes(config) / 1e6, "MFLOP_per_token": flops / 1e6,
            "attention": attending / flops, "hours_for_3000_steps": None, "purpose": PURPOSES.get(name, "")}
        if n < (1e6 if quick else 1e9):
            tokens = config.batch_size * config.block_size
            few = replace(config, batch_size=max(1, min(config.batch_size, 1024 // config.block_size)))
            row["hours_for_3000_steps"] = 3000 * tokens / training(few, device, 2 if quick or n > 1e6 else 20)() / 3600
    return table


def contexts_table(device, quick, repeats):
    """For each context: time and memory of a sequence, and how much of them is attention's."""
    medians = {what: statistics.median(values)
               for what, values in repeated(context_measurements(device, quick), repeats).items()}
    table = {}
    for T in (T for what, T in medians if what == "training"):
        config = gpt.Config(block_size=T, batch_size=1)
        flops, attending = training_flops(config)
        pace = medians["training", T]                       # tokens per second
        table[T] = {"ms_per_1000_tokens": 1e6 / pace, "ms_per_sequence": 1000 * T / pace,
                    "attention_of_work": attending / flops, "attention_of_time": pace / medians["attention", T],
                    "sequence_MB": activation_bytes(config) / 1e6, "scores_MB": score_bytes(config) / 1e6}
    return table


def number(x):
    return "-" if x is None else f"{x:,.3g}" if abs(x) < 100 else f"{x:,.0f}"


def megabytes(x):
    return f"{number(x)} MB" if x < 1000 else f"{number(x / 1000)} GB"


def duration(hours):
    for unit, hours_of_one in ("years", 24 * 365), ("days", 24), ("hours", 1), ("min", 1 / 60):
        if hours is not None and hours >= 2 * hours_of_one:
            return f"{hours / hours_of_one:,.0f} {unit}"
    return "-" if hours is None else f"{3600 * hours:.0f} s"


def show(machine, speed, sizes, contexts):
    print("  ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{'Speed':<52}  {'median':>9}  {'from':>9}  {'to':>9}")
    for what, row in speed.items():
        print(f"{what:<52}  " + "  ".join(f"{number(value):>9}" for value in row.values()))

    print(f"\n{'':<24}{'memory':>11}{'memory to train':>20}{'MFLOP':>11}{'3,000':>10}\n"
          f"{'Sizes':<8}{'parameters':>16}{'of weights':>11}{'model':>10}{'a batch':>10}{'a token':>11}{'steps':>10}"
          "  what it is for")
    for name, row in sizes.items():
        print(f"{name:<8}{row['parameters']:>16,}{megabytes(row['weights_16_bits_MB']):>11}"
              f"{megabytes(row['training_MB']):>10}{megabytes(row['batch_MB']):>10}{number(row['MFLOP_per_token']):>11}"
              f"{duration(row['hours_for_3000_steps']):>10}  {row['purpose']}")
    pace = max(row["MFLOP_per_token"] * 3000 * config.batch_size * config.block_size / row["hours_for_3000_steps"]
               for row, config in zip(sizes.values(), SIZES.values()) if row["hours_for_3000_steps"])
    years = sizes["GPT-3"]["MFLOP_per_token"] * 3e11 / pace
    print("Weights in 16 bits, as they are published. To train in 32: parameters, gradients and AdamW's two means;\n"
          "and for a batch of 12 sequences, the activations. MFLOP: millions of operations to train on a token. The\n"
          "time of 3,000 steps is estimated from a few that were measured here. GPT-3 read 300 billion tokens: at the\n"
          f"highest speed measured here, that would take {duration(years)}.")

    print(f"\n{'':<8}{'milliseconds to train':>32}{'share of attention':>22}{'memory of a sequence':>30}\n"
          f"{'Context':<8}{'1,000 tokens':>18}{'a sequence':>14}{'of work':>13}{'of time':>9}"
          f"{'as it is':>14}{'scores kept':>16}")
    for T, row in contexts.items():
        print(f"{T:<8,}{number(row['ms_per_1000_tokens']):>18}{number(row['ms_per_sequence']):>14}"
              f"{row['attention_of_work']:>13.0%}{row['attention_of_time']:>9.0%}{megabytes(row['sequence_MB']):>14}"
              f"{megabytes(row['sequence_MB'] + row['scores_MB']):>16}")
    print("The default model with other contexts. What its matrices cost grows with the number of tokens, what scores\n"
          "cost with its square. The fused attention of PyTorch never keeps all scores, so memory grows more slowly.")


def command(arguments):
    parser = gpt.Parser("benchmark.py", allow_abbrev=False, description=__doc__,
                        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat with less work")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--repeats", type=int, default=7, help="default %(default)s")
    options = parser.parse_args(arguments)
    gpt.check_range("--repeats", options.repeats, 1)
    device, quick, repeats = gpt.choose_device(), options.quick, 1 if options.quick else options.repeats
    machine = {"device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
               "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
               "repeats": repeats}
    speed = speed_table(device, quick, repeats)
    contexts = contexts_table(device, quick, repeats)
    sizes = sizes_table(device, quick)
    speed["peak memory of all this, MB"] = {"median": peak_memory(device)}
    if options.json:
        print(json.dumps({"machine": machine, "results": speed, "sizes": sizes, "contexts": contexts}, indent=1))
    else:
        show(machine, speed, sizes, contexts)


def main(arguments=None):
    return gpt.run_cleanly("benchmark.py", command, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
