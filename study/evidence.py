"""Quality of sparse decoding beside dense: recall on question sets, loss on held-out text. Appends to results/*.jsonl.

Use: python3 study/evidence.py [--rarefy build/release/apps/cli/rarefy] [--model models/rarefy-8m] [--jobs N] [--threads N]
                               [--only NAME ...] [--contexts N] [--state FOLDER] [--results FOLDER] [--list]
Standard library only. Contexts are independent: each is one process of `rarefy recall` or `rarefy perplexity` with --threads
threads, --jobs of them at a time. When a measurement has all of its contexts, the verb reports over what they left (its
--resume) without computing anything again. Finished measurements are skipped, finished contexts are kept in --state; it may be
stopped at any time. Results name the commit the program was built from: build it from a committed tree. Times per token are
those of --jobs processes that share a machine.
"""
import argparse
import json
import sys
from pathlib import Path

from contexts import (HeldOut, Measurement, add_common_flags, measurement_tasks, prepare_common, read_rows, run_program,
                      run_tasks)

AUDIT = "0.02"  # share of the sparse (layer, step) pairs that are recomputed densely
POLICIES = ("50x", "100x")
# Sets of MODEL/eval/sets.jsonl by the verb that measures them.
SETS = {
    "recall": ("blind-recall-16k", "unseen-documents-recall-16k", "unseen-templates-recall-16k", "unseen-formats-recall-16k",
               "unseen-words-recall-16k", "unseen-all-recall-16k", "test-recall-32k", "test-recall-16k", "dev-recall-16k"),
    "perplexity": ("test-loss-16k", "unseen-loss-16k", "test-loss-32k", "dev-loss-16k"),
}


def resolved(args):
    """What each policy means to the program as it is: a recipe that has changed since is measured again."""
    texts = {"dense": "dense"}
    for policy in POLICIES:
        command = [args.rarefy, "policy", "explain", policy, "--ctx-size", 16384, "--json"]
        texts[policy] = json.loads(run_program(command))["policy_resolved"]
    return texts


def done(args, measurement, texts) -> bool:
    rows = read_rows(args.results / f"{measurement.verb}.jsonl")
    return set(texts.items()) <= {(row["policy"], row["policy_resolved"]) for row in rows if row["set"] == measurement.name}


def report(args, measurement):
    """Appends the result lines and prints what they say."""
    text = measurement.report()
    with open(args.results / f"{measurement.verb}.jsonl", "a", encoding="utf-8") as out:
        out.write(text)
    for line in text.splitlines():
        row = json.loads(line)
        if measurement.verb == "recall":
            low, high = row["ratio_ci95"]
            text = f"{row['right']} of {row['questions']}, {row['ratio_to_dense']:.3f} of dense ({low:.3f} to {high:.3f})"
        else:
            low, high = row["loss_gap_ci95"]
            text = f"loss {row['loss']:.4f}, gap {row['loss_gap']:+.4f} ({low:+.4f} to {high:+.4f})"
        print(f"{measurement.name}: {row['policy']}: {text}, bytes_ratio {row['bytes_ratio']:.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser)
    parser.add_argument("--threads", type=int, default=2, help="threads of each (2)")
    parser.add_argument("--contexts", type=int, default=0, help="only the first N contexts of each set, to try it out")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these sets only")
    parser.add_argument("--list", action="store_true", help="name the measurements and which are done")
    args = parser.parse_args()
    prepare_common(args)
    measurements = [Measurement(args, verb, name, POLICIES, args.state / name, ["--audit", AUDIT], args.contexts)
                    for verb, names in SETS.items() for name in names]
    known = [measurement.name for measurement in measurements]
    for name in args.only or []:
        if name not in known:
            sys.exit(f"evidence: expected one of {', '.join(known)}, got {name!r}")
    chosen = [measurement for measurement in measurements if not args.only or measurement.name in args.only]
    texts = resolved(args)
    if args.list:
        for measurement in chosen:
            print(f"{measurement.verb:<11} {measurement.name:<30} {'done' if done(args, measurement, texts) else 'open'}")
        return
    waiting = [measurement for measurement in chosen if not done(args, measurement, texts)]
    tasks = measurement_tasks(HeldOut(args.model / "eval"), waiting, lambda measurement: report(args, measurement))
    run_tasks(tasks, args.jobs, "evidence", "contexts")


if __name__ == "__main__":
    main()
