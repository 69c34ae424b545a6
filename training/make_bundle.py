"""A trained model as a bundle with its record: quantize, export, choose, measure, write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL
from offramp.common.bundle.version1 import Activation, SplitPoint, Version1
from offramp.common.bundle.write import file_entries, write_bundle
from offramp.common.files import replace_file
from offramp.common.inputs.spec import Preprocessing
from offramp.training import record
from offramp.training.calibrate.card import figures, provenance
from offramp.training.calibrate.choose import calibrating, choose_on_validation
from offramp.training.calibrate.codebook import payload_bytes
from offramp.training.calibrate.measure import run_graphs
from offramp.training.calibrate.measure_float import run_float
from offramp.training.data.datasets import Dataset
from offramp.training.export import export
from offramp.training.hardware import Hardware
from offramp.training.loop import Trained
from offramp.training.measured import bytes_by_codec, make_record
from offramp.training.quantize.quantize import quantize_calibrated
from offramp.training.recipe import Recipe
from offramp.training.record import Record


def make_bundle(
    out: Path, recipe: Recipe, text: str, data: Dataset, trained: Trained, hardware: Hardware
) -> tuple[Bundle, Record]:
    """Quantize, export, choose on validation images, measure on test images, write.

    Chosen are the codebook, who answers a sent image, and the threshold.

    Args:
        out: folder of the bundle.
        recipe: what ``trained`` was trained by.
        text: the recipe's own text, kept as provenance.
        data: all three parts.
        trained: the float32 model and its history.
        hardware: what measures the float32 model.
    """
    model = trained.model
    quantized = quantize_calibrated(model, data.validation, recipe.quantize, recipe.seed)
    graphs = export(quantized)

    seen = run_graphs(graphs, data.validation)
    everything = np.concatenate(calibrating(seen.symbols, recipe))
    codec, seen, threshold = choose_on_validation(seen, recipe)
    sent_answer = seen.sent_answer
    del seen

    answers = replace(run_graphs(graphs, data.test), sent_answer=sent_answer)
    in_float = replace(run_float(model, data.test, hardware.device), sent_answer=sent_answer)
    payloads = payload_bytes(codec.tables, codec.lanes, answers.symbols)
    files = {HEAD: graphs.head, TAIL: graphs.tail, CODEBOOK: codec.tables.to_bytes()}
    entries = file_entries(files)
    _, height, width = quantized.input_shape
    # Version 1, which says all there is to say of such a pair, so that its digests stay what they were.
    document = Version1(
        format_version=1,
        name=recipe.name,
        files={"head.onnx": entries[HEAD], "tail.onnx": entries[TAIL], "codebook.bin": entries[CODEBOOK]},
        classes=list(data.classes),
        preprocessing=Preprocessing(color="RGB", height=height, width=width, resize="bilinear"),
        split=SplitPoint(
            model=recipe.model.backbone,
            exit=recipe.model.exit,
            layer=quantized.blocks[recipe.model.exit].name,
        ),
        activation=Activation(
            shape=quantized.split_shape,
            scale=quantized.symbols.scale,
            zero_point=quantized.symbols.zero_point,
        ),
        codec=codec.entry,
        threshold=threshold,
        temperature=1.0,
        sent_answer=sent_answer,
        provenance=provenance(data, text, recipe.seed),
        figures=figures(
            answers,
            (float(in_float.early_right.mean()), float(in_float.final_right.mean())),
            payloads,
            threshold,
        ),
    )
    by_codec = bytes_by_codec(everything, answers.symbols, codec, payloads)
    bundle = write_bundle(out, document.manifest(), files)
    measured = make_record(recipe, bundle, quantized.step, trained, answers, in_float, by_codec)
    path = out / record.RECORD
    replace_file(path, (measured.model_dump_json(indent=1) + "\n").encode())
    return bundle, measured
