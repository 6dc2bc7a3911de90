"""The online server: models answer over HTTP, by TensorFlow Serving's REST API and the Open Inference Protocol."""
