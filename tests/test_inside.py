"""inside.py and beam.py: what they print is what PyTorch computes."""

import math
import re

import pytest
import torch
from conftest import TEXT, main, noisy_gpt, tiny_config

import beam
import gpt
import inside


def program(module, *arguments):
    return main(*arguments, program=lambda words: gpt.run_cleanly(f"{module.__name__}.py", module.command, words))


def test_the_walk_through_a_model_is_its_forward_pass():
    model, idx = noisy_gpt(tiny_config()), torch.randint(11, (1, 8))
    with torch.no_grad():
        stages, norms, gelus = inside.walk(model, idx)
        logits = model(idx)[0]
    assert len(stages) == 3 + 2 * 2 and len(norms) == 5 and len(gelus) == 2
    assert stages[-1] == ("lm_head: logits", "(1, 8, 11)", pytest.approx(logits.pow(2).mean().sqrt().item()), "")
    x = torch.randn(2, 3, 6)
    assert inside.mean_and_deviation(torch.nn.functional.layer_norm(x, (6,))) == pytest.approx((0, 1), abs=1e-3)


def test_costs_are_those_of_the_matrices():
    config = tiny_config(n_embd=16, block_size=8)
    model = gpt.GPT(config)
    with torch.no_grad():
        rows = {name: row for name, *row in inside.costs(model, torch.randint(11, (2, 8)))}
    matrices = {"attn: qkv": model.blocks[0].attn.qkv, "attn: proj": model.blocks[0].attn.proj,
                "lm_head": model.lm_head}
    for name, layer in matrices.items():
        assert rows[name][:2] == [sum(p.numel() for p in layer.parameters()), layer.weight.numel()]
    assert rows["mlp"][1] == 2 * 4 * 16 * 16 and rows["embed"][0] == (11 + 8) * 16 and rows["attn: attend"][0] == 0


def test_slopes_shrink_where_neither_residuals_nor_layer_norm_stand():
    data, config = torch.arange(100) % 11, tiny_config(n_layer=8)
    kept, bare = (inside.gradients(inside.gpt_of(kind, config), data) for kind in (gpt.Block, inside.BareBlock))
    assert len(kept) == 8 and min(kept) > max(kept) / 10
    assert all(a < b / 3 for a, b in zip(bare, bare[1:]))


def test_a_picture_has_the_points_where_they_belong():
    curves = {"t": [(0, 4.0), (100, 2.0)], "v": [(50, 3.0), (100, 2.0)]}
    lines = inside.picture(curves, 100, height=5, width=11).split("\n")
    assert [line[10:] for line in lines[:5]] == ["t", "", "     v", "", "          *"]
    assert lines[0].startswith("       4 |") and lines[4].startswith("       2 |") and lines[-1].endswith("100")


@pytest.mark.parametrize("which", ["block", "training"])
def test_it_runs_and_fits_a_terminal(in_tmp, which, monkeypatch):
    (in_tmp / "cats.txt").write_text(TEXT)
    monkeypatch.setattr(inside, "learn", lambda *given, learn=inside.learn, **more: learn(
        *given[:2], gpt.replace(given[2], max_steps=10, eval_interval=5, n_embd=16), *given[3:], **more))
    code, output, error = program(inside, which, "--text", "cats.txt")
    assert (code, error) == (0, "") and max(map(len, output.split("\n"))) <= 80
    assert len(re.findall(r"^[A-Z].*\n-+$", output, re.MULTILINE)) == {"block": 3, "training": 4}[which]


def test_a_beam_is_found_as_probable_as_it_is(copy):
    code, output, error = program(beam, "cats", "--prompt", "The ")
    assert (code, error) == (0, "")
    found = {name: float(number) for name, number in re.findall(r"^(\w.*?) +(-\d+\.\d+)  '", output, re.MULTILINE)}
    assert list(found) == ["greedy", "drawn, at 0.8", "drawn, at 1", "beam of 2", "beam of 8", "beam of 32"]
    assert found["beam of 32"] >= found["greedy"] - 0.01 and max(found.values()) == max(
        found[name] for name in found if "beam" in name or name == "greedy")
    (size, loss, _), (small_size, small_loss, _) = [map(float, row) for row in re.findall(
        r"^\d+ bits +([\d.]+) +([\d.]+) +(\d+)$", output, re.MULTILINE)]
    assert small_size < size and loss == pytest.approx(small_loss, abs=0.01)


def test_log_probability_is_that_of_the_new_tokens_alone():
    model = gpt.BigramLanguageModel(3)
    model.table.weight.data = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]]).log()
    assert beam.log_probability(model, torch.tensor([[0, 1, 2, 0]]), 2) == pytest.approx(math.log(0.8 * 0.6))


@pytest.mark.parametrize("module, arguments, words", [
    (beam, ["nowhere"], "there is no run 'nowhere'"), (beam, ["cats", "--prompt", "☃"], "'☃'"),
    (beam, ["cats", "--prompt", "The cat number 12"], "context of 16"), (inside, ["heads"], "heads"),
    (inside, ["--text", "short.txt"], "too short")])
def test_a_mistake_is_one_line(copy, module, arguments, words):
    (copy / "short.txt").write_text("abc" * 50)
    code, output, error = program(module, *arguments)
    assert (code, output, error.count("\n")) == (2, "", 1) and words in error
