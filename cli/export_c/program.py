"""What an exported program needs: the layers, their order, and where everything lies in its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offramp.cli.export_c.arena import Arena, Buffer, bound, plan
from offramp.cli.export_c.network import Kind, Layer, Network
from offramp.cli.export_c.reader import read_head
from offramp.cli.export_c.schedule import Schedule, make_schedule
from offramp.cli.export_c.tables import Coder, make_coder
from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError, ConfigError
from offramp.training.split.board import Needs

HEADER_ROOM, TAG_BYTES = 16, 8
"""Before a payload: the datagram's header of 9 bytes at most; and behind it."""
LAYER_BYTES, TENSOR_BYTES, STATE_BYTES = 36, 16, 280
"""Of a 32-bit machine; state: a key and what does not depend on the network."""
CODE_BYTES = 11_500
"""About: GCC 12, -O2, Cortex-M4, with either coder."""
MOST_LAYERS = 250


@dataclass(frozen=True)
class Program:
    """All that the C files are written from."""

    bundle: Bundle
    network: Network
    schedule: Schedule
    coder: Coder
    buffers: tuple[Buffer, ...]
    arena: Arena

    @property
    def needs(self) -> Needs:
        """What a microcontroller has to have for it."""
        return Needs(self.ram_bytes, self.flash_bytes)

    @property
    def ram_bytes(self) -> int:
        """The static block and the state; without a stack, and without the caller's picture."""
        return self.arena.bytes + state_bytes(self.network)

    @property
    def constant_bytes(self) -> int:
        """Everything in flash that is not code."""
        names = sum(len(name.encode()) + 5 for name in self.bundle.manifest.classes)
        tables = table_bytes(self.network, self.schedule)
        if (unknown := self.bundle.manifest.unknown) is not None:
            tables += 4 * (len(unknown.centres) + 1) * len(unknown.deviations)
        return self.weight_bytes + tables + self.coder.flash_bytes + names

    @property
    def flash_bytes(self) -> int:
        """With about the code."""
        return self.constant_bytes + CODE_BYTES

    @property
    def weight_bytes(self) -> int:
        """Weights, biases and scales."""
        return sum(layer.flash_bytes for layer in self.network.layers)

    @property
    def macs(self) -> int:
        """Multiplications for an image."""
        return sum(map(self.network.macs, self.network.layers))

    def require(self, ram: int | None, flash: int | None) -> None:
        """Raise ConfigError, naming the layer to blame, where it needs more memory than there is."""
        if ram is not None and self.ram_bytes > ram:
            _, held = bound(self.buffers)
            largest = max(held, key=lambda buffer: buffer.bytes)
            layers = {layer.output: f"layer {layer.name}" for layer in self.network.layers}
            what = layers.get(largest.name, f"the coder's {largest.name.lower()}")
            raise ConfigError(
                f"--ram: has {ram:,} B, the program needs {self.ram_bytes:,} B and a stack; most at once for "
                f"{what} with {largest.bytes:,} B"
            )
        if flash is not None and self.flash_bytes > flash:
            layer = max(self.network.layers, key=lambda each: each.flash_bytes)
            raise ConfigError(
                f"--flash: has {flash:,} B, the program needs about {self.flash_bytes:,} B; "
                f"the largest layer is {layer.name} with {layer.flash_bytes:,} B"
            )

    def report(self) -> dict[str, Any]:
        """Every figure, for programs."""
        network, rows = self.network, self.schedule.rows
        return {
            "bundle": self.bundle.manifest.name,
            "digest": self.bundle.digest.hex(),
            "ram_bytes": self.ram_bytes,
            "arena_bytes": self.arena.bytes,
            "whole_tensors_bytes": whole_bytes(network),
            "picture_bytes": network.tensors[network.image].whole_bytes,
            "flash_bytes": self.flash_bytes,
            "weight_bytes": self.weight_bytes,
            "coder_bytes": self.coder.flash_bytes,
            "code_bytes_about": CODE_BYTES,
            "macs": self.macs,
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind.value.lower(),
                    "macs": network.macs(layer),
                    "flash_bytes": layer.flash_bytes,
                    "rows_kept": rows.get(layer.output, 0),
                    "ram_bytes": rows.get(layer.output, 0) * network.tensors[layer.output].row_bytes
                    if layer.output in network.tensors
                    else 4 * network.classes,
                }
                for layer in network.layers
            ],
        }


def whole_bytes(network: Network) -> int:
    """The most that layers hold at once where each makes all of its output before the next one begins."""
    most = 0
    for index, layer in enumerate(network.layers):
        later = network.layers[index:]
        live = {
            name
            for each in later
            for name in each.inputs
            if name in network.tensors and name != network.image
        }
        made = {each.output for each in network.layers[:index]} & live
        held = made | ({layer.output} & network.tensors.keys())
        most = max(most, sum(network.tensors[name].whole_bytes for name in held))
    return most


def state_bytes(network: Network) -> int:
    """Memory beside the static block."""
    return 4 * network.classes + 2 * len(network.layers) + STATE_BYTES


def table_bytes(network: Network, schedule: Schedule) -> int:
    """Flash of layers, tensors and steps."""
    return len(network.layers) * LAYER_BYTES + len(network.tensors) * TENSOR_BYTES + len(schedule.steps)


def buffers_of(network: Network, schedule: Schedule) -> list[Buffer]:
    """The rings of rows, the symbols, and the pixels below a kernel."""
    buffers = [
        Buffer(name, size, *schedule.life[name])
        for name, tensor in network.tensors.items()
        if name != network.image
        and name in schedule.life
        and (size := schedule.rows[name] * tensor.row_bytes)
    ]
    gathered = [i for i, step in enumerate(schedule.steps) if _patch(network.layers[step])]
    if gathered:
        most = max(_patch(network.layers[schedule.steps[i]]) for i in gathered)
        buffers.append(Buffer("PATCH", most, gathered[0], gathered[-1]))
    return buffers


def _patch(layer: Layer) -> int:
    gathered = layer.kernel != (1, 1) or layer.levels.size > 0
    if layer.kind not in (Kind.CONV, Kind.REAL_CONV) or not gathered:
        return 0
    return int(layer.weights[0].nbytes)


def make_program(bundle: Bundle) -> Program:
    """Plan the program of a bundle's head. Raises BundleError where C cannot do what it does."""
    network, coder = read_head(bundle), make_coder(bundle)
    if len(network.layers) > MOST_LAYERS:
        raise BundleError(f"{bundle.path}: has {len(network.layers)} layers, export-c takes {MOST_LAYERS}")
    symbols = network.tensors[network.symbols]
    if bundle.manifest.crossings[0].shape != (symbols.channels, symbols.height, symbols.width):
        raise BundleError(f"{bundle.path}: its symbols are not of the shape that its manifest says")
    schedule = make_schedule(network)
    end = len(schedule.steps)
    buffers = buffers_of(network, schedule)
    buffers += [Buffer(name, size, end, end) for name, size in coder.buffers.items()]
    datagram = HEADER_ROOM + max(coder.payload_bytes, symbols.whole_bytes) + TAG_BYTES
    buffers.append(Buffer("DATAGRAM", datagram, end, end))
    return Program(bundle, network, schedule, coder, tuple(buffers), plan(buffers))
