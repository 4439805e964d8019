"""Chapters 4 to 7 and what the appendix plugs in: the bigram, attention, positions, the GPT, the head start."""

import copy
import io
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import counted_bigram, noisy_gpt, tiny_config

import gpt

POSITIONS = ("learned", "sinusoidal", "rotary")


def rotated(x):
    """Each pair (i, i + n) of x (..., T, 2n) as a complex number, turned by the angle of its clock."""
    T, n = x.shape[-2], x.shape[-1] // 2
    angles = gpt.clock_angles(torch.arange(T), n, 8)                    # 8: the context of tiny_config
    turned = torch.complex(*x.split(n, dim=-1)) * torch.exp(1j * angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


# The bigram


def test_the_bigram_begins_by_knowing_nothing():
    model, idx = gpt.BigramLanguageModel(65), torch.randint(65, (4, 9))
    logits, loss = model(idx, idx)
    assert logits.shape == (4, 9, 65) and model(idx)[1] is None
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


# Attention


def test_attention_is_the_textbook_sum():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 4).double()                          # B=2, T=5, hs=4
    result = gpt.attention(q, k, v)
    assert result.shape == (2, 5, 4)
    for b, t in itertools.product(range(2), range(5)):
        scores = [math.exp(sum(x * y for x, y in zip(q[b, t].tolist(), k[b, s].tolist())) / 2) for s in range(t + 1)]
        for j in range(4):
            mean = sum(score * v[b, s, j].item() for s, score in enumerate(scores)) / sum(scores)
            assert result[b, t, j].item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("n_head", [1, 2, 4])
@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_the_fast_way_is_attention_head_by_head(position, n_head):
    layer = noisy_gpt(tiny_config(n_head=n_head, position=position)).blocks[0].attn
    x, hs, heads = torch.randn(3, 6, 16), 16 // n_head, []
    for h in range(n_head):
        rows = [torch.arange(h * hs, (h + 1) * hs) + 16 * part for part in range(3)]
        q, k, v = (F.linear(x, layer.qkv.weight[own], layer.qkv.bias[own]) for own in rows)
        if position == "rotary":
            q, k = rotated(q), rotated(k)
        heads.append(gpt.attention(q, k, v))
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, dim=-1)), atol=1e-5, rtol=1e-5)


# Positions


def test_sinusoids_have_the_documented_frequencies():
    table = gpt.sinusoids(tiny_config(block_size=64, n_embd=16))
    assert table.shape == (64, 16)
    slowest = 2 * math.pi / 640                                         # once round in ten contexts
    for position, clock in itertools.product((0, 1, 17, 63), range(8)):
        angle = position * slowest ** (clock / 7)
        assert table[position, clock].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, 8 + clock].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    layer = noisy_gpt(tiny_config(position="rotary", block_size=64, n_head=1)).blocks[0].attn
    q, k = torch.randn(2, 1, 16)

    def score(i, j):
        return (layer.turn(q, i) * layer.turn(k, j)).sum().item()

    assert score(5, 2) == pytest.approx(score(63, 60), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-3) and score(5, 2) != pytest.approx(score(2, 5), abs=1e-3)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_later_token_never_changes_an_earlier_logit_and_changes_all_others(position):
    model, idx = noisy_gpt(tiny_config(position=position)), torch.randint(11, (2, 8))
    logits, _ = model(idx)
    for t in range(8):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % 11
        other, _ = model(changed)
        assert torch.equal(other[:, :t], logits[:, :t])
        assert not any(torch.allclose(other[:, later], logits[:, later]) for later in range(t, 8))


@pytest.mark.parametrize("position", POSITIONS)
def test_the_order_of_the_tokens_matters_and_the_sequences_of_a_batch_never_mix(position):
    model, idx = noisy_gpt(tiny_config(position=position)), torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4], [1, 2, 3, 4]])
    logits, _ = model(idx)
    assert not torch.allclose(logits[0, -1], logits[1, -1], atol=1e-3) and torch.equal(logits[0], logits[2])
    torch.testing.assert_close(model(idx[1:2])[0][0], logits[1], atol=1e-5, rtol=1e-5)


# The GPT (that it computes what GPT-2 computes is checked in test_gpt2.py)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("head_start", [False, True])
def test_the_first_loss_is_near_that_of_knowing_nothing(position, head_start):
    torch.manual_seed(0)
    model = gpt.build_gpt(gpt.Options(position=position, head_start=head_start))
    idx = torch.randint(65, (8, 65))
    assert model(idx[:, :-1], idx[:, 1:])[1].item() == pytest.approx(math.log(65), abs=0.4)


def test_the_loss_is_the_mean_cross_entropy_in_nats():
    model = noisy_gpt(tiny_config())
    x, y = torch.randint(11, (2, 3, 8))
    logits, loss = model(x, y)
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    losses = [-math.log(probs[b, t, y[b, t]].item()) for b in range(3) for t in range(8)]
    assert loss.item() == pytest.approx(sum(losses) / 24, abs=1e-4)
    assert logits.shape == (3, 8, 11) and model(x)[1] is None


@pytest.mark.parametrize("place", ["embed", "attn", "mlp"])
@torch.no_grad()
def test_dropout_acts_at_each_of_its_places_in_training_and_only_then(place):
    """On the embeddings, and on what each half of a block adds."""
    model, idx = noisy_gpt(tiny_config(dropout=0.5, n_layer=1)), torch.randint(11, (1, 8))
    assert torch.equal(model(idx)[0], model(idx)[0])
    block = model.blocks[0]
    (model.dropout if place == "embed" else block.dropout).train()
    for half in {"attn": [block.mlp], "mlp": [block.attn]}.get(place, []):
        half.proj.weight.zero_()                                # so that the other half adds nothing
        half.proj.bias.zero_()
    assert not torch.equal(model(idx)[0], model(idx)[0])


def test_what_cannot_be_computed_is_named():
    with pytest.raises(ValueError, match="9 tokens .* block_size=8"):
        gpt.GPT(tiny_config())(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="n_embd=10 must be a multiple of n_head=4"):
        gpt.GPT(gpt.Config(n_embd=10))


# The head start


@pytest.mark.parametrize("settings", [
    *({"position": position} for position in POSITIONS), {"block_size": 256, "n_embd": 192, "n_head": 6}])
def test_with_a_head_start_the_first_heads_look_back(settings):
    torch.manual_seed(0)
    options = gpt.Options(head_start=True, **settings)
    model, T = gpt.build_gpt(options).eval(), options.block_size
    layer, seen = model.blocks[0].attn, {}
    layer.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    model(torch.randint(65, (4, T)))
    q, k, _ = (gpt.split_heads(z, options.n_head) for z in layer.qkv(seen["x"]).chunk(3, dim=-1))
    if options.position == "rotary":
        q, k = layer.turn(q), layer.turn(k)
    weights = gpt.attention(q, k, torch.eye(T).expand(*q.shape[:2], T, T)).mean(0)           # (nh, T, T)
    for h in range(options.n_head):
        by_distance = torch.stack([weights[h].diagonal(-distance).mean() for distance in range(T)])
        assert by_distance.argmax() == h + 1 and by_distance[h + 1] > 0.5


def test_what_check_options_lets_pass_can_be_built():
    idx = torch.randint(11, (2, 8))
    for C, nh, position, head_start in itertools.product((1, 2, 3, 4, 6), (1, 2, 3), POSITIONS, (False, True)):
        options = tiny_config(n_embd=C, n_head=nh, position=position, head_start=head_start, n_layer=1)
        try:
            gpt.check_options(options)
        except gpt.UserError:
            continue
        assert gpt.build_gpt(options)(idx, idx)[1].isfinite()


# What a Python user does to models


@pytest.mark.parametrize("position", POSITIONS)
def test_a_model_survives_what_is_done_to_objects(position):
    model, idx = noisy_gpt(tiny_config(position=position)), torch.randint(11, (2, 8))
    logits, _ = model(idx)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = gpt.build_gpt(model.config)
    loaded.load_state_dict(torch.load(file))
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(other(idx)[0], logits)


def test_a_model_can_be_exported():
    model, idx = noisy_gpt(tiny_config(position="rotary")), torch.randint(11, (2, 8))
    assert torch.equal(torch.export.export(model, (idx,)).module()(idx)[0], model(idx)[0])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_may_have_other_number_formats(position, dtype, in_tmp):
    model, idx = noisy_gpt(tiny_config(position=position)), torch.randint(11, (2, 8))
    logits, other = model(idx)[0], copy.deepcopy(model).to(dtype)
    assert other(idx, idx)[0].dtype == dtype
    torch.testing.assert_close(other(idx)[0].float(), logits, atol=0.2, rtol=0.05)
    assert gpt.generate_cached(other, idx[:, :4], 9).shape == (2, 13)
    gpt.save_checkpoint("other.pt", other, gpt.CharTokenizer("abcdefghijk"))
    loaded, _ = gpt.load_checkpoint("other.pt")                         # in 32 bits
    for name, p in loaded.state_dict().items():
        assert torch.equal(p, other.state_dict()[name].float())


def test_parameters_that_could_not_be_loaded_are_not_saved(in_tmp):
    for lost in (math.nan, 1e300):                                      # a float32 ends at 3e38
        model = noisy_gpt(tiny_config()).double()
        model.ln_f.weight.data[3] = lost
        with pytest.raises(gpt.UserError, match="ln_f.weight"):
            gpt.save_checkpoint("model.pt", model, gpt.CharTokenizer("abcdefghijk"))
    assert not list(in_tmp.iterdir())
