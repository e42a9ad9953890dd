"""Stores of training data and the codecs between images and latents."""
