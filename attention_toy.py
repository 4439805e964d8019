"""attention_toy.py: attention taken apart, in four versions from a loop to self-attention.

Attention is the one hard idea in a GPT: each token (here a character) collects what it needs from
those before it. Here that is done four times. The first three versions give the same numbers, the
mean of each token and all before it: by a loop, by a matrix product, and by a softmax. In the
fourth, the weights of this mean depend on what the tokens are. That is self-attention.

     1  Tensors          the whole idea, as a product of two small matrices
     2  An example       two texts as numbers
     3  Version 1        the mean of what came before, by a loop
     4  Version 2        the same, as one matrix product
     5  Version 3        the same, as a softmax of masked scores
     6  Version 4        self-attention: queries, keys and values
     7  Several heads    version 4 a few times at once
     8  Questions        why the scale, why positions, why the mask, and what does it cost?
     9  Trained heads    how attention weights are drawn, and what trained heads look at
    10  The run          the command line

    python attention_toy.py             all of it; trains small models along the way, half a minute
    python attention_toy.py --quick     chapters 1 to 8, a few seconds
    python attention_toy.py --model shakespeare --prompt "ROMEO:\\nBut soft"
                                        chapter 9, for a run that gpt.py has kept, or for a GPT-2

Read the code beside what it prints. The letters are those of gpt.py: a batch has B texts, T tokens
in each, and C channels (numbers) for each token; nh is the number of heads, hs the head size.
To see a trained model look back while it reads and writes, make its page: python tests/page.py
What stands around attention in a block is shown in numbers by python tests/inside.py
"""

import copy
import math
import sys
import textwrap
from pathlib import Path
from unicodedata import category, east_asian_width

from gpt import (GPT, CausalSelfAttention, CharTokenizer, Config, Parser, attention, check,
                 choose_threads, default_prompt, encode_prompt, encode_text, escape_control,
                 evaluate, find_run, generate, load_checkpoint, load_gpt2, load_text, run_cleanly,
                 sinusoids, split_heads, train, train_val_split, unescape)

import torch                        # after gpt, which silences a remark of torch about NumPy
import torch.nn as nn
import torch.nn.functional as F

# %% 1. Tensors
# A tensor is an array of numbers with a shape: (3, 2) has 3 rows and 2 columns, (2, 3, 2) is two of
# these. A matrix product makes weighted sums: row i of `weights @ x` is a sum of the rows of x, and
# row i of the weights says how much of each. If the weights are a lower triangle (0 above the
# diagonal), each row takes nothing from later rows.

def show_tensors():
    ones = torch.ones(3, 3).tril()                            # (3, 3), 0 above the diagonal
    weights = ones / ones.sum(dim=1, keepdim=True)            # (3, 3) / (3, 1): rows by their sums
    x = torch.tensor([[6.0, 0.0], [2.0, 4.0], [1.0, 8.0]])    # (3, 2), three tokens
    result = weights @ x                                      # (3, 3) @ (3, 2) -> (3, 2)
    print("The whole idea: a triangle of weights times three tokens of two numbers.\n\n"
          "      weights (3, 3)      @     x (3, 2)     =   result (3, 2)\n")
    for rows in zip(weights.tolist(), x.tolist(), result.tolist()):
        print("".join("      " + "".join(f"{number:6.2f}" for number in row) for row in rows))
    print("\nThe last row adds up a third of each: (6 + 2 + 1) / 3 and (0 + 4 + 8) / 3.")


def heading(title):
    print(f"\n{title}\n{'-' * len(title)}")


def tell(name, tensor, meaning):
    """Print in one line what a tensor is called, its shape, and what it holds."""
    print(f"{name:<8} {str(tuple(tensor.shape)):<14} {meaning}")


def print_row(*cells):                                        # a table, row by row
    print("".join(f"{str(cell):>15}" for cell in cells))


# %% 2. An example
# All versions take x of shape (B, T, C). In a GPT, the C numbers of a token are learned and mean
# nothing that we could name. Ours can be named, so that every result can be checked by eye:

EXAMPLE = ("to be or", " not to ")                            # B = 2 texts of T = 8 tokens
CHANNELS = ("vowel", "consonant", "space", "alphabet")        # C = 4; a is 1, ..., a space 27, as {


def example():
    """x of shape (B, T, C): the numbers of each character of EXAMPLE."""
    return torch.tensor([[(c in "aeiou", c not in "aeiou ", c == " ", ord(c.replace(" ", "{")) - 96)
                          for c in text] for text in EXAMPLE], dtype=torch.float32)


def show_example():
    tell("x", example(), f"(B, T, C): {EXAMPLE[0]!r} and {EXAMPLE[1]!r}")
    print("\nThe first text. Each row is a token (␣ is the space), each column a channel:\n")
    print_row("token", *CHANNELS)
    for character, channels in zip(EXAMPLE[0], example()[0]):           # (C,)
        print_row(cell(character, 1), *map(int, channels))


# %% 3. Version 1: a loop
# The simplest way to collect is the mean. The token at position t (the first is 0) receives the
# mean of the tokens 0 to t. Those after t are left out: a language model has to predict them.

def mean_by_loop(x):
    """Version 1: x (B, T, C) -> (B, T, C), the mean of each token and those before it."""
    means = []
    for t in range(x.shape[1]):
        seen = x[:, :t + 1]                                   # (B, T, C) -> (B, t+1, C)
        means.append(seen.mean(dim=1))                        # (B, t+1, C) -> (B, C)
    return torch.stack(means, dim=1)                          # T of (B, C) -> (B, T, C)


def weights_behind(version, T):
    """The attention weights (T, T) with which one of the versions 1 to 3 collects from T tokens."""
    x = torch.eye(T)[None]              # (1, T, T): one text. Token s has a 1 in channel s, else 0,
    return version(x)[0]                # so what a result has in channel s has come from token s.


def show_version_1():
    x = example()
    tell("x", x, "two texts of 8 tokens, each described by 4 numbers")
    tell("seen", x[:, :6], "what the tokens at position 5 see: x[:, :6]")
    result = mean_by_loop(x)
    tell("result", result, "for each token, the mean of what it sees")
    weights = weights_behind(mean_by_loop, 8)
    tell("weights", weights, "the loop acts as if it had these: row i makes result i")
    print(f"\nA picture of the weights for {EXAMPLE[0]!r}, and to the right of each row its\n"
          "result. Each row is for the token at its left, each column for one on top:\n"
          f"{LEGEND}.\n")
    show_weights(weights, result[0], CHANNELS)
    print("\nEach row sums to 1, so the further down, the thinner: more tokens share it.\n"
          "Check a number: the b has seen t o ␣ b, one vowel of four, so 0.25.")


# %% 4. Version 2: one matrix product
# A loop in Python is slow, and chapter 1 showed what to do instead. A lower triangle of ones
# says who sees whom; divided by its sum, each row makes a mean. The product of (T, T) with
# (B, T, C) is made for each of the B texts by itself.

def mean_by_matrix(x):
    """Version 2: x (B, T, C) -> the same (B, T, C), without a loop."""
    T = x.shape[1]
    ones = torch.ones(T, T).tril()                            # (T, T)
    weights = ones / ones.sum(dim=1, keepdim=True)            # (T, T) / (T, 1) -> (T, T)
    return weights @ x                                        # (T, T) @ (B, T, C) -> (B, T, C)


def show_version_2():
    x, ones = example(), torch.ones(8, 8).tril()
    tell("x", x, "as before")
    tell("ones", ones, "the lower triangle: who sees whom")
    weights = weights_behind(mean_by_matrix, 8)
    tell("weights", weights, "each row divided by its sum: those behind version 1")
    result = mean_by_matrix(x)
    tell("result", result, "weights @ x: (8, 8) @ (2, 8, 4)")
    print(f"\nones, the first 4 rows and columns:\n{ones[:4, :4]}\nweights, likewise:\n"
          f"{weights[:4, :4]}\nresult of the first text, the first 4 rows:\n{result[0, :4]}\n")
    show_equal("versions 1 and 2", mean_by_loop(x), result)


def show_equal(names, a, b):
    """Print by how much two tensors differ. Raises AssertionError if it is more than rounding."""
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    print(f"{names}: the same numbers, up to {(a - b).abs().max():.1g}")


# %% 5. Version 3: softmax of masked scores
# Softmax turns any row of scores into weights that are above 0 and sum to 1: exp(score), divided by
# the sum of exp(score) over the row. Equal scores give equal weights. A score that is higher by 1
# gives a weight 2.7 times as large; higher by 7, about 1,100 times. A score of minus infinity gives
# the weight 0. So let all scores be 0, put minus infinity where a token is later than the one that
# looks (the causal mask: nothing depends on what comes later), and softmax makes the weights of
# version 2.
#
# Why the detour? The weights of version 2 were fixed. A score may be any number, also a negative
# one, and can say how much this token matters to that one. In version 4, it will.

def mean_by_softmax(x):
    """Version 3: x (B, T, C) -> the same (B, T, C), with weights made from scores."""
    T = x.shape[1]
    scores = torch.zeros(T, T)                                # (T, T): all matter alike
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)     # (T, T), True above the diagonal
    scores = scores.masked_fill(later, -math.inf)             # (T, T)
    weights = F.softmax(scores, dim=-1)                       # (T, T): each row sums to 1
    return weights @ x                                        # (T, T) @ (B, T, C) -> (B, T, C)


def show_version_3():
    x, scores = example(), torch.zeros(8, 8)
    tell("x", x, "as before")
    tell("scores", scores, "all 0; above the diagonal, they become minus infinity")
    tell("weights", weights_behind(mean_by_softmax, 8), "softmax of a row: those of version 2")
    result = mean_by_softmax(x)
    tell("result", result, "weights @ x")
    print("\nThe weights of the token at position 2, if all scores are 0, or one of them 1:\n")
    for score in (0.0, 1.0):
        scores = torch.tensor([0.0, score, 0.0, 0.0, 0.0])    # (T,), a row
        masked = scores.masked_fill(torch.arange(5) > 2, -math.inf)     # (T,)
        print(f"scores   {scores}\nmasked   {masked}\nweights  {F.softmax(masked, dim=-1)}\n")
    show_equal("versions 2 and 3", mean_by_matrix(x), result)


# %% 6. Version 4: self-attention
# A mean treats all tokens alike. But a token may need one thing and not another, and what it
# needs depends on what it is. So out of its C numbers, each token makes three vectors of hs
# numbers, by three matrices that all tokens share:
#
#     a query  q    what am I looking for?
#     a key    k    what do I offer to those who look?
#     a value  v    what do I hand over if I am chosen?
#
# The score of two tokens is the dot product (multiply number by number, and add up) of the one's
# query and the other's key: large if the key offers what the query asks for. `q @ k.transpose(-2,
# -1)`, that is (T, hs) @ (hs, T), gives the scores of all pairs at once: row i is for the query of
# token i, column j for the key of token j. (-1 is the last dimension, -2 the one before.) Each is
# divided by sqrt(hs), for a reason that chapter 8 shows. The rest is version 3: the causal mask,
# softmax, and a weighted mean, now of the values. In symbols, where K^T is K with rows and columns
# swapped, and M is 0 for what a token sees and minus infinity for what comes later:
#
#     attention(Q, K, V) = softmax(Q K^T / sqrt(hs) + M) V,    Q = x W_Q,   K = x W_K,   V = x W_V

def attention_weights(q, k):
    """Who looks at whom: queries and keys (..., T, hs) -> weights (..., T, T)."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])     # (..., T, hs) @ (..., hs, T)
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)     # (..., T, T)
    scores = scores.masked_fill(later, -math.inf)             # (..., T, T)
    return F.softmax(scores, dim=-1)                          # (..., T, T): each row sums to 1


def self_attention(x, w_query, w_key, w_value):
    """Version 4, one head: x (B, T, C) and three matrices (C, hs) -> (B, T, hs)."""
    q = x @ w_query                                           # (B, T, C) @ (C, hs) -> (B, T, hs)
    k = x @ w_key                                             # (B, T, C) @ (C, hs) -> (B, T, hs)
    v = x @ w_value                                           # (B, T, C) @ (C, hs) -> (B, T, hs)
    weights = attention_weights(q, k)                         # two of (B, T, hs) -> (B, T, T)
    return weights @ v                                        # (B, T, T) @ (B, T, hs) -> (B, T, hs)


# In a GPT, the three matrices are learned, and what a head looks for may be a meaning: in "The cat
# sat on the ...", it helps to find who sat. (`python tests/demos.py agree` trains a head that finds
# the subject of a verb.) Here the matrices are made by hand, so that you can follow. The two
# numbers of queries and keys stand for (vowels, spaces). A consonant looks for vowels, a vowel for
# spaces, and a space for nothing in particular. A vowel offers (1, 0), a space (0, 1), and a
# consonant nothing. What a token hands over is its number in the alphabet, and whether it is a
# vowel. The tens make scores of about 7 where something is found: almost nothing is left to others.

def hand_made_matrices():
    """w_query, w_key and w_value, each (C, hs) = (4, 2)."""
    # a row for each channel of x: vowel,   consonant,   space,      alphabet
    w_query = torch.tensor([[0.0, 10.0], [10.0, 0.0], [0.0, 0.0], [0.0, 0.0]])  # (vowels, spaces)
    w_key = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])      # (vowels, spaces)
    w_value = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])    # (alphabet, vowel)
    return w_query, w_key, w_value


def show_steps(x, matrices):
    """Print the shapes of version 4 as it computes -> q, k, v, scores, weights, result."""
    q, k, v = (x @ matrix for matrix in matrices)             # (B, T, C) -> three of (B, T, hs)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])     # -> (B, T, T), only to be shown
    weights = attention_weights(q, k)                         # -> (B, T, T), from masked scores
    result = weights @ v                                      # -> (B, T, hs)
    tell("x", x, "(B, T, C)")
    tell("w_query", matrices[0], "(C, hs); w_key and w_value have the same shape")
    tell("q", q, "(B, T, hs), what each token looks for: x @ w_query")
    tell("k", k, "what it offers: x @ w_key")
    tell("v", v, "what it hands over: x @ w_value")
    tell("scores", scores, "how well each key fits each query: q @ k^T / sqrt(hs)")
    tell("weights", weights, "softmax of each row of masked scores")
    tell("result", result, "what each token receives, now hs numbers: weights @ v")
    return q, k, v, scores, weights, result


def show_version_4():
    print("attention(Q, K, V) = softmax(Q K^T / sqrt(hs) + M) V, step by step:\n")
    x, matrices = example(), hand_made_matrices()
    q, k, v, scores, weights, result = show_steps(x, matrices)
    print(f"\nThe weights for {EXAMPLE[0]!r}, and to the right of each row its result:\n")
    show_weights(weights[0], result[0], ("alphabet", "vowel"))
    print("\nThe consonants b and r look at the vowels before them, and receive nearly the\n"
          "mean of those: the r, that of o, e and o. (Others keep less than a thousandth.)\n"
          "The e and the second o have found spaces, whose number is 27. The first o sees\n"
          "no space, the t only itself: where nothing fits, scores are equal, and so are\n"
          "weights, which must sum to 1. A space asks with (0, 0): version 3 again.\n\n"
          f"The last row, for the r with q = {q[0, -1].tolist()}: a vowel has the score (10 * 1\n"
          "+ 0 * 0) / sqrt(2), exp(7.07) is 1,177, its weight is 1177 / (3 * 1177 + 5):\n")
    print_row("looks at", "k", "score", "weight", "v")
    for s, character in enumerate(EXAMPLE[0]):
        print_row(cell(character, 1), k[0, s].tolist(), f"{scores[0, -1, s]:.2f}",
                  f"{weights[0, -1, s]:.4f}", v[0, s].tolist())
    print(f"\nThe same matrices with the second text, {EXAMPLE[1]!r}. In versions 1 to 3, its\n"
          f"picture would be that of the first. Now the weights depend on the content.\n\n"
          f"{picture(weights[1], EXAMPLE[1])}")


def show_version_4_once_more():
    torch.manual_seed(0)
    print("With random numbers, to compare it with gpt.py; nothing is made by hand.\n")
    x, matrices = torch.randn(4, 8, 32), torch.randn(3, 32, 16) / math.sqrt(32)     # q varies as x
    q, k, v, _, weights, result = show_steps(x, matrices)
    print(f"\nThe weights of the first text, in percent:\n{(100 * weights[0]).round().long()}\n")
    show_equal("version 4 and gpt.attention", self_attention(x, *matrices), attention(q, k, v))
    alone = torch.cat((x[:1], torch.zeros(3, 8, 32)))         # (1, T, C), (3, T, C) -> (B, T, C)
    same = torch.equal(self_attention(alone, *matrices)[0], result[0])
    print("The texts of a batch never exchange anything: with the other three set to 0,\n"
          f"the result of the first is {'the same' if same else 'ANOTHER'}.")


# %% 7. Several heads
# One head brings each token one mean, and a mean forgets which was which: 5 and 20 give 12.5, as do
# 20 and 5. Two heads can bring both numbers. So there are nh heads of hs = C / nh channels, each
# with three matrices (C, hs). Joined, their results are C numbers for each token again.
#
# They need not be computed one by one. Join their matrices, too, and a single product makes the
# queries of all heads. Of its channels a b c d e f, the first of two heads gets a b c, and the
# second d e f. This is what split_heads of gpt.py does; it puts nh beside B. As a matrix product
# works on the last two dimensions, version 4 serves all heads at once.

def heads_at_once(x, w_query, w_key, w_value, n_head):
    """Version 4 with n_head heads: x (B, T, C) and three matrices (C, C) -> (B, T, C)."""
    q, k, v = (split_heads(x @ matrix, n_head)                # (B, T, C) -> (B, nh, T, hs)
               for matrix in (w_query, w_key, w_value))
    found = attention_weights(q, k) @ v                       # (B, nh, T, T) @ v -> (B, nh, T, hs)
    return found.transpose(1, 2).flatten(2)                   # -> (B, T, nh, hs) -> (B, T, C)


@torch.no_grad()
def show_several_heads():
    torch.manual_seed(0)
    x, module = torch.randn(2, 8, 24), CausalSelfAttention(Config(n_embd=24, n_head=4))
    for layer in (module.qkv, module.proj):                   # version 4 has no biases, so make
        nn.init.zeros_(layer.bias)                            # those of the module 0
    matrices = module.qkv.weight.T.chunk(3, dim=1)            # (C, 3C) -> three of (C, C)
    q, k = (split_heads(x @ matrix, 4) for matrix in matrices[:2])
    tell("x", x, "random numbers, (B, T, C)")
    tell("q", q, "(B, nh, T, hs): 4 heads; k and v likewise")
    tell("weights", attention_weights(q, k), "(B, nh, T, T): each head has its own")
    result = heads_at_once(x, *matrices, n_head=4)
    tell("result", result, "what the heads have found, joined: (B, T, C) again")
    mixed = result @ module.proj.weight.T                     # (B, T, C) @ (C, C) -> (B, T, C)
    tell("mixed", mixed, "a last matrix (C, C), proj (the projection), mixes that\n")
    heads = zip(*(matrix.chunk(4, dim=1) for matrix in matrices))       # nh triples of (C, hs)
    one_by_one = [self_attention(x, *head) for head in heads]           # nh of (B, T, hs)
    show_equal("heads at once and one by one", result, torch.cat(one_by_one, dim=-1))
    show_equal("mixed and gpt.CausalSelfAttention", mixed, module(x))


# %% 8. Questions
# Why divide by sqrt(hs)? A dot product adds hs products. If these are independent, with mean 0 and
# variance 1, their sum has the variance hs, and after the division, 1. Softmax of larger scores
# puts nearly all weight on one token, before anything is learned. And then little is learned: if a
# score rises by a little d, its weight w rises by d * w * (1 - w), nearly 0 for a w near 0 or 1.

def why_scale():
    torch.manual_seed(0)
    print("Why divide the scores by sqrt(hs)? Means of 1,000 random queries with 8 keys:\n")
    print_row("head size", "divided by", "variance", "largest w", "w(1 - w)")
    for hs in (4, 16, 64, 256):
        q, k = torch.randn(1000, 1, hs), torch.randn(1000, 8, hs)       # 1000 samples, T = 8
        for divided_by, scale in (("1", 1), ("sqrt(hs)", math.sqrt(hs))):
            scores = q @ k.transpose(-2, -1) / scale          # (1000, 1, hs) -> (1000, 1, 8)
            w = F.softmax(scores, dim=-1).amax(dim=-1)        # (1000, 1, 8) -> (1000, 1)
            numbers = scores.var(), w.mean(), (w * (1 - w)).mean()
            print_row(hs, divided_by, *(f"{number:.2f}" for number in numbers))
    print("\nUndivided, a wide head gives nearly all weight to one of 8 tokens, by chance.\n"
          "And it hardly learns to look elsewhere: the slope says how w follows its score.")


# Why positions? The score of two tokens depends on what they are, not on where they stand. So
# shuffle the tokens before the last, and it receives the same. To know the order, a token must hold
# its position in its C numbers, too. A GPT learns a vector for each position. Here, sines and
# cosines are added instead, because they can be looked at (gpt.sinusoids, in its appendix).

def why_positions():
    torch.manual_seed(0)
    waves = sinusoids(Config(block_size=32, n_embd=16))       # (T, C) = (32, 16)
    print("\nWhy positions? First, what they look like as sinusoids. Each row is one of 16\n"
          "channels (8 sines, 8 cosines), each column a position; blank is -1, ▒ 0, █ 1.\n")
    for channel in waves.T.tolist():                          # (T, C) -> (C, T), a row at a time
        print("    " + "".join(2 * " ░▒▓█"[round(2 * number + 2)] for number in channel).rstrip())
    print("\nNear positions are alike. Dot products of 10 with 7, 8, 9, itself, 11, 12, 13:\n"
          f"{waves[7:14] @ waves[10]}")                       # (7, C) @ (C,) -> (7,)
    x, matrices = torch.randn(1, 8, 16), torch.randn(3, 16, 4) / 4      # three of (C, hs)
    shuffled = x[:, [4, 0, 6, 2, 5, 1, 3, 7]]                 # (B, T, C); the last one stays
    print("\nWhat the last of 8 tokens receives, with the others shuffled or not:\n")
    for title, positions in ("no positions", 0 * waves[:8]), ("positions", waves[:8]):      # (T, C)
        for order, tokens in ("in order", x), ("shuffled", shuffled):
            received = self_attention(tokens + positions, *matrices)[0, -1]         # (hs,)
            print(f"    {title:<14}{order:<10}", *(f"{number:9.4f}" for number in received))


# Why the mask? In training, the token to predict stands one position to the right. Without a mask,
# the model learns to look there. (`attend` is what an attention module of gpt.py calls.)

def without_mask(config):
    """An untrained GPT in which each token sees all tokens."""
    model = GPT(config)
    for block in model.blocks:
        block.attn.attend = F.scaled_dot_product_attention    # the same, but not is_causal=True
    return model


def why_mask(train_data, val_data, vocab_size):
    config = Config(vocab_size=vocab_size, block_size=32, n_layer=1, n_head=1, n_embd=64,
                    max_steps=300, eval_interval=300, learning_rate=1e-2)
    copying, loss = learn(train_data, val_data, config, make_gpt=without_mask)
    masked = GPT(config)
    masked.load_state_dict(copying.state_dict())
    print(f"\nWhy the mask? A model with one head, trained without it, predicts the text for\n"
          f"validation with a loss of {loss:.2f}: it looks at the character that it predicts.\n"
          f"With the mask put back, as when it writes, it is {evaluate(masked, val_data):.2f}; "
          f"a guess has {math.log(vocab_size):.2f}.\n\n"
          "With the mask, the model is a decoder, which writes. Without it, it would be an\n"
          "encoder, such as BERT, which reads whole texts, to classify or find them. As\n"
          "queries, keys and values come from one text, this is self-attention. With\n"
          "cross-attention, queries come from one text, keys and values from another, as\n"
          "when a translation looks at its original.")


def learn(train_data, val_data, config, make_gpt=GPT):
    """Train a GPT -> (the model, its loss on the validation split)."""
    torch.manual_seed(config.seed)
    model = make_gpt(config)
    *_, (step, train_loss, val_loss) = train(model, train_data, val_data, config)
    return model.eval(), val_loss


def what_it_costs(C=128, hs=32):                              # the sizes of gpt.py
    print(f"\nWhat does it cost? Multiplications in one head (C = {C}, hs = {hs}): for q, k, v,\n"
          "and for scores and result. And megabytes, if all weights were kept:\n")
    print_row("T", "T x T", "q, k, v", "scores, result", "megabytes")
    for T in (10, 100, 1_000, 10_000):                        # a weight takes 4 bytes
        print_row(*(f"{n:,}" for n in (T, T * T, 3 * T * C * hs, 2 * T * T * hs, 4 * T * T / 1e6)))
    print("\nScores and result grow with the square of T, q, k and v only with T. (PyTorch's\n"
          "function, which gpt.py uses, need not keep the weights.)")


# %% 9. Trained heads
# First, how weights are drawn: T + 1 lines for the terminal, with a shade for each weight.

LEGEND = "░ is 3% or more, ▒ 15%, ▓ 35%, █ 70%"
WIDEST = 8                          # columns for a token at the left, if it is a subword
MOST_TOKENS = (79 - WIDEST - 2) // 2                # as many fit on top, each in two columns


def cell(text, width):
    """The text of a token, cut or padded to `width` columns; white space can be seen."""
    text = escape_control(text.translate(str.maketrans(" \n\t", "␣↵⇥")))
    widths = [columns(character) for character in text]
    while sum(widths) > width:
        widths.pop()
    return text[:len(widths)] + " " * (width - sum(widths))


def columns(character):
    """How many columns of a terminal it takes: marks and joiners 0, Chinese and the like 2."""
    if category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def picture(weights, tokens):
    """Weights (T, T) of T tokens, each given by its text, as T + 1 lines."""
    width = 2 if max(map(len, tokens)) == 1 else WIDEST
    lines = [" " * (width + 2) + "".join(cell(token, 2) for token in tokens)]
    for token, row in zip(tokens, weights.tolist()):
        shades = (" ░▒▓█"[sum(w >= least for least in (0.03, 0.15, 0.35, 0.7))] for w in row)
        lines.append(f"{cell(token, width)}  " + "".join(2 * shade for shade in shades))
    return "\n".join(line.rstrip() for line in lines)


def show_weights(weights, result, titles):
    """Print weights (T, T) of the first text, and to the right of each row the result (T, C)."""
    top, *rows = picture(weights, EXAMPLE[0]).split("\n")
    print(f"{top:<24}" + "".join(f"{title:>11}" for title in titles))
    for row, numbers in zip(rows, result.tolist()):
        print(f"{row:<24}" + "".join(f"{number:>11.2f}" for number in numbers))


# In a copy of a GPT, each attention module gets an `attend` that keeps the weights. To see them, it
# takes the identity matrix as values, as weights_behind does.

@torch.no_grad()
def weights_of_all_heads(model, idx):
    """What a GPT in eval mode that reads idx (B, T) looks at: for each layer, (B, nh, T, T)."""
    model, layers = copy.deepcopy(model), []
    for block in model.blocks:
        block.attn.attend = keeping_weights(block.attn.attend, layers)
    model(idx)
    return layers


def keeping_weights(attend, layers):
    """The same function attend(q, k, v), which also appends its weights to layers."""
    def attend_and_keep(q, k, v):                             # (B, nh, T, hs) each
        identity = torch.eye(q.shape[2]).expand(*q.shape[:3], -1)       # (T, T) -> (B, nh, T, T)
        layers.append(attend(q, k, identity))                 # (B, nh, T, T)
        return attend(q, k, v)                                # (B, nh, T, hs)

    return attend_and_keep


def in_words(weights):
    """How far back causal weights (T, T) look; the first token, which has no choice, left out."""
    positions = torch.arange(len(weights))                              # (T,)
    distance = positions[:, None] - positions                           # (T, 1) - (T,) -> (T, T)
    back = (weights * distance)[1:].sum(dim=-1).mean()                  # (T-1, T) -> (T-1,) -> ()
    previous, first = weights.diagonal(-1).mean(), weights[1:, 0].mean()    # (T-1,) -> (), twice
    return (f"looks {back:.1f} back on average; {previous:.0%} to the previous token, "
            f"{first:.0%} to the first")


def show_heads(model, ids, tokenizer):
    """Pictures and words of all heads of a model that reads these token ids, at least 2."""
    print(f"{textwrap.fill(f'It reads {tokenizer.decode(ids)!r}.', 79)}\n"
          f"{LEGEND} of the weight of a row.\n"
          "Look for a diagonal (a fixed distance back), for columns (a token that many\n"
          "look at), and for single dense cells (content: this one matters to that one).\n"
          "To compare with, a head with equal weights, as in version 3,\n"
          f"{in_words(weights_behind(mean_by_matrix, len(ids)))}.")
    for i, layer in enumerate(weights_of_all_heads(model, torch.tensor([ids])), start=1):
        for j, weights in enumerate(layer[0], start=1):       # (nh, T, T), one (T, T) at a time
            heading(f"Layer {i}, head {j}")
            print(picture(weights, [tokenizer.decode([token]) for token in ids]))
            print(f"\nIt {in_words(weights)}.")
    heading("Nearest neighbors: embeddings at a small angle (its cosine, 1 at most)")
    print(*nearest(model, tokenizer, ids), sep="\n")


def nearest(model, tokenizer, ids):
    """Three lines: which embeddings are most like those of a, B and . or else of tokens in ids."""
    known = [tokenizer.ids[character] for character in "aB." if character in tokenizer.ids]
    table = F.normalize(model.token_embedding.weight.detach(), dim=-1)      # (V, C), length 1
    for token in list(dict.fromkeys(known + ids))[:3]:
        cosines, tokens = (table @ table[token]).topk(min(5, len(table)))   # (V,) -> two of (5,)
        yield f"    {cell(tokenizer.decode([token]), WIDEST)}" + "".join(   # the first is itself
            f"  {cell(tokenizer.decode([i]), 6)} {cosine:5.2f}"
            for i, cosine in zip(tokens[1:].tolist(), cosines[1:]))


# %% 10. The run

def show_model(path, prompt=None):
    """The heads of the model at `path`, as it reads `prompt`, or what it has written itself."""
    model, tokenizer = load_gpt2(path) if path.is_dir() else load_checkpoint(path)
    most = min(MOST_TOKENS, model.block_size)
    ids = encode_prompt(tokenizer, default_prompt(tokenizer) if prompt is None else prompt)
    if prompt is None:
        draw = torch.Generator().manual_seed(1)
        idx = generate(model, torch.tensor([ids]), min(most, 16) - 1, 0.8, generator=draw)
        ids = idx[0].tolist()
    check(2 <= len(ids) <= most, f"the prompt has {len(ids)} tokens; it needs at least 2, and "
          f"{most} fit into {'80 columns' if most == MOST_TOKENS else 'the context'}")
    heading(f"9. Trained heads: {path}")
    show_heads(model, ids, tokenizer)


def train_and_show_heads(train_data, val_data, tokenizer, max_steps=1000):
    config = Config(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=64,
                    max_steps=max_steps, eval_interval=max_steps)
    model, loss = learn(train_data, val_data, config)
    print(f"A GPT with 2 layers of 2 heads, after {max_steps} steps (loss {loss:.2f}).")
    show_heads(model, val_data[:24].tolist(), tokenizer)


def run(text, quick=False):
    """All chapters; quick leaves out the last."""
    tokenizer = CharTokenizer(text)
    train_data, val_data = (encode_text(part, tokenizer) for part in train_val_split(text))
    check(len(val_data) > 32, f"the text is too short: {len(text)} characters")
    for title, show in (("1. Tensors", show_tensors),
                        ("2. An example", show_example),
                        ("3. Version 1: a loop", show_version_1),
                        ("4. Version 2: one matrix product", show_version_2),
                        ("5. Version 3: softmax of masked scores", show_version_3),
                        ("6. Version 4: self-attention", show_version_4),
                        ("Version 4 once more", show_version_4_once_more),
                        ("7. Several heads", show_several_heads),
                        ("8. Questions", why_scale)):
        heading(title)
        show()
    why_positions()
    why_mask(train_data, val_data, tokenizer.vocab_size)
    what_it_costs()
    if not quick:
        heading("9. Trained heads")
        train_and_show_heads(train_data, val_data, tokenizer)


def command(arguments):
    parser = Parser("attention_toy.py", allow_abbrev=False, description="Attention taken apart.")
    parser.add_argument("--quick", action="store_true", help="leave out chapter 9")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    parser.add_argument("--model", metavar="RUN", help="only the heads of a run, or of a GPT-2")
    parser.add_argument("--prompt", help=r"what it reads (\n is a new line), if not its own text")
    given = parser.parse_args(arguments)
    if given.model is not None:
        check(not given.quick and given.text is None, "--model goes without --quick and --text")
        prompt = None if given.prompt is None else unescape(given.prompt)
        return show_model(find_run(given.model), prompt)
    check(given.prompt is None, "--prompt is for a trained model; say for which with --model")
    _, text = load_text(given.text)
    choose_threads()
    run(text, given.quick)


if __name__ == "__main__":
    sys.exit(run_cleanly("attention_toy.py", command, sys.argv[1:]))

# /// script
# dependencies = ["torch", "requests"]
# ///
