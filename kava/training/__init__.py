"""Training from the store: batches, the data order, the step, and the loop around it."""
