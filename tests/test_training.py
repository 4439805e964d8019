"""Chapter 8 and long runs: evaluation, the optimizer, the schedule, training, and going on with it."""

import functools
import math
import re
import shutil
from pydoc_data.topics import topics

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_tensors, counted_bigram, noisy_gpt, tiny_config

import gpt

POSITIONS = ("learned", "sinusoidal", "rotary")
LETTERS = gpt.CharTokenizer("abcdefghijk")


def random_tokens(length, seed=0):
    return torch.randint(11, (length,), generator=torch.Generator().manual_seed(seed))


# Evaluation


@pytest.mark.parametrize("length, predicted", [(9, 8), (16, 8), (17, 16), (60, 56), (65, 64)])
def test_evaluation_predicts_each_token_of_the_whole_windows_once(length, predicted):
    model, data, total = noisy_gpt(tiny_config()), random_tokens(length), 0.0
    for position in range(1, predicted + 1):
        logits, _ = model(data[None, (position - 1) // 8 * 8:position])
        total -= logits[0, -1].double().log_softmax(-1)[data[position]].item()
    assert gpt.evaluate(model, data.int()) == pytest.approx(total / predicted, abs=1e-5)


def test_evaluation_of_many_windows_is_that_of_one_long_text():
    tokens = torch.randint(5, (5000,))
    model = counted_bigram(tokens, 5)
    _, loss = model(tokens[None, :-1], tokens[None, 1:])
    assert gpt.evaluate(model, tokens) == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_drops_nothing_and_restores_the_mode_also_after_an_exception(training):
    model, data = noisy_gpt(tiny_config(dropout=0.3)), random_tokens(500)
    loss = gpt.evaluate(model, data)
    model.train(training)
    assert gpt.evaluate(model, data) == loss

    def fail(module, inputs):
        assert not model.training and not torch.is_grad_enabled()
        raise MemoryError

    model.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        gpt.evaluate(model, data)
    assert {module.training for module in model.modules()} == {training} and torch.is_grad_enabled()


def test_too_little_to_evaluate_with_is_named():
    with pytest.raises(ValueError, match="block_size=8 .* 8 tokens"):
        gpt.evaluate(gpt.GPT(tiny_config()), random_tokens(8))


# A step


@pytest.mark.parametrize("warmup_steps", [0, 1, 100, 3000])
def test_the_learning_rate_rises_reaches_its_peak_once_and_ends_at_zero(warmup_steps):
    config = gpt.Config(warmup_steps=warmup_steps)
    rates = [gpt.learning_rate_at(step, config) for step in range(config.max_steps)]
    peak, peaks = rates.index(config.learning_rate), rates.count(config.learning_rate)
    assert max(rates) == config.learning_rate and peak == max(0, warmup_steps - 1) and peaks <= 2
    for rising, falling in ((rates[:peak + 1], rates[peak + peaks - 1:]),):
        assert rising == sorted(set(rising)) and falling == sorted(set(falling), reverse=True)
    assert gpt.learning_rate_at(3000, config) == 0 < rates[0]
    assert warmup_steps == 3000 or rates[-1] < config.learning_rate / 1000


def test_only_matrices_and_tables_decay_and_no_parameter_is_left_out():
    model = gpt.GPT(tiny_config())
    decaying, fixed = gpt.build_optimizer(model, tiny_config(weight_decay=0.3)).param_groups
    assert (decaying["weight_decay"], fixed["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decaying["params"]} == {2} and {p.dim() for p in fixed["params"]} == {1}
    assert {*map(id, decaying["params"] + fixed["params"])} == {*map(id, model.parameters())}


def test_a_step_is_adamw_on_the_clipped_gradient_of_one_batch():
    config = tiny_config(grad_clip=0.5, weight_decay=0.3, eval_interval=1)
    data, model, by_hand = random_tokens(200), noisy_gpt(config), noisy_gpt(config)
    kept = {name: (0, 0, True) for name, _ in by_hand.named_parameters()}  # m, v, and where no slope is mere rounding
    for step, (_, train_loss, _) in zip(range(3), gpt.train(model, data, data[:20], config)):
        _, loss = by_hand(*gpt.get_batch(data, step, config))
        gradients = torch.autograd.grad(loss, [*by_hand.parameters()])
        length = math.sqrt(sum(g.square().sum().item() for g in gradients))
        assert length > 0.5                                                 # so that clipping shows
        rate = gpt.learning_rate_at(step, config)
        for (name, p), g in zip(by_hand.named_parameters(), gradients):
            g = g * 0.5 / length
            m, v, known = kept[name]
            known = known & ((g == 0) | (g.abs() > 1e-4))
            m, v, _ = kept[name] = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2, known
            if p.dim() == 2:
                p.data -= rate * 0.3 * p
            scale = (v / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8
            p.data -= rate * m / (1 - 0.9 ** (step + 1)) / scale
            torch.testing.assert_close(model.state_dict()[name][known], p.data[known], atol=2e-5, rtol=0)
        assert train_loss == pytest.approx(loss.item(), abs=1e-5)


# Training


@pytest.mark.parametrize("position", POSITIONS)
def test_a_gpt_learns_what_a_bigram_cannot(position):
    """In 'aabb' repeated, a is followed by a or b, equally often; two letters tell what follows."""
    data = torch.tensor([0, 0, 1, 1]).repeat(200)
    config = tiny_config(max_steps=100, eval_interval=100, vocab_size=2, n_layer=1, position=position)
    torch.manual_seed(0)
    model = gpt.build_gpt(config)
    before = {name: p.clone() for name, p in model.named_parameters()}
    list(gpt.train(model, data, data[:200], config))
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []     # each one learns
    assert gpt.evaluate(counted_bigram(data, 2), data) == pytest.approx(math.log(2), abs=0.01)
    for start in range(4):
        logits, _ = model(data[None, start:start + 8])
        assert F.cross_entropy(logits[0, 2:], data[start + 3:start + 9]) < 0.2


def test_the_bigram_of_the_run_comes_close_to_counting():
    text = re.sub("[^a-z]+", " ", "".join(topics.values()).lower())[:120_000]
    tokenizer = gpt.CharTokenizer(text)
    data, bigram = gpt.encode_text(text, tokenizer), gpt.BigramLanguageModel(tokenizer.vocab_size)
    list(gpt.train(bigram, data, data, gpt.bigram_config(gpt.Config())))
    best = gpt.evaluate(counted_bigram(data, tokenizer.vocab_size), data)
    assert 0 <= gpt.evaluate(bigram, data) - best < 0.01


def test_train_tells_its_losses_after_each_evaluation():
    config, data, losses = tiny_config(max_steps=7, eval_interval=3, dropout=0.2), random_tokens(500), []
    model, fresh = noisy_gpt(config), noisy_gpt(config)
    optimizer, told = gpt.build_optimizer(fresh, config), []
    for step in range(7):
        losses.append(gpt.training_step(fresh, optimizer, data, step, config))
        if step in (2, 5, 6):
            told.append((step + 1, pytest.approx(sum(losses) / len(losses)), gpt.evaluate(fresh, data[:50])))
            losses = []
    assert list(gpt.train(model, data, data[:50], config)) == told


def test_each_step_and_each_seed_reads_and_drops_others_and_dropout_changes_no_batch():
    data, batches, masks = random_tokens(500), [], []
    for dropout, seed in ((0.5, 0), (0.5, 1), (0.1, 0)):
        config = tiny_config(dropout=dropout, seed=seed, eval_interval=2)
        model = gpt.GPT(config).eval()
        model.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0]))
        model.dropout.register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
        for _ in gpt.train(model, data, data[:9], config):
            del batches[-1], masks[-1]                      # the batch of the evaluation
    assert len(batches) == len(masks) == 18                 # on again after each evaluation
    for i in range(12):
        assert torch.equal(batches[i], gpt.get_batch(data, i % 6, tiny_config(seed=i // 6))[0])
        assert 0.3 < masks[i].float().mean() < 0.7 and masks[12:][i // 2].float().mean() < 0.25
        assert not any(torch.equal(masks[i], other) for other in masks[:i])
    assert all(map(torch.equal, batches[:6], batches[12:]))


# Long runs


class Stopped(Exception):
    pass


class StoppingRun(gpt.LongRun):
    """Saves before the step `stop`, and ends there."""

    stop = None

    def training_step(self, trained, optimizer, train_data, options):
        if self.step == self.stop:
            self.save(trained, optimizer)
            raise Stopped
        return super().training_step(trained, optimizer, train_data, options)


def train_long(config, data, stops=()):
    """Train a new model, stopped and resumed before each of the steps `stops`: (model, what was yielded)."""
    torch.manual_seed(5)
    model, saved, told = gpt.build_gpt(config), None, []
    for stop in (*stops, None):
        with StoppingRun("run", "a text", LETTERS, saved) as long_run:
            long_run.stop = stop
            try:
                for row in long_run(model, data, data[:100], config):
                    told.append(row)
            except Stopped:
                saved = gpt.read_checkpoint(gpt.DATA / "run.pt")
                torch.manual_seed(99)                       # what is random outside must not matter,
                model = noisy_gpt(config)                   # nor what the model was
    return model, told


def kept():
    """All tensors of the last checkpoint, by name, and its history."""
    saved = torch.load(gpt.DATA / "run.pt", weights_only=True)
    progress = saved["progress"]
    groups = {"last": saved["parameters"], "best": progress["best"], **progress["optimizer"]}
    return {f"{group} {name}": x for group in groups for name, x in groups[group].items()}, progress["history"]


@pytest.mark.parametrize("stops, changes", [
    ((0, 1), {}), ((2, 3, 4), {"position": "sinusoidal"}), ((2, 6), {"position": "rotary", "head_start": True}),
    ((1, 5), {"dtype": "bfloat16", "position": "rotary"})])
def test_a_long_run_is_train_however_often_it_is_stopped(stops, changes, in_tmp):
    """With dropout, and to the last bit."""
    config, data = tiny_config(dropout=0.2, max_steps=7, eval_interval=3, n_layer=1, **changes), random_tokens(500)
    whole, told = train_long(config, data)
    tensors, history = kept()
    assert len(history) == 3 and len(tensors) == 5 * len(whole.state_dict())    # last, best, m, v, how many steps
    model, told_in_parts = train_long(config, data, stops)
    assert told_in_parts == told and kept()[1] == history
    assert_same_tensors(kept()[0], tensors)
    assert_same_tensors(model.state_dict(), whole.state_dict())
    torch.manual_seed(5)
    plain = gpt.build_gpt(config)
    told_plainly = list(gpt.train(plain, data, data[:100], config))
    if config.dtype == "float32":
        assert told == told_plainly
        assert_same_tensors(plain.state_dict(), model.state_dict())
    else:                                                   # 16 bits: nearly the same
        assert told != told_plainly and sum(told, ()) == pytest.approx(sum(told_plainly, ()), abs=0.02)


def test_the_best_parameters_are_kept_and_the_last_ones_come_back(in_tmp):
    config, fresh = tiny_config(max_steps=60, eval_interval=10, learning_rate=0.03), random_tokens(400, seed=1)
    torch.manual_seed(0)
    model = gpt.GPT(config)
    with gpt.LongRun("run", "a text", LETTERS) as long_run:
        losses = [val_loss for _, _, val_loss in long_run(model, random_tokens(40), fresh, config)]
    assert losses[-1] > min(losses) and gpt.evaluate(model, fresh) == losses[-1]        # noise: it overfits
    assert gpt.evaluate(gpt.load_checkpoint("data/run.pt")[0], fresh) == min(losses)


def test_a_compiled_model_is_trained_and_saved_under_the_names_of_the_uncompiled(in_tmp, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(
        torch.nn.Module.compile, backend="eager"))           # traced only: real code takes a minute
    config, data = tiny_config(n_layer=1, max_steps=2, eval_interval=2), random_tokens(100)
    model, plain = noisy_gpt(config), noisy_gpt(config)
    with gpt.LongRun("run", "a text", LETTERS, compile=True) as long_run:
        told, = long_run(model, data, data[:30], config)
    assert told == pytest.approx(next(gpt.train(plain, data, data[:30], config)), abs=1e-4)
    loaded, _ = gpt.load_checkpoint("data/run.pt")
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    gpt.save_checkpoint("compiled.pt", torch.compile(model), LETTERS)
    assert_same_tensors(gpt.load_checkpoint("compiled.pt")[0].state_dict(), model.state_dict())


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no compiler for torch.compile")
def test_a_model_compiled_to_real_code_computes_the_same():
    model, idx = noisy_gpt(tiny_config(n_layer=1)), torch.randint(11, (2, 8))
    with torch.no_grad():
        expected = model(idx)[0]
        model.compile()
        torch.testing.assert_close(model(idx)[0], expected, atol=1e-4, rtol=1e-4)
