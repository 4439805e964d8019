"""The exercises: holes made from the real files, checks that tell right from wrong, and why."""

import doctest
import io
import itertools
import multiprocessing
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import rebuild
import torch
import torch.nn.functional as F

PATHS = {file: f"my_{file}.py" for file in dict.fromkeys(e.file for e in rebuild.EXERCISES)}
BY_NAME = {e.name: e for e in rebuild.EXERCISES}
PREDICTIONS = [e for e in rebuild.EXERCISES if e.name.isupper()]
MINE = SimpleNamespace(**rebuild.names_of("gpt"))       # gpt.py with the extras

ALTERNATIVES = {        # other right answers
    "SHAPE_OF_A_SUM": "list((torch.ones(4, 1) + torch.ones(3)).shape)",
    "FIRST_LOSS": "4.17",
    "FIRST_MOVE": "1e-2",
    "times_table": "return torch.tensor([[i * j for i in range(1, n + 1)] for j in range(1, n + 1)])",
    "weighted_sum": "return weights @ x",
    "side_by_side": "return torch.cat(list(heads), dim=-1)",
    "pick": "return table.gather(1, ids[:, None])[:, 0]",
    "LinearByHand.__init__": """
        super().__init__()
        bound = (3 / C) ** 0.5
        self.weight = nn.Parameter(torch.empty(D, C).uniform_(-bound, bound))
        self.register_parameter("bias", nn.Parameter(torch.zeros(D)) if bias else None)""",
    "LinearByHand.forward": "        return F.linear(x, self.weight, self.bias)",
    "EmbeddingByHand.forward": """
        return F.one_hot(idx, len(self.weight)).float() @ self.weight""",
    "layer_norm_by_hand": "return F.layer_norm(x, gain.shape, gain, bias)",
    "gelu_by_hand": "return x * torch.distributions.Normal(0, 1).cdf(x)",
    "softmax_by_hand": "return logits.softmax(-1)",
    "cross_entropy_by_hand": """
    return -softmax_by_hand(logits).log().gather(1, targets[:, None]).mean()""",
    "gradient_by_hand": """
    table = table.clone().requires_grad_()
    F.cross_entropy(table[idx].flatten(0, 1), targets.flatten()).backward()
    return table.grad""",
    "average_by_loop": """
    return torch.stack([x[:, :t].mean(1) for t in range(1, x.shape[1] + 1)], 1)""",
    "average_by_matrix": """
    T = x.shape[1]
    weights = torch.tensor([[(s <= t) / (t + 1) for s in range(T)] for t in range(T)])
    return torch.einsum("ts,bsc->btc", weights, x)""",
    "causal_mask": "return torch.arange(T) > torch.arange(T)[:, None]",
    "get_batch": """
    if len(data) < config.block_size + 1:
        raise ValueError
    generator = torch.Generator().manual_seed(7 * (10**6 * config.seed + step) + 1)
    rows = []
    for _ in range(config.batch_size):
        i = int(torch.randint(0, len(data) - config.block_size, (), generator=generator))
        rows.append(data[i:i + config.block_size + 1].tolist())
    table = torch.tensor(rows)
    return table[:, :-1], table[:, 1:]""",
    "one_head": """
    T, hs = x.shape[1], w_key.shape[1]
    scores = torch.einsum("btc,bsc->bts", x @ w_query, x @ w_key) * hs ** -0.5
    return (scores - 1e9 * (1 - torch.ones(T, T).tril())).softmax(2) @ x @ w_value""",
    "several_heads": """
    parts = projection.split(heads[0][0].shape[1])
    return sum(one_head(x, *matrices) @ part for matrices, part in zip(heads, parts))""",
    "position_angles": """
    factor = (math.pi / (5 * config.block_size)) ** (1 / max(1, n_clocks - 1))
    return torch.stack([positions * factor**i for i in range(n_clocks)], dim=1)""",
    "CausalSelfAttention.forward": """
        q, k, v = (part.unflatten(2, (self.config.n_head, -1)).transpose(1, 2)
                   for part in self.qkv(x).chunk(3, dim=2))
        if self.config.position == "rotary":
            q, k = apply_rope(q, positions, self.config), apply_rope(k, positions, self.config)
        if cache is not None:
            k, v = cache.add(self, k, v)
        scores = q @ k.mT / math.sqrt(q.shape[3])
        if x.shape[1] > 1:
            scores = scores + torch.full(scores.shape[2:], -math.inf).triu(1)
        weights = F.dropout(scores.softmax(3), self.config.dropout, self.training)
        return self.dropout(self.proj((weights @ v).transpose(1, 2).flatten(2)))""",
    "feed_forward_by_hand": "return F.linear(gelu_by_hand(F.linear(x, w_1.T, b_1)), w_2.T, b_2)",
    "Block.__init__": """
        super().__init__()
        sizes = (config.n_embd, 4 * config.n_embd)
        widen, narrow = (nn.Linear(*s, bias=config.bias) for s in (sizes, sizes[::-1]))
        self.feed_forward = nn.Sequential(widen, nn.GELU("tanh"), narrow, nn.Dropout(config.dropout))
        self.norm_2, self.norm_1 = (nn.LayerNorm(sizes[0], bias=config.bias) for _ in range(2))
        self.attention = CausalSelfAttention(config)""",
    "GPT.__init__": """
        super().__init__()
        self.config = config
        self.block_size = config.block_size
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, False)
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList()
        for _ in range(config.n_layer):
            self.blocks.append(Block(config))
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.tie_weights:
            self.lm_head.weight = self.token_embedding.weight
        if config.position in ("learned", "sinusoidal"):
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        if config.position == "sinusoidal":
            self.position_embedding.weight.requires_grad = False
        self.init_parameters()""",
    "GPT.init_parameters": """
        for name, p in self.named_parameters():
            if name.endswith(("qkv.weight", "feed_forward.0.weight")):
                p.normal_(std=p.shape[1] ** -0.5)
            elif name in ("lm_head.weight", "token_embedding.weight"):
                p.normal_(std=0.02)
            elif "norm" not in name:
                p.zero_()
            if name == "position_embedding.weight":
                p.copy_(sinusoids(self.config) * 0.03)""",
    "next_token_loss": "return -logits.log_softmax(2).gather(2, targets[:, :, None]).mean()",
    "count_pairs": """
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.int64)
    for a, b in zip(tokens.tolist(), tokens[1:].tolist()):
        counts[a, b] += 1
    return counts""",
    "adamw_by_hand": """
    w = w * (1 - learning_rate * weight_decay)
    m, v = m + (g - m) / 10, v.lerp(g * g, 0.01)
    root = v.sqrt() / (1 - 0.99**t) ** 0.5 + 1e-8
    return w.addcdiv(m, root, value=-learning_rate / (1 - 0.9**t)), m, v""",
    "training_step": """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, config)
    _, loss = model(*get_batch(data, step, config))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    return loss.detach()""",
    "evaluate": """
    if not data[1:].numel():
        raise ValueError("nothing to predict")
    was_training = model.training
    model.eval()
    total = 0.0
    for i in range(0, len(data) - 1, model.block_size):
        x = data[i:i + model.block_size + 1].long()[None]
        total += model(x[:, :-1], x[:, 1:])[1].item() * (x.shape[1] - 1)
    model.train(was_training)
    return total / (len(data) - 1)""",
    "KVCache.add": """
        if layer in self.layers and self.length:
            if k.shape[2] > 1:
                raise ValueError("one at a time")
            old_k, old_v = self.layers[layer]
            k, v = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
        self.layers[layer] = k, v
        return k, v""",
    "merge": """
    new, i = [], 0
    while i < len(parts):
        joins = tuple(parts[i:i + 2]) == pair
        new.append(parts[i] + parts[i + 1] if joins else parts[i])
        i += 2 if joins else 1
    return new""",
    "train_bpe_by_hand": "return train_bpe(text, vocab_size)",
    "Linear8bit.__init__": """
        super().__init__()
        largest = linear.weight.detach().abs().max(dim=1, keepdim=True).values
        self.register_buffer("scale", torch.where(largest > 0, largest / 127, 1.0))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.clone())
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().char())""",
}
CALLS = ("LinearByHand.forward", "layer_norm_by_hand", "softmax_by_hand", "gradient_by_hand",
         "train_bpe_by_hand")       # of these, those that call what they are to write


def answers(file, wrong={}, bodies={}):
    """A file of a learner who has solved everything, but with some mistakes or other bodies."""
    source = rebuild.source_of(file)
    lines = source.split("\n")
    for e in sorted((e for e in rebuild.EXERCISES if e.file == file),
                    key=lambda e: -rebuild.find(source, e.name).lineno):
        node = rebuild.find(source, e.name)
        if e.name in wrong:
            mistaken = rebuild.by_mistake(e, [wrong[e.name]])
            body = (rebuild.ast.unparse(mistaken.value) if e in PREDICTIONS else
                    "\n".join(map(rebuild.ast.unparse, mistaken.body)))
        elif e.name in bodies:
            body = textwrap.dedent(bodies[e.name]).strip("\n")
        else:
            continue
        if e in PREDICTIONS:
            lines[node.lineno - 1:node.end_lineno] = [f"{e.name} = {body}"]
        else:
            first = rebuild.body_of(node)[0]
            lines[first.lineno - 1:node.end_lineno] = textwrap.indent(
                body, first.col_offset * " ").split("\n")
    return "\n".join(lines)


def verdict(name, source, path="my.py"):
    state, details = rebuild.judge(BY_NAME[name].number, source, path)
    assert not [line for line in details.split("\n") if len(line) > 79], details
    return state


def alone(e, *mistakes):
    """One real function, or its class, with mistakes: quicker to read than a whole file."""
    return rebuild.ast.unparse(rebuild.in_its_class(e, rebuild.by_mistake(e, mistakes)))


def printed(capsys):
    """({number: state}, all lines) of what a run has printed, which fits into 80 columns."""
    lines = capsys.readouterr().out.split("\n")
    assert not [line for line in lines if len(line) > 79 and str(rebuild.ROOT) not in line]
    text = re.sub(r"(not yet|done|wrong)\n {7}", r"\1: ", "\n".join(lines))
    text = re.sub(r"\n {7}(?=\S)", " ", text)               # what is said stands below
    states = dict(re.findall(r"^(?:->)? *(\d+)  \S+ +my\S+(?: line \d+)? +(.+)$", text, re.MULTILINE))
    return {int(number): state for number, state in states.items()}, text.strip().split("\n")


def written(folder, **sources):
    """Write the learner's files: those that are given, else with holes."""
    for file, path in PATHS.items():
        text = sources.get(file) or rebuild.with_holes(file)
        (folder / path).write_text(text, encoding="utf-8")


@pytest.fixture
def forked(monkeypatch):
    """Children that check are quicker by fork: torch is there already."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


# The holes


HOLE = (r"^ *# Exercise (\d+)(?:, a prediction)?: .*\n(?: *# .*\n)*"
        r' *(?:raise NotImplementedError\("exercise \1"\)|\w+ = \.\.\.)\n')


@pytest.mark.parametrize("file", PATHS)
def test_a_hole_takes_the_place_of_a_whole_body_and_of_nothing_else(file):
    source, holes = rebuild.source_of(file), rebuild.with_holes(file)
    mine = [e for e in rebuild.EXERCISES if e.file == file]
    assert holes.split("\n", 2)[1] == f"#     {rebuild.this_program()}"
    found = re.findall(HOLE, holes, re.MULTILINE)
    assert sorted(found, key=int) == [str(e.number) for e in mine]
    lines, bodies = source.split("\n"), set()
    for e in mine:
        node, hole = rebuild.find(source, e.name), rebuild.find(holes, e.name)
        assert node, f"{file}.py has no {e.name} any more"
        if e in PREDICTIONS:
            bodies.update(range(node.lineno - 1, node.end_lineno))
            continue
        assert rebuild.ast.get_docstring(node) == rebuild.ast.get_docstring(hole)
        assert len(rebuild.body_of(hole)) == 1
        first = node.body[0].end_lineno if rebuild.ast.get_docstring(node) else node.lineno
        body = range(first, node.end_lineno)
        bodies.update(body)
        length = sum(not lines[i].strip().startswith("#") for i in body)
        assert length <= 20, f"{e.name} has {length} lines: too much for an exercise"
    shows = [node for node in rebuild.parsed(source).body if file == "attention_toy"
             and str(rebuild.name_of(node)).startswith("show_")]        # they would give answers away
    for node in shows:
        bodies.update(range(rebuild.body_of(node)[0].lineno - 1, node.end_lineno))
    left_out = "    ...  # left out here\n"
    assert holes.count(left_out) == len(shows)
    holes = holes.replace(left_out, "")
    kept = "\n".join(line for i, line in enumerate(lines) if i not in bodies)
    assert re.sub(HOLE, "", holes, flags=re.MULTILINE).split("\n", 2)[2] == kept


@pytest.mark.parametrize("file", PATHS)
def test_in_a_file_the_exercises_of_a_phase_stand_together_or_in_order(file):
    source = rebuild.source_of(file)
    mine = [e for e in rebuild.EXERCISES if e.file == file]
    for a, b in itertools.pairwise(mine):
        assert rebuild.find(source, a.name).lineno < rebuild.find(source, b.name).lineno, (a.name, b.name)


def test_phases_are_not_empty_and_each_exercise_knows_two_mistakes_or_more():
    assert [e.phase for e in rebuild.EXERCISES] == sorted(e.phase for e in rebuild.EXERCISES)
    assert {e.phase for e in rebuild.EXERCISES} == set(range(1, len(rebuild.PHASES) + 1))
    assert len(BY_NAME) == len(rebuild.EXERCISES)
    for e in rebuild.EXERCISES:
        few = 1 if e in PREDICTIONS else 2
        assert len({sentence for sentence, *_ in e.mistakes}) >= few, e.name
        assert bool(e.why) == (e in PREDICTIONS)


# The extras, against what PyTorch and gpt.py have


def test_the_extras_that_are_layers_equal_those_of_torch():
    for bias in (True, False):
        ours, real = MINE.LinearByHand(3, 5, bias), torch.nn.Linear(3, 5, bias)
        real.load_state_dict(ours.state_dict())
        x = torch.randn(2, 4, 3)
        assert torch.allclose(ours(x), real(x), atol=1e-6)
    ours, real = MINE.EmbeddingByHand(7, 3), torch.nn.Embedding(7, 3)
    real.load_state_dict(ours.state_dict())
    idx = torch.randint(7, (2, 4))
    assert torch.equal(ours(idx), real(idx))


def test_the_extras_that_are_formulas_equal_those_of_torch():
    x, gain, bias = torch.randn(2, 4, 6), torch.randn(6), torch.randn(6)
    assert torch.allclose(MINE.layer_norm_by_hand(x, gain, bias),
                          F.layer_norm(x, (6,), gain, bias), atol=1e-6)
    assert torch.allclose(MINE.gelu_by_hand(x), F.gelu(x), atol=1e-6)
    assert torch.allclose(MINE.softmax_by_hand(100 * x), F.softmax(100 * x, dim=-1))
    targets = torch.randint(6, (4,))
    assert torch.allclose(MINE.cross_entropy_by_hand(x[0], targets), F.cross_entropy(x[0], targets))
    assert torch.equal(MINE.pick(x[0], targets), x[0].gather(1, targets[:, None])[:, 0])
    assert torch.allclose(MINE.weighted_sum(x[0, :, 0], x[0]), x[0, :, 0] @ x[0], atol=1e-6)
    assert torch.equal(MINE.side_by_side(x), torch.cat((x[0], x[1]), dim=1))
    assert torch.equal(MINE.causal_mask(4), torch.arange(4)[:, None] < torch.arange(4))


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_adamw_by_hand_equals_that_of_torch_for_three_steps(weight_decay):
    w = torch.nn.Parameter(torch.randn(3, 4))
    ours, m, v = w.detach().clone(), torch.zeros(3, 4), torch.zeros(3, 4)
    optimizer = torch.optim.AdamW([w], lr=0.1, betas=(0.9, 0.99), weight_decay=weight_decay)
    for t in (1, 2, 3):
        w.grad = torch.randn(3, 4)
        ours, m, v = MINE.adamw_by_hand(ours, w.grad, m, v, t, 0.1, weight_decay)
        optimizer.step()
        assert torch.allclose(ours, w, atol=1e-6)


def test_feed_forward_and_subwords_by_hand_equal_those_of_gpt():
    C = 6
    one, two = torch.nn.Linear(C, 4 * C), torch.nn.Linear(4 * C, C)
    x = torch.randn(2, 3, C)
    ours = MINE.feed_forward_by_hand(x, one.weight.T, one.bias, two.weight.T, two.bias)
    assert torch.allclose(ours, two(F.gelu(one(x))), atol=1e-6)
    text = "the cat sat on the mat, the cat sat, and so did the hat\n" * 3
    assert MINE.train_bpe_by_hand(text, 275) == MINE.train_bpe(text, 275)


def test_what_is_beyond_does_what_it_promises():
    model = rebuild.noisy(rebuild.noisy(MINE.GPT(rebuild.small(vocab_size=5))))
    idx = torch.randint(5, (1, 2))
    new = torch.cartesian_prod(*[torch.arange(5)] * 3)                          # (V^n, n)
    texts = torch.cat((idx.expand(len(new), -1), new), dim=1)                   # (V^n, T + n)
    logits = model(texts[:, :-1])[0][:, -3:]                                    # (V^n, n, V)
    best = logits.log_softmax(-1).gather(-1, new[:, :, None]).sum(dim=(1, 2)).argmax()
    assert torch.equal(MINE.beam_search(model, idx, 3, 125), texts[best:best + 1])
    assert torch.equal(MINE.beam_search(model, idx, 4, 1), MINE.generate(model, idx, 4, temperature=0))
    linear = torch.nn.Linear(6, 4)
    layer, x = MINE.Linear8bit(linear), torch.randn(2, 6)
    half_a_step = linear.weight.abs().amax(dim=1, keepdim=True) / 127 / 2
    assert ((layer.weight * layer.scale - linear.weight).abs() <= 1.01 * half_a_step).all()
    assert torch.allclose(layer(x), linear(x), atol=0.05)


def test_the_examples_of_the_extras():
    runner = doctest.DocTestRunner()
    for file, _, source in rebuild.EXTRAS:
        for node in rebuild.ast.parse(source).body:
            text = rebuild.ast.get_docstring(node) if hasattr(node, "name") else ""
            runner.run(doctest.DocTestParser().get_doctest(
                text, dict(rebuild.names_of(file)), rebuild.name_of(node), None, 0))
    assert runner.summarize() == (0, 6)


def test_the_real_functions_end_in_no_errors_but_those_that_are_wanted():
    for e in rebuild.EXERCISES:
        for outcome in rebuild.outcomes_of(e):
            if isinstance(outcome.result, rebuild.Raised):
                assert outcome.result.name == "ValueError", f"{e.name}: {outcome.result}"


# The checks


def test_with_the_real_bodies_all_are_done(command):
    written(command.folder, **{file: answers(file) for file in PATHS})
    done = command("tests/rebuild.py")
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert len(re.findall(r"^Phase \d+, .* to \d+, done\)$", done.stdout, re.MULTILINE)) == len(rebuild.PHASES)
    assert done.stdout.endswith(f"All {len(BY_NAME)} are done. You have written a GPT: "
                                f"python my_gpt.py\n")


TURNS = max(len(e.mistakes) for e in rebuild.EXERCISES)


@pytest.mark.parametrize("turn", range(TURNS))
def test_each_mistake_is_named_and_touches_no_other_exercise(turn):
    wrong = {e.name: e.mistakes[turn] for e in rebuild.EXERCISES if turn < len(e.mistakes)}
    for name, mistake in wrong.items():
        assert verdict(name, alone(BY_NAME[name], mistake)) == f"wrong: {mistake[0]}"
    if turn == TURNS - 1:                   # with nearly all of them right
        sources = {file: answers(file, wrong) for file in PATHS}
        for e in rebuild.EXERCISES:
            state = f"wrong: {wrong[e.name][0]}" if e.name in wrong else f"done: {e.why}" if e.why else "done"
            assert verdict(e.name, sources[e.file]) == state


def test_two_mistakes_at_once_are_both_named():
    first, second = (mistake for mistake in BY_NAME["one_head"].mistakes
                     if mistake[0].startswith(("there is no mask", "the scores are not")))
    source = alone(BY_NAME["one_head"], first, second)
    assert verdict("one_head", source) == f"wrong: {first[0]}. And: {second[0]}"


def test_a_mistake_that_explains_the_first_wrong_trial_is_named_with_perhaps():
    body = "numbers = torch.arange(n).clamp(max=3)\nreturn numbers[:, None] * numbers"
    assert verdict("times_table", answers("gpt", bodies={"times_table": body})) == (
        "wrong: perhaps the numbers must begin with 1; arange(n) begins with 0 (it would explain "
        "input 1, not all others)")


def test_other_ways_to_do_it_are_right():
    sources = {file: answers(file, bodies=ALTERNATIVES) for file in PATHS}
    for name in ALTERNATIVES:
        state = verdict(name, sources[BY_NAME[name].file])
        assert state.startswith("done"), (name, state)
        assert ("you were to write" in state) == (name in CALLS), (name, state)


def test_what_is_wrong_in_no_usual_way_is_shown():
    source = answers("gpt", bodies={
        "one_head": "return torch.zeros(1, 2)",
        "split": "n = len(text) // 2\nif n > 9:\n    return text[:n], text[n:]",
        "generate_plainly": "print(idx[0, 0] * 0 + 77)\nreturn half(idx)",
        "training_step": "pass",
        "get_batch": "data = data",
        "evaluate": "len(data) > 1 or [][0]\n" + rebuild.real_body(BY_NAME["evaluate"]),
        "next_token_loss": "return logits.mT.view(-1).mean()",
        "learning_rate_at": "step = step",
        "stream": "yield idx[:1, :1] + 1",
        "KVCache.add": "self.layers[layer] = k, v",
        "Block.__init__": "super().__init__()\nself.norm_1 = nn.LayerNorm(config.n_embd)",
        "BigramLanguageModel.forward": "return self.table(idx),"})
    source = source.replace("class GPT(", "def half(x):\n    return x[:, :y]\n\n\nclass GPT(")
    state, details = rebuild.judge(BY_NAME["one_head"].number, source, "my_gpt.py")
    assert state == "wrong: float32 (1, 2) came out, not float32 (1, 3, 2)"
    assert details.startswith("Input 1 of 3:\n    x:\n        float32 (1, 3, 4)\n        tensor(")
    assert "What came out:\n    float32 (1, 2)\n    tensor([[0., 0.]])\nWhat was" in details
    assert verdict("split", source) == "wrong: None came out, not ('012345678', '9')"
    for name in ("training_step", "get_batch", "learning_rate_at", "KVCache.add"):
        assert verdict(name, source) == "wrong: None came out; is there a return?"
    assert "it mixes up the numbers" in verdict("next_token_loss", source)
    assert verdict("evaluate", source).endswith(
        "IndexError: list index out of range; it must be a ValueError")
    assert verdict("stream", source).startswith("wrong: the new tokens: int64 (1, 1) came")
    line = source.split("\n").index("    return x[:, :y]") + 1         # and half is found
    state, details = rebuild.judge(BY_NAME["generate_plainly"].number, source, "my_gpt.py")
    assert state == f"wrong: my_gpt.py, line {line}: NameError: name 'y' is not defined"
    assert "What it printed:\n    tensor(77)\n" in details
    assert verdict("BigramLanguageModel.forward", source) == "wrong: part 2: it is missing"
    assert verdict("Block.__init__", source) == (
        "wrong: its parameters: attention.qkv.weight: it is missing")


@pytest.mark.parametrize("name, body, words", [
    ("times_table", "return torch.arange(1.0, n + 1)[:, None] * torch.arange(1.0, n + 1)",
     "the numbers are right, but float32, not int64; torch.arange(1, n + 1) makes integers"),
    ("layer_norm_by_hand", "return (x - 1)^2", ": in Python a power is **"),
    ("layer_norm_by_hand", "return math.sqrt(x)", "math.sqrt and the like are for numbers"),
    ("layer_norm_by_hand", "return torch.sqrt(x.shape[-1])", "math.sqrt and the like are for numbers"),
    ("softmax_by_hand", "return (logits - 1000).sqrt()", "nan came out at [0, 0], not 0."),
    ("gelu_by_hand", "import bdb; raise bdb.BdbQuit", "nothing can be typed in while this runs"),
    ("pick", "return table[table]", "indices must be integers, and a mask must be bool"),
    ("causal_mask", "return torch.ones(T, T).triu(diagonal=1)", "the mask must be bool; dtype=torch.bool"),
    ("average_by_softmax", "return causal_mask(len(x))", "causal_mask is in another file"),
    ("self_attention", "return x @ x", "in a @ b, the last dimension of a must be"),
    ("average_by_loop", "return x.masked_fill(x, 0)", "indices must be integers, and a mask must be bool"),
    ("pick", "return table / 1.0001", "float32 (3, 3) came out, not float32 (3,)"),
    ("weighted_sum", "return 1.0005 * (weights @ x)", " came out at ["),
    ("LinearByHand.forward", "return x @ self.weight.T + (self.bias if self.bias else 0)",
     "a tensor of several numbers is neither true nor false"),
    ("pick", "raise NotImplementedError('exercise 6')\nreturn table", "is still there; remove it")])
def test_what_is_wrong_gets_advice_where_python_says_little(name, body, words):
    e = BY_NAME[name]
    node = rebuild.copy.copy(rebuild.find(rebuild.source_of(e.file), name))
    node.body = rebuild.ast.parse(body).body
    assert words in verdict(name, rebuild.ast.unparse(rebuild.in_its_class(e, node)))


def test_an_error_in_a_part_that_is_not_the_learners_names_none_of_his_lines():
    source = answers("gpt", bodies={"Block.__init__": "super().__init__()"})
    e = BY_NAME["Block.__init__"]
    outcomes = list(rebuild.outcomes(e, rebuild.by_learner(e, source, "my.py"), "my.py"))
    assert str(outcomes[1].result).startswith("the check ends with AttributeError: 'Block' object")


def test_a_prediction_that_is_wrong_keeps_the_answer_a_secret():
    for e in PREDICTIONS:
        for answer in ("(9, 9)", "97", "'a'", "[]"):
            state, details = rebuild.judge(e.number, f"{e.name} = {answer}", "my.py")
            assert state.startswith("wrong: not ") and state.endswith("pen and paper") or (
                "wanted is a tuple" in state and answer[0] != "("), state
            assert not details
    state, _ = rebuild.judge(PREDICTIONS[0].number, f"{PREDICTIONS[0].name} = n", "my.py")
    assert state == "wrong: my.py, line 1: NameError: name 'n' is not defined"


# The command


def test_the_first_run_writes_files_and_no_run_writes_over_them(in_tmp, capsys):
    for _ in range(2):
        assert rebuild.main([]) == 1
        states, lines = printed(capsys)
        assert states == {e.number: "not yet" for e in rebuild.EXERCISES if e.phase == 1}
        titles = [line for line in lines if line.startswith("Phase ")]
        for i, ((title, ability), line) in enumerate(zip(rebuild.PHASES, titles, strict=True), start=1):
            assert line.startswith(f"Phase {i}, {title}: {ability} (")
            assert line.endswith(", not yet)") == (i > 1)
        assert [line for line in lines if line.startswith("->")] == [lines[lines.index(titles[0]) + 1]]
        summary = next(line for line in lines if " are done; " in line)
        assert summary.startswith(f"0 of {len(BY_NAME)} are done; next is exercise 1, my_gpt")
        path, number = summary[:-1].split()[-3::2]
        line = Path(path).read_text(encoding="utf-8").split("\n")[int(number) - 1]
        assert line == "SHAPE_OF_A_SUM = ..."
        for path in PATHS.values():
            with open(path, "a") as file:
                file.write("# mine\n")
    assert all(Path(path).read_text(encoding="utf-8").endswith("# mine\n# mine\n")
               for path in PATHS.values())


def test_endless_loops_and_ends_of_the_program_end_in_a_line(in_tmp, capsys, monkeypatch, forked):
    monkeypatch.setattr(rebuild, "SECONDS", 1)
    source = answers("gpt", bodies={
        "times_table": "while True:\n    n = n + 1",
        "weighted_sum": "return x.no_such_thing()",
        "side_by_side": "import os\nos._exit(0)",
        "pick": "raise NotImplementedError('later')"})
    source = source.replace("def split(", "def splat(")
    written(in_tmp, gpt=source)
    numbers = {name: BY_NAME[name].number
               for name in ("times_table", "weighted_sum", "side_by_side", "pick", "split")}
    assert rebuild.main(list(map(str, numbers.values()))) == 1
    states, _ = printed(capsys)
    line = source.split("\n").index("    return x.no_such_thing()") + 1
    later = source.split("\n").index("    raise NotImplementedError('later')") + 1
    assert states == {
        numbers["times_table"]: "wrong: no end after 1 seconds; is there an endless loop?",
        numbers["weighted_sum"]: f"wrong: my_gpt.py, line {line}: AttributeError: 'Tensor' object "
                                 f"has no attribute 'no_such_thing'",
        numbers["side_by_side"]: "wrong: it ends the whole program",
        numbers["pick"]: f"wrong: my_gpt.py, line {later}: NotImplementedError: later",
        numbers["split"]: "wrong: there is no split in my_gpt.py any more"}


def test_what_comes_next_is_what_is_open_after_the_last_that_was_worked_on(in_tmp, capsys, forked):
    holes = rebuild.with_holes("gpt")
    for first, fourth, following, wrong in (
            ("(4, 3)", "...", "2", ""), ("(4,)", "...", "1", "wrong: 1; "), ("...", "(1, 2)", "5", ""),
            ("(4,)", "(1,\\\n 2)", "5", "wrong: 1; "), ("3", "(1, 4)", "4", "wrong: 1, 4; ")):
        written(in_tmp, gpt=holes.replace("SHAPE_OF_A_SUM = ...", f"SHAPE_OF_A_SUM = {first}").replace(
            "FIRST_ROW = ...", f"FIRST_ROW = {fourth}"))
        assert rebuild.main([]) == 1
        states, lines = printed(capsys)
        assert len(states) == 6 and states[1] == (
            "done" if first == "(4, 3)" else "not yet" if first == "..." else states[1])
        assert [line.split()[1] for line in lines if line.startswith("->")] == [following]
        assert f"{wrong}next is exercise {following}, my_gpt" in " ".join(lines)


def test_what_is_done_is_told_why_and_what_comes_next(in_tmp, capsys, forked):
    written(in_tmp, gpt=answers("gpt", bodies={"pick": "print('pick' * 30)\n" + ALTERNATIVES["pick"]}))
    for name, said in (("shape_of_a_sum", f"done: {rebuild.EXERCISES[0].why}"), ("6", "done")):
        assert rebuild.main([name]) == 0
        states, lines = printed(capsys)
        assert list(states.values()) == [said]
        assert (lines[0] == "What it printed:") == (name == "6")
        assert lines[-2].startswith("Phase 1 has no holes left. Now you can combine")
        assert lines[-1].startswith("Next is exercise 25, gradient_by_hand: my_bigram.py line ")
    written(in_tmp, gpt=rebuild.with_holes("gpt").replace("SHAPE_OF_A_SUM = ...", "SHAPE_OF_A_SUM = (4, 3)"),
            bigram="def f(:")
    assert rebuild.main(["1"]) == 0
    assert printed(capsys)[1][-1].startswith("Next is exercise 2, times_table: my_gpt.py line ")


def test_several_exercises_can_be_chosen(in_tmp, capsys):
    written(in_tmp)
    assert rebuild.main(["9", "3"]) == 1
    states, lines = printed(capsys)
    assert states == {number: f"not yet: {rebuild.EXERCISES[number - 1].task}" for number in (3, 9)}


def test_a_solution_is_the_real_function_and_no_file_is_written(in_tmp, capsys):
    for name, last in (("one_head", "    return weights @ v"), ("generate_plainly", "    return idx"),
                       ("GPT.forward", "        return logits, loss"), ("FIRST_ROW", "FIRST_ROW = (1, 2)"),
                       ("gelu_by_hand", "    return x * (1 + torch.erf(x / math.sqrt(2))) / 2")):
        assert not rebuild.main(["--solution", str(BY_NAME[name].number)])
        text = capsys.readouterr().out.rstrip("\n")
        assert text in rebuild.source_of("gpt") and text.split("\n")[-1].startswith(last)
    assert not list(in_tmp.iterdir())


@pytest.mark.parametrize("answer", ["y", "Yes", "n", "", None])
def test_on_a_terminal_a_solution_takes_one_confirmation(answer, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("" if answer is None else answer + "\n"))
    sys.stdin.isatty = sys.stdout.isatty = lambda: True
    assert not rebuild.main(["--solution", str(BY_NAME["pick"].number)])
    out = capsys.readouterr().out
    assert "Show it? [y/N]" in out
    assert ("return table[" in out) == (answer in ("y", "Yes"))


# Files and consoles of other kinds


def test_a_file_that_python_cannot_read_is_one_line(in_tmp, capsys):
    written(in_tmp, bigram="\nimport math\ndef f(:\n")
    assert rebuild.main([]) == 1
    assert capsys.readouterr().out == ("my_bigram.py, line 3: invalid syntax; Python cannot read "
                                       "the file.\n")


@pytest.mark.parametrize("content", [
    "# für\n".encode("cp1252"), "x = 1\n".encode("utf-16"), "x = 1\n".encode("utf-16-le"), b"x = 1\0\n",
    b"# -*- coding: klingon -*-\n"])
def test_a_file_that_is_no_text_in_utf_8_is_one_line(content, in_tmp, capsys):
    written(in_tmp)
    Path("my_bigram.py").write_bytes(content)
    for arguments in ([], ["--start-over", str(BY_NAME["count_pairs"].number)]):
        assert rebuild.main(arguments) in (1, 2)
        out = capsys.readouterr().out
        assert out.startswith(("my_bigram.py", "there is no count_pairs")) and out.count("\n") == 1
        assert Path("my_bigram.py").read_bytes() == content


@pytest.mark.parametrize("encoding, first", [("utf-8-sig", ""), ("cp1252", "# -*- coding: cp1252 -*-\n")])
def test_a_byte_order_mark_and_a_named_encoding_are_no_mistake(encoding, first, in_tmp, capsys, forked):
    text = first + answers("bigram").replace("\n", "\r\n") + "# Grüße\n"
    written(in_tmp)
    Path("my_bigram.py").write_bytes(text.encode(encoding))
    number = str(BY_NAME["count_pairs"].number)
    assert rebuild.main([number]) == 0
    assert rebuild.main(["--start-over", number, number]) == 1
    assert Path("my_bigram-1.py").read_bytes() == text.encode(encoding)
    assert "raise NotImplementedError" in Path("my_bigram.py").read_text(encoding="utf-8")


def test_no_console_is_too_small_for_what_is_printed(in_tmp, monkeypatch, forked):
    written(in_tmp, gpt=answers("gpt", bodies={"pick": "print('→')\nraise OSError('≠ 话 \\ud800')"}))
    console = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(console, encoding="cp1252"))
    assert rebuild.main([str(BY_NAME["pick"].number)]) == 1
    sys.stdout.flush()
    assert rb"OSError: \u2260 \u8bdd \ud800" in console.getvalue() and rb"\u2192" in console.getvalue()


def test_a_folder_in_place_of_a_file_is_one_line(in_tmp, capsys):
    written(in_tmp)
    Path("my_bigram.py").unlink()
    Path("my_bigram.py").mkdir()
    assert rebuild.main([]) == 2
    assert capsys.readouterr().out.count("\n") == 1


def test_to_start_over_saves_the_file_and_makes_one_hole(in_tmp, capsys):
    written(in_tmp)
    path, names = Path("my_gpt.py"), ("one_head", "GPT.forward", "Linear8bit.__init__")
    holes = path.read_text(encoding="utf-8")
    for i, name in enumerate(names, start=1):
        start, end = rebuild.span(holes, name)
        broken = holes[:start] + holes[start:end].split("\n")[0] + "\n        if :" + holes[end:]
        path.write_text(broken, encoding="utf-8")                   # not even Python
        number = str(BY_NAME[name].number)
        assert rebuild.main(["--start-over", number, number]) == 1
        assert path.read_text(encoding="utf-8") == holes
        assert Path(f"my_gpt-{i}.py").read_text(encoding="utf-8") == broken
        assert f"saved as my_gpt-{i}.py" in capsys.readouterr().out
    path.write_text(holes.replace("FIRST_ROW = ...", "FIRST_ROW = (1,\n    2"), encoding="utf-8")
    number = str(BY_NAME["FIRST_ROW"].number)
    assert rebuild.main(["--start-over", number, number]) == 1
    assert path.read_text(encoding="utf-8") == holes
    start, end = rebuild.span(holes, "Block.forward")
    path.write_text(holes[:start] + holes[end:], encoding="utf-8")
    capsys.readouterr()
    assert rebuild.main(["--start-over", str(BY_NAME["Block.forward"].number)]) == 2
    assert capsys.readouterr().out.startswith("there is no Block.forward any more")     # and not GPT's


@pytest.mark.parametrize("arguments", [["0"], ["99"], ["no_head"], ["--start-over"],
                                       ["--solution", "0"]])
def test_exercises_that_there_are_not(arguments, in_tmp):
    with pytest.raises(SystemExit) as end:
        rebuild.main(arguments)
    assert end.value.code == 2 and not list(in_tmp.iterdir())
