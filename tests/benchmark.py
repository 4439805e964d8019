"""How fast gpt.py is on this machine: one table, medians of repeats that take turns.

    python tests/benchmark.py              takes about five minutes on two cores
    python tests/benchmark.py --quick      one repeat with less work: does it run?
    python tests/benchmark.py --json       the same numbers, for machines

Run nothing else meanwhile. Every measurement is repeated, in turns with all others, so that a
machine that becomes slower for a while slows all of them alike.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import gpt  # before torch: it silences torch's remark that NumPy is missing
import torch

CONTEXTS = (64, 128, 256, 512, 1024)
MODELS = {"0.6M": gpt.Config(), "10.8M": gpt.Config(**gpt.SIZES["11M"])}


def finished(device):
    """Wait for the device, so that the clock sees the work and not only its beginning."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work, device):
    finished(device)
    began = time.perf_counter()
    work()
    finished(device)
    return time.perf_counter() - began


def matrix_peak(device, dtype, size):
    """A measurement of GFLOP/s in a product of two matrices."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    a @ a
    return lambda: 2 * size**3 / seconds(lambda: a @ a, device) / 1e9


def training(config, device, steps):
    """A measurement of tokens per second in training."""
    model = gpt.GPT(config).to(device).train()
    optimizer = gpt.build_optimizer(model, config)
    data = torch.randint(config.vocab_size, (100_000,), device=device)
    gpt.training_step(model, optimizer, data, 0, config)

    def work():
        for step in range(steps):
            gpt.training_step(model, optimizer, data, step, config)

    return lambda: steps * config.batch_size * config.block_size / seconds(work, device)


def writing(config, device, batch, use_cache, tokens, prompt=None):
    """A measurement of tokens per second in writing, from a context that is full, or of `prompt` tokens."""
    model = gpt.GPT(config).to(device).eval()
    idx = torch.randint(config.vocab_size, (batch, prompt or config.block_size), device=device)

    def work():
        gpt.generate(model, idx, tokens, use_cache=use_cache)

    return lambda: batch * tokens / seconds(work, device)


def one_more_token(block_size, context, device, tokens):
    """A measurement of milliseconds for a token with `context` tokens in the cache."""
    model = gpt.GPT(gpt.Config(block_size=block_size)).to(device).eval()
    idx = torch.randint(65, (1, context - tokens), device=device)

    @torch.inference_mode()
    def measure():
        cache = gpt.Cache()
        model(idx, cache=cache)

        def work():
            for _ in range(tokens):
                model(idx[:, :1], cache=cache)

        return 1000 * seconds(work, device) / tokens

    return measure


def loading(config, folder):
    """A measurement of milliseconds to load a checkpoint."""
    model, vocabulary = gpt.GPT(config), "".join(map(chr, range(32, 32 + config.vocab_size)))
    data = torch.randint(config.vocab_size, (10_000,))
    report = next(gpt.train(model, data, data[:100], config))
    gpt.DATA = Path(folder)
    keeper = gpt.Keeper(str(config.n_embd))
    keeper.about = {"config": gpt.asdict(config), "vocabulary": vocabulary, "text_sha256": "", "bigram": None}
    keeper.save(model, report)
    return lambda: 1000 * seconds(lambda: gpt.load_checkpoint(keeper.path(".pt")), "cpu")


def peak_memory(device):
    """The most memory that this process has had, in MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    import resource
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def measurements(device, quick, folder):
    """All of them: a dict from what is measured to a function that measures it once."""
    steps = {"0.6M": 2 if quick else 40, "10.8M": 1 if quick else 2}
    all_of_them = {"matrix product, float32, GFLOP/s": matrix_peak(device, torch.float32, 256 if quick else 2048)}
    if device == "cuda" or torch.cpu._is_avx512_bf16_supported():
        all_of_them["matrix product, bfloat16, GFLOP/s"] = matrix_peak(
            device, torch.bfloat16, 256 if quick else 8192 if device == "cuda" else 2048)
    for name, config in MODELS.items():
        all_of_them[f"training {name}, tokens/s"] = training(config, device, steps[name])
        for batch in (1, 16):
            for use_cache in (True, False):
                how = "with" if use_cache else "without"
                n = 4 if quick else config.block_size // 2      # a full round: half a context is dropped in it
                all_of_them[f"writing {name}, batch {batch}, {how} cache, tokens/s"] = writing(
                    config, device, batch, use_cache, n)
        all_of_them[f"loading {name}, ms"] = loading(config, folder)
    for context in CONTEXTS:
        config = gpt.Config(block_size=context, batch_size=1024 // context)
        one_step = training(config, device, 1 if quick else 10)
        all_of_them[f"training, context {context}, ms per 1,000 tokens"] = lambda measure=one_step: 1e6 / measure()
    for context in CONTEXTS:
        all_of_them[f"writing, context {context}, ms per token"] = one_more_token(
            1024, context, device, 4 if quick else 50)
    return all_of_them


def shares_of_peak(medians, device):
    """Which part of the peak of matrix products the training reaches."""
    peak = medians[f"matrix product, {'bfloat16' if device == 'cuda' else 'float32'}, GFLOP/s"]
    return {f"training {name}, share of the peak": medians[f"training {name}, tokens/s"]
            * gpt.training_flops(config)[0] / 1e9 / peak for name, config in MODELS.items()}


def main():
    parser = argparse.ArgumentParser(description="Measure how fast gpt.py is on this machine.")
    parser.add_argument("--quick", action="store_true", help="one repeat with less work")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--repeats", type=int, default=7, help="default %(default)s")
    options = parser.parse_args()
    device = gpt.choose_device()
    with tempfile.TemporaryDirectory() as folder:
        all_of_them = measurements(device, options.quick, folder)
        runs = {what: [] for what in all_of_them}
        for _ in range(1 if options.quick else options.repeats):
            for what, measure in all_of_them.items():
                runs[what].append(measure())
    medians = {what: statistics.median(values) for what, values in runs.items()}
    machine = {"device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
               "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
               "repeats": len(next(iter(runs.values())))}
    results = {what: {"median": medians[what], "min": min(values), "max": max(values)} for what, values in runs.items()}
    for what, share in shares_of_peak(medians, device).items():
        results[what] = {"median": share}
    results["peak memory of all this, MB"] = {"median": peak_memory(device)}
    if options.json:
        print(json.dumps({"machine": machine, "results": results}, indent=1))
        return
    print("  ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{'':<52}  {'median':>9}  {'from':>9}  {'to':>9}")
    for what, row in results.items():
        print(f"{what:<52}  " + "  ".join(f"{number:>9,.3g}" if number < 100 else f"{number:>9,.0f}"
                                          for number in row.values()))


if __name__ == "__main__":
    main()
