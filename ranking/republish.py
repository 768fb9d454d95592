"""Other tables for a live version, and nothing else of it: new seeds, statistics, items and users, the same graph."""

from pathlib import Path

from ranking.apply import no_version
from ranking.errors import UserError
from ranking.exported.network import SplitNetwork
from ranking.exported.ranker import space_id
from ranking.exported.tables import table_arrays, tables_hash
from ranking.facts import table_facts
from ranking.fusion import FusionWeights
from ranking.golden import FUSION, GOLDEN_TOLERANCE, golden_requests, write_golden_scores, write_warm_up
from ranking.rewrite import rewrite_version, variable_key, variable_keys
from ranking.run import Run
from ranking.state import State
from serving.layout import model_folder
from serving.publish import Content, publish, version_content, versions, write_golden
from serving.verifier import Verifier, given_or_new

__all__ = ["republish_tables", "table_arrays"]


def republish_tables(
    models: str | Path, run: Run, state: State, *, name: str = "seedrank", verifier: Verifier | None = None
) -> Path:
    """Publishes the live version of a model again, with the tables of another state.

    Graph, parameters and weights are the live version's, bit for bit. A table may have other rows: new users and items
    need no new graph, and those that the vocabularies lack have the out-of-vocabulary row. The users may outgrow what
    an export allows: a refresh goes on, and the next export says so.

    Args:
        models: str or Path. The folder that holds a folder a model, each with numbered versions.
        run: Run. What the live version was exported from; its own state and weights don't matter.
        state: State. By the run's models and vocabularies.
        name: str. The model's name, see `serving.layout.model_folder`. Defaults to `"seedrank"`.
        verifier: Verifier or `None`. See `serving.publish.publish`.

    Returns:
        The folder of the version.

    Raises:
        UserError: there is no live version, or it is of another run.
        ServingError: a rollback has pinned the version (`Pinned`), or the new one does not answer as it should.
    """
    base = model_folder(models, name)

    def build(folder: Path, live: Path | None) -> Content:
        if live is None:
            raise no_version(base)
        content = version_content(live)
        _refuse_others(run, live, content)
        users = bool(content.facts["user_table"])
        network = SplitNetwork(run, centroid_dtype=content.facts["centroid_dtype"])
        tables = {f"tables/{name}": values for name, values in table_arrays(run, state, network, users=users).items()}
        if {variable_key(name) for name in tables} != {key for key in variable_keys(live) if key.startswith("tables/")}:
            raise UserError(f"{live} has other tables than this run makes: export it again.")
        rewrite_version(live, folder, tables)
        facts = {**content.facts, **table_facts(state, users=users)}
        weights = FusionWeights.load(live / FUSION)
        requests = golden_requests(run, state, weights, facts, users=users)
        write_golden(folder, requests, tolerance=GOLDEN_TOLERANCE[content.facts["centroid_dtype"]])
        write_golden_scores(folder, weights, held, graph=False)
        write_warm_up(folder)
        return Content({**content.hashes, "tables": tables_hash(state)[0]}, facts)

    if not versions(base):  # before `publish` makes the folder
        raise no_version(base)
    with given_or_new(verifier) as held:
        return base / str(publish(base, build, verifier=held, when_pinned="refuse"))


def _refuse_others(run: Run, live: Path, content: Content) -> None:
    """A table is made with the parameters and in the space of its users' vectors."""
    if not content.facts.keys() >= {"user_table", "centroid_dtype"}:
        raise UserError(f"{live} was exported before its tables could be changed alone: export it again.")
    for what, expected, found in (
        ("`parameters_hash`", content.hashes.get("parameters"), run.info["parameters_hash"]),
        ("`embedding_space_id`", content.facts.get("embedding_space_id"), space_id(run)),
    ):
        if expected != found:
            raise UserError(f"{what} of the run should be that of {live}, {expected!r}. Received: {found!r}.")
