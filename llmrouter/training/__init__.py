"""Makes the shipped models: data in, ONNX with its manifest and card out, the same bytes every time."""
