"""The experiments of the command line: train a model on real data, serve it dense and pruned."""
