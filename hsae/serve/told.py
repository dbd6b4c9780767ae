"""What a client is told of an error: the line, without the places of this machine."""

from __future__ import annotations

import re

from hsae.files import cache_root

# The folders of an absolute path; not those of an address on the web, nor a / between two words.
_FOLDERS = re.compile(r"(?<![\w.:/\\…>-])/(?:[^\s/:;,'\"()]+/)+")


class NotHere(Exception):
    """What a request names is not in the cache: status 404."""


def told(error: object) -> str:
    """An error's line, with paths as they are seen from the cache; of those elsewhere only the last part."""
    line = str(error)
    for root in {str(cache_root().resolve()), str(cache_root().absolute())}:
        line = line.replace(f"{root}/", "")
    return _FOLDERS.sub("…/", line)
