"""Write evaluation sets as JSON lines from the held-out text: planted facts with questions, or plain text.

Use: python3 make_contexts.py --eval models/NAME/eval --set test-recall-16k [--out FILE]     (--list names the sets)
Standard library only; a row always gives the same bytes (checked against its sha256).
  recall: {"id", "tokens", "context", "questions": [{"question", "answer", "kind", "depth"}]}
          a question follows the context directly; the answer follows after one space
  loss:   {"id", "tokens", "context", "continuation"}; continuation_tokens of it (the first ones) are scored
"tokens" counts the context's tokens with the begin-of-text token.
"""
import argparse
import hashlib
import json
import lzma
import sys
from pathlib import Path

import facts


class HeldOut:
    def __init__(self, folder: Path):
        self.folder, self.texts = folder, {}
        with open(folder / "sets.jsonl", encoding="utf-8") as rows:
            self.rows = [json.loads(line) for line in rows]

    def text(self, split: str) -> str:
        if split not in self.texts:
            self.texts[split] = lzma.decompress((self.folder / f"heldout_{split}.txt.xz").read_bytes()).decode()
        return self.texts[split]

    def sets(self):
        return list(dict.fromkeys(row["set"] for row in self.rows))

    def build(self, row):
        text = self.text(row["split"])[row["start"]:row["end"]]
        made = {"id": row["id"], "tokens": row["tokens"]}
        if "seed" in row:
            made["context"], made["questions"] = facts.recall_context(
                text, row["seed"], row["num_facts"], row["num_questions"], row["facts"], row["formats"], row["words"])
        else:
            made["context"] = text
            made["continuation"] = self.text(row["split"])[row["end"]:row["continuation_end"]]
            made["continuation_tokens"] = row["continuation_tokens"]
        return made

    def contexts(self, name: str):
        for row in self.rows:
            if row["set"] == name:
                made = self.build(row)
                if digest(made) != row["sha256"]:
                    raise ValueError(f"{row['id']}: the context differs from the one the set was made with")
                yield made


def digest(made) -> str:
    content = [made["context"], made.get("continuation"), made.get("questions")]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--set")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    held_out = HeldOut(args.eval)
    if args.list or args.set not in held_out.sets():
        print("\n".join(held_out.sets()))
        sys.exit(0 if args.list else f"no set named {args.set!r}; the sets are listed above")
    lines = "".join(json.dumps(made, ensure_ascii=False) + "\n" for made in held_out.contexts(args.set))
    if args.out:
        args.out.write_text(lines, encoding="utf-8")
    else:
        sys.stdout.write(lines)


if __name__ == "__main__":
    main()
