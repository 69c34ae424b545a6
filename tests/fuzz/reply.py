"""Fuzz what an exported program does with replies, with the address and undefined-behaviour sanitizers:

python -m tests.fuzz.reply SECONDS [FOLDER]

FOLDER (build/fuzz) keeps the program and the inputs found so far. A finding ends it with a status that is
not 0 and leaves the input there as crash-*.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from offramp.cli.export_c.emit import write_files
from offramp.cli.export_c.program import make_program
from tests.cli.export_c import toy_heads

HERE = Path(__file__).parent
FLAGS = (
    *("-O2", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-coverage=trace-cmp"),
    "-fno-sanitize-recover=all",
)


def build(folder: Path) -> Path:
    """The fuzzer of a toy head's program, in a folder."""
    sources = folder / "reply-program"
    sources.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "reply-bundle", ignore_errors=True)
    bundle = toy_heads.write(folder / "reply-bundle", "raw", sent_answer="both")
    for name, data in write_files(make_program(bundle)).items():
        (sources / name).write_bytes(data)
    parts = [
        each for each in sorted(sources.glob("*.c")) if each.name != "main.c" and "port_" not in each.name
    ]
    program = folder / "fuzz_reply"
    command: list[str | Path] = [
        "clang",
        *toy_heads.FLAGS,
        *FLAGS,
        f"-I{sources}",
        HERE / "fuzz_reply.c",
        *parts,
        "-lm",
    ]
    subprocess.run([*command, "-o", program], check=True)
    return program


def fuzz(program: Path, seconds: int) -> int:
    """Run it; returns its status."""
    corpus = program.parent / "reply"
    corpus.mkdir(exist_ok=True)
    # Of resident memory the sanitizer's own shadow is most, and how much of it depends on the kernel's pages.
    limits = ["-max_len=64", "-timeout=60", "-rss_limit_mb=0", "-malloc_limit_mb=64"]
    limits += ["-print_final_stats=1", "-verbosity=0"]
    command: list[str | Path] = [
        program,
        f"-max_total_time={seconds}",
        f"-artifact_prefix={program.parent}/",
        *limits,
        corpus,
    ]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """The command."""
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "build/fuzz")
    return fuzz(build(folder), int(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
