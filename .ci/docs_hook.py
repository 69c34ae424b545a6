"""What MkDocs does with a page: links to files that a site does not have become their names."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page as it goes into the site."""
    return OUTSIDE.sub(r"\1", markdown)
