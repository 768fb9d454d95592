import dataclasses

import pytest

from esmm import SHARINGS, Architecture


def test_defaults_are_the_papers_and_lists_become_tuples():
    plain = Architecture()
    assert (plain.sharing, plain.embedding_dim, plain.towers) == ("embedding", 18, (360, 200, 80))
    assert Architecture(towers=[8, 4]) == Architecture(towers=(8, 4))
    assert Architecture(**dataclasses.asdict(plain)) == plain
    assert all(Architecture(sharing).sharing == sharing for sharing in SHARINGS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(sharing="ple"), "sharing='ple'"),
        (dict(embedding_dim=0), "embedding_dim=0"),
        (dict(towers=(8, 0)), r"towers=\(8, 0\)"),
        (dict(sharing="hard", towers=()), r"share by 'hard'. Received: towers=\(\)"),
        (dict(dropout=1.0), "dropout=1.0"),
        (dict(l2=-1.0), "l2=-1.0"),
        (dict(l2=float("nan")), "l2=nan"),
        (dict(experts=0), "experts=0"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        Architecture(**arguments)
