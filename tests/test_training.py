"""Chapter 7: evaluation, the optimizer, the schedule, training, and going on with it."""

import math

import pytest
import torch
from conftest import TEXT, noisy_gpt, tiny_config

import gpt


def per_token_loss(model, data, T):
    """The loss over all of data, one token at a time and without batches."""
    total = 0.0
    for place in range(1, len(data)):
        start = (place - 1) // T * T
        logits, _ = model(data[None, start:place])
        total -= logits[0, -1].double().log_softmax(-1)[data[place]].item()
    return total / (len(data) - 1)


@pytest.mark.parametrize("length", [2, 8, 9, 10, 60, 65])
def test_evaluation_predicts_every_token_once(length):
    model, data = noisy_gpt(tiny_config()), torch.randint(11, (length,))
    with torch.no_grad():
        assert gpt.evaluate(model, data) == pytest.approx(per_token_loss(model, data, 8), abs=1e-5)


def test_evaluation_is_the_same_each_time_and_leaves_the_mode():
    model, data = noisy_gpt(tiny_config(dropout=0.3)).train(), torch.randint(11, (5000,))
    assert gpt.evaluate(model, data) == gpt.evaluate(model, data)
    assert model.training and not gpt.evaluate(model, data) == 0
    model.eval()
    gpt.evaluate(model, data)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_bigram_is_evaluated_as_if_on_one_long_text():
    tokens = torch.randint(5, (3000,))
    model = gpt.bigram_from_counts(tokens, 5)
    _, loss = model(tokens[None, :-1], tokens[None, 1:])
    assert gpt.evaluate(model, tokens) == pytest.approx(loss.item(), abs=1e-5)


def test_only_matrices_decay_and_frozen_weights_are_left_alone():
    model = gpt.GPT(tiny_config(position="sinusoidal"))
    decaying, fixed = gpt.build_optimizer(model, tiny_config(weight_decay=0.3)).param_groups
    assert (decaying["weight_decay"], fixed["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decaying["params"]} == {2} and {p.dim() for p in fixed["params"]} == {1}
    together = {id(p) for p in decaying["params"] + fixed["params"]}
    assert together == {id(p) for p in model.parameters() if p is not model.position_embedding.weight}


def test_learning_rate_warms_up_and_ends_near_zero():
    config = gpt.Config()
    rates = [gpt.learning_rate_at(step, config) for step in range(config.max_steps)]
    peak = rates.index(max(rates))
    assert 0.9 * config.learning_rate < max(rates) <= config.learning_rate
    assert abs(peak - config.warmup_steps) <= config.warmup_steps * 0.1
    assert rates[:peak + 1] == sorted(rates[:peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[0] < config.learning_rate / 50 and 0 < rates[-1] < config.learning_rate / 1000


def test_every_weight_learns():
    config = tiny_config(position="learned", bias=True)
    model, data = gpt.GPT(config), torch.randint(11, (500,))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    gpt.train(model, data, data[:50], config)
    still = [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])]
    assert still == []


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_a_gpt_learns_what_a_bigram_cannot(position):
    """In 'aabb' repeated, an a is followed by a or b with equal odds; after two letters all is known."""
    data = torch.tensor([0, 0, 1, 1]).repeat(200)
    torch.manual_seed(0)
    model = gpt.GPT(tiny_config(vocab_size=2, position=position))
    gpt.train(model, data, data[:200], tiny_config(max_steps=300))
    assert gpt.evaluate(gpt.bigram_from_counts(data, 2), data) == pytest.approx(math.log(2), abs=0.01)
    for start in range(4):
        logits, _ = model(data[None, start:start + 8])
        assert gpt.next_token_loss(logits[:, 2:], data[None, start + 3:start + 9]) < 0.05


def test_the_default_bigram_training_comes_close_to_counting():
    text = (TEXT + gpt.load_manual())[:120_000]
    tokenizer = gpt.build_char_tokenizer(text)
    train_data, val_data = gpt.split(torch.tensor(tokenizer.encode(text)))
    bigram, seconds = gpt.train_bigram(train_data, val_data, gpt.Config(vocab_size=tokenizer.vocab_size))
    best = gpt.evaluate(gpt.bigram_from_counts(train_data, tokenizer.vocab_size), train_data)
    assert 0 <= gpt.evaluate(bigram, train_data) - best < 0.01 and seconds > 0


def final_state(config, data, stops=()):
    """The weights, history and samples after a training that is stopped and resumed at each of `stops`."""
    saved = None
    for stop in (*stops, None):
        torch.manual_seed(len(stops))                           # what was random before must not matter
        torch.manual_seed(5)
        model = gpt.GPT(config)
        torch.randn(len(stops) + 1)
        kept = []
        recorder = gpt.Recorder(save=kept.append, saved=saved)
        after_step = recorder.after_step

        def stop_after_step(loss):
            after_step(loss)
            recorder.stop = recorder.step == stop

        recorder.after_step = stop_after_step
        history = gpt.train(model, data, data[:100], config, recorder)
        saved = {**kept[-1], "history": list(history)}
    return model.state_dict(), history, recorder.best_weights()


@pytest.mark.parametrize("stops", [(1,), (4,), (5,), (2, 5, 9)])
def test_a_resumed_training_ends_as_one_that_never_stopped(stops):
    config = tiny_config(dropout=0.2, max_steps=10, eval_interval=4)
    data = torch.randint(11, (500,), generator=torch.Generator().manual_seed(0))
    weights, history, best = final_state(config, data)
    resumed_weights, resumed_history, resumed_best = final_state(config, data, stops)
    assert resumed_history == history and [row["step"] for row in history] == [4, 8, 10]
    for name in weights:
        assert torch.equal(weights[name], resumed_weights[name])
        assert torch.equal(best[name], resumed_best[name])


def test_the_best_weights_are_those_of_the_lowest_validation_loss():
    config = tiny_config(max_steps=60, eval_interval=10, learning_rate=0.03)
    data = torch.randint(11, (40,), generator=torch.Generator().manual_seed(0))     # nothing but noise
    fresh = torch.randint(11, (400,), generator=torch.Generator().manual_seed(1))
    model, recorder = gpt.GPT(config), gpt.Recorder()
    history = gpt.train(model, data, fresh, config, recorder)
    losses = [row["val_loss"] for row in history]
    assert losses[-1] > min(losses)                                                 # it has overfitted
    model.load_state_dict(recorder.best_weights())
    assert gpt.evaluate(model, fresh) == min(losses)


def test_history_holds_the_mean_loss_of_the_steps_in_between():
    config, losses = tiny_config(max_steps=7, eval_interval=3), []
    recorder = gpt.Recorder()
    after_step = recorder.after_step
    recorder.after_step = lambda loss: (losses.append(loss.item()), after_step(loss))
    data = torch.randint(11, (500,))
    history = gpt.train(gpt.GPT(config), data, data[:50], config, recorder)
    for row, part in zip(history, (losses[0:3], losses[3:6], losses[6:7])):
        assert row["train_loss"] == pytest.approx(sum(part) / len(part), rel=1e-5)
