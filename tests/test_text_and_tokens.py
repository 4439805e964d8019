"""Chapters 0 to 3, and subwords: hyperparameters, where the text comes from, tokens, batches."""

import copy
import dataclasses
import hashlib
import math
import os
import pickle
import random
from collections import Counter
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import requests
import torch
from conftest import TEXT, serving, tiny_config

import gpt

# 0. Hyperparameters


def test_hyperparameters_are_frozen_and_survive_what_is_done_to_objects():
    for config in (gpt.Config(n_embd=256), gpt.Options(position="rotary")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.n_embd = 16
        again = [copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)),
                 dataclasses.replace(config), type(config)(**dataclasses.asdict(config))]
        assert {*again, config} == {config} != {gpt.Config()}


class Number:
    """A number of another library, such as NumPy: it can become a number of Python."""

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return float(self.value)


class Integer(Number):
    def __index__(self):
        return self.value


@pytest.mark.parametrize("name, value", [
    ("n_embd", Integer(16)), ("n_embd", torch.tensor(16)), ("n_layer", True), ("seed", 0), ("warmup_steps", 0),
    ("learning_rate", Number(1e-3)), ("learning_rate", torch.tensor(1e-3)), ("learning_rate", Integer(1)),
    ("weight_decay", 0), ("dropout", False), ("grad_clip", 10**9), ("head_start", 1),
    ("head_start", torch.tensor(True))])
def test_other_numbers_become_pythons_own(name, value):
    options = gpt.check_options(tiny_config(**{name: value}))
    for field in dataclasses.fields(gpt.Options):
        assert type(getattr(options, field.name)) is field.type
    assert float(getattr(options, name)) == pytest.approx(float(value)) and gpt.check_options(options) == options


def test_the_options_of_the_appendix_have_defaults_for_a_config():
    assert gpt.check_options(gpt.Config(n_embd=16)) == gpt.Options(n_embd=16)


@pytest.mark.parametrize("name, values", [
    ("n_layer", (0, -3, 2**40, 20.0, Number(2), "3", None, torch.tensor(2.0), torch.tensor([2, 2]), 1j)),
    ("max_steps", (20.0, 2**32, 0)), ("seed", (-1, 2**32)), ("batch_size", (0,)), ("block_size", (-3,)),
    ("dropout", (1.0, -0.1, math.nan)), ("learning_rate", (0.0, math.inf, math.nan, "0.1", 10**400, torch.ones(2))),
    ("grad_clip", (0.0,)), ("weight_decay", (-0.1,)), ("position", ("rope", "absolute", None, 3)),
    ("dtype", ("float16", torch.bfloat16)), ("head_start", ("no",)), ("n_head", (3, 32)), ("n_embd", (2**31,))])
def test_a_hyperparameter_that_cannot_work_is_named(name, values):
    for value in values:
        with pytest.raises(gpt.UserError, match=name):
            gpt.check_options(tiny_config(**{name: value}))


@pytest.mark.parametrize("settings", [
    {"position": "rotary", "n_embd": 6}, {"position": "sinusoidal", "n_embd": 3, "n_head": 1},
    {"head_start": True, "n_embd": 3, "n_head": 1}])
def test_positions_need_pairs_of_numbers(settings):
    with pytest.raises(gpt.UserError, match="pairs"):
        gpt.check_options(tiny_config(**settings))


# 1. Text

BODY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 3000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers well or badly, as the path says."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/silent":
            return self.server.over.wait(10)
        if self.path in ("/missing", "/broken"):
            return self.send_error(404 if self.path == "/missing" else 503)
        others = {"/altered": BODY[:-1] + b"!", "/empty": b"", "/login": b"<html>Please log in</html>"}
        body = others.get(self.path, BODY)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(in_tmp, monkeypatch):
    """A real HTTP server on loopback as the place where Shakespeare comes from; .send(how) chooses its answer."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(gpt, "SHA256", SHA256)
    with serving(Handler) as server:
        server.send = lambda how: monkeypatch.setattr(gpt, "URL", f"{server.url}/{how}")
        server.send("good")
        yield server


def keep(content):
    """Put this content where Shakespeare is kept; returns the path."""
    path = Path("data/tinyshakespeare.txt")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_shakespeare_is_downloaded_once_and_then_read_from_the_disk(server):
    for _ in range(2):
        assert gpt.load_shakespeare() == BODY.decode()
        assert gpt.load_text() == ("shakespeare", BODY.decode())
    assert server.asked == ["/good"]
    assert [path.read_bytes() for path in Path("data").iterdir()] == [BODY]


@pytest.mark.parametrize("content", [BODY[:-1] + b"!", BODY[:-100], b"", BODY + b"\n", b"\xff\xfe" + BODY])
def test_an_altered_file_on_the_disk_is_downloaded_again(server, content):
    path = keep(content)
    assert gpt.load_shakespeare() == BODY.decode()
    assert path.read_bytes() == BODY and server.asked == ["/good"]


@pytest.mark.parametrize("how", ["missing", "broken", "altered", "empty", "login", "cut", "silent"])
@pytest.mark.parametrize("before", [None, b"what was there before"])
def test_wrong_content_is_refused_and_not_kept(server, monkeypatch, how, before):
    server.send(how)
    files = [] if before is None else [keep(before)]
    request = requests.Session.request

    def impatient(session, *arguments, timeout, **options):             # there must be a timeout
        return request(session, *arguments, timeout=0.2 if how == "silent" else timeout, **options)

    monkeypatch.setattr(requests.Session, "request", impatient)
    with pytest.raises(OSError):
        gpt.load_shakespeare()
    assert server.asked == [f"/{how}"]
    assert [*Path(".").rglob("*.*")] == files and [path.read_bytes() for path in files] == [before] * len(files)


def test_an_unreachable_server_is_an_oserror(server, monkeypatch):
    monkeypatch.setattr(gpt, "URL", "http://127.0.0.1:9/")
    with pytest.raises(OSError):
        gpt.load_shakespeare()


@pytest.mark.parametrize("how", ["missing", "login"])
def test_without_the_download_the_manual_is_the_text(server, capsys, how):
    server.send(how)
    name, text = gpt.load_text()
    assert (name, text, server.asked) == ("manual", "".join(topics.values()), [f"/{how}"])
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and gpt.URL in told and "tinyshakespeare.txt" in told


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, error, broken):
    path = tmp_path / "new" / "file"

    def write_half(file):
        file.write(b"half of what")
        raise error

    for content in (b"before", b"after"):
        gpt.write_whole(path, lambda file: file.write(content))
        with pytest.raises(error):
            gpt.write_whole(path, write_half)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
            patch.setattr(os, broken, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            gpt.write_whole(path, lambda file: file.write(b"half of what"))
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_a_text_of_ones_own_has_new_lines_and_no_byte_order_mark(tmp_path):
    file = tmp_path / "my own.txt"
    file.write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\nline\r\n")
    assert gpt.load_text(file) == ("my own", "naïve\nline\n")


@pytest.mark.parametrize("content, words", [
    ("naïve".encode("latin-1"), "is not UTF-8"), ("naive".encode("utf-16"), "is not UTF-8"),
    ("naive".encode("utf-16-le"), "is not UTF-8"), (b"", "is empty")])
def test_a_text_of_ones_own_must_be_utf8(tmp_path, content, words):
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"own.txt {words}"):
        gpt.load_text(tmp_path / "own.txt")


# 2. Tokens


def test_any_text_comes_back_from_its_tokens():
    text = "Zürich 東京 🙂\r\n\t\0 done"
    tokenizer = gpt.CharTokenizer(text)
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert sorted(set(tokenizer.encode(text))) == list(range(tokenizer.vocab_size))
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_a_character_that_is_not_in_the_vocabulary_is_named_and_the_vocabulary_is_not_printed():
    with pytest.raises(ValueError, match="^'é' .{,80}$"):
        gpt.CharTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + 4000)))).encode("一é")


@pytest.mark.parametrize("build", [
    gpt.CharTokenizer, lambda text: gpt.BPETokenizer(gpt.train_bpe(text, 259))], ids=["char", "bpe"])
def test_a_tokenizer_survives_what_is_done_to_objects(build):
    tokenizer = build("the cat sat on the mat")
    ids = tokenizer.encode("that hat")                                  # now a BPETokenizer remembers words
    for again in (copy.copy(tokenizer), copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer)),
                  type(tokenizer)(tokenizer.vocabulary)):
        assert again.vocabulary == tokenizer.vocabulary and again.vocab_size == tokenizer.vocab_size
        assert again.encode("that hat") == ids and again.decode(ids) == "that hat"


# Appendix: Subwords

@pytest.fixture(scope="module")
def bpe():
    return gpt.BPETokenizer(gpt.train_bpe(TEXT, 280))


def plain_bpe(text, vocab_size):
    """The definition, with everything counted anew for each token: (merges, the text in parts)."""
    words = [[bytes([byte]) for byte in word.encode()] for word in gpt.split_pattern().findall(text)]
    merges = []
    while 256 + len(merges) < vocab_size:
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [word[i] + word[i + 1]]
                i += 1
    return merges, [part for word in words for part in word]


def test_bpe_knows_the_textbook_example():
    merges = gpt.train_bpe("aaabdaaabac", 259)
    assert merges == [(b"a", b"a"), (b"aa", b"a"), (b"aaa", b"b")]
    tokenizer, (a, b, c, d) = gpt.BPETokenizer(merges), b"abcd"
    assert tokenizer.encode("aaabdaaabac") == [258, d, 258, a, c]
    assert tokenizer.decode([258, d]) == "aaabd"


@pytest.mark.parametrize("text, vocab_size", [
    (TEXT[:1500], 275), ("aaaa aaa aaaaa ababab bababa aab " * 2, 261), ("the then there the other the " * 3, 263),
    ("Zürich 東京 🙂 東京東 Zürich ü" * 3, 270), ("".join(topics.values())[:6000], 300),
    ("".join(random.Random(0).choices("ab ", k=400)), 275), ("".join(random.Random(1).choices("aab ", k=400)), 275)])
def test_bpe_does_what_its_definition_says(text, vocab_size):
    merges, parts = plain_bpe(text, vocab_size)
    for _ in range(2):
        assert gpt.train_bpe(text, vocab_size) == merges
    tokenizer = gpt.BPETokenizer(merges)
    assert [tokenizer.pieces[i] for i in tokenizer.encode(text)] == parts


@pytest.mark.parametrize("vocab_size", [256, 257, 265, 280])
def test_the_vocabulary_has_the_size_that_was_asked_for(vocab_size):
    tokenizer = gpt.BPETokenizer(gpt.train_bpe(TEXT, vocab_size))
    assert tokenizer.vocab_size == len(set(tokenizer.pieces.values())) == vocab_size
    assert sorted(tokenizer.pieces) == list(range(vocab_size))
    assert set(tokenizer.encode(TEXT)) <= set(range(vocab_size))


def test_two_merges_that_make_the_same_bytes_make_one_token():
    tokenizer = gpt.BPETokenizer([(b"b", b"c"), (b"a", b"bc"), (b"a", b"b"), (b"ab", b"c"), (b"x", b"abc")])
    assert tokenizer.vocab_size == 260 and sorted(tokenizer.pieces) == list(range(260))
    assert tokenizer.encode("abc xabc ab") == [257, 32, 259, 32, 258]
    assert tokenizer.decode(range(256, 260)) == "bcabcabxabc"


def random_text(seed, length):
    """Characters of all kinds: ASCII, spaces, Latin, Greek, Chinese, emoji, control characters."""
    draw = random.Random(seed)
    kinds = [range(32, 127), range(9, 14), [32], range(0xA0, 0x180), range(0x370, 0x400), range(0x4E00, 0x4E50),
             range(0x1F600, 0x1F610), range(0, 9), [0x2028, 0xFEFF, 0xFFFD, 0x301]]
    return "".join(chr(draw.choice(draw.choice(kinds))) for _ in range(length))


@pytest.mark.parametrize("seed", range(5))
def test_bpe_gives_any_text_back(seed, bpe):
    text = random_text(seed, 500)
    assert "".join(gpt.split_pattern().findall(text)) == text               # no character is lost between words
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text and all(0 <= i < bpe.vocab_size for i in ids)
    fitted = gpt.BPETokenizer(gpt.train_bpe(text, 270))
    assert fitted.decode(fitted.encode(text)) == text and len(fitted.encode(text)) < len(text.encode())


def test_words_are_cut_as_gpt_2_cuts_them():
    assert gpt.split_pattern().findall("I've 2  cats.") == ["I", "'ve", " 2", " ", " cats", "."]
    assert gpt.BPETokenizer([(b"a", b"1")]).encode("a1") == [97, 49]        # a letter and a digit: two words


def test_no_token_reaches_across_words(bpe):
    for i in range(256, bpe.vocab_size):
        assert len(gpt.split_pattern().findall(bpe.decode([i]))) == 1
    assert bpe.pieces[max(bpe.pieces, key=lambda i: len(bpe.pieces[i]))] == b" number"


def test_bpe_names_what_it_cannot_do_and_takes_what_is_no_utf8(bpe):
    with pytest.raises(ValueError, match="too short for vocab_size=400; .* 259 at most"):
        gpt.train_bpe("to be or not to be", 400)
    with pytest.raises(ValueError, match="too short"):
        gpt.train_bpe("", 257)
    assert bpe.decode(bpe.encode("\ud800 lone")) == "? lone"                # half of a character
    assert bpe.decode([0xE6, 0x9D]) == "\ufffd"                             # two bytes of three


# 3. Batches


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_a_whole_text_is_encoded_in_32_bits(length):
    text = "".join(random.Random(0).choices("abc", k=length))
    tokens = gpt.encode_text(text, gpt.CharTokenizer("abc"))
    assert tokens.dtype == torch.int32 and tokens.tolist() == ["abc".index(character) for character in text]


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 20, 1_115_394, 1_999_990, 2_000_010, 5_000_000])
def test_a_tenth_is_held_out_but_no_more_than_serves_and_nothing_is_lost(length):
    train_part, val_part = gpt.train_val_split(range(length))
    assert train_part == range(len(train_part)) and val_part == range(len(train_part), length)
    assert len(val_part) == min(-(-length // 10), 200_000)


def test_batches_are_shifted_by_one_and_depend_on_seed_and_step_alone():
    config, data = gpt.Config(batch_size=5, block_size=7, seed=3), torch.randperm(1000)
    x, y = gpt.get_batch(data, 11, config)
    assert x.shape == y.shape == (5, 7) and x.dtype == y.dtype == torch.int64
    where = {token: i for i, token in enumerate(data.tolist())}
    for row_x, row_y in zip(x.tolist(), y.tolist()):
        assert [where[token] for token in row_x] == list(range(where[row_x[0]], where[row_x[0]] + 7))
        assert row_x[1:] == row_y[:-1] and where[row_y[-1]] == where[row_x[-1]] + 1
    torch.manual_seed(99)
    assert torch.equal(x, gpt.get_batch(data.int(), 11, config)[0])
    for step, seed in ((12, 3), (11, 4), (10, 4)):
        other = dataclasses.replace(config, seed=seed)
        assert not torch.equal(x, gpt.get_batch(data, step, other)[0])


def test_batches_reach_the_first_and_the_last_token():
    config = gpt.Config(batch_size=64, block_size=4)
    batches = [gpt.get_batch(torch.arange(10), step, config) for step in range(10)]
    assert {x[i, 0].item() for x, _ in batches for i in range(64)} == set(range(6))
    assert max(y.max().item() for _, y in batches) == 9


def test_a_text_that_is_too_short_for_the_context_is_refused():
    config = gpt.Config(batch_size=2, block_size=8)
    assert gpt.get_batch(torch.arange(9), 0, config)[1][0].tolist() == list(range(1, 9))
    with pytest.raises(ValueError, match="block_size=8 .* 8 tokens"):
        gpt.get_batch(torch.arange(8), 0, config)
