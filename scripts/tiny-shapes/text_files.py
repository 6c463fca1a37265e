"""Builds the two tokenizers: a CLIP byte-pair vocabulary and a T5 unigram vocabulary over the words of the world."""
import json
from collections import Counter
from pathlib import Path

import world
from transformers import CLIPTokenizer, T5Tokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_LENGTH = 77
T5_LENGTH = 12


def words():
    return sorted({w for label in world.all_labels() for w in world.caption(label).split()})


def byte_alphabet():
    """The printable stand-ins of the 256 bytes, in the order of GPT-2's table."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]


def _merge(symbols, pair):
    out, i = [], 0
    while i < len(symbols):
        joined = tuple(symbols[i:i + 2]) == pair
        out.append("".join(pair) if joined else symbols[i])
        i += 2 if joined else 1
    return out


def learn_merges(vocabulary):
    """Byte-pair training on the word list until every word is one symbol (a word is weighed once)."""
    parts = [[*w[:-1], w[-1] + "</w>"] for w in vocabulary]
    merges = []
    while any(len(p) > 1 for p in parts):
        counts = Counter(pair for p in parts for pair in zip(p, p[1:]))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        parts = [_merge(p, best) for p in parts]
    return merges


def write_clip_tokenizer(folder):
    """vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json; <|endoftext|> has the highest id."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(words())
    alphabet = byte_alphabet()
    symbols = alphabet + [a + "</w>" for a in alphabet] + ["".join(m) for m in merges] + [BOS, EOS]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    assert len(vocabulary) == len(symbols)
    _write_json(folder / "vocab.json", vocabulary, indent=None)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": EOS}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", {
        **special, "add_prefix_space": False, "clean_up_tokenization_spaces": True, "do_lower_case": True,
        "errors": "replace", "model_max_length": CLIP_LENGTH, "tokenizer_class": "CLIPTokenizer"})
    return CLIPTokenizer.from_pretrained(folder)


def write_t5_tokenizer(folder):
    """tokenizer.json (unigram with metaspace), tokenizer_config.json, special_tokens_map.json."""
    folder = Path(folder)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    pieces += [("▁" + w, -3.0) for w in words()]
    # Single characters let other text through; they cost more than any whole word.
    pieces += [(chr(c), -8.0) for c in range(33, 127)]
    T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH).save_pretrained(folder)
    _write_json(folder / "special_tokens_map.json", {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})
    return T5Tokenizer.from_pretrained(folder)


def _write_json(path, value, indent=2):
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def token_ids(tokenizer, texts, length=None):
    """[N, length] long, padded (to the longest when no length is given)."""
    padding = "max_length" if length else True
    return tokenizer(list(texts), padding=padding, max_length=length, truncation=True, return_tensors="pt").input_ids
