"""Ask a running server for a ranking, in every way there is. Start one first: `seedrank serve models`.

    python examples/call_serving.py --user 10000000001 --items 20000041,20000017,20000475 --context tab=home

It works the same against TensorFlow Serving. `--grpc` asks over gRPC: the two clients have the same calls.
"""

import argparse

from serving.errors import DeadlineExceeded, NotFound, RequestError, ResourceExhausted, ServingError, Unavailable


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8501", help="where the REST server listens")
    parser.add_argument("--address", default="127.0.0.1:8500", help="where the gRPC server listens")
    parser.add_argument("--grpc", action="store_true", help="ask over gRPC")
    parser.add_argument("--model", default="seedrank")
    parser.add_argument("--user", required=True)
    parser.add_argument("--items", required=True, help="candidate ids, comma separated")
    parser.add_argument("--context", nargs="*", default=[], help="as tab=home hour=20")
    return parser.parse_args()


def connect(options):
    # One client for the whole program: it keeps its connections, and threads may share it.
    # `timeout` is for a call with all its attempts. Only UNAVAILABLE is tried again, after a random pause.
    # With `max_table_age=900` an answer from tables older than that has `.stale`; `hard_table_age` raises StaleTables.
    if options.grpc:
        from serving.rpc import RankClient  # packed tensors: the faster one for thousands of candidates

        return RankClient(options.address, options.model, timeout=2.0, retries=2)
    from serving.rest import RankClient  # needs urllib3 only

    return RankClient(options.url, options.model, timeout=2.0, retries=2)


def show(title, items, answer, name="score"):
    best = sorted(zip(answer[name], items, strict=True), reverse=True)[:3]
    print(f"{title:<34}" + "  ".join(f"{item} {value:.4f}" for value, item in best))


def main():
    options = parse()
    user, items = options.user, options.items.split(",")
    context = dict(pair.split("=", 1) for pair in options.context)

    with connect(options) as client:
        # 1. The usual call. Ids travel in the types that the model declares; every list is in the order of `items`.
        answer = client.rank(user, items, context=context)
        show("rank", items, answer)
        print("   outputs:", ", ".join(sorted(answer)))
        if not answer["known_user"][0]:
            print("   this user is not in the model: see rank_features and rank_embedding below")

        # 2. Only what is needed. Over gRPC the other outputs are not even sent.
        show("only the score", items, client.rank(user, items, context=context, outputs=["score"]))

        # 3. Other weights, without publishing anything. A part that is left out weighs 0.
        show("weights: pctr alone", items, client.rank(user, items, context=context, weights={"pctr": 1.0}))

        # 4. The best two only, the best first.
        top = client.rank_top(user, items, 2, context=context)
        show("rank_top", top["item_id"], top)

        # 5. A user whom the model has not seen. Which features it asks for, its metadata says.
        declared = client.metadata()["metadata"]["signature_def"]["signature_def"]
        asked = declared["rank_features"]["inputs"].keys() - declared["rank"]["inputs"].keys()
        unknown = {name: empty(declared["rank_features"]["inputs"][name]) for name in asked}
        show("rank_features: nothing is known", items, client.rank_features(unknown, items, context=context))

        # 6. A user's vector out of a key-value store. A vector of another embedding space is refused.
        space = answer["embedding_space_id"][0]
        inputs = declared["rank_embedding"]["inputs"]
        size = int(inputs["user_vector"]["tensor_shape"]["dim"][1]["size"])
        given = {name: empty(inputs[name]) for name in inputs.keys() - declared["rank"]["inputs"].keys()}
        given = {name: value for name, value in given.items() if name not in ("user_vector", "embedding_space_id")}
        vector = [1 / size**0.5] * size
        show("rank_embedding", items, client.rank_embedding(vector, space, items, context={**context, **given}))

        # 7. Errors carry the server's own words.
        for title, call in {
            "another space": lambda: client.rank_embedding(vector, space + 1, items, context={**context, **given}),
            "a version that is not there": lambda: client.rank(user, items, context=context, version=1),
            "a context column forgotten": lambda: client.rank(user, items),
        }.items():
            try:
                call()
            except NotFound as error:
                print(f"{title}: no such model or version: {error}")
            except (Unavailable, ResourceExhausted, DeadlineExceeded) as error:
                print(f"{title}: the server is away, full or slow: show what needs no ranking: {error}")
            except RequestError as error:
                print(f"{title}: {error.code}: {error.message.splitlines()[0]}")
            except ServingError as error:
                print(f"{title}: seen before it was sent: {error}")

        # 8. What is served.
        for version in client.status():
            print("version", version["version"], version["state"], version["error_message"])


def empty(tensor):
    """A value that says nothing, for an input of the metadata."""
    many = tensor["tensor_shape"]["dim"][-1]["size"] == "-1"
    value = "" if tensor["dtype"] == "DT_STRING" else float("nan") if tensor["dtype"] == "DT_FLOAT" else 0
    return [] if many else value


if __name__ == "__main__":
    main()
