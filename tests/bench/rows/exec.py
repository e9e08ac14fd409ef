# SPDX-License-Identifier: Apache-2.0
"""From exec of the command to the first instruction of the guest, and the CPU time of all processes until then.

A full VM: consoles, a disk, a network interface on a tap, entropy; 256 MiB, one vCPU. QEMU's is a microvm whose firmware is
that instruction, so that no SeaBIOS is measured. The limit is a program that makes a VM with a vCPU and runs it
(tests/bench/bare_vm.cc).
"""
from figures import Figure
from full_vm import FullVmRow
from vm import cpu_seconds


class Exec(FullVmRow):
    figures = (
        Figure("wall", "exec to the first guest instruction", "ms", target=lambda medians: 0.4 * medians["qemu"]),
        Figure("cpu", "CPU time of all processes until then", "ms", target=lambda _: 10),
    )
    rounds, rounds_emulated = 20, 5

    def measure(self, side):
        with self.vms.running(1) as vms:
            vm = vms.start(side)
            wall_ms = vms.wait_for(vm)
            return {"wall": wall_ms, "cpu": cpu_seconds([vm.pid]) * 1000}
