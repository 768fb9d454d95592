"""The shape of the network: one frozen description, passed as one argument."""

import dataclasses

__all__ = ["SHARINGS", "Architecture"]

SHARINGS = ("embedding", "hard", "mmoe", "hierarchical", "shared_private")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the towers share, and how wide they are.

    Args:
        sharing: str. What the tasks have in common. `"embedding"`: the embedding, the paper's; `"hard"`: the first
            layer too; `"mmoe"`: experts, mixed by a gate a task; `"hierarchical"`: each task reads what the one
            before it made; `"shared_private"`: shared experts and a private one a task. Defaults to `"embedding"`.
        embedding_dim: int. Width of an embedding row. Defaults to `18`, the paper's.
        towers: sequence of int. Widths of the hidden layers from the embedding to a task's logit, ReLU; shared layers
            and experts are the first of them. Defaults to `(360, 200, 80)`, the paper's.
        dropout: float. After each hidden layer, in [0, 1). Defaults to `0.2`.
        wide: bool. Whether a linear weight an id and a task is added. Defaults to `True`.
        l2: float. On the embedding rows looked up; see `esmm.SharedEmbedding`. Defaults to `0.0`.
        experts: int. Of `"mmoe"` and `"shared_private"`: how many experts are shared. Defaults to `4`.

    Raises:
        ValueError: an argument out of its range.
    """

    sharing: str = "embedding"
    embedding_dim: int = 18
    towers: tuple[int, ...] = (360, 200, 80)
    dropout: float = 0.2
    wide: bool = True
    l2: float = 0.0
    experts: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "towers", tuple(self.towers))  # a list of a configuration file
        if self.sharing not in SHARINGS:
            raise ValueError(f"`sharing` should be one of {SHARINGS}. Received: sharing={self.sharing!r}.")
        if self.embedding_dim < 1:
            raise ValueError(
                f"`embedding_dim` should be a positive integer. Received: embedding_dim={self.embedding_dim}."
            )
        if any(units < 1 for units in self.towers):
            raise ValueError(f"`towers` should be positive integers. Received: towers={self.towers}.")
        if not self.towers and self.sharing != "embedding":
            raise ValueError(f"`towers` should hold a layer to share by {self.sharing!r}. Received: towers=().")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` should be in [0, 1). Received: dropout={self.dropout}.")
        if not self.l2 >= 0:
            raise ValueError(f"`l2` should not be negative. Received: l2={self.l2}.")
        if self.experts < 1:
            raise ValueError(f"`experts` should be a positive integer. Received: experts={self.experts}.")
