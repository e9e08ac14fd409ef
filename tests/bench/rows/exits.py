# SPDX-License-Identifier: Apache-2.0
"""What an access costs that a device answers: reads of a port (the serial port's scratch register) and of a memory-mapped
register (of virtio-rng), and posted writes to both (tests/payload/bench-exit.cc). QEMU's devices are in its own process.
The limit is a loop around KVM_RUN that answers nothing (tests/bench/bare_vm.cc)."""
from bare_vm import bare_figures
from figures import LIMIT, SIDES, Figure, Row
from payload_guest import RNG, PayloadGuest


def spin_target(medians):
    return medians["limit"] + 1.5


class Exits(Row):
    figures = (
        Figure("pio-read-p50", "read of a port, p50", "µs", target=spin_target),
        Figure("pio-read-p99", "read of a port, p99", "µs"),
        Figure("mmio-read-p50", "read of a register, p50", "µs", target=spin_target),
        Figure("mmio-read-p99", "read of a register, p99", "µs"),
        Figure("pio-write", "posted writes to a port", "thousand/s", more_is_better=True),
        Figure("mmio-write", "posted writes to a register", "thousand/s", more_is_better=True),
    )
    sides = (*SIDES, LIMIT)

    def __init__(self, setting):
        super().__init__(setting)
        self.guest = PayloadGuest(setting.build, setting.work, "bench-exit")
        self.bare = setting.tool("bare-vm")
        self.count = setting.some(10000, 1000)

    def measure(self, side):
        if side == LIMIT:
            taken = bare_figures(self.bare, "exits", self.count)
        else:
            devices = [*RNG[side], *(["-serial", "null"] if side == "qemu" else [])]
            taken = self.guest.measure(self.guest.command(side, devices, f"n={self.count}"))
        for name in ("pio-write", "mmio-write"):
            taken[name] = 1e3 / taken.pop(f"{name}-each")
        return taken
