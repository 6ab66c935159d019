"""Models in the forms of other software: diffusers, ONNX, torch.export, the hub."""
