def counts_of(text: str, start: int, end: int) -> tuple[float, ...]:
    """How many characters of each of ``prompt_tokens.CLASSES`` the text has from ``start`` to before ``end``.

    Both are brought within the text.
    """
