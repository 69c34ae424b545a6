"""Which addresses a device takes for a gateway's, and what cannot work with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.device.options import DatagramOptions, LinkOptions, PictureOptions
from offramp.link.gateways import is_gateway
from offramp.link.security import Security
from tests.device.test_datagrams import device_of

pytest.importorskip("paho.mqtt.client")


def test_addresses() -> None:
    assert is_gateway("udp://a:1") and is_gateway("mqtt://a") and not is_gateway("a:1")


@pytest.mark.parametrize(
    ("server", "options", "words"),
    [
        ("http://a:1", {}, "expected HOST:PORT, udp://HOST:PORT, mqtt://HOST or mqtts://HOST"),
        ("udp://a", {}, "expected HOST:PORT"),
        ("udp://192.0.2.1:5", {}, "would be plaintext; say --key-file or --insecure"),
        (("udp://127.0.0.1:5", "a:1"), {}, "expected no other address"),
        ("udp://127.0.0.1:5", {"link": LinkOptions(security=Security(tls=True))}, "neither TLS nor token"),
        ("mqtt://192.0.2.1", {}, "would be plaintext"),
        ("mqtt://u:p@127.0.0.1", {}, "expected --user-file and --token-file"),
        ("mqtt://127.0.0.1/a b", {}, "a prefix of letters"),
        ("mqtt://127.0.0.1/#", {}, "expected mqtt://HOST"),
        ("mqtt://127.0.0.1:x", {}, "expected mqtt://HOST"),
        ("mqtt://127.0.0.1", {"link": LinkOptions(security=Security(tls=True))}, "expected mqtts://"),
        ("mqtts://127.0.0.1", {"link": LinkOptions(insecure=True)}, "not both"),
        ("mqtt://127.0.0.1", {"datagrams": DatagramOptions(mqtt_name="a/b")}, "--mqtt-name a/b: expected"),
        ("mqtt://127.0.0.1", {"datagrams": DatagramOptions(user_file="/none")}, "--user-file /none"),
        (
            "udp://127.0.0.1:5",
            {"pictures": PictureOptions(picture_threshold=0.5)},
            "--picture-threshold: not with --server udp",
        ),
    ],
)
def test_what_cannot_work(toy_bundle: Bundle, server: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        device_of(toy_bundle, server=server, **options)
    assert ":p@" not in str(caught.value)


def test_files_for_a_broker(toy_bundle: Bundle, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("two words")
    for security, words in (
        (Security(token_file=str(wrong)), "--token-file .*expected one line"),
        (Security(ca=str(wrong)), "--tls-ca or --tls-cert .*cannot be used"),
        (Security(certificate=str(wrong)), "--tls-cert and --tls-key: expected both"),
        (Security(server_name="x"), "--tls-server-name: expected"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            device_of(toy_bundle, server="mqtts://127.0.0.1", link=LinkOptions(security=security))
        assert "two words" not in str(caught.value)
