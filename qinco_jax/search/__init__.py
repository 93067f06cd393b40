"""Search among codes."""
