# SPDX-License-Identifier: Apache-2.0
"""Frames of a guest: tests/payload/bench-net.cc under Bulkhead and under QEMU, with build/tests/net-peer at the other end."""
import contextlib
import glob
import os
import re
import subprocess

from payload_guest import BEGUN, OVER, PATIENCE_S, PayloadGuest
from vm import Failure, held_signals, processes_of

TAP = "bench0"
MAC = "02:00:00:00:00:07"
PORT = 5001
LOAD = re.compile(rb"load (\d+)\n")


def cpu_seconds(pid):
    """Of all threads of a VMM but its vCPUs: the guest polls, so theirs tell nothing. With the kernel's threads of
    vhost-net, which have their owner's number in their name."""
    pids = processes_of(pid)
    total = 0
    for each in pids:
        for task in glob.glob(f"/proc/{each}/task/*"):
            with contextlib.suppress(OSError):
                if not re.match(r"vcpu|CPU \d", open(f"{task}/comm", encoding="utf-8").read()):
                    total += int(open(f"{task}/schedstat", encoding="utf-8").read().split()[0])
    for name in glob.glob("/proc/[0-9]*/comm"):
        with contextlib.suppress(OSError):
            match = re.match(r"vhost-(\d+)$", open(name, encoding="utf-8").read())
            if match and int(match[1]) in pids and int(name.split("/")[2]) not in pids:
                total += int(open(name.replace("comm", "schedstat"), encoding="utf-8").read().split()[0])
    return total / 1e9


def interface(who, wire, port):
    """What a VMM is told of its one interface; through user-mode networking it may reach that port of the host's
    loopback."""
    if wire == "user" and who == "bulkhead":
        return ["--net", f"user,mac={MAC},allow=127.0.0.1:{port}"]
    if who == "bulkhead":
        return ["--net", f"tap={TAP}" + (",vhost=on,mac-spoofing=allow" if wire == "vhost" else "")]
    netdev = "user,id=net" if wire == "user" else \
        f"tap,id=net,ifname={TAP},script=no,downscript=no,vhost={'on' if wire == 'vhost' else 'off'}"
    return ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=net,mac={MAC},disable-legacy=on"]


@contextlib.contextmanager
def tap():
    subprocess.run(["ip", "tuntap", "add", TAP, "mode", "tap"], check=True)
    try:
        subprocess.run(["ip", "link", "set", TAP, "up"], check=True)
        yield
    finally:
        with held_signals():
            subprocess.run(["ip", "link", "del", TAP], check=True)


class NetGuest:
    """Runs loads on interfaces. `wire` is tap, vhost or user."""

    def __init__(self, build, directory):
        self.guest = PayloadGuest(build, directory, "bench-net")
        self.peer = os.path.abspath(os.path.join(build, "tests", "net-peer"))

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
            begun_ms = vm.wait_for(BEGUN, PATIENCE_S)
            cpu = []
            for number in range(len(loads)):
                vm.wait_for(re.compile(f"next load{number}\n".encode() + OVER), PATIENCE_S)
                before = cpu_seconds(vm.pid)
                vm.wait_for(re.compile(rb"(load \d+\n.*){%d}" % (number + 1) + OVER, re.DOTALL), PATIENCE_S)
                cpu.append(cpu_seconds(vm.pid) - before)
            second = self.guest.cycles_since(vm, begun_ms)
            taken = re.findall(rb"(?m)^load (\d+)$", vm.seen)
            if len(taken) != len(loads):
                raise Failure(f"a load failed: {' '.join(command)}\n{vm.seen.decode('utf-8', 'replace')}")
            return [(int(cycles) / second, spent) for cycles, spent in zip(taken, cpu)]
