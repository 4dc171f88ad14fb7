"""Train the byte-level BPE tokenizer on the training text and write the token streams.

Use: python3 build_tokens.py --data DATA            (DATA from build_text.py; needs tokenizers, numpy)
Writes DATA/tokenizer.json, DATA/{train,dev}.tokens.xz (uint16, documents joined as in evaluation) and
DATA/words.json (words for planted names: frequent words of the training text, without the `unseen` ones).
"""
import argparse
import collections
import json
import lzma
import re
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import facts

VOCAB_SIZE = 4096
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SPECIAL = [BOS, EOS] + [f"<|reserved_special_token_{i}|>" for i in range(6)]
# Llama 3's pattern with single digits, so that a planted value is one token per digit.
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def train_tokenizer(texts) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    # Special tokens come last, as in Llama 3, so that the byte and merge ids start at 0.
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - len(SPECIAL), show_progress=False, min_frequency=2,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE - len(SPECIAL), tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1",
                                      special_tokens=[(BOS, tokenizer.token_to_id(BOS))]),
    ])
    return tokenizer


def frequent_words(texts, count: int):
    """Frequent lower-case words of 4 to 9 letters, without the names' words that are kept unseen."""
    counts = collections.Counter()
    for text in texts:
        counts.update(re.findall(r"(?<![\w.])[a-z]{4,9}(?![\w(])", text))
    unseen = set(sum(facts.NAME_WORDS["unseen"], []))
    words = [word for word, _ in counts.most_common(2 * count) if word not in unseen][:count]
    return sorted(set(words) | set(sum(facts.NAME_WORDS["seen"], [])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    docs = {split: [json.loads(line)["text"] for line in open(args.data / f"{split}.jsonl", encoding="utf-8")]
            for split in ("train", "dev")}
    tokenizer = train_tokenizer(docs["train"])
    tokenizer.save(str(args.data / "tokenizer.json"))
    eos = tokenizer.token_to_id(EOS)
    docs["train"] += [json.loads(line)["text"] for line in open(args.data / "extra.jsonl", encoding="utf-8")]
    words = frequent_words(docs["train"], 2400)
    (args.data / "words.json").write_text(json.dumps(words) + "\n")
    print(f"{len(words)} name words, e.g. {words[::200]}")
    for split, texts in docs.items():
        # Half of the documents end with the end token; the others run on, as they do in evaluation contexts.
        encoded = tokenizer.encode_batch_fast([text + "\n" for text in texts], add_special_tokens=False)
        stream = np.concatenate([np.array(e.ids + [eos] * (i % 2), np.uint16) for i, e in enumerate(encoded)])
        (args.data / f"{split}.tokens.xz").write_bytes(lzma.compress(stream.tobytes(), preset=4))
        print(f"{split}: {len(stream)} tokens, {sum(map(len, texts)) / len(stream):.2f} characters per token")


if __name__ == "__main__":
    main()
