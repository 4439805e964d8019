"""Chapters 1 to 3: where the text comes from, tokens, and batches."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import gpt

BODY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 3000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers well or badly, as the path says."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/silent":
            time.sleep(1.5)
            return
        if self.path == "/flaky" and len(self.server.asked) == 1:
            return self.send_error(503)
        if self.path == "/missing":
            return self.send_error(404)
        body = {"/altered": BODY[:-1] + b"!", "/empty": b""}.get(self.path, BODY)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """A real HTTP server on loopback; .url is its address, .asked the paths it was asked for."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url, server.asked = f"http://127.0.0.1:{server.server_port}", []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_good_download_is_kept_whole(server, tmp_path):
    gpt.download(server.url + "/good", tmp_path / "new" / "text.txt", SHA256)
    assert (tmp_path / "new" / "text.txt").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["text.txt"]


@pytest.mark.parametrize("path", ["/missing", "/altered", "/empty", "/cut", "/silent"])
def test_a_bad_download_leaves_the_old_file_and_nothing_else(server, tmp_path, path):
    file = tmp_path / "text.txt"
    file.write_text("what was there before")
    with pytest.raises(OSError):
        gpt.download(server.url + path, file, SHA256, timeout=0.5)
    assert file.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [file]


def test_an_unreachable_server_is_an_oserror(tmp_path):
    with pytest.raises(OSError):
        gpt.download("http://127.0.0.1:9/", tmp_path / "text.txt", SHA256)


@pytest.fixture
def local_shakespeare(server, in_tmp, monkeypatch):
    monkeypatch.setattr(gpt, "SHAKESPEARE_URL", server.url + "/flaky")
    monkeypatch.setattr(gpt, "SHAKESPEARE_SHA256", SHA256)
    monkeypatch.setattr(gpt.time, "sleep", lambda seconds: None)
    return server


def test_shakespeare_is_downloaded_once_and_then_read_from_the_disk(local_shakespeare):
    assert gpt.load_shakespeare() == BODY.decode()          # the second try succeeds
    assert gpt.load_shakespeare() == BODY.decode()
    assert local_shakespeare.asked == ["/flaky", "/flaky"]


def test_an_altered_file_on_the_disk_is_downloaded_again(local_shakespeare, in_tmp):
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / "tinyshakespeare.txt").write_bytes(BODY[:100])
    assert gpt.load_shakespeare() == BODY.decode()


def test_without_the_download_the_manual_is_the_text(local_shakespeare, monkeypatch, capsys):
    monkeypatch.setattr(gpt, "SHAKESPEARE_URL", local_shakespeare.url + "/missing")
    name, text = gpt.load_text()
    assert (name, local_shakespeare.asked) == ("manual", ["/missing"] * 3)
    assert "assert" in text and len(text) > 100_000
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "HTTPError" in told and "/missing" in told and "tinyshakespeare.txt" in told


def test_own_text_keeps_its_line_ends_and_loses_its_byte_order_mark(tmp_path):
    file = tmp_path / "my own.txt"
    file.write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\nline\r\n")
    assert gpt.load_text(file) == ("my own", "naïve\r\nline\r\n")


def test_own_text_must_be_utf8(tmp_path):
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.txt is not UTF-8 text: .* at byte 2"):
        gpt.load_text(tmp_path / "latin.txt")


def test_any_text_comes_back_from_its_tokens():
    text = "Zürich 東京 🙂\r\n\t\0 done"
    tokenizer = gpt.build_char_tokenizer(text)
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert sorted(set(tokenizer.encode(text))) == list(range(tokenizer.vocab_size))
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_what_is_not_in_the_vocabulary_is_named():
    tokenizer = gpt.build_char_tokenizer("abc")
    with pytest.raises(ValueError, match="'é'.*'abc'"):
        tokenizer.encode("aé")
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"id {wrong} .*0 to 2.*'abc'"):
            tokenizer.decode([0, wrong])


def test_split_is_nine_to_one_and_loses_nothing():
    tokens = torch.arange(1_115_394)
    train_data, val_data = gpt.split(tokens)
    assert (len(train_data), len(val_data)) == (1_003_854, 111_540)     # as for Tiny Shakespeare
    assert torch.equal(torch.cat((train_data, val_data)), tokens)


def test_batches_are_shifted_by_one_and_depend_on_seed_and_step_alone():
    config = gpt.Config(batch_size=5, block_size=7, seed=3)
    data = torch.randperm(1000)
    x, y = gpt.get_batch(data, 11, config)
    assert x.shape == y.shape == (5, 7)
    place = {token: i for i, token in enumerate(data.tolist())}
    for row_x, row_y in zip(x.tolist(), y.tolist()):
        assert [place[token] for token in row_x] == list(range(place[row_x[0]], place[row_x[0]] + 7))
        assert row_x[1:] == row_y[:-1] and place[row_y[-1]] == place[row_x[-1]] + 1
    torch.manual_seed(99)
    assert torch.equal(x, gpt.get_batch(data, 11, config)[0])
    assert not torch.equal(x, gpt.get_batch(data, 12, config)[0])
    assert not torch.equal(x, gpt.get_batch(data, 11, gpt.Config(batch_size=5, block_size=7, seed=4))[0])


def test_batches_reach_the_first_and_the_last_token():
    config = gpt.Config(batch_size=64, block_size=4)
    batches = [gpt.get_batch(torch.arange(10), step, config) for step in range(10)]
    assert {x[i, 0].item() for x, _ in batches for i in range(64)} == set(range(6))
    assert max(y.max().item() for _, y in batches) == 9
