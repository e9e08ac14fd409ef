# SPDX-License-Identifier: Apache-2.0
"""A guest whose first instruction tells that it runs (first.S), under Bulkhead and under QEMU's machines."""
import os
import re
import subprocess

from commands import Commands

FIRST = re.compile(rb"F")


def build_first(path):
    """Compiles first.S."""
    subprocess.run([os.environ.get("CXX", "g++"), "-m64", "-nostdlib", "-static", "-o", path,
                    "-Wl,--build-id=none,-z,max-page-size=4096,-z,noexecstack,-Ttext=0x200000,-e,first",
                    "tests/bench/first.S"], check=True)


class FirstGuest(Commands):
    def __init__(self, build, first, work, memory):
        super().__init__(build, work, memory)
        self.first = self.copy(first)
        # Read-only memory below 4 GiB: the reset vector says "F" on the debug port and sleeps.
        self.firmware = self.path("first.bin")
        with open(self.firmware, "wb") as out:
            reset = bytes.fromhex("b046 e6e9 fa f4 ebfc")
            out.write((b"\xf4" * 0xFFF0 + reset).ljust(0x10000, b"\xf4"))

    def make_disk(self, number=0):
        path = self.path(f"disk{number}.img")
        if not os.path.exists(path):
            with open(path, "wb") as out:
                out.truncate(64 << 20)
        return path
