"""Numbers and sizes as text."""


def counted(count: float, noun: str, many: str | None = None) -> str:
    """A number with its noun: "1 vector", "0.5 bytes"; `many` is an irregular plural."""
    number = f"{int(count):,}" if count == int(count) else f"{count:g}"
    return f"{number} {noun if count == 1 else many or noun + 's'}"


def format_size(num_bytes: float | None) -> str:
    """A size in readable units: "17.6kB"; `None` is unknown."""
    if num_bytes is None:
        return "unknown"
    from tqdm import tqdm  # slow to import

    return tqdm.format_sizeof(num_bytes, "B", 1000)
