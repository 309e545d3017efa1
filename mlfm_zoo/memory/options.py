"""The options of a network's memory: names, values and meaning."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, Tuple, Type, TypeVar, Union

__all__ = ['MEMORY_SUPPLEMENTS', 'MEMORY_UPDATES', 'MemoryOptions', 'Options', 'check_option']

MEMORY_UPDATES = ('add', 'cat')
MEMORY_SUPPLEMENTS = ('all', 'all_but_last', 'none')

OptionsT = TypeVar('OptionsT', bound='Options')


@dataclass(frozen=True)
class Options:
    """Options that a network takes in addition to its trunk's."""

    @classmethod
    def take_from(cls: Type[OptionsT], kwargs: Dict[str, Any]) -> OptionsT:
        """Pop the options from a network's keyword arguments."""
        names = [field.name for field in dataclasses.fields(cls) if field.name in kwargs]
        return cls(**{name: kwargs.pop(name) for name in names})


@dataclass(frozen=True)
class MemoryOptions(Options):
    """Options of a network's memory, by their names in `timm.create_model`.

    They are strings and booleans, so that config.json can hold them.

    Attributes:
        memory_update: How a unit makes the next memory, 'add' or 'cat'.
        memory_supplement: Which units have a supplement gate, 'all', 'all_but_last' or 'none'.
        memory_forget_last: Whether the last unit halves its memory too, which nothing reads.

    Raises:
        ValueError: An option is out of range.
        TypeError: An option is unknown.

    Examples:
        >>> model = timm.create_model('test_mlfm_resnet', memory_update='cat', memory_supplement='none')
        >>> model.memory_options.memory_update
        'cat'
    """
    memory_update: str = 'add'
    memory_supplement: str = 'all'
    memory_forget_last: bool = False

    @classmethod
    def take_from(cls: Type[OptionsT], kwargs: Dict[str, Any]) -> OptionsT:
        names = [field.name for field in dataclasses.fields(cls)]
        for name in kwargs:
            if name.startswith('memory_') and name not in names:
                raise TypeError(f'{name!r} is not an option of the memory, expected {", ".join(names)}.')
        return super().take_from(kwargs)

    def __post_init__(self) -> None:
        check_option('memory_update', self.memory_update, MEMORY_UPDATES)
        check_option('memory_supplement', self.memory_supplement, MEMORY_SUPPLEMENTS)
        check_option('memory_forget_last', self.memory_forget_last, (True, False))


def check_option(name: str, value: Union[str, int], choices: Tuple[Union[str, int], ...]) -> None:
    """Raise a ValueError if the value is not one of the choices."""
    if type(value) is not type(choices[0]) or value not in choices:  # 1 equals True
        raise ValueError(f'{name} is {value!r}, expected {" or ".join(map(repr, choices))}.')
