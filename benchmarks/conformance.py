"""Whether a server answers as TensorFlow Serving does: cases of a file against a running server, as a table.

python benchmarks/conformance.py CASES.json [--rest 127.0.0.1:8501] [--grpc 127.0.0.1:8500] [--exact] [--all]

CASES.json holds `{"cases": [{"id", "transport", "request", "expect", "observed"}, ..]}`. A REST request has `method`,
`path` and maybe `body`, `headers` and `gzip_body`, and expects a `status`, and maybe the reply's `json` or a part of
its error (`error_contains`); a gRPC request has `rpc` and a `message` as JSON, and expects a `code`, and maybe a
`response` or a part of the error (`message_contains`). `--exact` compares the whole reply that was `observed` of
TensorFlow Serving too, without the names of graph nodes. The models that the cases ask for must be served, by the
embedded server or any other. Exit code 1 where a case fails.
"""

import argparse
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import grpc
import urllib3
from google.protobuf.json_format import MessageToDict, ParseDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serving.protos import messages

SECONDS = 20
FILES = {  # method -> the file of its messages, and their name
    "Predict": ("predict", "Predict"),
    "Classify": ("classification", "Classification"),
    "Regress": ("regression", "Regression"),
    "MultiInference": ("inference", "MultiInference"),
    "GetModelMetadata": ("get_model_metadata", "GetModelMetadata"),
    "GetModelStatus": ("get_model_status", "GetModelStatus"),
    "HandleReloadConfigRequest": ("model_management", "ReloadConfig"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--rest", default="127.0.0.1:8501")
    parser.add_argument("--grpc", default="127.0.0.1:8500")
    parser.add_argument("--exact", action="store_true", help="compare all of what was observed")
    parser.add_argument("--all", action="store_true", help="list the cases that pass too")
    options = parser.parse_args()
    cases = json.loads(options.cases.read_text(encoding="utf-8"))["cases"]
    host, port = options.rest.rsplit(":", 1)
    rows = []
    with urllib3.HTTPConnectionPool(host, int(port), timeout=SECONDS) as pool:
        with grpc.insecure_channel(options.grpc) as channel:
            for case in cases:
                ask = ask_rest if case["transport"] == "rest" else ask_grpc
                wrong = ask(pool if case["transport"] == "rest" else channel, case, options.exact)
                rows.append((case["id"], case["transport"], wrong))
    table = Table("case", "transport", "result")
    for name, transport, wrong in rows:
        if wrong or options.all:
            table.add_row(name, transport, escape(wrong) or "as TensorFlow Serving")
    console = Console(width=None if sys.stdout.isatty() else 200)
    if table.rows:
        console.print(table)
    failed = sum(bool(wrong) for _, _, wrong in rows)
    console.print(f"{len(rows) - failed} of {len(rows)} cases pass.")
    raise SystemExit(failed > 0)


def ask_rest(pool: urllib3.HTTPConnectionPool, case: dict[str, Any], exact: bool) -> str:
    """What is wrong with the answer to a case, empty where nothing is."""
    request, expect, observed = case["request"], case["expect"], case.get("observed", {})
    body, headers = request.get("body", "").encode(), dict(request.get("headers", {}))
    if request.get("gzip_body"):
        body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
    answer = pool.urlopen(request["method"], request["path"], body=body, headers=headers, retries=False)
    text = answer.data.decode("utf-8", "replace")
    if answer.status != expect["status"]:
        return f"status {answer.status} instead of {expect['status']}: {text[:100]}"
    if "json" in expect and json.loads(text) != expect["json"]:
        return f"{text[:100]} instead of {json.dumps(expect['json'])[:100]}"
    if "error_contains" in expect and expect["error_contains"] not in json.loads(text)["error"]:
        return f"{text[:100]} instead of .. {expect['error_contains'][:100]} .."
    if exact and "body" in observed and unnamed(text) != unnamed(observed["body"]):
        return f"{text!r} instead of {observed['body']!r}"
    # A body with another node's name has another length.
    wanted = {name: value for name, value in observed.get("headers", {}).items() if name != "Content-Length"}
    for name, value in wanted.items() if exact else ():
        if answer.headers.get(name) != value:
            return f"header {name}: {answer.headers.get(name)} instead of {value}"
    return ""


def ask_grpc(channel: grpc.Channel, case: dict[str, Any], exact: bool) -> str:
    """What is wrong with the answer to a case, empty where nothing is."""
    request, expect, observed = case["request"], case["expect"], case.get("observed", {})
    file, kind = FILES[request["rpc"].rsplit("/", 1)[1]]
    kinds = messages(f"tensorflow_serving/apis/{file}.proto")
    call = channel.unary_unary(
        request["rpc"],
        lambda message: message.SerializeToString(),
        getattr(kinds, f"{kind}Response").FromString,
    )
    message = ParseDict(request["message"], getattr(kinds, f"{kind}Request")())
    code, words, response = "OK", "", {}
    try:
        reply = call(message, timeout=SECONDS)
        pool = reply.DESCRIPTOR.file.pool
        response = MessageToDict(reply, preserving_proto_field_name=True, descriptor_pool=pool)
    except grpc.RpcError as error:
        code, words = error.code().name, error.details()
    if code != expect["code"]:
        return f"code {code} instead of {expect['code']}: {words[:100]}"
    if "response" in expect and response != expect["response"]:
        return f"{json.dumps(response)[:100]} instead of {json.dumps(expect['response'])[:100]}"
    if "message_contains" in expect and expect["message_contains"] not in words:
        return f"{words[:100]} instead of .. {expect['message_contains'][:100]} .."
    if exact and code != "OK" and unnamed(words) != unnamed(observed.get("message", words)):
        return f"{words!r} instead of {observed['message']!r}"
    if exact and code == "OK" and response != observed.get("response", response):
        return f"{json.dumps(response)} instead of {json.dumps(observed['response'])}"
    return ""


def unnamed(text: str) -> str:
    """A text without the names that a graph gave its nodes."""
    return re.sub(r"(\{\{[^{}]*\}\})+", "{{}}", text)


if __name__ == "__main__":
    main()
