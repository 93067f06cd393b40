from qinco_jax.words import counted


def test_one_is_counted_as_one() -> None:
    assert [counted(n, "vector") for n in (0, 1, 2000)] == [
        "0 vectors",
        "1 vector",
        "2,000 vectors",
    ]
    assert counted(2, "query", "queries") == "2 queries"
