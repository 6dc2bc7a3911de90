"""Models for other servers: TensorFlow Serving's folders, configuration and warm-up records, and files of ONNX."""
