"""ablation.py: its rows say what they change, and are built so."""

import functools
import math
import re
from pydoc_data.topics import topics

import pytest
import torch
from conftest import TEXT, main

import ablation
import gpt

GPTS = {name: row for name, row in ablation.ROWS.items() if row.kind is gpt.build_gpt}


def make(row, **options):
    torch.manual_seed(1)
    return row.make_gpt(gpt.Options(**{**row.options, **options}))


def test_each_row_changes_one_thing():
    for name, row in GPTS.items():
        if name != "bigram":
            other, options = ablation.ROWS[row.against], [gpt.Options(**GPTS[n].options) for n in (name, row.against)]
            changed = set(row.changes) ^ set(other.changes)
            changed |= {key for key in vars(options[0]) if len({getattr(o, key) for o in options}) == 2}
            assert len(changed) == 1 or changed == {"block_size", "batch_size"}, name
        assert math.prod(getattr(gpt.Options(**row.options), key) for key in ("batch_size", "block_size")) == 768


def test_the_full_model_is_that_of_gpt():
    row = ablation.ROWS["full model"]
    assert (gpt.Options(**row.options), row.changes) == (gpt.Options(), ())


@pytest.mark.parametrize("name", GPTS)
def test_a_row_sees_what_it_says_and_nothing_later(name):
    model, x = make(GPTS[name], n_embd=32, vocab_size=11), torch.randint(11, (1, 16))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        before = model(x)[0]
        for t, sees in (3, "bigram" not in name), (12, False):
            other = x.clone()
            other[0, t] = (other[0, t] + 1) % 11
            assert torch.equal(model(other)[0][0, 8], before[0, 8]) is not sees
        swapped = x.clone()
        x[0, :2], swapped[0, :2] = torch.tensor([1, 2]), torch.tensor([2, 1])
        order = not torch.allclose(model(x)[0][0, 8], model(swapped)[0][0, 8], atol=1e-5)
    assert order is (ablation.no_positions not in GPTS[name].changes)


def test_parts_have_about_as_many_parameters_as_what_they_replace():
    names = "full model", "squared ReLU", "GPT-2's start", "SwiGLU", "RMSNorm", "wide block", "sinusoidal", "rotary"
    count = {name: sum(p.numel() for p in make(GPTS[name]).parameters()) for name in names}
    assert count["full model"] == 619_904 == count["squared ReLU"] == count["GPT-2's start"]
    assert count["SwiGLU"] == pytest.approx(619_904, rel=0.001)
    assert count["RMSNorm"] == 619_904 - 7 * 128                        # it has no biases
    assert count["wide block"] > count["full model"] > count["sinusoidal"] == count["rotary"]


def test_rows_are_trained_and_compared(in_tmp, monkeypatch):
    text = "".join(topics.values())[:9000]
    (in_tmp / "cats.txt").write_text(text, encoding="utf-8")
    names = ["uniform", "frequencies", "bigram", "full model", "subwords"]
    for name in names[2:]:
        row = ablation.ROWS[name]
        monkeypatch.setitem(ablation.ROWS, name, gpt.replace(row, options={**row.options, "n_embd": 32}))
    code, output, error = main("--steps", 2, "--seeds", 2, "--rows", ", ".join(names), "--text", "cats.txt",
                               program=ablation.main)
    assert (code, error) == (0, "") and max(map(len, output.splitlines())) < 81
    rows = {line[:14].strip(): line[14:].split() for line in output.split("  over\n")[1].splitlines() if line[0] != " "}
    assert list(rows) == names
    for name, (parameters, loss, spread, bits, gain, seconds, *over) in rows.items():
        assert float(bits) == pytest.approx(float(loss) / math.log(2), abs=2e-3)
        against = ablation.ROWS[name].against
        assert (gain, over) == ("-", []) if against not in rows else (
            float(gain) == pytest.approx(float(rows[against][1]) - float(loss), abs=2e-3) and " ".join(over) == against)
        assert float(spread) == 0 if name == "uniform" else float(spread) >= 0
    assert float(rows["uniform"][1]) == pytest.approx(math.log(len(set(text))), abs=1e-3)


def test_frequencies_are_those_of_the_text():
    row = ablation.ROWS["frequencies"]
    data, shares = torch.tensor([0, 1, 1, 1] * 100), torch.tensor([0.25, 0.75])
    config = gpt.Options(**{**row.options, "vocab_size": 2, "max_steps": 50, "warmup_steps": 1})
    model, loss = ablation.learn(row, data, data, config)
    assert loss == pytest.approx(-(shares * shares.log()).sum().item(), abs=1e-2)


@pytest.mark.parametrize("arguments, words", [
    (["--rows", "residual"], "no row residual"), (["--steps", "0"], "--steps"), (["--seeds", "0"], "--seeds"),
    (["--text", "cats.txt", "--rows", "subwords"], "too short for vocab_size=512"), (["bigram"], "bigram")])
def test_a_mistake_is_one_line(in_tmp, arguments, words):
    (in_tmp / "cats.txt").write_text(TEXT)
    code, _, error = main(*arguments, program=ablation.main)
    assert code == 2 and error.startswith("ablation.py: ") and words in error and error.count("\n") == 1


def test_three_ways_to_cut_a_text(in_tmp, monkeypatch):
    text = "".join(topics.values())[:30_000]
    monkeypatch.setattr(ablation, "Options", functools.partial(gpt.Options, n_layer=1, n_head=2, n_embd=16))
    (in_tmp / "cats.txt").write_text(text, encoding="utf-8")
    code, output, error = main("--cuts", 1, "--text", "cats.txt", program=ablation.main)
    assert (code, error) == (0, "") and max(map(len, output.splitlines())) < 81
    found = re.findall(r"^(\w+) +([\d,]+) +(\d+) +([\d.]+%) +([\d,]+) +([\d,]+) +([\d.]+)$", output, re.MULTILINE)
    rows = {name: (int(size.replace(",", "")), int(tokens), unknown, float(bits))
            for name, size, tokens, unknown, _, _, bits in found}
    assert list(rows) == ["characters", "subwords", "words"]
    assert rows["characters"][:3] == (len(set(text)), 1000, "0.0%") and rows["subwords"][2] == "0.0%"
    assert rows["characters"][1] > rows["subwords"][1] > rows["words"][1] and float(rows["words"][2][:-1]) > 0
    assert all(0 < bits < 8 for *_, bits in rows.values())


def test_words_that_are_not_common_are_one_token():
    tokenizer = ablation.WordTokenizer("a cat, a cat and a dog", 4)
    assert tokenizer.vocab_size == 4 and tokenizer.decode(tokenizer.encode("a cat, a dog")) == "a cat⍰ a⍰"
    assert tokenizer.unknown("a cat, a dog") == [",", " dog"]
