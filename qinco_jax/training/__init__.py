"""Training a model: recipe, one step, the loop, the order of the rows, run folders and logs."""
