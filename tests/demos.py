"""demos.py: small trainings that check their own success, written with gpt.py as a library.

    python tests/demos.py hello              each goes through the chapters of gpt.py, then says what
    python tests/demos.py count              it has checked, and whether that held (exit code 0) or
    python tests/demos.py random             FAILED (1)
    python tests/demos.py agree
    python tests/demos.py coder
    python tests/demos.py coder --code .     from your own Python files, too

demo    data set                    tokenizer   time     what you learn
hello   "hello world", repeated     characters  10 s     a pattern that is no more than a phrase is
                                                         learned to the last character
count   0 1 2 ... 9 0 1, repeated   characters  10 s     how little that takes: 3,920 parameters, and
                                                         all that they write is right
random  random characters           characters  10 s     what is true of any sound GPT, even where
                                                         there is nothing to learn
agree   sentences, by a grammar     words       20 s     attention can find the subject of a verb, over
                                                         the words between
coder   Python's standard library   subwords    12 min   how to judge a model on real data: whole files
        and your own files                               are held out, and Python reads what it writes
"""

import argparse
import ast
import contextlib
import copy
import importlib.util
import math
import random
import re
import string
import sys
import textwrap
import warnings
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product, takewhile
from pathlib import Path
from typing import Callable

sys.path[:0] = str(Path(__file__).parent), str(Path(__file__).parent.parent)
import ablation
import attention_toy
from gpt import (DATA, GPT, BPETokenizer, CharTokenizer, LongRun, Options, Parser, build_gpt, check, check_options,
                 choose_device, complete, encode_text, evaluate, generate, generate_cached, get_batch, load_checkpoint,
                 run, run_cleanly, show_progress, train_bpe, train_val_split, write_whole)
import torch

# %% The checks
# A check looks at what the trained models do, and returns its findings, pairs of (whether it held, what was checked).


def check_pattern(pattern, model, bigram, tokenizer, text):
    """Wherever in the pattern it begins: does the model, when greedy, go on with it 10 times over?"""
    starts, n = len(pattern), 10 * len(pattern)
    data = torch.tensor(tokenizer.encode(12 * pattern))                     # (N,)
    true = data.unfold(0, n + 2, 1)[:starts]                                # (N,) -> (starts, n+2)
    written = generate(model, true[:, :2], n, temperature=0)                # (starts, n+2)
    right, total = (written == true)[:, 2:].sum().item(), starts * n
    return [(right == total, f"from each of the {starts} positions in {pattern!r}, greedy sampling goes on with it: "
                             f"{right:,} of {total:,} characters are right, {100 * right // total}%")]


def check_architecture(model, bigram, tokenizer, text):
    """What must be true of any GPT, whatever it has learned, and what training must be able to do."""
    V, T = tokenizer.vocab_size, model.block_size
    data = encode_text(train_val_split(text)[1], tokenizer)
    x, y = get_batch(data, 0, model.config)                                 # two of (B, T)
    later = torch.cat((x[:, :T // 2], (x[:, T // 2:] + 1) % V), dim=1)      # other tokens in the later half
    with torch.no_grad():
        logits, changed = model(x)[0], model(later)[0]
    changed = (changed != logits).any(dim=-1).any(dim=0)                    # (B, T, V) -> (T,)
    learner = copy.deepcopy(model).train()
    learner(x, y)[1].backward()
    reached = [p.grad is not None and bool(p.grad.any()) for p in learner.parameters()]
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    for _ in range(200):
        _, loss = learner(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh, nothing = evaluate(model, data), math.log(V)
    return [(logits.shape == (*x.shape, V), f"shapes: tokens {tuple(x.shape)} become logits {tuple(logits.shape)}"),
            (changed.tolist() == [t >= T // 2 for t in range(T)],
             "causality: other tokens in the later half change the logits there, and none before"),
            (all(reached), f"gradients: they reach {sum(reached)} of {len(reached)} parameter tensors"),
            (loss < 0.05, f"learning: in 200 steps, the loss on one fixed batch falls to {loss:.4f}"),
            (abs(fresh - nothing) < 0.1, f"honesty: on fresh random characters, the loss stays at {fresh:.2f}; "
                                         f"ln({V}) = {nothing:.2f}, and there is nothing to learn")]


# %% Agreement
# "The keys that the dog saw are old": the verb agrees with keys, not with dog, the noun that stands nearer. Some pairs
# of nouns never come in training, in neither order, so that no sentence with them can be remembered.

OPENINGS = "unexpectedly", "this morning", "in the woods"   # of one, two and three words, so that the subject moves
NOUNS = "key dog cat bird boy girl car tree book lamp cup ship".split()
BETWEEN = "near the {}", "that the {} saw", "that the {} found yesterday", "behind the old {}"
VERBS = {False: " is", True: " are"}


def agree_beginnings(held_out):
    """All sentences up to the verb, with pairs of nouns that are held out or not: (words, subject, its number, that of
    the other noun)."""
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j and ((i + j) % 5 == 0) is held_out]
    for opening, (i, j), between, many, others in product(OPENINGS, pairs, BETWEEN, VERBS, VERBS):
        subject, other = NOUNS[i] + "s" * many, NOUNS[j] + "s" * others
        yield f"{opening} the {subject} {between.format(other)}", subject, many, others


def agree_text():
    """Sentences, a line each. The last tenth has the pairs that are held out."""
    draw = random.Random(0)

    def sentences(held_out):
        chosen = draw.choices(list(agree_beginnings(held_out)), k=4000)
        return "".join(f"\n{words}{VERBS[many]} {draw.choice(('old', 'new', 'here'))}" for words, _, many, _ in chosen)

    train_part = sentences(False)
    return train_part + sentences(True)[:len(train_part) // 9] + "\n"


def words_as_tokens(text, config):
    """A tokenizer for which each word of a text, with the space before it, is one token: its letters are merged."""
    words = sorted({word.encode() for word in re.findall(r" ?\w+", text)})
    return BPETokenizer(list(dict.fromkeys((word[:i], word[i:i + 1]) for word in words for i in range(1, len(word)))))


def check_agreement(model, bigram, tokenizer, text):
    """Which verb is likelier, after nouns that never came together, and of which the other has the other number?"""
    asked = [row for row in agree_beginnings(held_out=True) if row[2] != row[3]]
    is_, are = (tokenizer.encode(verb)[0] for verb in VERBS.values())
    train_data, val_data = (encode_text(part, tokenizer) for part in train_val_split(text))
    config = replace(model.config, n_layer=1, n_head=1)
    average, _ = ablation.learn(ablation.ROWS["average"], train_data, val_data, config)

    @torch.no_grad()
    def share(model):
        right = 0
        for words, _, many, _ in asked:
            idx = torch.tensor([tokenizer.encode("\n" + words)])                # (1, T)
            logits = model(idx[:, -model.block_size:])[0][0, -1]                # (V,)
            right += (logits[are] > logits[is_]).item() == many
        return right / len(asked)

    words, subject, _, _ = next(row for row in asked if " found " in row[0])
    ids = tokenizer.encode("\n" + words)
    at = ids.index(tokenizer.encode(f" {subject}")[0])
    layers = attention_toy.weights_of_all_heads(model, torch.tensor([ids]))
    weight, layer, head = max((weights[-1, at].item(), i, j) for i, layer in enumerate(layers)
                              for j, weights in enumerate(layer[0]))            # weights (T, T)
    tokens = [f"{i:>2} {tokenizer.decode([token]).strip()}" for i, token in enumerate(ids)]
    print(f"\n{words}: is or are?\n\n"
          f"Of {len(layers) * model.config.n_head} heads, head {head + 1} of block {layer + 1} looks most at the "
          f"subject, {subject!r}. Each\nrow is a word that looks, each column a word that it looks at;\n"
          f"{attention_toy.LEGEND} of its weight. The last\nrow, from which the verb is predicted, gives "
          f"{weight:.0%} to {subject!r}:\n\n"
          f"{attention_toy.picture(layers[layer][0, head], tokens)}\n\n"
          "The text further up was drawn, so an unlikely word comes now and then. The check\n"
          "asks which of is and are is likelier.")
    shares = [share(one) for one in (model, bigram, average)]
    return [(shares[0] >= 0.95,
             f"the GPT gets {shares[0]:.1%} of {len(asked)} verbs right, after pairs of nouns that never came together "
             "in training, and of which the other one always has the other number"),
            (all(0.4 < share < 0.6 for share in shares[1:]),
             f"the bigram gets {shares[1]:.1%} right, and a model that takes the plain mean of all words so far in "
             f"place of attention {shares[2]:.1%}: chance")]


# %% The coder
# Its text is Python's own standard library: the modules that people wrote by hand, without tests, and without tables
# that a program made. Files are held out whole, as one half of a file says much about the other.

PYTHON_FILES = """[a-z]*.py asyncio/*.py collections/*.py concurrent/futures/*.py ctypes/*.py curses/*.py dbm/*.py
    email/*.py html/parser.py http/*.py importlib/*.py json/*.py logging/*.py multiprocessing/*.py sqlite3/*.py
    tkinter/*.py unittest/*.py urllib/*.py venv/*.py wsgiref/*.py xml/*/*.py xmlrpc/*.py zoneinfo/*.py"""
CODER = Options(vocab_size=1024, block_size=128, n_layer=4, batch_size=8, max_steps=5000, position="rotary",
                head_start=True)
ATTEMPTS = 20                       # so many samples of what is typed, at most
FUNCTION_TOKENS = 400               # the most that it writes of a function
TEMPERATURE = 0.3                   # at which it completes what is typed: low, so that few tokens spoil it
LEAST_SHARE = 0.65                  # of these functions, Python must accept so many
LEAST_SHARE_OF_FOLDER = 0.5         # of those in a folder, which has a style of its own
STEPS_FOR_FOLDER = 7000             # the library is learned, and the folder too
LEAST = 20_000                      # characters of a folder to learn from
FIRST_LINE = re.compile(r"^ *def \w+\(.*\).*:(?=\n)", flags=re.MULTILINE)       # of a function


def python_files(folder=None):
    """The Python files in a folder, without the packages installed there; else those of the standard library."""
    if folder is None:
        library = Path(ast.__file__).parent
        return sorted({path for pattern in PYTHON_FILES.split() for path in library.glob(pattern)})
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.py"))
    return [folder / path for path in paths if not any(p[0] == "." or p == "site-packages" for p in path.parts)]


def subwords(text, config):
    return BPETokenizer(train_bpe(train_val_split(text)[0], config.vocab_size))


def texts_of_files(folder=None):
    texts = [path.read_text(encoding="utf-8-sig", errors="replace") for path in python_files(folder)]
    texts = [text for text in texts if text.strip()]
    check(texts, f"there are no Python files in {folder or Path(ast.__file__).parent}")
    return texts


def split_files(texts):
    """The texts of files as two, the ones to learn from and the ones that are held out."""
    if len(texts) < 10:                                     # of few files, the last tenth of each
        parts = [train_val_split(text) for text in texts]   # (which takes at most 200,000 characters)
    else:                                                   # else every tenth, and more if those are short
        order = sorted(random.Random(0).sample(range(len(texts)), len(texts)), key=lambda i: i % 10 != 9)
        sizes = [len(texts[i]) for i in order]
        wanted = min(200_000, sum(sizes) / 10 + 1)
        n = next(n for n in range(len(texts) // 10, len(texts) + 1) if sum(sizes[:n]) >= wanted)
        parts = [("", texts[i]) for i in order[:n]] + [(texts[i], "") for i in order[n:]]
    train_part, held_out = ("".join(part) for part in zip(*parts))
    check(FIRST_LINE.search(held_out), "the files that are held out define no function to complete")
    return train_part, held_out


def python_text(folder=None):
    """One text. What is held out comes last, and train_val_split cuts where it begins.

    A folder alone is too little: models learn it by heart. So they learn the library first of all, and the folder
    several times, until it is a third of the text. Only files of the folder are held out.
    """
    own = [] if folder is None else texts_of_files(folder)
    train_part, held_out = split_files([text for text in texts_of_files() if text not in own])
    if own:
        mine, held_out = split_files(own)
        check(len(mine) >= LEAST, f"the Python files in {folder} have {len(mine):,} characters to learn from; it takes "
                                  f"{LEAST:,} to make a difference")
        train_part += mine * max(1, min(10, len(train_part) // 2 // len(mine)))
    wanted = min(200_000, len(train_part) // 9)             # so many are cut off; what is less comes again
    return train_part + (held_out * (wanted // len(held_out) + 1))[-wanted:]


def until_it_rises(train_gpt, patience=4):
    """train_gpt, ended when the validation loss has not fallen in so many evaluations."""
    def train_for_a_while(*given):
        losses = []
        for row in train_gpt(*given):
            losses.append(row[2])
            yield row
            if min(losses) < min(losses[-patience:]):
                print(f"gpt     stops here: its validation loss has not fallen for {patience} evaluations")
                return
    return train_for_a_while


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
        with warnings.catch_warnings():                     # of backslashes that Python finds odd
            warnings.simplefilter("ignore")
            statements = ast.parse(code).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):      # the last two: nested deeply
        return code, False
    return code, len(statements) == 1 and isinstance(statements[0], ast.FunctionDef)


def share_of_functions(model, tokenizer, headers):
    """What share of functions does Python accept, when the model completes them greedily from their first lines?"""
    write = generate_cached if isinstance(model, GPT) else generate
    prompts, accepted = [tokenizer.encode("\n" + header) for header in headers], []
    for _, group in groupby(sorted(prompts, key=len), key=len):             # all of one length at once
        show_progress(f"completing functions: {len(accepted)} of {len(headers)}")
        idx = torch.tensor(list(group))                                     # (B, T)
        written = write(model, idx, FUNCTION_TOKENS, temperature=0)
        accepted += [first_function(tokenizer.decode(row)[1:])[1] for row in written.tolist()]
    show_progress()
    return sum(accepted) / len(accepted)


def names_module(line, known):
    """Would this import work, here or beside the files with these names?"""
    found = re.match(r"\s*import (\w+)", line)
    if found is None or found[1] in known or found[1] in sys.stdlib_module_names:
        return found is not None
    with contextlib.suppress(ImportError, ValueError):      # which find_spec may raise
        return importlib.util.find_spec(found[1]) is not None
    return False


def complete_typed(model, tokenizer, typed, accept, temperature):
    """(the first sample that is accepted, how many it took): what somebody types is completed as code.

    accept: text -> (what is kept of it, whether that is right). The model sees the beginning of a line, and no white
    space at the end, as that belongs to the next subword; what follows must begin with it. None, if none is accepted.
    """
    prompt = typed.rstrip()
    for seed in range(ATTEMPTS):
        written = complete(model, tokenizer, "\n" + prompt, 120, seed, temperature=temperature)[1:]
        kept, is_right = accept(written)
        if is_right and kept.startswith(typed.rstrip("\n")):
            return kept, seed + 1
    return None, ATTEMPTS


def check_python(folder, model, bigram, tokenizer, text):
    """How well does the model know Python? It is asked about files and functions that were held out."""
    known = {path.parent.name if path.stem == "__init__" else path.stem for path in python_files(folder)}

    def first_import(text):
        line = text.split("\n")[0]
        return line, names_module(line, known)

    shown = []
    for typed, accept in ("def forward(self, x):", first_function), ("import ", first_import):
        code, attempts = complete_typed(model, tokenizer, typed, accept, TEMPERATURE)
        shown.append(code)
        print(f"\n{typed!r} is completed in this way, the first of {attempts} samples that Python accepts:\n\n{code}"
              if code else f"\n{typed!r}: Python accepts none of {attempts} samples")
    lines = [complete(model, tokenizer, "\nimport", 8, seed, temperature=0.5 if seed else 0) for seed in range(21)]
    greedy, *others = (names_module(line, known) for line in lines)
    val_text = train_val_split(text)[1]
    headers = list(dict.fromkeys(FIRST_LINE.findall(val_text)))
    headers = headers[::max(1, len(headers) // 200)][:200]
    data, n_bytes = encode_text(val_text, tokenizer), len(val_text.encode(errors="replace"))
    bits = [evaluate(m, data) / math.log(2) * len(data) / n_bytes for m in (model, bigram)]
    shares = [share_of_functions(m, tokenizer, headers) for m in (model, bigram)]
    least = LEAST_SHARE if folder is None else LEAST_SHARE_OF_FOLDER
    return [(all(shown), "what is shown above is valid Python"),
            (bits[0] <= bits[1], f"held-out files cost {bits[0]:.3f} bits per byte, {bits[1]:.3f} with the bigram"),
            (greedy and sum(others) >= 10,
             f"what follows import is a module that is there in {sum(others)} of 20 samples at a temperature of 0.5, "
             f"and {'so it is' if greedy else 'not'} in greedy sampling; 10 and that are asked for"),
            (shares[0] >= least,
             f"of {len(headers)} functions from held-out files, given the first line, Python accepts {shares[0]:.1%} "
             f"as the GPT completes them, each once, {shares[1]:.1%} as the bigram does; the GPT needs {least:.0%}")]


# %% The demos

HELLO, COUNT = "hello world\n", "0 1 2 3 4 5 6 7 8 9 "
HUNDRED = string.printable[:94] + "ÄÖÜäöü"          # so many different characters
SMALL = Options(block_size=16, n_layer=2, n_embd=32, max_steps=200, warmup_steps=20, eval_interval=50)


@dataclass
class Demo:
    text: Callable                  # makes it
    config: Options
    check: Callable                 # (model, bigram, tokenizer, text) -> findings
    tokenizer: Callable = lambda text, config: CharTokenizer(text)


DEMOS = {
    "hello": Demo(lambda: 500 * HELLO, SMALL, partial(check_pattern, HELLO)),
    "count": Demo(lambda: 500 * COUNT, replace(SMALL, n_layer=1, n_head=2, n_embd=16, max_steps=300,
                                               learning_rate=1e-2), partial(check_pattern, COUNT)),
    "random": Demo(lambda: "".join(random.Random(1337).choices(HUNDRED, k=100_000)), SMALL, check_architecture),
    "agree": Demo(agree_text, Options(block_size=32, n_layer=2, n_head=2, n_embd=64, max_steps=600, eval_interval=200),
                  check_agreement, words_as_tokens),
    "coder": Demo(python_text, CODER, partial(check_python, None), subwords)}


def show_check(findings):
    """Print findings, and return whether all of them held."""
    print("\nThe check:\n")
    for held, what in findings:
        print(textwrap.fill(f"{'held' if held else 'FAILED'}: {what}", 79, subsequent_indent="    "))
    return all(held for held, _ in findings)


def command(arguments):
    parser = Parser("demos.py", allow_abbrev=False, description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", choices=DEMOS)
    parser.add_argument("--code", type=Path, metavar="FOLDER", help="coder learns from the Python files in it")
    parser.add_argument("--steps", type=int, help="so many steps of training, if not as many as it needs")
    options = parser.parse_args(arguments)
    name, demo = options.demo, DEMOS[options.demo]
    check(options.code is None or name == "coder", f"--code is for coder; {name} has a text of its own")
    if options.code is not None:
        check(options.code.is_dir(), f"there is no folder {options.code}")
        demo = replace(demo, text=partial(python_text, options.code), check=partial(check_python, options.code),
                       config=replace(demo.config, max_steps=STEPS_FOR_FOLDER))
    config = demo.config if options.steps is None else replace(demo.config, max_steps=options.steps)
    text, config = demo.text(), check_options(config)
    tokenizer = demo.tokenizer(text, config)
    text_path = DATA.resolve() / f"{name}-text.txt"         # for `python gpt.py --resume`, and for page.py
    with LongRun(name, text, tokenizer, device=choose_device(), text_path=text_path) as long_run:
        write_whole(text_path, lambda file: file.write(text.encode()))
        bigram, _, _ = run(name, text, config, tokenizer, build_gpt, until_it_rises(long_run))
        model, _ = load_checkpoint(DATA / f"{name}.pt")     # its best parameters; run returns the last
        return 0 if show_check(demo.check(model, bigram, tokenizer, text)) else 1


def main(arguments=None):
    return run_cleanly("demos.py", command, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
