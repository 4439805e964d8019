"""Write it yourself: gpt.py with holes, and a check of what you put into them.

    python tests/rebuild.py                     writes the files with holes; later, checks them
    python tests/rebuild.py 9                   checks one exercise (or: pick), and says more
    python tests/rebuild.py --solution 9        shows what the real file has there
    python tests/rebuild.py --start-over 9      makes that hole anew; what was there is saved beside

The first run writes my_gpt.py, my_attention_toy.py and my_bigram.py into the current folder: the
real files, but some functions have lost their bodies, and a comment says what to write there. In
front of some stands a question: predict the answer, and write it down as a value. A warm-up comes
first, and here and there a function that the real files do not have, such as linear_by_hand. The
exercises come in ten phases, but any order will do: while one is checked, everything else is that
of the real files. What you have written is never written over.

How it works. `ast` finds the body of a function, so the holes are made of the files as they are
now. Your function is put among the names of the real module and does the same trials as the real
one, with the same random numbers. If anything differs, the usual mistakes are tried in turn: each
is a small change to the real function. If one does what yours does, its sentence is the answer
("perhaps", if it does so only up to the first trial that went wrong).
"""

import argparse
import ast
import contextlib
import copy
import functools
import importlib
import io
import itertools
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import textwrap
import time
import tokenize
import traceback
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
if __name__ != "__main__":      # the program itself only reads and prints; its child computes
    import gpt
    import torch

SECONDS = 10                    # for the trials of one exercise; what takes longer never ends


# %% The exercises
# Each is a block: the file, the function, what its hole says, and the usual mistakes. A mistake is
# a sentence, then a piece of the real body, and what stands there by mistake; or several pairs of
# these. (The body is as ast.unparse writes it, so comments and line breaks do not matter; not all
# versions of Python write the same brackets around tuples.) Below it are the trials; m holds the
# names of the module, with the learner's function.


class Exercise(NamedTuple):
    number: int
    phase: int
    file: str
    name: str
    task: str
    mistakes: tuple
    trials: Callable
    why: str = ""               # said when it is right

    @property
    def path(self):             # the learner's file
        return Path(f"my_{self.file}.py")


class Trial(NamedTuple):
    """Calls call(**inputs); what comes out must be what comes out of the real function."""

    call: Callable
    inputs: dict


EXERCISES = []
PHASES = []                     # (title, what one can do after it); what follows belongs to it
EXTRAS = []                     # (file, the line before which they stand, what the real one lacks)


def extra(file, before, source):
    """Add a piece to a file, in front of the first line that begins with `before`."""
    EXTRAS.append((file, before, source.strip("\n")))


def exercise(file, name, task, *mistakes, why=""):
    """Makes an exercise of the generator of trials that follows."""
    def add(trials):
        EXERCISES.append(Exercise(len(EXERCISES) + 1, len(PHASES), file, name,
                                  " ".join(task.split()), mistakes, trials, why))
    return add


def prediction(file, before, name, question, answer, why, *mistakes):
    """Makes an exercise of a question, which stands in front of the line `before`."""
    def tidy(value):                    # 4.17 and 4.1744 are both right, (4, 3) and [4, 3] as well
        value = value.tolist() if torch.is_tensor(value) else value
        if isinstance(value, float):
            return float(f"{value:.2g}")
        return tuple(value) if isinstance(value, (list, tuple)) else value

    def trials(m):
        yield Trial(lambda: tidy(getattr(m, name)), {})

    extra(file, before, f"{name} = {answer}")
    pairs = [(sentence, answer, wrong) for sentence, wrong in mistakes]
    exercise(file, name, question, *pairs, why=why)(trials)


def small(**hyperparameters):
    """The configuration of a model that is quick to try everything with."""
    defaults = dict(vocab_size=7, block_size=6, n_layer=2, n_head=2, n_embd=8, batch_size=3,
                    max_steps=5, warmup_steps=2, eval_interval=2, learning_rate=1e-2)
    return gpt.Config(**{**defaults, **hyperparameters})


def noisy(module):
    """The module in eval mode, all its parameters random: zeros and ones would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def numbered(module):
    """The module in eval mode, with parameters that depend on their names, not on their order."""
    torch.default_generator.manual_seed(0)
    for _, parameter in sorted(module.state_dict().items()):
        parameter.copy_(torch.randn(parameter.shape))
    return module.eval()


def parts_of(module):
    """What an __init__ has made."""
    return {"its parameters": {name: list(p.shape) for name, p in module.state_dict().items()},
            "numbers in them": sum(p.numel() for p in module.parameters()),
            "of these, trained": sum(p.numel() for p in module.parameters() if p.requires_grad)}


def tokens(*shape):
    return torch.randint(7, shape)


def flat(model):
    """All parameters of a model as they are now, in a row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# %% Phase 1

PHASES.append(("Tensors", "combine, reorder and index tensors"))

extra("gpt", "# %% 0.", '''
# %% Warm-up: tensors
# Neither of the two warm-ups is part of gpt.py. A tensor is a block of numbers with a shape: (2, 3)
# is a table of 2 rows and 3 columns. Dimensions are counted from 0, or from the end: -1 is the
# last. All numbers of a tensor are of one type, its dtype: float32, int64 (integers), or bool.
#
#     torch.arange(2, 5)            the integers 2, 3, 4: shape (3,)
#     torch.ones(2, 3)              all 1; torch.zeros; torch.full((2, 3), 7.0); dtype=torch.bool
#     x.shape                       (2, 3), to be taken apart: rows, columns = x.shape
#     x[:, None]                    a row (n,) becomes a column (n, 1)
#     x.sum(dim=0)                  adds along the first dimension: (T, C) -> (C,)
#     x.mean(dim=1, keepdim=True)   the means of the rows, kept as a column: (T, C) -> (T, 1)
#     a @ b                         the matrix product: (T, C) @ (C, D) -> (T, D)
#     x.transpose(0, 1)             swaps two dimensions: (2, 3) -> (3, 2)
#     x.reshape(3, 2)               reads all numbers in their order, and cuts them anew
#     torch.cat([a, b], dim=0)      one after the other: two (2, 3) -> (4, 3)
#     torch.stack([a, b], dim=0)    along a new dimension: two (2, 3) -> (2, 2, 3)
#     x[i, j]                       with tensors of integers i, j (n,): n numbers, x at each (i, j)
#     x.masked_fill(m, 0.0)         x, but 0 where m, a tensor of bool, is True
#     torch.sqrt(x), x.exp()        of each number of a tensor; math.sqrt is for a single number
#
# +, * and the like work number by number; a power is x**2. If two shapes differ, they are compared
# from the right, and where one of them has size 1, or no dimension at all, it is repeated. This is
# called broadcasting.
#
# A name with three dots is a question to think about. Predict the answer before you run anything,
# and write it in their place, as in SHAPE_OF_A_SUM = (5, 5).
''')

prediction(
    "gpt", "# %% 0.", "SHAPE_OF_A_SUM", """which shape has torch.ones(4, 1) + torch.ones(3)? Write
    it as a tuple.""", "(4, 3)", "the column is repeated 3 times, the row 4 times",
    ("the column has 4 rows, and it is the row that has 3 columns", "(3, 4)"),
    ("the column is repeated, too: 3 times, to fit the row", "(4, 1)"),
    ("both are repeated, to a table: a column has rows, a row has columns", "(4,)"),
    ("both are repeated, to a table: a column has rows, a row has columns", "(3,)"))

extra("gpt", "# %% 0.", '''
def times_table(n):
    """The products of all pairs of the numbers 1 to n -> (n, n).

    >>> times_table(3)
    tensor([[1, 2, 3],
            [2, 4, 6],
            [3, 6, 9]])
    """
    numbers = torch.arange(1, n + 1)                    # (n,)
    return numbers[:, None] * numbers                   # (n, 1) * (n,) -> (n, n)
''')


@exercise(
    "gpt", "times_table", """Make the numbers 1 to n. A column of them times a row of them is a
    table; no loop is needed.""",
    ("the numbers must begin with 1; arange(n) begins with 0", "1, n + 1", "n"),
    ("arange stops before its end, so n is missing", "1, n + 1", "1, n"),
    ("a row times a row multiplies number by number; one of the two must be a column, (n, 1)",
     "[:, None]", ""),
    ("these are sums, not products", "] * numbers", "] + numbers"))
def _(m):
    for n in (3, 5, 1):
        yield Trial(m.times_table, {"n": n})


extra("gpt", "# %% 0.", '''
def weighted_sum(weights, x):
    """Each row of x times its weight, all added up: weights (T,), x (T, C) -> (C,).

    >>> weighted_sum(torch.tensor([1, 10]), torch.tensor([[1, 2, 3], [4, 5, 6]]))
    tensor([41, 52, 63])
    """
    return (weights[:, None] * x).sum(dim=0)            # (T, 1) * (T, C) -> (T, C) -> (C,)
''')


@exercise(
    "gpt", "weighted_sum", """Multiply and add up, without a loop. (`weights @ x` does it in one;
    try it by hand first.)""",
    ("each row has one weight, so the weights must be a column, (T, 1)", "[:, None]", ""),
    ("the rows must be added up, so the sum runs over dim=0", "dim=0", "dim=1"),
    ("all numbers were added up; the sum runs over dim=0 only", "dim=0", ""),
    ("the mean came out, not the sum", ".sum(", ".mean("))
def _(m):
    for T, C in ((3, 3), (2, 4), (1, 2)):
        yield Trial(m.weighted_sum, dict(weights=torch.randn(T), x=torch.randn(T, C)))


prediction(
    "gpt", "# %% 0.", "FIRST_ROW", """x is [[1, 2, 3], [4, 5, 6]]. What is the first row of
    x.reshape(3, 2)? Write it as a tuple.""", "(1, 2)",
    "reshape reads 1 2 3 4 5 6, row by row, and cuts it anew",
    ("this is the first row of x.transpose(0, 1); reshape reads 1 2 3 4 5 6 and cuts it anew",
     "(1, 4)"),
    ("the rows have 2 numbers each", "(1, 2, 3)"))

extra("gpt", "# %% 0.", '''
def side_by_side(heads):
    """For each of T tokens, what all nh heads found, side by side: (nh, T, hs) -> (T, nh * hs).

    >>> side_by_side(torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]))
    tensor([[1, 2, 5, 6],
            [3, 4, 7, 8]])
    """
    nh, T, hs = heads.shape
    return heads.transpose(0, 1).reshape(T, nh * hs)    # (nh, T, hs) -> (T, nh, hs) -> (T, nh*hs)
''')


@exercise(
    "gpt", "side_by_side", """First bring T to the front, then make one dimension of the other
    two. The order matters: reshape never moves a number past another one.""",
    ("reshape alone reads head after head, so tokens are mixed; swap nh and T first",
     ".transpose(0, 1)", ""),
    ("the numbers of the heads take turns; those of one head must stay together",
     ".transpose(0, 1)", ".permute(1, 2, 0)"),
    ("transpose(0, 2) brings the numbers of a head to the front; T is wanted there: (0, 1)",
     ".transpose(0, 1)", ".transpose(0, 2)"),
    ("nh and hs are still two dimensions; reshape makes one of them", ".reshape(T, nh * hs)", ""))
def _(m):
    for shape in ((2, 2, 2), (3, 2, 4), (1, 3, 2)):
        yield Trial(m.side_by_side, {"heads": torch.arange(math.prod(shape)).view(shape)})


extra("gpt", "# %% 0.", '''
def pick(table, ids):
    """One number of each row, the one in the column ids[row]: table (N, V), ids (N,) -> (N,).

    >>> pick(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([2, 0]))
    tensor([3, 4])
    """
    return table[torch.arange(len(ids)), ids]           # (N, V)[(N,), (N,)] -> (N,)
''')


@exercise(
    "gpt", "pick", """Index by two tensors of integers: one says in which rows to look, the other
    in which columns.""",
    ("table[:, ids] looks up all these columns in all rows; the rows need a tensor, too",
     "torch.arange(len(ids)), ids", ":, ids"),
    ("table[ids] looks up whole rows; the ids are columns", "torch.arange(len(ids)), ids", "ids"),
    ("rows come first, then columns", "torch.arange(len(ids)), ids", "ids, torch.arange(len(ids))"))
def _(m):
    for N, V in ((3, 3), (2, 5), (4, 2)):
        yield Trial(m.pick, dict(table=torch.randn(N, V), ids=torch.randint(V, (N,))))


# %% Phase 2

PHASES.append(("Modules and layers", "write a layer from its formula"))

extra("gpt", "# %% 0.", '''
# %% Warm-up: modules and layers
# A module is a function with numbers of its own, its parameters, which training changes. They are
# made in __init__ (after super().__init__(), which prepares the bookkeeping) and must be
# nn.Parameter(a tensor), so that the optimizer finds them. The method forward does the computing;
# module(x) calls it. PyTorch has all of these layers; here you write them yourself.
''')

prediction(
    "gpt", "# %% 0.", "NUMBERS_IN_A_LINEAR", """nn.Linear(3, 5) turns 3 numbers into 5: each is a
    weighted sum of the 3, plus a number of its own, the bias. How many parameters is that?""",
    "20", "5 rows of 3 weights, and 5 biases",
    ("each of the 5 has a bias as well", "15"),
    ("the biases belong to what comes out, so there are 5 of them", "18"))

extra("gpt", "# %% 0.", '''
class LinearByHand(nn.Module):
    """nn.Linear: C numbers become D, each a weighted sum of the C, plus a bias.

    Parameters: weight (D, C), at first random with a standard deviation of 1/sqrt(C), and bias
    (D,), at first 0. Without a bias, self.bias is None.
    """

    def __init__(self, C, D, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, C) / math.sqrt(C))
        self.bias = nn.Parameter(torch.zeros(D)) if bias else None

    def forward(self, x):
        """x (..., C) -> (..., D)."""
        y = x @ self.weight.T                           # (..., C) @ (C, D) -> (..., D)
        return y if self.bias is None else y + self.bias
''')


UNIFORM = "torch.rand is uniform, from 0 to 1; torch.randn is normal, with a standard deviation of 1"


@exercise(
    "gpt", "LinearByHand.__init__", """super().__init__(), then the two parameters. torch.randn
    makes random numbers with a standard deviation of 1.""",
    ("a plain tensor is no parameter; nn.Parameter makes one of it",
     "nn.Parameter(torch.randn(D, C) / math.sqrt(C))", "torch.randn(D, C) / math.sqrt(C)"),
    ("a plain tensor is no parameter; nn.Parameter makes one of it",
     "nn.Parameter(torch.randn(D, C) / math.sqrt(C))", "torch.randn(D, C) / math.sqrt(C)",
     "nn.Parameter(torch.zeros(D))", "torch.zeros(D)"),
    ("self.weight is a plain tensor: what is computed from an nn.Parameter is no longer one; divide "
     "first, then wrap", "(torch.randn(D, C) / math.sqrt(C))", "(torch.randn(D, C)) / math.sqrt(C)"),
    (UNIFORM, "randn", "rand"),
    ("the weights are (D, C), as in nn.Linear: a row for each number that comes out",
     "torch.randn(D, C)", "torch.randn(C, D)"),
    ("the weights are too large; their standard deviation is 1/sqrt(C)", " / math.sqrt(C)", ""),
    ("the standard deviation is 1/sqrt(C), not 1/C", "math.sqrt(C)", "C"),
    ("the bias is 0 at first", "torch.zeros(D)", "torch.randn(D)"),
    ("with bias=False, self.bias must be None", " if bias else None", ""),
    ("with bias=False, self.bias must be there, too: None",
     "self.bias = nn.Parameter(torch.zeros(D)) if bias else None",
     "if bias:\n    self.bias = nn.Parameter(torch.zeros(D))"),
    ("super().__init__() must come first", "super().__init__()", "pass"))
def _(m):
    def look(C, D, bias):
        layer = m.LinearByHand(C, D, bias)
        return {**parts_of(layer), "self.bias": None if layer.bias is None else layer.bias,
                "self.weight wants a gradient": layer.weight.requires_grad,
                "standard deviation * sqrt(C)": round(layer.weight.std().item() * C**0.5, 1)}

    for C, D, bias in ((200, 100, True), (50, 300, False)):
        yield Trial(look, dict(C=C, D=D, bias=bias))


@exercise(
    "gpt", "LinearByHand.forward", """A matrix product, and the bias, if there is one. Mind the
    shapes: x ends with C, and the weights are (D, C). .T swaps the dimensions of a matrix.""",
    ("the weights must be transposed: (..., C) @ (C, D)", ".T", ""),
    ("x comes first: x @ self.weight.T", "x @ self.weight.T", "self.weight @ x"),
    ("x comes first: x @ self.weight.T", "x @ self.weight.T", "self.weight.T @ x"),
    ("the bias is not added", "y if self.bias is None else y + self.bias", "y"),
    ("without a bias, there is nothing to add", "y if self.bias is None else y + self.bias",
     "y + self.bias"))
def _(m):
    for C, D, bias, shape in ((3, 3, True, (2, 3)), (3, 2, True, (2, 4, 3)), (2, 4, False, (2,))):
        layer = noisy(m.LinearByHand(C, D, bias))
        yield Trial(lambda x, **_: layer(x), {"x": torch.randn(shape), **layer.state_dict()})


extra("gpt", "# %% 0.", '''
class EmbeddingByHand(nn.Module):
    """nn.Embedding: a table with a row of C numbers for each of V tokens. Ids look up their rows.

    Parameter: weight (V, C), at first random with a standard deviation of 1.
    """

    def __init__(self, V, C):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(V, C))

    def forward(self, idx):
        """idx (...) int64 -> (..., C)."""
        return self.weight[idx]                         # (V, C)[(...)] -> (..., C)
''')


@exercise(
    "gpt", "EmbeddingByHand.__init__", """super().__init__(), then the parameter.""",
    ("a plain tensor is no parameter; nn.Parameter makes one of it", "nn.Parameter", ""),
    ("the table has a row for each token: (V, C)", "torch.randn(V, C)", "torch.randn(C, V)"),
    (UNIFORM, "randn", "rand"),
    ("the numbers are at first random, or all tokens would stay alike", "randn", "zeros"))
def _(m):
    def look(V, C):
        layer = m.EmbeddingByHand(V, C)
        return {**parts_of(layer), "standard deviation": round(layer.weight.std().item(), 1)}

    yield Trial(look, dict(V=300, C=100))


@exercise(
    "gpt", "EmbeddingByHand.forward", """Index the table by a tensor of integers. It may have any
    shape; that of the result begins with it.""",
    ("rows must be looked up, not columns", "[idx]", "[:, idx]"),
    ("the shape of idx is lost; index by idx as it is", "[idx]", "[idx.flatten()]"))
def _(m):
    for shape in ((3,), (2, 4), ()):
        layer = noisy(m.EmbeddingByHand(7, 3))
        yield Trial(lambda idx, **_: layer(idx), {"idx": tokens(*shape), **layer.state_dict()})


extra("gpt", "# %% 0.", '''
def layer_norm_by_hand(x, gain, bias):
    """nn.LayerNorm: brings the C numbers of each token to mean 0 and variance 1, then times gain,
    plus bias: x (..., C), gain and bias (C,) -> (..., C).

        (x - mean) / sqrt(variance + 0.00001) * gain + bias
    """
    mean = x.mean(dim=-1, keepdim=True)                             # (..., C) -> (..., 1)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)         # (..., C) -> (..., 1)
    return (x - mean) / (variance + 1e-5).sqrt() * gain + bias      # -> (..., C)
''')


@exercise(
    "gpt", "layer_norm_by_hand", """Mean and variance of the last dimension, for each token by
    itself; keepdim=True keeps it, with size 1. The variance is the mean of `(x - mean)**2`.""",
    ("this variance divides by C - 1; it must be C, see correction= of var",
     "((x - mean) ** 2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True)"),
    ("mean and variance of a token must stay a column: keepdim=True", ", keepdim=True", ""),
    ("each token must be normalized by itself: dim=-1", "mean(dim=-1, keepdim=True)", "mean()"),
    ("mean and variance need dim=-1: over the numbers of a token, not over tokens",
     "dim=-1", "dim=0"),
    ("you divide by the variance; divide by its square root", ".sqrt()", ""),
    ("x - mean**2 squares the mean alone; square the whole bracket, (x - mean)**2",
     "((x - mean) ** 2)", "(x - mean ** 2)"),
    ("0.00001 is missing; if all numbers are alike, it divides by 0", " + 1e-05", ""),
    ("0.00001 belongs under the root", "(variance + 1e-05).sqrt()", "(variance.sqrt() + 1e-05)"),
    ("the mean is not subtracted", "return (x - mean)", "return x"),
    ("the gain multiplies, the bias is added", "* gain + bias", "* bias + gain"),
    ("only the gain multiplies; the bias is added afterwards", "* gain + bias", "* (gain + bias)"),
    ("gain and bias are missing", " * gain + bias", ""))
def _(m):
    for shape, size in (((2, 4), 1.0), ((2, 3, 5), 1e-3), ((1, 3), 0.0)):
        C = shape[-1]
        yield Trial(m.layer_norm_by_hand, dict(x=size * torch.randn(shape), gain=torch.randn(C),
                                               bias=torch.randn(C)))


extra("gpt", "# %% 0.", '''
def gelu_by_hand(x):
    """x * (the probability that a normally distributed number is below x), for each number of x.

    This probability is (1 + erf(x / sqrt(2))) / 2.
    """
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2
''')


@exercise(
    "gpt", "gelu_by_hand", """One line; torch.erf is the error function.""",
    ("this is the probability; x times the probability is wanted", "x * (", "("),
    ("x must be divided by sqrt(2) in erf", " / math.sqrt(2)", ""),
    ("divide by 2: a probability is 1 at most", "math.sqrt(2))) / 2", "math.sqrt(2)))"),
    ("this is the tanh approximation; the formula with torch.erf is wanted",
     "x * (1 + torch.erf(x / math.sqrt(2))) / 2", "F.gelu(x, approximate='tanh')"),
    ("this is ReLU", "x * (1 + torch.erf(x / math.sqrt(2))) / 2", "x.clamp(min=0)"))
def _(m):
    for shape in ((5,), (2, 3)):
        yield Trial(m.gelu_by_hand, {"x": 2 * torch.randn(shape)})


# %% Phase 3

PHASES.append(("Text and batches", "make examples of a text"))


@exercise(
    "gpt", "CharTokenizer.encode", """self.ids has the id of each character. Raise ValueError if one
    is not in it.""",
    ("an unknown character must raise ValueError", "if (unknown", "if False and (unknown"),
    ("unknown characters are left out without a word", "if (unknown", "if False and (unknown",
     "for character in text]", "for character in text if character in self.ids]"),
    ("these are the numbers of Unicode; use self.ids", "self.ids[character]", "ord(character)"))
def _(m):
    for text in ("hello", "", "he hole", "help"):
        yield Trial(m.CharTokenizer("ehlo ").encode, {"text": text})


@exercise(
    "gpt", "CharTokenizer.decode", """The way back: self.vocabulary has each character at the place
    that is its id.""",
    ("a list came out; join the characters", "''.join(", "list("),
    ("these are the characters of Unicode; use self.vocabulary", "self.vocabulary[i]", "chr(i)"))
def _(m):
    for ids in ([1, 0, 2, 2, 3], [], [4, 4, 1]):
        yield Trial(m.CharTokenizer("ehlo ").decode, {"ids": ids})


@exercise(
    "gpt", "build_char_tokenizer", """CharTokenizer wants a str that has each character of the text
    once, in sorted order.""",
    ("a character is there more than once; a set has each once", "set(text)", "text"),
    ("the characters are not sorted", "sorted(set(text))", "dict.fromkeys(text)"),
    ("a list of characters is no str; join them", "''.join(sorted(set(text)))",
     "sorted(set(text))"))
def _(m):
    for text in ("hello", "to be or not to be", ""):
        yield Trial(lambda text: m.build_char_tokenizer(text).vocabulary, {"text": text})


@exercise(
    "gpt", "split", """The first part has int(0.9 * length) tokens, or all but 200,000 if that is
    more.""",
    ("the parts are swapped", "text[:n], text[n:]", "text[n:], text[:n]"),
    ("of a long text, only 200,000 are held out", "len(text) - 200000", "0"),
    ("of a short text, a tenth is held out", "int(0.9 * len(text))", "0"))
def _(m):
    for text in ("0123456789", list(range(37)), range(2_345_678)):
        yield Trial(m.split, {"text": text})


prediction(
    "gpt", "def get_batch(", "NUMBER_OF_STARTS", """data has 10 tokens, and T = 4. At how many
    positions can a sequence begin, if each of its 4 tokens needs the next one as its target?""",
    "6", "the positions 0 to 5: from there on, at least 5 tokens are left",
    ("the last token needs a target, too: a window takes 5 tokens", "7"),
    ("a window takes 5 tokens; count the positions 0, 1, ... again", "5"))


@exercise(
    "gpt", "get_batch", """If there are too few tokens, ValueError. Give a torch.Generator() a seed
    of its own for each step and each config.seed, such as 1_000_003 * config.seed + step. With it,
    draw B positions where T + 1 tokens begin. data[positions] looks up a whole table (B, T+1) at
    once.""",
    ("the targets are not shifted; they are one token later", "windows[:, 1:]", "windows[:, :-1]"),
    ("the ids must be int64: .long()", ".long()", ""),
    ("each step has the same batch; the seed must depend on it", " + step", ""),
    ("config.seed has no effect; the seed must depend on it", "1000003 * config.seed + ", ""),
    ("config.seed + 1 has the same batches, one step earlier; multiply it by a large number",
     "1000003 * config.seed", "config.seed"),
    ("all rows of a batch begin at the same position; draw B positions",
     "(B, 1), generator=generator)", "(1, 1), generator=generator).expand(B, 1)"),
    ("the positions are not random; draw them with torch.randint", "torch.randint(",
     "(lambda n, shape, generator: (step * B + torch.arange(B)[:, None]) % n)("),
    ("the last token is in no batch; count again at how many positions a row can begin",
     "randint(len(data) - T,", "randint(len(data) - T - 1,"),
    ("the same step must give the same batch; randint has generator=", ", generator=generator", ""),
    ("torch.manual_seed changes what all others draw, too; make a torch.Generator() of your own",
     "torch.Generator().manual_seed", "torch.manual_seed"),
    ("T tokens or fewer must raise ValueError", "if len(data) <= T", "if False"))
def _(m):
    def look(data, step, config):
        x, y = m.get_batch(data, step, config)
        many = small(batch_size=64, block_size=config.block_size)
        first = torch.stack([m.get_batch(data, step, many)[0][:, 0] for step in range(12)])
        return {"the shapes of inputs and targets": [list(x.shape), list(y.shape)],
                "their types": [x.dtype, y.dtype],
                "the inputs are in a row in data": bool((x.diff(dim=1) == 1).all()),
                "the targets minus the inputs": y.long() - x.long(),
                "the first inputs, from to": [first.min().item(), first.max().item()]}

    def chance(data, config):
        before = torch.get_rng_state()
        steps = torch.stack([m.get_batch(data, step, config)[0][:, 0] for step in range(12)])
        again = m.get_batch(data, 7, config)[0][:, 0]
        other = m.get_batch(data, 7, small(seed=config.seed + 1))[0][:, 0]
        return {"the same step gives the same batch": torch.equal(again, steps[7]),
                "another config.seed gives another batch": not torch.equal(other, steps[7]),
                "and not that of the next step": not torch.equal(other, steps[8]),
                "rows are at random distances": len(steps.diff(dim=1).unique()) > 5,
                "steps are at random distances": len(steps.diff(dim=0).unique()) > 5,
                "others draw as before": torch.equal(before, torch.get_rng_state())}

    for B, T in ((1, 3), (4, 6)):
        yield Trial(look, dict(data=torch.arange(T + 3, dtype=torch.uint8), step=3,
                               config=small(batch_size=B, block_size=T)))
    yield Trial(chance, dict(data=torch.arange(250), config=small()))
    yield Trial(look, dict(data=torch.arange(6), step=0, config=small(block_size=6)))


# %% Phase 4

PHASES.append(("Bigram", "say what a loss is, and its gradient"))

extra("gpt", "def next_token_loss(", '''
def softmax_by_hand(logits):
    """F.softmax over the last dimension: exp(logit) / (the sum of exp(logit) over the row).

    Subtract the largest logit of the row first. Nothing changes, but no exp becomes infinite.
    """
    powers = (logits - logits.amax(dim=-1, keepdim=True)).exp()     # (..., V) - (..., 1)
    return powers / powers.sum(dim=-1, keepdim=True)                # (..., V) / (..., 1)


def cross_entropy_by_hand(logits, targets):
    """F.cross_entropy: the mean of -ln(the probability of the target), (N, V), (N,) -> ()."""
    log_probs = logits - logits.logsumexp(dim=-1, keepdim=True)     # (N, V) - (N, 1)
    return -log_probs[torch.arange(len(targets)), targets].mean()   # (N,) -> ()
''')


@exercise(
    "gpt", "softmax_by_hand", """amax has the largest number of each row, exp() and sum() do the
    rest. keepdim=True keeps what is computed for a row as a column.""",
    ("exp(100) is infinite in 32 bits, and inf / inf is nan; subtract the largest logit first",
     " - logits.amax(dim=-1, keepdim=True)", ""),
    ("the sums must stay a column: keepdim=True", ".sum(dim=-1, keepdim=True)", ".sum(dim=-1)"),
    ("each row must sum to 1: dim=-1", ".sum(dim=-1, keepdim=True)", ".sum()"),
    ("each row must sum to 1: dim=-1", ".sum(dim=-1", ".sum(dim=0"),
    ("each row must be divided by its sum", " / powers.sum(dim=-1, keepdim=True)", ""))
def _(m):
    for shape, size in (((3, 3), 1), ((2, 3, 5), 1), ((2, 4), 200)):
        yield Trial(m.softmax_by_hand, {"logits": size * torch.randn(shape)})


@exercise(
    "gpt", "cross_entropy_by_hand", """The logarithm of a probability is its logit minus
    logsumexp(dim=-1) of the row (or use softmax and log). Pick that of the target in each row.""",
    ("the sign is wrong: logarithms of probabilities are negative, a loss is not", "-log", "log"),
    ("the mean is wanted, not the sum", ".mean()", ".sum()"),
    ("these are probabilities; their logarithms are wanted",
     "logits - logits.logsumexp(dim=-1, keepdim=True)", "logits.softmax(dim=-1)"),
    ("softmax is missing: logits are no logarithms of probabilities yet",
     " - logits.logsumexp(dim=-1, keepdim=True)", ""),
    ("only the target counts in each row; see the exercise pick",
     "[torch.arange(len(targets)), targets]", ""))
def _(m):
    for N, V in ((1, 2), (3, 3), (4, 7)):
        yield Trial(m.cross_entropy_by_hand, dict(logits=3 * torch.randn(N, V),
                                                  targets=torch.randint(V, (N,))))


@exercise(
    "gpt", "next_token_loss", """F.cross_entropy does all, the softmax too. It wants a list of
    predictions (B*T, V) and one of targets (B*T,). flatten(0, 1) makes one dimension of two.""",
    ("the logits are not flattened: F.cross_entropy takes T for the vocabulary",
     ".flatten(0, 1), targets.flatten()", ", targets"),
    ("F.cross_entropy does the softmax itself; give it the logits",
     "logits.flatten(0, 1)", "logits.flatten(0, 1).softmax(dim=-1)"))
def _(m):
    for B, T, V in ((1, 2, 3), (2, 5, 7), (4, 1, 2)):
        yield Trial(m.next_token_loss, dict(logits=torch.randn(B, T, V),
                                            targets=torch.randint(V, (B, T))))


prediction(
    "gpt", "class BigramLanguageModel(", "FIRST_LOSS", """a model knows nothing yet, so it gives the
    same probability to each of 65 tokens. What is its loss? (You may write a formula.)""",
    "math.log(65)", "-ln(1 / 65) = ln(65)",
    ("this is the probability; the loss is -ln of it", "1 / 65"),
    ("a loss is positive: -ln(1 / 65)", "-math.log(65)"),
    ("the loss is in nats, so take the natural logarithm", "math.log2(65)"),
    ("this is the perplexity; the loss is its logarithm", "65"))


@exercise(
    "gpt", "BigramLanguageModel.forward", """self.table(idx) looks up a row of logits for each
    token. next_token_loss knows the rest.""",
    ("without targets, the loss is None", "None if targets is None else ", ""),
    ("these are probabilities; logits come before the softmax", "(idx)", "(idx).softmax(dim=-1)"))
def _(m):
    model = noisy(m.BigramLanguageModel(7))
    for inputs in (dict(idx=tokens(1, 2), targets=tokens(1, 2)),
                   dict(idx=tokens(2, 5), targets=tokens(2, 5)), dict(idx=tokens(3, 4))):
        yield Trial(model, inputs)


@exercise(
    "bigram", "gradient_by_hand", """For each of N = B*T positions: the probabilities (N, V) minus
    the one-hot vectors of the targets. Add up these rows, each into the row of the table that its
    token looked up: index_add, or a product with F.one_hot(idx, V). Divide by N.""",
    ("the mean loss is wanted, so divide by the number of positions", " / len(idx)", ""),
    ("the sign is wrong: probabilities minus one-hot", "probs - F.one_hot(targets, len(table))",
     "F.one_hot(targets, len(table)) - probs"),
    ("idx and targets are swapped: targets are the columns, idx the rows",
     "(0, idx, errors)", "(0, targets, errors)", "one_hot(targets,", "one_hot(idx,"),
    ("softmax must run over each row: dim=-1", "dim=-1", "dim=0"),
    ("softmax is missing: the logits must become probabilities", "F.softmax(table[idx], dim=-1)",
     "table[idx]"),
    ("of positions with the same token only one counts; add them all up",
     "index_add(0, idx, errors)", "index_copy(0, idx, errors)"))
def _(m):
    for V, B, T in ((3, 1, 2), (4, 2, 5), (7, 3, 1)):
        yield Trial(m.gradient_by_hand, dict(table=torch.randn(V, V), idx=torch.randint(V, (B, T)),
                                             targets=torch.randint(V, (B, T))))


@exercise(
    "bigram", "count_pairs", """Without a loop: number the pairs from 0 to V*V - 1, in the order in
    which the table has them, and let torch.bincount count the numbers.""",
    ("the table is transposed: row i is the token before, column j the one after it",
     "vocab_size * tokens[:-1] + tokens[1:]", "tokens[:-1] + vocab_size * tokens[1:]"),
    ("a pair counts once only: counts[a, b] += 1 adds 1 to each place, however often it is named",
     "torch.bincount(pairs, minlength=vocab_size ** 2)",
     "torch.zeros(vocab_size ** 2, dtype=torch.int64).index_fill(0, pairs, 1)"),
    ("the last pairs may never occur; bincount has minlength", ", minlength=vocab_size ** 2", ""))
def _(m):
    for V, N in ((2, 6), (5, 30), (9, 12)):
        yield Trial(m.count_pairs, dict(tokens=torch.randint(V, (N,)), vocab_size=V))


# %% Phase 5

PHASES.append(("Attention", "write self-attention with several heads"))


def try_average(average):
    for shape in ((1, 3, 2), (2, 5, 4), (1, 1, 3)):
        yield Trial(average, {"x": torch.randn(shape)})


@exercise(
    "attention_toy", "average_by_loop", """For each position t, take the mean over dim=1 of the
    tokens 0 to t; stack these means.""",
    ("a token sees itself, too; x[:, :t] ends before it", ":t + 1", ":t"),
    ("each token sees the whole text, its future too", ":t + 1", ":"),
    ("each token sees its future; x[:, :t + 1] has those before it, and itself", ":t + 1", "t:"),
    ("the mean is over the channels; time is dim=1", ".mean(dim=1)", ".mean(dim=-1)"),
    ("the sum came out, not the mean", ".mean(dim=1)", ".sum(dim=1)"),
    ("the means were stacked along dim=0; time is dim=1", "(means, dim=1)", "(means, dim=0)"))
def _(m):
    return try_average(m.average_by_loop)


@exercise(
    "attention_toy", "average_by_matrix", """The weights are a matrix (T, T): 1 / (t + 1) in the
    columns 0 to t of row t, 0 after them. tril() keeps a lower triangle. One product with x.""",
    ("the triangle is upside down: a token sees its future, not its past", ".tril()", ".triu()"),
    ("the columns were divided by their sums; it is the rows that must sum to 1", "sum(dim=1",
     "sum(dim=0"),
    ("to divide rows, the sums must be a column (T, 1): keepdim=True", ", keepdim=True", ""),
    ("the sums came out; divide each row of weights by its sum",
     "/ ones.sum(dim=1, keepdim=True)", ""),
    ("tril(-1) leaves out the diagonal, but a token sees itself, too", ".tril()", ".tril(-1)"),
    ("torch.arange(T) begins with 0, and is a row; divide row t by t + 1",
     "ones.sum(dim=1, keepdim=True)", "torch.arange(T)"),
    ("the weights come first: (T, T) @ (B, T, C)", "weights @ x", "x @ weights"))
def _(m):
    return try_average(m.average_by_matrix)


extra("gpt", "def one_head(", '''
def causal_mask(T):
    """Which scores must be hidden: (T, T) bool, at [t, s] True if token s comes after token t.

    >>> causal_mask(3)
    tensor([[False,  True,  True],
            [False, False,  True],
            [False, False, False]])
    """
    return torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)
''')


MAKE_BOOL = "dtype=torch.bool makes it so, or a comparison (>)"


@exercise(
    "gpt", "causal_mask", """triu(diagonal=1) keeps what is above the diagonal of a table, such as
    one of ones; or compare a row of positions with a column of them.""",
    ("it is the past that is marked; it must be the future", "triu(diagonal=1)",
     "tril(diagonal=-1)"),
    ("what may be seen is marked; mark what must be hidden", "return torch", "return ~torch"),
    ("a token may see itself; the future begins above the diagonal", "diagonal=1", "diagonal=0"),
    (f"the mask must be bool; {MAKE_BOOL}", ", dtype=torch.bool", ""))
def _(m):
    for T in (3, 5, 1):
        yield Trial(m.causal_mask, {"T": T})


MASK_MISTAKES = (
    ("the mask is on the wrong side: it hides the past and shows the future",
     "triu(diagonal=1)", "tril(diagonal=-1)"),
    ("the mask is inverted: it hides what may be seen; the last token sees nothing, which makes nan",
     "triu(diagonal=1)", "tril()"),
    ("the mask hides each token from itself; the future begins above the diagonal",
     "diagonal=1", "diagonal=0"),
    ("nan: 0 * -inf is nan; use masked_fill (with a bool mask) or torch.full((T, T), -math.inf)",
     "diagonal=1", "diagonal=-99"),             # the same comes out if all is hidden
    ("softmax is over the wrong dimension; each row must sum to 1, so dim=-1", "dim=-1", "dim=-2"))


@exercise(
    "attention_toy", "average_by_softmax", """All scores are 0; those of the future become
    -math.inf: add `torch.full((T, T), -math.inf).triu(diagonal=1)`, or use masked_fill with a bool
    mask. (Make it here; causal_mask is in my_gpt.py.) Softmax makes the weights.""",
    ("softmax is missing: scores are no weights yet", "F.softmax(scores, dim=-1)", "scores"),
    ("there is no mask; a score of 0 is no weight of 0, but -math.inf is", "-math.inf", "0.0"),
    *MASK_MISTAKES)
def _(m):
    return try_average(m.average_by_softmax)


ATTENTION_MISTAKES = (
    ("there is no mask: each token sees its future", ".masked_fill(future, -math.inf)", ""),
    ("a score of 0 is no weight of 0; where the future is, it must be -math.inf", "-math.inf", "0.0"),
    *MASK_MISTAKES,
    ("each row must still sum to 1: mask the scores, not the weights", "F.softmax(",
     "(lambda s, dim: s)(", ".masked_fill(future, -math.inf)", ".softmax(dim=-1).tril()"),
    ("the scores are not divided by sqrt(hs)", "math.sqrt(", "pow(1, "),
    ("the scores are divided by hs, not by its square root", "math.sqrt(", "float("),
    ("the scores are multiplied by sqrt(hs), not divided by it", "/ math.sqrt(", "* math.sqrt("),
    ("softmax is over the wrong dimension; each row must sum to 1, so dim=-1", "dim=-1", "dim=None"),
    ("the scores are transposed: row t is what the query of t finds", "q @ k", "k @ q"))


def swapped(right, *wrong):
    """The mistakes of those who swap other dimensions of k."""
    return [(f"only the last two dimensions of k must swap: {right}", f"k.{right}", f"k.{other}")
            for other in ("permute(*range(k.dim())[::-1])", "transpose(0, 1)", *wrong)]     # k.T


@exercise(
    "attention_toy", "attention_weights", """The scores of all pairs: q @ (k with its last two
    dimensions swapped) / sqrt(hs). Count dimensions from the end: what comes before T may be B, or
    B and nh. Then the mask (make it anew; causal_mask is in my_gpt.py) and the softmax.""",
    *ATTENTION_MISTAKES, *swapped("transpose(-2, -1)", "transpose(1, 2)"))
def _(m):
    for shape in ((1, 3, 2), (2, 5, 3), (2, 4, 3, 5)):
        yield Trial(m.attention_weights, dict(q=torch.randn(shape), k=torch.randn(shape)))


def try_head(head):
    for B, T, C, hs in ((1, 3, 4, 2), (2, 5, 4, 3), (3, 1, 4, 4)):
        w_query, w_key, w_value = torch.randn(3, C, hs)
        yield Trial(head, dict(x=torch.randn(B, T, C), w_query=w_query, w_key=w_key,
                               w_value=w_value))


HEAD_MISTAKES = (
    ("keys are handed over in place of values", "weights @ v", "weights @ k"),
    ("x is handed over in place of values", "weights @ v", "weights @ x"),
    ("* works number by number; @ makes weighted sums of the values", "weights @ v", "weights * v"),
    ("the matrices are (C, hs) already; do not transpose them", *(
        word for name in ("query", "key", "value") for word in (f"x @ w_{name}", f"x @ w_{name}.T"))))


@exercise(
    "attention_toy", "self_attention", """Queries, keys and values are products with x. With them,
    attention_weights, and a weighted sum.""",
    *HEAD_MISTAKES,
    ("queries and keys are swapped", "attention_weights(q, k)", "attention_weights(k, q)"))
def _(m):
    return try_head(m.self_attention)


prediction(
    "gpt", "def one_head(", "SHAPE_OF_SCORES", """q and k are (2, 5, 3): B = 2 sequences of T = 5
    tokens, hs = 3 numbers for each. Which shape has q @ k.transpose(1, 2)?""", "(2, 5, 5)",
    "in each sequence, 5 queries meet 5 keys",
    ("this is q.transpose(1, 2) @ k; a score belongs to two tokens, not to two channels",
     "(2, 3, 3)"),
    ("(2, 5, 3) @ (2, 3, 5): the 3 in the middle are summed over", "(2, 5, 3)"),
    ("the sequences of a batch stay apart: the first dimension is B", "(5, 5)"))


@exercise(
    "gpt", "one_head", """The same as attention_weights and self_attention of attention_toy.py, now in
    one function: queries, keys, values; the scores of all pairs, / sqrt(hs); -math.inf for the future;
    softmax; a weighted sum of the values.""",
    ("the scores are divided by sqrt(C), not sqrt(hs)", "sqrt(", "sqrt(x.shape[-1] + 0 * "),
    ("len(x) is B, the number of sequences; the mask needs T, which is x.shape[1]",
     "torch.ones_like(scores, dtype=torch.bool).triu(diagonal=1)", "causal_mask(len(x))"),
    *HEAD_MISTAKES, *ATTENTION_MISTAKES, *swapped("transpose(1, 2)"))
def _(m):
    return try_head(m.one_head)


@exercise(
    "gpt", "several_heads", """heads is a list; each entry has the three matrices of one head. Let
    one_head find a result with each, put these side by side, and multiply by the projection.""",
    ("the results must be side by side, along the last dimension", "dim=-1", "dim=1"),
    ("the results were added up; torch.cat puts them side by side", "torch.cat(results, dim=-1)",
     "sum(results)"),
    ("torch.stack makes a new dimension; torch.cat puts the results side by side",
     "torch.cat(results, dim=-1)", "torch.stack(results, dim=-1)"),
    ("the projection is missing", " @ projection", ""),
    ("the projection is (inputs, outputs) already; do not transpose it", "projection",
     "projection.T"),
    ("the first head must stand on the left", "for matrices in heads", "for matrices in heads[::-1]"))
def _(m):
    for B, T, nh, hs in ((1, 3, 2, 2), (2, 4, 3, 1), (2, 2, 1, 4)):
        C = nh * hs
        heads = [tuple(torch.randn(3, C, hs)) for _ in range(nh)]
        yield Trial(m.several_heads, dict(x=torch.randn(B, T, C), heads=heads,
                                          projection=torch.randn(C, C)))


TOKENS_AT_TOKENS = "T and nh must swap before attention_weights; else heads look at heads"
CUT_BY_RESHAPE = ".reshape(B, T, n_head, C // n_head).transpose(1, 2)"


@exercise(
    "attention_toy", "heads_at_once", """All heads in one go: x times a matrix, the C numbers cut into
    (nh, hs), and nh brought beside B: (B, T, nh, hs) -> (B, nh, T, hs). attention_weights works on
    the last two dimensions. At last, bring the heads of a token side by side again.""",
    ("the heads are interleaved; head 0 has the first hs numbers, head 1 the next",
     CUT_BY_RESHAPE, ".reshape(B, T, C // n_head, n_head).permute(0, 3, 1, 2)"),
    ("heads and times are mixed: first cut C into (nh, hs), then swap T and nh",
     CUT_BY_RESHAPE, ".reshape(B, n_head, T, C // n_head)"),
    *((TOKENS_AT_TOKENS, CUT_BY_RESHAPE, ".reshape(B, T, n_head, C // n_head)", *back) for back in (
        ("found.transpose(1, 2)", "found"), ())),
    ("this is one big head; cut the C numbers into (nh, hs) first", CUT_BY_RESHAPE, "",
     "found.transpose(1, 2)", "found"),
    ("the heads of a token are not side by side: swap T and nh back before reshape",
     "found.transpose(1, 2)", "found"))
def _(m):
    for B, T, C, n_head in ((1, 3, 4, 2), (2, 4, 6, 3), (2, 2, 4, 1)):
        w_query, w_key, w_value = torch.randn(3, C, C)
        yield Trial(m.heads_at_once, dict(x=torch.randn(B, T, C), w_query=w_query, w_key=w_key,
                                          w_value=w_value, n_head=n_head))


# %% Phase 6

PHASES.append(("The model", "build a whole GPT"))


@exercise(
    "gpt", "position_angles", """A frequency for each clock, from 1 radian per token to one turn (2
    * pi) in ten contexts, each the same factor lower than the one before: powers of the slowest,
    with exponents from torch.linspace(0, 1, n_clocks). A position turned by a frequency gives an
    angle; a column times a row has them all.""",
    ("the slowest clock goes round once in ten contexts", "10 * config.block_size",
     "config.block_size"),
    ("one turn is 2 * pi radians", "2 * math.pi / ", "1 / "),
    ("the fastest clock comes first", "linspace(0, 1,", "linspace(1, 0,"),
    ("from one frequency to the next, the factor must stay the same, not the difference",
     "slowest ** torch.linspace(0, 1,", "torch.linspace(1, slowest,"),
    ("the table has a row for each position, a column for each clock",
     "positions[:, None] * frequencies", "frequencies[:, None] * positions"),
    ("positions are not used: the tokens need not begin at 0",
     "positions[:, None]", "torch.arange(len(positions))[:, None]"))
def _(m):
    for T, start, n_clocks in ((3, 0, 2), (4, 1, 5), (2, 4, 1)):
        yield Trial(m.position_angles, dict(positions=torch.arange(start, start + T),
                                            n_clocks=n_clocks, config=small()))


@exercise(
    "gpt", "sinusoids", """position_angles says where C / 2 clocks point at all positions of the
    context. The sines stand on the left, the cosines on the right.""",
    ("the sines come first", "angles.sin(), angles.cos()", "angles.cos(), angles.sin()"),
    ("there are C / 2 clocks", "config.n_embd // 2", "config.n_embd"),
    ("sines and cosines take turns; each must have one half of the channels",
     "cat((angles.sin(), angles.cos()), dim=1)",
     "stack((angles.sin(), angles.cos()), dim=2).flatten(1)"))
def _(m):
    for block_size, n_embd in ((3, 4), (6, 8)):
        yield Trial(m.sinusoids, {"config": small(block_size=block_size, n_embd=n_embd)})


@exercise(
    "gpt", "apply_rope", """The a are the first half of the last dimension, the b the second. (a, b),
    turned by an angle, is (a cos - b sin, a sin + b cos). position_angles has the angles.""",
    ("the pairs are turned the wrong way", "a * cos - b * sin, a * sin + b * cos",
     "a * cos + b * sin, b * cos - a * sin"),
    ("the pairs change their length; mind the minus", "a * cos - b", "a * cos + b"),
    ("a and b take turns; they must be halves", "x.chunk(2, dim=-1)",
     "(x[..., ::2], x[..., 1::2])"),
    ("x is changed while a and b, views of it, are still needed", "return", "a *= cos; return"),
    ("positions are not used: the tokens need not begin at 0",
     "(positions,", "(torch.arange(len(positions)),"))
def _(m):
    for shape, start in (((2, 4), 3), ((2, 5, 6), 0), ((1, 2, 3, 4), 1)):
        positions = torch.arange(start, start + shape[-2])
        yield Trial(m.apply_rope, dict(x=torch.randn(shape), positions=positions, config=small()))


CUT = "z.view(B, T, nh, hs).transpose(1, 2)"
ROPE = "(apply_rope(z, positions, self.config) for z in (q, k))"


@exercise(
    "gpt", "CausalSelfAttention.forward", """self.qkv(x) is q, k, v side by side, in each the heads
    side by side; bring all three to (B, nh, T, hs). If self.config.position is "rotary", turn q and
    k: apply_rope(q, positions, self.config). If there is a cache, k, v = cache.add(self, k, v).
    Then F.scaled_dot_product_attention, in training with the dropout of the config; heads side by
    side again; self.proj; self.dropout. With a cache and one new token, there is no future to
    mask.""",
    ("there is no mask; see is_causal", "is_causal=T > 1", "is_causal=False"),
    ("one new token may see all that is in the cache: is_causal only if T > 1",
     "is_causal=T > 1", "is_causal=True"),
    ("the first tokens put into a cache need the mask too: is_causal=T > 1",
     "is_causal=T > 1", "is_causal=cache is None"),
    ("the heads are interleaved; head 0 has the first hs numbers, head 1 the next",
     CUT, "z.view(B, T, hs, nh).permute(0, 3, 1, 2)"),
    ("there are nh heads with hs numbers, (nh, hs), not (hs, nh)", "nh, hs).t", "hs, nh).t"),
    ("heads and times are mixed: view as (B, T, nh, hs) first, then swap T and nh",
     CUT, "z.reshape(B, nh, T, hs)"),
    ("self.qkv(x) has q first, then k, then v", "self.qkv(x).chunk(3, dim=-1)",
     "[self.qkv(x).chunk(3, dim=-1)[i] for i in (1, 0, 2)]"),
    ("the heads of a token are not side by side: swap T and nh back before reshape",
     "y.transpose(1, 2)", "y"),
    ("self.proj is missing", "self.proj(y)", "y"),
    ("self.dropout is missing", "self.dropout(self.proj(y))", "self.proj(y)"),
    ("with rotary positions, q and k must be turned", "self.config.position == 'rotary'", "False"),
    ("k must be turned, too", ROPE, "(apply_rope(q, positions, self.config), k)"),
    ("v must not be turned", "if cache is not None", "if self.config.position == 'rotary': "
     "v = apply_rope(v, positions, self.config)\nif cache is not None"),
    ("apply_rope before cache.add; what is in the cache is turned already",
     "cache.add(self, k, v)", "(k, v)", "if self.config.position",
     "if cache is not None: k, v = cache.add(self, k, v)\nif self.config.position"),
    ("the cache is not used", "cache is not None", "False"),
    ("the attention weights have dropout outside of training", " if self.training else 0.0", ""),
    ("the attention weights have no dropout in training", "self.config.dropout if self.training else 0.0", "0.0"))
def _(m):
    for n_head, position, T in ((1, "learned", 3), (2, "learned", 5), (4, "rotary", 5)):
        attention = noisy(m.CausalSelfAttention(small(n_head=n_head, position=position)))
        yield Trial(lambda x, positions, **_: attention(x, positions),
                    dict(x=torch.randn(2, T, 8), positions=torch.arange(T), n_head=n_head,
                         position=position))
    yield with_cache(m, attention, position=position)
    for of_weights, training in ((1.0, False), (1.0, True), (0.0, True)):   # all or nothing is dropped
        attention = noisy(m.CausalSelfAttention(small(dropout=of_weights)))
        attention.dropout.p = 1 - of_weights
        yield Trial(lambda x, training, **_: attention.train(training)(x, torch.arange(3)), {
            "x": torch.randn(1, 3, 8), "training": training, "config.dropout": of_weights,
            "self.dropout.p": 1 - of_weights})


def with_cache(m, layer, **hyperparameters):
    """The trial that gives attention, or a block, several tokens, and then one more."""
    @torch.no_grad()
    def go(x, **_):
        cache = m.KVCache(6)
        first, cache.length = layer(x[:, :4], torch.arange(4), cache), 4
        return {"the first 4 tokens": first, "1 more": layer(x[:, 4:], torch.tensor([4]), cache)}

    return Trial(go, {"x": torch.randn(1, 5, 8), **hyperparameters,
                      "with a cache": "4 tokens, then 1"})


prediction(
    "gpt", "class Block(", "NUMBERS_IN_A_FEED_FORWARD", """a feed-forward network widens C = 8
    numbers to 4C and narrows them again, by two Linear layers with biases. How many parameters?""",
    "552", "8 * 32 weights and 32 biases, then 32 * 8 weights and 8 biases",
    ("these are the two matrices; each layer has biases as well", "512"),
    ("each bias belongs to a number that comes out: 32, and then 8", "528"),
    ("there are two matrices, 8 x 32 and 32 x 8", "296"))

extra("gpt", "class Block(", '''
def feed_forward_by_hand(x, w_1, b_1, w_2, b_2):
    """The feed-forward network: x (..., C) -> (..., C).

    w_1 is (C, 4C), b_1 (4C,), w_2 (4C, C), b_2 (C,). It widens, applies GELU (F.gelu) to each
    number, and narrows again.
    """
    hidden = F.gelu(x @ w_1 + b_1)                      # (..., C) @ (C, 4C) -> (..., 4C)
    return hidden @ w_2 + b_2                           # (..., 4C) @ (4C, C) -> (..., C)
''')


@exercise(
    "gpt", "feed_forward_by_hand", """Two lines: a product, a bias, the activation function; then a
    product and a bias.""",
    ("without an activation function, two matrices can do no more than one", "F.gelu", ""),
    ("there is no activation function at the end: what is added to the stream may be negative",
     "return hidden @ w_2 + b_2", "return F.gelu(hidden @ w_2 + b_2)"),
    ("the biases are added first, before the activation function", "F.gelu(x @ w_1 + b_1)",
     "F.gelu(x @ w_1) + b_1"),
    ("the biases are missing", " + b_1", "", " + b_2", ""),
    ("x is added; that is for Block.forward to do", "return hidden", "return x + hidden"))
def _(m):
    for shape in ((2, 3), (2, 4, 2)):
        C = shape[-1]
        yield Trial(m.feed_forward_by_hand, dict(
            x=torch.randn(shape), w_1=torch.randn(C, 4 * C), b_1=torch.randn(4 * C),
            w_2=torch.randn(4 * C, C), b_2=torch.randn(C)))


def try_init(cls, *configs, idx):
    """The trials of an __init__: what it makes, of which shapes, and what can be computed with it.

    idx: what its forward gets.
    """
    for config in configs:
        yield Trial(lambda config: parts_of(cls(config)), {"config": config})
        yield Trial(lambda config: numbered(cls(config))(*idx), {"config": config})


@exercise(
    "gpt", "Block.__init__", """After super().__init__(): norm_1, attention, norm_2 and
    feed_forward, which is an nn.Sequential of a Linear, nn.GELU(approximate="tanh"), a Linear (4C
    wide in between) and an nn.Dropout. config.bias says if the norms and the Linear layers have
    biases.""",
    ("the feed-forward network widens C to 4C", "4 * C", "C"),
    ("config.bias decides whether there are biases", ", bias=bias", ""),
    ("the activation function is GELU", "nn.GELU(approximate='tanh')", "nn.ReLU()"),
    ("GPT-2 computes GELU in another way: approximate='tanh'", "approximate='tanh'", ""),
    ("there is no activation function between the Linear layers", "nn.GELU(approximate='tanh')",
     "nn.Identity()"),
    ("norm_1 and norm_2 must be two modules, each with parameters of its own",
     "self.norm_2 = nn.LayerNorm(C, bias=bias)", "self.norm_2 = self.norm_1"),
    ("nothing is dropped; the fraction is config.dropout", "config.dropout", "0.0"),
    ("super().__init__() must come first", "super().__init__()", "pass"))
def _(m):
    inputs = torch.randn(2, 3, 8), torch.arange(3)
    yield from try_init(m.Block, small(), small(bias=False), idx=inputs)
    yield Trial(lambda x: {"in training, if all is dropped":
                           numbered(m.Block(small(dropout=1.0))).train()(x, torch.arange(2))},
                {"x": torch.randn(1, 2, 8)})


@exercise(
    "gpt", "Block.forward", """Two lines like x = x + ...: first self.attention, which wants x,
    positions and the cache, then self.feed_forward. Before each a norm.""",
    ("the stream is lost; what attention finds is added to x", "x = x + self.att", "x = self.att"),
    ("the norms come before attention and feed_forward",
     "self.attention(self.norm_1(x), positions, cache)",
     "self.norm_1(self.attention(x, positions, cache))",
     "self.feed_forward(self.norm_2(x))", "self.norm_2(self.feed_forward(x))"),
    ("norm_1 is missing; attention reads the stream through it", "self.norm_1(x)", "x"),
    ("attention does not get the cache", "positions, cache", "positions, None"),
    ("feed_forward must read what attention has added", "x = x + self.attention", "y = self.attention",
     "return x", "return x + y"),
    ("the x of the caller is changed: x += ... works in place, x = x + ... makes a new one",
     "x = x + self.att", "x += self.att"))
def _(m):
    block = noisy(m.Block(small()))
    for B, T in ((1, 2), (2, 5)):
        yield Trial(block, dict(x=torch.randn(B, T, 8), positions=torch.arange(T)))
    yield with_cache(m, block)


@exercise(
    "gpt", "GPT.__init__", """After super().__init__(): self.config and self.block_size;
    token_embedding; unless "rotary", position_embedding, a row for each position, trained only if
    "learned" (its weight has requires_grad_); dropout; blocks, in an nn.ModuleList; norm; lm_head,
    without a bias. If config.tie_weights, token_embedding and lm_head have one weight. At last
    self.init_parameters().""",
    ("rotary positions have no table", "config.position != 'rotary'", "True"),
    ("sinusoidal positions are not trained", "config.position == 'learned'", "True"),
    ("position_embedding has a row for each of block_size positions",
     "nn.Embedding(config.block_size,", "nn.Embedding(config.vocab_size,"),
    ("PyTorch does not see the blocks in a plain list; nn.ModuleList shows them",
     "nn.ModuleList([Block(config) for _ in range(config.n_layer)])",
     "[Block(config) for _ in range(config.n_layer)]"),
    ("it is one block, n_layer times; each must be made by itself",
     "[Block(config) for _ in range(config.n_layer)]", "[Block(config)] * config.n_layer"),
    ("lm_head has no bias", "bias=False", "bias=True"),
    ("config.bias decides whether the last norm has a bias", "bias=config.bias", "bias=True"),
    ("config.tie_weights is not used", "config.tie_weights", "False"),
    ("self.init_parameters() is not called", "self.init_parameters()", "pass"),
    ("self.dropout has no effect; the fraction is config.dropout", "config.dropout", "0.0"),
    ("super().__init__() must come first", "super().__init__()", "pass"))
def _(m):
    yield from try_init(
        m.GPT, small(), small(position="rotary", bias=False), small(position="sinusoidal"),
        small(tie_weights=True), idx=(tokens(2, 5), tokens(2, 5)))
    yield Trial(lambda config: {"attention.proj is zero, as init_parameters makes it":
                                not m.GPT(config).blocks[0].attention.proj.weight.any(),
                                "block_size": m.GPT(config).block_size}, {"config": small()})
    yield Trial(lambda config: {"in training, if all is dropped":
                                numbered(m.GPT(config)).train()(torch.ones(1, 2).long())[0]},
                {"config": small(dropout=1.0)})


@exercise(
    "gpt", "GPT.init_parameters", """Go through self.modules(): of each nn.Linear, the weight is
    normal with a standard deviation of 1/sqrt(in_features), and the bias, if there is one, zero.
    Then, of each block, the weights of attention.proj and of the last Linear of feed_forward become
    0; those of lm_head and token_embedding get a standard deviation of 0.02; and position_embedding
    becomes 0.03 * sinusoids(self.config). nn.init has functions for it.""",
    ("the standard deviation is 1/sqrt(inputs)", "1 / math.sqrt(module.in_features)",
     "1 / module.in_features"),
    ("the standard deviation is 1/sqrt(inputs)", "1 / math.sqrt(module.in_features)", "0.02"),
    ("the standard deviation is 1/sqrt(inputs), not outputs", "module.in_features",
     "module.out_features"),
    ("biases begin at 0", "nn.init.zeros_(module.bias)", "pass"),
    ("attention.proj begins at 0", "nn.init.zeros_(block.attention.proj.weight)", "pass"),
    ("the last Linear of feed_forward begins at 0", "nn.init.zeros_(block.feed_forward[2].weight)",
     "pass"),
    ("lm_head and token_embedding are small, 0.02", "std=0.02", "std=1.0"),
    ("the sinusoids are multiplied by 0.03", "0.03 * ", ""),
    ("position_embedding begins with the sinusoids", "self.config.position != 'rotary'", "False"))
def _(m):
    def look(config):
        parameters = m.GPT(config).state_dict()
        seen = {f"{name}, standard deviation": f"{p.std():.1g}" for name, p in parameters.items()}
        return {**seen, "position_embedding": parameters.get("position_embedding.weight")}

    for settings in ({}, {"position": "rotary", "bias": False}):
        yield Trial(look, {"config": small(vocab_size=50, n_embd=100, n_layer=1, **settings)})


@exercise(
    "gpt", "GPT.forward", """The order is told above. The tokens have the positions from start,
    which is 0 or the cache's length, up to end; if that is more than block_size, ValueError. Unless
    rotary, add those rows of self.position_embedding.weight. Each block gets x, positions (T,) and
    the cache. With a cache, its length becomes end at last, and only the last position is needed
    for the logits.""",
    ("the positions are not added", "self.config.position != 'rotary'", "False"),
    ("with a cache, positions begin at its length", "0 if cache is None else cache.length", "0"),
    ("the positions that blocks get begin at start", "arange(start, end", "arange(0, end - start"),
    ("position_embedding has a row for each position from start", "[start:end]", "[:end - start]"),
    ("cache.length must become end", "cache.length = end", "pass"),
    ("cache.length moves once, after all blocks", "cache.length = end", "pass", "x = block(x,",
     "_ = cache and setattr(cache, 'length', end); x = block(x,"),
    ("with a cache, only the logits of the last position come back: (B, 1, V)", "x = x[:, -1:]",
     "pass"),
    ("the last norm is missing", "self.norm(x)", "x"),
    ("each block must get what the one below has made", "x = block(x,", "_ = block(x,"),
    ("more than block_size tokens must raise ValueError", "if end > self.block_size", "if False"),
    ("self.dropout, before the blocks, is missing", "x = self.dropout(x)", "pass"),
    ("without targets, the loss is None", "None if targets is None else ", ""))
def _(m):
    @torch.no_grad()
    def in_parts(model, idx):
        cache = m.KVCache(6)
        parts = [model(part, cache=cache)[0] for part in idx.split([3, 1, 1], dim=1)]
        return {"with a cache, logits of 3 tokens, 1, and 1": parts, "its length": cache.length}

    for position in ("rotary", "learned"):
        model = noisy(m.GPT(small(position=position)))
        yield Trial(model, dict(idx=tokens(2, 5), targets=tokens(2, 5)))
        yield Trial(in_parts, dict(model=model, idx=tokens(2, 5)))
    yield Trial(model, dict(idx=tokens(1, 6)))
    yield Trial(model, dict(idx=tokens(1, 7)))
    model.dropout.p = 1.0
    yield Trial(lambda idx: {"in training, if all is dropped": model.train()(idx)[0]},
                {"idx": tokens(1, 2)})


# %% Phase 7

PHASES.append(("Training", "train it and tell how good it is"))

prediction(
    "gpt", "def build_optimizer(", "FIRST_MOVE", """in the very first step, w = 5 has the gradient
    1000. The learning rate is 0.01, and there is no weight decay. How far does AdamW move w?""",
    "0.01", "m / sqrt(v) is 1 in the first step, so w moves by the learning rate",
    ("plain gradient descent would move it so far; AdamW divides by sqrt(v)", "10.0"),
    ("in the first step, m and v are divided by 1 - 0.9 and 1 - 0.99, so m is 1000 and v 1000^2",
     "0.001"),
    ("in the first step, m and v are divided by 1 - 0.9 and 1 - 0.99, so m is 1000 and v 1000^2",
     "0.1"))

extra("gpt", "def build_optimizer(", '''
def adamw_by_hand(w, g, m, v, t, learning_rate, weight_decay):
    """Step t of AdamW (the first is t = 1), with the gradient g, all of one shape -> (w, m, v)."""
    m = 0.9 * m + 0.1 * g
    v = 0.99 * v + 0.01 * g**2
    move = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
    return w - learning_rate * (move + weight_decay * w), m, v
''')


@exercise(
    "gpt", "adamw_by_hand", """The formulas stand above. m and v that come out are those before they
    are divided by 1 - 0.9^t and 1 - 0.99^t; w moves by the divided ones. Make new tensors.""",
    ("as m and v begin at 0, they must be divided by 1 - 0.9^t and 1 - 0.99^t",
     " / (1 - 0.9 ** t)", "", " / (1 - 0.99 ** t)", ""),
    ("the corrected m and v are returned; the mean of the next step needs them as they are",
     "move = m / (1 - 0.9 ** t) / ((v / (1 - 0.99 ** t)).sqrt() + 1e-08)",
     "m, v = m / (1 - 0.9 ** t), v / (1 - 0.99 ** t); move = m / (v.sqrt() + 1e-08)"),
    ("v is the mean of the squares of g", "g ** 2", "g"),
    ("v is the mean of the squares of g", "g ** 2", "g.abs()"),
    ("m is divided by the square root of v", ".sqrt()", ""),
    ("w moves against the gradient: minus", "w - learning_rate", "w + learning_rate"),
    ("weight decay is multiplied by the learning rate as well",
     "w - learning_rate * (move + weight_decay * w)", "w - learning_rate * move - weight_decay * w"),
    ("weight decay is missing", " + weight_decay * w", ""),
    ("weight decay is not part of the gradient: it stays out of m and v",
     "m = 0.9", "g = g + weight_decay * w; m = 0.9", "(move + weight_decay * w)", "move"))
def _(m):
    def three_steps(w, gradients, learning_rate, weight_decay):
        mean, square, seen = torch.zeros_like(w), torch.zeros_like(w), {}
        for t, g in enumerate(gradients, start=1):
            w, mean, square = m.adamw_by_hand(w, g, mean, square, t, learning_rate, weight_decay)
            seen.update({f"w after step {t}": w, f"m after step {t}": mean,
                         f"v after step {t}": square})
        return seen

    for learning_rate, weight_decay in ((0.1, 0.0), (0.01, 1.0)):
        yield Trial(three_steps, dict(w=torch.randn(2, 3), gradients=list(torch.randn(3, 2, 3)),
                                      learning_rate=learning_rate, weight_decay=weight_decay))


@exercise(
    "gpt", "build_optimizer", """torch.optim.AdamW takes groups: dicts of params and weight_decay.
    Matrices (2 dimensions or more) decay, vectors do not; what needs no gradient is in no group.
    betas=(0.9, 0.99).""",
    ("vectors must not decay", "'weight_decay': 0.0", "'weight_decay': config.weight_decay"),
    ("the vectors are missing; they learn too", "if p.dim() < 2", "if False"),
    ("parameters that need no gradient must be left out", "if p.requires_grad", "if True"),
    ("the learning rate is not config.learning_rate", "lr=config.learning_rate", "lr=1e-3"),
    ("the betas are not (0.9, 0.99)", "0.99", "0.999"))
def _(m):
    def look(model, config):
        optimizer = m.build_optimizer(model, config)
        names = {parameter: name for name, parameter in model.named_parameters()}
        return {"the optimizer": type(optimizer).__name__, **{
            names[parameter]: {"weight_decay": group["weight_decay"], "lr": group["lr"],
                               "betas": list(group["betas"])}
            for group in optimizer.param_groups for parameter in group["params"]}}

    for frozen in (False, True):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        model.append(torch.nn.Linear(4, 2, bias=False)).requires_grad_(not frozen)
        model[0].requires_grad_(True)
        yield Trial(look, dict(model=model, config=small()))


@exercise(
    "gpt", "learning_rate_at", """One line is (step + 1) / (warmup_steps + 1), the other falls from
    1 at step 0 to 0 at max_steps. Both times config.learning_rate.""",
    ("the first step goes nowhere; the line that grows has step + 1", "(step + 1)", "step"),
    ("the higher line was taken, not the lower one", "min(", "max("),
    ("the lower line is not always that of the warm-up before warmup_steps",
     "min(warm_up, decay)", "(warm_up if step < config.warmup_steps else decay)"),
    ("the lines are multiplied; take the lower", "min(warm_up, decay)", "warm_up * decay"),
    ("the lines are multiplied; take the lower", "min(warm_up, decay)", "min(warm_up, 1) * decay"),
    ("the line that falls begins at step 0, not where the warm-up ends", "step / config.max_steps",
     "(step - config.warmup_steps) / (config.max_steps - config.warmup_steps)"),
    ("it does not fall", "min(warm_up, decay)", "min(warm_up, 1)"),
    ("it does not grow at first", "min(warm_up, decay)", "decay"),
    ("times config.learning_rate is missing", "config.learning_rate * ", ""))
def _(m):
    for warmup_steps in (2, 0, 9):
        config = small(max_steps=10, warmup_steps=warmup_steps, learning_rate=0.5)
        yield Trial(lambda config: {f"step {step}": m.learning_rate_at(step, config)
                                    for step in range(10)}, {"config": config})


@exercise(
    "gpt", "training_step", """Set "lr" in each of optimizer.param_groups; the batch of this step;
    its loss; zero_grad, backward, nn.utils.clip_grad_norm_ to config.grad_clip, step. Return the
    loss without its history: detach(). (Seeds and 16 bits: you may do without.)""",
    ("the gradients are not reset: optimizer.zero_grad()", "optimizer.zero_grad()", "pass"),
    ("nothing is learned: it must be zero_grad, backward, step, in this order",
     "loss.backward()", "loss.backward(); optimizer.zero_grad()"),
    ("the learning rate of this step is not set in each group of the optimizer",
     "group['lr'] = learning_rate_at(step, config)", "pass"),
    ("the gradient is not clipped", "nn.utils.clip_grad_norm_(", "("),
    ("the loss still holds on to all that made it: detach()", "loss.detach()", "loss"))
def _(m):
    def three_steps(data, config):
        model, seen = noisy(gpt.BigramLanguageModel(7)), {}
        optimizer = m.build_optimizer(model, config)
        for step in range(3):
            loss = m.training_step(model, optimizer, data, step, config)
            seen[f"the loss of step {step}"] = loss.detach() if torch.is_tensor(loss) else loss
            seen[f"the learning rate of step {step}"] = optimizer.param_groups[-1]["lr"]
            seen[f"all parameters after step {step}"] = flat(model)
        return {**seen, "the loss has a history": getattr(loss, "requires_grad", None)}

    for hyperparameters in ({"grad_clip": 0.1}, {"batch_size": 1}):
        yield Trial(three_steps, dict(data=tokens(40), config=small(**hyperparameters)))


COUNTS = "each loss counts as often as it has targets"


@exercise(
    "gpt", "evaluate", """Fewer than 2 tokens: ValueError. Inputs, and targets one later; cut both
    into windows of model.block_size, the last one padded: targets of -100 are ignored by the loss.
    Within `with eval_mode(model):`, sum up loss * number of targets, some windows at a time.""",
    ("the model must be in eval mode meanwhile: with eval_mode(model)", "with eval_mode(model)",
     "if True"),
    ("the model stays in eval mode; it came in training mode", "with eval_mode(model):",
     "model.eval()\nif True:"),
    ("the model is put into training mode; it came in eval mode", "with eval_mode(model):",
     "model.eval()\nif True:", "return total", "model.train()\nreturn total"),
    ("the padding is counted; its targets must be -100", "value=-100", "value=0"),
    ("what is left after the last full window is not counted",
     "-len(x) % T", "-(len(x) % T)", "(len(data) - 1)", "y.numel()"),
    ("a window of padding alone has no loss, but nan", "-len(x) % T", "T - len(x) % T"),
    (COUNTS, "(targets >= 0).sum().item()", "(len(data) - 1) / len(x.split(rows))"),
    (COUNTS, "(targets >= 0).sum().item()", "(len(data) - 1) / len(x)", "2048 // T", "1"),
    (COUNTS, "(targets >= 0).sum", "(targets > -999).sum"),             # padding counts
    (COUNTS, "(targets >= 0).sum", "(targets > -999).sum", "(len(data) - 1)", "y.numel()"),
    ("all together, there are len(data) - 1 targets", "(len(data) - 1)", "len(data)"),
    ("the targets are not shifted; they are one token later", "data[1:]", "data[:-1]"),
    ("fewer than 2 tokens must raise ValueError", "len(data) < 2", "False"))
def _(m):
    def look(model, data):
        return {"the loss": m.evaluate(model, data), "in training mode, then": model.training}

    def moody(model, _, output):            # like dropout, but not by chance
        return (output[0], output[1] + 1) if model.training else output

    for block_size, N, training in ((4, 23, True), (64, 2049, False), (64, 2054, True)):
        model = noisy(m.GPT(small(n_layer=1, block_size=block_size))).train(training)
        model.register_forward_hook(moody)
        yield Trial(look, dict(model=model, data=tokens(N).to(torch.uint8)))
    yield Trial(look, dict(model=model, data=tokens(1)))


@exercise(
    "gpt", "train", """Without a state, TrainState(build_optimizer(model, config)). In training
    mode, until state.step is max_steps: a training_step; step and loss_sum grow; train_loss and
    val_loss become None. After each eval_interval steps, and the last, log_evaluation(state, model,
    evaluate(...)). Each turn ends with `yield state`.""",
    ("nothing is yielded; each turn ends with `yield state`", "yield state", "pass"),
    ("the model must be in training mode", "model.train()", "pass"),
    ("there is no evaluation after the last step", " or state.step == config.max_steps", ""),
    ("the evaluations come one step late: count the step first",
     "state.step % config", "(state.step - 1) % config"),
    ("a state was given; go on from it", "state = state or TrainState", "state = TrainState"),
    ("in a step without evaluation, both losses must be None again",
     "state.train_loss = state.val_loss = None", "pass"))
def _(m):
    def look(config, train_data, val_data, done=None):
        model = noisy(gpt.BigramLanguageModel(7))
        state = done and m.TrainState(m.build_optimizer(model, config), step=done)
        turns = itertools.islice(m.train(model, train_data, val_data, config, state), 9)
        seen = {f"turn {i}": {"step": state.step, "train_loss": state.train_loss,
                              "val_loss": state.val_loss, "in training mode": model.training}
                for i, state in enumerate(turns, start=1)}
        return {**seen, "the parameters in the end": flat(model)}

    for hyperparameters, inputs in (({}, {}), ({"max_steps": 4}, {}), ({}, {"done": 2})):
        yield Trial(look, dict(config=small(**hyperparameters), train_data=tokens(40),
                               val_data=tokens(12), **inputs))


@exercise(
    "gpt", "log_evaluation", """state.train_loss is the mean of the losses since the last evaluation
    (its step stands in state.history[-1]), val_loss is what was found, loss_sum is 0 again. If it
    is the lowest val_loss so far, state.best becomes a copy of model.state_dict(). Append step,
    train_loss, val_loss and learning_rate (that of the optimizer) to the history, as a dict.""",
    ("the mean is over the steps since the last evaluation",
     "state.history[-1]['step'] if state.history else 0", "0"),
    ("loss_sum must be 0 again", "val_loss, 0.0", "val_loss, state.loss_sum"),
    ("training changes the parameters in place, so the best need a copy: clone()", "p.clone()",
     "p"),
    ("the best are replaced by worse ones", "if state.best is None or", "if True or"),
    ("the best must be kept whenever val_loss is the lowest so far", "val_loss < min(",
     "False and min("),
    ("the history is not written", "state.history.append(", "("))
def _(m):
    def look(val_losses):
        model, seen = gpt.BigramLanguageModel(2), {}
        state = m.TrainState(m.build_optimizer(model, small()))
        for i, val_loss in enumerate(val_losses, start=1):
            state.step, state.loss_sum = state.step + 1 + i, torch.tensor(6.0)
            model.table.weight.data.fill_(i)
            m.log_evaluation(state, model, val_loss)
            model.table.weight.data.fill_(-1)
            seen[f"evaluation {i}"] = {
                "train_loss": state.train_loss, "val_loss": state.val_loss,
                "loss_sum": float(state.loss_sum), "best": dict(state.best or {}),
                "history": {f"row {j}": dict(row) for j, row in enumerate(state.history)}}
        return seen

    for val_losses in ([3.0, 2.0, 2.5], [1.0, 1.5, 0.5]):
        yield Trial(look, {"val_losses": val_losses})


# %% Phase 8

PHASES.append(("Sampling", "let it write, as you like and fast"))


@exercise(
    "gpt", "generate_plainly", """Again and again: logits for the latest block_size tokens; softmax
    of those of the last one; draw with torch.multinomial; append with torch.cat.""",
    ("the model can be shown its block_size tokens at most", "idx[:, -model.block_size:]", "idx"),
    ("the model must be shown the latest tokens, not the first",
     "-model.block_size:", ":model.block_size"),
    ("the next token follows the last; its logits are at -1", "logits[:, -1]", "logits[:, 0]"),
    ("the likeliest token is taken; it must be drawn",
     "torch.multinomial(probs, num_samples=1)", "probs.argmax(dim=-1, keepdim=True)"),
    ("only the new tokens came out; idx must come before them", "return idx",
     "return idx[:, -max_new_tokens:]"))
def _(m):
    sure = noisy(gpt.GPT(small()))          # so sure of each token that nothing is left to chance
    sure.register_forward_hook(lambda model, _, output: (1e4 * output[0], None))
    for B, T, n in ((1, 3, 2), (2, 4, 9), (2, 9, 3)):
        yield Trial(m.generate_plainly, dict(model=sure, idx=tokens(B, T), max_new_tokens=n))
    model = noisy(gpt.BigramLanguageModel(3))
    probs = model.table.weight[0].detach().softmax(dim=-1)

    def draw_often(model, idx):
        drawn = m.generate_plainly(model, idx, 1)[:, 1]
        frequencies = torch.bincount(drawn, minlength=3) / len(idx)
        return {"5000 draws are as the probabilities say":
                bool((frequencies - probs).abs().max() < 0.05)}

    yield Trial(draw_often, dict(model=model, idx=torch.zeros(5000, 1).long()))


prediction(
    "gpt", "def next_token_probabilities(", "KEPT_BY_TOP_P", """the probabilities are 0.5, 0.25,
    0.125 and 0.125. How many tokens can be drawn with top_p=0.7?""", "2",
    "0.5 is not enough; the second token brings it to 0.75",
    ("the one that crosses 0.7 stays: 0.5 alone is less than 0.7", "1"),
    ("0.5 and 0.25 make 0.75, and that is enough", "3"))

STILL_SORTED = "the probabilities are not put back in place"
NO_SORT_NEEDED = ("if top_k is None and top_p is None", "if False")
BACK = "torch.zeros_like(probs).scatter(-1, tokens, probs)"


@exercise(
    "gpt", "next_token_probabilities", """ValueError for a temperature below 0, top_k below 1, top_p
    not in (0, 1]. Temperature 0 is the same as top_k=1. sort() the probabilities and keep which
    tokens they are; set to 0 what a sampling parameter cuts, and divide by the sum again. top_p
    cuts a token if those before it have p or more. scatter() puts all back in place.""",
    ("the logits are divided by the temperature", "logits / temp", "logits * temp"),
    ("temperature 0 is greedy; one cannot divide by it", "if temperature == 0", "if False"),
    ("a temperature below 0 must raise ValueError", "temperature == 0 or", "True or"),
    ("top_k below 1 must raise ValueError", "top_k >= 1", "True"),
    ("top_p above 1 must raise ValueError", "0 < top_p <= 1", "0 < top_p"),
    ("top_k keeps one too few", "probs[:, top_k:]", "probs[:, top_k - 1:]"),
    ("top_p cuts the token that crosses p; that one stays", "cumsum(dim=-1) - probs",
     "cumsum(dim=-1)", "probs[:, 1:][likelier[:, 1:] >= top_p]", "probs[likelier >= top_p]"),
    ("top_p cuts the token that crosses p; that one stays", "cumsum(dim=-1) - probs",
     "cumsum(dim=-1)"),
    ("the least likely are kept; sort with descending=True", ", descending=True", ""),
    ("what is left must sum to 1 again", "probs / probs.sum(dim=-1, keepdim=True)", "probs"),
    ("what top_k leaves must sum to 1 again before top_p cuts",
     "top_k:] = 0\n    probs = probs / probs.sum(dim=-1, keepdim=True)", "top_k:] = 0",
     "tokens, probs)", "tokens, probs / probs.sum(-1, True))"),
    ("what top_p leaves must sum to 1 again",
     "top_p] = 0\n    probs = probs / probs.sum(dim=-1, keepdim=True)", "top_p] = 0"),
    (STILL_SORTED, BACK, "probs"),
    (STILL_SORTED, BACK, "probs", *NO_SORT_NEEDED),
    (STILL_SORTED + ": scatter, not gather", BACK, "probs.gather(-1, tokens)", *NO_SORT_NEEDED))
def _(m):
    for sampling in ({}, {"temperature": 0.5}, {"temperature": 0}, {"top_k": 2}, {"top_k": 99},
                     {"top_p": 0.3}, {"top_p": 0.9}, {"top_p": 1.0}, {"top_p": 1e-9},
                     {"temperature": 2.0, "top_k": 4, "top_p": 0.6}, {"temperature": -1.0},
                     {"top_k": 0}, {"top_p": 1.5}):
        yield Trial(m.next_token_probabilities, {"logits": torch.randn(2, 6), **sampling})


KEPT = "kept[0, :, :, :end], kept[1, :, :, :end]"


@exercise(
    "gpt", "KVCache.add", """If self.length is 0, keep k and v in self.layers[layer]. Else append the
    new token there; ValueError if there are several. (torch.cat along T will do; room for the whole
    context from the start is faster.) Leave self.length alone: the GPT moves it, once for all
    layers.""",
    ("one position off: the new token is not among those that come out",
     KEPT, KEPT.replace("end", "end - 1")),
    ("each layer has keys and values of its own", "self.layers[layer]", "self.layers[None]"),
    ("only the new ones came out; attention needs all", KEPT, "k, v"),
    ("self.length was moved; that is for the GPT to do, after all layers", "return",
     "self.length = end; return"),
    ("to append several new tokens must raise ValueError", "elif T > 1", "elif False"),
    ("k comes first, then v", KEPT, "kept[1, :, :, :end], kept[0, :, :, :end]"))
def _(m):
    def fill(parts):
        cache, seen = m.KVCache(6), {}
        for T in parts:
            for layer in "ab":
                k, v = torch.randn(2, 1, 2, T, 2)
                all_k, all_v = cache.add(layer, k, v)
                seen[f"k of layer {layer}, {cache.length} + {T} tokens"] = all_k.clone()
                seen[f"v of layer {layer}, {cache.length} + {T} tokens"] = all_v.clone()
            cache.length += T
        return {**seen, "the length in the end": cache.length}

    for parts in ([3], [1, 1], [2, 1, 1, 1, 1], [2, 2]):
        yield Trial(fill, {"parts": parts})


@exercise(
    "gpt", "stream", """Like generate_plainly, but the window, what the model may see, is kept. It
    begins with the last block_size tokens of idx. When it outgrows the context, only its newest
    token and block_size // 2 before it stay, with a new KVCache(block_size). With a cache (only a
    GPT can have one), show the model what the cache does not have yet; else all of the window. Draw
    from next_token_probabilities(..., **sampling) with generator=generator; yield.""",
    ("the model must be shown what the cache does not have", "window[:, cache.length:]", "window"),
    ("the window moves by one token at a time; drop half of the context at once",
     "-(T // 2) - 1:", "-T:"),
    ("when the window moves, the cache must be a new one", "- 1:], KVCache(T)", "- 1:], cache"),
    ("the sampling parameters are not used", ", **sampling", ""),
    ("of a long prompt, the last block_size tokens are shown at first", "idx[:, -T:],", "idx,"),
    ("a bigram can have no cache", " and isinstance(model, GPT)", ""),
    ("draw with generator=generator", ", generator=generator", ""),
    ("the likeliest token is taken; it must be drawn",
     "torch.multinomial(probs, 1, generator=generator)", "probs.argmax(dim=-1, keepdim=True)"),
    ("the next token follows the last; its logits are at -1", "logits[:, -1]", "logits[:, 0]"),
    ("each yielded token must be (B, 1), not (B,)", "yield token", "yield token[:, 0]"),
    ("nothing is yielded; each turn ends with `yield token`", "yield token", "pass"))
def _(m):
    def look(model, idx, max_new_tokens, use_cache, **sampling):
        shown, generator = [], torch.Generator().manual_seed(1)
        hook = model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].shape[1]))
        with torch.no_grad():
            new = list(m.stream(model, idx, max_new_tokens, use_cache, generator, **sampling))
        hook.remove()
        return {"the new tokens": torch.cat(new, dim=1), "tokens shown in each turn": shown}

    model, bigram = noisy(gpt.GPT(small(n_layer=1))), noisy(gpt.BigramLanguageModel(7))
    greedy = {"temperature": 0}
    for model, T, n, use_cache, sampling in (
            (model, 2, 3, False, greedy), (model, 2, 3, True, greedy), (model, 1, 14, True, greedy),
            (model, 9, 4, True, {"top_k": 3}), (model, 6, 9, False, {"top_p": 0.9}),
            (bigram, 2, 4, True, {})):
        yield Trial(look, dict(model=model, idx=tokens(2, T), max_new_tokens=n, use_cache=use_cache,
                               **sampling))


# %% Phase 9

PHASES.append(("Subwords", "make and use a tokenizer of subwords"))


@exercise(
    "gpt", "merge", """Build a new list. If its last entry and the next part are the pair, that entry
    grows by the part.""",
    ("the first of the pair is still there", "merged[-1] += part", "merged.append(merged[-1] + part)"),
    ("only the first pair is merged", "== pair:", "== pair and b''.join(pair) not in merged:"),
    ("the order matters: (a, b) is not (b, a)", "(merged[-1], part) == pair",
     "{merged[-1], part} == {*pair}"),
    ("the list that was given is changed", "return merged", "parts[:] = merged; return parts"))
def _(m):
    for text, pair in (("ab", "ab"), ("", "ab"), ("abcab", "ab"), ("baabba", "ab"), ("aaab", "ab"),
                       ("dddedd", "dd")):
        yield Trial(m.merge, dict(parts=[c.encode() for c in text],
                                  pair=tuple(c.encode() for c in pair)))


extra("gpt", "def train_bpe(", '''
def train_bpe_by_hand(text, vocab_size):
    """What train_bpe finds, the plain way: for each merge, count all pairs of all words again.

    >>> train_bpe_by_hand("aaabdaaabac", 259)
    [(b'a', b'a'), (b'aa', b'a'), (b'aaa', b'b')]
    """
    words = [split_bytes(word) for word in split_pattern().findall(text)]
    merges = []
    for _ in range(vocab_size - 256):
        counts = Counter(pair for parts in words for pair in pairwise(parts))
        pair = max(counts, key=lambda pair: (counts[pair], pair))
        words = [merge(parts, pair) for parts in words]
        merges.append(pair)
    return merges
''')


@exercise(
    "gpt", "train_bpe_by_hand", """split_pattern().findall(text) cuts the text into words; each is a
    list, split_bytes(word). For each merge: count the pairs of all words (pairwise, Counter), note the
    most frequent one (of several, the largest), and merge it everywhere.""",
    ("pairs reach from word to word", "[split_bytes(word) for word in",
     "[split_bytes(text) for _ in [0] or"),
    ("the pairs are found, but not merged", "words = [merge(", "_ = [merge("),
    ("a word that comes again counts again", "split_pattern().findall(text)",
     "dict.fromkeys(split_pattern().findall(text))"),
    ("of pairs equally frequent, take the largest: max by (count, pair)", "(counts[pair], pair)",
     "counts[pair]"))
def _(m):
    for text, vocab_size in (("aaabdaaabac", 259), ("to be or not to be, to be", 260),
                             ("now no one knows; no, no one", 262), ("\xe9 \xe8 \xe9 \xe9", 258)):
        yield Trial(m.train_bpe_by_hand, dict(text=text, vocab_size=vocab_size))


prediction(
    "gpt", "class BPETokenizer:", "TOKENS_IN_NEE", """how many tokens does a BPETokenizer make of
    "n\xe9e" if it knows no merges yet, only the 256 bytes?""", "4",
    "an n, two bytes for the \xe9, and an e",
    ("it begins with the bytes of UTF-8, and \xe9 is two of them", "3"))


@exercise(
    "gpt", "BPETokenizer.encode_word", """Begin with split_bytes(word). As long as some neighbors are in
    self.ranks, merge those with the lowest rank. At last, look up self.ids.""",
    ("the pairs are merged from left to right; the lowest rank comes first",
     "min(pairs, key=self.ranks.get)", "pairs[0]"),
    ("only one pair is merged; go on", "while (pairs", "if (pairs"),
    ("begin with bytes, split_bytes(word), not with characters", "split_bytes(word)",
     "[c.encode() for c in word]"))
def _(m):
    tokenizer = m.BPETokenizer([
        (b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b"\xc3", b"\xa9"), (b"abc", b"abc"),
        (b" ", b"\xc3\xa9")])
    for word in ("abc", "x", "abcabc", " \xe9", "ab", "babc", "\xe8"):
        yield Trial(tokenizer.encode_word, {"word": word})


@exercise(
    "gpt", "BPETokenizer.decode", """self.pieces has the bytes of each id. Join them, and then decode
    them, with errors="replace".""",
    ("a character may be several tokens, so the bytes must be joined before they are decoded",
     ".decode(errors='replace')", "", "b''.join(", "''.join(", "self.pieces[i]",
     "self.pieces[i].decode(errors='replace')"),
    ("bytes that are no UTF-8 must become U+FFFD: errors='replace'", "errors='replace'", ""),
    ("bytes came out; decode them", ".decode(errors='replace')", ""))
def _(m):
    tokenizer = m.BPETokenizer([(b"b", b"c"), (b"a", b"bc")])
    for ids in ([257, 98], [], [195, 169], [256, 169]):
        yield Trial(tokenizer.decode, {"ids": ids})


# %% Phase 10

PHASES.append(("Beyond the files", "write what gpt.py does not have"))

extra("gpt", "if __name__ ==", '''
# %% Beyond the file
# Two things that gpt.py does without.

@torch.no_grad()
def beam_search(model, idx, max_new_tokens, width):
    """The most probable continuation of idx (1, T) that a beam finds -> (1, T + max_new_tokens).

    Greedy writing takes the likeliest token, though another may lead to a more probable text. A
    beam keeps several texts. In each step, all that continue one of them by one token are compared,
    and the `width` most probable stay (or all, if there are fewer). The probability of a text is
    the product of those of its new tokens. So width=1 is greedy, and a very wide beam is exact.
    """
    sums = torch.zeros(1, 1)                                        # (texts, 1)
    for _ in range(max_new_tokens):
        logits, _ = model(idx[:, -model.block_size:])               # (texts, T, V)
        sums = sums + F.log_softmax(logits[:, -1], dim=-1)          # (texts, V)
        V, best = sums.shape[1], sums.flatten().topk(min(width, sums.numel()))
        texts, token = best.indices // V, best.indices % V          # (width,) each
        idx, sums = torch.cat((idx[texts], token[:, None]), dim=1), best.values[:, None]
    return idx[:1]


class Linear8bit(nn.Module):
    """An nn.Linear whose weights are integers from -127 to 127: a quarter of the memory.

    A row of the matrix has one scale, the step from one integer to the next. So a weight is its
    integer times the scale of its row, and its error is half a step at most.
    """

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127                # (D, C) -> (D, 1)
        integers = (weight / scale.clamp(min=1e-30)).round()                # (D, C)
        self.register_buffer("weight", integers.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias)

    def forward(self, x):
        weight = self.weight * self.scale                   # (D, C) * (D, 1) -> (D, C)
        return F.linear(x, weight, self.bias)               # (..., C) -> (..., D)
''')


@exercise(
    "gpt", "beam_search", """Keep the texts (width, T) and for each the sum of its F.log_softmax.
    Take topk of all width * V new sums at once; divided by V, an index gives the text, and the
    remainder its new token. The model can be shown block_size tokens.""",
    ("only the new tokens came out; idx must come before them", "return idx[:1]",
     "return idx[:1, -max_new_tokens:]"),
    ("it is greedy at any width; keep several texts", "min(width, sums.numel())", "1"),
    ("a text was returned that is not the most probable; topk puts the best first", "return idx[:1]",
     "return idx[-1:]"),
    ("logits are summed; make them log-probabilities first",
     "F.log_softmax(logits[:, -1], dim=-1)", "logits[:, -1]"),
    ("probabilities are summed; they must be multiplied, so sum their logarithms", "log_softmax",
     "softmax"),
    ("at first there are fewer sums than width, and topk cannot take so many",
     "min(width, sums.numel())", "width"),
    ("the model can be shown its block_size tokens at most", "idx[:, -model.block_size:]", "idx"))
def _(m):
    for T, n in ((1, 4), (4, 5)):
        model = noisy(gpt.GPT(small(vocab_size=5)))
        yield Trial(m.beam_search, dict(model=model, idx=torch.randint(5, (1, T)),
                                        max_new_tokens=n, width=1))
    # From 0, 1 is likelier than 2; but then any token may follow, and after 2 only 0 or 1.
    trap = gpt.BigramLanguageModel(3)
    trap.table.weight.data = torch.tensor([[0, 11, 9], [6, 7, 7.1], [11, 9, 0]]).log()
    yield Trial(m.beam_search, dict(model=trap, idx=torch.tensor([[0]]), max_new_tokens=2, width=2))
    for _ in range(2):
        model, idx = noisy(noisy(gpt.GPT(small(vocab_size=5)))), torch.randint(5, (1, 2))
        yield Trial(m.beam_search, dict(model=model, idx=idx, max_new_tokens=3, width=125))


@exercise(
    "gpt", "Linear8bit.__init__", """After super().__init__(), three times register_buffer: weight
    (int8), scale (D, 1), and bias, which may be None. The largest number of a row becomes 127 or
    -127. Mind a row of zeros.""",
    ("the weights must be int8", ".to(torch.int8)", ""),
    ("there must be one scale for each row, (D, 1)", "dim=1, keepdim=True", ""),
    ("the scale must be a buffer, by register_buffer, to move and to be saved with the model",
     "self.register_buffer('scale', scale)", "self.scale = scale"),
    ("round the weights: to(torch.int8) cuts off what stands behind the point", ".round()", ""),
    ("the largest number of a row becomes 127", "/ 127", "/ 128"),
    ("the bias is missing", "linear.bias", "None"))
def _(m):
    def look(linear, x):
        layer = m.Linear8bit(linear)
        return {"its buffers": {name: [part.dtype, *part.shape]
                                for name, part in sorted(layer.state_dict().items())},
                "weight * scale": layer.weight * layer.scale, "what it computes": layer(x)}

    for bias in (True, False):
        linear = noisy(torch.nn.Linear(6, 4, bias=bias))
        linear.weight.data *= torch.tensor([[0.0], [1.0], [3.0], [0.01]])       # (4, 6) * (4, 1)
        yield Trial(look, dict(linear=linear, x=torch.randn(2, 6)))


# %% The holes


@functools.cache
def source_of(file):
    """The text of a real file, with the extras in their places."""
    lines = (ROOT / f"{file}.py").read_text(encoding="utf-8").split("\n")
    for _, before, source in (extra for extra in EXTRAS if extra[0] == file):
        at = next(i for i, line in enumerate(lines) if line.startswith(before))
        lines[at:at] = [*source.split("\n"), "", ""]
    return "\n".join(lines)


parsed = functools.cache(ast.parse)


def name_of(node):
    """The name that a statement defines, or None."""
    targets = getattr(node, "targets", [None])
    return getattr(node, "name", None) or getattr(targets[0], "id", None)


@functools.cache
def find(source, name):
    """The node of a function, of a method as Class.method, or of NAME = value; None without it."""
    node = parsed(source)
    for part in name.split("."):
        named = [child for child in getattr(node, "body", []) if name_of(child) == part]
        node = named[-1] if named else None
    return node


def is_prediction(node):
    return isinstance(node, ast.Assign)


def body_of(node):
    """The statements of a function, without its docstring."""
    return node.body[1:] if ast.get_docstring(node) else node.body


def with_holes(file):
    """The text of a real file, with a hole for each of its exercises."""
    source = source_of(file)
    lines = source.split("\n")
    for e in sorted((e for e in EXERCISES if e.file == file),
                    key=lambda e: -find(source, e.name).lineno):        # from the last one up
        node = find(source, e.name)
        first, indent = node.lineno - 1, ""
        task = f"Exercise {e.number}{', a prediction' * is_prediction(node)}: {e.task}"
        hole = [f"# {line}" for line in textwrap.wrap(task, 90)]
        if is_prediction(node):
            hole.append(f"{e.name} = ...")
        else:
            first, indent = body_of(node)[0].lineno - 1, body_of(node)[0].col_offset * " "
            while lines[first - 1].lstrip().startswith("#"):            # its first comments, too
                first -= 1
            hole.append(f'raise NotImplementedError("exercise {e.number}")')
        lines[first:node.end_lineno] = [indent + line for line in hole]
    text = "\n".join([f"# {file}.py with holes. Fill them in; do not run this file, but check it, here:",
                      f"#     {this_program()}", *lines])
    shows = r'(?m)^(def show_.*\n(?s: +""".*?"""\n)?)(?:(?: .*)?\n)+?(?=\n\n)'       # they have answers
    return re.sub(shows, r"\1    ...  # left out here\n", text) if file == "attention_toy" else text


def this_program():
    """What one types to run it, whatever the current folder is."""
    path = Path(__file__).resolve()
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f'python "{path}"' if " " in str(path) else f"python {path}"


HOLE = re.compile(r"(raise )?NotImplementedError\W*exercise \d+\W*|\.\.\.")     # and no error of torch


def is_hole(node):
    parts = [node.value] if is_prediction(node) else body_of(node)
    return len(parts) == 1 and bool(HOLE.fullmatch(ast.unparse(parts[0])))


def span(text, name):
    """Where a function or NAME = stands in a text, even if Python cannot read it: (start, end)."""
    *owner, last = name.split(".")
    indent = "    " if owner else ""
    before = rf"^class {owner[0]}\b.*(\n(?!class ).*)*?\n" if owner else "^"
    lines = rf"{indent}(def {last}\b|{last} =).*(\n({indent}[ \t].*)?$)*"     # and all below it
    found = re.search(rf"{before}(?P<all>{lines})", text, re.MULTILINE)
    if not found:
        raise ValueError(f"there is no {name} any more, so it cannot start over")
    return found.start("all"), found.start("all") + len(found["all"].rstrip())


def read(path):
    """A learner's file, as Python reads it: a byte-order mark, or the name of an encoding, counts."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not in UTF-8; let your editor save it so ({error})") from None


def start_over(e):
    """Save the learner's file beside, and put one hole back."""
    path, text, holes = e.path, read(e.path), with_holes(e.file)
    (first, last), (hole_first, hole_last) = span(text, e.name), span(holes, e.name)
    beside = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(1))
    saved = next(path for path in beside if not path.exists())
    shutil.copy(path, saved)
    path.write_text(text[:first] + holes[hole_first:hole_last] + text[last:], encoding="utf-8")
    print(f"{path} as it was is saved as {saved}; exercise {e.number} is a hole again.")


def show_solution(e):
    """Print what the real file has; on a terminal, ask first."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        print(f"The solution of exercise {e.number}, {e.name}. A hint may do:\n{this_program()} "
              f"{e.number}\nShow it? [y/N] ", end="", flush=True)
        if not sys.stdin.readline().strip().lower().startswith("y"):
            return
    node, lines = find(source_of(e.file), e.name), source_of(e.file).split("\n")
    first = min(part.lineno for part in (node, *getattr(node, "decorator_list", [])))
    print("\n".join(lines[first - 1:node.end_lineno]))


# %% The checks, in a child process


@dataclass
class Raised:
    """What came of a trial that ended with an exception."""

    name: str
    message: str
    place: str = field(compare=False)                   # in the learner's file

    def __str__(self):
        return f"{self.place}{self.name}: {self.message}"


FAR = 10**6                     # added to the numbers of lines that are not the learner's


def raised(error, filename):
    places = [f"{filename}, line {frame.lineno}: "
              for frame in traceback.extract_tb(error.__traceback__)
              if frame.filename == filename and frame.lineno < FAR]
    message = textwrap.shorten(str(error), 160, placeholder=" ...")
    return Raised(type(error).__name__, message, places[-1] if places else "the check ends with ")


ADVICE = {          # what is said in place of an error, to those who do not know it yet
    r"bitwise_xor|for \^": "in Python a power is **; ^ is something else",
    "boolean mask|tensors used as indices":
        f"indices must be integers, and a mask must be bool; {MAKE_BOOL}",
    "one element tensors can be|'input' .* must be Tensor, not (int|float)":
        "math.sqrt and the like are for numbers, torch.sqrt and the like are for tensors",
    "Boolean value of Tensor": "a tensor of several numbers is neither true nor false; whether it is "
                               "there at all, ask `is not None`",
    "shapes cannot be multiplied|batch2|mat .*vec":
        "in a @ b, the last dimension of a must be as long as the last but one of b",
    "Use .reshape": "view cannot do this, and reshape can; but where dimensions must swap, it mixes "
                    "up the numbers, and transpose does not",
    "BdbQuit|EOFError": "nothing can be typed in while this runs; print works"}


def advice(error):
    """An error in words: where it was, and advice, if there is some, or what Python says."""
    said = next((said for words, said in ADVICE.items() if re.search(words, str(error))), None)
    unknown = re.match("name '(.+)' is not defined", error.message)
    if unknown and any(unknown[1] in names_of(other.file) for other in EXERCISES):
        said = f"{unknown[1]} is in another file, and unknown in this one; make anew here what it gives"
    return error.place.replace("the check ends with ", "") + said if said else str(error)


@functools.cache
def names_of(file):
    """The names of a real file, with those of the extras."""
    names = dict(vars(importlib.import_module(file)))
    for _, _, source in (extra for extra in EXTRAS if extra[0] == file):
        exec(source, names)
    return names


@functools.cache
def class_of(file, name):
    """The node of a class of a real file, with numbers of lines that cannot be the learner's."""
    return ast.increment_lineno(copy.deepcopy(find(source_of(file), name)), FAR)


def in_its_class(e, node):
    """A method in a class that has everything else from the real one; a function as it is."""
    if "." not in e.name:
        return node
    owner = copy.copy(class_of(e.file, e.name.split(".")[0]))
    owner.body = [node if name_of(part) == node.name else part for part in owner.body]
    return owner


def among_names(e, node, helpers=(), filename="mistake"):
    """The names of the real module, with `node` as the function of an exercise, and helpers."""
    names, node = dict(names_of(e.file)), in_its_class(e, node)
    for helper in helpers:
        with contextlib.suppress(Exception):            # who needs it will say that it is missing
            exec(compile(ast.Module([helper], []), filename, "exec"), names)
    exec(compile(ast.Module([node], []), filename, "exec"), names)
    return SimpleNamespace(**names)


@functools.cache
def real_body(e):
    """The body of a real function (or the value of a prediction) as text, with no comments."""
    node = find(source_of(e.file), e.name)
    parts = [node.value] if is_prediction(node) else body_of(node)
    return "\n".join(map(ast.unparse, parts))


def by_mistake(e, mistakes):
    """The real function of an exercise, a node, with mistakes in it.

    Raises LookupError if one does not fit, SyntaxError if nothing sensible comes of it.
    """
    node, body = copy.copy(find(source_of(e.file), e.name)), real_body(e)
    for _, *pairs in mistakes:
        for old, new in zip(pairs[::2], pairs[1::2]):
            if old not in body:
                raise LookupError(f"{e.name} has no {old!r}")
            body = body.replace(old, new)
    if is_prediction(node):
        node.value = ast.parse(body).body[0].value
    else:
        node.body = ast.parse(body).body
    return node


def by_learner(e, source, filename):
    """The names of the real module, with the learner's function, and what only the learner has."""
    def is_new(node):
        names = {getattr(part, "name", None) for part in getattr(node, "names", [])}
        return bool({*names, name_of(node)} - {None, *names_of(e.file)})

    helpers = [node for node in parsed(source).body if is_new(node)]
    return among_names(e, find(source, e.name), helpers, filename)


@functools.cache
def outcomes_of(e, mistakes=()):
    """The outcomes of the real function, or of it with mistakes."""
    return list(outcomes(e, among_names(e, by_mistake(e, mistakes))))


class Outcome(NamedTuple):
    """A trial, its inputs as they were, its result or what it Raised, and what it printed."""

    trial: Trial
    inputs: dict
    result: Any
    printed: str


def outcomes(e, m, filename=None):
    """Do the trials of an exercise: yields Outcomes."""
    trials = e.trials(m)
    for seed in itertools.count():
        torch.default_generator.manual_seed(seed)       # the same inputs, and the same draws
        trial = next(trials, None)
        if trial is None:
            return
        inputs = {name: copy.deepcopy(value) if isinstance(value, (list, torch.Tensor)) else value
                  for name, value in trial.inputs.items()}
        printed = io.StringIO()
        with (contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed),
              warnings.catch_warnings()):
            warnings.simplefilter("ignore")
            try:
                result = trial.call(**trial.inputs)
                for name, value in trial.inputs.items():
                    if value is not inputs[name] and difference(value, inputs[name]):
                        result = Raised(f"{name} is changed", "the caller needs it as it was", "")
            except (Exception, SystemExit) as error:
                result = raised(error, filename)
        yield Outcome(trial, inputs, result, printed.getvalue())


MISSING = object()


MADE_BY = {"bool": f"; {MAKE_BOOL}", "int64": "; torch.arange(1, n + 1) makes integers"}


def has_tensors(value):
    return torch.is_tensor(value) or isinstance(value, (list, tuple)) and any(map(has_tensors, value))


def apart(found, expected, where=""):
    """How two numbers differ, in words, with as many digits as it takes."""
    pairs = ([f"{x:.{digits}g}" if isinstance(x, float) else str(x) for x in (found, expected)]
             for digits in range(4, 18))
    a, b = next(pair for pair in pairs if pair[0] != pair[1])
    nan = "; nan comes of a row that is all -inf, of 0/0, or of the root of a negative number"
    return f"{a} came out{where}, not {b}" + nan * (a == "nan")


def difference(found, expected):
    """How what was found differs from what was expected, in words; None if it does not."""
    match found, expected:
        case Raised(), Raised() if found == expected or found.name == expected.name == "ValueError":
            return None
        case Raised(), Raised(name="ValueError"):
            return f"{found}; it must be a ValueError"
        case Raised(), _:
            return str(found)
        case _, Raised(name="ValueError"):
            return f"{brief(found)} came out, but it must raise ValueError"
        case dict(), dict():
            pairs = {key: (found.get(key, MISSING), expected.get(key, MISSING))
                     for key in {**expected, **found}}
        case (list(), list()) | (tuple(), tuple()) if has_tensors(found + expected):
            both = itertools.zip_longest(found, expected, fillvalue=MISSING)
            pairs = {f"part {i}": pair for i, pair in enumerate(both, start=1)}
        case _ if expected is MISSING:
            return "there must be none"
        case _ if found is MISSING:
            return "it is missing"
        case torch.Tensor(), torch.Tensor() if found.shape == expected.shape:
            a, b = found.detach().double(), expected.detach().double()
            wrong = ~torch.isclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
            ours, theirs = (brief(x).split()[0] for x in (found, expected))     # float32, or the like
            if not wrong.any():
                return None if ours == theirs else (
                    f"the numbers are right, but {ours}, not {theirs}{MADE_BY.get(theirs, '')}")
            if ours != theirs:
                return f"{brief(found)} came out, not {brief(expected)}"
            gaps = (a - b).abs()[wrong].nan_to_num(math.inf)            # the largest says most
            at = tuple(wrong.nonzero()[gaps.argmax()].tolist())
            return apart(found[at].item(), expected[at].item(), f" at {list(at)}" if at else "")
        case (int() | float()), (int() | float()):
            same = math.isclose(found, expected, rel_tol=1e-4) or repr(found) == repr(expected)
            return None if same else apart(found, expected)
        case _ if not torch.is_tensor(found) and repr(found) == repr(expected):
            return None
        case _:
            return f"{brief(found)} came out, not {brief(expected)}"
    words = ((name, difference(*pair)) for name, pair in pairs.items())
    return next((f"{name}: {what}" for name, what in words if what), None)


def brief(value):
    """A value in a few words."""
    match value:
        case torch.Tensor():
            return f"{str(value.dtype).replace('torch.', '')} {tuple(value.shape)}"
        case float():
            return f"{value:.4g}"
        case Raised():
            return str(value)
        case list() | tuple() if has_tensors(value):
            words = ", ".join(map(brief, value))
            return f"[{words}]" if isinstance(value, list) else f"({words})"
    return textwrap.shorten(repr(value), 60, placeholder=" ...")


def show(value):
    """A value on as many lines as it needs."""
    match value:
        case dict():
            parts = {name: show(part) for name, part in value.items()}
            return "\n".join(f"{name}: {part}" if "\n" not in part and len(name + part) < 64 else
                             f"{name}:\n{textwrap.indent(part, 4 * ' ')}"
                             for name, part in parts.items()) or "none"
        case torch.Tensor():
            small = value.is_floating_point() and 0 < value.detach().abs().sum() < 0.01 * value.numel()
            torch.set_printoptions(precision=3, sci_mode=small, threshold=60, linewidth=60)
            text = f"{brief(value)}\n{value.detach()}"
            torch.set_printoptions(profile="default")
            return text
        case list() | tuple() if has_tensors(value):
            return show({f"part {i}": part for i, part in enumerate(value, start=1)})
        case gpt.Config():
            names = (f.name for f in fields(value) if getattr(value, f.name) != f.default)
            return textwrap.fill(", ".join(f"{name} {getattr(value, name)}" for name in names), 66)
        case torch.nn.Module():
            return f"a {type(value).__name__}"
    return "nothing" if value is MISSING else textwrap.fill(
        textwrap.shorten(str(value), 300, placeholder=" ..."), 66)


def usual_mistake(e, mine, failed):
    """The sentence of the mistake that gives what the learner's function gives, in all trials, or
    of two; else of one that does so up to the trial that failed first. None if there are none."""
    first, began = mine[:failed + 1], time.monotonic()
    for number, tried in ((1, mine), (2, mine), (1, first)):
        for mistakes in itertools.combinations(e.mistakes, number):
            if number == 2 and time.monotonic() > began + SECONDS / 2:
                break
            try:
                theirs = (outcomes_of(e, mistakes) if number == 1 else
                          outcomes(e, among_names(e, by_mistake(e, mistakes))))
            except (LookupError, SyntaxError):              # not all two go together
                continue
            if not any(difference(o.result, other.result) for o, other in zip(tried, theirs)):
                words = ". And: ".join(dict.fromkeys(sentence for sentence, *_ in mistakes))
                return words if tried is mine else (
                    f"perhaps {words} (it would explain input {failed + 1}, not all others)")
    return None


def judge(number, source, filename):
    """Check an exercise: ("done", "not yet" or "wrong", and perhaps why; what was tried, in lines)."""
    e = EXERCISES[number - 1]
    node = find(source, e.name)
    try:
        mine = list(outcomes(e, by_learner(e, source, filename), filename))
    except Exception as error:                          # already in its definition
        return f"wrong: {advice(raised(error, filename))}", ""
    pairs = enumerate(zip(mine, outcomes_of(e)))
    failed = next((i for i, (a, b) in pairs if difference(a.result, b.result)), None)
    _, inputs, found, printed = mine[failed or 0]
    printed = "\n".join(textwrap.fill(line, 74) for line in printed.split("\n")).rstrip()
    parts = {"What it printed": printed}
    in_lines = lambda parts: "\n".join(f"{title}:\n" + textwrap.indent(part, 4 * " ")
                                       for title, part in parts.items() if part)
    if failed is None:
        words = e.why or is_shortcut(e, node) and "right, but that is the function you were to write"
        return (f"done: {words}" if words else "done"), in_lines(parts)
    expected = outcomes_of(e)[failed].result
    words = difference(found, expected)
    if isinstance(found, Raised) and HOLE.fullmatch(f"{found.name}: {found.message}"):
        return "not yet: the line `raise NotImplementedError(...)` is still there; remove it", ""
    if isinstance(found, Raised) and not isinstance(expected, Raised):
        words = advice(found)
    if is_prediction(node):                             # and keep the answer a secret
        words = ("what is wanted is a tuple, such as (5, 5)"
                 if isinstance(expected, tuple) and not isinstance(found, tuple) else
                 f"not {brief(found)}; work it out with pen and paper")
        return f"wrong: {usual_mistake(e, mine, failed) or words}", ""
    kinds = {type(part) for part in ast.walk(node)}
    if not (kinds & {ast.Return, ast.Yield} or e.name.endswith("__init__")) and re.search(
            "None came|the check ends.*None", words):
        words = "None came out; is there a return?"
    words = usual_mistake(e, mine, failed) or words
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [key for key in {**expected, **found}    # of these, show only what differs
                if difference(found.get(key, MISSING), expected.get(key, MISSING))]
        found, expected = ({key: part.get(key, MISSING) for key in keys}
                           for part in (found, expected))
    told = isinstance(found, Raised) and str(found) in words            # and once is enough
    return f"wrong: {words}", in_lines({
        f"Input {failed + 1} of {len(mine)}": show(inputs), **parts,
        "What came out": "" if told else show(found), "What was expected": show(expected)})


def is_shortcut(e, node):
    """Does a function by hand call the one of PyTorch? (Or any that of attention, or backward.)"""
    plain = lambda name: name.lower().replace("_", "")
    names = lambda node: {plain(getattr(part, "attr", getattr(part, "id", "")))
                          for part in ast.walk(node)}
    easy = {"backward", "scaleddotproductattention", *re.findall("(.+)byhand", plain(e.name))}
    return bool(names(node) & easy - names(find(source_of(e.file), e.name)))


def print_anything():
    """Whatever is printed, no console of whatever encoding ends in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def serve(pipe):
    """The life of the child: check what it is asked to check, until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is for the parent
    print_anything()
    torch.set_num_threads(1)
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(judge(*pipe.recv()))


class Child:
    """A process that checks. If it hangs or dies, the next question goes to a new one."""

    process = None

    def ask(self, *question):
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, its_end = context.Pipe()
            self.process = context.Process(target=serve, args=[its_end], daemon=True)
            self.process.start()
            its_end.close()
            self.pipe.recv()                            # it is ready: torch takes its time
        self.pipe.send(question)
        try:
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            answer = f"wrong: no end after {SECONDS} seconds; is there an endless loop?"
        except EOFError:
            answer = "wrong: it ends the whole program"
        self.process.kill()
        self.process = None
        return answer, ""


# %% The command


def number_of(text):
    """The number of an exercise that is called by its number or its name."""
    for e in EXERCISES:
        if text.lower() in (str(e.number), e.name.lower()):
            return e.number
    raise argparse.ArgumentTypeError(f"there is no exercise {text}; they go from 1 to {len(EXERCISES)}")


def main(arguments=None):
    print_anything()
    parser = argparse.ArgumentParser("rebuild.py", description="Write gpt.py yourself.")
    number = dict(type=number_of, metavar="EXERCISE")
    parser.add_argument("numbers", nargs="*", help="check these (numbers or names)", **number)
    parser.add_argument("--solution", help="show what the real file has there", **number)
    parser.add_argument("--start-over", help="put this hole back, after saving the file", **number)
    options = parser.parse_args(arguments)
    try:
        code = follow(options)
        print(end="", flush=True)
        return code
    except BrokenPipeError:                             # who reads what is printed has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, ValueError) as error:
        print(error)
        return 2


def follow(options):
    """Do what the options say; return the exit code."""
    if options.solution:
        return show_solution(EXERCISES[options.solution - 1])
    for e in EXERCISES:
        if not e.path.exists():
            e.path.write_text(with_holes(e.file), encoding="utf-8")
            print(f"{e.path} is written: {e.file}.py with holes.")
    if options.start_over:
        start_over(EXERCISES[options.start_over - 1])

    chosen = [e for e in EXERCISES if e.number in (options.numbers or range(len(EXERCISES) + 1))]
    sources = {e.path: read(e.path) for e in chosen}
    for path, source in sources.items():
        try:
            compile(source, path, "exec")
        except (SyntaxError, ValueError) as error:      # ValueError: a character 0
            line, why = getattr(error, "lineno", None) or 1, getattr(error, "msg", error)
            print(f"{path}, line {line}: {why}; Python cannot read the file.")
            return 1
    child, states = Child(), {}
    for e in chosen:
        node, details = find(sources[e.path], e.name), ""
        if node is None:
            states[e] = f"wrong: there is no {e.name} in {e.path} any more"
        elif is_hole(node):
            states[e] = f"not yet: {e.task}"
        else:
            states[e], details = child.ask(e.number, sources[e.path], str(e.path))
        if options.numbers:
            print(details and f"{details}\n\n", row(e, states[e]), sep="")
    if not options.numbers:
        show_all(states)
    elif all(state.startswith("done") for state in states.values()):
        show_next(chosen[-1])
    return 0 if all(state.startswith("done") for state in states.values()) else 1


def place_of(e):
    node = find(read(e.path), e.name)
    return f"{e.path} line {node.lineno}" if node else str(e.path)


def row(e, state, mark=""):
    """A line about an exercise, and below it what is to be said."""
    kind, _, words = state.partition(": ")
    first = f"{mark:<2}{e.number:>3}  {e.name:<28} {place_of(e):<28} {kind}"
    return "\n       ".join([first, *textwrap.wrap(words, 72, break_on_hyphens=False)])


def show_all(states):
    """Print all exercises, phase by phase; a phase that is done, or not begun, in one line."""
    kinds = {e: state.partition(": ")[0] for e, state in states.items()}
    begun, undone = ([e for e in kinds if kinds[e] != kind] for kind in ("not yet", "done"))
    following = next((e for e in undone if begun and e.number >= begun[-1].number), [*undone, None][0])
    is_open = False
    for number, (title, ability) in enumerate(PHASES, start=1):
        mine = [e for e in kinds if e.phase == number]
        found, was_open = {kinds[e] for e in mine}, is_open
        is_open = following in mine or found not in ({"done"}, {"not yet"})
        print("\n" * (is_open or was_open) + f"Phase {number}, {title}: {ability} ({mine[0].number} to "
              f"{mine[-1].number}{'' if is_open else ', ' + found.pop()})")
        for e in mine if is_open else []:
            mark = "->" if e == following else ""
            print(row(e, states[e] if kinds[e] == "wrong" else kinds[e], mark))
    if not undone:
        print(f"\nAll {len(kinds)} are done. You have written a GPT: python my_gpt.py")
        return
    wrong = ", ".join(str(e.number) for e in undone if kinds[e] == "wrong")
    words = (f"{len(kinds) - len(undone)} of {len(kinds)} are done; {wrong and f'wrong: {wrong}; '}"
             f"next is exercise {following.number}, {place_of(following)}.")
    print("\n" + textwrap.fill(words, 79))
    if not begun:
        print(f"""Open the file, put your code in place of the hole, save, and run this again:
    {this_program()}
With a number or a name behind it (1, SHAPE_OF_A_SUM), it checks one exercise
and says more. --solution 1 shows the real one; --start-over 1 makes the hole
anew, and keeps a copy of the file.""")


def show_next(last):
    """Print what comes after an exercise that is done: the next hole."""
    holes = []
    for e in EXERCISES:
        with contextlib.suppress(SyntaxError, ValueError, AttributeError):      # in a broken file
            holes += [e] * is_hole(find(read(e.path), e.name))
    if last.phase not in [e.phase for e in holes]:
        print(f"Phase {last.phase} has no holes left. Now you can {PHASES[last.phase - 1][1]}.")
    for e in ([e for e in holes if e.number > last.number] or holes)[:1]:
        print(f"Next is exercise {e.number}, {e.name}: {place_of(e)}.")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
