"""Names of files and classes on their way to a terminal."""

__all__ = ['printable']


def printable(name: object) -> str:
    """Escape what a terminal would act on, such as newlines and escape sequences.

    Args:
        name: Name of a file or class, which may come from anyone.

    Returns:
        The name in one line of visible characters.
    """
    return ''.join(
        character if character.isprintable() else character.encode('unicode_escape').decode()
        for character in str(name))
