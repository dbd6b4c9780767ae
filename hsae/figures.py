"""Numbers in few cells. None, for what was never measured, is a dash."""

from __future__ import annotations

NONE = "–"


def scientific(value: float | None) -> str:
    """2.6e-3, without the exponent's leading zero."""
    if value is None:
        return NONE
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def fraction(value: float | None) -> str:
    """.929, or -13.2 when it is no fraction at all."""
    if value is None:
        return NONE
    if abs(value) >= 999.5:
        return scientific(value)
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:.3g}"


def thousands(value: float | None) -> str:
    """123k, or the whole number below 10,000."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value < 10_000 else f"{value / 1000:,.0f}k"


def percent(share: float) -> str:
    """A share as 12.3%, 1.23% or 0.012%; at most six cells."""
    percent = 100 * share
    digits = 0 if percent >= 99.95 or not percent else 1 if percent >= 10 else 2 if percent >= 0.1 else 3
    return f"{percent:.{digits}f}%" if percent >= 0.001 or not percent else "<.001%"


def figure(value: float) -> str:
    """Three figures, so that a column of them lines up."""
    return f"{value:#.3g}".rstrip(".") if value == 0 or 1e-3 <= abs(value) < 1e6 else scientific(value)


def short(number: float) -> str:
    """1234567 -> "1.2M": for a place that must not grow."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 1000 or unit == "G":
            return f"{number:.3g}{unit}" if abs(number) < 100 else f"{number:.0f}{unit}"
        number /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds in words: "about" precise, never more than two units."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def size(count: int) -> str:
    """Bytes in binary units: "1.5 GiB"."""
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count / 1024**power:.{min(power, 1)}f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
