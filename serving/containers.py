"""TensorFlow Serving in containers: the text of docker-compose.yml and of the Kubernetes manifests."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

__all__ = ["CPUS", "IMAGE", "compose_text", "kubernetes_text"]

# Pinned: the same minor version as the TensorFlow that writes the models, so every op in them is known to it.
IMAGE = "tensorflow/serving:2.21.0"
CPUS = 4
MEMORY = "4Gi"
Flags = Sequence[tuple[str, str]]  # flag, why

_THREADS: Flags = (
    (
        f"--tensorflow_intra_op_parallelism={CPUS}",
        "Threads as many as the container's CPUs: by itself as many as the machine's, which are then throttled.",
    ),
    (f"--tensorflow_inter_op_parallelism={CPUS}", "The same."),
)
_NO_BATCHING = (
    "No --enable_batching: signatures that rank have inputs of 1 row beside inputs of N, which it can not join."
)


def compose_text(models: Path, config: Path, flags: Flags) -> str:
    """docker-compose.yml for one machine.

    Args:
        models: Path. The folder of models; the container sees it under the same path, so that one models.config does
            for servers in and out of containers.
        config: Path. The folder of the configuration files.
        flags: sequence of (flag, why).
    """
    volumes = "\n".join(
        f"      - {{type: bind, source: {_compose(path)}, target: {_compose(path)}, read_only: true}}"
        for path in dict.fromkeys((str(models), str(config)))
    )
    lines = _listed([*flags, *_THREADS], "      ", _compose)
    return f"""\
# Written by `seedrank tfserving`. Start it with `docker compose up -d`, stop it with `docker compose down`.
services:
  serving:
    image: {_compose(IMAGE)}
    restart: unless-stopped
    # This machine only: TensorFlow Serving has neither passwords nor, by itself, encryption.
    ports: ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
    # Folders, not files: a file that is replaced by renaming would be seen as it was. The server writes nothing.
    volumes:
{volumes}
    read_only: true
    tmpfs: ["/tmp"]
    user: "10001:10001"
    cap_drop: ["ALL"]
    security_opt: ["no-new-privileges:true"]
    cpus: {CPUS}
    mem_limit: {_compose(MEMORY.removesuffix("i").lower())}  # two versions at once, while one replaces the other
    # Memory that grows from version to version is fragmentation in glibc's allocator. jemalloc ends it; the image
    # has none, so build one: FROM {IMAGE}, RUN apt-get update && apt-get install -y libjemalloc2,
    # ENV LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2
    entrypoint: ["tensorflow_model_server"]
    # {_NO_BATCHING}
    command:
      - "--port=8500"
      - "--rest_api_port=8501"
{lines}
"""


def kubernetes_text(models: Sequence[str], files: Mapping[str, str], flags: Flags) -> str:
    """A ConfigMap, Deployment, Service, HorizontalPodAutoscaler and PodDisruptionBudget.

    Args:
        models: sequence of str. Their names; the first is the one that probes ask for.
        files: mapping. File name -> text, of the configuration files that flags name under `/config`.
        flags: sequence of (flag, why).
    """
    return "\n".join([_config_map(files), _deployment(f"/v1/models/{quote(models[0], safe='')}", flags), _AROUND])


def _config_map(files: Mapping[str, str]) -> str:
    blocks = "".join(
        f"  {json.dumps(name)}: |\n{''.join(f'    {line}{chr(10)}' for line in text.splitlines())}"
        for name, text in files.items()
    )
    return f"""\
# Written by `seedrank tfserving`. Needs a PersistentVolumeClaim `seedrank-models` that holds the folder of models;
# publishers write to it from elsewhere. Then: kubectl apply -f kubernetes.yaml
apiVersion: v1
kind: ConfigMap
metadata: {{name: seedrank-serving}}
data:
{blocks}---"""


def _deployment(status: str, flags: Flags) -> str:
    lines = _listed([*flags, *_THREADS], "            ", json.dumps)
    return f"""\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: seedrank-serving
  labels: {{app: seedrank-serving}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: seedrank-serving}}}}
  strategy: {{type: RollingUpdate, rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}
  template:
    metadata:
      labels: {{app: seedrank-serving}}
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "8501"
        prometheus.io/path: "/monitoring/prometheus/metrics"
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 30
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        fsGroupChangePolicy: OnRootMismatch  # else every start walks through all versions
        seccompProfile: {{type: RuntimeDefault}}
      containers:
        - name: serving
          image: {json.dumps(IMAGE)}
          command: ["tensorflow_model_server"]
          # {_NO_BATCHING}
          args:
            - "--port=8500"
            - "--rest_api_port=8501"
{lines}
          ports:
            - {{name: grpc, containerPort: 8500}}
            - {{name: http, containerPort: 8501}}
          # The ports open when every model has a version, so until then nothing answers: minutes are allowed.
          startupProbe:
            httpGet: {{path: {json.dumps(status)}, port: http}}
            periodSeconds: 2
            failureThreshold: 150
          # The status answers 200 as long as the model is configured; its metadata only while a version is served.
          readinessProbe:
            httpGet: {{path: {json.dumps(status + "/metadata")}, port: http}}
            periodSeconds: 5
            timeoutSeconds: 2
            failureThreshold: 2
          # Alive is who still accepts: a server that is slow under load must not be killed for it.
          livenessProbe:
            tcpSocket: {{port: grpc}}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          # TensorFlow Serving does not drain: it is asked to stop only when no new requests come any more.
          lifecycle: {{preStop: {{exec: {{command: ["sleep", "10"]}}}}}}
          resources:
            requests: {{cpu: "{CPUS}", memory: {MEMORY}}}
            limits: {{memory: {MEMORY}}}  # two versions at once; no limit of CPUs, which would throttle
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {{drop: ["ALL"]}}
          volumeMounts:
            - {{name: models, mountPath: /models, readOnly: true}}
            - {{name: config, mountPath: /config, readOnly: true}}  # the folder: single files are not renewed
            - {{name: tmp, mountPath: /tmp}}
      volumes:
        - name: models
          persistentVolumeClaim: {{claimName: seedrank-models, readOnly: true}}
        - name: config
          configMap: {{name: seedrank-serving}}
        - name: tmp
          emptyDir: {{}}
---"""


_AROUND = """\
apiVersion: v1
kind: Service
metadata: {name: seedrank-serving}
spec:
  selector: {app: seedrank-serving}
  # A gRPC client keeps one connection, so to one pod: balance by call with a mesh or a proxy, or use REST.
  ports:
    - {name: grpc, port: 8500, targetPort: grpc, appProtocol: kubernetes.io/h2c}
    - {name: http, port: 8501, targetPort: http}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: seedrank-serving}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: seedrank-serving}
  minReplicas: 2
  maxReplicas: 10
  metrics:  # scoring is arithmetic: the CPU says how much more a pod can do. 60 % leaves room for a version's load
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 300}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: seedrank-serving}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {app: seedrank-serving}}
"""


def _listed(flags: Flags, indent: str, quoted: Callable[[str], str]) -> str:
    return "\n".join(f"{indent}# {why}\n{indent}- {quoted(flag)}" for flag, why in flags)


def _compose(text: str) -> str:
    """Quoted for YAML, and for docker compose, which replaces what follows a dollar sign."""
    return json.dumps(text).replace("$", "$$")
