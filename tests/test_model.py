"""Chapters 4 to 7, and the head start: the bigram, attention, positions and the GPT."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import counted_bigram, noisy_gpt, tiny_config

import gpt

POSITIONS = ("learned", "sinusoidal", "rotary")


def test_one_head_is_the_textbook_sum():
    torch.manual_seed(0)
    x, *matrices = torch.randn(2, 5, 6), *torch.randn(3, 6, 4)          # B=2, T=5, C=6, hs=4
    result = gpt.one_head(x, *matrices)
    assert result.shape == (2, 5, 4)
    for b in range(2):
        q, k, v = ([[sum(x[b, t, i].item() * w[i, j].item() for i in range(6)) for j in range(4)]
                    for t in range(5)] for w in matrices)
        for t in range(5):
            scores = [math.exp(sum(map(float.__mul__, q[t], k[s])) / 2) for s in range(t + 1)]
            for j in range(4):
                mean = sum(score * v[s][j] for s, score in enumerate(scores)) / sum(scores)
                assert result[b, t, j].item() == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("n_head", [1, 2, 4])
def test_all_heads_at_once_are_several_heads(n_head):
    torch.manual_seed(0)
    attention = gpt.CausalSelfAttention(tiny_config(n_head=n_head, bias=False, position="learned"))
    x = torch.randn(3, 6, 16)
    w_q, w_k, w_v = attention.qkv.weight.T.split(16, dim=1)             # (C, 3C) -> three of (C, C)
    heads = zip(*(w.split(16 // n_head, dim=1) for w in (w_q, w_k, w_v)))   # nh triples of (C, hs)
    by_hand = gpt.several_heads(x, heads, attention.proj.weight.T)
    assert by_hand.shape == (3, 6, 16) and by_hand.abs().mean() > 0.05
    torch.testing.assert_close(attention(x, torch.arange(6)), by_hand, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_fused_attention_is_the_formula_written_out(position):
    torch.manual_seed(0)
    config = tiny_config(n_head=4, position=position, bias=True)
    attention, x, positions = gpt.CausalSelfAttention(config), torch.randn(3, 6, 16), torch.arange(2, 8)
    heads = []
    for h in range(4):
        rows = [torch.arange(4 * h, 4 * h + 4) + 16 * part for part in range(3)]
        q, k, v = (F.linear(x, attention.qkv.weight[own], attention.qkv.bias[own]) for own in rows)
        if position == "rotary":
            q, k = (gpt.apply_rope(z, positions, config) for z in (q, k))
        scores = q @ k.mT / math.sqrt(4) + torch.full((6, 6), -math.inf).triu(1)
        heads.append(scores.softmax(-1) @ v)
    by_hand = attention.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x, positions), by_hand, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_later_token_never_changes_an_earlier_logit(position):
    model = noisy_gpt(tiny_config(position=position))
    idx = torch.randint(11, (2, 8))
    logits, _ = model(idx)
    for t in range(8):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % 11
        other, _ = model(changed)
        assert torch.equal(other[:, :t], logits[:, :t])
        for later in range(t, 8):                                       # but it changes all others
            assert not torch.allclose(other[:, later], logits[:, later])


def test_the_sequences_of_a_batch_never_mix():
    model, idx = noisy_gpt(tiny_config()), torch.randint(11, (3, 8))
    together, _ = model(idx)
    for b in range(3):
        torch.testing.assert_close(model(idx[b:b + 1])[0][0], together[b], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_the_order_of_the_tokens_matters(position):
    model = noisy_gpt(tiny_config(position=position))
    a, b = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 1, 3, 4]])
    assert not torch.allclose(model(a)[0][0, -1], model(b)[0][0, -1], atol=1e-3)


def test_sinusoids_have_the_documented_frequencies():
    table = gpt.sinusoids(tiny_config(block_size=64, n_embd=16))
    assert table.shape == (64, 16)
    slowest = 2 * math.pi / 640                                         # once round in ten contexts
    for position in (0, 1, 17, 63):
        for clock in range(8):
            angle = position * slowest ** (clock / 7)
            assert table[position, clock].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 8 + clock].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_rope_turns_each_pair_of_numbers_by_the_angle_of_its_clock():
    torch.manual_seed(0)
    config = tiny_config(block_size=32)
    x, positions = torch.randn(2, 3, 5, 8), torch.tensor([0, 1, 9, 30, 31])
    angles = gpt.position_angles(positions, 4, config)
    turned = gpt.apply_rope(x, positions, config)
    for t in range(5):
        for clock in range(4):
            assert angles[t, clock].item() == pytest.approx(
                positions[t].item() * (2 * math.pi / 320) ** (clock / 3), rel=1e-5)
            before, after = (torch.complex(z[:, :, t, clock], z[:, :, t, 4 + clock])
                             for z in (x, turned))
            turn = torch.exp(1j * angles[t, clock])
            torch.testing.assert_close(after, before * turn, atol=1e-4, rtol=0)


def test_rotary_scores_depend_on_the_distance_alone():
    torch.manual_seed(0)
    config = tiny_config(block_size=32)
    q, k = torch.randn(2, 1, 8)

    def score(i, j):
        i, j = torch.tensor([i]), torch.tensor([j])
        return (gpt.apply_rope(q, i, config) * gpt.apply_rope(k, j, config)).sum().item()

    assert score(5, 2) == pytest.approx(score(31, 28), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-3)
    assert score(5, 2) != pytest.approx(score(2, 5), abs=1e-3)
    assert gpt.apply_rope(q, torch.tensor([9]), config).norm().item() == pytest.approx(q.norm().item())


def test_rotary_attention_is_the_same_wherever_the_text_stands():
    torch.manual_seed(0)
    attention = gpt.CausalSelfAttention(tiny_config(position="rotary", block_size=64))
    x, positions = torch.randn(2, 8, 16), torch.arange(8)
    here = attention(x, positions)
    torch.testing.assert_close(attention(x, positions + 40), here, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(attention(x, 2 * positions), here, atol=1e-3)


def test_learned_positions_begin_as_sinusoids_and_only_they_are_trained():
    models = {position: gpt.GPT(tiny_config(position=position)) for position in POSITIONS}
    learned, frozen = (models[p].position_embedding.weight for p in ("learned", "sinusoidal"))
    assert torch.equal(learned, frozen)
    ratio = learned / gpt.sinusoids(tiny_config())
    assert torch.allclose(ratio[1:], ratio[1, 0].expand_as(ratio[1:]), rtol=1e-4)
    assert learned.requires_grad and not frozen.requires_grad
    counts = [gpt.count_parameters(models[position]) for position in POSITIONS]
    assert counts[0] - 8 * 16 == counts[1] == counts[2]


def test_parameter_count_is_that_of_the_formula():
    V, T, C, L = 65, 64, 128, 3
    block = 2 * 2 * C + (C * 3 * C + 3 * C) + (C * C + C) + (C * 4 * C + 4 * C) + (4 * C * C + C)
    assert gpt.count_parameters(gpt.GPT(gpt.Config())) == V * C + T * C + L * block + 2 * C + C * V


def gpt2(parameters, idx, n_head):
    """GPT-2 (Radford et al. 2019) from plain operations, as in its paper and its published parameters."""

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        return x * parameters[name + ".weight"] + parameters[name + ".bias"]

    def linear(x, name):
        return x @ parameters[name + ".weight"].T + parameters[name + ".bias"]

    T = idx.shape[1]
    x = parameters["token_embedding.weight"][idx] + parameters["position_embedding.weight"][:T]
    for layer in range(2):
        block = f"blocks.{layer}."
        q, k, v = linear(norm(x, block + "norm_1"), block + "attention.qkv").chunk(3, dim=-1)
        outputs = []
        for qh, kh, vh in zip(q.chunk(n_head, -1), k.chunk(n_head, -1), v.chunk(n_head, -1)):
            scores = qh @ kh.mT / math.sqrt(qh.shape[-1]) + torch.full((T, T), -1e9).triu(1)
            scores = (scores - scores.amax(-1, keepdim=True)).exp()
            scores = scores / scores.sum(-1, keepdim=True)
            outputs.append(scores @ vh)
        x = x + linear(torch.cat(outputs, -1), block + "attention.proj")
        h = linear(norm(x, block + "norm_2"), block + "feed_forward.0")
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, block + "feed_forward.2")
    return norm(x, "norm") @ parameters["token_embedding.weight"].T


def test_gpt_computes_what_gpt2_computes():
    model = noisy_gpt(tiny_config(bias=True, position="learned", tie_weights=True))
    idx = torch.randint(11, (3, 8))
    by_hand = gpt2(model.state_dict(), idx, n_head=2)
    torch.testing.assert_close(model(idx)[0], by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", POSITIONS)
def test_tied_weights_are_one_table(position):
    free, tied = (gpt.GPT(tiny_config(tie_weights=tie, position=position)) for tie in (False, True))
    assert tied.lm_head.weight is tied.token_embedding.weight
    assert not torch.equal(free.lm_head.weight, free.token_embedding.weight)
    assert gpt.count_parameters(free) - gpt.count_parameters(tied) == 11 * 16


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_the_first_parameters_are_as_described(position, bias):
    torch.manual_seed(0)
    model = gpt.GPT(gpt.Config(n_layer=2, n_embd=256, position=position, bias=bias))
    for name, p in model.named_parameters():
        if name.endswith(("proj.weight", "feed_forward.2.weight")) or name.endswith("bias"):
            assert not p.any(), name                                    # blocks add nothing
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            std = 0.02 if "embedding" in name or "lm_head" in name else 1 / math.sqrt(p.shape[1])
            assert p.std().item() == pytest.approx(std, rel=0.15), name
    x = model.token_embedding(idx := torch.randint(65, (2, 64)))
    if position != "rotary":
        x = x + model.position_embedding.weight
    torch.testing.assert_close(model(idx)[0], model.lm_head(model.norm(x)))


def first_loss(use_head_start, **settings):
    """The loss of a new GPT on random tokens, as a multiple of ln(V), the loss of knowing nothing."""
    torch.manual_seed(0)
    config = gpt.Config(**settings)
    model, idx = gpt.GPT(config), torch.randint(config.vocab_size, (8, config.block_size + 1))
    if use_head_start:
        gpt.head_start(model)
    return model(idx[:, :-1], idx[:, 1:])[1].item() / math.log(config.vocab_size)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("use_head_start", [False, True])
def test_the_first_loss_is_near_that_of_knowing_nothing(position, tie_weights, bias, use_head_start):
    settings = dict(position=position, tie_weights=tie_weights, bias=bias)
    sizes = dict(n_layer=6, n_embd=96, n_head=6, vocab_size=300, block_size=32) if bias else {}
    assert first_loss(use_head_start, **settings, **sizes) == pytest.approx(1, abs=0.05)


def test_the_loss_is_the_mean_cross_entropy_in_nats():
    model = noisy_gpt(tiny_config())
    x, y = torch.randint(11, (2, 3, 8))
    logits, loss = model(x, y)
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    losses = [-math.log(probs[b, t, y[b, t]].item()) for b in range(3) for t in range(8)]
    assert loss.item() == pytest.approx(sum(losses) / 24, abs=1e-4)
    assert logits.shape == (3, 8, 11) and model(x)[1] is None


@pytest.mark.parametrize("module", [
    "dropout", "blocks.1.attention", "blocks.1.attention.dropout", "blocks.1.feed_forward.3"])
@torch.no_grad()
def test_dropout_acts_at_each_of_its_places_in_training_and_only_then(module):
    """On the embeddings, on attention weights, and on what each half of a block adds."""
    model, idx = noisy_gpt(tiny_config(dropout=0.5)), torch.randint(11, (1, 8))
    assert torch.equal(model(idx)[0], model(idx)[0])
    model.get_submodule(module).training = True                 # this module alone
    assert not torch.equal(model(idx)[0], model(idx)[0])


def test_more_tokens_than_the_context_are_refused():
    model, cache = gpt.GPT(tiny_config()), gpt.KVCache(8)
    with pytest.raises(ValueError, match="9 tokens .* block_size=8"):
        model(torch.zeros(1, 9, dtype=torch.int64))
    model(torch.zeros(1, 8, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="9 tokens .* block_size=8"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)


def test_a_filled_cache_takes_one_token_at_a_time():
    model, cache = gpt.GPT(tiny_config()), gpt.KVCache(8)
    model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="a filled cache takes one token at a time, not 2"):
        model(torch.zeros(1, 2, dtype=torch.int64), cache=cache)
    model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    assert cache.length == 4


@pytest.mark.parametrize("position", POSITIONS)
def test_with_a_cache_only_the_last_logits_come_back_and_they_are_the_same(position):
    model, idx = noisy_gpt(tiny_config(position=position)), torch.randint(11, (2, 8))
    together, _ = model(idx)
    for first in range(1, 9):
        cache, end = gpt.KVCache(8), 0
        for part in idx.split([first] + [1] * (8 - first), dim=1):
            logits, loss = model(part, cache=cache)
            end += part.shape[1]
            assert logits.shape == (2, 1, 11) and loss is None and cache.length == end
            torch.testing.assert_close(logits[:, 0], together[:, end - 1], atol=1e-5, rtol=1e-5)


def test_the_bigram_begins_by_knowing_nothing():
    model = gpt.BigramLanguageModel(65)
    logits, loss = model(torch.randint(65, (4, 9)), torch.randint(65, (4, 9)))
    assert logits.shape == (4, 9, 65) and model(torch.randint(65, (4, 9)))[1] is None
    assert loss.item() == pytest.approx(math.log(65), abs=1e-5)


def test_no_bigram_has_a_lower_loss_than_the_frequencies_that_were_counted():
    tokens = torch.tensor([0, 1, 2, 0, 1, 0, 2, 0, 1])
    model = counted_bigram(tokens, 3)
    probs = F.softmax(model.table.weight, dim=-1)
    torch.testing.assert_close(probs, torch.tensor([[0, 3 / 4, 1 / 4], [1 / 2, 0, 1 / 2], [1, 0, 0]]))
    _, loss = model(tokens[None, :-1], tokens[None, 1:])
    by_hand = -(3 * math.log(3 / 4) + math.log(1 / 4) + 2 * math.log(1 / 2)) / 8
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)
    loss.backward()
    torch.testing.assert_close(model.table.weight.grad, torch.zeros(3, 3), atol=1e-6, rtol=0)


LOOKING_BACK = [
    {"position": "learned"}, {"position": "sinusoidal"}, {"position": "rotary"},
    {"position": "learned", "bias": False}, {"position": "rotary", "tie_weights": True},
    {"position": "learned", "block_size": 256, "n_embd": 192}]


@pytest.mark.parametrize("settings", LOOKING_BACK)
def test_with_a_head_start_the_first_heads_look_back(settings):
    torch.manual_seed(0)
    config = gpt.Config(**settings)
    model = gpt.GPT(config).eval()
    gpt.head_start(model)
    T, nh, hs = config.block_size, config.n_head, config.n_embd // config.n_head
    attention, seen = model.blocks[0].attention, {}
    attention.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    model(torch.randint(65, (4, T)))
    q, k, _ = attention.qkv(seen["x"]).view(4, T, 3, nh, hs).permute(2, 0, 3, 1, 4)
    if config.position == "rotary":
        q, k = (gpt.apply_rope(z, torch.arange(T), config) for z in (q, k))
    scores = (q @ k.mT / hs**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    weights = scores.softmax(-1).mean(0)                                # (nh, T, T)
    for h in range(nh):
        by_distance = torch.stack([weights[h].diagonal(-distance).mean() for distance in range(T)])
        assert by_distance.argmax() == h + 1 and by_distance[h + 1] > 0.5


def test_a_head_start_keeps_what_is_tied_and_what_is_trained():
    for settings in ({}, {"tie_weights": True}, {"position": "sinusoidal"}, {"bias": False},
                     {"position": "rotary", "tie_weights": True}, {"position": "rotary", "bias": False}):
        model = gpt.GPT(tiny_config(**settings))
        before = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
        gpt.head_start(model)
        assert {name: (id(p), p.requires_grad) for name, p in model.named_parameters()} == before
    tied = gpt.GPT(tiny_config(tie_weights=True, position="learned"))   # tokens would blur the positions
    before = {name: p.clone() for name, p in tied.named_parameters()}
    gpt.head_start(tied)
    assert all(torch.equal(p, before[name]) for name, p in tied.named_parameters())
