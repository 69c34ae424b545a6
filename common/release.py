"""Which release this is."""

from __future__ import annotations

from importlib.metadata import version


def package_version() -> str:
    """This release."""
    return version("offramp")


def version_line(program: str) -> str:
    """What ``--version`` prints: the release, and whether activations are coded by the compiled coder."""
    from offramp.common.codec.activation import coder_kind

    return f"{program} {package_version()} ({coder_kind()} coder)"
