"""Pretrained networks: loading them, finding the layers to hook, reading their feature maps."""
