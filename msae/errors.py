"""Errors that a user can correct, each in one line."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence, Sized
from typing import Any


class InputError(ValueError):
    """A value that the user gave and can correct; commands print it in one line, without a traceback.

    Examples:
        >>> from msae import InputError, load
        >>> try:
        ...     load("no/such/run")
        ... except InputError as error:
        ...     print(error)
        checkpoint no/such/run: no such file; expected the folder of a run, or its best.ckpt
    """


def needs(what: str, package: str, extra: str) -> InputError:
    """The error about a package that `what` needs and that msae does not install by itself."""
    return InputError(f"{what} needs {package}: pip install {package} (or msae's extra [{extra}])")


def check_utf8(text: str) -> str:
    """Return a file's name, or an argument, that is UTF-8 and that the locale can read; raises InputError otherwise."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{text!a}: not UTF-8 in this locale; expected another name, or LC_ALL=C.UTF-8") from None
    return text


def repeated(values: Iterable[Any]) -> list[Any]:
    """The values that occur more than once."""
    return [value for value, n in Counter(values).items() if n > 1]


def one_line(error: BaseException) -> str:
    """The text of an exception without line breaks."""
    return " ".join(str(error).split())


def check_int(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Return `value` if it is an integer from `low` to `high`, both included.

    Raises:
        InputError: naming `name`, the value and the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name}={value}: expected a whole number, {allowed}")
    return value


def check_threads(value: Any) -> int:
    """Return `threads` if it is a number of threads that torch can start; raises InputError otherwise."""
    return check_int("threads", value, 1, max(64, 2 * (os.cpu_count() or 1)))  # torch's pool crashes at many more


def check_positive(name: str, value: Any, high: float = float("inf")) -> float:
    """Return `value` if it is a finite number above 0 and at most `high`; raises InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= min(high, 1e308):
        raise InputError(f"{name}={value}: expected a number above 0" + (f", to {high:g}" if high < 1e308 else ""))
    return value


def check_number(name: str, value: Any, high: float = float("inf")) -> float:
    """Return `value` if it is a finite number from 0 to `high`; raises InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= min(high, 1e30):
        raise InputError(f"{name}={value}: expected a number from 0" + (f" to {high:g}" if high < 1e30 else ""))
    return value


def check_ints(name: str, values: Any, low: int = 1, high: int | None = None) -> list[int]:
    """Return `values` as a list if they are whole numbers from `low` to `high`; raises InputError otherwise."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError(f"{name}={values}: expected a list of whole numbers, such as [8,16]")
    return [check_int(name, value, low, high) for value in values]


def check_each(name: str, values: Sized, n: int, what: str) -> None:
    """Raise InputError unless there is one of `values` for each of n things, which are called `what`."""
    if len(values) != n:
        raise InputError(f"{name}: {len(values)} for {n} {what}; expected one for each")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> Any:
    """Return `value` if it is one of `choices`; raises InputError that lists them otherwise."""
    if value not in choices:
        raise InputError(f"{name}={value}: expected one of {', '.join(map(str, choices))}")
    return value
