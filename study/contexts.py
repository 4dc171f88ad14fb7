"""What the studies share: one context is one process of the program, many at a time, and what is finished is kept.

Standard library only. A Measurement is one verb on one set of MODEL/eval/sets.jsonl; its files are STATE/NAME.jsonl and run.jsonl
for the whole set, the same in a folder for each context. A run.jsonl is what --resume reads and writes: a line that describes the
run, one per context.
"""
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "training"))
from make_contexts import HeldOut  # noqa: E402,F401


def run_program(command):
    """Standard output of a command that must succeed."""
    run = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(run.args)} ended with {run.returncode}: {run.stderr[-2000:]}")
    return run.stdout


def run_lines(folder: Path):
    """Complete lines of a context's run.jsonl."""
    path = folder / "run.jsonl"
    return [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")] if path.exists() else []


def read_rows(path: Path):
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


class Measurement:
    """`rarefy VERB` on one set, under dense and `policies`. `more` are further flags."""

    def __init__(self, args, verb: str, name: str, policies, folder: Path, more=(), contexts: int = 0):
        self.args, self.verb, self.name, self.policies = args, verb, name, policies
        self.folder, self.more, self.contexts = folder, list(more), contexts

    def command(self, folder: Path):
        command = [self.args.rarefy, self.verb, "-m", self.args.model, "-f", folder / f"{self.name}.jsonl", "--set", self.name,
                   "--json", "--resume", folder / "run.jsonl", "-t", self.args.threads, *self.more]
        command += ["--chunks", 0] if self.verb == "perplexity" else []
        for policy in self.policies:
            command += ["--policy", policy]
        return command

    def prepare(self, held_out: HeldOut):
        """Writes the contexts and returns the folders of those that are open."""
        lines = []
        for made in held_out.contexts(self.name):
            if self.contexts and len(lines) == self.contexts:
                break
            lines.append(json.dumps(made, ensure_ascii=False) + "\n")
        self.parts = [self.folder / str(i) for i in range(len(lines))]
        for folder, line in zip([self.folder, *self.parts], ["".join(lines), *lines]):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{self.name}.jsonl").write_text(line, encoding="utf-8")
        self.open = {part for part in self.parts if len(run_lines(part)) < 2}
        return sorted(self.open)

    def run_part(self, folder: Path):
        run_program(self.command(folder))

    def report(self) -> str:
        """Joins what the contexts left: result lines."""
        runs = [run_lines(part) for part in self.parts]
        (self.folder / "run.jsonl").write_text("".join(runs[0][:1] + [run[1] for run in runs]), encoding="utf-8")
        return run_program(self.command(self.folder))


def run_tasks(tasks, jobs: int, program: str, unit: str):
    """Runs functions, `jobs` at a time; stops at the first failure or at Ctrl-C. What is running then is waited for."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                print(f"{number} of {len(futures)} {unit}", file=sys.stderr, flush=True)
        except (RuntimeError, KeyboardInterrupt) as error:
            pool.shutdown(wait=True, cancel_futures=True)
            sys.exit(f"{program}: {error or 'stopped'}; run again to go on where it was")


def measurement_tasks(held_out: HeldOut, measurements, when_done):
    """One queue of contexts over all measurements, so that no process waits for the end of a set. `when_done(measurement)` is
    called once for each, by one thread at a time."""
    lock = threading.Lock()

    def run(measurement, part):
        measurement.run_part(part)
        with lock:
            measurement.open.discard(part)
            if not measurement.open:
                when_done(measurement)

    tasks = []
    for measurement in measurements:
        parts = measurement.prepare(held_out)
        if not parts:
            when_done(measurement)
        tasks += [lambda measurement=measurement, part=part: run(measurement, part) for part in parts]
    return tasks


def add_common_flags(parser):
    parser.add_argument("--rarefy", type=Path, default=Path("build/release/apps/cli/rarefy"))
    parser.add_argument("--model", type=Path, default=Path("models/rarefy-8m"))
    parser.add_argument("--state", type=Path, default=Path("build/study"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (1)")


def prepare_common(args):
    args.rarefy = args.rarefy.resolve()  # a bare name would be looked up on PATH
    args.state.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)
