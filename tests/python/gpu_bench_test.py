#!/usr/bin/env python3
"""The GPU benchmark as far as no GPU is needed: tables, bytes, lines. With torch, lists and a whole run on the CPU backend, with a
clock that does not measure. RAREFY_LIBRARY names librarefy_c."""
import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench/gpu"), str(ROOT / "python"), str(ROOT / "tests/scripts")]
import attention  # noqa: E402
import tables  # noqa: E402
from load_script import load  # noqa: E402
from tables import Lists, Shape  # noqa: E402

HAS_TORCH = importlib.util.find_spec("torch") is not None


class Tables(unittest.TestCase):
    def test_every_table_has_cases_that_can_be_made(self):
        for name in tables.TABLES:
            cases = tables.table(name)
            self.assertTrue(cases)
            for case in cases:
                self.assertEqual(case.shape.num_q_heads % case.shape.num_kv_heads, 0)
                for lists in case.lists:
                    counts = tables.counts_of(lists, case.shape)
                    self.assertEqual(len(counts), lists.num_lists(case.shape))
                    self.assertTrue(all(0 < count <= case.shape.kv_len for count in counts))
        with self.assertRaisesRegex(ValueError, "main"):
            tables.table("other")

    def test_the_headline_table_is_whole(self):
        cells = {(lists.scope, lists.sparsity, case.shape.batch) for case in tables.table("main") for lists in case.lists}
        for scope in ("kv_head", "query_head"):
            for sparsity in (50, 100, 500):
                for batch in (1, 4, 8, 16):
                    self.assertIn((scope, sparsity, batch), cells)

    def test_skewed_lists_have_the_same_total_and_one_of_ten_times_another(self):
        shape = Shape(kv_len=131072)
        counts = tables.counts_of(Lists(sparsity=50, pattern="skewed"), shape, 3)
        self.assertEqual(sum(counts), sum(tables.counts_of(Lists(sparsity=50), shape)))
        self.assertAlmostEqual(max(counts) / min(counts), 10, delta=0.1)
        with self.assertRaisesRegex(ValueError, "skewed"):
            tables.counts_of(Lists(sparsity=1, pattern="skewed"), shape)

    def test_bytes_and_ceiling(self):
        shape = Shape(batch=16)
        self.assertEqual(shape.layer_bytes, 16 * 131072 * 8 * 128 * 2 * 2)
        self.assertEqual(tables.sparse_bytes(Lists(sparsity=50), shape), 16 * 8 * 2621 * (512 + 8))
        self.assertEqual(tables.sparse_bytes(Lists("query_head", 50), shape), 16 * 32 * 2621 * (512 + 8))
        self.assertAlmostEqual(tables.ceiling_us(4_000_000, 4.0), 1.0 + 5.0)

    def test_launches_stay_cold(self):
        big, small = Shape(batch=16), Shape(kv_len=512)
        self.assertEqual(tables.graph_sizes(big, 24, 70 << 30, reuse=False), tables.Sizes(8, 24))
        self.assertEqual(tables.graph_sizes(small, 24, 70 << 30, reuse=False), tables.Sizes(24, 24))
        self.assertEqual(tables.graph_sizes(small, 24, 10 * small.layer_bytes, reuse=False), tables.Sizes(10, 10))
        self.assertEqual(tables.graph_sizes(big, 24, big.layer_bytes, reuse=True), tables.Sizes(1, 24))

    def test_short_launches_are_more(self):
        shape, small = Shape(batch=4), Shape(kv_len=512)
        self.assertEqual([tables.list_sizes(shape, 24, us).launches for us in (5, 12.5, 20, 1000)], [96, 80, 50, 24])
        self.assertEqual(tables.list_sizes(small, 24, 5), tables.Sizes(24, 24))

    def test_percentiles(self):
        self.assertEqual(tables.summary([5, 1, 4, 2, 3, 10, 9, 8, 7, 6]), {"p10_us": 1, "median_us": 5, "p90_us": 9})

    def test_arguments(self):
        with self.assertRaises(SystemExit), open("/dev/null", "w") as sys.stderr:
            attention.parse(["--table", "main", "--replays", "3"])
        sys.stderr = sys.__stderr__
        options = attention.parse(["--table", "main", "--batch", "4", "--sparsity", "50", "--scope", "kv_head"])
        self.assertEqual([(shape.batch, [x.sparsity for x in lists]) for shape, lists in attention.selected(options)], [(4, [50])])

    def test_the_fastest_backend_that_ran_is_the_baseline(self):
        dense = {"a": {"p10_us": 9, "median_us": 10, "p90_us": 11}, "b": {"error": "ImportError: no"}, "c": {"p10_us": 7, "median_us": 8, "p90_us": 9}}
        ours = {"p10_us": 1.0, "median_us": 2.0, "p90_us": 3.0}
        line = attention.sparse_line({}, Shape(), Lists(), dense, {}, {"error": "no module"}, ours, 4.0)
        self.assertEqual((line["dense_best_us"], line["dense_best_backend"], line["speedup_over_dense"]), (8, "c", 4))
        self.assertEqual((line["gather_us"], line["speedup_over_gather"], line["gather_error"]), (None, None, "no module"))
        self.assertEqual(line["dense_backends"]["b"]["error"], "ImportError: no")
        none = attention.sparse_line({}, Shape(), Lists(), {"b": {"error": "x"}}, {}, {"error": "x"}, ours, 4.0)
        self.assertEqual((none["dense_best_us"], none["speedup_over_dense"]), (None, None))


class FakeTimer:
    """Runs every launch once on the CPU and says 10 us."""
    device = "cpu"

    def __init__(self, replays):
        self.replays, self.clocks = replays, {"clock_sm_mhz": 1}

    def machine(self):
        return {"device": "none", "driver": "", "cuda": None, "torch": "x", "python": "x"}

    def read_bandwidth(self):
        return 4.0, "none"

    def free_bytes(self):
        return attention.RESERVE_BYTES + (1 << 20)

    def synchronize(self):
        pass

    def graph_us(self, launches):
        for launch in launches:
            launch()
        return {"p10_us": 9.0, "median_us": 10.0, "p90_us": 11.0}


@unittest.skipUnless(HAS_TORCH, "needs torch")
class WithTorch(unittest.TestCase):
    def test_lists_have_the_promised_pattern(self):
        import torch
        from lists import RUN_TOKENS, make_lists
        shape = Shape(kv_len=4096, batch=2)
        for pattern in ("uniform", "clustered", "unsorted", "skewed"):
            generator = torch.Generator().manual_seed(1)
            ids, counts, host = make_lists(Lists("kv_head", 10, pattern), shape, generator)
            self.assertEqual(counts.tolist(), host)
            ascending, neighbours, total = 0, 0, 0
            for sequence in range(2):
                for row in range(8):
                    tokens = ids[sequence, row, : host[sequence][row]].tolist()
                    self.assertEqual(len(set(tokens)), len(tokens))
                    self.assertTrue(0 <= min(tokens) and max(tokens) < 4096)
                    self.assertTrue((ids[sequence, row, host[sequence][row]:] == -1).all())
                    ascending += tokens == sorted(tokens)
                    neighbours += sum(b - a == 1 for a, b in zip(tokens, tokens[1:]))
                    total += len(tokens)
            self.assertEqual(ascending, 0 if pattern == "unsorted" else 16)
            if pattern == "clustered":
                self.assertGreater(neighbours, total * (1 - 2 / RUN_TOKENS))

    def test_rows_point_at_the_listed_tokens(self):
        import torch
        from caches import Caches
        shape = Shape(4, 2, 16, 64, 2, 16)
        caches = Caches(shape, 1, torch.float32, 1, "cpu")
        keys = caches.layers[0][0]
        for scope, num_lists in (("kv_head", 2), ("query_head", 4)):
            ids = torch.full((2, num_lists, 3), -1, dtype=torch.int32)
            ids[1, num_lists - 1, :2] = torch.tensor([5, 33])
            rows = caches.rows_of(ids, Lists(scope, 2))
            self.assertEqual((rows >= 0).sum(), 2)
            for token, row in zip((5, 33), rows[1, num_lists - 1]):
                expected = keys[caches.page_table[1, token // 16], token % 16, 1]
                self.assertTrue(torch.equal(keys.view(-1, 16)[row], expected))

    def test_what_flashinfer_is_given_describes_the_same_attention(self):
        import types
        import unittest.mock
        import torch
        import arms
        import caches as c

        class PlainWrapper:
            """The contract of BatchDecodeWithPagedKVCacheWrapper, in torch."""

            def plan(self, indptr, indices, last, num_qo_heads, num_kv_heads, head_dim, page_size, **_):
                self.planned = indptr, indices, last, num_qo_heads, num_kv_heads, page_size

            def run(self, q, kv, out, enable_pdl=False):
                indptr, indices, last, heads, kv_heads, page_size = self.planned
                assert q.shape == out.shape == (len(last), heads, kv[0].shape[3]) and kv[0].shape[1:3] == (page_size, kv_heads)
                for request in range(len(last)):
                    pages = indices[indptr[request]: indptr[request + 1]].long()
                    count = (len(pages) - 1) * page_size + last[request]
                    k, v = (x[pages].flatten(0, 1)[:count].repeat_interleave(heads // kv_heads, 1).double() for x in kv)
                    p = torch.softmax(torch.einsum("hd,thd->ht", q[request].double(), k) / k.shape[2] ** 0.5, 1)
                    out[request] = torch.einsum("ht,thd->hd", p, v)
        caches = c.Caches(Shape(4, 2, 16, 200, 2, 16), 2, torch.float32, 1, "cpu")
        slots = caches.slots(3)
        with unittest.mock.patch.multiple(arms, _wrapper=lambda *_: PlainWrapper(), _float_workspace=lambda: None):
            dense = arms.FlashInferDense(caches, slots, "fa2", True)
            gathers = []
            for lists in (Lists("kv_head", 5), Lists("query_head", 5, "skewed"), Lists("kv_head", 4, "unsorted")):
                slot_lists = c.SlotLists(caches, lists, 3)
                gathers.append((arms.FlashInferGather(caches, slots, slot_lists, True), lists, slot_lists.sets))
        for arm, lists, sets in [(dense, None, None), *gathers]:
            for slot, launch in enumerate(arm.launches):
                launch()
                for sequence in range(2):
                    expected = c.reference(caches, slots[slot], lists, sets and sets[slot], sequence=sequence)
                    self.assertLess(c.relative_error(arm.out[slot][sequence, 0], expected), 1e-5)
        fake = types.SimpleNamespace(flash_attn_with_kvcache=lambda q, k, v, cache_seqlens, softmax_scale, causal: torch.einsum(
            "bhqt,bthd->bqhd", torch.softmax(torch.einsum("bqhd,bthd->bhqt", q, k.repeat_interleave(2, 2)[:, :200]) * softmax_scale, 3),
            v.repeat_interleave(2, 2)[:, :200]))
        with unittest.mock.patch.dict(sys.modules, fa3_fwd_interface=fake):
            arm = arms.FlashAttention3(caches, slots)
            arm.launches[0]()
        expected = c.reference(caches, slots[0], page_table=arm.page_table, sequence=1)
        self.assertLess(c.relative_error(arm.out[0][1, 0], expected), 1e-5)

    def test_a_whole_run_writes_lines_that_the_tables_take(self):
        import os
        import unittest.mock
        import arms

        def broken(caches, slots):
            raise ImportError("no such backend")
        # Ours stands in for the others, which need a GPU.
        stand_ins = unittest.mock.patch.multiple(
            arms, DENSE={"itself": arms.Rarefy, "broken": broken},
            FlashInferGather=lambda caches, slots, slot_lists, graph_plan: arms.Rarefy(caches, slots, slot_lists))
        real, os.environ["RAREFY_COMMIT"] = tables.table, "0123456789ab"
        shape = Shape(4, 2, 64, 256, 2, 16)
        case = tables.Case(shape, (Lists("kv_head", 4), Lists("query_head", 8, "unsorted"), Lists("kv_head", 5, "skewed")))
        fake = {"sweep": [case], "dense": [tables.Case(shape, ())]}
        attention.table = fake.__getitem__
        sys.modules["flashinfer"] = None  # importing it takes long
        try:
            with stand_ins, tempfile.TemporaryDirectory() as folder:
                out = pathlib.Path(folder) / "sparse_decode.jsonl"
                for name in fake:
                    self.assertEqual(attention.main(["--table", name, "--out", str(out), "--launches", "3"], FakeTimer), 0)
                lines = [json.loads(line) for line in out.read_text().splitlines()]
        finally:
            attention.table = real
            del sys.modules["flashinfer"]
            del os.environ["RAREFY_COMMIT"]
        self.assertEqual([line["bench"] for line in lines], ["sparse_decode"] * 3 + ["dense_decode"])
        readme_tables = load("readme_tables")
        for line in lines:
            readme_tables.check_row("test", line)
            self.assertEqual((line["clock_sm_mhz"], line["table"]), (1, "dense" if line["bench"] == "dense_decode" else "sweep"))
            self.assertLess(line["relative_error"], attention.MAX_ERROR)
            self.assertEqual(line["dense_backends"]["broken"], {"error": "ImportError: no such backend"})
            self.assertEqual((line["dense_best_backend"], line["dense_best_us"], line["ours_us"]), ("itself", 10.0, 10.0))
            if line["bench"] == "sparse_decode":
                self.assertEqual((line["gather_us"], line["speedup_over_gather"], line["difference_to_gather"]), (10.0, 1.0, 0.0))


if __name__ == "__main__":
    unittest.main()
