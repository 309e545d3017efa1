"""Values of files against the types that they should have."""

from typing import Any, Callable, Union, get_args, get_origin

__all__ = ['fits', 'type_name']


def fits(value: Any, kind: Any, within: Callable[[float, Any], bool] = lambda number, kind: True) -> bool:
    """Whether a value has an annotated type.

    Args:
        value: The value.
        kind: The type: a plain one, a tuple, dict or Optional of such, or Any. A whole number is also a float, and a
            boolean is no number.
        within: Whether a number of a type, int or float, is in range.

    Returns:
        Whether it has the type and its numbers are in range.
    """
    if kind is Any:
        return True
    if get_origin(kind) is Union:  # Optional
        return value is None or fits(value, get_args(kind)[0], within)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(
            fits(part, of, within) for item in value.items() for part, of in zip(item, get_args(kind)))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is ...:
            kinds = kinds[:1] * len(value) if isinstance(value, tuple) else kinds
        return isinstance(value, tuple) and len(value) == len(kinds) and all(
            fits(part, of, within) for part, of in zip(value, kinds))
    if kind in (int, float):
        return type(value) in (int, kind) and within(value, kind)
    return type(value) is kind


def type_name(kind: Any) -> str:
    """The name of an annotated type in an error, such as 'int' or 'Tuple[int, int]'."""
    return kind.__name__ if isinstance(kind, type) else str(kind).replace('typing.', '')
