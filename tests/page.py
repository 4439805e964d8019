"""page.py: one file for any browser, in which the model of a run reads, looks back and writes.

    python tests/page.py                    the latest run that gpt.py has kept
    python tests/page.py RUN                another one
    python tests/page.py RUN --text FILE    if its text has moved (without it, the page has less)
    python tests/page.py --story            data/story.html, the story of gpt.py as a page

It writes data/RUN.html, which needs no network and no server: send it to a friend. (Its links to the chapters lead to
data/story.html, which it writes, too.) page.html, beside this file, is a GPT in JavaScript that shows what it computes.
Here it is filled with the parameters of the run, in 16 bits, and with the logits that PyTorch computes for three texts,
so that the page can check itself. A page takes a model with up to 12 million parameters.
"""

import base64
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = str(Path(__file__).parent), str(Path(__file__).parent.parent)
import gpt  # before torch: it silences torch's warning that NumPy is missing
import story
import torch

TEMPLATE = Path(__file__).with_name("page.html")
STORY = gpt.DATA / "story.html"
LARGEST = 12_000_000                                            # parameters, which make a page of 32 MB


def parameter_count(model):
    return sum(p.numel() for p in model.parameters())


def as_base64(numbers):
    """The bytes of a tensor's numbers, as text. UserError if one is too large for its kind."""
    gpt.check(numbers.isfinite().all(), "a parameter is too large for 16 bits")
    numbers = numbers.detach().contiguous().view(torch.uint8).flatten()
    return base64.b64encode(bytes(numbers.tolist())).decode()


def trained_bigram(saved, train_data, val_data):
    """The bigram model of the run, which is not kept, trained once more; None if its table would be too large."""
    V = saved.options.vocab_size
    if V * V > LARGEST:
        return None
    model = gpt.BigramLanguageModel(V)
    *_, (_, _, val_loss) = gpt.train(model, train_data, val_data, gpt.bigram_config(saved.options))
    return {"table": as_base64(model.table.weight.half()), "loss": val_loss}


def packed_tokenizer(tokenizer):
    """The vocabulary, in the order of ids, and the merges: None for characters. Bytes become characters up to U+00FF."""
    if isinstance(tokenizer, gpt.CharTokenizer):
        return {"vocabulary": list(tokenizer.vocabulary), "merges": None}
    return {"vocabulary": [tokenizer.pieces[i].decode("latin-1") for i in range(tokenizer.vocab_size)],
            "merges": [[part.decode("latin-1") for part in pair] for pair in tokenizer.vocabulary]}


def passages(text, length):
    """Up to twelve passages from all over a text: whole lines, unless these are long."""
    found = []
    for place in range(0, len(text), max(1, len(text) // 12)):
        start = max(place, text.find("\n\n", place, place + 1000))
        end = text.find("\n", start + length, start + length + 90)
        found.append(text[start:end if end > 0 else start + length].strip("\n"))
    return [passage for passage in found[:12] if passage] or [text]


def page_data(saved, text, text_name):
    """All that a page has to know of a run, as JSON without "<", which might end a script: bytes.

    Without the text, the page reads what the model writes, and there is no bigram.
    """
    if text is None:
        train_data, val_text = None, gpt.complete(saved.best, saved.tokenizer, gpt.default_prompt(saved.tokenizer), 600)
    else:
        train_text, val_text = gpt.train_val_split(text)
        train_data = gpt.encode_text(train_text, saved.tokenizer)                   # (N,)
    val_data = gpt.encode_text(val_text, saved.tokenizer)                           # (N,)
    T = min(64, saved.options.block_size, len(val_data))
    idx = val_data.unfold(0, T, 1)[[0, (len(val_data) - T) // 2, -1]].long()        # (N,) -> (N-T+1, T) -> (3, T)
    logits, _ = saved.best(idx)                                                     # (3, T) -> (3, T, V)
    return json.dumps({
        "name": saved.path.stem, "config": asdict(saved.options), **packed_tokenizer(saved.tokenizer),
        "parameter_count": parameter_count(saved.best),
        "bigram": None if text is None else trained_bigram(saved, train_data, val_data),
        "parameters": {name: as_base64(p.half()) for name, p in saved.best.state_dict().items()},
        "step": saved.progress.step, "history": saved.progress.history,
        "passages": passages(val_text, 150 if isinstance(saved.tokenizer, gpt.CharTokenizer) else 350),
        "text": None if text is None else {"name": text_name, "length": len(text), "begins": text[:60]},
        "texts": list(zip(idx.tolist(), map(as_base64, logits)))
    }).replace("<", r"\u003c").encode()


def command(arguments):
    parser = gpt.Parser("page.py", allow_abbrev=False, description="Write data/RUN.html, the page of a run.")
    parser.add_argument("run", nargs="?", help="its name or its path, else the latest")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what it was trained on, if that has moved")
    parser.add_argument("--story", action="store_true", help="write data/story.html, the story of gpt.py as a page")
    given = parser.parse_args(arguments)
    if given.story:
        gpt.check(given.run is None and given.text is None, "--story goes without a run and --text")
        story.write_story(STORY)
        return print(f"{STORY}: open it in a browser")
    path = gpt.find_run(given.run)
    gpt.check(not path.is_dir(), f"{path} is a GPT-2; a page shows a run of gpt.py")
    saved, template, page = gpt.read_checkpoint(path), TEMPLATE.read_bytes(), gpt.DATA / f"{path.stem}.html"
    if page == STORY:
        page = page.with_name("story-run.html")         # of a run that is called story
    gpt.check(parameter_count(saved.best) <= LARGEST, f"{path} has more than {LARGEST // 10**6} million parameters")
    gpt.check(saved.progress is not None, f"{path} holds a model alone; a page shows a run")
    gpt.check(saved.progress.history, f"{path} is not evaluated yet; train it further with --resume")
    try:
        text_name, text = gpt.load_text_of(saved, given.text)
    except gpt.UserError as error:
        if given.text is not None:
            raise
        gpt.say(f"{error}. The page is made without it: it reads what the model writes, and has no bigram")
        text_name, text = None, None
    gpt.check(not page.exists() or page.read_bytes()[:90] == template[:90],
              f"{page} is another file, which would be lost; rename it, or the run")
    content = template.replace(b'"RUN"', page_data(saved, text, text_name), 1)
    gpt.write_whole(page, lambda file: file.write(content))
    story.write_story(STORY)
    print(f"{page}, {len(content) / 1e6:.1f} MB: open it in a browser")


if __name__ == "__main__":
    sys.exit(gpt.run_cleanly("page.py", command, sys.argv[1:]))
