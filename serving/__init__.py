"""The wire: publishing, serving and calling exported models. Imports no TensorFlow by itself."""
