"""Answers at a real broker as Home Assistant reads them: discovery, state, availability, no flood."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from offramp.common.errors import ConfigError
from offramp.device.publish import Newest, Publisher, discovery, node_of, published, state_of
from offramp.device.settings import DeviceSettings
from offramp.link import mqtt
from offramp.link.mqtt import Broker, Connection
from offramp.link.security import Security
from tests.device.results import result
from tests.mosquitto import Mosquitto, needs_mosquitto
from tests.processes import Processes, until


def test_the_newest_is_due_once_in_each_interval() -> None:
    newest = Newest(2.0)
    assert newest.wait(10.0) is None
    newest.put(b"a")
    assert newest.wait(10.0) == 0 and newest.take(10.0) == b"a"
    newest.put(b"b")
    newest.put(b"c")
    assert newest.wait(10.5) == 1.5
    assert newest.wait(12.0) == 0 and newest.take(12.0) == b"c"
    assert newest.wait(13.0) is None


def test_topics_take_no_dots_and_devices_stay_apart() -> None:
    assert node_of("hive-3") == "hive-3"
    assert len({node_of(name) for name in ("a.b", "a_b", "a.b.c", "a.b_c")}) == 4
    hostile = 'x{{ states("lock.door") }}\n"/#'
    found = discovery(
        "homeassistant", "hive.3", "offramp/hive.3/answer", "offramp/hive.3/answer/state", hostile
    )
    assert len(found) == 2
    for topic, payload in found.items():
        assert re.fullmatch(r"homeassistant/sensor/[A-Za-z0-9_-]+/[a-z]+/config", topic)
        read = json.loads(payload)
        assert read["state_topic"] == "offramp/hive.3/answer" and "\n" not in read["device"]["model"]
        assert "{{ s" not in read["value_template"]
    assert len({json.loads(payload)["unique_id"] for payload in found.values()}) == 2


def test_a_label_is_one_line_that_fits_a_state() -> None:
    state = json.loads(state_of(7, result(label="cat\n" + "é" * 400)))
    assert state["label"].startswith("cat\\n") and len(state["label"]) <= 255
    assert state == state | {"confidence": 0.8765, "source": "server", "unknown": False, "index": 7}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"publish": "mqtt://192.0.2.1"}, "would be plaintext; say --publish-insecure"),
        (
            {"publish": "mqtt://u:p@127.0.0.1"},
            "--publish: .*expected --publish-user-file and --publish-token-file",
        ),
        ({"publish": "mqtt://127.0.0.1/a/+/b"}, "a prefix of letters"),
        ({"publish": "http://127.0.0.1"}, "--publish http://127.0.0.1: expected mqtt://"),
        ({"publish": "mqtts://127.0.0.1", "publish_insecure": True}, "expected --publish-insecure or mqtts"),
        (
            {"publish": "mqtt://127.0.0.1", "publish_discovery": "home/#"},
            "--publish-discovery home/#: expected",
        ),
        ({"publish": "mqtt://127.0.0.1", "publish_discovery": "$SYS"}, "--publish-discovery"),
        ({"publish": "mqtt://127.0.0.1", "mqtt_name": "a/b"}, "--mqtt-name a/b: expected"),
        ({"publish": "mqtt://127.0.0.1", "publish_token_file": "/none"}, "--publish-token-file /none"),
        ({"publish_token_file": "/none"}, "--publish-token-file needs --publish"),
        ({"publish_insecure": True}, "--publish-insecure needs --publish"),
    ],
)
def test_what_cannot_work(given: dict[str, Any], words: str) -> None:
    pytest.importorskip("paho.mqtt.client")
    with pytest.raises(ConfigError, match=words) as caught:
        Publisher.of(DeviceSettings.model_validate({"bundle": "x", **given}))
    assert ":p@" not in str(caught.value)


def test_it_is_off_by_default() -> None:
    assert Publisher.of(DeviceSettings.model_validate({"bundle": "x"})) is None
    with published(None, "toy") as seen:
        assert seen == ()


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    monkeypatch.setattr(mqtt, "RECONNECT_SECONDS", (0.05, 0.1))
    with ExitStack() as opened:
        yield opened


def listen(stack: ExitStack, broker: Mosquitto) -> list[Any]:
    """All messages from now on, and what is retained."""
    found: list[Any] = []
    target = Broker.parse("--server", broker.url, Security())
    listener = Connection(target, "listener", ["#"], found.append, "other/listener", retained=True)
    listener.start()
    stack.callback(listener.close)
    until(listener.ready.is_set, "the listener")
    return found


def last(found: list[Any]) -> dict[str, bytes]:
    """By topic."""
    return {message.topic: message.payload for message in found if not message.topic.startswith("other/")}


@needs_mosquitto
def test_a_device_is_found_answers_and_is_gone(
    stack: ExitStack, run: Processes, tmp_path: Path, toy_images: Path
) -> None:
    broker = Mosquitto(tmp_path)
    stack.callback(broker.kill)
    found = listen(stack, broker)
    flags = ("--publish", f"{broker.url}/house", "--mqtt-name", "hive-3", "--publish-seconds", 60)
    device = run.start_device("--threshold", 0, "--json", "--hold", *flags, toy_images)
    until(lambda: b"online" in last(found).values() and "house/hive-3/answer" in last(found), "an answer")
    state = last(found)
    assert json.loads(state["house/hive-3/answer"])["source"] == "early_exit"
    configuration = json.loads(state["homeassistant/sensor/offramp_hive-3/answer/config"])
    assert configuration["availability_topic"] == "house/hive-3/answer/state"
    assert "homeassistant/sensor/offramp_hive-3/confidence/config" in state
    device.send(signal.SIGKILL)
    until(lambda: last(found)["house/hive-3/answer/state"] == b"offline", "the last will")
    # One of all images in a minute, and nothing of a picture's name.
    answers = [each for each in found if each.topic == "house/hive-3/answer"]
    assert len(answers) == 1 and answers[0].retain
    assert not any(b".png" in message.payload for message in found)


@needs_mosquitto
def test_a_broker_that_forgets_gets_it_all_again(stack: ExitStack, tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    stack.callback(broker.kill)
    publisher = Publisher(Broker.parse("--publish", broker.url, Security()), "hive-3", "ha", 60)
    with published(publisher, "toy") as (seen,):
        until(publisher._connection.ready.is_set, "the broker")
        seen(0, "a.png", result())
        until(lambda: publisher._last is not None, "the first answer")
        broker.kill()
        seen(1, "b.png", result(label="dog"))  # not due yet: the end publishes it
        broker.start()
        found = listen(stack, broker)
        until(lambda: len(last(found)) == 4, "discovery, availability and answer again")
        assert json.loads(last(found)["offramp/hive-3/answer"])["index"] == 0
    until(lambda: last(found)["offramp/hive-3/answer/state"] == b"offline", "the end")
    assert json.loads(last(found)["offramp/hive-3/answer"])["label"] == "dog"
