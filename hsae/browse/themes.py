"""The colours of the app, on a dark terminal and on a light one."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    "hsae-dark",
    primary="#ff8c00",
    foreground="#d8dce2",
    background="#0d0f12",
    surface="#15181d",
    panel="#1b1f26",
    variables={"chosen": "#2c3a4d", "quiet": "#7d8590", "scrollbar": "#3a414b", "scrollbar-background": "#0d0f12"},
)
LIGHT = Theme(
    "hsae-light",
    primary="#a85500",
    foreground="#1c1f23",
    background="#fcfbf9",
    surface="#ffffff",
    panel="#ece9e3",
    dark=False,
    variables={"chosen": "#cfe0f4", "quiet": "#6b7077", "scrollbar": "#b9b4aa", "scrollbar-background": "#fcfbf9"},
)
