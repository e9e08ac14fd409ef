# SPDX-License-Identifier: Apache-2.0
"""What `make bench` measures: figures of Bulkhead, of QEMU and of the physical limit, and what may be said of them."""
import dataclasses
import os
import statistics
import typing

SIDES = ("bulkhead", "qemu")
LIMIT = "limit"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of the table. `more_is_better` of rates, else less is. `target` says from the medians, by side, what
    Bulkhead's is to reach at least, in the figure's unit."""

    key: str
    title: str
    unit: str
    more_is_better: bool = False
    target: typing.Optional[typing.Callable[[dict], float]] = None


class Row:
    """What is measured together, in a file of its own in rows/."""

    figures: typing.Sequence[Figure] = ()
    sides = SIDES  # and LIMIT, where something is measured for it
    rounds, rounds_emulated = 5, 3
    stock = False  # whether it needs a KVM that runs stock kernels

    def __init__(self, setting):
        self.setting = setting

    def measure(self, side):
        """Once: values by the figures' keys; for LIMIT not all of them."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where rows are measured."""

    build: str  # folder of the built programs
    work: str  # an empty folder, which goes away afterwards
    made: str  # folder of what is made once, before any row: first.S, compiled, and what a StockGuest starts from
    emulated: bool  # in scripts/kvm-host, where all is many times slower

    @property
    def first(self):
        return os.path.join(self.made, "first.elf")

    @property
    def stock(self):
        return os.path.join(self.made, "stock")

    def path(self, *names):
        return os.path.join(self.work, *names)

    def tool(self, name):
        return os.path.abspath(os.path.join(self.build, "tests", name))

    def some(self, count, emulated):
        """How many of something: fewer where that takes long."""
        return emulated if self.emulated else count


class Result:
    """A figure with its values, a list for each side."""

    def __init__(self, row, figure, values):
        self.row, self.figure, self.values = row, figure, values
        self.medians = {side: statistics.median(each) for side, each in values.items() if each}

    @property
    def ratio(self):
        """Bulkhead's median over QEMU's."""
        return self.medians["bulkhead"] / self.medians["qemu"] if self.medians["qemu"] else None

    @property
    def verdict(self):
        """Neither side has won where one's values lie further apart than the medians of the two, or are too few to tell."""
        if min(len(self.values[side]) for side in SIDES) < 2:
            return "no difference shown"
        difference = self.medians["bulkhead"] - self.medians["qemu"]
        spread = max(max(self.values[side]) - min(self.values[side]) for side in SIDES)
        if abs(difference) <= spread:
            return "no difference shown"
        return "better" if (difference > 0) == self.figure.more_is_better else "worse"

    @property
    def target(self):
        if not self.figure.target:
            return None
        try:
            return self.figure.target(self.medians)
        except KeyError:  # no limit was measured
            return None

    @property
    def target_met(self):
        mine = self.medians["bulkhead"]
        return mine >= self.target if self.figure.more_is_better else mine <= self.target

    def as_json(self):
        return {"row": self.row, "key": self.figure.key, "title": self.figure.title, "unit": self.figure.unit,
                "more_is_better": self.figure.more_is_better, "values": self.values, "medians": self.medians,
                "ratio": self.ratio, "verdict": self.verdict, "target": self.target}
