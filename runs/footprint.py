"""Called by footprint.sh: FOLDER (with an environment for each extra) BUNDLE IMAGES."""

import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 7


def installed_megabytes(environment: Path) -> float:
    """Size on disk of what pip installed, MB of 10^6 bytes."""
    (packages,) = environment.glob("lib/python*/site-packages")
    return sum(file.lstat().st_size for file in packages.rglob("*") if file.is_file()) / 1e6


def run(command: list[str], until: str | None = None) -> tuple[float, float, float]:
    """Seconds to the end, or to a line with ``until``; CPU seconds; peak resident MB (10^6 bytes)."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    if until is not None:
        while until not in process.stderr.readline():
            pass
        seconds = time.perf_counter() - start
        process.send_signal(signal.SIGTERM)
    process.stderr.read()
    _, _, usage = os.wait4(process.pid, 0)
    seconds = seconds if until is not None else time.perf_counter() - start
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def median(command: list[str], until: str | None = None) -> tuple[float, float, float]:
    """Medians of several runs, after one to warm up."""
    run(command, until)
    seconds, cpu, memory = zip(*(run(command, until) for _ in range(RUNS)), strict=True)
    return statistics.median(seconds), statistics.median(cpu), statistics.median(memory)


def main() -> None:
    """Print the table."""
    work, bundle, images = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    image = str(next(images.glob("*.png")))
    device, server = str(work / "device/bin/edge-device"), str(work / "server/bin/cloud-server")
    one_image = [device, "--bundle", bundle, "--threshold", "0", "--quiet", image]
    serve = [server, "--bundle", bundle, "--listen", "127.0.0.1:0"]
    machine = f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}; medians of {RUNS} runs\n")
    print("| extra | installed MB | command | wall s | CPU s | resident MB |")
    print("|---|---:|---|---:|---:|---:|")
    rows = [
        ("device", "`edge-device --help`", median([device, "--help"])),
        ("device", "`edge-device`, one image, start to end", median(one_image)),
        ("server", "`cloud-server`, start to listening", median(serve, "listening on")),
        ("train", "`offramp train --help`", median([str(work / "train/bin/offramp"), "train", "--help"])),
    ]
    for extra, what, (seconds, cpu, memory) in rows:
        size = installed_megabytes(work / extra)
        print(f"| `[{extra}]` | {size:.0f} | {what} | {seconds:.2f} | {cpu:.2f} | {memory:.0f} |")


main()
