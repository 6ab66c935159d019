"""The model: network, inflation, pretrained weights, posterior, tiling."""
