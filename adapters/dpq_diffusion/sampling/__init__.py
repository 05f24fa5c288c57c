"""Drawing images with a pipeline, and the folders, grids and batches that hold them."""
