#!/usr/bin/env python3
"""The Python package on the CPU backend, with the standard library only. RAREFY_LIBRARY names librarefy_c."""
import array
import ctypes
import math
import os
import pathlib
import random
import re
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
import rarefy  # noqa: E402
from rarefy import _abi  # noqa: E402

HEADS, KV_HEADS, DIM, PAGE = 4, 2, 16, 4
LENS = [11, 6]
TABLE = [[5, 0, 3], [1, 4, 0]]  # the last entry of a short sequence is never read
NUM_PAGES = 6
TOLERANCE = 1e-5  # f32 sums of 16 products and at most 11 tokens, logits below 8: below 50 * 2^-24


class Case:
    """A cache, queries and lists as flat arrays, and the answer in double precision."""

    def __init__(self, seed: int, layout: str = "NHD"):
        self.random = random.Random(seed)
        self.layout = layout
        self.keys, self.values = self.floats(NUM_PAGES * PAGE * KV_HEADS * DIM), self.floats(NUM_PAGES * PAGE * KV_HEADS * DIM)
        self.q = self.floats(len(LENS) * HEADS * DIM)
        self.out, self.lse = self.nans(len(LENS) * HEADS * DIM), self.nans(len(LENS) * HEADS)
        self.table = array.array("i", [page for row in TABLE for page in row])
        self.lens = array.array("i", LENS)

    def floats(self, count):
        return array.array("f", [self.random.gauss(0, 1) for _ in range(count)])

    @staticmethod
    def nans(count):
        return array.array("f", [math.nan] * count)

    def strides(self):
        return (PAGE * KV_HEADS * DIM, KV_HEADS * DIM, DIM) if self.layout == "NHD" else (PAGE * KV_HEADS * DIM, DIM, PAGE * DIM)

    def kv(self):
        return rarefy.PagedKv(self.keys, self.values, self.table, self.lens, layout=self.layout, num_pages=NUM_PAGES,
                              max_pages_per_sequence=3, strides=None if self.layout == "NHD" else self.strides())

    def row(self, memory, sequence, token, kv_head):
        page, per_token, head = self.strides()
        start = TABLE[sequence][token // PAGE] * page + token % PAGE * per_token + kv_head * head
        return memory[start: start + DIM]

    def expected(self, sequence, head, tokens, log_weights=None):
        """(out, lse) of one query head."""
        q = self.q[(sequence * HEADS + head) * DIM:][:DIM]
        kv_head = head * KV_HEADS // HEADS
        logits = [sum(a * b for a, b in zip(q, self.row(self.keys, sequence, t, kv_head))) / math.sqrt(DIM) for t in tokens]
        weights = [math.exp(s + w) for s, w in zip(logits, log_weights or [0.0] * len(logits))]
        total = sum(weights)
        rows = [self.row(self.values, sequence, t, kv_head) for t in tokens]
        return [sum(w * row[d] for w, row in zip(weights, rows)) / total for d in range(DIM)], math.log(total)


def workspace_of(plan):
    """A 64-byte aligned buffer."""
    raw = bytearray(plan.workspace_bytes + 64)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(raw)) % 64
    return memoryview(raw)[start: start + plan.workspace_bytes] if plan.workspace_bytes else None


def make_plan(op, **options):
    return rarefy.DecodePlan(op, num_q_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, kv_dtype="f32", page_size=PAGE,
                             max_batch=len(LENS), **options)


class FakeTensor:
    """What a torch tensor offers, over an array."""

    class Device:
        def __init__(self, kind):
            self.type = kind

    def __init__(self, memory, shape, dtype, device="cpu", stride=None):
        self.memory, self.shape, self.dtype, self.device, self._stride = memory, shape, dtype, self.Device(device), stride

    def data_ptr(self):
        return self.memory.buffer_info()[0]

    def stride(self):
        if self._stride is not None:
            return self._stride
        return tuple(math.prod(self.shape[axis + 1:]) for axis in range(len(self.shape)))


class DlpackOnly:
    """Nothing but __dlpack__, over an array of floats."""

    def __init__(self, memory, shape):
        self.memory = memory
        self.sizes = (ctypes.c_int64 * len(shape))(*shape)
        self.tensor = rarefy._memory._DLTensor(data=memory.buffer_info()[0], device_type=1, ndim=len(shape), code=2, bits=32, lanes=1,
                                               shape=self.sizes)

    def __dlpack__(self):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


class Decode(unittest.TestCase):
    def compare(self, case, lists, log_weights=None):
        """`lists(sequence, head)` are the tokens that the head attended to."""
        for sequence in range(len(LENS)):
            for head in range(HEADS):
                out, lse = case.expected(sequence, head, lists(sequence, head), log_weights and log_weights(sequence, head))
                row = sequence * HEADS + head
                for got, want in zip(case.out[row * DIM: (row + 1) * DIM], out):
                    self.assertAlmostEqual(got, want, delta=TOLERANCE)
                self.assertAlmostEqual(case.lse[row], lse, delta=TOLERANCE)

    def test_dense_of_flat_arrays(self):
        for layout in ("NHD", "HND"):
            case = Case(1, layout)
            plan = make_plan("dense")
            self.assertTrue(plan.implementation)
            workspace = workspace_of(plan)
            plan.prepare_workspace(workspace)
            plan.run(case.q, case.kv(), case.out, batch=len(LENS), lse=case.lse, workspace=workspace)
            plan.check(workspace)
            self.compare(case, lambda sequence, head: range(LENS[sequence]))

    def test_dense_of_tensors_with_strides_of_their_own(self):
        for layout in ("NHD", "HND"):
            case = Case(2, layout)
            shape = (NUM_PAGES, PAGE, KV_HEADS, DIM) if layout == "NHD" else (NUM_PAGES, KV_HEADS, PAGE, DIM)
            kv = rarefy.PagedKv(FakeTensor(case.keys, shape, "torch.float32"), FakeTensor(case.values, shape, "torch.float32"),
                                FakeTensor(case.table, (2, 3), "torch.int32"), FakeTensor(case.lens, (2,), "torch.int32"), layout=layout)
            plan = make_plan("dense")
            workspace = workspace_of(plan)
            plan.prepare_workspace(workspace)
            plan.run(FakeTensor(case.q, (2, 1, HEADS, DIM), "torch.float32"), kv, DlpackOnly(case.out, (2, 1, HEADS, DIM)),
                     lse=case.lse.buffer_info()[0], workspace=workspace)
            self.compare(case, lambda sequence, head: range(LENS[sequence]))

    def test_sparse_with_weights_and_a_dense_list(self):
        for scope, num_lists in (("kv_head", KV_HEADS), ("query_head", HEADS)):
            case = Case(3)
            picks = [[sorted(case.random.sample(range(LENS[s]), 3)) for _ in range(num_lists)] for s in range(2)]
            weights = [[[0.0, 0.5, 1.5] for _ in range(num_lists)] for _ in range(2)]
            counts = array.array("i", [3] * (2 * num_lists))
            counts[num_lists] = -1  # all tokens of sequence 1, list 0
            ids = array.array("i", [t for s in picks for row in s for t in row + [-7]])
            log_weight = array.array("f", [w for s in weights for row in s for w in row + [math.nan]])
            plan = make_plan("sparse", scope=scope, max_selected=4)
            workspace = workspace_of(plan)
            plan.prepare_workspace(workspace)
            rel_std, out_rel_std = case.nans(2 * HEADS), case.nans(2 * HEADS)
            plan.run(case.q, case.kv(), case.out, batch=2, index=rarefy.IndexSet(ids, counts, log_weight, max_selected=4), lse=case.lse,
                     rel_std=rel_std, out_rel_std=out_rel_std, workspace=workspace)

            def all_tokens(sequence, head):
                return sequence == 1 and head * num_lists // HEADS == 0
            self.compare(case,
                         lambda s, h: range(LENS[s]) if all_tokens(s, h) else picks[s][h * num_lists // HEADS],
                         lambda s, h: None if all_tokens(s, h) else weights[s][h * num_lists // HEADS])
            for row in range(2 * HEADS):
                sampled = not all_tokens(row // HEADS, row % HEADS)
                self.assertEqual(rel_std[row] > 0, sampled)
                self.assertEqual(out_rel_std[row] > 0, sampled)

    def test_merge_of_two_halves_is_the_whole(self):
        case = Case(4)
        parts = [[case.expected(s, h, half) for s in range(2) for h in range(HEADS)] for half in (range(3), range(3, 6))]
        part_out = array.array("f", [x for part in parts for out, _ in part for x in out])
        part_lse = array.array("f", [lse for part in parts for _, lse in part])
        plan = rarefy.MergePlan(head_dim=DIM)
        self.assertTrue(plan.implementation)
        plan.run(part_out, part_lse, case.out, lse=case.lse, num_parts=2, num_rows=2 * HEADS)
        self.compare(case, lambda sequence, head: range(6))

    def test_scale(self):
        case = Case(5)
        plan = make_plan("dense")
        workspace = workspace_of(plan)
        plan.prepare_workspace(workspace)
        plan.run(case.q, case.kv(), case.out, batch=2, scale=1e-30, lse=case.lse, workspace=workspace)
        for sequence, kv_len in enumerate(LENS):
            self.assertAlmostEqual(case.lse[sequence * HEADS], math.log(kv_len), delta=TOLERANCE)


class Refusals(unittest.TestCase):
    def setUp(self):
        self.case, self.plan = Case(9), make_plan("dense")
        self.workspace = workspace_of(self.plan)

    def run_with(self, **changes):
        case = self.case
        arguments = dict(q=case.q, kv=case.kv(), out=case.out, batch=2, workspace=self.workspace)
        arguments.update(changes)
        self.plan.run(**arguments)

    def test_the_librarys_message_arrives(self):
        with self.assertRaisesRegex(rarefy.RarefyError, "invalid argument: .*max_batch") as caught:
            self.run_with(batch=3)
        self.assertEqual(caught.exception.status, "invalid argument")
        with self.assertRaisesRegex(rarefy.RarefyError, "num_kv_heads"):
            rarefy.DecodePlan("dense", num_q_heads=3, num_kv_heads=2, head_dim=16)
        with self.assertRaisesRegex(rarefy.RarefyError, "head_dim"):
            rarefy.MergePlan(head_dim=1000)
        with self.assertRaisesRegex(rarefy.RarefyError, "q"):
            self.run_with(q=None)

    def test_what_memory_says_is_compared(self):
        case = self.case
        with self.assertRaisesRegex(TypeError, "out: expected f32, got float64"):
            self.run_with(out=FakeTensor(case.out, (2, 1, HEADS, DIM), "torch.float64"))
        with self.assertRaisesRegex(TypeError, "lse: expected f32, got d"):
            self.run_with(lse=array.array("d", [0.0] * 8))
        with self.assertRaisesRegex(ValueError, "q: expected memory of the plan's device"):
            self.run_with(q=FakeTensor(case.q, (2, 1, HEADS, DIM), "torch.float32", device="cuda"))
        with self.assertRaisesRegex(ValueError, "q: expected a contiguous tensor"):
            self.run_with(q=FakeTensor(case.q, (2, 1, HEADS, DIM), "torch.float32", stride=(64, 64, 1, 4)))
        with self.assertRaisesRegex(TypeError, "q: .*read-only"):
            self.run_with(q=bytes(case.q))
        with self.assertRaisesRegex(TypeError, "expected a tensor, a writable buffer or an address, got list"):
            self.run_with(q=[1.0])
        with self.assertRaisesRegex(ValueError, "expected batch"):
            self.run_with(batch=None)
        with self.assertRaisesRegex(ValueError, "equal strides"):
            shape = (NUM_PAGES, PAGE, KV_HEADS, DIM)
            rarefy.PagedKv(FakeTensor(case.keys, shape, "torch.float32"),
                           FakeTensor(case.values, shape, "torch.float32", stride=(1, 2, 3, 1)), case.table, case.lens)

    def test_words_are_checked(self):
        for wrong in (dict(op="both"), dict(op="dense", kv_dtype="i4"), dict(op="dense", device="tpu"),
                      dict(op="sparse", scope="nobody")):
            with self.assertRaisesRegex(ValueError, "expected one of"):
                rarefy.DecodePlan(**{**dict(num_q_heads=4, num_kv_heads=2, head_dim=16), **wrong})
        with self.assertRaisesRegex(ValueError, "NHD or HND"):
            rarefy.PagedKv(1, 1, 1, 1, layout="DHN", num_pages=1, max_pages_per_sequence=1)


class Interface(unittest.TestCase):
    def test_version(self):
        self.assertEqual(rarefy.version(), rarefy.__version__)
        rarefy.set_num_threads(1)
        rarefy.set_num_threads(0)

    def test_structs_mirror_the_header(self):
        header = re.sub(r"/\*.*?\*/", "", (ROOT / "include/rarefy/rarefy.h").read_text(encoding="utf-8"), flags=re.S)
        for struct in _abi.STRUCTS:
            body = re.search(r"typedef struct %s \{(.*?)\}" % struct.__name__, header, re.S).group(1)
            fields = re.findall(r"(\w+)\s*([*]?)\s*(\w+);", body.replace("*", " * "))
            kinds = {"size_t": ctypes.c_size_t, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}
            want = [(name, None if star else kinds[kind]) for kind, star, name in fields]
            got = [(name, kind if kind in kinds.values() else None) for name, kind in struct._fields_]
            self.assertEqual(got, want, struct.__name__)

    def test_a_missing_library_says_what_was_tried(self):
        kept = os.environ["RAREFY_LIBRARY"]
        os.environ["RAREFY_LIBRARY"] = "/no/such/librarefy_c.so"
        try:
            with self.assertRaisesRegex(ImportError, "set RAREFY_LIBRARY.*no/such/librarefy_c.so"):
                _abi._open()
        finally:
            os.environ["RAREFY_LIBRARY"] = kept


if __name__ == "__main__":
    unittest.main()
