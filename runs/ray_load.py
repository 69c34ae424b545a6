"""Called by ray.sh: BUNDLE IMAGES.

Each server gets the same two loads from unchanged devices that send every image: one device that offers 40
images a second, and two devices as fast as they can. Processor time is that of the server with everything
that belongs to it: of Ray all processes, its controller and dashboard as well.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from offramp.bench.timing import environment
from offramp.common.bundle.load import load_bundle

RATE = 40
CONFIG = Path("deploy/ray/serve.yaml")
TICKS = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(after_name[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def usage(processes: Sequence[int]) -> tuple[float, float]:
    """Processor seconds and MB (10^6 bytes) of these processes together; what several share counts once."""
    seconds, kilobytes = 0.0, 0
    for process in processes:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        kilobytes += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        seconds += (int(fields[11]) + int(fields[12])) / TICKS
    return seconds, kilobytes * 1024 / 1e6


def device(bundle: str, port: int, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "offramp.device.app", "--bundle", bundle, "--threshold", "1"]
    command += [
        "--server",
        f"127.0.0.1:{port}",
        "--timeout",
        "60",
        "--json",
        "--log-level",
        "error",
        *arguments,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def summary(program: subprocess.Popen[str], images: int) -> dict[str, float]:
    output, _ = program.communicate(timeout=120)
    found: dict[str, float] = json.loads(output.splitlines()[-1])["summary"]
    if found["server"] != images:
        raise SystemExit(f"the server answered {found['server']} of {images} images")
    return found


@contextmanager
def running(command: list[str], port: int, **variables: str) -> Iterator[int]:
    with tempfile.TemporaryFile() as log:
        program = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | variables)
        try:
            end = time.monotonic() + 120
            while not answers(port):
                if program.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(f"{command} does not serve: {log.read().decode()[-2000:]}")
                time.sleep(0.5)
            yield program.pid
        finally:
            program.send_signal(signal.SIGINT)
            try:
                program.wait(60)
            except subprocess.TimeoutExpired:
                program.kill()


def answers(port: int) -> bool:
    """Whether an image comes back from the server."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    output, _ = device(sys.argv[1], port, "--timeout", "5", f"{sys.argv[2]}/000.png").communicate(timeout=60)
    return json.loads(output.splitlines()[-1])["summary"]["server"] == 1


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def ray(folder: str, bundle: str, replicas: int, port: int) -> list[str]:
    """The shipped configuration with a fixed number of replicas."""
    config = yaml.safe_load(CONFIG.read_text())
    config["grpc_options"]["port"] = port
    config["http_options"]["port"] = free_port()
    config["applications"][0]["args"] = {"bundle": [str(Path(bundle).resolve())]}
    for deployment in config["applications"][0]["deployments"]:
        count = 1 if deployment["name"] == "Ingress" else replicas
        deployment["autoscaling_config"] = {"min_replicas": count, "max_replicas": count}
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
    path = Path(folder) / f"serve-{port}.yaml"
    path.write_text(yaml.safe_dump(config))
    return [str(Path(sys.executable).with_name("serve")), "run", str(path)]


def measure(name: str, command: list[str], port: int, bundle: str, images: str, **variables: str) -> None:
    count = len(list(Path(images).glob("*.png")))
    with running(command, port, **variables) as root:
        summary(device(bundle, port, images), count)  # warms up
        before, start = usage(tree(root))[0], time.perf_counter()
        steady = summary(device(bundle, port, "--rate", str(RATE), images), count)
        seconds, memory = usage(tree(root))
        cpu = (seconds - before) / count * 1e3
        # What it costs while nobody asks is part of it, and shown as well.
        before, start = seconds, time.perf_counter()
        time.sleep(3)
        idle = (usage(tree(root))[0] - before) / (time.perf_counter() - start)
        before = usage(tree(root))[0]
        both = [device(bundle, port, *[images] * 3) for _ in range(2)]
        ended = [summary(each, 3 * count) for each in both]
        busy = (usage(tree(root))[0] - before) / (6 * count) * 1e3
        rate = sum(3 * count / each["seconds"] for each in ended)
    median, p99 = (steady[f"latency_seconds_{which}"] * 1e3 for which in ("median", "p99"))
    figures = f"{median:.1f} | {p99:.1f} | {cpu:.1f} | {rate:.0f} | {busy:.1f} | {idle:.2f} | {memory:.0f}"
    print(f"| {name} | {figures} |", flush=True)


def main() -> None:
    """Print the table."""
    bundle, images = sys.argv[1:3]
    where = environment(["ray", "grpcio", "onnxruntime"], 0)
    del where["core"]
    print(f"{load_bundle(bundle).manifest.name}; {json.dumps(where)}\n")
    steady, busy = f"median ms at {RATE}/s | p99 ms | CPU ms an image", "images/s at most | CPU ms an image"
    print(f"| | {steady} | {busy} | idle CPU s/s | memory MB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    port = free_port()
    plain = [sys.executable, "-m", "offramp.server.app", "--bundle", bundle, "--listen", f"127.0.0.1:{port}"]
    measure("`cloud-server`", plain, port, bundle, images)
    with tempfile.TemporaryDirectory(prefix="offramp-ray-", dir="/tmp") as folder:
        for name, proxy in (("its Python proxy", "0"), ("HAProxy", "1")):
            for replicas in (1, 2):
                port = free_port()
                command = ray(folder, bundle, replicas, port)
                measure(
                    f"Ray Serve, {name}, {replicas} {'replica' if replicas == 1 else 'replicas'}",
                    command, port, bundle, images, RAY_TMPDIR=folder, RAY_SERVE_ENABLE_HA_PROXY=proxy,
                )  # fmt: skip


main()
