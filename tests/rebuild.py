"""Write it yourself: gpt.py with holes, and a check of what you put into them.

    python tests/rebuild.py                     writes the files with holes; later, checks them
    python tests/rebuild.py 9                   checks one exercise, and says more
    python tests/rebuild.py --start-over 9      makes that hole anew; what was there is saved beside

The first run writes my_gpt.py, my_attention_toy.py and my_bigram.py into the current folder: the
real files, but some functions have lost their bodies, and a comment says what to write there. The
numbers follow the order of reading, but any order will do: while one exercise is checked, all else
is that of the real files. What you have written is never written over.

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
import re
import shutil
import signal
import sys
import textwrap
import traceback
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
# a sentence, then a piece of the real body, and what stands there by mistake (or several pairs of
# these). Below it are the trials; m holds the names of the module, with the learner's function.


class Exercise(NamedTuple):
    number: int
    file: str
    name: str
    task: str
    mistakes: tuple
    trials: Callable


REAL = "what the real function does"


class Trial(NamedTuple):
    """Calls call(**inputs), and something is expected to come out."""

    call: Callable
    inputs: dict
    expected: Any = REAL
    wrong: dict = {}            # sentence -> a wrong answer that shows this mistake


EXERCISES = []


def exercise(file, name, task, *mistakes):
    """Makes an exercise of the generator of trials that follows."""
    def add(trials):
        number, words = len(EXERCISES) + 1, " ".join(task.split())
        EXERCISES.append(Exercise(number, file, name, words, mistakes, trials))
    return add


def small(**settings):
    """The settings of a model that is quick to try everything with."""
    defaults = dict(vocab_size=7, block_size=6, n_layer=2, n_head=2, n_embd=8, batch_size=3,
                    max_steps=5, warmup_steps=2, eval_interval=2, learning_rate=1e-2)
    return gpt.Config(**{**defaults, **settings})


def noisy(module):
    """The module in eval mode, all its weights random: zeros and ones would hide mistakes."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return module.eval()


def tokens(*shape):
    return torch.randint(7, shape)


def flat(model):
    """All weights of a model as they are now, in a row."""
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


# Tensors, in attention_toy.py. What returns its steps by name has the result among them.


def result(steps):
    return steps.get("result", steps) if isinstance(steps, dict) else steps


def try_average(average):
    for shape in ((1, 3, 2), (2, 5, 4), (1, 1, 3)):
        yield Trial(lambda x: result(average(x)), {"x": torch.randn(shape)})


@exercise(
    "attention_toy", "average_by_loop", """For each place t, take the mean over dim=1 of the tokens
    0 to t; stack these means. Return the result, or a dict in which it is called "result".""",
    ("a token is part of its own past; x[:, :t] ends before it", ":t + 1", ":t"),
    ("each token sees the whole text, its future too", ":t + 1", ":"),
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
     "/ ones.sum(dim=1, keepdim=True)", ""))
def _(m):
    return try_average(m.average_by_matrix)


MASK_MISTAKES = (
    ("the mask is on the wrong side: it hides the past and shows the future",
     "triu(diagonal=1)", "tril(diagonal=-1)"),
    ("the mask hides each token from itself; the future begins above the diagonal",
     "diagonal=1", "diagonal=0"),
    ("nan: 0 * -inf is nan; use masked_fill (with a bool mask) or torch.full((T, T), -math.inf)",
     "diagonal=1", "diagonal=-99"),             # the same comes out if all is hidden
    ("softmax is over the wrong dimension; each row must sum to 1, so dim=-1", "dim=-1", "dim=-2"))


@exercise(
    "attention_toy", "average_by_softmax", """All scores are 0; those of the future become
    -math.inf, and softmax makes the weights. triu(diagonal=1) keeps what is above the diagonal.""",
    ("there is no mask; a score of 0 is no weight of 0, but -math.inf is", "-math.inf", "0.0"),
    *MASK_MISTAKES)
def _(m):
    return try_average(m.average_by_softmax)


ATTENTION_MISTAKES = (
    ("there is no mask: each token sees its future", ".masked_fill(future, -math.inf)", ""),
    *MASK_MISTAKES,
    ("each row must still sum to 1: mask the scores, not the shares", "F.softmax(",
     "(lambda s, dim: s)(", ".masked_fill(future, -math.inf)", ".softmax(dim=-1).tril()"),
    ("the scores are not divided by sqrt(hs)", "math.sqrt(", "pow(1, "),
    ("the scores are divided by hs, not by its square root", "math.sqrt(", "float("),
    ("the scores are multiplied by sqrt(hs), not divided by it", "/ math.sqrt(", "* math.sqrt("),
    ("the scores are transposed: row t is what the query of t finds", "q @ k", "k @ q"))


@exercise(
    "attention_toy", "attention_weights", """The scores of all pairs: q @ (k with its last two
    dimensions swapped) / sqrt(hs). Then the mask and the softmax, as before.""",
    *ATTENTION_MISTAKES)
def _(m):
    for shape in ((1, 3, 2), (2, 5, 3), (2, 4, 3, 5)):
        yield Trial(m.attention_weights, dict(q=torch.randn(shape), k=torch.randn(shape)))


def try_head(head):
    for B, T, C, hs in ((1, 3, 4, 2), (2, 5, 4, 3), (3, 1, 4, 4)):
        w_query, w_key, w_value = torch.randn(3, C, hs)
        yield Trial(lambda *, x, w_query, w_key, w_value: result(head(x, w_query, w_key, w_value)),
                    dict(x=torch.randn(B, T, C), w_query=w_query, w_key=w_key, w_value=w_value))


@exercise(
    "attention_toy", "self_attention", """Queries, keys and values are products with x. With them,
    attention_weights, and a weighted sum.""",
    ("keys are handed over in place of values", "weights @ v", "weights @ k"),
    ("x is handed over in place of values", "weights @ v", "weights @ x"),
    ("queries and keys are swapped", "attention_weights(q, k)", "attention_weights(k, q)"))
def _(m):
    return try_head(m.self_attention)


# Text, tokens and batches.


@exercise(
    "gpt", "CharTokenizer.encode", """self.ids has the id of each character. check(holds, message)
    raises UserError if something does not hold.""",
    ("an unknown character must raise UserError: check for it", "check(not unknown", "check(True"),
    ("unknown characters are left out without a word",
     "check(not unknown", "text = [c for c in text if c in self.ids]; check(True"),
    ("these are the numbers of Unicode; use self.ids", "self.ids[character]", "ord(character)"))
def _(m):
    for text in ("hello", "", "he hole", "help"):
        yield Trial(m.CharTokenizer("ehlo ").encode, {"text": text})


@exercise(
    "gpt", "CharTokenizer.decode", """The way back, by self.characters. check_ids(ids,
    self.vocab_size) raises UserError for ids that there are not.""",
    ("an id that there is not must raise UserError, -1 as well", "check_ids(ids,", "(ids,"),
    ("a list came out; join the characters", '"".join', "list"))
def _(m):
    for ids in ([1, 0, 2, 2, 3], [], [4, 4, 1], [0, -1], [5]):
        yield Trial(m.CharTokenizer("ehlo ").decode, {"ids": ids})


@exercise(
    "gpt", "build_char_tokenizer", """CharTokenizer wants a str that has each character of the text
    once, in sorted order.""",
    ("a character is there more than once; a set has each once", "set(text)", "text"),
    ("the characters are not sorted", "sorted(set(text))", "dict.fromkeys(text)"),
    ("a list of characters is no str; join them", '"".join(sorted(set(text)))',
     "sorted(set(text))"))
def _(m):
    for text in ("hello", "to be or not to be", ""):
        yield Trial(lambda text: m.build_char_tokenizer(text).characters, {"text": text})


@exercise(
    "gpt", "split", """The first part has int(0.9 * length) tokens, or all but HELD_OUT if that is
    more.""",
    ("the parts are swapped", "text[:n], text[n:]", "text[n:], text[:n]"),
    ("of a long text, only HELD_OUT is held out", "len(text) - HELD_OUT", "0"))
def _(m):
    for text in ("0123456789", list(range(37)), range(2_345_678)):
        yield Trial(m.split, {"text": text})


@exercise(
    "gpt", "get_batch", """Draw B places where T + 1 tokens begin, with a generator seeded by
    step_seed(step, config). data[places] looks up a whole table (B, T+1) of places at once.""",
    ("the targets are not shifted; they are one token later", "pieces[:, 1:]", "pieces[:, :-1]"),
    ("the ids must be int64: .long()", ".long()", ""),
    ("each step has the same batch; the seed must depend on it", "step_seed(step,", "step_seed(0,"),
    ("config.seed has no effect; use step_seed(step, config)", "step_seed(step, config)", "step"),
    ("config.seed + 1 has the same batches, one step earlier; use step_seed(step, config)",
     "step_seed(step, config)", "config.seed + step"),
    ("all rows of a batch begin at the same place; draw B places",
     "(B, 1), generator=generator)", "(1, 1), generator=generator).expand(B, 1)"),
    ("the places are not random; draw them with torch.randint", "torch.randint(",
     "(lambda n, shape, generator: (step * B + torch.arange(B)[:, None]) % n)("),
    ("the last token is in no batch; count again at how many places a row can begin",
     "len(data) - T,", "len(data) - T - 1,"),
    ("the same step must give the same batch; randint has generator=", ", generator=generator", ""),
    ("torch.manual_seed changes what all others draw, too; make a torch.Generator() of your own",
     "torch.Generator().manual_seed", "torch.manual_seed"))
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


# The bigram.


@exercise(
    "gpt", "next_token_loss", """F.cross_entropy does all, the softmax too. It wants a list of
    guesses (B*T, V) and one of targets (B*T,). flatten(0, 1) makes one dimension of two.""",
    ("the logits are not flattened: F.cross_entropy takes T for the vocabulary",
     ".flatten(0, 1), targets.flatten()", ", targets"),
    ("F.cross_entropy does the softmax itself; give it the logits",
     "logits.flatten(0, 1)", "logits.flatten(0, 1).softmax(dim=-1)"))
def _(m):
    for B, T, V in ((1, 2, 3), (2, 5, 7), (4, 1, 2)):
        yield Trial(m.next_token_loss, dict(logits=torch.randn(B, T, V),
                                            targets=torch.randint(V, (B, T))))


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
    "bigram", "count_pairs", """Without a loop: number the pairs from 0 to V*V - 1, in the order in
    which the table has them, and let torch.bincount count the numbers.""",
    ("the table is transposed: row i is the token before, column j the one after it",
     "vocab_size * tokens[:-1] + tokens[1:]", "tokens[:-1] + vocab_size * tokens[1:]"),
    ("a pair counts once only: counts[a, b] += 1 adds 1 to each place, however often it is named",
     "torch.bincount(pairs, minlength=vocab_size**2)",
     "torch.zeros(vocab_size**2, dtype=torch.int64).index_fill(0, pairs, 1)"),
    ("the last pairs may never occur; bincount has minlength", ", minlength=vocab_size**2", ""))
def _(m):
    for V, N in ((2, 6), (5, 30), (9, 12)):
        yield Trial(m.count_pairs, dict(tokens=torch.randint(V, (N,)), vocab_size=V))


# Attention.


@exercise(
    "gpt", "one_head", """Queries, keys, values; the scores of all pairs, / sqrt(hs); -math.inf for
    the future; softmax; a weighted sum of the values.""",
    ("the scores are divided by sqrt(C), not sqrt(hs)", "sqrt(", "sqrt(x.shape[-1] + 0 * "),
    *ATTENTION_MISTAKES)
def _(m):
    return try_head(m.one_head)


@exercise(
    "gpt", "CausalSelfAttention.forward", """self.qkv(x) is q, k, v side by side, in each the heads
    side by side; bring all three to (B, nh, T, hs). If self.config.position is "rotary", rotate(q,
    positions, self.config), and k. If there is a cache, k, v = cache.add(self, k, v). Then
    F.scaled_dot_product_attention, in training with the dropout of the config; heads side by side
    again; self.proj. With a cache and one new token, there is no future to mask.""",
    ("there is no mask; see is_causal", "causal = T > 1", "causal = False"),
    ("one new token may see all that is in the cache: is_causal only if T > 1",
     "causal = T > 1", "causal = True"),
    ("the first tokens put into a cache need the mask too: is_causal=T > 1",
     "causal = T > 1", "causal = cache is None"),
    ("the heads are interleaved; head 0 has the first hs numbers, head 1 the next",
     "(B, T, 3, nh, hs)", "(B, T, 3, hs, nh).transpose(3, 4)"),
    ("there are nh heads with hs numbers, (nh, hs), not (hs, nh)", "3, nh, hs)", "3, hs, nh)"),
    ("heads and times are mixed: view as (B, T, nh, hs) first, then swap T and nh",
     "(2, 0, 3, 1, 4)", "(2, 0, 1, 3, 4).reshape(3, B, nh, T, hs)"),
    ("self.qkv(x) has q first, then k, then v", "q, k, v = qkv", "k, q, v = qkv"),
    ("the heads of a token are not side by side: swap T and nh back before reshape",
     "y.transpose(1, 2)", "y"),
    ("self.proj is missing", "self.proj(y)", "y"),
    ("with rotary positions, q and k must be rotated", 'self.config.position == "rotary"', "False"),
    ("k must be rotated, too", "rotate(k, positions, self.config)", "k"),
    ("v must not be rotated", "q, k = ro", "v = rotate(v, positions, self.config); q, k = ro"),
    ("rotate before cache.add; what is in the cache is rotated already", "if self.config.position",
     "if cache: k, v = cache.add(self, k, v)\n        if self.config.position",
     "            k, v = cache.add", "            _ = k, v #"),
    ("the cache is not used", "cache is not None", "False"),
    ("there is dropout outside of training", " if self.training else 0.0", ""),
    ("there is no dropout in training", "self.config.dropout if self.training else 0.0", "0.0"))
def _(m):
    for n_head, position, T in ((1, "learned", 3), (2, "learned", 5), (4, "rotary", 5)):
        attention = noisy(m.CausalSelfAttention(small(n_head=n_head, position=position)))
        yield Trial(lambda x, positions, **_: attention(x, positions),
                    dict(x=torch.randn(2, T, 8), positions=torch.arange(T), n_head=n_head,
                         position=position))
    yield with_cache(m, attention, position=position)
    attention.config.dropout = 1.0          # all is dropped, so nothing is left to chance
    for training in (False, True):
        yield Trial(lambda training, x: attention.train(training)(x, torch.arange(3)),
                    dict(training=training, x=torch.randn(1, 3, 8)))


def with_cache(m, layer, **settings):
    """The trial that gives attention, or a block, several tokens, and then one more."""
    def go(x, **_):
        cache = m.Cache()
        first, cache.length = layer(x[:, :4], torch.arange(4), cache), 4
        return {"the first 4 tokens": first, "1 more": layer(x[:, 4:], torch.tensor([4]), cache)}

    return Trial(go, {"x": torch.randn(1, 5, 8), **settings, "with a cache": "4 tokens, then 1"})


@exercise(
    "gpt", "sinusoids", """clock_angles says where C / 2 clocks are at all positions of the context.
    The sines stand on the left, the cosines on the right.""",
    ("the sines come first", "angles.sin(), angles.cos()", "angles.cos(), angles.sin()"),
    ("there are C / 2 clocks", "config.n_embd // 2", "config.n_embd"),
    ("sines and cosines take turns; each must have one half of the channels",
     "cat((angles.sin(), angles.cos()), dim=1)",
     "stack((angles.sin(), angles.cos()), dim=2).flatten(1)"))
def _(m):
    for block_size, n_embd in ((3, 4), (6, 8)):
        yield Trial(m.sinusoids, {"config": small(block_size=block_size, n_embd=n_embd)})


@exercise(
    "gpt", "rotate", """The a are the first half of the last dimension, the b the second. (a, b),
    turned by an angle, is (a cos - b sin, a sin + b cos). clock_angles has the angles.""",
    ("the arrows are turned the wrong way", "a * cos - b * sin, a * sin + b * cos",
     "a * cos + b * sin, b * cos - a * sin"),
    ("the arrows change their length; mind the minus", "a * cos - b", "a * cos + b"),
    ("a and b take turns; they must be halves", "x.chunk(2, dim=-1)", "x[..., ::2], x[..., 1::2]"),
    ("x is changed while a and b, views of it, are still needed", "return", "a *= cos; return"),
    ("positions are not used: the tokens need not begin at 0",
     "(positions,", "(torch.arange(len(positions)),"))
def _(m):
    for shape, start in (((2, 4), 3), ((2, 5, 6), 0), ((1, 2, 3, 4), 1)):
        positions = torch.arange(start, start + shape[-2])
        yield Trial(m.rotate, dict(x=torch.randn(shape), positions=positions, config=small()))


# The model.


@exercise(
    "gpt", "Block.forward", """Two lines like x = x + ...: first self.attention, which wants x,
    positions and the cache, then self.feed_forward. Before each a norm, behind it self.dropout.""",
    ("the stream is lost; what attention finds is added to x",
     "x = x + self.dropout(self.att", "x = self.dropout(self.att"),
    ("the norms come before attention and feed_forward",
     "self.attention(self.norm_1(x), positions, cache)",
     "self.norm_1(self.attention(x, positions, cache))",
     "self.feed_forward(self.norm_2(x))", "self.norm_2(self.feed_forward(x))"),
    ("norm_1 is missing; attention reads the stream through it", "self.norm_1(x)", "x"),
    ("attention does not get the cache", "positions, cache", "positions, None"),
    ("self.dropout is missing behind attention", "self.dropout(self.att", "(self.att"),
    ("the x of the caller is changed: x += ... works in place, x = x + ... makes a new one",
     "x = x + self.dropout(self.att", "x += self.dropout(self.att"))
def _(m):
    block = noisy(m.Block(small()))
    for B, T in ((1, 2), (2, 5)):
        yield Trial(block, dict(x=torch.randn(B, T, 8), positions=torch.arange(T)))
    yield with_cache(m, block)
    block.dropout.p = 1.0
    yield Trial(lambda x: {"in training, if all is dropped": block.train()(x, torch.arange(2))},
                {"x": torch.randn(1, 2, 8)})


@exercise(
    "gpt", "GPT.forward", """The order is told above. The tokens have the positions from start,
    which is 0 or the cache's length, up to end. Unless rotary, add those rows of
    self.position_embedding.weight. Each block gets x, positions (T,) and the cache, whose length is
    end afterwards.""",
    ("the positions are not added", 'self.config.position != "rotary"', "False"),
    ("with a cache, positions begin at its length", "0 if cache is None else cache.length", "0"),
    ("the positions that blocks get begin at start", "arange(start, end", "arange(0, end - start"),
    ("position_embedding has a row for each position from start", "[start:end]", "[:end - start]"),
    ("cache.length must become end", "cache.length = end", "pass"),
    ("cache.length moves once, after all blocks", "cache.length = end", "pass", "x = block(x,",
     "_ = cache and setattr(cache, 'length', end); x = block(x,"),
    ("the last norm is missing", "x = self.norm(x)", "pass"),
    ("each block must get what the one below has made", "x = block(x,", "_ = block(x,"),
    ("more than block_size tokens must raise UserError: check", "check(end", "check(True or end"),
    ("self.dropout, before the blocks, is missing", "x = self.dropout(x)", "pass"),
    ("without targets, the loss is None", "None if targets is None else ", ""))
def _(m):
    def in_parts(model, idx):
        cache = m.Cache()
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


# Training.


@exercise(
    "gpt", "build_optimizer", """torch.optim.AdamW takes groups: dicts of params and weight_decay.
    Matrices (2 dimensions or more) decay, vectors do not; what needs no gradient is in no group.
    betas=(0.9, 0.99).""",
    ("vectors must not decay", '"weight_decay": 0.0', '"weight_decay": config.weight_decay'),
    ("the vectors are missing; they learn too", "if weight.dim() < 2", "if False"),
    ("weights that need no gradient must be left out", "if weight.requires_grad", "if True"),
    ("the learning rate is not config.learning_rate", "lr=config.learning_rate", "lr=1e-3"),
    ("the betas are not (0.9, 0.99)", "0.99", "0.999"))
def _(m):
    def look(model, config):
        optimizer = m.build_optimizer(model, config)
        names = {weight: name for name, weight in model.named_parameters()}
        return {"the optimizer": type(optimizer).__name__, **{
            names[weight]: {"weight_decay": group["weight_decay"], "lr": group["lr"],
                            "betas": list(group["betas"])}
            for group in optimizer.param_groups for weight in group["params"]}}

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
    loss without its history: detach(). (Seeds, 16 bits, other processes: you may do without.)""",
    ("the gradients are not reset: optimizer.zero_grad()", "optimizer.zero_grad()", "pass"),
    ("nothing is learned: it must be zero_grad, backward, step, in this order",
     "loss.backward()", "loss.backward(); optimizer.zero_grad()"),
    ("the learning rate of this step is not set in each group of the optimizer",
     'group["lr"] = learning_rate_at(step, config)', "pass"),
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
            seen[f"all weights after step {step}"] = flat(model)
        return {**seen, "the loss has a history": getattr(loss, "requires_grad", None)}

    for settings in ({"grad_clip": 0.1}, {"batch_size": 1}):
        yield Trial(three_steps, dict(data=tokens(40), config=small(**settings)))


COUNTS = "each loss counts as often as it has targets"


@exercise(
    "gpt", "evaluate", """Inputs, and targets one later; cut both into windows of model.block_size,
    the last one padded: targets of -100 are ignored by the loss. Sum up loss * number of targets,
    some windows at a time, in eval mode. The model goes back to the mode in which it came.""",
    ("the model must be in eval mode meanwhile", "model.eval()", "pass"),
    ("the model stays in eval mode; it came in training mode", "model.train(was_training)", "pass"),
    ("the model is put into training mode; it came in eval mode",
     "model.train(was_training)", "model.train()"),
    ("the padding is counted; its targets must be -100", "value=-100", "value=0"),
    ("what is left after the last full window is not counted",
     "-len(x) % T", "-(len(x) % T)", "(len(data) - 1)", "y.numel()"),
    ("a window of padding alone has no loss, but nan", "-len(x) % T", "T - len(x) % T"),
    (COUNTS, "(targets >= 0).sum().item()", "(len(data) - 1) / len(x.split(rows))"),
    (COUNTS, "(targets >= 0).sum().item()", "(len(data) - 1) / len(x)", "2048 // T", "1"),
    (COUNTS, "(targets >= 0).sum", "(targets > -999).sum"),             # padding counts
    (COUNTS, "(targets >= 0).sum", "(targets > -999).sum", "(len(data) - 1)", "y.numel()"),
    ("all together, there are len(data) - 1 targets", "(len(data) - 1)", "len(data)"),
    ("the targets are not shifted; they are one token later", "data[1:]", "data[:-1]"))
def _(m):
    def look(model, data):
        return {"the loss": m.evaluate(model, data), "in training mode, then": model.training}

    def moody(model, _, output):            # like dropout, but not by chance
        return (output[0], output[1] + 1) if model.training else output

    for block_size, N, training in ((4, 23, True), (64, 2049, False), (64, 2054, True)):
        model = noisy(m.GPT(small(n_layer=1, block_size=block_size))).train(training)
        model.register_forward_hook(moody)
        yield Trial(look, dict(model=model, data=tokens(N).to(torch.uint8)))


@exercise(
    "gpt", "train", """Without a report, Report(build_optimizer(model, config)). In training mode,
    until report.step is max_steps: a training_step; step and loss_sum grow; train_loss and val_loss
    become None. After each eval_interval steps, and the last, record(report, evaluate(...), model).
    Each turn ends with `yield report`.""",
    ("nothing is yielded; each turn ends with `yield report`", "yield report", "pass"),
    ("the model must be in training mode", "model.train()", "pass"),
    ("there is no evaluation after the last step", " or report.step == config.max_steps", ""),
    ("the evaluations come one step late: count the step first",
     "report.step % config", "(report.step - 1) % config"),
    ("a report was given; go on from it", "report = report or Report", "report = Report"),
    ("in a step without evaluation, both losses must be None again",
     "report.train_loss = report.val_loss = None", "pass"))
def _(m):
    def look(config, train_data, val_data, done=None):
        model = noisy(gpt.BigramLanguageModel(7))
        report = done and m.Report(m.build_optimizer(model, config), step=done)
        turns = itertools.islice(m.train(model, train_data, val_data, config, report), 9)
        seen = {f"turn {i}": {"step": report.step, "train_loss": report.train_loss,
                              "val_loss": report.val_loss, "in training mode": model.training}
                for i, report in enumerate(turns, start=1)}
        return {**seen, "the weights in the end": flat(model)}

    for settings, inputs in (({}, {}), ({"max_steps": 4}, {}), ({}, {"done": 2})):
        yield Trial(look, dict(config=small(**settings), train_data=tokens(40),
                               val_data=tokens(12), **inputs))


# Writing.


@exercise(
    "gpt", "write", """Again and again: logits for the latest block_size tokens; softmax of those of
    the last one; draw with torch.multinomial; append with torch.cat.""",
    ("the model can be shown its block_size tokens at most", "idx[:, -model.block_size:]", "idx"),
    ("the model must be shown the latest tokens, not the first",
     "-model.block_size:", ":model.block_size"),
    ("the next token follows the last; its logits are at -1", "logits[:, -1]", "logits[:, 0]"),
    ("the likeliest token is taken; it must be drawn",
     "torch.multinomial(probs, num_samples=1)", "probs.argmax(dim=-1, keepdim=True)"))
def _(m):
    sure = noisy(gpt.GPT(small()))          # so sure of each token that nothing is left to chance
    sure.register_forward_hook(lambda model, _, output: (1e4 * output[0], None))
    for B, T, n in ((1, 3, 2), (2, 4, 9), (2, 9, 3)):
        yield Trial(m.write, dict(model=sure, idx=tokens(B, T), max_new_tokens=n))
    model = noisy(gpt.BigramLanguageModel(3))
    probs = model.table.weight[0].detach().softmax(dim=-1)

    def draw_often(model, idx):
        shares = torch.bincount(m.write(model, idx, 1)[:, 1], minlength=3) / len(idx)
        return {"5000 draws are as the probabilities say":
                bool((shares - probs).abs().max() < 0.05)}

    yield Trial(draw_often, dict(model=model, idx=torch.zeros(5000, 1).long()))


STILL_SORTED = "the probabilities are not put back in place"


@exercise(
    "gpt", "next_token_probabilities", """Temperature 0 is the same as top_k=1. sort() the
    probabilities and keep who they are; set to 0 what a dial cuts, and divide by the sum again.
    top_p cuts a token if those before it have p or more. scatter() puts all back in place.""",
    ("the logits are divided by the temperature", "logits / temp", "logits * temp"),
    ("temperature 0 is greedy; one cannot divide by it", "temperature == 0", "False"),
    ("top_k keeps one too few", "max(1, top_k):", "max(1, top_k - 1):"),
    ("top_p cuts the token that crosses p; that one stays",
     "cumsum(dim=-1) - probs", "cumsum(dim=-1); probs[likelier >= top_p] = 0"),
    ("the least likely are kept; sort with descending=True", ", descending=True", ""),
    ("what is left must sum to 1 again", "probs / probs.sum(dim=-1, keepdim=True)", "probs"),
    ("what top_k leaves must sum to 1 again before top_p cuts", "] = 0\n        probs = probs",
     "] = 0\n        _ = probs", "tokens, probs)", "tokens, probs / probs.sum(-1, True))"),
    ("what top_p leaves must sum to 1 again", "first one\n        probs =", "\n        _ ="),
    (STILL_SORTED, ".scatter(-1, tokens, probs)", " + probs"),
    (STILL_SORTED, ".scatter(-1, tokens, probs)", " + probs", "top_p is None:", "False:"),
    (STILL_SORTED + ": scatter, not gather", ".scatter(-1, tokens, probs)",
     " + probs.gather(-1, tokens)", "top_p is None:", "False:"))
def _(m):
    for dials in ({}, {"temperature": 0.5}, {"temperature": 0}, {"top_k": 2}, {"top_k": 99},
                  {"top_p": 0.3}, {"top_p": 0.9}, {"top_p": 1.0}, {"top_p": 1e-9},
                  {"temperature": 2.0, "top_k": 4, "top_p": 0.6}):
        yield Trial(m.next_token_probabilities, {"logits": torch.randn(2, 6), **dials})


@exercise(
    "gpt", "Cache.add", """If self.length is 0, keep k and v in self.layers[layer]. Else check that
    there is one new token, and append it there. (torch.cat along T will do; to keep spare room is
    faster.) Leave self.length alone: the GPT moves it, once for all layers.""",
    ("one position off: the new token is not among those that come out",
     ":end], all_v[:, :, :end]", ":end - 1], all_v[:, :, :end - 1]"),
    ("each layer has keys and values of its own", "self.layers[layer]", "self.layers[None]"),
    ("only the new ones came out; attention needs all",
     "return all_k[:, :, :end], all_v[:, :, :end]", "return k, v"),
    ("self.length was moved; that is for the GPT to do, after all layers",
     "return k, v", "self.length += k.shape[2]; return k, v",
     "return all_k", "self.length += 1; return all_k"),
    ("to append several new tokens must raise UserError: check", "check(k.shape[2] == 1",
     "both = [torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (k, v))]; "
     "self.layers[layer] = both; return tuple(both); check(True"))
def _(m):
    def fill(parts):
        cache, seen = m.Cache(), {}
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
    "gpt", "stream_tokens", """Like write, but: the model is shown idx[:, start:]. start is at first
    0, or, for a prompt longer than the context, where its last block_size tokens begin. When
    idx[:, start:] exceeds the context, start moves so that block_size // 2 tokens and the newest
    stay, with a new Cache. Of idx[:, start:], show what is not in the cache yet, or all without a
    cache (only a GPT can have one). Draw from next_token_probabilities(..., *dials) with
    generator=generator; yield.""",
    ("the model must be shown what the cache does not have", "start + cache.length:", "start:"),
    ("the window moves by one token at a time; drop half of the context at once",
     "model.block_size // 2 - 1", "model.block_size"),
    ("when the window moves, the cache must be a new one", "- 1, Cache()", "- 1, cache"),
    ("the dials are not used", ", *dials", ""),
    ("of a long prompt, the last block_size tokens are shown at first",
     "max(0, idx.shape[1] - model.block_size)", "0"),
    ("a bigram can have no cache", " and isinstance(model, GPT)", ""),
    ("draw with generator=generator", ", generator=generator", ""),
    ("the likeliest token is taken; it must be drawn",
     "torch.multinomial(probs, 1, generator=generator)", "probs.argmax(dim=-1, keepdim=True)"),
    ("the next token follows the last; its logits are at -1", "logits[:, -1]", "logits[:, 0]"),
    ("each yielded token must be (B, 1), not (B,)", "yield token", "yield token[:, 0]"),
    ("nothing is yielded; each turn ends with `yield token`", "yield token", "pass"))
def _(m):
    def look(model, idx, max_new_tokens, dials, use_cache):
        shown, generator = [], torch.Generator().manual_seed(1)
        hook = model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].shape[1]))
        new = list(m.stream_tokens(model, idx, max_new_tokens, dials, use_cache, generator))
        hook.remove()
        return {"the new tokens": torch.cat(new, dim=1), "tokens shown in each turn": shown}

    model, bigram = noisy(gpt.GPT(small(n_layer=1))), noisy(gpt.BigramLanguageModel(7))
    for model, T, n, dials, use_cache in (
            (model, 2, 3, (0, None, None), False), (model, 2, 3, (0, None, None), True),
            (model, 1, 14, (0, None, None), True), (model, 9, 4, (1.0, 3, None), True),
            (model, 6, 9, (1.0, None, 0.9), False), (bigram, 2, 4, (1.0, None, None), True)):
        yield Trial(look, dict(model=model, idx=tokens(2, T), max_new_tokens=n, dials=dials,
                               use_cache=use_cache))


# Pieces of words.


@exercise(
    "gpt", "join_pair", """Build a new list. If its last entry and the next id are the pair, new_id
    takes the place of that entry.""",
    ("the first of the pair is still there", "joined[-1] = new_id", "joined.append(new_id)"),
    ("only the first pair is joined", "== pair:", "== pair and new_id not in joined:"),
    ("the order matters: (1, 2) is not (2, 1)", "(joined[-1], i) == pair",
     "{joined[-1], i} == {*pair}"),
    ("the list that was given is changed", "return joined", "ids[:] = joined; return ids"))
def _(m):
    for ids in ([1, 2], [], [1, 2, 3, 1, 2], [2, 1, 1, 2, 2, 1], [1, 1, 1, 2]):
        yield Trial(m.join_pair, dict(ids=ids, pair=(1, 2), new_id=9))
    yield Trial(m.join_pair, dict(ids=[4, 4, 4, 5, 4, 4], pair=(4, 4), new_id=9))


@exercise(
    "gpt", "find_merges_plainly", """Cut the text into words as find_merges does below; each word
    is a list of its bytes. For each new id: count the pairs of all words (pairwise, Counter), note
    the most_frequent, and join it everywhere.""",
    ("pairs reach from word to word", "[list(word.encode()) for word in",
     "[list(text.encode()) for _ in [0] or"),
    ("the pairs are found, but not joined", "words = [join_pair", "_ = [join_pair"),
    ("a word that comes again counts again", "[list(word.encode()) for word in ",
     "[list(word.encode()) for word in dict.fromkeys(", "findall(text)]", "findall(text))]"),
    ("of pairs equally frequent, most_frequent takes the lowest ids",
     "most_frequent(", "(lambda counts: max(counts, key=counts.get))("))
def _(m):
    for text, vocab_size in (("aaabdaaabac", 259), ("to be or not to be, that is", 264),
                             ("now no one knows; no, no one", 262), ("é è é", 258)):
        yield Trial(m.find_merges_plainly, dict(text=text, vocab_size=vocab_size))


@exercise(
    "gpt", "BPETokenizer.encode_word", """Begin with the bytes. As long as some neighbours are in
    self.ids (pair -> new id), join those with the lowest new id.""",
    ("the pairs are joined from left to right; the lowest new id comes first",
     "min(pairs, key=self.ids.get)", "pairs[0]"),
    ("only one pair is joined; go on", "while pairs", "if pairs"),
    ("begin with bytes, word.encode(), not with the numbers of characters",
     'word.encode(errors="replace")', "map(ord, word)"))
def _(m):
    tokenizer = m.BPETokenizer([(98, 99), (97, 98), (97, 256), (195, 169), (258, 258), (32, 259)])
    for word in ("abc", "x", "abcabc", " é", "ab", "babc"):
        yield Trial(tokenizer.encode_word, {"word": word})


# Beyond the file. gpt.py knows nothing of these, so the trials say themselves what they expect.

BEYOND = '''

# %% Beyond the file
# Two exercises that gpt.py does not solve for you.


@torch.no_grad()
def beam_search(model, idx, max_new_tokens, width):
    """The most probable continuation of idx (1, T) that a beam finds -> (1, T + max_new_tokens).

    Greedy writing takes the likeliest token, though another may lead to a more probable text. A
    beam keeps several texts. In each step, all that continue one of them by one token are compared,
    and the `width` most probable stay (or all, if there are fewer). The probability of a text is
    the product of those of its new tokens. So width=1 is greedy, and a very wide beam is exact.
    """
    ...


class Linear8bit(nn.Module):
    """An nn.Linear whose weights are integers from -127 to 127: a quarter of the memory.

    A row of the matrix has one scale, the step from one integer to the next. So a weight is its
    integer times the scale of its row, and its error is half a step at most.
    """

    def __init__(self, linear):
        ...

    def forward(self, x):
        weight = self.weight * self.scale               # (D, C) * (D, 1) -> (D, C)
        return F.linear(x, weight, self.bias)           # (..., C) -> (..., D)
'''


def most_probable(model, idx, n, score):
    """Of all continuations by n tokens, that with the highest sum of score(logits)."""
    new = torch.cartesian_prod(*[torch.arange(model.vocab_size)] * n)           # (V^n, n)
    texts = torch.cat((idx.expand(len(new), -1), new), dim=1)                   # (V^n, T + n)
    logits = model(texts[:, :-1])[0][:, -n:]                                    # (V^n, n, V)
    best = score(logits).gather(-1, new[:, :, None]).sum(dim=(1, 2)).argmax()
    return texts[best:best + 1]


def greedy(model, idx, n):
    for _ in range(n):
        logits, _ = model(idx[:, -model.block_size:])
        idx = torch.cat((idx, logits[:, -1:].argmax(dim=-1)), dim=1)
    return idx


@exercise(
    "gpt", "beam_search", """Keep the texts (width, T) and for each the sum of its F.log_softmax.
    Take topk of all width * V new sums at once; divided by V, an index gives the text, and the
    remainder its new token. The model can be shown block_size tokens.""")
def _(m):
    for T, n in ((1, 4), (4, 5)):
        model, idx = noisy(gpt.GPT(small(vocab_size=5))), torch.randint(5, (1, T))
        text = greedy(model, idx, n)
        yield Trial(m.beam_search, dict(model=model, idx=idx, max_new_tokens=n, width=1), text,
                    {"only the new tokens came out; idx must come before them": text[:, T:]})
    # From 0, 1 is likelier than 2; but then any token may follow, and after 2 only 0 or 1.
    trap = gpt.BigramLanguageModel(3)
    trap.table.weight.data = torch.tensor([[0, 11, 9], [6, 7, 7.1], [11, 9, 0]]).log()
    start = torch.tensor([[0]])
    yield Trial(m.beam_search, dict(model=trap, idx=start, max_new_tokens=2, width=2),
                torch.tensor([[0, 2, 0]]),
                {"it is greedy at any width; keep several texts": torch.tensor([[0, 1, 2]]),
                 "a text was returned that is not the most probable; topk puts the best first":
                 torch.tensor([[0, 2, 1]])})
    for _ in range(4):
        model, idx = noisy(noisy(gpt.GPT(small(vocab_size=5)))), torch.randint(5, (1, 2))
        yield Trial(m.beam_search, dict(model=model, idx=idx, max_new_tokens=3, width=125),
                    most_probable(model, idx, 3, lambda logits: logits.log_softmax(dim=-1)),
                    {"logits are summed; make them log-probabilities first":
                     most_probable(model, idx, 3, lambda logits: logits),
                     "probabilities are summed; they must be multiplied, so sum their logarithms":
                     most_probable(model, idx, 3, lambda logits: logits.softmax(dim=-1))})


OTHER_RESULTS = "it does not compute what the Linear does; is the bias there?"
OTHER_LOSS = "with it, a trained model has another loss"
IN_8_BITS = {
    "the weights must be int8": lambda layer, weight:
        layer.weight.dtype == torch.int8,
    "there must be one scale for each row, (D, 1)": lambda layer, weight:
        layer.scale.shape == (len(weight), 1),
    "weight and scale must be buffers, by register_buffer, and nothing else of their size kept":
        lambda layer, weight: sum(part.nbytes for part in layer.state_dict().values()
                                  if part.dim() == 2) == weight.numel() + 4 * len(weight),
    "a weight is off by more than half a step: round it, and let the largest be 127":
        lambda layer, weight: ((layer.weight * layer.scale - weight).abs() <=
                               0.501 * weight.abs().amax(dim=1, keepdim=True) / 127).all()}


@exercise(
    "gpt", "Linear8bit.__init__", """After super().__init__(), three times register_buffer: weight
    (int8), scale (D, 1), and bias, which may be None. The largest number of a row becomes 127 or
    -127. Mind a row of zeros.""")
def _(m):
    def first_mistake(linear, x):
        layer = m.Linear8bit(linear)
        for mistake, holds in IN_8_BITS.items():
            if not holds(layer, linear.weight.detach()):
                return mistake
        return torch.allclose(layer(x), linear(x), atol=0.1) or OTHER_RESULTS

    def change_of_loss(model, data):
        before = gpt.evaluate(model, data)
        for part in list(model.modules()):
            for name, linear in part.named_children():
                if isinstance(linear, torch.nn.Linear):
                    setattr(part, name, m.Linear8bit(linear))
        return abs(gpt.evaluate(model, data) - before) < 0.02 or OTHER_LOSS

    wrong = {mistake: mistake for mistake in (*IN_8_BITS, OTHER_RESULTS, OTHER_LOSS)}
    for bias in (True, False):
        linear = noisy(torch.nn.Linear(6, 4, bias=bias))
        linear.weight.data *= torch.tensor([[0.0], [1.0], [3.0], [0.01]])       # (4, 6) * (4, 1)
        yield Trial(first_mistake, dict(linear=linear, x=torch.randn(2, 6)), True, wrong)
    config = small(n_embd=16, max_steps=30, eval_interval=30)
    model, data = gpt.GPT(config), torch.arange(300) ** 2 % 7
    list(gpt.train(model, data, data, config))
    yield Trial(change_of_loss, dict(model=model, data=data), True, wrong)


# %% The holes


@functools.cache
def source_of(file):
    """The text of a real file. That of gpt.py has what goes beyond it before its last lines."""
    source = (ROOT / f"{file}.py").read_text(encoding="utf-8")
    if file != "gpt":
        return source
    story, start, end = source.rpartition('\n\nif __name__ == "__main__":')
    return story.rstrip() + BEYOND + start + end


parsed = functools.cache(ast.parse)


def find(source, name):
    """The node of a function, or of a method as Class.method; None if it is not there."""
    node = parsed(source)
    for part in name.split("."):
        named = [child for child in getattr(node, "body", []) if getattr(child, "name", 0) == part]
        node = named[-1] if named else None
    return node


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
        first, indent = body_of(node)[0].lineno - 1, body_of(node)[0].col_offset * " "
        while lines[first - 1].lstrip().startswith("#"):                # its first comments, too
            first -= 1
        hole = [f"# {line}" for line in textwrap.wrap(f"Exercise {e.number}: {e.task}", 90)]
        hole.append(f'raise NotImplementedError("exercise {e.number}")')
        lines[first:node.end_lineno] = [indent + line for line in hole]
    return "\n".join([f"# {file}.py with holes. To check: python tests/rebuild.py", *lines])


def is_hole(node):
    body = body_of(node)
    return bool(body) and ast.unparse(body[0]).startswith("raise NotImplementedError")


def span(text, name):
    """Where a function stands in a text, even if Python cannot read it: (start, end)."""
    *owner, function = name.split(".")
    indent = "    " if owner else ""
    before = rf"^class {owner[0]}\b.*(\n(?!class ).*)*?\n" if owner else "^"
    lines = rf"{indent}def {function}\b.*(\n({indent}[ \t].*)?$)*"        # the def and all below it
    found = re.search(rf"{before}(?P<all>{lines})", text, re.MULTILINE)
    if not found:
        sys.exit(f"there is no {name} any more, so it cannot start over")
    return found.start("all"), found.start("all") + len(found["all"].rstrip())


def start_over(e, path):
    """Save the learner's file beside, and put one hole back."""
    text, holes = path.read_text(encoding="utf-8"), with_holes(e.file)
    (first, last), (hole_first, hole_last) = span(text, e.name), span(holes, e.name)
    beside = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(1))
    saved = next(path for path in beside if not path.exists())
    shutil.copy(path, saved)
    path.write_text(text[:first] + holes[hole_first:hole_last] + text[last:], encoding="utf-8")
    print(f"{path} as it was is saved as {saved}; exercise {e.number} is a hole again.")


# %% The checks, in a child process


@dataclass
class Raised:
    """What came of a trial that ended with an exception."""

    name: str
    message: str
    place: str = field(compare=False)                   # in the learner's file

    def __str__(self):
        return f"{self.place}{self.name}: {self.message}"


def raised(error, filename):
    places = [f"{filename}, line {frame.lineno}: "
              for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
    message = textwrap.shorten(str(error), 160, placeholder=" ...")
    if "Use .reshape" in message:
        message += " But where dimensions must swap, it mixes up the numbers; transpose does not"
    return Raised(type(error).__name__, message, places[-1] if places else "the check ends with ")


def among_names(module, name, node, helpers=(), filename="mistake"):
    """The names of a real module, with `node` as its function `name`, and with helpers."""
    names = dict(vars(module))
    if "." in name:                     # a method: in a class that has all else from the real one
        owner, method = name.split(".")[0], node
        node = ast.parse(f"class {owner}({owner}): pass").body[0]
        node.body = [method]
    for helper in helpers:
        with contextlib.suppress(Exception):            # who needs it will say that it is missing
            exec(compile(ast.Module([helper], []), filename, "exec"), names)
    exec(compile(ast.Module([node], []), filename, "exec"), names)
    return SimpleNamespace(**names)


def by_mistake(module, e, mistakes):
    """The names of the real module, with mistakes in the function of an exercise."""
    node = find(source_of(e.file), e.name)
    lines = source_of(e.file).split("\n")[:node.end_lineno]
    top = min(part.lineno for part in (node, *node.decorator_list)) - 1
    start = body_of(node)[0].lineno - 1
    head, body = "\n".join(lines[top:start]), "\n".join(lines[start:])
    for _, *pairs in mistakes:
        for old, new in zip(pairs[::2], pairs[1::2]):
            body = body.replace(old, new)
    return among_names(module, e.name, ast.parse(textwrap.dedent(f"{head}\n{body}")).body[0])


def by_learner(module, e, source, filename):
    """The names of the real module, with the learner's function, and what only the learner has."""
    def is_new(node):
        parts = getattr(node, "targets", getattr(node, "names", [node]))
        names = {getattr(part, "name", getattr(part, "id", None)) for part in parts}
        return bool(names - {None, *vars(module)})

    helpers = [node for node in parsed(source).body if is_new(node)]
    if is_beyond(e, module):                            # then it is one of the helpers
        return among_names(module, "", ast.parse("pass").body[0], helpers, filename)
    return among_names(module, e.name, find(source, e.name), helpers, filename)


def is_beyond(e, module):
    return not hasattr(module, e.name.split(".")[0])


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
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                result = trial.call(**trial.inputs)
                for name, value in trial.inputs.items():
                    if value is not inputs[name] and difference(value, inputs[name]):
                        result = Raised(f"{name} is changed", "the caller needs it as it was", "")
            except (Exception, SystemExit) as error:
                result = raised(error, filename)
        yield Outcome(trial, inputs, result, printed.getvalue())


def difference(found, expected):
    """How what was found differs from what was expected, in words; None if it does not."""
    match found, expected:
        case Raised(), Raised() if found == expected or found.name == expected.name == "UserError":
            return None
        case Raised(), Raised(name="UserError"):
            return f"{found}; raise UserError, by check(...)"
        case Raised(), _:
            return str(found)
        case dict(), dict():
            pairs = {key: (found.get(key), expected.get(key)) for key in {**expected, **found}}
        case (list(), list()) | (tuple(), tuple()) if any(map(torch.is_tensor, found + expected)):
            both = itertools.zip_longest(found, expected)
            pairs = {f"part {i}": pair for i, pair in enumerate(both, start=1)}
        case torch.Tensor(), torch.Tensor() if brief(found) == brief(expected):     # in its shape
            wrong = ~torch.isclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
            if not wrong.any():
                return None
            at = tuple(wrong.nonzero()[0].tolist())
            where = f" at {list(at)}" if at else ""
            return f"{found[at]:.4g} came out{where}, not {expected[at]:.4g}"
        case (int() | float()), (int() | float()) if math.isclose(found, expected, rel_tol=1e-4):
            return None
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
        case list() | tuple() if any(map(torch.is_tensor, value)):
            return f"({', '.join(map(brief, value))})"
    return textwrap.shorten(repr(value), 60, placeholder=" ...")


def show(value):
    """A value on as many lines as it needs."""
    match value:
        case dict():
            parts = {name: show(part) for name, part in value.items()}
            return "\n".join(f"{name}: {part}" if "\n" not in part else
                             f"{name}:\n{textwrap.indent(part, 4 * ' ')}"
                             for name, part in parts.items())
        case torch.Tensor():
            return f"{brief(value)}\n{value.detach()}"
        case list() | tuple() if any(map(torch.is_tensor, value)):
            return "\n".join(map(show, value))
        case gpt.Config():
            names = (f.name for f in fields(value) if getattr(value, f.name) != f.default)
            return textwrap.fill(", ".join(f"{name} {getattr(value, name)}" for name in names), 70)
        case torch.nn.Module():
            return f"a {type(value).__name__}"
    return textwrap.shorten(str(value), 300, placeholder=" ...")


def usual_mistake(e, module, mine, failed):
    """The sentence of the mistake that gives what the learner's function gives, in all trials, or
    of two; else of one that does so up to the trial that failed first. None if there are none."""
    for sentence, answer in mine[failed].trial.wrong.items():
        if not difference(mine[failed].result, answer):
            return sentence
    first = mine[:failed + 1]
    for number, tried in ((1, mine), (2, mine), (1, first)):
        for mistakes in itertools.combinations(e.mistakes, number):
            with contextlib.suppress(SyntaxError):          # not all two go together
                theirs = outcomes(e, by_mistake(module, e, mistakes))
                if not any(difference(o.result, other.result) for o, other in zip(tried, theirs)):
                    words = ". And: ".join(sentence for sentence, *_ in mistakes)
                    return words if tried is mine else (
                        f"perhaps {words} (it would explain input {failed + 1}, not all others)")
    return None


def judge(number, source, filename):
    """Check an exercise: (done, not yet, or wrong and why; what was tried, on some lines)."""
    e = EXERCISES[number - 1]
    module = importlib.import_module(e.file)
    try:
        mine = list(outcomes(e, by_learner(module, e, source, filename), filename))
    except Exception as error:                          # already in its definition
        return f"wrong: {raised(error, filename)}", ""
    real = mine if is_beyond(e, module) else outcomes(e, SimpleNamespace(**vars(module)))
    for i, ((trial, inputs, found, printed), theirs) in enumerate(zip(mine, real)):
        expected = theirs.result if trial.expected is REAL else trial.expected
        words = difference(found, expected)
        if words:
            break
    else:
        i, (_, inputs, found, printed) = 0, mine[0]     # all is well: the first shows it best
    parts = {f"Input {i + 1} of {len(mine)}": show(inputs), "What it printed": printed}
    if words and isinstance(found, dict) and isinstance(expected, dict):
        keys = {**expected, **found}                    # of these, show only what differs
        keys = [key for key in keys if difference(found.get(key), expected.get(key))]
        found, expected = ({key: part.get(key) for key in keys} for part in (found, expected))
    parts["What came out"] = show(found)
    if words:
        parts["What was expected"] = show(expected)
    details = "\n".join(f"{title}:\n" + textwrap.indent(part.rstrip(), 4 * " ")
                        for title, part in parts.items() if part)
    if not words:
        return "done", details
    if isinstance(found, Raised) and found.name == "NotImplementedError":
        return "not yet", details
    parts = {type(part) for part in ast.walk(find(source, e.name))}
    if not parts & {ast.Return, ast.Yield} and re.search("None came|the check ends.*None", words):
        words = "None came out; is there a return?"
    return f"wrong: {usual_mistake(e, module, mine, i) or words}", details


def serve(pipe):
    """The life of the child: check what it is asked to check, until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is for the parent
    torch.set_num_threads(1)
    torch.set_printoptions(precision=3, sci_mode=False, threshold=60, linewidth=70)
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


def main(arguments=None):
    parser = argparse.ArgumentParser("rebuild.py", description="Write gpt.py yourself.")
    number = dict(type=int, metavar="NUMBER")
    parser.add_argument("numbers", nargs="*", help="check these, and say more", **number)
    parser.add_argument("--start-over", help="put this hole back, after saving the file", **number)
    options = parser.parse_args(arguments)
    for number in (*options.numbers, options.start_over):
        if number is not None and not 1 <= number <= len(EXERCISES):
            parser.error(f"there is no exercise {number}; they go from 1 to {len(EXERCISES)}")
    paths = {e.file: Path(f"my_{e.file}.py") for e in EXERCISES}
    for file, path in paths.items():
        if not path.exists():
            path.write_text(with_holes(file), encoding="utf-8")
            print(f"{path} is written: {file}.py with holes.")
    if options.start_over:
        e = EXERCISES[options.start_over - 1]
        start_over(e, paths[e.file])

    chosen = [e for e in EXERCISES if e.number in (options.numbers or range(len(EXERCISES) + 1))]
    sources = {paths[e.file]: paths[e.file].read_text(encoding="utf-8") for e in chosen}
    for path, source in sources.items():
        try:
            compile(source, path, "exec")
        except SyntaxError as error:
            print(f"{path}, line {error.lineno}: {error.msg}; Python cannot read the file.")
            return 1
    child, undone = Child(), []
    for e in chosen:
        path, details = paths[e.file], ""
        node = find(sources[path], e.name)
        if node is None:
            state = f"wrong: there is no {e.name} in {path} any more"
        elif is_hole(node):
            state = "not yet"
        else:
            state, details = child.ask(e.number, sources[path], str(path))
        print(textwrap.fill(f"{e.number:>3}  {e.name:<28} {state}", 79, subsequent_indent=34 * " "))
        if state != "done":
            undone.append(f"exercise {e.number}, {path} line {node.lineno if node else 1}")
        if options.numbers:
            print(details or f"This is {undone[-1]}.")
    if options.numbers:
        return 1 if undone else 0
    if undone:
        print(f"\n{len(chosen) - len(undone)} of {len(chosen)} are done; next is {undone[0]}.")
    else:
        print(f"\nAll {len(chosen)} are done. You have written a GPT: python my_gpt.py")
    return 1 if undone else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
