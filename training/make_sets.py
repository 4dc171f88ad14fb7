"""Choose the held-out evaluation sets and write models/NAME/eval (run once; make_contexts.py then needs no tokenizer).

Use: python3 make_sets.py --data DATA --out models/NAME/eval      (DATA from build_text.py and build_tokens.py)
     python3 make_sets.py --add SET --out models/NAME/eval        (one more set, from the held-out text that is there)
Writes heldout_{dev,test,unseen}.txt.xz, sets.jsonl, demo_context.txt and demo_questions.json; --add appends to sets.jsonl.
"""
import argparse
import hashlib
import json
import lzma
import random
from pathlib import Path

from tokenizers import Tokenizer

import facts
from make_contexts import HeldOut, digest

MAX_CHARS = {"dev": 2_000_000, "test": 2_600_000, "unseen": 1_900_000}
MAX_DOCUMENT_CHARS = 100_000  # no single document dominates
CONTINUATION_TOKENS = 512
# set name: (split, context tokens, contexts, facts, formats, words[, first character of the split to use])
RECALL_SETS = {
    "dev-recall-16k": ("dev", 16640, 30, "seen", "seen", "seen"),
    "test-recall-2k": ("test", 2048, 16, "seen", "seen", "seen"),
    "test-recall-4k": ("test", 4096, 16, "seen", "seen", "seen"),
    "test-recall-8k": ("test", 8192, 16, "seen", "seen", "seen"),
    "test-recall-16k": ("test", 16640, 30, "seen", "seen", "seen"),
    "test-recall-32k": ("test", 32768, 16, "seen", "seen", "seen"),
    # Chosen after the recipe's authors had seen sparse answers about the first eight contexts of test-recall-16k and about the
    # demo's: it begins behind their text.
    "blind-recall-16k": ("test", 16640, 26, "seen", "seen", "seen", 720_000),
    "unseen-documents-recall-16k": ("unseen", 16640, 30, "seen", "seen", "seen"),
    "unseen-words-recall-16k": ("test", 16640, 15, "seen", "seen", "unseen"),
    "unseen-templates-recall-16k": ("test", 16640, 30, "unseen", "seen", "seen"),
    "unseen-formats-recall-16k": ("test", 16640, 30, "seen", "unseen", "seen"),
    "unseen-all-recall-16k": ("unseen", 16640, 30, "unseen", "unseen", "unseen"),
}
LOSS_SETS = {
    "dev-loss-16k": ("dev", 16640, 24),
    "test-loss-16k": ("test", 16640, 24),
    "test-loss-32k": ("test", 32768, 24),
    "unseen-loss-16k": ("unseen", 16640, 24),
}


def held_out_text(path: Path, limit: int) -> str:
    docs = [json.loads(line) for line in open(path, encoding="utf-8")]
    docs.sort(key=lambda doc: hashlib.sha256(("order" + doc["id"]).encode()).hexdigest())
    pieces, total = [], 0
    for doc in docs:
        text = doc["text"][:MAX_DOCUMENT_CHARS]
        if total + len(text) <= limit:
            pieces.append(text)
            total += len(text) + 1
    return "\n".join(pieces)


class Chooser:
    def __init__(self, held_out: HeldOut, tokenizer: Tokenizer):
        self.held_out, self.tokenizer = held_out, tokenizer

    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)

    def paragraph_start(self, split: str, at: int) -> int:
        return self.held_out.text(split).index("\n\n", at) + 2

    def fit(self, row, tokens: int):
        """Set row["end"], at a line's end where there is one, so that the context has `tokens` tokens or up to 2 % fewer."""
        text = self.held_out.text(row["split"])
        for separator in ("\n", " "):
            low, high = row["start"], min(len(text), row["start"] + 6 * tokens)
            for _ in range(25):
                middle = (low + high) // 2
                row["end"] = text.find(separator, middle, high) + 1 or middle
                row["tokens"] = self.count(self.held_out.build(row)["context"])
                if 0.985 * tokens <= row["tokens"] <= tokens:
                    return
                low, high = (middle, high) if row["tokens"] < tokens else (low, middle)
        raise ValueError(f"{row['id']}: no end found near {tokens} tokens, got {row['tokens']}")

    def starts(self, split: str, contexts: int, tokens: int, first: int = 0):
        """Evenly spaced from `first` on, with room for the last context."""
        room = len(self.held_out.text(split)) - 5 * tokens - first
        return [self.paragraph_start(split, first + i * room // max(1, contexts)) for i in range(contexts)]

    def recall_rows(self, name, split, tokens, contexts, fact_kind, formats, words, first=0):
        for i, start in enumerate(self.starts(split, contexts, tokens, first)):
            row = {"id": f"{name}/{i}", "set": name, "split": split, "start": start, "end": start, "tokens": 0,
                   "seed": int(hashlib.sha256(f"{name}/{i}".encode()).hexdigest()[:8], 16),
                   "num_facts": max(20, tokens // 256), "num_questions": 20, "facts": fact_kind, "formats": formats,
                   "words": words}
            self.fit(row, tokens)
            yield row

    def loss_rows(self, name, split, tokens, contexts):
        text = self.held_out.text(split)
        for i, start in enumerate(self.starts(split, contexts, tokens)):
            row = {"id": f"{name}/{i}", "set": name, "split": split, "start": start, "end": start, "tokens": 0,
                   "continuation_end": start, "continuation_tokens": CONTINUATION_TOKENS}
            self.fit(row, tokens)
            while text[row["end"]].isspace():  # the continuation starts with a new token
                row["end"] += 1
            row["tokens"] = self.count(text[row["start"]:row["end"]])
            row["continuation_end"] = text.index("\n", row["end"] + 5 * CONTINUATION_TOKENS)
            while self.count(text[row["end"]:row["continuation_end"]]) <= CONTINUATION_TOKENS:
                row["continuation_end"] = text.index("\n", row["continuation_end"] + 500)
            yield row


def write_demo(chooser: Chooser, out: Path):
    """A context of about 17,000 tokens from the Python part of the test split, 66 facts, 20 questions."""
    split, name = "test", "demo"
    text = chooser.held_out.text(split)
    at = max(range(0, len(text) - 70000, 20000),
             key=lambda i: sum(text[i:i + 55000].count(w) for w in (" the ", " you ", " and ")))
    row = {"id": name, "set": name, "split": split, "start": chooser.paragraph_start(split, at), "end": 0, "tokens": 0,
           "seed": 20261124, "num_facts": 66, "num_questions": 20, "facts": "seen", "formats": "demo",
           "words": "seen"}
    chooser.fit(row, 17200)
    made = chooser.held_out.build(row)
    (out / "demo_context.txt").write_text(made["context"], encoding="utf-8")
    (out / "demo_questions.json").write_text(json.dumps(made["questions"], indent=1) + "\n")
    return {**row, "sha256": digest(made)}


def make_rows(chooser: Chooser, name: str):
    if name in RECALL_SETS:
        split, tokens, contexts, *kinds = RECALL_SETS[name]
        rows = list(chooser.recall_rows(name, split, tokens, contexts, *kinds))
    else:
        split, tokens, contexts = LOSS_SETS[name]
        rows = list(chooser.loss_rows(name, split, tokens, contexts))
    for row in rows:
        row["sha256"] = digest(chooser.held_out.build(row))
    return rows


def add_set(name: str, out: Path):
    """Appends the rows of a set that sets.jsonl does not have yet; the others stay as they are."""
    held_out = HeldOut(out)
    if name not in {**RECALL_SETS, **LOSS_SETS} or name in held_out.sets():
        raise SystemExit(f"make_sets: expected a set of this script that {out}/sets.jsonl lacks, got {name!r}")
    rows = make_rows(Chooser(held_out, Tokenizer.from_file(str(out.parent / "tokenizer.json"))), name)
    with open(out / "sets.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print_sizes(rows)


def print_sizes(rows):
    for name in dict.fromkeys(row["set"] for row in rows):
        counts = [row["tokens"] for row in rows if row["set"] == name]
        print(f"{name}: {len(counts)} contexts of {min(counts)} to {max(counts)} tokens")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--add", metavar="SET")
    args = parser.parse_args()
    if (args.data is None) == (args.add is None):
        parser.error("expected either --data or --add")
    if args.add:
        add_set(args.add, args.out)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for split, limit in MAX_CHARS.items():
        text = held_out_text(args.data / f"{split}.jsonl", limit)
        (args.out / f"heldout_{split}.txt.xz").write_bytes(lzma.compress(text.encode(), preset=9))
    (args.out / "sets.jsonl").write_text("")
    held_out = HeldOut(args.out)
    chooser = Chooser(held_out, Tokenizer.from_file(str(args.data / "tokenizer.json")))
    rows = [row for name in (*RECALL_SETS, *LOSS_SETS) for row in make_rows(chooser, name)]
    rows.append(write_demo(chooser, args.out))
    (args.out / "sets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print_sizes(rows)


if __name__ == "__main__":
    main()
