"""bigram.py: what a single character tells about the next one.

This is the baseline of gpt.py by itself. A bigram model is a table: a row for each character, and
in the row, for each character, how likely it is to come next. There are two ways to make one:

    counting            which character follows which, and how often?
    gradient descent    begin with a table that knows nothing, and improve it in many small steps

Counting is exact, and takes no time. But a GPT looks at 64 characters, and hardly any sequence of
64 occurs twice, so there is nothing to count. That is why gpt.py trains both of its models by
gradient descent, where PyTorch finds the slopes. Here, the slopes and the steps are written out by
hand. Both ways arrive at nearly the same table.

    python bigram.py                    takes a few seconds
    python bigram.py --text my.txt      the same with your own text

It also writes data/NAME-bigram.txt, just as `python gpt.py` does. The shapes have the letters of
gpt.py: B sequences of T tokens, and V different tokens. N is how many tokens stand in one long row.
"""

import sys
from itertools import count
from pathlib import Path

from gpt import (DATA, LARGEST_VOCABULARY, BigramLanguageModel, CharTokenizer, Config, Parser,
                 bigram_config, check, choose_threads, encode_text, finish_lines, get_batch,
                 learning_rate_at, load_text, run_cleanly, train, train_val_split)

import torch                            # after gpt, which silences a remark of torch about NumPy
import torch.nn.functional as F

# %% 1. Counting
# If a space came after 3 of 4 commas, the best guess for the next comma is a space with the
# probability 3/4. No other probability has a lower loss on the text that was counted.

def count_pairs(tokens, vocab_size):
    """How often token j follows token i, at [i, j]: tokens (N,) -> (V, V).

    >>> count_pairs(torch.tensor([0, 1, 0, 1, 0, 0]), vocab_size=2)
    tensor([[1, 2],
            [2, 0]])
    """
    pairs = vocab_size * tokens[:-1] + tokens[1:]               # (N,) -> (N-1,), a number per pair
    counts = torch.bincount(pairs, minlength=vocab_size**2)     # (N-1,) -> (V*V,)
    return counts.view(vocab_size, vocab_size)                  # (V*V,) -> (V, V)


# The table of a model holds logits: softmax takes exp of each, and divides by the sum of the row.
# Since exp(log(count)) is the count, the logarithms of the counts are the logits that we need.
def table_from_counts(counts):
    """Counts (V, V) -> logits (V, V). After a token that nothing followed, all are equally likely.

    >>> F.softmax(table_from_counts(torch.tensor([[1, 3], [0, 0]])), dim=-1)
    tensor([[0.2500, 0.7500],
            [0.5000, 0.5000]])
    """
    return torch.where(counts.sum(dim=1, keepdim=True) > 0, counts, 1).log()


# To find the loss of a table on a text, it is enough to know how often each pair occurs there.
def loss_of(table, counts):
    """The mean of -ln(probability) over all pairs: logits and counts (V, V) each -> ()."""
    came = counts > 0                                           # (V, V), True or False
    losses = -F.log_softmax(table, dim=-1)                      # (V, V)
    return (counts[came] * losses[came]).sum() / counts.sum()


# %% 2. Gradient descent, by hand
# The loss of a prediction is -ln(probability of the token that came). Said with logits, this is
#
#     ln(sum of exp(logits)) - logit of the token that came
#
# Let one logit grow a little. The first part then grows exp(logit) / sum times as much, which is
# the probability of its token. The second part grows only if this is the token that came, and then
# just as much. So the slopes of the loss along the logits are
#
#     probabilities - one_hot(token that came)        one-hot: 1 at its place, 0 everywhere else
#
# The logits are a row of the table. So the gradient of a row is the sum of these differences over
# all positions of its token in the batch, divided by the number of all positions in the batch. Over
# the whole text, it is zero once the probabilities are the shares that were counted. That is where
# gradient descent comes to rest.

def gradient_by_hand(table, idx, targets):
    """The gradient of the mean loss: table (V, V), idx and targets (B, T) -> (V, V)."""
    idx, targets = idx.flatten(), targets.flatten()             # (B, T) -> (N,) each
    probs = F.softmax(table[idx], dim=-1)                       # (N,) -> (N, V), rows of the table
    errors = probs - F.one_hot(targets, len(table))             # (N, V)
    sums = torch.zeros_like(table).index_add(0, idx, errors)    # (N, V) -> (V, V), a sum per token
    return sums / len(idx)


# The steps are those of AdamW, as chapter 8 of gpt.py describes it. The bigram model has no weight
# decay, and its gradient is too short to be clipped.
def train_by_hand(data, config):
    """The table (V, V) that gradient descent finds for data (N,)."""
    table = torch.zeros(config.vocab_size, config.vocab_size)   # at first, all are equally likely
    m, v = torch.zeros_like(table), torch.zeros_like(table)
    for t in range(1, config.max_steps + 1):
        g = gradient_by_hand(table, *get_batch(data, t - 1, config))
        m = 0.9 * m + 0.1 * g                                   # running mean of the slopes
        v = 0.99 * v + 0.01 * g**2                              # running mean of their squares
        mean, square = m / (1 - 0.9**t), v / (1 - 0.99**t)      # enlarged, as m and v begin at 0
        table = table - learning_rate_at(t - 1, config) * mean / (square.sqrt() + 1e-8)
    return table


# %% 3. The run

def heading(title):
    print(f"\n{title}\n{'-' * len(title)}")


def show_counts(counts, tokenizer):
    highest, followers = table_from_counts(counts).softmax(-1).max(dim=1)       # two of (V,)
    print(f"{(counts > 0).sum():,} of {counts.numel():,} possible pairs occur. Of the characters "
          "that occur at\nleast 100 times, these say most clearly what comes next:\n\n"
          "    after       times    comes       times    probability")
    known = [i for i in range(len(counts)) if counts[i].sum() >= 100]
    for i in sorted(known, key=lambda i: -highest[i])[:8]:
        after, comes = tokenizer.decode([i]), tokenizer.decode([j := followers[i].item()])
        print(f"    {after!r:<9}{counts[i].sum():>8,}    {comes!r:<9}{counts[i, j]:>8,}"
              f"{highest[i]:>15.4f}")


def show_gradient(idx, targets, tokenizer):
    """The gradient of a table of zeros for a batch (B, T): the row of its most frequent token."""
    model = BigramLanguageModel(tokenizer.vocab_size)
    logits, loss = model(idx, targets)
    loss.backward()
    table, by_autograd = model.table.weight.detach(), model.table.weight.grad   # (V, V) each
    by_hand = gradient_by_hand(table, idx, targets)             # (V, V)
    token, N = idx.flatten().mode().values.item(), idx.numel()
    came = F.one_hot(targets[idx == token], len(table)).sum(dim=0)      # (n,) -> (n, V) -> (V,)
    n, order = came.sum().item(), came.argsort(descending=True, stable=True).tolist()
    print(f"In the first batch, {tokenizer.decode([token])!r} is at {n} of {N:,} positions. The "
          f"gradient of its row:\n\n    next          p     came   p - came"
          f"{f'x {n}/{N}':>13}   loss.backward()")
    for i in dict.fromkeys([*order[:4], order[-1]]):            # four that came often, one rare
        p, share = F.softmax(table[token], dim=-1)[i], came[i] / n
        print(f"    {tokenizer.decode([i])!r:<8}{p:>7.4f}{share:>9.4f}{p - share:>11.4f}"
              f"{by_hand[token, i]:>13.5f}{by_autograd[token, i]:>18.5f}")
    print(f"\nIn the whole table, the last two columns differ by at most "
          f"{(by_hand - by_autograd).abs().max():.1g}.")


def run(name, text):
    """Count, train by hand, train as gpt.py does, compare the tables, and write the lines."""
    tokenizer = CharTokenizer(text)
    V, (train_text, val_text) = tokenizer.vocab_size, train_val_split(text)
    check(V <= LARGEST_VOCABULARY, f"the text has {V} different characters, more than "
                                   f"{LARGEST_VOCABULARY}")
    check(len(val_text) > 1, f"the text is too short: {len(text)} characters")
    train_data, val_data = encode_text(train_text, tokenizer), encode_text(val_text, tokenizer)
    print(f"{V} different tokens, {len(train_data):,} to train on, "
          f"{len(val_data):,} to validate on")

    heading("1. Counting")
    counts, val_counts = count_pairs(train_data, V), count_pairs(val_data, V)   # (V, V) each
    show_counts(counts, tokenizer)

    heading("2. Gradient descent, by hand")
    config = bigram_config(Config(vocab_size=V))
    show_gradient(*get_batch(train_data, 0, config), tokenizer)
    by_hand = train_by_hand(train_data, config)                 # (V, V)
    bigram = BigramLanguageModel(V)
    list(train(bigram, train_data, val_data, config))           # all steps, as gpt.py makes them
    trained = bigram.table.weight.detach()                      # (V, V)
    difference = (by_hand.softmax(-1) - trained.softmax(-1)).abs().max()
    print(f"After {config.max_steps} steps by hand, and as many by gpt.train, no probability "
          f"differs by\nmore than {difference:.1g}.")

    heading("3. The losses")
    print("On the text that was counted, no table has a lower loss than the counted one.\n"
          "But a pair that never came has the probability 0. If it comes in another text,\n"
          "the loss is infinite. So it is better to add 1 to each count.\n\n"
          "    table               train loss    validation loss    perplexity")
    for who, table in (("uniform", torch.zeros(V, V)), ("counted", table_from_counts(counts)),
                       ("counted, plus 1", table_from_counts(counts + 1)),
                       ("trained by hand", by_hand), ("gpt.train", trained)):
        train_loss, val_loss = loss_of(table, counts), loss_of(table, val_counts)
        print(f"    {who:<20}{train_loss:>10.4f}{val_loss:>19.4f}{val_loss.exp():>14.2f}")

    heading("4. Lines that it has never seen, as the bigram model finishes them")
    lines = finish_lines(bigram, tokenizer, val_text)
    print(*lines, sep="\n")
    keep(DATA / f"{name}-bigram.txt", "".join(line + "\n" for line in lines))


def keep(path, content):
    """Write a text file. What has its name is set aside as NAME-1, NAME-2, ... if it differs."""
    DATA.mkdir(exist_ok=True)
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != content:
        names = (path.with_name(f"{path.stem}-{i}.txt") for i in count(1))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        print(f"\n{path} was another file, which is now called {aside}")
    path.write_text(content, encoding="utf-8")
    print(f"\nKept: {path}")


def command(arguments):
    parser = Parser("bigram.py", allow_abbrev=False, description="Make a bigram model in two ways.")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    name, text = load_text(parser.parse_args(arguments).text)
    choose_threads()
    run(name, text)


if __name__ == "__main__":
    sys.exit(run_cleanly("bigram.py", command, sys.argv[1:]))

# /// script
# dependencies = ["torch", "requests"]
# ///
