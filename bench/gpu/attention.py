#!/usr/bin/env python3
"""Decode attention on a GPU: ours, dense and sparse, beside every decode backend of FlashInfer and FlashInfer as a gather.

Use: scripts/gpu/bench_attention --table main [--out results/sparse_decode.jsonl]      (README.md beside this file explains it)
"""
import argparse
import gc
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(ROOT / "python")]

from provenance import commit_of, now  # noqa: E402
from tables import LAUNCHES, TABLES, ceiling_us, graph_sizes, list_sizes, sparse_bytes, table  # noqa: E402

RESERVE_BYTES = 14 << 30  # workspaces, lists and what making them needs
MAX_ERROR = 2e-2  # relative error of an output in bf16 or f16; rounding of out alone is below 4e-3


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, choices=TABLES)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results/sparse_decode.jsonl", help="lines are appended")
    parser.add_argument("--dtype", choices=("bf16", "f16"), default="bf16")
    parser.add_argument("--batch", type=int, action="append", help="these batches only")
    parser.add_argument("--kv-len", type=int, action="append", help="these lengths only")
    parser.add_argument("--sparsity", type=float, action="append", help="these sparsities only")
    parser.add_argument("--scope", choices=("kv_head", "query_head"), action="append", help="these scopes only")
    parser.add_argument("--head-dim", type=int, action="append", help="these head sizes only")
    parser.add_argument("--launches", type=int, help="of one graph (24, up to 96 where they are short)")
    parser.add_argument("--replays", type=int, default=25, help="timed replays of each graph (25)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.replays < 20:
        parser.error(f"--replays: expected at least 20, got {options.replays}")
    if options.launches is not None and options.launches < 1:
        parser.error(f"--launches: expected at least 1, got {options.launches}")
    return options


def selected(options):
    """The cases of the table that the options leave."""
    def wanted(value, choices):
        return not choices or value in choices
    for case in table(options.table):
        shape = case.shape
        lists = tuple(x for x in case.lists if wanted(x.sparsity, options.sparsity) and wanted(x.scope, options.scope))
        if wanted(shape.batch, options.batch) and wanted(shape.kv_len, options.kv_len) and wanted(shape.head_dim, options.head_dim):
            if lists or not case.lists:
                yield shape, lists


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def dense_line(facts, shape, dense, ours, read_tb_s):
    """Of one shape: every backend, and ours."""
    best = best_of(dense)
    return {"bench": "dense_decode", **shape_fields(shape), **dense_fields(dense), **ours,
            "bytes": shape.layer_bytes, "read_tb_s": read_tb_s, "ours_us": ours["median_us"],
            "ratio_to_best": ours["median_us"] / best[1]["median_us"] if best else None, **facts}


def sparse_line(facts, shape, lists, dense, ours_dense, gather, ours, read_tb_s):
    num_bytes = sparse_bytes(lists, shape)
    ceiling, best, us = ceiling_us(num_bytes, read_tb_s), best_of(dense), ours["median_us"]
    timed = "median_us" in gather
    return {"bench": "sparse_decode", "scope": lists.scope, "pattern": lists.pattern, "sparsity": lists.sparsity, **shape_fields(shape),
            **dense_fields(dense), "ours_dense_us": ours_dense.get("median_us"),
            "gather_us": gather.get("median_us"), "gather_p10_us": gather.get("p10_us"), "gather_p90_us": gather.get("p90_us"),
            "gather_plan": gather.get("plan"), "gather_error": gather.get("error"), **ours, "ours_us": us, "bytes": num_bytes, "read_tb_s": read_tb_s,
            "ceiling_us": ceiling, "share_of_ceiling": ceiling / us,
            "speedup_over_dense": best[1]["median_us"] / us if best else None,
            "speedup_over_gather": gather["median_us"] / us if timed else None, **facts}


def shape_fields(shape):
    return {"batch": shape.batch, "kv_len": shape.kv_len, "num_q_heads": shape.num_q_heads, "num_kv_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim, "page_size": shape.page_size}


def best_of(dense):
    """(name, times) of the fastest backend that ran; None if none did."""
    ran = {name: times for name, times in dense.items() if "median_us" in times}
    return min(ran.items(), key=lambda item: item[1]["median_us"]) if ran else None


def dense_fields(dense):
    best = best_of(dense)
    return {"dense_best_us": best[1]["median_us"] if best else None, "dense_best_backend": best[0] if best else None,
            "dense_backends": dense}


class Bench:
    def __init__(self, options, timer, machine, read_tb_s, read_method):
        import torch
        self.torch, self.options, self.timer, self.read_tb_s = torch, options, timer, read_tb_s
        self.dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[options.dtype]
        self.facts = {"table": options.table, "dtype": options.dtype, "kv_dtype": options.dtype, "replays": options.replays, "read_method": read_method, **machine}
        self.failures = []

    def measure(self, make, name, expected=None):
        """Times of an arm with the error of its first launch against `expected(arm)`, or why it did not run."""
        import caches as c
        try:
            arm = make()
            arm.launches[0]()
            times = {}
            if expected is not None:
                times["relative_error"] = c.relative_error(arm.out[0][0, 0], expected(arm))
                if not times["relative_error"] <= MAX_ERROR:
                    raise ArithmeticError(f"relative error {times['relative_error']:.3g} against the reference, more than {MAX_ERROR}")
            times.update(self.timer.graph_us(arm.launches))
            return arm, times
        except Exception as error:  # noqa: BLE001: an arm may fail in any way; it is recorded, and the others go on
            self.timer.synchronize()  # raises again, and ends the run, where the device itself is broken
            print(f"  {name}: {reason(error)}", flush=True)
            return None, {"error": reason(error)}
        finally:
            gc.collect()

    def case(self, shape, lists_of_case, write):
        import arms
        import caches as c
        options = self.options
        free = self.timer.free_bytes() - RESERVE_BYTES
        if free < shape.layer_bytes:
            self.failures.append(f"{shape}: one layer needs {shape.layer_bytes >> 30} GiB, {free >> 30} GiB are free")
            return
        dense_sizes, sizes = (graph_sizes(shape, options.launches or LAUNCHES, free, reuse) for reuse in (False, True))
        caches = c.Caches(shape, sizes.layers, self.dtype, options.seed, self.timer.device)
        dense_slots = caches.slots(dense_sizes.launches)
        references = {}

        def dense_reference(arm):
            key = arm.page_table is caches.page_table
            if key not in references:
                references[key] = c.reference(caches, dense_slots[0], page_table=arm.page_table)
            return references[key]
        dense = {name: self.measure(lambda: make(caches, dense_slots), name, dense_reference)[1] for name, make in arms.DENSE.items()}
        arm, ours_dense = self.measure(lambda: arms.Rarefy(caches, dense_slots), "rarefy dense", dense_reference)
        self.show(shape, "dense", ours_dense, dense)
        if arm is None:
            self.failures.append(f"{shape} dense: {ours_dense['error']}")
        elif options.table == "dense":
            arm.check()
            write(dense_line({**self.facts, **self.timer.clocks, "implementation": arm.implementation, "layers": dense_sizes.layers,
                              "launches": dense_sizes.launches}, shape, dense, ours_dense, self.read_tb_s))
        del arm, dense_slots
        for lists in lists_of_case:
            if options.launches is None:
                sizes = list_sizes(shape, sizes.layers, ceiling_us(sparse_bytes(lists, shape), self.read_tb_s))
            self.sparse(caches, lists, sizes, dense, ours_dense, write)
        del caches
        gc.collect()
        self.torch.cuda.empty_cache()

    def sparse(self, caches, lists, sizes, dense, ours_dense, write):
        import arms
        import caches as c
        try:
            slot_lists = c.SlotLists(caches, lists, sizes.launches)
        except ValueError as error:  # a skewed list longer than the sequence
            print(f"  {lists}: left out: {error}", flush=True)
            return
        slots = caches.slots(sizes.launches)

        def expected(arm):
            return c.reference(caches, slots[0], lists, slot_lists.sets[0])
        gathers = {name: self.measure(lambda: arms.FlashInferGather(caches, slots, slot_lists, graph_plan), f"gather, {name}", expected)
                   for name, graph_plan in arms.GATHER.items()}
        plan = min(gathers, key=lambda name: gathers[name][1].get("median_us", float("inf")))
        gather_arm, gather = gathers.pop(plan)
        gather = {**gather, "plan": plan}
        del gathers
        arm, ours = self.measure(lambda: arms.Rarefy(caches, slots, slot_lists), "rarefy sparse", expected)
        if arm is None:
            self.failures.append(f"{caches.shape} {lists}: {ours['error']}")
            return
        arm.check()
        if gather_arm is not None:  # the last launch of the graph, all sequences
            ours["difference_to_gather"] = c.relative_error(arm.out[-1], gather_arm.out[-1].double())
        self.show(caches.shape, f"{lists.scope} {lists.sparsity:g}x {lists.pattern}", ours, dense, gather,
                  ceiling_us(sparse_bytes(lists, caches.shape), self.read_tb_s))
        write(sparse_line({**self.facts, **self.timer.clocks, "implementation": arm.implementation, "layers": sizes.layers,
                           "launches": sizes.launches}, caches.shape, lists, dense, ours_dense, gather, ours, self.read_tb_s))

    @staticmethod
    def show(shape, what, ours, dense, gather=None, ceiling=None):
        best, us = best_of(dense), ours.get("median_us")
        text = f"b={shape.batch} n={shape.kv_len} {shape.num_q_heads}/{shape.num_kv_heads}x{shape.head_dim} {what}:"
        text += f" ours {us:.1f} us, error {ours['relative_error']:.1e}" if us else " ours failed"
        if best:
            text += f"; dense {best[1]['median_us']:.1f} us ({best[0]})" + (f" {best[1]['median_us'] / us:.2f}x" if us else "")
        if gather and "median_us" in gather:
            text += f"; gather {gather['median_us']:.1f} us" + (f" {gather['median_us'] / us:.2f}x" if us else "")
        if ceiling and us:
            text += f"; ceiling {ceiling:.1f} us, {ceiling / us:.0%} of it reached"
        print(text, flush=True)


def versions():
    """Of FlashInfer and ours, as far as they load."""
    found = {}
    for name in ("flashinfer", "rarefy"):
        try:
            module = __import__(name)
            found[f"{name}_version"] = module.version() if name == "rarefy" else module.__version__
        except Exception as error:  # noqa: BLE001: whatever it is, it is the reason
            found[f"{name}_version"] = reason(error)
    return found


def main(arguments=None, make_timer=None) -> int:
    options = parse(arguments)
    import harness
    machine = {**versions(), "commit": commit_of(ROOT), "date": now(),
               "command": "scripts/gpu/bench_attention " + " ".join(sys.argv[1:] if arguments is None else arguments)}
    if not machine["commit"]:
        print("bench_attention: no commit: run in a git tree, or set RAREFY_COMMIT", file=sys.stderr)
        return 2
    timer = (make_timer or harness.Timer)(options.replays)
    machine.update(timer.machine())
    read_tb_s, method = timer.read_bandwidth()
    print(f"{machine['device']}, driver {machine['driver']}, FlashInfer {machine['flashinfer_version']}; read {read_tb_s:.3f} TB/s ({method})",
          flush=True)
    bench = Bench(options, timer, machine, read_tb_s, method)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a", encoding="utf-8") as out:
        def write(line):
            out.write(json.dumps(line) + "\n")
            out.flush()
        for shape, lists in selected(options):
            bench.case(shape, lists, write)
    for failure in bench.failures:
        print(f"bench_attention: not measured: {failure}", file=sys.stderr)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
