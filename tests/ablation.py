"""ablation.py: what each part of a GPT is worth. One change a row, all else the same, and the losses compared.

    python tests/ablation.py                            all rows; a quarter of an hour on two processor cores
    python tests/ablation.py --seeds 3                  three times, and how far the losses lie apart
    python tests/ablation.py --rows "full model, rotary" --steps 3000
    python tests/ablation.py --cuts 60                  characters, subwords or words? 60 seconds of training for each

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
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable

sys.path[:0] = str(Path(__file__).parent), str(Path(__file__).parent.parent)
import benchmark
from gpt import (MLP, BigramLanguageModel, Block, BPETokenizer, CausalSelfAttention, CharTokenizer, Options, Parser,
                 build_gpt, build_optimizer, check, check_range, choose_threads, complete, default_prompt, encode_text,
                 evaluate, load_text, run_cleanly, show_progress, split_pattern, train_bpe, train_val_split,
                 training_step)
import torch
import torch.nn as nn
import torch.nn.functional as F

# %% Parts that gpt.py does not have


class Frequencies(BigramLanguageModel):
    """A bigram model whose rows are all the same: whatever came before, it predicts the same."""

    def __init__(self, config):
        super().__init__(config.vocab_size)
        self.table = nn.Embedding.from_pretrained(torch.zeros(1, config.vocab_size), freeze=False)

    def forward(self, idx, targets=None):
        return super().forward(torch.zeros_like(idx), targets)


class Average(nn.Linear):
    """In place of attention: the mean of the token itself and those before it, (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__(config.n_embd, config.n_embd)

    def forward(self, x):
        counts = torch.arange(1, x.shape[1] + 1)[:, None]                       # (T,) -> (T, 1)
        return super().forward(x).cumsum(dim=1) / counts                        # (B, T, C) / (T, 1)


class PlainBlock(Block):
    """A block without residuals: each half replaces x (B, T, C)."""

    def forward(self, x):
        return self.mlp(self.ln_2(self.attn(self.ln_1(x))))


class SquaredReLU(MLP):
    """relu(x)^2 in place of GELU (So et al. 2021, arXiv 2109.08668)."""

    def forward(self, x):
        return self.proj(F.relu(self.fc(x)).square())


class SwiGLU(MLP):
    """One half of the channels scales the other (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config):
        super().__init__(config)
        n = 8 * config.n_embd // 3              # so that three matrices have as many parameters as two before
        self.fc, self.proj = nn.Linear(config.n_embd, 2 * n), nn.Linear(n, config.n_embd)

    def forward(self, x):
        a, b = self.fc(x).chunk(2, dim=-1)                                      # (B, T, 2n) -> two of (B, T, n)
        return self.proj(F.silu(a) * b)


class NoProjection(CausalSelfAttention):
    """Attention without the matrix that mixes what the heads have found."""

    def __init__(self, config):
        super().__init__(config)
        self.proj = nn.Identity()


# %% Changes of an untrained GPT


def parts(**kinds):
    """The change that makes these parts of a GPT anew, each by a function of its config."""
    def change(model):
        for module in (model, *model.blocks):
            for name, kind in kinds.items():
                if hasattr(module, name):
                    setattr(module, name, kind(model.config))
    return change


def norms(kind):
    return parts(ln_1=kind, ln_2=kind, ln_f=kind)


no_blocks = parts(blocks=lambda config: nn.ModuleList())
no_residuals = parts(blocks=lambda config: nn.ModuleList(PlainBlock(config) for _ in range(config.n_layer)))
average, no_projection = parts(attn=Average), parts(attn=NoProjection)
no_mlp, squared_relu, swiglu = parts(mlp=nn.Identity), parts(mlp=SquaredReLU), parts(mlp=SwiGLU)
no_norms, rms_norms = norms(nn.Identity), norms(lambda config: nn.RMSNorm(config.n_embd, eps=1e-5))


def no_positions(model):
    del model.position_embedding
    model.embed = model.token_embedding.forward                                 # (B, T) -> (B, T, C)


def gpt2_start(model):
    """All matrices N(0, 0.02); those that write to the residual stream smaller, as its sum has many terms."""
    for name, p in model.named_parameters():
        if p.dim() == 2:
            terms = 2 * len(model.blocks) if name.endswith("proj.weight") else 1
            nn.init.normal_(p, std=0.02 / math.sqrt(terms))


# %% The rows


@dataclass(frozen=True)
class Row:
    """A model, described by how it differs from the one that `python gpt.py` trains."""

    meaning: str
    against: str | None                 # the row that its gain is over
    options: dict = field(default_factory=dict)         # with vocab_size, tokens are subwords; else characters
    changes: tuple = ()                 # functions from above, in their order
    kind: Callable = build_gpt          # config -> the model that they change

    def make_gpt(self, config):
        model = self.kind(config)
        for change in self.changes:
            change(model)
        return model


COUNTING = dict(block_size=1, batch_size=2048, learning_rate=0.2, weight_decay=0.0)
# gpt.py's learning rate is 4e-3. The first rows have half of it, as blocks without residuals learn with small steps, if
# at all.
ROWS = {
    "uniform": Row("all characters are equally likely", None, {"max_steps": 0}, kind=Frequencies),
    "frequencies": Row("how often does each occur, whatever came before?", "uniform", COUNTING, kind=Frequencies),
    "bigram": Row("what comes after this character? a table, in the form of two matrices", "frequencies",
                  dict(n_layer=1, n_head=1, learning_rate=2e-3),
                  (no_residuals, no_norms, no_mlp, no_projection, average, no_blocks, no_positions))}


def add(name, meaning, against=None, options={}, change=None, back=None):
    """A new row: the row `against` (else the one above) with these options and this change, without that of `back`."""
    against = against or list(ROWS)[-1]
    row = ROWS[against]
    changes = tuple(other for other in (*row.changes, change) if other not in (None, back))
    ROWS[name] = replace(row, meaning=meaning, against=against, options={**row.options, **options}, changes=changes)


add("average", "before the table, the mean of all characters so far", back=no_blocks)
add("one head", "attention: a mean whose weights depend on the content", back=average)
add("positions", "attention can also ask where a character stands", back=no_positions)
add("four heads", "in place of one, each with a quarter of the channels", options={"n_head": 4})
add("projection", "one more matrix mixes what the four have found", back=no_projection)
add("MLP", "each character works on what it has gathered; together, a block", back=no_mlp)
add("three blocks", "one on top of the other; each sees only what the one below has made", options={"n_layer": 3})
add("residuals", "each half of a block adds to what it gets, and no longer replaces it", back=no_residuals)
add("LayerNorm", "brings what a block reads to one scale; all parts of gpt.py are there", back=no_norms)
add("full model", "the learning rate of gpt.py, 4e-3 in place of 2e-3", options={"learning_rate": 4e-3})

add("wide bigram", "control: the bigram with 16 times the channels", "bigram", {"n_embd": 16 * 128})
add("wide block", "control: up to the MLP, with 7/4 of the channels", "MLP", {"n_embd": 7 * 128 // 4})

FULL = "full model"
add("head start", "channels of their own for tokens, and heads that look back", FULL, {"head_start": True})
add("GPT-2's start", "first parameters N(0, 0.02), as in GPT-2", FULL, change=gpt2_start)
add("sinusoidal", "positions that are fixed", FULL, {"position": "sinusoidal"})
add("rotary", "positions that turn queries and keys", FULL, {"position": "rotary"})
add("context 32", "half the context, twice the sequences: as many tokens in each step", FULL,
    {"block_size": 32, "batch_size": 24})
add("context 128", "twice the context, half the sequences", FULL, {"block_size": 128, "batch_size": 6})
add("context 256", "four times the context, a quarter of the sequences", FULL, {"block_size": 256, "batch_size": 3})
add("rotary 128", "rotary, with twice the context", "rotary", {"block_size": 128, "batch_size": 6})
add("rotary 256", "rotary, with four times the context", "rotary", {"block_size": 256, "batch_size": 3})
add("RMSNorm", "divides by the root mean square; no mean, no bias (arXiv 1910.07467)", FULL, change=rms_norms)
add("SwiGLU", "a gate in place of GELU, as in Llama", FULL, change=swiglu)
add("squared ReLU", "relu(x)^2 in place of GELU", FULL, change=squared_relu)
add("subwords", "512 tokens in place of characters, as many in each step", FULL, {"vocab_size": 512})


# %% Three ways to cut a text


class WordTokenizer:
    """Each word, with the space before it, is a token, if it is one of the most frequent; all others are one, ⍰."""

    def __init__(self, text, vocab_size):
        common = Counter(split_pattern().findall(text)).most_common(vocab_size - 1)
        self.words = ["⍰", *(word for word, _ in common)]
        self.ids, self.vocab_size = {word: i for i, word in enumerate(self.words)}, len(self.words)

    def encode(self, text):
        return [self.ids.get(word, 0) for word in split_pattern().findall(text)]

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)

    def unknown(self, text):
        """The words of a text that it does not know."""
        return [word for word in split_pattern().findall(text) if word not in self.ids]


def cuts(text, seconds, sentence="The cat's whiskers were unbelievably long."):
    """Print what each way to cut a text makes of it, and how good a GPT is with it after as much training time."""
    train_text, val_text = train_val_split(text)
    characters = CharTokenizer(text)
    ways = {"characters": characters, "subwords": BPETokenizer(train_bpe(train_text, 1024)),
            "words": WordTokenizer(train_text, 4096)}
    for name, tokenizer in ways.items():
        known = "".join(c for c in sentence if c in characters.ids)
        print(f"{name:<12}{' | '.join(tokenizer.decode([i]) for i in tokenizer.encode(known)):.66}")
    print(f"\nA GPT of the default size after {seconds} seconds of training on each, "
          f"{torch.get_num_threads()} threads:\n\n"
          f"{'':<12}{'vocabulary':>10}{'tokens':>8}{'unknown':>9}{'tables':>10}{'steps':>7}{'bits':>7}\n"
          f"{'':<12}{'':>10}{'/ 1,000':>8}{'':>9}{'':>10}{'':>7}{'/ char':>7}")
    for name, tokenizer in ways.items():
        train_data, val_data = (encode_text(part, tokenizer) for part in (train_text, val_text))
        unknown = tokenizer.unknown(val_text) if name == "words" else []
        config = Options(vocab_size=tokenizer.vocab_size)
        model = build_gpt(config)
        of_a_step = benchmark.seconds("step(model, optimizer, data, 0, config)", seconds / 20, step=training_step,
                                      model=model, optimizer=build_optimizer(model, config), data=train_data,
                                      config=config)
        steps = max(20, round(seconds / of_a_step))
        show_progress(f"{name}: {steps} steps")
        _, loss = learn(ROWS["full model"], train_data, val_data, replace(config, max_steps=steps))
        show_progress()
        spelled = sum(map(len, unknown)) * math.log2(characters.vocab_size)         # an unknown word is not told yet
        bits = (loss / math.log(2) * len(val_data) + spelled) / len(val_text)
        tables = model.token_embedding.weight.numel() + model.lm_head.weight.numel()
        print(f"{name:<12}{tokenizer.vocab_size:>10,}{1000 * len(val_data) / len(val_text):>8.0f}"
              f"{len(unknown) / len(val_data):>9.1%}{tables:>10,}{steps:>7,}{bits:>7.2f}", flush=True)
    print("\nunknown  share of held-out tokens that are not in the vocabulary\n"
          "tables   parameters of the token embedding and of lm_head\n"
          f"bits     for each held-out character; those of unknown words count log2({characters.vocab_size}) each")


# %% The run


def learn(row, train_data, val_data, config):
    """(the trained model of a row, its loss on the validation split in nats per token)."""
    torch.manual_seed(config.seed)                          # as run does
    model = row.make_gpt(config)
    optimizer = build_optimizer(model, config)
    for step in range(config.max_steps):
        training_step(model, optimizer, train_data, step, config)
    return model, evaluate(model, val_data)


def ablation(names, text, steps, seeds):
    """Train and print the rows with these names."""
    print(f"{steps:,} steps, {seeds} seed{'s' if seeds > 1 else ''}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads\n\n"
          "loss  in nats per character, on the validation split\n"
          "±     half of the way from the lowest to the highest, with several seeds\n"
          "gain  how far the loss is below that of the row it is over; one thing differs\n"
          ">     what it writes\n\n"
          f"{'':<14}{'parameters':>10}{'loss':>7}{'±':>7}{'bits/char':>11}{'gain':>8}{'seconds':>9}  over")
    train_text, val_text = train_val_split(text)
    losses = {}
    for name in names:
        row, found, began = ROWS[name], [], time.perf_counter()
        subwords = row.options.get("vocab_size")
        tokenizer = BPETokenizer(train_bpe(train_text, subwords)) if subwords else CharTokenizer(text)
        train_data, val_data = (encode_text(part, tokenizer) for part in (train_text, val_text))
        config = Options(**{"max_steps": steps, **row.options, "vocab_size": tokenizer.vocab_size})
        for seed in range(config.seed, config.seed + seeds):
            show_progress(f"{name}, seed {seed}")
            model, loss = learn(row, train_data, val_data, replace(config, seed=seed))
            found.append(loss * len(val_data) / len(val_text))
        show_progress()
        seconds, parameters = (time.perf_counter() - began) / seeds, sum(p.numel() for p in model.parameters())
        losses[name] = loss = sum(found) / seeds
        spread = f"{(max(found) - min(found)) / 2:.3f}" if seeds > 1 else "-"
        gain = f"{losses[row.against] - loss:+.3f}" if row.against in losses else "-"
        prompt = default_prompt(tokenizer)
        written = complete(model, tokenizer, prompt, 44).removeprefix(prompt)
        print(f"{name:<14}{parameters:>10,}{loss:>7.3f}{spread:>7}{loss / math.log(2):>11.3f}{gain:>8}{seconds:>9.1f}  "
              f"{row.against if gain != '-' else ''}\n    {row.meaning}\n    > {written!r:.73}", flush=True)


def command(arguments):
    parser = Parser("ablation.py", allow_abbrev=False, description="What is each part of a GPT worth?",
                    epilog="rows: " + ", ".join(ROWS))
    parser.add_argument("--rows", default=", ".join(ROWS), metavar="A,B", help="only these, with commas between them")
    parser.add_argument("--seeds", type=int, default=1, help="train each so many times; default %(default)s")
    parser.add_argument("--steps", type=int, default=1000, help="steps of training; default %(default)s")
    parser.add_argument("--cuts", type=int, metavar="SECONDS", help="in place of rows: characters, subwords and words")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    options = parser.parse_args(arguments)
    choose_threads()
    if options.cuts is not None:
        check_range("--cuts", options.cuts, 1)
        return cuts(load_text(options.text)[1], options.cuts)
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
