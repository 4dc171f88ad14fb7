"""Build the train / dev / test / unseen text from Debian documentation packages.

Use: python3 build_text.py --out DATA [--root DIR ...]
     Packages: see SOURCES; each must be installed, or unpacked (dpkg-deb -x) under one of the --root folders.
Writes DATA/{train,extra,dev,test,unseen}.jsonl, one {"id", "source", "text"} a line, and DATA/text_stats.json.

The split is by document and depends only on the document's id. dev and test are never trained on;
unseen is a whole project that is never trained on.
"""
import argparse
import collections
import hashlib
import json
import multiprocessing
import re
import sys
from pathlib import Path

from extract_text import html_to_text

# name: (package, licence, folder, file pattern, documents to take)
SOURCES = {
    "sqlite": ("sqlite3-doc", "public domain", "sqlite3", "*.html", r""),
    "python": ("python3.11-doc", "PSF-2.0", "python3.11/html", "*.html", r""),
    "postgresql": ("postgresql-doc-15", "PostgreSQL", "postgresql-doc-15/html", "*.html", r""),
    "cmake": ("cmake-doc", "BSD-3-Clause", "cmake-data/html", "*.html", r""),
    "nodejs": ("nodejs-doc", "MIT", "nodejs", "*.html", r""),
    "httpd": ("apache2-doc", "Apache-2.0", "apache2-doc/manual/en", "*.html", r""),
    "llvm": ("llvm-14-doc", "Apache-2.0 WITH LLVM-exception", "llvm-14-doc/html", "*.html", r""),
    "clang": ("clang-14-doc", "Apache-2.0 WITH LLVM-exception", "clang-14/html", "*.html", r""),
    "sqlalchemy": ("python-sqlalchemy-doc", "MIT", "python-sqlalchemy-doc/html", "*.html", r""),
    "pandas": ("python-pandas-doc", "BSD-3-Clause", "python-pandas-doc/html", "*.html",
               r"^(user_guide|getting_started|development)/"),
    "rust": ("rust-doc", "MIT or Apache-2.0", "rust-doc/html", "*.html",
             r"^(book/ch|reference|nomicon|rust-by-example|embedded-book|edition-guide|rustc|rustdoc|unstable-book)"),
}
# More text for training alone, so that the language model does not learn the sources above by heart. Reference
# pages repeat each other: lines seen MAX_REPEATS times are dropped.
EXTRA = {
    "erlang": ("erlang-doc", "Apache-2.0", "erlang-doc", "*.html", r""),
    "boost": ("libboost1.74-doc", "BSL-1.0", "libboost1.74-doc", "*.html", r""),
    "scipy": ("python-scipy-doc", "BSD-3-Clause", "python-scipy-doc/html", "*.html", r""),
    "twisted": ("twisted-doc", "MIT", "twisted-doc/html", "*.html", r""),
    "tornado": ("python-tornado-doc", "Apache-2.0", "python-tornado-doc/html", "*.html", r""),
    "pandas-reference": ("python-pandas-doc", "BSD-3-Clause", "python-pandas-doc/html", "*.html", r"^(reference|whatsnew)/"),
    "rust-std": ("rust-doc", "MIT or Apache-2.0", "rust-doc/html/std", "*.html", r""),
}
MAX_REPEATS, MAX_EXTRA_CHARS = 3, 60_000
UNSEEN = {"django": ("python-django-doc", "BSD-3-Clause", "python-django-doc/html", "*.html", r"")}
# Indexes, search pages and generated lists: no prose.
EXCLUDE = re.compile(
    r"(^|/)(genindex|py-modindex|search|contents|download|copyright|_sources|_static|_modules|bookindex"
    r"|keyword_index|print\.html|all\.html|doclist|sitemap|toc|matrix|hp1|oldnews|changes\b.*hdr)", re.I)
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


def find_folder(roots, folder: str):
    candidates = [root / "usr/share/doc" / folder for root in roots]
    return next((path for path in candidates if path.is_dir()), None)


def read_source(name: str, root: Path, pattern: str, wanted: str):
    for path in sorted(root.rglob(pattern)):
        relative = path.relative_to(root).as_posix()
        if EXCLUDE.search(relative) or not re.search(wanted, relative) or path.is_symlink():
            continue
        text = html_to_text(path.read_text(encoding="utf-8", errors="replace"))
        if len(text) >= MIN_CHARS:
            yield {"id": f"{name}/{relative}", "source": name, "text": text}


def read_all(*source):
    return list(read_source(*source))


def drop_repeats(docs):
    counts, kept = collections.Counter(), []
    for doc in docs:
        lines = []
        for line in doc["text"][:MAX_EXTRA_CHARS].split("\n"):
            counts[line] += len(line) >= 30
            if counts[line] <= MAX_REPEATS:
                lines.append(line)
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
        if len(text) >= MIN_CHARS:
            kept.append({**doc, "text": text})
    return kept


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
    parser.add_argument("--root", type=Path, action="append", default=[], help="where packages were unpacked")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    roots = args.root + [Path("/")]
    everything = {**SOURCES, **UNSEEN, **EXTRA}
    folders = {name: find_folder(roots, source[2]) for name, source in everything.items()}
    missing = [everything[name][0] for name, folder in folders.items() if folder is None]
    if missing:
        sys.exit(f"documentation not found; run: apt-get install {' '.join(missing)}")

    splits = {"train": [], "dev": [], "test": [], "unseen": []}
    seen = set()
    for name, (_, _, _, pattern, wanted) in {**SOURCES, **UNSEEN}.items():
        for doc in read_source(name, folders[name], pattern, wanted):
            digest = hashlib.sha256(doc["text"].encode()).digest()
            train_only = bool(TRAIN_ONLY.search(doc["id"].split("/", 1)[1]))
            if digest in seen or (train_only and name in UNSEEN):
                continue
            seen.add(digest)
            split = "unseen" if name in UNSEEN else "train" if train_only else split_of(doc["id"])
            splits[split].append(doc)

    known = {line for doc in splits["train"] for line in lines_of(doc["text"])}
    for name in ("dev", "test", "unseen"):
        splits[name] = drop_leaks(splits[name], known)
    known |= {line for doc in splits["dev"] for line in lines_of(doc["text"])}
    splits["test"] = drop_leaks(splits["test"], known)

    held_out = {line for name in ("dev", "test", "unseen") for doc in splits[name] for line in lines_of(doc["text"])}
    with multiprocessing.Pool(args.jobs) as pool:
        read = pool.starmap(read_all, [(name, folders[name], *EXTRA[name][3:]) for name in EXTRA], chunksize=1)
    splits["extra"] = drop_leaks(drop_repeats([doc for docs in read for doc in docs]), held_out)

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
