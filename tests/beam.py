"""beam.py: two things to do with a trained model: search for the most probable text, and keep it in 8 bits.

    python tests/beam.py                        the latest run that gpt.py has kept
    python tests/beam.py RUN --prompt ROMEO:    another one, which goes on from this

Both are written in by_hand.py, a few lines each, and are exercises of rebuild.py. What to look for: the more texts a
beam keeps, the more probable its text, and the duller. And a quarter of the memory costs next to no loss; but PyTorch
computes with 32 bits all the same, so it is slower, not faster.
"""

import copy
import sys
from pathlib import Path

sys.path[:0] = str(Path(__file__).parent), str(Path(__file__).parent.parent)
import benchmark
import by_hand
import gpt  # before torch: it silences torch's warning that NumPy is missing
import torch
import torch.nn.functional as F


def log_probability(model, idx, start):
    """ln of the probability of the tokens of idx (1, T) from `start` on, given those before them."""
    with torch.no_grad():
        log_probs = F.log_softmax(model(idx[:, :-1])[0], dim=-1)                    # (1, T-1, V)
    return log_probs.gather(2, idx[:, 1:, None])[0, start - 1:, 0].sum().item()     # (1, T-1, 1) -> (new,) -> ()


def show_searches(model, tokenizer, prompt):
    ids = gpt.encode_prompt(tokenizer, prompt)
    idx, new = torch.tensor([ids]), min(48, model.block_size - len(ids))            # what fits into the context
    gpt.check(new > 0, f"the prompt has {len(ids)} tokens; a model with a context of {model.block_size} sees no more")
    draw = torch.Generator().manual_seed(0)
    texts = {"greedy": gpt.generate(model, idx, new, temperature=0),
             "drawn, at 0.8": gpt.generate(model, idx, new, temperature=0.8, generator=draw),
             "drawn, at 1": gpt.generate(model, idx, new, generator=draw),
             **{f"beam of {width}": by_hand.beam_search(model, idx, new, width) for width in (2, 8, 32)}}
    print(f"{new} tokens after {prompt!r}, and the natural logarithm of their probability:\n")
    for name, text in texts.items():
        print(f"{name:<14}{log_probability(model, text, len(ids)):>8.2f}  {tokenizer.decode(text[0].tolist())!r:.55}")


def show_sizes(model, val_data):
    small = copy.deepcopy(model)
    by_hand.replace_layers(small, torch.nn.Linear, by_hand.Linear8bit)
    print(f"\n{'':<14}{'megabytes':>10}{'loss':>8}{'tokens/s':>10}")
    idx = val_data[None, :1].long()                                                 # (1, 1)
    for name, one in ("32 bits", model), ("8 bits", small):
        size = sum(part.numel() * part.element_size() for part in one.state_dict().values()) / 1e6
        seconds = benchmark.seconds("write(model, idx, 200, temperature=0)", 1, write=gpt.generate_cached, model=one,
                                    idx=idx)
        print(f"{name:<14}{size:>10.2f}{gpt.evaluate(one, val_data):>8.4f}{200 / seconds:>10.0f}")


def command(arguments):
    parser = gpt.Parser("beam.py", allow_abbrev=False, description="Beam search and 8 bits, on a saved run.")
    parser.add_argument("run", nargs="?", help="its name or its path, else the latest")
    parser.add_argument("--prompt", help=r"how the text begins (\n is a new line), if not as the run's own")
    given = parser.parse_args(arguments)
    path = gpt.find_run(given.run)
    gpt.check(not path.is_dir(), f"{path} is a GPT-2; this is for a run of gpt.py")
    saved = gpt.read_checkpoint(path)
    _, text = gpt.load_text_of(saved)
    prompt = gpt.default_prompt(saved.tokenizer) if given.prompt is None else gpt.unescape(given.prompt)
    gpt.choose_threads()
    show_searches(saved.best.eval(), saved.tokenizer, prompt)
    show_sizes(saved.best, gpt.encode_text(gpt.train_val_split(text)[1], saved.tokenizer))


if __name__ == "__main__":
    sys.exit(gpt.run_cleanly("beam.py", command, sys.argv[1:]))
