"""Cycles of a Cortex-M4 for what QEMU has executed: each instruction by Arm's table of timings.

QEMU writes every block of instructions that it translates, and a line for each time that it runs one
(`-d in_asm,exec,nochain`). The timings are those of the Cortex-M4's Technical Reference Manual (Arm DDI 0439,
sections 3.3 and 7.2) for memory without wait states; with them the rule for loads that follow one another as
Texas Instruments prints it (SWCU192, section 3.9). What the manual gives as a range is given as one:

- a taken branch refills the pipeline in 1 to 3 cycles, a division takes 2 to 12;
- in the middle are 2 and 7.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

BRANCHES = re.compile(
    r"(b|bl|bx|blx|cbz|cbnz|tbb|tbh)(\.w|\.n)?$|b(eq|ne|hs|lo|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)(\.w)?$"
)
LOADS = re.compile(r"ldr(b|h|sb|sh)?(eq|ne|hs|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)?(\.w)?$")
STORES = re.compile(r"str(b|h)?(eq|ne|hs|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)?(\.w)?$")
SEVERAL = re.compile(r"(v?push|v?pop|v?ldm|v?stm|ldrd|strd)")
FUSED = re.compile(r"v(fn?m|n?ml)[as]")
REGISTER = re.compile(r"\b(?:[rsd]\d+|sb|sl|fp|ip|sp|lr|pc)\b")


@dataclass(frozen=True)
class Timing:
    """What the manual leaves open: cycles of a refill of the pipeline, and of a division."""

    refill: int
    division: int


LEAST, MIDDLE, MOST = Timing(1, 2), Timing(2, 7), Timing(3, 12)


@dataclass(frozen=True)
class Block:
    """Instructions without a branch but the last: where it begins and ends, and mnemonics with operands."""

    start: int
    end: int
    code: tuple[tuple[str, str], ...]

    def cycles(self, timing: Timing, *, taken: bool) -> int:
        """Cycles of one run. taken: what follows in memory was not what ran next."""
        total, loaded = 0, ""
        for mnemonic, operands in self.code:
            cost = _cycles(mnemonic, operands, timing)
            if loaded and (LOADS.match(mnemonic) or STORES.match(mnemonic)):
                address = operands.partition("[")[2]
                if loaded not in REGISTER.findall(address):
                    cost = max(cost - 1, 1)
            loaded = operands.partition(",")[0] if LOADS.match(mnemonic) else ""
            total += cost
        mnemonic, operands = self.code[-1]
        if taken and (BRANCHES.match(mnemonic) or "pc" in operands.partition("[")[0]):
            total += timing.refill
        return total


def _cycles(mnemonic: str, operands: str, timing: Timing) -> int:
    if SEVERAL.match(mnemonic):
        registers = operands.partition("{")[2] if "{" in operands else operands.partition("[")[0]
        return 1 + _count(registers)
    if LOADS.match(mnemonic) or mnemonic in ("vldr", "vstr", "tbb", "tbh"):
        return 2
    if STORES.match(mnemonic):
        # With a register in its address a store computes that first.
        return 1 + (len(REGISTER.findall(operands.partition("[")[2])) > 1)
    if mnemonic.startswith(("sdiv", "udiv")):
        return timing.division
    if mnemonic.startswith(("vdiv", "vsqrt")):
        return 14
    return 3 if FUSED.match(mnemonic) else 1


def _count(registers: str) -> int:
    """Registers of a list such as ``{r4, r5, s16-s18}``."""
    found = 0
    for part in registers.strip(" }").split(","):
        first, _, last = part.strip().partition("-")
        found += int(last[1:]) - int(first[1:]) + 1 if last else bool(first)
    return found


@dataclass(frozen=True)
class Executed:
    """Instructions that ran, and their cycles at each timing."""

    instructions: int
    least: int
    middle: int
    most: int


def executed(lines: Iterable[bytes]) -> Executed:
    """Count a log of QEMU, line by line: it has one for each block that ran."""
    code: list[tuple[int, int, str, str]] = []
    blocks: dict[bytes, Block] = {}
    pairs: Counter[tuple[bytes, bytes]] = Counter()
    before = b""
    for line in lines:
        if line.startswith(b"Trace"):
            # The place of what QEMU made of it, as two translations may begin at one address.
            name = line[:60].split()[2]
            if code:
                blocks[name] = _block(code)
                code = []
            pairs[before, name] += 1
            before = name
        elif line.startswith(b"0x"):
            code.append(_instruction(line.decode()))
    total, sums = 0, [0, 0, 0]
    for (first, second), times in pairs.items():
        if not first:
            continue
        block = blocks[first]
        total += times * len(block.code)
        for index, timing in enumerate((LEAST, MIDDLE, MOST)):
            sums[index] += times * block.cycles(timing, taken=blocks[second].start != block.end)
    return Executed(total, *sums)


def _instruction(line: str) -> tuple[int, int, str, str]:
    address, _, rest = line.partition(":")
    words = rest.split()
    size = 4 if re.fullmatch(r"[0-9a-f]{4}", words[1]) else 2
    return int(address, 16), size, words[size // 2], " ".join(words[size // 2 + 1 :])


def _block(code: list[tuple[int, int, str, str]]) -> Block:
    last = code[-1]
    return Block(code[0][0], last[0] + last[1], tuple((each[2], each[3]) for each in code))
