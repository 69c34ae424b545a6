"""Each hostile bundle is refused with its one line, and the next good one loads."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import BundleError, ExitCode
from offramp.common.part.engine import Engine
from tests import toy
from tests.attacks.bundles import ATTACKS, BundleAttack
from tests.toy import BundleFolder


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)
def test_is_refused_with_one_line_and_the_next_good_one_loads(
    attack: BundleAttack, bundle_folder: Callable[[], BundleFolder], toy_bundle: Bundle
) -> None:
    folder = bundle_folder()
    attack.damage(folder)

    with pytest.raises(BundleError) as caught:
        engine = Engine(load_bundle(folder.path))
        engine.load_head()
        engine.load_tail()

    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    assert re.fullmatch(attack.expected, message.removeprefix(f"{folder.path}: "))
    assert caught.value.exit_code is ExitCode.BUNDLE

    good = load_bundle(bundle_folder().path)
    assert good.digest == toy_bundle.digest
    Engine(good).tail(Engine(good).head(toy.images(1))[0])
