"""The exercises: holes made from the real files, checks that tell right from wrong, and why."""

import multiprocessing
import re
from pathlib import Path

import pytest
import rebuild

PATHS = {file: f"my_{file}.py" for file in dict.fromkeys(e.file for e in rebuild.EXERCISES)}
BY_NAME = {e.name: e for e in rebuild.EXERCISES}

SOLUTIONS = {
    "beam_search": '''
    sums = torch.zeros(1, 1)                                        # (texts, 1)
    for _ in range(max_new_tokens):
        logits, _ = model(idx[:, -model.block_size:])               # (texts, T, V)
        sums = sums + F.log_softmax(logits[:, -1], dim=-1)          # (texts, V)
        V, best = sums.shape[1], sums.flatten().topk(min(width, sums.numel()))
        texts, token = best.indices // V, best.indices % V          # (width,) each
        idx, sums = torch.cat((idx[texts], token[:, None]), dim=1), best.values[:, None]
    return idx[:1]''',
    "Linear8bit.__init__": '''
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        whole = (linear.weight.detach() / scale.clamp(min=1e-30)).round()
        self.register_buffer("weight", whole.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias)'''}

WRONG_BEYOND = [
    ("beam_search", "idx[:1]", "idx[:1, -max_new_tokens:]", "only the new tokens came out"),
    ("beam_search", "topk(min(width, sums.numel()))", "topk(1)", "it is greedy at any width"),
    ("beam_search", "idx[:1]", "idx[-1:]", "a text was returned that is not the most probable"),
    ("beam_search", "F.log_softmax(logits[:, -1], dim=-1)", "logits[:, -1]", "logits are summed"),
    ("beam_search", "log_softmax", "softmax", "probabilities are summed"),
    ("beam_search", "min(width, sums.numel())", "width", "my.py, line"),
    ("beam_search", "idx[:, -model.block_size:]", "idx", "my.py, line"),
    ("Linear8bit.__init__", ".to(torch.int8)", "", "the weights must be int8"),
    ("Linear8bit.__init__", "dim=1, keepdim=True", "", "there must be one scale for each row"),
    ("Linear8bit.__init__", 'self.register_buffer("scale",', "self.scale = (", "weight and scale"),
    ("Linear8bit.__init__", ".round()", "", "a weight is off by more than half a step"),
    ("Linear8bit.__init__", "linear.bias", "None", "it does not compute what the Linear does"),
]

ALTERNATIVES = {        # other right answers
    "average_by_loop": """
    return torch.stack([x[:, :t].mean(1) for t in range(1, x.shape[1] + 1)], 1)""",
    "average_by_matrix": """
    T = x.shape[1]
    weights = torch.tensor([[(s <= t) / (t + 1) for s in range(T)] for t in range(T)])
    return {"result": torch.einsum("ts,bsc->btc", weights, x)}""",
    "get_batch": """
    generator = torch.Generator().manual_seed(7 * step_seed(step, config) + 1)
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
    "CausalSelfAttention.forward": """
        q, k, v = (part.unflatten(2, (self.config.n_head, -1)).transpose(1, 2)
                   for part in self.qkv(x).chunk(3, dim=2))
        if self.config.position == "rotary":
            q, k = rotate(q, positions, self.config), rotate(k, positions, self.config)
        if cache is not None:
            k, v = cache.add(self, k, v)
        scores = q @ k.mT / math.sqrt(q.shape[3])
        if x.shape[1] > 1:
            scores = scores + torch.full(scores.shape[2:], -math.inf).triu(1)
        shares = F.dropout(scores.softmax(3), self.config.dropout, self.training)
        return self.proj((shares @ v).transpose(1, 2).flatten(2))""",
    "next_token_loss": "return -logits.log_softmax(2).gather(2, targets[:, :, None]).mean()",
    "count_pairs": """
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.int64)
    for a, b in zip(tokens.tolist(), tokens[1:].tolist()):
        counts[a, b] += 1
    return counts""",
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
    was_training = model.training
    model.eval()
    total = 0.0
    for i in range(0, len(data) - 1, model.block_size):
        x = data[i:i + model.block_size + 1].long()[None]
        total += model(x[:, :-1], x[:, 1:])[1].item() * (x.shape[1] - 1)
    model.train(was_training)
    return total / (len(data) - 1)""",
    "Cache.add": """
        if layer in self.layers and self.length:
            check(k.shape[2] == 1, "one at a time")
            old_k, old_v = self.layers[layer]
            k, v = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
        self.layers[layer] = k, v
        return k, v""",
    "join_pair": """
    new, i = [], 0
    while i < len(ids):
        joins = tuple(ids[i:i + 2]) == pair
        new.append(new_id if joins else ids[i])
        i += 2 if joins else 1
    return new""",
}


def answers(file, pairs={}, bodies={}):
    """A file of a learner who has solved everything, with some texts of it replaced."""
    lines = rebuild.source_of(file).split("\n")
    for e in (e for e in reversed(rebuild.EXERCISES) if e.file == file):
        node = rebuild.find(rebuild.source_of(file), e.name)
        body = slice(rebuild.body_of(node)[0].lineno - 1, node.end_lineno)
        text = bodies.get(e.name) or SOLUTIONS.get(e.name) or "\n".join(lines[body])
        if not text.startswith((" ", "\n")):
            text = 4 * " " + text
        for old, new in zip(pairs.get(e.name, ())[::2], pairs.get(e.name, ())[1::2]):
            assert old in text, f"{e.name} has no {old!r} any more"
            text = text.replace(old, new)
        lines[body] = text.split("\n")
    return "\n".join(lines)


def verdict(name, source, path="my.py"):
    return rebuild.judge(BY_NAME[name].number, source, path)[0]


def alone(name, source):
    """The part of a source that holds one function, or its class: quicker to read than all."""
    owner = name.split(".")[0]
    return next(part for part in source.split("\n\n\n")
                if re.search(rf"^(class|def) {owner}\b", part, re.MULTILINE))


def printed(capsys):
    """({number: state}, the last line) of what a run has printed, which fits into 80 columns."""
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.split("\n"))
    text = re.sub(r"\n {20,}", " ", text)              # long states take several lines
    states = dict(re.findall(r"^ *(\d+)  \S+ +(.+)$", text, re.MULTILINE))
    return {int(number): state for number, state in states.items()}, text.strip().split("\n")[-1]


def written(folder, **sources):
    """Write the learner's files: those that are given, else with holes."""
    for file, path in PATHS.items():
        text = sources.get(file) or rebuild.with_holes(file)
        (folder / path).write_text(text, encoding="utf-8")


HOLE = r"""^ +# Exercise (\d+): .*\n(?: +# .*\n)* +raise NotImplementedError\("exercise \1"\)\n"""


@pytest.mark.parametrize("file", PATHS)
def test_a_hole_takes_the_place_of_a_whole_body_and_of_nothing_else(file):
    source, holes = rebuild.source_of(file), rebuild.with_holes(file)
    mine = [e for e in rebuild.EXERCISES if e.file == file]
    assert re.findall(HOLE, holes, re.MULTILINE) == [str(e.number) for e in mine]
    lines, bodies = source.split("\n"), set()
    for e in mine:
        node, hole = rebuild.find(source, e.name), rebuild.find(holes, e.name)
        assert node, f"{file}.py has no {e.name} any more"
        assert rebuild.ast.get_docstring(node) == rebuild.ast.get_docstring(hole)
        assert len(rebuild.body_of(hole)) == 1
        first = node.body[0].end_lineno if rebuild.ast.get_docstring(node) else node.lineno
        body = range(first, node.end_lineno)
        bodies.update(body)
        length = sum(not lines[i].strip().startswith("#") for i in body)
        assert length <= 16, f"{e.name} has {length} lines: too much for an exercise"
    kept = "\n".join(line for i, line in enumerate(lines) if i not in bodies)
    assert re.sub(HOLE, "", holes, flags=re.MULTILINE).split("\n", 1)[1] == kept


def test_the_first_run_writes_files_and_no_run_writes_over_them(in_tmp, capsys):
    for _ in range(2):
        assert rebuild.main([]) == 1
        states, last = printed(capsys)
        assert states == {e.number: "not yet" for e in rebuild.EXERCISES}
        assert last.startswith(f"0 of {len(states)} are done; next is exercise 1, my_attention_toy")
        path, number = last[:-1].split()[-3::2]
        line = Path(path).read_text(encoding="utf-8").split("\n")[int(number) - 1]
        assert line == "def average_by_loop(x):"
        for path in PATHS.values():
            with open(path, "a") as file:
                file.write("# mine\n")
    assert all(Path(path).read_text(encoding="utf-8").endswith("# mine\n# mine\n")
               for path in PATHS.values())


def test_with_the_real_bodies_all_are_done(command):
    written(command.folder, **{file: answers(file) for file in PATHS})
    done = command("tests/rebuild.py")
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert len(re.findall(r"^ *\d+  \S+ +done$", done.stdout, re.MULTILINE)) == len(BY_NAME)
    assert done.stdout.endswith(f"All {len(BY_NAME)} are done. You have written a GPT: "
                                f"python my_gpt.py\n")


TURNS = max(len(e.mistakes) for e in rebuild.EXERCISES)


@pytest.mark.parametrize("turn", range(TURNS))
def test_each_mistake_is_named_and_touches_no_other_exercise(turn):
    wrong = {e.name: e.mistakes[turn] for e in rebuild.EXERCISES if turn < len(e.mistakes)}
    pairs = {name: mistake[1:] for name, mistake in wrong.items()}
    sources = {file: answers(file, pairs) for file in PATHS}
    for e in rebuild.EXERCISES:
        if e.name in wrong:
            assert verdict(e.name, alone(e.name, sources[e.file])) == f"wrong: {wrong[e.name][0]}"
        elif turn == TURNS - 1:             # with nearly all of them right
            assert verdict(e.name, sources[e.file]) == "done"


def test_each_exercise_knows_two_mistakes_or_more():
    for e in rebuild.EXERCISES:
        sentences = {sentence for sentence, *_ in e.mistakes}
        sentences |= {words for name, _, _, words in WRONG_BEYOND if name == e.name}
        assert len(sentences) >= 2


def test_two_mistakes_at_once_are_both_named():
    first, second = (mistake for mistake in BY_NAME["one_head"].mistakes
                     if mistake[0].startswith(("there is no mask", "the scores are not")))
    source = alone("one_head", answers("gpt", {"one_head": first[1:] + second[1:]}))
    assert verdict("one_head", source) == f"wrong: {first[0]}. And: {second[0]}"


def test_a_mistake_that_explains_the_first_wrong_trial_is_named_with_perhaps():
    body = """
    probs, tokens = F.softmax(logits / (temperature or 1e-3), dim=-1).sort(descending=True)
    probs[:, top_k or 99:] = 0
    if temperature == 0:
        probs[:, 1:] = 0
    if top_p is not None:
        probs[probs.cumsum(dim=-1) >= top_p] = 0            # before the rest sums to 1 again
    probs = probs / probs.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, tokens, probs)"""
    source = answers("gpt", bodies={"next_token_probabilities": body})
    assert verdict("next_token_probabilities", source) == (
        "wrong: perhaps top_p cuts the token that crosses p; that one stays (it would explain "
        "input 6, not all others)")


@pytest.mark.parametrize("name, old, new, words", WRONG_BEYOND)
def test_mistakes_beyond_the_file_are_named(name, old, new, words):
    source = answers("gpt", {name: (old, new)})
    state = verdict(name, alone(name, source))
    assert state.startswith(f"wrong: {words}"), state


def test_other_ways_to_do_it_are_right():
    sources = {file: answers(file, bodies=ALTERNATIVES) for file in PATHS}
    for name in ALTERNATIVES:
        assert verdict(name, alone(name, sources[BY_NAME[name].file])) == "done", name


def test_what_is_wrong_in_no_usual_way_is_shown():
    source = answers("gpt", bodies={
        "one_head": "return torch.zeros(1, 2)",
        "split": "n = len(text) // 2\n    if n > 9:\n        return text[:n], text[n:]",
        "write": "print(idx[0, 0] * 0 + 77)\n    return half(idx)",
        "training_step": "pass",
        "get_batch": "data = data",
        "CharTokenizer.decode": """
        if not all(0 <= i < self.vocab_size for i in ids):
            raise ValueError("no such id")
        return "".join(self.characters[i] for i in ids)""",
        "next_token_loss": "return logits.mT.view(-1).mean()",
        "learning_rate_at": "step = step",
        "stream_tokens": "yield idx[:1, :1] + 1",
        "Cache.add": "        self.layers[layer] = k, v",
        "BigramLanguageModel.forward": "        return self.table(idx),"})
    source = source.replace("class GPT(", "def half(x):\n    return x[:, :y]\n\n\nclass GPT(")
    state, details = rebuild.judge(BY_NAME["one_head"].number, source, "my_gpt.py")
    assert state == "wrong: float32 (1, 2) came out, not float32 (1, 3, 2)"
    assert details.startswith("Input 1 of 3:\n    x:\n        float32 (1, 3, 4)\n        tensor(")
    assert "What came out:\n    float32 (1, 2)\n    tensor([[0., 0.]])\nWhat was" in details
    assert verdict("split", source) == "wrong: None came out, not ('012345678', '9')"
    for name in ("training_step", "get_batch", "learning_rate_at", "Cache.add"):
        assert verdict(name, source) == "wrong: None came out; is there a return?"
    assert "mixes up the numbers" in verdict("next_token_loss", source)
    state = verdict("CharTokenizer.decode", source)
    assert state.endswith("ValueError: no such id; raise UserError, by check(...)")
    assert verdict("stream_tokens", source).startswith("wrong: the new tokens: int64 (1, 1) came")
    line = source.split("\n").index("    return x[:, :y]") + 1         # and half is found
    state, details = rebuild.judge(BY_NAME["write"].number, source, "my_gpt.py")
    assert state == f"wrong: my_gpt.py, line {line}: NameError: name 'y' is not defined"
    assert "What it printed:\n    tensor(77)\n" in details
    assert verdict("BigramLanguageModel.forward", source) == ("wrong: part 2: None came out, not "
                                                              "float32 ()")


def test_endless_loops_and_ends_of_the_program_end_in_a_line(in_tmp, capsys, monkeypatch):
    monkeypatch.setattr(rebuild, "SECONDS", 1)
    context = multiprocessing.get_context("fork")           # quicker: torch is there already
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    written(in_tmp, attention_toy=answers("attention_toy", bodies={
        "average_by_loop": "while True:\n        x = x + 1",
        "average_by_matrix": "return x.no_such_thing()",
        "average_by_softmax": "raise NotImplementedError('later')",
        "attention_weights": "raise NotImplementedError('later')",
        "self_attention": "import os\n    os._exit(0)"}))
    source = Path("my_attention_toy.py").read_text(encoding="utf-8")
    line = source.split("\n").index("    return x.no_such_thing()") + 1
    path = Path("my_gpt.py")
    path.write_text(path.read_text(encoding="utf-8").replace("def split(", "def splat("),
                    encoding="utf-8")
    assert rebuild.main([]) == 1
    states, last = printed(capsys)
    assert states.pop(1) == "wrong: no end after 1 seconds; is there an endless loop?"
    assert states.pop(2) == (f"wrong: my_attention_toy.py, line {line}: AttributeError: "
                             f"'Tensor' object has no attribute 'no_such_thing'")
    assert states.pop(5) == "wrong: it ends the whole program"
    assert states.pop(BY_NAME["split"].number) == "wrong: there is no split in my_gpt.py any more"
    assert set(states.values()) == {"not yet"}
    assert last.startswith("0 of")


def test_several_exercises_can_be_chosen(in_tmp, capsys):
    written(in_tmp)
    assert rebuild.main(["9", "3"]) == 1
    states, last = printed(capsys)
    assert states == {3: "not yet", 9: "not yet"} and last.startswith("This is exercise 9, my_gpt")


def test_a_file_that_python_cannot_read_is_one_line(in_tmp, capsys):
    written(in_tmp, bigram="\nimport math\ndef f(:\n")
    assert rebuild.main([]) == 1
    assert capsys.readouterr().out == ("my_bigram.py, line 3: invalid syntax; Python cannot read "
                                       "the file.\n")


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
    start, end = rebuild.span(holes, "Block.forward")
    path.write_text(holes[:start] + holes[end:], encoding="utf-8")
    with pytest.raises(SystemExit, match="no Block.forward any more"):      # and not that of GPT
        rebuild.main(["--start-over", str(BY_NAME["Block.forward"].number)])


@pytest.mark.parametrize("arguments", [["0"], ["99"], ["one_head"], ["--start-over"]])
def test_exercises_that_there_are_not(arguments, in_tmp):
    with pytest.raises(SystemExit) as end:
        rebuild.main(arguments)
    assert end.value.code == 2 and not list(in_tmp.iterdir())
