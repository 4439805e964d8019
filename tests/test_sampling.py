"""Chapter 9: from logits to probabilities, and from them to text."""

import pytest
import torch
from conftest import noisy_gpt, tiny_config

import gpt

PROBS = torch.tensor([[0.4, 0.1, 0.3, 0.2]])
PROMPT = torch.tensor([[3, 1, 4], [1, 5, 9]])
POSITIONS = ("learned", "sinusoidal", "rotary")


@pytest.mark.parametrize("sampling, expected", [
    ({}, [0.4, 0.1, 0.3, 0.2]),
    ({"temperature": 0}, [1, 0, 0, 0]),
    ({"temperature": 0.5}, [0.16 / 0.3, 0.01 / 0.3, 0.09 / 0.3, 0.04 / 0.3]),       # squared
    ({"temperature": 1e-30}, [1, 0, 0, 0]),
    ({"top_k": 1}, [1, 0, 0, 0]),
    ({"top_k": 2}, [4 / 7, 0, 3 / 7, 0]),
    ({"top_k": 4}, [0.4, 0.1, 0.3, 0.2]),
    ({"top_k": 99}, [0.4, 0.1, 0.3, 0.2]),
    ({"top_p": 1.0}, [0.4, 0.1, 0.3, 0.2]),
    ({"top_p": 0.39}, [1, 0, 0, 0]),
    ({"top_p": 0.41}, [4 / 7, 0, 3 / 7, 0]),
    ({"top_p": 0.85}, [4 / 9, 0, 3 / 9, 2 / 9]),
    ({"top_p": 1e-9}, [1, 0, 0, 0]),
    ({"top_p": 1e-46}, [1, 0, 0, 0]),                           # as a float32, this is 0
    ({"top_k": 3, "top_p": 0.75}, [4 / 7, 0, 3 / 7, 0]),       # of 9, 4 and 3 are more than 75%
    ({"temperature": 0.5, "top_k": 2}, [16 / 25, 0, 9 / 25, 0]),
    ({"temperature": 0.5, "top_p": 0.5}, [1, 0, 0, 0]),         # 16 of 30 are more than a half
])
def test_sampling_parameters_do_what_they_say(sampling, expected):
    for shift in (0.0, 300.0):                                  # what is added to all logits changes nothing
        result = gpt.next_token_probabilities(PROBS.log() + shift, **sampling)
        assert result.shape == (1, 4) and result[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_cold_draw_from_huge_logits_does_not_overflow():
    logits = torch.tensor([[-1e9, 3e9, 1e9]])                   # a float32 ends at 3e38
    assert gpt.next_token_probabilities(logits, temperature=1e-30).tolist() == [[0, 1, 0]]


def test_of_equally_likely_tokens_top_k_keeps_k():
    for k in range(1, 6):
        result = gpt.next_token_probabilities(torch.zeros(1, 5), top_k=k)
        assert sorted(result[0].tolist(), reverse=True) == pytest.approx([1 / k] * k + [0] * (5 - k))


def test_top_p_stops_as_soon_as_p_is_reached():
    result = gpt.next_token_probabilities(torch.zeros(1, 4), top_p=0.5)         # exactly 1/4 each
    assert sorted(result[0].tolist()) == [0, 0, 0.5, 0.5]


def test_each_row_of_a_batch_has_its_own_probabilities():
    rows = torch.cat((PROBS, PROBS.flip(1)))
    for sampling in ({"temperature": 0}, {"top_k": 2}, {"top_p": 0.6}):
        result = gpt.next_token_probabilities(rows.log(), **sampling)
        torch.testing.assert_close(result[0], gpt.next_token_probabilities(PROBS.log(), **sampling)[0])
        torch.testing.assert_close(result[1], result[0].flip(0))


def test_sampling_parameters_leave_the_logits_as_they_are():
    logits = PROBS.log()
    gpt.next_token_probabilities(logits, temperature=0.5, top_k=2, top_p=0.5)
    assert torch.equal(logits, PROBS.log())


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("block_size", [1, 2, 7, 8])
def test_the_cache_changes_nothing_at_any_length(position, block_size):
    model = noisy_gpt(tiny_config(position=position, block_size=block_size))
    for length in (1, 3, 20):
        prompt = torch.randint(11, (2, length))
        with_cache = gpt.generate(model, prompt, 20, temperature=0)
        without = gpt.generate(model, prompt, 20, temperature=0, use_cache=False)
        assert torch.equal(with_cache, without) and with_cache.shape == (2, length + 20)
        assert torch.equal(with_cache[:, :length], prompt)


def test_with_a_cache_only_new_tokens_are_computed():
    model, lengths = noisy_gpt(tiny_config()), []
    model.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    gpt.generate(model, PROMPT, 11)
    assert lengths == [3, 1, 1, 1, 1, 1] + [5, 1, 1, 1] + [5]           # a context of 8, half of it
    lengths.clear()
    gpt.generate(model, PROMPT, 11, use_cache=False)
    assert lengths == [3, 4, 5, 6, 7, 8] + [5, 6, 7, 8] + [5]


@pytest.mark.parametrize("length", [3, 8, 20])
def test_greedy_takes_the_likeliest_token_of_the_documented_window(length):
    """The window begins with what fits; each time that it is full, its later half goes on."""
    model, idx = noisy_gpt(tiny_config()), torch.randint(11, (2, length))
    text = gpt.generate(model, idx, 30, temperature=0)
    window = min(length, 8)
    for end in range(length, length + 30):
        logits, _ = model(text[:, end - window:end])
        assert torch.equal(logits[:, -1].argmax(-1), text[:, end])
        window = 5 if window == 8 else window + 1


@pytest.mark.parametrize("block_size", [1, 2, 3, 8])
@pytest.mark.parametrize("use_cache", [True, False])
def test_the_model_sees_half_the_context_or_more_and_never_too_much(block_size, use_cache):
    model, seen = noisy_gpt(tiny_config(block_size=block_size)), []
    model.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(inputs[0].shape[1] + getattr(named.get("cache"), "length", 0)),
        with_kwargs=True)
    for length in (1, 2, 9):
        seen.clear()
        gpt.generate(model, torch.zeros(1, length, dtype=torch.int64), 25, use_cache=use_cache)
        for before, window in enumerate(seen):
            assert min(length + before, block_size // 2 + 1) <= window <= block_size


@pytest.mark.parametrize("position", POSITIONS)
def test_within_the_context_the_plain_loop_writes_what_generate_writes(position):
    model, texts = noisy_gpt(tiny_config(position=position, block_size=24)), []
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        texts.append(gpt.generate_plainly(model, PROMPT, 22))          # the last token is drawn, but not read
        torch.manual_seed(seed)
        assert torch.equal(gpt.generate(model, PROMPT, 22), texts[-1])
    assert texts[0].shape == (2, 25) and not torch.equal(texts[0], texts[1])


def test_the_plain_loop_reads_as_much_as_fits():
    model, keeps_gradients = noisy_gpt(tiny_config()), []
    model.register_forward_hook(lambda module, inputs, output: keeps_gradients.append(output[0].requires_grad))
    model.lm_head.weight.data *= 1e4                        # now the likeliest token is always drawn
    text = gpt.generate_plainly(model, PROMPT, 30)
    assert torch.equal(text[:, :3], PROMPT) and keeps_gradients == [False] * 30
    for length in range(3, 33):
        logits, _ = model(text[:, max(0, length - 8):length])
        assert torch.equal(logits[:, -1].argmax(-1), text[:, length])


def test_texts_follow_the_probabilities_of_the_model():
    model = gpt.BigramLanguageModel(3)
    model.table.weight.data = torch.tensor([[0.0, 3.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).log()
    prompt = torch.zeros(1, 1, dtype=torch.int64)
    torch.manual_seed(0)
    for text in (gpt.generate(model, prompt, 2000)[0], gpt.generate_plainly(model, prompt, 2000)[0]):
        after_0 = text[1:][text[:-1] == 0]
        assert (after_0 == 1).float().mean().item() == pytest.approx(0.75, abs=0.04)
        assert set(text[1:][text[:-1] > 0].tolist()) == {0}


def test_the_same_seed_writes_the_same_text():
    model = noisy_gpt(tiny_config())
    texts = [gpt.generate(model, PROMPT, 30, generator=torch.Generator().manual_seed(seed))
             for seed in (1, 1, 2)]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


def modes(model):
    return [module.training for module in model.modules()]


def test_generate_needs_no_gradients_uses_eval_mode_and_restores_the_mode():
    model = noisy_gpt(tiny_config(dropout=0.5))
    texts = []
    for mode in (True, False):
        model.train(mode)
        texts += [gpt.generate(model, PROMPT, 20, temperature=0) for _ in range(2)]
        assert set(modes(model)) == {mode}
    assert all(torch.equal(text, texts[0]) and not text.requires_grad for text in texts)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_restores_the_mode_after_an_exception(training, use_cache, monkeypatch):
    model, calls = noisy_gpt(tiny_config()).train(training), []
    forward = model.forward

    def fail(*arguments, **named):
        assert not model.training and not torch.is_grad_enabled()
        calls.append(arguments)
        if len(calls) == 3:
            raise MemoryError
        return forward(*arguments, **named)

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(MemoryError):
        gpt.generate(model, PROMPT, 9, use_cache=use_cache)
    assert len(calls) == 3 and set(modes(model)) == {training}
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    monkeypatch.undo()
    with pytest.raises(ValueError):
        gpt.generate(model, PROMPT, 9, temperature=-1, use_cache=use_cache)
    assert set(modes(model)) == {training} and torch.is_grad_enabled()


def test_a_stream_runs_in_the_mode_that_the_model_has():
    model, texts = noisy_gpt(tiny_config(dropout=0.5)), []
    for mode in (False, False, True):
        texts.append(torch.cat([*gpt.stream(model.train(mode), PROMPT, 20, temperature=0)], dim=1))
        assert set(modes(model)) == {mode}
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])
    with gpt.eval_mode(model):
        assert torch.equal(torch.cat([*gpt.stream(model, PROMPT, 20, temperature=0)], dim=1), texts[0])
    assert set(modes(model)) == {True}


def test_what_was_written_can_be_trained_on():
    model = noisy_gpt(tiny_config())
    text = gpt.generate(model, PROMPT, 5)
    _, loss = model(text[:, :-1], text[:, 1:])
    loss.backward()
    assert model.token_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_stream_is_generate_token_by_token(sampling, use_cache):
    model, generator = noisy_gpt(tiny_config()), torch.Generator()
    tokens = list(gpt.stream(model, PROMPT, 12, use_cache, generator.manual_seed(7), **sampling))
    text = gpt.generate(model, PROMPT, 12, **sampling, use_cache=use_cache, generator=generator.manual_seed(7))
    assert torch.equal(torch.cat(tokens, dim=1), text[:, 3:])
    assert {token.shape for token in tokens} == {(2, 1)}
    assert torch.equal(gpt.generate(model, PROMPT, 0), PROMPT)


def test_generate_hands_all_sampling_parameters_on():
    model = noisy_gpt(tiny_config(block_size=24))
    for sampling in ({"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.7}):
        text = gpt.generate(model, PROMPT, 20, **sampling, generator=torch.Generator().manual_seed(3))
        generator, by_hand = torch.Generator().manual_seed(3), PROMPT
        for _ in range(20):
            probs = gpt.next_token_probabilities(model(by_hand)[0][:, -1], **sampling)
            by_hand = torch.cat((by_hand, torch.multinomial(probs, 1, generator=generator)), dim=1)
        assert torch.equal(text, by_hand)


def test_a_completion_is_the_prompt_and_what_its_seed_draws_after_it():
    model, tokenizer = noisy_gpt(tiny_config(dropout=0.5)).train(), gpt.CharTokenizer("abcdefghijk")
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(texts))                           # what is random outside does not matter
        texts.append(gpt.complete(model, tokenizer, "bad", 30, seed, temperature=0.8))
        assert texts[-1].startswith("bad") and len(texts[-1]) == 33
    assert texts[0] == texts[1] != texts[2]
    idx = torch.tensor([tokenizer.encode("bad")])
    by_hand = gpt.generate(model, idx, 30, temperature=0.8, generator=torch.Generator().manual_seed(1))
    assert tokenizer.decode(by_hand[0].tolist()) == texts[0]


@pytest.mark.parametrize("sampling, words", [
    ({"temperature": -1.0}, "temperature .* not -1.0"), ({"temperature": 1e-31}, "at least 1e-30 .* 1e-31"),
    ({"temperature": float("nan")}, "temperature .* nan"), ({"temperature": float("inf")}, "temperature .* not inf"),
    ({"top_k": 0}, "top_k .* at least 1, not 0"), ({"top_k": -1}, "top_k .* at least 1, not -1"),
    ({"top_p": 0.0}, "top_p .* not 0.0"), ({"top_p": 1.5}, "top_p .* not 1.5"),
    ({"top_p": float("nan")}, "top_p .* nan"), ({"top_p": -0.1}, "top_p .* not -0.1"),
])
@pytest.mark.parametrize("model", [gpt.GPT(tiny_config()), gpt.BigramLanguageModel(11)])
def test_sampling_parameters_that_make_no_sense_are_named(model, sampling, words):
    with pytest.raises(ValueError, match=words):
        gpt.generate(model, PROMPT, 5, **sampling)
