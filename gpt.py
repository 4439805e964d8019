"""gpt.py: how a GPT works, in one program to be read from top to bottom.

A GPT (generative pre-trained transformer) reads the beginning of a text and says, for every token,
how likely it is to come next. Here, a token is a single character. Draw a token with these
probabilities, append it, repeat, and the model writes. ChatGPT writes in the same way, with a much
larger model.

`python gpt.py` trains two models on Shakespeare's plays and lets both of them write. That takes
two to three minutes on two cores of a laptop, without a GPU. The chapters:

    0  Hyperparameters    3  Batches                      6  Positions     9  Sampling
    1  Text               4  Bigram, the first model      7  GPT          10  The run
    2  Tokens             5  Attention                    8  Training

You should know Python, and roughly what matrix products, slopes, logarithms and standard deviations
are. You don't need to know PyTorch, the library that does the computing. First install what the
file needs: `pip install torch requests`. From chapter 1 on, there is something to try in every
chapter: start Python in the folder of this file, keep it open, and type the lines that follow >>>,
in order. Python's answers are shown below them. (Importing the file trains nothing.)

A tensor is an array of numbers with a shape. The shape (2, 3) means 2 rows of 3 numbers, and () is
a single number. A comment such as `# (B, T) -> (B, T, C)` says how a line changes the shape:

    B  batch: sequences that are computed together      V   vocabulary: how many tokens there are
    T  time: tokens in each sequence                    nh  number of attention heads
    C  channels: numbers for each token                 hs  head size, C / nh
"""

import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import requests

with warnings.catch_warnings():                 # torch warns if NumPy is missing; we don't need it
    warnings.simplefilter("ignore")
    import torch
import torch.nn as nn
import torch.nn.functional as F


# %% 0. Hyperparameters
# The numbers inside a model are its parameters, and training finds them. The hyperparameters are
# the numbers that you choose. Only skim them now: each of them will make sense in its chapter.
@dataclass(frozen=True)
class Config:
    # The model
    vocab_size: int = 65            # V, how many different tokens there are; the text decides
    block_size: int = 64            # the context: how many tokens the model can look at
    n_layer: int = 3                # blocks, one on top of the other (chapter 7)
    n_head: int = 4                 # nh, attention heads in each block
    n_embd: int = 128               # C, numbers for each token ("embd" is short for embedding)
    dropout: float = 0.0            # share of numbers set to zero in training; 0.2 for long runs
    # Its training
    batch_size: int = 12            # B, sequences in each step
    max_steps: int = 3000           # steps of gradient descent
    learning_rate: float = 4e-3     # how far a step goes; larger models need smaller steps
    warmup_steps: int = 100         # steps in which the learning rate grows
    weight_decay: float = 0.1       # how strongly matrices are pulled towards zero
    grad_clip: float = 1.0          # a longer gradient is shortened to this
    eval_interval: int = 500        # steps between two evaluations
    seed: int = 1337                # decides first parameters, batches and dropout


# %% 1. Text
# A language model learns from text alone. What is there to learn? Which character comes next. Look
# at a tiny text, and list what follows the letter l:
# >>> from gpt import *
# >>> text = "hello hello hello"
# >>> [after for before, after in zip(text, text[1:]) if before == "l"]
# ['l', 'o', 'l', 'o', 'l', 'o']

# If you see only the l, you have to guess. One more character settles it: el is always followed by
# l, and ll by o. The further a model looks back, the better it can predict.
#
# Our text is Tiny Shakespeare, 1.1 million characters from Shakespeare's plays. The first run
# downloads it to the folder data. Its fingerprint (SHA-256) shows whether it has arrived intact.
DATA = Path("data")
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def load_shakespeare():
    """Tiny Shakespeare, a str. Raises OSError if it is neither in data/ nor can be downloaded."""
    path = DATA / "tinyshakespeare.txt"
    content = path.read_bytes() if path.exists() else b""
    if sha256(content).hexdigest() != SHA256:
        content = requests.get(URL, timeout=10).content
        if sha256(content).hexdigest() != SHA256:
            raise OSError("the download is not Tiny Shakespeare")
        DATA.mkdir(exist_ok=True)
        path.write_bytes(content)
    return content.decode()


# %% 2. Tokens
# A model computes with numbers. The text is therefore cut into tokens, and each different token
# gets an integer, its id. Our tokens are characters. Large models use pieces of words.
class CharTokenizer:
    def __init__(self, text):
        self.vocabulary = "".join(sorted(set(text)))        # a character's id is its place here
        self.vocab_size = len(self.vocabulary)
        self.ids = {character: i for i, character in enumerate(self.vocabulary)}

    def encode(self, text):
        if unknown := set(text) - set(self.ids):
            raise ValueError(f"{min(unknown)!r} is not one of the {self.vocab_size} characters")
        return [self.ids[character] for character in text]

    def decode(self, ids):
        return "".join(self.vocabulary[i] for i in ids)


# The tiny text has five different characters, and the space is the first of them:
# >>> tokenizer = CharTokenizer(text)
# >>> tokenizer.vocabulary, tokenizer.encode("hello"), tokenizer.decode([2, 1, 3, 3, 4])
# (' ehlo', [2, 1, 3, 3, 4], 'hello')

def encode_text(text, tokenizer):
    """The ids of a text, a tensor (N,), with 32 bits for each to save memory."""
    return torch.tensor(tokenizer.encode(text), dtype=torch.int32)


# %% 3. Batches
# A model can practice at every position in a text: it sees the tokens so far, and predicts the next
# one. The right answers are called targets. They are the inputs, shifted by one:
#
#     inputs      F i r s t         after F           comes i
#     targets     i r s t _         after F i         comes r
#                                   after F i r       comes s, and so on (_ is the space)
#
# So a window of T + 1 tokens holds T examples. PyTorch can list all the windows of a text. Let 0 to
# 5 be the text. `unfold` slides along dimension 0, takes 3 tokens at a time, and moves on by 1:
# >>> torch.arange(6).unfold(0, 3, 1)
# tensor([[0, 1, 2],
#         [1, 2, 3],
#         [2, 3, 4],
#         [3, 4, 5]])

# A batch is a handful of these windows, drawn at random. Several are better than one, because a
# single window is a poor sample of the text.
def get_batch(data, step, config):
    """Inputs and targets for a training step, both (B, T), from random places in data (N,)."""
    B, T = config.batch_size, config.block_size
    if len(data) <= T:
        raise ValueError(f"block_size={T} needs over {T} tokens to train on, not {len(data)}")
    torch.manual_seed(1_000_003 * config.seed + step)   # each step of each seed has its own batch
    rows = torch.randint(len(data) - T, (B,))               # B random integers
    windows = data.unfold(0, T + 1, 1)[rows]                # (N,) -> (N-T, T+1) -> (B, T+1)
    windows = windows.long()                                # 64 bits, as PyTorch wants its ids
    return windows[:, :-1], windows[:, 1:]                  # all but the last, all but the first


# With the numbers 0 to 99 as a text, and two windows:
# >>> x, y = get_batch(torch.arange(100), 0, Config(batch_size=2, block_size=4))
# >>> x.tolist(), y.tolist()
# ([[58, 59, 60, 61], [33, 34, 35, 36]], [[59, 60, 61, 62], [34, 35, 36, 37]])

# A model that is tested on the text it practiced on might only have memorized it (overfitting). So
# the last tenth is kept out of training, but never more than 200,000 characters, which are enough.
# This validation split shows how a model does on text that it has not seen.
def train_val_split(text):
    """The part of a text to train on, and the part to validate on."""
    n = max(len(text) * 9 // 10, len(text) - 200_000)
    return text[:n], text[n:]


# %% 4. Bigram
# A very simple model that can learn is a table of scores. A bigram is a pair of tokens, and row i,
# column j of the table says how well token j follows token i. Such scores are called logits.
# Softmax turns a row of logits into probabilities: exp makes each of them positive, and then each
# is divided by their sum, so that they add up to 1.
# >>> logits = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0])
# >>> F.softmax(logits, dim=0)                            # along dimension 0: exp(2) / 12.475, ...
# tensor([0.5923, 0.2179, 0.0802, 0.0802, 0.0295])

# How good is a prediction? Look at the probability it gave to the token that actually came. The
# loss is minus the logarithm of this probability: 0 if the model was certain and right, and large
# if it was surprised. The mean loss of many predictions is called cross-entropy. Suppose that token
# 1 came (the first is token 0):
# >>> F.cross_entropy(logits, torch.tensor(1))            # -ln(0.2179); it includes the softmax
# tensor(1.5237)

# A model that knows nothing gives each of V tokens the probability 1/V. Its loss is ln(V), which is
# 4.17 for the 65 characters of Shakespeare. The perplexity, exp(loss), is easier to picture: at a
# perplexity of 10, a model is as unsure as if it had to choose among 10 equally likely tokens.
#
# In PyTorch, a model is an nn.Module. It holds parameters, and model(x) calls its forward(x). Large
# modules are made of smaller ones. One of the smallest is nn.Embedding(V, C), a table of V rows
# with C numbers each: given ids, it returns their rows. PyTorch calls the numbers in a module its
# `weight`, and a tensor of ids is often called `idx`, short for indices.
class BigramLanguageModel(nn.Module):
    """Predicts each token from the one before it: `logits, loss = model(idx, targets)`."""
    block_size = 1                              # how many tokens it looks at: its context

    def __init__(self, vocab_size):
        super().__init__()                      # every nn.Module begins with this
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)       # at first, all tokens are equally likely

    def forward(self, idx, targets=None):
        """Token ids: idx, targets (B, T) -> logits (B, T, V), and the loss () or None."""
        logits = self.table(idx)                # (B, T) -> (B, T, V), the row of each token
        # cross_entropy wants a row for each prediction: flatten turns (B, T, V) into (B*T, V).
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


# How does the table learn? Nudge one of its numbers, and watch the loss. The change of the loss,
# divided by the change of the number, is a slope. If the slope is negative, the number should grow.
# Here, 1 follows 0, 2 follows 1, and 3 follows 2. Raise the logit of token 1 in row 0 by 0.01:
# >>> model = BigramLanguageModel(5)
# >>> x, y = torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, 3]])
# >>> logits, loss = model(x, y)
# >>> model.table.weight.data[0, 1] += 0.01               # .data: PyTorch does not record this
# >>> logits, nudged = model(x, y)
# >>> model.table.weight.data[0, 1] -= 0.01               # back to 0
# >>> round(loss.item(), 5), round(nudged.item(), 5)      # item() makes a Python number
# (1.60944, 1.60677)
# >>> round(((nudged - loss) / 0.01).item(), 2)
# -0.27

# Nudging millions of parameters one by one would take forever. PyTorch finds all slopes at once by
# the chain rule: if y changes 0.5 times as fast as x, and the loss 0.2 times as fast as y, then the
# loss changes 0.5 * 0.2 = 0.1 times as fast as x. PyTorch remembers how the loss was computed, and
# loss.backward() goes back through all of it, multiplying slopes. The slope of a parameter p is
# then found in p.grad. All slopes together are called the gradient. In row 0 they are:
# >>> loss.backward()                                     # the loss before the nudge
# >>> model.table.weight.grad[0]
# tensor([ 0.0667, -0.2667,  0.0667,  0.0667,  0.0667])

# Token 1 has the same -0.27. There is a rule behind these numbers: take the probability of a token,
# subtract 1 if this token came, and divide by the number of examples, because the loss is their
# mean. Here, all probabilities are 0.2, and there are three examples. Token 1 came, so its slope is
# (0.2 - 1) / 3 = -0.2667. The others did not come, so their slope is 0.2 / 3 = 0.0667. (If token 0
# occurred more often, the slopes of its row would be added up.)
#
# A step of gradient descent subtracts from each parameter a little of its own slope. So the logits
# of tokens that came grow, the others shrink, and the loss falls. The learning rate says how much
# of the slope is subtracted. The loss was 1.61. After a single step with a learning rate of 1, it
# is:
# >>> model.table.weight.data -= 1.0 * model.table.weight.grad
# >>> logits, loss = model(x, y)
# >>> round(loss.item(), 2)
# 1.35

# %% 5. Attention
# The bigram model sees one token. To predict better, a token must collect information from those
# before it, and needs room for what it collects. So from now on, each token is a vector of C
# numbers, its embedding: a row of an nn.Embedding(V, C). Nobody decides what these numbers mean.
# They are parameters, and training finds what is useful.
#
# A token collects by a weighted mean. Say that three tokens hold the values 10, 20 and 30. The
# third pays attention to all three, itself included, with the weights 0.9, 0.05 and 0.05. It then
# receives 11.5, close to 10, because most of the weight is on the first. `@`, the matrix product,
# computes the sum:
# >>> torch.tensor([0.9, 0.05, 0.05]) @ torch.tensor([10.0, 20.0, 30.0])
# tensor(11.5000)

# Where do the attention weights come from? From the tokens themselves. From its C numbers, each
# token makes three vectors of hs numbers (shorter, because there will be several heads):
#
#     a query     what am I looking for?
#     a key       what do I offer to those who look?
#     a value     what do I hand over if I am chosen?
#
# Why is the value not the key? You find a book by its title, and take home its text.
#
# Linear layers make these vectors. nn.Linear(C, D) turns C numbers into D: it multiplies them by a
# matrix and adds a vector, its bias. Both are parameters, and begin as small random numbers. All
# tokens share the same layer. Here, three tokens with C = 4 numbers each get queries of hs = 2
# numbers:
# >>> nn.Linear(4, 2)(torch.randn(3, 4)).shape            # randn: random numbers
# torch.Size([3, 2])

# The dot product of one token's query with another token's key (multiply number by number, and add
# up) is a score, which is large if they match. Let k hold the keys of three tokens, a row each. The
# third token asks; the first key matches:
# >>> k = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
# >>> query = torch.tensor([2.0, 0.0])
# >>> k @ query
# tensor([4., 0., 0.])

# Softmax turns scores into attention weights, as it turned logits into probabilities. Before that,
# the scores are divided by sqrt(hs). A score is a sum of hs products, so it grows with hs: if the
# numbers are random, with a standard deviation of 1, then that of the score is sqrt(hs). And if
# scores are large, softmax gives nearly all the weight to one token. With hs = 32, the largest of
# 64 weights would be about 0.7 for such numbers. With the division, it is about 0.1.
# >>> F.softmax(k @ query / math.sqrt(2), dim=0)          # exp(4 / 1.41) is 17 times exp(0)
# tensor([0.8943, 0.0529, 0.0529])

# One more rule is needed, the causal mask: a token sees itself and those before it, but none after
# it. In training, a whole window goes in at once, and each of its tokens predicts the next one,
# which is in the window, too. Without the mask, the model would only learn to copy it. So the
# scores of later tokens become minus infinity, and their weights 0, because exp(-infinity) is 0.
#
# Now for all tokens at once. Let q, k and v have a row for each token, and let k^T be k with rows
# and columns exchanged. Then row i of q @ k^T holds the scores of query i with all keys, and
# attention is four lines (Vaswani et al. 2017):
def attention(q, k, v):
    """softmax(q @ k^T / sqrt(hs)) @ v, causally masked: q, k, v (..., T, hs) -> (..., T, hs)."""
    # The dots stand for any dimensions in front, such as B. -2 and -1 are the last two dimensions.
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])       # (..., T, T), a row per query
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)       # triu: True above the diagonal
    weights = scores.masked_fill(later, -math.inf).softmax(-1)      # each row sums to 1
    return weights @ v                                  # (..., T, T) @ (..., T, hs) -> (..., T, hs)


# To see the weights, take the identity matrix as values, because weights @ identity = weights. The
# last row is the one from above:
# >>> q = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
# >>> attention(q, k, torch.eye(3))
# tensor([[1.0000, 0.0000, 0.0000],
#         [0.0558, 0.9442, 0.0000],
#         [0.8943, 0.0529, 0.0529]])

# PyTorch has the same function, only faster. The GPT uses that one:
# >>> v = torch.tensor([[10.0], [20.0], [30.0]])
# >>> attention(q, k, v)[2], F.scaled_dot_product_attention(q, k, v, is_causal=True)[2]
# (tensor([11.5857]), tensor([11.5857]))

# A token may need several things at once, such as the last vowel and the beginning of the word. But
# it receives a single mean. So a GPT has nh heads, each with queries, keys and values of its own,
# of hs = C / nh numbers. One linear layer makes the queries of all heads, C numbers for each token.
# They are then cut into nh groups, one for each head:
#
#                          head 0   head 1
#     token 0   1 2 3 4      1 2      3 4
#     token 1   5 6 7 8  ->  5 6      7 8
#
# On the left, the shape is (T, C) = (2, 4). On the right, it is (nh, T, hs) = (2, 2, 2). As nh is
# one more dimension in front, `attention` serves all heads at once.
def split_heads(x, n_head):
    """Give each head its part of the channels: (B, T, C) -> (B, nh, T, hs)."""
    B, T, C = x.shape
    x = x.view(B, T, n_head, C // n_head)               # view cuts C in two: -> (B, T, nh, hs)
    return x.transpose(1, 2)                            # transpose swaps two: -> (B, nh, T, hs)


# >>> split_heads(torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]]), 2).tolist()
# [[[[1, 2], [5, 6]], [[3, 4], [7, 8]]]]

# This module puts it together. Its layer qkv makes queries, keys and values at once. The last
# layer, proj (projection), mixes what the heads have found, which has been kept in separate
# channels so far.
class CausalSelfAttention(nn.Module):
    """Each token collects from itself and those before it: (B, T, C) -> (B, T, C)."""
    def __init__(self, config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        if C % self.n_head:
            raise ValueError(f"n_embd={C} must be a multiple of n_head={self.n_head}")
        self.qkv = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C)

    def attend(self, q, k, v):                          # the appendix replaces it
        """Three of (B, nh, T, hs) -> (B, nh, T, hs)."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)          # (B, T, C) -> three of (B, T, C)
        q, k, v = (split_heads(z, self.n_head) for z in (q, k, v))      # three of (B, nh, T, hs)
        y = self.attend(q, k, v)                        # (B, nh, T, hs)
        y = y.transpose(1, 2).flatten(2)                # (B, T, nh, hs) -> (B, T, C), as it was
        return self.proj(y)


# Is it causal? Change the last of three tokens, and see which results stay as they were:
# >>> layer = CausalSelfAttention(Config(n_embd=4, n_head=2))
# >>> x, y = torch.randn(2, 1, 3, 4)                      # two of (B, T, C) = (1, 3, 4)
# >>> y[:, :2] = x[:, :2]                                 # the first two tokens are the same
# >>> (layer(x) == layer(y)).all(dim=-1)
# tensor([[ True,  True, False]])

# %% 6. Positions
# A mean does not depend on order. In one layer of attention, the last token sees the earlier ones
# like balls in a bag: which ones are there, but not in what order. Rearrange the first three.
# (Here, x serves as queries, keys and values.)
# >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
# >>> y = x[[2, 0, 1, 3]]
# >>> attention(x, x, x)[3], attention(y, y, y)[3]        # what the last token receives
# (tensor([1.6089, 0.1956]), tensor([1.6089, 0.1956]))

# But "dog bites man" is not "man bites dog". So each token should carry its position. A second
# table, learned like the first, has a vector for each position in the context. It is added to the
# vector of the token, and then the same token is different at each place:
# >>> positions = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
# >>> x, y = x + positions, y + positions
# >>> attention(x, x, x)[3], attention(y, y, y)[3]
# (tensor([2.2414, 0.5739]), tensor([2.2491, 0.4901]))

# %% 7. GPT
# Attention collects information; the MLP (multilayer perceptron) then processes it, one token at a
# time. It has two linear layers, C -> 4C -> C (four times is usual). Two in a row could do no more
# than one, because the product of two matrices is a matrix. So GELU (Gaussian error linear unit)
# bends the numbers between them: large positive ones stay, and large negative ones become 0.
# >>> F.gelu(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]), approximate="tanh")     # as in GPT-2
# tensor([-0.0036, -0.1588,  0.0000,  0.8412,  2.9964])

class MLP(nn.Module):
    """Each token processes what it has collected: (B, T, C) -> (B, T, C)."""
    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd)       # fc: fully connected
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        x = F.gelu(self.fc(x), approximate="tanh")      # (B, T, C) -> (B, T, 4C)
        return self.proj(x)                             # (B, T, 4C) -> (B, T, C)


# Attention and an MLP together are a block, and a GPT is a stack of blocks. Why several? In the
# second block, a token collects from tokens that have already collected. So the first block may put
# letters together into a word, and the second may find the words that belong together.
#
# But a tall stack is hard to train. By the chain rule, the slopes of its layers are multiplied. If
# each is 0.1, then ten of them make 0.0000000001, and the first layer hardly learns. The remedy is
# x = x + layer(x). What flows through the stack is then called the residual stream: layers do not
# replace what it carries, they add to it. The slope of such a sum is not 0.1, but 1 + 0.1:
# >>> round(0.1**10, 4), round((1 + 0.1)**10, 4)          # the second is large enough to learn by
# (0.0, 2.5937)

# A stream to which many layers add can grow. So a LayerNorm stands before each layer, which then
# reads numbers of the same size: it first brings the C numbers of a token to mean 0 and standard
# deviation 1. Then it multiplies each channel by a learned number, which begins at 1, and adds
# another, which begins at 0.
# >>> nn.LayerNorm(4)(torch.tensor([10.0, 20.0, 30.0, 40.0])).data
# tensor([-1.3416, -0.4472,  0.4472,  1.3416])

# Trained for long enough, a model may learn its text by heart. Dropout sets a random share of the
# numbers to zero, so that the model cannot rely on any of them. The others are enlarged, and the
# mean stays the same. When the model writes, dropout is off. (Our short run does without it.)
# >>> nn.Dropout(0.5)(torch.ones(1000)).unique()          # which numbers are there?
# tensor([0., 2.])

class Block(nn.Module):
    """Tokens collect, then each processes: (B, T, C) -> (B, T, C)."""
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = x + self.dropout(self.attn(self.ln_1(x)))
        x = x + self.dropout(self.mlp(self.ln_2(x)))
        return x


# Blocks with attention and an MLP make a transformer, the T in GPT. This is the whole of it, in the
# order in which data flows. The residual stream runs down the left:
#
#     embed          (B, T) -> (B, T, C), the token's vector plus the position's vector
#      |
#      +---> ln_1 ---> attn ---.         tokens collect from tokens      \
#     sum <--------------------'                                         |  a block,
#      +---> ln_2 ---> mlp ----.         each token works by itself      |  n_layer times
#     sum <--------------------'                                         /
#      |
#     ln_f           the last LayerNorm (f for final)
#     lm_head        (B, T, C) -> (B, T, V), the logits
#
# lm_head (the head of a language model, which has nothing to do with attention heads) is a linear
# layer with a vector for each token of the vocabulary. The logit of a token is the dot product of
# its vector with what has arrived at the end of the stream: how well do they fit?
class GPT(nn.Module):
    """Predicts each token from all tokens so far: `logits, loss = model(idx, targets)`."""
    def __init__(self, config):
        super().__init__()
        self.config, self.block_size = config, config.block_size    # the context, not a Block
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def embed(self, idx):
        """What each token is, plus where it stands: (B, T) -> (B, T, C)."""
        positions = self.position_embedding.weight[:idx.shape[1]]   # the first T rows: (T, C)
        return self.token_embedding(idx) + positions    # (B, T, C) + (T, C), added to each sequence

    def forward(self, idx, targets=None):
        """Token ids: idx, targets (B, T) -> logits (B, T, V), and the loss () or None."""
        if idx.shape[1] > self.block_size:
            raise ValueError(f"{idx.shape[1]} tokens do not fit into block_size={self.block_size}")
        x = self.dropout(self.embed(idx))               # (B, T) -> (B, T, C)
        for block in self.blocks:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))             # (B, T, C) -> (B, T, V)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


# PyTorch fills a new model with random numbers, so an untrained GPT knows nothing. Its loss is even
# above ln(65): it has random preferences, and a bad surprise costs more than a lucky guess earns.
# >>> _ = torch.manual_seed(0)                            # so that you get the same random numbers
# >>> model = GPT(Config())
# >>> x, y = torch.randint(65, (2, 12, 64))               # any tokens will do
# >>> logits, loss = model(x, y)
# >>> round(loss.item(), 1), round(math.log(65), 1)
# (4.3, 4.2)

# How large is it? In a block, qkv is a matrix of C x 3C numbers, attn.proj has C x C, and each
# layer of the MLP C x 4C, which makes 12 C^2. So three blocks have 3 * 12 * 128^2 = 589,824
# parameters. The rest are mostly tables:
# >>> sum(p.numel() for p in model.parameters())          # numel counts the numbers in a tensor
# 619904

# %% 8. Training
# Training is gradient descent, as in chapter 4: thousands of steps, each with a new batch. But
# plain steps are slow, for two reasons. The slopes are noisy, because each comes from one small
# batch. And they differ in size, so that no single learning rate suits all parameters.
#
# Adam (Kingma & Ba 2015) has a remedy for both. For each parameter w with the slope g, it keeps a
# running mean m of the slopes, in which noise cancels out, and a running mean v of their squares
# (not a value of chapter 5). So sqrt(v) is the typical size of a slope. Adam divides m by it, and
# the step no longer depends on how large the slopes are:
#
#     m = 0.9 m + 0.1 g             over about 10 steps
#     v = 0.99 v + 0.01 g^2         over about 100 steps
#     w = w - learning_rate * m / sqrt(v)
#
# Both means begin at 0 and are too small at first: after one step, m is only 0.1 g. So in step t,
# Adam uses m / (1 - 0.9^t) and v / (1 - 0.99^t), which in the first step are exactly g and g^2. It
# also adds 0.00000001 to sqrt(v), so that it never divides by 0. If its slopes agree, a parameter
# moves by about the learning rate; if they contradict each other, it moves less. Try a first step
# with the slopes 100 and 0.01:
# >>> w = nn.Parameter(torch.tensor([1.0, 1.0]))
# >>> adam = torch.optim.AdamW([w], lr=0.1, weight_decay=0.0)         # without decay, it is Adam
# >>> (w @ torch.tensor([100.0, 0.01])).backward()        # the slopes of 100 w0 + 0.01 w1
# >>> adam.step()
# >>> w.data
# tensor([0.9000, 0.9000])

# AdamW (Loshchilov & Hutter 2019) adds weight decay: each step also subtracts learning_rate *
# weight_decay * w from w. So numbers stay large only if the loss needs them, which leaves less room
# for memorizing.
def build_optimizer(model, config):
    """AdamW. Matrices and tables decay; the few numbers in biases and LayerNorms do not."""
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2]},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99),
                             weight_decay=config.weight_decay, fused=True)      # fused: faster


# The learning rate changes as training goes on. At first it rises (warm-up), because a mean of only
# a few slopes is unreliable. Then it falls to 0: large steps make fast progress at first, and small
# steps are needed to settle at a low loss.
def learning_rate_at(step, config):
    """The learning rate in a step; the first is step 0."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (config.max_steps - step) / max(config.max_steps - warmup, 1)


# At the beginning, halfway up, at the peak, halfway down, and at the end:
# >>> [round(learning_rate_at(step, Config()), 5) for step in (0, 49, 99, 1550, 3000)]
# [4e-05, 0.002, 0.004, 0.002, 0.0]

# Now and then, an odd batch has enormous slopes, which would spoil m and v for many steps. Gradient
# clipping treats all the slopes as one long vector. Its length is the root of the sum of squares,
# and if that is more than grad_clip, the vector is shortened.
def training_step(model, optimizer, data, step, config):
    """One step of gradient descent. Returns the loss of its batch, a float."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, config)
    x, y = get_batch(data, step, config)
    model.train()                                       # trains nothing: it turns dropout on
    logits, loss = model(x, y)
    optimizer.zero_grad()                               # backward adds to p.grad, so begin at 0
    loss.backward()                                     # now each parameter has its slope
    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()                                    # and here it moves
    return loss.item()


# Outside training, we want no dropout, and PyTorch need not remember anything for slopes. The lines
# inside `with eval_mode(model):` run that way. Afterwards, the model is as before, even after an
# error.
@contextmanager
def eval_mode(model):
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield                                       # the body of the `with` runs here
    finally:
        model.train(was_training)


# How good is a model? Let it predict the whole validation split, in windows one after the other.
# The first tokens of a window have little to look back on, so the loss is a little too high.
def evaluate(model, data):
    """Mean loss over data (N,), a float. The last tokens, which fill no window, are left out."""
    T = model.block_size
    if len(data) <= T:
        raise ValueError(f"block_size={T} needs over {T} tokens to validate on, not {len(data)}")
    windows, total = data.unfold(0, T + 1, T), 0.0      # (N,) -> (n, T+1)
    with eval_mode(model):
        for part in windows.split(max(1, 2048 // T)):   # 2,048 tokens at a time, to save memory
            logits, loss = model(part[:, :-1].long(), part[:, 1:].long())
            total += loss.item() * len(part)
    return total / len(windows)


# `train` is a generator: it works while you loop over it, and you can print, or do something else,
# after each evaluation. The training loss is a mean over the steps since the previous evaluation,
# when the model still knew less. So it can be higher than the validation loss.
def train(model, train_data, val_data, config):
    """Train the model. After each evaluation, yield (step, train_loss, val_loss)."""
    optimizer, losses = build_optimizer(model, config), []
    for step in range(1, config.max_steps + 1):
        losses.append(training_step(model, optimizer, train_data, step - 1, config))
        if step % config.eval_interval == 0 or step == config.max_steps:
            yield step, sum(losses) / len(losses), evaluate(model, val_data)
            losses = []


# Remember "hello " from chapter 1. After an l, a bigram model has to choose between l and o, which
# costs ln(2). Two of six characters are an l, so its loss is at least 2/6 ln(2) = 0.23. A tiny GPT
# looks further back. It has to guess only where a window of 8 begins with an l, which is one window
# in three: ln(2) / 8 / 3 = 0.03. (As this text repeats itself, it serves for training and for
# validation.)
# >>> tiny = Config(vocab_size=5, block_size=8, n_layer=1, n_head=2, n_embd=16, max_steps=300)
# >>> data = encode_text("hello " * 100, tokenizer)
# >>> bigram, gpt = BigramLanguageModel(5), GPT(tiny)
# >>> faster = replace(tiny, learning_rate=0.1, weight_decay=0.0)         # a changed copy
# >>> [(step, round(val_loss, 2)) for step, _, val_loss in train(bigram, data, data, faster)]
# [(300, 0.24)]
# >>> [(step, round(val_loss, 2)) for step, _, val_loss in train(gpt, data, data, tiny)]
# [(300, 0.04)]

# %% 9. Sampling
# The model gives probabilities; a text needs decisions. Always taking the likeliest token makes a
# dull text that repeats itself. Drawing from the unchanged probabilities will now and then pick a
# token that spoils the text. Three settings help:
#
#     temperature     divide the logits by it: below 1, likely tokens become likelier still; above
#                     1, probabilities come closer together; at 0, only the likeliest is left
#     top_k           draw only from the k likeliest tokens (and those as likely as the last one)
#     top_p           draw only from the fewest tokens that together have at least the probability p
def next_token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """The probabilities to draw the next token with: logits (B, V) -> (B, V)."""
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()   # 1 for the likeliest
    logits = logits.float() / temperature
    if top_k is not None:
        likeliest = logits.topk(min(max(top_k, 1), logits.shape[-1])).values    # (B, V) -> (B, k)
        logits = logits.masked_fill(logits < likeliest[:, -1:], -math.inf)      # below the last one
    if top_p is not None and top_p < 1:
        ordered = logits.sort(dim=-1, descending=True).values       # (B, V), the likeliest first
        probs = ordered.softmax(dim=-1)
        before = probs.cumsum(dim=-1) - probs           # what all likelier tokens have together
        count = (before < top_p).sum(dim=-1, keepdim=True).clamp(min=1)     # (B, 1): so many stay
        logits = logits.masked_fill(logits < ordered.gather(-1, count - 1), -math.inf)
    return logits.softmax(dim=-1)                       # dim=-1: along each row


# Take the logits of chapter 4, first with a temperature of 0.5. Then keep the two likeliest tokens:
# >>> logits = torch.tensor([[2.0, 1.0, 0.0, 0.0, -1.0]])
# >>> next_token_probabilities(logits, temperature=0.5)
# tensor([[0.8515, 0.1152, 0.0156, 0.0156, 0.0021]])
# >>> next_token_probabilities(logits, top_k=2)
# tensor([[0.7311, 0.2689, 0.0000, 0.0000, 0.0000]])

# With top_p = 0.7, the same two stay: the likeliest has 0.59, which is not enough, and the next one
# brings it to 0.81. In the code, `before` is 0, 0.59, 0.81, 0.89, 0.97, so `count` is 2.
# >>> next_token_probabilities(logits, top_p=0.7)
# tensor([[0.7311, 0.2689, 0.0000, 0.0000, 0.0000]])

# To write, the model predicts at all positions, as in training. But what follows the earlier tokens
# is known, so only the prediction at the last position is used.
def generate(model, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Continue idx (B, T), which is not empty, with any model -> (B, T + max_new_tokens).

    generator: a torch.Generator to draw with. One thread at a time: the model is in eval mode.
    """
    if idx.shape[1] == 0:
        raise ValueError("there must be at least one token to continue")
    with eval_mode(model):
        for _ in range(max_new_tokens):
            logits, loss = model(idx[:, -model.block_size:])        # as many tokens as it can see
            probs = next_token_probabilities(logits[:, -1], temperature, top_k, top_p)
            token = torch.multinomial(probs, 1, generator=generator)        # draw one: (B, 1)
            idx = torch.cat((idx, token), dim=1)                    # (B, T), (B, 1) -> (B, T+1)
    return idx


def complete(model, tokenizer, prompt, max_new_tokens, seed=0, temperature=0.8):
    """The prompt, and what the model writes after it: a str. 0.8: less variety, fewer slips."""
    idx = torch.tensor([tokenizer.encode(prompt)])                  # (1, T)
    draw = torch.Generator().manual_seed(seed)                      # a source of random numbers
    idx = generate(model, idx, max_new_tokens, temperature, generator=draw)
    return tokenizer.decode(idx[0].tolist())


# The tiny GPT of chapter 8 knows its text by now:
# >>> complete(gpt, tokenizer, "he", 12)
# 'hello hello he'

# Here, each new token costs a pass over all tokens before it. Much of this could be saved: because
# of the causal mask, nothing that comes later changes a token, so its keys and values stay the same
# as long as the text fits into the context. A KV cache keeps them (see the appendix).

# %% 10. The run
# Here is all of it in order. A bigram model looks at single tokens, so a batch can have many of
# them, and its table can take large steps:
def bigram_config(config):
    return replace(config, block_size=1, batch_size=2048, max_steps=min(500, config.max_steps),
                   eval_interval=500, learning_rate=0.2, weight_decay=0.0)


# At the end, both models complete lines that neither has seen, given the first 12 characters. A
# line is cut at 37, so that two fit side by side into a terminal.
def finish_lines(model, tokenizer, val_text):
    """At most twenty lines of val_text, each finished by the model: a list of str."""
    lines = [line for line in val_text.split("\n") if line]
    lines = [line for line in lines if len(line) > 24] or lines     # long ones, if there are any
    prompts = [line[:min(12, len(line) // 2 + 1)] for line in lines[:20]]
    return [complete(model, tokenizer, prompt, 25, seed=i).split("\n")[0][:37]     # one line
            for i, prompt in enumerate(prompts)]


# The last three arguments of `run` are there for you: other tokens, a model of your own, or another
# way to train it. (The appendix uses all three.)
def run(name, text, config, tokenizer=None, make_gpt=GPT, train_gpt=train):
    """Train a bigram model and a GPT, and let both write. Returns both, and the tokenizer."""
    tokenizer = tokenizer or CharTokenizer(text)
    config = replace(config, vocab_size=tokenizer.vocab_size)
    train_text, val_text = train_val_split(text)
    train_data, val_data = encode_text(train_text, tokenizer), encode_text(val_text, tokenizer)
    print(f"{config.vocab_size} different tokens, {len(train_data):,} to train on, "
          f"{len(val_data):,} to validate on")

    bigram = BigramLanguageModel(config.vocab_size)
    for step, train_loss, val_loss in train(bigram, train_data, val_data, bigram_config(config)):
        print(f"bigram  step {step:>4}  train {train_loss:.3f}  val {val_loss:.3f}")

    torch.manual_seed(config.seed)                          # decides the first parameters
    gpt = make_gpt(config)
    for step, train_loss, val_loss in train_gpt(gpt, train_data, val_data, config):
        print(f"gpt     step {step:>4}  train {train_loss:.3f}  val {val_loss:.3f}")

    finished = []
    DATA.mkdir(exist_ok=True)
    for kind, model in (("bigram", bigram), ("gpt", gpt)):
        model.eval()                                        # from now on, without dropout
        loss = evaluate(model, val_data)
        print(f"\n{kind}: loss {loss:.3f}, perplexity {math.exp(loss):.1f}. It writes:\n")
        print(complete(model, tokenizer, text[0], 400))
        finished.append(finish_lines(model, tokenizer, val_text))
        content = "".join(line + "\n" for line in finished[-1])
        (DATA / f"{name}-{kind}.txt").write_text(content, encoding="utf-8")

    print("\nBoth complete lines that they have never seen (left: bigram, right: gpt):\n")
    for left, right in zip(*finished):
        print(f"{left:<37} | {right}")
    print(f'\nTo compare:  diff -y -W 79 "{DATA}/{name}-bigram.txt" "{DATA}/{name}-gpt.txt"')
    return bigram, gpt, tokenizer


# This is what it printed on 2026-11-29, with some lines left out:
#
#     65 different tokens, 1,003,854 to train on, 111,540 to validate on
#     bigram  step  500  train 2.567  val 2.492
#     gpt     step  500  train 2.336  val 2.063
#     gpt     step 1500  train 1.677  val 1.805
#     gpt     step 3000  train 1.461  val 1.631
#
#     bigram: loss 2.492, perplexity 12.1. It writes:
#
#     Whe s h. fo INVe thapllie mily mpofond ssay tint oueld fleome inou ind t he the s t inobe y
#
#     gpt: loss 1.631, perplexity 5.1. It writes:
#
#     Though you for bear chance of so hell!
#     The hands that of you wake have stricked,
#     Make nemy father well you for made it it.
#
#     DUKE OF YORK:
#     The duke. So I well, plain me: thou snow say, if the light
#     of with the medden of set in be standers:
#
#     Both complete lines that they have never seen (left: bigram, right: gpt):
#
#     I have a dautiggr t APur              | I have a daughter that the tongue sus
#     You wrong mesthatande malshas.        | You wrong me, for I had with our hear
#     I am a gentllto's matocos:            | I am a gentleman, may comes ourning!
#     That, hearind tht the ou hen and osou | That, hearing that we out on her of t
#     Her affabilis thithaut                | Her affability patient
#     Am bold to seme ge b thes the'st thar | Am bold to see put in his fortune.
#
# The bigram model is as unsure as if it had to choose among 12 characters, and knows hardly any
# words. The GPT chooses among 5, and writes words, names and verses. To make sense, it would have
# to be larger and read more. In the end, its training loss is below its validation loss. Part of
# this may be that it has begun to know its text by heart. But the validation text is also a little
# harder: a table of counted bigrams has a loss of 2.45 on the training text, and 2.48 on this one.
#
# Now it is yours. These lines train both again, and ask what the GPT expects after ROME:
# >>> bigram, gpt, tokenizer = run("shakespeare", load_shakespeare(), Config())
# >>> logits, loss = gpt(torch.tensor([tokenizer.encode("ROME")]))
# >>> probs, ids = logits[0, -1].softmax(-1).topk(5)              # the five likeliest
# >>> [(tokenizer.decode([i]), round(p, 3)) for p, i in zip(probs.tolist(), ids.tolist())]
# [('O', 0.976), ('L', 0.007), ('S', 0.005), (':', 0.004), ('R', 0.002)]
# >>> print(complete(gpt, tokenizer, "ROMEO:", 200))              # it continues what you begin

# From here to ChatGPT, the architecture stays nearly the same, and everything else grows:
#
#              parameters   layers   heads    width   context     tokens read
#     ours    0.6 million        3       4      128        64     2.3 million
#     GPT-2   1.5 billion       48      25    1,600     1,024  (40 GB of text)
#     GPT-3   175 billion       96      96   12,288     2,048     300 billion
#
# This training on plain text is called pre-training. It makes a model that continues texts. To
# become an assistant, the model is trained further: on conversations that people wrote, and then to
# prefer the answers that people preferred (Ouyang et al. 2022).
#
# To go on: attention_toy.py shows what trained heads look at, tests/ablation.py what each part of a
# GPT is worth, and the README how to train on a text of your own. The papers are "Attention is all
# you need" (arXiv 1706.03762), Adam (1412.6980), AdamW (1711.05101), GPT-2 (Radford et al. 2019),
# GPT-3 (2005.14165) and InstructGPT (Ouyang et al., 2203.02155). This file owes much to Andrej
# Karpathy's lecture "Let's build GPT" and his nanoGPT, and to Jay Mody's picoGPT.


# %% Appendix
# You know now how a GPT works. What follows is for those who use this file: each section can be
# read by itself, and plugs into the story from outside.

import argparse
import copy
import functools
import inspect
import json
import operator
import os
import re
import shlex
import sys
import time
from collections import Counter, defaultdict
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, fields
from itertools import pairwise
from types import SimpleNamespace
from unicodedata import category


class UserError(ValueError):
    """What somebody gave cannot work. The command line says it in one line, without a traceback."""


def check(holds, message):
    if not holds:
        raise UserError(message)


def reason(error):
    """What went wrong in a file, in one sentence."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + str(error).partition(". ")[0]


def check_range(name, value, low, below=2**32):
    check(low <= value < below, f"{name} must be at least {low} and below {below}, not {value}")


# %% Appendix: Faster sampling
# `generate` computes all tokens again for each new one. But no token is changed by what comes after
# it. So its keys and values can be kept, and only the newest token has to pass through the model.

class KVCache:
    """The keys and values of the tokens that a GPT has read, for each of its blocks."""

    def __init__(self, model):
        self.length, self.room, self.kept = 0, model.block_size, {}

    def update(self, block, k, v):
        """Append k, v (B, nh, new, hs) -> all keys and all values so far, two of (B, nh, T, hs)."""
        B, nh, new, hs = k.shape
        if block not in self.kept:
            self.kept[block] = k.new_empty(2, B, nh, self.room, hs)
        kept, end = self.kept[block], self.length + new
        kept[0, :, :, self.length:end], kept[1, :, :, self.length:end] = k, v
        return kept[:, :, :, :end]


def last_logits(model, idx, cache):
    """Those of model(idx) at its end: (B, T) -> (B, V). The cache has no token, or all but one."""
    start = cache.length
    x = model.embed(idx)[:, start:]                     # (B, T, C) -> (B, new, C)
    for block in model.blocks:
        q, k, v = block.attn.qkv(block.ln_1(x)).chunk(3, dim=-1)
        q, k, v = (split_heads(z, block.attn.n_head) for z in (q, k, v))        # (B, nh, new, hs)
        if isinstance(block.attn, RotaryAttention):     # see the next section; keys are kept turned
            q, k = block.attn.turn(q, start), block.attn.turn(k, start)
        k, v = cache.update(block, k, v)                # (B, nh, new, hs) -> (B, nh, T, hs)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=start == 0)       # one token sees all
        x = x + block.attn.proj(y.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    cache.length = idx.shape[1]
    return model.lm_head(model.ln_f(x[:, -1]))          # (B, new, C) -> (B, C) -> (B, V)


# When the text outgrows the context, `generate` drops its oldest token at each step. But then all
# others move by one position, and what was kept is of no use. So when the context is full, the
# newer half is read into a new cache.

def stream(model, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Yield each new token (B, 1) as soon as it is drawn. To be used in eval_mode."""
    check(type(model) in POSITIONS.values(), f"no cache for a {type(model).__name__}; use generate")
    check(idx.shape[1] > 0, "there must be at least one token to continue")
    check_sampling(temperature, top_k, top_p)
    T, window, cache = model.block_size, idx[:, -model.block_size:], KVCache(model)
    for _ in range(max_new_tokens):
        if window.shape[1] > T:                         # the newer half, and the newest token
            window, cache = window[:, -(T // 2) - 1:], KVCache(model)
        logits = last_logits(model, window, cache)
        probs = next_token_probabilities(logits, temperature, top_k, top_p)
        token = torch.multinomial(probs, 1, generator=generator)                # (B, V) -> (B, 1)
        window = torch.cat((window, token), dim=1)
        yield token


def check_sampling(temperature, top_k, top_p):
    check(temperature == 0 or 1e-3 <= temperature < math.inf,
          f"temperature must be 0 or at least 0.001, not {temperature}")
    check(top_k is None or top_k >= 1, f"top_k must be at least 1, not {top_k}")
    check(top_p is None or 0 < top_p <= 1, f"top_p must be above 0 and at most 1, not {top_p}")


def generate_cached(model, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None,
                    generator=None):
    """The same as `generate`, faster, for a GPT. UserError for settings that make no sense.

    The tokens are the same as long as the text fits into the context. One thread a model.
    """
    with eval_mode(model):
        new = list(stream(model, idx, max_new_tokens, temperature, top_k, top_p, generator))
    return torch.cat((idx, *new), dim=1)                # (B, T), many (B, 1) -> (B, T + new)


# %% Appendix: Other positions
# Picture clocks, whose hands turn with each token: the fastest by 1 radian, the slowest once around
# in 10 * block_size tokens. Together, the hands show the position. There are two ways to use them:
#
#     sinusoidal  instead of learned rows, add the sines and cosines (Vaswani et al. 2017)
#     rotary      add nothing. Turn each pair of numbers in queries and keys like the hands of a
#                 clock. If both turn alike, the dot product stays: only the distance between two
#                 tokens counts (RoPE; Su et al. 2021, arXiv 2104.09864)
#
# (The published frequencies are 10000^(-2i/d). Ours fit the context, so that in a short one, even
# the slowest clock visibly moves.)

def clock_angles(positions, n_clocks, block_size):
    """The angle of each clock in radians, the fastest first: (T,) -> (T, n_clocks)."""
    slowest = 2 * math.pi / (10 * block_size)           # radians for each token
    return positions[:, None] * slowest ** torch.linspace(0, 1, n_clocks, device="cpu")


def sinusoids(config):
    """The sines and cosines of C / 2 clocks at each position of the context: (block_size, C)."""
    positions = torch.arange(config.block_size, device="cpu")       # here, even if models are built
    angles = clock_angles(positions, config.n_embd // 2, config.block_size)     # on "meta" (below)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def rotate(x, cos, sin):
    """Turn the n pairs in x (..., T, 2n) by angles with these cosines and sines (T, n)."""
    a, b = x.chunk(2, dim=-1)                           # two of (..., T, n)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class SinusoidalGPT(GPT):
    """A GPT whose vectors of positions are fixed."""

    def __init__(self, config):
        super().__init__(config)
        del self.position_embedding
        self.register_buffer("waves", 0.3 * sinusoids(config), persistent=False)    # 0.3: by trying

    def embed(self, idx):
        return self.token_embedding(idx) + self.waves[:idx.shape[1]]


class RotaryAttention(CausalSelfAttention):
    """Attention in which queries and keys are turned."""

    def __init__(self, config):
        super().__init__(config)
        positions = torch.arange(config.block_size, device="cpu")
        n_clocks = config.n_embd // config.n_head // 2
        angles = clock_angles(positions, n_clocks, config.block_size)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def turn(self, x, start=0):
        """Turn x (B, nh, T, hs), which stands at the positions start, start + 1, ..."""
        rows = slice(start, start + x.shape[-2])
        return rotate(x, self.cos[rows], self.sin[rows])

    def attend(self, q, k, v):
        return super().attend(self.turn(q), self.turn(k), v)


class RotaryGPT(GPT):
    """A GPT without a table of positions."""

    def __init__(self, config):
        super().__init__(config)
        del self.position_embedding
        for block in self.blocks:
            block.attn = RotaryAttention(config)

    def embed(self, idx):
        return self.token_embedding(idx)


POSITIONS = {"learned": GPT, "sinusoidal": SinusoidalGPT, "rotary": RotaryGPT}


# %% Appendix: A head start
# With --head_start, the loss on Shakespeare is 1.59 after 3,000 steps, in place of 1.63. Two
# findings are given to the model from the start. Channels of their own: tokens write to the last
# quarter of the residual stream, and lm_head reads the other three. So tokens do not blur the
# positions, and lm_head can begin at full size. Looking back: the heads of the first block look 1
# to n_head tokens back, by the clocks above: keys show their hands, and queries turn them back.

@torch.no_grad()
def head_start(model):
    """Change the first parameters of a GPT as described above."""
    config, qkv = model.config, model.blocks[0].attn.qkv
    C, nh, n = config.n_embd, config.n_head, config.n_embd // config.n_head // 2
    for name, p in model.named_parameters():
        if name.endswith(("qkv.weight", "fc.weight")):
            nn.init.normal_(p, std=1 / math.sqrt(C))
    quarter = max(1, C // 4)
    tokens, logits = model.token_embedding.weight, model.lm_head.weight
    nn.init.normal_(tokens, std=1.0)[:, :-quarter] = 0
    nn.init.normal_(logits, std=1 / math.sqrt(C))[:, -quarter:] = 0
    if isinstance(model, RotaryGPT):                    # constants, which attention turns: biases
        heads = qkv.bias.view(3, nh, -1, 1)             # (3C,) -> (3, nh, hs, 1)
        qkv.weight[:2 * C] = 0
        keys = torch.tensor([[1.0] * n + [0.0] * n])    # (1, 2n), all hands at 0
    else:                                               # what was added: sines, then cosines
        heads = qkv.weight.view(3, nh, -1, C)           # (3C, C) -> (3, nh, hs, C)
        keys = torch.eye(C).roll(C // 2, dims=1)        # (C, C): cosines, then sines
        if hasattr(model, "position_embedding"):
            model.position_embedding.weight.copy_(0.3 * sinusoids(config))
    half = keys.shape[1] // 2
    fastest = [*range(n), *range(half, half + n)]       # as many clocks as a head has room for
    for h in range(nh):
        angles = clock_angles(torch.tensor([-1.0 - h]), half, config.block_size)
        queries = rotate(keys, angles.cos(), angles.sin())      # the shape of keys
        heads[0, h, :2 * n] = 6 * queries.T[fastest]            # 6 is large enough
        heads[1, h, :2 * n] = 6 * keys.T[fastest]


@dataclass(frozen=True)
class Options(Config):
    """The hyperparameters of the story, and what the appendix adds to them."""
    position: str = "learned"       # how tokens know their place: learned, sinusoidal, rotary
    head_start: bool = False        # better first parameters, as the appendix describes
    dtype: str = "float32"          # bfloat16 computes with 16 bits: faster on some processors


def check_options(config):
    """A Config as Options of plain Python numbers. UserError if it cannot be trained with them."""
    values = {}
    for field in fields(Options):
        name, kind, value = field.name, field.type, getattr(config, field.name, field.default)
        try:
            check(isinstance(value, str) == (kind is str), "")
            value = {int: operator.index, float: float}.get(kind, kind)(value)
        except (TypeError, ValueError, RuntimeError, ArithmeticError):
            raise UserError(f"{name} must be {kind.__name__}, not {value!r}") from None
        if kind in (int, float):
            zero = name in ("dropout", "weight_decay", "warmup_steps", "seed")
            check_range(name, value, 0 if zero else 1 if kind is int else 1e-12,
                        1 if name == "dropout" else 2**32)
        values[name] = value
    options = Options(**values)
    C, nh, position = options.n_embd, options.n_head, options.position
    check(position in POSITIONS, f"position must be {', '.join(POSITIONS)}, not {position!r}")
    check(options.dtype in ("float32", "bfloat16"),
          f"dtype must be float32 or bfloat16, not {options.dtype!r}")
    check(C % nh == 0, f"n_embd={C} must be a multiple of n_head={nh}")
    pairs = {"rotary": C // nh, "sinusoidal": C}.get(position, C if options.head_start else 0)
    check(pairs % 2 == 0, f"position={position}, head_start={options.head_start} need pairs of "
                          f"numbers, and n_embd={C}, n_head={nh} leave them {pairs}")
    size = (12 * C * options.n_layer + options.vocab_size + options.block_size) * C
    check(size < 2**40, f"n_embd={C} and n_layer={options.n_layer} make {size:.0e} parameters, "
                        "which fit into no memory")
    return options


def build_gpt(config):
    """The untrained GPT that a Config or Options describe. UserError if there is none."""
    options = check_options(config)
    model = POSITIONS[options.position](options)
    if options.head_start:
        head_start(model)
    return model


# %% Appendix: Subwords
# Characters are small steps: 64 of them are a dozen words. Byte-pair encoding (BPE; Sennrich et al.
# 2016, on bytes as in GPT-2) starts from the 256 bytes, of which UTF-8 makes every text. Again and
# again, the pair of neighbors that occurs most often becomes a new token:
#
#     a a a b d a a a b a c  ->  aa a b d aa a b a c  ->  aaa b d aaa b a c  ->  aaab d aaab a c
#
# The text is cut into words first, each with the space before it, so no token reaches across words.
# After 45 seconds of training on Shakespeare, a GPT needs 2.72 bits for each character if tokens
# are characters, 2.43 with 1,024 subwords, and 2.69 with the 4,096 most frequent words, which lack
# 9% of those in the held-out text (tests/ablation.py --cuts 45).

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
    """The pairs to merge, in their order. UserError if too few pairs occur twice."""
    words = Counter(match[0] for match in split_pattern().finditer(text))   # each is cut once
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
        show_progress(f"finding subwords: {256 + len(made)} of {vocab_size}")
        pair = max(counts, key=lambda pair: (counts[pair], pair), default=None)
        check(counts[pair] > 1, f"the text is too short for vocab_size={vocab_size}; its pairs of "
                                f"tokens make {256 + len(made)} at most")
        for word in users.pop(pair):                        # only these have to be counted again
            count(word, -1)
            parts[word] = merge(parts[word], pair)
            count(word, 1)
        merges.append(pair)
        made.add(pair[0] + pair[1])
    show_progress()
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
        self.words = {}                                             # {word: ids}: most come again

    def encode(self, text):
        """str -> list of int. Any text can be encoded."""
        encoded = []
        for match in split_pattern().finditer(text):        # findall would hold all words at once
            word = match[0]
            if word not in self.words:
                self.words[word] = self.encode_word(word)
            encoded += self.words[word]
        return encoded

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
# are more blocks, heads and channels, and lm_head shares its table with token_embedding. (To train
# it further, know that it had dropout of attention weights, too, which ours leaves out.) Save
# config.json, tokenizer.json and model.safetensors (0.5 GB) from the page below in data/gpt2, and
# try `python gpt.py sample gpt2`.

GPT2_URL = "https://huggingface.co/openai-community/gpt2"     # also gpt2-medium, -large and -xl
GPT2_SETTINGS = {                   # what config.json must not contradict
    "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
GPT2_NAMES = {                      # of its modules, and what they are called here
    "wte.": "token_embedding.", "wpe.": "position_embedding.", "h.": "blocks.",
    "attn.c_attn.": "attn.qkv.", ".c_proj.": ".proj.", "mlp.c_fc.": "mlp.fc."}
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
    """(model, tokenizer) from the published files of a GPT-2. UserError if they cannot be used."""
    try:
        about = json.loads(Path(folder, "config.json").read_bytes())
        for name, wanted in GPT2_SETTINGS.items():
            check(about.get(name, wanted) == wanted, f"its {name} is {about.get(name)!r}")
        tokenizer = GPT2Tokenizer(Path(folder, "tokenizer.json"))
        V = tokenizer.vocab_size
        check(sorted(tokenizer.pieces) == list(range(V)) and V <= about["vocab_size"],
              f"{V} tokens do not fit vocab_size={about['vocab_size']}")
        options = check_options(Options(V, about["n_positions"], about["n_layer"], about["n_head"],
                                        about["n_embd"]))
        parameters = {}
        for name, p in read_safetensors(Path(folder, "model.safetensors")).items():
            if re.search(r"\.c_\w+\.weight$", name):
                p = p.t().contiguous()                      # (inputs, outputs), not as in nn.Linear
            name = name.removeprefix("transformer.")
            for theirs, ours in GPT2_NAMES.items():
                name = name.replace(theirs, ours, 1)
            if name in ("token_embedding.weight", "lm_head.weight"):
                p = p[:V]                                   # more rows only pad the table
            parameters[name] = p.float()
        tied = about.get("tie_word_embeddings", True)
        if tied:
            parameters["lm_head.weight"] = parameters["token_embedding.weight"]
        return restore_gpt(options, parameters, tied), tokenizer
    except Exception as error:                              # who knows what is in a file
        raise UserError(f"{folder} has no GPT-2 that can be used: {reason(error):.200}") from error


# %% Appendix: Long runs
# LongRun can be called like `train`, and adds what a long run needs. It saves at each evaluation
# and once a minute, so that a stop at any moment (Ctrl-C, kill -9, a dead battery) costs little. It
# goes on from what was saved, to the same numbers as without the stop. It can use a GPU, 16 bits
# and torch.compile. On a CPU, it tries how many threads are fastest at the moment. What has the
# name of a new run is renamed, and never lost:
#
#     with LongRun("mine", text, tokenizer) as long_run:
#         run("mine", text, config, tokenizer, train_gpt=long_run)

FORMAT = "gpt.py checkpoint 5"
ENDINGS = (".pt", ".csv", "-bigram.txt", "-gpt.txt", ".html")       # files of a run
SAVE_SECONDS = 60


def write_whole(path, write):
    """Let write(file) write the bytes of a file. It gets its name once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())                     # make sure that it has reached the disk
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def hold_name(name):
    """A file that is locked as long as it is open and this process lives; UserError if it is."""
    DATA.mkdir(parents=True, exist_ok=True)
    file = open(DATA / f".{name}.lock", "a")
    try:
        import fcntl                                    # not on Windows
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another process is training {name}; --name gives yours another name")
    except (ImportError, OSError):                      # no locks here: go on without
        return file
    for path in DATA.iterdir():                         # left by a run that was killed
        if re.fullmatch(re.escape(name) + r"\.(pt|csv|html)\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)
    return file


def set_aside(name):
    """Rename the files of the run `name` to the first free one of NAME-1, NAME-2, ..."""
    there, i = [ending for ending in ENDINGS if os.path.lexists(DATA / (name + ending))], 1
    while any(os.path.lexists(DATA / f"{name}-{i}{ending}") for ending in ENDINGS):
        i += 1
    for ending in reversed(there):                      # the checkpoint last
        (DATA / (name + ending)).rename(DATA / f"{name}-{i}{ending}")
    if there:
        say(f"the earlier run {name} is now called {name}-{i}")


def save_checkpoint(path, model, tokenizer, progress=None):
    """Write what load_checkpoint reads. progress: what a LongRun needs to go on, else None.

    UserError if it could not be loaded again: load_checkpoint builds what build_gpt builds.
    """
    content = checkpoint_content(model, tokenizer, progress)
    write_whole(Path(path), lambda file: torch.save(content, file))


def checkpoint_content(model, tokenizer, progress):
    """The dict that a checkpoint holds. UserError if no GPT could be made of it."""
    model = getattr(model, "_orig_mod", model)          # what torch.compile has wrapped
    options, tied = check_options(model.config), is_tied(model)
    check(type(model) is POSITIONS[options.position],
          f"a {type(model).__name__} cannot be saved as a GPT with {options.position} positions")
    check(type(tokenizer) in (CharTokenizer, BPETokenizer)
          and type(tokenizer)(tokenizer.vocabulary).ids == tokenizer.ids,
          "a checkpoint cannot hold this tokenizer")
    check(tokenizer.vocab_size == options.vocab_size, f"vocab_size={options.vocab_size}, but the "
                                                      f"tokenizer has {tokenizer.vocab_size}")
    parameters = {name: p.detach().float().cpu() for name, p in model.state_dict().items()}
    for name, p in parameters.items():
        check(p.isfinite().all(), f"{name}: not a finite number. Try a lower learning_rate")
    with torch.device("meta"):                          # shapes alone, without numbers
        expected = POSITIONS[options.position](options).state_dict()
    check({name: p.shape for name, p in parameters.items()} ==
          {name: p.shape for name, p in expected.items()},
          f"the parameters are not those of a GPT with {options}, so they could not be loaded")
    return {"format": FORMAT, "options": asdict(options), "tied": tied,
            "vocabulary": tokenizer.vocabulary, "parameters": parameters, "progress": progress}


def is_tied(model):
    """Does lm_head share its table with token_embedding, as in GPT-2?"""
    return model.lm_head.weight is model.token_embedding.weight


def restore_gpt(options, parameters, tied=False):
    """A GPT with these parameters, in eval mode; nothing is random. Raises if they do not fit."""
    check(options.n_layer <= len(parameters), f"too few parameters for n_layer={options.n_layer}")
    for name, p in parameters.items():
        check(p.dtype == torch.float32 and p.isfinite().all(), f"{name} is not finite")
    with torch.device("meta"):
        model = POSITIONS[options.position](options)
    model.load_state_dict(dict(parameters), assign=True)
    if tied:
        model.lm_head.weight = model.token_embedding.weight
    return model.eval()


def read_checkpoint(path):
    """Its path, options, tokenizer, model, best and progress. Runs no code. UserError, OSError."""
    with open(path, "rb") as file:
        try:
            saved = SimpleNamespace(**torch.load(file, map_location="cpu", weights_only=True))
            check(saved.format == FORMAT, f"its format is {saved.format!r}, not {FORMAT!r}")
            check(saved.options.keys() == Options.__dataclass_fields__.keys(), "odd options")
            saved.path, saved.options = Path(path), check_options(Options(**saved.options))
            kind = CharTokenizer if isinstance(saved.vocabulary, str) else BPETokenizer
            saved.tokenizer = kind(saved.vocabulary)
            check(saved.tokenizer.vocabulary == saved.vocabulary
                  and saved.tokenizer.vocab_size == saved.options.vocab_size,
                  f"its vocabulary does not fit vocab_size={saved.options.vocab_size}")
            saved.model = restore_gpt(saved.options, saved.parameters, saved.tied)
            saved.best = saved.model
            if saved.progress is not None:
                saved.progress = SimpleNamespace(**{"threads": None, **saved.progress})
                check_progress(saved.progress, saved.model)
                if saved.progress.best is not None:
                    saved.best = restore_gpt(saved.options, saved.progress.best, saved.tied)
            return saved
        except Exception as error:                      # who knows what is in a file
            raise UserError(f"{path} is not a whole checkpoint: {reason(error):.150}") from error


def check_progress(progress, model):
    """UserError, or another error, if a LongRun could not go on from what was read."""
    check(type(progress.step) is int and progress.step >= 0, "its step is odd")
    check(type(progress.text_sha256) is str and len(progress.text_sha256) == 64
          and type(progress.text_path) in (str, type(None)), "its text is odd")
    columns = "step", "train_loss", "val_loss", "learning_rate"
    numbers = [*progress.losses, *(row[column] for row in progress.history for column in columns)]
    check(all(type(x) in (int, float) and math.isfinite(x) for x in numbers), "an odd loss")
    evaluated = progress.history[-1]["step"] if progress.history else 0
    check(len(progress.losses) == progress.step - evaluated, "its losses are odd")
    check(progress.threads is None or type(progress.threads) is int and progress.threads > 0,
          "its threads are odd")
    check((progress.best is None) == (not progress.history), "its best parameters are odd")
    parameters = [p for group in build_optimizer(model, model.config).param_groups
                  for p in group["params"]]
    expected = range(len(parameters)) if progress.step > 0 else ()
    check(list(progress.optimizer) == list(expected), "its optimizer is odd")
    for state, p in zip(progress.optimizer.values(), parameters):
        check(state["step"].numel() == 1 and all(state[name].shape == p.shape and
              state[name].isfinite().all() for name in ("exp_avg", "exp_avg_sq")),
              "its optimizer is odd")


def load_checkpoint(path):
    """(model, tokenizer) of a run: its best parameters, on the CPU. Raises UserError, OSError."""
    saved = read_checkpoint(path)
    return saved.best, saved.tokenizer


def fastest_threads(step):
    """The number of threads with which step() takes the least time; fewer must save a tenth of it.

    PyTorch's threads wait for each other at each operation. While another program keeps a core
    busy, one of them is always late, and a single thread may be several times as fast.
    """
    from torch.utils.benchmark import Timer                         # takes 0.1 s
    n = best = torch.get_num_threads()
    times = {}
    while n > 0:                                                    # all, half of them, ..., 1
        timer = Timer("step()", globals={"step": step}, num_threads=n)
        times[n] = timer.blocked_autorange(min_run_time=0.3).median
        best = n if times[n] < 0.9 * times[best] else best
        n //= 2
    return best


def may_choose_threads():
    """Whether there are several threads, and the user has not said how many to use."""
    return torch.get_num_threads() > 1 and "OMP_NUM_THREADS" not in os.environ


def choose_threads():
    """Set the number of threads to what is fastest now for models of the default size."""
    if not may_choose_threads():
        return
    with torch.random.fork_rng(devices=[]):             # first parameters draw random numbers
        model = GPT(Config())
    x = torch.zeros(12, 64, dtype=torch.long)
    torch.set_num_threads(fastest_threads(lambda: model(x, x)[1].backward()))


class LongRun:
    """Called like `train`, it yields the same. Enter it first: then it holds the name of the run.

    saved: what read_checkpoint returns, to go on from there. text_path: where --resume finds the
    text, an absolute path. The model is trained on the device, and comes back to the CPU.
    """

    def __init__(self, name, text, tokenizer, saved=None, device="cpu", compile=False,
                 text_path=None):
        self.name, self.tokenizer, self.saved = name, tokenizer, saved
        self.device, self.compile = device, compile
        self.text_path, self.text_sha256 = text_path and str(text_path), hash_of(text)
        self.step, self.losses, self.history, self.best = 0, [], [], None
        self.threads_before = torch.get_num_threads()
        self.threads = saved and saved.progress.threads         # None: to be chosen
        self.saved_step = saved and saved.progress.step         # None: nothing is saved yet

    def __enter__(self):
        self.lock = hold_name(self.name)
        if self.threads is None:
            choose_threads()                            # for the bigram model
        elif may_choose_threads():                      # after a stop, as many as before
            torch.set_num_threads(min(self.threads, self.threads_before))
        return self

    def __exit__(self, *error):
        torch.set_num_threads(self.threads_before)
        self.lock.close()

    def __call__(self, model, train_data, val_data, config):
        options = check_options(config)
        check(all(p.dtype == torch.float32 for p in model.parameters()),
              "a model is trained in 32 bits; --dtype bfloat16 computes with 16")
        get_batch(train_data, 0, options)               # an error before anything is touched
        trained = copy.deepcopy(getattr(model, "_orig_mod", model))     # to be moved and compiled
        trained.config = options                        # with these, it is saved
        if self.saved is not None:
            before = self.saved.progress
            trained.load_state_dict(self.saved.model.state_dict())
            self.step, self.losses, self.best = before.step, list(before.losses), before.best
            self.history = list(before.history)
            rate = learning_rate_at(self.step, options)     # longer max_steps raise it again
            say(f"{self.name}: going on from step {self.step} of {options.max_steps}, with a "
                f"learning rate of {rate:.1e}" if self.step < options.max_steps else
                f"{self.name}: finished at step {self.step}; a larger --max_steps goes on")
        trained.to(self.device)
        self.prepare(trained, options)
        if self.threads is None:
            self.choose_threads(trained, train_data, options)
        optimizer = build_optimizer(trained, options)
        if self.saved is not None:
            state = self.saved.progress.optimizer
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        train_data, val_data = train_data.to(self.device), val_data.to(self.device)
        if self.step == options.max_steps and (not self.history or self.losses):
            self.evaluate(trained, val_data, options)   # --max_steps ends it where it stood
        self.save(trained, optimizer)
        began = saved_at = time.perf_counter()
        first = self.step
        if first == options.max_steps:                  # finished: its last row again
            yield self.row(model, trained)
        while self.step < options.max_steps:
            self.losses.append(self.training_step(trained, optimizer, train_data, options))
            self.step += 1
            now = time.perf_counter()
            left = (now - began) / (self.step - first) * (options.max_steps - self.step) / 60
            show_progress(f"step {self.step}, {left:.1f} minutes left")
            if self.step % options.eval_interval == 0 or self.step == options.max_steps:
                self.evaluate(trained, val_data, options)
                self.save(trained, optimizer)
                saved_at = time.perf_counter()
                show_progress()
                yield self.row(model, trained)
            elif now > saved_at + SAVE_SECONDS:
                self.save(trained, optimizer)
                saved_at = time.perf_counter()

    def row(self, model, trained):
        """What is yielded. As after a step of `train`, the model has the parameters of now."""
        getattr(model, "_orig_mod", model).load_state_dict(trained.state_dict())
        last = self.history[-1]
        return last["step"], last["train_loss"], last["val_loss"]

    def prepare(self, trained, options):
        """What is done to the model that is trained, once it is on its device."""
        if options.dtype == "bfloat16":                 # 16 bits in forward, 32 for the parameters
            device_type = torch.device(self.device).type
            trained.forward = torch.autocast(device_type, torch.bfloat16)(trained.forward)
        if self.compile:
            trained.compile()

    def choose_threads(self, trained, train_data, options):
        """Set the number of threads to what is fastest now for this model."""
        torch.set_num_threads(self.threads_before)
        if not may_choose_threads() or self.device != "cpu" or self.compile:
            return
        few = replace(options, batch_size=max(1, 768 // options.block_size))
        x, y = get_batch(train_data, 0, few)
        torch.set_num_threads(fastest_threads(lambda: trained(x, y)[1].backward()))
        trained.zero_grad()
        say(f"{self.name}: trains with {torch.get_num_threads()} of {self.threads_before} "
            "threads, which is fastest now")

    def training_step(self, trained, optimizer, train_data, options):
        """Make one step, and return its loss."""
        return training_step(trained, optimizer, train_data, self.step, options)

    def evaluate(self, trained, val_data, options):
        """Note the losses, and keep the best parameters: later ones may have overfitted."""
        val_loss = evaluate(trained, val_data)
        if val_loss < min((row["val_loss"] for row in self.history), default=math.inf):
            self.best = {name: p.detach().cpu().clone() for name, p in trained.state_dict().items()}
        self.history.append({
            "step": self.step, "train_loss": sum(self.losses) / len(self.losses),
            "val_loss": val_loss, "learning_rate": learning_rate_at(self.step - 1, options)})
        self.losses = []

    def save(self, trained, optimizer):
        """Write the checkpoint, and the losses as data/NAME.csv. UserError if a number is lost."""
        losses = sum(self.losses) + sum(row["train_loss"] + row["val_loss"] for row in self.history)
        check(math.isfinite(losses), "loss: not a finite number. Try a lower learning_rate")
        content = checkpoint_content(trained, self.tokenizer, {
            "step": self.step, "losses": self.losses, "history": self.history, "best": self.best,
            "optimizer": optimizer.state_dict()["state"],           # m and v of AdamW
            "text_path": self.text_path, "text_sha256": self.text_sha256,
            "threads": torch.get_num_threads()})
        if self.saved_step is None:                     # a new run
            set_aside(self.name)
        write_whole(DATA / f"{self.name}.pt", lambda file: torch.save(content, file))
        self.saved_step = self.step
        rows = ["step,train_loss,val_loss,learning_rate",
                *(",".join(map(str, row.values())) for row in self.history)]
        try:
            content = "".join(row + "\n" for row in rows).encode()
            write_whole(DATA / f"{self.name}.csv", lambda file: file.write(content))
        except OSError as error:                        # another program may hold it
            say(f"warning: {error}; the checkpoint is saved")


def hash_of(text):
    return sha256(text.encode(errors="replace")).hexdigest()


def say(line):
    """What is not part of the story goes to standard error."""
    show_progress()
    print(line, file=sys.stderr)


def show_progress(line=""):
    """Show on a terminal what takes a while; the next line is written over it."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"\r{line[:79]:<79}\r", end="", file=sys.stderr, flush=True)


# %% Appendix: The command line

SIZES = {                           # for --size; tests/benchmark.py says what they cost
    "7M": dict(block_size=256, n_layer=4, n_head=6, n_embd=384, learning_rate=1.3e-3),
    "11M": dict(block_size=256, n_layer=6, n_head=6, n_embd=384, learning_rate=1.3e-3),
    "25M": dict(block_size=256, n_layer=8, n_head=8, n_embd=512, learning_rate=1e-3),
    "86M": dict(block_size=1024, n_layer=12, n_head=12, n_embd=768, learning_rate=6e-4)}  # as GPT-2
LARGEST_VOCABULARY = 4096           # the bigram model has the square of that, a minute of training


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, and that takes each option once."""

    def parse_args(self, arguments):
        options = Counter(word.split("=")[0] for word in arguments if word.startswith("--"))
        twice = [option for option, times in options.items() if times > 1]
        check(not twice, f"given more than once: {', '.join(twice)}")
        return super().parse_args(arguments)

    def error(self, message):
        raise UserError(message.replace("one argument", "one argument, as in --prompt=-hello"))


def run_command(arguments, long_run_class=LongRun):
    """`python gpt.py`: the story, with any field of Options as an option."""
    parser = Parser("gpt.py", allow_abbrev=False, epilog=(
        "gpt.py sample: a trained model writes; gpt.py runs: what is kept; more is in tests/"))
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    parser.add_argument("--name", help="what to call the run; else shakespeare, or as the text")
    parser.add_argument("--size", choices=SIZES, help="a larger model")
    parser.add_argument("--tokenizer", choices=("char", "bpe"), help="bpe: subwords (char)")
    parser.add_argument("--epochs", type=float, metavar="N", help="in place of --max_steps: "
                        "train on N times as many tokens as there are")
    parser.add_argument("--device", help="cuda, mps or cpu; else cuda if it is there")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    source = inspect.getsource(sys.modules[__name__])   # its comments say what the fields mean
    for name, meaning in re.findall(r"^    (\w+): \w+ = .*?# (.*)$", source, flags=re.MULTILINE):
        field = Options.__dataclass_fields__[name]
        kind = ({"action": argparse.BooleanOptionalAction} if field.type is bool else
                {"type": field.type, "metavar": field.type.__name__.upper()})
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, **kind,
                            help=f"{meaning} ({field.default})")
    given = parser.parse_args(arguments)
    options = {name: value for name, value in vars(given).items() if hasattr(Options, name)}
    options = {**SIZES.get(given.size, {}), **options}
    check(given.epochs is None or "max_steps" not in options, "give --epochs or --max_steps")
    device, name, saved = choose_device(given.device), given.name, None
    if name is None and given.text is not None:
        name = given.text.stem
    if given.resume:
        saved = read_checkpoint(DATA / f"{name}.pt" if name else find_run())
        check(saved.progress is not None, f"{saved.path} holds a model alone; only runs can go on")
        text_name, text = load_text_of(saved, given.text)
        name = name or saved.path.stem
        tokenizer, config = saved.tokenizer, resumed_options(saved, options)
        kind = "char" if isinstance(tokenizer, CharTokenizer) else "bpe"
        check(given.tokenizer in (None, kind), f"{saved.path} has --tokenizer {kind}")
    else:
        text_name, text = load_text(given.text)
        name = name or text_name
        config = check_options(Options(**options))
        tokenizer = build_tokenizer(given.tokenizer, options, text)
    if given.epochs is not None:
        config = with_epochs(given.epochs, text, tokenizer, config)
    if saved is not None:
        check(saved.progress.step <= config.max_steps, f"{saved.path} has made "
              f"{saved.progress.step} steps, more than max_steps={config.max_steps}")
    check(Path(name).name == name and name != ".." and len(os.fsencode(name)) <= 200,
          f"--name begins the names of files; {name!r} cannot")
    for part in train_val_split(text):                  # a few characters usually are enough
        check(any(len(tokenizer.encode(some)) > config.block_size
                  for some in (part[:8 * config.block_size + 8], part)),
              f"the text is too short: each part needs more than block_size={config.block_size} "
              f"tokens, and the smaller one has {len(tokenizer.encode(part))}")
    text_path = saved and saved.progress.text_path
    if given.text is not None:
        text_path = given.text.expanduser().resolve()
    with long_run_class(name, text, tokenizer, saved, device, given.compile,
                        text_path) as long_run:
        try:
            run(name, text, config, tokenizer, build_gpt, long_run)
        except KeyboardInterrupt:
            stopped = f"python gpt.py --resume --name {shlex.quote(name)}"
            raise KeyboardInterrupt(
                "stopped before anything was saved" if long_run.saved_step is None else
                f"stopped; step {long_run.saved_step} is saved. To go on:  {stopped}") from None
    say(f"See inside:  python tests/page.py {shlex.quote(name)}")


def build_tokenizer(kind, options, text):
    """The tokenizer that was asked for; subwords are found in the training split alone."""
    if kind == "bpe":
        vocab_size = options.get("vocab_size", 512)
        check_range("vocab_size", vocab_size, 257, LARGEST_VOCABULARY + 1)
        return BPETokenizer(train_bpe(train_val_split(text)[0], vocab_size))
    check("vocab_size" not in options, "--vocab_size goes with --tokenizer bpe")
    tokenizer = CharTokenizer(text)
    check(tokenizer.vocab_size <= LARGEST_VOCABULARY,
          f"the text has {tokenizer.vocab_size} different characters, more than "
          f"{LARGEST_VOCABULARY}; try --tokenizer bpe")
    return tokenizer


def with_epochs(epochs, text, tokenizer, config):
    """The config with as many steps as it takes to read the training split `epochs` times."""
    check(0 < epochs <= 1e6, f"--epochs must be above 0 and at most 1,000,000, not {epochs}")
    tokens = len(tokenizer.encode(train_val_split(text)[0]))
    steps = math.ceil(epochs * tokens / (config.batch_size * config.block_size))
    return check_options(replace(config, max_steps=steps))


def resumed_options(saved, options):
    """The options of a saved run; only max_steps and eval_interval may change."""
    for name in options.keys() - {"max_steps", "eval_interval"}:
        before = getattr(saved.options, name)
        check(options[name] == before, f"{saved.path} has {name}={before}, not {options[name]}")
    return check_options(replace(saved.options, **options))


def load_text_of(saved, path=None):
    """(name, text): what a saved run learned from; else a UserError."""
    progress = saved.progress
    path = path or (progress.text_path and Path(progress.text_path))
    check(path is None or path.expanduser().exists(),
          f"{path}, the text of {saved.path}, is gone; name it with --text")
    name, text = load_text(path, progress.text_sha256)
    check(hash_of(text) == progress.text_sha256,
          f"{path or 'the text'} is not what {saved.path} was trained on, or has changed since")
    return name, text


def sample_command(arguments):
    """`python gpt.py sample`: write with a saved model, token by token."""
    parser = Parser("gpt.py sample", allow_abbrev=False, description="Let a trained model write.")
    parser.add_argument("run", nargs="?", help="its name or its path, or gpt2; else the latest")
    for name, kind, default, help in (
            ("prompt", str, "", r"how the text begins; \n: a new line, \t: a tab, \\: a backslash"),
            ("tokens", int, 500, "how many to write"),
            ("temperature", float, 0.8, "divides the logits; 0 takes the likeliest token"),
            ("top_k", int, None, "draw only from the k likeliest tokens"),
            ("top_p", float, None, "draw only from the fewest that have p together"),
            ("seed", int, time.time_ns() % 2**32, "the same seed writes the same text"),
            ("device", str, "cpu", "cuda, mps or cpu")):
        parser.add_argument(f"--{name}", type=kind, default=default, help=help)
    given = parser.parse_args(arguments)
    check_range("seed", given.seed, 0)
    check_range("the number of new tokens", given.tokens, 0)
    check_sampling(given.temperature, given.top_k, given.top_p)
    path, device = find_run(given.run), choose_device(given.device)
    model, tokenizer = load_gpt2(path) if path.is_dir() else load_checkpoint(path)
    prompt = unescape(given.prompt) or default_prompt(tokenizer)
    idx = torch.tensor([encode_prompt(tokenizer, prompt)], device=device)           # (1, T)
    say(f"{path} writes, with --seed {given.seed}:")
    print(prompt, end="", flush=True)
    draw = torch.Generator(device).manual_seed(given.seed)
    waiting = []                    # a character may be several tokens, and reads \ufffd until then
    with eval_mode(model.to(device)):
        for token in stream(model, idx, given.tokens, given.temperature, given.top_k, given.top_p,
                            draw):
            if token.item() == getattr(tokenizer, "end", None):
                break
            waiting.append(token.item())
            written = tokenizer.decode(waiting)
            if len(waiting) == 16 or not written.endswith("\ufffd"):
                print(written, end="", flush=True)
                waiting = []
    print(tokenizer.decode(waiting))


def encode_prompt(tokenizer, prompt):
    try:
        return tokenizer.encode(prompt)
    except ValueError as error:
        raise UserError(f"the prompt: {error}") from None


def unescape(prompt):
    return re.sub(r"\\[nt\\]", lambda m: {"n": "\n", "t": "\t"}.get(m[0][1], "\\"), prompt)


def default_prompt(tokenizer):
    """What a text begins with when nothing is said: a new line, if the vocabulary has it."""
    newline = "\n" in tokenizer.ids or b"\n" in tokenizer.ids
    return END if hasattr(tokenizer, "end") else "\n" if newline else tokenizer.vocabulary[0]


def runs_command(arguments):
    """`python gpt.py runs`: what has been saved."""
    Parser("gpt.py runs", description="Show the runs that are kept in data/.").parse_args(arguments)
    paths = saved_runs()
    if not paths:
        print("There are no runs yet; `python gpt.py` makes one.")
    for path in paths:
        try:
            saved = read_checkpoint(path)
            progress = saved.progress or SimpleNamespace(step="-", history=[])
            loss = min((row["val_loss"] for row in progress.history), default=math.nan)
            print(f"{path.stem:24} step {progress.step}/{saved.options.max_steps} val {loss:.4f} "
                  + time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime)))
        except (UserError, OSError) as error:
            print(error)


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
    wanted = "yet" if name is None else f"'{name}'"
    raise UserError(f"there is no run {wanted}; those that are kept: {kept}. For gpt2, save three "
                    f"files from {GPT2_URL} in {DATA / 'gpt2'}")


def choose_device(name=None):
    """The device with this name, or without one, a GPU that CUDA serves, or else the CPU."""
    here = ["cuda"] * torch.cuda.is_available() + ["cpu"] + ["mps"] * torch.mps.is_available()
    check(name in (None, *here), f"there is no device {name!r} here, only {', '.join(here)}")
    return name or here[0]


def load_text(path=None, sha256=None):
    """(name, text): from the file `path`, else Shakespeare, else (or by its sha256) the manual."""
    if path is not None:
        path = path.expanduser()
        try:
            text = path.read_text(encoding="utf-8-sig")     # line ends of all systems become \n
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8: {error}") from None
        check(text and "\0" not in text, f"{path} is {'not UTF-8; UTF-16?' if text else 'empty'}")
        return path.stem, text
    if sha256 in (None, SHA256):
        try:
            show_progress("reading or downloading the text")
            return "shakespeare", load_shakespeare()
        except (OSError, ValueError) as error:          # ValueError: an odd address of a proxy
            say(f"No Tiny Shakespeare ({type(error).__name__}), so Python's manual is the text. "
                f"For Shakespeare, stop, save {URL} as {DATA / 'tinyshakespeare.txt'}, and start "
                "again")
        finally:
            show_progress()
    from pydoc_data.topics import topics
    return "manual", "".join(topics.values())


def escape_control(text):
    """The text, with control characters (a terminal would obey them) written as in Python."""
    return "".join(c if c.isprintable() or c in "\n\t\u200c\u200d" or category(c) == "Zs"
                   else repr(c)[1:-1] for c in text)    # U+200C and D join letters, and emoji


class SafeOutput:
    """Standard output, for a terminal."""

    def __init__(self, file):
        self.file = file

    def write(self, text):
        return self.file.write(escape_control(text))

    def __getattr__(self, name):
        return getattr(self.file, name)


def run_cleanly(program, command, arguments):
    """Call command(arguments) and return its exit code; an error of the user becomes one line.

    A mistake in the program is none of these, and shows its traceback.
    """
    torch.set_flush_denormal(True)          # numbers below 1e-38 become 0; they would be slow
    if hasattr(sys.stdout, "reconfigure"):              # any text can be printed, also into a pipe
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    terminal = sys.stdout is not None and sys.stdout.isatty()
    try:
        with redirect_stdout(SafeOutput(sys.stdout)) if terminal else nullcontext():
            code = command(arguments) or 0
            print(end="", flush=True)                   # a closed pipe shows here
            return code
    except SystemExit as end:                           # after --help
        return end.code
    except BrokenPipeError:                             # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141                                      # the exit code of SIGPIPE, 128 + 13
    except KeyboardInterrupt as stop:
        message, code = str(stop) or "stopped", 130
    except (UserError, OSError) as error:
        message, code = escape_control(" ".join(str(error).split())), 2
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or
                re.search("out of memory|allocate memory|not enough memory", str(error))):
            raise
        message, code = ("not enough memory; a smaller --batch_size, --block_size or model may "
                         "help"), 2
    say(f"{program}: {message}")
    return code


def main(arguments=None):
    """Do what the command line says; return the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
        if "ipykernel" in sys.modules and re.match(r"-f$|--f=|-f=", (arguments or [""])[0]):
            arguments = []                              # those of the notebook's kernel
    command = {"sample": sample_command, "runs": runs_command}.get((arguments or [""])[0])
    if command:
        return run_cleanly(f"gpt.py {arguments[0]}", command, arguments[1:])
    return run_cleanly("gpt.py", run_command, arguments)


if __name__ == "__main__" and (exit_code := main()):
    sys.exit(exit_code)

# /// script
# dependencies = ["torch", "requests"]
# ///
