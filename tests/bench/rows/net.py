# SPDX-License-Identifier: Apache-2.0
"""Frames of a guest through virtio-net on a tap, and the CPU time of the device side for each; the guest polls
(tests/payload/bench-net.cc). The limit is the same frames with neither guest nor VMM (tests/bench/bare_tap.cc). `make
bench-net` has more: vhost-net and user-mode networking."""
from figures import LIMIT, SIDES, Figure, Row
from net_guest import LARGE, NetGuest

LOADS = {  # kind, bytes, count, count in scripts/kvm-host, depth
    "send": ("send 64 bytes", "send", 60, 1000000, 5000, 0),
    "receive": ("receive 64 bytes", "receive", 60, 500000, 5000, 0),
    "send-large": ("send 64 KiB", "send", LARGE, 100000, 500, 0),
    "receive-large": ("receive 64 KiB", "receive", LARGE, 50000, 500, 0),
    "echo": ("there and back", "echo", 60, 20000, 300, 1),
}


def figures_of(key):
    title = f"net: {LOADS[key][0]}"
    rate = Figure(key, title, "µs", target=lambda medians: medians["qemu"]) if key == "echo" else \
        Figure(key, title, "MB/s" if key.endswith("large") else "thousand/s", more_is_better=True,
               target=lambda medians: medians["qemu"])
    return (rate, Figure(f"{key}-cpu", f"{title}: CPU time of each", "µs", target=lambda medians: medians["qemu"]))


class Net(Row):
    figures = tuple(figure for key in LOADS for figure in figures_of(key))
    sides = (*SIDES, LIMIT)

    def __init__(self, setting):
        super().__init__(setting)
        self.guest = NetGuest(setting.build, setting.work)
        self.loads = [(key, kind, size, setting.some(count, fewer), depth)
                      for key, (_, kind, size, count, fewer, depth) in LOADS.items()]

    def measure(self, side):
        taken = {}
        results = self.guest.run_bare(self.loads) if side == LIMIT else self.guest.run(side, "tap", self.loads)
        for (key, _, size, count, _), (seconds, cpu) in zip(self.loads, results):
            taken[key] = seconds / count * 1e6 if key == "echo" else \
                count * size / seconds / 1e6 if key.endswith("large") else count / seconds / 1e3
            taken[f"{key}-cpu"] = cpu / count * 1e6
        return taken
