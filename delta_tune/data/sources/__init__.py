"""Where examples come from: image folders, Parquet, torchvision, the demo."""
