# SPDX-License-Identifier: Apache-2.0
"""Frames of a guest: tests/payload/bench-net.cc under Bulkhead and under QEMU, with build/tests/net-peer at the other end."""
import contextlib
import os
import re
import subprocess

from payload_guest import PayloadGuest
from vm import held_signals, unshare_network

TAP = "bench0"
MAC = "02:00:00:00:00:07"
PORT = 5001
LARGE = 65535  # bytes of the largest frame (kLargestFrame)


def enter_own_network():
    """This process and those it starts see no interfaces but the benchmark's, and nothing but its own frames there."""
    unshare_network()
    with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w", encoding="ascii") as setting:
        setting.write("1")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def interface(who, wire, port=PORT, tap=TAP):
    """What a VMM is told of its one interface; through user-mode networking it may reach that port of the host's
    loopback."""
    if wire == "user" and who == "bulkhead":
        return ["--net", f"user,mac={MAC},allow=127.0.0.1:{port}"]
    if who == "bulkhead":
        return ["--net", f"tap={tap}" + (",vhost=on,mac-spoofing=allow" if wire == "vhost" else "")]
    netdev = "user,id=net" if wire == "user" else \
        f"tap,id=net,ifname={tap},script=no,downscript=no,vhost={'on' if wire == 'vhost' else 'off'}"
    return ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=net,mac={MAC},disable-legacy=on"]


@contextlib.contextmanager
def tap(name=TAP):
    subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
    try:
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield name
    finally:
        with held_signals():
            subprocess.run(["ip", "link", "del", name], check=True)


class NetGuest:
    """Runs loads on interfaces. `wire` is tap, vhost or user."""

    def __init__(self, build, directory):
        self.guest = PayloadGuest(build, directory, "bench-net")
        self.peer, self.bare = (os.path.abspath(os.path.join(build, "tests", name)) for name in ("net-peer", "bare-tap"))

    @contextlib.contextmanager
    def _peer(self, wire):
        words = ["udp", str(PORT)] if wire == "user" else ["packet", TAP]
        with subprocess.Popen([self.peer, *words], stdin=subprocess.PIPE) as peer:
            yield
            peer.stdin.close()

    def run(self, who, wire, loads):
        """For each load the seconds it took and the CPU time, in seconds, of the device side meanwhile. A load: (name, kind,
        bytes, count, depth)."""
        words = [f"load{number}={kind},{size},{count}" + (f",{depth}" if depth else "")
                 for number, (_, kind, size, count, depth) in enumerate(loads)]
        words.append(f"wire=udp port={PORT}" if wire == "user" else "wire=ethernet")
        command = self.guest.command(who, interface(who, wire, PORT), " ".join(words))
        with contextlib.nullcontext() if wire == "user" else tap(), self._peer(wire), self.guest.running(command) as vm:
            return self.guest.time_loads(vm, len(loads))

    def run_bare(self, loads):
        """The same with neither guest nor VMM (bare_tap.cc), on a tap; depths are 1."""
        words = [f"{kind},{size},{count}" for _, kind, size, count, _ in loads]
        with tap(), self._peer("tap"):
            said = subprocess.run([self.bare, TAP, *words], check=True, stdout=subprocess.PIPE, text=True).stdout
        return [(int(taken) / 1e9, int(cpu) / 1e9) for taken, cpu in re.findall(r"(?m)^load (\d+) (\d+)$", said)]
