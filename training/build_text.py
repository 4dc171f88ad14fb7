"""Build the train / dev / test / unseen text from installed Debian documentation packages.

Use: python3 build_text.py --out DATA [--unseen-html DIR]
     Needs: apt-get install sqlite3-doc python3.11-doc postgresql-doc-15 python-django-doc
     (or --unseen-html with the html folder of an unpacked python-django-doc).
Writes DATA/{train,dev,test,unseen}.jsonl, one {"id", "source", "text"} a line, and DATA/text_stats.json.

The split is by document and depends only on the document's id. dev and test are never trained on;
unseen is a whole project that is never trained on.
"""
import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

from extract_text import html_to_text

SOURCES = {
    "sqlite": ("/usr/share/doc/sqlite3", "sqlite3-doc"),
    "python": ("/usr/share/doc/python3.11/html", "python3.11-doc"),
    "postgresql": ("/usr/share/doc/postgresql-doc-15/html", "postgresql-doc-15"),
}
UNSEEN = ("django", "/usr/share/doc/python-django-doc/html", "python-django-doc")
# Indexes, search pages and generated lists: no prose.
EXCLUDE = re.compile(
    r"(^|/)(genindex|py-modindex|search|contents|download|copyright|_sources|_static|_modules|bookindex"
    r"|keyword_index|doclist|sitemap|toc|matrix|hp1|oldnews|changes\b.*hdr)", re.I)
# Long repetitive lists stay in train: they would make held-out text easy to predict.
TRAIN_ONLY = re.compile(r"(^|/)(release|releaselog|changes|chronology|changelog|whatsnew/changelog|license|legalnotice"
                        r"|errcodes-appendix|sql-keywords-appendix|features|internals|howto/writing-doc)", re.I)
HELD_OUT_PERCENT = {"dev": 7, "test": 9}
MIN_CHARS = 600


def split_of(doc_id: str) -> str:
    bucket = int(hashlib.sha256(doc_id.encode()).hexdigest(), 16) % 100
    if bucket < HELD_OUT_PERCENT["test"]:
        return "test"
    return "dev" if bucket < HELD_OUT_PERCENT["test"] + HELD_OUT_PERCENT["dev"] else "train"


def read_source(name: str, root: Path):
    for path in sorted(root.rglob("*.html")):
        relative = path.relative_to(root).as_posix()
        if EXCLUDE.search(relative) or path.is_symlink():
            continue
        text = html_to_text(path.read_text(encoding="utf-8", errors="replace"))
        if len(text) >= MIN_CHARS:
            yield {"id": f"{name}/{relative}", "source": name, "text": text}


def lines_of(text: str):
    return [line for line in text.split("\n") if len(line) >= 60]


def drop_leaks(held_out, known_lines):
    """Drop documents of which over a tenth of the long lines stand word for word in the training text."""
    kept = []
    for doc in held_out:
        lines = lines_of(doc["text"])
        shared = sum(line in known_lines for line in lines)
        if lines and shared <= 0.1 * len(lines):
            kept.append(doc)
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unseen-html", type=Path, default=Path(UNSEEN[1]))
    args = parser.parse_args()
    missing = [package for root, package in SOURCES.values() if not Path(root).is_dir()]
    if not args.unseen_html.is_dir():
        missing.append(UNSEEN[2])
    if missing:
        sys.exit(f"documentation not found; run: apt-get install {' '.join(missing)}")

    splits = {"train": [], "dev": [], "test": [], "unseen": []}
    seen = set()
    for name, (root, _) in SOURCES.items():
        for doc in read_source(name, Path(root)):
            digest = hashlib.sha256(doc["text"].encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            split = "train" if TRAIN_ONLY.search(doc["id"].split("/", 1)[1]) else split_of(doc["id"])
            splits[split].append(doc)
    for doc in read_source(UNSEEN[0], args.unseen_html):
        if not TRAIN_ONLY.search(doc["id"].split("/", 1)[1]):
            splits["unseen"].append(doc)

    known = {line for doc in splits["train"] for line in lines_of(doc["text"])}
    for name in ("dev", "test", "unseen"):
        splits[name] = drop_leaks(splits[name], known)
    known |= {line for doc in splits["dev"] for line in lines_of(doc["text"])}
    splits["test"] = drop_leaks(splits["test"], known)

    args.out.mkdir(parents=True, exist_ok=True)
    stats = {}
    for name, docs in splits.items():
        with open(args.out / f"{name}.jsonl", "w", encoding="utf-8") as out:
            for doc in docs:
                out.write(json.dumps(doc, ensure_ascii=False) + "\n")
        stats[name] = {source: {"documents": sum(d["source"] == source for d in docs),
                                "chars": sum(len(d["text"]) for d in docs if d["source"] == source)}
                       for source in sorted({d["source"] for d in docs})}
    (args.out / "text_stats.json").write_text(json.dumps(stats, indent=1) + "\n")
    print(json.dumps(stats, indent=1))


if __name__ == "__main__":
    main()
