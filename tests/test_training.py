"""Chapter 8: evaluation, the optimizer, the schedule, training, and going on with it."""

import io
import math
import re
from dataclasses import replace
from pydoc_data.topics import topics

import pytest
import torch
from conftest import counted_bigram, noisy_gpt, tiny_config

import gpt


def train_to_the_end(model, train_data, val_data, config):
    """The last TrainState of a training."""
    *_, state = gpt.train(model, train_data, val_data, config)
    return state


def random_tokens(length, seed=0):
    return torch.randint(11, (length,), generator=torch.Generator().manual_seed(seed))


def per_token_loss(model, data, T):
    """The loss over all of data, one token at a time and without batches."""
    total = 0.0
    for position in range(1, len(data)):
        start = (position - 1) // T * T
        logits, _ = model(data[None, start:position])
        total -= logits[0, -1].double().log_softmax(-1)[data[position]].item()
    return total / (len(data) - 1)


@pytest.mark.parametrize("length", [2, 8, 9, 10, 60, 65])
def test_evaluation_predicts_every_token_once(length):
    model, data = noisy_gpt(tiny_config()), torch.randint(11, (length,))
    with torch.no_grad():
        assert gpt.evaluate(model, data) == pytest.approx(per_token_loss(model, data, 8), abs=1e-5)
    assert gpt.evaluate(model, data.int()) == gpt.evaluate(model, data)


def test_evaluation_is_the_same_each_time_and_leaves_the_mode():
    model, data = noisy_gpt(tiny_config(dropout=0.3)).train(), torch.randint(11, (5000,))
    loss = gpt.evaluate(model, data)
    assert loss > 0 and gpt.evaluate(model, data) == loss
    assert all(module.training for module in model.modules())
    model.eval()
    assert gpt.evaluate(model, data) == loss
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_mode_after_an_exception(training, monkeypatch):
    model = noisy_gpt(tiny_config()).train(training)

    def fail(*arguments, **named):
        assert not model.training and not torch.is_grad_enabled()
        raise MemoryError

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(MemoryError):
        gpt.evaluate(model, random_tokens(50))
    assert {module.training for module in model.modules()} == {training}
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_bigram_is_evaluated_as_if_on_one_long_text():
    tokens = torch.randint(5, (5000,))
    model = counted_bigram(tokens, 5)
    _, loss = model(tokens[None, :-1], tokens[None, 1:])
    assert gpt.evaluate(model, tokens) == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.parametrize("length", [0, 1])
def test_without_two_tokens_there_is_nothing_to_evaluate(length):
    with pytest.raises(ValueError, match=f"{length} tokens are too few to evaluate with"):
        gpt.evaluate(gpt.BigramLanguageModel(11), random_tokens(length))


def test_only_matrices_decay_and_frozen_parameters_are_left_alone():
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
    for step, state in zip(range(3), gpt.train(model, data, data[:20], config)):
        _, loss = by_hand(*gpt.get_batch(data, step, config))
        gradients = torch.autograd.grad(loss, [*by_hand.parameters()])
        length = math.sqrt(sum(g.square().sum().item() for g in gradients))
        assert length > 0.5                                                 # so that clipping shows
        rate = gpt.learning_rate_at(step, config)
        for (name, p), g in zip(by_hand.named_parameters(), gradients):
            g = g * 0.5 / length
            m, v = means[name]
            m, v = means[name] = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
            if p.dim() == 2:
                p.data -= rate * 0.3 * p
            scale = (v / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8
            p.data -= rate * m / (1 - 0.9 ** (step + 1)) / scale
            torch.testing.assert_close(model.state_dict()[name], p.data, atol=2e-5, rtol=0)
        assert state.train_loss == pytest.approx(loss.item(), abs=1e-5)


def test_every_parameter_learns():
    config = tiny_config(position="learned", bias=True, weight_decay=0.0)
    model, data = gpt.GPT(config), random_tokens(500)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train_to_the_end(model, data, data[:50], config)
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_a_gpt_learns_what_a_bigram_cannot(position):
    """In 'aabb' repeated, a is followed by a or b, equally often; two letters tell what follows."""
    data = torch.tensor([0, 0, 1, 1]).repeat(200)
    torch.manual_seed(0)
    model = gpt.GPT(tiny_config(vocab_size=2, position=position))
    train_to_the_end(model, data, data[:200], tiny_config(max_steps=100, eval_interval=100))
    assert gpt.evaluate(counted_bigram(data, 2), data) == pytest.approx(math.log(2), abs=0.01)
    for start in range(4):
        logits, _ = model(data[None, start:start + 8])
        assert gpt.next_token_loss(logits[:, 2:], data[None, start + 3:start + 9]) < 0.2


def test_the_bigram_of_the_run_comes_close_to_counting():
    text = re.sub("[^a-z]+", " ", "".join(topics.values()).lower())[:120_000]
    tokenizer = gpt.build_char_tokenizer(text)
    train_data, val_data = (gpt.encode_text(part, tokenizer) for part in gpt.split(text))
    config = gpt.Config(vocab_size=tokenizer.vocab_size)
    bigram = gpt.BigramLanguageModel(config.vocab_size)
    state = train_to_the_end(bigram, train_data, val_data, replace(config, **gpt.BIGRAM_TRAINING))
    best = gpt.evaluate(counted_bigram(train_data, config.vocab_size), train_data)
    assert 0 <= gpt.evaluate(bigram, train_data) - best < 0.01 and state.seconds > 0


def watched(config, data):
    """What the steps of a training read, drop and seed: its batches, where dropout put zeros, and the seeds."""
    torch.manual_seed(5)
    model, batches, masks, seeds = gpt.GPT(config), [], [], []
    model.register_forward_pre_hook(lambda module, inputs: batches.append(torch.stack(inputs)))
    model.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
    model.dropout.register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
    for state in gpt.train(model, data, data[:2], config):
        if state.val_loss is not None:                              # its evaluation is not a step
            del batches[-1], masks[-1], seeds[-1]
    assert len(batches) == len(masks) == len(seeds) == config.max_steps
    return batches, masks, seeds


def test_dropout_does_not_change_the_batches():
    data = random_tokens(500)
    batches = [watched(tiny_config(dropout=dropout), data)[0] for dropout in (0.0, 0.5)]
    for step in range(6):
        expected = torch.stack(gpt.get_batch(data, step, tiny_config()))
        assert torch.equal(batches[0][step], expected) and torch.equal(batches[1][step], expected)


def test_each_step_and_each_seed_drops_others(monkeypatch):
    data = random_tokens(500)
    masks = [watched(tiny_config(dropout=0.5, seed=seed), data)[1] for seed in (0, 1)]
    for i, mask in enumerate(masks[0] + masks[1]):
        assert 0.3 < mask.float().mean() < 0.7
        assert not any(torch.equal(mask, other) for other in (masks[0] + masks[1])[:i])
    monkeypatch.setattr(gpt, "get_batch", lambda data, step, config: (data[:32].view(4, 8), data[1:33].view(4, 8)))
    assert all(map(torch.equal, masks[0], watched(tiny_config(dropout=0.5, seed=0), data)[1]))      # whatever it reads


@pytest.mark.parametrize("seed", [0, 1337, 2**32 - 1])
def test_dropout_and_batches_have_different_random_numbers(seed):
    """Different seeds are not enough: of a seed, torch's generator on the CPU takes the last 32 bits."""
    data = random_tokens(500)
    batches, _, seeds = watched(tiny_config(dropout=0.5, seed=seed), data)
    for dropout_seed in seeds:                                      # what would it have drawn for a batch?
        starts = torch.randint(500 - 8, (4, 1), generator=torch.Generator().manual_seed(dropout_seed))
        assert not any(torch.equal(data[starts + torch.arange(8)], batch[0]) for batch in batches)


class InMemory:
    """Saves and loads a training as TrainState says: with the parameters, it is all that is needed."""

    def __init__(self, config):
        self.config, self.file = config, None

    def save(self, model, state):
        self.file = io.BytesIO()
        torch.save({"model": model.state_dict(), "state": {
            **vars(state), "optimizer": state.optimizer.state_dict()}}, self.file)

    def load(self):
        self.file.seek(0)
        saved, model = torch.load(self.file), gpt.GPT(self.config)
        model.load_state_dict(saved["model"])
        state = gpt.TrainState(**{**saved["state"], "optimizer": gpt.build_optimizer(model, self.config)})
        state.optimizer.load_state_dict(saved["state"]["optimizer"])
        return model, state


class AsCheckpoint:
    """Saves and loads a training as `python gpt.py` and its --resume do."""

    def __init__(self, config):
        self.tokenizer = gpt.CharTokenizer("abcdefghijk")

    def save(self, model, state):
        gpt.save_checkpoint("run", "a text", model, self.tokenizer, state)

    def load(self):
        saved = gpt.read_checkpoint(gpt.DATA / "run.pt")
        return saved.model, saved.state


def trained(config, data, stops=(), way=InMemory):
    """The model and the state of a training that is stopped, saved and resumed at each of `stops`."""
    torch.manual_seed(5)
    model, state, saved = gpt.GPT(config), None, way(config)
    for stop in (*stops, config.max_steps):
        training = gpt.train(model, data, data[:100], config, state)
        while state is None or state.step < stop:
            state = next(training)
        if stop < config.max_steps:
            saved.save(model, state)
            torch.manual_seed(stop)                         # what is random outside must not matter
            best = state.best
            model, state = saved.load()
            assert best is state.best is None or all(torch.equal(p, state.best[name]) for name, p in best.items())
    assert next(training, None) is None                     # there are no more steps
    return model, state


@pytest.mark.parametrize("way", [InMemory, AsCheckpoint])
@pytest.mark.parametrize("stops, changes", [
    ((1,), {}), ((4,), {"bias": False}), ((5,), {"position": "sinusoidal"}), ((2, 5, 9), {"tie_weights": True}),
    ((1, 2, 3, 4), {"position": "rotary"})])
def test_a_resumed_training_ends_as_one_that_never_stopped(stops, changes, way, in_tmp):
    """With dropout, and to the last bit."""
    config, data = tiny_config(dropout=0.2, max_steps=10, eval_interval=4, **changes), random_tokens(500)
    model, state = trained(config, data)
    resumed_model, resumed = trained(config, data, stops, way)
    assert [row["step"] for row in state.history] == [4, 8, 10]
    for name in ("step", "loss_sum", "train_loss", "val_loss", "history"):
        assert getattr(resumed, name) == getattr(state, name)
    parameters, resumed_parameters = model.state_dict(), resumed_model.state_dict()
    for name in parameters:
        assert torch.equal(parameters[name], resumed_parameters[name])
        assert torch.equal(state.best[name], resumed.best[name])
    for p, other in zip(*([p for p in m.parameters() if p.requires_grad] for m in (model, resumed_model)), strict=True):
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(state.optimizer.state[p][name], resumed.optimizer.state[other][name])


def test_a_finished_training_makes_no_step():
    config, data = tiny_config(), random_tokens(500)
    model, state = trained(config, data)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    assert list(gpt.train(model, data, data[:100], config, state)) == []
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_dropout_is_on_in_a_training_before_and_after_an_evaluation():
    data, parameters = random_tokens(500), []
    for dropout in (0.0, 0.2):
        for eval_interval in (1, 2):
            config = tiny_config(dropout=dropout, eval_interval=eval_interval, max_steps=3)
            model, _ = trained(config, data)
            parameters.append(model.lm_head.weight)
    assert torch.equal(*parameters[:2]) and torch.equal(*parameters[2:])
    assert not torch.equal(parameters[0], parameters[2])


def test_the_best_parameters_are_those_of_the_lowest_validation_loss():
    config = tiny_config(max_steps=60, eval_interval=10, learning_rate=0.03)
    torch.manual_seed(0)
    model, fresh = gpt.GPT(config), random_tokens(400, seed=1)
    state = train_to_the_end(model, random_tokens(40), fresh, config)          # nothing but noise
    losses = [row["val_loss"] for row in state.history]
    assert losses[-1] > min(losses) and gpt.evaluate(model, fresh) == losses[-1]    # it overfits
    model.load_state_dict(state.best)
    assert gpt.evaluate(model, fresh) == min(losses)


def test_a_train_state_tells_where_the_training_stands(monkeypatch):
    config, data, losses, told = tiny_config(max_steps=7, eval_interval=3), random_tokens(500), [], []
    one_step = gpt.training_step
    monkeypatch.setattr(gpt, "training_step", lambda *args: losses.append(one_step(*args)) or losses[-1])
    for state in gpt.train(gpt.GPT(config), data, data[:50], config):
        assert state.step == len(losses)
        told.append((state.train_loss, state.val_loss))
    for row, part in zip(state.history, (losses[0:3], losses[3:6], losses[6:7]), strict=True):
        assert list(row) == ["step", "train_loss", "val_loss", "learning_rate"]
        assert row["train_loss"] == pytest.approx(sum(part).item() / len(part), rel=1e-5)
        assert row["learning_rate"] == gpt.learning_rate_at(row["step"] - 1, config)
        assert told[row["step"] - 1] == (row["train_loss"], row["val_loss"])
    assert [step for step, losses in enumerate(told, 1) if losses != (None, None)] == [3, 6, 7]
