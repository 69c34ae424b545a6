"""``offramp inspect``: verify a bundle as the programs would, and print its card."""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from offramp.common.arguments import Parser
from offramp.common.bundle.document import manifest_text
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import Context, Manifest, Raw
from offramp.common.bundle.signature import TrustedKeys
from offramp.common.inputs.spec import ArrayFile, Preprocessing, TensorInput
from offramp.common.part.answer import ANSWERED_BY
from offramp.common.part.engine import Engine

EPILOG = """\
examples:
  offramp inspect models/digits-mobilenetv2-exit12
  offramp inspect DIR --json | jq .figures
  offramp inspect DIR --trusted-key release.pub
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; raises BundleError for a bundle that no program would load."""
    parser = Parser(
        "offramp inspect",
        description="Verify every file of a bundle, load its graphs, and print what it is.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", help="the bundle's directory")
    parser.add_argument("--json", action="store_true", help="the manifest and the digest as JSON")
    parser.add_argument(
        "--trusted-key",
        action="append",
        metavar="FILE",
        help="require a signature by this public key, PEM; may be given again",
    )
    arguments = parser.parse_args(argv)
    trusted = None if arguments.trusted_key is None else TrustedKeys(arguments.trusted_key)
    bundle = load_bundle(arguments.bundle, trusted)
    Engine(bundle).load(*Engine.names(bundle.manifest))
    if arguments.json:
        stored = json.loads(manifest_text(bundle.manifest))
        print(json.dumps({"digest": bundle.digest.hex(), **stored}, indent=1))
    else:
        print("\n".join(card(bundle)))
    return 0


def _unknown(manifest: Manifest) -> list[str]:
    unknown = manifest.unknown
    if unknown is None:
        return []
    return [f"  unknown     a score over {unknown.threshold:g}, for {unknown.false_alarms:.4g} false alarms"]


def _drift(manifest: Manifest) -> list[str]:
    reference = manifest.figures.drift
    if reference is None:
        return []
    return [f"  drift       is measured from what the early exit said of {reference.images:,} test images"]


def card(bundle: Bundle) -> list[str]:
    """What a person wants to know of a bundle, in lines."""
    manifest, figures = bundle.manifest, bundle.manifest.figures
    shape = "×".join(map(str, manifest.activation.shape))
    codec = manifest.codec
    if isinstance(codec, Raw) or bundle.tables is None:
        coding = "raw symbols"
    elif isinstance(codec, Context):
        coding = f"context, a model of {bundle.tables.stored_bytes:,} B"
    else:
        tables = len(set(codec.table_of_channel))
        coding = f"{codec.kind}, {tables} tables of {bundle.tables.stored_bytes:,} B, {codec.lanes} lanes"
    provenance = manifest.provenance
    agreement = {row.threshold: f"{row.ratio:.2%}" if row.exits else "–" for row in figures.agreement or []}
    lines = [
        f"{manifest.name}  (format {manifest.format_version}, digest {bundle.digest.hex()})",
        f"  split       {manifest.model}, exit {manifest.cut.number} ({manifest.cut.name})"
        + (f"; {len(manifest.parts)} parts" if len(manifest.parts) > 2 else ""),
        *([] if isinstance(manifest.input, Preprocessing) else [f"  takes       {taken(manifest.input)}"]),
        f"  activation  {shape} symbols, {bundle.codec.raw_bytes:,} B raw",
        f"  coding      {coding}",
        f"  classes     {len(manifest.classes)}: {', '.join(manifest.classes[:12])}"[:110],
        f"  threshold   T_c = {manifest.threshold:g}, temperature {manifest.temperature:g}; "
        f"what is sent is answered by {ANSWERED_BY[manifest.sent_answer]}",
        *_unknown(manifest),
        *_drift(manifest),
        f"  trained on  {provenance.dataset.name}, seed {provenance.seed}, commit {provenance.commit}",
        f"  files       {', '.join(f'{name} {entry.size:,} B' for name, entry in manifest.files.items())}",
        f"  measured on {figures.images:,} test images:",
        f"    accuracy  early exit {figures.accuracy_early:.2%} (float {figures.accuracy_early_float:.2%}), "
        f"final exit {figures.accuracy_final:.2%} (float {figures.accuracy_final_float:.2%})",
        f"    payload   {figures.payload_bytes_mean:,.0f} B an image; {figures.entropy_bits:.2f} bits a "
        f"symbol over the tensor, {figures.entropy_bits_channel:.2f} within channels",
        "    T_c     accuracy  exit rate  payload B an image" + ("  server agrees" if agreement else ""),
    ]
    return lines + [
        f"    {row.threshold:<6g}  {row.accuracy:8.2%}  {row.exit_rate:9.2%}  {row.payload_bytes_mean:18,.1f}"
        + (f"  {agreement[row.threshold]:>13}" if row.threshold in agreement else "")
        for row in figures.thresholds
    ]


def taken(found: TensorInput) -> str:
    """What a bundle takes that takes no pictures, in words."""
    low, high = found.range
    shape = "×".join(map(str, found.shape))
    text = f"{found.what}, {shape} values of {low:g} … {high:g} as {found.dtype}"
    if isinstance(found.file, ArrayFile):
        return text
    sound, mel = found.file, found.file.transform
    return (
        f"{text}; WAV of {sound.seconds:g} s at {sound.rate:,} Hz, log-mel of {mel.mels} bands "
        f"{mel.fmin:g} … {mel.fmax:g} Hz, windows of {mel.window} samples every {mel.hop}"
    )
