#!/usr/bin/env python3
"""Tests of the lints: each must pass a good example and fail a bad one. Standard library only."""
import contextlib
import io
import json
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from load_script import SCRIPTS, load


class TreeTest(unittest.TestCase):
    """Each test fills a small project tree."""

    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp()).resolve()
        self.addCleanup(shutil.rmtree, self.root)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name


class LayersTest(TreeTest):
    def problems(self):
        return load("lint_layers").check(self.root)

    def test_downward_includes_pass(self):
        self.write("include/rarefy/core/status.h", "#include <string>\n#include <cstdint>\n")
        self.write("include/rarefy/attention/decode.h", '#include "rarefy/core/status.h"\n')
        self.write("src/cpu/decode/decode.h", '#include "rarefy/attention/decode.h"\n')
        self.write("src/cpu/decode/decode.cc", '#include "cpu/decode/decode.h"\n#include "hwy/highway.h"\n#include <omp.h>\n')
        self.write("src/attention/decode.cc", '#include "cpu/decode/decode.h"\n#include "rarefy/attention/decode.h"\n')
        self.write("apps/cli/main.cc", '#include "rarefy/core/status.h"\n#include <CLI/CLI.hpp>\n')
        self.assertEqual(self.problems(), [])

    def test_backend_must_not_use_private_headers_above(self):
        self.write("src/attention/registry.h", "")
        self.write("src/cpu/decode.cc", '#include "attention/registry.h"\n')
        self.assertEqual(len(self.problems()), 1)
        self.assertIn("src/cpu/decode.cc:1", self.problems()[0])

    def test_public_headers_must_not_go_up(self):
        self.write("include/rarefy/engine/session.h", "")
        self.write("include/rarefy/model/model.h", '#pragma once\n#include "rarefy/engine/session.h"\n')
        self.assertEqual(len(self.problems()), 1)
        self.assertIn("model.h:2: 'model' must not depend on 'engine'", self.problems()[0])

    def test_model_does_not_know_the_cache(self):
        self.write("include/rarefy/kv/kv_cache.h", "")
        self.write("src/model/llama.cc", '#include "rarefy/kv/kv_cache.h"\n')
        self.assertEqual(len(self.problems()), 1)

    def test_public_header_must_not_include_private_one(self):
        self.write("src/core/buffer.h", "")
        self.write("include/rarefy/core/view.h", '#include "../../../src/core/buffer.h"\n')
        self.assertEqual(len(self.problems()), 1)

    def test_public_header_must_not_include_third_party_or_cuda(self):
        self.write("include/rarefy/core/stream.h", "#include <cuda_runtime.h>\n#include <hwy/highway.h>\n#include <omp.h>\n")
        self.assertEqual(len(self.problems()), 3)

    def test_public_header_must_not_depend_on_build_flags(self):
        self.write("include/rarefy/core/device.h", "#ifdef RAREFY_ENABLE_CUDA\n#endif\n#ifdef __cplusplus\n#endif\n")
        self.assertEqual(len(self.problems()), 1)

    def test_programs_use_public_headers_only(self):
        self.write("src/engine/impl.h", "")
        self.write("apps/cli/main.cc", '#include "engine/impl.h"\n')
        self.assertEqual(len(self.problems()), 1)

    def test_missing_file_and_unknown_room(self):
        self.write("src/core/a.cc", '#include "core/gone.h"\n')
        self.write("src/surprise/b.cc", "")
        self.assertEqual(len(self.problems()), 2)


class ShapesTest(unittest.TestCase):
    def problems(self, text, path="include/rarefy/x.h", declared=()):
        return load("lint_shapes").check_file(path, text, set(declared))[0]

    def test_good_examples_pass(self):
        good = """
struct Args {
  const float* q = nullptr;  // [batch, num_q_heads, head_dim] f32; contiguous
  void* out = nullptr;       // [batch, num_q_heads, head_dim] out_dtype; contiguous
  int64_t stride = 0;
  void* stream = nullptr;    // not a tensor: the caller's cudaStream_t
  const std::byte* const* entries = nullptr;  // [num_blocks] pointers to [block_bytes] bytes
  std::vector<std::string> names;
  std::vector<BFloat16> rows_;  // [num_rows, head_dim] bf16
  const char* name;
};
// Both rows. `lens` // [batch] i32
Status validate(const View& view, const int32_t* lens);
Status write(int32_t layer,
             const float* keys,     // [pending, num_kv_heads, head_dim] f32
             const float* values);  // [pending, num_kv_heads, head_dim] f32
int32_t sample(std::span<const float> logits, int64_t position);  // logits: [vocab_size] f32
inline float sum(const float* x, int64_t n) {  // x [n] f32
  const float* local = x;
  return *local;
}
float* row(int32_t i);
"""
        self.assertEqual(self.problems(good), [])

    def test_members_and_parameters_without_comment_fail(self):
        bad = """
struct Args {
  const float* q = nullptr;
  BFloat16* k;  // keys
  std::vector<float> scores_;  // scratch
  TensorView weights;
};
void scale(float* x, int64_t n);
"""
        problems = self.problems(bad)
        self.assertEqual([int(p.split(":")[1]) for p in problems], [3, 4, 5, 6, 8], problems)

    def test_wrong_element_type_fails(self):
        self.assertEqual(len(self.problems("struct A {\n  const float* q;  // [batch] i32\n};\n")), 1)
        self.assertEqual(len(self.problems("struct A {\n  const void* q;  // [batch] of them\n};\n")), 1)

    def test_two_parameters_on_a_line_need_two_shapes(self):
        self.assertEqual(len(self.problems("void f(const float* a, float* b);  // [n] f32\n")), 2)
        self.assertEqual(self.problems("void f(const float* a, float* b);  // a [n] f32, b [n] f32\n"), [])

    def test_sources(self):
        self.assertEqual(len(self.problems("namespace {\nfloat sum(const float* x) { return *x; }\n}\n", "src/a.cc")), 1)
        self.assertEqual(self.problems("float sum(const float* x) { return *x; }\n", "src/a.cc", ["sum"]), [])
        self.assertEqual(self.problems("Status A::run(const float* x) { return f(x); }\n", "src/a.cc"), [])
        self.assertEqual(len(self.problems("class A::Impl {\n  float* rows_;\n};\n", "src/a.cc")), 1)
        self.assertEqual(self.problems("class B : A {\n Status run(const float* x) const override { return f(x); }\n};\n", "src/a.cc"), [])

    def test_local_variables_and_literals_do_not_count(self):
        self.assertEqual(self.problems('void f() {\n  float* x = g("float* y;");\n  struct L { float* z; };\n}\n', "src/a.cc"), [])

    def test_names_keep_their_meaning_below_src(self):
        text = "float dot(const float* q);  // [head_dim] f32\nfloat dot_simd(const float* q);\n"
        self.assertEqual(self.problems(text, "src/cpu/dot.h"), [])
        self.assertEqual(len(self.problems(text, "include/rarefy/dot.h")), 1)
        member = "struct A {\n  const float* q;  // [head_dim] f32\n};\nstruct B {\n  const float* q;\n};\n"
        self.assertEqual(len(self.problems(member, "src/cpu/dot.h")), 1)

    def test_formula_above_is_not_a_shape(self):
        text = "// out[i] = q[i] + 1\nvoid f(const float* q,  // [n] f32\n       float* out);  // [n] f32\n"
        self.assertEqual(self.problems(text), [])

    def test_exemption_needs_a_reason(self):
        self.assertEqual(len(self.problems("struct A {\n  void* handle;  // not a tensor:\n};\n")), 1)


class TextTest(unittest.TestCase):
    def problems(self, text, name="src/core/a.cc"):
        return load("lint_text").check_text(name, text)

    def test_good_text_passes(self):
        self.assertEqual(self.problems("#pragma once\n// see https://example.org/work/x and /usr/share/doc, ./data/x\n", "src/a.h"), [])

    def test_bad_text_fails(self):
        for bad in ("see /home/jo/x\n", "in /ro" + "ot/x\n", "/wo" + "rk/main\n", "/tmp/mine/x\n", "// TO" + "DO: later\n", "x \n",
                    "x\r\n", "no newline", "x\n" * 601):
            self.assertEqual(len(self.problems(bad)), 1, bad)
        self.assertEqual(len(self.problems("int x;\n", "src/a.h")), 1)

    def test_environment_variables_are_documented(self):
        text = 'auto* v = std::getenv("RAREFY_NEW");\n'
        self.assertEqual(len(self.problems(text)), 1)
        self.assertEqual(load("lint_text").check_text("src/core/a.cc", text, "| `RAREFY_NEW` | 1 |"), [])


class LinksTest(TreeTest):
    def test_links_must_lead_somewhere(self):
        check = load("lint_text").check_links
        self.write("docs/a.md", "")
        self.assertEqual(check(self.root, "README.md", "[a](docs/a.md#part) [w](https://example.org/x)"), [])
        self.assertEqual(len(check(self.root, "README.md", "[b](docs/b.md)")), 1)
        self.assertEqual(len(check(self.root, "src/x.cc", "// see docs/b.md")), 1)


class HeadersTest(TreeTest):
    def run_lint(self):
        return subprocess.run([SCRIPTS / "lint_headers", self.root], capture_output=True, text=True).returncode

    @unittest.skipUnless(shutil.which("c++") and shutil.which("cc"), "needs a compiler")
    def test_header_must_compile_alone(self):
        self.write("include/rarefy/core/good.h", "#pragma once\n#include <string>\ninline std::string f() { return {}; }\n")
        self.assertEqual(self.run_lint(), 0)
        self.write("include/rarefy/core/bad.h", "#pragma once\ninline std::string g() { return {}; }\n")
        self.assertNotEqual(self.run_lint(), 0)


class ReadmeTablesTest(TreeTest):
    ROW = {"bench": "decode", "policy_resolved": "dense", "kv_dtype": "bf16", "p10_us": 1.0, "median_us": 2.0, "p90_us": 3.0,
           "bytes": 4000, "device": "a CPU", "commit": "0123456", "command": "rarefy bench attention", "date": "2026-01-02",
           "kv_len": 4096, "batch": 1, "threads": 2}

    def run_tables(self, *arguments):
        tables = load("readme_tables")
        with contextlib.redirect_stdout(io.StringIO()):
            return tables.main(["--root", str(self.root), *arguments])

    def test_regenerates_and_notices_stale_tables(self):
        self.write("README.md", "a\n<!-- begin: cpu -->\nold\n<!-- end: cpu -->\nb\n")
        self.write("results/cpu.jsonl", json.dumps(self.ROW) + "\n")
        self.assertEqual(self.run_tables("--check"), 1)
        self.assertEqual(self.run_tables(), 0)
        self.assertEqual(self.run_tables("--check"), 0)
        text = (self.root / "README.md").read_text()
        self.assertTrue(text.startswith("a\n") and text.endswith("\nb\n") and "old" not in text, text)
        self.assertIn("rarefy bench attention", text)

    def test_refuses_rows_with_missing_or_odd_fields(self):
        self.write("README.md", "<!-- begin: cpu -->\n<!-- end: cpu -->\n")
        for change in ({"median_us": None}, {"p10_us": 9.0}, {"commit": "dirty tree"}, {"date": "yesterday"}):
            self.write("results/cpu.jsonl", json.dumps({**self.ROW, **change}) + "\n")
            self.assertEqual(self.run_tables(), 2, change)

    def grid(self, options, rows):
        self.write("README.md", f"<!-- begin: gpu {options} -->\n<!-- end: gpu -->\n")
        self.write("results/gpu.jsonl", "".join(json.dumps({**self.ROW, **row}) + "\n" for row in rows))
        code = self.run_tables()
        return code, (self.root / "README.md").read_text()

    GRID = "where=bench:sparse;kv_len:131072 rows=scope,sparsity across=batch cells=speedup_over_dense columns=device,commit"
    CELLS = [{"bench": "sparse", "kv_len": 131072, "scope": scope, "sparsity": sparsity, "batch": batch, "share_of_ceiling": 0.925,
              "speedup_over_dense": sparsity * batch / 7} for batch in (16, 1) for scope in ("kv_head", "query_head") for sparsity in (100, 50)]

    def test_a_grid_has_a_row_and_a_column_for_each_value(self):
        code, text = self.grid(self.GRID, [*self.CELLS[:-1], {"bench": "dense"}, {**self.CELLS[0], "kv_len": 4096}])
        self.assertEqual(code, 0)
        self.assertIn("All cells: device a CPU, commit 0123456.", text)
        self.assertIn("| scope | sparsity | batch 1 | 16 |", text)
        table = [line for line in text.splitlines() if line.startswith("| kv_head") or line.startswith("| query_head")]
        self.assertEqual(table, ["| kv_head | 50 | 7.14x | 114x |", "| kv_head | 100 | 14.3x | 229x |", "| query_head | 50 |  | 114x |",
                                 "| query_head | 100 | 14.3x | 229x |"])
        code, text = self.grid(self.GRID.replace("speedup_over_dense", "share_of_ceiling"), self.CELLS)
        self.assertIn("| kv_head | 50 | 92% | 92% |", text)

    def test_a_grid_that_says_nothing_or_two_things_is_refused(self):
        for options, rows in ((self.GRID, self.CELLS + self.CELLS[:1]), (self.GRID, [{"bench": "dense"}]),
                              (self.GRID.replace("across=batch ", ""), self.CELLS), (self.GRID.replace("batch", "bath"), self.CELLS),
                              (self.GRID.replace("rows=", "lines="), self.CELLS), ("where=bench", self.CELLS)):
            self.assertEqual(self.grid(options, rows)[0], 2, options)

    def test_where_also_picks_lines_of_a_plain_table(self):
        code, text = self.grid("where=batch:1 columns=sparsity,scope", self.CELLS)
        self.assertEqual((code, text.count("| kv_head |") + text.count("kv_head")), (0, 4))
        self.assertEqual(self.grid("where=batch:1|16 columns=sparsity,scope,batch", self.CELLS)[1].count("kv_head"),
                         sum(row["scope"] == "kv_head" for row in self.CELLS))

    def test_shows_a_text_and_elides_numbered_lines(self):
        self.write("README.md", "<!-- begin: cpu text=report -->\nold\n<!-- end: cpu -->\n")
        report = "first\n" + "".join(f" {i}/6 line\n" for i in range(1, 7)) + "last\n"
        self.write("results/cpu.jsonl", json.dumps({**self.ROW, "report": report}) + "\n")
        self.assertEqual(self.run_tables(), 0)
        expected = "```\nfirst\n 1/6 line\n 2/6 line\n 3/6 line\n...\n 6/6 line\nlast\n```\n"
        self.assertIn(expected, (self.root / "README.md").read_text())
        self.write("results/cpu.jsonl", json.dumps(self.ROW) + "\n")
        self.assertEqual(self.run_tables(), 2)

    def test_refuses_unknown_region(self):
        self.write("README.md", "<!-- begin: nonsense -->\n<!-- end: nonsense -->\n")
        self.assertEqual(self.run_tables(), 2)


if __name__ == "__main__":
    unittest.main()
