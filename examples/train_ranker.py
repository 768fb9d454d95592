"""The three stages by hand, with Keras: user representation, look-alike, ESMM; then one ranker that joins them.

python examples/train_ranker.py          # simulates a log first; about two minutes on two cores
"""

from pathlib import Path

import keras
import numpy as np

from esmm import RowAdam, build_esmm, losses, targets
from lookalike import LookalikeModel, UserRepresentation, build_next_item_model, build_similarity_trainer, cluster
from lookalike.representation import user_inputs
from lookalike.sampling import sample_negatives
from ranking.data.simulator import load_world, simulate
from ranking.data.tables import Dataset
from ranking.features import Encoder, gather
from ranking.fusion import FusionWeights
from ranking.model import SimilarityScale, build_ranker, esmm_features, representation_fields
from ranking.rows import training_rows
from ranking.run import Scales
from ranking.state import StateBuilder
from ranking.timeline import Timeline

timeline = Timeline(Dataset(simulate(load_world("demo"), Path("example-data"), overwrite=True)))
schema, generator = timeline.schema, np.random.default_rng(0)
keras.utils.set_random_seed(0)

# 1. User representation: which item will the user click next? Softmax over the click and ten log-uniform negatives.
start, end = timeline.window("lookalike")
past = Encoder.fit(timeline, before=end, rank_by_seeds=True)  # items ranked by falling frequency
user, item, moment, order = (a[timeline.seed_events()[2] < end] for a in timeline.seed_events())
profile = {name: values for name, values in past.static(timeline, "user").items() if name != "user_id"}
x = gather(profile, user) | past.behavior(timeline, user, moment, order)  # the history strictly before each click
size = past.vocabularies["item"].size
negatives = sample_negatives(size - 2, (len(user), 10), generator) + 2
positives = past.vocabularies["item"].encode(timeline.item_ids)[item]
x["candidates"] = np.concatenate([positives[:, None], negatives], axis=1).astype(np.int32)
representation = UserRepresentation(representation_fields(schema, past))
model = build_next_item_model(representation, size)
model.compile(RowAdam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(x, np.zeros(len(user), np.int32), batch_size=512, epochs=2, verbose=2)
encode_user = keras.Model(inputs := user_inputs(representation.fields), representation(inputs))

# 2. Look-alike: do the item's seeds resemble the user? Seeds are of one half of the users, samples of the other.
everybody = np.arange(len(timeline.user_ids) + 1)
vectors = encode_user.predict(profile | past.behavior(timeline, everybody, everybody * 0 + end, None), 4096, verbose=0)
offsets, seeds = timeline.seeds(end)
item_of_seed = np.repeat(np.arange(len(timeline.item_ids)), np.diff(offsets))[seeds % 2 == 0]
counts = np.bincount(item_of_seed, minlength=len(timeline.item_ids))
clusters = cluster(vectors[seeds[seeds % 2 == 0]], np.append(0, np.cumsum(counts)), schema.k)
rows = timeline.rows_in("lookalike")
rows = rows[(timeline.user[rows] % 2 == 1) & (counts[timeline.item[rows]] >= schema.min_seeds)]
lookalike = LookalikeModel(user_dim=vectors.shape[1])
trainer = build_similarity_trainer(lookalike)
trainer.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
who, what = timeline.user[rows], timeline.item[rows]
shown = encode_user.predict(gather(profile, who) | past.behavior(timeline, who, timeline.time[rows], None), verbose=0)
x = {"user": shown, "centroids": clusters.centroids[what], "counts": clusters.counts[what].astype(np.float32)}
x |= {"own_cluster": np.full(len(rows), -1, np.int32), "own_embedding": shown}  # nobody is a seed himself
trainer.fit(x, timeline.impressions["click"].to_numpy(np.float32)[rows], batch_size=512, epochs=2, verbose=2)

# 3. ESMM over all impressions of the later train window, each row with the similarity as of its own tick.
now = Encoder.fit(timeline, before=timeline.window("train")[1], id_min_count=3)
states = StateBuilder(timeline, now, lookalike_encoder=past, representation=encode_user, lookalike=lookalike)
train = training_rows(states, "train")
scales, features = Scales.fit(train.features), esmm_features(schema, now)
x = {feature.name: scales.apply(train.features)[feature.name] for feature in features}
esmm = build_esmm(features, base_rates=(train.click.mean(), train.conversion.sum() / train.click.sum()))
esmm.compile(RowAdam(3e-3, epsilon=1e-5), losses())
esmm.fit(x, targets(train.click, train.conversion), batch_size=1024, epochs=1, verbose=2)

# 4. One functional model with five outputs: similarity, pctr, pcvr, pctcvr, score.
found = esmm.predict(x, 4096, verbose=0) | train.features
parts = {name: found[name] for name in ("similarity", "has_similarity", "pctr", "pcvr")}
weights = FusionWeights.fit(parts, "product", {"similarity": 0.2, "pctr": 1.0, "pcvr": 0.6})
scale = SimilarityScale(*scales.similarity)
ranker = build_ranker(lookalike, esmm, features, weights=weights, similarity_scale=scale, shape=(128, schema.k, 128))
ranker.save("ranker.keras")
