#!/usr/bin/env python3
"""Tests that scripts/gpu/check_loads finds loads that are waited for in what cuobjdump prints. Standard library only."""
import unittest

from load_script import load

SCRIPT = "gpu/check_loads"
HEAD = "\t\tFunction : _ZN6rarefy4cuda13decode_kernelINS0_12DecodeTraitsILi128ELi2ELb1ELi1ELb0EEEEEvNS0_12DecodeParamsE\n"


class CheckLoadsTest(unittest.TestCase):
    def waits(self, *instructions):
        text = HEAD + "".join(f"        /*{16 * i:04x}*/                   {text} ;   /* 0x0 */\n" for i, text in enumerate(instructions))
        [(name, found)] = load(SCRIPT).instructions_of(text)
        self.assertEqual(name, "head_dim 128, 2-byte cache, bf16, 8 slots")
        self.assertEqual(found, list(instructions))
        return list(load(SCRIPT).waits(found))

    COPY = "LDGSTS.E.BYPASS.LTC128B.128 [R59], desc[UR4][R38.64], P6"
    LOAD = "@P2 LDG.E R48, desc[UR6][R44.64]"

    def test_a_value_that_is_moved_at_once_is_waited_for(self):
        self.assertEqual(self.waits(self.COPY, self.LOAD, "IADD3 R1, R2, R3, RZ", "MOV R124, R48", "LDGDEPBAR"), [(self.LOAD, "MOV R124, R48")])
        self.assertEqual(len(self.waits(self.COPY, self.LOAD, "@!P0 IMAD.MOV.U32 R117, RZ, RZ, R48")), 1)

    def test_a_value_that_stays_is_not(self):
        self.assertEqual(self.waits(self.COPY, self.LOAD, "MOV R48, R2", "MOV R124, R480", "LDGDEPBAR", "MOV R124, R48"), [])

    def test_other_loads_are_not_looked_at(self):
        self.assertEqual(self.waits(self.LOAD, "MOV R124, R48"), [])
        self.assertEqual(list(load(SCRIPT).instructions_of("\t\tFunction : other\n        /*0000*/                   EXIT ;\n")), [])


if __name__ == "__main__":
    unittest.main()
