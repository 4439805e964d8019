"""Chapter 9 and the KV cache: from logits to probabilities, and from them to text."""

import math

import pytest
import torch
from conftest import noisy_gpt, tiny_config

import gpt

PROBS = torch.tensor([[0.4, 0.1, 0.3, 0.2]])
PROMPT = torch.tensor([[3, 1, 4], [1, 5, 9]])
POSITIONS = ("learned", "sinusoidal", "rotary")
WAYS = (gpt.generate, gpt.generate_cached)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampling, expected", [
    ({}, [0.4, 0.1, 0.3, 0.2]),
    ({"temperature": 0}, [1, 0, 0, 0]),
    ({"temperature": 0.5}, [0.16 / 0.3, 0.01 / 0.3, 0.09 / 0.3, 0.04 / 0.3]),       # squared
    ({"temperature": 1e-3}, [1, 0, 0, 0]),
    ({"top_k": 1}, [1, 0, 0, 0]),
    ({"top_k": 2}, [4 / 7, 0, 3 / 7, 0]),
    ({"top_k": 99}, [0.4, 0.1, 0.3, 0.2]),
    ({"top_p": 1.0}, [0.4, 0.1, 0.3, 0.2]),
    ({"top_p": 0.39}, [1, 0, 0, 0]),
    ({"top_p": 0.41}, [4 / 7, 0, 3 / 7, 0]),
    ({"top_p": 0.85}, [4 / 9, 0, 3 / 9, 2 / 9]),
    ({"top_k": 3, "top_p": 0.75}, [4 / 7, 0, 3 / 7, 0]),        # of 9, 4 and 3 are more than 75%
    ({"temperature": 0.5, "top_k": 2}, [16 / 25, 0, 9 / 25, 0]),
    ({"temperature": 0.5, "top_p": 0.5}, [1, 0, 0, 0]),         # 16 of 30 are more than a half
    ({"top_k": 0}, [1, 0, 0, 0]), ({"top_p": 0.0}, [1, 0, 0, 0]),       # senseless: the likeliest stays
])
def test_sampling_parameters_do_what_they_say(sampling, expected):
    logits = torch.cat((PROBS.log(), PROBS.flip(1).log() + 70))         # what all have in common changes nothing
    before = logits.clone()
    result = gpt.next_token_probabilities(logits, **sampling)
    assert result[0].tolist() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(result[1], result[0].flip(0))
    assert torch.equal(logits, before)


def test_of_equally_likely_tokens_none_is_preferred():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    for sampling in ({"top_k": 1}, {"top_p": 0.3}):
        assert gpt.next_token_probabilities(logits, **sampling).tolist() == [[0, 0.5, 0.5, 0]]


# The plain loop


def test_generate_appends_what_the_last_position_predicts_from_as_much_as_fits():
    model, keeps_gradients = noisy_gpt(tiny_config()), []
    model.register_forward_hook(lambda module, inputs, output: keeps_gradients.append(output[0].requires_grad))
    text = gpt.generate(model, PROMPT, 30, temperature=0)
    assert torch.equal(text[:, :3], PROMPT) and keeps_gradients == [False] * 30
    for end in range(3, 33):
        logits, _ = model(text[:, max(0, end - 8):end])
        assert torch.equal(logits[:, -1].argmax(-1), text[:, end])
    _, loss = model(text[:, :8], text[:, 1:9])                  # what was written can be trained on
    loss.backward()


def test_texts_follow_the_probabilities_of_the_model():
    model = gpt.BigramLanguageModel(3)
    model.table.weight.data = torch.tensor([[0.0, 3.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).log()
    text = gpt.generate(model, torch.zeros(1, 1, dtype=torch.int64), 2000, generator=seeded(0))[0]
    after_0 = text[1:][text[:-1] == 0]
    assert (after_0 == 1).float().mean().item() == pytest.approx(0.75, abs=0.04)
    assert set(text[1:][text[:-1] > 0].tolist()) == {0}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.7}])
@pytest.mark.parametrize("generate", WAYS)
def test_generate_draws_with_its_generator_and_hands_all_sampling_parameters_on(generate, sampling):
    model, draw, by_hand = noisy_gpt(tiny_config(block_size=24)), seeded(3), PROMPT
    for _ in range(20):
        probs = gpt.next_token_probabilities(model(by_hand)[0][:, -1], **sampling)
        by_hand = torch.cat((by_hand, torch.multinomial(probs, 1, generator=draw)), dim=1)
    assert torch.equal(generate(model, PROMPT, 20, **sampling, generator=seeded(3)), by_hand)
    assert not torch.equal(generate(model, PROMPT, 20, **sampling, generator=seeded(4)), by_hand)
    assert torch.equal(generate(model, PROMPT, 0), PROMPT)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("generate", WAYS)
def test_nothing_is_dropped_and_the_mode_is_restored_also_after_an_exception(generate, training):
    model = noisy_gpt(tiny_config(dropout=0.5))
    expected = generate(model, PROMPT, 20, temperature=0)
    model.train(training)
    assert torch.equal(generate(model, PROMPT, 20, temperature=0), expected) and not expected.requires_grad

    def fail(module, inputs):
        assert not model.training and not torch.is_grad_enabled()
        raise MemoryError

    model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        generate(model, PROMPT, 9)
    assert {module.training for module in model.modules()} == {training}
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_completion_is_the_prompt_and_what_its_seed_draws_after_it():
    model, tokenizer = noisy_gpt(tiny_config()), gpt.CharTokenizer("abcdefghijk")
    texts = [gpt.complete(model, tokenizer, "bad", 30, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    by_hand = gpt.generate(model, torch.tensor([tokenizer.encode("bad")]), 30, 0.8, generator=seeded(1))
    assert texts[0].startswith("bad") and tokenizer.decode(by_hand[0].tolist()) == texts[0]


# The KV cache


@pytest.mark.parametrize("position", POSITIONS)
def test_with_a_cache_the_last_logits_are_the_same(position):
    model, idx = noisy_gpt(tiny_config(position=position)), torch.randint(11, (2, 8))
    together, _ = model(idx)
    for first in range(1, 9):
        cache = gpt.KVCache(model)
        for end in range(first, 9):                             # the prompt, and then token by token
            logits = gpt.last_logits(model, idx[:, :end], cache)
            torch.testing.assert_close(logits, together[:, end - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("block_size", [1, 7, 24])
def test_cached_is_uncached_and_beyond_the_context_the_newer_half_goes_on(position, block_size):
    model = noisy_gpt(tiny_config(position=position, block_size=block_size))
    for length in (1, 20):
        prompt = torch.randint(11, (2, length))
        text, window = gpt.generate_cached(model, prompt, 14, temperature=0), min(length, block_size)
        assert text.shape == (2, length + 14) and torch.equal(text[:, :length], prompt)
        fits = max(length, block_size + 1)                      # up to here, each token is drawn from all before it
        assert torch.equal(text[:, :fits], gpt.generate(model, prompt, 14, 0)[:, :fits])
        for end in range(length, length + 14):
            logits, _ = model(text[:, end - window:end])
            assert torch.equal(logits[:, -1].argmax(-1), text[:, end])
            window = block_size // 2 + 1 if window == block_size else window + 1


def test_with_a_cache_only_new_tokens_are_computed():
    model, lengths = noisy_gpt(tiny_config()), []
    model.blocks[0].ln_1.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    tokens = list(gpt.stream(model, PROMPT, 11, generator=seeded(7)))
    assert lengths == [3, 1, 1, 1, 1, 1] + [5, 1, 1, 1] + [5]           # a context of 8, half of it
    assert torch.equal(torch.cat((PROMPT, *tokens), 1), gpt.generate_cached(model, PROMPT, 11, generator=seeded(7)))


@pytest.mark.parametrize("sampling", [
    *({"temperature": value} for value in (-1.0, 1e-4, math.nan, math.inf)), {"top_k": 0}, {"top_k": -1},
    *({"top_p": value} for value in (0.0, 1.5, -0.1, math.nan))])
def test_sampling_parameters_that_make_no_sense_are_named(sampling):
    (name, value), = sampling.items()
    with pytest.raises(gpt.UserError, match=f"{name} .* not {value}"):
        gpt.generate_cached(gpt.GPT(tiny_config()), PROMPT, 5, **sampling)


@pytest.mark.parametrize("generate", WAYS)
def test_there_must_be_something_to_continue(generate):
    with pytest.raises(ValueError, match="at least one token"):
        generate(gpt.GPT(tiny_config()), PROMPT[:, :0], 5)


def test_the_cache_is_for_the_models_that_it_knows():
    with pytest.raises(gpt.UserError, match="BigramLanguageModel"):
        gpt.generate_cached(gpt.BigramLanguageModel(11), PROMPT, 5)
