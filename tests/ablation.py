"""ablation.py: what each part of a GPT is worth. One change a row, all else the same, and the losses compared.

    python tests/ablation.py                            all rows; a quarter of an hour on two processor cores
    python tests/ablation.py --seeds 3                  three times, and how far the losses lie apart
    python tests/ablation.py --rows "full model, rotary" --steps 3000

First a GPT is built up, part by part, from a model that knows nothing: each row is the row above with one change.
It ends with the full model, which is what `python gpt.py` trains. Then rows follow that change one thing about the
full model. Not every part gains, and here is why:

- An average of all characters has forgotten which was the last, and that one says most about the next.
- Three blocks that replace what they get are harder to train than one. With residuals, the gradient reaches each
  block directly, and what one block has found is there for all that follow.
- LayerNorm keeps deep models trainable. In three blocks, there is little to keep.

Another order of the rows would give other gains. A gain below twice the spread (the ± of several seeds, half of the
way from the lowest loss to the highest) may be chance.
"""

import math
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable

sys.path.insert(0, str(Path(__file__).parent.parent))
from gpt import (GPT, BigramLanguageModel, Block, BPETokenizer, CausalSelfAttention, Config, Parser,
                 build_char_tokenizer, check, check_range, complete, count_parameters, default_prompt, encode_text,
                 escape_control, evaluate, head_start, load_text, progress, run_cleanly, sinusoids, split, train,
                 train_bpe)
import torch
import torch.nn as nn
import torch.nn.functional as F

# %% Parts that gpt.py does not have


class Average(nn.Linear):
    """In place of attention: the mean of the token itself and those before it, (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, positions, cache=None):
        return super().forward(x).cumsum(dim=1) / (positions[:, None] + 1)      # (B, T, C) / (T, 1)


class PlainBlock(Block):
    """A block without residuals: each half replaces x (B, T, C)."""

    def forward(self, x, positions, cache=None):
        return self.feed_forward(self.norm_2(self.attention(self.norm_1(x), positions, cache)))


class SquaredReLU(nn.Module):
    """relu(x)^2 (So et al. 2021, arXiv 2109.08668)."""

    def forward(self, x):
        return F.relu(x).square()


class SwiGLU(nn.Module):
    """One half of the channels scales the other (Shazeer 2020, arXiv 2002.05202)."""

    def forward(self, x):
        a, b = x.chunk(2, dim=-1)                                               # (B, T, 2n) -> two of (B, T, n)
        return F.silu(a) * b


def squared_relu(feed_forward):
    feed_forward[1] = SquaredReLU()
    return feed_forward


def swiglu(feed_forward):
    C, bias = feed_forward[0].in_features, feed_forward[0].bias is not None
    n = 8 * C // 3                              # its three matrices have as many parameters as two that go to 4C
    feed_forward[0], feed_forward[1] = nn.Linear(C, 2 * n, bias=bias), SwiGLU()
    feed_forward[2] = nn.Linear(n, C, bias=bias)
    return feed_forward


def gelu(feed_forward):
    return feed_forward                         # as it is


def nothing(feed_forward):
    return nn.Identity()


def rms_norm(C, bias):
    return nn.RMSNorm(C, eps=1e-5)


# %% First parameters


@torch.no_grad()
def plain(model):
    """For blocks that replace x, through which nothing would pass if they ended in zeros, as those of gpt.py do.

    Embeddings have a standard deviation of 1, and matrices with n inputs 1/sqrt(n), which keeps that of x.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.token_embedding.weight)
    model.position_embedding.weight.copy_(sinusoids(model.config))


@torch.no_grad()
def gpt2(model):
    """All matrices N(0, 0.02); those that write to the residual stream smaller, as its sum has many terms."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
    for block in model.blocks:
        for matrix in block.attention.proj, block.feed_forward[2]:
            matrix.weight.div_(math.sqrt(2 * len(model.blocks)))


def chapter_7(model):
    """Those that a GPT has."""


# %% The rows


@dataclass(frozen=True)
class Row:
    """A model, described by what it is made of. The defaults are the full model, gpt.py's."""

    meaning: str = ""
    against: str | None = None          # the row that its gain is over
    config: dict = field(default_factory=dict)          # fields of Config that differ
    subwords: bool = False              # what tokens are; else characters
    mixing: type = CausalSelfAttention  # what gathers from the tokens before, or Average
    projection: bool = True             # the matrix that mixes what heads have found
    positions: bool = True
    feed_forward: Callable = gelu       # what becomes of it
    residuals: bool = True
    norm: Callable = nn.LayerNorm
    first: Callable = head_start        # what sets the first parameters
    counted: bool | None = None         # no GPT: True counts characters, False knows nothing


ROWS = {
    "uniform": Row("all characters are equally likely", counted=False),
    "frequencies": Row("how often does each occur, whatever came before?", "uniform", counted=True),
    "bigram": Row("what comes after this character? a table, in the form of two matrices", "frequencies",
                  {"n_layer": 0, "n_head": 1, "learning_rate": 2e-3}, projection=False, positions=False,
                  feed_forward=nothing, residuals=False, norm=nn.Identity, first=plain)}


def add(name, meaning, against=None, config={}, **changes):
    """A new row: the row `against` (else the one above) with these changes."""
    against = against or list(ROWS)[-1]
    ROWS[name] = replace(ROWS[against], meaning=meaning, against=against, config={**ROWS[against].config, **config},
                         **changes)


# gpt.py's learning rate is 4e-3; three plain blocks hardly learn with that, so the first rows have half of it.
add("average", "before the table, the mean of all characters so far", config={"n_layer": 1}, mixing=Average)
add("one head", "attention: a mean whose weights depend on the content", mixing=CausalSelfAttention)
add("positions", "attention can also ask where a character stands", positions=True)
add("four heads", "in place of one, each with a quarter of the channels", config={"n_head": 4})
add("projection", "one more matrix mixes what the four have found", projection=True)
add("feed-forward", "a small network works on what was gathered; together, a block", feed_forward=gelu)
add("three blocks", "one on top of the other; each sees only what the one below has made", config={"n_layer": 3})
add("residuals", "each half of a block adds to what it gets, and no longer replaces it", residuals=True)
add("LayerNorm", "brings what a block reads to one scale; all parts of gpt.py are there", norm=nn.LayerNorm)
add("chapter 7", "the first parameters of gpt.py: blocks begin by adding nothing", first=chapter_7)
add("head start", "channels of their own for tokens, and heads that look back", first=head_start)
add("full model", "and its learning rate, 4e-3 in place of 2e-3", config={"learning_rate": 4e-3})

add("wide bigram", "control: the bigram with 16 times the channels", "bigram", {"n_embd": 16 * 128})
add("wide block", "control: up to feed-forward, with 7/4 of the channels", "feed-forward", {"n_embd": 7 * 128 // 4})

FULL = "full model"
add("no head start", "the first parameters of chapter 7 alone", FULL, first=chapter_7)
add("GPT-2's start", "first parameters N(0, 0.02), as in GPT-2", FULL, first=gpt2)
add("sinusoidal", "positions that are fixed", FULL, {"position": "sinusoidal"})
add("rotary", "positions that turn queries and keys", FULL, {"position": "rotary"})
add("context 32", "half the context, twice the sequences: as many tokens in each step", FULL,
    {"block_size": 32, "batch_size": 24})
add("context 128", "twice the context, half the sequences", FULL, {"block_size": 128, "batch_size": 6})
add("context 256", "four times the context, a quarter of the sequences", FULL, {"block_size": 256, "batch_size": 3})
add("rotary 128", "rotary, with twice the context", "rotary", {"block_size": 128, "batch_size": 6})
add("rotary 256", "rotary, with four times the context", "rotary", {"block_size": 256, "batch_size": 3})
add("RMSNorm", "divides by the root mean square; no mean, no bias (arXiv 1910.07467)", FULL, norm=rms_norm)
add("SwiGLU", "a gate in place of GELU, as in Llama", FULL, feed_forward=swiglu)
add("squared ReLU", "relu(x)^2 in place of GELU", FULL, feed_forward=squared_relu)
add("subwords", "512 tokens in place of characters, as many in each step", FULL, {"vocab_size": 512}, subwords=True)


def build(row, config):
    """The untrained model of a row, with the row's config: `logits, loss = model(idx, targets)`."""
    torch.manual_seed(config.seed)
    model = GPT(config)
    model.norm = row.norm(config.n_embd, bias=config.bias)
    for i, block in enumerate(model.blocks):
        block = model.blocks[i] = block if row.residuals else PlainBlock(config)
        block.norm_1, block.norm_2 = (row.norm(config.n_embd, bias=config.bias) for _ in range(2))
        if row.mixing is Average:
            block.attention = Average(config)
        if not row.projection:
            block.attention.proj = nn.Identity()
        block.feed_forward = row.feed_forward(block.feed_forward)
    if row.feed_forward is swiglu:
        model.init_parameters()                             # as some matrices are new
    row.first(model)
    if not row.positions:
        nn.init.zeros_(model.position_embedding.weight).requires_grad_(False)
    return model


# %% The run


def learn(name, row, train_data, val_data, config):
    """(the trained model of a row, its number of parameters, its loss on the validation split in nats per token)."""
    if row.counted is not None:                             # a table whose rows are all the same
        model = BigramLanguageModel(config.vocab_size)
        if row.counted:
            counts = torch.bincount(train_data, minlength=config.vocab_size)    # (N,) -> (V,)
            model.table.weight.data[:] = (counts + 1).log()                     # (V,) -> (V, V); + 1: none is 0
        return model, config.vocab_size * row.counted, evaluate(model, val_data)
    model = build(row, config)
    for state in train(model, train_data, val_data, config):
        if state.step % 10 == 0:
            progress(f"{name}: step {state.step}/{config.max_steps}")
    progress()
    return model, count_parameters(model), state.val_loss


def ablation(names, text, steps, seeds):
    """Train and print the rows with these names."""
    tokenizers = {False: build_char_tokenizer(text)}
    if any(ROWS[name].subwords for name in names):
        tokenizers[True] = BPETokenizer(train_bpe(split(text)[0], 512))
    data = {key: [encode_text(part, tokenizer) for part in split(text)] for key, tokenizer in tokenizers.items()}
    print(f"{steps:,} steps, {seeds} seed{'s' * (seeds > 1)}, torch {torch.__version__}, {torch.get_num_threads()} "
          "threads\n\nloss  in nats per character, on the validation split\n"
          "±     half of the way from the lowest to the highest, with several seeds\n"
          "gain  how far the loss is below that of the row it is over; one thing differs\n"
          ">     what it writes\n\n"
          f"{'':<14}{'parameters':>10}{'loss':>7}{'±':>7}{'bits/char':>11}{'gain':>8}{'seconds':>9}  over")
    losses = {}
    for name in names:
        row, found, began = ROWS[name], [], time.perf_counter()
        tokenizer, (train_data, val_data) = tokenizers[row.subwords], data[row.subwords]
        config = Config(**{**row.config, "vocab_size": tokenizer.vocab_size, "max_steps": steps,
                           "eval_interval": steps})
        for seed in range(config.seed, config.seed + seeds):
            model, parameters, loss = learn(name, row, train_data, val_data, replace(config, seed=seed))
            found.append(loss * len(val_data) / len(split(text)[1]))
        seconds = (time.perf_counter() - began) / seeds
        losses[name] = loss = sum(found) / seeds
        spread = f"{(max(found) - min(found)) / 2:.3f}" if seeds > 1 else "-"
        gain = f"{losses[row.against] - loss:+.3f}" if row.against in losses else "-"
        prompt = default_prompt(tokenizer)
        written = complete(model, tokenizer, prompt, 44, config.seed, temperature=0.8, use_cache=False)
        written = escape_control(written.removeprefix(prompt)).replace("\n", "\\n")[:73]
        print(f"{name:<14}{parameters:>10,}{loss:>7.3f}{spread:>7}{loss / math.log(2):>11.3f}{gain:>8}{seconds:>9.1f}  "
              f"{row.against if gain != '-' else ''}\n    {row.meaning}\n    > {written}", flush=True)


def command(arguments):
    parser = Parser("ablation.py", allow_abbrev=False, description="What is each part of a GPT worth?",
                    epilog="rows: " + ", ".join(ROWS))
    parser.add_argument("--rows", default=", ".join(ROWS), metavar="A,B", help="only these, with commas between them")
    parser.add_argument("--seeds", type=int, default=1, help="train each so many times; default %(default)s")
    parser.add_argument("--steps", type=int, default=1000, help="steps of training; default %(default)s")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.rows.split(",")]
    unknown = [name for name in names if name not in ROWS]
    check(not unknown, f"there is no row {', '.join(unknown)}, only {', '.join(ROWS)}")
    check_range("--seeds", options.seeds, 1)
    check_range("--steps", options.steps, 1)
    ablation(names, load_text(options.text)[1], options.steps, options.seeds)


def main(arguments=None):
    return run_cleanly("ablation.py", command, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
