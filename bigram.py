"""bigram.py: what can be known about a text by looking at one character at a time.

The baseline of gpt.py, by itself. A bigram model is a table: a row for each character, and in the
row, for each character, the probability that it comes next. There are two ways to make it. One is
to count which character follows which, and to be done. The other begins with a table that knows
nothing and lets gradient descent improve it, batch by batch, just as gpt.py trains its GPT. For a
table this is a detour; for a GPT, where nothing can be counted, it is the only way. Both should
arrive at the same table, and here one can see how nearly they do.

    python bigram.py                    takes a few seconds
    python bigram.py --text my.txt      the same with your own text

The lines have the form of those of `python gpt.py`, and data/NAME-bigram.txt is the same file.
"""

import sys
from dataclasses import replace
from pathlib import Path

from gpt import (DATA, Config, Parser, bigram_from_counts, build_char_tokenizer, check_length,
                 count_parameters, evaluate, first_prompt, heading, load_text, print_results,
                 run_cleanly, split, train_bigram, write_sample)

import torch                        # after gpt, which silences a remark of torch about NumPy
import torch.nn.functional as F


def table_of(model):
    """The probabilities in a BigramLanguageModel, (V, V): row i for what follows token i."""
    return F.softmax(model.table.weight.detach(), dim=-1)


def surest_guesses(table, counts, least):
    """For each token with a count of at least `least`, what most likely follows; the surest first.

    table (V, V) of probabilities, counts (V,) -> list of (token, follower, probability).

    >>> table = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    >>> surest_guesses(table, torch.tensor([10, 10, 1]), least=5)
    [(0, 1, 0.75), (1, 0, 0.5)]
    """
    highest, followers = table.max(dim=-1)                          # (V, V) -> two of (V,)
    guesses = zip(range(len(table)), followers.tolist(), highest.tolist())
    often = [guess for guess in guesses if counts[guess[0]] >= least]
    return sorted(often, key=lambda guess: -guess[2])


def run(name, text, often=1000):
    """Count, train and compare. Characters that occur `often` are those that are compared."""
    tokenizer = build_char_tokenizer(text)
    train_data, val_data = split(torch.tensor(tokenizer.encode(text)))      # (N,) -> two of (N,)
    check_length(train_data, val_data, Config())
    config = replace(Config(), vocab_size=tokenizer.vocab_size)
    heading("1. Text")
    print(f"{name}: {len(text):,} characters, {tokenizer.vocab_size} of them different.")
    print(f"{len(train_data):,} tokens to train on, {len(val_data):,} to validate with.")

    heading("2. Counting")
    counted = bigram_from_counts(train_data, config.vocab_size)
    print(f"on the training split {evaluate(counted, train_data):.4f}, and no bigram can do better")
    # A pair that never occurred has the probability 0 now, and if it occurs in the validation split
    # the loss there is infinite. So there, we pretend to have seen each pair once more than we did.
    smoothed = bigram_from_counts(train_data, config.vocab_size, smoothing=1)

    heading("3. Gradient descent")
    trained, seconds = train_bigram(train_data, val_data, config)
    print(f"on the training split {evaluate(trained, train_data):.4f}")

    heading("4. The two tables")
    counts = torch.bincount(train_data, minlength=config.vocab_size)    # (V,)
    by_counting, by_training = table_of(counted), table_of(trained)     # (V, V) each
    frequent = counts >= often
    if frequent.any():
        difference = (by_counting - by_training)[frequent].abs()    # (V, V) -> (frequent, V)
        print(f"For the {frequent.sum()} characters that occur {often:,} times or more, the "
              f"probabilities\nof the two tables differ by at most {difference.max():.4f}.")
    print("The surest guesses, of all characters that occur 100 times or more:\n")
    print("    after    comes    counted    trained")
    for token, follower, probability in surest_guesses(by_counting, counts, least=100)[:10]:
        print(f"    {tokenizer.decode([token])!r:<8} {tokenizer.decode([follower])!r:<8} "
              f"{probability:>7.1%}    {by_training[token, follower]:>7.1%}")

    heading("5. Writing")
    print(write_sample(trained, tokenizer, first_prompt(tokenizer), config.seed, DATA / f"{name}-bigram.txt"))

    heading("6. The run")
    print_results([
        ("uniform", 0, torch.tensor(config.vocab_size).log().item(), None),
        ("bigram, counted", count_parameters(smoothed), evaluate(smoothed, val_data), None),
        ("bigram", count_parameters(trained), evaluate(trained, val_data), seconds),
    ])
    print(f"\nSaved: {DATA / f'{name}-bigram.txt'}")


def command(arguments):
    parser = Parser("bigram.py", allow_abbrev=False, description="Make a bigram model in two ways.")
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn from this UTF-8 text")
    run(*load_text(parser.parse_args(arguments).text))


if __name__ == "__main__":
    sys.exit(run_cleanly("bigram.py", command, sys.argv[1:]))
