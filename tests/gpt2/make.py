"""Made this folder, once: a tiny GPT-2, written by the libraries that GPT-2 is usually used with.

The test suite reads what they left here (config.json, tokenizer.json and model.safetensors, as GPT-2
itself is published), and needs none of them. To make it again:

    pip install torch numpy transformers==5.23.0 tokenizers==0.23.3
    python tests/gpt2/make.py

expected.json holds what these libraries say: the ids of texts that are hard to cut, and how the model
continues two prompts greedily; expected.safetensors holds its logits for those two.
"""

import json
import random
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
END = "<|endoftext|>"
TEXTS = ["Alan Turing theorized that", "the rain in the main"]
WORDS = ("the rain in spain stays mainly in the plain and then it's that we'll theorize they're "
         "thinking I've been told that Alan Turing wasn't there 12 345 times é ü 日本").split()
NASTY = [
    "", " ", "  ", "   a", "a   ", "a   b", "\n", "\n\n", " \n ", "a\n\nb", "\t", "a\tb", "\t\ta", "a \t b", "\r\n",
    "a\r\nb", "\x0b\x0c", "it's we'll they're I've I'd I'm don't", "IT'S WE'LL", "'s's''s", " 'tis 'twas", "’s ’ll",
    "snake_case __init__ _", "a1b2c3", "12,345.67", "x² + y² = z²", "½ ¾ 1½", "Ⅷ ⅷ XIV", "٣٤٥ ๓๔๕ ५६", "1٣2",
    "e\u0301 n\u0303 a\u0308", "\u0301", "🙂", "👨\u200d👩\u200d👧 🏳\ufe0f\u200d🌈", "a🙂b 🙂", "一二三四五 十", "〇〡〢", "日本語 テスト",
    "ㄱㄴㄷ 한국어", "עברית العربية", "\x00\x01\x02", "a\x1cb\x1d\x1e\x1f c", " \x1c\x1d ", "\x7f\x80\x85\x9f", "a\u00a0b\u2003c\u3000d",
    "\u2028\u2029", "\u200b\ufeff", "ſ ß ŉ ǆ ﬁ", "𝟙𝟚 𝔸𝔹 𐄇", "...!!!???", " ...", "<|endoftext|>", "a<|endoftext|>b <|endoftext|>",
    "<|endoftext", "http://a.b/c?d=e&f#g", "def f(x):\n    return x  # x", "the   then\n\n\n  there  ",
]


def main():
    from safetensors.torch import save_file             # here, since doctest imports this file
    from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel

    random.seed(0)
    torch.manual_seed(0)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([" ".join(random.choices(WORDS, k=4000))], vocab_size=320, min_frequency=2,
                                show_progress=False)
    V = trained.get_vocab_size() + 1
    learned = json.loads(trained.to_str())["model"]
    learned["vocab"][END] = V - 1                               # the last id, as in GPT-2
    tokenizer = Tokenizer(models.BPE(learned["vocab"], [tuple(pair) for pair in learned["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    about = json.loads(tokenizer.to_str())
    about["model"]["merges"] = [" ".join(pair) for pair in about["model"]["merges"]]    # as published
    path = FOLDER / "tokenizer.json"
    path.write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(path))                  # what the libraries read in this file

    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=48, n_embd=16, n_layer=2, n_head=4,
                                       bos_token_id=V - 1, eos_token_id=V - 1)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():           # far from the usual start, so that each one counts
            weight.copy_(torch.randn_like(weight) * 0.4 + (name.endswith("weight") and ".ln_" in name))
    model.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)

    logits, greedy = {}, {}
    for i, text in enumerate(TEXTS):
        idx = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            logits[str(i)] = model(idx).logits[0].contiguous()
        greedy[text] = idx[0].tolist()
        with torch.no_grad():
            for _ in range(20):
                best = model(torch.tensor([greedy[text]])).logits[0, -1].argmax()
                greedy[text].append(best.item())
    save_file(logits, FOLDER / "expected.safetensors")
    ids = {text: tokenizer.encode(text).ids for text in NASTY}
    (FOLDER / "expected.json").write_text(json.dumps({"ids": ids, "greedy": greedy}), encoding="utf-8")
    print(V, sum(path.stat().st_size for path in FOLDER.iterdir()))


if __name__ == "__main__":
    main()
