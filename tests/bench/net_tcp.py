# SPDX-License-Identifier: Apache-2.0
"""TCP of a stock Debian kernel under Bulkhead and under QEMU's q35, by iperf3 to the host."""
import contextlib
import subprocess

from net_guest import TAP, interface, tap
from vm import held_signals

PORT = 5002
HOST = "10.0.2.2"
WAYS = ("send", "receive")


class TcpGuest:
    def __init__(self, guest, seconds):
        self.guest, self.seconds = guest, seconds

    @contextlib.contextmanager
    def _host(self, wire):
        """The host's end of the tap has the address that user-mode networking gives it otherwise."""
        with contextlib.ExitStack() as stack:
            if wire != "user":
                stack.enter_context(tap())
                subprocess.run(["ip", "addr", "add", f"{HOST}/24", "dev", TAP], check=True)
            # One server for each run: it is asked one thing at a time.
            server = stack.enter_context(subprocess.Popen(["iperf3", "-s", "-p", str(PORT)], stdout=subprocess.DEVNULL,
                                                         stderr=subprocess.DEVNULL))
            try:
                yield
            finally:
                with held_signals():
                    server.terminate()

    def run(self, who, wire, logs=False):
        """For each way bytes per second, and the device side's CPU seconds for each byte; with `logs` while the guest's
        writes to memory are logged."""
        command = self.guest.load_command("q35" if who == "qemu" else who, interface(who, wire, PORT),
                                          f"tcp,{HOST},{PORT},{self.seconds}")
        with self._host(wire):
            return {way: (count / seconds, cpu / count)
                    for way, (count, seconds, cpu) in self.guest.run_loads(command, WAYS, logs).items()}
