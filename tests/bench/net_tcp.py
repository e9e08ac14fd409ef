# SPDX-License-Identifier: Apache-2.0
"""TCP of a stock Debian kernel under Bulkhead and under QEMU, by iperf3 to the host."""
import contextlib
import os
import re
import subprocess

from net_guest import TAP, interface, tap
from payload_guest import NAMED_THREADS, DeviceMeter, cgroup_for, qemu_program
from vm import ROOT, Vm, held_signals

PORT = 5002
HOST = "10.0.2.2"
PATIENCE_S = 240


class TcpGuest:
    def __init__(self, build, directory, seconds):
        self.directory, self.seconds = directory, seconds
        self.program = os.path.abspath(os.path.join(build, "bulkhead"))
        self.started = 0
        scripts = os.path.join(ROOT, "scripts")
        cloud = subprocess.run([f"{scripts}/fetch-kernel", "cloud"], check=True, capture_output=True, text=True).stdout.strip()
        self.kernel = f"{cloud}/vmlinuz"
        self.initrd, self.tools = f"{directory}/initrd", f"{directory}/tools.img"
        script = os.path.join(ROOT, "tests", "bench", "tcp-in-guest")
        subprocess.run([f"{scripts}/make-initrd", cloud, self.initrd, "--mode=test", "--script", script], check=True)
        subprocess.run([f"{scripts}/make-tools", self.tools, "iperf3"], check=True)

    def _command(self, who, wire):
        append = f"console=ttyS0 panic=-1 quiet loglevel=4 bulkhead.test={HOST},{PORT},{self.seconds}"
        self.started += 1
        devices = interface(who, wire, PORT)
        if who == "bulkhead":
            return [self.program, "run", "--name", f"bench-{os.getpid()}-t{self.started}", "-m", "256", "--kernel", self.kernel,
                    "--initrd", self.initrd, "--append", append, "--disk", f"{self.tools},readonly", *devices]
        return [qemu_program(), "-M", "q35,accel=kvm", "-cpu", "host,arch-capabilities=off", "-nodefaults", "-no-user-config", "-display", "none",
                "-m", "256", *NAMED_THREADS, "-serial", "stdio", "-drive", f"file={self.tools},format=raw,if=none,id=disk,readonly=on",
                "-device", "virtio-blk-pci,drive=disk", *devices, "-kernel", self.kernel, "-initrd", self.initrd, "-append", append]

    @contextlib.contextmanager
    def _host(self, wire):
        """The host's end of the tap has the address that user-mode networking gives it otherwise."""
        with contextlib.ExitStack() as stack:
            if wire != "user":
                stack.enter_context(tap())
                subprocess.run(["ip", "addr", "add", f"{HOST}/24", "dev", TAP], check=True)
            # One server for each run: it is asked one thing at a time.
            server = stack.enter_context(subprocess.Popen(["iperf3", "-s", "-p", str(PORT)], stdout=subprocess.DEVNULL))
            try:
                yield
            finally:
                with held_signals():
                    server.terminate()

    def run(self, who, wire):
        """For each direction bytes per second, and the device side's CPU seconds for each byte."""
        command = self._command(who, wire)
        with self._host(wire), cgroup_for(command) as cgroup:
            with held_signals():
                vm = Vm(command, os.path.join(self.directory, "log"), cgroup)
            try:
                taken, meter = {}, None
                for direction in ("send", "receive"):
                    vm.wait_for(re.compile(f"next {direction}".encode()), PATIENCE_S)
                    meter = meter or DeviceMeter(vm.pid)
                    before = meter.read()
                    over = re.compile(rf"over {direction} seconds ([0-9.]+) bytes (\d+)\r?\n|exit status [1-9]".encode())
                    vm.wait_for(over, PATIENCE_S)
                    found = over.search(vm.seen)
                    if not found[2]:
                        raise vm.failure("iperf3 failed")
                    taken[direction] = (int(found[2]) / float(found[1]), (meter.read() - before) / int(found[2]))
                return taken
            finally:
                with held_signals():
                    vm.end(0.1)
