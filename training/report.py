"""Add evaluation lines to results/training.jsonl and write the tables of a model card.

Use: python3 report.py --eval EVAL.jsonl --card models/NAME/README.md --results results/training.jsonl
     --commit HASH --date DATE --command "..."
Tables stand between the card's <!-- results --> and <!-- end of results --> lines.
"""
import argparse
import json
from pathlib import Path

SEEN = {"test-recall-2k", "test-recall-4k", "test-recall-8k", "test-recall-16k", "test-recall-32k"}


def tables(rows):
    recall = [row for row in rows if row["bench"] == "dense_recall"]
    loss = [row for row in rows if row["bench"] == "dense_loss"]
    out = ["| set | context tokens | questions | exact recall | 95 % interval |", "|---|---|---|---|---|"]
    order = sorted(recall, key=lambda row: (row["set"] not in SEEN, row["set"] == "demo"))
    out += [f"| {r['set']} | {r['tokens']:,} | {r['questions']} | {r['recall']:.4f} | {r['ci95'][0]:.3f} to "
            f"{r['ci95'][1]:.3f} |" for r in order]
    out += ["", "| set | context tokens | scored tokens | loss (nats per token) | standard error |", "|---|---|---|---|---|"]
    order = sorted(loss, key=lambda row: (row["set"] != "test-loss-32k", row["tokens"]))
    out += [f"| {r['set']} | {r['tokens']:,} | {r['scored_tokens']:,} | {r['loss']:.4f} | {r['standard_error']:.4f} |"
            for r in order]
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("eval", "card", "results"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("commit", "date", "command"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.eval.read_text().splitlines()]
    facts = {"commit": args.commit, "command": args.command, "date": args.date}
    args.results.write_text("".join(json.dumps({**row, **facts}) + "\n" for row in rows))
    text = args.card.read_text()
    start, end = text.index("<!-- results -->") + len("<!-- results -->"), text.index("<!-- end of results -->")
    args.card.write_text(text[:start] + "\n" + tables(rows) + "\n" + text[end:])


if __name__ == "__main__":
    main()
