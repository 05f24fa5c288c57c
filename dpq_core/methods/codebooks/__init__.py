"""Learning codebooks by k-means: first codewords and Lloyd iterations."""
