"""Quality of sparse decoding beside dense: recall on question sets, loss on held-out text. Appends to results/*.jsonl.

Use: python3 study/evidence.py [--rarefy build/release/apps/cli/rarefy] [--model models/rarefy-8m] [--threads N]
                               [--only NAME ...] [--state FOLDER] [--results FOLDER] [--list]
Standard library only. Each measurement is one call of `rarefy recall` or `rarefy perplexity`; finished ones are skipped, a
stopped one goes on where it was (the verbs' --resume, kept in --state). Run it from the top of the source tree, on a committed
tree: results name the commit.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AUDIT = "0.02"  # share of the sparse (layer, step) pairs that are recomputed densely
RECALL_POLICIES = ("50x", "100x")
LOSS_POLICIES = ("50x", "100x")
# Measurements by name: (verb, set, policies). Sets are those of MODEL/eval/sets.jsonl.
RECALL_SETS = ("test-recall-16k", "unseen-documents-recall-16k", "unseen-words-recall-16k", "unseen-templates-recall-16k",
               "unseen-formats-recall-16k", "unseen-all-recall-16k", "test-recall-32k", "dev-recall-16k")
LOSS_SETS = ("test-loss-16k", "unseen-loss-16k", "test-loss-32k", "dev-loss-16k")


def measurements():
    return [("recall", name, RECALL_POLICIES) for name in RECALL_SETS] + [("perplexity", name, LOSS_POLICIES) for name in LOSS_SETS]


def has_results(path: Path, name: str, policies) -> bool:
    """Whether the file has a line of this set for dense and for every policy."""
    if not path.exists():
        return False
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {"dense", *policies} <= {row["policy"] for row in rows if row["set"] == name}


def write_contexts(model: Path, name: str, path: Path):
    """The contexts of a set, made from held-out text and a seed by the script that the training uses."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        subprocess.run([sys.executable, ROOT / "training" / "make_contexts.py", "--eval", model / "eval", "--set", name, "--out", partial],
                       check=True)
        partial.rename(path)


def measure(args, verb: str, name: str, policies):
    contexts = args.state / f"{name}.jsonl"
    write_contexts(args.model, name, contexts)
    command = [args.rarefy, verb, "-m", args.model, "-f", contexts, "--set", name, "--audit", AUDIT, "--json",
               "--resume", args.state / f"{name}.{verb}.state.jsonl"]
    if verb == "perplexity":
        command += ["--chunks", "0"]
    for policy in policies:
        command += ["--policy", policy]
    if args.threads:
        command += ["-t", str(args.threads)]
    run = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        sys.exit(f"evidence: {verb} on {name} ended with {run.returncode}; run again to go on where it was")
    with open(args.results / f"{verb}.jsonl", "a", encoding="utf-8") as out:
        out.write(run.stdout)
    for line in run.stdout.splitlines():
        row = json.loads(line)
        if verb == "recall":
            print(f"{name}: {row['policy']}: {row['right']} of {row['questions']}, {row['ratio_to_dense']:.3f} of dense, "
                  f"bytes_ratio {row['bytes_ratio']:.4f}")
        else:
            print(f"{name}: {row['policy']}: loss {row['loss']:.4f}, gap {row['loss_gap']:+.4f} +- {row['loss_gap_standard_error']:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rarefy", type=Path, default=Path("build/release/apps/cli/rarefy"))
    parser.add_argument("--model", type=Path, default=Path("models/rarefy-8m"))
    parser.add_argument("--state", type=Path, default=Path("build/study"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these sets only")
    parser.add_argument("--list", action="store_true", help="name the measurements and which are done")
    args = parser.parse_args()
    known = [name for _, name, _ in measurements()]
    for name in args.only or []:
        if name not in known:
            sys.exit(f"evidence: expected one of {', '.join(known)}, got {name!r}")
    args.state.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)
    for verb, name, policies in measurements():
        if args.only and name not in args.only:
            continue
        done = has_results(args.results / f"{verb}.jsonl", name, policies)
        if args.list:
            print(f"{verb:<11} {name:<30} {'done' if done else 'open'}")
        elif not done:
            measure(args, verb, name, policies)


if __name__ == "__main__":
    main()
