"""The models behind the page of microcontrollers: cycles by Arm's timings, and what a radio takes."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from offramp.cli.export_c.program import make_program
from offramp.common.part.engine import Engine
from tests.cli.export_c import toy_heads

RUNS = Path(__file__).parents[2] / "runs"


@pytest.fixture
def cycles(monkeypatch: pytest.MonkeyPatch) -> Any:
    return _module("microcontroller_cycles", monkeypatch)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    return _module("microcontroller_model", monkeypatch)


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(RUNS)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module(name)


LOG = b"""\
----------------
IN: loop
0x00000100:  f853 2b04  ldr      r2, [r3], #4
0x00000104:  6808       ldr      r0, [r1]
0x00000106:  fb20 2200  smlad    r2, r0, r0, r2
0x0000010a:  d1f9       bne      #0x100

Trace 0: 0x7f0000000100 [00800408/00000100/00000110/ff000200] loop
Trace 0: 0x7f0000000100 [00800408/00000100/00000110/ff000200] loop
----------------
IN: loop
0x0000010c:  fbb0 f0f1  udiv     r0, r0, r1
0x00000110:  bd38       pop      {r3, r4, r5, pc}

Trace 0: 0x7f0000000200 [00800408/0000010c/00000110/ff000200] loop
Trace 0: 0x7f0000000100 [00800408/00000100/00000110/ff000200] loop
"""


def test_cycles_by_hand(cycles: Any) -> None:
    found = cycles.executed(LOG.splitlines())

    # Two loads in 2 + 1, a product and a branch; of two passes one is taken. Then a division and four loads.
    assert found.instructions == 4 + 4 + 2
    assert found.least == (5 + 1) + 5 + (2 + 1 + 4 + 1)
    assert found.middle == (5 + 2) + 5 + (7 + 1 + 4 + 2)
    assert found.most == (5 + 3) + 5 + (12 + 1 + 4 + 3)


@pytest.mark.parametrize(
    ("mnemonic", "operands", "expected"),
    [
        ("adds", "r0, r1, r2", 1),
        ("smlad", "r0, r1, r2, r3", 1),
        ("strb", "r0, [r1, #1]", 1),
        ("strb.w", "r0, [r1, r2]", 2),
        ("ldrd", "r0, r1, [sp]", 3),
        ("vpush", "{s16-s19}", 5),
        ("vfma.f32", "s0, s1, s2", 3),
        ("vdiv.f32", "s0, s1, s2", 14),
        ("vldr", "s0, [r0]", 2),
    ],
)
def test_the_manuals_timings(cycles: Any, mnemonic: str, operands: str, expected: int) -> None:
    block = cycles.Block(0, 4, ((mnemonic, operands),))
    assert block.cycles(cycles.MIDDLE, taken=False) == expected


def test_a_load_whose_address_waits_is_not_shortened(cycles: Any) -> None:
    chained = cycles.Block(0, 4, (("ldr", "r0, [r1]"), ("ldr", "r2, [r0]")))
    apart = cycles.Block(0, 4, (("ldr", "r0, [r1]"), ("ldr", "r2, [r3]")))
    assert [each.cycles(cycles.MIDDLE, taken=False) for each in (chained, apart)] == [4, 3]


def test_time_on_the_air(model: Any) -> None:
    """A published example of the LoRa formula: 13 bytes at SF9 take 164.864 ms."""
    assert model.lora_seconds(13, 9) == pytest.approx(0.164864)
    radios = {radio.name: radio for radio in model.RADIOS}
    # 10 bytes around 7 + 100, then the empty packet and two pauses.
    assert radios["Bluetooth LE"].cost(100).seconds == pytest.approx(117 * 8e-6 + 380e-6)
    one, two = (radios["LoRaWAN SF12"].cost(size) for size in (51, 52))
    assert one.seconds == model.lora_seconds(64, 12)
    assert two.seconds == one.seconds + model.lora_seconds(14, 12)
    assert all(a.cost(10).joules < a.cost(1000).joules for a in model.RADIOS)


def test_a_core_by_its_coremarks(model: Any) -> None:
    m4, m7, _ = model.CORES
    assert (m4.seconds(120e6), m4.joules(120e6)) == pytest.approx((1.0, 74.9e-3))
    assert m7.seconds(280e6) == pytest.approx(3.40 / 5.01)


HARNESS = """
#include <math.h>
#include <stdint.h>
#include <stdio.h>
%s
int main(void)
{
    printf("%%d %%d %%d %%d", requantize(-5, 0.5f, 128), requantize(5, 0.5f, 128), requantize(1, 0.25f, 128),
           requantize(999, 1.0f, 128));
    return 0;
}
"""


@pytest.mark.parametrize(("way", "expected"), [("rounded once", [-2, 3, 0]), ("rounded twice", [-2, 3, 1])])
def test_sums_are_rounded_as_cmsis_nn_does(
    way: str, expected: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A quarter becomes a half, and then one: what two roundings do to the smallest sums."""
    rounding = _module("microcontroller_rounding", monkeypatch)
    (tmp_path / "one.c").write_text(HARNESS % rounding.WAYS[way])
    subprocess.run(["cc", "-o", "one", "one.c", "-lm"], cwd=tmp_path, check=True)
    found = subprocess.run([tmp_path / "one"], check=True, capture_output=True, text=True).stdout.split()
    assert [int(each) - 128 for each in found] == [*expected, 127]


def test_answers_of_a_head_with_another_rounding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rounding = _module("microcontroller_rounding", monkeypatch)
    bundle, images = toy_heads.write(tmp_path / "bundle", "raw"), toy_heads.images(20)
    program = make_program(bundle)
    symbols, logits = rounding.answers(program, images, None)
    assert (symbols == Engine(bundle).head(images)[0].reshape(20, -1)).all()
    # All answers are one step higher.
    higher = rounding.WAYS["rounded once"].replace("+ zero);", "+ zero + 1);")
    own, early = rounding.answers(program, images, higher)
    assert (own != symbols).any() and (early != logits).any()
