"""The appendices: pieces of words, the demos and their checks, the sizes."""

import math
import random
import re

import pytest
import torch
from conftest import TEXT, tiny_config
from test_commands import main

import gpt

pytestmark = pytest.mark.usefixtures("short_baseline")
BPE = gpt.BPETokenizer(gpt.find_merges(TEXT, 290))


def random_text(seed, length):
    """Characters of all kinds: ASCII, spaces, Latin, Greek, Chinese, emoji, control characters."""
    draw = random.Random(seed)
    kinds = [range(32, 127), range(9, 14), [32], range(0xA0, 0x180), range(0x370, 0x400), range(0x4E00, 0x4E50),
             range(0x1F600, 0x1F610), range(0, 9), [0x2028, 0xFEFF, 0xFFFD, 0x301]]
    return "".join(chr(draw.choice(draw.choice(kinds))) for _ in range(length))


# Pieces of words


def test_bpe_knows_the_textbook_example():
    a, b, c, d = b"abcd"
    for find in (gpt.find_merges_plainly, gpt.find_merges):
        assert find("aaabdaaabac", 259) == [(a, a), (a, b), (256, 257)]
    tokenizer = gpt.BPETokenizer(gpt.find_merges("aaabdaaabac", 259))
    assert tokenizer.encode("aaabdaaabac") == [258, d, 258, a, c]
    assert tokenizer.decode([258, d]) == "aaabd"


@pytest.mark.parametrize("seed", range(10))
def test_bpe_gives_any_text_back(seed):
    text = random_text(seed, 500)
    assert "".join(gpt.word_pattern().findall(text)) == text                      # no character is lost between words
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text and all(0 <= i < BPE.vocab_size for i in ids)
    fitted = gpt.BPETokenizer(gpt.find_merges(text, 270))
    assert fitted.decode(fitted.encode(text)) == text


def slow_bpe(text, vocab_size):
    """The definition, with everything counted anew for each token."""
    words = [list(word.encode()) for word in gpt.word_pattern().findall(text)]
    merges = []
    while 256 + len(merges) < vocab_size:
        pairs = [pair for word in words for pair in zip(word, word[1:])]
        best = min(set(pairs), key=lambda pair: (-pairs.count(pair), pair))
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [255 + len(merges)]
                i += 1
    return merges, [i for word in words for i in word]


@pytest.mark.parametrize("text", [TEXT[:1500], "aaaa aaa aaaaa ababab bababa aab " * 2, "the then there the other the " * 3])
def test_bpe_does_what_its_definition_says(text):
    vocab_size = 275 if len(text) > 1000 else 261
    merges, ids = slow_bpe(text, vocab_size)
    assert gpt.find_merges(text, vocab_size) == gpt.find_merges_plainly(text, vocab_size) == merges
    assert gpt.BPETokenizer(merges).encode(text) == ids


def test_the_fast_form_is_the_plain_form_on_a_real_text():
    text = gpt.load_manual()[:25_000]
    assert gpt.find_merges(text, 330) == gpt.find_merges_plainly(text, 330)


def test_no_token_reaches_across_words():
    for i in range(256, BPE.vocab_size):
        assert len(gpt.word_pattern().findall(BPE.decode([i]))) == 1
    assert gpt.BPETokenizer([(97, 49)]).encode("a1") == [97, 49]       # a letter and a digit: two words
    assert BPE.decode([max(range(BPE.vocab_size), key=lambda i: len(BPE.bytes[i]))]) == " number"


def test_bpe_names_what_it_cannot_do():
    with pytest.raises(ValueError, match="too short for vocab_size=400"):
        gpt.find_merges("to be or not to be", 400)
    with pytest.raises(ValueError, match="too short"):
        gpt.find_merges("", 257)
    with pytest.raises(gpt.UserError, match=r"no ids \[290\]; they go from 0 to 289"):
        BPE.decode([290])
    with pytest.raises(gpt.UserError, match=r"no ids \[300, -1\]; they go from 0 to 256"):
        gpt.BPETokenizer([(97, 98), (300, -1)])
    assert BPE.decode(BPE.encode("\ud800 lone")) == "? lone"             # half of a character
    assert BPE.decode([0xE6, 0x9D]) == "\ufffd"                         # two bytes of three are no character


def save(name, model, tokenizer):
    """Keep a model in data/, as a run does."""
    keeper = gpt.Keeper(name)
    keeper.about = {"config": gpt.asdict(model.config), "vocabulary": tokenizer.vocabulary, "text_sha256": "",
                    "bigram": None}
    keeper.save(model, gpt.Report(gpt.build_optimizer(model, model.config)))


def test_a_checkpoint_keeps_the_pieces(in_tmp):
    model = gpt.GPT(tiny_config(tokenizer="bpe", vocab_size=BPE.vocab_size))
    save("a", model, BPE)
    loaded, tokenizer = gpt.load_checkpoint("data/a.pt")
    assert loaded.config == model.config and tokenizer.encode(TEXT) == BPE.encode(TEXT)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


# The demos

SMALL_CODER = ["--max_steps", 30, "--eval_interval", 15, "--n_embd", 16, "--n_layer", 1, "--n_head", 2, "--vocab_size",
               300, "--block_size", 32]


@pytest.fixture
def small_library(monkeypatch):
    """Three modules in place of the hundreds that `coder` reads."""
    monkeypatch.setattr(gpt, "FUNCTION_TOKENS", 40)
    monkeypatch.setattr(gpt, "PYTHON_FILES", "json/*.py textwrap.py shlex.py copy.py heapq.py bisect.py reprlib.py")


@pytest.mark.parametrize("name", ["hello", "count", "random"])
def test_a_demo_holds_in_full(in_tmp, name):
    code, output, _ = main(name)
    findings = output.split("The check\n---------\n")[1]
    assert code == 0
    assert findings.startswith("held: ") and "FAILED" not in findings and findings.count("held: ") in (1, 5)
    assert max(map(len, output.splitlines())) < 80
    if name == "count":
        assert "4,000 of 4,000 characters are right, 100%" in " ".join(findings.split())
        assert "4,688 parameters" in output
    prompt = gpt.DEMOS[name][2]
    written = main("sample", name, "--prompt", prompt, "--tokens", "20", "--temperature", "0")[1]
    assert written.startswith(prompt) and len(written) == len(prompt) + 20 + 1
    if name == "hello":
        assert written.startswith("hello world\nhello worl")


def test_coder_runs_samples_and_resumes(in_tmp, small_library):
    code, output, _ = main("coder", *SMALL_CODER)
    assert code == 1                                                    # 30 steps do not make a programmer
    assert "300 tokens: the 256 bytes, and more" in output and "characters per token" in output
    assert "held: held-out files cost" in output or "FAILED: held-out files cost" in output
    share = re.search(r"of \d+ functions .* ([\d.]+)% as the GPT completes them, ([\d.]+)% as", " ".join(output.split()))
    assert all(0 <= float(percent) <= 100 for percent in share.groups())
    assert main("sample", "coder", "--prompt", "def é", "--tokens", "5", "--seed", "1")[1].startswith("def é")
    assert "step 45/45" in main("coder", "--max_steps", "45", "--resume")[1]
    assert "vocab_size=300, not 301" in main("coder", "--vocab_size", "301", "--resume")[2]


def untrained(name, **settings):
    """(model, bigram, tokenizer, val_text) of a demo before anything was learned."""
    _, texts, _, _, of_demo = gpt.DEMOS[name]
    train_text, val_text = texts()
    config = gpt.Config(**{**of_demo, "vocab_size": 300, **settings})
    tokenizer = gpt.build_tokenizer(train_text, val_text, config)
    torch.manual_seed(0)
    config = gpt.replace(config, vocab_size=tokenizer.vocab_size)
    return gpt.GPT(config), gpt.BigramLanguageModel(tokenizer.vocab_size), tokenizer, val_text


@pytest.mark.parametrize("name", gpt.DEMOS)
def test_each_check_says_no_to_an_untrained_model(name, small_library, capsys):
    findings = gpt.DEMOS[name][3](*untrained(name))
    assert not gpt.show_check(findings)
    assert "FAILED: " in capsys.readouterr().out


def held(findings, word):
    """Whether the finding whose text begins with `word` held."""
    return next(held for held, what in findings if what.startswith(word))


def test_the_architecture_check_tells_what_is_wrong(monkeypatch):
    model, *others = untrained("random")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))          # the usual start has zeros
    check = gpt.DEMOS["random"][3]
    findings = check(model, *others)
    assert all(held(findings, word) for word in ("shapes", "causality", "gradients", "learning"))
    wide = model.blocks[1].feed_forward[-1].weight
    before = wide.data.clone()
    wide.data.zero_()                                                   # now nothing before it has a gradient
    model.lm_head.weight.data *= 20                                     # sure of itself, and wrong
    findings = check(model, *others)
    assert not held(findings, "gradients") and not held(findings, "honesty")
    wide.data = before
    model.lm_head.weight.data /= 20
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(gpt.F, "scaled_dot_product_attention",
                        lambda *qkv, is_causal, dropout_p: attention(*qkv, dropout_p=dropout_p))
    assert not held(check(model, *others), "causality")


def test_the_pattern_check_counts_right_characters():
    class Knows(torch.nn.Module):
        """After a comes b, after b comes c, after c comes d, after d comes a."""

        vocab_size, block_size = 4, 8

        def __init__(self):
            super().__init__()
            self.zero = torch.nn.Parameter(torch.zeros(()))

        def forward(self, idx, targets=None):
            return torch.nn.functional.one_hot((idx + 1) % 4, 4).float() + self.zero, None

    tokenizer = gpt.CharTokenizer("abcd")
    assert gpt.check_pattern("abcd", Knows(), None, tokenizer, "")[0][0]
    (right, what), = gpt.check_pattern("abdc", Knows(), None, tokenizer, "")
    assert not right and "of 160 characters" in what


@pytest.mark.parametrize("text, function, correct", [
    ("def f(x):\n    return x\n\ndef g", "def f(x):\n    return x\n", True),
    ("    def f(self):\n        if self:\n            return 1\n\n    def g(self):\n", "def f(self):\n    if self:\n        return 1\n", True),
    ("def f(x):\n    return x +", "def f(x):\n", False),
    ("def f(x):\n    return (x\n    y = ", "def f(x):\n    return (x\n", False),
    ("def f(x):\nreturn x\n", "def f(x):\n", False),
    ("def f(x):", "\n", False), ("", "\n", False), ("x = 1\n", "x = 1\n", False),
    ("def f(x):\n    '''Say\n\n    so.'''\n", "def f(x):\n    '''Say\n\n    so.'''\n", True),
])
def test_a_function_is_cut_at_its_end_and_judged_by_python(text, function, correct):
    assert gpt.first_function(text) == (function, correct)


def test_the_library_is_whole_files_and_some_are_held_out():
    train_text, val_text = gpt.python_texts()
    assert not any("test" in pattern for pattern in gpt.PYTHON_FILES.replace("unittest", "").split())
    assert 1e6 < len(train_text) and 0.05 < len(val_text) / len(train_text) < 0.2
    shared = sum(len(part) for part in val_text.split("\n\n") if len(part) > 300 and part in train_text)
    assert shared < 0.01 * len(val_text)                                # a licence, say, but no module twice
    headers = re.findall(r"^ *def \w+\(.*\).*:(?=\n)", val_text, flags=re.MULTILINE)
    assert len(headers) > 200


# Any text in pieces of words


def test_any_text_can_be_read_in_pieces(in_tmp):
    (in_tmp / "cats.txt").write_text(TEXT)
    code, output, _ = main("--text", "cats.txt", "--tokenizer", "bpe", "--vocab_size", 285, "--n_layer", 1, "--n_embd", 16,
                           "--block_size", 16, "--max_steps", 20)
    row = next(line.split() for line in output.splitlines() if line.startswith("uniform"))
    train_text, val_text = gpt.split(TEXT)
    tokens = gpt.BPETokenizer(gpt.find_merges(train_text, 285)).encode(val_text)
    assert code == 0 and float(row[3]) == pytest.approx(math.log2(285) * len(tokens) / len(val_text), abs=1e-3)
    assert (in_tmp / "data" / "cats-gpt.txt").read_text()[0] == "\n"


def test_a_character_is_shown_when_its_bytes_are_whole(in_tmp, monkeypatch):
    save("a", gpt.GPT(tiny_config(tokenizer="bpe", vocab_size=290)), BPE)
    ids = BPE.encode("é東🙂!")
    assert len(ids) == 10
    monkeypatch.setattr(gpt, "stream_tokens", lambda *_, **__: iter(torch.tensor(ids).view(-1, 1, 1)))
    assert main("sample", "a", "--prompt", "x")[:2] == (0, "xé東🙂!\n")


# The sizes


def test_the_activations_are_what_autograd_keeps():
    config = tiny_config()
    model = gpt.GPT(config)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    x, y = torch.randint(11, (2, config.batch_size, config.block_size)).unbind()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x.clone(), y.clone())
    assert sum(storage.nbytes() for storage in kept.values()) == pytest.approx(gpt.activation_bytes(config), rel=0.02)


def test_the_flops_are_what_the_matrix_products_need():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny_config(vocab_size=50)
    model = gpt.GPT(config)
    x, y = torch.randint(50, (2, config.batch_size, config.block_size)).unbind()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, y)[1].backward()
    assert counter.get_total_flops() == gpt.training_flops(config)[0] * x.numel()


def test_sizes_are_shown_and_used(in_tmp):
    code, output, _ = main("sizes")
    assert code == 0 and max(map(len, output.splitlines())) < 100
    rows = {line.split()[0]: line.split() for line in output.splitlines()[1:len(gpt.SIZES) + 1]}
    assert list(rows) == list(gpt.SIZES)
    assert rows["5k"][5] == "4,688" and rows["124M"][5] == "124,439,808"     # as GPT-2 small has them
    for name, row in rows.items():
        config = gpt.Config(**gpt.SIZES[name])
        assert float(row[8].replace(",", "")) == pytest.approx(16 * int(row[5].replace(",", "")) / 1e6, rel=0.01)
        assert float(row[6]) == pytest.approx(gpt.training_flops(config)[0] / 1e6, rel=0.01)
    (in_tmp / "cats.txt").write_text(TEXT)
    assert main("--text", "cats.txt", "--size", "5k", "--max_steps", "2")[0] == 0
    assert gpt.load_checkpoint("data/cats.pt")[0].config.n_embd == 16
    assert main("--text", "cats.txt", "--size", "5k", "--resume", "--max_steps", "3")[0] == 0
