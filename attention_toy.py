"""attention_toy.py: four ways to gather what came before, and what each part of a GPT is worth.

Attention is the one hard idea in a GPT. Here it is taken apart. Each token must gather what it
needs from the tokens before it, and we do that four times. The first three ways give the same
numbers: by a loop, by a matrix product, and by a softmax. In the fourth, the weights are no longer
all equal: they depend on what the tokens are, and so does what each hands over. That is
self-attention. Around it grows a GPT, and each of its parts is measured.

     1  Tensors          the few moves that everything below is made of
     2  An example       two pieces of text as numbers, and a picture of weights
     3  Version 1        the average of the past, by a loop
     4  Version 2        the same, as one matrix product
     5  Version 3        the same, as a softmax over a mask
     6  Version 4        self-attention: queries, keys and values
     7  Several heads    version 4 a few times, side by side
     8  Questions        why the scale, and why positions
     9  A model          a GPT that may lack parts; and why the mask
    10  The ladder       what each part is worth on a real text
    11  Trained heads    what they look at
    12  The run          the command line

    python attention_toy.py             all of it, with the first rows of the ladder; half a minute
    python attention_toy.py --quick     chapters 1 to 9, some seconds
    python attention_toy.py --ladder    chapter 10 with all rows, some minutes; --ladder 3 takes
                                        three seeds, three times as long, and shows the spread
    python attention_toy.py --model shakespeare --prompt "ROMEO:\\nBut soft"
                                        chapter 11, for a run that gpt.py has kept

Read the code beside what it prints. The letters are those of gpt.py: B pieces of text side by side,
T tokens in each, C channels (numbers) for one token, V tokens in the vocabulary, nh heads, hs the
head size. In a notebook, leave out the last three lines of the file, and call command([]) instead.
"""

# %% 1. Tensors
# A tensor is a block of numbers with a shape. The past of a token is gathered with a few moves.

import inspect
import math
import sys
import textwrap
import unicodedata
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

from gpt import (GPT, BigramLanguageModel, Block, CausalSelfAttention, Config, Parser, UserError,
                 announce, build_char_tokenizer, check, check_range, continue_text,
                 count_parameters, evaluate, find_run, first_prompt, heading, load_model, load_text,
                 one_head, print_table, run_cleanly, shade, sinusoids, split, symbol, train,
                 visible)

import torch                        # after gpt, which silences a remark of torch about NumPy
import torch.nn as nn
import torch.nn.functional as F


def tensor_moves():
    """Create: of a tensor, tril keeps the lower triangle, triu(diagonal=1) what is
    above it. Fill: masked_fill writes a number wherever another tensor says True.

    >>> ones = torch.ones(3, 3).tril()
    >>> future = torch.ones(3, 3, dtype=torch.bool).triu(diagonal=1)
    >>> ones.masked_fill(future, -7)
    tensor([[ 1., -7., -7.],
            [ 1.,  1., -7.],
            [ 1.,  1.,  1.]])

    Sum and broadcast: dim=1 adds along each row, and keepdim leaves a column, so
    this is (3, 3) / (3, 1). Two shapes that differ; where one has size 1, it is
    repeated to fit the other. So each row is divided by its own sum.

    >>> weights = ones / ones.sum(dim=1, keepdim=True)
    >>> weights
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.3333, 0.3333, 0.3333]])

    Matrix product: row t of the result is a weighted sum of the rows of x, and row
    t of the weights says how much of each. (3, 3) @ (3, 2) -> (3, 2). With more
    dimensions, it works on the last two: (3, 3) @ (5, 3, 2) -> (5, 3, 2).

    >>> x = torch.tensor([[6.0, 0.0], [2.0, 4.0], [1.0, 8.0]])
    >>> weights @ x
    tensor([[6., 0.],
            [4., 2.],
            [3., 4.]])

    Transpose: swap two dimensions; -2 and -1 are the last two, (3, 2) -> (2, 3).
    Stack: put tensors of one shape side by side, along a new dimension. Here, both
    turn the rows of x into columns, and x.transpose(-2, -1) is the same as:

    >>> torch.stack([x[0], x[1], x[2]], dim=1)
    tensor([[6., 2., 1.],
            [0., 4., 8.]])
    """
    print(inspect.getdoc(tensor_moves))


# %% 2. An example
# All four versions take x of shape (B, T, C): B pieces of T tokens, each described by C numbers. In
# a GPT these numbers are learned and mean nothing that we could name. Ours can be named, so that
# every result can be checked by eye:

EXAMPLE = ("to be or", " not to ")                            # B = 2 pieces of T = 8 tokens
CHANNELS = ("vowel", "consonant", "space", "alphabet")        # C = 4


def describe(character):
    """Is it a vowel, a consonant, a space; and its place in the alphabet, 27 for a space.

    >>> describe("b"), describe("o"), describe(" ")
    ([0, 1, 0, 2], [1, 0, 0, 15], [0, 0, 1, 27])
    """
    vowel, space = int(character in "aeiou"), int(character == " ")
    return [vowel, 1 - vowel - space, space, 27 if space else ord(character) - ord("a") + 1]


def example():
    """x of shape (2, 8, 4): the pieces of EXAMPLE, each character described."""
    return torch.tensor([list(map(describe, piece)) for piece in EXAMPLE]).float()


# What a token gathers is always a weighted sum: so much of this token, so much of that one. All
# these weights together are a matrix (T, T): row t says how much token t takes from each token. A
# picture shows it best. Read it row by row: the token at the left looks at the tokens on top.

LEGEND = "░ from 3%, ▒ from 15%, ▓ from 35%, █ from 70% of what the row's token receives"
WIDEST = 8                          # columns for a token at the left, if it is a piece of a word
MOST_TOKENS = (79 - WIDEST - 2) // 2                # as many fit on top, each in two columns


def cell(text, width):
    r"""The text of a token in exactly `width` columns; a space and a new line can be seen.

    >>> cell(" the", 2), cell(" the", 6), cell("\n", 3)
    ('␣t', '␣the  ', '↵  ')
    """
    shown = ""
    for character in text.replace(" ", "␣"):
        wide = unicodedata.east_asian_width(character) in "WF"      # it fills two columns
        if 1 + wide > width:
            break
        shown, width = shown + (character if wide else symbol(character)), width - 1 - wide
    return shown + " " * width


def picture(weights, tokens):
    """Weights (T, T) of T tokens, each given by its text, as T + 1 lines for the terminal.

    >>> print(picture(torch.tensor([[1.0, 0.0], [0.2, 0.8]]), "ab"))
        a b
    a   ██
    b   ▒▒██
    """
    width = 2 if max(map(len, tokens)) == 1 else WIDEST
    lines = [" " * (width + 2) + "".join(cell(token, 2) for token in tokens)]
    for token, row in zip(tokens, weights.tolist()):
        lines.append(f"{cell(token, width)}  " + "".join(2 * shade(weight) for weight in row))
    return "\n".join(line.rstrip() for line in lines)


def show(weights, received, titles):
    """Print weights (T, T) of the first piece, and beside each row what its token receives."""
    print(f"The weights for {EXAMPLE[0]!r}, and at the right of each row what it receives:\n")
    top, *rows = picture(weights, EXAMPLE[0]).split("\n")
    print(f"{top:<24}" + "".join(f"{title:>11}" for title in titles))
    for row, numbers in zip(rows, received.tolist()):
        print(f"{row:<24}" + "".join(f"{number:>11.2f}" for number in numbers))


def show_example():
    print(f"x is {EXAMPLE[0]!r} and {EXAMPLE[1]!r}, of shape {tuple(example().shape)}, (B, T, C).\n"
          f"The first piece. Each row is a token (␣ is the space), each column a channel:\n")
    print_table(" ".join(("token", *CHANNELS)),
                [(cell(character, 1), *describe(character)) for character in EXAMPLE[0]])
    print(f"\nThe shades in the pictures:\n{LEGEND}.")


# %% 3. Version 1: a loop
# The simplest way to gather the past: take the average of it. For the token at place t that is the
# mean of the tokens 0 to t, itself included. (So even the first has something to average.) What
# comes after t is left out: a language model has to predict it.


def average_by_loop(x):
    """Version 1: x (B, T, C) -> (B, T, C), the mean of each token's past."""
    means = []
    for t in range(x.shape[1]):
        past = x[:, :t + 1]                                   # (B, T, C) -> (B, t+1, C)
        means.append(past.mean(dim=1))                        # (B, t+1, C) -> (B, C)
    return torch.stack(means, dim=1)                          # T of (B, C) -> (B, T, C)


def weights_behind(average, T):
    """The weights (T, T) with which one of the versions 1 to 3 gathers T tokens.

    The loop has no matrix of weights, yet there is one behind it. To find it, let each token hold
    a single 1, in a channel of its own. Then what token t has in channel s came from token s.
    """
    single_ones = torch.eye(T)[None]                          # (T, T) -> (1, T, T), one piece
    return average(single_ones)[0]                            # (1, T, T) -> (T, T)


def show_version_1():
    show(weights_behind(average_by_loop, 8), average_by_loop(example())[0], CHANNELS)
    print("\nThe rows get lighter downwards: the same whole, shared by more tokens.\n"
          "Check a number: the b has seen t o ␣ b, one vowel of four, so 0.25.")


# %% 4. Version 2: one matrix product
# A loop in Python is slow, and what it does is a weighted sum with the weights 1/(t+1). Chapter 1
# has shown that a matrix product makes all weighted sums at once. The lower triangle of ones says
# who is in the past of whom; each row divided by its sum makes the sum an average.


def average_by_matrix(x):
    """Version 2: x (B, T, C) -> the same (B, T, C), without a loop."""
    T = x.shape[1]
    ones = torch.ones(T, T).tril()                            # (T, T)
    weights = ones / ones.sum(dim=1, keepdim=True)            # (T, T) / (T, 1) -> (T, T)
    return weights @ x                                        # (T, T) @ (B, T, C) -> (B, T, C)


def show_version_2():
    weights = weights_behind(average_by_matrix, 4)
    print("For four tokens, the triangle (the rule that nobody sees the future), and each\n"
          f"of its rows divided by its sum:\n\n{(weights > 0).float()}\n\n{weights}\n")
    show_equal("versions 1 and 2", average_by_loop(example()), average_by_matrix(example()))


def show_equal(names, a, b):
    """Print by how much two tensors differ. Raises AssertionError if it is more than rounding."""
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    print(f"{names}: the same numbers, within {(a - b).abs().max():.0e}")


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
    """Version 3: x (B, T, C) -> the same (B, T, C), with weights made from scores."""
    T = x.shape[1]
    scores = torch.zeros(T, T)                                # (T, T): all matter alike
    future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)    # (T, T): True where s > t
    scores = scores.masked_fill(future, -math.inf)            # (T, T)
    weights = F.softmax(scores, dim=-1)                       # (T, T): each row sums to 1
    return weights @ x                                        # (T, T) @ (B, T, C) -> (B, T, C)


def show_version_3():
    print("How the third of five tokens, which sees three, gets its weights. First all\n"
          "scores are 0. Then, to see what comes next, as if one of them were 1.\n")
    for score in (0.0, 1.0):
        scores = torch.tensor([0.0, score, 0.0, 0.0, 0.0])    # (T,)
        masked = scores.masked_fill(torch.arange(5) > 2, -math.inf)     # (T,)
        print(f"scores   {scores}\nmasked   {masked}\nweights  {F.softmax(masked, dim=-1)}\n")
    show_equal("versions 2 and 3", average_by_matrix(example()), average_by_softmax(example()))


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


def attention_weights(q, k):
    """Who looks at whom: queries and keys (..., T, hs) -> weights (..., T, T)."""
    T, hs = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(hs)          # (..., T, hs) -> (..., T, T)
    future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)    # (T, T)
    scores = scores.masked_fill(future, -math.inf)            # (..., T, T)
    return F.softmax(scores, dim=-1)                          # (..., T, T): each row sums to 1


def self_attention(x, w_query, w_key, w_value):
    """Version 4, one head: x (B, T, C) and three matrices (C, hs) -> (B, T, hs)."""
    q = x @ w_query                                           # (B, T, C) @ (C, hs) -> (B, T, hs)
    k = x @ w_key                                             # (B, T, C) @ (C, hs) -> (B, T, hs)
    v = x @ w_value                                           # (B, T, C) @ (C, hs) -> (B, T, hs)
    weights = attention_weights(q, k)                         # two of (B, T, hs) -> (B, T, T)
    return weights @ v                                        # (B, T, T) @ (B, T, hs) -> (B, T, hs)


# In a GPT the three matrices are learned. Here they are made by hand, so that one can follow. The
# two numbers of queries and keys stand for (vowels, spaces). A consonant looks for vowels, a vowel
# looks for spaces, and a space looks for nothing in particular. What is handed over is the place in
# the alphabet, so that one can see which characters were found, and whether it was a vowel. The
# tens make scores of about 7 where something is found, so softmax leaves almost nothing to others.


def hand_made_weights():
    """w_query, w_key and w_value, each (C, hs) = (4, 2)."""
    # a row for each channel of x: vowel,   consonant,   space,      alphabet
    w_query = torch.tensor([[0.0, 10.0], [10.0, 0.0], [0.0, 0.0], [0.0, 0.0]])  # (vowels, spaces)
    w_key = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])      # (vowels, spaces)
    w_value = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])    # (alphabet, vowel)
    return w_query, w_key, w_value


def show_version_4():
    x, matrices = example(), hand_made_weights()
    q, k, v = (x @ matrix for matrix in matrices)             # (B, T, C) -> three of (B, T, hs)
    weights = attention_weights(q, k)                         # (B, T, T)
    show(weights[0], self_attention(x, *matrices)[0], ("alphabet", "vowel"))
    print("\nThe consonants b and r look at the vowels before them, and what they receive\n"
          "is nearly the mean of those: for the r, that of o, e and o. (The others keep\n"
          "about a thousandth each.) The e and the second o have found spaces, the 27. The\n"
          "first o finds none, and the t sees only itself: weights must sum to 1, so they\n"
          "go to what there is. A space asks with zeros, so its scores are 0: version 3.\n"
          f"How the last row came about, for the r with q = {q[0, -1].tolist()}:\n")
    scores = q[0, -1] @ k[0].T / math.sqrt(2)                 # (hs,) @ (hs, T) -> (T,)
    rows = zip(EXAMPLE[0], k[0].tolist(), scores.tolist(), weights[0, -1].tolist(), v[0].tolist())
    print_table("looks_at k score weight v", [
        (cell(character, 1), key, f"{score:.2f}", f"{weight:.3f}", value)
        for character, key, score, weight, value in rows])
    print(f"\nThe same matrices, another text: {EXAMPLE[1]!r}. In versions 1 to 3 the picture\n"
          f"would be as before. Here it is not, for the weights depend on the content.\n\n"
          f"{picture(weights[1], EXAMPLE[1])}")


# %% 7. Several heads
# In one head a token has one row of weights, so it receives one mean. What if it needs two things?
# Say each token is a number, and wanted is this number minus the one before. One head cannot tell,
# whatever its weights and values, and whatever matrix (or constant) works on what it finds:
#
#   - After 5 5, any mean of the two values is v(5), and the matrix must make 0 of it. In the same
#     way, it must make 0 of v(20).
#   - After 5 20 it receives a mean of v(5) and v(20), and of a mean, a matrix makes the same mean
#     of what it makes of the two: of 0 and 0. But wanted is 15.
#
# Two heads bring one number each, and the matrix that joins them subtracts. (A feed-forward network
# can bend, so it could make more of the one mean, if it can untangle it.)


def why_several_heads():
    """Print what the best matrix and constant make of one head's mean, and what two heads give."""
    pasts = torch.tensor([[5.0, 5.0], [20.0, 20.0], [5.0, 20.0], [20.0, 5.0]])      # (4, 2 tokens)
    two_heads = pasts @ torch.eye(2)                          # each has all weight on one of them
    wanted = two_heads @ torch.tensor([-1.0, 1.0])            # joined: (4, 2) @ (2,) -> (4,)
    rows = [("two heads", *wanted.tolist())]
    for weights in ([0.5, 0.5], [0.25, 0.75], [0.0, 1.0]):
        mean = pasts @ torch.tensor(weights)                  # (4, 2) @ (2,) -> (4,)
        inputs = torch.stack((mean, torch.ones(4)), dim=1)    # two of (4,) -> (4, 2)
        best = torch.linalg.lstsq(inputs, wanted[:, None]).solution[:, 0]       # (2,)
        rows.append((f"one head, weights {weights}", *(inputs @ best).tolist()))        # (4,)
    print("Wanted is the second number minus the first. Two heads give it; one, at best:\n")
    print_table("numbers 5,5 20,20 5,20 20,5",
                [(name, *(f"{number + 0.0:.1f}" for number in row)) for name, *row in rows])
    print("\nOther weights are no better: for 5,20 one head gives a mean of what it gives\n"
          "for 5,5 and 20,20, so for one of the three it is off by 7.5 or more.\n")


def several_heads(x, w_query, w_key, w_value, n_head):
    """Version 4 with n_head heads: x (B, T, C) and three matrices (C, C) -> (B, T, C).

    Each head has hs = C / nh, so all heads together cost as much as a wide one: q, k and v are made
    as before, and cut into heads. Reshape keeps all numbers in their order and cuts them into rows
    of another length; it is not a transpose. Transpose then puts nh beside B. As products work on
    the last two dimensions, each head gathers by itself. The way back is the same, reversed.

    >>> torch.arange(6).reshape(2, 3)               # 6 channels become 2 heads of 3
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    B, T, C = x.shape
    q, k, v = ((x @ matrix)                                   # (B, T, C) @ (C, C) -> (B, T, C)
               .reshape(B, T, n_head, C // n_head)            # (B, T, C) -> (B, T, nh, hs)
               .transpose(1, 2)                               # (B, T, nh, hs) -> (B, nh, T, hs)
               for matrix in (w_query, w_key, w_value))
    found = attention_weights(q, k) @ v                       # (B, nh, T, T) @ v -> (B, nh, T, hs)
    return found.transpose(1, 2).reshape(B, T, C)             # (B, nh, T, hs) -> (B, T, C)


@torch.no_grad()
def same_as_in_gpt():
    """Compare with one_head and CausalSelfAttention of gpt.py.

    There, one matrix makes q, k and v, one more joins what the heads have found, and a function of
    PyTorch does what is between: the same without keeping the (T, T) weights, and faster.
    """
    torch.manual_seed(0)
    attention = CausalSelfAttention(Config(n_embd=16, n_head=4, bias=False))
    x, matrices = torch.randn(2, 8, 16), attention.qkv.weight.T.chunk(3, dim=1)     # three (C, C)
    show_equal("version 4 and one_head", self_attention(x, *matrices), one_head(x, *matrices))
    show_equal("several_heads, joined, and CausalSelfAttention",
               attention.proj(several_heads(x, *matrices, n_head=4)), attention(x, torch.arange(8)))


# %% 8. Questions
# Why divide by sqrt(hs)? A dot product adds hs products. If these are independent, with mean 0
# and variance 1, their sum has the variance hs. Softmax of such large scores puts nearly all
# weight on one token, before anything is learned. And then little is learned: if a score rises by
# a little d, its weight w rises by d * w * (1 - w), nearly 0 for a w near 0 or 1, so the gradient
# hardly reaches the scores. To divide by sqrt(hs) divides the variance by hs: then it is 1 for any
# head size. (Scores of 7, as by hand in chapter 6, are fine once it is learned where to look.)


def why_scale():
    """Random queries and keys of several sizes; print what softmax makes of their dot products."""
    torch.manual_seed(0)
    rows = []
    for hs in (4, 16, 64, 256):
        q, k = torch.randn(1000, 1, hs), torch.randn(1000, 8, hs)       # 1000 samples, T = 8
        for divided_by, scale in (("1", 1), ("sqrt(hs)", math.sqrt(hs))):
            scores = q @ k.transpose(-2, -1) / scale          # (1000, 1, hs) -> (1000, 1, 8)
            w = F.softmax(scores, dim=-1).amax(dim=-1)        # (1000, 1, 8) -> (1000, 1)
            numbers = scores.var(), w.mean(), (w * (1 - w)).mean()
            rows.append((hs, divided_by, *(f"{number:.2f}" for number in numbers)))
    print_table("head_size divided_by variance largest_of_8_weights slope_w*(1-w)", rows)
    print("\nUndivided, a wide head all but picks one token, by chance, and hardly learns to\n"
          "pick another, as its slope is small. Divided, the head size hardly matters. (To\n"
          "pick one, as by hand in chapter 6, is fine once it is learned which.)\n")


# Does attention know the order of the tokens? The score of two tokens depends on what they are, not
# on where they stand. So shuffle the past of the last token, and it receives the same. To know the
# order, a token must hold its place among its C numbers. Then queries and keys can ask for it.


def why_positions():
    """Shuffle the past of the last token; print what it receives, without and with positions."""
    torch.manual_seed(0)
    x, matrices = torch.randn(1, 8, 16), torch.randn(3, 16, 3) / 4      # three of (C, hs)
    shuffled = x[:, [4, 0, 6, 2, 5, 1, 3, 7]]                 # (B, T, C); the last one stays
    clocks = sinusoids(Config(block_size=8, n_embd=16))       # (T, C), the positions of gpt.py
    for title, places in (("without", 0 * clocks), ("with", clocks)):
        print(f"What the last token receives, {title} positions:")
        for order, tokens in (("in order", x), ("shuffled", shuffled)):
            received = self_attention(tokens + places, *matrices)[0, -1]        # (hs,)
            print(f"    {order}  " + "  ".join(f"{number:>7.4f}" for number in received))


# %% 9. A model
# To learn what attention is worth, we need a language model around it, and four words for that:
#
#     embedding   the C numbers that describe a token at first: its row in a table that is learned
#     logits      what comes out for each token: V scores, one for each token that may come next,
#                 of which softmax makes probabilities
#     lm_head     the matrix (C, V) that makes the logits: the head of the model, its top. It has
#                 nothing but the word in common with the heads of attention
#     loss        -ln(the probability that was given to the token that came), the mean of all places
#
# The unit of the loss is the nat; ln(2) = 0.69 nats are one bit. exp(loss) is the perplexity: the
# model is as unsure as among so many tokens that are equally likely.
#
# The model is the GPT of gpt.py, from which `build` takes out what a row of the ladder does not
# have yet. The rows in their order; each has the parts of all rows up to it:

ROWS = {
    "uniform": "all characters are equally likely",
    "frequencies alone": "how often does each occur, whatever came before?",
    "bigram": "what comes after this character? a table, in the form of two matrices",
    "average of the past": "in place of this character, the mean of all so far (version 3)",
    "one head, no positions": "attention: a mean whose weights depend on the content (version 4)",
    "+ positions": "attention can also ask where a character stands",
    "four heads": "in place of one, each with a quarter of the channels",
    "+ joining matrix": "one more matrix mixes what the four have found",
    "+ feed-forward": "a small network works on what was gathered; together, a block",
    "three such blocks": "one on top of the other, each sees only what the one below has made",
    "+ residuals": "each half of a block adds to what it gets, and no longer replaces it",
    "+ LayerNorm": "brings what a block reads to one size; now all parts of gpt.py are there",
    "+ head start": "no new part: the first weights that gpt.py chooses, not the plain ones",
    "control: wide bigram": "the bigram, with 16 times the channels; gain over the bigram",
    "control: wide block": "up to + feed-forward, with 7/4 of the channels; gain over that row",
}
FIRST_ROWS = list(ROWS)[:7]         # those that learn in seconds
WIDE = {"control: wide bigram": ("bigram", 16), "control: wide block": ("+ feed-forward", 7 / 4)}


class PlainBlock(Block):
    """A block without residuals: each half replaces x (B, T, C)."""

    def forward(self, x, positions, cache=None):
        return self.feed_forward(self.norm_2(self.attention(self.norm_1(x), positions)))


class Average(nn.Linear):
    """Version 3 in the place of attention, of values that are learned: (B, T, C) -> (B, T, C)."""

    def forward(self, x, positions, cache=None):
        return average_by_softmax(super().forward(x))         # (B, T, C) -> (B, T, C)


def build(row, config):
    """The untrained model of a row, from the bigram on: `logits, loss = model(idx, targets)`."""
    if row in WIDE:
        row, times = WIDE[row]
        config = replace(config, n_embd=int(times * config.n_embd))
    parts = list(ROWS)[:list(ROWS).index(row) + 1]
    config = replace(config, n_head=config.n_head if "four heads" in parts else 1,
                     n_layer=config.n_layer if "three such blocks" in parts else 1)
    torch.manual_seed(config.seed)
    model = GPT(config)
    if "+ head start" in parts:
        return model                                          # nothing is missing
    if "average of the past" not in parts:
        model.blocks = nn.ModuleList()
    elif "+ residuals" not in parts:
        model.blocks = nn.ModuleList([PlainBlock(config) for _ in model.blocks])
    if "+ LayerNorm" not in parts:
        model.norm = nn.Identity()                            # hands on what it gets
    for block in model.blocks:
        if "+ LayerNorm" not in parts:
            block.norm_1 = block.norm_2 = nn.Identity()
        if "+ feed-forward" not in parts:
            block.feed_forward = nn.Identity()
        if "+ joining matrix" not in parts:
            block.attention.proj = nn.Identity()
        if "one head, no positions" not in parts:
            block.attention = Average(config.n_embd, config.n_embd, bias=config.bias)
    plain_weights(model, "+ positions" in parts)
    return model


@torch.no_grad()
def plain_weights(model, has_positions):
    """Give a model its first weights. Positions that it does not have are zero and stay so.

    In gpt.py each half of a block at first ends in a matrix of zeros. It may, as it adds to x; a
    block that replaces x would let nothing through. So all rows but the last begin more plainly:
    embeddings have size 1, and matrices of n inputs 1/sqrt(n), which keeps the size of x.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.token_embedding.weight)
    model.position_embedding.weight.copy_(has_positions * sinusoids(model.config))
    model.position_embedding.weight.requires_grad_(has_positions)


# Why the mask? Train without it and look. In training the model is shown whole pieces, so the
# token to predict stands one place to the right. A head that may look there finds it, by the
# positions, and the loss falls to nearly nothing. But the model has learned to copy, not to
# predict: when it writes, there is nothing to the right. (To take the mask off, `patch` puts a
# function of ours, for a while, in the place of PyTorch's.)


def why_mask(train_data, val_data, config):
    """Train one head without a mask, then put the mask back."""
    config = replace(config, max_steps=300, eval_interval=300, learning_rate=1e-2)
    model, attention = build("+ positions", config), F.scaled_dot_product_attention
    with patch.object(F, "scaled_dot_product_attention", lambda q, k, v, **_: attention(q, k, v)):
        copying = learn(model, train_data, val_data, config, "without a mask")
    print(f"A model with one head, trained without a mask, predicts the validation split\n"
          f"with a loss of {copying:.2f}: it looks at the token that it is to predict. With the\n"
          f"mask put back, as if it had to write, its loss is {evaluate(model, val_data):.2f}. "
          f"Knowing nothing\nat all costs {math.log(config.vocab_size):.2f}.")


def learn(model, train_data, val_data, config, title):
    """Train a model, and return its loss on the validation split at the end."""
    for report in train(model, train_data, val_data, config):
        if report.step % 10 == 0:
            announce(f"{title}: step {report.step}/{config.max_steps}")
    announce("")
    return report.val_loss


# %% 10. The ladder
# One change a row, all else the same: text, steps, batches, learning rate. That rate is half of
# gpt.py's; with more, three plain blocks hardly learn. Not every row gains, and here is why:
#
#   - An average of all characters has forgotten which was the last, and that says most of the next.
#   - Three blocks that replace what they get are harder to train than one. With residuals, the
#     gradient reaches each block directly, and what one block has found is there for all above it.
#   - LayerNorm keeps deep models trainable. In three blocks there is little to keep, and it costs a
#     bit, after 3,000 steps, too: 1.640, without it 1.615 (one seed, with plain first weights).

LADDER = Config(max_steps=1000, eval_interval=1000, learning_rate=2e-3)


def climb(row, train_data, val_data, config):
    """Train the model of a row -> (the model, its number of parameters, its validation loss)."""
    if row not in ("uniform", "frequencies alone"):
        model = build(row, config)
        val_loss = learn(model, train_data, val_data, config, row)
        return model, count_parameters(model), val_loss
    model, parameters = BigramLanguageModel(config.vocab_size), 0       # all zeros: all are alike
    if row == "frequencies alone":
        counts = torch.bincount(train_data, minlength=config.vocab_size)        # (N,) -> (V,)
        model.table.weight.data[:] = (counts + 1).log()       # (V,) -> (V, V); + 1: none is 0
        parameters = config.vocab_size                        # since all rows are the same
    return model, parameters, evaluate(model, val_data)


def gain(row, losses):
    """How far its loss is below that of the row above; for a control, of the row that it widens."""
    rows = list(ROWS)
    above = WIDE[row][0] if row in WIDE else rows[max(0, rows.index(row) - 1)]
    return losses[above] - losses[row]


def show_ladder(rows, train_data, val_data, tokenizer, config, seeds=1):
    """Train and print rows -> ({row: mean loss over the seeds}, {row: its last model})."""
    print(f"Each row changes one thing and keeps all else: text, settings, {config.max_steps:,} "
          "steps.\nExpected: with each part the loss falls, and the writing gets better.\n\n"
          "loss         -ln of the probability that it gave to the character that came,\n"
          "             the mean of the validation split, in nats; 0.69 nats are a bit\n"
          "±            of several seeds, half of the way from lowest to highest loss\n"
          "perplexity   exp(loss): it is as unsure as among so many characters\n"
          "gain         how far the loss is below that of the row above; another order of\n"
          "             the rows would give other gains\n"
          ">            what it writes; \\n is a new line\n\n"
          f"{'':<24}{'parameters':>12}{'loss':>9}{'±':>9}{'perplexity':>12}{'gain':>9}")
    losses, models, prompt = {}, {}, first_prompt(tokenizer)
    for row in rows:
        found = []
        for seed in range(config.seed, config.seed + seeds):
            models[row], parameters, loss = climb(row, train_data, val_data,
                                                  replace(config, seed=seed))
            found.append(loss)
        losses[row] = sum(found) / seeds
        spread = f"{(max(found) - min(found)) / 2:.4f}" if seeds > 1 else "-"
        written = continue_text(models[row], tokenizer, prompt, 44, config.seed, temperature=0.8,
                                use_cache=False).removeprefix(prompt)
        print(f"{row:<24}{parameters:>12,}{losses[row]:>9.4f}{spread:>9}"
              f"{math.exp(losses[row]):>12.2f}{gain(row, losses):>+9.4f}\n    {ROWS[row]}\n"
              f"    > {cell(written, 70).replace('␣', ' ').rstrip()}", flush=True)
    return losses, models


def findings(losses):
    """What stands out in the losses of the rows, in words."""
    gains = {row: gain(row, losses) for row in losses}
    told = {row: f"{row} ({gains[row]:+.2f})" for row in losses}
    parts = [row for row in list(ROWS)[3:12] if row in losses]          # those above the bigram
    first, second = sorted(parts, key=gains.get, reverse=True)[:2]
    text = f"From attention on, the largest gains: {told[first]} and {told[second]}."
    if losing := ", ".join(told[row] for row in parts if gains[row] < 0):
        text += f" Against expectation, there are rows that lose: {losing}."
    if WIDE.keys() <= losses.keys():
        text += (" More channels in place of parts, the controls, come to " +
                 " and ".join(f"{losses[row]:.2f} ({row[9:]})" for row in WIDE) +
                 f", and the GPT to {losses['+ head start']:.2f}.")
    return textwrap.fill(text, 79)


# %% 11. Trained heads
# What do the heads of a model look at? It does not keep its weights of attention. But it asks a
# function of PyTorch to gather. Put version 4 in the place of that for a while, and keep them.


@torch.no_grad()
def weights_of_all_heads(model, idx):
    """What a GPT in eval mode that reads idx (B, T) looks at: for each layer, (B, nh, T, T)."""
    layers = []

    def version_4(q, k, v, **options):                        # (B, nh, T, hs) each
        layers.append(attention_weights(q, k))                # (B, nh, T, T)
        return layers[-1] @ v                                 # (B, nh, T, hs)

    with patch.object(F, "scaled_dot_product_attention", version_4):
        model(idx)
    return layers


def in_words(weights):
    """How far back causal weights (T, T) look, and where; the first token, without a choice, apart.

    >>> in_words(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]))
    'looks 0.9 back on average; 38% to the previous token, 50% to the first'
    """
    places = torch.arange(len(weights))                                 # (T,)
    distance = places[:, None] - places                                 # (T, 1) - (T,) -> (T, T)
    back = (weights * distance)[1:].sum(dim=-1).mean()                  # (T-1, T) -> (T-1,) -> ()
    previous, first = weights.diagonal(-1).mean(), weights[1:, 0].mean()    # (T-1,) -> (), twice
    return (f"looks {back:.1f} back on average; {previous:.0%} to the previous token, "
            f"{first:.0%} to the first")


def show_heads(model, ids, tokenizer):
    """Pictures and words of all heads of a model that reads these token ids, at least 2."""
    print(f"{textwrap.fill(visible(f'It reads {tokenizer.decode(ids)!r}.'), 79)}\n{LEGEND}.\n"
          "Look for a diagonal (a fixed distance back), for columns (a token that many\n"
          "look at), and for single dark cells (content: this one matters to that one).\n"
          "To compare with, a head with equal weights, as in version 3,\n"
          f"{in_words(weights_behind(average_by_matrix, len(ids)))}.")
    for i, layer in enumerate(weights_of_all_heads(model, torch.tensor([ids])), start=1):
        for j, weights in enumerate(layer[0], start=1):       # (nh, T, T), one (T, T) at a time
            heading(f"Layer {i}, head {j}")
            print(picture(weights, [tokenizer.decode([token]) for token in ids]))
            print(f"\nIt {in_words(weights)}.")


def default_prompt(model, tokenizer, most):
    """The ids of ROMEO, `most` of them. A model that lacks its characters writes a text of its own:
    there its heads look at what they know."""
    romeo = "ROMEO:\nBut soft"
    try:
        return tokenizer.encode(romeo)[:most]
    except UserError:
        length = min(most, len(romeo)) - 1                    # and one of the prompt
        return tokenizer.encode(continue_text(model, tokenizer, first_prompt(tokenizer), length))


def show_model(path, prompt=None):
    """The heads of the model at `path`, as it reads `prompt`.

    Raises UserError for a prompt of less than 2 tokens, or of more than fit, and for a model that
    looks at no more than one token.
    """
    model, tokenizer = load_model(path)
    check(model.block_size > 1, f"{path} looks at one token at a time, so there is no past")
    most = min(MOST_TOKENS, model.block_size)
    ids = default_prompt(model, tokenizer, most) if prompt is None else tokenizer.encode(prompt)
    check(2 <= len(ids) <= most, f"the prompt has {len(ids)} tokens; it needs at least 2, and "
          f"{most} fit into {'80 columns' if most == MOST_TOKENS else 'the context'}")
    heading(f"11. Trained heads: {visible(str(path))}")
    show_heads(model, ids, tokenizer)


# %% 12. The run


def run(text, quick=False, seeds=None):
    """All chapters; quick leaves out 10 and 11, and a number of seeds all but 10."""
    tokenizer = build_char_tokenizer(text)
    train_data, val_data = split(torch.tensor(tokenizer.encode(text)))
    config = replace(LADDER, vocab_size=tokenizer.vocab_size)
    check_range("the number of tokens to train on", len(train_data), config.block_size + 1)
    check_range("the number of tokens to validate with", len(val_data), 2)
    if seeds is not None:
        heading("10. The ladder: what each part of a GPT is worth")
        print(f"This takes about {6 * seeds} minutes on two processor cores.\n")
        losses, _ = show_ladder(list(ROWS), train_data, val_data, tokenizer, config, seeds)
        print(f"\n{findings(losses)}")
        return
    for title, *parts in (("1. Tensors", tensor_moves),
                          ("2. An example", show_example),
                          ("3. Version 1: a loop", show_version_1),
                          ("4. Version 2: one matrix product", show_version_2),
                          ("5. Version 3: softmax over a mask", show_version_3),
                          ("6. Version 4: self-attention", show_version_4),
                          ("7. Several heads", why_several_heads, same_as_in_gpt),
                          ("8. Why the scale, and why positions?", why_scale, why_positions),
                          ("9. Why the mask?", partial(why_mask, train_data, val_data, config))):
        heading(title)
        for part in parts:
            part()
    if not quick:
        heading("10. The ladder: its first rows")
        losses, models = show_ladder(FIRST_ROWS, train_data, val_data, tokenizer, config)
        print(f"\n{findings(losses)}\nThe other rows come with --ladder.")
        heading("11. Trained heads: the one of the row with positions")
        show_heads(models["+ positions"], val_data[:24].tolist(), tokenizer)


def command(arguments):
    parser = Parser("attention_toy.py", allow_abbrev=False,
                    description="Four ways to gather the past, and what parts of a GPT are worth.")
    parser.add_argument("--quick", action="store_true", help="leave out what takes half a minute")
    parser.add_argument("--ladder", type=int, nargs="?", const=1, metavar="SEEDS",
                        help="only what each part is worth; about six minutes for a seed")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    parser.add_argument("--model", metavar="RUN",
                        help="only show what the heads of a kept run look at; its name or path")
    parser.add_argument("--prompt", help=r"what it reads, \n is a new line; else ROMEO:\nBut soft, "
                                         r"or a text of its own if it lacks these characters")
    options = parser.parse_args(arguments)
    if options.model is not None:
        check(not options.quick and options.ladder is None and options.text is None,
              "--model only shows that model: it goes without --quick, --ladder and --text")
        prompt = options.prompt and options.prompt.replace(r"\n", "\n")
        show_model(find_run(options.model), prompt)
        return
    check(options.prompt is None, "--prompt is for a trained model; say for which with --model")
    check(not options.quick or options.ladder is None, "--quick leaves out what --ladder shows")
    check(options.ladder is None or options.ladder > 0, "--ladder needs at least 1 seed")
    run(load_text(options.text)[1], options.quick, options.ladder)


if __name__ == "__main__":
    sys.exit(run_cleanly("attention_toy.py", command, sys.argv[1:]))
