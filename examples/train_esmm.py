"""ESMM with Keras, without the look-alike stage: what should click and conversion share, and can a part be frozen?

python examples/train_esmm.py          # simulates a log first; about a minute on two cores
"""

from pathlib import Path

import keras
import numpy as np
import pandas as pd

from esmm import SHARINGS, Architecture, RowAdam, build_esmm, losses, targets
from ranking.data.simulator import load_world, simulate
from ranking.data.tables import Dataset
from ranking.features import Encoder, gather
from ranking.metrics import auc
from ranking.model import esmm_features
from ranking.timeline import Timeline

# A log whose truth is known: P(click | examined) and P(conversion | click) of every impression, clicked or not.
folder = simulate(load_world("demo"), Path("example-data"), overwrite=True)
timeline, truth = Timeline(Dataset(folder)), pd.read_parquet(folder / "truth" / "impressions.parquet")

# 1. Tables to a dict of arrays: ids, profile, item, context, and the last items that the user clicked before the row.
encoder = Encoder.fit(timeline, before=timeline.window("train")[1], id_min_count=3)  # rarer ids share one row
features = [f for f in esmm_features(timeline.schema, encoder, similarity=False) if "statistic" not in f.name]


def arrays_of(rows):
    user, item = timeline.user[rows], timeline.item[rows]
    found = gather(encoder.static(timeline, "user"), user) | gather(encoder.static(timeline, "item"), item)
    found |= encoder.context(timeline, timeline.impressions.iloc[rows])
    return found | encoder.behavior(timeline, user, timeline.time[rows], None)


train, test = timeline.rows_in("train"), timeline.rows_in("test")
click, conversion = (timeline.impressions[label].to_numpy(np.float32) for label in ("click", "conversion"))
position = timeline.impressions["position"].to_numpy(np.int32) + 1  # 0 would mean: not given
x, x_test = arrays_of(train), arrays_of(test)
# Served without a position, pctr is P(click | examined at the top); the position explains the rest in training.
x["position"], x_test["position"] = position[train], np.zeros(len(test), np.int32)
# A conversion takes hours: a row weighs nothing in its loss until its label is final.
weights = {"click_logit": np.ones(len(train)), "log_pctcvr": timeline.mature(train).astype(float)}
rates = (click[train].mean(), conversion[train].sum() / click[train].sum())

# 2. The same call for every way of sharing. No loss on pcvr itself: it learns through pctcvr, over all impressions.
for sharing in SHARINGS:
    keras.utils.set_random_seed(0)
    architecture = Architecture(sharing, towers=(128, 64), experts=3)
    model = build_esmm(features, architecture, base_rates=rates, positions=int(position.max()))
    model.compile(RowAdam(3e-3, epsilon=1e-5), losses(), loss_weights={"click_logit": 1.0, "log_pctcvr": 1.0})
    model.fit(x, targets(click[train], conversion[train]), sample_weight=weights, batch_size=1024, verbose=0)
    out = model.predict(x_test, 4096, verbose=0)
    known = np.corrcoef(np.log(out["pcvr"]), np.log(truth["pcvr"].to_numpy()[test]))[0, 1]
    areas = f"AUC click {auc(click[test], out['pctr']):.3f}, conversion {auc(conversion[test], out['pctcvr']):.3f}"
    print(f"{sharing:>15}: {areas}; log pcvr correlates with its truth by {known:.3f}")

# 3. The conversion learns on, and the click keeps every prediction: freeze what its logit depends on, compile again.
model.get_layer("shared_towers").freeze("click")
model.get_layer("position_bias").trainable = False
model.compile(model.optimizer, losses())
model.fit(x, targets(click[train], conversion[train]), sample_weight=weights, batch_size=1024, verbose=0)
after = model.predict(x_test, 4096, verbose=0)
same, moved = (after["pctr"] == out["pctr"]).all(), np.abs(after["pcvr"] / out["pcvr"] - 1).mean()
print(f"click frozen: pctr is {'the same to the bit' if same else 'different'}, pcvr moved by {moved:.1%}")
model.save("esmm.keras")
