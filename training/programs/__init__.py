"""The programs of a training: Keras models, parameter servers, users' functions, and classical recommenders."""
