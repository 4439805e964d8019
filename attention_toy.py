"""attention_toy.py: four ways to gather what came before, from a loop to self-attention.

Attention is the one hard idea in a GPT. Here it is taken apart. Each token must gather what it
needs from the tokens before it, and we do that four times. The first three ways give the same
numbers: by a loop, by a matrix product, and by a softmax. In the fourth, the weights are no longer
all equal: they depend on what the tokens are, and so does what each hands over. That is
self-attention.

     1  Tensors          the few moves that everything below is made of
     2  An example       two pieces of text as numbers, and a picture of weights
     3  Version 1        the average of the past, by a loop
     4  Version 2        the same, as one matrix product
     5  Version 3        the same, as a softmax over a mask
     6  Version 4        self-attention: queries, keys and values
     7  A tiny model     a language model with a hole in it, for any of the four to fill
     8  Questions        why the scale, why the mask, why several heads, why positions
     9  The comparison   what each version is worth on a real text
    10  A trained GPT    what its heads look at
    11  The run          the command line

    python attention_toy.py                     everything but chapter 10, about a minute
    python attention_toy.py --quick             without the comparison, some seconds
    python attention_toy.py --text my.txt       the same with your own text
    python attention_toy.py --model shakespeare --prompt "ROMEO:\\nBut soft"
                                                chapter 10, for a run that gpt.py has kept

Read the code beside what it prints. The letters are those of gpt.py: B pieces of text side by side,
T tokens in each, C channels (numbers) for one token, V tokens in the vocabulary, hs the head size.
In a notebook, leave out the last three lines of the file, and call command([]) instead.
"""

# %% 1. Tensors
# A tensor is a block of numbers with a shape. The past of a token is gathered with six moves. If
# they are familiar, go on to chapter 2.

import inspect
import math
import sys
import textwrap
import unicodedata
from dataclasses import replace
from functools import partial
from pathlib import Path

from gpt import (CausalSelfAttention, Config, Parser, Report, build_char_tokenizer,
                 build_optimizer, check, check_range, continue_text, count_parameters, evaluate,
                 find_run, first_prompt, heading, load_checkpoint, load_text, next_token_loss,
                 one_head, print_results, rotate, run_cleanly, sinusoids, split, train_and_show,
                 train_bigram, visible)

import torch                        # after gpt, which silences a remark of torch about NumPy
import torch.nn as nn
import torch.nn.functional as F


def tensor_moves():
    """Create: a tensor of ones, of which we keep the lower triangle.

    >>> ones = torch.ones(3, 3).tril()
    >>> ones
    tensor([[1., 0., 0.],
            [1., 1., 0.],
            [1., 1., 1.]])

    Sum: dim=1 adds along each row; keepdim leaves a column, (3, 3) -> (3, 1).

    >>> sums = ones.sum(dim=1, keepdim=True)
    >>> sums
    tensor([[1.],
            [2.],
            [3.]])

    Broadcast: (3, 3) / (3, 1) has two shapes that differ. Where one has size 1, it
    is repeated to fit the other. So each row is divided by its own sum.

    >>> weights = ones / sums
    >>> weights
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.3333, 0.3333, 0.3333]])

    Matrix product: row t of the result is a weighted sum of the rows of x, and row
    t of the weights says how much of each. (3, 3) @ (3, 2) -> (3, 2).

    >>> x = torch.tensor([[6.0, 0.0], [2.0, 4.0], [1.0, 8.0]])
    >>> weights @ x
    tensor([[6., 0.],
            [4., 2.],
            [3., 4.]])

    With more dimensions, the product works on the last two, and on all pieces of a
    batch at once: (3, 3) @ (5, 3, 2) -> (5, 3, 2).

    >>> (weights @ torch.zeros(5, 3, 2)).shape
    torch.Size([5, 3, 2])

    Transpose: swap two dimensions. -2 and -1 are the last two, (3, 2) -> (2, 3).

    >>> x.transpose(-2, -1)
    tensor([[6., 2., 1.],
            [0., 4., 8.]])

    Reshape: the same numbers in the same order, cut into rows of another length.
    Note that this is not a transpose.

    >>> x.reshape(2, 3)
    tensor([[6., 0., 2.],
            [4., 1., 8.]])
    """
    print(inspect.getdoc(tensor_moves))


# %% 2. An example
# All four versions take x of shape (B, T, C): B pieces of T tokens, each described by C numbers. In
# a GPT these numbers are learned and mean nothing that we could name. Ours can be named, so that
# every result can be checked by eye:

EXAMPLE = ("to be or", " not to ")                            # B = 2 pieces of T = 8 tokens
CHANNELS = ("vowel", "consonant", "space", "alphabet")        # C = 4


def describe(character):
    """Is it a vowel, a consonant, a space; and its place in the alphabet, 0 for a space.

    >>> describe("b"), describe("o"), describe(" ")
    ([0, 1, 0, 2], [1, 0, 0, 15], [0, 0, 1, 0])
    """
    vowel, space = character in "aeiou", character == " "
    place = 0 if space else ord(character) - ord("a") + 1
    return [int(vowel), int(not vowel and not space), int(space), place]


def example():
    """x of shape (2, 8, 4): the pieces of EXAMPLE, each character described."""
    return torch.tensor([[describe(character) for character in piece] for piece in EXAMPLE]).float()


# What a token gathers is always a weighted sum: so much of this token, so much of that one. All
# these weights together are a matrix (T, T): row t says how much token t takes from each token. A
# picture shows it best. Read it row by row: the token at the left looks at the tokens on top.

SHADES = ((0.7, "█"), (0.35, "▓"), (0.15, "▒"), (0.03, "░"), (0, " "))
LEGEND = "░ from 3%, ▒ from 15%, ▓ from 35%, █ from 70% of what the row's token receives"


def label(character):
    r"""A name for a character that fills the two columns of a cell.

    >>> label("a"), label(" "), label("\n"), label("\0")
    ('a ', '␣ ', '\\n', '? ')
    """
    if unicodedata.east_asian_width(character) in "WF":       # these are two columns wide
        return character
    name = {" ": "␣", "\n": r"\n", "\t": r"\t", "\r": r"\r"}.get(character, character)
    return f"{name:<2}" if name.isprintable() and not unicodedata.combining(character) else "? "


def picture(weights, characters):
    """Weights (T, T) of tokens that are T characters, as T + 1 lines for the terminal.

    >>> print(picture(torch.tensor([[1.0, 0.0], [0.2, 0.8]]), "ab"))
        a b
    a   ██
    b   ▒▒██
    """
    lines = ["    " + "".join(map(label, characters))]
    for character, row in zip(characters, weights.tolist()):
        shades = (next(shade for least, shade in SHADES if weight >= least) for weight in row)
        lines.append(f"{label(character)}  " + "".join(2 * shade for shade in shades))
    return "\n".join(line.rstrip() for line in lines)


def show(steps, weights, columns):
    """Print the shapes of the steps, and beside the weights (T, T) of one piece what it receives.

    steps: tensors by name, among them "result" (B, T, C); columns: names for its C numbers.
    """
    for name, tensor in steps.items():
        print(f"    {name:<32} {tuple(tensor.shape)}")
    print(f"\nThe weights for {EXAMPLE[0]!r}, and at the right of each row what it receives:\n")
    head, *rows = picture(weights, EXAMPLE[0]).split("\n")
    print(f"{head:<24}" + "".join(f"{column:>11}" for column in columns))
    for row, received in zip(rows, steps["result"][0].tolist()):
        print(f"{row:<24}" + "".join(f"{number:>11.2f}" for number in received))


def show_example():
    x = example()
    print(f"x is {EXAMPLE[0]!r} and {EXAMPLE[1]!r}, of shape {tuple(x.shape)}, (B, T, C).")
    print("The first piece. Each row is a token, each column a channel:\n")
    print(" " * 24 + "".join(f"{channel:>11}" for channel in CHANNELS))
    for character, numbers in zip(EXAMPLE[0], x[0].tolist()):
        print(f"{label(character):<24}" + "".join(f"{number:>11.0f}" for number in numbers))
    print(f"\nThe shades in the pictures:\n{LEGEND}.")


# %% 3. Version 1: a loop
# The simplest way to gather the past: take the average of it. For the token at place t that is the
# mean of the tokens 0 to t, itself included. (So even the first has something to average.) What
# comes after t is left out: a language model has to predict it.
#
# Each version returns its steps by name, so that the program can show them.


def average_by_loop(x):
    """Version 1: x (B, T, C) -> steps; the result (B, T, C) is the mean of each token's past."""
    means = []
    for t in range(x.shape[1]):
        past = x[:, :t + 1]                                   # (B, T, C) -> (B, t+1, C)
        means.append(past.mean(dim=1))                        # (B, t+1, C) -> (B, C)
    result = torch.stack(means, dim=1)                        # T of (B, C) -> (B, T, C)
    return {"the last token's past": past, "its mean": means[-1], "result": result}


# The loop has no matrix of weights, yet there is one behind it. To find it, let each of T tokens
# hold a single 1, in a channel of its own (so here C = T, and [None] adds a batch of one piece).
# Then what token t has in channel s came from token s.


def show_version_1():
    x = example()
    single_ones = torch.eye(x.shape[1])[None]                 # (1, T, T)
    weights = average_by_loop(single_ones)["result"][0]       # (1, T, T) -> (T, T)
    show(average_by_loop(x), weights, CHANNELS)
    print("\nThe rows get lighter downwards: the same whole, shared by more tokens. (With\n"
          "only five shades, neighbours may look alike.)\n"
          "Check a number: the b has seen t o ␣ b, one vowel of four, so 0.25.")


# %% 4. Version 2: one matrix product
# A loop in Python is slow, and what it does is a weighted sum with the weights 1/(t+1). Chapter 1
# has shown that a matrix product makes all weighted sums at once. The lower triangle of ones says
# who is in the past of whom; each row divided by its sum makes the sum an average.


def average_by_matrix(x):
    """Version 2: x (B, T, C) -> steps; the same result (B, T, C) without a loop."""
    T = x.shape[1]
    ones = torch.ones(T, T).tril()                            # (T, T)
    weights = ones / ones.sum(dim=1, keepdim=True)            # (T, T) / (T, 1) -> (T, T)
    result = weights @ x                                      # (T, T) @ (B, T, C) -> (B, T, C)
    return {"ones": ones, "weights": weights, "result": result}


def show_version_2():
    x = example()
    steps = average_by_matrix(x)
    show(steps, steps["weights"], CHANNELS)
    show_equal("versions 1 and 2", average_by_loop(x)["result"], steps["result"])
    print("The triangle is the rule that nobody sees the future.")


def show_equal(names, a, b):
    """Print by how much two tensors differ. Raises AssertionError if it is more than rounding."""
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    difference = (a - b).abs().max()
    print(f"\nThe results of {names} differ by at most {difference:.0e}: the same numbers.")


# %% 5. Version 3: softmax over a mask
# Softmax turns any row of scores into weights that sum to 1: exp(score), divided by the sum of
# all exp(score) in the row. Equal scores give equal weights. A score that is higher by 1 gives a
# weight that is e = 2.7 times as large; higher by 7, about 1,100 times. And a score of minus
# infinity gives a weight of exactly 0, since exp(-inf) = 0. So: let all scores be 0, put minus
# infinity where the future is (this is the mask), and softmax makes the averages of version 2.
#
# Why the detour? In version 2 the weights were fixed. Here they come from scores, and a score may
# be any number that we like, for instance one that says how much this token matters to that one.
# That is all that version 4 will change in the weights: the scores are no longer 0.


def average_by_softmax(x):
    """Version 3: x (B, T, C) -> steps; the same result (B, T, C) with weights made from scores.

    >>> F.softmax(torch.tensor([0.0, 0.0, -math.inf]), dim=-1)      # two tokens, and the future
    tensor([0.5000, 0.5000, 0.0000])
    """
    T = x.shape[1]
    scores = torch.zeros(T, T)                                # (T, T): all matter alike
    future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)    # (T, T): True where s > t
    masked = scores.masked_fill(future, -math.inf)            # (T, T)
    weights = F.softmax(masked, dim=-1)                       # (T, T): each row sums to 1
    result = weights @ x                                      # (T, T) @ (B, T, C) -> (B, T, C)
    return {"scores": scores, "masked": masked, "weights": weights, "result": result}


def show_version_3():
    x = example()
    steps = average_by_softmax(x)
    show(steps, steps["weights"], CHANNELS)
    show_equal("versions 2 and 3", average_by_matrix(x)["result"], steps["result"])
    row = "  ".join(f"{score:.0f}" for score in steps["masked"][2].tolist())
    print(f"The third token sees three. The row of its scores, after the mask:\n    {row}")


# %% 6. Version 4: self-attention
# An average treats all tokens alike. But a token may need one thing from the past and not another,
# and what it needs depends on what it is. So out of its C numbers, each token makes three vectors
# of hs numbers, by three matrices that all tokens share:
#
#     a query  q    what am I looking for?
#     a key    k    what do I offer to those who look?
#     a value  v    what do I hand over if I am chosen?
#
# The score of two tokens is the dot product (multiply number by number, and add up) of the query
# of the one that looks with the key of the one that is looked at. It is large if what is offered
# is what is looked for. `q @ k.transpose(-2, -1)` has it for all pairs: row t, column s. The rest
# is version 3: mask the future, softmax, and a weighted mean, now of the values. (The scores are
# divided by sqrt(hs) first; chapter 8 shows why.)
#
# Why is the value not the key? To be found and to be useful are two things. Think of a library: you
# find a book by its title, but it is the text that you take home.


def self_attention(x, w_query, w_key, w_value, causal=True):
    """Version 4: x (B, T, C) and three matrices (C, hs) -> steps; the result is (B, T, hs).

    causal=False leaves out the mask. Chapter 8 needs that, to show what goes wrong.
    """
    T, hs = x.shape[1], w_query.shape[1]
    q = x @ w_query                                           # (B, T, C) @ (C, hs) -> (B, T, hs)
    k = x @ w_key                                             # (B, T, C) @ (C, hs) -> (B, T, hs)
    v = x @ w_value                                           # (B, T, C) @ (C, hs) -> (B, T, hs)
    scores = q @ k.transpose(-2, -1) / math.sqrt(hs)          # (B, T, hs) @ (B, hs, T) -> (B, T, T)
    future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)    # (T, T)
    masked = scores.masked_fill(future, -math.inf) if causal else scores        # (B, T, T)
    weights = F.softmax(masked, dim=-1)                       # (B, T, T): each row sums to 1
    result = weights @ v                                      # (B, T, T) @ (B, T, hs) -> (B, T, hs)
    return {"q": q, "k": k, "v": v, "scores": scores, "masked": masked, "weights": weights,
            "result": result}


# In a GPT the three matrices are learned. Here they are made by hand, so that one can follow. The
# two numbers of queries and keys stand for (vowels, spaces). A consonant looks for vowels, a vowel
# looks for spaces, and a space looks for nothing in particular. What is handed over is the place in
# the alphabet, so that one can see which letters were found, and whether it was a vowel. The tens
# make scores of about 7 where something is found, so softmax leaves almost nothing to the others.

VALUES = ("alphabet", "vowel")


def hand_made_weights():
    """w_query, w_key and w_value, each (C, hs) = (4, 2)."""
    # a row for each channel of x: vowel,   consonant,   space,      alphabet
    w_query = torch.tensor([[0.0, 10.0], [10.0, 0.0], [0.0, 0.0], [0.0, 0.0]])  # (vowels, spaces)
    w_key = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])      # (vowels, spaces)
    w_value = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])    # (alphabet, vowel)
    return w_query, w_key, w_value


def show_version_4():
    steps = self_attention(example(), *hand_made_weights())
    show(steps, steps["weights"][0], VALUES)
    asks = steps["q"][0, -1].tolist()
    print(f"\nThe consonants b and r look at the vowels before them, and what they receive\n"
          f"is nearly the mean of those: for the r, that of o, e and o. (The others keep\n"
          f"about a thousandth each.) The t sees only itself. The first o looks for a\n"
          f"space, and there is none before it; weights must sum to 1, so they are equal.\n"
          f"A space has a query of zeros, so its scores are all 0: its row is version 3.\n"
          f"How the last row came about, for {EXAMPLE[0][-1]!r} with q = {asks}:\n")
    print("    looks at    k             q @ k / sqrt(2)    weight    v")
    for s, character in enumerate(EXAMPLE[0]):
        key, value = steps["k"][0, s].tolist(), steps["v"][0, s].tolist()
        print(f"    {label(character):<12}{key!s:<14}{steps['scores'][0, -1, s]:>15.2f}"
              f"{steps['weights'][0, -1, s]:>10.3f}    {value}")
    print(f"\nThe same matrices, another text: {EXAMPLE[1]!r}. In versions 1 to 3 the picture\n"
          f"would be as before. Here it is not, for the weights depend on the content.\n")
    print(picture(steps["weights"][1], EXAMPLE[1]))


# %% 7. A tiny model
# To learn what the four are worth, we need a language model to put them into. This is the smallest
# one that makes sense: it has the outer parts of the GPT in gpt.py, and inside, in place of all the
# blocks, one mixer. The mixer takes x (B, T, C) and returns (B, T, C), and it is the only place
# where a token can learn of others. As in a GPT, what it finds is added to x, so a token does not
# forget what it is itself.


class TinyLanguageModel(nn.Module):
    """Embedding, positions, one mixer, output head: `logits, loss = model(idx, targets)`."""

    def __init__(self, mixer, config):
        super().__init__()
        self.vocab_size, self.block_size = config.vocab_size, config.block_size
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Parameter(sinusoids(config))
        self.mixer = mixer
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def embed(self, idx):
        """idx (B, T) -> x (B, T, C): what each token is, and where it stands."""
        places = self.position_embedding[:idx.shape[1]]       # (block_size, C) -> (T, C)
        return self.token_embedding(idx) + places             # (B, T, C) + (T, C) -> (B, T, C)

    def forward(self, idx, targets=None):
        """idx, targets (B, T) int64 -> logits (B, T, V) and the loss (), None without targets."""
        x = self.embed(idx)                                   # (B, T) -> (B, T, C)
        x = x + self.mixer(x)                                 # (B, T, C)
        logits = self.head(x)                                 # (B, T, C) -> (B, T, V)
        return logits, None if targets is None else next_token_loss(logits, targets)


# Two mixers. To be fair, the averages have values, too: the mean is taken of x @ w_value. So the
# only thing that differs is where the weights come from.


def matrix(n_embd):
    """A matrix (C, C) to learn. Random at first, of a size that leaves the size of x as it is."""
    return nn.Parameter(torch.randn(n_embd, n_embd) / math.sqrt(n_embd))


class Average(nn.Module):
    """Version 1, 2 or 3 as a mixer: (B, T, C) -> (B, T, C)."""

    def __init__(self, version, n_embd):
        super().__init__()
        self.version, self.w_value = version, matrix(n_embd)

    def forward(self, x):
        return self.version(x @ self.w_value)["result"]       # (B, T, C) -> (B, T, C)


class Attention(nn.Module):
    """Version 4 as a mixer, a single head with hs = C: (B, T, C) -> (B, T, C)."""

    def __init__(self, n_embd, causal=True):
        super().__init__()
        self.causal = causal
        self.w_query, self.w_key, self.w_value = matrix(n_embd), matrix(n_embd), matrix(n_embd)

    def steps(self, x):
        return self_attention(x, self.w_query, self.w_key, self.w_value, self.causal)

    def forward(self, x):
        return self.steps(x)["result"]                        # (B, T, C) -> (B, T, C)


# Small, so that a training takes seconds: a context of 32, 64 channels. A model of one layer bears
# a high learning rate.

TINY = {"block_size": 32, "n_embd": 64, "n_head": 4, "bias": False,
        "batch_size": 32, "max_steps": 2000, "eval_interval": 2000, "learning_rate": 1e-2}


def train_tiny(make_mixer, train_data, val_data, config):
    """(model, seconds): a TinyLanguageModel with the mixer that make_mixer() returns, trained."""
    torch.manual_seed(config.seed)
    model = TinyLanguageModel(make_mixer(), config)
    report = Report(build_optimizer(model, config))
    train_and_show(model, train_data, val_data, config, report)
    return model, report.seconds


# %% 8. Questions
# Why divide by sqrt(hs)? A dot product adds hs products. If these are independent, with mean 0
# and variance 1, their sum has the variance hs. Softmax of such large scores puts nearly all
# weight on one token, before anything is learned. And then it hardly learns: if a score rises by
# a little d, its weight w rises by d * w * (1 - w), which is nearly 0 for a w near 0 or 1. To
# divide by sqrt(hs) divides the variance by hs: then it is 1 for any head size.


def why_scale():
    """Random queries and keys of several sizes; print what softmax makes of their dot products."""
    torch.manual_seed(0)
    samples, T = 1000, 8
    print("              variance of scores    largest of 8 weights  its slope w * (1-w)")
    print("head size       raw     scaled         raw     scaled         raw     scaled")
    for hs in (4, 16, 64, 256):
        q, k = torch.randn(samples, 1, hs), torch.randn(samples, T, hs)
        raw = q @ k.transpose(-2, -1)       # (samples, 1, hs) @ (samples, hs, T) -> (samples, 1, T)
        scaled = raw / math.sqrt(hs)
        w_raw, w_scaled = (F.softmax(scores, dim=-1).amax(dim=-1) for scores in (raw, scaled))
        slope_raw, slope_scaled = ((w * (1 - w)).mean() for w in (w_raw, w_scaled))
        print(f"{hs:>9}  {raw.var():>8.1f}  {scaled.var():>9.2f}    {w_raw.mean():>8.2f}  "
              f"{w_scaled.mean():>9.2f}    {slope_raw:>8.3f}  {slope_scaled:>9.3f}")
    print("Without the scale, a wide head all but picks one token, by chance, and the\n"
          "slope fades. With it, the head size changes almost nothing.")


# Why the mask? Train without it and look. In training the model is shown whole pieces, so the
# token to predict stands one place to the right. A head that may look there finds it, by the
# positions that chapter 7 has added, and the loss falls to nearly nothing. But the model has
# learned to copy, not to predict: when it writes, there is nothing to the right.


def why_mask(train_data, val_data, config):
    """Train the tiny model with version 4 and no mask, then put the mask back."""
    config = replace(config, max_steps=500, eval_interval=250)
    print("Training without the mask:")
    make_mixer = partial(Attention, config.n_embd, causal=False)
    model, _ = train_tiny(make_mixer, train_data, val_data, config)
    piece = val_data[:config.block_size + 1]                            # (T+1,)
    x, y = piece[None, :-1], piece[1:]                                  # (1, T), (T,)
    with torch.no_grad():
        losses = F.cross_entropy(model(x)[0][0], y, reduction="none")   # (T, V), (T,) -> (T,)
        weights = model.mixer.steps(model.embed(x))["weights"][0]       # (1, T, T) -> (T, T)
    model.mixer.causal = True
    honest = evaluate(model, val_data)
    to_next, seen, last = weights.diagonal(1).mean(), losses[:-1].mean(), losses[-1]
    print(f"In the first piece of the validation split, {to_next:.0%} of the weight goes to\n"
          f"the next token. The mean loss is {seen:.3f} at all places but the last, and\n"
          f"{last:.2f} at the last, which has no next token to look at.\n"
          f"The same model with the mask put back, as if it had to write: {honest:.2f}.\n"
          f"To give all {config.vocab_size} tokens the same probability costs "
          f"{math.log(config.vocab_size):.2f}.")


# Why several heads? In one head, a token has one row of weights. If it needs two things, it gets a
# mixture of both, and from a mixture one cannot tell for sure what was in it. Two heads bring two
# results, side by side. Each has hs = C / nh channels, so all heads together cost about as much as
# one wide head. Chapter 9 measures what they are worth, with the matrix that joins their results.


def why_several_heads():
    """Two pasts that a head with equal weights cannot tell apart, and two heads can."""
    pasts = torch.tensor([[5.0, 25.0], [10.0, 20.0]])         # (2 pasts, 2 tokens): a value each
    half_each = torch.tensor([0.5, 0.5])                      # one head: half of its weight on each
    one_each = torch.eye(2)                                   # (2 heads, 2 tokens)
    print("values of the past    one head receives    two heads receive")
    for past in pasts:
        print(f"{str(past.tolist()):<21} {half_each @ past:<20.0f} {(one_each @ past).tolist()}")


# PyTorch has version 4 in one function, which is what gpt.py uses. It computes the same without
# keeping the (T, T) weights, and faster. And `one_head` in gpt.py is version 4 as well, line by
# line; only, the weights are called shares there.


def same_as_pytorch():
    """Compare version 4 with the fused function and with gpt.py's one_head."""
    torch.manual_seed(0)
    x, (w_query, w_key, w_value) = torch.randn(2, 8, 16), torch.randn(3, 16, 4) / 4
    steps = self_attention(x, w_query, w_key, w_value)
    q, k, v = steps["q"], steps["k"], steps["v"]
    others = {"F.scaled_dot_product_attention":
                  F.scaled_dot_product_attention(q, k, v, is_causal=True),      # (B, T, hs)
              "one_head in gpt.py": one_head(x, w_query, w_key, w_value)}       # (B, T, hs)
    for name, other in others.items():
        torch.testing.assert_close(other, steps["result"], atol=1e-6, rtol=0)
        difference = (other - steps["result"]).abs().max()
        print(f"{name:<31} differs from version 4 by at most {difference:.0e}")


# Does attention know the order of the tokens? The score of two tokens depends on what they are, not
# on where they stand. So shuffle the past of the last token, and it receives the same. To know the
# order, a token must hold its place among its C numbers. Then queries and keys can ask for it.


def why_positions():
    """Shuffle the past of the last token; print what it receives, without and with positions."""
    torch.manual_seed(0)
    T, C, hs = 8, 16, 3
    table = torch.randn(128, C)                               # a row for each character
    w_query, w_key, w_value = torch.randn(3, C, hs) / math.sqrt(C)  # (3, C, hs) -> three of (C, hs)
    clocks = sinusoids(Config(block_size=T, n_embd=C))        # (T, C)
    for title, positions in (("without", torch.zeros(T, C)), ("with", clocks)):
        print(f"What the r receives, {title} positions:")
        for text in (EXAMPLE[0], "eo bt or"):
            x = table[[ord(character) for character in text]][None]     # (1, T, C)
            steps = self_attention(x + positions, w_query, w_key, w_value)
            received = "  ".join(f"{number:>7.4f}" for number in steps["result"][0, -1].tolist())
            print(f"    in {text!r}    {received}")


# %% 9. The comparison
# Now the same tiny model, trained on the same text with the same seed and number of steps, with
# each version as its mixer, and with none. None means that a token receives its own value and
# nothing of others. Beside it, the bigram of gpt.py, which knows of no other token either.
#
# What to expect: versions 1 to 3 are the same computation, so their losses must agree. An average
# tells which characters there were, but neither in which order nor which of them matters now.
# Self-attention can learn to ask. The last row is the class of gpt.py: four heads in place of one,
# and a matrix that mixes what they have found.


def no_mixing(x):
    """Each token keeps to itself: x (B, T, C) -> steps."""
    return {"result": x}


class ManyHeads(CausalSelfAttention):
    """The class of gpt.py as a mixer: (B, T, C) -> (B, T, C)."""

    def forward(self, x):
        return super().forward(x, positions=torch.arange(x.shape[1]))      # (B, T, C) -> (B, T, C)


def compare(train_data, val_data, config):
    """Train the tiny model with each mixer -> (rows for print_results, the model of version 4)."""
    C = config.n_embd
    mixers = {"none": partial(Average, no_mixing, C),
              "1 loop": partial(Average, average_by_loop, C),
              "2 matrix product": partial(Average, average_by_matrix, C),
              "3 softmax": partial(Average, average_by_softmax, C),
              "4 self-attention": partial(Attention, C),
              "4, with 4 heads": partial(ManyHeads, config)}
    print("bigram")
    bigram, seconds = train_bigram(train_data, val_data, config)
    rows, models = [("bigram", count_parameters(bigram), evaluate(bigram, val_data), seconds)], {}
    for name, make_mixer in mixers.items():
        print(f"\n{name}")
        model, seconds = train_tiny(make_mixer, train_data, val_data, config)
        rows.append((name, count_parameters(model), evaluate(model, val_data), seconds))
        models[name] = model
    return rows, models["4 self-attention"]


def show_comparison(train_data, val_data, config, tokenizer):
    rows, model = compare(train_data, val_data, config)
    losses = {name: loss for name, _, loss, _ in rows}
    averages = [losses[name] for name in ("1 loop", "2 matrix product", "3 softmax")]
    spread, gain = max(averages) - min(averages), min(averages) - losses["4 self-attention"]
    print()
    print_results(rows)
    print(f"\nThe losses of versions 1, 2 and 3 differ by at most {spread:.0e}.\nSelf-attention is "
          f"{abs(gain):.2f} nats per token {'ahead of' if gain > 0 else 'behind'} them.")

    idx = val_data[None, :24]                                 # (1, T)
    text = tokenizer.decode(idx[0].tolist())
    with torch.no_grad():
        weights = model.mixer.steps(model.embed(idx))["weights"][0]     # (1, T, T) -> (T, T)
    print("\nWhat the trained head of version 4 looks at, where the validation split begins:\n")
    print(picture(weights, text))
    print(f"\n{in_words(weights)}")


# A picture is for the eye; to compare heads, numbers are better. They leave out the first token,
# which has no choice.


def in_words(weights):
    """Causal weights (T, T), T at least 2, in words: how far back they look, and where they go.

    >>> in_words(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]))
    'looks 0.9 back on average; 38% to the previous character, 50% to the first'
    """
    places = torch.arange(len(weights))                                 # (T,)
    distance = places[:, None] - places                                 # (T, 1) - (T,) -> (T, T)
    back = (weights * distance)[1:].sum(dim=-1).mean()                  # (T-1, T) -> (T-1,) -> ()
    previous, first = weights.diagonal(-1).mean(), weights[1:, 0].mean()    # (T-1,) -> (), twice
    return (f"looks {back:.1f} back on average; {previous:.0%} to the previous character, "
            f"{first:.0%} to the first")


# %% 10. A trained GPT
# What do the heads of a real model look at? It does not keep the weights of its attention. But a
# hook, a function that PyTorch calls when a module is used, can catch what goes into each attention
# module. From that we compute its queries and keys again, and the rest is version 4: the scores,
# the mask and the softmax.


def attention_weights(attention, x, positions):
    """The weights (B, nh, T, T) in a CausalSelfAttention for x (B, T, C) at positions (T,)."""
    config, (B, T, C) = attention.config, x.shape
    hs = C // config.n_head
    q, k, _ = attention.qkv(x).split(C, dim=-1)               # (B, T, C) -> three of (B, T, C)
    q = q.view(B, T, config.n_head, hs).transpose(1, 2)       # (B, T, C) -> (B, nh, T, hs)
    k = k.view(B, T, config.n_head, hs).transpose(1, 2)       # (B, T, C) -> (B, nh, T, hs)
    if config.position == "rotary":
        q, k = rotate(q, positions, config), rotate(k, positions, config)
    scores = q @ k.transpose(-2, -1) / math.sqrt(hs)          # both of them -> (B, nh, T, T)
    future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)    # (T, T)
    return F.softmax(scores.masked_fill(future, -math.inf), dim=-1)     # (B, nh, T, T)


@torch.no_grad()
def weights_of_all_heads(model, idx):
    """The attention of a GPT that reads idx (B, T): for each layer, weights (B, nh, T, T)."""
    layers = []

    def catch(attention, inputs):                             # inputs: x, positions and a cache
        layers.append(attention_weights(attention, *inputs[:2]))

    hooks = [block.attention.register_forward_pre_hook(catch) for block in model.blocks]
    was_training = model.training
    model.eval()                                              # without dropout
    try:
        model(idx)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return layers


ROMEO = "ROMEO:\nBut soft"


def default_prompt(model, tokenizer):
    """ROMEO, or what fits of it into the context. A model that lacks its characters writes a text
    of its own: there its heads look at what they know."""
    length = min(len(ROMEO), model.block_size)
    if set(ROMEO[:length]) <= set(tokenizer.characters):
        return ROMEO[:length]
    return continue_text(model, tokenizer, first_prompt(tokenizer), length - 1, temperature=0.8)


MOST = 36                                                     # cells that fit into 80 columns


def show_model(path, prompt=None):
    """Each head of each layer of the model at `path`, as it reads `prompt`.

    Raises UserError for a prompt that the model cannot read, or of less than 2 characters, and for
    a model whose tokens are not characters, or that looks at no more than one.
    """
    model, tokenizer = load_checkpoint(path)
    check(model.config.tokenizer == "char", f"{path} reads pieces of words; the pictures are of "
                                            f"models that read characters")
    check(model.block_size > 1, f"{path} looks at one character at a time, so there is no past")
    prompt = default_prompt(model, tokenizer) if prompt is None else prompt
    check(len(prompt) > 1, f"the prompt must have at least 2 characters, not {len(prompt)}: the "
                           f"first has only itself to look at")
    check(len(prompt) <= model.block_size, f"the prompt has {len(prompt)} characters; this model "
                                           f"can look at {model.block_size} at most")
    idx = torch.tensor([tokenizer.encode(prompt)])            # (1, T)
    layers = weights_of_all_heads(model, idx)
    equal = average_by_matrix(idx[:, :, None].float())["weights"]   # (T, T)
    heading("10. A trained GPT")
    print(textwrap.fill(visible(f"The model in {path} reads {prompt!r}."), 79))
    print(f"{LEGEND}.\n"
          f"Look for a diagonal (a fixed distance back), for columns (a character that many\n"
          f"look at), and for single dark cells (content: this one matters to that one).\n"
          f"To compare with, a head with equal weights\n{in_words(equal)}.")
    if len(prompt) > MOST:
        print(f"The pictures show the last {MOST} of {len(prompt)} characters; "
              f"the numbers are of all.")
    for i, layer in enumerate(layers, start=1):
        for j, weights in enumerate(layer[0], start=1):       # (nh, T, T), one (T, T) at a time
            heading(f"Layer {i}, head {j}")
            print(picture(weights[-MOST:, -MOST:], prompt[-MOST:]))
            print(f"\n{in_words(weights)}")


# %% 11. The run


def run(text, quick=False):
    """Chapters 1 to 9 in order; quick leaves out chapter 9."""
    config = Config(**TINY)
    tokenizer = build_char_tokenizer(text)
    train_data, val_data = split(torch.tensor(tokenizer.encode(text)))
    check_range("the number of tokens to train on", len(train_data), config.block_size + 1)
    check_range("the number of tokens to validate with", len(val_data), 2)
    config = replace(config, vocab_size=tokenizer.vocab_size)
    for title, chapter in (("1. Tensors", tensor_moves),
                           ("2. An example", show_example),
                           ("3. Version 1: a loop", show_version_1),
                           ("4. Version 2: one matrix product", show_version_2),
                           ("5. Version 3: softmax over a mask", show_version_3),
                           ("6. Version 4: self-attention", show_version_4),
                           ("8. Why divide by sqrt(head size)?", why_scale),
                           ("8. Why the mask?", partial(why_mask, train_data, val_data, config)),
                           ("8. Why several heads?", why_several_heads),
                           ("8. Is this what PyTorch computes?", same_as_pytorch),
                           ("8. Does attention know the order?", why_positions)):
        heading(title)
        chapter()
    if not quick:
        heading("9. The comparison")
        show_comparison(train_data, val_data, config, tokenizer)


def command(arguments):
    parser = Parser("attention_toy.py", allow_abbrev=False,
                    description="Four ways to gather the past, from a loop to self-attention.")
    parser.add_argument("--quick", action="store_true", help="skip the comparison (a minute)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    parser.add_argument("--model", metavar="RUN",
                        help="only show what the heads of a kept run look at; its name or path")
    parser.add_argument("--prompt", help=r"what it reads, \n is a new line; if not given, "
                                         r"ROMEO:\nBut soft, or a text of its own if it lacks "
                                         r"these characters")
    options = parser.parse_args(arguments)
    if options.model is None:
        check(options.prompt is None,
              "--prompt is for a trained model; say for which with --model")
        run(load_text(options.text)[1], options.quick)
    else:
        check(not options.quick and options.text is None,
              "--model only shows that model: it goes without --quick and --text")
        prompt = options.prompt and options.prompt.replace(r"\n", "\n")
        show_model(find_run(options.model), prompt)


if __name__ == "__main__":
    sys.exit(run_cleanly("attention_toy.py", command, sys.argv[1:]))
