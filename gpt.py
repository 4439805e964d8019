"""gpt.py: how a GPT is made, in one program to be read from top to bottom.

`python gpt.py` trains one on Shakespeare's plays, in two minutes on a laptop without a GPU.

A GPT (generative pre-trained transformer) is given the beginning of a text, and says how likely
each token, here a character, is to come next. Draw one with these probabilities, append it, repeat,
and the model writes. It is autoregressive: it reads its own output. Before 2017, the best language
models were recurrent neural networks, which read token by token and kept the past in a fixed
memory. The transformer (Vaswani et al. 2017) looks at all tokens so far, and trains on all
positions at once. Its encoder read, its decoder wrote; a GPT is "decoder-only", and does both.

     0  Hyperparameters  the numbers that you may want to change
     1  Text             what the model learns from
     2  Tokens           characters become integers, and integers become characters
     3  Batches          inputs, and targets: the same text shifted by one
     4  Bigram           the baseline: look at one token, predict the next
     5  Attention        how a token gathers what it needs from the tokens before it
     6  Positions        how a token knows its position
     7  GPT              attention and a small network, stacked
     8  Training         from examples to better parameters
     9  Sampling         from probabilities to text
    10  The run          all of it in order; then the appendix, which you may skip

You need to know Python, that a matrix product is many dot products at once, and what a slope, a
logarithm, a sine and a standard deviation are. A comment such as `# (B, T) -> (B, T, C)` says how a
line changes the shape of a tensor, a block of numbers; () is a single number, and the letters are:

    B  batch: sequences side by side           V   vocabulary: how many different tokens exist
    T  time: tokens in each sequence           nh  number of attention heads
    C  channels: numbers for each token        hs  head size, C / nh
"""

import contextlib
import hashlib
import math
import os
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from unicodedata import category, east_asian_width

import requests

with warnings.catch_warnings():
    warnings.simplefilter("ignore")         # torch warns that NumPy is missing; it is not needed
    import torch
import torch.nn as nn
import torch.nn.functional as F

# %% 0. Hyperparameters
# Numbers that you choose; training does not change them. Skim them now, each will make sense in its
# chapter. The defaults make a model of 0.6 million parameters, which trains in two minutes.

def choice(default, meaning):           # `python gpt.py --help` shows the meaning, too
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Config:
    """The hyperparameters of a model, and below them those of its training."""

    vocab_size: int = choice(65, "V, different tokens; with characters, the text decides")
    block_size: int = choice(64, "the context: how many tokens the model can look at, at most")
    n_layer: int = choice(3, "blocks, one on top of the other; with more, learning starts slowly")
    n_head: int = choice(4, "nh, attention heads in each block: each looks for something different")
    n_embd: int = choice(128, "C, numbers for each token; time grows with its square")
    dropout: float = choice(0.0, "fraction of numbers set to zero in training; 0.2 for long runs")
    bias: bool = choice(True, "linear layers (not lm_head) and LayerNorms add a constant, too")
    position: str = choice("learned", "how tokens know their place: learned, sinusoidal, rotary")
    tie_weights: bool = choice(False, "one table as token_embedding and as lm_head, as in GPT-2")

    batch_size: int = choice(12, "B, sequences in each step; few, so that a step is short")
    max_steps: int = choice(3000, "steps of gradient descent")
    learning_rate: float = choice(4e-3, "the largest step size; smaller for larger models")
    warmup_steps: int = choice(100, "steps in which the learning rate grows towards its peak")
    weight_decay: float = choice(0.1, "how strongly matrices are pulled towards zero")
    grad_clip: float = choice(1.0, "upper limit of the length of the gradient")
    eval_interval: int = choice(500, "steps between two evaluations on the validation split")
    seed: int = choice(1337, "decides the first parameters, the batches and the samples")

    def __post_init__(self):
        if self.n_head < 1 or self.n_embd % self.n_head != 0:
            raise ValueError(f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}")


# %% 1. Text
# A language model learns from text alone. Ours is Tiny Shakespeare, 1.1 million characters from his
# plays, downloaded once and kept only if its fingerprint (SHA-256) is the expected one. It begins:
#
#     First Citizen:
#     Before we proceed any further, hear me speak.

DATA = Path("data")
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_URL = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/"
                   "data/tinyshakespeare/input.txt")


@contextlib.contextmanager
def atomic_write(path):
    """A file to write bytes to. It gets its name once it is complete, and is never left half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())                         # make sure it has reached the disk
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def hash_of(text):
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def load_shakespeare():
    """Tiny Shakespeare, from data/ if it is there and intact, else downloaded. Raises OSError."""
    path = DATA / "tinyshakespeare.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if hash_of(text) != SHAKESPEARE_SHA256:
        text = requests.get(SHAKESPEARE_URL, timeout=(2.5, 10)).text     # to connect, to read
        if hash_of(text) != SHAKESPEARE_SHA256:
            raise OSError("the download is incomplete or another text")
        with atomic_write(path) as file:
            file.write(text.encode())
    return text


# %% 2. Tokens
# A network computes with numbers, so text is cut into tokens, and each distinct one gets an integer
# id. Here a token is a character, one of 65; large models use subwords, which are pieces of words.

class CharTokenizer:
    """Turns text into a list of integers, one for each character, and back.

    >>> tokenizer = CharTokenizer("ehlo")
    >>> tokenizer.encode("hello")
    [1, 0, 2, 2, 3]
    >>> tokenizer.decode([1, 0, 2, 2, 3])
    'hello'
    """

    def __init__(self, characters):
        self.vocabulary = characters                        # the id of a character is its place
        self.vocab_size = len(characters)
        self.ids = {character: i for i, character in enumerate(characters)}

    def encode(self, text):
        """str -> list of int. ValueError for a character that is not in the vocabulary."""
        if unknown := set(text) - self.ids.keys():
            raise ValueError(f"the vocabulary {self.vocabulary!r} has no {sorted(unknown)}")
        return [self.ids[character] for character in text]

    def decode(self, ids):
        """list of int -> str."""
        return "".join(self.vocabulary[i] for i in ids)


def build_char_tokenizer(text):
    """A CharTokenizer of all characters in `text`, in sorted order."""
    return CharTokenizer("".join(sorted(set(text))))


# %% 3. Batches
# What can be learned from a text? At every position, which token comes next. So T + 1 tokens hold T
# examples: the targets, the right answers, are the inputs shifted by one (_ is the space).
#
#     inputs      F i r s t         after F           comes i
#     targets     i r s t _         after F i         comes r
#                                   after F i r       comes s, and so on
#
# Several sequences side by side make a batch: the hardware works on them in parallel, and many
# examples mislead less than one. The last tenth of the text, the validation split, is kept out of
# training, to see whether a model learns the language or only the text (overfitting).
#
# A tensor of shape (12, 64) is a table of 12 rows and 64 columns; x[:, 1:] has all rows, without
# the first column. data[i], with a tensor i of integers, looks up one number for each, in the shape
# of i. A column (B, 1) plus a row (T,) is a table (B, T): both are repeated (broadcasting).

def split(text):
    """A text in two parts: 9/10 to train on, 1/10 (at most 200,000) to validate on."""
    n = max(int(0.9 * len(text)), len(text) - 200_000)
    return text[:n], text[n:]


def encode_text(text, tokenizer):
    """The N tokens of a text, a tensor (N,). Made in parts, as lists of integers are large."""
    parts = [text[i:i + 10**6] for i in range(0, len(text) + 1, 10**6)]
    return torch.cat([torch.tensor(tokenizer.encode(part), dtype=torch.int32) for part in parts])


def get_batch(data, step, config):
    """Inputs and targets of a training step, both (B, T) int64, from random places in data (N,)."""
    B, T = config.batch_size, config.block_size
    if len(data) <= T:
        raise ValueError(f"{len(data)} tokens are too few to train on with block_size={T}")
    # Seed and step together decide what is drawn, so a run can be repeated, or resumed at any step.
    generator = torch.Generator().manual_seed(1_000_003 * config.seed + step)
    starts = torch.randint(len(data) - T, (B, 1), generator=generator)  # start + T is in data
    windows = data[starts + torch.arange(T + 1)].long()     # (N,), indices (B, T+1) -> (B, T+1)
    return windows[:, :-1], windows[:, 1:]                  # (B, T+1) -> two of (B, T)


# %% 4. Bigram
# In PyTorch, an nn.Module is a function with parameters, numbers of its own that training changes;
# `model(x)` calls its forward(x). F holds plain functions. Two modules make up most others:
#
#     nn.Embedding(V, C)    a table of V rows of C numbers; given ids, it looks up their rows
#     nn.Linear(C, D)       turns C numbers into D: times a matrix, plus a bias; both learned
#
# The simplest model that can learn is a table: a row for each token, with a score (logit) for each
# that may follow. Softmax turns a row into probabilities: exp(logit) / (the sum of all exp(logit)).
#
# How good is a prediction? Its loss is -ln(the probability that it gave to the token that came);
# the mean over all positions is the cross-entropy (in nats; with base 2, in bits). A model that
# knows nothing gives each of V tokens 1/V: a loss of ln(V), here 4.17; one that is certain and
# right has 0. exp(loss) is the perplexity: 10 is as unsure as among 10 equally likely tokens.
#
# PyTorch remembers how the loss was computed; loss.backward() goes back through that and stores how
# fast the loss changes with each parameter p, in p.grad. All these slopes are the gradient.

def next_token_loss(logits, targets):
    """Mean cross-entropy, in nats per token, of logits (B, T, V) for targets (B, T) -> ()."""
    # F.cross_entropy includes the softmax, and takes one long list, so flatten joins B and T.
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())     # (B*T, V), (B*T,) -> ()


class BigramLanguageModel(nn.Module):
    """Predicts each token from the one before: `logits, loss = model(idx, targets)`."""

    block_size = 1                              # how many tokens it looks at

    def __init__(self, vocab_size):
        super().__init__()                      # from here on, it collects what is assigned
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)       # zeros_: in place; all are equally likely

    def forward(self, idx, targets=None):
        """Token ids: idx, targets (B, T) -> logits (B, T, V), and the loss () or None."""
        logits = self.table(idx)                # (B, T) -> (B, T, V), the row of each token
        loss = None if targets is None else next_token_loss(logits, targets)
        return logits, loss


# Counting pairs gives nearly the same probabilities (see bigram.py). Trained, the loss is 2.49.


# %% 5. Attention
# To predict better, a token must gather what matters from the tokens before it. So from now on it
# is a vector of C numbers, at first its row of an nn.Embedding(V, C); x (B, T, C) holds them all.
# What matters depends on this token and on the others. So each token makes three vectors of hs
# numbers out of its C, by three matrices (C, hs) that are learned:
#
#     a query     what am I looking for?
#     a key       what do I offer to those who look?
#     a value     what do I hand over if I am chosen?
#
# (Why is the value not the key? You find a book by its title, and take home its text.) The dot
# product of one token's query with another's key is a score: how much does the other matter to this
# one? Softmax over all scores of a token turns them into attention weights, positive numbers that
# sum to 1. The token receives the mean of the values, weighted by them:
#
#     attention(Q, K, V) = softmax(Q K^T / sqrt(hs)) V     (K^T: K transposed; Vaswani et al. 2017)
#
# Q, K and V (here the values) have a row for each token. As tokens of one text ask each other, it
# is self-attention. One rule makes it fit for writing, the causal mask: a token sees itself and
# those before it, and nothing after it. The scores of later tokens become minus infinity, so their
# weights are 0. Otherwise the model could look up what it predicts. The three matrices form a head.

def one_head(x, w_query, w_key, w_value):
    """One head of causal self-attention: x (B, T, C), three matrices (C, hs) -> (B, T, hs)."""
    # @ is the matrix product, of each sequence by itself. transpose swaps two dimensions: K^T.
    q, k, v = x @ w_query, x @ w_key, x @ w_value           # each (B, T, C) @ (C, hs) -> (B, T, hs)
    scores = q @ k.transpose(1, 2)                          # (B, T, hs) @ (B, hs, T) -> (B, T, T)
    scores = scores / math.sqrt(q.shape[-1])                # row: who asks, column: who is asked
    future = torch.ones_like(scores, dtype=torch.bool).triu(diagonal=1)     # True if column > row
    weights = F.softmax(scores.masked_fill(future, -math.inf), dim=-1)      # dim=-1: along rows
    return weights @ v                                      # (B, T, T) @ (B, T, hs) -> (B, T, hs)


# Why divide by sqrt(hs)? The dot product of two vectors of hs random numbers, with mean 0 and
# standard deviation 1, has a standard deviation of sqrt(hs), here 5.7. With such large scores,
# softmax would give nearly all weight to one token from the start; small changes of the scores
# would change almost nothing, so the gradient would be near zero, and little would be learned.
#
# One head gathers one mean for each token. Several heads ask several questions at once. Each has hs
# = C / nh channels, so their results, side by side, are C numbers; a last matrix mixes them:

def several_heads(x, heads, projection):
    """x (B, T, C), heads: nh triples of (C, hs), projection (C, C) -> (B, T, C)."""
    results = [one_head(x, *matrices) for matrices in heads]            # nh of (B, T, hs)
    return torch.cat(results, dim=-1) @ projection                      # -> (B, T, C)


# What does it cost? The scores are a table of T x T, so time grows with the square of the context.
# (Memory need not: the function that chapter 7 uses does not have to hold the whole table.)
#
#     tokens     scores of one head     as a table of 32-bit numbers
#         64                  4,096                            16 kB
#      1,024              1,048,576                             4 MB
#    100,000         10,000,000,000                            40 GB
#
# The file attention_toy.py takes this chapter apart, step by step, and draws what heads look at.


# %% 6. Positions
# To attention, the tokens before this one are an unordered set: their mean does not depend on
# order. A positional encoding tells each token its position, in numbers. Picture clocks whose hands
# turn with each token, the fastest by 1 radian, the slowest once round in 10 * block_size tokens
# (their frequencies; where a hand points is its angle). Together, the hands show the position, and
# three tokens turn them by the same angles anywhere. Three encodings are usual:
#
#     sinusoidal  add the sines and cosines of the angles to the token's vector (Vaswani et al.)
#     learned     add a row of a table that is trained like all other parameters (GPT-2)
#     rotary      add nothing; turn pairs of numbers in queries and keys by the angles. Moving both
#                 turns both alike, and keeps the dot product: only distance counts (Su et al. 2021)
#
# Why add, and not append? The sum keeps C channels, and the model learns which of them say what a
# token is and which say where. The usual frequencies are 10000^(-i/n) for n clocks i = 0, 1, ...;
# ours fit the context instead, so that in a short one, even the slowest clock visibly moves.

def position_angles(positions, n_clocks, config):
    """The angle of each clock at positions (T,), in radians, the fastest first: (T, n_clocks)."""
    slowest = 2 * math.pi / (10 * config.block_size)        # radians per token; the fastest: 1
    frequencies = slowest ** torch.linspace(0, 1, n_clocks, device=positions.device)
    return positions[:, None] * frequencies                 # (T, 1) * (n_clocks,) -> (T, n_clocks)


def sinusoids(config):
    """The sines and cosines of C / 2 clocks at each position of the context: (block_size, C)."""
    angles = position_angles(torch.arange(config.block_size), config.n_embd // 2, config)
    return torch.cat((angles.sin(), angles.cos()), dim=1)   # two of (block_size, C/2) -> one of C


# A pair of numbers (a, b), rotated around the origin by an angle, is (a cos - b sin, a sin + b
# cos). Rotary position embedding (RoPE) does so with each pair, by a clock of its own.

def apply_rope(x, positions, config):
    """Turn the hs/2 pairs in x (..., T, hs) by the angles of positions (T,) -> (..., T, hs)."""
    a, b = x.chunk(2, dim=-1)                                   # halves: two of (..., T, hs/2)
    angles = position_angles(positions, a.shape[-1], config)    # (T,) -> (T, hs/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)    # -> (..., T, hs)


# %% 7. GPT
# The whole model, in the order in which data flows through it, with the names of its modules:
#
#     idx                                           (B, T), token ids
#     token_embedding + position_embedding          (B, T) -> (B, T, C)
#      |
#      +---> norm_1 ---> attention -----.           tokens gather from tokens     \
#     sum <-----------------------------'                                         |  a block,
#      +---> norm_2 ---> feed_forward --.           each token works by itself    |  n_layer times
#     sum <-----------------------------'                                         /
#     norm, lm_head                                 (B, T, C) -> (B, T, V), logits
#
# The vertical line is the residual stream. Modules do not replace what it carries; they add to it,
# as in x = x + attention(norm_1(x)), a residual connection (He et al. 2015). On the way back, a sum
# passes its slope to both of its terms, so even the first block learns well.
#
# LayerNorm (Ba et al. 2016) keeps numbers in range: it brings the C numbers of a token to mean 0
# and variance (standard deviation squared) 1, then scales and shifts each channel by a learned gain
# and bias. In 2017 it came after each sum; put before each part (pre-norm), it is more stable.
#
#     norm(x) = (x - mean) / sqrt(variance + 0.00001) * gain + bias
#
# The feed-forward network works on what a token has gathered: it widens C numbers to 4C (a choice
# of 2017 that has lasted), applies an activation function to each, and narrows them again. The
# function must be non-linear, or two matrices could do no more than one. GELU (Hendrycks & Gimpel
# 2016) lets large positive numbers pass and brings large negative ones to 0:
#
#     gelu(x) = x * (the probability that a normal random number, mean 0, variance 1, is below x)
#
# Dropout (Srivastava et al. 2014) sets a random fraction p of the numbers to 0 in training, so that
# the model relies on none alone, and multiplies the others by 1 / (1 - p), which keeps their mean.

class CausalSelfAttention(nn.Module):
    """All heads of a block at once, (B, T, C) -> (B, T, C): as several_heads, plus biases."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, positions, cache=None):
        """x (B, T, C), tokens at positions (T,). The cache belongs to chapter 9; ignore it here."""
        B, T, C = x.shape
        nh, hs = self.config.n_head, C // self.config.n_head
        # qkv joins the matrices of all heads. View cuts C into (nh, hs); transpose swaps T and nh.
        q, k, v = self.qkv(x).chunk(3, dim=-1)              # (B, T, C) -> three of (B, T, C)
        q, k, v = (z.view(B, T, nh, hs).transpose(1, 2) for z in (q, k, v))     # -> (B, nh, T, hs)
        if self.config.position == "rotary":
            q, k = (apply_rope(z, positions, self.config) for z in (q, k))
        if cache is not None:
            k, v = cache.add(self, k, v)                    # (B, nh, T, hs) -> (B, nh, end, hs)
        # The formula of chapter 5 in one function, much faster, with dropout of attention weights.
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=T > 1,                       # one token (chapter 9) sees all
            dropout_p=self.config.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, C)              # (B, nh, T, hs) -> (B, T, C)
        return self.dropout(self.proj(y))


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        C, bias = config.n_embd, config.bias
        self.norm_1 = nn.LayerNorm(C, bias=bias)
        self.attention = CausalSelfAttention(config)
        self.norm_2 = nn.LayerNorm(C, bias=bias)
        self.feed_forward = nn.Sequential(
            nn.Linear(C, 4 * C, bias=bias),                 # (B, T, C) -> (B, T, 4C)
            nn.GELU(approximate="tanh"),                    # GPT-2's approximation
            nn.Linear(4 * C, C, bias=bias),                 # (B, T, 4C) -> (B, T, C)
            nn.Dropout(config.dropout))

    def forward(self, x, positions, cache=None):
        x = x + self.attention(self.norm_1(x), positions, cache)
        x = x + self.feed_forward(self.norm_2(x))
        return x


# Parameters start random. A sum of n random terms has sqrt(n) times their standard deviation, so a
# matrix with n inputs starts with 1/sqrt(n), which keeps sizes the same. The last matrix of each
# half of a block starts at 0, so blocks first add nothing (it still learns: its inputs are not 0).
# lm_head, which makes the logits, starts small, so tokens are about equally likely.

class GPT(nn.Module):
    """Predicts each token from all tokens before it: `logits, loss = model(idx, targets)`.

    With bias=True and position="learned" it computes what GPT-2 computes (Radford et al. 2019),
    which also has tie_weights=True: one table for token_embedding and lm_head.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.block_size = config, config.block_size    # not of a Block: of tokens
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position != "rotary":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
            self.position_embedding.weight.requires_grad_(config.position == "learned")
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.token_embedding.weight = self.lm_head.weight
        self.init_parameters()

    @torch.no_grad()
    def init_parameters(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            nn.init.zeros_(block.attention.proj.weight)
            nn.init.zeros_(block.feed_forward[2].weight)
        for table in (self.lm_head, self.token_embedding):
            nn.init.normal_(table.weight, std=0.02)
        if self.config.position != "rotary":
            self.position_embedding.weight.copy_(0.03 * sinusoids(self.config))     # std 0.02, too

    def forward(self, idx, targets=None, cache=None):
        """idx, targets (B, T) int64 -> logits (B, T, V), and the loss () or None.

        With a cache (chapter 9), idx follows what is in it; only the last logits come: (B, 1, V).
        """
        start = 0 if cache is None else cache.length
        end = start + idx.shape[1]
        if end > self.block_size:
            raise ValueError(f"{end} tokens do not fit into block_size={self.block_size}")
        positions = torch.arange(start, end, device=idx.device)     # (T,)
        x = self.token_embedding(idx)                               # (B, T) -> (B, T, C)
        if self.config.position != "rotary":
            x = x + self.position_embedding.weight[start:end]       # (B, T, C) + (T, C)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, positions, cache)
        if cache is not None:
            cache.length = end
            x = x[:, -1:]                                           # (B, T, C) -> (B, 1, C)
        logits = self.lm_head(self.norm(x))                         # (B, T, C) -> (B, T, V)
        loss = None if targets is None else next_token_loss(logits, targets)
        return logits, loss


# %% 8. Training
# Gradient descent: take a batch, compute its loss and the gradient, and move all parameters a
# little in the direction in which the loss falls. Repeat 3,000 times; with 12 * 64 tokens a step,
# that is 2.3 times the training text (2.3 epochs). The optimizer decides how far a parameter w with
# the gradient g moves. Ours is AdamW (Kingma & Ba 2015, Loshchilov & Hutter 2019):
#
#     m = 0.9 m + 0.1 g             running mean of the gradients, over some 10 steps
#     s = 0.99 s + 0.01 g^2         running mean of their squares, over some 100
#     w = w - learning_rate * (m / (sqrt(s) + 1e-8) + weight_decay * w)
#
# (m and s begin at 0, so in step t = 1, 2, ... they are divided by 1 - 0.9^t and 1 - 0.99^t before
# use.) As m / sqrt(s) is about 1 at most, all parameters learn at a similar pace. Weight decay
# pulls matrices towards zero, so a number stays large only if the loss needs it. Gradient clipping
# shortens the gradient, as one long vector, to grad_clip if it is longer: odd batches do less harm.

def build_optimizer(model, config):
    """AdamW. Matrices decay; vectors (biases, and the gains of LayerNorms) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)


# The learning-rate schedule: the rate first grows (warm-up), as m and s are still means of few
# gradients, and then falls to zero: large steps get near a low loss quickly, small ones closer
# still. The peak, 4e-3, was found by trying; larger models need a lower one.

def learning_rate_at(step, config):
    """The lower of two lines: one grows for warmup_steps, the other falls to zero."""
    warm_up = (step + 1) / (config.warmup_steps + 1)
    decay = 1 - step / config.max_steps
    return config.learning_rate * min(warm_up, decay)


def training_step(model, optimizer, data, step, config):
    """One step of gradient descent. Returns the loss of its batch, a tensor ()."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, config)
    torch.manual_seed(2**31 + 1_000_003 * config.seed + step)   # for dropout; not the batch's seed
    x, y = get_batch(data, step, config)
    use_16_bits = x.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=use_16_bits):    # faster there
        _, loss = model(x, y)
    optimizer.zero_grad()                               # backward adds to p.grad: begin at 0
    loss.backward()                                     # now each parameter has its p.grad
    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()                                    # and AdamW moves each
    return loss.detach()                                # the number only, not its history


# How good is the model now? A few random batches would give a noisy answer. Let it predict all of
# the validation split, in windows as long as the context (at the start of each it sees little, so
# this is a bit too strict). The training loss is a mean over the steps since the last evaluation.
# It can be higher (the model was worse then, and had dropout); it is lower when the model overfits.

@contextlib.contextmanager
def eval_mode(model):
    """Within it, a model works without dropout, and nothing is remembered for gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def evaluate(model, data):
    """Mean loss, in nats per token, over all tokens of data (N,) except the first -> float."""
    if len(data) < 2:
        raise ValueError(f"{len(data)} tokens are too few to evaluate with; use a longer text")
    T = model.block_size
    x, y = data[:-1].long(), data[1:].long()                # (N,) -> two of (N-1,)
    missing = -len(x) % T                                   # to fill the last window
    x = F.pad(x, (0, missing)).view(-1, T)                  # (N-1,) -> (windows, T)
    y = F.pad(y, (0, missing), value=-100).view(-1, T)      # cross_entropy ignores -100
    rows, total = max(1, 2048 // T), 0.0                    # about 2,048 tokens at once
    with eval_mode(model):
        for inputs, targets in zip(x.split(rows), y.split(rows)):
            _, loss = model(inputs, targets)
            total += loss.item() * (targets >= 0).sum().item()
    return total / (len(data) - 1)


@dataclass
class TrainState:
    """The progress of a training run: with the model's parameters, all that is needed to go on."""

    optimizer: torch.optim.Optimizer
    step: int = 0                                   # steps that have been made
    loss_sum: float = 0.0                           # over the batches since the last evaluation
    train_loss: float | None = None                 # after an evaluation: the mean of those losses
    val_loss: float | None = None                   # after an evaluation: its result
    history: list = field(default_factory=list)     # a dict for each evaluation
    best: dict | None = None                        # the parameters with the lowest val_loss so far
    seconds: float = 0.0                            # spent in steps and evaluations


def train(model, train_data, val_data, config, state=None):
    """Train `model` in place on tokens (N,). A generator: each iteration makes one step.

    It yields its TrainState, so that the caller can print, save or stop between steps. Given the
    state of an earlier run, and a model with its parameters, it goes on from there. Each step
    reseeds torch's global random numbers.
    """
    state = state or TrainState(build_optimizer(model, config))
    model.train()                                   # with dropout
    while state.step < config.max_steps:
        began = time.perf_counter()
        state.loss_sum += training_step(model, state.optimizer, train_data, state.step, config)
        state.step += 1
        state.train_loss = state.val_loss = None
        if state.step % config.eval_interval == 0 or state.step == config.max_steps:
            log_evaluation(state, model, evaluate(model, val_data))
        state.seconds += time.perf_counter() - began
        yield state


def log_evaluation(state, model, val_loss):
    """Note the losses, and keep the best parameters: later ones may have overfitted."""
    steps_before = state.history[-1]["step"] if state.history else 0
    state.train_loss = float(state.loss_sum) / (state.step - steps_before)
    state.val_loss, state.loss_sum = val_loss, 0.0
    if state.best is None or val_loss < min(row["val_loss"] for row in state.history):
        state.best = {name: p.clone() for name, p in model.state_dict().items()}
    state.history.append({"step": state.step, "train_loss": state.train_loss, "val_loss": val_loss,
                          "learning_rate": state.optimizer.param_groups[0]["lr"]})


# %% 9. Sampling
# The model gives probabilities; a text needs decisions. The plain way: show the model as much of
# the text as fits into the context, draw the next token, append it, and repeat. The model predicts
# at all positions, as in training; only the last prediction is needed.

@torch.no_grad()                                                    # nothing is kept for gradients
def generate_plainly(model, idx, max_new_tokens):
    """Continue idx (B, T) -> (B, T + max_new_tokens)."""
    for _ in range(max_new_tokens):
        logits, _ = model(idx[:, -model.block_size:])               # (B, T) -> (B, T, V)
        probs = F.softmax(logits[:, -1], dim=-1)                    # (B, T, V) -> (B, V)
        token = torch.multinomial(probs, num_samples=1)             # draw one: (B, V) -> (B, 1)
        idx = torch.cat((idx, token), dim=1)                        # (B, T), (B, 1) -> (B, T+1)
    return idx


# Always taking the likeliest token (greedy) makes a dull text that soon repeats itself. Drawing
# with the probabilities as they are sometimes picks one that spoils it. Sampling parameters help:
#
#     temperature     divides the logits: below 1 favors the likely, above 1 makes all more alike
#     top_k           draw only from the k likeliest tokens
#     top_p           draw only from the likeliest tokens, as few as together have probability p
#                     (nucleus sampling; Holtzman et al. 2020)
#
# What the trained GPT makes of "First", greedily and at temperatures 0.8 and 1.3 (/ is a new line):
#
#     First Citizen:/And the stand of the stand of the stand of the state,/And the sta
#     First Camillo;/Meantimation her the king all would not call thee,/But stood a mi
#     First Caw;/Why repetitus leave at enough all hoster.'/DUKE VINV:/I am smotivatio

def next_token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """The probabilities to draw the next token with: logits (B, V) -> (B, V), each row sums to 1.

    Applied in this order: temperature (0 is greedy), top_k, top_p. ValueError if out of range.
    """
    if not (temperature == 0 or 1e-30 <= temperature < math.inf):
        raise ValueError(f"temperature must be 0, or at least 1e-30 and finite, not {temperature}")
    if not (top_k is None or top_k >= 1) or not (top_p is None or 0 < top_p <= 1):
        raise ValueError(f"top_k must be at least 1, not {top_k}; top_p in (0, 1], not {top_p}")
    if temperature == 0:
        temperature, top_k = 1.0, 1
    logits = logits - logits.amax(dim=-1, keepdim=True)     # changes nothing, but avoids overflow
    probs = F.softmax(logits / temperature, dim=-1)
    if top_k is None and top_p is None:
        return probs
    probs, tokens = probs.sort(dim=-1, descending=True)     # the likeliest first, and their ids
    if top_k is not None:
        probs[:, top_k:] = 0
        probs = probs / probs.sum(dim=-1, keepdim=True)
    if top_p is not None:
        likelier = probs.cumsum(dim=-1) - probs             # the total of all before this one
        probs[:, 1:][likelier[:, 1:] >= top_p] = 0          # but keep the likeliest
        probs = probs / probs.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, tokens, probs)       # each back in its place


# The plain way computes the whole context again for each token. There is no need: a token sees
# nothing of what comes after it, so its keys and values never change, and its query is not asked
# again. A KV cache keeps keys and values; only the newest token has to be computed. As long as the
# text fits into the context, the result is the same (up to rounding).

class KVCache:
    """The keys and values of the tokens so far, for each attention layer."""

    def __init__(self, block_size):
        self.block_size, self.length, self.layers = block_size, 0, {}

    def add(self, layer, k, v):
        """Append k, v (B, nh, T, hs) -> two of (B, nh, end, hs). GPT.forward sets self.length."""
        B, nh, T, hs = k.shape
        if self.length == 0:
            self.layers[layer] = k.new_empty(2, B, nh, self.block_size, hs)     # room for all
        elif T > 1:                             # several new tokens would need a mask
            raise ValueError(f"a filled cache takes one token at a time, not {T}")
        kept, end = self.layers[layer], self.length + T
        kept[0, :, :, self.length:end], kept[1, :, :, self.length:end] = k, v
        return kept[0, :, :, :end], kept[1, :, :, :end]


# When the text outgrows the context, the plain way drops its oldest token at each step. But then
# all others move by one position, and the cache holds keys and values of their old positions. So
# when the window is full, we drop half of it at once, and read the rest into a new cache.

def stream(model, idx, max_new_tokens, use_cache=True, generator=None, **sampling):
    """Yield each new token (B, 1) as soon as it is drawn. To be used in eval_mode."""
    T, use_cache = model.block_size, use_cache and isinstance(model, GPT)   # a bigram needs none
    window, cache = idx[:, -T:], KVCache(T)
    for _ in range(max_new_tokens):
        if window.shape[1] > T:                 # keep the newer half, and the newest token
            window, cache = window[:, -(T // 2) - 1:], KVCache(T)
        if use_cache:                           # read all of the window, or the newest token
            logits, _ = model(window[:, cache.length:], cache=cache)    # (B, T) -> (B, 1, V)
        else:
            logits, _ = model(window)                                   # (B, T) -> (B, T, V)
        probs = next_token_probabilities(logits[:, -1], **sampling)     # -> (B, V)
        token = torch.multinomial(probs, 1, generator=generator)        # (B, V) -> (B, 1)
        window = torch.cat((window, token), dim=1)                      # -> (B, T+1)
        yield token


def generate(model, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, use_cache=True,
             generator=None):
    """Continue idx (B, T) int64 with tokens drawn from the model -> (B, T + max_new_tokens).

    temperature, top_k, top_p: see above. use_cache: False computes each window anew; the
    text is the same. generator: a torch.Generator to draw with. The model's mode is restored.
    """
    with eval_mode(model):
        tokens = list(stream(model, idx, max_new_tokens, use_cache, generator,
                             temperature=temperature, top_k=top_k, top_p=top_p))
    return torch.cat((idx, *tokens), dim=1)                 # (B, T), many (B, 1) -> (B, T + new)


# %% 10. The run
# First come helpers for saving, printing and completing texts, then `run`, the whole story.

FORMAT, LARGEST_BIGRAM = "gpt.py checkpoint 4", 2048
BIGRAM_TRAINING = {"block_size": 1, "batch_size": 2048, "max_steps": 500, "eval_interval": 500,
                   "learning_rate": 0.2, "warmup_steps": 0, "weight_decay": 0.0}


def save_checkpoint(name, text, model, tokenizer, state):
    """Write data/NAME.pt: all that is needed to sample from the model, or to train it further."""
    state = {**vars(state), "loss_sum": float(state.loss_sum),
             "optimizer": state.optimizer.state_dict()["state"]}            # m and s of AdamW
    content = {"format": FORMAT, "config": asdict(model.config), "vocabulary": tokenizer.vocabulary,
               "text_sha256": hash_of(text), "parameters": model.state_dict(), "state": state}
    with atomic_write(DATA / f"{name}.pt") as file:
        torch.save(content, file)


def count_parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def heading(title):
    print(f"\n{title}\n{'-' * len(title)}")


def escape_control(text):
    """The text, with control characters (a terminal would obey them) written as in Python."""
    return "".join(c if c.isprintable() or c in "\n\t" or category(c) == "Zs" else repr(c)[1:-1]
                   for c in text)


def fit(text, columns):
    """The text, padded or cut to these columns of a terminal; wide characters take two of them."""
    widths = [0 if category(c) in ("Mn", "Me") else 1 + (east_asian_width(c) in "WF") for c in text]
    while sum(widths) > columns:
        widths.pop()
    return text[:len(widths)] + " " * (columns - sum(widths))


def complete(model, tokenizer, prompt, max_new_tokens, seed, **sampling):
    """`prompt` and what the model writes after it, a str."""
    idx = torch.tensor([tokenizer.encode(prompt)])                          # (1, T)
    generator = torch.Generator().manual_seed(seed)
    idx = generate(model, idx, max_new_tokens, generator=generator, **sampling)
    return tokenizer.decode(idx[0].tolist())


def held_out_lines(text):
    """At most twenty validation lines, cut to 37 characters so that two fit side by side."""
    lines = [line[:37] for line in split(text)[1].split("\n") if line]
    lines = [line for line in lines if len(line) >= 24] or lines
    return lines[::max(1, len(lines) // 20)][:20]


def finish_lines(model, tokenizer, lines, seed):
    """The lines as the model finishes them, given 12 characters (or half of a short line)."""
    beginnings = [line[:min(12, (len(line) + 1) // 2)] for line in lines]
    texts = [complete(model, tokenizer, beginning, 37 - len(beginning), seed + i, temperature=0.8)
             for i, beginning in enumerate(beginnings)]
    return [text.split("\n")[0][:37] for text in texts]


def write_lines(name, lines):
    with atomic_write(DATA / name) as file:
        file.write("".join(line + "\n" for line in lines).encode(errors="replace"))


def prepare_data(text, tokenizer):
    """Chapters 1 to 3: show a text and its tokens -> the tokens of its two splits, both (N,)."""
    heading("1. Text")
    print(f"{len(text):,} characters. They begin:\n\n{escape_control(text[:130])}")
    heading("2. Tokens")
    print(f"{tokenizer.vocab_size:,} different tokens. {text[:12]!r} becomes\n"
          f"{tokenizer.encode(text[:12])}")
    heading("3. Batches")
    train_data, val_data = (encode_text(part, tokenizer) for part in split(text))
    print(f"{len(train_data):,} tokens to train on, {len(val_data):,} to validate on")
    return train_data, val_data


def run(name, text, config, tokenizer=None, train_gpt=train):
    """Train a bigram model and a GPT on `text`, compare them, and save the results in data/.

    train_gpt: `train`, or a replacement with the same arguments and states (see LongRun below).
    Returns bigram (None if left out), GPT with its best parameters, tokenizer, and TrainState.
    """
    tokenizer = tokenizer or build_char_tokenizer(text)
    config = replace(config, vocab_size=tokenizer.vocab_size)
    train_data, val_data = prepare_data(text, tokenizer)
    models, states = {}, {}

    heading("4. Bigram")
    if config.vocab_size <= LARGEST_BIGRAM:                 # its table has the square of that
        models["bigram"] = bigram = BigramLanguageModel(config.vocab_size)
        for state in train(bigram, train_data, val_data, replace(config, **BIGRAM_TRAINING)):
            states["bigram"] = state
        print(f"val {math.log(config.vocab_size):.4f} at first, {state.val_loss:.4f} at the end")

    heading("5 to 8. GPT")
    torch.manual_seed(config.seed)                          # for the first parameters
    models["GPT"] = model = GPT(config)
    print(f"{count_parameters(model):,} parameters")
    for state in train_gpt(model, train_data, val_data, config):
        if state.val_loss is not None:
            print(f"step {state.step}  train {state.train_loss:.4f}  val {state.val_loss:.4f}")
    states["GPT"] = state
    save_checkpoint(name, text, model, tokenizer, state)    # with the last and the best parameters
    model.load_state_dict(state.best)

    heading("9. Sampling")
    prompt = "\n" if "\n" in text else text[0]
    print(escape_control(complete(model, tokenizer, prompt, 400, config.seed, temperature=0.8)))

    heading("10. The run")
    print(f"Lines of the held-out text, finished by {' (left) and '.join(models)}:\n")
    lines = {"text": held_out_lines(text)}
    for who, m in models.items():
        lines[who] = finish_lines(m, tokenizer, lines["text"], config.seed)
    for row in zip(*map(lines.get, models)):
        print(" | ".join(fit(escape_control(line.expandtabs(1)), 37) for line in row).rstrip())
    print("\nmodel     parameters  val_loss  bits/char  perplexity  seconds")
    for who, m in models.items():
        loss = min(row["val_loss"] for row in states[who].history)
        bits = loss / math.log(2) * len(val_data) / len(split(text)[1])         # per character
        print(f"{who:<8}{count_parameters(m):>12,}{loss:>10.4f}{bits:>11.4f}"
              f"{math.exp(min(loss, 20)):>12.2f}{states[who].seconds:>9.1f}")
    for who in lines:
        write_lines(f"{name}-{who.lower()}.txt", lines[who])
    print(f"\nCompare:  diff -y -W 79 {DATA}/{name}-{'bigram' if len(models) > 1 else 'text'}.txt "
          f"{DATA}/{name}-gpt.txt")
    return models.get("bigram"), model, tokenizer, state


# With these ten chapters, the loss on Tiny Shakespeare is 1.68; `python gpt.py` starts from better
# parameters (a head start, see the appendix) and reaches 1.59. The bigram has 2.49.
#
# From here to ChatGPT, the architecture stays nearly the same; all else grows (memory: in 16 bits):
#
#              parameters  layers  heads   width  context     tokens read   memory
#     ours    0.6 million       3      4     128       64       2 million   1.2 MB
#     GPT-2   1.5 billion      48     25   1,600    1,024  (40 GB of text)    3 GB
#     GPT-3   175 billion      96     96  12,288    2,048     300 billion   350 GB
#
# Such a model continues texts. An assistant is trained further: on conversations that people wrote,
# and then to make likelier the answers that people preferred (Ouyang et al. 2022, 2203.02155).
#
# To read: "Attention is all you need" (arXiv 1706.03762), GPT-2 (Radford et al. 2019), GPT-3
# (2005.14165), RoPE (2104.09864), AdamW (1711.05101), nucleus sampling (1904.09751). This file
# builds on Karpathy's "Let's build GPT" (ng-video-lecture), nanoGPT and minbpe, and Mody's picoGPT.


# %% Appendix: Subwords
# Characters are small steps: 64 of them are a dozen words. Byte-pair encoding (BPE; Sennrich et al.
# 2016, on bytes as in GPT-2) starts from the 256 bytes, of which UTF-8 makes every text. Again and
# again, the pair of neighbors that occurs most often becomes a new token:
#
#     a a a b d a a a b a c  ->  aa a b d aa a b a c  ->  aaa b d aaa b a c  ->  aaab d aaab a c
#
# The text is cut into words first, each with the space before it, so no token reaches across words.

import argparse
import copy
import functools
import json
import re
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from types import SimpleNamespace


def check(holds, message):
    if not holds:
        raise ValueError(message)


@functools.cache
def split_pattern():
    """How GPT-2 cuts: endings as in it's and we'll, letters, numbers, other signs, white space."""
    characters = map(chr, range(sys.maxunicode + 1))            # all of Unicode takes 0.3 seconds
    numbers = "".join(c for c in characters if category(c).startswith("N"))
    space, other = r"[^\S\x1c-\x1f]", r"(?:[^\s\w]|[_\x1c-\x1f])"   # \x1c: to Python alone a space
    letters = rf"(?:[A-Za-z]+|[^\W_{numbers}])+"            # the first choice is only faster
    return re.compile(rf"'(?:[stmd]|re|ve|ll)| ?{letters}| ?[{numbers}]+| ?{other}+|"
                      rf"{space}+(?![\S\x1c-\x1f])|{space}+")


def split_bytes(word):
    return [bytes([i]) for i in word.encode(errors="replace")]


def merge(parts, pair):
    """A list of bytes in which each occurrence of `pair` is joined.

    >>> merge([b"a", b"b", b"c", b"a", b"b"], (b"a", b"b"))
    [b'ab', b'c', b'ab']
    """
    merged = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def train_bpe(text, vocab_size):
    """The pairs to merge, in their order. ValueError if too few pairs occur twice."""
    words = Counter(split_pattern().findall(text))          # each distinct word is worked on once
    parts = {word: split_bytes(word) for word in words}
    counts, users = Counter(), defaultdict(set)     # of each pair: how often? and in which words?

    def count(word, sign):
        for pair in pairwise(parts[word]):
            counts[pair] += sign * words[word]
            users[pair].add(word)

    for word in words:
        count(word, 1)
    merges, made = [], set()
    while len(made) < vocab_size - 256:
        progress(f"finding subwords: {256 + len(made)} of {vocab_size}")
        pair = max(counts, key=lambda pair: (counts[pair], pair), default=None)
        check(counts[pair] > 1, f"the text is too short for vocab_size={vocab_size}; its pairs of "
                                f"tokens make {256 + len(made)} at most")
        for word in users.pop(pair):                        # only these have to be counted again
            count(word, -1)
            parts[word] = merge(parts[word], pair)
            count(word, 1)
        merges.append(pair)
        made.add(pair[0] + pair[1])
    progress()
    return merges


class BPETokenizer:
    """Turns text into a list of integers, one for each subword, and back.

    merges: pairs of bytes, in their order; ids: {bytes: id}, else bytes first, then what is merged.
    """

    def __init__(self, merges, ids=None):
        pieces = [bytes([i]) for i in range(256)] + [left + right for left, right in merges]
        self.vocabulary = merges
        self.ids = ids or {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        self.vocab_size = len(self.ids)
        self.pieces = {i: piece for piece, i in self.ids.items()}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        check(self.ids.keys() >= set(pieces), "a merge makes a token that has no id")
        self.encode_word = functools.cache(self.encode_word)        # most words come again

    def encode(self, text):
        """str -> list of int. Any text can be encoded."""
        return [i for word in split_pattern().findall(text) for i in self.encode_word(word)]

    def encode_word(self, word):
        parts = split_bytes(word)
        while pairs := [pair for pair in pairwise(parts) if pair in self.ranks]:
            parts = merge(parts, min(pairs, key=self.ranks.get))    # the earliest one
        return [self.ids[part] for part in parts]

    def decode(self, ids):
        """list of int -> str; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


# %% Appendix: GPT-2
# The parameters of GPT-2 were published in 2019, and the classes of chapter 7 can use them: there
# are more blocks, heads and channels, and nothing else is new. Save config.json, tokenizer.json and
# model.safetensors (0.5 GB) from the page below in data/gpt2, and try `python gpt.py sample gpt2`.

GPT2_URL = "https://huggingface.co/openai-community/gpt2"     # also gpt2-medium, -large and -xl
GPT2_SETTINGS = {                   # what config.json must not contradict
    "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
GPT2_NAMES = {                      # of its modules, and what they are called here
    "wte.": "token_embedding.", "wpe.": "position_embedding.", "h.": "blocks.", "ln_f.": "norm.",
    "ln_1.": "norm_1.", "attn.c_attn.": "attention.qkv.", "attn.c_proj.": "attention.proj.",
    "ln_2.": "norm_2.", "mlp.c_fc.": "feed_forward.0.", "mlp.c_proj.": "feed_forward.2."}
END = "<|endoftext|>"               # one token; in its training, it stood between two texts


def read_safetensors(path):
    """{name: tensor} of a file: the length of a header, the header in JSON, the numbers."""
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    content = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)   # mapped
    start = 8 + int.from_bytes(bytes(content[:8].tolist()), "little")
    check(start <= len(content), f"{path.name} is not complete, or only a pointer of git-lfs")
    header, tensors = json.loads(bytes(content[8:start].tolist())), {}
    header.pop("__metadata__", None)
    for name, about in header.items():
        if not name.endswith((".attn.bias", ".attn.masked_bias")):      # masks; ours has none
            begin, end = about["data_offsets"]
            check(start + end <= len(content), f"{path.name} is not complete")
            numbers = content[start + begin:start + end].clone().view(dtypes[about["dtype"]])
            tensors[name] = numbers.view(about["shape"])
    return tensors


class GPT2Tokenizer(BPETokenizer):
    """From tokenizer.json, where a visible character stands for each byte (\u0120 is the space)."""

    def __init__(self, path):
        hidden = [*range(33), *range(127, 161), 173]        # these bytes are shown as 256, 257, ...
        table = {256 + i: byte for i, byte in enumerate(hidden)}
        about = json.loads(path.read_bytes())["model"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in about["merges"])
        super().__init__(
            [tuple(part.translate(table).encode("latin-1") for part in pair) for pair in pairs],
            {piece.translate(table).encode("latin-1"): i for piece, i in about["vocab"].items()})
        self.end = self.ids[END.encode()]

    def encode(self, text):
        first, *others = map(super().encode, text.split(END))
        return first + [i for part in others for i in (self.end, *part)]


def load_gpt2(folder):
    """(model, tokenizer) from the published files of a GPT-2. ValueError if they cannot be used."""
    try:
        about = json.loads(Path(folder, "config.json").read_bytes())
        for name, wanted in GPT2_SETTINGS.items():
            check(about.get(name, wanted) == wanted, f"its {name} is {about.get(name)!r}")
        tokenizer = GPT2Tokenizer(Path(folder, "tokenizer.json"))
        V = tokenizer.vocab_size
        check(sorted(tokenizer.pieces) == list(range(V)) and V <= about["vocab_size"],
              f"{V} tokens do not fit vocab_size={about['vocab_size']}")
        config = Config(V, about["n_positions"], about["n_layer"], about["n_head"], about["n_embd"],
                        tie_weights=about.get("tie_word_embeddings", True))
        parameters = {}
        for name, p in read_safetensors(Path(folder, "model.safetensors")).items():
            if re.search(r"\.c_\w+\.weight$", name):
                p = p.t().contiguous()                      # (inputs, outputs), not as in nn.Linear
            name = name.removeprefix("transformer.")
            for theirs, ours in GPT2_NAMES.items():
                name = name.replace(theirs, ours)
            if name in ("token_embedding.weight", "lm_head.weight"):
                p = p[:V]                                   # more rows only pad the table
            parameters[name] = p.float()
        if config.tie_weights:
            parameters["lm_head.weight"] = parameters["token_embedding.weight"]
        return build_gpt(config, parameters), tokenizer
    except Exception as error:                              # who knows what is in a file
        raise ValueError(f"{folder} has no GPT-2 that can be used: {type(error).__name__}: "
                         f"{error!s:.200}") from error


# %% Appendix: A head start
# Two findings can be given to the model from the start. Validation losses, means of three seeds:
#
#                                                420 steps     3,000 steps
#     the first parameters of chapter 7            2.055           1.675
#     and channels of their own for tokens         2.000           1.624
#     and heads that look back                     1.873           1.590
#
# Channels of their own: tokens write to the last quarter of the residual stream, and lm_head reads
# the other three. So tokens do not blur the positions, and lm_head can begin at full size: each
# target pulls in a direction of its own from the start. Looking back: heads of the first block look
# 1 to 4 tokens back, by the clocks of chapter 6: keys show hands, queries show them turned back.

@torch.no_grad()
def head_start(model):
    """Change the first parameters of a GPT as described above. Returns whether there was a way."""
    config, qkv = model.config, model.blocks[0].attention.qkv
    C, nh, rotary = config.n_embd, config.n_head, config.position == "rotary"
    if not config.tie_weights:
        quarter = max(1, C // 4)
        tokens, logits = model.token_embedding.weight, model.lm_head.weight
        tokens[:, :-quarter], logits[:, -quarter:] = 0, 0
        nn.init.normal_(tokens[:, -quarter:], std=1.0)
        nn.init.normal_(logits[:, :-quarter], std=1 / math.sqrt(C))
        if not rotary:
            model.position_embedding.weight.mul_(10)            # still softer than the tokens
    n = C // nh // 2                                            # clocks in a head: the n fastest
    if rotary and config.bias:                                  # constants: attention turns them
        heads = qkv.bias.view(3, nh, -1, 1)                     # (3C,) -> (3, nh, hs, 1)
        qkv.weight[:2 * C] = 0
        keys = torch.tensor([[1.0] * n + [0.0] * n])            # (1, 2n), hands at 0
    elif not rotary and not config.tie_weights:                 # tied tokens would blur positions
        heads = qkv.weight.view(3, nh, -1, C)                   # (3C, C) -> (3, nh, hs, C)
        keys = torch.eye(C).roll(C // 2, dims=1)                # (C, C): cosines, then sines
    else:
        return not config.tie_weights
    half = keys.shape[1] // 2                                   # cosines of all clocks, then sines
    chosen = [*range(n), *range(half, half + n)]
    for h in range(nh):
        queries = apply_rope(keys, torch.tensor([-1 - h]), config)      # the shape of keys
        heads[0, h, :2 * n] = 6 * queries.T[chosen]             # 6 is large enough
        heads[1, h, :2 * n] = 6 * keys.T[chosen]
    return True


# %% Appendix: Long runs
# LongRun can be called like `train`, and adds what a long run needs. It saves at each evaluation
# and once a minute, so a stop at any moment (Ctrl-C, kill -9, a dead battery) costs little; it goes
# on from what was saved; it can use a GPU and torch.compile. What has its name is set aside.

ENDINGS = (".pt", ".csv", "-text.txt", "-bigram.txt", "-gpt.txt", ".html")      # files of a run
SAVE_SECONDS = 60


class LongRun:
    """Called like `train`, it yields the same states. saved: what read_checkpoint returns."""

    def __init__(self, name, text, tokenizer, saved=None, device="cpu", compile=False,
                 use_head_start=True):
        self.name, self.text, self.tokenizer, self.saved = name, text, tokenizer, saved
        self.device, self.compile, self.use_head_start = device, compile, use_head_start
        self.saved_step = saved and saved.state.step        # None before the first save

    def __call__(self, model, train_data, val_data, config):
        get_batch(train_data, 0, config)                    # ValueError before anything is touched
        if self.saved:
            trained, state = self.saved.model, self.saved.state
            trained.config = config
            print(f"{self.name}: going on from step {state.step}")
        else:
            trained = copy.deepcopy(model)                  # `model` is neither moved nor compiled
            if self.use_head_start and head_start(trained):
                print("with a head start (see the appendix; --no-head_start leaves it out)")
            state = TrainState(build_optimizer(trained, config))
            set_aside(self.name)
        trained.to(self.device)
        state.optimizer.load_state_dict(state.optimizer.state_dict())       # now on the device, too
        if self.compile:
            trained.compile()
        train_data, val_data = train_data.to(self.device), val_data.to(self.device)
        finished = state.step == config.max_steps
        if finished and state.val_loss is None:             # --max_steps ends it where it stood
            log_evaluation(state, trained, evaluate(trained, val_data))
        self.save(trained, state)
        saved_at = time.perf_counter()
        for state in [state] if finished else train(trained, train_data, val_data, config, state):
            if state.val_loss is not None or time.perf_counter() > saved_at + SAVE_SECONDS:
                self.save(trained, state)
                saved_at = time.perf_counter()
            left = state.seconds / state.step * (config.max_steps - state.step) / 60
            progress("" if state.val_loss else f"step {state.step}, {left:.1f} minutes left")
            yield state
        model.load_state_dict(trained.state_dict())

    def save(self, model, state):
        """Write the checkpoint, and the losses as data/NAME.csv. ValueError if a number is lost."""
        losses = (state.train_loss or state.loss_sum) + (state.val_loss or 0.0)
        for name, x in (("loss", losses), *model.named_parameters()):
            check(torch.as_tensor(x).isfinite().all(),
                  f"{name}: not a finite number by step {state.step}. Try a lower learning_rate")
        save_checkpoint(self.name, self.text, model, self.tokenizer, state)
        self.saved_step = state.step
        rows = [",".join(map(str, row.values())) for row in state.history]
        try:
            write_lines(f"{self.name}.csv", ["step,train_loss,val_loss,learning_rate", *rows])
        except OSError as error:                            # another program may hold it
            print(f"warning: {error}; the checkpoint is saved", file=sys.stderr)


def progress(line=""):
    """Show on a terminal what takes a while; the next line is written over it."""
    if sys.stdout is not None and sys.stdout.isatty():
        print(f"\r{line[:79]:<79}\r", end="", flush=True)


def set_aside(name):
    """Rename the files of the run `name` to the first free one of NAME-1, NAME-2, ..."""
    there, i = [ending for ending in ENDINGS if os.path.lexists(DATA / (name + ending))], 1
    while any(os.path.lexists(DATA / f"{name}-{i}{ending}") for ending in ENDINGS):
        i += 1
    for ending in reversed(there):                          # the checkpoint last
        (DATA / (name + ending)).rename(DATA / f"{name}-{i}{ending}")
    if there:
        print(f"the earlier run {name} is now called {name}-{i}")


def build_gpt(config, parameters):
    """A GPT with these parameters, in eval mode; nothing is random. Raises if they do not fit."""
    check(config.n_layer <= len(parameters), f"too few parameters for n_layer={config.n_layer}")
    for name, p in parameters.items():
        check(p.dtype == torch.float32 and p.isfinite().all(), f"{name} is not finite")
    with torch.device("meta"):                              # shapes alone, without numbers
        model = GPT(config)
    model.load_state_dict(dict(parameters), assign=True)
    if config.tie_weights:
        model.token_embedding.weight = model.lm_head.weight
    return model.eval()


def read_checkpoint(path):
    """Path, config, tokenizer, model, best, state, text_sha256. Runs no code; raises ValueError."""
    with open(path, "rb") as file:
        try:
            saved = SimpleNamespace(**torch.load(file, map_location="cpu", weights_only=True))
            check(saved.format == FORMAT, f"its format is {saved.format!r}, not {FORMAT!r}")
            saved.path, saved.config = path, check_config(Config(**saved.config))
            kind = CharTokenizer if isinstance(saved.vocabulary, str) else BPETokenizer
            saved.tokenizer = kind(saved.vocabulary)
            check(saved.tokenizer.vocab_size == len(saved.tokenizer.ids) == saved.config.vocab_size,
                  f"its vocabulary does not fit vocab_size={saved.config.vocab_size}")
            saved.model = build_gpt(saved.config, saved.parameters)
            saved.best = build_gpt(saved.config, saved.state["best"] or saved.parameters)
            optimizer = build_optimizer(saved.model, saved.config)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved.state["optimizer"]})
            saved.state = state = TrainState(**{**saved.state, "optimizer": optimizer})
            for p in (p for p in saved.model.parameters() if p.requires_grad and state.step > 0):
                for mean in (optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]):
                    check(mean.shape == p.shape and mean.isfinite().all(), "its optimizer is wrong")
            columns = "step", "train_loss", "val_loss", "learning_rate"
            numbers = [state.loss_sum, state.seconds, state.train_loss or 0, state.val_loss or 0]
            numbers += [row[column] for row in state.history for column in columns]
            check(all(map(math.isfinite, numbers)) and type(state.step) is int and state.step >= 0
                  and bool(state.best) == bool(state.history) and type(saved.text_sha256) is str,
                  "a loss is not finite, or its step, its best parameters or its hash is wrong")
            return saved
        except Exception as error:                          # who knows what is in a file
            raise ValueError(f"{path} is not a whole checkpoint: {type(error).__name__}: "
                             f"{str(error).partition('. ')[0]:.150}") from error


def load_checkpoint(path):
    """(model, tokenizer) of a run: its best parameters, on the CPU. Raises OSError, ValueError."""
    saved = read_checkpoint(path)
    return saved.best, saved.tokenizer


# %% Appendix: The command line

SIZES = {                           # for --size; tests/benchmark.py says what they cost
    "7M": dict(block_size=256, n_layer=4, n_head=6, n_embd=384, learning_rate=1.3e-3),
    "11M": dict(block_size=256, n_layer=6, n_head=6, n_embd=384, learning_rate=1.3e-3),
    "86M": dict(block_size=1024, n_layer=12, n_head=12, n_embd=768, learning_rate=6e-4)}  # as GPT-2


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ValueErrors, and that takes each option once."""

    def parse_args(self, arguments):
        options = Counter(word.split("=")[0] for word in arguments if word.startswith("--"))
        twice = [option for option, times in options.items() if times > 1]
        check(not twice, f"given more than once: {', '.join(twice)}")
        return super().parse_args(arguments)

    def error(self, message):
        raise ValueError(message.replace("one argument", "one argument, as in --prompt=-hello"))


def check_range(name, value, low, below=2**32):
    check(low <= value < below, f"{name} must be at least {low} and below {below}, not {value}")


def check_config(config):
    """The config, if a model can be built and trained with it; else ValueError."""
    for name, value in asdict(config).items():
        kind = Config.__dataclass_fields__[name].type
        check(type(value) in (kind, int), f"{name} must be {kind.__name__}, not {value!r}")
        if kind in (int, float):
            zero = name in ("dropout", "weight_decay", "warmup_steps", "seed")
            check_range(name, value, 0 if zero else 1 if kind is int else 1e-12,
                        1 if name == "dropout" else 2**32)
    check(config.position in ("learned", "sinusoidal", "rotary"),
          f"position must be learned, sinusoidal or rotary, not {config.position!r}")
    width = config.n_embd // (config.n_head if config.position == "rotary" else 1)
    check(width % 2 == 0, f"{config.position} positions need pairs of numbers, and "
                          f"n_embd={config.n_embd}, n_head={config.n_head} leave them {width}")
    return config


def run_command(arguments):
    """`python gpt.py`: the story, with any field of Config as an option."""
    parser = Parser("gpt.py", allow_abbrev=False, epilog=(
        "gpt.py sample: a trained model writes; gpt.py runs: what is kept; more is in tests/"))
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    parser.add_argument("--name", help="what to call the run; else shakespeare, or as the text")
    parser.add_argument("--size", choices=SIZES, help="a larger model")
    parser.add_argument("--tokenizer", choices=("char", "bpe"), help="bpe: subwords (char)")
    parser.add_argument("--device", help="cuda, mps or cpu; else cuda if it is there")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--head_start", action=argparse.BooleanOptionalAction, default=True,
                        help="better first parameters, see the appendix")
    for name, field in Config.__dataclass_fields__.items():
        kind = ({"action": argparse.BooleanOptionalAction} if field.type is bool else
                {"type": field.type, "metavar": field.type.__name__.upper()})
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, **kind,
                            help=f"{field.metadata['meaning']} ({field.default})")
    given = parser.parse_args(arguments)
    options = {name: value for name, value in vars(given).items() if hasattr(Config, name)}
    options = {**SIZES.get(given.size, {}), **options}
    device, name = choose_device(given.device), given.name or given.text and given.text.stem
    saved = None
    if given.resume:
        saved = read_checkpoint(DATA / f"{name}.pt" if name else find_run())
    text_name, text = load_text(given.text, saved and saved.text_sha256)
    name = name or (saved.path.stem if saved else text_name)
    check(Path(name).name == name and name.lower() not in ("..", "page")
          and len(os.fsencode(name)) <= 200, f"--name begins the names of files; {name!r} cannot")
    if saved:
        tokenizer, config = saved.tokenizer, resumed_config(saved, options, text)
        kind = "char" if isinstance(tokenizer, CharTokenizer) else "bpe"
        check(given.tokenizer in (None, kind), f"{saved.path} has --tokenizer {kind}")
    else:
        config, tokenizer = check_config(Config(**options)), build_tokenizer(given, options, text)
    long_run = LongRun(name, text, tokenizer, saved, device, given.compile, given.head_start)
    try:
        run(name, text, config, tokenizer, long_run)
    except KeyboardInterrupt:
        step, also = long_run.saved_step, "--resume" + f" --name {name}" * (given.name is None)
        raise KeyboardInterrupt("stopped before anything was saved" if step is None else
                                f"stopped; step {step} is saved, and the same command with {also} "
                                f"goes on from there") from None
    if isinstance(tokenizer, CharTokenizer):
        own_text = f" --text {given.text}" if given.text else ""
        print(f"Explore:  python attention_toy.py --page {name}{own_text}")


def build_tokenizer(given, options, text):
    """The tokenizer that was asked for; subwords are found in the training split alone."""
    if given.tokenizer != "bpe":
        check("vocab_size" not in options, "--vocab_size goes with --tokenizer bpe")
        return build_char_tokenizer(text)
    check_range("vocab_size", options.get("vocab_size", 512), 257)
    return BPETokenizer(train_bpe(split(text)[0], options.get("vocab_size", 512)))


def resumed_config(saved, options, text):
    """The hyperparameters of a saved run; only max_steps and eval_interval may change."""
    check(saved.text_sha256 == hash_of(text),
          f"{saved.path} was trained on another text; add --name {saved.path.stem} --text FILE")
    for name in options.keys() - {"max_steps", "eval_interval"}:
        before = getattr(saved.config, name)
        check(options[name] == before, f"{saved.path} has {name}={before}, not {options[name]}")
    config = check_config(replace(saved.config, **options))
    check(config.max_steps >= saved.state.step, f"{saved.path} has made {saved.state.step} steps")
    return config


def sample_command(arguments):
    """`python gpt.py sample`: write with a saved model, token by token."""
    parser = Parser("gpt.py sample", allow_abbrev=False, description="Let a trained model write.")
    parser.add_argument("run", nargs="?", help="its name or its path, or gpt2; else the latest")
    for name, kind, default, help in (
            ("prompt", str, "", r"how the text begins; \n: a new line, \t: a tab, \\: a backslash"),
            ("tokens", int, 500, "how many to write"),
            ("temperature", float, 0.8, "divides the logits; 0 takes the likeliest token"),
            ("top_k", int, None, "draw only from the k likeliest tokens"),
            ("top_p", float, None, "draw only from the likeliest that have p together"),
            ("seed", int, time.time_ns() % 2**32, "the same seed writes the same text"),
            ("device", str, "cpu", "cuda, mps or cpu")):
        parser.add_argument(f"--{name}", type=kind, default=default, help=help)
    options = parser.parse_args(arguments)
    check_range("seed", options.seed, 0)
    check_range("the number of new tokens", options.tokens, 0)
    path, device = find_run(options.run), choose_device(options.device)
    model, tokenizer = load_gpt2(path) if path.is_dir() else load_checkpoint(path)
    prompt = unescape(options.prompt) or default_prompt(tokenizer)
    idx = torch.tensor([tokenizer.encode(prompt)], device=device)                   # (1, T)
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
    next_token_probabilities(torch.zeros(1, 1), **sampling)         # it refuses what makes no sense
    print(f"{path} writes, with --seed {options.seed}:", file=sys.stderr)
    shown = escape_control if sys.stdout.isatty() else str
    print(shown(prompt), end="", flush=True)
    waiting = []            # a character may be several tokens, and reads \ufffd until it is whole
    with eval_mode(model.to(device)):
        for token in stream(model, idx, options.tokens, **sampling,
                            generator=torch.Generator(device).manual_seed(options.seed)):
            if token.item() == getattr(tokenizer, "end", None):
                break
            waiting.append(token.item())
            written = tokenizer.decode(waiting)
            if len(waiting) == 16 or not written.endswith("\ufffd"):
                print(shown(written), end="", flush=True)
                waiting = []
    print(shown(tokenizer.decode(waiting)))


def unescape(prompt):
    return re.sub(r"\\[nt\\]", lambda m: {"n": "\n", "t": "\t"}.get(m[0][1], "\\"), prompt)


def runs_command(arguments):
    """`python gpt.py runs`: what has been saved."""
    Parser("gpt.py runs", description="Show the runs that are kept in data/.").parse_args(arguments)
    for path in saved_runs():
        try:
            saved = read_checkpoint(path)
            loss = min((row["val_loss"] for row in saved.state.history), default=math.nan)
            print(f"{path.stem:24} step {saved.state.step}/{saved.config.max_steps} val {loss:.4f} "
                  + time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime)))
        except (ValueError, OSError) as error:
            print(escape_control(str(error)))


def saved_runs():
    """The paths of all checkpoints in data/, the latest last."""
    return sorted(filter(Path.exists, DATA.glob("*.pt")), key=lambda path: path.stat().st_mtime)


def find_run(name=None):
    """The path of the run with this name, or this path, or the latest run if none is named."""
    runs = saved_runs()
    for path in runs[-1:] if name is None else [DATA / f"{name}.pt", DATA / name, Path(name)]:
        if path.exists():
            return path
    kept = ", ".join(path.stem for path in runs) or "none; `python gpt.py` makes one"
    raise ValueError(f"there is no run {name or 'yet'}; those that are kept: {kept}. For gpt2, "
                     f"save three files from {GPT2_URL} in {DATA / 'gpt2'}")


def choose_device(name=None):
    """The device with this name, or without one, a GPU that CUDA serves, or else the CPU."""
    here = ["cuda"] * torch.cuda.is_available() + ["cpu", "mps"][:1 + torch.mps.is_available()]
    check(name in (None, *here), f"there is no device {name!r} here, only {', '.join(here)}")
    return name or here[0]


def load_text(path=None, sha256=None):
    """(name, text): from the file `path`, else Shakespeare, else (or by its sha256) the manual."""
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8-sig")     # line ends of all systems become \n
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from None
        check(text and "\0" not in text, f"{path} is {'not UTF-8; UTF-16?' if text else 'empty'}")
        return path.stem, text
    try:
        if sha256 in (None, SHAKESPEARE_SHA256):
            progress("" if (DATA / "tinyshakespeare.txt").exists() else "downloading the text")
            return "shakespeare", load_shakespeare()
    except (OSError, ValueError) as error:                  # ValueError: an odd address of a proxy
        print(f"No Tiny Shakespeare ({type(error).__name__}), so Python's manual is the text. Or "
              f"save {SHAKESPEARE_URL} as {DATA / 'tinyshakespeare.txt'}")
    from pydoc_data.topics import topics
    return "manual", "".join(topics.values())


def default_prompt(tokenizer):
    """What a text begins with when nothing is said: a new line, if the vocabulary has it."""
    newline = "\n" in tokenizer.ids or b"\n" in tokenizer.ids
    return END if hasattr(tokenizer, "end") else "\n" if newline else tokenizer.vocabulary[0]


def run_cleanly(program, command, arguments):
    """Call command(arguments) and return its exit code; an error of the user becomes one line."""
    torch.set_flush_denormal(True)          # numbers below 1e-38 become 0; they would be slow
    if hasattr(sys.stdout, "reconfigure"):              # any text can be printed, also into a pipe
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = command(arguments) or 0
        print(end="", flush=True)                       # a closed pipe shows here
        return code
    except SystemExit as end:                           # after --help
        return end.code
    except BrokenPipeError:                             # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141                                      # the exit code of SIGPIPE, 128 + 13
    except KeyboardInterrupt as stop:
        message, code = str(stop) or "stopped", 130
    except (ValueError, OSError) as error:
        message, code = escape_control(" ".join(str(error).split())), 2
    except (RuntimeError, MemoryError) as error:        # memory, a GPU, a compiler, or a process
        message, code = (f"{str(error).partition(chr(10))[0] or 'not enough memory'}; a smaller "
                         f"model or batch, --device cpu, or no --compile may help"), 2
    progress()
    print(f"{program}: {message}", file=sys.stderr)
    return code


def main(arguments=None):
    """Do what the command line says; return the exit code. In a notebook there is none."""
    if arguments is None:
        arguments = [] if "ipykernel" in sys.modules else sys.argv[1:]
    command = {"sample": sample_command, "runs": runs_command}.get((arguments or [""])[0])
    if command:
        return run_cleanly(f"gpt.py {arguments[0]}", command, arguments[1:])
    return run_cleanly("gpt.py", run_command, arguments)


if __name__ == "__main__" and (exit_code := main()):
    sys.exit(exit_code)

# /// script
# dependencies = ["torch", "requests"]
# ///
