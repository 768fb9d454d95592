"""The plugin: composes look-alike, ESMM and serving, and everything offline. Imports no TensorFlow by itself."""

__version__ = "0.1.0"
