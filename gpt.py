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
       Appendix     what a reader may skip: pieces of words as tokens, demos that check themselves,
                    a head start, files, several processes, sizes, checks, the command line

`python gpt.py` takes two minutes on a laptop without a GPU; `--help` says what else it can do. You
need to know Python, and that a matrix product is many dot products at once. A comment such as
`# (B, T) -> (B, T, C)` says how a line changes the shape of a tensor, in these letters:

    B   batch: how many pieces of text are worked on side by side
    T   time: how many tokens a piece has
    C   channels: how many numbers describe one token
    V   vocabulary: how many different tokens there are
    nh  number of attention heads; hs  head size, C / nh, the channels that each head works with
    N   tokens of a whole text; and () is the shape of a single number
"""

import hashlib
import math
import signal
import warnings
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

if __name__ == "__main__":      # Ctrl-C while torch is loaded, some seconds, ends without a word
    on_ctrl_c = signal.signal(signal.SIGINT, signal.SIG_DFL)

import requests

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")     # it is not needed
import torch
import torch.nn as nn
import torch.nn.functional as F

# %% 0. Settings
# The numbers that decide what is built and how it learns. Skim them: they will make sense as the
# chapters go by, and this is the place to come back to. The defaults make a model of 0.6 million
# weights that learns in about two minutes on two processor cores.


@dataclass
class Config:
    """The settings of a model and of its training. Raises UserError for one that cannot work."""

    # The model
    tokenizer: str = "char"         # what a token is: char, a character, or bpe, a piece of a word
    vocab_size: int = 65            # V, different tokens; for characters, the text decides
    block_size: int = 64            # the context: the most tokens that the model can look at
    n_layer: int = 3                # blocks, one on top of the other
    n_head: int = 4                 # nh, attention heads in each block
    n_embd: int = 128               # C, numbers that describe one token
    dropout: float = 0.0            # share of numbers set to zero in training; for short texts
    bias: bool = True               # linear layers and LayerNorms also add a constant, as in GPT-2
    position: str = "learned"       # how tokens know their place: learned, sinusoidal or rotary
    tie_weights: bool = False       # one table to read and to predict tokens with, as in GPT-2

    # The training
    batch_size: int = 12            # B, pieces of text in each step
    max_steps: int = 3000           # steps of gradient descent
    learning_rate: float = 4e-3     # how far a step goes, at the most
    warmup_steps: int = 100         # steps until it goes that far
    weight_decay: float = 0.1       # pull of the matrices towards zero, times learning_rate
    grad_clip: float = 1.0          # a gradient that is longer is shortened to this length
    eval_interval: int = 500        # steps from one look at the validation split to the next
    seed: int = 1337                # decides the first weights, the batches and the samples

    def __post_init__(self):
        check_config(self)          # in the appendix, like all checks; they raise UserError


# %% 1. Text
# A language model learns from text and from nothing else. Ours is Tiny Shakespeare, 1.1 million
# characters from his plays. It begins:
#
#     First Citizen:
#     Before we proceed any further, hear me speak.
#
#     All:
#     Speak, speak.
#
# It is downloaded once, and kept only if its SHA-256 is the one we know: half a file, or the login
# page of a hotel, is not Shakespeare. Without a network, there is a text that every Python carries
# with it: its own manual.

DATA = Path("data")
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_URL = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/"
                   "data/tinyshakespeare/input.txt")


def load_shakespeare():
    """Tiny Shakespeare, from data/ if it is there and whole, else downloaded. Raises OSError."""
    path = DATA / "tinyshakespeare.txt"
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != SHAKESPEARE_SHA256:
        download(SHAKESPEARE_URL, path, SHAKESPEARE_SHA256)         # in the appendix
    return path.read_text(encoding="utf-8")


def load_manual():
    """The manual of Python, about 465,000 characters that come with Python itself."""
    from pydoc_data.topics import topics
    return "".join(topics.values())


# %% 2. Tokens
# A network calculates with numbers. So the text is cut into tokens, and each different token gets
# a number of its own. Here a token is one character: nothing is simpler, and there are only 65.
# (Large models cut text into pieces of words. The appendix does that; nothing else has to change.)


class CharTokenizer:
    """Turns text into a list of integers, one for each character, and back.

    >>> tokenizer = CharTokenizer("helo")
    >>> tokenizer.encode("hello")
    [0, 1, 2, 2, 3]
    >>> tokenizer.decode([0, 1, 2, 2, 3])
    'hello'
    """

    def __init__(self, characters):
        self.characters = self.vocabulary = characters      # every tokenizer has a vocabulary
        self.vocab_size = len(characters)
        self.ids = {character: i for i, character in enumerate(characters)}

    def encode(self, text):
        """str -> list of int. Raises UserError for a character that is not in the vocabulary."""
        unknown = set(text).difference(self.ids)
        check(not unknown, f"the vocabulary {self.characters!r} has no {sorted(unknown)}")
        return [self.ids[character] for character in text]

    def decode(self, ids):
        """list of int -> str. Raises UserError for an id that is not in the vocabulary."""
        check_ids(ids, self.vocab_size)
        return "".join(self.characters[i] for i in ids)


def build_char_tokenizer(text):
    """A CharTokenizer of all characters in `text`, in sorted order."""
    return CharTokenizer("".join(sorted(set(text))))


# %% 3. Batches
# What can be learned from a text? At each place: after these tokens came that one. A piece of T
# tokens holds T such examples, one for each of its beginnings, and the model will answer them all
# at once. So its targets are its inputs, one step later (_ is the space):
#
#     inputs      F i r s t         after F           comes i
#     targets     i r s t _         after F i         comes r
#                                   after F i r       comes s, and so on
#
# The last tenth of the text, the validation split, is kept out of training. Only there does it show
# whether a model has learned the language or the text by heart. (Of a long text, 200,000 will do.)
#
# In PyTorch, batches are tensors. A tensor is a box of numbers with a shape; (12, 64) is a table of
# 12 rows and 64 columns. A column (B, 1) plus a row (T,) makes a table (B, T).

HELD_OUT = 200_000


def split(text):
    """Cut a text, or its tokens (N,), in two: most of it to train on, the rest to validate with."""
    n = max(int(0.9 * len(text)), len(text) - HELD_OUT)
    return text[:n], text[n:]


def step_seed(step, config):
    """What is random in a step follows from this alone, so a run can be repeated, or resumed."""
    return 1_000_003 * config.seed + step           # another seed, other numbers in all steps


def get_batch(data, step, config):
    """Inputs and targets of a training step, two int64 tensors (B, T), from random places in data.

    >>> x, y = get_batch(torch.tensor([18, 47, 56, 57, 58]), 0, Config(batch_size=1, block_size=3))
    >>> x, y
    (tensor([[18, 47, 56]]), tensor([[47, 56, 57]]))
    """
    B, T = config.batch_size, config.block_size
    check_range("the number of tokens to train on", len(data), T + 1)
    generator = torch.Generator().manual_seed(step_seed(step, config))
    starts = torch.randint(len(data) - T, (B, 1), generator=generator)
    starts = own_rows(starts).to(data.device)       # with one process: all of them
    places = starts + torch.arange(T + 1, device=data.device)       # (B, 1) + (T+1,) -> (B, T+1)
    pieces = data[places].long()                    # (N,) -> (B, T+1), in integers of 64 bits
    return pieces[:, :-1], pieces[:, 1:]            # (B, T+1) -> two of (B, T)


# %% 4. Bigram
# If you have not met PyTorch: an nn.Module is a function with numbers of its own, its weights,
# which training will change; `model(x)` calls its method forward(x). Modules are made of other
# modules, and two kinds do most of the work:
#
#     nn.Embedding(V, C)    a table of V rows, each of C numbers; given ids, it looks up their rows
#     nn.Linear(C, D)       of C numbers it makes D: each a weighted sum of the C, by a matrix, plus
#                           a number of its own, the bias (unless bias=False)
#
# The simplest model that learns looks at one token and guesses the next. It is a table: a row for
# each token, and in the row a score for each token that may follow. Such scores are called logits.
# Softmax, exp(logit) / (the sum of all exp(logit) in the row), turns them into probabilities.
#
# How wrong is a guess? Its loss is -ln(the probability that it gave to the token that really came),
# averaged over all places: the cross-entropy. (Its unit is the nat; with the logarithm to base 2
# it would be the bit.) To know nothing and give each of V tokens the probability 1/V costs ln(V).
# To be sure and right costs 0.
#
# PyTorch remembers how the loss was computed. So loss.backward() can tell for each weight how fast
# the loss would change if the weight grew: its gradient. Chapter 7 learns with that. (Under
# torch.no_grad() nothing is remembered, which is faster.)


def next_token_loss(logits, targets):
    """Mean cross-entropy, in nats per token, of logits (B, T, V) for targets (B, T) -> ()."""
    # F.cross_entropy does the softmax, too, and wants one long list of guesses.
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())     # (B*T, V), (B*T,) -> ()


class BigramLanguageModel(nn.Module):
    """Predicts each token from the one before: `logits, loss = model(idx, targets)`."""

    block_size = 1                              # how many tokens it looks at

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size = vocab_size
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)       # it starts by knowing nothing: all tokens alike

    def forward(self, idx, targets=None):
        """Token ids, idx and targets (B, T) -> logits (B, T, V), the loss () or None."""
        logits = self.table(idx)                # (B, T) -> (B, T, V), the row of each token
        loss = None if targets is None else next_token_loss(logits, targets)
        return logits, loss


# Such a table could as well be made by counting which token follows which; the file bigram.py does
# both, and finds nearly the same probabilities. This is what the bigram writes, once it is trained:
#
#     Cars an thede.
#     Y in, lanoulisee we anonthouge thilou wist icthis teriaing yonsenimese


# %% 5. Attention
# To predict better, a token must gather what matters from its past: itself and all tokens before
# it. For this it needs room to note what is known of it. So from now on a token is a vector of C
# numbers. It begins as its row in a table, an nn.Embedding that is learned like everything else;
# what the token gathers is added to it. What the numbers mean, training decides.
#
# And what matters? That depends on what this token is, and on what the others are. So each token
# makes three vectors of hs numbers (the head size) from its C, by three matrices that are learned:
#
#     a query     what am I looking for?
#     a key       what do I offer to those who look?
#     a value     what do I hand over if I am chosen?
#
# The dot product of my query with your key says how much you matter to me. Softmax over all tokens
# of the past turns these scores into shares that sum to 1, and I receive the mean of the values, in
# these shares. (The usual name is attention weights; in this file, weights are what is learned.)
#
# What comes after me is masked: a score of minus infinity becomes a share of 0. Without the mask,
# the model would predict the next token by looking at it, and learn nothing. One such set of three
# matrices is a head, and attention with the mask is called causal.


def one_head(x, w_query, w_key, w_value):
    """One head of causal attention: x (B, T, C) and three matrices (C, hs) -> (B, T, hs).

    Vaswani et al. 2017, "Attention is all you need", equation 1, with a mask.
    """
    q = x @ w_query                                         # (B, T, C) @ (C, hs) -> (B, T, hs)
    k = x @ w_key                                           # (B, T, C) @ (C, hs) -> (B, T, hs)
    v = x @ w_value                                         # (B, T, C) @ (C, hs) -> (B, T, hs)
    scores = q @ k.transpose(1, 2)                          # (B, T, hs) @ (B, hs, T) -> (B, T, T)
    scores = scores / math.sqrt(q.shape[-1])
    future = torch.ones_like(scores, dtype=torch.bool).triu(diagonal=1)     # True: comes later
    scores = scores.masked_fill(future, -math.inf)
    shares = F.softmax(scores, dim=-1)                      # (B, T, T), each row sums to 1
    return shares @ v                                       # (B, T, T) @ (B, T, hs) -> (B, T, hs)


# Why divide by sqrt(hs)? The dot product of two vectors of hs random numbers of size 1 (that is
# their standard deviation) has a size of about sqrt(hs). Large scores would let softmax give
# nearly all to one token from the start, and then a small change of the scores changes nothing:
# there is little to learn from.
#
# These are the shares of one head in a trained model that reads "king". Each row says how much the
# token at its left takes from the tokens above. The g takes most from the i.
#
#            k     i     n     g
#     k   1.00
#     i   0.45  0.55
#     n   0.25  0.43  0.32
#     g   0.12  0.48  0.33  0.07
#
# Several heads look at the past side by side, each with queries, keys and values of its own, so a
# token can ask several questions at once. Each head has hs = C / nh, so their results, side by
# side, are C numbers again; one more matrix, proj, mixes them. The class below does for all heads
# at once what one_head does for each. One matrix product makes all queries, keys and values, and
# one function of PyTorch does the rest, the division and the mask included, much faster.


class CausalSelfAttention(nn.Module):
    """All heads of one layer: each token gathers from its past, (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, positions, cache=None):
        """x (B, T, C), tokens that stand at positions (T,). The cache is for chapter 8."""
        B, T, C = x.shape
        nh, hs = self.config.n_head, C // self.config.n_head
        qkv = self.qkv(x).view(B, T, 3, nh, hs)             # (B, T, C) -> (B, T, 3, nh, hs)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                # -> three of (B, nh, T, hs)
        if self.config.position == "rotary":                # explained below
            q, k = rotate(q, positions, self.config), rotate(k, positions, self.config)
        if cache is not None:                               # in chapter 8
            k, v = cache.add(self, k, v)                    # (B, nh, T, hs) -> (B, nh, length, hs)
        dropout = self.config.dropout if self.training else 0.0     # see chapter 6
        causal = T > 1                                      # one new token has no future to mask
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
        y = y.transpose(1, 2).reshape(B, T, C)              # (B, nh, T, hs) -> (B, T, C)
        return self.proj(y)


# One thing is missing. To attention, the tokens before me are a bag: a mean does not know in which
# order its terms came. So each token must know its place. Imagine a set of clocks, from one whose
# hand moves 1 radian per token to a very slow one, which goes round once in ten contexts. Together,
# their hands tell every place, and "three tokens earlier" turns them back by the same angles,
# wherever we are. There are three ways to use them:
#
#     sinusoidal  add the sines and cosines of the hands to what describes a token (Vaswani et al.)
#     learned     the same at first, but trained like all other weights (GPT-2 starts at random)
#     rotary      turn queries and keys along with the hands; a dot product does not change when
#                 both are turned alike, so only the distance counts (Su et al. 2021, "RoFormer")


def clock_angles(positions, n_clocks, config):
    """Where the hands are at positions (T,), in radians, the fastest first: (T, n_clocks)."""
    slowest = 2 * math.pi / (10 * config.block_size)        # radians per token
    speeds = slowest ** torch.linspace(0, 1, n_clocks, device=positions.device)     # (n_clocks,)
    return positions[:, None] * speeds                      # (T, 1) * (n_clocks,) -> (T, n_clocks)


def sinusoids(config):
    """The sines and cosines of C / 2 clocks at each place of the context: (block_size, C)."""
    angles = clock_angles(torch.arange(config.block_size), config.n_embd // 2, config)
    return torch.cat((angles.sin(), angles.cos()), dim=1)   # two of (block_size, C/2) -> one of C


def rotate(x, positions, config):
    """Turn the hs/2 arrows (a[i], b[i]) in x (..., T, hs) like the hands at positions (T,)."""
    a, b = x.chunk(2, dim=-1)                       # (..., T, hs) -> two of (..., T, hs/2)
    angles = clock_angles(positions, a.shape[-1], config)      # (T,) -> (T, hs/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)    # back to (..., T, hs)


# %% 6. GPT
# Attention carries information from token to token. A feed-forward network then works on what each
# token has gathered: it widens the C numbers to 4C, bends each (GELU leaves large positive ones as
# they are and brings large negative ones to 0; Hendrycks & Gimpel 2016), and narrows them to C
# again. Without the bend, the two matrices would do no more than one. Attention and feed-forward
# together are a block, and blocks are stacked: each gathers from what those below have found.
#
# Neither half of a block replaces x; it adds to it (a residual connection). So x runs like a
# stream from bottom to top, and on the way back, the gradient reaches each block directly. What a
# half reads from the stream is first brought to mean 0 and variance 1 for each token, by a
# LayerNorm, which then scales each channel by a learned gain. Dropout sets a random share of the
# numbers to zero in training, so that none is relied on alone.
#
# At the bottom, each token is looked up in the table of embeddings, and its position is added. At
# the top, after a last LayerNorm, a matrix turns the C numbers of each token into V logits for the
# next one. (Its usual name, lm_head, has nothing to do with the heads of attention.)
#
# The first weights are random. A sum of n random terms has sqrt(n) times their size, so a matrix
# with n inputs gets weights of size 1/sqrt(n), and what passes through keeps its size. The last
# matrix of each half of a block is zero, so at first the block adds nothing. (It will not stay
# zero: its gradient is made of what flows into it.) lm_head begins with small numbers, so at first
# all tokens are about equally likely. The embeddings begin small, too, so that what the blocks add
# soon counts. At last, head_start gives tokens channels of their own, and lets the heads of the
# first block look back by 1, 2, 3 ... tokens. That saves many steps; the appendix says why.


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
            nn.GELU(approximate="tanh"),                            # in the form of GPT-2
            nn.Linear(4 * C, C, bias=bias))                         # (B, T, 4C) -> (B, T, C)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, positions, cache=None):
        x = x + self.dropout(self.attention(self.norm_1(x), positions, cache))
        x = x + self.dropout(self.feed_forward(self.norm_2(x)))
        return x


class GPT(nn.Module):
    """Predicts each token from all tokens before: `logits, loss = model(idx, targets)`.

    With bias=True and position="learned" it computes what GPT-2 computes (Radford et al. 2019),
    which also has tie_weights=True: one table for the embedding and lm_head.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.vocab_size, self.block_size = config, config.vocab_size, config.block_size
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
        self.init_weights()

    def forward(self, idx, targets=None, cache=None):
        """idx, targets (B, T) int64 -> logits (B, T, V) and the loss (), None without targets.

        idx follows what is in the cache, if there is one. UserError if they exceed the context.
        """
        start = 0 if cache is None else cache.length
        end = start + idx.shape[1]
        check(end <= self.block_size, f"{end} tokens are more than block_size={self.block_size}")
        positions = torch.arange(start, end, device=idx.device)     # (T,)
        x = self.token_embedding(idx)                               # (B, T) -> (B, T, C)
        if self.config.position != "rotary":
            x = x + self.position_embedding.weight[start:end]       # (B, T, C) + (T, C)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, positions, cache)
        if cache is not None:
            cache.length = end
        x = self.norm(x)
        logits = self.lm_head(x)                                    # (B, T, C) -> (B, T, V)
        loss = None if targets is None else next_token_loss(logits, targets)
        return logits, loss

    @torch.no_grad()
    def init_weights(self):
        """The first weights, as said above."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            nn.init.zeros_(block.attention.proj.weight)
            nn.init.zeros_(block.feed_forward[-1].weight)
        for table in (self.lm_head, self.token_embedding):
            nn.init.normal_(table.weight, std=0.02)
        if self.config.position != "rotary":
            self.position_embedding.weight.copy_(0.03 * sinusoids(self.config))     # of size 0.02
        head_start(self)


# %% 7. Training
# Gradient descent: take a batch and its loss, compute for each weight in which direction it would
# raise the loss, and move all weights a little in the other direction. And again.
#
# Adam (Kingma & Ba 2015) keeps, for each weight, a mean of its latest gradients, and divides it by
# their typical size, so that all weights learn at a similar pace. The W of AdamW (Loshchilov &
# Hutter 2019) is for weight decay: the matrices shrink a little in each step, so that only numbers
# that the data keeps asking for stay large. And clipping: the gradient of all weights, taken as one
# long vector, is shortened to the length grad_clip if it is longer, lest one batch lead astray.
#
# The learning rate says how far a step goes. It grows at first, while Adam's means rest on few
# gradients, and then falls to zero, because large steps come near a low loss quickly, and small
# steps come closer still.


def build_optimizer(model, config):
    """AdamW. Only matrices decay, not vectors (biases and LayerNorms)."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in trained if weight.dim() >= 2]
    vectors = [weight for weight in trained if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    fused = trained[0].device.type in ("cpu", "cuda")       # the same, computed faster
    # betas: how much of the old means is kept in each step, of the gradients and of their sizes.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=fused)


def learning_rate_at(step, config):
    """The lower of two lines: one grows for warmup_steps, the other falls to zero.

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
    torch.manual_seed(own_seed(step, config))           # for dropout; in each process another
    x, y = get_batch(data, step, config)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):  # on GPUs, 16 bits
        _, loss = model(x, y)
    optimizer.zero_grad()                               # forget the gradients of the step before
    loss.backward()
    loss = average_over_processes(model, loss.detach())     # with one process: changes nothing
    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    return loss


# How good is the model by now? The loss of a few random batches would be a noisy answer. Instead,
# predict all of the validation split, read in windows of the length of the context, side by side:
# the same answer each time. (The first tokens of a window see little, so it is a bit too strict.)


@torch.no_grad()
def evaluate(model, data):
    """Mean loss, in nats per token, over all tokens of data (N,) except the first -> float."""
    check_range("the number of tokens to evaluate with", len(data), 2)
    T = model.block_size
    x, y = data[:-1].long(), data[1:].long()                # (N,) -> two of (N-1,)
    missing = -len(x) % T                                   # to fill the last window
    x = F.pad(x, (0, missing)).view(-1, T)                  # (N-1,) -> (windows, T)
    y = F.pad(y, (0, missing), value=-100).view(-1, T)      # cross_entropy ignores -100
    rows = max(1, 2048 // T)                                # windows to compute at once
    was_training = model.training
    model.eval()                                            # no dropout
    total = 0.0
    for inputs, targets in zip(x.split(rows), y.split(rows)):
        _, loss = model(inputs, targets)
        total += loss.item() * (targets >= 0).sum().item()
    model.train(was_training)
    return total / (len(data) - 1)


@dataclass
class Report:
    """Where a training stands. With the model's weights, it is all that is needed to go on."""

    optimizer: torch.optim.Optimizer
    step: int = 0                                   # steps that have been made
    loss_sum: float = 0.0                           # of the batches since the last evaluation
    train_loss: float | None = None                 # after an evaluation: the mean of those losses
    val_loss: float | None = None                   # after an evaluation: what it found
    history: list = field(default_factory=list)     # a dict for each evaluation
    best: dict | None = None                        # the weights that had the lowest val_loss
    seconds: float = 0.0                            # for the caller, to note how long it took


def train(model, train_data, val_data, config, report=None):
    """Train `model` in place on tokens (N,). A generator: each turn of a loop over it is one step.

    It yields its Report, the same object each time, and the caller may look, print, save, or stop:

        for report in train(model, train_data, val_data, config):
            if report.val_loss is not None:
                print(report.step, report.train_loss, report.val_loss)

    Given the report of an earlier training, and a model with its weights, it goes on from there.
    """
    report = report or Report(build_optimizer(model, config))
    model.train()                                   # with dropout
    while report.step < config.max_steps:
        loss = training_step(model, report.optimizer, train_data, report.step, config)
        report.step += 1
        report.loss_sum += loss
        report.train_loss = report.val_loss = None
        if report.step % config.eval_interval == 0 or report.step == config.max_steps:
            record(report, evaluate(model, val_data), model)
        yield report


def record(report, val_loss, model):
    """Note the losses, and keep the best weights: later ones may have learned the text by heart."""
    steps_before = report.history[-1]["step"] if report.history else 0
    report.train_loss = float(report.loss_sum) / (report.step - steps_before)
    report.val_loss = val_loss
    if report.best is None or val_loss < min(row["val_loss"] for row in report.history):
        report.best = {name: weight.clone() for name, weight in model.state_dict().items()}
    learning_rate = report.optimizer.param_groups[0]["lr"]
    report.history.append({"step": report.step, "train_loss": report.train_loss,
                           "val_loss": val_loss, "learning_rate": learning_rate})
    report.loss_sum = 0.0


# %% 8. Writing
# The model gives probabilities; a text needs decisions. The plain way: show the model as much of
# the text as fits, draw the next token by its probabilities, append it, and again.


@torch.no_grad()
def write(model, idx, max_new_tokens):
    """Continue idx (B, T) -> (B, T + max_new_tokens)."""
    for _ in range(max_new_tokens):
        logits, _ = model(idx[:, -model.block_size:])               # (B, T) -> (B, T, V)
        probs = F.softmax(logits[:, -1], dim=-1)                    # (B, T, V) -> (B, V)
        token = torch.multinomial(probs, num_samples=1)             # (B, V) -> (B, 1)
        idx = torch.cat((idx, token), dim=1)                        # (B, T), (B, 1) -> (B, T+1)
    return idx


# Taking the likeliest token each time (greedy) makes a dull text that soon repeats itself. Drawing
# by the probabilities as they are lets in, now and then, a token that spoils it. Between the two
# there are three dials:
#
#     temperature     divides the logits: below 1 favours the likely, above 1 makes all more alike
#     top_k           draw only from the k likeliest tokens
#     top_p           draw only from the fewest tokens, the likeliest first, that have p together


def next_token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """What to draw the next token by: logits (B, V) -> probabilities (B, V), each row sums to 1.

    The dials work in the order temperature, top_k, top_p (top_p is from Holtzman et al. 2020). The
    likeliest token is kept in any case.

    >>> logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    >>> next_token_probabilities(logits, top_p=0.7)
    tensor([[0.6667, 0.3333, 0.0000, 0.0000]])
    """
    if temperature == 0:                                    # greedy
        temperature, top_k = 1.0, 1
    logits = logits - logits.amax(dim=-1, keepdim=True)     # the same odds, and nothing overflows
    probs = F.softmax(logits / temperature, dim=-1)
    if top_k is None and top_p is None:
        return probs
    probs, tokens = probs.sort(dim=-1, descending=True)     # the likeliest first, and who they are
    if top_k is not None:
        probs[:, max(1, top_k):] = 0
        probs = probs / probs.sum(dim=-1, keepdim=True)
    if top_p is not None and top_p < 1:
        likelier = probs.cumsum(dim=-1) - probs             # what all before this one have together
        probs[:, 1:][likelier[:, 1:] >= top_p] = 0          # never the first one
        probs = probs / probs.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, tokens, probs)       # each back in its place


# The plain way computes all of the context again for each token. There is no need: since a token
# sees nothing of what comes after it, its keys and values never change. A cache keeps them, and
# then only the newest token has to be computed. The text is the same, but it comes faster. (The
# same up to rounding: sums are made in another order.)


class Cache:
    """The keys and values of all tokens so far, for each attention layer."""

    def __init__(self):
        self.layers = {}                        # layer -> keys and values, both (B, nh, room, hs)
        self.length = 0                         # tokens so far; there may be room for more

    def add(self, layer, k, v):
        """Append k, v (B, nh, T, hs) to those of a layer -> all, two of (B, nh, length, hs)."""
        if self.length == 0:
            self.layers[layer] = k, v
            return k, v
        # Several new tokens would need a mask of their own, beside all of the past.
        check(k.shape[2] == 1, f"a filled cache takes one token at a time, not {k.shape[2]}")
        end = self.length + 1
        all_k, all_v = self.layers[layer]
        if end > all_k.shape[2]:                # make the room twice as large
            all_k = torch.cat((all_k, torch.empty_like(all_k)), dim=2)
            all_v = torch.cat((all_v, torch.empty_like(all_v)), dim=2)
            self.layers[layer] = all_k, all_v
        all_k[:, :, self.length:end], all_v[:, :, self.length:end] = k, v
        return all_k[:, :, :end], all_v[:, :, :end]


# And when the text is longer than the context? The plain way drops the oldest token for each new
# one. But then all others move one place down, and what the cache knows of them, from their old
# positions and with the dropped token in sight, no longer holds. So when the context is full, we
# drop half of it at once, and read the rest anew: one long step, then half a context of short ones.


@torch.inference_mode()                         # like no_grad, and a little faster
def stream_tokens(model, idx, max_new_tokens, dials, use_cache=True, generator=None):
    """Yield each new token (B, 1) once it is drawn. dials: temperature, top_k and top_p."""
    use_cache = use_cache and isinstance(model, GPT)                # a bigram has nothing to keep
    start, cache = max(0, idx.shape[1] - model.block_size), Cache()
    for _ in range(max_new_tokens):
        if idx.shape[1] - start > model.block_size:     # keep the later half, and the newest token
            start, cache = idx.shape[1] - model.block_size // 2 - 1, Cache()
        if use_cache:
            unread = idx[:, start + cache.length:]                  # all of it, or the last token
            logits, _ = model(unread, cache=cache)                  # (B, T) -> (B, T, V)
        else:
            logits, _ = model(idx[:, start:])                       # (B, T) -> (B, T, V)
        probs = next_token_probabilities(logits[:, -1], *dials)     # (B, T, V) -> (B, V)
        token = torch.multinomial(probs, 1, generator=generator)    # (B, V) -> (B, 1)
        idx = torch.cat((idx, token), dim=1)                        # (B, T), (B, 1) -> (B, T+1)
        yield token


def generate(model, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, use_cache=True,
             generator=None):
    """Continue idx (B, T) int64 by max_new_tokens drawn tokens -> (B, T + max_new_tokens).

    temperature, top_k, top_p: the dials, see above; a temperature of 0 is greedy. use_cache: False
    computes each window anew, to the same text. generator: a torch.Generator to draw with, for a
    text that can be repeated. The model works in eval mode and is left in the mode in which it was.
    Without dials, and while the text fits the context, it draws what `write` draws. Raises
    UserError for values that make no sense.
    """
    dials = (temperature, top_k, top_p)
    check_sampling(model, idx, max_new_tokens, *dials)
    was_training = model.training
    model.eval()
    new_tokens = list(stream_tokens(model, idx, max_new_tokens, dials, use_cache, generator))
    model.train(was_training)
    return torch.cat((idx, *new_tokens), dim=1)             # (B, T), many (B, 1) -> (B, T + new)


# %% 9. The run
# All of it in order, on a real text: this is what `python gpt.py` does and shows. In the end, on
# Tiny Shakespeare, this is what the GPT writes. It was shown nothing but characters, and has found
# words, the names of speakers, and the layout of a play:
#
#     MENENIUS:
#     If heaven in this face: therefore; for
#     the gracious soul right shin the name.
#
#     DUKE VINCENTIO:
#     Most blood not you poison, for good.
#
# Where does each model know what comes? The darker the shade, the more probable it found the
# character above. The bigram is lost nearly everywhere; the GPT mostly where a word begins. (Its
# first guess is right for 16% of the first letters of words and for 63% of the others; the bigram's
# for 11% and 24%.)
#
#             Baptista.↵↵BAPTISTA:↵Good morrow, neighbour Gremio.↵God sav
#     bigram  ▒    ░▒░░ █▒░   ░ ░ ░█ ▒░ ▓░░░ ░░ █ ░ ░░ ░▒▒▒ ░▒ ░░ █ ▒ ▓░ ░
#     GPT     ▓ ▒ ███▓█ ██░░▒███████░▓▓██▒░▓░██▒█ ░░▒█▓███▓ ▒▓▒██░█ █▒▓░░░
#
# And this is the table of results, from the whole validation split. (Perplexity is exp(val_loss):
# the model is as unsure as if it chose among that many tokens, all equally likely.)
#
#     model    parameters  val_loss  bits/char  perplexity  seconds
#     uniform           0    4.1744     6.0224       65.00        -
#     bigram        4,225    2.4921     3.5953       12.09      0.5
#     GPT         619,904    1.5940     2.2997        4.92     98.2


def run(keeper, train_text, val_text, config, *, prompt=None, demo_check=None, device="cpu",
        compile=False, saved=None):
    """Train a bigram and a GPT on a text and compare them; the keeper leaves the files of the run.

    keeper: see What is kept; prompt: what the samples begin with; demo_check: looks at the models
    in the end; compile: by torch.compile; saved: the run to go on with, from load_run. Returns
    whether the check held, True without one. Raises UserError for a text that is too short.
    """
    tokenizer = saved.tokenizer if saved else build_tokenizer(train_text, val_text, config)
    config = replace(config, vocab_size=tokenizer.vocab_size)
    train_data, val_data = (encode_all(t, tokenizer).to(device) for t in (train_text, val_text))
    check_range("the number of tokens to train on", len(train_data), config.block_size + 1)
    check_range("the number of tokens to validate with", len(val_data), 2)
    tokens_per_character = len(val_data) / len(val_text)
    show_data(train_text, val_text, tokenizer, train_data, val_data, config)       # chapters 1 to 3

    heading("4. Bigram")
    bigram, bigram_seconds = ((saved.bigram, None) if saved else
                              train_bigram(train_data, val_data, config))

    torch.manual_seed(config.seed)                  # for the first weights
    model = saved.model if saved else GPT(config).to(device)
    show_model(model, train_data)                                                   # 5 and 6

    heading("7. Training")
    if compile:
        model.compile()
    report = saved.report if saved else Report(build_optimizer(model, config))
    keeper.about = {"config": asdict(config), "text_sha256": sha256_of(train_text + val_text),
                    "vocabulary": tokenizer.vocabulary, "bigram": bigram and bigram.state_dict()}
    train_and_show(model, train_data, val_data, config, report, keeper)
    if process() > 0:                               # of several processes, the first does the rest
        return True
    model = built(GPT, config, report.best)                 # with the best weights, and uncompiled
    models = {"bigram": bigram, "GPT": model} if bigram else {"GPT": model}
    losses = {name: evaluate(model, val_data) for name, model in models.items()}
    show_curve(report.history, losses.get("bigram"))

    heading("8. Writing")
    prompt = prompt or first_prompt(tokenizer)
    samples = {name: continue_text(model, tokenizer, prompt, SAMPLE_TOKENS, config.seed,
                                   temperature=0.8) for name, model in models.items()}
    side_by_side(samples)

    heading("9. The run")
    show_surprise(models, tokenizer, val_data)
    seconds = {"bigram": bigram_seconds, "GPT": report.seconds}
    print_results([("uniform", 0, math.log(config.vocab_size), None)] +
                  [(name, count_parameters(model), losses[name], seconds[name])
                   for name, model in models.items()], tokens_per_character)
    keeper.save_samples(samples)
    return demo_check is None or show_check(demo_check(model, bigram, tokenizer, val_text))


# %% Appendix: Pieces of words
# Characters are small steps: a context of 64 of them is a dozen words. Byte-pair encoding makes
# larger tokens (Sennrich et al. 2016; on bytes, as here, in GPT-2). In UTF-8, every text is a row
# of bytes, so it starts from the 256 possible ones, and no text can hold an unknown token. Then the
# pair of neighbours that occurs most often becomes a new token, again and again:
#
#     a a a b d a a a b a c       the pair a a is the most frequent: X = a a
#     X a b d X a b a c           now a b, and X a too; the lower ids first: Y = a b
#     X Y d X Y a c               now it is X Y: Z = X Y
#     Z d Z a c                   11 tokens have become 5
#
# The text is cut into words first, each with the space before it, so no token reaches across words.

import functools
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from itertools import pairwise


@functools.cache
def word_pattern():
    """As GPT-2 cuts: ends of words as in it's and we'll, letters, numbers, the rest, white space.

    >>> word_pattern().findall("I've 2  cats.")
    ['I', "'ve", ' 2', ' ', ' cats', '.']
    """
    characters = map(chr, range(sys.maxunicode + 1))            # all of Unicode takes 0.3 seconds
    numbers = "".join(c for c in characters if unicodedata.category(c).startswith("N"))
    letter = rf"[^\W_{numbers}]"                                # \w is letters, numbers and _
    space = r"[^\S\x1c-\x1f]"                                   # Python has these four as space
    other = r"(?:[^\s\w]|[_\x1c-\x1f])"
    return re.compile(rf"'(?:[stmd]|re|ve|ll)| ?{letter}+| ?[{numbers}]+| ?{other}+|"
                      rf"{space}+(?![\S\x1c-\x1f])|{space}+")


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


def most_frequent(counts):
    """The pair with the highest count; of several, that of the lowest ids."""
    return max(counts, key=lambda pair: (counts[pair], -pair[0], -pair[1]), default=None)


def find_merges_plainly(text, vocab_size):
    """The pairs to join, in their order.

    >>> find_merges_plainly("aaabdaaabac", 259)     # the bytes 97 and 98 are a and b
    [(97, 97), (97, 98), (256, 257)]
    """
    words, merges = [list(word.encode()) for word in word_pattern().findall(text)], []
    for new_id in range(256, vocab_size):
        merges.append(most_frequent(Counter(pair for word in words for pair in pairwise(word))))
        words = [join_pair(word, merges[-1], new_id) for word in words]
    return merges


# The same, but faster: each different word is looked at once, however often it occurs, and only
# those words are counted again that the new token has changed. (And it says when pairs run out.)


def find_merges(text, vocab_size):
    """The pairs to join, in their order. UserError if the text has too few that occur twice."""
    words = Counter(word_pattern().findall(text))
    ids = {word: list(word.encode(errors="replace")) for word in words}
    counts, places = Counter(), defaultdict(set)    # of each pair: how often? and in which words?

    def count(word, sign):
        for pair in pairwise(ids[word]):
            counts[pair] += sign * words[word]
            places[pair].add(word)

    for word in words:
        count(word, 1)
    merges = []
    for new_id in range(256, vocab_size):
        pair = most_frequent(counts)
        check(counts[pair] > 1, f"the text is too short for vocab_size={vocab_size}; its pairs of "
                                f"tokens make {new_id} at most")
        for word in places.pop(pair):
            count(word, -1)
            ids[word] = join_pair(ids[word], pair, new_id)
            count(word, 1)
        merges.append(pair)
    return merges


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
        self.merges = self.vocabulary = merges
        self.bytes = [bytes([i]) for i in range(256)]
        for pair in merges:
            check_ids(pair, len(self.bytes))
            self.bytes.append(self.bytes[pair[0]] + self.bytes[pair[1]])
        self.vocab_size = len(self.bytes)
        self.ids = {pair: i for i, pair in enumerate(merges, start=256)}
        self.encode_word = functools.cache(self.encode_word)          # most words come again

    def encode(self, text):
        """str -> list of int. Any text can be encoded."""
        return [i for word in word_pattern().findall(text) for i in self.encode_word(word)]

    def encode_word(self, word):
        """Join pairs in the order in which they were found."""
        ids = list(word.encode(errors="replace"))
        while pairs := [pair for pair in pairwise(ids) if pair in self.ids]:
            first = min(pairs, key=self.ids.get)
            ids = join_pair(ids, first, self.ids[first])
        return ids

    def decode(self, ids):
        """list of int -> str; bytes that are no UTF-8 become U+FFFD. Raises UserError."""
        check_ids(ids, self.vocab_size)
        return b"".join(self.bytes[i] for i in ids).decode(errors="replace")


def build_tokenizer(train_text, val_text, config):
    """The tokenizer that config asks for. Pieces of words are found in the training split alone."""
    if config.tokenizer == "char":
        return build_char_tokenizer(train_text + val_text)
    announce(f"finding {config.vocab_size - 256:,} pieces of words")
    return BPETokenizer(find_merges(train_text, config.vocab_size))


def encode_all(text, tokenizer):
    """The tokens of a whole text, a tensor (N,) of the smallest type of integers that serves."""
    V = tokenizer.vocab_size
    dtype = torch.uint8 if V <= 2**8 else torch.int16 if V <= 2**15 else torch.int32
    # In parts, since a list takes much more room than a tensor. (A word may be cut between two.)
    parts = [text[i:i + 10**6] for i in range(0, len(text) + 1, 10**6)]
    return torch.cat([torch.tensor(tokenizer.encode(part), dtype=dtype) for part in parts])


# %% Appendix: The demos
# Runs that check themselves. A check looks at what the models do in the end, and returns a list of
# findings, pairs of (whether it held, what was checked).

import ast
import copy
import random
import string
import textwrap
from itertools import groupby, takewhile


def check_pattern(pattern, model, bigram, tokenizer, val_text):
    """Does the model go on with the pattern from everywhere, 10 times over, when it is greedy?"""
    places, n = len(pattern), 10 * len(pattern)
    data = torch.tensor(tokenizer.encode(12 * pattern), device=device_of(model))        # (N,)
    true = data.unfold(0, n + 2, 1)[:places]                # (N,) -> (places, n+2), from each place
    written = generate(model, true[:, :2], n, temperature=0)            # (places, n+2)
    right, total = (written == true)[:, 2:].sum().item(), places * n
    return [(right == total,
             f"from each of the {places} places in {pattern!r}, greedy writing goes on with it: "
             f"{right:,} of {total:,} characters are right, {100 * right // total}%")]


def check_architecture(model, bigram, tokenizer, val_text):
    """What must be true of any GPT, whatever it has learned, and what training must do."""
    V, half = model.vocab_size, model.block_size // 2
    data = encode_all(val_text, tokenizer).to(device_of(model))
    x, y = get_batch(data, 0, model.config)
    later = torch.cat((x[:, :half], (x[:, half:] + 1) % V), dim=1)
    with torch.no_grad():
        logits, changed = model(x)[0], model(later)[0]
    changed = (changed != logits).any(dim=-1).any(dim=0)                    # (B, T, V) -> (T,)
    learner = copy.deepcopy(model).train()
    learner(x, y)[1].backward()
    trained = [p for p in learner.parameters() if p.requires_grad]
    reached = [p.grad is not None and bool(p.grad.any()) for p in trained]
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
        (changed.tolist() == [t >= half for t in range(model.block_size)],
         "causality: other tokens in the later half change the logits there, and none before"),
        (all(reached), f"gradients: they reach {sum(reached)} of {len(reached)} weight tensors"),
        (loss < 0.05, f"learning: in 200 steps the loss on one fixed batch falls to {loss:.4f}"),
        (abs(fresh - nothing) < 0.1,
         f"honesty: on fresh random tokens the loss stays at {fresh:.2f}; ln({V}) = {nothing:.2f}, "
         f"and there is nothing to learn")]


# Python's own standard library is the text of the last demo: the modules that people wrote by hand,
# without tests and without tables that a program made. Every tenth file is held out.

PYTHON_FILES = """[a-z]*.py asyncio/*.py collections/*.py concurrent/futures/*.py ctypes/*.py
    curses/*.py dbm/*.py email/*.py html/parser.py http/*.py importlib/*.py json/*.py logging/*.py
    multiprocessing/*.py sqlite3/*.py tkinter/*.py unittest/*.py urllib/*.py venv/*.py wsgiref/*.py
    xml/*/*.py xmlrpc/*.py zoneinfo/*.py"""
FUNCTION_TOKENS = 400               # the most that the demo writes of a function


def python_texts():
    """The standard library of the Python that runs this: (nine files in ten, the others)."""
    folder = Path(ast.__file__).parent
    files = sorted(path for pattern in PYTHON_FILES.split() for path in folder.glob(pattern))
    check(len(files) >= 10, f"this Python has no standard library as .py files in {folder}")
    texts = [path.read_text(encoding="utf-8") for path in files]
    train_text = "".join(text for i, text in enumerate(texts) if i % 10 != 5)
    return train_text, "".join(texts[5::10])[:3 * HELD_OUT]         # a token has about 3 characters


def first_function(text):
    """The function with which `text` begins, up to its end; is it whole, and correct Python?

    >>> first_function("  def f(x):\\n    return x\\n  y = 1\\n  z = ")
    ('def f(x):\\n  return x\\n', True)
    """
    header, *lines = text.split("\n")[:-1] or [""]          # the last line may not be whole
    indent = len(header) - len(header.lstrip())
    body = takewhile(lambda line: not line.strip() or line[:indent + 1].isspace(), lines)
    code = textwrap.dedent("\n".join([header, *body])).rstrip() + "\n"
    try:
        with warnings.catch_warnings(action="ignore"):      # of backslashes that Python finds odd
            statements = ast.parse(code).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):      # last: nested deeply
        return code, False
    return code, len(statements) == 1 and isinstance(statements[0], ast.FunctionDef)


def share_of_functions(model, tokenizer, headers):
    """Which share of functions, carefully completed from their first lines, does Python accept?"""
    generator = torch.Generator(device_of(model)).manual_seed(0)
    prompts, accepted = [tokenizer.encode("\n" + header) for header in headers], []
    for _, group in groupby(sorted(prompts, key=len), key=len):        # one length at a time
        announce(f"completing functions: {len(accepted)} of {len(headers)}")
        idx = torch.tensor(list(group), device=device_of(model))        # (B, T)
        written = generate(model, idx, FUNCTION_TOKENS, temperature=0.3, generator=generator)
        accepted += [first_function(tokenizer.decode(row)[1:])[1] for row in written.tolist()]
    return sum(accepted) / len(accepted)


def check_python(model, bigram, tokenizer, val_text):
    """How well does the model know Python, in files and functions that were held out?"""
    for prompt in ("\ndef forward(self, x):", "\nimport "):
        written = continue_text(model, tokenizer, prompt, 100, temperature=0.3)
        print(visible("\n".join(written.split("\n")[:6])))
    headers = re.findall(r"^ *def \w+\(.*\).*:(?=\n)", val_text, flags=re.MULTILINE)
    headers = headers[::max(1, len(headers) // 200)][:200]
    data = encode_all(val_text, tokenizer).to(device_of(model))
    bytes_per_token = len(tokenizer.decode(data.tolist()).encode()) / len(data)
    writers = (model, bigram or model)
    bits = [evaluate(writer, data) / math.log(2) / bytes_per_token for writer in writers]
    shares = [share_of_functions(writer, tokenizer, headers) for writer in writers]
    return [
        (bits[0] <= bits[1],
         f"held-out files cost {bits[0]:.3f} bits per byte, and {bits[1]:.3f} with the bigram"),
        (shares[0] >= 0.5,
         f"of {len(headers)} functions from held-out files, given the first line, Python accepts "
         f"{shares[0]:.1%} as the GPT completes them, {shares[1]:.1%} as the bigram does; at least "
         f"50% are asked of the GPT")]


HELLO, COUNT = "hello world\n", "0 1 2 3 4 5 6 7 8 9 "
HUNDRED = string.printable[:94] + "ÄÖÜäöü"          # so many different characters
SMALL = dict(block_size=16, n_layer=2, n_embd=32, max_steps=200, warmup_steps=20, eval_interval=50)
DEMOS = {           # name: (a line for --help, both texts, a prompt, the check, settings)
    "hello": ("a phrase, again and again: it goes on with it from anywhere",
              lambda: split(500 * HELLO), "he", functools.partial(check_pattern, HELLO), SMALL),
    "count": ("0 1 2 ... 9 0 1 ..., with about 5,000 weights",
              lambda: split(500 * COUNT), "0 ", functools.partial(check_pattern, COUNT),
              dict(SMALL, block_size=64, n_layer=1, n_head=2, n_embd=16, max_steps=300,
                   learning_rate=1e-2)),
    "random": ("random tokens: is the architecture sound?",
               lambda: split("".join(random.Random(1337).choices(HUNDRED, k=100_000))), "!",
               check_architecture, SMALL),
    "coder": ("Python's standard library, in pieces of words: it completes functions; minutes",
              python_texts, "def ", check_python,
              dict(tokenizer="bpe", vocab_size=1024, block_size=128, n_layer=4, batch_size=8,
                   max_steps=5000, position="rotary")),
}


# %% Appendix: GPT-2
# The weights of GPT-2 were published in 2019, and the classes of chapters 5 and 6 can use them:
# there are more blocks, heads and channels, and nothing else is new.
# `python gpt.py sample gpt2 --prompt "Alan Turing"` downloads four files: the settings, the pieces
# of words, the order in which they are joined, and the weights.

import json

PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")    # 0.5, 1.5, 3.2 and 6.4 GB
GPT2_URL = "https://huggingface.co/openai-community/{}/resolve/main/"
GPT2_FILES = ("config.json", "vocab.json", "merges.txt", "model.safetensors")
END = "<|endoftext|>"               # one token; in its training, it stood between two texts

# Settings that ours has no name for, and what they must be if they are there.
GPT2_SETTINGS = {"model_type": "gpt2", "activation_function": "gelu_new",
                 "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
                 "scale_attn_by_inverse_layer_idx": False}
GPT2_NAMES = {                      # of its modules, and what they are called here
    "wte.": "token_embedding.", "wpe.": "position_embedding.", "h.": "blocks.", "ln_f.": "norm.",
    "ln_1.": "norm_1.", "attn.c_attn.": "attention.qkv.", "attn.c_proj.": "attention.proj.",
    "ln_2.": "norm_2.", "mlp.c_fc.": "feed_forward.0.", "mlp.c_proj.": "feed_forward.2."}


def published(name):
    """The folder of a published GPT-2. Downloads what is missing; UserError if that fails."""
    folder, url = DATA / name, GPT2_URL.format(name)
    while missing := [file for file in GPT2_FILES if not (folder / file).exists()]:
        try:
            download(url + missing[0], folder / missing[0])
        except requests.RequestException as error:
            raise UserError(f"{folder} has no {', '.join(missing)}, and they cannot be downloaded "
                            f"({type(error).__name__}); save them there, from {url}") from error
    return folder


def read_safetensors(path):
    """Yield (name, tensor) of a file: a length in 8 bytes, a header in JSON, then the numbers."""
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    with open(path, "rb") as file:
        size, length = path.stat().st_size, int.from_bytes(file.read(8), "little")
        check(8 + length <= size, f"{path.name} is shorter than its header")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = (8 + length + offset for offset in about["data_offsets"])
            check(begin == file.tell() and end <= size, f"{name} is not where it should be")
            numbers = bytearray(end - begin)
            file.readinto(numbers)
            if not name.endswith((".attn.bias", ".attn.masked_bias")):      # masks; ours has none
                tensor = torch.frombuffer(numbers, dtype=dtypes[about["dtype"]])
                yield name, tensor.view(about["shape"]).float()
        check(file.tell() == size, f"{path.name} has numbers that belong to no weight")


class GPT2Tokenizer(BPETokenizer):
    """A BPETokenizer with END, and with the ids that are published: {piece: id}, pairs to join.

    In both, there is a visible character for each byte; the space is \u0120, and ! is itself.
    """

    def __init__(self, vocabulary, merges):
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = sorted(set(range(256)) - set(printable))       # 68 bytes, shown as 256, 257, ...
        letters = dict(zip(printable + others, map(chr, [*printable, *range(256, 324)])))
        pieces = [letters[i] for i in range(256)] + [left + right for left, right in merges]
        ours = {piece: i for i, piece in enumerate(pieces)}     # the ids in BPETokenizer
        super().__init__([(ours[left], ours[right]) for left, right in merges])
        self.bytes.append(END.encode())
        self.vocab_size += 1
        self.to_published = [vocabulary.get(piece) for piece in (*pieces, END)]
        self.to_ours = {i: place for place, i in enumerate(self.to_published)}
        check(self.to_ours.keys() == set(range(len(vocabulary))) == set(range(self.vocab_size)),
              "its vocabulary is not 256 bytes, what its merges make of them, and END")

    def encode(self, text):
        """str -> list of int. Any text can be encoded."""
        ids = []
        for part in text.split(END):
            ids += [self.vocab_size - 1, *super().encode(part)]         # an END too many, the first
        return [self.to_published[i] for i in ids[1:]]

    def decode(self, ids):
        """list of int -> str; bytes that are no UTF-8 become U+FFFD. Raises UserError."""
        check_ids(ids, self.vocab_size)
        return super().decode([self.to_ours[i] for i in ids])


def load_gpt2(folder):
    """(model, tokenizer) of a GPT-2, ready to write with, from the files in which it is published.

    Raises UserError unless they are whole, and of the architecture of GPT-2.
    """
    folder = Path(folder)
    with refusal(f"{folder} has no GPT-2 that can be used"):
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for name, wanted in GPT2_SETTINGS.items():
            there = about.get(name, wanted)
            check(there == wanted, f"{name} is {there!r} in config.json, not {wanted!r}")
        sizes = {name: about[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
        config = Config(tokenizer="bpe", block_size=about["n_positions"], **sizes,
                        tie_weights=about.get("tie_word_embeddings", True))
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        tokenizer = GPT2Tokenizer(vocabulary, [line.split(" ") for line in lines
                                               if line and not line.startswith("#version")])
        check(tokenizer.vocab_size == config.vocab_size,
              f"{tokenizer.vocab_size} pieces of words do not fit vocab_size={config.vocab_size}")
        weights = {}
        for name, weight in read_safetensors(folder / "model.safetensors"):
            name = name.removeprefix("transformer.")
            if re.search(r"\.c_\w+\.weight$", name):
                weight = weight.t().contiguous()            # (inputs, outputs), not as in nn.Linear
            for theirs, ours in GPT2_NAMES.items():
                name = name.replace(theirs, ours)
            check(name not in weights, f"{name} is there twice")
            weights[name] = weight
        if config.tie_weights:
            weights["lm_head.weight"] = weights["token_embedding.weight"]
        return built(GPT, config, weights), tokenizer


def load_model(path):
    """(model, tokenizer), from a checkpoint or from the folder of a GPT-2."""
    return load_gpt2(path) if Path(path).is_dir() else load_checkpoint(path)


# %% Appendix: A head start
# With the first weights of chapter 6, everything works. But much of the training then goes into two
# simple findings, which can be given to the model from the start. What they gain, in loss on the
# validation split of Tiny Shakespeare:
#
#                                                420 steps     3,000 steps
#     the first weights of chapter 6               2.055           1.675
#     and channels of their own for tokens         2.000           1.624
#     and heads that look back                     1.873           1.590
#
# (Means of three seeds, which differ by 0.02 at most. Without the channels, to look back does harm
# in a short training: the tokens blur what the heads look at.)
#
# Channels of their own. Tokens write to the last quarter of the stream, positions to all of it, and
# lm_head reads the other three quarters. So tokens do not blur what the positions say there. And
# lm_head can begin at full size, its rows all different: the gradient reaches the blocks through
# these rows, so each target pulls in a direction of its own, from the first step on. Still, all
# tokens begin about equally likely, since no token writes where lm_head reads.
#
# Looking back. What came a few tokens ago matters in every language. Yet heads with random queries
# and keys bring a mean of nearly everything, from which there is little to learn; and they become
# better only as fast as others learn to use what they bring. So let head h of the first block look
# h + 1 tokens back. The block is silent at first, since proj is zero. But the gradient of proj is
# made of what the heads bring, and what would help: if they bring the four characters before this
# one, one by one, then proj learns in its first steps what follows them. From there, all is free.
#
# How does a head look back? By the clocks of chapter 5. Its keys show the hands of some clocks, its
# queries the same hands, turned back by h + 1 tokens: they agree best with the key that is there.


@torch.no_grad()
def head_start(model):
    """Change the first weights of a GPT, as said above."""
    config, qkv = model.config, model.blocks[0].attention.qkv
    C, nh = config.n_embd, config.n_head
    if config.tie_weights and config.position != "rotary":
        return                                                  # tokens would blur the positions
    if not config.tie_weights:
        quarter = max(1, C // 4)
        nn.init.zeros_(model.token_embedding.weight[:, :-quarter])
        nn.init.normal_(model.token_embedding.weight[:, -quarter:], std=1.0)
        nn.init.normal_(model.lm_head.weight[:, :-quarter], std=1 / math.sqrt(C))
        nn.init.zeros_(model.lm_head.weight[:, -quarter:])
        if config.position != "rotary":
            model.position_embedding.weight.mul_(10)            # still softer than the tokens

    n = C // nh // 2                                            # clocks in a head: the n fastest
    if config.position != "rotary":
        heads = qkv.weight.view(3, nh, -1, C)                   # (3C, C) -> (3, nh, hs, C)
        keys = torch.eye(C).roll(C // 2, dims=1)                # (C, C): cosines, then sines
    elif config.bias:                                           # constants: attention turns them
        heads = qkv.bias.view(3, nh, -1, 1)                     # (3C,) -> (3, nh, hs, 1)
        nn.init.zeros_(qkv.weight[:2 * C])
        keys = torch.cat((torch.ones(1, n), torch.zeros(1, n)), dim=1)      # (1, 2n), hands at 0
    else:
        return                                                  # there is no place for a constant
    for h in range(nh):
        queries = rotate(keys, torch.tensor([-1 - h]), config)  # turned back; the shape of keys
        for part, hands in enumerate((queries, keys)):
            cosines, sines = hands.chunk(2, dim=1)              # (C, C) -> two of (C, C/2)
            hands = torch.cat((cosines[:, :n], sines[:, :n]), dim=1)        # (C, 2n)
            heads[part, h, :2 * n] = 6 * hands.T                # (2n, C); 6 is large enough


# %% Appendix: What is kept
# Files are written beside their place and moved there when they are whole. So a stop at any moment,
# by Ctrl-C, kill -9 or a dead battery, loses nothing that was saved. And no run writes over
# another: what it finds under its name, it sets aside.

import contextlib
import glob
import io
import os
import shlex
import time
from types import SimpleNamespace

FORMAT = "gpt.py checkpoint 3"
ENDINGS = (".pt", ".csv", "-bigram.txt", "-gpt.txt")            # the files of a run
LOG_COLUMNS = ("step", "train_loss", "val_loss", "learning_rate")
SAVE_SECONDS = 60                   # the work that a stop may cost


@contextlib.contextmanager
def whole_file(path):
    """A file to write bytes to; it gets its name when it is whole. A link stays a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path = Path(os.path.realpath(path))
    for half in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):    # left by kill -9
        with contextlib.suppress(OSError):              # another run may clear away as well
            if time.time() - half.stat().st_mtime > 600:
                half.unlink()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if hasattr(os, "O_DIRECTORY"):                  # where the system can: sync the folder, too
            folder = os.open(path.parent, os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path, content):
    """Write bytes to the file `path`, whole or not at all. Returns its stamp_of."""
    try:
        with whole_file(path) as file:
            file.write(content)
            file.flush()
            return stamp_of(os.fstat(file.fileno()))
    except OSError as error:                            # a full disk does not say what did not fit
        raise OSError(error.errno, error.strerror, str(path)) from None


def stamp_of(stat):
    """What tells a file from another that was put in its place."""
    return stat.st_mtime_ns, stat.st_ino


def download(url, path, sha256=None):
    """Fetch `url` into the file `path`, whole or not at all. Raises OSError if that fails."""
    twice_more = requests.adapters.Retry(2, backoff_factor=0.5, status_forcelist=[500, 502, 503],
                                         respect_retry_after_header=False)
    with requests.Session() as session:
        session.mount(url, requests.adapters.HTTPAdapter(max_retries=twice_more))
        session.headers["Accept-Encoding"] = "identity"     # so that its length is what we count
        response = session.get(url, timeout=5, stream=True)         # seconds
        response.raise_for_status()
        size, digest = int(response.headers.get("Content-Length", 0)), hashlib.sha256()
        if size > 10**7:
            print(f"downloading {size / 1e6:,.0f} MB from {url}", file=sys.stderr)
        with whole_file(path) as file:
            for piece in response.iter_content(2**20):
                file.write(piece)
                digest.update(piece)
                announce(f"{path}: {file.tell() / 1e6:,.1f} of {size / 1e6:,.1f} MB")
            if size and file.tell() != size:
                raise OSError(f"{url} sent {file.tell()} bytes of {size}")
            if sha256 and digest.hexdigest() != sha256:
                raise OSError(f"{url} sent something else than expected (its SHA-256 differs)")


def free_name(name):
    """The first of NAME-1, NAME-2, ... under which there is no file."""
    names = (f"{name}-{i}" for i in range(1, sys.maxsize))
    return next(new for new in names if not any((DATA / (new + end)).exists() for end in ENDINGS))


def set_aside(name, endings=ENDINGS):
    """Give the files that lie under `name` a free name, so that nothing is written over."""
    free, there = free_name(name), [end for end in endings if (DATA / (name + end)).exists()]
    for ending in reversed(there):               # the checkpoint last: it says what they are
        (DATA / (name + ending)).rename(DATA / (free + ending))
    if there:
        print(f"what was kept as {name} is now called {free}")


class Keeper:
    """Keeps a run in data/: its checkpoint, its losses, and what its models write."""

    def __init__(self, name, resumed=False):
        self.name, self.about, self.step = name, {}, None   # about: see run; step: of the last save
        self.mine = self.stamp() if resumed else None       # tells ours from another run's
        for path in (self.path(".csv"), self.path("-gpt.txt")):
            check(self.path(".pt").exists() or not path.exists(),
                  f"{path} belongs to no run of gpt.py; move it, or give the run a --name")

    def path(self, ending):
        return DATA / f"{self.name}{ending}"

    def stamp(self):
        with contextlib.suppress(FileNotFoundError):
            return stamp_of(self.path(".pt").stat())

    def save(self, model, report):
        """Write the checkpoint and the log. The first save of a run makes room for it."""
        if process() > 0:
            return
        kept = {**vars(report), "loss_sum": float(report.loss_sum),
                "optimizer": report.optimizer.state_dict()["state"]}        # its memory alone
        content, weights = io.BytesIO(), model.state_dict()
        torch.save({"format": FORMAT, **self.about, "model": weights, "report": kept}, content)
        if self.mine is None:
            set_aside(self.name)
        elif self.stamp() not in (None, self.mine):
            taken, self.name = self.name, free_name(self.name)
            print(f"\nanother run is kept as {taken} now; this one goes on as {self.name}")
        self.mine = write_whole(self.path(".pt"), content.getbuffer())
        self.step = report.step
        rows = [LOG_COLUMNS, *(row.values() for row in report.history)]
        log = "".join(",".join(map(str, row)) + "\n" for row in rows)
        write_whole(self.path(".csv"), log.encode())

    def save_samples(self, samples):
        """Write texts, by the model that wrote them; say what is kept, and what to do with it."""
        for model, text in samples.items():
            write_whole(self.path(f"-{model.lower()}.txt"), text.encode())
        there = [self.path(ending) for ending in ENDINGS if self.path(ending).exists()]
        print(f"\nKept in {DATA}: {', '.join(path.name for path in there)}.\nNext, for example:\n")
        print("    python gpt.py sample", shlex.quote(self.name), "--tokens 1000")
        if len(there) == 4:
            print("    diff -y", *(shlex.quote(str(path)) for path in there[2:]))


def sha256_of(text):
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def load_run(path, device="cpu"):
    """A run to go on with: its path, config, tokenizer, model, report, bigram and text_sha256.

    Never runs code from the file. Raises UserError unless it is a whole checkpoint.
    """
    with open(path, "rb") as file, refusal(f"{path} is no whole checkpoint of this gpt.py"):
        saved = torch.load(file, map_location="cpu", weights_only=True)
        check(saved["format"] == FORMAT, f"its format is {saved['format']!r}, not {FORMAT!r}")
        config, vocabulary = Config(**saved["config"]), saved["vocabulary"]
        check(asdict(config) == saved["config"], "its settings are not complete")
        make, kind = (BPETokenizer, list) if config.tokenizer == "bpe" else (CharTokenizer, str)
        tokenizer = make(vocabulary)
        check(isinstance(vocabulary, kind) and tokenizer.vocab_size == config.vocab_size
              and len(tokenizer.ids) == len(vocabulary),            # nothing is there twice
              f"its vocabulary does not fit vocab_size={config.vocab_size}")
        model = built(GPT, config, saved["model"]).to(device)
        bigram = saved["bigram"] and built(BigramLanguageModel, config.vocab_size,
                                           saved["bigram"]).to(device)
        report = build_report(saved["report"], model, config)
        return SimpleNamespace(path=path, config=config, tokenizer=tokenizer, model=model,
                               bigram=bigram, report=report, text_sha256=saved["text_sha256"])


@contextlib.contextmanager
def refusal(message):
    """Any error of what is inside becomes a UserError: who knows what is in a file."""
    try:
        yield
    except Exception as error:
        kind = f"{type(error).__name__} " * isinstance(error, LookupError)     # 'name' says little
        reason = textwrap.shorten(str(error).split(". ")[0], 200)
        raise UserError(f"{message}: {kind}{reason}") from error


def built(kind, settings, weights):
    """kind(settings), a GPT or a bigram, with these weights, in eval mode; nothing is random."""
    for name, weight in weights.items():
        check(weight.dtype == torch.float32 and weight.isfinite().all(), f"{name} is not finite")
    if kind is GPT:
        check(settings.n_layer <= len(weights), f"no weights for n_layer={settings.n_layer}")
    with torch.device("meta"):                      # shapes alone, without memory for numbers
        model = kind(settings)
    model.load_state_dict(weights, assign=True)
    if kind is GPT and settings.tie_weights:
        model.token_embedding.weight = model.lm_head.weight
    return model.eval()


def build_report(saved, model, config):
    """The Report of a checkpoint. Its optimizer has today's settings, and the memory of then."""
    report = Report(**{**saved, "optimizer": build_optimizer(model, config)})
    numbers = [report.step, report.loss_sum, report.seconds]
    numbers += [row[column] for row in report.history for column in LOG_COLUMNS]
    check(all(type(n) in (int, float) and math.isfinite(n) for n in numbers), "a loss is no number")
    if report.best is not None:
        built(GPT, config, report.best)
    optimizer = report.optimizer
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["optimizer"]})
    for p in (p for group in optimizer.param_groups for p in group["params"] if report.step > 0):
        check({optimizer.state[p][name].shape for name in ("exp_avg", "exp_avg_sq")} == {p.shape},
              "the state of its optimizer does not fit its settings")
    return report


def load_checkpoint(path):
    """(model, tokenizer) of a run, ready to write with: its best weights, on the CPU, in eval mode.

    Raises FileNotFoundError if there is no file, UserError if it is not a whole checkpoint.
    """
    run = load_run(path)
    if run.report.best is not None:
        run.model.load_state_dict(run.report.best)
    return run.model, run.tokenizer


def saved_runs():
    """The paths of all checkpoints in data/, the latest last."""
    return sorted(DATA.glob("*.pt"), key=lambda path: path.stat().st_mtime)


def find_run(name=None):
    """The path of the run with this name, or this path, or the latest run if none is named."""
    if name in PUBLISHED and not (DATA / f"{name}.pt").exists():
        return published(name)
    runs = saved_runs()
    candidates = runs[-1:] if name is None else [DATA / f"{name}.pt", Path(name)]
    found = [path for path in candidates if path.exists()]
    kept = ", ".join(path.stem for path in runs) or "none; `python gpt.py` makes one"
    check(found, f"there is no run {name or 'yet'}; those that are kept: {kept}")
    return found[0]


# %% Appendix: Several processes
# `torchrun --standalone --nproc_per_node=2 gpt.py` starts this file twice, each time on a GPU of
# its own if there are any. Each process works on its rows of every batch, and before each step they
# take the mean of their gradients, so that all make the same one. The first one prints and saves.

import torch.distributed as dist


def process():
    """The number of this process; 0 if it is the first, or alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes():
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rows(x):
    """The rows of x that this process works on: all of them, if it is alone."""
    return x[process()::processes()]


def own_seed(step, config):
    """step_seed, but another one in each process, for what is random in its rows alone."""
    return step_seed(step, config) + 10**16 * process()


def average_over_processes(model, loss):
    """The mean of the losses of all processes; the gradients are replaced by their mean, too."""
    if processes() > 1:
        parts = [loss, *(p.grad for p in model.parameters() if p.grad is not None)]
        mean = nn.utils.parameters_to_vector(parts) / processes()       # all of it in one message
        dist.all_reduce(mean)                       # the sum over all processes
        nn.utils.vector_to_parameters(mean, parts)
    return loss


def join_processes(device):
    """Meet the others that torchrun has started, if it has. Returns the device of this one."""
    if not dist.is_torchelastic_launched():
        return device
    if device == "cuda":
        here, asked = torch.cuda.device_count(), os.environ["LOCAL_WORLD_SIZE"]
        check(int(asked) <= here, f"{asked} processes need as many GPUs; there are {here}")
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if process() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return device


# %% Appendix: Sizes
# What does a model cost? It all follows from its Config, before anything is built. In training
# there are, besides the weights, a gradient for each, two running means that AdamW keeps of it, and
# the activations: what is computed on the way forward and needed on the way back. Work is counted
# in FLOPs, additions and multiplications.

SIZES = {
    "5k": dict(vocab_size=11, n_layer=1, n_head=2, n_embd=16),                      # as in count
    "default": {},
    "7M": dict(block_size=256, n_layer=4, n_head=6, n_embd=384, learning_rate=1.3e-3),
    "11M": dict(block_size=256, n_layer=6, n_head=6, n_embd=384, learning_rate=1.3e-3),
    "25M": dict(block_size=512, n_layer=8, n_head=8, n_embd=512, learning_rate=1e-3),
    "100M": dict(block_size=1024, n_layer=14, n_head=12, n_embd=768, learning_rate=6e-4),
    "124M": dict(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768,      # GPT-2
                 learning_rate=6e-4, tie_weights=True),
}
# What `python gpt.py` trains with CUDA, if nothing else is said.
ON_GPU = dict(SIZES["11M"], batch_size=64, max_steps=2000, eval_interval=250, dropout=0.2)


def count_parameters(model):
    """The number of weights that training can change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def activation_bytes(config):
    """What a step keeps of its batch for backward(), in float32, learned positions, no dropout."""
    # In and out of the LayerNorms 4 C; queries, keys, values 3 C; what is found C; around GELU 8 C.
    block = 16 * config.n_embd + config.n_head + 4
    of_a_token = config.n_layer * block + 2 * config.n_embd + config.vocab_size + 6
    return 4 * config.batch_size * config.block_size * of_a_token


def training_flops(config):
    """(multiplications and additions to train on one token, the part of them that attends)."""
    # For each weight of a matrix 2 forward and 4 back. Scores and means: forward, 2 T C each, and
    # twice that back. (What is masked counts, as is usual.)
    matrices = config.n_layer * 12 * config.n_embd ** 2 + config.vocab_size * config.n_embd
    attending = config.n_layer * 12 * config.n_embd * config.block_size
    return 6 * matrices + attending, attending


def sizes_command(arguments):
    """`python gpt.py sizes`: what the named sizes cost."""
    Parser("gpt.py sizes", description="What models of the named sizes cost.").parse_args(arguments)
    rows = []
    for name, size in SIZES.items():
        config = Config(**size)
        with torch.device("meta"):                  # shapes alone, without memory for numbers
            parameters = count_parameters(GPT(config))
        flops, attending = training_flops(config)
        rows.append((name, config.n_layer, config.n_head, config.n_embd, config.block_size,
                     f"{parameters:,}", f"{flops / 1e6:.3g}", f"{attending / flops:.0%}",
                     *(f"{n / 1e6:,.3g}" for n in (16 * parameters, activation_bytes(config)))))
    print_table("size layers heads width context parameters MFLOP attention MB batch_MB", rows)
    print("\nMFLOP: millions of operations to train on a token; the share of attention in them.\n"
          "MB to train in float32: for weights, gradients and AdamW's means; for a batch of 12.\n"
          "--size NAME trains one; of characters, the text decides the vocabulary.")


# %% Appendix: Checks
# What a user can get wrong. The messages name the value, the limit and the way out.


class UserError(ValueError):
    """A mistake that the user can mend. The command line shows it as one line."""


def check(holds, message):
    if not holds:
        raise UserError(message)


def check_range(name, value, lowest, below=2**32):
    check(lowest <= value < below,
          f"{name} must be at least {lowest} and below {below}, not {value}")


def check_config(config):
    """Called by every new Config."""
    lowest = {"dropout": 0, "weight_decay": 0, "warmup_steps": 0, "seed": 0, "learning_rate": 1e-12,
              "grad_clip": 1e-12, "vocab_size": 257 if config.tokenizer == "bpe" else 1}
    choices = {"tokenizer": ("char", "bpe"), "position": ("learned", "sinusoidal", "rotary")}
    for setting in fields(config):
        name, kind, value = setting.name, setting.type, getattr(config, setting.name)
        check(type(value) is kind or kind is float and type(value) is int,
              f"{name} must be of type {kind.__name__}, not {value!r}")
        if kind in (int, float):
            check_range(name, value, lowest.get(name, 1), 1 if name == "dropout" else 2**32)
        elif name in choices:
            check(value in choices[name],
                  f"{name} must be {' or '.join(choices[name])}, not {value!r}")
    check(config.n_embd % config.n_head == 0,
          f"n_embd must be a multiple of n_head={config.n_head}, not {config.n_embd}")
    width = config.n_embd // (config.n_head if config.position == "rotary" else 1)
    check(width % 2 == 0, f"{config.position} positions need pairs of numbers, and "
                          f"n_embd={config.n_embd}, n_head={config.n_head} leave them {width}")


def check_ids(ids, vocab_size):
    unknown = [i for i in ids if not 0 <= i < vocab_size]
    check(not unknown, f"there are no ids {unknown[:5]}; they go from 0 to {vocab_size - 1}")


def check_sampling(model, idx, max_new_tokens, temperature, top_k, top_p):
    """Called before the first token is drawn."""
    check(idx.dtype == torch.int64 and idx.dim() == 2 and idx.numel() > 0, "idx must be an int64 "
          f"tensor (B, T) with at least one token, not {idx.dtype} {tuple(idx.shape)}")
    check_ids(idx.flatten().tolist(), model.vocab_size)
    check_range("the number of new tokens", max_new_tokens, 0)
    check(temperature == 0 or 1e-30 <= temperature < math.inf,
          f"temperature must be 0, or at least 1e-30 and finite, not {temperature}")
    check(top_k is None or top_k >= 1, f"top_k must be at least 1, not {top_k}")
    check(top_p is None or 0 < top_p <= 1, f"top_p must be above 0 and at most 1, not {top_p}")


def check_finite(model, report, config):
    """A number that is infinite, or not a number, says that the weights are lost."""
    for name, x in (("training loss", report.train_loss or report.loss_sum),
                    ("validation loss", report.val_loss or 0), *model.named_parameters()):
        check(torch.as_tensor(x).isfinite().all(),
              f"{name}: not a finite number by step {report.step}. Try a learning_rate below "
              f"{config.learning_rate} or a weight_decay below {config.weight_decay}. What was "
              f"saved before that is kept")


# %% Appendix: The terminal
# What a run shows, in lines of less than 80 columns.

import shutil
from itertools import zip_longest


def on_terminal():
    return sys.stdout is not None and sys.stdout.isatty()


def announce(line):
    """Show on a terminal what takes a while; the next line is written over it."""
    if on_terminal():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]:<{width}}\r", end="", flush=True)


def heading(title):
    announce("")
    print(f"\n{title}\n{'-' * len(title)}")


def visible(text):
    r"""The text with control characters, which could do anything to a terminal, written as escapes.

    >>> visible("one\ntwo\x1b[2J")
    'one\ntwo\\x1b[2J'
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def show_data(train_text, val_text, tokenizer, train_data, val_data, config):
    """Chapters 1 to 3: the text, how it is cut into tokens, and what is learned from it."""
    heading("1. Text")
    print(f"{len(train_text) + len(val_text):,} characters. They begin:\n")
    print(textwrap.indent(visible(train_text[:150].rpartition("\n")[0] or train_text[:70]), "    "))
    heading("2. Tokens")
    if config.tokenizer == "char":
        print(f"{tokenizer.vocab_size} different characters, each a token:\n")
        print(textwrap.indent(textwrap.fill(repr(tokenizer.characters), 70), "    "))
        print(f"\nencode({train_text[:5]!r}) = {tokenizer.encode(train_text[:5])}")
    else:
        print(f"{tokenizer.vocab_size:,} tokens: the 256 bytes, and more made by joining two.\n"
              f"The first of them, each of the pair that was the most frequent then:\n")
        for i, pair in enumerate(tokenizer.merges[:8], start=256):
            print("    {}  {!r:<6} + {!r}".format(i, *(tokenizer.decode([part]) for part in pair)))
        pieces = "|".join(tokenizer.decode([i]) for i in tokenizer.encode(train_text[:60]))
        print(f"\n{len(train_text) / len(train_data):.2f} characters per token: {pieces!r}")
    heading("3. Batches")
    T = config.block_size
    print(f"{len(train_data):,} tokens to train on, {len(val_data):,} to validate with.")
    print(f"Batches are made of pieces of {T}, with an example for each token. They begin:\n")
    for t in range(1, min(8, T) + 1):
        before, after = (tokenizer.decode(ids.tolist()) for ids in train_data[:t + 1].split(t))
        print(f"    after {before!r:<14} comes {after!r}")


def show_model(model, data):
    """What a GPT is made of, and what it makes of its first batch."""
    heading("5. Attention, and 6. GPT")
    config = model.config
    x, y = get_batch(data, 0, config)
    with torch.no_grad():
        logits, loss = model(x, y)
    print(f"blocks {config.n_layer}, heads in each {config.n_head}, width {config.n_embd}: "
          f"{count_parameters(model):,} parameters")
    print(f"tokens {tuple(x.shape)} -> logits {tuple(logits.shape)}")
    print(f"loss of the first batch {loss:.2f}; knowing nothing costs "
          f"ln({config.vocab_size}) = {math.log(config.vocab_size):.2f}")


BIGRAM_TRAINING = {"block_size": 1, "batch_size": 2048, "max_steps": 500, "eval_interval": 250,
                   "learning_rate": 0.2, "warmup_steps": 0, "weight_decay": 0.0}
LARGEST_BIGRAM = 8192               # tokens; its table has the square of that


def train_bigram(train_data, val_data, config):
    """(a trained BigramLanguageModel, the seconds that took), or two None if it were too large."""
    if config.vocab_size > LARGEST_BIGRAM:
        print(f"left out: its table would have {config.vocab_size ** 2:,} numbers")
        return None, None
    bigram = BigramLanguageModel(config.vocab_size).to(train_data.device)
    config = replace(config, **BIGRAM_TRAINING)
    report = Report(build_optimizer(bigram, config))
    train_and_show(bigram, train_data, val_data, config, report)
    return bigram, report.seconds


def train_and_show(model, train_data, val_data, config, report, keeper=None):
    """Run a training to its end and show how far it is. The keeper, if there is one, saves it."""
    if keeper:
        keeper.save(model, report)
    first_step, seconds_before, told = report.step, report.seconds, False
    began = drawn = saved = time.perf_counter()
    for report in train(model, train_data, val_data, config, report):
        now = time.perf_counter()
        report.seconds = seconds_before + now - began
        pace = (report.step - first_step) / (now - began)               # steps per second
        minutes = (config.max_steps - report.step) / pace / 60
        if not told and now > began + 5 and minutes > 1:
            told = True
            shorter = "; fewer --max_steps or a smaller --size take less" if minutes > 60 else ""
            announce("")
            print(f"this takes about {math.ceil(minutes)} minutes{shorter}", flush=True)
        evaluated = report.val_loss is not None
        due = evaluated or now > saved + SAVE_SECONDS
        soon = (report.step + 1) % config.eval_interval == 0
        if due:
            check_finite(model, report, config)
        if evaluated:
            announce("")
            print(progress(report, config, pace), flush=True)
        elif on_terminal() and (soon or now > drawn + 0.2):
            drawn = now
            announce(progress(report, config, pace) + ", evaluating" * soon)
        if keeper and due:
            saved = now
            keeper.save(model, report)


def progress(report, config, steps_per_second):
    """How far a training is, in a line."""
    last, rows = config.max_steps, report.history
    steps = report.step - (rows[-1]["step"] if rows else 0)
    train_loss = float(report.loss_sum) / steps if report.train_loss is None else report.train_loss
    val_loss = f"{rows[-1]['val_loss']:.4f}" if rows else "-"
    left = round((last - report.step) / steps_per_second)
    return (f"step {report.step:>{len(str(last))}}/{last}  train {train_loss:.4f}  val {val_loss}  "
            f"{steps_per_second * config.batch_size * config.block_size:,.0f} tokens/s  "
            f"{left // 60}:{left % 60:02} left")


def show_curve(history, bigram_loss=None):
    """How the losses fell with the steps, downwards. Nothing for less than three evaluations."""
    if len(history) < 3:
        return
    rows = history[::math.ceil(len(history) / 16)]
    level = [] if bigram_loss is None else [bigram_loss]
    losses = level + [row[name] for row in rows for name in ("train_loss", "val_loss")]
    lowest, highest = min(losses), max(losses)
    print(f"\n    step  {lowest:<27.4f}loss{highest:>27.4f}")
    for row in rows:
        line = [" "] * 58
        for mark, loss in (*zip("|", level), ("t", row["train_loss"]), ("V", row["val_loss"])):
            line[round(57 * (loss - lowest) / (highest - lowest or 1))] = mark
        print(f"{row['step']:>8}  {''.join(line).rstrip()}")
    print(f"          V validation, t training{', | the bigram' if level else ''}")


SHADES = ((0.7, "█"), (0.35, "▓"), (0.15, "▒"), (0.03, "░"), (0, " "))
LEGEND = "░ from 3%, ▒ from 15%, ▓ from 35%, █ from 70%"


def shade(share):
    return next(character for least, character in SHADES if share >= least)


def symbol(character):
    r"""What stands for a character where each has one column.

    >>> "".join(map(symbol, "a b\n\x1b"))
    'a b↵?'
    """
    wide = unicodedata.east_asian_width(character) in "WF" or unicodedata.combining(character)
    fits = character.isprintable() and not wide
    return {"\n": "↵", "\t": "→"}.get(character, character if fits else "?")


@torch.no_grad()
def show_surprise(models, tokenizer, val_data):
    """A held-out text, and in shades below it how probable each model found what came."""
    T = models["GPT"].block_size
    if len(val_data) <= T:
        return
    n = (T + 1) // 2                                # tokens in a window that have some context
    windows = val_data[:5000 + T].long().unfold(0, T + 1, n)        # (N,) -> (W, T+1)
    pieces = [tokenizer.decode([i]) for i in windows[:, -n:].flatten().tolist()]
    inside = [a[-1:].isalpha() and b[:1].isalpha() for a, b in pairwise(["", *pieces])]
    first = [piece.strip()[:1].isalpha() and not later for piece, later in zip(pieces, inside)]
    others = [not (a or b) for a, b in zip(first, inside)]
    places = ("any token", "the first of a word", "the rest of a word", "between words")
    where = torch.tensor([[True] * len(pieces), first, inside, others])         # (4, W*n)
    counts = where.sum(dim=1)                                                   # (4,)
    lines, right = {"": "".join(map(symbol, "".join(pieces)))}, []
    for name, model in models.items():
        shares, hits = [], []
        for window in windows:
            logits, _ = model(window[None, :-1])                    # (1, T) -> (1, T, V)
            probs, came = F.softmax(logits[0, -n:], dim=-1), window[-n:]        # (n, V), (n,)
            shares += probs.gather(1, came[:, None])[:, 0].tolist()             # (n, V) -> (n,)
            hits += (probs.argmax(dim=1) == came).tolist()
        lines[name] = "".join(shade(p) * len(piece) for p, piece in zip(shares, pieces))
        right.append((where & torch.tensor(hits)).sum(dim=1) / counts)          # (4,)
    print(f"A held-out text, and below it how probable each model found what came:\n"
          f"{LEGEND}; blank is a surprise.\n")
    for start in range(0, min(180, len(lines[""])), 60):
        for name, line in lines.items():
            print(f"    {name:<8}{line[start:start + 60]}".rstrip())
        print()
    print("How often the likeliest token was the one that came:\n")
    print_table(" ".join(["token", *models]), [
        (f"{place} ({count:,})", *(f"{share:.0%}" for share in shares))
        for place, count, *shares in zip(places, counts.tolist(), *right) if count])
    print()


SAMPLE_TOKENS = 500


def device_of(model):
    return next(model.parameters()).device


def continue_text(model, tokenizer, prompt, max_new_tokens, seed=0, **dials):
    """`prompt` and what `model` writes after it, a str. The dials are those of generate."""
    idx = torch.tensor([tokenizer.encode(prompt)], device=device_of(model))         # (1, T)
    generator = torch.Generator(device_of(model)).manual_seed(seed)
    written = generate(model, idx, max_new_tokens, generator=generator, **dials)
    return tokenizer.decode(written[0].tolist())


def side_by_side(samples, width=38):
    """Print texts, by their titles, in columns. A wide character fills two places."""
    columns = []
    for title, text in samples.items():
        text = "".join(c + "\0" * (unicodedata.east_asian_width(c) in "WF") for c in visible(text))
        lines = [textwrap.wrap(line, width) or [""] for line in text.split("\n")]
        columns.append([title, "-" * width, *sum(lines, [])])
    for row in zip_longest(*columns, fillvalue=""):
        print(" | ".join(f"{cell:<{width}}" for cell in row).replace("\0", "").rstrip())


def print_table(titles, rows):
    """Print rows of cells under titles, a str with one word for each column."""
    rows = [titles.split(), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:                                        # the first column to the left
        print("  ".join(f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(row)))


def print_results(rows, tokens_per_character=1.0):
    """Print a table from rows of (model, parameters, loss in nats per token, seconds or None)."""
    print_table("model parameters val_loss bits/char perplexity seconds", [
        (model, f"{parameters:,}", f"{loss:.4f}",
         f"{loss / math.log(2) * tokens_per_character:.4f}", f"{math.exp(min(loss, 20)):.2f}",
         f"{seconds:.1f}" if seconds else "-")
        for model, parameters, loss, seconds in rows])


def show_check(findings):
    """Print findings, pairs of (whether it held, what was checked); return whether all held."""
    heading("The check")
    for held, what in findings:
        line = f"{'held' if held else 'FAILED'}: {what}"
        print(textwrap.fill(line, 79, subsequent_indent="    "))
    return all(held for held, _ in findings)


# %% Appendix: The command line

import argparse
import inspect


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, and to which --max-steps is --max_steps."""

    def parse_args(self, arguments):
        spell = lambda found: "--" + ("no-" if found[1] else "") + found[2].replace("-", "_")
        return super().parse_args([re.sub("^--(no[-_])?([^=]+)", spell, arg) for arg in arguments])

    def error(self, message):
        raise UserError(message)


def story_parser():
    """The options of `python gpt.py`. The comments in Config explain its fields, here as there."""
    demos = "".join(f"  {name:<8} {about}\n" for name, (about, *_) in DEMOS.items())
    parser = Parser("gpt.py", allow_abbrev=False, argument_default=argparse.SUPPRESS,
                    formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"""demos:
{demos}
other commands:
  sample   let a trained model write
  runs     what has been saved
  sizes    what larger models cost

Demos, --size and GPUs have some defaults of their own.""")
    parser.add_argument("demo", nargs="?", default=None, help="instead of the story; see below")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    parser.add_argument("--name", help="what to call the run; else shakespeare, or as text or demo")
    parser.add_argument("--size", choices=SIZES, help="the model's settings; see gpt.py sizes")
    parser.add_argument("--device", help="cuda, mps or cpu; else the first that is there")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    about = defaultdict(str)
    with contextlib.suppress(OSError, TypeError):   # in a notebook, there is no source to look at
        about.update(re.findall(r"^    (\w+): .*?# (.+)$", inspect.getsource(Config), re.MULTILINE))
    for setting in fields(Config):
        kind = ({"action": argparse.BooleanOptionalAction} if setting.type is bool else
                {"type": setting.type, "metavar": setting.type.__name__.upper()})
        help = f"{about[setting.name]} ({setting.default})"
        parser.add_argument(f"--{setting.name}", help=help, **kind)
    return parser


def run_command(arguments):
    """`python gpt.py`: the story or a demo, with any field of Config as an option."""
    options = vars(story_parser().parse_args(arguments))        # only those that were given
    demo, path, name, device, size, resume, compile = (options.pop(option, None) for option in (
        "demo", "text", "name", "device", "size", "resume", "compile"))
    check(demo in (None, *DEMOS), f"there is no demo {demo}, only {', '.join(DEMOS)}; the commands "
                                  f"{', '.join(COMMANDS)} come first; a text goes with --text")
    check(not (demo and path), f"{demo} has a text of its own; leave out --text")
    check(not name or Path(name).name == name != "..", f"--name begins file names; {name!r} cannot")
    device = join_processes(choose_device(device))
    _, texts, prompt, demo_check, settings = DEMOS.get(demo, (None, None, None, None, {}))
    config = None if resume else new_config(settings, options, size, device)
    text_name, text = (demo, None) if demo else load_text(path)
    train_text, val_text = texts() if demo else split(text)
    keeper = Keeper(name or text_name, resume)
    check(not path or path.resolve() not in [keeper.path(ending).resolve() for ending in ENDINGS],
          f"the run would write over {path}; give it another --name")
    check(not resume or keeper.path(".pt").is_file(),
          f"there is no {keeper.path('.pt')} to resume; `python gpt.py runs` lists what there is")
    saved = load_run(keeper.path(".pt"), device) if resume else None
    if resume:
        config = resumed_config(saved, options, size, train_text + val_text)
    check(config.batch_size % processes() == 0,
          f"batch_size={config.batch_size} must be a multiple of the {processes()} processes")
    try:
        held = run(keeper, train_text, val_text, config, prompt=prompt, demo_check=demo_check,
                   device=device, compile=compile, saved=saved)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped before anything was saved" if keeper.step is None else
                                f"stopped; step {keeper.step} is saved, and the same command with "
                                f"--resume --name {keeper.name} goes on from there") from None
    return 0 if held else 1


def new_config(settings, options, size, device):
    """The Config of a demo, a size, or what suits the device, with the options that were given."""
    on_gpu = ON_GPU if device.startswith("cuda") and not settings else {}
    settings = {**on_gpu, **settings, **SIZES.get(size, {}), **options}
    if settings.get("tokenizer") != "bpe":
        check("vocab_size" not in options,
              "--vocab_size is for --tokenizer bpe; of characters, the text decides")
    elif "vocab_size" not in options:
        settings["vocab_size"] = max(512, settings.get("vocab_size", 0))
    return Config(**settings)


def resumed_config(saved, options, size, text):
    """The settings of a saved run. Only max_steps and eval_interval may be others than they were;
    the learning rate then goes on as in a run of that length."""
    check(saved.text_sha256 == sha256_of(text), f"{saved.path} was trained on another text")
    given = {**SIZES.get(size, {}), "vocab_size": saved.config.vocab_size, **options}
    for name in given.keys() - {"max_steps", "eval_interval"}:
        before = getattr(saved.config, name)
        check(given[name] == before, f"{saved.path} has {name}={before}, not {given[name]}")
    config, steps = replace(saved.config, **options), saved.report.step
    check(config.max_steps >= steps,
          f"{saved.path} has been trained for {steps} steps; max_steps={config.max_steps} is less")
    return config


def sample_command(arguments):
    """`python gpt.py sample`: write from a saved run, token by token."""
    parser = Parser("gpt.py sample", allow_abbrev=False, description="Let a trained model write.")
    parser.add_argument("run", nargs="?", help="its name or its path, or gpt2; else the latest")
    parser.add_argument("--prompt", default="", help=r"how the text begins; \n is a new line")
    parser.add_argument("--tokens", type=int, default=SAMPLE_TOKENS, help="default %(default)s")
    parser.add_argument("--temperature", type=float, default=0.8,
                        help="divides the logits; 0 takes the likeliest token; default %(default)s")
    parser.add_argument("--top_k", type=int, help="draw only from the k likeliest tokens")
    parser.add_argument("--top_p", type=float, help="draw only from the likeliest that have p")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32),
                        help="the same seed writes the same text")
    options = parser.parse_args(arguments)
    path = find_run(options.run)
    model, tokenizer = load_model(path)
    prompt = options.prompt.replace(r"\n", "\n") or first_prompt(tokenizer)
    idx = torch.tensor([tokenizer.encode(prompt)])                          # (1, T)
    dials = (options.temperature, options.top_k, options.top_p)
    check_sampling(model, idx, options.tokens, *dials)
    check_range("seed", options.seed, 0)
    generator = torch.Generator().manual_seed(options.seed)
    print(f"{path} writes:", file=sys.stderr)
    shown = visible if on_terminal() else str
    print(shown(prompt), end="", flush=True)
    waiting = []            # a character may be several tokens, and reads \ufffd until it is whole
    for token in stream_tokens(model, idx, options.tokens, dials, generator=generator):
        if tokenizer.decode(token[0].tolist()) == END:
            break
        waiting += token[0].tolist()
        written = tokenizer.decode(waiting)
        if len(waiting) == 16 or not written.endswith("\ufffd"):
            print(shown(written), end="", flush=True)
            waiting = []
    print(shown(tokenizer.decode(waiting)))


def runs_command(arguments):
    """`python gpt.py runs`: what has been saved."""
    Parser("gpt.py runs", description="Show the runs that are kept in data/.").parse_args(arguments)
    rows = []
    for path in saved_runs():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        try:
            run = load_run(path)
            losses = [row["val_loss"] for row in run.report.history]
            rows.append((path.stem, f"{count_parameters(run.model):,}",
                         f"{run.report.step}/{run.config.max_steps}",
                         f"{min(losses):.4f}" if losses else "-", when))
        except UserError as error:
            print(error)
    print_table("run parameters step val_loss saved", rows)


COMMANDS = {"sample": sample_command, "runs": runs_command, "sizes": sizes_command}


def choose_device(name=None):
    """The fastest device that is there, or the one with this name. UserError if it is not there."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    here = ["cuda"] * cuda + ["mps"] * mps + ["cpu"]
    check(name in (None, *here), f"there is no device {name!r} here, only {', '.join(here)}")
    return name or here[0]


def load_text(path=None):
    """(name of the run, its text): from the file `path`, else Shakespeare, else Python's manual."""
    if path is not None:
        announce(f"reading {path}")
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
        check(text, f"{path} is empty")
        return path.stem, text
    try:
        return "shakespeare", load_shakespeare()
    except OSError as error:
        print(f"Tiny Shakespeare cannot be had ({type(error).__name__}), so Python's manual is the "
              f"text. For Shakespeare, save {SHAKESPEARE_URL} as {DATA / 'tinyshakespeare.txt'}")
        return "manual", load_manual()


def first_prompt(tokenizer):
    """What a text begins with when nothing is said: a new line, if the vocabulary has it."""
    if isinstance(tokenizer, CharTokenizer) and "\n" not in tokenizer.characters:
        return tokenizer.characters[0]
    return END if isinstance(tokenizer, GPT2Tokenizer) else "\n"


def run_cleanly(program, command, arguments):
    """Call command(arguments) and return its exit code; what a user can mend becomes one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):        # any text can be printed, also into a pipe
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = command(arguments) or 0
        print(end="", flush=True)                       # here, if our reader has left, we see it
        return code
    except SystemExit as end:                           # after --help
        return end.code
    except BrokenPipeError:                        # who reads our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141                                      # as if the system had stopped us
    except KeyboardInterrupt as stop:
        message, code = str(stop) or "stopped", 130
    except (UserError, OSError) as error:
        message, code = " ".join(str(error).split()), 2
    except RuntimeError as error:
        if "allocate" in str(error):
            message, code = "there is not enough memory; try a smaller model or batch", 2
        elif dist.is_initialized() and "peer" in str(error):
            message, code = "another process of this run has ended, so this one ends as well", 2
        elif type(error).__module__.startswith("torch._"):
            message, code = f"--compile does not work here: {str(error).splitlines()[0]}", 2
        else:
            raise
    if process() == 0:
        print("\n" if on_terminal() else "", end="", flush=True)        # after a line of progress
        print(f"{program}: {message}", file=sys.stderr)
    return code


def main(arguments=None):
    """Do what the command line says; return the exit code. In a notebook, call main([])."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return run_cleanly(f"gpt.py {arguments[0]}", COMMANDS[arguments[0]], arguments[1:])
    return run_cleanly("gpt.py", run_command, arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_ctrl_c)
    sys.exit(main())
