"""A Kafka topic of clicks."""

from collections.abc import Mapping, Sequence
from typing import Any

from lookalike.click_streams import Entry
from lookalike.redis_link import StoreUnavailable

__all__ = ["KafkaSource"]

_INSTALL = "The package `confluent-kafka` is not installed: pip install 'seedrank[kafka]'."


class KafkaSource:
    """Messages of a Kafka topic, committed by hand when they are durable elsewhere.

    A message's value is what `pack` made, or JSON lines. Several processes of one group share the topic's partitions;
    after a rebalance a message may come twice, to another process.

    This was run against librdkafka's mock cluster, which lives in the process, and against no live broker.

    Args:
        servers: str. `host:port`, several with commas.
        topic: str. The topic.
        group: str. The consumer group; a new one begins with the first message.
        settings: dict, optional. Further settings of librdkafka, for TLS and SASL. Defaults to none.
        messages: int. Messages pulled at once. Defaults to `500`.

    Raises:
        ImportError: the extra `kafka` is not installed.
        ValueError: a setting that librdkafka does not know, or one of those that decide what is lost.
    """

    def __init__(
        self,
        servers: str,
        *,
        topic: str,
        group: str,
        settings: Mapping[str, Any] | None = None,
        messages: int = 500,
    ) -> None:
        if messages < 1:
            raise ValueError(f"`messages` should be a positive integer. Received: messages={messages}.")
        try:
            import confluent_kafka
        except ImportError:
            raise ImportError(_INSTALL) from None
        fixed = {
            "bootstrap.servers": servers,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
        }
        given = dict(settings or {})
        if both := sorted(set(fixed) & set(given)):
            raise ValueError(f"`settings` should leave {both[0]} alone.")
        self._kafka, self._messages = confluent_kafka, messages
        try:
            self._consumer = confluent_kafka.Consumer({"logger": _Silent(), **given, **fixed})
            self._consumer.subscribe([topic])
        except confluent_kafka.KafkaException as error:
            raise ValueError(f"`settings` should be settings of librdkafka. Received: {_words(error)}.") from error
        self._pulled: dict[tuple[str, int], int] = {}  # partition -> the first message not acknowledged

    def pull(self, wait: float) -> list[Entry]:
        """Next messages, after at most `wait` seconds."""
        entries: list[Entry] = []
        failed = None
        try:
            messages = self._consumer.consume(self._messages, wait)
        except (self._kafka.KafkaException, RuntimeError) as error:
            raise StoreUnavailable(f"Kafka: {_words(error)}.") from error
        for message in messages:
            if message.error():
                failed = message.error()
                continue
            place: Any = message.topic(), message.partition(), message.offset()  # there where there is no error
            topic, number, offset = place
            self._pulled.setdefault((topic, number), offset)
            entries.append(Entry(f"{topic} {number}:{offset}", place, message.value() or b""))
        if failed is not None and not entries:
            raise StoreUnavailable(f"Kafka: {_words(failed)}.")
        return entries

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Those messages are durable elsewhere. Where it fails, the next acknowledgement is for these too."""
        behind: dict[tuple[str, int], int] = {}
        for topic, partition, offset in (entry.receipt for entry in entries):
            behind[topic, partition] = max(behind.get((topic, partition), 0), offset + 1)
        self._pulled = {}
        try:
            committed = self._consumer.commit(offsets=self._partitions(behind), asynchronous=False)
        except (self._kafka.KafkaException, RuntimeError) as error:
            raise StoreUnavailable(f"Kafka: {_words(error)}.") from error
        for one in committed or []:
            if one.error:
                raise StoreUnavailable(f"Kafka: {_words(one.error)}.")

    def again(self) -> None:
        """Gives what was pulled and not acknowledged once more."""
        for partition in self._partitions(self._pulled):
            try:
                self._consumer.seek(partition)
            except (self._kafka.KafkaException, RuntimeError):
                continue  # it is another process's now, which begins at what was committed
        self._pulled = {}

    def close(self) -> None:
        """Leaves the group."""
        self._consumer.close()

    def _partitions(self, offsets: Mapping[tuple[str, int], int]) -> list[Any]:
        return [self._kafka.TopicPartition(topic, part, offset) for (topic, part), offset in offsets.items()]


class _Silent:
    """What librdkafka would print reaches the caller as an error."""

    def log(self, *arguments: Any) -> None:
        """Says nothing."""


def _words(error: Any) -> str:
    """What a KafkaError says, or the one inside an exception, on one line."""
    inner = error.args[0] if getattr(error, "args", None) else error
    text = inner.str() if hasattr(inner, "str") else str(inner)
    return " ".join(text.split())[:200].encode("unicode_escape").decode().strip(".")
