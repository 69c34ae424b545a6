"""``offramp``: the tool for everything that is neither the device nor the server.

Each command is a module with ``main(argv) -> int``, imported when it is called, so that ``offramp demo``
needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NamedTuple

from offramp.common.arguments import Parser, ShowVersion
from offramp.common.ending import end_process
from offramp.common.errors import ConfigError, ExitCode, OfframpError
from offramp.common.streams import guarded_streams


class Command(NamedTuple):
    """A command: its module, the extra that installs what it needs, and its help."""

    module: str
    extra: str
    text: str


COMMANDS = {
    "bench": Command("offramp.bench.bench", "device,server,bench", "measure speed and bytes against others"),
    "codec": Command("offramp.bench.codec_compare", "device", "compare the coders on a bundle's activations"),
    "cuts": Command("offramp.cli.cuts", "split", "list where a classifier of yours can be cut"),
    "demo": Command("offramp.cli.demo", "device,server", "run a real server and device, compare the bytes"),
    "export-c": Command(
        "offramp.cli.export_c.command", "device,export-c", "write a bundle's head in C for a microcontroller"
    ),
    "follow": Command(
        "offramp.cli.follow.app", "device,sign,registry", "keep a device or server at the bundle of a tag"
    ),
    "gateway": Command(
        "offramp.gateway.app", "device,sign,mqtt", "take datagrams of devices, and answer them by a server"
    ),
    "init": Command(
        "offramp.cli.init", "device,split,train", "look at a folder of photos, write a recipe for split"
    ),
    "inspect": Command("offramp.cli.inspect", "device", "verify a bundle and print its card"),
    "keygen": Command("offramp.cli.keygen", "sign", "make a key pair to sign bundles with"),
    "plan": Command("offramp.cli.plan", "train,bench", "choose split, training and threshold for a device"),
    "pull": Command("offramp.cli.registry.pull", "device,sign,registry", "pull a bundle from a registry"),
    "push": Command("offramp.cli.registry.push", "device,sign,registry", "push a bundle to a registry"),
    "samples": Command(
        "offramp.cli.samples", "device", "list what a device kept, and export it to be labelled"
    ),
    "sign": Command("offramp.cli.sign", "device,sign", "sign a bundle"),
    "split": Command(
        "offramp.cli.split",
        "device,split,train",
        "split a trained classifier of yours, from photos to a bundle",
    ),
    "step": Command(
        "offramp.training.calibrate.step_command",
        "train",
        "make a rate-trained bundle for a wider or narrower link",
    ),
    "threshold": Command(
        "offramp.training.calibrate.threshold_command",
        "train",
        "choose a bundle's threshold, for an accuracy or a byte budget",
    ),
    "top": Command("offramp.cli.fleet.app", "top", "watch a running fleet by its metrics pages"),
    "train": Command("offramp.training.app", "train", "train, quantize and export a bundle from a recipe"),
    "unknown": Command(
        "offramp.training.calibrate.unknown_command",
        "train",
        "let a bundle say which images are unlike all that it knows",
    ),
}

EPILOG = """\
examples:
  offramp demo
  offramp inspect models/digits-mobilenetv2-exit12
  offramp cuts mobilenetv2
  offramp init photos && offramp split photos.toml
  offramp split my_model:build --weights best.pth --data photos --out my-split
  offramp train runs/digits.toml --out models/my-digits
  offramp threshold models/my-digits --accuracy 0.95
  offramp step my-bundle --step 0.8 1.2
  offramp unknown my-bundle photos/
  offramp export-c models/my-digits --ram 256k --out firmware
  offramp keygen release && offramp sign models/my-digits --key release.key
  offramp push models/my-digits oci://registry.example/digits:stable
  offramp pull oci://registry.example/digits:stable --out digits --trusted-key release.pub
  offramp codec compare models/digits-mobilenetv2-exit12
  offramp bench codec
  offramp top device-1:9102 server:9101
  offramp gateway --bundle DIR --udp 127.0.0.1:5683
  offramp samples kept --each 20 --export to-label

`offramp COMMAND --help` says more. The two programs that run a bundle are edge-device and cloud-server.

exit status: 0 done, 1 a bug, 2 wrong flags, 3 nothing answered at an address, 4 unusable bundle,
  5 unusable data, 6 a registry or server refused or broke the protocol, 7 an address cannot be bound,
  130 interrupted, or nobody reads the output
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status.

    argv: None: the process's own, which then ends.
    """
    with guarded_streams():
        status = _main(list(sys.argv[1:] if argv is None else argv))
    if argv is None:
        end_process(status)
    return status


def _main(arguments: list[str]) -> int:
    try:
        parser = Parser("offramp", epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter)
        parser.add_argument("--version", action=ShowVersion)
        commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
        for name, command in COMMANDS.items():
            commands.add_parser(name, help=command.text, add_help=False)
        try:
            chosen = COMMANDS[parser.parse_known_args(arguments[:1])[0].command]
            return _run(chosen, arguments[1:])
        finally:
            # What cannot be written shows here, not at the interpreter's exit; --help exits on its own.
            sys.stdout.flush()
    except OfframpError as error:
        print(f"offramp: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("offramp: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _run(command: Command, arguments: list[str]) -> int:
    try:
        return int(importlib.import_module(command.module).main(arguments))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("offramp"):
            raise
        raise ConfigError(
            f"this command needs the package '{error.name}': pip install 'offramp[{command.extra}]'"
        ) from None


if __name__ == "__main__":
    raise SystemExit(main())
