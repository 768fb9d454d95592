"""Datasets: tables and `dataset.toml`, importers, simulator."""
