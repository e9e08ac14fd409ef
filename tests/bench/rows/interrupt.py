# SPDX-License-Identifier: Apache-2.0
"""How long a device's interrupt takes to the guest's handler: requests to virtio-rng, one at a time, of a guest that spins
(tests/payload/bench-irq.cc)."""
from figures import Figure, Row
from payload_guest import RNG, PayloadGuest


class Interrupt(Row):
    figures = (
        Figure("used-p50", "answer in the ring to the interrupt's handler, p50", "µs"),
        Figure("used-p99", "answer in the ring to the interrupt's handler, p99", "µs"),
        Figure("request-p50", "request to the interrupt's handler, p50", "µs"),
        Figure("request-p99", "request to the interrupt's handler, p99", "µs"),
    )

    def __init__(self, setting):
        super().__init__(setting)
        self.guest = PayloadGuest(setting.build, setting.work, "bench-irq")
        self.count = setting.some(2000, 300)

    def measure(self, side):
        return self.guest.measure(self.guest.command(side, RNG[side], f"n={self.count}"))
