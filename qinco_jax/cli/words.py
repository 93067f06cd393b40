"""Numbers of things, in English."""


def counted(count: int, noun: str, several: str = "") -> str:
    """A number and what is counted: "1 vector", "3,000 vectors", "2 queries"."""
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"
