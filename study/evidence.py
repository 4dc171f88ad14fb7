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
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "training"))
from make_contexts import HeldOut  # noqa: E402

AUDIT = "0.02"  # share of the sparse (layer, step) pairs that are recomputed densely
POLICIES = ("50x", "100x")
# Sets of MODEL/eval/sets.jsonl by the verb that measures them.
SETS = {
    "recall": ("blind-recall-16k", "unseen-documents-recall-16k", "unseen-templates-recall-16k", "unseen-formats-recall-16k",
               "unseen-words-recall-16k", "unseen-all-recall-16k", "test-recall-32k", "test-recall-16k", "dev-recall-16k"),
    "perplexity": ("test-loss-16k", "unseen-loss-16k", "test-loss-32k", "dev-loss-16k"),
}


class Measurement:
    """One set under dense and every policy. Its files: STATE/NAME/NAME.jsonl and run.jsonl for the whole set, the same in a
    folder for each context. A run.jsonl is what --resume reads and writes: a line that describes the run, one per context."""

    def __init__(self, args, verb: str, name: str):
        self.args, self.verb, self.name = args, verb, name
        self.folder = args.state / name
        self.results = args.results / f"{verb}.jsonl"

    def done(self) -> bool:
        if not self.results.exists():
            return False
        rows = [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {"dense", *POLICIES} <= {row["policy"] for row in rows if row["set"] == self.name}

    def command(self, folder: Path):
        command = [self.args.rarefy, self.verb, "-m", self.args.model, "-f", folder / f"{self.name}.jsonl", "--set", self.name,
                   "--audit", AUDIT, "--json", "--resume", folder / "run.jsonl", "-t", self.args.threads]
        command += ["--chunks", 0] if self.verb == "perplexity" else []
        for policy in POLICIES:
            command += ["--policy", policy]
        return [str(part) for part in command]

    def prepare(self, held_out: HeldOut):
        """Writes the contexts and returns the folders of those that are open."""
        lines = [json.dumps(made, ensure_ascii=False) + "\n" for made in held_out.contexts(self.name)]
        lines = lines[:self.args.contexts or None]
        self.parts = [self.folder / str(i) for i in range(len(lines))]
        for folder, line in zip([self.folder, *self.parts], ["".join(lines), *lines]):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{self.name}.jsonl").write_text(line, encoding="utf-8")
        self.open = {part for part in self.parts if len(run_lines(part)) < 2}
        return sorted(self.open)

    def run_part(self, folder: Path):
        run = subprocess.run(self.command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if run.returncode != 0:
            raise RuntimeError(f"{' '.join(run.args)} ended with {run.returncode}: {run.stderr[-2000:]}")

    def report(self):
        """Joins what the contexts left and appends the result lines."""
        runs = [run_lines(part) for part in self.parts]
        (self.folder / "run.jsonl").write_text("".join(runs[0][:1] + [run[1] for run in runs]), encoding="utf-8")
        run = subprocess.run(self.command(self.folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if run.returncode != 0:
            raise RuntimeError(f"{' '.join(run.args)} ended with {run.returncode}: {run.stderr[-2000:]}")
        with open(self.results, "a", encoding="utf-8") as out:
            out.write(run.stdout)
        for line in run.stdout.splitlines():
            row = json.loads(line)
            if self.verb == "recall":
                low, high = row["ratio_ci95"]
                text = f"{row['right']} of {row['questions']}, {row['ratio_to_dense']:.3f} of dense ({low:.3f} to {high:.3f})"
            else:
                low, high = row["loss_gap_ci95"]
                text = f"loss {row['loss']:.4f}, gap {row['loss_gap']:+.4f} ({low:+.4f} to {high:+.4f})"
            print(f"{self.name}: {row['policy']}: {text}, bytes_ratio {row['bytes_ratio']:.4f}", flush=True)


def run_lines(folder: Path):
    """Complete lines of a context's run.jsonl."""
    path = folder / "run.jsonl"
    return [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")] if path.exists() else []


def measure_all(args, measurements):
    """One queue of contexts over all measurements, so that no process waits for the end of a set."""
    held_out, lock = HeldOut(args.model / "eval"), threading.Lock()

    def run(measurement, part):
        measurement.run_part(part)
        with lock:
            measurement.open.discard(part)
            if not measurement.open:
                measurement.report()

    with ThreadPoolExecutor(args.jobs) as pool:
        tasks = []
        for measurement in measurements:
            parts = measurement.prepare(held_out)
            if not parts:
                measurement.report()
            tasks += [pool.submit(run, measurement, part) for part in parts]
        try:
            for number, task in enumerate(as_completed(tasks), 1):
                task.result()
                print(f"{number} of {len(tasks)} contexts", file=sys.stderr, flush=True)
        except (RuntimeError, KeyboardInterrupt) as error:
            pool.shutdown(wait=True, cancel_futures=True)
            sys.exit(f"evidence: {error or 'stopped'}; run again to go on where it was")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rarefy", type=Path, default=Path("build/release/apps/cli/rarefy"))
    parser.add_argument("--model", type=Path, default=Path("models/rarefy-8m"))
    parser.add_argument("--state", type=Path, default=Path("build/study"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (1)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each (2)")
    parser.add_argument("--contexts", type=int, default=0, help="only the first N contexts of each set, to try it out")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these sets only")
    parser.add_argument("--list", action="store_true", help="name the measurements and which are done")
    args = parser.parse_args()
    args.rarefy = args.rarefy.resolve()  # a bare name would be looked up on PATH
    measurements = [Measurement(args, verb, name) for verb, names in SETS.items() for name in names]
    known = [measurement.name for measurement in measurements]
    for name in args.only or []:
        if name not in known:
            sys.exit(f"evidence: expected one of {', '.join(known)}, got {name!r}")
    chosen = [measurement for measurement in measurements if not args.only or measurement.name in args.only]
    if args.list:
        for measurement in chosen:
            print(f"{measurement.verb:<11} {measurement.name:<30} {'done' if measurement.done() else 'open'}")
        return
    args.state.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)
    measure_all(args, [measurement for measurement in chosen if not measurement.done()])


if __name__ == "__main__":
    main()
