"""What a board takes for cycles and for bytes: published figures, each with its source, and the formulas.

Nothing here was measured by Offramp. Energy of a core is its published power over its clock; cycles are
those of the Cortex-M4 by Arm's timings (`microcontroller_cycles.py`), for other cores divided by how many
times more CoreMarks a MHz they have. Energy of a radio is its published power times its time on the air, by
the formula of its standard, with the acknowledgement that it waits for; no connection is set up but for
LTE-M.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

COREMARK_M4 = 3.40
"""A MHz, as Arm publishes it: M4 3.40 and M33 4.02 in NXP, AN12284, section 1 (2018); M4 3.40 and M7 5.01 in
Ibrahim, ARM-Based Microcontroller Projects Using mbed, table 3.2 (2019)."""


@dataclass(frozen=True)
class Core:
    """A microcontroller: its clock, its power while it computes, and how it compares with a Cortex-M4."""

    name: str
    chip: str
    hertz: float
    watts: float
    coremark: float
    source: str

    def seconds(self, cycles_m4: float) -> float:
        """Time for so many cycles of a Cortex-M4."""
        return cycles_m4 * COREMARK_M4 / self.coremark / self.hertz

    def joules(self, cycles_m4: float) -> float:
        """Energy for them."""
        return self.seconds(cycles_m4) * self.watts


MLPERF = "MLPerf Tiny v1.1 (2023), Krai, X-CUBE-AI 8.0, person detection: measured"
CORES = (
    Core("Cortex-M4", "STM32L4R5", 120e6, 74.9e-3, COREMARK_M4, MLPERF),
    Core("Cortex-M7", "STM32H7A3", 280e6, 138.1e-3, 5.01, MLPERF),
    Core(
        "Cortex-M33",
        "nRF54L15",
        128e6,
        2.6e-3 * 3.0,
        4.02,
        "Nordic, nRF54L15 datasheet (2025), current consumption, CPU running, I_APPCPU0: CoreMark from its "
        "memory, 2.6 mA at 3 V",
    ),
)


@dataclass(frozen=True)
class Cost:
    """Of one message: seconds on the air, and joules."""

    seconds: float
    joules: float


@dataclass(frozen=True)
class Radio:
    """A radio, the formula of a message's cost, and where its figures are from."""

    name: str
    cost: Callable[[int], Cost]
    source: str


NRF52840 = (
    "Nordic, nRF52840 product specification, current consumption, radio transmitting/receiving, {}: 0 dBm "
    "6.40 mA, receiving {} mA, 3 V, DC/DC"
)
TRANSMIT = 6.40e-3 * 3.0


def _bluetooth(size: int) -> Cost:
    """Bluetooth LE, 1 Mbit/s, not encrypted: packets of 251 bytes, each of which is answered.

    Bluetooth Core Specification 6.0 (2024). Volume 6, part B, 2.1 and 2.4: preamble 1, access address 4,
    header 2, CRC 3; 4.1: 150 microseconds between packets. For each message L2CAP's header of 4 (volume 3,
    part A, 3.1) and ATT's of 3 (part F, 3.4.7.1).
    """
    sent = size + 7
    packets = math.ceil(sent / 251)
    up = 8e-6 * (sent + 10 * packets)
    # An empty packet of 10 bytes comes back; 150 microseconds lie before it and behind it.
    back = packets * (80e-6 + 2 * 150e-6)
    return Cost(up + back, up * TRANSMIT + back * 6.26e-3 * 3.0)


def _ieee_802_15_4(size: int) -> Cost:
    """250 kbit/s: frames of 127 bytes with 16-bit addresses of one network; each is answered.

    IEEE 802.15.4-2006, as in Texas Instruments, CC253x user's guide (SWRU191), section 23.7: preamble 4,
    start 1, length 1; control 2, number 1, network 2, addresses 2 + 2, checksum 2; an acknowledgement of
    6 + 5 after 192 microseconds. The wait for a free channel is not counted.
    """
    frames = math.ceil(size / 116)
    up = 32e-6 * (size + 17 * frames)
    back = frames * (32e-6 * 11 + 192e-6)
    return Cost(up + back, up * TRANSMIT + back * 6.53e-3 * 3.0)


def lora_seconds(size: int, factor: int, bandwidth: float = 125e3) -> float:
    """Time on the air of one LoRa packet by the SX1276's datasheet, section 4.1.1.7.

    Coding 4/5, with header and CRC, after 8 symbols.
    """
    symbol = 2**factor / bandwidth
    slow = symbol > 16e-3
    coded = math.ceil((8 * size - 4 * factor + 28 + 16) / (4 * (factor - 2 * slow)))
    return (8 + 4.25 + 8 + max(coded, 0) * 5) * symbol


LORA_WATTS = 41.54e-3 * 3.3
LORAWAN_BYTES = 13
"""MHDR 1, DevAddr 4, FCtrl 1, FCnt 2, FPort 1, MIC 4: LoRaWAN 1.0.4 (2020), section 4; a payload's most bytes
are of its regional parameters, EU863-870."""


def _lora(factor: int, most: int) -> Callable[[int], Cost]:
    def cost(size: int) -> Cost:
        whole, rest = divmod(size, most)
        seconds = whole * lora_seconds(most + LORAWAN_BYTES, factor)
        seconds += lora_seconds(rest + LORAWAN_BYTES, factor) if rest else 0.0
        return Cost(seconds, seconds * LORA_WATTS)

    return cost


def _lte_m(size: int) -> Cost:
    """A connection as for a tracking area update, and 180 kbit/s at 23 dBm, 28 of 1,280 bytes IP and UDP."""
    sent = size + 28 * math.ceil(size / 1252)
    seconds = 8 * sent / 180e3
    return Cost(1.5 + seconds, 105e-3 + seconds * 100e-3 * 3.7)


MICROCHIP = (
    "Microchip, WLR089U0 (with an SX1276), datasheet, 7.4.1 Current Consumption: 868 MHz, setting "
    "15: 41.54 mA with its core, 3.3 V; packets of {} B (EU868)"
)
NRF9160 = (
    "Nordic, nRF9160 product specification, modem, band 13: 105 mJ and 1.5 s for a connection, 100 mA at "
    "180 kbit/s and 23 dBm, 3.7 V"
)
RADIOS = (
    Radio("Bluetooth LE", _bluetooth, NRF52840.format("I_RADIO_TX1, RX0", "6.26")),
    Radio("802.15.4", _ieee_802_15_4, NRF52840.format("I_RADIO_TX5, RX2", "6.53")),
    Radio("LoRaWAN SF7", _lora(7, 222), MICROCHIP.format(222)),
    Radio("LoRaWAN SF12", _lora(12, 51), MICROCHIP.format(51)),
    Radio("LTE-M", _lte_m, NRF9160),
)
