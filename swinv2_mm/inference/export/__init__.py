"""From a config and a checkpoint to one ONNX file for images of all sizes."""
