#!/usr/bin/env python3
"""Tests that scripts/gpu/profile reads what Nsight Compute prints. Standard library only."""
import unittest

from load_script import load

SCRIPT = "gpu/profile"

# Lines of a report on an H200 (decode kernel, batch 16).
REPORT = """\
    Metric Name             Metric Unit Metric Value
    DRAM Frequency                  Ghz         3.20
    SM Frequency                    Ghz         1.37
    Elapsed Cycles                cycle       75,313
    DRAM Throughput                   %        67.59
    Duration                         us        54.69
    L1/TEX Cache Throughput           %        28.61
    L2 Cache Throughput               %        76.23
    Compute (SM) Throughput           %        20.83
    L2 Hit Rate                                      %        51.07
    Active Warps Per Scheduler          warp         1.91
    Eligible Warps Per Scheduler        warp         0.28
    Issued Warp Per Scheduler                        0.24
    Warp Cycles Per Issued Instruction             cycle         8.03
    Registers Per Thread             register/thread             206
    Achieved Occupancy                        %        12.15
    OPT   This workload exhibits low compute throughput relative to 76.23 of the peak.
"""


class Metrics(unittest.TestCase):
    def test_all_are_read_in_their_units(self):
        metrics = load(SCRIPT).metrics_of(REPORT)
        self.assertEqual(set(metrics), set(load(SCRIPT).METRICS.values()))
        self.assertEqual(metrics["duration_us"], 54.69)
        self.assertEqual(metrics["issued_per_scheduler"], 0.24)  # has no unit
        self.assertEqual(metrics["registers"], 206.0)
        longer = load(SCRIPT).metrics_of(REPORT.replace("us        54.69", "ms         1.25"))
        self.assertEqual(longer["duration_us"], 1250.0)

    def test_a_missing_one_is_named(self):
        with self.assertRaises(SystemExit) as stop:
            load(SCRIPT).metrics_of(REPORT.replace("L2 Hit Rate", "Hit Rate"))
        self.assertIn("l2_hit_percent", str(stop.exception))


if __name__ == "__main__":
    unittest.main()
