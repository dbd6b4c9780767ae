"""The page: one latent, some, or a whole dictionary in one HTML file, or the same page fed by a server.

The page is drawn in the browser from two kinds of JSON document, and gets them through one seam:

    documents = Documents(subject, index)     # or Documents(subject, index, latents=[27, 30])
    documents.summary()                       # what the page is about, and the columns of the table of latents
    documents.block(0)                        # everything about latents 0…31 of that table; `documents.blocks` of them

A file embeds them (`write_page`). A server answers `GET BASE/summary` and `GET BASE/block/K` with them, and its page is
`shell(title, {"base": "BASE"}, ...)`; `source.js` is the other end. Extra scripts given to `shell` run after the
page's own and add to it: `views.NAME = {title, draw(main, rest)}` is another view under `#/NAME/rest`,
`panels.push((latent, summary) => element or null)` another panel on every latent's page.
"""

from __future__ import annotations

from hsae.inspect.page.documents import Documents
from hsae.inspect.page.write import shell, write_page

__all__ = ["Documents", "shell", "write_page"]
