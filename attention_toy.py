"""attention_toy.py: attention taken apart, in four versions from a loop to self-attention.

Attention is the one hard idea in a GPT: each token (here a character) gathers what it needs from
those before it. Here that is done four times. The first three versions give the same numbers, the
average of each token and all before it: by a loop, by a matrix product, and by a softmax. In the
fourth, the weights of this average depend on what the tokens are. That is self-attention.

     1  Tensors          the whole idea, as a product of two small matrices
     2  An example       two texts as numbers
     3  Version 1        the average of what came before, by a loop
     4  Version 2        the same, as one matrix product
     5  Version 3        the same, as a softmax of masked scores
     6  Version 4        self-attention: queries, keys and values
     7  Several heads    version 4 a few times, side by side
     8  Questions        why the scale, why positions, why the mask, and what does it cost?
     9  Trained heads    how attention weights are drawn, and what trained heads look at
    10  A page           a run as one file for the browser: it reads, looks back, writes
    11  The run          the command line

    python attention_toy.py             all of it; trains small models along the way, half a minute
    python attention_toy.py --quick     chapters 1 to 8, a few seconds
    python attention_toy.py --model shakespeare --prompt "ROMEO:\\nBut soft"
                                        chapter 9, for a run that gpt.py has kept, or for a GPT-2
    python attention_toy.py --page      chapter 10, for the latest run; --page RUN for another

Read the code beside what it prints. The letters are those of gpt.py: a batch has B texts, T tokens
in each, and C channels (numbers) for each token; nh is the number of heads, hs the head size.
"""

import base64
import json
import math
import sys
import textwrap
from pathlib import Path
from unittest.mock import patch

from gpt import (BIGRAM_TRAINING, DATA, GPT, LARGEST_BIGRAM, BigramLanguageModel,
                 CausalSelfAttention, Config, Parser, atomic_write, build_char_tokenizer, check,
                 complete, count_parameters, default_prompt, encode_text, escape_control, evaluate,
                 find_run, fit, hash_of, heading, load_checkpoint, load_gpt2, load_text, one_head,
                 read_checkpoint, run_cleanly, several_heads, sinusoids, split, train, unescape)

import torch                        # after gpt, which silences a remark of torch about NumPy
import torch.nn.functional as F

# %% 1. Tensors
# A tensor is a block of numbers with a shape: (3, 2) has 3 rows and 2 columns, (2, 3, 2) is two of
# these. A matrix product makes weighted sums: row i of `weights @ x` is a sum of the rows of x, and
# row i of the weights says how much of each; in a lower triangle, it takes nothing from later rows.

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
# The simplest way to gather is the average. The token at position t (the first is 0) receives the
# mean of the tokens 0 to t. Those after t are left out: a language model has to predict them.

def average_by_loop(x):
    """Version 1: x (B, T, C) -> (B, T, C), the mean of each token and those before it."""
    means = []
    for t in range(x.shape[1]):
        seen = x[:, :t + 1]                                   # (B, T, C) -> (B, t+1, C)
        means.append(seen.mean(dim=1))                        # (B, t+1, C) -> (B, C)
    return torch.stack(means, dim=1)                          # T of (B, C) -> (B, T, C)


def weights_behind(average, T):
    """The attention weights (T, T) with which one of the versions 1 to 3 gathers T tokens."""
    x = torch.eye(T)[None]              # (1, T, T): one text. Token s has a 1 in channel s, else 0,
    return average(x)[0]                # so what a result has in channel s has come from token s.


def show_version_1():
    x = example()
    tell("x", x, "two texts of 8 tokens, each described by 4 numbers")
    tell("seen", x[:, :6], "what the tokens at position 5 see: x[:, :6]")
    result = average_by_loop(x)
    tell("result", result, "for each token, the mean of what it sees")
    weights = weights_behind(average_by_loop, 8)
    tell("weights", weights, "the loop acts as if it had these: row i makes result i")
    print(f"\nA picture of the weights for {EXAMPLE[0]!r}, and to the right of each row its\n"
          "result. Each row is for the token at its left, each column for one on top:\n"
          f"{LEGEND}.\n")
    show_weights(weights, result[0], CHANNELS)
    print("\nEach row sums to 1, so the further down, the thinner: more tokens share it.\n"
          "Check a number: the b has seen t o ␣ b, one vowel of four, so 0.25.")


# %% 4. Version 2: one matrix product
# A loop in Python is slow, and chapter 1 showed what to do instead. A lower triangle of ones
# says who sees whom; divided by its sum, each row makes an average. The product of (T, T) with
# (B, T, C) is made for each of the B texts by itself.

def average_by_matrix(x):
    """Version 2: x (B, T, C) -> the same (B, T, C), without a loop."""
    T = x.shape[1]
    ones = torch.ones(T, T).tril()                            # (T, T)
    weights = ones / ones.sum(dim=1, keepdim=True)            # (T, T) / (T, 1) -> (T, T)
    return weights @ x                                        # (T, T) @ (B, T, C) -> (B, T, C)


def show_version_2():
    x, ones = example(), torch.ones(8, 8).tril()
    tell("x", x, "as before")
    tell("ones", ones, "the lower triangle: who sees whom")
    weights = weights_behind(average_by_matrix, 8)
    tell("weights", weights, "each row divided by its sum: those behind version 1")
    result = average_by_matrix(x)
    tell("result", result, "weights @ x: (8, 8) @ (2, 8, 4)")
    print(f"\nones, the first 4 rows and columns:\n{ones[:4, :4]}\nweights, likewise:\n"
          f"{weights[:4, :4]}\nresult of the first text, the first 4 rows:\n{result[0, :4]}\n")
    show_equal("versions 1 and 2", average_by_loop(x), result)


def show_equal(names, a, b):
    """Print by how much two tensors differ. Raises AssertionError if it is more than rounding."""
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    print(f"{names}: the same numbers, up to {(a - b).abs().max():.0e}")


# %% 5. Version 3: softmax of masked scores
# Softmax turns any row of scores into weights that are above 0 and sum to 1: exp(score), divided by
# the sum of exp(score) over the row. Equal scores give equal weights. A score that is higher by 1
# gives a weight 2.7 times as large; higher by 7, about 1,100 times. A score of minus infinity gives
# the weight 0. So let all scores be 0, put minus infinity where the future is (the causal mask:
# nothing depends on what comes later), and softmax makes the weights of version 2.
#
# Why the detour? The weights of version 2 were fixed. A score may be any number, also a negative
# one, and can say how much this token matters to that one. In version 4, it will.

def average_by_softmax(x):
    """Version 3: x (B, T, C) -> the same (B, T, C), with weights made from scores."""
    T = x.shape[1]
    scores = torch.zeros(T, T)                                # (T, T): all matter alike
    future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)    # True: column > row
    scores = scores.masked_fill(future, -math.inf)            # (T, T)
    weights = F.softmax(scores, dim=-1)                       # (T, T): each row sums to 1
    return weights @ x                                        # (T, T) @ (B, T, C) -> (B, T, C)


def show_version_3():
    x, scores = example(), torch.zeros(8, 8)
    tell("x", x, "as before")
    tell("scores", scores, "all 0; above the diagonal, they become minus infinity")
    tell("weights", weights_behind(average_by_softmax, 8), "softmax of a row: those of version 2")
    result = average_by_softmax(x)
    tell("result", result, "weights @ x")
    print("\nThe weights of the token at position 2, if all scores are 0, or one of them 1:\n")
    for score in (0.0, 1.0):
        scores = torch.tensor([0.0, score, 0.0, 0.0, 0.0])    # (T,), a row
        masked = scores.masked_fill(torch.arange(5) > 2, -math.inf)     # (T,)
        print(f"scores   {scores}\nmasked   {masked}\nweights  {F.softmax(masked, dim=-1)}\n")
    show_equal("versions 2 and 3", average_by_matrix(x), result)


# %% 6. Version 4: self-attention
# An average treats all tokens alike. But a token may need one thing and not another, and what it
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
# divided by sqrt(hs), for a reason that chapter 8 shows. The rest is version 3: mask the future,
# softmax, and a weighted mean, now of the values. In symbols, where K^T is K with rows and columns
# swapped, and M is 0 for what a token sees and minus infinity for what comes later:
#
#     attention(Q, K, V) = softmax(Q K^T / sqrt(hs) + M) V,    Q = x W_Q,   K = x W_K,   V = x W_V

def attention_weights(q, k):
    """Who looks at whom: queries and keys (..., T, hs) -> weights (..., T, T)."""
    T, hs = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(hs)          # (..., T, hs) @ (..., hs, T)
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


# In a GPT, the three matrices are learned. Here they are made by hand, so that you can follow. The
# two numbers of queries and keys stand for (vowels, spaces). A consonant looks for vowels, a vowel
# for spaces, and a space for nothing in particular. A vowel offers (1, 0), a space (0, 1), and a
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
    tell("weights", weights, "softmax of each row of scores, the future masked")
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
    *_, weights, result = show_steps(x, matrices)
    print(f"\nThe weights of the first text, in percent:\n{(100 * weights[0]).round().long()}\n")
    show_equal("version 4 and gpt.one_head", self_attention(x, *matrices), one_head(x, *matrices))
    alone = torch.cat((x[:1], torch.zeros(3, 8, 32)))         # (1, T, C), (3, T, C) -> (B, T, C)
    same = torch.equal(self_attention(alone, *matrices)[0], result[0])
    print("The texts of a batch never exchange anything: with the other three set to 0,\n"
          f"the result of the first is {'the same' if same else 'ANOTHER'}.")


# %% 7. Several heads
# One head brings each token one mean, and a mean forgets which was which: 5 and 20 give 12.5, as do
# 20 and 5. Two heads can bring both numbers. So there are nh heads of hs = C / nh channels: side by
# side, their results are C numbers again. Their matrices, side by side, are (C, C). Reshape cuts
# the channels of q, k and v (of a b c d e f, two heads get a b c and d e f), and transpose puts nh
# beside B. Products work on the last two dimensions, head by head.

def heads_at_once(x, w_query, w_key, w_value, n_head):
    """Version 4 with n_head heads side by side: x (B, T, C), three matrices (C, C) -> (B, T, C)."""
    B, T, C = x.shape
    q, k, v = ((x @ matrix)                                   # (B, T, C) @ (C, C) -> (B, T, C)
               .reshape(B, T, n_head, C // n_head)            # (B, T, C) -> (B, T, nh, hs)
               .transpose(1, 2)                               # (B, T, nh, hs) -> (B, nh, T, hs)
               for matrix in (w_query, w_key, w_value))
    found = attention_weights(q, k) @ v                       # (B, nh, T, T) @ v -> (B, nh, T, hs)
    return found.transpose(1, 2).reshape(B, T, C)             # (B, nh, T, hs) -> (B, T, C)


@torch.no_grad()
def show_several_heads():
    torch.manual_seed(0)
    attention = CausalSelfAttention(Config(n_embd=24, n_head=4, bias=False))    # keeps (out, in)
    x, projection = torch.randn(2, 8, 24), attention.proj.weight.T      # (B, T, C), (C, C)
    matrices = attention.qkv.weight.T.chunk(3, dim=1)         # (C, 3C) -> three of (C, C)
    q, k = ((x @ matrix).reshape(2, 8, 4, 6).transpose(1, 2) for matrix in matrices[:2])
    tell("x", x, "random numbers, (B, T, C)")
    tell("q", q, "(B, nh, T, hs): 4 heads; k and v likewise")
    tell("weights", attention_weights(q, k), "(B, nh, T, T): each head has its own")
    result = heads_at_once(x, *matrices, n_head=4)
    tell("result", result, "what 4 heads have found, side by side: (B, T, C) again")
    mixed = result @ projection                               # (B, T, C) @ (C, C) -> (B, T, C)
    tell("mixed", mixed, "a last matrix (C, C), the projection, mixes that\n")
    heads = zip(*(matrix.chunk(4, dim=1) for matrix in matrices))       # nh triples of (C, hs)
    show_equal("mixed and gpt.several_heads", mixed, several_heads(x, heads, projection))
    show_equal("mixed and gpt.CausalSelfAttention", mixed, attention(x, torch.arange(8)))


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
# its position in its C numbers, too. One way is to add sines and cosines, as gpt.sinusoids does.

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
# the model learns to look there. (`patch` puts a function of ours in the place of PyTorch's.)

def why_mask(train_data, val_data, vocab_size):
    config = Config(vocab_size=vocab_size, block_size=32, n_layer=1, n_head=1, n_embd=64,
                    max_steps=300, eval_interval=300, learning_rate=1e-2)
    attention = F.scaled_dot_product_attention
    with patch.object(F, "scaled_dot_product_attention", lambda q, k, v, **_: attention(q, k, v)):
        model, copying = learn(train_data, val_data, config)
    print(f"\nWhy the mask? A model with one head, trained without it, predicts a held-out\n"
          f"text with a loss of {copying:.2f}: it looks at the character that it is to predict.\n"
          f"With the mask put back, as when it writes, it is {evaluate(model, val_data):.2f}; "
          f"a guess has {math.log(vocab_size):.2f}.\n\n"
          "With the mask, the model is a decoder, which writes. Without it, it would be an\n"
          "encoder, such as BERT, which reads whole texts, to classify or find them. As\n"
          "queries, keys and values come from one text, this is self-attention. With\n"
          "cross-attention, queries come from one text, keys and values from another, as\n"
          "when a translation looks at its original.")


def learn(train_data, val_data, config):
    """Train a GPT -> (the model, its loss on the validation split)."""
    torch.manual_seed(config.seed)
    *_, state = train(model := GPT(config), train_data, val_data, config)
    return model.eval(), state.val_loss


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
    """The text of a token in `width` columns; white space can be seen."""
    return fit(escape_control(text.translate(str.maketrans(" \n\t", "␣↵⇥"))), width)


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


# A GPT gathers by a function of PyTorch. Put version 4 in its place for a while, keep its weights.

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
    """How far back causal weights (T, T) look; the first token, which has no choice, left out."""
    positions = torch.arange(len(weights))                              # (T,)
    distance = positions[:, None] - positions                           # (T, 1) - (T,) -> (T, T)
    back = (weights * distance)[1:].sum(dim=-1).mean()                  # (T-1, T) -> (T-1,) -> ()
    previous, first = weights.diagonal(-1).mean(), weights[1:, 0].mean()    # (T-1,) -> (), twice
    return (f"looks {back:.1f} back on average; {previous:.0%} to the previous token, "
            f"{first:.0%} to the first")


def show_heads(model, ids, tokenizer):
    """Pictures and words of all heads of a model that reads these token ids, at least 2."""
    print(f"{textwrap.fill(escape_control(f'It reads {tokenizer.decode(ids)!r}.'), 79)}\n"
          f"{LEGEND} of the weight of a row.\n"
          "Look for a diagonal (a fixed distance back), for columns (a token that many\n"
          "look at), and for single dense cells (content: this one matters to that one).\n"
          "To compare with, a head with equal weights, as in version 3,\n"
          f"{in_words(weights_behind(average_by_matrix, len(ids)))}.")
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


# %% 10. A page
# data/page.html is a GPT in JavaScript that shows how it reads, looks back and writes. Filled with
# a run, it is a single file, which needs no network: send it to a friend.

def as_base64(numbers):
    """The bytes of a tensor's numbers, as text. ValueError if one is too large for them."""
    check(numbers.isfinite().all(), "a parameter is too large for 16 bits")
    numbers = numbers.detach().contiguous().view(torch.uint8).flatten()
    return base64.b64encode(bytes(numbers.tolist())).decode()


def page_data(saved, text, text_name):
    """All that a page has to know of a run, as JSON without "<", which might end a script."""
    V, config = saved.config.vocab_size, vars(saved.config)
    train_data, val_data = (encode_text(part, saved.tokenizer) for part in split(text))   # (N,)
    T = min(64, saved.config.block_size, len(val_data))
    idx = val_data.unfold(0, T, 1)[[0, (len(val_data) - T) // 2, -1]]       # three texts: (3, T)
    bigram = None
    if V <= LARGEST_BIGRAM:                                   # trained once more, as gpt.run does
        model = BigramLanguageModel(V)
        *_, state = train(model, train_data, val_data, Config(**(config | BIGRAM_TRAINING)))
        bigram = {"table": as_base64(model.table.weight.half()), "loss": state.val_loss}
    return json.dumps({
        "name": saved.path.stem, "config": config, "vocabulary": list(saved.vocabulary),
        "parameter_count": count_parameters(saved.best), "bigram": bigram,
        "parameters": {name: as_base64(p.half()) for name, p in saved.best.state_dict().items()},
        "step": saved.state.step, "history": saved.state.history, "characters": len(text),
        "text_name": text_name, "text_begins": text[:60], "held_out": list(split(text)[1][:4000]),
        "texts": list(zip(idx.tolist(), map(as_base64, saved.best(idx)[0])))    # logits (T, V) each
    }).replace("<", r"\u003c").encode()


def write_page(path, text_path=None):
    """Write data/RUN.html, the page of the run whose checkpoint is at `path`."""
    check(not path.is_dir(), f"{path} is a GPT-2; a page shows a run of gpt.py")
    source, page = Path(__file__).parent / "data" / "page.html", DATA / f"{path.stem}.html"
    saved, template = read_checkpoint(path), source.read_bytes()
    check(isinstance(saved.vocabulary, str), f"{path} has subwords; a page shows characters")
    check(count_parameters(saved.best) <= 12e6, f"{path} has more than 12 million parameters")
    check(saved.state.history, f"{path} is not evaluated yet; train it further with --resume")
    name, text = load_text(text_path, saved.text_sha256)
    check(hash_of(text) == saved.text_sha256, f"{path} learned from another text; add its --text")
    other = page.exists() and (page.samefile(source) or page.read_bytes()[:90] != template[:90])
    check(not other, f"{page} is another file, which would be lost; rename it, or the run")
    with atomic_write(page) as file:
        file.write(template.replace(b'"RUN"', page_data(saved, text, name), 1))
    print(f"{escape_control(str(page))}, {page.stat().st_size / 1e6:.1f} MB: open it in a browser")


# %% 11. The run

def show_model(path, prompt=None):
    """The heads of the model at `path`, as it reads `prompt`, or what it has written itself."""
    model, tokenizer = load_gpt2(path) if path.is_dir() else load_checkpoint(path)
    most = min(MOST_TOKENS, model.block_size)
    if prompt is None:
        prompt = complete(model, tokenizer, default_prompt(tokenizer), min(most, 16) - 1, seed=1)
    ids = tokenizer.encode(prompt)
    check(2 <= len(ids) <= most, f"the prompt has {len(ids)} tokens; it needs at least 2, and "
          f"{most} fit into {'80 columns' if most == MOST_TOKENS else 'the context'}")
    heading(f"9. Trained heads: {escape_control(str(path))}")
    show_heads(model, ids, tokenizer)


def run(text, quick=False):
    """All chapters; quick leaves out the last."""
    tokenizer = build_char_tokenizer(text)
    train_data, val_data = (encode_text(part, tokenizer) for part in split(text))       # (N,) each
    check(len(train_data) > 32 and len(val_data) > 1, f"{len(text)} characters are too few")
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
        config = Config(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2,
                        n_embd=64, max_steps=1000, eval_interval=1000)
        model, loss = learn(train_data, val_data, config)
        print(f"A GPT with 2 layers of 2 heads, after {config.max_steps} steps (loss {loss:.2f}).")
        show_heads(model, val_data[:24].tolist(), tokenizer)


def command(arguments):
    parser = Parser("attention_toy.py", allow_abbrev=False, description="Attention taken apart.")
    parser.add_argument("--quick", action="store_true", help="leave out chapter 9")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    parser.add_argument("--model", metavar="RUN", help="only the heads of a run, or of a GPT-2")
    parser.add_argument("--page", metavar="RUN", nargs="?", const="",
                        help="only write data/RUN.html, the page of a run, or of the latest")
    parser.add_argument("--prompt", help=r"what it reads (\n is a new line), if not its own text")
    given = parser.parse_args(arguments)
    if given.page is not None:
        check(not (given.quick or given.model or given.prompt), "--page goes with --text alone")
        return write_page(find_run(given.page or None), given.text)
    if given.model is not None:
        check(not given.quick and given.text is None, "--model goes without --quick and --text")
        return show_model(find_run(given.model), given.prompt and unescape(given.prompt))
    check(given.prompt is None, "--prompt is for a trained model; say for which with --model")
    run(load_text(given.text)[1], given.quick)


if __name__ == "__main__":
    sys.exit(run_cleanly("attention_toy.py", command, sys.argv[1:]))

# /// script
# dependencies = ["torch", "requests"]
# ///
