"""A pretrained model on disk: where its files lie, what they must hold, and what is wrong with those that do not."""
