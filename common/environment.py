"""``OFFRAMP_*`` variables that are no setting: a misspelt one must not pass in silence.

Kubernetes sets variables for each Service beside a pod; for one called ``offramp-metrics`` they begin like
ours. Those are left alone, unless one has the name of a setting.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches

from offramp.common.errors import ConfigError, printable

log = logging.getLogger("offramp")

PREFIX = "OFFRAMP_"
OTHERS = frozenset({"OFFRAMP_CODER"})
"""What else of ours is read from the environment."""
_LINK = re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+")
_SERVICE = re.compile(
    r"OFFRAMP_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


def check_variables(environment: Mapping[str, str], settings: Collection[str]) -> None:
    """Raises ConfigError for a variable that begins like ours and is none of these settings of our programs.

    Its value is not repeated: it may be a secret in the wrong place.
    """
    for name, value in environment.items():
        if not name.startswith(PREFIX) or name in settings or name in OTHERS:
            continue
        if _SERVICE.fullmatch(name) or (name.endswith("PORT") and _LINK.fullmatch(value)):
            log.debug("%s is ignored: Kubernetes sets it for a Service", printable(name))
            continue
        near = closest(name.removeprefix(PREFIX), {each.removeprefix(PREFIX) for each in settings})
        expected = PREFIX + near if near else "a variable of the documents"
        raise ConfigError(f"{printable(name)}: there is no such setting, expected {expected}")


def check_link(name: str, value: str) -> None:
    """Raises ConfigError where a setting's value is what Kubernetes sets for a Service of a like name."""
    if _LINK.fullmatch(value):
        service = name.removesuffix("_PORT").lower().replace("_", "-")
        raise ConfigError(
            f"{name}={value}: looks set by Kubernetes for a Service called {service}, expected a setting; "
            "say enableServiceLinks: false in the pod's spec, or call the Service otherwise"
        )


def closest(name: str, known: Collection[str]) -> str:
    """The known name that was probably meant; empty where none is near."""
    return next(iter(get_close_matches(name, sorted(known), 1, 0.7)), "")
