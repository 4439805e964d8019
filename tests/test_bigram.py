"""bigram.py: counting, the gradient by hand, and the program."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXT, chdir, counted_bigram, files, main, tiny_config

import bigram
import gpt


def test_pairs_are_counted_one_by_one():
    torch.manual_seed(0)
    tokens, counts = torch.randint(5, (300,)), torch.zeros(6, 6, dtype=torch.int64)
    for i, j in zip(tokens.tolist(), tokens[1:].tolist()):
        counts[i, j] += 1
    assert torch.equal(bigram.count_pairs(tokens, 6), counts)       # token 5 never occurs


def test_the_counted_table_has_the_shares_and_the_lowest_loss():
    torch.manual_seed(0)
    tokens = torch.randint(4, (500,))
    counts = bigram.count_pairs(tokens, 4)
    table, model = bigram.table_from_counts(counts), counted_bigram(tokens, 4)
    torch.testing.assert_close(F.softmax(table, dim=-1), F.softmax(model.table.weight, dim=-1))
    lowest = bigram.loss_of(table, counts)
    assert lowest.item() == pytest.approx(gpt.evaluate(model, tokens), abs=1e-6)
    for _ in range(20):
        assert bigram.loss_of(table + 0.1 * torch.randn(4, 4), counts) > lowest
    gradient = bigram.gradient_by_hand(table, tokens[None, :-1], tokens[None, 1:])
    assert gradient.abs().max() < 1e-7                              # there, descent comes to rest


@pytest.mark.parametrize("B, T", [(1, 1), (2048, 1), (3, 7)])
def test_the_gradient_by_hand_is_that_of_autograd(B, T):
    torch.manual_seed(0)
    model, (idx, targets) = gpt.BigramLanguageModel(6), torch.randint(5, (2, B, T))
    torch.nn.init.normal_(model.table.weight)
    model(idx, targets)[1].backward()
    by_hand = bigram.gradient_by_hand(model.table.weight.detach(), idx, targets)
    torch.testing.assert_close(by_hand, model.table.weight.grad, atol=1e-7, rtol=1e-5)
    assert not by_hand[5].any()                                     # this token is not in the batch


def test_training_by_hand_comes_to_the_table_of_train():
    """V = 67: if p were exactly a share of the first batch, AdamW would enlarge mere rounding."""
    torch.manual_seed(0)
    data = torch.randint(5, (400, 1)).repeat(1, 2).flatten()
    config = tiny_config(vocab_size=67, block_size=1, batch_size=64, max_steps=60, eval_interval=60,
                         learning_rate=0.2, warmup_steps=0, weight_decay=0.0)
    model = gpt.BigramLanguageModel(67)
    *_, (step, train_loss, val_loss) = gpt.train(model, data, data, config)
    by_hand, table = bigram.train_by_hand(data, config), model.table.weight.detach()
    torch.testing.assert_close(F.softmax(by_hand, dim=-1), F.softmax(table, dim=-1), atol=1e-4, rtol=1e-3)
    assert val_loss < math.log(5) + 0.05


# The program


def run(*arguments):
    """bigram.py with these arguments -> (exit code, stdout, stderr)."""
    return main(*arguments, program=lambda words: gpt.run_cleanly("bigram.py", bigram.command, words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where bigram.py has worked on a text."""
    folder = tmp_path_factory.mktemp("bigram")
    (folder / "cats.txt").write_text(TEXT, encoding="utf-8")
    with chdir(folder):
        code, out, error = run("--text", "cats.txt")
    assert (code, error) == (0, "")
    (folder / "output").write_text(out, encoding="utf-8")
    return folder


def test_it_writes_the_lines_that_gpt_writes_to_the_byte(folder, in_tmp):
    gpt.run("cats", TEXT, gpt.Config(n_layer=1, n_head=1, n_embd=8), train_gpt=lambda *_: [])
    lines = (folder / "data" / "cats-bigram.txt").read_bytes()
    assert lines == (in_tmp / "data" / "cats-bigram.txt").read_bytes()
    assert files(folder) == ["cats-bigram.txt"]
    assert lines.decode() in (folder / "output").read_text(encoding="utf-8")


def test_what_it_prints_is_true(folder):
    out, V = (folder / "output").read_text(encoding="utf-8"), len(set(TEXT))
    assert max(map(len, out.splitlines())) < 80
    train_text, val_text = gpt.train_val_split(TEXT)
    pairs = re.findall(r"^    '(.)' +(\d+)    '(.)' +(\d+) +([\d.]+)$", out, re.MULTILINE)
    assert len(pairs) == 6 and pairs[0][4] == "1.0000"
    for after, times, comes, often, probability in pairs:
        assert (int(times), int(often)) == (train_text[:-1].count(after), train_text.count(after + comes))
        assert int(times) >= 100 and float(probability) == pytest.approx(int(often) / int(times), abs=1e-4)

    n, N = map(int, re.search(r"x (\d+)/(\d+)", out).groups())
    rows = re.findall(r"^    '.+?' +([\d.-]+) +([\d.-]+) +([\d.-]+) +([\d.-]+) +([\d.-]+)$", out, re.MULTILINE)
    assert N == 2048 and len(rows) == 5
    for p, came, difference, by_hand, by_autograd in (map(float, row) for row in rows):
        assert difference == pytest.approx(p - came, abs=2e-4)
        assert by_hand == by_autograd == pytest.approx(difference * n / N, abs=1e-4)

    rows = re.findall(r"^    (\w.*?)  +(\S+) +(\S+) +(\S+)$", out[out.index("    table  "):], re.MULTILINE)[1:]
    losses = {row[0]: [float(number) for number in row[1:]] for row in rows}
    assert list(losses) == ["uniform", "counted", "counted, plus 1", "trained by hand", "gpt.train"]
    assert losses["uniform"] == pytest.approx([math.log(V), math.log(V), V], abs=1e-4)
    assert losses["trained by hand"] == pytest.approx(losses["gpt.train"], abs=1e-3)
    assert min(loss for loss, _, _ in losses.values()) == losses["counted"][0]
    for train_loss, val_loss, perplexity in losses.values():
        assert perplexity == pytest.approx(math.exp(val_loss), abs=0.01)


def test_it_writes_over_no_other_file(in_tmp):
    path = gpt.DATA / "cats-bigram.txt"
    bigram.keep(path, "lines\n")
    bigram.keep(path, "lines\n")                                    # the same again
    assert files(in_tmp) == ["cats-bigram.txt"]
    for i, mine in enumerate(("mine", "mine, too"), start=1):
        path.write_text(mine)
        bigram.keep(path, "lines\n")
        assert path.read_text() == "lines\n"
        assert (gpt.DATA / f"cats-bigram-{i}.txt").read_text() == mine


@pytest.mark.parametrize("arguments", [
    ["--text", "nowhere.txt"], ["--text", "short.txt"], ["--text", "many.txt"], ["--tex", "short.txt"]])
def test_mistakes_get_one_line(in_tmp, arguments):
    (in_tmp / "short.txt").write_text("ab", encoding="utf-8")
    characters = map(chr, range(0x4e00, 0x4e00 + gpt.LARGEST_VOCABULARY + 1))
    (in_tmp / "many.txt").write_text("".join(characters), encoding="utf-8")
    code, out, error = run(*arguments)
    assert (code, out) == (2, "") and error.startswith("bigram.py: ") and error.count("\n") == 1
