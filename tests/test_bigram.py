"""bigram.py: counting, the gradient by hand, and the program."""

import contextlib
import io
import math
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TEXT, chdir, counted_bigram, tiny_config

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
    table = bigram.table_from_counts(bigram.count_pairs(tokens, 4))
    torch.testing.assert_close(F.softmax(table, dim=-1), F.softmax(counted_bigram(tokens, 4).table.weight, dim=-1))
    lowest = bigram.loss_of(table, tokens)
    for _ in range(20):
        assert bigram.loss_of(table + 0.1 * torch.randn(4, 4), tokens) > lowest
    gradient = bigram.gradient_by_hand(table, tokens[None, :-1], tokens[None, 1:])
    assert gradient.abs().max() < 1e-7                              # there, descent comes to rest


def test_smoothing_pretends_to_have_seen_each_pair_more_often():
    counts = torch.tensor([[1, 3], [0, 0]])
    torch.testing.assert_close(F.softmax(bigram.table_from_counts(counts, smoothing=1), dim=-1),
                               torch.tensor([[2 / 6, 4 / 6], [0.5, 0.5]]))


@pytest.mark.parametrize("B, T", [(1, 1), (2048, 1), (3, 7)])
def test_the_gradient_by_hand_is_that_of_autograd(B, T):
    torch.manual_seed(0)
    model, (idx, targets) = gpt.BigramLanguageModel(6), torch.randint(5, (2, B, T))
    torch.nn.init.normal_(model.table.weight)
    model(idx, targets)[1].backward()
    by_hand = bigram.gradient_by_hand(model.table.weight.detach(), idx, targets)
    torch.testing.assert_close(by_hand, model.table.weight.grad, atol=1e-7, rtol=1e-5)
    assert not by_hand[5].any()                                     # this token is not in the batch


def test_the_gradient_of_a_row_in_numbers():
    """Token 0 stands twice among 4, and 1 and 2 come after it; all logits are 0, so p = 1/3."""
    idx, targets = torch.tensor([[0, 1, 0, 2]]), torch.tensor([[1, 1, 2, 0]])
    row = bigram.gradient_by_hand(torch.zeros(3, 3), idx, targets)[0]
    expected = torch.tensor([1 / 3 - 0, 1 / 3 - 1 / 2, 1 / 3 - 1 / 2]) * 2 / 4
    torch.testing.assert_close(row, expected)


def test_training_by_hand_comes_to_the_table_of_train():
    """V = 67: if p were exactly a share of the first batch, AdamW would enlarge mere rounding."""
    torch.manual_seed(0)
    data = torch.randint(5, (400, 1)).repeat(1, 2).flatten()
    config = tiny_config(vocab_size=67, block_size=1, batch_size=64, max_steps=60, eval_interval=60,
                         learning_rate=0.2, warmup_steps=0, weight_decay=0.0)
    model = gpt.BigramLanguageModel(67)
    *_, state = gpt.train(model, data, data, config)
    by_hand = bigram.train_by_hand(data, config)
    torch.testing.assert_close(F.softmax(by_hand, dim=-1), F.softmax(model.table.weight.detach(), dim=-1),
                               atol=1e-4, rtol=1e-3)
    assert bigram.loss_of(by_hand, data) == pytest.approx(state.val_loss, abs=1e-6)
    assert state.val_loss < math.log(5) + 0.05


# The program


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The outputs of gpt.run and of bigram.py on one text, and the folders that they left."""
    def run(name, program):
        folder = tmp_path_factory.mktemp(name)
        (folder / "cats.txt").write_text(TEXT, encoding="utf-8")
        out = io.StringIO()
        with chdir(folder), contextlib.redirect_stdout(out):
            program()
        return out.getvalue(), folder / "data"

    command = lambda: bigram.command(["--text", "cats.txt"])
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(gpt.BIGRAM_TRAINING, "max_steps", 100)
    small = dict(block_size=8, n_layer=1, n_head=1, n_embd=8, max_steps=2, eval_interval=2)
    yield run("gpt", lambda: gpt.run("cats", TEXT, gpt.Config(**small))), run("bigram", command)
    monkeypatch.undo()


def test_its_first_chapters_and_its_lines_are_those_of_gpt(runs):
    (theirs, their_data), (ours, our_data) = runs
    start = theirs.index("4. Bigram")
    assert ours[:start] == theirs[:start]
    lines = (our_data / "cats-bigram.txt").read_bytes()
    assert lines == (their_data / "cats-bigram.txt").read_bytes()
    assert [path.name for path in our_data.iterdir()] == ["cats-bigram.txt"]
    assert "\n".join(lines.decode().splitlines()) in ours


def table(output):
    """The rows of the last table, as {model: columns}."""
    rows = output[output.rindex("\nmodel  "):].split("\n\n")[0].strip().split("\n")[1:]
    return {re.split("  +", row)[0]: re.split("  +", row)[1:] for row in rows}


def test_its_table_is_true_and_has_the_row_of_gpt(runs):
    (theirs, _), (ours, _) = runs
    rows, V = table(ours), len(set(TEXT))
    assert list(rows) == ["uniform", "bigram, counted", "bigram, by hand", "bigram"]
    assert rows["bigram"][:4] == table(theirs)["bigram"][:4]
    assert float(rows["bigram, by hand"][1]) == pytest.approx(float(rows["bigram"][1]), abs=2e-4)
    assert [row[0] for row in rows.values()] == ["0", *3 * [f"{V * V:,}"]]
    for loss, bits, perplexity in (map(float, row[1:4]) for row in rows.values()):
        assert bits == pytest.approx(loss / math.log(2), abs=1e-3)
        assert perplexity == pytest.approx(math.exp(loss), abs=0.01)
    assert float(rows["uniform"][1]) == pytest.approx(math.log(V), abs=1e-4)
    tokenizer = gpt.build_char_tokenizer(TEXT)
    train_data, val_data = (torch.tensor(tokenizer.encode(part)) for part in gpt.split(TEXT))
    counts = bigram.count_pairs(train_data, V) + 1
    loss = -(counts / counts.sum(dim=1, keepdim=True)).log()[val_data[:-1], val_data[1:]].mean()
    assert float(rows["bigram, counted"][1]) == pytest.approx(loss.item(), abs=1e-4)


def test_it_shows_the_gradient_in_numbers(runs):
    ours = runs[1][0]
    assert max(map(len, ours.splitlines())) < 80
    assert "one-hot vectors: True" in ours
    n, N = map(int, re.search(r"x (\d+)/(\d+)", ours).groups())
    rows = re.findall(r"^    '.+?' +([\d.-]+) +([\d.-]+) +([\d.-]+) +([\d.-]+) +([\d.-]+)$", ours, re.MULTILINE)
    assert N == 2048 and len(rows) == 5
    for p, came, difference, by_hand, by_autograd in (map(float, row) for row in rows):
        assert difference == pytest.approx(p - came, abs=2e-4)
        assert by_hand == by_autograd == pytest.approx(difference * n / N, abs=1e-4)
    of_gradients, of_probabilities = re.findall(r"at most (\d\S*)\.", " ".join(ours.split()))
    assert float(of_gradients) < 1e-6 and float(of_probabilities) < 1e-4
    assert "'T'      'h'       100.0%" in ours and "'q'" not in ours    # after T comes h in TEXT, always


def test_it_writes_over_no_other_file(in_tmp, capsys, monkeypatch):
    monkeypatch.setitem(bigram.BIGRAM_TRAINING, "max_steps", 5)
    (in_tmp / "cats.txt").write_text(TEXT, encoding="utf-8")
    run = lambda: bigram.command(["--text", "cats.txt"])
    run()
    path = in_tmp / "data" / "cats-bigram.txt"
    lines = path.read_text()
    run()                                                           # the same again
    assert [path.name for path in path.parent.iterdir()] == ["cats-bigram.txt"]
    for i, mine in enumerate(("mine", "mine, too"), start=1):
        path.write_text(mine)
        run()
        assert path.read_text() == lines and f"cats-bigram-{i}.txt" in capsys.readouterr().out
        assert (path.parent / f"cats-bigram-{i}.txt").read_text() == mine


@pytest.mark.parametrize("arguments, says", [
    (["--text", "nowhere.txt"], "nowhere.txt"), (["--text", "short.txt"], "too few"), (["cats"], "cats"),
    (["--text", "empty.txt"], "empty"), (["--tex", "short.txt"], "--tex"),
    (["--text", "many.txt"], "2049 different characters; a table has 2048 at most")])
def test_mistakes_get_one_line(in_tmp, capsys, arguments, says):
    (in_tmp / "short.txt").write_text("ab", encoding="utf-8")
    (in_tmp / "empty.txt").write_text("", encoding="utf-8")
    (in_tmp / "many.txt").write_text("".join(map(chr, range(0x4e00, 0x4e00 + 2049))), encoding="utf-8")
    code = gpt.run_cleanly("bigram.py", bigram.command, arguments)
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("bigram.py: ") and error.count("\n") == 1 and says in error


def test_it_is_short():
    source = (ROOT / "bigram.py").read_text(encoding="utf-8")
    assert source.count("\n") <= 190 and max(map(len, source.splitlines())) <= 100
