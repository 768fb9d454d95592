"""The ranker: one functional Keras model over the trained sub-models."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from esmm.embedding import Feature
from esmm.model import feature_inputs
from lookalike.representation import Field
from ranking.data.schema import Schema
from ranking.features import Encoder
from ranking.fusion import FusionWeights
from ranking.fusion_layer import FusionLayer

__all__ = ["SIMILARITY_FEATURES", "SimilarityScale", "build_ranker", "esmm_features", "representation_fields"]

SIMILARITY_FEATURES = ("similarity", "has_similarity", "log_seed_count")


def representation_fields(schema: Schema, encoder: Encoder) -> tuple[Field, ...]:
    """The profile and behaviour fields of the user representation."""
    fields = []
    for feature in schema.features:
        if feature.side == "user":
            name = f"user_{feature.name}"
            size = 0 if feature.kind == "numeric" else encoder.vocabularies[name].size
            fields.append(Field(name, feature.kind, name if size else "", size))
    for behavior in schema.behaviors:
        name = f"behavior_{behavior.name}"
        vocabulary = "item" if behavior.vocabulary == "item" else name
        fields.append(Field(name, "multi", vocabulary, encoder.vocabularies[vocabulary].size))
    return tuple(fields)


def esmm_features(schema: Schema, encoder: Encoder, *, similarity: bool = True) -> tuple[Feature, ...]:
    """The inputs of ESMM: ids, profile, item, context, behaviours, statistics and (by default) the similarity."""
    sizes = {name: vocabulary.size for name, vocabulary in encoder.vocabularies.items()}
    features = [
        Feature("user_id", "categorical", "user_id", sizes["user_id"]),
        Feature("item_id", "categorical", "item", sizes["item"]),
    ]
    for feature in schema.features:
        name = f"{feature.side}_{feature.name}"
        if feature.kind == "numeric":
            features.append(Feature(name, "numeric", size=1))
        else:
            weights = f"{name}_weight" if feature.weights else ""
            features.append(Feature(name, feature.kind, name, sizes[name], weights))
    for behavior in schema.behaviors:
        name = f"behavior_{behavior.name}"
        vocabulary = "item" if behavior.vocabulary == "item" else name
        features.append(Feature(name, "multi", vocabulary, sizes[vocabulary]))
    features += [Feature(f"statistic_{statistic.name}", "numeric", size=2) for statistic in schema.statistics]
    if similarity:
        features += [Feature(name, "numeric", size=1) for name in SIMILARITY_FEATURES]
    return tuple(features)


@keras.saving.register_keras_serializable(package="ranking")
class SimilarityScale(keras.layers.Layer):
    """The similarity as ESMM sees it: `has * (similarity - mean) / sd`.

    A cosine of centroids varies little; standardised it learns as fast as the other inputs, and an item without a
    similarity gets exactly the frozen mean.

    Args:
        mean: float. Mean similarity of the training rows that have one.
        sd: float. Its standard deviation, > 0.
    """

    def __init__(self, mean: float, sd: float, **kwargs: Any):
        super().__init__(**kwargs)
        if not sd > 0:
            raise ValueError(f"`sd` should be a positive number. Received: sd={sd}")
        self.mean, self.sd = float(mean), float(sd)

    def call(self, similarity: Any, has: Any) -> Any:
        """Both [B] -> [B]."""
        return ops.cast(has, similarity.dtype) * (similarity - self.mean) / self.sd

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "mean": self.mean, "sd": self.sd}


def build_ranker(
    lookalike: Any,
    esmm: keras.Model,
    features: Sequence[Feature],
    *,
    weights: FusionWeights,
    similarity_scale: SimilarityScale,
    shape: tuple[int, int, int],
) -> keras.Model:
    """Composes look-alike, ESMM and fusion: similarity feeds ESMM, the parts feed the score.

    Args:
        lookalike: LookalikeModel. Fitted.
        esmm: keras.Model. Fitted, with `similarity`, `has_similarity` and `log_seed_count` among its inputs.
        features: sequence of esmm.Feature. The inputs of `esmm`.
        weights: FusionWeights. Of the score.
        similarity_scale: SimilarityScale. Frozen on the training rows.
        shape: (m, k, h): width of user vectors, centroids an item, width of centroids.

    Returns:
        A keras.Model from a dict (features without the similarity, `user_vector` [B, m], `centroids` [B, k, h],
        `centroid_counts` [B, k], `has_similarity` [B], `log_seed_count` [B], `price` [B]) to a dict of float32 [B]:
        similarity, pctr, pcvr, pctcvr, score. A missing price is NaN.
    """
    m, k, h = shape
    inputs = feature_inputs([feature for feature in features if feature.name != "similarity"])
    inputs["user_vector"] = keras.Input((m,), dtype="float32", name="user_vector")
    inputs["centroids"] = keras.Input((k, h), dtype="float32", name="centroids")
    inputs["centroid_counts"] = keras.Input((k,), dtype="float32", name="centroid_counts")
    inputs["price"] = keras.Input((), dtype="float32", name="price")
    similarity = lookalike(
        {
            "user": inputs["user_vector"],
            "centroids": inputs["centroids"],
            "centroid_counts": inputs["centroid_counts"],
        }
    )
    wanted = {name for feature in features for name in (feature.name, feature.weights)}
    esmm_inputs = {name: value for name, value in inputs.items() if name in wanted}
    esmm_inputs["similarity"] = similarity_scale(similarity, inputs["has_similarity"])
    if any(tensor.name == "position" for tensor in esmm.inputs):
        esmm_inputs["position"] = ops.zeros_like(inputs["user_id"])  # not known before it is shown
    found = esmm(esmm_inputs)
    # An item without a similarity shows the frozen mean; the fusion leaves it out all the same.
    similarity = ops.where(inputs["has_similarity"] > 0, similarity, similarity_scale.mean)
    outputs = {"similarity": similarity, **{name: found[name] for name in ("pctr", "pcvr", "pctcvr")}}
    parts = {"price": inputs["price"], **outputs}
    parts = {name: parts[name] for name in weights.weights} | {"has_similarity": inputs["has_similarity"]}
    outputs["score"] = FusionLayer(weights, name="fusion")(parts)
    return keras.Model(inputs, outputs, name="ranker")
