"""inside.py: a block in numbers, and a training in numbers.

    python tests/inside.py block            what each half of a block does to the residual stream, and what it costs
    python tests/inside.py training         learning rate and losses as pictures; a model that overfits, and dropout
    python tests/inside.py                  both; two minutes
    ... --text my.txt                       with your own text

attention_toy.py shows attention in numbers; this shows what stands around it: embeddings, LayerNorm, the MLP,
residuals, and how training goes. It trains small models along the way. "Size" is the root of the mean square: the
typical size of the numbers in a tensor.
"""

import math
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path[:0] = str(Path(__file__).parent), str(Path(__file__).parent.parent)
import benchmark
from ablation import PlainBlock
from attention_toy import heading
from gpt import (GPT, Block, CharTokenizer, Config, Parser, check, choose_threads, encode_text, get_batch,
                 learning_rate_at, load_text, run_cleanly, show_progress, train, train_val_split)
import torch
import torch.nn as nn
import torch.nn.functional as F

# %% A block in numbers


def size(x):
    return x.square().mean().sqrt().item()


def table(titles, rows):
    """Print a table: the first column is words, at the left; the others stand at the right."""
    for first, *others in (titles, *rows):
        cells = (f"{other:.3f}" if isinstance(other, float) else f"{other:,}" if isinstance(other, int) else other
                 for other in others)
        print(f"{first:<22}" + "".join(f"{text:>14}" for text in cells))


def walk(model, idx):
    """The forward pass of a GPT, stage by stage -> its stages, LayerNorms and GELUs, as rows of tables."""
    x = model.embed(idx)                                                    # (B, T) -> (B, T, C)
    stages, norms, gelus = [("embed", f"{tuple(x.shape)}", size(x), "")], [], []
    for i, block in enumerate(model.blocks, start=1):
        for name, norm, layer in ("attn", block.ln_1, block.attn), ("mlp", block.ln_2, block.mlp):
            before, after = x, norm(x)                                      # two of (B, T, C)
            added = layer(after)                                            # (B, T, C)
            x = x + added
            stages.append((f"block {i}, + {name}", f"{tuple(x.shape)}", size(x), size(added)))
            norms.append((f"block {i}, before {name}", *mean_and_deviation(before), *mean_and_deviation(after)))
        wide = block.mlp.fc(after)                                          # (B, T, 4C)
        passed = F.gelu(wide, approximate="tanh")                           # (B, T, 4C)
        share = (wide > 0).float().mean().item()
        gelus.append((f"block {i}", f"{tuple(wide.shape)}", f"{share:.0%}", size(wide), size(passed)))
    after = model.ln_f(x)                                                   # (B, T, C)
    norms.append(("ln_f", *mean_and_deviation(x), *mean_and_deviation(after)))
    logits = model.lm_head(after)                                           # (B, T, V)
    stages += [("ln_f", f"{tuple(after.shape)}", size(after), ""),
               ("lm_head: logits", f"{tuple(logits.shape)}", size(logits), "")]
    return stages, norms, gelus


def tell(words):
    """Print a paragraph, no wider than a terminal."""
    print(f"\n{textwrap.fill(' '.join(words.split()), 79)}\n")


def mean_and_deviation(x):
    """Over the channels of a token, and then the mean of all tokens."""
    return x.mean(dim=-1).abs().mean().item(), x.std(dim=-1, correction=0).mean().item()


class BlockWithoutNorms(Block):
    """A block with residuals, but without LayerNorms."""

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


class BareBlock(Block):
    """A block with neither."""

    def forward(self, x):
        return self.mlp(self.attn(x))


def gpt_of(kind, config):
    torch.manual_seed(config.seed)
    model = GPT(config)
    model.blocks = nn.ModuleList(kind(config) for _ in model.blocks)
    return model


def gradients(model, data):
    """The size of the loss's slopes along the parameters of each block, for one batch."""
    _, loss = model(*get_batch(data, 0, model.config))
    loss.backward()
    slopes = ([p.grad.flatten() for p in block.parameters() if p.grad is not None] for block in model.blocks)
    return [size(torch.cat(one)) for one in slopes]


def costs(model, idx):
    """For each part of a block, and what stands around: parameters, multiplications for each token, milliseconds."""
    block, T, C = model.blocks[0], idx.shape[1], model.config.n_embd
    x = model.embed(idx)                                                    # (B, T, C)
    q, k, v = torch.randn(3, len(idx), model.config.n_head, T, C // model.config.n_head)    # (B, nh, T, hs)
    parts = {"embed": (model.embed, idx, 0), "ln_1": (block.ln_1, x, 2 * C),
             "attn: qkv": (block.attn.qkv, x, 3 * C * C),
             "attn: attend": (lambda _: block.attn.attend(q, k, v), x, 2 * T * C),
             "attn: proj": (block.attn.proj, x, C * C), "mlp": (block.mlp, x, 8 * C * C),
             "lm_head": (model.lm_head, x, C * model.config.vocab_size)}
    for name, (part, argument, multiplications) in parts.items():
        seconds = benchmark.seconds("part(x)", 0.1, part=part, x=argument)
        owner = {"embed": nn.ModuleList([model.token_embedding, model.position_embedding])}.get(name, part)
        count = sum(p.numel() for p in owner.parameters()) if isinstance(owner, nn.Module) else 0
        yield name, count, multiplications, 1000 * seconds


def show_block(train_data, val_data, vocab_size):
    heading("A block in numbers")
    config = Config(vocab_size=vocab_size, block_size=32, n_layer=2, n_embd=64, max_steps=500)
    model, losses = learn(train_data, val_data, config, "training a model of two blocks")
    idx = val_data[None, :32].long()                                        # (1, T)
    with torch.no_grad():
        stages, norms, gelus = walk(model, idx)
    tell(f"A GPT with 2 blocks of {config.n_head} heads and {config.n_embd} channels (validation loss "
         f"{losses[-1][2]:.2f}) reads 32 tokens. This is what the residual stream carries, and what each half of a "
         "block adds to it. Size is the root of the mean square, the typical size of a number:")
    table(("after", "shape", "size", "size of added"), stages[:-2])
    print("-" * 64)
    table(stages[-2], stages[-1:])
    (_, _, before, _), (_, _, after, added), *_ = stages
    tell("Up to ln_f, nothing is replaced, only added, and the stream grows. Sizes do not simply add up, as "
         f"numbers have signs; but often their squares nearly do: {before:.2f}^2 + {added:.2f}^2 = "
         f"{before**2 + added**2:.2f}, and {after:.2f}^2 = {after**2:.2f}.")
    tell("What LayerNorm does: the mean (its absolute value) and the standard deviation of a token's channels, "
         "before and after (its learned numbers make them differ a little from 0 and 1):")
    table(("", "mean", "deviation", "mean, after", "deviation"), norms)
    tell("What GELU does: the share of positive numbers. The others end between -0.17 and 0.")
    table(("", "shape", "positive", "size before", "size after"), gelus)
    heading("The slopes that reach each of eight blocks, before training")
    config = replace(config, n_layer=8, max_steps=200, eval_interval=200)
    columns = []
    for kind in Block, PlainBlock, BlockWithoutNorms, BareBlock:
        slopes = gradients(gpt_of(kind, config), train_data)
        _, losses = learn(train_data, val_data[:20_000], config, "training models of eight blocks",
                          partial(gpt_of, kind))
        columns.append([*(f"{slope:.1e}" for slope in slopes), losses[-1][2]])
    names = [*(f"block {i}" for i in range(1, 9)), "loss, 200 steps later"]
    table(("", "as in gpt.py", "no residuals", "no LayerNorm", "neither"), zip(names, *columns))
    counts = train_data.bincount()
    shares = counts[counts > 0] / counts.sum()
    frequencies = -(shares * shares.log()).sum()
    tell("With neither, each block on the way back makes the slopes smaller by a factor of about 15. (Adam makes "
         "up for small slopes, but not if they are as small as the 1e-8 that it adds.) LayerNorm alone keeps them "
         "large, and still the model learns no more than how frequent each token is, which costs "
         f"{frequencies:.3f}. So large slopes are not enough. A likely reason: without residuals, each block must "
         "hand on what a token is, and at first it only scrambles it. With residuals, this comes by itself. (One "
         "seed, one learning rate.)")
    heading("What each part costs")
    config = Config(vocab_size=vocab_size)
    tell(f"One of the {config.n_layer} blocks of the default model and what stands around it, forward, for "
         f"{config.batch_size} sequences of {config.block_size} tokens:")
    with torch.no_grad():
        table(("", "parameters", "products", "milliseconds"),
              costs(GPT(config), get_batch(train_data, 0, config)[0]))
    tell("Products are multiplications for each token, about as many as there are parameters, as each is used "
         "once. Only attend has none, and its products grow with the context. The MLP has two thirds of a block's "
         "parameters; its GELU takes time, too.")


# %% A training in numbers


def learn(train_data, val_data, config, words, make_gpt=GPT):
    """Train a GPT -> (the model, [(step, train_loss, val_loss)])."""
    torch.manual_seed(config.seed)
    model, rows = make_gpt(config), []
    for row in train(model, train_data, val_data, config):
        rows.append(row)
        show_progress(f"{words}: step {row[0]} of {config.max_steps}")
    show_progress()
    return model.eval(), rows


def picture(curves, last_step, height=10, width=60, limits=None):
    """Curves {letter: [(step, number)]} as lines for a terminal, with the lowest and the highest number at the left."""
    numbers = [number for points in curves.values() for _, number in points]
    low, high = limits or (min(numbers), max(numbers))
    cells = [[" "] * width for _ in range(height)]
    for letter, points in curves.items():
        for step, number in points:
            down = round((high - number) / (high - low or 1) * (height - 1))
            along = min(width - 1, round(step / last_step * (width - 1)))
            cells[down][along] = letter if cells[down][along] in (" ", letter) else "*"
    labels = {0: high, height - 1: low}
    lines = [f"{f'{labels[i]:.4g}' if i in labels else '':>8} |{''.join(row).rstrip()}" for i, row in enumerate(cells)]
    return "\n".join([*lines, f"{'':>8} +{'-' * width}", f"{'':>9}0{last_step:>{width},}"])


def show_losses(rows, config, limits=None):
    curves = {"t": [(step, loss) for step, loss, _ in rows], "v": [(step, loss) for step, _, loss in rows]}
    print(picture(curves, config.max_steps, limits=limits))
    best = min(rows, key=lambda row: row[2])
    tell(f"t: training loss, v: validation loss, *: both. The validation loss is lowest at step {best[0]:,} "
         f"({best[2]:.2f}), and ends at {rows[-1][2]:.2f}; the training loss ends at {rows[-1][1]:.2f}.")
    return best[2]


def show_training(train_data, val_data, vocab_size):
    config = Config(vocab_size=vocab_size, block_size=32, n_layer=2, n_embd=64, max_steps=600, eval_interval=30)
    heading("The learning rate: a short warm-up, and a long descent")
    rates = [(step, learning_rate_at(step, config)) for step in range(0, config.max_steps + 1, 10)]
    print(picture({"o": rates}, config.max_steps, height=6))
    heading(f"A training run: {len(train_data):,} tokens to train on")
    _, rows = learn(train_data, val_data, config, "training")
    much = show_losses(rows, config)
    few, config = train_data[:3000], replace(config, max_steps=900)
    configs = [replace(config, dropout=dropout) for dropout in (0.0, 0.3)]
    runs = [learn(few, val_data[:20_000], one, "training on little text")[1] for one in configs]
    losses = [loss for rows in runs for row in rows for loss in row[1:]]
    found = []
    for rows, one in zip(runs, configs):
        heading(f"Too little text, {len(few):,} tokens, dropout {one.dropout}")
        found.append(show_losses(rows, one, limits=(min(losses), max(losses))))
    tell("On so few tokens, the model learns its text by heart: the training loss keeps falling, while the "
         f"validation loss rises (knowing nothing costs ln({vocab_size}) = {math.log(vocab_size):.2f}). With "
         f"dropout, it hardly rises, but its lowest is {found[1]:.2f}, and without {found[0]:.2f}: stopping in "
         "time is as good. (With dropout, the training loss is measured with dropout on.) What helps is more "
         f"text: {much:.2f} above.")


def command(arguments):
    parser = Parser("inside.py", allow_abbrev=False, description="A block in numbers, and a training in numbers.")
    parser.add_argument("which", nargs="?", choices=["block", "training"], help="else both")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    given = parser.parse_args(arguments)
    _, text = load_text(given.text)
    tokenizer = CharTokenizer(text)
    train_data, val_data = (encode_text(part, tokenizer) for part in train_val_split(text))
    check(len(val_data) > 64, f"the text is too short: {len(text)} characters")
    choose_threads()
    if given.which != "training":
        show_block(train_data, val_data, tokenizer.vocab_size)
    if given.which != "block":
        show_training(train_data, val_data, tokenizer.vocab_size)


if __name__ == "__main__":
    sys.exit(run_cleanly("inside.py", command, sys.argv[1:]))
