"""gpt.py: how a GPT is made, in one file that is read from top to bottom.

A GPT (generative pre-trained transformer) does one thing. Shown the beginning of a text, it says
how likely each character is to come next. Draw one by these probabilities, append it, ask again:
the model writes. Everything below serves to make the probabilities good, and to use them well.

    0  Settings     the numbers that you may want to change
    1  Text         what the model learns from
    2  Tokens       characters become integers, and integers characters
    3  Batches      inputs, and as targets the same text one step later
    4  Bigram       the baseline: look at one character, guess the next
    5  Attention    how a token gathers what it needs from the tokens before it
    6  GPT          attention and a small network, stacked
    7  Training     from examples to better weights
    8  Writing      from probabilities to text
    9  The run      what `python gpt.py` does with all this
  A-H  Appendix     what a reader may skip: checks, files, the terminal, pieces of words as tokens,
                    demos that check themselves, sizes, several processes, the command line

    python gpt.py                               run the story, two minutes on a laptop without a GPU
    python gpt.py --text my.txt                 the same with your own text
    python gpt.py hello                         a demo; also count, random, and coder (minutes)
    python gpt.py sample --prompt "ROMEO:"      let the trained model write
    python gpt.py --help                        all options

You need to know Python, and that a matrix product is many dot products at once. A comment such as
`# (B, T) -> (B, T, C)` says how a line changes the shape of a tensor, always in these letters:

    B   batch: how many pieces of text are worked on side by side
    T   time: how many tokens a piece has
    C   channels: how many numbers describe one token
    V   vocabulary: how many different tokens there are
    nh  number of attention heads, and hs  head size: each has its share of the channels, C / nh
    N   tokens of a whole text; and () is the shape of a single number
"""

# %% 0. Settings
# The numbers that decide what is built and how it learns. They will make sense as the chapters go
# by; this is the place to come back to. The defaults make a model of 0.6 million weights that
# learns in about two minutes on two processor cores.

import argparse
import ast
import copy
import csv
import glob
import hashlib
import io
import math
import os
import random
import re
import signal
import sys
import textwrap
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import groupby, pairwise, takewhile, zip_longest
from pathlib import Path
from pydoc_data.topics import topics

import requests

try:
    import fcntl
except ImportError:                 # Windows
    fcntl = None

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")     # nothing here needs NumPy
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    """The settings of a model and of its training. Raises ValueError for one that cannot work."""

    # The model
    tokenizer: str = "char"         # what a token is: char, a character, or bpe, a piece of a word
    vocab_size: int = 65            # V, different tokens; for characters, the text decides
    block_size: int = 64            # the context: the most tokens that the model can look at
    n_layer: int = 3                # blocks, one on top of the other
    n_head: int = 4                 # nh, attention heads in each block
    n_embd: int = 128               # C, numbers that describe one token
    dropout: float = 0.0            # share of numbers set to zero in training; helps on short texts
    bias: bool = True               # linear layers and LayerNorms also add a constant, as in GPT-2
    position: str = "learned"       # how tokens know their place: learned, sinusoidal or rotary
    tie_weights: bool = False       # one table to read and to predict tokens with, as in GPT-2

    # The training
    batch_size: int = 12            # B, pieces of text in each step
    max_steps: int = 3000           # steps of gradient descent
    learning_rate: float = 4e-3     # the highest on the way; a model this small bears a lot
    warmup_steps: int = 100         # steps until it is reached
    weight_decay: float = 0.1       # pull of the matrices towards zero, relative to learning_rate
    grad_clip: float = 1.0          # a longer gradient is shortened to this length
    eval_interval: int = 500        # steps from one look at the validation split to the next
    seed: int = 1337                # decides the first weights, the batches and the samples

    def __post_init__(self):
        check_config(self)          # appendix A


# %% 1. Text
# A language model learns from text and from nothing else. Ours is Tiny Shakespeare, 1.1 million
# characters from his plays. It is downloaded once and kept in data/. What arrives is kept only if
# its SHA-256 is the one we know: half a file, or the login page of a hotel, is not Shakespeare.
# Without a network, there is a text that every Python carries with it: its own manual.

DATA = Path("data")
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_URL = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/"
                   "data/tinyshakespeare/input.txt")


def download(url, path, sha256, timeout=5.0):
    """Fetch `url` into the file `path`; if that fails, raise OSError and leave `path` as it was.

    timeout: seconds, for the connection and for each wait for more bytes.
    """
    digest = hashlib.sha256()
    # replacing, in appendix B, moves the file into its place only if no error comes up.
    with replacing(path) as file, requests.get(url, stream=True, timeout=timeout) as response:
        response.raise_for_status()
        for chunk in response.iter_content(chunk_size=65536):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != sha256:
            raise OSError(f"{url} sent something else than expected (its SHA-256 differs)")


def load_shakespeare(tries=3):
    """Tiny Shakespeare, from data/ if it is there and whole, else downloaded. OSError if neither."""
    path = DATA / "tinyshakespeare.txt"
    for attempt in range(1, tries + 1):
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHAKESPEARE_SHA256:
            break
        try:
            download(SHAKESPEARE_URL, path, SHAKESPEARE_SHA256)
        except OSError:
            if attempt == tries:
                raise
            time.sleep(1)           # many network errors pass by themselves
    return path.read_text(encoding="utf-8")


def load_manual():
    """The manual of Python, about 465,000 characters that come with Python itself."""
    return "".join(topics.values())


# %% 2. Tokens
# A network calculates with numbers. So the text is cut into tokens, and each different token gets
# a number of its own. Here a token is one character: nothing is simpler, and the vocabulary is small.
# (Large models cut text into pieces of words. Appendix D does that; nothing else has to change.)


class CharTokenizer:
    """Turns text into a list of integers, one for each character, and back.

    >>> tokenizer = CharTokenizer("helo")
    >>> tokenizer.encode("hello")
    [0, 1, 2, 2, 3]
    >>> tokenizer.decode([0, 1, 2, 2, 3])
    'hello'
    """

    def __init__(self, characters):
        self.characters = characters
        self.vocab_size = len(characters)
        self.ids = {character: i for i, character in enumerate(characters)}

    def encode(self, text):
        """str -> list of int. Raises ValueError for a character that is not in the vocabulary."""
        try:
            return [self.ids[character] for character in text]
        except KeyError as error:
            raise ValueError(f"the character {error} is not in the vocabulary of {self.vocab_size}: "
                             f"{self.characters!r}") from None

    def decode(self, ids):
        """list of int -> str. Raises ValueError for an id that is not in the vocabulary."""
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"the id {i} is not in the vocabulary: ids go from 0 to "
                                 f"{self.vocab_size - 1}, for {self.characters!r}")
        return "".join(self.characters[i] for i in ids)


def build_char_tokenizer(text):
    """A CharTokenizer of all characters in `text`, in sorted order.

    >>> build_char_tokenizer("banana").characters
    'abn'
    """
    return CharTokenizer("".join(sorted(set(text))))


# %% 3. Batches
# What can be learned from a text? At each place: after these tokens came that one. A piece of T
# tokens holds T such examples, one for each of its beginnings, and the model will answer them all
# at once. So its targets are its inputs, one step later:
#
#     inputs      F i r s t
#     targets     i r s t _      (_ is the space)
#
# The last tenth of the text is kept out of training. Only there does it show whether a model has
# learned the language or has memorized the text.


def split(text):
    """Cut a text, or its tokens (N,), in two: 90% to train on, the rest to validate with."""
    n = int(0.9 * len(text))
    return text[:n], text[n:]


def get_batch(data, step, config):
    """Inputs and targets of one training step, two int64 tensors (B, T), from random places in data.

    Only the seed and the step decide which places, so a run can be repeated, or stopped and resumed.

    >>> x, y = get_batch(torch.arange(100), 0, Config(batch_size=2, block_size=4))
    >>> bool((y == x + 1).all())
    True
    """
    B, T = config.batch_size, config.block_size
    generator = torch.Generator().manual_seed(1_000_003 * config.seed + step)
    starts = torch.randint(len(data) - T, (B, 1), generator=generator)
    places = starts + torch.arange(T + 1)       # (B, 1) + (T+1,) -> (B, T+1)
    places = places.to(data.device, non_blocking=True)      # to the GPU, if the data is there
    pieces = data[places]                       # (N,) -> (B, T+1)
    return pieces[:, :-1], pieces[:, 1:]        # (B, T+1) -> two of (B, T)


# %% 4. Bigram
# The simplest model that learns looks at one token and guesses the next. It is a table: a row for
# each token, and in the row a score for each token that may follow. Such scores are called logits.
# Softmax, exp(logit) / (the sum of all exp(logit) in the row), turns them into probabilities.
#
# How wrong is a guess? Its loss is -ln(the probability that it gave to the token that really came),
# averaged over all places: the cross-entropy, in nats per token. To know nothing and give each of
# V tokens the probability 1/V costs ln(V). To be sure and right costs 0.


def next_token_loss(logits, targets):
    """Mean cross-entropy, in nats per token, of logits (B, T, V) for targets (B, T) -> ()."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())     # (B*T, V), (B*T,) -> ()


class BigramLanguageModel(nn.Module):
    """Predicts each token from the one before: `logits, loss = model(idx, targets)`."""

    block_size = 1                              # the tokens that it looks at

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size = vocab_size
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)       # it starts by knowing nothing: all tokens alike

    def forward(self, idx, targets=None, cache=None):
        """idx, targets (B, T) int64 -> logits (B, T, V) and the loss (), None without targets.

        The `cache` is there because the GPT has one; a bigram has nothing to keep.
        """
        logits = self.table(idx)                # (B, T) -> (B, T, V), the row of each token
        return logits, None if targets is None else next_token_loss(logits, targets)


# How good can such a table get? Counting tells: if a space came after 3,000 of 4,000 commas, then
# no other probability for it has a lower loss than 3/4. So logits of log(count) make the best bigram
# that there is for the text that was counted, and training has to come close to it.


def bigram_from_counts(tokens, vocab_size, smoothing=0.0):
    """The best BigramLanguageModel for tokens (N,), with `smoothing` added to each count.

    >>> model = bigram_from_counts(torch.tensor([0, 1, 0, 1, 0, 0]), vocab_size=2)
    >>> F.softmax(model.table.weight[0], dim=0)     # after a 0 came one 0 and two 1s
    tensor([0.3333, 0.6667], grad_fn=<SoftmaxBackward0>)
    """
    V = vocab_size
    pairs = V * tokens[:-1] + tokens[1:]                        # (N,) -> (N-1,), a number per pair
    counts = torch.bincount(pairs, minlength=V * V).view(V, V)  # (N-1,) -> (V*V,) -> (V, V)
    model = BigramLanguageModel(V).to(tokens.device)
    model.table.weight.data = (counts + smoothing).log()        # never seen: -inf, probability 0
    return model


# %% 5. Attention
# A bigram forgets all but one token. To predict better, each token must gather what matters from
# its past, which is itself and all tokens before it, and what matters depends on what they are.
# That is attention. Out of the C numbers that describe it, each token makes three vectors:
#
#     a query     what am I looking for?
#     a key       what do I offer to those who look?
#     a value     what do I hand over if I am chosen?
#
# The dot product of my query with your key says how much you matter to me. Softmax over all tokens
# of the past turns these scores into weights that sum to 1, and I receive the mean of the values,
# weighted so. What comes after me is masked: a score of minus infinity becomes a weight of 0.
# Without the mask, the model would predict the next token by looking at it, and learn nothing.
#
# Why divide by sqrt(hs)? The dot product of two vectors of hs random numbers of size 1 has a size of
# about sqrt(hs). Large scores would let softmax put nearly all weight on one token from the start,
# and then a small change of the scores changes nothing: there is little to learn from.


def attend(q, k, v):
    """One head of causal attention, written out: q, k, v (..., T, hs) -> (..., T, hs).

    Vaswani et al. 2017, "Attention is all you need", equation 1, with a mask. The class below does
    the same for all heads with PyTorch's fused function, which is faster.
    """
    T, hs = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(hs)    # (..., T, hs) @ (..., hs, T) -> (..., T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(diagonal=1)       # (T, T)
    weights = F.softmax(scores.masked_fill(future, -math.inf), dim=-1)  # each row sums to 1
    return weights @ v                                  # (..., T, T) @ (..., T, hs) -> (..., T, hs)


# One thing is missing. To attention, the tokens before me are a bag: a weighted mean does not know
# in which order its terms came. So each token must know its place. Imagine a set of clocks, from one
# whose hand moves 1 radian per token to one that goes round once in ten contexts. Together, their
# hands tell every place, and "three tokens earlier" turns them back by the same angles wherever we
# are. There are three ways to use them:
#
#     sinusoidal  add the sines and cosines of the hands to what describes a token (Vaswani et al.)
#     learned     the same to start from, but trained like all other weights (GPT-2 starts at random)
#     rotary      turn queries and keys along with the hands; then place enters their dot product
#                 only as the distance between the two tokens (Su et al. 2021, "RoFormer")


def clock_speeds(block_size, n_clocks):
    """How far each hand moves from token to token, in radians, the fastest first: (n_clocks,)."""
    slowest = 2 * math.pi / (10 * block_size)               # the fastest has 1
    return slowest ** torch.linspace(0, 1, n_clocks)


def clock_angles(block_size, n_clocks):
    """The angles of the hands at each place, in radians: (block_size, n_clocks)."""
    places = torch.arange(block_size)[:, None]              # (T, 1)
    return places * clock_speeds(block_size, n_clocks)      # (T, 1) * (n_clocks,) -> (T, n_clocks)


def sinusoids(block_size, n_embd):
    """The sines and cosines of n_embd / 2 clocks at each place: (block_size, n_embd)."""
    angles = clock_angles(block_size, n_embd // 2)
    return torch.cat((angles.sin(), angles.cos()), dim=1)   # two of (T, C/2) -> (T, C)


def rotate(x, angles):
    """Turn x (B, nh, T, hs), taken as hs/2 arrows in the plane, by angles (T, hs/2).

    >>> x = torch.tensor([[[[1.0, 0.0]]]])                  # one arrow, pointing right
    >>> rotate(x, torch.tensor([[math.pi / 2]])).round().tolist()   # a quarter turn: pointing up
    [[[[-0.0, 1.0]]]]
    """
    a, b = x.chunk(2, dim=-1)                               # (B, nh, T, hs) -> two of (B, nh, T, hs/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)        # back to (B, nh, T, hs)


# Several heads look at the past side by side, each with queries, keys and values of its own, so a
# token can ask several questions at once. One matrix product makes them all.
#
# The keys and values of a token never change, because it does not see what comes after it. So when
# the model writes, token by token, a cache keeps them, and only the new token has to be computed.


class CausalSelfAttention(nn.Module):
    """All heads of one layer: each token gathers from its past, (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.n_head, self.block_size, self.dropout = config.n_head, config.block_size, config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, angles=None, cache=None):
        """angles (T, hs/2), for rotary positions. cache: a dict, to be filled while writing."""
        B, T, C = x.shape
        nh, hs = self.n_head, C // self.n_head
        qkv = self.qkv(x).view(B, T, 3, nh, hs)         # (B, T, C) -> (B, T, 3C) -> (B, T, 3, nh, hs)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)            # (B, T, 3, nh, hs) -> three of (B, nh, T, hs)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:                           # each layer has its own entry
            if self not in cache:                       # room for the keys and values of a full context
                room = (B, nh, self.block_size, hs)
                cache[self] = k.new_empty(room), v.new_empty(room)
            past, (all_k, all_v) = cache["length"], cache[self]
            all_k[:, :, past:past + T], all_v[:, :, past:past + T] = k, v
            k, v = all_k[:, :, :past + T], all_v[:, :, :past + T]   # two of (B, nh, past+T, hs)
        y = F.scaled_dot_product_attention(             # as attend, three of (B, nh, T, hs) -> one
            q, k, v, is_causal=T > 1,                   # a single new token looks at all of the past
            dropout_p=self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, C)          # (B, nh, T, hs) -> (B, T, nh, hs) -> (B, T, C)
        return self.proj(y)                             # mixes what the heads have found


# %% 6. GPT
# Attention carries information from token to token. A feed-forward network then works on what each
# token has gathered: it widens the C numbers to 4C, bends them, and narrows them to C again. Without
# the bend, the two matrices would do no more than one. (Ours is GELU, Hendrycks & Gimpel 2016, in
# the tanh form of GPT-2.) Attention and feed-forward together are a block, and blocks are stacked:
# each gathers from what the ones below have worked out.
#
# Neither half of a block replaces x; it adds to it (a residual connection). So x runs like a stream
# from bottom to top, and the corrections of training reach all layers directly. What a half reads
# from the stream is first brought to mean 0 and variance 1 for each token, by a LayerNorm, which
# then scales each channel by a learned gain.
#
# At the bottom, each token is looked up in a table of C numbers, its embedding, and its position is
# added. At the top, lm_head turns the C numbers of each token into V logits for the next one.
# Dropout sets a random share of the numbers to zero in training, so that none is relied on alone.


class Block(nn.Module):
    """Attention, then feed-forward, each added to the stream: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        C, bias = config.n_embd, config.bias
        self.norm_1 = nn.LayerNorm(C, bias=bias)
        self.attention = CausalSelfAttention(config)
        self.norm_2 = nn.LayerNorm(C, bias=bias)
        self.feed_forward = nn.Sequential(
            nn.Linear(C, 4 * C, bias=bias),                         # (B, T, C) -> (B, T, 4C)
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * C, C, bias=bias))                         # (B, T, 4C) -> (B, T, C)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, angles=None, cache=None):
        x = x + self.dropout(self.attention(self.norm_1(x), angles, cache))
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


class GPT(nn.Module):
    """A transformer that predicts each token from those before: `logits, loss = model(idx, targets)`.

    With bias=True and position="learned", the same weights give the same logits as in GPT-2 (Radford
    et al. 2019). tie_weights=True makes one table of the embedding and lm_head, as GPT-2 has it.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.vocab_size, self.block_size = config, config.vocab_size, config.block_size
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "rotary":
            angles = clock_angles(config.block_size, config.n_embd // config.n_head // 2)
            self.register_buffer("angles", angles, persistent=False)    # (block_size, hs/2)
        else:
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Random weights to start from, chosen so that training is fast from the first step."""
        for module in self.modules():
            # A sum of n random terms has sqrt(n) times their size, so weights of size 1/sqrt(n) keep
            # the size of what passes through.
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:               # a block adds nothing, until it has learned what
            nn.init.zeros_(block.attention.proj.weight)
            nn.init.zeros_(block.feed_forward[-1].weight)
        if self.config.tie_weights:
            nn.init.normal_(self.lm_head.weight, std=0.02)
            self.token_embedding.weight = self.lm_head.weight
        else:
            # Tokens write to the last quarter of the stream, and lm_head reads the other three. So no
            # token sways the first logits, and all are about equally likely. Yet the rows of lm_head
            # differ from the start, and each target asks the blocks for something else.
            quarter = max(1, self.config.n_embd // 4)
            nn.init.zeros_(self.token_embedding.weight[:, :-quarter])
            nn.init.normal_(self.token_embedding.weight[:, -quarter:], std=1.0)
            nn.init.zeros_(self.lm_head.weight[:, -quarter:])
        if self.config.position != "rotary":    # softer than the tokens, and on all channels
            size = 0.03 if self.config.tie_weights else 0.3
            self.position_embedding.weight.copy_(size * sinusoids(self.block_size, self.config.n_embd))
            self.position_embedding.weight.requires_grad_(self.config.position == "learned")
        self.look_back()

    def look_back(self):
        """Let head h of the first block look h + 1 tokens back, until it learns something better.

        What came a few tokens ago matters in every language, and to find that out by chance takes
        long. So each key shows the hands of some clocks, and each query the same hands turned back by
        h + 1 tokens: they agree best with what the key showed there, and so their dot product with it
        is the largest. The scores are as large as chapter 5 warns of; here they are wanted, since to look
        there is no bad choice. (Rotary positions need biases for this; without, nothing is done.)
        """
        config, qkv = self.config, self.blocks[0].attention.qkv
        C, nh = config.n_embd, config.n_head
        n = C // nh // 2                                # hands in a head: each is a cosine and a sine
        clocks = torch.arange(n)
        if config.position != "rotary":                 # read the fastest clocks of the stream
            shown = torch.zeros(C, 2 * n)
            shown[C // 2 + clocks, clocks] = 6.0        # their cosines; large, so that softmax is sure
            shown[clocks, n + clocks] = 6.0             # their sines
            speeds = clock_speeds(self.block_size, C // 2)[:n]
            heads = qkv.weight.view(3, nh, -1, C)                           # (3C, C) -> (3, nh, hs, C)
        elif config.bias:                               # the same for all; attention will turn them
            shown = torch.zeros(1, 2 * n)
            shown[:, :n] = 6.0
            speeds = clock_speeds(self.block_size, n)
            nn.init.zeros_(qkv.weight[:2 * C])
            heads = qkv.bias.view(3, nh, -1, 1)                             # (3C,) -> (3, nh, hs, 1)
        else:
            return
        for h in range(nh):
            heads[0, h, :2 * n] = rotate(shown, -(h + 1) * speeds).T        # queries: (C, 2n) -> (2n, C)
            heads[1, h, :2 * n] = shown.T                                   # keys, and 1 for C if rotary

    def forward(self, idx, targets=None, cache=None):
        """idx, targets (B, T) int64 -> logits (B, T, V) and the loss (), None without targets.

        With a cache, a dict that is empty at first, idx holds only tokens that are new: any number
        in the first call, one in each later call. Raises ValueError for more than block_size tokens.
        """
        past = 0 if cache is None else cache.setdefault("length", 0)
        end = past + idx.shape[1]
        if end > self.block_size:
            raise ValueError(f"{end} tokens are more than the context, block_size={self.block_size}")
        if past and idx.shape[1] != 1:
            raise ValueError(f"a filled cache takes one token at a time, not {idx.shape[1]}")
        x = self.token_embedding(idx)                               # (B, T) -> (B, T, C)
        angles = None
        if self.config.position == "rotary":
            angles = self.angles[past:end]                          # (block_size, hs/2) -> (T, hs/2)
        else:
            x = x + self.position_embedding.weight[past:end]        # (B, T, C) + (T, C) -> (B, T, C)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, angles, cache)
        if cache is not None:
            cache["length"] = end
        logits = self.lm_head(self.norm(x))                         # (B, T, C) -> (B, T, V)
        return logits, None if targets is None else next_token_loss(logits, targets)


def count_parameters(model):
    """The number of weights that training can change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# %% 7. Training
# Gradient descent: take a batch and its loss, compute for each weight in which direction it would
# raise the loss (the gradient; backward() finds all of them), and move all weights a little in the
# other direction. And again.
#
# Adam (Kingma & Ba 2015) measures each weight's step by how large its gradients have been lately, so
# that all weights learn at a similar pace. The W of AdamW (Loshchilov & Hutter 2019) is for weight
# decay: the matrices shrink a little in each step, so that only those numbers stay large that the
# data asks for again and again. And clipping shortens the rare gradient that is far too long.


def build_optimizer(model, config):
    """AdamW, in its fused form where there is one. Vectors (biases and LayerNorms) do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0}]
    fused = trained[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=fused)


def learning_rate_at(step, config):
    """The lower one of two lines: warm-up, because the first gradients are the wildest, and decay to
    zero, because large steps find the valley and small steps its floor.

    >>> config = Config(learning_rate=1.0, max_steps=10, warmup_steps=1)
    >>> [round(learning_rate_at(step, config), 1) for step in range(10)]
    [0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    """
    warm_up = (step + 1) / (config.warmup_steps + 1)
    decay = 1 - step / config.max_steps
    return config.learning_rate * min(warm_up, decay)


def training_step(model, optimizer, data, step, config):
    """One step of gradient descent. Returns the loss of its batch, a tensor ()."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, config)
    torch.manual_seed(config.seed + step)       # dropout, too, depends on nothing but seed and step
    x, y = get_batch(data, step, config)
    on_gpu = data.device.type == "cuda"         # where products of 16-bit numbers are much faster
    with torch.autocast(data.device.type, torch.bfloat16, enabled=on_gpu):
        _, loss = model(x, y)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    return loss.detach()


# How good is the model by now? The loss of a few random batches would be a noisy answer. Instead,
# predict all of the validation split: the exact answer, and the same each time.


@contextmanager
def eval_mode(model):
    """Without dropout for a while; then as it was before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def evaluate(model, data):
    """Mean loss, in nats per token, over all tokens of data (N,) except the first -> float.

    The data is read in windows of model.block_size tokens, side by side; the last may be shorter.
    """
    T = model.block_size
    inputs, targets = data[:-1], data[1:]               # (N,) -> two of (N-1,)
    whole = len(inputs) // T * T                        # the tokens that are in windows of full length
    rows = max(1, 2048 // T)                            # windows to compute at once
    batches = []
    if whole > 0:                                       # (whole,) -> (whole/T, T) -> many (rows, T)
        batches += zip(inputs[:whole].view(-1, T).split(rows),
                       targets[:whole].view(-1, T).split(rows))
    if whole < len(inputs):                             # (rest,) -> (1, rest)
        batches += [(inputs[None, whole:], targets[None, whole:])]
    with eval_mode(model):
        return sum(model(x, y)[1].item() * x.numel() for x, y in batches) / len(inputs)


def train(model, train_data, val_data, config, recorder=None):
    """Train `model` in place on tokens (N,); return the history, a dict for each evaluation.

    It is evaluated every eval_interval steps and at the end. The recorder, from appendix B, takes
    notes, and can show and save them, go on with an earlier training, and stop this one early. At a
    first reading, skip its lines: the training is in the others.
    """
    recorder = recorder or Recorder()
    optimizer = build_optimizer(model, config)
    first_step = recorder.begin(model, optimizer, config)
    model.train()
    for step in range(first_step, config.max_steps):
        loss = training_step(model, optimizer, train_data, step, config)
        recorder.after_step(loss)
        if (step + 1) % config.eval_interval == 0 or step + 1 == config.max_steps or recorder.stop:
            recorder.after_evaluation(evaluate(model, val_data))
        if recorder.stop:
            break
    return recorder.history


# %% 8. Writing
# The model gives probabilities; a text needs decisions. To take the likeliest token each time
# (greedy) makes a dull text that soon repeats itself. To draw by the probabilities as they are lets
# in, now and then, a token that spoils it. Between the two there are three dials:
#
#     temperature     divides the logits: below 1 favours the likely, above 1 makes all more alike
#     top_k           draw only from the k likeliest tokens
#     top_p           draw only from the likeliest tokens that have, together, the probability p


def next_token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """What to draw the next token by: logits (B, V) -> probabilities (B, V), each row sums to 1.

    The dials work in the order temperature, top_k, top_p (top_p is from Holtzman et al. 2020).

    >>> logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    >>> next_token_probabilities(logits, top_p=0.7)
    tensor([[0.6667, 0.3333, 0.0000, 0.0000]])
    """
    if temperature == 0:                                    # greedy: the likeliest has probability 1
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()   # (B, V) -> (B,) -> (B, V)
    logits = logits - logits.amax(dim=-1, keepdim=True)     # changes nothing; now none can overflow
    probs = F.softmax(logits / temperature, dim=-1)
    if top_k is None and top_p is None:
        return probs
    probs, tokens = probs.sort(dim=-1, descending=True)     # the likeliest first, and who they are
    if top_k is not None:
        probs[:, top_k:] = 0
    if top_p is not None and top_p < 1:
        likelier = probs.cumsum(dim=-1) - probs             # the probability of all that come before
        probs[likelier >= top_p * probs.sum(dim=-1, keepdim=True)] = 0
    probs = torch.zeros_like(probs).scatter(-1, tokens, probs)      # each back in its place
    return probs / probs.sum(dim=-1, keepdim=True)


# A text may become longer than the context. Then the model reads it through a window: when the
# window is full, the older half of it is dropped, and the rest is read again from position 0 on.
# Until it is full again, the cache makes each new token cost no more than one token.


def window_start(length, block_size):
    """Where the window begins in a text of `length` tokens.

    >>> [window_start(length, block_size=8) for length in (1, 8, 9, 12, 13, 16, 17)]
    [0, 0, 4, 4, 8, 8, 12]
    """
    half = max(1, block_size // 2)
    overflow = max(0, length - block_size)
    return math.ceil(overflow / half) * half


@torch.inference_mode()                 # like no_grad, and a little faster
def stream_tokens(model, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None,
                  use_cache=True, generator=None):
    """Like generate, but yields each new token (B, 1) as soon as it is drawn."""
    check_sampling(model, idx, max_new_tokens, temperature, top_k, top_p)       # appendix A
    start = cache = None
    with eval_mode(model):
        for _ in range(max_new_tokens):
            new_start = window_start(idx.shape[1], model.block_size)
            if use_cache and new_start == start:
                logits, _ = model(idx[:, -1:], cache=cache)         # (B, 1) -> (B, 1, V)
            else:
                start, cache = new_start, {} if use_cache else None
                logits, _ = model(idx[:, start:], cache=cache)      # (B, window) -> (B, window, V)
            probs = next_token_probabilities(logits[:, -1], temperature, top_k, top_p)      # (B, V)
            token = torch.multinomial(probs, 1, generator=generator)                        # (B, 1)
            idx = torch.cat((idx, token), dim=1)                    # (B, T), (B, 1) -> (B, T+1)
            yield token


def generate(model, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, use_cache=True,
             generator=None):
    """Continue idx (B, T) int64 by max_new_tokens drawn tokens -> (B, T + max_new_tokens).

    temperature     divides the logits; 0 always takes the likeliest token
    top_k           draw only from the k likeliest
    top_p           draw only from the fewest that together have at least this probability, in (0, 1]
    use_cache       False computes the whole window again for each token: as good, but slower
    generator       a torch.Generator to draw with, for texts that can be repeated

    Any length is possible: the model sees the window of the last tokens that window_start tells,
    at least half of block_size and at most all of it, with the cache and without. Raises ValueError
    for values that make no sense. The model works in eval mode, without gradients, and is left in
    the mode in which it was.
    """
    new_tokens = stream_tokens(model, idx, max_new_tokens, temperature=temperature, top_k=top_k,
                               top_p=top_p, use_cache=use_cache, generator=generator)
    return torch.cat((idx, *new_tokens), dim=1)             # (B, T), many (B, 1) -> (B, T + new)


# %% 9. The run
# All of it in order, on a real text. This is what `python gpt.py` does, and what it prints.

BIGRAM_TRAINING = {"block_size": 1, "batch_size": 2048, "max_steps": 500, "eval_interval": 250,
                   "learning_rate": 0.2, "warmup_steps": 0, "weight_decay": 0.0}
SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 500, 0.8


def run(name, train_text, val_text, config, *, prompt=None, check=None, device="cpu", resume=False,
        compile=False):
    """Train a bigram and a GPT on a text and compare them. Leaves data/NAME.pt, .csv and samples.

    prompt      what the samples begin with; a new line, if nothing is said
    check       looks at what the model does at the end, as the checks of the demos in appendix E do
    compile     let torch.compile make the training faster, which takes a minute first

    Returns whether the check held, True without one. Raises ValueError for a text that is too short,
    and for a checkpoint that cannot be resumed.
    """
    text = train_text + val_text
    tokenizer = (build_char_tokenizer(text) if config.tokenizer == "char" else
                 build_bpe_tokenizer(train_text, config.vocab_size))
    train_data = torch.tensor(tokenizer.encode(train_text), device=device)
    val_data = torch.tensor(tokenizer.encode(val_text), device=device)
    check_length(train_data, val_data, config)
    config = replace(config, vocab_size=tokenizer.vocab_size)
    saved = read_checkpoint_to_resume(DATA / f"{name}.pt", config, text) if resume else None

    heading("1. Text")
    print(f"{len(text):,} characters. They begin:\n")
    print(textwrap.indent(text[:150].rpartition("\n")[0] or text[:70], "    "))

    heading("2. Tokens")
    show_tokenizer(tokenizer, train_text, len(train_data))

    heading("3. Batches")
    print(f"{len(train_data):,} tokens to train on, {len(val_data):,} to validate with.")
    print(f"One piece of {config.block_size} tokens is {config.block_size} examples. They begin:\n")
    for t in range(1, min(8, config.block_size) + 1):
        before, next_token = train_data[:t].tolist(), train_data[t:t + 1].tolist()
        print(f"    after {tokenizer.decode(before)!r:<14} comes {tokenizer.decode(next_token)!r}")

    heading("4. Bigram")
    bigram, bigram_seconds = train_bigram(train_data, val_data, config)
    best = evaluate(bigram_from_counts(train_data, config.vocab_size), train_data)
    print(f"on the training split {evaluate(bigram, train_data):.4f}, "
          f"and by counting, the best of all bigrams, {best:.4f}")

    heading("5. Attention")
    q, k, v = torch.randn(3, 1, config.n_head, config.block_size, config.n_embd // config.n_head)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    difference = (attend(q, k, v) - fused).abs().max()
    print(f"queries, keys and values for {config.n_head} heads: {tuple(q.shape)} each")
    print(f"attention written out and fused differ by at most {difference:.0e}")

    heading("6. GPT")
    torch.manual_seed(config.seed)
    model = GPT(config).to(device)
    x, _ = get_batch(train_data, 0, config)
    with torch.no_grad():
        logits, _ = model(x)
    print(f"{config.n_layer} blocks, width {config.n_embd}: {count_parameters(model):,} parameters")
    print(f"tokens {tuple(x.shape)} -> logits {tuple(logits.shape)}")
    print(f"loss before training {evaluate(model, val_data):.2f}; knowing nothing costs "
          f"ln({config.vocab_size}) = {math.log(config.vocab_size):.2f}")

    heading("7. Training")
    if saved:
        print(f"going on after step {saved['step']}, with the learning rate of {config.max_steps} "
              f"steps")
    save = partial(save_run, name, config, tokenizer, sha256_of(text)) if is_first_process() else None
    recorder = Recorder(show=True, save=save, saved=saved)
    with ctrl_c_stops(recorder):
        train(make_trainee(model, config, compile), train_data, val_data, config, recorder)
    if not is_first_process():                      # appendix G: the first one does the rest
        return True
    if recorder.step < config.max_steps:
        print(f"stopped after step {recorder.step}; --resume goes on from here")
    model.load_state_dict(recorder.best_weights())

    heading("8. Writing")
    prompt = prompt or first_prompt(tokenizer)
    samples = [write_sample(bigram, tokenizer, prompt, config.seed, DATA / f"{name}-bigram.txt"),
               write_sample(model, tokenizer, prompt, config.seed, DATA / f"{name}-gpt.txt")]
    side_by_side(("bigram", "GPT"), samples)

    heading("9. The run")
    print_results([
        ("uniform", 0, math.log(config.vocab_size), None),
        ("bigram", count_parameters(bigram), evaluate(bigram, val_data), bigram_seconds),
        ("GPT", count_parameters(model), evaluate(model, val_data), recorder.seconds),
    ], tokens_per_character=len(val_data) / len(val_text))
    print(f"\nSaved in {DATA}: {name}.pt, the checkpoint; {name}.csv, the losses;\n"
          f"{name}-bigram.txt and {name}-gpt.txt, the samples.")
    return show_check(check(model, bigram, tokenizer, val_text)) if check else True


def train_bigram(train_data, val_data, config):
    """(bigram, seconds): a trained BigramLanguageModel, and the time that its training took."""
    bigram = BigramLanguageModel(config.vocab_size).to(train_data.device)
    recorder = Recorder(show=True)
    train(bigram, train_data, val_data, replace(config, **BIGRAM_TRAINING), recorder)
    return bigram, recorder.seconds


def first_prompt(tokenizer):
    """What a text begins with when nothing is said: a new line, if the vocabulary has it."""
    try:
        return tokenizer.decode(tokenizer.encode("\n"))
    except ValueError:
        return tokenizer.decode([0])


def continue_text(model, tokenizer, prompt, max_new_tokens, seed=0, **dials):
    """`prompt` and what `model` writes after it, a str. The dials are those of generate."""
    device = next(model.parameters()).device
    idx = torch.tensor([tokenizer.encode(prompt)], device=device)               # (1, T)
    generator = torch.Generator(device).manual_seed(seed)
    written = generate(model, idx, max_new_tokens, generator=generator, **dials)
    return tokenizer.decode(written[0].tolist())


def write_sample(model, tokenizer, prompt, seed, path):
    """A text by `model`, which is also left in the file `path`."""
    sample = continue_text(model, tokenizer, prompt, SAMPLE_TOKENS, seed, temperature=SAMPLE_TEMPERATURE)
    with replacing(path) as file:
        file.write(sample.encode())
    return sample


# %% Appendix A. Checks
# Each raises ValueError with the value and the limit.


def check_range(name, value, lowest, below=2**32):
    """Raise ValueError unless lowest <= value < below."""
    if not lowest <= value < below:
        raise ValueError(f"{name} must be at least {lowest} and below {below}, not {value}")


def check_config(config):
    """Called by every new Config."""
    for field in fields(config):
        value = getattr(config, field.name)
        if type(value) is not field.type and not (field.type is float and type(value) is int):
            raise ValueError(f"{field.name} must be of type {field.type.__name__}, not {value!r}")
    for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "batch_size", "max_steps",
                 "eval_interval"):
        check_range(name, getattr(config, name), 1)
    for name in ("warmup_steps", "weight_decay", "seed"):
        check_range(name, getattr(config, name), 0)
    check_range("dropout", config.dropout, 0, 1)
    for name in ("learning_rate", "grad_clip"):
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, not {getattr(config, name)}")
    if config.tokenizer not in ("char", "bpe"):
        raise ValueError(f"tokenizer must be char or bpe, not {config.tokenizer!r}")
    if config.tokenizer == "bpe":
        check_range("vocab_size, for bpe,", config.vocab_size, 257)
    if config.position not in ("learned", "sinusoidal", "rotary"):
        raise ValueError(f"position must be learned, sinusoidal or rotary, not {config.position!r}")
    if config.n_embd % config.n_head != 0:
        raise ValueError(f"n_embd must be a multiple of n_head={config.n_head}, not {config.n_embd}")
    name, width = "n_embd", config.n_embd
    if config.position == "rotary":
        name, width = "the head size, n_embd / n_head,", config.n_embd // config.n_head
    if width % 2 != 0:
        raise ValueError(f"{name} must be even for {config.position} positions, not {width}")


def check_length(train_data, val_data, config):
    """A text must fill at least one context, and leave something to validate with."""
    if len(train_data) <= config.block_size or len(val_data) < 2:
        raise ValueError(f"the text has {len(train_data)} tokens to train on, {len(val_data)} to "
                         f"validate with; block_size={config.block_size} needs "
                         f"{config.block_size + 1} and 2")


def check_sampling(model, idx, max_new_tokens, temperature, top_k, top_p):
    """Called before the first token is drawn."""
    if idx.dtype != torch.int64 or idx.dim() != 2 or idx.numel() == 0:
        raise ValueError(f"idx must be an int64 tensor (B, T) with at least one token, "
                         f"not {idx.dtype} {tuple(idx.shape)}")
    for i in (idx.min().item(), idx.max().item()):
        if not 0 <= i < model.vocab_size:
            raise ValueError(f"idx holds the id {i}; ids go from 0 to {model.vocab_size - 1}")
    check_range("the number of new tokens", max_new_tokens, 0)
    if temperature != 0 and not 1e-30 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0, or at least 1e-30 and finite, not {temperature}")
    if top_k is not None:
        check_range("top_k", top_k, 1)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")


# %% Appendix B. What is kept
# Files are written beside their place and moved there when they are whole, so that a stop at any
# moment, by Ctrl-C, kill -9 or a dead battery, loses nothing that was saved before.


@contextmanager
def replacing(path):
    """Open a file to write bytes to; it takes the place of `path` if no error comes up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and not error.filename:          # a full disk does not say what it was writing
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


class Recorder:
    """Takes notes of a training; shows and saves them if asked to.

    show        print progress: a line redrawn in place on a terminal, else one for each evaluation
    save        a function that is called with the state, a dict, after each evaluation
    saved       a state from before: the training goes on there and ends as if it had not stopped
    """

    KEPT = ("step", "history", "losses", "best", "write_with", "seconds")

    def __init__(self, show=False, save=None, saved=None):
        self.show, self.save, self.saved = show, save, saved
        self.stop = False               # set to True, it ends the training after the current step
        self.step = 0                   # steps done
        self.history = []               # a dict for each evaluation
        self.losses = []                # of the batches since the last evaluation
        self.best = None                # the weights with the lowest validation loss
        self.write_with = "model"       # which weights to write with: "best", or "model", the latest
        self.seconds = 0.0              # spent in training and evaluating

    def begin(self, model, optimizer, config):
        """Called before the first step, whose number it returns: 0 in a new training."""
        self.model, self.optimizer, self.config = model, optimizer, config
        if self.saved:
            model.load_state_dict(self.saved["model"])
            optimizer.load_state_dict(self.saved["optimizer"])
            for name in self.KEPT:
                setattr(self, name, self.saved[name])
        self.first_step, self.seconds_before = self.step, self.seconds
        self.began = self.drawn = time.perf_counter()
        return self.step

    def state(self):
        """What `begin` needs to go on from here."""
        kept = {name: getattr(self, name) for name in self.KEPT}
        kept["losses"] = [float(loss) for loss in self.losses]
        return {**kept, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def best_weights(self):
        """The weights with the lowest validation loss so far."""
        return self.state()[self.write_with]

    def after_step(self, loss):
        """Called after each step with its loss, a tensor ()."""
        self.step += 1
        self.losses.append(loss)
        if self.show and sys.stdout.isatty() and time.perf_counter() > self.drawn + 0.2:
            self.drawn = time.perf_counter()
            self.print_progress(self.history[-1]["val_loss"] if self.history else None, end="")

    def after_evaluation(self, val_loss):
        """Called with the loss on the validation split.

        An evaluation out of turn, before an early stop, is left out of the history: a resumed
        training then ends with the same history as one that was never stopped. Raises
        FloatingPointError for a loss that is infinite or not a number, before anything is saved.
        """
        train_loss = self.train_loss()
        self.check_loss(val_loss, self.step)
        self.seconds = self.seconds_before + time.perf_counter() - self.began
        if self.show:
            self.print_progress(val_loss)
        in_turn = self.step % self.config.eval_interval == 0 or self.step == self.config.max_steps
        lowest = val_loss < min([row["val_loss"] for row in self.history], default=math.inf)
        if in_turn:
            if lowest:
                self.best = {name: weight.clone() for name, weight in self.model.state_dict().items()}
            self.history.append({
                "step": self.step, "train_loss": train_loss, "val_loss": val_loss,
                "learning_rate": learning_rate_at(self.step - 1, self.config)})
            self.losses = []
        self.write_with = "model" if self.best is None or lowest and not in_turn else "best"
        if self.save:
            self.save(self.state())

    def train_loss(self):
        """The mean loss of the batches since the last evaluation, if all of them are finite."""
        self.losses = [float(loss) for loss in self.losses]     # each is fetched from a GPU just once
        for step, loss in enumerate(self.losses, start=self.step - len(self.losses) + 1):
            self.check_loss(loss, step)
        return sum(self.losses) / len(self.losses)

    def check_loss(self, loss, step):
        """A loss that is not finite says that the weights are lost, most often in steps too large."""
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} at step {step}; most likely learning_rate="
                f"{self.config.learning_rate} is too high. What was saved before that is kept as it was")

    def print_progress(self, val_loss, end="\n"):
        """Print how far the training is, in less than 80 characters."""
        last = self.config.max_steps
        steps_per_second = (self.step - self.first_step) / (time.perf_counter() - self.began)
        tokens_per_second = steps_per_second * self.config.batch_size * self.config.block_size
        left = round((last - self.step) / steps_per_second)
        line = (f"step {self.step:>{len(str(last))}}/{last}  train {self.train_loss():.4f}  "
                f"val {'-' if val_loss is None else f'{val_loss:.4f}'}  "
                f"{tokens_per_second:,.0f} tokens/s  {left // 60}:{left % 60:02} left")
        print(f"\r{line:<79}" if sys.stdout.isatty() else line, end=end, flush=True)


@contextmanager
def ctrl_c_stops(recorder):
    """Ctrl-C ends the training after the current step; a second one ends the program."""
    if dist.is_initialized():           # of several processes, each would stop at another step
        yield
        return

    def stop(signal_number, frame):
        recorder.stop = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def alone_in(folder):
    """Let one process at a time do what is inside, where the system can (Linux and macOS)."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)                # which lets the next one in


CHECKPOINT_FORMAT = "gpt.py checkpoint 2"
TO_WRITE = ("config", "vocabulary", "model", "write_with")      # what a checkpoint needs for this
TO_RESUME = (*TO_WRITE, "text_sha256", "optimizer", *Recorder.KEPT)
LOG_COLUMNS = ("step", "train_loss", "val_loss", "learning_rate")


def save_run(name, config, tokenizer, text_sha256, state):
    """Leave data/NAME.pt and data/NAME.csv; both of this run, should two of one name be running."""
    with alone_in(DATA):
        if fcntl:                       # alone indeed: clean up after runs that were killed here
            for ending in ("pt", "csv"):
                for leftover in DATA.glob(f"{glob.escape(name)}.{ending}.*.tmp"):
                    leftover.unlink()
        save_checkpoint(DATA / f"{name}.pt", config, tokenizer, {"text_sha256": text_sha256, **state})
        save_log(DATA / f"{name}.csv", state["history"])


def save_log(path, history):
    """Write the history of a training as csv, a line for each evaluation."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, LOG_COLUMNS)
    writer.writeheader()
    writer.writerows(history)
    with replacing(path) as file:
        file.write(lines.getvalue().encode())


def save_checkpoint(path, config, tokenizer, state):
    """Write what it takes to write with the model, and to go on with its training."""
    vocabulary = tokenizer.characters if config.tokenizer == "char" else tokenizer.merges
    content = io.BytesIO()          # torch.save to a file would hide which error the disk reports
    torch.save({"format": CHECKPOINT_FORMAT, "config": asdict(config), "vocabulary": vocabulary, **state},
               content)
    with replacing(path) as file:
        file.write(content.getbuffer())


def read_checkpoint(path, needed=TO_WRITE):
    """The dict that save_checkpoint wrote, checked. Never runs code from the file.

    Raises FileNotFoundError if there is no file, ValueError if it is not a whole checkpoint.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}; `python gpt.py` makes one")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        format = checkpoint["format"]
    except Exception as error:          # who knows what is in the file
        raise ValueError(f"{path} is not a checkpoint of gpt.py, or not all of one") from error
    if format != CHECKPOINT_FORMAT:
        raise ValueError(f"{path} has the format {format!r}; this gpt.py reads {CHECKPOINT_FORMAT!r}")
    try:
        check_checkpoint(checkpoint, needed)
    except Exception as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return checkpoint


def check_checkpoint(checkpoint, needed):
    """Raise an error unless all that is needed is there and fits together."""
    missing = [name for name in needed if name not in checkpoint]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    config = Config(**checkpoint["config"])
    if asdict(config) != checkpoint["config"]:
        raise ValueError("its settings are not complete")
    tokenizer = TOKENIZERS[config.tokenizer](checkpoint["vocabulary"])
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"{tokenizer.vocab_size} tokens do not fit vocab_size={config.vocab_size}")
    if checkpoint["write_with"] not in ("model", "best"):
        raise ValueError(f"write_with is {checkpoint['write_with']!r}")
    kinds = [kind for kind in ("model", "best")
             if checkpoint.get(kind) is not None or kind == checkpoint["write_with"]]
    if any(config.n_layer > len(checkpoint[kind]) for kind in kinds):   # else a giant might be built
        raise ValueError(f"its weights are too few for n_layer={config.n_layer}")
    with torch.device("meta"):                          # shapes alone, without memory for numbers
        model = GPT(config)
    expected = {name: weight.shape for name, weight in model.state_dict().items()}
    for kind in kinds:
        weights = checkpoint[kind]
        found = {name: weight.shape for name, weight in weights.items()}
        for name in {**expected, **found}:
            if expected.get(name) != found.get(name):
                raise ValueError(f"the weights {name} do not fit its settings, or are missing")
            if not weights[name].isfinite().all():
                raise ValueError(f"the weights {name} are not all finite")
    if needed == TO_RESUME:
        for name, kind in (("step", int), ("losses", list), ("seconds", float), ("text_sha256", str)):
            if type(checkpoint[name]) is not kind:
                raise ValueError(f"its {name} is {checkpoint[name]!r}")
        if any(set(row) != set(LOG_COLUMNS) for row in checkpoint["history"]):
            raise ValueError("its history has other columns than the log")
        numbers = sum([list(row.values()) for row in checkpoint["history"]], checkpoint["losses"])
        if any(type(number) not in (int, float) for number in numbers):
            raise ValueError("its losses are not all numbers")
        optimizer = build_optimizer(model, config)
        optimizer.load_state_dict(checkpoint["optimizer"])
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            moments = optimizer.state[parameter]
            if not {parameter.shape} == {moments[name].shape for name in ("exp_avg", "exp_avg_sq")}:
                raise ValueError("the state of its optimizer does not fit its settings")


def load_checkpoint(path):
    """(model, tokenizer) of a run, ready to write with: on the CPU, in eval mode.

    Raises FileNotFoundError if there is no file, ValueError if it is not a whole checkpoint.
    """
    checkpoint = read_checkpoint(Path(path))
    model = GPT(Config(**checkpoint["config"]))
    model.load_state_dict(checkpoint[checkpoint["write_with"]])
    return model.eval(), TOKENIZERS[model.config.tokenizer](checkpoint["vocabulary"])


def sha256_of(text):
    """A fingerprint of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_checkpoint_to_resume(path, config, text):
    """The checkpoint at `path`. Raises ValueError if it does not fit the settings and the text.

    Only max_steps and eval_interval may differ; the schedule of the learning rate then changes.
    """
    checkpoint = read_checkpoint(path, needed=TO_RESUME)
    if checkpoint["text_sha256"] != sha256_of(text):
        raise ValueError(f"{path} was trained on another text: cannot resume")
    for name, value in asdict(config).items():
        saved = checkpoint["config"][name]
        if name not in ("max_steps", "eval_interval") and value != saved:
            raise ValueError(f"{path} was trained with {name}={saved}, not {value}: cannot resume")
    if config.max_steps < checkpoint["step"]:
        raise ValueError(f"{path} has been trained for {checkpoint['step']} steps; "
                         f"max_steps={config.max_steps} is less: cannot resume")
    return checkpoint


# %% Appendix C. The terminal


def heading(title):
    """Print the title of a chapter."""
    print(f"\n{title}\n{'-' * len(title)}")


def side_by_side(titles, texts, width=38):
    """Print two texts in columns of `width` characters."""
    columns = []
    for title, text in zip(titles, texts):
        lines = [textwrap.wrap(line, width) or [""] for line in text.split("\n")]
        columns.append([title, "-" * width, *sum(lines, [])])
    for left, right in zip_longest(*columns, fillvalue=""):
        print(f"{left:<{width}} | {right}".rstrip())


def print_results(rows, tokens_per_character=1.0):
    """Print a table from rows of (model, parameters, loss in nats per token, seconds or None)."""
    print(f"{'model':<16}  parameters  val loss  bits/char  perplexity  training time")
    for model, parameters, loss, seconds in rows:
        bits = loss / math.log(2) * tokens_per_character
        print(f"{model:<16}  {parameters:>10,}  {loss:>8.4f}  {bits:>9.4f}  "
              f"{math.exp(loss):>10.2f}  {'-' if seconds is None else f'{seconds:.1f} s':>13}")


def show_tokenizer(tokenizer, text, n_tokens):
    """Print how a tokenizer cuts a text, which has n_tokens tokens."""
    if isinstance(tokenizer, CharTokenizer):
        print(f"{tokenizer.vocab_size} different characters, each a token:\n")
        print(textwrap.indent(textwrap.fill(repr(tokenizer.characters), 70), "    "))
        print(f"\nencode({text[:5]!r}) = {tokenizer.encode(text[:5])}")
        return
    print(f"{tokenizer.vocab_size:,} tokens: the 256 bytes, and {len(tokenizer.merges):,} that were made "
          f"by joining two.\nThe first of them, each of the pair that was the most frequent then:\n")
    for i, (left, right) in enumerate(tokenizer.merges[:8], start=256):
        print(f"    {i}  {tokenizer.decode([left])!r:<6} + {tokenizer.decode([right])!r:<6} "
              f"= {tokenizer.decode([i])!r}")
    line = max((line for line in text[:5000].splitlines() if len(line) < 38), key=len, default=text[:38])
    pieces = "|".join(tokenizer.decode([i]) for i in tokenizer.encode(line))
    print(f"\nA line of the text, and its tokens:\n\n    {line}\n    {pieces}")
    print(f"\n{len(text.encode()) / n_tokens:.2f} bytes per token")


def show_check(findings):
    """Print findings, pairs of (whether it held, what was checked); return whether all of them held."""
    heading("The check")
    for held, what in findings:
        print(textwrap.fill(f"{'held' if held else 'FAILED'}: {what}", 79, subsequent_indent="    "))
    return all(held for held, _ in findings)


# %% Appendix D. Pieces of words
# Characters are small steps: a context of 64 of them is a dozen words. Byte-pair encoding makes larger
# tokens (Sennrich et al. 2016; on bytes, as here, in GPT-2). In UTF-8, every text is a row of bytes, so
# it starts from the 256 possible ones, and no text can hold an unknown token. Then the pair of
# neighbours that occurs most often becomes a new token, again and again, until there are as many as we
# wish. The text is cut into words first, each with the space before it. So no token reaches across
# words, and the work is done only once for all places where a word occurs.

WORD = re.compile(r" ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def join_pair(ids, pair, new_id):
    """The list `ids` with each occurrence of `pair` replaced.

    >>> join_pair([1, 2, 3, 1, 2], pair=(1, 2), new_id=9)
    [9, 3, 9]
    """
    joined = []
    for i in ids:
        if joined and (joined[-1], i) == pair:
            joined[-1] = new_id
        else:
            joined.append(i)
    return joined


class BPETokenizer:
    """Turns text into a list of integers, one for each piece of a word, and back.

    merges: the pairs of ids that are joined, in their order; the first becomes the id 256.

    >>> tokenizer = BPETokenizer([(104, 101), (108, 108), (256, 257)])      # h+e, l+l, he+ll
    >>> tokenizer.encode("hello")
    [258, 111]
    >>> tokenizer.decode([258, 111])
    'hello'
    """

    def __init__(self, merges):
        self.merges = merges
        self.bytes = [bytes([i]) for i in range(256)]
        for left, right in merges:
            self.bytes.append(self.bytes[left] + self.bytes[right])
        self.vocab_size = len(self.bytes)
        self.ids = {pair: i for i, pair in enumerate(merges, start=256)}
        self.known = {}                     # the ids of each word that has been encoded before

    def encode(self, text):
        """str -> list of int. Any text can be encoded."""
        return [i for word in WORD.findall(text) for i in self.encode_word(word)]

    def encode_word(self, word):
        """Join pairs in the order in which they were found."""
        if word not in self.known:
            ids = list(word.encode())
            while pairs := [pair for pair in pairwise(ids) if pair in self.ids]:
                first = min(pairs, key=self.ids.get)
                ids = join_pair(ids, first, self.ids[first])
            self.known[word] = ids
        return self.known[word]

    def decode(self, ids):
        """list of int -> str; bytes that are no UTF-8 become U+FFFD. ValueError for an unknown id."""
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"the id {i} is not in the vocabulary: ids go from 0 to "
                                 f"{self.vocab_size - 1}")
        return b"".join(self.bytes[i] for i in ids).decode(errors="replace")


def build_bpe_tokenizer(text, vocab_size):
    """A BPETokenizer of the pairs that are most frequent in `text`.

    Raises ValueError if the text has too few pairs that occur twice.

    >>> build_bpe_tokenizer("aaabdaaabac", vocab_size=259).encode("aaabdaaabac")
    [258, 100, 258, 97, 99]
    """
    words = Counter(WORD.findall(text))
    ids = {word: list(word.encode()) for word in words}
    counts = Counter()                      # how often does each pair occur in the text?
    places = defaultdict(set)               # in which words?

    def count(word, sign):
        for pair in pairwise(ids[word]):
            counts[pair] += sign * words[word]
            places[pair].add(word)

    for word in words:
        count(word, 1)
    merges = []
    for new_id in range(256, vocab_size):
        pair = max(counts, key=lambda pair: (counts[pair], -pair[0], -pair[1]), default=None)
        if counts[pair] < 2:
            raise ValueError(f"the text is too short for vocab_size={vocab_size}; its pairs of tokens "
                             f"make {new_id} at most")
        for word in places.pop(pair):       # only these words change, and with them a few counts
            count(word, -1)
            ids[word] = join_pair(ids[word], pair, new_id)
            count(word, 1)
        merges.append(pair)
    return BPETokenizer(merges)


TOKENIZERS = {"char": CharTokenizer, "bpe": BPETokenizer}


# %% Appendix E. The demos
# Runs that check themselves. Each is a text, a Config, a prompt, and a check of what the model
# does in the end: a list of findings, pairs of (whether it held, what was checked).


@dataclass
class Demo:
    """What `python gpt.py NAME` runs."""

    about: str                      # one line for --help
    texts: Callable                 # () -> (text to train on, text to validate with)
    config: Config
    prompt: str
    check: Callable                 # (model, bigram, tokenizer, val_text) -> findings


def pattern_demo(about, pattern, config):
    """A text that repeats `pattern`, whose next character is certain after any two."""
    return Demo(about, lambda: split(500 * pattern), config, pattern[:2], partial(check_pattern, pattern))


def check_pattern(pattern, model, bigram, tokenizer, val_text):
    """Does the model go on with the pattern from everywhere, 10 times over, when it is greedy?"""
    right = total = 0
    for start in range(len(pattern)):
        true = (12 * pattern)[start:start + 2 + 10 * len(pattern)]
        written = continue_text(model, tokenizer, true[:2], len(true) - 2, temperature=0)
        right += sum(map(str.__eq__, written[2:], true[2:]))
        total += len(true) - 2
    return [(right == total, f"from each of the {len(pattern)} places in {pattern!r}, greedy writing goes "
                             f"on with it: {right:,} of {total:,} characters are right, "
                             f"{100 * right // total}%")]


def random_texts():
    """100,000 characters, each drawn from the same 100. There is nothing in them to be learned."""
    characters = "".join(map(chr, [*range(33, 127), *range(192, 198)]))
    return split("".join(random.Random(1337).choices(characters, k=100_000)))


def check_architecture(model, bigram, tokenizer, val_text):
    """What must be true of any GPT, whatever it has learned, and what training must do."""
    V, config = model.vocab_size, model.config
    data = torch.tensor(tokenizer.encode(val_text), device=next(model.parameters()).device)
    x, y = get_batch(data, 0, config)
    with eval_mode(model), torch.no_grad():
        logits, _ = model(x)
        later = x.clone()
        later[:, config.block_size // 2:] += 1
        changed = (model(later % V)[0] != logits).any(dim=-1).any(dim=0)    # (B, T, V) -> (T,)
    learner = copy.deepcopy(model).train()
    learner(x, y)[1].backward()
    reached = [p.grad is not None and bool(p.grad.any()) for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    for _ in range(200):
        _, loss = learner(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh, nothing = evaluate(model, data), math.log(V)
    return [
        (logits.shape == (*x.shape, V),
         f"shapes: tokens {tuple(x.shape)} become logits {tuple(logits.shape)}"),
        (changed.tolist() == [t >= config.block_size // 2 for t in range(config.block_size)],
         "causality: other tokens in the later half change the logits there, and none before"),
        (all(reached), f"gradients: they reach {sum(reached)} of {len(reached)} tensors of weights"),
        (loss < 0.05, f"learning: in 200 steps the loss on one fixed batch falls to {loss:.4f}"),
        (abs(fresh - nothing) < 0.1, f"honesty: on fresh random tokens the loss stays at {fresh:.2f}; "
                                     f"ln({V}) = {nothing:.2f}, and there is nothing to learn")]


# Python's own standard library is the text of the last demo: a fixed choice of modules that people
# wrote by hand, without tests and without tables that a program made. Every tenth file is held out.

PYTHON_FILES = """
    argparse.py ast.py asyncio/*.py base64.py bdb.py calendar.py cmd.py code.py codecs.py
    collections/*.py compileall.py concurrent/futures/*.py configparser.py contextlib.py copy.py
    csv.py ctypes/*.py curses/*.py dataclasses.py datetime.py dbm/*.py difflib.py dis.py doctest.py
    email/*.py enum.py filecmp.py fileinput.py fractions.py ftplib.py functools.py getopt.py
    gettext.py glob.py graphlib.py gzip.py hashlib.py heapq.py hmac.py html/parser.py http/*.py
    imaplib.py importlib/*.py inspect.py ipaddress.py json/*.py linecache.py logging/*.py lzma.py
    mailbox.py mimetypes.py modulefinder.py multiprocessing/*.py netrc.py ntpath.py numbers.py
    operator.py optparse.py os.py pdb.py pickle.py pickletools.py pkgutil.py platform.py plistlib.py
    poplib.py posixpath.py pprint.py profile.py pstats.py pyclbr.py queue.py random.py reprlib.py
    runpy.py sched.py selectors.py shelve.py shlex.py shutil.py smtplib.py socket.py socketserver.py
    sqlite3/*.py ssl.py statistics.py string.py subprocess.py symtable.py tarfile.py tempfile.py
    textwrap.py threading.py timeit.py tkinter/*.py tokenize.py trace.py traceback.py tracemalloc.py
    types.py typing.py unittest/*.py urllib/*.py uuid.py venv/*.py warnings.py wave.py weakref.py
    webbrowser.py wsgiref/*.py xml/*/*.py xmlrpc/*.py zipapp.py zoneinfo/*.py
"""


def python_texts():
    """The standard library of the Python that runs this: (nine files in ten, the others)."""
    folder = Path(os.__file__).parent
    files = sorted(path for pattern in PYTHON_FILES.split() for path in folder.glob(pattern))
    if len(files) < 10:
        raise FileNotFoundError(f"this Python has no standard library as .py files in {folder}")
    texts = [path.read_text(encoding="utf-8") for path in files]
    return "".join(text for i, text in enumerate(texts) if i % 10 != 5), "".join(texts[5::10])


FUNCTION_TOKENS = 400               # the most that the demo writes of a function


def first_function(text):
    """The function with which `text` begins, up to its end, or else to the last whole line.

    >>> first_function("  def f(x):\\n    return x\\n  y = 1\\n  z = ")
    'def f(x):\\n  return x\\n'
    """
    header, *lines = text.split("\n")[:-1] or [""]
    indent = len(header) - len(header.lstrip())
    body = takewhile(lambda line: not line.strip() or line[:indent + 1].isspace(), lines)
    return textwrap.dedent("\n".join([header, *body])).rstrip() + "\n"


def is_function(code):
    """Is `code` one whole function in correct Python?"""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")             # of backslashes that Python finds odd
            body = ast.parse(code).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):     # the last two: nested too deeply
        return False
    return len(body) == 1 and isinstance(body[0], ast.FunctionDef)


def complete_functions(model, tokenizer, headers):
    """What `model` makes of the first lines of functions: a list of the functions, carefully drawn."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    functions = []
    prompts = [tokenizer.encode("\n" + header) for header in headers]  # in a file, a line is before them
    for _, group in groupby(sorted(prompts, key=len), key=len):         # those of one length side by side
        idx = torch.tensor(list(group), device=device)                  # (B, T)
        written = generate(model, idx, FUNCTION_TOKENS, temperature=0.3, generator=generator)
        functions += [first_function(tokenizer.decode(row)[1:]) for row in written.tolist()]
    return functions


def check_python(model, bigram, tokenizer, val_text):
    """How many of 200 functions, whose first lines are from files held out, does Python accept?"""
    for prompt in ("\ndef forward(self, x):", "\nimport "):
        written = continue_text(model, tokenizer, prompt, 100, temperature=0.3)
        print("\n".join(written.split("\n")[:6]))
    headers = re.findall(r"^ *def \w+\(.*\).*:(?=\n)", val_text, flags=re.MULTILINE)
    headers = headers[::max(1, len(headers) // 200)][:200]
    shares = [sum(map(is_function, complete_functions(writer, tokenizer, headers))) / len(headers)
              for writer in (model, bigram)]
    data = torch.tensor(tokenizer.encode(val_text), device=next(model.parameters()).device)
    bits = [evaluate(writer, data) / math.log(2) * len(data) / len(val_text.encode())
            for writer in (model, bigram)]
    return [
        (bits[0] < bits[1],
         f"held-out files cost {bits[0]:.3f} bits per byte, and {bits[1]:.3f} with the bigram"),
        (shares[0] >= 0.5, f"of {len(headers)} functions from held-out files, given the first line, Python "
                           f"accepts {shares[0]:.1%} as the GPT completes them, {shares[1]:.1%} as the "
                           f"bigram does; at least 50% are asked of the GPT")]


DEMOS = {
    "hello": pattern_demo(
        "a phrase, again and again: it goes on with it from anywhere", "hello world\n",
        Config(block_size=16, n_layer=2, n_head=2, n_embd=32, max_steps=200, warmup_steps=20,
               eval_interval=50)),
    "count": pattern_demo(
        "0 1 2 ... 9 0 1 ..., with about 5,000 weights", "0 1 2 3 4 5 6 7 8 9 ",
        Config(block_size=64, n_layer=1, n_head=2, n_embd=16, max_steps=300, warmup_steps=30,
               eval_interval=50, learning_rate=1e-2)),
    "random": Demo(
        "random tokens: is the architecture sound?", random_texts,
        Config(block_size=16, n_layer=2, n_head=4, n_embd=32, max_steps=200, warmup_steps=20,
               eval_interval=50),
        "!", check_architecture),
    "coder": Demo(
        "Python's standard library, in pieces of words: it completes functions; minutes", python_texts,
        Config(tokenizer="bpe", vocab_size=1024, block_size=128, n_layer=4, batch_size=8, max_steps=5000,
               position="rotary"),
        "def ", check_python),
}


# %% Appendix F. Sizes
# What does a model cost? It all follows from its Config, before anything is built. In training there
# are, besides the weights, a gradient for each, two running means that AdamW keeps of it, and the
# activations: what is computed on the way forward and needed on the way back. Work is counted in FLOPs,
# additions and multiplications.

SIZES = {
    "5k": {"vocab_size": 11, "block_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 16},   # as in count
    "default": {},
    "7M": {"block_size": 256, "n_layer": 4, "n_head": 6, "n_embd": 384, "learning_rate": 1.3e-3},
    "11M": {"block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384, "learning_rate": 1.3e-3},
    "25M": {"block_size": 512, "n_layer": 8, "n_head": 8, "n_embd": 512, "learning_rate": 1e-3},
    "100M": {"block_size": 1024, "n_layer": 14, "n_head": 12, "n_embd": 768, "learning_rate": 6e-4},
    "124M": {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768,   # GPT-2
             "learning_rate": 6e-4, "tie_weights": True},
}


# What `python gpt.py` trains with CUDA, if nothing else is said.
ON_GPU = {**SIZES["11M"], "batch_size": 64, "max_steps": 2000, "eval_interval": 250, "dropout": 0.2}


def parameters_of(config):
    """How many weights GPT(config) trains."""
    C, bias = config.n_embd, int(config.bias)
    norm = C + bias * C
    block = 12 * C * C + 9 * C * bias + 2 * norm        # 3 C^2 in qkv, 1 in proj, 8 in feed_forward
    tables = config.vocab_size * C * (1 if config.tie_weights else 2)
    positions = config.block_size * C if config.position == "learned" else 0
    return tables + positions + config.n_layer * block + norm


def activation_bytes(config):
    """What a step keeps of its batch for backward(), in float32, learned positions, no dropout.

    Of each token, a block keeps 16 C numbers: 2 C for each LayerNorm (what goes in and comes out),
    3 C queries, keys and values, 1 C that the heads found, 4 C on each side of GELU; and a few more.
    """
    C = config.n_embd
    block = 16 * C + config.n_head + 4
    of_a_token = config.n_layer * block + 2 * C + config.vocab_size + 6
    return 4 * config.batch_size * config.block_size * of_a_token


def training_flops(config):
    """(multiplications and additions to train on one token, the part of them that attends).

    A matrix of n weights takes 2 n forward and 4 n backward. Scores and weighted means take, forward,
    2 T C each; the future is masked but is counted, as is usual.
    """
    matrices = config.n_layer * 12 * config.n_embd ** 2 + config.vocab_size * config.n_embd
    attending = config.n_layer * 12 * config.n_embd * config.block_size
    return 6 * matrices + attending, attending


def sizes_command(arguments):
    """`python gpt.py sizes`: what the named sizes cost."""

    def short(number):
        return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"

    Parser("gpt.py sizes", description="Show what models of the named sizes cost.").parse_args(arguments)
    configs = {name: Config(**size) for name, size in SIZES.items()}
    print("size     layers  heads  width  context   vocab   parameters  MFLOP/token")
    for name, config in configs.items():
        flops, _ = training_flops(config)
        print(f"{name:<8} {config.n_layer:>6}  {config.n_head:>5}  {config.n_embd:>5}  "
              f"{config.block_size:>7}  {config.vocab_size:>6}  {parameters_of(config):>11,}  "
              f"{short(flops / 1e6):>11}")
    print("\nMemory for training, float32, in MB (of 1,000,000 bytes):\n")
    print("size     weights  gradients   AdamW  activations of a batch")
    for name, config in configs.items():
        weights = 4 * parameters_of(config) / 1e6
        print(f"{name:<8} {short(weights):>7}  {short(weights):>9}  {short(2 * weights):>6}  "
              f"{short(activation_bytes(config) / 1e6):>11} "
              f"({config.batch_size} x {config.block_size} tokens)")
    contexts = (64, 128, 256, 512, 1024)
    print("\nShare of attention (scores and weighted means) in the FLOPs, by context:\n")
    print("size     " + "".join(f"{context:>8}" for context in contexts))
    for name, config in configs.items():
        costs = [training_flops(replace(config, block_size=context)) for context in contexts]
        print(f"{name:<8} " + "".join(f"{attending / total:>8.1%}" for total, attending in costs))
    print("\n--size NAME trains one; of characters, the text decides the vocabulary.")


# %% Appendix G. Several processes
# `torchrun --standalone --nproc_per_node=2 gpt.py` starts this file twice, each time on a GPU of its
# own if there are any. Each process works on its rows of every batch of the GPT;
# DistributedDataParallel takes the mean of their gradients, so that all make the same step. The first
# one prints and saves.


def is_first_process():
    return not dist.is_initialized() or dist.get_rank() == 0


def join_processes(device):
    """Meet the others that torchrun has started, if it has. Returns the device of this one."""
    if "RANK" not in os.environ:
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if not is_first_process():
        sys.stdout = open(os.devnull, "w")
    return device


def make_trainee(model, config, compile=False):
    """`model` itself, or what trains it faster: compiled, or shared between processes, or both."""
    fast = model
    if dist.is_initialized():
        if config.batch_size % dist.get_world_size() != 0:
            raise ValueError(f"batch_size={config.batch_size} must be a multiple of the number of "
                             f"processes, {dist.get_world_size()}")
        fast = nn.parallel.DistributedDataParallel(model)
    if compile:
        fast = torch.compile(fast)
    return model if fast is model else Trainee(model, fast)


class Trainee(nn.Module):
    """Looks like `model`, and trains it by way of `fast`."""

    def __init__(self, model, fast):
        super().__init__()
        self.model, self.fast, self.block_size = model, fast, model.block_size

    def state_dict(self):
        return self.model.state_dict()

    def load_state_dict(self, state):
        return self.model.load_state_dict(state)

    def forward(self, idx, targets):
        if not self.training:
            return self.model(idx, targets)
        if not dist.is_initialized():
            return self.fast(idx, targets)
        rank, n = dist.get_rank(), dist.get_world_size()
        _, loss = self.fast(idx[rank::n], targets[rank::n])     # (B, T) -> (B/n, T)
        mean = loss.detach().clone()
        dist.all_reduce(mean)                                   # the sum over all processes
        return None, loss + (mean / n - loss).detach()          # loss of all, gradient of these rows


# %% Appendix H. The command line


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says what is wrong in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def run_command(arguments):
    """`python gpt.py`: the story or a demo, with any field of Config as an option."""
    parser = Parser("gpt.py", allow_abbrev=False, argument_default=argparse.SUPPRESS,
                    formatter_class=argparse.RawDescriptionHelpFormatter,
                    description="Train a bigram and a GPT on a text, and compare them.",
                    epilog="demos:\n"
                           + "\n".join(f"  {name:<8} {demo.about}" for name, demo in DEMOS.items())
                           + "\n\nother commands:\n  sample   let a trained model write\n"
                             "  sizes    what larger models cost")
    parser.add_argument("demo", nargs="?", default=None, help="a demo instead of the story; see below")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    parser.add_argument("--size", choices=SIZES, help="the model's settings; see gpt.py sizes")
    parser.add_argument("--device", help="cuda, mps or cpu; else the first that is there")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    for field in fields(Config):
        if field.type is bool:
            parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction,
                                help=f"default {field.default}")
        else:
            parser.add_argument(f"--{field.name}", type=field.type, metavar=field.type.__name__,
                                help=f"default {field.default}")
    options = vars(parser.parse_args(arguments))    # only those that were given
    device = choose_device(options.pop("device", None))
    path, name = options.pop("text", None), options.pop("demo", None)
    flags = {"resume": options.pop("resume", False), "compile": options.pop("compile", False)}
    size = SIZES.get(options.pop("size", None), ON_GPU if device == "cuda" and not name else {})
    if name not in (None, *DEMOS):
        parser.error(f"there is no demo {name!r}, only {', '.join(DEMOS)}")
    if name and path:
        parser.error(f"{name} has a text of its own; leave out the name or --text")
    base = DEMOS[name].config if name else Config()
    settings = {**size, **options}
    tokenizer = settings.get("tokenizer", base.tokenizer)
    if tokenizer == "char" and "vocab_size" in options:
        parser.error("--vocab_size is for --tokenizer bpe; of characters, the text decides")
    if tokenizer == "bpe" and "vocab_size" not in options:
        settings["vocab_size"] = max(512, settings.get("vocab_size", base.vocab_size))
    config = replace(base, **settings)
    device = join_processes(device)
    if name:
        demo = DEMOS[name]
        held = run(name, *demo.texts(), config, prompt=demo.prompt, check=demo.check, device=device,
                   **flags)
        return 0 if held else 1
    name, text = load_text(path)
    run(name, *split(text), config, device=device, **flags)
    return 0


def sample_command(arguments):
    """`python gpt.py sample`: write from a saved run, token by token."""
    parser = Parser("gpt.py sample", allow_abbrev=False, description="Let a trained model write.")
    parser.add_argument("name", nargs="?", help="the run, as in data/NAME.pt; else the latest one")
    parser.add_argument("--prompt", default="", help=r"how the text begins; \n is a new line")
    parser.add_argument("--tokens", type=int, default=SAMPLE_TOKENS, help="default %(default)s")
    parser.add_argument("--temperature", type=float, default=SAMPLE_TEMPERATURE,
                        help="divides the logits; 0 takes the likeliest token; default %(default)s")
    parser.add_argument("--top_k", type=int, help="draw only from the k likeliest tokens")
    parser.add_argument("--top_p", type=float, help="draw only from the likeliest with probability p")
    parser.add_argument("--seed", type=int, help="the same seed writes the same text")
    options = parser.parse_args(arguments)
    latest = max(DATA.glob("*.pt"), key=lambda path: path.stat().st_mtime,
                 default=DATA / "shakespeare.pt")
    model, tokenizer = load_checkpoint(DATA / f"{options.name}.pt" if options.name else latest)
    prompt = options.prompt.replace(r"\n", "\n") or first_prompt(tokenizer)
    idx = torch.tensor([tokenizer.encode(prompt)])                          # (1, T)
    dials = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    check_sampling(model, idx, options.tokens, **dials)
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()                # another text each time
    else:
        check_range("seed", options.seed, 0)
        generator.manual_seed(options.seed)
    print(prompt, end="", flush=True)
    waiting = []            # a character may be several tokens, and reads \ufffd until it is whole
    for token in stream_tokens(model, idx, options.tokens, generator=generator, **dials):
        waiting += token[0].tolist()
        written = tokenizer.decode(waiting)
        if len(waiting) == 16 or not written.endswith("\ufffd"):
            print(written, end="", flush=True)
            waiting = []
    print(tokenizer.decode(waiting))


def choose_device(name=None):
    """The fastest device that is there, or the one with this name. ValueError if it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [device for device, is_there in there.items() if is_there]
    if name is not None and name not in here:
        raise ValueError(f"there is no device {name!r} here, only {', '.join(here)}")
    return name or here[0]


def load_text(path=None):
    """(name of the run, its text): from the file `path`, else Shakespeare, else the Python manual."""
    if path is not None:
        if path.suffix in (".pt", ".csv") and path.resolve().parent == DATA.resolve():
            raise ValueError(f"the run would write over {path}; give the text another name or place")
        try:
            return path.stem, path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            reason = f"{error.reason} at byte {error.start}"
            raise ValueError(f"{path} is not UTF-8 text: {reason}") from error
    try:
        return "shakespeare", load_shakespeare()
    except OSError as error:
        print(f"Tiny Shakespeare cannot be downloaded ({type(error).__name__}), so Python's manual is "
              f"the text. For Shakespeare, save {SHAKESPEARE_URL} as {DATA / 'tinyshakespeare.txt'}")
        return "manual", load_manual()


def run_cleanly(program, command, arguments):
    """Call command(arguments) and return its exit code; an expected error becomes one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):        # any text can be printed, also into a pipe
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        return command(arguments) or 0
    except BrokenPipeError:             # the reader of our output has left, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{program}:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "allocate" in str(error):
            message = "there is not enough memory; try a smaller model or batch"
        elif dist.is_initialized() and "peer" in str(error):
            message = "another process of this run has ended, so this one ends as well"
        else:
            raise
        print(f"{program}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def main(arguments=None):
    """Do what the command line says; return the exit code. In a notebook, call main([])."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {"sample": sample_command, "sizes": sizes_command}
    if arguments and arguments[0] in commands:
        return run_cleanly(f"gpt.py {arguments[0]}", commands[arguments[0]], arguments[1:])
    return run_cleanly("gpt.py", run_command, arguments)


if __name__ == "__main__":
    sys.exit(main())
