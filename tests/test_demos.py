"""demos.py: what its checks find, and whether they hold; and what benchmark.py measures."""

import json
import re

import pytest
import torch
from conftest import main, tiny_config

import benchmark
import demos
import gpt

# The demos


@pytest.mark.parametrize("name, steps", [("count", 300), ("random", 30)])        # count as its user runs it
def test_a_demo_holds_and_can_be_sampled_from(in_tmp, name, steps):
    code, output, error = main(name, "--steps", steps, program=demos.main)
    findings = output.split("\nThe check:\n\n")[1]
    assert (code, error) == (0, "")
    assert findings.startswith("held: ") and "FAILED" not in findings and findings.count("held: ") in (1, 5)
    assert max(map(len, findings.splitlines())) < 80
    if name == "count":
        assert "4,000 of 4,000 characters are right, 100%" in " ".join(findings.split())
        model, _ = gpt.load_checkpoint("data/count.pt")
        assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in demos.__doc__
        assert gpt.load_text_of(gpt.read_checkpoint("data/count.pt")) == ("count-text", demos.DEMOS["count"].text())
        assert main("sample", "count", "--prompt", "3 ", "--tokens", 6, "--temperature", 0)[1] == "3 4 5 6 \n"


def test_a_demo_that_fails_says_so(in_tmp):
    code, output, _ = main("hello", "--steps", 2, program=demos.main)
    assert code == 1 and "FAILED: from each of the 12 positions" in output


@pytest.mark.parametrize("arguments, words", [
    ([], "demo"), (["goodbye"], "'goodbye'"), (["hello", "--code", "."], "--code is for coder"),
    (["coder", "--code", "nowhere"], "no folder nowhere"), (["coder", "--code", "."], "no Python files in ."),
    (["hello", "--steps", "0"], "max_steps must be at least 1"), (["hello", "--heat", "2"], "--heat")])
def test_a_mistake_is_one_line(in_tmp, arguments, words):
    code, output, error = main(*arguments, program=demos.main)
    assert (code, output) == (2, "")
    assert error.startswith("demos.py: ") and words in error and error.count("\n") == 1


def test_the_help_says_what_each_demo_teaches(in_tmp):
    code, output, _ = main("--help", program=demos.main)
    assert code == 0 and all(f"\n{name:<8}" in output for name in ("demo", *demos.DEMOS))


def untrained(name, text):
    """(model, bigram, tokenizer, text) of a demo, before anything was learned."""
    demo = demos.DEMOS[name]
    config = gpt.replace(demo.config, vocab_size=300)
    tokenizer = demo.tokenizer(text, config)
    config = gpt.replace(config, vocab_size=tokenizer.vocab_size)
    torch.manual_seed(0)
    return gpt.build_gpt(config), gpt.BigramLanguageModel(config.vocab_size), tokenizer, text


def test_agreement_is_asked_about_pairs_that_never_came(in_tmp):
    text = demos.agree_text()
    model, bigram, tokenizer, _ = untrained("agree", text)
    train_text, val_text = gpt.train_val_split(text)
    for line in text.split("\n")[1:-2]:                                 # each word is one token, and numbers agree
        assert [tokenizer.decode([i]) for i in tokenizer.encode(line)] == re.findall(r"(?:^| )\w+", line)
        subject = re.match(f"({'|'.join(demos.OPENINGS)}) the (\\w+) ", line)[2]
        assert (" are " in line) is subject.endswith("s") is not (" is " in line)

    def pairs(text):
        found = (re.findall(f"({'|'.join(demos.NOUNS)})s? ", line + " ") for line in text.split("\n")[1:-1])
        return {frozenset(nouns) for nouns in found if len(nouns) == 2}

    assert len(pairs(train_text)) > 40 and len(pairs(val_text)) > 10 and not pairs(train_text) & pairs(val_text)
    model.config = gpt.replace(model.config, max_steps=3)               # for the average, too
    findings = demos.check_agreement(model, bigram, tokenizer, text)
    assert [held for held, _ in findings] == [False, True]              # it knows nothing yet


@pytest.fixture
def code(in_tmp, monkeypatch):
    """A folder with two files to learn from, and others that are none of the user's, for a coder that is in a hurry."""
    monkeypatch.setattr(demos, "FUNCTION_TOKENS", 30)
    monkeypatch.setattr(demos, "PYTHON_FILES", "json/*.py")
    monkeypatch.setattr(demos, "LEAST", 1000)
    monkeypatch.setattr(demos, "ATTEMPTS", 3)
    monkeypatch.setattr(demos, "STEPS_FOR_FOLDER", 150)
    for path in ".venv/a.py", "env/site-packages/b.py", "c.txt", "package/__init__.py":
        (in_tmp / path).parent.mkdir(parents=True, exist_ok=True)
        (in_tmp / path).write_text("" if "init" in path else "not = mine\n")
    for i in range(2):
        (in_tmp / f"package/part_{i}.py").write_text(
            "".join(f"import json\n\n\ndef f_{n}(x):\n    return x + {n}\n\n\n" for n in range(100)))
    return in_tmp


@pytest.mark.parametrize("name", ["hello", "coder"])         # count has the check of hello; random has its own test
def test_each_check_says_no_to_an_untrained_model(name, code, capsys):
    demo = demos.DEMOS[name]
    text, check = demo.text, demo.check
    if name == "coder":
        text, check = lambda: demos.python_text(code), lambda *models: demos.check_python(code, *models)
    findings = check(*untrained(name, text()))
    assert not demos.show_check(findings)
    assert "FAILED: " in capsys.readouterr().out


def held(findings, word):
    """Whether the finding whose text begins with `word` held."""
    return next(held for held, what in findings if what.startswith(word))


def test_the_architecture_check_tells_what_is_wrong():
    demo = demos.DEMOS["random"]
    model, *others = untrained("random", demo.text())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.blocks[1].mlp.proj.weight.data.zero_()                        # now nothing before it has a gradient
    model.lm_head.weight.data *= 20                                     # sure of itself, and wrong
    model.blocks[0].attn.attend = torch.nn.functional.scaled_dot_product_attention      # no causal mask
    findings = demo.check(model, *others)
    assert held(findings, "shapes") and not any(held(findings, word) for word in ("causality", "gradients", "honesty"))


def test_the_pattern_check_counts_right_characters():
    class Knows(torch.nn.Module):
        """After a comes b, after b comes c, after c comes d, after d comes a."""

        block_size = 8

        def forward(self, idx, targets=None):
            return torch.nn.functional.one_hot((idx + 1) % 4, 4).float(), None

    tokenizer = gpt.CharTokenizer("abcd")
    assert demos.check_pattern("abcd", Knows(), None, tokenizer, "")[0][0]
    (right, what), = demos.check_pattern("abdc", Knows(), None, tokenizer, "")
    assert not right and "of 160 characters" in what


# The coder


def test_coder_learns_from_a_folder(code, monkeypatch):
    config = gpt.Options(vocab_size=280, n_embd=32, n_layer=1, n_head=2, max_steps=150, position="rotary")
    monkeypatch.setitem(demos.DEMOS, "coder", gpt.replace(demos.DEMOS["coder"], config=config))
    exit_code, output, error = main("coder", "--code", code, program=demos.main)
    findings = " ".join(output.split("The check:")[1].split())
    assert error == "" and exit_code == ("FAILED" in findings)
    assert re.search(r"'import ' is completed in this way, the first of \d+ samples .*:\n\nimport json\n", output)
    assert "held: held-out files cost" in findings and "not =" not in output
    assert re.search(r"held: what follows import is a module that is there in (1\d|20) of 20 samples", findings)
    shares = re.search(r"of \d+ functions .* ([\d.]+)% as the GPT completes them, each once, ([\d.]+)% as", findings)
    assert 0 <= float(shares[2]) < float(shares[1]) <= 100


@pytest.mark.parametrize("text, function, correct", [
    ("def f(x):\n    return x\n\ndef g", "def f(x):\n    return x\n", True),
    ("    def f(self):\n        if self:\n            return 1\n\n    def g(self):\n",
     "def f(self):\n    if self:\n        return 1\n", True),
    ("def f(x):\n    return x +", "def f(x):\n", False),
    ("def f(x):\n    return (x\n    y = ", "def f(x):\n    return (x\n", False),
    ("def f(x):\nreturn x\n", "def f(x):\n", False),
    ("def f(x):", "\n", False), ("", "\n", False), ("x = 1\n", "x = 1\n", False),
    ("def f(x):\n    '''Say\n\n    so.'''\n", "def f(x):\n    '''Say\n\n    so.'''\n", True),
    ("def f(x):\n    return '\\d'\n", "def f(x):\n    return '\\d'\n", True),
])
def test_a_function_is_cut_at_its_end_and_judged_by_python(text, function, correct):
    assert demos.first_function(text) == (function, correct)


@pytest.mark.parametrize("line, answer", [
    ("\nimport json\n", True), ("\nimport os.path", True), ("\nimport torch as t", True), ("\nimport mine\n", True),
    ("\nimport jsonn\n", False), ("\nimport\n", False), ("\nimport 4", False), ("\nimportant", False),
    ("\nimport __main__", False)])
def test_an_import_is_right_if_the_module_is_there(line, answer, monkeypatch):
    monkeypatch.setattr("sys.modules", {**demos.sys.modules, "__main__": type(json)("__main__")})
    assert demos.names_module(line, {"mine"}) is answer


@pytest.mark.parametrize("sizes", [[1000], [2000, 10], [300] * 9, [300] * 10, [100] * 300, [7, 5000] * 50,
                                   [5] * 99 + [90_000], [90_000] + [5] * 99, [3_000_000, 100], [90_000] * 40])
def test_what_is_held_out_is_never_trained_on(in_tmp, sizes):
    """In each file a letter says which it is; of few files, its last tenth has another one."""
    few = len(sizes) < 10
    for i, size in enumerate(sizes):
        cut = len(gpt.train_val_split("x" * size)[0]) if few else 0
        text = chr(0x4E00 + i) * cut + chr(0x6E00 + i) * (size - cut)
        text = text[:-11] + "\ndef f(x):\n" if size >= 300 or not few else text
        (in_tmp / f"{i:03}.py").write_text(text, encoding="utf-8")
    train_part, held_out = map(set, demos.split_files(demos.texts_of_files(in_tmp)))
    assert not {letter for letter in train_part & held_out if letter > "\u4e00"}
    assert {letter for letter in held_out if letter > "\u4e00"} or min(sizes) < 11


def test_a_folder_is_learned_with_the_library_and_only_its_files_are_held_out(code):
    (code / "package/copy.py").write_text(demos.texts_of_files()[-1])           # a file of the library, too: it is not
    mine, held_out = demos.split_files(demos.texts_of_files(code))              # learned as such, as it may be held out
    library, others = demos.split_files(demos.texts_of_files()[:-1])
    train_text, val_text = gpt.train_val_split(demos.python_text(code))
    times = max(1, len(library) // 2 // len(mine))
    assert (library + mine * times).startswith(train_text) and train_text.count(mine[:-2]) == times
    assert val_text[9:] in held_out * 50 and others[:1000] not in train_text + val_text
    assert len(train_text) / 9 - 2 <= len(val_text) <= len(train_text) / 9 + 2


def test_training_ends_when_the_validation_loss_has_not_fallen_for_a_while(capsys):
    def told(losses):
        rows = [(step, 0, loss) for step, loss in enumerate(losses)]
        return [val_loss for _, _, val_loss in demos.until_it_rises(lambda: iter(rows))()]

    assert told([5, 4, 3, 3.1, 3.2, 2.9, 3, 3, 3, 3, 3]) == [5, 4, 3, 3.1, 3.2, 2.9, 3, 3, 3, 3]
    assert "stops here" in capsys.readouterr().out
    assert told([3, 4, 4, 4]) == [3, 4, 4, 4] and capsys.readouterr().out == ""


def test_what_is_typed_is_completed_by_the_first_sample_that_python_accepts():
    """White space at its end is not shown to the model, and must come back."""
    class Writes(torch.nn.Module):
        block_size = 99

        def forward(self, idx, targets=None):
            after = tokenizer.decode(idx[0].tolist())[len("\nimport"):]
            wanted = {"": " x"}.get(after, "jsonn\n"[len(after) - 1:]) or "\n"
            wanted = wanted[0] if torch.rand(()) < 0.9 else "\n"        # and now and then, it stops early
            token = torch.tensor([[tokenizer.ids[wanted]]])
            return torch.nn.functional.one_hot(token, tokenizer.vocab_size) * 99.0, None

    tokenizer = gpt.CharTokenizer("\n import jsonx")
    torch.manual_seed(0)
    accept = lambda text: (text.split("\n")[0], text.split("\n")[0] == "import json")
    found, attempts = demos.complete_typed(Writes(), tokenizer, "import ", accept, 1.0)
    assert found == "import json" and attempts > 1
    assert demos.complete_typed(Writes(), tokenizer, "import  ", accept, 1.0) == (None, 20)


def test_the_library_is_whole_files_and_some_are_held_out():
    train_text, val_text = gpt.train_val_split(demos.python_text())
    assert not any("test" in pattern for pattern in demos.PYTHON_FILES.replace("unittest", "").split())
    assert 1e6 < len(train_text) and 150_000 < len(val_text) <= 200_000
    shared = sum(len(part) for part in val_text.split("\n\n") if len(part) > 300 and part in train_text)
    assert shared < 0.01 * len(val_text)                                # a licence, say, but no module twice
    assert len(demos.FIRST_LINE.findall(val_text)) > 200


# The benchmark


def test_the_benchmark_measures_the_default_size():
    code, output, error = main("--quick", "--json", program=benchmark.main)
    found = json.loads(output)
    assert (code, error) == (0, "") and found["sizes"].keys() == {"default"}
    row = found["sizes"]["default"]
    assert row["parameters"] == 619_904 and row["MB_of_the_model"] == 16 * 0.619904 and min(row.values()) > 0
    C, T, V, L = 128, 64, 65, 3
    assert row["MFLOP_per_token"] == 6 * (12 * L * C**2 + V * C + 2 * L * C * T) / 1e6      # textbooks count so
    code, output, _ = main(program=lambda _: benchmark.show(found["machine"], found["sizes"]))
    assert "default    619,904 9.92 MB 19.9 MB" in output and "3,000 steps" in output
    assert max(map(len, output.splitlines())) <= 80 and benchmark.SIZES.keys() == benchmark.PURPOSES.keys()


def test_what_is_kept_of_a_batch_grows_with_the_width_and_the_context():
    def kept(**changes):
        return benchmark.bytes_of_a_sequence(gpt.build_gpt(tiny_config(vocab_size=1, **changes)))

    assert kept(block_size=16) == pytest.approx(2 * kept(), rel=0.01)
    assert 1.8 * kept() < kept(n_embd=32) < 2 * kept()


def test_a_mistake_with_the_benchmark_is_one_line():
    code, _, error = main("--fast", program=benchmark.main)
    assert code == 2 and error.startswith("benchmark.py: ") and "--fast" in error and error.count("\n") == 1
