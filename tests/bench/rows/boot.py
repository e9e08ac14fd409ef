# SPDX-License-Identifier: Apache-2.0
"""From exec of the command to the first process of a stock Debian cloud kernel, and to a shell; the initial RAM disk of
scripts/make-initrd, 256 MiB, one vCPU, serial console, an entropy source. QEMU's microvm and q35, with their own firmware,
both in each turn of QEMU's.

QEMU is set up to its advantage (commands.py): no default devices, no -nographic, and rtc=on for microvm."""
import re

from figures import Figure, Row
from stock_guest import PATIENCE_S, StockGuest

MACHINES = ("microvm", "q35")
MARKERS = {"init": re.compile(rb"the first process\r?\n"), "shell": re.compile(rb"a shell\r?\n(?s:.*)/ # ")}
TITLES = {"init": "exec to the first process", "shell": "exec to a shell"}


class Boot(Row):
    figures = tuple(Figure(f"{key}-{machine}", f"stock kernel: {TITLES[key]}; QEMU's {machine}", "ms")
                    for key in MARKERS for machine in MACHINES)
    rounds, rounds_emulated = 5, 3
    stock = True

    def __init__(self, setting):
        super().__init__(setting)
        self.guest = StockGuest(setting.build, setting.stock, setting.work)

    def measure(self, side):
        if side == "qemu":
            booted = {machine: self._boot(machine) for machine in MACHINES}
        else:
            booted = dict.fromkeys(MACHINES, self._boot(side))
        return {f"{key}-{machine}": booted[machine][key] for key in MARKERS for machine in MACHINES}

    def _boot(self, vmm):
        with self.guest.running(self.guest.boot_command(vmm)) as vm:
            return {key: vm.wait_for(marker, PATIENCE_S) for key, marker in MARKERS.items()}
