"""Chapter 7: evaluation, the optimizer, the schedule, training, and going on with it."""

import io
import math

import pytest
import torch
from conftest import TEXT, counted_bigram, noisy_gpt, tiny_config

import gpt


def train_to_the_end(model, train_data, val_data, config):
    """The last Report of a training."""
    *_, report = gpt.train(model, train_data, val_data, config)
    return report


def random_tokens(length, seed=0):
    return torch.randint(11, (length,), generator=torch.Generator().manual_seed(seed))


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
    assert gpt.evaluate(model, data.to(torch.uint8)) == gpt.evaluate(model, data)


def test_evaluation_is_the_same_each_time_and_leaves_the_mode():
    model, data = noisy_gpt(tiny_config(dropout=0.3)).train(), torch.randint(11, (5000,))
    loss = gpt.evaluate(model, data)
    assert loss > 0 and gpt.evaluate(model, data) == loss
    assert all(module.training for module in model.modules())
    model.eval()
    assert gpt.evaluate(model, data) == loss
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_bigram_is_evaluated_as_if_on_one_long_text():
    tokens = torch.randint(5, (5000,))
    model = counted_bigram(tokens, 5)
    _, loss = model(tokens[None, :-1], tokens[None, 1:])
    assert gpt.evaluate(model, tokens) == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.parametrize("length", [0, 1])
def test_without_two_tokens_there_is_nothing_to_evaluate(length):
    with pytest.raises(gpt.UserError, match=f"evaluate .* at least 2 .* not {length}"):
        gpt.evaluate(gpt.BigramLanguageModel(11), random_tokens(length))


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
    assert rates[:peak + 1] == sorted(rates[:peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[0] < config.learning_rate / 50 and 0 < rates[-1] < config.learning_rate / 1000


def test_a_step_is_adamw_on_the_clipped_gradient_of_one_batch():
    config = tiny_config(bias=False, grad_clip=0.5, weight_decay=0.3, eval_interval=1)
    data, model, by_hand = random_tokens(200), noisy_gpt(config), noisy_gpt(config)
    means = {name: (0, 0) for name, _ in by_hand.named_parameters()}
    for step, report in zip(range(3), gpt.train(model, data, data[:20], config)):
        _, loss = by_hand(*gpt.get_batch(data, step, config))
        gradients = torch.autograd.grad(loss, [*by_hand.parameters()])
        length = math.sqrt(sum(g.square().sum().item() for g in gradients))
        assert length > 0.5                                                 # so that clipping shows
        rate = gpt.learning_rate_at(step, config)
        for (name, weight), g in zip(by_hand.named_parameters(), gradients):
            g = g * 0.5 / length
            m, v = means[name]
            m, v = means[name] = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
            if weight.dim() == 2:
                weight.data -= rate * 0.3 * weight
            scale = (v / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8
            weight.data -= rate * m / (1 - 0.9 ** (step + 1)) / scale
            torch.testing.assert_close(model.state_dict()[name], weight.data, atol=2e-5, rtol=0)
        assert report.train_loss == pytest.approx(loss.item(), abs=1e-5)


def test_every_weight_learns():
    config = tiny_config(position="learned", bias=True, weight_decay=0.0)
    model, data = gpt.GPT(config), random_tokens(500)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    train_to_the_end(model, data, data[:50], config)
    still = [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])]
    assert still == []


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_a_gpt_learns_what_a_bigram_cannot(position):
    """In 'aabb' repeated, an a is followed by a or b with equal odds; after two letters all is known."""
    data = torch.tensor([0, 0, 1, 1]).repeat(200)
    torch.manual_seed(0)
    model = gpt.GPT(tiny_config(vocab_size=2, position=position))
    train_to_the_end(model, data, data[:200], tiny_config(max_steps=200))
    assert gpt.evaluate(counted_bigram(data, 2), data) == pytest.approx(math.log(2), abs=0.01)
    for start in range(4):
        logits, _ = model(data[None, start:start + 8])
        assert gpt.next_token_loss(logits[:, 2:], data[None, start + 3:start + 9]) < 0.05


def test_the_default_bigram_training_comes_close_to_counting():
    text = (TEXT + gpt.load_manual())[:120_000]
    tokenizer = gpt.build_char_tokenizer(text)
    train_data, val_data = gpt.split(torch.tensor(tokenizer.encode(text)))
    config = gpt.Config(vocab_size=tokenizer.vocab_size)
    bigram, seconds = gpt.train_bigram(train_data, val_data, config)
    best = gpt.evaluate(counted_bigram(train_data, tokenizer.vocab_size), train_data)
    assert 0 <= gpt.evaluate(bigram, train_data) - best < 0.01 and seconds > 0


class InMemory:
    """Saves and loads a training as the comments of Report say: the weights, and the report."""

    def __init__(self, config):
        self.config, self.file = config, None

    def save(self, model, report):
        self.file = io.BytesIO()
        torch.save({"model": model.state_dict(), "report": {
            **vars(report), "optimizer": report.optimizer.state_dict()}}, self.file)

    def load(self):
        self.file.seek(0)
        saved, model = torch.load(self.file), gpt.GPT(self.config)
        model.load_state_dict(saved["model"])
        report = gpt.Report(**{**saved["report"], "optimizer": gpt.build_optimizer(model, self.config)})
        report.optimizer.load_state_dict(saved["report"]["optimizer"])
        return model, report


class AsCheckpoint:
    """Saves and loads a training as `python gpt.py` and its --resume do."""

    def __init__(self, config):
        self.keeper = gpt.Keeper("run")
        self.keeper.about = {"config": vars(config), "vocabulary": "abcdefghijk", "bigram": None,
                             "text_sha256": ""}

    def save(self, model, report):
        self.keeper.save(model, report)

    def load(self):
        run = gpt.load_run(self.keeper.path(".pt"))
        return run.model, run.report


def trained(config, data, stops=(), way=InMemory):
    """The model and the report of a training that is stopped, saved and resumed at each of `stops`."""
    torch.manual_seed(5)
    model, report, saved = gpt.GPT(config), None, way(config)
    for stop in (*stops, config.max_steps):
        training = gpt.train(model, data, data[:100], config, report)
        while report is None or report.step < stop:
            report = next(training)
        if stop < config.max_steps:
            saved.save(model, report)
            torch.manual_seed(stop)                         # what is random outside must not matter
            model, report = saved.load()
    assert next(training, None) is None                     # there are no more steps
    return model, report


@pytest.mark.parametrize("way", [InMemory, AsCheckpoint])
@pytest.mark.parametrize("stops", [(1,), (4,), (5,), (2, 5, 9), tuple(range(1, 10))])
def test_a_resumed_training_ends_as_one_that_never_stopped(stops, way, in_tmp):
    config, data = tiny_config(dropout=0.2, max_steps=10, eval_interval=4), random_tokens(500)
    model, report = trained(config, data)
    resumed_model, resumed = trained(config, data, stops, way)
    assert [row["step"] for row in report.history] == [4, 8, 10]
    for name in ("step", "loss_sum", "train_loss", "val_loss", "history"):
        assert getattr(resumed, name) == getattr(report, name)
    weights, resumed_weights = model.state_dict(), resumed_model.state_dict()
    for name in weights:
        assert torch.equal(weights[name], resumed_weights[name])
        assert torch.equal(report.best[name], resumed.best[name])


def test_dropout_is_on_in_a_training_before_and_after_an_evaluation():
    data, weights = random_tokens(500), []
    for dropout in (0.0, 0.2):
        for eval_interval in (1, 2):
            config = tiny_config(dropout=dropout, eval_interval=eval_interval, max_steps=3)
            model, _ = trained(config, data)
            weights.append(model.lm_head.weight)
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[0], weights[2])


def test_the_best_weights_are_those_of_the_lowest_validation_loss():
    config = tiny_config(max_steps=60, eval_interval=10, learning_rate=0.03)
    torch.manual_seed(0)
    model, fresh = gpt.GPT(config), random_tokens(400, seed=1)
    report = train_to_the_end(model, random_tokens(40), fresh, config)          # nothing but noise
    losses = [row["val_loss"] for row in report.history]
    assert losses[-1] > min(losses) and gpt.evaluate(model, fresh) == losses[-1]    # it overfits
    model.load_state_dict(report.best)
    assert gpt.evaluate(model, fresh) == min(losses)


def test_a_report_tells_where_the_training_stands(monkeypatch):
    config, data, losses, told = tiny_config(max_steps=7, eval_interval=3), random_tokens(500), [], []
    one_step = gpt.training_step
    monkeypatch.setattr(gpt, "training_step", lambda *args: losses.append(one_step(*args)) or losses[-1])
    for report in gpt.train(gpt.GPT(config), data, data[:50], config):
        assert report.step == len(losses)
        told.append((report.train_loss, report.val_loss))
    for row, part in zip(report.history, (losses[0:3], losses[3:6], losses[6:7]), strict=True):
        assert list(row) == ["step", "train_loss", "val_loss", "learning_rate"]
        assert row["train_loss"] == pytest.approx(sum(part).item() / len(part), rel=1e-5)
        assert row["learning_rate"] == gpt.learning_rate_at(row["step"] - 1, config)
        assert told[row["step"] - 1] == (row["train_loss"], row["val_loss"])
    assert [step for step, losses in enumerate(told, 1) if losses != (None, None)] == [3, 6, 7]
