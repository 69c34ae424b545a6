"""The one decoder: every format, mode and orientation, alike on the device, in training and for callers."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from offramp.common.errors import DataError
from offramp.common.inputs.pictures import EXTENSIONS, decode, sniff
from offramp.common.inputs.spec import Preprocessing
from offramp.device import preprocess
from offramp.device.sources.source import Source
from offramp.training.data.sources import File, picture_reader

SIDE = 12
SPEC = Preprocessing(color="RGB", height=SIDE, width=SIDE, resize="bilinear")
UPRIGHT = Image.fromarray(
    np.random.default_rng(5).integers(0, 256, (5, 3, 3), np.uint8), "RGB"
).resize((20, 28), Image.Resampling.NEAREST)  # fmt: skip
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
}
FINE: dict[str, Any] = {"quality": 95, "subsampling": 0}
STORED: dict[int, Any] = {
    1: lambda picture: picture,
    2: lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda picture: picture.transpose(Image.Transpose.ROTATE_180),
    4: lambda picture: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda picture: picture.transpose(Image.Transpose.TRANSPOSE),
    6: lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    7: lambda picture: picture.transpose(Image.Transpose.TRANSVERSE),
    8: lambda picture: picture.transpose(Image.Transpose.ROTATE_270),
}
"""How a camera stores an upright picture with each orientation."""


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int, order: str = ">") -> bytes:
    entry = struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
    mark = b"MM" if order == ">" else b"II"
    tiff = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 1) + entry + bytes(4)
    return b"Exif\0\0" + tiff


def oriented(kind: str, orientation: int, order: str = ">") -> bytes:
    picture = STORED.get(orientation, STORED[1])(UPRIGHT)
    if kind == "TIFF":
        return saved(picture, kind, tiffinfo={274: orientation}, compression="raw")
    return saved(picture, kind, exif=exif(orientation, order), **LOSSLESS.get(kind, FINE))


def everywhere(data: bytes, folder: Path, spec: Preprocessing = SPEC) -> NDArray[np.uint8]:
    """The picture by device, training and caller, which agree bit for bit."""
    path = folder / "picture.png"  # whatever its name says
    path.write_bytes(data)
    (item,) = Source([path], spec)
    assert isinstance(item.image, np.ndarray), item.image
    assert item.decode_seconds > 0
    trained = picture_reader(spec.width).decode(File("train: row 0", data, None))
    np.testing.assert_array_equal(item.image, trained)
    np.testing.assert_array_equal(item.image, preprocess(data, spec))
    return item.image


def refused(data: bytes) -> str:
    """The one error of device and training."""
    with pytest.raises(DataError) as error:
        decode("it", data, SPEC)
    with pytest.raises(DataError) as other:
        picture_reader(SIDE).decode(File("it", data, None))
    assert str(error.value) == str(other.value)
    assert str(error.value).startswith("it: ")
    return str(error.value).removeprefix("it: ")


def reference(picture: Image.Image = UPRIGHT) -> NDArray[np.uint8]:
    resized = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)


# --- orientation ---


@pytest.mark.parametrize(("kind", "orientation"), [*product(["PNG", "WEBP", "TIFF"], range(1, 9))])
def test_a_turned_picture_is_its_upright_self(kind: str, orientation: int, tmp_path: Path) -> None:
    np.testing.assert_array_equal(everywhere(oriented(kind, orientation), tmp_path), reference())


@pytest.mark.parametrize(("kind", "orientation", "order"), [*product(["JPEG", "MPO"], range(1, 9), "<>")])
def test_a_turned_jpeg_is_about_its_upright_self(
    kind: str, orientation: int, order: str, tmp_path: Path
) -> None:
    found = everywhere(oriented(kind, orientation, order), tmp_path)
    assert np.abs(found.astype(int) - reference()).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 99, 65535])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_unknown_orientation_counts_as_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    found = everywhere(oriented(kind, orientation), tmp_path)
    assert np.abs(found.astype(int) - reference()).mean() < 4


@pytest.mark.parametrize(
    "broken",
    [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0XX\0*" + bytes(20), exif(6)[:20], bytes(300)],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_counts_as_upright(kind: str, broken: bytes, tmp_path: Path) -> None:
    data = saved(UPRIGHT, kind, exif=broken, **LOSSLESS.get(kind, FINE))
    assert np.abs(everywhere(data, tmp_path).astype(int) - reference()).mean() < 4


def test_exif_behind_the_pixels_counts(tmp_path: Path) -> None:
    data = saved(STORED[6](UPRIGHT), "PNG")
    body = b"eXIf" + exif(6)[6:]
    end = data.rindex(b"IEND") - 4
    late = data[:end] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    np.testing.assert_array_equal(everywhere(late + data[end:], tmp_path), reference())


def test_orientation_in_xmp_is_ignored(tmp_path: Path) -> None:
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    for data in (saved(UPRIGHT, "WEBP", lossless=True, xmp=xmp), saved(UPRIGHT, "TIFF", tiffinfo={700: xmp})):
        np.testing.assert_array_equal(everywhere(data, tmp_path), reference())


# --- what is transparent ---


def cut_out(hidden: tuple[int, int, int]) -> Image.Image:
    """A picture of three alphas whose colour under alpha 0 is this."""
    pixels = np.zeros((28, 20, 4), np.uint8)
    pixels[:] = (*hidden, 0)
    pixels[8:16] = (200, 40, 90, 255)
    pixels[16:20] = (200, 40, 90, 128)
    return Image.fromarray(pixels, "RGBA")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
def test_what_nobody_sees_decides_nothing(
    kind: str, background: tuple[int, int, int], tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"background": background})
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    shown = [
        decode("it", saved(cut_out(hidden), kind, **options), spec)
        for hidden in ((0, 0, 0), (255, 0, 0), (7, 250, 99))
    ]
    for one in shown:
        np.testing.assert_array_equal(one, shown[0])
        assert one[:, 0, 0].tolist() == list(background)
    assert everywhere(saved(cut_out((3, 4, 5)), kind, **options), tmp_path)[:, 0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("mode", ["LA", "P", "L", "1", "RGB", "I;16"])
def test_every_kind_of_transparency_shows_the_background(mode: str, tmp_path: Path) -> None:
    if mode == "LA":
        data = saved(cut_out((9, 9, 9)).convert("LA"), "PNG")
    elif mode == "I;16":
        data = saved(Image.fromarray(np.full((8, 8), 4000, np.uint16)), "PNG", transparency=4000)
    else:
        key: Any = {"P": bytes([0] * 256), "L": 0, "1": 0, "RGB": (0, 0, 0)}[mode]
        data = saved(Image.new(mode, (8, 8)), "PNG", transparency=key)
    assert everywhere(data, tmp_path)[:, 0, 0].tolist() == [255] * 3


def test_a_gif_with_a_transparent_colour_shows_the_background(tmp_path: Path) -> None:
    data = saved(Image.new("P", (8, 8)), "GIF", transparency=0)
    assert (everywhere(data, tmp_path) == 255).all()


def test_an_opaque_alpha_changes_no_bit(tmp_path: Path) -> None:
    picture = UPRIGHT.copy()
    picture.putalpha(255)
    np.testing.assert_array_equal(everywhere(saved(picture, "PNG"), tmp_path), reference())


# --- more than 8 bits ---


def ramp() -> NDArray[np.uint16]:
    return np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (ramp(), "PNG"),
        (ramp(), "TIFF"),
        (ramp().byteswap().view(ramp().dtype.newbyteorder()), "TIFF"),
        (ramp().astype(np.int32), "TIFF"),
        ((ramp() / 65535).astype(np.float32), "TIFF"),
    ],
    ids=["I;16 PNG", "I;16 TIFF", "I;16B TIFF", "I TIFF", "F TIFF"],
)
def test_wide_grey_keeps_its_range(values: NDArray[Any], kind: str, tmp_path: Path) -> None:
    found = everywhere(saved(Image.fromarray(values), kind), tmp_path)
    np.testing.assert_array_equal(found, np.broadcast_to(np.rint(ramp() / 257), (3, SIDE, SIDE)))


def test_sixteen_bit_rgb_keeps_its_upper_bits(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 0x1234, 0x80FF, 0xFFFF) * 4 for _ in range(4))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    key = chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x80FF, 0xFFFF))
    start, pixels = b"\x89PNG\r\n\x1a\n" + head, chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert everywhere(start + pixels, tmp_path)[:, 0, 0].tolist() == [0x12, 0x80, 0xFF]
    assert everywhere(start + key + pixels, tmp_path)[:, 0, 0].tolist() == [255] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4), 70_000, np.int32), "has 32-bit pixels of 70000 … 70000, expected 16-bit"),
        (np.full((4, 4), -1, np.int32), "has 32-bit pixels of -1 … -1, expected 16-bit"),
        (np.full((4, 4), 200, np.int32), "has 32-bit pixels of 200 … 200: 8-bit or 16-bit"),
        (np.full((4, 4), 200, np.float32), "has float pixels of 200 … 200, expected 0 … 1"),
        (np.full((4, 4), np.nan, np.float32), "has float pixels of nan … nan, expected 0 … 1"),
    ],
)
def test_a_range_that_nothing_states_is_refused(values: NDArray[Any], message: str) -> None:
    assert refused(saved(Image.fromarray(values), "TIFF")).startswith(message)


# --- formats ---


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "PA", "La", "RGBa"])
def test_every_format_and_mode_is_alike_on_both_sides(kind: str, mode: str, tmp_path: Path) -> None:
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    picture = UPRIGHT.convert(through).convert(mode) if through else UPRIGHT.convert(mode)
    try:
        data = saved(picture, kind)
    except (OSError, ValueError, KeyError):
        pytest.skip(f"Pillow writes no {kind} of mode {mode}")
    found = everywhere(data, tmp_path)
    assert np.abs(found.astype(int) - reference(picture)).mean() < 12
    for orientation in (3, 6):
        if kind in ("PNG", "WEBP", "JPEG"):
            everywhere(saved(STORED[orientation](picture), kind, exif=exif(orientation)), tmp_path)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_pictures_the_first_is_taken(kind: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    data = saved(first, kind, save_all=True, append_images=[second])
    assert np.abs(everywhere(data, tmp_path)[:, 0, 0].astype(int) - [255, 0, 0]).max() < 4


def test_a_jpeg_has_many_names(tmp_path: Path) -> None:
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".gif", ".tif", ".tiff"} <= {
        *EXTENSIONS
    }
    assert sniff(saved(UPRIGHT, "JPEG")) == "JPEG"
    assert sniff(b"<html>") is None


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_tiff_of_a_safe_compression(compression: str, mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(ramp()) if mode == "I;16" else UPRIGHT.convert(mode)
    everywhere(saved(picture, "TIFF", compression=compression), tmp_path)


@pytest.mark.parametrize("compression", ["jpeg", "group4"])
def test_a_tiff_of_another_compression_is_refused(compression: str) -> None:
    picture = UPRIGHT.convert("1" if compression == "group4" else "RGB")
    data = saved(picture, "TIFF", compression=compression)
    assert "expected one of none, LZW, Deflate, PackBits" in refused(data)


def test_heic_and_avif_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    smooth = UPRIGHT.resize((64, 64))
    kinds = ["HEIF", "AVIF"] if features.check("avif") else ["HEIF"]
    for kind in kinds:
        data = saved(smooth, kind, quality=95)
        assert sniff(data) == kind
        assert np.abs(everywhere(data, tmp_path).astype(int) - reference(smooth)).mean() < 12
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    assert refused(data) == "is HEIC or AVIF: pip install 'offramp[heic]' to read it"


# --- large photos ---


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_a_fraction(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    large = STORED[orientation](UPRIGHT.resize((SIDE * 9, SIDE * 17), Image.Resampling.BICUBIC))
    data = saved(large, "JPEG", quality=95, exif=exif(orientation))
    sizes = []
    resize = Image.Image.resize

    def seen(self: Image.Image, *arguments: Any, **named: Any) -> Image.Image:
        sizes.append(self.size)
        return resize(self, *arguments, **named)

    monkeypatch.setattr(Image.Image, "resize", seen)
    found = decode("it", data, SPEC)
    assert sizes == [(54, 102)]  # half, at least four times the network's
    assert np.abs(found.astype(int) - reference(UPRIGHT)).mean() < 12


def test_a_photo_of_50_megapixels_is_read() -> None:
    small = saved(Image.new("RGB", (8192, 6144), (200, 100, 50)), "JPEG")
    assert np.abs(decode("it", small, SPEC)[:, 0, 0].astype(int) - [200, 100, 50]).max() < 4
    png = saved(Image.new("1", (8192, 6144)), "PNG")
    assert refused(png) == "is 8192×6144 pixels, expected at most 50,000,000 in all"


def test_an_ordinary_jpeg_changes_no_bit() -> None:
    data = saved(UPRIGHT, "JPEG")
    with Image.open(io.BytesIO(data)) as picture:
        np.testing.assert_array_equal(decode("it", data, SPEC), reference(picture))


def test_a_manifest_may_state_its_background() -> None:
    plain = '{"color": "RGB", "height": 8, "width": 8, "resize": "bilinear"'
    assert Preprocessing.model_validate_json(plain + "}").background == (255, 255, 255)
    stated = Preprocessing.model_validate_json(plain + ', "background": [0, 10, 255]}')
    assert stated.background == (0, 10, 255)
    for wrong in ("[0, 10]", "[0, 10, 256]", "[0.5, 0, 0]", '"white"'):
        with pytest.raises(ValueError, match="background"):
            Preprocessing.model_validate_json(plain + f', "background": {wrong}}}')
