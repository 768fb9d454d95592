"""`seedrank rank`: what is asked, what is shown, and the mistakes; the server is a stand-in that writes down calls."""

import json
import sys

import pytest

from ranking import cli, cli_rank
from ranking.fusion import FusionWeights
from serving.errors import NotFound

WEIGHTS = FusionWeights(
    "sum", {"similarity": 0.5, "pctr": 1.0, "pcvr": 0.0}, mu=dict.fromkeys(("similarity", "pctr", "pcvr"), 0.0),
    sd=dict.fromkeys(("similarity", "pctr", "pcvr"), 1.0),
)  # fmt: skip


def _answer(ids):
    """score = 0.5 similarity + pctr, with similarity 0.1, 0.2, ... and pctr 0.3, 0.6, ..."""
    n = range(1, len(ids) + 1)
    similarity, pctr = [0.1 * k for k in n], [0.3 * k for k in n]
    return {
        "similarity": similarity, "pctr": pctr, "pcvr": [0.5] * len(ids), "pctcvr": [0.5 * p for p in pctr],
        "score": [0.5 * s + p for s, p in zip(similarity, pctr, strict=True)], "has_similarity": [True] * len(ids),
        "known_user": [True] * len(ids), "known_item": [True] * len(ids),
    }  # fmt: skip


class _Client:
    def __init__(self):
        self.calls = []
        self.facts = {"fusion": WEIGHTS.to_dict()}

    def rank(self, user, ids, **given):
        self.calls.append(("rank", user, ids, given))
        return _answer(ids)

    def rank_top(self, user, ids, top, **given):
        self.calls.append(("rank_top", user, ids, top, given))
        best = list(reversed(ids))[:top]
        answer = _answer(ids)
        return {"item_id": best, **{name: list(reversed(values))[:top] for name, values in answer.items()}}

    def rank_features(self, features, ids, **given):
        self.calls.append(("rank_features", features, ids, given))
        return _answer(ids)

    def live(self):
        return {"version": 7, "state": "AVAILABLE", "hashes": {}, "facts": self.facts}

    def status(self):
        return [{"version": 9, "state": "LOADING"}, {"version": 7, "state": "AVAILABLE"}]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def client(monkeypatch):
    found = _Client()
    monkeypatch.setattr(cli_rank, "_client", lambda *where: found)
    return found


@pytest.fixture
def run(monkeypatch, capsys):
    """`(arguments) -> (exit code, output, error)`."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["seedrank", "rank", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return caught.value.code or 0, said.out, said.err

    return call


def test_the_best_first(client, run):
    code, output, _ = run("--user", "7", "--items", "a,b,c", "--context", "tab=1", "--json")
    assert code == 0
    assert [row["item_id"] for row in json.loads(output)] == ["c", "b", "a"]
    kind, user, ids, given = client.calls[0]
    assert (kind, user, ids) == ("rank", "7", ["a", "b", "c"])
    assert given == {"context": {"tab": "1"}, "price": None, "weights": None, "version": None, "label": None}


def test_a_table(client, run):
    code, output, _ = run("--user", "7", "--items", "a,b")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines() if line.strip()] == ["item", "b", "a"]


def test_top(client, run):
    _, output, _ = run("--user", "7", "--items", "a,b,c", "--top", "2", "--json", "--label", "canary")
    assert [row["item_id"] for row in json.loads(output)] == ["c", "b"]
    assert client.calls[0][0] == "rank_top" and client.calls[0][3] == 2
    assert client.calls[0][4]["label"] == "canary"
    _, output, _ = run("--user", "7", "--items", "a,b,c", "--top", "2", "--weights", "pctr=1", "--json")
    assert client.calls[1][0] == "rank" and len(json.loads(output)) == 2


@pytest.mark.parametrize(
    ("options", "features"),
    [
        (["--features", "age=31", "--features", "city=x=y"], {"age": "31", "city": "x=y"}),
        (["--features", '{"age": 31, "clicked": ["5", "6"]}'], {"age": 31, "clicked": ["5", "6"]}),
    ],
)
def test_features(client, run, options, features):
    code, _, error = run(*options, "--items", "a", "--version", "3")
    assert code == 0, error
    assert client.calls[0][:2] == ("rank_features", features)
    assert client.calls[0][3]["version"] == 3


def test_explain(client, run):
    _, output, _ = run("--user", "7", "--items", "a,b", "--explain", "--top", "1", "--json")
    (row,) = json.loads(output)
    # item b: 0.5 * 0.2 + 1 * 0.6
    assert row["parts"]["similarity"]["contribution"] == pytest.approx(0.1)
    assert row["parts"]["pctr"]["contribution"] == pytest.approx(0.6)
    assert sum(part["contribution"] for part in row["parts"].values()) == pytest.approx(row["score"])
    code, output, _ = run("--user", "7", "--items", "a,b", "--explain")
    assert code == 0
    assert "0.2 -> +0.1000" in output and "+0.500 x z" in output


def test_explain_with_the_weights_on_disk(client, run, tmp_path):
    client.facts = {}
    folder = tmp_path / "seedrank" / "7" / "assets.extra"
    folder.mkdir(parents=True)
    WEIGHTS.save(folder / "fusion.json")
    code, output, error = run("--user", "7", "--items", "a", "--explain", "--models", str(tmp_path), "--json")
    assert code == 0, error
    assert json.loads(output)[0]["parts"]["pctr"]["weight"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--items", "a"], "one of `--user` and `--features` should be given."),
        (["--items", "a", "--user", "1", "--features", "a=1"], "one of `--user` and `--features` should be given."),
        (["--items", "a", "--features", "age"], "`--features` should look like name=value. Received: 'age'."),
        (["--items", "a", "--features", "{age}"], "`--features` should be one JSON object, or name=value."),
        (["--items", "a", "--features", "a=1", "--weights", "pctr=1"], "`--weights` should not be given with"),
        (["--items", "@/nowhere", "--user", "1"], "`--items` should be ids, or @FILE with one a line."),
        (["--items", "a", "--user", "1", "--prices", "x"], "`--prices` should be numbers. Received: 'x'."),
        (["--items", "a", "--user", "1", "--explain", "--label", "x"], "`--explain` should be given with `--version`"),
        (["--items", "a", "--user", "1", "--explain", "--version", "3"], "`--explain` needs `--models`"),
    ],
)
def test_mistakes(client, run, arguments, message):
    code, _, error = run(*arguments)
    assert code == 2
    assert message in error and error.count("\n") == 1


def test_the_words_of_the_server(client, run, monkeypatch):
    def refuse(*arguments, **given):
        raise NotFound("Servable not found for request: Specific(seedrank, 9)")

    monkeypatch.setattr(client, "rank", refuse)
    code, _, error = run("--user", "1", "--items", "a", "--version", "9")
    assert (code, error) == (2, "seedrank: Servable not found for request: Specific(seedrank, 9)\n")
