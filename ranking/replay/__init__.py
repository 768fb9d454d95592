"""Offline replay of logs: estimators, support, tuning. Needs no TensorFlow."""
