"""ablation.py: its rows say what they change, and are built so."""

import math
from pydoc_data.topics import topics

import pytest
import torch
from conftest import TEXT, main

import ablation
import gpt

GPTS = [name for name, row in ablation.ROWS.items() if row.counted is None]


def test_each_row_changes_one_thing():
    for name in GPTS[1:]:
        row = ablation.ROWS[name]
        there, here = (dict(vars(row), meaning="", against="") for row in (ablation.ROWS[row.against], row))
        changed = {key for key in here if here[key] != there[key]} - {"config"}
        changed |= {key for key in here["config"] if here["config"][key] != there["config"].get(key)}
        assert changed in [{key} for key in changed] + [{"block_size", "batch_size"}, {"n_layer", "mixing"},
                                                       {"subwords", "vocab_size"}], name
    tokens = {name: gpt.Config(**ablation.ROWS[name].config) for name in GPTS}
    assert {config.batch_size * config.block_size for config in tokens.values()} == {768}


def test_the_full_model_is_that_of_gpt():
    row = ablation.ROWS["full model"]
    config = gpt.Config(**row.config)
    assert row == ablation.Row(row.meaning, row.against, row.config) and config == gpt.Config()
    model = ablation.build(row, config)
    torch.manual_seed(config.seed)                                      # as run does
    same = gpt.GPT(config)
    gpt.head_start(same)
    assert all(torch.equal(p, model.state_dict()[name]) for name, p in same.state_dict().items())
    x = torch.randint(65, (2, 64))
    assert torch.equal(model(x)[0], same(x)[0])


@pytest.mark.parametrize("name", GPTS)
def test_a_row_sees_what_it_says_and_nothing_later(name):
    row = ablation.ROWS[name]
    config = gpt.Config(**{**row.config, "n_embd": 32, "vocab_size": 11})
    model, x = ablation.build(row, config), torch.randint(11, (1, 16))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))                       # the first ones have zeros that would hide it
        before = model(x)[0]
        for t, sees in (3, "bigram" not in name), (12, False):
            other = x.clone()
            other[0, t] = (other[0, t] + 1) % 11
            assert torch.equal(model(other)[0][0, 8], before[0, 8]) is not sees
        swapped = x.clone()
        x[0, :2] = torch.tensor([1, 2])
        swapped[0, :2] = torch.tensor([2, 1])
        order = not torch.allclose(model(x)[0][0, 8], model(swapped)[0][0, 8], atol=1e-5)
        assert order is (row.positions and row.config["n_layer"] > 0)


def test_parts_have_about_as_many_parameters_as_what_they_replace():
    count = {name: gpt.count_parameters(ablation.build(ablation.ROWS[name], gpt.Config(**ablation.ROWS[name].config)))
             for name in GPTS}
    assert count["full model"] == 619_904 == count["squared ReLU"] == count["GPT-2's start"]
    assert count["SwiGLU"] == pytest.approx(619_904, rel=0.001)
    assert count["RMSNorm"] == 619_904 - 7 * 128                        # it has no biases
    assert count["wide block"] > count["full model"] > count["sinusoidal"] == count["rotary"]


def test_rows_are_trained_and_compared(in_tmp, monkeypatch):
    (in_tmp / "cats.txt").write_text("".join(topics.values())[:9000], encoding="utf-8")
    names = ["uniform", "frequencies", "bigram", "full model", "subwords"]
    for name in names[2:]:
        row = ablation.ROWS[name]
        monkeypatch.setitem(ablation.ROWS, name, gpt.replace(row, config={**row.config, "n_embd": 32}))
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
        assert float(spread) == 0 if name in names[:2] else float(spread) >= 0
    assert float(rows["uniform"][1]) == pytest.approx(math.log(len(set("".join(topics.values())[:9000]))), abs=1e-3)


@pytest.mark.parametrize("arguments, words", [
    (["--rows", "residual"], "no row residual"), (["--steps", "0"], "--steps"), (["--seeds", "0"], "--seeds"),
    (["--text", "cats.txt", "--rows", "subwords"], "too short for vocab_size=512"), (["bigram"], "bigram")])
def test_a_mistake_is_one_line(in_tmp, arguments, words):
    (in_tmp / "cats.txt").write_text(TEXT)
    code, _, error = main(*arguments, program=ablation.main)
    assert code == 2 and error.startswith("ablation.py: ") and words in error and error.count("\n") == 1
