"""Every selector x spending rule x sparsity: attention error on captured data, loss, recall, and the bytes each reads.

Use: python3 study/pareto.py [--rarefy PROGRAM] [--model FOLDER] [--jobs N] [--split dev|test] [--policies TEXT ...]
                             [--selectors NAME ...] [--spends NAME ...] [--sparsities N ...] [--contexts N] [--steps N]
                             [--predict N] [--questions N] [--list] [--table] [--html FILE] [--state FOLDER] [--results FOLDER]
Standard library only. Selectors and spending rules are those that `rarefy policy list --json` names, with their options, and the
combinations below; what the program refuses is left out, and said. One process measures many policies, so that one prefill serves
them all; --jobs of them run at a time, one thread each. Appends a line for each policy to results/selectors.jsonl. Policies that have a line of this commit
and split are skipped, finished contexts are kept in --state; it may be stopped at any time. Choose on the development split, confirm
with --split test --policies ... on the test split.
"""
import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import plots
from contexts import (HeldOut, Measurement, add_common_flags, measurement_tasks, prepare_common, read_rows, run_program,
                      run_tasks)

SPARSITIES = (10, 20, 50, 100)
# Selectors that options do not name: page scores with token codes.
COMBINATIONS = ("quest16:int4+sign", "quest32:int4+sign", "quest32:int4+q2", "quest16:int4+sign64", "quest32:int4+sign64")
# What a rule cannot do without, beside a budget.
SPEND_OPTIONS = {"vattention": "eps=0.2 delta=0.1"}
SELECTORS_OF_A_CHUNK = 14  # measured by one process per context: a prefill costs as much as thirty policies
RESULTS = "selectors.jsonl"


def variants(selector):
    """index= texts of one selector: its name, and with each fixed option. "bf16 (default), int8; bound" has one more, int8;
    what follows a semicolon, and options that want a value, are not tried."""
    texts = [selector["name"]]
    for option in selector["options"].split(";")[0].split(","):
        option = option.strip()
        if option and "(default)" not in option and "=" not in option and " " not in option:
            texts.append(f"{selector['name']}:{option}")
    return texts


def policy_text(selector, spend, sparsity):
    return " ".join(filter(None, [f"total={1 / sparsity:g} index={selector} spend={spend}", SPEND_OPTIONS.get(spend)]))


def sparsity_asked(text):
    """50 for "50x ..." and for "total=0.02 ..."; what a step reaches may differ (eps=, topp). None for a number of tokens."""
    word = text.split()[0]
    total = next((float(part[6:]) for part in text.split() if part.startswith("total=")), 0)
    asked = float(word[:-1]) if word.endswith("x") else round(1 / total, 3) if 0 < total <= 1 else None
    return int(asked) if asked and asked == int(asked) else asked


def refusal(args, text):
    """What the program says against a policy, or nothing."""
    run = subprocess.run([str(args.rarefy), "policy", "explain", text, "--ctx-size", str(args.tokens), "-m", str(args.model)],
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return run.stderr.strip().removeprefix("rarefy: ") if run.returncode else ""


def make_grid(args):
    """Policies by selector: {selector: [text, ...]}."""
    if args.policies:
        return {text: [text] for text in args.policies}
    listed = json.loads(run_program([args.rarefy, "policy", "list", "--json"]))
    selectors = [text for one in listed["selectors"] for text in variants(one)] + list(COMBINATIONS)
    spends = [one["name"] for one in listed["spends"]]
    for flag, wanted, known in (("--selectors", args.selectors, selectors), ("--spends", args.spends, spends)):
        for name in wanted or []:
            if name not in known:
                sys.exit(f"pareto: {flag}: expected one of {', '.join(known)}, got {name!r}")
    grid = {}
    for selector in args.selectors or selectors:
        for spend in args.spends or spends:
            reason = refusal(args, policy_text(selector, spend, args.sparsities[0]))
            if reason:
                print(f"pareto: left out: {selector} with {spend}: {reason}", file=sys.stderr)
                continue
            grid.setdefault(selector, []).extend(policy_text(selector, spend, sparsity) for sparsity in args.sparsities)
    return grid


class Chunk:
    """Some policies, measured together."""

    def __init__(self, args, policies, captures):
        self.args, self.policies, self.captures, self.rows = args, policies, captures, {}
        settings = [args.split, args.contexts, args.steps, args.every, args.predict, args.questions, args.commit, *policies]
        self.folder = args.state / "pareto" / hashlib.sha256("\n".join(map(str, settings)).encode()).hexdigest()[:16]
        self.measurements = [
            Measurement(args, "perplexity", f"{args.split}-loss-16k", policies, self.folder / "loss", ["-n", args.predict], args.contexts),
            Measurement(args, "recall", f"{args.split}-recall-16k", policies, self.folder / "recall", ["--questions", args.questions],
                        args.contexts)]
        self.open, self.lock = {"replay", "perplexity", "recall"}, threading.Lock()

    def replay(self):
        kept = self.folder / "replay.jsonl"
        if not kept.exists():
            command = [self.args.rarefy, "replay", *self.captures, "-t", 1, "--json", "--output", kept]
            for policy in self.policies:
                command += ["--policy", policy]
            self.folder.mkdir(parents=True, exist_ok=True)
            run_program(command)
        self.take("replay", kept.read_text(encoding="utf-8"))

    def take(self, verb, text):
        with self.lock:
            self.rows[verb] = {row["policy"]: row for row in map(json.loads, text.splitlines())}
            self.open.discard(verb)
            if not self.open:
                self.write()

    def write(self):
        lines = []
        for policy in self.policies:
            error, loss, recall = (self.rows[verb][policy] for verb in ("replay", "perplexity", "recall"))
            row = {"bench": "selectors", "model": error["model"], "split": self.args.split, "selector": error["selector"],
                   "spend": error["spend"], "policy": policy, "policy_resolved": error["policy_resolved"]}
            row["sparsity_asked"] = sparsity_asked(policy)
            row["sparsity"] = error["sparsity"]
            row.update({key: error[key] for key in ("kv_len", "kv_dtype", "density", "bytes_ratio", "pairs", "captures")})
            row.update({key: value for key, value in error.items() if key.startswith(("error_", "exact_error_", "estimated_error_"))})
            row.update({key: error[key] for key in ("mass", "recall_of_exact", "overlap", "certificate_covered") if key in error})
            row.update({key: loss[key] for key in ("scored_tokens", "loss", "loss_gap", "loss_gap_ci95", "kl_mean")})
            row.update({"questions": recall["questions"], "recall": recall["right"] / recall["questions"],
                        "recall_ratio": recall["ratio_to_dense"], "contexts": loss["contexts"],
                        "device": error["device"], "commit": error["commit"]})
            if "modified" in error:
                row["modified"] = error["modified"]
            row.update({"command": self.args.command, "date": error["date"]})
            lines.append(json.dumps(row) + "\n")
        with open(self.args.results / RESULTS, "a", encoding="utf-8") as out:
            out.write("".join(lines))
        print(f"{len(lines)} policies of {', '.join(dict.fromkeys(row['selector'] for row in self.rows['replay'].values()))}", flush=True)


def capture_task(args, context: Path, path: Path):
    def run():
        run_program([args.rarefy, "capture", "-m", args.model, "-f", context, "--steps", args.steps, "--every", args.every, "-t",
                     args.threads, "-o", path])
    return run


def measure(args, grid):
    have = {row["policy"] for row in read_rows(args.results / RESULTS) if row["split"] == args.split and row["commit"] == args.commit}
    selectors, chunks = list(grid), []
    for first in range(0, len(selectors), SELECTORS_OF_A_CHUNK):
        policies = [text for selector in selectors[first:first + SELECTORS_OF_A_CHUNK] for text in grid[selector] if text not in have]
        if policies:
            chunks.append(policies)
    total = sum(map(len, grid.values()))
    print(f"pareto: {total} policies, {total - sum(map(len, chunks))} of them measured before", file=sys.stderr)
    if not chunks or args.list:
        return
    held_out = HeldOut(args.model / "eval")
    folder = args.state / "pareto" / f"captures-{args.split}-{args.commit}-{args.steps}-{args.every}"
    folder.mkdir(parents=True, exist_ok=True)
    captures, tasks = [], []
    for number, made in enumerate(held_out.contexts(f"{args.split}-loss-16k")):
        if number == args.contexts:
            break
        context = folder / f"{number}.jsonl"
        context.write_text(json.dumps(made, ensure_ascii=False) + "\n", encoding="utf-8")
        captures.append(folder / f"{number}.safetensors")
        if not captures[-1].exists():
            tasks.append(capture_task(args, context, captures[-1]))
    run_tasks(tasks, args.jobs, "pareto", "captures")

    chunks = [Chunk(args, policies, captures) for policies in chunks]
    of_measurement = {id(measurement): chunk for chunk in chunks for measurement in chunk.measurements}
    tasks = measurement_tasks(held_out, [one for chunk in chunks for one in chunk.measurements],
                              lambda one: of_measurement[id(one)].take(one.verb, one.report()))
    tasks += [chunk.replay for chunk in chunks]
    run_tasks(tasks, args.jobs, "pareto", "runs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (1)")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--policies", nargs="+", metavar="TEXT", help="measure these instead of the grid")
    parser.add_argument("--selectors", nargs="+", metavar="NAME", help="index= texts (all)")
    parser.add_argument("--spends", nargs="+", metavar="NAME", help="spending rules (all)")
    parser.add_argument("--sparsities", nargs="+", type=int, metavar="N", default=list(SPARSITIES))
    parser.add_argument("--contexts", type=int, default=8, help="contexts of 16K tokens for each of error, loss and recall (8)")
    parser.add_argument("--steps", type=int, default=8, help="captured steps of each context (8)")
    parser.add_argument("--every", type=int, default=32, help="decode steps from one captured step to the next (32)")
    parser.add_argument("--predict", type=int, default=128, help="tokens scored after each context (128)")
    parser.add_argument("--questions", type=int, default=4, help="questions asked of each context (4)")
    parser.add_argument("--list", action="store_true", help="say how many policies there are and how many are done")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, measure nothing")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write table and plots to this file")
    args = parser.parse_args()
    if args.split == "test" and not (args.policies or args.table or args.html):
        sys.exit("pareto: --split test confirms policies that were chosen on dev: expected --policies TEXT ..., got none")
    prepare_common(args)
    args.tokens = 16384
    args.command = "python3 study/pareto.py " + shlex.join(sys.argv[1:])
    if not args.table:
        version = run_program([args.rarefy, "--version"])
        args.commit = next(line.split()[1] for line in version.splitlines() if line.split()[:1] == ["commit"])
        try:
            measure(args, make_grid(args))
        except RuntimeError as error:
            sys.exit(f"pareto: {error}")
    if args.list:
        return
    latest = {(row["split"], row["policy"]): row for row in read_rows(args.results / RESULTS)}  # later lines win
    rows = [row for (split, _), row in latest.items() if split == args.split]
    sys.stdout.write(plots.selector_table(rows))
    if args.html and rows:
        args.html.write_text(plots.selector_page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
