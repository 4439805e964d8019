"""Write it yourself: gpt.py with holes, a check of what you put into them, and a GPT of your own parts.

    python tests/rebuild.py                     writes the files with holes; later, checks them
    python tests/rebuild.py 9                   checks one exercise (or: pick), and says more
    python tests/rebuild.py --solution 9        shows what the real file has there
    python tests/rebuild.py --start-over 9      makes that hole anew; what was there is saved beside
    python tests/rebuild.py --train             trains a GPT of your parts beside the real one

The first run writes my_gpt.py, my_attention_toy.py and my_bigram.py into the current folder: the real files (gpt.py up
to its appendix), but some functions have lost their bodies, and a comment says what to write there. Between the
chapters stand parts that gpt.py takes from PyTorch, such as linear_by_hand; these come from by_hand.py. Here and there
is a question: predict the answer, and write it down as a value. The exercises come in eight phases, but any order will
do: while one is checked, all other functions are the real ones. What you have written is never written over.

Your function does what the real one does in the same trials, in a process of its own, and what comes out is compared.
If something differs, the usual mistakes are tried: if one of them gives what yours gives, its sentence is the answer.
"""

import argparse
import ast
import copy
import functools
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import textwrap
import tokenize
import traceback
import types
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
if __name__ != "__main__":      # the program itself only reads and prints; other processes compute
    import gpt  # before torch: it silences torch's warning that NumPy is missing
    import torch


class Refused(ValueError):
    """What somebody typed or wrote cannot be read. All other errors show their tracebacks."""


SECONDS = 10                    # for the trials of one exercise; what takes longer never ends


# %% The exercises
# Each has a file, a name in it, what its hole says, the trials, and the usual mistakes.
#
# Trials are lines, as one would type them at a prompt. What each expression gives must be what it
# gives with the real file. An error that a line is to end with stands behind it. Random numbers
# begin anew for each line.
#
# A mistake is a sentence and a change of the real function: either a pattern of Python and what
# takes its place, where _a, _b, ... stand for anything, so that no name of a local variable is
# needed; or the whole function, as one writes it by mistake; or, for a prediction, another answer.

PHASES = []                                     # (title, what one can do after it)
EXERCISES = []


@dataclass(eq=False)
class Exercise:
    file: str
    name: str                                   # a function, Class.method, class, or a value to predict
    task: str
    trials: str
    mistakes: tuple
    number: int
    phase: int
    without: str = ""                           # what must not be called by it, as it is to be written
    why: str = ""                               # said when it is right
    is_prediction: bool = False

    def __post_init__(self):
        self.task = " ".join(self.task.split())
        self.lines = [line.strip() for line in self.trials.splitlines() if line.strip()]
        self.path = Path(f"my_{self.file}.py")

    def raises(self, line):
        """Is this trial to end with an error? Then its line says so."""
        return re.search("# [A-Za-z]*Error$", line) is not None


def exercise(file, name, task, trials, *mistakes, **more):
    EXERCISES.append(Exercise(file, name, task, trials, mistakes, len(EXERCISES) + 1, len(PHASES), **more))


def prediction(name, question, why, *mistakes, trial="{}"):
    exercise("gpt", name, question, trial.format(name), *mistakes, why=why, is_prediction=True)


PHASES.append(("Tensors", "combine, reorder and index tensors"))

prediction(
    "SHAPE_OF_A_SUM", "Which shape has torch.ones(4, 1) + torch.ones(3)? Write it as a tuple.",
    "the column is repeated 3 times, the row 4 times",
    ("it is the column that has 4 rows, and the row that has 3 columns", "(3, 4)"),
    ("the column is repeated, too: 3 times, to fit the row", "(4, 1)"),
    ("both are repeated, to a table: a column has rows, a row has columns", "(4,)"), trial="tuple({})")

exercise(
    "gpt", "weighted_sum", """Multiply and add up, without a loop. (`weights @ x` does it in one; try
    it by hand first.)""", """
    weighted_sum(torch.tensor([1.0, 10.0]), torch.tensor([[1.0, 2.0], [4.0, 5.0]]))
    weighted_sum(torch.randn(3), torch.randn(3, 3))
    weighted_sum(torch.randn(1), torch.randn(1, 2))
    """,
    ("each row has one weight, so the weights must be a column, (T, 1)", "_a[:, None]", "_a"),
    ("the rows must be added up, so the sum runs over dim=0", "_a.sum(dim=0)", "_a.sum(dim=1)"),
    ("the mean came out, not the sum", "_a.sum(dim=0)", "_a.mean(dim=0)"))

prediction(
    "FIRST_ROW", """x is [[1, 2, 3], [4, 5, 6]]. What is the first row of x.reshape(3, 2)? Write it
    as a tuple.""", "reshape reads 1 2 3 4 5 6, row by row, and cuts it anew",
    ("this is the first row of x.transpose(0, 1); reshape reads 1 2 3 4 5 6 and cuts it anew", "(1, 4)"),
    ("the rows have 2 numbers each", "(1, 2, 3)"), trial="tuple(int(i) for i in {})")

exercise(
    "gpt", "pick", """Index by two tensors of integers: one says in which rows to look, the other in
    which columns.""", """
    pick(torch.tensor([[1, 2], [4, 5]]), torch.tensor([1, 1]))
    pick(torch.randn(3, 3), torch.tensor([2, 2, 0]))
    pick(torch.randn(4, 2), torch.tensor([1, 0, 1, 1]))
    """,
    ("table[:, ids] looks up all these columns in all rows; the rows need a tensor, too",
     "_a[_b, ids]", "_a[:, ids]"),
    ("table[ids] looks up whole rows; the ids are columns", "_a[_b, ids]", "_a[ids]"),
    ("rows come first, then columns", "_a[_b, ids]", "_a[ids, _b]"))


PHASES.append(("Text and batches", "turn a text into examples"))

exercise(
    "gpt", "CharTokenizer.encode", """self.ids has the id of each character. Raise ValueError if one
    is not in it.""", """
    CharTokenizer("hello").encode("hole")
    CharTokenizer("hello").encode("")
    CharTokenizer("hello").encode("help")       # ValueError
    """,
    ("an unknown character must raise ValueError; a dictionary raises KeyError",
     "def encode(self, text): return [self.ids[character] for character in text]"),
    ("unknown characters are left out without a word",
     "def encode(self, text): return [self.ids[c] for c in text if c in self.ids]"),
    ("these are the numbers of Unicode; use self.ids", "self.ids[_a]", "ord(_a)"))

exercise(
    "gpt", "CharTokenizer.decode", """The way back: self.vocabulary has each character at the place
    that is its id.""", """
    CharTokenizer("hello").decode([1, 0, 2, 2, 3])
    CharTokenizer("hello").decode([])
    """,
    ("a list came out; join the characters", "''.join(_a)", "list(_a)"),
    ("these are the characters of Unicode; use self.vocabulary", "self.vocabulary[_a]", "chr(_a)"))

prediction(
    "NUMBER_OF_WINDOWS", """A text has 10 tokens, and T = 4. At how many positions can a window of
    T + 1 tokens begin?""", "the positions 0 to 5: from there on, at least 5 tokens are left",
    ("a window takes T + 1 = 5 tokens, because the last input needs a target, too", "7"),
    ("a window takes 5 tokens; count the positions 0, 1, ... again", "5"))

exercise(
    "gpt", "get_batch", """Raise ValueError if there is no window of T + 1 tokens. Then
    torch.manual_seed(1_000_003 * config.seed + step), one torch.randint for the B positions, and
    the windows that begin there. PyTorch wants ids as int64.""", """
    get_batch(torch.arange(100), 0, Config(batch_size=2, block_size=4))
    get_batch(torch.arange(100), 1, Config(batch_size=2, block_size=4, seed=2))
    get_batch(torch.arange(100, dtype=torch.int32), 5, Config(batch_size=1, block_size=3))
    get_batch(torch.arange(6), 5, Config(batch_size=9, block_size=4))
    get_batch(torch.arange(5), 0, Config(batch_size=1, block_size=4))
    get_batch(torch.arange(4), 0, Config(block_size=4))     # ValueError
    """,
    ("the targets are not shifted; they are one token later", "_a[:, 1:]", "_a[:, :-1]"),
    ("the last window is never drawn; count again at how many positions one can begin",
     "torch.randint(len(data) - _a, _b)", "torch.randint(max(len(data) - _a - 1, 1), _b)"),
    ("the ids must be int64: .long()", "_a.long()", "_a"))

exercise(
    "gpt", "train_val_split", """The first part has 9/10 of the text, or all but 200,000 if that is
    more. Cut between whole characters, with //.""", """
    train_val_split("0123456789")
    train_val_split("0123456789abcdefgh")
    [len(part) for part in train_val_split(range(3_000_000))]
    """,
    ("the parts are swapped", "return _a, _b", "return _b, _a"),
    ("of a long text, only 200,000 are held out", "max(_a, _b)", "_a"),
    ("of a short text, a tenth is held out", "max(_a, _b)", "max(_b, 0)"))

exercise(
    "gpt", "WindowDataset", """Three short methods. A DataLoader puts them to work: with the positions
    that get_batch draws, it makes the batches of chapter 3.""", """
    len(WindowDataset(torch.arange(6), block_size=2)), WindowDataset(torch.arange(6), 2)[3]
    len(WindowDataset(torch.arange(5), block_size=4))
    starts = torch.randint(96, (2,)).tolist()
    list(torch.utils.data.DataLoader(WindowDataset(torch.arange(100), 4), batch_size=2, sampler=starts))
    """,
    ("the length counts tokens, not windows: a window takes T + 1", "len(self.data) - _a", "len(self.data)"),
    ("the targets are not shifted; they are one token later", "return _a[:-1], _a[1:]", "return _a[:-1], _a[:-1]"),
    ("there is one window more", "len(self.data) - _a", "len(self.data) - _a - 1"))


PHASES.append(("Bigram", "say what a loss is, and find its slopes"))

exercise(
    "gpt", "BigramLanguageModel.forward", """self.table(idx) looks up a row of logits for each token.
    F.cross_entropy does the rest, if its predictions are one list, (B*T, V), and its targets
    another, (B*T,).""", """
    model = BigramLanguageModel(5)
    _ = nn.init.normal_(model.table.weight)
    model(torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, 3]]))
    model(torch.randint(5, (3, 4)), torch.randint(5, (3, 4)))
    model(torch.tensor([[4, 4]]))
    """,
    ("without targets, the loss is None",
     """def forward(self, idx, targets=None):
        logits = self.table(idx)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())"""),
    ("the logits are not flattened: F.cross_entropy takes T for the vocabulary",
     """def forward(self, idx, targets=None):
        logits = self.table(idx)
        return logits, None if targets is None else F.cross_entropy(logits, targets)"""),
    ("these are probabilities; logits come before the softmax", "self.table(_a)", "self.table(_a).softmax(-1)"))

exercise(
    "gpt", "softmax_by_hand", """amax has the largest number of each row, exp() and sum() do the rest.
    keepdim=True keeps what is computed for a row as a column.""", """
    softmax_by_hand(torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0]))
    softmax_by_hand(torch.randn(3, 3))
    softmax_by_hand(torch.randn(2, 3, 5))
    softmax_by_hand(200 * torch.randn(2, 4))
    x = torch.randn(1, 3)
    softmax_by_hand(x), x                       # x is as it was
    """,
    ("exp(100) is infinite in 32 bits, and inf / inf is nan; subtract the largest logit first",
     "_a - _a.amax(dim=-1, keepdim=True)", "_a"),
    ("the sums must stay a column: keepdim=True", "_a.sum(dim=-1, keepdim=True)", "_a.sum(dim=-1)"),
    ("each row must sum to 1: dim=-1", "_a.sum(dim=-1, keepdim=True)", "_a.sum()"), without="softmax log_softmax")

exercise(
    "gpt", "cross_entropy_by_hand", """The logarithm of a probability is its logit minus
    logsumexp(dim=-1) of the row (or use softmax and log). Pick that of the target in each row.""", """
    cross_entropy_by_hand(torch.tensor([[2.0, 1.0, 0.0, 0.0, -1.0]]), torch.tensor([1]))
    cross_entropy_by_hand(3 * torch.randn(3, 3), torch.tensor([2, 0, 0]))
    cross_entropy_by_hand(3 * torch.randn(4, 7), torch.randint(7, (4,)))
    logits = torch.randn(2, 3, requires_grad=True)
    torch.autograd.grad(cross_entropy_by_hand(logits, torch.tensor([1, 0])), logits)
    """,
    ("the sign is wrong: logarithms of probabilities are negative, a loss is not", "-_a", "_a"),
    ("the mean is wanted, not the sum", "_a.mean()", "_a.sum()"),
    ("logits are no logarithms of probabilities yet: subtract logsumexp",
     "_a - _a.logsumexp(dim=-1, keepdim=True)", "_a"), without="cross_entropy nll_loss log_softmax")

prediction(
    "FIRST_LOSS", """A model knows nothing yet, so it gives the same probability to each of 65 tokens.
    What is its loss? (You may write a formula.)""", "-ln(1 / 65) = ln(65)",
    ("this is the probability; the loss is -ln of it", "1 / 65"),
    ("the logarithm is the natural one, math.log", "math.log2(65)"),
    ("this is the perplexity; the loss is its logarithm", "65"), trial="round(float({}), 1)")

exercise(
    "bigram", "count_pairs", """Without a loop: number the pairs from 0 to V*V - 1, in the order in
    which the table has them, and let torch.bincount count the numbers.""", """
    count_pairs(torch.tensor([0, 1, 0, 1, 0, 0]), vocab_size=2)
    count_pairs(torch.randint(5, (30,)), vocab_size=5)
    count_pairs(torch.tensor([0, 1]), vocab_size=3)
    """,
    ("the table is transposed: row i is the token before, column j the one after it",
     "_a.view(_b, _b)", "_a.view(_b, _b).T"),
    ("the last pairs may never occur; bincount has minlength=",
     "torch.bincount(_a, minlength=_b)", "torch.bincount(_a)"))

exercise(
    "bigram", "gradient_by_hand", """For each of N = B*T positions: the probabilities (N, V) minus the
    one-hot vectors of the targets. Add up these rows, each into the row of the table that its token
    looked up: index_add, or a product with F.one_hot(idx, V). Divide by N.""", """
    gradient_by_hand(torch.zeros(5, 5), torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, 3]]))
    gradient_by_hand(torch.randn(4, 4), torch.randint(4, (2, 5)), torch.randint(4, (2, 5)))
    """,
    ("the mean loss is wanted, so divide by the number of positions", "_a / len(idx)", "_a"),
    ("the sign is wrong: probabilities minus one-hot", "_a - F.one_hot(_b, _c)", "F.one_hot(_b, _c) - _a"),
    ("of positions with the same token only one counts; add them all up",
     "_a.index_add(0, idx, _b)", "_a.index_copy(0, idx, _b)"), without="backward grad")


PHASES.append(("Attention", "write self-attention with several heads"))

MEANS = """
    {0}(torch.tensor([[[6.0, 0.0], [2.0, 4.0], [1.0, 8.0]]]))
    {0}(torch.randn(2, 5, 5))
    {0}(torch.randn(1, 1, 3))
    """

exercise(
    "attention_toy", "mean_by_loop", """For each position t, take the mean over dim=1 of the tokens 0
    to t; stack these means.""", MEANS.format("mean_by_loop"),
    ("a token sees itself, too; x[:, :t] ends before it", "x[:, :_a + 1]", "x[:, :_a]"),
    ("a token sees its future; x[:, :t + 1] has those before it, and itself", "x[:, :_a + 1]", "x[:, _a:]"),
    ("the mean is over the channels; time is dim=1", "_a.mean(dim=1)", "_a.mean(dim=-1)"))

exercise(
    "attention_toy", "mean_by_matrix", """The weights are a matrix (T, T): 1 / (t + 1) in the columns
    0 to t of row t, and 0 after them. tril() keeps a lower triangle. One product with x.""",
    MEANS.format("mean_by_matrix"),
    ("the triangle is upside down: a token sees its future, not its past", "_a.tril()", "_a.triu()"),
    ("the columns were divided by their sums; it is the rows that must sum to 1",
     "_a.sum(dim=1, keepdim=True)", "_a.sum(dim=0, keepdim=True)"),
    ("these are sums; divide each row of the triangle by its sum", "_a / _a.sum(dim=1, keepdim=True)", "_a"))

exercise(
    "attention_toy", "mean_by_softmax", """Scores (T, T) that are all 0, minus infinity above the
    diagonal, softmax, and one product with x. masked_fill(mask, -math.inf) wants True where it is
    to fill.""", MEANS.format("mean_by_softmax"),
    ("the mask is missing: each token sees the whole text", "_a.masked_fill(_b, _c)", "_a"),
    ("the diagonal is masked, too: triu(1) begins above it", "_a.triu(1)", "_a.triu(0)"),
    ("softmax must run along each row: dim=-1", "F.softmax(_a, dim=-1)", "F.softmax(_a, dim=0)"))

exercise(
    "gpt", "attention", """Scores, mask, softmax, mean, as the comment above says. Mind the dimensions
    in front: only the last two of k are exchanged, and the scores are as many as there are pairs of
    tokens.""", """
    q = k = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    attention(q, k, torch.eye(3))
    attention(*torch.randn(3, 4, 4))
    attention(*torch.randn(3, 2, 2, 5, 3))
    """,
    ("the mask is missing: a token sees what comes after it", "_a.masked_fill(_b, _c)", "_a"),
    ("the scale is missing: divide the scores by sqrt(hs)", "_a / math.sqrt(_b)", "_a"),
    ("the diagonal is masked, too: a token sees itself; triu(1) begins above it", "_a.triu(1)", "_a.triu(0)"),
    without="scaled_dot_product_attention")

exercise(
    "gpt", "split_heads", """view cuts C into (nh, hs); transpose brings nh before T. The order
    matters: view never moves a number past another one.""", """
    split_heads(torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]]), 2)
    split_heads(torch.arange(24).view(2, 3, 4), 4)
    split_heads(torch.arange(12).view(1, 2, 6), 1)
    """,
    ("view alone cuts the numbers in their order, so tokens are mixed; cut C, then swap T and nh",
     "def split_heads(x, n_head):\n    B, T, C = x.shape\n    return x.reshape(B, n_head, T, C // n_head)"),
    ("T and nh are not swapped yet", "return _a.transpose(1, 2)", "return _a"),
    ("C is cut into hs groups of nh; it must be nh groups of hs", "x.view(_a, _b, _c, _d)",
     "x.view(_a, _b, _d, _c).transpose(2, 3)"))

LAYER = """
    layer = CausalSelfAttention(Config(n_embd=6, n_head={}))
    layer(torch.randn(1, 3, 6))
    layer(torch.randn(2, 4, 6))
    """

exercise(
    "gpt", "CausalSelfAttention.forward", """self.qkv gives queries, keys and values side by side; chunk
    cuts them apart. Split them into heads, self.attend, put the heads side by side again, self.proj.""",
    LAYER.format(2) + LAYER.format(3),
    ("self.proj is missing: it mixes what the heads have found", "self.proj(_a)", "_a"),
    ("reshape alone mixes tokens and heads: swap nh and T first",
     "_a.transpose(1, 2).flatten(2)", "_a.reshape(_a.shape[0], _a.shape[2], -1)"),
    ("queries, keys and values come in this order", "self.attend(_a, _b, _c)", "self.attend(_b, _a, _c)"))


PHASES.append(("GPT and its layers", "build a GPT, layer by layer"))

exercise(
    "gpt", "published_sinusoids", """A column of positions times a row of frequencies makes the angles
    (T, C/2). Sines and cosines must take turns: stack them along a new last dimension, and flatten.""", """
    published_sinusoids(3, 4)
    published_sinusoids(5, 6)
    published_sinusoids(1, 2)
    """,
    ("all sines come first, then all cosines; they must take turns",
     "torch.stack((_a, _b), dim=-1).flatten(1)", "torch.cat((_a, _b), dim=1)"),
    ("the exponent is -2i / C; torch.arange(0, C, 2) is already 2i", "torch.arange(0, _a, 2)",
     "2 * torch.arange(0, _a, 2)"),
    ("the frequencies must fall: the exponent is negative", "10000.0 ** -_a", "10000.0 ** _a"))

exercise(
    "gpt", "MLP.forward", """self.fc, GELU in its tanh form, self.proj.""", """
    layer = MLP(Config(n_embd=4))
    layer(torch.randn(2, 3, 4))
    layer(9 * torch.randn(1, 1, 4))
    """,
    ("this is the exact GELU; GPT-2's has approximate='tanh'", "F.gelu(_a, approximate='tanh')", "F.gelu(_a)"),
    ("GELU is missing: two linear layers in a row can do no more than one",
     "F.gelu(_a, approximate='tanh')", "_a"),
    ("self.proj is missing", "self.proj(_a)", "_a"))

exercise(
    "gpt", "Block.forward", """x plus attention of the normed x; then this, plus the MLP of it, normed.
    Both additions go through self.dropout.""", """
    block = Block(Config(n_embd=4, n_head=2, dropout=0.5))
    block(torch.randn(1, 3, 4))
    _ = block.eval(), nn.init.normal_(block.ln_1.bias), nn.init.normal_(block.ln_2.bias)
    block(torch.randn(2, 3, 4))
    """,
    ("attention is not added to x, it replaces it", "x + self.dropout(self.attn(_a))", "self.dropout(self.attn(_a))"),
    ("the LayerNorm stands before each layer, not behind it", "self.attn(self.ln_1(_a))", "self.ln_1(self.attn(_a))"),
    ("dropout is missing", "self.dropout(_a)", "_a"))

exercise(
    "gpt", "GPT.forward", """A ValueError if there are more tokens than self.block_size. Then down the
    drawing above: self.embed, self.dropout, each block, self.ln_f, self.lm_head, and the loss as in
    the bigram model.""", """
    model = GPT(Config(vocab_size=5, block_size=4, n_layer=2, n_head=2, n_embd=8, dropout=0.1))
    _ = [nn.init.normal_(p, std=0.5) for p in model.parameters()]
    model(torch.randint(5, (2, 4)), torch.randint(5, (2, 4)))
    model.eval()(torch.randint(5, (1, 2)))
    model(torch.randint(5, (1, 5)))             # ValueError
    """,
    ("the last LayerNorm, ln_f, is missing", "self.ln_f(_a)", "_a"),
    ("the blocks are passed by: each must get what the one before has made", "_a = _b(_a)", "_b(_a)"),
    ("dropout is missing behind embed", "self.dropout(_a)", "_a"))

exercise(
    "gpt", "LinearByHand", """In __init__, after super().__init__(), the parameters: nn.Parameter(a
    tensor) makes one, so that the optimizer finds it. torch.rand is uniform from 0 to 1. In forward,
    a product (.T swaps the dimensions of a matrix), and the bias, if there is one.""", """
    layer = LinearByHand(200, 1000)
    {name: tuple(p.shape) for name, p in layer.named_parameters()}
    [round(p.min().item() * 200**0.5, 1) for p in layer.parameters()]
    [round(p.max().item() * 200**0.5, 1) for p in layer.parameters()]
    layer = LinearByHand(3, 2)
    _ = [nn.init.normal_(p) for p in layer.parameters()]
    layer(torch.randn(2, 4, 3))
    torch.autograd.grad(layer(torch.ones(1, 3)).sum(), layer.parameters())
    layer(torch.randn(3))
    layer = LinearByHand(3, 3, bias=False)
    layer.bias, [name for name, p in layer.named_parameters()]
    _ = nn.init.normal_(layer.weight)
    layer(torch.randn(2, 3))
    """,
    ("a plain tensor is no parameter; nn.Parameter makes one of it",
     "nn.Parameter(_a / math.sqrt(_b))", "_a / math.sqrt(_b)"),
    ("the weights must be transposed: (..., C) @ (C, D)", "self.weight.T", "self.weight"),
    ("the bias is not added", "return _a if self.bias is None else _b", "return _a"), without="linear Linear")

exercise(
    "gpt", "EmbeddingByHand", """The parameter, and then index the table by a tensor of integers. It may
    have any shape; that of the result begins with it.""", """
    layer = EmbeddingByHand(300, 100)
    {name: tuple(p.shape) for name, p in layer.named_parameters()}
    round(layer.weight.std().item(), 1)
    layer = EmbeddingByHand(4, 4)
    layer.weight.data = torch.arange(16.0).view(4, 4)
    torch.autograd.grad(layer(torch.tensor([1, 1])).sum(), layer.weight)
    layer(torch.tensor([[3, 0, 3], [1, 2, 3]]))
    layer(torch.tensor(2))
    """,
    ("a plain tensor is no parameter; nn.Parameter makes one of it", "nn.Parameter(_a)", "_a"),
    ("rows must be looked up, not columns", "self.weight[_a]", "self.weight[:, _a]"),
    ("torch.rand is uniform, from 0 to 1; torch.randn is normal, with a standard deviation of 1",
     "torch.randn(_a, _b)", "torch.rand(_a, _b)"), without="embedding Embedding")

exercise(
    "gpt", "layer_norm_by_hand", """Mean and variance of the last dimension, for each token by itself;
    keepdim=True keeps it, with size 1. The variance is the mean of `(x - mean)**2`.""", """
    layer_norm_by_hand(torch.tensor([10.0, 20.0, 30.0, 40.0]), torch.ones(4), torch.zeros(4))
    layer_norm_by_hand(torch.randn(3, 3), torch.randn(3), torch.randn(3))
    layer_norm_by_hand(0.001 * torch.randn(2, 3, 5), torch.randn(5), torch.randn(5))
    """,
    ("this variance divides by C - 1; it must be C, see correction= of var",
     "(_a ** 2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True)"),
    ("divide by the square root of the variance", "_a.sqrt()", "_a"),
    ("0.00001 is missing, under the root; if all numbers are alike, it divides by 0", "_a + 1e-5", "_a"),
    without="layer_norm LayerNorm")

exercise(
    "gpt", "gelu_by_hand", "One line; torch.tanh is there.", """
    gelu_by_hand(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]))
    gelu_by_hand(2 * torch.randn(2, 3))
    """,
    ("this is the exact GELU; GPT-2's has tanh",
     "def gelu_by_hand(x): return x / 2 * (1 + torch.erf(x / math.sqrt(2)))"),
    ("x^3 is x**3 in Python, and 0.044715 multiplies it", "_a + 0.044715 * _b", "_a"),
    ("this is ReLU", "def gelu_by_hand(x): return x.clamp(min=0)"), without="gelu GELU")


PHASES.append(("Training", "train any model with AdamW"))

exercise(
    "gpt", "learning_rate_at", """Up to the peak in warmup_steps steps, the first of which already has a
    part of it; then down, so that it would be 0 in step max_steps.""", """
    [round(learning_rate_at(step, Config()), 6) for step in (0, 1, 49, 99, 100, 101, 1550, 2999)]
    learning_rate_at(0, Config(warmup_steps=0))
    learning_rate_at(3, Config(warmup_steps=3, max_steps=3))
    """,
    ("it begins at 0: step 0 must already move, so count from 1", "_a + 1", "_a"),
    ("it falls all along; the way down begins after the warm-up",
     "_a * (_b - _c) / max(_b - _d, 1)", "_a * (_b - _c) / _b"),
    ("without a fall, steps stay large", "return _a * (_b - _c) / _d", "return _a"))

exercise(
    "gpt", "training_step", """Set the learning rate of each group, get_batch, model.train(), the loss,
    zero_grad, backward, clip_grad_norm_, step. Return the loss as a Python number.""", """
    config = Config(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=8)
    config = replace(config, batch_size=2, warmup_steps=4, max_steps=9)
    config = replace(config, grad_clip=0.1, learning_rate=0.1)
    model = GPT(config).eval()
    optimizer = build_optimizer(model, config)
    data = torch.arange(50) % 5
    [round(training_step(model, optimizer, data, step, config), 3) for step in range(6)]
    model.training, optimizer.param_groups[0]["lr"]
    """,
    ("slopes of earlier steps are still in p.grad: zero_grad is missing", "optimizer.zero_grad()", "0"),
    ("clip_grad_norm_ is missing, or stands behind the step", "nn.utils.clip_grad_norm_(_a, _b)", "0"),
    ("the learning rate stays as it was", "_a['lr'] = _b", "_b"))

EVALUATE = """
    model = BigramLanguageModel(5)
    _ = nn.init.normal_(model.table.weight)
    model.block_size = {}
    evaluate(model, torch.randint(5, ({},)))
    """

exercise(
    "gpt", "evaluate", """ValueError if no window of T + 1 tokens fits. Windows begin every T tokens, so
    that each target comes once; unfold makes them. Give them to the model in parts, and weigh each
    part's loss by its number of windows. eval_mode(model) around it.""",
    EVALUATE.format(3, 8) + EVALUATE.format(1, 5001) + """
    model = nn.Sequential(nn.Dropout(0.5))
    model.block_size, model.forward = 4, lambda x, y: (None, torch.tensor(float(model.training)))
    evaluate(model, torch.arange(9)), model.training
    evaluate(BigramLanguageModel(5), torch.tensor([1, 2, 3], dtype=torch.int32))
    evaluate(model, torch.arange(4))            # ValueError
    """,
    ("windows begin at each token; they must begin every T tokens",
     "_a.unfold(0, _b + 1, _b)", "_a.unfold(0, _b + 1, 1)"),
    ("the parts are not equally long: weigh the loss of each by its number of windows",
     "_a.item() * len(_b)", "_a.item()"),
    ("the model is still in training: eval_mode(model)", "eval_mode(model)", "torch.no_grad()"))

exercise(
    "gpt", "adamw_by_hand", """The two running means, both enlarged as in chapter 8, weight decay, and
    the step. Return the new w, m and v; change none in place.""", """
    adamw_by_hand(torch.ones(1), torch.tensor([100.0]), torch.zeros(1), torch.zeros(1), 1, 0.1, 0.0)
    w, g, m, v = torch.ones(2), torch.tensor([0.5, 0.0]), torch.zeros(2), torch.zeros(2)
    adamw_by_hand(w, g, m, v, t=1, learning_rate=0.1, weight_decay=0.5)
    w, m, v                                     # as they were
    adamw_by_hand(*torch.randn(3, 2), torch.rand(2), t=3, learning_rate=0.1, weight_decay=0.5)
    """,
    ("m and v begin at 0: divide them by (1 - 0.9^t) and (1 - 0.99^t) before they are used",
     "_a, _b = m / _c, v / _d", "_a, _b = m, v"),
    ("0 / 0 is nan: add 0.00000001 to the root", "_a + 1e-8", "_a"),
    ("weight decay also subtracts learning_rate * weight_decay * w", "w - learning_rate * weight_decay * w", "w"),
    without="AdamW")


PHASES.append(("Sampling", "let a model write"))

exercise(
    "gpt", "next_token_probabilities", """First temperature 0; then divide by the temperature, put -inf
    where top_k and top_p exclude a token, and softmax. Tokens as likely as the last one stay.""", """
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.0, -1.0], [0.0, 0.0, 3.0, -1.0, 1.0]])
    next_token_probabilities(logits)
    next_token_probabilities(logits, temperature=0)
    next_token_probabilities(logits, temperature=0.5)
    next_token_probabilities(logits, top_k=2)
    next_token_probabilities(logits, top_k=3)
    next_token_probabilities(logits, top_k=99)
    next_token_probabilities(logits, top_p=0.7)
    next_token_probabilities(logits, top_p=0.0)
    next_token_probabilities(logits, temperature=2.0, top_k=3, top_p=0.9)
    next_token_probabilities(torch.zeros(1, 3), temperature=0)      # ties
    next_token_probabilities(torch.zeros(1, 3), top_p=0.5)
    """,
    ("the temperature divides the logits", "_a / temperature", "_a * temperature"),
    ("top_k may be larger than the vocabulary", "min(_a, _b)", "_a"),
    ("the token that brings the sum to p belongs to them: compare what the likelier ones have together",
     "_a.cumsum(dim=-1) - _a", "_a.cumsum(dim=-1)"))

WRITER = """
    model = GPT(Config(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=8, dropout=0.5))
    _ = [nn.init.normal_(p) for p in model.parameters()]
    """

exercise(
    "gpt", "generate", """ValueError if there is nothing to continue. Then, as often as there are new
    tokens: the logits of the last position, given the last model.block_size tokens; their
    probabilities; torch.multinomial draws one; torch.cat appends it. eval_mode(model) around it.""",
    WRITER + """
    generate(model, torch.tensor([[0, 1], [2, 3]]), 6), model.training
    generate(model, torch.tensor([[0]]), 3, temperature=0)
    generate(model, torch.tensor([[0]]), 9, temperature=2.0, top_k=3)
    generate(model, torch.tensor([[0]]), 9, top_p=0.3)
    generate(model, torch.tensor([[0, 1, 2, 3, 4, 0]]), 3, generator=torch.Generator().manual_seed(1))
    generate(model, torch.zeros(1, 0, dtype=torch.int64), 3)        # ValueError
    """,
    ("only the prediction at the last position counts: logits[:, -1]", "_a[:, -1]", "_a[:, 0]"),
    ("the model can see its last block_size tokens only", "_a[:, -model.block_size:]", "_a"),
    ("the model is still in training, with dropout: eval_mode(model)", "eval_mode(model)", "torch.no_grad()"))

exercise(
    "gpt", "complete", """Encode the prompt to (1, T), generate with a torch.Generator that has this
    seed, and decode. What comes out begins with the prompt.""", WRITER + """
    tokenizer = CharTokenizer("abcde")
    complete(model, tokenizer, "bad", 20)
    complete(model, tokenizer, "bad", 20, seed=1, temperature=0.1), complete(model, tokenizer, "a", 5, seed=7)
    torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(0).get_state())
    """,
    ("it draws with everybody's random numbers; a torch.Generator of its own makes it repeatable",
     "generate(_a, _b, _c, _d, generator=_e)", "generate(_a, _b, _c, _d)"),
    ("the seed has no effect", "_a.manual_seed(seed)", "_a.manual_seed(0)"),
    ("the temperature has no effect",
     "generate(_a, _b, _c, temperature, generator=_e)", "generate(_a, _b, _c, generator=_e)"))

exercise(
    "gpt", "beam_search", """Keep the texts (width, T) and for each the sum of its F.log_softmax. Take
    topk of all width * V new sums at once; divided by V, an index gives the text, and the remainder
    its new token. The model can see its last block_size tokens.""", WRITER + """
    _ = model.eval()
    beam_search(model, torch.tensor([[0]]), 4, width=1)
    beam_search(model, torch.tensor([[3, 1, 2, 0, 4, 4]]), 3, width=125)
    model = BigramLanguageModel(3)
    model.table.weight.data = torch.tensor([[0, 11, 9], [6, 7, 7.1], [11, 9, 0]]).log()
    beam_search(model, torch.tensor([[0]]), 2, width=2)         # greedy would write 0, 1, 2
    """,
    ("only the new tokens came out; idx must come before them", "return _a[:1]", "return _a[:1, -max_new_tokens:]"),
    ("it is greedy at any width; keep several texts", "min(width, _a)", "1"),
    ("the worst text of the beam was returned; topk puts the best first", "return _a[:1]", "return _a[-1:]"))

exercise(
    "gpt", "Linear8bit", """In __init__, three times register_buffer(name, tensor): weight (int8), scale
    (D, 1), and bias, which may be None. The largest number of a row becomes 127 or -127. Mind a row
    of zeros. In forward, weight times scale, and then F.linear.""", """
    linear = nn.Linear(6, 4)
    linear.weight.data *= torch.tensor([[0.0], [1.0], [3.0], [0.01]])
    layer = Linear8bit(linear)
    {name: (tuple(p.shape), p.dtype) for name, p in sorted(layer.state_dict().items())}
    layer.weight, layer.scale
    layer(torch.randn(2, 6)), Linear8bit(nn.Linear(2, 2, bias=False))(torch.ones(2))
    """,
    ("there must be one scale for each row, (D, 1)", "_a.amax(dim=1, keepdim=True)", "_a.amax().expand(len(_a), 1)"),
    ("round the weights: to(torch.int8) cuts off what stands behind the point", "_a.round()", "_a"),
    ("the bias is missing", "self.register_buffer('bias', _a)", "self.register_buffer('bias', None)"))


PHASES.append(("Your own parts", "train a GPT made of your parts"))

exercise(
    "gpt", "linear_backward", """Three lines, or one; the facts above suffice. Let the shapes guide you.
    (The bias is used N times.)""", """
    x, weight = torch.randn(2, 3, 3, requires_grad=True)
    bias, dy = torch.rand(3, requires_grad=True), torch.rand(3, 3)
    torch.autograd.grad(F.linear(x, weight, bias), (x, weight, bias), dy)
    linear_backward(dy, x, weight)              # the same as autograd
    linear_backward(torch.randn(5, 2), torch.randn(5, 4), torch.randn(2, 4))
    """,
    ("dweight has the shape of weight, (D, C): dy^T @ x", "_a.T @ x", "x.T @ _a"),
    ("dx is dy @ weight: y was x @ weight^T, and that is transposed once more", "dy @ weight", "dy @ weight.T"),
    ("the bias is used N times, so its slopes are added up", "_a.sum(dim=0)", "_a.mean(dim=0)"),
    without="backward grad")

exercise(
    "gpt", "cross_entropy_backward", """As in chapter 4: each probability, minus 1 for the token that came,
    divided by the number of examples. F.one_hot(targets, V) has the ones.""", """
    logits, targets = torch.randn(4, 3, requires_grad=True), torch.tensor([2, 0, 0, 1])
    torch.autograd.grad(F.cross_entropy(logits, targets), logits)
    cross_entropy_backward(logits, targets)     # the same as autograd
    cross_entropy_backward(torch.randn(2, 5), torch.tensor([1, 0]))
    """,
    ("the loss is a mean, so divide by the number of examples", "_a / len(targets)", "_a"),
    ("the sign is wrong: probabilities minus one-hot", "_a - _b", "_b - _a"),
    ("softmax must run along each row: dim=1", "_a.softmax(dim=1)", "_a.softmax(dim=0)"), without="backward grad")

exercise(
    "gpt", "layer_norm_backward", """Compute mean, deviation and z as in the forward pass; then the formula.""", """
    x, weight, dy = torch.randn(4, 4, requires_grad=True), torch.randn(4), torch.randn(4, 4)
    torch.autograd.grad(F.layer_norm(x, (4,), weight), x, dy)
    layer_norm_backward(dy, x, weight)          # the same as autograd
    layer_norm_backward(torch.randn(2, 5), torch.randn(2, 5), torch.randn(5))
    layer_norm_backward(torch.randn(1, 3), torch.ones(1, 3), torch.ones(3))
    """,
    ("dz is dy * weight", "dy * weight", "dy"),
    ("the last term is missing: the deviation changes, too, by z * mean(dz * z)",
     "_a - _b * (_c * _d).mean(dim=1, keepdim=True)", "_a"),
    ("the sums are over the C numbers of a token: dim=1", "_a.mean(dim=1, keepdim=True)",
     "_a.mean(dim=0, keepdim=True)"), without="backward grad")

exercise(
    "gpt", "attention_backward", """Compute scores and weights as in the forward pass. Then go back: dweights
    and dv from the product, dscores from softmax, dq and dk from the other product. Mind the scale.""", """
    q, k, v = (torch.randn(4, 4, requires_grad=True) for _ in range(3))
    dy = torch.rand(4, 4)
    torch.autograd.grad(attention(q, k, v), (q, k, v), dy)
    attention_backward(dy, q, k, v)             # the same as autograd
    attention_backward(*torch.randn(4, 5, 3))
    """,
    ("the scale counts on the way back, too: dscores / sqrt(hs)", "_a = _a / math.sqrt(hs)", "_a = _a"),
    ("softmax's slope is missing: weights * (dweights - their weighted sum over the row)",
     "weights * (_a - _b)", "_a"),
    ("dk needs dscores^T: the keys are the columns of the scores", "_a.T @ q", "_a @ q"), without="backward grad")

exercise(
    "gpt", "gpt_by_hand", """Make a GPT(config), and replace its layers by replace_layers. Two parts are
    functions that methods call: an attention layer calls its attend, which you may set, and an MLP's
    forward calls F.gelu, so set the forward.""", """
    config = Config(vocab_size=5, block_size=4, n_layer=2, n_head=2, n_embd=8)
    gpt_by_hand(config)(torch.tensor([[0, 1, 2, 3]]))
    kinds = {type(layer).__name__ for layer in gpt_by_hand(config).modules()}
    sorted(kinds & {"Linear", "Embedding", "LayerNorm"})            # layers that are PyTorch's
    gelu_by_hand = torch.zeros_like             # whoever calls it gets zeros now
    gpt_by_hand(config)(torch.tensor([[0, 1, 2, 3]]))
    attention = lambda q, k, v: v               # likewise
    gpt_by_hand(config)(torch.tensor([[0, 1, 2, 3]]))
    GPT(config)(torch.tensor([[0, 1, 2, 3]]))   # other models are as before
    """,
    ("GELU is still PyTorch's: set block.mlp.forward", "block.mlp.forward = _a", "0"),
    ("attention is still PyTorch's: set block.attn.attend", "_a.attend = attention", "0"),
    ("the forward of all blocks uses the MLP of the last one, as a lambda looks up its names when it is called: "
     "mlp=block.mlp", "lambda x, mlp=_a.mlp: _b", "lambda x: _a.mlp.proj(gelu_by_hand(_a.mlp.fc(x)))"))

exercise(
    "gpt", "train_by_hand", """As training_step and train do it, and with yield, but with your loss and your
    AdamW. Keep m and v of each parameter for the next step; both are 0 at first. AdamW counts its steps
    from 1, get_batch and learning_rate_at from 0. p.data = ... moves a parameter. Matrices and tables
    decay; biases and LayerNorms do not.""", """
    config = Config(vocab_size=5, block_size=4, n_layer=1, n_head=2, n_embd=8, dropout=0.1)
    config = replace(config, batch_size=2, max_steps=5, warmup_steps=2, eval_interval=2)
    config = replace(config, grad_clip=0.1, learning_rate=0.1, weight_decay=1.0)
    data = torch.arange(60) % 5
    list(train(GPT(config).eval(), data, data, config))             # the real one
    list(train_by_hand(GPT(config).eval(), data, data, config))
    adamw_by_hand = lambda w, g, m, v, *others: (w, m, v)           # now nothing moves
    list(train_by_hand(GPT(config), data, data, config))
    cross_entropy_by_hand = lambda x, y: 0 * x.sum()                # and the loss is 0
    list(train_by_hand(GPT(config), data, data, config))
    """,
    ("biases and LayerNorms must not decay", "config.weight_decay if _a else 0.0", "config.weight_decay"),
    ("the long gradients must be clipped, as in training_step", "nn.utils.clip_grad_norm_(_a, _b)", "0"),
    ("slopes of earlier steps are still in p.grad: zero_grad is missing", "model.zero_grad()", "0"))


# %% The holes

CHAPTER = re.compile(r"(?m)^(?=# %% )")
HEADING = re.compile(r"# %% (.*) \(before (chapter (\d+)|the appendix)\)")


@functools.cache
def source_of(file):
    """The text of a real file. That of gpt.py ends before the appendix, and has the parts of by_hand.py in it."""
    text = (ROOT / f"{file}.py").read_text(encoding="utf-8")
    if file != "gpt":
        return text
    chapters = CHAPTER.split(text.partition("# %% Appendix")[0])            # [the head, chapter 0, chapter 1, ...]
    for part in CHAPTER.split((ROOT / "tests/by_hand.py").read_text(encoding="utf-8"))[1:]:
        title, _, number = HEADING.match(part).groups()
        chapters[int(number) if number else -1] += f"# %% {title}\n" + part.partition("\n")[2].rstrip() + "\n\n\n"
    return "".join(chapters).rstrip() + "\n"


@functools.cache
def real(file, far=0):
    """The syntax tree of a real file; with numbers of lines that cannot be the learner's, if far."""
    return ast.increment_lineno(ast.parse(source_of(file)), far)


def defined(statement):
    """The names that a statement defines: that of a function or class, or those of values."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    return [part.id for target in targets if target for part in ast.walk(target) if isinstance(part, ast.Name)]


def find(tree, name):
    """The node of a function, of a method as Class.method, of a class, or of NAME = value; None without it."""
    for part in name.split("."):
        tree = next((node for node in reversed(getattr(tree, "body", [])) if part in defined(node)), None)
    return tree


def real_node(e):
    """The real one. ValueError if the real file calls it something else by now."""
    if node := find(real(e.file), e.name):
        return node
    raise ValueError(f"exercise {e.number}: {e.file}.py and by_hand.py have no {e.name} any more; rename it here, too")


def functions_in(node):
    """A function, or the methods of a class."""
    if isinstance(node, ast.ClassDef):
        return [part for part in node.body if isinstance(part, ast.FunctionDef)]
    return [node]


def name_in_hole(e):
    return f"exercise {e.number}, {e.name}"


def with_holes(file):
    """The text of a real file, with a hole for each of its exercises."""
    lines = source_of(file).split("\n")
    for e in sorted((e for e in EXERCISES if e.file == file), key=lambda e: -real_node(e).lineno):
        node = real_node(e)
        task = [f"# {line}" for line in textwrap.wrap(f"Exercise {e.number}: {e.task}", 90)]
        if e.is_prediction:
            lines[node.lineno - 1:node.end_lineno] = [*task, f"{e.name} = ..."]
            continue
        for i, function in reversed([*enumerate(functions_in(node))]):      # from the last line up
            body = function.body[1:] if ast.get_docstring(function) else function.body
            first = body[0].lineno - 1
            while lines[first - 1].lstrip().startswith("#"):                # the comments before it, too
                first -= 1
            hole = [f'raise NotImplementedError("{name_in_hole(e)}")']
            hole[:0] = task if i == 0 else []                               # of several methods, the first says it
            lines[first:function.end_lineno] = [body[0].col_offset * " " + line for line in hole]
    return "\n".join([f"# {file}.py with holes. Fill them in, and check them:  {this_program()}", *lines])


def this_program():
    """What one types to run it, whatever the current folder is."""
    path = Path(__file__).resolve()
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f'python "{path}"' if " " in str(path) else f"python {path}"


def is_hole(e, tree):
    node = find(tree, e.name)
    if e.is_prediction:
        return isinstance(getattr(node, "value", None), ast.Constant) and node.value.value is ...
    hole = rf"NotImplementedError\(.exercise \d+, {re.escape(e.name)}.\)"
    return node is not None and re.search(hole, ast.unparse(node)) is not None


def read(path):
    """A learner's file, as Python reads it: a byte-order mark, or the name of an encoding, counts."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is not in UTF-8; let your editor save it so ({error})") from None


def span(text, e):
    """Where the definition of an exercise stands in a text, (its first line, the one after it); None without it."""
    try:
        node = find(ast.parse(text), e.name)
        return node and (min(part.lineno for part in (node, *getattr(node, "decorator_list", []))) - 1, node.end_lineno)
    except SyntaxError:                     # by what its lines look like
        *owner, last = e.name.split(".")
        lines, within = text.split("\n"), not owner
        for first, line in enumerate(lines):
            within = within or line.startswith(f"class {owner[0]}")
            if within and re.match(rf"{len(owner) * '    '}((class|def) {last}\b|{last}\s*[:=])", line):
                indent = len(line) - len(line.lstrip())
                end = next((i for i in range(first + 1, len(lines)) if lines[i][:indent + 1].strip()), len(lines))
                return first, max(i for i in range(first, end) if lines[i].strip()) + 1


def start_over(e):
    """Save the learner's file beside, and put one hole back."""
    text, holes = read(e.path), with_holes(e.file)
    lines, at = text.split("\n"), span(text, e)
    if at is None:
        raise Refused(f"there is no {e.name} in {e.path} any more, so it cannot start over")
    first, end = span(holes, e)
    lines[slice(*at)] = holes.split("\n")[first:end]
    beside = (e.path.with_stem(f"{e.path.stem}-{i}") for i in count(1))
    saved = next(path for path in beside if not path.exists())
    shutil.copy(e.path, saved)
    with open(e.path, "rb") as file:
        encoding, _ = tokenize.detect_encoding(file.readline)
    e.path.write_text("\n".join(lines), encoding=encoding)
    print(f"{e.path} as it was is saved as {saved}; exercise {e.number} is a hole again.")
    return 0


def show_solution(e):
    node = real_node(e)
    first = min(part.lineno for part in (node, *getattr(node, "decorator_list", [])))
    print("\n".join(source_of(e.file).split("\n")[first - 1:node.end_lineno]))


def with_node(tree, name, node):
    """The same tree with another node under this name; or an owner's, for Class.method."""
    owner, _, last = name.rpartition(".")
    inner = find(tree, owner) if owner else tree
    changed = copy.copy(inner)
    changed.body = [node if last in defined(part) else part for part in inner.body]
    return with_node(tree, owner, changed) if owner else changed


# %% Mistakes


def matches(pattern, node, found):
    """Is node (of a syntax tree) of this form? _a, _b, ... stand for anything, which goes into found."""
    if isinstance(pattern, ast.Name) and re.fullmatch("_[a-z]", pattern.id):
        return ast.unparse(found.setdefault(pattern.id, node)) == ast.unparse(node)
    if isinstance(pattern, list) and isinstance(node, list):
        return len(pattern) == len(node) and all(matches(a, b, found) for a, b in zip(pattern, node))
    if not isinstance(pattern, ast.AST):
        return pattern == node
    return type(pattern) is type(node) and all(
        matches(value, getattr(node, field), found) for field, value in ast.iter_fields(pattern)
        if field not in ("ctx", "kind", "type_comment"))


class Fill(ast.NodeTransformer):
    """Puts what was found in the place of _a, _b, ..."""

    def __init__(self, found):
        self.found = found

    def visit_Name(self, node):
        return self.found.get(node.id, node)


class Replace(ast.NodeTransformer):
    """Puts one form in the place of another, wherever it stands."""

    def __init__(self, old, new):
        self.old, self.new = (ast.parse(text).body[0] for text in (old, new))
        if isinstance(self.old, ast.Expr):
            self.old, self.new = self.old.value, self.new.value
        self.times = 0

    def visit(self, node):
        found = {}
        if not matches(self.old, node, found):
            return self.generic_visit(node)
        self.times += 1
        return Fill(found).visit(copy.deepcopy(self.new))


def by_mistake(e, mistake):
    """The real file with this mistake. ValueError if the mistake does not fit the file any more."""
    sentence, old, *new = mistake
    node = copy.deepcopy(real_node(e))
    if e.is_prediction:
        node.value = ast.parse(old, mode="eval").body
    elif not new:
        written = ast.parse(textwrap.dedent(old)).body[0]
        node.args, node.body = written.args, written.body
    else:
        replace = Replace(old, *new)
        replace.visit(node)
        if not replace.times:
            raise ValueError(f"exercise {e.number}: in {e.name} of {e.file}.py there is no `{old}` any more, which "
                             f"the mistake {sentence!r} replaces. Write down what stands there now.")
    return with_node(real(e.file), e.name, ast.parse(ast.unparse(node)).body[0])


# %% The trials, in a process of their own

FAR = 10**6                             # added to the numbers of lines that are not the learner's


class Raised(str):
    """How a trial ended, if by an exception: its name, and what it says."""

    def __new__(cls, error, line):
        made = super().__new__(cls, f"{type(error).__name__}: {textwrap.shorten(str(error), 160, placeholder=' ...')}")
        made.kinds, made.line = [kind.__name__ for kind in type(error).__mro__], line
        return made


def among_real(tree, e):
    """A learner's file in which all functions of the real file, but that of the exercise, are the real ones."""
    def merge(mine, theirs, prefix=""):
        known = {node.name: node for node in theirs if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        body, used = [], set()
        for node in mine:
            name = getattr(node, "name", None)
            if name in known and prefix + name != e.name:
                used.add(name)
                if isinstance(node, ast.ClassDef) and isinstance(known[name], ast.ClassDef):
                    node = merge_class(node, known[name])
                else:
                    node = known[name]
            body.append(node)
        return body + [node for name, node in known.items() if name not in used and prefix + name != e.name]

    def merge_class(mine, theirs):
        """The real class, with the learner's method if that is the exercise, and with all methods that they added."""
        merged = copy.copy(theirs)
        values = [node for node in theirs.body if not isinstance(node, ast.FunctionDef)]
        methods = [node for node in mine.body if isinstance(node, ast.FunctionDef)]
        merged.body = values + merge(methods, theirs.body, f"{mine.name}.")
        return merged

    return ast.Module(merge(tree.body, real(e.file, FAR).body), [])


def run_file(tree, name, filename):
    """Run a syntax tree as a module of this name -> its names."""
    sys.modules[name] = module = types.ModuleType(name)
    module.__file__ = filename
    exec(compile(tree, filename, "exec"), vars(module))
    return vars(module)


def outcomes(e, tree, filename=None):
    """What the trials give, a list of values."""
    filename = filename or f"{e.file}.py"
    names, results = run_file(tree, e.path.stem, filename), []
    for line in e.lines:
        torch.manual_seed(0)
        try:
            if isinstance(ast.parse(line).body[0], ast.Expr):
                results.append(snapshot(eval(line, names)))
            else:
                exec(line, names)
                results.append(None)
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                     if frame.filename == filename and frame.lineno < FAR]
            results.append(Raised(error, lines[-1] if lines else None))
            if not e.raises(line):
                break                           # what follows would only be an error more
    return results


def snapshot(value):
    """A value that later lines cannot change."""
    return torch.utils._pytree.tree_map(lambda x: x.detach().clone() if torch.is_tensor(x) else x, value)


def same(found, wanted):
    """Are two values alike, but for rounding?"""
    if isinstance(found, Raised) and isinstance(wanted, Raised):
        return wanted.kinds[0] in found.kinds               # a ValueError, or a subclass of it
    if torch.is_tensor(found) and torch.is_tensor(wanted):
        return (found.shape, found.dtype) == (wanted.shape, wanted.dtype) and torch.allclose(
            found.double(), wanted.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    if isinstance(found, (list, tuple)) and isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(found, (int, float)) and isinstance(wanted, (int, float)):
        return math.isclose(found, wanted, rel_tol=1e-4, abs_tol=1e-6)
    return type(found) is type(wanted) and found == wanted


def all_same(mine, theirs):
    return all(same(a, b) for a, b in zip_longest(mine, theirs))


ADVICE = {          # what is said beside an error, to those who do not know it yet
    r"bitwise_xor|for \^": "in Python a power is **; ^ is something else",
    "boolean mask|tensors used as indices": "indices must be integers, and a mask must be bool",
    "one element tensors can be|must be Tensor, not": "math.sqrt and the like are for numbers, x.sqrt() for tensors",
    "Boolean value of Tensor": "whether a tensor is there at all, ask `is not None`",
    "shapes cannot be multiplied|batch2|mat .*vec":
        "in a @ b, the last dimension of a must be as long as the last but one of b",
    "'NoneType' object": "None came out of something; is there a return, or a yield?",
    "Use .reshape": "view cannot do this, and reshape can; but where dimensions must swap, transpose is wanted"}


def show(value):
    if isinstance(value, Raised):
        return textwrap.indent(textwrap.fill(value, 75), "    ")
    torch.set_printoptions(precision=4, sci_mode=False, threshold=40, edgeitems=2, linewidth=76)
    text = f"{value}" if torch.is_tensor(value) else textwrap.fill(repr(value), 76)
    torch.set_printoptions(profile="default")
    if torch.is_tensor(value):
        text += f"   shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    return textwrap.indent(text if len(text) < 600 else text[:600] + " ...", "    ")


def first_difference(found, wanted):
    """Where two tensors of one shape begin to differ, in words: a long one is not shown whole."""
    if not (torch.is_tensor(found) and torch.is_tensor(wanted) and found.shape == wanted.shape and found.dim()):
        return ""
    differ = ~torch.isclose(found.double(), wanted.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    at = differ.nonzero()[:1].tolist()
    return f"\nat {at[0]}: {found[tuple(at[0])]:.6g}, not {wanted[tuple(at[0])]:.6g}" if at else ""


def called_in(node):
    """The names of what a definition calls, or is derived from."""
    calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)] if node else []
    return {getattr(part, "attr", getattr(part, "id", "")) for part in [*calls, *getattr(node, "bases", [])]}


def judge(e, text, filename):
    """Check an exercise -> ("done", or "wrong" and why; the trial that shows it, as one would type it)."""
    wanted = outcomes(e, real(e.file))
    for line, value in zip_longest(e.lines, wanted):
        if isinstance(value, Raised) != e.raises(line or ""):
            raise RuntimeError(f"exercise {e.number}: the real {e.name} answers {line} with {value}")
    tree = ast.parse(text)
    try:
        mine = outcomes(e, among_real(tree, e), filename)
    except Exception as error:                                      # already in the file, not in a trial
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
        return f"wrong: {filename}, line {lines[-1] if lines else '?'}: {type(error).__name__}: {error}", ""
    if all_same(mine, wanted):
        shortcut = called_in(find(tree, e.name)) & set(e.without.split())
        return "done: " + (f"right, but {min(shortcut)} does what you were to write" if shortcut else e.why), ""
    failed = next(i for i, pair in enumerate(zip_longest(mine, wanted)) if not same(*pair))
    found, sentence = mine[failed], None
    for mistake in e.mistakes:
        theirs = outcomes(e, by_mistake(e, mistake))
        if all_same(mine, theirs) and (not isinstance(found, Raised) or found == theirs[failed]):
            sentence = mistake[0]
            break
    if e.is_prediction:                                             # and keep the answer a secret
        return f"wrong: {sentence or f'not {found}; work it out with pen and paper'}", ""
    if isinstance(found, Raised) and not e.raises(e.lines[failed]):
        advice = next((f" ({said})" for words, said in ADVICE.items() if re.search(words, found)), "")
        place = f"{filename}, line {found.line}: " if found.line else ""
        words = f"{place}{found}{advice}"
    elif found is None:
        words = "None came out; is there a return?"
    else:
        words = f"{e.lines[failed].partition('  #')[0]} gives something else"
    session = "\n".join(f">>> {line}" for line in [f"from {e.path.stem} import *", *e.lines[:failed + 1]])
    parts = [(found, wanted[failed], "")]
    if all(isinstance(value, (tuple, list)) for value in parts[0][:2]) and len(found) == len(wanted[failed]):
        parts = [(a, b, f", part {i} of {len(found)}") for i, (a, b) in enumerate(zip(found, wanted[failed]), 1)
                 if not same(a, b)]                                 # only those that differ
    compared = "\n".join(f"yours{part}\n{show(a)}\nwanted{part}\n{show(b)}{first_difference(a, b)}"
                         for a, b, part in parts)
    return f"wrong: {sentence or words}", f"(with torch.manual_seed(0) before each line)\n{session}\n\n{compared}"


def serve(pipe, number, text, filename):
    """The life of a process: check one exercise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                    # Ctrl-C is for the parent
    print_anything()
    torch.set_num_threads(1)
    sys.path.insert(0, "")                                          # for what a learner imports from beside
    pipe.send("ready")
    try:
        pipe.send(judge(EXERCISES[number - 1], text, filename))
    except Exception as error:
        pipe.send((f"wrong: the check itself failed: {type(error).__name__}: {error}", ""))


def ask(e, text):
    """judge, in a new process, which may hang or die."""
    context = multiprocessing.get_context("spawn")
    if sys.platform == "linux":                                     # a fork of a server that has loaded torch is
        context = multiprocessing.get_context("forkserver")         # quick; elsewhere, it is not safe
        if str(ROOT) not in (paths := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), *paths]))   # where it finds gpt
        context.set_forkserver_preload(["gpt"])
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, e.number, text, str(e.path)), daemon=True)
    process.start()
    theirs.close()
    is_ready = False
    try:
        is_ready = ours.recv()                                      # loading torch takes its time
        if ours.poll(SECONDS):
            return ours.recv()
        return f"wrong: no end after {SECONDS} seconds; is there an endless loop?", ""
    except EOFError:
        return f"wrong: {'it ends the whole program' if is_ready else 'gpt.py cannot be loaded; see above'}", ""
    finally:
        process.kill()
        process.join()


# %% The command


def print_anything():
    """Whatever is printed, no console of whatever encoding ends in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@functools.cache
def learners(path):
    """(the text of a learner's file, its syntax tree), read once. ValueError if Python cannot read it."""
    text = read(path)
    try:
        return text, ast.parse(text, str(path))
    except (SyntaxError, ValueError) as error:                      # ValueError: a character 0
        line, why = getattr(error, "lineno", None) or 1, getattr(error, "msg", error)
        raise Refused(f"{path}, line {line}: {why}; Python cannot read the file") from None


def check_one(e):
    """(its state: "done", "not yet" or "wrong", and why; more to print)."""
    text, tree = learners(e.path)
    if is_hole(e, tree):
        return f"not yet: {e.task}", ""
    if not any(e.name.split(".")[-1] in defined(node) for node in ast.walk(tree)):
        return f"wrong: there is no {e.name} in {e.path} any more", ""
    return ask(e, text)


def row(e, state, mark=""):
    """A line about an exercise, and below it what is to be said."""
    kind, _, words = state.partition(": ")
    node = find(learners(e.path)[1], e.name)
    place = f"{e.path} line {node.lineno}" if node else str(e.path)
    first = f"{mark:<2}{e.number:>3}  {e.name:<28} {place:<28} {kind}"
    return "\n       ".join([first, *textwrap.wrap(words, 72, break_on_hyphens=False)])


def show_all(states):
    """Print all exercises, phase by phase; a phase that is done, or not begun, in one line."""
    kinds = {e: state.partition(": ")[0] for e, state in states.items()}
    undone = sorted((e for e in kinds if kinds[e] != "done"), key=lambda e: kinds[e] != "wrong")    # wrong ones first
    begun = [e.number for e in kinds if kinds[e] != "not yet"]
    following = next((e for e in undone if kinds[e] == "wrong" or e.number > max(begun, default=0)), [*undone, None][0])
    for number, (title, ability) in enumerate(PHASES, start=1):
        mine = [e for e in kinds if e.phase == number]
        found = {kinds[e] for e in mine}
        is_open = following in mine or found not in ({"done"}, {"not yet"})
        state = "" if is_open else f", {found.pop()}"
        print(f"Phase {number}, {title}: {ability} ({mine[0].number} to {mine[-1].number}{state})")
        for e in mine if is_open else []:
            print(row(e, states[e] if kinds[e] == "wrong" else kinds[e], "->" if e == following else ""))
    if not undone:
        print(f"\nAll {len(kinds)} are done. Now train it:  {this_program()} --train")
        return
    print(f"\n{len(kinds) - len(undone)} of {len(kinds)} are done. Next is exercise {following.number}, "
          f"{following.name}, in {following.path}.")
    if not begun:
        print(f"Open the file, put your code in place of the hole, save, and run this again:\n    {this_program()}\n"
              "With a number or a name behind it (1, SHAPE_OF_A_SUM), it checks one exercise\nand says more. "
              "--solution 1 shows the real one; --start-over 1 makes the hole\nanew, and keeps a copy of the file. "
              "While one is checked, all other functions\nare the real ones; at a Python prompt, fill the holes that "
              "it needs first.")


PARTS = """CharTokenizer.encode train_val_split get_batch cross_entropy_by_hand attention split_heads
    CausalSelfAttention.forward LinearByHand EmbeddingByHand layer_norm_by_hand gelu_by_hand Block.forward GPT.forward
    learning_rate_at evaluate adamw_by_hand gpt_by_hand train_by_hand""".split()


def train(steps=50):
    """Train the real GPT and one of the learner's parts, beside each other."""
    import gpt
    import torch
    parts = [exercise_called(name) for name in PARTS]
    path = parts[0].path
    _, tree = learners(path)
    holes = [e for e in EXERCISES if e.path == path and is_hole(e, tree)]
    for hole in holes:                                              # what is still a hole comes from the real file
        tree = with_node(tree, hole.name, real_node(hole))
    mine = types.SimpleNamespace(**run_file(tree, "my_gpt", str(path)))
    holes = [e for e in parts if e in holes]
    if len(holes) == len(parts):
        raise Refused(f"{path} has no part of a GPT yet; one is exercise {parts[0].number}, {parts[0].name}")

    name, text = gpt.load_text(None)
    config = {"max_steps": steps, "eval_interval": 10}
    tokenizers = gpt.CharTokenizer(text), mine.CharTokenizer(text)
    rows = []
    for module, tokenizer, make_gpt, train_gpt in ((gpt, tokenizers[0], gpt.GPT, gpt.train),
                                                   (mine, tokenizers[1], mine.gpt_by_hand, mine.train_by_hand)):
        options = module.Config(vocab_size=tokenizer.vocab_size, **config)
        train_text, val_text = module.train_val_split(text)
        train_data = module.encode_text(train_text, tokenizer)
        val_data = module.encode_text(val_text[:5_000], tokenizer)
        torch.manual_seed(options.seed)
        rows.append(list(train_gpt(make_gpt(options), train_data, val_data, options)))
    print(f"Text: {name}. {steps} steps, the losses of training and of validation:\n\n"
          f"step        gpt.py's GPT        {'a GPT of your parts' if not holes else 'of yours, in part'}")
    for (step, *theirs), (_, *ours) in zip(*rows):
        print(f"{step:>4}" + "".join(f"{loss:>12.4f}{val_loss:>9.4f}" for loss, val_loss in (theirs, ours)))
    equal = all(math.isclose(a, b, rel_tol=1e-4) for pair in zip(*rows) for a, b in zip(*pair))
    print("\nThey are the same to four digits." if equal else "\nThey differ: check the exercises, all of them.")
    if holes:
        print(textwrap.fill(f"Still from gpt.py: {', '.join(hole.name for hole in holes)}.", 79))
    elif equal:
        print("You have written every part of a GPT: its tokens, its layers, its loss, its\n"
              "optimizer and its training. Only the slopes still came from PyTorch, and you know\n"
              "how they are found.")
    return 0 if equal else 1


def exercise_called(text):
    for e in EXERCISES:
        if text.lower() in (str(e.number), e.name.lower()):
            return e
    raise argparse.ArgumentTypeError(f"there is no exercise {text}; they go from 1 to {len(EXERCISES)}")


def command(arguments):
    parser = argparse.ArgumentParser("rebuild.py", description="Write gpt.py yourself.")
    one = dict(type=exercise_called, metavar="EXERCISE")
    parser.add_argument("chosen", nargs="*", help="check these (numbers or names)", **one)
    parser.add_argument("--solution", help="show what the real file has there", **one)
    parser.add_argument("--start-over", help="put this hole back, after saving the file", **one)
    parser.add_argument("--train", action="store_true", help="train a GPT of your parts beside the real one")
    options = parser.parse_args(arguments)
    learners.cache_clear()
    if options.solution:
        return show_solution(options.solution)
    for e in EXERCISES:
        if not e.path.exists():
            e.path.write_text(with_holes(e.file), encoding="utf-8")
            print(f"{e.path} is written: {e.file}.py with holes.")
    if options.start_over:
        return start_over(options.start_over)
    if options.train:
        return train()
    states = {}
    for e in options.chosen or EXERCISES:
        states[e], more = check_one(e)
        if options.chosen:
            print(more and f"{more}\n\n", row(e, states[e]), sep="")
    if not options.chosen:
        show_all(states)
    return 0 if all(state.startswith("done") for state in states.values()) else 1


def main(arguments=None):
    print_anything()
    try:
        code = command(arguments)
        print(end="", flush=True)
        return code
    except BrokenPipeError:                             # who reads what is printed has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (OSError, Refused) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
