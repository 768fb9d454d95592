"""A log whose truth is known: simulated requests, candidates, slates and feedback, in the format of any dataset."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ranking.atomic import atomic_directory
from ranking.data.logging_policy import Served, epsilon_of, propensities, serve, shown_rows
from ranking.data.population import FIRST_ITEM, FIRST_USER, SEGMENTS, Population, draw_population
from ranking.data.tables import write_dataset
from ranking.data.traffic import Logits, Requests, draw_history, draw_requests
from ranking.data.world import World, dataset_toml, load_world
from ranking.errors import UserError

__all__ = ["OBJECTIVES", "load_world", "simulate", "true_value"]

OBJECTIVES = ("clicks", "conversions", "value")

_STAGES = 6  # population, candidates, policy, propensities, feedback, writing
_VALUE_NOISE = 0.25
_HOUR_MS = 3_600_000

Progress = Callable[[str, int, int], None]


def simulate(
    world: World,
    out: str | Path,
    *,
    shuffle_labels: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Simulates a world and writes its dataset folder, with the truth beside it.

    The chain, every draw from one generator:

        candidates ~ popularity and recency of the items born;   score = fusion of noisy similarity, pctr, pcvr, price
        slate ~ Plackett-Luce or epsilon on the score;           click ~ examination(position) * pctr
        conversion ~ pcvr if clicked, some hours later;          value = price * noise of mean 1 if converted

    Besides the tables the folder gets `production_weights.json` (the fusion weights that the log was served with) and
    `truth/`: `impressions` (pctr = P(click | examined), pcvr, examination) and `candidates` (pctr, pcvr, price),
    row by row beside the tables of these names, and `world.json`.

    Args:
        world: World. From `load_world`.
        out: str or Path. The folder to make.
        shuffle_labels: bool. Whether the feedback is permuted across impressions, so that it has nothing to do with
            user or item: what tests for leaks need. No truth of the impressions is written then. Defaults to `False`.
        overwrite: bool. Whether a folder that exists is replaced. Defaults to `False`.
        progress: callable. Gets stage, stages done, stages in all. Defaults to `None`.

    Returns:
        Path. The folder.

    Example:
        ```python
        simulate(load_world("demo"), "data/demo")
        ```
    """
    with atomic_directory(out, overwrite=overwrite) as folder:
        stages = iter(range(_STAGES))

        def tell() -> None:
            done = next(stages, _STAGES)
            if progress:
                progress("simulate", done, _STAGES)

        tell()
        generator = np.random.default_rng(world.seed)
        population = draw_population(world, generator)
        tell()
        requests = draw_requests(world, population, generator)
        logits = Logits.of(world, population, requests)
        history = draw_history(world, population, logits, generator)
        tell()
        served = serve(world, population, requests, logits, generator)
        tell()
        chances = propensities(world, served)
        tell()
        shown = _feedback(world, requests, served, generator, shuffle_labels)
        tell()
        tables: dict[str, pd.DataFrame] = {
            "users": population.users,
            "items": population.items,
            "requests": _requests_table(world, population, requests),
            "candidates": _candidates_table(requests, served, chances),
            "impressions": _impressions_table(world, requests, shown),
            "behaviors": _behaviors_table(requests, shown, history),
            "truth/candidates": pd.DataFrame({name: served.truth[name] for name in ("pctr", "pcvr", "price")}),
        }
        if not shuffle_labels:
            tables["truth/impressions"] = shown[["pctr", "pcvr", "examination"]]
        write_dataset(folder / "dataset", dataset_toml(world), tables)
        for made in sorted((folder / "dataset").iterdir()):
            made.rename(folder / made.name)
        (folder / "dataset").rmdir()
        served.weights.save(folder / "production_weights.json")
        text = json.dumps(dataclasses.asdict(world) | {"intercepts": served.intercepts}, indent=1, default=str)
        (folder / "truth" / "world.json").write_text(text + "\n", encoding="utf-8")
        tell()
    return Path(out)


def true_value(truth_candidates: Any, offsets: Any, score: Any, examination: Any, objective: str) -> float:
    """What a policy that sorts by `score` is worth, by expectation, without noise.

        mean over requests of the sum over positions k of examination[k] * pctr(item at k) [* pcvr [* price]]

    Equal scores keep the order of the candidates.

    Args:
        truth_candidates: DataFrame or dict. `pctr`, `pcvr`, `price` of all candidates (`truth/candidates`).
        offsets: int array `[requests + 1]`. Where each request's candidates start.
        score: array `[n]`. The target policy's scores.
        examination: array `[slots]`. P(the user looks at position k).
        objective: str. `"clicks"`, `"conversions"` or `"value"`.

    Returns:
        float. A request.

    Raises:
        UserError: unknown objective, or lengths that do not fit.
    """
    if objective not in OBJECTIVES:
        raise UserError(f"`objective` should be one of {', '.join(OBJECTIVES)}. Received: {objective!r}.")
    reward = np.asarray(truth_candidates["pctr"], np.float64)
    for name in ("pcvr", "price")[: OBJECTIVES.index(objective)]:
        reward = reward * np.asarray(truth_candidates[name], np.float64)
    score = np.asarray(score, np.float64)
    offsets = np.asarray(offsets, np.int64)
    if score.shape != reward.shape or offsets[-1] != score.size:
        raise UserError(f"`score` should have one value for each of {reward.size} candidates. Received: {score.shape}.")
    request = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    by = np.lexsort((-score, request))  # stable: request after request, best first
    rank = np.arange(score.size) - offsets[request]
    theta = np.append(np.asarray(examination, np.float64), 0.0)
    return float((theta[np.minimum(rank, theta.size - 1)] * reward[by]).sum() / (offsets.size - 1))


def _feedback(
    world: World, requests: Requests, served: Served, generator: np.random.Generator, shuffle: bool
) -> pd.DataFrame:
    """One row an impression: where it is, what is true of it, what happened and when."""
    place = shown_rows(served)
    count = place.size
    pctr, pcvr = served.truth["pctr"][place], served.truth["pcvr"][place]
    theta = np.tile(np.asarray(world.traffic.examination), len(requests.user))
    click = generator.random(count) < theta * pctr
    conversion = click & (generator.random(count) < pcvr)
    hesitation = np.minimum(20_000 * np.exp(0.8 * generator.normal(size=count)), 0.5 * _HOUR_MS)
    delay = np.exp(generator.normal(size=count))
    latest = (world.feedback.attribution_hours - 0.5) / world.feedback.delay_hours
    while (late := delay > latest).any():  # a conversion that comes comes within the attribution window
        delay[late] = np.exp(generator.normal(size=int(late.sum())))
    worth = np.exp(_VALUE_NOISE * generator.normal(size=count) - _VALUE_NOISE**2 / 2)
    if shuffle:
        order = generator.permutation(count)
        click, conversion = click[order], conversion[order]
    time = np.repeat(requests.timestamp, world.slots)
    click_time = time + hesitation.astype(np.int64) + 1
    conversion_time = click_time + (delay * world.feedback.delay_hours * _HOUR_MS).astype(np.int64)
    return pd.DataFrame(
        {
            "place": place,
            "pctr": pctr,
            "pcvr": pcvr,
            "examination": theta,
            "click": click.astype(np.int8),
            "conversion": conversion.astype(np.int8),
            "click_time": pd.Series(click_time, dtype="Int64").where(click),
            "conversion_time": pd.Series(conversion_time, dtype="Int64").where(conversion),
            "value": np.where(conversion, served.truth["price"][place] * worth, 0).astype(np.float32),
        }
    )


def _named(codes: np.ndarray, names: tuple[str, ...]) -> Any:
    return pd.Categorical.from_codes(codes.astype(np.int8), pd.Index(names))


def _requests_table(world: World, population: Population, requests: Requests) -> pd.DataFrame:
    policy = world.policy
    count = len(requests.user)
    random = policy.exploration == "plackett_luce"
    return pd.DataFrame(
        {
            "request_id": np.arange(1, count + 1),
            "timestamp": requests.timestamp,
            "user_id": FIRST_USER + requests.user,
            "tab": _named(requests.tab, world.traffic.tabs),
            "segment": _named(population.traffic["segment"][requests.user], SEGMENTS),
            "policy_id": policy.name,
            "exploration": policy.exploration,
            "epsilon": 0.0 if random else epsilon_of(world),
            "temperature": policy.temperature if random else np.nan,
            "slots": world.slots,
        }
    )


def _candidates_table(requests: Requests, served: Served, chances: dict[str, np.ndarray]) -> pd.DataFrame:
    columns = {
        "request_id": np.repeat(np.arange(1, len(requests.user) + 1), served.score.shape[1]),
        "item_id": FIRST_ITEM + requests.item.ravel(),
        **{name: served.parts[name] for name in ("similarity", "pctr", "pcvr", "price")},
        "score": served.score.ravel(),
    }
    return pd.DataFrame(columns | chances)


def _impressions_table(world: World, requests: Requests, shown: pd.DataFrame) -> pd.DataFrame:
    slots = world.slots
    columns = {
        "request_id": np.repeat(np.arange(1, len(requests.user) + 1), slots),
        "timestamp": np.repeat(requests.timestamp, slots),
        "user_id": FIRST_USER + np.repeat(requests.user, slots),
        "item_id": FIRST_ITEM + requests.item.ravel()[shown["place"]],
        "position": np.tile(np.arange(slots, dtype=np.int32), len(requests.user)),
        "tab": _named(np.repeat(requests.tab, slots), world.traffic.tabs),
    }
    labels = shown[["click", "conversion", "click_time", "conversion_time", "value"]]
    return pd.concat([pd.DataFrame(columns), labels], axis=1)


def _behaviors_table(
    requests: Requests, shown: pd.DataFrame, history: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> pd.DataFrame:
    """The field `clicked`: the history's clicks and the log's, each at the time of the click."""
    user, item, time = history
    clicked = shown[shown["click"] == 1]
    request = clicked["place"].to_numpy() // requests.item.shape[1]
    frame = pd.DataFrame(
        {
            "user_id": FIRST_USER + np.concatenate([user, requests.user[request]]),
            "field": "clicked",
            "value": FIRST_ITEM + np.concatenate([item, requests.item.ravel()[clicked["place"]]]),
            "timestamp": np.concatenate([time, clicked["click_time"].to_numpy(np.int64)]),
        }
    )
    return frame.sort_values("timestamp", kind="stable", ignore_index=True)
