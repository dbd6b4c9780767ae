"""What is kept so that it need not be made again: bounded, the least recently used dropped first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Place(Generic[T]):
    value: T | None = None
    made: bool = False
    weight: int = 0
    making: threading.Lock = field(default_factory=threading.Lock)


class Kept(Generic[T]):
    """Things by key. Each is made once, however many ask for it; those who ask for another one do not wait.

    Args:
        most: the sum of weights that is kept.
        weigh: what a thing weighs; 1 each if not given.
    """

    def __init__(self, most: int, weigh: Callable[[T], int] = lambda thing: 1) -> None:
        self._most, self._weigh = most, weigh
        self._places: OrderedDict[Hashable, _Place[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under a key, made if it is not. What cannot be made is not kept."""
        with self._lock:
            place = self._places.setdefault(key, _Place())
            self._places.move_to_end(key)
        with place.making:
            if not place.made:
                try:
                    place.value = make()
                    place.weight, place.made = self._weigh(place.value), True
                finally:
                    self._tidy(key, place)
            return place.value  # pyright: ignore[reportReturnType]

    def _tidy(self, key: Hashable, new: _Place[T]) -> None:
        with self._lock:
            if not new.made and self._places.get(key) is new:
                del self._places[key]
            held = sum(place.weight for place in self._places.values())
            for old in [*self._places]:
                if held <= self._most:
                    break
                if self._places[old].made and self._places[old] is not new:
                    held -= self._places.pop(old).weight
