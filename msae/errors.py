"""What a user can get wrong, said in one line."""

from typing import Any


class InputError(ValueError):
    """A value that the user gave and can mend; commands print it without a traceback."""


def check_int(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Return `value` if it is an integer from `low` to `high`, both included.

    Raises:
        InputError: naming `name`, the value and the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name}={value}: expected a whole number, {allowed}")
    return value


def check_positive(name: str, value: Any) -> float:
    """Return `value` if it is a number above 0; raises InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InputError(f"{name}={value}: expected a number above 0")
    return value


def check_choice(name: str, value: Any, choices: Any) -> str:
    """Return `value` if it is one of `choices`; raises InputError that lists them otherwise."""
    if value not in choices:
        raise InputError(f"{name}={value}: expected one of {', '.join(choices)}")
    return str(value)
