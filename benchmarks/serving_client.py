"""What serving_load.py loads with: a server in a process of its own, its models, and clients that cost little.

python benchmarks/serving_client.py FOLDER    # is the server's process: prints its ports, ends with its standard input
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

from serving.protos import messages
from serving.tensors import pack

MODEL = "seedrank"
CORES = os.cpu_count() or 1
TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """A server in a process of its own, with `folder` as its models."""

    def __init__(self, folder: Path) -> None:
        self._start = time.perf_counter()
        command = [sys.executable, __file__, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit("the server did not start")
        self.ports = json.loads(line)
        self.seconds_to_start = time.perf_counter() - self._start

    def cpu(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident(self) -> float:
        """MB in memory."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    def number(self, name: str) -> float:
        """A figure of the server's metrics page."""
        url = f"http://127.0.0.1:{self.ports['rest']}/monitoring/prometheus/metrics"
        found = re.search(rf"^{name}\S* (\S+)$", urllib3.request("GET", url).data.decode(), re.MULTILINE)
        return float(found[1]) if found else float("nan")

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(60)


class Stub:
    """Sends prepared Predict requests, so that the client takes little of the machine."""

    def __init__(self, port: int, inputs: list[dict[str, np.ndarray]]) -> None:
        import grpc

        self.error = grpc.RpcError
        self._channels = [grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
                          for _ in range(CORES)]  # fmt: skip
        self.calls = [
            channel.unary_unary("/tensorflow.serving.PredictionService/Predict") for channel in self._channels
        ]
        self.requests = []
        for arrays in inputs:
            request = messages("tensorflow_serving/apis/predict.proto").PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = MODEL, "rank"
            for name, values in arrays.items():
                request.inputs[name].CopyFrom(pack(name, values))
            self.requests.append(request.SerializeToString())

    def __call__(self, number: int) -> None:
        self.calls[number % len(self.calls)](self.requests[number % len(self.requests)], timeout=30.0)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def by_row(port: int, inputs: dict[str, np.ndarray]) -> Callable[[], None]:
    """REST with an object a candidate: signature serving_default, whose inputs are all [N]."""
    rows = len(inputs["item_id"])
    lists = {name: np.resize(values, rows).tolist() for name, values in inputs.items()}
    lists = {name: [v.decode() if isinstance(v, bytes) else v for v in values] for name, values in lists.items()}
    instances = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    pool, url = urllib3.PoolManager(), f"http://127.0.0.1:{port}/v1/models/{MODEL}:predict"

    def call() -> None:
        reply = pool.urlopen("POST", url, body=json.dumps({"instances": instances}).encode())
        if reply.status != 200:
            raise SystemExit(f"REST by row: {reply.data[:300]!r}")
        json.loads(reply.data)

    return call


class Load:
    """Closed loop: each of so many threads calls, waits for the answer and calls again."""

    def __init__(self, stub: Stub, clients: int) -> None:
        self._stub, self._stop = stub, threading.Event()
        self.calls: list[tuple[float, float]] = []  # start, seconds
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            start = time.perf_counter()
            try:
                self._stub(number)
            except self._stub.error as error:
                self.failed.append(str(error))
                continue
            self.calls.append((start, time.perf_counter() - start))
            number += CORES

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def one_model(source: Path) -> Iterator[Path]:
    """A folder of models with version 1 of the model."""
    with tempfile.TemporaryDirectory() as folder:
        add_version(Path(folder), source, 1)
        yield Path(folder)


def add_version(models: Path, source: Path, version: int) -> None:
    """Files are linked, not copied: the disk is not what is measured."""
    (models / MODEL).mkdir(exist_ok=True)
    temporary = models / MODEL / f".tmp-{version}"
    shutil.copytree(source, temporary, copy_function=os.link)
    temporary.rename(models / MODEL / str(version))


def serve(folder: str) -> None:
    """The other process: serves until its standard input ends."""
    from serving.server import Server

    with Server(folder, rest_port=0, grpc_port=0, poll_seconds=0.1) as server:
        print(json.dumps({"rest": server.rest_port, "grpc": server.grpc_port}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1])
