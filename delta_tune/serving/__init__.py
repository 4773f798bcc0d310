"""A model over HTTP: an ONNX file, Pillow and onnxruntime, without PyTorch."""
