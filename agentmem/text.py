"""What text may be: one rule for the tokenizer, the database and every file format."""

from __future__ import annotations

from agentmem.errors import InvalidInput


def check_characters(text: str, what: str = "text", longest: int | None = None) -> str:
    """The text, if its characters survive every tokenizer, database and file unchanged; blank is fine.

    Raises:
        InvalidInput: a NUL, a lone surrogate (half of a character, as broken JSON escapes leave it), or more than
            ``longest`` characters.
    """
    if longest is not None and len(text) > longest:
        raise InvalidInput(f"{what} has {len(text)} characters, at most {longest} fit; split it into chunks")
    if "\x00" in text:
        raise InvalidInput(f"{what} contains a NUL character at index {text.index(chr(0))}; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{what} contains a lone surrogate (U+{ord(text[error.start]):04X}) at index {error.start}, which is no "
            "character; decode the bytes that it came from with errors='replace', or remove it"
        ) from None
    return text


def check_text(text: object, what: str = "text", longest: int | None = None) -> str:
    """The text, if there is something in it to remember.

    Raises:
        InvalidInput: not a str, nothing but white space, or characters that ``check_characters`` refuses.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"{what} must be a str, not {type(text).__name__}")
    if not text.strip():
        raise InvalidInput(f"{what} is empty or only white space: {text[:40]!r}")
    return check_characters(text, what, longest)
