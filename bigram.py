"""bigram.py: what can be known about a text by looking at one character at a time.

The baseline of gpt.py, by itself. A bigram model is a table: a row for each character, and in the
row, for each character, how probable it is that it comes next. It can be made by counting which
follows which. Or a table that knows nothing is improved by gradient descent, as gpt.py does with a
GPT, where nothing could be counted. For a table that is a detour, but it shows what is hidden
elsewhere: gradient and optimizer, by hand. Both ways arrive at nearly the same table.

    python bigram.py                    takes a few seconds
    python bigram.py --text my.txt      the same with your own text

The first three chapters print what those of `python gpt.py` print, and data/NAME-bigram.txt is the
same file. B, T and V are the letters of gpt.py; N is the number of tokens in a long row.
"""

import math
import sys
import time
from itertools import count
from pathlib import Path

from gpt import (BIGRAM_TRAINING, DATA, LARGEST_BIGRAM, BigramLanguageModel, Config, Parser,
                 atomic_write, build_char_tokenizer, check, escape_control, evaluate, finish_lines,
                 get_batch, heading, held_out_lines, learning_rate_at, load_text, prepare_data,
                 run_cleanly, split, train)

import torch                            # after gpt, which silences a remark of torch about NumPy
import torch.nn.functional as F

# %% Gradient descent, by hand
# The loss of a prediction is -ln(probability of the token that came), which, said with logits, is
# ln(sum of exp(logits)) - logit of the token that came. If a logit grows a little, the first part
# grows exp(logit) / sum times as much: its probability. The second grows as much as the logit, but
# only if it is that of the token that came. So the gradient of the logits is
#
#     probabilities - one_hot(token that came)        (one-hot: 1 at one place, 0 at all others)
#
# The logits are a row of the table. The gradient of a row is the mean of this over all positions of
# its token, times their share of the batch. It is zero once the probabilities are the shares that
# can be counted: that is why gradient descent ends where counting begins.

def gradient_by_hand(table, idx, targets):
    """The gradient of the mean loss: table (V, V), idx and targets (B, T) -> (V, V)."""
    idx, targets = idx.flatten(), targets.flatten()             # (B, T) -> (N,) each
    probs = F.softmax(table[idx], dim=-1)                       # (N,) -> (N, V), rows of the table
    errors = probs - F.one_hot(targets, len(table))             # (N, V)
    sums = torch.zeros_like(table).index_add(0, idx, errors)    # (N, V) -> (V, V), a sum per token
    return sums / len(idx)


def train_by_hand(data, config):
    """A table (V, V) learned from data (N,) by AdamW, as in chapter 8 of gpt.py. Its weight_decay
    is 0 here, and gradients are too short to be clipped."""
    table = torch.zeros(config.vocab_size, config.vocab_size)   # at first, all are equally likely
    m, s = torch.zeros_like(table), torch.zeros_like(table)
    for step in range(config.max_steps):
        g = gradient_by_hand(table, *get_batch(data, step, config))
        m = 0.9 * m + 0.1 * g
        s = 0.99 * s + 0.01 * g**2
        m_mean, s_mean = m / (1 - 0.9**(step + 1)), s / (1 - 0.99**(step + 1))
        table = table - learning_rate_at(step, config) * m_mean / (s_mean.sqrt() + 1e-8)
    return table


# %% Counting

def count_pairs(tokens, vocab_size):
    """How often token j follows token i, at [i, j]: tokens (N,) -> (V, V).

    >>> count_pairs(torch.tensor([0, 1, 0, 1, 0, 0]), vocab_size=2)
    tensor([[1, 2],
            [2, 0]])
    """
    pairs = vocab_size * tokens[:-1] + tokens[1:]               # (N,) -> (N-1,), a number per pair
    counts = torch.bincount(pairs, minlength=vocab_size**2)     # (N-1,) -> (V*V,)
    return counts.view(vocab_size, vocab_size)                  # (V*V,) -> (V, V)


def table_from_counts(counts, smoothing=0.0):
    """The best logits (V, V) for a text, if each pair came `smoothing` times more than counted.

    If a space came after 3 of 4 commas, no other probability than 3/4 has a lower loss. Softmax of
    log(count) is count / (the sum of its row). A token that nothing ever followed allows anything.

    >>> F.softmax(table_from_counts(torch.tensor([[1, 3], [0, 0]])), dim=-1)
    tensor([[0.2500, 0.7500],
            [0.5000, 0.5000]])
    """
    counts = counts + smoothing
    return torch.where(counts.sum(dim=1, keepdim=True) > 0, counts, 1).log()


def loss_of(table, data):                                       # logits (V, V), tokens (N,)
    model = BigramLanguageModel(len(table))
    model.table.weight.data = table
    return evaluate(model, data)


def show_gradient(idx, targets, tokenizer):
    """The gradient of a table of zeros for a batch (B, T): the row of its most frequent token."""
    bigram = BigramLanguageModel(tokenizer.vocab_size)
    bigram(idx, targets)[1].backward()
    by_autograd, table = bigram.table.weight.grad, bigram.table.weight.detach()     # (V, V) each
    by_hand = gradient_by_hand(table, idx, targets)             # (V, V)
    token, N = idx.flatten().mode().values.item(), idx.numel()
    came = F.one_hot(targets[idx == token], len(table)).sum(dim=0)      # (n,) -> (n, V) -> (V,)
    n, order = came.sum().item(), came.argsort(descending=True, stable=True).tolist()
    print(f"In the first batch, {tokenizer.decode([token])!r} stands at {n} of {N:,} positions. "
          f"The gradient of its\nrow:\n\n    next          p     came   p - came"
          f"{f'x {n}/{N}':>13}   loss.backward()")
    for i in dict.fromkeys([*order[:4], order[-1]]):            # four that came often, one rare
        p, share = F.softmax(table[token], dim=-1)[i], came[i] / n
        print(f"    {tokenizer.decode([i])!r:<8}{p:>7.4f}{share:>9.4f}{p - share:>11.4f}"
              f"{by_hand[token, i]:>13.5f}{by_autograd[token, i]:>18.5f}")
    print(f"\nIn the table, they differ by at most {(by_hand - by_autograd).abs().max():.0e}.")


def run(name, text):
    """Train, train by hand, count, and compare the tables."""
    tokenizer = build_char_tokenizer(text)
    V, config = tokenizer.vocab_size, Config(vocab_size=tokenizer.vocab_size, **BIGRAM_TRAINING)
    check(V <= LARGEST_BIGRAM, f"{V} different characters; a table has {LARGEST_BIGRAM} at most")
    train_data, val_data = (data.long() for data in prepare_data(text, tokenizer))      # (N,) each

    heading("4. Bigram")                                        # as gpt.run does it
    bigram = BigramLanguageModel(V)
    *_, state = train(bigram, train_data, val_data, config)
    print(f"val {math.log(V):.4f} at first, {state.val_loss:.4f} at the end")

    heading("5. Gradient descent, by hand")
    table, idx = bigram.table.weight.detach(), train_data[:100]         # (V, V), (100,)
    same = torch.equal(table[idx], F.one_hot(idx, V).float() @ table)   # (100, V) @ (V, V)
    print(f"To look up rows is to multiply by one-hot vectors: {same}.\n")
    show_gradient(*get_batch(train_data, 0, config), tokenizer)
    began = time.perf_counter()
    by_hand = train_by_hand(train_data, config)                 # (V, V)
    seconds = time.perf_counter() - began
    difference = (by_hand.softmax(-1) - table.softmax(-1)).abs().max()
    print(f"After {config.max_steps} steps by hand, the probabilities differ from those of chapter "
          f"4\nby at most {difference:.0e}.")

    heading("6. Counting")
    counts = count_pairs(train_data, V)                         # (V, V)
    counted = table_from_counts(counts)                         # (V, V)
    print(f"On the training split, the counted table has the lowest loss of any bigram,\n"
          f"{loss_of(counted, train_data):.4f}; the trained one {loss_of(table, train_data):.4f}. "
          "Surest after frequent characters:\n\n    after    comes    counted    trained")
    highest, followers = counted.softmax(-1).max(dim=1)         # (V, V) -> two of (V,)
    known = [i for i in range(V) if counts[i].sum() >= 100]
    for i in sorted(known, key=lambda i: -highest[i])[:10]:
        after, comes = tokenizer.decode([i]), tokenizer.decode([j := followers[i].item()])
        print(f"    {after!r:<8} {comes!r:<8} {highest[i]:>7.1%} {table.softmax(-1)[i, j]:>10.1%}")

    heading("7. The run")
    lines = finish_lines(bigram, tokenizer, held_out_lines(text), config.seed)
    print("Lines of the held-out text, as the bigram finishes them:\n", *map(escape_control, lines),
          "\nmodel              parameters  val_loss  bits/char  perplexity  seconds", sep="\n")
    # What never occurred has the probability 0 in a counted table, and would cost infinitely much
    # in the validation split. So there, we pretend to have seen each pair once more than we did.
    for who, logits, took in (("uniform", torch.zeros(V, V), "-"),
                              ("bigram, counted", table_from_counts(counts, smoothing=1), "-"),
                              ("bigram, by hand", by_hand, f"{seconds:.1f}"),
                              ("bigram", table, f"{state.seconds:.1f}")):
        loss = loss_of(logits, val_data)
        bits = loss / math.log(2) * len(val_data) / len(split(text)[1])
        print(f"{who:<17}{V * V * (who != 'uniform'):>12,}{loss:>10.4f}{bits:>11.4f}"
              f"{math.exp(min(loss, 20)):>12.2f}{took:>9}")

    content = "".join(line + "\n" for line in lines).encode(errors="replace")
    path = DATA / f"{name}-bigram.txt"
    if path.exists() and path.read_bytes() != content:          # somebody else's
        aside = next(p for i in count(1) if not (p := DATA / f"{name}-bigram-{i}.txt").exists())
        print(f"\n{path} was another file, which is now called {path.rename(aside)}")
    with atomic_write(path) as file:
        file.write(content)
    print(f"\nKept: {path}")


def command(arguments):
    parser = Parser("bigram.py", allow_abbrev=False, description="Make a bigram model in two ways.")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    run(*load_text(parser.parse_args(arguments).text))


if __name__ == "__main__":
    sys.exit(run_cleanly("bigram.py", command, sys.argv[1:]))

# /// script
# dependencies = ["torch", "requests"]
# ///
