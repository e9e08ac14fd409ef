# SPDX-License-Identifier: Apache-2.0
"""What it costs to wake somebody and to be woken by them, there and back, with nothing else (tests/bench/wakeups.cc): two
processes, as Bulkhead has them, beside two threads of one, as QEMU has them. The limit, on two processors, is looking at
each other's memory all the time."""
from bare_vm import bare_figures
from figures import LIMIT, SIDES, Figure, Row

MODES = {"bulkhead": "processes", "qemu": "threads", LIMIT: "spin"}


class Wakeup(Row):
    figures = (
        Figure("one-p50", "two processes (beside two threads) that wake each other, one processor, p50", "µs"),
        Figure("two-p50", "two processes (beside two threads) that wake each other, two processors, p50", "µs"),
    )
    sides = (*SIDES, LIMIT)

    def __init__(self, setting):
        super().__init__(setting)
        self.program = setting.tool("wakeups")
        self.count = setting.some(20000, 2000)

    def measure(self, side):
        measured = bare_figures(self.program, MODES[side], self.count)
        return {figure.key: measured[figure.key] for figure in self.figures if figure.key in measured}
