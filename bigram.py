"""bigram.py: what can be known about a text by looking at one character at a time.

The baseline of gpt.py, by itself. A bigram model is a table: a row for each character, and in the
row, for each character, how probable it is that it comes next. There are two ways to make it. One
is to count which character follows which, and to be done. The other begins with a table that knows
nothing and lets gradient descent improve it, batch by batch, as gpt.py does it with a GPT. For a
table this is a detour; for a GPT, where nothing can be counted, it is the only way. Both should
arrive at the same table, and here one can see how nearly they do.

    python bigram.py                    takes a few seconds
    python bigram.py --text my.txt      the same with your own text

Its table of results has the form of that of `python gpt.py`, and data/NAME-bigram.txt is the same
file. B, T, V and N are the letters of gpt.py: pieces of text side by side, tokens in each, different
tokens, and tokens in the whole text.
"""

import math
import sys
import time
from pathlib import Path

# Of gpt.py, this uses the text, the tokenizer, and what can write and evaluate with any model.
from gpt import (DATA, SAMPLE_TOKENS, Config, Parser, build_char_tokenizer, check, continue_text,
                 encode_all, evaluate, first_prompt, heading, load_text, print_results, run_cleanly,
                 set_aside, split, visible, write_whole)

import torch                            # after gpt, which silences a remark of torch about NumPy
import torch.nn as nn
import torch.nn.functional as F


class Bigram(nn.Module):
    """A table of logits, a row for each token: `logits, loss = model(idx, targets)`."""

    block_size = 1                                              # the tokens that it looks at

    def __init__(self, table):
        super().__init__()
        self.vocab_size = len(table)
        self.table = nn.Parameter(table)                        # (V, V)

    def forward(self, idx, targets=None):
        """idx, targets (B, T) int64 -> logits (B, T, V) and the loss (), None without targets."""
        logits = F.embedding(idx, self.table)                   # (B, T) -> (B, T, V), rows of it
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def probabilities(self):
        """Row i: what follows token i, and how probably; (V, V), each row sums to 1."""
        return F.softmax(self.table.detach(), dim=-1)


def count_pairs(tokens, vocab_size):
    """How often token j follows token i, at [i, j]: tokens (N,) -> (V, V).

    >>> count_pairs(torch.tensor([0, 1, 0, 1, 0, 0]), vocab_size=2)
    tensor([[1, 2],
            [2, 0]])
    """
    pairs = vocab_size * tokens[:-1] + tokens[1:]               # (N,) -> (N-1,), a number per pair
    counts = torch.bincount(pairs, minlength=vocab_size**2)     # (N-1,) -> (V*V,)
    return counts.view(vocab_size, vocab_size)                  # (V*V,) -> (V, V)


def bigram_from_counts(counts, smoothing=0.0):
    """The best Bigram for the text that was counted, with `smoothing` added to each of the (V, V).

    If a space came after 3 of 4 commas, no other probability than 3/4 has a lower loss. Softmax of
    log(count) is count / (the sum of its row). A token that nothing ever followed allows anything.

    >>> bigram_from_counts(torch.tensor([[1, 3], [0, 0]])).probabilities()
    tensor([[0.2500, 0.7500],
            [0.5000, 0.5000]])
    """
    counts = counts + smoothing
    return Bigram(torch.where(counts.sum(dim=1, keepdim=True) > 0, counts, 1).log())


def loss_on_counted(model, counts):
    """The mean loss of a Bigram on the text whose pairs are counts (V, V), in nats per token."""
    losses = -model.probabilities().log()                       # (V, V), infinite where it is 0
    return (counts * losses)[counts > 0].sum().item() / counts.sum().item()


def train_bigram(tokens, vocab_size, seed, steps=500):
    """A Bigram that gradient descent has learned from tokens (N,), 2,048 pairs in each step."""
    model = Bigram(torch.zeros(vocab_size, vocab_size))         # at first, all are alike
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        places = torch.randint(len(tokens) - 1, (2048, 1), generator=generator)
        _, loss = model(tokens[places], tokens[places + 1])     # (2048, 1) each: T = 1
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def run(name, text, often=1000):
    """Count, train, and compare the two tables, for characters that occur `often` or more."""
    tokenizer, config = build_char_tokenizer(text), Config()
    V = tokenizer.vocab_size
    train_data, val_data = (encode_all(part, tokenizer).long() for part in split(text))     # (N,)
    check(len(train_data) > 1 and len(val_data) > 1, f"{len(text)} characters are too few")
    heading("1. Text")
    print(f"{name}: {len(text):,} characters, {V} of them different.")
    print(f"{len(train_data):,} tokens to train on, {len(val_data):,} to validate with.")

    heading("2. Counting")
    counts = count_pairs(train_data, V)                         # (V, V)
    counted = bigram_from_counts(counts)
    print(f"on the training split {loss_on_counted(counted, counts):.4f}: no bigram can do better")
    # A pair that never occurred has the probability 0 now, and if it occurs in the validation split
    # the loss there is infinite. So there, we pretend to have seen each pair once more than we did.
    smoothed = bigram_from_counts(counts, smoothing=1)

    heading("3. Gradient descent")
    began = time.perf_counter()
    trained = train_bigram(train_data, V, config.seed)
    seconds = time.perf_counter() - began
    print(f"on the training split {loss_on_counted(trained, counts):.4f}")

    heading("4. The two tables")
    by_counting, by_training = counted.probabilities(), trained.probabilities()     # (V, V) each
    frequent = counts.sum(dim=1) >= often                       # (V, V) -> (V,)
    if frequent.any():
        difference = (by_counting - by_training)[frequent].abs()
        print(f"For the {frequent.sum()} characters that occur {often:,} times or more, the "
              f"probabilities\nof the two tables differ by at most {difference.max():.4f}.")
    print("The surest guesses, of all characters that occur 100 times or more:\n")
    print("    after    comes    counted    trained")
    highest, followers = by_counting.max(dim=1)                 # (V, V) -> two of (V,)
    known = [i for i in range(V) if counts[i].sum() >= 100]
    for i in sorted(known, key=lambda i: -highest[i])[:10]:
        after, comes = tokenizer.decode([i]), tokenizer.decode([followers[i].item()])
        print(f"    {after!r:<8} {comes!r:<8} {highest[i]:>7.1%}    "
              f"{by_training[i, followers[i]]:>7.1%}")

    heading("5. Writing")
    sample = continue_text(trained, tokenizer, first_prompt(tokenizer), SAMPLE_TOKENS, config.seed,
                           temperature=0.8)
    print(visible(sample))
    path = DATA / f"{name}-bigram.txt"
    if not path.exists() or path.read_bytes() != sample.encode():
        set_aside(name, ["-bigram.txt"])                        # if it is of another run
        write_whole(path, sample.encode())

    heading("6. The run")
    print_results([("uniform", 0, math.log(V), None),
                   ("bigram, counted", V * V, evaluate(smoothed, val_data), None),
                   ("bigram", V * V, evaluate(trained, val_data), seconds)])
    print(f"\nKept: {path}")


def command(arguments):
    parser = Parser("bigram.py", allow_abbrev=False, description="Make a bigram model in two ways.")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    run(*load_text(parser.parse_args(arguments).text))


if __name__ == "__main__":
    sys.exit(run_cleanly("bigram.py", command, sys.argv[1:]))
