# SPDX-License-Identifier: Apache-2.0
"""How long a device's interrupt takes to the guest's handler: requests to virtio-rng, one at a time, of a guest that spins
(tests/payload/bench-irq.cc). The limit is a VM of nothing but KVM, and a thread that answers (tests/bench/bare_vm.cc)."""
from bare_vm import bare_figures
from figures import LIMIT, SIDES, Figure, Row
from payload_guest import RNG, PayloadGuest


class Interrupt(Row):
    figures = (
        Figure("used-p50", "answer in the ring to the interrupt's handler, p50", "µs"),
        Figure("used-p99", "answer in the ring to the interrupt's handler, p99", "µs"),
        Figure("request-p50", "request to the interrupt's handler, p50", "µs"),
        Figure("request-p99", "request to the interrupt's handler, p99", "µs"),
    )
    sides = (*SIDES, LIMIT)

    def __init__(self, setting):
        super().__init__(setting)
        self.guest = PayloadGuest(setting.build, setting.work, "bench-irq")
        self.bare = setting.tool("bare-vm")
        self.count = setting.some(2000, 300)

    def measure(self, side):
        if side == LIMIT:
            return bare_figures(self.bare, "interrupts", self.count)
        return self.guest.measure(self.guest.command(side, RNG[side], f"n={self.count}"))
