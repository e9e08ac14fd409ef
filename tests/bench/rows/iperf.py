# SPDX-License-Identifier: Apache-2.0
"""TCP between a stock guest and its host (iperf3), by virtio-net on a tap, and the CPU time of the device side for a
gigabyte; the same while what the guest and its devices write to memory is logged (write_log.py). The limit is QEMU with
vhost-net, where the kernel carries the packets; none where the host has no vhost-net."""
import os

from figures import LIMIT, SIDES, Figure, Row
from net_tcp import WAYS, TcpGuest
from stock_guest import StockGuest

SECONDS = 3  # of each way
TITLES = {"send": "iperf3: TCP from the guest", "receive": "iperf3: TCP to the guest"}


def figures_of(key):
    return (Figure(key, TITLES[key], "MB/s", more_is_better=True, target=lambda medians: medians["qemu"]),
            Figure(f"{key}-cpu", f"{TITLES[key]}: CPU time for a gigabyte", "s", target=lambda medians: medians["qemu"]),
            Figure(f"{key}-logged", f"{TITLES[key]}, dirty logging on", "MB/s", more_is_better=True,
                   target=lambda medians: medians["qemu"]))


class Iperf(Row):
    figures = tuple(figure for key in WAYS for figure in figures_of(key))
    sides = (*SIDES, LIMIT)
    rounds, rounds_emulated = 3, 2
    stock = True

    def __init__(self, setting):
        super().__init__(setting)
        self.guest = TcpGuest(StockGuest(setting.build, setting.stock, setting.work), SECONDS)

    def measure(self, side):
        if side == LIMIT and not os.path.exists("/dev/vhost-net"):
            return {}
        carried = self.guest.run(*(("qemu", "vhost") if side == LIMIT else (side, "tap")))
        taken = {key: value for way, (rate, cpu) in carried.items()
                 for key, value in ((way, rate / 1e6), (f"{way}-cpu", cpu * 1e9))}
        if side != LIMIT:
            logged = self.guest.run(side, "tap", logs=True)
            taken |= {f"{way}-logged": rate / 1e6 for way, (rate, _) in logged.items()}
        return taken
