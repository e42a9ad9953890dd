"""Training data: sources of images, and the codecs between images and what the model sees."""
