# SPDX-License-Identifier: Apache-2.0
"""What build/tests/bare-vm (bare_vm.cc) measures, and others that say it in the same way."""
import re
import subprocess

from payload_guest import microseconds

SECOND = re.compile(rb"(?m)^second (\d+)$")


def bare_figures(program, mode, count):
    """Its figures in µs, named as a payload guest's."""
    said = subprocess.run([program, mode, str(count)], check=True, stdout=subprocess.PIPE).stdout
    return microseconds(said, int(SECOND.search(said)[1]))
