"""Settings of the simulator, one TOML file a world."""
