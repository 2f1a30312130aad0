"""The machine under the benchmark: its cores, versions, and what the kernel says a process has used."""

import mmap
import os
import platform
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import ClassVar

_TICKS = os.sysconf("SC_CLK_TCK")
_VERSIONED = ("uvloop", "httptools", "msgspec")
ROLES = 4
"""Worker under test, what stands around it, load, upstream: each has a core when there are so many."""
_ROUND_MEMORY = 256 * 1024**2
"""Bytes: four times what a worker writes to its journal in two seconds."""
_QUIET_SHARE = 0.1
"""Of the cores' time that others may use before rates and latencies are called indicative."""


@dataclass(frozen=True)
class Cores:
    """Which core does what. Empty sets: too few cores, nothing is pinned and throughput is indicative only."""

    under_test: frozenset[int]
    second: frozenset[int]
    """Beside `under_test` with two workers; else the home of what stands around the worker (link, control, database)."""
    load: frozenset[int]
    upstream: frozenset[int]

    @property
    def pinned(self) -> bool:
        return bool(self.under_test)


def have_memory_at_hand() -> None:
    """Take and give back more memory than a round takes.

    A virtual machine whose host takes free memory back pays ten times for a page that nobody has had for some seconds. In a
    comparison only who writes files would pay, and the more the longer the others' rounds have lasted.
    """
    with mmap.mmap(-1, _ROUND_MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def confine(count: int) -> None:
    """Keep this process, and all that it starts from here on, on so many of its cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def cores() -> Cores:
    """One core for each role when there are four or more."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < ROLES:
        none: frozenset[int] = frozenset()
        return Cores(none, none, none, none)
    first, second, load, *rest = usable
    return Cores(frozenset((first,)), frozenset((second,)), frozenset((load,)), frozenset(rest[:2]))


def pin(pid: int, to: frozenset[int]) -> None:
    """Move all threads of a process to some cores; nothing when `to` is empty or the process has gone."""
    if not to:
        return
    for thread in _threads(pid):
        try:
            os.sched_setaffinity(thread, to)
        except ProcessLookupError:
            continue


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its threads: what the scheduler counts in nanoseconds, else in steps of 10 ms."""
    try:
        return (
            sum(int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0]) for thread in _threads(pid))
            / 1e9
        )
    except (OSError, IndexError):
        return sum(user_system_seconds(pid))


def user_system_seconds(pid: int) -> tuple[float, float]:
    """The same, parted by where it was spent (/proc/PID/stat), in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / _TICKS, int(fields[12]) / _TICKS


def tree_cpu_seconds(pid: int) -> float:
    """The same of a process with all its children, those that have ended included."""
    total = 0.0
    for one in (pid, *children(pid)):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15]) / _TICKS
    return total


def memory_bytes(pid: int) -> int:
    """Memory that is a process's own: private pages, shared ones by their share (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/smaps_rollup has no Pss")


def children(pid: int) -> list[int]:
    """Direct and further children of a process."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), ()):
            found.append(child)
            waiting.append(child)
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def load_average() -> float:
    return os.getloadavg()[0]


@dataclass
class Neighbours:
    """How often others use the real core behind one of ours, told by how long an empty loop takes there.

    A real core often serves two virtual ones, and while both are busy each is slower by nearly half.
    """

    seconds: list[float] = field(default_factory=list)
    """A loop's, at each look."""

    _DISTURBED: ClassVar = 1.4
    """Times as long as the fastest one; on a core that is shared it takes 1.7 to 1.9 times as long."""
    _LOOPS: ClassVar = 20_000

    def look(self, core: frozenset[int]) -> None:
        """Spend a few milliseconds on this core; nothing where no core is given."""
        if not core:
            return
        home = os.sched_getaffinity(0)
        os.sched_setaffinity(0, core)
        try:
            self.seconds.append(median(self._loop() for _ in range(9)))
        finally:
            os.sched_setaffinity(0, home)

    def _loop(self) -> float:
        began = time.perf_counter()
        for _ in range(self._LOOPS):
            pass
        return time.perf_counter() - began

    @property
    def share(self) -> float:
        """Of the looks, those at which somebody else was there too; 0 before any."""
        limit = self._DISTURBED * min(self.seconds, default=0.0)
        return sum(took > limit for took in self.seconds) / max(1, len(self.seconds))

    def warnings(self) -> list[str]:
        """Sentences to go with the figures."""
        if self.share <= _QUIET_SHARE:
            return []
        return [
            f"others used the real core of the worker's before {self.share:.0%} of the rounds, by the time of an empty loop"
        ]


@dataclass(frozen=True)
class Others:
    """What else goes on: the load average, and which share of the usable cores' time is not idle."""

    load: float
    busy: float

    def warnings(self) -> list[str]:
        """Sentences to go with the figures when they were not taken under good conditions."""
        found = []
        usable = len(os.sched_getaffinity(0))
        if usable < ROLES:
            found.append(
                f"{usable} {'core' if usable == 1 else 'cores'} for {ROLES} roles: nothing is pinned, and rates and "
                "latencies are indicative only"
            )
        if self.busy > _QUIET_SHARE:
            found.append(
                f"other work used {self.busy:.0%} of the cores' time before the start: rates and latencies are indicative only"
            )
        return found


def others(seconds: float = 1.0) -> Others:
    """Look for so long at what goes on; before anything is started."""
    before = _core_seconds()
    time.sleep(seconds)
    after = _core_seconds()
    spent = after[0] - before[0]
    return Others(load_average(), (after[1] - before[1]) / spent if spent else 0.0)


def _core_seconds() -> tuple[float, float]:
    """All time of the usable cores, and what of it was not idle: work, and what a hypervisor took away."""
    total = busy = 0
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if name in usable:
            counted = [int(number) for number in numbers[:8]]  # user nice system idle iowait irq softirq steal
            total += sum(counted)
            busy += sum(counted) - counted[3] - counted[4]
    return total / _TICKS, busy / _TICKS


def open_files() -> int:
    """How many a process may have open; raised to what is allowed for this one and all that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def describe() -> dict[str, str]:
    """Processor, kernel, and the versions that matter."""
    facts = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB",
        "system": f"{_distribution()}, Linux {platform.release()}",
        "python": platform.python_version(),
    }
    for name in _VERSIONED:
        facts[name] = metadata.version(name)
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    if Path(nginx).exists():
        told = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False).stderr
        facts["nginx"] = told.strip().rpartition("/")[2]
    return facts


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
